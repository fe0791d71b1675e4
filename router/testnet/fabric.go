package testnet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/packet"
)

// fabric is the direct wire: connections between nodes of one process without
// QUIC, UDP or TLS, for runs of simulated hours. It keeps what the protocol can
// notice: who shows a key, latency, lost datagrams and their repair, late stream
// data, idle time-outs, resets by a restarted peer, and the order within a stream.
type fabric struct {
	mu    sync.Mutex
	rng   *rand.Rand
	hosts map[netip.AddrPort]*place
	cuts  map[way]int     // how many keep it cut
	lossy map[way]float64 // what is lost there besides

	latency time.Duration // one way
	loss    float64       // of each packet, in each direction; under mu, as the rest
	jitter  time.Duration // the most that a datagram comes later than others
	double  float64       // datagrams that come twice
	load    float64       // how long nodes wait for a processor
	turns   map[netip.AddrPort]*turn
}

// turn is when a node has a processor.
type turn struct{ from, to time.Time }

// setLoad has each node get the processor for some milliseconds only, and then wait for it: what comes meanwhile is taken later.
func (f *fabric) setLoad(load float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.load, f.turns = load, map[netip.AddrPort]*turn{}
}

// busy is how long a node does not get to take what comes now.
func (f *fabric) busy(addr netip.AddrPort) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.load == 0 {
		return 0
	}
	x, now := f.turns[addr], time.Now()
	if x == nil {
		x = &turn{now, now}
		f.turns[addr] = x
	}
	for !now.Before(x.to) {
		wait := f.load * 10 * f.rng.ExpFloat64()
		if f.rng.Float64() < 0.02 {
			wait += f.load * 100 * f.rng.Float64()
		}
		x.from = x.to.Add(time.Duration(wait * float64(time.Millisecond)))
		x.to = x.from.Add(time.Duration(10 * f.rng.ExpFloat64() * float64(time.Millisecond)))
	}
	return max(0, x.from.Sub(now))
}

// way is a direction between two hosts: from, to.
type way [2]netip.AddrPort

func newFabric(seed uint64, latency time.Duration, loss float64) *fabric {
	return &fabric{
		rng: rand.New(rand.NewPCG(seed, 1)), hosts: map[netip.AddrPort]*place{}, cuts: map[way]int{}, lossy: map[way]float64{},
		latency: latency, loss: loss,
	}
}

// lost says whether the next packet from one host to another gets lost; what is cut is another matter.
func (f *fabric) lost(from, to netip.AddrPort) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	loss := max(f.loss, f.lossy[way{from, to}])
	return loss > 0 && f.rng.Float64() < loss
}

func (f *fabric) setLoss(loss float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loss = loss
}

// setLossOf makes one direction lose more than the rest does; 0: no more.
func (f *fabric) setLossOf(from, to netip.AddrPort, loss float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lossy[way{from, to}] = loss
	if loss == 0 {
		delete(f.lossy, way{from, to})
	}
}

// setUnruly has datagrams come up to jitter late, and so in another order, and some of them twice.
func (f *fabric) setUnruly(jitter time.Duration, double float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.jitter, f.double = jitter, double
}

// unruly draws how late a datagram comes, and whether it comes twice.
func (f *fabric) unruly() (late time.Duration, twice bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.jitter > 0 {
		late = time.Duration(f.rng.Int64N(int64(f.jitter)))
	}
	return late, f.double > 0 && f.rng.Float64() < f.double
}

// repair is how long after a datagram its one repetition follows, by which the link repairs loss.
//
// It models what router/link does over the quic-go that make builds: a datagram that QUIC takes for lost goes out once more, ahead of the queue. QUIC takes a packet for lost
// 9/8 of a round trip after it was sent, when a later one is acknowledged by then; in a sparse flow a probe follows one round trip and 25 ms after it. When only the
// acknowledgement is lost the datagram comes twice. TestModel compares this with the other wire.
func (f *fabric) repair() time.Duration { return 9*2*f.latency/8 + 25*time.Millisecond }

// repairLimit: what is older is not repeated.
const repairLimit = time.Second

func (f *fabric) cut(from, to netip.AddrPort) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cuts[way{from, to}] > 0
}

func (f *fabric) setCut(a, b netip.AddrPort, on bool) {
	f.setCutWay(a, b, on)
	f.setCutWay(b, a, on)
}

// setCutWay cuts one direction, until as many have ended that as have begun it. Whoever hears nothing any more gives its connections up after their idle time-out, without a word.
func (f *fabric) setCutWay(from, to netip.AddrPort, on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := way{from, to}
	if !on {
		if f.cuts[w]--; f.cuts[w] == 0 {
			delete(f.cuts, w)
		}
		return
	}
	if f.cuts[w]++; f.cuts[w] > 1 || f.hosts[to] == nil {
		return
	}
	deaf := f.hosts[to]
	deaf.mu.Lock()
	defer deaf.mu.Unlock()
	for c := range deaf.conns {
		if c.raddr == from {
			c.listen()
		}
	}
}

// host returns the place that listens at addr now, if any.
func (f *fabric) host(addr netip.AddrPort) *place {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hosts[addr]
}

// place is one node's on the fabric; a [wire].
type place struct {
	f          *fabric
	addr       netip.AddrPort
	id         key.Public // zero: a client
	registered func(key.Public) bool

	mu      sync.Mutex
	handler link.Handler
	conns   map[*conn]struct{}
	wg      sync.WaitGroup
	ready   chan struct{} // closed when Run has begun
	down    bool          // stopped or killed
}

func (f *fabric) newWire(_ *testing.T, addr netip.AddrPort, secret *key.Secret, relay bool, registered func(key.Public) bool) wire {
	w := &place{f: f, addr: addr, registered: registered, conns: map[*conn]struct{}{}, ready: make(chan struct{})}
	if relay {
		w.id = secret.Public()
	}
	return w
}

func (w *place) LocalAddr() netip.AddrPort { return w.addr }

// Run listens until ctx ends, then closes all connections in good order and
// waits for their goroutines.
func (w *place) Run(ctx context.Context, h link.Handler) error {
	w.mu.Lock()
	w.handler = h
	w.mu.Unlock()
	w.f.mu.Lock()
	w.f.hosts[w.addr] = w
	w.f.mu.Unlock()
	close(w.ready)
	<-ctx.Done()
	w.f.mu.Lock()
	if w.f.hosts[w.addr] == w {
		delete(w.f.hosts, w.addr)
	}
	w.f.mu.Unlock()
	w.mu.Lock()
	killed := w.down
	w.down = true
	conns := make([]*conn, 0, len(w.conns))
	for c := range w.conns {
		conns = append(conns, c)
	}
	w.mu.Unlock()
	for _, c := range conns {
		if killed {
			c.vanish()
		} else {
			c.Close(0)
		}
	}
	w.wg.Wait()
	return nil
}

// kill makes the coming end of Run look like a power cut to the peers.
func (w *place) kill() {
	w.mu.Lock()
	w.down = true
	w.mu.Unlock()
}

var errRefused = errors.New("testnet: no answer to the dial")

func (w *place) Dial(ctx context.Context, to netip.AddrPort, remote key.Public, kind link.Kind) (link.Conn, error) {
	select {
	case <-w.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	wait := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	trips := 4 * w.f.latency // QUIC's handshake and our first reply
	for n := range 4 {
		if n%2 == 0 && w.f.lost(w.addr, to) || n%2 == 1 && w.f.lost(to, w.addr) {
			trips += 400 * time.Millisecond
		}
	}
	if err := wait(trips); err != nil {
		return nil, err
	}
	var peer *place
	const patience = 10 * time.Second // the handshake's time-out
	for again, waited := 300*time.Millisecond, time.Duration(0); ; again, waited = 2*again, waited+again {
		if peer = w.f.host(to); peer != nil && !w.f.cut(w.addr, to) && !w.f.cut(to, w.addr) {
			break
		}
		if err := wait(min(again, patience-waited)); err != nil {
			return nil, err
		}
		if waited+again >= patience {
			return nil, errRefused
		}
	}
	if peer.id != remote || remote.IsZero() {
		return nil, fmt.Errorf("testnet: %v answers with another key", to)
	}
	shown := key.Public{}
	if kind == link.Relay {
		shown = w.id
		if shown == peer.id || !peer.registered(shown) {
			return nil, errRefused
		}
	}
	idle := map[link.Kind]time.Duration{link.Relay: 33 * time.Second, link.Client: 63 * time.Second, link.Bootstrap: 10 * time.Second}[kind]
	a := newConn(w, kind, remote, true, to, idle)
	b := newConn(peer, kind, shown, false, w.addr, idle)
	a.peer, b.peer = b, a
	// Both sides register before either may speak.
	if !peer.add(b) {
		return nil, errRefused
	}
	if !w.add(a) { // we are stopping; the other side has seen a connection that is gone at once
		peer.handler.Opened(b)
		b.run()
		b.lose()
		return nil, errors.New("testnet: closed")
	}
	peer.handler.Opened(b)
	b.run()
	a.run()
	return a, nil
}

func (w *place) add(c *conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		return false
	}
	w.conns[c] = struct{}{}
	w.wg.Add(2) // its two lanes
	return true
}

// conn is one end of a connection; a [link.Conn].
type conn struct {
	w        *place
	peer     *conn
	kind     link.Kind
	remote   key.Public
	outbound bool
	raddr    netip.AddrPort
	idle     time.Duration
	since    time.Time

	datagrams, stream *lane // what this end sends
	done              chan struct{}
	once              sync.Once

	mu      sync.Mutex
	next    int64
	pending map[int64]chan answer
	heard   time.Time // last time that anything came
	stats   link.ConnStats
}

type answer struct {
	body []byte
	fail bool
}

func newConn(w *place, kind link.Kind, remote key.Public, outbound bool, raddr netip.AddrPort, idle time.Duration) *conn {
	return &conn{
		w: w, kind: kind, remote: remote, outbound: outbound, raddr: raddr, idle: idle, since: time.Now(), heard: time.Now(),
		datagrams: newLane(4096), stream: newLane(0), done: make(chan struct{}), pending: map[int64]chan answer{},
	}
}

// run starts the goroutines that carry what this end sends.
func (c *conn) run() {
	go c.datagrams.run(c)
	go c.stream.run(c)
}

func (c *conn) Kind() link.Kind            { return c.kind }
func (c *conn) Remote() key.Public         { return c.remote }
func (c *conn) Outbound() bool             { return c.outbound }
func (c *conn) Done() <-chan struct{}      { return c.done }
func (c *conn) RemoteAddr() netip.AddrPort { return c.raddr }

func (c *conn) Stats() link.ConnStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

func (c *conn) Send(b *packet.Buffer) {
	f := c.w.f
	if late, twice := f.unruly(); twice {
		again := packet.Get()
		again.Set(b.Data)
		c.put(again, f.latency+late)
	}
	lost := f.lost(c.w.addr, c.raddr)
	again := !lost && f.lost(c.raddr, c.w.addr) || lost && !f.lost(c.w.addr, c.raddr) // its acknowledgement was lost, or it was, and not also what is sent then
	late, _ := f.unruly()
	if again && f.repair() <= repairLimit {
		repeat := b
		if !lost {
			repeat = packet.Get()
			repeat.Set(b.Data)
		}
		c.put(repeat, f.latency+f.repair())
		if lost {
			return
		}
	}
	if lost {
		b.Release()
	} else {
		c.put(b, f.latency+late)
	}
}

// put gives the peer a datagram after d.
func (c *conn) put(b *packet.Buffer, d time.Duration) {
	if !c.datagrams.push(item{at: time.Now().Add(d), buf: b}) {
		b.Release()
	}
}

func (c *conn) Command(name string, body []byte) error {
	c.mu.Lock()
	c.next++
	c.mu.Unlock()
	return c.say(item{name: name, body: body, id: -1})
}

// say puts one stream message on its way; loss makes it late.
func (c *conn) say(it item) error {
	it.at = time.Now().Add(c.w.f.latency)
	for c.w.f.lost(c.w.addr, c.raddr) {
		it.at = it.at.Add(c.w.f.repair())
	}
	it.body = append([]byte(nil), it.body...)
	if !c.stream.push(it) {
		return link.ErrClosed
	}
	return nil
}

func (c *conn) Request(ctx context.Context, name string, body []byte) ([]byte, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
	}
	ch := make(chan answer, 1)
	c.mu.Lock()
	id := c.next
	c.next++
	c.pending[id] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
	}()
	if err := c.say(item{name: name, body: body, id: id}); err != nil {
		return nil, err
	}
	select {
	case a := <-ch:
		if a.fail {
			return nil, &link.ReplyError{Body: a.body}
		}
		return a.body, nil
	case <-c.done:
		return nil, link.ErrClosed
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, link.ErrTimeout
		}
		return nil, ctx.Err()
	}
}

// Close says goodbye, behind what was said before.
func (c *conn) Close(code uint64) {
	c.stream.push(item{at: time.Now().Add(c.w.f.latency), bye: true})
	c.end(fmt.Errorf("testnet: closed with code %d", code))
}

// vanish ends this side without a word to the other, which finds out by its
// idle time-out, or sooner by a reset when the host is back.
func (c *conn) vanish() {
	p := c.peer
	c.lose()
	if p == nil {
		return
	}
	p.watch()
}

// watch ends this side when its peer is gone: after the idle time-out, or at
// the next keep-alive when the peer's host can be reached, which has been started again.
func (c *conn) watch() {
	var check func()
	gone := time.Now()
	step := 5 * time.Second
	check = func() {
		if c.over() {
			return
		}
		back := c.w.f.host(c.raddr) != nil && !c.w.f.cut(c.raddr, c.w.addr) && !c.w.f.cut(c.w.addr, c.raddr)
		if back || time.Since(gone) >= c.idle {
			c.lose()
			return
		}
		time.AfterFunc(step, check)
	}
	time.AfterFunc(step, check)
}

// listen ends this side when it has heard nothing for its idle time-out because the way to it is cut; the other finds out.
func (c *conn) listen() {
	last := c.lastHeard()
	time.AfterFunc(c.idle, func() {
		if c.over() {
			return
		}
		if c.lastHeard() != last || !c.w.f.cut(c.raddr, c.w.addr) {
			return
		}
		c.lose()
		c.peer.watch()
	})
}

func (c *conn) lastHeard() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard
}

// lose ends this side without a word.
func (c *conn) lose() {
	c.datagrams.close()
	c.stream.close()
	c.end(errors.New("testnet: idle"))
}

func (c *conn) end(err error) {
	c.once.Do(func() {
		close(c.done)
		c.datagrams.close()
		c.stream.finish()
		c.w.mu.Lock()
		delete(c.w.conns, c)
		h := c.w.handler
		c.w.mu.Unlock()
		h.Closed(c, err)
	})
}

// receive handles one item that the peer sent.
func (c *conn) receive(it item) {
	if c.over() {
		if it.buf != nil {
			it.buf.Release()
		}
		if now := c.w.f.host(c.w.addr); now != nil && now != c.w { // it has been started again, knows nothing of the connection, and says so
			c.peer.lose()
		}
		return
	}
	h := c.w.handler
	c.mu.Lock()
	c.heard = time.Now()
	c.mu.Unlock()
	switch {
	case it.bye:
		c.end(errors.New("testnet: closed by the peer"))
	case it.buf != nil:
		h.Datagram(c, it.buf)
	case it.reply:
		c.mu.Lock()
		ch := c.pending[it.id]
		delete(c.pending, it.id)
		c.mu.Unlock()
		if ch != nil {
			ch <- answer{it.body, it.fail}
		}
	default:
		id := it.id
		var once sync.Once
		h.Request(c, link.NewRequest(it.name, it.body, func(body []byte, fail bool) {
			if id >= 0 {
				once.Do(func() { c.say(item{reply: true, id: id, body: body, fail: fail}) })
			}
		}))
	}
}

// item is one thing on its way.
type item struct {
	at    time.Time
	buf   *packet.Buffer // a datagram
	name  string         // a request
	id    int64          // of a request or reply; -1: no reply wanted
	body  []byte
	reply bool
	fail  bool
	bye   bool
}

// lane carries the items of one direction: datagrams when their time has come, stream messages in the order in which they were sent.
type lane struct {
	mu    sync.Mutex
	q     []item // by at
	max   int    // 0: a stream, without bound
	wake  chan struct{}
	state int // open, finishing (what is queued still goes), closed
}

const (
	open = iota
	finishing
	closed
)

func newLane(bound int) *lane { return &lane{max: bound, wake: make(chan struct{}, 1)} }

func (l *lane) push(it item) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != open || l.max > 0 && len(l.q) >= l.max {
		return false
	}
	n := len(l.q)
	if l.max == 0 && n > 0 && l.q[n-1].at.After(it.at) {
		it.at = l.q[n-1].at
	}
	for n > 0 && l.q[n-1].at.After(it.at) {
		n--
	}
	l.q = slices.Insert(l.q, n, it)
	l.kick()
	return true
}

func (l *lane) kick() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *lane) finish() { l.set(finishing) }
func (l *lane) close()  { l.set(closed) }

func (l *lane) set(s int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = max(l.state, s)
	l.kick()
}

// take returns the next item that is due. Else wait is how long it takes until one is, 0: unknown; over: there will be none.
func (l *lane) take() (it item, wait time.Duration, ok, over bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == closed || l.state == finishing && len(l.q) == 0 {
		for _, it := range l.q {
			if it.buf != nil {
				it.buf.Release()
			}
		}
		l.q = nil
		return item{}, 0, false, true
	}
	if len(l.q) == 0 {
		return item{}, 0, false, false
	}
	if wait := time.Until(l.q[0].at); wait > 0 {
		return item{}, wait, false, false
	}
	it = l.q[0]
	l.q = l.q[1:]
	return it, 0, true, false
}

// run carries what c sends through this lane to c's peer.
func (l *lane) run(c *conn) {
	defer c.w.wg.Done()
	for {
		it, wait, ok, over := l.take()
		switch {
		case over:
			return
		case !ok && wait == 0:
			<-l.wake
			continue
		case !ok:
			select {
			case <-l.wake:
			case <-time.After(wait):
			}
			continue
		}
		if c.w.f.cut(c.w.addr, c.raddr) {
			if it.buf != nil {
				it.buf.Release()
				continue
			}
			for c.w.f.cut(c.w.addr, c.raddr) && !c.over() { // repeated until it arrives, or the connection has ended
				time.Sleep(250 * time.Millisecond)
			}
			if c.over() {
				continue // what was said last is lost too
			}
		}
		time.Sleep(c.w.f.busy(c.peer.w.addr))
		c.peer.receive(it)
	}
}

func (c *conn) over() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}
