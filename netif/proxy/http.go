package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"syscall"
	"time"
)

const (
	maxHeader   = 64 << 10         // bytes, of a request or an answer
	httpIdle    = 30 * time.Second // of a connection that is kept for the next request
	maxPerHost  = 32               // connections for http:// to one remote
	idlePerHost = 4
)

// newHTTP makes the HTTP proxy: what serves a listener, and what ends it.
//
// CONNECT (RFC 9110 section 9.3.6) opens a tunnel; a request for http://... is made for the program. Where it goes is what the request line says, in both cases:
// a Host field is not looked at and does not reach the remote. Requests in origin form, as a web page sends them that has been made believe that we are its
// server (DNS rebinding), are refused.
func (s *Server) newHTTP() (serve func(*net.TCPListener) error, stop func()) {
	transport := newRenewed(&http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			t, err := parseTarget(addr, 0)
			if err != nil {
				return nil, err
			}
			c, err := s.dial(ctx, t)
			if err != nil {
				return nil, err
			}
			return &forgetting{c, s}, nil
		},
		DisableCompression: true, MaxConnsPerHost: maxPerHost, MaxIdleConnsPerHost: idlePerHost, IdleConnTimeout: httpIdle, MaxResponseHeaderBytes: maxHeader,
	})
	quiet := slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.Host = "" // that of the URL
			r.Out.URL.RawQuery = r.In.URL.RawQuery
		},
		Transport: transport, FlushInterval: -1, ErrorLog: quiet,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { httpError(w, err) },
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !s.begin() {
				return
			}
			defer s.wg.Done()
			switch {
			case r.Method == http.MethodConnect:
				s.connect(w, r)
			case r.URL.IsAbs():
				if _, err := forwardTarget(r.URL); err != nil {
					if errors.Is(err, ErrRefused) {
						s.count.refused.Add(1)
					}
					httpError(w, err)
					return
				}
				forward.ServeHTTP(w, r)
			default:
				httpError(w, fmt.Errorf("%w: this is a proxy for .loki names, not a web server", errMalformed))
			}
		}),
		ReadHeaderTimeout: s.patience, IdleTimeout: httpIdle, MaxHeaderBytes: maxHeader, ErrorLog: quiet, DisableGeneralOptionsHandler: true,
		BaseContext: func(net.Listener) context.Context { return s.ctx },
	}
	serve = func(l *net.TCPListener) error {
		err := server.Serve(accepting{l, s})
		return fmt.Errorf("proxy: %w", err)
	}
	stop = func() {
		server.Close()
		transport.CloseIdleConnections()
	}
	return serve, stop
}

// renewed is a transport that gives way to a new one now and then: http.Transport remembers every name that it could not connect to, or whose connection it did not keep, for good.
type renewed struct {
	mu     sync.Mutex
	at     *http.Transport
	misses int // of at
}

const renewAfter = 32 // misses; each is remembered by about 1 KiB

func newRenewed(t *http.Transport) *renewed { return &renewed{at: t} }

func (r *renewed) RoundTrip(q *http.Request) (*http.Response, error) {
	r.mu.Lock()
	t := r.at
	r.mu.Unlock()
	a, err := t.RoundTrip(q)
	if err != nil || a.Close {
		r.mu.Lock()
		if r.misses++; t == r.at && r.misses >= renewAfter {
			r.at, r.misses = t.Clone(), 0
			defer t.CloseIdleConnections() // those in use are closed after their answer
		}
		r.mu.Unlock()
	}
	return a, err
}

func (r *renewed) CloseIdleConnections() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at.CloseIdleConnections()
}

// begin counts a handler that Run waits for; false: Run ends.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.end {
		s.wg.Add(1)
	}
	return !s.end
}

// accepting is a listener whose connections have a place.
type accepting struct {
	*net.TCPListener
	s *Server
}

func (a accepting) Accept() (net.Conn, error) {
	c, err := a.s.accept(a.TCPListener)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// forgetting is a connection to a remote that the transport closes.
type forgetting struct {
	Conn
	s *Server
}

func (c *forgetting) Close() error {
	c.s.forget(c.Conn)
	return c.Conn.Close()
}

// forwardTarget is where a request for an absolute URL goes.
func forwardTarget(u *url.URL) (target, error) {
	if u.Scheme != "http" || u.User != nil {
		return target{}, fmt.Errorf("%w: want http:// without a user; https is for CONNECT", errMalformed)
	}
	return parseTarget(u.Host, 80)
}

// connect opens a tunnel.
func (s *Server) connect(w http.ResponseWriter, r *http.Request) {
	t, err := parseTarget(r.RequestURI, 0)
	if errors.Is(err, ErrRefused) {
		s.count.refused.Add(1)
	}
	var remote Conn
	if err == nil {
		remote, err = s.dial(r.Context(), t)
	}
	if err != nil {
		httpError(w, err)
		return
	}
	defer s.forget(remote)
	hijacked, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		remote.Close()
		return
	}
	local := hijacked.(*counted)
	local.SetDeadline(time.Time{})
	early := make([]byte, rw.Reader.Buffered()) // what the program has sent without waiting; no more than the server's buffer
	rw.Read(early)
	local.SetWriteDeadline(time.Now().Add(requestTime))
	if _, err = local.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err == nil && len(early) > 0 {
		_, err = remote.Write(early)
	}
	if err != nil {
		local.Close()
		remote.Close()
		return
	}
	local.SetWriteDeadline(time.Time{})
	join(local, remote, idleTime)
}

// httpError says an error in the words of HTTP, and in plain ones for whom a browser shows it to.
func httpError(w http.ResponseWriter, err error) {
	status := http.StatusBadGateway
	switch {
	case errors.Is(err, errMalformed):
		status = http.StatusBadRequest
	case errors.Is(err, ErrRefused):
		status = http.StatusForbidden
	case errors.Is(err, ErrNotReady):
		status = http.StatusServiceUnavailable
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		status = http.StatusGatewayTimeout
		err = errors.New("no answer: the remote has gone away, or this port is not one that it opens")
	}
	w.Header().Set("Connection", "close")
	http.Error(w, "lokinetd: "+err.Error(), status)
}
