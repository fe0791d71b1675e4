package link

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/testutils/simnet"

	"lokinetd/router/packet"
)

// needsHook skips a test of what only the changed quic-go can do.
func needsHook(t *testing.T) {
	t.Helper()
	if _, ok := any((*quic.Conn)(nil)).(hooker); !ok {
		if os.Getenv("CI") != "" {
			t.Fatal("this is the original quic-go")
		}
		t.Skip("this is the original quic-go")
	}
}

// Where the build says that quic-go is the changed one, it is.
func TestHooked(t *testing.T) {
	if !strings.Contains(os.Getenv("GOFLAGS"), "-modfile=") && os.Getenv("CI") == "" {
		t.Skip("this build has the original quic-go")
	}
	if _, ok := any((*quic.Conn)(nil)).(hooker); !ok {
		t.Error("-modfile is set, but quic-go has no HookDatagrams of the form that hook.go wants")
	}
}

// The rules of repair, without quic-go.
func TestFlight(t *testing.T) {
	before := packet.InUse()
	var all atomic.Int64
	start := time.Now()
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	name := func(m *frame) string {
		if m == nil {
			return ""
		}
		return string(m.b.Data)
	}
	f := &flight{all: &all}
	check := func(what string, kept, repaired, unrepaired int) {
		t.Helper()
		if f.kept != kept || int(all.Load()) != kept || int(f.repaired.Load()) != repaired || int(f.unrepaired.Load()) != unrepaired || packet.InUse() != before+int64(kept+len(f.given)) {
			t.Errorf("%s: %d kept, %d repaired, %d unrepaired, %d buffers", what, f.kept, f.repaired.Load(), f.unrepaired.Load(), packet.InUse()-before)
		}
	}
	send := func(s string, when float64) *frame { return f.sent(bufferOf([]byte(s)), at(when)) }

	a, b, c := send("a", 0), send("b", 0), send("c", 0.5)
	f.acked(b)
	check("acknowledged", 2, 0, 0)
	f.lost(a, true, at(0.1))
	f.lost(c, false, at(0.6))
	if !f.waits() || name(f.next(at(0.7))) != "a" || f.again() != a || name(f.next(at(0.7))) != "c" || f.again() != c || f.waits() || f.next(at(0.7)) != nil {
		t.Error("not sent again in order")
	}
	check("sent again", 2, 2, 0)
	f.lost(a, true, at(0.8))
	check("lost again", 1, 2, 1)
	f.lost(c, false, at(0.8))
	check("perhaps lost again", 0, 2, 1)

	old, stale := send("old", 1), send("stale", 1)
	f.lost(old, true, at(2.1))
	check("too old", 1, 2, 2)
	f.lost(stale, true, at(2))
	if f.next(at(2.1)) != nil {
		t.Error("sent again although it has become too old")
	}
	check("became too old", 0, 2, 3)

	frames := make([]*frame, keepMax+2)
	for i := range frames {
		frames[i] = send("x", 3)
	}
	check("full", keepMax, 2, 3)
	f.lost(frames[0], true, at(3)) // given up before
	f.lost(frames[2], true, at(3))
	f.acked(frames[1])
	check("lost in full flight", keepMax, 2, 4)
	send("y", 3) // gives up what waits to be sent again
	if f.next(at(3)) != nil {
		t.Error("sent again without a buffer")
	}
	check("given up while waiting", keepMax, 2, 5)

	other := &flight{all: &all}
	all.Add(keepAll)
	for range keepFew + 1 {
		other.sent(bufferOf([]byte("1")), at(4))
	}
	if other.kept != keepFew || f.kept != keepMax {
		t.Errorf("%d and %d kept although all are too many", other.kept, f.kept)
	}
	all.Add(-keepAll)
	other.close()
	f.close()
	check("closed", 0, 2, 5)
}

// TestFlightGivenUp: what is given up to make room may be in the packet that is being made, as itself or as a repetition, and stays until that is written.
func TestFlightGivenUp(t *testing.T) {
	var all atomic.Int64
	before := packet.InUse()
	f := &flight{all: &all}
	now := time.Now()
	first := f.sent(bufferOf([]byte{1}), now)
	for f.kept < keepMax {
		f.sent(bufferOf([]byte{2}), now)
	}
	f.lost(first, true, now)
	data := f.next(now).b.Data // quic-go puts it into a packet
	f.again()
	f.sent(bufferOf([]byte{3}), now) // into the same one
	if first.b != nil || data[0] != 1 || packet.InUse() != before+keepMax+1 {
		t.Error("not given up, or a buffer went back before its packet was written")
	}
	for range 3 * givenMax {
		f.sent(bufferOf([]byte{4}), now)
	}
	if n := packet.InUse() - before - keepMax; n != givenMax {
		t.Errorf("%d buffers wait for packets", n)
	}
	f.close()
	if packet.InUse() != before {
		t.Error("buffers are left")
	}
}

// TestGivenUpInPacket: the same on the wire, where small datagrams share a packet and others keep all that there is.
func TestGivenUpInPacket(t *testing.T) {
	needsHook(t)
	inSim(t, func(t *testing.T, n *simNet) {
		a, b := n.relayAt(1), n.relayAt(2)
		defer a.stop()
		defer b.stop()
		c := a.dial(b, Relay)
		time.Sleep(time.Second)
		a.quic.kept.Store(keepAll)
		defer a.quic.kept.Add(-keepAll)
		const count = 5 * keepFew
		trailer := make([]byte, 20) // of one path, so that they stay in order
		for i := range count {
			c.Send(bufferOf(append([]byte{byte(i)}, trailer...)))
		}
		time.Sleep(2 * time.Second)
		got := b.arrived()
		for i, d := range got {
			if d[0] != byte(i) || !bytes.Equal(d[1:], trailer) {
				t.Errorf("number %d is %x", i, d)
			}
		}
		if len(got) < count {
			t.Errorf("%d of %d arrived; the acceptor counts %+v", len(got), count, b.accepted().Stats())
		}
	})
}

// TestCorkOfClosed: a connection that ends between two datagrams of a batch takes its cork out.
func TestCorkOfClosed(t *testing.T) {
	q := &QUIC{}
	h := &hooked{c: &conn{q: q}}
	h.c.join.all = &q.halves
	h.c.datagrams = newDatagramQueue(1<<20, 16)
	h.flight.all = &q.kept
	h.Receive(nil)
	h.close()
	if n := q.cork.on.Load(); n != 0 {
		t.Errorf("%d corks left", n)
	}
}

// numbered is a datagram of a certain size that says its number.
func numbered(i, size int) *packet.Buffer {
	p := make([]byte, size)
	binary.BigEndian.PutUint32(p, uint32(i))
	return bufferOf(p)
}

// losing loses each packet with a chance.
func losing(chance float64, seed uint64) func(simnet.Packet) bool {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 7))
	return func(simnet.Packet) bool {
		mu.Lock()
		defer mu.Unlock()
		return r.Float64() < chance
	}
}

// Of what is lost on a link a twentieth is left, for whole datagrams and for split ones; nothing is repeated without need.
func TestRepair(t *testing.T) {
	needsHook(t)
	const count = 6000
	for _, c := range []struct {
		name string
		loss float64
		size int
		most int // that may be lost
	}{
		{"lossless", 0, 1000, 0},
		{"1 %", 0.01, 1000, 6},
		{"5 %", 0.05, 1000, 36},        // 15 expected
		{"5 %, split", 0.05, 1300, 60}, // 30 expected
	} {
		t.Run(c.name, func(t *testing.T) {
			inSim(t, func(t *testing.T, n *simNet) {
				a, b := n.relayAt(1), n.relayAt(2)
				defer b.stop()
				defer a.stop()
				seen := make([]atomic.Int32, count)
				b.datagram = func(_ Conn, p *packet.Buffer) {
					seen[binary.BigEndian.Uint32(p.Data)].Add(1)
					p.Release()
				}
				ab := a.dial(b, Relay)
				n.lose(losing(c.loss, 1))
				for i := range count {
					ab.Send(numbered(i, c.size))
					time.Sleep(5 * time.Millisecond)
				}
				time.Sleep(5 * time.Second)
				lost, twice := 0, 0
				for i := range seen {
					times := int(seen[i].Load())
					if times == 0 {
						lost++
					}
					twice += max(0, times-1)
				}
				out, in := ab.Stats(), b.conns()[0].Stats()
				t.Logf("%d of %d lost, %d came twice; repaired %d, unrepaired %d, late %d, halves %d", lost, count, twice, out.Repaired, out.Unrepaired, out.WirePacketsLate, in.DropHalf)
				if lost > c.most || twice > int(in.Twice) {
					t.Errorf("%d lost, %d came twice, %d counted so", lost, twice, in.Twice)
				}
				frames := float64(count * (1 + c.size/pieceOf(minM)))
				if r := float64(out.Repaired); r < 0.7*c.loss*frames || r > 1.5*c.loss*frames {
					t.Errorf("%d repaired of %v frames", out.Repaired, frames)
				}
				if kept := a.quic.Stats().Kept; kept != 0 {
					t.Errorf("%d buffers are kept although all is settled", kept)
				}
			})
		})
	}
}

// A datagram that is lost with nothing behind it is sent again after about a round trip, four times its variation, and the peer's delay of acknowledgements.
func TestRepairTail(t *testing.T) {
	needsHook(t)
	inSim(t, func(t *testing.T, n *simNet) {
		a, b := n.relayAt(1), n.relayAt(2)
		defer b.stop()
		defer a.stop()
		came := make(chan time.Time, 10)
		b.datagram = func(_ Conn, p *packet.Buffer) {
			came <- time.Now()
			p.Release()
		}
		ab := a.dial(b, Relay)
		for range 20 {
			ab.Request(ctxb, "x", nil) // so that the round trip is known
		}
		time.Sleep(time.Second)
		repaired := ab.Stats().Repaired
		const tries = 20
		for i := range tries {
			n.lose(func(p simnet.Packet) bool { return addrPort(p.From) == a.addr })
			sent := time.Now()
			ab.Send(numbered(i, 1000))
			time.Sleep(8 * time.Millisecond)
			n.lose(nil)
			time.Sleep(992 * time.Millisecond)
			select {
			case at := <-came:
				if took := at.Sub(sent); took > 100*time.Millisecond {
					t.Errorf("try %d: arrived after %v", i, took)
				}
			default:
				t.Errorf("try %d: did not arrive", i)
			}
		}
		s := ab.Stats()
		if s.Repaired-repaired != tries || s.Unrepaired != 0 {
			t.Errorf("%d repaired, %d given up", s.Repaired-repaired, s.Unrepaired)
		}
	})
}

// A PING of the reference, 42 bytes long, on a connection that a restarted relay no longer knows is answered by a reset that is shorter.
func TestShortReset(t *testing.T) {
	needsHook(t)
	inSim(t, func(t *testing.T, n *simNet) {
		relay := n.relayAt(1)
		defer relay.stop()
		pc := n.socket(addrOf(2))
		defer pc.Close()
		for size := 39; size <= 60; size++ {
			ping := make([]byte, size)
			ping[0] = 0x40
			pc.WriteTo(ping, net.UDPAddrFromAddrPort(relay.addr))
			pc.SetReadDeadline(time.Now().Add(time.Second))
			answer := make([]byte, 100)
			got, _, err := pc.ReadFrom(answer)
			switch {
			case size < 42:
				if err == nil {
					t.Errorf("%d bytes answered by %d", size, got)
				}
			case err != nil || got >= size || got < 41 || answer[0]&0xc0 != 0x40:
				t.Errorf("%d bytes answered by %d (%v)", size, got, err)
			}
		}
	})
}
