package session

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"lokinetd/router/packet"
)

// stream has from send something every 10 ms, and to answer each tenth, until it is told to stop. silence gives the longest time, to 10 ms, without anything at to since it was asked before.
func (f *fabric) stream(from, to *node) (silence func() time.Duration, stop func()) {
	var mu sync.Mutex
	last, longest := time.Now(), time.Duration(0)
	done := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			case <-time.After(10 * time.Millisecond):
			}
			s := "x"
			if n%10 == 0 {
				s = "?"
			}
			from.send(to, s)
			if len(to.take()) > 0 {
				mu.Lock()
				longest, last = max(longest, time.Since(last)), time.Now()
				mu.Unlock()
			}
		}
	}()
	return func() time.Duration {
		mu.Lock()
		defer mu.Unlock()
		d := max(longest, time.Since(last))
		longest = 0
		return d
	}, func() { close(done); time.Sleep(time.Second) }
}

// TestSilentWay: a remote streams to us, and the way dies without a word: our path, or the remote's that we meet. The stream goes on soon, over another one; how soon depends on how long an
// answer takes.
func TestSilentWay(t *testing.T) {
	for _, x := range []struct{ rtt, limit time.Duration }{{10 * time.Millisecond, 700 * time.Millisecond}, {100 * time.Millisecond, time.Second}, {300 * time.Millisecond, 2500 * time.Millisecond}} {
		for _, theirs := range []bool{false, true} {
			inBubble(t, func(t *testing.T, f *fabric) {
				f.latency = x.rtt / 2
				a, b := f.settled()
				a.echo = true
				silence, stop := f.stream(b, a)
				f.run(5 * time.Second)
				var all []time.Duration
				for range 5 {
					a.table.lock()
					dead := a.table.remotes[b.addr()].call.path.(*fakePath)
					a.table.unlock()
					if theirs {
						f.mu.Lock()
						dead = f.ends[dead.peer]
						f.mu.Unlock()
					}
					silence()
					dead.blind(true)
					f.run(10 * time.Second)
					all = append(all, silence())
					dead.blind(false)
					f.run(5 * time.Second)
				}
				stop()
				slices.Sort(all)
				t.Logf("round trip %v, their half %v: silent for %v", x.rtt, theirs, all)
				if all[len(all)-1] > x.limit {
					t.Errorf("round trip %v, their half %v: silent for %v", x.rtt, theirs, all)
				}
				if s := a.table.Stats(); s.Diverted == 0 {
					t.Errorf("%+v", s)
				}
			})
		}
	}
}

// TestLastAnswer: the last thing that comes over a way is the answer to a ping, which was under way when it died. Who only listens notices all the same.
func TestLastAnswer(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		a.table.c.Accept = nil // b cannot call it, as nobody can who browses
		var mu sync.Mutex
		var died time.Time
		var mine, theirs *fakePath
		f.hook.Lock()
		f.lose = func(m *flying) bool {
			mu.Lock()
			defer mu.Unlock()
			if !died.IsZero() {
				return m.on == mine || m.on == theirs
			}
			if mine != nil && m.on == theirs && m.what == "control" {
				died = time.Now()
			}
			return false
		}
		f.hook.Unlock()
		gap := time.Duration(0)
		for last, n := time.Now(), 0; n < 60; n++ {
			b.send(a, "x")
			f.run(400 * time.Millisecond)
			if len(a.take()) > 0 {
				gap, last = max(gap, time.Since(last)), time.Now()
			}
			if n == 10 {
				a.table.lock()
				p := a.table.remotes[b.addr()].call.path.(*fakePath)
				a.table.unlock()
				f.mu.Lock()
				q := f.ends[p.peer]
				f.mu.Unlock()
				mu.Lock()
				mine, theirs = p, q
				mu.Unlock()
			}
			gap = max(gap, time.Since(last))
		}
		if died.IsZero() || gap > 3*time.Second {
			t.Errorf("the way died: %v; silent for %v, %+v", !died.IsZero(), gap, a.table.Stats())
		}
	})
}

// TestNoNeedlessSwitch: a way that works is kept, however slow, lossy or quiet it is.
func TestNoNeedlessSwitch(t *testing.T) {
	const links, lost = 7, 0.03 // of the way from one to the other
	rng := rand.New(rand.NewPCG(1, 2))
	again := func(link time.Duration) (d time.Duration) { // what losses cost on the reliable channel
		for range links {
			for n := time.Duration(1); rng.Float64() < lost; n *= 2 {
				d += n * (3*link + 25*time.Millisecond)
			}
		}
		return d
	}
	gone := func() bool {
		for range links {
			if rng.Float64() < lost {
				return true
			}
		}
		return false
	}
	for _, x := range []struct {
		name    string
		rtt     time.Duration
		lossy   bool
		bloated bool
	}{
		{"quiet", 20 * time.Millisecond, false, false},
		{"3 % lost on each link", 20 * time.Millisecond, true, false},
		{"300 ms, 3 % lost on each link", 300 * time.Millisecond, true, false},
		{"a queue that fills to 0.6 s and empties", 40 * time.Millisecond, false, true},
	} {
		lasts := 20 * time.Minute
		if raceEnabled {
			lasts = 5 * time.Minute
		}
		inBubble(t, func(t *testing.T, f *fabric) {
			f.latency = x.rtt / 2
			a, b := f.settled()
			start := time.Now()
			pings := 0
			f.lose = func(m *flying) bool {
				if m.what == "control" && m.from == a.sec.Public() {
					pings++
				}
				return x.lossy && m.what == "data" && gone()
			}
			f.delay = func(m *flying) (d time.Duration) {
				if x.lossy && m.what != "data" {
					d = again(f.latency / links)
				}
				if x.bloated { // 30 s long, of each minute: 0.6 s within one second
					if at := time.Since(start) % time.Minute; at < 30*time.Second {
						d += min(at*6/10, 600*time.Millisecond)
					}
				}
				return d
			}
			for time.Since(start) < lasts {
				// Words back and forth for a moment, then none for another.
				for n := 1 + rng.IntN(30); n > 0; n-- {
					a.send(b, "?")
					f.run(time.Duration(rng.IntN(100)) * time.Millisecond)
				}
				f.run(time.Duration(rng.IntN(5000)) * time.Millisecond)
				a.take()
				b.take()
			}
			f.lose, f.delay = nil, nil
			s := a.table.Stats()
			t.Logf("%s: %d switches, %d pings and other words in %v", x.name, s.SwitchesSent, pings, lasts)
			if s.Diverted > 0 || s.SwitchesSent > 2 { // one by the rules of path expiry, which is repeated when an answer overtakes it
				t.Errorf("%s: %+v", x.name, s)
			}
		})
	}
}

// TestPingsOfTheGone: a remote that is gone is not pinged for ever, and one that does not know pings four times.
func TestPingsOfTheGone(t *testing.T) {
	for _, old := range []bool{false, true} {
		inBubble(t, func(t *testing.T, f *fabric) {
			words := 0
			a, b := f.pair()
			f.lose = func(m *flying) bool {
				mine := m.what == "control" && m.from == a.sec.Public()
				if mine {
					words++
				}
				return old && mine
			}
			b.echo = true
			a.send(b, "?")
			f.run(10 * time.Second)
			if old {
				for range 60 {
					a.send(b, "?")
					f.run(time.Second)
				}
				if s := a.table.Stats(); words > 7 || s.Diverted+s.SwitchesSent > 0 {
					t.Errorf("%d words to a remote that does not answer, %+v", words, s)
				}
				return
			}
			for _, p := range b.allPools()[0].all() {
				p.blind(true)
			}
			words = 0
			a.send(b, "?")
			f.run(time.Minute)
			t.Logf("%d words in a minute to a remote that is gone", words)
			if words > 120 {
				t.Errorf("%d words to a remote that is gone", words)
			}
		})
	}
}

// tcpPacket makes an IPv4 packet with a TCP header, addresses zero.
func tcpPacket(s string) *packet.Buffer {
	b := ipPacket(string(make([]byte, 20)) + s)
	b.Data[9] = packet.ProtoTCP
	b.Data[20+12] = 5 << 4
	return b
}

// TestRepeat: what TCP sent into a way that died is sent again when the way has changed: the last packet of each connection, of the side that called and of the other. Others are not.
func TestRepeat(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		f.latency = 5 * time.Millisecond
		a, b := f.settled()
		f.run(time.Second)
		a.take()
		b.take()
		a.table.lock()
		p := a.table.remotes[b.addr()].call.path.(*fakePath)
		a.table.unlock()
		p.blind(true)
		for i := range 3 {
			a.table.Send(b.addr(), tcpPacket(fmt.Sprint("a", i)))
			b.table.Send(a.addr(), tcpPacket(fmt.Sprint("b", i)))
			a.send(b, fmt.Sprint("x", i))
		}
		f.run(1500 * time.Millisecond)
		tail := func(all []string) (s []string) {
			for _, x := range all {
				s = append(s, x[max(0, len(x)-2):])
			}
			return s
		}
		want(t, "b", tail(b.take()), "a2")
		want(t, "a", tail(a.take()), "b2")
		if s := a.table.Stats(); s.Diverted != 1 {
			t.Errorf("%+v", s)
		}
		// And once more, when the way that was taken dies too: nobody has said that they arrived.
		a.table.lock()
		next := a.table.remotes[b.addr()].call.path.(*fakePath)
		a.table.unlock()
		p.blind(false)
		next.blind(true)
		f.run(3 * time.Second)
		want(t, "b", tail(b.take()), "a2")
		want(t, "a", tail(a.take()), "b2")
	})
}

// TestForgotten: a remote that streams to us is killed and comes back with no memory but its key. We, who have nothing to say, find that out and call it again.
func TestForgotten(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		for range 20 {
			b.send(a, "x")
			f.run(100 * time.Millisecond)
		}
		b.crash(nil)
		f.run(8 * time.Second)
		if l := b.with(a); len(l) != 1 || !l[0].Inbound || l[0].State != Established {
			t.Errorf("%+v, %+v", l, a.table.Stats())
		}
	})
}
