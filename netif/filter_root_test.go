//go:build root

package netif

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"lokinetd/netif/lab"
)

// witness counts the packets that leave the node through eth0 for some ranges.
type witness struct {
	t     *testing.T
	table *nftables.Table
	chain *nftables.Chain
}

func newWitness(t *testing.T, ranges ...netip.Prefix) *witness {
	t.Helper()
	w := &witness{t: t, table: &nftables.Table{Name: "witness", Family: nftables.TableFamilyINet}}
	c := &nftables.Conn{}
	c.AddTable(w.table)
	w.chain = c.AddChain(&nftables.Chain{Name: "seen", Table: w.table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityLast})
	for _, p := range ranges {
		eth0 := notThrough(expr.MetaKeyOIFNAME, "eth0")
		eth0[1].(*expr.Cmp).Op = expr.CmpOpEq
		c.AddRule(&nftables.Rule{Table: w.table, Chain: w.chain, Exprs: append(append(destinedTo(p), eth0...), &expr.Counter{})})
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *witness) packets() (n uint64) {
	w.t.Helper()
	rules, err := (&nftables.Conn{}).GetRules(w.table, w.chain)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				n += c.Packets
			}
		}
	}
	return n
}

// TestFilter: with the interface down and the unreachable routes gone, packets for our ranges leave through the default route, unless the firewall table is there. Nobody on
// another interface reaches our address. The table holds while the interface is away, and goes with Close or Cleanup.
func TestFilter(t *testing.T) {
	if !inNode(t, lab.NodeConfig{Name: "filter", Addrs: []netip.Prefix{prefix("10.9.0.2/24"), prefix("fd99::2/64")}, Gateway: netip.MustParseAddr("10.9.0.1")}) {
		return
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	eth0, err := netlink.LinkByName("eth0")
	must(err)
	must(netlink.NeighSet(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, IP: net.IPv4(10, 9, 0, 1), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}, State: netlink.NUD_PERMANENT}))
	must(netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("fd99::1"), LinkIndex: eth0.Attrs().Index}))
	must(netlink.NeighSet(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, IP: net.ParseIP("fd99::1"), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}, State: netlink.NUD_PERMANENT}))
	p4, p6 := prefix("172.20.0.1/16"), prefix("fd2e:7365:7368::1/64")
	w := newWitness(t, p4, p6)
	// leaks sends to each range and says how many packets left through eth0.
	leaks := func() uint64 {
		t.Helper()
		before := w.packets()
		for _, to := range []string{"172.20.7.7:9", "[fd2e:7365:7368::77]:9"} {
			if c, err := net.Dial("udp", to); err == nil {
				for range 5 {
					c.Write([]byte("lost"))
				}
				c.Close()
			}
			if c, err := net.DialTimeout("tcp", to, 100*time.Millisecond); err == nil {
				c.Close()
			}
		}
		return w.packets() - before
	}
	tables := func(want ...string) {
		t.Helper()
		l, err := (&nftables.Conn{}).ListTables()
		must(err)
		var got []string
		for _, x := range l {
			if x.Name != "witness" {
				got = append(got, x.Name)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("tables %q, want %q", got, want)
		}
	}
	if n := leaks(); n < 10 {
		t.Fatalf("without anything of ours the witness has seen %d packets", n)
	}

	var log bytes.Buffer
	d, err := OpenDevice(DeviceConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
	must(err)
	must(d.Apply([]netip.Prefix{p4, p6}))
	tables("lokinetd_lokinet0")
	if n := leaks(); n != 0 {
		t.Errorf("%d packets with all in place", n)
	}
	// The first line is gone: somebody has flushed the routes, and taken the interface down.
	must(delUnreachable(p4.Masked()))
	must(delUnreachable(p6.Masked()))
	must(netlink.LinkSetDown(d.link))
	if n := leaks(); n != 0 {
		t.Errorf("%d packets with the firewall alone", n)
	}
	_, err = net.DialTimeout("tcp", "172.20.7.7:9", 20*time.Second)
	if err == nil || timedOut(err) {
		t.Errorf("a program is not told: %v", err)
	}
	// An address that others may try: it must be as if it were not this host's.
	must(netlink.LinkSetUp(d.link))
	must(d.Apply([]netip.Prefix{p4, p6}))
	tables("lokinetd_lokinet0") // again, and once
	if log.Len() > 0 {
		t.Errorf("warnings: %s", &log)
	}

	// Other ranges.
	other := prefix("172.21.0.1/16")
	must(d.Apply([]netip.Prefix{other}))
	rules, err := (&nftables.Conn{}).GetRules(&nftables.Table{Name: tableOf(d.name), Family: nftables.TableFamilyINet}, &nftables.Chain{Name: "output"})
	if err != nil || len(rules) != 1 {
		t.Errorf("rules for one range: %d, %v", len(rules), err)
	}
	must(d.Close(true))
	tables("lokinetd_lokinet0")
	must(Cleanup(Changes{Interface: DefaultName, Unreachable: []netip.Prefix{other.Masked()}}))
	must(Cleanup(Changes{Interface: DefaultName, Unreachable: []netip.Prefix{other.Masked()}}))
	tables()

	// Another name than in an earlier run, and a stop.
	d, err = OpenDevice(DeviceConfig{Name: "loki-x0", Before: Changes{Interface: "former0"}})
	must(err)
	must(setFilter("former0", []netip.Prefix{p4}))
	must(d.Apply([]netip.Prefix{p4}))
	tables("lokinetd_loki_x0")
	must(d.Close(false))
	tables()

	// A kernel without nftables: everything else works, and it is said once.
	d, err = OpenDevice(DeviceConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
	must(err)
	d.filter = func(string, []netip.Prefix) error { return errors.New("protocol not supported") }
	must(d.Apply([]netip.Prefix{p4}))
	must(d.Apply([]netip.Prefix{p4, p6}))
	if strings.Count(log.String(), "no firewall table") != 1 || d.NoFilter() != "protocol not supported" {
		t.Errorf("without nftables: %q, %s", d.NoFilter(), &log)
	}
	if n := leaks(); n != 0 {
		t.Errorf("%d packets with the routes alone", n)
	}
	must(d.Close(false))
	if n := leaks(); n < 10 {
		t.Errorf("after all of it the witness has seen %d packets", n)
	}
}

// TestMend: whatever others take away, Mend puts it back, says so, and then has nothing to do.
func TestMend(t *testing.T) {
	if !inNode(t, lab.NodeConfig{Name: "mend", Addrs: []netip.Prefix{prefix("10.9.0.2/24")}}) {
		return
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	d, err := OpenDevice(DeviceConfig{})
	must(err)
	p4, p6 := prefix("172.20.0.1/16"), prefix("fd2e:7365:7368::1/64")
	if missing, err := d.Mend(); err != nil || missing != nil {
		t.Errorf("before Apply: %q, %v", missing, err)
	}
	must(d.Apply([]netip.Prefix{p4, p6}))
	table := &nftables.Table{Name: tableOf(d.name), Family: nftables.TableFamilyINet}
	for _, c := range []struct {
		what string
		do   func()
		want []string
	}{
		{"nothing", func() {}, nil},
		{"an unreachable route", func() { must(delUnreachable(p6.Masked())) }, []string{"fd2e:7365:7368::/64"}},
		{"the table", func() { must(delFilter(d.name)) }, []string{"table lokinetd_lokinet0"}},
		{"a chain's rules", func() {
			c := &nftables.Conn{}
			c.FlushChain(&nftables.Chain{Name: "forward", Table: table})
			must(c.Flush())
		}, []string{"table lokinetd_lokinet0"}},
		{"an address", func() { must(netlink.AddrDel(d.link, &netlink.Addr{IPNet: ipNet(p4)})) }, []string{"172.20.0.1/16"}},
		{"the interface's routes", func() {
			for _, p := range []netip.Prefix{p4, p6} {
				must(netlink.RouteDel(&netlink.Route{LinkIndex: d.Index(), Dst: ipNet(p.Masked()), Scope: netlink.SCOPE_NOWHERE}))
			}
		}, []string{"172.20.0.0/16", "fd2e:7365:7368::/64"}},
		{"its being up", func() { must(netlink.LinkSetDown(d.link)) }, []string{"lokinet0 up", "fd2e:7365:7368::1/64"}},
	} {
		c.do()
		if missing, err := d.Mend(); err != nil || !slices.Equal(missing, c.want) {
			t.Errorf("without %s: missing %q, %v; want %q", c.what, missing, err, c.want)
		}
		if missing, err := d.Mend(); err != nil || missing != nil {
			t.Errorf("without %s, mended: missing %q, %v", c.what, missing, err)
		}
	}
	must(d.Close(false))
	if missing, err := d.Mend(); err != nil || missing != nil {
		t.Errorf("after Close: %q, %v", missing, err)
	}
}

// TestFilterInput: who is on another network of the host cannot reach, nor find, its address on our interface.
func TestFilterInput(t *testing.T) {
	l := newLab(t)
	n, err := l.AddNode(lab.NodeConfig{Name: "host", Addrs: []netip.Prefix{prefix("10.9.0.2/24")}})
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.AddNode(lab.NodeConfig{Name: "neighbour", Addrs: []netip.Prefix{prefix("10.9.0.3/24")}, Gateway: netip.MustParseAddr("10.9.0.2")})
	if err != nil {
		t.Fatal(err)
	}
	server, err := n.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	hold := n.Self("role-hold", "lokinet7")
	started(t, hold, nil)
	for at, want := range map[string]string{"10.9.0.2:80 20s": "connected\n", "172.20.0.1:80 1s": "silence\n"} {
		if out, err := other.Self(append([]string{"role-dial"}, strings.Fields(at)...)...).CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("from a neighbour, %s: %q, %v; want %q", at, out, err, want)
		}
	}
	if out, err := n.Self("role-dial", "172.20.0.1:80", "20s").CombinedOutput(); err != nil || string(out) != "connected\n" {
		t.Errorf("from the host itself: %q, %v", out, err)
	}
}
