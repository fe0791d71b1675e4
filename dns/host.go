package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"lokinetd/router/key"
)

// How the host comes to ask us. The files host*.go are that part of the package: host.go decides from what is seen, and touches nothing; host_look.go sees;
// host_link.go is the daemon's part, which speaks to systemd-resolved over D-Bus; host_root.go is what needs root, for `lokinetd dns`.

// Method is a way in which the programs of a host come to ask our name server.
type Method string

const (
	MethodAuto       Method = "auto"           // only as a wish: the first of the others that fits
	MethodOff        Method = "off"            // nothing is touched
	MethodResolved   Method = "resolved"       // systemd-resolved sends our domains to our interface's name server; set over D-Bus by the daemon
	MethodDelegate   Method = "delegate"       // systemd-resolved sends them by a file, systemd 258 or later; written by root
	MethodNM         Method = "networkmanager" // NetworkManager's dnsmasq sends them by a file; written by root
	MethodResolvconf Method = "resolvconf"     // we are the only resolver in resolv.conf, by the command resolvconf; run by root
	MethodFile       Method = "file"           // the same, by writing resolv.conf; by root, and only when the configuration says so
	MethodNone       Method = "none"           // only as a decision: none fits, and Advice says what to do
)

// Methods are those that can be wished for.
var Methods = []Method{MethodAuto, MethodOff, MethodResolved, MethodDelegate, MethodNM, MethodResolvconf, MethodFile}

// World is what a decision rests on.
type World struct {
	// Of the configuration.
	Want     Method           // "": auto
	Enabled  bool             // we have a name server
	Listen   []netip.AddrPort // where it answers
	Upstream []netip.AddrPort // whom it asks for other names; empty: not configured

	// Of the host.
	Resolv         ResolvConf
	NSSResolve     bool   // nsswitch.conf: libc asks systemd-resolved without resolv.conf
	Bus            bool   // there is a system bus
	Resolved       bool   // systemd-resolved is on it
	Polkit         bool   // and so is polkit, or can be started
	Systemd        int    // version; 0: unknown, or another init
	NetworkManager bool   // on the bus
	NMMode         string // how it handles DNS: "default", "dnsmasq", "systemd-resolved", "none"
	NMWriter       string // who writes resolv.conf for it: "symlink", "file", "resolvconf", "unmanaged" ...
	Dnsmasq        bool   // the program is installed
	Resolvconf     string // the command is there: "debian", "openresolv", or "systemd" (resolvectl in disguise)
	KeepsOthers    bool   // Debian's, and told to name others behind a local resolver
	Records        []netip.AddrPort
	UID            int // ours
}

// ResolvConf is /etc/resolv.conf.
type ResolvConf struct {
	Exists    bool
	Content   string
	Link      string // where it points, if it is a symbolic link
	Immutable bool   // chattr +i
	Mount     bool   // something is mounted over it, as container engines do
	Backup    string // content of what we have put aside, if the file is ours; "": not ours
}

// Decision is what is to be done.
type Decision struct {
	Method   Method
	Reasons  []string         // what was seen, in plain words; the last is the choice
	Advice   string           // with MethodNone: what to do about it
	Upstream []netip.AddrPort // with MethodResolvconf and MethodFile: the resolvers for other names, all of which come to us then
	StartNM  bool             // with MethodNM: NetworkManager does not use dnsmasq yet
}

// String is the decision in one line.
func (d Decision) String() string {
	s := string(d.Method) + ": " + strings.Join(d.Reasons, "; ")
	if d.Advice != "" {
		s += ". " + d.Advice
	}
	return s
}

// delegates is the first version of systemd that reads *.dns-delegate files.
const delegates = 258

// Decide chooses the way. It is a function of w alone. A method that is wished for is taken or refused, never replaced by another.
func Decide(w World) Decision {
	var d Decision
	see := func(format string, args ...any) { d.Reasons = append(d.Reasons, fmt.Sprintf(format, args...)) }
	take := func(m Method, format string, args ...any) Decision {
		see(format, args...)
		d.Method = m
		return d
	}
	none := func(advice, format string, args ...any) Decision {
		d.Advice = advice
		return take(MethodNone, format, args...)
	}
	auto := w.Want == "" || w.Want == MethodAuto
	stub := slices.ContainsFunc(nameservers(w.Resolv.Content), isStub)

	switch {
	case !w.Enabled:
		return take(MethodOff, "there is no name server here (dns.enabled = false, or a relay)")
	case w.Want == MethodOff:
		return take(MethodOff, `the configuration says so (dns.host = "off")`)
	case len(w.servers()) == 0:
		return none("Set dns.listen to an address of this host.", "the name server listens nowhere where this host could ask it")
	}
	if !auto {
		see("the configuration says so (dns.host = %q)", w.Want)
	}

	// systemd-resolved
	switch {
	case w.Want == MethodDelegate && (!w.Resolved || w.Systemd < delegates):
		return none("", "systemd-resolved of version %d or later is needed, and not there (systemd %s)", delegates, version(w.Systemd))
	case w.Want == MethodDelegate:
		return take(MethodDelegate, "systemd %d reads files about single domains", w.Systemd)
	case w.Want == MethodResolved && !w.Bus:
		return none("", "there is no system bus to reach systemd-resolved")
	case w.Want == MethodResolved && !w.Resolved:
		return none("Type: systemctl enable --now systemd-resolved", "systemd-resolved does not run")
	case auto && w.Resolved && !stub && !w.NSSResolve:
		see("systemd-resolved runs, but programs do not ask it: /etc/resolv.conf %s and nsswitch.conf has no resolve", describe(w.Resolv))
	case w.Want == MethodResolved || auto && w.Resolved:
		how := "nsswitch.conf says resolve"
		if stub {
			how = "/etc/resolv.conf " + describe(w.Resolv)
		} else if !w.NSSResolve {
			how = "nobody else: /etc/resolv.conf " + describe(w.Resolv)
		}
		see("systemd-resolved runs and is asked by programs (%s)", how)
		if !w.Polkit && w.Systemd >= delegates && auto {
			return take(MethodDelegate, "without polkit only root may tell it about interfaces, and systemd %d reads files about single domains", w.Systemd)
		}
		if !w.Polkit && w.UID != 0 {
			see("without polkit it may refuse to be told by user %d", w.UID)
		}
		return take(MethodResolved, "it sends single domains to single interfaces")
	case auto && !w.Bus:
		see("there is no system bus")
	}

	if auto && stub && !w.Resolved {
		return none("Type: systemctl status dbus systemd-resolved", "/etc/resolv.conf %s, which is systemd-resolved, and that cannot be reached over the system bus", describe(w.Resolv))
	}

	// NetworkManager
	byNM := strings.Contains(w.Resolv.Link, "NetworkManager") || strings.HasPrefix(w.Resolv.Content, "# Generated by NetworkManager") ||
		slices.ContainsFunc(nameservers(w.Resolv.Content), func(a netip.Addr) bool { return a == localhost4 }) && w.NMMode == "dnsmasq"
	switch {
	case w.Want == MethodNM && !w.NetworkManager:
		return none("", "NetworkManager does not run")
	case (w.Want == MethodNM || auto && byNM) && w.NetworkManager:
		see("NetworkManager writes /etc/resolv.conf (dns=%s)", w.NMMode)
		switch {
		case w.NMMode == "dnsmasq":
			return take(MethodNM, "its dnsmasq sends single domains to single resolvers")
		case w.NMMode == "default" && w.NMWriter == "resolvconf":
			see("it writes it by way of resolvconf")
		case w.NMMode == "default" && w.Dnsmasq:
			d.StartNM = true
			return take(MethodNM, "dnsmasq, which it can use, is installed and sends single domains to single resolvers")
		case w.NMMode == "default":
			return none("Type: apt install dnsmasq-base (or systemd-resolved), then: systemctl restart lokinetd", "it can send single domains to single resolvers only with dnsmasq, which is not installed")
		}
		if w.Want == MethodNM {
			return none("", "it handles DNS in a way (%s) in which it cannot send single domains to single resolvers", w.NMMode)
		}
	}

	// From here on, all names come to us.
	port53 := slices.ContainsFunc(w.servers(), func(a netip.AddrPort) bool { return a.Port() == 53 })
	upstream, loop := w.former()
	byResolvconf := strings.Contains(w.Resolv.Link, "/resolvconf/") || strings.HasPrefix(w.Resolv.Content, "# Generated by resolvconf")
	switch {
	case w.Want == MethodResolvconf && w.Resolvconf == "":
		return none("", "there is no command resolvconf")
	case w.Want == MethodResolvconf && w.Resolvconf == "systemd":
		return none(`Set dns.host = "resolved".`, "resolvconf is a part of systemd here and cannot send single domains")
	case w.Want == MethodResolvconf || auto && byResolvconf && (w.Resolvconf == "debian" || w.Resolvconf == "openresolv"):
		see("resolvconf (%s) writes /etc/resolv.conf", w.Resolvconf)
		switch {
		case w.KeepsOthers:
			return none("Remove that line, or install systemd-resolved.", "it would name other resolvers behind us, and our names would reach them (TRUNCATE_NAMESERVER_LIST_AFTER_LOOPBACK_ADDRESS in /etc/default/resolvconf)")
		case w.Resolvconf == "debian" && !slices.ContainsFunc(w.servers(), func(a netip.AddrPort) bool { return a.Port() == 53 && a.Addr().IsLoopback() }):
			return none("Add 127.3.2.1 to dns.listen.", "it would name other resolvers behind us, because our name server is at no loopback address")
		case !port53:
			return none("Set dns.listen to port 53.", "a resolv.conf can name resolvers on port 53 only")
		case loop != "":
			return none("Set dns.upstream to resolvers elsewhere.", "%s", loop)
		}
		d.Upstream = upstream
		return take(MethodResolvconf, "we become its only resolver and ask %s for other names", list(upstream))
	}

	if w.Want == MethodFile {
		switch {
		case w.Resolv.Immutable:
			return none("Type: chattr -i /etc/resolv.conf", "/etc/resolv.conf may not be changed (chattr +i)")
		case w.Resolv.Mount:
			return none("Tell the container engine to use our name server instead.", "/etc/resolv.conf is mounted from elsewhere, as in a container")
		case !w.Resolv.Exists:
			return none("", "there is no /etc/resolv.conf")
		case w.Resolved && w.NSSResolve:
			return none(`Set dns.host = "auto".`, "programs ask systemd-resolved, by nsswitch.conf, and not what is in /etc/resolv.conf")
		case !port53:
			return none("Set dns.listen to port 53.", "a resolv.conf can name resolvers on port 53 only")
		case loop != "":
			return none("Set dns.upstream to resolvers elsewhere.", "%s", loop)
		}
		if w.Resolv.Link != "" {
			see("whoever maintains %s does not reach programs any more", w.Resolv.Link)
		}
		d.Upstream = upstream
		return take(MethodFile, "we become the only resolver in /etc/resolv.conf and ask %s for other names", list(upstream))
	}

	// Nothing does it by itself.
	found := servers(w.Resolv.Content)
	switch {
	case !w.Resolv.Exists || len(found) == 0:
		see("/etc/resolv.conf %s", describe(w.Resolv))
		return none(byHand, "nothing is known of how programs find a resolver here")
	case slices.ContainsFunc(found, w.here) && slices.ContainsFunc(found, func(a netip.AddrPort) bool { return !w.here(a) }):
		return none("Name lokinetd alone there, and set dns.upstream to the others.", "/etc/resolv.conf names our name server and others beside it (%s), which programs ask for our names too, when ours cannot answer", list(found))
	case slices.ContainsFunc(found, w.here):
		if len(w.Upstream) == 0 {
			see("other names are refused, as dns.upstream is empty")
		}
		return take(MethodOff, "/etc/resolv.conf names our name server already, by somebody else's hand")
	case w.Resolv.Mount:
		return none(byHand, "/etc/resolv.conf is mounted from elsewhere, as in a container, and names %s", list(found))
	case slices.ContainsFunc(found, func(a netip.AddrPort) bool { return a.Addr().IsLoopback() }):
		return none("Tell that resolver to send our domains to us: docs/dns.md has what to write for dnsmasq, unbound, bind9 and Pi-hole.",
			"programs ask a resolver on this host (%s) that only its administrator can tell", list(found))
	}
	if w.Resolv.Immutable {
		see("/etc/resolv.conf may not be changed (chattr +i)")
	}
	return none(byHand, "/etc/resolv.conf %s and nothing here can send single domains elsewhere", describe(w.Resolv))
}

const byHand = `Install systemd-resolved, or set dns.host = "file" to let lokinetd write /etc/resolv.conf.`

var localhost4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// isStub reports whether a resolver is systemd-resolved's own.
func isStub(a netip.Addr) bool {
	return a == netip.AddrFrom4([4]byte{127, 0, 0, 53}) || a == netip.AddrFrom4([4]byte{127, 0, 0, 54})
}

func version(v int) string {
	if v == 0 {
		return "is not there"
	}
	return strconv.Itoa(v)
}

// describe says what programs read in /etc/resolv.conf.
func describe(r ResolvConf) string {
	if !r.Exists {
		return "is missing"
	}
	s := "names no resolver"
	if found := servers(r.Content); len(found) > 0 {
		s = "names " + list(found)
	}
	if r.Link != "" {
		s += " (a link to " + r.Link + ")"
	}
	return s
}

func list(addrs []netip.AddrPort) string {
	var s []string
	for _, a := range addrs {
		s = append(s, specification(a))
	}
	return strings.Join(s, ", ")
}

// specification is a resolver as people write it: the port only if it is not 53.
func specification(a netip.AddrPort) string {
	if a.Port() == 53 {
		return a.Addr().String()
	}
	return a.String()
}

// nameservers are the addresses in a resolv.conf, in their order.
func nameservers(content string) (addrs []netip.Addr) {
	for line := range strings.Lines(content) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			addrs = append(addrs, a.Unmap())
		}
	}
	return addrs
}

func servers(content string) (addrs []netip.AddrPort) {
	for _, a := range nameservers(content) {
		addrs = append(addrs, netip.AddrPortFrom(a, 53))
	}
	return addrs
}

// servers are the addresses at which this host reaches our name server.
func (w *World) servers() []netip.AddrPort { return reachable(w.Listen) }

// reachable replaces "any address" by a loopback address.
func reachable(listen []netip.AddrPort) (out []netip.AddrPort) {
	for _, l := range listen {
		a := l.Addr().Unmap()
		switch {
		case !a.IsUnspecified():
		case a.Is4():
			a = localhost4
		default:
			a = netip.IPv6Loopback()
		}
		if p := netip.AddrPortFrom(a, l.Port()); p.Port() != 0 && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// here reports whether a is our name server.
func (w *World) here(a netip.AddrPort) bool {
	return slices.ContainsFunc(w.Listen, func(l netip.AddrPort) bool {
		return l.Port() == a.Port() && (l.Addr().Unmap() == a.Addr() || l.Addr().IsUnspecified() && a.Addr().IsLoopback())
	})
}

// former finds the resolvers to ask for other names when all names come to us: those of the configuration, else the former ones of the host. Why not, if it
// says so: a resolver on this host may ask what is in resolv.conf, which would be us.
func (w *World) former() (upstream []netip.AddrPort, why string) {
	if len(w.Upstream) > 0 {
		return w.Upstream, ""
	}
	former := append(servers(w.Resolv.Content), w.Records...)
	if w.Resolv.Backup != "" {
		former = servers(w.Resolv.Backup)
	}
	for _, a := range former {
		switch {
		case w.here(a) || slices.Contains(upstream, a):
		case a.Addr().IsLoopback():
			return nil, fmt.Sprintf("other names would have to be asked of %s, a resolver on this host that may ask us in turn", specification(a))
		default:
			upstream = append(upstream, a)
		}
	}
	if len(upstream) == 0 {
		return nil, "no resolver is known that could be asked for other names"
	}
	return upstream, ""
}

// maxZones bounds the reverse zones that a host's resolver is told. systemd-resolved takes at least 256 domains of a link.
const maxZones = 128

// Domains are the names that the host is to ask us about: our own domains, the name by which browsers find out whether they may go around the host's resolver, and the
// reverse zones of our ranges. The last are ours because nobody else can know these addresses, and because a query for one would tell another resolver with whom we
// speak and when. A range that is no whole number of labels long is several zones; those beyond 128 zones in all are left out.
func Domains(ranges []netip.Prefix) []string {
	out := []string{key.TLDLoki, key.TLDSesh, key.TLDSnode, strings.Join(canaryName, ".")}
	fixed := len(out)
	for _, r := range ranges {
		zones := reverseZones(r.Masked())
		if len(out)+len(zones)-fixed > maxZones {
			continue
		}
		for _, z := range zones {
			if !slices.Contains(out, z) {
				out = append(out, z)
			}
		}
	}
	return out
}

// reverseZones covers a range exactly.
func reverseZones(r netip.Prefix) (zones []string) {
	step, tail := 8, "in-addr.arpa"
	if r.Addr().Is6() {
		step, tail = 4, "ip6.arpa"
	}
	bits := (r.Bits() + step - 1) / step * step
	if bits == 0 {
		return nil
	}
	a := r.Addr().AsSlice()
	for i := range 1 << (bits - r.Bits()) {
		b := slices.Clone(a)
		last := (bits - 1) / 8
		shift := (8 - bits%8) % 8
		b[last] |= byte(i) << shift
		var labels []string
		for at := bits - step; at >= 0; at -= step {
			v := b[at/8]
			if step == 4 {
				labels = append(labels, strconv.FormatUint(uint64(v>>(4-at%8)&15), 16))
			} else {
				labels = append(labels, strconv.Itoa(int(v)))
			}
		}
		zones = append(zones, strings.Join(append(labels, tail), "."))
	}
	return zones
}
