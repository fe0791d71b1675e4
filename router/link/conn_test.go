package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/testutils/simnet"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// simNet is quic-go's simulated network in fake time, with a filter in the middle. Every node has 5 ms to every other.
type simNet struct {
	t testing.TB
	simnet.PerfectRouter
	drop atomic.Pointer[func(simnet.Packet) bool] // lost in the middle
	mtu  int                                      // UDP payload that passes; 0: 1400
	late func(simnet.Packet) time.Duration        // instead of the 5 ms, for nodes made after it was set
	df   syscall.RawConn                          // not nil: nodes have path MTU discovery

	mu    sync.Mutex
	links []*simnet.SimulatedLink
}

func newSimNet(t testing.TB) *simNet { return &simNet{t: t} }

func (n *simNet) SendPacket(p simnet.Packet) error {
	if drop := n.drop.Load(); drop != nil && (*drop)(p) {
		return nil
	}
	n.PerfectRouter.SendPacket(p) // nobody there: lost
	return nil
}

// lose drops what f says; nil: nothing.
func (n *simNet) lose(f func(simnet.Packet) bool) {
	if f == nil {
		n.drop.Store(nil)
		return
	}
	n.drop.Store(&f)
}

func everything(simnet.Packet) bool { return true }

// from is a filter for packets of one node.
func from(a netip.AddrPort) func(simnet.Packet) bool {
	return func(p simnet.Packet) bool { return addrPort(p.From) == a }
}

type dfConn struct {
	*simnet.SimConn
	raw syscall.RawConn
}

func (c dfConn) SyscallConn() (syscall.RawConn, error) { return c.raw, nil }

// socket makes the socket of a node, or of its successor at the same address.
func (n *simNet) socket(addr netip.AddrPort) net.PacketConn {
	a := net.UDPAddrFromAddrPort(addr)
	settings := simnet.LinkSettings{MTU: n.mtu}
	l := &simnet.SimulatedLink{UplinkSettings: settings, DownlinkSettings: settings, Latency: 5 * time.Millisecond, LatencyFunc: n.late, UploadPacket: n}
	c := simnet.NewBlockingSimConn(a, l)
	l.Start()
	n.AddNode(a, l)
	n.mu.Lock()
	n.links = append(n.links, l)
	n.mu.Unlock()
	if n.df != nil {
		return dfConn{c, n.df}
	}
	return c
}

func (n *simNet) close() {
	for _, l := range n.links {
		l.Close()
	}
}

// withDF gives the network path MTU discovery: quic-go sets the flag on some real socket.
func (n *simNet) withDF() *simNet {
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { u.Close() })
	if n.df, err = u.SyscallConn(); err != nil {
		n.t.Fatal(err)
	}
	return n
}

// node is an endpoint that runs, with a handler that notes what comes.
type node struct {
	t      testing.TB
	secret *key.Secret
	addr   netip.AddrPort
	quic   *QUIC
	stop   func() // ends Run and waits for it

	request  func(c Conn, r *Request)       // nil: echo
	datagram func(c Conn, b *packet.Buffer) // nil: kept

	mu        sync.Mutex
	opened    []Conn
	closed    map[Conn]error
	closedAt  map[Conn]time.Time
	requests  []string
	datagrams [][]byte
	calls     map[Conn]string // what was called, as letters
}

func (n *node) note(c Conn, what string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.calls == nil {
		n.calls, n.closed, n.closedAt = map[Conn]string{}, map[Conn]error{}, map[Conn]time.Time{}
	}
	n.calls[c] += what
}

func (n *node) Opened(c Conn) {
	n.note(c, "o")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.opened = append(n.opened, c)
}

func (n *node) Request(c Conn, r *Request) {
	n.note(c, "")
	n.mu.Lock()
	n.requests = append(n.requests, r.Name)
	f := n.request
	n.mu.Unlock()
	if f != nil {
		f(c, r)
		return
	}
	r.Reply(r.Body)
}

func (n *node) Datagram(c Conn, b *packet.Buffer) {
	if n.datagram != nil {
		n.datagram(c, b)
		return
	}
	n.mu.Lock()
	n.datagrams = append(n.datagrams, bytes.Clone(b.Data))
	n.mu.Unlock()
	b.Release()
}

func (n *node) Closed(c Conn, err error) {
	n.note(c, "c")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed[c], n.closedAt[c] = err, time.Now()
}

// conns are the connections announced so far.
func (n *node) conns() []Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.opened)
}

// end is the reason why c was closed; nil while it is open.
func (n *node) end(c Conn) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closed[c]
}

func (n *node) arrived() [][]byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.datagrams)
}

func addrOf(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1190)
}

func allowAll(key.Public) bool { return true }

// run starts a node on pc. A missing secret is made.
func run(t testing.TB, pc net.PacketConn, n *node, c Config) *node {
	if n.secret == nil {
		n.secret = key.Generate()
	}
	n.t = t
	c.Secret = n.secret
	q, err := NewQUIC(pc, c)
	if err != nil {
		t.Fatal(err)
	}
	n.quic, n.addr = q, q.LocalAddr()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- q.Run(ctx, n) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return n
}

// relayAt is a relay that takes any other.
func (n *simNet) relayAt(i int) *node {
	return run(n.t, n.socket(addrOf(i)), &node{}, Config{Accept: true, Registered: allowAll})
}

func (n *node) dial(to *node, kind Kind) Conn {
	n.t.Helper()
	c, err := n.quic.Dial(context.Background(), to.addr, to.secret.Public(), kind)
	if err != nil {
		n.t.Fatalf("dial: %v", err)
	}
	return c
}

// accepted waits for the only connection that n has accepted.
func (n *node) accepted() Conn {
	n.t.Helper()
	time.Sleep(20 * time.Millisecond)
	synctest.Wait()
	if cs := n.conns(); len(cs) == 1 {
		return cs[0]
	}
	n.t.Fatalf("%d connections", len(n.conns()))
	return nil
}

// inSim runs f in fake time. That it returns shows that no goroutine is left.
func inSim(t *testing.T, f func(t *testing.T, n *simNet)) {
	buffers := packet.InUse()
	synctest.Test(t, func(t *testing.T) {
		n := newSimNet(t)
		f(t, n)
		n.close()
	})
	if left := packet.InUse() - buffers; left != 0 {
		t.Errorf("%d packet buffers left", left)
	}
}

func bufferOf(p []byte) *packet.Buffer {
	b := packet.Get()
	b.Set(p)
	return b
}

var ctxb = context.Background()

func TestRequests(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		a, b := n.relayAt(1), n.relayAt(2)
		defer b.stop()
		defer a.stop()
		// The acceptor asks before the dialler has said anything.
		first := make(chan error, 1)
		b.mu.Lock()
		b.request = func(c Conn, r *Request) {
			switch r.Name {
			case "unknown":
				r.Unknown()
			case "fail":
				r.Fail(r.Body)
				r.Reply([]byte("too late"))
			case "never":
			case "late":
				time.AfterFunc(9*time.Second, func() { r.Reply([]byte("late")) })
			case "later":
				time.AfterFunc(11*time.Second, func() { r.Reply([]byte("later")) })
			case "huge":
				r.Reply(make([]byte, MaxMessage))
			default:
				r.Reply(r.Body)
			}
		}
		b.mu.Unlock()
		ab := a.dial(b, Relay)
		ba := b.accepted()
		go func() {
			got, err := ba.Request(ctxb, "hello", []byte("from the acceptor"))
			if err == nil && string(got) != "from the acceptor" {
				err = fmt.Errorf("got %q", got)
			}
			first <- err
		}()
		if err := <-first; err != nil {
			t.Errorf("acceptor's request: %v", err)
		}
		if ab.Kind() != Relay || ba.Kind() != Relay || !ab.Outbound() || ba.Outbound() ||
			ab.Remote() != b.secret.Public() || ba.Remote() != a.secret.Public() || ab.RemoteAddr() != b.addr || ba.RemoteAddr() != a.addr {
			t.Error("the two ends differ")
		}
		big := pattern(5_000_000)
		for _, c := range []struct {
			name, body string
			want       string
			after      time.Duration // exactly, when not 0
		}{
			{"echo", "", "", 0},
			{"echo", "hello", "hello", 0},
			{"echo", string(big), string(big), 0},
			{"unknown", "", "link: peer answered with the error \"Invalid endpoint 'unknown'\"", 0},
			{"fail", "because", "link: peer answered with the error \"because\"", 0},
			{"never", "", ErrTimeout.Error(), 10 * time.Second},
			{"late", "", "late", 9*time.Second + 10*time.Millisecond},
			{"later", "", ErrTimeout.Error(), 10 * time.Second},
			{"huge", "", "link: peer answered with the error \"An error occurred while processing the request\"", 0},
			{"echo", "the stream still works", "the stream still works", 0},
			{"tooLarge", strings.Repeat("x", MaxMessage), ErrTooLarge.Error(), 0},
		} {
			for who, conn := range map[string]Conn{"dialler": ab, "acceptor": ba} {
				if who == "acceptor" && c.name != "echo" {
					continue // a echoes whatever it is asked
				}
				start := time.Now()
				got, err := conn.Request(ctxb, c.name, []byte(c.body))
				if err != nil {
					got = []byte(err.Error())
				}
				if took := time.Since(start); string(got) != c.want || c.after != 0 && (took < c.after || took > c.after+50*time.Millisecond) {
					t.Errorf("%s, %s: %.60q after %v", who, c.name, got, took)
				}
			}
		}
		// Many at once, answered in any order; commands between them.
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				ab.Command("gossip_rc", []byte("nobody answers"))
				want := fmt.Sprint(i)
				if got, err := ab.Request(ctxb, "echo", []byte(want)); err != nil || string(got) != want {
					t.Errorf("%d: %q, %v", i, got, err)
				}
			})
		}
		wg.Wait()
		ctx, cancel := context.WithCancel(ctxb)
		time.AfterFunc(time.Second, cancel)
		if _, err := ab.Request(ctx, "never", nil); err != context.Canceled {
			t.Errorf("cancelled: %v", err)
		}
		ctx, cancel = context.WithTimeout(ctxb, time.Second)
		defer cancel()
		if _, err := ab.Request(ctx, "never", nil); err != ErrTimeout {
			t.Errorf("own deadline: %v", err)
		}
		synctest.Wait()
		ac, bc := ab.(*conn), ba.(*conn)
		if len(ac.calls) != 0 {
			t.Errorf("%d calls are left", len(ac.calls))
		}
		time.Sleep(RequestTimeout) // even what is never answered
		synctest.Wait()
		if len(bc.waiting) != 0 || b.quic.Stats().Waiting != 0 {
			t.Errorf("%d requests are left", len(bc.waiting))
		}
		if len(b.requests) == 0 || !slices.Contains(b.requests, "gossip_rc") {
			t.Error("no command came")
		}
	})
}

// Requests that wait when a connection ends fail at once, on both sides, and later ones too. Answers to a dead connection are ignored.
func TestCloseFailsRequests(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		a, b := n.relayAt(1), n.relayAt(2)
		defer b.stop()
		defer a.stop()
		var mu sync.Mutex
		var pending []*Request
		keep := func(_ Conn, r *Request) {
			mu.Lock()
			defer mu.Unlock()
			pending = append(pending, r)
		}
		a.request, b.request = keep, keep
		ab := a.dial(b, Relay)
		ba := b.accepted()
		var wg sync.WaitGroup
		start := time.Now()
		for _, c := range []Conn{ab, ba} {
			wg.Go(func() {
				if _, err := c.Request(ctxb, "x", nil); err != ErrClosed {
					t.Errorf("request: %v", err)
				}
			})
		}
		time.Sleep(time.Second)
		ab.Close(77)
		ab.Close(78)
		wg.Wait()
		<-ab.Done()
		<-ba.Done()
		if took := time.Since(start); took > 1100*time.Millisecond {
			t.Errorf("took %v", took)
		}
		for _, r := range pending {
			r.Reply(nil)
		}
		if len(pending) != 2 {
			t.Errorf("%d requests came", len(pending))
		}
		for _, c := range []Conn{ab, ba} {
			if _, err := c.Request(ctxb, "x", nil); err != ErrClosed {
				t.Errorf("request after close: %v", err)
			}
			if err := c.Command("x", nil); err != ErrClosed {
				t.Errorf("command after close: %v", err)
			}
			c.Send(bufferOf([]byte("dropped")))
			if s := c.Stats(); s.DropClosed != 1 {
				t.Errorf("%d dropped", s.DropClosed)
			}
		}
		var ours, theirs *CloseError
		if !errors.As(a.end(ab), &ours) || ours.Code != 77 || ours.Remote || !errors.Is(ours, ErrClosed) {
			t.Errorf("closer's reason: %v", a.end(ab))
		}
		if !errors.As(b.end(ba), &theirs) || theirs.Code != 77 || !theirs.Remote {
			t.Errorf("the other's reason: %v", b.end(ba))
		}
		if a.calls[ab] != "oc" || b.calls[ba] != "oc" {
			t.Errorf("calls: %q, %q", a.calls[ab], b.calls[ba])
		}
	})
}

// Who shows a key and what the other side makes of it (protocol 2 section 1), and that the ends of Run close with code 0.
func TestKinds(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		for i, c := range []struct {
			kind   Kind
			accept bool // the dialler is a relay itself, with a key
			shown  bool
		}{
			{Relay, true, true}, {Relay, false, true}, {Client, false, false}, {Client, true, false}, {Bootstrap, false, false}, {Bootstrap, true, false},
		} {
			b := n.relayAt(2*i + 1)
			a := run(t, n.socket(addrOf(2*i+2)), &node{}, Config{Accept: c.accept})
			ab := a.dial(b, c.kind)
			ba := b.accepted()
			want := key.Public{}
			if c.shown {
				want = a.secret.Public()
			}
			if ba.Kind() != c.kind || ba.Remote() != want || ab.Remote() != b.secret.Public() {
				t.Errorf("%v: accepted as %v, remote %v", c.kind, ba.Kind(), ba.Remote())
			}
			if got, err := ab.Request(ctxb, "echo", []byte("x")); err != nil || string(got) != "x" {
				t.Errorf("%v: %q, %v", c.kind, got, err)
			}
			stopFirst, other, conn := a, b, ba
			if i%2 == 1 {
				stopFirst, other, conn = b, a, ab
			}
			stopFirst.stop()
			synctest.Wait()
			time.Sleep(20 * time.Millisecond)
			var closed *CloseError
			if !errors.As(other.end(conn), &closed) || closed.Code != CodeNormal || !closed.Remote {
				t.Errorf("%v: end of Run seen as %v", c.kind, other.end(conn))
			}
			if _, err := stopFirst.quic.Dial(ctxb, other.addr, key.Public{}, Client); err != ErrClosed {
				t.Errorf("dial after Run: %v", err)
			}
			other.stop()
		}
	})
}

// Every size of datagram, both ways, before and after path MTU discovery; what is too large is counted, not sent.
func TestDatagrams(t *testing.T) {
	for _, c := range []struct {
		name string
		mtu  int // UDP payload of the path; 0: no discovery, M stays 1200
		minM int // discovery ends within 20 bytes of the path's limit
	}{
		{"fixed", 0, 1200}, {"1252", 1252, 1232}, {"1400", 1400, 1380}, {"1472", 1472, 1432},
	} {
		t.Run(c.name, func(t *testing.T) {
			inSim(t, func(t *testing.T, n *simNet) {
				if n.mtu = c.mtu; c.mtu > 0 {
					n.withDF()
				}
				a, b := n.relayAt(1), n.relayAt(2)
				defer b.stop()
				defer a.stop()
				ab := a.dial(b, Relay)
				ba := b.accepted()
				for _, round := range []string{"before", "after"} {
					for _, way := range []struct {
						from Conn
						to   *node
					}{{ab, b}, {ba, a}} {
						stats := way.from.Stats()
						largest := 2 * pieceOf(int(stats.M))
						var sent [][]byte
						way.to.mu.Lock()
						way.to.datagrams = nil
						way.to.mu.Unlock()
						piece := pieceOf(int(stats.M))
						for _, size := range []int{0, 1, 2, 57, 58, 500, 1100, 1153, 1154, 1155, 1280, 1300, piece - 1, piece, piece + 1, piece + 2, 2300, largest - 1, largest} {
							p := pattern(size)
							sent = append(sent, p)
							way.from.Send(bufferOf(p))
							time.Sleep(20 * time.Millisecond)
						}
						// Discovery may go on meanwhile, so this is too large for sure.
						way.from.Send(bufferOf(pattern(2*pieceOf(1472) + 1)))
						time.Sleep(20 * time.Millisecond)
						got := way.to.arrived()
						if !slices.EqualFunc(got, sent, bytes.Equal) {
							var sizes []int
							for _, p := range got {
								sizes = append(sizes, len(p))
							}
							t.Errorf("%s, M %d: arrived %v", round, stats.M, sizes)
						}
						after := way.from.Stats()
						if out := after.DatagramsOut - stats.DatagramsOut; int(out) != len(sent) || after.DropTooLarge != stats.DropTooLarge+1 {
							t.Errorf("%s: %d of %d sent, %d too large", round, out, len(sent), after.DropTooLarge)
						}
					}
					// Probes go only with other traffic.
					for range 100 {
						ab.Request(ctxb, "x", nil)
						ba.Request(ctxb, "x", nil)
					}
				}
				for _, conn := range []Conn{ab, ba} {
					if s := conn.Stats(); int(s.M) < c.minM || c.mtu > 0 && int(s.M) > c.mtu || s.RTT < 9*time.Millisecond || s.WirePacketsIn == 0 {
						t.Errorf("M %d, RTT %v", s.M, s.RTT)
					}
				}
				in, out := ab.Stats(), ba.Stats()
				if in.DatagramsIn != out.DatagramsOut || in.BytesIn != out.BytesOut || in.SplitIn != out.SplitOut || in.SplitIn == 0 || in.DropHalf+in.DropInvalid != 0 {
					t.Errorf("in %+v, out %+v", in, out)
				}
			})
		})
	}
}

// A queue that overflows drops the oldest and never blocks its users.
func TestDatagramFlood(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := n.relayAt(1)
		a := run(t, n.socket(addrOf(2)), &node{}, Config{Limits: Limits{QueueCount: 100, QueueBytes: 50_000}})
		defer b.stop()
		defer a.stop()
		ab := a.dial(b, Client)
		n.lose(everything)
		const count = 5000
		for i := range count {
			p := pattern(1000)
			p[0], p[1] = byte(i>>8), byte(i)
			ab.Send(bufferOf(p))
		}
		time.Sleep(time.Second)
		s := ab.Stats()
		if q := ab.(*conn).datagrams; q.fair.Len() > 100 || q.fair.Bytes() > 50_000 || s.DropFull+s.DatagramsOut+uint64(q.fair.Len())+10 < count {
			t.Errorf("%d of %d bytes wait, %d dropped, %d sent", q.fair.Len(), q.fair.Bytes(), s.DropFull, s.DatagramsOut)
		}
		n.lose(nil)
		time.Sleep(10 * time.Second)
		got := b.arrived()
		last := got[len(got)-1]
		if newest := int(last[0])<<8 | int(last[1]); newest != count-1 {
			t.Errorf("the newest that arrived is %d", newest)
		}
	})
}

// Idle and keep-alive times (protocol 2 section 1): silent peers are given up after 33, 63 and 10 s; diallers keep relay and client links up; bootstrap links end.
func TestIdle(t *testing.T) {
	for _, c := range []struct {
		kind Kind
		idle time.Duration
	}{{Relay, 33 * time.Second}, {Client, 63 * time.Second}, {Bootstrap, 10 * time.Second}} {
		t.Run(c.kind.String(), func(t *testing.T) {
			inSim(t, func(t *testing.T, n *simNet) {
				a, b := n.relayAt(1), n.relayAt(2)
				defer b.stop()
				defer a.stop()
				ab := a.dial(b, c.kind)
				ba := b.accepted()
				start := time.Now()
				if c.kind != Bootstrap {
					time.Sleep(10 * time.Minute)
					if a.end(ab) != nil || b.end(ba) != nil {
						t.Fatalf("after %v: %v, %v", time.Since(start), a.end(ab), b.end(ba))
					}
					if _, err := ab.Request(ctxb, "x", nil); err != nil {
						t.Fatal(err)
					}
					start = time.Now()
					n.lose(everything)
				}
				for _, end := range []struct {
					who  string
					conn Conn
					node *node
					more time.Duration // a dialler's clock starts again with its first packet after the last that it got: its keep-alive
				}{{"dialler", ab, a, keepAlive(c.kind) * 3 / 2}, {"acceptor", ba, b, 0}} {
					<-end.conn.Done()
					slack := time.Second + end.more
					if took := end.node.closedAt[end.conn].Sub(start); end.node.end(end.conn) != ErrIdle || took < c.idle-time.Second || took > c.idle+slack {
						t.Errorf("%s: %v after %v", end.who, end.node.end(end.conn), took)
					}
				}
			})
		})
	}
}

// A relay that dies and comes back says nothing; the dialler's keep-alive finds out (protocol 5 section 5.2), without any traffic.
func TestSilentRestart(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		for i, c := range []struct {
			kind  Kind
			nudge bool // as Peers.Wake does: no need to wait
		}{{Relay, false}, {Client, false}, {Client, true}} {
			kind, within := c.kind, keepAlive(c.kind)+time.Second
			a, b := n.relayAt(2*i+1), n.relayAt(2*i+2)
			ab := a.dial(b, kind)
			time.Sleep(time.Minute)
			n.lose(from(b.addr))
			b.stop()
			n.lose(nil)
			b2 := run(t, n.socket(b.addr), &node{secret: b.secret}, Config{Accept: true, Registered: allowAll})
			start := time.Now()
			if c.nudge {
				ab.(*conn).Nudge()
				within = 100 * time.Millisecond
			}
			<-ab.Done()
			if took := time.Since(start); a.end(ab) != ErrReset || took > within {
				t.Errorf("%v: %v after %v", kind, a.end(ab), took)
			}
			if again := a.dial(b2, kind); again.Kind() != kind {
				t.Error("no new connection")
			}
			a.stop()
			b2.stop()
		}
	})
}

// A peer that is not who it should be, or does not take us.
func TestDialRefused(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		friend := key.Generate()
		b := run(t, n.socket(addrOf(1)), &node{}, Config{Accept: true, Registered: func(k key.Public) bool { return k == friend.Public() }})
		defer b.stop()
		stranger := n.relayAt(2)
		defer stranger.stop()
		known := run(t, n.socket(addrOf(3)), &node{secret: friend}, Config{})
		defer known.stop()
		nobody := addrOf(99)
		for _, c := range []struct {
			name   string
			from   *node
			to     netip.AddrPort
			remote key.Public
			kind   Kind
			err    string
			within time.Duration
		}{
			{"registered", known, b.addr, b.secret.Public(), Relay, "", time.Second},
			{"not registered", stranger, b.addr, b.secret.Public(), Relay, "0x12a", time.Second},
			{"not registered, as client", stranger, b.addr, b.secret.Public(), Client, "", time.Second},
			{"another key", known, b.addr, stranger.secret.Public(), Relay, "another key", time.Second},
			{"another key, as client", known, b.addr, stranger.secret.Public(), Client, "another key", time.Second},
			{"does not listen", stranger, known.addr, friend.Public(), Relay, ErrIdle.Error(), 6 * time.Second},
			{"nobody", known, nobody, b.secret.Public(), Client, ErrIdle.Error(), 6 * time.Second},
			{"no such kind", known, b.addr, b.secret.Public(), kinds, "cannot dial", 0},
		} {
			start := time.Now()
			conn, err := c.from.quic.Dial(ctxb, c.to, c.remote, c.kind)
			if took := time.Since(start); took > c.within || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v after %v", c.name, err, took)
			}
			if conn != nil {
				conn.Close(CodeNormal)
			}
		}
		own := run(t, n.socket(addrOf(4)), &node{secret: b.secret}, Config{})
		defer own.stop()
		if _, err := own.quic.Dial(ctxb, b.addr, b.secret.Public(), Relay); err == nil {
			t.Error("a relay accepted its own key")
		}
		ctx, cancel := context.WithTimeout(ctxb, time.Second)
		defer cancel()
		if _, err := known.quic.Dial(ctx, nobody, b.secret.Public(), Client); err != ErrTimeout {
			t.Errorf("short deadline: %v", err)
		}
		time.Sleep(time.Second)
		if s := b.quic.Stats(); s.Inbound != 0 || s.Handshakes != 0 {
			t.Errorf("still counted: %+v", s)
		}
		for _, calls := range stranger.calls {
			if calls != "oc" {
				t.Errorf("handler calls %q", calls)
			}
		}
		if len(stranger.calls) != 1 {
			t.Errorf("%d connections announced", len(stranger.calls))
		}
	})
}

// quic-go's Dial returns when its own side of the handshake is done. A relay of the reference that does not accept our key is silent from then on: no connection
// (protocol 5 section 5.1).
func TestDialEarly(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		a, b := n.relayAt(1), n.relayAt(2)
		n.lose(func(p simnet.Packet) bool { // no 1-RTT packets of b
			return addrPort(p.From) == b.addr && p.Data[0]&0x80 == 0
		})
		if _, err := a.quic.Dial(ctxb, b.addr, b.secret.Public(), Relay); err != ErrTimeout {
			t.Errorf("dial: %v", err)
		}
		if len(a.conns()) != 0 {
			t.Error("announced")
		}
		n.lose(nil)
		a.stop()
		b.stop()
	})
}

// A relay that sends no NEW_TOKEN is asked for a reply; any will do.
func TestDialWithoutToken(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := n.relayAt(1)
		b.request = func(_ Conn, r *Request) { r.Unknown() }
		a := run(t, n.socket(addrOf(2)), &node{}, Config{})
		a.quic.ignoreTokens = true
		start := time.Now()
		a.dial(b, Client)
		if took := time.Since(start); took < pingAfter || took > 2*pingAfter || !slices.Equal(b.requests, []string{"ping"}) {
			t.Errorf("up after %v and %v", took, b.requests)
		}
		a.stop()
		b.stop()
	})
}

// Dial waits for Run, and ends with it.
func TestDialAndRun(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := n.relayAt(1)
		q, err := NewQUIC(n.socket(addrOf(2)), Config{})
		if err != nil {
			t.Fatal(err)
		}
		dial := func(to netip.AddrPort) chan error {
			result := make(chan error, 1)
			go func() {
				_, err := q.Dial(ctxb, to, b.secret.Public(), Client)
				result <- err
			}()
			return result
		}
		early, late := dial(b.addr), dial(addrOf(99))
		time.Sleep(time.Second)
		ctx, cancel := context.WithCancel(ctxb)
		ended := make(chan error)
		go func() { ended <- q.Run(ctx, &node{}) }()
		if err := <-early; err != nil {
			t.Errorf("dial before Run: %v", err)
		}
		cancel()
		if err := <-late; err != ErrClosed {
			t.Errorf("dial that Run ended: %v", err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := q.Run(ctxb, &node{}); err == nil {
			t.Error("Run ran twice")
		}
		b.stop()
	})
}

// The socket fails: Run ends and says so, with a listener or with a connection. An endpoint that does nothing ends too.
func TestSocketFails(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := n.relayAt(9)
		for i, c := range []Config{{Secret: key.Generate(), Accept: true}, {}} {
			pc := n.socket(addrOf(i + 1))
			q, err := NewQUIC(pc, c)
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error)
			go func() { ended <- q.Run(ctxb, &node{}) }()
			if !c.Accept {
				if _, err := q.Dial(ctxb, b.addr, b.secret.Public(), Client); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second)
			pc.Close()
			if err := <-ended; !errors.Is(err, errSocket) {
				t.Errorf("Run: %v", err)
			}
		}
		b.stop()
		run(t, n.socket(addrOf(3)), &node{}, Config{}).stop()
	})
}

// bare is a peer of plain quic-go, to do what a conn never does.
func (n *simNet) bare(i int, to *node, kind Kind) (*quic.Conn, func()) {
	tr := &quic.Transport{Conn: n.socket(addrOf(i)), ConnectionIDLength: 20}
	qc, err := tr.Dial(ctxb, net.UDPAddrFromAddrPort(to.addr), dialTLS(kind, key.Generate(), to.secret.Public()), dialConfig(idleTimeout(kind)))
	if err != nil {
		n.t.Fatal(err)
	}
	return qc, func() {
		qc.CloseWithError(0, "")
		tr.Close()
		tr.Conn.Close()
	}
}

func framed(list string) string { return fmt.Sprintf("%d:%s", len(list), list) }

func TestHostileStream(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := run(t, n.socket(addrOf(1)), &node{}, Config{Accept: true, Limits: Limits{Requests: 3, AllRequests: 4, Memory: 3 << 20}})
		defer b.stop()
		b.request = func(_ Conn, r *Request) {
			if r.Name == "echo" {
				r.Reply(r.Body)
			}
		}
		for i, c := range []struct {
			name, send string
			end        bool   // send FIN
			want       string // what comes back
			closed     bool
		}{
			{"ok", framed("l1:Ci0e4:echo4:quice") + "0:" + nudge + framed("l1:Ci9e4:echo2:hie"), false, framed("l1:Ri0e4:quice") + framed("l1:Ri9e2:hie"), false},
			{"unmatched replies", framed("l1:Ri5e4:ponge") + framed("l1:Ei5e4:ponge"), false, "", false},
			{"unknown type", framed("l1:Xi0e0:e"), false, "30:l1:Ei0e19:Invalid endpoint ''e", false},
			{"bad prefix", "01:a", false, "", true},
			{"bad list", "3:abc", false, "", true},
			{"trailing element", framed("l1:Ri5e4:pong0:e"), false, "", true},
			{"too long", "10000001:", false, "", true},
			{"FIN", nudge, true, "", true},
			{"cut by FIN", "16:l1:Ci0", true, "", true},
			{"too many requests", strings.Repeat(framed("l1:Ci1e1:x0:e"), 4), false, framed("l1:Ei1e46:An error occurred while processing the requeste"), false},
		} {
			qc, stop := n.bare(i+2, b, Client)
			s, err := qc.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			s.Write([]byte(c.send))
			if c.end {
				s.Close()
			}
			var got []byte
			s.SetReadDeadline(time.Now().Add(time.Second))
			buf := make([]byte, 1000)
			for err = nil; err == nil; {
				var k int
				k, err = s.Read(buf)
				got = append(got, buf[:k]...)
			}
			var app *quic.ApplicationError
			closed := errors.As(err, &app) && app.Remote && app.ErrorCode == CodeStream
			if string(got) != c.want || closed != c.closed {
				t.Errorf("%s: %q, %v", c.name, got, err)
			}
			stop()
			time.Sleep(time.Second)
		}

		// Memory of unfinished messages, over all connections, and requests without answer.
		var stops []func()
		var streams []*quic.Stream
		for i := range 5 {
			qc, stop := n.bare(100+i, b, Client)
			stops = append(stops, stop)
			s, _ := qc.OpenStream()
			streams = append(streams, s)
			s.Write([]byte("9000000:"))
			s.SetWriteDeadline(time.Now().Add(5 * time.Second))
			s.Write(make([]byte, 900_000)) // 1 MiB is held for it
		}
		time.Sleep(time.Second)
		alive := 0
		for _, c := range b.conns()[10:] {
			if b.end(c) == nil {
				alive++
			}
		}
		if stats := b.quic.Stats(); alive == 0 || alive == 5 || stats.Memory > 3<<20 {
			t.Errorf("%d connections hold %d bytes", alive, stats.Memory)
		}
		for i, stop := range stops {
			streams[i].CancelWrite(0)
			stop()
		}
		time.Sleep(RequestTimeout + time.Second)
		if stats := b.quic.Stats(); stats.Memory != 0 || stats.Waiting != 0 || stats.Inbound != 0 {
			t.Errorf("left: %+v", stats)
		}
	})
}

// Streams other than 0 are refused, and there are 32 of them in a connection's life. Stream 0 goes on.
func TestOtherStreams(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := n.relayAt(1)
		defer b.stop()
		qc, stop := n.bare(2, b, Client)
		defer stop()
		zero, _ := qc.OpenStream()
		zero.Write([]byte(nudge))
		opened := 0
		for range 100 {
			s, err := qc.OpenStream()
			if err != nil {
				break
			}
			opened++
			s.Write(make([]byte, 1000))
			time.Sleep(50 * time.Millisecond)
			if _, err := s.Write([]byte("x")); err == nil {
				t.Fatal("stream is read")
			}
			s.Read(make([]byte, 1))
		}
		if opened != 31 {
			t.Errorf("%d streams opened", opened)
		}
		zero.Write([]byte("16:l1:Ci0e4:ping0:e"))
		buf := make([]byte, 100)
		if k, err := zero.Read(buf); err != nil || string(buf[:k]) != "10:l1:Ri0e0:e" {
			t.Errorf("%q, %v", buf[:k], err)
		}
		for _, frame := range []string{"", "x", "\x00\x01a", "\x00\x00ok", "\x00\x06half"} {
			qc.SendDatagram([]byte(frame))
		}
		time.Sleep(time.Second)
		if s := b.conns()[0].Stats(); s.DropInvalid != 3 || s.DatagramsIn != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// What the acceptor asks before the dialler has opened stream 0 waits for it (protocol 2 section 5.1).
func TestAcceptorWaitsForStream(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := n.relayAt(1)
		defer b.stop()
		qc, stop := n.bare(2, b, Client)
		defer stop()
		c := b.accepted()
		c.Command("session_control", []byte("x"))
		result := make(chan string, 1)
		go func() {
			got, err := c.Request(ctxb, "ask", nil)
			result <- fmt.Sprintf("%s, %v", got, err)
		}()
		time.Sleep(2 * time.Second)
		s, _ := qc.OpenStream()
		s.Write([]byte(nudge))
		want := framed("l1:Ci0e15:session_control1:xe") + framed("l1:Ci1e3:ask0:e")
		got := make([]byte, len(want))
		if _, err := io.ReadFull(s, got); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
		s.Write([]byte(framed("l1:Ri1e6:answere")))
		if got := <-result; got != "answer, <nil>" {
			t.Error(got)
		}
	})
}

// A peer that does not read its stream is cut off; one message of any size may wait for it.
func TestSlowReader(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := run(t, n.socket(addrOf(1)), &node{}, Config{Accept: true, Limits: Limits{StreamQueue: 100_000}})
		defer b.stop()
		qc, stop := n.bare(2, b, Client)
		defer stop()
		s, _ := qc.OpenStream()
		s.Write([]byte(nudge))
		c := b.accepted()
		if err := c.Command("x", make([]byte, 9_000_000)); err != nil { // more than the stream's window of 6 MiB
			t.Fatal(err)
		}
		start := time.Now()
		time.Sleep(time.Minute)
		if err := b.end(c); err != nil {
			t.Fatalf("closed after one message: %v", err)
		}
		if err := c.Command("x", make([]byte, 200_000)); err != ErrClosed {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
		<-c.Done()
		if err := b.end(c); err != errSlow {
			t.Errorf("closed: %v", err)
		}
	})
}

// Limits on inbound connections: in all, of one network, in handshake; and Retry when there are many handshakes.
func TestConnectionLimits(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := run(t, n.socket(addrOf(1)), &node{}, Config{Accept: true, Limits: Limits{Connections: 5, PerIP: 2}})
		defer b.stop()
		port := uint16(1000)
		dial := func(ip int) (*node, error) {
			port++
			a := run(t, n.socket(netip.AddrPortFrom(addrOf(ip).Addr(), port)), &node{}, Config{})
			_, err := a.quic.Dial(ctxb, b.addr, b.secret.Public(), Client)
			return a, err
		}
		var nodes []*node
		for _, c := range []struct {
			ip int
			ok bool
		}{{10, true}, {10, true}, {10, false}, {11, true}, {11, true}, {12, true}, {12, false}, {13, false}} {
			a, err := dial(c.ip)
			nodes = append(nodes, a)
			if (err == nil) != c.ok {
				t.Errorf("%d: %v", c.ip, err)
			}
		}
		if s := b.quic.Stats(); s.Inbound != 5 || s.Refused != 3 || s.Handshakes != 0 {
			t.Errorf("%+v", s)
		}
		nodes[0].stop()
		time.Sleep(time.Second)
		a, err := dial(10)
		if err != nil {
			t.Errorf("place that became free: %v", err)
		}
		a.stop()
		for _, a := range nodes {
			a.stop()
		}

		shy := run(t, n.socket(addrOf(2)), &node{}, Config{Accept: true, Limits: Limits{Handshakes: 4}})
		defer shy.stop()
		n.lose(func(p simnet.Packet) bool { // these never get beyond their first packet
			to := addrPort(p.To)
			return addrPort(p.From) == shy.addr && (to == addrOf(20) || to == addrOf(21))
		})
		for i, c := range []struct {
			ok      bool
			shaking int
		}{{false, 1}, {false, 1}, {true, 1}} { // the second must prove its address: its packets cost nothing
			a := run(t, n.socket(addrOf(20+i)), &node{}, Config{})
			ctx, cancel := context.WithTimeout(ctxb, time.Second)
			_, err := a.quic.Dial(ctx, shy.addr, shy.secret.Public(), Client)
			cancel()
			if s := shy.quic.Stats(); (err == nil) != c.ok || s.Handshakes != c.shaking {
				t.Errorf("%d: %v, %+v", i, err, s)
			}
			a.stop()
		}
	})
}

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
		if got := networkOf(netip.MustParseAddr(in)); got.String() != want {
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
