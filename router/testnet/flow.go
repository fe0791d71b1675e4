package testnet

import (
	"encoding/binary"
	"sync"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// A Flow message is a UDP packet over IPv6 with zero addresses, flowSize bytes long.
const flowSize = 200

const (
	kindRequest = 1
	kindReply   = 2
)

// An application repeats what is not answered after 1, 2, 4, 8, 16, 16 ... s, and gives it up after two minutes.
const (
	maxWait  = 16 * time.Second
	patience = 2 * time.Minute
	// lastTries is the end of that: what is not answered then, although there is a route, is lost.
	lastTries = time.Minute
)

// Flow is an application: numbered requests, each answered by the remote.
//
// Its network may know of times in which there was no route to the remote (SetRoute). What is not answered is lost when there was a route for all of lastTries, late when
// there was one for some of it, else cut. The silence of a flow is the time without an answer although there was a route.
type Flow struct {
	from *Host
	to   key.Address

	mu                   sync.Mutex
	waiting              map[uint64]chan struct{}
	Sent, Answered, Lost int
	Late, Cut            int // not answered either
	Tries                int // packets of all requests
	Slowest              time.Duration
	last                 time.Time       // the last answer
	Gap                  time.Duration   // the longest time between two answers
	away                 bool            // there is no route
	changed              time.Time       // when that began or ended; zero: there was a route always
	Silences             []time.Duration // of longSilence and more
}

// longSilence: shorter ones are not noted.
const longSilence = 2500 * time.Millisecond

// SetRoute says whether there is a route to the remote now.
func (f *Flow) SetRoute(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away == on {
		f.heard() // silence until now counts
		f.away, f.changed = !on, time.Now()
	}
}

// heard ends a silence.
func (f *Flow) heard() {
	now := time.Now()
	if from := f.last; !from.IsZero() && !f.away {
		if f.changed.After(from) {
			from = f.changed
		}
		if d := now.Sub(from); d >= longSilence {
			f.Silences = append(f.Silences, d)
		}
	}
}

// flows finds the flow that a reply belongs to.
func (n *Net) receive(h *Host, from key.Address, b *packet.Buffer) {
	ip, err := packet.ParseIP(b.Data)
	if err == nil && ip.Proto == packet.ProtoTCP {
		n.mu.Lock()
		s := h.stream
		n.mu.Unlock()
		if s != nil {
			s.receive(h, b.Data)
		}
	}
	if err != nil || len(b.Data) != flowSize || !ip.Transport {
		b.Release()
		return
	}
	body := b.Data[48:]
	switch body[0] {
	case kindRequest: // the answer is the same packet
		body[0] = kindReply
		h.send(from, b)
		return
	case kindReply:
		n.mu.Lock()
		f := h.apps[from]
		n.mu.Unlock()
		if f != nil {
			f.answer(binary.BigEndian.Uint64(body[1:]))
		}
	}
	b.Release()
}

// Flow makes the application of h that talks to another client; one for each pair and direction.
func (h *Host) Flow(to *Host) *Flow {
	f := &Flow{from: h, to: to.Address(), waiting: map[uint64]chan struct{}{}}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.apps == nil {
		h.apps = map[key.Address]*Flow{}
	}
	h.apps[f.to] = f
	return f
}

func (f *Flow) answer(seq uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ch := f.waiting[seq]; ch != nil {
		close(ch)
		delete(f.waiting, seq)
	}
}

// Ask sends the request number seq and waits for its reply; false: lost.
func (f *Flow) Ask(seq uint64) bool {
	ch := make(chan struct{})
	f.mu.Lock()
	f.waiting[seq] = ch
	f.Sent++
	f.mu.Unlock()
	start := time.Now()
	for wait := time.Second; time.Since(start) < patience; wait = min(2*wait, maxWait) {
		f.mu.Lock()
		f.Tries++
		f.mu.Unlock()
		f.from.send(f.to, request(seq))
		select {
		case <-ch:
			f.mu.Lock()
			f.Answered++
			f.Slowest = max(f.Slowest, time.Since(start))
			if !f.last.IsZero() {
				f.Gap = max(f.Gap, time.Since(f.last))
			}
			f.heard()
			f.last = time.Now()
			f.mu.Unlock()
			return true
		case <-time.After(wait):
		}
	}
	f.mu.Lock()
	switch whole := time.Since(f.changed) >= lastTries; {
	case whole && f.away:
		f.Cut++
	case whole:
		f.Lost++
	default:
		f.Late++
	}
	delete(f.waiting, seq)
	f.mu.Unlock()
	return false
}

// request makes the packet of a request: IPv6 and UDP headers, ports 1000, and the number.
func request(seq uint64) *packet.Buffer {
	b := packet.Get()
	p := b.Extend(flowSize)
	clear(p)
	p[0] = 0x60
	binary.BigEndian.PutUint16(p[4:], flowSize-40)
	p[6], p[7] = packet.ProtoUDP, 64
	binary.BigEndian.PutUint16(p[40:], 1000)
	binary.BigEndian.PutUint16(p[42:], 1000)
	binary.BigEndian.PutUint16(p[44:], flowSize-40)
	binary.BigEndian.PutUint16(p[46:], 0xffff)
	p[48] = kindRequest
	binary.BigEndian.PutUint64(p[49:], seq)
	return b
}
