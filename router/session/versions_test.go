package session

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/seal"
)

// party is one end of a session: a Table of ours, or the model of a foreign one.
type party struct {
	*node
	*model
}

func (p party) addr() key.Address {
	if p.node != nil {
		return p.node.addr()
	}
	return p.model.addr()
}

func (p party) take() []string {
	if p.node != nil {
		return p.node.take()
	}
	return p.model.take()
}

// contact is what p publishes, nil for a relay.
func (p party) contact(f *fabric) *netdb.ClientContact {
	switch {
	case p.model != nil:
		return p.model.contact()
	case p.node.kind() == key.Relay:
		return nil
	}
	return f.published(p.node, 0)
}

func (p party) say(f *fabric, o party, s string) {
	if p.node != nil {
		p.node.table.Send(o.addr(), ipPacket(s))
	} else {
		p.model.send(o.addr().Key, o.contact(f), s)
	}
}

// drop ends the path that p sends on to what it called.
func (p party) drop() {
	pool := p.out()
	pool.current(time.Now()).(*fakePath).kill(true)
}

func (p party) out() *fakePool {
	if p.node != nil {
		return p.node.outbound()
	}
	return p.model.out
}

// restart takes all sessions from p, and keeps its paths.
func (p party) restart() {
	if p.model != nil {
		p.model.forget()
		return
	}
	t := p.node.table
	t.lock()
	for _, s := range t.tags {
		t.remove(s, time.Now())
	}
	t.unlock()
}

// TestVersions: a client of ours calls remotes of versions 1.1 and 1.0, clients and relays, and is called by such clients, as is our relay. An accept is lost, the caller's path goes, the
// remote restarts; the forms of all messages are those that the older of the two knows.
func TestVersions(t *testing.T) {
	parties := map[string]func(f *fabric, sec *key.Secret) party{
		"our client": func(f *fabric, sec *key.Secret) party { n := f.client(sec, nil); n.echo = true; return party{node: n} },
		"our relay":  func(f *fabric, sec *key.Secret) party { n := f.relay(sec); n.echo = true; return party{node: n} },
		"1.1 relay": func(f *fabric, sec *key.Secret) party {
			n := f.relay(sec)
			n.echo, n.version = true, [3]uint8{1, 1, 0}
			return party{node: n}
		},
		"1.0 relay": func(f *fabric, sec *key.Secret) party {
			n := f.relay(sec)
			n.echo, n.version = true, [3]uint8{1, 0, 2}
			return party{node: n}
		},
		"1.1 client": func(f *fabric, sec *key.Secret) party { return party{model: f.model(sec)} },
		"1.0 client": func(f *fabric, sec *key.Secret) party { m := f.model(sec); m.old = true; return party{model: m} },
	}
	for _, c := range []struct {
		caller, called string
		old            bool
	}{
		{"our client", "our client", false}, {"our client", "our relay", false},
		{"our client", "1.1 client", false}, {"our client", "1.1 relay", false}, {"our client", "1.0 client", true}, {"our client", "1.0 relay", true},
		{"1.1 client", "our client", false}, {"1.1 client", "our relay", false}, {"1.0 client", "our client", true}, {"1.0 client", "our relay", true},
	} {
		for _, accident := range []string{"none", "lost accept", "doubled init", "lost path", "lost path and a restart"} {
			ours := c.caller == "our client"
			if !ours && (accident == "lost accept" || accident == "doubled init") {
				continue // the reference has no timer
			}
			t.Run(fmt.Sprintf("%s calls %s, %s", c.caller, c.called, accident), func(t *testing.T) {
				inBubble(t, func(t *testing.T, f *fabric) {
					a, b := parties[c.caller](f, alice), parties[c.called](f, bob)
					f.run(4 * time.Second)
					if ours && b.model != nil {
						a.know(b.contact(f))
					}
					forms := map[string]bool{}
					accepts, inits := 0, 0
					f.lose = func(m *flying) bool {
						if m.what == "init" || m.what == "accept" || m.what == "switch" {
							forms[formOf(m)] = true
						}
						answers := m.from == b.addr().Key && (m.what == "accept" || c.old && m.what == "control")
						switch {
						case answers:
							accepts++
							return accident == "lost accept" && accepts == 1
						case m.what == "init":
							inits++
							if accident == "doubled init" && inits == 1 {
								time.AfterFunc(f.latency, m.land)
							}
						}
						return false
					}
					talk := func(what string) {
						t.Helper()
						a.say(f, b, "?a "+what)
						f.run(6 * time.Second)
						b.say(f, a, "?b "+what)
						f.run(500 * time.Millisecond)
						want(t, "a, "+what, a.take(), "!a "+what, "?b "+what)
						want(t, "b, "+what, b.take(), "?a "+what, "!b "+what)
					}
					if accident == "doubled init" && b.model != nil { // it forgets the session of the first copy, and what was sent on that
						a.say(f, b, "?lost")
						f.run(6 * time.Second)
						a.take()
						b.take()
					}
					talk("first")
					expect := map[string]bool{"init": true, "accept": true}
					if c.old {
						expect = map[string]bool{"1.0 init": true}
					}
					if accident == "lost path" || accident == "lost path and a restart" {
						if accident != "lost path" {
							b.restart()
						}
						a.drop()
						f.run(time.Second)
						talk("then")
						if c.old {
							expect["1.0 list with 1.0 init"] = true
						} else {
							expect["dict with init"] = true
						}
					}
					if !maps.Equal(forms, expect) {
						t.Errorf("forms %v, want %v", slices.Collect(maps.Keys(forms)), slices.Collect(maps.Keys(expect)))
					}
					for _, p := range []party{a, b} {
						if p.model != nil && p.puzzled > 0 {
							t.Error("the remote does not understand:", p.puzzled)
						}
						if p.node == nil {
							continue
						}
						list := slices.DeleteFunc(p.table.List(), func(i Info) bool { return !i.Current })
						if len(list) != 1 || list[0].Old != c.old || list[0].State != Established {
							t.Errorf("%+v", p.table.List())
						}
						if s := p.table.Stats(); s.DropForged > 0 || s.DropParse > 0 || s.DropType > 0 || s.DropDirection > 0 {
							t.Errorf("%+v", s)
						}
					}
				})
			})
		}
	}
}

// formOf says of which version a handshake message is.
func formOf(m *flying) string {
	h, err := m.handshake()
	switch {
	case err != nil:
		return err.Error()
	case h.kind == kindOld:
		return "1.0 init"
	case h.kind != kindSwitch:
		return m.what
	}
	form := map[byte]string{'l': "1.0 list", 'd': "dict"}[m.msg[0]]
	init, err := parseHandshake(h.init)
	if err != nil {
		return form + " without init"
	}
	return form + " with " + map[byte]string{kindOld: "1.0 init", kindInit: "init"}[init.kind]
}

// told gives a a contact of b with other flags, signed now. Without FlagPFS, b does not know 1.1.
func (f *fabric) told(a, b *node, flags uint8) {
	cc := *f.published(b, 0)
	cc.Flags, cc.SignedAt = flags, time.Now()
	a.know(&cc)
}

// TestUpgrade: the remote of a 1.0 session publishes that it knows 1.1. The session stays, and what takes its place when the remote restarts is 1.1.
func TestUpgrade(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		b.echo = true
		f.told(a, b, 3)
		a.send(b, "?x")
		f.run(time.Second)
		want(t, "a", a.take(), "!x")
		if l := a.with(b); len(l) != 1 || !l[0].Old {
			t.Fatalf("%+v", l)
		}
		var forms []string
		f.lose = func(m *flying) bool {
			if m.what == "switch" {
				forms = append(forms, formOf(m))
			}
			return false
		}
		b.table.SetContact(netdb.FlagIPv4, nil) // published, and pushed
		f.run(6 * time.Second)
		a.outbound().current(time.Now()).(*fakePath).kill(true)
		f.run(time.Second)
		a.send(b, "?y")
		f.run(time.Second)
		want(t, "a", a.take(), "!y")
		want(t, "switches", forms, "dict with init")
		if l := a.with(b); len(l) != 1 || !l[0].Old {
			t.Fatalf("%+v", l)
		}
		party{node: b}.restart()
		a.outbound().current(time.Now()).(*fakePath).kill(true)
		f.run(time.Second)
		a.send(b, "?z")
		f.run(time.Second)
		want(t, "a", a.take(), "!z")
		if c := a.table.remotes[b.addr()].call; c.session == nil || c.session.keys.old {
			t.Fatal("the call is still on 1.0 keys")
		}
	})
}

// TestDowngrade: an accept of a 1.0 init that comes when there is a 1.1 session changes nothing.
func TestDowngrade(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		b.echo = true
		f.told(a, b, 3)
		var late *flying
		f.lose = func(m *flying) bool {
			if m.from == b.sec.Public() && m.what == "control" && late == nil {
				late = m
				return true
			}
			return false
		}
		a.send(b, "?x")
		f.run(initWait / 2) // before the second init
		if late == nil {
			t.Fatal("no accept")
		}
		f.told(a, b, netdb.FlagPFS)
		f.run(3 * time.Second)
		want(t, "a", a.take(), "!x")
		if l := a.with(b); len(l) != 1 || l[0].Old {
			t.Fatalf("%+v", l)
		}
		late.land()
		if l := a.with(b); len(l) != 1 || l[0].Old || a.table.Stats().DropType != 1 {
			t.Fatalf("%+v %+v", l, a.table.Stats())
		}
	})
}

// TestOlderRemote: a remote comes back as a 1.0 one, and says so in its contact. It understands nothing of the 1.1 session, which ends, and is called anew.
func TestOlderRemote(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, m := f.client(alice, nil), f.model(bob)
		f.run(4 * time.Second)
		publish := func() {
			cc := m.contact()
			sealed, err := cc.Seal(bob, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			blinded, _ := bob.Public().Blind()
			f.mu.Lock()
			for i := range f.stored {
				f.stored[i][blinded] = sealed
			}
			f.mu.Unlock()
		}
		publish()
		a.table.Send(m.addr(), ipPacket("?x"))
		f.run(time.Second)
		want(t, "a", a.take(), "!x")
		m.forget()
		m.old = true
		publish()
		for i := range 30 {
			a.table.Send(m.addr(), ipPacket(fmt.Sprint("?", i)))
			f.run(500 * time.Millisecond)
		}
		if got := a.take(); len(got) < 10 || got[len(got)-1] != "!29" {
			t.Fatal(got, a.table.List())
		}
		if l := a.table.List(); len(l) != 1 || !l[0].Old {
			t.Fatalf("%+v", l)
		}
	})
}

// TestOldKey: what one key for both directions, and for good, would allow: our own messages sent back to us, an init played again after its session.
func TestOldKey(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		b.echo = true
		f.told(a, b, 3)
		seen := map[string]*flying{}
		f.lose = func(m *flying) bool {
			if m.from == a.sec.Public() {
				seen[m.what] = m
			}
			return false
		}
		a.send(b, "?x")
		f.run(time.Second)
		a.table.lock()
		a.table.affirm(a.table.remotes[b.addr()].call)
		a.table.unlock()
		a.outbound().current(time.Now()).(*fakePath).kill(true)
		f.run(time.Second)
		want(t, "a", a.take(), "!x")
		want(t, "b", b.take(), "?x")
		var s *session
		for _, s = range a.table.tags {
		}
		body := func(m *flying) []byte { return slices.Clone(m.msg[:len(m.msg)-tagSize-pivotSize]) }
		h, err := seen["switch"].handshake()
		if err != nil {
			t.Fatal(err)
		}
		before := a.table.Stats().DropReplayed
		back := a.pools[0].all()[0]
		a.table.datagram(nil, buffer(message(body(seen["data"]), s.own, nil), seen["data"].nonce))
		a.table.controlled(back, 1, message(body(seen["control"]), s.own, nil), seen["control"].nonce)
		inner := s.keys.switchNonce(seen["switch"].nonce)
		a.table.controlled(back, 1, message(slices.Clone(h.sealed), s.own, nil), inner)
		if n := a.table.Stats().DropReplayed - before; n != 3 || len(a.take()) > 0 {
			t.Fatal("our own messages come back to us:", n)
		}
		// The S of a switch is no message of its own at the other end either.
		before = b.table.Stats().DropReplayed
		b.table.controlled(b.pools[0].all()[0], 1, message(slices.Clone(h.sealed), s.keys.peer, nil), inner)
		if b.table.Stats().DropReplayed != before+1 {
			t.Fatal("S is taken again")
		}
		a.table.Send(b.addr(), ipPacket("last"))
		f.run(35 * time.Second)
		if len(a.with(b))+len(b.with(a)) != 0 {
			t.Fatal("still there")
		}
		taken := b.table.Stats().InitsTaken
		b.table.controlled(b.pools[0].all()[0], 1, message(body(seen["init"]), 0, nil), fillNonce(1))
		if s := b.table.Stats(); s.InitsTaken != taken || s.DropReplayed != before+2 {
			t.Fatalf("an old init is answered: %+v", s)
		}
	})
}

// TestBorrowedName: carol, whom alice called by the 1.0 handshake, calls bob under alice's name, with alice's signature. Where bob speaks 1.1 with alice that gets carol nothing; where she came
// first, what she had ends with alice's first word.
func TestBorrowedName(t *testing.T) {
	for _, late := range []bool{false, true} {
		inBubble(t, func(t *testing.T, f *fabric) {
			a, b := f.pair()
			b.echo = true
			via := b.pools[0].all()[0]
			i := &oldInitiator{self: a.sec, remote: carol.Public(), tag: 5}
			init, err := i.init(fillID(9))
			if err != nil {
				t.Fatal(err)
			}
			h, _ := parseHandshake(init)
			k, _ := seal.RelayPathKey(carol, h.eph, &h.nonce)
			inner, ok := seal.Open(h.sealed, &k, &h.nonce)
			if !ok {
				t.Fatal("not opened")
			}
			borrow := func() { b.table.controlled(via, 1, message(sealOldInner(b.sec.Public(), inner), 0, nil), fillNonce(1)) }
			if late {
				borrow()
				if l := b.with(a); len(l) != 1 || !l[0].Old {
					t.Fatalf("%+v", l)
				}
			}
			a.send(b, "?x")
			f.run(time.Second)
			want(t, "a", a.take(), "!x")
			if !late {
				borrow()
			}
			if l := b.with(a); len(l) != 1 || l[0].Old || !l[0].Current {
				t.Fatalf("%+v", l)
			}
			if dropped := b.table.Stats().DropType; (dropped == 1) == late {
				t.Error(dropped)
			}
			// A remote that has not spoken for half a minute may have become an older one.
			f.run(34 * time.Second)
			if !late {
				borrow()
				if l := b.with(a); len(l) != 1 || !l[0].Old {
					t.Fatalf("%+v", l)
				}
			}
		})
	}
}

// TestOldAcceptNonce: the nonce of an accept that made the session is remembered, and so is all that the session knew when it is accepted again.
func TestOldAcceptNonce(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a := f.client(alice, nil)
		m := f.model(bob)
		m.old = true
		f.run(4 * time.Second)
		a.know(m.contact())
		var controls []*flying
		var data []*flying
		f.lose = func(fl *flying) bool {
			if fl.from == bob.Public() && fl.what == "control" {
				controls = append(controls, fl)
			}
			if fl.from == bob.Public() && fl.what == "data" {
				data = append(data, fl)
			}
			return false
		}
		a.table.Send(m.addr(), ipPacket("?x"))
		f.run(time.Second)
		want(t, "a", a.take(), "!x")
		var s *session
		for _, s = range a.table.tags {
		}
		n := seal.Nonce(fillNonce(9))
		again := sealControl(nil, &s.keys.out, &n, methodAccept, oldAcceptParam(s.keys.peer+1))
		a.table.controlled(a.pools[0].all()[0], 1, message(again, s.own, nil), n)
		for _, now := range a.table.tags {
			if now == s || now.keys.peer != s.keys.peer+1 {
				t.Fatal("the second answer does not count")
			}
		}
		before := a.table.Stats().DropReplayed
		controls[0].land()
		data[0].land()
		if got := a.table.Stats().DropReplayed - before; got != 2 || len(a.take()) > 0 {
			t.Fatal(got)
		}
	})
}
