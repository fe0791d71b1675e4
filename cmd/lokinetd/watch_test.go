package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lokinetd/router/control"
)

// busyDaemon carries 1,000 bytes more in each time that it is asked.
type busyDaemon struct {
	fakeDaemon
	asked atomic.Uint64
}

func (b *busyDaemon) Status() control.Status {
	s := clientStatus()
	s.Traffic.BytesIn += 1000 * b.asked.Add(1)
	return s
}

// written keeps what a command writes, for a test that reads meanwhile.
type written struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *written) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *written) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// watching runs "status --watch" until what it has written is enough, and then as Ctrl-C ends it.
func watching(t *testing.T, a *app, seen func() bool, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		done <- a.execute(ctx, append([]string{"status", "--watch", "--every", "100ms", "--socket", "./sock"}, args...))
	}()
	for end := time.Now().Add(time.Minute); !seen(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Error("nothing more comes")
			break
		}
	}
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestWatchText: where the output is no terminal, the status is repeated, without a byte that commands one, and with rates.
func TestWatchText(t *testing.T) {
	t.Chdir(t.TempDir())
	serve(t, &busyDaemon{})
	var out, said written
	watching(t, &app{out: &out, err: &said}, func() bool { return strings.Count(out.String(), "--- lokinetd status at ") > 3 })
	if text := out.String(); strings.Contains(text, "\x1b") || !strings.Contains(text, "/s, at most ") || !strings.Contains(text, "4 of 4 inbound paths, idle") {
		t.Errorf("written:\n%s%s", text, said.String())
	}
}

// TestWatchJSON: one line each time.
func TestWatchJSON(t *testing.T) {
	t.Chdir(t.TempDir())
	serve(t, &busyDaemon{})
	var out, said written
	watching(t, &app{out: &out, err: &said}, func() bool { return strings.Count(out.String(), "\n") > 3 }, "--json")
	last := uint64(0)
	for line := range strings.Lines(out.String()) {
		var s control.Status
		if err := json.Unmarshal([]byte(line), &s); err != nil || s.Traffic.BytesIn <= last {
			t.Errorf("%v: %q", err, line)
		}
		last = s.Traffic.BytesIn
	}
}

// TestWatchRefuses: a daemon that is not there, and a rate at which watching would cost something.
func TestWatchRefuses(t *testing.T) {
	t.Chdir(t.TempDir())
	var out, said written
	a := &app{out: &out, err: &said}
	if code := a.execute(t.Context(), []string{"status", "--watch", "--socket", "./sock"}); code != exitNotRunning {
		t.Errorf("exit code %d", code)
	}
	if code := a.execute(t.Context(), []string{"status", "--watch", "--every", "1ms", "--socket", "./sock"}); code != exitUsage {
		t.Errorf("exit code %d", code)
	}
	if out.String() != "" {
		t.Errorf("written: %q", out.String())
	}
}

// openTerminal makes a pseudo terminal of a size. What is written to tty is read from user.
func openTerminal(t *testing.T, columns, rows uint16) (user, tty *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	user = os.NewFile(uintptr(fd), "terminal")
	t.Cleanup(func() { user.Close(); tty.Close() })
	setSize(t, tty, columns, rows)
	return user, tty
}

func setSize(t *testing.T, tty *os.File, columns, rows uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
		t.Fatal(err)
	}
}

// reading keeps what comes to a terminal.
func reading(user *os.File) *written {
	w := &written{}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := user.Read(b)
			if err != nil {
				return
			}
			w.Write(b[:n])
		}
	}()
	return w
}

// until waits for a text.
func (w *written) until(t *testing.T, text string) string {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if got := w.String(); strings.HasSuffix(got, text) {
			return strings.TrimSuffix(got, text)
		} else if time.Now().After(end) {
			t.Fatalf("no %q at the end of %q", text, got)
		}
	}
}

// TestWatchTerminal: a live view follows another size of the terminal, and leaves it as it was.
func TestWatchTerminal(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("TERM", "xterm")
	d := &busyDaemon{}
	serve(t, d)
	user, tty := openTerminal(t, 60, 18)
	seen := reading(user)
	resized := false
	watching(t, &app{out: tty, err: &written{}}, func() bool {
		if d.asked.Load() > 3 && !resized {
			resized = true
			setSize(t, tty, 100, 60)
			unix.Kill(unix.Getpid(), unix.SIGWINCH)
		}
		return resized && strings.Count(seen.String(), "\x1b[2J") == 2 && strings.Contains(seen.String(), "not hidden")
	})
	text := seen.until(t, leaveScreen)
	text, ok := strings.CutPrefix(text, enterScreen)
	if !ok || strings.Contains(text, leaveScreen) || !strings.Contains(text, "more lines: make the window higher") {
		t.Errorf("%q", text)
	}
	if drawn := strings.Count(text, "\x1b[2J"); drawn != 1 {
		t.Errorf("drawn anew %d times", drawn)
	}
}

// TestScreen: what is drawn stays within the terminal, and what stands there is not sent again.
func TestScreen(t *testing.T) {
	t.Setenv("TERM", "xterm")
	user, tty := openTerminal(t, 10, 4)
	seen := reading(user)
	s := newScreen(tty)
	shows, before := 0, ""
	show := func(want string, lines ...string) {
		t.Helper()
		shows++
		if err := s.show(lines); err != nil {
			t.Fatal(err)
		}
		end := fmt.Sprintf("|%d|", shows)
		tty.WriteString(end)
		all := seen.until(t, end)
		if got := strings.TrimPrefix(all, before); got != want {
			t.Errorf("%q: sent %q, want %q", lines, got, want)
		}
		before = all + end
	}
	show("\x1b[1;1Hone\x1b[K\x1b[2;1H├────────┤", "one", "├────────┤")
	show("", "one", "├────────┤")
	show("\x1b[2;1Htwo\x1b[K\x1b[3;1H0123456789", "one", "two", "0123456789abc")
	show("\x1b[4;1H... 2 more", "one", "two", "0123456789abc", "four", "five")
	show("\x1b[2;1H\x1b[J", "one")
	s.clear()
	setSize(t, tty, 5, 1)
	show("\x1b[2J\x1b[1;1H... 2", "one", "two")
	t.Setenv("TERM", "dumb")
	if newScreen(tty) != nil || newScreen(&written{}) != nil {
		t.Error("something that is no terminal is drawn on")
	}
}

// TestMeter: rates are differences over time; of what is new, or of another daemon, there is none.
func TestMeter(t *testing.T) {
	s := clientStatus()
	var m meter
	m.look(s, goldenNow)
	if r := m.rates(1000, 2000, "x"); r != "" {
		t.Errorf("the first look: %q", r)
	}
	s.Traffic.BytesIn += 4000
	m.look(s, goldenNow.Add(2*time.Second))
	for _, c := range []struct {
		in, out  uint64
		id, want string
	}{
		{3000, 2000, "x", "in 1.0 kB/s, out 0 B/s"},
		{1000, 2000, "x", "idle"},
		{500, 2000, "x", "idle"}, // counters that went back
		{500, 2000, "y", ""},
	} {
		if got := m.rates(c.in, c.out, c.id); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
	if got := m.curves(asciiMarks, true); !strings.HasSuffix(got[0], "@] 2.0 kB/s, at most 2.0 kB/s") || !strings.HasSuffix(got[1], " ] 0 B/s") {
		t.Errorf("%q", got)
	}
	for n := range 2 * curveWidth {
		s.Traffic.BytesIn += 100
		m.look(s, goldenNow.Add(time.Duration(3+n)*time.Second))
	}
	if n := len(m.in); n != curveWidth {
		t.Errorf("%d rates are remembered", n)
	}
	s.StartedAt = s.StartedAt.Add(time.Hour)
	m.look(s, goldenNow.Add(time.Hour))
	if len(m.in) != 0 || m.rates(1, 1, "x") != "" {
		t.Error("a daemon that has been started again has rates")
	}
}

// TestStatusPrintable: nothing that a status holds can command the terminal, and prose is broken at the terminal's width.
func TestStatusPrintable(t *testing.T) {
	s := clientStatus()
	s.Network.Name, s.Warnings[0], s.Sessions[0].Remote, s.Edges[0].Address = "\x1b]0;x\a", "\x1b[2J\u009b", "\x1b[2J.loki", "\r\x1b"
	for _, width := range []int{0, 10, 70, 100} {
		lines := (&view{now: goldenNow, marks: boxMarks, width: width}).status(s)
		if bad := slices.IndexFunc(lines, func(l string) bool { return strings.ContainsAny(l, "\x1b\a\r\n\u009b") }); bad >= 0 {
			t.Errorf("%q", lines[bad])
		}
		if width > 50 {
			for _, l := range lines {
				if n := len([]rune(l)); n > width && !strings.ContainsAny(l, "─├└") && !strings.Contains(l, "[2J.loki") && !strings.Contains(l, "...loki") {
					t.Errorf("%d columns of %d: %s", n, width, l)
				}
			}
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0s", 59900 * time.Millisecond: "59s", time.Minute: "1m0s", 10 * time.Minute: "10m", time.Hour: "1h0m",
		50 * time.Hour: "2d2h", -time.Second: "1s"} {
		if got := span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestStatusOfService(t *testing.T) {
	s := clientStatus()
	e := &s.Endpoints[1]
	e.ClientsFrom, e.Clients, e.Refused, e.TooMany = "/etc/lokinetd/family", 1, 12, 3
	text := strings.Join((&view{now: goldenNow, marks: asciiMarks}).status(s), "\n")
	if !strings.Contains(text, "published 5m0s ago, for 1 client only; 15 calls refused\n") {
		t.Error(text)
	}
}
