package testnet

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

	"lokinetd/router"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
)

// A liar is a relay that carries paths as it should, or nobody would use it, and lies in all that it is asked. All liars of a network lie together: about who is a
// relay, to bring in relays that nobody registered; and about names, to bring in a client of theirs.
type liar struct {
	*Host
	style   liarStyle
	plot    *plot
	store   *netdb.Store
	peers   *link.Peers
	transit *path.Relay
	dialled atomic.Int64 // connections that others opened to us
}

// liarStyle is what a liar does with a question where the plot gives no better answer.
type liarStyle int

const (
	schemer  liarStyle = iota // answers as the plot wants it
	silent                    // does not answer
	bloated                   // answers with three megabytes
	backward                  // answers with what was true an hour ago, and with what is damaged
)

// plot is what the liars have agreed on.
type plot struct {
	ids      []key.Public    // relays that they name: themselves, and some that nobody registered
	contacts [][]byte        // of the relays that nobody registered
	stale    [][]byte        // contacts of honest relays as they were, with other addresses
	names    netdb.NameIndex // every name is their client's
	asked    atomic.Int64
}

func newLiar(n *Net, secret *key.Secret, addr netip.AddrPort, style liarStyle, p *plot) *liar {
	return &liar{Host: &Host{net: n, relay: true, Secret: secret, addr: addr}, style: style, plot: p}
}

// start runs the liar in place of a router.Node, until the test ends.
func (l *liar) start(t *testing.T) {
	var err error
	self := l.Secret.Public()
	if l.store, err = netdb.OpenStore("", self, true, l.net.file.Rules(), nil); err != nil {
		t.Fatal(err)
	}
	l.store.SetRegistered(l.net.file.Relays)
	l.store.Bootstrapped(l.net.file.Contacts, false)
	l.wire = l.net.medium.newWire(t, l.addr, l.Secret, true, l.store.Registered)
	contact := func(id key.Public) (netip.AddrPort, bool) {
		if c := l.store.Get(id); c != nil {
			return c.Addr, true
		}
		return netip.AddrPort{}, false
	}
	l.peers = link.NewPeers(self, link.Relay, l.wire, contact, l)
	l.transit = path.NewRelay(l.Secret, l.peers, l, path.Limits{}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var parts sync.WaitGroup
	parts.Go(func() { l.peers.Run(ctx) })
	parts.Go(func() {
		for ctx.Err() == nil {
			l.transit.Tick(time.Now())
			l.peers.Tick(time.Now())
			l.gossip()
			time.Sleep(time.Second)
		}
		l.transit.Close()
	})
	go func() {
		defer close(done)
		parts.Wait()
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// gossip tells all relays of those that nobody registered, and what is damaged.
func (l *liar) gossip() {
	for _, c := range l.peers.Connected() {
		for _, raw := range l.plot.contacts {
			c.Command(netdb.MethodGossipRC, raw)
		}
		c.Command(netdb.MethodGossipRC, l.plot.stale[0])
	}
}

func (l *liar) Opened(c link.Conn) {
	if !c.Outbound() {
		l.dialled.Add(1)
	}
}

func (l *liar) Closed(c link.Conn, err error) {
	if c.Kind() == link.Client {
		l.transit.LinkClosed(c)
	}
}

func (l *liar) Datagram(c link.Conn, b *packet.Buffer) { l.transit.Datagram(b) }

func (l *liar) Request(c link.Conn, q *link.Request) {
	answer := func(body []byte, fail bool) {
		if fail {
			q.Fail(body)
		} else {
			q.Reply(body)
		}
	}
	if l.transit.HandleRequest(c, c.Remote(), q.Name, q.Body, answer) || q.Name == netdb.MethodGossipRC {
		return
	}
	l.lie(q.Name, func(body []byte) { q.Reply(body) })
}

func (l *liar) PathRequest(_ path.ID, method string, body []byte, reply func([]byte)) {
	if method == netdb.MethodResolveSNS && l.style == schemer {
		l.plot.asked.Add(1)
		if hash, err := netdb.DecodeResolveSNS(body); err == nil {
			reply(l.plot.names.Reply(hash))
		}
		return
	}
	l.lie(method, reply)
}

// lie answers a question of a client or of another relay.
func (l *liar) lie(method string, reply func([]byte)) {
	l.plot.asked.Add(1)
	p := l.plot
	switch {
	case method == netdb.MethodPublishCC && l.style != silent:
		reply(netdb.Status(netdb.StatusOK)) // and keeps nothing
	case l.style == silent:
	case l.style == bloated:
		reply(bytes.Repeat([]byte("d1:"), 1_000_000))
	case method == netdb.MethodFetchRIDs:
		reply(netdb.EncodeRIDs(p.ids))
	case method == netdb.MethodFetchRCs && l.style == backward:
		reply(netdb.EncodeRCs(p.stale))
	case method == netdb.MethodFetchRCs:
		reply(netdb.EncodeRCs(p.contacts))
	case method == netdb.MethodBootstrapRCs:
		body, _ := netdb.EncodeBootstrapReply(p.contacts)
		reply(body)
	default:
		reply(netdb.Status(netdb.StatusNotFound))
	}
}

func (l *liar) SessionControl(*path.Terminal, byte, []byte, [24]byte) {}
func (l *liar) SessionDatagram(_ *path.Terminal, b *packet.Buffer)    { b.Release() }

// lies is a network in which some relays lie.
type lies struct {
	*Net
	plot       *plot
	all        []*liar // those that are registered first
	registered map[key.Public]bool
	lying      map[key.Public]bool
	wrong      key.Public // whom the liars' names lead to
}

// newLies starts the relays; of the clients the first are services with names. None of them has a key whose four locations all lie: such a contact nobody can find (threat-model.md), and with 6 of 20 relays
// it is 3 keys of 1,000.
func newLies(t *testing.T, styles []liarStyle, relays, liars, strangers, services, clients int) *lies {
	s := seed(t)
	t.Logf("seed %d", s)
	n := &Net{t: t, medium: newFabric(s, 10*time.Millisecond, 0)}
	n.file = &netdb.NetworkFile{Name: "lies", Network: 42, Serial: 1, Names: map[string]key.Public{}}
	crime := &plot{}
	l := &lies{Net: n, plot: crime, registered: map[key.Public]bool{}, lying: map[key.Public]bool{}, wrong: key.Generate().Public()}
	wrongs := map[string]key.Public{}

	for i := range relays + strangers {
		secret, addr := key.Generate(), netip.AddrPortFrom(netip.AddrFrom4([4]byte{20, byte(i), 0, 1}), 1190)
		id := secret.Public()
		contact := router.SignContact(secret, addr, n.file.Network, time.Now())
		elsewhere := netip.AddrPortFrom(netip.AddrFrom4([4]byte{21, byte(i), 0, 1}), 1190)
		crime.stale = append(crime.stale, router.SignContact(secret, elsewhere, n.file.Network, time.Now().Add(-time.Hour)).Raw())
		switch {
		case i < relays-liars:
			n.Relays = append(n.Relays, &Host{net: n, relay: true, Secret: secret, addr: addr})
		default:
			l.all = append(l.all, newLiar(n, secret, addr, styles[len(l.all)%len(styles)], crime))
			crime.ids = append(crime.ids, id)
			l.lying[id] = i < relays
		}
		if i < relays {
			l.registered[id] = true
			n.file.Relays = append(n.file.Relays, id)
			n.file.Contacts = append(n.file.Contacts, contact)
		} else {
			crime.contacts = append(crime.contacts, contact.Raw())
		}
	}
	damaged := bytes.Clone(crime.stale[1])
	damaged[len(damaged)-5] ^= 1
	crime.stale = append([][]byte{damaged}, crime.stale...)
	for i := range services + clients {
		h := &Host{net: n, Secret: key.Generate(), addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{30, 0, byte(i), 1}), 1191)}
		for l.hidden(h) {
			h.Secret = key.Generate()
		}
		n.Clients = append(n.Clients, h)
		if i < services {
			name := fmt.Sprintf("service%d.loki", i)
			n.file.Names[name], wrongs[name] = h.Secret.Public(), l.wrong
		}
	}
	crime.names = (&netdb.NetworkFile{Names: wrongs}).NameIndex()
	t.Cleanup(func() {
		for _, h := range append(append([]*Host(nil), n.Clients...), n.Relays...) {
			h.Stop()
		}
	})
	for _, h := range n.Relays {
		h.Start()
	}
	for _, l := range l.all {
		l.start(t)
	}
	return l
}

// hidden says whether all locations of a host's contact lie.
func (l *lies) hidden(h *Host) bool {
	blinded, err := h.Secret.Public().Blind()
	if err != nil {
		l.t.Fatal(err)
	}
	return !slices.ContainsFunc(netdb.Closest(l.file.Relays, blinded, netdb.Locations), func(id key.Public) bool { return !l.lying[id] })
}

// TestFoundAmongLiars: 6 of 20 relays lie, and nobody is hidden by them: neither a service all of whose paths end at liars, nor from a client all of whose paths do. Each of 40 clients comes to a service of its own. Of
// 1,593 such clients 27 took 15 s or more before there were witnesses, and 14 four to nine minutes.
func TestFoundAmongLiars(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		each := 40
		if raceEnabled {
			each = 10
		}
		l := newLies(t, []liarStyle{schemer}, 20, 6, 0, each, each)
		for _, h := range l.Clients[:each] {
			h.Start()
		}
		time.Sleep(20 * time.Second)
		var wg sync.WaitGroup
		took := make([]time.Duration, each)
		for i, h := range l.Clients[each:] {
			h.Start()
			wg.Go(func() {
				time.Sleep(4 * time.Second)
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
				defer cancel()
				start := time.Now()
				for h.Endpoint.Sessions.Connect(ctx, l.Clients[i].Address()) != nil && ctx.Err() == nil {
					time.Sleep(time.Second)
				}
				took[i] = time.Since(start)
			})
		}
		wg.Wait()
		slices.Sort(took)
		t.Logf("connected after %v in the median, %v at most", took[each/2], took[each-1])
		if took[each-1] > 3*time.Minute { // where one location is honest a look-up in vain is made again after 15 s: 4 of 3,600 clients took 15 or 31 s
			t.Errorf("connected after %v", took)
		}
	})
}

// Issue 4: 6 of 20 relays lie together. Clients that start with nothing but the network file never come to a relay that nobody registered, and keep resolving and
// connecting. Each of five clients starts anew every eleven minutes: what one learned is of no use to the next.
func TestLyingRelays(t *testing.T) {
	cases := map[string][]liarStyle{"each its own way": {schemer, silent, bloated, backward}}
	if !raceEnabled { // for which one of them is enough
		cases["all scheme"] = []liarStyle{schemer}
	}
	for what, styles := range cases {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { lieTo(t, styles) })
		})
	}
}

func lieTo(t *testing.T, styles []liarStyle) {
	const relays, liars, strangers, services, clients = 20, 6, 4, 3, 5
	lives, life := 3, 11*time.Minute
	if raceEnabled {
		lives, life = 1, 2*time.Minute
	}
	l := newLies(t, styles, relays, liars, strangers, services, clients)
	n, all, crime, registered, lying, wrong := l.Net, l.all, l.plot, l.registered, l.lying, l.wrong
	for _, h := range n.Clients {
		h.Start()
	}
	time.Sleep(20 * time.Second)

	var figures struct {
		right, undecided, deceived, missing   int
		connected, again, unreachable         int
		answered, lost, hops, stranger, liars int
		slowest, slowestName                  time.Duration
	}
	look := func(h *Host) { // which relays does a client use
		for _, p := range h.Endpoint.Sessions.Inbound(time.Now()) {
			for _, id := range p.Hops() {
				figures.hops++
				if !registered[id] {
					figures.stranger++
				}
				if lying[id] {
					figures.liars++
				}
			}
		}
	}
	within := func(d time.Duration, f func(ctx context.Context) error) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		start := time.Now()
		err := f(ctx)
		return time.Since(start), err
	}
	for range lives {
		for i, h := range n.Clients[services:] {
			h.Stop()
			h.apps = nil
			h.Start()
			time.Sleep(4 * time.Second)
			service := n.Clients[i%services]
			took, err := within(12*time.Minute, func(ctx context.Context) (err error) {
				for tried := false; ctx.Err() == nil; tried = true {
					if err = h.Endpoint.Sessions.Connect(ctx, service.Address()); err == nil {
						return nil
					}
					if !tried {
						figures.again++
					}
					time.Sleep(time.Second)
				}
				return err
			})
			if err != nil {
				figures.unreachable++
				t.Logf("no session: %v", err)
				continue
			}
			figures.connected++
			figures.slowest = max(figures.slowest, took)
		}
		for end := time.Now().Add(life); time.Now().Before(end); time.Sleep(30 * time.Second) {
			for i, h := range n.Clients[services:] {
				look(h)
				service := n.Clients[i%services]
				if h.apps == nil {
					h.Flow(service)
				}
				if f := h.apps[service.Address()]; f.Ask(uint64(f.Sent)) {
					figures.answered++
				} else {
					figures.lost++
				}
				name := fmt.Sprintf("service%d.loki", i%services)
				var a key.Address
				took, err := within(15*time.Second, func(ctx context.Context) (err error) {
					a, _, err = h.Node.Lookup(ctx, name)
					return err
				})
				figures.slowestName = max(figures.slowestName, took)
				switch {
				case took == 0: // the answer of five minutes ago, which counted then
				case errors.Is(err, router.ErrNoName):
					figures.missing++
				case err != nil:
					figures.undecided++
				case a.Key == wrong:
					figures.deceived++
				default:
					figures.right++
				}
			}
		}
	}
	for _, l := range all[liars:] {
		if l.dialled.Load() > 0 {
			t.Errorf("%d connections to a relay that nobody registered", l.dialled.Load())
		}
	}
	f := figures
	t.Logf("%d of %d relays lie; they were asked %d times", liars, relays, crime.asked.Load())
	t.Logf("sessions: %d of %d, %d of them not at the first try, the slowest after %v; messages: %d answered, %d lost", f.connected, f.connected+f.unreachable, f.again, f.slowest, f.answered, f.lost)
	t.Logf("names: %d right, %d wrong, %d denied, %d undecided, the slowest answer after %v", f.right, f.deceived, f.missing, f.undecided, f.slowestName)
	t.Logf("hops of paths: %d, %d of them liars, %d not registered", f.hops, f.liars, f.stranger)
	names := f.right + f.deceived + f.missing + f.undecided
	switch {
	case f.stranger > 0:
		t.Error("a path went over a relay that nobody registered")
	case f.unreachable > 0 || f.lost > 0:
		t.Error("not everything is reached")
	case names-f.right > 3+names/5 || f.deceived+f.missing > 5:
		// Where the ends of all paths lie there is nobody to contradict them: 1 look-up of 320, and 1 of 57 while a client that has just started has three paths. Measured in 25
		// runs in which all scheme: 17 of 1122 wrong, 38 undecided, at most 2 and 5 in a run.
		t.Error("names do not resolve as they should")
	}
}
