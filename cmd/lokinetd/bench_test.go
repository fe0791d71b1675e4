//go:build bench

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lokinetd/netif/lab"
)

// The bench of whole networks, behind `make bench`. It is a test program because it plays parts that the program has no business with (Tor's
// and WireGuard's users, a relay's peers) with what the program is made of. Every process runs in a lab, whose end, wanted or not, ends it.

var (
	benchRounds  = flag.Int("rounds", 5, "how often everything is measured; the median counts")
	benchFor     = flag.Duration("for", 3*time.Second, "length of one measurement")
	benchOnly    = flag.String("only", "relay,size,lokinetd,tor,wireguard", "the parts to run, of these five; or floods alone")
	benchMicro   = flag.String("micro", "", "`file` with the output of go test -bench")
	benchOut     = flag.String("out", "", "`directory` for bench.txt, bench.json and the CPU profiles")
	benchDoc     = flag.String("doc", "", "`file` whose part between the bench markers is replaced by the report")
	benchTor     = flag.String("tor", "", "`directory` to unpack Debian's tor in")
	benchMachine = flag.String("commit", "", "what was built")
)

func TestMain(m *testing.M) {
	floodEnvironment()
	lab.Main()
	if len(os.Args) > 1 && slices.Contains([]string{"run", "demo", "bench"}, os.Args[1]) {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		if os.Args[1] == "bench" {
			os.Exit(benchProgram(ctx, os.Args[2:]))
		}
		profileOnSignal()
		os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// profileOnSignal lets a lokinetd write a CPU profile from one SIGUSR1 to the next, when profileEnv names a directory. The file has the name of
// the directory that the configuration lies in.
func profileOnSignal() {
	dir := os.Getenv(profileEnv)
	if dir == "" {
		return
	}
	name := filepath.Join(dir, filepath.Base(filepath.Dir(os.Args[len(os.Args)-1]))+".prof")
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	go func() {
		for range c {
			f, err := os.Create(name + ".new")
			if err == nil {
				err = pprof.StartCPUProfile(f)
			}
			<-c
			pprof.StopCPUProfile()
			if err = errors.Join(err, f.Close(), os.Rename(name+".new", name)); err != nil {
				fmt.Fprintln(os.Stderr, "bench: profile:", err)
			}
		}
	}()
}

func TestBench(t *testing.T) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := lab.Check(); err != nil {
		t.Fatalf("the bench of whole networks needs network namespaces: %v", err)
	}
	out := *benchOut
	if out == "" {
		out = t.TempDir()
	}
	out, err := filepath.Abs(out)
	if err != nil {
		t.Fatal(err)
	}
	profiles := filepath.Join(out, "profiles")
	if err := errors.Join(os.RemoveAll(profiles), os.MkdirAll(profiles, 0o755)); err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, ctx: ctx, out: out, report: newReport(*benchRounds, *benchFor, *benchMachine)}
	if *benchMicro != "" {
		if err := b.report.readMicro(*benchMicro); err != nil {
			t.Error(err)
		}
	}
	only := strings.Split(*benchOnly, ",")
	n := time.Duration(*benchRounds)
	if slices.Contains(only, "floods") {
		b.part("floods", time.Hour, b.floods)
		for _, p := range b.report.Problems {
			t.Error(p)
		}
		return
	}
	if slices.Contains(only, "relay") {
		b.part("a relay alone", time.Minute+n*(8**benchFor+20*time.Second), b.relayAlone)
	}
	if slices.Contains(only, "size") {
		b.part("size", 2*time.Minute+n*150*time.Second, b.sizes)
	}
	b.part("whole networks", 8*time.Minute+n*(50**benchFor+time.Minute), func() { b.networks(only) })
	if err := ctx.Err(); err != nil {
		t.Fatal("interrupted")
	}
	b.failed("profiles", b.report.readProfiles(profiles))
	b.report.finish()
	if err := b.report.write(out, *benchDoc); err != nil {
		t.Error(err)
	}
	for _, p := range b.report.Problems {
		t.Error(p)
	}
}

// bench is one run.
type bench struct {
	t      *testing.T
	ctx    context.Context
	out    string
	report *report
}

// part measures a part for no longer than limit: what it started ends then, and what it has measured stays.
func (b *bench) part(name string, limit time.Duration, measure func()) {
	whole := b.ctx
	ctx, cancel := context.WithTimeout(whole, limit)
	defer cancel()
	b.ctx = ctx
	measure()
	b.ctx = whole
	if ctx.Err() != nil {
		b.failed(name, fmt.Errorf("not at its end after %v", limit))
	}
}

// failed notes what could not be measured; the rest goes on.
func (b *bench) failed(what string, err error) bool {
	if err != nil && b.ctx.Err() == nil {
		b.report.Problems = append(b.report.Problems, fmt.Sprintf("%s: %v", what, err))
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
	}
	return err != nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.0f s  %s\n", time.Since(b.report.Date).Seconds(), fmt.Sprintf(format, args...))
}

// relayAlone measures (c): a relay of ours and a bare one, in turns.
func (b *bench) relayAlone() {
	for round := range *benchRounds {
		perPacket := map[bool]float64{}
		for _, bare := range []bool{true, false} {
			if b.ctx.Err() != nil {
				return
			}
			name := map[bool]string{true: aloneBare, false: aloneOurs}[bare]
			b.say("relay alone, round %d: %s", round+1, name)
			profiles := ""
			if !bare && round == *benchRounds-1 {
				profiles = filepath.Join(b.out, "profiles")
			}
			dir := filepath.Join(b.t.TempDir(), "alone")
			if b.failed(name, os.Mkdir(dir, 0o700)) {
				return
			}
			full, sparse, err := relayBench(b.ctx, dir, bare, *benchFor, profiles)
			if b.failed(name, err) {
				continue
			}
			count := float64(full.Count)
			perPacket[bare] = full.CPU / count * 1e6
			b.report.add(name, aloneCPU, perPacket[bare])
			b.report.add(name, aloneRate, count/full.Seconds)
			b.report.add(name, alonePerCore, count/full.CPU)
			b.report.add(name, aloneBusy, full.CPU/full.Seconds*100)
			b.report.add(name, aloneLoss, float64(full.Lost)/float64(full.Count+full.Lost)*100)
			b.report.add(name, aloneSparse, sparse.CPU/float64(sparse.Count)*1e6)
			b.report.add(name, aloneBytes, full.Bytes)
		}
		if perPacket[true] > 0 && perPacket[false] > 0 {
			b.report.add(aloneRatio, aloneCPU, perPacket[false]/perPacket[true])
		}
	}
}

// sizes measures nodes that have many links, hops or sessions.
func (b *bench) sizes() {
	for round := range min(*benchRounds, sizeRounds) {
		for _, p := range []struct {
			name    string
			measure func(dir string) ([]sizeStep, error)
		}{
			{"relay with few links", func(dir string) ([]sizeStep, error) { return relaySize(b.ctx, dir, false) }},
			{"relay with many links", func(dir string) ([]sizeStep, error) { return relaySize(b.ctx, dir, true) }},
			{"client with many sessions", func(dir string) ([]sizeStep, error) { return clientSize(b.ctx, dir) }},
		} {
			if b.ctx.Err() != nil {
				return
			}
			b.say("size, round %d: %s", round+1, p.name)
			dir, err := os.MkdirTemp("", "lokinetd-bench-") // sockets need short names
			if b.failed(p.name, err) {
				return
			}
			steps, err := p.measure(dir)
			os.RemoveAll(dir)
			b.failed("size of a "+p.name, err)
			b.report.addSize(steps)
		}
	}
}

// udpRates are the points of the loss curve, Mbit/s.
var udpRates = []float64{10, 25, 50, 100, 150, 200, 300}

// networks measures (d) and (e): all networks are up, each has its turn in every round.
func (b *bench) networks(only []string) {
	var all []*system
	defer func() {
		for _, s := range all {
			s.close()
		}
	}()
	os.Setenv(profileEnv, filepath.Join(b.out, "profiles"))
	for _, n := range []struct {
		part  string
		start func(dir string) (*system, error)
	}{
		{"tor", func(dir string) (*system, error) {
			program, err := torProgram(*benchTor)
			if err != nil {
				return nil, err
			}
			return startTor(b.ctx, dir, program)
		}},
		{"lokinetd", func(dir string) (*system, error) { return startOurs(b.ctx, dir) }},
		{"wireguard", func(string) (*system, error) { return startWireguard(b.ctx) }},
	} {
		if !slices.Contains(only, n.part) || b.ctx.Err() != nil {
			continue
		}
		b.say("%s: starting its network", n.part)
		dir, err := os.MkdirTemp("", "lokinetd-bench-") // sockets need short names
		if b.failed(n.part, err) {
			continue
		}
		defer os.RemoveAll(dir)
		s, err := n.start(dir)
		if b.failed(n.part, err) {
			continue
		}
		all = append(all, s)
	}
	if len(all) == 0 || b.ctx.Err() != nil {
		return
	}
	b.say("all at rest")
	time.Sleep(2 * time.Second)
	before := make([]float64, len(all))
	for i, s := range all {
		before[i] = s.used("")
	}
	time.Sleep(*benchFor)
	for i, s := range all {
		b.report.add(s.name, atRest, (s.used("")-before[i])/benchFor.Seconds()*100)
		b.memory(s, "at rest")
	}
	for round := range *benchRounds {
		for _, s := range all {
			if b.ctx.Err() != nil {
				return
			}
			b.say("round %d of %d: %s", round+1, *benchRounds, s.name)
			b.round(s)
		}
	}
	for _, s := range all {
		b.memory(s, "after the load")
		if s.name == oursName && b.ctx.Err() == nil {
			b.profiles(s)
		}
	}
}

// used is the CPU time of all processes of a role, or of all.
func (s *system) used(role string) (sum float64) {
	for r, pids := range s.roles {
		if role == "" || r == role {
			sum += cpuOf(pids...)
		}
	}
	return sum
}

func (b *bench) memory(s *system, when string) {
	for _, role := range order {
		most := 0.0
		for _, pid := range s.roles[role] {
			most = max(most, rssOf(pid))
		}
		if most > 0 {
			b.report.add(s.name, memoryOf(role, when), most)
		}
	}
}

// round is one round in one network.
func (b *bench) round(s *system) {
	lasts := benchFor.String()
	tcp := func(name string, args ...string) {
		var r rate
		before := map[string]float64{"": s.used("")}
		for role := range s.roles {
			before[role] = s.used(role)
		}
		if b.failed(s.name+", "+name, s.run(&r, append([]string{"tcp", "-for", lasts}, args...)...)) {
			return
		}
		b.report.add(s.name, name, r.Mbps)
		if r.Bytes > 0 {
			gb := float64(r.Bytes) / 1e9
			for _, role := range append([]string{""}, order...) {
				if role == "" || s.roles[role] != nil {
					b.report.add(s.name, costOf(name, role), (s.used(role)-before[role])/gb)
				}
			}
		}
	}
	tcp(tcp1Down)
	tcp(tcp1Up, "-up")
	tcp(tcp4Down, "-streams", "4")
	tcp(tcp4Up, "-streams", "4", "-up")
	if s.route.socks != "" {
		tcp(tcp44Down, "-streams", "4", "-users", "4")
		tcp(tcp44Up, "-streams", "4", "-users", "4", "-up")
	}
	for _, bulk := range []bool{false, true} {
		var r times
		name := map[bool]string{false: rttIdle, true: rttBulk}[bulk]
		if !b.failed(s.name+", "+name, s.run(&r, "rtt", "-for", lasts, fmt.Sprintf("-bulk=%v", bulk))) {
			b.report.add(s.name, name, r.Median)
			b.report.add(s.name, name+tail, r.P90)
		}
	}
	if s.route.socks == "" {
		for _, mbps := range udpRates {
			var l loss
			name := lossAt(mbps)
			if !b.failed(s.name+", "+name, s.run(&l, "udp", "-rate", fmt.Sprint(mbps), "-for", min(*benchFor, 2*time.Second).String())) && l.Sent > 0 {
				b.report.add(s.name, name, float64(l.Sent-min(l.Sent, l.Came))/float64(l.Sent)*100)
			}
		}
	}
	if b.ctx.Err() != nil {
		return
	}
	b.report.Paths[s.name] = s.path()
	if s.fresh != nil {
		for _, warm := range []bool{false, true} {
			name := map[bool]string{false: coldStart, true: warmStart}[warm]
			took, err := s.fresh(warm)
			if !b.failed(s.name+", "+name, err) {
				b.report.add(s.name, name, ms(took))
				if s.stages != nil && !warm {
					stages, err := s.stages()
					b.failed(s.name+", time line", err)
					for _, x := range stages {
						b.report.add(s.name, stageOf+x.Name, x.AtMs)
					}
				}
			}
		}
	}
	if s.names != nil {
		session, cached, err := s.names()
		if !b.failed(s.name+", names", err) {
			b.report.add(s.name, dnsSession, session)
			b.report.add(s.name, dnsCached, cached)
			mb, err := s.rss()
			if !b.failed(s.name+", "+freshRSS, err) {
				b.report.add(s.name, freshRSS, mb)
			}
		}
	}
}

// profiles takes CPU profiles of all nodes under one stream.
func (b *bench) profiles(s *system) {
	b.say("CPU profiles of %s", s.name)
	lasts := max(3**benchFor, 3*time.Second)
	done := make(chan error, 1)
	go func() { done <- s.run(new(rate), "tcp", "-for", (lasts + time.Second).String()) }()
	time.Sleep(time.Second)
	for range 2 {
		for _, pids := range s.roles {
			for _, pid := range pids {
				toggleProfile(pid)
			}
		}
		time.Sleep(lasts)
		lasts = time.Second
	}
	b.failed("profiles", <-done)
}
