package netif

import (
	"sync/atomic"

	"lokinetd/router/packet"
)

// Stats counts packets since the pump was made. Every packet that came from the TUN or a tunnel is in exactly one of the packet counters or
// drop reasons of its direction.
type Stats struct {
	// From the TUN into tunnels.
	OutPackets, OutBytes uint64
	OutMalformed         uint64 // see Malformed
	OutMulticast         uint64 // multicast and broadcast
	OutForeign           uint64 // the source is no endpoint's address
	OutUnknown           uint64 // no remote has the destination address
	OutICMPKind          uint64 // ICMP that does not travel between hosts, redirects for example
	OutFull              uint64 // the oldest of the flow with most waiting, when no more could wait
	OutStanding          uint64 // of a flow that waits too long, so that its sender sends less
	OutRefused           uint64 // by the tunnel
	OutReturned          uint64 // by the tunnel, later: these are in OutPackets too
	ReadFailed           uint64 // reads that the TUN could not do; how many packets they were is not known

	// From tunnels into the TUN.
	InPackets, InBytes uint64
	InMalformed        uint64 // see Malformed
	InClosed           uint64 // neither an answer nor to a listed port
	InFragment         uint64 // later fragment whose first one was not let in
	InICMPKind         uint64
	InUnrelated        uint64 // ICMP error about nothing that was sent
	InNoFamily         uint64 // the endpoint has no address of this IP version
	InExhausted        uint64 // no address left for the remote
	InQueueFull        uint64 // the TUN takes packets too slowly
	InRemoved          uint64 // the endpoint is no more
	WriteFailed        uint64 // writes that the TUN refused, at least in part

	// ICMP unreachable made here, and not made because of the rate limit or the full queue.
	UnreachableSent, UnreachableLimited uint64

	// Malformed counts both directions by packet.Reason.
	Malformed [packet.Reasons]uint64
}

type counter uint8

const (
	outPackets counter = iota
	outBytes
	outMalformed
	outMulticast
	outForeign
	outUnknown
	outICMPKind
	outFull
	outStanding
	outRefused
	outReturned
	readFailed
	inPackets
	inBytes
	inMalformed
	inClosed
	inFragment
	inICMPKind
	inUnrelated
	inNoFamily
	inExhausted
	inQueueFull
	inRemoved
	writeFailed
	unreachableSent
	unreachableLimited
	nCounters
)

type counters struct {
	c         [nCounters]atomic.Uint64
	malformed [packet.Reasons]atomic.Uint64
}

func (c *counters) add(i counter)         { c.c[i].Add(1) }
func (c *counters) addN(i counter, n int) { c.c[i].Add(uint64(n)) }

// Stats returns the counters; each is exact, together they are not of one instant.
func (p *Pump) Stats() Stats {
	get := func(i counter) uint64 { return p.count.c[i].Load() }
	s := Stats{
		OutPackets: get(outPackets), OutBytes: get(outBytes), OutMalformed: get(outMalformed), OutMulticast: get(outMulticast),
		OutForeign: get(outForeign), OutUnknown: get(outUnknown), OutICMPKind: get(outICMPKind), OutFull: get(outFull), OutStanding: get(outStanding), OutRefused: get(outRefused), OutReturned: get(outReturned), ReadFailed: get(readFailed),
		InPackets: get(inPackets), InBytes: get(inBytes), InMalformed: get(inMalformed), InClosed: get(inClosed), InFragment: get(inFragment),
		InICMPKind: get(inICMPKind), InUnrelated: get(inUnrelated), InNoFamily: get(inNoFamily), InExhausted: get(inExhausted),
		InQueueFull: get(inQueueFull), InRemoved: get(inRemoved), WriteFailed: get(writeFailed),
		UnreachableSent: get(unreachableSent), UnreachableLimited: get(unreachableLimited),
	}
	for i := range s.Malformed {
		s.Malformed[i] = p.count.malformed[i].Load()
	}
	return s
}
