//go:build !race

package session

import (
	"fmt"
	"testing"

	"lokinetd/router/packet"
)

// BenchmarkSize is an IP packet of a size sealed by one end and opened by the other, both in one goroutine.
func BenchmarkSize(b *testing.B) {
	for _, size := range []int{100, 600, 1200} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			got := 0
			from, _, to := joined(b, &got)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				p := packet.Get()
				clear(p.Reset(size))
				p.Data[0], p.Data[2], p.Data[3], p.Data[9] = 0x45, byte(size>>8), byte(size), 253
				from.Send(to, p)
			}
			if got == 0 {
				b.Fatal("nothing was delivered")
			}
		})
	}
}
