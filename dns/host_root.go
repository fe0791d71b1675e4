package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"lokinetd/router/statefile"
)

// What root does, as a whole state that is put in place: it can be done again, by any decision after any other, and after a crash at any step. No record is kept of it:
// everything that we put on the host bears our name, and what bears our name is taken away when it is not wanted any more.

// hostState is what root has to put on the host. The zero value is what was there before us.
type hostState struct {
	delegate string // content of a file, "": none
	dnsmasq  string
	nm       string
	record   string // at resolvconf
	resolv   []netip.AddrPort
}

// stateOf is the state that a decision asks for. MethodResolved needs none: the daemon does it.
func (p Place) stateOf(d Decision, listen []netip.AddrPort, l Link) (s hostState) {
	at := reachable(listen)
	only53 := slices.DeleteFunc(slices.Clone(at), func(a netip.AddrPort) bool { return a.Port() != 53 })
	switch d.Method {
	case MethodDelegate:
		s.delegate = delegateText(at, l)
	case MethodNM:
		s.dnsmasq = dnsmasqText(at, l)
		if d.StartNM || p.ours(nmFile) {
			s.nm = "# " + mark + "\n[main]\ndns=dnsmasq\n"
		}
	case MethodResolvconf:
		for _, a := range only53 {
			s.record += "nameserver " + a.Addr().String() + "\n"
		}
	case MethodFile:
		s.resolv = only53
	}
	return s
}

// delegateText is a file of systemd.dns-delegate(5).
func delegateText(at []netip.AddrPort, l Link) string {
	var dns []string
	for _, a := range at {
		dns = append(dns, a.String())
	}
	return "# " + mark + "\n[Delegate]\nDNS=" + strings.Join(dns, " ") + "\nDomains=~" + strings.Join(Domains(l.ranges()), " ~") + "\nDefaultRoute=no\n"
}

// dnsmasqText is a file for dnsmasq.
func dnsmasqText(at []netip.AddrPort, l Link) string {
	var b strings.Builder
	b.WriteString("# " + mark + "\n")
	for _, d := range Domains(l.ranges()) {
		for _, a := range at {
			fmt.Fprintf(&b, "server=/%s/%s#%d\n", d, a.Addr(), a.Port())
		}
	}
	return b.String()
}

// Apply puts in place what d asks of root, takes away what it does not ask for, and says in plain words what it changed. It can be repeated. After an error it can be
// repeated too, or undone by Revert.
func (p Place) Apply(ctx context.Context, d Decision, listen []netip.AddrPort, l Link) ([]string, error) {
	return p.put(ctx, p.stateOf(d, listen, l))
}

// Revert takes away all that Apply has put in place, whichever way was chosen then. It can be repeated.
func (p Place) Revert(ctx context.Context) ([]string, error) { return p.put(ctx, hostState{}) }

// closedPort is where nobody listens: names that are sent there go nowhere.
var closedPort = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 3, 2, 1}), 1)

// Hold puts in place what keeps our names in while the daemon is stopped, as far as d's way allows it: with dnsmasq our domains stay where they are, a dns-delegate
// file sends them to a closed port; link says that they stay on an interface, see HoldLink. The other ways are undone (but see Awaited), because
// there all names come to us, and nothing would be resolved any more.
func (p Place) Hold(ctx context.Context, d Decision, listen []netip.AddrPort, l Link) (done []string, link bool, err error) {
	s := hostState{}
	switch d.Method {
	case MethodNM:
		s = p.stateOf(d, listen, l)
		if p.ours(dnsmasqFile) {
			s.dnsmasq = p.read(dnsmasqFile)
		}
	case MethodDelegate:
		s.delegate = delegateText([]netip.AddrPort{closedPort}, l)
		if was := p.read(delegateFile); l.Index == 0 && strings.Contains(was, "DNS="+closedPort.String()) {
			s.delegate = was // of when our ranges were still known
		}
	case MethodResolved:
		link = true
	}
	done, err = p.put(ctx, s)
	return done, link, err
}

// takesAll says that all names come to us, by what Apply has put in place.
func (p Place) takesAll() bool { return p.ours(resolvConf) || p.recordFile() != "" }

// socketUnit holds the name server's port, for the daemon and for who stands in for it.
const socketUnit = "lokinetd.socket"

// Awaited says that all names come to us and that somebody holds the port for them, though the daemon may be away: a service manager, which starts it or a guard. Then names
// wait there for a moment, and giving them back to the former resolvers would tell those ours. While the port is closing, it counts whether it will be opened again, or a guard keeps it.
func (p Place) Awaited(ctx context.Context, listen []netip.AddrPort, closing bool) bool {
	if !p.takesAll() {
		return false
	}
	if closing {
		return p.guarded(ctx) || p.Returns(ctx, socketUnit) // in this order: when it ends for a daemon that starts, that is known already
	}
	for _, at := range reachable(listen) {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if errors.Is(err, unix.EADDRINUSE) {
			return true
		}
		if err == nil {
			c.Close()
		}
	}
	return false
}

// call connects to the bus for one call, which may take callTime; hangUp must follow.
func (p Place) call(ctx context.Context) (bus *dbus.Conn, within context.Context, hangUp func(), err error) {
	if bus, err = p.connect(); err != nil {
		return nil, nil, nil, err
	}
	within, cancel := context.WithTimeout(ctx, callTime)
	return bus, within, func() { cancel(); bus.Close() }, nil
}

// Returns reports whether systemd is about to start a unit, or to start it again.
func (p Place) Returns(ctx context.Context, unit string) bool {
	bus, ctx, hangUp, err := p.call(ctx)
	if err != nil {
		return false
	}
	defer hangUp()
	var jobs []struct {
		ID          uint32
		Unit        string
		Type, State string
		Job, Path   dbus.ObjectPath
	}
	if bus.Object(systemdName, "/org/freedesktop/systemd1").CallWithContext(ctx, systemdName+".Manager.ListJobs", dbus.FlagNoAutoStart).Store(&jobs) != nil {
		return false
	}
	for _, j := range jobs {
		if j.Unit == unit && (j.Type == "start" || j.Type == "restart") {
			return true
		}
	}
	return false
}

// guarded reports whether the stand-in's unit is active: it has the port, even if the unit of that goes, as systemd lets it when the daemon has crashed too often.
func (p Place) guarded(ctx context.Context) bool {
	bus, ctx, hangUp, err := p.call(ctx)
	if err != nil {
		return false
	}
	defer hangUp()
	return property(ctx, bus, systemdName, "/org/freedesktop/systemd1/unit/lokinetd_2dnames_2eservice", systemdName+".Unit", "ActiveState") == "active"
}

// Stopped says in plain words what becomes of our names while the daemon does not run; hold is the number of the placeholder, 0: there is none.
func (p Place) Stopped(ctx context.Context, listen []netip.AddrPort, hold int) string {
	switch {
	case p.takesAll() && StandsIn(ctx, listen):
		return "our names stay on this host: a stand-in refuses them, and answers all others"
	case p.takesAll():
		return "no name is answered, as all come to lokinetd and nobody stands in for it (as root: lokinetd dns revert)"
	case p.ours(dnsmasqFile):
		return "our names stay on this host: NetworkManager's dnsmasq sends them to lokinetd only"
	case p.ours(delegateFile), hold != 0 && p.Held(ctx, listen, hold):
		return "our names stay on this host: systemd-resolved sends them to lokinetd only"
	}
	return "our names are asked of the resolvers of this host, as any others"
}

func (p Place) put(ctx context.Context, s hostState) (done []string, err error) {
	var errs []error
	step := func(what string, changed bool, err error) bool {
		if err != nil {
			errs = append(errs, err)
		} else if changed {
			done = append(done, what)
		}
		return changed && err == nil
	}
	p.sweep()
	// Ways that give all names to us go first and come last: in between, names go to the former resolvers.
	if len(s.resolv) == 0 {
		changed, err := p.restoreResolv()
		step(resolvConf+": as it was before", changed, err)
	}
	if s.record == "" {
		changed, err := p.delRecord(ctx)
		step("resolvconf: our record is gone", changed, err)
	}

	changed, err := p.file(delegateFile, s.delegate)
	if step(what(delegateFile, s.delegate), changed, err) {
		step("", false, p.reloadResolved(ctx))
	}
	changed, err = p.file(dnsmasqFile, s.dnsmasq)
	sends := step(what(dnsmasqFile, s.dnsmasq), changed, err)
	changed, err = p.file(nmFile, s.nm)
	if uses := step(what(nmFile, s.nm), changed, err); uses || sends {
		if err := p.reloadNM(ctx, uses, s.nm != ""); err != nil {
			if s.nm != "" && uses { // not this way, then: as it was
				p.file(nmFile, "")
				p.file(dnsmasqFile, "")
				p.reloadNM(ctx, true, false)
			}
			errs = append(errs, err)
		}
	}

	if s.record != "" {
		changed, err := p.addRecord(ctx, s.record)
		step("resolvconf: we are its only resolver", changed, err)
	}
	if len(s.resolv) > 0 {
		changed, err := p.writeResolv(s.resolv)
		step(resolvConf+": we are the only resolver", changed, err)
	}
	return done, errors.Join(errs...)
}

// sweep removes what writes have left that were cut short.
func (p Place) sweep() {
	statefile.Sweep(p.at(resolvConf), p.at(delegateFile), p.at(dnsmasqFile), p.at(nmFile))
}

func what(file, content string) string {
	if content == "" {
		return file + ": removed"
	}
	return file + ": written"
}

// ours reports whether a file is there and of our making.
func (p Place) ours(name string) bool { return strings.Contains(p.read(name), mark) }

// file makes a file of ours have that content; "" removes it. A file of that name that is not ours is left alone.
func (p Place) file(name, content string) (changed bool, err error) {
	old, err := os.ReadFile(p.at(name))
	switch {
	case errors.Is(err, fs.ErrNotExist) && content == "":
		return false, nil
	case err == nil && !strings.Contains(string(old), mark):
		if content == "" {
			return false, nil
		}
		return false, fmt.Errorf("dns: %s is there already, and not ours", name)
	case err == nil && string(old) == content:
		return false, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("dns: %w", err)
	}
	dir := filepath.Dir(p.at(name))
	if content == "" {
		if err = os.Remove(p.at(name)); err == nil && strings.HasPrefix(name, "/run/") {
			os.Remove(dir) // if nobody else has a file there
		}
	} else if err = os.MkdirAll(dir, 0o755); err == nil {
		err = statefile.WritePublic(p.at(name), []byte(content))
	}
	if err != nil {
		return false, fmt.Errorf("dns: %w", err)
	}
	return true, nil
}

// onBus makes a call if its receiver is on the bus. No bus and no receiver are no error: then nobody has to be told.
func (p Place) onBus(ctx context.Context, name, path, method string, args ...any) error {
	bus, ctx, hangUp, err := p.call(ctx)
	if err != nil {
		return nil
	}
	defer hangUp()
	err = bus.Object(name, dbus.ObjectPath(path)).CallWithContext(ctx, method, dbus.FlagNoAutoStart, args...).Err
	var e dbus.Error
	if errors.As(err, &e) && (e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner" || e.Name == "org.freedesktop.DBus.Error.ServiceUnknown") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("dns: %s: %w", method, err)
	}
	return nil
}

func (p Place) reloadResolved(ctx context.Context) error {
	return p.onBus(ctx, systemdName, "/org/freedesktop/systemd1", systemdName+".Manager.ReloadOrTryRestartUnit", "systemd-resolved.service", "replace")
}

// Flags of NetworkManager's Reload.
const (
	nmReloadConf = 1
	nmReloadDNS  = 4 // starts dnsmasq anew
)

// reloadNM makes NetworkManager read its files again, and with uses waits until dnsmasq is what it uses.
func (p Place) reloadNM(ctx context.Context, conf, uses bool) error {
	flags := uint32(nmReloadDNS)
	if conf {
		flags |= nmReloadConf
	}
	if err := p.onBus(ctx, nmName, "/org/freedesktop/NetworkManager", nmName+".Reload", flags); err != nil || !uses {
		return err
	}
	for range 50 {
		w := World{}
		if p.lookBus(ctx, &w); !w.NetworkManager || w.NMMode == "dnsmasq" {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(callTime / 50):
		}
	}
	return errors.New("dns: NetworkManager does not use dnsmasq though it was told to: another file sets dns= in its [main]")
}

// recordFile is where resolvconf keeps our record; "": it has none.
func (p Place) recordFile() string {
	for _, dir := range []string{"/run/resolvconf/interface", "/run/resolvconf/interfaces", "/run/resolvconf/keys"} {
		if _, err := os.Stat(p.at(filepath.Join(dir, recordName))); err == nil {
			return filepath.Join(dir, recordName)
		}
	}
	return ""
}

func (p Place) addRecord(ctx context.Context, record string) (bool, error) {
	if f := p.recordFile(); f != "" && p.read(f) == record {
		return false, nil
	}
	args := []string{"-a", recordName}
	if _, err := os.Stat(p.at("/lib/resolvconf/list-records")); err != nil {
		args = append([]string{"-x"}, args...) // openresolv: nobody else's beside it
	}
	return true, p.resolvconf(ctx, record, args...)
}

func (p Place) delRecord(ctx context.Context) (bool, error) {
	if p.recordFile() == "" {
		return false, nil
	}
	return true, p.resolvconf(ctx, "", "-d", recordName)
}

func (p Place) resolvconf(ctx context.Context, stdin string, args ...string) error {
	program := p.find("resolvconf")
	if program == "" {
		return errors.New("dns: there is no command resolvconf")
	}
	ctx, cancel := context.WithTimeout(ctx, 4*callTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("dns: resolvconf %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// writeResolv makes us the only resolver in resolv.conf. What was there, file or link, is put aside under another name first, by a hard link, so that nothing of it is
// lost; then the new file takes its place.
func (p Place) writeResolv(at []netip.AddrPort) (bool, error) {
	name, backup := p.at(resolvConf), p.at(resolvBackup)
	old, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("dns: %w", err)
	}
	former := string(old)
	if strings.Contains(former, mark) {
		former = p.read(resolvBackup)
	} else {
		os.Remove(backup) // of a time before somebody else has written the file anew
		if err := os.Link(name, backup); err != nil {
			return false, fmt.Errorf("dns: %w", err)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n# What was here before is in %s\n", mark, resolvBackup)
	for _, a := range at {
		b.WriteString("nameserver " + a.Addr().String() + "\n")
	}
	for line := range strings.Lines(former) {
		if f := strings.Fields(line); len(f) > 1 && (f[0] == "search" || f[0] == "domain" || f[0] == "options") {
			b.WriteString(strings.TrimRight(line, "\n") + "\n")
		}
	}
	if b.String() == string(old) {
		return false, nil
	}
	if err := statefile.WritePublic(name, []byte(b.String())); err != nil {
		return false, fmt.Errorf("dns: %w", err)
	}
	return true, nil
}

// restoreResolv puts back what was put aside, in one step. If somebody else has written resolv.conf since, theirs stays.
func (p Place) restoreResolv() (bool, error) {
	name, backup := p.at(resolvConf), p.at(resolvBackup)
	_, err := os.Lstat(backup)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if p.ours(resolvConf) {
			return false, fmt.Errorf("dns: %s is ours, but %s is gone: write a new one", resolvConf, resolvBackup)
		}
		return false, nil
	case err != nil:
		return false, fmt.Errorf("dns: %w", err)
	}
	if !p.ours(resolvConf) {
		if err := os.Remove(backup); err != nil {
			return false, fmt.Errorf("dns: %w", err)
		}
		return false, nil
	}
	err = os.Rename(backup, name)
	if err == nil {
		err = statefile.SyncDir(filepath.Dir(name))
	}
	if err != nil {
		return false, fmt.Errorf("dns: %w", err)
	}
	return true, nil
}

// Missing says what of a decision is not in effect on the host, "" for nothing. Anybody may ask.
func (p Place) Missing(ctx context.Context, d Decision, listen []netip.AddrPort, l Link) string {
	const todo = " (as root: lokinetd dns apply)"
	s := p.stateOf(d, listen, l)
	switch {
	case d.Method == MethodResolved:
		return p.missingAtResolved(ctx, listen, l)
	case s.delegate != "" && p.read(delegateFile) != s.delegate:
		return delegateFile + " is not as it should be" + todo
	case s.dnsmasq != "" && p.read(dnsmasqFile) != s.dnsmasq:
		return dnsmasqFile + " is not as it should be" + todo
	case s.nm != "" && p.read(nmFile) != s.nm:
		return nmFile + " is not as it should be" + todo
	case s.record != "" && p.read(p.recordFile()) != s.record:
		return "resolvconf does not have our record" + todo
	case len(s.record) > 0 || len(s.resolv) > 0:
		only := reachable(listen)
		for _, a := range servers(p.read(resolvConf)) {
			if !slices.Contains(only, a) {
				return resolvConf + " names " + specification(a) + todo
			}
		}
		if len(s.resolv) > 0 && !p.ours(resolvConf) {
			return resolvConf + " is not as we write it" + todo
		}
	}
	return ""
}

func (p Place) missingAtResolved(ctx context.Context, listen []netip.AddrPort, l Link) string {
	if l.Index == 0 {
		return "our network interface is not there: the daemon does not run"
	}
	bus, err := p.connect()
	if err != nil {
		return err.Error()
	}
	defer bus.Close()
	r := resolved{bus: bus, servers: reachable(listen)}
	why, err := r.differs(ctx, l)
	if err != nil {
		return err.Error()
	}
	return why
}

// HoldLink lets systemd-resolved send our domains to us by a placeholder, whether we are there or not: what Hold asks for where the daemon has not done it.
func (p Place) HoldLink(ctx context.Context, listen []netip.AddrPort, l Link) error {
	bus, err := p.connect()
	if err != nil {
		return err
	}
	defer bus.Close()
	r := resolved{bus: bus, servers: reachable(listen)}
	for try := 0; ; try++ { // it may not have heard of the link yet
		if err = r.apply(ctx, l); err == nil || try == 20 || ctx.Err() != nil {
			return err
		}
		time.Sleep(callTime / 50)
	}
}

// Held says whether systemd-resolved sends our domains to us by the link of that number.
func (p Place) Held(ctx context.Context, listen []netip.AddrPort, index int) bool {
	return p.missingAtResolved(ctx, listen, Link{Index: index}) == ""
}
