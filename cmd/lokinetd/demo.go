package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"lokinetd/netif/lab"
	"lokinetd/router/control"
	"lokinetd/router/key"
)

const (
	demoWait = 60 * time.Second // for each thing that is waited for
	demoName = "demo.loki"      // of the page, in the network file
)

func (a *app) demoCommand() *cobra.Command {
	var keep bool
	var repeat int
	cmd := &cobra.Command{
		Use: "demo", Short: "Run a whole private network on this machine and fetch a page through it", Args: cobra.NoArgs,
		Long: "Run a whole private network on this machine: ten relays and two clients, each client in namespaces of its\n" +
			"own. One client serves a page, the other one fetches it by its .loki name, right after a cold start (nothing\n" +
			"but the network file) and after a warm one. Printed are the page, what the time was spent on, and what both\n" +
			"clients say of themselves. In the end all of it is removed.",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.demo(cmd.Context(), keep, repeat) },
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave it running until Ctrl-C and print commands to type")
	cmd.Flags().IntVar(&repeat, "cold", 1, "cold starts to measure; of more than one, the slowest is shown")
	cmd.AddCommand(a.demoWebCommand(), a.demoGetCommand())
	return cmd
}

// demo runs the demo. Whatever ends it, it leaves nothing: the lab's namespaces end with this process, the folder before it returns.
func (a *app) demo(ctx context.Context, keep bool, repeat int) (err error) {
	if repeat < 1 {
		return usagef("--cold %d: at least one", repeat)
	}
	// A closed terminal or pipe must not end us before the folder is removed.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP)
	defer stop()
	if err := lab.Check(); err != nil {
		return err
	}
	d, err := newDemo(ctx, a)
	if err != nil {
		return err
	}
	defer func() {
		d.close()
		if keep && errors.Is(err, errKept) {
			err = nil
		} else if ctx.Err() != nil {
			err = errors.New("demo: interrupted; everything that it started is gone")
		}
	}()
	start := time.Now()
	line := func(format string, args ...any) {
		fmt.Fprintf(a.out, "%8.3f s  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
	if err := d.relays(); err != nil {
		return err
	}
	line("%d relays started", demoRelays)
	host, address, err := d.serve(d.ctx)
	if err != nil {
		return err
	}
	line("a client serves a page at http://%s/", address)

	url := "http://" + address + "/"
	guest, cold, err := d.coldest(url, repeat, line)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "\n%s\n", cold.page)
	cold.print(a.out, "cold start (nothing but the network file)")
	status, err := guest.status(ctx)
	if err != nil {
		return err
	}
	guest.stop()
	warm, err := guest.visit(url)
	if err != nil {
		return err
	}
	warm.print(a.out, "warm start (the same client again)")
	if err := guest.byName(); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "\n--- lokinetd status of the client that fetched the page\n")
	printStatus(a.out, status, time.Now())
	if status, err = host.status(ctx); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "\n--- lokinetd status of the client that serves it\n")
	printStatus(a.out, status, time.Now())
	if keep {
		return d.keep(guest, host, url)
	}
	return nil
}

// errKept ends a demo that was kept, when its user has seen enough.
var errKept = errors.New("demo: enough")

// keep says what can be typed and waits until the user or a relay ends it.
func (d *demoNet) keep(guest, host *demoHost, url string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	show := func(what string, args ...string) {
		fmt.Fprintf(d.a.out, "  # %s\n  %s\n", what, strings.Join(args, " "))
	}
	fmt.Fprintf(d.a.out, "\nIt runs until Ctrl-C. In another terminal, as the same user:\n")
	show("the page", guest.node.Enter("curl", url)...)
	show("a shell on the machine that fetches it", guest.node.Enter("bash")...)
	show("what that machine's daemon says", self, "--socket", guest.socket(), "status")
	show("the way to the page, measured", self, "--socket", guest.socket(), "ping", strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/"))
	show("the daemon of the machine that serves it", self, "--socket", host.socket(), "session", "list")
	<-d.ctx.Done()
	if err := context.Cause(d.ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return errKept
}

// coldest starts fresh clients, one after the other, and gives the slowest, which still runs. say is told of each but one.
func (d *demoNet) coldest(url string, n int, say func(string, ...any)) (slowest *demoHost, v *visit, err error) {
	var all []time.Duration
	for i := range n {
		name := "guest"
		if i > 0 {
			name = fmt.Sprint("guest", i+1)
		}
		g, err := d.node(name, fmt.Sprintf("10.77.%d.%d", 1+i/200, 1+i%200), "")
		if err != nil {
			return nil, nil, err
		}
		w, err := g.visit(url)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, w.took)
		if v != nil && w.took <= v.took {
			g.close()
			continue
		}
		if v != nil {
			slowest.close()
		}
		slowest, v = g, w
	}
	if n > 1 {
		slices.Sort(all)
		say("%d cold starts, exec to first byte: %.0f ms at least, %.0f median, %.0f at most", n, ms(all[0]), ms(all[n/2]), ms(all[n-1]))
	}
	return slowest, v, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// visit is one start of a client whose user wants a page at once.
type visit struct {
	page  []byte
	took  time.Duration // from exec to the first byte
	times []moment      // in order
}

// moment is what happened how long after exec.
type moment struct {
	after time.Duration
	name  string
	spent string // on what, before it
}

// spent says what the time before each moment goes to. (control.Status.Timeline and visit.add)
var spent = map[string]string{
	"exec":                   "of the client and of curl, at the same instant",
	"started":                "the program is loaded, the configuration read",
	"first edge":             "QUIC with the first relay",
	"edges connected":        "QUIC with as many relays as paths are to begin with",
	"running":                "TUN, routes, name server, control socket; the node connects meanwhile",
	"first path":             "one message to build a path, through three relays and back",
	"session established":    "the service's contact is looked up, a path to its pivot built, keys agreed",
	"name resolved":          "the answer had waited for the session",
	"address known":          "to curl, by an ordinary DNS query that waited since exec",
	"first packet delivered": "the site has answered the first packet",
	"TCP connected":          "one round trip through the paths of both sides, six relays long",
	"first byte":             "a second one: GET, and the page",
}

// print writes the time line.
func (v *visit) print(w io.Writer, what string) {
	fmt.Fprintf(w, "\n%s: %.0f ms from exec to the first byte of the page\n", what, ms(v.took))
	last := time.Duration(0)
	for _, m := range v.times {
		fmt.Fprintf(w, "%9.1f ms  %+7.1f  %-23s %s\n", ms(m.after), ms(m.after-last), m.name, m.spent)
		last = m.after
	}
}

// byName fetches the page by its name, and says how many relays agreed on whose it is.
func (h *demoHost) byName() error {
	r, err := control.NewClient(h.socket()).Resolve(h.d.ctx, demoName)
	if err != nil {
		return fmt.Errorf("%s cannot be resolved: %w", demoName, err)
	}
	began := time.Now()
	var out firstWrite
	var said bytes.Buffer
	c := h.d.get(h.node, "http://"+demoName+"/")
	c.Stdout, c.Stderr = &out, &said
	if err := h.d.run(c); err != nil {
		return fmt.Errorf("the page could not be fetched by its name: %w: %s", err, said.String())
	}
	if page, _, err := splitTimes(out.b.Bytes()); err != nil || string(page) != demoPage {
		return fmt.Errorf("another page came by its name: %q, %w", page, err)
	}
	fmt.Fprintf(h.d.a.out, "\nthe same page at http://%s/: %.0f ms to the first byte; %d of %d relays agreed that the name is %s\n",
		demoName, ms(out.at.Sub(began)), r.Agreed, r.Relays, r.Address)
	return nil
}

// visit starts the client and, at the same instant, curl, whose queries wait in sockets that were opened before (as a service manager does it).
// curl tries once.
func (h *demoHost) visit(url string) (*visit, error) {
	began := time.Now()
	if err := h.start(); err != nil {
		return nil, err
	}
	var out firstWrite
	c := h.d.get(h.node, url)
	var said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := h.d.run(c); err != nil {
		return nil, fmt.Errorf("the page could not be fetched: %w: %sthe client's log:\n%s", err, said.String(), h.log.String())
	}
	page, times, err := splitTimes(out.b.Bytes())
	if err != nil {
		return nil, err
	}
	if string(page) != demoPage {
		return nil, fmt.Errorf("another page came: %q", page)
	}
	s, err := h.status(h.d.ctx)
	if err != nil {
		return nil, err
	}
	v := &visit{page: page, took: out.at.Sub(began)}
	v.add("exec", 0)
	for _, m := range s.Timeline[min(1, len(s.Timeline)):] {
		v.add(m.Name, s.StartedAt.Add(time.Duration(m.AtMs*1e6)).Sub(began))
	}
	// curl counts from a moment that only it knows; the first byte is seen by both.
	v.add("address known", v.took-times.first+times.resolved)
	v.add("TCP connected", v.took-times.first+times.connected)
	v.add("first byte", v.took)
	slices.SortStableFunc(v.times, func(a, b moment) int { return cmp.Compare(a.after, b.after) })
	return v, nil
}

func (v *visit) add(name string, after time.Duration) {
	v.times = append(v.times, moment{after, name, spent[name]})
}

// firstWrite keeps what is written, and when it began.
type firstWrite struct {
	b  bytes.Buffer
	at time.Time
}

func (w *firstWrite) Write(p []byte) (int, error) {
	if w.at.IsZero() {
		w.at = time.Now()
	}
	return w.b.Write(p)
}

// newDemo makes the folder of a demo.
func newDemo(ctx context.Context, a *app) (*demoNet, error) {
	dir, err := os.MkdirTemp("", "lokinetd-demo-")
	if err != nil {
		return nil, fmt.Errorf("demo: folder for its files (TMPDIR): %w", err)
	}
	d := &demoNet{a: a, dir: dir, operator: key.Generate(), page: key.Generate()}
	d.ctx, d.cancel = context.WithCancelCause(ctx)
	return d, nil
}

// close ends every process of the demo and removes its folder.
func (d *demoNet) close() {
	d.cancel(nil)
	if d.lab != nil {
		d.lab.Close()
	}
	os.RemoveAll(d.dir)
}

// serve starts a client that hosts the page, and waits until others can find it; the web server's socket is open then.
func (d *demoNet) serve(ctx context.Context) (host *demoHost, address string, err error) {
	return d.serveWith(ctx, "")
}

// serveWith is serve with more of a configuration.
func (d *demoNet) serveWith(ctx context.Context, more string) (host *demoHost, address string, err error) {
	if host, err = d.client("host", "10.77.0.101", more+fmt.Sprintf("[[service]]\nname = \"web\"\nkey = %q\nports = [\"tcp/80\"]\necho = true\n", d.pageKey())); err != nil {
		return nil, "", err
	}
	socket, err := host.node.Listen("tcp", ":80")
	if err != nil {
		return nil, "", err
	}
	defer socket.Close()
	web := host.node.Self("demo", "web")
	web.ExtraFiles = []*os.File{socket}
	if err := web.Start(); err != nil {
		return nil, "", err
	}
	err = host.wait(ctx, func(s control.Status) bool {
		for _, e := range s.Endpoints {
			if e.Kind == "service" && e.PublishedAt != nil {
				address = e.Address
			}
		}
		return address != ""
	})
	if err != nil {
		return nil, "", fmt.Errorf("the service was not published: %w", err)
	}
	return host, address, nil
}
