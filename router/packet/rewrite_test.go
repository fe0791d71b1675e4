package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
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

type parseTest struct {
	name string
	b    []byte
	err  error
	ok   func(ip IP) bool
}

// parseTests is a table of what the parser accepts and refuses.
func parseTests() []parseTest {
	a4, b4 := netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("172.16.0.2")
	a6, b6 := netip.MustParseAddr("fd2e:7365:7368::1"), netip.MustParseAddr("fd2e:7365:7368::2")
	udp := []byte{0x12, 0x34, 0, 53, 0, 8, 0, 0}
	tcp := append([]byte{0x12, 0x34, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02}, make([]byte, 6)...)
	zeroSum := func(b []byte, at int) []byte { b[at], b[at+1] = 0, 0; return b }
	frag := func(b []byte, f uint16) []byte { binary.BigEndian.PutUint16(b[6:], f); return b }
	return []parseTest{
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
}

func TestParseIP(t *testing.T) {
	a4, b6 := netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("fd2e:7365:7368::2")
	for _, tt := range parseTests() {
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

// samples gives packets of each kind that the parser tells apart, good and bad, and ICMP errors about them.
func samples() (ps [][]byte) {
	for _, tt := range parseTests() {
		ps = append(ps, tt.b)
	}
	r := testkit.Seeded(1)
	udp := append([]byte{1, 2, 3, 4, 0, 8}, 5, 6)
	ps = append(ps,
		testkit.IP4(randAddr(r, 4), randAddr(r, 4), 17, []byte{1, 1, 148, 4, 0, 0, 0, 9}, udp),                                                // no operation, router alert, end
		testkit.IP6(randAddr(r, 6), randAddr(r, 6), 60, 17, []byte{17, 1, 0, 0, 1, 2, 0, 0, 5, 2, 0, 0, 0, 0, 0, 0}, udp),                     // destination options with padding
		testkit.IP6(randAddr(r, 6), randAddr(r, 6), 44, 17, []byte{17, 0, 0, 15, 0, 0, 0, 1}, udp),                                            // a later fragment, reserved bits set
		testkit.IP6(randAddr(r, 6), randAddr(r, 6), 44, 17, []byte{17, 0, 0, 1, 0, 0, 0, 1}, udp),                                             // a first one
		testkit.IP4(randAddr(r, 4), randAddr(r, 4), 1, nil, append([]byte{11, 0, 0, 0, 0, 9, 0, 0}, ps[5]...)),                                // with extensions
		testkit.IP6(randAddr(r, 6), randAddr(r, 6), 58, 58, nil, append([]byte{3, 0, 0, 0, 9, 0, 0, 0}, ps[9]...)),                            // the same
		testkit.IP6(randAddr(r, 6), randAddr(r, 6), 44, 58, []byte{58, 0, 0, 1, 0, 0, 0, 1}, append([]byte{3, 0, 0, 0}, make([]byte, 60)...)), // an error's first fragment
	)
	ones := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	wrong := testkit.IP4(ones, ones, 6, nil, append(make([]byte, 12), 0x50, 2, 0, 0, 0, 0, 0, 0))
	wrong[36], wrong[37] = 0xff, 0xff // a sum that TCP never writes, and addresses whose difference to zeros is none
	ps = append(ps, wrong, ps[len(ps)-1][:41])
	for _, proto := range []int{6, 17} { // whose checksum becomes 0 with zero addresses
		seg := make([]byte, 20)
		seg[12] = 0x50
		binary.BigEndian.PutUint16(seg, uint16(65535-testkit.Residue(testkit.Pseudo(unspecified(4), unspecified(4), proto, 20), seg)))
		ps = append(ps, testkit.IP4(randAddr(r, 4), randAddr(r, 4), proto, nil, seg))
	}
	for _, proto := range protos {
		seg := segment(r, proto, 40)
		ps = append(ps, testkit.IP4(randAddr(r, 4), randAddr(r, 4), proto, nil, seg), testkit.IP6(randAddr(r, 6), randAddr(r, 6), proto, proto, nil, seg))
	}
	for _, p := range slices.Clone(ps) {
		for _, n := range []int{len(p), len(p) - 1, 47, 41, 27} { // cuts behind the ports, in the middle of a checksum, before it
			inner := p[:max(0, min(n, len(p)))]
			ps = append(ps, testkit.IP4(randAddr(r, 4), randAddr(r, 4), 1, nil, append([]byte{3, 0, 0, 0, 0, 0, 0, 0}, inner...)))
			ps = append(ps, testkit.IP6(randAddr(r, 6), randAddr(r, 6), 58, 58, nil, append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, inner...)))
		}
	}
	return ps
}

// FuzzRewrite. Threat: a remote sends any bytes as an IP packet and hopes for a panic, for a read or write outside the packet, or for a
// change elsewhere than in addresses and checksums. The slow reference says what is accepted and what becomes of it, to the byte: sums that were right stay right and
// wrong ones wrong by the same amount.
//
// Decoders: ParseIP parse IP.parse4 options4 IP.parse6 options6 IP.parseTransport IP.Original IP.original Rewrite IP.Rewrite IP.RewriteError IP.check IP.write
// Decoders: replace add fold Sum PseudoSum
func FuzzRewrite(f *testing.F) {
	for _, p := range samples() {
		f.Add(p, []byte("0123456789abcdefghijklmnopqrstuv"))
		f.Add(p, append(make([]byte, 31), 7))
		f.Add(p, make([]byte, 32))
	}
	f.Fuzz(func(t *testing.T, in, addrs []byte) {
		p := bytes.Clone(in) // seeds share theirs
		s, sok := slowParse(p, false)
		ip, err := ParseIP(p)
		if (err == nil) != sok {
			t.Fatalf("%v, reference %v: %x", err, sok, p)
		}
		if err != nil {
			if r, ok := err.(Reason); !ok || r == 0 || r >= Reasons || err.Error() == "" || Rewrite(p, netip.Addr{}, netip.Addr{}) != err {
				t.Fatalf("error %#v", err)
			}
			return
		}
		typ := -1
		if ip.ICMP() && ip.Transport {
			typ = int(ip.Type)
		}
		if got := (slowIP{int(ip.Version), int(ip.Proto), ip.Header, ip.Len, s.end, ip.Fragment, ip.Offset, s.sum}); got != s || max(ip.sum, 0) != max(s.sum, 0) || typ != s.icmp(p) {
			t.Fatalf("%+v, reference %+v", ip, s)
		}
		if ip.FirstPart() != (s.offset == 0) || ip.ICMPError() != s.isError(p) || ip.Echo() != (typ == map[int]int{4: 8, 6: 128}[s.version]) || ip.EchoReply() != (typ == map[int]int{4: 0, 6: 129}[s.version]) {
			t.Fatalf("%+v", ip)
		}
		sums := [2]int{int(Sum(p, 0)) % 65535, int(PseudoSum(ip.Src, ip.Dst, ip.Proto, len(p))) % 65535}
		if want := [2]int{testkit.Residue(p), testkit.Residue(testkit.Pseudo(ip.Src, ip.Dst, s.proto, len(p)))}; sums != want {
			t.Fatalf("sums %v, want %v", sums, want)
		}
		if len(addrs) < 32 {
			return
		}
		src, dst := netip.AddrFrom16([16]byte(addrs)), netip.AddrFrom16([16]byte(addrs[16:]))
		if ip.Version == 4 && addrs[31]&7 != 7 { // the other family now and then
			src, dst = netip.AddrFrom4([4]byte(addrs)), netip.AddrFrom4([4]byte(addrs[4:]))
		}
		old, want := bytes.Clone(p), bytes.Clone(p)
		accept := slowRewrite(want, src, dst, false)
		view := ip
		if view.ICMPError() {
			if view.Rewrite(p, src, dst) != ErrOriginal {
				t.Fatal("Rewrite of an ICMP error")
			}
			err = view.RewriteError(p, src, dst)
		} else {
			if view.RewriteError(p, src, dst) != ErrOriginal {
				t.Fatal("RewriteError of what is no error")
			}
			err = Rewrite(p, src, dst)
			view.Src, view.Dst = src, dst
		}
		if (err == nil) != accept {
			t.Fatalf("%v, reference %v: %x", err, accept, old)
		}
		if !accept {
			want = old
			if _, err := ip.Original(p); err == nil && ip.Version == 4 == src.Is4() {
				t.Fatalf("an original that cannot be rewritten: %x", old)
			}
		}
		if !bytes.Equal(p, want) {
			t.Fatalf("of %x\n got %x\nwant %x", old, p, want)
		}
		if !accept {
			return
		}
		again, err := ParseIP(p)
		if again.sum = view.sum; err != nil || again != view { // a UDP checksum may have got the form that says "none"
			t.Fatalf("parsed again: %v\n%+v\n%+v", err, again, view)
		}
		if ip.ICMPError() {
			if back, err := view.Original(p); err != nil || back.Src != dst || back.Dst != src {
				t.Fatalf("original: %v %+v", err, back)
			}
		}
	})
}

// FuzzEchoReply. Threat: as FuzzRewrite; a relay answers pings by itself.
//
// Decoders: FillZeroUDP EchoReply
func FuzzEchoReply(f *testing.F) {
	for _, p := range samples() {
		f.Add(p)
		if len(p) >= 48 && p[6] == 17 { // UDP over IPv6 with the sum 0, in its wrong form
			p = bytes.Clone(p)
			p[46], p[47] = 0, 0
			binary.BigEndian.PutUint16(p[40:], uint16(65535-testkit.Residue(p[8:40], []byte{0, 17}, p[4:6], p[42:])))
			f.Add(p)
		}
	}
	f.Add(testkit.IP4(netip.IPv4Unspecified(), netip.IPv4Unspecified(), 1, nil, []byte{8, 0, 0, 0, 0, 1, 0, 2}))
	f.Add(testkit.IP6(netip.IPv6Unspecified(), netip.IPv6Unspecified(), 58, 58, nil, []byte{128, 0, 0, 0, 0, 1, 0, 2}))
	f.Fuzz(func(t *testing.T, in []byte) {
		p := bytes.Clone(in)
		want := bytes.Clone(p)
		s, ok := slowParse(p, true)
		zero := ok && s.version == 6 && s.proto == 17 && !s.fragment && len(p) >= s.length && s.end-s.header >= 8 && p[s.header+6] == 0 && p[s.header+7] == 0 &&
			testkit.Residue(p[8:40], []byte{0, 17, byte((s.end - s.header) >> 8), byte(s.end - s.header)}, p[s.header:s.end]) == 0
		if zero {
			want[s.header+6], want[s.header+7] = 0xff, 0xff
		}
		if FillZeroUDP(p) != zero || !bytes.Equal(p, want) {
			t.Fatalf("FillZeroUDP: %x, want %x", p, want)
		}
		echo := slowEcho(want)
		if EchoReply(p) != echo || !bytes.Equal(p, want) {
			t.Fatalf("EchoReply: %x, want %x", p, want)
		}
	})
}
