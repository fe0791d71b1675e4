package testnet

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/session"
)

// talk is a flow in use: a message every second, whether or not the one before was answered.
type talk struct {
	f    *Flow
	asks sync.WaitGroup
}

func converse(f *Flow, offset, d time.Duration) *talk {
	k := &talk{f: f}
	k.asks.Go(func() {
		time.Sleep(offset)
		start := time.Now()
		for seq := uint64(0); time.Since(start) < d; seq++ { // each iteration has its own seq
			k.asks.Go(func() { f.Ask(seq) })
			time.Sleep(time.Second)
		}
	})
	return k
}

// wait returns when every message is answered or lost.
func (k *talk) wait() { k.asks.Wait() }

// slowest returns the time that the slowest answer since the last call took.
func (f *Flow) slowest() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.Slowest
	f.Slowest = 0
	return d
}

// used returns h's sessions with a remote, and the one that its packets go to.
func (h *Host) used(t *testing.T, remote key.Address) (current session.Info, all int) {
	t.Helper()
	found := 0
	for _, i := range h.Endpoint.Sessions.List() {
		if i.Remote != remote {
			continue
		}
		all++
		if i.Current {
			current = i
			found++
		}
	}
	if found != 1 {
		t.Errorf("%v uses %d sessions", h, found)
	}
	return current, all
}

// Two clients call each other within two round trips, over real paths. Nothing
// is lost, and both end on the same session, whichever of them has the smaller
// key: the smaller key's where the calls cross, the larger key's only if that was
// in use before the other call was answered.
func TestBothCall(t *testing.T) {
	const (
		latency = 10 * time.Millisecond
		trip    = 12 * latency // three hops from each side, forth and back
		repeats = 10           // in each order of the keys
	)
	buffers := packet.InUse()
	rng := rand.New(rand.NewPCG(seed(t), 3))
	for _, c := range []struct {
		name    string
		smaller int // who begins: 0 the smaller key, 1 the larger
	}{{"the smaller key begins", 0}, {"the larger key begins", 1}} {
		crossed, larger, slowest := 0, 0, time.Duration(0)
		for i := range repeats {
			offset := time.Duration(rng.Int64N(int64(2 * trip)))
			synctest.Test(t, func(t *testing.T) {
				n := New(t, Options{Relays: 8, Clients: 2, Latency: latency, Seed: seed(t) + uint64(i)})
				small, large := n.Clients[0], n.Clients[1]
				if small.Address().Key.Compare(large.Address().Key) > 0 {
					small, large = large, small
				}
				time.Sleep(5 * time.Second)
				first, second := small, large
				if c.smaller == 1 {
					first, second = large, small
				}
				forth := converse(first.Flow(second), 0, 45*time.Second)
				back := converse(second.Flow(first), offset, 45*time.Second)
				time.Sleep(10 * time.Second)
				_, all := small.used(t, large.Address())
				_, others := large.used(t, small.Address())
				both := all > 1 && others > 1
				forth.wait()
				back.wait()
				for _, k := range []*talk{forth, back} {
					if k.f.Lost > 0 || k.f.Answered != k.f.Sent {
						t.Errorf("%s, offset %v: of %d messages %d are answered, %d lost", c.name, offset, k.f.Sent, k.f.Answered, k.f.Lost)
					}
					slowest = max(slowest, k.f.slowest())
				}
				s, all := small.used(t, large.Address())
				l, others := large.used(t, small.Address())
				if s.Inbound == l.Inbound {
					t.Errorf("%s, offset %v: they use different sessions (inbound %v and %v)", c.name, offset, s.Inbound, l.Inbound)
				}
				if all != 1 || others != 1 { // one without use goes after 30 s
					t.Errorf("%s, offset %v: %d and %d sessions are left", c.name, offset, all, others)
				}
				if both {
					crossed++
					if s.Inbound {
						larger++
					}
				}
			})
		}
		t.Logf("%s: both calls were answered %d times of %d, and %d times the larger key's session stayed; the slowest message took %v",
			c.name, crossed, repeats, larger, slowest)
	}
	if left := packet.InUse() - buffers; left != 0 {
		t.Errorf("%d packet buffers were not released", left)
	}
}

// Packets get lost on every link, each of 80 ms, and a try of the application,
// there and back, crosses twelve of them. At 1 % every message is answered. At
// 5 % a try succeeds with 0.95^12 = 54 %, and seven fail for one message in 230,
// which no network could help; so what is asked is that the network adds nothing:
// tries fail no oftener than by that, over all renewals of paths and sessions.
func TestLoss(t *testing.T) {
	const d = 15 * time.Minute
	for _, c := range []struct {
		loss float64
		lost int // at most; at 5 % four are expected, with a deviation of two
	}{{0.01, 0}, {0.05, 12}} {
		buffers := packet.InUse()
		synctest.Test(t, func(t *testing.T) {
			n := New(t, Options{Relays: 8, Clients: 2, Latency: 80 * time.Millisecond, Loss: c.loss, Seed: seed(t)})
			a, b := n.Clients[0], n.Clients[1]
			time.Sleep(10 * time.Second)
			k := converse(a.Flow(b), 0, d)
			k.wait()
			chance, rate := math.Pow(1-c.loss, 12), float64(k.f.Answered)/float64(k.f.Tries)
			t.Logf("%v of packets lost: %d messages in %v, %d lost, the slowest answered after %v; %.3f of tries succeed, by chance %.3f",
				c.loss, k.f.Sent, d, k.f.Lost, k.f.Slowest, rate, chance)
			if k.f.Lost > c.lost {
				t.Errorf("%d of %d messages are lost, want at most %d", k.f.Lost, k.f.Sent, c.lost)
			}
			if rate < chance-0.06 { // over four deviations
				t.Errorf("%.3f of tries succeed, by chance %.3f", rate, chance)
			}
		})
		if left := packet.InUse() - buffers; left != 0 {
			t.Errorf("%d packet buffers were not released", left)
		}
	}
}
