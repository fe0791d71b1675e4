package path

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
)

// simNet is a network of relays in memory and fake time: every message sleeps for the latency in a goroutine of its own and is then handed over. It
// plays link and router for the package: connections, requests with replies, who is told of what.
type simNet struct {
	t       testing.TB
	latency time.Duration
	store   *netdb.Store

	mu     sync.Mutex
	relays []*simRelay
	byID   map[key.Public]*simRelay
}

type simRelay struct {
	net    *simNet
	sec    *key.Secret
	id     key.Public
	relay  *Relay // replaced by restart
	local  *localTap
	silent bool          // takes everything and answers nothing
	shirks atomic.Bool   // as an edge: takes part in builds and answers for itself, and passes nothing on
	far    time.Duration // as an edge: this much farther; set before anything is sent
	self   *simPeer
}

// simPeer stands for a relay's connection with another relay, as the Link of HandleRequest.
type simPeer struct{ Link }

var errSim = errors.New("nothing came")

func newSimNet(t testing.TB, relays int, latency time.Duration) *simNet {
	store, err := netdb.OpenStore("", key.Public{}, false, netdb.Rules{Private: true, Network: 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := &simNet{t: t, latency: latency, store: store, byID: make(map[key.Public]*simRelay)}
	for i := range relays {
		r := &simRelay{net: n, sec: key.Generate(), local: new(localTap), self: new(simPeer)}
		r.id = r.sec.Public()
		r.relay = NewRelay(r.sec, simMesh{n, r}, r.local, Limits{}, nil)
		n.relays = append(n.relays, r)
		n.byID[r.id] = r
		n.know(r, netip.AddrFrom4([4]byte{10, 0, byte(i), 1}))
	}
	return n
}

// know puts a relay's contact into the clients' store.
func (n *simNet) know(r *simRelay, at netip.Addr) {
	c := netdb.SignRelayContact(r.sec, netdb.RelayContact{
		ID: r.id, Addr: netip.AddrPortFrom(at, 1090), Time: time.Now().Truncate(time.Second), Version: [3]uint8{1, 0, 2}, Network: 2,
	})
	if stored, _ := n.store.Put(c); !stored {
		n.t.Fatal("contact not stored")
	}
}

func (n *simNet) close() {
	for _, r := range n.relays {
		r.get().Close()
	}
}

func (n *simNet) tick(now time.Time) {
	for _, r := range n.relays {
		r.get().Tick(now)
	}
}

func (r *simRelay) get() *Relay {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	return r.relay
}

func (r *simRelay) setSilent(on bool) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	r.silent = on
}

func (r *simRelay) isSilent() bool {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	return r.silent
}

// silence makes all relays silent, or none.
func (n *simNet) silence(on bool) {
	for _, r := range n.relays {
		r.setSilent(on)
	}
}

// restart makes the relay forget everything; its connections stay, so that only its answers tell.
func (r *simRelay) restart() {
	r.net.mu.Lock()
	old := r.relay
	r.relay = NewRelay(r.sec, simMesh{r.net, r}, r.local, Limits{}, nil)
	r.net.mu.Unlock()
	old.Close()
}

// request carries a request to a handler and its reply back.
func (n *simNet) request(ctx context.Context, deliver func(reply func([]byte, bool))) ([]byte, error) {
	back := make(chan answer, 1)
	go func() {
		time.Sleep(n.latency)
		deliver(func(body []byte, fail bool) {
			go func() {
				time.Sleep(n.latency)
				back <- answer{body, fail}
			}()
		})
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case a := <-back:
		if a.fail {
			return nil, failReply(a.body)
		}
		return a.body, nil
	}
}

func (n *simNet) later(f func()) {
	go func() {
		time.Sleep(n.latency)
		f()
	}()
}

// simMesh is a relay's way to the others.
type simMesh struct {
	net  *simNet
	from *simRelay
}

func (m simMesh) to(id key.Public) (*simRelay, bool) {
	r := m.net.byID[id]
	return r, r != nil
}

func (m simMesh) Datagram(to key.Public, b *packet.Buffer) {
	r, ok := m.to(to)
	if !ok || r.isSilent() || m.from.isSilent() {
		b.Release()
		return
	}
	m.net.later(func() { r.get().Datagram(b) })
}

func (m simMesh) Command(to key.Public, name string, body []byte) error {
	r, ok := m.to(to)
	if !ok {
		return errSim
	}
	body = bytes.Clone(body)
	if !r.isSilent() && !m.from.isSilent() {
		m.net.later(func() { r.get().HandleRequest(m.from.self, m.from.id, name, body, nil) })
	}
	return nil
}

func (m simMesh) Request(ctx context.Context, to key.Public, name string, body []byte) ([]byte, error) {
	r, ok := m.to(to)
	if !ok {
		return nil, errSim
	}
	body = bytes.Clone(body)
	return m.net.request(ctx, func(reply func([]byte, bool)) {
		if !r.isSilent() && !m.from.isSilent() {
			r.get().HandleRequest(m.from.self, m.from.id, name, body, reply)
		}
	})
}

// simClient is a client with its connections.
type simClient struct {
	*Client
	net   *simNet
	links map[key.Public]*simUp
}

// simUp is a client's connection as the client sees it, simDown as the relay does.
type simUp struct {
	client *simClient
	relay  *simRelay
	down   *simDown
	closed atomic.Bool
}

type simDown struct{ up *simUp }

func (n *simNet) client(opt Options) *simClient {
	opt.UniqueRange = 24
	return &simClient{Client: NewClient(ClientConfig{Options: opt, Store: n.store}), net: n, links: make(map[key.Public]*simUp)}
}

func (c *simClient) dial(r *simRelay) *simUp {
	l := &simUp{client: c, relay: r}
	l.down = &simDown{l}
	c.links[r.id] = l
	c.EdgeUp(r.id, l)
	return l
}

// hangUp closes a connection at both ends.
func (l *simUp) hangUp() {
	l.closed.Store(true)
	delete(l.client.links, l.relay.id)
	l.relay.get().LinkClosed(l.down)
	l.client.EdgeDown(l)
}

func (l *simUp) dead() bool { return l.closed.Load() || l.relay.isSilent() }

func (l *simUp) Send(b *packet.Buffer) {
	if l.dead() || l.relay.shirks.Load() {
		b.Release()
		return
	}
	l.client.net.later(func() { l.relay.get().Datagram(b) })
}

func (l *simUp) Command(name string, body []byte) error {
	body = bytes.Clone(body)
	if !l.dead() {
		l.client.net.later(func() { l.relay.get().HandleRequest(l.down, key.Public{}, name, body, nil) })
	}
	return nil
}

func (l *simUp) Request(ctx context.Context, name string, body []byte) ([]byte, error) {
	if l.closed.Load() {
		return nil, errSim
	}
	body = bytes.Clone(body)
	return l.client.net.request(ctx, func(reply func([]byte, bool)) {
		time.Sleep(l.relay.far)
		switch {
		case l.dead():
		case name == nameEdge: // router answers it
			reply([]byte("pong"), false)
		case l.relay.shirks.Load() && name != nameBuild:
		default:
			l.relay.get().HandleRequest(l.down, key.Public{}, name, body, reply)
		}
	})
}

func (d *simDown) Send(b *packet.Buffer) {
	if d.up.dead() {
		b.Release()
		return
	}
	d.up.client.net.later(func() { d.up.client.Datagram(d.up, b) })
}

func (d *simDown) Command(name string, body []byte) error {
	body = bytes.Clone(body)
	if !d.up.dead() {
		d.up.client.net.later(func() { d.up.client.HandleRequest(d.up, name, body, nil) })
	}
	return nil
}

func (d *simDown) Request(ctx context.Context, name string, body []byte) ([]byte, error) {
	body = bytes.Clone(body)
	return d.up.client.net.request(ctx, func(reply func([]byte, bool)) {
		if !d.up.dead() {
			d.up.client.HandleRequest(d.up, name, body, reply)
		}
	})
}

// watcher is an Owner that records, and sees to it that it is told one thing at a time.
type watcher struct {
	t         testing.TB
	busy      atomic.Bool
	mu        sync.Mutex
	ups       int
	downs     map[Reason]int
	lastDown  time.Time
	datagrams int
	onMessage func(p *Path, b *packet.Buffer)
	onControl func(p *Path, typ byte, msg []byte, nonce [24]byte)
}

func newWatcher(t testing.TB) *watcher { return &watcher{t: t, downs: make(map[Reason]int)} }

func (w *watcher) enter() func() {
	if w.busy.Swap(true) {
		w.t.Error("two events at once")
	}
	w.mu.Lock()
	return func() {
		w.mu.Unlock()
		w.busy.Store(false)
	}
}

func (w *watcher) PathUp(p *Path) {
	defer w.enter()()
	w.ups++
	if !p.Active(time.Now()) && p.state.Load() == pathBuilding {
		w.t.Error("told of a path under way")
	}
}

func (w *watcher) PathDown(p *Path, why Reason) {
	defer w.enter()()
	w.downs[why]++
	w.lastDown = time.Now()
	if p.Active(time.Now()) {
		w.t.Error("told of the end of a path that is active")
	}
}

func (w *watcher) PathDatagram(p *Path, b *packet.Buffer) {
	defer w.enter()()
	w.datagrams++
	if w.onMessage != nil {
		w.onMessage(p, b)
		return
	}
	b.Release()
}

func (w *watcher) PathControl(p *Path, typ byte, msg []byte, nonce [24]byte) {
	defer w.enter()()
	if w.onControl != nil {
		w.onControl(p, typ, msg, nonce)
	}
}

// counts gives a consistent copy of what was seen.
func (w *watcher) counts() (ups int, downs map[Reason]int, last time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	downs = make(map[Reason]int)
	for k, v := range w.downs {
		downs[k] = v
	}
	return w.ups, downs, w.lastDown
}

// run ticks network and clients for d of fake time; each, which may be nil, is called after each tick.
func (n *simNet) run(d time.Duration, clients []*simClient, each func(now time.Time)) {
	end := time.Now().Add(d)
	for time.Now().Before(end) {
		time.Sleep(250 * time.Millisecond)
		now := time.Now()
		n.tick(now)
		for _, c := range clients {
			c.Tick(now)
		}
		synctest.Wait()
		if each != nil {
			each(now)
		}
	}
}

// world runs a test in a bubble with a network and one client with four edges.
func world(t *testing.T, relays int, opt Options, test func(t *testing.T, n *simNet, c *simClient)) {
	t.Helper()
	before := packet.InUse()
	synctest.Test(t, func(t *testing.T) {
		n := newSimNet(t, relays, 20*time.Millisecond)
		c := n.client(opt)
		for _, r := range n.relays[:opt.Edges] {
			c.dial(r)
		}
		test(t, n, c)
		c.Close()
		n.close()
		time.Sleep(time.Minute) // messages under way
		synctest.Wait()
	})
	if after := packet.InUse(); after != before {
		t.Errorf("%d buffers leaked", after-before)
	}
}

func (p *Path) usesAny(r *simRelay) bool { return slices.Contains(p.relays, r.id) }

func describePaths(p *Pool) string {
	s := ""
	for _, i := range p.List() {
		s += fmt.Sprintf("\n\t%s %s %d hops until %s, missed %d", i.Kind, i.State, len(i.Hops), i.Expiry.Format("15:04:05"), i.Missed)
	}
	return s
}
