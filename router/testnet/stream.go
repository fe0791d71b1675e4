package testnet

import (
	"encoding/binary"
	"sync"
	"time"

	"lokinetd/router/packet"
)

// stream is a download over TCP, as far as that decides how long it stands still: a server sends numbered segments, a client acknowledges what it has in order. What is
// not acknowledged is sent again after 0.2, 0.4, 0.8 s ..., the last segment sooner (a tail loss probe), the oldest one after three acknowledgements that say the same.
type stream struct {
	client, server *Host
	port           uint16
	pace           time.Duration // between two segments that the server has; 0: it always has some

	mu       sync.Mutex
	over     bool
	has      uint32 // segments that the server has to send, as the following counts
	una, nxt uint32 // acknowledged, sent
	cwnd     float64
	thresh   float64
	same     int       // acknowledgements in a row that say the same
	recover  uint32    // until that is acknowledged nothing is concluded of them
	timed    uint32    // the segment whose round trip is measured
	timedAt  time.Time // zero: none is
	srtt     time.Duration
	vary     time.Duration
	tries    int  // in a row without an acknowledgement
	probed   bool // the tail
	timer    *time.Timer
	asking   *time.Timer // the client's, until the first segment has come

	next  uint32 // what the client lacks first
	early map[uint32]bool
	last  time.Time // when it had it
	worst time.Duration
}

const (
	streamSegment = 500
	streamWindow  = 400 // segments
	streamRTO     = 200 * time.Millisecond
)

// segment makes a TCP packet.
func (s *stream) segment(seq, ack uint32, size int) *packet.Buffer {
	b := packet.Get()
	p := b.Extend(60 + size)
	clear(p)
	p[0] = 0x60
	binary.BigEndian.PutUint16(p[4:], uint16(20+size))
	p[6], p[7] = packet.ProtoTCP, 64
	binary.BigEndian.PutUint16(p[40:], s.port)
	binary.BigEndian.PutUint16(p[42:], s.port)
	binary.BigEndian.PutUint32(p[44:], seq)
	binary.BigEndian.PutUint32(p[48:], ack)
	p[52], p[53] = 5<<4, packet.TCPAck
	return b
}

// download begins one; until end.
func download(client, server *Host, port uint16, pace time.Duration) *stream {
	s := &stream{client: client, server: server, port: port, pace: pace, cwnd: 10, thresh: streamWindow, early: map[uint32]bool{}}
	for _, h := range []*Host{client, server} {
		h.net.mu.Lock()
		h.stream = s
		h.net.mu.Unlock()
	}
	s.ask(time.Second)
	return s
}

func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	for _, t := range []*time.Timer{s.timer, s.asking} {
		if t != nil {
			t.Stop()
		}
	}
}

func (s *stream) ask(again time.Duration) {
	s.client.send(s.server.Address(), s.segment(0, 0, 0))
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over && s.next == 0 {
		s.asking = time.AfterFunc(again, func() { s.ask(2 * again) })
	}
}

// receive takes a packet of the stream at either end.
func (s *stream) receive(at *Host, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	now := time.Now()
	seq, ack := binary.BigEndian.Uint32(p[44:]), binary.BigEndian.Uint32(p[48:])
	if at == s.server {
		s.acknowledged(ack, now)
		return
	}
	if len(p) == 60 {
		return
	}
	if seq >= s.next {
		s.early[seq] = true
	}
	moved := false
	for ; s.early[s.next]; s.next++ {
		delete(s.early, s.next)
		moved = true
	}
	if moved {
		if !s.last.IsZero() {
			s.worst = max(s.worst, now.Sub(s.last))
		}
		s.last = now
	}
	go at.send(s.server.Address(), s.segment(0, s.next, 0))
}

func (s *stream) acknowledged(ack uint32, now time.Time) {
	switch {
	case s.has == 0: // the question
		s.has = 1
		if s.pace > 0 {
			go s.feed()
		}
	case ack > s.una:
		if !s.timedAt.IsZero() && ack > s.timed {
			d := now.Sub(s.timedAt)
			if s.srtt == 0 {
				s.srtt, s.vary = d, d/2
			}
			s.vary += ((d - s.srtt).Abs() - s.vary) / 4
			s.srtt += (d - s.srtt) / 8
			s.timedAt = time.Time{}
		}
		n := float64(ack - s.una)
		s.una, s.nxt = ack, max(ack, s.nxt)
		s.same, s.tries, s.probed = 0, 0, false
		if s.cwnd < s.thresh {
			s.cwnd += n
		} else {
			s.cwnd += n / s.cwnd
		}
		s.cwnd = min(s.cwnd, streamWindow)
		if ack < s.recover { // another hole
			s.put(s.una)
		}
		s.arm()
	case ack == s.una && s.nxt > s.una:
		if s.same++; s.same == 3 && s.una >= s.recover {
			s.recover = s.nxt
			s.thresh = max(s.cwnd/2, 2)
			s.cwnd = s.thresh
			s.timedAt = time.Time{}
			s.put(s.una)
		}
	}
	s.push(now)
}

func (s *stream) feed() {
	for {
		time.Sleep(s.pace)
		s.mu.Lock()
		if s.over {
			s.mu.Unlock()
			return
		}
		s.has++
		s.push(time.Now())
		s.mu.Unlock()
	}
}

// push sends what may be sent.
func (s *stream) push(now time.Time) {
	if s.has == 0 || s.over {
		return
	}
	idle := s.una == s.nxt
	for s.nxt < s.una+uint32(s.cwnd) && (s.pace == 0 || s.nxt < s.has) {
		if s.timedAt.IsZero() {
			s.timed, s.timedAt = s.nxt, now
		}
		s.put(s.nxt)
		s.nxt++
	}
	if idle && s.nxt > s.una {
		s.arm()
	}
}

func (s *stream) put(seq uint32) {
	go s.server.send(s.client.Address(), s.segment(seq, 0, streamSegment))
}

// arm sets the timer anew.
func (s *stream) arm() {
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.una == s.nxt {
		return
	}
	d := max(s.srtt+max(4*s.vary, streamRTO), streamRTO) << min(s.tries, 9)
	if s.srtt == 0 {
		d = time.Second << min(s.tries, 7)
	}
	probe := !s.probed && s.tries == 0 && s.srtt > 0 && 2*s.srtt < d
	if probe {
		d = 2 * s.srtt
	}
	s.timer = time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.over || s.una == s.nxt {
			return
		}
		s.timedAt = time.Time{}
		if probe {
			s.probed = true
			s.put(s.nxt - 1)
		} else {
			s.tries++
			s.thresh, s.cwnd, s.same = max(s.cwnd/2, 2), 1, 0
			s.recover = s.nxt
			s.put(s.una)
		}
		s.arm()
	})
}

// silence gives the longest time in which nothing came, since it was asked before, and how much came in all.
func (s *stream) silence() (time.Duration, uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	worst := s.worst
	s.worst = 0
	if s.last.IsZero() {
		return 0, 0
	}
	return max(worst, time.Since(s.last)), s.next
}

// lately says when something came last.
func (s *stream) lately() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.last)
}
