//go:build root

package main

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"lokinetd/netif/lab"
	"lokinetd/router/control"
	"lokinetd/router/key"
)

// download is a download that runs in a node.
type download struct {
	arrivals
	t    *testing.T
	cmd  *lab.Cmd
	said demoLog
	done chan struct{} // closed when it has ended
}

func startDownload(t *testing.T, n *lab.Node, url string) *download {
	t.Helper()
	d := &download{t: t, done: make(chan struct{})}
	d.cmd = n.Command("curl", "-sS", "--no-buffer", url)
	d.cmd.Stdout, d.cmd.Stderr = d, &d.said
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		d.cmd.Wait()
		close(d.done)
	}()
	for end := time.Now().Add(eventually); !d.calm(20_000); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no download from %s: %s", url, d.said.String())
		}
	}
	return d
}

func (d *download) stop() {
	d.cmd.Signal(syscall.SIGKILL)
	<-d.done
}

// goesOn says how long after now something comes again. False: it has ended instead, which took so long, or neither came to pass in time.
func (d *download) goesOn(limit time.Duration) (time.Duration, bool) {
	began := time.Now()
	_, before := d.silence()
	for time.Since(began) < limit {
		select {
		case <-d.done:
			return time.Since(began), false
		case <-time.After(10 * time.Millisecond):
		}
		if d.calm(before) {
			return time.Since(began), true
		}
	}
	return limit, false
}

// TestFaults: what a running TCP connection goes through besides the loss of relays: links that are cut, addresses that change, and daemons that are killed and started again.
func TestFaults(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute+10*eventually)
	defer cancel()
	d, must := demoOf(ctx, t)
	defer d.close()
	fleetOf(t, d)
	host, err := d.client("host", "10.77.0.101", fmt.Sprintf(debug+"[[service]]\nname = \"web\"\nkey = %q\nports = [\"tcp/80\"]\n", d.pageKey()))
	must(err)
	defer serveAt(t, host.node, ":80", http.HandlerFunc(streams))()
	url := "http://" + key.Address{Key: d.page.Public()}.String() + "/paced"
	served := func(s control.Status) bool { return len(s.Endpoints) == 2 && s.Endpoints[1].PublishedAt != nil }
	must(host.wait(ctx, served))
	ready := func(s control.Status) bool { return s.State == control.Ready }
	lasting := filepath.Join(d.dir, "lasting.key")
	must(key.Generate().Save(lasting))
	fresh, err := d.client("fresh", "10.77.0.110", debug)
	must(err)
	kept, err := d.client("kept", "10.77.0.111", fmt.Sprintf(debug+"[client]\nkey = %q\n", lasting))
	must(err)
	must(fresh.wait(ctx, ready))
	must(kept.wait(ctx, ready))
	sh := func(h *demoHost, script string) {
		t.Helper()
		if out, err := h.node.Command("sh", "-ec", script).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}

	goesOn := func(l *download, what string) {
		t.Helper()
		after, ok := l.goesOn(eventually)
		t.Logf("%s: goes on %v after %v", what, ok, after)
		if !ok || *quietMachine && after > 5*time.Second {
			t.Errorf("%s: the download goes on %v, after %v: %s", what, ok, after, l.said.String())
		}
	}

	// The way to the network is cut for three seconds, at the client and at the service.
	for _, h := range []*demoHost{fresh, host} {
		l := startDownload(t, fresh.node, url)
		sh(h, "ip link set eth0 down; sleep 3; ip link set eth0 up")
		goesOn(l, fmt.Sprintf("the link of %s is cut for 3 s", h.name))
		l.stop()
	}

	// Another address, at the client and at the service.
	for i, h := range []*demoHost{fresh, host} {
		l := startDownload(t, fresh.node, url)
		sh(h, fmt.Sprintf("ip addr flush dev eth0; sleep 0.3; ip addr add 10.77.0.%d/16 dev eth0", 201+i))
		goesOn(l, "another address of "+h.name)
		l.stop()
	}

	// Daemons that are killed and started again.
	again := func(h *demoHost, up func(control.Status) bool) {
		t.Helper()
		must(h.cmd.Signal(syscall.SIGKILL))
		h.cmd.Wait()
		must(h.start())
		must(h.wait(ctx, up))
	}
	for _, x := range []struct {
		what   string
		h      *demoHost
		client *demoHost
		up     func(control.Status) bool
		lives  bool // the connection; else it ends, when the daemon is there again or before
	}{
		{"the service's daemon", host, fresh, served, true},
		{"the daemon of a client with a lasting key", kept, kept, ready, true},
		{"the daemon of a client with a new key each time", fresh, fresh, ready, false},
	} {
		l := startDownload(t, x.client.node, url)
		time.Sleep(6 * time.Second) // whose address is whose has been saved
		x.client.log.Reset()
		again(x.h, x.up)
		after, ok := l.goesOn(eventually)
		t.Logf("%s is killed and started again: goes on %v after %v", x.what, ok, after)
		if ok != x.lives || after >= eventually || *quietMachine && (ok && after > 15*time.Second || !ok && after > time.Second) {
			t.Errorf("%s is killed and started again: goes on %v, after %v %s\n%s", x.what, ok, after, l.said.String(), x.client.log.String())
		}
		l.stop()
	}
	if t.Failed() {
		t.Logf("the client's log:\n%s\nthe service's:\n%s", fresh.log.String(), host.log.String())
	}
}
