package netdb

import (
	"bytes"
	"container/heap"
	"errors"
	"sync"
	"time"

	"lokinetd/router/key"
)

// Bounds of Contacts when none are given.
const (
	DefaultContacts     = 32768
	DefaultContactBytes = 32 << 20
)

// ErrClock is the error of a sealed contact whose signing time is too old or too far ahead to be kept; see ClockStatus.
var ErrClock = errors.New("netdb: sealed contact: signing time too old or too far ahead")

// Contacts keeps the sealed contacts that clients published to a relay (protocol 1 section 10), in memory only: they live 1380 s and are kept at
// five relays. Safe for concurrent use.
//
// Anyone can make keys and publish under them, so number and bytes are bounded. When a new contact does not fit, those that have been here or are
// signed longest go first (the earlier of arrival and signing time counts, so that a date in the future gains nothing): what a client
// publishes again, as it does whenever its paths change, stays.
type Contacts struct {
	maxCount, maxBytes int

	mu      sync.Mutex
	entries map[key.Public]*entry
	order   ageHeap
	bytes   int
	evicted uint64
}

type entry struct {
	blinded  key.Public
	raw      []byte
	signedAt time.Time
	age      time.Time // the earlier of signedAt and arrival
	index    int       // in the heap
}

// NewContacts makes an empty store of at most count contacts and size bytes; 0 means the default.
func NewContacts(count, size int) *Contacts {
	if count <= 0 {
		count = DefaultContacts
	}
	if size <= 0 {
		size = DefaultContactBytes
	}
	return &Contacts{maxCount: count, maxBytes: max(size, MaxSealed), entries: make(map[key.Public]*entry)}
}

// Put keeps a copy of the sealed contact raw. It is false without an error when a contact of the same key that is not older is here already, which
// is found out before the signature is checked and is a success for the publisher. Errors: malformed, badly signed, over MaxSealed, ErrClock.
// Whether this relay is the one to keep it is the caller's question (Closest).
func (c *Contacts) Put(raw []byte, now time.Time) (stored bool, err error) {
	s, err := decodeSealed(raw)
	if err != nil {
		return false, err
	}
	e := &entry{blinded: s.blinded, signedAt: time.UnixMilli(s.signedAt), age: now}
	if e.signedAt.Before(now) {
		e.age = e.signedAt
	}
	if ClockStatus(e.signedAt, now) != "" {
		return false, ErrClock
	}
	if c.has(e) {
		return false, nil
	}
	if err := s.verify(); err != nil {
		return false, err
	}
	e.raw = bytes.Clone(raw)

	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.entries[e.blinded]; old != nil {
		if !old.signedAt.Before(e.signedAt) {
			return false, nil
		}
		c.remove(old)
	}
	for len(c.entries) >= c.maxCount || c.bytes+len(e.raw) > c.maxBytes {
		c.remove(c.order[0])
		c.evicted++
	}
	c.entries[e.blinded] = e
	heap.Push(&c.order, e)
	c.bytes += len(e.raw)
	return true, nil
}

func (c *Contacts) has(e *entry) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.entries[e.blinded]
	return old != nil && !old.signedAt.Before(e.signedAt)
}

// remove forgets e; the caller holds the lock.
func (c *Contacts) remove(e *entry) {
	heap.Remove(&c.order, e.index)
	delete(c.entries, e.blinded)
	c.bytes -= len(e.raw)
}

// Get returns the sealed contact of a blinded key as it was published, not to be written to; nil when there is none or it is older than ContactLifetime.
func (c *Contacts) Get(blinded key.Public, now time.Time) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[blinded]
	if e == nil || !now.Before(e.signedAt.Add(ContactLifetime)) {
		return nil
	}
	return e.raw
}

// Purge forgets what is older than ContactLifetime; called every 30 s.
func (c *Contacts) Purge(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		if now.After(e.signedAt.Add(ContactLifetime)) {
			c.remove(e)
		}
	}
}

// ContactStats are figures of Contacts.
type ContactStats struct {
	Count, Bytes uint64 // now
	Evicted      uint64 // ever, to make room
}

// Stats returns the figures.
func (c *Contacts) Stats() ContactStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return ContactStats{Count: uint64(len(c.entries)), Bytes: uint64(c.bytes), Evicted: c.evicted}
}

// ageHeap has the oldest entry first.
type ageHeap []*entry

func (h ageHeap) Len() int           { return len(h) }
func (h ageHeap) Less(i, j int) bool { return h[i].age.Before(h[j].age) }
func (h ageHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *ageHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}
func (h *ageHeap) Pop() any {
	n := len(*h) - 1
	e := (*h)[n]
	(*h)[n] = nil
	*h = (*h)[:n]
	return e
}
