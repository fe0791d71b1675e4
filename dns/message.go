package dns

import (
	"context"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/miekg/dns"
)

// Sizes of messages in bytes (protocol 4 section 7.2).
const (
	headerSize = 12
	plainSize  = dns.MinMsgSize // of a UDP reply to a client without EDNS
	ednsSize   = 1232           // of a UDP reply at most; also what we say that we take
)

// reply is an answer in the making. It is complete when why is set.
type reply struct {
	msg    *dns.Msg // header and question set; sections and rcode to be filled in
	labels []string // of the question's name, as on the wire, lowered
	owner  string   // of the next record: the question's name, then the target of each CNAME
	zone   string   // owner of the SOA record of a negative answer
	why    reason

	opt    bool // the query had EDNS: so has the reply
	do     bool
	size   int    // of the reply at most
	cookie []byte // for the reply; nil: none
}

// handle answers one message, bytes in, bytes out; nil: no answer is due. It never panics, whatever the bytes are, and what it returns fits the
// transport and the client. It takes at most the hold time or, for foreign names, askTime. in is not kept.
func (s *Server) handle(ctx context.Context, in []byte, from netip.AddrPort, stream bool) (out []byte) {
	if len(in) < headerSize || in[2]&0x80 != 0 {
		s.counts.add(ignored)
		return nil
	}
	start := time.Now()
	defer func() {
		if p := recover(); p != nil { // a fault of ours or of the library; the daemon has more to do than this query
			s.counts.add(crashed)
			s.counts.rcodes[dns.RcodeServerFailure].Add(1)
			s.log.Error("a query crashed", "panic", p, "stack", string(debug.Stack()))
			out = append(out[:0], in[0], in[1], in[2]&0x79|0x80, 0x80|dns.RcodeServerFailure, 0, 0, 0, 0, 0, 0, 0, 0)
		}
	}()
	r := s.judge(in, from, stream)
	if r.why == undecided {
		s.resolve(ctx, r)
	}
	out = r.pack()
	s.counts.answered(r)
	if s.log.Enabled(ctx, slog.LevelDebug) && len(r.msg.Question) > 0 {
		q := r.msg.Question[0]
		s.log.Debug("query", "name", q.Name, "type", dns.Type(q.Qtype).String(), "rcode", dns.RcodeToString[r.msg.Rcode], "why", r.why.String(), "took", time.Since(start))
	}
	return out
}

// judge reads a query of at least 12 bytes and prepares the reply (protocol 4 section 7.2). why stays undecided when there is a question to be
// answered; otherwise the reply is complete.
func (s *Server) judge(in []byte, from netip.AddrPort, stream bool) *reply {
	r := &reply{msg: new(dns.Msg), size: plainSize}
	if stream {
		r.size = dns.MaxMsgSize
	}
	q := new(dns.Msg)
	err := q.Unpack(in)
	r.msg.MsgHdr = dns.MsgHdr{
		Id: q.Id, Response: true, Opcode: q.Opcode,
		RecursionDesired: q.RecursionDesired, RecursionAvailable: true, CheckingDisabled: q.CheckingDisabled,
	}
	if len(q.Question) == 1 {
		r.msg.Question = q.Question
	}
	if q.Opcode != dns.OpcodeQuery {
		return r.fail(dns.RcodeNotImplemented, badMessage)
	}

	// The library stops without an error where the message ends: the counts are compared with what was found.
	count := func(section int) int { return int(in[4+2*section])<<8 | int(in[5+2*section]) }
	if err != nil || count(0) > 1 || count(0) != len(q.Question) ||
		count(1) != 0 || count(2) > 1 || count(2) != len(q.Ns) || count(3) > 2 || count(3) != len(q.Extra) {
		return r.fail(dns.RcodeFormatError, badMessage)
	}
	var opt *dns.OPT
	for _, rr := range q.Extra {
		if o, ok := rr.(*dns.OPT); ok {
			if opt != nil || o.Hdr.Name != "." {
				return r.fail(dns.RcodeFormatError, badMessage)
			}
			opt = o
		}
	}
	if opt != nil {
		r.opt, r.do = true, opt.Do()
		if !stream {
			r.size = min(max(int(opt.UDPSize()), plainSize), ednsSize)
		}
		if opt.Version() != 0 {
			return r.fail(dns.RcodeBadVers, badMessage)
		}
		for _, o := range opt.Option {
			c, ok := o.(*dns.EDNS0_COOKIE)
			if !ok {
				continue
			}
			raw, _ := hex.DecodeString(c.Cookie)
			var good bool
			if r.cookie, good = s.cookies.judge(raw, from.Addr(), time.Now()); !good && !stream {
				return r.fail(dns.RcodeBadCookie, badCookie) // over TCP the address is proven without it
			}
			break
		}
	}
	if len(q.Question) == 0 {
		r.why = empty
		return r
	}

	var ok bool
	if r.labels, ok = labelsOf(q.Question[0].Name); !ok {
		return r.fail(dns.RcodeFormatError, badMessage)
	}
	r.owner = q.Question[0].Name
	return r
}

// fail makes r a reply without records.
func (r *reply) fail(rcode int, why reason) *reply {
	m := r.msg
	m.Answer, m.Ns, m.Extra = nil, nil, nil
	m.Rcode, m.Authoritative, m.AuthenticatedData = rcode, false, false
	r.why = why
	return r
}

// pack writes the reply, cut to question and OPT with TC set when it is over the size; nil when not even that can be written.
func (r *reply) pack() []byte {
	b, err := r.write()
	if err != nil { // records that cannot be written: a fault of Source or of an upstream
		r.fail(dns.RcodeServerFailure, crashed)
		b, err = r.write()
	}
	if err == nil && len(b) > r.size {
		m := r.msg
		m.Answer, m.Ns, m.Extra, m.Truncated = nil, nil, nil, true
		b, err = r.write()
	}
	if err != nil {
		return nil
	}
	return b
}

func (r *reply) write() ([]byte, error) {
	m := *r.msg
	m.Compress = true
	if r.opt {
		m.Extra = append(m.Extra[:len(m.Extra):len(m.Extra)], r.makeOPT())
	} else if m.Rcode > 0xf { // needs an OPT record
		m.Rcode = dns.RcodeServerFailure
	}
	return m.Pack()
}

func (r *reply) makeOPT() *dns.OPT {
	o := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	o.SetUDPSize(ednsSize)
	if r.do {
		o.SetDo()
	}
	if r.cookie != nil {
		o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: hex.EncodeToString(r.cookie)})
	}
	if e := reasonText[r.why]; e.text != "" {
		o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: e.code, ExtraText: e.text})
	}
	return o
}
