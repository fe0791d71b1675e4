package path

import (
	"sync"
	"time"

	"lokinetd/router/key"
)

// profile remembers which relays were in builds that nobody answered, and tells which to avoid (protocol 3 section 6.1). When it is off all relays are good.
//
// The reference keeps three counts a relay: successes, failures, time-outs. Nothing raises its failures, and without them successes
// have no effect on what is bad: time-outs are all that is left. Error replies do not say which relay made them and are not remembered.
type profile struct {
	on bool

	mu       sync.Mutex
	timeouts map[key.Public]int
	halved   time.Time
}

// How many time-outs are allowed (section 6.1): any relay is in the way of more builds when it is an edge.
const (
	allowEdge = 4
	allowHop  = 1
)

const profileHalfLife = 30 * time.Second

// built notes a path that was established: its relays start afresh.
func (p *profile) built(hops []key.Public) {
	if !p.on {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range hops {
		delete(p.timeouts, id)
	}
}

// timedOut notes a build that was not answered. Which hop is to blame is not known.
func (p *profile) timedOut(hops []key.Public) {
	if !p.on {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timeouts == nil {
		p.timeouts = make(map[key.Public]int)
	}
	for _, id := range hops {
		p.timeouts[id]++
	}
}

// bad says whether a relay is to be avoided, with an allowance of time-outs.
func (p *profile) bad(id key.Public, allowance int) bool {
	if !p.on {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.timeouts[id] > allowance
}

// decay halves all counts every 30 s.
func (p *profile) decay(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.timeouts) == 0 || p.halved.IsZero() {
		p.halved = now
		return
	}
	for ; now.Sub(p.halved) >= profileHalfLife && len(p.timeouts) > 0; p.halved = p.halved.Add(profileHalfLife) {
		for id, n := range p.timeouts {
			if n /= 2; n == 0 {
				delete(p.timeouts, id)
			} else {
				p.timeouts[id] = n
			}
		}
	}
}
