//go:build root

package dns

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>
`

// testBus is a bus of our own.
type testBus struct {
	t    *testing.T
	dir  string
	cmd  *exec.Cmd
	conn *dbus.Conn
}

func newTestBus(t *testing.T) *testBus {
	b := &testBus{t: t, dir: t.TempDir()}
	if err := os.WriteFile(filepath.Join(b.dir, "bus.conf"), fmt.Appendf(nil, busConfig, filepath.Join(b.dir, "bus")), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start()
	t.Cleanup(b.stop)
	return b
}

func (b *testBus) address() string { return "unix:path=" + filepath.Join(b.dir, "bus") }

func (b *testBus) start() {
	b.t.Helper()
	b.cmd = exec.Command("dbus-daemon", "--config-file="+filepath.Join(b.dir, "bus.conf"), "--nofork", "--nopidfile", "--print-address")
	b.cmd.Stderr = os.Stderr
	out, err := b.cmd.StdoutPipe()
	if err == nil {
		err = b.cmd.Start()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	if !bufio.NewScanner(out).Scan() {
		b.t.Fatal("no bus")
	}
}

func (b *testBus) stop() {
	b.cmd.Process.Kill()
	b.cmd.Wait()
}

// dial is a connection for a stand-in.
func (b *testBus) dial() *dbus.Conn {
	b.t.Helper()
	c, err := dbus.Connect(b.address())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

// standIn plays systemd-resolved: it knows one link, records what it is told, and can refuse and hang.
type standIn struct {
	bus   *testBus
	conn  *dbus.Conn
	index int32
	addr  netip.Addr

	mu     sync.Mutex
	calls  []string
	refuse string // an error for all methods that set something
	hang   bool
	old    bool // without SetLinkDNSEx
	dns    []resolvedServerOld
	names  []resolvedDomain
}

func newStandIn(b *testBus, index int, addr netip.Addr) *standIn {
	s := &standIn{bus: b, index: int32(index), addr: addr}
	s.start()
	return s
}

func (s *standIn) start() {
	s.bus.t.Helper()
	s.conn = s.bus.dial()
	s.mu.Lock()
	s.dns, s.names = nil, nil
	s.mu.Unlock()
	table := map[string]any{
		"ResolveAddress": func(index, fam int32, addr []byte, flags uint64) ([]struct {
			Index int32
			Name  string
		}, uint64, *dbus.Error) {
			s.wait()
			a, _ := netip.AddrFromSlice(addr)
			if flags&noNetwork == 0 {
				s.log("ASKS OTHERS")
			}
			if index != s.index || a != s.addr || fam != family(a) {
				return nil, 0, dbus.NewError(resolvedName+".NetworkDown", []any{"no way"})
			}
			return []struct {
				Index int32
				Name  string
			}{{s.index, "host"}}, synthetic, nil
		},
		"GetLink": func(index int32) (dbus.ObjectPath, *dbus.Error) {
			if index != s.index {
				return "", dbus.NewError(resolvedName+".NoSuchLink", []any{"no link"})
			}
			return "/org/freedesktop/resolve1/link/_37", nil
		},
		"SetLinkDefaultRoute": func(i int32, v bool) *dbus.Error { return s.set("SetLinkDefaultRoute", i, v) },
		"SetLinkLLMNR":        func(i int32, v string) *dbus.Error { return s.set("SetLinkLLMNR", i, v) },
		"SetLinkMulticastDNS": func(i int32, v string) *dbus.Error { return s.set("SetLinkMulticastDNS", i, v) },
		"SetLinkDNSOverTLS":   func(i int32, v string) *dbus.Error { return s.set("SetLinkDNSOverTLS", i, v) },
		"SetLinkDNSSEC":       func(i int32, v string) *dbus.Error { return s.set("SetLinkDNSSEC", i, v) },
		"SetLinkDomains": func(i int32, v []resolvedDomain) *dbus.Error {
			err := s.set("SetLinkDomains", i, v)
			if err == nil {
				s.mu.Lock()
				s.names = v
				s.mu.Unlock()
			}
			return err
		},
		"SetLinkDNS": func(i int32, v []resolvedServerOld) *dbus.Error {
			err := s.set("SetLinkDNS", i, v)
			if err == nil {
				s.mu.Lock()
				s.dns = v
				s.mu.Unlock()
			}
			return err
		},
		"RevertLink": func(i int32) *dbus.Error { return s.set("RevertLink", i, "") },
	}
	if !s.old {
		table["SetLinkDNSEx"] = func(i int32, v []resolvedServer) *dbus.Error {
			err := s.set("SetLinkDNSEx", i, v)
			if err == nil {
				s.mu.Lock()
				s.dns = nil
				for _, e := range v {
					s.dns = append(s.dns, resolvedServerOld{e.Family, e.Address})
				}
				s.mu.Unlock()
			}
			return err
		}
	}
	all := func(string) (map[string]dbus.Variant, *dbus.Error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return map[string]dbus.Variant{"DNS": dbus.MakeVariant(s.dns), "Domains": dbus.MakeVariant(s.names), "DefaultRoute": dbus.MakeVariant(false)}, nil
	}
	err := s.conn.ExportMethodTable(table, "/org/freedesktop/resolve1", resolvedName+".Manager")
	if err == nil {
		err = s.conn.ExportMethodTable(map[string]any{"GetAll": all}, "/org/freedesktop/resolve1/link/_37", "org.freedesktop.DBus.Properties")
	}
	if err == nil {
		_, err = s.conn.RequestName(resolvedName, 0)
	}
	if err != nil {
		s.bus.t.Fatal(err)
	}
}

func (s *standIn) stop() { s.conn.Close() }

func (s *standIn) log(call string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
}

func (s *standIn) wait() {
	s.mu.Lock()
	hang := s.hang
	s.mu.Unlock()
	if hang {
		time.Sleep(time.Minute)
	}
}

func (s *standIn) set(method string, index int32, v any) *dbus.Error {
	s.wait()
	s.log(strings.TrimSpace(fmt.Sprintf("%s %d %v", method, index, v)))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != "" {
		return dbus.NewError(s.refuse, []any{"no"})
	}
	return nil
}

func (s *standIn) behave(refuse string, hang bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse, s.hang = refuse, hang
}

// told gives what it was told since the last time, when the last call is that one.
func (s *standIn) told(last string) []string {
	s.bus.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		calls := s.calls
		if len(calls) > 0 && strings.HasPrefix(calls[len(calls)-1], last) {
			s.calls = nil
			s.mu.Unlock()
			return calls
		}
		s.mu.Unlock()
		if time.Now().After(end) {
			s.bus.t.Fatalf("no %s in %q", last, calls)
		}
	}
}

// all that a link is told.
var wholeLink = []string{
	"SetLinkDefaultRoute 7 false", "SetLinkLLMNR 7 no", "SetLinkMulticastDNS 7 no", "SetLinkDNSOverTLS 7 no", "SetLinkDNSSEC 7 no",
	"SetLinkDomains 7 [{loki true} {sesh true} {snode true} {use-application-dns.net true} {16.172.in-addr.arpa true} {0.0.0.0.8.6.3.7.5.6.3.7.e.2.d.f.ip6.arpa true}]",
	"SetLinkDNSEx 7 [{2 [127 3 2 1] 53 }]",
}

// attended is a Host at work.
type attended struct {
	*Host
	t    *testing.T
	log  *bytes.Buffer
	stop func()
}

func attend(t *testing.T, b *testBus, files tree, link func() Link) *attended {
	t.Helper()
	p := plant(t, files)
	p.Bus = b.address()
	a := &attended{t: t, log: &bytes.Buffer{}}
	a.Host = NewHost(HostConfig{Place: p, Listen: addrPorts("127.3.2.1"), Link: link, Upstream: func() []netip.AddrPort { return nil }, Log: slog.New(slog.NewTextHandler(a.log, nil))})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	a.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("it does not end")
		}
	})
	t.Cleanup(a.stop)
	return a
}

// await waits for a status.
func (a *attended) await(applied bool, problem string) {
	a.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		s := a.Status()
		if s.Method != "" && s.Applied == applied && strings.Contains(s.Problem, problem) && (problem != "") == (s.Problem != "") {
			return
		}
		if time.Now().After(end) {
			a.t.Fatalf("want %v, %q: %+v", applied, problem, s)
		}
	}
}

func fixed() Link { return testLink }

func TestResolved(t *testing.T) {
	b := newTestBus(t)
	s := newStandIn(b, testLink.Index, testLink.Own[0].Addr())
	link := testLink
	var mu sync.Mutex
	h := attend(t, b, tree{resolvConf: stubConf}, func() Link { mu.Lock(); defer mu.Unlock(); return link })
	if got := s.told("SetLinkDNSEx"); !slices.Equal(got, wholeLink) {
		t.Errorf("at start: %q", got)
	}
	h.await(true, "")

	// It is started anew.
	s.stop()
	h.await(false, "has ended")
	s.start()
	if got := s.told("SetLinkDNSEx"); !slices.Equal(got, wholeLink) {
		t.Errorf("after its restart: %q", got)
	}
	h.await(true, "")

	// A service comes, with a range of its own.
	mu.Lock()
	link.Own = append(slices.Clone(link.Own), netip.MustParsePrefix("172.17.0.1/30"))
	mu.Unlock()
	h.Changed()
	if got := s.told("SetLinkDNSEx"); !strings.Contains(strings.Join(got, "\n"), "{3.0.17.172.in-addr.arpa true}") {
		t.Errorf("after a change: %q", got)
	}
	// Nothing changes: nothing is told. Somebody else changes it: it is told again.
	h.Changed()
	s.mu.Lock()
	s.names = s.names[1:]
	s.mu.Unlock()
	h.Changed()
	if got := s.told("SetLinkDNSEx"); len(got) != len(wholeLink) {
		t.Errorf("after somebody's change: %q", got)
	}

	// The bus is started anew.
	b.stop()
	h.await(false, "bus")
	s.stop()
	b.start()
	s.start()
	if got := s.told("SetLinkDNSEx"); len(got) != len(wholeLink) {
		t.Errorf("after the restart of the bus: %q", got)
	}
	h.await(true, "")

	h.stop()
	if got := s.told("RevertLink"); !slices.Equal(got, []string{"RevertLink 7"}) {
		t.Errorf("at the end: %q", got)
	}
}

func TestResolvedOld(t *testing.T) {
	b := newTestBus(t)
	s := &standIn{bus: b, index: 7, addr: testLink.Own[0].Addr(), old: true}
	s.start()
	attend(t, b, tree{resolvConf: stubConf}, fixed).await(true, "")
	if got := s.told("SetLinkDNS "); got[len(got)-1] != "SetLinkDNS 7 [{2 [127 3 2 1]}]" {
		t.Errorf("%q", got)
	}
}

func TestResolvedRefuses(t *testing.T) {
	b := newTestBus(t)
	s := newStandIn(b, testLink.Index, testLink.Own[0].Addr())
	s.behave("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", false)
	h := attend(t, b, tree{resolvConf: stubConf}, fixed)
	h.await(false, "polkit")
	s.behave(resolvedName+".LinkBusy", false)
	h.await(false, "systemd-networkd")
	s.behave("", false)
	h.await(true, "")
}

// TestResolvedHangs: the daemon says so, and ends in time.
func TestResolvedHangs(t *testing.T) {
	b := newTestBus(t)
	s := newStandIn(b, testLink.Index, testLink.Own[0].Addr())
	h := attend(t, b, tree{resolvConf: stubConf}, fixed)
	h.await(true, "")
	s.told("SetLinkDNSEx")
	s.behave("", true)
	start := time.Now()
	h.stop()
	if took := time.Since(start); took > revertTime+time.Second {
		t.Errorf("it took %v to stop", took)
	}
	h = attend(t, b, tree{resolvConf: stubConf}, fixed)
	h.await(false, "does not answer")
	h.stop()
}

// TestResolvedElsewhere: the bus leads to the systemd-resolved of another network namespace, where the link of our number is somebody else's. It is not touched.
func TestResolvedElsewhere(t *testing.T) {
	b := newTestBus(t)
	s := newStandIn(b, testLink.Index, netip.MustParseAddr("192.168.1.7"))
	h := attend(t, b, tree{resolvConf: stubConf}, fixed)
	h.await(false, "does not know 172.16.0.1 as the address of interface 7, lokinet0")
	h.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.calls) > 0 {
		t.Errorf("it was told %q", s.calls)
	}
}

// TestLook reads what stand-ins for systemd and NetworkManager say, and lets NetworkManager take up dnsmasq.
func TestLook(t *testing.T) {
	b := newTestBus(t)
	c := b.dial()
	var mu sync.Mutex
	mode, reloads, units := "default", []uint32(nil), []string(nil)
	var p Place
	get := func(iface, prop string) (dbus.Variant, *dbus.Error) {
		mu.Lock()
		defer mu.Unlock()
		return dbus.MakeVariant(map[string]string{"Version": "259.1-2", "Mode": mode, "RcManager": "symlink"}[prop]), nil
	}
	reload := func(flags uint32) *dbus.Error {
		mu.Lock()
		defer mu.Unlock()
		reloads = append(reloads, flags)
		if mode == "deaf" {
			return nil
		}
		mode = "default"
		if p.ours(nmFile) {
			mode = "dnsmasq"
		}
		return nil
	}
	unit := func(name, how string) (dbus.ObjectPath, *dbus.Error) {
		mu.Lock()
		defer mu.Unlock()
		units = append(units, name+" "+how)
		return "/job", nil
	}
	for path, name := range map[dbus.ObjectPath]string{"/org/freedesktop/systemd1": systemdName, "/org/freedesktop/NetworkManager/DnsManager": nmName} {
		c.ExportMethodTable(map[string]any{"Get": get}, path, "org.freedesktop.DBus.Properties")
		if _, err := c.RequestName(name, 0); err != nil {
			t.Fatal(err)
		}
	}
	c.ExportMethodTable(map[string]any{"Reload": reload}, "/org/freedesktop/NetworkManager", nmName)
	c.ExportMethodTable(map[string]any{"ReloadOrTryRestartUnit": unit}, "/org/freedesktop/systemd1", systemdName+".Manager")

	mu.Lock()
	p = plant(t, tree{resolvConf: "# Generated by NetworkManager\nnameserver 1.1.1.1\n", "/usr/sbin/dnsmasq": ""})
	p.Bus = b.address()
	mu.Unlock()
	w := world(p, MethodAuto)
	d := Decide(w)
	if w.Systemd != 259 || w.Resolved || w.Polkit || w.NMMode != "default" || w.NMWriter != "symlink" || !w.Dnsmasq || d.Method != MethodNM || !d.StartNM {
		t.Fatalf("%+v\n%s", w, d)
	}
	listen, ctx := addrPorts("127.3.2.1"), context.Background()
	apply := func(d Decision) {
		t.Helper()
		if _, err := p.Apply(ctx, d, listen, testLink); err != nil {
			t.Fatal(err)
		}
	}
	apply(d)
	d = Decide(world(p, MethodAuto))
	if d.Method != MethodNM || d.StartNM {
		t.Fatal(d)
	}
	apply(d) // nothing to do
	apply(Decision{Method: MethodDelegate})
	if _, err := p.Revert(ctx); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	if !slices.Equal(reloads, []uint32{5, 5}) || mode != "default" || len(units) != 2 || units[0] != "systemd-resolved.service replace" {
		t.Errorf("reloads %d, mode %s, units %q", reloads, mode, units)
	}

	// Another file overrules ours: it is said, and nothing of ours stays.
	mode = "deaf"
	mu.Unlock()
	before := harvest(t, p)
	if _, err := p.Apply(ctx, Decision{Method: MethodNM, StartNM: true}, listen, testLink); err == nil || !strings.Contains(err.Error(), "another file sets dns=") {
		t.Error(err)
	}
	if got := harvest(t, p); !same(got, before) {
		t.Errorf("%q", got)
	}
}

// TestReturns: a unit comes back when systemd has a job to start it, and not when it has one to stop it, or none.
func TestReturns(t *testing.T) {
	b := newTestBus(t)
	p := plant(t, tree{"/etc/resolv.conf": "# " + mark + "\nnameserver 127.3.2.1\n"})
	p.Bus = b.address()
	type job struct {
		ID                uint32
		Unit, Type, State string
		Job, Path         dbus.ObjectPath
	}
	var jobs []job
	conn := b.dial()
	if err := conn.ExportMethodTable(map[string]any{"ListJobs": func() ([]job, *dbus.Error) { return jobs, nil }}, "/org/freedesktop/systemd1", systemdName+".Manager"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(systemdName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	for want, all := range map[bool][][2]string{
		false: {{}, {"lokinetd.socket", "stop"}, {"lokinetd.service", "start"}},
		true:  {{"lokinetd.socket", "start"}, {"lokinetd.socket", "restart"}},
	} {
		for _, j := range all {
			jobs = []job{{7, j[0], j[1], "waiting", "/j", "/u"}}
			if got := p.Awaited(t.Context(), addrPorts("127.3.2.1"), true); got != want {
				t.Errorf("%q: %v", j, got)
			}
		}
	}
}
