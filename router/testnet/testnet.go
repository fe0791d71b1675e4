// Package testnet runs a whole network in one process and in fake time, for
// tests: relays and clients of package router, with latency, loss, partitions and
// restarts. An application is a [Flow]. There are two wires: a direct one without
// QUIC (fabric.go) for long runs, and router/link over quic-go (quic.go) to show that
// the direct one leaves out nothing that matters.
//
// It has no TUN, no DNS and no throughput: what only a kernel can show is
// tested in namespaces (netif/lab).
package testnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"lokinetd/router"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/oxend"
	"lokinetd/router/packet"
	"lokinetd/router/path"
)

// Options describe a network.
type Options struct {
	Relays, Clients int
	Change          func(*Host)   // of each before its first start; nil: none
	Latency         time.Duration // one way, of each link
	Loss            float64       // of each packet, from 0 to 1
	Seed            uint64
	QUIC            bool // over the wire with QUIC, not the direct one
}

// medium is what all nodes of a network speak over.
type medium interface {
	newWire(t *testing.T, addr netip.AddrPort, secret *key.Secret, relay bool, registered func(key.Public) bool) wire
	setCut(a, b netip.AddrPort, on bool) // in both directions
	setLoss(loss float64)
}

// wire is one node's end.
type wire interface {
	link.Wire
	kill() // the coming end of Run is to look like a power cut to the peers
}

// Net is a network; all that it started has ended when the test ends.
type Net struct {
	t       *testing.T
	medium  medium
	meets   func(h *Host, remote key.Address) // told of each packet that the host's applications get or send; nil: nobody is
	mu      sync.Mutex                        // of Host.apps
	file    *netdb.NetworkFile
	Relays  []*Host
	Clients []*Host
}

// Host is one node. Its identity survives restarts.
type Host struct {
	net     *Net
	Secret  *key.Secret
	relay   bool
	options func(*path.Options) // of a client: changes the defaults; nil: they stay
	browses bool                // of a client: it is no service
	fresh   bool                // of a client: each start is by a new key
	dir     string              // of its store; empty: in memory
	addr    netip.AddrPort
	oxend   func(context.Context) (net.Conn, error) // dials the oxend beside a relay of a public network; nil: there is none

	Node     *router.Node
	Endpoint *router.Endpoint // of a client
	starting sync.Mutex       // of Endpoint, for flows, which outlive their host's daemon
	wire     wire
	store    *netdb.Store
	cancel   context.CancelFunc
	done     chan struct{}
	apps     map[key.Address]*Flow // by remote
	stream   *stream               // a download that it takes part in
	app      *Flow
}

// New makes a network and starts all its nodes; call it inside a synctest bubble.
func New(t *testing.T, o Options) *Net {
	t.Helper()
	t.Logf("seed %d", o.Seed)
	n := &Net{t: t, medium: newFabric(o.Seed, o.Latency, o.Loss)}
	if o.QUIC {
		n.medium = newEther(o.Seed, o.Latency, o.Loss)
	}
	n.file = &netdb.NetworkFile{Name: "testnet", Network: 42, Serial: 1}
	for i := range o.Relays {
		// One /16 each, so that the rule of distinct ranges has room.
		h := &Host{net: n, relay: true, Secret: key.Generate(), addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{20, byte(i), 0, 1}), 1190)}
		n.Relays = append(n.Relays, h)
		n.file.Relays = append(n.file.Relays, h.Secret.Public())
		n.file.Contacts = append(n.file.Contacts, router.SignContact(h.Secret, h.addr, n.file.Network, time.Now()))
	}
	for i := range o.Clients {
		h := &Host{net: n, Secret: key.Generate(), addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{30, byte(i >> 8), byte(i), 1}), 1191)}
		n.Clients = append(n.Clients, h)
	}
	for _, h := range append(append([]*Host(nil), n.Relays...), n.Clients...) {
		if o.Change != nil {
			o.Change(h)
		}
		h.Start()
	}
	t.Cleanup(func() {
		for _, h := range append(append([]*Host(nil), n.Clients...), n.Relays...) {
			h.Stop()
		}
	})
	return n
}

// Start starts the node, with an empty store but for the network file and what is in its folder.
func (h *Host) Start() {
	t := h.net.t
	h.starting.Lock()
	defer h.starting.Unlock()
	if h.fresh {
		h.Secret = key.Generate()
	}
	id := key.Public{}
	if h.relay {
		id = h.Secret.Public()
	}
	store, err := netdb.OpenStore(h.dir, id, h.relay, h.net.file.Rules(), nil)
	if err != nil {
		t.Fatal(err)
	}
	h.store = store
	h.wire = h.net.medium.newWire(t, h.addr, h.Secret, h.relay, store.Registered)
	options := path.DefaultOptions()
	options.Profiling = false
	if h.options != nil {
		h.options(&options)
	}
	c := router.NodeConfig{Public: h.addr, Wire: h.wire, Store: store, Network: h.net.file, Paths: path.ClientConfig{Options: options}}
	if h.relay {
		c.Secret = h.Secret
	}
	if h.oxend != nil {
		c.Oxend = oxend.NewDialed(h.oxend, nil)
	}
	if h.Node, err = router.NewNode(c); err != nil {
		t.Fatal(err)
	}
	if !h.relay {
		h.Endpoint, err = h.Node.AddEndpoint(router.EndpointConfig{
			Name: "test", Secret: h.Secret, Service: !h.browses, Flags: netdb.FlagIPv6 | netdb.FlagPFS, Deliver: h.deliver,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel, h.done = cancel, make(chan struct{})
	go func(done chan struct{}, n *router.Node) {
		defer close(done)
		if c.Oxend != nil {
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() { c.Oxend.Run(ctx) })
		}
		if err := n.Run(ctx); err != nil {
			t.Errorf("node: %v", err)
		}
	}(h.done, h.Node)
}

// Stop ends the node in good order.
func (h *Host) Stop() {
	if h.cancel != nil {
		h.cancel()
		<-h.done
		h.cancel = nil
	}
}

// Kill ends the node so that its neighbours notice nothing at first.
func (h *Host) Kill() {
	h.wire.kill()
	h.Stop()
}

// Address is what others reach a client by.
func (h *Host) Address() key.Address { return key.Address{Key: h.Secret.Public()} }

// send gives a packet of an application to the daemon.
func (h *Host) send(to key.Address, b *packet.Buffer) {
	h.starting.Lock()
	e := h.Endpoint
	h.starting.Unlock()
	h.met(to)
	e.Sessions.Send(to, b)
}

// deliver gives an arriving packet to the application.
func (h *Host) deliver(from key.Address, b *packet.Buffer) {
	h.met(from)
	h.net.receive(h, from, b)
}

func (h *Host) met(remote key.Address) {
	if h.net.meets != nil {
		h.net.meets(h, remote)
	}
}

// String names the host in messages of a test.
func (h *Host) String() string { return fmt.Sprintf("%v", h.addr.Addr()) }
