package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"lokinetd/router/control"
)

// redactor replaces what tells somebody from others by a number, the same for the same thing.
type redactor struct {
	aliases map[string]string // lower case
	counts  map[string]int
	words   []string // found as whole words only, the longest first
}

// newRedactor knows the names of this host and of its user.
func newRedactor() *redactor {
	r := &redactor{aliases: map[string]string{}, counts: map[string]int{}}
	if name, err := os.Hostname(); err == nil {
		r.word("host", name)
	}
	if u, err := user.Current(); err == nil && u.Uid != "0" && u.Username != "nobody" {
		r.word("user", u.Username)
		r.word("home", u.HomeDir)
	}
	for _, name := range []string{"SUDO_USER", "USER", "LOGNAME"} {
		if u := os.Getenv(name); u != "root" {
			r.word("user", u)
		}
	}
	return r
}

// alias is the number for something.
func (r *redactor) alias(kind, what string) string {
	id := strings.ToLower(what)
	if a, ok := r.aliases[id]; ok {
		return a
	}
	r.counts[kind]++
	a := fmt.Sprintf("%s-%d", kind, r.counts[kind])
	r.aliases[id] = a
	if begin := short(id); base32zKey.MatchString(id) && r.aliases[begin] == "" { // as people are shown them
		r.aliases[begin] = a
		r.addWord(begin)
	}
	return a
}

// word makes a word be replaced wherever it stands. Those of one or two letters are left, or nothing could be read any more.
func (r *redactor) word(kind, what string) {
	if len(what) < 3 || slices.Contains(r.words, what) {
		return
	}
	r.alias(kind, what)
	r.addWord(what)
}

func (r *redactor) addWord(what string) {
	r.words = append(r.words, what)
	slices.SortFunc(r.words, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
}

func (r *redactor) addrPort(a netip.AddrPort) string {
	if !a.IsValid() {
		return "(none)"
	}
	return fmt.Sprintf("%s port %d", r.addr(a.Addr()), a.Port())
}

func (r *redactor) addr(a netip.Addr) string {
	kind := "public-ip"
	switch a = a.Unmap(); {
	case a.IsLoopback(), a.IsUnspecified():
		return a.String()
	case a.IsPrivate(), a.IsLinkLocalUnicast():
		kind = "private-ip"
	}
	return r.alias(kind, a.WithZone("").String())
}

var (
	base32zKey = regexp.MustCompile(`(?i)[ybndrfg8ejkmcpqxot1uwisza345h769]{40,}`) // and what is cut off one
	hexKey     = regexp.MustCompile(`(?i)[0-9a-f]{16,}`)
	base64Text = regexp.MustCompile(`[A-Za-z0-9+/=_-]{32,}`)
	ownName    = regexp.MustCompile(`(?i)[a-z0-9_-]+(\.[a-z0-9_-]+)*\.(loki|snode|sesh)\b`)
	mayBeAddr  = regexp.MustCompile(`(?i)[0-9a-f:.]*[:.][0-9a-f:.]*(%[0-9a-z_-]+|/[0-9]+)?`)
	absPath    = regexp.MustCompile(`(^|[\s"'(=:])(/[^\s"'():;,]+)`)
	domainName = regexp.MustCompile(`(?i)\b[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?)*\.[a-z]{2,}\b`)
)

// openPaths are the folders whose files have names of systems and of ours, not of people.
var openPaths = []string{"/etc/lokinetd/lokinetd.toml", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/os-release", "/etc/NetworkManager/", "/etc/resolvconf", "/etc/systemd/",
	"/dev/net/tun", "/proc/", "/sys/", "/run/lokinetd/", "/run/systemd/", "/run/dbus/", "/run/NetworkManager/", "/lib/", "/usr/", "/var/lib/lokinetd/nodedb", "/metrics"}

// openEnds are the ends of files and settings of ours that look like names of hosts.
var openEnds = []string{"toml", "conf", "md", "service", "socket", "mode", "go", "signed", "sock", "hop", "min", "max", "core"}

// text replaces all that looks like a key, a name or an address in text for people.
func (r *redactor) text(s string) string {
	for _, w := range r.words {
		re := regexp.MustCompile(`(?i)(^|[^\pL\pN_-])(` + regexp.QuoteMeta(w) + `)($|[^\pL\pN_-])`)
		for again := ""; again != s; { // words that share the sign between them
			again = s
			s = re.ReplaceAllString(s, "${1}"+r.alias("", w)+"${3}")
		}
	}
	s = ownName.ReplaceAllStringFunc(s, func(m string) string { return r.alias("name", m) })
	for _, re := range []*regexp.Regexp{base32zKey, hexKey} {
		s = re.ReplaceAllStringFunc(s, func(m string) string { return r.alias("key", m) })
	}
	s = absPath.ReplaceAllStringFunc(s, func(m string) string {
		i := strings.IndexByte(m, '/')
		if slices.ContainsFunc(openPaths, func(p string) bool { return strings.HasPrefix(m[i:], p) }) && !strings.Contains(m, "..") {
			return m
		}
		return m[:i] + r.alias("path", m[i:])
	})
	s = base64Text.ReplaceAllStringFunc(s, func(m string) string {
		if !strings.ContainsAny(m, "0123456789") || strings.Contains(m, "/") {
			return m
		}
		return r.alias("text", m)
	})
	s = mayBeAddr.ReplaceAllStringFunc(s, r.maybeAddr)
	return domainName.ReplaceAllStringFunc(s, func(m string) string {
		table, _, _ := strings.Cut(m, ".")
		if end := m[strings.LastIndexByte(m, '.')+1:]; slices.Contains(openEnds, end) || isSetting(table) {
			return m
		}
		return r.alias("domain", m)
	})
}

// maybeAddr replaces an IP address, with or without a port and a prefix length, and leaves anything else.
func (r *redactor) maybeAddr(m string) string {
	end := strings.TrimRight(m, ".:")
	rest := m[len(end):]
	if p, err := netip.ParsePrefix(end); err == nil {
		return fmt.Sprintf("%s/%d%s", r.addr(p.Addr()), p.Bits(), rest)
	}
	if a, err := netip.ParseAddr(strings.TrimSuffix(m, ".")); err == nil { // "::" and "fe80::" too
		return r.addr(a) + m[len(strings.TrimSuffix(m, ".")):]
	}
	if a, err := netip.ParseAddr(end); err == nil {
		return r.addr(a) + rest
	}
	if a, err := netip.ParseAddrPort(end); err == nil {
		return fmt.Sprintf("%s:%d%s", r.addr(a.Addr()), a.Port(), rest)
	}
	return m
}

// isSetting says whether a word is a table of the configuration.
func isSetting(word string) bool {
	return slices.Contains([]string{"network", "client", "paths", "tun", "dns", "proxy", "relay", "control", "log", "metrics", "service"}, word)
}

// What of a status is left as it is, and what is text for people. All other texts become numbers, also those of fields that are yet to come.
var (
	openFields = []string{".Version", ".Role", ".State", ".Timeline.Name", ".Endpoints.Kind", ".NotRun.Kind", ".Paths.Kind", ".Paths.State", ".Sessions.Direction", ".Sessions.State",
		".Sessions.Handshake", ".DNS.Host.Method", ".Tun.Name"}
	textFields = []string{".Reason", ".NotRun.Reason", ".NotRun.Advice", ".Warnings", ".NotHidden", ".Endpoints.Ports", ".Edges.Address", ".Relay.PublicAddress", ".DNS.Listen", ".DNS.Upstream", ".DNS.Host.Why",
		".DNS.Host.Problem", ".DNS.Host.Advice", ".Proxy.SOCKS", ".Proxy.HTTP", ".Endpoints.IPv4", ".Endpoints.IPv6", ".Endpoints.Forwards"}
)

// status replaces in place. Names of services are remembered as words, for texts that hold them.
func (r *redactor) status(s *control.Status) {
	r.word("network", s.Network.Name)
	for i := range s.Endpoints {
		if e := &s.Endpoints[i]; e.Kind == "service" {
			r.word("service", e.Name)
		}
	}
	for _, x := range s.NotRun {
		if x.Kind == "service" {
			r.word("service", x.Name)
		}
	}
	r.walk(reflect.ValueOf(s).Elem(), "")
	for i := range s.Endpoints { // the words for these two are ours
		if k := s.Endpoints[i].Kind; k == "browsing" || k == "relay" {
			s.Endpoints[i].Name = k
		}
	}
}

func (r *redactor) walk(v reflect.Value, at string) {
	switch v.Kind() {
	case reflect.String:
		switch text := v.String(); {
		case text == "" || slices.Contains(openFields, at):
		case slices.Contains(textFields, at):
			v.SetString(r.text(text))
		case strings.HasSuffix(at, ".Endpoint") && text == "browsing":
		default:
			v.SetString(r.alias(cmp.Or(kinds[at[strings.LastIndexByte(at, '.')+1:]], "text"), text))
		}
	case reflect.Pointer:
		if !v.IsNil() {
			r.walk(v.Elem(), at)
		}
	case reflect.Slice:
		for i := range v.Len() {
			r.walk(v.Index(i), at)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			r.walk(v.Field(i), at+"."+v.Type().Field(i).Name)
		}
	}
}

// kinds are the words for what fields hold.
var kinds = map[string]string{"Relay": "relay", "Hops": "relay", "Remote": "remote", "Address": "address", "Name": "name", "Endpoint": "service"}
