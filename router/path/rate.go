package path

import (
	"encoding/binary"
	"sync"
	"time"

	"lokinetd/router/fair"
	"lokinetd/router/packet"
)

// throttle holds what a relay sends for paths to a rate, fairly between the paths (packet.Fair): above it, who sends more than others waits and loses. Control messages are not
// held back: they are few, and paths die without.
type throttle struct {
	rate float64 // bytes a second
	pass func(*packet.Buffer)

	mu     sync.Mutex
	queue  *packet.Fair
	passed fair.Account // bytes
	timer  *time.Timer  // not nil while something waits, or is being passed: by one goroutine, in order
	closed bool
	drops  func(uint64)
}

const (
	// throttleBurst is how much of the rate passes at once.
	throttleBurst = 10 * time.Millisecond
	// The most that waits, of all paths.
	throttleCount = 4096
	throttleBytes = 4 << 20
)

func newThrottle(rate int, pass func(*packet.Buffer), drops func(uint64)) *throttle {
	return &throttle{rate: float64(rate), pass: pass, drops: drops, queue: packet.NewFair(throttleBytes, throttleCount)}
}

// push owns b, which ends in its trailer.
func (t *throttle) push(b *packet.Buffer) {
	now := time.Now()
	t.mu.Lock()
	switch {
	case t.closed:
		t.mu.Unlock()
		b.Release()
		return
	case t.timer == nil && t.room(now):
		t.passed.Add(float64(len(b.Data)), now, t.rate)
		t.mu.Unlock()
		t.pass(b)
		return
	}
	_, _, id, _ := split(b.Data)
	t.drops(uint64(t.queue.Push(b, binary.LittleEndian.Uint64(id[:]), now)))
	if t.timer == nil {
		t.timer = time.AfterFunc(t.wait(now), t.run)
	}
	t.mu.Unlock()
}

// room says whether something may pass. mu is held.
func (t *throttle) room(now time.Time) bool {
	return t.passed.Spent(now, t.rate) < t.rate*throttleBurst.Seconds()
}

// wait is how long there is none. mu is held.
func (t *throttle) wait(now time.Time) time.Duration {
	over := t.passed.Spent(now, t.rate) - t.rate*throttleBurst.Seconds()/2
	return max(time.Millisecond, time.Duration(over/t.rate*float64(time.Second)))
}

// run passes what may pass by now.
func (t *throttle) run() {
	var batch [16]*packet.Buffer
	for {
		n := 0
		t.mu.Lock()
		now := time.Now()
		for n < len(batch) && t.room(now) {
			m, stood := t.queue.Pop(batch[n:n+1], now)
			t.drops(uint64(stood))
			if m == 0 {
				break
			}
			t.passed.Add(float64(len(batch[n].Data)), now, t.rate)
			n++
		}
		if n == 0 {
			if t.timer = nil; t.queue.Len() > 0 {
				t.timer = time.AfterFunc(t.wait(now), t.run)
			}
		}
		t.mu.Unlock()
		for _, b := range batch[:n] {
			t.pass(b)
		}
		if n == 0 {
			return
		}
	}
}

// close drops what waits, and what comes.
func (t *throttle) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.queue.Clear()
	if t.timer != nil {
		t.timer.Stop()
	}
}
