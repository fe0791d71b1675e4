package link

import (
	"time"

	"lokinetd/router/packet"
)

// Datagrams over a quic-go that leaves them to us (overlay): it asks for the next one when it makes a packet, from its own goroutine, and hands over what
// arrives from there too. No other goroutine is woken, nothing is copied but into and out of the packet, nothing waits in a queue that cannot drop, and
// lost datagrams are repaired.
//
// Out:
//  1. Send puts the datagram on the connection's queue (fair.go) and wakes quic-go if it was empty.
//  2. quic-go asks: what was lost goes first (repair.go), then the queue's next, cut into one frame or two (hooked.Peek).
//  3. quic-go has sent the frame, and tells in the end what became of it (Pop, Acked, Lost).
//
// In: the frame is put together with its other half, if it is one, and delivered (hooked.Receive). Connections to which that has led something
// are woken when quic-go has gone through the packets that are there (hooked.Received), or at 16 datagrams: that is what goes out in one call.

// hooker is what the changed quic-go can do more.
type hooker interface {
	HookDatagrams(owner interface {
		Peek(max int) []byte
		Pop() (mark any)
		Acked(mark any)
		Lost(mark any, known bool)
		Discarded(mark any)
		Receive(p []byte)
		Received()
	}) (wake func())
	SpuriousLosses() uint64
}

// hooked is the owner of a connection's datagrams. All calls come from one goroutine at a time; the last one is close.
type hooked struct {
	c      *conn
	flight flight

	batch  [8]*packet.Buffer // of the queue; few, because they cannot be dropped any more when newer ones come
	n      int
	now    time.Time      // when batch was filled
	frame  *packet.Buffer // the next to be sent for the first time
	size   int            // of its datagram, when frame is the last of it
	second *packet.Buffer // the half that follows it
	again  bool           // Peek has returned the flight's next, not frame
	corked bool           // between the first Receive and Received
}

// hookable says whether quic-go leaves the datagrams to us.
func (c *conn) hookable() bool {
	_, ok := any(c.qc).(hooker)
	return ok && !c.q.original
}

// hook takes over the datagrams of an open, hookable connection.
func (c *conn) hook() {
	h := &hooked{c: c}
	h.flight.all = &c.q.kept
	c.hooked.Store(h)
	c.datagrams.notify(any(c.qc).(hooker).HookDatagrams(h))
}

func (h *hooked) Peek(max int) []byte {
	if h.again = false; h.flight.waits() {
		if m := h.flight.next(time.Now()); m != nil {
			h.again = true
			return m.b.Data
		}
	}
	if h.frame == nil && !h.fill(max) {
		return nil
	}
	return h.frame.Data
}

// fill makes frame the next one of the queue; false when there is none.
func (h *hooked) fill(max int) bool {
	if h.second != nil {
		h.frame, h.second = h.second, nil
		return true
	}
	c := h.c
	if m := int64(max) + tooLargeOverhead; c.m.Load() != m {
		c.m.Store(m)
	}
	for {
		if h.n == 0 {
			h.now = time.Now()
			if h.n = c.datagrams.pop(h.batch[:], h.now); h.n == 0 {
				return false
			}
			for i, j := 0, h.n-1; i < j; i, j = i+1, j-1 { // the next is the last
				h.batch[i], h.batch[j] = h.batch[j], h.batch[i]
			}
		}
		h.n--
		b := h.batch[h.n]
		h.batch[h.n] = nil
		cut := c.split.cut(len(b.Data), pieceOf(int(c.m.Load())))
		if cut.frames == 0 {
			c.dropTooLarge.Add(1)
			b.Release()
			continue
		}
		h.size = len(b.Data)
		h.frame, h.second = b, cut.divide(b)
		return true
	}
}

func (h *hooked) Pop() (mark any) {
	if h.again {
		return h.flight.again()
	}
	b := h.frame
	h.frame = nil
	if h.second == nil {
		h.c.datagramsOut.count(h.size, b.Data[1]&flagFirst != 0)
	}
	return h.flight.sent(b, h.now)
}

func (h *hooked) Acked(mark any) { h.flight.acked(mark.(*frame)) }

func (h *hooked) Lost(mark any, known bool) { h.flight.lost(mark.(*frame), known, time.Now()) }

// Discarded: M has shrunk since the frame was cut, because the peer has migrated to another path.
func (h *hooked) Discarded(mark any) {
	h.c.dropTooLarge.Add(1)
	h.flight.settle(mark.(*frame))
}

func (h *hooked) Receive(p []byte) {
	if !h.corked {
		h.corked = true
		h.c.q.cork.put()
	}
	h.c.deliver(p)
}

func (h *hooked) Received() {
	if h.corked {
		h.corked = false
		h.c.q.cork.pull()
	}
}

// close gives up all that is left. quic-go no longer calls.
func (h *hooked) close() {
	h.Received() // it may have ended between two datagrams
	h.flight.close()
	for _, b := range append(h.batch[:h.n], h.frame, h.second) {
		if b != nil {
			b.Release()
			h.c.datagrams.ended.Add(1)
		}
	}
}
