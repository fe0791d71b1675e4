package dns

import (
	"sync/atomic"

	"github.com/miekg/dns"
)

// reason says why a reply is what it is, finer than its rcode. It is what is counted and what the client reads as an extended error.
type reason uint8

const (
	undecided reason = iota

	answered       // records of ours
	noData         // the name exists, such a record does not
	late           // an address, but no session within the hold time
	malformed      // no such name can be
	notFound       // the network says that there is no such name
	notRegistered  // a relay that the network does not know
	notReady       // no path yet, or none any more
	stopped        // we only stand in for a daemon that does not run
	lookupFailed   // Source could not find out
	familyOff      // no record because the address family is off
	exhausted      // no IPv4 address is free
	canaryAsked    // use-application-dns.net
	keptIn         // a name that must not leave
	forwarded      // an upstream's answer
	noUpstream     // foreign name, nobody to ask
	upstreamFailed // no upstream answered in time
	refused        // class or type that we do not serve
	badMessage     // FORMERR, NOTIMP, BADVERS
	badCookie      // cookie of another server, address or time
	empty          // no question: only a cookie was fetched
	overload       // over the bounds
	crashed        // a fault of the program

	ignored   // dropped: short, a reply, or from ourselves
	truncated // in addition: cut to TC
	reasons
)

// String is the word in logs.
func (r reason) String() string { return reasonText[r].word }

// stoppedText is how a guard is told from a daemon (StandsIn).
const stoppedText = "lokinetd is stopped"

// reasonText: the word for logs, and the extended error (RFC 8914) that goes with the reply when it has a text. It does more than explain: it tells systemd-resolved
// not to repeat the query (see the package comment), each time to be held again.
var reasonText = [reasons]struct {
	word string
	code uint16
	text string
}{
	undecided:      {word: "undecided"},
	answered:       {word: "answered"},
	noData:         {word: "no such record"},
	late:           {"answered without a session", dns.ExtendedErrorCodeOther, "session not established yet"},
	malformed:      {"malformed name", dns.ExtendedErrorCodeOther, "malformed name"},
	notFound:       {word: "no such name"},
	notRegistered:  {"relay not registered", dns.ExtendedErrorCodeOther, "relay not registered"},
	notReady:       {"not connected", dns.ExtendedErrorCodeNotReady, "not connected to the network"},
	stopped:        {"stopped", dns.ExtendedErrorCodeNotReady, stoppedText},
	lookupFailed:   {"look-up failed", dns.ExtendedErrorCodeNetworkError, "look-up in the network failed"},
	familyOff:      {"address family off", dns.ExtendedErrorCodeOther, "address family is off"},
	exhausted:      {"no free address", dns.ExtendedErrorCodeOther, "no free IPv4 address"},
	canaryAsked:    {word: "canary"},
	keptIn:         {"kept in", dns.ExtendedErrorCodeBlocked, "this name must not leave"},
	forwarded:      {word: "forwarded"},
	noUpstream:     {"no upstream", dns.ExtendedErrorCodeNotAuthoritative, "no upstream resolver is configured"},
	upstreamFailed: {"upstream failed", dns.ExtendedErrorCodeNetworkError, "no upstream resolver answered"},
	refused:        {"class or type not served", dns.ExtendedErrorCodeNotSupported, "class or type is not served"},
	badMessage:     {word: "bad message"},
	badCookie:      {word: "bad cookie"},
	empty:          {word: "no question"},
	overload:       {"overload", dns.ExtendedErrorCodeOther, "too many queries"},
	crashed:        {"crashed", dns.ExtendedErrorCodeOther, "internal error"},
	ignored:        {word: "ignored"},
	truncated:      {word: "truncated"},
}

// Stats counts since the start. Every reply is counted once under its rcode and once under its reason.
type Stats struct {
	UDP, TCP uint64 // messages read

	// Messages and connections without a reply.
	Ignored  uint64 // too short, itself a reply, or from our own socket
	Dropped  uint64 // UDP queries over the bound on queries in work
	Refusals uint64 // TCP connections over the bound, closed at once

	// Replies by rcode.
	NoError, FormErr, ServFail, NXDomain, NotImp, Refused, BadVers, BadCookie, OtherRcode uint64
	// Replies cut to TC.
	Truncated uint64

	// Replies by reason.
	Answered       uint64 // with records of ours
	Late           uint64 // likewise, but no session stood after the hold time
	NoData         uint64 // no record of that type
	FamilyOff      uint64 // likewise, because IPv4 or IPv6 is off
	Exhausted      uint64 // likewise, because no IPv4 address is free
	Malformed      uint64 // names that cannot exist
	NotFound       uint64 // names that the network does not know
	NotRegistered  uint64 // relays that the network does not know
	NotReady       uint64 // not connected
	LookupFailed   uint64 // the network did not tell
	Canary         uint64 // use-application-dns.net
	KeptIn         uint64 // not ours to answer, and not allowed to leave
	Forwarded      uint64 // answered by an upstream
	NoUpstream     uint64 // refused: no upstream is configured
	UpstreamFailed uint64 // no upstream answered
	NotServed      uint64 // class or type that is not served
	BadMessage     uint64 // unreadable, or of an unknown opcode or EDNS version
	NoQuestion     uint64 // only a cookie was fetched
	Overload       uint64 // forwards over the bound
	Crashed        uint64 // faults of the program

	Upstream UpstreamStats
}

// UpstreamStats counts the forwarder's work.
type UpstreamStats struct {
	Queries uint64 // sent, retries included
	Shared  uint64 // questions that waited for the answer to an equal one
	TCP     uint64 // repeated over TCP because the answer was cut
	Failed  uint64 // tries without a usable answer
	Strange uint64 // datagrams that answered something else
}

// counters is Stats while it grows.
type counters struct {
	udp, tcp, dropped, refusals              atomic.Uint64
	sent, shared, overTCP, failures, strange atomic.Uint64
	rcodes                                   [dns.RcodeBadCookie + 1]atomic.Uint64
	otherRcode                               atomic.Uint64
	reasons                                  [reasons]atomic.Uint64
}

func (c *counters) add(r reason) { c.reasons[r].Add(1) }

func (c *counters) answered(r *reply) {
	c.add(r.why)
	if r.msg.Truncated {
		c.add(truncated)
	}
	if rc := r.msg.Rcode; rc < len(c.rcodes) {
		c.rcodes[rc].Add(1)
	} else {
		c.otherRcode.Add(1)
	}
}

// Stats gives the counters. Safe at any time.
func (s *Server) Stats() Stats {
	c := &s.counts
	r := func(r reason) uint64 { return c.reasons[r].Load() }
	st := Stats{
		UDP: c.udp.Load(), TCP: c.tcp.Load(),
		Ignored: r(ignored), Dropped: c.dropped.Load(), Refusals: c.refusals.Load(),
		Truncated: r(truncated),
		Answered:  r(answered), Late: r(late), NoData: r(noData), FamilyOff: r(familyOff), Exhausted: r(exhausted),
		Malformed: r(malformed), NotFound: r(notFound), NotRegistered: r(notRegistered),
		NotReady: r(notReady) + r(stopped), LookupFailed: r(lookupFailed), Canary: r(canaryAsked), KeptIn: r(keptIn),
		Forwarded: r(forwarded), NoUpstream: r(noUpstream), UpstreamFailed: r(upstreamFailed),
		NotServed: r(refused), BadMessage: r(badMessage), NoQuestion: r(empty), Overload: r(overload), Crashed: r(crashed),
		Upstream: UpstreamStats{
			Queries: c.sent.Load(), Shared: c.shared.Load(), TCP: c.overTCP.Load(), Failed: c.failures.Load(), Strange: c.strange.Load(),
		},
	}
	st.OtherRcode = c.otherRcode.Load()
	for rc := range c.rcodes {
		n := c.rcodes[rc].Load()
		switch rc {
		case dns.RcodeSuccess:
			st.NoError += n
		case dns.RcodeFormatError:
			st.FormErr += n
		case dns.RcodeServerFailure:
			st.ServFail += n
		case dns.RcodeNameError:
			st.NXDomain += n
		case dns.RcodeNotImplemented:
			st.NotImp += n
		case dns.RcodeRefused:
			st.Refused += n
		case dns.RcodeBadVers:
			st.BadVers += n
		case dns.RcodeBadCookie:
			st.BadCookie += n
		default:
			st.OtherRcode += n
		}
	}
	return st
}
