package session

import (
	"fmt"
	"testing"
	"time"

	"lokinetd/router/key"
)

// TestStorm: both sides talk while messages are lost, late, out of order and doubled, paths die with and without notice, and nodes crash. When it is over, all is answered within
// 45 s, and what is left over goes away.
func TestStorm(t *testing.T) {
	r := random(t)
	rounds := 30
	if raceEnabled || testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		inBubble(t, func(t *testing.T, f *fabric) {
			a, b := f.pair()
			a.echo, b.echo = true, true
			nodes := []*node{a, b}
			loss, crashes := 0.4*r.Float64(), r.IntN(2) == 0
			f.lose = func(m *flying) bool {
				late := time.Duration(r.IntN(300)) * time.Millisecond
				switch x := r.Float64(); {
				case x < loss:
					return true
				case x < loss+0.1:
					time.AfterFunc(late, m.land) // a copy, sooner or later than the message
				case x < loss+0.3:
					time.AfterFunc(f.latency+late, m.land)
					return true
				}
				return false
			}
			for range 60 * 4 {
				for _, n := range nodes {
					if r.IntN(3) == 0 {
						n.send(nodes[0], "x") // to itself, or to the other
						n.send(nodes[1], "?x")
					}
					pools := n.allPools()
					if len(pools) == 0 {
						continue
					}
					if ps := pools[r.IntN(len(pools))].all(); len(ps) > 0 && r.IntN(20) == 0 {
						p := ps[r.IntN(len(ps))]
						if r.IntN(3) == 0 {
							p.blind(true)
						} else {
							p.kill(true)
						}
					}
					if crashes && r.IntN(200) == 0 {
						n.crash(nil)
					}
				}
				f.run(250 * time.Millisecond)
			}
			f.lose = nil
			for _, n := range nodes { // what pings would find
				for _, pool := range n.allPools() {
					for _, p := range pool.all() {
						if _, silent := p.state(); silent {
							p.kill(true)
						}
					}
				}
			}
			for range 45 {
				a.send(b, "?calm")
				b.send(a, "?calm")
				f.run(time.Second)
			}
			a.take()
			b.take()
			for i := range 10 {
				a.send(b, fmt.Sprint("?", i))
				b.send(a, fmt.Sprint("?", i))
				f.run(time.Second)
			}
			if na, nb := len(a.take()), len(b.take()); na != 20 || nb != 20 {
				t.Errorf("round %d: %d and %d of 20\na %+v\nb %+v", round, na, nb, a.with(b), b.with(a))
			}
			f.run(35 * time.Second)
			for _, n := range nodes {
				tb := n.table
				tb.lock()
				if len(tb.tags)+len(tb.remotes)+len(tb.pending)+tb.calls != 0 {
					t.Errorf("round %d: left over: %d sessions, %d remotes, %d inits, %d calls", round, len(tb.tags), len(tb.remotes), len(tb.pending), tb.calls)
				}
				tb.unlock()
			}
		})
		if t.Failed() {
			return
		}
	}
}

// TestConcurrent: packets, ticks, path changes and lists from many goroutines at once; for the race detector.
func TestConcurrent(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		r := f.relay(carol)
		b.echo, r.echo = true, true
		for i := range 4 {
			for _, n := range []*node{a, b} {
				go func() {
					for j := range 200 {
						n.send(a, fmt.Sprint("?", i, j))
						n.send(b, fmt.Sprint("?", i, j))
						n.send(r, fmt.Sprint("?", i, j))
						if j%10 == 0 {
							n.table.List()
							n.table.Stats()
							n.table.Tick(time.Now())
							n.table.Publication()
							n.table.Send(key.Address{Key: secretOf(byte(i)).Public()}, ipPacket("nobody"))
						}
						if j%50 == 49 {
							for _, p := range a.outbound().all() {
								p.kill(true)
								break
							}
						}
						time.Sleep(time.Duration(10+i) * time.Millisecond)
					}
				}()
			}
		}
		for range 20 {
			time.Sleep(250 * time.Millisecond)
			for _, n := range f.nodes {
				n.table.Tick(time.Now())
			}
		}
		f.run(time.Minute)
		if got := len(a.take()); got < 1000 {
			t.Errorf("%d answers", got)
		}
	})
}
