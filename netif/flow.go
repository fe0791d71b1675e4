package netif

import (
	"sync"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// Inbound says what remotes may send to an endpoint of their own accord. The zero value lets in nothing: answers to what was sent
// out, and ICMP errors about it, need no rule.
type Inbound struct {
	Echo     bool // echo requests
	TCP, UDP []Ports
}

// Ports is a range of port numbers, both ends included.
type Ports struct{ First, Last uint16 }

// lists reports whether proto's port of ours is open to all remotes.
func (in *Inbound) lists(proto uint8, port uint16) bool {
	var l []Ports
	switch proto {
	case packet.ProtoTCP:
		l = in.TCP
	case packet.ProtoUDP:
		l = in.UDP
	}
	for _, p := range l {
		if p.First <= port && port <= p.Last {
			return true
		}
	}
	return false
}

// Bounds and life times of the flow table. Only outbound packets prolong a flow: a remote cannot keep a door open that nobody uses any
// more. (An application that receives over TCP sends acknowledgements.)
const (
	maxFlows       = 1 << 16 // per endpoint
	maxRemoteFlows = 1 << 13 // of which one remote may have
	flowOpening    = 2 * time.Minute
	flowTCP        = 2*time.Hour + 4*time.Minute // RFC 5382: no less
	flowClosing    = time.Minute
	flowUDP        = 5 * time.Minute // RFC 4787: 5 advised
	flowICMP       = time.Minute
	flowOther      = 10 * time.Minute

	maxFragments       = 1 << 10 // first fragments let in whose others may follow
	maxRemoteFragments = 1 << 6
	fragmentTime       = 30 * time.Second
)

// flowKey names a flow of one endpoint. The addresses of the five-tuple follow from the endpoint, the remote and the version.
type flowKey struct {
	remote         key.Address
	version, proto uint8
	local, port    uint16 // our port and the remote's; of an echo: its identifier and 0; of protocols without ports: 0
}

type flow struct {
	answered, finOut, finIn, reset bool // TCP
}

type fragmentKey struct {
	remote         key.Address
	version, proto uint8 // proto: of IPv4 only, where it is part of a datagram's identity
	id             uint32
}

// verdict says whether a packet may pass, or why not.
type verdict uint8

const (
	pass           verdict = iota
	noFlow                 // neither an answer nor listed
	noFragment             // a later fragment of a packet whose first one was not let in
	icmpKind               // an ICMP type that does not travel between hosts: redirect, router and neighbour discovery, queries
	icmpNotRelated         // an ICMP error about nothing that was sent
)

// flows remembers what an endpoint has sent, to tell answers from the rest. Safe for concurrent use; time is a parameter.
type flows struct {
	mu        sync.Mutex
	flows     *table[flowKey, flow]
	fragments *table[fragmentKey, struct{}]
}

func newFlows() *flows {
	return &flows{
		flows:     newTable[flowKey, flow](maxFlows, maxRemoteFlows),
		fragments: newTable[fragmentKey, struct{}](maxFragments, maxRemoteFragments),
	}
}

// out notes an outbound packet, so that its answers come in. The verdict is pass or icmpKind.
func (f *flows) out(remote key.Address, ip *packet.IP, in *Inbound, now time.Time) verdict {
	if !ip.FirstPart() {
		return pass
	}
	k := flowKey{remote: remote, version: ip.Version, proto: ip.Proto, local: ip.SrcPort, port: ip.DstPort}
	if ip.ICMP() {
		switch {
		case ip.Echo():
			k.local, k.port = ip.EchoID, 0
		case ip.EchoReply(), ip.ICMPError():
			return pass
		default:
			return icmpKind
		}
	} else if in.lists(ip.Proto, ip.SrcPort) {
		return pass // what answers it comes in by the list
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	rst := ip.Proto == packet.ProtoTCP && ip.TCPFlags&packet.TCPRst != 0
	if rst && f.flows.get(k, now) == nil {
		return pass
	}
	s := f.flows.put(k, remote, now)
	v := &s.value
	if ip.Proto == packet.ProtoTCP {
		if ip.TCPFlags&(packet.TCPSyn|packet.TCPAck) == packet.TCPSyn {
			*v = flow{}
		}
		v.reset = v.reset || rst
		v.finOut = v.finOut || ip.TCPFlags&packet.TCPFin != 0
	}
	s.expiry = now.Add(lifetime(ip, v))
	return pass
}

func lifetime(ip *packet.IP, v *flow) time.Duration {
	switch {
	case ip.Proto == packet.ProtoTCP && (v.reset || v.finOut && v.finIn):
		return flowClosing
	case ip.Proto == packet.ProtoTCP && v.answered:
		return flowTCP
	case ip.Proto == packet.ProtoTCP:
		return flowOpening
	case ip.Proto == packet.ProtoUDP || ip.Proto == packet.ProtoUDPLite:
		return flowUDP
	case ip.ICMP():
		return flowICMP
	}
	return flowOther
}

// in decides about an inbound packet. orig is the packet that it carries when it is an ICMP error, nil otherwise.
func (f *flows) in(remote key.Address, ip, orig *packet.IP, in *Inbound, now time.Time) verdict {
	fk := fragmentKey{remote: remote, version: ip.Version, id: ip.FragmentID}
	if ip.Version == 4 {
		fk.proto = ip.Proto
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !ip.FirstPart() {
		if f.fragments.get(fk, now) == nil {
			return noFragment
		}
		return pass
	}
	v := f.first(remote, ip, orig, in, now)
	if v == pass && ip.Fragment {
		f.fragments.put(fk, remote, now).expiry = now.Add(fragmentTime)
	}
	return v
}

// first decides about a packet that has its beginning. f.mu is held.
func (f *flows) first(remote key.Address, ip, orig *packet.IP, in *Inbound, now time.Time) verdict {
	k := flowKey{remote: remote, version: ip.Version, proto: ip.Proto, local: ip.DstPort, port: ip.SrcPort}
	if ip.ICMP() {
		switch {
		case ip.Echo():
			if in.Echo {
				return pass
			}
			return noFlow
		case ip.EchoReply():
			k.local, k.port = ip.EchoID, 0
		case ip.ICMPError():
			return f.related(remote, orig, in, now)
		default:
			return icmpKind
		}
	} else if in.lists(ip.Proto, ip.DstPort) {
		return pass
	}
	s := f.flows.get(k, now)
	if s == nil {
		return noFlow
	}
	if ip.Proto == packet.ProtoTCP {
		v := &s.value
		v.answered = true
		v.reset = v.reset || ip.TCPFlags&packet.TCPRst != 0
		v.finIn = v.finIn || ip.TCPFlags&packet.TCPFin != 0
		if end := now.Add(flowClosing); (v.reset || v.finIn && v.finOut) && s.expiry.After(end) {
			s.expiry = end
		}
	}
	return pass
}

// related decides about an ICMP error by the packet that it carries: one that we sent to this remote. f.mu is held.
func (f *flows) related(remote key.Address, orig *packet.IP, in *Inbound, now time.Time) verdict {
	if orig == nil || !orig.FirstPart() {
		return icmpNotRelated
	}
	k := flowKey{remote: remote, version: orig.Version, proto: orig.Proto, local: orig.SrcPort, port: orig.DstPort}
	switch {
	case orig.ICMP():
		if !orig.Echo() {
			return icmpNotRelated
		}
		k.local, k.port = orig.EchoID, 0
	case orig.Transport && in.lists(orig.Proto, orig.SrcPort):
		return pass
	}
	if f.flows.get(k, now) == nil {
		return icmpNotRelated
	}
	return pass
}
