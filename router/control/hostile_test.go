package control

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
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

// TestHostile: whoever connects to the control socket or asks for metrics, and whatever it sends or leaves unsaid or unread, is let go in its time: each takes all places there are, and then others are
// answered and nothing is left. The times are those of the servers, made short.
func TestHostile(t *testing.T) {
	const short = 100 * time.Millisecond
	shorten := func(all ...*time.Duration) {
		for _, d := range all {
			*d = min(*d, short) // one that is not set stays so
		}
	}
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
			t.Run(door.name+"/"+c.name, func(t *testing.T) {
				before := runtime.NumGoroutine()
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error)
				places, network, at := maxConns, "unix", filepath.Join(t.TempDir(), "sock")
				switch door.name {
				case "control":
					s, err := Listen(at, "", chatty{}, slog.New(slog.DiscardHandler))
					if err != nil {
						t.Fatal(err)
					}
					shorten(&s.http.ReadTimeout, &s.http.WriteTimeout, &s.http.IdleTimeout)
					go func() { done <- s.Run(ctx) }()
				default:
					s, err := ListenMetrics(netip.MustParseAddrPort("127.0.0.1:0"), "", "", func() []Metric { return []Metric{{Name: "a", Samples: []Sample{{Value: 1}}}} }, slog.New(slog.DiscardHandler))
					if err != nil {
						t.Fatal(err)
					}
					places, network, at = maxMetricsConns, "tcp", s.Addr().String()
					shorten(&s.http.ReadTimeout, &s.http.WriteTimeout, &s.http.IdleTimeout)
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
				asker, err := net.Dial(network, at)
				if err != nil {
					t.Fatal(err)
				}
				asker.SetDeadline(time.Now().Add(20 * time.Second))
				fmt.Fprintf(asker, "%sConnection: close\r\n\r\n", get)
				if got, err := io.ReadAll(asker); !strings.HasPrefix(string(got), "HTTP/1.1 200 OK") {
					t.Errorf("another one is told %.100q, %v", got, err)
				}
				asker.Close()
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
				for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("%d goroutines before, %d after", before, runtime.NumGoroutine())
					}
				}
			})
		}
	}
}

// TestSlowRead: one who reads slowly, but reads, keeps its place, however long that takes.
func TestSlowRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	s, err := Listen(path, "", fakeAPI{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.http.ReadTimeout, s.http.IdleTimeout = 100*time.Millisecond, 100*time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
	conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond)) // five times as long as a request may take: fakeAPI tells two events and waits
	if got, err := io.ReadAll(conn); err == nil || strings.Count(string(got), "\"event\"") != 2 {
		t.Errorf("%q, %v", got, err)
	}
	cancel()
	<-done
}
