package testnet

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/path"
)

// TestPinned: a client with strict edges is connected to those only, also while one is dead; relays on its blacklist are in no path of its own drawing. (The last relay of a path to
// somebody else is that one's choice.)
func TestPinned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(t, Options{Relays: 12, Clients: 2, Latency: 10 * time.Millisecond, Seed: seed(t)})
		a, b := n.Clients[0], n.Clients[1]
		id := func(i int) key.Public { return n.Relays[i].Secret.Public() }
		strict, black := []key.Public{id(0), id(1), id(2)}, []key.Public{id(3), id(4), id(5)}
		a.Stop()
		a.options = func(o *path.Options) {
			o.StrictEdges, o.Blacklist, o.Edges = strict, black, len(strict)
		}
		a.Start()
		time.Sleep(30 * time.Second)
		f := a.Flow(b)
		built := map[path.Kind]int{}
		look := func() {
			t.Helper()
			for _, p := range a.Node.Paths() {
				built[p.Kind]++
				if !slices.Contains(strict, p.Hops[0]) {
					t.Errorf("a path begins with a relay that is no strict edge: %v", p)
				}
				drawn := p.Hops
				if p.Kind != path.Inbound {
					drawn = drawn[:len(drawn)-1]
				}
				for _, hop := range drawn {
					if slices.Contains(black, hop) {
						t.Errorf("a relay of the blacklist is in a path: %v", p)
					}
				}
			}
			w := a.wire.(*place)
			w.mu.Lock()
			defer w.mu.Unlock()
			for c := range w.conns {
				if c.Kind() == link.Client && !slices.Contains(strict, c.Remote()) {
					t.Errorf("connected to %v", c.Remote())
				}
			}
		}
		for seq := range uint64(20) {
			f.Ask(seq)
			look()
			time.Sleep(10 * time.Second)
			if seq == 8 {
				n.Relays[0].Kill()
			}
		}
		if f.Answered != 20 || built[path.Inbound] < 40 || built[path.Aligned] < 20 {
			t.Errorf("%d of 20 answered; paths seen: %v", f.Answered, built)
		}
	})
}
