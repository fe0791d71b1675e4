package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// conn is one QUIC connection and the goroutines around it:
//
//	run       accepts streams until the end, then closes everything in order
//	carrier   takes over the datagrams (hook.go), or with an original quic-go runs:
//	sender    the only caller of SendDatagram, which blocks while congestion control holds the connection
//	receiver  the only caller of ReceiveDatagram: quic-go keeps 128 datagrams and drops the rest silently
//	reader, writer  of stream 0, once it is there
//
// With the changed quic-go datagrams move in its own goroutine of the connection; without it they are only slower, and what is lost is lost.
//
// States: a connection that we dialled is opening until the relay has accepted us, then open; an accepted one is open from the start. Both end
// down. shut decides the end, once, whoever calls it; run carries it out. Handlers are called only when open was reached.
//
// Locks: mu is never held while another is taken except outbox's, nor while a Handler runs.
type conn struct {
	q        *QUIC
	qc       *quic.Conn
	kind     Kind
	remote   key.Public
	outbound bool
	source   netip.Prefix // what its turns are counted by

	ctx  context.Context // ends with shut
	stop context.CancelFunc
	open chan struct{} // closed when open
	done chan struct{} // closed when down

	accept func() // dialled only: called at any sign that the relay has accepted us

	out       *outbox
	datagrams *datagramQueue
	split     splitter // sender's, or hooked's
	skip      int      // sender's: datagrams until M may be asked again
	m         atomic.Int64
	join      joiner                 // receiver's, or hooked's
	hooked    atomic.Pointer[hooked] // nil: not yet, or never

	mu      sync.Mutex
	down    bool // no more calls and requests are taken
	ended   bool // shut was called, with:
	code    uint64
	reason  error
	isOpen  bool // open was or will be closed
	nextID  int64
	calls   map[int64]chan message   // requests of ours that wait for a reply
	waiting map[*Request]*time.Timer // requests of the peer that wait for our answer

	datagramsIn, datagramsOut direction
	messagesIn, streamIn      atomic.Uint64
	dropTooLarge, refused     atomic.Uint64
}

// direction counts datagrams of one direction.
type direction struct{ datagrams, bytes, split atomic.Uint64 }

func (d *direction) count(n int, split bool) {
	d.datagrams.Add(1)
	d.bytes.Add(uint64(n))
	if split {
		d.split.Add(1)
	}
}

func newConn(q *QUIC, qc *quic.Conn, kind Kind, remote key.Public, outbound bool) *conn {
	c := &conn{
		q: q, qc: qc, kind: kind, remote: remote, outbound: outbound, source: NetworkOf(addrPort(qc.RemoteAddr()).Addr()),
		open: make(chan struct{}), done: make(chan struct{}),
		out:       newOutbox(q.limits.StreamQueue, &q.memory),
		datagrams: newDatagramQueue(q.limits.QueueBytes, q.limits.QueueCount),
		calls:     map[int64]chan message{},
		waiting:   map[*Request]*time.Timer{},
	}
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.m.Store(minM)
	c.join.all = &q.halves
	c.datagrams.crowd, c.datagrams.cork, c.datagrams.all = &q.crowd, &q.cork, &q.queued
	return c
}

func (c *conn) Kind() Kind            { return c.kind }
func (c *conn) Remote() key.Public    { return c.remote }
func (c *conn) Outbound() bool        { return c.outbound }
func (c *conn) Done() <-chan struct{} { return c.done }
func (c *conn) Send(b *packet.Buffer) { c.datagrams.push(b, time.Now()) }

func (c *conn) Close(code uint64) { c.shut(code, &CloseError{Code: code}) }

func (c *conn) RemoteAddr() netip.AddrPort { return addrPort(c.qc.RemoteAddr()) }

func addrPort(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := u.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// Nudge sends something, so that the peer sees our address of now and says so if it no longer knows the connection.
func (c *conn) Nudge() { c.out.nudge() }

// shut decides that the connection ends: closed with code, for the given reason. The first call counts.
func (c *conn) shut(code uint64, reason error) {
	c.mu.Lock()
	if !c.ended {
		c.ended, c.code, c.reason = true, code, reason
	}
	c.mu.Unlock()
	c.stop()
}

// ending is the reason that shut was given.
func (c *conn) ending() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// opened makes the connection open and tells the handler; false when it has ended before.
func (c *conn) opened() bool {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return false
	}
	c.isOpen = true
	c.mu.Unlock()
	c.q.handler.Opened(c)
	close(c.open)
	return true
}

// awaitOpen waits until handlers may be called; false when that will not be. What the caller has received shows that the relay accepted us.
func (c *conn) awaitOpen() bool {
	if c.outbound {
		c.accept()
	}
	select {
	case <-c.open:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// run serves the connection until it is down. stream is stream 0 when we opened it.
func (c *conn) run(stream *quic.Stream) {
	var wg sync.WaitGroup
	wg.Go(c.carrier)
	serve := func(s *quic.Stream) {
		wg.Go(func() { c.reader(s) })
		wg.Go(func() { c.writer(s) })
	}
	if stream != nil {
		serve(stream)
	}
	for {
		s, err := c.qc.AcceptStream(c.ctx)
		if err != nil {
			c.shut(CodeNormal, reasonOf(err))
			c.q.failed(err)
			break
		}
		if stream == nil {
			stream = s // streams are accepted in order: this is stream 0
			serve(s)
			continue
		}
		// Nothing of the protocol uses another stream (protocol 2 section 5.1). Its credit is never given back, so there are 32 of them in a connection's life.
		s.CancelRead(CodeStream)
		s.CancelWrite(CodeStream)
	}

	// The order of the end: tell the peer, which also makes the other goroutines return; refuse and fail what waits; tell the handler; done.
	c.qc.CloseWithError(quic.ApplicationErrorCode(c.code), "")
	wg.Wait()
	c.out.close()
	if h := c.hooked.Load(); h != nil {
		h.close()
	}
	c.datagrams.close()
	c.join.release()
	c.mu.Lock()
	c.down = true
	for id, reply := range c.calls {
		close(reply)
		delete(c.calls, id)
	}
	for r := range c.waiting {
		r.expire()
		c.forget(r)
	}
	wasOpen := c.isOpen
	c.mu.Unlock()
	if wasOpen {
		<-c.open // Opened has returned
		c.q.handler.Closed(c, c.reason)
	}
	close(c.done)
}

// reasonOf names an error that the whole connection died of.
func reasonOf(err error) error {
	var (
		app   *quic.ApplicationError
		idle  *quic.IdleTimeoutError
		reset *quic.StatelessResetError
	)
	switch {
	case errors.As(err, &app):
		return &CloseError{Code: uint64(app.ErrorCode), Remote: app.Remote, Reason: app.ErrorMessage}
	case errors.As(err, &idle):
		return ErrIdle
	case errors.As(err, &reset):
		return ErrReset
	}
	return fmt.Errorf("link: connection failed: %w", err)
}

// ---- datagrams ----

func (c *conn) carrier() {
	if !c.hookable() {
		var wg sync.WaitGroup
		wg.Go(c.sender)
		wg.Go(c.receiver)
		wg.Wait()
		return
	}
	select {
	case <-c.open: // handlers may be called
		c.hook()
	case <-c.ctx.Done():
	}
}

// deliver takes one frame, which it does not keep.
func (c *conn) deliver(frame []byte) {
	if b, split := c.join.add(frame); b != nil {
		c.datagramsIn.count(len(b.Data), split)
		c.q.handler.Datagram(c, b)
	}
}

func (c *conn) sender() {
	// Few at a time: what was popped cannot be dropped any more when newer ones come.
	var batch [8]*packet.Buffer
	for {
		n := c.datagrams.pop(batch[:], time.Now())
		if n == 0 {
			select {
			case <-c.datagrams.wake:
				continue
			case <-c.ctx.Done():
				return
			}
		}
		for i, b := range batch[:n] {
			c.sendDatagram(b)
			b.Release()
			batch[i] = nil
		}
	}
}

// tooLarge is a datagram that no path can carry.
var tooLarge [65000]byte

// sendDatagram blocks while quic-go's own queue of 32 is full. b stays the caller's, with its content spoiled.
func (c *conn) sendDatagram(b *packet.Buffer) {
	n := len(b.Data)
	piece := pieceOf(int(c.m.Load()))
	if n > piece {
		// M grows without notice while path MTU discovery runs. Asking costs two small allocations, so not for each.
		if c.skip--; c.skip < 0 {
			c.skip = 15
			c.askM()
			piece = pieceOf(int(c.m.Load()))
		}
	}
	cut := c.split.cut(n, piece)
	if cut.frames == 0 {
		c.dropTooLarge.Add(1)
		return
	}
	b.Prepend(dgidSize)
	for i := 0; i < cut.frames; i++ {
		err := c.qc.SendDatagram(cut.frame(b.Data, i))
		if err == nil {
			continue
		}
		large, ok := err.(*quic.DatagramTooLargeError)
		if !ok {
			c.datagrams.ended.Add(1)
			c.shut(CodeNormal, reasonOf(err))
			return
		}
		// M has shrunk: the peer has migrated to another path. Once the first frame is out nothing can be mended.
		c.m.Store(large.MaxDatagramPayloadSize + tooLargeOverhead)
		smaller := recut(cut.dgid, n, pieceOf(int(c.m.Load())))
		if i > 0 || smaller.frames == 0 || smaller.first >= cut.first {
			c.dropTooLarge.Add(1)
			return
		}
		cut, i = smaller, -1
	}
	c.datagramsOut.count(n, cut.frames == 2)
}

// askM makes quic-go say what the path carries.
func (c *conn) askM() {
	if err, ok := c.qc.SendDatagram(tooLarge[:]).(*quic.DatagramTooLargeError); ok {
		c.m.Store(err.MaxDatagramPayloadSize + tooLargeOverhead)
	}
}

func (c *conn) receiver() {
	open := false
	for {
		frame, err := c.qc.ReceiveDatagram(context.Background())
		if err != nil {
			c.shut(CodeNormal, reasonOf(err))
			return
		}
		if !open && !c.awaitOpen() {
			return
		}
		open = true
		c.deliver(frame)
	}
}

// ---- request stream ----

func (c *conn) reader(s *quic.Stream) {
	var (
		d    deframer
		held = share{of: &c.q.memory}
		open bool
		buf  = make([]byte, 1<<10) // on the stack, which could not shrink again around a larger one
	)
	defer held.set(0)
	for {
		n, err := s.Read(buf)
		if n > 0 {
			if !open && !c.awaitOpen() {
				return
			}
			open = true
			c.streamIn.Add(uint64(n))
			turn := c.q.turns.take(c.source, c.kind == Relay)
			before := c.messagesIn.Load()
			err := d.feed(buf[:n], c.message)
			c.q.turns.give(turn, c.messagesIn.Load()-before)
			if err != nil {
				c.shut(CodeStream, err)
				return
			}
			if !held.set(d.held()) {
				c.shut(CodeStream, errors.New("link: stream: too much memory in unfinished messages of all connections"))
				return
			}
		}
		if err != nil {
			c.streamEnded(err)
			return
		}
	}
}

// streamEnded closes the connection whose stream 0 died, or notes why the whole connection died.
func (c *conn) streamEnded(err error) {
	var stream *quic.StreamError
	if err == io.EOF || errors.As(err, &stream) {
		c.shut(CodeStream, fmt.Errorf("link: peer ended the request stream: %w", err))
		return
	}
	c.shut(CodeNormal, reasonOf(err))
}

// keepAlive is after how long without anything sent a dialler of that kind sends something, at most half as much later; 0 for never (protocol 2 section 1).
func keepAlive(k Kind) time.Duration {
	switch k {
	case Relay:
		return 10 * time.Second
	case Client:
		return 20 * time.Second
	}
	return 0
}

func (c *conn) writer(s *quic.Stream) {
	// The keep-alive is ours because quic-go's PING is too small to be answered with a stateless reset: the restart of a peer would go unnoticed (protocol 5 section 5.2).
	// Whether anything was sent is looked at twice a period, so that the data plane need not look at the clock.
	var tick <-chan time.Time
	if period := keepAlive(c.kind); c.outbound && period > 0 {
		t := time.NewTicker(period / 2)
		defer t.Stop()
		tick = t.C
	}
	sent, quiet := uint64(len(nudge)), 0 // sent at the last tick, with the nudge that opened the stream; ticks since then without more
	for {
		if buf := c.out.take(); len(buf) > 0 {
			if _, err := s.Write(buf); err != nil {
				c.streamEnded(err)
				return
			}
			c.out.written(buf)
			continue
		}
		select {
		case <-c.out.wake:
		case <-tick:
			now := c.out.bytes.Load() + c.datagramsOut.datagrams.Load()
			if quiet++; now != sent {
				sent, quiet = now, 0
			}
			if quiet >= 2 && c.out.nudge() {
				sent, quiet = sent+uint64(len(nudge)), 0
			}
		case <-c.ctx.Done():
			return
		}
	}
}

// message takes one message of the peer; an error ends the stream.
func (c *conn) message(b []byte) error {
	m, err := parseMessage(b)
	if err != nil {
		return err
	}
	c.messagesIn.Add(1)
	switch m.Type {
	case typeRequest:
		c.request(m)
	case typeReply, typeError:
		c.reply(m)
	default:
		c.post(&message{Type: typeError, ID: m.ID, Body: unknownEndpoint("")})
	}
	return nil
}

// request hands a request of the peer to the handler, within the limits.
func (c *conn) request(m message) {
	r := NewRequest(m.Name, m.Body, func([]byte, bool) {})
	if !neverAnswered(m.Name) {
		r.answer = func(body []byte, fail bool) {
			c.mu.Lock()
			c.forget(r)
			c.mu.Unlock()
			c.answer(m.ID, body, fail)
		}
		if !c.await(r) {
			c.refused.Add(1)
			c.answer(m.ID, errProcessing, true)
			return
		}
	}
	c.q.handler.Request(c, r)
}

// await counts r as waiting for its answer, for RequestTimeout at most; false when too many wait.
func (c *conn) await(r *Request) bool {
	if c.q.waiting.Add(1) > int64(c.q.limits.AllRequests) {
		c.q.waiting.Add(-1)
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down || len(c.waiting) >= c.q.limits.Requests {
		c.q.waiting.Add(-1)
		return false
	}
	c.waiting[r] = time.AfterFunc(RequestTimeout, func() {
		if r.expire() {
			c.mu.Lock()
			c.forget(r)
			c.mu.Unlock()
		}
	})
	return true
}

// forget ends the waiting of r, if it still does. Callers hold mu.
func (c *conn) forget(r *Request) {
	if t := c.waiting[r]; t != nil {
		t.Stop()
		delete(c.waiting, r)
		c.q.waiting.Add(-1)
	}
}

func (c *conn) answer(id int64, body []byte, fail bool) {
	m := message{Type: typeReply, ID: id, Body: body}
	if fail {
		m.Type = typeError
	}
	if c.post(&m) == ErrTooLarge {
		c.post(&message{Type: typeError, ID: id, Body: errProcessing})
	}
}

func (c *conn) post(m *message) error { return c.cutOff(c.out.put(m)) }

// cutOff closes the connection when err, of a put, says that the peer does not read. It is not called under mu.
func (c *conn) cutOff(err error) error {
	if err == errSlow {
		c.shut(CodeStream, err)
		return ErrClosed
	}
	return err
}

// reply brings a reply to the request that waits for it, if one does.
func (c *conn) reply(m message) {
	c.mu.Lock()
	reply := c.calls[m.ID]
	delete(c.calls, m.ID)
	c.mu.Unlock()
	if reply != nil {
		reply <- m // of capacity 1, and taken out of calls: never blocks
	}
}

// maxCalls is how many requests of ours may wait for replies of one peer.
const maxCalls = 8192

// call queues a request; the reply comes on reply unless it is nil. Its error goes through cutOff.
func (c *conn) call(name string, body []byte, reply chan message) (id int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.down:
		return 0, ErrClosed
	case reply != nil && len(c.calls) >= maxCalls:
		return 0, ErrBusy
	}
	// Under the lock, because ids are to be sent in ascending order without gaps.
	id = c.nextID
	if err := c.out.put(&message{Type: typeRequest, ID: id, Name: name, Body: body}); err != nil {
		return 0, err
	}
	c.nextID++
	if reply != nil {
		c.calls[id] = reply
	}
	return id, nil
}

func (c *conn) Command(name string, body []byte) error {
	_, err := c.call(name, body, nil)
	return c.cutOff(err)
}

func (c *conn) Request(ctx context.Context, name string, body []byte) ([]byte, error) {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	reply := make(chan message, 1)
	id, err := c.call(name, body, reply)
	if err != nil {
		return nil, c.cutOff(err)
	}
	select {
	case m, ok := <-reply:
		switch {
		case !ok:
			return nil, ErrClosed
		case m.Type == typeError:
			return nil, &ReplyError{Body: m.Body}
		}
		return m.Body, nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.calls, id)
		c.mu.Unlock()
		return nil, timeoutOf(ctx)
	}
}

// ---- figures ----

func (c *conn) Stats() ConnStats {
	c.askM() // else it is known only as far as datagrams needed it
	w := c.qc.ConnectionStats()
	s := ConnStats{
		DatagramsIn: c.datagramsIn.datagrams.Load(), DatagramsOut: c.datagramsOut.datagrams.Load(),
		BytesIn: c.datagramsIn.bytes.Load(), BytesOut: c.datagramsOut.bytes.Load(),
		SplitIn: c.datagramsIn.split.Load(), SplitOut: c.datagramsOut.split.Load(),
		MessagesIn: c.messagesIn.Load(), MessagesOut: c.out.messages.Load(),
		StreamBytesIn: c.streamIn.Load(), StreamBytesOut: c.out.bytes.Load(),

		DropFull: c.datagrams.full.Load(), DropStanding: c.datagrams.stood.Load(), DropClosed: c.datagrams.ended.Load(), DropTooLarge: c.dropTooLarge.Load(),
		DropInvalid: c.join.invalid.Load(), DropHalf: c.join.halves.Load(), DropRequests: c.refused.Load(),

		WirePacketsIn: w.PacketsReceived, WirePacketsOut: w.PacketsSent, WirePacketsLost: w.PacketsLost,
		WireBytesIn: w.BytesReceived, WireBytesOut: w.BytesSent,
		Twice:   c.join.twice.Load(),
		Waiting: c.datagrams.len(), M: uint64(c.m.Load()), RTT: w.SmoothedRTT,
	}
	if h := c.hooked.Load(); h != nil {
		s.Repaired, s.Unrepaired = h.flight.repaired.Load(), h.flight.unrepaired.Load()
		s.WirePacketsLate = any(c.qc).(hooker).SpuriousLosses()
	}
	return s
}
