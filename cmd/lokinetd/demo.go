package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lokinetd/netif/lab"
	"lokinetd/router"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

const (
	demoRelays = 10
	demoPage   = "<h1>Hello from a place that nobody can locate.</h1>\n"
	demoWait   = 60 * time.Second // for each thing that is waited for
)

func (a *app) demoCommand() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use: "demo", Short: "Run a whole private network on this machine and fetch a page through it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.demo(cmd.Context(), keep) },
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave it running until Ctrl-C and print commands to type")
	web := &cobra.Command{Use: "web", Hidden: true, Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		return http.ListenAndServe(":80", http.HandlerFunc(demoWeb))
	}}
	get := &cobra.Command{Use: "get URL", Hidden: true, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return a.demoGet(cmd.Context(), args[0])
	}}
	cmd.AddCommand(web, get)
	return cmd
}

// demoGet fetches a page with curl, or without where there is none, and tries again while the name server is not there yet.
func (a *app) demoGet(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, demoWait)
	defer cancel()
	for {
		body, err := fetch(ctx, url)
		if err == nil {
			_, err = a.out.Write(body)
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	if curl, err := exec.LookPath("curl"); err == nil {
		return exec.CommandContext(ctx, curl, "--silent", "--show-error", "--fail", url).Output()
	}
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// demoNet is the running demo.
type demoNet struct {
	a        *app
	dir      string
	operator *key.Secret
	lab      *lab.Lab
	logs     bytes.Buffer
}

func (a *app) demo(ctx context.Context, keep bool) (err error) {
	if err := lab.Check(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "lokinetd-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d := &demoNet{a: a, dir: dir, operator: key.Generate()}
	defer func() {
		if d.lab != nil {
			d.lab.Close()
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
	host, address, err := d.serve(ctx)
	if err != nil {
		return err
	}
	defer host.stop()
	line("a client serves a page at http://%s/", address)

	guest, err := d.node("guest", "10.77.0.102", "")
	if err != nil {
		return err
	}
	for _, what := range []string{"cold", "warm"} {
		began := time.Now()
		if err := guest.start(); err != nil {
			return err
		}
		page, err := guest.node.Self("demo", "get", "http://"+address+"/").Output()
		if err != nil {
			return fmt.Errorf("the page could not be fetched (%s start): %w\n%s", what, err, guest.log.String())
		}
		took := time.Since(began)
		if string(page) != demoPage {
			return fmt.Errorf("another page came: %q", page)
		}
		line("%s start: page fetched %.0f ms after the client's exec", what, ms(took))
		if what == "cold" {
			fmt.Fprintf(a.out, "\n%s\n", page)
			s, err := guest.status(ctx)
			if err != nil {
				return err
			}
			printStatus(a.out, s, time.Now())
			guest.stop()
		}
	}
	defer guest.stop()
	s, err := host.status(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	printStatus(a.out, s, time.Now())
	if keep {
		fmt.Fprintf(a.out, "\nIt runs until Ctrl-C. In another terminal:\n  %s\n  %s\n",
			strings.Join(guest.node.Enter("curl", "http://"+address+"/"), " "), "lokinetd --socket "+guest.socket()+" status")
		<-ctx.Done()
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// serve starts a client that hosts the page, and waits until others can find it.
func (d *demoNet) serve(ctx context.Context) (host *demoHost, address string, err error) {
	host, err = d.client("host", "10.77.0.101", "[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\necho = true\n")
	if err != nil {
		return nil, "", err
	}
	if err := host.node.Self("demo", "web").Start(); err != nil {
		return nil, "", err
	}
	if err := host.wait(ctx, func(s control.Status) bool {
		for _, e := range s.Endpoints {
			if e.Kind == "service" && e.PublishedAt != nil {
				address = e.Address
			}
		}
		return address != ""
	}); err != nil {
		return nil, "", fmt.Errorf("the service was not published: %w", err)
	}
	return host, address, nil
}

// demoWeb answers GET / with the page, GET /bytes/N with N bytes, and an upload with the SHA-256 of what came.
func demoWeb(w http.ResponseWriter, r *http.Request) {
	var n int64
	switch _, err := fmt.Sscanf(r.URL.Path, "/bytes/%d", &n); {
	case err == nil:
		io.CopyN(w, rand.NewChaCha8([32]byte{1}), n)
	case r.Method != "GET":
		h := sha256.New()
		io.Copy(h, r.Body)
		fmt.Fprintf(w, "%x", h.Sum(nil))
	default:
		io.WriteString(w, demoPage)
	}
}

// relays makes the network file and starts the relays, all in the lab itself.
func (d *demoNet) relays() error {
	file := &netdb.NetworkFile{Name: "demo", Network: 1000, Serial: 1, Private: true}
	var addrs []netip.Prefix
	var configs []string
	for i := range demoRelays {
		addr := netip.AddrFrom4([4]byte{10, 77, 0, byte(i + 1)})
		addrs = append(addrs, netip.PrefixFrom(addr, 24))
		public := netip.AddrPortFrom(addr, 1190)
		sec := key.Generate()
		dir := filepath.Join(d.dir, fmt.Sprintf("relay%d", i+1))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		if err := sec.Save(filepath.Join(dir, "relay.key")); err != nil {
			return err
		}
		file.Relays = append(file.Relays, sec.Public())
		file.Contacts = append(file.Contacts, router.SignContact(sec, public, file.Network, time.Now()))
		text := fmt.Sprintf("role = \"relay\"\ndata_dir = %q\n%s[relay]\nlisten = %q\npublic_address = %q\n[control]\nsocket = %q\ngroup = \"\"\n[log]\nlevel = \"*=warn\"\n",
			dir, d.network(), public, public, filepath.Join(dir, "sock"))
		config := filepath.Join(dir, "lokinetd.toml")
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			return err
		}
		configs = append(configs, config)
	}
	raw, err := file.Sign(d.operator)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.dir, "demo.network"), raw, 0o600); err != nil {
		return err
	}
	if d.lab, err = lab.New(lab.NodeConfig{Name: "relays", Addrs: addrs}); err != nil {
		return err
	}
	for _, config := range configs {
		c := d.lab.Self("run", "-c", config)
		c.Stderr = d.a.err
		if err := c.Start(); err != nil {
			return err
		}
	}
	return nil
}

func (d *demoNet) network() string {
	return fmt.Sprintf("[network]\nfile = %q\noperator = %q\n", filepath.Join(d.dir, "demo.network"), d.operator.Public())
}

// demoHost is one client with its namespace.
type demoHost struct {
	d    *demoNet
	name string
	node *lab.Node
	cmd  *lab.Cmd
	log  bytes.Buffer
}

func (d *demoNet) node(name, addr, service string) (*demoHost, error) {
	h := &demoHost{d: d, name: name}
	dir := filepath.Join(d.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("data_dir = %q\n%s[control]\nsocket = %q\ngroup = \"\"\n%s", dir, d.network(), h.socket(), service)
	if err := os.WriteFile(filepath.Join(dir, "lokinetd.toml"), []byte(text), 0o600); err != nil {
		return nil, err
	}
	var err error
	h.node, err = d.lab.AddNode(lab.NodeConfig{Name: name, Addrs: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(addr), 24)},
		ResolvConf: "nameserver 127.3.2.1\n"})
	return h, err
}

func (d *demoNet) client(name, addr, service string) (*demoHost, error) {
	h, err := d.node(name, addr, service)
	if err == nil {
		err = h.start()
	}
	return h, err
}

func (h *demoHost) socket() string { return filepath.Join(h.d.dir, h.name, "sock") }

func (h *demoHost) start() error {
	h.log.Reset()
	h.cmd = h.node.Self("run", "-c", filepath.Join(h.d.dir, h.name, "lokinetd.toml"))
	h.cmd.Stderr = &h.log
	return h.cmd.Start()
}

func (h *demoHost) stop() {
	if h.cmd != nil {
		h.cmd.Signal(15)
		h.cmd.Wait()
		h.cmd = nil
	}
}

func (h *demoHost) status(ctx context.Context) (control.Status, error) {
	return control.NewClient(h.socket()).Status(ctx)
}

// wait asks for the status until it is as wanted.
func (h *demoHost) wait(ctx context.Context, ok func(control.Status) bool) error {
	for end := time.Now().Add(demoWait); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		s, err := h.status(ctx)
		if err == nil && ok(s) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return errors.New("waited long enough; the daemon's log:\n" + h.log.String())
}
