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
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"lokinetd/config"
	"lokinetd/dns"
	"lokinetd/netif"
	"lokinetd/netif/proxy"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/statefile"
)

// host is a node on a real machine: its socket, and for a client the TUN, the name server and the services.
type host struct {
	config  *config.Config
	version string
	log     *slog.Logger
	recent  *recent // its handler
	started time.Time
	again   func() (*config.Config, error)
	sys     *system
	dir     folder
	parts   *stack
	node    *Node

	networkSeen map[string]os.FileInfo        // of the network file and the bootstrap files, when they were last looked at
	bootstraps  []*netdb.RelayContact         // of the bootstrap files
	feed        *feed                         // of events, for the control socket
	current     atomic.Pointer[config.Config] // config with what reloads have changed in it
	ofNetwork   atomic.Pointer[string]        // what the last look at the network file found wrong; nil: nothing
	ofBootstrap atomic.Pointer[string]        // likewise at the bootstrap files
	ofConfig    atomic.Pointer[string]        // likewise of the configuration
	ofClients   atomic.Pointer[string]        // likewise of the lists of who may call services
	ofForwards  atomic.Pointer[string]        // ports of services that are not open yet

	// Of a client.
	before      netif.Changes // what an earlier run has left on the host
	up          bool          // the start has succeeded
	device      device
	pump        *netif.Pump
	wire        *link.QUIC
	dns         *dns.Server
	sockets     *dns.Sockets
	hostDNS     hostDNS
	proxy       *proxy.Server // without a TUN
	proxyAt     proxy.Config  // where it listens
	forwards    forwards
	unforwarded bool // some could not be opened
	unserved    bool // the services could not all be made as configured
	notRun      atomic.Pointer[[]control.NotRun]
	served      atomic.Pointer[[]*hostEndpoint] // see endpoints
	kept        map[string]netif.Kept           // by keepName: of the last run, or of a service that has been removed
	orphans     map[string]netif.Kept           // of the last run, when an endpoint was not there at the start: some are its, and stay for it

	saveMu    sync.Mutex
	unwritten unwritten
	saved     []byte // what is in the file of addresses
}

// endpoints goes over the endpoints that there are now (for i, e := range h.endpoints), the browsing one first, then the services. From any goroutine.
func (h *host) endpoints(yield func(int, *hostEndpoint) bool) {
	for i, e := range *h.served.Load() {
		if !yield(i, e) {
			return
		}
	}
}

func (h *host) browsing() *hostEndpoint { return (*h.served.Load())[0] }

// upstream are the resolvers for other names.
func (h *host) upstream() []netip.AddrPort { return h.current.Load().DNS.Upstream }

// hostEndpoint is an endpoint with its place in the TUN.
type hostEndpoint struct {
	*Endpoint
	addrs   *netif.Map
	place   atomic.Pointer[netif.Endpoint]
	lasting bool                           // the address is the same at the next start
	closed  bool                           // it has not the key that it should have: nobody gets to know it
	service atomic.Pointer[config.Service] // nil: the browsing one
	clients atomic.Pointer[clientList]     // of a service
	pings   pings
}

// ports that a service lets others reach.
func (e *hostEndpoint) ports() (ports []string) {
	if s := e.service.Load(); s != nil {
		for _, p := range s.Ports {
			ports = append(ports, p.String())
		}
		for _, f := range s.Forward {
			ports = append(ports, f.Port.String())
		}
	}
	return ports
}

// Send is the endpoint's session table as the pump sees it: what cannot be sent comes back through Undeliverable, once.
func (e *hostEndpoint) Send(to key.Address, b *packet.Buffer) bool {
	if place := e.place.Load(); e.closed && place != nil {
		place.Refuse(to, b)
		return true
	}
	e.Sessions.Send(to, b)
	return true
}

// Limits of the steps of the stop. Together they stay below the 90 s after which systemd kills.
const (
	answerLimit = 3 * time.Second  // control socket, name server: who asks is told that it is over
	nodeLimit   = 10 * time.Second // session_close on the paths, the paths' ends on the links, the links' ends on the wire
	hostLimit   = 5 * time.Second
)

// Run is the daemon: it runs until ctx ends or a part fails, and undoes what it did to the host. again, if not nil, reads the configuration
// for a reload (SIGHUP).
//
// Start, step by step; an error at one of them undoes those before it:
//
//  1. The data directory is taken (lock), so that there is one daemon and no cleanup beside it.
//  2. Node: node database, links, paths, sessions. It connects and builds paths while the next steps are done.
//  3. TUN: unreachable routes, addresses, interface up; written to the state file before (host_folder.go).
//  4. Pump between TUN and sessions, and the watch over addresses.
//  5. Name server, on sockets of our own or those that a service manager has opened before; then the host's resolver is told (host_dns.go).
//  6. Control socket.
//  7. READY=1; from now on the loop: signals, the network file, the watchdog.
//
// Stop: the reverse, each step with a time limit (host_stack.go).
func Run(ctx context.Context, c *config.Config, version string, log *slog.Logger, again func() (*config.Config, error)) error {
	if err := link.SelfTest(); err != nil {
		return err
	}
	sys := newSystem(log)
	defer sys.close()
	return run(ctx, c, version, log, again, sys)
}

// StartError is why a daemon did not come up. It will not the next time either, unless somebody does something.
type StartError struct{ error }

func (e StartError) Unwrap() error { return e.error }

func run(ctx context.Context, c *config.Config, version string, log *slog.Logger, again func() (*config.Config, error), sys *system) (err error) {
	remember := newRecent(log.Handler())
	log = slog.New(remember)
	h := &host{config: c, version: version, log: log, recent: remember, started: time.Now(), again: again, sys: sys, dir: folder(c.DataDir), parts: newStack(log)}
	h.current.Store(c)
	defer func() {
		sys.notify(daemon.SdNotifyStopping)
		if err = errors.Join(err, h.parts.stop()); err != nil && !h.up {
			err = StartError{err}
		}
	}()
	memory := newCollector()
	cores := newGovernor()
	h.parts.add("collector, processors", hostLimit, func() error { memory.close(); cores.close(); return nil })
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	unlock, err := h.dir.lock()
	if err != nil {
		return err
	}
	h.parts.add("data directory", hostLimit, unlock)
	h.dir.sweep()
	if err := h.openNode(ctx); err != nil {
		return err
	}
	h.parts.run("node", nodeLimit, h.node.Run)
	if c.Role == config.RoleClient {
		if err := h.openClient(ctx); err != nil {
			return err
		}
		h.parts.run("roaming", hostLimit, h.roam)
	}
	h.feed = newFeed(h.Status)
	h.parts.run("events", answerLimit, h.feed.run)
	server, err := control.Listen(c.Control.Socket, c.Control.Group, h, log.With("mod", "control"))
	if err != nil {
		return err
	}
	h.parts.run("control socket", answerLimit, server.Run)
	if err := h.openMetrics(); err != nil {
		return err
	}
	for _, f := range sys.files {
		log.Warn("a descriptor that was passed has no use here", "name", f.Name())
		sys.notify("FDSTOREREMOVE=1\nFDNAME=" + f.Name())
		f.Close() // the last of an interface that was kept when this was a client
	}
	sys.files = nil
	h.up = true
	h.node.times.note(momentRunning)
	sys.notify(daemon.SdNotifyReady)
	log.Info("running", "role", c.Role, "version", version)
	return h.loop(ctx, memory, cores)
}

// adaptEvery is how often the collector's target and the number of processors follow the load.
const adaptEvery = time.Second

// loop is the daemon's main loop, until ctx ends (nil) or a part fails (its error). The watchdog is fed from here, and only while the node's own loop goes
// round too.
func (h *host) loop(ctx context.Context, memory *collector, cores *governor) error {
	var feed <-chan time.Time
	if h.sys.watchdog > 0 {
		t := time.NewTicker(h.sys.watchdog / 3)
		defer t.Stop()
		feed = t.C
	}
	poll, adapt := time.NewTicker(networkPoll), time.NewTicker(adaptEvery)
	defer poll.Stop()
	defer adapt.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-h.parts.failed:
			return err
		case <-h.sys.reload:
			h.sys.reloading()
			h.reload()
			h.sys.notify(daemon.SdNotifyReady)
		case <-poll.C:
			h.saveAgain()
			if h.networkChanged() {
				h.takeNetwork()
			}
			h.mend()
		case now := <-adapt.C:
			memory.adapt(now)
			cores.adapt(now)
			if h.unforwarded {
				h.openForwards()
			}
		case now := <-feed:
			if h.alive(now) {
				h.sys.notify(daemon.SdNotifyWatchdog)
			}
		}
	}
}

// alive says whether the node's loop has gone round lately.
func (h *host) alive(now time.Time) bool {
	return now.Sub(time.Unix(0, h.node.beat.Load())) < max(h.sys.watchdog/2, 4*tick)
}

// openNode makes the node and its UDP socket.
func (h *host) openNode(ctx context.Context) error {
	c := h.config
	relay := c.Role == config.RoleRelay
	h.networkChanged()
	file, err := h.findNetwork()
	if err != nil {
		return err
	}
	nc := NodeConfig{Network: file, Log: h.log}
	self, listen := key.Public{}, netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if relay {
		if c.Relay.Oxend != "" {
			nc.Oxend, nc.Secret, err = h.openOxend(ctx)
		} else {
			nc.Secret, err = loadOrMakeKey(c.Relay.Key) // a relay without its key has nothing to run
		}
		if err != nil {
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
	var links link.Limits
	links, nc.Limits, _ = limits()
	nc.Limits.Rate = c.Relay.Rate * 1e6 / 8
	h.wire, err = link.NewQUIC(pc, link.Config{Secret: nc.Secret, Accept: relay, Registered: nc.Store.Registered, Limits: links, Log: h.log.With("mod", "link")})
	if err != nil {
		pc.Close()
		return err
	}
	nc.Wire = h.wire
	o, p := path.DefaultOptions(), c.Paths
	o.Edges, o.UniqueRange, o.AcceptableExpiry, o.MinExpiry = p.EdgeConnections, p.UniqueRangeSize, p.AcceptableExpiry, p.MinExpiry
	o.PingInterval, o.MaxMissedPings, o.PivotReuse = p.PingInterval, p.MaxMissedPings, p.InboundPivotReuse
	o.StrictEdges, o.Blacklist, o.Profiling = p.StrictEdges, p.Blacklist, p.Profiling
	if !file.UniqueRange {
		o.UniqueRange = 0
	}
	nc.Paths = path.ClientConfig{Options: o}
	if !relay {
		nc.Paths.Kept, nc.Paths.Keep = h.openEdges(file.Network)
		nc.OnReady = func() { h.log.Info("ready", "after", time.Since(h.started).Round(time.Millisecond)) }
	}
	if h.node, err = NewNode(nc); err == nil {
		h.node.times.at[momentStarted].Store(int64(h.started.Sub(loaded)))
	} else {
		pc.Close()
	}
	return err
}

// loadOrMakeKey reads a key file, or makes it when there is none. One that is there is never touched. Its errors are keyErrors.
func loadOrMakeKey(name string) (*key.Secret, error) {
	statefile.Sweep(name) // remains may hold the same secret
	s, err := key.LoadSecret(name)
	if errors.Is(err, fs.ErrNotExist) {
		s = key.Generate()
		err = s.Save(name)
	}
	if err != nil {
		return nil, keyError{name, err}
	}
	return s, nil
}

// keyError is why there is no key, which tells the file.
type keyError struct {
	file string
	error
}

func (e keyError) Unwrap() error { return e.error }

// openClient does steps 3 to 5 of the start.
func (h *host) openClient(ctx context.Context) (err error) {
	c := h.config
	h.openChanges()
	if err := h.openDevice(); err != nil {
		return err
	}
	h.parts.add("network interface", hostLimit, h.closeDevice)
	h.pump = netif.NewPump(h.device, h.log.With("mod", "netif"))
	h.pump.Links = h.wire
	h.loadAddresses()
	if err := h.openEndpoints(); err != nil {
		return err
	}
	h.parts.run("packet pump", hostLimit, h.pump.Run)
	h.parts.run("addresses", hostLimit, h.watchSessions)
	if h.userSpace() == nil {
		h.meetPrograms()
	}
	h.openForwards()
	if err := h.openProxy(); err != nil {
		return err
	}
	if !c.DNS.Enabled {
		return nil
	}
	if h.sockets, err = h.sys.dnsSockets(ctx, c.DNS.Listen); err != nil {
		return err
	}
	h.dns, err = dns.New(dns.Config{Source: source{h}, Sockets: h.sockets, Upstream: h.adoptFormer(c.DNS.Upstream), Suffix: c.Network.Suffix, Log: h.log.With("mod", "dns")})
	if err != nil {
		h.sockets.Close()
		return err
	}
	h.parts.run("name server", answerLimit, h.dns.Run)
	h.openHostDNS()
	return nil
}

// openDevice opens the TUN, or takes over the one that the service manager has kept since the last run: packets have waited in it.
func (h *host) openDevice() error {
	dc := netif.DeviceConfig{Name: h.config.TUN.Name, Before: h.before, Record: h.record, Log: h.log.With("mod", "netif")}
	for _, f := range h.sys.take(tunName) {
		dc.File = f
		d, err := h.sys.openDevice(dc)
		switch {
		case err != nil:
			h.log.Warn("the network interface of the last run cannot be taken over", "err", err)
		case h.device != nil || d.Name() != h.config.TUN.Name && !strings.Contains(h.config.TUN.Name, "%"):
			d.Close(true) // of another configuration; its routes are in Before of the one that is used
		default:
			h.device = d
		}
	}
	if h.device == nil {
		var err error
		dc.File = nil
		if h.device, err = h.sys.openDevice(dc); err != nil {
			return err
		}
	}
	if err := h.sys.keep(tunName, h.device.File()); err != nil {
		h.log.Warn("the network interface will not outlive a restart", "err", err)
	}
	return nil
}

// mend puts back on the host what others have taken away; routes and addresses at once, since the kernel tells of them, the firewall within networkPoll.
func (h *host) mend() {
	d, ok := h.device.(interface{ Mend() ([]string, error) })
	if !ok {
		return // of no kernel
	}
	missing, err := d.Mend()
	if len(missing) > 0 {
		h.log.Warn("somebody has taken away from this host what keeps packets for our addresses in, and it was put back", "what", missing)
	}
	if err != nil {
		h.log.Warn("what keeps packets for our addresses in cannot be put back", "err", err)
	}
}

// closeDevice undoes what was done to the host. Under a service manager the unreachable routes stay, so that nothing for our ranges leaves another way
// while we are away; so they do when a start fails that found them.
func (h *host) closeDevice() error {
	if h.userSpace() != nil {
		return h.device.Close(false) // what is in the state file is an earlier TUN's
	}
	keepRoutes := h.sys.managed && (h.up || len(h.before.Unreachable) > 0)
	if err := h.device.Close(keepRoutes); err != nil || keepRoutes {
		return err
	}
	return h.dir.remove(stateFile)
}
