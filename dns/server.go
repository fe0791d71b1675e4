package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"lokinetd/router/key"
)

// Bounds of the server.
const (
	holdTime   = 1500 * time.Millisecond // default of Config.Hold
	maxQuery   = 4096                    // bytes of a query; none needs more
	maxQueries = 1024                    // UDP queries in work; more are dropped
	maxConns   = 128                     // TCP connections; more are closed at once
	maxPipe    = 16                      // queries in work of one connection; it is not read meanwhile
	idleTime   = 10 * time.Second        // until a connection's next query begins
	readTime   = 3 * time.Second         // for the rest of a query, once it began
	writeTime  = 3 * time.Second         // for a reply
)

// Sockets are what a server listens on: made by Listen or given by the service manager. A UDP socket and a TCP listener of equal address belong
// together by use only.
type Sockets struct {
	Packet []net.PacketConn
	Stream []net.Listener
}

// Listen binds UDP and TCP at each address. With port 0 both get the same free port. On an error nothing stays bound.
func Listen(ctx context.Context, addrs ...netip.AddrPort) (*Sockets, error) {
	s := new(Sockets)
	for _, a := range addrs {
		if err := s.listen(ctx, a); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

func (s *Sockets) listen(ctx context.Context, a netip.AddrPort) error {
	var lc net.ListenConfig
	for try := 0; ; try++ {
		p, err := lc.ListenPacket(ctx, "udp", a.String())
		if err != nil {
			return fmt.Errorf("dns: %w", err)
		}
		l, err := lc.Listen(ctx, "tcp", p.LocalAddr().String())
		if err == nil {
			s.Packet, s.Stream = append(s.Packet, p), append(s.Stream, l)
			return nil
		}
		p.Close()
		if a.Port() != 0 || try == 10 {
			return fmt.Errorf("dns: %w", err)
		}
	}
}

// Close closes all of them. A server's Run does it by itself.
func (s *Sockets) Close() {
	for _, p := range s.Packet {
		p.Close()
	}
	for _, l := range s.Stream {
		l.Close()
	}
}

// Addrs gives the addresses of the UDP sockets, without repetitions.
func (s *Sockets) Addrs() []netip.AddrPort {
	var out []netip.AddrPort
	for _, p := range s.Packet {
		if a := addrPort(p.LocalAddr()); a.IsValid() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// Config is what a server needs. Source and Sockets must be set.
type Config struct {
	Source   Source
	Sockets  *Sockets
	Upstream []netip.AddrPort // in order of preference; empty: foreign names are refused
	Suffix   string           // top-level domain in answers about clients: "loki" (default) or "sesh"
	Hold     time.Duration    // how long an answer may wait for the network; 0: 1.5 s
	Log      *slog.Logger     // nil: none. Names are logged at debug only.
}

// Server answers DNS queries. It is of no use before Run and after it.
type Server struct {
	source     Source
	sockets    *Sockets
	suffix     string
	hold       time.Duration
	log        *slog.Logger
	cookies    cookieSecret
	upstream   atomic.Pointer[forwarder]
	unanswered memory // names of ours that a search list may be tried with
	counts     counters
	queries    chan struct{} // a place for each UDP query in work
	conns      chan struct{} // a place for each connection
}

// New makes a server; Run starts it. An error says what of c cannot be.
func New(c Config) (*Server, error) {
	s := &Server{
		source: c.Source, sockets: c.Sockets, suffix: c.Suffix, hold: c.Hold, log: c.Log,
		cookies: newCookieSecret(),
		queries: make(chan struct{}, maxQueries), conns: make(chan struct{}, maxConns),
	}
	if s.source == nil || s.sockets == nil {
		return nil, errors.New("dns: no source or no sockets")
	}
	switch s.suffix {
	case "":
		s.suffix = key.TLDLoki
	case key.TLDLoki, key.TLDSesh:
	default:
		return nil, fmt.Errorf("dns: suffix %q: want loki or sesh", s.suffix)
	}
	if s.hold == 0 {
		s.hold = holdTime
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.SetUpstream(c.Upstream); err != nil {
		return nil, err
	}
	return s, nil
}

// SetUpstream replaces the upstream resolvers, at any time; what was remembered of the former ones is forgotten. One of our own sockets is an error,
// and nothing is changed.
func (s *Server) SetUpstream(addrs []netip.AddrPort) error {
	for _, a := range addrs {
		for _, own := range s.sockets.Addrs() {
			here := a.Addr().Unmap() == own.Addr() || a.Addr().IsUnspecified() || own.Addr().IsUnspecified() && a.Addr().IsLoopback()
			if here && a.Port() == own.Port() {
				return fmt.Errorf("dns: upstream %s is this server itself", a)
			}
		}
	}
	s.upstream.Store(newForwarder(addrs, &s.counts, s.log))
	return nil
}

// Run answers until ctx ends or a socket fails. Then it reads no more, lets the queries in work fail fast (they are answered SERVFAIL) but for those that an upstream
// answers within a second, closes the sockets and returns when all has ended: nil if it was ctx.
func (s *Server) Run(whole context.Context) error {
	ctx, cancel := context.WithCancelCause(whole)
	defer cancel(nil)
	var readers sync.WaitGroup
	for _, p := range s.sockets.Packet {
		readers.Go(func() { cancel(s.servePacket(ctx, p)) })
	}
	for _, l := range s.sockets.Stream {
		readers.Go(func() { cancel(s.serveStream(ctx, l)) })
	}
	<-ctx.Done()
	for _, p := range s.sockets.Packet {
		p.SetReadDeadline(time.Unix(1, 0))
	}
	for _, l := range s.sockets.Stream {
		l.Close()
	}
	readers.Wait()
	s.sockets.Close()
	if whole.Err() != nil {
		return nil
	}
	return context.Cause(ctx)
}

// servePacket answers the queries of one UDP socket, each in a goroutine of its own, and waits for those when the socket or ctx ends.
func (s *Server) servePacket(ctx context.Context, conn net.PacketConn) error {
	var work sync.WaitGroup
	defer work.Wait()
	p := newPacketSocket(conn)
	buf := make([]byte, maxQuery)
	for backoff := time.Duration(0); ; {
		n, from, answer, err := p.read(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("dns: %w", err)
			}
			backoff = s.pause(ctx, backoff, err)
			continue
		}
		backoff = 0
		s.counts.udp.Add(1)
		if from == p.self {
			s.counts.add(ignored)
			continue
		}
		select {
		case s.queries <- struct{}{}:
		default:
			s.counts.dropped.Add(1)
			continue
		}
		in := slices.Clone(buf[:n])
		work.Go(func() {
			defer func() { <-s.queries }()
			if out := s.handle(ctx, in, from, false); out != nil {
				answer(out) // an error is the client's loss
			}
		})
	}
}

// pause waits after an error that may pass, twice as long each time in a row.
func (s *Server) pause(ctx context.Context, last time.Duration, err error) time.Duration {
	if last == 0 {
		s.log.Warn("socket", "err", err)
	}
	next := min(max(2*last, 5*time.Millisecond), time.Second)
	select {
	case <-time.After(next):
	case <-ctx.Done():
	}
	return next
}

// packetSocket reads queries with a way back. On a socket that is bound to no certain address, replies leave from the one that was asked.
type packetSocket struct {
	conn net.PacketConn
	udp  *net.UDPConn // set when replies need the address
	self netip.AddrPort
}

func newPacketSocket(conn net.PacketConn) *packetSocket {
	p := &packetSocket{conn: conn, self: addrPort(conn.LocalAddr())}
	if udp, ok := conn.(*net.UDPConn); ok && p.self.Addr().IsUnspecified() {
		err4 := ipv4.NewPacketConn(udp).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
		err6 := ipv6.NewPacketConn(udp).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
		if err4 == nil || err6 == nil {
			p.udp = udp
		}
	}
	return p
}

func (p *packetSocket) read(b []byte) (n int, from netip.AddrPort, answer func([]byte), err error) {
	if p.udp != nil {
		n, session, err := dns.ReadFromSessionUDP(p.udp, b)
		if err != nil {
			return 0, netip.AddrPort{}, nil, err
		}
		return n, addrPort(session.RemoteAddr()), func(out []byte) { dns.WriteToSessionUDP(p.udp, out, session) }, nil
	}
	n, addr, err := p.conn.ReadFrom(b)
	if err != nil {
		return 0, netip.AddrPort{}, nil, err
	}
	return n, addrPort(addr), func(out []byte) { p.conn.WriteTo(out, addr) }, nil
}

// addrPort is the IP address and port of a socket address; invalid if it has none.
func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// serveStream accepts connections, and waits for them when the listener or ctx ends.
func (s *Server) serveStream(ctx context.Context, l net.Listener) error {
	var work sync.WaitGroup
	defer work.Wait()
	for backoff := time.Duration(0); ; {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("dns: %w", err)
			}
			backoff = s.pause(ctx, backoff, err)
			continue
		}
		backoff = 0
		select {
		case s.conns <- struct{}{}:
		default:
			s.counts.refusals.Add(1)
			c.Close()
			continue
		}
		work.Go(func() {
			defer func() { <-s.conns }()
			s.serveConn(ctx, c)
		})
	}
}

// serveConn answers the queries of one connection as they are ready, in any order (RFC 7766), until it is idle, broken, says something that is not a query, or ctx
// ends. It owns c.
func (s *Server) serveConn(ctx context.Context, c net.Conn) {
	defer c.Close()
	var work sync.WaitGroup
	defer work.Wait()
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	writing := make(chan struct{}, 1) // held while a reply is written
	pipe := make(chan struct{}, maxPipe)
	from := addrPort(c.RemoteAddr())
	for {
		in, err := readMessage(&patientReader{ctx: ctx, c: c}, maxQuery)
		if err != nil {
			return
		}
		s.counts.tcp.Add(1)
		pipe <- struct{}{}
		work.Go(func() {
			defer func() { <-pipe }()
			out := s.handle(ctx, in, from, true)
			if out == nil {
				c.Close()
				return
			}
			writing <- struct{}{}
			defer func() { <-writing }()
			c.SetWriteDeadline(time.Now().Add(writeTime))
			if _, err := c.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(out)), uint16(len(out))), out...)); err != nil {
				c.Close()
			}
		})
	}
}

// patientReader gives a message idleTime to begin and readTime to end. One for each message.
type patientReader struct {
	ctx   context.Context
	c     net.Conn
	reads int
}

func (r *patientReader) Read(b []byte) (int, error) {
	switch r.reads {
	case 0:
		r.c.SetReadDeadline(time.Now().Add(idleTime))
	case 1:
		r.c.SetReadDeadline(time.Now().Add(readTime))
	}
	r.reads++
	if err := r.ctx.Err(); err != nil { // its end may have set the deadline before we did
		return 0, err
	}
	return r.c.Read(b)
}
