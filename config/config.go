// Package config turns the daemon's TOML file into a checked, typed Config.
//
// It reads one file and nothing else: whether the files, interfaces, groups and addresses that it names exist is found out by whoever uses
// them. No secret stands in the file: keys of our own are paths. packaging/lokinetd.toml explains every key to people; a test holds it and
// the types below together.
//
// Each key is a field with its name in the tag toml. Further tags are the rules that decode.go applies:
//
//	bounds:"1..8"      numbers and durations, both ends included; one end may be left out
//	oneof:"a b"        the words allowed
//	port:"53"          the port of an address that is written without one; without this tag an address needs its port
//	path:"file"        a path; a relative one counts from the directory of the configuration file
//	reload:"yes"       takes effect on a reload, without a restart
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"lokinetd/router/key"
)

// Roles.
const (
	RoleClient = "client"
	RoleRelay  = "relay"
)

// The public networks.
const (
	Mainnet = "session-router"
	Testnet = "testnet"
)

// Config is all that can be configured. Every field has been checked; lists may be empty.
type Config struct {
	Role    string    `toml:"role" oneof:"client relay"`
	DataDir string    `toml:"data_dir" path:"dir"`
	Network Network   `toml:"network"`
	Client  Client    `toml:"client"`
	Paths   Paths     `toml:"paths"`
	TUN     TUN       `toml:"tun"`
	DNS     DNS       `toml:"dns"`
	Proxy   Proxy     `toml:"proxy"`
	Service []Service `toml:"service"`
	Relay   Relay     `toml:"relay"`
	Control Control   `toml:"control"`
	Log     Log       `toml:"log"`
	Metrics Metrics   `toml:"metrics"`
}

// Network says which network is joined. With File it is a private one (design section 5); without, the public one, found through Bootstrap.
type Network struct {
	Name      string     `toml:"name" oneof:"session-router mainnet testnet"` // of the public networks, without File; mainnet is session-router
	File      string     `toml:"file" path:"file"`                            // "NAME.network"; "": none
	Operator  key.Public `toml:"operator"`                                    // whose signature File bears; zero without File
	Bootstrap []string   `toml:"bootstrap" path:"file"`                       // files with signed relay contacts
	Suffix    string     `toml:"suffix" oneof:"loki sesh"`
}

// Client is about the endpoint that this host's programs use.
type Client struct {
	Key string `toml:"key" path:"file"` // "": a new identity at each start
}

// Paths are the options of protocol 4 section 10 [paths]. Clients only: relays build no paths.
type Paths struct {
	EdgeConnections   int           `toml:"edge_connections" bounds:"1..64"`    // not more than strict edges, if there are any
	OutboundPaths     int           `toml:"outbound_paths" bounds:"1..4"`       // for each remote that is called
	ClientHops        int           `toml:"client_hops" bounds:"1..8"`          // of a path to another client's pivot
	RelayHops         int           `toml:"relay_hops" bounds:"1..8"`           // of a path to a relay; client_hops + 1, at most 8
	InboundPaths      int           `toml:"inbound_paths" bounds:"1..10"`       // on which others reach us, and on which we ask
	InboundHops       int           `toml:"inbound_hops" bounds:"1..8"`         // client_hops
	InboundPivotReuse int           `toml:"inbound_pivot_reuse" bounds:"1..10"` // inbound paths that may end at one relay
	UniqueRangeSize   int           `toml:"unique_range_size" bounds:"0..32"`   // 0 or 4 to 32
	AcceptableExpiry  time.Duration `toml:"acceptable_expiry" bounds:"0s..10m"`
	MinExpiry         time.Duration `toml:"min_expiry" bounds:"0s..10m"` // not over AcceptableExpiry
	PingInterval      time.Duration `toml:"ping_interval" bounds:"1s..5m"`
	MaxMissedPings    int           `toml:"max_missed_pings" bounds:"0..100"`
	Profiling         bool          `toml:"profiling"`
	StrictEdges       []key.Public  `toml:"strict_edges"` // the only edges; empty: any relay
	Blacklist         []key.Public  `toml:"blacklist"`    // never used as a hop
}

// TUN is the network interface of a client.
type TUN struct {
	Name string `toml:"name"` // at most 15 bytes; a %d is replaced by the kernel
	IPv4 Range  `toml:"ipv4"`
	IPv6 Range  `toml:"ipv6"`
}

// DNS is the name server of a client.
type DNS struct {
	Enabled  bool             `toml:"enabled"`
	Listen   []netip.AddrPort `toml:"listen" port:"53"`
	Upstream []netip.AddrPort `toml:"upstream" port:"53" reload:"yes"` // for names that are not ours; empty: those are refused
	Host     string           `toml:"host" oneof:"auto off resolved delegate networkmanager resolvconf file"`
	Hold     bool             `toml:"hold"` // our names stay in while the daemon is stopped
}

// Proxy is where `lokinetd proxy` listens for programs of this host. Nothing else looks at it.
type Proxy struct {
	SOCKS []netip.AddrPort `toml:"socks" port:"1080"` // SOCKS5; empty: none
	HTTP  []netip.AddrPort `toml:"http" port:"1081"`  // HTTP CONNECT, and http:// by itself; empty: none
}

// Service is an endpoint with an address of its own that others can call.
type Service struct {
	Name           string    `toml:"name" reload:"yes"`                               // 1 to 32 of a-z, 0-9 and inner hyphens; unique
	Key            string    `toml:"key" path:"file" reload:"yes"`                    // made when it does not exist
	Ports          []Port    `toml:"ports" reload:"yes"`                              // all others are closed, but for those of Forward
	Forward        []Forward `toml:"forward" reload:"yes"`                            // what comes to these ports goes on to a local address
	Echo           bool      `toml:"echo" reload:"yes"`                               // answers ping
	Clients        string    `toml:"clients" path:"dir" reload:"yes"`                 // folder with a file for each client that may call; "": all may
	MaxSessions    int       `toml:"max_sessions" bounds:"1..65536" reload:"yes"`     // at a time, of callers
	MaxNewSessions int       `toml:"max_new_sessions" bounds:"1..10000" reload:"yes"` // calls a second that are looked at; four times as many at once
	SRV            []SRV     `toml:"srv" reload:"yes"`                                // published with the address
}

// Relay is about a relay.
type Relay struct {
	Listen        netip.AddrPort `toml:"listen" port:"1190"`
	PublicAddress netip.AddrPort `toml:"public_address" port:"1190"` // invalid: that of Listen, or of the interface
	Key           string         `toml:"key" path:"file"`            // of a private network's relay
	Rate          int            `toml:"rate" bounds:"0..100000"`    // Mbit/s of datagrams sent for paths; 0: no bound
	Oxend         string         `toml:"oxend"`                      // "ipc:///PATH", of the public network's relay, whose key it holds; "": DefaultOxend
}

// DefaultOxend is where an oxend listens by itself (protocol 2 section 8.1).
const DefaultOxend = "ipc:///var/lib/oxen/oxend.sock"

// Control is the socket that the command line talks to.
type Control struct {
	Socket string `toml:"socket" path:"file"`
	Group  string `toml:"group"` // whose members may use it beside root and the daemon's own user; "": nobody
}

// Log is what is logged and how.
type Log struct {
	Level  Levels `toml:"level" reload:"yes"`
	Format string `toml:"format" oneof:"auto text json"`
}

// Metrics is where a Prometheus server reads figures; nowhere unless asked for.
type Metrics struct {
	Listen netip.AddrPort `toml:"listen" port:"9190"` // on loopback; invalid: none
	Socket string         `toml:"socket" path:"file"` // for the group that may use the control socket; "": none
}

// Default is the configuration of an empty file.
func Default() *Config {
	c := defaults()
	c.finish()
	return c
}

func defaults() *Config {
	return &Config{
		Role:    RoleClient,
		DataDir: "/var/lib/lokinetd",
		Network: Network{Name: Mainnet, Suffix: key.TLDLoki},
		Paths: Paths{
			EdgeConnections: 4, OutboundPaths: 2, ClientHops: 3, InboundPaths: 4, InboundPivotReuse: 1,
			UniqueRangeSize: 24, AcceptableExpiry: 300 * time.Second, MinExpiry: 60 * time.Second,
			PingInterval: 5 * time.Second, MaxMissedPings: 5, Profiling: true,
		},
		TUN:     TUN{Name: "lokinet0"},
		DNS:     DNS{Enabled: true, Listen: []netip.AddrPort{netip.MustParseAddrPort("127.3.2.1:53")}, Host: "auto", Hold: true},
		Proxy:   Proxy{SOCKS: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1080")}, HTTP: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1081")}},
		Relay:   Relay{Listen: netip.MustParseAddrPort("0.0.0.0:1190")},
		Control: Control{Socket: "/run/lokinetd/lokinetd.sock", Group: "lokinet"},
		Log:     Log{Format: "auto"},
	}
}

// finish fills in what follows from other values.
func (c *Config) finish() {
	if c.Network.Name == "mainnet" {
		c.Network.Name = Mainnet
	}
	p := &c.Paths
	if p.RelayHops == 0 {
		p.RelayHops = min(p.ClientHops+1, 8)
	}
	if p.InboundHops == 0 {
		p.InboundHops = p.ClientHops
	}
	if n := len(p.StrictEdges); n > 0 {
		p.EdgeConnections = min(p.EdgeConnections, n)
	}
	if c.Relay.Oxend == "" && c.Role == RoleRelay && c.Network.File == "" {
		c.Relay.Oxend = DefaultOxend
	}
	if c.Relay.Key == "" {
		c.Relay.Key = filepath.Join(c.DataDir, "relay.key")
	}
	for i := range c.Service {
		s := &c.Service[i]
		if s.Key == "" {
			s.Key = filepath.Join(c.DataDir, "service-"+s.Name+".key")
		}
		if s.MaxSessions == 0 {
			s.MaxSessions = 4096
		}
		if s.MaxNewSessions == 0 {
			s.MaxNewSessions = 100
		}
	}
}

// MaxFile bounds a configuration file in bytes.
const MaxFile = 1 << 20

// Load reads and checks a file. The error is an Errors, or of the file system (fs.ErrNotExist and so on).
func Load(path string) (*Config, error) { return LoadWith(path, func(*Config) {}) }

// LoadWith is Load where adjust changes what is taken for what the file does not say. path "" is an empty file.
func LoadWith(path string, adjust func(*Config)) (*Config, error) {
	c := defaults()
	adjust(c)
	if path == "" {
		return parse(c, nil, path)
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no configuration: %w (--config FILE names another one)", err)
	} else if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return parse(c, data, path)
}

// Parse checks the content of a file. name is for errors, and relative paths count from its directory. The error is an Errors with all that is
// wrong; then there is no Config.
func Parse(data []byte, name string) (*Config, error) { return parse(defaults(), data, name) }

// ParseWith is Parse where adjust changes what is taken for what the file does not say.
func ParseWith(data []byte, name string, adjust func(*Config)) (*Config, error) {
	c := defaults()
	adjust(c)
	return parse(c, data, name)
}

func parse(c *Config, data []byte, name string) (*Config, error) {
	d := &decoder{file: name, dir: filepath.Dir(name)}
	if d.decode(data, c) {
		c.check(d)
		c.finish()
		c.checkTogether(d)
	}
	if len(d.errs) > 0 {
		slices.SortStableFunc(d.errs, func(a, b *Error) int { return cmp.Or(a.Line-b.Line, strings.Compare(a.Key, b.Key)) })
		return nil, d.errs
	}
	return c, nil
}

// Error is one thing that is wrong with a file.
type Error struct {
	File    string
	Line    int    // counted from 1; 0: of no line
	Key     string // "dns.listen", "service[1].name"; "" for a syntax error
	Message string // what is wrong and what is allowed
}

func (e *Error) Error() string {
	text := e.File
	if e.Line > 0 {
		text += ":" + strconv.Itoa(e.Line)
	}
	if e.Key != "" {
		text += ": " + e.Key
	}
	return text + ": " + e.Message
}

// Errors is all that is wrong with a file, in the order of lines.
type Errors []*Error

// Error gives one line for each.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, e := range e {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Change is a key that differs between two configurations.
type Change struct {
	Key    string // "dns.upstream"; "service" for any difference in services
	Reload bool   // it takes effect without a restart
}

// Diff lists the keys in which b differs from a, in the order of the struct.
func Diff(a, b *Config) []Change { return diff("", a, b) }
