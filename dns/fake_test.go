package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"lokinetd/router/key"
)

// The cast: keys whose bytes are all equal, so that their texts are easy to find.
var (
	self    = addressOf(1, key.Client)
	alice   = addressOf(2, key.Client)
	bob     = addressOf(3, key.Client)
	relay   = addressOf(4, key.Relay)
	unknown = addressOf(5, key.Relay) // not registered
)

func addressOf(b byte, k key.Kind) (a key.Address) {
	a.Kind = k
	for i := range a.Key {
		a.Key[i] = b
	}
	return a
}

// named writes out SELF, ALICE, BOB, RELAY and UNKNOWN; unnamed puts them back.
var (
	cast = []string{
		"SELF", self.Key.String(), "ALICE", alice.Key.String(), "BOB", bob.Key.String(), "RELAY", relay.Key.String(), "UNKNOWN", unknown.Key.String(),
	}
	named   = strings.NewReplacer(cast...).Replace
	unnamed = func() func(string) string {
		var back []string
		for i := 0; i < len(cast); i += 2 {
			back = append(back, cast[i+1], cast[i])
		}
		return strings.NewReplacer(back...).Replace
	}()
)

// fake is a Source with a small world in it. Its zero value is connected, knows no name, and maps addresses of 172.16.0.0/16 and fd00::/64.
type fake struct {
	offline   bool
	ipv6Off   bool
	full      bool          // no IPv4 address is free
	wait      time.Duration // until a session stands, or the network is found to be up
	addrErr   error
	lookupErr error
	noRelays  bool
	names     map[string]key.Address
	texts     map[string][]string
	services  []SRV
	srvErr    error
	ranges    []netip.Prefix // instead of the two above

	mu    sync.Mutex
	next  byte
	v4    map[key.Address]netip.Addr
	calls []string
}

func (f *fake) call(what string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, unnamed(fmt.Sprintf(what, args...)))
}

func (f *fake) block(ctx context.Context) {
	if f.wait == 0 {
		return
	}
	select {
	case <-time.After(f.wait):
	case <-ctx.Done():
	}
}

func (f *fake) Ready(ctx context.Context) bool {
	if f.offline {
		f.block(ctx)
	}
	return !f.offline
}
func (f *fake) Self() key.Address                { return self }
func (f *fake) RandomRelay() (key.Address, bool) { return relay, !f.noRelays }
func (f *fake) Exists(a key.Address) bool        { return a != unknown }

func (f *fake) Lookup(ctx context.Context, name string) (key.Address, time.Duration, error) {
	f.call("lookup %s", name)
	if f.lookupErr != nil {
		return key.Address{}, 0, f.lookupErr
	}
	if a, ok := f.names[name]; ok {
		return a, 100*time.Second + 900*time.Millisecond, nil
	}
	return key.Address{}, 20 * time.Minute, ErrNotExist
}

func (f *fake) Addr(ctx context.Context, a key.Address, v6 bool) (netip.Addr, error) {
	f.call("addr %s", a)
	switch {
	case f.addrErr != nil:
		return netip.Addr{}, f.addrErr
	case v6 && f.ipv6Off:
		return netip.Addr{}, ErrNoFamily
	case !v6 && f.full:
		return netip.Addr{}, ErrExhausted
	}
	if a != self {
		f.block(ctx)
	}
	if v6 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 15: a.Key[0]}), nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.v4 == nil {
		f.v4 = map[key.Address]netip.Addr{}
	}
	f.v4[a] = netip.AddrFrom4([4]byte{172, 16, 0, a.Key[0]})
	return f.v4[a], nil
}

func (f *fake) Ranges() []netip.Prefix {
	if f.ranges != nil {
		return f.ranges
	}
	return []netip.Prefix{netip.MustParsePrefix("172.16.0.1/16"), netip.MustParsePrefix("fd00::1/64")}
}

func (f *fake) Reverse(ip netip.Addr) (key.Address, bool) {
	b := ip.AsSlice()
	for _, a := range []key.Address{self, alice, relay} {
		if b[len(b)-1] == a.Key[0] && b[len(b)-2] == 0 {
			return a, true
		}
	}
	return key.Address{}, false
}

func (f *fake) Text(a key.Address, path bool) []string {
	name := a.String()
	if path {
		name = "path." + name
	}
	return f.texts[unnamed(name)]
}

func (f *fake) Services(ctx context.Context, a key.Address) ([]SRV, error) {
	f.call("services %s", a)
	return f.services, f.srvErr
}

// newServer makes a server without sockets.
func newServer(t testing.TB, src Source) *Server {
	t.Helper()
	s, err := New(Config{Source: src, Sockets: new(Sockets)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var client = netip.MustParseAddrPort("127.0.0.1:40000")

// ask sends a question of the form "TYPE name" to the handler, as UDP with EDNS, and gives the reply.
func ask(t testing.TB, s *Server, question string) *dns.Msg {
	t.Helper()
	typ, name, _ := strings.Cut(named(question), " ")
	q := new(dns.Msg)
	q.SetQuestion(name, dns.StringToType[typ])
	if q.Question[0].Qtype == 0 {
		t.Fatalf("no type %s", typ)
	}
	q.SetEdns0(4096, false)
	return exchange(t, s, q)
}

func exchange(t testing.TB, s *Server, q *dns.Msg) *dns.Msg {
	t.Helper()
	wire, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	out := s.handle(t.Context(), wire, client, false)
	m := new(dns.Msg)
	if err := m.Unpack(out); err != nil {
		t.Fatalf("reply %x: %v", out, err)
	}
	if m.Id != q.Id || !m.Response || !m.RecursionAvailable {
		t.Errorf("reply header: %v", m.MsgHdr)
	}
	return m
}

// short writes a reply on one line: rcode, aa, ad, tc; the answer's records; the SOA of a negative answer; "ede" and its code.
func short(m *dns.Msg) string {
	out := []string{dns.RcodeToString[m.Rcode]}
	for _, f := range []struct {
		on   bool
		name string
	}{{m.Authoritative, "aa"}, {m.AuthenticatedData, "ad"}, {m.Truncated, "tc"}} {
		if f.on {
			out = append(out, f.name)
		}
	}
	for _, rr := range m.Answer {
		h := rr.Header()
		out = append(out, fmt.Sprintf("| %s %d %s", h.Name, h.Ttl, strings.TrimSpace(strings.ReplaceAll(strings.TrimPrefix(rr.String(), h.String()), "\t", " "))))
		out[len(out)-1] = strings.Replace(out[len(out)-1], fmt.Sprint(" ", h.Ttl, " "), fmt.Sprintf(" %d %s ", h.Ttl, dns.TypeToString[h.Rrtype]), 1)
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok && soa.Hdr.Ttl == soa.Minttl {
			out = append(out, fmt.Sprintf("; SOA %s %d", soa.Hdr.Name, soa.Minttl))
		} else {
			out = append(out, "; "+rr.String())
		}
	}
	if o := m.IsEdns0(); o != nil {
		for _, e := range o.Option {
			if e, ok := e.(*dns.EDNS0_EDE); ok {
				out = append(out, fmt.Sprintf("ede %d", e.InfoCode))
			}
		}
	}
	return unnamed(strings.Join(out, " "))
}

// memPacket is a UDP socket without a network. What is put into in is read; what is written appears in out.
type memPacket struct {
	in, out chan packet
	closed  chan struct{}
	once    sync.Once
	addr    *net.UDPAddr
	past    chan struct{}
	pastOne sync.Once
}

type packet struct {
	b    []byte
	addr net.Addr
}

func newMemPacket(addr string) *memPacket {
	return &memPacket{
		in: make(chan packet, 4096), out: make(chan packet, 4096), closed: make(chan struct{}), past: make(chan struct{}),
		addr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)),
	}
}

func (p *memPacket) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case m := <-p.in:
		return copy(b, m.b), m.addr, nil
	case <-p.closed:
		return 0, nil, net.ErrClosed
	case <-p.past:
		return 0, nil, context.DeadlineExceeded
	}
}
func (p *memPacket) WriteTo(b []byte, a net.Addr) (int, error) {
	p.out <- packet{append([]byte(nil), b...), a}
	return len(b), nil
}
func (p *memPacket) Close() error        { p.once.Do(func() { close(p.closed) }); return nil }
func (p *memPacket) LocalAddr() net.Addr { return p.addr }
func (p *memPacket) SetReadDeadline(t time.Time) error {
	if t.Before(time.Now()) {
		p.pastOne.Do(func() { close(p.past) })
	}
	return nil
}
func (p *memPacket) SetDeadline(time.Time) error      { return nil }
func (p *memPacket) SetWriteDeadline(time.Time) error { return nil }

// memListener hands out the server's ends of pipes.
type memListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newMemListener() *memListener {
	return &memListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *memListener) dial() net.Conn {
	a, b := net.Pipe()
	l.conns <- b
	return a
}
func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *memListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *memListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 3, 2, 1), Port: 53} }
