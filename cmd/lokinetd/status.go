package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"lokinetd/router/control"
)

func (a *app) statusCommand() *cobra.Command {
	var watch bool
	var every time.Duration
	cmd := a.jsonFlag(&cobra.Command{
		Use: "status", Short: "Say how the daemon is, in one screen", Args: cobra.NoArgs,
		Long: "Say how the daemon is, in one screen: whether it is ready, or why not; its addresses, paths and sessions; how\n" +
			"programs reach it; and what it does not hide.\n" +
			"Exit code 0: ready; 3: not running; 4: running but not ready, or without an endpoint whose key file cannot be used.\n\n" +
			"With --watch it is shown anew every second, with rates, until Ctrl-C. Where the output is no terminal it is\n" +
			"repeated, and with --json it is one line each time.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return a.watch(cmd, every)
			}
			s, err := a.status(cmd)
			if errors.Is(err, control.ErrNotRunning) && !a.json {
				if c, _, cerr := a.meantConfig(); cerr == nil && a.ownSocket() == "" {
					if away := a.meanwhile(cmd.Context(), c); away != "" {
						err = fmt.Errorf("%w; %s", err, away)
					}
				}
			}
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(s)
			} else {
				printStatus(a.out, s, a.now())
			}
			if err == nil && (s.State != control.Ready || len(s.NotRun) > 0) {
				err = &exitError{code: exitNotReady}
			}
			return err
		},
	})
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again")
	cmd.Flags().DurationVar(&every, "every", time.Second, "with --watch: how often")
	return cmd
}

// printStatus writes the status for people.
func printStatus(w io.Writer, s control.Status, now time.Time) {
	width, _, _ := terminalSize(w)
	for _, line := range (&view{now: now, marks: localMarks(), width: width}).status(s) {
		fmt.Fprintln(w, line)
	}
}

// marks are what drawings are made of.
type marks struct {
	tee, end, bar, hop string
	levels             []rune // of a curve, from nothing to most
}

var (
	boxMarks   = marks{"├─ ", "└─ ", "│  ", " ─ ", []rune(" ▁▂▃▄▅▆▇█")}
	asciiMarks = marks{"|- ", "`- ", "|  ", " - ", []rune(" .:-=+*#@")}
)

// localMarks are those that the user's terminal can show, by what the locale says.
func localMarks() marks {
	locale := cmp.Or(os.Getenv("LC_ALL"), os.Getenv("LC_CTYPE"), os.Getenv("LANG"))
	if l := strings.ToLower(locale); strings.Contains(l, "utf-8") || strings.Contains(l, "utf8") {
		return boxMarks
	}
	return asciiMarks
}

// What a screen holds; the lists of their own have the rest.
const (
	maxShownPaths    = 24
	maxShownSessions = 8
)

// view draws the daemon's status.
type view struct {
	now   time.Time
	marks marks
	meter *meter // for rates in the place of sums; nil: none
	width int    // columns that prose is broken at; 0: it is not

	lines []string
}

// status gives the lines of a screen, what matters most first.
func (v *view) status(s control.Status) []string {
	v.lines = nil
	v.head(s)
	for _, e := range s.Endpoints {
		v.endpoint(e, s.Relay)
	}
	v.traffic(s)
	v.paths(s)
	v.sessions(s)
	v.programs(s)
	v.block("not hidden", s.NotHidden...)
	return v.lines
}

// block adds paragraphs of which the first bears a name.
func (v *view) block(name string, texts ...string) {
	const indent = 11
	for _, text := range texts {
		for rest := printable(text); ; {
			line := rest
			if runes := []rune(rest); v.width > 4*indent && len(runes) > v.width-indent {
				if at := strings.LastIndexByte(string(runes[:v.width-indent+1]), ' '); at > 0 {
					line = rest[:at]
				}
			}
			v.line(name, line)
			name = ""
			if rest = strings.TrimLeft(rest[len(line):], " "); rest == "" {
				break
			}
		}
	}
}

// line adds what is never broken.
func (v *view) line(name, text string) {
	v.lines = append(v.lines, strings.TrimRight(fmt.Sprintf("%-10s %s", name, printable(text)), " "))
}

// printable is text without what could command a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

func (v *view) head(s control.Status) {
	relays := counted(s.Network.Known, "relay")
	if s.Network.Contacts < s.Network.Known {
		relays += fmt.Sprintf(", of which %d can be reached", s.Network.Contacts)
	}
	texts := []string{fmt.Sprintf("%s %s, up for %s, in the network %s (id %d): %s", s.Role, s.Version, span(v.now.Sub(s.StartedAt)), s.Network.Name, s.Network.ID, relays)}
	if s.Reason != "" {
		texts = slices.Insert(texts, 0, s.Reason)
	}
	v.block(string(s.State), texts...)
	for _, x := range s.NotRun {
		v.block("problem", fmt.Sprintf("%s %s does not run: %s. %s", x.Kind, x.Name, x.Reason, x.Advice))
	}
	for _, text := range s.Warnings {
		v.block("warning", text)
	}
}

func (v *view) endpoint(e control.Endpoint, r *control.Relay) {
	name := e.Name
	if e.Kind == "browsing" {
		name = "you"
	}
	if len(name) > 10 { // of a service
		v.lines = append(v.lines, name)
		name = ""
	}
	v.block(name, e.Address)
	if r != nil {
		registered := "registered"
		if !r.Registered {
			registered = "not registered"
		}
		v.block("", fmt.Sprintf("%s, %s%s", r.PublicAddress, registered, v.since(", contact signed ", r.ContactAt)),
			fmt.Sprintf("%s and %s connected, %s of their paths, %s kept for them", counted(r.Peers, "relay"), counted(r.Clients, "client"), counted(r.TransitHops, "hop"), counted(r.StoredClients, "contact")))
		return
	}
	v.block("", strings.Join(slices.DeleteFunc([]string{e.IPv6, e.IPv4, counted(e.Sessions, "session"), fmt.Sprintf("%d of %d inbound paths", e.InboundPaths, e.InboundWant),
		v.flow(e.Traffic.BytesIn, e.Traffic.BytesOut, "endpoint", e.Address)}, func(s string) bool { return s == "" }), ", "))
	if e.Kind == "service" {
		known := "not published yet: nobody can find it"
		if e.PublishedAt != nil {
			known = v.since("published ", e.PublishedAt)
		}
		if e.ClientsFrom != "" {
			known += ", for " + counted(e.Clients, "client") + " only"
		}
		if n := e.Refused + e.TooMany; n > 0 {
			known += fmt.Sprintf("; %d calls refused", n)
		}
		v.block("", fmt.Sprintf("open: %s; %s", orNone(strings.Join(e.Ports, " ")), known))
	}
}

// since is text and how long ago that was; "" if it was never.
func (v *view) since(text string, t *time.Time) string {
	if t == nil {
		return ""
	}
	return text + span(v.now.Sub(*t)) + " ago"
}

func (v *view) traffic(s control.Status) {
	t := s.Traffic
	if v.meter != nil {
		for i, line := range v.meter.curves(v.marks, s.Relay == nil) {
			v.line(first(i, "traffic"), line)
		}
	} else if s.Relay != nil {
		v.block("traffic", fmt.Sprintf("in %s (%d packets)", bytesText(t.BytesIn), t.PacketsIn))
	} else {
		v.block("traffic", fmt.Sprintf("in %s (%d packets), out %s (%d packets)", bytesText(t.BytesIn), t.PacketsIn, bytesText(t.BytesOut), t.PacketsOut))
	}
	var drops []string
	for _, reason := range slices.SortedFunc(maps.Keys(s.Drops), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.Drops[b], s.Drops[a]), cmp.Compare(a, b))
	}) {
		drops = append(drops, fmt.Sprintf("%d %s", s.Drops[reason], strings.ReplaceAll(reason, "_", " ")))
	}
	if len(drops) > 0 {
		const most = 6
		if rest := len(drops) - most; rest > 0 {
			drops = append(drops[:most], fmt.Sprintf("%d other reasons (--json)", rest))
		}
		v.block("dropped", strings.Join(drops, ", "))
	}
}

// paths draws the edges, and from each the paths that begin there.
func (v *view) paths(s control.Status) {
	if len(s.Edges)+len(s.Paths) == 0 {
		return
	}
	goals := map[string]string{} // by endpoint and hops of a path: whom it leads to
	for _, x := range s.Sessions {
		if len(x.Hops) > 0 && x.Direction == "out" {
			goals[x.Endpoint+strings.Join(x.Hops, "")] = short(x.Remote)
		}
	}
	type branch struct {
		edge  control.Edge
		paths []control.Path
	}
	tree := make([]branch, len(s.Edges))
	for i, e := range s.Edges {
		tree[i].edge = e
	}
	shown := s.Paths[:min(len(s.Paths), maxShownPaths)]
	for _, p := range shown {
		if len(p.Hops) == 0 {
			continue
		}
		at := slices.IndexFunc(tree, func(b branch) bool { return b.edge.Relay == p.Hops[0] })
		if at < 0 {
			at = len(tree)
			tree = append(tree, branch{edge: control.Edge{Relay: p.Hops[0]}})
		}
		tree[at].paths = append(tree[at].paths, p)
	}

	var edges, paths table
	for _, b := range tree {
		e := b.edge
		if e.Address == "" {
			edges.row(short(e.Relay), "not connected")
		} else {
			edges.row(short(e.Relay), e.Address, rttText(e.RTTms, ""), "for "+span(v.now.Sub(e.Since)), v.flow(e.BytesIn, e.BytesOut, "edge", e.Relay))
		}
		for _, p := range b.paths {
			way := "inbound"
			if p.Kind != "inbound" {
				way = "to " + cmp.Or(goals[p.Endpoint+strings.Join(p.Hops, "")], "a "+p.Kind)
			}
			if p.Endpoint != "browsing" {
				way = p.Endpoint + " " + way
			}
			state := rttText(p.RTTms, "up")
			if p.State != "up" {
				state = p.State
			}
			paths.row(hopsText(p.Hops[1:], v.marks.hop), way, state, span(p.ExpiresAt.Sub(v.now))+" left")
		}
	}
	edgeLines, pathLines := edges.lines(), paths.lines()
	v.block("paths", "you")
	for i, b := range tree {
		stem, root := v.marks.bar, v.marks.tee
		if i == len(tree)-1 {
			stem, root = strings.Repeat(" ", utf8.RuneCountInString(v.marks.bar)), v.marks.end
		}
		v.line("", root+edgeLines[i])
		for j := range b.paths {
			twig := v.marks.tee
			if j == len(b.paths)-1 {
				twig = v.marks.end
			}
			v.line("", stem+twig+pathLines[0])
			pathLines = pathLines[1:]
		}
	}
	if rest := len(s.Paths) - len(shown); rest > 0 {
		v.block("", fmt.Sprintf("and %d more (lokinetd path list)", rest))
	}
}

func (v *view) sessions(s control.Status) {
	latest := slices.Clone(s.Sessions)
	slices.SortStableFunc(latest, func(a, b control.Session) int { return b.LastActivity.Compare(a.LastActivity) })
	shown := latest[:min(len(latest), maxShownSessions)]
	var t table
	for _, x := range shown {
		state := x.State
		if x.Handshake == "1.0" {
			state += ", not forward secret (1.0)"
		}
		quiet := ""
		if !x.LastActivity.IsZero() {
			quiet = "quiet for " + span(v.now.Sub(x.LastActivity))
		}
		way := "to"
		if x.Direction == "in" {
			way = "from"
		}
		who := "you"
		if x.Endpoint != "browsing" {
			who = x.Endpoint
		}
		t.row(who, way, shortAddress(x.Remote), state, quiet, v.flow(x.BytesIn, x.BytesOut, "session", x.Endpoint+x.Direction+x.Remote))
	}
	for i, line := range t.lines() {
		v.line(first(i, "sessions"), line)
	}
	if rest := len(latest) - len(shown); rest > 0 {
		v.block("", fmt.Sprintf("and %d more (lokinetd session list)", rest))
	}
}

// resolvers are the words for the ways to a host's resolver.
var resolvers = map[string]string{"resolved": "systemd-resolved", "delegate": "systemd-resolved", "networkmanager": "NetworkManager's dnsmasq",
	"resolvconf": "resolvconf", "file": "/etc/resolv.conf"}

// programs says how programs of this machine reach the network.
func (v *view) programs(s control.Status) {
	if p := s.Proxy; p != nil {
		v.block("proxy", fmt.Sprintf("SOCKS5 on %s; HTTP on %s; for this network's names only", orNone(strings.Join(p.SOCKS, ", ")), orNone(strings.Join(p.HTTP, ", "))),
			fmt.Sprintf("%s open; %d reached their remote, %d failed, %d refused because they were for other networks", counted(p.Open, "connection"), p.Opened, p.Failed, p.Refused))
	}
	if t := s.Tun; t != nil {
		text := fmt.Sprintf("%s, MTU %d", t.Name, t.MTU)
		if !t.IPv6 {
			text += "; IPv4 only, because IPv6 is off on this machine"
		}
		v.block("interface", text)
	}
	d := s.DNS
	if d == nil {
		return
	}
	others := "other names are refused"
	if len(d.Upstream) > 0 {
		others = "other names are asked of " + strings.Join(d.Upstream, ", ")
	}
	v.block("names", "answered at "+strings.Join(d.Listen, ", ")+"; "+others)
	if x := d.Host; x != nil {
		switch last := len(x.Why) - 1; {
		case x.Method == "off" && last >= 0:
			v.block("", "this machine's resolver is left as it is: "+x.Why[last])
		case x.InEffect:
			v.block("", "this machine's programs ask there, by "+cmp.Or(resolvers[x.Method], x.Method))
		default:
			v.block("", "this machine's programs do not ask there (lokinetd dns status says why)")
		}
	}
}

// flow says what came in and went out of something: the sums or, with a meter, the rates.
func (v *view) flow(in, out uint64, kind, id string) string {
	if v.meter != nil {
		return v.meter.rates(in, out, kind+id)
	}
	return fmt.Sprintf("in %s, out %s", bytesText(in), bytesText(out))
}

// table aligns columns.
type table struct{ rows [][]string }

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) lines() (lines []string) {
	var widths []int
	for _, r := range t.rows {
		for i, c := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for _, r := range t.rows {
		var b strings.Builder
		for i, c := range r {
			b.WriteString(c)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+2))
			}
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}

// short is the begin of a key or an address, by which people tell them apart.
func short(id string) string { return id[:min(8, len(id))] }

// shortAddress leaves out the middle of an address.
func shortAddress(a string) string {
	if key, tld, ok := strings.Cut(a, "."); ok && len(key) > 16 {
		return key[:16] + "..." + tld
	}
	return a
}

func hopsText(ids []string, between string) string {
	hops := make([]string, len(ids))
	for i, id := range ids {
		hops[i] = short(id)
	}
	return strings.Join(hops, between)
}

// rttText is a round trip; none where it has not been measured.
func rttText(ms float64, none string) string {
	if ms == 0 {
		return none
	}
	return fmt.Sprintf("%.1f ms", ms)
}

// counted is "1 session", "2 sessions".
func counted(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// span is a time for people, to two units: 42s, 5m20s, 1h30m, 3d4h.
func span(d time.Duration) string {
	d = d.Abs()
	switch m := d / time.Minute; {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case m < 10:
		return fmt.Sprintf("%dm%ds", m, (d%time.Minute)/time.Second)
	case m < 60:
		return fmt.Sprintf("%dm", m)
	case m < 48*60:
		return fmt.Sprintf("%dh%dm", m/60, m%60)
	default:
		return fmt.Sprintf("%dd%dh", m/(24*60), m/60%24)
	}
}

// first gives a block of lines its name on the first line only.
func first(i int, name string) string {
	if i > 0 {
		return ""
	}
	return name
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
