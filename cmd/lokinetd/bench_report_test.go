//go:build bench

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names of measurements. They are keys of the JSON file too.
const (
	oursName, torName, wgName = "lokinetd", "Tor", "wireguard-go"

	aloneOurs, aloneBare, aloneRatio = "lokinetd relay", "bare quic-go", "lokinetd / bare"

	aloneCPU     = "CPU per packet, us"
	aloneRate    = "packets/s"
	alonePerCore = "packets/s per core"
	aloneBusy    = "CPU of the process, %"
	aloneLoss    = "loss, %"
	aloneSparse  = "CPU per packet at 2,000/s, us"
	aloneBytes   = "bytes of a datagram"

	sizeOf   = "size" // the system of what bench_size_test.go measures; its states are followed by one of
	sizeRSS  = ", RSS, MB"
	sizeCPU  = ", CPU, %"
	sizeEach = ", each more, kB"

	tcp1Down  = "one TCP stream, down, Mbit/s"
	tcp1Up    = "one TCP stream, up, Mbit/s"
	tcp4Down  = "four TCP streams, down, Mbit/s"
	tcp4Up    = "four TCP streams, up, Mbit/s"
	tcp44Down = "four TCP streams on four circuits, down, Mbit/s"
	tcp44Up   = "four TCP streams on four circuits, up, Mbit/s"

	rttIdle = "RTT at rest, ms"
	rttBulk = "RTT beside a bulk stream, ms"
	tail    = ", 90th percentile"

	coldStart  = "cold client start to first byte, ms"
	warmStart  = "warm client start to first byte, ms"
	dnsSession = "DNS answer with a new session, ms"
	dnsCached  = "DNS answer from cache, ms"
	stageOf    = "cold start: " // and a stage of the client's time line, ms
	freshRSS   = "RSS of a fresh client with 4 edges, MB"
	atRest     = "CPU at rest, % of a core"
)

func costOf(name, role string) string {
	switch role {
	case "":
		role = "all nodes"
	default:
		role = "the " + role
	}
	return "CPU s/GB of " + role + ", " + strings.TrimSuffix(name, ", Mbit/s")
}

func memoryOf(role, when string) string {
	return fmt.Sprintf("RSS of the %s %s, MB", role, when)
}

func lossAt(mbps float64) string { return fmt.Sprintf("UDP loss at %g Mbit/s, %%", mbps) }

// figure is one thing that was measured, of one system.
type figure struct {
	System, What string
	Median       float64
	Min, Max     float64
	Samples      []float64
}

// micro is one Go benchmark.
type micro struct {
	Package, Name string
	Values        map[string]float64 // by unit; the median of several runs
	samples       map[string][]float64
}

// target is a line of the table of targets.
type target struct {
	Figure, Want string
	Got          string
	Runs         int    // that Got is the median of
	State        string // reached, not reached or not measured
}

// shares is a CPU profile: per cent by group of functions, and the most expensive functions.
type shares struct {
	Of     string
	Groups map[string]float64
	Top    []string
}

// report is what a run leaves.
type report struct {
	Date     time.Time
	Rounds   int
	Length   string
	Took     string
	Machine  [][2]string
	Paths    map[string]string
	Figures  []*figure
	Micro    []*micro
	Targets  []target
	Sizes    []string // the states of bench_size_test.go, in order
	Profiles []shares
	Problems []string
}

func newReport(rounds int, length time.Duration, commit string) *report {
	r := &report{Date: time.Now().UTC(), Rounds: rounds, Length: length.String(), Paths: map[string]string{}}
	var u unix.Utsname
	unix.Uname(&u)
	processor, memory := "", ""
	for file, v := range map[string]*string{"/proc/cpuinfo": &processor, "/proc/meminfo": &memory} {
		raw, _ := os.ReadFile(file)
		for line := range strings.Lines(string(raw)) {
			if k, text, _ := strings.Cut(line, ":"); *v == "" && (strings.HasPrefix(k, "model name") || k == "MemTotal") {
				*v = strings.TrimSpace(text)
			}
		}
	}
	r.Machine = [][2]string{
		{"date", r.Date.Format("2006-01-02 15:04 UTC")},
		{"commit", cmp.Or(commit, "unknown")},
		{"processor", fmt.Sprintf("%s, %d cores", processor, runtime.NumCPU())},
		{"memory", memory},
		{"kernel", unix.ByteSliceToString(u.Release[:])},
		{"Go", runtime.Version() + " " + runtime.GOARCH},
	}
	return r
}

func (r *report) find(system, what string) *figure {
	for _, f := range r.Figures {
		if f.System == system && f.What == what {
			return f
		}
	}
	return nil
}

func (r *report) add(system, what string, v float64) {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return
	}
	f := r.find(system, what)
	if f == nil {
		f = &figure{System: system, What: what}
		r.Figures = append(r.Figures, f)
	}
	f.Samples = append(f.Samples, v)
	f.Median, f.Min, f.Max = median(f.Samples), slices.Min(f.Samples), slices.Max(f.Samples)
}

// addSize notes the states of one process; each but the first is compared with the one before.
func (r *report) addSize(steps []sizeStep) {
	for i, s := range steps {
		if !slices.Contains(r.Sizes, s.What) {
			r.Sizes = append(r.Sizes, s.What)
		}
		r.add(sizeOf, s.What+sizeRSS, s.RSS)
		r.add(sizeOf, s.What+sizeCPU, s.CPU)
		if i == 0 || s.Count == 0 {
			continue
		}
		more := s.Count
		if before := steps[i-1]; before.Count < s.Count { // more of the same
			more -= before.Count
		}
		r.add(sizeOf, s.What+sizeEach, (s.RSS-steps[i-1].RSS)*1000/float64(more))
	}
}

func median(all []float64) float64 {
	s := slices.Sorted(slices.Values(all))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

// get is a median, and whether it was measured.
func (r *report) get(system, what string) (float64, bool) {
	if f := r.find(system, what); f != nil {
		return f.Median, true
	}
	return 0, false
}

// readMicro reads the output of go test -bench.
func (r *report) readMicro(file string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	pkg := ""
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "pkg:":
			pkg = strings.TrimPrefix(f[1], "lokinetd/")
		case len(f) > 3 && strings.HasPrefix(f[0], "Benchmark"):
			name := regexp.MustCompile(`-\d+$`).ReplaceAllString(strings.TrimPrefix(f[0], "Benchmark"), "")
			i := slices.IndexFunc(r.Micro, func(m *micro) bool { return m.Package == pkg && m.Name == name })
			if i < 0 {
				i = len(r.Micro)
				r.Micro = append(r.Micro, &micro{Package: pkg, Name: name, Values: map[string]float64{}, samples: map[string][]float64{}})
			}
			m := r.Micro[i]
			for k := 2; k+1 < len(f); k += 2 {
				if v, err := strconv.ParseFloat(f[k], 64); err == nil {
					m.samples[f[k+1]] = append(m.samples[f[k+1]], v)
					m.Values[f[k+1]] = median(m.samples[f[k+1]])
				}
			}
		}
	}
	return nil
}

// groups sort samples by their stack, one function a line and the innermost first: the first that matches counts.
var groups = []struct {
	name  string
	match *regexp.Regexp
}{
	{"kernel: sending UDP", regexp.MustCompile(`(?s)^\S*[sS]yscall6?\b.*(WriteMsgUDP|writeMsg|WriteBatch|[sS]endmsg|SendmsgN|WriteTo|sendTo)`)},
	{"kernel: receiving UDP", regexp.MustCompile(`(?s)^\S*[sS]yscall6?\b.*(ReadMsgUDP|readMsg|ReadBatch|recvMsgs|[rR]ecvmsg|ReadFrom|recvFrom)`)},
	{"kernel: TUN", regexp.MustCompile(`(?s)^\S*[sS]yscall6?\b.*(lokinetd/netif|wireguard/tun)`)},
	{"kernel: wake-ups and sleep", regexp.MustCompile(`^(\S*[sS]yscall6?\b|runtime\.(futex|epoll|usleep|osyield|write1|read\b|nanotime|timer_))`)},
	{"path and session ciphers", regexp.MustCompile(`(?s)^(golang.org/x/crypto|\S*(chacha|poly1305|alias|subtle|byteorder|encoding/binary|memmove|memclr)).*lokinetd/router/seal|^lokinetd/router/seal`)},
	{"QUIC's ciphers", regexp.MustCompile(`^(crypto/|\S*(aes|gcm|chacha|poly1305))`)},
	{"allocation and collection", regexp.MustCompile(`(?s)^\S*(mallocgc|gcBgMarkWorker|bgsweep|bgscavenge|gcAssist|newobject|makeslice|growslice)|\nruntime\.(mallocgc|gcBgMarkWorker|bgsweep|bgscavenge|gcStart|gcMarkDone|gcAssistAlloc|growslice|makeslice|newobject)|^runtime\.(gc|scan|mark|sweep|wbBuf|greyobject)|^sync\.\(\*Pool`)},
	{"scheduler, channels, locks, timers", regexp.MustCompile(`^(runtime\.(schedule|find|park|ready|gopark|goready|chan|select|send|recv|lock|unlock|mcall|gosched|steal|runq|wake|start|stop|note|sema|netpoll|mPark|mget|mput|pidle|execute|casg|cheaprand|\(\*timer|\(\*randomOrder|\(\*randomEnum|resetspinning|injectglist|checkTimers|goroutineReady|acquirep|releasep|handoffp|entersyscall|exitsyscall|reentersyscall|sysmon|nanotime|procyield|asyncPreempt|sellock|selunlock|\(\*(guintptr|waitq|sudog|lfstack|hchan))|sync|internal/sync|internal/poll|time\.|context|internal/runtime/(atomic|syscall)|runtime/internal)|(?s)^runtime\..*\nruntime\.(schedule|findRunnable|park_m|mcall|selectgo|chansend|chanrecv|goready|sysmon|systemstack)`)},
	{"quic-go", regexp.MustCompile(`(?s)^github.com/quic-go|^(runtime|internal|slices|encoding|bytes|net|errors|math|golang)\S*\n(\S*\n)*?github.com/quic-go`)},
	{"lokinetd", regexp.MustCompile(`(?s)^lokinetd/|^(runtime|internal|slices|encoding|bytes|net|errors|math)\S*\n(\S*\n)*?lokinetd/`)},
}

// readProfiles summarises the profiles in a directory; those of the relays of a network are one.
func (r *report) readProfiles(dir string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	for _, of := range []struct{ name, files string }{
		{"relay alone", "alone.prof"}, {"relays", "relay*.prof"}, {"client", "guest.prof"}, {"service", "host.prof"},
	} {
		files, _ := filepath.Glob(filepath.Join(dir, of.files))
		if len(files) == 0 {
			continue
		}
		pprof := func(args ...string) (string, error) {
			out, err := exec.Command("go", slices.Concat([]string{"tool", "pprof"}, args, []string{exe}, files)...).Output()
			if err != nil {
				err = fmt.Errorf("go tool pprof: %w", err)
			}
			return string(out), err
		}
		traces, err := pprof("-traces", "-unit=ms")
		if err != nil {
			return err
		}
		s := shares{Of: of.name, Groups: map[string]float64{}}
		total := 0.0
		// Stacks stand between lines of dashes; the first line of one begins with its weight.
		for _, stack := range regexp.MustCompile(`(?m)^-+\+-+$`).Split(traces, -1)[1:] {
			f := strings.Fields(strings.ReplaceAll(stack, "(inline)", ""))
			if len(f) < 2 {
				continue
			}
			weight, err := strconv.ParseFloat(strings.TrimSuffix(f[0], "ms"), 64)
			if err != nil {
				continue
			}
			total += weight
			group := rest
			for _, g := range groups {
				if g.match.MatchString(strings.Join(f[1:], "\n")) {
					group = g.name
					break
				}
			}
			s.Groups[group] += weight
		}
		for g := range s.Groups {
			s.Groups[g] *= 100 / total
		}
		top, err := pprof("-top", "-nodecount=20")
		if err != nil {
			return err
		}
		for line := range strings.Lines(top) { // flat flat% sum% cum cum% name
			if f := strings.Fields(line); len(f) > 5 && strings.HasSuffix(f[1], "%") {
				s.Top = append(s.Top, fmt.Sprintf("%6s %6s  %s", f[1], f[4], strings.Join(f[5:], " ")))
			}
		}
		r.Profiles = append(r.Profiles, s)
	}
	return nil
}

const rest = "the rest"

// got is a median and how many runs it is of; none: it was not measured.
type got struct {
	v    float64
	runs int
}

func (r *report) of(system, what string) got {
	if f := r.find(system, what); f != nil {
		return got{f.Median, len(f.Samples)}
	}
	return got{}
}

func (r *report) ofMicro(pkg, name, unit string) got {
	for _, m := range r.Micro {
		if m.Package == pkg && m.Name == name {
			return got{m.Values[unit], len(m.samples[unit])}
		}
	}
	return got{}
}

// over is x / y.
func (x got) over(y got) got {
	if x.runs == 0 || y.runs == 0 || y.v == 0 {
		return got{}
	}
	return got{x.v / y.v, min(x.runs, y.runs)}
}

func (x got) times(n float64) got { return got{x.v * n, x.runs} }

// finish judges the targets of the issue, in its order.
func (r *report) finish() {
	r.Took = time.Since(r.Date).Round(time.Second).String()
	judge := func(figure, want string, v got, reached bool, format string) {
		t := target{Figure: figure, Want: want, Got: "-", Runs: v.runs, State: "not measured"}
		if v.runs > 0 {
			t.Got, t.State = fmt.Sprintf(format, v.v), "not reached"
			if reached {
				t.State = "reached"
			}
		}
		r.Targets = append(r.Targets, t)
	}
	most := func(figure, want string, limit float64, format string, v got) {
		judge(figure, want, v, v.v <= limit, format)
	}
	ofTor := func(what string) got { return r.of(oursName, what).over(r.of(torName, what)) }
	least := func(figure string, times float64, v got) {
		judge(figure, fmt.Sprintf(">= %g", times), v, v.v >= times, "%.1f")
	}
	most("relay alone, ours / bare quic-go", "<= 1.15", 1.15, "%.2f", r.of(aloneRatio, aloneCPU))
	most("relay alone, CPU per forwarded 1,200-byte packet", "<= 15 us", 15, "%.1f us", r.of(aloneOurs, aloneCPU))
	most("the same with the bulk way (there is none: datagrams)", "<= 8 us", 8, "%.1f us", r.of(aloneOurs, aloneCPU))
	most("our link / bare quic-go datagram, CPU per packet", "<= 1.10", 1.10, "%.2f", r.ofMicro("router/link", "Ratio/link", "ours/bare"))
	most("one cipher layer, 1,200 bytes", "<= 0.8 us", 0.8, "%.2f us", r.ofMicro("router/seal", "Cipher/Stream/1200", "ns/op").times(1e-3))
	least("one TCP stream, down / Tor's", 2, ofTor(tcp1Down))
	least("one TCP stream, up / Tor's", 2, ofTor(tcp1Up))
	least("four streams, down / Tor's on one circuit", 4, ofTor(tcp4Down))
	least("four streams, up / Tor's on one circuit", 4, ofTor(tcp4Up))
	for _, x := range []struct{ how, what string }{{"one stream down", tcp1Down}, {"one stream up", tcp1Up}, {"four streams down", tcp4Down}, {"four streams up", tcp4Up}} {
		v := ofTor(costOf(x.what, ""))
		judge("CPU s/GB, all nodes / Tor's, "+x.how, "< 1", v, v.v < 1, "%.2f")
	}
	most("RTT at rest", "<= 3 ms", 3, "%.1f ms", r.of(oursName, rttIdle))
	most("RTT beside a bulk stream", "<= 25 ms", 25, "%.1f ms", r.of(oursName, rttBulk))
	most("cold client start to first byte of a page", "<= 400 ms", 400, "%.0f ms", r.of(oursName, coldStart))
	most("DNS answer from cache", "<= 0.2 ms", 0.2, "%.3f ms", r.of(oursName, dnsCached))
	most("DNS answer with a new session", "<= 100 ms", 100, "%.0f ms", r.of(oursName, dnsSession))
	most("RSS of a client with 4 edges", "<= 30 MB", 30, "%.1f MB", r.of(oursName, freshRSS))
	size := func(format string, args ...any) got { return r.of(sizeOf, fmt.Sprintf(format, args...)+sizeRSS) }
	most("RSS of a relay with 10 peers", "<= 30 MB", 30, "%.1f MB", size(stepPeers, sizePeers))
	most("RSS of each further link, the first 1,000", "<= 150 kB", 150, "%.0f kB", r.of(sizeOf, fmt.Sprintf(stepClients, sizeClients/2)+sizeEach))
	most("RSS of each further link, the next 1,000", "<= 150 kB", 150, "%.0f kB", r.of(sizeOf, fmt.Sprintf(stepClients, sizeClients)+sizeEach))
	most("RSS of a relay with 10,000 hops over 10 links", "<= 80 MB", 80, "%.0f MB", size(stepPeersHops, sizePeers, sizeHops))
	most("the same over 2,000 links, with these", "<= 80 MB", 80, "%.0f MB", size(stepClientsHops, sizeClients, sizeHops))
	most("choice of a path's relays among 1,000", "<= 1 ms", 1, "%.3f ms", r.ofMicro("router/path", "Choose/1000", "ns/op").times(1e-6))
}

// docMarks are the marks in the document around what the report puts there, by what that is.
func docMarks(part string) (begin, end string) {
	return fmt.Sprintf("<!-- bench: %s: make bench BENCH_DOC=1 writes from here to the next mark -->\n", part), fmt.Sprintf("<!-- bench: end of %s -->\n", part)
}

// write leaves bench.txt and bench.json, prints the former, and puts it into a document.
func (r *report) write(dir, doc string) error {
	summary, tables := r.summary(), r.tables()
	text := "# The tables\n\n" + tables + "\n# The run\n\n" + summary // what matters most comes last on a terminal, and first in a document
	fmt.Print(text)
	raw, err := json.MarshalIndent(r, "", "  ")
	err = errors.Join(err, os.WriteFile(filepath.Join(dir, "bench.txt"), []byte(text), 0o644), os.WriteFile(filepath.Join(dir, "bench.json"), raw, 0o644))
	if doc == "" || err != nil {
		return err
	}
	return errors.Join(replaceMarked(doc, "the run", summary), replaceMarked(doc, "the tables", tables))
}

// replaceMarked puts text between the marks of a part of a document.
func replaceMarked(doc, part, text string) error {
	old, err := os.ReadFile(doc)
	if err != nil {
		return err
	}
	begin, end := docMarks(part)
	head, rest, found := strings.Cut(string(old), begin)
	_, foot, found2 := strings.Cut(rest, end)
	if !found || !found2 {
		return fmt.Errorf("%s has no marks of the bench around %s", doc, part)
	}
	return os.WriteFile(doc, []byte(head+begin+"\n"+text+"\n"+end+foot), 0o644)
}

// summary is what the run was and came to, in Markdown.
func (r *report) summary() string {
	var w strings.Builder
	for _, m := range r.Machine {
		fmt.Fprintf(&w, "- %s: %s\n", m[0], m[1])
	}
	fmt.Fprintf(&w, "- medians of %d rounds, %s each measurement; %s without the Go benchmarks\n", r.Rounds, r.Length, r.Took)
	for _, p := range r.Problems {
		fmt.Fprintf(&w, "- **failed**: %s\n", strings.ReplaceAll(p, "\n", " "))
	}
	if len(r.Paths) > 0 {
		fmt.Fprintf(&w, "\nHops and circuits, as the programs tell:\n\n")
		for _, s := range []string{oursName, torName, wgName} {
			if r.Paths[s] != "" {
				fmt.Fprintf(&w, "- %s: %s\n", s, r.Paths[s])
			}
		}
	}
	if len(r.Profiles) > 0 {
		fmt.Fprintf(&w, "\nWhere the time goes: CPU profiles by groups of stacks, %% of the samples, of a relay alone, and of all relays, the client and the service of the network under one TCP stream down.\n\n")
		head := []string{""}
		for _, p := range r.Profiles {
			head = append(head, p.Of)
		}
		rows := [][]string{head}
		for _, g := range append(groups[:len(groups):len(groups)], struct {
			name  string
			match *regexp.Regexp
		}{rest, nil}) {
			row := []string{g.name}
			for _, p := range r.Profiles {
				row = append(row, fmt.Sprintf("%.0f", p.Groups[g.name]))
			}
			rows = append(rows, row)
		}
		writeTable(&w, rows)
	}
	fmt.Fprintf(&w, "\nTargets:\n\n")
	rows := [][]string{{"figure", "target", "median", "of runs", ""}}
	for _, t := range r.Targets {
		rows = append(rows, []string{t.Figure, t.Want, t.Got, strconv.Itoa(t.Runs), t.State})
	}
	writeTable(&w, rows)
	return w.String()
}

// tables are all figures, in Markdown.
func (r *report) tables() string {
	var w strings.Builder
	fmt.Fprintf(&w, "Medians; the smallest and largest of the rounds in brackets.\n")
	if r.find(aloneOurs, aloneCPU) != nil || r.find(aloneBare, aloneCPU) != nil {
		fmt.Fprintf(&w, "\n### A relay alone\n\n")
		rows := [][]string{{"", aloneBare, aloneOurs, "ours / bare"}}
		for _, what := range []string{aloneCPU, alonePerCore, aloneRate, aloneBusy, aloneLoss, aloneSparse, aloneBytes} {
			ratio := r.ratio(aloneOurs, aloneBare, what)
			if what == aloneCPU {
				ratio = r.cell(aloneRatio, what)
			}
			rows = append(rows, []string{what, r.cell(aloneBare, what), r.cell(aloneOurs, what), ratio})
		}
		writeTable(&w, rows)
	}

	var whats, stages []string
	for _, f := range r.Figures {
		switch {
		case f.What == atRest || !slices.Contains([]string{oursName, torName, wgName}, f.System) || slices.Contains(whats, f.What):
		case strings.HasPrefix(f.What, stageOf):
			stages = append(stages, f.What)
		default:
			whats = append(whats, f.What)
		}
	}
	if len(r.Paths) > 0 {
		fmt.Fprintf(&w, "\n### Whole networks side by side\n\n")
		rows := [][]string{{"", oursName, torName, wgName, "ours / Tor", "ours / wireguard-go"}}
		for _, what := range append(whats, atRest) {
			toTor := r.ratio(oursName, torName, what)
			switch what { // Tor can do better with more circuits: said, not hidden
			case tcp44Down:
				toTor = r.ratioOf(oursName, tcp4Down, torName, tcp44Down)
			case tcp44Up:
				toTor = r.ratioOf(oursName, tcp4Up, torName, tcp44Up)
			}
			rows = append(rows, []string{what, r.cell(oursName, what), r.cell(torName, what), r.cell(wgName, what), toTor, r.ratio(oursName, wgName, what)})
		}
		writeTable(&w, rows)
	}
	if len(stages) > 0 {
		fmt.Fprintf(&w, "\n### A cold start\n\nThe time line of the client (`lokinetd status`), from the begin of its process. The user of \"%s\" begins at the same moment.\n\n", coldStart)
		rows := [][]string{{"", "ms"}}
		slices.SortStableFunc(stages, func(a, b string) int {
			x, _ := r.get(oursName, a)
			y, _ := r.get(oursName, b)
			return cmp.Compare(x, y)
		})
		for _, s := range stages {
			rows = append(rows, []string{strings.TrimPrefix(s, stageOf), r.cell(oursName, s)})
		}
		writeTable(&w, rows)
	}
	if len(r.Sizes) > 0 {
		fmt.Fprintf(&w, "\n### Size\n\nOne process: a relay that paths end at, each pinged every 5 s; a client whose sessions carry a packet each 5 s.\n\n")
		rows := [][]string{{"", "RSS, MB", "each more, kB", "CPU, % of a core"}}
		for _, s := range r.Sizes {
			rows = append(rows, []string{s, r.cell(sizeOf, s+sizeRSS), r.cell(sizeOf, s+sizeEach), r.cell(sizeOf, s+sizeCPU)})
		}
		writeTable(&w, rows)
	}

	if len(r.Micro) > 0 {
		fmt.Fprintf(&w, "\n### Go benchmarks\n\n")
		rows := [][]string{{"", "ns", "B", "allocations", "more"}}
		for _, m := range r.Micro {
			row := []string{m.Package + " " + m.Name}
			for _, unit := range []string{"ns/op", "B/op", "allocs/op"} {
				text := ""
				if v, ok := m.Values[unit]; ok && !(unit == "ns/op" && v == 0) {
					text = threeDigits(v)
				}
				row = append(row, text)
			}
			var more []string
			for unit, v := range m.Values {
				if !slices.Contains([]string{"ns/op", "B/op", "allocs/op"}, unit) {
					more = append(more, threeDigits(v)+" "+unit)
				}
			}
			slices.Sort(more)
			rows = append(rows, append(row, strings.Join(more, ", ")))
		}
		writeTable(&w, rows)
	}
	for _, p := range r.Profiles {
		fmt.Fprintf(&w, "\n### %s, dearest functions\n\nAlone, and with what they call.\n\n```\n%s\n```\n", p.Of, strings.Join(p.Top, "\n"))
	}
	return w.String()
}

// cell is a median with its range.
func (r *report) cell(system, what string) string {
	f := r.find(system, what)
	switch {
	case f == nil:
		return "-"
	case len(f.Samples) == 1:
		return threeDigits(f.Median)
	}
	return fmt.Sprintf("%s [%s-%s]", threeDigits(f.Median), threeDigits(f.Min), threeDigits(f.Max))
}

func (r *report) ratio(x, y, what string) string { return r.ratioOf(x, what, y, what) }

func (r *report) ratioOf(x, whatX, y, whatY string) string {
	a, okA := r.get(x, whatX)
	b, okB := r.get(y, whatY)
	if !okA || !okB || b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", a/b)
}

// threeDigits prints three figures.
func threeDigits(v float64) string {
	switch {
	case v == 0:
		return "0"
	case math.Abs(v) >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case math.Abs(v) >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// writeTable prints rows, the first is the head, so that they can be read as text and as Markdown.
func writeTable(w *strings.Builder, rows [][]string) {
	wide := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, c := range row {
			wide[i] = max(wide[i], len(c))
		}
	}
	for n, row := range rows {
		for i, c := range row {
			fmt.Fprintf(w, "| %-*s ", wide[i], c)
		}
		w.WriteString("|\n")
		if n == 0 {
			for i := range row {
				w.WriteString("|" + strings.Repeat("-", wide[i]+2))
			}
			w.WriteString("|\n")
		}
	}
}
