package path

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
)

// Options of path building (protocol 3 section 6.1).
type Options struct {
	Edges            int           // connections to relays that are kept, 1 or more
	UniqueRange      int           // bits of the IPv4 networks of which a path has no two relays: 4 to 32, or 0 for any
	AcceptableExpiry time.Duration // a path with less time left gets a successor; at least MinExpiry
	MinExpiry        time.Duration // a path with less time left is not chosen any more
	PingInterval     time.Duration // 1 s or more
	MaxMissedPings   int           // in a row; one more and the path is given up
	StrictEdges      []key.Public  // the only edges; none: any relay
	Blacklist        []key.Public  // never an edge nor drawn as a hop
	PivotReuse       int           // inbound paths that may end at one relay, 1 or more
	Profiling        bool          // avoid relays whose builds were not answered
}

// DefaultOptions are the reference's.
func DefaultOptions() Options {
	return Options{
		Edges: 4, UniqueRange: 24, AcceptableExpiry: 300 * time.Second, MinExpiry: 60 * time.Second,
		PingInterval: 5 * time.Second, MaxMissedPings: 5, PivotReuse: 1, Profiling: true,
	}
}

// ClientConfig is what a Client is made of.
type ClientConfig struct {
	Options
	Store *netdb.Store
	// Connect, which may be nil, is asked to connect to a relay that a path of one hop ends at. It does not block; EdgeUp follows, or not.
	Connect func(relay key.Public)
	// Disconnect, which may be nil, is asked to close the connection to an edge that was given up, which EdgeDown need not report any more. It does not block.
	Disconnect func(edge Link)
	// Packets, which may be nil, counts what came over the connection to an edge: anything shows that it lives.
	Packets func(edge Link) uint64
	// Kept is what an earlier run has kept of its edges; Keep, which may be nil, is given what to keep now, before a relay is dialled that is new in it.
	Kept EdgeList
	Keep func(EdgeList)
	Log  *slog.Logger // nil: discard
}

// Client is the client's side: edges, and the paths of all pools over them. Safe for concurrent use. Its owner reports connections with
// EdgeUp and EdgeDown, brings what comes in over them, calls Tick every 250 ms, and calls Close.
//
// Builds and pings wait for answers in goroutines of the Client: one for each path under way, and three at most for each path that is up, at the default interval; fifteen
// more for one that is examined, and up to forty for each edge while one of them is doubted. Close waits for them.
type Client struct {
	opt        Options
	store      *netdb.Store
	connect    func(key.Public)
	disconnect func(Link)
	packets    func(Link) uint64
	keep       func(EdgeList)
	log        *slog.Logger
	strict     map[key.Public]bool
	black      map[key.Public]bool
	profile    profile
	basis      time.Time
	count      clientCounters
	sign       atomic.Int64 // when anybody answered a ping at last, since basis
	asked      atomic.Int64 // when all edges were asked for one at last, since basis
	woken      atomic.Int64 // calls of Wake

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	edgeMu     sync.Mutex // taken before mu, if both are
	candidates candidates

	mu        sync.RWMutex
	closed    bool
	connected bool
	edges     map[key.Public]Link // the latest connection to each
	links     map[Link]key.Public // all connections
	paces     map[Link]*pace
	paths     map[ID]*Path // by edge id: those that carry
	pools     map[*Pool]struct{}
	dropped   []time.Time // when edges were given up, of late
}

// NewClient makes a client without edges and pools.
func NewClient(c ClientConfig) *Client {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Edges = max(c.Edges, 1)
	c.PivotReuse = max(c.PivotReuse, 1)
	c.AcceptableExpiry = max(c.AcceptableExpiry, c.MinExpiry)
	c.PingInterval = max(c.PingInterval, time.Second)
	cl := &Client{
		opt: c.Options, store: c.Store, connect: c.Connect, disconnect: c.Disconnect, packets: c.Packets, keep: c.Keep, log: c.Log,
		strict: keySet(c.StrictEdges), black: keySet(c.Blacklist), profile: profile{on: c.Profiling}, basis: time.Now(),
		edges: make(map[key.Public]Link), links: make(map[Link]key.Public), paces: make(map[Link]*pace),
		paths: make(map[ID]*Path), pools: make(map[*Pool]struct{}),
	}
	cl.candidates.EdgeList = c.Kept.clone()
	cl.asked.Store(-int64(time.Hour))
	cl.ctx, cl.cancel = context.WithCancel(context.Background())
	return cl
}

func keySet(ids []key.Public) map[key.Public]bool {
	m := make(map[key.Public]bool, len(ids))
	for _, id := range ids {
		m[id] = true
	}
	return m
}

// Close gives up all pools and returns when everything that waited for an answer has ended. An event may still be told meanwhile: the caller holds no lock that
// an Owner takes.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	for _, p := range c.allPools() {
		p.Close()
	}
	c.wg.Wait()
}

// start runs f in a goroutine that Close waits for; false after Close.
func (c *Client) start(f func()) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return false
	}
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		f()
	}()
	return true
}

// EdgeUp says that l is a connection to the relay id, over which paths may begin. A newer connection to the same relay takes the new paths; the
// old ones stay with theirs.
func (c *Client) EdgeUp(id key.Public, l Link) {
	c.mu.Lock()
	c.edges[id], c.links[l], c.paces[l] = l, id, &pace{since: time.Now()}
	before := c.connected
	// Not sooner, or the fastest edges would carry everything (section 6.2).
	if 3*len(c.edges) >= 2*c.edgesWanted() {
		c.connected = true
	}
	up := c.connected && !before
	c.mu.Unlock()
	if !up {
		return
	}
	// What failed before failed for want of edges.
	for _, p := range c.allPools() {
		p.retry(time.Now())
	}
}

// EdgeDown says that a connection is closed. All paths through it are given up at once: to keep them means to lose what comes back, and not to notice (section 5.6).
func (c *Client) EdgeDown(l Link) {
	c.mu.Lock()
	id, ok := c.links[l]
	if !ok {
		c.mu.Unlock()
		return
	}
	delete(c.links, l)
	delete(c.paces, l)
	if c.edges[id] == l {
		delete(c.edges, id)
		for other, otherID := range c.links {
			if otherID == id {
				c.edges[id] = other
			}
		}
	}
	if len(c.edges) == 0 {
		c.connected = false
	}
	c.mu.Unlock()
	for _, p := range c.allPools() {
		p.edgeLost(l, time.Now())
	}
}

// edgesWanted is how many edges there should be. c.mu is held.
func (c *Client) edgesWanted() int {
	if n := len(c.strict); n > 0 {
		return min(n, c.opt.Edges)
	}
	return c.opt.Edges
}

// EdgeConnected says whether there are edges enough to build paths: two thirds of those wanted at first, then as long as there is one.
func (c *Client) EdgeConnected() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.connected
}

// Tick lets time pass: expiry, pings, builds. Call it every 250 ms.
func (c *Client) Tick(now time.Time) {
	c.profile.decay(now)
	c.dropSurplus(now)
	for _, p := range c.allPools() {
		p.Tick(now)
	}
}

func (c *Client) allPools() []*Pool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	pools := make([]*Pool, 0, len(c.pools))
	for p := range c.pools {
		pools = append(pools, p)
	}
	return pools
}

// begin notes that a build begins over an edge; false: it has to wait, others are before it. first: the pool has no path.
func (c *Client) begin(l Link, first bool, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.paces[l]
	if p == nil || !p.ready(now, first) {
		return false
	}
	p.builds.Add(1, now, float64(Limits{}.withDefaults().BuildRate))
	p.waiting++
	return true
}

// ended notes that a build over an edge is answered, or will not be.
func (c *Client) ended(l Link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.paces[l]; p != nil {
		p.waiting--
	}
}

// chooser gives the world for a choice of relays; false while no builds may happen.
func (c *Client) chooser(now time.Time) (chooser, bool) {
	ch := chooser{store: c.store, now: now, unique: c.opt.UniqueRange, profile: &c.profile, black: c.black, wary: c.profile.fewSilent(now, c.store.Len())}
	c.mu.RLock()
	ok := c.connected && !c.closed
	var up []edge
	for id, l := range c.edges {
		if contact := c.store.Get(id); ok && contact != nil {
			up = append(up, edge{contact, l})
		}
	}
	c.mu.RUnlock()
	ch.edges, ch.rest = c.prefer(up, func(id key.Public) bool { return ch.bad(id, allowEdge) })
	return ch, ok
}

// register makes an established path reachable for what comes in. False: its edge is gone, or the id is not unique.
func (c *Client) register(p *Path) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, up := c.links[p.link]; !up || c.closed || c.paths[p.edge] != nil {
		return false
	}
	c.paths[p.edge] = p
	return true
}

func (c *Client) unregister(p *Path) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paths[p.edge] == p {
		delete(c.paths, p.edge)
	}
}

// A message that comes down to the client (protocol 3 section 3.2):
//
//  1. size and type
//  2. the path of the id in the trailer, if the message comes from that path's edge
//  3. the layers of all hops, the edge's first, in place; the nonce goes along and ends as the message's
//  4. trailer off, to the pool's owner in turn (Owner)

// Datagram brings a datagram from an edge. It owns b, whose Data is the whole message.
func (c *Client) Datagram(from Link, b *packet.Buffer) {
	p := c.find(from, b.Data)
	if p == nil {
		b.Release()
		return
	}
	payload, nonce, _, typ := split(b.Data)
	if *typ != TypeData {
		c.count.DroppedType.Add(1)
		b.Release()
		return
	}
	unwrap(payload, p.hops, nonce)
	b.Nonce = *nonce
	b.Cut(trailerSize)
	p.received.Add(1)
	e := &p.pool.events
	if !e.begin() {
		c.count.DroppedDead.Add(1)
		b.Release()
		return
	}
	e.owner.PathDatagram(p, b)
	e.end()
}

// HandleRequest takes a request that an edge sent: path_build and path_control, which no relay has reason to send and get ERROR, and session_control, which has no reply.
// False means that it is of another name. body becomes the client's, which changes it; reply as for [Relay.HandleRequest].
func (c *Client) HandleRequest(from Link, name string, body []byte, reply func(body []byte, fail bool)) bool {
	switch name {
	case nameBuild, nameControl:
		reply(status(textError), true)
	case nameSession:
		c.session(from, body)
	default:
		return false
	}
	return true
}

// session is Datagram for a session_control request.
func (c *Client) session(from Link, msg []byte) {
	p := c.find(from, msg)
	if p == nil {
		return
	}
	payload, nonce, _, typ := split(msg)
	if *typ != TypeControl && *typ != TypeHandshake {
		c.count.DroppedType.Add(1)
		return
	}
	unwrap(payload, p.hops, nonce)
	p.received.Add(1)
	e := &p.pool.events
	if !e.begin() {
		c.count.DroppedDead.Add(1)
		return
	}
	e.owner.PathControl(p, *typ, payload, *nonce)
	e.end()
}

// find is steps 1 and 2; nil: dropped and counted.
func (c *Client) find(from Link, msg []byte) *Path {
	if len(msg) < minMessage {
		c.count.DroppedShort.Add(1)
		return nil
	}
	_, _, id, _ := split(msg)
	c.mu.RLock()
	p := c.paths[*id]
	c.mu.RUnlock()
	if p == nil {
		c.count.DroppedUnknown.Add(1)
		return nil
	}
	if p.link != from {
		c.count.DroppedForeign.Add(1)
		return nil
	}
	return p
}

// ClientStats counts what a client did since it was made. Dropped* are session messages, by reason.
type ClientStats struct {
	Builds        uint64 // begun
	BuildsUp      uint64
	BuildsRefused uint64 // answered by an error
	BuildsSilent  uint64 // not answered, or not sent
	BuildsUnfit   uint64 // no relays for them
	Pings         uint64
	PingsMissed   uint64
	PingsRefused  uint64
	PathsExamined uint64 // given up because they were silent while others were not
	EdgesDropped  uint64 // the same of edges

	DroppedShort   uint64
	DroppedLong    uint64
	DroppedUnknown uint64 // no such path
	DroppedForeign uint64 // not from the path's edge
	DroppedType    uint64
	DroppedDead    uint64 // our own, on a path that is gone, or for a pool that is closed
}

type clientCounters struct {
	Builds, BuildsUp, BuildsRefused, BuildsSilent, BuildsUnfit, Pings, PingsMissed, PingsRefused, PathsExamined, EdgesDropped atomic.Uint64

	DroppedShort, DroppedLong, DroppedUnknown, DroppedForeign, DroppedType, DroppedDead atomic.Uint64
}

// Stats returns the counters.
func (c *Client) Stats() ClientStats {
	n := &c.count
	return ClientStats{
		Builds: n.Builds.Load(), BuildsUp: n.BuildsUp.Load(), BuildsRefused: n.BuildsRefused.Load(), BuildsSilent: n.BuildsSilent.Load(),
		BuildsUnfit: n.BuildsUnfit.Load(), Pings: n.Pings.Load(), PingsMissed: n.PingsMissed.Load(), PingsRefused: n.PingsRefused.Load(), PathsExamined: n.PathsExamined.Load(), EdgesDropped: n.EdgesDropped.Load(),
		DroppedShort: n.DroppedShort.Load(), DroppedLong: n.DroppedLong.Load(), DroppedUnknown: n.DroppedUnknown.Load(),
		DroppedForeign: n.DroppedForeign.Load(), DroppedType: n.DroppedType.Load(), DroppedDead: n.DroppedDead.Load(),
	}
}

// Info describes one path for people.
type Info struct {
	Pool     string // the pool's label
	Kind     Kind
	State    string // "building", "up" or "retired"
	Current  bool   // the one that an outbound pool gives out
	Hops     []key.Public
	Expiry   time.Time
	RTT      time.Duration // mean of the pings; 0 before the first
	Jitter   time.Duration
	Missed   int    // pings in a row
	Sent     uint64 // session messages
	Received uint64
}

// List describes all paths, those of one pool together.
func (c *Client) List() []Info {
	var infos []Info
	for _, p := range c.allPools() {
		infos = append(infos, p.List()...)
	}
	return infos
}
