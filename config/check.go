package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// Bounds.
const (
	maxName     = 15  // bytes of an interface's name, by the kernel
	maxSocket   = 107 // bytes of a socket's path, by the kernel
	maxServices = 64
	maxPorts    = 256 // of a service
	maxSRV      = 32  // of a service; they travel with its contact, which is small
)

// check looks at each value by itself, as far as its type has not done it. It runs before finish: what is not given is still empty.
func (c *Config) check(d *decoder) {
	if c.DataDir == "" {
		d.fault("data_dir", "must not be empty")
	}
	if n := c.Paths.UniqueRangeSize; n > 0 && n < 4 {
		d.fault("paths.unique_range_size", "%d is out of range: want 0 (off) or 4 to 32", n)
	}

	if n := c.TUN.Name; n == "" || len(n) > maxName || n == "." || n == ".." || strings.ContainsAny(strings.Replace(n, "%d", "", 1), "/ :%") {
		d.fault("tun.name", "%q: want the name of an interface: 1 to %d bytes without blanks, colons and slashes, in which a %%d stands for a free number", n, maxName)
	}
	if c.TUN.IPv4.Off {
		d.fault("tun.ipv4", `want "auto" or a range: only IPv6 can be off`)
	}
	if why := c.TUN.IPv4.check(false); why != "" {
		d.fault("tun.ipv4", "%s: %s", c.TUN.IPv4, why)
	}
	if why := c.TUN.IPv6.check(true); why != "" {
		d.fault("tun.ipv6", "%s: %s", c.TUN.IPv6, why)
	}

	if c.DNS.Enabled && len(c.DNS.Listen) == 0 {
		d.fault("dns.listen", "must not be empty; to have no name server, set enabled = false")
	}
	for i, a := range c.DNS.Listen {
		if a.Addr().IsMulticast() {
			d.fault(fmt.Sprintf("dns.listen[%d]", i), "%s: want an address of this host", a)
		}
	}
	for i, u := range c.DNS.Upstream {
		at := fmt.Sprintf("dns.upstream[%d]", i)
		if u.Addr().IsUnspecified() || u.Addr().IsMulticast() {
			d.fault(at, "%s: want the address of a resolver", u)
		}
		for _, l := range c.DNS.Listen {
			if u == l || l.Addr().IsUnspecified() && u.Addr().IsLoopback() && u.Port() == l.Port() {
				d.fault(at, "%s is this name server itself (dns.listen)", u)
			}
		}
	}

	if len(c.Service) > maxServices {
		d.fault("service", "%d services: at most %d", len(c.Service), maxServices)
	}
	for i, s := range c.Service {
		at := fmt.Sprintf("service[%d]", i)
		if !serviceName(s.Name) {
			d.fault(at+".name", "%q: want 1 to 32 of a-z, 0-9 and inner hyphens", s.Name)
		}
		if j := slices.IndexFunc(c.Service[:i], func(o Service) bool { return o.Name == s.Name }); j >= 0 && s.Name != "" {
			d.fault(at+".name", "%q is the name of service[%d] already", s.Name, j)
		}
		if n := len(s.Ports) + len(s.Forward); n > maxPorts {
			d.fault(at+".ports", "%d ports, with those of forward: at most %d", n, maxPorts)
		}
		s.checkForward(d, at+".forward")
		if n := len(s.SRV); n > maxSRV {
			d.fault(at+".srv", "%d records: at most %d", n, maxSRV)
		}
	}

	host := func(at string, a netip.AddrPort) {
		switch {
		case !a.IsValid():
		case !a.Addr().Is4():
			d.fault(at, "%s: want an IPv4 address", a)
		case a.Addr().IsMulticast() || a.Addr() == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			d.fault(at, "%s: want the address of one host", a)
		}
	}
	host("relay.listen", c.Relay.Listen)
	host("relay.public_address", c.Relay.PublicAddress)
	if !c.Relay.Listen.IsValid() {
		d.fault("relay.listen", "must not be empty")
	}
	if a := c.Relay.PublicAddress; a.IsValid() && a.Addr().IsUnspecified() {
		d.fault("relay.public_address", "%s: want the address of one host", a)
	}

	switch o := c.Relay.Oxend; {
	case o != "" && !strings.HasPrefix(o, "ipc:///"):
		d.fault("relay.oxend", "%q: want \"ipc://\" and the absolute path of oxend's socket", o)
	case len(o) > len("ipc://")+maxSocket:
		d.fault("relay.oxend", "%d bytes: a socket's path may have at most %d", len(o)-len("ipc://"), maxSocket)
	case o != "" && c.Network.File != "":
		d.fault("relay.oxend", "has a meaning only without network.file: a private network needs no oxend")
	case c.Relay.Key != "" && c.Role == RoleRelay && c.Network.File == "":
		d.fault("relay.key", "has a meaning only with network.file: on the public network oxend holds the relay's key")
	}

	switch s := c.Control.Socket; {
	case s == "":
		d.fault("control.socket", "must not be empty")
	case len(s) > maxSocket:
		d.fault("control.socket", "%d bytes: a socket's path may have at most %d", len(s), maxSocket)
	}
	if a := c.Metrics.Listen; a.IsValid() && !a.Addr().IsLoopback() {
		d.fault("metrics.listen", "%s: want an address of loopback, such as 127.0.0.1:9190; figures are for this host only", a)
	}
	if s := c.Metrics.Socket; len(s) > maxSocket {
		d.fault("metrics.socket", "%d bytes: a socket's path may have at most %d", len(s), maxSocket)
	} else if s != "" && s == c.Control.Socket {
		d.fault("metrics.socket", "is the socket of control already")
	}
	if g := c.Control.Group; strings.ContainsAny(g, ": ,/") || len(g) > 32 {
		d.fault("control.group", "%q: want the name of a group", g)
	}
}

func serviceName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && (c != '-' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return 0 < len(s) && len(s) <= 32
}

// checkTogether looks at values that depend on each other. It runs after finish.
func (c *Config) checkTogether(d *decoder) {
	n := &c.Network
	switch {
	case n.File != "" && n.Operator.IsZero():
		d.fault("network.operator", "must be set with network.file: the key that signed it, as the operator's `lokinetd key show` prints it")
	case n.File == "" && !n.Operator.IsZero():
		d.fault("network.operator", "has a meaning only with network.file")
	}

	if n.File != "" && n.Name != Mainnet {
		d.fault("network.name", "has a meaning only without network.file, which says itself what network it is of")
	}

	p := &c.Paths
	if p.MinExpiry > p.AcceptableExpiry {
		d.fault("paths.min_expiry", "%v is more than acceptable_expiry, which is %v", p.MinExpiry, p.AcceptableExpiry)
	}
	if len(p.StrictEdges) > 0 {
		for name, hops := range map[string]int{"client_hops": p.ClientHops, "relay_hops": p.RelayHops, "inbound_hops": p.InboundHops} {
			if hops == 1 {
				d.fault("paths."+name, "1 hop and strict_edges exclude each other: the only hop would have to be the relay at the other end")
			}
		}
	}
	for i, k := range p.StrictEdges {
		if slices.Contains(p.Blacklist, k) {
			d.fault(fmt.Sprintf("paths.strict_edges[%d]", i), "is on the blacklist too")
		}
	}
	files := map[string]string{}
	file := func(key, path string) {
		if path == "" {
			return
		}
		if other, ok := files[path]; ok {
			d.fault(key, "%s is the key file of %s already", path, other)
		}
		files[path] = key
	}
	file("client.key", c.Client.Key)
	for i, s := range c.Service {
		file(fmt.Sprintf("service[%d].key", i), s.Key)
	}
	if c.Role == RoleRelay {
		file("relay.key", c.Relay.Key)
	}

	// What has no effect in this role is an error, unless it is as if it were not there.
	base := defaults()
	base.DataDir = c.DataDir
	base.finish()
	a, b := reflect.ValueOf(c).Elem(), reflect.ValueOf(base).Elem()
	for i := range a.NumField() {
		name := a.Type().Field(i).Tag.Get("toml")
		idle := false
		switch name {
		case "client", "paths", "tun", "dns", "proxy", "service":
			idle = c.Role == RoleRelay
		case "relay":
			idle = c.Role == RoleClient
		}
		if idle && !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			label := "[" + name + "]"
			if a.Field(i).Kind() == reflect.Slice {
				label = "[" + label + "]"
			}
			d.fault(name, "%s has no effect with role = %q: remove what it sets, or change the role", label, c.Role)
		}
	}
}
