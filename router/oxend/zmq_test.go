//go:build zmq

package oxend_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/oxend"
)

// An oxend in C (zmq/oxend.c) on Debian's libzmq, which is under the real one. What it answers and what it must have heard is written here in full, as protocol 2
// section 8 gives it. Without the library the tests fail: .ci/run zmq installs it.

const patience = 20 * time.Second

var program = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "zmq")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "oxend")
	text, err := exec.Command("cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", file, filepath.Join("zmq", "oxend.c"), "-lzmq").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("the C program does not build; .ci/run zmq installs what it needs: %w\n%s", err, text)
	}
	return os.ReadFile(file)
})

// foreign is the running program.
type foreign struct {
	t      *testing.T
	socket string
	cmd    *exec.Cmd
	in     io.Writer
	heard  chan []string // the parts of each message
}

func newForeign(t *testing.T, args ...string) *foreign {
	f := &foreign{t: t, socket: filepath.Join(t.TempDir(), "oxend.sock")}
	f.start(args...)
	return f
}

func (f *foreign) start(args ...string) {
	f.t.Helper()
	binary, err := program()
	if err != nil {
		f.t.Fatal(err)
	}
	file := filepath.Join(f.t.TempDir(), "oxend")
	if err := os.WriteFile(file, binary, 0o700); err != nil {
		f.t.Fatal(err)
	}
	f.cmd = exec.Command(file, append([]string{f.socket}, args...)...)
	f.cmd.Stderr = os.Stderr
	if f.in, err = f.cmd.StdinPipe(); err != nil {
		f.t.Fatal(err)
	}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	cmd := f.cmd
	f.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "ready\n" {
		f.t.Fatal(line, err)
	}
	heard := make(chan []string, 1000)
	f.heard = heard
	go func() {
		defer close(heard)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			var parts []string
			for _, p := range strings.Fields(line)[1:] {
				b, _ := hex.DecodeString(p)
				parts = append(parts, string(b))
			}
			heard <- parts
		}
	}()
}

// stop kills the program, which can tell nobody.
func (f *foreign) stop() {
	f.cmd.Process.Kill()
	f.cmd.Wait()
}

// do gives it a command, with parts.
func (f *foreign) do(command string, parts ...string) {
	f.t.Helper()
	for _, p := range parts {
		if p == "" {
			command += " -"
		} else {
			command += " " + hex.EncodeToString([]byte(p))
		}
	}
	if _, err := io.WriteString(f.in, command+"\n"); err != nil {
		f.t.Fatal(err)
	}
}

// await gives the data of the next request of that command, leaving others out.
func (f *foreign) await(command string) []string {
	f.t.Helper()
	over := time.After(patience)
	for {
		select {
		case parts, ok := <-f.heard:
			if !ok {
				f.t.Fatal("the program has ended")
			}
			if parts[0] != command {
				continue
			}
			if len(parts) < 2 {
				return nil
			}
			return parts[2:]
		case <-over:
			f.t.Fatal("not heard: " + command)
		}
	}
}

func (f *foreign) expect(command string, want ...string) {
	f.t.Helper()
	if got := f.await(command); strings.Join(got, "|") != strings.Join(want, "|") {
		f.t.Errorf("%s: %q, want %q", command, got, want)
	}
}

// expectAll is expect for several commands, in whatever order they come; others are left out.
func (f *foreign) expectAll(want map[string]string) {
	f.t.Helper()
	over := time.After(patience)
	for len(want) > 0 {
		select {
		case parts, ok := <-f.heard:
			if !ok {
				f.t.Fatal("the program has ended")
			}
			w, expected := want[parts[0]]
			if !expected || len(parts) < 2 {
				continue
			}
			if got := strings.Join(parts[2:], "|"); got != w {
				f.t.Errorf("%s: %q, want %q", parts[0], got, w)
			}
			delete(want, parts[0])
		case <-over:
			f.t.Fatalf("not heard: %q", want)
		}
	}
}

func states(n int) (text string, ids []key.Public) {
	var all []string
	for i := range n {
		id := key.Public{byte(i >> 8), byte(i), 7}
		ids = append(ids, id)
		all = append(all, fmt.Sprintf(`{"pubkey_ed25519":"%x","service_node_version":[11,6,1]}`, id[:]))
	}
	return strings.Join(all, ","), ids
}

func TestForeign(t *testing.T) {
	f := newForeign(t)
	s := secret(1)
	seed, self := s.Seed(), s.Public()
	answers := func() {
		text, _ := states(3)
		f.do("answer admin.get_service_privkeys", "200", fmt.Sprintf(`{"service_node_ed25519_privkey":"%x%x"}`, seed, self[:]))
		f.do("answer admin.session_router_ping", "200", `{"status":"OK"}`)
		f.do("answer sub.block", "OK")
		f.do("answer rpc.get_service_nodes", "200", `{"status":"OK","block_hash":"aa","service_node_states":[`+text+`]}`)
	}
	answers()
	c, err := oxend.New("ipc://"+f.socket, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	run(t, c.Run)
	f.expect("HI")
	got, err := c.Key(t.Context())
	if err != nil || got.Public() != self {
		t.Fatal(got, err)
	}
	f.expect("admin.get_service_privkeys")

	lists := make(chan []key.Public, 10)
	run(t, func(ctx context.Context) error {
		return c.Follow(ctx, oxend.Follower{ID: self, Version: [3]uint8{1, 0, 2}, Registered: func(ids []key.Public) { lists <- ids }, NoList: func() { t.Error("no list") }})
	})
	next := func(want int) {
		t.Helper()
		select {
		case ids := <-lists:
			if len(ids) != want {
				t.Errorf("%d relays, want %d", len(ids), want)
			}
		case <-time.After(patience):
			t.Fatal("no list")
		}
	}
	next(3)

	// A list of a whole network, after a block; that it was given makes the next question another one.
	text, _ := states(2000)
	f.do("answer rpc.get_service_nodes", "200", `{"status":"OK","block_hash":"bb","service_node_states":[`+text+`]}`)
	f.do("send", "notify.block", "17", "bb")
	next(2000)
	f.do("answer rpc.get_service_nodes", "200", `{"status":"OK","unchanged":true}`)
	f.do("send", "notify.block", "18", "bb")
	f.expect("rpc.get_service_nodes", `{"fields":["pubkey_ed25519","block_hash","service_node_version"]}`)
	f.expect("rpc.get_service_nodes", `{"fields":["pubkey_ed25519","block_hash","service_node_version"],"poll_block_hash":"aa"}`)
	f.expect("rpc.get_service_nodes", `{"fields":["pubkey_ed25519","block_hash","service_node_version"],"poll_block_hash":"bb"}`)

	// Longer than three heartbeats' timeouts: who did not answer PING is away now, and would say HI again.
	time.Sleep(2 * time.Second)
	hash := [32]byte{1, 2, 3}
	value := bt.NewDict(nil).Bytes("encrypted_value", make([]byte, 48)).Bytes("nonce", make([]byte, 24)).End()
	f.do("answer rpc.ons_resolve", "200", string(value))
	if sealed, _, err := c.Resolve(t.Context(), hash); len(sealed) != 48 || err != nil {
		t.Error(sealed, err)
	}
	for parts := range f.heard {
		if parts[0] == "HI" {
			t.Fatal("the connection was dropped")
		}
		if parts[0] == "rpc.ons_resolve" {
			if want := "d9:name_hash32:" + string(hash[:]) + "4:typei2ee"; len(parts) != 3 || parts[2] != want {
				t.Errorf("%q, want %q", parts, want)
			}
			break
		}
	}
	f.do("answer rpc.ons_resolve", "200", "de")
	if _, _, err := c.Resolve(t.Context(), hash); err != oxend.ErrNotFound {
		t.Error(err)
	}
	// Many at a time, as large as they come, in any order.
	f.do("answer admin.report_peer_status", "200", "")
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if err := c.Report(t.Context(), self, true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	f.expect("admin.report_peer_status", fmt.Sprintf(`{"passed":true,"pubkey":"%x","type":"srouter"}`, self[:]))
	f.do("refuse admin.report_peer_status", "FORBIDDEN")
	refused := new(oxend.RefusedError)
	if err := c.Report(t.Context(), self, true); !errors.As(err, &refused) || refused.Code != "FORBIDDEN" {
		t.Error(err)
	}

	// It is killed, and another comes in its place: all as at the start, by itself.
	f.stop()
	away(t, c, "ended")
	f.start()
	answers()
	f.expect("HI")
	f.expectAll(map[string]string{
		"sub.block":                 "",
		"admin.session_router_ping": fmt.Sprintf(`{"pubkey_ed25519":"%x","version":[1,0,2]}`, self[:]),
		"rpc.get_service_nodes":     `{"fields":["pubkey_ed25519","block_hash","service_node_version"],"poll_block_hash":"bb"}`,
	})
	f.do("send", "notify.block", "19", "aa")
	next(3)
}

// TestForeignCurve: an oxend that wants CURVE cannot be spoken to, and that is said.
func TestForeignCurve(t *testing.T) {
	f := newForeign(t, "CURVE")
	c, err := oxend.New("ipc://"+f.socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	run(t, c.Run)
	away(t, c, "without CURVE")
}

// away waits until there is no connection, and expects words in the reason.
func away(t *testing.T, c *oxend.Client, why string) {
	t.Helper()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		ok, err := c.Connected()
		if !ok && strings.Contains(err.Error(), why) {
			return
		} else if time.Since(start) > patience {
			t.Fatal(ok, err)
		}
	}
}
