package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"lokinetd/config"
	"lokinetd/netif"
	"lokinetd/router/control"
	"lokinetd/router/key"
)

// TestHostOrder: parts stop in the reverse order of their start, and the host is as before.
func TestHostOrder(t *testing.T) {
	b := newBench(t)
	s := b.mustStart()
	up := b.since()
	if st := s.status(); st.Tun == nil || st.Tun.Name != "lokinet0" || st.DNS == nil || len(st.DNS.Listen) != 1 {
		t.Errorf("status: %+v", st)
	}
	if s, err := loadState[hostState](folder(b.config.DataDir), stateFile); err != nil || !reflect.DeepEqual(s.changes(), b.left) || len(s.Unreachable) != 2 {
		t.Errorf("state file: %+v, %v; on the host: %+v", s, err, b.left)
	}
	s.stop()
	down := b.since()

	parts := []string{"collector, processors", "data directory", "node", "network interface", "packet pump", "addresses", "name server", "roaming", "events", "control socket"}
	var wantUp, wantDown []string
	for _, p := range parts {
		wantUp = append(wantUp, "part started: "+p)
		wantDown = slices.Insert(wantDown, 0, "part stopped: "+p)
		switch p {
		case "network interface":
			wantUp = append(wantUp, "apply [172.17.0.1/16 fd2e:7365:7368::1/64]")
			wantDown = slices.Insert(wantDown, 0, "close device, keep routes false")
		}
	}
	if wantUp = append(wantUp, "READY=1"); !slices.Equal(up, wantUp) {
		t.Errorf("start: %q\nwant:  %q", up, wantUp)
	}
	if wantDown = append(append([]string{"STOPPING=1"}, wantDown...), "ended"); !slices.Equal(down, wantDown) {
		t.Errorf("stop: %q\nwant: %q", down, wantDown)
	}
	b.clean()
}

// TestHostRanges: configured ranges are taken as they are, whatever their length; services get free ones beside them.
func TestHostRanges(t *testing.T) {
	b := newBench(t)
	b.config.TUN.IPv4.Prefix, b.config.TUN.IPv6.Prefix = netip.MustParsePrefix("172.17.3.1/24"), netip.MustParsePrefix("fd00:5::1/32")
	b.config.Service = []config.Service{{Name: "web", Key: filepath.Join(t.TempDir(), "key")}}
	s := b.mustStart()
	if want := "apply [172.17.3.1/24 fd00:5::1/32 172.17.16.1/20 fd2e:7365:7368::1/64]"; !slices.Contains(b.since(), want) {
		t.Errorf("not %s", want)
	}
	s.stop()
	b.config.TUN.IPv6.Off = true
	s = b.mustStart()
	if want := "apply [172.17.3.1/24 172.17.16.1/20]"; !slices.Contains(b.since(), want) {
		t.Errorf("not %s", want)
	}
	s.stop()
}

// clean checks that nothing of the daemon is left.
func (b *bench) clean() {
	b.t.Helper()
	if b.left.Interface != "" || len(b.left.Unreachable) > 0 {
		b.t.Errorf("left on the host: %+v", b.left)
	}
	for _, name := range []string{filepath.Join(b.config.DataDir, stateFile), b.config.Control.Socket} {
		if _, err := os.Lstat(name); err == nil {
			b.t.Errorf("%s is left", name)
		}
	}
}

// TestHostFailingStart: whichever step fails, the error says so, nothing is left behind, and the next start is as if nothing had been.
func TestHostFailingStart(t *testing.T) {
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct {
		step string
		ruin func(b *bench) (mend func())
		want string
	}{
		{"data directory", func(b *bench) func() {
			os.WriteFile(b.config.DataDir, nil, 0o600)
			return func() { os.Remove(b.config.DataDir) }
		}, "data directory"},
		{"network file missing", func(b *bench) func() {
			os.Remove(b.config.Network.File)
			return func() { b.publish(5) }
		}, "network.file: "},
		{"network file of another operator", func(b *bench) func() {
			old := b.config.Network.Operator
			b.config.Network.Operator = key.Generate().Public()
			return func() { b.config.Network.Operator = old }
		}, "signed by another operator"},
		{"device", breaks("open device"), "open device is broken"},
		{"prefixes", breaks("prefixes"), "prefixes is broken"},
		{"apply", breaks("apply"), "apply is broken"},
		{"name server's socket", func(b *bench) func() {
			old := b.config.DNS.Listen
			b.config.DNS.Listen = []netip.AddrPort{taken.LocalAddr().(*net.UDPAddr).AddrPort()}
			return func() { b.config.DNS.Listen = old }
		}, "address already in use"},
		{"name server", func(b *bench) func() {
			b.config.Network.Suffix = "onion"
			return func() { b.config.Network.Suffix = "loki" }
		}, "suffix"},
		{"control socket", func(b *bench) func() {
			l, err := net.Listen("unix", b.config.Control.Socket)
			if err != nil {
				b.t.Fatal(err)
			}
			return func() { l.Close() }
		}, "another daemon answers there"},
	} {
		t.Run(c.step, func(t *testing.T) {
			b := newBench(t)
			mend := c.ruin(b)
			s, err := b.start()
			if err == nil {
				s.stop()
				t.Fatal("it runs")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error: %v; want %q in it", err, c.want)
			}
			mend()
			b.clean()
			b.mustStart().stop()
			b.clean()
		})
	}
}

func breaks(call string) func(b *bench) func() {
	return func(b *bench) func() {
		b.broken = call
		return func() { b.broken = "" }
	}
}

// TestHostPartFails: a part that breaks ends the daemon with its error, in good order.
func TestHostPartFails(t *testing.T) {
	b := newBench(t)
	var d *benchDevice
	b.sys.openDevice = func(c netif.DeviceConfig) (device, error) {
		x, err := b.openDevice(c)
		d, _ = x.(*benchDevice)
		return x, err
	}
	s := b.mustStart()
	d.MemTUN.Close() // somebody has removed the interface
	if err := <-s.done; err == nil || !strings.Contains(err.Error(), "the tun was closed") {
		t.Errorf("error: %v", err)
	}
	b.clean()
}

// TestHostManaged: under a service manager the unreachable routes outlive the daemon, also a start that fails, and the next one takes them over.
func TestHostManaged(t *testing.T) {
	b := newBench(t)
	b.sys.managed, b.sys.watchdog = true, 60*time.Millisecond
	s := b.mustStart()
	b.mu.Lock()
	for !slices.Contains(b.events, "WATCHDOG=1") {
		b.cond.Wait()
	}
	b.mu.Unlock()
	s.stop()
	routes := b.left
	if len(routes.Unreachable) != 2 {
		t.Fatalf("routes after the stop: %+v", routes)
	}
	b.broken = "prefixes"
	if _, err := b.start(); err == nil || !reflect.DeepEqual(b.left, routes) {
		t.Errorf("routes after a start that failed (%v): %+v", err, b.left)
	}
	b.broken = ""
	b.mustStart().stop()
	if !reflect.DeepEqual(b.left, routes) {
		t.Errorf("routes after the next stop: %+v", b.left)
	}
	// By hand again: it undoes them.
	b.sys.managed = false
	b.mustStart().stop()
	b.clean()
}

// TestAlive: the watchdog gets nothing while the node's loop hangs.
func TestAlive(t *testing.T) {
	now := time.Now()
	h := &host{sys: &system{watchdog: 30 * time.Second}, node: &Node{}}
	for _, c := range []struct {
		late time.Duration
		want bool
	}{{0, true}, {tick, true}, {14 * time.Second, true}, {16 * time.Second, false}, {time.Hour, false}} {
		h.node.beat.Store(now.Add(-c.late).UnixNano())
		if got := h.alive(now); got != c.want {
			t.Errorf("%v after the last round: alive %v", c.late, got)
		}
	}
}

// TestHostReload: a newer network file is taken; a bad or older one is refused, also by the next start.
func TestHostReload(t *testing.T) {
	b := newBench(t)
	s := b.mustStart()
	refused := func(why string, events []string) {
		t.Helper()
		if len(events) != 3 || events[0] != "RELOADING=1" || events[2] != "READY=1" || !strings.HasPrefix(events[1], "network file refused") || !strings.Contains(events[1], why) {
			t.Errorf("events: %q; want %q", events, why)
		}
	}
	serial := func(want uint64) {
		t.Helper()
		if got := s.status().Network.Serial; got != want {
			t.Errorf("serial %d, want %d", got, want)
		}
	}
	serial(5)
	b.publish(8)
	if e := s.sighup(); !slices.Equal(e, []string{"RELOADING=1", "READY=1"}) {
		t.Errorf("%q", e)
	}
	serial(8)
	if err := os.WriteFile(b.config.Network.File, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("netdb: network file", s.sighup())
	if w := s.status().Warnings; len(w) == 0 || !strings.Contains(w[0], "network file refused") {
		t.Errorf("status warns of %q", w)
	}
	b.publish(7)
	refused("serial 7 is lower than 8", s.sighup())
	old := b.file.Network
	b.file.Network, b.file.Contacts = 78, nil
	b.publish(9)
	refused("must be restarted", s.sighup())
	b.file.Network = old
	serial(8)
	s.stop()

	b.publish(7)
	if _, err := b.start(); err == nil || !strings.Contains(err.Error(), "serial 7 is lower than 8") {
		t.Errorf("start with an older file: %v", err)
	}
	b.publish(8)
	s = b.mustStart()
	serial(8)
	s.stop()
}

// TestHostReloadConfig: what can be followed is followed, without a disturbance for what stays; the rest is named.
func TestHostReloadConfig(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	service := func(name string, ports ...uint16) config.Service {
		s := config.Service{Name: name, Key: filepath.Join(dir, name+".key")}
		for _, p := range ports {
			s.Ports = append(s.Ports, config.Port{Proto: "tcp", Number: p})
		}
		return s
	}
	b.config.Service = []config.Service{service("blog", 80), service("chat", 22)}
	next := *b.config
	var broken error
	b.again = func() (*config.Config, error) { c := next; return &c, broken }
	s := b.mustStart()
	endpoints := func() map[string]control.Endpoint {
		m := map[string]control.Endpoint{}
		for _, e := range s.status().Endpoints {
			m[e.Name] = e
		}
		return m
	}
	want := func(got []string, want ...string) {
		t.Helper()
		want = append(append([]string{"RELOADING=1"}, want...), "READY=1")
		if !slices.Equal(got, want) {
			t.Errorf("events %q\nwant   %q", got, want)
		}
	}
	before := endpoints()
	want(s.sighup())

	next.Service = []config.Service{service("blog", 80, 443), service("shop", 8080)}
	next.DNS.Upstream = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}
	want(s.sighup(), "apply [172.17.0.1/16 fd2e:7365:7368::1/64 172.18.0.1/20 fd2e:7365:7368:1::1/64 172.18.16.1/20 fd2e:7365:7368:2::1/64]")
	after := endpoints()
	if len(after) != 3 || after["browsing"].Address != before["browsing"].Address || after["blog"].IPv4 != before["blog"].IPv4 || after["blog"].Address != before["blog"].Address ||
		!slices.Equal(after["blog"].Ports, []string{"tcp/80", "tcp/443"}) || !slices.Equal(after["shop"].Ports, []string{"tcp/8080"}) {
		t.Errorf("before %+v\nafter %+v", before, after)
	}
	if u := s.status().DNS.Upstream; !slices.Equal(u, []string{"192.0.2.1:53"}) {
		t.Errorf("upstream: %q", u)
	}

	broken = errors.New("line 7 is wrong")
	want(s.sighup(), "configuration refused, the former one stays: line 7 is wrong")
	broken = nil
	next.Service = nil
	next.TUN.Name, next.Control.Group = "other0", "wheel"
	b.broken = "apply"
	want(s.sighup(), "cannot follow the configuration: service: apply is broken", "restart to follow the configuration: [tun.name control.group]")
	b.broken = ""
	if e := endpoints(); len(e) != 1 {
		t.Errorf("services that are gone: %+v", e)
	}
	warns := func(want ...string) {
		t.Helper()
		all := strings.Join(s.status().Warnings, "\n")
		for _, w := range want {
			if !strings.Contains(all, w) {
				t.Errorf("status warns of %q, want %q", all, w)
			}
		}
		if len(want) == 0 && strings.Contains(all, "configuration") {
			t.Errorf("status still warns of %q", all)
		}
	}
	warns("cannot follow the configuration: service: apply is broken", "a restart is needed to follow the configuration: tun.name, control.group")
	next = *b.config
	s.sighup()
	warns()
	s.stop()
	b.clean()
}

// TestNetworkChanged: the daemon sees by itself that the file is another one.
func TestNetworkChanged(t *testing.T) {
	b := newBench(t)
	h := &host{config: b.config}
	for i, change := range []func(){
		nil,
		func() { b.publish(6) },
		nil,
		func() { // replaced by one of the same size and time
			fi, _ := os.Stat(b.config.Network.File)
			raw, _ := os.ReadFile(b.config.Network.File)
			os.WriteFile(b.config.Network.File+".new", raw, 0o600)
			os.Chtimes(b.config.Network.File+".new", fi.ModTime(), fi.ModTime())
			os.Rename(b.config.Network.File+".new", b.config.Network.File)
		},
		nil,
	} {
		if change != nil {
			change()
		}
		if got, want := h.networkChanged(), i == 0 || change != nil; got != want {
			t.Errorf("step %d: changed %v, want %v", i, got, want)
		}
	}
	os.Remove(b.config.Network.File)
	if h.networkChanged() {
		t.Error("a file that is gone is a change")
	}
}

// TestCleanup: what a killed daemon has left is undone once; a running one is left alone; an interface that is not the configured one is too, and what
// the daemon's user has put in the place of its files does not mislead root.
func TestCleanup(t *testing.T) {
	b := newBench(t)
	dir := folder(b.config.DataDir)
	var undone []netif.Changes
	undo := func(c netif.Changes) error {
		undone = append(undone, c)
		return b.fails("undo")
	}
	found := netif.Changes{Interface: "lokinet7", Index: 9, Unreachable: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/16")}}
	find := func(string) (netif.Changes, error) { return found, b.fails("find") }
	clean := func(wantErr error, want ...netif.Changes) {
		t.Helper()
		undone = nil
		if _, err := cleanup(dir, "lokinet%d", find, undo); !errors.Is(err, wantErr) && (err == nil) != (wantErr == nil) {
			t.Errorf("error: %v, want %v", err, wantErr)
		}
		if len(undone) != len(want) || len(want) > 0 && !reflect.DeepEqual(undone, want) {
			t.Errorf("undone: %+v, want %+v", undone, want)
		}
	}
	clean(nil) // no daemon has ever been here
	if _, err := os.Stat(b.config.DataDir); err == nil {
		t.Error("cleanup has made the data directory")
	}
	s := b.mustStart()
	crashed := b.left
	state, err := os.ReadFile(filepath.Join(b.config.DataDir, stateFile))
	if err != nil {
		t.Fatal(err)
	}
	clean(ErrRunning)
	s.stop()

	os.WriteFile(filepath.Join(b.config.DataDir, stateFile), state, 0o600) // as if it had been killed
	b.broken = "undo"
	clean(errors.New("any"), crashed)
	b.broken = ""
	clean(nil, crashed) // the state was kept
	clean(nil, netif.Changes{})

	if err := dir.setChanges(netif.Changes{Interface: "vpn0", Index: 7, Unreachable: crashed.Unreachable}); err != nil {
		t.Fatal(err)
	}
	clean(nil, netif.Changes{Interface: "vpn0", Unreachable: crashed.Unreachable})
	if _, err := os.Stat(filepath.Join(b.config.DataDir, stateFile)); err == nil {
		t.Error("the state file is left")
	}

	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, state, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{lockFile, stateFile} {
		for what, put := range map[string]func(at string) error{
			"a link":            func(at string) error { return os.Symlink(other, at) },
			"a dangling link":   func(at string) error { return os.Symlink(other+"-new", at) },
			"a second name":     func(at string) error { return os.Link(other, at) },
			"a pipe":            func(at string) error { return unix.Mkfifo(at, 0o600) },
			"a folder":          func(at string) error { return os.Mkdir(at, 0o700) },
			"somebody's, maybe": func(at string) error { return errors.Join(os.WriteFile(at, state, 0o600), chownOther(at)) },
		} {
			if what == "somebody's, maybe" && os.Geteuid() != 0 {
				continue
			}
			at := filepath.Join(b.config.DataDir, name)
			os.RemoveAll(at)
			if err := put(at); err != nil {
				t.Fatal(err)
			}
			undone = nil
			if _, err := cleanup(dir, "lokinet0", find, undo); err == nil || len(undone) > 0 {
				t.Errorf("%s in place of %s: %v, undone %v", what, name, err, undone)
			}
			os.RemoveAll(at)
		}
		os.WriteFile(filepath.Join(b.config.DataDir, lockFile), nil, 0o600)
	}
	if _, err := os.Lstat(other + "-new"); err == nil {
		t.Error("a file was made where a link has led")
	}
}

// chownOther gives a file to a user who owns nothing here.
func chownOther(name string) error { return os.Chown(name, 65533, 65533) }

// TestHostLock: one daemon in a data directory.
func TestHostLock(t *testing.T) {
	b := newBench(t)
	s := b.mustStart()
	if _, err := b.start(); !errors.Is(err, ErrRunning) {
		t.Errorf("a second daemon: %v", err)
	}
	s.stop()
}

// TestHostAddresses: after a restart a remote has its IPv4 address, and no other remote has it; a passing identity leaves no names on disk.
func TestHostAddresses(t *testing.T) {
	for _, lasting := range []bool{true, false} {
		b := newBench(t)
		if !lasting {
			b.config.Client.Key = ""
		}
		remote := func() string { return key.Address{Key: key.Generate().Public()}.String() }
		ip := func(name string) string {
			t.Helper()
			r, err := control.NewClient(b.config.Control.Socket).Resolve(t.Context(), name)
			if err != nil || r.IPv4 == "" {
				t.Fatalf("%+v, %v", r, err)
			}
			return r.IPv4
		}
		s := b.mustStart()
		friend := remote()
		was := ip(friend)
		s.stop()
		raw, err := os.ReadFile(filepath.Join(b.config.DataDir, addressesFile))
		if err != nil || strings.Contains(string(raw), strings.TrimSuffix(friend, ".loki")) != lasting {
			t.Errorf("lasting %v: %s, %v", lasting, raw, err)
		}
		s = b.mustStart()
		if other := ip(remote()); other == was {
			t.Errorf("lasting %v: %s means another remote after the restart", lasting, was)
		}
		if now := ip(friend); (now == was) != lasting {
			t.Errorf("lasting %v: %s before, %s now", lasting, was, now)
		}
		s.stop()
	}
}

// TestHostActivation: a query that was sent before the daemon ran is answered on the socket that was passed to it.
func TestHostActivation(t *testing.T) {
	b := newBench(t)
	var udp *net.UDPConn
	var tcp net.Listener
	for try := 0; tcp == nil; try++ { // a port may be free for the one and not for the other
		var err error
		if udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
			t.Fatal(err)
		}
		if tcp, err = net.Listen("tcp", udp.LocalAddr().String()); err != nil {
			udp.Close()
			if try == 100 {
				t.Fatal(err)
			}
		}
	}
	for i, f := range []interface{ File() (*os.File, error) }{udp, tcp.(*net.TCPListener)} {
		x, err := f.File()
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Dup(int(x.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		x.Close()
		b.sys.files = append(b.sys.files, os.NewFile(uintptr(fd), []string{"dns", "dns"}[i]))
	}
	addr := udp.LocalAddr().String()
	udp.Close()
	tcp.Close()

	q := new(dns.Msg)
	q.SetQuestion("localhost.loki.", dns.TypeAAAA)
	answers := make(chan error, 2)
	for _, network := range []string{"udp", "tcp"} {
		c := dns.Client{Net: network, Timeout: time.Minute}
		go func() {
			a, _, err := c.Exchange(q, addr)
			if err == nil && len(a.Answer) == 0 {
				err = fmt.Errorf("%s: %v", network, a)
			}
			answers <- err
		}()
	}
	time.Sleep(50 * time.Millisecond)
	s := b.mustStart()
	for range 2 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	if l := s.status().DNS.Listen; len(l) != 1 || l[0] != addr {
		t.Errorf("listens on %v, want %v", l, addr)
	}
	s.stop()
}

// TestKeepFile: the service manager gets the descriptor with its name.
func TestKeepFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := keepFile("tun", f); err != nil {
		t.Fatal(err)
	}
	buf, oob := make([]byte, 200), make([]byte, 200)
	for i, want := range []string{"FDSTOREREMOVE=1\nFDNAME=tun", "FDSTORE=1\nFDNAME=tun"} {
		n, oobn, _, _, err := l.ReadMsgUnix(buf, oob)
		if err != nil || string(buf[:n]) != want || (oobn > 0) != (i == 1) {
			t.Errorf("%q with %d bytes of descriptors, %v; want %q", buf[:n], oobn, err, want)
		}
		if oobn > 0 {
			m, _ := unix.ParseSocketControlMessage(oob[:oobn])
			fds, _ := unix.ParseUnixRights(&m[0])
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}
}

// TestStack: a part that does not end is left behind, and those below it are ended all the same.
func TestStack(t *testing.T) {
	s := newStack(slog.New(slog.DiscardHandler))
	var ended []string
	hang := make(chan struct{})
	defer close(hang)
	s.run("below", time.Minute, func(ctx context.Context) error {
		<-ctx.Done()
		ended = append(ended, "below")
		return nil
	})
	s.run("hanging", time.Millisecond, func(context.Context) error {
		<-hang
		return nil
	})
	s.run("above", time.Minute, func(ctx context.Context) error {
		<-ctx.Done()
		ended = append(ended, "above")
		return errors.New("above has lost something")
	})
	err := s.stop()
	if err == nil || !strings.Contains(err.Error(), "hanging has not ended within 1ms") || !strings.Contains(err.Error(), "above has lost something") {
		t.Errorf("error: %v", err)
	}
	if !slices.Equal(ended, []string{"above", "below"}) {
		t.Errorf("ended: %q", ended)
	}
}

// TestHostDrops: status says what was dropped, by reason, and nothing else.
func TestHostDrops(t *testing.T) {
	b := newBench(t)
	var d *benchDevice
	b.sys.openDevice = func(c netif.DeviceConfig) (device, error) {
		x, err := b.openDevice(c)
		d, _ = x.(*benchDevice)
		return x, err
	}
	s := b.mustStart()
	if drops := s.status().Drops; len(drops) != 0 {
		t.Errorf("at the start: %v", drops)
	}
	for range 3 {
		d.Send([]byte("no packet"))
	}
	for end := time.Now().Add(time.Minute); s.status().Drops["tun_out_malformed"] != 3 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if drops := s.status().Drops; !reflect.DeepEqual(drops, map[string]uint64{"tun_out_malformed": 3}) {
		t.Errorf("after three malformed packets: %v", drops)
	}
	s.stop()
}

func TestSnake(t *testing.T) {
	for name, want := range map[string]string{"": "", "Full": "_full", "TooLarge": "_too_large", "ICMPKind": "_icmp_kind"} {
		if got := snake(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// TestHostRelay: a relay has no host side; a reload tells it who is registered.
func TestHostRelay(t *testing.T) {
	b := newBench(t)
	c := b.config
	c.Role, c.Relay.Key = config.RoleRelay, filepath.Join(c.DataDir, "relay.key")
	c.Relay.Listen, c.Relay.PublicAddress = netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("127.0.0.1:1190")
	c.Client.Key = ""
	b.broken = "open device"
	s := b.mustStart()
	st := s.status()
	if st.Relay == nil || st.Relay.Registered || st.Tun != nil {
		t.Errorf("status: %+v", st)
	}
	a, err := key.ParseAddress(st.Endpoints[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	b.file.Relays = append(b.file.Relays, a.Key)
	b.publish(6)
	if e := s.sighup(); !slices.Equal(e, []string{"RELOADING=1", "READY=1"}) {
		t.Errorf("%q", e)
	}
	if st := s.status(); !st.Relay.Registered || st.Network.Serial != 6 {
		t.Errorf("status after the reload: %+v", st)
	}
	s.stop()
	b.clean()
}
