package router

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"lokinetd/dns"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/session"
)

// The control socket's questions (control.API).

var _ control.API = (*host)(nil)

// Status says how the daemon is.
func (h *host) Status() control.Status {
	now := time.Now()
	n := h.node
	file := n.network.Load()
	s := control.Status{
		Schema: control.Schema, Version: h.version, Role: h.config.Role, State: control.Starting,
		StartedAt: began, Timeline: n.times.stages(),
		Network: control.Network{Name: file.Name, ID: file.Network, Serial: file.Serial, Known: len(n.store.Known()), Contacts: n.store.Len(), Private: file.Private},
		Drops:   h.drops(), NotHidden: []string{}, Warnings: append(append([]string{}, h.reloadWarnings()...), NetworkWarnings(file, now)...),
		Endpoints: []control.Endpoint{}, Edges: []control.Edge{}, Paths: []control.Path{}, Sessions: []control.Session{},
	}
	if b, err := h.wire.SocketBuffers(); err == nil {
		s.Buffers = &control.Buffers{Receive: b.Receive, Send: b.Send, Wanted: b.Wanted}
	}
	if n.relay != nil {
		n.relay.status(&s)
	} else {
		h.clientStatus(&s, now)
	}
	return s
}

// NetworkWarnings says in plain words what keeps a network from working well, by its file.
func NetworkWarnings(f *netdb.NetworkFile, now time.Time) (all []string) {
	if f.Public() {
		return nil // whether it works shows in what is reached
	}
	switch relays := len(f.Relays); netdb.EnoughRelays(relays) {
	case netdb.TooFew:
		all = append(all, fmt.Sprintf("relays: %d; a network does not work with fewer than %d, and %d or more are advised", relays, netdb.MinRelays, netdb.AdvisedRelays))
	case netdb.Few:
		all = append(all, fmt.Sprintf("relays: %d; the network works as long as all of them do, and %d or more are advised", relays, netdb.AdvisedRelays))
	}
	if len(f.Relays) == 0 {
		return all
	}
	expired := 0
	for _, c := range f.Contacts {
		if c.Expired(now) {
			expired++
		}
	}
	switch {
	case len(f.Contacts) == 0:
		all = append(all, "the network file holds no relay's contact: who starts with it finds nobody")
	case expired > 0:
		all = append(all, fmt.Sprintf("contacts in the network file: %d, of which %d are expired: let those relays write new ones ('lokinetd relay contact') and add them again", len(f.Contacts), expired))
	}
	return all
}

func (r *relay) status(s *control.Status) {
	st := r.transit.Stats()
	registered := r.n.store.Registered(r.self)
	s.State = control.Ready
	s.Network.Known = len(r.n.store.RegisteredIDs())
	if !registered {
		s.State = control.Offline
		s.Reason = "the network file does not list this relay; its operator adds it by what 'lokinetd relay contact' writes"
	}
	if r.beside != nil {
		r.beside.status(s)
	}
	s.NotHidden = append(s.NotHidden, "everybody can know that a relay runs at this IP address: its contact says so")
	s.Endpoints = append(s.Endpoints, control.Endpoint{Name: "relay", Kind: "relay", Address: key.Address{Key: r.self, Kind: key.Relay}.String()})
	s.Relay = &control.Relay{PublicAddress: r.n.config.Public.String(), Registered: registered, Peers: len(r.n.peers.Connected()),
		Clients: int(r.clients.Load()), TransitHops: int(st.Hops), StoredClients: int(r.contacts.Stats().Count)}
	if own := r.own.Load(); own != nil {
		s.Relay.ContactAt = &own.Time
	}
	s.Traffic = control.Traffic{PacketsIn: r.datagrams.in.Load(), BytesIn: r.datagrams.bytes.Load()}
}

func (h *host) clientStatus(s *control.Status, now time.Time) {
	n, c := h.node, h.node.client
	for _, l := range n.peers.Connected() {
		st := l.Stats()
		s.Edges = append(s.Edges, control.Edge{Relay: l.Remote().String(), Address: l.RemoteAddr().String(), Since: n.links.since(l),
			RTTms: ms(st.RTT), BytesIn: st.WireBytesIn, BytesOut: st.WireBytesOut})
	}
	slices.SortFunc(s.Edges, func(a, b control.Edge) int { return a.Since.Compare(b.Since) })
	for _, p := range c.paths.List() {
		s.Paths = append(s.Paths, pathInfo(p))
	}
	c.mu.Lock()
	readyAt := c.readyAt
	c.mu.Unlock()
	if !readyAt.IsZero() {
		s.ReadyAt, s.State = &readyAt, control.Offline
	}
	if len(c.inbound(now)) > 0 {
		s.State = control.Ready
	} else {
		s.Reason = h.whyNotReady(len(s.Edges))
	}
	if x := h.notRun.Load(); x != nil {
		s.NotRun = *x
	}
	for i, e := range h.endpoints {
		if e.closed {
			continue
		}
		_, own4, own6 := e.addrs.Self()
		st := e.Sessions.Stats()
		x := control.Endpoint{Name: e.Config.Name, Kind: "service", Address: e.Address().Text(h.config.Network.Suffix), Ports: e.ports(),
			InboundPaths: len(e.Sessions.Inbound(now)), InboundWant: h.config.Paths.InboundPaths,
			Traffic: control.Traffic{PacketsIn: st.PacketsIn, PacketsOut: st.PacketsOut, BytesIn: st.BytesIn, BytesOut: st.BytesOut}}
		if i == 0 {
			x.Kind = "browsing"
		}
		e.serviceStatus(&x, n.network.Load(), st)
		if own4.IsValid() {
			x.IPv4 = own4.Addr().String()
		}
		if own6.IsValid() {
			x.IPv6 = own6.Addr().String()
		}
		if p := e.Sessions.Publication(); p.Reachable(now) {
			x.PublishedAt = &p.At
		} else if p.Err != nil {
			s.Warnings = append(s.Warnings, fmt.Sprintf("service %s cannot be found by others: %v", e.Config.Name, p.Err))
		}
		for _, i := range e.Sessions.List() {
			if i.Current {
				x.Sessions++
			}
			s.Sessions = append(s.Sessions, control.Session{Remote: i.Remote.Text(h.config.Network.Suffix), Endpoint: e.Config.Name,
				Direction: direction(i), State: string(i.State), Handshake: handshake(i), Since: i.Since, LastActivity: latest(i),
				BytesIn: i.BytesIn, BytesOut: i.BytesOut, Hops: relayIDs(i.Hops)})
		}
		s.Traffic.PacketsIn += st.PacketsIn
		s.Traffic.PacketsOut += st.PacketsOut
		s.Traffic.BytesIn += st.BytesIn
		s.Traffic.BytesOut += st.BytesOut
		s.Endpoints = append(s.Endpoints, x)
	}
	s.NotHidden = h.notHidden(s)
	if s.Proxy = h.proxyStatus(); s.Proxy != nil {
		return
	}
	s.Tun = &control.Tun{Name: h.device.Name(), MTU: 1280, IPv6: h.device.NoIPv6() == ""}
	if d, ok := h.device.(interface{ NoFilter() string }); ok {
		if s.Tun.NoFirewall = d.NoFilter(); s.Tun.NoFirewall != "" {
			s.Warnings = append(s.Warnings, "no firewall table, only routes, keeps packets for our addresses from leaving another way: "+s.Tun.NoFirewall)
		}
	}
	if h.dns != nil {
		s.DNS = h.dnsStatus()
		if x := s.DNS.Host; x != nil && !x.InEffect && x.Method != string(dns.MethodOff) {
			s.Warnings = append(s.Warnings, strings.TrimSpace("programs on this machine do not ask our name server: "+x.Problem+". "+x.Advice))
		}
	}
}

// notHidden says in plain words who learns what in spite of us; s is complete but for this.
func (h *host) notHidden(s *control.Status) []string {
	c := h.config
	all := []string{
		"your network provider sees that this machine takes part in this network, when, and how much it sends",
		"the relays that you connect to see this machine's IP address, but not whom you talk to",
	}
	if p := c.Paths; min(p.ClientHops, p.RelayHops, p.InboundHops) < 2 {
		all[1] = "paths of one relay are configured: that relay sees this machine's IP address and where the path leads"
	}
	if c.Client.Key != "" {
		all = append(all, "the sites in this network that you visit can tell that all your visits, also after a restart, are by one visitor: client.key is set")
	} else {
		all = append(all, "the sites in this network that you visit can tell that all your visits until the next restart are by one visitor")
	}
	if len(s.Endpoints) > 1 {
		all = append(all, "who knows the address of a service can see when it is online")
	}
	if slices.ContainsFunc(s.Sessions, func(x control.Session) bool { return x.Handshake == "1.0" }) {
		all = append(all, "a session by the 1.0 handshake can be read later by who records it now and gets hold of a key then")
	}
	all = append(all, "who watches both ends of a connection can match them by time and volume")
	if h.proxy != nil {
		return append(all, "what programs do beside the proxies is as before; one that resolves names itself tells its resolver of .loki names too (docs/proxy.md)")
	}
	return append(all, "all other sites (not .loki, .sesh or .snode) are reached as before, not through this network")
}

// whyNotReady says what stands between a client and its first path, and what to do about it where that is known.
func (h *host) whyNotReady(edges int) string {
	n := h.node
	switch bootstraps := n.network.Load().Contacts; {
	case n.store.Len() > 0:
	case len(bootstraps) == 0 && h.config.Network.File != "" && len(h.config.Network.Bootstrap) == 0:
		return "no relay's contact is known: the network file has none; ask the network's operator for a newer one"
	case len(bootstraps) == 0:
		return fmt.Sprintf("no relay's contact is known, and there is no bootstrap file: put a current one at %s, or name it in network.bootstrap (see docs/public-network.md)",
			filepath.Join(h.config.DataDir, bootstrapFile))
	case !slices.ContainsFunc(bootstraps, func(c *netdb.RelayContact) bool { return !c.Expired(time.Now()) }):
		return fmt.Sprintf("no relay's contact is known, and no bootstrap relay answers; those that we have are from before %s: a current bootstrap file may help",
			time.Now().Add(-netdb.RelayLifetime).Format(time.DateOnly))
	default:
		return "no relay's contact is known, and no bootstrap relay answers"
	}
	if edges == 0 {
		var last link.PeerStatus
		failed := 0
		for _, p := range n.peers.Status() {
			if p.Failures > 0 {
				failed++
				if p.FailedAt.After(last.FailedAt) {
					last = p
				}
			}
		}
		if failed > 0 {
			return fmt.Sprintf("none of the %d relays tried answers; does this network let UDP out? (last error: %v)", failed, last.Err)
		}
		return "connecting to relays"
	}
	if !n.client.paths.EdgeConnected() {
		return fmt.Sprintf("connected to %d of %d relays, and waiting for more before paths are built", edges, h.config.Paths.EdgeConnections)
	}
	reason := "connected, and building paths"
	if st := n.client.paths.Stats(); st.BuildsRefused+st.BuildsSilent+st.BuildsUnfit > 0 {
		reason += fmt.Sprintf(" (%d refused, %d not answered, %d without enough relays to choose from)", st.BuildsRefused, st.BuildsSilent, st.BuildsUnfit)
	}
	return reason
}

func (h *host) dnsStatus() *control.DNS {
	d := &control.DNS{Listen: []string{}, Upstream: []string{}, Answers: map[string]uint64{}}
	for _, a := range h.sockets.Addrs() {
		d.Listen = append(d.Listen, a.String())
	}
	for _, a := range h.upstream() {
		d.Upstream = append(d.Upstream, a.String())
	}
	st := h.dns.Stats()
	for name, n := range map[string]uint64{"noerror": st.NoError, "formerr": st.FormErr, "servfail": st.ServFail, "nxdomain": st.NXDomain,
		"notimp": st.NotImp, "refused": st.Refused, "badvers": st.BadVers, "badcookie": st.BadCookie, "other": st.OtherRcode} {
		if n > 0 {
			d.Answers[name] = n
		}
	}
	d.Host = h.hostDNS.status()
	return d
}

// handshake is the version of the protocol by which the keys of a session were agreed on; "" while there are none.
func handshake(i session.Info) string {
	switch {
	case i.State != session.Established && i.State != session.Answered:
		return ""
	case i.Old:
		return "1.0"
	}
	return "1.1"
}

func latest(i session.Info) time.Time {
	if i.Heard.After(i.Said) {
		return i.Heard
	}
	return i.Said
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Events tells what happens (host_events.go).
func (h *host) Events(ctx context.Context, each func(control.Event) error) error {
	return h.feed.listen(ctx, each)
}

// Relays lists the known relays.
func (h *host) Relays() control.Relays {
	n := h.node
	list := control.Relays{Schema: control.Schema, Relays: []control.RelayInfo{}}
	for _, c := range n.store.All() {
		list.Relays = append(list.Relays, control.RelayInfo{
			Relay: key.Address{Key: c.ID, Kind: key.Relay}.String(), Address: c.Addr.String(), SignedAt: c.Time,
			Version: fmt.Sprintf("%d.%d.%d", c.Version[0], c.Version[1], c.Version[2]),
			Known:   n.store.IsKnown(c.ID) || n.store.Registered(c.ID), Connected: n.peers.Get(c.ID) != nil,
		})
	}
	return list
}

// Resolve finds what a name stands for.
func (h *host) Resolve(ctx context.Context, name string) (control.Resolved, error) {
	start := time.Now()
	r := control.Resolved{Schema: control.Schema, Name: name, Stages: []control.Stage{}}
	if h.node.client == nil {
		return r, control.Errorf(control.CodeUsage, "a relay resolves no names")
	}
	parsed, err := key.ParseName(name)
	if err != nil {
		return r, control.Errorf(control.CodeUsage, "%v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	src, a := source{h}, parsed.Address
	switch parsed.Kind {
	case key.NameLocalhost:
		a = src.Self()
	case key.NameRandom:
		a, _ = src.RandomRelay()
	case key.NameSNS:
		if !src.Ready(ctx) {
			return r, control.Errorf(control.CodeNotReady, "not connected: no path to ask over")
		}
		r.Stages = append(r.Stages, control.Stage{Name: "path ready", AtMs: ms(time.Since(start)), Note: "to ask relays over"})
		v, _, err := h.node.client.lookup(ctx, parsed.SNS)
		if err != nil {
			return r, control.Errorf(control.CodeNotReady, "%s: %v", name, err)
		}
		r.Relays, r.Agreed = v.asked, v.agreed
		if !v.found {
			return r, control.Errorf(control.CodeNotFound, "%s is not registered (%d of %d relays say so)", name, v.agreed, v.asked)
		}
		a = key.Address{Key: v.owner}
		r.Stages = append(r.Stages, control.Stage{Name: "name found", AtMs: ms(time.Since(start)), Note: fmt.Sprintf("%d of %d relays agreed", v.agreed, v.asked)})
	}
	r.Address = a.Text(h.config.Network.Suffix)
	b := h.browsing()
	if ip, err := b.addrs.IPv6(a, start); err == nil {
		r.IPv6 = ip.String()
	}
	if ip, err := b.addrs.IPv4(a, start); err == nil {
		r.IPv4 = ip.String()
	}
	return r, nil
}

// connectTime is how long Ping waits for a session.
const connectTime = 20 * time.Second

// Ping connects to a name and sends echo requests, one a second.
func (h *host) Ping(ctx context.Context, name string, count int) (control.Pinged, error) {
	start := time.Now()
	r, err := h.Resolve(ctx, name)
	p := control.Pinged{Schema: control.Schema, Name: name, Address: r.Address, Stages: r.Stages, RTTms: []float64{}}
	if err != nil {
		return p, err
	}
	to, err := key.ParseAddress(r.Address)
	if err != nil {
		return p, err
	}
	b := h.browsing()
	for _, e := range h.endpoints {
		if e.Address() == to {
			return p, control.Errorf(control.CodeUsage, "%s is this daemon itself (%s)", name, e.Config.Name)
		}
	}
	connect, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	p.Stages, err = h.connect(connect, b, to, start, p.Stages)
	if err != nil {
		return p, howFar(unreached(name, to, err), p.Stages)
	}
	for seq := range count {
		sent := time.Now()
		id, answered := b.pings.expect()
		p.Sent++
		b.Sessions.Send(to, echoRequest(id, uint16(seq)))
		select {
		case <-answered:
			p.RTTms = append(p.RTTms, ms(time.Since(sent)))
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
		}
		b.pings.forget(id)
		if ctx.Err() != nil {
			return p, ctx.Err()
		}
		if seq < count-1 {
			time.Sleep(max(0, time.Second-time.Since(sent)))
		}
	}
	return p, nil
}

// stageEvery is how often it is looked how far a call is.
const stageEvery = 2 * time.Millisecond

// connect connects an endpoint to a remote and appends what was done on the way, and when after start.
func (h *host) connect(ctx context.Context, b *hostEndpoint, to key.Address, start time.Time, stages []control.Stage) ([]control.Stage, error) {
	stage := func(name, note string) {
		stages = append(stages, control.Stage{Name: name, AtMs: ms(time.Since(start)), Note: note})
	}
	asked := time.Now()
	connected := make(chan error, 1)
	go func() { connected <- b.Sessions.Connect(ctx, to) }()
	t := time.NewTicker(stageEvery)
	defer t.Stop()
	var found, built bool // these stages were told
	for {
		select {
		case err := <-connected:
			if err != nil {
				return stages, err
			}
			note := ""
			for _, i := range b.Sessions.With(to) {
				switch {
				case !i.Current:
				case i.Since.Before(asked):
					note = "it was there, over " + h.drawn(i.Hops)
				case !built:
					note = "over " + h.drawn(i.Hops)
				}
			}
			stage("session established", note)
			return stages, nil
		case <-t.C:
		}
		for _, i := range b.Sessions.With(to) {
			if !found && to.Kind == key.Client && (i.State == session.Building || i.State == session.Calling) {
				found = true
				stage("contact found", "it says at which relays paths of theirs end")
			}
			if !built && i.State == session.Calling {
				built = true
				stage("path built", h.drawn(i.Hops))
			}
		}
	}
}

// drawn is a path for people.
func (h *host) drawn(hops []key.Public) string {
	text := "you"
	for _, id := range hops {
		text += " > " + id.String()[:8]
	}
	return text
}

// unreached says in plain words why there is no session with a remote.
func unreached(name string, to key.Address, err error) error {
	switch relay := to.Kind == key.Relay; {
	case errors.Is(err, context.DeadlineExceeded):
		return control.Errorf(control.CodeFailure, "%s does not answer: no session within %d s", name, int(connectTime.Seconds()))
	case relay && (errors.Is(err, session.ErrNotFound) || errors.Is(err, session.ErrUnreachable)):
		return control.Errorf(control.CodeNotFound, "%s is no relay that this daemon knows", name)
	case errors.Is(err, session.ErrNotFound):
		return control.Errorf(control.CodeNotFound, "%s cannot be found: it is offline, or the address is wrong (no contact of it is published)", name)
	}
	return control.Errorf(control.CodeNotFound, "%s: %v", name, err)
}

// howFar adds to an error what was done before.
func howFar(err error, stages []control.Stage) error {
	var e *control.Error
	if !errors.As(err, &e) || len(stages) == 0 {
		return err
	}
	done := make([]string, len(stages))
	for i, s := range stages {
		done[i] = fmt.Sprintf("%s after %.0f ms", s.Name, s.AtMs)
	}
	return control.Errorf(e.Code, "%s (so far: %s)", e.Text, strings.Join(done, ", "))
}

// pings are the daemon's own echo requests that wait for an answer, which it keeps from the TUN.
type pings struct {
	mu      sync.Mutex
	waiting map[uint16]chan struct{}
}

// expect draws the identifier of a request; the channel is closed by its answer.
func (p *pings) expect() (uint16, <-chan struct{}) {
	var b [2]byte
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting == nil {
		p.waiting = map[uint16]chan struct{}{}
	}
	for {
		rand.Read(b[:])
		id := binary.BigEndian.Uint16(b[:])
		if p.waiting[id] == nil {
			p.waiting[id] = make(chan struct{})
			return id, p.waiting[id]
		}
	}
}

func (p *pings) forget(id uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.waiting, id)
}

// take keeps b when it is an answer to one of ours, and releases it then.
func (p *pings) take(b *packet.Buffer) bool {
	if len(b.Data) < 48 || b.Data[0]>>4 != 6 || b.Data[6] != packet.ProtoICMPv6 || b.Data[40] != packet.ICMPv6EchoReply {
		return false
	}
	id := binary.BigEndian.Uint16(b.Data[44:])
	p.mu.Lock()
	ch := p.waiting[id]
	delete(p.waiting, id)
	p.mu.Unlock()
	if ch == nil {
		return false
	}
	close(ch)
	b.Release()
	return true
}

// echoRequest makes an ICMPv6 echo request with zero addresses and 8 bytes of nothing.
func echoRequest(id, seq uint16) *packet.Buffer {
	const size = 56
	b := packet.Get()
	p := b.Extend(size)
	clear(p)
	p[0] = 0x60
	binary.BigEndian.PutUint16(p[4:], size-40)
	p[6], p[7], p[40] = packet.ProtoICMPv6, 64, packet.ICMPv6Echo
	binary.BigEndian.PutUint16(p[44:], id)
	binary.BigEndian.PutUint16(p[46:], seq)
	sum := uint32(size-40) + packet.ProtoICMPv6 + uint32(p[40])<<8 + uint32(id) + uint32(seq) // the pseudo header's addresses are zero
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(p[42:], ^uint16(sum))
	return b
}

func pathInfo(p path.Info) control.Path {
	return control.Path{Kind: map[path.Kind]string{path.Inbound: "inbound", path.Aligned: "client", path.ToRelay: "relay"}[p.Kind],
		Endpoint: p.Pool, State: p.State, Hops: relayIDs(p.Hops), ExpiresAt: p.Expiry, RTTms: ms(p.RTT), JitterMs: ms(p.Jitter)}
}

func relayIDs(ids []key.Public) []string {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = id.String()
	}
	return list
}
