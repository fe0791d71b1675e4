package router

import (
	"context"
	"fmt"
	"io/fs"
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

	"lokinetd/config"
	"lokinetd/netif"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

// parse reads a configuration for the bench's machine and network.
func (b *bench) parse(text string) *config.Config {
	b.t.Helper()
	c, err := config.Parse([]byte(text), "/x.toml")
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// node opens the node of a configuration, as a daemon's start does, and ends it with the test.
func (b *bench) node(c *config.Config) *host {
	b.t.Helper()
	h := &host{config: c, dir: folder(c.DataDir), log: slog.New(slog.DiscardHandler), device: &benchDevice{}}
	h.current.Store(c)
	err := os.MkdirAll(c.DataDir, 0o700)
	if err == nil {
		err = h.openNode(b.t.Context())
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := h.node.Run(ctx); err != nil {
			b.t.Error(err)
		}
	})
	return h
}

// TestConfigEffects: each key of these tables has an effect where it should; no value here is the default one. What a node makes of its options is shown by the tests of
// router/path, as TestEdges for strict_edges and blacklist; the rest of the tables by those of who owns them.
func TestConfigEffects(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	strict, black := secret(1).Public(), secret(2).Public()
	extra := SignContact(secret(3), netip.MustParseAddrPort("127.9.9.9:9"), b.file.Network, time.Now())
	if err := os.WriteFile(filepath.Join(dir, "extra.signed"), extra.Raw(), 0o600); err != nil {
		t.Fatal(err)
	}
	own := key.Generate()
	if err := own.Save(filepath.Join(dir, "own.key")); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	dns := l.Addr().String()
	client := b.parse(fmt.Sprintf(`
data_dir = %q
[network]
file = %q
operator = %q
bootstrap = [%q]
suffix = "sesh"
[client]
key = %q
[paths]
edge_connections = 1
outbound_paths = 3
client_hops = 2
relay_hops = 5
inbound_paths = 6
inbound_hops = 4
inbound_pivot_reuse = 2
unique_range_size = 16
acceptable_expiry = "4m"
min_expiry = "30s"
ping_interval = "7s"
max_missed_pings = 9
profiling = false
strict_edges = [%q]
blacklist = [%q]
[tun]
name = "loki7"
ipv4 = "10.99.0.1/16"
ipv6 = "fd00:9::1/64"
[dns]
listen = [%q]
upstream = ["192.0.2.53"]
[control]
socket = %q
group = ""
`, filepath.Join(dir, "data"), b.config.Network.File, b.operator.Public(), filepath.Join(dir, "extra.signed"), filepath.Join(dir, "own.key"),
		strict, black, dns, filepath.Join(dir, "socket")))

	b.file.UniqueRange = true // else the network switches the rule off
	b.publish(6)
	h := b.node(client)
	o, e := h.node.config.Paths.Options, h.endpointConfig("x", own)
	effects := map[string]bool{
		"paths.edge_connections":    o.Edges == 1,
		"paths.outbound_paths":      e.Outbound == 3,
		"paths.client_hops":         e.ClientHops == 2,
		"paths.relay_hops":          e.RelayHops == 5,
		"paths.inbound_paths":       e.Inbound == 6,
		"paths.inbound_hops":        e.InboundHops == 4,
		"paths.inbound_pivot_reuse": o.PivotReuse == 2,
		"paths.unique_range_size":   o.UniqueRange == 16,
		"paths.acceptable_expiry":   o.AcceptableExpiry == 4*time.Minute,
		"paths.min_expiry":          o.MinExpiry == 30*time.Second,
		"paths.ping_interval":       o.PingInterval == 7*time.Second,
		"paths.max_missed_pings":    o.MaxMissedPings == 9,
		"paths.profiling":           !o.Profiling,
		"paths.strict_edges":        slices.Equal(o.StrictEdges, []key.Public{strict}),
		"paths.blacklist":           slices.Equal(o.Blacklist, []key.Public{black}),
		"network.file":              h.node.network.Load().Name == "bench",
		"network.operator":          refuses(b, client, func(c *config.Config) { c.Network.Operator = own.Public() }),
		"network.bootstrap":         slices.ContainsFunc(h.node.network.Load().Contacts, func(c *netdb.RelayContact) bool { return c.ID == extra.ID }),
		"network.name":              publicNetwork(&config.Network{Name: config.Testnet}).Network == 1, // and TestPublicNetwork
	}

	// A daemon with it.
	open := b.sys.openDevice
	b.sys.openDevice = func(c netif.DeviceConfig) (device, error) {
		effects["tun.name"] = c.Name == "loki7"
		return open(c)
	}
	b.config = client
	s := b.mustStart()
	events := strings.Join(b.since(), "\n")
	st := s.status() // asks control.socket
	effects["tun.ipv4"] = strings.Contains(events, "10.99.0.1/16")
	effects["tun.ipv6"] = strings.Contains(events, "fd00:9::1/64")
	effects["client.key"] = st.Endpoints[0].Address == key.Address{Key: own.Public()}.Text("sesh")
	effects["network.suffix"] = strings.HasSuffix(st.Endpoints[0].Address, ".sesh")
	effects["dns.listen"] = st.DNS != nil && slices.Equal(st.DNS.Listen, []string{dns})
	effects["dns.upstream"] = st.DNS != nil && slices.Equal(st.DNS.Upstream, []string{"192.0.2.53:53"})
	effects["control.socket"] = st.Schema == control.Schema
	// On disk, and nothing else, and nothing that others may read (protocol 1 section 9.1; docs/public-network.md).
	var found []string
	filepath.WalkDir(client.DataDir, func(name string, d fs.DirEntry, err error) error {
		if fi, err := os.Lstat(name); err == nil && fi.Mode()&0o077 != 0 {
			t.Errorf("%s: mode %v", name, fi.Mode())
		}
		rel, _ := filepath.Rel(client.DataDir, name)
		if !strings.Contains(rel, ".signed") { // relays' contacts, perhaps just being written
			found = append(found, rel)
		}
		return err
	})
	if want := []string{".", "addresses.json", "host.json", "lock", "networks.json", "nodedb"}; !slices.Equal(found, want) {
		t.Errorf("data directory: %q, want %q", found, want)
	}
	effects["data_dir"] = slices.Contains(found, "nodedb")
	s.stop()

	// A relay.
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp.Close()
	relay := b.parse(fmt.Sprintf("role = \"relay\"\ndata_dir = %q\n[network]\nfile = %q\noperator = %q\n[relay]\nlisten = %q\npublic_address = \"127.0.0.1:7\"\nkey = %q\n",
		filepath.Join(dir, "relay"), b.config.Network.File, b.operator.Public(), udp.LocalAddr(), filepath.Join(dir, "own.key")))
	h = b.node(relay)
	effects["role"] = h.node.relay != nil
	effects["relay.listen"] = h.wire.LocalAddr().String() == udp.LocalAddr().String()
	effects["relay.public_address"] = h.node.config.Public.String() == "127.0.0.1:7"
	effects["relay.key"] = h.node.relay.self == own.Public()

	base := config.Default()
	for k, ok := range effects {
		if !ok {
			t.Errorf("%s has no effect", k)
		}
	}
	for _, table := range []string{"network", "client", "paths", "tun"} {
		v := reflect.ValueOf(base).Elem()
		for i := range v.NumField() {
			if v.Type().Field(i).Tag.Get("toml") != table {
				continue
			}
			for j := range v.Field(i).NumField() {
				if k := table + "." + v.Field(i).Type().Field(j).Tag.Get("toml"); !effects[k] {
					t.Errorf("%s: not looked at, or without effect", k)
				}
			}
		}
	}
}

// refuses says whether a configuration that is changed like this cannot be started.
func refuses(b *bench, c *config.Config, change func(*config.Config)) bool {
	other := *c
	change(&other)
	h := &host{config: &other, dir: folder(other.DataDir), log: slog.New(slog.DiscardHandler)}
	_, err := h.findNetwork()
	return err != nil
}
