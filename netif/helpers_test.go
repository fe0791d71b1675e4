package netif

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/testkit"
)

func random(t testing.TB) *rand.Rand { return testkit.Rand(t).Rand }

// remoteN is the client whose key begins with n.
func remoteN(n int) key.Address {
	var a key.Address
	binary.BigEndian.PutUint32(a.Key[:], uint32(n))
	return a
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// ipPacket builds a packet with right checksums around a transport segment, whose checksum and, for UDP, length are filled in.
func ipPacket(src, dst netip.Addr, proto uint8, seg []byte) []byte {
	if proto == packet.ProtoUDP {
		seg = bytes.Clone(seg)
		binary.BigEndian.PutUint16(seg[4:], uint16(len(seg)))
	}
	if src.Is4() {
		return testkit.IP4(src, dst, int(proto), nil, seg)
	}
	return testkit.IP6(src, dst, int(proto), int(proto), nil, seg)
}

func ports(src, dst uint16, n int) []byte {
	b := make([]byte, n)
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	return b
}

func udp(src, dst netip.Addr, sport, dport uint16, data string) []byte {
	return ipPacket(src, dst, packet.ProtoUDP, append(ports(sport, dport, 8), data...))
}

func tcp(src, dst netip.Addr, sport, dport uint16, flags byte) []byte {
	seg := ports(sport, dport, 20)
	seg[12], seg[13] = 0x50, flags
	return ipPacket(src, dst, packet.ProtoTCP, seg)
}

func icmp(src, dst netip.Addr, typ, code byte, rest []byte) []byte {
	proto := uint8(packet.ProtoICMP)
	if src.Is6() {
		proto = packet.ProtoICMPv6
	}
	return ipPacket(src, dst, proto, append([]byte{typ, code, 0, 0}, rest...))
}

// sumsRight reports whether the header and transport checksums of an unfragmented packet are right.
func sumsRight(b []byte) bool {
	ip, err := packet.ParseIP(b)
	if err != nil {
		return false
	}
	if ip.Version == 4 && testkit.Residue(b[:ip.Header]) != 0 {
		return false
	}
	seg := b[ip.Header:ip.Len]
	switch ip.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMPv6:
		return testkit.Residue(testkit.Pseudo(ip.Src, ip.Dst, int(ip.Proto), len(seg)), seg) == 0
	case packet.ProtoICMP:
		return testkit.Residue(seg) == 0
	}
	return true
}
