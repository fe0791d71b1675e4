package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"lokinetd/router/key"
)

// Times to live in seconds.
const (
	answerTTL  = 10
	randomTTL  = 1   // random.snode: the next question gets another relay
	maxNameTTL = 300 // of an SNS name's CNAME

	// Of negative answers.
	noDataTTL        = 30 // such a record will not come soon
	unavailableTTL   = 5  // may change at any time
	malformedTTL     = 30
	canaryTTL        = 30
	notRegisteredTTL = 15
)

// resolve answers the question of r, whoever it is for.
func (s *Server) resolve(ctx context.Context, r *reply) {
	q := r.msg.Question[0]
	place, zone := s.placeOf(r.labels)
	r.zone = nameOf(zone)
	switch q.Qtype {
	case dns.TypeAXFR, dns.TypeIXFR, dns.TypeMAILA, dns.TypeMAILB, dns.TypeOPT, dns.TypeTSIG, dns.TypeTKEY:
		r.fail(dns.RcodeRefused, refused)
		return
	}
	if q.Qclass != dns.ClassINET {
		r.fail(dns.RcodeRefused, refused)
		return
	}
	_, absent := s.source.(*away)
	switch place {
	case ours:
		if absent {
			r.fail(dns.RcodeServerFailure, stopped)
		} else {
			s.answer(ctx, r)
		}
		if r.why != answered && r.why != late {
			s.unanswered.add(r.labels)
		}
	case apex:
		s.answerApex(r)
	case backward:
		if absent {
			r.fail(dns.RcodeServerFailure, stopped)
		} else {
			s.answerReverse(r)
		}
	case canary:
		s.negative(r, dns.RcodeNameError, canaryAsked, canaryTTL)
	case kept:
		s.negative(r, dns.RcodeNameError, keptIn, malformedTTL)
	default:
		s.forward(ctx, r)
	}
}

// answer answers for a name under one of our domains (protocol 4 section 7.3, protocol/README decision 10): the name leads to an address, over a CNAME unless it is
// one, and the address to records. Every name that leads to an address exists, with everything in front of it; types that it has not are NODATA.
func (s *Server) answer(ctx context.Context, r *reply) {
	ctx, cancel := context.WithTimeout(ctx, s.hold)
	defer cancel()

	n, err := parseName(r.labels)
	if err != nil {
		s.negative(r, dns.RcodeNameError, malformed, malformedTTL)
		return
	}
	self := s.source.Self()
	if n.Kind != key.NameLocalhost && n.Address != self && !s.source.Ready(ctx) {
		r.fail(dns.RcodeServerFailure, notReady)
		return
	}

	a := n.Address
	switch ttl := time.Duration(0); n.Kind {
	case key.NameLocalhost:
		a = self
		s.cname(r, n.Labels, a, answerTTL)
	case key.NameRandom:
		var ok bool
		if a, ok = s.source.RandomRelay(); !ok {
			r.fail(dns.RcodeServerFailure, notReady)
			return
		}
		s.cname(r, n.Labels, a, randomTTL)
	case key.NameSNS:
		a, ttl, err = s.source.Lookup(ctx, n.SNS)
		seconds := uint32(min(max(ttl/time.Second, 0), maxNameTTL))
		if errors.Is(err, ErrNotExist) {
			s.negative(r, dns.RcodeNameError, notFound, seconds)
			return
		} else if err != nil {
			r.fail(dns.RcodeServerFailure, lookupFailed)
			return
		}
		s.cname(r, n.Labels, a, seconds)
	}
	switch {
	case r.why != undecided: // only the CNAME was asked for, or it cannot be
	case !s.source.Exists(a):
		s.negative(r, dns.RcodeNameError, notRegistered, notRegisteredTTL)
	default:
		s.records(ctx, r, n.Labels, a)
	}
	s.finish(r)
}

// records adds what is asked for of an address that exists; sub are the labels in front of it.
func (s *Server) records(ctx context.Context, r *reply, sub []string, a key.Address) {
	switch r.msg.Question[0].Qtype {
	case dns.TypeA, dns.TypeAAAA:
		v6 := r.msg.Question[0].Qtype == dns.TypeAAAA
		ip, err := s.source.Addr(ctx, a, v6)
		switch {
		case errors.Is(err, ErrNoFamily):
			s.negative(r, dns.RcodeSuccess, familyOff, noDataTTL)
		case errors.Is(err, ErrExhausted):
			s.negative(r, dns.RcodeSuccess, exhausted, unavailableTTL)
		case err != nil || ip.Is6() != v6 || ip.Is4() == v6:
			r.fail(dns.RcodeServerFailure, lookupFailed)
		default:
			r.addr(ip)
			if ctx.Err() != nil {
				r.why = late
			}
		}
	case dns.TypeTXT:
		path := len(sub) == 1 && sub[0] == "path"
		if path || len(sub) == 0 {
			r.txt(s.source.Text(a, path), path)
		}
	case dns.TypeSRV:
		if len(sub) != 2 || !strings.HasPrefix(sub[0], "_") || !strings.HasPrefix(sub[1], "_") {
			return
		}
		list, err := s.source.Services(ctx, a)
		if err != nil && !errors.Is(err, ErrNotExist) {
			r.fail(dns.RcodeServerFailure, lookupFailed)
			return
		}
		for _, v := range list {
			if target, ok := s.target(v.Target, a); ok && v.Service == sub[0]+"."+sub[1] {
				r.add(&dns.SRV{Hdr: r.head(dns.TypeSRV, answerTTL), Priority: v.Priority, Weight: v.Weight, Port: v.Port, Target: target})
			}
		}
	}
}

// finish settles a reply to which records were added, or none.
func (s *Server) finish(r *reply) {
	switch {
	case r.why == answered || r.why == late:
		r.msg.Authoritative = true
	case r.why == undecided:
		s.negative(r, dns.RcodeSuccess, noData, noDataTTL)
	}
}

// target is where a service record of a may point: to a name of ours that is somebody's, or nowhere. Anything else would let a stranger's contact
// send our programs to the open network.
func (s *Server) target(text string, a key.Address) (string, bool) {
	switch text {
	case "":
		return a.Text(s.suffix) + ".", true
	case ".":
		return ".", true
	}
	n, err := key.ParseName(text)
	if err != nil || n.Kind != key.NameAddress && n.Kind != key.NameSNS {
		return "", false
	}
	if n.Kind == key.NameAddress && n.Address.Kind == key.Client {
		n.TLD = s.suffix
	}
	return nameOf(strings.Split(n.String(), ".")), true
}

// answerApex answers for loki, sesh and snode themselves. They exist, with a SOA record and nothing else, connected or not: resolvers look for one there to learn
// where a zone begins. (The reference answers FORMERR, which systemd-resolved takes for missing EDNS: it repeats the query with fewer features.)
func (s *Server) answerApex(r *reply) {
	if r.msg.Question[0].Qtype == dns.TypeSOA {
		r.add(s.soa(r.zone, noDataTTL))
	}
	s.finish(r)
}

// answerReverse answers for a name in one of our reverse zones: the mapped addresses have a PTR record, the zone a SOA record.
func (s *Server) answerReverse(r *reply) {
	net, extra, _ := reverseNet(r.labels)
	if extra > 0 {
		s.negative(r, dns.RcodeNameError, malformed, malformedTTL)
		return
	}
	qtype := r.msg.Question[0].Qtype
	if net.IsSingleIP() {
		a, ok := s.source.Reverse(net.Addr())
		if !ok {
			s.negative(r, dns.RcodeNameError, notFound, unavailableTTL)
			return
		}
		if qtype == dns.TypePTR {
			r.add(&dns.PTR{Hdr: r.head(dns.TypePTR, answerTTL), Ptr: a.Text(s.suffix) + "."})
		}
	} else if qtype == dns.TypeSOA && nameOf(r.labels) == r.zone {
		r.add(s.soa(r.zone, noDataTTL))
	}
	s.finish(r)
}

// parseName reads the lowered wire labels of a name of ours.
func parseName(labels []string) (key.Name, error) {
	for _, l := range labels {
		if strings.Contains(l, ".") {
			return key.Name{}, key.ErrMalformed
		}
	}
	return key.ParseName(strings.Join(labels, "."))
}

// cname leads r on to sub in front of a. When that name would be too long the name cannot exist.
func (s *Server) cname(r *reply, sub []string, a key.Address, ttl uint32) {
	labels := append(slices.Clone(sub), strings.Split(a.Text(s.suffix), ".")...)
	target := nameOf(labels)
	if _, ok := labelsOf(target); !ok {
		s.negative(r, dns.RcodeNameError, malformed, malformedTTL)
		return
	}
	r.msg.Answer = append(r.msg.Answer, &dns.CNAME{Hdr: r.head(dns.TypeCNAME, ttl), Target: target})
	r.owner, r.zone = target, nameOf(labels[len(labels)-1:])
	if r.msg.Question[0].Qtype == dns.TypeCNAME {
		r.why = answered
	}
}

// negative makes r NXDOMAIN or NODATA (RFC 2308), kept for ttl seconds by resolvers; CNAMEs that led here stay.
func (s *Server) negative(r *reply, rcode int, why reason, ttl uint32) {
	r.msg.Rcode, r.msg.Authoritative, r.why = rcode, true, why
	r.msg.Ns = []dns.RR{s.soa(r.zone, ttl)}
}

// soa is the SOA record of a zone of ours; negative answers are kept for ttl seconds.
func (s *Server) soa(zone string, ttl uint32) dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns:  "localhost." + s.suffix + ".", Mbox: "lokinetd.localhost." + s.suffix + ".",
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl,
	}
}

func (r *reply) head(rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: r.owner, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// add adds a record that answers the question.
func (r *reply) add(rr dns.RR) {
	r.msg.Answer = append(r.msg.Answer, rr)
	r.why = answered
}

func (r *reply) addr(ip netip.Addr) {
	if ip.Is4() {
		r.add(&dns.A{Hdr: r.head(dns.TypeA, answerTTL), A: net.IP(ip.AsSlice())})
	} else {
		r.add(&dns.AAAA{Hdr: r.head(dns.TypeAAAA, answerTTL), AAAA: net.IP(ip.AsSlice())})
	}
}

// txt adds one TXT record of all strings; what describes a session is not to be kept.
func (r *reply) txt(texts []string, session bool) {
	rr := &dns.TXT{Hdr: r.head(dns.TypeTXT, answerTTL)}
	if session {
		rr.Hdr.Ttl = 0
	}
	for _, t := range texts {
		for len(t) > 255 {
			rr.Txt = append(rr.Txt, strings.ReplaceAll(t[:255], `\`, `\\`))
			t = t[255:]
		}
		rr.Txt = append(rr.Txt, strings.ReplaceAll(t, `\`, `\\`))
	}
	if len(rr.Txt) > 0 {
		r.add(rr)
	}
}
