package path

import (
	"sync"

	"lokinetd/router/packet"
)

// Owner is told what happens to the paths of a pool. Calls for one pool never overlap and come in order; none of the package's locks is held, so a method may call
// anything here. It must not wait for another event of the same pool, nor for a lock whose holder waits for the network.
//
// After Pool.Close has returned no call begins any more; one that has begun may still run.
type Owner interface {
	// PathUp: the path is established and can be used.
	PathUp(p *Path)
	// PathDown: a path that was up is of no use any more. What still arrives over a path that was only given up (Retired) is delivered until it expires.
	PathDown(p *Path, why Reason)
	// PathDatagram: Data, at least 17 bytes, is body and 4-byte session tag, Nonce the message nonce. The callee owns b.
	PathDatagram(p *Path, b *packet.Buffer)
	// PathControl: msg, at least 17 bytes and the callee's, is body and session tag; typ is TypeControl or TypeHandshake.
	PathControl(p *Path, typ byte, msg []byte, nonce [24]byte)
}

// Reason says why a path went down.
type Reason uint8

const (
	Expired  Reason = iota // its time is over
	Silent                 // too many pings unanswered
	Refused                // a ping was answered by an error: a relay does not know the path any more
	EdgeLost               // the connection to its edge closed
	Retired                // near its end while a better one is there, or its introduction was withdrawn
	Dropped                // the owner said so
)

func (r Reason) String() string {
	return [...]string{"expired", "silent", "refused", "edge lost", "retired", "dropped"}[r]
}

// events serialises what the owner of a pool is told.
//
// Ups and downs happen inside calls of the owner too, maybe with its locks held: they are queued, and told by whoever has the turn, now or next; posting
// never waits. Messages come from the links' receiving goroutines, which wait for their turn: no longer than the owner takes for what is before them.
type events struct {
	owner Owner
	turn  sync.Mutex // held while the owner is told: a token more than a lock

	mu     sync.Mutex
	queued []func(Owner)
	closed bool
}

// post queues an up or a down; flush must follow, once the caller holds no lock.
func (e *events) post(tell func(Owner)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.queued = append(e.queued, tell)
	}
}

// flush tells what is queued, unless somebody is at it, who then does.
func (e *events) flush() {
	// Whoever posts while the turn is taken leaves it to its holder: look again after giving it back.
	for e.pending() && e.turn.TryLock() {
		e.drain()
		e.turn.Unlock()
	}
}

// begin takes the turn for a message, what is queued first; end must follow. False after close.
func (e *events) begin() bool {
	e.turn.Lock()
	if e.drain() {
		return true
	}
	e.turn.Unlock()
	return false
}

func (e *events) end() {
	e.turn.Unlock()
	e.flush()
}

// close forgets what is queued.
func (e *events) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed, e.queued = true, nil
}

func (e *events) pending() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.queued) > 0
}

// drain tells what is queued; the caller has the turn. False after close.
func (e *events) drain() bool {
	for {
		tell, open := e.next()
		if tell == nil {
			return open
		}
		tell(e.owner)
	}
}

func (e *events) next() (tell func(Owner), open bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queued) > 0 {
		tell = e.queued[0]
		e.queued[0] = nil
		e.queued = e.queued[1:]
	}
	return tell, !e.closed
}
