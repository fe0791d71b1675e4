//go:build root

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lokinetd/netif/lab"
	"lokinetd/router"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
)

// roleMallory is a client that sends packets of any kind into a session, as no lokinetd would. Arguments: network file, operator's key, whom to call. It takes packets in hex, a line each, and
// says when one is sent.
func roleMallory(args []string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	raw, err := os.ReadFile(args[0])
	fail(err)
	operator, err := key.ParsePublic(args[1])
	fail(err)
	file, err := netdb.ParseNetworkFile(raw, operator, time.Now())
	fail(err)
	target, err := key.ParseAddress(args[2])
	fail(err)
	store, err := netdb.OpenStore("", key.Public{}, false, file.Rules(), nil)
	fail(err)
	pc, err := net.ListenUDP("udp4", nil)
	fail(err)
	wire, err := link.NewQUIC(pc, link.Config{})
	fail(err)
	options := path.DefaultOptions()
	options.UniqueRange = 0 // all are neighbours
	n, err := router.NewNode(router.NodeConfig{Network: file, Wire: wire, Store: store, Paths: path.ClientConfig{Options: options}})
	fail(err)
	e, err := n.AddEndpoint(router.EndpointConfig{Name: "mallory", Secret: key.Generate(), Flags: netdb.FlagIPv4 | netdb.FlagIPv6 | netdb.FlagPFS,
		Deliver: func(_ key.Address, b *packet.Buffer) { b.Release() }})
	fail(err)
	go func() { fail(n.Run(context.Background())) }()
	ctx, cancel := context.WithTimeout(context.Background(), eventually)
	defer cancel()
	fail(e.Sessions.Connect(ctx, target))
	fmt.Println("connected")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		p, err := hex.DecodeString(in.Text())
		fail(err)
		b := packet.Get()
		b.Set(p)
		e.Sessions.Send(target, b)
		fmt.Println("sent")
	}
}

// roleTap tells of all packets that come out of an interface that have a mark in them. Argument: its name.
func roleTap(args []string) {
	i, err := net.InterfaceByName(args[0])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	all := uint16(unix.ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: i.Index})
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var mu sync.Mutex
	var seen []string
	go func() {
		b := make([]byte, 1<<17)
		for {
			n, from, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				continue
			}
			if at := strings.Index(string(b[:n]), mark); at >= 0 {
				way := "in"
				if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
					way = "out"
				}
				mu.Lock()
				seen = append(seen, way+":"+hex.EncodeToString(b[:n]))
				mu.Unlock()
			}
		}
	}()
	report(func() string {
		mu.Lock()
		defer mu.Unlock()
		return fmt.Sprint(len(seen), " ", strings.Join(seen, " "))
	})
}

// mark stands in each packet of mallory's, with its number behind it.
const mark = "EVIL"

// crafted is a packet of mallory's.
type crafted struct {
	name   string
	packet []byte
	passes bool // it may reach the host
}

func sum16(parts ...[]byte) uint16 {
	var s uint32
	for i, b := range slices.Concat(parts...) {
		s += uint32(b) << (8 * uint(1-i%2))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// ip makes a packet of these addresses' family around a payload; options are IPv4's, or whole IPv6 extension headers, of which first names the first and the last names proto.
func ipPacket(src, dst string, proto byte, payload, options []byte, first byte) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	if s.Is4() {
		h := make([]byte, 20, 20+len(options))
		h = append(h, options...)
		h[0], h[8], h[9] = 0x40|byte(len(h)/4), 64, proto
		binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(payload)))
		copy(h[12:], s.AsSlice())
		copy(h[16:], d.AsSlice())
		binary.BigEndian.PutUint16(h[10:], sum16(h))
		return append(h, payload...)
	}
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, proto, 64
	if len(options) > 0 {
		h[6] = first
	}
	binary.BigEndian.PutUint16(h[4:], uint16(len(options)+len(payload)))
	copy(h[8:], s.AsSlice())
	copy(h[24:], d.AsSlice())
	return slices.Concat(h, options, payload)
}

// withSum puts the checksum at an offset of a payload: even payloads only.
func withSum(src, dst string, proto byte, b []byte, at int) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	binary.BigEndian.PutUint16(b[at:], sum16(s.AsSlice(), d.AsSlice(), []byte{0, proto, byte(len(b) >> 8), byte(len(b))}, b))
	return b
}

func synTo(src, dst string, port uint16, text string) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, 4000)
	binary.BigEndian.PutUint16(b[2:], port)
	b[12], b[13] = 0x50, packet.TCPSyn
	return withSum(src, dst, packet.ProtoTCP, append(b, text...), 16)
}

func datagramTo(src, dst string, port uint16, text string) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, 4000)
	binary.BigEndian.PutUint16(b[2:], port)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(text)))
	return withSum(src, dst, packet.ProtoUDP, append(b, text...), 6)
}

// malice are the packets, in both families. Of all addresses that are given none may count.
func malice(addresses map[string][2]string, own [2]string) (all []crafted) {
	for f, zero := range []string{"0.0.0.0", "::"} {
		v, icmp := []string{"v4 ", "v6 "}[f], []byte{packet.ProtoICMP, packet.ProtoICMPv6}[f]
		add := func(name string, passes bool, src, dst string, proto byte, payload func(text string) []byte, options []byte, first byte) {
			text := fmt.Sprintf("%s%04d", mark, len(all))
			all = append(all, crafted{v + name, ipPacket(src, dst, proto, payload(text), options, first), passes})
		}
		tcp := func(port uint16, src, dst string) func(string) []byte {
			return func(text string) []byte { return synTo(src, dst, port, text) }
		}
		udp := func(port uint16) func(string) []byte {
			return func(text string) []byte { return datagramTo(zero, zero, port, text) }
		}
		message := func(typ, code byte, body ...byte) func(string) []byte {
			return func(text string) []byte {
				b := append([]byte{typ, code, 0, 0, 0, 0, 0, 0}, body...)
				b = append(b, text...)
				if f == 0 {
					binary.BigEndian.PutUint16(b[2:], sum16(b))
					return b
				}
				return withSum(zero, zero, icmp, b, 2)
			}
		}
		plain := func(text string) []byte { return []byte(strings.Repeat(text, 8)) }

		// What a service lists, and what it does not.
		add("the listed port", true, zero, zero, packet.ProtoTCP, tcp(80, zero, zero), nil, 0)
		add("echo", true, zero, zero, icmp, message([]byte{packet.ICMPEcho, packet.ICMPv6Echo}[f], 0), nil, 0)
		for _, port := range []uint16{0, 22, 79, 81, 65535} {
			add(fmt.Sprint("tcp ", port), false, zero, zero, packet.ProtoTCP, tcp(port, zero, zero), nil, 0)
		}
		for _, port := range []uint16{53, 80, 4000} {
			add(fmt.Sprint("udp ", port), false, zero, zero, packet.ProtoUDP, udp(port), nil, 0)
		}
		for _, proto := range []byte{4, 41, 47, 50, 51, 89, 132, 253} {
			add(fmt.Sprint("protocol ", proto), false, zero, zero, proto, plain, nil, 0)
		}

		// Whom it says to be from, and for whom.
		for who, at := range addresses {
			if at[f] == "" {
				continue
			}
			add("the listed port, from "+who, true, at[f], own[f], packet.ProtoTCP, tcp(80, at[f], own[f]), nil, 0)
			add("the listed port, for "+who, true, zero, at[f], packet.ProtoTCP, tcp(80, zero, at[f]), nil, 0)
			add("another port, for "+who, false, zero, at[f], packet.ProtoTCP, tcp(9, zero, at[f]), nil, 0)
		}

		// ICMP that nobody asked for: errors about what was never sent, and what only neighbours say.
		bystander := addresses["a bystander"][f]
		quoted := ipPacket(own[f], bystander, packet.ProtoTCP, synTo(own[f], bystander, 80, "abcd"), nil, 0)
		for _, typ := range [][]byte{{packet.ICMPUnreachable, packet.ICMPTimeExceeded, packet.ICMPParameterProblem, 4, 5}, {1, 2, 3, 4}}[f] {
			add(fmt.Sprint("icmp error ", typ), false, zero, zero, icmp, message(typ, 1, quoted...), nil, 0)
		}
		for _, typ := range [][]byte{{0, 9, 10, 13, 15, 17}, {129, 130, 133, 134, 135, 136, 137, 139, 143, 144}}[f] {
			add(fmt.Sprint("icmp ", typ), false, zero, zero, icmp, message(typ, 0, make([]byte, 16)...), nil, 0)
		}
		if f == 0 {
			way := netip.MustParseAddr(bystander).As4()
			for _, option := range []byte{131, 137, 7, 68} {
				add(fmt.Sprint("option ", option), false, zero, zero, packet.ProtoTCP, tcp(80, zero, zero), append([]byte{1, option, 7, 4}, way[:]...), 0)
			}
			continue
		}

		// Extension headers.
		way := netip.MustParseAddr(bystander).As16()
		tail := func(next byte, b ...byte) []byte { return append([]byte{next, byte(len(b)+2)/8 - 1}, b...) }
		routing := append([]byte{packet.ProtoTCP, 2, 0, 1, 0, 0, 0, 0}, way[:]...)
		add("routing header", false, zero, zero, packet.ProtoTCP, tcp(80, zero, zero), routing, 43)
		routing4 := append([]byte{packet.ProtoTCP, 2, 4, 1, 0, 0, 0, 0}, way[:]...)
		add("segment routing", false, zero, zero, packet.ProtoTCP, tcp(80, zero, zero), routing4, 43)
		home := append(tail(packet.ProtoTCP, 1, 2, 0, 0, 201, 16), way[:]...)
		home[1] = 2
		add("home address", false, zero, zero, packet.ProtoTCP, tcp(80, zero, zero), home, 60)
		pad := tail(packet.ProtoTCP, 1, 4, 0, 0, 0, 0)
		add("destination options before the listed port", true, zero, zero, packet.ProtoTCP, tcp(80, zero, zero), pad, 60)
		add("destination options before another port", false, zero, zero, packet.ProtoTCP, tcp(81, zero, zero), pad, 60)
		add("hop-by-hop options before another port", false, zero, zero, packet.ProtoTCP, tcp(81, zero, zero), pad, 0)
		add("many headers before the listed port", false, zero, zero, packet.ProtoTCP, tcp(80, zero, zero),
			append(slices.Repeat(tail(60, 1, 4, 0, 0, 0, 0), 20), pad...), 60)
		fragment := func(offset, more uint16, id byte) []byte {
			b := []byte{packet.ProtoTCP, 0, 0, 0, 0, 0, 0, id}
			binary.BigEndian.PutUint16(b[2:], offset|more)
			return b
		}
		add("the first fragment for another port", false, zero, zero, packet.ProtoTCP, tcp(81, zero, zero), fragment(0, 1, 1), 44)
		add("its second", false, zero, zero, packet.ProtoTCP, plain, fragment(32, 0, 1), 44)
		add("a fragment without a first", false, zero, zero, packet.ProtoTCP, plain, fragment(64, 0, 2), 44)
		add("a first fragment without its ports", false, zero, zero, packet.ProtoTCP, func(text string) []byte { return []byte(text) }, fragment(0, 1, 3), 44)
		add("a fragment that is whole, for another port", false, zero, zero, packet.ProtoTCP, tcp(81, zero, zero), fragment(0, 0, 4), 44)
	}
	return all
}

// TestMallory: of what a hostile client sends into its session, a service's host takes what the service lists, as from that client and to the service, whatever else the packets say; a
// host that forwards packets, and would follow source routes, passes none on to others that it speaks with, nor to its own network.
func TestMallory(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute+3*eventually)
	defer cancel()
	d, must, host, address := serving(ctx, t)
	defer d.close()
	bystander, err := d.client("bystander", "10.77.0.120", "[[service]]\nname = \"by\"\nports = [\"tcp/80\", \"tcp/9\"]\necho = true\n")
	must(err)
	var other string
	must(bystander.wait(ctx, func(s control.Status) bool {
		for _, e := range s.Endpoints {
			if e.Kind == "service" && e.PublishedAt != nil {
				other = e.Address
			}
		}
		return other != ""
	}))
	sh := func(h *demoHost, script string) string {
		t.Helper()
		out, err := h.node.Command("sh", "-ec", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	// The host speaks with the bystander, and would pass on whatever the kernel passes on.
	sh(host, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.accept_source_route=1 net.ipv4.conf.lokinet0.accept_source_route=1 net.ipv6.conf.all.accept_source_route=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.lokinet0.rp_filter=0")
	sh(host, "ping -c 1 -W 10 "+other)
	var own, by [2]string
	for f, family := range []string{"v4", "v6"} {
		own[f] = strings.Fields(sh(host, "getent ahosts"+family+" "+address))[0]
		by[f] = strings.Fields(sh(host, "getent ahosts"+family+" "+other))[0]
	}
	tap := func(h *demoHost, name string) *reporter { return newReporter(t, h.node, "role-tap", name) }
	taps := map[string]*reporter{"host lokinet0": tap(host, "lokinet0"), "host eth0": tap(host, "eth0"), "host lo": tap(host, "lo"), "bystander": tap(bystander, "lokinet0"), "bystander eth0": tap(bystander, "eth0")}
	var n int
	for _, r := range taps {
		r.line(t, &n) // they listen
	}

	mallory, err := d.lab.AddNode(lab.NodeConfig{Name: "mallory", Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.130/16")}})
	must(err)
	hostile := newReporter(t, mallory, "role-mallory", filepath.Join(d.dir, "demo.network"), d.operator.Public().String(), address)
	if line, err := hostile.out.ReadString('\n'); line != "connected\n" {
		t.Fatal(line, err)
	}
	all := malice(map[string][2]string{
		"a bystander": by, "the host": own, "loopback": {"127.0.0.1", "::1"}, "its network": {"10.77.0.1", ""}, "all": {"255.255.255.255", "ff02::1"}, "somebody": {"93.184.215.14", "2001:db8::1"},
	}, own)
	// Datagrams may get lost: what may pass is sent until it has come, and the rest as often.
	came := map[int]bool{}
	number := func(raw []byte) (n int) {
		fmt.Sscanf(string(raw[strings.Index(string(raw), mark)+len(mark):])[:4], "%d", &n)
		return n
	}
	lacking := func() (is bool) {
		for _, p := range strings.Fields(taps["host lokinet0"].line(t, &n)) {
			if way, text, _ := strings.Cut(p, ":"); way == "in" {
				raw, _ := hex.DecodeString(text)
				came[number(raw)] = true
			}
		}
		for i, c := range all {
			is = is || c.passes && !came[i]
		}
		return is
	}
	for end := time.Now().Add(eventually); lacking() && time.Now().Before(end); time.Sleep(time.Second) {
		for _, c := range all {
			fmt.Fprintln(hostile.ask, hex.EncodeToString(c.packet))
			if line, err := hostile.out.ReadString('\n'); line != "sent\n" {
				t.Fatal(c.name, line, err)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}

	var from [2]netip.Addr
	for where, r := range taps {
		for _, p := range strings.Fields(r.line(t, &n)) {
			way, text, _ := strings.Cut(p, ":")
			raw, _ := hex.DecodeString(text)
			ip, err := packet.ParseIP(raw)
			what := all[number(raw)]
			if err != nil {
				t.Errorf("%s: %s: %v", where, what.name, err)
				continue
			}
			f := map[uint8]int{4: 0, 6: 1}[ip.Version]
			switch {
			case where == "host lokinet0" && way == "out" && ip.Src == netip.MustParseAddr(own[f]) && ip.Dst == from[f] && what.passes: // the host answers
			case where != "host lokinet0" || way != "in":
				t.Errorf("%s: %s, %s, %v > %v", where, what.name, way, ip.Src, ip.Dst)
			case !what.passes:
				t.Errorf("%s has come in", what.name)
			default:
				if !from[f].IsValid() {
					from[f] = ip.Src
				}
				if ip.Src != from[f] || ip.Dst.String() != own[f] || from[f].String() == by[f] {
					t.Errorf("%s is from %v and for %v, not from %v and for %v", what.name, ip.Src, ip.Dst, from[f], own[f])
				}
			}
		}
	}
	passed := 0
	for i, c := range all {
		if c.passes && !came[i] {
			t.Errorf("%s has not come in", c.name)
		} else if c.passes {
			passed++
		}
	}
	t.Logf("%d packets, %d of them listed; those and no others have come in", len(all), passed)
	hostile.cmd.Signal(syscall.SIGKILL)
}
