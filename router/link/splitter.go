package link

import (
	"encoding/binary"
	"sync/atomic"

	"lokinetd/router/packet"
)

// Datagram ids, splitting and joining (protocol 2 section 4), without I/O.
//
// An application datagram goes out like this:
//  1. take the next counter, and decide by the path's size into how many frames it goes (splitter.cut);
//  2. write the id in front of the frame: into the headroom for the first, over bytes already sent for the second (cut.frame);
//  3. hand the frame to quic-go, which copies it (sender of conn.go).
//
// Over the changed quic-go the first two steps make frames in buffers of their own (cut.divide), because both may have to be sent again.
//
// One comes in like that:
//  1. read the id; drop what has none (joiner.add);
//  2. whole: copy it into a pooled buffer and deliver it;
//  3. half: look for the other half; there: join and deliver; not there: keep this one in its slot, unless both were there before.

const (
	dgidSize    = 2
	counterMask = 1<<14 - 1

	flagWhole  = 0b00
	flagBad    = 0b01
	flagFirst  = 0b10
	flagSecond = 0b11

	// frameOverhead is what QUIC and the id take of a UDP payload at most: 1 flags, 20 connection id, 4 packet number, 16 tag, 1 frame type, 2 length,
	// 2 id. It also stays out of the zone just below quic-go's own limit where datagrams vanish silently (protocol 5 section 4.2).
	frameOverhead = 44 + dgidSize
	// tooLargeOverhead is what quic-go subtracts from M in a DatagramTooLargeError.
	tooLargeOverhead = 37
	// minM is the UDP payload that every path carries.
	minM = 1200
)

// pieceOf is how many application bytes one frame holds on a path of UDP payload m; negative for nonsense that a peer may announce.
func pieceOf(m int) int { return m - frameOverhead }

// splitter numbers the datagrams of one direction of a connection. The zero value is ready.
type splitter struct{ counter uint16 }

// cut is how one datagram is sent.
type cut struct {
	frames int    // 1 or 2; 0: too large, and no number was used
	first  int    // application bytes in the first frame
	dgid   uint16 // of the whole datagram: counter << 2
}

// cut numbers a datagram of n bytes and says how it is cut when a frame holds piece.
func (s *splitter) cut(n, piece int) cut {
	c := recut(s.counter<<2, n, piece)
	if c.frames > 0 {
		s.counter = (s.counter + 1) & counterMask
	}
	return c
}

// recut is cut for a datagram that has its number already.
func recut(dgid uint16, n, piece int) cut {
	switch {
	case n <= piece:
		return cut{frames: 1, first: n, dgid: dgid}
	case piece > 0 && n <= 2*piece:
		return cut{frames: 2, first: piece, dgid: dgid}
	}
	return cut{}
}

// frame returns the payload of frame i, borrowed from room until the next call. room is the datagram with two bytes before it, which belong to frame.
// Frame 1 overwrites the last two bytes of frame 0, so it comes after frame 0 was sent, and nothing can be sent again then.
func (c *cut) frame(room []byte, i int) []byte {
	switch {
	case c.frames == 1:
		binary.BigEndian.PutUint16(room, c.dgid|flagWhole)
		return room
	case i == 0:
		binary.BigEndian.PutUint16(room, c.dgid|flagFirst)
		return room[:dgidSize+c.first]
	}
	room = room[c.first:]
	binary.BigEndian.PutUint16(room, c.dgid|flagSecond)
	return room
}

// divide makes b the first frame and returns the second, nil when there is one only. b is the whole datagram.
func (c *cut) divide(b *packet.Buffer) (second *packet.Buffer) {
	flags := uint16(flagWhole)
	if c.frames == 2 {
		flags = flagFirst
		second = packet.Get()
		second.Set(b.Data[c.first:])
		binary.BigEndian.PutUint16(second.Prepend(dgidSize), c.dgid|flagSecond)
		b.Data = b.Data[:c.first]
	}
	binary.BigEndian.PutUint16(b.Prepend(dgidSize), c.dgid|flags)
	return second
}

const (
	// joinSlots is how many halves a joiner can keep, at most 3 kB each. A half waits until another half comes for its slot, which is at least joinSlots datagrams
	// later: its other half may have to be repaired, which takes a round trip and more, 200 ms at 10,000 datagrams a second.
	joinSlots = 2048
	// joinFree halves a joiner may always keep; those beyond it are counted and may be joinAll in all joiners of an endpoint. What is kept
	// is what a hostile peer can make us keep.
	joinFree = 256
	joinAll  = 16384
	// seenMax is for how many datagrams a joiner remembers whether it had them. It is a power of two below the half of the counter's range.
	seenMax = 4096
)

// joiner puts split datagrams together again, for one direction of a connection. The zero value is ready; release empties it. It never
// joins halves of different datagrams: counters are continued beyond their 14 bits, so that a half whose other was
// lost does not meet one of 16,384 datagrams later. What comes a second time, because the sender took it for lost, is counted and, when
// whole, delivered again: IP packets may come twice, and a peer that does not count as it should is not cut off.
type joiner struct {
	all    *atomic.Int64          // halves that joiners keep together beyond joinFree each; nil: no limit
	latest uint64                 // highest continued counter seen
	seen   [seenMax / 64]uint64   // bit counter%seenMax: it is complete; for those from latest-seenMax+1 to latest
	slots  *[joinSlots]joinerSlot // made at the first half; most connections never see one
	kept   int

	// Drops: datagrams without id, with flags 01 or too large; halves given up; not dropped: what came again. They may be read while add runs.
	invalid, halves, twice atomic.Uint64
}

type joinerSlot struct {
	half    *packet.Buffer // nil: empty
	counter uint64
	second  bool
}

// add takes one frame payload, which it does not keep, and returns a complete datagram or nil; split says that it came in two parts. The buffer is the caller's.
func (j *joiner) add(frame []byte) (b *packet.Buffer, split bool) {
	if len(frame) < dgidSize {
		j.invalid.Add(1)
		return nil, false
	}
	dgid := binary.BigEndian.Uint16(frame)
	body := frame[dgidSize:]
	flags := dgid & 0b11
	if flags == flagBad || len(body) > packet.MaxData {
		j.invalid.Add(1)
		return nil, false
	}
	counter := j.extend(dgid >> 2)
	had := j.had(counter)
	if had {
		j.twice.Add(1)
	}
	if flags == flagWhole {
		j.complete(counter)
		b = packet.Get()
		b.Set(body)
		return b, false
	}
	if had { // its other half is gone and does not come again
		return nil, false
	}
	return j.half(counter, flags == flagSecond, body), true
}

// had says whether the datagram was complete before. What is too old to be known counts as new.
func (j *joiner) had(counter uint64) bool {
	return counter+seenMax > j.latest && j.seen[counter%seenMax/64]>>(counter%64)&1 != 0
}

func (j *joiner) complete(counter uint64) {
	if counter+seenMax > j.latest {
		j.seen[counter%seenMax/64] |= 1 << (counter % 64)
	}
}

// extend continues a 14-bit counter: of all numbers that end in it the one nearest to the latest.
func (j *joiner) extend(counter uint16) uint64 {
	ahead := (uint64(counter) - j.latest) & counterMask
	c := j.latest + ahead
	if ahead > counterMask/2 && c >= counterMask+1 {
		c -= counterMask + 1
	}
	for n := min(c, j.latest+seenMax); j.latest < n; {
		j.latest++
		j.seen[j.latest%seenMax/64] &^= 1 << (j.latest % 64)
	}
	j.latest = max(j.latest, c)
	return c
}

func (j *joiner) half(counter uint64, second bool, body []byte) *packet.Buffer {
	if j.slots == nil {
		j.slots = new([joinSlots]joinerSlot)
	}
	s := &j.slots[counter%joinSlots]
	if s.half == nil || s.counter != counter || s.second == second {
		j.drop(s) // of another datagram, or the same half once more
		if !j.room() {
			j.halves.Add(1)
			return nil
		}
		b := packet.Get()
		b.Set(body)
		*s = joinerSlot{half: b, counter: counter, second: second}
		return nil
	}
	kept := s.half
	j.free(s)
	j.complete(counter)
	if len(kept.Data)+len(body) > packet.MaxData {
		kept.Release()
		j.invalid.Add(1)
		return nil
	}
	if second {
		copy(kept.Extend(len(body)), body)
		return kept
	}
	b := packet.Get()
	b.Set(body)
	copy(b.Extend(len(kept.Data)), kept.Data)
	kept.Release()
	return b
}

// room counts one more half that is kept, if it may be.
func (j *joiner) room() bool {
	if j.kept >= joinFree && j.all != nil && j.all.Add(1) > joinAll {
		j.all.Add(-1)
		return false
	}
	j.kept++
	return true
}

// free empties a slot.
func (j *joiner) free(s *joinerSlot) {
	*s = joinerSlot{}
	if j.kept--; j.kept >= joinFree && j.all != nil {
		j.all.Add(-1)
	}
}

func (j *joiner) drop(s *joinerSlot) {
	if s.half != nil {
		s.half.Release()
		j.free(s)
		j.halves.Add(1)
	}
}

// release gives up all halves.
func (j *joiner) release() {
	if j.slots != nil {
		for i := range j.slots {
			j.drop(&j.slots[i])
		}
	}
}
