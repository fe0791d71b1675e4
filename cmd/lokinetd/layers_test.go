package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// layers is the order of the packages: one may import only those that its row
// names. The sentence says why the other edges are forbidden.
var layers = map[string]struct {
	imports string // of ours
	why     string
}{
	"router/bt":             {"", "the encoding knows nothing of what it encodes"},
	"router/statefile":      {"", "a file is written whole, whatever it says; this row is below all others"},
	"router/key":            {"router/statefile", "identities are values that everything else may use"},
	"router/packet":         {"", "a buffer knows neither keys nor networks"},
	"router/fair":           {"", "who asks, and for what, is not its business"},
	"router/seal":           {"router/key", "changes of bytes under a key have no idea of messages, paths or sockets"},
	"router/seal/sodium":    {"router/testkit", "a witness against our code knows none of it"},
	"router/control":        {"router/key", "the control socket carries what it is told and decides nothing"},
	"router/oxend":          {"router/key router/bt", "what oxend says is news for the relay, which alone knows what follows from it"},
	"router/oxend/standin":  {"router/key router/bt", "a witness against our code knows none of it"},
	"config":                {"router/key router/statefile", "a configuration is checked values; those who use them import it, it imports none of them"},
	"router/netdb":          {"router/bt router/key router/seal router/statefile", "contacts and their store neither send nor receive"},
	"router/link":           {"router/fair router/bt router/key router/packet", "a link carries bytes to a neighbour and does not know what they mean"},
	"router/link/overlay":   {"", "the overlay generator runs before anything of ours can be built"},
	"router/path":           {"router/fair router/netdb router/seal router/key router/bt router/packet", "paths see the wire through an interface, so that one table test plays all hops without a network"},
	"router/session":        {"router/fair router/path router/netdb router/seal router/key router/bt router/packet", "a session rests on paths; it knows neither links nor the host"},
	"netif":                 {"router/packet router/key", "the host side maps addresses to remotes and has no idea how packets reach them"},
	"netif/lab":             {"", "a lab is namespaces and cables; it must not know what runs in it"},
	"dns":                   {"router/key router/statefile", "the name server asks a Source; who answers is not its business"},
	"netif/proxy":           {"router/key", "the proxy hands what it accepts to a Network; how that carries it is not its business"},
	"router":                {"router/fair router/session router/path router/netdb router/link router/seal router/control router/oxend router/bt router/key router/packet router/statefile netif netif/proxy dns config", "router wires everything; only the program stands above it"},
	"cmd/lokinetd":          {"router router/session router/path router/netdb router/link router/seal router/control router/bt router/key router/packet router/statefile netif netif/lab dns config", "the program may use everything but the test network"},
	"router/testkit":        {"", "tests of every package may use it, so it can know none; nothing but tests may"},
	"router/testkit/corpus": {"", "it reads sources and runs test binaries of packages, and knows none"},
	"router/testnet":        {"router router/session router/path router/netdb router/link router/oxend router/seal router/control router/bt router/key router/packet", "the test network plays with nodes, not with hosts"},
}

// soleUsers names the only packages that may import a library (prefix match),
// so that each decision about it stands in one place.
var soleUsers = map[string]string{
	"crypto/ed25519":                      "router/key",
	"filippo.io/edwards25519":             "router/key",
	"golang.org/x/crypto/blake2b":         "router/key router/seal",
	"golang.org/x/crypto/chacha20":        "router/seal",
	"golang.org/x/crypto/poly1305":        "router/seal",
	"crypto/mlkem":                        "router/seal",
	"crypto/ecdh":                         "router/key router/seal",
	"crypto/tls":                          "router/link",
	"github.com/quic-go/quic-go":          "router/link",
	"github.com/BurntSushi/toml":          "config",
	"github.com/google/renameio":          "router/statefile",
	"github.com/klauspost/compress":       "router/netdb",
	"golang.zx2c4.com/wireguard":          "netif",
	"gvisor.dev/gvisor":                   "netif",
	"github.com/google/nftables":          "netif",
	"github.com/vishvananda/netlink":      "netif netif/lab",
	"github.com/miekg/dns":                "dns",
	"github.com/godbus/dbus":              "dns",
	"github.com/coreos/go-systemd":        "router",
	"github.com/spf13/cobra":              "cmd/lokinetd",
	"github.com/prometheus/client_golang": "router",
	"net/http":                            "router/control cmd/lokinetd netif/proxy",
}

// testImports are packages of ours that only tests of a package may import beside its row.
var testImports = map[string]string{
	"netif":          "netif/lab",
	"router/seal":    "router/seal/sodium",
	"router/netdb":   "router/seal/sodium",
	"router/path":    "router/seal/sodium",
	"router/session": "router/seal/sodium",
	"router/oxend":   "router/oxend/standin",
	"router":         "router/oxend/standin",
	"router/testnet": "router/oxend/standin netif", // netif: its map of addresses, which must outlive restarts
}

// testMay are libraries that tests use beside the sole users.
var testMay = map[string]string{
	"github.com/quic-go/quic-go":     "router/testnet cmd/lokinetd", // cmd/lokinetd: the bench compares with it
	"github.com/miekg/dns":           "router cmd/lokinetd",
	"crypto/tls":                     "cmd/lokinetd",
	"golang.zx2c4.com/wireguard":     "cmd/lokinetd",
	"github.com/vishvananda/netlink": "cmd/lokinetd",
	"crypto/mlkem":                   "router/session",
}

func TestLayers(t *testing.T) {
	root := "../.."
	seen := map[string]bool{}
	commented := map[string]bool{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); file != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "build") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		rel, _ := filepath.Rel(root, file)
		pkg := path.Dir(filepath.ToSlash(rel))
		row, ok := layers[pkg]
		if !ok {
			t.Errorf("%s: package %s has no row in the table of layers (design section 2)", rel, pkg)
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		seen[pkg] = true
		test := strings.HasSuffix(file, "_test.go")
		if f.Doc != nil && !test {
			commented[pkg] = true
		}
		for _, spec := range f.Imports {
			imp, _ := strconv.Unquote(spec.Path.Value)
			if ours, ok := strings.CutPrefix(imp, "lokinetd/"); ok {
				may := strings.Fields(row.imports)
				if test {
					may = append(append(may, "router/testkit"), strings.Fields(testImports[pkg])...)
				}
				if ours != pkg && !slices.Contains(may, ours) {
					t.Errorf("%s imports %s: %s", rel, ours, row.why)
				}
				continue
			}
			for lib, users := range soleUsers {
				if imp != lib && !strings.HasPrefix(imp, lib+"/") {
					continue
				}
				if test || pkg == "router/testnet" { // all of it is for tests
					users += " " + testMay[lib]
				}
				if !slices.Contains(strings.Fields(users), pkg) {
					t.Errorf("%s imports %s, which only %s may", rel, imp, users)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range seen {
		if !commented[pkg] {
			t.Errorf("package %s has no package comment", pkg)
		}
	}
}
