package path

import (
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// meshCount counts datagrams by hop id.
type meshCount struct {
	Mesh
	bytes map[ID]int
}

func (m *meshCount) Datagram(_ key.Public, b *packet.Buffer) {
	_, _, id, _ := split(b.Data)
	m.bytes[*id] += len(b.Data)
	b.Release()
}

// sharePlace says whether a queue takes two paths for one flow: then the second one's packet is not the second to come out.
func sharePlace(q *packet.Fair, a, b ID) bool {
	for _, id := range []ID{a, a, b} {
		p := packet.Get()
		p.Reset(2000)[0] = id[0] // more than a turn
		q.Push(p, binary.LittleEndian.Uint64(id[:]), time.Now())
	}
	var out [3]*packet.Buffer
	q.Pop(out[:], time.Now())
	defer func() {
		for _, p := range out {
			p.Release()
		}
	}()
	return out[1].Data[0] != b[0]
}

// A relay with a rate carries no more, and a path that asks for ten times as much takes nothing from one that keeps to its share.
func TestRelayRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := packet.InUse()
		const rate, size, lasts = 100_000, 1000, 10 * time.Second
		r := newRig(t, Limits{Rate: rate})
		mesh := &meshCount{bytes: map[ID]int{}}
		r.Relay.mesh = mesh
		greedy := &hop{rx: fillID(1), tx: fillID(2), down: neighbour{link: r.client}}
		honest := &hop{rx: fillID(3), tx: fillID(4), down: neighbour{link: r.client}}
		for n := byte(5); sharePlace(r.throttle.queue, greedy.tx, honest.tx); n++ { // one in 64 does, with the greedy one's loss
			honest.tx = fillID(n)
		}
		put(t, r.Relay, greedy)
		put(t, r.Relay, honest)
		send := func(h *hop) {
			m := make([]byte, size)
			putTrailer(m[size-trailerSize:], new(fill24(1)), &h.rx, TypeData)
			r.Datagram(buffer(m))
		}
		sent := 0
		for start := time.Now(); time.Since(start) < lasts; time.Sleep(25 * time.Millisecond) {
			for range 25 {
				send(greedy)
			}
			send(honest) // 40 % of the rate
			sent += size
		}
		time.Sleep(time.Second)
		synctest.Wait()
		all := mesh.bytes[greedy.tx] + mesh.bytes[honest.tx]
		if most := int(rate * (lasts + time.Second).Seconds() * 1.01); all > most || all < most*9/10 {
			t.Errorf("%d bytes passed, %d could", all, most)
		}
		if got := mesh.bytes[honest.tx]; got < sent*95/100 {
			t.Errorf("%d of %d bytes of the honest path", got, sent)
		}
		if r.Stats().DroppedRate == 0 {
			t.Error("no drop is counted")
		}
		r.Close()
		send(greedy)
		time.Sleep(time.Second)
		if packet.InUse() != before {
			t.Error("buffer leaked")
		}
	})
}
