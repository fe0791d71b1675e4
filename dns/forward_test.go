package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"lokinetd/router/testkit"
)

// upstreams plays all upstream resolvers. Its dial stands in for the network's.
type upstreams struct {
	// answer gets one query as it was sent and gives the datagrams (over TCP: messages) that come back.
	answer func(network, addr string, query []byte) [][]byte

	mu    sync.Mutex
	names [][]byte // question names on the wire, as they came
	log   []string // "udp 192.0.2.1:53 example.com."
	open  int
}

func (u *upstreams) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.open++
	return &upConn{u: u, network: network, addr: addr, in: make(chan []byte, 1000), closed: make(chan struct{}), expired: make(chan struct{})}, nil
}

func (u *upstreams) takeNames() [][]byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.names
	u.names, u.log = nil, nil
	return n
}

func (u *upstreams) takeLog() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	l := strings.Join(u.log, ", ")
	u.log = nil
	return l
}

func (u *upstreams) idle(t *testing.T) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.open != 0 {
		t.Errorf("%d connections to upstreams are still open", u.open)
	}
}

// upConn is one connection to a played upstream.
type upConn struct {
	u               *upstreams
	network, addr   string
	in              chan []byte
	rest            []byte
	closed, expired chan struct{}
	once, late      sync.Once
}

func (c *upConn) Write(b []byte) (int, error) {
	q := b
	if c.network == "tcp" {
		q = b[2:]
	}
	_, n := wireLabels(q[headerSize:])
	m := new(dns.Msg)
	if err := m.Unpack(q); err != nil || n == 0 {
		return 0, fmt.Errorf("not a query: %x %v", q, err)
	}
	c.u.mu.Lock()
	c.u.names = append(c.u.names, slices.Clone(q[headerSize:headerSize+n]))
	c.u.log = append(c.u.log, fmt.Sprintf("%s %s %s", c.network, c.addr, m.Question[0].Name))
	c.u.mu.Unlock()
	for _, a := range c.u.answer(c.network, c.addr, slices.Clone(q)) {
		if c.network == "tcp" {
			a = append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)
		}
		c.in <- a
	}
	return len(b), nil
}

func (c *upConn) Read(b []byte) (int, error) {
	if len(c.rest) == 0 {
		select {
		case c.rest = <-c.in:
		case <-c.closed:
			return 0, net.ErrClosed
		case <-c.expired:
			return 0, os.ErrDeadlineExceeded
		}
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	if c.network == "udp" {
		c.rest = nil
	}
	return n, nil
}

func (c *upConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.u.mu.Lock()
		c.u.open--
		c.u.mu.Unlock()
	})
	return nil
}

func (c *upConn) SetDeadline(t time.Time) error {
	if t.Before(time.Now()) {
		c.late.Do(func() { close(c.expired) })
	}
	return nil
}
func (c *upConn) LocalAddr() net.Addr              { return nil }
func (c *upConn) RemoteAddr() net.Addr             { return nil }
func (c *upConn) SetReadDeadline(time.Time) error  { return nil }
func (c *upConn) SetWriteDeadline(time.Time) error { return nil }

// withUpstream makes a server whose upstreams are played: 192.0.2.1 to .3.
func withUpstream(t testing.TB, src Source, answer func(network, addr string, query []byte) [][]byte) (*Server, *upstreams) {
	s := newServer(t, src)
	u := &upstreams{answer: answer}
	err := s.SetUpstream([]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53"), netip.MustParseAddrPort("192.0.2.3:53")})
	if err != nil {
		t.Fatal(err)
	}
	s.upstream.Load().dial = u.dial
	return s, u
}

// answering makes an answer function of one that fills in a reply.
func answering(fill func(network, addr string, q, m *dns.Msg)) func(string, string, []byte) [][]byte {
	return func(network, addr string, query []byte) [][]byte {
		q, m := new(dns.Msg), new(dns.Msg)
		if err := q.Unpack(query); err != nil {
			panic(err)
		}
		m.SetReply(q)
		m.RecursionAvailable = true
		fill(network, addr, q, m)
		if m.Id == 0 && len(m.Question) == 0 {
			return nil
		}
		out, err := m.Pack()
		if err != nil {
			panic(err)
		}
		return [][]byte{out}
	}
}

// echo answers everything with no record.
var echo = answering(func(string, string, *dns.Msg, *dns.Msg) {})

// silent makes a reply that is not sent.
func silent(m *dns.Msg) { *m = dns.Msg{} }

func rr(text string) dns.RR {
	r, err := dns.NewRR(named(text))
	if err != nil {
		panic(err)
	}
	return r
}

// TestForward: what comes back from an upstream, and what of it is passed on (protocol 4 section 7.5).
func TestForward(t *testing.T) {
	cut := func(do bool) func(network, addr string, q, m *dns.Msg) {
		return func(network, addr string, q, m *dns.Msg) {
			if network == "udp" {
				m.Truncated = true
				return
			}
			m.Answer = append(m.Answer, rr("example.com. 60 A 192.0.2.80"))
		}
	}
	for _, c := range []struct {
		name   string
		fill   func(network, addr string, q, m *dns.Msg)
		do     bool
		want   string
		log    string
		second time.Duration // how long it takes
	}{
		{"plain", func(_, _ string, q, m *dns.Msg) {
			m.Answer = append(m.Answer, rr("example.com. 60 A 192.0.2.80"))
			m.AuthenticatedData = true
		}, false, "NOERROR | example.com. 60 A 192.0.2.80", "udp 192.0.2.1:53 example.com.", 0},
		{"AD with DO", func(_, _ string, q, m *dns.Msg) {
			if o := q.IsEdns0(); o == nil || !o.Do() || len(o.Option) != 0 {
				m.Rcode = dns.RcodeRefused
			}
			m.AuthenticatedData = true
		}, true, "NOERROR ad", "udp 192.0.2.1:53 example.com.", 0},
		{"hop-by-hop records", func(_, _ string, q, m *dns.Msg) {
			m.SetEdns0(4096, true)
			m.Extra = append(m.Extra, &dns.TSIG{Hdr: dns.RR_Header{Name: "k.", Rrtype: dns.TypeTSIG, Class: dns.ClassANY}, Algorithm: dns.HmacSHA256})
			m.Answer = append(m.Answer, rr("example.com. 60 A 192.0.2.80"))
		}, false, "NOERROR | example.com. 60 A 192.0.2.80", "udp 192.0.2.1:53 example.com.", 0},
		{"NXDOMAIN", func(_, _ string, q, m *dns.Msg) {
			m.Rcode = dns.RcodeNameError
			m.Ns = append(m.Ns, rr("com. 900 SOA a. b. 1 2 3 4 900"))
		}, false, "NXDOMAIN ; SOA com. 900", "udp 192.0.2.1:53 example.com.", 0},
		{"cut, then TCP", cut(false), false, "NOERROR | example.com. 60 A 192.0.2.80", "udp 192.0.2.1:53 example.com., tcp 192.0.2.1:53 example.com.", 0},
		{"knows no EDNS", func(_, _ string, q, m *dns.Msg) {
			if q.IsEdns0() != nil {
				m.Rcode = dns.RcodeFormatError
			}
		}, false, "NOERROR", "udp 192.0.2.1:53 example.com., udp 192.0.2.1:53 example.com.", 0},
		{"first unwilling", func(_, addr string, q, m *dns.Msg) {
			if addr == "192.0.2.1:53" {
				m.Rcode = dns.RcodeServerFailure
			}
		}, false, "NOERROR", "udp 192.0.2.1:53 example.com., udp 192.0.2.2:53 example.com.", 0},
		{"all unwilling", func(_, addr string, q, m *dns.Msg) { m.Rcode = dns.RcodeRefused },
			false, "REFUSED", "udp 192.0.2.1:53 example.com., udp 192.0.2.2:53 example.com., udp 192.0.2.3:53 example.com.", 0},
		{"unwilling with a bare header", func(_, addr string, q, m *dns.Msg) { m.Rcode, m.Question = dns.RcodeRefused, nil },
			false, "REFUSED", "udp 192.0.2.1:53 example.com., udp 192.0.2.2:53 example.com., udp 192.0.2.3:53 example.com.", 0},
		{"first silent", func(_, addr string, q, m *dns.Msg) {
			if addr == "192.0.2.1:53" {
				silent(m)
			}
		}, false, "NOERROR", "udp 192.0.2.1:53 example.com., udp 192.0.2.2:53 example.com.", tryTime},
		{"all silent", func(_, _ string, q, m *dns.Msg) { silent(m) }, false, "SERVFAIL ede 23",
			"udp 192.0.2.1:53 example.com., udp 192.0.2.2:53 example.com., udp 192.0.2.3:53 example.com., udp 192.0.2.1:53 example.com.", askTime},
		{"speaks for names of ours", func(_, _ string, q, m *dns.Msg) {
			m.Answer = append(m.Answer, rr("example.com. 60 CNAME ALICE.loki."), rr("ALICE.LOKI. 60 A 192.0.2.66"), rr("loki. 60 NS evil.example."), rr("x.snode. 60 A 192.0.2.67"))
			m.Ns = append(m.Ns, rr("sesh. 60 NS evil.example."))
			m.Extra = append(m.Extra, rr("blog.loki. 60 A 192.0.2.66"))
		}, false, "NOERROR | example.com. 60 CNAME ALICE.loki.", "udp 192.0.2.1:53 example.com.", 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, up := withUpstream(t, &fake{}, answering(c.fill))
			q := new(dns.Msg)
			q.SetQuestion("example.com.", dns.TypeA)
			if c.do {
				q.SetEdns0(4096, true)
				q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
			} else if strings.Contains(c.want, "ede") {
				q.SetEdns0(4096, false)
			}
			start := time.Now()
			m := exchange(t, s, q)
			if got := short(m); got != c.want {
				t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
			}
			if len(m.Extra) > 0 && (q.IsEdns0() == nil || len(m.Extra) > 1) {
				t.Errorf("%s: additional records are passed on: %v", c.name, m.Extra)
			}
			if took := time.Since(start); took != c.second {
				t.Errorf("%s: took %v, want %v", c.name, took, c.second)
			}
			if got := up.takeLog(); got != c.log {
				t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.log)
			}
			up.idle(t)
		})
	}
}

// TestForwardStrays: datagrams that do not answer the query are passed over, and not for ever.
func TestForwardStrays(t *testing.T) {
	good := answering(func(_, _ string, q, m *dns.Msg) { m.Answer = append(m.Answer, rr("example.com. 60 A 192.0.2.80")) })
	forged := func(change func(b []byte)) func(string, string, []byte) [][]byte {
		return func(n, a string, q []byte) [][]byte {
			b := answering(func(_, _ string, q, m *dns.Msg) { m.Answer = append(m.Answer, rr("example.com. 60 A 192.0.2.66")) })(n, a, q)[0]
			change(b)
			return append([][]byte{b}, good(n, a, q)...)
		}
	}
	for name, answer := range map[string]func(string, string, []byte) [][]byte{
		"other id":    forged(func(b []byte) { b[1]++ }),
		"a query":     forged(func(b []byte) { b[2] &^= 0x80 }),
		"other name":  forged(func(b []byte) { b[headerSize+1]++ }),
		"other type":  forged(func(b []byte) { b[headerSize+14] = byte(dns.TypeAAAA) }),
		"other class": forged(func(b []byte) { b[headerSize+16] = byte(dns.ClassCHAOS) }),
		"no question": forged(func(b []byte) { b[5] = 0 }),
		"opcode":      forged(func(b []byte) { b[2] |= 0x20 }),
		"short":       func(n, a string, q []byte) [][]byte { return append([][]byte{q[:3], {}}, good(n, a, q)...) },
	} {
		s, _ := withUpstream(t, &fake{}, answer)
		m := exchange(t, s, new(dns.Msg).SetQuestion("example.com.", dns.TypeA))
		if got := short(m); got != "NOERROR | example.com. 60 A 192.0.2.80" || s.Stats().Upstream.Strange == 0 {
			t.Errorf("%s: %s, %+v", name, got, s.Stats().Upstream)
		}
	}
	s, up := withUpstream(t, &fake{}, func(n, a string, q []byte) [][]byte {
		out := make([][]byte, maxStray+1)
		for i := range out {
			out[i] = []byte{0, byte(i)}
		}
		return append(out, good(n, a, q)...)
	})
	if m := exchange(t, s, new(dns.Msg).SetQuestion("example.com.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure || s.Stats().Upstream.Failed != 3*rounds {
		t.Errorf("a flood: %v %+v", m, s.Stats().Upstream)
	}
	up.idle(t)
}

// TestUpstreamMemory: who failed stands behind the others, longer each time, and comes back.
func TestUpstreamMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := map[string]bool{"192.0.2.1:53": true}
		s, up := withUpstream(t, &fake{}, answering(func(_, addr string, q, m *dns.Msg) {
			if dead[addr] {
				silent(m)
			}
		}))
		n := 0
		step := func(wait time.Duration, want ...string) {
			t.Helper()
			time.Sleep(wait)
			n++
			exchange(t, s, new(dns.Msg).SetQuestion(fmt.Sprintf("x%d.example.", n), dns.TypeA))
			var got []string
			for l := range strings.SplitSeq(up.takeLog(), ", ") {
				got = append(got, strings.TrimSuffix(strings.TrimPrefix(strings.Fields(l)[1], "192.0.2."), ":53"))
			}
			if !slices.Equal(got, want) {
				t.Errorf("question %d went to %v, want %v", n, got, want)
			}
		}
		step(0, "1", "2")
		step(0, "2")
		step(firstPenalty+time.Second, "1", "2") // tried again
		step(firstPenalty+time.Second, "2")      // twice the penalty now
		step(firstPenalty, "1", "2")
		dead["192.0.2.2:53"], dead["192.0.2.3:53"] = true, true
		step(0, "2", "3", "1", "2") // the one with the earlier end first
		clear(dead)
		step(0, "2") // the least bad one, and it is well again
		step(2*maxPenalty, "1")
		step(0, "1")
	})
}

// TestEqualQuestions: they are asked once; an upstream that asks us again waits with the others, and the loop ends with the time.
func TestEqualQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s *Server
		var up *upstreams
		asked := 0
		var inner sync.WaitGroup
		s, up = withUpstream(t, &fake{}, answering(func(_, _ string, q, m *dns.Msg) {
			asked++
			inner.Go(func() { // the loop: the same question comes back to us
				again := new(dns.Msg).SetQuestion("LOOP.example.", dns.TypeA)
				wire, _ := again.Pack()
				s.handle(t.Context(), wire, client, false)
			})
			silent(m)
		}))
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if m := exchange(t, s, new(dns.Msg).SetQuestion("loop.EXAMPLE.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
					t.Error(m)
				}
			})
		}
		all.Wait()
		inner.Wait()
		if asked != 4 { // the tries that fit in askTime
			t.Errorf("asked %d times", asked)
		}
		up.idle(t)
	})
}

// TestForwardBound: different questions are bounded; more fail at once.
func TestForwardBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, up := withUpstream(t, &fake{}, answering(func(_, _ string, q, m *dns.Msg) { silent(m) }))
		var all sync.WaitGroup
		for i := range maxAsks + 10 {
			all.Go(func() { exchange(t, s, new(dns.Msg).SetQuestion(fmt.Sprintf("x%d.example.", i), dns.TypeA)) })
		}
		synctest.Wait()
		if n := s.Stats().Overload; n != 10 {
			t.Errorf("%d fail at once, want 10", n)
		}
		all.Wait()
		up.idle(t)
	})
}

// TestForwardEnds: the end of the server ends what is asked, a moment later, without a mark against the upstream.
func TestForwardEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, up := withUpstream(t, &fake{}, answering(func(_, _ string, q, m *dns.Msg) { silent(m) }))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second/10, cancel)
		wire, _ := new(dns.Msg).SetQuestion("example.com.", dns.TypeA).Pack()
		start := time.Now()
		out := s.handle(ctx, wire, client, false)
		if took := time.Since(start); out[3]&15 != dns.RcodeServerFailure || took != time.Second/10+lingerTime {
			t.Errorf("%x after %v", out, took)
		}
		if u := s.upstream.Load().upstreams[0]; u.failures != 0 {
			t.Error("the upstream is blamed")
		}
		up.idle(t)
	})
}

// leaks is the test's own judgement of a name on the wire: does it, read as a text by somebody careless, end in a domain of ours, or bear a key in one?
func leaks(wire []byte) bool {
	var text []byte
	for i := 0; i < len(wire) && wire[i] != 0; i += 1 + int(wire[i]) {
		text = append(append(text, wire[i+1:i+1+int(wire[i])]...), '.')
	}
	lower := strings.ToLower(string(text))
	end := strings.TrimRightFunc(lower, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
	for _, tld := range []string{"loki", "sesh", "snode", "onion"} {
		if before, ok := strings.CutSuffix(end, tld); ok {
			if before == "" || !strings.ContainsAny(before[len(before)-1:], "abcdefghijklmnopqrstuvwxyz0123456789-_") {
				return true
			}
		}
	}
	return strings.Contains(lower, alice.Key.String()+".loki") || strings.Contains(lower, relay.Key.String()+".snode")
}

// TestNothingLeaves tries names of ours in every spelling that the wire allows, in every state, against an upstream that answers all with CNAMEs into our
// domains, and directly against the forwarder behind the placing of names.
func TestNothingLeaves(t *testing.T) {
	rnd := testkit.Rand(t)
	chain := answering(func(_, _ string, q, m *dns.Msg) {
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 5}, Target: named("ALICE.loki.")})
	})
	states := []*fake{{}, {offline: true}, {ipv6Off: true}, {full: true}, {lookupErr: errors.New("x")}, {addrErr: errors.New("x")}, {ranges: []netip.Prefix{}}}
	servers := make([]*Server, len(states))
	ups := make([]*upstreams, len(states))
	for i, f := range states {
		servers[i], ups[i] = withUpstream(t, f, chain)
	}
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	tails := func() string { return pick("loki", "sesh", "snode", "onion") }
	// A label: sometimes one that only resembles a domain of ours.
	label := func() string {
		switch rnd.IntN(9) {
		case 0:
			return alice.Key.String()
		case 1:
			return "blog"
		case 2:
			return tails()
		case 3:
			return pick("a.", "", "blog.") + tails() + pick(".", "..", "\x00", " ", ".\x00", "\n", "\t.", "\xff", "\u3002", "\xad", "")
		case 4:
			return "blog\u3002" + tails() // full-width dot
		case 5:
			return pick("in-addr", "arpa", "com", "example", "localhost", "_http", "_tcp")
		}
		b := make([]byte, 1+rnd.IntN(8))
		for i := range b {
			b[i] = byte(rnd.IntN(256))
		}
		return string(b)
	}
	cased := func(s string) string {
		b := []byte(s)
		for i, c := range b {
			if 'a' <= c && c <= 'z' && rnd.IntN(2) == 0 {
				b[i] = c - 'a' + 'A'
			}
		}
		return string(b)
	}
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeNS, dns.TypeSOA, dns.TypeDS, dns.TypePTR, dns.TypeTXT, dns.TypeANY, dns.TypeCNAME, 65280}
	sent, kept := 0, 0
	for range 30000 {
		var labels []string
		for range 1 + rnd.IntN(4) {
			l := label()
			if l == "" || len(l) > 63 {
				l = "x"
			}
			labels = append(labels, cased(l))
		}
		if rnd.IntN(2) == 0 {
			labels[len(labels)-1] = cased(tails())
		}
		wire := []byte{byte(rnd.IntN(256)), byte(rnd.IntN(256)), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
		for _, l := range labels {
			wire = append(append(wire, byte(len(l))), l...)
		}
		wire = binary.BigEndian.AppendUint16(append(wire, 0), types[rnd.IntN(len(types))])
		wire = append(wire, 0, 1)
		i := rnd.IntN(len(states))
		if len(wire) > headerSize+255+4 {
			continue
		}
		servers[i].handle(t.Context(), wire, client, rnd.IntN(2) == 0)
		q := new(dns.Msg)
		if q.Unpack(wire) == nil && rnd.IntN(4) == 0 {
			servers[i].upstream.Load().ask(t.Context(), q.Question[0], false, false)
		}
		names := ups[i].takeNames()
		for _, n := range names {
			if leaks(n) {
				t.Fatalf("%q left for an upstream", n)
			}
		}
		if sent += len(names); len(names) == 0 {
			kept++
		}
	}
	if sent < 1000 || kept < 1000 {
		t.Errorf("%d sent, %d kept: the names do not test much", sent, kept)
	}
	for i, s := range servers {
		if st := s.Stats(); st.Crashed != 0 || st.Upstream.Failed != 0 || st.Upstream.Strange != 0 {
			t.Errorf("%+v", st)
		}
		ups[i].idle(t)
	}
}

// TestSearchList: when we have no record for a name, a stub resolver tries it with its search domains appended. That must not leave either, and names that only look
// so must.
func TestSearchList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, up := withUpstream(t, &fake{ipv6Off: true}, echo)
		for _, c := range []struct {
			question string
			leaves   bool
		}{
			{"A www.api.loki.example.com.", true}, // somebody's host called loki
			{"A www.api.loki.", false},            // not registered: NXDOMAIN
			{"A www.api.loki.example.com.", false},
			{"AAAA WWW.API.LOKI.home.lan.", false},
			{"A api.loki.example.com.", true},
			{"A ALICE.loki.example.com.", false}, // a key, asked before or not
			{"A ALICE.loki.", false},
			{"A x.BOB.sesh.example.com.", false},
			{"A RELAY.snode.example.com.", false},
			{"A ALICE.example.com.", true},
			{"A loki.example.com.", true},
			{"AAAA www.blog.loki.", false},
		} {
			ask(t, s, c.question)
			if left := len(up.takeNames()) > 0; left != c.leaves {
				t.Errorf("%s: left %t, want %t", c.question, left, c.leaves)
			}
		}
		time.Sleep(memoryTime)
		if ask(t, s, "A www.api.loki.example.com."); len(up.takeNames()) == 0 {
			t.Error("the memory has no end")
		}
		for i := range 3 * memorySize {
			ask(t, s, fmt.Sprintf("A n%d.loki.", i))
			time.Sleep(time.Millisecond)
		}
		if n := len(s.unanswered.names); n > memorySize {
			t.Errorf("%d names are kept", n)
		}
		ask(t, s, fmt.Sprintf("A n%d.loki.example.com.", 3*memorySize-1))
		if len(up.takeNames()) != 0 {
			t.Error("the latest name is forgotten")
		}
	})
}

// TestUpstreamIsUs: a server is not its own upstream.
func TestUpstreamIsUs(t *testing.T) {
	for _, c := range []struct {
		listen, upstream string
		ok               bool
	}{
		{"127.3.2.1:53", "127.3.2.1:53", false},
		{"127.3.2.1:53", "127.3.2.1:5353", true},
		{"127.3.2.1:53", "127.0.0.53:53", true},
		{"127.3.2.1:53", "[::ffff:127.3.2.1]:53", false},
		{"0.0.0.0:53", "127.0.0.1:53", false},
		{"0.0.0.0:53", "192.0.2.1:53", true},
		{"[::]:53", "[::1]:53", false},
	} {
		_, err := New(Config{Source: &fake{}, Sockets: &Sockets{Packet: []net.PacketConn{newMemPacket(c.listen)}}, Upstream: []netip.AddrPort{netip.MustParseAddrPort(c.upstream)}})
		if (err == nil) != c.ok {
			t.Errorf("listening on %s, upstream %s: %v", c.listen, c.upstream, err)
		}
	}
}

// FuzzUpstreamReply: the bytes of an upstream's answer to example.com. The threat: a hostile or broken resolver, or somebody on the way to it who guessed id and port.
// What is passed on must be writable, fit, be for our question, and say nothing about names of ours.
//
// Decoders: readMessage match rewritable sameQuestion reply.take taken
func FuzzUpstreamReply(f *testing.F) {
	q := query(dns.Question{Name: "example.com.", Qtype: dns.TypeA, Qclass: dns.ClassINET}, true, true, false)
	q.Id = 0
	for _, fill := range []func(m *dns.Msg){
		func(m *dns.Msg) { m.Answer = append(m.Answer, rr("example.com. 60 A 192.0.2.80")) },
		func(m *dns.Msg) {
			m.Answer = append(m.Answer, rr("example.com. 60 CNAME ALICE.loki."), rr("ALICE.loki. 60 A 192.0.2.66"))
		},
		func(m *dns.Msg) { m.Rcode, m.Question = dns.RcodeRefused, nil },
		func(m *dns.Msg) { m.SetEdns0(1232, true); m.Rcode = dns.RcodeBadVers },
		func(m *dns.Msg) { m.SetEdns0(1232, true); m.Answer = append(m.Answer, rr(". 60 NS a.")) },
		func(m *dns.Msg) { m.Truncated = true },
		func(m *dns.Msg) { m.Opcode = dns.OpcodeStatus },
		func(m *dns.Msg) { m.Ns = append(m.Ns, rr("com. 900 SOA a. b. 1 2 3 4 900")) },
		func(m *dns.Msg) { m.Answer = append(m.Answer, rr(`example.com. 60 HTTPS 1 . alpn="h2" ech="AAAA"`)) },
	} {
		m := new(dns.Msg).SetReply(q)
		fill(m)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, edns bool) {
		if len(b) >= 2 {
			b[0], b[1] = 0, 0
		}
		for _, stream := range [][]byte{b, b[min(len(b), 2):]} {
			if got, err := readMessage(bytes.NewReader(stream), ednsSize); err == nil && (len(got) > ednsSize || len(got) > len(stream)-2) {
				t.Fatalf("%d bytes from a stream of %d", len(got), len(stream))
			}
		}
		m, ok, err := match(b, q)
		if !ok || err != nil || m.Rcode > 0xf {
			return
		}
		r := &reply{msg: &dns.Msg{MsgHdr: dns.MsgHdr{Response: true}, Question: q.Question}, size: ednsSize, opt: edns}
		r.take(m)
		out := r.pack()
		got := new(dns.Msg)
		if err := got.Unpack(out); err != nil || len(out) > ednsSize || len(got.Question) != 1 || got.Question[0] != q.Question[0] || got.Rcode != m.Rcode && r.why != crashed {
			t.Fatalf("%d bytes, %v\n%v", len(out), err, got)
		}
		for _, rr := range slices.Concat(got.Answer, got.Ns, got.Extra) {
			name, _, _ := strings.Cut(strings.ToLower(rr.Header().Name), "\\")
			if strings.HasSuffix(name, ".loki.") || strings.HasSuffix(name, ".sesh.") || strings.HasSuffix(name, ".snode.") {
				t.Fatalf("an upstream says %v", rr)
			}
		}
	})
}
