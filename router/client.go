package router

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
)

// Times of what a client asks of the network (protocol 1 sections 9.6 and 9.8).
const (
	ridsInterval = 5 * time.Minute
	ridsRetry    = 30 * time.Second

	slowDial     = 400 * time.Millisecond // of a dial to an edge, until another one is begun beside it
	maxEdgeDials = 16                     // at a time
)

// client is the role of a client: edges, what it knows of the network, and the endpoints that share them.
type client struct {
	n      *Node
	paths  *path.Client
	names  names
	juries atomic.Int32
	kick   chan struct{} // has run go round at once

	dialling sync.Mutex // held by dialEdges, or two would dial for the same want

	mu        sync.Mutex
	endpoints []*Endpoint
	closed    bool
	readyAt   time.Time
	changed   chan struct{} // closed, and made anew, when an inbound path comes or goes

	asking   atomic.Bool // a round of fetch_rids is under way
	nextRIDs atomic.Int64
	quorum   netdb.Quorum // of the goroutine that asking stands for
}

func newClient(n *Node) (*client, error) {
	c := &client{n: n, kick: make(chan struct{}, 1), changed: make(chan struct{})}
	cfg := n.config.Paths
	cfg.Store, cfg.Log = n.store, n.log.With("mod", "path")
	cfg.Disconnect = func(l path.Link) {
		l.(link.Conn).Close(link.CodeNormal)
		c.wake()
	}
	cfg.Packets = func(l path.Link) uint64 { return l.(link.Conn).Stats().WirePacketsIn }
	c.paths = path.NewClient(cfg)
	return c, nil
}

// run looks after the client until ctx ends; then the endpoints say good-bye.
func (c *client) run(ctx context.Context) error {
	n := c.n
	defer c.paths.Close()
	defer c.closeEndpoints()
	t := time.NewTicker(tick)
	defer t.Stop()
	purge := time.Now().Add(netdb.PurgeInterval)
	for {
		now := time.Now()
		n.beat.Store(now.UnixNano())
		n.peers.Tick(now)
		c.dialEdges(now)
		c.paths.Tick(now)
		for _, e := range c.list() {
			e.Sessions.Tick(now)
		}
		c.checkReady(now)
		c.askRIDs(now)
		n.bootstrap.tick(now)
		if now.After(purge) {
			n.bootstrap.purged(n.store.Purge(now))
			purge = now.Add(netdb.PurgeInterval)
		}
		select {
		case <-t.C:
		case <-c.kick:
		case <-ctx.Done():
			return nil
		}
	}
}

// wake has what is due done at once, not at the next tick: there are relays to connect to now.
func (c *client) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// dialEdges begins the dials that are due. One that takes longer than slowDial counts no more: its relay may be dead, which shows after 10 s only, and paths wait for edges.
func (c *client) dialEdges(now time.Time) {
	c.dialling.Lock()
	defer c.dialling.Unlock()
	peers := c.n.peers
	all, slow := peers.Dials(now.Add(-slowDial))
	if all >= maxEdgeDials {
		return
	}
	for _, rc := range c.paths.MoreEdges(all-slow, func(id key.Public) bool { return !peers.Idle(id, now) }) {
		peers.Connect(rc.ID)
	}
}

func (c *client) list() []*Endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*Endpoint(nil), c.endpoints...)
}

func (c *client) closeEndpoints() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	for _, e := range c.list() {
		e.Sessions.Close()
	}
}

// checkReady notes when the first inbound path of an endpoint is up.
func (c *client) checkReady(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.readyAt.IsZero() {
		return
	}
	for _, e := range c.endpoints {
		if len(e.Sessions.Inbound(now)) > 0 {
			c.readyAt = now
			c.n.times.note(momentPath)
			if c.n.config.OnReady != nil {
				c.n.serve(func(context.Context) { c.n.config.OnReady() })
			}
			return
		}
	}
}

// inboundsChanged is told when an inbound path of an endpoint came or went.
func (c *client) inboundsChanged() {
	c.checkReady(time.Now())
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.changed)
	c.changed = make(chan struct{})
}

// waitInbound waits until an asker has an inbound path; false: ctx ended before.
func (c *client) waitInbound(ctx context.Context) bool {
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		if len(c.inbound(time.Now())) > 0 {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// askers are the endpoints over whose paths the network is asked for names and relays: those that are no service, if there are any. The relay at the end of
// a service's path may know whose it is, for its contact says so; it must not learn what else this host looks up, nor by the state of our store which paths are the same host's.
func (c *client) askers() []*Endpoint {
	all := c.list()
	if private := slices.DeleteFunc(slices.Clone(all), func(e *Endpoint) bool { return e.Config.Service }); len(private) > 0 {
		return private
	}
	return all
}

// inbound gives the active inbound paths of the askers.
func (c *client) inbound(now time.Time) (paths []*path.Path) {
	for _, e := range c.askers() {
		paths = append(paths, e.Sessions.Inbound(now)...)
	}
	return paths
}

// sources chooses up to n of the active inbound paths, by chance, no two with the same relay at the end: each relay is heard once.
func (c *client) sources(n int, now time.Time) []*path.Path {
	paths := c.inbound(now)
	rand.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
	seen := map[key.Public]bool{}
	paths = slices.DeleteFunc(paths, func(p *path.Path) bool {
		again := seen[p.Pivot()]
		seen[p.Pivot()] = true
		return again
	})
	return paths[:min(n, len(paths))]
}

// askRIDs begins a round of fetch_rids and fetch_rcs when it is due and a path is up (protocol 1 section 9.6).
func (c *client) askRIDs(now time.Time) {
	if now.UnixNano() < c.nextRIDs.Load() || c.asking.Load() {
		return
	}
	paths := c.sources(netdb.RIDSources, now)
	if len(paths) == 0 {
		return
	}
	c.asking.Store(true)
	c.n.serve(func(ctx context.Context) {
		defer c.asking.Store(false)
		next := ridsRetry
		if c.fetchRIDs(ctx, paths) && c.fetchRCs(ctx, paths) == nil {
			next = ridsInterval
		}
		c.nextRIDs.Store(time.Now().Add(next).UnixNano())
	})
}

// fetchRIDs asks all paths' relays which relays there are and believes what netdb.Quorum makes of it. False: the round decides nothing.
func (c *client) fetchRIDs(ctx context.Context, paths []*path.Path) bool {
	answers := make([]netdb.RIDAnswer, len(paths))
	var wg sync.WaitGroup
	for i, p := range paths {
		answers[i] = netdb.RIDAnswer{From: p.Pivot(), Inbound: true}
		wg.Go(func() {
			if body, err := p.Request(ctx, netdb.MethodFetchRIDs, nil); err == nil {
				answers[i].IDs, _ = netdb.DecodeRIDs(body)
			}
		})
	}
	wg.Wait()
	ids := c.quorum.Round(answers, c.n.store.Known(), time.Now())
	if len(ids) == 0 {
		return false
	}
	c.n.store.SetKnown(ids)
	for _, l := range c.n.peers.Connected() { // edges that are relays no longer
		if !c.n.store.IsKnown(l.Remote()) {
			l.Close(link.CodeNormal)
		}
	}
	return true
}

// fetchRCs asks one of the paths' relays, which are in random order, for the contacts that we lack.
func (c *client) fetchRCs(ctx context.Context, paths []*path.Path) error {
	have := c.n.store.Buckets()
	body, err := paths[0].Request(ctx, netdb.MethodFetchRCs, netdb.EncodeFetchRCs(&have))
	if err != nil {
		return err
	}
	raws, err := netdb.DecodeRCs(body)
	if err != nil {
		return err
	}
	_, err = c.n.store.Fetched(raws)
	return err
}

// ErrNoName says that the network knows no such name.
var ErrNoName = errors.New("router: no such name is registered")

// errDispute says that relays contradict each other, and none of their answers is believed.
var errDispute = errors.New("router: the relays asked do not agree on the name")

// Lookup finds the client that a registered name ("shop.loki", lower case, no subdomain) stands for. Errors: ErrNoName, or why there is no certain answer.
func (n *Node) Lookup(ctx context.Context, name string) (key.Address, time.Duration, error) {
	if n.client == nil {
		return key.Address{}, 0, errors.New("router: a relay resolves no names")
	}
	v, ttl, err := n.client.lookup(ctx, name)
	switch {
	case err != nil:
	case v.found:
		return key.Address{Key: v.owner}, ttl, nil
	case v.certain:
		return key.Address{}, ttl, ErrNoName
	default:
		err = errDispute
	}
	return key.Address{}, 0, err
}

// Links.

func (c *client) Opened(l link.Conn) {
	if l.Kind() == link.Client && l.Outbound() {
		c.n.times.note(momentEdge)
		c.paths.EdgeUp(l.Remote(), l)
		if c.paths.EdgeConnected() {
			c.n.times.note(momentEdges)
		}
	}
}

func (c *client) Closed(l link.Conn, _ error) {
	if l.Kind() == link.Client && l.Outbound() {
		c.paths.EdgeDown(l)
	}
}

func (c *client) Datagram(l link.Conn, b *packet.Buffer) { c.paths.Datagram(l, b) }

func (c *client) Request(l link.Conn, q *link.Request) {
	answer := func(body []byte, fail bool) {
		if fail {
			q.Fail(body)
		} else {
			q.Reply(body)
		}
	}
	if !c.paths.HandleRequest(l, q.Name, q.Body, answer) {
		q.Unknown()
	}
}
