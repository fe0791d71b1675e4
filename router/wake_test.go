package router

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/netif"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/path"
)

// busyConn answers no ping, but something comes over it.
type busyConn struct {
	*fakeConn
	packets atomic.Uint64
}

func (c *busyConn) Stats() link.ConnStats {
	return link.ConnStats{WirePacketsIn: c.packets.Add(1)}
}

// When a client is woken, all its links are asked at once; those over which nothing comes are closed soon, the others stay.
func TestWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		conns := map[key.Public]*fakeConn{}
		silent, busy := secret(1).Public(), secret(2).Public()
		w := newFakeWire()
		w.dial = func(_ context.Context, _ netip.AddrPort, remote key.Public, kind link.Kind) (link.Conn, error) {
			c := newConn(kind, remote)
			c.outbound = true
			if remote != silent && remote != busy {
				c.answer = func(context.Context, string, []byte) ([]byte, error) { return nil, &link.ReplyError{} } // alive, whatever it says
			}
			mu.Lock()
			conns[remote] = c
			mu.Unlock()
			if remote == busy {
				return &busyConn{fakeConn: c}, nil
			}
			return c, nil
		}
		n := runNode(t, NodeConfig{Wire: w, Network: testFile(4, 0, 1, 2, 3), Paths: path.ClientConfig{Options: path.DefaultOptions()}})
		time.Sleep(3 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if len(conns) != 4 {
			t.Fatalf("%d links", len(conns))
		}
		for _, c := range conns {
			c.heard()
		}
		n.Wake(true)
		synctest.Wait()
		for id, c := range conns {
			if all := c.heard(); len(all) == 0 || all[0].name != "ping" {
				t.Errorf("%v was asked %v", id, all)
			}
		}
		time.Sleep(4 * time.Second)
		for id, c := range conns {
			closed := false
			select {
			case <-c.done:
				closed = true
			default:
			}
			if closed != (id == silent) {
				t.Errorf("the link to %v (silent: %v, busy: %v) is closed: %v", id, id == silent, id == busy, closed)
			}
		}
	})
}

func TestClocks(t *testing.T) {
	s := func(monotonic, boot, wall float64) clocks {
		d := func(f float64) time.Duration { return time.Duration(f * float64(time.Second)) }
		return clocks{d(monotonic), d(boot), d(wall)}
	}
	before := s(100, 5000, 1e9)
	for _, c := range []struct {
		what string
		now  clocks
		want float64
	}{
		{"a second", s(101, 5001, 1e9+1), 0},
		{"late", s(160, 5060, 1e9+60), 0},
		{"ten minutes of sleep", s(101, 5601, 1e9+601), 600},
		{"a short one", s(101, 5004, 1e9+4), 3},
		{"a virtual machine's pause, known after the time was asked for", s(101, 5001, 1e9+601), 600},
		{"the time is set, a little", s(101, 5001, 1e9+10), 0},
		{"the time is set back", s(101, 5001, 5e8), 0},
		{"no such clock", s(101, 0, 1e9+1), 0},
	} {
		if got := c.now.jumped(before).Seconds(); got != c.want {
			t.Errorf("%s: %v s, want %v", c.what, got, c.want)
		}
	}
}

func TestWays(t *testing.T) {
	a, b := netip.MustParseAddr("20.0.0.1"), netip.MustParseAddr("20.0.0.2")
	home := netif.Way{Source: netip.MustParseAddr("192.168.1.5"), Gateway: netip.MustParseAddr("192.168.1.1"), Index: 2, Up: true}
	cafe := home
	cafe.Source = netip.MustParseAddr("192.168.1.77") // another router of the same address
	down := home
	down.Up = false
	none := netif.Way{}
	var w ways
	for i, c := range []struct {
		now  ways
		want bool
	}{
		{ways{a: home, b: home}, true}, // not known before
		{ways{a: home, b: home}, false},
		{ways{a: home}, false},
		{ways{a: home, b: home}, true},
		{ways{a: none, b: none}, false}, // away: nothing can be tested
		{ways{a: home, b: home}, true},  // and back
		{ways{a: down, b: down}, false}, // no carrier: no better
		{ways{a: home, b: home}, true},
		{ways{a: cafe, b: home}, true},
		{nil, false},
	} {
		if got := w.changed(c.now); got != c.want {
			t.Errorf("step %d: %v, want %v", i, got, c.want)
		}
	}
	for _, c := range []struct {
		now  ways
		want bool
	}{{nil, false}, {ways{a: home, b: none}, false}, {ways{a: down, b: none}, true}} {
		if got := c.now.none(); got != c.want {
			t.Errorf("no way in %v: %v", c.now, got)
		}
	}
}

// TestDialOnce: whoever finds at the same time that edges are missing, no more are dialled than are.
func TestDialOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		dialled := map[key.Public]bool{}
		w := newFakeWire()
		w.dial = func(ctx context.Context, _ netip.AddrPort, remote key.Public, _ link.Kind) (link.Conn, error) {
			mu.Lock()
			dialled[remote] = true
			mu.Unlock()
			<-ctx.Done()
			return nil, ctx.Err()
		}
		n := runNode(t, NodeConfig{Wire: w, Network: testFile(13, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), Paths: path.ClientConfig{Options: path.DefaultOptions()}})
		time.Sleep(slowDial + 50*time.Millisecond) // the first four are slow now, and the next round has not come
		var all sync.WaitGroup
		for range 32 {
			all.Go(func() { n.client.dialEdges(time.Now()) })
		}
		all.Wait()
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(dialled) != 2*path.DefaultOptions().Edges {
			t.Errorf("%d relays were dialled", len(dialled))
		}
	})
}
