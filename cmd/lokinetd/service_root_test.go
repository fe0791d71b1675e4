//go:build root

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lokinetd/router/control"
	"lokinetd/router/key"
)

// endless is a web server with the demo's page and one without an end: 10,000 bytes, and 500 each 10 ms until finish, and then "end".
type endless struct {
	finish  chan struct{}
	running atomic.Int32
}

func (w *endless) ServeHTTP(to http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/endless" {
		io.WriteString(to, demoPage)
		return
	}
	w.running.Add(1)
	defer w.running.Add(-1)
	rng := rand.NewChaCha8([32]byte{1})
	io.CopyN(to, rng, 10_000)
	for {
		select {
		case <-w.finish:
			io.WriteString(to, "end")
			return
		case <-r.Context().Done():
			return
		case <-time.After(10 * time.Millisecond):
		}
		io.CopyN(to, rng, 500)
		http.NewResponseController(to).Flush()
	}
}

// wrote says whether b is what the page begins with.
func (w *endless) wrote(b []byte) bool {
	want := make([]byte, len(b))
	rand.NewChaCha8([32]byte{1}).Read(want)
	return len(b) > 10_000 && bytes.Equal(b, want)
}

// TestServiceReload: while twenty downloads run from two services, others come, go and change by reload, five times, and no download breaks. Then a client is struck off the list
// of one of the two: its connection ends, the other's stays.
func TestServiceReload(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute+patience)
	defer cancel()
	d, must := demoOf(ctx, t)
	defer d.close()
	must(d.relays())

	// The services: one whose port leads to a web server on loopback, for two clients only, and one whose web server listens by itself.
	friends := filepath.Join(d.dir, "friends")
	must(os.Mkdir(friends, 0o755))
	service := func(name, more string) string { return fmt.Sprintf("[[service]]\nname = %q\n%s\n", name, more) }
	private := service("private", fmt.Sprintf("clients = %q\nforward = [\"80 -> 127.0.0.1:8080\"]", friends))
	public := service("public", `ports = ["tcp/82"]`)
	host, err := d.node("host", "10.77.0.101", "")
	must(err)
	configure := func(services ...string) {
		t.Helper()
		must(os.WriteFile(d.file("host"), []byte(d.config("host", "")+strings.Join(services, "")), 0o600))
	}
	configure(private, public, service("passing", `ports = ["tcp/83"]`))
	w := &endless{finish: make(chan struct{})}
	for _, at := range []string{":82", "127.0.0.1:8080"} {
		socket, err := host.node.Listen("tcp", at)
		must(err)
		l, err := net.FileListener(socket)
		must(err)
		socket.Close()
		server := &http.Server{Handler: w}
		go server.Serve(l)
		defer server.Close()
	}

	// Two clients with lasting identities, and one that is on no list.
	var guests []*demoHost
	client := map[string]string{}
	for i, name := range []string{"alice", "bob", "mallory"} {
		secret := key.Generate()
		file := filepath.Join(d.dir, name+".key")
		must(secret.Save(file))
		if name != "mallory" {
			must(os.WriteFile(filepath.Join(friends, name+".client"), []byte("# "+name+"\n"+key.Address{Key: secret.Public()}.String()+"\n"), 0o644))
		}
		g, err := d.client(name, fmt.Sprintf("10.77.0.%d", 110+i), fmt.Sprintf("[client]\nkey = %q\n", file))
		must(err)
		guests = append(guests, g)
		client[name] = key.Address{Key: secret.Public()}.String()
	}
	alice, bob, mallory := guests[0], guests[1], guests[2]
	must(host.start())
	address := map[string]string{}
	published := func(want ...string) {
		t.Helper()
		must(host.wait(ctx, func(s control.Status) bool {
			got := []string{}
			for _, e := range s.Endpoints[min(1, len(s.Endpoints)):] {
				if e.PublishedAt != nil {
					got = append(got, e.Name)
					address[e.Name] = e.Address
				}
			}
			slices.Sort(got)
			return slices.Equal(got, want)
		}))
	}
	published("passing", "private", "public")
	for _, g := range guests {
		must(g.wait(ctx, func(s control.Status) bool { return s.State == control.Ready }))
	}
	curl := func(g *demoHost, limit time.Duration, args ...string) ([]byte, error) {
		// A reload takes a moment, of which nothing tells the end if the services are the same: a port may still be closed at first.
		return g.node.Command(append([]string{"curl", "-sS", "--fail", "--retry", "60", "--retry-delay", "1", "--retry-connrefused", "--retry-max-time", "60",
			"--max-time", fmt.Sprint(limit.Seconds())}, args...)...).Output()
	}

	var wg sync.WaitGroup
	for i := range 20 {
		g, to := guests[i%2], []string{"private", "public"}[i/10]
		url := fmt.Sprintf("http://%s:%d/endless", address[to], map[string]int{"private": 80, "public": 82}[to])
		wg.Go(func() {
			page, err := curl(g, patience, url)
			if rest, ended := bytes.CutSuffix(page, []byte("end")); err != nil || !ended || !w.wrote(rest) {
				t.Errorf("a download of %s from %s: %d bytes, %v", g.name, to, len(page), err)
			}
		})
	}
	running := func(n int32) {
		t.Helper()
		for end := time.Now().Add(eventually); w.running.Load() != n; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d downloads run, not %d", w.running.Load(), n)
			}
		}
	}
	running(20)
	reload := func(want []string, services ...string) {
		t.Helper()
		configure(services...)
		must(host.cmd.Signal(syscall.SIGHUP))
		published(want...)
	}
	both := []string{"private", "public"}
	reload(both, private, public) // one goes
	reload([]string{"private", "public", "shop"}, service("shop", "forward = [\"81 -> 127.0.0.1:8080\"]\necho = true"), private, public)
	page, err := curl(alice, eventually, "http://"+address["shop"]+":81/")
	if err != nil || string(page) != demoPage {
		t.Errorf("a service that has come: %q, %v", page, err)
	}
	changed := strings.Replace(private, "[\"80", "[\"81 -> 127.0.0.1:8080\", \"80", 1) + "max_sessions = 50\n"
	reload([]string{"private", "public", "shop"}, changed, public+"max_new_sessions = 50\n", service("shop", "ports = [\"tcp/80\"]"))
	page, err = curl(bob, eventually, "http://"+address["private"]+":81/")
	if err != nil || string(page) != demoPage {
		t.Errorf("a port that was added: %q, %v", page, err)
	}
	reload([]string{"passing", "private", "public"}, changed, public, service("passing", ""))
	configure("[[service]]\n") // refused
	must(host.cmd.Signal(syscall.SIGHUP))
	must(host.wait(ctx, func(s control.Status) bool {
		return slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, "configuration refused") })
	}))
	// A port that a program of the host has on all addresses, and gives up later.
	taken, err := host.node.Listen("tcp", ":84")
	must(err)
	reload(both, strings.Replace(private, "[\"80", "[\"84 -> 127.0.0.1:8080\", \"80", 1), public)
	warned := func(s control.Status) bool {
		return slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, "tcp/84 -> 127.0.0.1:8080: ") })
	}
	must(host.wait(ctx, warned))
	must(taken.Close())
	must(host.wait(ctx, func(s control.Status) bool { return !warned(s) }))
	if page, err := curl(bob, eventually, "http://"+address["private"]+":84/"); err != nil || string(page) != demoPage {
		t.Errorf("a port that was taken before: %q, %v", page, err)
	}
	reload(both, private, public)
	if page, err := curl(mallory, 5*time.Second, "--retry", "0", "http://"+address["private"]+"/"); err == nil {
		t.Errorf("who is on no list reaches the service: %q", page)
	}
	if page, err := curl(mallory, eventually, "http://"+address["public"]+":82/"); err != nil || string(page) != demoPage {
		t.Errorf("who is on no list does not reach the other service: %q, %v", page, err)
	}
	running(20)
	close(w.finish)
	wg.Wait()
	running(0)

	// Struck off, with a connection open.
	w.finish = make(chan struct{})
	ended := map[string]chan error{}
	for g, limit := range map[*demoHost]time.Duration{alice: eventually, bob: patience} {
		done := make(chan error, 1)
		ended[g.name] = done
		go func() {
			_, err := curl(g, limit, "http://"+address["private"]+"/endless")
			done <- err
		}()
	}
	running(2)
	must(os.Remove(filepath.Join(friends, "alice.client")))
	must(host.cmd.Signal(syscall.SIGHUP))
	must(host.wait(ctx, func(s control.Status) bool {
		return !slices.ContainsFunc(s.Sessions, func(x control.Session) bool { return x.Remote == client["alice"] && x.Endpoint == "private" })
	}))
	time.Sleep(time.Second) // for what would call back
	close(w.finish)
	if err := <-ended["bob"]; err != nil {
		t.Errorf("bob, who is still on the list: %v", err)
	}
	if err := <-ended["alice"]; err == nil {
		t.Errorf("alice was struck off and got all")
	}
	s, err := host.status(ctx)
	must(err)
	for _, e := range s.Endpoints {
		if e.Name == "private" && (e.Clients != 1 || e.Refused == 0) {
			t.Errorf("status: %+v", e)
		}
	}
	host.stop()
	if t.Failed() {
		t.Log(host.log.String())
	}
}
