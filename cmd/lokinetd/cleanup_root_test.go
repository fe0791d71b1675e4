//go:build root

package main

import (
	"bytes"
	"fmt"
	"net"
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

// lonely is a host in a namespace whose daemon reaches nobody.
type lonely struct {
	t    *testing.T
	lab  *lab.Lab
	node *lab.Node
	dir  string
	cmd  *lab.Cmd
}

func newLonely(t *testing.T) *lonely {
	t.Helper()
	if err := lab.Check(); err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(lab.NodeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	h := &lonely{t: t, lab: l, dir: t.TempDir()}
	if h.node, err = l.AddNode(lab.NodeConfig{Name: "host", Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.2/24")}}); err != nil {
		t.Fatal(err)
	}
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
	conf := fmt.Sprintf("data_dir = %q\n[network]\nfile = %q\noperator = %q\n[control]\nsocket = %q\ngroup = \"\"\n", h.at("data"), h.at("lonely.network"), operator.Public(), h.at("sock"))
	for name, content := range map[string][]byte{"lonely.network": raw, "lokinetd.toml": []byte(conf)} {
		if err := os.WriteFile(h.at(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h *lonely) at(name string) string { return filepath.Join(h.dir, name) }

// start starts the daemon and waits until it answers.
func (h *lonely) start(env []string, files ...*os.File) {
	h.t.Helper()
	h.cmd = h.node.Self("run", "-c", h.at("lokinetd.toml"))
	log := &bytes.Buffer{}
	h.cmd.Stderr, h.cmd.Env, h.cmd.ExtraFiles = log, append(os.Environ(), env...), files
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	for end := time.Now().Add(eventually); ; time.Sleep(10 * time.Millisecond) {
		if _, err := control.NewClient(h.at("sock")).Status(h.t.Context()); err == nil {
			return
		}
		if time.Now().After(end) {
			h.t.Fatalf("it does not start:\n%s", log)
		}
	}
}

func (h *lonely) end(sig syscall.Signal) {
	h.t.Helper()
	if err := h.cmd.Signal(sig); err != nil {
		h.t.Fatal(err)
	}
	if err := h.cmd.Wait(); (err != nil) != (sig == syscall.SIGKILL) {
		h.t.Errorf("after %v: %v", sig, err)
	}
}

// here compares what is on the host of ours: "tun", and the unreachable routes.
func (h *lonely) here(when string, want ...string) {
	h.t.Helper()
	var got []string
	if h.index() != "" {
		got = append(got, "tun")
	}
	for _, family := range []string{"-4", "-6"} {
		out, err := h.node.Command("ip", family, "route", "show", "type", "unreachable").Output()
		if err != nil {
			h.t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); f[0] == "unreachable" && f[1] != "default" {
				got = append(got, f[1])
			}
		}
	}
	if !slices.Equal(got, want) {
		h.t.Errorf("%s: on the host are %q, want %q", when, got, want)
	}
}

// index is the number of the daemon's interface, "" without one.
func (h *lonely) index() string {
	h.t.Helper()
	out, err := h.node.Command("ip", "-o", "link", "show").Output()
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if number, name, _ := strings.Cut(line, ": "); strings.HasPrefix(name, "lokinet0:") {
			return number
		}
	}
	return ""
}

func (h *lonely) cleanup(ok bool, texts ...string) {
	h.t.Helper()
	out, err := h.node.Self("cleanup", "-c", h.at("lokinetd.toml")).CombinedOutput()
	if (err == nil) != ok {
		h.t.Errorf("cleanup: %v\n%s", err, out)
	}
	for _, text := range texts {
		if !strings.Contains(string(out), text) {
			h.t.Errorf("cleanup: no %q in\n%s", text, out)
		}
	}
}

var lonelyRoutes = []string{"172.16.0.0/16", "fd2e:7365:7368::/64"}

// TestCleanup: a daemon is killed with -9; its unreachable routes stay until cleanup, which can be repeated, or until the next daemon, which takes
// them over; a running one is left alone.
func TestCleanup(t *testing.T) {
	h := newLonely(t)
	h.cleanup(true, "nothing is left")
	h.start(nil)
	h.here("running", append([]string{"tun"}, lonelyRoutes...)...)
	h.cleanup(false, "is running", "stop it first")
	h.end(syscall.SIGKILL)
	h.here("killed", lonelyRoutes...)
	h.cleanup(true, "interface lokinet0: gone", "unreachable route 172.16.0.0/16: gone", "unreachable route fd2e:7365:7368::/64: gone")
	h.here("cleaned up")
	h.cleanup(true, "nothing is left")

	h.start(nil)
	h.end(syscall.SIGKILL)
	h.here("killed again", lonelyRoutes...)
	h.start(nil)
	h.here("running after a kill", append([]string{"tun"}, lonelyRoutes...)...)
	h.end(syscall.SIGTERM)
	h.here("stopped")
	h.cleanup(true, "nothing is left")
}

// TestKeptInterface: the test is the service manager. It keeps the TUN's descriptor while the daemon is killed, and the next one goes on with
// the same interface; in between it is up, so that packets wait in it. After the stop the routes stay, until cleanup.
func TestKeptInterface(t *testing.T) {
	h := newLonely(t)
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: h.at("notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	// told reads what the daemon says until the line comes, and takes the descriptor that came along.
	told := func(until string) (kept *os.File) {
		t.Helper()
		manager.SetReadDeadline(time.Now().Add(eventually))
		for {
			buf, oob := make([]byte, 4096), make([]byte, 64)
			n, oobn, _, _, err := manager.ReadMsgUnix(buf, oob)
			if err != nil {
				t.Fatalf("waiting for %s: %v", until, err)
			}
			if oobn > 0 {
				m, err := syscall.ParseSocketControlMessage(oob[:oobn])
				if err != nil {
					t.Fatal(err)
				}
				fds, err := syscall.ParseUnixRights(&m[0])
				if err != nil || string(buf[:n]) != "FDSTORE=1\nFDNAME=tun" {
					t.Fatalf("%q, %v", buf[:n], err)
				}
				kept = os.NewFile(uintptr(fds[0]), "tun")
			}
			if string(buf[:n]) == until {
				return kept
			}
		}
	}
	env := []string{"NOTIFY_SOCKET=" + h.at("notify")}
	h.start(env)
	tun := told("READY=1")
	if tun == nil {
		t.Fatal("no descriptor to keep")
	}
	index := h.index()
	h.end(syscall.SIGKILL)
	if h.index() != index || index == "" {
		t.Errorf("while it is away the interface is number %q, before %q", h.index(), index)
	}
	h.start(append(env, "LISTEN_FDS=1", "LISTEN_FDNAMES=tun"), tun)
	tun.Close()
	tun = told("READY=1")
	if h.index() != index {
		t.Errorf("after the restart the interface is number %q, before %q", h.index(), index)
	}
	h.end(syscall.SIGTERM)
	told("STOPPING=1")
	h.here("stopped, kept", append([]string{"tun"}, lonelyRoutes...)...)
	h.cleanup(true, "interface lokinet0: gone")
	h.here("cleaned up")
	tun.Close()
}
