package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"lokinetd/router/key"
)

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
