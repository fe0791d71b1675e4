package path

import "sync/atomic"

// RelayStats counts what went through a relay since it was made. Dropped* are session messages, by reason.
type RelayStats struct {
	Hops    uint64 // transit hops now, with those being built
	Waiting uint64 // path_build and path_control requests now waiting for the next hop

	Builds        uint64 // answered OK
	BuildsRefused uint64 // here
	BuildsFailed  uint64 // at a later hop, or unanswered
	Expired       uint64 // hops

	Requests        uint64 // path_control forwarded and answered
	RequestsHere    uint64 // answered at this terminal
	RequestsRefused uint64
	RequestsLost    uint64 // unanswered, or the hop died meanwhile
	RepliesBad      uint64

	Forwarded uint64 // session messages through a middle hop, either way
	Turned    uint64 // at the pivot
	Delivered uint64 // to this relay's own sessions
	Sent      uint64 // by them

	DroppedShort   uint64
	DroppedLong    uint64
	DroppedUnknown uint64 // no such hop
	DroppedPivot   uint64 // pivot id names no terminal hop
	DroppedType    uint64
	DroppedDead    uint64 // our own, on a path that is gone
	DroppedUnsent  uint64 // session_control that the link did not take
	DroppedRate    uint64 // above the relay's rate
}

type relayCounters struct {
	Builds, BuildsRefused, BuildsFailed, Expired                                                                  atomic.Uint64
	Requests, RequestsHere, RequestsRefused, RequestsLost, RepliesBad                                             atomic.Uint64
	Forwarded, Turned, Delivered, Sent                                                                            atomic.Uint64
	DroppedShort, DroppedLong, DroppedUnknown, DroppedPivot, DroppedType, DroppedDead, DroppedUnsent, DroppedRate atomic.Uint64
}

// Stats returns the counters.
func (r *Relay) Stats() RelayStats {
	c := &r.count
	s := RelayStats{
		Builds: c.Builds.Load(), BuildsRefused: c.BuildsRefused.Load(), BuildsFailed: c.BuildsFailed.Load(), Expired: c.Expired.Load(),
		Requests: c.Requests.Load(), RequestsHere: c.RequestsHere.Load(), RequestsRefused: c.RequestsRefused.Load(),
		RequestsLost: c.RequestsLost.Load(), RepliesBad: c.RepliesBad.Load(),
		Forwarded: c.Forwarded.Load(), Turned: c.Turned.Load(), Delivered: c.Delivered.Load(), Sent: c.Sent.Load(),
		DroppedShort: c.DroppedShort.Load(), DroppedLong: c.DroppedLong.Load(), DroppedUnknown: c.DroppedUnknown.Load(),
		DroppedPivot: c.DroppedPivot.Load(), DroppedType: c.DroppedType.Load(), DroppedDead: c.DroppedDead.Load(), DroppedUnsent: c.DroppedUnsent.Load(), DroppedRate: c.DroppedRate.Load(),
	}
	r.mu.Lock()
	s.Hops, s.Waiting = uint64(len(r.due)), uint64(r.builds+r.requests)
	r.mu.Unlock()
	return s
}
