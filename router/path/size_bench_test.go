package path

import (
	"fmt"
	"testing"

	"lokinetd/router/packet"
	"lokinetd/router/seal"
)

// BenchmarkSize is what each role does with one datagram of a size, body and pivot id: a client wraps it for four hops and opens it, a relay
// forwards it (one layer) or turns it round (two).
func BenchmarkSize(b *testing.B) {
	for _, size := range []int{100, 600, 1200} {
		run := func(name string, make func(*testing.B) func()) {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				step := make(b)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					step()
				}
			})
		}
		run("wrap", func(b *testing.B) func() {
			_, p, link := benchPath(b)
			link.b = packet.Get()
			return func() {
				buf := link.b
				buf.Reset(size)
				p.Send(buf)
			}
		})
		run("open", func(b *testing.B) func() {
			c, p, link := benchPath(b)
			msg := aimed(size, p.edge, ID{}, nil)
			return func() { c.Datagram(link, buffer(msg)) }
		})
		run("forward", func(b *testing.B) func() {
			r, mesh, _ := lane(b)
			rx := fillID(1)
			mesh.b = buffer(aimed(size, rx, ID{}, nil))
			return func() {
				buf := mesh.b
				_, _, id, _ := split(buf.Data)
				*id = rx
				r.Datagram(buf)
			}
		})
		run("turn", func(b *testing.B) func() {
			r, mesh, _ := lane(b)
			msg := aimed(size, fillID(3), fillID(4), new(seal.NewHop(fill32(3))))
			return func() {
				r.Datagram(buffer(msg))
				mesh.b.Release()
			}
		})
	}
}
