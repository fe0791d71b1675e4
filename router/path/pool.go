package path

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

// Kind says what the paths of a pool are for.
type Kind uint8

const (
	Inbound Kind = iota // others reach us by them, and relays are asked over them; they end at relays drawn at random
	Aligned             // an outbound session to a client: they end where its introductions say
	ToRelay             // an outbound session to a relay: they end there
)

func (k Kind) String() string { return [...]string{"inbound", "client", "relay"}[k] }

// PoolConfig is what a pool is made of.
type PoolConfig struct {
	Kind   Kind
	Hops   int        // length of its paths, 1 to MaxHops
	Want   int        // how many, 1 or more
	Target key.Public // the relay, of ToRelay
	Beside *Pool      // which may be nil: the paths keep away from its relays, and of all from the last ones, as from each other's. Nothing else refers to this pool
	Owner  Owner
	Label  string // for lists
}

// Pool keeps a number of paths with one purpose: it builds, tests and replaces them. Safe for concurrent use.
//
// A path under way counts as one that is there. Builds that fail three times in a row or more pause the pool (backoff).
type Pool struct {
	client *Client
	cfg    PoolConfig
	slots  *slots
	events events
	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex
	closed   bool
	paths    []*Path // all but those that are down
	intros   []netdb.Intro
	current  *Path
	chosen   bool // Current was asked for
	more     int  // Widen
	failures int
	failed   time.Time   // the last
	gaveUp   []time.Time // when examinations ended paths, of late
}

// Life times of paths to be built (protocol 3 section 6.1).
const outboundLife = 1200 * time.Second

// NewPool makes a pool. It builds nothing before its first Tick.
func (c *Client) NewPool(cfg PoolConfig) *Pool {
	cfg.Hops = min(max(cfg.Hops, 1), MaxHops)
	cfg.Want = max(cfg.Want, 1)
	p := &Pool{client: c, cfg: cfg, slots: newSlots(c.basis, cfg.Want)}
	p.events.owner = cfg.Owner
	p.ctx, p.cancel = context.WithCancel(c.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pools[p] = struct{}{}
	return p
}

// Close gives up all paths of the pool, untold.
func (p *Pool) Close() {
	p.events.close()
	p.mu.Lock()
	p.closed = true
	p.giveUp(func(*Path) bool { return true }, Dropped)
	p.mu.Unlock()
	p.cancel()
	p.client.mu.Lock()
	delete(p.client.pools, p)
	p.client.mu.Unlock()
}

// Reset gives up all paths, and builds new ones at the next tick: the remote of the session does not know ours any more.
func (p *Pool) Reset() {
	p.mu.Lock()
	p.giveUp(func(*Path) bool { return true }, Dropped)
	p.mu.Unlock()
	p.events.flush()
}

// SetIntros gives an Aligned pool the introductions of the remote's newest contact. Paths whose introduction is not among them are retired (section 6.4).
// The pool builds at its next Tick.
func (p *Pool) SetIntros(intros []netdb.Intro) {
	if p.cfg.Kind != Aligned {
		return
	}
	p.mu.Lock()
	p.intros = slices.Clone(intros)
	for _, path := range slices.Clone(p.paths) {
		at := slices.IndexFunc(p.intros, func(i netdb.Intro) bool {
			return i.Relay == path.Pivot() && ID(i.Hop) == path.intro.hop
		})
		if at < 0 {
			p.retire(path)
		} else {
			path.intro.expiry = p.intros[at].Expiry
		}
	}
	p.mu.Unlock()
	p.events.flush()
}

// Paths are those that are active at now, the longest lasting first.
func (p *Pool) Paths(now time.Time) []*Path {
	p.mu.Lock()
	defer p.mu.Unlock()
	var active []*Path
	for _, path := range p.paths {
		if path.Active(now) {
			active = append(active, path)
		}
	}
	slices.SortStableFunc(active, func(a, b *Path) int { return b.expiry.Compare(a.expiry) })
	return active
}

// Failures is how many builds failed since the last that did not.
func (p *Pool) Failures() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failures
}

// Current gives the path that an outbound session sends over, by the rules of section 6.4: the one that it gave before for as long as
// that has MinExpiry left, else a random one with AcceptableExpiry left, else with MinExpiry left, else the one with the most. Nil when
// none is active, and for Inbound pools. A pool that is asked for it also retires what is of no more use beside it.
func (p *Pool) Current(now time.Time) *Path {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.chosen = true
	p.choose(now)
	return p.current
}

// Widen has an outbound pool keep more paths than usual, or 0 more again: what sends over them gets no answer, and another path may have one. Those that are there then
// stay for their time.
func (p *Pool) Widen(more int) {
	p.mu.Lock()
	same := p.more == more
	p.more = more
	p.mu.Unlock()
	if !same {
		p.Tick(time.Now())
	}
}

// Tick lets time pass: it retires, pings and builds what is due. The client's Tick calls it; an owner may do so more often, to have its
// first paths at once for instance.
func (p *Pool) Tick(now time.Time) {
	var missing key.Public
	p.mu.Lock()
	if !p.closed {
		p.expire(now)
		p.trim(now)
		missing = p.build(now)
		p.ping(now)
	}
	p.mu.Unlock()
	if connect := p.client.connect; connect != nil && !missing.IsZero() {
		connect(missing)
	}
	p.events.flush()
}

// retry is Tick without back-off: what made builds fail is over.
func (p *Pool) retry(now time.Time) {
	p.mu.Lock()
	p.failures = 0
	p.mu.Unlock()
	p.Tick(now)
}

// edgeLost gives up what goes through a closed connection.
func (p *Pool) edgeLost(l Link, now time.Time) {
	p.mu.Lock()
	lost := p.giveUp(func(path *Path) bool { return path.link == l }, EdgeLost)
	if lost {
		p.failures = 0
	}
	p.mu.Unlock()
	p.Tick(now)
}

// setState changes the state of a path and tells the owner. p.mu is held; events.flush must follow.
func (p *Pool) setState(path *Path, to uint32, why Reason) {
	from := path.state.Load()
	path.state.Store(to)
	if to == pathDown {
		path.end()
		p.paths = slices.DeleteFunc(p.paths, func(q *Path) bool { return q == path })
		if from != pathBuilding {
			p.client.unregister(path)
		}
	}
	if to != pathUp && p.current == path {
		p.current = nil
	}
	switch {
	case to == pathUp:
		p.events.post(func(o Owner) { o.PathUp(path) })
	case from == pathUp:
		p.events.post(func(o Owner) { o.PathDown(path, why) })
	}
}

// giveUp takes down all paths that are meant, and says whether there were any. p.mu is held.
func (p *Pool) giveUp(meant func(*Path) bool, why Reason) (any bool) {
	for _, path := range slices.Clone(p.paths) {
		if meant(path) {
			p.setState(path, pathDown, why)
			any = true
		}
	}
	return any
}

// expire takes down what is over. p.mu is held, as in all that follow.
func (p *Pool) expire(now time.Time) {
	p.giveUp(func(path *Path) bool { return path.state.Load() != pathBuilding && !now.Before(path.expiry) }, Expired)
}

// retire takes a path out of use; one under way is given up. No more than Want are kept so, whatever a remote does to its contact.
func (p *Pool) retire(path *Path) {
	switch path.state.Load() {
	case pathBuilding:
		p.setState(path, pathDown, Retired)
	case pathUp:
		var oldest *Path
		n := 0
		for _, other := range p.paths {
			if other.state.Load() == pathRetired {
				n++
				if oldest == nil || other.expiry.Before(oldest.expiry) {
					oldest = other
				}
			}
		}
		p.setState(path, pathRetired, Retired)
		if n >= p.cfg.Want {
			p.setState(oldest, pathDown, Retired)
		}
	}
}

// left is how long a path is of use at now.
func (path *Path) left(now time.Time) time.Duration {
	end := path.expiry
	if i := path.intro.expiry; !i.IsZero() && i.Before(end) {
		end = i
	}
	return end.Sub(now)
}

// choose makes sure that current is what Current promises.
func (p *Pool) choose(now time.Time) {
	if p.cfg.Kind == Inbound {
		return
	}
	opt := &p.client.opt
	var good, fair []*Path
	var longest *Path
	for _, path := range p.paths {
		if !path.Active(now) {
			continue
		}
		left := path.left(now)
		if path == p.current && left >= opt.MinExpiry {
			return
		}
		switch {
		case left >= opt.AcceptableExpiry:
			good = append(good, path)
		case left >= opt.MinExpiry:
			fair = append(fair, path)
		case longest == nil || left > longest.left(now):
			longest = path
		}
	}
	switch {
	case len(good) > 0:
		p.current = good[random(len(good))]
	case len(fair) > 0:
		p.current = fair[random(len(fair))]
	default:
		p.current = longest
	}
}

// trim retires, in a pool that was asked for Current, the other paths that are short of time: those that would not be chosen any more, and those that have a better one
// beside them.
func (p *Pool) trim(now time.Time) {
	if !p.chosen {
		return
	}
	p.choose(now)
	opt := &p.client.opt
	good := 0
	for _, path := range p.paths {
		if path.Active(now) && path.left(now) >= opt.AcceptableExpiry {
			good++
		}
	}
	for _, path := range slices.Clone(p.paths) {
		if path == p.current || path.state.Load() != pathUp {
			continue
		}
		if left := path.left(now); left < opt.MinExpiry || left < opt.AcceptableExpiry && good > 0 {
			p.retire(path)
		}
	}
}

// maxBackoff: after a minute without a network the reference would build nothing for another half, although it is back.
const maxBackoff = 5 * time.Second

// backoff is how long after the last of some failures in a row no build is begun (protocol 3 section 6.3).
func backoff(failures int) time.Duration {
	if failures < 3 {
		return 0
	}
	return min(time.Duration(1+failures-3)*time.Second, maxBackoff)
}

// build begins the builds that are due and that edges have room for; others wait for the next tick. missing is a relay that a path of one hop ends at and that there is no connection to.
func (p *Pool) build(now time.Time) (missing key.Public) {
	if p.failures > 0 && now.Before(p.failed.Add(backoff(p.failures))) {
		return missing
	}
	needed, intros := p.needed(now)
	if needed <= 0 {
		return missing
	}
	ch, ok := p.client.chooser(now)
	if !ok {
		return missing
	}
	for _, path := range p.paths {
		if path.state.Load() == pathBuilding && now.Sub(path.began) >= p.slow() {
			p.client.profile.fellSilent(path.relays, path.began, now)
		}
	}
	first := !slices.ContainsFunc(p.paths, func(path *Path) bool { return path.state.Load() != pathRetired })
	for begun, edges := 0, len(ch.edges); begun < needed; {
		path, err := p.plan(&ch, intros, now)
		if err != nil && len(ch.edges) < edges {
			return missing
		}
		if err != nil && !ch.pressed {
			ch.pressed = true
			path, err = p.plan(&ch, intros, now)
		}
		if err != nil {
			// The others would fail like this one.
			p.client.count.BuildsUnfit.Add(1)
			p.fail(now)
			p.client.log.Debug("no path can be built", "pool", p.cfg.Label, "err", err)
			if errors.Is(err, errNotEdge) {
				missing = path.Pivot()
			}
			return missing
		}
		if !p.client.begin(path.link, first && begun == 0, now) {
			ch.edges = slices.DeleteFunc(ch.edges, func(e edge) bool { return e.link == path.link })
			continue
		}
		begun++
		path.began = now
		path.gone, path.end = context.WithCancel(p.ctx)
		p.paths = append(p.paths, path)
		if !p.client.start(func() { p.attempt(path) }) {
			p.setState(path, pathDown, Dropped)
			return missing
		}
		p.client.count.Builds.Add(1)
	}
	return missing
}

func (p *Pool) fail(now time.Time) {
	p.failures++
	p.failed = now
}

// slowBuild is after how long without an answer a build counts no more.
const slowBuild = 3 * time.Second

// slow is the same now: where more paths than usual are wanted, because those that there are lead nowhere, a few times what a round trip takes over them.
func (p *Pool) slow() time.Duration {
	if p.more == 0 {
		return slowBuild
	}
	var usual time.Duration
	for _, path := range p.paths {
		usual = max(usual, path.rtt.mean()+path.rtt.jitter())
	}
	if usual == 0 {
		return slowBuild
	}
	return min(max(minPatience, 4*usual), slowBuild)
}

// needed says how many more paths there should be, and which introductions they may go to.
//
// A slow build may never be answered: another one is begun beside it, as long as there are no more than twice as many as usually wanted under way, and what more is wanted.
//
// What does not count: an inbound path that no remote would choose any more, less than a minute before its end; the reference counts it, and has one
// path less until the next one is built. An outbound path that ends within AcceptableExpiry; if it is the current one it counts for a while yet.
func (p *Pool) needed(now time.Time) (n int, intros []netdb.Intro) {
	opt := &p.client.opt
	horizon, slow := opt.AcceptableExpiry, p.slow()
	switch p.cfg.Kind {
	case Inbound:
		horizon = p.client.lead()
	case Aligned:
		intros = p.lasting(now, horizon)
		if len(intros) == 0 {
			// The remote has nothing better: a path to the last of it rather than none.
			horizon = opt.MinExpiry
			intros = p.lasting(now, horizon)
		}
		if len(intros) == 0 {
			return 0, nil
		}
	}
	n = p.cfg.Want + p.more
	under := 0
	for _, path := range p.paths {
		switch path.state.Load() {
		case pathBuilding:
			if under++; now.Sub(path.began) < slow || under > p.cfg.Want+p.more {
				n--
			}
		case pathUp:
			left := path.left(now)
			if left >= horizon || path == p.current && left >= opt.MinExpiry {
				n--
			}
		}
	}
	return n, intros
}

// lasting are the introductions with at least d left whose relay we know.
func (p *Pool) lasting(now time.Time, d time.Duration) (intros []netdb.Intro) {
	for _, i := range p.intros {
		if left := i.Expiry.Sub(now); left >= d && left >= time.Second && p.client.store.Get(i.Relay) != nil {
			intros = append(intros, i)
		}
	}
	return intros
}

// plan decides relays and expiry of a new path. Together with errNotEdge it gives the path all the same.
func (p *Pool) plan(ch *chooser, intros []netdb.Intro, now time.Time) (*Path, error) {
	path := &Path{pool: p}
	ch.used, ch.inside = make(map[key.Public]int), make(map[key.Public]int)
	pivots := make(map[key.Public]int)
	others := p.paths
	if p.cfg.Beside != nil {
		p.cfg.Beside.mu.Lock()
		others = slices.Concat(others, p.cfg.Beside.paths)
		p.cfg.Beside.mu.Unlock()
	}
	for _, other := range others {
		if s := other.state.Load(); s == pathBuilding || s == pathUp {
			pivots[other.Pivot()]++
			for i, id := range other.relays {
				ch.used[id]++
				if i > 0 {
					ch.inside[id]++
				}
			}
		}
	}
	wall := now.Round(0) // a suspended machine's monotonic clock stands still
	var err error
	switch p.cfg.Kind {
	case Inbound:
		var taken []time.Time
		for _, other := range p.paths {
			if s := other.state.Load(); s == pathBuilding || s == pathUp {
				taken = append(taken, other.expiry)
			}
		}
		path.expiry = p.slots.next(wall.Add(p.client.lead()), taken)
		if latest := wall.Add(maxLifetime * time.Second).Truncate(time.Second); path.expiry.After(latest) {
			path.expiry = latest
		}
		path.relays, path.link, err = ch.inbound(p.cfg.Hops, p.client.opt.PivotReuse, pivots)
	case Aligned:
		i := p.introduce(ch, intros)
		path.intro = introduction{i.Hop, i.Expiry}
		path.expiry = wall.Add(min(i.Expiry.Sub(wall).Truncate(time.Second), outboundLife))
		path.relays, path.link, err = ch.path(i.Relay, p.cfg.Hops)
	case ToRelay:
		path.expiry = wall.Add(outboundLife)
		path.relays, path.link, err = ch.path(p.cfg.Target, p.cfg.Hops)
	}
	return path, err
}

// introduce chooses the introduction that a new path goes to: a random one of the relays with the fewest paths of ours, and there the longest lasting. Among those, relays
// that did not answer lately come last, then those that another path of ours leads over.
func (p *Pool) introduce(ch *chooser, intros []netdb.Intro) netdb.Intro {
	ours := make(map[key.Public]int)
	for _, path := range p.paths {
		if s := path.state.Load(); s == pathBuilding || s == pathUp {
			ours[path.Pivot()]++
		}
	}
	best := make(map[key.Public]netdb.Intro)
	var relays []key.Public
	for _, i := range intros {
		b, seen := best[i.Relay]
		if !seen {
			relays = append(relays, i.Relay)
		}
		if !seen || i.Expiry.After(b.Expiry) {
			best[i.Relay] = i
		}
	}
	worth := func(id key.Public) int {
		n := 4 * ours[id]
		if ch.bad(id, allowHop) {
			n += 2
		}
		if ch.shared(id) {
			n++
		}
		return n
	}
	least := worth(slices.MinFunc(relays, func(a, b key.Public) int { return worth(a) - worth(b) }))
	relays = slices.DeleteFunc(relays, func(id key.Public) bool { return worth(id) > least })
	return best[relays[random(len(relays))]]
}

// lead is how long before its end an inbound path is replaced.
func (c *Client) lead() time.Duration { return max(c.opt.MinExpiry, 10*time.Second) }

// attempt builds a path (protocol 3 section 2.5) and waits for the answer.
func (p *Pool) attempt(path *Path) {
	defer p.client.ended(path.link)
	ctx, cancel := context.WithTimeout(path.gone, requestTimeout)
	defer cancel()
	err := path.request(ctx)
	silent := errors.Is(ctx.Err(), context.DeadlineExceeded)
	now := time.Now()
	c := p.client
	switch _, refused := remoteBody(err); {
	case err == nil:
		c.profile.built(path.relays)
	case refused:
		c.count.BuildsRefused.Add(1)
	default:
		c.count.BuildsSilent.Add(1)
		if silent {
			c.profile.timedOut(path.relays)
		}
	}
	p.mu.Lock()
	switch {
	case path.state.Load() == pathDown: // given up meanwhile
	case err != nil:
		p.setState(path, pathDown, Dropped)
		p.fail(now)
		c.log.Debug("path not built", "pool", p.cfg.Label, "err", describe(err))
	case !c.register(path): // its edge is gone: EdgeDown is on its way here
		p.setState(path, pathDown, EdgeLost)
	default:
		p.failures = 0
		c.count.BuildsUp.Add(1)
		p.setState(path, pathUp, 0)
	}
	p.mu.Unlock()
	p.events.flush()
}

// request makes the build message and sends it; the keys are in path afterwards.
func (path *Path) request(ctx context.Context) error {
	lifetime := time.Until(path.expiry).Round(time.Second) / time.Second
	if lifetime < 1 || lifetime > maxLifetime {
		return fmt.Errorf("path: build: a lifetime of %d s", lifetime)
	}
	frames := newFrames(path.relays)
	msg, hops, err := makeBuild(frames, uint32(lifetime), newJunk(len(frames)))
	for i := range frames {
		frames[i].eph.Wipe()
	}
	if err != nil {
		return err
	}
	path.hops, path.edge, path.terminal = hops, frames[0].rx, frames[len(frames)-1].rx
	_, err = path.link.Request(ctx, nameBuild, msg) // what an OK says is not looked at (section 2.1)
	return err
}

// describe shows what an error reply says.
func describe(err error) string {
	if body, ok := remoteBody(err); ok {
		return "refused: " + statusText(body)
	}
	return err.Error()
}

// List describes the pool's paths.
func (p *Pool) List() []Info {
	p.mu.Lock()
	defer p.mu.Unlock()
	infos := make([]Info, 0, len(p.paths))
	for _, path := range p.paths {
		infos = append(infos, Info{
			Pool: p.cfg.Label, Kind: p.cfg.Kind, State: [...]string{"building", "up", "retired", "down"}[path.state.Load()], Current: path == p.current,
			Hops: path.Hops(), Expiry: path.expiry, RTT: path.rtt.mean(), Jitter: path.rtt.jitter(), Missed: path.missed,
			Sent: path.sent.Load(), Received: path.received.Load(),
		})
	}
	return infos
}
