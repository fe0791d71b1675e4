package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lokinetd/router/key"
)

// Hosts of the fake network.
var (
	webKey  = key.Generate().Public().String()
	web     = webKey + ".loki"
	gone    = key.Generate().Public().String() + ".loki" // offline
	slow    = key.Generate().Public().String() + ".loki" // never resolved
	mapped4 = netip.MustParseAddr("172.16.0.2")
	mapped6 = netip.MustParseAddr("fd00::2")
)

// fake is a network with one remote, whose ports are listeners of this host: TCP 80 echoes a line and then all, 443 refuses over IPv4, 53 echoes datagrams.
type fake struct {
	t    *testing.T
	mu   sync.Mutex
	tcp  map[uint16]string // where a port really listens
	udp  net.PacketConn
	host []string // what was resolved
}

func (f *fake) Resolve(ctx context.Context, n key.Name) ([]netip.Addr, error) {
	f.mu.Lock()
	f.host = append(f.host, n.String())
	f.mu.Unlock()
	switch n.Host + "." + n.TLD {
	case web, "site.loki":
		return []netip.Addr{mapped4, mapped6}, nil
	case gone:
		return nil, ErrNotFound
	case slow:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, ErrNotReady
}

func (f *fake) Mapped(a netip.Addr) bool { return a == mapped4 || a == mapped6 }

func (f *fake) Dial(ctx context.Context, to netip.AddrPort) (Conn, error) {
	if !f.Mapped(to.Addr()) {
		f.t.Errorf("dial %v", to)
	}
	at := f.tcp[to.Port()]
	if at == "" || to.Port() == 443 && to.Addr().Is4() {
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// ListenPacket gives a socket whose packets to port 53 of the remote go to f.udp.
func (f *fake) ListenPacket(v6 bool) (net.PacketConn, error) {
	p, err := net.ListenPacket("udp4", "127.0.0.1:0")
	return &fakePackets{p, f, v6}, err
}

type fakePackets struct {
	net.PacketConn
	f  *fake
	v6 bool
}

func (p *fakePackets) WriteTo(b []byte, to net.Addr) (int, error) {
	a := to.(*net.UDPAddr).AddrPort()
	if !p.f.Mapped(a.Addr()) || a.Addr().Is6() != p.v6 {
		p.f.t.Errorf("datagram to %v", a)
	}
	if a.Port() != 53 {
		return len(b), nil
	}
	return p.PacketConn.WriteTo(b, p.f.udp.LocalAddr())
}

func (p *fakePackets) ReadFrom(b []byte) (int, net.Addr, error) {
	n, _, err := p.PacketConn.ReadFrom(b)
	if p.v6 {
		return n, net.UDPAddrFromAddrPort(netip.AddrPortFrom(mapped6, 53)), err
	}
	return n, net.UDPAddrFromAddrPort(netip.AddrPortFrom(mapped4, 53)), err
}

// noLeaks fails the test when goroutines are left after all that was cleaned up later.
func noLeaks(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for end := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				buf := make([]byte, 1<<20)
				t.Errorf("%d goroutines before, now:\n%s", before, buf[:runtime.Stack(buf, true)])
				return
			}
		}
	})
}

func listen(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// echo answers the first line with "hello " and the line, and then gives back what comes.
func echo(t *testing.T) *net.TCPListener {
	l := listen(t)
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				io.WriteString(c, "hello "+line)
				io.Copy(c, r)
				c.CloseWrite()
			}()
		}
	}()
	t.Cleanup(func() { l.Close() })
	return l
}

// start runs a server over the fake network.
func start(t *testing.T) (s *Server, f *fake, socks, http string) {
	return startPatient(t, 10*time.Second)
}

func startPatient(t *testing.T, patience time.Duration) (s *Server, f *fake, socks, http string) {
	noLeaks(t)
	f = &fake{t: t, tcp: map[uint16]string{}}
	at := echo(t).Addr().String()
	f.tcp[80], f.tcp[443] = at, at
	var err error
	if f.udp, err = net.ListenPacket("udp4", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.udp.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := f.udp.ReadFrom(b)
			if err != nil {
				return
			}
			f.udp.WriteTo(append([]byte("re: "), b[:n]...), from)
		}
	}()
	c := Config{Network: f, SOCKS: []*net.TCPListener{listen(t)}, HTTP: []*net.TCPListener{listen(t)}}
	s = New(c)
	s.patience = patience
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if n := len(s.conns) + len(s.associations) + len(s.all); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
	return s, f, c.SOCKS[0].Addr().String(), c.HTTP[0].Addr().String()
}

// dial connects to one of the proxies, with a time limit for all that follows.
func dial(t *testing.T, at string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func upper(s string) string { return strings.ToUpper(s) }
