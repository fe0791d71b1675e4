package config

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"lokinetd/router/key"
)

// Import of the configurations of Lokinet 0.9 (lokinet.ini) and of Session Router 1.x (protocol 4 section 10), from which lokinetd takes over.
//
// Each setting has a rule (imports.go): it becomes keys of ours, or a note says why it does not. What our own checks then refuse is left out with a note too, so
// that what comes out is a right configuration whatever came in.

// Imported is a configuration that was translated.
type Imported struct {
	Old    bool   // from Lokinet 0.9, not Session Router
	TOML   []byte // right as Parse sees it, in a folder of any name: all paths in it are absolute
	Config *Config
	Notes  []Note // what did not become what it was, by line

	// Clients may call the service, and nobody else, if the folder that its key clients names has a file for each.
	Clients []key.Public
}

// Places says where what the old configuration names is from now on.
type Places struct {
	Key     func(path string) string // of a key file; nil: where it was
	Clients string                   // the folder of the clients that may call; "": imported.clients in the data directory
}

// Note is about one setting.
type Note struct {
	Line    int    // counted from 1
	Setting string // "[network] keyfile"
	Message string
}

// The keys of the one service that there may be.
const (
	serviceKey     = "service[0].key"
	serviceClients = "service[0].clients"
	serviceSRV     = "service[0].srv"
)

// maxSettings bounds the settings of a file; each may be looked at as often as there are wrong ones.
const maxSettings = 2000

// lokinetPort is where relays of Lokinet listened by themselves.
const lokinetPort = "1090"

// iniLine is one setting of the file.
type iniLine struct {
	n              int
	section, name  string
	value          string
	first, earlier int // the first line with this setting; that of the one before this, 0: none
}

func (l iniLine) setting() string { return "[" + l.section + "] " + l.name }

// readINI reads the lines of a file (protocol 4 section 10, parsing rules). What cannot be read is an Errors.
func readINI(data []byte, name string) (lines []iniLine, err error) {
	var errs Errors
	fault := func(n int, format string, args ...any) {
		errs = append(errs, &Error{File: name, Line: n, Message: fmt.Sprintf(format, args...)})
	}
	if len(data) > MaxFile {
		return nil, Errors{{File: name, Message: fmt.Sprintf("larger than %d bytes", MaxFile)}}
	}
	seen := map[string]iniLine{}
	section := ""
	in := bufio.NewScanner(bytes.NewReader(bytes.ReplaceAll(bytes.TrimPrefix(data, []byte("\ufeff")), []byte("\r\n"), []byte("\n"))))
	in.Buffer(nil, MaxFile+1)
	for n := 1; in.Scan(); n++ {
		text := strings.TrimSpace(in.Text())
		switch {
		case !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
			fault(n, "not text")
		case text == "" || text[0] == '#' || text[0] == ';':
		case text[0] == '[':
			if section = strings.TrimSuffix(text[1:], "]"); section == text[1:] || section == "" {
				fault(n, "want a section, like [network]")
			}
		default:
			name, value, ok := strings.Cut(text, "=")
			l := iniLine{n: n, section: section, name: strings.TrimSpace(name), value: strings.TrimSpace(value), first: n}
			switch {
			case !ok || l.name == "":
				fault(n, "want a section, or a setting like name=value")
				continue
			case section == "":
				fault(n, "%s stands in front of all sections: is this a configuration of Lokinet or Session Router?", l.name)
				continue
			}
			if before, again := seen[l.setting()]; again {
				l.first, l.earlier = before.first, before.n
			}
			seen[l.setting()] = l
			lines = append(lines, l)
		}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	if len(lines) > maxSettings {
		return nil, Errors{{File: name, Message: fmt.Sprintf("%d settings, at most %d are read", len(lines), maxSettings)}}
	}
	return lines, nil
}

// importer collects what becomes of a file.
type importer struct {
	dir    string // of the file
	places Places
	lines  []iniLine
	old    bool
	relay  bool
	values map[string][]imported // by key; single values and lists alike
	closed []callerRule          // by which not everybody may call
	listed []key.Public          // by which these may
	notes  []Note
}

// callerRule is a line about who may call.
type callerRule struct {
	iniLine
	code bool // who knows something
}

// imported is a value in TOML with the line that it is from.
type imported struct {
	text string
	from iniLine
}

// Import translates the content of a file. Relative paths in it count from the directory of name, which must be absolute. The error is an Errors: the
// file is none of theirs.
func Import(data []byte, name string, places Places) (*Imported, error) {
	lines, err := readINI(data, name)
	if err != nil {
		return nil, err
	}
	m := &importer{dir: filepath.Dir(name), places: places, lines: lines, values: map[string][]imported{}}
	m.recognize()
	for _, l := range lines {
		m.take(l)
	}
	m.finish()
	im := &Imported{Old: m.old}
	for { // what one check refuses may have hidden another; each round leaves out something
		im.TOML = m.write(name)
		if im.Config, err = Parse(im.TOML, filepath.Join(m.dir, "imported.toml")); err == nil {
			break
		}
		var errs Errors
		if !errors.As(err, &errs) {
			return nil, err
		}
		dropped := false
		for _, e := range slices.Backward(errs) { // of a list the last first, so that the others keep their numbers
			dropped = m.drop(e) || dropped
		}
		for _, e := range errs {
			dropped = dropped || m.dropTable(e) // something there does not go with a default value
		}
		if !dropped {
			return nil, err
		}
	}
	slices.SortStableFunc(m.notes, func(a, b Note) int { return cmp.Compare(a.Line, b.Line) })
	im.Notes = m.notes
	if len(im.Config.Service) > 0 && im.Config.Service[0].Clients != "" {
		im.Clients = m.listed
	}
	return im, nil
}

func (m *importer) note(l iniLine, format string, args ...any) {
	m.notes = append(m.notes, Note{l.n, l.setting(), fmt.Sprintf(format, args...)})
}

// recognize finds out which program, and which role, the file is for, by what stands in it.
func (m *importer) recognize() {
	olds, news := 0, 0
	for _, l := range m.lines {
		r, known := ruleOf(l)
		switch {
		case !known:
		case r.of == lokinet:
			olds++
		case r.of == sessionRouter:
			news++
		}
		on, _ := parseBool(l.value)
		switch l.setting() {
		case "[router] netid":
			if l.value == "lokinet" || l.value == "gamma" {
				olds++
			}
		case "[lokid] enabled":
			m.relay = m.relay || on
		case "[oxend] rpc", "[lokid] rpc", "[router] public-ip", "[router] public-port", "[bind] public-ip", "[bind] public-port":
			m.relay = true
		}
	}
	m.old = olds > news
}

// take applies the rule of a line.
func (m *importer) take(l iniLine) {
	r, known := ruleOf(l)
	switch {
	case !known:
		m.note(l, "unknown, left out")
	case l.earlier > 0 && !r.multi:
		m.note(l, "given in line %d already, left out", l.first)
	case m.relay && r.client:
		m.note(l, "has no effect at a relay, left out")
	default:
		r.do(m, l)
	}
}

// set makes text, in TOML, the value of a key, or one more of a list.
func (m *importer) set(l iniLine, key, text string) {
	m.values[key] = append(m.values[key], imported{text, l})
}

func (m *importer) path(value string) string {
	if filepath.IsAbs(value) {
		return filepath.Clean(value)
	}
	return filepath.Join(m.dir, value)
}

// get finds the first line with a setting.
func (m *importer) get(setting string) (iniLine, bool) {
	for _, l := range m.lines {
		if l.setting() == setting {
			return l, true
		}
	}
	return iniLine{}, false
}

// drop leaves out the value that a check has found wrong; false: it is none of the file's.
func (m *importer) drop(e *Error) bool {
	name, i, isList := e.Key, 0, strings.HasSuffix(e.Key, "]")
	if isList {
		open := strings.LastIndexByte(name, '[')
		i, _ = strconv.Atoi(name[open+1 : len(name)-1])
		name = name[:open]
	}
	vs := m.values[name]
	if i >= len(vs) {
		return false
	}
	m.note(vs[i].from, "left out: %s", e.Message)
	if vs = slices.Delete(vs, i, i+1); len(vs) == 0 || !isList {
		delete(m.values, name)
	} else {
		m.values[name] = vs
	}
	return true
}

// dropTable leaves out all values of the table in which a check has found something wrong.
func (m *importer) dropTable(e *Error) (dropped bool) {
	table, _, _ := strings.Cut(e.Key, ".")
	for k, vs := range m.values {
		if strings.HasPrefix(k, table+".") {
			for _, v := range vs {
				m.note(v.from, "left out: %s: %s", e.Key, e.Message)
			}
			delete(m.values, k)
			dropped = true
		}
	}
	return dropped
}

// write gives the configuration as a file.
func (m *importer) write(from string) []byte {
	var b bytes.Buffer
	program := "Session Router"
	if m.old {
		program = "Lokinet 0.9"
	}
	fmt.Fprintf(&b, "# From %s, a configuration of %s.\n# What is not set here has its default value, which the example configuration explains.\n", strings.ToValidUTF8(from, "?"), program)
	table := ""
	for _, k := range keysOf("", reflect.TypeFor[Config]()) {
		vs := m.values[k]
		if len(vs) == 0 {
			continue
		}
		name := k
		if table == "" && !strings.Contains(k, ".") {
			b.WriteByte('\n')
		}
		if t, last, ok := strings.Cut(k, "."); ok {
			if name = last; t != table {
				fmt.Fprintf(&b, "\n[%s]\n", t)
				table = t
			}
		}
		if isListKey(k) {
			fmt.Fprintf(&b, "%s = [%s]\n", name, strings.Join(texts(vs), ", "))
		} else {
			fmt.Fprintf(&b, "%s = %s\n", name, vs[0].text)
		}
	}
	for _, s := range m.values[serviceKey] {
		fmt.Fprintf(&b, "\n# The address that others reached this host by. Nothing is open until it stands in ports, as in [\"tcp/80\"].\n[[service]]\nname = %q\nkey = %s\nports = []\necho = true\n", "imported", s.text)
		for _, c := range m.values[serviceClients] {
			fmt.Fprintf(&b, "clients = %s\n", c.text)
		}
		if srv := m.values[serviceSRV]; len(srv) > 0 {
			fmt.Fprintf(&b, "srv = [%s]\n", strings.Join(texts(srv), ", "))
		}
	}
	return b.Bytes()
}

func texts(vs []imported) []string {
	all := make([]string, len(vs))
	for i, v := range vs {
		all[i] = v.text
	}
	return all
}

func isListKey(k string) bool {
	t := reflect.TypeFor[Config]()
	for part := range strings.SplitSeq(k, ".") {
		i := fieldOf(t, part)
		if i < 0 {
			return false
		}
		t = t.Field(i).Type
	}
	return t.Kind() == reflect.Slice
}

// quote writes a string as TOML has it. Control characters do not get here (readINI).
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\t", `\t`).Replace(s) + `"`
}

func parseBool(s string) (v, ok bool) {
	switch strings.ToLower(s) {
	case "true", "on", "1", "yes":
		return true, true
	case "false", "off", "0", "no":
		return false, true
	}
	return false, false
}

// parseSpan reads a time as both programs write it: seconds, or with a unit.
func parseSpan(s string) (time.Duration, bool) {
	if n, err := strconv.ParseInt(s, 10, 32); err == nil {
		return time.Duration(n) * time.Second, true
	}
	d, err := time.ParseDuration(s)
	return d, err == nil
}

// finish does what needs more than one line.
func (m *importer) finish() {
	keyLine, hasKey := m.get("[network] keyfile")
	reachable, set := m.get("[network] reachable")
	on, understood := parseBool(reachable.value)
	switch {
	case m.relay:
	case hasKey && keyLine.value != "" && (!set || on || !understood):
		m.set(keyLine, serviceKey, quote(m.key(keyLine)))
		m.note(keyLine, "the address is kept, as that of the service \"imported\". All ports were open to others; now say in its ports which are")
	case hasKey && keyLine.value != "":
		m.set(keyLine, "client.key", quote(m.key(keyLine)))
	case set && on:
		m.note(reachable, "without a keyfile the address was another one at each start. A [[service]] has one that stays")
	}
	m.finishClients()
	if len(m.values[serviceKey]) == 0 {
		for _, v := range m.values[serviceSRV] {
			m.note(v.from, "left out: records are published with an address that stays, and there is none: it needs a keyfile, and reachable not off")
		}
		delete(m.values, serviceSRV)
	}
	if !m.relay {
		return
	}
	m.values["role"] = []imported{{quote(RoleRelay), iniLine{}}}
	ip, port := "", ""
	var from iniLine
	for _, section := range []string{"[router]", "[bind]"} {
		if l, ok := m.get(section + " public-ip"); ok && ip == "" {
			ip, from = l.value, l
		}
		if l, ok := m.get(section + " public-port"); ok && port == "" {
			port = l.value
			if ip == "" {
				m.note(l, "left out: no public-ip")
			}
		}
	}
	if ip != "" {
		if m.old && len(m.values["relay.listen"]) == 0 {
			m.set(from, "relay.listen", quote("0.0.0.0:"+lokinetPort))
			port = cmp.Or(port, lokinetPort)
		}
		if port != "" {
			ip += ":" + port
		} else if vs := m.values["relay.listen"]; len(vs) > 0 {
			if a, err := netip.ParseAddrPort(strings.Trim(vs[0].text, `"`)); err == nil {
				ip = fmt.Sprintf("%s:%d", ip, a.Port())
			}
		}
		m.set(from, "relay.public_address", quote(ip))
	}
}

// finishClients says who may call the service. Where not everybody could, what is not understood lets nobody in.
func (m *importer) finishClients() {
	open, isOpen := m.get("[network] auth-type")
	if !isOpen {
		open, isOpen = m.get("[network] auth")
	}
	isOpen = isOpen && open.value == "none"
	service := len(m.values[serviceKey]) > 0
	for _, c := range m.closed {
		switch {
		case isOpen:
			m.note(c.iniLine, "left out: everybody could call, by line %d", open.n)
			continue
		case !service:
			m.note(c.iniLine, "left out: nobody can call without an address that stays, and there is none")
			continue
		case c.code:
			m.note(c.iniLine, "left out: %s", noCode)
		}
		if len(m.values[serviceClients]) == 0 {
			m.set(c.iniLine, serviceClients, quote(cmp.Or(m.places.Clients, filepath.Join(defaults().DataDir, "imported.clients"))))
		}
	}
}

// key gives the path of a key file from now on. Lokinet looked for it from the directory that it ran in, which is its data directory; Session Router looks from that of the configuration.
func (m *importer) key(l iniLine) string {
	path := m.path(l.value)
	if dir, ok := m.get("[router] data-dir"); ok && m.old && dir.value != "" && !filepath.IsAbs(l.value) {
		path = filepath.Join(m.path(dir.value), l.value)
	}
	if m.places.Key != nil {
		path = m.places.Key(path)
	}
	return path
}

// relayKey reads a relay's name as both programs have it, for a note where it is wrong.
func relayKey(value string) (string, error) {
	p, err := parseKey(value)
	if err != nil {
		return "", err
	}
	return key.Address{Key: p, Kind: key.Relay}.String(), nil
}
