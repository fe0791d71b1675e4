package path

import (
	"maps"
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
	silent   map[key.Public]time.Time // relays of paths that fell silent lately, one of which is to blame; kept also when the profile is off
	alive    map[key.Public]time.Time // relays of paths that were heard lately
}

// silentTime is how long a relay is avoided, where there are others, because a path over it fell silent.
const silentTime = 2 * time.Minute

// fellSilent notes that nothing came over a path since the time given. Relays that were heard since over another one are not to blame.
func (p *profile) fellSilent(hops []key.Public, since, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.silent == nil {
		p.silent = make(map[key.Public]time.Time)
	}
	for _, id := range hops {
		if p.alive[id].Before(since) {
			p.silent[id] = now
		}
	}
}

// heard notes that a path was heard, so all its relays are there.
func (p *profile) heard(hops []key.Public, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.alive == nil {
		p.alive = make(map[key.Public]time.Time)
	}
	for _, id := range hops {
		p.alive[id] = now
		delete(p.silent, id)
	}
}

func (p *profile) silentAt(id key.Public, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	since, ok := p.silent[id]
	return ok && now.Sub(since) < silentTime
}

// fewSilent says whether so few relays are under suspicion that they can be avoided: otherwise who lets paths die could choose for us, by what is left.
func (p *profile) fewSilent(now time.Time, known int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, at := range p.silent {
		if now.Sub(at) < silentTime {
			n++
		}
	}
	return n <= min(max(8, known/4), known/2)
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
	for _, m := range []map[key.Public]time.Time{p.silent, p.alive} {
		maps.DeleteFunc(m, func(_ key.Public, at time.Time) bool { return now.Sub(at) >= silentTime })
	}
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
