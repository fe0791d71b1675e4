package link

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"lokinetd/router/packet"
)

// pipe is a wire with a rate, a queue and losses, one for each direction.
type pipe struct {
	rate  float64       // bytes a second
	queue time.Duration // packets that would wait longer are lost
	delay time.Duration
	loss  float64

	mu   sync.Mutex
	r    *rand.Rand
	free map[netip.AddrPort]time.Time // by sender: when the wire is free
	full int                          // lost because the queue was full
}

func (p *pipe) drop(s simnet.Packet) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, from := time.Now(), addrPort(s.From)
	free := p.free[from]
	if free.Before(now) {
		free = now
	}
	if free.Sub(now) > p.queue {
		p.full++
		return true
	}
	p.free[from] = free.Add(time.Duration(float64(len(s.Data)+28) / p.rate * float64(time.Second)))
	return p.r.Float64() < p.loss
}

// late is called right after drop, for a packet that was not dropped.
func (p *pipe) late(s simnet.Packet) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.free[addrPort(s.From)].Sub(time.Now()) + p.delay
}

// carried is what a connection carries while there is always something to send.
func carried(ab Conn, came *atomic.Int64, lasts time.Duration) (mbps float64) {
	before := came.Load()
	for end := time.Now().Add(lasts); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for i := ab.Stats().Waiting; i < 100; i++ {
			ab.Send(numbered(0, 1100))
		}
	}
	return float64(came.Load()-before) * 8 / 1e6 / lasts.Seconds()
}

// What a link carries over 50 Mbit/s with a round trip of 80 ms, by what the wire loses. NewReno alone makes 47, 6, 1.9 and 0.9 Mbit/s of them.
func TestLossyLink(t *testing.T) {
	needsHook(t)
	for _, c := range []struct {
		loss  float64
		queue time.Duration
		least float64 // Mbit/s; measured 47, 47, 46, 40 to 46, 42, 17 to 40
		most  float64 // lost in the queue, of all; measured 0, and 0.01 where it is short
	}{
		{0, 50 * time.Millisecond, 45, 0.001},
		{0, 5 * time.Millisecond, 45, 0.02},
		{0.001, 50 * time.Millisecond, 35, 0.001},
		{0.01, 50 * time.Millisecond, 30, 0.001},
		{0.01, 5 * time.Millisecond, 30, 0.02},
		{0.03, 50 * time.Millisecond, 8, 0.001},
	} {
		t.Run(fmt.Sprintf("%v%%, %v", c.loss*100, c.queue), func(t *testing.T) {
			inSim(t, func(t *testing.T, n *simNet) {
				p := &pipe{rate: 50e6 / 8, queue: c.queue, delay: 40 * time.Millisecond, loss: c.loss, r: rand.New(rand.NewPCG(1, 7)), free: map[netip.AddrPort]time.Time{}}
				n.late = p.late
				n.lose(p.drop)
				a, b := n.relayAt(1), n.relayAt(2)
				defer b.stop()
				defer a.stop()
				var came atomic.Int64
				b.datagram = func(_ Conn, d *packet.Buffer) {
					came.Add(int64(len(d.Data)))
					d.Release()
				}
				ab := a.dial(b, Relay)
				carried(ab, &came, 5*time.Second)
				before, sent := p.full, ab.Stats().WirePacketsOut
				rate := carried(ab, &came, 10*time.Second)
				s := ab.Stats()
				full := float64(p.full-before) / float64(s.WirePacketsOut-sent)
				t.Logf("%.1f Mbit/s, %.5f lost in the queue; of %d lost %d, repaired %d, unrepaired %d", rate, full, s.WirePacketsOut, s.WirePacketsLost, s.Repaired, s.Unrepaired)
				if rate < c.least || full > c.most {
					t.Errorf("%.1f Mbit/s, %.5f lost in the queue", rate, full)
				}
			})
		})
	}
}
