//go:build !race

// Not with the race detector: half a million packets, and nothing that other tests do not show it.

package link

import (
	"encoding/binary"
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

// pipe is the wire to each node, with a rate, a queue and losses.
type pipe struct {
	rate  float64       // bytes a second
	queue time.Duration // packets that would wait longer are lost
	delay time.Duration
	loss  float64

	mu   sync.Mutex
	r    *rand.Rand
	free map[netip.AddrPort]time.Time // by receiver: when the wire to it is free
	full int                          // lost because the queue was full
}

func (p *pipe) drop(s simnet.Packet) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, to := time.Now(), addrPort(s.To)
	free := p.free[to]
	if free.Before(now) {
		free = now
	}
	if free.Sub(now) > p.queue {
		p.full++
		return true
	}
	p.free[to] = free.Add(time.Duration(float64(len(s.Data)+28) / p.rate * float64(time.Second)))
	return p.r.Float64() < p.loss
}

// late is called right after drop, for a packet that was not dropped.
func (p *pipe) late(s simnet.Packet) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.free[addrPort(s.To)].Sub(time.Now()) + p.delay
}

func newPipe(n *simNet, mbps float64, queue time.Duration, loss float64) *pipe {
	p := &pipe{
		rate: mbps * 1e6 / 8, queue: queue, delay: 40 * time.Millisecond, loss: loss,
		r: rand.New(rand.NewPCG(1, 7)), free: map[netip.AddrPort]time.Time{},
	}
	n.late = p.late
	n.lose(p.drop)
	return p
}

// carried are the bytes that have come in datagrams of each number.
type carried [2]atomic.Int64

func (c *carried) datagram(_ Conn, b *packet.Buffer) {
	c[binary.BigEndian.Uint32(b.Data)].Add(int64(len(b.Data)))
	b.Release()
}

// flood lets connections always have something to send, and returns what each has carried, in Mbit/s.
func (c *carried) flood(lasts time.Duration, from ...Conn) (mbps []float64) {
	for i := range from {
		mbps = append(mbps, -float64(c[i].Load()))
	}
	for end := time.Now().Add(lasts); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for i, conn := range from {
			for waiting := conn.Stats().Waiting; waiting < 100; waiting++ {
				conn.Send(numbered(i, 1100))
			}
		}
	}
	for i := range from {
		mbps[i] = (mbps[i] + float64(c[i].Load())) * 8 / 1e6 / lasts.Seconds()
	}
	return mbps
}

// What a link carries over 50 Mbit/s with a round trip of 80 ms, by what the wire loses. NewReno alone makes 47, 42, 6, 1.9, 1.9 and 0.9 Mbit/s of them.
func TestLossyLink(t *testing.T) {
	needsHook(t)
	for _, c := range []struct {
		loss  float64
		queue time.Duration
		least float64 // Mbit/s; measured 47, 42, 39, 28, 26, 12
	}{
		{0, 50 * time.Millisecond, 44},
		{0, 5 * time.Millisecond, 38},
		{0.001, 50 * time.Millisecond, 30},
		{0.01, 50 * time.Millisecond, 18},
		{0.01, 5 * time.Millisecond, 18},
		{0.03, 50 * time.Millisecond, 6},
	} {
		t.Run(fmt.Sprintf("%v%%, %v", c.loss*100, c.queue), func(t *testing.T) {
			inSim(t, func(t *testing.T, n *simNet) {
				p := newPipe(n, 50, c.queue, c.loss)
				a, b := n.relayAt(1), n.relayAt(2)
				defer b.stop()
				defer a.stop()
				var came carried
				b.datagram = came.datagram
				ab := a.dial(b, Relay)
				came.flood(5*time.Second, ab)
				before, sent := p.full, ab.Stats().WirePacketsOut
				rate := came.flood(10*time.Second, ab)[0]
				s := ab.Stats()
				full := float64(p.full-before) / float64(s.WirePacketsOut-sent)
				t.Logf("%.1f Mbit/s, %.5f lost in the queue; of %d lost %d, repaired %d, unrepaired %d", rate, full, s.WirePacketsOut, s.WirePacketsLost, s.Repaired, s.Unrepaired)
				if rate < c.least || full > 0.001 {
					t.Errorf("%.1f Mbit/s, %.5f lost in the queue", rate, full)
				}
			})
		})
	}
}

// Who comes later gets its share, also where there is hardly room for a queue, so that all losses look like accidents.
func TestLossyShare(t *testing.T) {
	needsHook(t)
	for _, queue := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
		t.Run(queue.String(), func(t *testing.T) {
			inSim(t, func(t *testing.T, n *simNet) {
				p := newPipe(n, 20, queue, 0)
				a, b, c := n.relayAt(1), n.relayAt(2), n.relayAt(3)
				defer c.stop()
				defer b.stop()
				defer a.stop()
				var came carried
				c.datagram = came.datagram
				ac := a.dial(c, Relay)
				came.flood(10*time.Second, ac)
				bc := b.dial(c, Relay)
				came.flood(20*time.Second, ac, bc)
				rates := came.flood(20*time.Second, ac, bc)
				t.Logf("%.1f Mbit/s, %d lost in the queue", rates, p.full)
				if sum := rates[0] + rates[1]; sum < 14 || min(rates[0], rates[1]) < 0.25*sum {
					t.Errorf("%.1f Mbit/s", rates)
				}
			})
		})
	}
}
