package dns

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func addrPorts(texts ...string) (out []netip.AddrPort) {
	for _, t := range texts {
		if !strings.Contains(t, ":") || strings.Count(t, ":") > 1 && !strings.HasPrefix(t, "[") {
			out = append(out, netip.AddrPortFrom(netip.MustParseAddr(t), 53))
		} else {
			out = append(out, netip.MustParseAddrPort(t))
		}
	}
	return out
}

const stubConf = "# This file is managed by man:systemd-resolved(8). Do not edit.\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch home.arpa\n"

// TestDecide is a table of whole worlds.
func TestDecide(t *testing.T) {
	ours := addrPorts("127.3.2.1")
	for _, c := range []struct {
		name     string
		world    World
		method   Method
		why      string // in the reasons
		advice   string // in the advice
		upstream []netip.AddrPort
		startNM  bool
	}{
		{"Debian 12 server with systemd-resolved", World{Listen: ours, Bus: true, Resolved: true, Polkit: true, Systemd: 252, UID: 990,
			Resolv: ResolvConf{Exists: true, Content: stubConf, Link: "../run/systemd/resolve/stub-resolv.conf"}},
			MethodResolved, "systemd-resolved runs and is asked by programs (/etc/resolv.conf names 127.0.0.53 (a link to ../run/systemd/resolve/stub-resolv.conf))", "", nil, false},
		{"the same without polkit", World{Listen: ours, Bus: true, Resolved: true, Systemd: 252, UID: 990, Resolv: ResolvConf{Exists: true, Content: stubConf}},
			MethodResolved, "without polkit it may refuse to be told by user 990", "", nil, false},
		{"the same as root", World{Listen: ours, Bus: true, Resolved: true, Systemd: 252, Resolv: ResolvConf{Exists: true, Content: stubConf}},
			MethodResolved, "single interfaces", "", nil, false},
		{"Ubuntu 24.04 desktop: NetworkManager and systemd-resolved", World{Listen: ours, Bus: true, Resolved: true, Polkit: true, Systemd: 255, UID: 990, NetworkManager: true, NMMode: "systemd-resolved", NMWriter: "unmanaged",
			Resolv: ResolvConf{Exists: true, Content: stubConf, Link: "../run/systemd/resolve/stub-resolv.conf"}},
			MethodResolved, "single interfaces", "", nil, false},
		{"Fedora 42: resolve in nsswitch.conf too", World{Listen: ours, Bus: true, Resolved: true, Polkit: true, Systemd: 257, NSSResolve: true, UID: 990, NetworkManager: true, NMMode: "systemd-resolved",
			Resolv: ResolvConf{Exists: true, Content: stubConf, Link: "../run/systemd/resolve/stub-resolv.conf"}},
			MethodResolved, "is asked by programs", "", nil, false},
		{"resolve in nsswitch.conf only", World{Listen: ours, Bus: true, Resolved: true, Polkit: true, Systemd: 257, NSSResolve: true,
			Resolv: ResolvConf{Exists: true, Content: "nameserver 10.0.0.1\n"}},
			MethodResolved, "nsswitch.conf says resolve", "", nil, false},
		{"Fedora 43, systemd 258", World{Listen: ours, Bus: true, Resolved: true, Polkit: true, Systemd: 258, NSSResolve: true, UID: 990, Resolv: ResolvConf{Exists: true, Content: stubConf}},
			MethodResolved, "single interfaces", "", nil, false},
		{"systemd 258 without polkit", World{Listen: ours, Bus: true, Resolved: true, Systemd: 258, UID: 990, Resolv: ResolvConf{Exists: true, Content: stubConf}},
			MethodDelegate, "without polkit only root", "", nil, false},
		{"systemd-resolved runs, but resolv.conf goes around it", World{Listen: ours, Bus: true, Resolved: true, Polkit: true, Systemd: 252,
			Resolv: ResolvConf{Exists: true, Content: "nameserver 192.168.1.1\n", Link: "/run/systemd/resolve/resolv.conf"}},
			MethodNone, "programs do not ask it: /etc/resolv.conf names 192.168.1.1 (a link to /run/systemd/resolve/resolv.conf)", "dns.host", nil, false},
		{"systemd-resolved insisted on, though nobody asks it", World{Want: MethodResolved, Listen: ours, Bus: true, Resolved: true, Polkit: true, Systemd: 252,
			Resolv: ResolvConf{Exists: true, Content: "nameserver 192.168.1.1\n"}},
			MethodResolved, "nobody else", "", nil, false},
		{"systemd-resolved insisted on, and not there", World{Want: MethodResolved, Listen: ours, Bus: true, Resolv: ResolvConf{Exists: true, Content: "nameserver 192.168.1.1\n"}},
			MethodNone, "does not run", "systemctl enable --now systemd-resolved", nil, false},
		{"systemd-resolved insisted on in a container without bus", World{Want: MethodResolved, Listen: ours, Resolv: ResolvConf{Exists: true, Content: stubConf}},
			MethodNone, "no system bus", "", nil, false},
		{"a file insisted on, systemd 257", World{Want: MethodDelegate, Listen: ours, Bus: true, Resolved: true, Systemd: 257, Resolv: ResolvConf{Exists: true, Content: stubConf}},
			MethodNone, "258 or later is needed, and not there (systemd 257)", "", nil, false},
		{"a file insisted on, systemd 259", World{Want: MethodDelegate, Listen: ours, Bus: true, Resolved: true, Systemd: 259, Polkit: true, Resolv: ResolvConf{Exists: true, Content: stubConf}},
			MethodDelegate, "systemd 259 reads files", "", nil, false},

		{"Debian 12 desktop: NetworkManager alone, dnsmasq-base installed", World{Listen: ours, Bus: true, Polkit: true, Systemd: 252, NetworkManager: true, NMMode: "default", NMWriter: "symlink", Dnsmasq: true,
			Resolv: ResolvConf{Exists: true, Content: "# Generated by NetworkManager\nsearch fritz.box\nnameserver 192.168.178.1\n"}},
			MethodNM, "NetworkManager writes /etc/resolv.conf (dns=default)", "", nil, true},
		{"the same without dnsmasq-base", World{Listen: ours, Bus: true, Polkit: true, Systemd: 252, NetworkManager: true, NMMode: "default", NMWriter: "symlink",
			Resolv: ResolvConf{Exists: true, Content: "# Generated by NetworkManager\nnameserver 192.168.178.1\n"}},
			MethodNone, "dnsmasq, which is not installed", "apt install dnsmasq-base", nil, false},
		{"NetworkManager with dnsmasq", World{Listen: ours, Bus: true, Polkit: true, NetworkManager: true, NMMode: "dnsmasq", NMWriter: "symlink", Dnsmasq: true,
			Resolv: ResolvConf{Exists: true, Content: "# Generated by NetworkManager\nnameserver 127.0.0.1\n"}},
			MethodNM, "its dnsmasq sends", "", nil, false},
		{"NetworkManager is there, but another writes resolv.conf", World{Listen: ours, Bus: true, Polkit: true, NetworkManager: true, NMMode: "default", NMWriter: "unmanaged", Dnsmasq: true,
			Resolv: ResolvConf{Exists: true, Content: "nameserver 10.0.0.1\n"}},
			MethodNone, "nothing here can send single domains", "dns.host", nil, false},
		{"NetworkManager by way of openresolv", World{Listen: ours, Bus: true, NetworkManager: true, NMMode: "default", NMWriter: "resolvconf", Resolvconf: "openresolv",
			Resolv: ResolvConf{Exists: true, Content: "# Generated by resolvconf\nnameserver 10.0.0.1\n"}},
			MethodResolvconf, "resolvconf (openresolv)", "", addrPorts("10.0.0.1"), false},
		{"NetworkManager insisted on, and not there", World{Want: MethodNM, Listen: ours, Bus: true, Resolv: ResolvConf{Exists: true, Content: "nameserver 10.0.0.1\n"}},
			MethodNone, "NetworkManager does not run", "", nil, false},
		{"NetworkManager insisted on, which leaves DNS alone", World{Want: MethodNM, Listen: ours, Bus: true, NetworkManager: true, NMMode: "none", Resolv: ResolvConf{Exists: true, Content: "nameserver 10.0.0.1\n"}},
			MethodNone, "it handles DNS in a way (none)", "", nil, false},

		{"Arch with openresolv", World{Listen: ours, Bus: true, Polkit: true, Systemd: 258, Resolvconf: "openresolv",
			Resolv: ResolvConf{Exists: true, Content: "# Generated by resolvconf\nnameserver 192.168.1.1\nnameserver fe80::1%eth0\n"}, Records: addrPorts("192.168.1.1", "192.168.1.2")},
			MethodResolvconf, "we become its only resolver and ask 192.168.1.1, fe80::1%eth0, 192.168.1.2 for other names", "", addrPorts("192.168.1.1", "fe80::1%eth0", "192.168.1.2"), false},
		{"Debian with resolvconf, after we told it", World{Listen: ours, Bus: true, Resolvconf: "debian",
			Resolv: ResolvConf{Exists: true, Content: "nameserver 127.3.2.1\n", Link: "../run/resolvconf/resolv.conf"}, Records: addrPorts("192.168.1.1")},
			MethodResolvconf, "resolvconf (debian)", "", addrPorts("192.168.1.1"), false},
		{"Debian with resolvconf that knows nobody", World{Listen: ours, Bus: true, Resolvconf: "debian",
			Resolv: ResolvConf{Exists: true, Content: "nameserver 127.3.2.1\n", Link: "../run/resolvconf/resolv.conf"}},
			MethodNone, "no resolver is known", "dns.upstream", nil, false},
		{"the same with upstreams configured", World{Listen: ours, Bus: true, Resolvconf: "debian", Upstream: addrPorts("9.9.9.9"),
			Resolv: ResolvConf{Exists: true, Content: "nameserver 127.3.2.1\n", Link: "../run/resolvconf/resolv.conf"}},
			MethodResolvconf, "resolvconf (debian)", "", addrPorts("9.9.9.9"), false},
		{"resolvconf in front of a dnsmasq that is fed by it", World{Listen: ours, Bus: true, Resolvconf: "debian",
			Resolv: ResolvConf{Exists: true, Content: "nameserver 127.0.0.1\n", Link: "../run/resolvconf/resolv.conf"}, Records: addrPorts("127.0.0.1", "192.168.1.1")},
			MethodNone, "asked of 127.0.0.1, a resolver on this host that may ask us in turn", "dns.upstream", nil, false},
		{"resolvconf that names others behind a local resolver", World{Listen: ours, Resolvconf: "debian", KeepsOthers: true,
			Resolv: ResolvConf{Exists: true, Content: "nameserver 192.168.1.1\n", Link: "/etc/resolvconf/run/resolv.conf"}},
			MethodNone, "our names would reach them", "Remove that line", nil, false},
		{"resolvconf that names others behind us, since we are no local resolver", World{Listen: addrPorts("10.0.0.7"), Resolvconf: "debian",
			Resolv: ResolvConf{Exists: true, Content: "nameserver 192.168.1.1\n", Link: "/etc/resolvconf/run/resolv.conf"}},
			MethodNone, "no loopback address", "127.3.2.1", nil, false},
		{"resolvconf, and we have no port 53", World{Listen: addrPorts("127.0.0.1:5300"), Resolvconf: "openresolv", Resolv: ResolvConf{Exists: true, Content: "# Generated by resolvconf\nnameserver 10.0.0.1\n"}},
			MethodNone, "port 53 only", "port 53", nil, false},
		{"resolvconf installed, but another writes resolv.conf", World{Listen: ours, Resolvconf: "openresolv", Resolv: ResolvConf{Exists: true, Content: "nameserver 10.0.0.1\n"}},
			MethodNone, "nothing here can send single domains", "dns.host", nil, false},
		{"systemd's resolvconf insisted on", World{Want: MethodResolvconf, Listen: ours, Resolvconf: "systemd", Resolv: ResolvConf{Exists: true, Content: stubConf}},
			MethodNone, "a part of systemd here", "resolved", nil, false},
		{"resolvconf insisted on, and not there", World{Want: MethodResolvconf, Listen: ours}, MethodNone, "no command resolvconf", "", nil, false},

		{"server with a plain resolv.conf", World{Listen: ours, Bus: true, Systemd: 252, Resolv: ResolvConf{Exists: true, Content: "nameserver 1.1.1.1\nnameserver 9.9.9.9\n"}},
			MethodNone, "/etc/resolv.conf names 1.1.1.1, 9.9.9.9 and nothing here can send single domains", `dns.host = "file"`, nil, false},
		{"the same, and lokinetd may write it", World{Want: MethodFile, Listen: ours, Bus: true, Systemd: 252, Resolv: ResolvConf{Exists: true, Content: "nameserver 1.1.1.1\nnameserver 9.9.9.9\n"}},
			MethodFile, "the only resolver in /etc/resolv.conf and ask 1.1.1.1, 9.9.9.9", "", addrPorts("1.1.1.1", "9.9.9.9"), false},
		{"the same after it wrote it", World{Want: MethodFile, Listen: ours, Resolv: ResolvConf{Exists: true, Content: "# " + mark + "\nnameserver 127.3.2.1\n", Backup: "nameserver 1.1.1.1\n"}},
			MethodFile, "ask 1.1.1.1", "", addrPorts("1.1.1.1"), false},
		{"a link, and lokinetd may write it", World{Want: MethodFile, Listen: ours, Resolv: ResolvConf{Exists: true, Content: "nameserver 1.1.1.1\n", Link: "/run/connman/resolv.conf"}},
			MethodFile, "whoever maintains /run/connman/resolv.conf", "", addrPorts("1.1.1.1"), false},
		{"a loop: a local resolver behind resolv.conf", World{Want: MethodFile, Listen: ours, Resolv: ResolvConf{Exists: true, Content: "nameserver 127.0.0.1\nnameserver 1.1.1.1\n"}},
			MethodNone, "may ask us in turn", "dns.upstream", nil, false},
		{"a loop: nobody but us", World{Want: MethodFile, Listen: addrPorts("0.0.0.0"), Resolv: ResolvConf{Exists: true, Content: "nameserver 127.0.0.1\n"}},
			MethodNone, "no resolver is known", "dns.upstream", nil, false},
		{"immutable", World{Want: MethodFile, Listen: ours, Resolv: ResolvConf{Exists: true, Content: "nameserver 1.1.1.1\n", Immutable: true}},
			MethodNone, "may not be changed (chattr +i)", "chattr -i", nil, false},
		{"immutable, auto", World{Listen: ours, Resolv: ResolvConf{Exists: true, Content: "nameserver 1.1.1.1\n", Immutable: true}},
			MethodNone, "may not be changed (chattr +i)", "dns.host", nil, false},
		{"file, but nsswitch.conf asks systemd-resolved", World{Want: MethodFile, Listen: ours, Resolved: true, NSSResolve: true, Resolv: ResolvConf{Exists: true, Content: "nameserver 1.1.1.1\n"}},
			MethodNone, "by nsswitch.conf", "auto", nil, false},
		{"file, but there is none", World{Want: MethodFile, Listen: ours}, MethodNone, "there is no /etc/resolv.conf", "", nil, false},

		{"container without bus", World{Listen: ours, Resolv: ResolvConf{Exists: true, Content: "nameserver 10.0.2.3\n", Mount: true}},
			MethodNone, "mounted from elsewhere", "dns.host", nil, false},
		{"container that asks the systemd-resolved outside", World{Listen: ours, Resolv: ResolvConf{Exists: true, Content: stubConf}},
			MethodNone, "there is no system bus; /etc/resolv.conf names 127.0.0.53, which is systemd-resolved, and that cannot be reached", "systemctl status", nil, false},
		{"container, and lokinetd may write", World{Want: MethodFile, Listen: ours, Resolv: ResolvConf{Exists: true, Content: "nameserver 10.0.2.3\n", Mount: true}},
			MethodNone, "mounted from elsewhere", "container engine", nil, false},
		{"the demo's node, whose resolv.conf names us", World{Listen: ours, Resolv: ResolvConf{Exists: true, Content: "nameserver 127.3.2.1\n"}},
			MethodOff, "by somebody else's hand", "", nil, false},
		{"we and others are in resolv.conf", World{Listen: ours, Resolv: ResolvConf{Exists: true, Content: "nameserver 127.3.2.1\nnameserver 9.9.9.9\n"}},
			MethodNone, "others beside it (127.3.2.1, 9.9.9.9)", "dns.upstream", nil, false},
		{"dnsmasq, unbound, bind9 or Pi-hole by its administrator's hand", World{Listen: ours, Bus: true, Systemd: 252, Dnsmasq: true, Resolv: ResolvConf{Exists: true, Content: "nameserver 127.0.0.1\n"}},
			MethodNone, "programs ask a resolver on this host (127.0.0.1)", "docs/dns.md", nil, false},
		{"no resolv.conf", World{Listen: ours}, MethodNone, "/etc/resolv.conf is missing", "systemd-resolved", nil, false},
		{"an empty one", World{Listen: ours, Resolv: ResolvConf{Exists: true, Content: "# nothing\n"}}, MethodNone, "names no resolver", "systemd-resolved", nil, false},
		{"off", World{Want: MethodOff, Listen: ours, Bus: true, Resolved: true, Resolv: ResolvConf{Exists: true, Content: stubConf}}, MethodOff, "the configuration says so", "", nil, false},
		{"no listener", World{Bus: true, Resolved: true, Resolv: ResolvConf{Exists: true, Content: stubConf}}, MethodNone, "listens nowhere", "dns.listen", nil, false},
	} {
		c.world.Enabled = true
		d := Decide(c.world)
		if d.Method != c.method || !strings.Contains(strings.Join(d.Reasons, "; "), c.why) || (c.advice == "") != (d.Advice == "") && d.Method != MethodNone || !strings.Contains(d.Advice, c.advice) ||
			!slices.Equal(d.Upstream, c.upstream) || d.StartNM != c.startNM {
			t.Errorf("%s:\n got %s, upstream %v, start %v\nwant %s: %s. %s, upstream %v", c.name, d, d.Upstream, d.StartNM, c.method, c.why, c.advice, c.upstream)
		}
		c.world.Enabled = false
		if d := Decide(c.world); d.Method != MethodOff {
			t.Errorf("%s, without name server: %s", c.name, d)
		}
	}
}

func TestDomains(t *testing.T) {
	fixed := []string{"loki", "sesh", "snode", "use-application-dns.net"}
	for _, c := range []struct {
		ranges string
		want   string
	}{
		{"", ""},
		{"172.16.0.0/16", "16.172.in-addr.arpa"},
		{"10.0.0.0/8", "10.in-addr.arpa"},
		{"192.168.7.252/30", "252.7.168.192.in-addr.arpa 253.7.168.192.in-addr.arpa 254.7.168.192.in-addr.arpa 255.7.168.192.in-addr.arpa"},
		{"172.20.0.0/14", "20.172.in-addr.arpa 21.172.in-addr.arpa 22.172.in-addr.arpa 23.172.in-addr.arpa"},
		{"fd2e:7365:7368::/64", "0.0.0.0.8.6.3.7.5.6.3.7.e.2.d.f.ip6.arpa"},
		{"fd2e:7365:7368::/47", "8.6.3.7.5.6.3.7.e.2.d.f.ip6.arpa 9.6.3.7.5.6.3.7.e.2.d.f.ip6.arpa"},
		{"172.16.0.0/16 172.16.0.0/16 10.1.0.0/17", "16.172.in-addr.arpa "}, // 128 more are too many
	} {
		var ranges []netip.Prefix
		for _, r := range strings.Fields(c.ranges) {
			ranges = append(ranges, netip.MustParsePrefix(r))
		}
		if got := Domains(ranges); !slices.Equal(got, append(slices.Clone(fixed), strings.Fields(c.want)...)) {
			t.Errorf("%s: %q", c.ranges, got)
		}
	}
	if got := Domains([]netip.Prefix{netip.MustParsePrefix("10.1.128.0/17")}); !slices.Equal(got[len(fixed):], octets(128, 256, "1.10.in-addr.arpa")) {
		t.Errorf("/17: %q", got)
	}
}

func octets(from, to int, zone string) (out []string) {
	for i := from; i < to; i++ {
		out = append(out, netip.AddrFrom4([4]byte{0, 0, 0, byte(i)}).String()[len("0.0.0."):]+"."+zone)
	}
	return out
}

func TestReadings(t *testing.T) {
	for text, want := range map[string]bool{
		"hosts: files dns\n":                    false,
		"hosts: files resolve [!UNAVAIL] dns":   true,
		"# hosts: resolve\nhosts: dns":          false,
		"hosts: dns # resolve\npasswd: resolve": false,
	} {
		if nssResolve(text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
	for text, want := range map[string]int{"252.38-1~deb12u1": 252, "v258~rc2": 258, "": 0, "x": 0} {
		if got := leadingNumber(text); got != want {
			t.Errorf("%q: %d", text, got)
		}
	}
	for text, want := range map[string]bool{"": false, "TRUNCATE_NAMESERVER_LIST_AFTER_LOOPBACK_ADDRESS=no": true, "TRUNCATE_NAMESERVER_LIST_AFTER_127=\"yes\"": false, "REPORT_ABSENT_SYMLINK=no": false} {
		if keepsOthers(text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}
