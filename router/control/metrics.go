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
	"strconv"
	"strings"
	"time"
)

// Metric is one measured thing in Prometheus' terms. No key, name or address may stand in it: who reads it is not who may read the status.
type Metric struct {
	Name    string // "lokinetd_sessions"; that of a counter ends in "_total"
	Help    string // one line
	Counter bool   // it never goes back while the daemon runs; else it is a gauge
	Samples []Sample
}

// Sample is a value with its labels, name and value in turns.
type Sample struct {
	Labels []string
	Value  float64
}

// WriteMetrics writes the text format of Prometheus, version 0.0.4. Metrics without a sample are left out.
func WriteMetrics(w io.Writer, all []Metric) error {
	var b bytes.Buffer
	for _, m := range all {
		if len(m.Samples) == 0 {
			continue
		}
		kind := "gauge"
		if m.Counter {
			kind = "counter"
		}
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", m.Name, m.Help, m.Name, kind)
		for _, s := range m.Samples {
			b.WriteString(m.Name)
			for i := 0; i+1 < len(s.Labels); i += 2 {
				open := byte(',')
				if i == 0 {
					open = '{'
				}
				b.WriteByte(open)
				fmt.Fprintf(&b, "%s=\"%s\"", s.Labels[i], labelEscapes.Replace(s.Labels[i+1]))
			}
			if len(s.Labels) > 1 {
				b.WriteByte('}')
			}
			fmt.Fprintf(&b, " %s\n", strconv.FormatFloat(s.Value, 'g', -1, 64))
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

var labelEscapes = strings.NewReplacer("\\", "\\\\", "\"", "\\\"", "\n", "\\n")

// MetricsServer answers GET /metrics, and nothing else, on loopback, a unix socket, or both.
type MetricsServer struct {
	lns  []net.Listener
	http http.Server
}

const maxMetricsConns = 8 // at a time, on each listener

// ListenMetrics binds what is asked for: listen unless it is not valid, and the socket unless its path is empty, for who may use the control socket of that group.
// collect is called for each answer. The caller runs and so closes the server.
func ListenMetrics(listen netip.AddrPort, socket, group string, collect func() []Metric, log *slog.Logger) (*MetricsServer, error) {
	s := &MetricsServer{}
	gid := os.Getgid()
	if listen.IsValid() {
		ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(listen))
		if err != nil {
			return nil, fmt.Errorf("metrics.listen: %w", err)
		}
		s.lns = append(s.lns, newListener(ln, maxMetricsConns))
	}
	if socket != "" {
		ln, g, err := listenUnix(socket, group, log)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("metrics.socket: %w", err)
		}
		gid = g
		s.lns = append(s.lns, newListener(ln, maxMetricsConns))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if ok, _ := r.Context().Value(allowedKey{}).(bool); !ok {
			http.Error(w, "permission denied", http.StatusForbidden)
			return
		}
		if !ownHost(r.Host) {
			http.Error(w, "ask for an address of loopback", http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		WriteMetrics(w, collect())
	})
	onSocket := peer(uint32(os.Getuid()), uint32(gid))
	s.http = http.Server{
		Handler:        mux,
		ReadTimeout:    askTime,
		WriteTimeout:   10 * time.Second,
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: maxHeader,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if _, unix := c.(*conn).Conn.(*net.UnixConn); unix {
				return onSocket(ctx, c)
			}
			return context.WithValue(ctx, allowedKey{}, true)
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// ownHost says whether a request is meant for this host by its own address. A web page can make a name of its own point to 127.0.0.1 and read what answers there.
func ownHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsLoopback() || host == "localhost"
}

// Addr is where it listens on loopback; nil: it does not.
func (s *MetricsServer) Addr() net.Addr {
	for _, l := range s.lns {
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			return a
		}
	}
	return nil
}

func (s *MetricsServer) close() {
	for _, l := range s.lns {
		l.Close()
	}
}

// Run serves until ctx ends; then it removes the socket.
func (s *MetricsServer) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.http.Close(); s.close() })
	defer stop()
	done := make(chan error, len(s.lns))
	for _, l := range s.lns {
		go func() { done <- s.http.Serve(l) }()
	}
	var first error
	for range s.lns {
		err := <-done
		if ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) && first == nil {
			first = fmt.Errorf("control: metrics: %w", err)
		}
		s.http.Close()
	}
	return first
}
