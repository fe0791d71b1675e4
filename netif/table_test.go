package netif

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"lokinetd/router/key"
)

// slowTable is table as a list in order of last use.
type slowTable struct {
	limit, quota int
	l            []slowEntry
	slots, hand  int // how many there are, and which was looked at last
	spare        []int
}

type slowEntry struct {
	k, v   int
	slot   int
	owner  key.Address
	expiry time.Time
}

func (t *slowTable) find(k int) int {
	return slices.IndexFunc(t.l, func(e slowEntry) bool { return e.k == k })
}

func (t *slowTable) remove(i int) {
	t.spare = append(t.spare, t.l[i].slot)
	t.l = slices.Delete(t.l, i, i+1)
}

func (t *slowTable) get(k int, now time.Time) *slowEntry {
	i := t.find(k)
	if i >= 0 && now.After(t.l[i].expiry) {
		t.remove(i)
		i = -1
	}
	if i < 0 {
		return nil
	}
	return &t.l[i]
}

func (t *slowTable) put(k int, owner key.Address, now time.Time) *slowEntry {
	e := slowEntry{k: k, owner: owner}
	if i := t.find(k); i >= 0 {
		e = t.l[i]
		if now.After(e.expiry) {
			e.v = 0
		}
		t.l = slices.Delete(t.l, i, i+1)
	} else {
		for range min(sweep, t.slots) {
			t.hand = t.hand%t.slots + 1
			if i := slices.IndexFunc(t.l, func(e slowEntry) bool { return e.slot == t.hand }); i >= 0 && now.After(t.l[i].expiry) {
				t.remove(i)
			}
		}
		n, first := 0, -1
		for i, x := range t.l {
			if x.owner == owner {
				if n++; first < 0 {
					first = i
				}
			}
		}
		if n >= t.quota {
			t.remove(first)
		} else if len(t.l) >= t.limit {
			v := 0
			for i, x := range t.l[:min(look, len(t.l))] {
				if now.After(x.expiry) {
					v = i
					break
				}
			}
			t.remove(v)
		}
		if last := len(t.spare) - 1; last >= 0 {
			e.slot, t.spare = t.spare[last], t.spare[:last]
		} else {
			t.slots++
			e.slot = t.slots
		}
	}
	t.l = append(t.l, e)
	return &t.l[len(t.l)-1]
}

// play runs the same operations on table and slowTable and compares everything after each.
func play(t *testing.T, program []byte) {
	fast := newTable[int, int](12, 4)
	slow := &slowTable{limit: 12, quota: 4}
	now := time.Unix(1000, 0)
	for i := 0; i+2 < len(program); i += 3 {
		op, k, d := program[i], int(program[i+1]%32), program[i+2]
		now = now.Add(time.Duration(op>>4) * time.Second)
		owner := remoteN(k % 5)
		if op&1 == 0 {
			f, s := fast.put(k, owner, now), slow.put(k, owner, now)
			if f.value != s.v {
				t.Fatalf("op %d: put(%d) has %d, want %d", i, k, f.value, s.v)
			}
			f.value, s.v = int(d), int(d)
			f.expiry = now.Add(time.Duration(d%40) * time.Second)
			s.expiry = f.expiry
		} else {
			f, s := fast.get(k, now), slow.get(k, now)
			if (f == nil) != (s == nil) || f != nil && f.value != s.v {
				t.Fatalf("op %d: get(%d): %v, want %v", i, k, f, s)
			}
		}
		var order []int
		owned := map[key.Address]int{}
		for x := fast.slots[0].next; x != 0; x = fast.slots[x].next {
			order = append(order, fast.slots[x].key)
			owned[fast.slots[x].owner]++
		}
		var want []int
		for _, e := range slow.l {
			want = append(want, e.k)
		}
		if !slices.Equal(order, want) || fast.len() != len(want) || len(fast.owners) != len(owned) || len(fast.slots) > fast.limit+1 {
			t.Fatalf("op %d: order %v, want %v; %d owners of %d", i, order, want, len(fast.owners), len(owned))
		}
		for o, n := range owned {
			r := fast.rings[fast.owners[o]]
			var up, down []int
			for x := r.first; x != 0; x = fast.slots[x].down {
				up = append(up, fast.slots[x].key)
			}
			for x := r.last; x != 0; x = fast.slots[x].up {
				down = append(down, fast.slots[x].key)
			}
			slices.Reverse(down)
			if r.n != n || len(up) != n || n > fast.quota || !slices.Equal(up, down) {
				t.Fatalf("op %d: ring %v %v has %d of %d", i, up, down, r.n, n)
			}
		}
	}
}

func TestTable(t *testing.T) {
	r := random(t)
	for range 200 {
		program := make([]byte, 3*200)
		for i := range program {
			program[i] = byte(r.Uint32())
		}
		play(t, program)
	}
}

// TestTableSweep: what has expired does not gather, although nobody asks for it again and there is room for all of it.
func TestTableSweep(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newTable[int, int](1<<20, 1<<20)
	for k := range 100_000 {
		now = now.Add(time.Second)
		l.put(k, remoteN(k%5), now).expiry = now.Add(time.Minute)
	}
	if n := l.len(); n < 60 || n > 100 {
		t.Errorf("%d entries of which 60 have not expired", n)
	}
	if n := len(l.slots); n > 120 {
		t.Errorf("%d slots", n)
	}
}

// FuzzTable. Threat: remotes choose keys, owners and order of the flow table's entries and hope for a broken list, more entries than
// the limit, or another one's entry gone. The slow model has none of the lists.
//
// Decoders: table.get table.put table.victim table.link table.unlink table.remove
func FuzzTable(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 4 {
		program := make([]byte, 300)
		for i := range program {
			program[i] = byte(r.Uint32())
		}
		f.Add(slices.Clone(program))
		for i := 0; i < len(program); i += 3 { // quick, so that little has expired and the table is full
			program[i] &= 0x11
			program[i+2] |= 16
		}
		f.Add(program)
	}
	f.Fuzz(play)
}
