//go:build !race

package path

import (
	"testing"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/seal"
)

// TestAllocs: what passes for each packet allocates nothing (house rule; the race detector allocates by itself).
func TestAllocs(t *testing.T) {
	c, p, link := benchPath(t)
	r, mesh, client := lane(t)
	term := (*Terminal)(r.table.live(new(fillID(3))))
	k := new(seal.NewHop(fill32(3)))
	up, down := aimed(benchSize, fillID(1), ID{}, nil), aimed(benchSize, fillID(2), ID{}, nil)
	turned, here := aimed(benchSize, fillID(3), fillID(4), k), aimed(benchSize, fillID(3), fillID(3), k)
	toClient := aimed(benchSize, p.edge, ID{}, nil)
	body := make([]byte, benchSize+trailerSize)
	session := func(msg []byte) func() {
		return func() {
			copy(body, msg)
			r.HandleRequest(client, key.Public{}, nameSession, body, nil)
		}
	}
	for _, c := range []struct {
		name string
		f    func()
	}{
		{"client sends", func() {
			b := packet.Get()
			b.Reset(benchSize)
			p.Send(b)
			link.b.Release()
		}},
		{"client receives", func() { c.Datagram(link, buffer(toClient)) }},
		{"relay forwards up", func() { r.Datagram(buffer(up)); mesh.b.Release() }},
		{"relay forwards down", func() { r.Datagram(buffer(down)); client.b.Release() }},
		{"relay turns", func() { r.Datagram(buffer(turned)); mesh.b.Release() }},
		{"relay delivers", func() { r.Datagram(buffer(here)) }},
		{"relay drops", func() { r.Datagram(buffer(up[:len(up)-1])) }},
		{"relay's session sends", func() {
			b := packet.Get()
			b.Reset(benchSize)
			term.Send(b)
			client.b.Release()
		}},
		{"session_control up", session(up)},
		{"session_control down", session(down)},
		{"session_control turned", session(turned)},
		{"session_control delivered", session(here)},
	} {
		if n := testing.AllocsPerRun(200, c.f); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}
