package netif

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// BenchmarkFlow is the flow table's share of a packet: one of a flow goes out, its answer comes in, with so many flows known. Each remote has
// at most 8,192.
func BenchmarkFlow(b *testing.B) {
	for _, known := range []int{1, 1000, 60000} {
		remotes := make([]key.Address, (known+maxRemoteFlows-1)/maxRemoteFlows)
		for i := range remotes {
			binary.BigEndian.PutUint32(remotes[i].Key[:], uint32(i))
		}
		here, there := netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("172.16.0.2")
		var in Inbound
		now := time.Now()
		make := func(b *testing.B) (f *flows, out, back []packet.IP) {
			f = newFlows()
			for i := range known {
				// An answer is a packet the other way round.
				o, err := packet.ParseIP(udp(here, there, uint16(i), 53, "query"))
				a, err2 := packet.ParseIP(udp(there, here, 53, uint16(i), "answer"))
				if err != nil || err2 != nil {
					b.Fatal(err, err2)
				}
				out, back = append(out, o), append(back, a)
				f.out(remotes[i%len(remotes)], &out[i], &in, now)
			}
			return f, out, back
		}
		b.Run(fmt.Sprintf("out/%d", known), func(b *testing.B) {
			f, out, _ := make(b)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if f.out(remotes[i%known%len(remotes)], &out[i%known], &in, now) != pass {
					b.Fatal("refused")
				}
			}
		})
		b.Run(fmt.Sprintf("in/%d", known), func(b *testing.B) {
			f, _, back := make(b)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if f.in(remotes[i%known%len(remotes)], &back[i%known], nil, &in, now) != pass {
					b.Fatal("refused")
				}
			}
		})
	}
}
