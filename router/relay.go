package router

import (
	"context"
	"crypto/rand"
	"errors"
	"math/big"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/session"
)

const (
	meshDials     = 10               // dials begun in one tick (protocol 2 section 6.4)
	firstContact  = 10 * time.Second // after the start; up to half as long again, by chance (protocol 2 section 9)
	contactsPurge = 30 * time.Second
	storePurge    = 5 * time.Minute
	deregistered  = 30 * time.Minute // a relay that is no longer registered stays connected for so long
	maxForwards   = 1024             // publish_cc and find_cc that wait for another relay
)

// relay is the role of a relay: it answers requests of neighbours and of the clients at the end of their paths, and keeps its place in the mesh.
type relay struct {
	n         *Node
	secret    *key.Secret
	self      key.Public
	transit   *path.Relay
	sessions  *session.Table
	contacts  *netdb.Contacts
	forwards  chan struct{} // a place for each forwarded request
	own       atomic.Pointer[netdb.RelayContact]
	names     atomic.Pointer[netdb.NameIndex]
	clients   atomic.Int64
	datagrams struct{ in, bytes atomic.Uint64 }
}

func newRelay(n *Node) (*relay, error) {
	r := &relay{
		n: n, secret: n.config.Secret, self: n.config.Secret.Public(),
		contacts: netdb.NewContacts(0, 0), forwards: make(chan struct{}, maxForwards),
	}
	if !n.config.Public.Addr().Is4() || n.config.Public.Port() == 0 {
		return nil, errors.New("router: a relay needs a public IPv4 address with a port")
	}
	r.transit = path.NewRelay(r.secret, n.peers, r, n.config.Limits, n.log.With("mod", "path"))
	r.sessions = session.NewTable(session.Config{
		Self: r.secret, Relay: true, Deliver: r.deliver, Log: n.log.With("mod", "session"),
	})
	return r, nil
}

// run looks after the relay until ctx ends.
func (r *relay) run(ctx context.Context) error {
	n := r.n
	n.learn(n.network.Load())
	defer r.transit.Close()
	defer r.sessions.Close()
	t := time.NewTicker(tick)
	defer t.Stop()
	start := time.Now()
	announce := start.Add(firstContact + chance(firstContact/2))
	if old := n.store.Get(r.self); old != nil && start.Sub(old.Time) < netdb.MinRelayUpdate {
		announce = announce.Add(netdb.MinRelayUpdate)
	}
	purgeContacts, purgeStore := start.Add(contactsPurge), start.Add(storePurge)
	missing := map[key.Public]time.Time{} // connected relays that are not registered, and since when
	for {
		now := time.Now()
		n.beat.Store(now.UnixNano())
		r.transit.Tick(now)
		r.sessions.Tick(now)
		n.peers.Tick(now)
		if n.store.Registered(r.self) {
			r.mesh()
			if now.After(announce) {
				r.announce(now)
				announce = now.Add(netdb.RelayRefresh)
			}
		}
		if now.After(purgeContacts) {
			r.contacts.Purge(now)
			r.leave(missing, now)
			purgeContacts = now.Add(contactsPurge)
		}
		if now.After(purgeStore) {
			n.store.Purge(now)
			purgeStore = now.Add(storePurge)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// chance draws a duration from 0 to limit.
func chance(limit time.Duration) time.Duration {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(limit)))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return time.Duration(n.Int64())
}

// mesh dials some of the relays that we are not connected to (protocol 2 section 6.4).
func (r *relay) mesh() {
	p := r.n.peers
	linked := map[key.Public]bool{r.self: true}
	for _, c := range p.Connected() {
		linked[c.Remote()] = true
	}
	want := min(meshDials, r.n.store.Len()+1-len(linked)-p.Pending())
	if want <= 0 {
		return
	}
	for _, c := range r.n.store.Random(want, func(c *netdb.RelayContact) bool { return !linked[c.ID] && r.n.store.Registered(c.ID) }) {
		p.Connect(c.ID)
	}
}

// leave closes connections to relays that have not been registered for a while (protocol 2 section 6.5).
func (r *relay) leave(missing map[key.Public]time.Time, now time.Time) {
	for _, c := range r.n.peers.Connected() {
		id := c.Remote()
		if r.n.store.Registered(id) {
			delete(missing, id)
		} else if since, ok := missing[id]; !ok {
			missing[id] = now
		} else if now.Sub(since) >= deregistered {
			delete(missing, id)
			c.Close(link.CodeNormal)
		}
	}
}

// announce signs our contact anew and tells all relays (protocol 2 section 9).
func (r *relay) announce(now time.Time) {
	c := SignContact(r.secret, r.n.config.Public, r.n.network.Load().Network, now)
	if stored, _ := r.n.store.Put(c); !stored {
		return
	}
	r.own.Store(c)
	for _, to := range r.n.peers.Connected() {
		to.Command(netdb.MethodGossipRC, c.Raw())
	}
}

// SignContact makes the contact of one of our relays.
func SignContact(sec *key.Secret, public netip.AddrPort, network uint64, now time.Time) *netdb.RelayContact {
	return netdb.SignRelayContact(sec, netdb.RelayContact{
		Addr: public, Time: now, Version: ProtocolVersion, Network: network, Sessions: true,
	})
}

// Links.

func (r *relay) Opened(c link.Conn) {
	if c.Kind() == link.Client && !c.Outbound() {
		r.clients.Add(1)
	}
}

func (r *relay) Closed(c link.Conn, err error) {
	if c.Kind() == link.Client && !c.Outbound() {
		r.clients.Add(-1)
	}
	if c.Kind() == link.Client { // a client's paths live and die with its connection, a relay's do not
		r.transit.LinkClosed(c)
	}
}

func (r *relay) Datagram(c link.Conn, b *packet.Buffer) {
	r.datagrams.in.Add(1)
	r.datagrams.bytes.Add(uint64(len(b.Data)))
	r.transit.Datagram(b)
}

// Request answers a neighbour (protocol 2 section 7). What only relays ask of each other is unknown to clients.
func (r *relay) Request(c link.Conn, q *link.Request) {
	answer := func(body []byte, fail bool) {
		if fail {
			q.Fail(body)
		} else {
			q.Reply(body)
		}
	}
	fromRelay := c.Kind() == link.Relay
	switch {
	case c.Kind() == link.Bootstrap:
		if q.Name != netdb.MethodBootstrapRCs {
			q.Unknown()
			return
		}
		r.bootstrap(q)
	case q.Name == "ping":
		q.Reply([]byte("pong"))
	case q.Name == netdb.MethodFetchRCs:
		q.Reply(r.fetchRCs(q.Body))
	case q.Name == netdb.MethodGossipRC && fromRelay:
		r.gossip(c, q.Body)
	case q.Name == netdb.MethodPublishCC && fromRelay:
		q.Reply(r.storeCC(q.Body))
	case q.Name == netdb.MethodFindCC && fromRelay:
		q.Reply(r.localCC(q.Body))
	case r.transit.HandleRequest(c, c.Remote(), q.Name, q.Body, answer):
	default:
		q.Unknown()
	}
}

// bootstrap answers with all contacts that we know. Packing them costs time, so it is not done in the connection's goroutine.
func (r *relay) bootstrap(q *link.Request) {
	r.n.serve(func(context.Context) {
		var raws [][]byte
		for _, c := range r.n.store.All() {
			if !c.Expired(time.Now()) {
				raws = append(raws, c.Raw())
			}
		}
		body, err := netdb.EncodeBootstrapReply(raws)
		switch {
		case len(raws) == 0:
			q.Fail([]byte(netdb.BootstrapNoRCs))
		case err != nil:
			q.Fail([]byte(netdb.BootstrapCompress))
		default:
			q.Reply(body)
		}
	})
}

// gossip takes a relay's contact from another relay, and passes on what is news (protocol 2 section 9).
func (r *relay) gossip(from link.Conn, raw []byte) {
	c, news, err := r.n.store.Gossip(raw)
	if err != nil {
		r.n.log.Debug("contact refused", "err", err)
	}
	if c == nil || !news {
		return
	}
	for _, to := range r.n.peers.Connected() {
		if to != from && to.Remote() != c.ID {
			to.Command(netdb.MethodGossipRC, c.Raw())
		}
	}
}

// rules are those of contacts in our network.
func (n *Node) rules() netdb.Rules { return n.network.Load().Rules() }

// Paths that end here.

// PathRequest answers a client at the other end of a path (protocol 3 section 4.3).
func (r *relay) PathRequest(_ path.ID, method string, body []byte, reply func([]byte)) {
	switch method {
	case netdb.MethodFetchRIDs:
		reply(netdb.EncodeRIDs(r.n.store.RegisteredIDs()))
	case netdb.MethodFetchRCs:
		reply(r.fetchRCs(body))
	case netdb.MethodResolveSNS:
		reply(r.resolveSNS(body))
	case netdb.MethodPublishCC:
		r.publishCC(body, reply)
	case netdb.MethodFindCC:
		r.findCC(body, reply)
	default: // the reference stays silent; an answer is quicker (protocol 3 section 10, 5)
		reply(netdb.Status(netdb.StatusError))
	}
}

func (r *relay) SessionControl(t *path.Terminal, typ byte, msg []byte, nonce [24]byte) {
	r.sessions.TerminalControl(t, typ, msg, nonce)
}

func (r *relay) SessionDatagram(t *path.Terminal, b *packet.Buffer) {
	r.sessions.TerminalDatagram(t, b)
}

// deliver takes the IP packets of .snode sessions: a relay has no network interface, and answers echo requests itself.
func (r *relay) deliver(remote key.Address, b *packet.Buffer) {
	if !packet.EchoReply(b.Data) {
		b.Release()
		return
	}
	r.sessions.Send(remote, b)
}

func (r *relay) fetchRCs(body []byte) []byte {
	have, err := netdb.DecodeFetchRCs(body)
	if err != nil {
		return netdb.Status(netdb.StatusError)
	}
	return netdb.EncodeRCs(r.n.store.Differing(&have))
}

func (r *relay) resolveSNS(body []byte) []byte {
	hash, err := netdb.DecodeResolveSNS(body)
	if err != nil {
		return netdb.Status(netdb.StatusError)
	}
	return r.names.Load().Reply(hash)
}

// publishCC serves a client's publish_cc: here, or at the relay that its location names (protocol 2 section 7.6).
func (r *relay) publishCC(body []byte, reply func([]byte)) {
	p, err := netdb.DecodePublishCC(body)
	if err != nil {
		reply(netdb.Status(netdb.StatusError))
		return
	}
	if text := netdb.ClockStatus(p.SignedAt, time.Now()); text != "" {
		reply(netdb.Status(text))
		return
	}
	closest := netdb.Closest(r.n.store.RegisteredIDs(), p.Blinded, netdb.Accepting)
	switch {
	case len(closest) < netdb.Locations:
		reply(netdb.Status(netdb.StatusNoRCs))
	case !netdb.ValidLocation(p.Location):
		reply(netdb.Status(netdb.StatusInvalidLocation))
	case closest[p.Location] == r.self:
		reply(r.put(p.Sealed))
	default:
		r.forward(closest[p.Location], netdb.MethodPublishCC, body, reply, netdb.Status(netdb.StatusTimeout))
	}
}

// storeCC serves another relay's publish_cc.
func (r *relay) storeCC(body []byte) []byte {
	p, err := netdb.DecodePublishCC(body)
	if err != nil {
		return netdb.Status(netdb.StatusError)
	}
	if text := netdb.ClockStatus(p.SignedAt, time.Now()); text != "" {
		return netdb.Status(text)
	}
	closest := netdb.Closest(r.n.store.RegisteredIDs(), p.Blinded, netdb.Accepting)
	if len(closest) < netdb.Locations {
		return netdb.Status(netdb.StatusNoRCs)
	}
	for _, id := range closest {
		if id == r.self {
			return r.put(p.Sealed)
		}
	}
	return netdb.Status(netdb.StatusError)
}

func (r *relay) put(sealed []byte) []byte {
	if _, err := r.contacts.Put(sealed, time.Now()); err != nil {
		return netdb.Status(netdb.StatusError)
	}
	return netdb.Status(netdb.StatusOK)
}

// findCC serves a client's find_cc (protocol 2 section 7.7).
func (r *relay) findCC(body []byte, reply func([]byte)) {
	blinded, location, err := netdb.DecodeFindCC(body)
	closest := netdb.Closest(r.n.store.RegisteredIDs(), blinded, netdb.Locations)
	switch {
	case err != nil || len(closest) < netdb.Locations:
		reply(netdb.Status(netdb.StatusError))
	case location == netdb.AnyLocation:
		r.findAnywhere(closest, blinded, reply)
	case closest[location] == r.self:
		reply(r.foundCC(blinded))
	default:
		r.forward(closest[location], netdb.MethodFindCC, netdb.EncodeFindCC(blinded, netdb.AnyLocation), reply, netdb.Status(netdb.StatusTimeout))
	}
}

// localCC serves another relay's find_cc.
func (r *relay) localCC(body []byte) []byte {
	blinded, _, err := netdb.DecodeFindCC(body)
	if err != nil {
		return netdb.Status(netdb.StatusError)
	}
	return r.foundCC(blinded)
}

func (r *relay) foundCC(blinded key.Public) []byte {
	if raw := r.contacts.Get(blinded, time.Now()); raw != nil {
		return netdb.EncodeFoundCC(raw)
	}
	return netdb.Status(netdb.StatusNotFound)
}

// findAnywhere serves a client before 1.0.2, which names no location: all four are asked, the first success counts.
func (r *relay) findAnywhere(closest []key.Public, blinded key.Public, reply func([]byte)) {
	if raw := r.contacts.Get(blinded, time.Now()); raw != nil {
		reply(netdb.EncodeFoundCC(raw))
		return
	}
	var left atomic.Int64
	left.Store(int64(len(closest)))
	var once sync.Once
	one := func(body []byte) {
		_, err := netdb.DecodeFoundCC(body)
		if last := left.Add(-1) == 0; err == nil || last {
			once.Do(func() { reply(body) })
		}
	}
	for _, id := range closest {
		if id == r.self {
			one(netdb.Status(netdb.StatusNotFound))
			continue
		}
		r.forward(id, netdb.MethodFindCC, netdb.EncodeFindCC(blinded, netdb.AnyLocation), one, netdb.Status(netdb.StatusTimeout))
	}
}

// forward asks another relay and passes its reply on; silence and failure become instead.
func (r *relay) forward(to key.Public, method string, body []byte, reply func([]byte), instead []byte) {
	select {
	case r.forwards <- struct{}{}:
	default:
		reply(netdb.Status(netdb.StatusError))
		return
	}
	r.n.serve(func(ctx context.Context) {
		defer func() { <-r.forwards }()
		answer, err := r.n.peers.Request(ctx, to, method, body)
		if err != nil {
			answer = instead
		}
		reply(answer)
	})
}
