//go:build root && soak

package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lokinetd/netif/lab"
	"lokinetd/router/control"
	"lokinetd/router/key"
)

var (
	churnFor    = flag.Duration("churn", 2*time.Hour, "how long TestChurn lasts, at least 4 minutes")
	churnOut    = flag.String("churn.out", "", "`directory` for the heap and goroutine profiles of each reading")
	churnDoc    = flag.String("churn.doc", "", "`file` to write the result to")
	churnCommit = flag.String("churn.commit", "", "what was built")
)

const (
	vitalsEnv   = "LOKINETD_TEST_VITALS" // the directory that the daemons write their vitals to
	churnCycle  = time.Minute
	churnGrowth = 1.05 // of each figure at most
	churnRead   = 5    // readings of which the median is taken
)

// A daemon of this test writes, at each SIGUSR1, its live heap after a forced collection, its goroutines and its descriptors to a file that has the name of its folder. The
// released program has no such door.
func init() {
	dir := os.Getenv(vitalsEnv)
	if dir == "" || len(os.Args) < 2 || os.Args[1] != "run" && os.Args[1] != "proxy" {
		return
	}
	runtime.MemProfileRate = 16 << 10
	name := filepath.Join(dir, filepath.Base(filepath.Dir(os.Args[len(os.Args)-1])))
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	go func() {
		for n := 1; ; n++ {
			<-c
			runtime.GC()
			runtime.GC() // what pools held is free after the second one
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			fds, _ := os.ReadDir("/proc/self/fd")
			v := vitals{float64(m.HeapAlloc), float64(runtime.NumGoroutine()), float64(len(fds))}
			for _, kind := range []string{"heap", "goroutine"} {
				if f, err := os.Create(fmt.Sprintf("%s.%03d.%s", name, n, kind)); err == nil {
					pprof.Lookup(kind).WriteTo(f, 0)
					f.Close()
				}
			}
			os.WriteFile(name+".new", fmt.Append(nil, v[0], v[1], v[2]), 0o600)
			os.Rename(name+".new", name)
		}
	}()
}

// vitals are what must not grow: bytes of live heap, goroutines, descriptors.
type vitals [3]float64

var vitalNames = [3]string{"live heap (kB)", "goroutines", "descriptors"}

// churn is the demo's network, in which much comes and goes.
type churn struct {
	t     *testing.T
	d     *demoNet
	ctx   context.Context
	relay map[string]*lab.Cmd
	page  string // the service's address

	mu    sync.Mutex
	tried map[string]int
	bad   map[string]int
	last  map[string]string // what went wrong last
}

// did counts one thing that was tried.
func (c *churn) did(what string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tried[what]++
	if err != nil {
		c.bad[what]++
		c.last[what] = fmt.Sprintf("%s: %.300v", time.Now().Format(time.TimeOnly), err)
	}
}

// run runs a command and gives what it says as an error if it fails.
func (c *churn) run(n *lab.Node, args ...string) error {
	out, err := n.Command(args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %.200s", err, out)
	}
	return err
}

func (c *churn) curl(n *lab.Node, args ...string) error {
	return c.run(n, append([]string{"curl", "-sS", "--fail", "--max-time", "20", "-o", "/dev/null"}, args...)...)
}

func (c *churn) startRelay(name string) error {
	r := c.d.lab.Self("run", "-c", c.d.file(name))
	r.Stderr = os.Stdout // warnings and last words
	c.relay[name] = r
	return r.Start()
}

// read gives the vitals of a daemon.
func (c *churn) read(name string, cmd *lab.Cmd) (v vitals, err error) {
	file := filepath.Join(os.Getenv(vitalsEnv), name)
	os.Remove(file)
	if err := cmd.Signal(syscall.SIGUSR1); err != nil {
		return v, err
	}
	for range 600 {
		time.Sleep(50 * time.Millisecond)
		if text, err := os.ReadFile(file); err == nil {
			_, err = fmt.Sscan(string(text), &v[0], &v[1], &v[2])
			return v, err
		}
	}
	return v, fmt.Errorf("%s does not answer", name)
}

// TestChurn: live heap, goroutines and descriptors of daemons that live through hours in which clients come and go, relays are killed and restarted, pages fetched, names
// looked up, sessions begun and dropped, configurations reloaded, and control sockets and proxies used. Each minute is like the one before, and ends with a
// quiet moment and a reading. The median of five readings from the tenth minute on is set against that of five at the end; they are four minutes apart, since in sixteen
// minutes each of the other eight relays is killed twice, and what is dialled and given up meanwhile goes up and down with that.
func TestChurn(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), *churnFor+10*time.Minute)
	defer cancel()
	out := *churnOut
	if out == "" {
		out = t.TempDir()
	}
	t.Setenv(vitalsEnv, out)
	d, must := demoOf(ctx, t)
	defer d.close()
	names, err := d.plan()
	must(err)
	c := &churn{t: t, d: d, ctx: ctx, relay: map[string]*lab.Cmd{}, tried: map[string]int{}, bad: map[string]int{}, last: map[string]string{}}
	for _, name := range names {
		must(c.startRelay(name))
	}
	host, address, err := d.serve(ctx)
	must(err)
	c.page = address
	guest, err := d.client("guest", "10.77.0.102", "")
	must(err)
	ready := func(s control.Status) bool { return s.State == control.Ready }
	must(guest.wait(ctx, ready))
	proxy, err := d.node("proxy", "10.77.0.103", "")
	must(err)
	proxy.cmd = proxy.node.Self("proxy", "-c", d.file("proxy"))
	proxy.cmd.Stderr = &proxy.log
	must(proxy.cmd.Start())
	must(proxy.wait(ctx, ready))
	comer, err := d.node("comer", "10.77.0.104", "")
	must(err)
	live := map[string]*lab.Cmd{"client": guest.cmd, "service": host.cmd, "proxy": proxy.cmd, names[0]: c.relay[names[0]], names[1]: c.relay[names[1]]}
	file := map[string]string{"client": "guest", "service": "host", "proxy": "proxy", names[0]: names[0], names[1]: names[1]}

	hostText, err := os.ReadFile(d.file("host"))
	must(err)
	series := map[string][]vitals{}
	began := time.Now()
	for n := 0; time.Since(began)+churnCycle <= *churnFor+time.Second; n++ {
		start := began.Add(time.Duration(n) * churnCycle)
		at := func(second int) {
			select {
			case <-time.After(time.Until(start.Add(time.Duration(second) * time.Second))):
			case <-ctx.Done():
			}
		}
		at(0)
		victim := names[2+n%(len(names)-2)]
		c.relay[victim].Signal(syscall.SIGKILL)
		c.relay[victim].Wait()

		at(1)
		c.did("pages fetched by name", c.curl(guest.node, "http://"+demoName+"/"))
		c.did("pages fetched by address", c.curl(guest.node, "http://"+c.page+"/"))
		c.did("downloads", c.curl(guest.node, fmt.Sprintf("http://%s/bytes/300000", c.page)))

		at(4)
		if n%2 == 0 { // as one who never was here
			must(os.RemoveAll(filepath.Join(d.dir, "comer")))
			must(os.Mkdir(filepath.Join(d.dir, "comer"), 0o700))
		}
		theirs := ""
		must(os.WriteFile(d.file("comer"), []byte(d.config("comer", "")+"[[service]]\nname = \"brief\"\necho = true\n"), 0o600))
		must(comer.start())
		c.did("clients that come", comer.wait(ctx, func(s control.Status) bool {
			if len(s.Endpoints) == 2 && s.Endpoints[1].PublishedAt != nil {
				theirs = s.Endpoints[1].Address
			}
			return theirs != ""
		}))
		c.did("their pages", c.curl(comer.node, "http://"+demoName+"/"))

		at(14)
		c.did("relays restarted", c.startRelay(victim))
		if theirs != "" {
			c.did("calls of them", c.run(guest.node, "ping", "-c", "3", "-W", "5", theirs))
		}
		slow := guest.node.Command("curl", "-sS", "--limit-rate", "20k", "-o", "/dev/null", fmt.Sprintf("http://%s/bytes/50000000", c.page))
		if slow.Start() == nil { // dropped in the middle
			at(20)
			slow.Signal(syscall.SIGKILL)
			slow.Wait()
		}

		at(21)
		c.did("names that exist", c.run(guest.node, "dig", "+short", "+timeout=10", "@127.3.2.1", demoName))
		for i := range 5 {
			c.run(guest.node, "dig", "+short", "+timeout=3", "+tries=1", "@127.3.2.1", fmt.Sprintf("nobody-%d-%d.loki", n, i))
		}
		c.run(guest.node, "dig", "+short", "+timeout=3", "+tries=1", "@127.3.2.1", key.Address{Key: key.Generate().Public()}.String())
		c.did("names that do not", nil)

		at(30)
		for _, way := range []string{"socks5h://127.0.0.1:1080", "http://127.0.0.1:1081"} {
			c.did("pages through a proxy", c.curl(proxy.node, "-x", way, "http://"+c.page+"/"))
			c.did("downloads through a proxy", c.curl(proxy.node, "-x", way, fmt.Sprintf("http://%s/bytes/100000", demoName)))
			c.curl(proxy.node, "-x", way, "--max-time", "5", fmt.Sprintf("http://nobody-%d.loki/", n))
			c.curl(proxy.node, "-x", way, "http://example.com/")
		}

		at(38)
		text := slices.Clone(hostText)
		if n%2 == 0 {
			text = append(text, "[[service]]\nname = \"second\"\necho = true\n"...)
		}
		must(os.WriteFile(d.file("host"), text, 0o600))
		for _, cmd := range live {
			if cmd != c.relay[names[0]] && cmd != c.relay[names[1]] {
				c.did("reloads", cmd.Signal(syscall.SIGHUP))
			}
		}
		for _, name := range []string{"guest", "host", "proxy", names[0], names[1]} {
			client := control.NewClient(filepath.Join(d.dir, name, "sock"))
			for range 5 {
				_, err := client.Status(ctx)
				c.did("statuses", err)
			}
			for range 3 {
				go func() {
					listen, stop := context.WithTimeout(ctx, 3*time.Second)
					defer stop()
					client.Events(listen, func(control.Event) error { return nil })
				}()
			}
			c.did("listeners to events", nil)
		}

		at(42)
		if n%2 == 0 {
			comer.stop()
		} else {
			comer.cmd.Signal(syscall.SIGKILL)
			comer.cmd.Wait()
			comer.cmd = nil
		}
		relays, err := control.NewClient(guest.socket()).Relays(ctx)
		if err == nil && len(relays.Relays) > 0 {
			c.did("calls of relays", c.run(guest.node, "ping", "-c", "2", "-W", "5", relays.Relays[rand.IntN(len(relays.Relays))].Relay))
		}
		guest.log.Reset()
		host.log.Reset()
		proxy.log.Reset()

		at(56)
		line := ""
		for _, who := range []string{"client", "service", "proxy", names[0], names[1]} {
			v, err := c.read(file[who], live[who])
			if err != nil {
				t.Fatalf("%s: %v\n%s", who, err, guest.log.String()+host.log.String()+proxy.log.String())
			}
			series[who] = append(series[who], v)
			line += fmt.Sprintf("  %s %.0f kB %.0f %.0f", who, v[0]/1000, v[1], v[2])
		}
		fmt.Printf("%3d min%s\n", n+1, line)
		if ctx.Err() != nil {
			t.Fatal(context.Cause(d.ctx))
		}
	}
	c.result(began, series, []string{"client", "service", "proxy", names[0], names[1]})
}

// churnReadings chooses the minutes, from 1 on, whose readings are compared.
func churnReadings(minutes int) (early, late []int) {
	n, step := min(churnRead, minutes/2), max(1, min(4, minutes/20))
	for i := range n {
		early = append(early, min(10, minutes/2-(n-1)*step)+i*step)
		late = append(late, minutes-(n-1-i)*step)
	}
	return early, late
}

// ofMinutes are some of the readings.
func ofMinutes(series []vitals, minutes []int) (some []vitals) {
	for _, m := range minutes {
		some = append(some, series[m-1])
	}
	return some
}

// result says what has grown, and writes it down.
func (c *churn) result(began time.Time, series map[string][]vitals, nodes []string) {
	var b bytes.Buffer
	minutes := len(series[nodes[0]])
	early, late := churnReadings(minutes)
	fmt.Fprintf(&b, "# Hours of churn\n\nWritten by `make churn`: %d minutes of the demo's network (ten relays, a client, a service, a `lokinetd proxy`), in each of which a relay was killed\n"+
		"and restarted, a client with a service of its own came, was called and went, and the rest below was done. Nothing is compared but daemons that lived through all of it.\n"+
		"Medians of the readings of minutes %d (early) and %d (late); live heap is after a forced collection. Commit %s, %s, %s.\n\n",
		minutes, early, late, *churnCommit, began.UTC().Format(time.DateOnly), churnMachine())
	fmt.Fprintf(&b, "| daemon | figure | early | late | late / early (at most %.2f) |\n|---|---|---|---|---|\n", churnGrowth)
	for _, who := range nodes {
		for i, name := range vitalNames {
			scale := 1.0
			if i == 0 {
				scale = 1000
			}
			was, is := churnMedian(ofMinutes(series[who], early), i), churnMedian(ofMinutes(series[who], late), i)
			fmt.Fprintf(&b, "| %s | %s | %.0f | %.0f | %.3f |\n", who, name, was/scale, is/scale, is/was)
			if is > churnGrowth*was {
				c.t.Errorf("%s: %s grew from %.0f to %.0f", who, name, was/scale, is/scale)
			}
		}
	}
	fmt.Fprintf(&b, "\nLive heap in kB, medians of ten minutes:\n\n| minutes | %s |\n|---|%s\n", strings.Join(nodes, " | "), strings.Repeat("---|", len(nodes)))
	for m := 0; m+10 <= minutes; m += 10 {
		fmt.Fprintf(&b, "| %d to %d |", m+1, m+10)
		for _, who := range nodes {
			fmt.Fprintf(&b, " %.0f |", churnMedian(series[who][m:m+10], 0)/1000)
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprintf(&b, "\n| done | times | failed |\n|---|---|---|\n| relays killed | %d | |\n", minutes)
	whats := []string{}
	for what := range c.tried {
		whats = append(whats, what)
	}
	slices.Sort(whats)
	for _, what := range whats {
		fmt.Fprintf(&b, "| %s | %d | %d |\n", what, c.tried[what], c.bad[what])
		if c.bad[what] > 0 {
			c.t.Logf("%s: %d of %d failed, the last one at %s", what, c.bad[what], c.tried[what], c.last[what])
		}
		if c.bad[what]*10 > c.tried[what] {
			c.t.Errorf("%s: %d of %d failed, the last one at %s", what, c.bad[what], c.tried[what], c.last[what])
		}
	}
	c.t.Logf("\n%s", b.String())
	if *churnDoc != "" {
		if err := os.WriteFile(*churnDoc, b.Bytes(), 0o644); err != nil {
			c.t.Error(err)
		}
	}
}

func churnMedian(all []vitals, i int) float64 {
	var x []float64
	for _, v := range all {
		x = append(x, v[i])
	}
	slices.Sort(x)
	return x[len(x)/2]
}

// churnMachine says what kind of machine this is.
func churnMachine() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	model := "?"
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	return fmt.Sprintf("%s, %d cores", model, runtime.NumCPU())
}
