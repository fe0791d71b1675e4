package session

// Who may have sessions with a client that has a list, and how many.

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/seal"
)

// list is what Config.Only asks.
type list struct {
	now atomic.Pointer[map[key.Public]bool]
}

func (l *list) set(all ...*node) {
	m := map[key.Public]bool{}
	for _, n := range all {
		m[n.sec.Public()] = true
	}
	l.now.Store(&m)
}
func (l *list) has(k key.Public, proven bool) bool { return (*l.now.Load())[k] && proven }

// TestOnly: who is on the list calls and is answered; who is not gets no answer; who is struck off is told good-bye, and comes back in neither way: not by an init of its own,
// and not because something here still sends to it.
func TestOnly(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		var l list
		a, c := f.client(alice, nil), f.client(carol, nil)
		l.set(a)
		b := f.client(bob, func(c *Config) { c.Only = l.has })
		b.echo = true
		f.run(4 * time.Second)
		a.send(b, "?a")
		c.send(b, "?c")
		f.run(2 * time.Second)
		want(t, "who is listed", a.take(), "!a")
		want(t, "who is not", c.take())
		if len(b.with(a)) != 1 || len(b.with(c)) != 0 || b.table.Stats().DropRefused == 0 {
			t.Fatalf("%+v", b.table.List())
		}
		want(t, "b", b.take(), "?a")

		l.set(a, c) // from the next init on: nobody has to wait for anything else
		b.table.Recheck()
		f.wait(15*time.Second, "an answer", func() bool { c.send(b, "?c"); return len(c.take()) > 0 })
		if len(b.with(a)) != 1 {
			t.Fatal("the other session was touched")
		}
		f.run(time.Second)
		b.take()
		c.take()

		l.set(c)
		b.table.Recheck()
		if len(b.with(a)) != 0 || len(b.with(c)) != 1 {
			t.Fatalf("%+v", b.table.List())
		}
		f.run(time.Second)
		if len(a.with(b)) != 0 {
			t.Fatal("who was struck off was not told")
		}
		if b.send(a, "x") || !errors.Is(b.why[len(b.why)-1], ErrNotAllowed) { // a program's retransmission
			t.Fatal(b.why)
		}
		if err := b.table.Connect(t.Context(), a.addr()); err != ErrNotAllowed {
			t.Fatal(err)
		}
		for range 10 {
			a.send(b, "?again")
			f.run(time.Second)
		}
		want(t, "who was struck off", a.take())
		want(t, "b", b.take())
		if len(b.with(a)) != 0 {
			t.Fatalf("%+v", b.with(a))
		}
		c.send(b, "?on")
		f.run(time.Second)
		want(t, "who is still listed", c.take(), "!on")
	})
}

// TestOnlyWhoWeCall: what waits for a client that is struck off fails at once.
func TestOnlyWhoWeCall(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		var l list
		a := f.client(alice, nil)
		l.set(a)
		b := f.client(bob, func(c *Config) { c.Only = l.has })
		f.run(4 * time.Second)
		f.lose = func(m *flying) bool { return true }
		failed := make(chan error, 1)
		go func() { failed <- b.table.Connect(t.Context(), a.addr()) }()
		f.run(time.Second)
		l.set()
		b.table.Recheck()
		if err := <-failed; err != ErrNotAllowed {
			t.Fatal(err)
		}
		f.run(time.Second)
		if len(b.table.List()) != 0 || len(b.table.pending) != 0 {
			t.Fatalf("%+v", b.table.List())
		}
	})
}

// TestSetLimits: how many may come changes while the Table runs, and those that are there stay.
func TestSetLimits(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, c := f.client(alice, nil), f.client(carol, nil)
		b := f.client(bob, func(c *Config) { c.Limits.Sessions = 1 })
		b.echo = true
		f.run(4 * time.Second)
		a.send(b, "?a")
		f.run(time.Second)
		want(t, "the first", a.take(), "!a")
		c.send(b, "?c")
		f.run(time.Second)
		if len(c.take()) != 0 || b.table.Stats().DropFull == 0 {
			t.Fatalf("%+v", b.table.List())
		}
		b.table.SetLimits(2, 0)
		f.wait(10*time.Second, "the second", func() bool { a.send(b, "a"); c.send(b, "?c"); return len(c.take()) > 0 })
		b.table.SetLimits(1, 1)
		f.run(time.Second)
		if len(b.with(a)) != 1 || len(b.with(c)) != 1 {
			t.Fatalf("%+v", b.table.List())
		}
		// One init a second, and half of that over one path.
		before := b.table.Stats()
		for range 100 {
			b.table.called(b.pools[0].current(time.Now()).(*fakePath), handshake{kind: kindInit, box: []byte("x")}, time.Now())
		}
		if s := b.table.Stats(); s.DropRate-before.DropRate < 95 {
			t.Fatalf("%+v", s)
		}
	})
}

// TestOnlyProven: where there is a list, nobody is taken for who stands in a 1.0 init. That is borrowed here, as in TestBorrowedName: carol, whom alice called, has from it what alice signed.
func TestOnlyProven(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		open := true
		a := f.client(alice, nil)
		b := f.client(bob, func(c *Config) {
			c.Only = func(k key.Public, proven bool) bool { return open || k == a.sec.Public() && proven }
		})
		f.run(4 * time.Second)
		borrow := func(tag uint32) {
			t.Helper()
			i := &oldInitiator{self: a.sec, remote: carol.Public(), tag: tag}
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
			b.table.controlled(b.pools[0].all()[0], 1, message(sealOldInner(b.sec.Public(), inner), 0, nil), fillNonce(byte(tag)))
		}
		borrow(5)
		if l := b.with(a); len(l) != 1 || !l[0].Old {
			t.Fatalf("%+v", l)
		}
		open = false
		b.table.Recheck()
		borrow(6)
		if l := b.with(a); len(l) != 0 || b.table.Stats().DropRefused != 1 {
			t.Fatalf("%+v, %+v", l, b.table.Stats())
		}
		b.echo = true
		a.send(b, "?x")
		f.run(2 * time.Second)
		want(t, "alice herself", a.take(), "!x")
	})
}

// TestRestartAtLimit: a remote that restarts takes the place of its own silent session where there is no other; a copy of its old init does not take that of one in use.
func TestRestartAtLimit(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		b := f.client(bob, func(c *Config) { c.Limits.Sessions = 1 })
		a := f.client(alice, nil)
		f.run(5 * time.Second)
		b.echo = true
		var first *flying
		f.lose = func(m *flying) bool {
			if m.what == "init" && first == nil {
				first = m
			}
			return false
		}
		a.send(b, "?x")
		f.run(time.Second)
		want(t, "a", a.take(), "!x")
		a.crash(nil)
		start := time.Now()
		f.wait(30*time.Second, "an answer after the restart", func() bool {
			a.send(b, "?y")
			return len(a.take()) > 0
		})
		if d := time.Since(start); d > 12*time.Second {
			t.Errorf("took %v", d)
		}
		a.send(b, "?z")
		f.run(time.Second)
		before := b.table.Stats().DropFull
		first.land()
		if l := b.with(a); b.table.Stats().DropFull != before+1 || len(l) != 1 || l[0].State != Established {
			t.Errorf("%+v", l)
		}
	})
}
