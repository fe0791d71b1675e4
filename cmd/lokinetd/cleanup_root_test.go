//go:build root

package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lokinetd/netif/lab"
	"lokinetd/router"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

// TestCleanup: a daemon is killed with -9; its unreachable routes stay until cleanup, which can be repeated, or until the next daemon, which takes
// them over; a running one is left alone.
func TestCleanup(t *testing.T) {
	if err := lab.Check(); err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(lab.NodeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n, err := l.AddNode(lab.NodeConfig{Name: "host", Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.2/24")}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	operator := key.Generate()
	file := &netdb.NetworkFile{Name: "lonely", Network: 1000, Serial: 1, Private: true}
	for i := range 4 { // they do not exist
		sec := key.Generate()
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 77, 1, byte(i + 1)}), 1190)
		file.Relays = append(file.Relays, sec.Public())
		file.Contacts = append(file.Contacts, router.SignContact(sec, addr, file.Network, time.Now()))
	}
	raw, err := file.Sign(operator)
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	conf := fmt.Sprintf("data_dir = %q\n[network]\nfile = %q\noperator = %q\n[control]\nsocket = %q\ngroup = \"\"\n", at("data"), at("lonely.network"), operator.Public(), at("sock"))
	for name, content := range map[string][]byte{"lonely.network": raw, "lokinetd.toml": []byte(conf)} {
		if err := os.WriteFile(at(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	start := func() *lab.Cmd {
		t.Helper()
		c := n.Self("run", "-c", at("lokinetd.toml"))
		log := &bytes.Buffer{}
		c.Stderr = log
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := control.NewClient(at("sock")).Status(t.Context()); err == nil {
				return c
			}
			if time.Now().After(end) {
				t.Fatalf("it does not start:\n%s", log)
			}
		}
	}
	end := func(c *lab.Cmd, sig syscall.Signal) {
		t.Helper()
		if err := c.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); (err != nil) != (sig == syscall.SIGKILL) {
			t.Errorf("after %v: %v", sig, err)
		}
	}
	// here lists what is on the host of ours: "tun", and the unreachable routes.
	here := func(when string, want ...string) {
		t.Helper()
		var got []string
		dev, err := n.Command("cat", "/proc/net/dev").Output()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(dev, []byte("lokinet0")) {
			got = append(got, "tun")
		}
		for _, family := range []string{"-4", "-6"} {
			out, err := n.Command("ip", family, "route", "show", "type", "unreachable").Output()
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(out)) {
				if f := strings.Fields(line); f[0] == "unreachable" && f[1] != "default" {
					got = append(got, f[1])
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: on the host are %q, want %q", when, got, want)
		}
	}
	cleanup := func(code int, texts ...string) {
		t.Helper()
		out, err := n.Self("cleanup", "-c", at("lokinetd.toml")).CombinedOutput()
		if (err != nil) != (code != 0) || err != nil && !strings.Contains(err.Error(), fmt.Sprint(code)) {
			t.Errorf("cleanup: %v, want exit code %d\n%s", err, code, out)
		}
		for _, text := range texts {
			if !strings.Contains(string(out), text) {
				t.Errorf("cleanup: no %q in\n%s", text, out)
			}
		}
	}

	cleanup(0, "nothing is left")
	routes := []string{"172.16.0.0/16", "fd2e:7365:7368::/64"}
	c := start()
	here("running", append([]string{"tun"}, routes...)...)
	cleanup(exitFailure, "is running", "stop it first")
	end(c, syscall.SIGKILL)
	here("killed", routes...)
	cleanup(0, "interface lokinet0: gone", "unreachable route 172.16.0.0/16: gone", "unreachable route fd2e:7365:7368::/64: gone")
	here("cleaned up")
	cleanup(0, "nothing is left")

	end(start(), syscall.SIGKILL)
	here("killed again", routes...)
	c = start()
	here("running after a kill", append([]string{"tun"}, routes...)...)
	end(c, syscall.SIGTERM)
	here("stopped")
	cleanup(0, "nothing is left")
}
