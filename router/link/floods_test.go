package link

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/packet"
)

// Floods against an endpoint, in fake time. What real processes make of them is measured by `make floods`.

// One source begins handshakes as fast as it can; another one comes in between.
func TestHandshakeFlood(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := run(t, n.socket(addrOf(1)), &node{}, Config{Accept: true})
		defer b.stop()
		a := run(t, n.socket(addrOf(2)), &node{}, Config{})
		defer a.stop()
		const left = 4
		for range sourceBurst - left {
			b.quic.doors.Take(NetworkOf(addrOf(2).Addr()), 1, time.Now())
		}
		ok, start := 0, time.Now()
		for range 3 * left {
			c, err := a.quic.Dial(ctxb, b.addr, b.secret.Public(), Client)
			if err == nil {
				ok++
				c.Close(CodeNormal)
			}
		}
		if most := left + 1 + int(time.Since(start).Seconds()*4); ok < left || ok > most {
			t.Errorf("%d more connections of one source, not %d to %d", ok, left, most)
		}
		other := run(t, n.socket(addrOf(3)), &node{}, Config{})
		defer other.stop()
		if _, err := other.quic.Dial(ctxb, b.addr, b.secret.Public(), Client); err != nil {
			t.Errorf("another source: %v", err)
		}
	})
}

// More come at once than are looked at: the others' next packets are, in time.
func TestStrangers(t *testing.T) {
	needsHook(t)
	inSim(t, func(t *testing.T, n *simNet) {
		const limit, come = 5, 12
		b := run(t, n.socket(addrOf(1)), &node{}, Config{Accept: true, Limits: Limits{Strangers: limit}})
		defer b.stop()
		time.Sleep(time.Second)
		var wg sync.WaitGroup
		var failed atomic.Int64
		for i := range come {
			a := run(t, n.socket(addrOf(10+i)), &node{}, Config{})
			defer a.stop()
			wg.Go(func() {
				if _, err := a.quic.Dial(ctxb, b.addr, b.secret.Public(), Client); err != nil {
					failed.Add(1)
				}
			})
		}
		time.Sleep(8 * time.Millisecond) // the first packets are there, and no second ones
		if s := b.quic.Stats(); s.Inbound > limit || s.Strangers == 0 {
			t.Errorf("%d handshakes were begun at once, not %d; %d packets were dropped", s.Inbound, limit, s.Strangers)
		}
		wg.Wait()
		if failed.Load() > 0 {
			t.Errorf("%d of %d failed", failed.Load(), come)
		}
	})
}

// Readers of an endpoint that accepts take turns.
func TestReadersTakeTurns(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := run(t, n.socket(addrOf(1)), &node{}, Config{Accept: true})
		defer b.stop()
		a := run(t, n.socket(addrOf(2)), &node{}, Config{})
		defer a.stop()
		c, err := a.quic.Dial(ctxb, b.addr, b.secret.Public(), Client)
		if err != nil {
			t.Fatal(err)
		}
		b.quic.turns.take(prefixOf(9), false)
		ctx, cancel := context.WithTimeout(ctxb, 3*time.Second)
		defer cancel()
		if _, err := c.Request(ctx, "x", nil); err != ErrTimeout {
			t.Errorf("a request was read out of turn: %v", err)
		}
		b.quic.turns.end(0)
		if _, err := c.Request(ctxb, "x", nil); err != nil {
			t.Error(err)
		}
	})
}

// Peers that do not read make datagrams wait: those of all together are bounded, and an idle queue still takes some.
func TestQueuedAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := packet.InUse()
		var all atomic.Int64
		queues := make([]*datagramQueue, 40)
		for i := range queues {
			queues[i] = newDatagramQueue(2_000_000, 1024)
			queues[i].all = &all
			for range 600 {
				queues[i].push(bufferOf(make([]byte, 100)), time.Now())
			}
		}
		sum := uint64(0)
		for _, q := range queues {
			sum += q.len()
			if q.len() < queuedFree {
				t.Errorf("a queue holds %d", q.len())
			}
		}
		if most := uint64(queuedAll + len(queues)*queuedFree); sum > most || sum != uint64(all.Load()) {
			t.Errorf("%d datagrams wait, %d were counted, %d may", sum, all.Load(), most)
		}
		var batch [64]*packet.Buffer
		for n := queues[0].pop(batch[:], time.Now()); n > 0; n = queues[0].pop(batch[:], time.Now()) {
			for _, b := range batch[:n] {
				b.Release()
			}
		}
		for _, q := range queues {
			q.close()
		}
		if all.Load() != 0 || packet.InUse() != before {
			t.Errorf("%d are counted when nothing waits, %d buffers left", all.Load(), packet.InUse()-before)
		}
	})
}

// What connections hold unread shrinks with their number.
func TestUnreadShares(t *testing.T) {
	for _, c := range []struct{ connections, each int }{{0, unreadAll}, {1, unreadAll}, {1024, 128}, {4096, unreadLeast}} {
		q := &QUIC{inbound: c.connections}
		if got := q.unread(); got != c.each {
			t.Errorf("%d connections: %d packets each, not %d", c.connections, got, c.each)
		}
	}
}
