package path

import (
	"container/heap"
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// Relay is the relay's side of all paths through one relay: the transit hops and what passes them. Safe for concurrent use; many
// goroutines may bring datagrams at once. It answers and forwards on its own; its owner calls Tick every 250 ms, reports closed
// connections, and calls Close.
type Relay struct {
	sec    *key.Secret
	self   key.Public
	mesh   Mesh
	local  Local
	limits Limits
	log    *slog.Logger
	count  relayCounters
	table  table

	throttle *throttle // nil: no bound

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	due      dueHeap // all hops, reserved ones too
	accounts map[neighbour]*account
	frames   usedFrames
	builds   int // waiting for the next hop, in all
	requests int
	bytes    int // of their bodies
	swept    time.Time
}

// Local is what lies behind the terminal hops of a relay. No method may block.
type Local interface {
	// PathRequest is a request of the client of the path that ends here as from (protocol 3 section 4.3), path_ping apart, which never comes here. body is the callee's. reply may be called at
	// most once, later and from any goroutine, or never.
	PathRequest(from ID, method string, body []byte, reply func(body []byte))
	// SessionControl is a session message for this relay: msg, which is the callee's, is body and 4-byte tag; typ is TypeControl or TypeHandshake.
	SessionControl(t *Terminal, typ byte, msg []byte, nonce [24]byte)
	// SessionDatagram is a session datagram for this relay: Data, at least 4 bytes, is body and tag, Nonce the message nonce. The callee owns b.
	SessionDatagram(t *Terminal, b *packet.Buffer)
}

// NewRelay makes the relay's side for the identity sec. A nil log discards.
func NewRelay(sec *key.Secret, mesh Mesh, local Local, limits Limits, log *slog.Logger) *Relay {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Relay{
		sec: sec, self: sec.Public(), mesh: mesh, local: local, limits: limits.withDefaults(), log: log,
		accounts: make(map[neighbour]*account),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.table.init()
	if r.limits.Rate > 0 {
		r.throttle = newThrottle(r.limits.Rate, r.resume, func(n uint64) { r.count.DroppedRate.Add(n) })
	}
	return r
}

// Close forgets all hops and returns when all requests that were being forwarded have ended. What comes afterwards is refused or dropped.
func (r *Relay) Close() {
	r.mu.Lock()
	r.closed = true
	for len(r.due) > 0 {
		r.drop(r.due[0])
	}
	r.mu.Unlock()
	if r.throttle != nil {
		r.throttle.close()
	}
	r.cancel()
	r.wg.Wait()
}

// HandleRequest takes a request that a neighbour sent: path_build, path_control or session_control; false means that it is of another name. fromRelay is
// zero for a client's connection. body becomes the relay's, which changes it. reply is called at most once, perhaps later and from another
// goroutine, or never; fail makes it an error reply. A build costs about 0.15 ms here; nothing else takes long.
func (r *Relay) HandleRequest(from Link, fromRelay key.Public, name string, body []byte, reply func(body []byte, fail bool)) bool {
	// A relay is itself, over whichever connection; a client is its connection (section 2.2).
	down := neighbour{relay: fromRelay}
	if fromRelay.IsZero() {
		down.link = from
	}
	switch name {
	case nameBuild:
		r.build(down, body, reply)
	case nameControl:
		r.control(down, body, reply)
	case nameSession:
		r.session(body)
	default:
		return false
	}
	return true
}

// LinkClosed removes the hops of a client's connection and ends what waits on its behalf. (Other clients may dial
// again: their old paths would answer pings but deliver nothing, section 5.6.) For a relay's connection there is nothing to do.
func (r *Relay) LinkClosed(l Link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := neighbour{link: l}
	a := r.accounts[n]
	if a == nil {
		return
	}
	for h := range a.hops {
		r.drop(h)
	}
	a.cancel()
	delete(r.accounts, n)
}

// Tick removes expired hops. Call it every 250 ms (section 5.4).
func (r *Relay) Tick(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.due) > 0 && !now.Before(r.due[0].expiry) {
		r.count.Expired.Add(1)
		r.drop(r.due[0])
	}
	if now.Sub(r.swept) < idleAccount {
		return
	}
	r.swept = now
	for n, a := range r.accounts {
		if len(a.hops) == 0 && a.builds == 0 && a.requests == 0 && now.Sub(a.used) >= idleAccount {
			a.cancel()
			delete(r.accounts, n)
		}
	}
}

// A build, step by step (section 2.6):
//
//  1. the neighbour has not sent too many, and this one not before
//  2. length, frame, key agreement, inner record, ids, lifetime: openBuild in build.go
//  3. ids not in use, and the hop stored under them: live at the terminal, which replies OK
//  4. the rest of the frames to the next relay, with 10 s for its answer
//  5. OK: the hop becomes live, reply OK; an error: passed on verbatim; silence: silence
func (r *Relay) build(from neighbour, body []byte, reply func([]byte, bool)) {
	now := time.Now()
	refuse := func(text string) {
		r.count.BuildsRefused.Add(1)
		r.log.Debug("build refused", "why", text)
		reply(status(text), true)
	}
	mark, text := r.paced(from, body, now)
	if text != "" {
		refuse(text)
		return
	}
	rec, text := openBuild(r.sec, r.self, body)
	if text != "" {
		refuse(text)
		return
	}
	h := &hop{
		relay: r, rx: rec.rx, tx: rec.tx, up: rec.next, down: from, key: rec.hop,
		expiry: now.Add(time.Duration(rec.lifetime) * time.Second),
	}
	ctx, text := r.store(h, mark, now)
	if text != "" {
		refuse(text)
		return
	}
	if rec.terminal {
		r.count.Builds.Add(1)
		reply(status(textOK), false)
		return
	}
	var last [frameSize]byte
	rand.Read(last[:])
	passBuild(body, last[:], &rec)
	// store has counted the goroutine in r.wg and the request in the limits; settle undoes the latter.
	go func() {
		defer r.wg.Done()
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		_, err := r.mesh.Request(ctx, h.up, nameBuild, body)
		alive := r.settle(h, err == nil)
		if err == nil {
			if alive {
				r.count.Builds.Add(1)
				reply(status(textOK), false)
			}
			return
		}
		r.count.BuildsFailed.Add(1)
		if remote, ok := remoteBody(err); ok {
			reply(remote, true)
		}
	}()
}

// paced takes a token for a build, and says what its frame is remembered by; or why it is refused.
func (r *Relay) paced(from neighbour, body []byte, now time.Time) (mark uint64, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.account(from, now)
	rate := float64(r.limits.BuildRate)
	if from.link == nil {
		rate *= relayRateFactor
	}
	if a == nil || a.paced.Spent(now, rate)+1 > rate*burstSeconds {
		return 0, textError
	}
	a.paced.Add(1, now, rate)
	if mark = r.frames.mark(body); r.frames.has(mark) {
		return 0, textIDInUse
	}
	return mark, ""
}

// store adds a hop, if it may: a terminal one live, another one reserved and with its request and goroutine counted; settle must follow. ctx is that of the
// neighbour's account.
func (r *Relay) store(h *hop, mark uint64, now time.Time) (ctx context.Context, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.account(h.down, now)
	if a == nil {
		return nil, textError
	}
	hops, builds := quota{r.limits.RelayHops, r.limits.Hops}, quota{r.limits.RelayBuild, r.limits.Builds}
	if h.down.link != nil {
		hops.link, builds.link = r.limits.ClientHops, r.limits.ClientBuild
	}
	if r.frames.has(mark) || r.table.any(&h.rx) != nil || r.table.any(&h.tx) != nil {
		return nil, textIDInUse
	}
	if !hops.admits(len(a.hops), len(r.due)) || !h.terminal() && !builds.admits(a.builds, r.builds) {
		return nil, textError
	}
	if h.terminal() {
		h.state.Store(hopLive)
	} else {
		a.builds++
		r.builds++
		r.wg.Add(1)
	}
	h.owner = a
	a.hops[h] = struct{}{}
	r.frames.add(mark, now)
	heap.Push(&r.due, h)
	r.table.put(h)
	return a.ctx, ""
}

// settle ends the wait of a reserved hop: it becomes live, or it goes. False: it is gone.
func (r *Relay) settle(h *hop, ok bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	h.owner.builds--
	r.builds--
	if h.state.Load() == hopDead {
		return false // expired meanwhile, or the client's connection closed
	}
	if !ok {
		r.drop(h)
		return false
	}
	h.state.Store(hopLive)
	return true
}

// drop makes a hop dead and forgets it. r.mu is held.
func (r *Relay) drop(h *hop) {
	h.state.Store(hopDead)
	r.table.remove(h)
	heap.Remove(&r.due, h.index)
	delete(h.owner.hops, h)
}

// account finds or makes a neighbour's; nil after Close. r.mu is held.
func (r *Relay) account(n neighbour, now time.Time) *account {
	if r.closed {
		return nil
	}
	a := r.accounts[n]
	if a == nil {
		a = &account{hops: make(map[*hop]struct{})}
		a.ctx, a.cancel = context.WithCancel(r.ctx)
		r.accounts[n] = a
	}
	a.used = now
	return a
}

// A request over a path, step by step (section 4.2). The neighbour that it came from gets the reply, whoever it is (section 5.2).
//
//  1. size, type, known hop
//  2. one layer, in place
//  3. terminal: open, parse, ask Local, seal its reply
//  4. middle: on to the other side of the hop, with 10 s for the answer; silence is passed on as silence
//  5. reply: checked, one layer in the other order, back
//
// A hop that died meanwhile answers nothing.
func (r *Relay) control(from neighbour, body []byte, reply func([]byte, bool)) {
	refuse := func() {
		r.count.RequestsRefused.Add(1)
		reply(status(textError), true)
	}
	if len(body) < minMessage {
		refuse()
		return
	}
	payload, nonce, id, typ := split(body)
	if *typ != typeRequest {
		refuse()
		return
	}
	h := r.table.live(id)
	if h == nil {
		refuse()
		return
	}
	if h.terminal() {
		r.answer(h, payload, body, reply, refuse)
		return
	}
	step(payload, &h.key, nonce)
	came, to := h.readdress(id)
	ctx, done, ok := r.admitRequest(from, len(body))
	if !ok {
		refuse()
		return
	}
	goesAs := *id
	go func() {
		defer done()
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		var answer []byte
		var err error
		if to.link != nil {
			answer, err = to.link.Request(ctx, nameControl, body)
		} else {
			answer, err = r.mesh.Request(ctx, to.relay, nameControl, body)
		}
		remote, failed := remoteBody(err)
		switch {
		case err != nil && !failed, h.state.Load() != hopLive:
			r.count.RequestsLost.Add(1)
		case failed:
			reply(remote, true)
		case !passReply(answer, &h.key, &goesAs, &came):
			r.count.RepliesBad.Add(1)
			reply(status(textError), true)
		default:
			r.count.Requests.Add(1)
			reply(answer, false)
		}
	}()
}

// answer serves a request at its terminal.
func (r *Relay) answer(h *hop, payload, body []byte, reply func([]byte, bool), refuse func()) {
	_, nonce, _, _ := split(body)
	method, arg, opened, parsed := openRequest(payload, &h.key, nonce)
	if !opened {
		refuse()
		return
	}
	var once atomic.Bool
	back := func(body []byte) {
		if h.state.Load() == hopLive && !once.Swap(true) {
			reply(sealReply(body, &h.key, newNonce(), &h.rx), false)
		}
	}
	r.count.RequestsHere.Add(1)
	switch {
	case !parsed:
		back(status(textError))
	case method == methodPing:
		back(status(textOK))
	default:
		r.local.PathRequest(h.rx, method, arg, back)
	}
}

// admitRequest counts a request that is about to be forwarded; done undoes it.
func (r *Relay) admitRequest(from neighbour, size int) (ctx context.Context, done func(), ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.account(from, time.Now())
	q := quota{r.limits.RelayRequest, r.limits.Requests}
	if from.link != nil {
		q.link = r.limits.ClientRequest
	}
	if a == nil || !q.admits(a.requests, r.requests) || r.bytes+size > r.limits.RequestBytes {
		return nil, nil, false
	}
	a.requests++
	r.requests++
	r.bytes += size
	r.wg.Add(1)
	return a.ctx, func() {
		r.mu.Lock()
		a.requests--
		r.requests--
		r.bytes -= size
		r.mu.Unlock()
		r.wg.Done()
	}, true
}
