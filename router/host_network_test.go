package router

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lokinetd/config"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

// signed is a relay's contact as a bootstrap file has it.
func signed(n int, network uint64, at time.Time) *netdb.RelayContact {
	return SignContact(secret(n), relayAddr(n), network, at)
}

func listOf(contacts ...*netdb.RelayContact) []byte {
	raw := []byte{'l'}
	for _, c := range contacts {
		raw = append(raw, c.Raw()...)
	}
	return append(raw, 'e')
}

// TestPublicNetwork: a public network is joined with bootstrap files and nothing else. What is wrong with one that is configured ends the start; at the default one it is a warning.
func TestPublicNetwork(t *testing.T) {
	now := time.Now()
	old := now.Add(-400 * 24 * time.Hour)
	damaged := bytes.Clone(listOf(signed(1, 0, now)))
	damaged[len(damaged)-9] ^= 1
	private := SignContact(secret(1), netip.MustParseAddrPort("192.168.1.1:1190"), 0, now)
	for _, x := range []struct {
		what    string
		network config.Network
		files   map[string][]byte // "a" and "b" are configured by network; "data" is the default one
		relays  []int             // that are asked
		fault   string            // of the start
		warning string
	}{
		{"one contact", config.Network{Bootstrap: []string{"a"}}, map[string][]byte{"a": signed(1, 0, now).Raw()}, []int{1}, "", ""},
		{"a list", config.Network{Bootstrap: []string{"a"}}, map[string][]byte{"a": listOf(signed(1, 0, now), signed(2, 0, old))}, []int{1, 2}, "", ""},
		{"several files, the latest contact of each relay", config.Network{Bootstrap: []string{"a", "b"}},
			map[string][]byte{"a": listOf(signed(1, 0, old)), "b": listOf(signed(1, 0, now), signed(3, 0, now))}, []int{1, 3}, "", ""},
		{"outdated", config.Network{Bootstrap: []string{"a"}}, map[string][]byte{"a": signed(1, 0, old).Raw()}, []int{1}, "", ""},
		{"an empty list", config.Network{Bootstrap: []string{"a"}}, map[string][]byte{"a": []byte("le")}, nil, "", ""},
		{"the default one", config.Network{}, map[string][]byte{"data": listOf(signed(4, 0, now))}, []int{4}, "", ""},
		{"configured ones replace the default one", config.Network{Bootstrap: []string{"a"}},
			map[string][]byte{"a": listOf(signed(1, 0, now)), "data": listOf(signed(4, 0, now))}, []int{1}, "", ""},
		{"none at all", config.Network{}, nil, nil, "", ""},
		{"testnet", config.Network{Name: config.Testnet, Bootstrap: []string{"a"}}, map[string][]byte{"a": signed(1, 1, now).Raw()}, []int{1}, "", ""},

		{"missing", config.Network{Bootstrap: []string{"a"}}, nil, nil, "a: no such file", ""},
		{"empty", config.Network{Bootstrap: []string{"a"}}, map[string][]byte{"a": nil}, nil, "a: netdb: bootstrap file is empty", ""},
		{"damaged", config.Network{Bootstrap: []string{"a"}}, map[string][]byte{"a": damaged}, nil, "bad signature", ""},
		{"cut", config.Network{Bootstrap: []string{"a"}}, map[string][]byte{"a": damaged[:40]}, nil, "a: netdb: bootstrap file", ""},
		{"of Lokinet 0.9", config.Network{Bootstrap: []string{"a"}}, map[string][]byte{"a": []byte("d1:ald1:c4:x1:d32:")}, nil, "a: netdb: bootstrap file", ""},
		{"of testnet", config.Network{Bootstrap: []string{"a"}}, map[string][]byte{"a": signed(1, 1, now).Raw()}, nil, "of network 1, not 0", ""},
		{"of the main network", config.Network{Name: config.Testnet, Bootstrap: []string{"a"}}, map[string][]byte{"a": signed(1, 0, now).Raw()}, nil, "of network 0, not 1", ""},
		{"a private address", config.Network{Bootstrap: []string{"a"}}, map[string][]byte{"a": private.Raw()}, nil, "not publicly routable", ""},
		{"one good, one damaged", config.Network{Bootstrap: []string{"a", "b"}}, map[string][]byte{"a": listOf(signed(1, 0, now)), "b": damaged}, nil, "b: netdb: bootstrap file", ""},
		{"a damaged default one", config.Network{}, map[string][]byte{"data": damaged}, nil, "", "bad signature"},
	} {
		t.Run(x.what, func(t *testing.T) {
			dir := t.TempDir()
			for name, raw := range x.files {
				if err := os.WriteFile(filepath.Join(dir, map[string]string{"data": bootstrapFile}[name], map[string]string{"a": "a", "b": "b"}[name]), raw, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			c := config.Default()
			c.DataDir = dir
			if c.Network = x.network; c.Network.Name == "" {
				c.Network.Name = config.Mainnet
			}
			for i, name := range c.Network.Bootstrap {
				c.Network.Bootstrap[i] = filepath.Join(dir, name)
			}
			h := &host{config: c, dir: folder(dir), log: slog.New(slog.DiscardHandler)}
			file, err := h.findNetwork()
			if x.fault != "" {
				if err == nil || !strings.Contains(err.Error(), x.fault) || !strings.HasPrefix(err.Error(), "network.bootstrap: ") {
					t.Errorf("%v; want %q", err, x.fault)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if w := strings.Join(h.reloadWarnings(), "; "); !strings.Contains(w, x.warning) || (w != "") != (x.warning != "") {
				t.Errorf("warnings: %q, want %q", w, x.warning)
			}
			want := map[string]uint64{config.Mainnet: 0, config.Testnet: 1}[c.Network.Name]
			if file.Network != want || file.Name != c.Network.Name || file.Private || !file.UniqueRange || !file.Public() {
				t.Errorf("%+v", file)
			}
			if w := NetworkWarnings(file, now); len(w) > 0 {
				t.Errorf("%q", w)
			}
			if got := relayNumbers(file.Contacts); !slices.Equal(got, x.relays) {
				t.Errorf("relays %v are asked, want %v", got, x.relays)
			}
			for _, rc := range file.Contacts {
				if rc.ID == secret(1).Public() && strings.HasPrefix(x.what, "several") && rc.Time.Before(now.Add(-time.Hour)) {
					t.Error("an older contact where there was a later one")
				}
			}
		})
	}
}

func relayNumbers(contacts []*netdb.RelayContact) (ns []int) {
	for _, c := range contacts {
		ns = append(ns, relayNumberOf(c.ID))
	}
	slices.Sort(ns)
	return ns
}

// TestBootstrapReload: bootstrap files are taken when they come or change, on public networks and on private ones; one that is damaged leaves the former contacts. Without
// any, the reason why a client is not ready says where to put one.
func TestBootstrapReload(t *testing.T) {
	for _, private := range []bool{false, true} {
		dir := t.TempDir()
		name := filepath.Join(dir, bootstrapFile)
		c := config.Default()
		c.DataDir = dir
		network := uint64(0)
		if private {
			network = 42
			operator := key.Generate()
			c.Network.File, c.Network.Operator = filepath.Join(dir, "n.network"), operator.Public()
			c.Network.Bootstrap = []string{filepath.Join(dir, "b")}
			name = c.Network.Bootstrap[0]
			raw, err := (&netdb.NetworkFile{Name: "n", Network: network, Serial: 1, Relays: []key.Public{secret(1).Public()}}).Sign(operator)
			write(t, c.Network.File, raw, err)
			write(t, name, []byte("le"), nil)
		}
		h := &host{config: c, dir: folder(dir), log: slog.New(slog.DiscardHandler)}
		h.networkChanged()
		file, err := h.findNetwork()
		if err != nil {
			t.Fatal(err)
		}
		store, err := netdb.OpenStore("", key.Public{}, false, file.Rules(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if h.node, err = NewNode(NodeConfig{Wire: newFakeWire(), Store: store, Network: file}); err != nil {
			t.Fatal(err)
		}
		if why := h.whyNotReady(0); !strings.Contains(why, filepath.Join(dir, bootstrapFile)) {
			t.Errorf("reason: %s", why)
		}
		if h.networkChanged() {
			t.Error("changed without a change")
		}
		look := func(raw []byte, want []int, warning string) {
			t.Helper()
			write(t, name, raw, nil)
			if !h.networkChanged() {
				t.Error("a changed file is not noticed")
			}
			h.takeNetwork()
			if got := relayNumbers(store.Bootstraps()); !slices.Equal(got, want) {
				t.Errorf("private %v: relays %v are asked, want %v", private, got, want)
			}
			if w := strings.Join(h.reloadWarnings(), "; "); !strings.Contains(w, warning) || (w != "") != (warning != "") {
				t.Errorf("warnings: %q, want %q", w, warning)
			}
		}
		look(listOf(signed(1, network, time.Now())), []int{1}, "")
		if why := h.whyNotReady(0); strings.Contains(why, dir) {
			t.Errorf("reason: %s", why)
		}
		look(listOf(signed(1, network, time.Now().Add(-40*24*time.Hour))), []int{1}, "")
		if why := h.whyNotReady(0); !private && !strings.Contains(why, "a current bootstrap file") {
			t.Errorf("reason: %s", why)
		}
		look(listOf(signed(1, network+1, time.Now())), []int{1}, "of network")
		look([]byte("rubbish"), []int{1}, "neither a relay contact nor a list of them")
		look(listOf(signed(2, network, time.Now()), signed(3, network, time.Now())), []int{2, 3}, "")
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if h.networkChanged() {
			t.Error("a file that is gone counts as changed")
		}
	}
}

func write(t *testing.T, name string, raw []byte, err error) {
	t.Helper()
	if err == nil {
		if err = os.Remove(name); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = os.WriteFile(name, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
