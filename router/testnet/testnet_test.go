package testnet

import (
	"context"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/session"
)

// seed is printed by every test and can be given in LOKINETD_SEED.
func seed(t *testing.T) uint64 {
	if text := os.Getenv("LOKINETD_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return 1
}

// bothWires runs a test in a bubble over each wire.
func bothWires(t *testing.T, test func(t *testing.T, quic bool)) {
	for _, quic := range []bool{false, true} {
		t.Run(map[bool]string{false: "direct", true: "QUIC"}[quic], func(t *testing.T) {
			buffers, wall := packet.InUse(), time.Now()
			synctest.Test(t, func(t *testing.T) { test(t, quic) })
			if left := packet.InUse() - buffers; left != 0 {
				t.Errorf("%d packet buffers were not released", left)
			}
			t.Logf("took %v", time.Since(wall))
		})
	}
}

// Two clients find each other over three hops from each side and exchange
// messages; a relay is reached by its .snode address.
func TestTwoClients(t *testing.T) {
	bothWires(t, func(t *testing.T, quic bool) {
		n := New(t, Options{Relays: 8, Clients: 2, Latency: 10 * time.Millisecond, Seed: seed(t), QUIC: quic})
		a, b := n.Clients[0], n.Clients[1]
		time.Sleep(5 * time.Second)
		if p := b.Endpoint.Sessions.Publication(); !p.Reachable(time.Now()) {
			t.Fatalf("the contact is not published: %+v", p)
		}
		for _, p := range a.Endpoint.Sessions.Inbound(time.Now()) {
			if len(p.Hops()) != 3 {
				t.Errorf("a path of %d hops", len(p.Hops()))
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		start := time.Now()
		if err := a.Endpoint.Sessions.Connect(ctx, b.Address()); err != nil {
			t.Fatalf("no session: %v", err)
		}
		t.Logf("session after %v", time.Since(start))
		f := a.Flow(b)
		for i := range uint64(60) {
			if !f.Ask(i) {
				t.Errorf("message %d is lost", i)
			}
		}
		if f.Slowest > time.Second {
			t.Errorf("the slowest answer took %v", f.Slowest)
		}
		relay := key.Address{Key: n.Relays[0].Secret.Public(), Kind: key.Relay}
		if err := a.Endpoint.Sessions.Connect(ctx, relay); err != nil {
			t.Errorf("no session with a relay: %v", err)
		}
	})
}

// sessionTo gives h's session with o that is in use.
func (h *Host) sessionTo(t *testing.T, o *Host) session.Info {
	t.Helper()
	for _, i := range h.Endpoint.Sessions.List() {
		if i.Current && i.Remote == o.Address() {
			return i
		}
	}
	t.Fatalf("%v has no session with %v", h, o)
	return session.Info{}
}

func (n *Net) relay(t *testing.T, id key.Public) *Host {
	t.Helper()
	for _, h := range n.Relays {
		if h.Secret.Public() == id {
			return h
		}
	}
	t.Fatal("no such relay")
	return nil
}

// A relay of the session's path, each in turn, stops in good order and comes back, restarts, and dies without a word, under one message a second each way:
// none is lost.
func TestFaults(t *testing.T) {
	bothWires(t, func(t *testing.T, quic bool) {
		n := New(t, Options{Relays: 10, Clients: 2, Latency: 10 * time.Millisecond, Seed: seed(t), QUIC: quic})
		a, b := n.Clients[0], n.Clients[1]
		time.Sleep(5 * time.Second)
		hops := []string{"edge", "middle relay", "pivot"}
		if quic && raceEnabled {
			hops = hops[:1]
		}
		d := time.Minute + time.Duration(len(hops))*3*90*time.Second
		talks := []*talk{converse(a.Flow(b), 0, d), converse(b.Flow(a), 500*time.Millisecond, d)}
		forth, back := talks[0].f, talks[1].f
		time.Sleep(20 * time.Second)
		for hop, what := range hops {
			for _, fault := range []string{"stopped", "restarted", "killed"} {
				time.Sleep(40 * time.Second)
				forth.longest()
				back.longest()
				h := n.relay(t, a.sessionTo(t, b).Hops[hop])
				if fault == "stopped" {
					h.Stop()
				} else {
					h.Kill()
				}
				if fault == "restarted" {
					time.Sleep(time.Second)
					h.Start()
				}
				time.Sleep(50 * time.Second)
				there, here := forth.longest(), back.longest()
				t.Logf("%s %s: the longest silence lasted %v and %v", what, fault, there, here)
				if max(there, here) > 10*time.Second { // TestSilentDeath looks closer
					t.Errorf("%s %s: silence", what, fault)
				}
				if fault != "restarted" {
					h.Start()
				}
			}
		}
		for _, k := range talks {
			k.wait()
			if k.f.Lost > 0 {
				t.Errorf("%d of %d messages are lost", k.f.Lost, k.f.Sent)
			}
		}
	})
}
