package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

const (
	askTime    = 5 * time.Second         // for one question in all: what a stub resolver waits
	tryTime    = 1500 * time.Millisecond // for one upstream
	rounds     = 2                       // through all upstreams
	lingerTime = time.Second             // for what is asked when the server ends
	maxAsks    = 256                     // different questions at a time
	maxStray   = 64                      // datagrams that answer something else, of one try

	// An upstream that failed stands behind the others for this long, doubled with each failure in a row.
	firstPenalty = 2 * time.Second
	maxPenalty   = time.Minute
)

var (
	errBusy     = errors.New("dns: too many questions are with the upstreams")
	errMustStay = errors.New("dns: the name must not leave")
	errStray    = errors.New("dns: too many answers to something else")
)

// forwarder asks the upstream resolvers for foreign names (protocol 4 section 7.5). They are tried in the configured order, those that failed lately last. Equal
// questions are asked once; this also ends a loop through an upstream that asks us again. Each query has a socket of its own with a port
// of the kernel's choice and takes answers only from where it was sent to, with its id and its question.
type forwarder struct {
	upstreams []*upstream
	flight    singleflight.Group
	slots     chan struct{}
	dial      func(ctx context.Context, network, addr string) (net.Conn, error)
	counts    *counters
	log       *slog.Logger
}

// upstream is one resolver and what we remember of it.
type upstream struct {
	addr netip.AddrPort

	mu       sync.Mutex
	failures int       // in a row
	until    time.Time // stands behind the others
}

func newForwarder(addrs []netip.AddrPort, counts *counters, log *slog.Logger) *forwarder {
	f := &forwarder{slots: make(chan struct{}, maxAsks), dial: new(net.Dialer).DialContext, counts: counts, log: log}
	for _, a := range addrs {
		f.upstreams = append(f.upstreams, &upstream{addr: a})
	}
	return f
}

// forward answers a foreign question from an upstream.
func (s *Server) forward(ctx context.Context, r *reply) {
	f := s.upstream.Load()
	if len(f.upstreams) == 0 {
		r.fail(dns.RcodeRefused, noUpstream)
		return
	}
	m, err := f.ask(ctx, r.msg.Question[0], r.do, r.msg.CheckingDisabled)
	switch {
	case errors.Is(err, errBusy):
		r.fail(dns.RcodeServerFailure, overload)
		return
	case err != nil:
		r.fail(dns.RcodeServerFailure, upstreamFailed)
		return
	}
	r.take(m)
}

// take makes r of an upstream's answer. m is shared with others who asked the same: nothing in it is changed.
func (r *reply) take(m *dns.Msg) {
	r.why = forwarded
	r.msg.Rcode, r.msg.Authoritative = m.Rcode, m.Authoritative
	r.msg.AuthenticatedData = m.AuthenticatedData && r.do
	r.msg.Answer, r.msg.Ns, r.msg.Extra = taken(m.Answer), taken(m.Ns), taken(m.Extra)
}

// taken gives the records of an upstream that are passed on: none that belongs to one hop, and none that speaks for a name of ours.
func taken(rrs []dns.RR) []dns.RR {
	var out []dns.RR
	for _, rr := range rrs {
		switch sig, _ := rr.(*dns.SIG); {
		case rr.Header().Rrtype == dns.TypeOPT, rr.Header().Rrtype == dns.TypeTSIG, sig != nil && sig.TypeCovered == 0:
			continue
		}
		labels, ok := labelsOf(rr.Header().Name)
		if !ok || len(labels) > 0 && ourTLD(labels[len(labels)-1]) {
			continue
		}
		out = append(out, rr)
	}
	return out
}

// ask gives the answer of the first upstream that has one. The message is not to be changed.
func (f *forwarder) ask(ctx context.Context, q dns.Question, do, cd bool) (*dns.Msg, error) {
	id := fmt.Sprintf("%s %d %d %t %t", strings.ToLower(q.Name), q.Qtype, q.Qclass, do, cd)
	// The first who asks works for all, under its own context: that is the server's.
	v, err, shared := f.flight.Do(id, func() (any, error) {
		select {
		case f.slots <- struct{}{}:
			defer func() { <-f.slots }()
		default:
			return nil, errBusy
		}
		return f.askAll(ctx, q, do, cd)
	})
	if shared {
		f.counts.shared.Add(1)
	}
	if err != nil {
		return nil, err
	}
	return v.(*dns.Msg), nil
}

// askAll goes on for a moment after whole has ended, so that programs do not notice when one process takes over from another.
func (f *forwarder) askAll(whole context.Context, q dns.Question, do, cd bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(whole), askTime)
	defer cancel()
	defer context.AfterFunc(whole, func() { time.AfterFunc(lingerTime, cancel) })()
	var unwilling *dns.Msg // an answer, but none that helps
	var last error
	for range rounds {
		for _, u := range f.order(time.Now()) {
			m, err := f.try(ctx, u, q, do, cd)
			if errors.Is(err, errMustStay) {
				return nil, err
			}
			if err != nil {
				if ctx.Err() != nil && last != nil {
					return nil, last
				}
				last = err
				f.counts.failures.Add(1)
				continue
			}
			switch m.Rcode {
			case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
				unwilling = m
				continue
			}
			return m, nil
		}
		if unwilling != nil {
			return unwilling, nil
		}
	}
	return nil, last
}

// order gives the upstreams as configured, those with a penalty behind the others, the one whose penalty ends first before the rest.
func (f *forwarder) order(now time.Time) []*upstream {
	until := make(map[*upstream]time.Time)
	for _, u := range f.upstreams {
		u.mu.Lock()
		if u.until.After(now) {
			until[u] = u.until
		}
		u.mu.Unlock()
	}
	list := slices.Clone(f.upstreams)
	slices.SortStableFunc(list, func(a, b *upstream) int { return until[a].Compare(until[b]) })
	return list
}

// try asks one upstream: over UDP; without EDNS if it knows none; over TCP if the answer was cut.
func (f *forwarder) try(ctx context.Context, u *upstream, q dns.Question, do, cd bool) (*dns.Msg, error) {
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	m, err := f.exchange(ctx, "udp", u, query(q, true, do, cd))
	edns := err != nil || m.Rcode != dns.RcodeFormatError && m.Rcode != dns.RcodeNotImplemented
	if !edns {
		m, err = f.exchange(ctx, "udp", u, query(q, false, false, cd))
	}
	if !errors.Is(err, errMustStay) && whole.Err() == nil {
		f.note(u, err)
	}
	if err == nil && m.Truncated {
		f.counts.overTCP.Add(1)
		m, err = f.exchange(ctx, "tcp", u, query(q, edns, do && edns, cd))
	}
	if err == nil && m.Rcode > 0xf {
		err = fmt.Errorf("dns: upstream answered %s", dns.RcodeToString[m.Rcode])
	}
	return m, err
}

// note remembers whether an upstream answered, and tells when that changes.
func (f *forwarder) note(u *upstream, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err == nil {
		if u.failures > 0 {
			f.log.Info("upstream resolver answers again", "upstream", u.addr)
		}
		u.failures, u.until = 0, time.Time{}
		return
	}
	if u.failures == 0 {
		f.log.Warn("upstream resolver does not answer", "upstream", u.addr, "err", err)
	}
	u.until = time.Now().Add(min(firstPenalty<<min(u.failures, 10), maxPenalty))
	u.failures++
}

// query makes a query with an id of its own, RD set, and none of the client's EDNS options.
func query(q dns.Question, edns, do, cd bool) *dns.Msg {
	m := &dns.Msg{
		MsgHdr:   dns.MsgHdr{Id: dns.Id(), RecursionDesired: true, CheckingDisabled: cd},
		Question: []dns.Question{q},
	}
	if edns {
		m.SetEdns0(ednsSize, do)
	}
	return m
}

// exchange sends one query and waits for its answer.
func (f *forwarder) exchange(ctx context.Context, network string, u *upstream, query *dns.Msg) (*dns.Msg, error) {
	wire, err := query.Pack()
	if err != nil {
		return nil, err
	}
	if labels, n := wireLabels(wire[headerSize:]); n == 0 || !mayLeave(labels) {
		return nil, errMustStay
	}
	f.counts.sent.Add(1)

	c, err := f.dial(ctx, network, u.addr.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if network == "tcp" {
		wire = append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)
	}
	if _, err := c.Write(wire); err != nil {
		return nil, err
	}
	if network == "tcp" {
		b, err := readMessage(c, dns.MaxMsgSize)
		if err != nil {
			return nil, err
		}
		m, ok, err := match(b, query)
		if !ok {
			err = errStray
		}
		return m, err
	}
	b := make([]byte, 4096)
	for range maxStray {
		n, err := c.Read(b)
		if err != nil {
			return nil, err
		}
		if m, ok, err := match(b[:n], query); ok {
			return m, err
		}
		f.counts.strange.Add(1)
	}
	return nil, errStray
}

// match reads b; not ok: it does not answer query. An error: it does, but cannot be read.
func match(b []byte, query *dns.Msg) (m *dns.Msg, ok bool, err error) {
	if len(b) < headerSize || binary.BigEndian.Uint16(b) != query.Id || b[2]&0x80 == 0 {
		return nil, false, nil
	}
	m = new(dns.Msg)
	err = m.Unpack(b)
	switch {
	case len(m.Question) == 1 && sameQuestion(m.Question[0], query.Question[0]) && m.Opcode == dns.OpcodeQuery:
	case len(m.Question) == 0 && m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError: // some refuse with a bare header
	default:
		return nil, false, nil
	}
	switch {
	case m.Truncated: // only that matters
		err = nil
	case err == nil:
		err = rewritable(m)
	}
	return m, true, err
}

// rewritable reports why m, written again, could not be read. The library takes records whose data ends early and writes them in a way that it refuses itself.
func rewritable(m *dns.Msg) error {
	b, err := m.Pack()
	if err != nil {
		return err
	}
	return new(dns.Msg).Unpack(b)
}

func sameQuestion(a, b dns.Question) bool {
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}

// readMessage reads one message from a stream: two bytes of length, then so many, at most limit.
func readMessage(r io.Reader, limit int) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > limit {
		return nil, fmt.Errorf("dns: message of %d bytes, at most %d are taken", n, limit)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}
