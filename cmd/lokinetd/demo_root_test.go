//go:build root

package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lokinetd/netif/lab"
	"lokinetd/router/control"
)

// TestMain lets the lab start this test program as lokinetd.
func TestMain(m *testing.M) {
	lab.Main()
	if len(os.Args) > 1 && roles[os.Args[1]] != nil {
		roles[os.Args[1]](os.Args[2:])
		return
	}
	if len(os.Args) > 1 && filepath.Base(os.Args[0]) == "lokinetd" || len(os.Args) > 1 && slices.Contains([]string{"run", "demo", "cleanup", "dns", "proxy", "status"}, os.Args[1]) {
		ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// transfer is how many bytes go each way, and patience how long one of them may take. make soak sends ten times as many.
const (
	transfer = 20_000_000 * scale
	patience = 5 * time.Minute * scale
)

// demoOf makes the demo's network, for the caller to close, and what ends the test at an error.
func demoOf(ctx context.Context, t *testing.T) (*demoNet, func(error)) {
	t.Helper()
	d, err := newDemo(ctx, &app{out: os.Stdout, err: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	return d, func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// serving is demoOf with its relays and a host that serves a page at address.
func serving(ctx context.Context, t *testing.T) (d *demoNet, must func(error), host *demoHost, address string) {
	t.Helper()
	d, must = demoOf(ctx, t)
	err := d.relays()
	if err == nil {
		host, address, err = d.serve(ctx)
	}
	if err != nil {
		d.close()
		t.Fatal(err)
	}
	return d, must, host, address
}

// What a person does with the demo's network, from its second client.
func TestDemoNetwork(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute+2*patience)
	defer cancel()
	d, must, _, address := serving(ctx, t)
	defer d.close()
	ready := func(s control.Status) bool { return s.State == control.Ready }
	guest, err := d.client("guest", "10.77.0.102", "")
	must(err)
	must(guest.wait(ctx, ready))
	if log := guest.log.String(); strings.Count(log, "msg=ready after=") != 1 || !strings.Contains(log, "msg=running") {
		t.Errorf("the log does not say when it is ready: %s", log)
	}
	run := func(args ...string) (string, error) {
		start := time.Now()
		out, err := guest.node.Command(args...).CombinedOutput()
		t.Logf("%.60s: %v", strings.Join(args, " "), time.Since(start))
		return string(out), err
	}
	curl := func(args ...string) string {
		t.Helper()
		out, err := run(append([]string{"curl", "-sS", "--fail", "--max-time", fmt.Sprint(patience.Seconds())}, args...)...)
		if err != nil {
			t.Errorf("curl %q: %v: %.300s", args, err, out)
		}
		return out
	}
	url := "http://" + address

	for _, family := range []string{"-4", "-6"} {
		if page := curl(family, url+"/"); page != demoPage {
			t.Errorf("curl %s: %q", family, page)
		}
		if out, err := run("ping", family, "-c", "3", "-W", "5", address); err != nil {
			t.Errorf("ping %s: %v: %s", family, err, out)
		}
	}

	file := filepath.Join(t.TempDir(), "file")
	h := sha256.New()
	f, err := os.Create(file)
	must(err)
	_, err = io.CopyN(io.MultiWriter(h, f), rand.NewChaCha8([32]byte{1}), transfer)
	must(err)
	must(f.Close())
	sum := fmt.Sprintf("%x", h.Sum(nil))
	curl("-o", file+".down", fmt.Sprintf("%s/bytes/%d", url, transfer))
	down, err := os.ReadFile(file + ".down")
	must(err)
	if got := fmt.Sprintf("%x", sha256.Sum256(down)); got != sum {
		t.Errorf("download of %d bytes: sum %s, want %s", len(down), got, sum)
	}
	if got := curl("-T", file, url+"/up"); got != sum {
		t.Errorf("upload: sum %s, want %s", got, sum)
	}

	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			out, err := guest.node.Command("curl", "-sS", "--fail", "--max-time", "300", "-o", "/dev/null", "-w", "%{size_download}", url+"/bytes/100000").CombinedOutput()
			if err != nil || string(out) != "100000" {
				t.Errorf("one of 50 parallel downloads: %v: %s", err, out)
			}
		})
	}
	wg.Wait()

	for _, transport := range []string{"+notcp", "+tcp"} {
		for _, typ := range []string{"A", "AAAA"} {
			out, err := run("dig", "+short", transport, "@127.3.2.1", address, typ)
			if _, bad := netip.ParseAddr(strings.TrimSpace(out)); err != nil || bad != nil {
				t.Errorf("dig %s %s: %v: %s", transport, typ, err, out)
			}
		}
	}
	relays, err := control.NewClient(guest.socket()).Relays(ctx)
	must(err)
	if out, err := run("ping", "-c", "3", "-W", "5", relays.Relays[0].Relay); err != nil {
		t.Errorf("ping of a relay: %v: %s", err, out)
	}
	if out, err := run("curl", "-sS", "--max-time", "3", url+":81/"); err == nil {
		t.Errorf("a port that is not listed answers: %s", out)
	}

	third, err := d.machine("third", "", lab.NodeConfig{NoIPv6: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.103/16")}})
	must(err)
	must(third.start())
	must(third.wait(ctx, ready))
	page, err := third.node.Command("curl", "-sS", "--fail", "--max-time", "60", url+"/").CombinedOutput()
	if err != nil || string(page) != demoPage {
		t.Errorf("the client without IPv6: %v: %s", err, page)
	}
	third.stop()
}

// A relay that cannot start ends the demo with its own words.
func TestDemoPortTaken(t *testing.T) {
	d, err := newDemo(t.Context(), &app{out: io.Discard, err: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	names, err := d.plan()
	if err != nil {
		t.Fatal(err)
	}
	taken, err := d.lab.Listen("udp4", "10.77.0.3:1190")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := d.startRelays(names); err != nil {
		t.Fatal(err)
	}
	_, _, err = d.serve(d.ctx)
	if err == nil {
		<-d.ctx.Done() // the page was there first
		err = context.Cause(d.ctx)
	}
	if text := err.Error(); !strings.Contains(text, "relay3 has ended") || !strings.Contains(text, "address already in use") {
		t.Error(err)
	}
}

// Whenever the demo is interrupted, it leaves no process and no folder.
func TestDemoInterrupted(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	for _, after := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		a := &app{out: io.Discard, err: io.Discard}
		err := a.demo(ctx, true, 1)
		cancel()
		if err != nil && !strings.Contains(err.Error(), "interrupted") {
			t.Errorf("after %v: %v", after, err)
		}
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Fatalf("after %v these are left: %v, %v", after, left, err)
		}
		tasks, err := filepath.Glob("/proc/self/task/*/children")
		if err != nil || len(tasks) == 0 {
			t.Fatal("no list of children", err)
		}
		for _, task := range tasks {
			if children, _ := os.ReadFile(task); len(children) > 0 { // a thread may have ended
				t.Fatalf("after %v these children live: %s", after, children)
			}
		}
	}
}
