package link

import (
	"sync/atomic"
	"time"

	"lokinetd/router/packet"
)

// Repair of lost datagrams, without I/O. Twelve links lie between two clients and back, so what each link loses adds up: of 5 % lost on every link almost half
// of all questions would stay without their answer. So a datagram that quic-go takes for lost is sent once more, before all others:
// of 5 % a quarter of a percent is left. Once, because the traffic inside has its own repetition, and what is lost twice is
// likelier lost for want of room than by accident.
//
//  1. A frame is sent: keep its buffer (flight.sent).
//  2. Acknowledged: release it (flight.acked).
//  3. Lost, or the connection wants something to probe its peer with: queue it again, unless that was its repetition, or it is too old, or its buffer is gone (flight.lost).
//
// A packet can be taken for lost and arrive late, so a datagram can arrive twice, as IP packets can. The joiner at the other end counts that.

// repairAge is how old a lost datagram may be, from its first sending, to be sent again. It is when the packet inside has certainly been repeated by who sent it: TCP waits
// 1 s at first and less once it knows the way. A link's own round trip is far below.
const repairAge = time.Second

const (
	// keepMax is how many buffers of 3 kB one connection keeps: 6 MB, or 20 Mbit for each second of its round trip. More in flight: the oldest are given up.
	keepMax = 2048
	// keepAll is the same for all connections of an endpoint together: 48 MB. Each may keep keepFew beyond it.
	keepAll = 16384
	keepFew = 32
	// givenMax is how many buffers that were given up wait for their packet to be made: as many as the smallest frames fit into one.
	givenMax = 256
)

// frame is one DATAGRAM frame in the hands of quic-go.
type frame struct {
	b            *packet.Buffer // its payload; nil: given up
	at           time.Time      // first sent
	again        bool           // sent for the second time
	older, newer *frame         // among those that are kept
}

// flight is what was sent on one connection and not settled yet. The zero value needs all.
type flight struct {
	all *atomic.Int64 // buffers that flights keep together

	oldest, newest *frame
	kept           int
	lostOnes       []*frame         // to be sent again, in order
	spare          *frame           // settled frames for reuse, linked by newer
	given          []*packet.Buffer // given up by sent, in order; the last may be in the packet that is being made

	repaired   atomic.Uint64 // sent again
	unrepaired atomic.Uint64 // known to be lost and not sent again: too old, no longer kept, or for the second time
}

// sent notes that b was sent and returns its frame. b belongs to the flight and does not change until it is settled.
func (f *flight) sent(b *packet.Buffer, now time.Time) *frame {
	for f.kept >= keepMax || f.kept >= keepFew && f.all.Load() >= keepAll {
		f.give(f.take(f.oldest))
	}
	m := f.spare
	if m != nil {
		f.spare = m.newer
	} else {
		m = new(frame)
	}
	*m = frame{b: b, at: now, older: f.newest}
	if f.newest != nil {
		f.newest.newer = m
	} else {
		f.oldest = m
	}
	f.newest = m
	f.kept++
	f.all.Add(1)
	return m
}

// waits says whether something may have to be sent again.
func (f *flight) waits() bool { return len(f.lostOnes) > 0 }

// next is the frame to be sent again, nil for none; again takes it.
func (f *flight) next(now time.Time) *frame {
	for f.waits() {
		if m := f.lostOnes[0]; m.repairable(now) {
			return m
		}
		f.unrepaired.Add(1)
		f.settle(f.shift())
	}
	return nil
}

func (m *frame) repairable(now time.Time) bool {
	return m.b != nil && !m.again && now.Sub(m.at) <= repairAge
}

// again notes that the frame which next returned was sent.
func (f *flight) again() *frame {
	m := f.shift()
	m.again = true
	f.repaired.Add(1)
	return m
}

func (f *flight) shift() *frame {
	m := f.lostOnes[0]
	n := copy(f.lostOnes, f.lostOnes[1:])
	f.lostOnes[n] = nil
	f.lostOnes = f.lostOnes[:n]
	return m
}

// give gives up b. quic-go writes a packet when it has popped all that goes into it, so b may still be needed for this one.
func (f *flight) give(b *packet.Buffer) {
	if len(f.given) == givenMax {
		f.given[0].Release()
		f.given = append(f.given[:0], f.given[1:]...)
	}
	f.given = append(f.given, b)
}

// letGo releases what was given up. No packet is being made.
func (f *flight) letGo() {
	for _, b := range f.given {
		b.Release()
	}
	clear(f.given)
	f.given = f.given[:0]
}

func (f *flight) acked(m *frame) {
	f.letGo()
	f.settle(m)
}

// lost notes that m did not arrive; known is false when that is only possible.
func (f *flight) lost(m *frame, known bool, now time.Time) {
	f.letGo()
	if m.repairable(now) {
		f.lostOnes = append(f.lostOnes, m)
		return
	}
	if known {
		f.unrepaired.Add(1)
	}
	f.settle(m)
}

// settle forgets m.
func (f *flight) settle(m *frame) {
	f.release(m)
	*m = frame{newer: f.spare}
	f.spare = m
}

// release gives up m's buffer. The frame stays known to quic-go.
func (f *flight) release(m *frame) {
	if m.b != nil {
		f.take(m).Release()
	}
}

// take takes the buffer of m, which has one.
func (f *flight) take(m *frame) *packet.Buffer {
	b := m.b
	m.b = nil
	if m.older != nil {
		m.older.newer = m.newer
	} else {
		f.oldest = m.newer
	}
	if m.newer != nil {
		m.newer.older = m.older
	} else {
		f.newest = m.older
	}
	m.older, m.newer = nil, nil
	f.kept--
	f.all.Add(-1)
	return b
}

// close gives up all.
func (f *flight) close() {
	f.letGo()
	for f.oldest != nil {
		f.release(f.oldest)
	}
	f.lostOnes, f.spare = nil, nil
}
