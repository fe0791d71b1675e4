package router

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"lokinetd/netif"
	"lokinetd/router/key"
)

// FuzzStateFile: a file of the data directory is cut short by a disk, of another version, or edited. It is read whole or nothing of it is believed.
//
// Decoders: loadState
func FuzzStateFile(f *testing.F) {
	for _, v := range []any{
		hostState{"lokinet0", 7, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, serials{"a/2": 7},
		map[string]netif.Kept{"browsing": {IPv4: netip.MustParsePrefix("10.0.0.1/16"), Next: 5, Remotes: []netif.KeptRemote{{Remote: key.Address{Key: secret(1).Public()}, IPv4: netip.MustParseAddr("10.0.0.2")}}}},
	} {
		raw, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		f.Add(raw[:len(raw)-1])
	}
	for _, s := range []string{"null", "{}", "[]", "", `{"a":1,"b":"x"}`, `{"a":null}`, `{"interface":"x","index":"y"}`, `{"a":-1}`, `{"a":1}x`} {
		f.Add([]byte(s))
	}
	d := folder(f.TempDir())
	if s, err := loadState[serials](d, "none"); s != nil || err != nil {
		f.Fatal(s, err)
	}
	if err := os.Symlink("x", filepath.Join(string(d), "link")); err != nil {
		f.Fatal(err)
	}
	if _, err := loadState[serials](d, "link"); err == nil {
		f.Fatal("a link was followed")
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(filepath.Join(string(d), stateFile), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if seen, err := loadState[serials](d, stateFile); err != nil && seen != nil {
			t.Fatalf("%q: %v and %v", raw, seen, err)
		}
		if kept, err := loadState[map[string]netif.Kept](d, stateFile); err != nil && kept != nil {
			t.Fatalf("%q: %v and %v", raw, kept, err)
		}
		if s, err := loadState[hostState](d, stateFile); err != nil && !reflect.DeepEqual(s.changes(), netif.Changes{}) {
			t.Fatalf("%q: %v and %v", raw, s, err)
		}
	})
}

// FuzzClientFile: people make these files by hand, or let others send them. Whoever is let in has his whole address in the file, alone.
//
// Decoders: readClients readClient
func FuzzClientFile(f *testing.F) {
	alice, relay := key.Address{Key: secret(1).Public()}, key.Address{Key: secret(3).Public(), Kind: key.Relay}
	for _, s := range []string{
		alice.String(), "# her laptop\r\n\r\n  " + alice.String() + " # since May\n", strings.ToUpper(alice.Text(key.TLDSesh)), alice.String() + "\n" + alice.String(), relay.String(), "", "#", "alice.loki", strings.Repeat("y", 52) + ".loki",
		strings.Repeat(" ", maxClientFile+1), strings.Repeat("\n", maxClientFile),
	} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	if _, err := readClient(dir); err == nil {
		f.Fatal("a folder is a client")
	}
	if err := os.WriteFile(filepath.Join(dir, "README"), nil, 0o600); err != nil {
		f.Fatal(err)
	}
	for _, dir := range []string{dir, filepath.Join(dir, "none")} {
		if list, err := readClients(dir); err == nil || list == nil || len(list) > 0 {
			f.Fatal(list, err)
		}
	}
	file := filepath.Join(dir, "a"+clientSuffix)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := readClient(file)
		list, listErr := readClients(dir)
		if (err == nil) != (listErr == nil) || len(list) > 1 || err == nil && list[k] != "a" || err != nil && len(list) > 0 {
			t.Fatalf("%v, %v; alone %v, %v", list, listErr, k, err)
		}
		if err != nil {
			return
		}
		if text := strings.ToLower(string(raw)); k.Check() != nil || !strings.Contains(text, k.String()[:51]) || strings.Count(text, k.String()[:51]) > 1 && !strings.Contains(text, "#") {
			t.Fatalf("%q lets %v in", raw, k)
		}
	})
}
