package router

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"lokinetd/dns"
	"lokinetd/netif"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/session"
)

// source answers the name server's questions (dns.Source) for the browsing endpoint of a host.
type source struct{ h *host }

var _ dns.Source = source{}

func (s source) Ready(ctx context.Context) bool { return s.h.node.client.waitInbound(ctx) }

func (s source) Self() key.Address { return s.h.browsing().Address() }

func (s source) RandomRelay() (key.Address, bool) {
	for _, c := range s.h.node.store.Random(1, func(*netdb.RelayContact) bool { return true }) {
		return key.Address{Key: c.ID, Kind: key.Relay}, true
	}
	return key.Address{}, false
}

func (s source) Lookup(ctx context.Context, name string) (key.Address, time.Duration, error) {
	a, ttl, err := s.h.node.Lookup(ctx, name)
	if errors.Is(err, ErrNoName) {
		err = dns.ErrNotExist
	}
	return a, ttl, err
}

func (s source) Exists(a key.Address) bool {
	return a.Kind == key.Client || s.h.node.store.IsKnown(a.Key) || len(s.h.node.store.Known()) == 0
}

func (s source) Addr(ctx context.Context, a key.Address, v6 bool) (netip.Addr, error) {
	for _, e := range s.h.endpoints { // our own, without a session
		if _, own4, own6 := e.addrs.Self(); e.Address() == a {
			own := own4.Addr()
			if v6 {
				own = own6.Addr()
			}
			if !own.IsValid() {
				return own, dns.ErrNoFamily
			}
			return own, nil
		}
	}
	b := s.h.browsing()
	get := b.addrs.IPv4
	if v6 {
		get = b.addrs.IPv6
	}
	ip, err := get(a, time.Now())
	switch {
	case errors.Is(err, netif.ErrNoFamily):
		return ip, dns.ErrNoFamily
	case errors.Is(err, netif.ErrExhausted):
		return ip, dns.ErrExhausted
	case err != nil:
		return ip, err
	}
	if b.Sessions.Connect(ctx, a) == nil { // whatever becomes of it, the address is right
		s.h.node.times.note(momentResolved)
	}
	return ip, nil
}

func (s source) Ranges() (ranges []netip.Prefix) {
	for _, e := range s.h.endpoints {
		_, own4, own6 := e.addrs.Self()
		for _, p := range []netip.Prefix{own4, own6} {
			if p.IsValid() {
				ranges = append(ranges, p.Masked())
			}
		}
	}
	return ranges
}

func (s source) Reverse(ip netip.Addr) (key.Address, bool) {
	for _, e := range s.h.endpoints {
		if a, ok := e.addrs.Remote(ip, time.Now()); ok {
			return a, true
		}
	}
	return key.Address{}, false
}

func (s source) Text(a key.Address, path bool) []string {
	switch {
	case path:
		for _, i := range s.h.browsing().Sessions.List() {
			if i.Remote == a && i.Current {
				return []string{fmt.Sprintf("d=%s; path=%s; ttl=%d", direction(i), s.hops(i.Hops), int(time.Until(i.PathExpiry).Seconds()))}
			}
		}
		return []string{"d=none"}
	case a == s.Self():
		p := ProtocolVersion
		return []string{fmt.Sprintf("sessionrouter=client v=%d.%d.%d netid=%d", p[0], p[1], p[2], s.h.node.network.Load().Network)}
	case a.Kind == key.Relay:
		if c := s.h.node.store.Get(a.Key); c != nil {
			return []string{fmt.Sprintf("rc v=%d.%d.%d i=%v t=%d", c.Version[0], c.Version[1], c.Version[2], c.Addr, c.Time.Unix())}
		}
	}
	return nil
}

// hops lists the relays of a path, with their addresses where they are known.
func (s source) hops(ids []key.Public) string {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = id.String()
		if c := s.h.node.store.Get(id); c != nil {
			list[i] += "@" + c.Addr.Addr().String()
		}
	}
	return strings.Join(list, " ")
}

func direction(i session.Info) string {
	if i.Inbound {
		return "in"
	}
	return "out"
}

func (s source) Services(ctx context.Context, a key.Address) ([]dns.SRV, error) {
	if a.Kind == key.Relay { // whose contact has none
		return nil, dns.ErrNotExist
	}
	for _, e := range s.h.endpoints {
		if service := e.service.Load(); service != nil && e.Address() == a { // a service of this host: its records need no path
			return answers(records(*service, a.Key)), nil
		}
	}
	c, err := s.h.browsing().Sessions.Contact(ctx, a.Key)
	if errors.Is(err, session.ErrNotFound) {
		return nil, dns.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	return answers(c.SRV), nil
}

func answers(records []netdb.SRV) []dns.SRV {
	all := make([]dns.SRV, len(records))
	for i, r := range records {
		all[i] = dns.SRV(r)
	}
	return all
}
