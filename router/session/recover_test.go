package session

// What a Table does when messages get lost, paths die and remotes restart.

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"lokinetd/router/netdb"
	"lokinetd/router/path"
)

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

// TestSwitchLost: we go over to another path, and the remote does not learn of it, for its path that we meet there is dead. We hear it all the time, over the former path, and notice.
func TestSwitchLost(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		paths := a.outbound().all()
		now := a.outbound().current(time.Now()).(*fakePath)
		other := paths[0]
		if other == now {
			other = paths[1]
		}
		f.mu.Lock()
		there := f.ends[other.peer]
		f.mu.Unlock()
		there.blind(true)
		a.table.lock()
		c := a.table.remotes[b.addr()].call
		c.detour = other
		a.table.move(c, other)
		a.table.sendSwitch(c, time.Now())
		a.table.unlock()
		b.table.lock()
		b.table.remotes[a.addr()].retry = time.Now().Add(time.Hour) // or it calls us
		b.table.unlock()
		start, at := time.Now(), time.Duration(0)
		for range 40 {
			b.send(a, "news")
			f.run(150 * time.Millisecond)
			a.send(b, "?x")
			f.run(100 * time.Millisecond)
			for _, s := range a.take() {
				if s == "!x" && at == 0 {
					at = time.Since(start)
				}
			}
		}
		if at == 0 || at > 3*time.Second {
			t.Errorf("an answer after %v", at)
		}
	})
}

// TestTheirsSilent: both have called, we send on the remote's session, and the way of that one dies: we send on ours.
func TestTheirsSilent(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		a.echo, b.echo = true, true
		for range 20 {
			a.send(b, "?a")
			b.send(a, "?b")
			f.run(250 * time.Millisecond)
		}
		caller, other := a, b
		if a.caller(b) == b {
			caller, other = b, a
		}
		for _, p := range caller.outbound().all() {
			p.blind(true)
		}
		other.take()
		start := time.Now()
		f.wait(6*time.Second, "an answer", func() bool {
			other.send(caller, "?x")
			return slices.Contains(other.take(), "!x")
		})
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("took %v", d)
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

// TestOneSided: who called forgets the session and publishes; who was called keeps talking, and calls after some seconds, unless too many have it do so.
func TestOneSided(t *testing.T) {
	for _, others := range []int{0, callBacks} {
		testOneSided(t, others)
	}
}

func testOneSided(t *testing.T, others int) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		if others > 0 { // and they go on
			b.table.back.AllowN(time.Now(), callBacks)
			b.table.back.SetLimit(0)
		}
		a.table.lock()
		for _, s := range a.table.tags {
			a.table.remove(s, time.Now())
		}
		a.table.hangUp(a.table.remotes[b.addr()].call)
		a.table.unlock()
		f.run(250 * time.Millisecond)
		for i := range 40 {
			b.send(a, "x")
			f.run(time.Second)
			if got := len(a.take()); i > 20 && (got > 0) != (others == 0) {
				t.Fatalf("after %d s, with %d others: %d packets", i, others, got)
			}
		}
	})
}

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

// TestOlderSession: two sessions that we called for; when the newer one ends, the call lives on with the older.
func TestOlderSession(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		a.table.lock()
		c := a.table.remotes[b.addr()].call
		first := c.session
		c.try = a.table.offer(c, nil, time.Now())
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

// TestUnanswered: to call a remote that does not answer costs a look-up every few seconds and remembers no path that is gone, for however long it goes on and whatever becomes of the paths.
func TestUnanswered(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		f.lose = func(m *flying) bool { return m.what == "init" }
		const lasts = 10 * time.Minute
		for at := time.Duration(0); at < lasts; at += 2 * time.Second {
			a.send(b, "x")
			f.run(2 * time.Second)
			a.table.lock()
			c := a.table.remotes[b.addr()].call
			n, in := len(c.tried), c.path
			a.table.unlock()
			if n > 8 {
				t.Fatalf("%d paths are remembered after %v", n, at)
			}
			for _, p := range a.outbound().all() {
				if onion(p) != in && at%(10*time.Second) == 0 {
					p.kill(true)
				}
			}
		}
		n := a.table.Stats().Lookups
		if most := uint64(looksAtOnce+lasts/looksEvery) + 5; n > most || n < uint64(lasts/looksEvery)/2 {
			t.Errorf("%d look-ups", n)
		}
	})
}

// TestDivertFromNone: the path in use may have ended when another one is taken.
func TestDivertFromNone(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		a.table.lock()
		c := a.table.remotes[b.addr()].call
		to := c.path
		c.path = nil
		a.table.divert(c, to, time.Now())
		if c.path != to {
			t.Error("it was not taken")
		}
		a.table.unlock()
	})
}

// TestPathless: no path can be built to where the remote was. Its contact is looked up again, without waiting for one.
func TestPathless(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		f.run(time.Second)
		p := a.outbound()
		p.mu.Lock()
		p.intros = nil
		p.mu.Unlock()
		for _, x := range p.all() {
			x.kill(true)
		}
		before := a.table.Stats().Lookups
		f.run(3 * time.Second)
		if n := a.table.Stats().Lookups - before; n < 1 || n > 3 {
			t.Errorf("%d look-ups in 3 s without a path, %+v", n, a.with(b))
		}
	})
}

// TestSlowLocation: a path over which nothing is answered, for ten seconds, does not hold up the look-ups that come after.
func TestSlowLocation(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		f.run(2 * time.Second)
		a.table.entrance.paths(time.Now())[0].(*fakePath).blind(true)
		before := a.table.Stats().Lookups
		for range 8 {
			a.table.lock()
			a.table.seek(a.table.contacts[b.sec.Public()], time.Now())
			a.table.unlock()
			f.run(1250 * time.Millisecond)
		}
		if n := a.table.Stats().Lookups - before; n < 6 {
			t.Errorf("%d look-ups in 10 s", n)
		}
	})
}

// TestSpacing: relays on our inbound paths die one after the other. A new contact says so at once, but never sooner than 5 s after the last one.
func TestSpacing(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		_, b := f.settled()
		f.run(30 * time.Second)
		contacts := func() uint64 { return b.table.Stats().Publications }
		before := contacts()
		b.table.entrance.paths(time.Now())[0].(*fakePath).kill(true)
		f.run(1500 * time.Millisecond)
		if n := contacts() - before; n != 1 {
			t.Errorf("%d contacts after a loss", n)
		}
		for range 29 {
			b.table.entrance.paths(time.Now())[0].(*fakePath).kill(true)
			f.run(time.Second)
		}
		if n := contacts() - before; n < 5 || n > 7 {
			t.Errorf("%d contacts in 30 s", n)
		}
	})
}
