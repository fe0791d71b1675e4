package packet

import (
	"encoding/binary"
	"net/netip"
)

// Rewriting a packet's addresses (protocol 4 section 4.1 with the corrections of protocol/README):
//
//  1. ParseIP finds the transport header and the checksum that covers the addresses, if it lies in this fragment.
//  2. The difference between old and new addresses, as a one's-complement sum, goes into the IPv4 header's checksum and the
//     transport's. A wrong checksum stays wrong; nothing is recomputed.
//  3. UDP and UDP-Lite: a result of 0x0000 is written 0xFFFF, for 0 means "none". All others: 0xFFFF is written 0x0000.
//  4. An ICMP error carries the packet it is about, with the same two addresses the other way round. RewriteError does steps 1 to 3
//     on that packet too, and the error's own checksum takes in all of that.
//
// Zero addresses are what travels in the tunnel: Rewrite to the unspecified addresses, and the receiver writes its own.

// Rewrite sets the addresses of the IP packet at the start of b, in place. src and dst are of the packet's family.
// The error is a Reason; b is then unchanged. ICMP errors are refused: RewriteError is for them.
func Rewrite(b []byte, src, dst netip.Addr) error {
	ip, err := ParseIP(b)
	if err != nil {
		return err
	}
	return ip.Rewrite(b, src, dst)
}

// Rewrite is the function Rewrite for a packet that is parsed already. ip.Src and ip.Dst are updated.
func (ip *IP) Rewrite(b []byte, src, dst netip.Addr) error {
	if ip.ICMPError() {
		return ErrOriginal
	}
	if r := ip.check(b, src, dst); r != 0 {
		return r
	}
	ip.write(b, src, dst)
	return nil
}

// RewriteError sets the addresses of an ICMP error, and those of the packet that it carries, which go the other way: that one gets
// dst as source and src as destination, whatever it had before. The packet carried may be cut anywhere behind its IP and extension headers. On
// the way out both addresses are unspecified; on the way in they are what the receiver's own map says. The error is a Reason; b is then unchanged.
func (ip *IP) RewriteError(b []byte, src, dst netip.Addr) error {
	o, r := ip.original(b)
	if r != 0 {
		return r
	}
	if r := ip.check(b, src, dst); r != 0 {
		return r
	}
	inner := b[ip.Header+8 : ip.Len]
	d := o.write(inner, dst, src)
	// ICMPv4 covers its payload only, ICMPv6 the addresses too; write does the latter.
	at := ip.Header + 2
	add(b[at:at+2], d, ip.Proto)
	ip.write(b, src, dst)
	return nil
}

func (ip *IP) check(b []byte, src, dst netip.Addr) Reason {
	if ip.Version == 4 && !(src.Is4() && dst.Is4()) || ip.Version == 6 && !(src.Is6() && dst.Is6()) {
		return ErrFamily
	}
	if len(b) < ip.Header {
		return ErrTruncated
	}
	return 0
}

// write sets the addresses and mends the checksums of the packet at the start of b. It returns the difference that all changed
// bytes make to a checksum over b.
func (ip *IP) write(b []byte, src, dst netip.Addr) (d uint32) {
	var addrs uint32
	if ip.Version == 4 {
		s, t := src.As4(), dst.As4()
		addrs = replace(b[12:16], s[:]) + replace(b[16:20], t[:])
		d = addrs + add(b[10:12], addrs, 0)
	} else {
		s, t := src.As16(), dst.As16()
		addrs = replace(b[8:24], s[:]) + replace(b[24:40], t[:])
		d = addrs
	}
	if ip.sum != 0 {
		d += add(b[ip.sum:ip.sum+2], addrs, ip.Proto)
	}
	ip.Src, ip.Dst = src, dst
	return d
}

// replace writes src over dst (both of the same even length, at most 16) and returns the difference, not folded: at most 16 * 0xFFFF.
func replace(dst, src []byte) (d uint32) {
	for i := 0; i < len(src); i += 2 {
		d += uint32(^binary.BigEndian.Uint16(dst[i:])) + uint32(binary.BigEndian.Uint16(src[i:]))
	}
	copy(dst, src)
	return d
}

// add takes the difference d into the checksum at field (RFC 1624) and returns the difference that the field itself makes.
// Sums of differences stay far below 1<<32 / 0xFFFF terms.
func add(field []byte, d uint32, proto uint8) uint32 {
	old := binary.BigEndian.Uint16(field)
	c := ^fold(uint32(^old) + uint32(fold(d)))
	if proto == ProtoUDP || proto == ProtoUDPLite {
		if c == 0 {
			c = 0xffff
		}
	} else if c == 0xffff {
		c = 0
	}
	binary.BigEndian.PutUint16(field, c)
	return uint32(^old) + uint32(c)
}

func fold(s uint32) uint16 {
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}

// Sum returns the one's-complement sum of b, added to the sum s, folded to 16 bits. An odd last byte counts as the high byte of a word. A
// packet's checksum is ^Sum over it, its own field being zero.
func Sum(b []byte, s uint16) uint16 {
	n := uint64(s)
	for len(b) >= 4 {
		n += uint64(binary.BigEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		n += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		n += uint64(b[0]) << 8
	}
	n = n>>32 + n&0xffffffff
	n = n>>32 + n&0xffffffff
	return fold(uint32(n>>16) + uint32(n&0xffff))
}

// PseudoSum returns the sum of the pseudo header of a transport segment of n bytes, to start Sum with. proto 58 over IPv6 is ICMPv6.
func PseudoSum(src, dst netip.Addr, proto uint8, n int) uint16 {
	var b [40]byte
	if src.Is4() {
		s, d := src.As4(), dst.As4()
		copy(b[:], s[:])
		copy(b[4:], d[:])
		b[9] = proto
		binary.BigEndian.PutUint16(b[10:], uint16(n))
		return Sum(b[:12], 0)
	}
	s, d := src.As16(), dst.As16()
	copy(b[:], s[:])
	copy(b[16:], d[:])
	binary.BigEndian.PutUint32(b[32:], uint32(n))
	b[39] = proto
	return Sum(b[:], 0)
}

// FillZeroUDP mends a whole UDP packet over IPv6 whose right checksum is 0 and was written so instead of 0xFFFF, as the TUN library's
// offload code does. It reports whether that was the case; any other packet is left alone.
func FillZeroUDP(b []byte) bool {
	ip, r := parse(b, true)
	if r != 0 || ip.Version != 6 || ip.Proto != ProtoUDP || ip.Fragment || len(b) < ip.Len || ip.Len < ip.Header+8 {
		return false
	}
	t := b[ip.Header:ip.Len]
	if t[6] != 0 || t[7] != 0 || Sum(t, PseudoSum(ip.Src, ip.Dst, ProtoUDP, len(t))) != 0xffff {
		return false
	}
	t[6], t[7] = 0xff, 0xff
	return true
}

// EchoReply turns an unfragmented echo request, ICMP or ICMPv6, into its answer in place: addresses swapped, hop limit 64, checksums mended.
// It reports whether it was one; any other packet is left alone.
func EchoReply(b []byte) bool {
	ip, r := parse(b, false)
	if r != 0 || !ip.Echo() || ip.Fragment {
		return false
	}
	reply := uint8(ICMPEchoReply)
	if ip.Version == 4 {
		old := [2]byte{b[8], b[9]}
		b[8] = 64
		add(b[10:12], uint32(^binary.BigEndian.Uint16(old[:]))+uint32(binary.BigEndian.Uint16(b[8:])), 0)
	} else {
		reply = ICMPv6EchoReply
		b[7] = 64
	}
	t := b[ip.Header:]
	old := binary.BigEndian.Uint16(t)
	t[0] = reply
	add(t[2:4], uint32(^old)+uint32(binary.BigEndian.Uint16(t)), 0)
	ip.sum = 0
	ip.write(b, ip.Dst, ip.Src) // a swap changes no checksum but for the form of zero
	return true
}
