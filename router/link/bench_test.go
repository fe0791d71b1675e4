package link

import (
	"context"
	"net"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// What a link costs beside quic-go alone, over loopback, in the same run: datagrams go from one bare quic-go client through a relay to another,
// and the relay is either a link endpoint or a loop over quic-go's ReceiveDatagram and SendDatagram. Both get the same bytes.

const benchSize = 1202 // bytes of a frame, with its datagram id

// forwarding is a way for datagrams: a relay between two bare clients, or no relay.
type forwarding struct {
	send    func(p []byte) error
	receive func(ctx context.Context) (size int, err error)
	stop    func()
}

// ends makes two bare connections the ends.
func (f *forwarding) ends(from, to *quic.Conn) {
	f.send = from.SendDatagram
	f.receive = func(ctx context.Context) (int, error) {
		p, err := to.ReceiveDatagram(ctx)
		return len(p), err
	}
}

// warm lets path MTU discovery come to its end, and fills pools.
func (f *forwarding) warm(tb testing.TB) { f.pass(tb, 3000, 1100) }

func loopback(tb testing.TB) net.PacketConn {
	pc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	return pc
}

// bareClient dials a relay with plain quic-go and shows itself on stream 0.
func bareClient(tb testing.TB, to net.Addr, remote key.Public) (*quic.Conn, func()) {
	pc := loopback(tb)
	tr := &quic.Transport{Conn: pc, ConnectionIDLength: 20}
	qc, err := tr.Dial(context.Background(), to, dialTLS(Client, nil, remote), dialConfig(idleClient))
	if err != nil {
		tb.Fatal(err)
	}
	s, err := qc.OpenStream()
	if err != nil {
		tb.Fatal(err)
	}
	s.Write([]byte(nudge))
	return qc, func() {
		qc.CloseWithError(0, "")
		tr.Close()
		pc.Close()
	}
}

// throughLink relays with a link endpoint: from the first connection to the second.
func throughLink(tb testing.TB) *forwarding {
	var to atomic.Pointer[Conn]
	n := &node{datagram: func(_ Conn, b *packet.Buffer) { (*to.Load()).Send(b) }}
	run(tb, loopback(tb), n, Config{Accept: true})
	f := &forwarding{}
	from, stopFrom := bareClient(tb, n.quic.pc.LocalAddr(), n.secret.Public())
	for len(n.conns()) < 1 {
		time.Sleep(time.Millisecond)
	}
	end, stopTo := bareClient(tb, n.quic.pc.LocalAddr(), n.secret.Public())
	for len(n.conns()) < 2 {
		time.Sleep(time.Millisecond)
	}
	to.Store(&n.conns()[1])
	f.ends(from, end)
	f.stop = func() {
		stopFrom()
		stopTo()
		n.stop()
	}
	return f
}

// throughBare relays with quic-go alone.
func throughBare(tb testing.TB) *forwarding {
	secret, pc := key.Generate(), loopback(tb)
	tr := &quic.Transport{Conn: pc, ConnectionIDLength: 20}
	l, err := tr.Listen(listenTLS(secret, nil), listenConfig())
	if err != nil {
		tb.Fatal(err)
	}
	f := &forwarding{}
	from, stopFrom := bareClient(tb, pc.LocalAddr(), secret.Public())
	in, err := l.Accept(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	end, stopTo := bareClient(tb, pc.LocalAddr(), secret.Public())
	out, err := l.Accept(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			p, err := in.ReceiveDatagram(context.Background())
			if err != nil {
				return
			}
			out.SendDatagram(p)
		}
	}()
	f.ends(from, end)
	f.stop = func() {
		stopFrom()
		stopTo()
		tr.Close()
		pc.Close()
		<-ended
	}
	return f
}

// onceBare is no relay: from a bare client to a bare listener.
func onceBare(tb testing.TB) *forwarding {
	secret, pc := key.Generate(), loopback(tb)
	tr := &quic.Transport{Conn: pc, ConnectionIDLength: 20}
	l, err := tr.Listen(listenTLS(secret, nil), listenConfig())
	if err != nil {
		tb.Fatal(err)
	}
	from, stopFrom := bareClient(tb, pc.LocalAddr(), secret.Public())
	to, err := l.Accept(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	f := &forwarding{
		stop: func() {
			stopFrom()
			tr.Close()
			pc.Close()
		},
	}
	f.ends(from, to)
	return f
}

// onceLink is no relay: from a link to a link.
func onceLink(tb testing.TB) *forwarding {
	arrived := make(chan int, 128)
	to := run(tb, loopback(tb), &node{datagram: func(_ Conn, p *packet.Buffer) {
		arrived <- len(p.Data) + dgidSize
		p.Release()
	}}, Config{Accept: true})
	from := run(tb, loopback(tb), &node{}, Config{})
	c := from.dial(to, Client)
	return &forwarding{
		send: func(p []byte) error {
			c.Send(bufferOf(p[dgidSize:]))
			return nil
		},
		receive: func(ctx context.Context) (int, error) {
			select {
			case n := <-arrived:
				return n, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		},
		stop: func() {
			from.stop()
			to.stop()
		},
	}
}

// pass sends count datagrams with at most 64 under way and returns how many arrived; quic-go's own queues lose nothing then.
func (f *forwarding) pass(tb testing.TB, count, size int) (arrived int) {
	room := make(chan struct{}, 64)
	done := make(chan int)
	go func() {
		n := 0
		defer func() { done <- n }()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		patience := time.AfterFunc(2*time.Second, cancel)
		for n < count {
			got, err := f.receive(ctx)
			if err != nil {
				return
			}
			patience.Reset(2 * time.Second)
			if got != size {
				continue // repeated without need at the end of the pass before
			}
			n++
			select {
			case <-room:
			default:
			}
		}
	}()
	p := make([]byte, size)
	for range count {
		select {
		case room <- struct{}{}:
		case n := <-done:
			return n
		}
		if err := f.send(p); err != nil {
			tb.Fatal(err)
		}
	}
	return <-done
}

// cpuTime is what the process has used of all processors: on a shared machine it says more than the clock.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkForward(b *testing.B) {
	for _, c := range []struct {
		name string
		make func(testing.TB) *forwarding
	}{{"bare", throughBare}, {"link", throughLink}} {
		b.Run(c.name, func(b *testing.B) {
			f := c.make(b)
			defer f.stop()
			f.warm(b)
			b.ReportAllocs()
			b.ResetTimer()
			cpu := cpuTime()
			if n := f.pass(b, b.N, benchSize); n < b.N {
				b.Logf("%d of %d arrived", n, b.N)
			}
			b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}

// BenchmarkRatio is what this package costs beside quic-go alone, CPU time of the one over that of the other: of a datagram sent and received (link), and of one
// forwarded (relay, with two bare clients in both cases). The two take turns of 2,000 datagrams, so that whatever else the machine does hits
// both; the medians of the turns count.
func BenchmarkRatio(b *testing.B) {
	const turn = 2000
	for _, c := range []struct {
		name       string
		bare, ours func(testing.TB) *forwarding
	}{{"link", onceBare, onceLink}, {"relay", throughBare, throughLink}} {
		b.Run(c.name, func(b *testing.B) {
			ways := [2]*forwarding{c.bare(b), c.ours(b)}
			var spent [2][]float64
			for _, w := range ways {
				defer w.stop()
				w.warm(b)
			}
			for i := range max(20, 2*b.N/turn) {
				cpu := cpuTime()
				if n := ways[i%2].pass(b, turn, benchSize); n < turn {
					b.Logf("%d of %d arrived", n, turn)
				}
				spent[i%2] = append(spent[i%2], float64((cpuTime()-cpu).Nanoseconds())/turn)
			}
			median := func(x []float64) float64 {
				slices.Sort(x)
				return x[len(x)/2]
			}
			bare, ours := median(spent[0]), median(spent[1])
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(bare, "bare-cpu-ns")
			b.ReportMetric(ours, "ours-cpu-ns")
			b.ReportMetric(ours/bare, "ours/bare")
		})
	}
}

// BenchmarkSendBare is BenchmarkSend/1200 with quic-go alone.
func BenchmarkSendBare(b *testing.B) {
	f := throughBare(b)
	defer f.stop()
	f.warm(b)
	p := make([]byte, benchSize)
	for b.Loop() {
		f.send(p)
	}
}

// BenchmarkSend is one way, from a link to a link, at full speed; what the receiver does not keep up with is lost in quic-go's queue. delivered/sent says how much arrives.
func BenchmarkSend(b *testing.B) {
	for _, size := range []int{100, 1200, 2000} {
		b.Run(sizeName(size), func(b *testing.B) {
			var arrived atomic.Int64
			to := run(b, loopback(b), &node{datagram: func(_ Conn, p *packet.Buffer) { arrived.Add(1); p.Release() }}, Config{Accept: true})
			from := run(b, loopback(b), &node{}, Config{})
			defer to.stop()
			defer from.stop()
			c := from.dial(to, Client).(*conn)
			p := make([]byte, size)
			b.ReportAllocs()
			b.SetBytes(int64(size))
			cpu := cpuTime()
			for b.Loop() {
				if c.datagrams.len() > 800 {
					for c.datagrams.len() > 100 {
						time.Sleep(100 * time.Microsecond)
					}
				}
				c.Send(bufferOf(p))
			}
			for c.datagrams.len() > 0 {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(10 * time.Millisecond)
			b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(arrived.Load())/float64(b.N), "delivered/sent")
		})
	}
}

func sizeName(n int) string {
	switch n {
	case 100:
		return "100"
	case 1200:
		return "1200"
	}
	return "2000split"
}

// BenchmarkRequest is one request and its reply at a time.
func BenchmarkRequest(b *testing.B) {
	to := run(b, loopback(b), &node{request: func(_ Conn, r *Request) { r.Reply(r.Body) }}, Config{Accept: true})
	from := run(b, loopback(b), &node{}, Config{})
	defer to.stop()
	defer from.stop()
	c := from.dial(to, Client)
	body := make([]byte, 1352)
	b.ReportAllocs()
	cpu := cpuTime()
	for b.Loop() {
		if _, err := c.Request(context.Background(), "path_build", body); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

func BenchmarkDial(b *testing.B) {
	to := run(b, loopback(b), &node{}, Config{Accept: true, Limits: Limits{PerIP: 1 << 20, Connections: 1 << 20, Rate: 1 << 20, SourceRate: 1 << 20}})
	from := run(b, loopback(b), &node{}, Config{})
	defer to.stop()
	defer from.stop()
	for b.Loop() {
		from.dial(to, Client).Close(CodeNormal)
	}
}
