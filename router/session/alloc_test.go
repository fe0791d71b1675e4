//go:build !race

package session

import (
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

// wire hands the datagrams of one Table to another, without a path between.
type wire struct{ to *Table }

func (w wire) id() path.ID                      { return path.ID{} }
func (w wire) live(time.Time) bool              { return true }
func (w wire) control(byte, []byte, seal.Nonce) {}
func (w wire) send(b *packet.Buffer)            { b.Cut(pivotSize); w.to.datagram(w, b) }

// joined makes two Tables with a session, and counts what the second delivers.
func joined(tb testing.TB, got *int) (a, b *Table, to key.Address) {
	a = newTable(Config{Self: alice})
	b = newTable(Config{Self: bob, Deliver: func(_ key.Address, b *packet.Buffer) { *got++; b.Release() }})
	now := time.Now()
	ki, kr, _, _ := shake(tb, newInitiator(alice, bob.Public(), 5), bob, 6)
	for _, e := range []struct {
		t, o     *Table
		own      uint32
		keys     keys
		outbound bool
	}{{a, b, 5, ki, true}, {b, a, 6, kr, false}} {
		e.t.lock()
		r := e.t.remote(key.Address{Key: e.o.self})
		s := &session{r: r, own: e.own, keys: e.keys, outbound: e.outbound, since: now}
		s.route.Store(&route{via: wire{e.o}})
		s.sure.Store(true)
		e.t.add(s, now)
		r.current.Store(s)
		e.t.unlock()
	}
	return a, b, key.Address{Key: bob.Public()}
}

// TestAllocs: a packet out and in, and the noting of its nonce, allocate nothing once the nonces' memory has grown.
func TestAllocs(t *testing.T) {
	got := 0
	a, b, to := joined(t, &got)
	send := func() {
		p := packet.Get()
		clear(p.Reset(1280))
		p.Data[0], p.Data[2], p.Data[3], p.Data[9] = 0x45, 5, 0, 17
		p.Data[24], p.Data[25] = 5, 0
		if !a.Send(to, p) {
			t.Fatal("not sent")
		}
	}
	for range 2 * maxLines * ways {
		send()
	}
	n := testing.AllocsPerRun(1000, send)
	if n != 0 {
		t.Errorf("%v allocations for a packet", n)
	}
	if got != 2*maxLines*ways+1001 {
		t.Fatal("delivered", got)
	}
	// What is dropped costs nothing either.
	drops := func() {
		for _, bad := range []func(*packet.Buffer){
			func(p *packet.Buffer) { p.Data = p.Data[:3] },
			func(p *packet.Buffer) { p.Data[99] = 9 },
			func(p *packet.Buffer) { p.Data[99] = 6 },
		} {
			p := packet.Get()
			clear(p.Reset(100))
			bad(p)
			b.datagram(wire{}, p)
		}
	}
	if n := testing.AllocsPerRun(1000, drops); n != 0 {
		t.Errorf("%v allocations for packets that are dropped", n)
	}
	if s := b.Stats(); s.DropShort != 1001 || s.DropTag != 1001 || s.DropForged != 1001 {
		t.Fatalf("%+v", s)
	}
}

// BenchmarkPacket: one packet of 1,280 bytes out and in, both ends in one goroutine.
func BenchmarkPacket(b *testing.B) {
	got := 0
	a, _, to := joined(b, &got)
	b.ReportAllocs()
	b.SetBytes(1280)
	for b.Loop() {
		p := packet.Get()
		clear(p.Reset(1280))
		p.Data[0], p.Data[2], p.Data[3], p.Data[9] = 0x45, 5, 0, 253
		a.Send(to, p)
	}
}

// BenchmarkHandshake: an init and an accept, made and opened, both ends in one goroutine.
func BenchmarkHandshake(b *testing.B) {
	for b.Loop() {
		shake(b, newInitiator(alice, bob.Public(), 5), bob, 6)
	}
}

// BenchmarkRefused: an init that does not open.
func BenchmarkRefused(b *testing.B) {
	box := make([]byte, 1416)
	box[0] = 9
	for b.Loop() {
		openInit(bob, box, everybody)
	}
}
