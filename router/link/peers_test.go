package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// fakeWire dials as the test says.
type fakeWire struct {
	announces bool // calls Opened for what it dialled, as QUIC does
	outcome   func(ctx context.Context, remote key.Public) error

	mu      sync.Mutex
	handler Handler
	dialled []key.Public
	started chan struct{}
}

func newFakeWire(announces bool) *fakeWire {
	return &fakeWire{announces: announces, started: make(chan struct{})}
}

func (w *fakeWire) LocalAddr() netip.AddrPort { return addrOf(1) }

func (w *fakeWire) Run(ctx context.Context, h Handler) error {
	w.handler = h
	close(w.started)
	<-ctx.Done()
	return nil
}

// Dial takes a second.
func (w *fakeWire) Dial(ctx context.Context, to netip.AddrPort, remote key.Public, kind Kind) (Conn, error) {
	<-w.started
	w.mu.Lock()
	w.dialled = append(w.dialled, remote)
	outcome := w.outcome
	w.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(time.Second):
	}
	if outcome != nil {
		if err := outcome(ctx, remote); err != nil {
			return nil, err
		}
	}
	c := w.conn(remote, kind, true)
	if w.announces {
		w.handler.Opened(c)
	}
	return c, nil
}

func (w *fakeWire) set(f func(context.Context, key.Public) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outcome = f
}

func (w *fakeWire) dials() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.dialled)
}

// fakeConn notes what is sent on it.
type fakeConn struct {
	w        *fakeWire
	kind     Kind
	remote   key.Public
	outbound bool
	done     chan struct{}
	once     sync.Once

	mu   sync.Mutex
	sent []string
}

func (w *fakeWire) conn(remote key.Public, kind Kind, outbound bool) *fakeConn {
	return &fakeConn{w: w, kind: kind, remote: remote, outbound: outbound, done: make(chan struct{})}
}

// accept lets a connection come in.
func (w *fakeWire) accept(remote key.Public, kind Kind) *fakeConn {
	c := w.conn(remote, kind, false)
	w.handler.Opened(c)
	return c
}

func (c *fakeConn) Kind() Kind                 { return c.kind }
func (c *fakeConn) Remote() key.Public         { return c.remote }
func (c *fakeConn) Outbound() bool             { return c.outbound }
func (c *fakeConn) Done() <-chan struct{}      { return c.done }
func (c *fakeConn) Stats() ConnStats           { return ConnStats{} }
func (c *fakeConn) RemoteAddr() netip.AddrPort { return netip.AddrPort{} }
func (c *fakeConn) Close(code uint64)          { go c.end(&CloseError{Code: code}) }

func (c *fakeConn) end(err error) {
	c.once.Do(func() {
		c.w.handler.Closed(c, err)
		close(c.done)
	})
}

func (c *fakeConn) note(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent = append(c.sent, s)
}

func (c *fakeConn) Send(b *packet.Buffer) {
	c.note("datagram " + string(b.Data))
	b.Release()
}

func (c *fakeConn) Command(name string, body []byte) error {
	c.note(name + " " + string(body))
	return nil
}

func (c *fakeConn) Request(ctx context.Context, name string, body []byte) ([]byte, error) {
	c.note(name + " " + string(body))
	return append([]byte("reply to "), body...), nil
}

func (c *fakeConn) noted() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.sent)
}

// keyAt is a key of which the order is known.
func keyAt(i byte) key.Public { return key.Public{0: i, 31: 1} }

// inPeers runs f with a table of the relay keyAt(100) over a fake wire.
func inPeers(t *testing.T, f func(t *testing.T, p *Peers, w *fakeWire, n *node)) {
	for _, announces := range []bool{true, false} {
		t.Run(fmt.Sprintf("announces %v", announces), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, n := newFakeWire(announces), &node{t: t}
				contact := func(id key.Public) (netip.AddrPort, bool) { return addrOf(int(id[0])), id[0] != 99 }
				p := NewPeers(keyAt(100), Relay, w, contact, n)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- p.Run(ctx) }()
				synctest.Wait()
				f(t, p, w, n)
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				if _, err := p.Request(context.Background(), keyAt(77), "x", nil); err != ErrClosed {
					t.Errorf("request after Run: %v", err)
				}
				synctest.Wait()
				if p.dials != 0 || p.waiting != 0 {
					t.Errorf("%d dials, %d waiting", p.dials, p.waiting)
				}
			})
		})
	}
}

func TestPeersQueue(t *testing.T) {
	inPeers(t, func(t *testing.T, p *Peers, w *fakeWire, n *node) {
		id := keyAt(1)
		p.Datagram(id, bufferOf([]byte("nobody")))
		var wg sync.WaitGroup
		body := []byte("0")
		for i := range 3 {
			body[0] = '0' + byte(i)
			if err := p.Command(id, "command", body); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			wg.Go(func() {
				if got, err := p.Request(context.Background(), id, "ask", []byte("x")); err != nil || string(got) != "reply to x" {
					t.Errorf("%q, %v", got, err)
				}
			})
		}
		synctest.Wait()
		if w.dials() != 1 || p.Pending() != 1 || p.Get(id) != nil || len(p.Connected()) != 0 {
			t.Errorf("%d dials, %d pending", w.dials(), p.Pending())
		}
		dialled := time.Now()
		for before, slow := range map[time.Time]int{dialled: 0, dialled.Add(1): 1} {
			if all, got := p.Dials(before); all != 1 || got != slow {
				t.Errorf("%d dials, %d of them slow, want %d", all, got, slow)
			}
		}
		if p.Idle(id, dialled) || !p.Idle(keyAt(98), dialled) {
			t.Error("idle while it is dialled")
		}
		wg.Wait()
		c := p.Get(id).(*fakeConn)
		p.Datagram(id, bufferOf([]byte("somebody")))
		p.Command(id, "command", []byte("3"))
		want := []string{"command 0", "command 1", "command 2", "ask x", "ask x", "ask x", "datagram somebody", "command 3"}
		if got := c.noted(); !slices.Equal(got, want) {
			t.Errorf("sent %q", got)
		}
		if p.Pending() != 0 || len(p.Connected()) != 1 || p.DropNoLink() != 1 || p.Connect(id) != nil || w.dials() != 1 {
			t.Error("after the dial")
		}
		if all, _ := p.Dials(time.Now()); all != 0 || p.Idle(id, time.Now()) {
			t.Error("idle while it is connected")
		}
		if err := p.Command(keyAt(99), "x", nil); err != ErrUnknown {
			t.Errorf("no contact: %v", err)
		}
		if err := p.Connect(keyAt(100)); err != ErrUnknown {
			t.Errorf("ourselves: %v", err)
		}
		// The bounds of what waits for one dial.
		id = keyAt(2)
		for range maxQueued {
			if err := p.Command(id, "x", nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Command(id, "x", nil); err != ErrBusy {
			t.Errorf("one command more: %v", err)
		}
		if err := p.Command(keyAt(3), "x", make([]byte, maxQueuedBytes+1)); err != ErrBusy {
			t.Errorf("large command: %v", err)
		}
		for range maxWaiting {
			wg.Go(func() { p.Request(context.Background(), id, "x", nil) })
		}
		synctest.Wait()
		if _, err := p.Request(context.Background(), id, "x", nil); err != ErrBusy {
			t.Errorf("one request more: %v", err)
		}
		wg.Wait()
		p.Close(id, 5)
		synctest.Wait()
		if p.Get(id) != nil {
			t.Error("not closed")
		}
		if n.calls[c] != "o" {
			t.Errorf("handler calls %q", n.calls[c])
		}
	})
}

func TestPeersDialLimit(t *testing.T) {
	inPeers(t, func(t *testing.T, p *Peers, w *fakeWire, n *node) {
		for i := range maxDials {
			if err := p.Connect(key.Public{1, byte(i)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Connect(key.Public{2}); err != ErrBusy {
			t.Errorf("one dial more: %v", err)
		}
		if p.Pending() != maxDials {
			t.Errorf("%d pending", p.Pending())
		}
	})
}

// What waited fails with the dial; the back-off grows to 30 s and ends with a success that lasts, or with Wake.
func TestPeersBackoff(t *testing.T) {
	inPeers(t, func(t *testing.T, p *Peers, w *fakeWire, n *node) {
		id, broken := keyAt(1), errors.New("broken")
		w.set(func(context.Context, key.Public) error { return broken })
		request := func() error {
			_, err := p.Request(context.Background(), id, "x", nil)
			return err
		}
		for i, longest := range []time.Duration{1, 2, 4, 8, 16, 30, 30, 30} {
			longest *= time.Second
			p.Command(id, "lost", nil)
			start := time.Now()
			if err := request(); !errors.Is(err, ErrUnreachable) || !errors.Is(err, broken) || time.Since(start) != time.Second {
				t.Fatalf("%d: %v", i, err)
			}
			s := p.Status()[0]
			if s.ID != id || s.Failures != i+1 || s.Err != broken || s.Retry.Sub(s.FailedAt) < longest/2 || s.Retry.Sub(s.FailedAt) > longest {
				t.Errorf("%d: %+v", i, s)
			}
			time.Sleep(longest/2 - time.Millisecond)
			if err := p.Command(id, "lost", nil); !errors.Is(err, ErrUnreachable) || w.dials() != i+1 {
				t.Fatalf("%d: too early: %v", i, err)
			}
			time.Sleep(longest / 2)
			time.Sleep(2 * time.Millisecond)
		}
		request() // fails once more
		p.Wake()
		w.set(nil)
		if err := request(); err != nil {
			t.Fatalf("after Wake: %v", err)
		}
		c := p.Get(id).(*fakeConn)
		if got := c.noted(); !slices.Equal(got, []string{"x "}) {
			t.Errorf("sent %q", got)
		}
		// Ended by the other side at once: as good as refused. Ended by us: not. Ended after a while: not.
		for i, c := range []struct {
			after    time.Duration
			err      error
			failures int
		}{
			{0, ErrReset, 1}, {time.Second, &CloseError{Remote: true}, 2}, {time.Second, &CloseError{}, 2}, {time.Minute, ErrIdle, 0}, {time.Second, &CloseError{}, 0},
		} {
			time.Sleep(c.after)
			p.Get(id).(*fakeConn).end(c.err)
			failures := 0
			if s := p.Status(); len(s) > 0 {
				failures = s[0].Failures
			}
			if failures != c.failures || p.Get(id) != nil {
				t.Errorf("%d: %d failures", i, failures)
			}
			time.Sleep(30 * time.Second)
			if err := request(); err != nil {
				t.Fatal(err)
			}
		}
		// Failures are forgotten in the end.
		w.set(func(context.Context, key.Public) error { return broken })
		p.Connect(keyAt(2))
		time.Sleep(2 * time.Second)
		p.Tick(time.Now())
		if len(p.Status()) != 2 {
			t.Error("failure forgotten at once")
		}
		time.Sleep(10 * time.Minute)
		p.Tick(time.Now())
		if len(p.Status()) != 1 {
			t.Error("failure never forgotten")
		}
	})
}

// Between two relays the connection dialled by the smaller key is preferred and stays (protocol 2 section 6.3).
func TestPeersPreference(t *testing.T) {
	inPeers(t, func(t *testing.T, p *Peers, w *fakeWire, n *node) {
		for _, c := range []struct {
			id          key.Public
			inboundWins bool
		}{{keyAt(1), true}, {keyAt(200), false}} {
			p.Connect(c.id)
			time.Sleep(2 * time.Second)
			out := p.Get(c.id).(*fakeConn)
			in := w.accept(c.id, Relay)
			both := time.Now()
			winner, loser := out, in
			if c.inboundWins {
				winner, loser = in, out
			}
			if p.Get(c.id) != winner {
				t.Errorf("%v: wrong one preferred", c.id[0])
			}
			time.Sleep(19 * time.Second)
			p.Tick(time.Now())
			synctest.Wait()
			if n.end(loser) != nil {
				t.Error("closed too early")
			}
			time.Sleep(time.Second)
			p.Tick(both.Add(20 * time.Second))
			p.Tick(both.Add(20 * time.Second))
			synctest.Wait()
			var closed *CloseError
			if !errors.As(n.end(loser), &closed) || closed.Code != CodeRedundant || n.end(winner) != nil || p.Get(c.id) != winner {
				t.Errorf("%v: loser %v, winner %v", c.id[0], n.end(loser), n.end(winner))
			}
			// A second inbound connection replaces the first; the end of the first changes nothing.
			second := w.accept(c.id, Relay)
			third := w.accept(c.id, Relay)
			synctest.Wait()
			replaced := second
			if c.inboundWins && n.end(in) == nil {
				t.Error("first inbound connection not replaced")
			}
			if !errors.As(n.end(replaced), &closed) || closed.Code != CodeNormal || n.end(third) != nil {
				t.Errorf("replaced: %v", n.end(replaced))
			}
			third.end(ErrIdle)
			out.end(ErrIdle)
			if p.Get(c.id) != nil {
				t.Error("something is left")
			}
		}
		if s := p.Status(); len(s) != 0 {
			t.Errorf("left: %+v", s)
		}
	})
}

// While a dial is pending an inbound connection serves what waits.
func TestPeersInboundDuringDial(t *testing.T) {
	inPeers(t, func(t *testing.T, p *Peers, w *fakeWire, n *node) {
		id := keyAt(1)
		w.set(func(context.Context, key.Public) error { return errors.New("broken") })
		p.Command(id, "first", nil)
		result := make(chan error, 1)
		go func() {
			_, err := p.Request(context.Background(), id, "second", nil)
			result <- err
		}()
		time.Sleep(100 * time.Millisecond)
		c := w.accept(id, Relay)
		synctest.Wait()
		if got := c.noted(); !slices.Equal(got, []string{"first ", "second "}) {
			t.Errorf("sent %q", got)
		}
		if err := <-result; err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Second)
		if p.Get(id) != c || p.Connect(id) != nil {
			t.Error("the failed dial has taken the connection")
		}
	})
}

// Connections that are not between relays pass through to the handler and are not kept; the handler sees Opened first and Closed last, once each.
func TestPeersUntracked(t *testing.T) {
	inPeers(t, func(t *testing.T, p *Peers, w *fakeWire, n *node) {
		client := w.accept(key.Public{}, Client)
		bootstrap := w.accept(key.Public{}, Bootstrap)
		if len(p.Connected()) != 0 || len(p.Status()) != 0 {
			t.Error("kept")
		}
		client.Close(0)
		synctest.Wait()
		if n.calls[client] != "oc" || n.calls[bootstrap] != "o" {
			t.Errorf("calls %q, %q", n.calls[client], n.calls[bootstrap])
		}
		w.handler.Datagram(bootstrap, bufferOf([]byte("x")))
		w.handler.Request(bootstrap, NewRequest("y", nil, func([]byte, bool) {}))
		if len(n.datagrams) != 1 || !slices.Equal(n.requests, []string{"y"}) {
			t.Error("not passed on")
		}
	})
}

// stillbornWire's connections are closed before Dial returns them, without having been announced.
type stillbornWire struct{ *fakeWire }

func (w stillbornWire) Dial(ctx context.Context, to netip.AddrPort, remote key.Public, kind Kind) (Conn, error) {
	c, err := w.fakeWire.Dial(ctx, to, remote, kind)
	if err == nil {
		c.(*fakeConn).end(ErrReset)
	}
	return c, err
}

func TestPeersStillborn(t *testing.T) {
	inPeers(t, func(t *testing.T, p *Peers, w *fakeWire, n *node) {
		p.wire = stillbornWire{w}
		_, err := p.Request(context.Background(), keyAt(1), "x", nil)
		if !errors.Is(err, ErrUnreachable) {
			t.Errorf("request: %v", err)
		}
		if s := p.Status(); p.Get(keyAt(1)) != nil || len(s) != 1 || s[0].Failures != 1 {
			t.Errorf("%+v", s)
		}
		synctest.Wait()
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, calls := range n.calls {
			if calls != "oc" {
				t.Errorf("handler calls %q", calls)
			}
		}
		if len(n.calls) != 1 {
			t.Errorf("%d connections", len(n.calls))
		}
	})
}

// What is wanted before Run is dialled when it starts.
func TestPeersBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, n := newFakeWire(true), &node{t: t}
		known := true
		p := NewPeers(keyAt(100), Client, w, func(id key.Public) (netip.AddrPort, bool) { return addrOf(1), known || id != keyAt(2) }, n)
		if err := p.Connect(keyAt(1)); err != nil {
			t.Fatal(err)
		}
		p.Command(keyAt(1), "early", nil)
		p.Command(keyAt(2), "lost", nil)
		failed := make(chan error, 1)
		go func() {
			_, err := p.Request(context.Background(), keyAt(2), "x", nil)
			failed <- err
		}()
		synctest.Wait()
		known = false
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- p.Run(ctx) }()
		if err := <-failed; err != ErrUnknown {
			t.Errorf("no contact any more: %v", err)
		}
		time.Sleep(2 * time.Second)
		if got := p.Get(keyAt(1)).(*fakeConn).noted(); !slices.Equal(got, []string{"early "}) || w.dials() != 1 {
			t.Errorf("%q", got)
		}
		cancel()
		<-ended
		if err := p.Run(t.Context()); err == nil {
			t.Error("Run ran twice")
		}
	})
}

// Two relays that dial each other at the same moment end up with the same one of two connections, and lose nothing on the way.
func TestPeersBothDial(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		type end struct {
			node
			peers *Peers
			stop  func()
		}
		ends := [2]*end{{}, {}}
		for i, e := range ends {
			e.t, e.secret, e.addr = t, key.Generate(), addrOf(i+1)
			q, err := NewQUIC(n.socket(e.addr), Config{Secret: e.secret, Accept: true, Registered: allowAll})
			if err != nil {
				t.Fatal(err)
			}
			other := ends[1-i]
			e.peers = NewPeers(e.secret.Public(), Relay, q, func(key.Public) (netip.AddrPort, bool) { return other.addr, true }, &e.node)
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error)
			go func() { ended <- e.peers.Run(ctx) }()
			e.stop = func() {
				cancel()
				<-ended
			}
		}
		ids := [2]key.Public{ends[0].secret.Public(), ends[1].secret.Public()}
		small := 0
		if ids[1].Compare(ids[0]) < 0 {
			small = 1
		}
		traffic, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for i, e := range ends {
			wg.Go(func() {
				for traffic.Err() == nil {
					if got, err := e.peers.Request(context.Background(), ids[1-i], "echo", []byte("x")); err != nil || string(got) != "x" {
						t.Errorf("%d: %q, %v", i, got, err)
					}
					time.Sleep(100 * time.Millisecond)
				}
			})
		}
		for range 41 {
			time.Sleep(time.Second)
			for _, e := range ends {
				e.peers.Tick(time.Now())
			}
		}
		stop()
		wg.Wait()
		for i, e := range ends {
			c := e.peers.Get(ids[1-i])
			if c == nil || c.Outbound() != (i == small) || len(e.conns()) != 2 {
				t.Errorf("%d: preferred %v of %d connections", i, c, len(e.conns()))
				continue
			}
			for _, other := range e.conns() {
				var closed *CloseError
				if lost := errors.As(e.end(other), &closed) && closed.Code == CodeRedundant; lost == (other == c) {
					t.Errorf("%d: outbound %v: %v", i, other.Outbound(), e.end(other))
				}
			}
		}
		for _, e := range ends {
			e.stop()
		}
	})
}
