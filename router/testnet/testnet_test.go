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

// A relay restarts, an edge goes away for a while, and the pivot dies, under
// one message a second: none is lost.
func TestFaults(t *testing.T) {
	bothWires(t, func(t *testing.T, quic bool) {
		n := New(t, Options{Relays: 10, Clients: 2, Latency: 10 * time.Millisecond, Seed: seed(t), QUIC: quic})
		a, b := n.Clients[0], n.Clients[1]
		time.Sleep(5 * time.Second)
		f := a.Flow(b)
		seq := uint64(0)
		talk := func(d time.Duration) {
			t.Helper()
			for end := time.Now().Add(d); time.Now().Before(end); seq++ {
				if !f.Ask(seq) {
					t.Errorf("message %d is lost", seq)
				}
				time.Sleep(time.Second)
			}
		}
		talk(20 * time.Second)
		hops := func() []key.Public { // of a's present path to b, the edge first
			for _, i := range a.Endpoint.Sessions.List() {
				if i.Current {
					return i.Hops
				}
			}
			t.Fatal("no session")
			return nil
		}
		host := func(id key.Public) *Host {
			for _, h := range n.Relays {
				if h.Secret.Public() == id {
					return h
				}
			}
			t.Fatal("no such relay")
			return nil
		}
		for _, c := range []struct {
			what string
			hop  int
		}{{"edge", 0}, {"middle relay", 1}, {"pivot", 2}} {
			h := host(hops()[c.hop])
			h.Stop()
			talk(30 * time.Second)
			h.Start()
			talk(60 * time.Second)
			h = host(hops()[c.hop])
			h.Kill()
			time.Sleep(time.Second)
			h.Start()
			talk(90 * time.Second)
			t.Logf("%s stopped and restarted: %d messages, the slowest answered after %v", c.what, f.Answered, f.Slowest)
		}
	})
}
