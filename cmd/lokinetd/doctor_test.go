package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lokinetd/config"
	"lokinetd/dns"
	"lokinetd/router/control"
)

// healthy is a machine on which all is well.
func healthy() sight {
	s := clientStatus()
	s.State, s.Reason = control.Ready, ""
	s.Endpoints[0].IPv4, s.Endpoints[0].IPv6 = "172.16.0.1", "fd2e:7365:7368::1"
	s.Buffers = &control.Buffers{Receive: 7 << 20, Send: 7 << 20, Wanted: 7 << 20}
	yes := true
	return sight{
		Now: goldenNow, Config: "/etc/lokinetd/lokinetd.toml", Role: config.RoleClient, TUN: "lokinet0", Names: true, Service: true,
		Status: &s, Newest: goldenNow.Add(-time.Hour), CapKnown: true, NetAdmin: true, HasFilter: &yes,
		Interface: true, Addresses: []string{"172.16.0.1/16", "fd2e:7365:7368::1/64"}, WayOut: true,
		Resolver:  dns.HostStatus{Decision: dns.Decision{Method: dns.MethodResolved, Reasons: []string{"systemd-resolved runs", "it sends single domains to single interfaces"}}, Applied: true},
		Localhost: []string{"172.16.0.1", "fd2e:7365:7368::1"}, CanaryGone: true,
	}
}

// TestDoctor: whole machines, and what is said of them: of one on which all is well everything, of the others what is new, and what to type. testdata/doctor has the words.
func TestDoctor(t *testing.T) {
	no := false
	worlds := []struct {
		name   string
		change func(*sight)
		exit   int
	}{
		{"well", func(*sight) {}, 0},
		{"not-running", func(w *sight) {
			w.Status, w.Daemon, w.Interface, w.CapKnown, w.HasFilter = nil, control.ErrNotRunning, false, false, &no
			w.Resolver.Applied, w.Resolver.Problem = false, "our network interface is not there: the daemon does not run"
		}, exitNotRunning},
		{"not-installed", func(w *sight) {
			w.Status, w.Daemon, w.Service, w.Interface, w.CapKnown = nil, control.ErrNotRunning, false, false, false
			w.ConfigErr, w.NoConfig, w.Device = "/etc/lokinetd/lokinetd.toml is not there", true, fs.ErrNotExist
			w.Resolver = dns.HostStatus{Decision: dns.Decision{Method: dns.MethodNone, Reasons: []string{"/etc/resolv.conf names 9.9.9.9 and nothing here can send single domains elsewhere"}, Advice: "Install systemd-resolved."}, Problem: "nothing here can send single domains elsewhere"}
		}, exitFailure},
		{"denied", func(w *sight) {
			w.Status, w.CapKnown, w.HasFilter = nil, false, nil
			w.Daemon = control.Errorf(control.CodeDenied, "permission denied")
		}, exitDenied},
		{"hangs", func(w *sight) {
			w.Status, w.CapKnown = nil, false
			w.Daemon = context.DeadlineExceeded
		}, exitNotReady},
		{"no-network", func(w *sight) { w.WayOut, w.Status.Edges = false, nil }, exitNotReady},
		{"no-udp", func(w *sight) {
			w.Status.Edges, w.Status.State, w.Status.Reason = nil, control.Offline, "no relay is connected"
		}, exitNotReady},
		{"no-bootstrap", func(w *sight) {
			w.Status.Edges, w.Status.Network.Contacts, w.Newest, w.Status.State = nil, 0, time.Time{}, control.Starting
		}, exitNotReady},
		{"starting", func(w *sight) { w.Status.State, w.Status.Reason = control.Starting, "no path yet" }, exitNotReady},
		{"late", func(w *sight) { w.Newest = goldenNow.Add(26 * time.Hour) }, exitNotReady},
		{"unsynced", func(w *sight) { w.Unsynced = true }, 0},
		{"buffers", func(w *sight) { w.Status.Buffers.Receive, w.NetAdmin = 208<<10, false }, 0},
		{"no-tun", func(w *sight) {
			w.Interface, w.Addresses, w.Device = false, nil, fs.ErrPermission
		}, exitNotReady},
		{"no-address", func(w *sight) { w.Addresses = nil }, exitNotReady},
		{"tun-denied", func(w *sight) { w.Device = fs.ErrPermission }, 0},
		{"no-nftables", func(w *sight) { w.Status.Tun.NoFirewall, w.HasFilter = "protocol not supported", &no }, 0},
		{"flushed", func(w *sight) { w.HasFilter = &no }, 0},
		{"ipv4", func(w *sight) {
			w.NoIPv6, w.Localhost = "IPv6 is disabled by sysctl (disable_ipv6)", []string{"172.16.0.1"}
		}, 0},
		{"port", func(w *sight) { w.Answers = errors.New("dns: somebody else answers at 127.3.2.1:53") }, exitNotReady},
		{"resolver", func(w *sight) {
			w.Resolver = dns.HostStatus{Decision: dns.Decision{Method: dns.MethodNone, Reasons: []string{"programs ask a resolver on this host (127.0.0.1) that only its administrator can tell"},
				Advice: "Tell that resolver to send our domains to us: docs/dns.md has what to write for dnsmasq, unbound, bind9 and Pi-hole."}, Problem: "programs ask a resolver on this host (127.0.0.1) that only its administrator can tell"}
			w.Localhost, w.LocalErr = nil, errors.New("no such host")
			w.CanaryGone = false
		}, exitNotReady},
		{"other", func(w *sight) { w.Localhost = []string{"127.0.0.1"} }, exitNotReady},
		{"canary", func(w *sight) { w.CanaryGone, w.CanaryErr = false, errors.New("i/o timeout") }, 0},
		{"no-names", func(w *sight) { w.Names = false }, 0},
		{"relay", func(w *sight) {
			s := relayStatus()
			w.Status, w.Role, w.Names = &s, config.RoleRelay, false
		}, 0},
	}
	var words bytes.Buffer
	usual := map[string]bool{}
	for i, c := range worlds {
		w := healthy()
		c.change(&w)
		var out, said bytes.Buffer
		a := &app{out: &out, err: &said, look: func(context.Context) sight { return w }}
		if code := a.execute(t.Context(), []string{"doctor"}); code != c.exit || said.Len() > 0 {
			t.Errorf("%s: exit %d, want %d; %s", c.name, code, c.exit, &said)
		}
		fmt.Fprintf(&words, "# %s\n", c.name)
		fresh := false
		for line := range strings.Lines(out.String()) {
			if fresh = !usual[line]; fresh {
				words.WriteString(line)
			}
			usual[line] = usual[line] || i == 0
		}
		if c.exit != 0 {
			fmt.Fprintf(&words, "[exit %d]\n", c.exit)
		}
		words.WriteString("\n")
		for _, f := range diagnose(w) {
			if (f.State == well) != (f.Do == "") {
				t.Errorf("%s: %s: %q, and to type: %q", c.name, f.State, f.Text, f.Do)
			}
		}
		if c.name == "late" || c.name == "well" {
			out.Reset()
			if code := a.execute(t.Context(), []string{"doctor", "--json"}); code != c.exit {
				t.Errorf("%s: exit %d with --json", c.name, code)
			}
			same(t, c.name+".json", out.Bytes())
		}
	}
	same(t, "worlds.txt", words.Bytes())
}

// same compares with a file of testdata/doctor, or writes it.
func same(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", "doctor", name)
	if *update {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, got, 0o644)); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want, err := os.ReadFile(name); err != nil || !bytes.Equal(want, got) {
		t.Errorf("%s: %v; if the change is meant: go test ./cmd/lokinetd -run TestDoctor -update, and look at the difference.\n%s", name, err, difference(string(want), string(got)))
	}
}
