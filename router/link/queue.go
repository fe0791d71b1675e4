package link

import (
	"errors"
	"sync"
	"sync/atomic"
)

// The bounded queue of a request stream, and the memory that all connections share. That of the datagrams is in fair.go.

// budget bounds the memory of what many buffers hold together.
type budget struct {
	max  int64
	used atomic.Int64
}

// freeShare is how much of each buffer is not counted, so that ordinary connections go on while hostile ones have used up the budget.
const freeShare = 64 << 10

// share is one buffer's part of a budget. One goroutine at a time.
type share struct {
	of      *budget
	counted int64
}

// set says how large the buffer is now; false when the budget does not allow it (it is counted all the same until the next set).
func (s *share) set(size int) bool {
	counted := max(0, int64(size)-freeShare)
	grown := counted - s.counted
	s.counted = counted
	if grown == 0 {
		return true
	}
	return s.of.used.Add(grown) <= s.of.max || grown < 0
}

// errSlow says that the peer does not read its request stream, or all of them together do not.
var errSlow = errors.New("link: peer reads its request stream too slowly")

// outbox holds the encoded messages of a request stream until its writer takes them. put never blocks.
type outbox struct {
	wake chan struct{} // of capacity 1; filled when there is something to take
	max  int           // bytes; one message may be larger when nothing else waits

	mu     sync.Mutex
	buf    []byte // not taken yet
	spare  []byte // an empty buffer for reuse
	unsent int    // bytes not taken or being written
	mem    share
	closed bool

	messages, bytes atomic.Uint64 // put; written
}

func newOutbox(max int, of *budget) *outbox {
	return &outbox{wake: make(chan struct{}, 1), max: max, mem: share{of: of}}
}

// put queues m. Errors: ErrTooLarge, ErrClosed; errSlow, after which the connection is to be closed.
func (o *outbox) put(m *message) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := framedSize(listSize(m))
	switch {
	case o.closed:
		return ErrClosed
	case n > MaxMessage:
		return ErrTooLarge
	case !o.reserve(n):
		return errSlow
	}
	o.buf, _ = appendMessage(o.buf, m)
	o.messages.Add(1)
	o.signal()
	return nil
}

// nudge queues the message that means nothing, unless something waits anyway; it says whether it did.
func (o *outbox) nudge() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.unsent > 0 || !o.reserve(len(nudge)) {
		return false
	}
	o.buf = append(o.buf, nudge...)
	o.signal()
	return true
}

func (o *outbox) reserve(n int) bool {
	if o.unsent > 0 && o.unsent+n > o.max || !o.mem.set(o.unsent+n) {
		return false
	}
	o.unsent += n
	return true
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take returns all that is queued, in order; empty when nothing is. The bytes are the caller's until it calls written.
func (o *outbox) take() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	buf := o.buf
	o.buf, o.spare = o.spare, nil
	return buf
}

// written gives the bytes back that take returned.
func (o *outbox) written(buf []byte) {
	o.bytes.Add(uint64(len(buf)))
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unsent -= len(buf)
	if !o.closed {
		o.mem.set(o.unsent)
	}
	if cap(buf) <= freeShare {
		o.spare = buf[:0]
	}
}

// close drops what is queued and refuses more.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.buf = nil
	o.mem.set(0)
}
