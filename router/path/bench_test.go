package path

import (
	"context"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/seal"
)

// sink is a Mesh and, as sinkLink, a Link that keeps the last buffer for the sender to use again.
type sink struct{ b *packet.Buffer }

func (s *sink) Datagram(_ key.Public, b *packet.Buffer)  { s.b = b }
func (s *sink) Command(key.Public, string, []byte) error { return nil }
func (s *sink) Request(context.Context, key.Public, string, []byte) ([]byte, error) {
	return nil, errSim
}

type sinkLink struct{ sink }

func (s *sinkLink) Send(b *packet.Buffer)                                   { s.b = b }
func (s *sinkLink) Command(string, []byte) error                            { return nil }
func (s *sinkLink) Request(context.Context, string, []byte) ([]byte, error) { return nil, errSim }

// sinkOwner gives back what it is told.
type sinkOwner struct{}

func (sinkOwner) PathUp(*Path)                              {}
func (sinkOwner) PathDown(*Path, Reason)                    {}
func (sinkOwner) PathDatagram(_ *Path, b *packet.Buffer)    { b.Release() }
func (sinkOwner) PathControl(*Path, byte, []byte, [24]byte) {}

// sinkLocal gives back what comes to the relay itself.
type sinkLocal struct{}

func (sinkLocal) PathRequest(ID, string, []byte, func([]byte))     {}
func (sinkLocal) SessionControl(*Terminal, byte, []byte, [24]byte) {}
func (sinkLocal) SessionDatagram(_ *Terminal, b *packet.Buffer)    { b.Release() }

// lane is a relay with a middle hop 1 - 2, and terminal hops 3 and 4, one client's and one behind a relay.
func lane(t testing.TB) (r *Relay, mesh *sink, client *sinkLink) {
	mesh, client = new(sink), new(sinkLink)
	r = NewRelay(exampleRelay(0), mesh, sinkLocal{}, Limits{}, nil)
	t.Cleanup(r.Close)
	put(t, r, &hop{rx: fillID(1), tx: fillID(2), up: exampleRelay(1).Public(), down: neighbour{link: client}, key: seal.NewHop(fill32(1))})
	put(t, r, &hop{rx: fillID(3), tx: fillID(3), up: r.self, down: neighbour{link: client}, key: seal.NewHop(fill32(3))})
	put(t, r, &hop{rx: fillID(4), tx: fillID(4), up: r.self, down: neighbour{relay: exampleRelay(2).Public()}, key: seal.NewHop(fill32(4))})
	return r, mesh, client
}

// aimed gives a message of n payload bytes under an id; at a terminal hop with key k it names pivot.
func aimed(n int, id, pivot ID, k *seal.Hop) []byte {
	m := make([]byte, n+trailerSize)
	nonce := fill24(9)
	if k != nil {
		copy(m[n-pivotSize:], pivot[:])
		seal.Stream(m[:n], &k.Key, &nonce)
		seal.Xor(&nonce, &k.Xor)
	}
	putTrailer(m[n:], &nonce, &id, TypeData)
	return m
}

func benchPath(b testing.TB) (*Client, *Path, *sinkLink) {
	c := NewClient(ClientConfig{Options: DefaultOptions()})
	b.Cleanup(c.Close)
	link := new(sinkLink)
	c.EdgeUp(exampleRelay(0).Public(), link)
	pool := c.NewPool(PoolConfig{Hops: 4, Want: 1, Owner: sinkOwner{}})
	var hops []seal.Hop
	for i := range byte(4) {
		hops = append(hops, seal.NewHop(fill32(i)))
	}
	return c, upPath(b, pool, link, hops, fillID(1), fillID(4)), link
}

const benchSize = 1400

// BenchmarkClientSend: four layers and the trailer.
func BenchmarkClientSend(b *testing.B) {
	_, p, link := benchPath(b)
	link.b = packet.Get()
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		buf := link.b
		buf.Reset(benchSize)
		p.Send(buf)
	}
}

// BenchmarkClientReceive: look-up, four layers, to the owner.
func BenchmarkClientReceive(b *testing.B) {
	c, p, link := benchPath(b)
	msg := aimed(benchSize, p.edge, ID{}, nil)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		c.Datagram(link, buffer(msg))
	}
}

// BenchmarkRelayForward: look-up, one layer, new trailer.
func BenchmarkRelayForward(b *testing.B) {
	r, mesh, _ := lane(b)
	mesh.b = buffer(aimed(benchSize, fillID(1), ID{}, nil))
	rx := fillID(1)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		buf := mesh.b
		_, _, id, _ := split(buf.Data)
		*id = rx
		r.Datagram(buf)
	}
}

// BenchmarkRelayForwardParallel: as many receiving goroutines as there are processors.
func BenchmarkRelayForwardParallel(b *testing.B) {
	r, _, _ := lane(b)
	msg := aimed(benchSize, fillID(1), ID{}, nil)
	r.mesh = new(deaf)
	b.SetBytes(benchSize)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.Datagram(buffer(msg))
		}
	})
}

// BenchmarkRelayTurn: two layers at the pivot.
func BenchmarkRelayTurn(b *testing.B) {
	r, mesh, _ := lane(b)
	msg := aimed(benchSize, fillID(3), fillID(4), new(seal.NewHop(fill32(3))))
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		r.Datagram(buffer(msg))
		mesh.b.Release()
	}
}

// BenchmarkBuildMake and BenchmarkBuildOpen: the key agreements are what costs.
func BenchmarkBuildMake(b *testing.B) {
	relays := []key.Public{exampleRelay(0).Public(), exampleRelay(1).Public(), exampleRelay(2).Public()}
	for b.Loop() {
		if _, _, err := makeBuild(newFrames(relays), 1200, newJunk(3)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBuildOpen(b *testing.B) {
	msg, _ := exampleBuild(b)
	sec := exampleRelay(0)
	self := sec.Public()
	for b.Loop() {
		if _, text := openBuild(sec, self, msg); text != "" {
			b.Fatal(text)
		}
	}
}

// BenchmarkTick: a relay at its limit has nothing to do on most ticks.
func BenchmarkTick(b *testing.B) {
	r, _, _ := lane(b)
	now := time.Now()
	for b.Loop() {
		r.Tick(now)
	}
}
