package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lokinetd/config"
	"lokinetd/netif"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

// bench is a machine for the daemon: a TUN in memory, a service manager that writes down what it is told, a data directory that outlives the daemon.
type bench struct {
	t        *testing.T
	operator *key.Secret
	file     *netdb.NetworkFile
	config   *config.Config
	sys      *system
	again    func() (*config.Config, error)
	broken   string // which call fails
	left     netif.Changes

	mu     sync.Mutex
	events []string
	cond   *sync.Cond
}

func newBench(t *testing.T) *bench {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() { // nothing may be left running
		for end := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				buf := make([]byte, 1<<20)
				t.Errorf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
				return
			}
		}
	})
	b := &bench{t: t, operator: key.Generate()}
	b.cond = sync.NewCond(&b.mu)
	dir := t.TempDir()
	b.file = &netdb.NetworkFile{Name: "bench", Network: 77, Serial: 5, Private: true}
	for i := range 4 { // nobody is there
		sec := key.Generate()
		b.file.Relays = append(b.file.Relays, sec.Public())
		b.file.Contacts = append(b.file.Contacts, SignContact(sec, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 9, byte(i), 1}), 9), b.file.Network, time.Now()))
	}
	c := config.Default()
	c.DataDir = filepath.Join(dir, "data")
	c.Network.File, c.Network.Operator = filepath.Join(dir, "bench.network"), b.operator.Public()
	c.DNS.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	c.Control.Socket, c.Control.Group = filepath.Join(dir, "sock"), ""
	c.Client.Key = filepath.Join(dir, "client.key")
	b.config = c
	b.publish(5)
	b.sys = &system{
		openDevice: b.openDevice,
		prefixes: func(string, []netip.Prefix) ([]netip.Prefix, error) {
			return []netip.Prefix{netip.MustParsePrefix("172.16.0.0/16")}, b.fails("prefixes")
		},
		find:        func(name string) (netif.Changes, error) { return netif.Changes{Interface: name}, nil },
		connections: func() ([]netif.Connection, error) { return nil, nil },
		notify:      func(s string) { b.event(strings.SplitN(s, "\nMONO", 2)[0]) },
		keep:        func(string, *os.File) error { return nil },
		reload:      make(chan os.Signal, 1),
	}
	return b
}

// publish writes the network file with a serial.
func (b *bench) publish(serial uint64) {
	b.t.Helper()
	b.file.Serial = serial
	raw, err := b.file.Sign(b.operator)
	if err == nil {
		err = os.WriteFile(b.config.Network.File, raw, 0o600)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) fails(call string) error {
	if b.broken == call {
		return errors.New(call + " is broken")
	}
	return nil
}

func (b *bench) event(e string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, e)
	b.cond.Broadcast()
}

// since takes the events so far.
func (b *bench) since() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.events
	b.events = nil
	return e
}

// Handle makes a log handler of the bench: parts and errors are events.
func (b *bench) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "part" || r.Level >= slog.LevelWarn && (a.Key == "err" || a.Key == "keys") {
			text += ": " + a.Value.String()
		}
		return true
	})
	if r.Level >= slog.LevelWarn || strings.HasPrefix(text, "part ") {
		b.event(text)
	}
	return nil
}
func (b *bench) Enabled(context.Context, slog.Level) bool { return true }
func (b *bench) WithAttrs([]slog.Attr) slog.Handler       { return discardBut{b} }
func (b *bench) WithGroup(string) slog.Handler            { return b }

// discardBut is the handler of the modules: only errors of the daemon itself are of interest.
type discardBut struct{ *bench }

func (discardBut) Handle(context.Context, slog.Record) error { return nil }

// benchDevice is a device without a kernel that keeps the record as netif.Device does.
type benchDevice struct {
	*netif.MemTUN
	b      *bench
	record func(netif.Changes) error
}

func (b *bench) openDevice(c netif.DeviceConfig) (device, error) {
	if err := b.fails("open device"); err != nil {
		return nil, err
	}
	b.left = c.Before
	return &benchDevice{netif.NewMemTUN(16), b, c.Record}, nil
}

func (d *benchDevice) Name() string   { return "lokinet0" }
func (d *benchDevice) NoIPv6() string { return "" }
func (d *benchDevice) Apply(want []netip.Prefix) error {
	next := netif.Changes{Interface: "lokinet0", Index: 7}
	for _, p := range want {
		next.Unreachable = append(next.Unreachable, p.Masked())
	}
	if err := d.record(next); err != nil {
		return err
	}
	d.b.left = next
	if err := d.b.fails("apply"); err != nil {
		return err
	}
	d.b.event(fmt.Sprintf("apply %v", want))
	return nil
}
func (d *benchDevice) Close(keepRoutes bool) error {
	d.MemTUN.Close()
	d.b.event(fmt.Sprintf("close device, keep routes %v", keepRoutes))
	if keepRoutes {
		return nil
	}
	d.b.left = netif.Changes{}
	return d.record(netif.Changes{Interface: "lokinet0", Index: 7})
}

// started is a daemon that runs.
type started struct {
	b      *bench
	cancel context.CancelFunc
	done   chan error
}

// start runs the daemon until it says READY=1, or ends.
func (b *bench) start() (*started, error) {
	b.since()
	ctx, cancel := context.WithCancel(context.Background())
	s := &started{b, cancel, make(chan error, 1)}
	go func() {
		err := run(ctx, b.config, "test", slog.New(b), b.again, b.sys)
		b.event("ended")
		s.done <- err
	}()
	b.mu.Lock()
	for !slices.Contains(b.events, "READY=1") && !slices.Contains(b.events, "ended") {
		b.cond.Wait()
	}
	ended := slices.Contains(b.events, "ended")
	b.mu.Unlock()
	if ended {
		cancel()
		return nil, <-s.done
	}
	b.t.Cleanup(func() { cancel() })
	return s, nil
}

func (b *bench) mustStart() *started {
	b.t.Helper()
	s, err := b.start()
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (s *started) stop() {
	s.b.t.Helper()
	s.cancel()
	if err := <-s.done; err != nil {
		s.b.t.Errorf("stop: %v", err)
	}
}

// sighup reloads and gives the events of it.
func (s *started) sighup() []string {
	b := s.b
	b.since()
	b.sys.reload <- unix.SIGHUP
	b.mu.Lock()
	for !slices.Contains(b.events, "READY=1") {
		b.cond.Wait()
	}
	b.mu.Unlock()
	return b.since()
}

func (s *started) status() control.Status {
	s.b.t.Helper()
	st, err := control.NewClient(s.b.config.Control.Socket).Status(s.b.t.Context())
	if err != nil {
		s.b.t.Fatal(err)
	}
	return st
}
