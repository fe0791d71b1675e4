package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"

	"lokinetd/router/key"
)

func keyFrom(b byte) key.Public {
	var seed [32]byte
	seed[0] = b
	return key.FromSeed(seed).Public()
}

var operator, relayA, relayB = keyFrom(1), keyFrom(2), keyFrom(3)

// expand writes out OPERATOR, HEX (the same), RELAYA and RELAYB; fold puts them back.
var (
	expand = strings.NewReplacer("OPERATOR", operator.String(), "HEX", fmt.Sprintf("%x", operator[:]), "RELAYA", relayA.String(), "RELAYB", relayB.String()).Replace
	fold   = strings.NewReplacer(operator.String(), "OPERATOR", relayA.String(), "RELAYA", relayB.String(), "RELAYB").Replace
)

func TestDefault(t *testing.T) {
	c, err := Parse(nil, "x.toml")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, Default()) {
		t.Errorf("an empty file: %+v", c)
	}
	if c.Paths.RelayHops != 4 || c.Paths.InboundHops != 3 || c.Relay.Key != "/var/lib/lokinetd/relay.key" || c.Log.Level.Of("dns") != slog.LevelInfo {
		t.Errorf("%+v", c)
	}
}

// TestValues: every key, set to something else.
func TestValues(t *testing.T) {
	const client = `
role = "client"
data_dir = "state"
[network]
file = "home.network"
operator = "HEX"
bootstrap = ["a.signed", "/b.signed"]
suffix = "sesh"
[client]
key = "me.key"
[paths]
edge_connections = 5
outbound_paths = 3
client_hops = 8
inbound_paths = 10
inbound_pivot_reuse = 2
unique_range_size = 0
acceptable_expiry = "2m"
min_expiry = "1m30s"
ping_interval = "1s"
max_missed_pings = 0
profiling = false
strict_edges = ["RELAYA.snode", "RELAYB"]
blacklist = ["HEX"]
[tun]
name = "loki%d"
ipv4 = "10.99.0.0/16"
ipv6 = "off"
[dns]
enabled = false
listen = ["127.0.0.1", "[::1]:5353", "::1"]
upstream = ["9.9.9.9", "[2620:fe::fe]:53"]
host = "file"
hold = false
[proxy]
socks = ["127.0.0.1", "[::1]:9050"]
http = []
[[service]]
name = "blog"
ports = ["tcp/80", "udp/53"]
forward = ["443->127.0.0.1:8443", "udp/54 -> [::1]:5354"]
echo = true
srv = ["_http._tcp 1 2 80", "_sip._udp 3 4 5 chat.loki"]
clients = "friends"
max_sessions = 7
max_new_sessions = 8
[[service]]
name = "b"
key = "/keys/b"
[control]
socket = "/tmp/s"
group = ""
[log]
level = "warn, dns=debug,path=error"
format = "json"
[metrics]
listen = "[::1]"
socket = "figures"
`
	c, err := Parse([]byte(expand(client)), "/etc/x/lokinetd.toml")
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Role: RoleClient, DataDir: "/etc/x/state",
		Network: Network{Name: Mainnet, File: "/etc/x/home.network", Operator: operator, Bootstrap: []string{"/etc/x/a.signed", "/b.signed"}, Suffix: "sesh"},
		Client:  Client{Key: "/etc/x/me.key"},
		Paths: Paths{
			EdgeConnections: 2, OutboundPaths: 3, ClientHops: 8, RelayHops: 8, InboundPaths: 10, InboundHops: 8, InboundPivotReuse: 2, // edges: two strict ones
			AcceptableExpiry: 2 * time.Minute, MinExpiry: 90 * time.Second, PingInterval: time.Second,
			StrictEdges: []key.Public{relayA, relayB}, Blacklist: []key.Public{operator},
		},
		TUN: TUN{Name: "loki%d", IPv4: Range{Prefix: netip.MustParsePrefix("10.99.0.1/16")}, IPv6: Range{Off: true}},
		DNS: DNS{
			Listen:   []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53"), netip.MustParseAddrPort("[::1]:5353"), netip.MustParseAddrPort("[::1]:53")},
			Upstream: []netip.AddrPort{netip.MustParseAddrPort("9.9.9.9:53"), netip.MustParseAddrPort("[2620:fe::fe]:53")}, Host: "file",
		},
		Proxy: Proxy{SOCKS: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1080"), netip.MustParseAddrPort("[::1]:9050")}},
		Service: []Service{
			{Name: "blog", Key: "/etc/x/state/service-blog.key", Ports: []Port{{"tcp", 80}, {"udp", 53}},
				Forward: []Forward{{Port{"tcp", 443}, netip.MustParseAddrPort("127.0.0.1:8443")}, {Port{"udp", 54}, netip.MustParseAddrPort("[::1]:5354")}}, Echo: true,
				SRV:     []SRV{{"_http._tcp", 1, 2, 80, ""}, {"_sip._udp", 3, 4, 5, "chat.loki"}},
				Clients: "/etc/x/friends", MaxSessions: 7, MaxNewSessions: 8},
			{Name: "b", Key: "/keys/b", MaxSessions: 4096, MaxNewSessions: 100},
		},
		Relay:   Relay{Listen: netip.MustParseAddrPort("0.0.0.0:1190"), Key: "/etc/x/state/relay.key"},
		Control: Control{Socket: "/tmp/s"},
		Log:     Log{Level: Levels{slog.LevelWarn, map[string]slog.Level{"dns": slog.LevelDebug, "path": slog.LevelError}}, Format: "json"},
		Metrics: Metrics{Listen: netip.MustParseAddrPort("[::1]:9190"), Socket: "/etc/x/figures"},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("\n got %+v\nwant %+v", c, want)
	}
	if l := c.Log.Level; l.Of("dns") != slog.LevelDebug || l.Of("link") != slog.LevelWarn || l.Lowest() != slog.LevelDebug || l.String() != "*=warn,dns=debug,path=error" {
		t.Errorf("levels %v", l)
	}

	c, err = Parse([]byte(expand("role = \"relay\"\n[network]\nfile = \"/n\"\noperator = \"OPERATOR\"\n[relay]\nlisten = \"192.0.2.1\"\npublic_address = \"203.0.113.5:2000\"\nkey = \"r.key\"\nrate = 50\n")), "lokinetd.toml")
	if err != nil {
		t.Fatal(err)
	}
	if want := (Relay{netip.MustParseAddrPort("192.0.2.1:1190"), netip.MustParseAddrPort("203.0.113.5:2000"), "r.key", 50, ""}); c.Relay != want || c.Role != RoleRelay {
		t.Errorf("%+v", c)
	}
}

// TestOxend: only a relay of the public network has one.
func TestOxend(t *testing.T) {
	for text, want := range map[string]string{
		"":                   "",
		"role = \"relay\"\n": DefaultOxend,
		"role = \"relay\"\n[relay]\noxend = \"ipc:///run/o.sock\"\n":            "ipc:///run/o.sock",
		"role = \"relay\"\n[network]\nfile = \"/n\"\noperator = \"OPERATOR\"\n": "",
	} {
		c, err := Parse([]byte(expand(text)), "x.toml")
		if err != nil || c.Relay.Oxend != want {
			t.Errorf("%q: %q, %v", text, c.Relay.Oxend, err)
		}
	}
}

// TestErrors: what is wrong, on which line, and what is allowed.
func TestErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		// Unknown keys.
		{"\n[dns]\nlisen = []", `x.toml:3: dns.lisen: unknown key "lisen" in [dns]; the nearest known key is listen`},
		{"[paths]\nclient-hops = 3", `x.toml:2: paths.client-hops: unknown key "client-hops" in [paths]; the nearest known key is client_hops`},
		{"[log]\nupstream = []", `x.toml:2: log.upstream: unknown key "upstream" in [log]; the nearest known key is upstream in [dns]`},
		{"[tun]\ndata_dir = \"\"", `x.toml:2: tun.data_dir: unknown key "data_dir" in [tun]; the nearest known key is data_dir outside of all tables`},
		{"operator = \"\"", `x.toml:1: operator: unknown key "operator" outside of all tables; the nearest known key is operator in [network]`},
		{"[control]\nzzzzzzzz = 1", `x.toml:2: control.zzzzzzzz: unknown key "zzzzzzzz" in [control]; there are: socket, group`},
		{"[[service]]\nname = \"a\"\n[[service]]\nname = \"b\"\nport = []", `x.toml:5: service[1].port: unknown key "port" in [[service]]; the nearest known key is ports`},
		{"[path]\n", `x.toml:1: path: unknown table "path"; the nearest is [paths]`},
		{"[[services]]\n", `x.toml:1: services: unknown table "services"; the nearest is [[service]]`},
		{"[exit-node]\n", `x.toml:1: exit-node: unknown table "exit-node"; there are: [network], [client], [paths], [tun], [dns], [proxy], [[service]], [relay], [control], [log], [metrics]`},
		{"[dns.upstreams]\n", `x.toml:1: dns.upstreams: unknown table "upstreams" in [dns]: there are no tables in it`},
		{"Role = \"client\"", `x.toml:1: Role: unknown key "Role" outside of all tables; the nearest known key is role`},
		// Syntax.
		{"\nrole = client", `x.toml:2: expected value but found "client" instead`},
		{"a = 1\na = 2", `x.toml:2: Key 'a' has already been defined.`},
		{"x = \"" + strings.Repeat("a", MaxFile), "x.toml: larger than 1048576 bytes"},
		{"x = " + strings.Repeat("[", 17), "x.toml: nested deeper than 16 levels"},
		{strings.Repeat("a.", 17) + "b = 1", "x.toml: nested deeper than 16 levels"},
		// Kinds of values.
		{"role = 1", "x.toml:1: role: want a text in quotes, got the number 1"},
		{"role = 2026-01-01", "x.toml:1: role: want a text in quotes, got a time"},
		{"[log]\nlevel = 3.5", "x.toml:2: log.level: want a text in quotes, got the number 3.5"},
		{"network = 3", "x.toml:1: network: want a table, got the number 3"},
		{"[[network]]\n", "x.toml:1: network: want a table, got tables"},
		{"[service]\nname = \"x\"", "x.toml:1: service: want tables, each begun with [[service]], got a table"},
		{"service = [1]", "x.toml:1: service[0]: want a table, got the number 1"},
		{"[paths]\nprofiling = \"yes\"", "x.toml:2: paths.profiling: want true or false, got a text"},
		{"[paths]\nclient_hops = 3.0", "x.toml:2: paths.client_hops: want a whole number, got the number 3"},
		{"[paths]\nping_interval = 5", `x.toml:2: paths.ping_interval: want a duration in quotes like "5s", got the number 5`},
		{"[dns]\nlisten = \"127.0.0.1\"", "x.toml:2: dns.listen: want a list in brackets, got a text"},
		{"[dns]\nlisten = [true]", "x.toml:2: dns.listen[0]: want an address in quotes, got true"},
		{"[network]\noperator = []", "x.toml:2: network.operator: want a public key in quotes, got a list"},
		// Words.
		{"role = \"server\"", `x.toml:1: role: "server": want "client" or "relay"`},
		{"[network]\nsuffix = \".loki\"", `x.toml:2: network.suffix: ".loki": want "loki" or "sesh"`},
		{"[log]\nformat = \"xml\"", `x.toml:2: log.format: "xml": want "auto" or "text" or "json"`},
		{"[log]\nlevel = \"*=trace\"", `x.toml:2: log.level: level "trace": want debug, info, warn or error, in a list like "*=info,dns=debug"`},
		{"[metrics]\nlisten = \"192.0.2.1\"", "x.toml:2: metrics.listen: 192.0.2.1:9190: want an address of loopback, such as 127.0.0.1:9190; figures are for this host only"},
		{"[metrics]\nsocket = \"/run/lokinetd/lokinetd.sock\"", "x.toml:2: metrics.socket: is the socket of control already"},
		{"[metrics]\nsocket = \"/" + strings.Repeat("a", 107) + "\"", "x.toml:2: metrics.socket: 108 bytes: a socket's path may have at most 107"},
		{"[log]\nlevel = \"dnss=info\"", `x.toml:2: log.level: module "dnss": want * or one of control, dns, link, netdb, netif, oxend, path, proxy, router, session`},
		{"data_dir = \"\"", "x.toml:1: data_dir: must not be empty"},
		{"data_dir = \"a\\u0000b\"", "x.toml:1: data_dir: holds a control character"},
		// Secrets.
		{"[client]\nkey = \"" + strings.Repeat("ab", 64) + "\"", "x.toml:2: client.key: want the path of a file: keys do not belong into this one (and a secret key that stood here must be replaced)"},
		// Keys.
		{"[network]\nfile = \"n\"\noperator = \"abc\"", "x.toml:3: network.operator: want a public key of 64 hexadecimal digits or 52 base32z characters, which may end in .snode"},
		{"[network]\nfile = \"n\"", "x.toml:1: network.operator: must be set with network.file: the key that signed it, as the operator's `lokinetd key show` prints it"},
		{"[network]\nname = \"lokinet\"", `x.toml:2: network.name: "lokinet": want "session-router" or "mainnet" or "testnet"`},
		{"[network]\nname = \"testnet\"\nfile = \"n\"\noperator = \"OPERATOR\"", "x.toml:2: network.name: has a meaning only without network.file, which says itself what network it is of"},
		{"[network]\noperator = \"OPERATOR\"", "x.toml:2: network.operator: has a meaning only with network.file"},
		{"[paths]\nblacklist = [\"RELAYA\",\n\"RELAYB\", \"RELAYA.snode\"]", "x.toml:2: paths.blacklist[2]: is the same as paths.blacklist[0]"},
		{"[paths]\nblacklist = [\"RELAYA.loki\"]", "x.toml:2: paths.blacklist[0]: want a public key of 64 hexadecimal digits or 52 base32z characters, which may end in .snode"},
		{"[paths]\nblacklist = [\"\"]", "x.toml:2: paths.blacklist[0]: must not be empty"},
		{"[paths]\nblacklist = [\"RELAYA\"]\nstrict_edges = [\"RELAYA\"]", "x.toml:3: paths.strict_edges[0]: is on the blacklist too"},
		{"[paths]\nstrict_edges = [\"RELAYA\"]\nrelay_hops = 1", "x.toml:3: paths.relay_hops: 1 hop and strict_edges exclude each other: the only hop would have to be the relay at the other end"},
		// Bounds.
		{"[paths]\nclient_hops = 0", "x.toml:2: paths.client_hops: 0 is out of range: want 1 to 8"},
		{"[paths]\nclient_hops = 9", "x.toml:2: paths.client_hops: 9 is out of range: want 1 to 8"},
		{"[paths]\nunique_range_size = 3", "x.toml:2: paths.unique_range_size: 3 is out of range: want 0 (off) or 4 to 32"},
		{"[paths]\nping_interval = \"999ms\"", "x.toml:2: paths.ping_interval: 999ms is out of range: want 1s to 5m"},
		{"[paths]\nping_interval = \"5\"", `x.toml:2: paths.ping_interval: "5" is not a duration: want a number and a unit like "500ms", "5s" or "1m30s"`},
		{"[paths]\nmin_expiry = \"301s\"", "x.toml:2: paths.min_expiry: 5m1s is more than acceptable_expiry, which is 5m0s"},
		// Interface and ranges.
		{"[tun]\nname = \"sixteen-bytes-is\"", `x.toml:2: tun.name: "sixteen-bytes-is": want the name of an interface: 1 to 15 bytes without blanks, colons and slashes, in which a %d stands for a free number`},
		{"[tun]\nname = \"%d%d\"", `x.toml:2: tun.name: "%d%d": want the name of an interface: 1 to 15 bytes without blanks, colons and slashes, in which a %d stands for a free number`},
		{"[tun]\nipv4 = \"off\"", `x.toml:2: tun.ipv4: want "auto" or a range: only IPv6 can be off`},
		{"[tun]\nipv4 = \"8.8.8.0/24\"", "x.toml:2: tun.ipv4: 8.8.8.1/24: want a part of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 or 198.18.0.0/15: other addresses belong to somebody"},
		{"[tun]\nipv4 = \"10.0.0.0/31\"", "x.toml:2: tun.ipv4: 10.0.0.1/31: want a length of /8 to /30"},
		{"[tun]\nipv4 = \"10.0.0.255/24\"", "x.toml:2: tun.ipv4: 10.0.0.255/24: that is the broadcast address of the range: want another host as our address"},
		{"[tun]\nipv4 = \"255.255.255.255/32\"", "x.toml:2: tun.ipv4: 255.255.255.255/32: want a part of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 or 198.18.0.0/15: other addresses belong to somebody"},
		{"[tun]\nipv4 = \"fd00::/64\"", "x.toml:2: tun.ipv4: fd00::1/64: want an IPv4 range"},
		{"[tun]\nipv6 = \"10.0.0.0/16\"", "x.toml:2: tun.ipv6: 10.0.0.1/16: want an IPv6 range"},
		{"[tun]\nipv6 = \"fd00::/65\"", "x.toml:2: tun.ipv6: fd00::1/65: want a length of /16 to /64"},
		{"[tun]\nipv6 = \"2001:db8::/64\"", "x.toml:2: tun.ipv6: 2001:db8::1/64: want a part of fc00::/7"},
		{"[tun]\nipv6 = \"on\"", `x.toml:2: tun.ipv6: want "auto", "off" or a range like "10.1.0.1/16"`},
		// Addresses.
		{"[dns]\nlisten = []", "x.toml:2: dns.listen: must not be empty; to have no name server, set enabled = false"},
		{"[dns]\nlisten = [\"localhost\"]", `x.toml:2: dns.listen[0]: "localhost": want an IP address with a port, like "192.0.2.1:53" or "[2001:db8::1]:53"`},
		{"[dns]\nlisten = [\"127.0.0.1:0\"]", `x.toml:2: dns.listen[0]: "127.0.0.1:0": want a plain IP address and a port of 1 to 65535`},
		{"[dns]\nlisten = [\"127.0.0.1\", \"127.0.0.1:53\"]", "x.toml:2: dns.listen[1]: is the same as dns.listen[0]"},
		{"[dns]\nupstream = [\"127.3.2.1\"]", "x.toml:2: dns.upstream[0]: 127.3.2.1:53 is this name server itself (dns.listen)"},
		{"[dns]\nupstream = [\"0.0.0.0\"]", "x.toml:2: dns.upstream[0]: 0.0.0.0:53: want the address of a resolver"},
		{"role = \"relay\"\n[relay]\nlisten = \"[::1]:1190\"", "x.toml:3: relay.listen: [::1]:1190: want an IPv4 address"},
		{"role = \"relay\"\n[relay]\npublic_address = \"0.0.0.0:1190\"", "x.toml:3: relay.public_address: 0.0.0.0:1190: want the address of one host"},
		{"role = \"relay\"\n[relay]\noxend = \"tcp://127.0.0.1:1\"", `x.toml:3: relay.oxend: "tcp://127.0.0.1:1": want "ipc://" and the absolute path of oxend's socket`},
		{"role = \"relay\"\n[relay]\noxend = \"ipc://x.sock\"", `x.toml:3: relay.oxend: "ipc://x.sock": want "ipc://" and the absolute path of oxend's socket`},
		{"role = \"relay\"\n[relay]\noxend = \"ipc:///" + strings.Repeat("s", 107) + "\"", "x.toml:3: relay.oxend: 108 bytes: a socket's path may have at most 107"},
		{"role = \"relay\"\n[relay]\nkey = \"k\"", "x.toml:3: relay.key: has a meaning only with network.file: on the public network oxend holds the relay's key"},
		{"role = \"relay\"\n[network]\nfile = \"n\"\noperator = \"OPERATOR\"\n[relay]\noxend = \"ipc:///x\"", "x.toml:6: relay.oxend: has a meaning only without network.file: a private network needs no oxend"},
		// Services.
		{"[[service]]\nports = [\"tcp/80\"]", `x.toml:1: service[0].name: "": want 1 to 32 of a-z, 0-9 and inner hyphens`},
		{"[[service]]\nname = \"Blog\"", `x.toml:2: service[0].name: "Blog": want 1 to 32 of a-z, 0-9 and inner hyphens`},
		{"[[service]]\nname = \"a\"\n\n[[service]]\nname = \"a\"\nkey = \"k\"", `x.toml:5: service[1].name: "a" is the name of service[0] already`},
		{"[[service]]\nname = \"a\"\nkey = \"k\"\n[[service]]\nname = \"b\"\nkey = \"./k\"", "x.toml:6: service[1].key: k is the key file of service[0].key already"},
		{"[[service]]\nname = \"a\"\nports = [\n \"tcp/80\",\n \"80\"]", `x.toml:3: service[0].ports[1]: want "tcp/PORT" or "udp/PORT", with a port of 1 to 65535`},
		{"[[service]]\nname = \"a\"\nports = [\"tcp/65536\"]", `x.toml:3: service[0].ports[0]: want "tcp/PORT" or "udp/PORT", with a port of 1 to 65535`},
		{"[[service]]\nname = \"a\"\nmax_sessions = 0", "x.toml:3: service[0].max_sessions: 0 is out of range: want 1 to 65536"},
		{"[[service]]\nname = \"a\"\nmax_new_sessions = \"5\"", "x.toml:3: service[0].max_new_sessions: want a whole number, got a text"},
		{"[[service]]\nname = \"a\"\nclients = [\"x\"]", "x.toml:3: service[0].clients: want a text in quotes, got a list"},
		{"[[service]]\nname = \"a\"\nforward = [\"80\"]", `x.toml:3: service[0].forward[0]: want "PORT -> ADDRESS:PORT" with the port of the service, "80" or "udp/53", and the local one, "127.0.0.1:8080"`},
		{"[[service]]\nname = \"a\"\nsrv = [\"_http._tcp 80\"]", `x.toml:3: service[0].srv[0]: want "_SERVICE._PROTO PRIORITY WEIGHT PORT [TARGET]" like "_http._tcp 10 0 80", with a target in .loki or .sesh if it is not the service itself, or "." for none`},
		{"[[service]]\nname = \"a\"\nsrv = [\"_http._tcp 0 0 1\", \"_HTTP._TCP 0 0 1 localhost.loki\"]", "x.toml:3: service[0].srv[1]: is the same as service[0].srv[0]"},
		{"[[service]]\nname = \"a\"\nforward = [\"80 -> 127.0.0.1\"]", `x.toml:3: service[0].forward[0]: want "PORT -> ADDRESS:PORT" with the port of the service, "80" or "udp/53", and the local one, "127.0.0.1:8080"`},
		{"[[service]]\nname = \"a\"\nforward = [\"80 -> localhost:80\"]", `x.toml:3: service[0].forward[0]: want "PORT -> ADDRESS:PORT" with the port of the service, "80" or "udp/53", and the local one, "127.0.0.1:8080"`},
		{"[[service]]\nname = \"a\"\nforward = [\"0 -> 127.0.0.1:80\"]", `x.toml:3: service[0].forward[0]: want "PORT -> ADDRESS:PORT" with the port of the service, "80" or "udp/53", and the local one, "127.0.0.1:8080"`},
		{"[[service]]\nname = \"a\"\nforward = [\"80 -> 127.0.0.1:0\"]", `x.toml:3: service[0].forward[0]: want "PORT -> ADDRESS:PORT" with the port of the service, "80" or "udp/53", and the local one, "127.0.0.1:8080"`},
		{"[[service]]\nname = \"a\"\nforward = [\"sctp/80 -> 127.0.0.1:80\"]", `x.toml:3: service[0].forward[0]: want "PORT -> ADDRESS:PORT" with the port of the service, "80" or "udp/53", and the local one, "127.0.0.1:8080"`},
		{"[[service]]\nname = \"a\"\nforward = [\"80 -> 0.0.0.0:80\"]", "x.toml:3: service[0].forward[0]: 0.0.0.0: want the address of one host"},
		{"[[service]]\nname = \"a\"\nports = [\"tcp/80\"]\nforward = [\"80 -> 127.0.0.1:80\"]", "x.toml:4: service[0].forward[0]: tcp/80 is a port of the service already"},
		{"[[service]]\nname = \"a\"\nports = [\"tcp/80\", \"tcp/80\"]", "x.toml:3: service[0].ports[1]: is the same as service[0].ports[0]"},
		// Roles.
		{"role = \"relay\"\n[[service]]\nname = \"a\"", `x.toml:2: service: [[service]] has no effect with role = "relay": remove what it sets, or change the role`},
		{"role = \"relay\"\n\n[dns]\nenabled = false", `x.toml:3: dns: [dns] has no effect with role = "relay": remove what it sets, or change the role`},
		{"[relay]\npublic_address = \"192.0.2.1:1\"", `x.toml:1: relay: [relay] has no effect with role = "client": remove what it sets, or change the role`},
		// Control.
		{"[control]\nsocket = \"\"", "x.toml:2: control.socket: must not be empty"},
		{"[control]\nsocket = \"/" + strings.Repeat("s", 107) + "\"", "x.toml:2: control.socket: 108 bytes: a socket's path may have at most 107"},
		{"[control]\ngroup = \"a b\"", `x.toml:2: control.group: "a b": want the name of a group`},
		// All of them at once, in the order of lines.
		{"role = \"x\"\n[dns]\nlisen = []\n[paths]\nclient_hops = 9\noutbound_paths = 9", `x.toml:1: role: "x": want "client" or "relay"
x.toml:3: dns.lisen: unknown key "lisen" in [dns]; the nearest known key is listen
x.toml:5: paths.client_hops: 9 is out of range: want 1 to 8
x.toml:6: paths.outbound_paths: 9 is out of range: want 1 to 4`},
	} {
		conf, err := Parse([]byte(expand(c.text)), "x.toml")
		if err == nil || conf != nil {
			t.Errorf("%.80s: no error", c.text)
			continue
		}
		var all Errors
		if !errors.As(err, &all) {
			t.Errorf("%.80s: %T", c.text, err)
		}
		if got := fold(err.Error()); got != c.want {
			t.Errorf("%.80q\n got %s\nwant %s", c.text, got, c.want)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "none.toml")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	path := filepath.Join(dir, "lokinetd.toml")
	os.WriteFile(path, []byte("data_dir = \"d\"\n"), 0o600)
	c, err := Load(path)
	if err != nil || c.DataDir != filepath.Join(dir, "d") {
		t.Errorf("%+v %v", c, err)
	}
	os.WriteFile(path, make([]byte, MaxFile+1), 0o600)
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Error(err)
	}
}

func TestDiff(t *testing.T) {
	a, _ := Parse([]byte("[log]\nlevel = \"dns=debug\"\n"), "x")
	b, _ := Parse([]byte("[dns]\nupstream = [\"9.9.9.9\"]\nlisten = [\"127.0.0.1\"]\n[[service]]\nname = \"a\"\n"), "x")
	want := []Change{{"dns.listen", false}, {"dns.upstream", true}, {"service", true}, {"log.level", true}}
	if got := Diff(a, b); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := Diff(b, b); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

// TestExample holds packaging/lokinetd.toml and the types together: it sets nothing; with every key that stands in it set, it is still the default and one service;
// each key stands in it exactly once, behind a comment that tells its bounds, its words, and whether a reload suffices.
func TestExample(t *testing.T) {
	raw, err := os.ReadFile("../packaging/lokinetd.toml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(raw, "lokinetd.toml")
	if err != nil || !reflect.DeepEqual(c, Default()) {
		t.Errorf("as it is: %v\n%+v", err, c)
	}

	setting := regexp.MustCompile(`^#(\[|[a-z0-9_]+ =)`)
	var set []string
	found := map[string]string{} // key: the comment in front of it
	table, comment := "", ""
	for n, line := range strings.Split(string(raw), "\n") {
		if len(line) > 132 {
			t.Errorf("line %d is %d characters long", n+1, len(line))
		}
		switch {
		case setting.MatchString(line):
			line = line[1:]
		case strings.HasPrefix(line, "# "):
			comment += line[1:]
		case line == "":
			comment = ""
		}
		set = append(set, line)
		switch {
		case strings.HasPrefix(line, "["):
			table = strings.Trim(line, "[]") + "."
		case line != "" && line[0] != '#':
			k := table + strings.Fields(line)[0]
			if _, ok := found[k]; ok {
				t.Errorf("%s stands there twice", k)
			}
			if found[k] = comment; comment == "" {
				t.Errorf("%s is not explained", k)
			}
		}
	}
	c, err = Parse([]byte(strings.Join(set, "\n")), "/etc/lokinetd/lokinetd.toml")
	want := Default()
	want.Service = []Service{{Name: "blog", Key: "/var/lib/lokinetd/service-blog.key", Ports: []Port{{"tcp", 80}}, MaxSessions: 4096, MaxNewSessions: 100}}
	if err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("with all keys set: %v\n got %+v\nwant %+v", err, c, want)
	}

	fields := fieldsOf("", reflect.TypeFor[Config]())
	for k := range found {
		if _, ok := fields[k]; !ok {
			t.Errorf("%s does not exist", k)
		}
	}
	for k, tag := range fields {
		text, ok := found[k]
		if !ok {
			t.Errorf("%s is missing", k)
			continue
		}
		if b := tag.Get("bounds"); b != "" && k != "paths.unique_range_size" && !strings.Contains(text, rangeText(tag)) {
			t.Errorf("%s: the comment does not say %q", k, rangeText(tag))
		}
		for _, w := range strings.Fields(tag.Get("oneof")) {
			if !strings.Contains(text, `"`+w+`"`) {
				t.Errorf("%s: the comment does not say %q", k, w)
			}
		}
		if says := strings.Contains(text, "(reload)"); says != (tag.Get("reload") != "") {
			t.Errorf("%s: the comment says reload: %t", k, says)
		}
	}
	if !strings.Contains(found["log.level"], strings.Join(Modules, ", ")) {
		t.Errorf("log.level: the comment does not list the modules")
	}
}

func fieldsOf(path string, typ reflect.Type) map[string]reflect.StructTag {
	all := map[string]reflect.StructTag{}
	for i := range typ.NumField() {
		f := typ.Field(i)
		at := join(path, f.Tag.Get("toml"))
		if sub, ok := tableType(f.Type); ok {
			for k, tag := range fieldsOf(at, sub) {
				all[k] = tag
			}
		} else {
			all[at] = f.Tag
		}
	}
	return all
}

// TestTags: every field has its name, and every tag is one that decode.go knows.
func TestTags(t *testing.T) {
	known := regexp.MustCompile(`^toml:"[a-z0-9_]+"( (bounds|oneof|port|path|reload):"[^"]+")*$`)
	for k, tag := range fieldsOf("", reflect.TypeFor[Config]()) {
		if !known.MatchString(string(tag)) {
			t.Errorf("%s: tags %s", k, tag)
		}
	}
}

// TestLines: the scanner against all that TOML's strings, comments and tables can hide.
func TestLines(t *testing.T) {
	text := `# [no]
a = "x # ] \" [" # c = 1
"b".'c' . d = ['x', # [[no]]
  "]", """
[no]
k = 1
\""" """, '''
[no]'''] # end
[ t . u ]  # [no]
k = { x = 1, y = "}" }
l = 1979-05-27 07:32:00
[[s]]
k = 1
[[s]]
k = """"quoted""""
m = ''
[s.t]
n = 1
[[s.u]]
o = 1`
	want := lines{
		"a": 2, "b": 3, "b.c": 3, "b.c.d": 3, "t.u": 9, "t.u.k": 10, "t.u.l": 11,
		"s[0]": 12, "s[0].k": 13, "s[1]": 14, "s[1].k": 15, "s[1].m": 16, "s[1].t": 17, "s[1].t.n": 18, "s[1].u[0]": 19, "s[1].u[0].o": 20,
	}
	got, err := scanLines(text)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %v %v\nwant %v", got, err, want)
	}
	for k, n := range map[string]int{"t.u.k.x": 10, "s[1].k[3]": 15, "s[7].k": 12, "nothing.x": 0, "b.c.d[2].x": 3} {
		if got.of(k) != n {
			t.Errorf("%s: line %d, want %d", k, got.of(k), n)
		}
	}
	if _, err := toml.Decode(text, new(map[string]any)); err != nil {
		t.Errorf("the library does not think that this is TOML: %v", err)
	}
}

// FuzzParse feeds any file. The threat is an administrator's mistake or a file that another program made: no crash, no endless work, and what is accepted keeps its
// promises. What the scanner of lines makes of a well-formed file has every key that the library found.
//
// Decoders: Parse ParseWith parse decoder.decode decoder.table decoder.value decoder.list decoder.text decoder.unknown parseAddrPort Range.UnmarshalText Range.check
// Decoders: Port.UnmarshalText Forward.UnmarshalText SRV.UnmarshalText srvLabel ParseLevels Levels.UnmarshalText parseKey scanLines resolve scanner.next
// Decoders: scanner.peek scanner.accept scanner.skipBlank scanner.skipLine scanner.key scanner.skipValue scanner.skipString
func FuzzParse(f *testing.F) {
	example, err := os.ReadFile("../packaging/lokinetd.toml")
	if err != nil {
		f.Fatal(err)
	}
	for part := range strings.SplitSeq(string(example), "\n\n\n") { // short ones: the fuzzer is slow to shorten what it finds
		settings := regexp.MustCompile(`(?m)^# .*\n`).ReplaceAllString(part+"\n", "")
		f.Add(regexp.MustCompile(`(?m)^#([a-z\[])`).ReplaceAllString(settings, "$1"))
	}
	f.Add("[[service]]\nname = \"a\"\nports = [\"tcp/80\"]\n[[service]]\nname = 'b'\n")
	f.Add("a.\"b\" = '''x\n''' # c\n[t]\nk = {x = [1, 2]}\n")
	f.Add(expand("[network]\nfile = 'x'\noperator = 'HEX'\n[paths]\nstrict_edges = ['RELAYA.snode']\n"))
	one := func(table, key string, values ...string) {
		for _, v := range values {
			f.Add(expand("[" + table + "]\n" + key + " = " + v + "\n"))
			f.Add(expand("[[" + table + "]]\n" + key + " = [" + v + "]\n"))
		}
	}
	one("paths", "min_expiry", `"5s"`, `5`, `"5"`, `"11m"`)
	one("paths", "client_hops", `3`, `0`, `9`, `"3"`)
	one("paths", "profiling", `true`, `1`)
	one("paths", "strict_edges", `["RELAYA.snode"]`, `["RELAYA.snode", "RELAYA.snode"]`, `[""]`, `[]`, `"x"`, `[5]`)
	one("network", "operator", `"HEX"`, `""`, `"x"`, `5`)
	one("network", "file", `"f"`, `"/f"`, `""`, `5`, `"HEX"`, `"\u0007"`)
	one("network", "name", `"testnet"`, `"other"`)
	one("relay", "public_address", `""`, `"192.0.2.1"`, `"192.0.2.1:5"`, `"192.0.2.1:0"`, `"[::ffff:1.2.3.4]:5"`, `"[::1]"`, `"x"`, `5`)
	one("tun", "ipv4", `"auto"`, `"off"`, `"10.1.0.0/16"`, `"10.1.0.1/16"`, `"8.0.0.1/16"`, `"10.0.0.1/7"`, `"10.1.255.255/16"`, `"fd00::1/64"`, `"x"`, `5`)
	one("tun", "ipv6", `"fd00::1/64"`, `"fd00::1/96"`, `"2001:db8::1/64"`, `"10.1.0.1/16"`)
	one("log", "level", `"info"`, `"debug,router/path=warn"`, `"x"`, `"info,x"`, `"info,=warn"`, `"info,a=x"`, `"info,a=warn,a=warn"`, `"warn,info"`)
	one("dns", "upstream", `["192.0.2.1", "192.0.2.2:5353"]`, `[5]`)
	for _, s := range []string{
		`srv = ["_http._tcp 10 0 80"]`, `srv = ["_http._tcp 10 0 80 ."]`, `srv = ["_http._tcp 10 0 0 ."]`, `srv = ["_http._tcp 10 0 0"]`, `srv = ["_http._tcp 10 0 80 x.loki"]`, `srv = ["_http._tcp 10 0 80 localhost.loki"]`,
		`srv = ["_http._tcp 10 0 80 x.snode"]`, `srv = ["_http._tcp 10 0 80 example.com"]`, `srv = ["_http._tcp 10 0 x"]`, `srv = ["_http 10 0 80"]`, `srv = ["_ht!p._tcp 10 0 80"]`, `srv = ["_http._tcp"]`,
		`forward = ["80 -> 127.0.0.1:80"]`, `forward = ["udp/53 -> 127.0.0.1:53"]`, `forward = ["x -> 127.0.0.1:53"]`, `forward = ["80 -> 0.0.0.0:53"]`, `forward = ["80"]`, `ports = ["tcp/80", "tcp/x", "x"]`, `ports = 5`, `unknown = 1`, `clients = "c"`,
	} {
		f.Add("[[service]]\nname = \"a\"\n" + s + "\n")
	}
	f.Add("service = 5\n")
	f.Add("dns = 5\n")
	f.Add("a = \n")
	f.Add("\xff")
	f.Add("[dns]\n[dns]\n")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1<<14 {
			return
		}
		ParseWith([]byte(text), "x.toml", func(c *Config) { c.Role = RoleRelay })
		c, err := Parse([]byte(text), "/etc/lokinetd/lokinetd.toml")
		if (c == nil) == (err == nil) {
			t.Fatal("neither a configuration nor an error, or both")
		}
		if err != nil {
			var all Errors
			if !errors.As(err, &all) || len(all) == 0 || all.Error() == "" {
				t.Fatalf("%T", err)
			}
			for _, e := range all {
				if e.Line > strings.Count(text, "\n")+1 {
					t.Fatalf("line %d: %v", e.Line, e)
				}
			}
		} else {
			p := c.Paths
			if p.ClientHops < 1 || p.ClientHops > 8 || p.RelayHops < 1 || p.RelayHops > 8 || p.InboundHops < 1 || p.InboundHops > 8 || p.MinExpiry > p.AcceptableExpiry ||
				!filepath.IsAbs(c.DataDir) || !filepath.IsAbs(c.Control.Socket) || !c.Relay.Listen.IsValid() || c.TUN.Name == "" || (c.Role != RoleClient && c.Role != RoleRelay) {
				t.Fatalf("accepted: %+v", c)
			}
			if again, err := ParseLevels(c.Log.Level.String()); err != nil || !reflect.DeepEqual(again, c.Log.Level) {
				t.Fatalf("levels %v", c.Log.Level)
			}
			for _, r := range []Range{c.TUN.IPv4, c.TUN.IPv6} {
				var again Range
				if err := again.UnmarshalText([]byte(r.String())); err != nil || again != r {
					t.Fatalf("range %v becomes %v %v", r, again, err)
				}
			}
		}
		tree := make(map[string]any)
		if _, err := toml.Decode(text, &tree); err == nil {
			l, err := scanLines(text)
			if err != nil {
				return
			}
			for k, v := range tree {
				if strings.ContainsAny(k, "\"'\\.[]\n\t") || k == "" { // names that are written in other ways than one
					continue
				}
				_, one := l[k]
				_, many := l[k+"[0]"]
				if _, table := v.(map[string]any); !one && !many && !table {
					t.Fatalf("no line of %q in %v", k, l)
				}
			}
		}
	})
}
