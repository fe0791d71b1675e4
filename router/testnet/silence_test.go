package testnet

import (
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/path"
)

// routes gives the relays of each way from a to b that a has: its own paths to b, the one in use first, and behind each b's path that it meets.
func routes(a, b *Host) (all [][]key.Public) {
	meet := map[key.Public][]key.Public{}
	for _, p := range b.Endpoint.Sessions.Inbound(time.Now()) {
		meet[p.Pivot()] = p.Hops()
	}
	for _, p := range a.Node.Paths() {
		if p.Kind != path.Aligned || p.State != "up" {
			continue
		}
		hops := append(slices.Clone(p.Hops), meet[p.Hops[len(p.Hops)-1]]...)
		if p.Current {
			all = slices.Insert(all, 0, hops)
		} else {
			all = append(all, hops)
		}
	}
	return all
}

// TestSilentDeath: a relay on the way of a session dies without a word, under one message a second each way, which are repeated after 1, 2, 4 s. The silence is
// short, whether the relay is on one or on all of the ways that there are, and nothing is lost.
func TestSilentDeath(t *testing.T) {
	const one, more = "the way in use", "others or all of the ways too"
	// The longest time between two answers, in which it is usually one second. What is typical is logged: 2 s and 3 s.
	limit := map[string]time.Duration{one: 6 * time.Second, more: 10 * time.Second}
	runs := 25
	if raceEnabled || testing.Short() {
		runs = 2
	}
	silences := map[string][]time.Duration{}
	for run := range runs {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed(t), uint64(run)))
			n := New(t, Options{Relays: 12, Clients: 2, Latency: 10 * time.Millisecond, Seed: seed(t) + uint64(run)})
			a, b := n.Clients[0], n.Clients[1]
			time.Sleep(5 * time.Second)
			const deaths = 5
			const d = 30*time.Second + deaths*2*time.Minute
			forth, back := converse(a.Flow(b), 0, d), converse(b.Flow(a), time.Duration(rng.Int64N(int64(time.Second))), d)
			time.Sleep(20 * time.Second)
			for range deaths {
				caller, other := a, b
				if a.sessionTo(t, b).Inbound {
					caller, other = b, a
				}
				ways := routes(caller, other)
				dead := n.relay(t, ways[0][rng.IntN(len(ways[0]))])
				hit := 0
				for _, w := range ways {
					if slices.Contains(w, dead.Secret.Public()) {
						hit++
					}
				}
				what := more
				if hit == 1 && len(ways) > 1 {
					what = one
				}
				time.Sleep(time.Duration(rng.Int64N(int64(5 * time.Second))))
				forth.f.longest()
				back.f.longest()
				dead.Kill()
				time.Sleep(50 * time.Second)
				worst := max(forth.f.longest(), back.f.longest())
				silences[what] = append(silences[what], worst)
				if worst > limit[what] {
					t.Errorf("run %d: %d of %d ways: silent for %v", run, hit, len(ways), worst)
				}
				dead.Start()
				time.Sleep(60 * time.Second)
			}
			for _, k := range []*talk{forth, back} {
				k.wait()
				if k.f.Lost > 0 {
					t.Errorf("%d of %d messages are lost", k.f.Lost, k.f.Sent)
				}
			}
		})
	}
	for what, d := range silences {
		slices.Sort(d)
		t.Logf("on %s: %d deaths, silent for %v, %v, %v (median, 90 %%, most)", what, len(d), d[len(d)/2], d[len(d)*9/10], d[len(d)-1])
	}
	if d := silences[one]; runs > 2 && (len(d) < 10 || d[len(d)*9/10] > 4100*time.Millisecond) {
		t.Errorf("one death in ten makes a longer silence than 4 s: %v", d)
	}
}
