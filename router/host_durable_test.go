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

	"lokinetd/netif"
	"lokinetd/router/key"
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

// TestDamagedKey: a key that cannot be read stops the start, and is never replaced by a new one.
func TestDamagedKey(t *testing.T) {
	b := newBench(t)
	b.mustStart().stop()
	name := b.config.Client.Key
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
		if _, err := b.start(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", what, err)
		}
		if after, err := os.Lstat(name); err != nil || !os.SameFile(before, after) || after.ModTime() != before.ModTime() {
			t.Errorf("%s: the file was touched: %v", what, err)
		}
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
