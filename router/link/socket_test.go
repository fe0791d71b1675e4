package link

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// Over real sockets, with what they have and the simulation has not: batches, GSO, ECN.
func TestLoopback(t *testing.T) {
	socket := func() net.PacketConn {
		pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		return pc
	}
	a := run(t, socket(), &node{}, Config{Accept: true, Registered: allowAll})
	defer a.stop()
	b := run(t, socket(), &node{}, Config{Accept: true, Registered: allowAll})
	defer b.stop()
	echoed := make(chan []byte, 10)
	a.datagram = func(_ Conn, p *packet.Buffer) { echoed <- bytes.Clone(p.Data); p.Release() }
	b.datagram = func(c Conn, p *packet.Buffer) { c.Send(p) }
	ab := a.dial(b, Relay)
	big := pattern(5_000_000)
	if got, err := ab.Request(ctxb, "echo", big); err != nil || !bytes.Equal(got, big) {
		t.Errorf("echo of 5 MB: %d bytes, %v", len(got), err)
	}
	for _, size := range []int{0, 1, 1154, 1280, 1500, 2300} {
		p := pattern(size)
		for got := []byte(nil); ; { // a datagram may get lost
			ab.Send(bufferOf(p))
			select {
			case got = <-echoed:
			case <-time.After(time.Second):
				continue
			}
			if bytes.Equal(got, p) {
				break
			}
		}
	}
	if ab.RemoteAddr() != b.addr || b.addr.Addr() != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("remote address %v", ab.RemoteAddr())
	}
}

// fullSocket is a socket that has no room for every so manieth packet that is not to wait, until a packet has waited.
type fullSocket struct {
	*net.UDPConn
	every         int64 // 0: always room
	asked, waited atomic.Int64
	full, passed  atomic.Bool // passed: asked while full
}

func (s *fullSocket) SyscallConn() (syscall.RawConn, error) {
	raw, err := s.UDPConn.SyscallConn()
	return fullRaw{raw, s}, err
}

func (s *fullSocket) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (n, oobn int, err error) {
	n, oobn, err = s.UDPConn.WriteMsgUDP(b, oob, to)
	s.waited.Add(1)
	s.full.Store(false)
	return n, oobn, err
}

type fullRaw struct {
	syscall.RawConn
	s *fullSocket
}

func (r fullRaw) Write(f func(fd uintptr) bool) error {
	if r.s.full.Load() {
		r.s.passed.Store(true)
	}
	if n := r.s.asked.Add(1); r.s.every > 0 && n%r.s.every == 0 {
		r.s.full.Store(true)
		return syscall.EAGAIN
	}
	return r.RawConn.Write(f)
}

// Packets are sent at once where the socket has room, else by the send queue, and none passes one that waits there (overlay/direct.go.in).
func TestSendAtOnce(t *testing.T) {
	needsHook(t)
	for _, c := range []struct {
		name, network string
		every         int64
	}{{"room", "udp4", 0}, {"both families", "udp", 0}, {"full", "udp4", 3}} {
		t.Run(c.name, func(t *testing.T) {
			pc, err := net.ListenUDP(c.network, nil)
			if err != nil {
				t.Fatal(err)
			}
			const count, window = 3000, 16
			arrived := make(chan struct{}, 2*count)
			to := run(t, loopback(t), &node{datagram: func(_ Conn, b *packet.Buffer) {
				b.Release()
				arrived <- struct{}{}
			}}, Config{Accept: true})
			defer to.stop()
			s := &fullSocket{UDPConn: pc, every: c.every}
			from := run(t, s, &node{}, Config{})
			defer from.stop()
			ab := from.dial(to, Client)
			sizes := rand.New(rand.NewPCG(1, 2)) // many, so that few go in one call
			for sent := range count {
				if sent >= window {
					<-arrived
				}
				ab.Send(bufferOf(pattern(500 + sizes.IntN(500))))
			}
			asked, waited := s.asked.Load(), s.waited.Load()
			if c.every == 0 && waited > asked/2 || c.every > 0 && waited < asked/c.every {
				t.Errorf("%d packets were to be sent at once, %d waited", asked, waited)
			}
			if s.passed.Load() {
				t.Error("a packet passed one that waited")
			}
		})
	}
}

// lateSocket reads one packet at a time; once, when late is set, one with lateSize bytes of a datagram for each of three connections, all others being lost, and then
// none until ended is closed.
const lateSize = 700 // no other packet is about as long, however late it comes

type lateSocket struct {
	*net.UDPConn
	late  atomic.Bool
	ended chan struct{}
	done  bool
}

func (s *lateSocket) ReadBatch(ms []ipv4.Message, _ int) (n int, err error) {
	if s.done {
		<-s.ended
	}
	seen := map[string]bool{}
	for {
		m := &ms[n]
		size, control, _, from, err := s.ReadMsgUDP(m.Buffers[0], m.OOB)
		if m.N, m.NN, m.Addr = size, control, from; err != nil || s.done || !s.late.Load() {
			return 1, err
		}
		if id := string(m.Buffers[0][1:21]); size > lateSize && size < lateSize+100 && !seen[id] {
			seen[id] = true
			n++
		}
		if n == 3 {
			s.done = true
			return n, nil
		}
	}
}

// All connections are woken that have got something in one read (overlay/wake.go.in).
func TestWokenByOneRead(t *testing.T) {
	needsHook(t)
	s := &lateSocket{UDPConn: loopback(t).(*net.UDPConn), ended: make(chan struct{})}
	arrived := make(chan byte, 8)
	to := run(t, s, &node{datagram: func(_ Conn, b *packet.Buffer) {
		arrived <- b.Data[0]
		b.Release()
	}}, Config{Accept: true})
	defer to.stop()
	from := run(t, loopback(t), &node{}, Config{})
	defer from.stop()
	defer close(s.ended)
	conns := []Conn{from.dial(to, Client), from.dial(to, Client), from.dial(to, Client)}
	for _, size := range []int{1, lateSize} { // the first shows that the handshake has ended at both ends
		for i, c := range conns {
			b := make([]byte, size)
			b[0] = byte(i)
			c.Send(bufferOf(b))
		}
		came := map[byte]bool{}
		for patience := time.After(time.Minute); len(came) < len(conns); {
			select {
			case i := <-arrived:
				came[i] = true
			case <-patience:
				t.Fatalf("of the datagrams of %d bytes only %v came", size, came)
			}
		}
		if size == 1 {
			time.Sleep(200 * time.Millisecond) // no timer of the handshakes wakes them
			s.late.Store(true)
		}
	}
}

func TestPassingErrors(t *testing.T) {
	for err, want := range map[error]bool{
		&net.OpError{Op: "write", Err: syscall.ENETUNREACH}: true,
		&net.OpError{Op: "write", Err: syscall.EPERM}:       true,
		&net.OpError{Op: "write", Err: syscall.EMSGSIZE}:    false, // path MTU discovery needs it
		&net.OpError{Op: "write", Err: syscall.EIO}:         false, // GSO is not supported
		net.ErrClosed: false,
	} {
		if passing(err) != want {
			t.Errorf("%v: %v", err, !want)
		}
	}
}

func TestResetKey(t *testing.T) {
	a, b := key.Generate(), key.Generate()
	defer a.Wipe()
	defer b.Wipe()
	ka, _ := statelessResetKey(a)
	again, _ := statelessResetKey(a)
	kb, _ := statelessResetKey(b)
	none, _ := statelessResetKey(nil)
	if *ka != *again || *ka == *kb || *none == (quic.StatelessResetKey{}) || [32]byte(*ka) == a.Seed() {
		t.Error("reset keys")
	}
}

func TestNetworkOf(t *testing.T) {
	for in, want := range map[string]string{
		"1.2.3.4": "1.2.3.4/32", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := NetworkOf(netip.MustParseAddr(in)); got.String() != want {
			t.Errorf("%s: %v", in, got)
		}
	}
}

// The socket's buffers are raised, by force where we may, and the kernel's answer can be told.
func TestSocketBuffers(t *testing.T) {
	n := run(t, loopback(t), &node{}, Config{})
	s, err := n.quic.SocketBuffers()
	if err != nil || s.Wanted != socketBuffer || s.Receive < 100_000 || s.Send < 100_000 {
		t.Errorf("%+v, %v", s, err)
	}
	if os.Geteuid() == 0 && !s.Enough() {
		t.Logf("root, but not enough (no CAP_NET_ADMIN here?): %+v", s)
	}
	n.stop()
	if _, err := n.quic.SocketBuffers(); err == nil {
		t.Error("a closed socket has buffers")
	}
	inSim(t, func(t *testing.T, n *simNet) {
		a := n.relayAt(1)
		defer a.stop()
		if _, err := a.quic.SocketBuffers(); err != errSimulated {
			t.Errorf("simulated: %v", err)
		}
	})
}

// A source that can wait is held back while a connection cannot send, for a bounded time.
func TestAwaitRoom(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		a, b := n.relayAt(1), n.relayAt(2)
		defer b.stop()
		defer a.stop()
		ab := a.dial(b, Relay)
		wait := func(most time.Duration) time.Duration {
			start := time.Now()
			a.quic.AwaitRoom(ctxb, most)
			return time.Since(start)
		}
		if w := wait(time.Second); w != 0 {
			t.Errorf("idle: waited %v", w)
		}
		n.lose(everything)
		for range 200 {
			ab.Send(bufferOf(pattern(1100)))
		}
		if w := wait(10 * time.Millisecond); w != 10*time.Millisecond {
			t.Errorf("stuck: waited %v", w)
		}
		n.lose(nil)
		if w := wait(time.Minute); w == 0 || w > 10*time.Second {
			t.Errorf("freed: waited %v", w)
		}
		if s := ab.Stats(); s.Waiting > 80 || s.DropFull > 0 {
			t.Errorf("%d wait, %d dropped", s.Waiting, s.DropFull)
		}
	})
}
