package packet

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"
)

// fair counts what a Fair says.
type fair struct {
	*Fair
	full, stood uint64
}

func newFair(maxBytes, maxCount int) *fair { return &fair{Fair: NewFair(maxBytes, maxCount)} }

func flowOf(p []byte) uint64 { return binary.LittleEndian.Uint64(p[len(p)-17:]) }

func (q *fair) push(b *Buffer, now time.Time) { q.full += uint64(q.Push(b, flowOf(b.Data), now)) }

func (q *fair) pop(dst []*Buffer, now time.Time) int {
	n, stood := q.Pop(dst, now)
	q.stood += uint64(stood)
	return n
}

// onPath is a packet of a flow that its trailer names.
func onPath(path byte, number, size int) *Buffer {
	p := make([]byte, max(size, 17))
	p[0], p[1] = byte(number>>8), byte(number)
	for i := range 8 {
		p[len(p)-17+i] = path * byte(31+2*i)
	}
	b := Get()
	copy(b.Reset(len(p)), p)
	return b
}

// paths returns n paths that share no flow.
func paths(q *fair, n int) (ids []byte) {
	taken := map[int8]bool{}
	for id := byte(1); len(ids) < n; id++ {
		if f := q.flowOfPath(id); !taken[f] {
			taken[f] = true
			ids = append(ids, id)
		}
	}
	return ids
}

func (q *fair) flowOfPath(id byte) int8 {
	b := onPath(id, 0, 17)
	defer b.Release()
	return q.place(flowOf(b.Data))
}

// A path that floods harms itself only: the others lose nothing, keep their order and do not wait behind it.
func TestFairQueue(t *testing.T) {
	now := time.Now()
	before := InUse()
	q := newFair(200_000, 100)
	ids := paths(q, 4)
	const size = 1200
	sent, got := map[byte][]int{}, map[byte][]int{}
	pop := func(n int) {
		batch := make([]*Buffer, n)
		for _, b := range batch[:q.pop(batch, now)] {
			for _, id := range ids {
				if want := onPath(id, 0, 17); slices.Equal(want.Data[:8], b.Data[len(b.Data)-17:][:8]) {
					got[id] = append(got[id], int(b.Data[0])<<8|int(b.Data[1]))
					want.Release()
					break
				} else {
					want.Release()
				}
			}
			b.Release()
		}
	}
	for i := range 1000 {
		for range 5 {
			q.push(onPath(ids[0], i, size), now)
		}
		sent[ids[0]] = append(sent[ids[0]], i)
		for _, id := range ids[1:] {
			if i%2 == 0 {
				q.push(onPath(id, i, size), now)
				sent[id] = append(sent[id], i)
			}
		}
		pop(3) // what is asked for is 6.5
		if q.n > 100 || q.bytes > 200_000 {
			t.Fatalf("%d packets, %d bytes", q.n, q.bytes)
		}
		if i%2 == 1 {
			for _, id := range ids[1:] {
				if behind := len(sent[id]) - len(got[id]); behind > 3 {
					t.Fatalf("%d of %d of path %d wait behind a flood", behind, len(sent[id]), id)
				}
			}
		}
	}
	pop(100)
	for _, id := range ids[1:] {
		if !slices.Equal(got[id], sent[id]) {
			t.Errorf("path %d: %d of %d arrived", id, len(got[id]), len(sent[id]))
		}
	}
	if !slices.IsSorted(got[ids[0]]) || len(got[ids[0]]) < 1400 || got[ids[0]][len(got[ids[0]])-1] != 999 {
		t.Errorf("flood: %d arrived", len(got[ids[0]]))
	}
	if q.n != 0 || q.bytes != 0 || InUse() != before {
		t.Errorf("%d left, %d buffers", q.n, InUse()-before)
	}
}

// Turns are measured in bytes: small packets are not served like large ones.
func TestFairBytes(t *testing.T) {
	now := time.Now()
	q := newFair(10<<20, 10_000)
	defer q.Clear()
	ids := paths(q, 2)
	for i := range 3000 {
		q.push(onPath(ids[0], i, 200), now)
		if i < 600 {
			q.push(onPath(ids[1], i, 1400), now)
		}
	}
	batch := make([]*Buffer, 8)
	var bytes [2]int
	for bytes[0]+bytes[1] < 500_000 {
		for _, b := range batch[:q.pop(batch, now)] {
			which := 0
			if len(b.Data) == 1400 {
				which = 1
			}
			bytes[which] += len(b.Data)
			b.Release()
		}
	}
	if bytes[0] < 240_000 || bytes[1] < 240_000 {
		t.Errorf("%v bytes each", bytes)
	}
}

// What comes now and then on a path goes before what stands on many others, and a path that is empty often but sends as much as they do does not.
func TestFreshFirst(t *testing.T) {
	q := newFair(10<<20, 10_000)
	defer q.Clear()
	now := time.Now()
	ids := paths(q, 22)
	sparse, sly, standing := ids[0], ids[1], ids[2:]
	for i := range 100 {
		for _, id := range standing {
			q.push(onPath(id, i, 1000), now)
		}
	}
	one := make([]*Buffer, 1)
	pop := func() (path byte) { // times 31, the first byte of its hop id
		now = now.Add(100 * time.Microsecond)
		q.pop(one, now)
		defer one[0].Release()
		return one[0].Data[len(one[0].Data)-17]
	}
	for range 2 * len(standing) {
		pop() // each has had its first turn
	}
	for i := range 20 {
		q.push(onPath(sparse, i, 100), now)
		if pop() != sparse*31 {
			t.Fatalf("packet %d of a quiet path waits behind others", i)
		}
		for range 50 {
			pop()
		}
	}
	slyly := 0
	for range 400 {
		if q.flows[q.flowOfPath(sly)].n == 0 {
			q.push(onPath(sly, 0, 1000), now)
		}
		if pop() == sly*31 {
			slyly++
		}
	}
	if slyly > 400/len(standing) {
		t.Errorf("a path that is empty often got %d of 400 turns among %d", slyly, len(standing))
	}
}

// A queue that stands is cut down, whatever rate it is emptied at, if its sender listens to losses; one that does not stand loses nothing.
func TestCodel(t *testing.T) {
	for _, c := range []struct {
		name   string
		mbps   float64 // at which the queue is emptied
		rtt    time.Duration
		backs  bool          // the sender sends less after a loss
		least  float64       // of mbps, that is carried
		most   time.Duration // that the median packet waits
		drops  bool
		stands time.Duration // that the sender's window is longer than needed at first
	}{
		{"10 Mbit/s", 10, 40 * time.Millisecond, true, 0.85, 15 * time.Millisecond, true, 100 * time.Millisecond},
		{"40 Mbit/s", 40, 40 * time.Millisecond, true, 0.85, 15 * time.Millisecond, true, 100 * time.Millisecond},
		{"no queue stands", 40, 40 * time.Millisecond, false, 0.45, time.Millisecond, false, -20 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			const size, lasts = 1200, 15 * time.Second
			q := newFair(10<<20, 10_000)
			defer q.Clear()
			each := time.Duration(size * 8 / c.mbps * float64(time.Microsecond))
			need := float64(c.rtt) / float64(each)
			window := need * float64(c.rtt+c.stands) / float64(c.rtt)
			start := time.Now()
			now := start
			var waits []time.Duration
			var away []time.Time // acknowledgements under way
			inside, carried, lost := 0, 0, uint64(0)
			slowed := now
			one := make([]*Buffer, 1)
			for step := 0; now.Sub(start) < lasts; step++ {
				now = now.Add(each)
				for len(away) > 0 && !away[0].After(now) {
					away = away[1:]
					inside--
					if c.backs {
						window += 1 / window
					}
				}
				if l := q.stood; l > lost {
					inside -= int(l - lost)
					lost = l
					if now.Sub(slowed) > c.rtt {
						slowed, window = now, window*0.7
					}
				}
				for ; inside < int(window); inside++ {
					q.push(onPath(1, 0, size), now)
				}
				var waited time.Duration
				if f := &q.flows[q.flowOfPath(1)]; f.n > 0 {
					waited = now.Sub(q.began) - q.items[f.head].at
				}
				if q.pop(one, now) == 1 {
					one[0].Release()
					away = append(away, now.Add(c.rtt))
					if carried++; now.Sub(start) > 5*time.Second {
						waits = append(waits, waited)
					}
				}
			}
			slices.Sort(waits)
			share := float64(carried) * size * 8 / 1e6 / lasts.Seconds() / c.mbps
			median := waits[len(waits)/2]
			t.Logf("%.2f carried, %v in the queue, %d dropped, none for want of room: %v", share, median, lost, q.full == 0)
			if share < c.least || median > c.most || (lost > 0) != c.drops || q.full > 0 {
				t.Errorf("%.2f carried, %v in the queue, %d dropped", share, median, lost)
			}
		})
	}
}

// Drops come first after codelInterval, then at its length by the root of their number, and stop at once when one packet has waited less.
func TestCodelPace(t *testing.T) {
	var c codel
	dropped := func(from, to int, waited time.Duration, behind int32) (when []int) {
		for ms := from; ms < to; ms++ {
			if c.drops(waited, behind, time.Duration(ms)*time.Millisecond) {
				when = append(when, ms)
			}
		}
		return when
	}
	for _, v := range []struct {
		from, to int
		waited   time.Duration
		behind   int32
		want     []int
	}{
		{0, 100, 6 * time.Millisecond, 3000, nil},
		{100, 400, 6 * time.Millisecond, 3000, []int{100, 200, 271, 329, 379}}, // 100 + 100, + 71, + 58, + 50
		{400, 401, 4 * time.Millisecond, 3000, nil},
		{401, 500, 6 * time.Millisecond, 3000, nil},
		{501, 570, 6 * time.Millisecond, 3000, []int{501, 551}}, // it had gone up by 4 lately, so it begins there
		{570, 571, 6 * time.Millisecond, 1000, nil},             // no more than one is left
		{571, 3000, 4 * time.Millisecond, 3000, nil},
		{3000, 3100, 6 * time.Millisecond, 3000, nil},
		{3100, 3250, 6 * time.Millisecond, 3000, []int{3100, 3200}}, // long ago
	} {
		if got := dropped(v.from, v.to, v.waited, v.behind); !slices.Equal(got, v.want) {
			t.Errorf("from %d to %d ms: dropped at %v, want %v", v.from, v.to, got, v.want)
		}
	}
}
