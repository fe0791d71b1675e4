package path

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

// Which relays a path goes over (protocol 3 section 6.2).

// Why no path was even tried.
var (
	errNoContact = errors.New("path: no contact of the last relay is known")
	errNoEdge    = errors.New("path: no edge is fit")
	errNotEdge   = errors.New("path: the only hop is no connected edge")
	errNoRelay   = errors.New("path: no relay is left for a hop")
)

// edge is a relay that we are connected to and whose contact we know.
type edge struct {
	contact *netdb.RelayContact
	link    Link
}

// chooser is the world at the moment of a choice.
type chooser struct {
	store   *netdb.Store
	now     time.Time
	unique  int // bits of the IPv4 networks that no two hops share; 0: any
	profile *profile
	black   map[key.Public]bool
	edges   []edge
	rest    []edge // connected too, but only for paths of one hop to themselves
	wary    bool   // avoid relays of paths that fell silent
	pressed bool   // avoid none for what is remembered of it: nobody else is left, and rather a relay that may be dead than none
	// used is how many paths of the same pool each relay is in: those with the fewest are preferred, so that the death of one leaves other paths.
	used map[key.Public]int
	// inside is the same without the paths' edges.
	inside map[key.Public]int
}

// fewRelays is how small a network is in which our edges are likely to be drawn for other paths as well.
const fewRelays = 50

// bad says whether a relay is to be avoided, with an allowance of time-outs.
func (c *chooser) bad(id key.Public, allowance int) bool {
	return !c.pressed && (c.profile.bad(id, allowance) || c.wary && c.profile.silentAt(id, c.now))
}

// usable says whether a random draw may give a relay, with an allowance of time-outs.
func (c *chooser) usable(r *netdb.RelayContact, allowance int) bool {
	return !r.Expired(c.now) && !c.black[r.ID] && !c.bad(r.ID, allowance)
}

// network is the one that r is in, as far as uniqueness goes; the zero prefix when it does not matter.
func (c *chooser) network(r *netdb.RelayContact) netip.Prefix {
	if c.unique == 0 {
		return netip.Prefix{}
	}
	p, _ := r.Addr.Addr().Unmap().Prefix(c.unique)
	return p
}

// taken is what the relays of a path so far exclude.
type taken struct {
	ids      map[key.Public]bool
	networks map[netip.Prefix]bool
}

func (c *chooser) take(t *taken, r *netdb.RelayContact) {
	if t.ids == nil {
		t.ids, t.networks = make(map[key.Public]bool), make(map[netip.Prefix]bool)
	}
	t.ids[r.ID] = true
	if n := c.network(r); n.IsValid() {
		t.networks[n] = true
	}
}

// fits is the filter F of section 6.2.
func (c *chooser) fits(t *taken, r *netdb.RelayContact) bool {
	return !t.ids[r.ID] && !t.networks[c.network(r)] && !c.bad(r.ID, allowHop)
}

// path chooses the way to a last relay over n hops, sometimes n + 1: the edge first. The last relay itself is the caller's choice and not
// filtered. With errNotEdge it gives the only hop all the same.
func (c *chooser) path(last key.Public, n int) ([]key.Public, Link, error) {
	target := c.store.Get(last)
	if target == nil {
		return nil, nil, errNoContact
	}
	if n == 1 {
		for _, e := range slices.Concat(c.edges, c.rest) {
			if e.contact.ID == last {
				return []key.Public{last}, e.link, nil
			}
		}
		return []key.Public{last}, nil, errNotEdge
	}
	var t taken
	c.take(&t, target)
	first, extend, ok := c.edge(&t, last)
	if !ok {
		return nil, nil, errNoEdge
	}
	c.take(&t, first.contact)
	hops := []key.Public{first.contact.ID}
	middle := n - 2
	if extend && middle < MaxHops-2 {
		middle++
	}
	for range middle {
		drawn := c.draw(func(r *netdb.RelayContact) bool { return c.usable(r, allowHop) && c.fits(&t, r) })
		if drawn == nil {
			return nil, nil, errNoRelay
		}
		c.take(&t, drawn)
		hops = append(hops, drawn.ID)
	}
	return append(hops, last), first.link, nil
}

// edge chooses the first hop of a path to last among the connected ones. extend asks for one hop more: the path's ends are too near to each other.
func (c *chooser) edge(t *taken, last key.Public) (e edge, extend, ok bool) {
	if c.unique != 0 {
		if e, ok = c.anyEdge(func(r *netdb.RelayContact) bool { return c.fits(t, r) }); ok {
			return e, false, true
		}
		extend = true
	}
	if e, ok = c.anyEdge(func(r *netdb.RelayContact) bool { return r.ID != last }); ok {
		return e, extend, true
	}
	e, ok = c.anyEdge(func(*netdb.RelayContact) bool { return true })
	return e, true, ok
}

// anyEdge draws uniformly among those edges that are not bad and pass ok of which the pool has the fewest paths.
func (c *chooser) anyEdge(ok func(*netdb.RelayContact) bool) (edge, bool) {
	var fit []edge
	for _, e := range c.edges {
		if c.bad(e.contact.ID, allowEdge) || !ok(e.contact) {
			continue
		}
		if n := c.used[e.contact.ID]; len(fit) > 0 && n < c.used[fit[0].contact.ID] {
			fit = fit[:0]
		} else if len(fit) > 0 && n > c.used[fit[0].contact.ID] {
			continue
		}
		fit = append(fit, e)
	}
	if len(fit) == 0 {
		return edge{}, false
	}
	return fit[random(len(fit))], true
}

// shared says whether a path had better not go on over a relay, since the pool has another path over it. Edges do not count where there are many relays: everybody sees where
// a service's paths end, and who is called what comes before, and would learn which relays are our edges by their never being there.
func (c *chooser) shared(id key.Public) bool {
	if c.store.Len() > fewRelays {
		return c.inside[id] > 0
	}
	return c.used[id] > 0 || slices.ContainsFunc(c.edges, func(e edge) bool { return e.contact.ID == id })
}

// draw draws one of the relays that pass ok, uniformly among those that are not shared if there are any; nil: none passes.
func (c *chooser) draw(ok func(*netdb.RelayContact) bool) *netdb.RelayContact {
	drawn := c.store.Random(1, func(r *netdb.RelayContact) bool { return !c.shared(r.ID) && ok(r) })
	if len(drawn) == 0 {
		drawn = c.store.Random(1, ok)
	}
	if len(drawn) == 0 {
		return nil
	}
	return drawn[0]
}

// inbound chooses a path for others to reach us by. pivots counts the inbound paths that end at each relay; one relay should not be the end of more than
// reuse, but where there is no other, the least used will do: in a small network too much of one relay is better than no path.
func (c *chooser) inbound(n, reuse int, pivots map[key.Public]int) ([]key.Public, Link, error) {
	if n == 1 {
		e, ok := c.anyEdge(func(*netdb.RelayContact) bool { return true })
		if !ok {
			return nil, nil, errNoEdge
		}
		return []key.Public{e.contact.ID}, e.link, nil
	}
	shared := c.sharedNetwork()
	most := 0
	for _, k := range pivots {
		most = max(most, k)
	}
	for limit := reuse; limit <= max(most+1, reuse); limit++ {
		drawn := c.draw(func(r *netdb.RelayContact) bool {
			return pivots[r.ID] < limit && c.usable(r, allowHop) && (!shared.IsValid() || c.network(r) != shared)
		})
		if drawn != nil {
			return c.path(drawn.ID, n)
		}
	}
	return nil, nil, errNoRelay
}

// sharedNetwork is the one that all edges are in; the zero prefix when there is none such.
func (c *chooser) sharedNetwork() netip.Prefix {
	var shared netip.Prefix
	for i, e := range c.edges {
		n := c.network(e.contact)
		if i > 0 && n != shared {
			return netip.Prefix{}
		}
		shared = n
	}
	return shared
}
