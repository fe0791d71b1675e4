package testnet

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"lokinetd/router/key"
	"lokinetd/router/link"
)

// ether is the wire with QUIC: router/link as in the program, over sockets in memory. It is about thirty times as dear as the
// direct one: for small networks and minutes.
type ether struct {
	latency time.Duration // one way
	loss    float64       // of each UDP packet, in each direction; under mu

	mu    sync.Mutex
	rng   *rand.Rand
	hosts map[netip.AddrPort]simnet.PacketReceiver
	cuts  map[[2]netip.AddrPort]bool // in the direction [from, to]
}

func newEther(seed uint64, latency time.Duration, loss float64) *ether {
	return &ether{
		rng: rand.New(rand.NewPCG(seed, 1)), hosts: map[netip.AddrPort]simnet.PacketReceiver{}, cuts: map[[2]netip.AddrPort]bool{},
		latency: latency, loss: loss,
	}
}

func (e *ether) setCut(a, b netip.AddrPort, on bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cuts[[2]netip.AddrPort{a, b}] = on
	e.cuts[[2]netip.AddrPort{b, a}] = on
}

func (e *ether) setLoss(loss float64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.loss = loss
}

// AddNode and SendPacket make an ether the simnet.Router between all sockets.
func (e *ether) AddNode(addr net.Addr, r simnet.PacketReceiver) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hosts[addr.(*net.UDPAddr).AddrPort()] = r
}

func (e *ether) SendPacket(p simnet.Packet) error {
	from, to := p.From.(*net.UDPAddr).AddrPort(), p.To.(*net.UDPAddr).AddrPort()
	e.mu.Lock()
	r := e.hosts[to]
	if e.cuts[[2]netip.AddrPort{from, to}] || e.loss > 0 && e.rng.Float64() < e.loss {
		r = nil
	}
	e.mu.Unlock()
	if r != nil {
		r.RecvPacket(p)
	}
	return nil
}

// socket is one node's place in the ether.
type socket struct {
	*link.QUIC
	e    *ether
	addr netip.AddrPort
	line *simnet.SimulatedLink
	gate *gate
}

// udpPayload is the largest that passes: that of an Ethernet over IPv4.
const udpPayload = 1472

func (e *ether) newWire(t *testing.T, addr netip.AddrPort, secret *key.Secret, relay bool, registered func(key.Public) bool) wire {
	t.Helper()
	s := &socket{e: e, addr: addr, gate: &gate{Router: e}}
	s.line = &simnet.SimulatedLink{
		DownlinkSettings: simnet.LinkSettings{MTU: udpPayload}, UplinkSettings: simnet.LinkSettings{MTU: udpPayload},
		Latency: e.latency, UploadPacket: s.gate,
	}
	pc := simnet.NewBlockingSimConn(net.UDPAddrFromAddrPort(addr), s.line)
	c := link.Config{Accept: relay, Registered: registered}
	if relay {
		c.Secret = secret
	}
	var err error
	if s.QUIC, err = link.NewQUIC(pc, c); err != nil {
		t.Fatal(err)
	}
	return s
}

// Run implements link.Wire. The node can be reached while it runs.
func (s *socket) Run(ctx context.Context, h link.Handler) error {
	s.line.Start()
	s.e.AddNode(net.UDPAddrFromAddrPort(s.addr), s.line)
	err := s.QUIC.Run(ctx, h)
	s.e.mu.Lock()
	delete(s.e.hosts, s.addr)
	s.e.mu.Unlock()
	s.line.Close()
	return err
}

// kill lets nothing out any more, so that the coming end of Run looks like a power cut to the peers.
func (s *socket) kill() { s.gate.shut() }

// gate is where a node's packets enter the ether.
type gate struct {
	simnet.Router
	mu     sync.Mutex
	closed bool
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

func (g *gate) SendPacket(p simnet.Packet) error {
	g.mu.Lock()
	closed := g.closed
	g.mu.Unlock()
	if closed {
		return nil
	}
	return g.Router.SendPacket(p)
}
