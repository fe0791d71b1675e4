package link

import (
	"fmt"
	"testing"

	"lokinetd/router/packet"
)

// BenchmarkFrame is a datagram's way into frames and out of them again, without quic-go; what does not fit into one takes two.
func BenchmarkFrame(b *testing.B) {
	piece := pieceOf(1452)
	for _, size := range []int{100, 600, 1200, 2000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			var s splitter
			var j joiner
			p := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				d := packet.Get()
				d.Set(p)
				c := s.cut(size, piece)
				d.Prepend(dgidSize)
				for i := range c.frames {
					if whole, _ := j.add(c.frame(d.Data, i)); whole != nil {
						whole.Release()
					}
				}
				d.Release()
			}
		})
	}
}
