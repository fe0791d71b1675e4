package router

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"lokinetd/config"
	"lokinetd/dns"
	"lokinetd/netif"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/session"
)

// host is a node on a real machine: its socket, and for a client the TUN, the name server and the services.
type host struct {
	config  *config.Config
	version string
	log     *slog.Logger
	started time.Time
	node    *Node

	// Of a client.
	device    *netif.Device
	pump      *netif.Pump
	dns       *dns.Server
	sockets   *dns.Sockets
	endpoints []*hostEndpoint // the browsing one first; does not change
}

// hostEndpoint is an endpoint with its place in the TUN.
type hostEndpoint struct {
	*Endpoint
	addrs *netif.Map
	place *netif.Endpoint
	ports []string
	pings pings
}

// tunnel is a session table as the pump sees it: what cannot be sent comes back through Undeliverable, once.
type tunnel struct{ *session.Table }

func (t tunnel) Send(to key.Address, b *packet.Buffer) bool {
	t.Table.Send(to, b)
	return true
}

func (h *host) browsing() *hostEndpoint { return h.endpoints[0] }

// maxNetworkFile bounds what is read of a network file, in bytes.
const maxNetworkFile = 8 << 20

// Run is the daemon: it runs until ctx ends or a part fails, and undoes what it did to the host.
//
// Start: node database, link, TUN, name server, control socket, READY=1. Stop: the reverse.
func Run(ctx context.Context, c *config.Config, version string, log *slog.Logger) error {
	if err := link.SelfTest(); err != nil {
		return err
	}
	h := &host{config: c, version: version, log: log, started: time.Now()}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := h.openNode(ctx); err != nil {
		return err
	}
	if c.Role == config.RoleClient {
		defer h.closeHost()
		if err := h.openClient(ctx); err != nil {
			return err
		}
	}
	server, err := control.Listen(c.Control.Socket, c.Control.Group, h, log.With("mod", "control"))
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.node.Run(ctx) })
	g.Go(func() error { return server.Run(ctx) })
	if h.pump != nil {
		g.Go(func() error { return h.pump.Run(ctx) })
		g.Go(func() error { h.watchSessions(ctx); return nil })
	}
	if h.dns != nil {
		g.Go(func() error { return h.dns.Run(ctx) })
	}
	h.node.times.note(momentRunning)
	daemon.SdNotify(false, daemon.SdNotifyReady)
	log.Info("running", "role", c.Role, "version", version)
	err = g.Wait()
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	return err
}

// openNode makes the node and its UDP socket.
func (h *host) openNode(ctx context.Context) error {
	c := h.config
	if c.Network.File == "" {
		return errors.New("network.file: the public network cannot be joined yet; give the file of a private network")
	}
	raw, err := readBounded(c.Network.File, maxNetworkFile)
	if err != nil {
		return fmt.Errorf("network.file: %w", err)
	}
	file, err := netdb.ParseNetworkFile(raw, c.Network.Operator, time.Now())
	if err != nil {
		return fmt.Errorf("%s: %w", c.Network.File, err)
	}
	nc := NodeConfig{Network: file, Log: h.log}
	self, listen := key.Public{}, netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	relay := c.Role == config.RoleRelay
	if relay {
		if nc.Secret, err = loadOrMakeKey(c.Relay.Key); err != nil {
			return err
		}
		self, listen, nc.Public = nc.Secret.Public(), c.Relay.Listen, c.Relay.PublicAddress
		if !nc.Public.IsValid() {
			return errors.New("relay.public_address: not given")
		}
	}
	if nc.Store, err = netdb.OpenStore(filepath.Join(c.DataDir, "nodedb"), self, relay, file.Rules(), h.log.With("mod", "netdb")); err != nil {
		return err
	}
	pc, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(listen))
	if err != nil {
		return fmt.Errorf("link: %w", err)
	}
	nc.Wire, err = link.NewQUIC(pc, link.Config{Secret: nc.Secret, Accept: relay, Registered: nc.Store.Registered, Log: h.log.With("mod", "link")})
	if err != nil {
		pc.Close()
		return err
	}
	o, p := path.DefaultOptions(), c.Paths
	o.Edges, o.UniqueRange, o.AcceptableExpiry, o.MinExpiry = p.EdgeConnections, p.UniqueRangeSize, p.AcceptableExpiry, p.MinExpiry
	o.PingInterval, o.MaxMissedPings, o.PivotReuse = p.PingInterval, p.MaxMissedPings, p.InboundPivotReuse
	o.StrictEdges, o.Blacklist, o.Profiling = p.StrictEdges, p.Blacklist, p.Profiling
	if !file.UniqueRange {
		o.UniqueRange = 0
	}
	nc.Paths = path.ClientConfig{Options: o}
	if h.node, err = NewNode(nc); err == nil {
		h.node.times.at[momentStarted].Store(int64(h.started.Sub(loaded)))
	}
	return err
}

func readBounded(name string, limit int64) ([]byte, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if fi.Size() > limit {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, limit)
	}
	return os.ReadFile(name)
}

// loadOrMakeKey reads a key file, or makes it when there is none.
func loadOrMakeKey(name string) (*key.Secret, error) {
	s, err := key.LoadSecret(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	s = key.Generate()
	return s, s.Save(name)
}

// openClient opens the TUN and the name server and makes the endpoints.
func (h *host) openClient(ctx context.Context) (err error) {
	c := h.config
	h.device, err = netif.OpenDevice(netif.DeviceConfig{Name: c.TUN.Name, Log: h.log.With("mod", "netif")})
	if err != nil {
		return err
	}
	h.pump = netif.NewPump(h.device, h.log.With("mod", "netif"))
	taken, err := netif.HostPrefixes(h.device.Name(), nil)
	if err != nil {
		return err
	}
	flags := uint8(netdb.FlagPFS)
	if !c.TUN.IPv4.Off {
		flags |= netdb.FlagIPv4
	}
	if !c.TUN.IPv6.Off && h.device.NoIPv6() == "" {
		flags |= netdb.FlagIPv6
	}
	secret := key.Generate()
	if c.Client.Key != "" {
		if secret, err = loadOrMakeKey(c.Client.Key); err != nil {
			return err
		}
	}
	base := EndpointConfig{Name: "browsing", Secret: secret, Inbound: c.Paths.InboundPaths, InboundHops: c.Paths.InboundHops,
		Outbound: c.Paths.OutboundPaths, ClientHops: c.Paths.ClientHops, RelayHops: c.Paths.RelayHops, Flags: flags}
	var want []netip.Prefix
	add := func(ec EndpointConfig, bits4 int, prefer4, prefer6 netip.Prefix, in netif.Inbound, ports []string) error {
		var own4, own6 netip.Prefix
		if flags&netdb.FlagIPv4 != 0 {
			if own4, err = netif.FreeIPv4(taken, bits4, prefer4); err != nil {
				return err
			}
			taken, want = append(taken, own4), append(want, own4)
		}
		if flags&netdb.FlagIPv6 != 0 {
			if own6, err = netif.FreeIPv6(taken, netif.Bits6, prefer6); err != nil {
				return err
			}
			taken, want = append(taken, own6), append(want, own6)
		}
		he := &hostEndpoint{ports: ports}
		ec.Deliver = func(from key.Address, b *packet.Buffer) {
			if !he.pings.take(b) {
				he.place.Deliver(from, b)
			}
		}
		ec.Undeliverable = func(to key.Address, b *packet.Buffer, _ error) { he.place.Refuse(to, b) }
		if he.Endpoint, err = h.node.AddEndpoint(ec); err != nil {
			return err
		}
		if he.addrs, err = netif.NewMap(he.Address(), own4, own6); err != nil {
			return err
		}
		if he.place, err = h.pump.Add(he.addrs, in, tunnel{he.Sessions}); err != nil {
			return err
		}
		h.endpoints = append(h.endpoints, he)
		return nil
	}
	if err := add(base, netif.BrowsingBits4, c.TUN.IPv4.Prefix, c.TUN.IPv6.Prefix, netif.Inbound{}, nil); err != nil {
		return err
	}
	for _, s := range c.Service {
		ec := base
		ec.Name, ec.Service = s.Name, true
		if ec.Secret, err = loadOrMakeKey(s.Key); err != nil {
			return err
		}
		in, ports := netif.Inbound{Echo: s.Echo}, []string{}
		for _, p := range s.Ports {
			one := netif.Ports{First: p.Number, Last: p.Number}
			if p.Proto == "tcp" {
				in.TCP = append(in.TCP, one)
			} else {
				in.UDP = append(in.UDP, one)
			}
			ports = append(ports, fmt.Sprintf("%s/%d", p.Proto, p.Number))
		}
		if err := add(ec, netif.ServiceBits4, netip.Prefix{}, netip.Prefix{}, in, ports); err != nil {
			return err
		}
	}
	if err := h.device.Apply(want); err != nil {
		return err
	}
	if !c.DNS.Enabled {
		return nil
	}
	if h.sockets, err = dns.Listen(ctx, c.DNS.Listen...); err != nil {
		return err
	}
	h.dns, err = dns.New(dns.Config{Source: source{h}, Sockets: h.sockets, Upstream: c.DNS.Upstream, Suffix: c.Network.Suffix, Log: h.log.With("mod", "dns")})
	return err
}

// closeHost undoes what openClient did, as far as it came.
func (h *host) closeHost() {
	if h.dns == nil && h.sockets != nil {
		h.sockets.Close()
	}
	if h.device != nil {
		if err := h.device.Close(false); err != nil {
			h.log.Warn("the network interface was not removed", "err", err)
		}
	}
}

// sessionPoll is how often the address maps learn which sessions live.
const sessionPoll = 5 * time.Second

// watchSessions tells the address maps which remotes have a session, so that they keep their addresses.
func (h *host) watchSessions(ctx context.Context) {
	live := map[*hostEndpoint]map[key.Address]bool{}
	t := time.NewTicker(sessionPoll)
	defer t.Stop()
	for {
		now := time.Now()
		for _, e := range h.endpoints {
			next := map[key.Address]bool{}
			for _, i := range e.Sessions.List() {
				next[i.Remote] = true
				if !live[e][i.Remote] {
					e.addrs.SetLive(i.Remote, true, now)
				}
			}
			for a := range live[e] {
				if !next[a] {
					e.addrs.SetLive(a, false, now)
				}
			}
			live[e] = next
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}
