package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// start runs a server on memory sockets in a bubble and gives what ends it.
func start(t *testing.T, src Source) (s *Server, p *memPacket, l *memListener, stop func()) {
	p, l = newMemPacket("127.3.2.1:53"), newMemListener()
	s, err := New(Config{Source: src, Sockets: &Sockets{Packet: []net.PacketConn{p}, Stream: []net.Listener{l}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return s, p, l, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func wireQuery(id uint16, name string, qtype uint16) []byte {
	q := new(dns.Msg).SetQuestion(named(name), qtype)
	q.Id = id
	b, err := q.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func frame(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }

// readReply reads one framed reply and gives its id and rcode.
func readReply(t *testing.T, c net.Conn) (id uint16, rcode byte) {
	t.Helper()
	b, err := readMessage(c, dns.MaxMsgSize)
	if err != nil {
		t.Errorf("no reply: %v", err)
		return 0, 0xff
	}
	return binary.BigEndian.Uint16(b), b[3] & 15
}

func TestUDP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p, _, stop := start(t, &fake{wait: 100 * time.Millisecond})
		from := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4000}
		p.in <- packet{wireQuery(1, "ALICE.loki.", dns.TypeA), from} // held
		p.in <- packet{wireQuery(2, "-.loki.", dns.TypeA), from}     // overtakes
		p.in <- packet{[]byte("rubbish"), from}
		p.in <- packet{wireQuery(3, "-.loki.", dns.TypeA), p.addr} // from ourselves
		for _, want := range []uint16{2, 1} {
			out := <-p.out
			if got := binary.BigEndian.Uint16(out.b); got != want || out.addr != from {
				t.Errorf("reply %d to %v, want %d", got, out.addr, want)
			}
		}
		stop()
		if st := s.Stats(); st.UDP != 4 || st.Ignored != 2 || len(p.out) != 0 {
			t.Errorf("%+v, %d more replies", st, len(p.out))
		}
	})
}

// TestUDPBound: queries in work are bounded, more are dropped; the end answers those that wait.
func TestUDPBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p, _, stop := start(t, &fake{wait: time.Minute, offline: true})
		from := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4000}
		for i := range maxQueries + 5 {
			p.in <- packet{wireQuery(uint16(i), "ALICE.loki.", dns.TypeA), from}
		}
		synctest.Wait()
		if got := s.Stats().Dropped; got != 5 {
			t.Errorf("%d dropped", got)
		}
		begin := time.Now()
		stop()
		if time.Since(begin) != 0 {
			t.Error("the end waits")
		}
		if len(p.out) != maxQueries || s.Stats().ServFail != maxQueries {
			t.Errorf("%d replies, %+v", len(p.out), s.Stats())
		}
	})
}

// TestTCP: several queries in one connection, answered as they are ready.
func TestTCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, l, stop := start(t, &fake{wait: 100 * time.Millisecond})
		c := l.dial()
		c.Write(append(frame(wireQuery(1, "ALICE.loki.", dns.TypeA)), frame(wireQuery(2, "-.loki.", dns.TypeA))...))
		for _, want := range []uint16{2, 1} {
			if id, _ := readReply(t, c); id != want {
				t.Errorf("reply %d, want %d", id, want)
			}
		}
		for _, b := range frame(wireQuery(3, "-.loki.", dns.TypeA)) { // byte by byte
			time.Sleep(10 * time.Millisecond)
			c.Write([]byte{b})
		}
		if id, rcode := readReply(t, c); id != 3 || rcode != dns.RcodeNameError {
			t.Error(id, rcode)
		}
		begin := time.Now()
		if _, err := c.Read(make([]byte, 1)); err != io.EOF || time.Since(begin) != idleTime {
			t.Errorf("an idle connection ends with %v after %v", err, time.Since(begin))
		}
		stop()
		if st := s.Stats(); st.TCP != 3 {
			t.Errorf("%+v", st)
		}
	})
}

// TestTCPBadClients: each is cut off in its time and costs nobody else.
func TestTCPBadClients(t *testing.T) {
	for _, c := range []struct {
		name string
		send []byte
		ends time.Duration
	}{
		{"silent", nil, idleTime},
		{"one byte", []byte{0}, readTime},
		{"half a query", frame(wireQuery(1, "-.loki.", dns.TypeA))[:10], readTime},
		{"too long", []byte{0xff, 0xff}, 0},
		{"empty", []byte{0, 0}, 0},
		{"short", frame([]byte("rubbish")), 0},
		{"a reply", frame(append([]byte{1, 2, 0x80}, make([]byte, 20)...)), 0},
		{"one byte a second", nil, readTime},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, _, l, stop := start(t, &fake{})
			conn := l.dial()
			if c.send != nil {
				conn.Write(c.send)
			}
			begin := time.Now()
			if c.name == "one byte a second" {
				go func() {
					for _, b := range frame(wireQuery(1, "-.loki.", dns.TypeA)) {
						if _, err := conn.Write([]byte{b}); err != nil {
							return
						}
						time.Sleep(time.Second)
					}
				}()
			}
			if _, err := conn.Read(make([]byte, 1)); err != io.EOF || time.Since(begin) != c.ends {
				t.Errorf("%s: ends with %v after %v, want %v", c.name, err, time.Since(begin), c.ends)
			}
			conn.Close()
			time.Sleep(time.Second) // who writes has seen it
			stop()
		})
	}
}

// TestTCPBounds: connections and queries in work per connection are bounded; a client that does not read its replies is cut off.
func TestTCPBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, l, stop := start(t, &fake{offline: true, wait: time.Minute})
		conns := make([]net.Conn, maxConns)
		for i := range conns {
			conns[i] = l.dial()
		}
		extra := l.dial()
		if _, err := extra.Read(make([]byte, 1)); err != io.EOF || s.Stats().Refusals != 1 {
			t.Errorf("one connection more: %v, %+v", err, s.Stats())
		}
		var work sync.WaitGroup
		work.Go(func() {
			for i := range maxPipe + 5 {
				if _, err := conns[0].Write(frame(wireQuery(uint16(i), "ALICE.loki.", dns.TypeA))); err != nil {
					break
				}
			}
		})
		time.Sleep(time.Second)
		if n := s.Stats().TCP; n != maxPipe+1 { // one is read and waits for its place
			t.Errorf("%d queries of one connection were read", n)
		}
		time.Sleep(holdTime + writeTime) // the replies are not read
		if _, err := conns[0].Read(make([]byte, 1)); err != io.EOF && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("who does not read stays: %v", err)
		}
		work.Wait()
		stop()
	})
}

// TestEnd: Run ends at once, whatever is open, and answers what it has read.
func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, l, stop := start(t, &fake{wait: time.Minute, offline: true})
		idle, waiting := l.dial(), l.dial()
		waiting.Write(frame(wireQuery(7, "ALICE.loki.", dns.TypeA)))
		synctest.Wait()
		begin := time.Now()
		var work sync.WaitGroup
		work.Go(func() {
			if id, rcode := readReply(t, waiting); id != 7 || rcode != dns.RcodeServerFailure {
				t.Error(id, rcode)
			}
			if _, err := idle.Read(make([]byte, 1)); err != io.EOF {
				t.Error(err)
			}
		})
		stop()
		work.Wait()
		if time.Since(begin) != 0 {
			t.Errorf("took %v", time.Since(begin))
		}
	})
}

// TestSocketFails: a socket that is closed by somebody else ends Run with its error.
func TestSocketFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for i := range 2 {
			p, l := newMemPacket("127.3.2.1:53"), newMemListener()
			s, err := New(Config{Source: &fake{}, Sockets: &Sockets{Packet: []net.PacketConn{p}, Stream: []net.Listener{l}}})
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error)
			go func() { done <- s.Run(t.Context()) }()
			synctest.Wait()
			[]io.Closer{p, l}[i].Close()
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Run: %v", err)
			}
		}
	})
}

// TestRealSockets: over the loopback device with the library's client, UDP and TCP, also bound to all addresses: then the reply comes from the address
// that was asked.
func TestRealSockets(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"} {
		t.Run(listen, func(t *testing.T) {
			socks, err := Listen(t.Context(), netip.MustParseAddrPort(listen))
			if err != nil {
				if netip.MustParseAddrPort(listen).Addr().Is6() && os.Getenv("CI") == "" {
					t.Skip(err) // no IPv6 here
				}
				t.Fatal(err)
			}
			s, err := New(Config{Source: &fake{}, Sockets: socks})
			if err != nil {
				t.Fatal(err)
			}
			own := socks.Addrs()[0]
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- s.Run(ctx) }()
			targets := []string{"127.0.0.1", "127.3.2.1"}
			if own.Addr().Is6() {
				targets = []string{"::1", "127.0.0.1"}
			}
			if !own.Addr().IsUnspecified() {
				targets = []string{own.Addr().String()}
			}
			for _, host := range targets {
				for _, network := range []string{"udp", "tcp"} {
					c := &dns.Client{Net: network, Timeout: time.Minute}
					m, _, err := c.ExchangeContext(ctx, new(dns.Msg).SetQuestion(named("ALICE.loki."), dns.TypeA), net.JoinHostPort(host, fmt.Sprint(own.Port())))
					if err != nil {
						t.Errorf("%s %s: %v", network, host, err)
					} else if got := short(m); got != "NOERROR aa | ALICE.loki. 10 A 172.16.0.2" {
						t.Errorf("%s %s: %s", network, host, got)
					}
				}
			}
			if _, err := Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), own); err == nil {
				t.Error("an address in use is bound again")
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"no source":  {Sockets: new(Sockets)},
		"no sockets": {Source: &fake{}},
		"suffix":     {Source: &fake{}, Sockets: new(Sockets), Suffix: "snode"},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// BenchmarkAnswer: an address query from bytes to bytes.
func BenchmarkAnswer(b *testing.B) {
	s := newServer(b, &fake{})
	q := wireQuery(1, "ALICE.loki.", dns.TypeA)
	b.ReportAllocs()
	for b.Loop() {
		s.handle(b.Context(), q, client, false)
	}
}
