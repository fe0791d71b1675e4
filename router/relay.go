package router

import (
	"context"
	"crypto/rand"
	"errors"
	"math/big"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/fair"
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
	pathForwards  = 64               // of one path
)

// What requests over paths and from neighbours may cost a relay, in bytes that it sends or as good as sends. A path in use asks for a few hundred bytes a minute and for
// all relay contacts once; a neighbour passes on what many clients ask.
const (
	requestCost = 8 << 10  // of any request, beside its reply
	gossipCost  = 64 << 10 // of a relay contact that is not valid
)

func newPathMeter() *fair.Meter[path.ID] {
	return &fair.Meter[path.ID]{Rate: 64 << 10, Burst: bound(4 << 20), AllRate: 32 << 20, AllBurst: bound(512 << 20)}
}

func newLinkMeter() *fair.Meter[key.Public] {
	return &fair.Meter[key.Public]{Rate: 1 << 20, Burst: bound(64 << 20)}
}

// relay is the role of a relay: it answers requests of neighbours and of the clients at the end of their paths, and keeps its place in the mesh.
type relay struct {
	n         *Node
	secret    *key.Secret
	self      key.Public
	transit   *path.Relay
	sessions  *session.Table
	contacts  *netdb.Contacts
	packed    packed // the answer to bfetch_rcs
	own       atomic.Pointer[netdb.RelayContact]
	names     atomic.Pointer[netdb.NameIndex]
	beside    *beside // nil in a private network
	clients   atomic.Int64
	datagrams struct{ in, bytes atomic.Uint64 }

	// What others may cost us. A neighbour is a relay, over however many connections; what clients ask without a path, which none has to, they all share.
	starters *fair.Meter[netip.Prefix] // bfetch_rcs
	waste    fair.Meter[link.Conn]     // datagrams of no use, of a client's connection
	wastes   fair.Meter[netip.Prefix]  // and of all from one network of addresses
	cut      atomic.Uint64             // connections closed for that
	paths    *fair.Meter[path.ID]      // requests over a path
	links    *fair.Meter[key.Public]   // requests of neighbours
	forwards fair.Slots[path.ID]       // requests that wait for another relay
	news     fair.Meter[key.Public]    // contacts of one relay that are passed on
	// Contacts of clients that had none here, by the path or neighbour that brings them: who invents clients pushes out others' contacts.
	fromPaths fair.Meter[path.ID]
	fromLinks fair.Meter[key.Public]
}

func newRelay(n *Node) (*relay, error) {
	r := &relay{
		n: n, secret: n.config.Secret, self: n.config.Secret.Public(),
		contacts: netdb.NewContacts(0, 0),
		starters: newBootstrapMeter(), paths: newPathMeter(), links: newLinkMeter(),
		forwards:  fair.Slots[path.ID]{Each: pathForwards, All: maxForwards},
		waste:     fair.Meter[link.Conn]{Rate: 64, Burst: bound(256)},
		wastes:    fair.Meter[netip.Prefix]{Rate: 512, Burst: bound(4096)},
		news:      fair.Meter[key.Public]{Rate: 1 / netdb.MinRelayUpdate.Seconds(), Burst: bound(4)},
		fromPaths: fair.Meter[path.ID]{Rate: 0.25, Burst: bound(32)},
		fromLinks: fair.Meter[key.Public]{Rate: 2, Burst: bound(2048)},
	}
	if !n.config.Public.Addr().Is4() || n.config.Public.Port() == 0 {
		return nil, errors.New("router: a relay needs a public IPv4 address with a port")
	}
	if n.config.Oxend != nil {
		r.beside = newBeside(r, n.config.Oxend)
	}
	r.transit = path.NewRelay(r.secret, n.peers, r, n.config.Limits, n.log.With("mod", "path"))
	_, _, bounds := limits()
	r.sessions = session.NewTable(session.Config{
		Self: r.secret, Relay: true, Deliver: r.deliver, Limits: bounds, Log: n.log.With("mod", "session"),
	})
	return r, nil
}

// run looks after the relay until ctx ends.
func (r *relay) run(ctx context.Context) error {
	n := r.n
	defer r.transit.Close()
	defer r.sessions.Close()
	if r.beside != nil {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { r.beside.run(ctx) })
	}
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
		n.bootstrap.tick(now)
		if n.store.Registered(r.self) {
			r.mesh()
			if now.After(announce) {
				announce = r.announce(now)
			}
		}
		if now.After(purgeContacts) {
			r.contacts.Purge(now)
			r.leave(missing, now)
			purgeContacts = now.Add(contactsPurge)
		}
		if now.After(purgeStore) {
			n.bootstrap.purged(n.store.Purge(now))
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

// announce signs our contact anew and tells all relays, and says when to do so again (protocol 2 section 9). Who had nobody to tell tries sooner: others learn of us in no other way.
func (r *relay) announce(now time.Time) (next time.Time) {
	c := SignContact(r.secret, r.n.config.Public, r.n.network.Load().Network, now)
	if stored, _ := r.n.store.Put(c); !stored {
		return now.Add(netdb.MinRelayUpdate)
	}
	r.own.Store(c)
	if r.tell(c, r.self) == 0 {
		return now.Add(netdb.MinRelayUpdate)
	}
	return now.Add(netdb.RelayRefresh)
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
	r.waste.Forget(c)
	if c.Kind() == link.Client { // a client's paths live and die with its connection, a relay's do not
		r.transit.LinkClosed(c)
	}
}

func (r *relay) Datagram(c link.Conn, b *packet.Buffer) {
	r.datagrams.in.Add(1)
	r.datagrams.bytes.Add(uint64(len(b.Data)))
	if !r.transit.Datagram(b) && c.Kind() == link.Client && !c.Outbound() {
		r.wasted(c)
	}
}

// wasted counts a datagram of a client that was of no use. Some always are: paths end, and others' with them. Who sends little else is cut off: a datagram costs as much as
// one that is carried. A relay is not: what it brings is others'.
func (r *relay) wasted(c link.Conn) {
	now, source := time.Now(), link.NetworkOf(c.RemoteAddr().Addr())
	r.waste.Charge(c, 1, now)
	r.wastes.Charge(source, 1, now)
	if !r.waste.Allows(c, now) && !r.wastes.Allows(source, now) {
		r.cut.Add(1)
		c.Close(link.CodeNormal)
	}
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
		r.bootstrap(c, q)
	case q.Name == "ping":
		if r.beside != nil && c.Kind() == link.Client {
			r.beside.pinged.Store(time.Now().UnixNano())
		}
		q.Reply([]byte("pong"))
	case q.Name == netdb.MethodGossipRC && fromRelay:
		r.gossip(c, q.Body)
	case q.Name == netdb.MethodFetchRCs:
		r.neighbour(c, q, r.fetchRCs)
	case q.Name == netdb.MethodPublishCC && fromRelay:
		r.neighbour(c, q, func(body []byte) []byte { return r.storeCC(c.Remote(), body) })
	case q.Name == netdb.MethodFindCC && fromRelay:
		r.neighbour(c, q, r.localCC)
	case r.transit.HandleRequest(c, c.Remote(), q.Name, q.Body, answer):
	default:
		q.Unknown()
	}
}

// neighbour answers a request that costs something, within bounds.
func (r *relay) neighbour(c link.Conn, q *link.Request, f func(body []byte) []byte) {
	now := time.Now()
	if !r.links.Take(c.Remote(), requestCost, now) {
		q.Reply(netdb.Status(netdb.StatusError))
		return
	}
	body := f(q.Body)
	r.links.Charge(c.Remote(), len(body), now)
	q.Reply(body)
}

// gossip takes a relay's contact from another relay, and passes on what is news (protocol 2 section 9). It ends because nobody takes the same contact twice, or one that is
// not a minute newer. A relay that signs for every minute of the last month would make us tell all others 43,200 times: of one relay no more is passed on than its
// clock could have signed meanwhile.
func (r *relay) gossip(from link.Conn, raw []byte) {
	now := time.Now()
	if !r.links.Allows(from.Remote(), now) {
		return
	}
	c, news, err := r.n.store.Gossip(raw)
	if err != nil {
		r.links.Charge(from.Remote(), gossipCost, now)
		r.n.log.Debug("contact refused", "err", err)
		return
	}
	if c == nil || !news || !r.news.Take(c.ID, 1, now) {
		return
	}
	r.tell(c, from.Remote())
}

// tell sends a contact to all connected relays but the one that it is of and the one that it came from, and says to how many.
func (r *relay) tell(c *netdb.RelayContact, from key.Public) (told int) {
	for _, to := range r.n.peers.Connected() {
		if id := to.Remote(); id != from && id != c.ID {
			to.Command(netdb.MethodGossipRC, c.Raw())
			told++
		}
	}
	return told
}

// Paths that end here.

// PathRequest answers a client at the other end of a path (protocol 3 section 4.3).
func (r *relay) PathRequest(from path.ID, method string, body []byte, reply func([]byte)) {
	if !r.paths.Take(from, requestCost, time.Now()) {
		reply(netdb.Status(netdb.StatusError))
		return
	}
	answer := func(body []byte) {
		r.paths.Charge(from, len(body), time.Now())
		reply(body)
	}
	switch method {
	case netdb.MethodFetchRIDs:
		answer(netdb.EncodeRIDs(r.n.store.RegisteredIDs()))
	case netdb.MethodFetchRCs:
		answer(r.fetchRCs(body))
	case netdb.MethodResolveSNS:
		r.resolveSNS(body, answer)
	case netdb.MethodPublishCC:
		r.publishCC(from, body, answer)
	case netdb.MethodFindCC:
		r.findCC(from, body, answer)
	default: // the reference stays silent; an answer is quicker (protocol 3 section 10, 5)
		answer(netdb.Status(netdb.StatusError))
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

func (r *relay) resolveSNS(body []byte, reply func([]byte)) {
	hash, err := netdb.DecodeResolveSNS(body)
	switch {
	case err != nil:
		reply(netdb.Status(netdb.StatusError))
	case r.beside != nil:
		r.beside.resolve(hash, reply)
	default:
		reply(r.names.Load().Reply(hash))
	}
}

// publishCC serves a client's publish_cc: here, or at the relay that its location names (protocol 2 section 7.6).
func (r *relay) publishCC(from path.ID, body []byte, reply func([]byte)) {
	p, closest, refused := r.readPublish(body)
	switch {
	case refused != "":
		reply(netdb.Status(refused))
	case !netdb.ValidLocation(p.Location):
		reply(netdb.Status(netdb.StatusInvalidLocation))
	case closest[p.Location] == r.self:
		reply(put(r, &r.fromPaths, from, p))
	default:
		r.forward(from, closest[p.Location], netdb.MethodPublishCC, body, reply)
	}
}

// storeCC serves another relay's publish_cc.
func (r *relay) storeCC(from key.Public, body []byte) []byte {
	p, closest, refused := r.readPublish(body)
	switch {
	case refused != "":
		return netdb.Status(refused)
	case !slices.Contains(closest, r.self):
		return netdb.Status(netdb.StatusError)
	}
	return put(r, &r.fromLinks, from, p)
}

// readPublish does what every publish_cc is checked for first; closest are the relays that may keep the contact.
func (r *relay) readPublish(body []byte) (p netdb.PublishCC, closest []key.Public, refused string) {
	p, err := netdb.DecodePublishCC(body)
	if err != nil {
		return p, nil, netdb.StatusError
	}
	if text := netdb.ClockStatus(p.SignedAt, time.Now()); text != "" {
		return p, nil, text
	}
	closest = netdb.Closest(r.n.store.RegisteredIDs(), p.Blinded, netdb.Accepting)
	if len(closest) < netdb.Locations {
		return p, nil, netdb.StatusNoRCs
	}
	return p, closest, ""
}

// put stores a contact; newcomers counts those of clients that have none here yet.
func put[K comparable](r *relay, newcomers *fair.Meter[K], from K, p netdb.PublishCC) []byte {
	now := time.Now()
	fresh := r.contacts.Get(p.Blinded, now) == nil
	if fresh && !newcomers.Allows(from, now) {
		return netdb.Status(netdb.StatusError)
	}
	stored, err := r.contacts.Put(p.Sealed, now)
	if err != nil {
		return netdb.Status(netdb.StatusError)
	}
	if fresh && stored {
		newcomers.Charge(from, 1, now)
	}
	return netdb.Status(netdb.StatusOK)
}

// findCC serves a client's find_cc (protocol 2 section 7.7).
func (r *relay) findCC(from path.ID, body []byte, reply func([]byte)) {
	blinded, location, err := netdb.DecodeFindCC(body)
	closest := netdb.Closest(r.n.store.RegisteredIDs(), blinded, netdb.Locations)
	switch {
	case err != nil || len(closest) < netdb.Locations:
		reply(netdb.Status(netdb.StatusError))
	case location == netdb.AnyLocation:
		r.findAnywhere(from, closest, blinded, reply)
	case closest[location] == r.self:
		reply(r.foundCC(blinded))
	default:
		r.forward(from, closest[location], netdb.MethodFindCC, netdb.EncodeFindCC(blinded, netdb.AnyLocation), reply)
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
func (r *relay) findAnywhere(from path.ID, closest []key.Public, blinded key.Public, reply func([]byte)) {
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
		r.forward(from, id, netdb.MethodFindCC, netdb.EncodeFindCC(blinded, netdb.AnyLocation), one)
	}
}

// maxForwarded bounds the replies of other relays that are passed on: a sealed contact and what is around it.
const maxForwarded = netdb.MaxSealed + 1<<10

// forward asks another relay on behalf of a path and passes its reply on; silence and failure become TIMEOUT.
func (r *relay) forward(from path.ID, to key.Public, method string, body []byte, reply func([]byte)) {
	if !r.forwards.Take(from) {
		reply(netdb.Status(netdb.StatusError))
		return
	}
	started := r.n.serve(func(ctx context.Context) {
		answer, err := r.n.peers.Request(ctx, to, method, body)
		r.forwards.Give(from)
		switch {
		case err != nil:
			answer = netdb.Status(netdb.StatusTimeout)
		case len(answer) > maxForwarded:
			answer = netdb.Status(netdb.StatusError)
		}
		reply(answer)
	})
	if !started {
		r.forwards.Give(from)
	}
}
