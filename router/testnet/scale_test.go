//go:build !race

package testnet

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/packet"
)

// TestHours runs a network of 70 nodes for two hours: all paths expire and are
// replaced several times, a relay restarts, and 20 pairs exchange a message a
// second. None is lost, and what the nodes hold does not grow.
func TestHours(t *testing.T) {
	const (
		relays, clients, pairs = 30, 40, 20
		hours                  = 2 * time.Hour
		part                   = 15 * time.Minute
	)
	wall, buffers := time.Now(), packet.InUse()
	sent := 0
	synctest.Test(t, func(t *testing.T) {
		n := New(t, Options{Relays: relays, Clients: clients, Latency: 10 * time.Millisecond, Seed: seed(t)})
		rng := rand.New(rand.NewPCG(seed(t), 2))
		time.Sleep(10 * time.Second)

		var talks []*talk
		for taken := map[[2]int]bool{}; len(talks) < pairs; {
			pair := [2]int{rng.IntN(clients), rng.IntN(clients)}
			if pair[0] == pair[1] || taken[pair] {
				continue
			}
			taken[pair] = true
			talks = append(talks, converse(n.Clients[pair[0]].Flow(n.Clients[pair[1]]), time.Duration(rng.Int64N(int64(time.Second))), hours))
		}

		var first, last struct {
			goroutines int
			heap       uint64
		}
		restarted := n.Relays[rng.IntN(relays)]
		for at := time.Duration(0); at < hours; at += part {
			if at == hours/2 {
				restarted.Stop()
				time.Sleep(30 * time.Second)
				restarted.Start()
				time.Sleep(part - 30*time.Second)
			} else {
				time.Sleep(part)
			}
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			last.goroutines, last.heap = runtime.NumGoroutine(), m.HeapAlloc
			if at == part { // all slots of paths have been filled by now
				first = last
			}
			var slowest time.Duration
			for _, k := range talks {
				slowest = max(slowest, k.f.slowest())
			}
			t.Logf("after %v: the slowest answer in %v took %v; %d goroutines, %d MB", at+part, part, slowest, last.goroutines, last.heap>>20)
		}
		for _, k := range talks {
			k.wait()
			sent += k.f.Sent
			if k.f.Lost > 0 {
				t.Errorf("%v to %v: %d of %d messages are lost", k.f.from, k.f.to, k.f.Lost, k.f.Sent)
			}
		}
		if last.goroutines > first.goroutines*5/4 || last.heap > first.heap*2 {
			t.Errorf("from %d to %d goroutines, from %d to %d bytes", first.goroutines, last.goroutines, first.heap, last.heap)
		}
	})
	if left := packet.InUse() - buffers; left != 0 {
		t.Errorf("%d packet buffers were not released", left)
	}
	t.Logf("%d messages in %v, which took %v", sent, hours, time.Since(wall))
}
