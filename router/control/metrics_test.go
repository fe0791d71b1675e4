package control

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWriteMetrics(t *testing.T) {
	var b bytes.Buffer
	err := WriteMetrics(&b, []Metric{
		{Name: "x_total", Help: "What it is.", Counter: true, Samples: []Sample{{Labels: []string{"a", "1", "b", "q\"\\\n"}, Value: 12345678901}, {Value: 0.5}}},
		{Name: "nothing", Help: "Never seen."},
		{Name: "y", Help: "Another.", Samples: []Sample{{Value: 1}}},
	})
	const want = "# HELP x_total What it is.\n# TYPE x_total counter\nx_total{a=\"1\",b=\"q\\\"\\\\\\n\"} 1.2345678901e+10\nx_total 0.5\n# HELP y Another.\n# TYPE y gauge\ny 1\n"
	if err != nil || b.String() != want {
		t.Errorf("%v\n got %s\nwant %s", err, b.String(), want)
	}
}

// TestMetricsServer: loopback and the socket answer /metrics, whoever asks on loopback by its own address; nothing is left behind.
func TestMetricsServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	s, err := ListenMetrics(netip.MustParseAddrPort("127.0.0.1:0"), path, "", func() []Metric { return []Metric{{Name: "x", Help: "X.", Samples: []Sample{{Value: 1}}}} },
		slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("the socket: %v, %v", fi, err)
	}
	at := s.Addr().String()
	onSocket := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}
	_, port, _ := net.SplitHostPort(at)
	for _, c := range []struct {
		by     http.RoundTripper
		host   string
		method string
		path   string
		status int
	}{
		{nil, at, "GET", "/metrics", 200},
		{nil, "localhost:" + port, "GET", "/metrics", 200},
		{nil, "[::1]:" + port, "GET", "/metrics", 200},
		{onSocket, "localhost", "GET", "/metrics", 200},
		{nil, "evil.example:" + port, "GET", "/metrics", 403}, // a name that a web page has made to point here
		{nil, "192.0.2.1", "GET", "/metrics", 403},
		{nil, at, "POST", "/metrics", 405},
		{nil, at, "GET", "/v1/status", 404},
		{onSocket, "localhost", "GET", "/v1/status", 404},
	} {
		if c.by == nil {
			c.by = &http.Transport{}
		}
		r, err := http.NewRequest(c.method, "http://"+at+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = c.host
		resp, err := c.by.RoundTrip(r)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		c.by.(*http.Transport).CloseIdleConnections()
		if resp.StatusCode != c.status || strings.Contains(string(body), "x 1\n") != (c.status == 200) {
			t.Errorf("%s %s for %s: %s: %s", c.method, c.path, c.host, resp.Status, body)
		}
	}
	if _, err := ListenMetrics(netip.MustParseAddrPort(at), "", "", nil, slog.Default()); err == nil || !strings.Contains(err.Error(), "metrics.listen: ") {
		t.Errorf("a port in use: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
}
