package session

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
)

// onions is a network with real paths: router/path at clients and relays, links in memory.
type onions struct {
	t       *testing.T
	latency time.Duration
	store   *netdb.Store
	relays  map[key.Public]*onionRelay
	ids     []key.Public

	mu     sync.Mutex
	stored map[key.Public][]byte // one for all locations
}

type onionRelay struct {
	net      *onions
	sec      *key.Secret
	transit  *path.Relay
	sessions *Table
}

func newOnions(t *testing.T, relays int) *onions {
	store, err := netdb.OpenStore("", key.Public{}, false, netdb.Rules{Private: true, Network: 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := &onions{t: t, latency: 10 * time.Millisecond, store: store, relays: make(map[key.Public]*onionRelay), stored: make(map[key.Public][]byte)}
	for i := range relays {
		r := &onionRelay{net: n, sec: secretOf(byte(0x20 + i))}
		id := r.sec.Public()
		r.transit = path.NewRelay(r.sec, r, r, path.Limits{}, nil)
		r.sessions = NewTable(Config{Self: r.sec, Relay: true, Deliver: func(from key.Address, b *packet.Buffer) {
			s := text(b.Data)
			b.Release()
			r.sessions.Send(from, ipPacket("!"+s[1:]))
		}})
		c := netdb.SignRelayContact(r.sec, netdb.RelayContact{
			ID: id, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 1}), 1090), Time: time.Now().Truncate(time.Second),
			Version: [3]uint8{1, 0, 2}, Sessions: true, Network: 2,
		})
		if stored, _ := store.Put(c); !stored {
			t.Fatal("contact not stored")
		}
		n.relays[id] = r
		n.ids = append(n.ids, id)
	}
	return n
}

func (n *onions) later(f func()) {
	go func() {
		time.Sleep(n.latency)
		f()
	}()
}

type onionReply struct {
	body []byte
	fail bool
}

type failReply []byte

func (failReply) Error() string       { return "error reply" }
func (f failReply) ReplyBody() []byte { return f }

func (n *onions) request(ctx context.Context, deliver func(reply func([]byte, bool))) ([]byte, error) {
	back := make(chan onionReply, 1)
	n.later(func() {
		deliver(func(body []byte, fail bool) { n.later(func() { back <- onionReply{body, fail} }) })
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case a := <-back:
		if a.fail {
			return nil, failReply(a.body)
		}
		return a.body, nil
	}
}

// An onionRelay is its own path.Mesh and path.Local, and a link as others see it.

func (r *onionRelay) Datagram(to key.Public, b *packet.Buffer) {
	r.net.later(func() { r.net.relays[to].transit.Datagram(b) })
}

func (r *onionRelay) Command(to key.Public, name string, body []byte) error {
	body = bytes.Clone(body)
	r.net.later(func() { r.net.relays[to].transit.HandleRequest(nil, r.sec.Public(), name, body, nil) })
	return nil
}

func (r *onionRelay) Request(ctx context.Context, to key.Public, name string, body []byte) ([]byte, error) {
	body = bytes.Clone(body)
	return r.net.request(ctx, func(reply func([]byte, bool)) {
		r.net.relays[to].transit.HandleRequest(nil, r.sec.Public(), name, body, reply)
	})
}

func (r *onionRelay) PathRequest(_ path.ID, method string, body []byte, reply func([]byte)) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	switch method {
	case netdb.MethodFindCC:
		k, _, err := netdb.DecodeFindCC(body)
		if err != nil {
			r.net.t.Error(err)
		}
		if sealed := r.net.stored[k]; sealed != nil {
			reply(netdb.EncodeFoundCC(sealed))
			return
		}
		reply(netdb.Status(netdb.StatusNotFound))
	case netdb.MethodPublishCC:
		c, err := netdb.DecodePublishCC(body)
		if err != nil || netdb.VerifySealed(c.Sealed) != nil {
			r.net.t.Error("publish_cc", err)
		}
		r.net.stored[c.Blinded] = bytes.Clone(c.Sealed)
		reply(netdb.Status(netdb.StatusOK))
	}
}

func (r *onionRelay) SessionControl(t *path.Terminal, typ byte, msg []byte, n [24]byte) {
	r.sessions.TerminalControl(t, typ, msg, n)
}

func (r *onionRelay) SessionDatagram(t *path.Terminal, b *packet.Buffer) {
	r.sessions.TerminalDatagram(t, b)
}

// onionClient is a client with its edges.
type onionClient struct {
	net   *onions
	sec   *key.Secret
	paths *path.Client
	table *Table
	edges []*onionEdge

	mu   sync.Mutex
	got  []string
	lost []error
}

// onionEdge is a connection, as the client sees it; onionDown as the relay does.
type onionEdge struct {
	c *onionClient
	r *onionRelay
	d *onionDown
}

type onionDown struct{ e *onionEdge }

func (e *onionEdge) Send(b *packet.Buffer) { e.c.net.later(func() { e.r.transit.Datagram(b) }) }

func (e *onionEdge) Command(name string, body []byte) error {
	body = bytes.Clone(body)
	e.c.net.later(func() { e.r.transit.HandleRequest(e.d, key.Public{}, name, body, nil) })
	return nil
}

func (e *onionEdge) Request(ctx context.Context, name string, body []byte) ([]byte, error) {
	body = bytes.Clone(body)
	return e.c.net.request(ctx, func(reply func([]byte, bool)) {
		e.r.transit.HandleRequest(e.d, key.Public{}, name, body, reply)
	})
}

func (d *onionDown) Send(b *packet.Buffer) { d.e.c.net.later(func() { d.e.c.paths.Datagram(d.e, b) }) }

func (d *onionDown) Command(name string, body []byte) error {
	body = bytes.Clone(body)
	d.e.c.net.later(func() { d.e.c.paths.HandleRequest(d.e, name, body, nil) })
	return nil
}

func (d *onionDown) Request(context.Context, string, []byte) ([]byte, error) { panic("not used") }

func (n *onions) client(sec *key.Secret, publish bool) *onionClient {
	c := &onionClient{net: n, sec: sec}
	c.paths = path.NewClient(path.ClientConfig{Options: path.DefaultOptions(), Store: n.store})
	c.table = NewTable(Config{
		Name: "test", Self: sec, Paths: c.paths, Publish: publish, Accept: func(key.Public) bool { return publish },
		RelayContact: n.store.Get,
		Deliver: func(from key.Address, b *packet.Buffer) {
			s := text(b.Data)
			b.Release()
			c.mu.Lock()
			c.got = append(c.got, s)
			c.mu.Unlock()
			if strings.HasPrefix(s, "?") {
				c.table.Send(from, ipPacket("!"+s[1:]))
			}
		},
		Undeliverable: func(_ key.Address, b *packet.Buffer, why error) {
			b.Release()
			c.mu.Lock()
			c.lost = append(c.lost, why)
			c.mu.Unlock()
		},
	})
	for _, id := range n.ids[:4] {
		e := &onionEdge{c: c, r: n.relays[id]}
		e.d = &onionDown{e}
		c.edges = append(c.edges, e)
		c.paths.EdgeUp(id, e)
	}
	return c
}

func (c *onionClient) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	got := c.got
	c.got = nil
	return got
}

// hangUp closes an edge at both ends.
func (c *onionClient) hangUp(i int) {
	e := c.edges[i]
	e.r.transit.LinkClosed(e.d)
	c.paths.EdgeDown(e)
}

func (n *onions) run(d time.Duration, clients ...*onionClient) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(min(250*time.Millisecond, time.Until(end)))
		now := time.Now()
		for _, r := range n.relays {
			r.transit.Tick(now)
			r.sessions.Tick(now)
		}
		for _, c := range clients {
			c.paths.Tick(now)
			c.table.Tick(now)
		}
		synctest.Wait()
	}
}

// TestOnions: sessions over the paths of router/path: to a client and to a relay, the time that the first packet takes, and 45 minutes in which all paths
// expire and edges are lost, without a lost packet but for those under way.
func TestOnions(t *testing.T) {
	before := packet.InUse()
	synctest.Test(t, func(t *testing.T) {
		n := newOnions(t, 10)
		a, b := n.client(alice, false), n.client(bob, true)
		n.run(3*time.Second, a, b)
		if p := b.table.Publication(); p.Locations != 4 || p.Err != nil {
			t.Fatalf("%+v", p)
		}
		if len(a.table.Inbound(time.Now())) != 4 {
			t.Fatal("inbound paths")
		}
		to, relay := key.Address{Key: bob.Public()}, key.Address{Key: n.ids[9], Kind: key.Relay}
		start := time.Now()
		if err := a.table.Connect(t.Context(), to); err != nil {
			t.Fatal(err)
		}
		// Look-up 8 hops, path 6, init 6, accept 6, each with a latency of 10 ms.
		if d := time.Since(start); d > 300*time.Millisecond {
			t.Errorf("connected after %v", d)
		}
		if err := a.table.Connect(t.Context(), relay); err != nil {
			t.Fatal(err)
		}
		const rounds = 45 * 60
		for i := range rounds {
			a.table.Send(to, ipPacket(fmt.Sprint("?c", i)))
			a.table.Send(relay, ipPacket(fmt.Sprint("?r", i)))
			switch i {
			case 600:
				a.hangUp(0)
			case 900:
				b.hangUp(1)
			}
			n.run(time.Second, a, b)
		}
		got := a.take()
		clients := len(slices.DeleteFunc(slices.Clone(got), func(s string) bool { return s[1] == 'r' }))
		t.Logf("of %d: client %d, relay %d", rounds, clients, len(got)-clients)
		if clients < rounds-15 || len(got)-clients < rounds-3 {
			t.Errorf("of %d rounds: client %d, relay %d answered", rounds, clients, len(got)-clients)
		}
		if len(a.lost)+len(b.lost) != 0 {
			t.Error("given back:", a.lost, b.lost)
		}
		for _, c := range []*onionClient{a, b} {
			if s := c.table.Stats(); s.DropForged+s.DropParse+s.DropDirection+s.DropType+s.DropReplayed+s.DropRefused+s.DropRate != 0 {
				t.Errorf("%+v", s)
			}
		}
		t.Logf("a %+v", a.table.Stats())
		for _, c := range []*onionClient{a, b} {
			c.table.Close()
			c.paths.Close()
		}
		for _, r := range n.relays {
			r.sessions.Close()
			r.transit.Close()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
	})
	if after := packet.InUse(); after != before {
		t.Errorf("%d buffers not given back", after-before)
	}
}
