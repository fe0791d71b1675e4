package router

import (
	"context"
	"errors"
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
	ridsInterval  = 5 * time.Minute
	ridsRetry     = 30 * time.Second
	bootstrapStep = 3 * time.Second // after a success that brought too little; times the failures in a row after failures
	bootstrapMax  = time.Minute
)

// client is the role of a client: edges, what it knows of the network, and the endpoints that share them.
type client struct {
	n     *Node
	paths *path.Client
	names nameCache

	mu        sync.Mutex
	endpoints []*Endpoint
	closed    bool
	readyAt   time.Time
	changed   chan struct{} // closed, and made anew, when an inbound path comes or goes

	asking        atomic.Bool // a round of fetch_rids is under way
	nextRIDs      atomic.Int64
	bootstrapping atomic.Bool
	nextBootstrap atomic.Int64
	failures      atomic.Int64 // of the bootstrap, in a row
}

func newClient(n *Node) (*client, error) {
	c := &client{n: n, changed: make(chan struct{})}
	cfg := n.config.Paths
	cfg.Store, cfg.Log = n.store, n.log.With("mod", "path")
	c.paths = path.NewClient(cfg)
	return c, nil
}

// run looks after the client until ctx ends; then the endpoints say good-bye.
func (c *client) run(ctx context.Context) error {
	n := c.n
	n.learn(n.network.Load())
	n.store.SetBootstraps(n.network.Load().Contacts)
	defer c.paths.Close()
	defer c.closeEndpoints()
	t := time.NewTicker(tick)
	defer t.Stop()
	purge := time.Now().Add(netdb.PurgeInterval)
	for {
		now := time.Now()
		n.beat.Store(now.UnixNano())
		n.peers.Tick(now)
		for _, rc := range c.paths.MoreEdges(n.peers.Pending(), func(id key.Public) bool { return n.peers.Get(id) != nil }) {
			n.peers.Connect(rc.ID)
		}
		c.paths.Tick(now)
		for _, e := range c.list() {
			e.Sessions.Tick(now)
		}
		c.checkReady(now)
		c.askRIDs(now)
		c.bootstrap(now)
		if now.After(purge) {
			n.store.Purge(now)
			purge = now.Add(netdb.PurgeInterval)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
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

// waitInbound waits until an endpoint has an inbound path; false: ctx ended before.
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

// inbound gives the active inbound paths of all endpoints.
func (c *client) inbound(now time.Time) (paths []*path.Path) {
	for _, e := range c.list() {
		paths = append(paths, e.Sessions.Inbound(now)...)
	}
	return paths
}

// askRIDs begins a round of fetch_rids and fetch_rcs when it is due and a path is up (protocol 1 section 9.6).
func (c *client) askRIDs(now time.Time) {
	if now.UnixNano() < c.nextRIDs.Load() || c.asking.Load() {
		return
	}
	var paths []*path.Path
	pivots := map[key.Public]bool{}
	for _, p := range c.inbound(now) {
		if len(paths) < netdb.RIDSources && !pivots[p.Pivot()] {
			pivots[p.Pivot()] = true
			paths = append(paths, p)
		}
	}
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

// fetchRIDs asks all paths' relays which relays there are and believes the majority. False: they do not agree on any.
func (c *client) fetchRIDs(ctx context.Context, paths []*path.Path) bool {
	answers := make([]netdb.RIDAnswer, len(paths))
	var wg sync.WaitGroup
	for i, p := range paths {
		wg.Go(func() {
			answers[i].Inbound = true
			if body, err := p.Request(ctx, netdb.MethodFetchRIDs, nil); err == nil {
				answers[i].IDs, _ = netdb.DecodeRIDs(body)
			}
		})
	}
	wg.Wait()
	ids := netdb.Corroborated(answers)
	if len(ids) == 0 {
		return false
	}
	c.n.store.SetKnown(ids)
	return true
}

// fetchRCs asks one relay for the contacts that we lack.
func (c *client) fetchRCs(ctx context.Context, paths []*path.Path) error {
	have := c.n.store.Buckets()
	body, err := paths[int(chance(time.Duration(len(paths))))].Request(ctx, netdb.MethodFetchRCs, netdb.EncodeFetchRCs(&have))
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

// bootstrap asks a relay of the bootstrap list for all contacts while we know too few (protocol 1 section 9.8).
func (c *client) bootstrap(now time.Time) {
	if c.n.store.Len() >= netdb.MinContacts || now.UnixNano() < c.nextBootstrap.Load() || !c.bootstrapping.CompareAndSwap(false, true) {
		return
	}
	list := c.n.store.Bootstraps()
	if len(list) == 0 {
		c.bootstrapping.Store(false)
		return
	}
	c.n.serve(func(ctx context.Context) {
		defer c.bootstrapping.Store(false)
		wait := bootstrapStep
		if err := c.bootstrapFrom(ctx, list); err != nil {
			c.n.log.Debug("bootstrap failed", "err", err)
			wait = min(bootstrapMax, bootstrapStep*time.Duration(c.failures.Add(1)))
		} else {
			c.failures.Store(0)
		}
		c.nextBootstrap.Store(time.Now().Add(wait).UnixNano())
	})
}

var errNoBootstrap = errors.New("router: no bootstrap relay answered")

// bootstrapFrom asks the relays of list one after the other until one answers.
func (c *client) bootstrapFrom(ctx context.Context, list []*netdb.RelayContact) error {
	err := errNoBootstrap
	for _, rc := range list {
		var conn link.Conn
		if conn, err = c.n.config.Wire.Dial(ctx, rc.Addr, rc.ID, link.Bootstrap); err != nil {
			continue
		}
		var body []byte
		body, err = conn.Request(ctx, netdb.MethodBootstrapRCs, []byte(netdb.BootstrapRequest))
		conn.Close(link.CodeNormal)
		if err != nil {
			continue
		}
		var contacts []*netdb.RelayContact
		contacts, err = netdb.DecodeBootstrapReply(body, time.Now(), c.n.rules())
		c.n.store.Bootstrapped(contacts)
		if err == nil {
			return nil
		}
	}
	return err
}

// lookup finds the owner of a registered name, from the cache or over the inbound paths of all endpoints.
func (c *client) lookup(ctx context.Context, name string) (nameVerdict, time.Duration, error) {
	if e, ok := c.names.get(name, time.Now()); ok {
		return e.nameVerdict, time.Until(e.until), nil
	}
	v, err := lookupName(ctx, name, c.inbound(time.Now()))
	if err != nil || !v.certain {
		return v, 0, err
	}
	c.names.put(name, v, time.Now())
	return v, snsTTL, nil
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
