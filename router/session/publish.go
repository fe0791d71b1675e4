package session

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"lokinetd/router/netdb"
	"lokinetd/router/path"
)

// Our contact (protocol 1 section 7.8): made from the active inbound paths, pushed to those who called us, published at four locations over up to four paths.
//
//   - when a path came and there are as many as wanted, or it is 15 s since the last time
//   - when one went that is in the published contact, or is examined for long: when there is one in its place, or half a second later
//   - for the first time: 2 s after the first path at the latest, so that slow builds do not keep us away
//   - at the locations that did not confirm: again, after 5, 10, 20, 40, 60, 60 ... s
//
// and a new one at most every 5 s (protocol README). A relay at the end of a path may confirm what it did not pass on, so a location that confirmed is asked for the contact a moment later, over another path,
// and told it once more over a third when it has none: twice at most, for it may be the location that lies.

const (
	publishSpacing = 5 * time.Second // at least, between two contacts
	publishRetry   = time.Minute     // at most between two tries
	publishFirst   = 2 * time.Second
	publishLate    = 15 * time.Second
	publishLost    = 500 * time.Millisecond
	publishChecks  = 2
	publishCheck   = 500 * time.Millisecond // until a check, and up to three times as long
)

// Publication says how far our contact is known.
type Publication struct {
	At        time.Time // when the present contact was signed; zero: none was
	Intros    int       // in it
	Expiry    time.Time // of the intro that lasts longest
	Locations int       // of 4 that have confirmed the present contact
	Err       error     // why one has not; nil: all have, or have not answered yet
}

// Reachable says whether somebody who looks for the contact finds it.
func (p Publication) Reachable(now time.Time) bool { return p.Locations > 0 && now.Before(p.Expiry) }

// publisher is under Table.ctl.
type publisher struct {
	flags   uint8
	srv     []netdb.SRV
	changed bool      // flags or srv
	since   time.Time // when the first path came
	lost    time.Time // since when a path of the present contact is missing; zero: none is
	next    time.Time // none before
	again   time.Time // nor the present one, at locations that did not confirm it
	wait    time.Duration
	round   int // of the present contact; answers of earlier ones count for nothing
	sealed  []byte
	intros  map[path.ID]bool
	asked   [netdb.Locations]bool // unanswered
	stored  [netdb.Locations]bool
	checks  [netdb.Locations]int       // begun, of the present contact
	told    [netdb.Locations][]path.ID // the paths that it was sent over
	looked  [netdb.Locations][]path.ID // and those that it was looked for over
	warned  bool
	state   Publication
}

// Publication returns how far our contact is known.
func (t *Table) Publication() Publication {
	t.lock()
	defer t.unlock()
	return t.publish.state
}

// SetContact changes what our contact says, and publishes it again.
func (t *Table) SetContact(flags uint8, srv []netdb.SRV) {
	t.lock()
	defer t.unlock()
	t.publish.flags, t.publish.srv, t.publish.changed = flags, slices.Clone(srv), true
}

// tendPublication publishes if it is time.
func (t *Table) tendPublication(now time.Time) {
	p := &t.publish
	if !t.c.Publish || t.entrance == nil {
		return
	}
	paths := slices.DeleteFunc(t.entrance.paths(now), onion.suspected)
	if len(paths) == 0 { // wait for what examinations bring
		p.since = time.Time{}
		return
	}
	if p.since.IsZero() {
		p.since = now
	}
	gained, kept := false, 0
	for _, o := range paths {
		if p.intros[o.id()] {
			kept++
		} else {
			gained = true
		}
	}
	lost, full := kept < len(p.intros), len(paths) >= t.c.Inbound
	if !lost {
		p.lost = time.Time{}
	} else if p.lost.IsZero() {
		p.lost = now
	}
	var due bool
	switch {
	case now.Before(p.next):
	case p.changed:
		due = true
	case lost:
		due = full || now.Sub(p.lost) >= publishLost
	case gained && p.sealed == nil:
		due = full || now.Sub(p.since) >= publishFirst
	case gained:
		due = full || now.Sub(p.state.At) >= publishLate
	}
	switch {
	case due:
		t.announce(paths, now)
	case p.sealed != nil && !all(p.stored) && !slices.Contains(p.asked[:], true) && !now.Before(p.again):
		p.wait = min(2*p.wait, publishRetry)
		p.again = now.Add(p.wait)
		t.spread(paths)
	}
}

// announce makes a new contact of these paths and publishes it.
func (t *Table) announce(paths []onion, now time.Time) {
	p := &t.publish
	p.wait = publishSpacing
	p.next, p.again = now.Add(publishSpacing), now.Add(p.wait)
	cc := netdb.ClientContact{Flags: p.flags | netdb.FlagPFS, SRV: p.srv}
	intros := make(map[path.ID]bool, len(paths))
	var last time.Time
	for _, o := range paths {
		cc.Intros = append(cc.Intros, netdb.Intro{Expiry: o.expiry(), Hop: o.id(), Relay: o.pivot()})
		intros[o.id()] = true
		if o.expiry().After(last) {
			last = o.expiry()
		}
	}
	sealed, err := cc.Seal(t.c.Self, now)
	if err != nil { // an SRV record that is none
		p.state.Err = err
		t.notify()
		return
	}
	p.round++
	p.sealed, p.intros, p.changed = sealed, intros, false
	p.stored, p.asked = [netdb.Locations]bool{}, [netdb.Locations]bool{}
	p.checks, p.told, p.looked = [netdb.Locations]int{}, [netdb.Locations][]path.ID{}, [netdb.Locations][]path.ID{}
	p.state = Publication{At: now, Intros: len(paths), Expiry: last}
	t.count.Publications.Add(1)
	for _, s := range t.tags {
		if w := s.route.Load(); !s.outbound && w != nil && w.via.live(now) {
			s.owed = true
			t.inform(s, now)
		}
	}
	t.spread(paths)
	t.notify()
}

// inform tells a remote that called us our contact if it is owed. One that it knows already comes every 5 s at most, for it is large and what asks for it is small.
func (t *Table) inform(s *session, now time.Time) {
	p := &t.publish
	if !s.owed || p.sealed == nil || s.round == p.round && now.Sub(s.told) < publishSpacing {
		return
	}
	s.round, s.told, s.owed = p.round, now, false
	t.signal(s, methodContact, p.sealed)
}

// spread sends the present contact to the locations that have not confirmed it.
func (t *Table) spread(paths []onion) {
	p := &t.publish
	paths = shuffled(paths, netdb.Locations)
	for n := range netdb.Locations {
		if p.stored[n] {
			continue
		}
		t.tellLocation(n, paths[n%len(paths)])
	}
}

// tellLocation sends the present contact to one location.
func (t *Table) tellLocation(n int, over onion) {
	p := &t.publish
	p.asked[n] = true
	p.told[n] = append(p.told[n], over.id())
	round, sealed := p.round, p.sealed
	t.wg.Go(func() {
		body, err := over.request(t.ctx, netdb.MethodPublishCC, netdb.EncodePublishCC(sealed, n))
		if err == nil {
			err = netdb.DecodeStatus(body)
		}
		t.answered(round, n, over, err)
	})
}

// check looks for the contact at a location that confirmed it.
func (t *Table) check(round, n int) {
	blinded, err := t.self.Blind()
	if err != nil || !t.sleep(publishCheck+rand.N(2*publishCheck)) {
		return
	}
	t.lock()
	over, sealed := t.another(n), t.publish.sealed
	ok := over != nil && round == t.publish.round
	if ok {
		t.publish.looked[n] = append(t.publish.looked[n], over.id())
	}
	t.unlock()
	if !ok {
		return
	}
	body, err := over.request(t.ctx, netdb.MethodFindCC, netdb.EncodeFindCC(blinded, n))
	if err != nil {
		return // the relay that was asked may be gone; that says nothing
	}
	if found, err := netdb.DecodeFoundCC(body); err == nil && bytes.Equal(found, sealed) {
		return
	}
	t.lock()
	defer t.unlock()
	if over := t.another(n); over != nil && round == t.publish.round && !t.publish.asked[n] && !t.closed {
		t.count.Denied.Add(1)
		t.tellLocation(n, over)
	}
}

// another gives a path over which a location was not told of the present contact, if possible one over which it was not asked either; nil: there is none.
func (t *Table) another(n int) (other onion) {
	for _, o := range shuffled(t.entrance.paths(time.Now()), math.MaxInt) {
		if o.suspected() || slices.Contains(t.publish.told[n], o.id()) {
			continue
		}
		if other = o; !slices.Contains(t.publish.looked[n], o.id()) {
			break
		}
	}
	return other
}

// sleep waits, as long as the Table is not closed; false: it is.
func (t *Table) sleep(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-t.ctx.Done():
		return false
	}
}

// answered notes what became of the contact at one location. If the path died meanwhile another one may do better.
func (t *Table) answered(round, n int, over onion, err error) {
	t.lock()
	defer t.unlock()
	p := &t.publish
	if round != p.round || t.closed {
		return
	}
	p.asked[n], p.stored[n] = false, err == nil
	if err == nil && p.checks[n] < publishChecks {
		p.checks[n]++
		t.wg.Go(func() { t.check(round, n) })
	}
	p.state.Locations = 0
	for _, ok := range p.stored {
		if ok {
			p.state.Locations++
		}
	}
	switch {
	case err != nil && !over.live(time.Now()):
		if over := t.another(n); over != nil {
			t.tellLocation(n, over)
		}
	case err != nil:
		p.state.Err = err
		clock := errors.Is(err, errSlowClock) || errors.Is(err, errFastClock)
		if clock && !p.warned {
			p.warned = true
			t.log.Warn("a relay refuses our contact: this host's clock is wrong, or the relay's", "error", err)
		}
	case p.state.Locations == netdb.Locations:
		p.state.Err = nil
	}
	t.notify()
}

var (
	errSlowClock = &netdb.ReplyStatus{Text: netdb.StatusSlowClock}
	errFastClock = &netdb.ReplyStatus{Text: netdb.StatusFastClock}
)

func (t *Table) notify() {
	if t.c.Published != nil {
		state := t.publish.state
		t.later(func() { t.c.Published(state) })
	}
}

func all(done [netdb.Locations]bool) bool { return !slices.Contains(done[:], false) }

// shuffled gives up to n of the paths, in random order.
func shuffled(paths []onion, n int) []onion {
	paths = slices.Clone(paths)
	rand.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
	return paths[:min(n, len(paths))]
}
