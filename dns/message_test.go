package dns

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"lokinetd/router/key"
)

// TestMessageRules: protocol 4 section 7.2, on raw messages. Header bytes are ID, flags, counts.
func TestMessageRules(t *testing.T) {
	const (
		id    = "abcd"
		name  = "036f6f6f0365656500" // ooo.eee.
		query = name + "00010001"    // A IN
		opt   = "0000291000000000000000"
		do    = "0000291000000080000000"
	)
	opt1 := "00002910000001000000" + "00"         // version 1
	optNamed := "0161000029100000000000" + "0000" // owner a.
	optCookie := "000029100000000000000c" + "000a00080102030405060708"
	badCookie := "000029100000000000001c" + "000a0018" + strings.Repeat("00", 24)
	oddCookie := "000029100000000000000e" + "000a000a" + strings.Repeat("00", 10)
	for _, c := range []struct {
		name string
		in   string // hexadecimal
		tcp  bool
		want string // rcode, number of questions, opt if there is one, length of the cookie; "" for no reply
	}{
		{"empty", "", false, ""},
		{"short", id + "0100" + "0001" + "0000" + "0000" + "00", false, ""},
		{"a reply", id + "8100" + "0001000000000000" + query, false, ""},
		{"plain", id + "0100" + "0001000000000000" + query, false, "REFUSED 1"},
		{"edns", id + "0100" + "0001000000000001" + query + opt, false, "REFUSED 1 opt"},
		{"do", id + "0100" + "0001000000000001" + query + do, false, "REFUSED 1 opt do"},
		{"cut question", id + "0100" + "0001000000000000" + query[:16], false, "FORMERR 0"},
		{"no question where one is announced", id + "0100" + "0001000000000000", false, "FORMERR 0"},
		{"two questions", id + "0100" + "0002000000000000" + query + query, false, "FORMERR 0"},
		{"two announced", id + "0100" + "0002000000000000" + query, false, "FORMERR 1"},
		{"answer announced", id + "0100" + "0001000100000000" + query, false, "FORMERR 1"},
		{"opt announced", id + "0100" + "0001000000000001" + query, false, "FORMERR 1"},
		{"opt cut", id + "0100" + "0001000000000001" + query + opt[:12], false, "FORMERR 1"},
		{"two opts", id + "0100" + "0001000000000002" + query + opt + opt, false, "FORMERR 1"},
		{"opt with a name", id + "0100" + "0001000000000001" + query + optNamed, false, "FORMERR 1"},
		{"three additional", id + "0100" + "0001000000000003" + query + opt, false, "FORMERR 1"},
		{"name loops", id + "0100" + "0001000000000000" + "c00c00010001", false, "FORMERR 0"},
		{"name runs out", id + "0100" + "0001000000000000" + "3f61", false, "FORMERR 0"},
		{"edns version 1", id + "0100" + "0001000000000001" + query + opt1, false, "BADVERS 1 opt"},
		{"notify", id + "2100" + "0001000000000000" + query, false, "NOTIMP 1"},
		{"update", id + "2800" + "0001000000000000" + query, false, "NOTIMP 1"},
		{"class CHAOS", id + "0100" + "0001000000000000" + name + "00100003", false, "REFUSED 1"},
		{"no question, cookie", id + "0100" + "0000000000000001" + optCookie, false, "NOERROR 0 opt cookie 24"},
		{"no question", id + "0100" + "0000000000000000", false, "NOERROR 0"},
		{"cookie", id + "0100" + "0001000000000001" + query + optCookie, false, "REFUSED 1 opt cookie 24"},
		{"bad cookie", id + "0100" + "0001000000000001" + query + badCookie, false, "BADCOOKIE 1 opt cookie 24"},
		{"bad cookie, TCP", id + "0100" + "0001000000000001" + query + badCookie, true, "REFUSED 1 opt cookie 24"},
		{"odd cookie", id + "0100" + "0001000000000001" + query + oddCookie, false, "REFUSED 1 opt"},
		{"trailing bytes", id + "0100" + "0001000000000000" + query + "ffff", false, "REFUSED 1"},
	} {
		in, err := hex.DecodeString(c.in)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		s := newServer(t, &fake{})
		out := s.handle(t.Context(), in, client, c.tcp)
		got := ""
		if out != nil {
			m := new(dns.Msg)
			if err := m.Unpack(out); err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			if m.Id != 0xabcd || !m.Response || !m.RecursionAvailable || m.AuthenticatedData || m.Authoritative || m.Opcode != int(in[2]>>3&15) {
				t.Errorf("%s: header %v", c.name, m.MsgHdr)
			}
			got = fmt.Sprint(dns.RcodeToString[m.Rcode], " ", len(m.Question))
			if o := m.IsEdns0(); o != nil {
				got += " opt"
				if o.UDPSize() != ednsSize || o.Version() != 0 {
					t.Errorf("%s: %v", c.name, o)
				}
				if o.Do() {
					got += " do"
				}
				for _, e := range o.Option {
					if e, ok := e.(*dns.EDNS0_COOKIE); ok {
						got += fmt.Sprint(" cookie ", len(e.Cookie)/2)
					}
				}
			}
		} else if s.Stats().Ignored != 1 {
			t.Errorf("%s: not counted", c.name)
		}
		if got != c.want && !(got == "BADSIG 1 opt" && c.want == "BADVERS 1 opt") { // the library has one name for 16
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// TestCutQueries: a query cut at every byte gets FORMERR or no reply, and no answer.
func TestCutQueries(t *testing.T) {
	q := new(dns.Msg)
	q.SetQuestion(named("ALICE.loki."), dns.TypeA)
	q.SetEdns0(4096, true)
	whole, _ := q.Pack()
	s := newServer(t, &fake{})
	for n := range whole {
		out := s.handle(t.Context(), whole[:n:n], client, n%2 == 0)
		if (out == nil) != (n < headerSize) || out != nil && out[3]&15 != dns.RcodeFormatError {
			t.Errorf("cut at %d: %x", n, out)
		}
	}
}

// TestFlags: RD and CD come back as they were sent, AD never does for an answer of ours.
func TestFlags(t *testing.T) {
	s := newServer(t, &fake{})
	for i := range 8 {
		q := new(dns.Msg)
		q.SetQuestion(named("ALICE.loki."), dns.TypeA)
		q.RecursionDesired, q.CheckingDisabled, q.AuthenticatedData = i&1 != 0, i&2 != 0, i&4 != 0
		m := exchange(t, s, q)
		if m.RecursionDesired != q.RecursionDesired || m.CheckingDisabled != q.CheckingDisabled || m.AuthenticatedData || !m.Authoritative {
			t.Errorf("query %v\nreply %v", q.MsgHdr, m.MsgHdr)
		}
	}
}

// TestSizes: a UDP reply fits 512 bytes without EDNS and the smaller of the client's size and 1232 with it; what does not fit is cut to the question, OPT and TC.
func TestSizes(t *testing.T) {
	text := make([]string, 0, 20)
	size := func(n int) *Server { // the TXT strings take n bytes
		text = text[:0]
		for ; n > 0; n -= 100 {
			text = append(text, strings.Repeat("x", min(n, 100)-1))
		}
		return newServer(t, &fake{texts: map[string][]string{"ALICE.loki": text}})
	}
	const rest = 12 + 59 + 4 + 12 // header, name, type and class, record header with a compressed name
	const opt = 11
	for _, c := range []struct {
		edns  uint16 // 0: none
		tcp   bool
		bytes int
		cut   bool
	}{
		{0, false, plainSize - rest, false},
		{0, false, plainSize - rest + 1, true},
		{100, false, plainSize - rest - opt, false}, // less than 512 counts as 512
		{100, false, plainSize - rest - opt + 1, true},
		{1000, false, 1000 - rest - opt, false},
		{1000, false, 1000 - rest - opt + 1, true},
		{65535, false, ednsSize - rest - opt, false},
		{65535, false, ednsSize - rest - opt + 1, true},
		{0, true, 20000, false},
		{600, true, 20000, false},
		{0, true, 65000, false},
		{0, true, 65500, true}, // the library refuses, or it is cut: never more than a TCP message holds
	} {
		q := new(dns.Msg)
		q.SetQuestion(named("ALICE.loki."), dns.TypeTXT)
		if c.edns != 0 {
			q.SetEdns0(c.edns, false)
		}
		wire, _ := q.Pack()
		out := size(c.bytes).handle(t.Context(), wire, client, c.tcp)
		m := new(dns.Msg)
		if err := m.Unpack(out); err != nil {
			t.Fatal(err)
		}
		if cut := m.Truncated; cut != c.cut || cut && (len(m.Answer) != 0 || len(m.Question) != 1 || m.IsEdns0() == nil != (c.edns == 0)) {
			t.Errorf("%+v: %d bytes, TC %t, %d records", c, len(out), m.Truncated, len(m.Answer))
		}
	}
}

// TestNoPanicFromSource: a Source that gives what cannot be written, or crashes, costs one SERVFAIL.
func TestNoPanicFromSource(t *testing.T) {
	s := newServer(t, crashing{&fake{}})
	m := exchange(t, s, new(dns.Msg).SetQuestion(named("ALICE.loki."), dns.TypeA))
	if m.Rcode != dns.RcodeServerFailure || s.Stats().Crashed != 1 || s.Stats().ServFail != 1 {
		t.Errorf("%v %+v", m, s.Stats())
	}
}

type crashing struct{ *fake }

func (crashing) Exists(key.Address) bool { panic("a fault") }

// FuzzHandle feeds raw packets to the whole handler, over a Source that knows every answer and an upstream that echoes. The threat: any program of the host, or of
// the network that we listen on, sends us any bytes. Nothing may crash; a reply must be readable, bear the query's id, fit, and be a
// reply; and no name of ours may reach the upstream.
//
// Decoders: Server.handle Server.judge labelsOf wireLabels ourTLD mayLeave parseName Server.answerReverse cookieSecret.judge
func FuzzHandle(f *testing.F) {
	for _, c := range []string{"A ALICE.loki.", "AAAA www.blog.loki.", "TXT path.ALICE.sesh.", "SRV _http._tcp.RELAY.snode.", "PTR 1.0.16.172.in-addr.arpa.", "SOA loki.", "A example.com.", "A ALICE.loki.example.com."} {
		typ, name, _ := strings.Cut(named(c), " ")
		q := new(dns.Msg)
		q.SetQuestion(name, dns.StringToType[typ])
		plain, _ := q.Pack()
		f.Add(plain, false)
		o := q.SetEdns0(1400, true).IsEdns0()
		o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
		withOPT, _ := q.Pack()
		f.Add(withOPT, true)
		f.Add(withOPT, false)
	}
	src := &fake{
		names:    map[string]key.Address{"blog.loki": bob},
		texts:    map[string][]string{"ALICE.loki": {strings.Repeat("x", 2000)}, "path.ALICE.loki": {"d=none"}},
		services: []SRV{{"_http._tcp", 1, 2, 80, ""}},
	}
	s, up := withUpstream(f, src, echo)
	s.log = slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelDebug}))
	for _, c := range []string{"PTR x.1.0.16.172.in-addr.arpa.", "PTR 9.9.16.172.in-addr.arpa.", "SOA 16.172.in-addr.arpa.", "SOA 0.16.172.in-addr.arpa.", "A a\\.b.loki.", "A x-.", "A ALICEx.loki.", "A ALICE.lokix.example.", "A x.onion.", "A use-application-dns.net."} {
		typ, name, _ := strings.Cut(named(c), " ")
		plain, _ := new(dns.Msg).SetQuestion(name, dns.StringToType[typ]).Pack()
		f.Add(plain, false)
	}
	now, mine := time.Now(), [clientCookie]byte{1, 2, 3}
	for _, cookie := range [][]byte{s.cookies.make(mine, client.Addr(), now), s.cookies.make(mine, client.Addr(), now.Add(-cookieRenew-time.Minute)), s.cookies.make(mine, client.Addr(), now.Add(-cookieOld-time.Minute)), mine[:], mine[:3]} {
		for _, spoil := range []func(m *dns.Msg, o *dns.OPT){
			func(*dns.Msg, *dns.OPT) {}, func(_ *dns.Msg, o *dns.OPT) { o.SetVersion(1) }, func(_ *dns.Msg, o *dns.OPT) { o.Hdr.Name = "x." }, func(m *dns.Msg, o *dns.OPT) { m.Extra = append(m.Extra, o) },
			func(m *dns.Msg, o *dns.OPT) { m.Question = nil },
			func(m *dns.Msg, o *dns.OPT) {
				o.Option = append([]dns.EDNS0{&dns.EDNS0_NSID{Code: dns.EDNS0NSID}}, o.Option...)
			},
		} {
			q := new(dns.Msg).SetQuestion("loki.", dns.TypeSOA)
			o := q.SetEdns0(1400, true).IsEdns0()
			o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: hex.EncodeToString(cookie)})
			spoil(q, o)
			raw, err := q.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw, false)
		}
	}
	f.Add([]byte("\x03aaa\x3f"), false)
	f.Add([]byte("\x01a"), false)
	f.Fuzz(func(t *testing.T, in []byte, tcp bool) {
		src.calls = nil
		if labels, n := wireLabels(in); n > 0 && n <= 255 {
			if again, ok := labelsOf(nameOf(labels)); !ok || !slices.Equal(again, labels) {
				t.Fatalf("%q becomes %q", labels, again)
			}
		}
		if labels, ok := labelsOf(string(in)); ok {
			if again, ok := labelsOf(nameOf(labels)); !ok || !slices.Equal(again, labels) {
				t.Fatalf("%q becomes %q", labels, again)
			}
		}
		before := bytes.Clone(in)
		out := s.handle(t.Context(), in, client, tcp)
		if !bytes.Equal(in, before) {
			t.Fatal("the query was changed")
		}
		if n := s.Stats().Crashed; n != 0 {
			t.Fatal("crashed")
		}
		for _, n := range up.takeNames() {
			if leaks(n) {
				t.Fatalf("%q left", n)
			}
		}
		if out == nil {
			if len(in) >= headerSize && in[2]&0x80 == 0 {
				t.Fatal("no reply")
			}
			return
		}
		m := new(dns.Msg)
		if err := m.Unpack(out); err != nil {
			t.Fatal(err)
		}
		limit := plainSize
		if m.IsEdns0() != nil {
			limit = ednsSize
		}
		if !m.Response || out[0] != in[0] || out[1] != in[1] || !tcp && len(out) > limit {
			t.Fatalf("reply of %d bytes: %v", len(out), m)
		}
	})
}
