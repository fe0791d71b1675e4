//go:build root

package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"lokinetd/netif"
	"lokinetd/netif/lab"
)

// spy is a resolver elsewhere: it answers every name and remembers it.
type spy struct {
	mu    sync.Mutex
	names []string
}

func (s *spy) ServeDNS(w mdns.ResponseWriter, q *mdns.Msg) {
	name := strings.ToLower(q.Question[0].Name)
	s.mu.Lock()
	s.names = append(s.names, name)
	s.mu.Unlock()
	r := new(mdns.Msg).SetReply(q)
	if q.Question[0].Qtype == mdns.TypeA {
		r.Answer = []mdns.RR{&mdns.A{Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeA, Class: mdns.ClassINET, Ttl: 1}, A: net.IPv4(93, 184, 215, 14)}}
	}
	w.WriteMsg(r)
}

// heard gives what of ours it was asked.
func (s *spy) heard() (ours []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.names {
		for _, zone := range []string{"loki.", "sesh.", "snode.", "16.172.in-addr.arpa.", "8.6.3.7.5.6.3.7.e.2.d.f.ip6.arpa.", "use-application-dns.net."} {
			if n == zone || strings.HasSuffix(n, "."+zone) {
				ours = append(ours, n)
			}
		}
	}
	return ours
}

// forget is heard, once.
func (s *spy) forget() []string {
	ours := s.heard()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names = nil
	return ours
}

// newSpy lets it answer at 10.77.0.9.
func newSpy(t *testing.T, l *lab.Lab) *spy {
	node, err := l.AddNode(lab.NodeConfig{Name: "spy", Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.9/24")}})
	if err != nil {
		t.Fatal(err)
	}
	return spyIn(t, node, "10.77.0.9")
}

// spyIn lets it answer at an address of a node.
func spyIn(t *testing.T, node *lab.Node, at string) *spy {
	s := &spy{}
	for _, network := range []string{"udp4", "tcp4"} {
		f, err := node.Listen(network, at+":53")
		if err != nil {
			t.Fatal(err)
		}
		server := &mdns.Server{Handler: s}
		if network == "udp4" {
			server.PacketConn, err = net.FilePacketConn(f)
		} else {
			server.Listener, err = net.FileListener(f)
		}
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		go server.ActivateAndServe()
		t.Cleanup(func() { server.Shutdown() })
	}
	return s
}

// sh runs a script in the node and returns what it prints.
func (h *lonely) sh(script string) string {
	h.t.Helper()
	out, err := h.node.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// background starts a program of the node that lives as long as the test.
func (h *lonely) background(args ...string) *lab.Cmd {
	h.t.Helper()
	c := h.node.Command(args...)
	log := &bytes.Buffer{}
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		c.Signal(syscall.SIGKILL)
		c.Wait()
		if h.t.Failed() {
			h.t.Logf("%s:\n%s", args[0], log)
		}
	})
	return c
}

// command runs lokinetd in the node.
func (h *lonely) command(code int, args ...string) string {
	h.t.Helper()
	out, err := h.node.Self(append(args, "-c", h.at("lokinetd.toml"))...).CombinedOutput()
	got := 0
	if e, ok := err.(*lab.ExitError); ok {
		got = e.Code
	} else if err != nil {
		h.t.Fatal(err)
	}
	if got != code {
		h.t.Fatalf("lokinetd %s: exit code %d, want %d\n%s", strings.Join(args, " "), got, code, out)
	}
	return string(out)
}

// until waits for a text in what a script prints.
func (h *lonely) until(script, text string) string {
	h.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		out, _ := h.node.Command("sh", "-c", script).CombinedOutput()
		if strings.Contains(string(out), text) {
			return string(out)
		}
		if time.Now().After(end) {
			h.t.Fatalf("%s: no %q in\n%s", script, text, out)
		}
	}
}

const nodeBus = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>
`

// systemdResolved lets Debian's own, over a bus in the node, be the host's resolver, with others elsewhere; what it gives kills it and starts it anew.
func (h *lonely) systemdResolved(program, others string) (restart func()) {
	h.t.Helper()
	if _, err := os.Stat(program); err != nil {
		h.t.Fatalf("%v (.ci/run root fetches it)", err)
	}
	if err := os.WriteFile(h.at("bus.conf"), []byte(nodeBus), 0o644); err != nil {
		h.t.Fatal(err)
	}
	h.sh(`cd /etc && for f in passwd group systemd; do cp -rL .host/$f $f.own && rm $f && mv $f.own $f; done
grep -q ^systemd-resolve: passwd || echo "systemd-resolve:x:990:990::/:/usr/sbin/nologin" >>passwd
grep -q ^systemd-resolve: group || echo "systemd-resolve:x:990:" >>group
mkdir -p systemd && printf '[Resolve]\nDNS=` + others + `\nFallbackDNS=\n' >systemd/resolved.conf
chown systemd-resolve: /run/systemd/resolve
echo 'nameserver 127.0.0.53' >resolv.conf`)
	h.background("dbus-daemon", "--config-file="+h.at("bus.conf"), "--nofork", "--nopidfile")
	h.until("ls /run/dbus", "system_bus_socket")
	resolved := h.background(program)
	h.until("dig +short +time=1 +tries=1 www.example.net", "93.184.215.14")
	return func() {
		h.t.Helper()
		if err := resolved.Signal(syscall.SIGKILL); err != nil {
			h.t.Fatal(err)
		}
		resolved.Wait()
		resolved = h.background(program)
		start := time.Now()
		h.until("dig +short +time=1 +tries=1 localhost.loki @127.0.0.53", "172.16.0.1")
		h.t.Logf("systemd-resolved sent our names to us %v after its restart", time.Since(start).Round(time.Millisecond))
	}
}

// TestResolver: Debian's own systemd-resolved, over a bus in a namespace, sends our names to the daemon and all others to the host's resolver, a spy, which never hears
// ours: while the daemon starts, works without a path, while systemd-resolved is killed and started anew, and while the
// daemon is stopped and started again.
// LOKINETD_RESOLVED is the program.
func TestResolver(t *testing.T) {
	h := newLonely(t)
	seen := newSpy(t, h.lab)
	program, _ := filepath.Abs("../../.cache/debian/systemd-resolved/lib/systemd/systemd-resolved")
	if other := os.Getenv("LOKINETD_RESOLVED"); other != "" {
		program = other
	}
	restart := h.systemdResolved(program, "10.77.0.9")
	h.command(4, "dns", "status") // no daemon yet

	asks := func(when, rcode string) {
		t.Helper()
		for _, name := range []string{"blog.loki", strings.Repeat("y", 52) + ".snode"} {
			out, _ := h.node.Command("dig", "+time=6", "+tries=1", name).CombinedOutput()
			if !strings.Contains(string(out), rcode) {
				t.Errorf("%s: %s: no %s in\n%s", when, name, rcode, out)
			}
		}
		if out := h.sh("dig +short www.example.net"); out != "93.184.215.14" {
			t.Errorf("%s: www.example.net: %s", when, out)
		}
		if ours := seen.heard(); len(ours) > 0 {
			t.Errorf("%s: the resolver elsewhere was asked %q", when, ours)
		}
	}
	h.start(nil)
	h.command(0, "dns", "apply") // before that our names go elsewhere
	h.until("dig +short +time=2 +tries=1 localhost.loki", "172.16.0.1")
	if out := h.command(0, "dns", "status"); !strings.Contains(out, "resolver of this host: resolved") || !strings.Contains(out, "in effect: yes") {
		t.Errorf("dns status: %s", out)
	}
	h.background("sh", "-c", "while :; do dig +time=1 +tries=1 n$(date +%N).loki >/dev/null; done") // from now on, in all that happens
	asks("no path", "SERVFAIL")
	if out := h.sh("dig +short -x 172.16.0.1"); !strings.HasSuffix(out, ".loki.") {
		t.Errorf("our own address is %q", out)
	}
	if out := h.sh("dig use-application-dns.net"); !strings.Contains(out, "NXDOMAIN") {
		t.Errorf("the browsers' canary: %s", out)
	}

	restart()

	// As the unit does at a stop: ExecStop, the end, ExecStopPost.
	if out := h.command(0, "dns", "revert", "--hold"); !strings.Contains(out, netif.HoldName) {
		t.Errorf("dns revert --hold: %s", out)
	}
	h.end(syscall.SIGTERM)
	h.command(0, "dns", "revert", "--hold")

	if out := h.sh("dig -x 172.16.5.5"); !strings.Contains(out, "SERVFAIL") {
		t.Errorf("stopped, an address of our range: %s", out)
	}
	asks("stopped", "SERVFAIL")
	h.start(nil)
	h.command(0, "dns", "apply")
	h.until("dig +short +time=2 +tries=1 localhost.loki", "172.16.0.1")
	if ours := seen.heard(); len(ours) > 0 {
		t.Errorf("the resolver elsewhere was asked %q", ours)
	}
	h.end(syscall.SIGTERM)
	h.command(0, "dns", "revert")
	if out := h.sh("ip -o link"); strings.Contains(out, "lokinet") {
		t.Errorf("left behind: %s", out)
	}
}

// TestResolverFile: all names come to us by resolv.conf, and those of others are asked of the resolver that was in it before.
func TestResolverFile(t *testing.T) {
	h := newLonely(t)
	seen := newSpy(t, h.lab)
	conf, err := os.ReadFile(h.at("lokinetd.toml"))
	if err == nil {
		err = os.WriteFile(h.at("lokinetd.toml"), append(conf, "[dns]\nhost = \"file\"\n"...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	before := "search example.net\nnameserver 10.77.0.9"
	h.sh(fmt.Sprintf("rm -f /etc/resolv.conf; printf '%%b\\n' %q >/etc/resolv.conf", before))
	if out := h.command(1, "dns", "apply"); !strings.Contains(out, "is the daemon running?") {
		t.Errorf("without a daemon: %s", out)
	}
	h.start(nil)
	h.command(0, "dns", "apply")
	if out := h.command(0, "dns", "status"); !strings.Contains(out, "other names are asked of: 10.77.0.9:53") || !strings.Contains(out, "in effect: yes") {
		t.Errorf("dns status: %s", out)
	}
	h.until("getent ahostsv4 www.example.net", "93.184.215.14")
	if out := h.sh("getent ahostsv4 localhost.loki"); !strings.Contains(out, "172.16.0.1") {
		t.Errorf("localhost.loki: %s", out)
	}
	h.node.Command("getent", "ahostsv4", "blog.loki").Run()

	// Killed and started again: the former resolver is still known.
	h.end(syscall.SIGKILL)
	h.start(nil)
	h.until("getent ahostsv4 www2.example.net", "93.184.215.14")
	h.end(syscall.SIGTERM)
	h.command(0, "dns", "revert")
	if out := h.sh("cat /etc/resolv.conf; ls /etc | grep lokinetd || true"); out != before {
		t.Errorf("after it: %q", out)
	}
	if ours := seen.heard(); len(ours) > 0 {
		t.Errorf("the resolver elsewhere was asked %q", ours)
	}
}

// snippet is a block of docs/dns.md that is marked as tested.
func snippet(t *testing.T, name string) string {
	t.Helper()
	doc, err := os.ReadFile("../../docs/dns.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(doc), "<!-- tested: "+name+" -->\n```\n")
	text, _, end := strings.Cut(after, "```\n")
	if !ok || !end {
		t.Fatalf("docs/dns.md has no snippet for %s", name)
	}
	return text
}

// TestSnippets runs what docs/dns.md says about other resolvers with those of Debian: they send our names to the daemon, all others to a spy, which never hears ours. Where
// they validate, they do so, with the root's real key: that our domains do not exist there must not matter.
func TestSnippets(t *testing.T) {
	const anchor = `. IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D`
	for _, c := range []struct {
		name, conf string
		command    []string
	}{
		{"dnsmasq", "no-resolv\nserver=10.77.0.9\nlisten-address=127.0.0.1\nbind-interfaces\nstop-dns-rebind\n" + snippet(t, "dnsmasq"),
			[]string{"dnsmasq-base/usr/sbin/dnsmasq", "--keep-in-foreground", "--user=root", "--pid-file=", "--conf-file=CONF"}},
		{"unbound", "server:\n interface: 127.0.0.1\n username: \"\"\n chroot: \"\"\n directory: \"\"\n pidfile: \"\"\n use-syslog: no\n private-address: 172.16.0.0/12\n trust-anchor: \"" + anchor + "\"\n domain-insecure: \"net\"\n" +
			"remote-control:\n control-enable: no\nforward-zone:\n name: \".\"\n forward-addr: 10.77.0.9\n" + snippet(t, "unbound"),
			[]string{"unbound/usr/sbin/unbound", "-d", "-c", "CONF"}},
		{"bind9", "options {\n directory \"DIR\"; pid-file none; session-keyfile none; listen-on { 127.0.0.1; }; listen-on-v6 { none; }; recursion yes; forwarders { 10.77.0.9; }; dnssec-validation auto;\n" +
			snippet(t, "bind9 options") + "};\ncontrols { };\n" + snippet(t, "bind9"),
			[]string{"bind9/usr/sbin/named", "-g", "-c", "CONF"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newLonely(t)
			seen := newSpy(t, h.lab)
			program, _ := filepath.Abs("../../.cache/debian/" + c.command[0])
			if _, err := os.Stat(program); err != nil {
				t.Fatalf("%v (.ci/run root fetches it)", err)
			}
			if err := os.WriteFile(h.at("conf"), []byte(strings.ReplaceAll(c.conf, "DIR", h.dir)), 0o644); err != nil {
				t.Fatal(err)
			}
			h.start(nil)
			args := []string{program}
			for _, arg := range c.command[1:] {
				args = append(args, strings.ReplaceAll(arg, "CONF", h.at("conf")))
			}
			h.background(args...)
			h.until("dig +cd +short +time=1 +tries=1 @127.0.0.1 www.example.net", "93.184.215.14")
			h.until("dig +short +time=3 +tries=1 @127.0.0.1 localhost.loki", "172.16.0.1")
			for ask, want := range map[string]string{
				"localhost.sesh":          "172.16.0.1",
				"blog.loki":               "SERVFAIL",
				"use-application-dns.net": "NXDOMAIN",
				"-x 172.16.0.1":           ".loki.",
			} {
				start := time.Now()
				if out := h.sh("dig +time=60 +tries=1 @127.0.0.1 " + ask); !strings.Contains(out, want) {
					t.Errorf("%s: no %s in\n%s", ask, want, out)
				}
				t.Logf("%s took %v", ask, time.Since(start).Round(10*time.Millisecond))
			}
			if ours := seen.heard(); len(ours) > 0 {
				t.Errorf("the resolver elsewhere was asked %q", ours)
			}
		})
	}
}

// resolvconf lets Debian's, or openresolv, write the host's resolv.conf; it knows one resolver.
func (h *lonely) resolvconf(from, resolver string) {
	h.t.Helper()
	if _, err := os.Stat(from); err != nil {
		h.t.Fatalf("%v (.ci/run root fetches it)", err)
	}
	h.sh(`set -e
mount -t tmpfs own /run
mount -t overlay own -o lowerdir=` + from + `/sbin:/usr/sbin /usr/sbin
mount -t overlay own -o lowerdir=` + from + `/lib:/usr/lib /usr/lib
cp -rL ` + from + `/etc/resolvconf* /etc/
mkdir -p /run/resolvconf/interface
if [ ` + filepath.Base(from) + ` = resolvconf ]; then ln -sfn ../run/resolvconf/resolv.conf /etc/resolv.conf; resolvconf --enable-updates; else rm /etc/resolv.conf; fi
echo nameserver ` + resolver + ` | resolvconf -a eth0.dhcp`)
}

// TestResolverResolvconf: Debian's resolvconf and openresolv make us the only resolver of the host and nobody else is asked for our names; other names are asked of those
// whom they knew before, and of those whom they come to know. Afterwards all is as it was.
func TestResolverResolvconf(t *testing.T) {
	for _, kind := range []string{"resolvconf", "openresolv"} {
		t.Run(kind, func(t *testing.T) {
			h := newLonely(t)
			seen := newSpy(t, h.lab)
			from, _ := filepath.Abs("../../.cache/debian/" + kind)
			h.resolvconf(from, "10.77.0.9")
			before := h.sh("ls -l /etc/resolv.conf | cut -c1; cat /etc/resolv.conf")
			if !strings.Contains(before, "nameserver 10.77.0.9") {
				t.Fatal(before)
			}
			h.start(nil)
			for range 2 {
				if out := h.command(0, "dns", "apply"); !strings.Contains(out, "resolvconf (") {
					t.Fatal(out)
				}
			}
			if out := h.sh("grep ^nameserver /etc/resolv.conf"); out != "nameserver 127.3.2.1" {
				t.Errorf("resolv.conf: %s", out)
			}
			if out := h.command(0, "dns", "status"); !strings.Contains(out, "in effect: yes") {
				t.Error(out)
			}
			h.until("getent ahostsv4 www.example.net", "93.184.215.14")
			if out := h.sh("getent ahostsv4 localhost.loki"); !strings.Contains(out, "172.16.0.1") {
				t.Errorf("localhost.loki: %s", out)
			}
			h.node.Command("getent", "ahostsv4", "blog.loki").Run()
			h.sh("echo nameserver 10.77.0.10 | resolvconf -a eth0.dhcp") // a new lease
			if out := h.sh("grep ^nameserver /etc/resolv.conf"); out != "nameserver 127.3.2.1" {
				t.Errorf("resolv.conf after a new lease: %s", out)
			}
			if out := h.command(0, "dns", "status"); !strings.Contains(out, "other names are asked of: 10.77.0.10:53\n") {
				t.Error(out)
			}
			h.sh("echo nameserver 10.77.0.9 | resolvconf -a eth0.dhcp")
			h.end(syscall.SIGTERM)
			for range 2 {
				h.command(0, "dns", "revert", "--hold")
			}
			if after := h.sh("ls -l /etc/resolv.conf | cut -c1; cat /etc/resolv.conf"); after != before {
				t.Errorf("before %q, after %q", before, after)
			}
			if ours := seen.heard(); len(ours) > 0 {
				t.Errorf("the resolver elsewhere was asked %q", ours)
			}
		})
	}
}

// TestResolverNM: Debian's NetworkManager takes up dnsmasq for us and gives it up again.
func TestResolverNM(t *testing.T) {
	h := newLonely(t)
	seen := newSpy(t, h.lab)
	debian, _ := filepath.Abs("../../.cache/debian")
	nm, dnsmasq := filepath.Join(debian, "network-manager"), filepath.Join(debian, "dnsmasq-base")
	for _, dir := range []string{nm, dnsmasq} {
		if _, err := os.Stat(dir); err != nil {
			t.Fatalf("%v (.ci/run root fetches it)", err)
		}
	}
	if err := os.WriteFile(h.at("bus.conf"), []byte(nodeBus), 0o644); err != nil {
		t.Fatal(err)
	}
	h.sh(`set -e
mount -t tmpfs own /run
mount -t tmpfs own /var/lib
mount -t sysfs -o ro own /sys
mount -t overlay own -o lowerdir=` + nm + `/usr/sbin:` + dnsmasq + `/usr/sbin:/usr/sbin /usr/sbin
mount -t overlay own -o lowerdir=` + nm + `/usr/lib:/usr/lib /usr/lib
mkdir -p /run/dbus /etc/NetworkManager/conf.d /etc/NetworkManager/dnsmasq.d /etc/NetworkManager/system-connections /var/lib/NetworkManager
printf '[main]\nplugins=keyfile\n' >/etc/NetworkManager/NetworkManager.conf
printf '[connection]\nid=home\ntype=ethernet\ninterface-name=eth0\n[ipv4]\nmethod=manual\naddress1=10.77.0.2/24\ndns=10.77.0.9;\n' >/etc/NetworkManager/system-connections/home.nmconnection
chmod 600 /etc/NetworkManager/system-connections/home.nmconnection
cp -L /etc/.host/passwd /etc/passwd.own && mv /etc/passwd.own /etc/passwd
grep -q ^dnsmasq: /etc/passwd || echo "dnsmasq:x:991:65534::/:/usr/sbin/nologin" >>/etc/passwd
rm -f /etc/resolv.conf`)
	h.background("dbus-daemon", "--config-file="+h.at("bus.conf"), "--nofork", "--nopidfile")
	h.until("ls /run/dbus", "system_bus_socket")
	h.background("NetworkManager", "--no-daemon")
	h.until("cat /etc/resolv.conf", "nameserver 10.77.0.9")
	before := h.sh("cat /etc/resolv.conf")

	h.start(nil)
	for range 2 {
		if out := h.command(0, "dns", "apply"); !strings.Contains(out, "networkmanager: ") {
			t.Fatal(out)
		}
	}
	h.until("cat /etc/resolv.conf", "nameserver 127.0.0.1")
	if out := h.command(0, "dns", "status"); !strings.Contains(out, "in effect: yes") {
		t.Error(out)
	}
	h.until("dig +short +time=2 +tries=1 www.example.net", "93.184.215.14")
	h.until("dig +short +time=2 +tries=1 localhost.loki", "172.16.0.1")
	h.node.Command("getent", "ahostsv4", "blog.loki").Run()
	h.command(0, "dns", "revert", "--hold")
	h.end(syscall.SIGTERM)
	h.command(0, "dns", "revert", "--hold")
	h.until("dig +time=2 +tries=1 blog.loki", "timed out")
	h.until("dig +short +time=2 +tries=1 www.example.net", "93.184.215.14")
	if ours := seen.heard(); len(ours) > 0 {
		t.Errorf("the resolver elsewhere was asked %q", ours)
	}
	for range 2 {
		h.command(0, "dns", "revert")
	}
	h.until("cat /etc/resolv.conf", "nameserver 10.77.0.9")
	if after := h.sh("cat /etc/resolv.conf; find /etc/NetworkManager /run/NetworkManager | grep lokinetd || true"); after != before {
		t.Errorf("before %q, after %q", before, after)
	}
}
