//go:build root

package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"lokinetd/netif/lab"
	"lokinetd/router/control"
	"lokinetd/router/key"
)

// quietMachine has tests judge how long things take, too. Without it they log that: on a machine with other work, or a slow one, it is no matter of the daemon's. What the rules are worth
// is tested where time is simulated (router/session, router/testnet).
var quietMachine = flag.Bool("quiet", false, "judge times, too: this machine does nothing else")

// eventually is how long something may take that has to happen, on any machine: a TCP connection that was without a way for a while may wait as long again.
const eventually = time.Minute

// How long traffic may stop when a relay on its way is killed, on a quiet machine: in the median of all kills, and at most.
const (
	killWorlds = 5 // each place is killed under both kinds of downloads
	killRounds = 2 // in each world: paths and edges are given up on a suspicion a few times in two minutes only
	killMedian = 1500 * time.Millisecond
	killMost   = 4 * time.Second
)

// debug has a daemon tell what its sessions and paths do.
const debug = "[log]\nlevel = \"*=info,session=debug,path=debug\"\n"

// fleet is the demo's relays, which can be killed and started again.
type fleet struct {
	t    *testing.T
	d    *demoNet
	cmds map[string]*lab.Cmd // by their ids
	name map[string]string   // by their ids
}

// fleetOf starts the demo's relays.
func fleetOf(t *testing.T, d *demoNet) *fleet {
	t.Helper()
	f := &fleet{t, d, map[string]*lab.Cmd{}, map[string]string{}}
	names, err := d.plan()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		sec, err := key.LoadSecret(filepath.Join(d.dir, name, "relay.key"))
		if err != nil {
			t.Fatal(err)
		}
		id := sec.Public().String()
		f.name[id] = name
		f.start(id)
	}
	return f
}

func (f *fleet) start(id string) {
	f.t.Helper()
	c := f.d.lab.Self("run", "-c", f.d.file(f.name[id]))
	if err := c.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.cmds[id] = c
}

// kill ends a relay without a chance to say a word.
func (f *fleet) kill(id string) {
	f.cmds[id].Signal(syscall.SIGKILL)
	f.cmds[id].Wait()
}

// ready waits until a relay answers.
func (f *fleet) ready(id string) {
	f.t.Helper()
	for end := time.Now().Add(eventually); ; time.Sleep(10 * time.Millisecond) {
		s, err := control.NewClient(filepath.Join(f.d.dir, f.name[id], "sock")).Status(f.d.ctx)
		if err == nil && s.State == control.Ready {
			return
		} else if time.Now().After(end) {
			f.t.Fatalf("%s is not ready: %v, %s", f.name[id], err, s.State)
		}
	}
}

// arrivals notes when something came.
type arrivals struct {
	mu    sync.Mutex
	bytes int
	last  time.Time
	worst time.Duration // between two arrivals, since it was asked for
}

func (a *arrivals) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if !a.last.IsZero() {
		a.worst = max(a.worst, now.Sub(a.last))
	}
	a.last = now
	a.bytes += len(p)
	return len(p), nil
}

// calm says whether more than that has come, and something just now.
func (a *arrivals) calm(bytes int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bytes > bytes && time.Since(a.last) < 100*time.Millisecond
}

// silence gives the longest time without an arrival, up to now, since it was asked before, and what came in all.
func (a *arrivals) silence() (longest time.Duration, bytes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	longest = a.worst
	if !a.last.IsZero() {
		longest = max(longest, time.Since(a.last))
	}
	a.worst = 0
	return longest, a.bytes
}

// streams is a web server with pages without an end: /bulk, as fast as it goes, and /paced, 500 bytes each 10 ms. What is uploaded to it is read.
func streams(w http.ResponseWriter, r *http.Request) {
	rng := rand.NewChaCha8([32]byte{1})
	c := http.NewResponseController(w)
	for r.Context().Err() == nil {
		size := int64(500)
		if r.URL.Path == "/bulk" {
			size = 100_000
		} else {
			time.Sleep(10 * time.Millisecond)
		}
		if _, err := io.CopyN(w, rng, size); err != nil {
			return
		}
		c.Flush()
	}
}

// serveAt serves at an address in a node until it is told to stop.
func serveAt(t *testing.T, n *lab.Node, at string, h http.Handler) (stop func()) {
	t.Helper()
	socket, err := n.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	l, err := net.FileListener(socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h}
	go server.Serve(l)
	return func() { server.Close() }
}

// killed is one kill of a relay under a download.
type killed struct {
	kind, role string
	silent     time.Duration
}

// killRoles are the places of a way from a client to a service.
var killRoles = []string{"edge", "middle", "pivot", "service's middle", "service's edge"}

// killWorld kills relays under downloads in a network of its own.
func killWorld(t *testing.T, world int) (all []killed) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute+10*eventually)
	defer cancel()
	d, must := demoOf(ctx, t)
	defer d.close()
	f := fleetOf(t, d)
	host, err := d.client("host", "10.77.0.101", fmt.Sprintf(debug+"[[service]]\nname = \"web\"\nkey = %q\nports = [\"tcp/80\"]\n", d.pageKey()))
	must(err)
	defer serveAt(t, host.node, ":80", http.HandlerFunc(streams))()
	address := key.Address{Key: d.page.Public()}.String()
	must(host.wait(ctx, func(s control.Status) bool { return len(s.Endpoints) == 2 && s.Endpoints[1].PublishedAt != nil }))
	guest, err := d.client("guest", "10.77.0.102", debug)
	must(err)
	must(guest.wait(ctx, func(s control.Status) bool { return s.State == control.Ready }))

	// way gives the relays from the client to the pivot and from there to the service, by what each is.
	way := func() map[string]string {
		t.Helper()
		for end := time.Now().Add(eventually); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			g, err := guest.status(ctx)
			must(err)
			h, err := host.status(ctx)
			must(err)
			for _, a := range g.Sessions {
				for _, b := range h.Sessions {
					if a.Remote == address && len(a.Hops) == 3 && len(b.Hops) == 3 && a.Hops[2] == b.Hops[2] {
						return map[string]string{"edge": a.Hops[0], "middle": a.Hops[1], "pivot": a.Hops[2], "service's middle": b.Hops[1], "service's edge": b.Hops[0]}
					}
				}
			}
		}
		t.Fatal("no session on a way that both know")
		return nil
	}
	for round := range killRounds {
		n := world*killRounds + round
		kind, role := []string{"paced", "bulk"}[n/len(killRoles)%2], killRoles[n%len(killRoles)]
		var a arrivals
		curl := guest.node.Command("curl", "-sS", "--no-buffer", "http://"+address+"/"+kind)
		curl.Stdout, curl.Stderr = &a, &guest.log
		must(curl.Start())
		for end := time.Now().Add(eventually); ; time.Sleep(10 * time.Millisecond) {
			if _, n := a.silence(); n > 20_000 {
				break
			} else if time.Now().After(end) {
				t.Fatalf("no download\n%s", guest.log.String())
			}
		}
		time.Sleep(700 * time.Millisecond)
		w := way()
		victim := w[role]
		places := ""
		for _, r := range killRoles {
			if w[r] == victim && r != role {
				places += " and " + r
			}
		}
		guest.log.Reset()
		host.log.Reset()
		_, before := a.silence()
		f.kill(victim)
		at := time.Now()
		calm := false
		for ; !calm && time.Since(at) < eventually; time.Sleep(20 * time.Millisecond) {
			calm = a.calm(before) && time.Since(at) > 1200*time.Millisecond
		}
		silent, after := a.silence()
		all = append(all, killed{kind, role, silent})
		t.Logf("%s, %s%s killed: silent for %v; %d bytes came before, %d since", kind, role, places, silent.Round(time.Millisecond), before, after-before)
		if !calm {
			t.Errorf("%s, %s%s killed: the download does not go on", kind, role, places)
		}
		curl.Signal(syscall.SIGKILL)
		curl.Wait()
		if !calm || silent > killMost {
			t.Logf("%s was killed at %s\nthe client's log:\n%s\nthe service's:\n%s", victim, at.Format("15:04:05.000"), guest.log.String(), host.log.String())
		}
		f.start(victim)
		f.ready(victim)
		time.Sleep(300 * time.Millisecond)
	}
	return all
}

// TestRelayKilled: relays that carry a running TCP download are killed, each place of the way in turn, and the download goes on; soon, on a quiet machine.
func TestRelayKilled(t *testing.T) {
	var all []killed
	worlds := killWorlds
	if *quietMachine {
		worlds *= 2 // for the figures
	}
	for world := range worlds {
		all = append(all, killWorld(t, world)...)
	}
	stat := func(what string, of func(killed) bool) (median, most time.Duration) {
		var x []time.Duration
		for _, k := range all {
			if of(k) {
				x = append(x, k.silent.Round(time.Millisecond))
			}
		}
		slices.Sort(x)
		median, most = x[len(x)/2], x[len(x)-1]
		t.Logf("%s: median %v, at most %v: %v", what, median, most, x)
		return median, most
	}
	for _, r := range killRoles {
		stat(r, func(k killed) bool { return k.role == r })
	}
	for _, kind := range []string{"paced", "bulk"} {
		stat(kind, func(k killed) bool { return k.kind == kind })
	}
	median, _ := stat("all", func(killed) bool { return true })
	long := 0
	for _, k := range all {
		if k.silent > killMost {
			long++
		}
	}
	// In a network of ten a relay may be on all the ways that there are.
	if *quietMachine && (median > killMedian || long > len(all)/4) {
		t.Errorf("traffic stopped for %v in the median, and %d times for more than %v", median, long, killMost)
	}
}
