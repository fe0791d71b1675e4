package netif

import (
	"time"

	"lokinetd/router/key"
)

// table is a map of bounded size that keeps its entries in order of last use, in all and per owner. A new entry that does not fit takes the
// place of another one:
//
//   - of its owner's least recently used, when the owner has its quota: one remote pushes out only its own;
//   - else of one that has expired, if there is one among the few least recently used; else of the least recently used.
//
// What has expired is given up with each new entry, a few slots at a time.
//
// Times are parameters; no locking. Steady use does not allocate.
type table[K comparable, V any] struct {
	limit, quota int
	index        map[K]int32
	slots        []slot[K, V] // slots[0] is the ring of all entries: next = least recently used
	spare        []int32
	owners       map[key.Address]int32
	rings        []ring
	spareRings   []int32
	hand         int32 // the slot that was looked at last for having expired
}

type slot[K comparable, V any] struct {
	key        K
	value      V
	expiry     time.Time
	owner      key.Address
	ring       int32
	prev, next int32 // in the ring of all
	up, down   int32 // in the owner's list: towards less and more recently used; 0: end
}

// ring is one owner's list of entries.
type ring struct {
	first, last int32 // least and most recently used
	n           int
}

const (
	look  = 8 // of the least recently used entries are searched for an expired one when there is no room
	sweep = 4 // slots are looked at for each new entry, all in turn: those that have expired stay few
)

func newTable[K comparable, V any](limit, quota int) *table[K, V] {
	return &table[K, V]{limit: limit, quota: quota, index: map[K]int32{}, slots: make([]slot[K, V], 1), owners: map[key.Address]int32{}}
}

func (t *table[K, V]) len() int { return len(t.index) }

// get returns the entry of k, or nil when there is none or it has expired. The pointer is valid until the next put.
func (t *table[K, V]) get(k K, now time.Time) *slot[K, V] {
	i, ok := t.index[k]
	if !ok {
		return nil
	}
	s := &t.slots[i]
	if now.After(s.expiry) {
		t.remove(i)
		return nil
	}
	return s
}

// put returns the entry of k, made with the zero value when there is none or it has expired, and makes it the most recently used. The
// caller sets its expiry. The pointer is valid until the next put.
func (t *table[K, V]) put(k K, owner key.Address, now time.Time) *slot[K, V] {
	if i, ok := t.index[k]; ok {
		t.unlink(i)
		t.link(i)
		s := &t.slots[i]
		if now.After(s.expiry) {
			var zero V
			s.value = zero
		}
		return s
	}
	for range min(sweep, len(t.slots)-1) {
		if t.hand++; int(t.hand) >= len(t.slots) {
			t.hand = 1
		}
		if s := &t.slots[t.hand]; !s.expiry.IsZero() && now.After(s.expiry) { // zero: a spare one
			t.remove(t.hand)
		}
	}
	r, ok := t.owners[owner]
	if ok && t.rings[r].n >= t.quota {
		t.remove(t.rings[r].first) // quota > 1, so the ring stays
	} else if len(t.index) >= t.limit {
		t.remove(t.victim(now))
		r, ok = t.owners[owner] // it may have been the owner's last one
	}
	if !ok {
		r = t.newRing(owner)
	}
	var i int32
	if n := len(t.spare); n > 0 {
		i, t.spare = t.spare[n-1], t.spare[:n-1]
	} else {
		i = int32(len(t.slots))
		t.slots = append(t.slots, slot[K, V]{})
	}
	t.slots[i] = slot[K, V]{key: k, owner: owner, ring: r}
	t.index[k] = i
	t.link(i)
	t.rings[r].n++
	return &t.slots[i]
}

func (t *table[K, V]) newRing(owner key.Address) (r int32) {
	if n := len(t.spareRings); n > 0 {
		r, t.spareRings = t.spareRings[n-1], t.spareRings[:n-1]
	} else {
		r = int32(len(t.rings))
		t.rings = append(t.rings, ring{})
	}
	t.rings[r] = ring{}
	t.owners[owner] = r
	return r
}

func (t *table[K, V]) victim(now time.Time) int32 {
	i := t.slots[0].next
	for range look {
		if i == 0 {
			break
		}
		if now.After(t.slots[i].expiry) {
			return i
		}
		i = t.slots[i].next
	}
	return t.slots[0].next
}

// link makes entry i the most recently used one of all and of its owner.
func (t *table[K, V]) link(i int32) {
	s, root := &t.slots[i], &t.slots[0]
	s.prev, s.next = root.prev, 0
	t.slots[root.prev].next = i
	root.prev = i
	r := &t.rings[s.ring]
	s.up, s.down = r.last, 0
	if r.last != 0 {
		t.slots[r.last].down = i
	} else {
		r.first = i
	}
	r.last = i
}

func (t *table[K, V]) unlink(i int32) {
	s := &t.slots[i]
	t.slots[s.prev].next = s.next
	t.slots[s.next].prev = s.prev
	r := &t.rings[s.ring]
	if s.up != 0 {
		t.slots[s.up].down = s.down
	} else {
		r.first = s.down
	}
	if s.down != 0 {
		t.slots[s.down].up = s.up
	} else {
		r.last = s.up
	}
}

func (t *table[K, V]) remove(i int32) {
	s := &t.slots[i]
	t.unlink(i)
	delete(t.index, s.key)
	if r := &t.rings[s.ring]; r.n == 1 {
		delete(t.owners, s.owner)
		t.spareRings = append(t.spareRings, s.ring)
		r.n = 0
	} else {
		r.n--
	}
	var zero slot[K, V]
	*s = zero
	t.spare = append(t.spare, i)
}
