package netif

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	gicmp "gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	gtcp "gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	gudp "gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	stackNIC     = 1
	stackQueue   = 1024 // packets that wait for the pump, as in a kernel's TUN (IFQ); on top, new ones are dropped
	stackBatch   = 32
	stackBacklog = 256 // connections that nobody has accepted yet
	// stackBuffer bounds what one connection holds in each direction; it begins with stackBufferFirst.
	stackBuffer      = 1 << 20
	stackBufferFirst = 256 << 10

	// A remote that we have connected to and that is gone without a word is noticed after 8 minutes.
	keepAliveIdle  = 4 * time.Minute
	keepAliveEvery = 30 * time.Second
	keepAliveTries = 8
)

// Stack is a device without a kernel behind it: a TCP/IP stack in this process, for those who may not have a network interface. Pump moves its packets
// as it moves a TUN's; in the place of the host's programs are the methods that dial and listen. Nothing of it can be seen outside of the process. Its
// methods may be called from several goroutines.
//
// (wireguard's tun/netstack is the same library with addresses that are fixed at its start, without a choice of the source address, and with a Close
// that panics when somebody sends.)
type Stack struct {
	link  *channel.Endpoint
	stack *stack.Stack

	mu     sync.Mutex
	addrs  []netip.Prefix
	closed bool
	read   context.Context // ends a Read
	cancel context.CancelFunc
}

// Conn is a TCP connection of a Stack, which can be closed in one direction.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// NewStack makes a stack without addresses.
func NewStack() (*Stack, error) {
	s := &Stack{
		link: channel.New(stackQueue, MTU, ""),
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{gtcp.NewProtocol, gudp.NewProtocol, gicmp.NewProtocol4, gicmp.NewProtocol6},
			HandleLocal:        true, // between our own endpoints
		}),
	}
	s.read, s.cancel = context.WithCancel(context.Background())
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	for _, o := range []tcpip.SettableTransportProtocolOption{
		&sack, &moderate,
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: stackBufferFirst, Max: stackBuffer},
		&tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: stackBufferFirst, Max: stackBuffer},
	} {
		if err := s.stack.SetTransportProtocolOption(gtcp.ProtocolNumber, o); err != nil {
			s.Close(false)
			return nil, fmt.Errorf("netif: user-space stack: set %T: %v", o, err)
		}
	}
	if err := s.stack.CreateNIC(stackNIC, s.link); err != nil {
		s.Close(false)
		return nil, fmt.Errorf("netif: user-space stack: %v", err)
	}
	s.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: stackNIC}, {Destination: header.IPv6EmptySubnet, NIC: stackNIC}})
	return s, nil
}

// Apply makes want all addresses that the stack has. The lengths of the ranges do not matter: all packets for others go to the pump.
func (s *Stack) Apply(want []netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("netif: user-space stack: %w", os.ErrClosed)
	}
	for _, p := range want {
		if slices.Contains(s.addrs, p) {
			continue
		}
		a := tcpip.ProtocolAddress{Protocol: protocolOf(p.Addr()), AddressWithPrefix: tcpip.AddrFromSlice(p.Addr().AsSlice()).WithPrefix()}
		if err := s.stack.AddProtocolAddress(stackNIC, a, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("netif: user-space stack: add the address %v: %v", p.Addr(), err)
		}
		s.addrs = append(s.addrs, p)
	}
	for _, p := range slices.Clone(s.addrs) {
		if slices.Contains(want, p) {
			continue
		}
		if err := s.stack.RemoveAddress(stackNIC, tcpip.AddrFromSlice(p.Addr().AsSlice())); err != nil {
			return fmt.Errorf("netif: user-space stack: remove the address %v: %v", p.Addr(), err)
		}
		s.addrs = slices.DeleteFunc(s.addrs, func(x netip.Prefix) bool { return x == p })
	}
	return nil
}

// Name is for status.
func (s *Stack) Name() string { return "in user space" }

// NoIPv6 says why there is no IPv6: there always is.
func (s *Stack) NoIPv6() string { return "" }

// File returns nil: there is no descriptor that could outlive the process.
func (s *Stack) File() *os.File { return nil }

// Close ends all connections and waits for the stack's goroutines. The stack leaves nothing on the host, whatever is asked for.
func (s *Stack) Close(bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.cancel()
	s.stack.Close()
	s.link.Close()
	s.stack.Wait()
	return nil
}

// Read implements TUN.
func (s *Stack) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	s.mu.Lock()
	read := s.read
	s.mu.Unlock()
	for p := s.link.ReadContext(read); p != nil; p = s.link.Read() {
		at := bufs[n][offset:offset]
		for _, part := range p.AsSlices() {
			at = append(at, part...) // the stack sends nothing over the MTU
		}
		p.DecRef()
		sizes[n] = len(at)
		if n++; n == min(len(bufs), stackBatch) {
			return n, nil
		}
	}
	if n > 0 {
		return n, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, os.ErrClosed
	}
	return 0, os.ErrDeadlineExceeded
}

// Write implements TUN.
func (s *Stack) Write(bufs [][]byte, offset int) (n int, err error) {
	for _, b := range bufs {
		b = b[offset:]
		if len(b) == 0 {
			continue
		}
		proto := ipv4.ProtocolNumber
		if b[0]>>4 == 6 {
			proto = ipv6.ProtocolNumber
		}
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)}) // a copy
		s.link.InjectInbound(proto, p)
		p.DecRef()
		n += len(b)
	}
	return n, nil
}

// BatchSize implements TUN.
func (s *Stack) BatchSize() int { return stackBatch }

// SetReadDeadline implements TUN.
func (s *Stack) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	if t.IsZero() {
		s.cancel()
		s.read, s.cancel = context.WithCancel(context.Background())
		return nil
	}
	if !t.After(time.Now()) {
		s.cancel()
		return nil
	}
	s.read, s.cancel = context.WithDeadline(context.Background(), t) // from the next Read on
	return nil
}

// DialTCP connects from one of the stack's own addresses. Errors: ctx's, syscall.ECONNREFUSED and the like. (The library does not look at the ICMPv6 errors that
// Pump sends for an address that stands for nobody: over IPv6 only ctx ends that.)
func (s *Stack) DialTCP(ctx context.Context, from netip.Addr, to netip.AddrPort) (Conn, error) {
	fail := func(err error) (Conn, error) { return nil, fmt.Errorf("netif: connect to %v: %w", to, err) }
	wq := new(waiter.Queue)
	ep, terr := s.stack.NewEndpoint(gtcp.ProtocolNumber, protocolOf(to.Addr()), wq)
	if terr != nil {
		return fail(errorOf(terr))
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	keepAlive(ep)
	if terr = ep.Bind(fullAddress(netip.AddrPortFrom(from, 0))); terr == nil {
		terr = ep.Connect(fullAddress(to))
	}
	if _, ok := terr.(*tcpip.ErrConnectStarted); ok {
		select {
		case <-ready:
			terr = ep.LastError()
		case <-ctx.Done():
			ep.Close()
			return fail(ctx.Err())
		}
	}
	if terr != nil {
		ep.Close()
		return fail(errorOf(terr))
	}
	return gonet.NewTCPConn(wq, ep), nil
}

// ListenTCP listens on one of the stack's own addresses. What it accepts is a Conn, without keep-alive: who accepts bounds how long nothing may happen.
func (s *Stack) ListenTCP(at netip.AddrPort) (net.Listener, error) {
	wq := new(waiter.Queue)
	ep, err := s.stack.NewEndpoint(gtcp.ProtocolNumber, protocolOf(at.Addr()), wq)
	if err == nil {
		ep.SocketOptions().SetReuseAddress(true) // as all of Go's listeners have it: a former one's connections may still be there
		if err = ep.Bind(fullAddress(at)); err == nil {
			err = ep.Listen(stackBacklog)
		}
		if err != nil {
			ep.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("netif: listen on %v: %w", at, errorOf(err))
	}
	return gonet.NewTCPListener(s.stack, wq, ep), nil
}

// ListenUDP opens a datagram socket on one of the stack's own addresses; with port 0 on any port that is free. It reads from, and writes to, *net.UDPAddr.
func (s *Stack) ListenUDP(at netip.AddrPort) (net.PacketConn, error) {
	local := fullAddress(at)
	c, err := gonet.DialUDP(s.stack, &local, nil, protocolOf(at.Addr()))
	if err != nil {
		return nil, fmt.Errorf("netif: listen: %w", err)
	}
	return c, nil
}

func keepAlive(ep tcpip.Endpoint) {
	idle, every := tcpip.KeepaliveIdleOption(keepAliveIdle), tcpip.KeepaliveIntervalOption(keepAliveEvery)
	ep.SetSockOpt(&idle)
	ep.SetSockOpt(&every)
	ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepAliveTries)
	ep.SocketOptions().SetKeepAlive(true)
}

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

// errorOf gives the stack's errors the names that the kernel's have.
func errorOf(e tcpip.Error) error {
	switch e.(type) {
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset, *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return syscall.ECONNRESET
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown, *tcpip.ErrNoNet:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	}
	return fmt.Errorf("user-space stack: %v", e)
}

var _ TUN = (*Stack)(nil)
