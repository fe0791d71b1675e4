package path

import (
	"context"
	"maps"
	"slices"
	"time"

	"lokinetd/router/key"
)

// How paths are tested.
//
// Each is pinged every PingInterval, and given up when more than MaxMissedPings in a row were not answered within 10 s (protocol 3 section 6.5). A path that died without a
// word is found so after 35 s. We do not wait so long: when a ping is late, or when somebody who sends over the path hears nothing (Suspect), the path is
// examined by three pings at short intervals, and given up when nothing at all comes over it, provided that an edge or another path was heard meanwhile: when all are silent
// it is our own network that is away, and the paths are likely to be there when it is back. All edges are asked meanwhile, and one that does not answer either, and over which
// nothing came, is given up with all its paths. The same is done when there is another way to the network (Wake).
//
// Each path that is given up sooner than the protocol would is another draw for relays that drop what they cannot make use of, so a pool has only so
// many of them in a time (hasty), and a client so many edges; then they are as slow as the protocol.

const (
	quickPings  = 3
	minPatience = 400 * time.Millisecond
	maxPatience = 5 * time.Second
	// suspectSpread is how far apart paths are examined for the same reason.
	suspectSpread = time.Second
	// wakePatience is how long nobody at all may be heard after Wake until edges are given up.
	wakePatience = 3 * time.Second
	// hastyMax is how many paths a pool may give up by examination within silentTime, beside as many as it wants.
	hastyMax = 4
)

// patience is how long an answer to a ping may take before it is late. pool.mu is held.
func (path *Path) patience() time.Duration {
	if path.rtt.n == 0 {
		return maxPatience / 2
	}
	return min(max(minPatience, 4*(path.rtt.mean()+path.rtt.jitter())), maxPatience)
}

// Suspect has the path examined: its user sends over it and hears nothing. To say so again meanwhile changes nothing.
func (p *Path) Suspect() {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	p.pool.suspect(p)
}

// Suspected says whether the path is being examined.
func (p *Path) Suspected() bool {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	return p.suspect
}

func (p *Pool) suspect(path *Path) {
	if path.state.Load() != pathUp || path.suspect || p.closed || p.hasty(time.Now()) {
		return
	}
	path.suspect = true
	if !p.client.start(func() { p.examine(path) }) {
		path.suspect = false
	}
}

// hasty says whether the pool has given up too many paths of late. pool.mu is held.
func (p *Pool) hasty(now time.Time) bool {
	p.gaveUp = slices.DeleteFunc(p.gaveUp, func(at time.Time) bool { return now.Sub(at) >= silentTime })
	return len(p.gaveUp) >= hastyMax+p.cfg.Want
}

// examine ends when the path is found alive or dead.
func (p *Pool) examine(path *Path) {
	p.mu.Lock()
	wait, heard := path.patience(), path.heard()
	p.mu.Unlock()
	began := time.Now()
	asked := p.client.askEdges(began, wait)
	for n := 1; ; n++ {
		p.client.start(func() { p.pinged(path, false) })
		pause := wait
		if n < quickPings {
			pause = wait / quickPings
		}
		select {
		case <-time.After(pause):
		case <-path.gone.Done():
			return
		}
		p.mu.Lock()
		signed := p.client.sign.Load() > asked
		switch {
		case path.state.Load() != pathUp, path.heard() != heard:
			path.suspect = false
		case n > quickPings && signed: // after a time in which all were silent; our pings were lost in it
			began, n = time.Now(), 0
			asked = p.client.askEdges(began, wait)
		case n == quickPings && signed:
			path.suspect = false
			p.client.count.PathsExamined.Add(1)
			p.gaveUp = append(p.gaveUp, time.Now())
			p.client.profile.fellSilent(path.relays, began, time.Now())
			p.setState(path, pathDown, Silent)
		}
		done, dead := !path.suspect, path.state.Load() == pathDown
		p.mu.Unlock()
		if dead {
			p.client.suspectLike(path)
		}
		if done {
			p.Tick(time.Now()) // the next one at once
			return
		}
	}
}

// heard counts all that came over the path.
func (path *Path) heard() uint64 { return path.received.Load() + path.answered.Load() }

// ping begins the pings that are due.
func (p *Pool) ping(now time.Time) {
	for _, path := range p.paths {
		if path.state.Load() != pathUp || now.Before(path.nextPing) {
			continue
		}
		// A little less than the interval, or the tick after it would be the one.
		path.nextPing = now.Add(p.client.opt.PingInterval - 20*time.Millisecond)
		late := path.patience()
		p.client.start(func() {
			defer time.AfterFunc(late, path.Suspect).Stop()
			p.pinged(path, true)
		})
	}
}

// pinged sends one ping and acts on what becomes of it. Those of an examination do not count as missed.
func (p *Pool) pinged(path *Path, counts bool) {
	c := p.client
	c.count.Pings.Add(1)
	began := time.Now()
	_, err := path.Request(p.ctx, methodPing, nil)
	_, refused := remoteBody(err)

	p.mu.Lock()
	if path.state.Load() != pathUp {
		p.mu.Unlock()
		return
	}
	switch {
	case err == nil:
		path.missed = 0
		path.answered.Add(1)
		path.rtt.add(time.Since(began))
		c.heard()
		c.profile.heard(path.relays, time.Now())
	case refused:
		c.count.PingsRefused.Add(1)
		p.setState(path, pathDown, Refused)
	case counts:
		c.count.PingsMissed.Add(1)
		path.missed++
		if path.missed > c.opt.MaxMissedPings {
			p.setState(path, pathDown, Silent)
		}
	}
	p.mu.Unlock()
	p.events.flush()
}

// suspectLike has all paths examined that have a relay in common with one that fell silent, unless that relay was heard over another since; not all at once, or
// who drops what goes over one path would see at the relays where others end which are of the same client. No lock is held.
func (c *Client) suspectLike(dead *Path) {
	now := time.Now()
	blamed := slices.DeleteFunc(slices.Clone(dead.relays), func(id key.Public) bool { return !c.profile.silentAt(id, now) })
	var alike []*Path
	c.mu.RLock()
	for _, p := range c.paths {
		if slices.ContainsFunc(p.relays, func(id key.Public) bool { return slices.Contains(blamed, id) }) {
			alike = append(alike, p)
		}
	}
	c.mu.RUnlock()
	for _, p := range alike {
		c.start(func() {
			select {
			case <-time.After(time.Duration(random(int(suspectSpread)))):
				p.Suspect()
			case <-c.ctx.Done():
			}
		})
	}
}

// Wake has all edges asked whether they live: the way to the network is another, or the machine has slept. After a sleep paths are examined too: relays may have been
// restarted meanwhile. An edge that is silent is given up when somebody else is heard; while nobody is, as where a network is only being joined, not before wakePatience.
func (c *Client) Wake(slept bool) {
	began := time.Now()
	woken := c.woken.Add(1)
	silent := make(map[Link]func() bool)
	for _, l := range c.allLinks() {
		silent[l] = c.silence(l)
	}
	c.start(func() {
		for {
			c.askEdges(time.Now(), minPatience)
			select {
			case <-time.After(minPatience):
			case <-c.ctx.Done():
				return
			}
			switch {
			case c.woken.Load() != woken: // it asks for itself
				return
			case c.sign.Load() >= int64(began.Sub(c.basis)):
				c.askEdges(time.Now(), minPatience) // those to whom the question was lost before, too
				return
			case time.Since(began) < wakePatience:
				continue
			}
			for l, silent := range silent {
				if silent() {
					c.dropEdge(l, began)
				}
			}
			return
		}
	})
	if slept {
		c.mu.RLock()
		all := slices.Collect(maps.Values(c.paths))
		c.mu.RUnlock()
		for _, p := range all {
			p.Suspect()
		}
	}
}

// askEdges asks all edges for signs of life, unless that was begun just now, and gives up those of which nothing is heard for so long, or what is usual with them, while
// somebody else still is. It returns when, as sign counts, it began.
func (c *Client) askEdges(now time.Time, wait time.Duration) int64 {
	const often = int64(500 * time.Millisecond)
	at := int64(now.Sub(c.basis))
	if last := c.asked.Load(); at-last < often || !c.asked.CompareAndSwap(last, at) {
		return c.asked.Load()
	}
	c.start(func() { c.doubtEdges(now, wait) })
	return at
}

// doubtEdges asks as long as it doubts any edge, all of them: one is given up only when others are heard all the time. After a gap in which nobody was, time begins again.
func (c *Client) doubtEdges(began time.Time, wait time.Duration) {
	type doubt struct {
		silent   func() bool
		patience time.Duration
	}
	doubts := make(map[Link]doubt)
	for _, l := range c.allLinks() {
		doubts[l] = doubt{c.silence(l), max(wait, c.edgePatience(l))}
	}
	gap, since := false, began
	for len(doubts) > 0 {
		last := int64(time.Since(c.basis))
		for _, l := range c.allLinks() {
			c.start(func() { c.pingEdge(l) })
		}
		select {
		case <-time.After(wait / quickPings):
		case <-c.ctx.Done():
			return
		}
		signed := c.sign.Load() >= last
		if signed && gap {
			since = time.Now()
		}
		gap = !signed
		for l, d := range doubts {
			switch {
			case !d.silent():
				delete(doubts, l)
			case time.Since(since) >= d.patience:
				delete(doubts, l)
				if signed {
					c.dropEdge(l, began)
				}
			}
		}
	}
}

func (c *Client) pingEdge(l Link) {
	ctx, cancel := context.WithTimeout(c.ctx, requestTimeout)
	defer cancel()
	_, err := l.Request(ctx, nameEdge, nil)
	if _, refused := remoteBody(err); err != nil && !refused {
		return
	}
	c.heard() // that it is there does not show that it passes anything on: it may be to blame as any other relay of a path
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.paces[l]; p != nil {
		p.pongs++
	}
}

func (c *Client) allLinks() []Link {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Collect(maps.Keys(c.links))
}

// edgePatience is how long an edge may take, by its paths: another one may be much nearer than it is. It takes pool.mu.
func (c *Client) edgePatience(l Link) time.Duration {
	over := c.over(l)
	if len(over) == 0 {
		return maxPatience / 2 // nothing is known
	}
	least := maxPatience
	for _, p := range over {
		p.pool.mu.Lock()
		least = min(least, p.patience())
		p.pool.mu.Unlock()
	}
	return least
}

// over gives the paths that there are over an edge.
func (c *Client) over(l Link) (paths []*Path) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, p := range c.paths {
		if p.link == l {
			paths = append(paths, p)
		}
	}
	return paths
}

// silence gives a function that says whether nothing at all has come from an edge since.
func (c *Client) silence(l Link) func() bool {
	paths := c.over(l)
	count := func() (n uint64) {
		for _, p := range paths {
			n += p.heard()
		}
		if c.packets != nil {
			n += c.packets(l)
		}
		c.mu.RLock()
		defer c.mu.RUnlock()
		if p := c.paces[l]; p != nil {
			n += p.pongs
		}
		return n
	}
	before := count()
	return func() bool { return count() == before }
}

// dropEdge gives up an edge that was not heard since a time, unless half of those wanted were of late: who can make the network fail for a moment, again and again,
// would choose our edges.
func (c *Client) dropEdge(l Link, since time.Time) {
	now := time.Now()
	c.mu.Lock()
	id, up := c.links[l]
	c.dropped = slices.DeleteFunc(c.dropped, func(at time.Time) bool { return now.Sub(at) >= silentTime })
	if !up || c.closed {
		c.mu.Unlock()
		return
	}
	if len(c.dropped) >= (c.edgesWanted()+1)/2 {
		c.mu.Unlock()
		c.profile.fellSilent([]key.Public{id}, since, now) // it stays an edge, but new paths had better begin with the others
		return
	}
	c.dropped = append(c.dropped, now)
	c.mu.Unlock()
	c.count.EdgesDropped.Add(1)
	c.log.Debug("edge given up: it is silent", "relay", id)
	c.profile.fellSilent([]key.Public{id}, since, now)
	c.EdgeDown(l)
	if c.disconnect != nil {
		c.disconnect(l)
	}
}

// heard notes a sign of life of somebody.
func (c *Client) heard() { c.sign.Store(int64(time.Since(c.basis))) }
