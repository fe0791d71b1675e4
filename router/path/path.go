package path

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/seal"
)

// Path is one path of a client, from its edge to its terminal relay. Those that a caller gets have been up. Safe for concurrent use.
type Path struct {
	pool *Pool
	link Link // the edge's connection: the path is bound to it

	relays []key.Public
	expiry time.Time // no relay forgets the path earlier by more than the rounding to a second
	intro  introduction

	gone context.Context // ends when the path is down
	end  context.CancelFunc

	// Set once by the build, before state becomes pathUp.
	hops     []seal.Hop
	edge     ID
	terminal ID

	state    atomic.Uint32
	sent     atomic.Uint64
	received atomic.Uint64
	answered atomic.Uint64 // pings
	replies  replies

	// Under pool.mu.
	began    time.Time // the build
	nextPing time.Time
	missed   int  // pings unanswered in a row
	suspect  bool // it is examined
	rtt      rtt
}

// introduction is how the other end of an aligned path comes to the pivot.
type introduction struct {
	hop    ID        // the other path's terminal id
	expiry time.Time // of the other path
}

// States of a path. Only Pool.setState changes them, under Pool.mu.
//
//	building -> up -> retired -> down
//	      \       \______________/
//	       \_____________________/
//
// A retired path is no longer tested, counted or shown, but what arrives over it is still delivered.
const (
	pathBuilding = iota
	pathUp
	pathRetired
	pathDown
)

// Pivot is the terminal relay.
func (p *Path) Pivot() key.Public { return p.relays[len(p.relays)-1] }

// Terminal is the hop id at the terminal relay: what a peer needs to send here.
func (p *Path) Terminal() ID { return p.terminal }

// Aligned is the remote's hop id at the pivot, on a path of an Aligned pool; zero on others.
func (p *Path) Aligned() ID { return p.intro.hop }

// Expiry is when the relays forget the path.
func (p *Path) Expiry() time.Time { return p.expiry }

// Hops are the relays, the edge first.
func (p *Path) Hops() []key.Public { return slices.Clone(p.relays) }

// Pool is the one that the path belongs to.
func (p *Path) Pool() *Pool { return p.pool }

// Active says whether the path is established and not expired.
func (p *Path) Active(now time.Time) bool { return p.state.Load() == pathUp && now.Before(p.expiry) }

// RTT is the mean round trip time of the pings so far; 0 before the first.
func (p *Path) RTT() time.Duration {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	return p.rtt.mean()
}

// carries says whether messages may still be given to the edge.
func (p *Path) carries() bool {
	s := p.state.Load()
	return s == pathUp || s == pathRetired
}

// A datagram on its way up (protocol 3 section 3.2):
//
//  1. the path is there, the message fits
//  2. a layer for each hop, the last one's first, in place; the nonce goes along
//  3. trailer: nonce, id of the first link, type
//  4. the edge's connection (Link), whose queue is bounded and drops the oldest

// Send sends a session datagram: Data is body, session tag and pivot id, at most MaxDatagram bytes, Nonce the message nonce. It owns b,
// drops it when the path is gone, and never blocks.
func (p *Path) Send(b *packet.Buffer) {
	if !p.carries() {
		p.pool.client.count.DroppedDead.Add(1)
		b.Release()
		return
	}
	if len(b.Data) > MaxDatagram || b.Tail() < trailerSize {
		p.pool.client.count.DroppedLong.Add(1)
		b.Release()
		return
	}
	wrap(b.Data, p.hops, &b.Nonce)
	putTrailer(b.Extend(trailerSize), &b.Nonce, &p.edge, TypeData)
	p.sent.Add(1)
	p.link.Send(b)
}

// Control is Send for session_control: msg, which is only read, is body, session tag and pivot id. The error says that the link did not take it; none does not say that it
// arrived.
func (p *Path) Control(typ byte, msg []byte, nonce [24]byte) error {
	if !p.carries() {
		return ErrDead
	}
	out := make([]byte, len(msg)+trailerSize)
	copy(out, msg)
	wrap(out[:len(msg)], p.hops, &nonce)
	putTrailer(out[len(msg):], &nonce, &p.edge, typ)
	p.sent.Add(1)
	if err := p.link.Command(nameSession, out); err != nil {
		return fmt.Errorf("path: session_control: %w", err)
	}
	return nil
}

// Request asks the terminal relay (protocol 3 section 4) and waits for its reply, 10 s at most. The reply has been authenticated as that relay's and is never
// empty; it may well say that the request failed there. Errors: a [RemoteError], unauthenticated, from any relay of the path; ErrUnauthentic; ErrEmptyReply;
// ErrDead, also when the path is given up meanwhile; the link's for silence.
func (p *Path) Request(ctx context.Context, method string, body []byte) ([]byte, error) {
	if !p.carries() {
		return nil, ErrDead
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	defer context.AfterFunc(p.gone, cancel)()
	reply, err := p.link.Request(ctx, nameControl, sealRequest(method, body, p.hops, newNonce(), &p.edge))
	if err == nil {
		sealed := reply
		if reply, err = openReply(sealed, p.hops); err == nil {
			if _, nonce, _, _ := split(sealed); !p.replies.first(nonce) {
				err = ErrUnauthentic
			}
		}
	}
	if err != nil {
		if p.gone.Err() != nil {
			err = ErrDead
		}
		return nil, fmt.Errorf("path: %.40s: %w", method, err)
	}
	return reply, nil
}

// rtt keeps the mean of round trip times, and the mean difference of successive ones (protocol 3 section 6.5).
type rtt struct {
	n         int
	sum, vary time.Duration
	last      time.Duration
}

func (r *rtt) add(d time.Duration) {
	if r.n > 0 {
		r.vary += (d - r.last).Abs()
	}
	r.n++
	r.sum += d
	r.last = d
}

func (r *rtt) mean() time.Duration {
	if r.n == 0 {
		return 0
	}
	return r.sum / time.Duration(r.n)
}

func (r *rtt) jitter() time.Duration {
	if r.n < 2 {
		return 0
	}
	return r.vary / time.Duration(r.n-1)
}
