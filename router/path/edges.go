package path

import (
	"cmp"
	"math"
	"slices"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

// Which relays a client connects to.
//
// An edge sees who we are, so what counts is how many relays ever are one. Drawn anew at each start, or whenever one fails, that would soon be a hostile one, sooner if
// somebody makes those fail that are not. So a client draws candidates, a few more than it needs, keeps them over restarts, and connects to no other relay. Their order is that
// of drawing: the first that can be reached are the edges, whoever answers sooner, and one that comes back takes its place again. One that was an edge is a candidate for two to four
// months more, one that was not for as long as the network knows it. When none at all can be reached, one more is drawn a day, up to twice as many.
//
// While few contacts of the network are known, as at the first start, candidates are passing: they would be the same few relays for everybody, and for months.

const (
	perEdge     = 3 // candidates for each edge
	perEdgeMost = 6 // those that came because none answered included
	candidacy   = 60 * 24 * time.Hour
	moreDays    = 60 // days, drawn for each: they shall not all go at once
	growEvery   = 24 * time.Hour
	surplusTime = 10 * time.Second // that an edge is kept beyond what is needed
)

// Candidate is a relay that a client may connect to.
type Candidate struct {
	Relay key.Public
	Until time.Time // zero: it was never connected to
}

// EdgeList is what a client keeps of its edges over restarts. The zero value is that of a client that was never in the network.
type EdgeList struct {
	Candidates []Candidate // in the order of preference
	Grown      time.Time   // when one was added at last because none could be reached
}

// candidates is an EdgeList at work. c.edgeMu is held.
type candidates struct {
	EdgeList
	passing bool     // few contacts are known
	lasting EdgeList // while passing: what it was before
}

// clone is for whoever keeps it.
func (l *EdgeList) clone() EdgeList {
	return EdgeList{slices.Clone(l.Candidates), l.Grown}
}

// renew drops who has had its time and draws who is missing, of those that may be an edge. up are the relays that are connected; nobody says that no candidate can be reached. It says
// whether anything has changed.
func (l *candidates) renew(store *netdb.Store, may func(*netdb.RelayContact) bool, want int, up map[key.Public]bool, nobody bool, now time.Time) (changed bool) {
	if passing := !store.Settled(); passing != l.passing {
		if l.passing = passing; passing {
			l.lasting = l.clone()
		} else {
			l.EdgeList = l.lasting
		}
	}
	before := len(l.Candidates)
	l.Candidates = slices.DeleteFunc(l.Candidates, func(c Candidate) bool { return !c.Until.IsZero() && !now.Before(c.Until) })
	changed = len(l.Candidates) != before
	for i := range l.Candidates {
		c := &l.Candidates[i]
		switch latest := now.Add(candidacy + moreDays*24*time.Hour); {
		case c.Until.IsZero() && up[c.Relay]:
			c.Until, changed = now.Add(candidacy+time.Duration(random(moreDays))*24*time.Hour).Truncate(24*time.Hour), true
		case c.Until.After(latest): // the clock was set back
			c.Until, changed = latest, true
		}
	}
	listed, present := make(map[key.Public]bool, len(l.Candidates)), 0
	for _, c := range l.Candidates {
		listed[c.Relay] = true
		if r := store.Get(c.Relay); r != nil && store.Believes(c.Relay) && may(r) {
			present++
		}
	}
	missing := perEdge*want - present
	if missing <= 0 && nobody && present < perEdgeMost*want && now.Sub(l.Grown) >= growEvery {
		missing = 1
	}
	if missing > 0 {
		for _, r := range store.Random(missing, func(r *netdb.RelayContact) bool { return !listed[r.ID] && may(r) }) {
			l.Candidates = append(l.Candidates, Candidate{Relay: r.ID})
			l.Grown, changed = now.Truncate(time.Minute), true
		}
	}
	// Those that the network has forgotten may come back; a list has an end all the same.
	for i := 0; len(l.Candidates) > 2*perEdgeMost*want && i < len(l.Candidates); {
		if store.Get(l.Candidates[i].Relay) == nil {
			l.Candidates, changed = slices.Delete(l.Candidates, i, i+1), true
		} else {
			i++
		}
	}
	return changed
}

// rank is where a relay stands among the candidates; last: it is none.
func (l *candidates) rank(id key.Public) int {
	if i := slices.IndexFunc(l.Candidates, func(c Candidate) bool { return c.Relay == id }); i >= 0 {
		return i
	}
	return math.MaxInt
}

// MoreEdges chooses relays to connect to, for the owner to dial: of the candidates that can be reached, as many as are wanted, less the dialling ones that
// the owner already tries. skip, which may be nil, says which not to take: those, for instance, and those that it has tried in vain lately.
func (c *Client) MoreEdges(dialling int, skip func(key.Public) bool) (more []*netdb.RelayContact) {
	if skip == nil {
		skip = func(key.Public) bool { return false }
	}
	now := time.Now()
	c.mu.RLock()
	want := c.edgesWanted()
	up := make(map[key.Public]bool, len(c.edges))
	for id := range c.edges {
		up[id] = true
	}
	c.mu.RUnlock()
	may := func(r *netdb.RelayContact) bool {
		return !r.Expired(now) && !c.black[r.ID] && (len(c.strict) == 0 || c.strict[r.ID])
	}
	ch := chooser{profile: &c.profile, black: c.black, now: now, wary: c.profile.fewSilent(now, c.store.Len())}

	c.edgeMu.Lock()
	defer c.edgeMu.Unlock()
	l := &c.candidates
	nobody := len(up) == 0 && !slices.ContainsFunc(l.Candidates, func(x Candidate) bool { return !skip(x.Relay) })
	if l.renew(c.store, may, want, up, nobody, now) && !l.passing && c.keep != nil {
		c.keep(l.clone()) // before any of them is dialled, or who is stopped early and often would draw often
	}
	chosen := make(map[key.Public]bool)
	for _, ch.pressed = range []bool{false, true} {
		n := len(chosen)
		for _, x := range l.Candidates {
			if n >= want-dialling {
				break
			}
			r := c.store.Get(x.Relay)
			switch {
			case up[x.Relay]:
				n++
			case r == nil || chosen[x.Relay] || !c.store.Believes(x.Relay) || !may(r) || skip(x.Relay) || !ch.usable(r, allowEdge):
			default:
				n++
				chosen[x.Relay] = true
				more = append(more, r)
			}
		}
	}
	return more
}

// prefer divides connected relays into those that new paths begin with, the first of the candidates, and the rest. Relays to be avoided do not count.
func (c *Client) prefer(up []edge, avoid func(key.Public) bool) (edges, rest []edge) {
	c.mu.RLock()
	want := c.edgesWanted()
	c.mu.RUnlock()
	c.edgeMu.Lock()
	rank := make(map[key.Public]int, len(up))
	for _, e := range up {
		rank[e.contact.ID] = c.candidates.rank(e.contact.ID)
	}
	c.edgeMu.Unlock()
	slices.SortStableFunc(up, func(a, b edge) int { return cmp.Compare(rank[a.contact.ID], rank[b.contact.ID]) })
	n := 0
	for _, e := range up {
		bad := avoid(e.contact.ID)
		switch {
		case !bad && n >= want:
			rest = append(rest, e)
			continue
		case !bad:
			n++
		}
		edges = append(edges, e)
	}
	return edges, rest
}

// dropSurplus gives up connections that no path goes over any more and that none will, since the candidates before them are connected.
func (c *Client) dropSurplus(now time.Time) {
	ch, ok := c.chooser(now)
	if !ok {
		return
	}
	for _, e := range ch.rest {
		c.mu.RLock()
		p := c.paces[e.link]
		idle := p != nil && p.waiting == 0 && now.Sub(p.since) >= surplusTime
		c.mu.RUnlock()
		if idle && len(c.over(e.link)) == 0 {
			c.log.Debug("edge given up: others are preferred", "relay", e.contact.ID)
			c.EdgeDown(e.link)
			if c.disconnect != nil {
				c.disconnect(e.link)
			}
		}
	}
}
