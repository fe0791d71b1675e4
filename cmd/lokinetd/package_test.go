//go:build root && package

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"lokinetd/netif/lab"
)

// debian is a booted Debian 12 as a node of the demo's network: systemd is the first process of a container that shares the node's network. It asks the
// spy for names, and what it sends to addresses that are not in its own network passes the lab, where the counter is.
type debian struct {
	t    *testing.T
	d    *demoNet
	node *lab.Node
	root string
	init string // its first process, as the node sees it
	spy  *spy
}

const (
	debianAddr = "10.77.0.150"
	spyAddr    = "10.77.0.53"
	ordinary   = "93.184.215.14" // what the spy answers
	// exposureLimit is the highest exposure of the unit that systemd-analyze may find, 0 to 10.
	exposureLimit = 2.5
)

func newDebian(t *testing.T, d *demoNet, base string) *debian {
	t.Helper()
	h := &debian{t: t, d: d, root: filepath.Join(t.TempDir(), "root"), spy: &spy{}}
	h.must(os.Mkdir(h.root, 0o755))
	if out, err := exec.Command("tar", "-xf", "../../.cache/debian-12"+base+".tar", "-C", h.root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s (packaging/test/base makes it)", err, out)
	}
	h.write("etc/systemd/resolved.conf.d/test.conf", "[Resolve]\nDNS="+spyAddr+"\nFallbackDNS=\nLLMNR=no\nMulticastDNS=no\n")

	watcher, err := d.lab.AddNode(lab.NodeConfig{Name: "spy", Addrs: []netip.Prefix{netip.MustParsePrefix(spyAddr + "/16")}})
	h.must(err)
	f, err := watcher.Listen("udp4", spyAddr+":53")
	h.must(err)
	pc, err := net.FilePacketConn(f)
	f.Close()
	h.must(err)
	server := &mdns.Server{PacketConn: pc, Handler: h.spy}
	go server.ActivateAndServe()
	t.Cleanup(func() { server.Shutdown() })

	h.in(d.lab.Node, `ip addr add fd77::1/64 dev lab0 nodad
nft -f - <<END
table inet leaks {
	counter ranges { }
	chain seen {
		type filter hook prerouting priority raw
		iifname "lab0" ip daddr { 172.16.0.0/12, 192.168.0.0/16 } counter name ranges
		iifname "lab0" ip6 daddr fc00::/7 ip6 daddr != fd77::/64 counter name ranges
	}
}
END`)
	h.node, err = d.lab.AddNode(lab.NodeConfig{Name: "debian", Addrs: []netip.Prefix{netip.MustParsePrefix(debianAddr + "/16")}, Gateway: netip.MustParseAddr("10.77.0.1")})
	h.must(err)
	h.in(h.node, "ip addr add fd77::150/64 dev eth0 nodad; ip route add default via fd77::1")

	c := h.node.Command("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot", "--console=pipe", "--machine=debian", "--capability=CAP_NET_ADMIN",
		"--directory="+h.root, "--network-namespace-path=/proc/self/ns/net")
	log := &demoLog{}
	c.Stdout, c.Stderr = log, log
	h.must(c.Start())
	t.Cleanup(func() {
		if t.Failed() && h.init != "" {
			out, _ := h.try("systemctl status --no-pager 'lokinetd*'; journalctl --no-pager -n 120")
			t.Logf("the journal:\n%s", out)
		}
		h.node.Close()
		c.Wait()
		// systemd-nspawn leaves its empty control groups, where no service manager of the machine looks after them.
		exec.Command("sh", "-c", `for at in $(cut -d: -f3 /proc/self/cgroup | sort -u); do for top in "" /systemd /unified; do
			find /sys/fs/cgroup$top$at/payload /sys/fs/cgroup$top$at/supervisor -depth -type d -exec rmdir {} \;
		done; done`).Run()
		if t.Failed() {
			t.Logf("systemd-nspawn: %s", log)
		}
	})
	for end := time.Now().Add(20 * time.Second); h.init == ""; time.Sleep(100 * time.Millisecond) {
		out, _ := h.node.Command("pgrep", "-x", "systemd").Output()
		h.init = strings.TrimSpace(string(out))
		if time.Now().After(end) {
			t.Fatalf("systemd does not start: %s", log)
		}
	}
	h.until("systemctl is-system-running", "running")
	// A device node of its own, with Debian's mode, which the machine's may not have.
	h.sh("mkdir -p /dev/net && { test -e /dev/net/tun || mknod /dev/net/tun c 10 200; } && chmod 666 /dev/net/tun")
	return h
}

func (h *debian) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *debian) write(name, text string) {
	h.t.Helper()
	name = filepath.Join(h.root, name)
	h.must(os.MkdirAll(filepath.Dir(name), 0o755))
	h.must(os.WriteFile(name, []byte(text), 0o644))
}

// in runs a script in a node with the machine's programs.
func (h *debian) in(n *lab.Node, script string) string {
	h.t.Helper()
	out, err := n.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

func (h *debian) enter(script string) *lab.Cmd {
	return h.node.Command("nsenter", "-t", h.init, "-m", "-u", "-i", "-n", "-p", "env", "-i",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "HOME=/root", "sh", "-c", "cd; "+script)
}

// try runs a script in the container.
func (h *debian) try(script string) (string, error) {
	out, err := h.enter(script).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// sh is try for a script that must end well.
func (h *debian) sh(script string) string {
	h.t.Helper()
	out, err := h.try(script)
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// until waits for a text in what a script prints, and says how long that took.
func (h *debian) until(script, text string) time.Duration {
	h.t.Helper()
	start := time.Now()
	for {
		out, _ := h.try(script)
		if strings.Contains(out, text) {
			return time.Since(start).Round(time.Millisecond)
		}
		if time.Since(start) > 30*time.Second {
			h.t.Fatalf("%s: no %q in\n%s", script, text, out)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// leaks gives what of ours the resolver elsewhere was asked, and how many packets for our ranges have left the host, since the last call.
func (h *debian) leaks() (names []string, packets int) {
	h.t.Helper()
	out := h.in(h.d.lab.Node, "nft reset counter inet leaks ranges")
	m := regexp.MustCompile(`packets (\d+)`).FindStringSubmatch(out)
	if m == nil {
		h.t.Fatalf("no counter in %s", out)
	}
	packets, _ = strconv.Atoi(m[1])
	names = h.spy.heard()
	h.spy.mu.Lock()
	h.spy.names = nil
	h.spy.mu.Unlock()
	return names, packets
}

const leaked = "%s: %d packets for our ranges left the host, and the resolver elsewhere was asked %q"

// tight fails when something of ours has left the host since the last look.
func (h *debian) tight(when string) {
	h.t.Helper()
	if names, packets := h.leaks(); len(names) > 0 || packets > 0 {
		h.t.Errorf(leaked, when, packets, names)
	}
}

// ask asks for names of ours that nobody has asked for, and sends packets to our ranges, until stop.
func (h *debian) ask(ranges ...string) (stop func() (asked int)) {
	h.t.Helper()
	script := "i=0; while :; do i=$((i+1)); echo $i >/root/asked; timeout 1 getent ahosts name$i.loki; "
	for _, to := range ranges {
		script += "curl -s -o /dev/null -m 0.2 http://" + to + "/; "
	}
	c := h.enter(script + "done")
	h.must(c.Start())
	var once sync.Once
	stop = func() (asked int) {
		once.Do(func() {
			c.Signal(15)
			c.Wait()
			out, _ := h.try("cat /root/asked; rm /root/asked")
			asked, _ = strconv.Atoi(out)
		})
		return asked
	}
	h.t.Cleanup(func() { stop() })
	return stop
}

// others asks for names that are not ours, until the test ends; what it gives says how many were answered since the last call, and how many were not.
func (h *debian) others() (tally func() (answered, not int64)) {
	h.t.Helper()
	var yes, no atomic.Int64
	c := h.enter("i=0; while :; do i=$((i+1)); getent ahostsv4 www$i.example.net | grep -c STREAM & sleep 0.05; done")
	out, in := io.Pipe()
	c.Stdout = in
	h.must(c.Start())
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if lines.Text() == "0" {
				no.Add(1)
			} else {
				yes.Add(1)
			}
		}
	}()
	h.t.Cleanup(func() { c.Signal(15); c.Wait(); in.Close() })
	return func() (int64, int64) { return yes.Swap(0), no.Swap(0) }
}

// standIn is the process of lokinetd-names.service; "": there is none.
func (h *debian) standIn() string {
	h.t.Helper()
	pid := h.sh("systemctl show -P MainPID lokinetd-names")
	return strings.TrimPrefix(pid, "0")
}

// untilStandIn waits for another stand-in than this, and says how long that took.
func (h *debian) untilStandIn(than string) time.Duration {
	h.t.Helper()
	for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if now := h.standIn(); now != "" && now != than {
			return time.Since(start).Round(time.Millisecond)
		}
		if time.Since(start) > 20*time.Second {
			h.t.Fatal("nobody stands in")
		}
	}
}

// state is all that a package could leave on a host, one thing a line.
func (h *debian) state() []string {
	h.t.Helper()
	text := h.sh(`find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/tmp -o -path /var/log -o -path /var/cache -o -path /run/log -o -path /run/systemd \
		-o -path /var/lib/dpkg -o -path /var/lib/systemd -o -path '/etc/*-' -o -path /etc/.pwd.lock -o -path /run/user \) -prune -o -print | sort
cat /etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/resolv.conf /etc/nsswitch.conf
resolvectl status --no-pager 2>&1
systemctl list-units --all --plain --no-legend --no-pager 'lokinet*' 'sys-*-lokinet*' | awk '{print $1}'
find /etc/systemd /run/systemd/system /var/lib/systemd | grep -i lokinet; ps -eo args | grep '[l]okinet'; true`)
	text += h.in(h.node, "ip -o link | cut -d: -f2; ip -o addr | awk '{print $2, $4}'; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; nft list ruleset")
	return strings.Split(text, "\n")
}

// repacked makes the package anew with a higher version.
func (h *debian) repacked(deb string) string {
	h.t.Helper()
	dir := h.t.TempDir()
	next := filepath.Join(dir, "next.deb")
	out, err := exec.Command("sh", "-ec", `dpkg-deb -R "$1" "$2/x"; sed -i 's/^Version: .*/&+next/' "$2/x/DEBIAN/control"; dpkg-deb --root-owner-group -Znone -b "$2/x" "$3"`, "sh", deb, dir, next).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
	return next
}

// put copies a file into the container.
func (h *debian) put(from, to string) {
	h.t.Helper()
	raw, err := os.ReadFile(from)
	h.must(err)
	h.write(to, string(raw))
}

// browse has Chromium open a page by the container's resolver and interface: it runs beside the container, in the same network, with the container's resolv.conf.
func (h *debian) browse(page string) {
	h.t.Helper()
	chromium, err := exec.LookPath("chromium")
	if err != nil && os.Getenv("LOKINETD_BROWSER") != "" {
		h.t.Error(err)
	}
	if err != nil {
		h.t.Log("no browser was tried: there is no chromium")
		return
	}
	h.in(h.node, "rm -f /etc/resolv.conf; cat >/etc/resolv.conf <<END\n"+h.sh("cat /etc/resolv.conf")+"\nEND")
	dir := h.t.TempDir()
	browse := []string{"timeout", "60", chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--user-data-dir=" + filepath.Join(dir, "profile")}
	var said bytes.Buffer
	dom := h.node.Command(append(browse, "--dump-dom", page)...)
	dom.Stderr = &said
	if out, err := dom.Output(); err != nil || !strings.Contains(string(out), strings.TrimSpace(demoPage)) {
		h.t.Errorf("chromium: %v: %s%s", err, out, said.String())
	}
	if to := os.Getenv("LOKINETD_SCREENSHOT"); to != "" { // for people
		shot := filepath.Join(dir, "page.png")
		out, err := h.node.Command(append(browse, "--hide-scrollbars", "--window-size=800,300", "--screenshot="+shot, page)...).CombinedOutput()
		raw, rerr := os.ReadFile(shot)
		if err != nil || rerr != nil {
			h.t.Errorf("chromium: %v: %s", err, out)
		}
		h.must(os.WriteFile(to, raw, 0o644))
	}
}

// TestPackage does with the package what an owner of a Debian 12 does, from its installation to its purge. LOKINETD_DEB is the package.
func TestPackage(t *testing.T) { testPackage(t, packageWorld{method: "resolved"}) }

// TestPackagePlain is the same on a host whose programs ask the resolvers of /etc/resolv.conf themselves, and which lets lokinetd write that file.
func TestPackagePlain(t *testing.T) {
	testPackage(t, packageWorld{
		method: "file", config: "[dns]\nhost = \"file\"\n", all: true,
		prepare: "systemctl mask --now systemd-resolved 2>&1; rm /etc/resolv.conf; echo nameserver " + spyAddr + " >/etc/resolv.conf; sed -i 's/^hosts:.*/hosts: files dns/' /etc/nsswitch.conf",
	})
}

// TestPackageNetworkManager is the same on a desktop whose NetworkManager writes /etc/resolv.conf, and has dnsmasq.
func TestPackageNetworkManager(t *testing.T) {
	testPackage(t, packageWorld{
		method: "networkmanager", base: "-network-manager",
		prepare: `dpkg -P libnss-resolve systemd-resolved 2>&1; rm -f /etc/resolv.conf
cat >/etc/NetworkManager/system-connections/home.nmconnection <<END
[connection]
id=home
type=ethernet
interface-name=eth0
[ipv4]
method=manual
address1=` + debianAddr + `/16,10.77.0.1
dns=` + spyAddr + `;
[ipv6]
method=manual
address1=fd77::150/64,fd77::1
may-fail=false
END
chmod 600 /etc/NetworkManager/system-connections/home.nmconnection
systemctl restart NetworkManager; nmcli connection up home; nmcli --wait 20 general status`,
	})
}

// packageWorld is what hosts differ in.
type packageWorld struct {
	base    string // of the system: .cache/debian-12BASE.tar
	method  string // of the host's resolver, as dns status names it
	prepare string // a script that makes the host so
	config  string
	all     bool // all names come to us
}

func testPackage(t *testing.T, w packageWorld) {
	deb := os.Getenv("LOKINETD_DEB")
	if deb == "" {
		t.Fatal("LOKINETD_DEB names no package (packaging/test/run)")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	d, err := newDemo(ctx, &app{out: os.Stdout, err: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	if err := d.relays(); err != nil {
		t.Fatal(err)
	}
	_, address, err := d.serve(ctx)
	if err != nil {
		t.Fatal(err)
	}
	h := newDebian(t, d, w.base)
	if w.prepare != "" {
		h.sh(w.prepare)
	}
	named, page := "getent hosts "+address, "curl -sS --fail -m 20 http://"+address+"/"

	// The witnesses see what leaves: without the package, everything does.
	h.until("getent ahostsv4 www.example.net", ordinary)
	h.try("getent hosts " + address + "; curl -s -m 1 http://172.16.9.9/; curl -s -m 1 'http://[fd2e:7365:7368::99]/'")
	if names, packets := h.leaks(); len(names) == 0 || packets < 2 {
		t.Fatalf("the witnesses heard %q and saw %d packets", names, packets)
	}
	before := h.state()

	t.Log("installation")
	h.put(deb, "root/lokinetd.deb")
	t.Log(h.sh("dpkg -i /root/lokinetd.deb 2>&1"))
	if out := h.sh("systemctl is-enabled lokinetd"); out != "enabled" {
		t.Errorf("enabled: %s", out)
	}
	h.put(filepath.Join(d.dir, "demo.network"), "etc/lokinetd/demo.network")
	conf := fmt.Sprintf("[network]\nfile = \"demo.network\"\noperator = %q\n", d.operator.Public())
	h.write("etc/lokinetd/lokinetd.toml", conf+w.config)
	h.sh("systemctl reset-failed 'lokinetd*'; systemctl restart lokinetd") // returns after READY=1
	if out := h.sh("systemctl show -P ActiveState -P SubState -P Type -P User lokinetd"); out != "notify\nlokinetd\nactive\nrunning" {
		t.Errorf("the service: %s", out)
	}
	for _, unit := range []string{"lokinetd.service", "lokinetd-names.service"} {
		exposure := h.sh("systemd-analyze security --no-pager " + unit + " | tail -n 1")
		t.Log(exposure)
		if m := regexp.MustCompile(`: ([0-9.]+) `).FindStringSubmatch(exposure); m == nil {
			t.Errorf("systemd-analyze security: %s", exposure)
		} else if f, _ := strconv.ParseFloat(m[1], 64); f > exposureLimit {
			t.Errorf("exposure %v, more than %v: %s", f, exposureLimit, h.sh("systemd-analyze security --no-pager "+unit))
		}
	}

	t.Log("use")
	t.Logf("a name after %v", h.until(named, address))
	if out := h.sh(page); out != strings.TrimSpace(demoPage) {
		t.Errorf("the page: %q", out)
	}
	if out := h.sh("lokinetd dns status"); !strings.Contains(out, "resolver of this host: "+w.method) || !strings.Contains(out, "in effect: yes") {
		t.Errorf("dns status: %s", out)
	}
	doctor := func(wantExit, text string) {
		t.Helper()
		if out, _ := h.try("lokinetd doctor; echo exit $?"); !strings.HasSuffix(out, "exit "+wantExit) || !strings.Contains(out, text) {
			t.Errorf("doctor: no %q, or not exit %s:\n%s", text, wantExit, out)
		}
	}
	doctor("0", "localhost.loki is this machine's address")
	h.browse("http://" + address + "/")
	ordinaryWorks := func(when string) {
		t.Helper()
		if out, _ := h.try("getent ahostsv4 www.example.net"); !strings.Contains(out, ordinary) {
			t.Errorf("%s: www.example.net: %s", when, out)
		}
	}
	ordinaryWorks("running")
	var ranges []string
	for _, line := range strings.Split(h.sh("ip -o addr show dev lokinet0"), "\n") {
		if p, err := netip.ParsePrefix(strings.Fields(line)[3]); err == nil && p.Addr().Is4() {
			ranges = append(ranges, p.Masked().Addr().Next().Next().Next().String())
		} else if err == nil {
			ranges = append(ranges, "["+p.Masked().Addr().Next().Next().Next().String()+"]")
		}
	}
	t.Log("our ranges by an address of each:", ranges)
	h.tight("running")

	if w.method == "resolved" {
		t.Log("systemd-resolved starts anew")
		stop := h.ask()
		h.sh("systemctl restart systemd-resolved")
		t.Logf("a name after %v", h.until(named, address))
		stop()
		h.tight("systemd-resolved starts anew")
	}

	// The watchdog's time is that of the test; the daemon stands still until systemd has had enough.
	const hang = `mkdir -p /run/systemd/system/lokinetd.service.d
printf '[Service]\nWatchdogSec=2\n' >/run/systemd/system/lokinetd.service.d/test.conf
systemctl daemon-reload; systemctl restart lokinetd
pid=$(systemctl show -P MainPID lokinetd); kill -STOP $pid
for i in $(seq 100); do sleep 0.1; now=$(systemctl show -P MainPID lokinetd); [ $now = $pid ] || [ $now = 0 ] || break; done
[ $now != $pid ] && journalctl -u lokinetd --no-pager | grep -q 'Watchdog timeout'
rm -r /run/systemd/system/lokinetd.service.d; systemctl daemon-reload`
	const tun = "ip -o link show lokinet0 | cut -d: -f1"
	for _, c := range []struct {
		what, do    string
		runs, keeps bool // runs afterwards; has kept the interface
	}{
		{"kill -9", "kill -9 $(systemctl show -P MainPID lokinetd); sleep 1", true, true},
		{"restart", "systemctl restart lokinetd", true, true},
		{"hang", hang, true, true},
		{"stop", "systemctl stop lokinetd; sleep 3", false, false},
		{"start", "systemctl start lokinetd", true, false},
	} {
		index := h.sh(tun)
		stop := h.ask(ranges...)
		time.Sleep(300 * time.Millisecond)
		h.sh("systemctl reset-failed lokinetd; " + c.do)
		time.Sleep(300 * time.Millisecond)
		ordinaryWorks(c.what)
		if c.runs {
			t.Logf("%s: the page after %v", c.what, h.until(page, strings.TrimSpace(demoPage)))
		} else if out, _ := h.try("systemctl is-active lokinetd"); out != "inactive" {
			t.Errorf("after a stop the service is %s", out)
		} else {
			doctor("3", "our names stay on this host")
			if out, _ := h.try("lokinetd status; lokinetd dns status"); strings.Count(out, "our names stay on this host") != 2 {
				t.Errorf("after a stop: %s", out)
			}
			if h.standIn() == "" {
				t.Error("after a stop: nobody stands in")
			}
		}
		if now := h.sh(tun); c.keeps && now != index {
			t.Errorf("%s: the interface is number %s, and was %s", c.what, now, index)
		}
		t.Logf("%s: %d names asked for", c.what, stop())
		h.tight(c.what)
	}

	if w.all {
		t.Log("without a daemon")
		stop, tally := h.ask(ranges...), h.others()
		served := func(when string) {
			t.Helper()
			time.Sleep(time.Second)
			if answered, not := tally(); answered == 0 || not > 0 {
				t.Errorf("%s: %d other names were answered, %d were not", when, answered, not)
			} else {
				t.Logf("%s: %d other names were answered", when, answered)
			}
			h.tight(when)
		}
		h.sh("systemctl stop lokinetd")
		h.untilStandIn("")
		memory := h.sh("grep -E 'RssAnon|VmRSS' /proc/" + h.standIn() + "/status")
		t.Log("the stand-in:", strings.Join(strings.Fields(memory), " "))
		served("stopped")
		killed := h.standIn()
		h.sh("kill -9 " + killed)
		h.untilStandIn(killed)
		served("the stand-in is killed")
		h.sh("systemctl start lokinetd")
		h.until(page, strings.TrimSpace(demoPage))
		served("started again")
		gone := func(what, spoil string) {
			t.Helper()
			h.sh("systemctl reset-failed lokinetd; " + spoil)
			t.Logf("%s: the stand-in after %v", what, h.untilStandIn(""))
			if out, _ := h.try("systemctl is-active lokinetd lokinetd.socket"); out != "failed\nactive" {
				t.Errorf("%s: service and socket are %q", what, out)
			}
		}
		back := func() {
			t.Helper()
			h.sh("systemctl reset-failed lokinetd; systemctl start lokinetd")
			h.until(page, strings.TrimSpace(demoPage))
		}
		// A daemon that cannot start is not tried again.
		gone("no network file", "mv /etc/lokinetd/demo.network /root; systemctl restart lokinetd || true")
		served("no network file")
		h.sh("mv /root/demo.network /etc/lokinetd")
		back()
		served("the network file is there")
		gone("a wrong configuration", "echo wrong >>/etc/lokinetd/lokinetd.toml; systemctl restart lokinetd || true")
		served("a wrong configuration")
		h.sh("sed -i /^wrong/d /etc/lokinetd/lokinetd.toml")
		back()
		served("the configuration is right")
		// One that crashes is tried again some times, and takes some questions with it each time, which are asked again later.
		gone("crash after crash", "until systemctl is-failed -q lokinetd; do pid=$(systemctl show -P MainPID lokinetd); [ $pid = 0 ] || kill -9 $pid; sleep 0.05; done 2>/dev/null")
		time.Sleep(time.Second)
		h.tight("crash after crash")
		back()
		time.Sleep(time.Second)
		h.tight("no more crashes")
		// Who wants the names back while it is stopped gets them.
		h.sh("systemctl stop lokinetd; sleep 0.5; systemctl stop lokinetd.socket")
		if out := h.sh("cat /etc/resolv.conf; systemctl is-active lokinetd-names || true"); out != "nameserver "+spyAddr+"\ninactive" {
			t.Errorf("given back: %s", out)
		}
		ordinaryWorks("given back")
		stop()
		back()
		h.leaks()
	}

	t.Log("a service")
	pid := h.sh("systemctl show -P MainPID lokinetd")
	if out := h.sh("lokinetd service add blog 80:127.0.0.1:8080 2>&1"); !strings.Contains(out, "systemctl reload lokinetd") {
		t.Errorf("service add: %s", out)
	}
	if out := h.sh("stat -c '%U %a' /var/lib/lokinetd/service-blog.key"); out != "lokinetd 600" {
		t.Errorf("the key is %s", out)
	}
	h.sh("systemctl reload lokinetd")
	h.until("lokinetd service show blog", "tcp/80 -> 127.0.0.1:8080")
	h.until("ss -Hltn 'sport = :80'", ":80 ") // a low port, without root
	if now := h.sh("systemctl show -P MainPID lokinetd"); now != pid {
		t.Errorf("a reload has made process %s of %s", now, pid)
	}

	t.Log("upgrade")
	h.put(h.repacked(deb), "root/next.deb")
	stop := h.ask(ranges...)
	h.sh("dpkg -i --force-confold /root/next.deb 2>&1")
	t.Logf("the page after %v", h.until(page, strings.TrimSpace(demoPage)))
	t.Logf("%d names asked for", stop())
	h.tight("upgrade")
	if now := h.sh("systemctl show -P MainPID lokinetd"); now == pid || h.sh("systemctl is-active lokinetd lokinetd.socket") != "active\nactive" {
		t.Errorf("after the upgrade process %s still runs", now)
	}
	if out := h.sh("cat /etc/lokinetd/lokinetd.toml"); !strings.Contains(out, "blog") {
		t.Error("the upgrade has taken the configuration away")
	}

	t.Log("relay")
	h.write("etc/lokinetd/lokinetd.toml", "role = \"relay\"\n"+conf+"[relay]\npublic_address = \""+debianAddr+":1190\"\n")
	h.sh("systemctl restart lokinetd")
	h.until("lokinetd status", "relay")
	if out := h.sh("systemctl is-active lokinetd; ip -o link"); !strings.HasPrefix(out, "active\n") || strings.Contains(out, "lokinet") {
		t.Errorf("as a relay: %s", out)
	}
	ordinaryWorks("as a relay")

	t.Log("remove and purge")
	t.Log(h.sh("dpkg -r lokinetd 2>&1"))
	ordinaryWorks("removed")
	if out := h.sh("ip -o link; ip route; ip -6 route; test -d /var/lib/lokinetd; test -e /etc/lokinetd/lokinetd.toml"); strings.Contains(out, "lokinet") || strings.Contains(out, "unreachable") {
		t.Errorf("removed, and there is still %s", out)
	}
	t.Log(h.sh("dpkg -P lokinetd 2>&1; rm -f /root/*.deb"))
	after := h.state()
	for _, line := range after {
		if !slices.Contains(before, line) {
			t.Errorf("left behind: %s", line)
		}
	}
	for _, line := range before {
		if !slices.Contains(after, line) {
			t.Errorf("taken away: %s", line)
		}
	}
	ordinaryWorks("purged")
}
