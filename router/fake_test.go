package router

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
)

// fakeWire is a wire whose other end is the test: dial answers dials, and the node's handler is called directly.
type fakeWire struct {
	dial    func(ctx context.Context, to netip.AddrPort, remote key.Public, kind link.Kind) (link.Conn, error) // nil: nobody answers
	handler link.Handler
	ready   chan struct{}
}

func newFakeWire() *fakeWire { return &fakeWire{ready: make(chan struct{})} }

var errNobody = errors.New("nobody there")

func (w *fakeWire) Dial(ctx context.Context, to netip.AddrPort, remote key.Public, kind link.Kind) (link.Conn, error) {
	if w.dial == nil {
		return nil, errNobody
	}
	return w.dial(ctx, to, remote, kind)
}

func (w *fakeWire) Run(ctx context.Context, h link.Handler) error {
	w.handler = h
	close(w.ready)
	<-ctx.Done()
	return nil
}

func (w *fakeWire) LocalAddr() netip.AddrPort { return netip.AddrPort{} }

// fakeConn is a connection to the test.
type fakeConn struct {
	kind     link.Kind
	remote   key.Public
	outbound bool
	addr     netip.AddrPort
	answer   func(ctx context.Context, name string, body []byte) ([]byte, error) // nil: silence

	mu   sync.Mutex
	said []said // what the node sent
	code uint64
	done chan struct{}
}

// said is a request or command of the node.
type said struct {
	name string
	body string
}

func newConn(kind link.Kind, remote key.Public) *fakeConn {
	return &fakeConn{kind: kind, remote: remote, done: make(chan struct{}), addr: netip.MustParseAddrPort("30.0.0.1:1")}
}

func (c *fakeConn) Kind() link.Kind            { return c.kind }
func (c *fakeConn) Remote() key.Public         { return c.remote }
func (c *fakeConn) Outbound() bool             { return c.outbound }
func (c *fakeConn) Send(b *packet.Buffer)      { b.Release() }
func (c *fakeConn) Done() <-chan struct{}      { return c.done }
func (c *fakeConn) Stats() link.ConnStats      { return link.ConnStats{} }
func (c *fakeConn) RemoteAddr() netip.AddrPort { return c.addr }

func (c *fakeConn) Close(code uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
	default:
		c.code = code
		close(c.done)
	}
}

func (c *fakeConn) Command(name string, body []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.said = append(c.said, said{name, string(body)})
	return nil
}

func (c *fakeConn) Request(ctx context.Context, name string, body []byte) ([]byte, error) {
	c.Command(name, body)
	ctx, cancel := context.WithTimeout(ctx, link.RequestTimeout)
	defer cancel()
	if c.answer != nil {
		return c.answer(ctx, name, body)
	}
	<-ctx.Done()
	return nil, link.ErrTimeout
}

// heard gives what the node sent since the last call.
func (c *fakeConn) heard() []said {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.said
	c.said = nil
	return s
}

// secret makes the same key for the same number always.
func secret(n int) *key.Secret {
	if s, ok := secrets.Load(n); ok {
		return s.(*key.Secret)
	}
	s, _ := secrets.LoadOrStore(n, newSecret(n))
	return s.(*key.Secret)
}

var secrets sync.Map

func newSecret(n int) *key.Secret {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], uint64(n))
	return key.FromSeed(seed)
}

const testNetwork = 42

func relayAddr(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{20, byte(n >> 8), byte(n), 1}), 1190)
}

func relayContact(n int, at time.Time) *netdb.RelayContact {
	return SignContact(secret(n), relayAddr(n), testNetwork, at)
}

// testFile is a network of the relays 0 to n-1, with the contacts of some.
func testFile(n int, contacts ...int) *netdb.NetworkFile {
	f := &netdb.NetworkFile{Name: "test", Network: testNetwork, Serial: 1, Names: map[string]key.Public{"shop.loki": secret(5000).Public()}}
	for i := range n {
		f.Relays = append(f.Relays, secret(i).Public())
	}
	slices.SortFunc(f.Relays, key.Public.Compare)
	for _, i := range contacts {
		f.Contacts = append(f.Contacts, relayContact(i, time.Now()))
	}
	return f
}

// runNode makes a node and runs it until the test ends; call it inside a synctest bubble.
func runNode(t *testing.T, c NodeConfig) *Node {
	t.Helper()
	self, relay := key.Public{}, c.Secret != nil
	if relay {
		self = c.Secret.Public()
	}
	var err error
	if c.Store == nil {
		if c.Store, err = netdb.OpenStore("", self, relay, c.Network.Rules(), nil); err != nil {
			t.Fatal(err)
		}
	}
	n, err := NewNode(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-c.Wire.(*fakeWire).ready
	synctest.Wait()
	return n
}

func relayAddrOf(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }
