package path

import (
	"container/heap"
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/fair"
	"lokinetd/router/key"
	"lokinetd/router/seal"
)

// hop is a transit hop: what a relay keeps of one path (protocol 3 section 5.1). Immutable but for state and the fields marked as Relay.mu's.
type hop struct {
	relay  *Relay
	rx     ID // on the client's side
	tx     ID // on the far side; the terminal's is rx
	up     key.Public
	down   neighbour
	key    seal.Hop
	expiry time.Time
	state  atomic.Uint32

	owner *account // Relay.mu
	index int      // in Relay.due; Relay.mu
}

// States of a hop. Only setState of Relay changes them, under Relay.mu; the data plane reads.
//
//	reserved -> live -> dead
//	       \_____________/
//
// A hop is reserved while the later hops are being asked: its ids are taken, but it is not found. Terminal hops begin live.
const (
	hopReserved = iota
	hopLive
	hopDead
)

// terminal says whether the path ends here: the only mark is that both ids are one (section 2.2).
func (h *hop) terminal() bool { return h.rx == h.tx }

// table finds hops by either id. Many receiving goroutines look up at once while builds come and go: 64 shards, each with a read-write lock.
// Ids are chosen by strangers, so their shard depends on a secret seed.
type table struct {
	seed   maphash.Seed
	shards [64]shard
}

type shard struct {
	mu sync.RWMutex
	m  map[ID]*hop
	_  [88]byte // no two shards' locks on one pair of cache lines
}

func (t *table) init() {
	t.seed = maphash.MakeSeed()
	for i := range t.shards {
		t.shards[i].m = make(map[ID]*hop)
	}
}

func (t *table) shard(id *ID) *shard {
	return &t.shards[maphash.Bytes(t.seed, id[:])%uint64(len(t.shards))]
}

// any finds a hop in any state.
func (t *table) any(id *ID) *hop {
	s := t.shard(id)
	s.mu.RLock()
	h := s.m[*id]
	s.mu.RUnlock()
	return h
}

// live finds a live hop.
func (t *table) live(id *ID) *hop {
	h := t.any(id)
	if h == nil || h.state.Load() != hopLive {
		return nil
	}
	return h
}

// put adds a hop under both ids. Relay.mu is held since any said that they are free: nothing is ever overwritten.
func (t *table) put(h *hop) {
	for _, id := range []*ID{&h.rx, &h.tx} {
		s := t.shard(id)
		s.mu.Lock()
		s.m[*id] = h
		s.mu.Unlock()
	}
}

func (t *table) remove(h *hop) {
	for _, id := range []*ID{&h.rx, &h.tx} {
		s := t.shard(id)
		s.mu.Lock()
		delete(s.m, *id)
		s.mu.Unlock()
	}
}

// account is what one neighbour uses of a relay. Under Relay.mu.
type account struct {
	hops     map[*hop]struct{}
	builds   int
	requests int
	paced    fair.Account // builds
	used     time.Time
	ctx      context.Context // of what waits on the neighbour's behalf
	cancel   context.CancelFunc
}

// idleAccount is how long an account without hops and requests is kept: longer than what it spent takes to drain.
const idleAccount = time.Minute

// dueHeap orders hops by expiry.
type dueHeap []*hop

func (d dueHeap) Len() int           { return len(d) }
func (d dueHeap) Less(i, j int) bool { return d[i].expiry.Before(d[j].expiry) }
func (d dueHeap) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].index, d[j].index = i, j
}
func (d *dueHeap) Push(x any) {
	h := x.(*hop)
	h.index = len(*d)
	*d = append(*d, h)
}
func (d *dueHeap) Pop() any {
	old := *d
	h := old[len(old)-1]
	old[len(old)-1] = nil
	*d = old[:len(old)-1]
	return h
}

var _ heap.Interface = (*dueHeap)(nil)
