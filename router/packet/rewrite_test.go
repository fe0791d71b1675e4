package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"lokinetd/router/testkit"
)

func randAddr(r testkit.Source, version int) netip.Addr {
	var a [16]byte
	for i := range a {
		a[i] = byte(r.Uint32())
	}
	switch r.IntN(8) {
	case 0:
		a = [16]byte{}
	case 1:
		for i := range a {
			a[i] = 0xff
		}
	}
	if version == 4 {
		return netip.AddrFrom4([4]byte(a[:4]))
	}
	return netip.AddrFrom16(a)
}

func unspecified(version int) netip.Addr {
	if version == 4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func segment(r testkit.Source, proto, n int) []byte {
	s := make([]byte, n)
	switch r.IntN(4) {
	case 0: // sparse, so that sums near 0 and 0xFFFF occur
		s[r.IntN(n)] = byte(r.Uint32())
	case 1:
		for i := range s {
			s[i] = 0xff
		}
	default:
		for i := range s {
			s[i] = byte(r.Uint32())
		}
	}
	switch proto {
	case 6:
		s[12] = 5 << 4
	case 1, 58:
		s[0] = byte([]int{0, 8, 128, 129}[r.IntN(4)])
	}
	return s
}

var protos = []int{1, 6, 17, 33, 50, 51, 58, 59, 132, 135, 136, 139}

// TestRewriteDifferential: a random packet with right checksums, rewritten, equals the packet that the slow reference makes with the
// new addresses; and the same for every way of writing an ICMP error around it, cut anywhere.
func TestRewriteDifferential(t *testing.T) {
	r := testkit.Rand(t)
	for i := range 30000 {
		version, proto, n := 4+2*r.IntN(2), protos[r.IntN(len(protos))], 20+r.IntN(60)
		seg := segment(r, proto, n)
		extras := r.IntN(3)
		build := func(src, dst netip.Addr) []byte {
			if version == 4 {
				return testkit.IP4(src, dst, proto, make([]byte, 4*extras), seg)
			}
			switch extras {
			case 1: // destination options
				return testkit.IP6(src, dst, 60, proto, []byte{byte(proto), 0, 1, 4, 0, 0, 0, 0}, seg)
			case 2: // hop-by-hop, routing without segments left, atomic fragment
				return testkit.IP6(src, dst, 0, proto, []byte{43, 0, 1, 4, 0, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0, byte(proto), 0, 0, 0, 1, 2, 3, 4}, seg)
			}
			return testkit.IP6(src, dst, proto, proto, nil, seg)
		}
		src, dst, src2, dst2 := randAddr(r, version), randAddr(r, version), randAddr(r, version), randAddr(r, version)
		want, got := build(src2, dst2), build(src, dst)
		if err := Rewrite(got, src2, dst2); err != nil {
			t.Fatalf("round %d: version %d proto %d: %v", i, version, proto, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("round %d: version %d proto %d\n got %x\nwant %x", i, version, proto, got, want)
		}

		// An ICMP error about that packet, cut at a random place behind its headers; before the error it went from dst to src.
		icmpProto, icmpType, ipLen := 1, byte(3), 20+4*extras
		if version == 6 {
			icmpProto, icmpType, ipLen = 58, 1, 40+extras*(extras+1)*4
		}
		cut := ipLen + r.IntN(n+1)
		if at := testkit.SumOffset(version, proto); at >= 0 && cut == ipLen+at+1 {
			continue // half a checksum is refused
		}
		wrap := func(src, dst netip.Addr) []byte {
			inner := build(dst, src)
			if version == 4 {
				return testkit.IP4(src, dst, icmpProto, nil, append([]byte{icmpType, 1, 0, 0, 0, 0, 0, 0}, inner[:cut]...))
			}
			return testkit.IP6(src, dst, icmpProto, icmpProto, nil, append([]byte{icmpType, 3, 0, 0, 0, 0, 0, 0}, inner[:cut]...))
		}
		got, want = wrap(src, dst), wrap(src2, dst2)
		ip, err := ParseIP(got)
		if err != nil || !ip.ICMPError() {
			t.Fatalf("round %d: error about proto %d: %v, %+v", i, proto, err, ip)
		}
		if err := ip.Rewrite(got, src2, dst2); err != ErrOriginal {
			t.Fatalf("round %d: Rewrite of an ICMP error: %v", i, err)
		}
		if err := ip.RewriteError(got, src2, dst2); err != nil {
			t.Fatalf("round %d: version %d error about proto %d cut at %d: %v", i, version, proto, cut, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("round %d: version %d error about proto %d cut at %d\n got %x\nwant %x", i, version, proto, cut, got, want)
		}
	}
}

// TestRewriteFragments: fragments rewritten one by one and put together again equal the whole packet rewritten.
func TestRewriteFragments(t *testing.T) {
	r := testkit.Rand(t)
	for range 2000 {
		version, proto := 4+2*r.IntN(2), []int{6, 17, 58, 136}[r.IntN(4)]
		if proto == 58 && version == 4 {
			proto = 1
		}
		seg := segment(r, proto, 72+r.IntN(200))
		src, dst, src2, dst2 := randAddr(r, version), randAddr(r, version), randAddr(r, version), randAddr(r, version)
		whole := func(src, dst netip.Addr) []byte {
			if version == 4 {
				return testkit.IP4(src, dst, proto, nil, seg)[20:]
			}
			return testkit.IP6(src, dst, proto, proto, nil, seg)[40:]
		}
		data, want := whole(src, dst), whole(src2, dst2)
		var got []byte
		for at := 0; at < len(data); {
			n := min(8*(3+r.IntN(6)), len(data)-at)
			part := data[at : at+n]
			more := at+n < len(data)
			var f []byte
			if version == 4 {
				f = testkit.IP4(src, dst, 255, nil, part)
				f[9] = byte(proto)
				binary.BigEndian.PutUint16(f[6:], uint16(at/8))
				binary.BigEndian.PutUint16(f[4:], 77)
				if more {
					f[6] |= 0x20
				}
				testkit.SetHeaderSum(f)
			} else {
				h := []byte{byte(proto), 0, byte(at >> 8), byte(at), 0, 0, 0, 77}
				if more {
					h[3] |= 1
				}
				f = testkit.IP6(src, dst, 44, 255, h, part)
			}
			ip, err := ParseIP(f)
			if err != nil || !ip.Fragment || ip.More != more || ip.Offset != at || ip.FragmentID != 77 || ip.FirstPart() != ip.Transport || int(ip.Proto) != proto {
				t.Fatalf("fragment at %d: %v %+v", at, err, ip)
			}
			if err := ip.Rewrite(f, src2, dst2); err != nil {
				t.Fatal(err)
			}
			if version == 4 && testkit.Residue(f[:20]) != 0 {
				t.Fatal("header checksum of a fragment")
			}
			got = append(got, f[ip.Header:]...)
			at += n
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("version %d proto %d\n got %x\nwant %x", version, proto, got, want)
		}
	}
}

// TestRewriteVector is the worked example of protocol 4 section 4.2: a UDP packet with zero addresses and right checksum.
func TestRewriteVector(t *testing.T) {
	zero := testkit.Hex(t, "60000000000d11ff"+"0000000000000000000000000000000000000000000000000000000000000000"+"c35004d2000df3df68656c6c6f")
	src, dst := netip.MustParseAddr("fd2e:7365:7368::1"), netip.MustParseAddr("fd2e:7365:7368:0:a0a1:a2a3:a4a5:a6a7")
	b := bytes.Clone(zero)
	if err := Rewrite(b, src, dst); err != nil {
		t.Fatal(err)
	}
	if testkit.Residue(testkit.Pseudo(src, dst, 17, 13), b[40:]) != 0 {
		t.Fatalf("checksum of %x", b)
	}
	if err := Rewrite(b, netip.IPv6Unspecified(), netip.IPv6Unspecified()); err != nil || !bytes.Equal(b, zero) {
		t.Fatalf("%v: %x", err, b)
	}
}

func TestParseIP(t *testing.T) {
	a4, b4 := netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("172.16.0.2")
	a6, b6 := netip.MustParseAddr("fd2e:7365:7368::1"), netip.MustParseAddr("fd2e:7365:7368::2")
	udp := []byte{0x12, 0x34, 0, 53, 0, 8, 0, 0}
	tcp := append([]byte{0x12, 0x34, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02}, make([]byte, 6)...)
	zeroSum := func(b []byte, at int) []byte { b[at], b[at+1] = 0, 0; return b }
	frag := func(b []byte, f uint16) []byte { binary.BigEndian.PutUint16(b[6:], f); return b }
	tests := []struct {
		name string
		b    []byte
		err  error
		ok   func(ip IP) bool
	}{
		{"empty", nil, ErrTruncated, nil},
		{"version 5", []byte{0x50}, ErrVersion, nil},
		{"ipv4 header cut", testkit.IP4(a4, b4, 17, nil, udp)[:19], ErrTruncated, nil},
		{"ipv4 header length 4", append([]byte{0x44}, testkit.IP4(a4, b4, 17, nil, udp)[1:]...), ErrHeader, nil},
		{"ipv4 header longer than packet", append([]byte{0x4f}, testkit.IP4(a4, b4, 17, nil, udp)[1:]...), ErrHeader, nil},
		{"udp", testkit.IP4(a4, b4, 17, nil, udp), nil, func(ip IP) bool {
			return ip.Version == 4 && ip.Proto == 17 && ip.Header == 20 && ip.Len == 28 && ip.Src == a4 && ip.Dst == b4 && ip.Transport && ip.SrcPort == 0x1234 && ip.DstPort == 53 && ip.FirstPart()
		}},
		{"padding", append(testkit.IP4(a4, b4, 17, nil, udp), 1, 2, 3), nil, func(ip IP) bool { return ip.Len == 28 }},
		{"udp cut", testkit.IP4(a4, b4, 50, nil, udp[:7]), nil, func(ip IP) bool { return !ip.Transport }},
		{"udp without checksum over ipv4", zeroSum(testkit.IP4(a4, b4, 17, nil, udp), 26), nil, func(ip IP) bool { return ip.sum == 0 }},
		{"udp without checksum over ipv6", zeroSum(testkit.IP6(a6, b6, 17, 17, nil, udp), 46), ErrChecksum, nil},
		{"udp-lite without checksum", zeroSum(testkit.IP4(a4, b4, 136, nil, udp), 26), ErrChecksum, nil},
		{"tcp", testkit.IP6(a6, b6, 6, 6, nil, tcp), nil, func(ip IP) bool { return ip.TCPFlags == TCPSyn && ip.DstPort == 80 && ip.sum == 56 }},
		{"tcp data offset 4", testkit.IP6(a6, b6, 6, 6, nil, append(append(bytes.Clone(tcp[:12]), 0x40), tcp[13:]...)), ErrHeader, nil},
		{"ipv6 header alone", testkit.IP6(a6, b6, 59, 59, nil, nil), nil, func(ip IP) bool { return ip.Len == 40 && ip.Proto == 59 }},
		{"ipv6 header alone, tcp promised", testkit.IP6(a6, b6, 6, 59, nil, nil), ErrTruncated, nil},
		{"jumbogram", testkit.IP6(a6, b6, 0, 59, nil, nil), ErrTruncated, nil},
		{"routing with segments left", testkit.IP6(a6, b6, 43, 17, []byte{17, 0, 0, 1, 0, 0, 0, 0}, udp), ErrRouting, nil},
		{"hop-by-hop not first", testkit.IP6(a6, b6, 60, 17, []byte{0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0}, udp), ErrHeader, nil},
		{"two fragment headers", testkit.IP6(a6, b6, 44, 17, []byte{44, 0, 0, 1, 0, 0, 0, 1, 17, 0, 0, 1, 0, 0, 0, 1}, udp), ErrHeader, nil},
		{"home address", testkit.IP6(a6, b6, 60, 17, append([]byte{17, 2, 1, 2, 0, 0, 201, 16}, make([]byte, 16)...), udp), ErrOptions, nil},
		{"destination option beyond its header", testkit.IP6(a6, b6, 60, 17, []byte{17, 0, 1, 5, 0, 0, 0, 0}, udp), ErrHeader, nil},
		{"nine extension headers", testkit.IP6(a6, b6, 60, 17, append(bytes.Repeat([]byte{60, 0, 1, 4, 0, 0, 0, 0}, 8), 17, 0, 1, 4, 0, 0, 0, 0), udp), ErrOptions, nil},
		{"extension header cut", testkit.IP6(a6, b6, 60, 59, []byte{17, 1, 1, 4, 0, 0, 0, 0}, nil), ErrTruncated, nil},
		{"record route", testkit.IP4(a4, b4, 17, []byte{7, 7, 4, 0, 0, 0, 0, 0}, udp), ErrOptions, nil},
		{"timestamp", testkit.IP4(a4, b4, 17, []byte{1, 68, 7, 5, 0, 0, 0, 0}, udp), ErrOptions, nil},
		{"strict source route", testkit.IP4(a4, b4, 17, []byte{137, 7, 4, 0, 0, 0, 0, 0}, udp), ErrRouting, nil},
		{"router alert", testkit.IP4(a4, b4, 17, []byte{148, 4, 0, 0}, udp), nil, func(ip IP) bool { return ip.Header == 24 && ip.DstPort == 53 }},
		{"option beyond the header", testkit.IP4(a4, b4, 17, []byte{148, 5, 0, 0}, udp), ErrHeader, nil},
		{"first fragment without the transport header", frag(testkit.IP4(a4, b4, 50, nil, tcp[:16]), 0x2000), nil, func(ip IP) bool { return ip.Fragment }},
		{"fragment beyond 65535", frag(testkit.IP4(a4, b4, 17, nil, udp), 0x1fff), ErrHeader, nil},
		{"ah", testkit.IP6(a6, b6, 51, 51, nil, udp), nil, func(ip IP) bool { return ip.Proto == 51 && ip.sum == 0 }},
		{"icmpv6 over ipv4 is not icmp", testkit.IP4(a4, b4, 59, nil, udp), nil, func(ip IP) bool { return !ip.ICMP() && ip.sum == 0 }},
	}
	for _, tt := range tests {
		switch tt.name {
		case "udp cut":
			tt.b[9] = 17
			if _, err := ParseIP(tt.b); err != ErrTruncated {
				t.Errorf("udp of 7 bytes: %v", err)
			}
			continue
		case "first fragment without the transport header":
			tt.b[9] = 6
			if _, err := ParseIP(tt.b); err != ErrTruncated {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		case "icmpv6 over ipv4 is not icmp":
			tt.b[9] = 58
		}
		ip, err := ParseIP(tt.b)
		if err != tt.err || err == nil && !tt.ok(ip) {
			t.Errorf("%s: %v, %+v", tt.name, err, ip)
		}
		if err == nil { // a cut at every byte
			for n := range ip.Len {
				if _, err := ParseIP(tt.b[:n]); err == nil {
					t.Errorf("%s: cut at %d accepted", tt.name, n)
				}
			}
		}
		if err := Rewrite(bytes.Clone(tt.b), a4, b6); err == nil {
			t.Errorf("%s: rewritten to addresses of both families", tt.name)
		}
	}
}

// TestChecksumZero walks through every checksum value: UDP never becomes 0, the others never 0xFFFF, and UDP without one stays so.
func TestChecksumZero(t *testing.T) {
	src, dst := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for _, proto := range []int{6, 17} {
		forms := map[uint16]bool{}
		seg := make([]byte, 20)
		seg[12] = 0x50
		for x := range 65536 {
			binary.BigEndian.PutUint16(seg[8:], uint16(x))
			b := testkit.IP4(src, dst, proto, nil, seg)
			want := testkit.IP4(netip.IPv4Unspecified(), netip.IPv4Unspecified(), proto, nil, seg)
			if err := Rewrite(b, netip.IPv4Unspecified(), netip.IPv4Unspecified()); err != nil || !bytes.Equal(b, want) {
				t.Fatalf("proto %d, word %#x: %v\n got %x\nwant %x", proto, x, err, b, want)
			}
			forms[binary.BigEndian.Uint16(b[20+testkit.SumOffset(4, proto):])] = true
		}
		if forms[0] == (proto == 17) || forms[0xffff] == (proto == 6) {
			t.Errorf("proto %d: 0x0000 %v, 0xFFFF %v", proto, forms[0], forms[0xffff])
		}
	}
	b := testkit.IP4(src, dst, 17, nil, make([]byte, 8))
	b[26], b[27] = 0, 0
	if err := Rewrite(b, dst, src); err != nil || b[26] != 0 || b[27] != 0 {
		t.Errorf("udp without checksum: %v, %x", err, b[26:28])
	}
}

func TestFillZeroUDP(t *testing.T) {
	src, dst := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	seg := make([]byte, 12)
	n := 0
	for x := range 65536 {
		binary.BigEndian.PutUint16(seg[8:], uint16(x))
		b := testkit.IP6(src, dst, 17, 17, nil, seg)
		want := bytes.Clone(b)
		isZero := b[46] == 0xff && b[47] == 0xff
		b[46], b[47] = 0, 0
		if FillZeroUDP(b) != isZero {
			t.Fatalf("word %#x: %x", x, want)
		}
		if isZero {
			n++
			if !bytes.Equal(b, want) {
				t.Fatalf("word %#x: got %x want %x", x, b, want)
			}
		}
	}
	if n != 1 {
		t.Errorf("%d packets with checksum 0", n)
	}
}

func TestEchoReply(t *testing.T) {
	r := testkit.Rand(t)
	for range 2000 {
		for _, version := range []int{4, 6} {
			src, dst := randAddr(r, version), randAddr(r, version)
			body := segment(r, 50, 20)
			q, a := bytes.Clone(body), bytes.Clone(body)
			var req, want []byte
			if version == 4 {
				q[0], q[1], a[0], a[1] = 8, 0, 0, 0
				req, want = testkit.IP4(src, dst, 1, nil, q), testkit.IP4(dst, src, 1, nil, a)
				req[8] = byte(r.Uint32())
				testkit.SetHeaderSum(req)
			} else {
				q[0], q[1], a[0], a[1] = 128, 0, 129, 0
				req, want = testkit.IP6(src, dst, 58, 58, nil, q), testkit.IP6(dst, src, 58, 58, nil, a)
				req[7] = byte(r.Uint32())
			}
			if !EchoReply(req) || !bytes.Equal(req, want) {
				t.Fatalf("version %d\n got %x\nwant %x", version, req, want)
			}
			if EchoReply(req) {
				t.Fatal("answered an answer")
			}
		}
	}
}

// TestOriginalRefused: ICMP errors that carry something that cannot be made anonymous.
func TestOriginalRefused(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	a6, b6 := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	udp := testkit.IP4(b, a, 17, nil, make([]byte, 8))
	udp6 := testkit.IP6(b6, a6, 17, 17, nil, make([]byte, 8))
	icmp := func(typ byte, field5 byte, inner []byte) []byte {
		return testkit.IP4(a, b, 1, nil, append([]byte{typ, 1, 0, 0, 0, field5, 0, 0}, inner...))
	}
	fragment := icmp(3, 0, udp)
	fragment[6] |= 0x20
	for name, p := range map[string][]byte{
		"extensions":               icmp(3, 7, udp),
		"extensions, icmpv6":       testkit.IP6(a6, b6, 58, 58, nil, append([]byte{1, 3, 0, 0, 9, 0, 0, 0}, udp6...)),
		"an error about an error":  icmp(3, 0, icmp(11, 0, udp)),
		"the other family":         icmp(3, 0, udp6),
		"nothing":                  icmp(3, 0, nil),
		"19 bytes":                 icmp(3, 0, udp[:19]),
		"first fragment of errors": fragment,
		"record route":             icmp(12, 0, testkit.IP4(b, a, 17, []byte{7, 7, 4, 0, 0, 0, 0, 0}, make([]byte, 8))),
	} {
		ip, err := ParseIP(p)
		if err != nil || !ip.ICMPError() {
			t.Fatalf("%s: %v", name, err)
		}
		z := unspecified(int(ip.Version))
		before := bytes.Clone(p)
		if err := ip.RewriteError(p, z, z); err == nil || !bytes.Equal(p, before) {
			t.Errorf("%s: error %v, changed %v", name, err, !bytes.Equal(p, before))
		}
	}
	ip, err := ParseIP(udp)
	if err != nil || ip.RewriteError(udp, a, b) != ErrOriginal {
		t.Error("RewriteError of what is no error")
	}
}

// FuzzRewrite. Threat: a remote sends any bytes as an IP packet and hopes for a panic, for a read or write outside the packet, or for a
// change elsewhere than in addresses and checksums. For whatever is accepted: only these bytes change; sums that were right stay right and
// wrong ones wrong by the same amount; writing the old addresses back gives the old packet, but for the two forms of zero.
func FuzzRewrite(f *testing.F) {
	r := testkit.Seeded(1)
	for _, proto := range protos {
		seg := segment(r, proto, 40)
		f.Add(testkit.IP4(randAddr(r, 4), randAddr(r, 4), proto, nil, seg), []byte("0123456789abcdefghijklmnopqrstuv"))
		p := testkit.IP6(randAddr(r, 6), randAddr(r, 6), proto, proto, nil, seg)
		f.Add(p, make([]byte, 32))
		f.Add(testkit.IP6(randAddr(r, 6), randAddr(r, 6), 58, 58, nil, append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, p...)), make([]byte, 32))
		f.Add(testkit.IP4(randAddr(r, 4), randAddr(r, 4), 1, nil, append([]byte{3, 0, 0, 0, 0, 0, 0, 0}, testkit.IP4(randAddr(r, 4), randAddr(r, 4), proto, nil, seg)...)), make([]byte, 32))
	}
	f.Fuzz(func(t *testing.T, p, addrs []byte) {
		ip, err := ParseIP(p)
		if err != nil {
			if _, ok := err.(Reason); !ok || err.(Reason) == 0 || err.(Reason) >= Reasons || err.Error() == "" {
				t.Fatalf("error %#v", err)
			}
			return
		}
		if len(addrs) < 32 {
			return
		}
		src, dst := netip.AddrFrom16([16]byte(addrs)), netip.AddrFrom16([16]byte(addrs[16:]))
		if ip.Version == 4 {
			src, dst = netip.AddrFrom4([4]byte(addrs)), netip.AddrFrom4([4]byte(addrs[4:]))
		} else if !src.Is6() || !dst.Is6() {
			return
		}
		if ip.Len > len(p) || ip.Header > ip.Len || ip.Transport && !ip.FirstPart() {
			t.Fatalf("%+v of %d bytes", ip, len(p))
		}
		old := bytes.Clone(p)
		view := ip
		rewrite := view.Rewrite
		if ip.ICMPError() {
			rewrite = view.RewriteError
		}
		o, inErr := ip.Original(p)
		if err := rewrite(p, src, dst); err != nil {
			if !bytes.Equal(p, old) || !ip.ICMPError() || inErr == nil {
				t.Fatalf("%v; changed %v", err, !bytes.Equal(p, old))
			}
			return
		}
		if again, err := ParseIP(p); err != nil || again != view && !(ip.sum != again.sum) {
			t.Fatalf("parsed again: %v\n%+v\n%+v", err, again, view)
		}
		changed := map[int]bool{}
		mark := func(at, n int) {
			for i := at; i < at+n; i++ {
				changed[i] = true
			}
		}
		var sums func(at int, ip IP, b []byte, src, dst netip.Addr) []int
		sums = func(at int, ip IP, b []byte, src, dst netip.Addr) (rs []int) {
			if ip.Version == 4 {
				mark(at+10, 10)
				rs = append(rs, testkit.Residue(b[at:at+ip.Header]))
			} else {
				mark(at+8, 32)
			}
			end := min(at+ip.Len, len(b))
			if s := testkit.SumOffset(int(ip.Version), int(ip.Proto)); s >= 0 && ip.FirstPart() && at+ip.Header+s+2 <= end {
				s += at + ip.Header
				if udp := ip.Proto == 17 || ip.Proto == 136; !udp || old[s] != 0 || old[s+1] != 0 {
					mark(s, 2)
					rs = append(rs, testkit.Residue(testkit.Pseudo(src, dst, int(ip.Proto), 0), b[at+ip.Header:end]))
				}
			}
			return rs
		}
		before, after := sums(0, ip, old, ip.Src, ip.Dst), sums(0, view, p, src, dst)
		if ip.ICMPError() {
			at := ip.Header + 8
			mark(ip.Header+2, 2)
			before = append(before, sums(at, o, old[:ip.Len], o.Src, o.Dst)...)
			after = append(after, sums(at, o, p[:ip.Len], dst, src)...)
			if ip.Version == 4 {
				before, after = append(before, testkit.Residue(old[ip.Header:ip.Len])), append(after, testkit.Residue(p[ip.Header:ip.Len]))
			}
			if back, err := view.Original(p); err != nil || back.Src != dst || back.Dst != src {
				t.Fatalf("original: %v %+v", err, back)
			}
		}
		if fmt.Sprint(before) != fmt.Sprint(after) {
			t.Fatalf("sums before %v, after %v\n%x\n%x", before, after, old, p)
		}
		for i := range p {
			if p[i] != old[i] && !changed[i] {
				t.Fatalf("byte %d changed\n%x\n%x", i, old, p)
			}
		}
		// Back: a second round trip is a fixed point (the first one may change the form of a zero).
		if ip.ICMPError() {
			return // the original's addresses need not be the error's, the other way round
		}
		back := func() {
			if err := view.Rewrite(p, ip.Src, ip.Dst); err != nil {
				t.Fatal(err)
			}
		}
		back()
		first := bytes.Clone(p)
		if err := view.Rewrite(p, src, dst); err != nil {
			t.Fatal(err)
		}
		back()
		if !bytes.Equal(first, p) {
			t.Fatalf("no fixed point\n%x\n%x", first, p)
		}
	})
}

// FuzzEchoReply. Threat: as FuzzRewrite; a relay answers pings by itself.
func FuzzEchoReply(f *testing.F) {
	f.Add(testkit.IP4(netip.IPv4Unspecified(), netip.IPv4Unspecified(), 1, nil, []byte{8, 0, 0, 0, 0, 1, 0, 2}))
	f.Add(testkit.IP6(netip.IPv6Unspecified(), netip.IPv6Unspecified(), 58, 58, nil, []byte{128, 0, 0, 0, 0, 1, 0, 2}))
	f.Fuzz(func(t *testing.T, p []byte) {
		old := bytes.Clone(p)
		FillZeroUDP(p)
		if EchoReply(p) {
			if ip, err := ParseIP(p); err != nil || !ip.EchoReply() {
				t.Fatalf("%v %+v", err, ip)
			}
		} else if ip, err := ParseIP(old); err == nil && ip.Echo() && !ip.Fragment {
			t.Fatal("not answered")
		}
	})
}
