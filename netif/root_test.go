//go:build root

package netif

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lokinetd/netif/lab"
	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// TestMain: this program is also what runs in the nodes of the lab, chosen by its first argument.
func TestMain(m *testing.M) {
	lab.Main()
	roles := map[string]func(args []string) error{
		"role-host": roleHost, "role-ping": rolePing, "role-serve": roleServe, "role-load": roleLoad, "role-udp": roleUDP, "role-dial": roleDial, "role-hold": roleHold,
	}
	if len(os.Args) > 1 {
		if role := roles[os.Args[1]]; role != nil {
			if err := role(os.Args[2:]); err != nil {
				fmt.Println("error:", err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// inNode runs the rest of a test in a node of a lab: it starts this program there with this one test, where it returns true.
func inNode(t *testing.T, c lab.NodeConfig) bool {
	t.Helper()
	if os.Getenv("LOKINETD_IN_NODE") != "" {
		return true
	}
	l := newLab(t)
	n, err := l.AddNode(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.Self("-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "LOKINETD_IN_NODE=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in the node: %v\n%s", err, out)
	}
	return false
}

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	if err := lab.Check(); err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(lab.NodeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// hostInfo is what role-host prints when it is ready.
type hostInfo struct {
	Own, Peer []netip.Addr // own addresses; the peer's, as mapped here
	NoIPv6    string
}

// roleHost is a daemon without sessions: a TUN, a pump, and one UDP socket to the peer as tunnel. Arguments: own number, the peer's number,
// the peer's UDP address. It lists tcp 80 and udp 53 and answers echo requests.
func roleHost(args []string) error {
	self, _ := strconv.Atoi(args[0])
	peer, _ := strconv.Atoi(args[1])
	to, err := net.ResolveUDPAddr("udp", args[2])
	if err != nil {
		return err
	}
	sock, err := net.ListenUDP("udp", &net.UDPAddr{Port: to.Port})
	if err != nil {
		return err
	}
	sock.SetReadBuffer(4 << 20)
	sock.SetWriteBuffer(4 << 20)
	d, err := OpenDevice(DeviceConfig{})
	if err != nil {
		return err
	}
	defer d.Close(false)
	taken, err := HostPrefixes(d.Name(), nil)
	if err != nil {
		return err
	}
	var own [2]netip.Prefix
	if own[0], err = FreeIPv4(taken, BrowsingBits4, netip.Prefix{}); err != nil {
		return err
	}
	want := own[:1]
	if d.NoIPv6() == "" {
		if own[1], err = FreeIPv6(taken, Bits6, netip.Prefix{}); err != nil {
			return err
		}
		want = own[:]
	}
	m, err := NewMap(remoteN(self), own[0], own[1])
	if err != nil {
		return err
	}
	p := NewPump(d, nil)
	e, err := p.Add(m, Inbound{Echo: true, TCP: []Ports{{80, 80}}, UDP: []Ports{{53, 53}}}, tunnelFunc(func(_ key.Address, b *packet.Buffer) bool {
		sock.WriteToUDP(b.Data, to)
		b.Release()
		return true
	}))
	if err != nil {
		return err
	}
	info := hostInfo{NoIPv6: d.NoIPv6()}
	for _, q := range want {
		info.Own = append(info.Own, q.Addr())
	}
	a, err := m.IPv4(remoteN(peer), time.Now())
	if err != nil {
		return err
	}
	info.Peer = append(info.Peer, a)
	if a, err := m.IPv6(remoteN(peer), time.Now()); err == nil {
		info.Peer = append(info.Peer, a)
	}
	if err := d.Apply(want); err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	go func() {
		for {
			b := packet.Get()
			n, _, err := sock.ReadFromUDP(b.Reset(MaxPacket))
			if err != nil {
				return
			}
			b.Data = b.Data[:n]
			e.Deliver(remoteN(peer), b)
		}
	}()
	json.NewEncoder(os.Stdout).Encode(info)
	if err := p.Run(ctx); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(p.Stats())
}

// rolePing sends three echo requests and waits for the answers.
func rolePing(args []string) error {
	a := netip.MustParseAddr(args[0])
	network, echo := "ip4:icmp", byte(8)
	if a.Is6() {
		network, echo = "ip6:ipv6-icmp", 128
	}
	c, err := net.Dial(network, a.String())
	if err != nil {
		return err
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	b := make([]byte, 1500)
	for seq := range 3 {
		q := []byte{echo, 0, 0, 0, 0x12, 0x34, 0, byte(seq), 'p', 'i', 'n', 'g'}
		if a.Is4() {
			binary.BigEndian.PutUint16(q[2:], ^packet.Sum(q, 0))
		}
		if _, err := c.Write(q); err != nil {
			return err
		}
		for {
			n, err := c.Read(b)
			if err != nil {
				return fmt.Errorf("no answer: %w", err)
			}
			if a.Is4() && n >= 20 { // this kind of socket shows the IPv4 header
				n = copy(b, b[20:n])
			}
			if n == len(q) && (b[0] == 0 || b[0] == 129) && bytes.Equal(b[4:n], q[4:]) {
				break
			}
		}
	}
	return nil
}

// roleServe serves the ports that role-host lists: tcp 80 echoes, and so does udp 53 unless an argument says "no udp".
func roleServe(args []string) error {
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	if len(args) == 0 {
		u, err := net.ListenPacket("udp", ":53")
		if err != nil {
			return err
		}
		go func() {
			b := make([]byte, 65536)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				u.WriteTo(b[:n], from)
			}
		}()
	}
	fmt.Println("ready")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			io.Copy(c, c)
			c.(*net.TCPConn).CloseWrite()
		}()
	}
}

// roleLoad sends n bytes to an echo server and compares what comes back.
func roleLoad(args []string) error {
	n, _ := strconv.Atoi(args[1])
	c, err := net.DialTimeout("tcp", args[0], time.Minute)
	if err != nil {
		return err
	}
	start := time.Now()
	sent, got := sha256.New(), sha256.New()
	go func() {
		block := make([]byte, 1<<16)
		for left := n; left > 0; left -= len(block) {
			block = block[:min(left, len(block))]
			for i := range block {
				block[i] = byte(i*left ^ left>>7)
			}
			sent.Write(block)
			if _, err := c.Write(block); err != nil {
				return
			}
		}
		c.(*net.TCPConn).CloseWrite()
	}()
	k, err := io.Copy(got, c)
	if err != nil || int(k) != n || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		return fmt.Errorf("%d bytes of %d came back: %v", k, n, err)
	}
	fmt.Printf("%.0f Mbit/s each way", float64(n)*8/1e6/time.Since(start).Seconds())
	return nil
}

// roleUDP sends datagrams of several sizes to an echo server; large ones go in fragments. It prints "refused" when the kernel reports that.
func roleUDP(args []string) error {
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	for _, n := range []int{0, 1, 1200, 4000, 30000} {
		want, b := bytes.Repeat([]byte{byte(n)}, n), make([]byte, 65536)
		for try := 0; ; try++ {
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Write(want); err != nil {
				return err
			}
			k, err := c.Read(b)
			if errors.Is(err, syscall.ECONNREFUSED) {
				fmt.Println("refused")
				return nil
			}
			if err == nil && bytes.Equal(b[:k], want) {
				break
			}
			if try == 3 {
				return fmt.Errorf("%d bytes: got %d, %v", n, k, err)
			}
		}
	}
	return nil
}

// roleDial prints how connecting fails.
func roleDial(args []string) error {
	timeout, _ := time.ParseDuration(args[1])
	start := time.Now()
	c, err := net.DialTimeout("tcp", args[0], timeout)
	switch {
	case err == nil:
		c.Close()
		fmt.Println("connected")
	case errors.Is(err, unix.EHOSTUNREACH):
		fmt.Println("unreachable")
	case timedOut(err) && time.Since(start) >= timeout:
		fmt.Println("silence")
	default:
		return err
	}
	return nil
}

func timedOut(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// roleHold opens the TUN of that name and waits to be killed.
func roleHold(args []string) error {
	d, err := OpenDevice(DeviceConfig{Name: args[0]})
	if err != nil {
		return err
	}
	if err := d.Apply([]netip.Prefix{prefix("172.20.0.1/16")}); err != nil {
		return err
	}
	fmt.Println("ready")
	time.Sleep(time.Hour)
	return nil
}

// started starts a command and decodes its first line, or checks that it is "ready".
func started(t *testing.T, c *lab.Cmd, into any) *bufio.Reader {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stdout, c.Stderr = w, os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() { r.Close() })
	in := bufio.NewReader(r)
	line, err := in.ReadString('\n')
	if into != nil {
		err = json.Unmarshal([]byte(line), into)
	} else if line != "ready\n" {
		err = errors.New("not ready")
	}
	if err != nil {
		t.Fatalf("%v says %q: %v", c.Args, line, err)
	}
	return in
}

// TestTwoHosts: two hosts with real TUNs and a UDP tunnel between them do what hosts do.
func TestTwoHosts(t *testing.T) {
	l := newLab(t)
	var nodes [2]*lab.Node
	var hosts [2]*lab.Cmd
	var infos [2]hostInfo
	var outs [2]*bufio.Reader
	for i := range nodes {
		var err error
		nodes[i], err = l.AddNode(lab.NodeConfig{Name: fmt.Sprint("host", i), Addrs: []netip.Prefix{prefix(fmt.Sprintf("192.168.77.%d/24", 1+i))}})
		if err != nil {
			t.Fatal(err)
		}
		hosts[i] = nodes[i].Self("role-host", fmt.Sprint(0x20000001+i), fmt.Sprint(0x20000002-i), fmt.Sprintf("192.168.77.%d:9000", 2-i))
		outs[i] = started(t, hosts[i], &infos[i])
		if len(infos[i].Peer) != 2 || infos[i].NoIPv6 != "" {
			t.Fatalf("host %d: %+v", i, infos[i])
		}
	}
	a, b := nodes[0], nodes[1]
	run := func(want string, n *lab.Node, args ...string) string {
		t.Helper()
		out, err := n.Self(args...).CombinedOutput()
		if s := strings.TrimSpace(string(out)); err != nil || want != "*" && s != want {
			t.Errorf("%v: %q, %v; want %q", args, s, err, want)
		}
		return strings.TrimSpace(string(out))
	}
	started(t, b.Self("role-serve"), nil)
	noUDP := a.Self("role-serve", "no udp")
	started(t, noUDP, nil)
	for i, family := range []string{"ipv4", "ipv6"} {
		peer := infos[0].Peer[i] // b as a sees it
		at := func(port string) string { return net.JoinHostPort(peer.String(), port) }
		run("", a, "role-ping", peer.String())
		run("", b, "role-ping", infos[1].Peer[i].String())
		speed := run("*", a, "role-load", at("80"), strconv.Itoa(20<<20))
		t.Logf("%s: 20 MiB there and back: %s", family, speed)
		run("", a, "role-udp", at("53"))
		// Nobody listens on udp 53 at a: its kernel's ICMP error crosses the tunnel and b's kernel believes it.
		run("refused", b, "role-udp", net.JoinHostPort(infos[1].Peer[i].String(), "53"))
		run("silence", a, "role-dial", at("22"), "300ms")
		nobody := infos[0].Own[i]
		for range 77 {
			nobody = nobody.Next()
		}
		run("unreachable", a, "role-dial", net.JoinHostPort(nobody.String(), "80"), "10s")
	}
	var stats [2]Stats
	var pieces [2]ifCounters
	for i, h := range hosts {
		pieces[i] = countersOf(t, nodes[i])
		if err := h.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		line, _ := outs[i].ReadString('\n')
		if err := json.Unmarshal([]byte(line), &stats[i]); err != nil {
			t.Fatalf("host %d: %q", i, line)
		}
		if err := h.Wait(); err != nil {
			t.Error(err)
		}
		t.Logf("host %d: %+v", i, stats[i])
		if s := stats[i]; s.ReadFailed+s.WriteFailed+s.OutMalformed+s.InMalformed+s.OutForeign != 0 || s.OutMulticast > 20 {
			t.Errorf("host %d dropped packets", i)
		}
		// The kernel counts what it hands over or takes in one piece as one packet: segments are split here, and joined here again. How many there are
		// in one depends on who is scheduled when; without vnet_hdr it is exactly one.
		out, in := float64(stats[i].OutPackets)/float64(pieces[i].out), float64(stats[i].InPackets)/float64(pieces[i].in)
		t.Logf("host %d: packets in one piece: %.1f read, %.1f written", i, out, in)
		if out < 1.1 || in < 1.1 {
			t.Errorf("host %d: segmentation and coalescing (vnet_hdr) are not used", i)
		}
	}
	if stats[0].OutUnknown == 0 || stats[1].InClosed == 0 {
		t.Error("unknown destinations or closed ports were not counted")
	}
	for i, n := range nodes {
		out, err := n.Command("cat", "/proc/net/dev", "/proc/net/route", "/proc/net/ipv6_route").Output()
		if err != nil || bytes.Contains(out, []byte(DefaultName)) || bytes.Contains(out, []byte("fd2e73657368")) {
			t.Errorf("host %d: something is left: %v\n%s", i, err, out)
		}
	}
}

// TestDevice: what is on the host after each step, in a network namespace of its own.
func TestDevice(t *testing.T) {
	if !inNode(t, lab.NodeConfig{Name: "device", Addrs: []netip.Prefix{prefix("172.16.5.1/24"), prefix("fd2e:7365:7368::77/64")}}) {
		return
	}
	var recorded []Changes
	record := func(c Changes) error { recorded = append(recorded, c); return nil }
	d, err := OpenDevice(DeviceConfig{Record: record})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDevice(DeviceConfig{}); err == nil || !strings.Contains(err.Error(), "another program uses it") {
		t.Errorf("a second one: %v", err)
	}
	if _, err := OpenDevice(DeviceConfig{Name: "eth0"}); err == nil {
		t.Error("eth0 taken for a TUN")
	}
	if s, err := d.State(); err != nil || s.Name != DefaultName || s.MTU != MTU || s.Up || len(s.Addrs) != 0 || s.NoIPv6 != "" {
		t.Errorf("new: %+v, %v", s, err)
	}
	taken, err := HostPrefixes(d.Name(), nil)
	if err != nil || !slices.Contains(taken, prefix("172.16.5.0/24")) || !slices.Contains(taken, prefix("fd2e:7365:7368::/64")) {
		t.Fatalf("taken: %v, %v", taken, err)
	}
	p4, err4 := FreeIPv4(taken, 16, netip.Prefix{})
	p6, err6 := FreeIPv6(taken, 64, netip.Prefix{})
	if p4 != prefix("172.17.0.1/16") || p6 != prefix("fd2e:7365:7368:1::1/64") {
		t.Fatalf("free: %v %v, %v %v", p4, err4, p6, err6)
	}
	// routes lists "what table metric" for a range.
	routes := func(p netip.Prefix) (l []string) {
		family := netlink.FAMILY_V4
		if p.Addr().Is6() {
			family = netlink.FAMILY_V6
		}
		rs, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rs {
			if q, ok := prefixOf(r.Dst); ok && q == p.Masked() {
				kind := "tun"
				if r.Type == unix.RTN_UNREACHABLE {
					kind = "unreachable"
				} else if r.LinkIndex != d.Index() {
					kind = "other"
				}
				l = append(l, kind)
			}
		}
		slices.Sort(l)
		return l
	}
	want := func(name string, p netip.Prefix, l ...string) {
		t.Helper()
		if got := routes(p); !slices.Equal(got, l) {
			t.Errorf("%s: routes to %v: %v, want %v", name, p.Masked(), got, l)
		}
	}
	// connect says how a connection to an address of the range fails.
	connect := func(a string, limit time.Duration) error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(a, "80"), limit)
		if err == nil {
			c.Close()
		}
		return err
	}
	for range 2 { // twice: the second one changes nothing
		if err := d.Apply([]netip.Prefix{p4, p6}); err != nil {
			t.Fatal(err)
		}
		if s, err := d.State(); err != nil || !s.Up || len(s.Addrs) != 2 || s.MTU != MTU {
			t.Errorf("applied: %+v, %v", s, err)
		}
		want("applied", p4, "tun", "unreachable")
		want("applied", p6, "tun", "unreachable")
	}
	if err := connect("172.17.3.4", 200*time.Millisecond); !timedOut(err) {
		t.Errorf("with the TUN up and nobody reading: %v", err)
	}
	if err := d.Apply([]netip.Prefix{p4, p6, prefix("172.16.0.1/16")}); err == nil {
		t.Error("a range that eth0 is in")
	}
	service := prefix("172.18.0.1/20")
	service4, service6 := prefix("172.18.16.1/20"), prefix("fd2e:7365:7368:7::1/64")
	if err := d.Apply([]netip.Prefix{p4, service4, service6, p6, service}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []netip.Prefix{service, service4, service6} {
		want("services more", p, "tun", "unreachable")
	}
	if err := d.Apply([]netip.Prefix{p4, p6}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []netip.Prefix{service, service4, service6} {
		want("services less", p)
	}
	want("services less", p4, "tun", "unreachable")
	want("services less", p6, "tun", "unreachable")

	// Going away with the routes kept: what is sent there fails at once, and never takes another route.
	gw, _ := netlink.LinkByName("eth0")
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: gw.Attrs().Index, Gw: net.ParseIP("172.16.5.9")}); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(true); err != nil {
		t.Fatal(err)
	}
	want("closed, kept", p4, "unreachable")
	want("closed, kept", p6, "unreachable")
	for _, a := range []string{"172.17.3.4", "fd2e:7365:7368:1::9"} {
		if err := connect(a, 20*time.Second); !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EACCES) {
			t.Errorf("closed, kept: %v", err)
		}
	}
	if _, err := net.InterfaceByName(DefaultName); err == nil {
		t.Error("the interface is still there")
	}
	last := recorded[len(recorded)-1]
	if last.Interface != DefaultName || !slices.Equal(last.Unreachable, []netip.Prefix{p4.Masked(), p6.Masked()}) {
		t.Errorf("recorded: %+v", last)
	}
	if !slices.ContainsFunc(recorded, func(c Changes) bool { return slices.Contains(c.Unreachable, service.Masked()) }) {
		t.Errorf("the service's range was never recorded: %+v", recorded)
	}

	// The next start takes over: the same IPv4 range, no IPv6 one.
	taken, err = HostPrefixes(DefaultName, last.Unreachable)
	if err != nil || slices.Contains(taken, p4.Masked()) {
		t.Errorf("taken: %v, %v", taken, err)
	}
	if taken, err = HostPrefixes(DefaultName, nil); err != nil || !slices.Contains(taken, p4.Masked()) {
		t.Errorf("taken, as another program sees it: %v, %v", taken, err)
	}
	if d, err = OpenDevice(DeviceConfig{Before: last}); err != nil {
		t.Fatal(err)
	}
	if err := d.Apply([]netip.Prefix{p4}); err != nil {
		t.Fatal(err)
	}
	want("again", p4, "tun", "unreachable")
	want("again", p6)

	// A descriptor that somebody kept.
	fd, err := unix.FcntlInt(d.File().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(true); err != nil {
		t.Fatal(err)
	}
	want("closed, descriptor kept", p4, "tun", "unreachable")
	if d, err = OpenDevice(DeviceConfig{File: os.NewFile(uintptr(fd), "kept"), Before: Changes{Unreachable: []netip.Prefix{p4.Masked()}}}); err != nil {
		t.Fatal(err)
	}
	if err := d.Apply([]netip.Prefix{p4, p6}); err != nil {
		t.Fatal(err)
	}
	p := NewPump(d, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := p.Run(ctx); err != nil {
		t.Errorf("pump: %v", err)
	}
	if err := d.Close(false); err != nil {
		t.Fatal(err)
	}
	want("closed", p4)
	want("closed", p6)
	if err := d.Apply(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Apply after Close: %v", err)
	}

	// kill -9, then Cleanup.
	if err := netlink.RouteReplace(unreachable(p4.Masked())); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Cleanup(Changes{Interface: DefaultName, Index: 99, Unreachable: []netip.Prefix{p4.Masked(), p6.Masked()}}); err != nil {
			t.Error(err)
		}
	}
	want("cleaned up", p4)
	eth0, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := Cleanup(Changes{Interface: "eth0", Index: eth0.Index}); err != nil {
		t.Error(err)
	}
	if _, err := net.InterfaceByName("eth0"); err != nil {
		t.Error("Cleanup has removed an interface that is no TUN")
	}
}

// TestDeviceNoIPv6: where IPv6 is off, IPv4 works alone and the state says why.
func TestDeviceNoIPv6(t *testing.T) {
	if !inNode(t, lab.NodeConfig{Name: "no6", NoIPv6: true}) {
		return
	}
	if NoIPv6() == "" {
		t.Error("NoIPv6 says nothing")
	}
	d, err := OpenDevice(DeviceConfig{Name: "loki%d"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close(false)
	if err := d.Apply([]netip.Prefix{prefix("172.16.0.1/16"), prefix("fd2e:7365:7368::1/64")}); err != nil {
		t.Fatal(err)
	}
	s, err := d.State()
	if err != nil || s.Name != "loki0" || s.NoIPv6 == "" || !slices.Equal(s.Addrs, []netip.Prefix{prefix("172.16.0.1/16")}) {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestKilledDevice: after kill -9 only the unreachable routes are left.
func TestKilledDevice(t *testing.T) {
	l := newLab(t)
	n, err := l.AddNode(lab.NodeConfig{Name: "killed"})
	if err != nil {
		t.Fatal(err)
	}
	hold := n.Self("role-hold", "lokinet7")
	started(t, hold, nil)
	if err := hold.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	hold.Wait()
	out, err := n.Self("role-dial", "172.20.3.4:80", "5s").CombinedOutput()
	if err != nil || string(out) != "unreachable\n" {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := n.Command("cat", "/proc/net/dev").Output(); err != nil || bytes.Contains(out, []byte("lokinet7")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// ifCounters are the kernel's counts of packets from and to the program behind the TUN.
type ifCounters struct{ in, out uint64 }

func countersOf(t *testing.T, n *lab.Node) (c ifCounters) {
	t.Helper()
	out, err := n.Command("cat", "/proc/net/dev").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if name, numbers, _ := strings.Cut(strings.TrimSpace(line), ":"); name == DefaultName {
			f := strings.Fields(numbers)
			c.in, _ = strconv.ParseUint(f[1], 10, 64)
			c.out, _ = strconv.ParseUint(f[9], 10, 64)
		}
	}
	return c
}

// BenchmarkDeviceWrite: a batch of 64 TCP segments of 1,280 bytes through a real TUN, in a network namespace of its own. Those of one flow are joined into few
// writes; those of as many flows are not.
func BenchmarkDeviceWrite(b *testing.B) {
	for name, flows := range map[string]int{"one flow": 1, "64 flows": writeBatch} {
		b.Run(name, func(b *testing.B) {
			runtime.LockOSThread() // and it ends with this goroutine
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				b.Fatal(err)
			}
			d, err := OpenDevice(DeviceConfig{})
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close(false)
			if err := d.Apply([]netip.Prefix{prefix("172.16.0.1/16")}); err != nil {
				b.Fatal(err)
			}
			drained := make(chan struct{})
			defer func() { d.SetReadDeadline(time.Unix(1, 0)); <-drained }()
			go func() { // the kernel's resets
				defer close(drained)
				bufs, sizes := make([][]byte, d.BatchSize()), make([]int, d.BatchSize())
				for i := range bufs {
					bufs[i] = make([]byte, 65536)
				}
				for {
					if _, err := d.Read(bufs, sizes, 0); errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
						return
					}
				}
			}()
			var own, bufs, packets [writeBatch][]byte
			for i := range own {
				own[i] = make([]byte, writeOffset+maxInbound)
				seg := ports(uint16(1000+i%flows), 9, 1260) // of no connection: the kernel answers with a reset
				binary.BigEndian.PutUint32(seg[4:], uint32(i*1240))
				seg[12], seg[13] = 0x50, 0x10
				packets[i] = ipPacket(addr("172.16.0.9"), addr("172.16.0.1"), packet.ProtoTCP, seg)
			}
			b.ReportAllocs()
			for b.Loop() {
				for i, p := range packets {
					bufs[i] = own[i][:writeOffset+copy(own[i][writeOffset:], p)]
				}
				if _, err := d.Write(bufs[:], writeOffset); err != nil {
					b.Fatal(err)
				}
				for i := range own {
					own[i] = bufs[i][:cap(bufs[i])]
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/writeBatch, "ns/packet")
		})
	}
}
