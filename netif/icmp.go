package netif

import (
	"encoding/binary"
	"time"

	"lokinetd/router/packet"
)

const (
	unreachableRate  = 100 // ICMP errors a second that we make, at most
	unreachableBurst = 100
	quoted           = 32 // bytes behind the IP header that an error quotes
)

// quote keeps the beginning of a packet for an ICMP error about it.
type quote struct {
	n int
	b [128]byte
}

func (q *quote) keep(p []byte) { q.n = copy(q.b[:], p) }
func (q *quote) bytes() []byte { return q.b[:q.n] }

// unreachable queues an ICMP "host unreachable" or ICMPv6 "address unreachable" about the packet ip, as the host itself had sent it, whose
// beginning is b (protocol 4 section 6.5). It does not keep b. Nothing is sent about ICMP other than echo requests, about later
// fragments, beyond the rate limit or into a full queue; multicast and broadcast do not come here.
func (p *Pump) unreachable(ip *packet.IP, b []byte, now time.Time) {
	if !ip.FirstPart() || ip.ICMP() && !ip.Echo() {
		return
	}
	if !p.errors.AllowN(now, 1) {
		p.count.add(unreachableLimited)
		return
	}
	r := packet.Get()
	n := min(len(b), ip.Header+quoted)
	if ip.Version == 4 {
		h := r.Extend(28)
		clear(h)
		h[0], h[6], h[8], h[9] = 0x45, 0x40, 64, packet.ProtoICMP // don't fragment
		binary.BigEndian.PutUint16(h[2:], uint16(28+n))
		src, dst := ip.Dst.As4(), ip.Src.As4()
		copy(h[12:], src[:])
		copy(h[16:], dst[:])
		binary.BigEndian.PutUint16(h[10:], ^packet.Sum(h[:20], 0))
		h[20], h[21] = packet.ICMPUnreachable, 1
		copy(r.Extend(n), b)
		binary.BigEndian.PutUint16(r.Data[22:], ^packet.Sum(r.Data[20:], 0))
	} else {
		n &^= 3
		h := r.Extend(48)
		clear(h)
		h[0], h[6], h[7] = 0x60, packet.ProtoICMPv6, 64
		binary.BigEndian.PutUint16(h[4:], uint16(8+n))
		src, dst := ip.Dst.As16(), ip.Src.As16()
		copy(h[8:], src[:])
		copy(h[24:], dst[:])
		h[40], h[41] = packet.ICMPv6Unreachable, 3
		copy(r.Extend(n), b)
		binary.BigEndian.PutUint16(r.Data[42:], ^packet.Sum(r.Data[40:], packet.PseudoSum(ip.Dst, ip.Src, packet.ProtoICMPv6, 8+n)))
	}
	select {
	case p.queue <- r:
		p.count.add(unreachableSent)
	default:
		p.drop(r, unreachableLimited)
	}
}
