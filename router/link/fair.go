package link

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/packet"
)

// datagramQueue holds what is to be sent on one connection, between any number of callers of push and one of pop. It never blocks. It is fair
// between flows, which are the paths that lead over the connection, as FQ-CoDel is (RFC 8290): each in turn sends about flowQuantum bytes, and a flow that comes with
// something after it had nothing goes before those that always have, so that questions and answers pass whatever is copied on other paths. A flow whose queue
// stands loses some now and then, which tells those who send to send less (codel); all sessions of a path are one flow, so that alone keeps
// the wait short for what shares a path with a copy. When the queue is full, the flow that has most in it loses its oldest. So a path that
// sends more than there is room for harms itself only. Within a flow the order stays.
type datagramQueue struct {
	wake     chan struct{} // of capacity 1; filled when the queue is no longer empty, until notify
	maxBytes int
	maxCount int
	crowd    *crowd // nil: nobody waits for room
	cork     *cork  // nil: signals are given at once
	salt     uint64 // odd; which hop ids share a flow is known to nobody else

	mu     sync.Mutex
	signal func() // what to do instead of filling wake
	items  []queued
	free   int32 // first of the free items, or absent
	flows  [flowCount]flow
	fresh  turns // flows that have had less than one turn since they were idle
	steady turns // the others, and those of fresh that got empty: else one could stay fresh by being empty often
	n      int
	bytes  int
	inWay  bool // counted in crowd
	closed bool

	full  atomic.Uint64 // dropped: the oldest of the largest flow in a full queue
	stood atomic.Uint64 // dropped: by codel
	ended atomic.Uint64 // dropped: after close
}

const (
	flowCount = 64
	// flowQuantum is about one packet.
	flowQuantum = 1500
	absent      = -1
)

type queued struct {
	b    *packet.Buffer
	at   time.Time // pushed
	next int32     // in its flow, or in the free list
}

type flow struct {
	head, tail int32 // valid while n > 0
	n, bytes   int
	credit     int // bytes left of its turn
	listed     bool
	next       int8
	codel      codel
}

// turns are flows in the order of their turns.
type turns struct{ first, last int8 }

func newDatagramQueue(maxBytes, maxCount int) *datagramQueue {
	none := turns{absent, absent}
	return &datagramQueue{
		wake: make(chan struct{}, 1), maxBytes: maxBytes, maxCount: maxCount,
		salt: rand.Uint64() | 1, free: absent, fresh: none, steady: none,
	}
}

// flowOf is the flow of a datagram: it ends with a hop id of 16 bytes and one byte of type (protocol 2 section 4.4).
func (q *datagramQueue) flowOf(datagram []byte) int8 {
	const trailer = 17
	if len(datagram) < trailer {
		return 0
	}
	id := binary.LittleEndian.Uint64(datagram[len(datagram)-trailer:])
	return int8(id * q.salt >> (64 - 6))
}

// notify replaces the filling of wake by a call, which must not block and may come at any time.
func (q *datagramQueue) notify(signal func()) {
	q.mu.Lock()
	q.signal = signal
	q.mu.Unlock()
	signal()
}

// push takes ownership of b.
func (q *datagramQueue) push(b *packet.Buffer, now time.Time) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		q.ended.Add(1)
		b.Release()
		return
	}
	for q.n > 0 && (q.n >= q.maxCount || q.bytes+len(b.Data) > q.maxBytes) {
		q.take(q.largest()).Release()
		q.full.Add(1)
	}
	i := q.slot()
	q.items[i] = queued{b: b, at: now, next: absent}
	at := q.flowOf(b.Data)
	f := &q.flows[at]
	if f.n == 0 {
		f.head = i
	} else {
		q.items[f.tail].next = i
	}
	f.tail = i
	f.n++
	f.bytes += len(b.Data)
	if !f.listed {
		f.listed, f.credit = true, flowQuantum
		q.append(&q.fresh, at)
	}
	q.n++
	q.bytes += len(b.Data)
	if q.crowd != nil && !q.inWay && q.bytes >= crowdedBytes {
		q.inWay = true
		q.crowd.add()
	}
	first, signal := q.n == 1, q.signal
	q.mu.Unlock()
	switch {
	case signal != nil:
		if q.cork != nil && q.cork.holds(signal, first) {
			return
		}
		if first {
			signal()
		}
	case first:
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
}

// slot is the place of a free item.
func (q *datagramQueue) slot() int32 {
	if i := q.free; i != absent {
		q.free = q.items[i].next
		return i
	}
	q.items = append(q.items, queued{})
	return int32(len(q.items) - 1)
}

// append gives flow at the last turn.
func (q *datagramQueue) append(t *turns, at int8) {
	q.flows[at].next = absent
	if t.first == absent {
		t.first = at
	} else {
		q.flows[t.last].next = at
	}
	t.last = at
}

// shift takes out the flow whose turn it is.
func (q *datagramQueue) shift(t *turns) (at int8) {
	at = t.first
	t.first = q.flows[at].next
	return at
}

// largest is the flow that has most bytes in the queue; one that has something, since what has no bytes is in the first (flowOf).
func (q *datagramQueue) largest() (at int8) {
	for i := range q.flows {
		if q.flows[i].bytes > q.flows[at].bytes {
			at = int8(i)
		}
	}
	return at
}

// take takes the oldest of flow at, which has one.
func (q *datagramQueue) take(at int8) *packet.Buffer {
	f := &q.flows[at]
	i := f.head
	b := q.items[i].b
	f.head = q.items[i].next
	q.items[i] = queued{next: q.free}
	q.free = i
	f.n--
	f.bytes -= len(b.Data)
	q.n--
	q.bytes -= len(b.Data)
	return b
}

// pop moves the next datagrams to dst and returns how many; they are the caller's.
func (q *datagramQueue) pop(dst []*packet.Buffer, now time.Time) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for n < len(dst) && q.n > 0 {
		t := &q.fresh
		if t.first == absent {
			t = &q.steady
		}
		at := t.first
		f := &q.flows[at]
		switch {
		case f.credit <= 0:
			f.credit += flowQuantum
			q.append(&q.steady, q.shift(t))
		case f.n == 0:
			q.shift(t)
			if f.listed = t == &q.fresh; f.listed {
				q.append(&q.steady, at)
			}
		default:
			waited := now.Sub(q.items[f.head].at)
			b := q.take(at)
			if f.codel.drops(waited, f.bytes, now) {
				q.stood.Add(1)
				b.Release()
				continue
			}
			f.credit -= len(b.Data)
			dst[n] = b
			n++
		}
	}
	q.settle()
	return n
}

// settle tells those who wait that there is room again.
func (q *datagramQueue) settle() {
	if q.inWay && q.bytes <= crowdedBytes/2 {
		q.inWay = false
		q.crowd.remove()
	}
}

func (q *datagramQueue) len() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return uint64(q.n)
}

// close drops what is queued and whatever will be pushed.
func (q *datagramQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for q.n > 0 {
		q.take(q.largest()).Release()
		q.ended.Add(1)
	}
	q.settle()
	q.items = nil
}

// codel says which datagrams of a queue that stands are dropped (RFC 8289): first one, when none has waited less than codelTarget for codelInterval,
// then more and more often until one has.
type codel struct {
	dropping bool
	above    time.Time // when the first drop is due, if none waits less until then; zero: the last one has
	next     time.Time // while dropping, or the last that would have been
	count    int       // since dropping began, and last at its begin
	last     int
}

const (
	codelTarget   = 5 * time.Millisecond
	codelInterval = 100 * time.Millisecond
)

// drops says what becomes of a datagram that has waited, with so many bytes behind it.
func (c *codel) drops(waited time.Duration, behind int, now time.Time) bool {
	stands := c.stands(waited, behind, now)
	if c.dropping {
		c.dropping = stands
		if !stands || now.Before(c.next) {
			return false
		}
		c.count++
		c.next = c.next.Add(c.pause())
		return true
	}
	if !stands {
		return false
	}
	// What the rate of drops was shortly ago is where to begin again.
	if since := c.count - c.last; since > 1 && now.Sub(c.next) < 16*codelInterval {
		c.count = since
	} else {
		c.count = 1
	}
	c.dropping, c.last, c.next = true, c.count, now.Add(c.pause())
	return true
}

func (c *codel) stands(waited time.Duration, behind int, now time.Time) bool {
	switch {
	case waited < codelTarget || behind <= flowQuantum:
		c.above = time.Time{}
		return false
	case c.above.IsZero():
		c.above = now.Add(codelInterval)
		return false
	}
	return !now.Before(c.above)
}

func (c *codel) pause() time.Duration {
	return time.Duration(float64(codelInterval) / math.Sqrt(float64(c.count)))
}

// crowdedBytes is how much a queue holds before its connection counts as crowded, until half of it is left: 5 ms at 100 Mbit/s. More would
// only make packets old.
const crowdedBytes = 64 << 10

// crowd counts the crowded queues of an endpoint.
type crowd struct {
	mu   sync.Mutex
	n    int
	room chan struct{} // closed when n falls to 0; nil while it is 0
}

func (c *crowd) add() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n++; c.n == 1 {
		c.room = make(chan struct{})
	}
}

func (c *crowd) remove() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 {
		close(c.room)
		c.room = nil
	}
}

// wait is closed when no queue is crowded any more; nil when none is.
func (c *crowd) wait() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.room
}

// corkMax is how many datagrams are pushed between two times that signals are given, while they are held back. As many go out in one call. Measured with 6 us
// of work before each push, as at a client: 7.1 us a datagram for both ends of a link instead of 8.1; a relay gains nothing and loses nothing.
const corkMax = 16

// cork holds back the signals of an endpoint's queues while more is about to be pushed: a connection that is woken for the first of many sends
// that alone. The zero value holds nothing.
type cork struct {
	on atomic.Int32 // changed under mu
	n  atomic.Int32 // pushed since signals were given

	mu   sync.Mutex
	held []func()
}

// put begins holding back; each put needs a pull.
func (c *cork) put() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on.Add(1)
}

// pull ends it, and gives all signals, also those that others hold back.
func (c *cork) pull() { c.give(-1) }

func (c *cork) give(puts int32) {
	c.mu.Lock()
	c.on.Add(puts)
	c.n.Store(0)
	var few [8]func()
	held := append(few[:0], c.held...)
	clear(c.held)
	c.held = c.held[:0]
	c.mu.Unlock()
	for _, signal := range held {
		signal()
	}
}

// holds counts one push, to a queue that was empty or was not, and takes the signal for an empty one; false when signals are not held back.
func (c *cork) holds(signal func(), empty bool) bool {
	if c.on.Load() == 0 {
		return false
	}
	if empty {
		c.mu.Lock()
		if c.on.Load() == 0 {
			c.mu.Unlock()
			return false
		}
		c.held = append(c.held, signal)
		c.mu.Unlock()
	}
	if c.n.Add(1) >= corkMax {
		c.give(0)
	}
	return true
}
