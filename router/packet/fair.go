package packet

import (
	"math"
	"math/rand/v2"
	"time"
)

// Fair is a queue that is fair between flows, as FQ-CoDel is (RFC 8290): each flow in turn gets about flowQuantum bytes out, and a flow that comes with
// something after it had nothing goes before those that always have, so that questions and answers pass whatever is copied beside them. A flow whose queue
// stands loses some now and then, which tells those who send to send less (codel). When the queue is full, the flow that has most in it loses its oldest. So who
// sends more than there is room for harms himself only. Within a flow the order stays.
//
// It is for one goroutine at a time, or under its user's lock.
type Fair struct {
	maxBytes int
	maxCount int
	salt     uint64    // odd; which flows share a place is known to nobody else
	began    time.Time // the first Push: times below are since then, so that an idle queue is 4 kB, not 8

	items  []queued
	free   int32 // first of the free items, or absent
	flows  [flowCount]flow
	fresh  turns // flows that have had less than one turn since they were idle
	steady turns // the others, and those of fresh that got empty: else one could stay fresh by being empty often
	n      int
	bytes  int
}

const (
	flowCount = 64
	// flowQuantum is about one packet.
	flowQuantum = 1500
	absent      = -1
)

type queued struct {
	b    *Buffer
	at   time.Duration // pushed
	next int32         // in its flow, or in the free list
}

type flow struct {
	head, tail int32 // valid while n > 0
	n, bytes   int32
	credit     int32 // bytes left of its turn
	listed     bool
	next       int8
	codel      codel
}

// turns are flows in the order of their turns.
type turns struct{ first, last int8 }

// NewFair makes a queue that holds so much at most.
func NewFair(maxBytes, maxCount int) *Fair {
	none := turns{absent, absent}
	return &Fair{maxBytes: maxBytes, maxCount: maxCount, salt: rand.Uint64() | 1, free: absent, fresh: none, steady: none}
}

// Len is how many packets wait, Bytes how many bytes.
func (q *Fair) Len() int   { return q.n }
func (q *Fair) Bytes() int { return q.bytes }

// place is where a flow waits: flows are many, places are few.
func (q *Fair) place(flow uint64) int8 { return int8(flow * q.salt >> (64 - 6)) }

// Push takes ownership of b, a packet of the given flow. It says how many others were dropped for want of room.
func (q *Fair) Push(b *Buffer, flow uint64, now time.Time) (dropped int) {
	return q.PushWithin(q.maxCount, b, flow, now)
}

// PushWithin is Push into a queue that holds count packets at most, if that is less.
func (q *Fair) PushWithin(count int, b *Buffer, flow uint64, now time.Time) (dropped int) {
	count = min(count, q.maxCount)
	for q.n > 0 && (q.n >= count || q.bytes+len(b.Data) > q.maxBytes) {
		q.take(q.largest()).Release()
		dropped++
	}
	if q.began.IsZero() {
		q.began = now
	}
	i := q.slot()
	q.items[i] = queued{b: b, at: now.Sub(q.began), next: absent}
	at := q.place(flow)
	f := &q.flows[at]
	if f.n == 0 {
		f.head = i
	} else {
		q.items[f.tail].next = i
	}
	f.tail = i
	f.n++
	f.bytes += int32(len(b.Data))
	if !f.listed {
		f.listed, f.credit = true, flowQuantum
		q.append(&q.fresh, at)
	}
	q.n++
	q.bytes += len(b.Data)
	return dropped
}

// slot is the place of a free item.
func (q *Fair) slot() int32 {
	if i := q.free; i != absent {
		q.free = q.items[i].next
		return i
	}
	q.items = append(q.items, queued{})
	return int32(len(q.items) - 1)
}

// append gives flow at the last turn.
func (q *Fair) append(t *turns, at int8) {
	q.flows[at].next = absent
	if t.first == absent {
		t.first = at
	} else {
		q.flows[t.last].next = at
	}
	t.last = at
}

// shift takes out the flow whose turn it is.
func (q *Fair) shift(t *turns) (at int8) {
	at = t.first
	t.first = q.flows[at].next
	return at
}

// largest is the flow that has most bytes in the queue, and has a packet.
func (q *Fair) largest() (at int8) {
	for i := range q.flows {
		if f := &q.flows[at]; f.n == 0 || q.flows[i].bytes > f.bytes {
			at = int8(i)
		}
	}
	return at
}

// take takes the oldest of flow at, which has one.
func (q *Fair) take(at int8) *Buffer {
	f := &q.flows[at]
	i := f.head
	b := q.items[i].b
	f.head = q.items[i].next
	q.items[i] = queued{next: q.free}
	q.free = i
	f.n--
	f.bytes -= int32(len(b.Data))
	q.n--
	q.bytes -= len(b.Data)
	return b
}

// Pop moves the next packets to dst and returns how many; they are the caller's. It says how many were dropped because their flow stands.
func (q *Fair) Pop(dst []*Buffer, now time.Time) (n, stood int) {
	since := now.Sub(q.began)
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
			waited := since - q.items[f.head].at
			b := q.take(at)
			if f.codel.drops(waited, f.bytes, since) {
				stood++
				b.Release()
				continue
			}
			f.credit -= int32(len(b.Data))
			dst[n] = b
			n++
		}
	}
	return n, stood
}

// Clear drops all and says how many.
func (q *Fair) Clear() (dropped int) {
	for ; q.n > 0; dropped++ {
		q.take(q.largest()).Release()
	}
	q.items, q.free = nil, absent
	return dropped
}

// codel says which packets of a queue that stands are dropped (RFC 8289): first one, when none has waited less than codelTarget for codelInterval,
// then more and more often until one has.
type codel struct {
	above    time.Duration // when the first drop is due, if none waits less until then; 0: the last one has
	next     time.Duration // while dropping, or the last that would have been
	count    int32         // since dropping began, and last at its begin
	last     int32
	dropping bool
}

const (
	codelTarget   = 5 * time.Millisecond
	codelInterval = 100 * time.Millisecond
)

// drops says what becomes of a packet that has waited, with so many bytes behind it.
func (c *codel) drops(waited time.Duration, behind int32, now time.Duration) bool {
	stands := c.stands(waited, behind, now)
	if c.dropping {
		c.dropping = stands
		if !stands || now < c.next {
			return false
		}
		c.count++
		c.next += c.pause()
		return true
	}
	if !stands {
		return false
	}
	// What the rate of drops was shortly ago is where to begin again.
	if since := c.count - c.last; since > 1 && now-c.next < 16*codelInterval {
		c.count = since
	} else {
		c.count = 1
	}
	c.dropping, c.last, c.next = true, c.count, now+c.pause()
	return true
}

func (c *codel) stands(waited time.Duration, behind int32, now time.Duration) bool {
	switch {
	case waited < codelTarget || behind <= flowQuantum:
		c.above = 0
		return false
	case c.above == 0:
		c.above = now + codelInterval
		return false
	}
	return now >= c.above
}

func (c *codel) pause() time.Duration {
	return time.Duration(float64(codelInterval) / math.Sqrt(float64(c.count)))
}
