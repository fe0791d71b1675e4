package router

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/oxend"
	"lokinetd/router/packet"
	"lokinetd/router/path"
)

// ProtocolVersion is what our relays put into their contacts: not 1.1.0, which would invite build frames that we do
// not read (protocol/README decision 2).
var ProtocolVersion = [3]uint8{1, 0, 2}

// tick is how often a node looks after its state (protocol 3 section 1.1).
const tick = 250 * time.Millisecond

// farewell is how long the links outlive the role, so that what it said last (session_close) leaves: a link that is closed drops what has not.
const farewell = 50 * time.Millisecond

// NodeConfig describes a node. Wire and Store are the node's from NewNode on: its Run runs them.
type NodeConfig struct {
	Secret  *key.Secret    // the identity of a relay; nil makes a client
	Public  netip.AddrPort // of a relay: where others reach it
	Wire    link.Wire
	Store   *netdb.Store
	Network *netdb.NetworkFile // the network; its contacts and keys are where knowledge starts
	Limits  path.Limits        // of a relay
	Oxend   *oxend.Client      // of a relay of the public network, kept running by the caller; nil: Network says who is registered

	// Of a client.
	Paths   path.ClientConfig // Store and Log are filled in
	OnReady func()            // called once, when the first path is up, from a goroutine of its own

	Log *slog.Logger // nil: none
}

// Node is one member of a network. It does nothing before Run.
type Node struct {
	config NodeConfig
	log    *slog.Logger
	store  *netdb.Store
	peers  *link.Peers
	role   role
	relay  *relay  // nil at a client
	client *client // nil at a relay
	links  linkDrops

	bootstrap bootstrap
	times     timeline

	network atomic.Pointer[netdb.NetworkFile]

	beat atomic.Int64    // when the role's loop last went round, Unix nanoseconds: for the watchdog
	ctx  context.Context // of Run

	mu    sync.Mutex
	ended bool
	work  sync.WaitGroup // goroutines that serve requests of others; none is added once ended is true
}

// role is the part in which a relay and a client differ.
type role interface {
	link.Handler
	// run looks after the role until ctx ends, then leaves in good order.
	run(ctx context.Context) error
}

// NewNode makes a node; the error says what of the configuration cannot be.
func NewNode(c NodeConfig) (*Node, error) {
	if c.Wire == nil || c.Store == nil || c.Network == nil {
		return nil, errors.New("router: a node needs a wire, a store and a network")
	}
	n := &Node{config: c, log: c.Log, store: c.Store}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	n.bootstrap.n = n
	n.network.Store(c.Network)
	self, kind := key.Public{}, link.Client
	if c.Secret != nil {
		self, kind = c.Secret.Public(), link.Relay
	}
	n.peers = link.NewPeers(self, kind, c.Wire, n.address, n)
	var err error
	if c.Secret != nil {
		n.relay, err = newRelay(n)
		n.role = n.relay
	} else {
		n.client, err = newClient(n)
		n.role = n.client
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

// address says where a relay is reached, for link.Peers.
func (n *Node) address(id key.Public) (netip.AddrPort, bool) {
	c := n.store.Get(id)
	if c == nil {
		return netip.AddrPort{}, false
	}
	return c.Addr, true
}

// Run runs the node until ctx ends or a part fails. It returns when all has ended that it started.
//
// Start: the store's disk writer, the links, the role. Stop: the reverse, so that the role's farewells still have links to go by.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	n.ctx = ctx
	n.learn(n.network.Load()) // before the first request can come
	storeDone := n.start(cancel, n.store.Run)
	linksDone := n.start(cancel, n.peers.Run)
	err := n.role.run(ctx)
	cancel(err)
	n.mu.Lock()
	n.ended = true
	n.mu.Unlock()
	n.work.Wait()
	time.Sleep(farewell)
	linksDone()
	storeDone()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// start runs f with a context of its own; its failure cancels the node. The function that it returns ends f and waits for it.
func (n *Node) start(failed context.CancelCauseFunc, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(n.ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil {
			failed(err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// serve runs f in a goroutine that Run waits for; ctx ends with the node. False: the node has ended, and f does not run.
func (n *Node) serve(f func(ctx context.Context)) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended {
		return false
	}
	n.work.Go(func() { f(n.ctx) })
	return true
}

// Paths describes the paths of a client, for people and tests.
func (n *Node) Paths() []path.Info {
	if n.client == nil {
		return nil
	}
	return n.client.paths.List()
}

// Opened, Request, Datagram and Closed are what links tell; the role decides.
func (n *Node) Opened(c link.Conn)                     { n.links.opened(c); n.role.Opened(c) }
func (n *Node) Request(c link.Conn, r *link.Request)   { n.role.Request(c, r) }
func (n *Node) Datagram(c link.Conn, b *packet.Buffer) { n.role.Datagram(c, b) }
func (n *Node) Closed(c link.Conn, err error)          { n.role.Closed(c, err); n.links.closed(c) }

// SetNetwork takes a newer version of the network file. One with a lower serial is refused by whoever reads it.
func (n *Node) SetNetwork(f *netdb.NetworkFile) {
	n.network.Store(f)
	n.learn(f)
}

// learn puts what the network file says into the store. Its operator's word about which relays there are goes before what was known; rounds of fetch_rids go on from there.
func (n *Node) learn(f *netdb.NetworkFile) {
	n.store.SetBootstraps(f.Contacts)
	n.bootstrap.again()
	if n.relay != nil {
		if n.config.Oxend == nil {
			n.store.SetRegistered(f.Relays)
		}
		names := f.NameIndex()
		n.relay.names.Store(&names)
	} else if len(f.Relays) > 0 {
		n.store.SetKnown(f.Relays)
	}
	if !f.Public() { // there they are only asked: who starts must not be told by the relays that its paths begin with
		n.store.Bootstrapped(f.Contacts, believesBootstraps(f))
	}
}
