package router

import (
	"context"
	"errors"
	"sync"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

// Names that are registered with the network ("shop.loki") are asked of several relays at a time; the majority decides (protocol 1 section 8.4).
//
// Anyone who knows a name can make an answer for it that opens, so the majority is all that stands between a user and a wrong site, and four or five relays are a small
// one: where 30 % lie together, they are three of four in one look-up of twelve. Therefore this is stricter than the protocol's rule, in ways that no relay can see:
//   - no relay is asked over two paths;
//   - more than half must agree before the rest is waited for (of an even number the protocol is content with half), and the rest is waited for a moment still;
//   - when two answers contradict each other, or some do not come, a jury of more relays is asked, over paths built for it, and counts with them;
//   - a tie between two owners is no answer instead of a coin's.

const (
	snsAsk      = 5               // paths that are asked
	snsTTL      = 5 * time.Minute // an answer is kept, the negative too
	snsCacheMax = 4096            // names kept
	snsFlights  = 256             // names that are being looked up
	snsLinger   = 250 * time.Millisecond
	snsFew      = 3                       // with fewer relays to ask a look-up waits for more paths,
	snsGather   = 500 * time.Millisecond  // for so long: right after the start the relay of the first path would decide alone
	snsSlow     = 1500 * time.Millisecond // without a majority, until a jury is called
	snsJurors   = 8
	snsJuries   = 4               // at a time
	snsPatience = 4 * time.Second // with a jury
)

// nameAnswer is what one relay said: an owner, "not found", or nothing usable.
type nameAnswer struct {
	owner key.Public
	found bool
	none  bool // an explicit NOT FOUND
}

// nameVerdict is what the relays together said.
type nameVerdict struct {
	owner   key.Public
	found   bool
	certain bool // the network said so: may be cached and told as NXDOMAIN
	agreed  int  // relays that said the same
	asked   int
}

// agree decides over the answers that have come so far, of asked relays. ok is false while more answers are needed; with all answers in it is always
// true. Failures count for nothing; at the end the most frequent answer wins, "not found" over an owner as frequent. contested says that answers contradict each other.
func agree(asked int, answers []nameAnswer) (v nameVerdict, contested, ok bool) {
	none, counts := 0, map[key.Public]int{}
	for _, a := range answers {
		switch {
		case a.none:
			none++
		case a.found:
			counts[a.owner]++
		}
	}
	var best key.Public
	most, tied := 0, false
	for owner, n := range counts {
		if n >= most {
			best, most, tied = owner, n, n == most
		}
	}
	contested = len(counts) > 1 || len(counts) > 0 && none > 0
	if need := asked/2 + 1; none < need && most < need && len(answers) < asked {
		return nameVerdict{}, contested, false
	}
	v.asked = asked
	switch {
	case none >= most:
		v.certain, v.agreed = none > 0, none
	case tied:
		v.agreed = most
	default:
		v.owner, v.found, v.certain, v.agreed = best, true, true, most
	}
	return v, contested, true
}

// names remembers certain verdicts for snsTTL, and who is being asked about: however many want a name at a time, the relays are asked once.
type names struct {
	mu      sync.Mutex
	cache   map[string]cachedName
	flights map[string]*flight
}

type cachedName struct {
	nameVerdict
	until time.Time
}

// flight is one look-up. Its result is set before done is closed.
type flight struct {
	done chan struct{}
	v    nameVerdict
	err  error
}

func (c *names) get(name string, now time.Time) (cachedName, bool) {
	e, ok := c.cache[name]
	if ok && now.After(e.until) {
		delete(c.cache, name)
		ok = false
	}
	return e, ok
}

func (c *names) put(name string, v nameVerdict, now time.Time) {
	if c.cache == nil {
		c.cache = map[string]cachedName{}
	}
	looked := 0
	for n, e := range c.cache { // a few of the expired ones, so that they stay few; any one when there is no room
		full := len(c.cache) >= snsCacheMax
		if looked++; looked > 4 && !full {
			break
		}
		if full || !now.Before(e.until) {
			delete(c.cache, n)
		}
	}
	c.cache[name] = cachedName{v, now.Add(snsTTL)}
}

var (
	errNoPaths   = errors.New("no path to ask over")
	errManyNames = errors.New("too many names are being looked up")
)

// lookup gives what the network says of name (lower case, with .loki), and for how long that holds; 0 where it is not certain. It asks over the inbound paths of the askers
// and goes on asking when ctx ends, for whoever asks next. Errors: errNoPaths, errManyNames, ctx's.
func (c *client) lookup(ctx context.Context, name string) (nameVerdict, time.Duration, error) {
	now := time.Now()
	n := &c.names
	n.mu.Lock()
	if e, ok := n.get(name, now); ok {
		n.mu.Unlock()
		return e.nameVerdict, e.until.Sub(now), nil
	}
	f := n.flights[name]
	if f == nil {
		paths := c.sources(snsAsk, now)
		switch {
		case len(paths) == 0:
			n.mu.Unlock()
			return nameVerdict{}, 0, errNoPaths
		case len(n.flights) >= snsFlights:
			n.mu.Unlock()
			return nameVerdict{}, 0, errManyNames
		case n.flights == nil:
			n.flights = map[string]*flight{}
		}
		f = &flight{done: make(chan struct{})}
		started := c.n.serve(func(ctx context.Context) {
			f.v, f.err = c.askName(ctx, name, c.gather(ctx, paths))
			n.mu.Lock()
			delete(n.flights, name)
			if f.v.certain {
				n.put(name, f.v, time.Now())
			}
			n.mu.Unlock()
			close(f.done)
		})
		if !started {
			n.mu.Unlock()
			return nameVerdict{}, 0, errNoPaths
		}
		n.flights[name] = f
	}
	n.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
		return nameVerdict{}, 0, ctx.Err()
	}
	if f.err != nil || !f.v.certain {
		return f.v, 0, f.err
	}
	return f.v, snsTTL, nil
}

// gather gives the paths that a name is asked over: those, unless they are few and more are coming.
func (c *client) gather(ctx context.Context, paths []*path.Path) []*path.Path {
	enough := 1
	for _, e := range c.askers() {
		want := e.Config.Inbound
		if want <= 0 {
			want = snsFew
		}
		enough = max(enough, min(want, snsFew))
	}
	over := time.After(snsGather)
	for len(paths) < enough {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		if more := c.sources(snsAsk, time.Now()); len(more) > len(paths) {
			paths = more
			continue
		}
		select {
		case <-changed:
		case <-over:
			return paths
		case <-ctx.Done():
			return paths
		}
	}
	return paths
}

// askName asks the relays of paths, and more when they contradict each other, and returns as soon as enough agree.
func (c *client) askName(ctx context.Context, name string, paths []*path.Path) (nameVerdict, error) {
	ctx, cancel := context.WithCancel(ctx)
	ch := make(chan nameAnswer, len(paths)+snsJurors)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	request := netdb.EncodeResolveSNS(seal.NameHash(name))
	heard := map[key.Public]bool{}
	ask := func(p *path.Path) {
		heard[p.Pivot()] = true
		wg.Go(func() {
			body, err := p.Request(ctx, netdb.MethodResolveSNS, request)
			ch <- readName(name, body, err)
		})
	}
	for _, p := range paths {
		ask(p)
	}
	var answers []nameAnswer
	var called jury // nil: none
	var over <-chan time.Time
	slow := time.After(snsSlow)
	tooSlow := false
	asked := len(paths) // answers that are waited for
	for {
		v, contested, ok := agree(asked, answers)
		switch {
		case called == nil && (contested || tooSlow && !ok):
			var dismiss func()
			if called, dismiss = c.callJury(); called != nil {
				defer dismiss()
				asked += snsJurors
				over = time.After(snsPatience)
				continue
			}
			called = make(jury) // none to be had
		case ok && (called != nil || len(answers) == asked):
			return v, nil
		case ok && over == nil:
			over = time.After(snsLinger)
		}
		select {
		case a := <-ch:
			answers = append(answers, a)
		case p := <-called:
			if heard[p.Pivot()] {
				asked-- // one juror less
			} else if len(heard) < len(paths)+snsJurors {
				ask(p)
			}
		case <-slow:
			tooSlow = true
		case <-over: // what has come must do
			v, _, _ := agree(len(answers), answers)
			return v, nil
		case <-ctx.Done():
			return nameVerdict{}, ctx.Err()
		}
	}
}

// jury is the paths to more relays, as they come up. It is the owner of their pool.
type jury chan *path.Path

func (j jury) PathUp(p *path.Path) {
	select {
	case j <- p:
	default:
	}
}

func (jury) PathDown(*path.Path, path.Reason)               { /* its request fails */ }
func (jury) PathDatagram(_ *path.Path, b *packet.Buffer)    { b.Release() }
func (jury) PathControl(*path.Path, byte, []byte, [24]byte) {}

// callJury builds paths to relays drawn at random; nil when there are juries enough. dismiss must be called.
func (c *client) callJury() (j jury, dismiss func()) {
	if c.juries.Add(1) > snsJuries {
		c.juries.Add(-1)
		return nil, nil
	}
	hops := 0
	for _, e := range c.askers() {
		hops = max(hops, e.Config.InboundHops)
	}
	if hops == 0 {
		hops = defaultHops
	}
	j = make(jury, 2*snsJurors)
	pool := c.paths.NewPool(path.PoolConfig{Kind: path.Inbound, Hops: hops, Want: snsJurors, Owner: j, Label: "names"})
	pool.Tick(time.Now())
	return j, func() {
		pool.Close()
		c.juries.Add(-1)
	}
}

// defaultHops is the length of inbound paths (protocol 3 section 6.1).
const defaultHops = 3

// readName turns one reply into an answer.
func readName(name string, body []byte, err error) nameAnswer {
	if err != nil {
		return nameAnswer{}
	}
	c, nonce, err := netdb.DecodeResolvedSNS(body)
	if errors.Is(err, netdb.ErrNotFound) {
		return nameAnswer{none: true}
	}
	if err != nil {
		return nameAnswer{}
	}
	owner, err := seal.OpenName(name, c, &nonce)
	if err != nil {
		return nameAnswer{}
	}
	return nameAnswer{owner: owner, found: true}
}
