package netif

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// noted is links that note what the pump says to them, as letters: room, cork, packet, uncork.
type noted struct{ calls string }

func (n *noted) AwaitRoom(ctx context.Context, most time.Duration) {
	n.calls += "r"
	select {
	case <-time.After(most):
	case <-ctx.Done():
	}
}
func (n *noted) Cork()   { n.calls += "c" }
func (n *noted) Uncork() { n.calls += "u" }

// The pump asks for room before each read, and tells the links of batches but not of single packets.
func TestLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var links noted
		tun := NewMemTUN(3)
		p := NewPump(tun, nil)
		p.Links = &links
		m, err := NewMap(alice, alice4, alice6)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Add(m, Inbound{}, tunnelFunc(func(_ key.Address, b *packet.Buffer) bool {
			links.calls += "p"
			b.Release()
			return true
		})); err != nil {
			t.Fatal(err)
		}
		if _, err := m.IPv4(bob, time.Now()); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			tun.Send(udp(alice4.Addr(), bobAtAlice4, 1, 2, "x"))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := p.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if want := "rcpppurpr"; links.calls != want {
			t.Errorf("%s, want %s", links.calls, want)
		}
	})
}
