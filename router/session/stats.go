package session

import "sync/atomic"

// Stats counts what a Table did since it was made.
type Stats struct {
	PacketsOut, BytesOut uint64 // IP packets handed to a path
	PacketsIn, BytesIn   uint64 // IP packets delivered

	InitsSent     uint64 // repeated ones too
	AcceptsTaken  uint64 // sessions that we called for and that were established
	InitsTaken    uint64 // sessions that a remote called for and that were established
	AcceptsSent   uint64 // repeated ones too
	SwitchesSent  uint64
	SwitchesTaken uint64
	Diverted      uint64 // ways that were changed because the remote answered over another path only
	Lookups       uint64 // of contacts
	Publications  uint64
	Denied        uint64 // publications at one location that were confirmed and then not found there

	// Packets of ours that were dropped.
	DropQueue       uint64 // displaced by newer ones before the session was established
	DropUnreachable uint64 // given back: no contact, no session in time
	DropRoute       uint64 // the remote's last path to us is gone
	DropMalformed   uint64 // not an IP packet
	DropLong        uint64

	// Messages of others that were dropped.
	DropShort     uint64
	DropTag       uint64 // no such session
	DropForged    uint64 // does not open, or was not signed by who it says
	DropReplayed  uint64
	DropEmpty     uint64
	DropType      uint64 // message or traffic of a type that we do not take
	DropParse     uint64
	DropDirection uint64 // only the other side of a session may send this, or not over this path
	DropRefused   uint64 // Config.Accept said no
	DropRate      uint64 // more handshakes than we pay for
	DropFull      uint64 // sessions
}

type counters struct {
	PacketsOut, BytesOut, PacketsIn, BytesIn                                                    atomic.Uint64
	InitsSent, AcceptsTaken, InitsTaken, AcceptsSent, SwitchesSent, SwitchesTaken, Diverted     atomic.Uint64
	Lookups, Publications, Denied                                                               atomic.Uint64
	DropQueue, DropUnreachable, DropRoute, DropMalformed, DropLong                              atomic.Uint64
	DropShort, DropTag, DropForged, DropReplayed, DropEmpty, DropType, DropParse, DropDirection atomic.Uint64
	DropRefused, DropRate, DropFull                                                             atomic.Uint64
}

// Stats returns the counters.
func (t *Table) Stats() Stats {
	c := &t.count
	return Stats{
		PacketsOut: c.PacketsOut.Load(), BytesOut: c.BytesOut.Load(), PacketsIn: c.PacketsIn.Load(), BytesIn: c.BytesIn.Load(),
		InitsSent: c.InitsSent.Load(), AcceptsTaken: c.AcceptsTaken.Load(), InitsTaken: c.InitsTaken.Load(), AcceptsSent: c.AcceptsSent.Load(),
		SwitchesSent: c.SwitchesSent.Load(), SwitchesTaken: c.SwitchesTaken.Load(), Diverted: c.Diverted.Load(), Lookups: c.Lookups.Load(), Publications: c.Publications.Load(), Denied: c.Denied.Load(),
		DropQueue: c.DropQueue.Load(), DropUnreachable: c.DropUnreachable.Load(), DropRoute: c.DropRoute.Load(),
		DropMalformed: c.DropMalformed.Load(), DropLong: c.DropLong.Load(),
		DropShort: c.DropShort.Load(), DropTag: c.DropTag.Load(), DropForged: c.DropForged.Load(), DropReplayed: c.DropReplayed.Load(),
		DropEmpty: c.DropEmpty.Load(), DropType: c.DropType.Load(), DropParse: c.DropParse.Load(), DropDirection: c.DropDirection.Load(),
		DropRefused: c.DropRefused.Load(), DropRate: c.DropRate.Load(), DropFull: c.DropFull.Load(),
	}
}

// Sizes is how much a Table holds at the moment. Each is bounded, by Limits or by the number of remotes, and falls when nobody talks.
type Sizes struct {
	Remotes, Sessions, Calls, Contacts int
	Pending                            int // inits that an accept may come for
	Queued                             int // packets that wait for a session
	Tried                              int // paths that calls remember
}

// Sizes says what t holds.
func (t *Table) Sizes() Sizes {
	t.lock()
	defer t.unlock()
	s := Sizes{Remotes: len(t.remotes), Sessions: len(t.tags), Calls: t.calls, Contacts: len(t.contacts), Pending: len(t.pending)}
	for _, r := range t.remotes {
		s.Queued += len(r.queue)
		if c := r.call; c != nil {
			s.Tried += len(c.tried) + len(c.seen)
		}
	}
	return s
}
