package path

import (
	"bytes"
	"context"
	"encoding/binary"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
)

// TestPathOverThreeRelays builds, pings, asks and carries data both ways: milestone (b) of the issue without a socket.
func TestPathOverThreeRelays(t *testing.T) {
	world(t, 8, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		w := newWatcher(t)
		pool := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 4, Owner: w, Label: "test"})
		pool.Tick(time.Now())
		n.run(time.Second, []*simClient{c}, nil)
		paths := pool.Paths(time.Now())
		if len(paths) != 4 {
			t.Fatal("paths:", describePaths(pool))
		}
		pivots := make(map[key.Public]bool)
		for _, p := range paths {
			if p.RTT() != 6*n.latency {
				t.Errorf("round trip %v", p.RTT())
			}
			hops := p.Hops()
			if len(hops) != 3 || hops[0] == hops[1] || hops[1] == hops[2] || hops[0] == hops[2] || hops[2] != p.Pivot() {
				t.Errorf("hops %v", hops)
			}
			if c.links[hops[0]] == nil {
				t.Error("does not begin at an edge")
			}
			pivots[p.Pivot()] = true
		}
		if len(pivots) != 4 {
			t.Error("pivots are reused")
		}

		// A request to the terminal: answered, refused, and in vain.
		p := paths[0]
		n.byID[p.Pivot()].local.request = func(method string, body []byte, reply func([]byte)) {
			if method == "find_cc" {
				go reply(append([]byte("found "), body...))
			}
		}
		got, err := p.Request(t.Context(), "find_cc", []byte("x"))
		if err != nil || string(got) != "found x" {
			t.Errorf("%q, %v", got, err)
		}
		began := time.Now()
		if _, err := p.Request(t.Context(), "unknown", nil); err == nil || time.Since(began) != requestTimeout {
			t.Errorf("unknown method: %v after %v", err, time.Since(began))
		}

		// A session message to the pivot itself and its answer down the path.
		msg := append([]byte("a body of 17 byte"), 0, 0, 0, 7)
		terminal := p.Terminal()
		b := buffer(append(bytes.Clone(msg), terminal[:]...))
		b.Nonce = fill24(5)
		p.Send(b)
		if err := p.Control(TypeHandshake, append(bytes.Clone(msg), terminal[:]...), fill24(6)); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		local := n.byID[p.Pivot()].local
		if len(local.datagrams) != 1 || len(local.controls) != 1 {
			t.Fatalf("%d datagrams, %d controls at the pivot", len(local.datagrams), len(local.controls))
		}
		for _, m := range []localMessage{local.datagrams[0], local.controls[0]} {
			if !bytes.Equal(m.msg, msg) || m.t.ID() != terminal || !m.t.Live() {
				t.Errorf("%+v", m)
			}
		}
		if local.datagrams[0].nonce != fill24(5) || local.controls[0].nonce != fill24(6) || local.controls[0].typ != TypeHandshake {
			t.Error("nonce or type changed")
		}
		var back []string
		w.onMessage = func(q *Path, b *packet.Buffer) {
			if q != p || b.Nonce != fill24(8) {
				t.Error("wrong path or nonce")
			}
			back = append(back, string(b.Data))
			b.Release()
		}
		w.onControl = func(q *Path, typ byte, msg []byte, nonce [24]byte) {
			if q != p || nonce != fill24(9) || typ != TypeControl {
				t.Error("wrong path, nonce or type")
			}
			back = append(back, string(msg))
		}
		term := local.datagrams[0].t
		b = buffer([]byte("datagram down, tagged"))
		b.Nonce = fill24(8)
		term.Send(b)
		time.Sleep(time.Second)
		if err := term.Control(TypeControl, []byte("control down, tagged"), fill24(9)); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if !slices.Equal(back, []string{"datagram down, tagged", "control down, tagged"}) {
			t.Errorf("%q", back)
		}
		w.mu.Lock()
		w.onMessage, w.onControl = nil, nil
		w.mu.Unlock()

		pool.Close()
		if p.Active(time.Now()) || len(pool.Paths(time.Now())) != 0 {
			t.Error("alive after Close")
		}
		if _, err := p.Request(context.Background(), methodPing, nil); err != ErrDead {
			t.Error(err)
		}
		p.Send(buffer(msg)) // dropped, not leaked
	})
}

// echo runs data between two clients over an aligned pool: what a session would do, without cryptography of its own.
type echo struct {
	t        *testing.T
	from     *Pool
	sent     uint32
	received map[uint32]bool
	answered map[uint32]bool
}

// payload is number, 13 zero bytes, and the terminal id of the sender's path, so that the receiver can answer; then tag and pivot.
func (e *echo) send(now time.Time) {
	p := e.from.Current(now)
	if p == nil {
		e.t.Errorf("%s: no path to send over:%s", now.Format("15:04:05"), describePaths(e.from))
		return
	}
	e.sent++
	terminal, aligned := p.Terminal(), p.Aligned()
	b := packet.Get()
	binary.BigEndian.PutUint32(b.Extend(4), e.sent)
	copy(b.Extend(idSize), terminal[:])
	clear(b.Extend(1 + 4))
	copy(b.Extend(idSize), aligned[:])
	b.Nonce = newNonce()
	p.Send(b)
}

// atB answers over the path that the message came by.
func (e *echo) atB(p *Path, b *packet.Buffer) {
	e.received[binary.BigEndian.Uint32(b.Data)] = true
	terminal := b.Data[4 : 4+idSize]
	copy(b.Extend(idSize), terminal)
	b.Nonce = newNonce()
	p.Send(b)
}

func (e *echo) atA(_ *Path, b *packet.Buffer) {
	e.answered[binary.BigEndian.Uint32(b.Data)] = true
	b.Release()
}

// introsOf is what B would publish.
func introsOf(p *Pool, now time.Time) (intros []netdb.Intro) {
	for _, path := range p.Paths(now) {
		intros = append(intros, netdb.Intro{Expiry: path.Expiry().Truncate(time.Second), Hop: path.Terminal(), Relay: path.Pivot()})
	}
	return intros
}

// TestHour lets paths of all kinds expire and be replaced for an hour and a half: there is always a path to send over, and every message arrives and is answered.
func TestHour(t *testing.T) {
	world(t, 12, DefaultOptions(), func(t *testing.T, n *simNet, a *simClient) {
		b := n.client(DefaultOptions())
		defer b.Close()
		for _, r := range n.relays[6:10] {
			b.dial(r)
		}
		e := &echo{t: t, received: make(map[uint32]bool), answered: make(map[uint32]bool)}
		wB, wA, wR := newWatcher(t), newWatcher(t), newWatcher(t)
		wB.onMessage, wA.onMessage = e.atB, e.atA
		inbound := b.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 4, Owner: wB})
		e.from = a.NewPool(PoolConfig{Kind: Aligned, Hops: 3, Want: 2, Owner: wA})
		relay := a.NewPool(PoolConfig{Kind: ToRelay, Hops: 4, Want: 2, Target: n.relays[11].id, Owner: wR})
		both := []*simClient{a, b}
		n.run(time.Second, both, nil)
		e.from.SetIntros(introsOf(inbound, time.Now()))
		n.run(time.Second, both, nil)

		ticks, switches, relaySwitches := 0, 0, 0
		var last, lastRelay *Path
		n.run(90*time.Minute, both, func(now time.Time) {
			ticks++
			if got := len(inbound.Paths(now)); got < 4 || got > 5 {
				t.Errorf("%s: %d inbound paths:%s", now.Format("15:04:05"), got, describePaths(inbound))
			}
			for _, p := range inbound.Paths(now) {
				if p.Expiry().Sub(now) > maxLifetime*time.Second {
					t.Error("an expiry that no relay accepts")
				}
			}
			if ticks%20 == 0 { // a new contact reaches A
				e.from.SetIntros(introsOf(inbound, now))
			}
			if ticks%4 == 0 {
				e.send(now)
			}
			cur := relay.Current(now)
			switch {
			case cur == nil || cur.Pivot() != n.relays[11].id || cur.Aligned() != (ID{}):
				t.Errorf("%s: no path to the relay:%s", now.Format("15:04:05"), describePaths(relay))
			case cur != lastRelay:
				lastRelay = cur
				relaySwitches++
			}
			if cur := e.from.Current(now); cur != last {
				last = cur
				switches++
			}
			if got := len(e.from.Paths(now)); got > 3 {
				t.Errorf("%d paths of the session", got)
			}
		})
		time.Sleep(time.Second)
		synctest.Wait()
		if len(e.received) != int(e.sent) || len(e.answered) != int(e.sent) || e.sent < 5000 {
			t.Errorf("%d sent, %d received, %d answered", e.sent, len(e.received), len(e.answered))
		}
		// A path is chosen with 300 s left at least and 1200 s at most, and kept until it has 60 s.
		if relaySwitches < 4 || relaySwitches > 23 || switches < 4 || switches > 23 {
			t.Errorf("%d switches of the relay session, %d of the client's", relaySwitches, switches)
		}
		_, downs, _ := wB.counts()
		if downs[Expired] < 14 || len(downs) != 1 {
			t.Errorf("inbound paths went down by %v", downs)
		}
		for _, w := range []*watcher{wA, wR} {
			if _, downs, _ := w.counts(); downs[Silent]+downs[Refused]+downs[EdgeLost] != 0 {
				t.Errorf("outbound paths went down by %v", downs)
			}
		}
		for _, r := range n.relays {
			if s := r.get().Stats(); s.Hops > 60 || s.Waiting != 0 {
				t.Errorf("a relay holds %d hops, %d requests", s.Hops, s.Waiting)
			}
		}
	})
}

// TestEdgeLost: all paths through a closed connection go at once, their hops at the relay too, and are replaced over other edges.
func TestEdgeLost(t *testing.T) {
	world(t, 8, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		w := newWatcher(t)
		pool := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 4, Owner: w})
		n.run(2*time.Second, []*simClient{c}, nil)
		paths := pool.Paths(time.Now())
		first := paths[0].relays[0]
		through := 0
		for _, p := range paths {
			if p.relays[0] == first {
				through++
			}
		}
		edge := c.links[first]
		edge.hangUp()
		if n.byID[first].get().table.any(&paths[0].edge) != nil {
			t.Error("the relay keeps hops of a closed connection")
		}
		_, downs, _ := w.counts()
		if downs[EdgeLost] != through || len(pool.Paths(time.Now())) != 4-through {
			t.Errorf("%v, %d were over the edge", downs, through)
		}
		n.run(time.Second, []*simClient{c}, nil)
		paths = pool.Paths(time.Now())
		if len(paths) != 4 || slices.ContainsFunc(paths, func(p *Path) bool { return p.relays[0] == first }) {
			t.Error("not replaced:", describePaths(pool))
		}
		// No edge: nothing is built, nothing pauses. Edges again: built at once.
		for _, l := range c.links {
			l.hangUp()
		}
		n.run(10*time.Second, []*simClient{c}, nil)
		if c.EdgeConnected() || len(pool.Paths(time.Now())) != 0 || pool.Failures() != 0 {
			t.Error("paths without edges")
		}
		c.dial(n.relays[5])
		c.dial(n.relays[6])
		if c.EdgeConnected() {
			t.Error("connected by two edges of four")
		}
		c.dial(n.relays[7])
		n.run(time.Second, []*simClient{c}, nil)
		if len(pool.Paths(time.Now())) != 4 {
			t.Error("not built again:", describePaths(pool))
		}
	})
}

// TestRelayRestart: a relay that has forgotten a path answers the next ping with an error, which ends the path at once.
func TestRelayRestart(t *testing.T) {
	world(t, 8, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		w := newWatcher(t)
		pool := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 4, Owner: w})
		n.run(2*time.Second, []*simClient{c}, nil)
		middle := n.byID[pool.Paths(time.Now())[0].relays[1]]
		through := 0
		for _, p := range pool.Paths(time.Now()) {
			if p.usesAny(middle) {
				through++
			}
		}
		middle.restart()
		began := time.Now()
		n.run(6*time.Second, []*simClient{c}, nil)
		_, downs, last := w.counts()
		if downs[Refused] != through || last.Sub(began) > 5*time.Second+6*n.latency {
			t.Errorf("%v, last after %v; %d were over the relay", downs, last.Sub(began), through)
		}
		if len(pool.Paths(time.Now())) != 4 {
			t.Error("not replaced:", describePaths(pool))
		}
	})
}

// TestSilentRelay: a relay that says nothing any more is found by a late ping and an examination, in 8 s at most, and not used for what replaces its paths.
func TestSilentRelay(t *testing.T) {
	world(t, 8, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		w := newWatcher(t)
		pool := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 4, Owner: w})
		n.run(7*time.Second, []*simClient{c}, nil)
		dead := n.byID[pool.Paths(time.Now())[0].Pivot()]
		through := 0
		for _, p := range pool.Paths(time.Now()) {
			if p.usesAny(dead) {
				through++
			}
		}
		dead.setSilent(true)
		began := time.Now()
		n.run(8*time.Second, []*simClient{c}, nil)
		if _, downs, _ := w.counts(); downs[Silent]+downs[EdgeLost] != through {
			t.Errorf("%v after %v; %d were over the relay", downs, time.Since(began), through)
		}
		n.run(5*time.Second, []*simClient{c}, nil) // with so few relays a build may well meet the dead one again
		paths := pool.Paths(time.Now())
		if len(paths) != 4 || slices.ContainsFunc(paths, func(p *Path) bool { return p.usesAny(dead) }) {
			t.Error("not replaced:", describePaths(pool))
		}
	})
}

// TestSuspect: who hears nothing over a path has it examined, which takes less than 2 s, and spares one that is alive.
func TestSuspect(t *testing.T) {
	world(t, 8, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		w := newWatcher(t)
		pool := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 4, Owner: w})
		n.run(7*time.Second, []*simClient{c}, nil)
		paths := pool.Paths(time.Now())
		for _, p := range paths {
			p.Suspect()
			p.Suspect()
		}
		n.run(3*time.Second, []*simClient{c}, nil)
		if _, downs, _ := w.counts(); len(downs) != 0 {
			t.Errorf("%v", downs)
		}
		n.byID[paths[0].relays[1]].setSilent(true)
		for _, p := range paths {
			p.Suspect()
		}
		n.run(2*time.Second, []*simClient{c}, nil)
		for _, p := range paths {
			if p.usesAny(n.byID[paths[0].relays[1]]) == p.Active(time.Now()) {
				t.Errorf("active %v", p.Active(time.Now()))
			}
		}
		if s := c.Stats(); s.PathsExamined == 0 {
			t.Error("not counted")
		}
	})
}

// TestSilentEdge: an edge that says nothing any more is given up with all its paths as soon as one of them is examined, a second later, if others are heard; but no more of
// them within a time than half of those that there should be, or who can stop connections chooses our edges.
func TestSilentEdge(t *testing.T) {
	world(t, 12, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		var closed []Link
		c.disconnect = func(l Link) { closed = append(closed, l) }
		w := newWatcher(t)
		pool := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 8, Owner: w})
		n.run(7*time.Second, []*simClient{c}, nil)
		edge := n.byID[pool.Paths(time.Now())[0].relays[0]]
		through := 0
		for _, p := range pool.Paths(time.Now()) {
			if p.relays[0] == edge.id {
				through++
			}
		}
		link := Link(c.links[edge.id])
		edge.setSilent(true)
		pool.Paths(time.Now())[0].Suspect()
		n.run(time.Second, []*simClient{c}, nil)
		if _, downs, _ := w.counts(); downs[EdgeLost] != through {
			t.Errorf("%v; %d were over the edge", downs, through)
		}
		if len(closed) != 1 || closed[0] != link || c.Stats().EdgesDropped != 1 {
			t.Errorf("%d connections closed", len(closed))
		}
		for range 20 {
			more := c.MoreEdges(0, func(id key.Public) bool { return c.links[id] != nil })
			if len(more) == 0 {
				break
			}
			r := n.byID[more[0].ID]
			r.setSilent(false)
			c.dial(r)
			n.run(time.Second, []*simClient{c}, nil)
			r.setSilent(true)
			for _, p := range pool.Paths(time.Now()) {
				p.Suspect()
			}
			n.run(3*time.Second, []*simClient{c}, nil)
		}
		if got := c.Stats().EdgesDropped; got != uint64(c.opt.Edges+1)/2 {
			t.Errorf("%d edges were given up in a minute", got)
		}
	})
}

// TestGap: a gap in which nobody is heard costs no edge, though it begins when some have answered, and whenever it ends.
func TestGap(t *testing.T) {
	for gap := 400 * time.Millisecond; gap < 2*time.Second; gap += 50 * time.Millisecond {
		world(t, 12, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
			pool := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 8, Owner: newWatcher(t)})
			n.run(7*time.Second, []*simClient{c}, nil)
			late := n.relays[0]
			late.setSilent(true) // its answer comes too late
			pool.Paths(time.Now())[0].Suspect()
			time.Sleep(3 * n.latency)
			n.silence(true)
			time.Sleep(gap)
			n.silence(false)
			n.run(4*time.Second, []*simClient{c}, nil)
			if got := c.Stats().EdgesDropped; got != 0 {
				t.Errorf("%v: %d edges were given up", gap, got)
			}
		})
	}
	world(t, 12, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 8, Owner: newWatcher(t)})
		n.run(6*time.Second, []*simClient{c}, nil)
		n.silence(true)
		c.askEdges(time.Now(), minPatience)
		time.Sleep(minPatience - 5*n.latency) // all have been asked for the third time
		n.silence(false)
		c.pingEdge(c.links[n.relays[0].id])
		n.run(4*time.Second, []*simClient{c}, nil)
		if got := c.Stats().EdgesDropped; got != 0 {
			t.Errorf("%d edges were given up for one that was asked later", got)
		}
	})
}

// TestWake: when the way to the network is another, a silent edge is given up as soon as others are heard; while nobody is, half of them after wakePatience, and no more when
// that happens again.
func TestWake(t *testing.T) {
	wake := func(t *testing.T, slept bool, test func(n *simNet, c *simClient, run func(time.Duration), dropped func(want int))) {
		world(t, 12, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
			c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 8, Owner: newWatcher(t)})
			run := func(d time.Duration) { n.run(d, []*simClient{c}, nil) }
			run(6 * time.Second) // no pings are due for 3 s
			test(n, c, run, func(want int) {
				t.Helper()
				if got := c.Stats().EdgesDropped; got != uint64(want) {
					t.Errorf("slept: %v: %d edges were given up, not %d", slept, got, want)
				}
			})
		})
	}
	for _, slept := range []bool{false, true} {
		wake(t, slept, func(n *simNet, c *simClient, run func(time.Duration), dropped func(int)) {
			n.relays[0].setSilent(true)
			c.Wake(slept)
			run(2*minPatience + maxPatience/2)
			dropped(1)
		})
		wake(t, slept, func(n *simNet, c *simClient, run func(time.Duration), dropped func(int)) {
			n.silence(true)
			c.Wake(slept)
			run(wakePatience - 500*time.Millisecond)
			n.silence(false)
			run(10 * time.Second)
			dropped(0)
		})
		wake(t, slept, func(n *simNet, c *simClient, run func(time.Duration), dropped func(int)) {
			n.silence(true)
			c.Wake(slept)
			run(wakePatience - 250*time.Millisecond)
			dropped(0)
			run(500 * time.Millisecond)
			dropped(2)
			c.Wake(slept)
			run(wakePatience + time.Second)
			dropped(2)
		})
		wake(t, slept, func(n *simNet, c *simClient, run func(time.Duration), dropped func(int)) {
			n.silence(true)
			c.Wake(slept)
			run(wakePatience / 2)
			c.Wake(slept) // still another way: its time begins again
			run(wakePatience - 250*time.Millisecond)
			dropped(0)
		})
	}
}

// TestCloseEdge: no edge is given up when the client is closed.
func TestCloseEdge(t *testing.T) {
	world(t, 8, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		began, ended := make(chan struct{}), false
		c.disconnect = func(Link) {
			close(began)
			time.Sleep(time.Second)
			ended = true
		}
		n.relays[0].setSilent(true)
		c.Wake(false)
		<-began
		c.Close()
		if !ended {
			t.Error("closed before")
		}
	})
}

// TestFarEdge: an edge that is farther away than others, with paths of ours or without, is not given up when the others are asked for a sign of life.
func TestFarEdge(t *testing.T) {
	for _, want := range []int{1, 4} {
		world(t, 12, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
			n.relays[0].far = minPatience + 100*time.Millisecond
			pool := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: want, Owner: newWatcher(t)})
			n.run(7*time.Second, []*simClient{c}, nil)
			for range 5 {
				for _, p := range pool.Paths(time.Now()) {
					if p.relays[0] != n.relays[0].id {
						p.Suspect()
					}
				}
				n.run(3*time.Second, []*simClient{c}, nil)
			}
			if s := c.Stats(); s.EdgesDropped != 0 || s.PathsExamined != 0 {
				t.Errorf("%d paths: %+v", want, s)
			}
		})
	}
}

// TestStandby: no relay is in most paths of a pool, so that its death leaves others.
func TestStandby(t *testing.T) {
	for range 10 {
		world(t, 12, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
			for _, kind := range []Kind{Inbound, Aligned} {
				want := map[Kind]int{Inbound: 4, Aligned: 2}[kind]
				pool := c.NewPool(PoolConfig{Kind: kind, Hops: 3, Want: want, Owner: newWatcher(t)})
				var intros []netdb.Intro
				for i, r := range n.relays[4:8] {
					intros = append(intros, netdb.Intro{Expiry: time.Now().Add(20 * time.Minute), Relay: r.id, Hop: fillID(byte(i + 1))})
				}
				pool.SetIntros(intros)
				n.run(time.Second, []*simClient{c}, nil)
				used, edges := make(map[key.Public]int), make(map[key.Public]bool)
				for _, p := range pool.Paths(time.Now()) {
					edges[p.relays[0]] = true
					for _, id := range p.relays {
						used[id]++
					}
				}
				if len(edges) != want || slices.Max(slices.Collect(maps.Values(used))) > want/2 {
					t.Errorf("%v: %d edges, relays in %v paths", kind, len(edges), slices.Sorted(maps.Values(used)))
				}
			}
		})
	}
}

// TestPace: many pools at once get their paths as fast as the relays allow one client, and no build is refused; each has one before most have two.
func TestPace(t *testing.T) {
	world(t, 12, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		var pools []*Pool
		for range 500 {
			pool := c.NewPool(PoolConfig{Kind: Aligned, Hops: 3, Want: 2, Owner: newWatcher(t)})
			pool.SetIntros([]netdb.Intro{{Expiry: time.Now().Add(20 * time.Minute), Relay: n.relays[5].id, Hop: fillID(1)}, {Expiry: time.Now().Add(20 * time.Minute), Relay: n.relays[6].id, Hop: fillID(2)}})
			pools = append(pools, pool)
		}
		start, first, all := time.Now(), time.Duration(0), time.Duration(0)
		n.run(15*time.Second, []*simClient{c}, func(now time.Time) {
			one, two := 0, 0
			for _, p := range pools {
				if k := len(p.Paths(now)); k > 0 {
					one++
					if k == 2 {
						two++
					}
				}
			}
			if one == len(pools) && first == 0 {
				first = now.Sub(start)
			}
			if two == len(pools) && all == 0 {
				all = now.Sub(start)
			}
		})
		// Four edges take 720 builds at once and 80 a second.
		s := c.Stats()
		if s.BuildsRefused != 0 || s.BuildsUp < 1000 || s.Builds != s.BuildsUp {
			t.Errorf("%+v", s)
		}
		if first == 0 || first > 5*time.Second || all == 0 || all > 12*time.Second {
			t.Errorf("all had one path after %v, two after %v", first, all)
		}
	})
}

// TestHasty: who lets paths die does not make a pool draw new ones as fast as it likes, nor choose among the few relays that are left.
func TestHasty(t *testing.T) {
	world(t, 12, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		pool := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 2, Owner: newWatcher(t)})
		deaths := 0
		for range 20 {
			n.run(6*time.Second, []*simClient{c}, nil)
			paths := pool.Paths(time.Now())
			if len(paths) == 0 {
				continue
			}
			middle := n.byID[paths[0].relays[1]]
			middle.setSilent(true)
			paths[0].Suspect()
			n.run(4*time.Second, []*simClient{c}, nil)
			middle.setSilent(false)
			deaths = int(c.Stats().PathsExamined)
		}
		if most := 2 * (hastyMax + 2); deaths < hastyMax || deaths > most {
			t.Errorf("%d paths were given up in 200 s", deaths)
		}
	})
	var p profile
	now := time.Now()
	for i := range 9 {
		if p.fewSilent(now, 20) != (i <= 8) || p.fewSilent(now, 10) != (i <= 5) {
			t.Errorf("%d silent relays", i)
		}
		p.fellSilent([]key.Public{{byte(i)}}, now, now)
	}
	if p.fewSilent(now, 20) || !p.fewSilent(now, 36) || !p.fewSilent(now.Add(silentTime), 20) {
		t.Error("9 silent relays")
	}
}

// TestSuspectLike: the paths that have a relay in common with a silent one are examined too, but not all at one moment.
func TestSuspectLike(t *testing.T) {
	world(t, 8, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		pool := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 16, Owner: newWatcher(t)})
		n.run(7*time.Second, []*simClient{c}, nil)
		paths := pool.Paths(time.Now())
		edge := paths[0].relays[0]
		alike := slices.DeleteFunc(slices.Clone(paths), func(p *Path) bool { return !slices.Contains(p.relays, edge) })
		c.profile.fellSilent([]key.Public{edge}, time.Now(), time.Now())
		pings := c.Stats().Pings
		c.suspectLike(paths[0])
		synctest.Wait()
		if at := c.Stats().Pings - pings; len(alike) < 3 || at > 1 {
			t.Errorf("%d of %d pinged at once", at, len(alike))
		}
		n.run(suspectSpread, []*simClient{c}, nil)
		if after := c.Stats().Pings - pings; after < uint64(len(alike)) {
			t.Errorf("%d pings for %d paths", after, len(alike))
		}
	})
}

// TestShirkingEdge: an edge that lets builds pass and answers for itself, but passes nothing on, is avoided like any relay of a silent path; else those behind it would be
// blamed instead, as often as it likes.
func TestShirkingEdge(t *testing.T) {
	for range 8 { // it may draw another edge by chance
		world(t, 12, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
			pool := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 4, Owner: newWatcher(t)})
			n.run(7*time.Second, []*simClient{c}, nil)
			edge := n.byID[pool.Paths(time.Now())[0].relays[0]]
			edge.shirks.Store(true)
			n.run(20*time.Second, []*simClient{c}, nil)
			now := time.Now()
			paths := pool.Paths(now)
			if elsewhere := slices.ContainsFunc(paths, func(p *Path) bool { return p.usesAny(edge) }); !c.profile.silentAt(edge.id, now) && !elsewhere {
				t.Error("not avoided")
			}
			if len(paths) != 4 || slices.ContainsFunc(paths, func(p *Path) bool { return p.relays[0] == edge.id }) {
				t.Error("not replaced:", describePaths(pool))
			}
		})
	}
}

// TestAway: while nothing is heard from anybody, as when the host's own network is away, no path is given up before the time of the protocol.
func TestAway(t *testing.T) {
	world(t, 8, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		w := newWatcher(t)
		pool := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 4, Owner: w})
		n.run(7*time.Second, []*simClient{c}, nil)
		paths := pool.Paths(time.Now())
		away := func(on bool, d time.Duration) {
			for _, r := range n.relays {
				r.setSilent(on)
			}
			n.run(d, []*simClient{c}, nil)
		}
		away(true, 25*time.Second)
		away(false, 10*time.Second)
		if _, downs, _ := w.counts(); len(downs) != 0 || !slices.Equal(pool.Paths(time.Now()), paths) {
			t.Errorf("%v after 25 s", downs)
		}
		away(true, 41*time.Second)
		if _, downs, _ := w.counts(); downs[Silent] != 4 {
			t.Errorf("%v after 40 s", downs)
		}
	})
}

// TestBack: the first path that is heard after such a time does not cost the others, whose last pings were lost in it.
func TestBack(t *testing.T) {
	world(t, 8, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		w := newWatcher(t)
		pool := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 4, Owner: w})
		n.run(7*time.Second, []*simClient{c}, nil)
		away := func(on bool) {
			for _, r := range n.relays {
				r.setSilent(on)
			}
		}
		away(true)
		paths := pool.Paths(time.Now())
		for _, p := range paths { // their pings take turns
			p.Suspect()
			n.run(250*time.Millisecond, []*simClient{c}, nil)
		}
		n.run(12*time.Second, []*simClient{c}, nil)
		away(false)
		n.run(10*time.Second, []*simClient{c}, nil)
		if _, downs, _ := w.counts(); len(downs) != 0 || !slices.Equal(pool.Paths(time.Now()), paths) {
			t.Errorf("%v", downs)
		}
	})
}

// refusing is a Link whose builds fail at once, and that notes when they come.
type refusing struct {
	tapLink
	times []time.Time
	err   error
}

func (l *refusing) Request(context.Context, string, []byte) ([]byte, error) {
	l.times = append(l.times, time.Now())
	return nil, l.err
}

// TestBackoff: after three failures in a row a pool waits 1 s, then a second more after each one (protocol 3 section 6.3), whatever its kind, but never longer than 5 s: a minute of
// failures must not cost another half when the network is back.
func TestBackoff(t *testing.T) {
	for failures, want := range []time.Duration{0, 0, 0, time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second} {
		if got := backoff(failures); got != want {
			t.Errorf("%d failures: %v", failures, got)
		}
	}
	for _, kind := range []Kind{Inbound, ToRelay, Aligned} {
		synctest.Test(t, func(t *testing.T) {
			n := newSimNet(t, 6, 0)
			opt := DefaultOptions()
			opt.Edges = 1
			c := NewClient(ClientConfig{Options: opt, Store: n.store})
			link := &refusing{err: failReply(status(textBadIDs))}
			pool := c.NewPool(PoolConfig{Kind: kind, Hops: 2, Want: 1, Target: n.relays[1].id, Owner: newWatcher(t)})
			pool.SetIntros([]netdb.Intro{{Expiry: time.Now().Add(20 * time.Minute), Relay: n.relays[2].id, Hop: fillID(1)}})
			c.EdgeUp(n.relays[0].id, link)
			synctest.Wait()
			for range 4 * 30 {
				time.Sleep(250 * time.Millisecond)
				c.Tick(time.Now())
				synctest.Wait()
			}
			const tick = 250 * time.Millisecond
			want := []time.Duration{tick, tick, time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second}
			var got []time.Duration
			for i := range link.times[1:] {
				got = append(got, link.times[i+1].Sub(link.times[i]))
			}
			if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
				t.Errorf("%s: gaps %v", kind, got)
			}
			if s := c.Stats(); s.BuildsRefused != uint64(len(link.times)) || pool.Failures() != len(link.times) {
				t.Errorf("%s: %+v", kind, s)
			}
			c.Close()
			n.close()
		})
	}
}

// TestPressed: relays that answered no build for a while are asked again at once, where there are no others, rather than when they are forgotten.
func TestPressed(t *testing.T) {
	world(t, 6, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		for _, r := range n.relays {
			r.setSilent(true)
		}
		pool := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 2, Owner: newWatcher(t)})
		n.run(25*time.Second, []*simClient{c}, nil)
		for _, r := range n.relays {
			r.setSilent(false)
		}
		n.run(12*time.Second, []*simClient{c}, nil)
		if up := len(pool.Paths(time.Now())); up == 0 {
			t.Errorf("no path, %+v", c.Stats())
		}
	})
}

// TestBeside: the paths of a pool beside another end at other relays than that one's, as long as there are others; then they are built all the same.
func TestBeside(t *testing.T) {
	for relays, others := range map[int]bool{12: true, 5: false} {
		world(t, relays, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
			entrance := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 4, Owner: newWatcher(t), Label: "entrance"})
			beside := c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 4, Owner: newWatcher(t), Label: "beside", Beside: entrance})
			entrance.Tick(time.Now())
			n.run(3*time.Second, []*simClient{c}, nil)
			beside.Tick(time.Now())
			n.run(3*time.Second, []*simClient{c}, nil)
			ends := make(map[key.Public]bool)
			for _, p := range slices.Concat(entrance.Paths(time.Now()), beside.Paths(time.Now())) {
				ends[p.Pivot()] = true
			}
			if n := len(beside.Paths(time.Now())); n != 4 || others && len(ends) != 8 {
				t.Errorf("%d relays: %d paths, all end at %d relays", relays, n, len(ends))
			}
		})
	}
}
