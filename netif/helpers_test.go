package netif

import (
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

var seedFlag = flag.Uint64("seed", 0, "seed of random tests (also LOKINETD_SEED); 0: from the clock")

// random returns a source that can be repeated with the printed seed.
func random(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if s, err := strconv.ParseUint(os.Getenv("LOKINETD_SEED"), 10, 64); seed == 0 && err == nil {
		seed = s
	}
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// remoteN is the client whose key begins with n.
func remoteN(n int) key.Address {
	var a key.Address
	binary.BigEndian.PutUint32(a.Key[:], uint32(n))
	return a
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// ipPacket builds a packet with right checksums around a transport segment, whose checksum field is filled in.
func ipPacket(src, dst netip.Addr, proto uint8, seg []byte) []byte {
	seg = append([]byte(nil), seg...)
	at, ps := 0, packet.PseudoSum(src, dst, proto, len(seg))
	switch proto {
	case packet.ProtoTCP:
		at = 16
	case packet.ProtoUDP:
		at = 6
		binary.BigEndian.PutUint16(seg[4:], uint16(len(seg)))
	case packet.ProtoICMP:
		at, ps = 2, 0
	case packet.ProtoICMPv6:
		at = 2
	}
	if at != 0 {
		seg[at], seg[at+1] = 0, 0
		binary.BigEndian.PutUint16(seg[at:], ^packet.Sum(seg, ps))
	}
	if src.Is4() {
		b := make([]byte, 20)
		b[0], b[8], b[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(seg)))
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b, 0))
		return append(b, seg...)
	}
	b := make([]byte, 40)
	b[0], b[6], b[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(seg)))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(b, seg...)
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
	if ip.Version == 4 && packet.Sum(b[:ip.Header], 0) != 0xffff {
		return false
	}
	seg := b[ip.Header:ip.Len]
	switch ip.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMPv6:
		return packet.Sum(seg, packet.PseudoSum(ip.Src, ip.Dst, ip.Proto, len(seg))) == 0xffff
	case packet.ProtoICMP:
		return packet.Sum(seg, 0) == 0xffff
	}
	return true
}
