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
// and a new one at most every 5 s (protocol README).
//
// A relay at the end of a path may confirm what it did not pass on, so a location that confirmed is asked for the contact a moment later, over another path,
// and told it once more over a third when it has none: a few times at most, for it may be the location that lies. As soon as one denies it, and for the first contact always, witnesses look, over whose
// paths it was not told: all of our own may end at liars, who would agree. Nobody could find us then until the first of these paths is replaced.
//
// Where all locations deny it to the last they are told again like those that did not confirm. Four liars in these places hide us for good, and all that can be done is to say so.

const (
	publishSpacing = 5 * time.Second // at least, between two contacts
	publishRetry   = time.Minute     // at most between two tries
	publishFirst   = 2 * time.Second
	publishLate    = 15 * time.Second
	publishLost    = 500 * time.Millisecond
	publishChecks  = 3
	publishCheck   = 500 * time.Millisecond // until a check, and up to three times as long
)

// Publication says how far our contact is known.
type Publication struct {
	At        time.Time // when the present contact was signed; zero: none was
	Intros    int       // in it
	Expiry    time.Time // of the intro that lasts longest
	Locations int       // of 4 that have confirmed the present contact, and not denied it ever after
	Err       error     // why one is missing; nil: none is, or it has not answered yet
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
	asked   [netdb.Locations]bool      // unanswered
	stored  [netdb.Locations]bool      // confirmed
	denied  [netdb.Locations]bool      // this contact or an earlier one to the last check, though confirmed, and no check has found one since
	doubt   bool                       // witnesses have to look
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
	case p.sealed != nil && (!all(p.stored) || p.state.Locations == 0) && !slices.Contains(p.asked[:], true) && !now.Before(p.again):
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
	p.doubt = p.round == 1 || slices.Contains(p.denied[:], true)
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
		if p.stored[n] && p.state.Locations > 0 {
			continue
		}
		if p.denied[n] {
			p.checks[n], p.told[n], p.looked[n] = 0, nil, nil
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
	call := t.publish.doubt
	t.unlock()
	if call {
		t.witnesses()
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
	found, err := netdb.DecodeFoundCC(body)
	t.lock()
	defer t.unlock()
	p := &t.publish
	if round != p.round || t.closed {
		return
	}
	switch {
	case err == nil && bytes.Equal(found, sealed):
		if p.denied[n] {
			p.denied[n] = false
			t.countLocations()
		}
		return
	case p.asked[n]:
		return
	}
	t.count.Denied.Add(1)
	p.doubt = true
	if over := t.another(n); over != nil && p.checks[n] < publishChecks {
		t.tellLocation(n, over)
		return
	}
	if !p.denied[n] {
		p.denied[n], p.state.Err = true, errDenied
		t.countLocations()
	}
}

// countLocations brings the state up to date and tells it.
func (t *Table) countLocations() {
	p := &t.publish
	p.state.Locations = 0
	for n, ok := range p.stored {
		if ok && !p.denied[n] {
			p.state.Locations++
		}
	}
	if p.state.Locations == netdb.Locations {
		p.state.Err = nil
	}
	t.notify()
}

// another gives a path over which a location was not told of the present contact, if possible one over which it was not asked either, and one of the witnesses if they are there; nil: there is none.
func (t *Table) another(n int) (other onion) {
	now := time.Now()
	paths := shuffled(t.entrance.paths(now), math.MaxInt)
	if t.witness.pool != nil {
		paths = append(shuffled(t.witness.pool.paths(now), math.MaxInt), paths...)
	}
	for _, o := range paths {
		if o.suspected() || slices.Contains(t.publish.told[n], o.id()) {
			continue
		}
		if !slices.Contains(t.publish.looked[n], o.id()) {
			return o
		}
		if other == nil {
			other = o
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
	defer t.countLocations()
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
	case p.denied[n]:
		p.state.Err = errDenied
	}
}

var (
	errDenied    = errors.New("session: relays have confirmed our contact and do not have it")
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
