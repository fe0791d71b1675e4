package config

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"lokinetd/router/key"
)

// The settings of Lokinet 0.9 and of Session Router 1.x (protocol 4 section 10), and what becomes of each.

// generation says which program has a setting.
type generation int

const (
	both generation = iota
	lokinet
	sessionRouter
)

// importRule is what becomes of a setting.
type importRule struct {
	of     generation
	multi  bool // may be given several times
	client bool // of clients only
	do     func(m *importer, l iniLine)
}

// ruleOf finds the rule of a line: of its setting, else of its section.
func ruleOf(l iniLine) (importRule, bool) {
	r, ok := importRules[l.section+"."+l.name]
	if !ok {
		r, ok = importRules[l.section+".*"]
	}
	return r, ok
}

// Ways to take a setting over.

func asText(key string) func(*importer, iniLine) {
	return func(m *importer, l iniLine) {
		if l.value != "" {
			m.set(l, key, quote(l.value))
		}
	}
}

func asNumber(key string) func(*importer, iniLine) {
	return func(m *importer, l iniLine) {
		if n, err := strconv.Atoi(l.value); err == nil {
			m.set(l, key, strconv.Itoa(n))
		} else {
			m.note(l, "left out: %q is no number", l.value)
		}
	}
}

func asBool(key string) func(*importer, iniLine) {
	return func(m *importer, l iniLine) {
		if v, ok := parseBool(l.value); ok {
			m.set(l, key, strconv.FormatBool(v))
		} else {
			m.note(l, "left out: %q is neither true nor false", l.value)
		}
	}
}

func asSpan(key string) func(*importer, iniLine) {
	return func(m *importer, l iniLine) {
		if d, ok := parseSpan(l.value); ok {
			m.set(l, key, quote(d.String()))
		} else {
			m.note(l, "left out: %q is no time", l.value)
		}
	}
}

func asRelays(key string) func(*importer, iniLine) {
	return func(m *importer, l iniLine) {
		name, err := relayKey(l.value)
		if err != nil {
			m.note(l, "left out: %s", trim(err))
			return
		}
		if !slices.ContainsFunc(m.values[key], func(v imported) bool { return v.text == quote(name) }) {
			m.set(l, key, quote(name))
		}
	}
}

// none is for settings without a meaning here.
func none(why string) func(*importer, iniLine) {
	return func(m *importer, l iniLine) { m.note(l, "left out: %s", why) }
}

// unless is none, but for values that mean what is so anyway.
func unless(why string, idle ...string) func(*importer, iniLine) {
	return func(m *importer, l iniLine) {
		if !slices.Contains(idle, l.value) {
			none(why)(m, l)
		}
	}
}

// oxend is for settings that only a relay has a use for.
func oxend(do func(*importer, iniLine)) func(*importer, iniLine) {
	return func(m *importer, l iniLine) {
		if on, isBool := parseBool(l.value); m.relay {
			do(m, l)
		} else if on || !isBool {
			m.note(l, "left out: it is of relays, and this is not one")
		}
	}
}

// quiet is for settings that finish looks at, or that are as they were by themselves.
func quiet(*importer, iniLine) {}

const (
	noExit    = "exit traffic is not supported"
	noCode    = "callers are not asked for codes; who may call is said by the files in the folder that the service's key clients names"
	noThreads = "lokinetd uses the processors that there are"
	noAPI     = "programs talk to lokinetd over a unix socket, see [control]"
	noKeys    = "on the public network oxend holds a relay's key, in private ones it is the file in relay.key"
	noLog     = "the log goes to standard error, which the service manager keeps"
	noConns   = "a relay connects to all others, a client to as many as edge_connections says"
)

var importRules = map[string]importRule{
	"router.netid":              {do: netID},
	"router.data-dir":           {do: dataDir},
	"router.public-ip":          {do: quiet},
	"router.public-port":        {do: quiet},
	"router.public-address":     {do: none("use relay.public_address")},
	"router.block-bogons":       {do: none("whether private addresses are allowed is said by a private network's file; on the public network they are not")},
	"router.nickname":           {of: lokinet, do: none("relays have no nicknames")},
	"router.min-connections":    {of: lokinet, do: none(noConns)},
	"router.max-connections":    {of: lokinet, do: none(noConns)},
	"router.worker-threads":     {of: lokinet, do: none(noThreads)},
	"router.net-threads":        {of: lokinet, do: none(noThreads)},
	"router.threads":            {of: lokinet, do: none(noThreads)},
	"router.contact-file":       {of: lokinet, do: none("what lokinetd knows of relays is in data_dir")},
	"router.encryption-privkey": {of: lokinet, do: none(noKeys)},
	"router.ident-privkey":      {of: lokinet, do: none(noKeys)},
	"router.transport-privkey":  {of: lokinet, do: none(noKeys)},
	"router.max-routers":        {of: lokinet, do: none(noConns)},
	"router.min-routers":        {of: lokinet, do: none(noConns)},
	"router.job-queue-size":     {of: lokinet, do: none(noThreads)},

	"exit.*": {of: sessionRouter, multi: true, do: none(noExit)},

	"network.keyfile":                {client: true, do: quiet},
	"network.reachable":              {client: true, do: understood},
	"network.hops":                   {of: lokinet, client: true, do: asNumber("paths.client_hops")},
	"network.paths":                  {of: lokinet, client: true, do: asNumber("paths.inbound_paths")},
	"network.strict-connect":         {of: lokinet, client: true, multi: true, do: asRelays("paths.strict_edges")},
	"network.blacklist-snode":        {of: lokinet, client: true, multi: true, do: asRelays("paths.blacklist")},
	"network.path-alignment-timeout": {of: lokinet, client: true, do: none("lokinetd finds aligned paths in its own time")},
	"network.exit":                   {of: lokinet, do: none(noExit)},
	"network.exit-node":              {of: lokinet, multi: true, do: none(noExit)},
	"network.exit-auth":              {of: lokinet, multi: true, do: none(noExit)},
	"network.owned-range":            {of: lokinet, multi: true, do: none(noExit)},
	"network.traffic-whitelist":      {of: lokinet, multi: true, do: none(noExit)},
	"network.auto-routing":           {do: none(noExit)},
	"network.blackhole-routes":       {do: none("packets for addresses of ours never leave another way")},
	"network.ip6-range":              {of: lokinet, client: true, do: rangeIPv6},
	"network.type":                   {of: lokinet, do: unless("there is an interface, tun, always", "tun")},
	"network.enabled":                {of: lokinet, do: none("it had no meaning there either")},
	"network.profiles":               {of: lokinet, do: none("which relays did not answer lately is not written to the disk")},
	"network.save-profiles":          {do: none("which relays did not answer lately is not written to the disk")},
	"network.profiling":              {client: true, do: asBool("paths.profiling")},
	"network.auth":                   {of: lokinet, client: true, do: authType},
	"network.auth-lmq":               {of: lokinet, client: true, do: none(noCode)},
	"network.auth-lmq-method":        {of: lokinet, client: true, do: none(noCode)},
	"network.auth-type":              {client: true, do: authType},
	"network.omq-auth-endpoint":      {client: true, do: none(noCode)},
	"network.omq-auth-method":        {client: true, do: none(noCode)},
	"network.auth-whitelist":         {client: true, multi: true, do: whitelisted},
	"network.auth-file":              {client: true, multi: true, do: code},
	"network.auth-file-type":         {client: true, do: none(noCode)},
	"network.auth-static":            {client: true, multi: true, do: code},
	"network.ifname":                 {client: true, do: asText("tun.name")},
	"network.ifaddr":                 {client: true, multi: true, do: interfaceAddress},
	"network.mapaddr":                {multi: true, do: none("remotes get local addresses by themselves, and keep them")},
	"network.expired-address-cache":  {of: sessionRouter, do: none("addresses are kept as long as there is room")},
	"network.srv":                    {client: true, multi: true, do: record},
	"network.persist-addrmap-file":   {do: none("addresses are kept in data_dir")},

	"paths.edge-connections":    {of: sessionRouter, client: true, do: asNumber("paths.edge_connections")},
	"paths.outbound-paths":      {of: sessionRouter, client: true, do: asNumber("paths.outbound_paths")},
	"paths.client-hops":         {of: sessionRouter, client: true, do: asNumber("paths.client_hops")},
	"paths.relay-hops":          {of: sessionRouter, client: true, do: asNumber("paths.relay_hops")},
	"paths.inbound-paths":       {of: sessionRouter, client: true, do: asNumber("paths.inbound_paths")},
	"paths.inbound-paths-extra": {of: sessionRouter, client: true, do: none("see paths.inbound_paths")},
	"paths.inbound-hops":        {of: sessionRouter, client: true, do: asNumber("paths.inbound_hops")},
	"paths.inbound-pivot-reuse": {of: sessionRouter, client: true, do: asNumber("paths.inbound_pivot_reuse")},
	"paths.unique-range-size":   {client: true, do: asNumber("paths.unique_range_size")},
	"paths.acceptable-expiry":   {of: sessionRouter, client: true, do: asSpan("paths.acceptable_expiry")},
	"paths.min-expiry":          {of: sessionRouter, client: true, do: asSpan("paths.min_expiry")},
	"paths.build-timeout":       {of: sessionRouter, client: true, do: none("a relay that does not answer is noticed after the protocol's 10 s")},
	"paths.ping-interval":       {of: sessionRouter, client: true, do: asSpan("paths.ping_interval")},
	"paths.max-missed-pings":    {of: sessionRouter, client: true, do: asNumber("paths.max_missed_pings")},
	"paths.strict-edge":         {of: sessionRouter, client: true, multi: true, do: asRelays("paths.strict_edges")},
	"paths.blacklist-snode":     {of: sessionRouter, client: true, multi: true, do: asRelays("paths.blacklist")},
	"paths.exclude-country":     {of: lokinet, client: true, multi: true, do: none("where relays stand is not known; see paths.blacklist")},
	"paths.debug-path-seed":     {of: sessionRouter, client: true, do: none("paths are drawn by chance")},

	"dns.listen":        {of: sessionRouter, client: true, multi: true, do: nameServer},
	"dns.bind":          {of: lokinet, client: true, multi: true, do: nameServer},
	"dns.local-dns":     {of: lokinet, client: true, multi: true, do: nameServer},
	"dns.upstream":      {client: true, multi: true, do: resolver},
	"dns.upstream-dns":  {of: lokinet, client: true, multi: true, do: resolver},
	"dns.unbound":       {of: sessionRouter, multi: true, do: none("lokinetd does not use libunbound")},
	"dns.unbound-hosts": {of: sessionRouter, do: none("lokinetd reads no hosts file: that is the host's resolver's")},
	"dns.add-hosts":     {of: lokinet, multi: true, do: none("lokinetd reads no hosts file: that is the host's resolver's")},
	"dns.query-bind":    {of: lokinet, do: none("questions for other resolvers leave by whatever route there is")},
	"dns.l3-intercept":  {of: lokinet, do: none("lokinetd takes only what is sent to its own address")},
	"dns.no-resolvconf": {client: true, do: noResolvconf},

	"bind.listen":          {of: sessionRouter, do: listen},
	"bind.max-udp-payload": {of: sessionRouter, do: none("the size of packets follows the path's")},
	"bind.inbound":         {of: lokinet, multi: true, do: listen},
	"bind.outbound":        {of: lokinet, multi: true, do: none("what a client sends leaves by any free port")},
	"bind.address":         {of: lokinet, multi: true, do: listen},
	"bind.public-ip":       {of: lokinet, do: quiet},
	"bind.public-port":     {of: lokinet, do: quiet},
	"bind.*":               {of: lokinet, multi: true, do: bindInterface}, // the names are those of interfaces

	"api.*":         {multi: true, do: none(noAPI)},
	"lokid.enabled": {of: lokinet, do: oxend(quiet)},
	"lokid.rpc":     {of: lokinet, do: oxend(asText("relay.oxend"))},
	"lokid.*":       {of: lokinet, do: oxend(none("oxend is reached by its local socket, relay.oxend"))},
	"oxend.rpc":     {of: sessionRouter, do: oxend(asText("relay.oxend"))},
	"oxend.*":       {of: sessionRouter, do: oxend(none("a relay of the public network tests others, and is tested"))},

	"bootstrap.add-node":  {multi: true, do: bootstrapNode},
	"bootstrap.seed-node": {of: lokinet, do: none("there is no such role")},

	"logging.type":  {do: logType},
	"logging.level": {do: logLevel},
	"logging.file":  {do: logFile},

	"netdb.*":    {of: lokinet, do: none("what lokinetd knows of relays is in data_dir")},
	"system.*":   {of: lokinet, do: none("the service manager says as whom lokinetd runs")},
	"metrics.*":  {of: lokinet, multi: true, do: none("there are no metrics yet")},
	"connect.*":  {of: lokinet, multi: true, do: none("see network.bootstrap")},
	"services.*": {of: lokinet, multi: true, do: none("services are tables [[service]]")},
}

func netID(m *importer, l iniLine) {
	switch l.value {
	case "session-router", "mainnet", "lokinet", "":
		m.set(l, "network.name", quote(Mainnet))
	case "testnet", "gamma":
		m.set(l, "network.name", quote(Testnet))
	default:
		m.note(l, "left out: there is no public network %q", l.value)
		return
	}
	if m.old {
		m.note(l, "Lokinet 0.9's own network is no more; this is its successor")
	}
}

func dataDir(m *importer, l iniLine) {
	what := ""
	if !m.old {
		what = "; copy " + m.path(l.value+"/bootstrap.signed") + " to it, if there is that file"
	}
	m.note(l, "left out: lokinetd has a data directory of its own, %s%s", defaults().DataDir, what)
}

// record takes a service record.
func record(m *importer, l iniLine) {
	var r SRV
	have := m.values[serviceSRV]
	switch err := r.UnmarshalText([]byte(l.value)); {
	case l.value == "":
	case err != nil:
		m.note(l, "left out: %v", err)
	case len(have) == maxSRV:
		m.note(l, "left out: at most %d records", maxSRV)
	case !slices.ContainsFunc(have, func(v imported) bool { return v.text == quote(r.String()) }):
		m.set(l, serviceSRV, quote(r.String()))
	}
}

// authType takes a way in which callers had to show who they are.
func authType(m *importer, l iniLine) {
	if l.value != "none" && l.value != "" {
		m.closed = append(m.closed, callerRule{l, l.value != "whitelist"})
	}
}

// code takes what callers had to know.
func code(m *importer, l iniLine) { m.closed = append(m.closed, callerRule{l, true}) }

// whitelisted takes a client that may call.
func whitelisted(m *importer, l iniLine) {
	m.closed = append(m.closed, callerRule{l, false})
	a, err := key.ParseAddress(l.value)
	if err != nil || a.Kind != key.Client || a.Key.Check() != nil {
		m.note(l, "left out, and may not call: want an address of 52 characters and .loki")
	} else if !slices.Contains(m.listed, a.Key) {
		m.listed = append(m.listed, a.Key)
	}
}

// understood takes a truth that finish looks at.
func understood(m *importer, l iniLine) {
	if _, ok := parseBool(l.value); !ok {
		m.note(l, "left out: %q is neither true nor false", l.value)
	}
}

func interfaceAddress(m *importer, l iniLine) {
	if l.value == "" || l.value == "auto" {
		return
	}
	p, err := netip.ParsePrefix(l.value)
	if err != nil {
		m.note(l, "left out: %q is no range of addresses", l.value)
		return
	}
	k := "tun.ipv4"
	if p.Addr().Is6() {
		k = "tun.ipv6"
	}
	if len(m.values[k]) > 0 {
		m.note(l, "left out: there is a range of this family already")
		return
	}
	m.set(l, k, quote(l.value))
}

func nameServer(m *importer, l iniLine) {
	if l.value == "" {
		if len(m.values["dns.listen"]) == 0 {
			m.set(l, "dns.enabled", "false")
		}
		return
	}
	delete(m.values, "dns.enabled")
	m.set(l, "dns.listen", quote(l.value))
}

func resolver(m *importer, l iniLine) {
	if l.value == "" {
		delete(m.values, "dns.upstream") // as it is in theirs: the list begins anew
		return
	}
	m.set(l, "dns.upstream", quote(l.value))
}

func noResolvconf(m *importer, l iniLine) {
	if on, ok := parseBool(l.value); on || !ok { // theirs asks only whether it is there
		m.set(l, "dns.host", `"off"`)
	}
}

func listen(m *importer, l iniLine) {
	if !m.relay {
		m.note(l, "left out: a client sends from any free port, and nobody needs to know it")
		return
	}
	value := l.value
	if strings.HasPrefix(value, ":") {
		value = "0.0.0.0" + value
	}
	if len(m.values["relay.listen"]) > 0 {
		m.note(l, "left out: a relay listens on one address")
		return
	}
	m.set(l, "relay.listen", quote(value))
}

// bindInterface takes Lokinet's "eth0=1090" and "1.2.3.4=1090"; "*=0" is about what leaves. Of several values one is the port, the others never had a meaning.
func bindInterface(m *importer, l iniLine) {
	as := l
	for part := range strings.SplitSeq(l.value, ",") {
		if _, err := strconv.ParseUint(part, 10, 16); err == nil {
			as.value = "0.0.0.0:" + part
			if a, err := netip.ParseAddr(l.name); err == nil && a.Is4() {
				as.value = l.name + ":" + part
			} else if m.relay && l.name != "*" {
				m.note(l, "taken as all of the host's addresses: an interface's name cannot stand for its address")
			}
		}
	}
	switch {
	case l.name != "*":
		listen(m, as)
	case l.value != "0":
		m.note(l, "left out: what lokinetd sends leaves by any free port, or by the one that it listens on")
	}
}

// rangeIPv6 takes the range of Lokinet's IPv6 addresses, or that there are none. Its default, a bare address, is no range.
func rangeIPv6(m *importer, l iniLine) {
	switch {
	case l.value == "":
		m.set(l, "tun.ipv6", `"off"`)
	case !strings.Contains(l.value, "/"):
		m.note(l, "left out: a range like fd00::1/64 would be wanted; without one lokinetd finds a free one")
	default:
		m.set(l, "tun.ipv6", quote(l.value))
	}
}

func bootstrapNode(m *importer, l iniLine) {
	switch {
	case l.value == "":
	case m.old:
		m.note(l, "left out: Lokinet 0.9's bootstrap files are of no use any more; a current bootstrap.signed is needed (docs/public-network.md)")
	default:
		m.set(l, "network.bootstrap", quote(m.path(l.value)))
	}
}

func logType(m *importer, l iniLine) {
	if l.value != "print" && l.value != "" {
		m.note(l, "left out: %s", noLog)
	}
}

func logFile(m *importer, l iniLine) {
	if l.value != "" && l.value != "-" && l.value != "stdout" && l.value != "stderr" {
		m.note(l, "left out: %s", noLog)
	}
}

// logLevel takes a level, or a list of them by part of the program. Parts that lokinetd has not are left out.
func logLevel(m *importer, l iniLine) {
	if l.value == "" {
		return
	}
	var parts []string
	for part := range strings.SplitSeq(l.value, ",") {
		module, level, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			module, level = "*", module
		}
		module, level = strings.TrimSpace(module), strings.ToLower(strings.TrimSpace(level))
		switch level {
		case "trace":
			level = "debug"
		case "warning":
			level = "warn"
		case "err", "critical", "none", "off":
			level = "error"
		}
		p := module + "=" + level
		if _, err := ParseLevels(p); err != nil {
			m.note(l, "%s=%s left out: lokinetd has no such part, or no such level", module, level)
		} else {
			parts = append(parts, p)
		}
	}
	if len(parts) > 0 {
		m.set(l, "log.level", quote(strings.Join(parts, ",")))
	}
}
