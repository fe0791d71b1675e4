package session

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	crand "crypto/rand"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

// One IP packet out:
//
//  1. find what is sent on with the remote, and its route               Table.Send, here
//  2. none yet, or none that lives: queue it, call the remote            Table.hold, table.go
//  3. append the traffic type, draw the nonce, seal in place             session.transmit, here
//  4. append the peer's tag and the pivot id                             session.transmit, here
//  5. layers and trailer                                                 router/path
//
// One datagram in, peeled by router/path:
//
//  1. cut the tag off, find the session                                  Table.datagram, here
//  2. open in place under the message's nonce                            here
//  3. a copy of one that came before: drop                               replay.go
//  4. the peer lives: note the time; the first message, or the first on another session than before, may change what is sent on
//     (Table.proven, table.go)
//  5. cut the traffic type off                                           here
//  6. Config.Deliver                                                     router, netif
//
// Neither allocates or waits for the network. Drops are counted by reason (stats.go).

const (
	tagSize   = 4
	pivotSize = len(path.ID{})
	// overhead is what becomes of a packet behind its end, in bytes: here 37, in router/path 41 (protocol 4 section 1).
	overhead = 1 + seal.TagSize + tagSize + pivotSize + path.TrailerSize
	// MaxPacket is the largest IP packet that a session carries, in bytes.
	MaxPacket = packet.MaxData - overhead
)

// What is sent so soon after a message of the remote may well be the answer to it, and needs none. Of a remote that called us we cannot ask whether it is there, but only look whether our
// path is; so the sooner.
const (
	settled       = 250 * time.Millisecond
	settledCalled = 100 * time.Millisecond
)

// Traffic types (protocol 4 section 1), the last byte of a plaintext.
const (
	trafficUDP = 0
	trafficTCP = 1
	trafficRaw = 2
)

// session is one set of keys with one remote. What is not marked otherwise never changes.
type session struct {
	r        *remote
	own      uint32 // the tag on what comes
	keys     keys
	outbound bool // we sent the init
	since    time.Time

	route atomic.Pointer[route] // nil: none yet
	heard atomic.Int64          // Table.at of the peer's last authentic message; an accept is one, an init is not; 0: none
	said  atomic.Int64          // Table.at of our last packet; 0: none
	sure  atomic.Bool           // a message came under these keys
	// Whether the route works both ways: answered is as heard, but of messages that came over it, asked of the first packet since then that may expect an answer (before
	// answered: none). The peer of a session that we called for answers over the path that it was last told, so what comes over another one says that it was not.
	answered, asked atomic.Int64
	strange         atomic.Int64  // when doubtPackets of those were sent since asked
	askedFrom       atomic.Uint64 // packetsOut at asked

	fresh   sync.Mutex // the nonces that came
	packets replay
	signals replay

	packetsIn, bytesIn, packetsOut, bytesOut atomic.Uint64

	kept kept

	// Of an inbound session that is not sure yet; under Table.ctl.
	init   openedInit // m is not kept
	accept []byte     // its body, to be sent again when the init comes again

	// Of an inbound session; under Table.ctl. See inform.
	round int       // the publication that the remote was told of
	told  time.Time // when
	owed  bool      // it is to be told
}

// route is how a session's messages reach the peer. Immutable but for used; a switch puts another one in its place.
type route struct {
	via   carrier
	pivot path.ID
	bare  bool         // a relay's: no pivot id
	since int64        // Table.at
	used  atomic.Int64 // Table.at of the first packet; 0: none yet
}

// initiator gives the key of the side that called.
func (s *session) initiator(self key.Public) key.Public {
	if s.outbound {
		return self
	}
	return s.r.addr.Key
}

// Send sends one IP packet, whose addresses are zero, to remote, and owns b. A client without a session starts one; the packet then waits, the oldest of more than 30
// are dropped. False: the packet was not sent and will not be; Config.Undeliverable has had it, if there is one.
func (t *Table) Send(to key.Address, b *packet.Buffer) bool {
	ip, err := packet.ParseIP(b.Data)
	if err != nil {
		t.count.DropMalformed.Add(1)
		b.Release()
		return false
	}
	if len(b.Data) > MaxPacket || b.Tail() < overhead {
		t.count.DropLong.Add(1)
		b.Release()
		return false
	}
	t.mu.RLock()
	r := t.remotes[to]
	t.mu.RUnlock()
	now := time.Now()
	if r != nil {
		if s := r.current.Load(); s != nil {
			if w := s.route.Load(); w != nil && w.via.live(now) {
				t.transmit(s, w, b, ip.Proto, now)
				return true
			}
		}
	}
	return t.hold(to, b, ip.Proto, now)
}

// transmit seals a packet of a session and gives it to the path.
func (t *Table) transmit(s *session, w *route, b *packet.Buffer, proto uint8, now time.Time) {
	size := uint64(len(b.Data))
	at := t.at(now)
	silent := at - s.heard.Load()
	if proto == packet.ProtoTCP && silent >= int64(repeatAfter) {
		s.kept.keep(b.Data, at)
	}
	tail := b.Extend(1 + seal.TagSize)
	switch proto {
	case packet.ProtoUDP:
		tail[0] = trafficUDP
	case packet.ProtoTCP:
		tail[0] = trafficTCP
	default:
		tail[0] = trafficRaw
	}
	t.nonce(s, &b.Nonce)
	seal.Seal(b.Data, &s.keys.out, &b.Nonce)
	binary.BigEndian.PutUint32(b.Extend(tagSize), s.keys.peer)
	if !w.bare {
		copy(b.Extend(pivotSize), w.pivot[:])
	}
	s.said.Store(at)
	if w.used.Load() == 0 {
		w.used.Store(at)
	}
	quick := settledCalled
	if s.outbound {
		quick = settled
	}
	if silent >= int64(quick) && s.asked.Load() <= s.answered.Load() {
		s.asked.Store(at)
		s.askedFrom.Store(s.packetsOut.Load())
	}
	if s.packetsOut.Add(1)-s.askedFrom.Load() == doubtPackets {
		s.strange.Store(at)
	}
	s.bytesOut.Add(size)
	t.count.PacketsOut.Add(1)
	t.count.BytesOut.Add(size)
	w.via.send(b)
}

// datagram takes a datagram that a path brought: Data is body and tag.
func (t *Table) datagram(via carrier, b *packet.Buffer) {
	drop := &t.count.DropShort
	if len(b.Data) < tagSize {
		drop.Add(1)
		b.Release()
		return
	}
	tag := binary.BigEndian.Uint32(b.Cut(tagSize))
	s := t.find(tag)
	if s == nil {
		t.count.DropTag.Add(1)
		b.Release()
		return
	}
	plain, ok := seal.Open(b.Data, &s.keys.in, &b.Nonce)
	if !ok {
		t.count.DropForged.Add(1)
		b.Release()
		return
	}
	if !s.first(&s.packets, &s.signals, &b.Nonce) {
		t.count.DropReplayed.Add(1)
		b.Release()
		return
	}
	t.authentic(s, via, time.Now())
	n := len(plain) - 1
	switch {
	case n < 1:
		t.count.DropEmpty.Add(1)
		b.Release()
		return
	case plain[n] > trafficRaw:
		t.count.DropType.Add(1)
		b.Release()
		return
	}
	b.Data = b.Data[:n]
	s.packetsIn.Add(1)
	s.bytesIn.Add(uint64(n))
	t.count.PacketsIn.Add(1)
	t.count.BytesIn.Add(uint64(n))
	t.c.Deliver(s.r.addr, b)
}

func (t *Table) find(tag uint32) *session {
	t.mu.RLock()
	s := t.tags[tag]
	t.mu.RUnlock()
	return s
}

// first remembers the nonce of an authentic message; false: it came before, on this channel or the other, whose messages are under the same key.
func (s *session) first(here, there *replay, n *seal.Nonce) bool {
	s.fresh.Lock()
	ok := !there.seen(n) && here.add(n)
	s.fresh.Unlock()
	return ok
}

// nonce draws the nonce of a message on s. 1.0 keys serve both directions, so it is remembered: what we sent must not come back to us as the remote's.
func (t *Table) nonce(s *session, n *seal.Nonce) {
	t.nonces.draw(n)
	if s.keys.old {
		s.first(&s.packets, &s.signals, n)
	}
}

// inherit takes over what another session with the same key remembers.
func (s *session) inherit(o *session) {
	o.fresh.Lock()
	defer o.fresh.Unlock()
	s.packets, s.signals = o.packets, o.signals
	s.packets.lines, s.signals.lines = slices.Clone(o.packets.lines), slices.Clone(o.signals.lines)
}

// authentic notes that a message of the peer came on s.
func (t *Table) authentic(s *session, via carrier, now time.Time) {
	at := t.at(now)
	s.heard.Store(at)
	switch w := s.route.Load(); {
	case !s.outbound || w == nil || w.via == via:
		s.answered.Store(at)
	case s.asked.Load() <= s.answered.Load():
		if p, _ := w.via.(onion); at-w.since > int64(quietTime(p)) {
			s.asked.Store(at)
		}
	}
	if !s.sure.Load() || s.r.current.Load() != s {
		t.lock()
		t.proven(s, now)
		t.unlock()
	}
}

// nonces draws message nonces. ChaCha8 is cryptographically strong, seeded by the system, and a hundred times cheaper than asking it each time.
type nonces struct {
	mu  sync.Mutex
	src *rand.ChaCha8
}

func newNonces() nonces {
	var seed [32]byte
	crand.Read(seed[:])
	return nonces{src: rand.NewChaCha8(seed)}
}

func (n *nonces) draw(dst *seal.Nonce) {
	n.mu.Lock()
	binary.LittleEndian.PutUint64(dst[0:], n.src.Uint64())
	binary.LittleEndian.PutUint64(dst[8:], n.src.Uint64())
	binary.LittleEndian.PutUint64(dst[16:], n.src.Uint64())
	n.mu.Unlock()
}
