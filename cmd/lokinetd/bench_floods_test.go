//go:build bench

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lokinetd/router"
)

// The bench of floods, behind `make floods`: what is left of an honest flow while somebody floods the relay that it goes through. Three processes: the relay and
// the honest pair share the first core, the attacker has the second for himself. The honest flow is paced at half of what it reaches alone; of what is sent under the
// flood so much arrives. Each flood meets a fresh relay, once as it is and once without bounds.

var (
	floodKinds  = flag.String("floods", "", "the floods to play, by name, `semicolon-separated`; all")
	floodDoc    = flag.String("floods-doc", "", "`file` whose part between the bench markers is replaced by the table of floods")
	floodBare   = flag.Bool("floods-defended", false, "not without bounds")
	floodTries  = flag.Int("floods-tries", 3, "how often a flood is played at most, when others of the machine disturb it")
	floodRounds = flag.Int("floods-rounds", 3, "how often each flood is played; the median counts")
)

const (
	honestCore, attackCore = 0, 1
	coreEnv                = "LOKINETD_BENCH_CORE"
	unboundedEnv           = "LOKINETD_BENCH_UNBOUNDED"
	statsEnv               = "LOKINETD_BENCH_STATS" // of the honest pair's first link, on standard error

	floodFor    = 3 * time.Second
	freeFor     = time.Second
	floodWarmup = 500 * time.Millisecond // from the first of the flood to the first that counts
	floodBegins = 40 * time.Second       // until the attacker is ready, at most
)

// floodEnvironment does what the environment asks of a process of this bench, before anything else runs.
func floodEnvironment() {
	router.Unbounded = os.Getenv(unboundedEnv) != ""
	core, err := strconv.Atoi(os.Getenv(coreEnv))
	if err != nil {
		return
	}
	// Others of the machine are to take little of the core: a session is scheduled as one (autogroup). Without the right to, their part is seen in the result.
	os.WriteFile("/proc/self/autogroup", []byte("-15"), 0)
	// The runtime counts the cores when it starts: so it is started anew.
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(core)
	if err = unix.SchedSetaffinity(0, &set); err == nil {
		os.Unsetenv(coreEnv)
		err = syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	}
	fmt.Fprintln(os.Stderr, "bench: one core only:", err)
	os.Exit(1)
}

func onCore(n int) string { return fmt.Sprintf("%s=%d", coreEnv, n) }

// flooded is the outcome of one flood at one relay.
type flooded struct {
	Free      float64 // datagrams a second that the honest flow reaches alone
	Sent      uint64  // under the flood
	Delivered float64 // share of them
	Relay     float64 // CPU of the relay under the flood, share of the core
	Attacks   float64 // a second: what the attacker could send
	Others    float64 // CPU of the first core that was neither the relay's nor the honest pair's, when none was left idle
}

var bounded = map[bool]string{false: "with bounds", true: "without"}

// disturbed is what others of this machine may take of the first core until a flood is played again.
const disturbed = 0.1

// busyOf is the time in seconds that a core has worked, and that it has not.
func busyOf(core int) (busy, idle float64) {
	raw, _ := os.ReadFile("/proc/stat")
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 9 || f[0] != fmt.Sprintf("cpu%d", core) {
			continue
		}
		for _, i := range []int{1, 2, 3, 6, 7, 8} { // user nice system irq softirq steal
			n, _ := strconv.ParseFloat(f[i], 64)
			busy += n / clockTick
		}
		n, _ := strconv.ParseFloat(f[4], 64)
		idle = n / clockTick
	}
	return busy, idle
}

func (b *bench) floods() {
	chosen := slices.Collect(func(yield func(string) bool) {
		for _, f := range floods {
			if (*floodKinds == "" || slices.Contains(strings.Split(*floodKinds, ";"), f.name)) && !yield(f.name) {
				return
			}
		}
	})
	// What was measured of this commit before counts too, so that the floods can be played in parts.
	results, kept := map[string]map[string][]flooded{}, filepath.Join(b.out, "floods-"+*benchMachine+".json")
	if raw, err := os.ReadFile(kept); err == nil {
		b.failed(kept, json.Unmarshal(raw, &results))
	}
	for round := range *floodRounds {
		for _, name := range chosen {
			for _, unbounded := range []bool{false, true} {
				if b.ctx.Err() != nil {
					return
				}
				if unbounded && *floodBare {
					continue
				}
				dir := filepath.Join(b.t.TempDir(), "flood")
				if b.failed(name, os.Mkdir(dir, 0o700)) {
					return
				}
				var r flooded
				var err error
				for try := range *floodTries {
					sub := filepath.Join(dir, strconv.Itoa(try))
					if err = os.Mkdir(sub, 0o700); err == nil {
						r, err = floodBench(b.ctx, sub, name, unbounded)
					}
					if err != nil || r.Others <= disturbed {
						break
					}
					b.say("floods: %s: others took %.0f %% of the core (delivered %.1f %%)", name, r.Others*100, r.Delivered*100)
				}
				if b.failed(name, err) {
					continue
				}
				b.say("floods, round %d: %-22s without bounds %-5v  free %6.0f/s  delivered %5.1f %%  relay %3.0f %%  others %2.0f %%  attacks %.0f/s", round+1, name, unbounded, r.Free, r.Delivered*100, r.Relay*100, r.Others*100, r.Attacks)
				if results[name] == nil {
					results[name] = map[string][]flooded{}
				}
				mode := bounded[unbounded]
				results[name][mode] = append(results[name][mode], r)
				raw, err := json.Marshal(results)
				b.failed("results of floods", errors.Join(err, os.WriteFile(kept, raw, 0o644)))
			}
		}
	}
	text := floodsTable(b.report, results)
	fmt.Print(text)
	b.failed("table of floods", os.WriteFile(filepath.Join(b.out, "floods.md"), []byte(text), 0o644))
	if *floodDoc != "" {
		b.failed("table of floods", replaceMarked(*floodDoc, "the floods", text))
	}
}

// floodsTable is the result in Markdown.
func floodsTable(r *report, results map[string]map[string][]flooded) string {
	var t strings.Builder
	for _, m := range r.Machine {
		fmt.Fprintf(&t, "- %s: %s\n", m[0], m[1])
	}
	fmt.Fprintf(&t, "- medians of %d rounds, %v each flood\n\n", len(results[floods[0].name][bounded[false]]), floodFor)
	t.WriteString("| flood | delivered | without bounds | CPU of the relay | without bounds | attacks a second | without bounds | what it is |\n|---|---|---|---|---|---|---|---|\n")
	middle := func(all []flooded, f func(flooded) float64) float64 {
		var v []float64
		for _, x := range all {
			v = append(v, f(x))
		}
		slices.Sort(v)
		if len(v) == 0 {
			return math.NaN()
		}
		return v[len(v)/2]
	}
	for _, flood := range floods {
		with, without := results[flood.name][bounded[false]], results[flood.name][bounded[true]]
		if len(with) == 0 {
			continue
		}
		fmt.Fprintf(&t, "| %s |", flood.name)
		for _, f := range []struct {
			of   func(flooded) float64
			unit string
		}{
			{func(x flooded) float64 { return x.Delivered * 100 }, " %"},
			{func(x flooded) float64 { return x.Relay * 100 }, " %"},
			{func(x flooded) float64 { return x.Attacks }, ""},
		} {
			fmt.Fprintf(&t, " %.0f%s | %.0f%s |", middle(with, f.of), f.unit, middle(without, f.of), f.unit)
		}
		fmt.Fprintf(&t, " %s |\n", flood.what)
	}
	return t.String()
}

// floodBench plays one flood.
func floodBench(ctx context.Context, dir, name string, unbounded bool) (r flooded, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a, err := newAlone(ctx, dir)
	if err != nil {
		return r, err
	}
	defer a.Close()
	env := []string{onCore(honestCore)}
	if unbounded {
		env = append(env, unboundedEnv+"=1")
	}
	if err := a.start(false, env...); err != nil {
		return r, err
	}
	attacker, err := a.programOn(attackCore, "flood", "-dir", dir, "-kind", name)
	if err != nil {
		return r, err
	}
	if _, err := attacker.expect("ready", floodBegins, nil); err != nil {
		return r, fmt.Errorf("attacker: %w", err)
	}
	honest, err := a.programOn(honestCore, "honest", "-dir", dir)
	if err != nil {
		return r, err
	}
	var free, under load
	if _, err := honest.expect("free", 30*time.Second, &free); err != nil {
		return r, fmt.Errorf("honest pair: %w", err)
	}
	if err := os.WriteFile(a.in("attack"), nil, 0o600); err != nil {
		return r, err
	}
	pair := childrenOf(a.PID(), "honest")
	before, both, began := cpuOf(a.pid), cpuOf(append(pair, a.pid)...), time.Now()
	busy, idle := busyOf(honestCore)
	if _, err := honest.expect("under", floodFor+20*time.Second, &under); err != nil {
		return r, fmt.Errorf("honest pair: %w", err)
	}
	took := time.Since(began).Seconds()
	r.Relay = (cpuOf(a.pid) - before) / took
	busyThen, idleThen := busyOf(honestCore)
	if r.Others = (busyThen - busy - cpuOf(append(pair, a.pid)...) + both) / took; (idleThen-idle)/took > disturbed {
		r.Others = 0 // they took what nobody wanted
	}
	var attacks struct{ Rate float64 }
	if _, err := attacker.expect("attacked", 20*time.Second, &attacks); err != nil {
		return r, fmt.Errorf("attacker: %w", err)
	}
	r.Free, r.Attacks = float64(free.Count)/free.Seconds, attacks.Rate
	if r.Sent = under.Count + under.Lost; r.Sent > 0 {
		r.Delivered = float64(under.Count) / float64(r.Sent)
	}
	return r, nil
}

// programOn is program on one core.
func (a *alone) programOn(core int, name string, args ...string) (*lines, error) {
	c := a.Self(append([]string{"bench", name, "-relay-key", a.in("relay.key"), "-end-key", a.in("end.key")}, args...)...)
	c.Env = append(os.Environ(), onCore(core))
	out := newLines(a.ctx)
	c.Stdout, c.Stderr = out, os.Stderr
	return out, out.follow(c)
}

// playHonest is the honest pair.
func playHonest(ctx context.Context, args []string) (any, error) {
	f := flag.NewFlagSet("honest", flag.ContinueOnError)
	relayKey, endKey, dir := f.String("relay-key", "", ""), f.String("end-key", "", ""), f.String("dir", "", "")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	relay, end, err := loadPair(*relayKey, *endKey)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &drive{room: make(chan struct{}, window)}
	if err := d.throughPath(ctx, relay, end); err != nil {
		return nil, err
	}
	d.run(freeFor/2, 0)
	free := d.run(freeFor, 0)
	told := func(word string, l load) {
		fmt.Printf("%s {\"Count\":%d,\"Lost\":%d,\"Seconds\":%f,\"Bytes\":%f}\n", word, l.Count, l.Lost, l.Seconds, l.Bytes)
	}
	told("free", free)
	awaitAttack(ctx, *dir)
	half := int(float64(free.Count) / free.Seconds / 2)
	d.run(floodWarmup, half)
	told("under", d.run(floodFor, half))
	if os.Getenv(statsEnv) != "" {
		fmt.Fprintf(os.Stderr, "first link: %+v\n", d.first.Stats())
	}
	time.Sleep(time.Second) // it is still looked at
	return nil, nil
}

// awaitAttack returns when the flood is to begin.
func awaitAttack(ctx context.Context, dir string) {
	for ctx.Err() == nil {
		if _, err := os.Stat(filepath.Join(dir, "attack")); err == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}
