//go:build !race

package link

import (
	"runtime"
	"testing"
	"time"

	"lokinetd/router/packet"
)

// Queue, splitting and joining allocate nothing per datagram.
func TestDatagramAllocs(t *testing.T) {
	q := newDatagramQueue(2_000_000, 1024)
	now := time.Now()
	var batch [8]*packet.Buffer
	var s splitter
	var j joiner
	defer j.release()
	p, piece := make([]byte, 1280), pieceOf(minM)
	if n := testing.AllocsPerRun(1000, func() {
		q.push(bufferOf(p), now)
		q.pop(batch[:], now)
		b := batch[0]
		c := s.cut(len(b.Data), piece)
		b.Prepend(dgidSize)
		for i := range c.frames {
			if whole, _ := j.add(c.frame(b.Data, i)); whole != nil {
				whole.Release()
			}
		}
		b.Release()
	}); n != 0 {
		t.Errorf("%v allocations per datagram", n)
	}
}

// A relay that forwards through a link allocates no more per datagram than one that forwards with bare quic-go, in the same run. Nothing in this package allocates on
// that way, but the collector empties the buffer pool now and then and the number of acknowledgements varies, hence the tolerance and the best of a few runs.
func TestForwardAllocs(t *testing.T) {
	const count = 20_000
	measure := func(make func(testing.TB) *forwarding) float64 {
		f := make(t)
		defer f.stop()
		f.warm(t)
		best := 0.0
		for range 3 {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			n := f.pass(t, count, benchSize)
			runtime.ReadMemStats(&after)
			if n < count*9/10 {
				t.Fatalf("%d of %d arrived", n, count)
			}
			if per := float64(after.Mallocs-before.Mallocs) / float64(n); best == 0 || per < best {
				best = per
			}
		}
		return best
	}
	bare, ours := measure(throughBare), measure(throughLink)
	t.Logf("allocations per datagram, of sender, relay and receiver together: bare quic-go %.2f, link %.2f", bare, ours)
	if ours > bare+0.4 {
		t.Errorf("%.2f allocations per datagram, bare quic-go %.2f", ours, bare)
	}
}
