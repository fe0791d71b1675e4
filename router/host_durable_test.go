package router

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lokinetd/config"
	"lokinetd/netif"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/session"
	"lokinetd/router/statefile"
	"lokinetd/router/testkit"
)

// TestSaves: whatever ends a write of one of the host's files, what the daemon finds at its next start is the old state or the new one.
func TestSaves(t *testing.T) {
	changes := func(i int) netif.Changes {
		return netif.Changes{Interface: "lokinet0", Index: i, Unreachable: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/16")}}
	}
	kept := func(n int) map[string]netif.Kept {
		all := map[string]netif.Kept{}
		for i := range n {
			all[fmt.Sprint("endpoint", i)] = netif.Kept{IPv4: netip.MustParsePrefix("172.16.0.0/16")}
		}
		return all
	}
	keyFile := func(dir string) string { return filepath.Join(dir, "relay.key") }
	find := func(load func(d folder) (any, error)) func(string) (string, error) {
		return func(dir string) (string, error) {
			v, err := load(folder(dir))
			return fmt.Sprintf("%+v", v), err
		}
	}
	next := func(dir string) error { folder(dir).sweep(); return nil }
	for name, s := range map[string]testkit.Save{
		stateFile: {
			Old:  func(dir string) error { return folder(dir).setChanges(changes(1)) },
			New:  func(dir string) error { return folder(dir).setChanges(changes(2)) },
			Load: find(func(d folder) (any, error) { return loadState[hostState](d, stateFile) }),
			Next: next,
		},
		stateFile + " removed": {
			Old:  func(dir string) error { return folder(dir).setChanges(changes(1)) },
			New:  func(dir string) error { return folder(dir).remove(stateFile) },
			Load: find(func(d folder) (any, error) { return loadState[hostState](d, stateFile) }),
			Next: next,
		},
		addressesFile: {
			Old:  func(dir string) error { return folder(dir).save(addressesFile, kept(3)) },
			New:  func(dir string) error { return folder(dir).save(addressesFile, kept(500)) },
			Load: find(func(d folder) (any, error) { return loadState[map[string]netif.Kept](d, addressesFile) }),
			Next: next,
		},
		edgesFile: {
			Old: func(dir string) error {
				return folder(dir).save(edgesFile, keptEdges{"7": {Grown: time.Unix(1, 0).UTC()}})
			},
			New: func(dir string) error {
				return folder(dir).save(edgesFile, keptEdges{"7": {Grown: time.Unix(2, 0).UTC()}})
			},
			Load: find(func(d folder) (any, error) { return loadState[keptEdges](d, edgesFile) }),
			Next: next,
		},
		serialsFile: {
			New:  func(dir string) error { return folder(dir).save(serialsFile, serials{"a/7": 6}) },
			Load: find(func(d folder) (any, error) { return loadState[serials](d, serialsFile) }),
			Next: next,
		},
		"key": {
			New: func(dir string) error { _, err := loadOrMakeKey(keyFile(dir)); return err },
			Load: func(dir string) (string, error) {
				if _, err := os.Lstat(keyFile(dir)); err != nil {
					return "none", nil
				}
				_, err := key.LoadSecret(keyFile(dir))
				return "a key", err
			},
			Next: func(dir string) error { _, err := loadOrMakeKey(keyFile(dir)); return err },
		},
	} {
		t.Run(name, func(t *testing.T) { t.Log(testkit.Saves(t, s), "ends") })
	}
}

// TestDamagedState: whatever lies in the place of the host's files, the daemon starts, says what is lost, and puts it aside for people to look at. Cut at any byte, a file is believed as a whole or not at all.
func TestDamagedState(t *testing.T) {
	files := []string{stateFile, addressesFile, serialsFile, edgesFile}
	b := newBench(t)
	b.mustStart().stop()
	dir := folder(b.config.DataDir)
	if err := errors.Join(dir.setChanges(netif.Changes{Interface: "lokinet0", Index: 3}), dir.save(edgesFile, keptEdges{"7": {}})); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(string(dir), name) }
	whole := map[string][]byte{}
	for _, name := range files {
		raw, err := os.ReadFile(at(name))
		if err != nil {
			t.Fatal(err)
		}
		whole[name] = raw
		for n := range len(raw) - 1 { // without the line feed it is whole
			os.WriteFile(at(name), raw[:n], 0o600)
			for load, err := range map[string]error{
				stateFile: second(loadState[hostState](dir, name)), addressesFile: second(loadState[map[string]netif.Kept](dir, name)), serialsFile: second(loadState[serials](dir, name)),
				edgesFile: second(loadState[keptEdges](dir, name)),
			} {
				if load == name && err == nil {
					t.Fatalf("%s cut at %d of %d is believed", name, n, len(raw))
				}
			}
		}
	}

	found := 0
	b.sys.find = func(name string) (netif.Changes, error) {
		found++
		return netif.Changes{Interface: name}, nil
	}
	for what, put := range map[string]func(at string, raw []byte) error{
		"empty": func(at string, raw []byte) error { return os.WriteFile(at, nil, 0o600) },
		"cut":   func(at string, raw []byte) error { return os.WriteFile(at, raw[:len(raw)/2], 0o600) },
		"other": func(at string, raw []byte) error { return os.WriteFile(at, []byte("[7]"), 0o600) },
		"another type": func(at string, raw []byte) error {
			return os.WriteFile(at, []byte(`{"interface": 7, "a": "b"}`), 0o600)
		},
		"zeros": func(at string, raw []byte) error { return os.WriteFile(at, make([]byte, len(raw)), 0o600) },
		"huge": func(at string, raw []byte) error {
			return os.WriteFile(at, []byte(strings.Repeat("[", maxState+1)), 0o600)
		},
		"deep": func(at string, raw []byte) error {
			return os.WriteFile(at, []byte(strings.Repeat("[", maxState)), 0o600)
		},
		"a folder":        func(at string, raw []byte) error { return os.MkdirAll(filepath.Join(at, "inside"), 0o700) },
		"a pipe":          func(at string, raw []byte) error { return unix.Mkfifo(at, 0o600) },
		"a dangling link": func(at string, raw []byte) error { return os.Symlink("nowhere", at) },
		"a second name":   func(at string, raw []byte) error { os.WriteFile(at+"2", raw, 0o600); return os.Link(at+"2", at) },
		"unreadable":      func(at string, raw []byte) error { return os.WriteFile(at, raw, 0o000) },
	} {
		if what == "unreadable" && os.Geteuid() == 0 {
			continue // root reads all
		}
		for _, name := range files {
			os.RemoveAll(at(name))
			os.RemoveAll(at(name + "2"))
			os.RemoveAll(at(name + statefile.BadSuffix))
			if err := put(at(name), whole[name]); err != nil {
				t.Fatal(err)
			}
		}
		b.since()
		found = 0
		s := b.mustStart()
		said := strings.Join(b.since(), "\n")
		s.stop()
		if found != 1 {
			t.Errorf("%s: looked %d times for what is on the host", what, found)
		}
		for _, name := range files {
			if _, err := os.Lstat(at(name + statefile.BadSuffix)); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if n := strings.Count(said, "a damaged file was set aside"); n != len(files) {
			t.Errorf("%s: said %d times:\n%s", what, n, said)
		}
		b.mustStart().stop()
		if said := strings.Join(b.since(), "\n"); strings.Contains(said, "damaged") {
			t.Errorf("%s, at the next start:\n%s", what, said)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// damage puts what is no key in the place of a key file, in each way, and calls each; what is there must not be touched. Then the key is there again.
func damage(t *testing.T, name string, each func(what string)) {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	flipped := []byte(strings.Replace(string(raw), string(raw[70]), map[bool]string{true: "1", false: "0"}[raw[70] == '0'], -1))
	for what, put := range map[string]func() error{
		"empty":    func() error { return os.WriteFile(name, nil, 0o600) },
		"cut":      func() error { return os.WriteFile(name, raw[:100], 0o600) },
		"changed":  func() error { return os.WriteFile(name, flipped, 0o600) },
		"zeros":    func() error { return os.WriteFile(name, make([]byte, len(raw)), 0o600) },
		"huge":     func() error { return os.WriteFile(name, make([]byte, 1<<20), 0o600) },
		"a folder": func() error { return os.Mkdir(name, 0o700) },
		"a pipe":   func() error { return unix.Mkfifo(name, 0o600) },
	} {
		os.RemoveAll(name)
		if err := put(); err != nil {
			t.Fatal(err)
		}
		before, _ := os.Lstat(name)
		each(what)
		if after, err := os.Lstat(name); err != nil || !os.SameFile(before, after) || after.ModTime() != before.ModTime() {
			t.Errorf("%s: the file was touched: %v", what, err)
		}
	}
	os.RemoveAll(name)
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedKey: an endpoint whose key cannot be read does not run, and all the rest does; a relay, which has no rest, does not start. No key is ever replaced by a new one.
func TestDamagedKey(t *testing.T) {
	b := newBench(t)
	dir := filepath.Dir(b.config.Client.Key)
	for _, name := range []string{"shop", "blog"} {
		b.config.Service = append(b.config.Service, config.Service{Name: name, Key: filepath.Join(dir, name+".key")})
	}
	b.again = func() (*config.Config, error) { c := *b.config; return &c, nil }
	s := b.mustStart()
	whole := s.status()
	s.stop()
	kept := func() map[string]netif.Kept {
		k, err := loadState[map[string]netif.Kept](folder(b.config.DataDir), addressesFile)
		if err != nil {
			t.Error(err)
		}
		return k
	}
	addresses := kept()
	names := func(st control.Status) (all []string) {
		for _, e := range st.Endpoints {
			all = append(all, e.Name)
		}
		return all
	}
	for _, x := range []struct {
		file, name, kind string
		left             []string
	}{
		{b.config.Service[0].Key, "shop", "service", []string{"browsing", "blog"}},
		{b.config.Client.Key, "browsing", "browsing", []string{"shop", "blog"}},
	} {
		damage(t, x.file, func(what string) {
			s, err := b.start()
			if err != nil {
				t.Errorf("%s of %s: %v", what, x.name, err)
				return
			}
			st := s.status()
			if n := st.NotRun; len(n) != 1 || n[0].Name != x.name || n[0].Kind != x.kind || !strings.Contains(n[0].Reason, x.file) || n[0].Advice == "" {
				t.Errorf("%s of %s: %+v", what, x.name, n)
			}
			if got := names(st); !slices.Equal(got, x.left) {
				t.Errorf("%s of %s: there are %q", what, x.name, got)
			}
			s.sighup()
			if n := s.status().NotRun; len(n) != 1 {
				t.Errorf("%s of %s, after a reload: %+v", what, x.name, n)
			}
			if said := strings.Join(b.since(), "\n"); strings.Contains(said, "panic") {
				t.Error(said)
			}
			s.stop()
		})
		for who, k := range addresses {
			if now, ok := kept()[who]; !ok || now.IPv4 != k.IPv4 || now.IPv6 != k.IPv6 {
				t.Errorf("the addresses of %s are lost", x.name)
			}
		}
	}
	// A reload takes in a service whose key has been mended; under its own address.
	raw, _ := os.ReadFile(b.config.Service[0].Key)
	os.WriteFile(b.config.Service[0].Key, nil, 0o600)
	s = b.mustStart()
	os.WriteFile(b.config.Service[0].Key, raw, 0o600)
	s.sighup()
	st := s.status()
	at := func(st control.Status, name string) string {
		for _, e := range st.Endpoints {
			if e.Name == name {
				return e.Address
			}
		}
		return ""
	}
	if got := at(st, "shop"); len(st.NotRun) != 0 || got == "" || got != at(whole, "shop") {
		t.Errorf("after a reload: %+v, %s", st.NotRun, got)
	}
	s.stop()

	c := b.config
	c.Role, c.Relay.Key, c.Client.Key, c.Service = config.RoleRelay, filepath.Join(dir, "relay.key"), "", nil
	c.Relay.Listen, c.Relay.PublicAddress = netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("127.0.0.1:1190")
	b.mustStart().stop()
	damage(t, c.Relay.Key, func(what string) {
		if _, err := b.start(); err == nil || !strings.Contains(err.Error(), c.Relay.Key) {
			t.Errorf("%s: %v", what, err)
		}
	})
}

// TestClosed: who should browse under a key that cannot be read calls nobody under another one.
func TestClosed(t *testing.T) {
	b := newBench(t)
	if err := os.WriteFile(b.config.Client.Key, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h := b.node(b.config)
	h.kept, h.sys = map[string]netif.Kept{}, b.sys
	h.device, _ = b.openDevice(netif.DeviceConfig{Record: func(netif.Changes) error { return nil }})
	h.pump = netif.NewPump(h.device, nil)
	if err := h.openEndpoints(); err != nil {
		t.Fatal(err)
	}
	e := h.browsing()
	remote := key.Address{Key: key.Generate().Public()}
	if err := e.Sessions.Connect(t.Context(), remote); !errors.Is(err, session.ErrNotAllowed) {
		t.Errorf("called: %v", err)
	}
	before := packet.InUse()
	p := packet.Get()
	p.Set(append([]byte{0x45, 0, 0, 20}, make([]byte, 16)...))
	if e.Send(key.Address{Key: remote.Key, Kind: key.Relay}, p); len(e.Sessions.List()) != 0 || packet.InUse() != before {
		t.Errorf("sent: %+v", e.Sessions.List())
	}
}

// TestDiskFull: with a disk that is full from the start the daemon starts, works and stops; when there is room again it is all written.
func TestDiskFull(t *testing.T) {
	dir, room := testkit.FullDisk(t, func(dir string) error { return os.WriteFile(filepath.Join(dir, lockFile), nil, 0o600) }) // an empty file needs no room
	if dir == "" {
		return
	}
	b := newBench(t)
	b.config.DataDir = dir
	s := b.mustStart()
	if st := s.status(); st.Tun == nil {
		t.Errorf("status: %+v", st)
	}
	said := strings.Join(b.since(), "\n")
	for _, what := range []string{"what is changed on the host cannot be written down", "addresses cannot be kept", "serial cannot be kept"} {
		if strings.Count(said, what) != 1 {
			t.Errorf("%q is not said once:\n%s", what, said)
		}
	}
	s.sighup()
	if got := filesIn(t, dir); !slices.Equal(got, []string{lockFile, "nodedb"}[:len(got)]) {
		t.Errorf("with a full disk there is %q", got)
	}
	room()
	s.sighup()
	s.stop()
	if got := filesIn(t, dir); !slices.Contains(got, addressesFile) || !slices.Contains(got, serialsFile) || slices.Contains(got, stateFile) || strings.Contains(fmt.Sprint(got), " .") {
		t.Errorf("at last there is %q", got)
	}
}

func filesIn(t *testing.T, dir string) (all []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}
