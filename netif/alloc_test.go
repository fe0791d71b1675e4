//go:build !race

package netif

import (
	"context"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// benchTUN hands the packets of in to the reader, a batch each time it is told to, and takes what is written.
type benchTUN struct {
	in       [][]byte
	go_      chan struct{}
	written  chan int
	deadline chan struct{}
	once     sync.Once
}

func newBenchTUN(in [][]byte) *benchTUN {
	return &benchTUN{in: in, go_: make(chan struct{}), written: make(chan int, 1024), deadline: make(chan struct{})}
}

func (b *benchTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-b.go_:
	case <-b.deadline:
		return 0, os.ErrDeadlineExceeded
	}
	for i, p := range b.in {
		sizes[i] = copy(bufs[i][offset:], p)
	}
	return len(b.in), nil
}

func (b *benchTUN) Write(bufs [][]byte, _ int) (int, error) {
	b.written <- len(bufs)
	return 0, nil
}
func (b *benchTUN) BatchSize() int { return 128 }
func (b *benchTUN) SetReadDeadline(t time.Time) error {
	if !t.IsZero() {
		b.once.Do(func() { close(b.deadline) })
	}
	return nil
}

// roomy is links that have room.
type roomy struct{}

func (roomy) AwaitRoom(context.Context, time.Duration) {}
func (roomy) Crowded() bool                            { return false }
func (roomy) Cork()                                    {}
func (roomy) Uncork()                                  {}

// bench runs a pump whose endpoint is alice, with bob as remote; each call of the function it returns sends one batch through, out
// of the TUN and back into it.
func bench(t testing.TB, batch [][]byte) func() {
	b := newBenchTUN(batch)
	p := NewPump(b, nil)
	p.Links = roomy{}
	m, err := NewMap(alice, alice4, alice6)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.IPv4(bob, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.IPv6(bob, time.Now()); err != nil {
		t.Fatal(err)
	}
	var e *Endpoint
	e, err = p.Add(m, Inbound{UDP: []Ports{{53, 53}}, TCP: []Ports{{80, 80}}}, tunnelFunc(func(remote key.Address, b *packet.Buffer) bool {
		e.Deliver(remote, b) // a loop: it comes back from the same remote
		return true
	}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return func() {
		b.go_ <- struct{}{}
		for n := 0; n < len(batch); {
			n += <-b.written
		}
	}
}

// echoes is a batch of packets whose loop through the tunnel counts as their own answer: same port on both sides.
func echoes(src, dst netip.Addr, n, size int) (l [][]byte) {
	for i := range n {
		l = append(l, udp(src, dst, uint16(1000+i), uint16(1000+i), string(make([]byte, size-28))))
	}
	return l
}

// TestPumpAllocs: no allocation per packet, both ways, both families, and none when ICMP unreachable is made.
func TestPumpAllocs(t *testing.T) {
	for name, batch := range map[string][][]byte{
		"ipv4":        echoes(alice4.Addr(), bobAtAlice4, 32, 1280),
		"ipv6":        echoes(alice6.Addr(), bobAtAlice6, 32, 1260),
		"one":         echoes(alice6.Addr(), bobAtAlice6, 1, 100),
		"unreachable": {udp(alice4.Addr(), addr("172.16.9.9"), 1, 2, "hello")},
	} {
		// 50 unreachables stay below the rate limit's burst.
		step := bench(t, batch)
		if n := testing.AllocsPerRun(50, step); n != 0 {
			t.Errorf("%s: %v allocations per batch of %d", name, n, len(batch))
		}
	}
}

func BenchmarkPump(b *testing.B) {
	batch := echoes(alice6.Addr(), bobAtAlice6, 64, 1260)
	step := bench(b, batch)
	b.SetBytes(int64(len(batch)) * 1280)
	for b.Loop() {
		step()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(batch)), "ns/packet")
}
