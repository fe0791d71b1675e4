//go:build !race

package testnet

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
)

// The operators remove a relay and add another. Clients that still have the old network file learn of it from the relays: paths over the one end, the other comes into use.
func TestRegisteredSetChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const relays = 12
		n := New(t, Options{Relays: relays, Clients: 2, Latency: 10 * time.Millisecond, Seed: seed(t)})
		time.Sleep(20 * time.Second)
		goes := n.Relays[0].Secret.Public()
		comes := &Host{net: n, relay: true, Secret: key.Generate(), addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{20, relays, 0, 1}), 1190)}
		old := n.file
		next := *old
		next.Serial++
		next.Relays = append(append([]key.Public(nil), old.Relays[1:]...), comes.Secret.Public())
		n.file = &next
		n.Relays = append(n.Relays, comes)
		comes.Start() // knows the others from the file's contacts; they learn of it by gossip
		for _, h := range n.Relays {
			h.Node.SetNetwork(&next)
		}
		start := time.Now()
		uses := func(h *Host, relay key.Public) bool {
			for _, p := range h.Endpoint.Sessions.Inbound(time.Now()) {
				for _, id := range p.Hops() {
					if id == relay {
						return true
					}
				}
			}
			return false
		}
		var came, last [2]time.Duration
		for range 3 * 60 {
			time.Sleep(time.Minute)
			for i, h := range n.Clients {
				if came[i] == 0 && uses(h, comes.Secret.Public()) {
					came[i] = time.Since(start)
				}
				if uses(h, goes) {
					last[i] = time.Since(start)
				}
			}
		}
		t.Logf("the new relay is used after %v, the removed one for the last time after %v", came, last)
		for i := range came {
			if came[i] == 0 || last[i] > 2*time.Hour {
				t.Error("a client does not follow")
			}
		}
	})
}
