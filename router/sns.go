package router

import (
	"context"
	"errors"
	"sync"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

// Names that are registered with the network ("shop.loki") are asked of several relays at a time; the majority decides (protocol 1 section 8.4).
// Anyone who knows a name can make an answer for it that opens, so the majority is all that stands between a user and a wrong site. Therefore three things are stricter
// here than there: no relay is asked over two paths, more than half of an even number must agree before the rest is waited for (the protocol is content with half), and
// a tie between two owners is no answer instead of a coin's.

const (
	snsAsk      = 5               // paths that are asked
	snsTTL      = 5 * time.Minute // an answer is kept, the negative too
	snsCacheMax = 4096            // names kept
	snsFlights  = 256             // names that are being looked up
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
// true. Failures count for nothing; at the end the most frequent answer wins, "not found" over an owner as frequent.
func agree(asked int, answers []nameAnswer) (v nameVerdict, ok bool) {
	none, counts := 0, map[key.Public]int{}
	var best key.Public
	most, tied := 0, false
	for _, a := range answers {
		switch {
		case a.none:
			none++
		case a.found:
			counts[a.owner]++
		}
	}
	for owner, n := range counts {
		if n >= most {
			best, most, tied = owner, n, n == most
		}
	}
	v.asked = asked
	if need := asked/2 + 1; none < need && most < need && len(answers) < asked {
		return nameVerdict{}, false
	}
	switch {
	case none >= most:
		v.certain, v.agreed = none > 0, none
	case tied:
		v.agreed = most
	default:
		v.owner, v.found, v.certain, v.agreed = best, true, true, most
	}
	return v, true
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
	if len(c.cache) >= snsCacheMax {
		for n, e := range c.cache { // the expired ones, else any one
			if len(c.cache) < snsCacheMax && now.Before(e.until) {
				break
			}
			delete(c.cache, n)
		}
	}
	c.cache[name] = cachedName{v, now.Add(snsTTL)}
}

var (
	errNoPaths   = errors.New("no path to ask over")
	errManyNames = errors.New("too many names are being looked up")
)

// lookup gives what the network says of name (lower case, with .loki), and for how long that holds; 0 where it is not certain. It asks over the inbound paths of all endpoints
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
			f.v, f.err = askName(ctx, name, paths)
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

// askName asks all paths' relays and returns as soon as they agree.
func askName(ctx context.Context, name string, paths []*path.Path) (nameVerdict, error) {
	ctx, cancel := context.WithCancel(ctx)
	ch := make(chan nameAnswer, len(paths))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	request := netdb.EncodeResolveSNS(seal.NameHash(name))
	for _, p := range paths {
		wg.Go(func() {
			body, err := p.Request(ctx, netdb.MethodResolveSNS, request)
			ch <- readName(name, body, err)
		})
	}
	var answers []nameAnswer
	for {
		if v, ok := agree(len(paths), answers); ok {
			return v, nil
		}
		select {
		case a := <-ch:
			answers = append(answers, a)
		case <-ctx.Done():
			return nameVerdict{}, ctx.Err()
		}
	}
}

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
