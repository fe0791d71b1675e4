package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"lokinetd/router/key"
)

// Range is an address range for the TUN: chosen by the daemon, given, or none. The zero value is "auto".
type Range struct {
	Off    bool
	Prefix netip.Prefix // with our own address in it; invalid: chosen by the daemon
}

func (r Range) String() string {
	switch {
	case r.Off:
		return "off"
	case r.Prefix.IsValid():
		return r.Prefix.String()
	}
	return "auto"
}

// UnmarshalText reads auto, off or a range. A range that is written without a host part ("10.1.0.0/16") gets the first host as our address.
func (r *Range) UnmarshalText(text []byte) error {
	switch string(text) {
	case "auto":
		*r = Range{}
		return nil
	case "off":
		*r = Range{Off: true}
		return nil
	}
	p, err := netip.ParsePrefix(string(text))
	if err != nil {
		return errors.New(`want "auto", "off" or a range like "10.1.0.1/16"`)
	}
	if next := p.Addr().Next(); p.Addr() == p.Masked().Addr() && next.IsValid() {
		p = netip.PrefixFrom(next, p.Bits())
	}
	*r = Range{Prefix: p}
	return nil
}

// Ranges that a TUN may use: none that are routed in the Internet.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("fc00::/7"),
}

// check says what is wrong with r as a range of a family; "" for nothing (protocol 4 section 6.2).
func (r Range) check(v6 bool) string {
	p := r.Prefix
	if !p.IsValid() {
		return ""
	}
	inside := slices.ContainsFunc(private, func(a netip.Prefix) bool { return a.Bits() <= p.Bits() && a.Contains(p.Addr()) })
	switch {
	case p.Addr().Is6() != v6 || p.Addr().Is4In6():
		return map[bool]string{false: "want an IPv4 range", true: "want an IPv6 range"}[v6]
	case !inside && v6:
		return "want a part of fc00::/7"
	case !inside:
		return "want a part of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 or 198.18.0.0/15: other addresses belong to somebody"
	case v6 && (p.Bits() < 16 || p.Bits() > 64):
		return "want a length of /16 to /64"
	case !v6 && (p.Bits() < 8 || p.Bits() > 30):
		return "want a length of /8 to /30"
	case !v6 && !p.Contains(p.Addr().Next()):
		return "that is the broadcast address of the range: want another host as our address"
	}
	return ""
}

// Port is a port that a service opens, "tcp/80".
type Port struct {
	Proto  string // "tcp" or "udp"
	Number uint16 // 1 or more
}

func (p Port) String() string { return p.Proto + "/" + strconv.Itoa(int(p.Number)) }

// UnmarshalText reads "tcp/80" or "udp/53".
func (p *Port) UnmarshalText(text []byte) error {
	proto, number, _ := strings.Cut(string(text), "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 || proto != "tcp" && proto != "udp" || strconv.Itoa(int(n)) != number {
		return errors.New(`want "tcp/PORT" or "udp/PORT", with a port of 1 to 65535`)
	}
	*p = Port{proto, uint16(n)}
	return nil
}

// Forward is a port of a service and the local address that has what is to be reached at it, "tcp/80 -> 127.0.0.1:8080".
type Forward struct {
	Port Port
	To   netip.AddrPort
}

func (f Forward) String() string { return f.Port.String() + " -> " + f.To.String() }

// UnmarshalText reads "tcp/80 -> 127.0.0.1:8080". "80 -> 127.0.0.1:8080" is of TCP.
func (f *Forward) UnmarshalText(text []byte) error {
	port, to, _ := strings.Cut(string(text), "->")
	if port = strings.TrimSpace(port); !strings.Contains(port, "/") {
		port = "tcp/" + port
	}
	a, err := netip.ParseAddrPort(strings.TrimSpace(to))
	var p Port
	if err != nil || a.Port() == 0 || p.UnmarshalText([]byte(port)) != nil {
		return errors.New(`want "PORT -> ADDRESS:PORT" with the port of the service, "80" or "udp/53", and the local one, "127.0.0.1:8080"`)
	}
	*f = Forward{p, a}
	return nil
}

// checkForward looks at the forwards of a service.
func (s *Service) checkForward(d *decoder, at string) {
	for i, f := range s.Forward {
		if a := f.To.Addr(); a.IsUnspecified() || a.IsMulticast() {
			d.fault(fmt.Sprintf("%s[%d]", at, i), "%s: want the address of one host", a)
		}
		if slices.Contains(s.Ports, f.Port) || slices.ContainsFunc(s.Forward[:i], func(o Forward) bool { return o.Port == f.Port }) {
			d.fault(fmt.Sprintf("%s[%d]", at, i), "%s is a port of the service already", f.Port)
		}
	}
}

// Modules are the parts of the daemon that have a log level of their own.
var Modules = []string{"control", "dns", "link", "netdb", "netif", "oxend", "path", "proxy", "router", "session"}

// Levels is a log level for each module. The zero value is "*=info".
type Levels struct {
	all    slog.Level
	module map[string]slog.Level
}

// ParseLevels reads "*=info,dns=debug": a comma-separated list in which later parts win; a level without a module is for all, and replaces what was said about
// single modules before. Levels are debug, info, warn, error.
func ParseLevels(text string) (Levels, error) {
	var l Levels
	for part := range strings.SplitSeq(text, ",") {
		module, name, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			module, name = "*", module
		}
		module, name = strings.TrimSpace(module), strings.TrimSpace(name)
		var level slog.Level
		switch name {
		case "debug":
			level = slog.LevelDebug
		case "info":
			level = slog.LevelInfo
		case "warn":
			level = slog.LevelWarn
		case "error":
			level = slog.LevelError
		default:
			return Levels{}, fmt.Errorf(`level %q: want debug, info, warn or error, in a list like "*=info,dns=debug"`, name)
		}
		switch {
		case module == "*":
			l = Levels{all: level}
		case slices.Contains(Modules, module):
			if l.module == nil {
				l.module = make(map[string]slog.Level)
			}
			l.module[module] = level
		default:
			return Levels{}, fmt.Errorf("module %q: want * or one of %s", module, strings.Join(Modules, ", "))
		}
	}
	return l, nil
}

// UnmarshalText is ParseLevels.
func (l *Levels) UnmarshalText(text []byte) (err error) {
	*l, err = ParseLevels(string(text))
	return err
}

// Of gives the level of a module.
func (l Levels) Of(module string) slog.Level {
	if level, ok := l.module[module]; ok {
		return level
	}
	return l.all
}

// Lowest gives the level below which nothing of any module is logged.
func (l Levels) Lowest() slog.Level {
	low := l.all
	for _, level := range l.module {
		low = min(low, level)
	}
	return low
}

// String is a text that ParseLevels reads; for another list to be appended.
func (l Levels) String() string {
	text := "*=" + strings.ToLower(l.all.String())
	for _, m := range slices.Sorted(maps.Keys(l.module)) {
		text += "," + m + "=" + strings.ToLower(l.module[m].String())
	}
	return text
}

// parseKey reads a public key as people have it: 64 hexadecimal digits, 52 base32z characters, or the latter with .snode.
func parseKey(text string) (key.Public, error) {
	var p key.Public
	if len(text) == 2*len(p) {
		if b, err := hex.DecodeString(text); err == nil {
			copy(p[:], b)
			return p, p.Check()
		}
	}
	p, err := key.ParsePublic(strings.TrimSuffix(text, "."+key.TLDSnode))
	if err != nil {
		return p, errors.New("want a public key of 64 hexadecimal digits or 52 base32z characters, which may end in .snode")
	}
	return p, p.Check()
}

// looksSecret reports whether text is a secret key where a path belongs.
func looksSecret(text string) bool {
	_, err := hex.DecodeString(text)
	return err == nil && len(text) >= 64
}
