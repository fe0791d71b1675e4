package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

// FuzzRequest: every member of the socket's group, and every program that such a one starts, sends the daemon any request. It is answered, with one of our codes, and one who may not ask learns
// nothing.
//
// Decoders: routes fail ownHost
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET /v1/status", "GET /v1/relays", "GET /v1/log", "GET /v1/events", "GET /v1/resolve?name=a.loki", "GET /v1/resolve", "POST /v1/ping?count=2&name=x", "POST /v1/ping", "POST /v1/ping?count=61",
		"POST /v1/ping?%zz", "DELETE /v1/status", "GET //v1/../x", "GET /",
	} {
		f.Add([]byte(s+" HTTP/1.1\r\nHost: x\r\n\r\n"), true)
		f.Add([]byte(s+" HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"), false)
	}
	f.Add([]byte("POST /v1/ping HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 15\r\n\r\ncount=3&name=ab"), true)
	handler := routes(fakeAPI{})
	f.Fuzz(func(t *testing.T, b []byte, may bool) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		if ownHost(r.Host) {
			host := strings.Trim(strings.TrimSuffix(r.Host[:max(strings.LastIndexByte(r.Host, ':'), 0)], ":"), "[]")
			whole := strings.Trim(r.Host, "[]")
			if a, err := netip.ParseAddr(host); (err != nil || !a.IsLoopback()) && host != "localhost" {
				if a, err := netip.ParseAddr(whole); (err != nil || !a.IsLoopback()) && whole != "localhost" {
					t.Fatalf("%q counts as this host", r.Host)
				}
			}
		}
		ctx, cancel := context.WithCancel(context.WithValue(context.WithValue(context.Background(), http.ServerContextKey, new(http.Server)), allowedKey{}, may))
		cancel() // events would not end
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r.WithContext(ctx))
		body := w.Body.String()
		switch {
		case w.Code >= 300 && w.Code < 400: // a path that is written in another way
		case w.Code == http.StatusBadRequest && r.RequestURI == "*": // net/http's own
		case w.Code == http.StatusOK:
			if !may || !json.Valid([]byte(strings.TrimSpace(strings.Split(body, "\n")[0]))) {
				t.Fatalf("answered %q", body)
			}
		default:
			var e Failure
			if json.Unmarshal([]byte(body), &e) != nil || e.Error == "" || httpStatus[e.Code] != w.Code {
				t.Fatalf("%d %q", w.Code, body)
			}
		}
	})
}

// roundTrip answers each request of a client with the same bytes.
type roundTrip []byte

func (b roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	return http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), r)
}

// FuzzAnswer: what answers on the socket's path may be another program, or a daemon of another version. The client ends with an answer or an error that says something.
//
// Decoders: Client.do Client.ask Client.Events
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"200 OK\r\n\r\n{\"version\":\"x\"}", "200 OK\r\n\r\n{\"event\":\"state\"}\n{\"event\":\"edge_up\"}\n{", "200 OK\r\n\r\n", "200 OK\r\nContent-Length: 5\r\n\r\n{}", "404 x\r\n\r\n{\"error\":\"none\",\"code\":\"not_found\"}",
		"500 \r\n\r\n", "500 \r\n\r\n{\"error\":\"\"}", "500 x\r\nContent-Length: 9\r\n\r\n{}", "503 x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "301 x\r\nLocation: /v1/status\r\n\r\n", "200 OK\r\n\r\n[]", "x",
	} {
		f.Add([]byte("HTTP/1.1 " + s))
	}
	enough := errors.New("enough")
	f.Fuzz(func(t *testing.T, b []byte) {
		c, ctx := Client{http: http.Client{Transport: roundTrip(b)}}, context.Background()
		_, err := c.Status(ctx)
		if _, err2 := c.Ping(ctx, "a.loki", 3); err == nil != (err2 == nil) && !bytes.Contains(b, []byte("{")) {
			t.Fatalf("%v; %v", err, err2)
		}
		if err != nil && err.Error() == "" {
			t.Fatal("an error that says nothing")
		}
		n := 0
		err = c.Events(ctx, func(Event) error {
			if n++; n == 3 {
				return enough
			}
			return nil
		})
		if err == nil || (err == enough) != (n == 3) || errors.Is(err, io.EOF) && n > 0 {
			t.Fatalf("%d events, %v", n, err)
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		c.Events(ended, func(Event) error { return nil })
	})
}
