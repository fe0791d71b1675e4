//go:build soak

package testnet

import (
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/packet"
)

// TestSoakHours runs the network of TestHours for a day, or for LOKINETD_SOAK ("72h"), while relays stop, restart and die, links are cut, packets get lost and clients restart, at
// times and places that a seed decides, a new one each run. No message is lost, and what the nodes hold does not grow.
func TestSoakHours(t *testing.T) {
	const (
		relays, clients, pairs = 30, 40, 20
		part                   = time.Hour
		away                   = 3 // relays that may be down at a time
	)
	hours := 24 * time.Hour
	if text := os.Getenv("LOKINETD_SOAK"); text != "" {
		var err error
		if hours, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	s := uint64(time.Now().UnixNano())
	if os.Getenv("LOKINETD_SEED") != "" {
		s = seed(t)
	}
	t.Logf("LOKINETD_SEED=%d", s)
	wall, buffers := time.Now(), packet.InUse()
	sent := 0
	synctest.Test(t, func(t *testing.T) {
		n := New(t, Options{Relays: relays, Clients: clients, Latency: 20 * time.Millisecond, Seed: s})
		rng := rand.New(rand.NewPCG(s, 2))
		between := func(least, most time.Duration) time.Duration {
			return least + time.Duration(rng.Int64N(int64(most-least)))
		}
		time.Sleep(10 * time.Second)

		var talks []*talk
		for taken := map[[2]int]bool{}; len(talks) < pairs; {
			pair := [2]int{rng.IntN(clients), rng.IntN(clients)}
			if pair[0] == pair[1] || taken[pair] {
				continue
			}
			taken[pair] = true
			talks = append(talks, converse(n.Clients[pair[0]].Flow(n.Clients[pair[1]]), between(0, time.Second), hours))
		}

		// Each fault is begun by a call and ended by the call that it returns. All are ended before the last minutes.
		down := map[*Host]bool{}
		relay := func() *Host {
			for {
				if h := n.Relays[rng.IntN(relays)]; !down[h] {
					return h
				}
			}
		}
		leave := func(h *Host, end func()) func() {
			down[h] = true
			end()
			return func() { h.Start(); delete(down, h) }
		}
		faults := []struct {
			what  string
			begin func() (end func())
			lasts time.Duration // at most
		}{
			{"relays stopped", func() func() { h := relay(); return leave(h, h.Stop) }, 10 * time.Minute},
			{"relays killed", func() func() { h := relay(); return leave(h, h.Kill) }, 10 * time.Minute},
			{"relays restarted", func() func() { h := relay(); return leave(h, h.Kill) }, 5 * time.Second},
			{"clients restarted", func() func() {
				h := n.Clients[rng.IntN(clients)]
				if down[h] {
					return func() {}
				}
				return leave(h, h.Kill)
			}, 20 * time.Second},
			{"links cut", func() func() {
				a, b := relay(), n.Clients[rng.IntN(clients)]
				n.medium.setCut(a.addr, b.addr, true)
				return func() { n.medium.setCut(a.addr, b.addr, false) }
			}, 5 * time.Minute},
			{"mesh links cut", func() func() {
				a, b := relay(), relay()
				n.medium.setCut(a.addr, b.addr, true)
				return func() { n.medium.setCut(a.addr, b.addr, false) }
			}, 5 * time.Minute},
			{"times of loss", func() func() {
				n.medium.setLoss(0.05 * rng.Float64())
				return func() { n.medium.setLoss(0) }
			}, 5 * time.Minute},
		}
		type fault struct {
			until time.Time
			end   func()
		}
		var pending []fault
		counts := map[string]int{}
		begun := time.Now()
		settle := func(now time.Time) {
			rest := pending[:0]
			for _, e := range pending {
				if now.Before(e.until) {
					rest = append(rest, e)
				} else {
					e.end()
				}
			}
			pending = rest
		}
		var first, last uint64
		for next := begun.Add(part); time.Since(begun) < hours; {
			time.Sleep(time.Second)
			settle(time.Now())
			if hours-time.Since(begun) > 15*time.Minute && rng.IntN(30) == 0 {
				f := faults[rng.IntN(len(faults))]
				if f.what[0] != 'r' || len(down) < away {
					pending = append(pending, fault{time.Now().Add(between(time.Second, f.lasts)), f.begin()})
					counts[f.what]++
				}
			}
			if time.Now().Before(next) {
				continue
			}
			next = next.Add(part)
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if last = m.HeapAlloc; first == 0 {
				first = last
			}
			var slowest time.Duration
			for _, k := range talks {
				slowest = max(slowest, k.f.slowest())
			}
			t.Logf("after %v: the slowest answer in an hour took %v; %d goroutines, %d MB; %v", time.Since(begun).Truncate(time.Minute), slowest,
				runtime.NumGoroutine(), last>>20, counts)
		}
		settle(time.Now().Add(hours))
		for _, k := range talks {
			k.wait()
			sent += k.f.Sent
			if k.f.Lost > 0 {
				t.Errorf("%v to %v: %d of %d messages are lost", k.f.from, k.f.to, k.f.Lost, k.f.Sent)
			}
		}
		if last > 2*first {
			t.Errorf("from %d to %d bytes", first, last)
		}
	})
	if left := packet.InUse() - buffers; left != 0 {
		t.Errorf("%d packet buffers were not released", left)
	}
	t.Logf("%d messages in %v, which took %v", sent, hours, time.Since(wall))
}
