package link

import (
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

// Who waits for room is told when the last crowded queue has some.
func TestCrowd(t *testing.T) {
	now := time.Now()
	var c crowd
	a, b := newDatagramQueue(1<<20, 1000), newDatagramQueue(1<<20, 1000)
	a.crowd, b.crowd = &c, &c
	fill := func(q *datagramQueue) {
		for q.fair.Bytes() < crowdedBytes {
			q.push(onPath(1, 0, 1000), now)
		}
	}
	drain := func(q *datagramQueue) {
		for q.fair.Bytes() > crowdedBytes/2 {
			one := make([]*packet.Buffer, 1)
			q.pop(one, now)
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
	now := time.Now()
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
			queues[which].push(onPath(1, 0, 100), now)
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
		for _, b := range batch[:queues[which].pop(batch, now)] {
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
