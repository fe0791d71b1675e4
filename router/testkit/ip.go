package testkit

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// Checksums a byte at a time, over the whole of what is covered, in plain arithmetic modulo 65535.

// Residue is the one's-complement sum of all parts modulo 65535; 0 for valid checksums.
func Residue(parts ...[]byte) int {
	s := 0
	for _, p := range parts {
		for i, c := range p {
			if i%2 == 0 {
				s += int(c) << 8
			} else {
				s += int(c)
			}
		}
	}
	return s % 65535
}

// Pseudo is the pseudo header of a segment of n bytes. Two zeros more or less make no difference to a sum, so that it is IPv4's as well.
func Pseudo(src, dst netip.Addr, proto, n int) []byte {
	p := append(src.AsSlice(), dst.AsSlice()...)
	return append(p, byte(n>>24), byte(n>>16), byte(n>>8), byte(n), 0, 0, 0, byte(proto))
}

// SumOffset is where a protocol keeps the checksum that covers the addresses; -1: it has none.
func SumOffset(version, proto int) int {
	switch {
	case proto == 6:
		return 16
	case proto == 17 || proto == 136 || proto == 33:
		return 6
	case proto == 58 && version == 6:
		return 2
	}
	return -1
}

// SetSum computes the whole checksum at seg[at:] over pseudo header and segment. UDP and UDP-Lite write 0 as 0xFFFF.
func SetSum(seg []byte, at, proto int, pseudo []byte) {
	seg[at], seg[at+1] = 0, 0
	r := 65535 - Residue(pseudo, seg) // 1..65535
	if proto != 17 && proto != 136 {
		r %= 65535
	}
	binary.BigEndian.PutUint16(seg[at:], uint16(r))
}

// IP4 builds a whole packet with right checksums around a copy of seg. options are of a multiple of 4 bytes.
func IP4(src, dst netip.Addr, proto int, options, seg []byte) []byte {
	h := 20 + len(options)
	b := make([]byte, h, h+len(seg))
	b[0] = 0x40 | byte(h/4)
	b[8], b[9] = 64, byte(proto)
	binary.BigEndian.PutUint16(b[2:], uint16(h+len(seg)))
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	copy(b[20:], options)
	seg = bytes.Clone(seg)
	if at := SumOffset(4, proto); at >= 0 {
		SetSum(seg, at, proto, Pseudo(src, dst, proto, len(seg)))
	} else if proto == 1 {
		SetSum(seg, 2, 1, nil)
	}
	SetHeaderSum(b)
	return append(b, seg...)
}

// SetHeaderSum computes the checksum of the IPv4 header at the start of b.
func SetHeaderSum(b []byte) { SetSum(b[:int(b[0]&15)*4], 10, 0, nil) }

// IP6 is IP4 for IPv6. ext is a chain of extension headers, already linked from first up to proto.
func IP6(src, dst netip.Addr, first, proto int, ext, seg []byte) []byte {
	b := make([]byte, 40, 40+len(ext)+len(seg))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(ext)+len(seg)))
	b[6], b[7] = byte(first), 64
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	seg = bytes.Clone(seg)
	if at := SumOffset(6, proto); at >= 0 {
		SetSum(seg, at, proto, Pseudo(src, dst, proto, len(seg)))
	}
	return append(append(b, ext...), seg...)
}
