package path

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/seal"
)

// upPath makes an established path of a client, without a build.
func upPath(t testing.TB, pool *Pool, l Link, hops []seal.Hop, edge, terminal ID) *Path {
	t.Helper()
	p := &Path{pool: pool, link: l, hops: hops, edge: edge, terminal: terminal, expiry: time.Now().Add(20 * time.Minute).Round(0)}
	p.gone, p.end = context.WithCancel(pool.ctx)
	for range hops {
		p.relays = append(p.relays, exampleRelay(len(p.relays)).Public())
	}
	p.nextPing = p.expiry
	pool.mu.Lock()
	pool.paths = append(pool.paths, p)
	if !pool.client.register(p) {
		t.Fatal("edge not up")
	}
	pool.setState(p, pathUp, 0)
	pool.mu.Unlock()
	pool.events.flush()
	return p
}

// rigged is a client with one path of three hops, for messages without a network.
type rigged struct {
	*Client
	link  *tapLink
	pool  *Pool
	path  *Path
	owner *watcher
}

func newRigged(t testing.TB) *rigged {
	store, err := netdb.OpenStore("", key.Public{}, false, netdb.Rules{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, hops := exampleBuild(t)
	r := &rigged{Client: NewClient(ClientConfig{Options: DefaultOptions(), Store: store}), link: newTapLink(), owner: newWatcher(t)}
	r.EdgeUp(exampleRelay(0).Public(), r.link)
	r.pool = r.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 1, Owner: r.owner})
	r.path = upPath(t, r.pool, r.link, hops, fillID(0x40), fillID(0x42))
	t.Cleanup(r.Client.Close)
	return r
}

// down is a message as it comes to the client from its edge.
func (r *rigged) down(plain []byte, id ID, typ byte, nonce seal.Nonce) []byte {
	msg := append(bytes.Clone(plain), make([]byte, trailerSize)...)
	for i := len(r.path.hops) - 1; i >= 0; i-- {
		step(msg[:len(plain)], &r.path.hops[i], &nonce)
	}
	putTrailer(msg[len(plain):], &nonce, &id, typ)
	return msg
}

// TestClientReceives: what comes in from an edge is delivered or dropped and counted, by either channel.
func TestClientReceives(t *testing.T) {
	plain := []byte("13 bytes body" + "tag.")
	for _, c := range []struct {
		name  string
		from  string
		plain []byte
		id    ID
		typ   byte
		end   func(r *rigged)
		// what is counted when it comes as datagram and as session_control; nil: delivered
		datagram, control func(s ClientStats) uint64
	}{
		{name: "data", plain: plain, id: fillID(0x40), typ: 1},
		{name: "handshake", plain: plain, id: fillID(0x40), typ: 2, datagram: cType},
		{name: "type 0", plain: plain, id: fillID(0x40), datagram: cType, control: cType},
		{name: "type 3", plain: plain, id: fillID(0x40), typ: 3, datagram: cType, control: cType},
		{name: "16 bytes", plain: plain[1:], id: fillID(0x40), typ: 1, datagram: cShort, control: cShort},
		{name: "unknown id", plain: plain, id: fillID(0x41), typ: 1, datagram: cUnknown, control: cUnknown},
		{name: "another edge", from: "other", plain: plain, id: fillID(0x40), typ: 1, datagram: cForeign, control: cForeign},
		{name: "retired", plain: plain, id: fillID(0x40), typ: 1, end: func(r *rigged) {
			r.pool.mu.Lock()
			r.pool.retire(r.path)
			r.pool.mu.Unlock()
		}},
		{name: "expired", plain: plain, id: fillID(0x40), typ: 1, end: func(r *rigged) { r.pool.Tick(time.Now().Add(time.Hour)) }, datagram: cUnknown, control: cUnknown},
		{name: "reset", plain: plain, id: fillID(0x40), typ: 1, end: func(r *rigged) { r.pool.Reset() }, datagram: cUnknown, control: cUnknown},
		{name: "pool closed", plain: plain, id: fillID(0x40), typ: 1, end: func(r *rigged) { r.pool.Close() }, datagram: cUnknown, control: cUnknown},
		{name: "edge down", plain: plain, id: fillID(0x40), typ: 1, end: func(r *rigged) { r.EdgeDown(r.link) }, datagram: cUnknown, control: cUnknown},
	} {
		for channel, count := range map[string]func(ClientStats) uint64{"datagram": c.datagram, "session_control": c.control} {
			before := packet.InUse()
			r := newRigged(t)
			var got [][]byte
			check := func(p *Path, msg []byte, nonce seal.Nonce) {
				if p != r.path || nonce != fill24(7) {
					t.Errorf("%s: wrong path or nonce", c.name)
				}
				got = append(got, bytes.Clone(msg))
			}
			r.owner.onMessage = func(p *Path, b *packet.Buffer) {
				check(p, b.Data, b.Nonce)
				b.Release()
			}
			r.owner.onControl = func(p *Path, typ byte, msg []byte, nonce [24]byte) {
				if typ != c.typ {
					t.Errorf("%s: type %d", c.name, typ)
				}
				check(p, msg, nonce)
			}
			if c.end != nil {
				c.end(r)
			}
			from := r.link
			if c.from != "" {
				from = newTapLink()
			}
			msg := r.down(c.plain, c.id, c.typ, fill24(7))
			if channel == "datagram" {
				r.Datagram(from, buffer(msg))
			} else if !r.HandleRequest(from, nameSession, msg, nil) {
				t.Error("not handled")
			}
			s := r.Stats()
			drops := s.DroppedDead + s.DroppedForeign + s.DroppedLong + s.DroppedShort + s.DroppedType + s.DroppedUnknown
			if count == nil && (len(got) != 1 || !bytes.Equal(got[0], c.plain) || drops != 0) {
				t.Errorf("%s as %s: got %q, %+v", c.name, channel, got, s)
			}
			if count != nil && (len(got) != 0 || count(s) != 1 || drops != 1) {
				t.Errorf("%s as %s: got %q, %+v", c.name, channel, got, s)
			}
			if packet.InUse() != before {
				t.Errorf("%s: buffer leaked", c.name)
			}
		}
	}
}

func cShort(s ClientStats) uint64   { return s.DroppedShort }
func cType(s ClientStats) uint64    { return s.DroppedType }
func cUnknown(s ClientStats) uint64 { return s.DroppedUnknown }
func cForeign(s ClientStats) uint64 { return s.DroppedForeign }

// TestClientRequests: a client answers what relays have no reason to ask with ERROR, and leaves the rest to others.
func TestClientRequests(t *testing.T) {
	r := newRigged(t)
	for _, name := range []string{nameBuild, nameControl} {
		back := make(answers, 1)
		if !r.HandleRequest(r.link, name, nil, back.reply) {
			t.Error("not handled")
		}
		if a := <-back; a.text() != textError {
			t.Errorf("%s: %q", name, a.text())
		}
	}
	if r.HandleRequest(r.link, "ping", nil, nil) {
		t.Error("took a request of another name")
	}
}

// TestSendLimits: what does not fit or has no path is dropped and counted.
func TestSendLimits(t *testing.T) {
	before := packet.InUse()
	r := newRigged(t)
	r.path.Send(buffer(make([]byte, MaxDatagram)))
	if got := r.link.next(t); len(got.body) != packet.MaxData {
		t.Errorf("%d bytes", len(got.body))
	}
	r.path.Send(buffer(make([]byte, MaxDatagram+1)))
	r.path.Send(buffer(make([]byte, 10_000)))
	if s := r.Stats(); s.DroppedLong != 2 {
		t.Errorf("%+v", s)
	}
	r.EdgeDown(r.link)
	r.path.Send(buffer(make([]byte, 100)))
	if s := r.Stats(); s.DroppedDead != 1 {
		t.Errorf("%+v", s)
	}
	if err := r.path.Control(TypeControl, nil, fill24(1)); err != ErrDead {
		t.Error(err)
	}
	r.link.none(t)
	if packet.InUse() != before {
		t.Error("buffer leaked")
	}
}

// TestEdges: how many edges there must be, who takes new paths when one relay has two connections, and which relays to dial next.
func TestEdges(t *testing.T) {
	w := newTown(t, 24, nil, "a1", "b1", "c1", "d1", "e1", "f1", "g1")
	newClient := func(o Options) *Client {
		c := NewClient(ClientConfig{Options: o, Store: w.store})
		t.Cleanup(c.Close)
		return c
	}
	opt := DefaultOptions()
	for edges, want := range []int{0: 1, 1: 1, 2: 2, 3: 2, 4: 3, 5: 4} { // 0 is taken as 1
		opt.Edges = edges
		c := newClient(opt)
		var links []*tapLink
		for i := 1; !c.EdgeConnected(); i++ {
			links = append(links, newTapLink())
			c.EdgeUp(secretOf(byte(i)).Public(), links[i-1])
		}
		if len(links) != want {
			t.Errorf("%d edges of %d", len(links), edges)
		}
		for i, l := range links {
			if !c.EdgeConnected() {
				t.Errorf("lost with %d of %d", len(links)-i, len(links))
			}
			c.EdgeDown(l)
			c.EdgeDown(l) // twice is once
		}
		if c.EdgeConnected() {
			t.Error("connected without edges")
		}
	}

	opt.Edges = 4
	opt.StrictEdges = []key.Public{w.ids["a1"], w.ids["b1"]}
	c := newClient(opt)
	if got := c.MoreEdges(0, nil); len(got) != 2 {
		t.Errorf("%d strict edges wanted", len(got))
	}
	first, second := newTapLink(), newTapLink()
	c.EdgeUp(w.ids["a1"], first)
	c.EdgeUp(w.ids["a1"], second)
	if got := c.MoreEdges(0, nil); len(got) != 1 || got[0].ID != w.ids["b1"] || c.EdgeConnected() {
		t.Errorf("%v after one relay with two connections", got)
	}
	c.EdgeUp(w.ids["b1"], newTapLink())
	edgeLink := func() Link {
		ch, _ := c.chooser(time.Now())
		for _, e := range ch.edges {
			if e.contact.ID == w.ids["a1"] {
				return e.link
			}
		}
		return nil
	}
	if edgeLink() != second {
		t.Error("the older connection takes new paths")
	}
	c.EdgeDown(second)
	if edgeLink() != first {
		t.Error("the connection that is left takes none")
	}

	opt.StrictEdges, opt.Blacklist = nil, []key.Public{w.ids["c1"]}
	c = newClient(opt)
	c.candidates.Candidates = []Candidate{{w.ids["a1"], time.Now().Add(time.Hour)}} // before all others
	c.EdgeUp(w.ids["a1"], first)
	for range 5 {
		c.profile.timedOut([]key.Public{w.ids["d1"]})
	}
	for range 30 {
		got := c.MoreEdges(1, func(id key.Public) bool { return id == w.ids["e1"] })
		if len(got) != 2 {
			t.Fatalf("%d more edges, want 2", len(got))
		}
		for _, r := range got {
			if !slices.Contains([]string{"b1", "f1", "g1"}, w.name[r.ID]) {
				t.Error("dial", w.name[r.ID])
			}
		}
	}
	if got := c.MoreEdges(3, nil); len(got) != 0 {
		t.Error("one too many")
	}
}

// noisy is an Owner that calls back into the pool from inside events.
type noisy struct {
	*watcher
	pool *Pool
}

func (n *noisy) PathDown(p *Path, why Reason) {
	n.watcher.PathDown(p, why)
	n.pool.Tick(time.Now())
	n.pool.Reset()
}

// TestEvents: events of a pool never overlap, whoever causes them: messages from many goroutines, paths that come and go, the owner itself from inside
// an event, and the owner with a lock held that its events take too.
func TestEvents(t *testing.T) {
	r := newRigged(t)
	owner := &noisy{watcher: newWatcher(t), pool: nil}
	pool := r.NewPool(PoolConfig{Kind: Inbound, Want: 1, Owner: owner})
	owner.pool = pool
	var table sync.Mutex
	owner.onMessage = func(_ *Path, b *packet.Buffer) {
		table.Lock()
		defer table.Unlock()
		b.Release()
	}
	_, hops := exampleBuild(t)
	const messages, flips = 300, 100
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			msg := r.down(make([]byte, 100), fillID(byte(g)), TypeData, fill24(7))
			for range messages {
				r.Datagram(r.link, buffer(msg))
			}
		})
	}
	wg.Go(func() {
		for i := range flips {
			upPath(t, pool, r.link, hops, fillID(byte(i%4)), fillID(0x42))
			table.Lock()
			pool.Reset()
			table.Unlock()
		}
	})
	wg.Wait()
	pool.events.flush()
	ups, downs, _ := owner.counts()
	if ups != flips || downs[Dropped] != flips || len(downs) != 1 {
		t.Errorf("%d ups, %v", ups, downs)
	}
	if pool.events.pending() {
		t.Error("an event was left behind")
	}
	pool.Close()
	pool.events.post(func(Owner) { t.Error("told after Close") })
	pool.events.flush()
}

// TestEventsLeft: what is posted while a message has the turn is told when the message is done with.
func TestEventsLeft(t *testing.T) {
	r := newRigged(t)
	r.owner.onMessage = func(_ *Path, b *packet.Buffer) {
		b.Release()
		done := make(chan struct{})
		go func() {
			r.EdgeDown(r.link) // does not wait for the turn
			close(done)
		}()
		<-done
	}
	r.Datagram(r.link, buffer(r.down(make([]byte, 100), fillID(0x40), TypeData, fill24(7))))
	if _, downs, _ := r.owner.counts(); downs[EdgeLost] != 1 {
		t.Errorf("%v", downs)
	}
}

// script is a Link that answers builds with OK and pings as it is told, each after 100 ms; then it says nothing.
type script struct {
	tapLink
	t     *testing.T
	path  func() *Path
	pings []string
	mu    sync.Mutex // there may be several pings under way
	next  int
}

func (l *script) Request(ctx context.Context, name string, body []byte) ([]byte, error) {
	switch name {
	case nameBuild:
		return status(textOK), nil
	case nameEdge:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	says := "silence"
	l.mu.Lock()
	if l.next < len(l.pings) {
		says = l.pings[l.next]
	}
	l.next++
	l.mu.Unlock()
	if says == "silence" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	time.Sleep(100 * time.Millisecond)
	hops := l.path().hops
	switch says {
	case "error":
		return nil, failReply(status(textError))
	case "closed":
		return nil, errSim
	case "forged":
		return make([]byte, 80), nil
	case "short":
		return make([]byte, 20), nil
	}
	// A reply of a one-hop path's terminal, which is what the pool has.
	return sealReply([]byte(says), &hops[0], newNonce(), &ID{}), nil
}

// TestPings: what each outcome of a ping does, and when (protocol 3 section 6.5).
func TestPings(t *testing.T) {
	ok, many := status(textOK), func(s string, n int) []string { return slices.Repeat([]string{s}, n) }
	for _, c := range []struct {
		name  string
		pings []string
		why   Reason
		after time.Duration // from the first ping
	}{
		{"silence", nil, Silent, 35 * time.Second}, // 5 s a ping, the sixth one lasts 10 s
		{"error", []string{"error"}, Refused, 100 * time.Millisecond},
		{"error later", []string{string(ok), string(ok), "error"}, Refused, 10*time.Second + 100*time.Millisecond},
		// Six of the interval and, since all are late, eleven of the examination between them. The answer to the last comes before the one before it has been waited for, which counts
		// again as the first.
		{"silent, then one answered", append(many("silence", 16), string(ok)), Silent, 60 * time.Second},
		{"another answer is one", append(many("forged", 5), "d1:!5:ERRORe"), Silent, 30*time.Second + 35*time.Second},
		{"forged", many("forged", 6), Silent, 25*time.Second + 100*time.Millisecond},
		{"short", many("short", 6), Silent, 25*time.Second + 100*time.Millisecond},
		{"link says no", many("closed", 6), Silent, 25*time.Second + 100*time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newSimNet(t, 2, 0)
			opt := DefaultOptions()
			opt.Edges = 1
			cl := NewClient(ClientConfig{Options: opt, Store: n.store})
			w := newWatcher(t)
			link := &script{t: t, pings: c.pings}
			pool := cl.NewPool(PoolConfig{Kind: Inbound, Hops: 1, Want: 1, Owner: w})
			link.path = func() *Path {
				pool.mu.Lock()
				defer pool.mu.Unlock()
				return pool.paths[0]
			}
			cl.EdgeUp(n.relays[0].id, link)
			synctest.Wait()
			began := time.Now() // the next tick pings
			for {
				cl.Tick(time.Now())
				time.Sleep(250 * time.Millisecond)
				synctest.Wait()
				if _, downs, last := w.counts(); len(downs) > 0 || time.Since(began) > 5*time.Minute {
					if got := last.Sub(began); downs[c.why] != 1 || got != c.after {
						t.Errorf("%s: %v after %v, want %s after %v", c.name, downs, got, c.why, c.after)
					}
					break
				}
			}
			cl.Close()
			n.close()
		})
	}
}

// TestLateOK: an OK that comes after the edge's connection is gone establishes nothing, and is no failure.
func TestLateOK(t *testing.T) {
	r := newRigged(t)
	link := &script{t: t}
	p := &Path{pool: r.pool, link: link, relays: []key.Public{exampleRelay(0).Public()}, expiry: time.Now().Add(time.Minute).Round(0)}
	p.gone, p.end = context.WithCancel(r.pool.ctx)
	r.pool.mu.Lock()
	r.pool.paths = append(r.pool.paths, p)
	r.pool.mu.Unlock()
	r.pool.attempt(p)
	if ups, _, _ := r.owner.counts(); ups != 1 || p.carries() || r.pool.Failures() != 0 || len(r.pool.List()) != 1 {
		t.Error("established over a connection that is gone")
	}
}

// TestAligned: to which introductions paths are built, and what a new contact does to them (protocol 3 sections 6.3 and 6.4).
func TestAligned(t *testing.T) {
	world(t, 10, DefaultOptions(), func(t *testing.T, n *simNet, c *simClient) {
		now := time.Now()
		intro := func(relay, hop int, life time.Duration) netdb.Intro {
			return netdb.Intro{Expiry: now.Add(life), Relay: n.relays[relay].id, Hop: fillID(byte(hop))}
		}
		w := newWatcher(t)
		pool := c.NewPool(PoolConfig{Kind: Aligned, Hops: 3, Want: 2, Owner: w})
		run := func() []*Path {
			n.run(time.Second, []*simClient{c}, nil)
			return pool.Paths(time.Now())
		}
		if paths := run(); len(paths) != 0 || pool.Failures() != 0 {
			t.Error("built without introductions")
		}
		// One relay each; at one relay the longest; not those with little time or an unknown relay.
		unknown := netdb.Intro{Expiry: now.Add(time.Hour), Relay: secretOf(99).Public(), Hop: fillID(50)}
		pool.SetIntros([]netdb.Intro{intro(5, 1, 400*time.Second), intro(5, 2, 900500*time.Millisecond), intro(6, 3, 2000*time.Second), intro(7, 4, 299*time.Second), unknown})
		paths := run()
		if len(paths) != 2 {
			t.Fatal("paths:", describePaths(pool))
		}
		for _, p := range paths {
			life := p.Expiry().Sub(now).Round(time.Second)
			switch p.Pivot() {
			case n.relays[5].id:
				if p.Aligned() != fillID(2) || life != 899*time.Second && life != 900*time.Second {
					t.Errorf("aligned to %v for %v", p.Aligned(), life)
				}
			case n.relays[6].id:
				if p.Aligned() != fillID(3) || life < 1200*time.Second || life > 1202*time.Second {
					t.Errorf("aligned to %v for %v", p.Aligned(), life)
				}
			default:
				t.Error("ends at a relay of too little time")
			}
		}
		cur := pool.Current(time.Now())
		if cur == nil || pool.Current(time.Now()) != cur {
			t.Error("no lasting current path")
		}
		// The current path's introduction goes: another one, at once; what arrives over the old path is still delivered.
		keep := intro(6, 3, 2000*time.Second)
		if cur.Aligned() == fillID(3) {
			keep = intro(5, 2, 900500*time.Millisecond)
		}
		pool.SetIntros([]netdb.Intro{keep, intro(8, 9, 1000*time.Second)})
		if cur.Active(time.Now()) {
			t.Error("a withdrawn introduction's path is active")
		}
		if next := pool.Current(time.Now()); next == nil || next == cur || next.Aligned() != keep.Hop {
			t.Error("no other path")
		}
		if c.find(cur.link, append(make([]byte, 41+24), append(cur.edge[:], 1)...)) != cur {
			t.Error("a retired path hears nothing")
		}
		paths = run()
		if len(paths) != 2 || !slices.ContainsFunc(paths, func(p *Path) bool { return p.Aligned() == fillID(9) }) {
			t.Error("paths:", describePaths(pool))
		}
		// A new contact may say that an introduction ends sooner: a current path that nobody would choose any more is left.
		cur = pool.Current(time.Now())
		other := paths[slices.IndexFunc(paths, func(p *Path) bool { return p != cur })]
		again := []netdb.Intro{
			{Expiry: time.Now().Add(59 * time.Second), Relay: cur.Pivot(), Hop: cur.Aligned()},
			{Expiry: other.Expiry(), Relay: other.Pivot(), Hop: other.Aligned()},
		}
		pool.SetIntros(again)
		if got := pool.Current(time.Now()); got != other {
			t.Error("stays on a path to an introduction that ends")
		}
		// A remote that changes its contact again and again makes us keep no more than Want old paths.
		for i := range 10 {
			pool.SetIntros([]netdb.Intro{intro(8, 20+i, 1000*time.Second)})
			run()
		}
		if len(pool.List()) != 4 {
			t.Error("paths:", describePaths(pool))
		}
		// Nothing better than four minutes: that, but no more often than needed.
		builds := c.Stats().Builds
		now = time.Now()
		pool.SetIntros([]netdb.Intro{intro(5, 1, 240*time.Second)})
		n.run(100*time.Second, []*simClient{c}, nil)
		if got := len(pool.Paths(time.Now())); got != 2 || c.Stats().Builds != builds+2 {
			t.Errorf("%d paths, %d builds", got, c.Stats().Builds-builds)
		}
		_, downs, _ := w.counts()
		if downs[Silent]+downs[Refused]+downs[EdgeLost]+downs[Expired] != 0 {
			t.Errorf("%v", downs)
		}
	})
}

// TestCurrent: which path an outbound session gets as time goes by, and which others are retired (protocol 3 section 6.4 with its recommendation).
func TestCurrent(t *testing.T) {
	r := newRigged(t)
	_, hops := exampleBuild(t)
	begin := time.Now().Round(0)
	for _, c := range []struct {
		name  string
		lives []int // seconds that each path has left
		cur   int   // the current one before; -1: none
		want  []int // candidates for the next; nil: none
		left  []int // those still up after a tick, whichever is current among want
	}{
		{"none", nil, -1, nil, nil},
		{"good ones", []int{300, 1000, 299, 70}, -1, []int{0, 1}, []int{0, 1}},
		{"fair ones", []int{299, 60, 59}, -1, []int{0, 1}, []int{0, 1}},
		{"the longest", []int{20, 59, 40}, -1, []int{1}, []int{1}},
		{"expired", []int{0, -5}, -1, nil, nil},
		{"stays while fair", []int{60, 1000}, 0, []int{0}, []int{0, 1}},
		{"switches before it ends", []int{59, 1000}, 0, []int{1}, []int{1}},
		{"to a fair one", []int{59, 70}, 0, []int{1}, []int{1}},
		{"stays when there is none", []int{30, 59}, 1, []int{1}, []int{1}},
		{"does not look back", []int{300, 1200}, 0, []int{0}, []int{0, 1}},
	} {
		for range 8 {
			pool := r.NewPool(PoolConfig{Kind: ToRelay, Want: 2, Owner: newWatcher(t)})
			var paths []*Path
			for i, s := range c.lives {
				p := upPath(t, pool, r.link, hops, fillID(byte(0x80+i)), fillID(0x42))
				p.expiry = begin.Add(time.Duration(s) * time.Second)
				paths = append(paths, p)
			}
			if c.cur >= 0 {
				pool.current = paths[c.cur]
			}
			got := slices.Index(paths, pool.Current(begin))
			if !slices.Contains(c.want, got) && (c.want != nil || got >= 0) {
				t.Errorf("%s: path %d", c.name, got)
			}
			pool.mu.Lock()
			pool.expire(begin)
			pool.trim(begin)
			pool.mu.Unlock()
			var left []int
			for i, p := range paths {
				if p.state.Load() == pathUp {
					left = append(left, i)
				}
			}
			if !slices.Equal(left, c.left) {
				t.Errorf("%s: left %v", c.name, left)
			}
			pool.Close()
		}
	}
}

// TestOneHop: a path whose only hop is not connected asks for the connection, and is built when it is there.
func TestOneHop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSimNet(t, 3, time.Millisecond)
		opt := DefaultOptions()
		opt.Edges = 1
		var asked []key.Public
		c := &simClient{net: n, links: make(map[key.Public]*simUp)}
		c.Client = NewClient(ClientConfig{Options: opt, Store: n.store, Connect: func(id key.Public) { asked = append(asked, id) }})
		c.dial(n.relays[0])
		pool := c.NewPool(PoolConfig{Kind: ToRelay, Hops: 1, Want: 1, Target: n.relays[1].id, Owner: newWatcher(t)})
		n.run(time.Second, []*simClient{c}, nil)
		if len(asked) == 0 || asked[0] != n.relays[1].id || len(pool.Paths(time.Now())) != 0 {
			t.Errorf("asked for %v", asked)
		}
		c.dial(n.relays[1])
		n.run(3*time.Second, []*simClient{c}, nil)
		if paths := pool.Paths(time.Now()); len(paths) != 1 || len(paths[0].Hops()) != 1 {
			t.Error("paths:", describePaths(pool))
		}
		c.Close()
		n.close()
	})
}

// TestCloseWaits: Close ends builds and pings under way, and lets nothing begin afterwards.
func TestCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSimNet(t, 8, 20*time.Millisecond)
		for _, r := range n.relays[4:] {
			r.setSilent(true)
		}
		c := n.client(DefaultOptions())
		for _, r := range n.relays[:4] {
			c.dial(r)
		}
		w := newWatcher(t)
		pools := []*Pool{
			c.NewPool(PoolConfig{Kind: Inbound, Hops: 3, Want: 4, Owner: w}),
			c.NewPool(PoolConfig{Kind: ToRelay, Hops: 3, Want: 2, Target: n.relays[5].id, Owner: newWatcher(t)}),
		}
		n.run(3*time.Second, []*simClient{c}, nil)
		began := time.Now()
		c.Close()
		if time.Since(began) != 0 {
			t.Errorf("Close took %v", time.Since(began))
		}
		builds := c.Stats().Builds
		c.Tick(time.Now())
		for _, p := range pools {
			p.Tick(time.Now())
			p.Close()
		}
		c.NewPool(PoolConfig{Owner: w}).Tick(time.Now())
		if s := c.Stats(); s.Builds != builds {
			t.Error("built after Close")
		}
		n.close()
	})
}

func TestReasonAndKindStrings(t *testing.T) {
	if got := fmt.Sprint(Expired, Silent, Refused, EdgeLost, Retired, Dropped, Inbound, Aligned, ToRelay); got != "expired silent refused edge lost retired dropped inbound client relay" {
		t.Error(got)
	}
}
