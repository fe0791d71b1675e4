package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type fakeAPI struct{}

func (fakeAPI) Status() Status { return Status{Schema: Schema, Version: "test", State: Ready} }
func (fakeAPI) Relays() Relays { return Relays{Schema: Schema} }
func (fakeAPI) Log() Log       { return Log{Schema: Schema, Lines: []LogLine{{Message: "x"}}} }
func (fakeAPI) Resolve(_ context.Context, name string) (Resolved, error) {
	if name == "" {
		return Resolved{}, Errorf(CodeUsage, "no name given")
	}
	return Resolved{}, Errorf(CodeNotFound, "%s does not exist", name)
}
func (fakeAPI) Ping(_ context.Context, name string, count int) (Pinged, error) {
	return Pinged{Name: name, Sent: count}, nil
}

func (fakeAPI) Events(ctx context.Context, each func(Event) error) error {
	for _, e := range []string{EventState, EventEdgeUp} {
		if err := each(Event{Schema: Schema, Event: e}); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

// start runs a server on a socket in a temporary folder until the test ends.
func start(t *testing.T) (path string) {
	path = filepath.Join(t.TempDir(), "run", "lokinetd.sock")
	s, err := Listen(path, "no-such-group", fakeAPI{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
	})
	return path
}

func TestQuestions(t *testing.T) {
	path := start(t)
	c, ctx := NewClient(path), context.Background()
	if s, err := c.Status(ctx); err != nil || s.Version != "test" || s.State != Ready {
		t.Errorf("status: %+v, %v", s, err)
	}
	if p, err := c.Ping(ctx, "x.loki", 7); err != nil || p.Sent != 7 || p.Name != "x.loki" {
		t.Errorf("ping: %+v, %v", p, err)
	}
	if l, err := c.Log(ctx); err != nil || len(l.Lines) != 1 {
		t.Errorf("log: %+v, %v", l, err)
	}
	for name, code := range map[string]string{"": CodeUsage, "nobody.loki": CodeNotFound} {
		var e *Error
		if _, err := c.Resolve(ctx, name); !errors.As(err, &e) || e.Code != code {
			t.Errorf("resolve %q: %v, want code %s", name, err, code)
		}
	}
	var e *Error
	if _, err := c.Ping(ctx, "x.loki", 0); !errors.As(err, &e) || e.Code != CodeUsage {
		t.Errorf("count 0: %v", err)
	}
	if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o660 {
		t.Errorf("mode %v", fi.Mode())
	}
	if _, err := Listen(path, "", fakeAPI{}, slog.Default()); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("a second server: %v", err)
	}
}

// TestEvents: each comes as it happens, until the asker has enough or the daemon ends.
func TestEvents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	s, err := Listen(path, "", fakeAPI{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	enough := errors.New("enough")
	if err := NewClient(path).Events(context.Background(), func(e Event) error { return enough }); err != enough {
		t.Errorf("enough: %v", err)
	}
	mine, stop := context.WithCancel(context.Background())
	if err := NewClient(path).Events(mine, func(e Event) error { stop(); return nil }); err != nil {
		t.Errorf("stopped: %v", err)
	}
	var got []string
	err = NewClient(path).Events(context.Background(), func(e Event) error {
		if got = append(got, e.Event); len(got) == 2 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, ErrNotRunning) || strings.Join(got, " ") != "state edge_up" {
		t.Errorf("%v, %q", err, got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNotRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	if _, err := NewClient(path).Status(context.Background()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no socket: %v", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	if _, err := NewClient(path).Status(context.Background()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a dead socket: %v", err)
	}
	s, err := Listen(path, "", fakeAPI{}, slog.New(slog.DiscardHandler)) // takes the dead one over
	if err != nil {
		t.Fatal(err)
	}
	s.ln.Close()
}

// Whatever a local process writes, the server answers or hangs up, and lives.
func TestGarbage(t *testing.T) {
	path := start(t)
	for _, in := range []string{
		"", "\x00\x01\x02", "GET", "GET / HTTP/1.1\r\n\r\n", "GET /v1/status HTTP/9.9\r\n\r\n",
		"POST /v1/ping?count=" + strings.Repeat("9", 4000) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /v1/ping?%zz HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
		"GET /v1/resolve?name=" + strings.Repeat("a", maxHeader*2) + " HTTP/1.1\r\n\r\n",
		"DELETE /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", "GET /v2/nothing HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte(in))
		c.(*net.UnixConn).CloseWrite()
		c.SetReadDeadline(time.Now().Add(time.Minute))
		answer, err := io.ReadAll(c)
		if err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(fmt.Sprint(err), "reset") {
			t.Errorf("%.40q: %v", in, err)
		}
		if bytes.Contains(answer, []byte(" 200 ")) {
			t.Errorf("%.40q was answered with 200", in)
		}
		c.Close()
	}
	if _, err := NewClient(path).Status(context.Background()); err != nil {
		t.Errorf("the server died: %v", err)
	}
}
