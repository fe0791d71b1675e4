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

// Names that are registered with the network ("shop.loki") are asked of
// several relays at a time; the majority decides (protocol 1 section 8.4).

const (
	snsAsk      = 5               // paths that are asked
	snsTTL      = 5 * time.Minute // an answer is kept, the negative too
	snsCacheMax = 4096            // names kept
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

// agree decides over the answers that have come so far, of asked relays. ok is
// false while more answers are needed; with all answers in it is always true.
// Failures count for nothing; at the end "not found" wins a tie.
func agree(asked int, answers []nameAnswer) (v nameVerdict, ok bool) {
	none, counts := 0, map[key.Public]int{}
	best, most := key.Public{}, 0
	for _, a := range answers {
		switch {
		case a.none:
			none++
		case a.found:
			counts[a.owner]++
			if n := counts[a.owner]; n > most {
				best, most = a.owner, n
			}
		}
	}
	need := (asked + 1) / 2
	v.asked = asked
	switch {
	case none >= need:
		v.certain, v.agreed = true, none
	case most >= need:
		v.owner, v.found, v.certain, v.agreed = best, true, true, most
	case len(answers) < asked:
		return nameVerdict{}, false
	case most > none:
		v.owner, v.found, v.certain, v.agreed = best, true, true, most
	default:
		v.certain, v.agreed = none > 0, none
	}
	return v, true
}

// nameCache remembers certain verdicts for snsTTL.
type nameCache struct {
	mu    sync.Mutex
	names map[string]cachedName
}

type cachedName struct {
	nameVerdict
	until time.Time
}

func (c *nameCache) get(name string, now time.Time) (cachedName, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.names[name]
	if ok && now.After(e.until) {
		delete(c.names, name)
		ok = false
	}
	return e, ok
}

func (c *nameCache) put(name string, v nameVerdict, now time.Time) cachedName {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.names == nil {
		c.names = map[string]cachedName{}
	}
	if len(c.names) >= snsCacheMax {
		for n, e := range c.names { // the expired ones, else any one
			if len(c.names) < snsCacheMax && now.Before(e.until) {
				break
			}
			delete(c.names, n)
		}
	}
	e := cachedName{v, now.Add(snsTTL)}
	c.names[name] = e
	return e
}

var errNoPaths = errors.New("no path to ask over")

// lookupName asks up to snsAsk of the paths for the owner of name (lower case,
// with .loki) and returns as soon as they agree. Errors: errNoPaths, ctx's.
func lookupName(ctx context.Context, name string, paths []*path.Path) (nameVerdict, error) {
	paths = paths[:min(len(paths), snsAsk)]
	if len(paths) == 0 {
		return nameVerdict{}, errNoPaths
	}
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
