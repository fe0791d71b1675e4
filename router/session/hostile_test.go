package session

// What strangers and copies can make a Table do.

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/path"
)

// TestRefused: nobody may call a client that says so, and it costs it no key operation if nobody may at all.
func TestRefused(t *testing.T) {
	for _, accept := range []func(key.Public) bool{nil, func(key.Public) bool { return false }} {
		inBubble(t, func(t *testing.T, f *fabric) {
			a := f.client(alice, nil)
			b := f.client(bob, func(c *Config) { c.Accept = accept })
			f.run(4 * time.Second)
			a.send(b, "x")
			f.run(3 * time.Second)
			if len(b.table.List()) != 0 || len(b.take()) != 0 || b.table.Stats().DropRefused == 0 {
				t.Fatalf("%+v", b.table.Stats())
			}
			b.send(a, "?y") // it may call itself
			f.run(2 * time.Second)
			want(t, "a", a.take(), "?y")
		})
	}
}

// TestReplays: copies of inits and of path switches.
func TestReplays(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		b.echo = true
		var inits, switches []*flying
		f.lose = func(m *flying) bool {
			switch m.what {
			case "init":
				inits = append(inits, m)
			case "switch":
				switches = append(switches, m)
			}
			return false
		}
		a.send(b, "?x")
		f.run(time.Second)
		want(t, "a", a.take(), "!x")

		// A copy of the init of the living session: nothing happens, not even an answer.
		before := b.table.Stats()
		for range 5 {
			inits[0].land()
		}
		f.run(time.Second)
		if s := b.table.Stats(); s.DropReplayed != before.DropReplayed+5 || s.AcceptsSent != before.AcceptsSent || len(b.with(a)) != 1 {
			t.Fatalf("%+v", s)
		}

		// A copy of a switch, when the path it names was left: the way back stays.
		a.outbound().current(time.Now()).(*fakePath).kill(true)
		f.run(time.Second)
		if len(switches) != 1 {
			t.Fatal(len(switches))
		}
		back := b.table.anyRoute()
		a.table.lock()
		c := a.table.remotes[b.addr()].call
		if a.table.swerve(c, time.Now()) {
			a.table.moved(c, time.Now())
		}
		a.table.unlock()
		f.run(time.Second)
		if b.table.anyRoute() == back {
			t.Fatal("no new way back")
		}
		back = b.table.anyRoute()
		switches[0].land()
		if b.table.anyRoute() != back {
			t.Fatal("a copy moved the way back")
		}

		// An old init, of a session that has ended: it is answered, but only data would make it one to send on, and after 30 s it is gone.
		f.run(40 * time.Second)
		if len(b.table.List()) != 0 {
			t.Fatal("not idle")
		}
		old := inits[0]
		f.revive(old.on)
		a.send(b, "?y") // a live session
		f.run(time.Second)
		want(t, "a", a.take(), "!y")
		b.take()
		old.land()
		if l := b.with(a); len(l) != 2 {
			t.Fatalf("%+v", l)
		}
		a.echo = true // or b would call
		for range 10 {
			f.run(time.Second)
			b.send(a, "?z")
		}
		f.run(time.Second)
		if got := a.take(); len(got) != 10 {
			t.Fatalf("an old init took the session over: %q", got)
		}
		f.run(25 * time.Second)
		if l := b.with(a); len(l) != 1 {
			t.Fatalf("%+v", l)
		}
	})
}

// revive makes a dead path pass again.
func (f *fabric) revive(p *fakePath) {
	p.mu.Lock()
	p.dead, p.until = false, time.Now().Add(time.Hour)
	p.mu.Unlock()
	f.mu.Lock()
	f.ends[p.end] = p
	f.mu.Unlock()
}

// anyRoute is the way back of a Table with one session.
func (t *Table) anyRoute() route {
	t.lock()
	defer t.unlock()
	for _, s := range t.tags {
		return *s.route.Load()
	}
	return route{}
}

// TestReplayedInitAlone: an old init, and we have packets for the remote: after a second they go there, and we call the remote besides.
func TestReplayedInitAlone(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		a.echo = true
		i := newInitiator(a.sec, b.sec.Public(), 99)
		p := b.pools[0].all()[0]
		body, _ := i.init(fillID(0x77)) // a path that is no more
		b.table.controlled(p, path.TypeHandshake, message(body, 0, nil), fillNonce(1))
		if l := b.with(a); len(l) != 1 || l[0].State != Answered {
			t.Fatalf("%+v", l)
		}
		for range 10 {
			b.send(a, "?x")
			f.run(500 * time.Millisecond)
		}
		if got := b.take(); len(got) < 5 {
			t.Fatalf("%q", got)
		}
	})
}

// TestUnsure: a remote called and said nothing since. Packets wait for its first message, for a second; nobody calls it.
func TestUnsure(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		quiet := true
		f.lose = func(m *flying) bool { return quiet && m.from == a.sec.Public() && m.what == "control" }
		go a.table.Connect(t.Context(), b.addr())
		f.run(500 * time.Millisecond)
		if l := b.with(a); len(l) != 1 || l[0].State != Answered || l[0].Current {
			t.Fatalf("%+v", l)
		}
		b.send(a, "x")
		f.run(250 * time.Millisecond)
		want(t, "a", a.take())
		f.run(1250 * time.Millisecond)
		want(t, "a", a.take(), "x")
		// With the first message of an established session nothing waits.
		quiet = false
		a.send(b, "y")
		f.run(250 * time.Millisecond)
		want(t, "b", b.take(), "y")
		if l := b.with(a); !slices.ContainsFunc(l, func(i Info) bool { return i.Inbound && i.State == Established }) {
			t.Fatalf("%+v", l)
		}
	})
	// A session without packets is affirmed by its initiator.
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		go a.table.Connect(t.Context(), b.addr())
		f.run(500 * time.Millisecond)
		if l := b.with(a); len(l) != 1 || l[0].State != Established || !l[0].Current {
			t.Fatalf("%+v", l)
		}
		if s := b.table.Stats(); s.SwitchesTaken != 1 || s.DropForged+s.DropParse+s.DropDirection != 0 {
			t.Fatalf("%+v", s)
		}
	})
}

// TestLimits: what strangers can make a Table hold.
func TestLimits(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		limits := Limits{Sessions: 8, Unsure: 6, Handshakes: 10}
		b := f.client(bob, func(c *Config) { c.Limits = limits })
		f.run(3 * time.Second)
		paths := b.pools[0].all()
		call := func(k byte, over int) uint32 {
			i := newInitiator(key.FromSeed(fill(k)), b.sec.Public(), uint32(k)+1)
			body, _ := i.init(fillID(k))
			b.table.controlled(paths[over], path.TypeHandshake, message(body, 0, nil), fillNonce(k))
			return i.tag
		}
		tick := func() { f.run(time.Second) }
		// Over one path a quarter of the unsure, here one.
		call(1, 0)
		call(2, 0)
		if l := b.table.List(); len(l) != 1 {
			t.Fatalf("%d sessions over one path", len(l))
		}
		tick()
		for k := range byte(4) {
			call(10+k, int(k))
		}
		if l := b.table.List(); len(l) != 4 {
			t.Fatalf("%d sessions", len(l))
		}
		// Sure ones are not pushed out.
		for k := range byte(12) {
			b.table.lock()
			for _, s := range b.table.tags {
				s.sure.Store(true)
			}
			b.table.unlock()
			tick()
			call(40+k, int(k)%4)
		}
		if l := b.table.List(); len(l) != 8 {
			t.Fatalf("%d sessions", len(l))
		}
		if s := b.table.Stats(); s.DropFull == 0 {
			t.Fatalf("%+v", s)
		}
		// More than the rate: dropped before the box is opened.
		before := b.table.Stats()
		for range 100 {
			call(99, 0)
		}
		if s := b.table.Stats(); s.DropRate-before.DropRate < 75 {
			t.Fatalf("%+v", s)
		}
		f.run(2 * time.Minute)
		if b.table.gate.Load().Sweep(time.Now()) != 0 || len(b.table.tags)+len(b.table.remotes) != 0 {
			t.Fatal("not forgotten")
		}
	})
	// One remote does not hold more than its share.
	inBubble(t, func(t *testing.T, f *fabric) {
		b := f.client(bob, nil)
		f.run(3 * time.Second)
		paths := b.pools[0].all()
		for k := range byte(20) {
			i := newInitiator(alice, b.sec.Public(), uint32(k)+1)
			body, _ := i.init(fillID(k))
			b.table.controlled(paths[k%4], path.TypeHandshake, message(body, 0, nil), fillNonce(k))
		}
		if l := b.table.List(); len(l) != remoteSets {
			t.Fatalf("%d sessions", len(l))
		}
	})
	// Calls.
	inBubble(t, func(t *testing.T, f *fabric) {
		a := f.client(alice, func(c *Config) { c.Limits.Calls = 3 })
		for k := range byte(5) {
			if !a.table.Send(key.Address{Key: key.FromSeed(fill(k)).Public()}, ipPacket(string([]byte{'0' + k}))) {
				t.Fatalf("call %d", k)
			}
			time.Sleep(time.Millisecond)
		}
		want(t, "given back", a.lost, "0", "1") // the oldest, whom nobody has found yet
		if !errors.Is(a.why[0], ErrBusy) || a.table.calls != 3 {
			t.Fatal(a.why, a.table.calls)
		}
		f.run(30 * time.Second)
		if a.table.calls != 0 || len(a.lost) != 5 {
			t.Fatal(a.table.calls, a.lost)
		}
	})
}

// TestGarbage: what anybody can send to a path of ours changes nothing.
func TestGarbage(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		p := b.pools[0].all()[0]
		for _, msg := range [][]byte{nil, {1}, {1, 2, 3, 4}, {1, 2, 3, 4, 5}, make([]byte, 100)} {
			for typ := range byte(4) {
				b.table.controlled(p, typ, slices.Clone(msg), fillNonce(typ))
			}
			b.table.datagram(nil, buffer(msg, fillNonce(1)))
		}
		// A message of the session on the wrong channel or of the wrong side.
		a.table.lock()
		var s *session
		for _, s = range a.table.tags {
		}
		a.table.signal(s, methodContact, []byte("de"))      // only who was called sends it
		a.table.signal(s, methodAccept, []byte("d1:ti5ee")) // nor is it 1.0
		a.table.signal(s, "no such method", nil)
		a.table.signal(s, methodSwitch, []byte("nonsense"))
		a.table.unlock()
		f.run(time.Second)
		stats := b.table.Stats()
		if stats.DropShort == 0 || stats.DropTag == 0 || stats.DropType == 0 || stats.DropDirection != 2 || stats.DropParse < 2 {
			t.Fatalf("%+v", stats)
		}
		b.table.lock()
		for _, s := range b.table.tags {
			b.table.signal(s, methodSwitch, switchParam(fillID(1)))
			b.table.signal(s, methodContact, []byte("de"))
		}
		b.table.unlock()
		f.run(time.Second)
		if s := a.table.Stats(); s.DropDirection != 1 || s.DropParse != 1 {
			t.Fatalf("%+v", s)
		}
		a.send(b, "?still")
		f.run(time.Second)
		want(t, "a", a.take(), "!still")
		// Packets that are none.
		for _, p := range []string{"", "x", strings.Repeat("x", 40)} {
			if a.table.Send(b.addr(), buffer([]byte(p), fillNonce(1))) {
				t.Fatal("sent")
			}
		}
		if a.send(b, strings.Repeat("x", MaxPacket-19)) || !a.send(b, strings.Repeat("y", MaxPacket-20)) {
			t.Fatal("wrong limit")
		}
		f.run(time.Second)
		if s := a.table.Stats(); s.DropMalformed != 3 || s.DropLong != 1 || len(b.take()) != 2 {
			t.Fatalf("%+v", s)
		}
	})
}

// TestOtherChannel: a datagram brought as a control message, and the other way round, is a copy.
func TestOtherChannel(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		var seen []*flying
		f.lose = func(m *flying) bool {
			if len(seen) < 2 {
				seen = append(seen, m)
			}
			return false
		}
		a.send(b, "x")
		a.table.lock()
		for _, s := range a.table.tags {
			a.table.signal(s, methodSwitch, switchParam(s.route.Load().via.id()))
		}
		a.table.unlock()
		f.run(time.Second)
		before := b.table.Stats()
		p := b.pools[0].all()[0]
		for _, m := range seen {
			body := m.msg[:len(m.msg)-pivotSize]
			b.table.controlled(p, path.TypeControl, slices.Clone(body), m.nonce)
			b.table.datagram(nil, buffer(body, m.nonce))
		}
		if s := b.table.Stats(); len(seen) != 2 || s.DropReplayed != before.DropReplayed+4 {
			t.Fatalf("%d: %+v", len(seen), s)
		}
	})
}

// FuzzControlled: whoever knows a path of ours can send anything to it, a tag that is known included.
//
// Decoders: Table.controlled Table.handshake
func FuzzControlled(f *testing.F) {
	f.Add(byte(1), []byte("garbage"), uint32(6), true)
	f.Add(byte(2), []byte("d0:1:s1:S2:ab1:i2:cde"), uint32(6), false)
	f.Add(byte(2), []byte("d0:1:a1:B2:abe"), uint32(7), false)
	f.Add(byte(2), []byte("d0:1:i1:B2:abe"), uint32(0), false)
	f.Add(byte(1), []byte("garbage that is as long as an accept"), uint32(8), false)
	f.Add(byte(1), []byte("d1:k32:"+string(make([]byte, 32))+"1:n24:"+string(make([]byte, 24))+"1:x2:abe"), uint32(0), false)
	b := newTable(Config{Self: bob, Accept: everybody})
	now := time.Now()
	_, kr, _, _ := shake(f, newInitiator(alice, bob.Public(), 5), bob, 6)
	s := &session{r: b.remote(key.Address{Key: alice.Public()}), own: 6, keys: kr, since: now}
	s.route.Store(&route{via: fakeTerminal{}})
	b.add(s, now)
	c := &call{r: s.r}
	p := &pending{caller: newInitiator(bob, alice.Public(), 7), c: c}
	b.pending[7] = p
	old := &oldInitiator{self: bob, remote: alice.Public(), tag: 8}
	if _, err := old.init(fillID(1)); err != nil {
		f.Fatal(err)
	}
	b.pending[8] = &pending{caller: old, tag: 8, old: true, c: c}
	f.Fuzz(func(t *testing.T, typ byte, body []byte, tag uint32, datagram bool) {
		p.tries = 0
		before := b.Stats()
		msg := message(body, tag, nil)
		if datagram && len(msg) < packet.MaxData {
			b.datagram(nil, buffer(msg, fillNonce(1)))
		} else {
			b.controlled(nowhere{}, typ, msg, fillNonce(2))
		}
		b.controlled(nowhere{}, typ, body[:min(len(body), tagSize-1)], fillNonce(2))
		after := b.Stats()
		if len(b.tags) != 1 || s.sure.Load() || after == before {
			t.Fatal("taken")
		}
	})
}

// nowhere is a carrier that leads nowhere.
type nowhere struct{ carrier }

func (nowhere) id() path.ID { return path.ID{1} }
