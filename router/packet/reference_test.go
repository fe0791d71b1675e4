package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"lokinetd/router/testkit"
)

// The slow reference: finds the parts of a packet with indices into the whole of it, and computes each checksum anew over all that it covers.
// It shares no code with the package.

type slowIP struct {
	version, proto int
	header         int // where the transport header, or a later fragment's data, begins
	length         int // by the length field
	end            int // of what is there
	fragment       bool
	offset         int
	sum            int // where the checksum that covers the addresses is; -1: none
}

// slowParse is false for what must be refused. quoted: b may be cut behind the IP headers.
func slowParse(b []byte, quoted bool) (s slowIP, ok bool) {
	u16 := func(at int) int { return int(b[at])<<8 | int(b[at+1]) }
	s.sum = -1
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		s = slowIP{version: 4, proto: int(b[9]), header: int(b[0]&15) * 4, length: u16(2), fragment: u16(6)&0x3fff != 0, offset: u16(6) & 0x1fff * 8, sum: -1}
		if s.header < 20 || s.header > s.length || s.header > len(b) {
			return s, false
		}
		for i := 20; i < s.header && b[i] != 0; {
			switch b[i] {
			case 1:
				i++
				continue
			case 7, 68, 131, 137:
				return s, false
			}
			if i+1 >= s.header || b[i+1] < 2 || i+int(b[i+1]) > s.header {
				return s, false
			}
			i += int(b[i+1])
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		s = slowIP{version: 6, proto: int(b[6]), header: 40, length: 40 + u16(4), sum: -1}
		end := min(len(b), s.length)
		seen := map[int]int{}
		for n := 0; s.offset == 0 && bytes.ContainsRune([]byte{0, 43, 44, 60}, rune(s.proto)); n++ {
			kind, at := s.proto, s.header
			size := 8
			if kind != 44 && at+2 <= end {
				size += 8 * int(b[at+1])
			}
			if seen[kind]++; n == 8 || kind == 0 && n > 0 || kind == 44 && s.fragment || at+size > end {
				return s, false
			}
			switch kind {
			case 43:
				if b[at+3] != 0 {
					return s, false
				}
			case 44:
				s.offset = u16(at+2) / 8 * 8
				s.fragment = s.offset != 0 || b[at+3]&1 != 0
			case 60:
				for i := at + 2; i < at+size; {
					if b[i] == 0 {
						i++
						continue
					}
					if b[i] == 201 || i+1 >= at+size || i+2+int(b[i+1]) > at+size {
						return s, false
					}
					i += 2 + int(b[i+1])
				}
			}
			s.proto, s.header = int(b[at]), at+size
		}
	default:
		return s, false
	}
	s.end = min(len(b), s.length)
	if !quoted && len(b) < s.length || s.offset+s.length-s.header > 65535 {
		return s, false
	}
	if s.offset != 0 {
		return s, true
	}
	here := s.end - s.header
	least := map[int]int{6: 20, 17: 8, 136: 8, 33: 12, 132: 12}[s.proto]
	if s.proto == 1 && s.version == 4 || s.proto == 58 && s.version == 6 {
		least = 8
	}
	if !quoted && here < least || s.proto == 6 && here >= 20 && b[s.header+12]>>4 < 5 {
		return s, false
	}
	if at := testkit.SumOffset(s.version, s.proto); at >= 0 && here > at {
		if here == at+1 {
			return s, false
		}
		s.sum = s.header + at
		if u16(s.sum) == 0 && (s.proto == 17 || s.proto == 136) {
			if s.sum = -1; !quoted && (s.version == 6 || s.proto == 136) {
				return s, false
			}
		}
	}
	return s, true
}

// icmp returns the type of an ICMP message of the packet's own IP version, and -1 for anything else.
func (s slowIP) icmp(b []byte) int {
	if s.offset == 0 && s.end-s.header >= 8 && (s.version == 4 && s.proto == 1 || s.version == 6 && s.proto == 58) {
		return int(b[s.header])
	}
	return -1
}

func (s slowIP) isError(b []byte) bool {
	list := "\x03\x0b\x0c"
	if s.version == 6 {
		list = "\x01\x02\x03\x04"
	}
	typ := s.icmp(b)
	return typ >= 0 && bytes.IndexByte([]byte(list), byte(typ)) >= 0
}

// mend sets the checksum at field so that the sum over what it covers, now, is what it was. A right one stays right, a wrong one wrong by as much.
func mend(field []byte, proto, was, now int) {
	c := (int(binary.BigEndian.Uint16(field)) + was - now + 65535) % 65535
	if c == 0 && (proto == 17 || proto == 136) {
		c = 65535
	}
	binary.BigEndian.PutUint16(field, uint16(c))
}

// slowRewrite sets the addresses of the packet at the start of b, and of the packet in an ICMP error the other way round. False: b must be refused.
func slowRewrite(b []byte, src, dst netip.Addr, quoted bool) bool {
	s, ok := slowParse(b, quoted)
	if !ok || s.version == 4 && !(src.Is4() && dst.Is4()) || s.version == 6 && !(src.Is6() && dst.Is6()) {
		return false
	}
	whole := b[:s.end]
	at, n := 12, 4
	if s.version == 6 {
		at, n = 8, 16
	}
	sums := func() (header, transport, icmp int) {
		// Addresses as the pseudo header has them; its other fields do not change.
		return testkit.Residue(whole[:s.header]), testkit.Residue(whole[at:at+2*n], whole[s.header:]), testkit.Residue(whole[s.header:])
	}
	header, transport, icmp := sums()
	if s.isError(b) {
		// Extensions behind the original may carry addresses. Packet too big and parameter problem have no length field for them.
		long := s.version == 4 && b[s.header+5] != 0 || s.version == 6 && b[s.header+4] != 0 && b[s.header] != 2 && b[s.header] != 4
		if s.fragment || quoted || long {
			return false
		}
		inner := bytes.Clone(whole[s.header+8:])
		o, ok := slowParse(inner, true)
		if !ok || o.version != s.version || !slowRewrite(inner, dst, src, true) {
			return false
		}
		copy(whole[s.header+8:], inner)
	}
	copy(b[at:], src.AsSlice())
	copy(b[at+n:], dst.AsSlice())
	_, transport2, icmp2 := sums()
	if s.sum >= 0 {
		mend(b[s.sum:], s.proto, transport, transport2)
	} else if s.isError(b) {
		mend(b[s.header+2:], s.proto, icmp, icmp2)
	}
	if s.version == 4 {
		header2, _, _ := sums()
		mend(b[10:12], 0, header, header2)
	}
	return true
}

// slowEcho answers an echo request.
func slowEcho(b []byte) bool {
	s, ok := slowParse(b, false)
	if want := map[int]int{4: 8, 6: 128}[s.version]; !ok || s.fragment || s.icmp(b) != want {
		return false
	}
	whole := b[:s.end]
	header, icmp := testkit.Residue(whole[:s.header]), testkit.Residue(whole[s.header:])
	if s.version == 4 {
		b[8], b[s.header] = 64, 0
		copy(b[12:], append(bytes.Clone(b[16:20]), b[12:16]...))
		mend(b[10:12], 0, header, testkit.Residue(whole[:s.header]))
	} else {
		b[7], b[s.header] = 64, 129
		copy(b[8:], append(bytes.Clone(b[24:40]), b[8:24]...))
	}
	mend(b[s.header+2:], s.proto, icmp, testkit.Residue(whole[s.header:]))
	return true
}
