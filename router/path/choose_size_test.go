//go:build !race

package path

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

// among is a chooser that knows so many relays, four of them as edges, a tenth of ill fame. heap is what it takes of it, in bytes.
func among(t testing.TB, relays int) (c chooser, heap uint64) {
	used := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := used()
	store, err := netdb.OpenStore("", key.Public{}, false, netdb.Rules{Private: true, Network: 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c = chooser{store: store, now: time.Now(), unique: 24, profile: &profile{on: true}, black: map[key.Public]bool{}, wary: true}
	for i := range relays {
		sec := key.Generate()
		contact := netdb.SignRelayContact(sec, netdb.RelayContact{
			ID: sec.Public(), Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), 1090),
			Time: time.Now().Truncate(time.Second), Version: [3]uint8{1, 0, 2}, Network: 2,
		})
		if stored, _ := store.Put(contact); !stored {
			t.Fatal("not stored")
		}
		if i < 4 {
			c.edges = append(c.edges, edge{contact, newTapLink()})
		}
		if i%10 == 0 {
			c.profile.fellSilent([]key.Public{contact.ID}, c.now, c.now)
		}
	}
	after := used()
	return c, after - min(before, after)
}

// TestChooseAmongMany: with 1,000 relays known, the relays of a path are chosen in less than 1 ms. The best of many runs counts, so that a busy machine does not.
func TestChooseAmongMany(t *testing.T) {
	c, _ := among(t, 1000)
	best := time.Hour
	for range 200 {
		began := time.Now()
		if hops, _, err := c.inbound(3, 1, nil); err != nil || len(hops) != 3 {
			t.Fatal(hops, err)
		}
		best = min(best, time.Since(began))
	}
	t.Logf("%v", best)
	if best > time.Millisecond {
		t.Errorf("took %v", best)
	}
}

// BenchmarkChoose is the choice of the relays of an inbound path, and what a client remembers of each relay that it knows.
func BenchmarkChoose(b *testing.B) {
	for _, relays := range []int{500, 1000} {
		c, heap := among(b, relays)
		b.Run(fmt.Sprint(relays), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := c.inbound(3, 1, nil); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(heap)/float64(relays), "heap-B/relay")
		})
	}
}
