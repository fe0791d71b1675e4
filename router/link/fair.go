package link

import (
	"encoding/binary"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/packet"
)

// datagramQueue holds what is to be sent on one connection, between any number of callers of push and one of pop. It never blocks. It is fair
// between the paths that lead over the connection ([packet.Fair]); all sessions of a path are one flow, so that what stands there loses some now and then
// alone keeps the wait short for what shares a path with a copy.
type datagramQueue struct {
	wake  chan struct{} // of capacity 1; filled when the queue is no longer empty, until notify
	crowd *crowd        // nil: nobody waits for room
	cork  *cork         // nil: signals are given at once
	all   *atomic.Int64 // datagrams in all queues of the endpoint; nil: not counted

	mu     sync.Mutex
	signal func() // what to do instead of filling wake
	fair   *packet.Fair
	inWay  bool // counted in crowd
	closed bool

	full  atomic.Uint64 // dropped: the oldest of the largest flow in a full queue
	stood atomic.Uint64 // dropped: from a flow that stands
	ended atomic.Uint64 // dropped: after close
}

func newDatagramQueue(maxBytes, maxCount int) *datagramQueue {
	return &datagramQueue{wake: make(chan struct{}, 1), fair: packet.NewFair(maxBytes, maxCount)}
}

// flowOf is the flow of a datagram: it ends with a hop id of 16 bytes and one byte of type (protocol 2 section 4.4).
func flowOf(datagram []byte) uint64 {
	const trailer = 17
	if len(datagram) < trailer {
		return 0
	}
	return binary.LittleEndian.Uint64(datagram[len(datagram)-trailer:])
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
	dropped := q.fair.PushWithin(q.room(), b, flowOf(b.Data), now)
	q.full.Add(uint64(dropped))
	q.count(1 - dropped)
	if q.crowd != nil && !q.inWay && q.fair.Bytes() >= crowdedBytes {
		q.inWay = true
		q.crowd.add()
	}
	first, signal := q.fair.Len() == 1, q.signal
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

const (
	// queuedAll is how many datagrams, of 3 kB each, wait in all queues of an endpoint until those that hold more than queuedFree grow no more: peers who do not read
	// make others' packets wait here.
	queuedAll  = 16384
	queuedFree = 32
)

// room is how many datagrams the queue may hold with one more.
func (q *datagramQueue) room() int {
	if q.all == nil || q.all.Load() < queuedAll {
		return math.MaxInt
	}
	return max(queuedFree, q.fair.Len())
}

func (q *datagramQueue) count(n int) {
	if q.all != nil && n != 0 {
		q.all.Add(int64(n))
	}
}

// pop moves the next datagrams to dst and returns how many; they are the caller's.
func (q *datagramQueue) pop(dst []*packet.Buffer, now time.Time) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, stood := q.fair.Pop(dst, now)
	q.stood.Add(uint64(stood))
	q.count(-n - stood)
	q.settle()
	return n
}

// settle tells those who wait that there is room again.
func (q *datagramQueue) settle() {
	if q.inWay && q.fair.Bytes() <= crowdedBytes/2 {
		q.inWay = false
		q.crowd.remove()
	}
}

func (q *datagramQueue) len() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return uint64(q.fair.Len())
}

// close drops what is queued and whatever will be pushed.
func (q *datagramQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	left := q.fair.Clear()
	q.ended.Add(uint64(left))
	q.count(-left)
	q.settle()
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
