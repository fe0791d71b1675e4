package netif

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	// DefaultName is the TUN's name unless the configuration says otherwise.
	DefaultName = "lokinet0"
	devTUN      = "/dev/net/tun"
	// routeProtocol marks our unreachable routes, as other routing programs mark theirs.
	routeProtocol = 108
	// lastMetric of a route: the highest that fits everywhere, behind every route that leads somewhere.
	lastMetric = math.MaxInt32
	// ownAlias marks an interface of ours, for people and for Cleanup.
	ownAlias = "lokinetd"
	// addrGenModeNone is the kernel's IN6_ADDR_GEN_MODE_NONE.
	addrGenModeNone = 1
)

// Changes is all that a Device puts on the host, for the state file: what Cleanup undoes. It is a desired state, not a journal: any part of it
// may not be there.
type Changes struct {
	Interface string
	// Index is the interface's number, so that Cleanup does not take another program's for ours; 0: leave it alone.
	Index int
	// Unreachable are the ranges that have an unreachable route, so that nothing for them leaves another way while the TUN is away. The firewall table of Interface is for
	// the same ranges, where the kernel has nftables.
	Unreachable []netip.Prefix
}

// DeviceConfig says how to open a Device.
type DeviceConfig struct {
	Name string // of the interface; "": DefaultName; a %d in it is replaced by the kernel
	// File, if not nil, is the descriptor of a TUN that an earlier run opened (kept by the service manager). It belongs to the Device afterwards.
	File *os.File
	// Before is what an earlier run has left: its routes are kept when they are wanted again, otherwise removed.
	Before Changes
	// Record, if not nil, is called before every change that can outlive the process, with all that will be on the host after it. An error stops
	// the change.
	Record func(Changes) error
	Log    *slog.Logger
}

// Device is a TUN interface with its addresses and the unreachable routes behind them. Its methods may be called from several goroutines.
type Device struct {
	dev    tun.Device
	name   string
	link   netlink.Link
	record func(Changes) error
	log    *slog.Logger
	no6    string                                         // why there is no IPv6; "": there is
	filter func(name string, ranges []netip.Prefix) error // setFilter

	mu     sync.Mutex
	former string         // the interface of an earlier run, if it had another name: its firewall table is there until ours is
	bare   string         // why there is no firewall; "": there is, or it has not been tried
	routes []netip.Prefix // unreachable routes that are or may be there
	addrs  []netip.Prefix
	closed bool
}

// OpenDevice makes the TUN interface, with MTU 1280, down and without addresses. Nothing of the host's traffic changes until Apply.
func OpenDevice(c DeviceConfig) (*Device, error) {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	d := &Device{record: c.Record, log: c.Log, filter: setFilter, routes: slices.Clone(c.Before.Unreachable)}
	fd, err := tunFD(c.Name, c.File)
	if err != nil {
		return nil, err
	}
	if d.dev, d.name, err = tun.CreateUnmonitoredTUNFromFD(fd); err != nil {
		return nil, fmt.Errorf("netif: open %s: %w", c.Name, err) // the library's os.File has fd and closes it
	}
	if err := d.init(); err != nil {
		d.dev.Close()
		return nil, err
	}
	if c.Before.Interface != d.name {
		d.former = c.Before.Interface
	}
	return d, nil
}

// tunFD opens the TUN of that name or takes over the descriptor of one that is open.
func tunFD(name string, file *os.File) (int, error) {
	if file != nil {
		defer file.Close()
		fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("netif: take over a tun: %w", err)
		}
		return fd, nil
	}
	fd, err := unix.Open(devTUN, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("netif: open %s: %w", devTUN, err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		switch {
		case errors.Is(err, unix.EBUSY):
			err = errors.New("another program uses it; choose another name")
		case errors.Is(err, unix.EPERM):
			err = fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
		case errors.Is(err, unix.EINVAL):
			err = fmt.Errorf("%w (not a name for an interface, or an interface of another kind)", err)
		}
		return -1, fmt.Errorf("netif: make %s: %w", name, err)
	}
	return fd, nil
}

func (d *Device) init() error {
	link, err := netlink.LinkByName(d.name)
	if err != nil {
		return fmt.Errorf("netif: find %s: %w", d.name, err)
	}
	d.link = link
	if err := netlink.LinkSetMTU(link, MTU); err != nil {
		return fmt.Errorf("netif: set the mtu of %s to %d: %w", d.name, MTU, err)
	}
	if err := netlink.LinkSetAlias(link, ownAlias); err != nil {
		return fmt.Errorf("netif: mark %s: %w", d.name, err)
	}
	if d.no6 = noIPv6(d.name); d.no6 == "" {
		// No link-local address: the kernel would send router solicitations through it.
		if err := netlink.LinkSetIP6AddrGenMode(link, addrGenModeNone); err != nil {
			d.log.Debug("no link-local addresses cannot be set", "interface", d.name, "err", err)
		}
	}
	addrs, err := d.list()
	if err != nil {
		return err
	}
	d.addrs = addrs
	return nil
}

// noIPv6 says why an interface (or, with "default", a new one) cannot have IPv6 addresses; "": it can.
func noIPv6(name string) string {
	b, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "the kernel has no IPv6"
	case err == nil && strings.TrimSpace(string(b)) != "0":
		return "IPv6 is disabled by sysctl (disable_ipv6)"
	}
	return ""
}

// NoIPv6 says why a new interface on this host cannot have IPv6 addresses; "": it can. For choosing ranges before a Device is open.
func NoIPv6() string { return noIPv6("default") }

// list returns the addresses on the interface, without link-local ones.
func (d *Device) list() ([]netip.Prefix, error) {
	l, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(d.link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("netif: list the addresses of %s: %w", d.name, err)
	}
	var ps []netip.Prefix
	for _, a := range l {
		if p, ok := prefixOf(a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() {
			ps = append(ps, p)
		}
	}
	return ps, nil
}

// Apply makes want, own addresses each with the length of its range, all that is on the interface, and brings the interface up; with none it
// takes it down. It can be called again at any time; what is there already stays untouched. IPv6 prefixes are skipped where the host has
// no IPv6 (State says so). The order is such that packets for a range never leave another way: unreachable routes first, then the firewall, then addresses,
// then up; the other way round for what goes. It fails, and changes nothing, when another interface or route has part of a new range.
func (d *Device) Apply(want []netip.Prefix) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("netif: %s: %w", d.name, os.ErrClosed)
	}
	want = slices.Clone(want)
	if d.no6 != "" {
		want = slices.DeleteFunc(want, func(p netip.Prefix) bool { return p.Addr().Is6() })
	}
	var routes []netip.Prefix
	for _, p := range want {
		routes = append(routes, p.Masked())
	}
	taken, err := HostPrefixes(d.name, append(slices.Clone(d.routes), routes...))
	if err != nil {
		return err
	}
	for _, p := range want {
		if t, ok := overlap(taken, p); ok && !slices.Contains(d.addrs, p) {
			return fmt.Errorf("netif: range %v: the host uses %v for something else", p.Masked(), t)
		}
	}
	all := slices.Clone(d.routes)
	for _, p := range routes {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	if err := d.save(all); err != nil {
		return err
	}
	d.routes = all
	for _, p := range routes {
		if err := addUnreachable(p); err != nil {
			return err
		}
	}
	d.setFilter(all)
	for _, p := range want {
		if slices.Contains(d.addrs, p) {
			continue
		}
		if err := d.addAddr(p); err != nil {
			return err
		}
		d.addrs = append(d.addrs, p)
	}
	if len(want) > 0 {
		if err := netlink.LinkSetUp(d.link); err != nil {
			return fmt.Errorf("netif: bring %s up: %w", d.name, err)
		}
	} else if err := netlink.LinkSetDown(d.link); err != nil {
		return fmt.Errorf("netif: take %s down: %w", d.name, err)
	}
	for _, p := range slices.Clone(d.addrs) {
		if slices.Contains(want, p) {
			continue
		}
		if err := netlink.AddrDel(d.link, &netlink.Addr{IPNet: ipNet(p)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("netif: remove the address %v from %s: %w", p, d.name, err)
		}
		d.addrs = slices.DeleteFunc(d.addrs, func(x netip.Prefix) bool { return x == p })
	}
	if !slices.ContainsFunc(all, func(p netip.Prefix) bool { return !slices.Contains(routes, p) }) { // as it was written down
		return nil
	}
	for _, p := range slices.Clone(all) { // d.routes is all, and shrinks
		if slices.Contains(routes, p) {
			continue
		}
		if err := delUnreachable(p); err != nil {
			return err
		}
		d.routes = slices.DeleteFunc(d.routes, func(x netip.Prefix) bool { return x == p })
	}
	d.setFilter(d.routes)
	return d.save(d.routes)
}

// Mend puts back what others have taken away of what Apply has put in place, and says what was missing. It changes nothing, and so causes no news from the kernel, when all is there.
func (d *Device) Mend() (missing []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || len(d.addrs) == 0 {
		return nil, nil
	}
	no6 := noIPv6(d.name) != "" // for now, perhaps: then there is no way for it out of the host either
	gone := func(ps, there []netip.Prefix) (gone []netip.Prefix) {
		for _, p := range ps {
			if !slices.Contains(there, p) && !(no6 && p.Addr().Is6()) {
				gone = append(gone, p)
				missing = append(missing, p.String())
			}
		}
		return gone
	}
	routes, err := ownUnreachable()
	if err != nil {
		return nil, err
	}
	for _, p := range gone(d.routes, routes) {
		if err := addUnreachable(p); err != nil {
			return missing, err
		}
	}
	if whole, err := isWhole(d.name, d.routes); d.bare == "" && err == nil && !whole {
		missing = append(missing, "table "+tableOf(d.name))
		d.setFilter(d.routes)
	}
	link, err := netlink.LinkByIndex(d.Index())
	if err == nil && link.Attrs().Flags&net.FlagUp == 0 {
		missing = append(missing, d.name+" up")
		err = netlink.LinkSetUp(d.link)
	}
	if err != nil {
		return missing, fmt.Errorf("netif: bring %s up: %w", d.name, err)
	}
	addrs, err := d.list()
	if err != nil {
		return missing, err
	}
	for _, p := range gone(d.addrs, addrs) {
		if err := d.addAddr(p); err != nil {
			return missing, err
		}
	}
	routes, err = linkRoutes(d.link)
	if err != nil {
		return missing, err
	}
	for _, p := range d.addrs {
		if len(gone([]netip.Prefix{p.Masked()}, routes)) == 0 {
			continue
		}
		if err := netlink.AddrDel(d.link, &netlink.Addr{IPNet: ipNet(p)}); err != nil { // the route comes with the address
			return missing, fmt.Errorf("netif: remove the address %v from %s: %w", p, d.name, err)
		}
		if err := d.addAddr(p); err != nil {
			return missing, err
		}
	}
	return missing, nil
}

func (d *Device) addAddr(p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p), Broadcast: net.IPv4zero}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrReplace(d.link, a); err != nil {
		return fmt.Errorf("netif: add the address %v to %s: %w", p, d.name, err)
	}
	return nil
}

// setFilter makes the firewall fit the routes. Where there is none the routes stand alone, which is said once.
func (d *Device) setFilter(ranges []netip.Prefix) {
	was := d.bare
	if d.bare = ""; len(ranges) > 0 {
		if err := d.filter(d.name, ranges); err != nil {
			d.bare = err.Error()
		}
	} else if err := delFilter(d.name); err != nil {
		d.bare = err.Error()
	}
	if d.former != "" && delFilter(d.former) == nil {
		d.former = ""
	}
	if d.bare != "" && d.bare != was {
		d.log.Warn("there is no firewall table: only the unreachable routes keep packets for our addresses from leaving another way", "err", d.bare)
	}
}

// NoFilter says why there is no firewall table; "": there is.
func (d *Device) NoFilter() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bare
}

func (d *Device) save(routes []netip.Prefix) error {
	if d.record == nil {
		return nil
	}
	if err := d.record(Changes{Interface: d.name, Index: d.Index(), Unreachable: slices.Clone(routes)}); err != nil {
		return fmt.Errorf("netif: record changes: %w", err)
	}
	return nil
}

// DeviceState is what status shows of a Device.
type DeviceState struct {
	Name   string
	Index  int
	MTU    int
	Up     bool
	Addrs  []netip.Prefix
	NoIPv6 string // why there is no IPv6 on it; "": there is
}

// State asks the kernel what the interface is like now.
func (d *Device) State() (DeviceState, error) {
	s := DeviceState{Name: d.name, Index: d.link.Attrs().Index, NoIPv6: d.no6}
	link, err := netlink.LinkByIndex(s.Index)
	if err != nil {
		return s, fmt.Errorf("netif: find %s: %w", d.name, err)
	}
	s.Name, s.MTU, s.Up = link.Attrs().Name, link.Attrs().MTU, link.Attrs().Flags&net.FlagUp != 0
	s.Addrs, err = d.list()
	return s, err
}

// Name returns the interface's name, Index its number.
func (d *Device) Name() string { return d.name }

// Index returns the interface's number.
func (d *Device) Index() int { return d.link.Attrs().Index }

// NoIPv6 says why the interface has no IPv6; "": it has.
func (d *Device) NoIPv6() string { return d.no6 }

// File returns the TUN's descriptor, for the service manager's store. It stays the Device's.
func (d *Device) File() *os.File { return d.dev.File() }

// Read implements TUN.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	return d.dev.Read(bufs, sizes, offset)
}

// Write implements TUN. The TUN library coalesces packets, so bufs need capacity behind the packets and 10 bytes before them.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) { return d.dev.Write(bufs, offset) }

// BatchSize implements TUN.
func (d *Device) BatchSize() int { return d.dev.BatchSize() }

// SetReadDeadline implements TUN.
func (d *Device) SetReadDeadline(t time.Time) error { return d.dev.File().SetReadDeadline(t) }

// Close removes the interface with its addresses, and the unreachable routes and the firewall unless keepRoutes: then they stay on the host until a later
// Device with Before, or Cleanup, removes them.
func (d *Device) Close(keepRoutes bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	err := d.dev.Close()
	if keepRoutes {
		return err
	}
	err = errors.Join(err, delFilter(d.name))
	for _, p := range d.routes {
		err = errors.Join(err, delUnreachable(p))
	}
	if err == nil {
		d.routes = nil
		err = d.save(nil)
	}
	return err
}

// Cleanup undoes what a Device has left on the host: its routes, its firewall table, and its interface when a service manager keeps it alive. What is not
// there, or not ours, is left alone. It can be called again.
func Cleanup(c Changes) error {
	var errs []error
	if link, err := netlink.LinkByIndex(c.Index); err == nil && link.Type() == "tuntap" && link.Attrs().Name == c.Interface && link.Attrs().Alias == ownAlias {
		if err := netlink.LinkDel(link); err != nil {
			errs = append(errs, fmt.Errorf("netif: remove %s: %w", c.Interface, err))
		}
	}
	if c.Interface != "" {
		errs = append(errs, delFilter(c.Interface))
	}
	for _, p := range c.Unreachable {
		errs = append(errs, delUnreachable(p))
	}
	return errors.Join(errs...)
}

// IsNamed says whether an interface may be that of a configured name, in which a %d stands for a number.
func IsNamed(name, configured string) bool {
	before, after, numbered := strings.Cut(configured, "%d")
	if !numbered {
		return name == configured
	}
	number, ok := strings.CutPrefix(name, before)
	number, tail := strings.CutSuffix(number, after)
	_, err := strconv.ParseUint(number, 10, 16)
	return ok && tail && err == nil
}

func unreachable(p netip.Prefix) *netlink.Route {
	return &netlink.Route{Dst: ipNet(p), Type: unix.RTN_UNREACHABLE, Priority: lastMetric, Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}
}

func addUnreachable(p netip.Prefix) error {
	if err := netlink.RouteReplace(unreachable(p)); err != nil {
		return fmt.Errorf("netif: add the unreachable route %v: %w", p, err)
	}
	return nil
}

func delUnreachable(p netip.Prefix) error {
	if err := netlink.RouteDel(unreachable(p)); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("netif: remove the unreachable route %v: %w", p, err)
	}
	return nil
}

// ownUnreachable are the ranges of all routes that unreachable makes.
func ownUnreachable() ([]netip.Prefix, error) {
	return listRoutes(&netlink.Route{Type: unix.RTN_UNREACHABLE, Protocol: routeProtocol}, netlink.RT_FILTER_TYPE|netlink.RT_FILTER_PROTOCOL)
}

// linkRoutes are the ranges that an interface has routes for.
func linkRoutes(l netlink.Link) ([]netip.Prefix, error) {
	return listRoutes(&netlink.Route{LinkIndex: l.Attrs().Index, Type: unix.RTN_UNICAST}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TYPE)
}

// listRoutes lists what routes of the main table that fit are for.
func listRoutes(like *netlink.Route, by uint64) (ps []netip.Prefix, err error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteListFiltered(family, like, by) })
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("netif: list the host's routes: %w", err)
		}
		for _, r := range routes {
			if p, ok := prefixOf(r.Dst); ok {
				ps = append(ps, p)
			}
		}
	}
	return ps, nil
}

// HostPrefixes returns the ranges that the host uses, by its interfaces' addresses and its routes in all tables, for FreeIPv4 and FreeIPv6. Not
// counted are: the interface of that name; our own unreachable routes of the ranges in own; routes that catch everything, which say
// nothing about who uses a range.
func HostPrefixes(name string, own []netip.Prefix) ([]netip.Prefix, error) {
	index := 0
	if link, err := netlink.LinkByName(name); err == nil {
		index = link.Attrs().Index
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("netif: list the host's addresses: %w", err)
	}
	var ps []netip.Prefix
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok && a.LinkIndex != index {
			ps = append(ps, p.Masked())
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("netif: list the host's routes: %w", err)
		}
		for _, r := range routes {
			p, ok := prefixOf(r.Dst)
			if !ok || catchAll(p) || p.Addr().IsMulticast() || index != 0 && r.LinkIndex == index ||
				r.Protocol == routeProtocol && r.Type == unix.RTN_UNREACHABLE && slices.Contains(own, p) {
				continue
			}
			ps = append(ps, p.Masked())
		}
	}
	return ps, nil
}

// dump lists something of the kernel's, again when it changed meanwhile and the list may have holes.
func dump[T any](list func() ([]T, error)) (l []T, err error) {
	for range 5 {
		if l, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return l, err
		}
	}
	return l, err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	a = a.Unmap()
	if a.Is4() && len(n.Mask) == 16 {
		bits -= 96
	}
	return netip.PrefixFrom(a, bits), ok && bits >= 0
}
