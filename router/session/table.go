package session

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"lokinetd/router/fair"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
)

const (
	idleTime   = 30 * time.Second // a session without a message either way ends, without a word (protocol 4 section 3.8)
	idleCalled = 28 * time.Second // the same of one that we called for: before the remote forgets it, which would leave us without an answer
	queueLimit = 30               // packets that wait for a session
	queueTime  = 10 * time.Second // one that waited longer is given back
	unsureWait = time.Second      // how long we wait for the first message of a remote that called before we send to it
	crossing   = 2 * time.Second  // messages may be under way so long that were sent before their sender knew of a newer session
	remoteSets = 4                // sessions with one remote
)

// Why there is no session. Connect returns these, Config.Undeliverable is told them.
var (
	ErrNotFound    = errors.New("session: the remote has no contact")                              // it is offline, or its key is none
	ErrUnreachable = errors.New("session: the remote is out of reach")                             // a relay whose contact is not known; anybody, for a relay
	ErrTimeout     = errors.New("session: the remote does not answer")                             // a packet waited 10 s
	ErrBusy        = errors.New("session: too many calls at once")                                 // Limits.Calls, Limits.Contacts
	ErrClosed      = errors.New("session: the table is closed")                                    //
	ErrNotAllowed  = errors.New("session: no session with this client is allowed")                 // Config.Only said no
	errRefused     = errors.New("session: handshake: refused")                                     // Config.Accept said no
	errNoRoute     = errors.New("session: the remote's path to us is gone and it was not renewed") //
)

// Config says whose sessions a Table holds, and what becomes of them. Fields are read only.
type Config struct {
	Name  string // of the endpoint, for lists
	Self  *key.Secret
	Relay bool // a relay's endpoint: it is called and never calls, and has terminal hops in place of paths

	// Accept says whether a remote may call us. nil: a relay takes everybody, a client nobody. Who is refused gets no answer. It must not block. A remote that was
	// called by the 1.0 handshake can call others by it under the caller's key (see Info.Old).
	Accept func(remote key.Public) bool
	// Only says with which clients there may be sessions at all, whoever calls; Recheck when its answers change. nil: all. It must not block or call the Table.
	// Not proven is who calls by the 1.0 handshake (see Accept): a list of names means nothing there.
	Only func(remote key.Public, proven bool) bool
	// Deliver gets each IP packet that arrives, addresses zero, and owns b. It does not block.
	Deliver func(from key.Address, b *packet.Buffer)
	// Undeliverable gets packets that Send took but that cannot be sent, and owns b: for an ICMP error. nil: they are dropped.
	Undeliverable func(to key.Address, b *packet.Buffer, why error)

	// The rest is a client's.

	Paths        *path.Client
	Inbound      int // inbound paths wanted, which are also those for look-ups; default 4
	InboundHops  int // default 3
	Outbound     int // paths wanted for each remote that is called; default 2
	ClientHops   int // of a path to a client's pivot; default 3
	RelayHops    int // of a path to a relay; default 4
	RelayContact func(key.Public) *netdb.RelayContact

	Publish   bool // our contact is published, so that others can call
	Flags     uint8
	SRV       []netdb.SRV
	Published func(Publication) // told of each change of Table.Publication; calls may overlap
	Inbounds  func()            // told when an inbound path came or went; calls may overlap; nil: nobody is

	// Established is told of each session that is established, whoever called; calls may overlap. nil: nobody is.
	Established func(remote key.Address)

	Limits Limits
	Log    *slog.Logger
}

// Limits bound what others can make a Table hold or compute. Zero fields take the default.
type Limits struct {
	Sessions int // inbound ones; default 4,096 (each 1 to 130 KiB, by its traffic)
	Unsure   int // those among them of remotes that were not heard again after their init; default 256, of which a quarter over one path
	Calls    int // remotes that we call or have called; default 1,024
	// Handshakes is how many inits a second are opened, which costs 0.3 ms each and 0.3 ms more when it is answered; four times as many at once. Half of them may come
	// over one path. Default 100.
	Handshakes int
	Contacts   int // client contacts that are looked up or kept; default 1,024
}

func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		v   *int
		def int
	}{{&l.Sessions, 4096}, {&l.Unsure, 256}, {&l.Calls, 1024}, {&l.Handshakes, 100}, {&l.Contacts, 1024}} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	return l
}

// Table holds the sessions of one endpoint. Safe for concurrent use. Its owner calls Tick every 250 ms and, at last, Close, and before that nothing of Config.Paths is
// closed. A client's inbound paths belong to it: Config.Paths builds them from the next tick on.
//
// # Locks
//
// ctl serialises all but packets: handshakes, calls, contacts, timers. It is held while keys are computed (0.5 ms at most) and while messages are handed to a
// path, never while anything waits, a callback of Config but Only is called, or a pool is told to do something: such things are put on the list after,
// which runs when ctl is free again. mu guards the two maps that packets are looked up in: read with either lock held, written with both.
type Table struct {
	c       Config
	log     *slog.Logger
	self    key.Public
	epoch   time.Time // shortly before the Table was made
	builder builder
	nonces  nonces
	count   counters
	gate    atomic.Pointer[fair.Meter[path.ID]] // inits that are opened
	back    *rate.Limiter                       // calls of ours to who called us and fell silent

	ctx    context.Context // of look-ups and publications
	cancel context.CancelFunc
	wg     sync.WaitGroup

	ctl      sync.Mutex
	after    []func()
	closed   bool
	replaces bool                // see FollowReference
	pending  map[uint32]*pending // inits of ours that an accept may come for, by own tag
	oldInits replay              // the nonces of the 1.0 inits that were answered
	calls    int
	contacts map[key.Public]*contact
	seeking  int  // look-ups under way
	entrance pool // a client's inbound paths; never changes
	witness  witnesses
	publish  publisher

	mu      sync.RWMutex
	remotes map[key.Address]*remote
	tags    map[uint32]*session // by own tag
}

// remote is all that there is with one remote address. But for current it belongs to ctl.
//
// Both sides may call at once, a remote may restart, an accept may get lost: so there can be several sessions with it, and messages are taken on all of them. One
// is sent on (protocol/README decision 9):
//
//   - the one on which the peer's last authentic message came; an accept is one, for who accepts has the keys;
//   - an init is none, for it may be an old one: what a remote called for is not sent on until a message came on it, or a second passed and there
//     is nothing else;
//   - among equals the one initiated by the smaller key.
type remote struct {
	addr    key.Address
	current atomic.Pointer[session] // what is sent on; nil: nothing yet

	sessions []*session
	call     *call // nil: we do not call it
	queue    []queued
	waiters  []chan<- error
	retry    time.Time // not before then we call a remote that called us and fell silent
	examined int64     // the session.asked for which the path was examined
}

type queued struct {
	b     *packet.Buffer
	proto uint8
	since time.Time
}

// NewTable makes a Table. It starts nothing.
func NewTable(c Config) *Table {
	t := newTable(c)
	if !c.Relay {
		t.open(clientPaths{&t.c})
	}
	return t
}

func newTable(c Config) *Table {
	for _, d := range []struct {
		v   *int
		def int
	}{{&c.Inbound, 4}, {&c.InboundHops, 3}, {&c.Outbound, 2}, {&c.ClientHops, 3}, {&c.RelayHops, 4}} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	c.Limits = c.Limits.withDefaults()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Accept == nil && c.Relay {
		c.Accept = func(key.Public) bool { return true }
	}
	if accept, only := c.Accept, c.Only; accept != nil && only != nil {
		c.Accept = func(remote key.Public) bool { return only(remote, true) && accept(remote) }
	}
	if c.RelayContact == nil {
		c.RelayContact = func(key.Public) *netdb.RelayContact { return nil }
	}
	if c.Deliver == nil {
		c.Deliver = func(_ key.Address, b *packet.Buffer) { b.Release() }
	}
	if c.Established == nil {
		c.Established = func(key.Address) {}
	}
	if c.Inbounds == nil {
		c.Inbounds = func() {}
	}
	if c.Undeliverable == nil {
		c.Undeliverable = func(_ key.Address, b *packet.Buffer, _ error) { b.Release() }
	}
	t := &Table{
		c: c, log: c.Log, self: c.Self.Public(), epoch: time.Now().Add(-time.Second), nonces: newNonces(),
		pending: make(map[uint32]*pending), contacts: make(map[key.Public]*contact),
		remotes: make(map[key.Address]*remote), tags: make(map[uint32]*session),
	}
	t.gate.Store(newGate(c.Limits.Handshakes))
	t.back = rate.NewLimiter(rate.Every(callBackEvery), callBacks)
	t.oldInits.max = oldInitLines
	t.publish.flags, t.publish.srv = c.Flags, c.SRV
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// open gives a client's Table its paths.
func (t *Table) open(b builder) {
	t.builder = b
	t.entrance = b.inbound(entranceOwner{t})
}

func (t *Table) lock() { t.ctl.Lock() }

// unlock frees ctl and does what had to wait for that.
func (t *Table) unlock() {
	after := t.after
	t.after = nil
	t.ctl.Unlock()
	for _, f := range after {
		f()
	}
}

// later does f once ctl is free.
func (t *Table) later(f func()) { t.after = append(t.after, f) }

// Tick does what is due. Call it every 250 ms.
func (t *Table) Tick(now time.Time) {
	t.lock()
	defer t.unlock()
	if t.closed {
		return
	}
	t.gate.Load().Sweep(now)
	for tag, p := range t.pending {
		if !p.until.IsZero() && now.After(p.until) {
			t.forget(tag)
		}
	}
	t.seekAll(now)
	for _, r := range t.remotes {
		t.tend(r, now)
	}
	t.tendContacts(now)
	t.tendWitnesses(now)
	t.tendPublication(now)
}

// at is a time as the data plane notes it, in nanoseconds, never 0. It follows the monotonic clock: when somebody sets the host's, no session ends by it.
func (t *Table) at(now time.Time) int64 { return int64(now.Sub(t.epoch)) }

// when undoes at; the zero time for 0.
func (t *Table) when(at int64) time.Time {
	if at == 0 {
		return time.Time{}
	}
	return t.epoch.Add(time.Duration(at))
}

// lastHeard is when the remote of a session last was there, its init included.
func (t *Table) lastHeard(s *session) int64 { return max(s.heard.Load(), t.at(s.since)) }

// tend does what is due with one remote.
func (t *Table) tend(r *remote, now time.Time) {
	for _, s := range slices.Clone(r.sessions) {
		last := t.lastHeard(s)
		if s.outbound || s.sure.Load() {
			last = max(last, s.said.Load())
		}
		idle := idleTime
		if s.outbound {
			idle = idleCalled
		}
		if t.at(now)-last > int64(idle) {
			t.log.Debug("session idle", "remote", r.addr, "called", s.outbound)
			t.remove(s, now)
			continue
		}
		s.kept.forget(t.at(now))
		t.inform(s, now)
	}
	t.advance(r, now)
	for len(r.queue) > 0 && now.Sub(r.queue[0].since) > queueTime {
		t.giveBack(r.addr, r.queue[0].b, ErrTimeout)
		r.queue = r.queue[1:]
	}
	silent := t.oneSided(r, now)
	switch {
	case r.call != nil:
		if s := r.call.session; silent && s != nil && s.usable(now) {
			t.sendOn(s, now)
			t.sendSwitch(r.call, now)
		}
		t.drive(r.call, now)
	case len(r.queue) > 0 || len(r.waiters) > 0:
		if _, err := t.reach(r.addr, now); err != nil {
			t.fail(r, err)
		} else if r.call != nil {
			t.drive(r.call, now)
		}
	case silent && now.After(r.retry) && t.back.AllowN(now, 1):
		r.retry = now.Add(time.Minute)
		if t.dial(r, now) == nil {
			t.drive(r.call, now)
		}
	}
	t.prune(r)
}

// Identities cost nothing, and each remote that calls us and falls silent names relays to which we build paths then: as many at once, and one more each time.
const (
	callBacks     = 16
	callBackEvery = 5 * time.Second
)

// oneSided says whether a remote that called us is sent to without a word of it, for twice as long as an answer may take, or without any word ever: it
// may have lost the session, or its path, or the init was an old one, and we could not notice otherwise. Packets go on as before while we call it, or on a session that we called for if there
// is one. Before that our path on which it called is examined.
func (t *Table) oneSided(r *remote, now time.Time) bool {
	s := r.current.Load()
	if s == nil || s.outbound || t.c.Relay {
		return false
	}
	if !s.sure.Load() {
		return s.said.Load() != 0
	}
	asked := s.asked.Load()
	if asked <= s.answered.Load() {
		return false
	}
	p, _ := s.route.Load().via.(onion)
	wait := now.Sub(t.when(asked))
	if wait > probeQuiet && asked != r.examined && p != nil {
		r.examined = asked
		p.suspect()
	}
	return wait > 2*quietTime(p)
}

// prune forgets a remote of which nothing is left.
func (t *Table) prune(r *remote) {
	if len(r.sessions) == 0 && r.call == nil && len(r.queue) == 0 && len(r.waiters) == 0 && t.remotes[r.addr] == r {
		t.mu.Lock()
		delete(t.remotes, r.addr)
		t.mu.Unlock()
	}
}

// remote finds or makes what there is with a remote.
func (t *Table) remote(addr key.Address) *remote {
	r := t.remotes[addr]
	if r == nil {
		r = &remote{addr: addr}
		t.mu.Lock()
		t.remotes[addr] = r
		t.mu.Unlock()
	}
	return r
}

// newTag draws an own tag.
func (t *Table) newTag() uint32 {
	for {
		tag := rand.Uint32()
		if tag != 0 && t.tags[tag] == nil && t.pending[tag] == nil {
			return tag
		}
	}
}

// add makes a session known under its own tag; one that had the tag before is replaced.
func (t *Table) add(s *session, now time.Time) {
	if old := t.tags[s.own]; old != nil {
		t.remove(old, now)
	}
	s.signals.max = signalLines
	s.r.sessions = append(s.r.sessions, s)
	t.mu.Lock()
	t.tags[s.own] = s
	t.mu.Unlock()
}

// remove forgets a session.
func (t *Table) remove(s *session, now time.Time) {
	r := s.r
	r.sessions = slices.DeleteFunc(r.sessions, func(o *session) bool { return o == s })
	t.mu.Lock()
	delete(t.tags, s.own)
	t.mu.Unlock()
	if r.current.Load() == s {
		r.current.Store(t.best(r, now))
	}
	if c := r.call; c != nil && c.session == s {
		c.session = nil
		for _, o := range r.sessions {
			if o.outbound && (c.session == nil || o.since.After(c.session.since)) {
				c.session = o
			}
		}
	}
}

// usable says whether packets may be sent on s.
func (s *session) usable(now time.Time) bool {
	w := s.route.Load()
	return w != nil && w.via.live(now) && (s.outbound || s.sure.Load() || now.Sub(s.since) >= unsureWait)
}

// best gives the session to send on when the present one is gone, or nil.
func (t *Table) best(r *remote, now time.Time) *session {
	var best *session
	for _, s := range r.sessions {
		if s.usable(now) && (best == nil || t.before(s, best)) {
			best = s
		}
	}
	return best
}

func (t *Table) before(a, b *session) bool {
	if ha, hb := a.heard.Load(), b.heard.Load(); ha != hb {
		return ha > hb
	}
	return a.initiator(t.self).Compare(b.initiator(t.self)) < 0
}

// stays says whether we go on sending on the session cur although a message came on another one, s.
//
// For two seconds after the accept of a session that we called for: it shows that the remote has cur, also if the remote keeps only what it was called for last;
// what comes then on a session that the remote called for was probably sent before.
//
// And for two seconds after every message on the one of the two that the smaller key called for: without that, two nodes which both called would follow each other to
// and fro for as long as their messages cross.
func (t *Table) stays(cur, s *session, now time.Time) bool {
	switch {
	case !cur.usable(now):
		return false
	case cur.outbound && !s.outbound && t.at(now)-t.at(cur.since) < int64(crossing):
		return true
	}
	return cur.outbound != s.outbound && cur.initiator(t.self).Compare(s.initiator(t.self)) < 0 && t.at(now)-cur.heard.Load() < int64(crossing)
}

// insist brings two nodes that both called to the session of the smaller key, whose side this is: while the remote speaks on its own session, ours is affirmed. The
// remote follows as soon as its session is older than two seconds (stays) and says so (proven), and we follow it. Nothing is lost meanwhile: packets go where the remote spoke
// last. A remote that has lost our session is told in vain, a few times.
func (t *Table) insist(c *call, now time.Time) {
	s := c.session
	if s == nil || !s.usable(now) || c.r.addr.Kind != key.Client || t.self.Compare(c.r.addr.Key) > 0 {
		return
	}
	heard := s.heard.Load()
	if !slices.ContainsFunc(c.r.sessions, func(o *session) bool { return !o.outbound && o.heard.Load() > heard }) {
		return
	}
	if t.when(heard).After(c.insisted) {
		c.insists = 0
	}
	if c.insists < insistTimes && now.Sub(c.insisted) >= insistEvery {
		c.insists++
		c.insisted = now
		t.affirm(c)
	}
}

// proven: an authentic message came on s.
func (t *Table) proven(s *session, now time.Time) {
	if t.tags[s.own] != s {
		return
	}
	r := s.r
	s.sure.Store(true)
	s.accept = nil
	t.supersede(s, now)
	if cur := r.current.Load(); cur == nil || cur != s && !t.stays(cur, s, now) {
		t.sendOn(s, now)
		if cur != nil && cur.outbound && !s.outbound && t.publish.sealed != nil {
			t.signal(s, methodContact, t.publish.sealed) // any word tells the remote that we are here now, even if we have nothing to send for long
		}
	}
	t.advance(r, now)
}

// supersede ends what a remote called for in the 1.0 form when it has shown that it knows 1.1: somebody else may have called in its name (handshake10.go).
func (t *Table) supersede(s *session, now time.Time) {
	if s.keys.old {
		return
	}
	for _, o := range slices.Clone(s.r.sessions) {
		if o.keys.old && !o.outbound {
			t.remove(o, now)
		}
	}
}

// sendOn makes s what is sent on, after what waited.
func (t *Table) sendOn(s *session, now time.Time) {
	t.flush(s, now)
	s.r.current.Store(s)
}

// advance ends the waiting of packets and callers if there is something to send on.
func (t *Table) advance(r *remote, now time.Time) {
	if len(r.queue) == 0 && len(r.waiters) == 0 && r.current.Load() != nil {
		return
	}
	s := r.current.Load()
	if s == nil || !s.usable(now) {
		if s = t.best(r, now); s == nil {
			return
		}
	}
	t.sendOn(s, now)
	for _, w := range r.waiters {
		w <- nil
	}
	r.waiters = nil
}

// flush sends on s what waited.
func (t *Table) flush(s *session, now time.Time) {
	w := s.route.Load()
	if w == nil || !w.via.live(now) {
		return
	}
	for _, q := range s.r.queue {
		t.transmit(s, w, q.b, q.proto, now)
	}
	s.r.queue = nil
}

// hold is the slow part of Send: there is nothing to send on, or its route is dead.
func (t *Table) hold(to key.Address, b *packet.Buffer, proto uint8, now time.Time) bool {
	t.lock()
	defer t.unlock()
	r, err := t.reach(to, now)
	if err != nil {
		t.giveBack(to, b, err)
		return false
	}
	if len(r.queue) == queueLimit {
		t.count.DropQueue.Add(1)
		r.queue[0].b.Release()
		r.queue = slices.Delete(r.queue, 0, 1)
	}
	r.queue = append(r.queue, queued{b, proto, now})
	t.advance(r, now)
	if r.call != nil {
		r.call.used = now
		t.drive(r.call, now)
	}
	return true
}

// reach finds a remote with which there is a session, or may soon be one: if need be, by calling it.
func (t *Table) reach(to key.Address, now time.Time) (*remote, error) {
	if t.closed {
		return nil, ErrClosed
	}
	if !t.allowed(to, true) {
		return nil, ErrNotAllowed
	}
	r := t.remotes[to]
	if r != nil {
		if r.call != nil || t.best(r, now) != nil {
			return r, nil
		}
		for _, s := range r.sessions {
			if w := s.route.Load(); !s.sure.Load() && w != nil && w.via.live(now) {
				return r, nil // it called us just now
			}
		}
		if t.c.Relay && len(r.sessions) > 0 {
			t.count.DropRoute.Add(1)
			return nil, errNoRoute
		}
	}
	if r == nil {
		r = t.remote(to)
	}
	err := t.dial(r, now)
	if err != nil {
		t.prune(r)
		return nil, err
	}
	return r, nil
}

// giveBack gives a packet to Config.Undeliverable.
func (t *Table) giveBack(to key.Address, b *packet.Buffer, why error) {
	t.count.DropUnreachable.Add(1)
	t.later(func() { t.c.Undeliverable(to, b, why) })
}

// fail ends the waiting of packets and callers without a session.
func (t *Table) fail(r *remote, why error) {
	for _, q := range r.queue {
		t.giveBack(r.addr, q.b, why)
	}
	r.queue = nil
	for _, w := range r.waiters {
		w <- why
	}
	r.waiters = nil
}

// Connect waits until there is a session with a remote, and starts one if need be. Errors: ErrNotFound, ErrUnreachable, ErrBusy, ErrClosed, ctx's.
// A remote that does not answer is called for as long as somebody waits.
func (t *Table) Connect(ctx context.Context, to key.Address) error {
	now := time.Now()
	t.lock()
	r, err := t.reach(to, now)
	if err != nil {
		t.unlock()
		return err
	}
	if e := t.contacts[to.Key]; e != nil {
		e.asked = now
	}
	wait := make(chan error, 1)
	r.waiters = append(r.waiters, wait)
	t.advance(r, now)
	if r.call != nil {
		r.call.used = now
		t.drive(r.call, now)
	}
	t.unlock()
	select {
	case err := <-wait:
		return err
	case <-ctx.Done():
	}
	t.lock()
	r.waiters = slices.DeleteFunc(r.waiters, func(w chan<- error) bool { return w == wait })
	t.prune(r)
	t.unlock()
	return ctx.Err()
}

// Close says good-bye on every session, gives up all paths and returns when all look-ups have ended. Later calls of any method do nothing.
func (t *Table) Close() {
	now := time.Now()
	t.lock()
	if t.closed {
		t.unlock()
		return
	}
	t.closed = true
	for _, r := range t.remotes {
		t.dismiss(r, ErrClosed, now)
	}
	if t.entrance != nil {
		t.later(t.entrance.close)
		t.dismissWitnesses()
	}
	t.cancel()
	t.unlock()
	t.wg.Wait()
}

// dismiss says good-bye to a remote and forgets it.
func (t *Table) dismiss(r *remote, why error, now time.Time) {
	t.fail(r, why)
	for _, s := range slices.Clone(r.sessions) {
		t.signal(s, methodClose, nil)
		t.remove(s, now)
	}
	if r.call != nil {
		t.hangUp(r.call)
	}
	t.prune(r)
}

// State is how far a session has come.
type State string

const (
	Seeking     State = "seeking"     // the remote's contact is looked up
	Building    State = "building"    // a path to it is built
	Calling     State = "calling"     // the init is sent
	Established State = "established" //
	Answered    State = "answered"    // it called; nothing came since
)

// Info is one session, or one call that is none yet.
type Info struct {
	Remote  key.Address
	Inbound bool // the remote called
	State   State
	Current bool // packets to the remote go here
	Old     bool // by the 1.0 handshake: one key for both directions, which is not forward secret
	Since   time.Time
	Heard   time.Time // last authentic message of the remote; zero: none
	Said    time.Time // last packet of ours; zero: none

	PacketsIn, BytesIn, PacketsOut, BytesOut uint64

	Hops       []key.Public // of our path, the edge first; none at a relay, or while there is none
	PathExpiry time.Time
	Queued     int // packets that wait
}

// List returns all sessions, in order of their remotes.
func (t *Table) List() []Info {
	t.lock()
	defer t.unlock()
	var list []Info
	for _, r := range t.remotes {
		list = t.infos(list, r)
	}
	slices.SortStableFunc(list, func(a, b Info) int { return a.Remote.Key.Compare(b.Remote.Key) })
	return list
}

// With returns the sessions with one remote.
func (t *Table) With(remote key.Address) []Info {
	t.lock()
	defer t.unlock()
	if r := t.remotes[remote]; r != nil {
		return t.infos(nil, r)
	}
	return nil
}

// infos appends the sessions with a remote; the caller has the lock.
func (t *Table) infos(list []Info, r *remote) []Info {
	current := r.current.Load()
	for _, s := range r.sessions {
		i := Info{
			Remote: r.addr, Inbound: !s.outbound, State: Established, Current: s == current, Old: s.keys.old, Since: s.since,
			Heard: t.when(s.heard.Load()), Said: t.when(s.said.Load()),
			PacketsIn: s.packetsIn.Load(), BytesIn: s.bytesIn.Load(), PacketsOut: s.packetsOut.Load(), BytesOut: s.bytesOut.Load(),
		}
		if !s.outbound && !s.sure.Load() {
			i.State = Answered
		}
		if w := s.route.Load(); w != nil {
			if p, ok := w.via.(onion); ok {
				i.Hops, i.PathExpiry = p.hops(), p.expiry()
			}
		}
		list = append(list, i)
	}
	if c := r.call; c != nil && c.session == nil {
		i := Info{Remote: r.addr, State: c.state(), Since: c.since, Queued: len(r.queue)}
		if c.path != nil {
			i.Hops, i.PathExpiry = c.path.hops(), c.path.expiry()
		}
		list = append(list, i)
	}
	return list
}
