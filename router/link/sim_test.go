package link

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// simNet is quic-go's simulated network in fake time, with a filter in the middle. Every node has 5 ms to every other.
type simNet struct {
	t testing.TB
	simnet.PerfectRouter
	drop atomic.Pointer[func(simnet.Packet) bool] // lost in the middle
	mtu  int                                      // UDP payload that passes; 0: 1400
	late func(simnet.Packet) time.Duration        // instead of the 5 ms, for nodes made after it was set
	df   syscall.RawConn                          // not nil: nodes have path MTU discovery

	mu    sync.Mutex
	links []*simnet.SimulatedLink
}

func newSimNet(t testing.TB) *simNet { return &simNet{t: t} }

func (n *simNet) SendPacket(p simnet.Packet) error {
	if drop := n.drop.Load(); drop != nil && (*drop)(p) {
		return nil
	}
	n.PerfectRouter.SendPacket(p) // nobody there: lost
	return nil
}

// lose drops what f says; nil: nothing.
func (n *simNet) lose(f func(simnet.Packet) bool) {
	if f == nil {
		n.drop.Store(nil)
		return
	}
	n.drop.Store(&f)
}

func everything(simnet.Packet) bool { return true }

// from is a filter for packets of one node.
func from(a netip.AddrPort) func(simnet.Packet) bool {
	return func(p simnet.Packet) bool { return addrPort(p.From) == a }
}

type dfConn struct {
	*simnet.SimConn
	raw syscall.RawConn
}

func (c dfConn) SyscallConn() (syscall.RawConn, error) { return c.raw, nil }

// socket makes the socket of a node, or of its successor at the same address.
func (n *simNet) socket(addr netip.AddrPort) net.PacketConn {
	a := net.UDPAddrFromAddrPort(addr)
	settings := simnet.LinkSettings{MTU: n.mtu}
	l := &simnet.SimulatedLink{UplinkSettings: settings, DownlinkSettings: settings, Latency: 5 * time.Millisecond, LatencyFunc: n.late, UploadPacket: n}
	c := simnet.NewBlockingSimConn(a, l)
	l.Start()
	n.AddNode(a, l)
	n.mu.Lock()
	n.links = append(n.links, l)
	n.mu.Unlock()
	if n.df != nil {
		return dfConn{c, n.df}
	}
	return c
}

func (n *simNet) close() {
	for _, l := range n.links {
		l.Close()
	}
}

// withDF gives the network path MTU discovery: quic-go sets the flag on some real socket.
func (n *simNet) withDF() *simNet {
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { u.Close() })
	if n.df, err = u.SyscallConn(); err != nil {
		n.t.Fatal(err)
	}
	return n
}

// node is an endpoint that runs, with a handler that notes what comes.
type node struct {
	t      testing.TB
	secret *key.Secret
	addr   netip.AddrPort
	quic   *QUIC
	stop   func() // ends Run and waits for it

	request  func(c Conn, r *Request)       // nil: echo
	datagram func(c Conn, b *packet.Buffer) // nil: kept

	mu        sync.Mutex
	opened    []Conn
	closed    map[Conn]error
	closedAt  map[Conn]time.Time
	requests  []string
	datagrams [][]byte
	calls     map[Conn]string // what was called, as letters
}

func (n *node) note(c Conn, what string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.calls == nil {
		n.calls, n.closed, n.closedAt = map[Conn]string{}, map[Conn]error{}, map[Conn]time.Time{}
	}
	n.calls[c] += what
}

func (n *node) Opened(c Conn) {
	n.note(c, "o")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.opened = append(n.opened, c)
}

func (n *node) Request(c Conn, r *Request) {
	n.note(c, "")
	n.mu.Lock()
	n.requests = append(n.requests, r.Name)
	f := n.request
	n.mu.Unlock()
	if f != nil {
		f(c, r)
		return
	}
	r.Reply(r.Body)
}

func (n *node) Datagram(c Conn, b *packet.Buffer) {
	if n.datagram != nil {
		n.datagram(c, b)
		return
	}
	n.mu.Lock()
	n.datagrams = append(n.datagrams, bytes.Clone(b.Data))
	n.mu.Unlock()
	b.Release()
}

func (n *node) Closed(c Conn, err error) {
	n.note(c, "c")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed[c], n.closedAt[c] = err, time.Now()
}

// conns are the connections announced so far.
func (n *node) conns() []Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.opened)
}

// end is the reason why c was closed; nil while it is open.
func (n *node) end(c Conn) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closed[c]
}

func (n *node) arrived() [][]byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.datagrams)
}

func addrOf(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1190)
}

func allowAll(key.Public) bool { return true }

// run starts a node on pc. A missing secret is made.
func run(t testing.TB, pc net.PacketConn, n *node, c Config) *node {
	if n.secret == nil {
		n.secret = key.Generate()
	}
	n.t = t
	c.Secret = n.secret
	q, err := NewQUIC(pc, c)
	if err != nil {
		t.Fatal(err)
	}
	n.quic, n.addr = q, q.LocalAddr()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- q.Run(ctx, n) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return n
}

// relayAt is a relay that takes any other.
func (n *simNet) relayAt(i int) *node {
	return run(n.t, n.socket(addrOf(i)), &node{}, Config{Accept: true, Registered: allowAll})
}

func (n *node) dial(to *node, kind Kind) Conn {
	n.t.Helper()
	c, err := n.quic.Dial(context.Background(), to.addr, to.secret.Public(), kind)
	if err != nil {
		n.t.Fatalf("dial: %v", err)
	}
	return c
}

// accepted waits for the only connection that n has accepted.
func (n *node) accepted() Conn {
	n.t.Helper()
	time.Sleep(20 * time.Millisecond)
	synctest.Wait()
	if cs := n.conns(); len(cs) == 1 {
		return cs[0]
	}
	n.t.Fatalf("%d connections", len(n.conns()))
	return nil
}

// inSim runs f in fake time. That it returns shows that no goroutine is left.
func inSim(t *testing.T, f func(t *testing.T, n *simNet)) {
	buffers := packet.InUse()
	synctest.Test(t, func(t *testing.T) {
		n := newSimNet(t)
		f(t, n)
		n.close()
	})
	if left := packet.InUse() - buffers; left != 0 {
		t.Errorf("%d packet buffers left", left)
	}
}

func bufferOf(p []byte) *packet.Buffer {
	b := packet.Get()
	b.Set(p)
	return b
}

var ctxb = context.Background()
