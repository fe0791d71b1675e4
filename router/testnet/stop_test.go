package testnet

import (
	"context"
	"testing"
	"time"
)

// TestStop: a client that stops says so, and the other end has no session with it as soon as that has crossed the network.
func TestStop(t *testing.T) {
	bothWires(t, func(t *testing.T, quic bool) {
		n := New(t, Options{Relays: 8, Clients: 2, Latency: 10 * time.Millisecond, Seed: seed(t), QUIC: quic})
		a, b := n.Clients[0], n.Clients[1]
		time.Sleep(5 * time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := a.Endpoint.Sessions.Connect(ctx, b.Address()); err != nil {
			t.Fatal(err)
		}
		if !a.Flow(b).Ask(0) || len(b.Endpoint.Sessions.List()) == 0 {
			t.Fatal("no session at the other end")
		}
		a.Stop()
		time.Sleep(100 * time.Millisecond)
		if l := b.Endpoint.Sessions.List(); len(l) != 0 {
			t.Errorf("it still has %+v", l)
		}
	})
}
