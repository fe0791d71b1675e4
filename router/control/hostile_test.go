package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// chatty never stops telling events.
type chatty struct{ fakeAPI }

func (chatty) Events(ctx context.Context, each func(Event) error) error {
	for ctx.Err() == nil {
		if err := each(Event{Schema: Schema, Event: EventState, Reason: strings.Repeat("x", 1000)}); err != nil {
			return err
		}
	}
	return nil
}

// hurried is a server's connection for which all times are short that are not none.
type hurried struct{ net.Conn }

const short = 100 * time.Millisecond

func soon(at time.Time) time.Time {
	if end := time.Now().Add(short); at.After(end) {
		return end
	}
	return at
}

func (c hurried) SetDeadline(at time.Time) error      { return c.Conn.SetDeadline(soon(at)) }
func (c hurried) SetReadDeadline(at time.Time) error  { return c.Conn.SetReadDeadline(soon(at)) }
func (c hurried) SetWriteDeadline(at time.Time) error { return c.Conn.SetWriteDeadline(soon(at)) }

// wrap has a server speak over what by makes of each of its connections.
func wrap(s *http.Server, by func(net.Conn) net.Conn) {
	first := s.ConnContext
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		ctx = first(ctx, c) // who is at the other end, it asks the socket
		c.(*conn).Conn = by(c.(*conn).Conn)
		return ctx
	}
}

// TestHostile: whoever connects to the control socket or asks for metrics, and whatever it sends or leaves unsaid or unread, is let go in its time: each takes all places there are, and then others are
// answered and nothing is left. The times are those of the servers, made short for all but the last, who must be answered however slow the machine is.
func TestHostile(t *testing.T) {
	drip := func(c net.Conn) { // a byte now and then, for ever
		for {
			if _, err := c.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(short / 10)
		}
	}
	pour := func(c net.Conn) { // as fast as it is taken, for ever
		block := bytes.Repeat([]byte("x"), 1<<14)
		for {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	}
	say := func(text string) func(net.Conn) { return func(c net.Conn) { io.WriteString(c, text) } }
	then := func(text string, next func(net.Conn)) func(net.Conn) {
		return func(c net.Conn) { io.WriteString(c, text); next(c) }
	}
	for _, door := range []struct{ name, path string }{{"control", "/v1/status"}, {"metrics", "/metrics"}} {
		get := "GET " + door.path + " HTTP/1.1\r\nHost: 127.0.0.1\r\n"
		for _, c := range []struct {
			name string
			do   func(net.Conn)
			read bool // it reads what comes
		}{
			{"malformed", say("\x16\x03\x01\x00\xff nonsense\r\n\r\n"), true},
			{"malformed, unread", say("\x16\x03\x01\x00\xff nonsense\r\n\r\n"), false},
			{"silent", func(net.Conn) {}, true},
			{"truncated", say(get), true},
			{"truncated body", say(get + "Content-Length: 1000\r\n\r\nabc"), true},
			{"repeated", say(strings.Repeat(get+"\r\n", 100)), true},
			{"repeated, unread", say(strings.Repeat(get+"\r\n", 100)), false},
			{"oversized line", then("GET /", pour), true},
			{"oversized header", then(get+"X: ", pour), true},
			{"oversized body", then("POST /v1/ping HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999999999\r\n\r\n", pour), true},
			{"slow line", drip, true},
			{"slow header", then(get+"X: ", drip), true},
			{"slow body", then("POST /v1/ping HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 60000\r\n\r\n", drip), true},
			{"never-ending body", then("POST /v1/ping HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n", pour), true},
			{"events never read", say("GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"), false},
		} {
			ok := t.Run(door.name+"/"+c.name, func(t *testing.T) {
				before := runtime.NumGoroutine()
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error)
				dir := t.TempDir()
				places, network, at := maxConns, "unix", filepath.Join(dir, "sock")
				var asker net.Dialer // from another address than all others
				hurry := func(c net.Conn) net.Conn {
					if from, _, _ := net.SplitHostPort(c.RemoteAddr().String()); from == "127.0.0.2" || c.RemoteAddr().String() == filepath.Join(dir, "me") {
						return c
					}
					return hurried{c}
				}
				switch door.name {
				case "control":
					s, err := Listen(at, "", chatty{}, slog.New(slog.DiscardHandler))
					if err != nil {
						t.Fatal(err)
					}
					asker.LocalAddr = &net.UnixAddr{Name: filepath.Join(dir, "me"), Net: network}
					wrap(&s.http, hurry)
					go func() { done <- s.Run(ctx) }()
				default:
					s, err := ListenMetrics(netip.MustParseAddrPort("127.0.0.1:0"), "", "", func() []Metric { return []Metric{{Name: "a", Samples: []Sample{{Value: 1}}}} }, slog.New(slog.DiscardHandler))
					if err != nil {
						t.Fatal(err)
					}
					places, network, at = maxMetricsConns, "tcp", s.Addr().String()
					asker.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}
					wrap(&s.http, hurry)
					go func() { done <- s.Run(ctx) }()
				}
				ended := make(chan struct{})
				var all []net.Conn
				for range places {
					conn, err := net.Dial(network, at)
					if err != nil {
						t.Fatal(err)
					}
					all = append(all, conn)
					go func() { c.do(conn); ended <- struct{}{} }()
					if c.read {
						go io.Copy(io.Discard, conn)
					}
				}
				conn, err := asker.Dial(network, at)
				if err != nil {
					t.Fatal(err)
				}
				conn.SetDeadline(time.Now().Add(time.Minute))
				fmt.Fprintf(conn, "%sConnection: close\r\n\r\n", get)
				if got, err := io.ReadAll(conn); !strings.HasPrefix(string(got), "HTTP/1.1 200 OK") {
					t.Errorf("another one is told %.100q, %v", got, err)
				}
				conn.Close()
				for _, conn := range all {
					conn.Close()
				}
				for range all {
					<-ended
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				for end := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("%d goroutines before, %d after", before, runtime.NumGoroutine())
					}
				}
			})
			if !ok {
				return // the others would take as long
			}
		}
	}
}

// clocked is a server's connection whose time to read comes when the test says so.
type clocked struct {
	net.Conn
	mu   sync.Mutex
	read time.Time
}

func (c *clocked) SetReadDeadline(at time.Time) error {
	c.mu.Lock()
	c.read = at
	c.mu.Unlock()
	if at.After(time.Now()) {
		at = time.Time{}
	}
	return c.Conn.SetReadDeadline(at)
}

// come is the end of the time that there is to read, if there is one.
func (c *clocked) come() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.read.IsZero() {
		c.Conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// TestSlowRead: one who reads slowly, but reads, keeps its place, however long that takes.
func TestSlowRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	s, err := Listen(path, "", fakeAPI{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan *clocked, 1)
	wrap(&s.http, func(c net.Conn) net.Conn {
		k := &clocked{Conn: c}
		served <- k
		return k
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	got, buf := "", make([]byte, 1000)
	for strings.Count(got, "\"event\"") < 2 { // fakeAPI tells two events and waits
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		got += string(buf[:n])
	}
	(<-served).come()
	conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if n, err := conn.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("when a request would have had its time: %q, %v", buf[:n], err)
	}
	cancel()
	<-done
}
