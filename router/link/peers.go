package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

var (
	// ErrUnknown says that no contact of the relay is known, so it cannot be dialled.
	ErrUnknown = errors.New("link: no contact of that relay")
	// ErrUnreachable says that the relay was dialled in vain and will not be dialled again for a while. The error of the dial is wrapped beside it.
	ErrUnreachable = errors.New("link: relay unreachable")
)

// Bounds of what waits for dials.
const (
	maxDials        = 128       // at once
	maxWaiting      = 256       // requests that wait for one dial
	maxAllWaiting   = 4096      // for all
	maxQueued       = 64        // commands that wait for one dial
	maxQueuedBytes  = 256 << 10 // their bytes
	redundantAfter  = 20 * time.Second
	firstBackoff    = time.Second
	maxBackoff      = 30 * time.Second
	shortLived      = 5 * time.Second // a connection that we dialled and that the other side ends so soon counts as a failed dial
	forgetFailureIn = 5 * time.Minute
)

// Peers keeps the connections of one node to relays, over any Wire: one preferred connection to each, dialled on demand (protocol 2 section 6). Between two
// relays the connection dialled by the one with the smaller key is preferred; while there are two, both are read.
//
// It stands between the wire and the node's Handler, which sees every connection of the wire, those of clients too, and both directions announced with
// Opened. It keeps no connection up by itself: who wants one calls Connect.
type Peers struct {
	self    key.Public
	kind    Kind
	wire    Wire
	contact func(key.Public) (netip.AddrPort, bool)
	handler Handler

	mu      sync.RWMutex // not held while the handler, the wire, a Conn or contact is called
	ctx     context.Context
	closed  bool
	relays  map[key.Public]*relay
	open    map[Conn]struct{} // tracked connections between Opened and Closed
	dials   int
	waiting int
	dialled sync.WaitGroup

	noLink atomic.Uint64
}

// relay is what is known of one relay. It is kept while it has a connection, a dial or a failure.
type relay struct {
	id      key.Public
	in, out Conn
	since   time.Time // of out
	both    time.Time // since when in and out are there

	dialling  bool          // a dial is pending; set before Run too
	began     time.Time     // the dial, while dialling
	settled   chan struct{} // while dialling: closed when that is over or a connection came
	waiting   int           // requests that wait for settled
	queue     []command
	queued    int  // bytes
	last      Conn // while dialling: out, even when closed since; it needs no more announcing
	stillborn Conn // while dialling: not announced by the wire, and closed before Dial returned it

	failures int // dials in vain since the last good connection
	err      error
	failedAt time.Time
	retry    time.Time // no dial before
}

type command struct {
	name string
	body []byte
}

// NewPeers makes the table of a node with key self that dials as kind: Relay or Client. contact finds the address of a relay; it is called
// concurrently. It starts nothing.
func NewPeers(self key.Public, kind Kind, w Wire, contact func(key.Public) (netip.AddrPort, bool), h Handler) *Peers {
	return &Peers{self: self, kind: kind, wire: w, contact: contact, handler: h, relays: map[key.Public]*relay{}, open: map[Conn]struct{}{}}
}

// Run runs the wire with p as its handler, and ends when it has ended and no dial is left.
func (p *Peers) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	if p.ctx != nil {
		p.mu.Unlock()
		return errors.New("link: Run called twice")
	}
	p.ctx = ctx
	var early []key.Public
	for id, r := range p.relays {
		if r.dialling {
			early = append(early, id)
			r.dialling = false
		}
	}
	p.mu.Unlock()
	for _, id := range early {
		if err := p.Connect(id); err != nil {
			p.mu.Lock()
			if r := p.relays[id]; r != nil && !r.dialling {
				r.settle()
			}
			p.mu.Unlock()
		}
	}
	err := p.wire.Run(ctx, fromWire{p})
	cancel()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.dialled.Wait()
	return err
}

// best is the connection that everything is sent on (protocol 2 section 6.3).
func (p *Peers) best(r *relay) Conn {
	switch {
	case r == nil:
		return nil
	case r.out == nil:
		return r.in
	case r.in == nil || !p.inboundWins(r):
		return r.out
	}
	return r.in
}

func (p *Peers) inboundWins(r *relay) bool { return r.id.Compare(p.self) < 0 }

// Get returns the preferred connection to a relay, or nil.
func (p *Peers) Get(id key.Public) Conn {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.best(p.relays[id])
}

// Connected returns the preferred connections to all relays that have one, in no order.
func (p *Peers) Connected() []Conn {
	p.mu.RLock()
	defer p.mu.RUnlock()
	conns := make([]Conn, 0, len(p.relays))
	for _, r := range p.relays {
		if c := p.best(r); c != nil {
			conns = append(conns, c)
		}
	}
	return conns
}

// Pending returns the number of dials that are going on.
func (p *Peers) Pending() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.dials
}

// Dials returns the number of dials that are going on, and of those among them that were begun before a time.
func (p *Peers) Dials(before time.Time) (all, slow int) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, r := range p.relays {
		if r.dialling {
			all++
			if r.began.Before(before) {
				slow++
			}
		}
	}
	return all, slow
}

// Idle says whether Connect would start a dial to a relay: there is no connection, no dial and no back-off.
func (p *Peers) Idle(id key.Public, now time.Time) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	r := p.relays[id]
	return r == nil || p.best(r) == nil && !r.dialling && !now.Before(r.retry)
}

// Datagram sends b on the preferred connection to a relay; it never dials and never blocks. Without a connection b is dropped and counted.
func (p *Peers) Datagram(to key.Public, b *packet.Buffer) {
	if c := p.Get(to); c != nil {
		c.Send(b)
		return
	}
	p.noLink.Add(1)
	b.Release()
}

// DropNoLink is how many datagrams had no connection to go.
func (p *Peers) DropNoLink() uint64 { return p.noLink.Load() }

// Connect starts a dial to a relay unless there is a connection or a dial. It does not wait. Errors: ErrUnknown, ErrUnreachable (back-off), ErrBusy, ErrClosed. Before Run
// the dial waits for Run.
func (p *Peers) Connect(id key.Public) error {
	_, err := p.reach(id, nil)
	return err
}

// reach returns the preferred connection, or starts a dial if none is pending and calls wait, if not nil, with the relay that is being dialled, under mu.
func (p *Peers) reach(id key.Public, wait func(*relay) error) (Conn, error) {
	if c := p.Get(id); c != nil {
		return c, nil
	}
	addr, known := p.contact(id) // without mu, hence before it is sure that it is needed
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.relays[id]
	if c := p.best(r); c != nil {
		return c, nil
	}
	if r == nil || !r.dialling {
		switch {
		case p.closed, p.ctx != nil && p.ctx.Err() != nil: // a dial would fail at once, and Request begin another
			return nil, ErrClosed
		case id == p.self, !known:
			return nil, ErrUnknown
		case r != nil && time.Now().Before(r.retry):
			return nil, fmt.Errorf("%w: %w", ErrUnreachable, r.err)
		case p.dials >= maxDials:
			return nil, ErrBusy
		}
		if r == nil {
			r = p.relay(id)
		}
		r.dialling, r.began = true, time.Now()
		if p.ctx != nil {
			p.dials++
			p.dialled.Go(func() { p.dial(r, addr) })
		}
	}
	if wait == nil {
		return nil, nil
	}
	if r.settled == nil {
		r.settled = make(chan struct{})
	}
	return nil, wait(r)
}

// relay returns the entry of a relay, made if need be. Callers hold mu.
func (p *Peers) relay(id key.Public) *relay {
	r := p.relays[id]
	if r == nil {
		r = &relay{id: id}
		p.relays[id] = r
	}
	return r
}

func (p *Peers) dial(r *relay, addr netip.AddrPort) {
	c, err := p.wire.Dial(p.ctx, addr, r.id, p.kind)
	if err == nil {
		err = p.announce(r, c)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dials--
	r.dialling, r.last = false, nil
	if err != nil && p.ctx.Err() == nil {
		r.failed(err)
	}
	r.settle()
	p.tidy(r)
}

// announce does for a dialled connection what the wire has not done itself.
func (p *Peers) announce(r *relay, c Conn) error {
	p.mu.RLock()
	announced := r.last == c
	p.mu.RUnlock()
	if announced {
		return nil
	}
	// The handler's Closed may come only after its Opened has returned, so the connection is entered after it.
	p.handler.Opened(c)
	if !p.enter(c) {
		p.handler.Closed(c, ErrClosed)
		return ErrClosed
	}
	return nil
}

// settle ends the waiting for a dial. Callers hold mu.
func (r *relay) settle() {
	if r.settled != nil {
		close(r.settled)
		r.settled = nil
	}
	r.queue, r.queued = nil, 0
}

// failed starts or lengthens the back-off. Callers hold mu.
func (r *relay) failed(err error) {
	d := maxBackoff
	if r.failures < 5 {
		d = min(d, firstBackoff<<r.failures)
	}
	r.failures++
	r.err, r.failedAt = err, time.Now()
	r.retry = r.failedAt.Add(d/2 + rand.N(d/2))
}

// tidy removes an entry that says nothing. Callers hold mu.
func (p *Peers) tidy(r *relay) {
	if r.in == nil && r.out == nil && !r.dialling && r.failures == 0 {
		delete(p.relays, r.id)
	}
}

// tracked says whether c belongs into the table: not connections from clients, nor what others dial with the wire for a purpose of their own.
func (p *Peers) tracked(c Conn) bool {
	if c.Outbound() {
		return c.Kind() == p.kind
	}
	return c.Kind() == Relay
}

// enter puts an open connection into the table and sends on it what has waited; false when it was closed already.
func (p *Peers) enter(c Conn) bool {
	p.mu.Lock()
	r := p.relay(c.Remote())
	for len(r.queue) > 0 { // before others can use c, so that order is kept
		queue := r.queue
		r.queue, r.queued = nil, 0
		p.mu.Unlock()
		for _, q := range queue {
			c.Command(q.name, q.body)
		}
		p.mu.Lock()
	}
	if r.stillborn == c {
		r.stillborn = nil
		p.mu.Unlock()
		return false
	}
	p.open[c] = struct{}{}
	var old Conn
	if c.Outbound() {
		old, r.out, r.last = r.out, c, c
		r.since = time.Now()
	} else {
		old, r.in = r.in, c
	}
	if r.in != nil && r.out != nil {
		r.both = time.Now()
	}
	r.retry = time.Time{}
	r.settle()
	p.mu.Unlock()
	if old != nil {
		old.Close(CodeNormal)
	}
	return true
}

// leave takes a closed connection out of the table; false when it never was in it.
func (p *Peers) leave(c Conn, err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.relay(c.Remote())
	defer p.tidy(r)
	if _, ok := p.open[c]; !ok {
		if r.dialling {
			r.stillborn = c
		}
		return false
	}
	delete(p.open, c)
	switch c {
	case r.in:
		r.in = nil
	case r.out:
		r.out = nil
		var closed *CloseError
		switch {
		case errors.As(err, &closed) && !closed.Remote:
		case time.Since(r.since) < shortLived:
			r.failed(err)
		default:
			r.failures, r.err = 0, nil
		}
	}
	return true
}

// fromWire is p as the wire's Handler.
type fromWire struct{ *Peers }

func (w fromWire) Opened(c Conn) {
	if w.tracked(c) {
		w.enter(c)
	}
	w.handler.Opened(c)
}

func (w fromWire) Request(c Conn, r *Request)        { w.handler.Request(c, r) }
func (w fromWire) Datagram(c Conn, b *packet.Buffer) { w.handler.Datagram(c, b) }

func (w fromWire) Closed(c Conn, err error) {
	if !w.tracked(c) || w.leave(c, err) {
		w.handler.Closed(c, err)
	}
}

// Request sends a request to a relay and waits for the reply, RequestTimeout long in all when ctx has no deadline. Without a connection it waits
// for a dial. Errors: those of Connect and of Conn.Request.
func (p *Peers) Request(ctx context.Context, to key.Public, name string, body []byte) ([]byte, error) {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	for {
		var waited *relay
		var settled <-chan struct{}
		c, err := p.reach(to, func(r *relay) error {
			if r.waiting >= maxWaiting || p.waiting >= maxAllWaiting {
				return ErrBusy
			}
			r.waiting++
			p.waiting++
			waited, settled = r, r.settled
			return nil
		})
		switch {
		case err != nil:
			return nil, err
		case c != nil:
			return c.Request(ctx, name, body)
		}
		select {
		case <-settled:
			err = nil
		case <-ctx.Done():
			err = timeoutOf(ctx)
		}
		p.mu.Lock()
		waited.waiting--
		p.waiting--
		p.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
}

// Command sends a request that nobody answers. It never blocks: without a connection it starts a dial and queues, within bounds, what is sent when that
// succeeds and dropped when it fails. Errors: those of Connect and of Conn.Command.
func (p *Peers) Command(to key.Public, name string, body []byte) error {
	c, err := p.reach(to, func(r *relay) error {
		if len(r.queue) >= maxQueued || r.queued+len(body) > maxQueuedBytes {
			return ErrBusy
		}
		r.queue = append(r.queue, command{name: name, body: bytes.Clone(body)})
		r.queued += len(body)
		return nil
	})
	if err != nil || c == nil {
		return err
	}
	return c.Command(name, body)
}

// Close closes all connections to a relay.
func (p *Peers) Close(id key.Public, code uint64) {
	p.mu.RLock()
	var conns [2]Conn
	if r := p.relays[id]; r != nil {
		conns = [2]Conn{r.in, r.out}
	}
	p.mu.RUnlock()
	for _, c := range conns {
		if c != nil {
			c.Close(code)
		}
	}
}

// Tick closes, of two connections with one relay, the one that lost, 20 s after the second came. Call it every few seconds or more often.
func (p *Peers) Tick(now time.Time) {
	p.mu.Lock()
	var lost []Conn
	for id, r := range p.relays {
		switch {
		case r.in != nil && r.out != nil:
			if now.Sub(r.both) < redundantAfter {
				break
			}
			if p.inboundWins(r) {
				lost = append(lost, r.out)
			} else {
				lost = append(lost, r.in)
			}
		case r.in == nil && r.out == nil && !r.dialling && now.Sub(r.retry) > forgetFailureIn:
			delete(p.relays, id)
		}
	}
	p.mu.Unlock()
	for _, c := range lost {
		c.Close(CodeRedundant)
	}
}

// Wake ends all back-off, and makes the connections that we dialled show at once whether they still live: the network has changed, or the machine has slept.
func (p *Peers) Wake() {
	var nudge []interface{ Nudge() }
	p.mu.Lock()
	for _, r := range p.relays {
		r.failures, r.retry = 0, time.Time{}
		if c, ok := r.out.(interface{ Nudge() }); ok {
			nudge = append(nudge, c)
		}
	}
	p.mu.Unlock()
	for _, c := range nudge {
		c.Nudge()
	}
}

// PeerStatus is what is known of one relay.
type PeerStatus struct {
	ID                key.Public
	Inbound, Outbound Conn // nil: none
	Preferred         Conn
	Dialling          bool
	Failures          int       // dials in vain since the last good connection, also while another is going on
	Err               error     // of the last of them
	FailedAt, Retry   time.Time // when that was, and when the next dial is allowed
}

// Status lists the relays that have a connection, a dial or a failure, ordered by key.
func (p *Peers) Status() []PeerStatus {
	p.mu.RLock()
	defer p.mu.RUnlock()
	list := make([]PeerStatus, 0, len(p.relays))
	for _, r := range p.relays {
		list = append(list, PeerStatus{
			ID: r.id, Inbound: r.in, Outbound: r.out, Preferred: p.best(r), Dialling: r.dialling,
			Failures: r.failures, Err: r.err, FailedAt: r.failedAt, Retry: r.retry,
		})
	}
	slices.SortFunc(list, func(a, b PeerStatus) int { return a.ID.Compare(b.ID) })
	return list
}
