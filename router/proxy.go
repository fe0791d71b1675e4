package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"lokinetd/config"
	"lokinetd/dns"
	"lokinetd/netif"
	"lokinetd/netif/proxy"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/session"
)

// A client without root: the same node, endpoints and packet pump, with a TCP/IP stack in this process in the place of the TUN, proxies in the place of the name server,
// and no change to the host. What local programs ask the proxies for is done by the browsing endpoint; the ports of services lead to local addresses
// (host_forward.go).

// proxyReady is how long who asks a proxy waits for the node's first path.
const proxyReady = 20 * time.Second

// RunProxy is Run without a network interface. DNS and TUN of the configuration have no effect.
func RunProxy(ctx context.Context, c *config.Config, version string, log *slog.Logger, again func() (*config.Config, error)) error {
	if c.Role != config.RoleClient {
		return errors.New("router: only a client has a proxy: a relay has no use for one")
	}
	if err := link.SelfTest(); err != nil {
		return err
	}
	sys := newSystem(log)
	defer sys.close()
	reread := again
	if again != nil {
		reread = func() (*config.Config, error) {
			c, err := again()
			if err == nil {
				inUserSpace(c)
			}
			return c, err
		}
	}
	inUserSpace(c)
	sys.inUserSpace(log)
	return run(ctx, c, version, log, reread, sys)
}

func inUserSpace(c *config.Config) { c.DNS.Enabled = false }

// inUserSpace makes the daemon leave the host alone.
func (s *system) inUserSpace(log *slog.Logger) {
	s.openDevice = func(netif.DeviceConfig) (device, error) {
		d, err := netif.NewStack()
		if err != nil {
			return nil, err
		}
		return d, nil
	}
	// Nobody but us sees our ranges. They are apart from the host's all the same, for people who read addresses, as far as the host can be asked.
	s.prefixes = func(name string, own []netip.Prefix) ([]netip.Prefix, error) {
		taken, err := netif.HostPrefixes(name, own)
		if err != nil {
			log.Debug("the host's addresses are not known", "err", err)
		}
		return taken, nil
	}
}

// userSpace is the device of a client without root, else nil.
func (h *host) userSpace() *netif.Stack {
	s, _ := h.device.(*netif.Stack)
	return s
}

// openProxy starts the proxies of a client without root.
func (h *host) openProxy() error {
	if h.userSpace() == nil {
		return nil
	}
	log := h.log.With("mod", "proxy")
	pc := proxy.Config{Network: proxied{h}, Log: log}
	err := listenAll(&pc.SOCKS, h.config.Proxy.SOCKS, "proxy.socks")
	if err == nil {
		err = listenAll(&pc.HTTP, h.config.Proxy.HTTP, "proxy.http")
	}
	for _, l := range append(append([]*net.TCPListener(nil), pc.SOCKS...), pc.HTTP...) {
		if err != nil {
			l.Close()
		} else if at := l.Addr().(*net.TCPAddr); !at.IP.IsLoopback() {
			log.Warn("whoever reaches this address uses this client's identity", "listen", at)
		}
	}
	if err != nil {
		return err
	}
	h.proxy, h.proxyAt = proxy.New(pc), pc
	st := h.proxyStatus()
	log.Info("the way to names of ours", "socks5", strings.Join(st.SOCKS, " "), "http", strings.Join(st.HTTP, " "))
	h.parts.run("proxies", answerLimit, h.proxy.Run)
	return nil
}

func listenAll(to *[]*net.TCPListener, at []netip.AddrPort, name string) error {
	for _, a := range at {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(a))
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("%s: %v is in use by another program; choose another address", name, a)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		*to = append(*to, l)
	}
	return nil
}

// proxyStatus is for status; nil: there is none.
func (h *host) proxyStatus() *control.Proxy {
	if h.proxy == nil {
		return nil
	}
	st := h.proxy.Stats()
	p := &control.Proxy{SOCKS: []string{}, HTTP: []string{}, Open: st.Open, Opened: st.Opened, Failed: st.Failed, Refused: st.Refused, Full: st.Full,
		Datagrams: st.Datagrams, DatagramsDropped: st.Dropped}
	for _, l := range h.proxyAt.SOCKS {
		p.SOCKS = append(p.SOCKS, l.Addr().String())
	}
	for _, l := range h.proxyAt.HTTP {
		p.HTTP = append(p.HTTP, l.Addr().String())
	}
	return p
}

// proxied is what the proxies reach (proxy.Network): the remotes of the browsing endpoint, and our own services.
type proxied struct{ h *host }

// Resolve implements proxy.Network. It starts a session with the remote and waits for it.
func (p proxied) Resolve(ctx context.Context, n key.Name) ([]netip.Addr, error) {
	s := source(p)
	ready, cancel := context.WithTimeout(ctx, proxyReady)
	defer cancel()
	if !s.Ready(ready) {
		return nil, proxy.ErrNotReady
	}
	var a key.Address
	var err error
	switch n.Kind {
	case key.NameAddress:
		a = n.Address
	case key.NameSNS:
		if a, _, err = s.Lookup(ctx, n.SNS); errors.Is(err, dns.ErrNotExist) {
			return nil, proxy.ErrNotFound
		} else if err != nil {
			return nil, err
		}
	case key.NameRandom:
		var ok bool
		if a, ok = s.RandomRelay(); !ok {
			return nil, proxy.ErrNotReady
		}
	default:
		return nil, proxy.ErrRefused
	}
	b := p.h.browsing()
	if a == b.Address() {
		return nil, proxy.ErrRefused // nothing of ours listens there, and nothing will
	}
	for _, e := range p.h.endpoints {
		if e.Address() == a {
			return e.own(), nil
		}
	}
	if err := b.Sessions.Connect(ctx, a); errors.Is(err, session.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", proxy.ErrNotFound, err)
	} else if err != nil {
		return nil, err
	}
	p.h.node.times.note(momentResolved)
	var ips []netip.Addr
	ip4, err4 := b.addrs.IPv4(a, time.Now())
	if err4 == nil {
		ips = append(ips, ip4)
	}
	ip6, err6 := b.addrs.IPv6(a, time.Now())
	if err6 == nil {
		ips = append(ips, ip6)
	}
	if len(ips) == 0 {
		return nil, errors.Join(err4, err6)
	}
	return ips, nil
}

// Mapped implements proxy.Network.
func (p proxied) Mapped(ip netip.Addr) bool {
	b := p.h.browsing()
	a, ok := b.addrs.Remote(ip, time.Now())
	return ok && a != b.Address()
}

// Dial implements proxy.Network.
func (p proxied) Dial(ctx context.Context, to netip.AddrPort) (proxy.Conn, error) {
	from, err := p.from(to.Addr().Is6())
	if err != nil {
		return nil, err
	}
	c, err := p.h.userSpace().DialTCP(ctx, from, to)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// ListenPacket implements proxy.Network.
func (p proxied) ListenPacket(v6 bool) (net.PacketConn, error) {
	from, err := p.from(v6)
	if err != nil {
		return nil, err
	}
	return p.h.userSpace().ListenUDP(netip.AddrPortFrom(from, 0))
}

// from is the browsing endpoint's own address.
func (p proxied) from(v6 bool) (netip.Addr, error) {
	for _, own := range p.h.browsing().own() {
		if own.Is6() == v6 {
			return own, nil
		}
	}
	return netip.Addr{}, netif.ErrNoFamily
}

// own are the endpoint's own addresses, IPv4 first.
func (e *hostEndpoint) own() (all []netip.Addr) {
	_, own4, own6 := e.addrs.Self()
	for _, p := range []netip.Prefix{own4, own6} {
		if p.IsValid() {
			all = append(all, p.Addr())
		}
	}
	return all
}
