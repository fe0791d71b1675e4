package dns

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Place says where a host is looked at. The zero value is the real one.
type Place struct {
	Root string // in front of every path
	Bus  string // address of the system bus
}

func (p Place) at(name string) string { return filepath.Join("/", p.Root, name) }

// Paths on the host.
const (
	resolvConf   = "/etc/resolv.conf"
	resolvBackup = "/etc/resolv.conf.before-lokinetd"
	nsswitch     = "/etc/nsswitch.conf"
	mountInfo    = "/proc/self/mountinfo"
	delegateFile = "/run/systemd/dns-delegate.d/lokinetd.dns-delegate"
	nmFile       = "/run/NetworkManager/conf.d/lokinetd.conf"
	dnsmasqFile  = "/etc/NetworkManager/dnsmasq.d/lokinetd.conf"
	recordName   = "lo.lokinetd" // at resolvconf; lo: before all others
)

// mark is in everything that we write.
const mark = "lokinetd wrote this file and removes it: lokinetd dns status"

// Names on the bus.
const (
	resolvedName = "org.freedesktop.resolve1"
	nmName       = "org.freedesktop.NetworkManager"
	polkitName   = "org.freedesktop.PolicyKit1"
	systemdName  = "org.freedesktop.systemd1"
)

const (
	callTime = 5 * time.Second // for an answer over the bus
	lookTime = 3 * time.Second // for all that is asked there to see
	maxLook  = 64 << 10        // bytes of a file that are read

	immutableFlag = 0x10 // FS_IMMUTABLE_FL: chattr +i
)

// Look fills in what w needs to know of the host; the configuration's part is the caller's. What cannot be read is as if it were not there.
func (p Place) Look(ctx context.Context, w World) World {
	w.UID = os.Getuid()
	w.Resolv = p.resolvConf()
	w.NSSResolve = nssResolve(p.read(nsswitch))
	w.Dnsmasq = p.find("dnsmasq") != ""
	if cmd := p.find("resolvconf"); cmd != "" {
		w.Resolvconf = "openresolv"
		if to, _ := os.Readlink(cmd); strings.HasSuffix(to, "resolvectl") {
			w.Resolvconf = "systemd"
		} else if _, err := os.Stat(p.at("/lib/resolvconf/list-records")); err == nil {
			w.Resolvconf = "debian"
			w.KeepsOthers = keepsOthers(p.read("/etc/default/resolvconf"))
		}
		w.Records = p.records()
	}
	p.lookBus(ctx, &w)
	return w
}

func (p Place) lookBus(ctx context.Context, w *World) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	bus, err := p.connect()
	if err != nil {
		return
	}
	defer bus.Close()
	var names, startable []string
	if bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.ListNames", 0).Store(&names) != nil {
		return
	}
	bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.ListActivatableNames", 0).Store(&startable)
	w.Bus = true
	w.Resolved = slices.Contains(names, resolvedName)
	w.NetworkManager = slices.Contains(names, nmName)
	w.Polkit = slices.Contains(names, polkitName) || slices.Contains(startable, polkitName)
	if slices.Contains(names, systemdName) {
		w.Systemd = leadingNumber(property(ctx, bus, systemdName, "/org/freedesktop/systemd1", systemdName+".Manager", "Version"))
	}
	if w.NetworkManager {
		w.NMMode = property(ctx, bus, nmName, "/org/freedesktop/NetworkManager/DnsManager", nmName+".DnsManager", "Mode")
		w.NMWriter = property(ctx, bus, nmName, "/org/freedesktop/NetworkManager/DnsManager", nmName+".DnsManager", "RcManager")
	}
}

// connect opens a connection of our own to the bus. The caller closes it.
func (p Place) connect() (*dbus.Conn, error) {
	address := p.Bus
	if address == "" {
		address = "unix:path=" + p.at("/run/dbus/system_bus_socket")
	}
	bus, err := dbus.Dial(address)
	if err != nil {
		return nil, fmt.Errorf("dns: system bus: %w", err)
	}
	limit := time.AfterFunc(callTime, func() { bus.Close() }) // the handshake knows no time
	defer limit.Stop()
	if err = bus.Auth(nil); err == nil {
		err = bus.Hello()
	}
	if err != nil {
		bus.Close()
		return nil, fmt.Errorf("dns: system bus: %w", err)
	}
	return bus, nil
}

// property reads a text; "" if that fails.
func property(ctx context.Context, bus *dbus.Conn, name, path, iface, prop string) (text string) {
	var v dbus.Variant
	if bus.Object(name, dbus.ObjectPath(path)).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", dbus.FlagNoAutoStart, iface, prop).Store(&v) == nil {
		text, _ = v.Value().(string)
	}
	return text
}

// leadingNumber reads "252.38-1~deb12u1" or "v258".
func leadingNumber(s string) int {
	s = strings.TrimPrefix(s, "v")
	n := 0
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		n++
	}
	v, _ := strconv.Atoi(s[:n])
	return v
}

func (p Place) read(name string) string {
	f, err := os.Open(p.at(name))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, maxLook))
	return string(b)
}

// find gives the path of a program that only an administrator installs.
func (p Place) find(program string) string {
	for _, dir := range []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		name := p.at(filepath.Join(dir, program))
		if i, err := os.Stat(name); err == nil && i.Mode().IsRegular() && i.Mode()&0o111 != 0 {
			return name
		} else if i, err := os.Lstat(name); err == nil && i.Mode()&os.ModeSymlink != 0 && p.Root != "" {
			return name // its target counts from another root
		}
	}
	return ""
}

func (p Place) resolvConf() (r ResolvConf) {
	name := p.at(resolvConf)
	i, err := os.Lstat(name)
	if err != nil {
		return r
	}
	r.Exists = true
	if i.Mode()&os.ModeSymlink != 0 {
		r.Link, _ = os.Readlink(name)
	}
	r.Content = p.read(resolvConf)
	if f, err := os.Open(name); err == nil {
		if flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
			r.Immutable = flags&immutableFlag != 0
		}
		f.Close()
	}
	for line := range strings.Lines(p.read(mountInfo)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == resolvConf {
			r.Mount = true
		}
	}
	if strings.Contains(r.Content, mark) {
		r.Backup = p.read(resolvBackup)
	}
	return r
}

// nssResolve reports whether the hosts line of nsswitch.conf has resolve in it.
func nssResolve(content string) bool {
	for line := range strings.Lines(content) {
		line, _, _ = strings.Cut(line, "#")
		if hosts, ok := strings.CutPrefix(strings.TrimSpace(line), "hosts:"); ok && slices.Contains(strings.Fields(hosts), "resolve") {
			return true
		}
	}
	return false
}

// keepsOthers reads /etc/default/resolvconf.
func keepsOthers(content string) bool {
	for line := range strings.Lines(content) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if name == "TRUNCATE_NAMESERVER_LIST_AFTER_LOOPBACK_ADDRESS" || name == "TRUNCATE_NAMESERVER_LIST_AFTER_127" {
			return !slices.Contains([]string{"y", "Y", "yes", "YES", "Yes", ""}, strings.Trim(value, `"'`))
		}
	}
	return false
}

// records are the resolvers that others have told resolvconf.
func (p Place) records() (addrs []netip.AddrPort) {
	for _, dir := range []string{"/run/resolvconf/interface", "/run/resolvconf/interfaces", "/run/resolvconf/keys"} {
		entries, _ := os.ReadDir(p.at(dir))
		for _, e := range entries {
			if e.Name() != recordName && e.Type().IsRegular() {
				addrs = append(addrs, servers(p.read(filepath.Join(dir, e.Name())))...)
			}
		}
	}
	return addrs
}
