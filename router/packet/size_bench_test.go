package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
)

// BenchmarkRewriteSize: parse and rewrite a UDP packet, as every packet of a session is. The checksums are changed, not summed anew, so the size should not matter.
func BenchmarkRewriteSize(b *testing.B) {
	x, y := netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("172.16.0.2")
	for _, size := range []int{100, 600, 1200} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p := make([]byte, size)
			p[0], p[8], p[9] = 0x45, 64, 17
			binary.BigEndian.PutUint16(p[2:], uint16(size))
			binary.BigEndian.PutUint16(p[24:], uint16(size-20))
			p[26] = 1 // a checksum, of whatever
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				ip, err := ParseIP(p)
				if err != nil {
					b.Fatal(err)
				}
				if err := ip.Rewrite(p, x, y); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
