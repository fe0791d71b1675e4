package testnet

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/packet"
)

// clock is a link.Handler that notes how long each datagram took; its number and the time when it was sent are in it.
type clock struct {
	start time.Time
	mu    sync.Mutex
	took  map[uint32]time.Duration
	twice int
}

func (*clock) Opened(link.Conn)                 {}
func (*clock) Closed(link.Conn, error)          {}
func (*clock) Request(link.Conn, *link.Request) {}

func (c *clock) Datagram(_ link.Conn, b *packet.Buffer) {
	defer b.Release()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := binary.BigEndian.Uint32(b.Data)
	if _, ok := c.took[n]; ok {
		c.twice++
	}
	c.took[n] = time.Since(c.start) - time.Duration(binary.BigEndian.Uint64(b.Data[4:]))
}

// repairs says whether quic-go is the one that make builds.
var _, repairs = any((*quic.Conn)(nil)).(interface{ SpuriousLosses() uint64 })

// TestModel compares what the two wires make of loss: how much of it is left after the repair, and when what is repaired arrives.
func TestModel(t *testing.T) {
	const (
		latency = 80 * time.Millisecond
		loss    = 0.05
		count   = 4000
	)
	for _, c := range []struct {
		what string
		gap  time.Duration
	}{{"sparse", time.Second}, {"dense", 50 * time.Millisecond}} {
		t.Run(c.what, func(t *testing.T) {
			bothWires(t, func(t *testing.T, onQUIC bool) {
				var m medium = newFabric(seed(t), latency, loss)
				if onQUIC {
					m = newEther(seed(t), latency, loss)
				}
				ctx, cancel := context.WithCancel(context.Background())
				var runs sync.WaitGroup
				relay, here := key.Generate(), netip.MustParseAddrPort("20.0.0.1:1190")
				server := &clock{start: time.Now(), took: map[uint32]time.Duration{}}
				a := m.newWire(t, netip.MustParseAddrPort("30.0.0.1:1191"), key.Generate(), false, nil)
				b := m.newWire(t, here, relay, true, func(key.Public) bool { return false })
				runs.Go(func() { b.Run(ctx, server) })
				runs.Go(func() { a.Run(ctx, &clock{start: time.Now(), took: map[uint32]time.Duration{}}) })
				defer runs.Wait()
				defer cancel()
				time.Sleep(time.Millisecond)
				var conn link.Conn
				for range 5 {
					var err error
					if conn, err = a.Dial(ctx, here, relay.Public(), link.Client); err == nil {
						break
					}
				}
				if conn == nil {
					t.Fatal("no connection")
				}
				time.Sleep(5 * time.Second) // the round trip time is known by then, and the largest datagram
				for i := range uint32(count) {
					p := packet.Get()
					d := p.Extend(300)
					clear(d)
					binary.BigEndian.PutUint32(d, i)
					binary.BigEndian.PutUint64(d[4:], uint64(time.Since(server.start)))
					conn.Send(p)
					time.Sleep(c.gap)
				}
				time.Sleep(5 * time.Second)
				server.mu.Lock()
				defer server.mu.Unlock()
				var late []time.Duration
				for _, d := range server.took {
					if d > latency+latency/2 {
						late = append(late, d)
					}
				}
				slices.Sort(late)
				lost, repaired := float64(count-len(server.took))/count, float64(len(late))/count
				t.Logf("lost %.2f %%, late %.2f %%, twice %d", 100*lost, 100*repaired, server.twice)
				if onQUIC && !repairs {
					t.Log("this quic-go repairs nothing: make builds one that does")
					return
				}
				if lost > 0.01 {
					t.Errorf("%.2f %% are lost", 100*lost)
				}
				// Counted late is also what came a second time.
				if repaired < 0.03 || repaired > 0.13 {
					t.Errorf("%.2f %% are late", 100*repaired)
					return
				}
				t.Logf("the late took %v, %v, %v (10, 50, 90 %%)", late[len(late)/10], late[len(late)/2], late[len(late)*9/10])
				if m := late[len(late)/2]; m < 2*latency || m > 4*latency {
					t.Errorf("what is repaired takes %v", m)
				}
			})
		})
	}
}
