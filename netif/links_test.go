package netif

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// noted is links that note what the pump says to them, as letters: room, cork, packet, uncork.
type noted struct {
	mu      sync.Mutex
	calls   string
	crowded bool
}

func (n *noted) note(what string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls += what
}

// begin forgets what was noted.
func (n *noted) begin(crowded bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls, n.crowded = "", crowded
}

func (n *noted) sofar() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.calls
}

func (n *noted) AwaitRoom(ctx context.Context, most time.Duration) {
	n.note("r")
	select {
	case <-time.After(most):
	case <-ctx.Done():
	}
}

func (n *noted) Crowded() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.crowded
}
func (n *noted) Cork()   { n.note("c") }
func (n *noted) Uncork() { n.note("u") }

// batchTUN is read in the batches that it is given.
type batchTUN struct {
	*MemTUN
	in    chan [][]byte
	ended chan struct{}
}

func (b *batchTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case batch := <-b.in:
		for i, p := range batch {
			sizes[i] = copy(bufs[i][offset:], p)
		}
		return len(batch), nil
	case <-b.ended:
		return 0, os.ErrDeadlineExceeded
	}
}

func (b *batchTUN) SetReadDeadline(t time.Time) error {
	if !t.IsZero() {
		close(b.ended)
	}
	return nil
}

// A single packet goes at once; many, and all that come while they wait or while the links are crowded, wait for room and go in batches.
func TestLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var links noted
		tun := &batchTUN{NewMemTUN(3), make(chan [][]byte), make(chan struct{})}
		p := NewPump(tun, nil)
		p.Links = &links
		m, err := NewMap(alice, alice4, alice6)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Add(m, Inbound{}, tunnelFunc(func(_ key.Address, b *packet.Buffer) bool {
			links.note("p")
			b.Release()
			return true
		})); err != nil {
			t.Fatal(err)
		}
		if _, err := m.IPv4(bob, time.Now()); err != nil {
			t.Fatal(err)
		}
		before := packet.InUse()
		ctx, cancel := context.WithCancel(t.Context())
		var ended sync.WaitGroup
		ended.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Second)
		synctest.Wait()
		for _, c := range []struct {
			name    string
			batches []int
			crowded bool
			want    string
		}{
			{"single", []int{1}, false, "p"},
			{"many", []int{3}, false, "rcpppur"},
			{"many and one", []int{3, 1}, false, "rcppppurr"},
			{"single again", []int{1}, false, "p"},
			{"crowded", []int{1}, true, "rcpur"},
		} {
			links.begin(c.crowded)
			for _, n := range c.batches {
				tun.in <- slices.Repeat([][]byte{udp(alice4.Addr(), bobAtAlice4, 1, 2, "x")}, n)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if got := links.sofar(); got != c.want {
				t.Errorf("%s: %s, want %s", c.name, got, c.want)
			}
		}
		// What waits at the end is given back.
		tun.in <- [][]byte{udp(alice4.Addr(), bobAtAlice4, 1, 2, "x")}
		synctest.Wait()
		cancel()
		ended.Wait()
		if n := packet.InUse(); n > before {
			t.Errorf("%d buffers are lost", n-before)
		}
	})
}

// A question passes what is copied, and nothing else changes its place.
func TestBacklog(t *testing.T) {
	now := time.Now()
	buffer := func(p []byte) *packet.Buffer {
		b := packet.Get()
		copy(b.Reset(len(p)), p)
		return b
	}
	bob6 := bobAtAlice6
	for _, c := range []struct {
		name string
		copy func(i int) []byte
		ask  []byte
	}{
		{"IPv4", func(i int) []byte { return udp(alice4.Addr(), bobAtAlice4, 1, 2, string(make([]byte, 1000+i))) }, udp(alice4.Addr(), bobAtAlice4, 3, 2, "?")},
		{"IPv6", func(i int) []byte { return udp(alice6.Addr(), bob6, 1, 2, string(make([]byte, 1000+i))) }, udp(alice6.Addr(), bob6, 3, 2, "?")},
		{"no ports", func(i int) []byte { return udp(alice4.Addr(), bobAtAlice4, 1, 2, string(make([]byte, 1000+i))) }, []byte{0x45}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if flowOf(c.copy(0)) != flowOf(c.copy(7)) || flowOf(c.ask) == flowOf(c.copy(0)) {
				t.Fatal("flows are confused")
			}
			// Two flows share a place in one backlog of 64; then the order is that of coming.
			early := 0
			for range 8 {
				l := newBacklog()
				var batch []*packet.Buffer
				for i := range 40 {
					batch = append(batch, buffer(c.copy(i)))
				}
				l.put(batch, now)
				var got [backlogBatch]*packet.Buffer
				n, _ := l.take(got[:10], now)
				l.put([]*packet.Buffer{buffer(c.ask)}, now)
				asked := -1
				next := len(c.copy(0))
				for at := 0; n > 0; {
					for _, b := range got[:n] {
						if len(b.Data) == len(c.ask) {
							asked = at
						} else if len(b.Data) != next {
							t.Fatalf("a packet of %d bytes came, not of %d", len(b.Data), next)
						} else {
							next++
						}
						at++
						b.Release()
					}
					if !l.busy.Load() {
						t.Fatal("not busy")
					}
					n, _ = l.take(got[:], now)
				}
				if l.busy.Load() || next != len(c.copy(0))+40 || asked != 40 && (asked < 10 || asked > 12) {
					t.Errorf("the question came after %d packets, of %d", asked, next-len(c.copy(0)))
				}
				if asked < 40 {
					early++
				}
			}
			if early == 0 {
				t.Error("the question has passed nothing")
			}
		})
	}
}
