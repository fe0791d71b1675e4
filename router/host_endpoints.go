package router

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"lokinetd/config"
	"lokinetd/netif"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/session"
)

// The identities of this host: what an endpoint needs of the TUN, and services that come and go with the configuration. For the start and the main loop's
// goroutine; others read the list by host.endpoints.

// openEndpoints makes the browsing endpoint and the services, and brings the TUN up with their addresses. Where a key cannot be read or made, all the rest runs: a service is left out, and
// nothing is called by the browsing endpoint, for it would be under another identity.
func (h *host) openEndpoints() error {
	c := h.config
	h.served.Store(&[]*hostEndpoint{})
	he := &hostEndpoint{lasting: c.Client.Key != ""}
	ec := h.endpointConfig("browsing", key.Generate())
	if c.Client.Key != "" {
		secret, err := loadOrMakeKey(c.Client.Key)
		if err == nil {
			ec.Secret = secret
		} else if !h.without("browsing", "browsing", "restart", err) {
			return err
		} else {
			he.lasting, he.closed = false, true
			ec.Only = func(key.Public, bool) bool { return false }
		}
	}
	if err := h.addEndpoint(ec, he, netif.BrowsingBits4, c.TUN.IPv4.Prefix, c.TUN.IPv6.Prefix); err != nil {
		return err
	}
	for _, s := range c.Service {
		err := h.addService(s)
		if err != nil && !h.without(s.Name, "service", "reload", err) {
			return err
		}
		h.unserved = h.unserved || err != nil
	}
	if h.notRun.Load() != nil {
		h.orphans = maps.Clone(h.kept)
	}
	h.readClientLists()
	return h.applyAddresses()
}

// without notes that the daemon does without an endpoint for want of its key; false: err is about something else. when says what has the daemon look again.
func (h *host) without(name, kind, when string, err error) bool {
	var k keyError
	if !errors.As(err, &k) {
		return false
	}
	advice := "put a copy of the key file in its place, or move it away to have a new key made, which is another address; then: systemctl " + when + " lokinetd"
	h.log.Error("an endpoint does not run: there is no key for it", "endpoint", name, "err", err, "so", advice)
	next := []control.NotRun{}
	if all := h.notRun.Load(); all != nil {
		next = slices.Clone(*all)
	}
	next = append(next, control.NotRun{Name: name, Kind: kind, Reason: err.Error(), Advice: advice})
	h.notRun.Store(&next)
	return true
}

// runs forgets which services do not run; those that still do not are noted again.
func (h *host) runs() {
	all := h.notRun.Load()
	if all == nil {
		return
	}
	next := slices.DeleteFunc(slices.Clone(*all), func(x control.NotRun) bool { return x.Kind == "service" })
	if len(next) > 0 {
		h.notRun.Store(&next)
	} else {
		h.notRun.Store(nil)
	}
}

// endpointConfig is what all endpoints have in common.
func (h *host) endpointConfig(name string, secret *key.Secret) EndpointConfig {
	p := &h.config.Paths
	ec := EndpointConfig{Name: name, Secret: secret, Inbound: p.InboundPaths, InboundHops: p.InboundHops,
		Outbound: p.OutboundPaths, ClientHops: p.ClientHops, RelayHops: p.RelayHops, Flags: netdb.FlagPFS}
	if !h.config.TUN.IPv4.Off {
		ec.Flags |= netdb.FlagIPv4
	}
	if !h.config.TUN.IPv6.Off && h.device.NoIPv6() == "" {
		ec.Flags |= netdb.FlagIPv6
	}
	return ec
}

// addEndpoint makes he the endpoint of ec. Its ranges are own4 and own6, or where those are not valid the ones of its last run, or free ones. The TUN has them after
// applyAddresses.
func (h *host) addEndpoint(ec EndpointConfig, he *hostEndpoint, bits4 int, own4, own6 netip.Prefix) error {
	he.Endpoint = &Endpoint{Config: ec}
	taken, err := h.sys.prefixes(h.device.Name(), h.before.Unreachable)
	if err != nil {
		return err
	}
	taken = append(taken, h.ranges()...)
	kept := h.kept[he.keepName()]
	switch {
	case ec.Flags&netdb.FlagIPv4 == 0:
		own4 = netip.Prefix{}
	case !own4.IsValid():
		if own4, err = netif.FreeIPv4(taken, bits4, kept.IPv4); err != nil {
			return err
		}
	}
	switch {
	case ec.Flags&netdb.FlagIPv6 == 0:
		own6 = netip.Prefix{}
	case !own6.IsValid():
		if own6, err = netif.FreeIPv6(taken, netif.Bits6, kept.IPv6); err != nil {
			return err
		}
	}
	if he.addrs, err = netif.NewMap(he.Address(), own4, own6); err != nil {
		return err
	}
	he.addrs.Restore(kept, time.Now())

	// The session table and the place in the TUN need each other, and node and pump may run: until there is a place, nothing is delivered.
	ec.Deliver = func(from key.Address, b *packet.Buffer) {
		place := he.place.Load()
		switch {
		case he.pings.take(b):
		case place == nil:
			b.Release()
		default:
			place.Deliver(from, b)
		}
	}
	ec.Undeliverable = func(to key.Address, b *packet.Buffer, _ error) {
		if place := he.place.Load(); place != nil {
			place.Refuse(to, b)
		} else {
			b.Release()
		}
	}
	// Its IPv6 address follows from its key: after a restart, what programs send to a remote that knows us goes there before the first packet of it comes.
	ec.Established = func(remote key.Address) { he.addrs.IPv6(remote, time.Now()) }
	if he.Endpoint, err = h.node.AddEndpoint(ec); err != nil {
		return err
	}
	in := netif.Inbound{}
	if s := he.service.Load(); s != nil {
		in = inbound(*s)
	}
	place, err := h.pump.Add(he.addrs, in, he)
	if err != nil {
		h.node.RemoveEndpoint(he.Endpoint)
		return err
	}
	he.place.Store(place)
	next := append(slices.Clone(*h.served.Load()), he)
	h.served.Store(&next)
	return nil
}

// ranges are the addresses of all endpoints, with the lengths of their ranges.
func (h *host) ranges() (ps []netip.Prefix) {
	for _, e := range h.endpoints {
		_, own4, own6 := e.addrs.Self()
		for _, p := range []netip.Prefix{own4, own6} {
			if p.IsValid() {
				ps = append(ps, p)
			}
		}
	}
	return ps
}

// applyAddresses gives the TUN the addresses of all endpoints. What they may give out is on disk before, for the start after a crash, unless that is full.
func (h *host) applyAddresses() error {
	h.saveAddresses(time.Now()) // watchSessions tries again, and says so
	if err := h.device.Apply(h.ranges()); err != nil {
		return err
	}
	if h.hostDNS.way != nil {
		h.hostDNS.way.Changed()
	}
	return nil
}

// addService makes the endpoint of a service.
func (h *host) addService(s config.Service) error {
	secret, err := loadOrMakeKey(s.Key)
	if err != nil {
		return err
	}
	ec := h.endpointConfig(s.Name, secret)
	ec.Service, ec.SRV = true, records(s, secret.Public())
	ec.Limits = session.Limits{Sessions: s.MaxSessions, Handshakes: s.MaxNewSessions}
	he := &hostEndpoint{lasting: true}
	ec.Only = he.allows
	he.service.Store(&s)
	he.clients.Store(&clientList{}) // nobody, before readClientLists
	return h.addEndpoint(ec, he, netif.ServiceBits4, netip.Prefix{}, netip.Prefix{})
}

// removeService says good-bye on the service's sessions and forgets it, but for its addresses, should it come back.
func (h *host) removeService(e *hostEndpoint) {
	h.kept[e.keepName()] = e.addrs.Keep(keptRemotes, time.Now())
	next := slices.DeleteFunc(slices.Clone(*h.served.Load()), func(x *hostEndpoint) bool { return x == e })
	h.served.Store(&next)
	h.pump.Remove(e.place.Load())
	h.node.RemoveEndpoint(e.Endpoint)
}

// setServices makes the services those of a new configuration, but for who may call them (readClientLists). One whose name and key stay keeps its sessions. An error
// leaves out what it is about.
func (h *host) setServices(want []config.Service) error {
	var errs []error
	h.runs()
	for _, e := range *h.served.Load() {
		old := e.service.Load()
		if old != nil && !slices.ContainsFunc(want, func(s config.Service) bool { return s.Name == old.Name && s.Key == old.Key }) {
			h.removeService(e)
		}
	}
next:
	for _, s := range want {
		for _, e := range h.endpoints {
			if old := e.service.Load(); old != nil && old.Name == s.Name {
				e.service.Store(&s)
				if !slices.Equal(old.SRV, s.SRV) {
					e.Sessions.SetContact(e.Config.Flags, records(s, e.Address().Key))
				}
				e.place.Load().SetInbound(inbound(s))
				e.Sessions.SetLimits(s.MaxSessions, s.MaxNewSessions)
				continue next
			}
		}
		err := h.addService(s)
		if err != nil {
			h.without(s.Name, "service", "reload", err)
		}
		errs = append(errs, err)
	}
	errs = append(errs, h.applyAddresses())
	h.openForwards()
	return errors.Join(errs...)
}

// records are the service records that the contact of a service with the key self bears. What is meant for the service itself is written as its address, in
// the spelling that the reference uses.
func records(s config.Service, self key.Public) []netdb.SRV {
	all := make([]netdb.SRV, len(s.SRV))
	for i, r := range s.SRV {
		all[i] = netdb.SRV(r)
		if r.Target == "" {
			all[i].Target = key.Address{Key: self}.Text(key.TLDSesh)
		}
	}
	return all
}

// inbound is what a service lets in.
func inbound(s config.Service) netif.Inbound {
	in := netif.Inbound{Echo: s.Echo}
	ports := slices.Clone(s.Ports)
	for _, f := range s.Forward {
		ports = append(ports, f.Port)
	}
	for _, p := range ports {
		one := netif.Ports{First: p.Number, Last: p.Number}
		if p.Proto == "tcp" {
			in.TCP = append(in.TCP, one)
		} else {
			in.UDP = append(in.UDP, one)
		}
	}
	return in
}

// serviceStatus is what status says of a service only; names are of the network file f.
func (e *hostEndpoint) serviceStatus(x *control.Endpoint, f *netdb.NetworkFile, st session.Stats) {
	s := e.service.Load()
	if s == nil {
		return
	}
	for _, fw := range s.Forward {
		x.Forwards = append(x.Forwards, fw.String())
	}
	for name, owner := range f.Names {
		if owner == e.Address().Key {
			x.Names = append(x.Names, name)
		}
	}
	slices.Sort(x.Names)
	x.ClientsFrom, x.Clients = s.Clients, len(*e.clients.Load())
	x.MaxSessions, x.MaxNewSessions = s.MaxSessions, s.MaxNewSessions
	x.Refused, x.TooMany = st.DropRefused, st.DropFull+st.DropRate
}
