package router

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/config"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/oxend"
	"lokinetd/router/oxend/standin"
	"lokinetd/router/path"
)

// oxendRig is relay 0 of a public network beside an oxend, which registers so many relays.
type oxendRig struct {
	*rig
	o *standin.Oxend
}

// newOxendRig makes it inside a bubble; store may be nil. Of the other relays there are no contacts.
func newOxendRig(t *testing.T, relays int, store *netdb.Store) *oxendRig {
	o := &standin.Oxend{Secret: secret(0)}
	o.SetRelays(testRelays(relays)...)
	return runOxendRig(t, o, store)
}

func runOxendRig(t *testing.T, o *standin.Oxend, store *netdb.Store) *oxendRig {
	c := oxend.NewDialed(o.Dial, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	w := newFakeWire()
	n := runNode(t, NodeConfig{Secret: secret(0), Public: relayAddr(0), Wire: w, Store: store, Network: &netdb.NetworkFile{Network: testNetwork}, Oxend: c})
	return &oxendRig{&rig{t, n, n.relay, w}, o}
}

// asked gives the bodies of the requests of one command since the last call, and forgets the others.
func (g *oxendRig) asked(command string) (bodies []string) {
	for _, q := range g.o.Asked() {
		if q.Command == command {
			bodies = append(bodies, q.Body)
		}
	}
	return bodies
}

// sorted are the relays of testRelays as the store gives them.
func sorted(n int) []key.Public {
	return slices.SortedFunc(slices.Values(testRelays(n)), key.Public.Compare)
}

// others are the relays of testRelays but ours.
func others(n int) []key.Public {
	return slices.DeleteFunc(testRelays(n), func(id key.Public) bool { return id == secret(0).Public() })
}

// TestOxend: what a relay of the public network knows, it knows from its oxend.
func TestOxend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newOxendRig(t, 6, nil)
		s := g.n.store
		if !slices.Equal(s.RegisteredIDs(), sorted(6)) {
			t.Fatal(s.RegisteredIDs())
		}
		if got := g.asked("admin.session_router_ping"); len(got) != 1 || !strings.HasSuffix(got[0], `"version":[1,0,2]}`) {
			t.Error(got)
		}
		var st control.Status
		g.r.status(&st)
		if st.State != control.Ready || st.Network.Known != 6 {
			t.Errorf("%+v", st)
		}

		// The relay's own word goes nowhere; a new list replaces the old one, and a new network file, which is of bootstraps, none.
		g.o.SetRelays(others(8)...)
		synctest.Wait()
		g.n.SetNetwork(&netdb.NetworkFile{Network: testNetwork})
		if len(s.RegisteredIDs()) != 7 {
			t.Error(s.RegisteredIDs())
		}
		st = control.Status{}
		if g.r.status(&st); s.Registered(secret(0).Public()) || st.State != control.Offline || !strings.Contains(st.Reason, "not list this relay") {
			t.Errorf("%+v", st)
		}

		// Names.
		hash, sealed, nonce := [32]byte{7}, []byte(strings.Repeat("v", 48)), [24]byte{8}
		g.o.SetName(hash, sealed, nonce)
		ask := func(hash [32]byte) reply {
			return g.over(path.ID{1}, netdb.MethodResolveSNS, netdb.EncodeResolveSNS(hash))
		}
		expect(t, "a name", ask(hash), reply{body: string(netdb.EncodeResolvedSNS(sealed, &nonce)), came: true})
		expect(t, "no name", ask([32]byte{9}), said1(netdb.StatusNotFound))
		expect(t, "bad request", g.over(path.ID{1}, netdb.MethodResolveSNS, []byte("de")), said1(netdb.StatusError))

		// oxend goes away: the list stays, names have no answer.
		g.o.Stop()
		var r reply
		g.r.PathRequest(path.ID{1}, netdb.MethodResolveSNS, netdb.EncodeResolveSNS(hash), func(body []byte) { r = reply{body: string(body), came: true} })
		time.Sleep(15 * time.Second)
		synctest.Wait()
		expect(t, "a name without an oxend", r, said1(netdb.StatusError))
		g.o.SetRelays(testRelays(4)...)
		if len(s.RegisteredIDs()) != 7 {
			t.Error(s.RegisteredIDs())
		}
		st = control.Status{}
		if g.r.status(&st); !strings.Contains(st.Reason, "oxend does not answer") {
			t.Errorf("%+v", st)
		}
		g.o.Start()
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if !slices.Equal(s.RegisteredIDs(), sorted(4)) {
			t.Error(s.RegisteredIDs())
		}
		g.o.Stop()
		time.Sleep(time.Second)
		st = control.Status{}
		if g.r.status(&st); st.State != control.Ready || len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], "oxend does not answer") {
			t.Errorf("%+v", st)
		}
	})
}

// TestNoList: an oxend that is not there at the start: who is known counts as registered after 10 s, until there is a list.
func TestNoList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := netdb.OpenStore("", secret(0).Public(), true, netdb.Rules{Network: testNetwork}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for n := range 5 {
			store.Put(relayContact(n, time.Now()))
		}
		store.Put(relayContact(5, time.Now().Add(-netdb.RelayLifetime+5*time.Second))) // expires before
		o := &standin.Oxend{Secret: secret(0)}
		o.SetRelays(testRelays(9)...)
		o.Stop()
		runOxendRig(t, o, store)
		time.Sleep(10*time.Second - 1)
		synctest.Wait()
		if ids := store.RegisteredIDs(); ids != nil {
			t.Error(ids)
		}
		time.Sleep(1)
		synctest.Wait()
		if ids := store.RegisteredIDs(); !slices.Equal(ids, sorted(5)) {
			t.Error(ids)
		}
		o.Start()
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if ids := store.RegisteredIDs(); !slices.Equal(ids, sorted(9)) {
			t.Error(ids)
		}
	})
}

// TestReachability: every registered relay is tested as a client would reach it, the result reported; who fails is tested again, ever later.
func TestReachability(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const relays, dead, mute, failing, old, unknown = 10, 1, 2, 3, 4, 5
		g := newOxendRig(t, relays, nil)
		tests := map[int][]time.Duration{} // since the start
		var mu sync.Mutex
		start := time.Now()
		alive := false // the dead one
		g.wire.dial = func(ctx context.Context, to netip.AddrPort, remote key.Public, kind link.Kind) (link.Conn, error) {
			if kind == link.Relay {
				return nil, errNobody
			}
			mu.Lock()
			defer mu.Unlock()
			n := slices.IndexFunc(testNumbers(relays), func(n int) bool { return secret(n).Public() == remote })
			if kind != link.Client || to != relayAddr(n) {
				t.Errorf("dials %v of relay %d as %v", to, n, kind)
			}
			tests[n] = append(tests[n], time.Since(start))
			if n == dead && !alive {
				return nil, errNobody
			}
			c := newConn(kind, remote)
			if n != mute {
				c.answer = func(_ context.Context, name string, body []byte) ([]byte, error) {
					if n == failing {
						return nil, &link.ReplyError{}
					}
					return nil, nil
				}
			}
			context.AfterFunc(t.Context(), func() {
				if said := c.heard(); len(said) != 1 || said[0].name != "ping" || said[0].body != "" {
					t.Errorf("said to relay %d: %q", n, said)
				}
			})
			go func() {
				<-time.After(time.Minute)
				select {
				case <-c.done:
				default:
					t.Errorf("the connection to relay %d is still up", n)
				}
			}()
			return c, nil
		}
		for n := range relays {
			at := time.Now()
			switch n {
			case unknown:
				continue
			case old:
				at = at.Add(-netdb.RelayOutdated)
			}
			g.n.store.Put(relayContact(n, at))
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		reports := map[string]int{}
		for _, body := range g.asked("admin.report_peer_status") {
			reports[body]++
		}
		mu.Lock()
		for n := range relays {
			id := secret(n).Public()
			passed := reports[fmt.Sprintf(`{"passed":true,"pubkey":"%x","type":"srouter"}`, id[:])]
			failed := reports[fmt.Sprintf(`{"passed":false,"pubkey":"%x","type":"srouter"}`, id[:])]
			switch n {
			case 0, old, unknown:
				if passed+failed+len(tests[n]) != 0 {
					t.Errorf("relay %d: %d passed, %d failed, %v", n, passed, failed, tests[n])
				}
			case dead, mute, failing: // after 10, 20, 30 ... s, each about 3 s off; the last may still wait for an answer
				if passed != 0 || failed > len(tests[n]) || failed < len(tests[n])-1 || len(tests[n]) < 5 || len(tests[n]) > 9 {
					t.Errorf("relay %d: %d passed, %d failed, %v", n, passed, failed, tests[n])
				}
			default: // 3 a second together
				if failed != 0 || passed != len(tests[n]) || passed < 210 || passed > 225 {
					t.Errorf("relay %d: %d passed, %d failed, %d tests", n, passed, failed, len(tests[n]))
				}
			}
		}
		alive = true
		before := len(tests[dead])
		mu.Unlock()
		time.Sleep(4 * time.Minute)
		synctest.Wait()
		mu.Lock()
		if n := len(tests[dead]) - before; n < 50 {
			t.Errorf("a relay that is back: %d tests", n)
		}
		clear(tests)
		mu.Unlock()

		// Who is not registered tests nobody.
		g.o.SetRelays(others(relays)...)
		synctest.Wait()
		time.Sleep(time.Minute)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(tests) != 0 {
			t.Error("tests of a relay that is not registered:", tests)
		}
	})
}

func testNumbers(n int) (all []int) {
	for i := range n {
		all = append(all, i)
	}
	return all
}

// TestWatch: what is complained about, and when.
func TestWatch(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const never = -1
	for _, x := range []struct {
		name       string
		registered func(minute float64) bool
		tested     func(minute float64) float64 // the minute of the last test
		want       []float64
		words      string
	}{
		{"all is well", func(float64) bool { return true }, func(m float64) float64 { return m - 1 }, nil, ""},
		{"not registered", func(float64) bool { return false }, func(m float64) float64 { return m }, []float64{0.5, 5.5, 10.5, 15.5, 20.5, 25.5}, "not registered"},
		{"registered, never tested", func(float64) bool { return true }, func(float64) float64 { return never }, []float64{16, 21, 26}, "tested"},
		{"registered later, never tested", func(m float64) bool { return m >= 10 }, func(float64) float64 { return never }, []float64{0.5, 5.5, 25.5}, ""},
		{"tested until 4", func(float64) bool { return true }, func(m float64) float64 { return min(m, 4) }, []float64{6.5, 11.5, 16.5, 21.5, 26.5}, "tested"},
		{"tested again from 8", func(float64) bool { return true }, func(m float64) float64 {
			if m > 8 {
				return m
			}
			return min(m, 4)
		}, []float64{6.5}, "tested"},
		{"registered again, tested before", func(m float64) bool { return m < 3 || m > 5 }, func(m float64) float64 { return min(m, 3) }, []float64{3, 21, 26}, ""},
	} {
		var w watch
		var got []float64
		for m := 0.5; m < 30; m += 0.5 {
			at := func(m float64) time.Time { return start.Add(time.Duration(m * float64(time.Minute))) }
			if text := w.look(at(m), x.registered(m), at(x.tested(m))); text != "" {
				got = append(got, m)
				if !strings.Contains(text, x.words) {
					t.Errorf("%s: %s", x.name, text)
				}
			}
		}
		if !slices.Equal(got, x.want) {
			t.Errorf("%s: complaints at %v, want %v", x.name, got, x.want)
		}
	}
}

// TestTested: a ping of a client's link counts as a test of us, one of a relay's does not.
func TestTested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newOxendRig(t, 3, nil)
		for _, kind := range []link.Kind{link.Relay, link.Client} {
			expect(t, "ping", g.ask(g.connect(kind, 1), "ping", nil), reply{body: "pong", came: true})
			if got := g.r.beside.pinged.Load() != 0; got != (kind == link.Client) {
				t.Errorf("%v: counts: %v", kind, got)
			}
		}
	})
}

// TestReachQUIC: one relay tests another over real links: over a client's, so that the other notices.
func TestReachQUIC(t *testing.T) {
	o := &standin.Oxend{Secret: secret(0)}
	network := &netdb.NetworkFile{Network: testNetwork, Private: true}
	relay := func(n int) *relay {
		store, err := netdb.OpenStore("", secret(n).Public(), true, network.Rules(), nil)
		if err != nil {
			t.Fatal(err)
		}
		store.SetRegistered(testRelays(2))
		pc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		wire, err := link.NewQUIC(pc, link.Config{Secret: secret(n), Accept: true, Registered: store.Registered})
		if err != nil {
			t.Fatal(err)
		}
		node, err := NewNode(NodeConfig{Secret: secret(n), Public: wire.LocalAddr(), Wire: wire, Store: store, Network: network, Oxend: oxend.NewDialed(o.Dial, nil)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- node.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		return node.relay
	}
	a, b := relay(0), relay(1)
	contact := SignContact(secret(1), b.n.config.Public, testNetwork, time.Now())
	if !a.beside.reach(t.Context(), contact) || b.beside.pinged.Load() == 0 {
		t.Error("the other relay is not reached, or does not notice")
	}
	if a.beside.reach(t.Context(), SignContact(secret(2), b.n.config.Public, testNetwork, time.Now())) {
		t.Error("a relay with another key passes")
	}
}

// TestPublicRelay: a daemon that is to be a relay of the public network starts with the key that its oxend gives; without one it ends, at once when it is told to.
func TestPublicRelay(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "oxend.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	o := &standin.Oxend{Secret: secret(3)}
	go o.Listen(l)
	defer l.Close()
	text := fmt.Sprintf("role = \"relay\"\ndata_dir = %q\n[relay]\nlisten = \"127.0.0.1:0\"\npublic_address = \"20.0.0.1\"\noxend = \"ipc://%s\"\n", t.TempDir(), socket)
	c, err := config.Parse([]byte(strings.Replace(text, ":0\"", ":1\"", 1)), "x.toml")
	if err != nil {
		t.Fatal(err)
	}
	c.Relay.Listen = netip.MustParseAddrPort("127.0.0.1:0")
	open := func(ctx context.Context) (*host, error) {
		log := slog.New(slog.NewTextHandler(io.Discard, nil))
		h := &host{config: c, dir: folder(c.DataDir), log: log, parts: newStack(log)}
		h.current.Store(c)
		t.Cleanup(func() { h.parts.stop() })
		return h, h.openNode(ctx)
	}
	h, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := h.node.Run(ended); err != nil {
		t.Error(err)
	}
	if h.node.relay.self != secret(3).Public() || h.node.relay.beside == nil {
		t.Error(h.node.relay.self)
	}
	o.Stop()
	l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := open(ctx); err == nil || !strings.Contains(err.Error(), "relay.oxend: ipc://"+socket) {
		t.Error(err)
	}
}
