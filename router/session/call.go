package session

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

const (
	initWait     = time.Second // an init without an accept is sent again after 1, 2, 4, 8, 16, 16 ... s, a fifth more or less
	initWaitMax  = 16 * time.Second
	grace        = 10 * time.Second        // an init's keys are kept so long after its accept, for another one of the same init
	acceptTries  = 16                      // accepts that are opened for one init
	quietUnsure  = 2500 * time.Millisecond // we send and nothing comes: see doubt
	quietMin     = 500 * time.Millisecond  // the same with a remote that was heard before: six round trips to the pivot, within these
	quietMax     = 5 * time.Second
	doubtPackets = 8                // without an answer, to a remote that answers pings, are strange
	unsureMax    = 32 * time.Second // the same again after twice as long, up to this
	sureMax      = 8 * time.Second
	widest       = 2           // paths more than usual, while nothing is heard
	least        = time.Minute // a detour must have so much left
	contactStale = 10 * time.Minute
	contactFresh = 30 * time.Second       // one that is older is used for a call, and looked up again at once
	looksAtOnce  = 15                     // a silent remote is looked up again and again, so often in a row,
	looksEvery   = 5 * time.Second        // and later once in so long, whatever it does
	insistEvery  = 500 * time.Millisecond // see insist
	insistTimes  = 8
	pathlessTime = time.Second // without any path, until the contact is looked up again
)

// call is the outbound side of a remote: its contact, the paths to it, and the session that we called for (protocol 4 section 3.2). Under Table.ctl.
//
//	seeking -> building -> calling -> established
//	                ^---------^------------/
//
// It has no state of its own: drive looks at what is there and does what comes next, whenever something changed and at every tick. It ends when it has no session
// any more and nobody has asked for one for 28 s, at session_close, and when the remote turns out not to exist.
type call struct {
	r     *remote
	since time.Time
	used  time.Time // last packet or caller that waited

	contact  *netdb.ClientContact // of a client
	looks    *rate.Limiter        // look-ups of a contact that we have
	telling  sync.Mutex           // held while the pool is told of it; taken before ctl
	pool     pool                 // set once
	path     onion                // the current path; nil: none
	pathless time.Time            // since when there is none; zero: there is one
	detour   onion                // a path that we took though the pool says another
	session  *session             // the latest; nil: none yet, or it ended
	try      *pending             // an init that is sent until it is accepted
	spare    *pending             // the init inside of path switches, for a remote that has forgotten the session

	inits    int // sent for try
	nextInit time.Time
	wait     time.Duration
	insists  int       // see Table.insist
	insisted time.Time // the last
	probe    probe

	doubted  time.Time     // when we last did something about the remote's silence
	doubts   int           // how often, since it was heard
	patience time.Duration // until the next time; only a message of the remote ends it, not an accept
	tried    []onion       // paths that were taken in this silence
	seen     []onion       // paths that were there when we last did something
}

// pending is an init of ours for which an accept may come.
type pending struct {
	caller
	tag   uint32
	old   bool // of the 1.0 handshake
	c     *call
	tries int
	until time.Time // zero: not accepted yet, and still sent; else the end of its grace
}

// caller is the calling half of a handshake, an initiator or an oldInitiator.
type caller interface {
	init(p path.ID) ([]byte, error)
	fits(p path.ID) bool
	wipe()
}

// offer gives the init to be sent on the current path: p, or another one in its place if there is none or it cannot be sent there, or is of the form that the
// remote does not take. An accept for the replaced one counts a while longer.
func (t *Table) offer(c *call, p *pending, now time.Time) *pending {
	old := t.speaksOld(c) && (c.session == nil || c.session.keys.old)
	if p != nil && p.old == old && p.fits(c.path.id()) {
		return p
	}
	if p != nil && p.until.IsZero() {
		p.until = now.Add(grace)
	}
	p = &pending{tag: t.newTag(), old: old, c: c}
	if old {
		p.caller = &oldInitiator{self: t.c.Self, remote: c.r.addr.Key, tag: p.tag}
	} else {
		p.caller = newInitiator(t.c.Self, c.r.addr.Key, p.tag)
	}
	t.pending[p.tag] = p
	return p
}

// speaksOld says whether the remote knows only the 1.0 handshake: its contact says so.
func (t *Table) speaksOld(c *call) bool {
	if c.r.addr.Kind == key.Relay {
		rc := t.c.RelayContact(c.r.addr.Key)
		return rc != nil && !rc.Handshake11()
	}
	return c.contact.Flags&netdb.FlagPFS == 0
}

// forget ends the wait for an accept.
func (t *Table) forget(tag uint32) {
	if p := t.pending[tag]; p != nil {
		p.wipe()
		delete(t.pending, tag)
	}
}

func (c *call) state() State {
	switch {
	case c.r.addr.Kind == key.Client && c.contact == nil:
		return Seeking
	case c.path == nil:
		return Building
	}
	return Calling
}

// dial starts a call, or says why it is of no use. drive must follow.
func (t *Table) dial(r *remote, now time.Time) error {
	switch {
	case t.builder == nil || r.addr.Key == t.self:
		return ErrUnreachable
	case r.addr.Key.Check() != nil:
		return ErrNotFound
	case r.addr.Kind == key.Relay:
		if t.c.RelayContact(r.addr.Key) == nil {
			return ErrUnreachable
		}
	default:
		if e := t.contacts[r.addr.Key]; e != nil && now.Before(e.missing) {
			return ErrNotFound
		}
	}
	if t.calls >= t.c.Limits.Calls && !t.giveWay(true) {
		return ErrBusy
	}
	t.calls++
	t.log.Debug("calling", "remote", r.addr)
	r.call = &call{r: r, since: now, used: now, looks: rate.NewLimiter(rate.Every(looksEvery), looksAtOnce)}
	return nil
}

// hangUp ends a call and the sessions that it had.
func (t *Table) hangUp(c *call) {
	now := time.Now()
	r := c.r
	if r.call != c {
		return
	}
	r.call = nil
	t.calls--
	if c.probe.timer != nil {
		c.probe.timer.Stop()
	}
	for tag, p := range t.pending {
		if p.c == c {
			t.forget(tag)
		}
	}
	for _, s := range slices.Clone(r.sessions) {
		if s.outbound {
			t.remove(s, now)
		}
	}
	if c.pool != nil {
		t.later(c.pool.close)
	}
}

// drive does what a call needs next.
func (t *Table) drive(c *call, now time.Time) {
	r := c.r
	if c.session == nil && len(r.queue) == 0 && len(r.waiters) == 0 && now.Sub(c.used) > idleCalled {
		t.hangUp(c)
		return
	}
	if r.addr.Kind == key.Client && !t.follow(c, now) {
		return
	}
	if c.pool == nil {
		owner := callOwner{t, c}
		if r.addr.Kind == key.Relay {
			c.pool = t.builder.toRelay(r.addr.Key, owner)
		} else {
			c.pool = t.builder.toClient(c.contact.Intros, owner)
		}
		pool := c.pool
		t.later(func() { pool.tick(now) })
	}
	if t.choose(c, now) {
		t.moved(c, now)
	}
	if c.path != nil {
		c.pathless = time.Time{}
	} else {
		if c.pathless.IsZero() {
			c.pathless = now
		}
		if now.Sub(c.pathless) >= pathlessTime { // perhaps no path can be built to where we believe the remote to be
			t.refresh(c, now)
		}
		return
	}
	if c.session == nil && c.try == nil {
		c.try = t.offer(c, nil, now)
		c.inits, c.wait, c.nextInit = 0, initWait, now
	}
	if c.try != nil && !now.Before(c.nextInit) {
		if c.inits > 0 {
			t.swerve(c, now)
		}
		t.sendInit(c, now)
	}
	if c.try != nil && c.inits > 1 {
		t.refresh(c, now)
	}
	if c.session != nil {
		t.insist(c, now)
		t.watch(c, now)
		t.doubt(c, now)
	}
}

// follow keeps a call's contact up to date; false: there is none yet, or the call has ended.
func (t *Table) follow(c *call, now time.Time) bool {
	e := t.contact(c.r.addr.Key, now)
	if e == nil {
		t.fail(c.r, ErrBusy)
		t.hangUp(c)
		return false
	}
	if e.cc != nil && e.cc != c.contact && !e.cc.Expired(now) {
		c.contact = e.cc
		if c.pool != nil {
			t.later(func() { t.redirect(c) })
		}
	}
	if c.contact == nil || c.contact.Expired(now) {
		if c.session == nil && now.Before(e.missing) {
			t.fail(c.r, ErrNotFound)
			t.hangUp(c)
			return false
		}
		t.seek(e, now)
	} else if age := now.Sub(e.at); age > contactStale || age > contactFresh && c.session == nil {
		t.seek(e, now)
	}
	return c.contact != nil
}

// redirect tells the pool where the remote is now. Without ctl; the latest contact is told last.
func (t *Table) redirect(c *call) {
	c.telling.Lock()
	defer c.telling.Unlock()
	t.lock()
	intros := c.contact.Intros
	t.unlock()
	c.pool.setIntros(intros)
	c.pool.tick(time.Now())
}

// refresh looks a client's contact up although we have one.
func (t *Table) refresh(c *call, now time.Time) {
	if c.r.addr.Kind != key.Client || c.looks.TokensAt(now) < 1 {
		return
	}
	if e := t.contact(c.r.addr.Key, now); e != nil && t.seek(e, now) {
		c.looks.AllowN(now, 1)
	}
}

// choose takes the path that the pool says (protocol 3 section 6.4), or keeps a detour while it is good. True: it is another one than before.
func (t *Table) choose(c *call, now time.Time) bool {
	next := c.detour
	if next == nil || !next.live(now) || next.expiry().Sub(now) < least {
		c.detour = nil
		next = c.pool.current(now)
	}
	return t.move(c, next)
}

// swerve takes another path although the present one looks good: it may not be, and is examined. All are tried before one is again, those first that meet the remote
// elsewhere than the ones that were tried, and those that are not examined themselves.
func (t *Table) swerve(c *call, now time.Time) bool {
	if c.path != nil {
		c.path.suspect()
	}
	others := slices.DeleteFunc(c.pool.paths(now), func(p onion) bool { return p == c.path || p.expiry().Sub(now) < least })
	if len(others) == 0 {
		return false
	}
	c.tried = append(slices.DeleteFunc(c.tried, func(p onion) bool { return p == nil || p == c.path || !p.live(now) }), c.path)
	if !slices.ContainsFunc(others, func(p onion) bool { return !slices.Contains(c.tried, p) }) {
		c.tried = []onion{c.path}
	}
	worth := make(map[onion]int, len(others))
	for _, p := range others {
		switch {
		case slices.Contains(c.tried, p):
			worth[p] = 4
		case c.r.addr.Kind == key.Client && slices.ContainsFunc(c.tried, func(o onion) bool { return o.aligned() == p.aligned() }):
			worth[p] = 2
		}
		if p.suspected() {
			worth[p]++
		}
	}
	rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	c.detour = slices.MinFunc(others, func(a, b onion) int { return worth[a] - worth[b] })
	return t.move(c, c.detour)
}

// move makes p the current path; false: it was so, or there is none.
func (t *Table) move(c *call, p onion) bool {
	if p == c.path {
		return false
	}
	c.path = p
	if p == nil {
		return false
	}
	w := &route{via: p, pivot: c.target(), since: t.at(time.Now())}
	for _, s := range c.r.sessions {
		if s.outbound {
			s.route.Store(w)
		}
	}
	return true
}

// target is the pivot id of messages on the current path: the remote's hop id there, or our own when the remote is the terminal relay.
func (c *call) target() path.ID {
	if c.r.addr.Kind == key.Relay {
		return c.path.id()
	}
	return c.path.aligned()
}

// moved tells the remote that we are on another path now.
func (t *Table) moved(c *call, now time.Time) {
	if c.session != nil {
		t.sendSwitch(c, now)
		t.repeat(c.session, c.session.route.Load(), now)
		t.advance(c.r, now)
	}
	if c.try != nil {
		t.sendInit(c, now)
	}
}

// message gives a session message without its path layers: body, tag, pivot id.
func message(body []byte, tag uint32, pivot *path.ID) []byte {
	msg := binary.BigEndian.AppendUint32(append(make([]byte, 0, len(body)+tagSize+pivotSize), body...), tag)
	if pivot != nil {
		msg = append(msg, pivot[:]...)
	}
	return msg
}

func (t *Table) sendInit(c *call, now time.Time) {
	c.try = t.offer(c, c.try, now)
	body, err := c.try.init(c.path.id())
	if err != nil {
		return // the remote's key was checked
	}
	typ := byte(path.TypeHandshake)
	if c.try.old {
		typ = path.TypeControl
	}
	c.inits++
	jitter := 0.8 + 0.4*rand.Float64()
	c.nextInit = now.Add(time.Duration(jitter * float64(c.wait)))
	c.wait = min(2*c.wait, initWaitMax)
	var n seal.Nonce
	t.nonces.draw(&n)
	pivot := c.target()
	t.count.InitsSent.Add(1)
	c.path.control(typ, message(body, 0, &pivot), n)
}

func (t *Table) sendSwitch(c *call, now time.Time) {
	c.spare = t.offer(c, c.spare, now)
	id := c.path.id()
	init, err := c.spare.init(id)
	if err != nil {
		return
	}
	ks := &c.session.keys
	var inner seal.Nonce
	t.nonce(c.session, &inner)
	n := ks.switchNonce(inner)
	pivot := c.target()
	t.count.SwitchesSent.Add(1)
	c.path.control(path.TypeHandshake, message(pathSwitch(ks, &n, id, init, c.spare.old), ks.peer, &pivot), n)
}

// affirm sends the accepted session's first message when there is no packet to send: a path switch to the path that it is on already, as a bare control message.
// The remote learns by it that we have the keys, and that we will be on this session.
func (t *Table) affirm(c *call) {
	if c.path != nil {
		t.signal(c.session, methodSwitch, switchParam(c.path.id()))
	}
}

// signal sends a control message of a session.
func (t *Table) signal(s *session, method string, param []byte) {
	w := s.route.Load()
	if w == nil {
		return
	}
	var n seal.Nonce
	t.nonce(s, &n)
	pivot := &w.pivot
	if w.bare {
		pivot = nil
	}
	w.via.control(path.TypeControl, message(sealControl(nil, &s.keys.out, &n, method, param), s.keys.peer, pivot), n)
}

// quietTime is how long an answer may take over a path before the remote counts as silent.
func quietTime(p onion) time.Duration {
	if p == nil || p.rtt() == 0 {
		return quietMax / 2
	}
	return min(max(quietMin, 6*p.rtt()), quietMax)
}

// doubt acts when we send and hear nothing: the paths are examined. A remote that never was heard gets a new init with a new tag; one that fell silent gets a path switch
// over another path if there is one, with the spare init in it. If that does not help its contact is looked up again, and paths are built to more of its
// introductions. All this is harmless to a remote that merely has nothing to say. The second time comes after as long (if it was heard before), the next after twice as
// long, and so on up to unsureMax or sureMax, as long as we send, but not before the path that was taken last has been used a little.
//
// That is while we send on a session that we called for. When we send on the remote's own it is oneSided that notices.
func (t *Table) doubt(c *call, now time.Time) {
	s := c.session
	asked, answered := s.asked.Load(), s.answered.Load()
	first, most := quietUnsure, unsureMax
	if s.sure.Load() {
		first, most = quietTime(c.path), sureMax
		if t.when(answered).After(c.doubted) && c.doubts > 0 {
			c.doubts, c.patience, c.tried, c.seen = 0, 0, nil, nil
			t.widen(c, 0)
		}
	}
	pinged := c.probe.tries >= 6 // in vain, over all paths; sooner it may be a queue that fills (TestNoNeedlessSwitch)
	if pinged {
		asked = max(asked, t.at(c.probe.began))
	}
	if cur := c.r.current.Load(); asked <= answered || cur != nil && !cur.outbound {
		return
	}
	last := t.when(asked)
	if c.probe.answers && c.doubts == 0 && !pinged { // it was there a moment ago, perhaps without anything to say; or watch acts
		strange := s.strange.Load()
		if strange < asked {
			return
		}
		last, first = t.when(strange), max(first, quietUnsure)
	}
	if c.doubts > 1 {
		t.refresh(c, now)
	}
	if c.doubted.After(last) {
		if !pinged && t.when(s.said.Load()).Before(c.doubted) {
			return
		}
		last = c.doubted
	}
	if w := s.route.Load(); !pinged && c.doubts > 0 && w != nil && (w.used.Load() == 0 || t.at(now)-w.used.Load() < int64(quietTime(c.path)/2)) {
		return // the path that we took then has not been tested yet
	}
	if now.Before(last.Add(min(max(first, c.patience), most))) {
		if s.sure.Load() && c.doubts > 0 && t.anew(c, now) {
			t.sendSwitch(c, now)
		}
		return
	}
	c.doubted = now
	c.doubts++
	c.patience = min(max(first, c.patience), most)
	if c.doubts > 1 || !s.sure.Load() {
		c.patience = min(2*c.patience, most)
	}
	if c.doubts > 1 || !s.sure.Load() {
		t.refresh(c, now)
		t.widen(c, widest)
	}
	if c.doubts > 1 && !s.keys.old && t.speaksOld(c) {
		t.remove(s, now) // it came back as a 1.0 one: what we send it does not understand
		return
	}
	t.swerve(c, now)
	c.seen = c.pool.paths(now)
	for _, p := range c.seen {
		p.suspect()
	}
	switch {
	case s.sure.Load():
		t.sendSwitch(c, now)
	case c.try == nil:
		c.try = t.offer(c, nil, now)
		c.inits, c.wait = 0, initWait
		t.sendInit(c, now)
	}
}

// anew takes a path that came since we last doubted: it is likelier to lead to the remote than those that were there.
func (t *Table) anew(c *call, now time.Time) bool {
	for _, p := range c.pool.paths(now) {
		if p == c.path || slices.Contains(c.seen, p) || p.expiry().Sub(now) < least {
			continue
		}
		c.seen, c.tried = append(c.seen, p), append(c.tried, p)
		c.detour = p
		return t.move(c, p)
	}
	return false
}

// widen has a call's pool build more paths than usual.
func (t *Table) widen(c *call, more int) {
	pool := c.pool
	t.later(func() { pool.widen(more) })
}

// accepted opens an accept that came to a tag of ours (protocol 4 section 3.5). The latest valid one counts.
func (t *Table) accepted(tag uint32, box []byte, now time.Time) {
	p := t.pending[tag]
	if p == nil || p.old {
		t.count.DropTag.Add(1)
		return
	}
	if p.tries++; p.tries > acceptTries {
		t.count.DropRate.Add(1)
		return
	}
	ks, err := p.caller.(*initiator).accept(box)
	if err != nil {
		t.count.DropForged.Add(1)
		return
	}
	t.establish(p, ks, nil, now)
}

// acceptedOld takes a control message to a tag that is no session's: it can only be the accept of a 1.0 init (section 3.7).
func (t *Table) acceptedOld(tag uint32, sealed []byte, n *seal.Nonce, now time.Time) {
	p := t.pending[tag]
	if p == nil || !p.old {
		t.count.DropTag.Add(1)
		return
	}
	ks, err := p.caller.(*oldInitiator).open(sealed, n)
	if err != nil {
		t.count.DropForged.Add(1)
		return
	}
	t.establish(p, ks, n, now)
}

// acceptedAgain takes the accept of a 1.0 init that was accepted before: the remote answered it twice, and may have kept the latter session only.
func (t *Table) acceptedAgain(tag uint32, param []byte, now time.Time) {
	p := t.pending[tag]
	if p == nil || !p.old {
		t.count.DropDirection.Add(1)
		return
	}
	ks, err := p.caller.(*oldInitiator).accept(param)
	if err != nil {
		t.count.DropParse.Add(1)
		return
	}
	t.establish(p, ks, nil, now)
}

// establish makes the session that an init of ours was accepted with, unless there is nothing new in it, or it is less than what there is. n is the nonce of the accept if
// that came under the session's key.
func (t *Table) establish(p *pending, ks keys, n *seal.Nonce, now time.Time) {
	c := p.c
	before := t.tags[p.tag]
	switch {
	case before != nil && before.keys == ks:
		t.count.DropReplayed.Add(1)
		return
	case ks.old && c.session != nil && !c.session.keys.old:
		t.count.DropType.Add(1)
		return
	}
	s := &session{r: c.r, own: p.tag, keys: ks, outbound: true, since: now}
	s.heard.Store(t.at(now))
	s.answered.Store(t.at(now))
	if c.path != nil {
		s.route.Store(&route{via: c.path, pivot: c.target(), since: t.at(now)})
	}
	if before != nil && before.keys.in == ks.in {
		s.inherit(before)
	}
	if n != nil {
		s.first(&s.signals, &s.packets, n)
	}
	t.add(s, now)
	t.supersede(s, now)
	t.count.AcceptsTaken.Add(1)
	c.session, c.used = s, now
	t.log.Debug("session established", "remote", c.r.addr, "after", now.Sub(c.since), "old", ks.old)
	// Other inits of ours are sent no more. An accept for one of them would still count: the remote may keep only what it was called for last.
	for _, done := range []*pending{p, c.try} {
		if done != nil && done.until.IsZero() {
			done.until = now.Add(grace)
		}
	}
	c.try = nil
	if c.spare == p {
		c.spare = nil
	}
	if len(c.r.queue) == 0 {
		t.affirm(c)
	}
	t.sendOn(s, now)
	t.advance(c.r, now)
	t.later(func() { t.c.Established(c.r.addr) })
}

// callOwner is told of the paths of a call.
type callOwner struct {
	t *Table
	c *call
}

func (o callOwner) changed() {
	o.t.lock()
	if o.c.r.call == o.c {
		o.t.drive(o.c, time.Now())
	}
	o.t.unlock()
}

func (o callOwner) datagram(via carrier, b *packet.Buffer) { o.t.datagram(via, b) }

func (o callOwner) controlled(via carrier, typ byte, msg []byte, n seal.Nonce) {
	o.t.controlled(via, typ, msg, n)
}
