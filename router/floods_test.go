package router

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/link"
	"lokinetd/router/packet"
)

// A client that sends datagrams to nowhere is cut off; one with a few, its neighbour in the same network among them, is not, nor a relay, which brings what others send.
func TestWastedDatagrams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 4, 1)
		flooder, neighbour, other := newConn(link.Client, testRelays(1)[0]), newConn(link.Client, testRelays(1)[0]), newConn(link.Client, testRelays(1)[0])
		other.addr = netip.MustParseAddrPort("30.0.0.2:1")
		relay := newConn(link.Relay, testRelays(2)[1])
		send := func(c *fakeConn, n int) {
			for range n {
				b := packet.Get()
				clear(b.Reset(200))
				g.r.Datagram(c, b)
			}
		}
		cut := func(c *fakeConn) bool {
			select {
			case <-c.done:
				return true
			default:
				return false
			}
		}
		send(other, 4000) // a path ended under a fast upload
		send(relay, 100_000)
		for range 10 {
			send(flooder, 500)
			send(neighbour, 10)
			time.Sleep(time.Second / 10)
		}
		for _, c := range []struct {
			name string
			conn *fakeConn
			want bool
		}{{"flooder", flooder, true}, {"its neighbour", neighbour, false}, {"another client", other, false}, {"a relay", relay, false}} {
			if cut(c.conn) != c.want {
				t.Errorf("%s cut off: %v", c.name, !c.want)
			}
		}
		if g.r.cut.Load() == 0 {
			t.Error("not counted")
		}
	})
}
