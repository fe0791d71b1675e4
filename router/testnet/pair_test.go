package testnet

import (
	"fmt"
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

// longest returns the longest time between two answers since the last call.
func (f *Flow) longest() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.Gap
	f.Gap = 0
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

// Two clients call each other within some round trips, over real paths. Nothing is lost, and where the calls cross both end on the smaller key's session, whoever began.
// With a node by the reference's rule, which keeps only what it was called for last, nothing is lost either and both use the same session.
func TestBothCall(t *testing.T) {
	const (
		latency = 10 * time.Millisecond
		trip    = 12 * latency // three hops from each side, forth and back
		// A session without use goes after 30 s, which begin again when the remote tells its contact over it.
		talking = 90 * time.Second
	)
	repeats := 10 // of each order
	if raceEnabled {
		repeats = 2
	}
	buffers := packet.InUse()
	rng := rand.New(rand.NewPCG(seed(t), 3))
	for _, c := range []struct {
		name      string
		smaller   int // who begins: 0 the smaller key, 1 the larger
		reference int // who follows the reference's rule: 0 the smaller key, 1 the larger, -1 nobody
	}{
		{"the smaller key begins", 0, -1}, {"the larger key begins", 1, -1},
		{"the smaller key, a reference, begins", 0, 0}, {"the larger key begins, the smaller a reference", 1, 0},
		{"the smaller key begins, the larger a reference", 0, 1}, {"the larger key, a reference, begins", 1, 1},
	} {
		crossed, slowest := 0, time.Duration(0)
		for i := range repeats {
			offset := time.Duration(rng.Int64N(int64(2 * trip)))
			if i >= repeats*4/5 { // the first call is in use for a while
				offset *= 10
			}
			synctest.Test(t, func(t *testing.T) {
				n := New(t, Options{Relays: 8, Clients: 2, Latency: latency, Seed: seed(t) + uint64(i)})
				pair := n.Clients // the smaller key first
				if pair[0].Address().Key.Compare(pair[1].Address().Key) > 0 {
					pair[0], pair[1] = pair[1], pair[0]
				}
				if c.reference >= 0 {
					pair[c.reference].Endpoint.Sessions.FollowReference()
				}
				time.Sleep(5 * time.Second)
				first, second := pair[c.smaller], pair[1-c.smaller]
				forth := converse(first.Flow(second), 0, talking)
				back := converse(second.Flow(first), offset, talking)
				time.Sleep(10 * time.Second)
				_, all := pair[0].used(t, pair[1].Address())
				_, others := pair[1].used(t, pair[0].Address())
				both := all > 1 && others > 1
				forth.wait()
				back.wait()
				for _, k := range []*talk{forth, back} {
					if k.f.Lost > 0 || k.f.Answered != k.f.Sent {
						t.Errorf("%s, offset %v: of %d messages %d are answered, %d lost", c.name, offset, k.f.Sent, k.f.Answered, k.f.Lost)
					}
					slowest = max(slowest, k.f.slowest())
				}
				small, all := pair[0].used(t, pair[1].Address())
				large, others := pair[1].used(t, pair[0].Address())
				if small.Inbound == large.Inbound {
					t.Errorf("%s, offset %v: they use different sessions (inbound %v and %v)", c.name, offset, small.Inbound, large.Inbound)
				}
				if all != 1 || others != 1 {
					t.Errorf("%s, offset %v: %d and %d sessions are left", c.name, offset, all, others)
				}
				if both {
					crossed++
					if small.Inbound {
						t.Errorf("%s, offset %v: the larger key's session stays", c.name, offset)
					}
				}
			})
		}
		t.Logf("%s: both calls were answered %d times of %d; the slowest message took %v", c.name, crossed, repeats, slowest)
	}
	if left := packet.InUse() - buffers; left != 0 {
		t.Errorf("%d packet buffers were not released", left)
	}
}

// Packets get lost on every link, each of 80 ms, and a try of the application, there and back, crosses twelve of them. Without the links'
// repair 46 % of the tries would fail at 5 %, and one message in 230 after its last; with it 3 % of the tries, and no message is lost, over all renewals of paths and sessions.
func TestLoss(t *testing.T) {
	for _, loss := range []float64{0.01, 0.05} {
		t.Run(fmt.Sprint(loss), func(t *testing.T) {
			bothWires(t, func(t *testing.T, quic bool) {
				d := 15 * time.Minute
				if quic {
					d = 5 * time.Minute
				}
				if raceEnabled {
					d /= 3
				}
				n := New(t, Options{Relays: 8, Clients: 2, Latency: 80 * time.Millisecond, Loss: loss, Seed: seed(t), QUIC: quic})
				a, b := n.Clients[0], n.Clients[1]
				time.Sleep(10 * time.Second)
				k := converse(a.Flow(b), 0, d)
				k.wait()
				t.Logf("%d messages in %v, %d lost, %d tries, the slowest answered after %v", k.f.Sent, d, k.f.Lost, k.f.Tries, k.f.Slowest)
				if repaired := !quic || repairs; repaired && (k.f.Lost > 0 || k.f.Slowest > 16*time.Second) {
					t.Errorf("%d of %d messages are lost, the slowest answered after %v", k.f.Lost, k.f.Sent, k.f.Slowest)
				}
			})
		})
	}
}
