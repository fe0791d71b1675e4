package session

import (
	"context"
	"errors"
	"slices"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/seal"
)

// Look-ups of client contacts (protocol 1 section 7.10): the four locations are asked at once, over up to four inbound paths. The first good answer is used, one signed later takes
// its place. A contact is signed, so one honest relay is enough; a denial is not, and a relay at the end of a path can deny what a location has. So before a contact is believed to be missing
// all locations are asked once more, each over another path, and then by witnesses. Where all four locations deny it, nobody finds it: the protocol knows no other place.
//
// Look-ups are made for whoever is on this host, and a web page can name thousands of clients that nobody has heard of. So places for look-ups and contacts are limited, some places are kept for remotes that are
// in use, and of the rest the name that was asked for last is served first: who waits for a live one asks again, and the crowd that waits does not. Where all places for contacts are
// taken by such names, the one that was asked for the longest ago gives way.

const (
	missingTime  = 15 * time.Second       // a remote without a contact is not looked up again before
	seekBackoff  = 990 * time.Millisecond // times the number of failures in a row
	seekMax      = 5 * time.Second
	seekSpacing  = time.Second // after a success
	seekSlow     = time.Second
	seekRounds   = 3
	seekAtOnce   = 32 // look-ups under way: four requests each, and a relay passes on 256 of one client at a time
	seekKept     = 8  // of these, for remotes that are in use: who has us look up many names does not keep them waiting
	missingVotes = 3  // locations that have nothing: the last one gets lastChance to have something
	lastChance   = time.Second
)

// contact is what is known of a client's contact. Under Table.ctl.
type contact struct {
	key      key.Public
	cc       *netdb.ClientContact // the one signed last; may have expired; nil: none yet
	at       time.Time            // when the network or the client last told it
	used     time.Time
	missing  time.Time // until then the network is believed to have none
	rounds   int       // look-ups under way
	began    time.Time // the last of them
	failures int
	next     time.Time // not before then it is looked up again
	asked    time.Time // when somebody wanted it at last
	waiters  []chan<- error
}

// contact finds or makes an entry. When there are too many the least recently used goes, else one that gives way; nil: there is none.
func (t *Table) contact(k key.Public, now time.Time) *contact {
	e := t.contacts[k]
	if e == nil {
		if len(t.contacts) >= t.c.Limits.Contacts {
			var old *contact
			for _, o := range t.contacts {
				if !t.wanted(o) && (old == nil || o.used.Before(old.used)) {
					old = o
				}
			}
			if old != nil {
				delete(t.contacts, old.key)
			} else if !t.giveWay(false) {
				return nil
			}
		}
		e = &contact{key: k, next: now, asked: now}
		t.contacts[k] = e
	}
	e.used = now
	return e
}

// wanted says whether somebody works with the entry.
func (t *Table) wanted(e *contact) bool {
	if e.rounds > 0 || len(e.waiters) > 0 {
		return true
	}
	r := t.remotes[key.Address{Key: e.key, Kind: key.Client}]
	return r != nil && r.call != nil
}

// giveWay makes room: of the names that were never found, one that is not being asked for now and that was asked for the longest ago is given up, those that were looked up in vain
// first. called: it must be one that is called. False: there is none.
func (t *Table) giveWay(called bool) bool {
	var out *contact
	for _, e := range t.contacts {
		switch r := t.remotes[key.Address{Key: e.key, Kind: key.Client}]; {
		case e.rounds > 0 || t.inUse(e) || !t.wanted(e) || called && (r == nil || r.call == nil):
		case out == nil || e.failures > 0 && out.failures == 0 || (e.failures > 0) == (out.failures > 0) && e.asked.Before(out.asked):
			out = e
		}
	}
	if out == nil {
		return false
	}
	delete(t.contacts, out.key)
	out.wake(ErrBusy)
	if r := t.remotes[key.Address{Key: out.key, Kind: key.Client}]; r != nil && r.call != nil {
		t.fail(r, ErrBusy)
		t.hangUp(r.call)
		t.prune(r)
	}
	return true
}

// wake ends the waiting for a contact; nil: look whether it is there.
func (e *contact) wake(err error) {
	for _, w := range e.waiters {
		w <- err
	}
	e.waiters = nil
}

// inUse says whether the remote is more than a name: it has been found before, or there is a session with it.
func (t *Table) inUse(e *contact) bool {
	r := t.remotes[key.Address{Key: e.key, Kind: key.Client}]
	return e.cc != nil || r != nil && len(r.sessions) > 0
}

// tendContacts forgets what is of no use any more.
func (t *Table) tendContacts(now time.Time) {
	for k, e := range t.contacts {
		if !t.wanted(e) && (e.cc == nil || e.cc.Expired(now)) && now.After(e.missing) {
			delete(t.contacts, k)
		}
	}
}

// seek starts a look-up unless one is on its way, or it is too early, or there is no place or path for it. One that takes long may be waiting for paths that are dead, so
// another one begins beside it, if there are places enough. False: none was started.
func (t *Table) seek(e *contact, now time.Time) (begun bool) {
	if e.rounds > 0 && now.Sub(e.began) < seekSlow || e.rounds >= seekRounds || now.Before(e.next) || t.closed {
		return false
	}
	places := seekAtOnce - e.rounds*seekKept
	if !t.inUse(e) {
		places -= seekKept
	}
	if t.seeking >= places {
		return false
	}
	paths := t.entrance.paths(now)
	if s := sound(paths); len(s) > 0 {
		paths = s
	}
	if len(paths) == 0 {
		return false
	}
	blinded, err := e.key.Blind()
	if err != nil {
		e.missing = now.Add(missingTime)
		return false
	}
	paths = shuffled(paths, netdb.Locations)
	e.rounds++
	t.seeking++
	e.began = now
	t.count.Lookups.Add(1)
	t.wg.Go(func() {
		good, missing := t.askAll(e, blinded, paths)
		if !good && missing && len(paths) > 1 {
			good, missing = t.askAll(e, blinded, append(paths[1:len(paths):len(paths)], paths[0]))
		}
		if !good && missing {
			if others := shuffled(t.witnesses(), netdb.Locations); len(others) > 0 {
				good, missing = t.askAll(e, blinded, others)
			}
		}
		t.sought(e, good, missing)
		t.lock()
		e.rounds--
		if t.seeking--; t.seeking >= seekAtOnce-seekKept-1 { // others may be waiting for their turn
			t.seekAll(time.Now())
		}
		t.unlock()
	})
	return true
}

// sound gives the paths that are not examined.
func sound(paths []onion) []onion { return slices.DeleteFunc(slices.Clone(paths), onion.suspected) }

// seekAll looks up whatever contact is missing: first what was not tried yet, of these what was asked for last, then what has waited the longest since it was tried.
func (t *Table) seekAll(now time.Time) {
	var missing []*contact
	for _, e := range t.contacts {
		if (e.cc == nil || len(e.waiters) > 0) && t.wanted(e) {
			missing = append(missing, e)
		}
	}
	slices.SortFunc(missing, func(a, b *contact) int {
		switch a0, b0 := a.failures == 0, b.failures == 0; {
		case a0 && b0:
			return b.asked.Compare(a.asked)
		case a0:
			return -1
		case b0:
			return 1
		}
		return a.next.Compare(b.next)
	})
	for _, e := range missing {
		t.seek(e, now)
	}
}

// askAll asks the locations, the first over the first path and so on, and says whether one had the contact, and whether one has none. When one has it, or all but one have
// none, it does not wait long for the rest.
func (t *Table) askAll(e *contact, blinded key.Public, paths []onion) (good, missing bool) {
	answers := make(chan error, netdb.Locations)
	ctx, cancel := context.WithCancel(t.ctx) // who is slow is not waited for: an answer may lie beyond a dead relay, and as long the next look-up would have no place
	defer cancel()
	for n := range netdb.Locations {
		p := paths[n%len(paths)]
		t.wg.Go(func() { answers <- t.ask(ctx, p, e, blinded, n) })
	}
	none := 0
	var hurry <-chan time.Time
	for range netdb.Locations {
		select {
		case err := <-answers:
			switch {
			case err == nil:
				good = true
			case errors.Is(err, netdb.ErrNotFound):
				none++
			}
		case <-hurry:
			return good, none > 0
		}
		if hurry == nil && (good || none == missingVotes) {
			hurry = time.After(lastChance)
		}
	}
	return good, none > 0
}

// ask sends one find_cc and takes a good answer at once.
func (t *Table) ask(ctx context.Context, p onion, e *contact, blinded key.Public, location int) error {
	body, err := p.request(ctx, netdb.MethodFindCC, netdb.EncodeFindCC(blinded, location))
	if err != nil {
		return err
	}
	sealed, err := netdb.DecodeFoundCC(body)
	if err != nil {
		return err
	}
	cc, err := netdb.OpenClientContact(sealed, e.key)
	if err != nil {
		return err
	}
	now := time.Now()
	if cc.Expired(now) {
		return netdb.ErrNotFound
	}
	t.lock()
	t.learn(e, cc, now)
	t.unlock()
	return nil
}

// learn takes a verified contact; an older one than we have changes nothing.
func (t *Table) learn(e *contact, cc *netdb.ClientContact, now time.Time) {
	e.at, e.failures, e.missing, e.next = now, 0, time.Time{}, now.Add(seekSpacing)
	if e.cc != nil && !e.cc.Expired(now) && !cc.SignedAt.After(e.cc.SignedAt) {
		return
	}
	e.cc = cc
	t.tell(e, now)
}

// sought ends a look-up.
func (t *Table) sought(e *contact, good, missing bool) {
	now := time.Now()
	t.lock()
	defer t.unlock()
	if good {
		return
	}
	e.failures++
	e.next = now.Add(min(time.Duration(e.failures)*seekBackoff, seekMax))
	if missing {
		e.missing = now.Add(missingTime)
	}
	t.tell(e, now)
}

// tell wakes up who waits for a contact: they look whether it is there.
func (t *Table) tell(e *contact, now time.Time) {
	if e.cc != nil || now.Before(e.missing) {
		e.wake(nil)
	}
	if r := t.remotes[key.Address{Key: e.key, Kind: key.Client}]; r != nil && r.call != nil {
		t.drive(r.call, now)
		t.prune(r)
	}
}

// told takes a contact that a remote sent us over the session with it.
func (t *Table) told(k key.Public, sealed []byte, now time.Time) {
	cc, err := netdb.OpenClientContact(sealed, k)
	if err != nil || cc.Expired(now) {
		t.count.DropParse.Add(1)
		return
	}
	t.lock()
	if !t.closed {
		if e := t.contact(k, now); e != nil {
			t.learn(e, cc, now)
		}
	}
	t.unlock()
}

// Contact returns a client's contact: the one that is known, or what the network says. It waits for paths if need be. Errors: ErrNotFound, ErrBusy, ErrClosed, ctx's.
func (t *Table) Contact(ctx context.Context, k key.Public) (*netdb.ClientContact, error) {
	if t.builder == nil || k.Check() != nil {
		return nil, ErrNotFound
	}
	for {
		now := time.Now()
		t.lock()
		if t.closed {
			t.unlock()
			return nil, ErrClosed
		}
		e := t.contact(k, now)
		if e == nil {
			t.unlock()
			return nil, ErrBusy
		}
		if e.cc != nil && !e.cc.Expired(now) {
			cc := e.cc
			t.unlock()
			return cc, nil
		}
		if now.Before(e.missing) {
			t.unlock()
			return nil, ErrNotFound
		}
		wait := make(chan error, 1)
		e.waiters = append(e.waiters, wait)
		e.asked = now
		t.seek(e, now)
		t.unlock()
		select {
		case err := <-wait:
			if err != nil {
				return nil, err
			}
			continue
		case <-ctx.Done():
		case <-t.ctx.Done():
		}
		t.lock()
		e.waiters = slices.DeleteFunc(e.waiters, func(w chan<- error) bool { return w == wait })
		t.unlock()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return nil, ErrClosed
	}
}

// entranceOwner is told of the inbound paths.
type entranceOwner struct{ t *Table }

func (o entranceOwner) changed() {
	t, now := o.t, time.Now()
	t.lock()
	defer t.unlock()
	if t.closed {
		return
	}
	t.later(t.c.Inbounds)
	t.tendPublication(now)
	t.seekAll(now)
}

func (o entranceOwner) datagram(via carrier, b *packet.Buffer) { o.t.datagram(via, b) }

func (o entranceOwner) controlled(via carrier, typ byte, msg []byte, n seal.Nonce) {
	o.t.controlled(via, typ, msg, n)
}
