package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"lokinetd/netif/lab"
	"lokinetd/router"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

const (
	demoRelays = 10
	demoDNS    = "127.3.2.1:53" // the daemon's default
)

// demoNet is the demo's network: the relays in the lab itself, each client in a node.
type demoNet struct {
	a        *app
	dir      string
	operator *key.Secret
	page     *key.Secret // of the service that the network file calls demoName; nil: none
	lab      *lab.Lab

	// ctx ends when the demo is to end; its cause says why. Set by newDemo.
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// fail ends the demo.
func (d *demoNet) fail(err error) {
	if d.cancel != nil {
		d.cancel(err)
	}
}

// relays makes the network and starts the relays.
func (d *demoNet) relays() error {
	names, err := d.plan()
	if err != nil {
		return err
	}
	return d.startRelays(names)
}

// plan makes the network file, the relays' folders, whose names it gives, and the lab that they will run in.
func (d *demoNet) plan() (names []string, err error) {
	file := &netdb.NetworkFile{Name: "demo", Network: 1000, Serial: 1, Private: true}
	var addrs []netip.Prefix
	for i := range demoRelays {
		addr := netip.AddrFrom4([4]byte{10, 77, 0, byte(i + 1)})
		addrs = append(addrs, netip.PrefixFrom(addr, 16))
		public := netip.AddrPortFrom(addr, 1190)
		sec := key.Generate()
		name := fmt.Sprintf("relay%d", i+1)
		names = append(names, name)
		if err := os.Mkdir(filepath.Join(d.dir, name), 0o700); err != nil {
			return nil, err
		}
		if err := sec.Save(filepath.Join(d.dir, name, "relay.key")); err != nil {
			return nil, err
		}
		file.Relays = append(file.Relays, sec.Public())
		file.Contacts = append(file.Contacts, router.SignContact(sec, public, file.Network, time.Now()))
		text := d.config(name, "role = \"relay\"\n") + fmt.Sprintf("[relay]\nlisten = %q\npublic_address = %q\n[log]\nlevel = \"*=warn\"\n", public, public)
		if err := os.WriteFile(d.file(name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	if d.page != nil {
		file.Names = map[string]key.Public{demoName: d.page.Public()}
		if err := d.page.Save(d.pageKey()); err != nil {
			return nil, err
		}
	}
	raw, err := file.Sign(d.operator)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(d.dir, "demo.network"), raw, 0o600); err != nil {
		return nil, err
	}
	d.lab, err = lab.New(lab.NodeConfig{Name: "relays", Addrs: addrs})
	return names, err
}

// startRelays starts the relays in the lab itself. One that ends takes the demo with it.
func (d *demoNet) startRelays(names []string) error {
	for _, name := range names {
		c := d.lab.Self("run", "-c", d.file(name))
		var log bytes.Buffer
		c.Stderr = &log
		if err := c.Start(); err != nil {
			return err
		}
		go func() {
			err := c.Wait()
			if d.ctx == nil || d.ctx.Err() == nil {
				d.fail(fmt.Errorf("demo: %s has ended: %w\n%s", name, err, log.String()))
			}
		}()
	}
	return nil
}

func (d *demoNet) pageKey() string { return filepath.Join(d.dir, "page.key") }

// file is the configuration file of a member of the network.
func (d *demoNet) file(name string) string { return filepath.Join(d.dir, name, "lokinetd.toml") }

// config begins a member's configuration: with head, and with nothing that belongs to a group of the machine.
func (d *demoNet) config(name, head string) string {
	dir := filepath.Join(d.dir, name)
	return fmt.Sprintf("%sdata_dir = %q\n[network]\nfile = %q\noperator = %q\n[control]\nsocket = %q\ngroup = \"\"\n",
		head, dir, filepath.Join(d.dir, "demo.network"), d.operator.Public(), filepath.Join(dir, "sock"))
}

// run runs a command unless the demo ends before.
func (d *demoNet) run(c *lab.Cmd) error {
	if err := c.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	select {
	case err := <-done:
		return err
	case <-d.ctx.Done():
		c.Signal(syscall.SIGKILL)
		return context.Cause(d.ctx)
	}
}

// demoHost is one client with its namespaces.
type demoHost struct {
	d       *demoNet
	name    string
	node    *lab.Node
	sockets []*os.File // of the name server, opened before it starts
	cmd     *lab.Cmd
	log     demoLog
}

// demoLog keeps what a daemon writes while others read it.
type demoLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *demoLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *demoLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *demoLog) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}

// node makes a client's machine, which may start later.
func (d *demoNet) node(name, addr, service string) (*demoHost, error) {
	return d.machine(name, service, lab.NodeConfig{Addrs: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(addr), 16)}})
}

func (d *demoNet) machine(name, service string, c lab.NodeConfig) (*demoHost, error) {
	h := &demoHost{d: d, name: name}
	if err := os.Mkdir(filepath.Join(d.dir, name), 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(d.file(name), []byte(d.config(name, "")+service), 0o600); err != nil {
		return nil, err
	}
	c.Name = name
	c.ResolvConf = "nameserver " + netip.MustParseAddrPort(demoDNS).Addr().String() + "\n"
	var err error
	if h.node, err = d.lab.AddNode(c); err != nil {
		return nil, err
	}
	for _, network := range []string{"udp", "tcp"} {
		f, err := h.node.Listen(network, demoDNS)
		if err != nil {
			return nil, err
		}
		h.sockets = append(h.sockets, f)
	}
	return h, nil
}

// client makes a client and starts it.
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
	h.cmd = h.node.Self("run", "-c", h.d.file(h.name))
	h.cmd.Stderr = &h.log
	h.cmd.ExtraFiles = h.sockets
	h.cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(h.sockets)), "LISTEN_FDNAMES=dns:dns")
	return h.cmd.Start()
}

// stop ends the client as a service manager does: with patience, but not for ever.
func (h *demoHost) stop() {
	if h.cmd == nil {
		return
	}
	h.cmd.Signal(syscall.SIGTERM)
	late := time.AfterFunc(20*time.Second, func() { h.cmd.Signal(syscall.SIGKILL) })
	h.cmd.Wait()
	late.Stop()
	h.cmd = nil
}

// close stops the client and takes its machine away.
func (h *demoHost) close() {
	h.stop()
	for _, f := range h.sockets {
		f.Close()
	}
	h.node.Close()
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
			return context.Cause(ctx)
		}
	}
	return errors.New("waited long enough; the daemon's log:\n" + h.log.String())
}
