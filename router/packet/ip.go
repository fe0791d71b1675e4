package packet

import (
	"encoding/binary"
	"net/netip"
)

// Protocol numbers that this package or netif treats in a way of its own.
const (
	ProtoICMP    = 1
	ProtoTCP     = 6
	ProtoUDP     = 17
	ProtoDCCP    = 33
	ProtoICMPv6  = 58
	ProtoSCTP    = 132
	ProtoUDPLite = 136

	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extDestination = 60
)

// ICMP types that this package or netif treats in a way of its own.
const (
	ICMPEchoReply          = 0
	ICMPUnreachable        = 3
	ICMPEcho               = 8
	ICMPTimeExceeded       = 11
	ICMPParameterProblem   = 12
	ICMPv6Unreachable      = 1
	ICMPv6PacketTooBig     = 2
	ICMPv6TimeExceeded     = 3
	ICMPv6ParameterProblem = 4
	ICMPv6Echo             = 128
	ICMPv6EchoReply        = 129
)

// Flags of the TCP header in IP.TCPFlags.
const (
	TCPFin = 0x01
	TCPSyn = 0x02
	TCPRst = 0x04
	TCPAck = 0x10
)

const (
	header4 = 20 // shortest IPv4 header
	header6 = 40
	// maxExtensions bounds the walk over IPv6 extension headers; no known stack sends more than five.
	maxExtensions = 8
	// optHomeAddress is the destination option that carries the sender's home address.
	optHomeAddress = 201
)

// Reason says why a packet is refused. It is an error without allocation, and an index for counters: 0 < r < Reasons.
type Reason uint8

const (
	ErrTruncated Reason = iota + 1 // shorter than its headers or its length field need
	ErrVersion                     // neither IPv4 nor IPv6
	ErrHeader                      // header fields contradict each other
	ErrOptions                     // IP options or extension headers that carry addresses, or too many headers
	ErrRouting                     // source route or routing header with segments left
	ErrChecksum                    // UDP over IPv6 or UDP-Lite with checksum 0
	ErrFamily                      // new addresses are not of the packet's family
	ErrOriginal                    // ICMP error whose original packet cannot be rewritten, or the wrong function for it
	Reasons                        // number of reasons, for arrays of counters
)

var reasons = [Reasons]string{
	ErrTruncated: "packet: truncated",
	ErrVersion:   "packet: neither ipv4 nor ipv6",
	ErrHeader:    "packet: malformed header",
	ErrOptions:   "packet: options that carry addresses, or too many extension headers",
	ErrRouting:   "packet: source route or routing header with segments left",
	ErrChecksum:  "packet: udp without the checksum that it must have",
	ErrFamily:    "packet: addresses of the other family",
	ErrOriginal:  "packet: icmp error with an original packet that cannot be rewritten",
}

func (r Reason) Error() string {
	if r == 0 || r >= Reasons {
		return "packet: unknown reason"
	}
	return reasons[r]
}

// IP is what the data plane needs to know of one IP packet: a view, valid as long as the packet's headers do not change.
type IP struct {
	Version uint8 // 4 or 6
	// Proto is the transport protocol, behind all IPv6 extension headers. In a fragment that is not the first, it is the header
	// that the first fragment's part begins with: mostly, but not always, the transport protocol.
	Proto  uint8
	Header int // offset of the transport header; in a fragment that is not the first: of its data
	Len    int // length of the whole packet by its length field; bytes behind it are not part of the packet
	Src    netip.Addr
	Dst    netip.Addr

	Fragment   bool   // a fragment, the first or another one
	More       bool   // more fragments follow
	Offset     int    // of the fragment's data, bytes
	FragmentID uint32 // 16 bits of IPv4, 32 bits of IPv6

	// Transport says that the transport header is in this packet, and with it the fields below: ports of TCP, UDP, UDP-Lite, DCCP and
	// SCTP, type and code of ICMP and ICMPv6, identifier of their echoes, flags of TCP.
	Transport        bool
	TCPFlags         uint8
	Type, Code       uint8
	SrcPort, DstPort uint16
	EchoID           uint16

	sum int // offset of the transport checksum that covers the addresses; 0: none in this packet
}

// FirstPart reports whether the packet has its beginning: everything but a later fragment.
func (ip *IP) FirstPart() bool { return ip.Offset == 0 }

// ICMP reports whether the packet is ICMP of its own IP version.
func (ip *IP) ICMP() bool {
	return ip.Proto == ProtoICMP && ip.Version == 4 || ip.Proto == ProtoICMPv6 && ip.Version == 6
}

// Echo reports whether the packet is an echo request; EchoReply, whether it is an answer to one.
func (ip *IP) Echo() bool {
	return ip.Transport && (ip.Proto == ProtoICMP && ip.Version == 4 && ip.Type == ICMPEcho || ip.Proto == ProtoICMPv6 && ip.Version == 6 && ip.Type == ICMPv6Echo)
}

// EchoReply reports whether the packet is an answer to an echo request.
func (ip *IP) EchoReply() bool {
	return ip.Transport && (ip.Proto == ProtoICMP && ip.Version == 4 && ip.Type == ICMPEchoReply || ip.Proto == ProtoICMPv6 && ip.Version == 6 && ip.Type == ICMPv6EchoReply)
}

// ICMPError reports whether the packet is an ICMP or ICMPv6 error that carries the packet it is about: unreachable, packet too big, time
// exceeded, parameter problem. Source quench and redirect are none: nobody should send them here.
func (ip *IP) ICMPError() bool {
	if !ip.Transport {
		return false
	}
	switch {
	case ip.Version == 4 && ip.Proto == ProtoICMP:
		return ip.Type == ICMPUnreachable || ip.Type == ICMPTimeExceeded || ip.Type == ICMPParameterProblem
	case ip.Version == 6 && ip.Proto == ProtoICMPv6:
		return ip.Type >= ICMPv6Unreachable && ip.Type <= ICMPv6ParameterProblem
	}
	return false
}

// ParseIP reads the headers of the IP packet at the start of b. The error is a Reason.
//
// It refuses what cannot be rewritten: a packet shorter than its headers, a first fragment without the whole fixed transport header,
// options that carry addresses, segments left in a routing header, UDP over IPv6 and UDP-Lite without checksum. Checksums are not checked.
func ParseIP(b []byte) (IP, error) {
	ip, r := parse(b, false)
	if r != 0 {
		return IP{}, r
	}
	return ip, nil
}

// Original reads the headers of the packet that an ICMP error carries: the beginning of it, cut anywhere behind its IP and extension
// headers. ip is the error itself, as ParseIP returned it for b. The result's Len is what its length field says, not how much of it is there;
// Transport is false when the ports (or ICMP's first 8 bytes) are cut off. The error is a Reason.
func (ip *IP) Original(b []byte) (IP, error) {
	o, r := ip.original(b)
	if r != 0 {
		return IP{}, r
	}
	return o, nil
}

func (ip *IP) original(b []byte) (IP, Reason) {
	at := ip.Header + 8
	if !ip.ICMPError() || ip.Fragment || ip.Len > len(b) || at > ip.Len {
		return IP{}, ErrOriginal
	}
	// RFC 4884 extensions behind the original may carry addresses of interfaces (RFC 5837); only routers send them.
	if ip.Version == 4 && b[ip.Header+5] != 0 || ip.Version == 6 && ip.Type != ICMPv6PacketTooBig && ip.Type != ICMPv6ParameterProblem && b[ip.Header+4] != 0 {
		return IP{}, ErrOriginal
	}
	o, r := parse(b[at:ip.Len], true)
	if r != 0 {
		return IP{}, r
	}
	if o.Version != ip.Version || o.ICMPError() {
		return IP{}, ErrOriginal
	}
	return o, 0
}

// parse does the work of ParseIP. quoted: b is the beginning of a packet inside an ICMP error, cut anywhere behind its IP and extension headers.
func parse(b []byte, quoted bool) (IP, Reason) {
	var ip IP
	if len(b) == 0 {
		return ip, ErrTruncated
	}
	var r Reason
	switch b[0] >> 4 {
	case 4:
		r = ip.parse4(b, quoted)
	case 6:
		r = ip.parse6(b, quoted)
	default:
		return ip, ErrVersion
	}
	if r != 0 {
		return ip, r
	}
	if ip.Offset+(ip.Len-ip.Header) > 65535 {
		return ip, ErrHeader // a fragment that ends beyond the largest packet
	}
	if ip.Offset != 0 {
		return ip, 0
	}
	return ip, ip.parseTransport(b[:min(len(b), ip.Len)], quoted)
}

func (ip *IP) parse4(b []byte, quoted bool) Reason {
	if len(b) < header4 {
		return ErrTruncated
	}
	ip.Version = 4
	ip.Header = int(b[0]&15) * 4
	ip.Len = int(binary.BigEndian.Uint16(b[2:]))
	if ip.Header < header4 || ip.Len < ip.Header {
		return ErrHeader
	}
	if len(b) < ip.Header || !quoted && len(b) < ip.Len {
		return ErrTruncated
	}
	ip.Proto = b[9]
	ip.Src = netip.AddrFrom4([4]byte(b[12:16]))
	ip.Dst = netip.AddrFrom4([4]byte(b[16:20]))
	f := binary.BigEndian.Uint16(b[6:])
	ip.More = f&0x2000 != 0
	ip.Offset = int(f&0x1fff) * 8
	if ip.Fragment = ip.More || ip.Offset != 0; ip.Fragment {
		ip.FragmentID = uint32(binary.BigEndian.Uint16(b[4:]))
	}
	return options4(b[header4:ip.Header])
}

// options4 refuses IPv4 options that carry addresses: record route, timestamp, loose and strict source route.
func options4(o []byte) Reason {
	for len(o) > 0 {
		switch o[0] {
		case 0:
			return 0
		case 1:
			o = o[1:]
			continue
		case 7, 68:
			return ErrOptions
		case 131, 137:
			return ErrRouting
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return ErrHeader
		}
		o = o[o[1]:]
	}
	return 0
}

func (ip *IP) parse6(b []byte, quoted bool) Reason {
	if len(b) < header6 {
		return ErrTruncated
	}
	ip.Version = 6
	ip.Len = header6 + int(binary.BigEndian.Uint16(b[4:]))
	if !quoted && len(b) < ip.Len {
		return ErrTruncated
	}
	ip.Src = netip.AddrFrom16([16]byte(b[8:24]))
	ip.Dst = netip.AddrFrom16([16]byte(b[24:40]))
	ip.Proto = b[6]
	ip.Header = header6
	b = b[:min(len(b), ip.Len)]
	for n := 0; ; n++ {
		switch ip.Proto {
		case extHopByHop:
			if n != 0 {
				return ErrHeader
			}
		case extRouting, extDestination, extFragment:
		default:
			return 0
		}
		if n == maxExtensions {
			return ErrOptions
		}
		rest := b[ip.Header:]
		size := 8
		if ip.Proto != extFragment && len(rest) >= 2 {
			size = 8 + int(rest[1])*8
		}
		if len(rest) < size {
			return ErrTruncated
		}
		h := rest[:size]
		switch ip.Proto {
		case extRouting:
			if h[3] != 0 {
				return ErrRouting
			}
		case extDestination:
			if r := options6(h[2:]); r != 0 {
				return r
			}
		case extFragment:
			if ip.Fragment {
				return ErrHeader
			}
			f := binary.BigEndian.Uint16(h[2:])
			ip.More = f&1 != 0
			ip.Offset = int(f &^ 7)
			ip.Fragment = ip.More || ip.Offset != 0
			ip.FragmentID = binary.BigEndian.Uint32(h[4:])
		}
		ip.Proto = h[0]
		ip.Header += size
		if ip.Offset != 0 {
			return 0 // what follows is the middle of something
		}
	}
}

// options6 refuses a home address among destination options.
func options6(o []byte) Reason {
	for len(o) > 0 {
		switch {
		case o[0] == 0:
			o = o[1:]
			continue
		case o[0] == optHomeAddress:
			return ErrOptions
		case len(o) < 2 || 2+int(o[1]) > len(o):
			return ErrHeader
		}
		o = o[2+int(o[1]):]
	}
	return 0
}

// parseTransport reads ports, types and the place of the checksum. b ends where the packet (or what there is of it) ends.
func (ip *IP) parseTransport(b []byte, quoted bool) Reason {
	var size, sum int
	switch ip.Proto {
	case ProtoTCP:
		size, sum = 20, 16
	case ProtoUDP, ProtoUDPLite:
		size, sum = 8, 6
	case ProtoDCCP:
		size, sum = 12, 6
	case ProtoSCTP:
		size = 12
	case ProtoICMP:
		if ip.Version != 4 {
			return 0
		}
		size = 8
	case ProtoICMPv6:
		if ip.Version != 6 {
			return 0
		}
		size, sum = 8, 2
	default:
		return 0
	}
	t := b[ip.Header:]
	if len(t) < size && !quoted {
		return ErrTruncated
	}
	if sum != 0 && len(t) > sum {
		if len(t) == sum+1 {
			return ErrTruncated // quoted up to half a checksum, which could not be mended
		}
		ip.sum = ip.Header + sum
	}
	switch ip.Proto {
	case ProtoICMP, ProtoICMPv6:
		if len(t) < 8 {
			return 0
		}
		ip.Transport = true
		ip.Type, ip.Code = t[0], t[1]
		ip.EchoID = binary.BigEndian.Uint16(t[4:])
		return 0
	}
	if len(t) < 4 {
		return 0
	}
	ip.Transport = true
	ip.SrcPort = binary.BigEndian.Uint16(t)
	ip.DstPort = binary.BigEndian.Uint16(t[2:])
	switch ip.Proto {
	case ProtoTCP:
		if len(t) >= size {
			if t[12]>>4 < 5 {
				return ErrHeader
			}
			ip.TCPFlags = t[13]
		}
	case ProtoUDP, ProtoUDPLite:
		if ip.sum != 0 && t[6] == 0 && t[7] == 0 {
			// None was computed: over IPv4 it stays so; elsewhere it is illegal. A quoted packet's checksum nobody checks.
			if !quoted && (ip.Version == 6 || ip.Proto == ProtoUDPLite) {
				return ErrChecksum
			}
			ip.sum = 0
		}
	}
	return 0
}
