package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
)

func want(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s: got %q, want %q", what, got, want)
	}
}

// pair makes two clients that have published their contacts, a's key the smaller one.
func (f *fabric) pair() (a, b *node) {
	x, y := alice, bob
	if x.Public().Compare(y.Public()) > 0 {
		x, y = y, x
	}
	a, b = f.client(x, nil), f.client(y, nil)
	f.wait(5*time.Second, "contacts published", func() bool {
		return a.table.Publication().Locations == 4 && b.table.Publication().Locations == 4
	})
	return a, b
}

// settled brings a pair to an established session that a called for.
func (f *fabric) settled() (a, b *node) {
	a, b = f.pair()
	b.echo = true
	a.send(b, "?hello")
	f.wait(3*time.Second, "an answer", func() bool { return len(a.take()) == 1 })
	want(f.t, "b", b.take(), "?hello")
	return a, b
}

func TestFirstPacket(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		b.echo = true
		start := time.Now()
		if !a.send(b, "?one") || !a.send(b, "?two") {
			t.Fatal("refused")
		}
		if l := a.with(b); len(l) != 1 || l[0].State != Seeking || l[0].Queued != 2 || l[0].Inbound {
			t.Fatalf("%+v", l)
		}
		f.wait(3*time.Second, "answers", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.got) == 2 })
		want(t, "a", a.take(), "!one", "!two")
		want(t, "b", b.take(), "?one", "?two")
		// Look-up, init, accept, packet, answer: 2+1+1+1+1 latencies, and paths built at once.
		if d := time.Since(start); d > 750*time.Millisecond {
			t.Errorf("took %v", d)
		}
		la, lb := a.with(b), b.with(a)
		if len(la) != 1 || len(lb) != 1 || la[0].State != Established || lb[0].State != Established || la[0].Inbound || !lb[0].Inbound || !la[0].Current || !lb[0].Current {
			t.Fatalf("a %+v\nb %+v", la, lb)
		}
		if la[0].PacketsOut != 2 || la[0].PacketsIn != 2 || lb[0].BytesIn != 48 || len(la[0].Hops) != 1 || la[0].PathExpiry.IsZero() {
			t.Fatalf("a %+v\nb %+v", la, lb)
		}
		s := a.table.Stats()
		if s.InitsSent != 1 || s.AcceptsTaken != 1 || s.PacketsOut != 2 || s.PacketsIn != 2 || s.Lookups != 1 {
			t.Fatalf("%+v", s)
		}
		if err := a.table.Connect(context.Background(), b.addr()); err != nil {
			t.Fatal(err)
		}
		if err := b.table.Connect(context.Background(), a.addr()); err != nil {
			t.Fatal(err)
		}
		if b.table.Stats().Lookups != 0 {
			t.Fatal("b called back")
		}
	})
}

func TestRelaySession(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, r := f.client(alice, nil), f.relay(carol)
		r.echo = true
		a.send(r, "?one")
		f.run(time.Second)
		want(t, "a", a.take(), "!one")
		want(t, "relay", r.take(), "?one")
		if l := r.table.List(); len(l) != 1 || l[0].Remote != a.addr() || !l[0].Inbound || l[0].Hops != nil {
			t.Fatalf("%+v", l)
		}
		// The client goes to its other path.
		p := a.outbound()
		p.current(time.Now()).(*fakePath).kill(true)
		a.send(r, "?two")
		f.run(time.Second)
		want(t, "a", a.take(), "!two")
		if s := r.table.Stats(); s.SwitchesTaken == 0 || s.InitsTaken != 1 {
			t.Fatalf("%+v", s)
		}
		// A relay calls nobody, and sessions end there too.
		f.run(31 * time.Second)
		if l := append(r.table.List(), a.table.List()...); len(l) != 0 {
			t.Fatalf("%+v", l)
		}
		if r.table.Send(a.addr(), ipPacket("x")) {
			t.Fatal("sent without a session")
		}
		if !errors.Is(r.why[0], ErrUnreachable) {
			t.Fatal(r.why)
		}
		if err := r.table.Connect(context.Background(), a.addr()); err != ErrUnreachable {
			t.Fatal(err)
		}
	})
}

func TestQueue(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		var sent []string
		for i := range queueLimit + 5 {
			sent = append(sent, fmt.Sprint(i))
			a.send(b, sent[i])
		}
		f.run(time.Second)
		want(t, "b", b.take(), sent[5:]...)
		if n := a.table.Stats().DropQueue; n != 5 {
			t.Fatal(n)
		}
	})
}

// TestNowhere: who cannot be reached is said at once, and packets come back.
func TestNowhere(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a := f.client(alice, nil)
		old := f.client(bob, func(c *Config) { c.Publish = false })
		quiet := key.Address{Key: carol.Public()}
		f.run(time.Second)
		a.send(&node{sec: carol, table: old.table}, "x")
		f.run(time.Second)
		want(t, "given back", a.lost, "x")
		if !errors.Is(a.why[0], ErrNotFound) {
			t.Fatal(a.why)
		}
		before := f.asked[netdb.MethodFindCC]
		if a.table.Send(quiet, ipPacket("y")) {
			t.Fatal("taken although there is no contact")
		}
		if err := a.table.Connect(t.Context(), quiet); err != ErrNotFound {
			t.Fatal(err)
		}
		if _, err := a.table.Contact(t.Context(), quiet.Key); err != ErrNotFound {
			t.Fatal(err)
		}
		if len(a.table.List()) != 0 || f.asked[netdb.MethodFindCC] != before || before != 4 {
			t.Fatal("not remembered", before)
		}
		f.run(missingTime)
		done := make(chan error, 1)
		go func() { done <- a.table.Connect(context.Background(), quiet) }()
		f.run(time.Second)
		if err := <-done; err != ErrNotFound || f.asked[netdb.MethodFindCC] != before+4 {
			t.Fatal("not asked again", err)
		}

		for what, c := range map[string]struct {
			to  key.Address
			err error
		}{
			"no such relay":     {key.Address{Key: carol.Public(), Kind: key.Relay}, ErrUnreachable},
			"not a key":         {key.Address{Key: key.Public{1, 2, 3}}, ErrNotFound},
			"not a relay's key": {key.Address{Key: key.Public{1, 2, 3}, Kind: key.Relay}, ErrNotFound},
			"ourselves":         {a.addr(), ErrUnreachable},
		} {
			if err := a.table.Connect(t.Context(), c.to); err != c.err {
				t.Errorf("%s: %v", what, err)
			}
		}

		// A client and a relay with the 1.0 handshake only.
		cc := netdb.ClientContact{Flags: netdb.FlagIPv4, Intros: []netdb.Intro{{Expiry: time.Now().Add(time.Hour), Hop: fillID(1), Relay: f.pivots[0]}}}
		blinded, _ := carol.Public().Blind()
		sealed, err := cc.Seal(carol, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		f.stored[2][blinded] = sealed
		f.run(missingTime)
		go func() { done <- a.table.Connect(context.Background(), quiet) }()
		f.run(time.Second)
		if err := <-done; err != ErrUnsupported {
			t.Fatal(err)
		}
		if err := a.table.Connect(t.Context(), quiet); err != ErrUnsupported {
			t.Fatal("the second time:", err)
		}
		for v, ok := range map[[3]uint8]bool{{1, 0, 9}: false, {0, 9, 9}: false, {1, 1, 0}: true, {2, 0, 0}: true} {
			if speaks(&netdb.RelayContact{Version: v}) != ok || !speaks(&netdb.RelayContact{Version: v, Sessions: true}) {
				t.Error(v)
			}
		}
	})
}

// TestSilence: the remote has a contact and is gone. The init goes out again and again, always the same but for p; packets come back after 10 s.
func TestSilence(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		var times []time.Duration
		var inits []openedInit
		start := time.Now()
		f.lose = func(m *flying) bool {
			if m.what == "init" {
				h, _ := parseHandshake(m.msg[:len(m.msg)-tagSize-pivotSize])
				in, err := openInit(b.sec, h.box, everybody)
				if err != nil || in.pivot != m.on.end {
					t.Error("init", err)
				}
				times, inits = append(times, time.Since(start)), append(inits, in)
				return true
			}
			return false
		}
		a.send(b, "one")
		f.run(5 * time.Second)
		a.send(b, "two")
		f.run(4 * time.Second)
		if len(a.lost) != 0 {
			t.Fatal("given back early")
		}
		f.run(2 * time.Second)
		want(t, "given back", a.lost, "one")
		f.run(5 * time.Second)
		want(t, "given back", a.lost, "one", "two")
		if !errors.Is(a.why[0], ErrTimeout) {
			t.Fatal(a.why)
		}
		if l := a.with(b); len(l) != 1 || l[0].State != Calling {
			t.Fatalf("%+v", l)
		}
		// At about 0.2, 2, 6, 14, 30 s; each wait is a fifth more or less, and a tick.
		f.run(14 * time.Second)
		if n := len(times); n < 4 || n > 6 {
			t.Fatal(times)
		}
		for i := 1; i < len(times); i++ {
			d, at := times[i]-times[i-1], initWait<<(i-1)
			if d < at*3/4 || d > at*5/4+500*time.Millisecond {
				t.Fatal(times)
			}
		}
		ps := map[path.ID]bool{}
		for _, in := range inits {
			ps[in.pivot] = true
			if !in.same(&inits[0]) {
				t.Fatal("another init")
			}
		}
		if len(ps) != 2 {
			t.Fatal("paths used:", len(ps))
		}
		if a.table.Stats().Lookups < 2 {
			t.Error("the contact was not looked up again")
		}
		f.run(30 * time.Second)
		if l := a.table.List(); len(l) != 0 {
			t.Fatalf("still calling: %+v", l)
		}
		if len(a.table.pending) != 0 || len(a.table.remotes) != 0 {
			t.Fatal("not forgotten")
		}
	})
}

// TestLost: one init or accept is lost, doubled or late; the session comes all the same, and there is one.
func TestLost(t *testing.T) {
	for _, c := range []struct {
		what  string
		lose  string // the first of this kind
		again bool   // not lost but doubled
	}{
		{"lost init", "init", false}, {"lost accept", "accept", false}, {"doubled init", "init", true}, {"doubled accept", "accept", true},
	} {
		t.Run(c.what, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fabric) {
				a, b := f.pair()
				b.echo = true
				seen := 0
				f.lose = func(m *flying) bool {
					if m.what != c.lose {
						return false
					}
					seen++
					if seen == 1 && c.again {
						time.AfterFunc(f.latency, m.land)
					}
					return seen == 1 && !c.again
				}
				a.send(b, "?x")
				f.run(5 * time.Second)
				want(t, "a", a.take(), "!x")
				la, lb := a.with(b), b.with(a)
				if len(la) != 1 || len(lb) != 1 {
					t.Fatalf("a %+v\nb %+v", la, lb)
				}
				sa, sb := a.table.Stats(), b.table.Stats()
				if sb.InitsTaken != 1 || sa.AcceptsTaken != 1 {
					t.Fatalf("a %+v\nb %+v", sa, sb)
				}
				if c.what == "lost accept" && sb.AcceptsSent != 2 {
					t.Fatalf("b %+v", sb)
				}
				a.send(b, "?y")
				f.run(time.Second)
				want(t, "a", a.take(), "!y")
			})
		})
	}
}

// TestReorderedAccept: against a remote that answers every copy of an init with new keys (the reference), the latest accept counts. When the older one comes last, nothing
// decrypts; then we start over with another tag.
func TestReorderedAccept(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("late=%v", late), func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fabric) {
				a := f.client(alice, nil)
				m := f.model(bob)
				f.run(4 * time.Second)
				a.know(m.contact())
				var accepts []*flying
				f.lose = func(fl *flying) bool {
					if fl.what == "accept" && len(accepts) < 2 {
						accepts = append(accepts, fl)
						return true
					}
					return false
				}
				a.table.Send(m.addr(), ipPacket("?x"))
				f.wait(5*time.Second, "two accepts", func() bool { return len(accepts) == 2 })
				if late {
					slices.Reverse(accepts)
				}
				for _, fl := range accepts {
					fl.land()
					f.run(100 * time.Millisecond)
				}
				for range 20 {
					a.table.Send(m.addr(), ipPacket("?y"))
					f.run(500 * time.Millisecond)
				}
				if got := a.take(); len(got) < 5 || !late && len(got) < 18 {
					t.Fatalf("answers: %q", got)
				}
				if late == (m.inits == 2) {
					t.Fatal("inits", m.inits)
				}
			})
		})
	}
}

// know gives a node a contact without a look-up.
func (n *node) know(cc *netdb.ClientContact) {
	now := time.Now()
	n.table.lock()
	n.table.learn(n.table.contact(cc.Key, now), cc, now)
	n.table.unlock()
}

// TestPathLost: the session goes on over the other path at once, and the remote answers there.
func TestPathLost(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		for i := range 5 {
			a.outbound().current(time.Now()).(*fakePath).kill(true)
			a.send(b, fmt.Sprint("?", i)) // on the other path, behind the switch
			f.run(300 * time.Millisecond)
			want(t, "a", a.take(), fmt.Sprint("!", i))
		}
		if sa, sb := a.table.Stats(), b.table.Stats(); sa.SwitchesSent != 5 || sb.SwitchesTaken != 5 || sb.InitsTaken != 1 {
			t.Fatalf("a %+v\nb %+v", sa, sb)
		}
		// All paths gone: packets wait for the next one.
		for _, p := range a.outbound().all() {
			p.kill(true)
		}
		a.send(b, "?later")
		if len(a.with(b)) != 1 {
			t.Fatal("session lost")
		}
		f.run(time.Second)
		want(t, "a", a.take(), "!later")
	})
}

// TestPathLostWhileCalling: the same init goes out on the next path.
func TestPathLostWhileCalling(t *testing.T) {
	for _, silent := range []bool{false, true} {
		inBubble(t, func(t *testing.T, f *fabric) {
			a, b := f.pair()
			b.echo = true
			f.lose = func(m *flying) bool {
				if m.what == "init" && f.lose != nil {
					f.lose = nil
					if silent {
						m.on.blind(true)
					} else {
						time.AfterFunc(10*time.Millisecond, func() { m.on.kill(true) })
					}
				}
				return false
			}
			a.send(b, "?x")
			f.run(4 * time.Second)
			want(t, "a", a.take(), "!x")
			if s := b.table.Stats(); s.InitsTaken != 1 {
				t.Fatalf("%+v", s)
			}
		})
	}
}

// TestSilentPath: our path swallows everything and looks good. We notice before its pings do.
func TestSilentPath(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		a.outbound().current(time.Now()).(*fakePath).blind(true)
		start := time.Now()
		f.wait(15*time.Second, "an answer", func() bool {
			a.send(b, "?x")
			return len(a.take()) > 0
		})
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("took %v", d)
		}
		if s := b.table.Stats(); s.InitsTaken != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestRemotePathLost: the remote's path that we meet dies. It publishes the rest; we find that and go there.
func TestRemotePathLost(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		peer := a.outbound().current(time.Now()).(*fakePath).peer
		f.mu.Lock()
		p := f.ends[peer]
		f.mu.Unlock()
		p.kill(true)
		start := time.Now()
		f.wait(20*time.Second, "an answer", func() bool {
			a.send(b, "?x")
			return len(a.take()) > 0
		})
		if d := time.Since(start); d > 12*time.Second {
			t.Errorf("took %v", d)
		}
		f.run(5 * time.Second) // between two publications
		for _, i := range a.contactOf(b).Intros {
			if i.Hop == peer {
				t.Error("the dead path is still in the contact")
			}
		}
	})
}

func (n *node) contactOf(o *node) *netdb.ClientContact {
	n.table.lock()
	defer n.table.unlock()
	return n.table.contacts[o.sec.Public()].cc
}

// TestRestart: either side loses its memory.
func TestRestart(t *testing.T) {
	t.Run("who was called", func(t *testing.T) {
		inBubble(t, func(t *testing.T, f *fabric) {
			a, b := f.settled()
			b.crash(nil)
			start := time.Now()
			f.wait(30*time.Second, "an answer", func() bool {
				a.send(b, "?x")
				return len(a.take()) > 0
			})
			t.Log("took", time.Since(start))
			if sa := a.table.Stats(); sa.AcceptsTaken != 2 || sa.InitsSent != 1 {
				t.Errorf("not by the init in a path switch: %+v", sa)
			}
			f.run(35 * time.Second)
		})
	})
	t.Run("who was called, its paths living on", func(t *testing.T) {
		inBubble(t, func(t *testing.T, f *fabric) {
			a, b := f.settled()
			b.table.lock()
			for _, s := range b.table.tags {
				b.table.remove(s, time.Now())
			}
			b.table.unlock()
			// The next path switch re-keys.
			a.outbound().current(time.Now()).(*fakePath).kill(true)
			f.run(500 * time.Millisecond)
			a.send(b, "?x")
			f.run(500 * time.Millisecond)
			want(t, "a", a.take(), "!x")
			if sa := a.table.Stats(); sa.AcceptsTaken != 2 || sa.InitsSent != 1 {
				t.Errorf("%+v", sa)
			}
		})
	})
	t.Run("who called", func(t *testing.T) {
		inBubble(t, func(t *testing.T, f *fabric) {
			a, b := f.settled()
			a.crash(nil)
			a.send(b, "?x")
			f.run(3 * time.Second)
			want(t, "a", a.take(), "!x")
			b.send(a, "back")
			f.run(time.Second)
			want(t, "a", a.take(), "back")
		})
	})
	t.Run("who called, and the other talks", func(t *testing.T) {
		inBubble(t, func(t *testing.T, f *fabric) {
			a, b := f.settled()
			a.crash(nil)
			a.echo = true
			start := time.Now()
			f.wait(45*time.Second, "an answer", func() bool {
				b.send(a, "?x")
				return len(b.take()) > 0
			})
			t.Log("took", time.Since(start))
		})
	})
}

// TestStartOver: the keys do not fit, by a fault of the remote: nothing decrypts.
func TestStartOver(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		b.echo = true
		f.lose = func(m *flying) bool {
			if m.what == "accept" && b.table.Stats().InitsTaken == 1 {
				for _, s := range b.table.tags { // b's lock is held
					s.keys.in[0] ^= 1
					s.keys.out[0] ^= 1
				}
			}
			return false
		}
		start := time.Now()
		f.wait(20*time.Second, "an answer", func() bool {
			a.send(b, "?x")
			return len(a.take()) > 0
		})
		if d := time.Since(start); d < quietUnsure || d > quietUnsure+2*time.Second {
			t.Errorf("took %v", d)
		}
		sa, sb := a.table.Stats(), b.table.Stats()
		if sa.AcceptsTaken != 2 || sb.InitsTaken != 2 || sb.DropForged == 0 {
			t.Fatalf("a %+v\nb %+v", sa, sb)
		}
		f.run(40 * time.Second)
		if la, lb := a.with(b), b.with(a); len(la)+len(lb) != 0 {
			t.Fatalf("a %+v\nb %+v", la, lb)
		}
	})
}

// TestIdle: 30 s without a message either way; garbage and copies do not count.
func TestIdle(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		var copy *flying
		f.lose = func(m *flying) bool {
			if m.what == "data" {
				copy = m
			}
			return false
		}
		a.send(b, "last")
		for range 30 {
			f.run(time.Second)
			copy.land() // a copy
			bad := *copy
			bad.msg = slices.Clone(copy.msg)
			bad.msg[3] ^= 1
			bad.on.up(&bad, path.TypeData)
		}
		f.run(2 * time.Second)
		if la, lb := a.with(b), b.with(a); len(la)+len(lb) != 0 {
			t.Fatalf("a %+v\nb %+v", la, lb)
		}
		want(t, "b", b.take(), "last")
		if s := b.table.Stats(); s.DropReplayed < 29 || s.DropForged < 28 {
			t.Fatalf("%+v", s)
		}
		if len(a.table.remotes)+len(b.table.remotes)+len(a.table.pending) != 0 || !a.outbound().closed {
			t.Fatal("something is left")
		}
		// One way only keeps both ends.
		a.send(b, "again")
		for range 50 {
			f.run(time.Second)
			a.send(b, "on")
		}
		f.run(time.Second)
		if got := b.take(); len(got) != 51 {
			t.Fatal(len(got), a.with(b), b.with(a))
		}
		// We cannot know that somebody listens, and start over after 5, 10, 20 s.
		if s := b.table.Stats(); s.InitsTaken != 2+3 {
			t.Fatalf("%+v", s)
		}
	})
}

func TestClose(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		a.table.Close()
		f.run(time.Second)
		if l := b.with(a); len(l) != 0 {
			t.Fatalf("%+v", l)
		}
		if a.send(b, "x") || len(a.lost) != 1 || !errors.Is(a.why[0], ErrClosed) {
			t.Fatal("sent after Close")
		}
		if err := a.table.Connect(t.Context(), b.addr()); err != ErrClosed {
			t.Fatal(err)
		}
		if _, err := a.table.Contact(t.Context(), b.sec.Public()); err != ErrClosed {
			t.Fatal(err)
		}
	})
	// Who was called closes: who called gives up paths and contact, and finds it again when it is back.
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		waiting := make(chan error, 1)
		go func() { waiting <- b.table.Connect(t.Context(), key.Address{Key: carol.Public()}) }()
		synctest.Wait()
		b.table.Close()
		if err := <-waiting; err != ErrClosed {
			t.Fatal(err)
		}
		f.run(time.Second)
		if l := a.with(b); len(l) != 0 || !a.outbound().closed {
			t.Fatalf("%+v", l)
		}
		for _, p := range b.pools {
			p.close()
		}
		a.send(b, "?x")
		f.run(2 * time.Second)
		b.pools = nil
		b.start(nil)
		f.run(8 * time.Second)
		a.send(b, "?y")
		f.run(time.Second)
		if got := a.take(); !slices.Contains(got, "!y") {
			t.Fatalf("%q", got)
		}
	})
}

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

// TestOneSided: who called forgets the session and publishes; who was called keeps talking, and calls after 30 s.
func TestOneSided(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		a.table.lock()
		for _, s := range a.table.tags {
			a.table.remove(s, time.Now())
		}
		a.table.hangUp(a.table.remotes[b.addr()].call)
		a.table.unlock()
		f.run(250 * time.Millisecond)
		for range 40 {
			b.send(a, "x")
			f.run(time.Second)
		}
		if got := a.take(); len(got) < 5 {
			t.Fatalf("%d packets", len(got))
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
		if len(b.table.gate.by) != 0 || len(b.table.tags)+len(b.table.remotes) != 0 {
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
			ok := a.table.Send(key.Address{Key: key.FromSeed(fill(k)).Public()}, ipPacket("x"))
			if ok != (k < 3) {
				t.Fatalf("call %d: %v", k, ok)
			}
		}
		if !errors.Is(a.why[0], ErrBusy) {
			t.Fatal(a.why)
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
			b.table.datagram(buffer(msg, fillNonce(1)))
		}
		// A message of the session on the wrong channel or of the wrong side.
		a.table.lock()
		var s *session
		for _, s = range a.table.tags {
		}
		a.table.signal(s, methodContact, []byte("de")) // only who was called sends it
		a.table.signal(s, "session_accept", []byte("d1:ti5ee"))
		a.table.signal(s, "no such method", nil)
		a.table.signal(s, methodSwitch, []byte("nonsense"))
		a.table.unlock()
		f.run(time.Second)
		stats := b.table.Stats()
		if stats.DropShort == 0 || stats.DropTag == 0 || stats.DropType == 0 || stats.DropDirection != 1 || stats.DropParse < 2 {
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

func TestTrafficTypes(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		var s *session
		for _, s = range b.table.tags {
		}
		for i, c := range []struct {
			plain string
			drop  func(Stats) uint64
		}{
			{"", func(s Stats) uint64 { return s.DropEmpty }},
			{"\x00", func(s Stats) uint64 { return s.DropEmpty }},
			{"packet\x03", func(s Stats) uint64 { return s.DropType }},
			{"packet\xff", func(s Stats) uint64 { return s.DropType }},
		} {
			before := c.drop(b.table.Stats())
			n := fillNonce(byte(i + 100))
			msg := append([]byte(c.plain), make([]byte, 16)...)
			sealIn(msg, s, &n)
			b.table.datagram(buffer(message(msg, s.own, nil), n))
			if c.drop(b.table.Stats()) != before+1 {
				t.Errorf("%q is not dropped", c.plain)
			}
		}
		for proto, typ := range map[byte]byte{17: trafficUDP, 6: trafficTCP, 1: trafficRaw, 58: trafficRaw} {
			p := ipPacket(strings.Repeat("\x00", 40))
			p.Data[9] = proto
			if proto == 6 {
				p.Data[32] = 0x50
			}
			var got byte = 99
			f.lose = func(m *flying) bool {
				if m.what == "data" && m.from == a.sec.Public() {
					body := slices.Clone(m.msg[:len(m.msg)-tagSize-pivotSize])
					plain := openIn(body, s, &m.nonce)
					got = plain[len(plain)-1]
				}
				return true
			}
			a.table.Send(b.addr(), p)
			if got != typ {
				t.Errorf("protocol %d goes as %d", proto, got)
			}
		}
	})
}

var _ = packet.MaxData

// TestMended: the ends have come to different keys. The next path switch does not open, and the init inside it mends the session.
func TestMended(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		b.table.lock()
		for _, s := range b.table.tags {
			s.keys.in[0] ^= 1
			s.keys.out[0] ^= 1
		}
		b.table.unlock()
		a.outbound().current(time.Now()).(*fakePath).kill(true)
		f.run(500 * time.Millisecond)
		a.send(b, "?x")
		f.run(500 * time.Millisecond)
		want(t, "a", a.take(), "!x")
		if s := b.table.Stats(); s.InitsTaken != 2 || s.SwitchesTaken == 0 {
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
			seen = append(seen, m)
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
			b.table.datagram(buffer(body, m.nonce))
		}
		if s := b.table.Stats(); len(seen) != 2 || s.DropReplayed != before.DropReplayed+4 {
			t.Fatalf("%d: %+v", len(seen), s)
		}
	})
}

// TestOlderSession: two sessions that we called for; when the newer one ends, the call lives on with the older.
func TestOlderSession(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		a.table.lock()
		c := a.table.remotes[b.addr()].call
		first := c.session
		c.try = a.table.newPending(c)
		a.table.sendInit(c, time.Now())
		a.table.unlock()
		f.run(500 * time.Millisecond)
		if c.session == first || len(a.with(b)) != 2 {
			t.Fatalf("%+v", a.with(b))
		}
		a.table.lock()
		a.table.remove(c.session, time.Now())
		a.table.unlock()
		if c.session != first {
			t.Fatal("the call has no session")
		}
		a.send(b, "?x")
		f.run(500 * time.Millisecond)
		want(t, "a", a.take(), "!x")
	})
}

// FuzzControlled: whoever knows a path of ours can send anything to it, a tag that is known included.
func FuzzControlled(f *testing.F) {
	f.Add(byte(1), []byte("garbage"), uint32(6), true)
	f.Add(byte(2), []byte("d0:1:s1:S2:ab1:i2:cde"), uint32(6), false)
	f.Add(byte(2), []byte("d0:1:a1:B2:abe"), uint32(7), false)
	f.Add(byte(2), []byte("d0:1:i1:B2:abe"), uint32(0), false)
	b := newTable(Config{Self: bob, Accept: everybody})
	now := time.Now()
	_, kr, _, _ := shake(f, newInitiator(alice, bob.Public(), 5), bob, 6)
	s := &session{r: b.remote(key.Address{Key: alice.Public()}), own: 6, keys: kr, since: now}
	s.route.Store(&route{via: fakeTerminal{}})
	b.add(s, now)
	c := &call{r: s.r}
	p := &pending{initiator: newInitiator(bob, alice.Public(), 7), c: c}
	b.pending[7] = p
	f.Fuzz(func(t *testing.T, typ byte, body []byte, tag uint32, datagram bool) {
		p.tries = 0
		before := b.Stats()
		msg := message(body, tag, nil)
		if datagram && len(msg) < packet.MaxData {
			b.datagram(buffer(msg, fillNonce(1)))
		} else {
			b.controlled(nowhere{}, typ, msg, fillNonce(2))
		}
		after := b.Stats()
		if len(b.tags) != 1 || s.sure.Load() || after == before {
			t.Fatal("taken")
		}
	})
}

// nowhere is a carrier that leads nowhere.
type nowhere struct{ carrier }

func (nowhere) id() path.ID { return path.ID{1} }
