package netif

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Lengths of the ranges that endpoints get (protocol 4 section 6.2).
const (
	BrowsingBits4 = 16 // 65,533 remotes at a time
	ServiceBits4  = 20 // 4,093
	Bits6         = 64
)

var (
	ranges4 = []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.168.0.0/16")}
	range6  = netip.MustParsePrefix("fd2e:7365:7368::/48") // ".sesh"
)

// ErrNoRange: the host uses addresses in every range that could be taken.
var ErrNoRange = errors.New("netif: no free address range")

// FreeIPv4 finds a range of the given length (8 to 30 bits) that overlaps none of taken: in 172.16.0.0/12, then 10.0.0.0/8, then
// 192.168.0.0/16, in steps of its own size. It returns the range's first host, which is our own address, with the length. prefer, if
// valid, is taken when it is free: the range of an earlier start. Error: ErrNoRange.
func FreeIPv4(taken []netip.Prefix, bits int, prefer netip.Prefix) (netip.Prefix, error) {
	if bits < 8 || bits > 30 {
		return netip.Prefix{}, fmt.Errorf("netif: ipv4 range of /%d: want /8 to /30", bits)
	}
	if prefer.IsValid() && prefer.Addr().Is4() && prefer.Bits() == bits && free(taken, prefer) {
		return prefer, nil
	}
	for _, r := range ranges4 {
		if bits < r.Bits() {
			continue
		}
		first := binary.BigEndian.Uint32(r.Addr().AsSlice())
		for n := range uint32(1) << (bits - r.Bits()) {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], first+n<<(32-bits))
			if p := netip.PrefixFrom(netip.AddrFrom4(b), bits); free(taken, p) {
				return netip.PrefixFrom(p.Addr().Next(), bits), nil
			}
		}
	}
	return netip.Prefix{}, ErrNoRange
}

// FreeIPv6 is FreeIPv4 for a range of 48 to 64 bits inside fd2e:7365:7368::/48.
func FreeIPv6(taken []netip.Prefix, bits int, prefer netip.Prefix) (netip.Prefix, error) {
	if bits < 48 || bits > 64 {
		return netip.Prefix{}, fmt.Errorf("netif: ipv6 range of /%d: want /48 to /64", bits)
	}
	if prefer.IsValid() && prefer.Addr().Is6() && prefer.Bits() == bits && free(taken, prefer) {
		return prefer, nil
	}
	b := range6.Addr().As16()
	for n := range uint64(1) << (bits - range6.Bits()) {
		binary.BigEndian.PutUint16(b[6:], uint16(n<<(64-bits)))
		if p := netip.PrefixFrom(netip.AddrFrom16(b), bits); free(taken, p) {
			return netip.PrefixFrom(p.Addr().Next(), bits), nil
		}
	}
	return netip.Prefix{}, ErrNoRange
}

func free(taken []netip.Prefix, p netip.Prefix) bool {
	_, ok := overlap(taken, p)
	return !ok
}

func overlap(taken []netip.Prefix, p netip.Prefix) (netip.Prefix, bool) {
	for _, t := range taken {
		if t.Overlaps(p) {
			return t, true
		}
	}
	return netip.Prefix{}, false
}

// catchAll reports whether a route to p says nothing about who uses the addresses in it: a default route, or the halves and other large
// blocks by which VPNs replace one.
func catchAll(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() < 8
	}
	return p.Bits() < 16
}
