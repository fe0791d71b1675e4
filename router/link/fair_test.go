package link

import (
	"slices"
	"testing"
	"time"

	"lokinetd/router/packet"
)

// onPath is a datagram with the trailer of a path.
func onPath(path byte, number, size int) *packet.Buffer {
	p := make([]byte, max(size, 17))
	p[0], p[1] = byte(number>>8), byte(number)
	for i := range 8 {
		p[len(p)-17+i] = path * byte(31+2*i)
	}
	return bufferOf(p)
}

// paths returns n paths that share no flow.
func paths(q *datagramQueue, n int) (ids []byte) {
	taken := map[int8]bool{}
	for id := byte(1); len(ids) < n; id++ {
		b := onPath(id, 0, 17)
		if f := q.flowOf(b.Data); !taken[f] {
			taken[f] = true
			ids = append(ids, id)
		}
		b.Release()
	}
	return ids
}

// A path that floods harms itself only: the others lose nothing, keep their order and do not wait behind it.
func TestFairQueue(t *testing.T) {
	before := packet.InUse()
	q := newDatagramQueue(200_000, 100)
	ids := paths(q, 4)
	const size = 1200
	sent, got := map[byte][]int{}, map[byte][]int{}
	pop := func(n int) {
		batch := make([]*packet.Buffer, n)
		for _, b := range batch[:q.pop(batch)] {
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
			q.push(onPath(ids[0], i, size))
		}
		sent[ids[0]] = append(sent[ids[0]], i)
		for _, id := range ids[1:] {
			if i%2 == 0 {
				q.push(onPath(id, i, size))
				sent[id] = append(sent[id], i)
			}
		}
		pop(3) // what is asked for is 6.5
		if q.n > 100 || q.bytes > 200_000 {
			t.Fatalf("%d datagrams, %d bytes", q.n, q.bytes)
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
	if q.n != 0 || q.bytes != 0 || packet.InUse() != before {
		t.Errorf("%d left, %d buffers", q.n, packet.InUse()-before)
	}
}

// Turns are measured in bytes: small datagrams are not served like large ones.
func TestFairBytes(t *testing.T) {
	q := newDatagramQueue(10<<20, 10_000)
	defer q.close()
	ids := paths(q, 2)
	for i := range 3000 {
		q.push(onPath(ids[0], i, 200))
		if i < 600 {
			q.push(onPath(ids[1], i, 1400))
		}
	}
	batch := make([]*packet.Buffer, 8)
	var bytes [2]int
	for bytes[0]+bytes[1] < 500_000 {
		for _, b := range batch[:q.pop(batch)] {
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

// Who waits for room is told when the last crowded queue has some.
func TestCrowd(t *testing.T) {
	var c crowd
	a, b := newDatagramQueue(1<<20, 1000), newDatagramQueue(1<<20, 1000)
	a.crowd, b.crowd = &c, &c
	fill := func(q *datagramQueue) {
		for q.bytes < crowdedBytes {
			q.push(onPath(1, 0, 1000))
		}
	}
	drain := func(q *datagramQueue) {
		for q.bytes > crowdedBytes/2 {
			one := make([]*packet.Buffer, 1)
			q.pop(one)
			one[0].Release()
		}
	}
	open := func() bool {
		room := c.wait()
		if room == nil {
			return true
		}
		select {
		case <-room:
			return true
		case <-time.After(time.Millisecond):
			return false
		}
	}
	if !open() {
		t.Error("crowded at first")
	}
	fill(a)
	fill(b)
	room := c.wait()
	drain(a)
	if open() {
		t.Error("not crowded although one queue is")
	}
	b.close()
	<-room
	if !open() {
		t.Error("crowded although the queues have room")
	}
	a.close()
}

// Signals are held back between put and pull, for corkMax datagrams at most, and none is forgotten.
func TestCork(t *testing.T) {
	var c cork
	var signals [2]int
	queues := []*datagramQueue{newDatagramQueue(1<<20, 1000), newDatagramQueue(1<<20, 1000)}
	for i, q := range queues {
		q.cork = &c
		q.notify(func() { signals[i]++ })
		defer q.close()
	}
	signals = [2]int{}
	push := func(which, n int) {
		for range n {
			queues[which].push(onPath(1, 0, 100))
		}
	}
	check := func(what string, a, b int) {
		t.Helper()
		if signals != [2]int{a, b} {
			t.Errorf("%s: %v signals", what, signals)
		}
	}
	empty := func(which int) {
		batch := make([]*packet.Buffer, 1000)
		for _, b := range batch[:queues[which].pop(batch)] {
			b.Release()
		}
	}
	push(0, 2)
	check("no cork", 1, 0)
	empty(0)
	c.put()
	push(0, corkMax-2)
	push(1, 1)
	check("held back", 1, 0)
	push(1, 1)
	check("enough", 2, 1)
	empty(0)
	empty(1)
	push(0, 1)
	c.put()
	push(1, 1)
	check("two corks", 2, 1)
	c.pull()
	check("one pulled", 3, 2)
	empty(0)
	push(0, 1)
	check("the other holds", 3, 2)
	c.pull()
	check("both pulled", 4, 2)
	empty(0)
	push(0, 1)
	check("no cork any more", 5, 2)
}
