// Package proxy lets programs of this host that know SOCKS5 or HTTP proxies reach names of ours, without a network interface or a name server. It reads what
// they ask for, refuses what is not ours, and copies bytes between them and a Network. It carries nothing itself and resolves no name: who does is router, over
// a stack in user space (netif). No byte and no name that a program sends here leaves by another way than the Network: what is not ours is refused.
//
// It also serves the other direction: Forward hands what comes to a port of a service to a local address.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"lokinetd/router/key"
)

// Errors of a Network, beside ctx's and those of the kernel (syscall.ECONNREFUSED and the like).
var (
	ErrNotFound = errors.New("no such name, or it is offline") // certainly
	ErrNotReady = errors.New("lokinetd is not connected to the network yet")
	ErrRefused  = errors.New("only names in .loki, .sesh and .snode can be reached here")
)

// Network is what the proxy reaches. Its methods may be called from many goroutines.
type Network interface {
	// Resolve gives the addresses that stand for n, those to be tried first first, once packets can be sent to it. Errors: ErrNotFound, ErrNotReady, ErrRefused,
	// or why it is not known.
	Resolve(ctx context.Context, n key.Name) ([]netip.Addr, error)
	// Mapped reports whether a stands for a remote now.
	Mapped(a netip.Addr) bool
	// Dial connects to an address from Resolve.
	Dial(ctx context.Context, to netip.AddrPort) (Conn, error)
	// ListenPacket opens a datagram socket of one IP version that sends to addresses from Resolve, and hears only from whom it has sent to. Its addresses are *net.UDPAddr.
	ListenPacket(v6 bool) (net.PacketConn, error)
}

// Conn is a connection that can be closed in one direction.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Bounds. The memory that strangers can make us use is these numbers times the buffers: 64 KiB a connection, 128 KiB an association, beside what the stack holds.
const (
	maxConns        = 512              // from programs, at a time
	maxAssociations = 64               // UDP associations, at a time
	requestTime     = 10 * time.Second // for a program to say what it wants
	connectTime     = 60 * time.Second // to resolve a name and connect
	localTime       = 10 * time.Second // to connect to the local address of a forward
	idleTime        = 2 * time.Hour    // of a connection without a byte
	copyBuffer      = 32 << 10
)

// target is where a program wants to go.
type target struct {
	host string   // as it was written
	name key.Name // if addr is not valid
	addr netip.Addr
	port uint16
}

// parseHost decides what may be asked for: a name of ours, or an IP address; whether that stands for somebody is found out when it is used.
// Numbers in other forms ("0x7f.1", "127.1"), "localhost" and all other names are ErrRefused.
func parseHost(host string) (t target, err error) {
	t.host = host
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return t, fmt.Errorf("%w: not %q", ErrRefused, host)
		}
		t.addr = a.Unmap()
		return t, nil
	}
	if t.name, err = key.ParseName(host); err != nil {
		return t, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if t.name.Kind == key.NameLocalhost {
		return t, fmt.Errorf("%w: not ourselves", ErrRefused)
	}
	return t, nil
}

// parseTarget reads "host:port" or "[IPv6]:port", as HTTP has it. port is what is meant by none; 0: there must be one.
func parseTarget(text string, port uint16) (target, error) {
	bad := func() (target, error) { return target{}, fmt.Errorf("%w: %.80q is not host:port", errMalformed, text) }
	host, digits := text, ""
	if i := strings.LastIndexByte(text, ':'); i >= 0 && !strings.HasSuffix(text, "]") {
		host, digits = text[:i], text[i+1:]
		if port = 0; len(digits) == 0 || len(digits) > 5 || digits[0] == '0' {
			return bad()
		}
		n := 0
		for _, c := range []byte(digits) {
			if c < '0' || c > '9' {
				return bad()
			}
			n = 10*n + int(c-'0')
		}
		if n > 65535 {
			return bad()
		}
		port = uint16(n)
	}
	six := strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]")
	if six {
		host = host[1 : len(host)-1]
	}
	if host == "" || port == 0 || strings.Contains(host, ":") != six {
		return bad()
	}
	t, err := parseHost(host)
	t.port = port
	return t, err
}

var errMalformed = errors.New("malformed request")

// Config says what a Server serves.
type Config struct {
	Network Network
	SOCKS   []*net.TCPListener // SOCKS5
	HTTP    []*net.TCPListener // HTTP proxy
	Log     *slog.Logger
}

// Server is the two proxies. All their connections count together.
type Server struct {
	net  Network
	log  *slog.Logger
	conf Config

	patience            time.Duration // requestTime
	conns, associations chan struct{} // a place is taken by sending
	count               counters

	ctx context.Context // of Run
	mu  sync.Mutex
	all map[net.Conn]bool // open connections, for the end
	end bool
	wg  sync.WaitGroup // handlers
}

type counters struct{ opened, failed, refused, full, datagrams, dropped atomic.Uint64 }

// Stats are a Server's counters since its start.
type Stats struct {
	Open      int    // connections of programs now
	Opened    uint64 // connections that reached a remote
	Failed    uint64 // that did not
	Refused   uint64 // requests for what is not ours
	Full      uint64 // connections that were closed because there were too many
	Datagrams uint64 // both ways
	Dropped   uint64 // datagrams
}

// New makes a server. The listeners are its own from now on.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{net: c.Network, log: c.Log, conf: c, patience: requestTime, conns: make(chan struct{}, maxConns), associations: make(chan struct{}, maxAssociations), all: map[net.Conn]bool{}}
}

// Stats may be called at any time.
func (s *Server) Stats() Stats {
	c := &s.count
	return Stats{len(s.conns), c.opened.Load(), c.failed.Load(), c.refused.Load(), c.full.Load(), c.datagrams.Load(), c.dropped.Load()}
}

// Run serves until ctx ends (nil) or a listener fails (its error). Then all connections are closed, and nothing of it is left.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.ctx = ctx
	failed := make(chan error, len(s.conf.SOCKS)+len(s.conf.HTTP))
	var loops sync.WaitGroup
	for _, l := range s.conf.SOCKS {
		loops.Go(func() { failed <- s.serveSOCKS(l) })
	}
	stopHTTP := func() {}
	if len(s.conf.HTTP) > 0 {
		var serve func(*net.TCPListener) error
		serve, stopHTTP = s.newHTTP()
		for _, l := range s.conf.HTTP {
			loops.Go(func() { failed <- serve(l) })
		}
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	for _, l := range slices.Concat(s.conf.SOCKS, s.conf.HTTP) {
		l.Close()
	}
	stopHTTP()
	s.mu.Lock()
	s.end = true
	open := slices.Collect(maps.Keys(s.all))
	s.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
	loops.Wait()
	s.wg.Wait()
	return err
}

// counted is a program's connection, which has one of the server's places until it is closed.
type counted struct {
	*net.TCPConn
	s    *Server
	once sync.Once
}

func (c *counted) Close() error {
	err := c.TCPConn.Close()
	c.once.Do(func() {
		c.s.forget(c)
		<-c.s.conns
	})
	return err
}

// accept waits for the next connection that has a place; others are closed at once.
func (s *Server) accept(l *net.TCPListener) (*counted, error) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) {
				select { // it passes
				case <-time.After(100 * time.Millisecond):
					continue
				case <-s.ctx.Done():
				}
			}
			return nil, err
		}
		select {
		case s.conns <- struct{}{}:
			place := &counted{TCPConn: c, s: s}
			if s.keep(place) {
				return place, nil
			}
			place.Close()
		default:
			s.count.full.Add(1)
			c.Close()
		}
	}
}

// keep notes a connection that has to be closed in the end; false: the end has come.
func (s *Server) keep(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.end {
		s.all[c] = true
	}
	return !s.end
}

func (s *Server) forget(c net.Conn) {
	s.mu.Lock()
	delete(s.all, c)
	s.mu.Unlock()
}

// resolve gives the addresses of a target.
func (s *Server) resolve(ctx context.Context, t target) ([]netip.Addr, error) {
	if !t.addr.IsValid() {
		return s.net.Resolve(ctx, t.name)
	}
	if !s.net.Mapped(t.addr) {
		return nil, fmt.Errorf("%w: not %v", ErrRefused, t.addr)
	}
	return []netip.Addr{t.addr}, nil
}

// dial connects to a target. Its addresses are of one remote: a second one is tried only when the first refuses.
func (s *Server) dial(ctx context.Context, t target) (c Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	addrs, err := s.resolve(ctx, t)
	for _, a := range addrs {
		if c, err = s.net.Dial(ctx, netip.AddrPortFrom(a, t.port)); err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	switch {
	case err == nil && s.keep(c):
		s.count.opened.Add(1)
		return c, nil
	case err == nil:
		c.Close()
		err = context.Canceled
	case errors.Is(err, ErrRefused):
		s.count.refused.Add(1)
	default:
		s.count.failed.Add(1)
	}
	s.log.Debug("cannot connect", "to", t.name, "port", t.port, "err", err)
	return nil, err
}

// join copies between two connections until both directions have ended, one of them fails, or nothing has come for idle. It closes both.
func join(a, b Conn, idle time.Duration) {
	stop := func() { a.Close(); b.Close() }
	alarm := time.AfterFunc(idle, stop)
	var wg sync.WaitGroup
	one := func(dst, src Conn) {
		buf := make([]byte, copyBuffer)
		for {
			n, err := src.Read(buf)
			if n > 0 {
				alarm.Reset(idle)
				if _, err := dst.Write(buf[:n]); err != nil {
					stop()
					return
				}
			}
			if err != nil {
				if !errors.Is(err, io.EOF) || dst.CloseWrite() != nil {
					stop()
				}
				return
			}
		}
	}
	wg.Go(func() { one(a, b) })
	one(b, a)
	wg.Wait()
	alarm.Stop()
	stop()
}
