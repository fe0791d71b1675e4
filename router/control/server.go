package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// API is what the daemon answers. Errors that are an *Error keep their code.
type API interface {
	Status() Status
	Relays() Relays
	Log() Log
	Resolve(ctx context.Context, name string) (Resolved, error)
	Ping(ctx context.Context, name string, count int) (Pinged, error)
	// Events calls each with what happens from now on, one at a time, until ctx ends or each fails. While each blocks, events are kept for a while and then counted.
	Events(ctx context.Context, each func(Event) error) error
}

// Error is a failure with one of the Code constants.
type Error struct {
	Code string
	Text string
}

func (e *Error) Error() string { return e.Text }

// Errorf makes an *Error.
func Errorf(code, format string, args ...any) error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

const (
	maxConns    = 32               // connections at a time
	maxHeader   = 8 << 10          // bytes of a request's header
	askTime     = 10 * time.Second // for a request to come in whole
	requestTime = 90 * time.Second // the longest action, and for an event to be taken
)

// Server answers on one unix socket. It lets in root, the daemon's own user and
// members of the socket's group, by the credentials of the peer's process.
type Server struct {
	ln   *net.UnixListener
	http http.Server
}

// Listen binds the socket at path. The caller runs and so closes the server.
func Listen(path, group string, api API, log *slog.Logger) (*Server, error) {
	ln, gid, err := listenUnix(path, group, log)
	if err != nil {
		return nil, err
	}
	s := &Server{ln: ln}
	s.http = http.Server{
		Handler:        routes(api),
		ReadTimeout:    askTime,
		WriteTimeout:   requestTime,
		IdleTimeout:    time.Minute,
		MaxHeaderBytes: maxHeader,
		ConnContext:    peer(uint32(os.Getuid()), uint32(gid)),
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// listenUnix binds a socket at path, with mode 0660 and, when it is not empty and exists, the group. gid is the group that it has. A socket left over by a dead daemon
// is replaced; one that answers is an error.
func listenUnix(path, group string, log *slog.Logger) (ln *net.UnixListener, gid int, err error) {
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, 0, fmt.Errorf("control: %s: another daemon answers there", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, 0, fmt.Errorf("control: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, 0, fmt.Errorf("control: %w", err)
	}
	// Nobody else may connect between bind and chmod.
	old := unix.Umask(0o177)
	ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, 0, fmt.Errorf("control: %w", err)
	}
	gid = os.Getgid()
	if group != "" {
		g, err := user.LookupGroup(group)
		var none user.UnknownGroupError
		if err == nil {
			gid, _ = strconv.Atoi(g.Gid)
			err = os.Chown(path, -1, gid)
		}
		switch {
		case errors.As(err, &none):
			log.Info("control socket is for the daemon's user and root only: there is no such group", "group", group)
		case err != nil:
			log.Warn("control socket is for the daemon's user and root only", "group", group, "err", err)
			gid = os.Getgid()
		}
	}
	if err := os.Chmod(path, 0o660); err != nil {
		ln.Close()
		return nil, 0, fmt.Errorf("control: %w", err)
	}
	return ln, gid, nil
}

// peer notes with each connection whether its peer may ask; uid is the daemon's, gid the socket's.
func peer(uid, gid uint32) func(context.Context, net.Conn) context.Context {
	return func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, allowedKey{}, allowed(c, uid, gid))
	}
}

// Run serves until ctx ends; then it removes the socket.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.http.Close() })
	defer stop()
	err := s.http.Serve(newListener(s.ln, maxConns))
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("control: %w", err)
}

// listener holds at most cap(slots) connections open; the next waits.
type listener struct {
	net.Listener
	slots chan struct{}
}

func newListener(l net.Listener, most int) *listener {
	return &listener{Listener: l, slots: make(chan struct{}, most)}
}

func (l *listener) Accept() (net.Conn, error) {
	l.slots <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &conn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

type conn struct {
	net.Conn
	free func()
}

func (c *conn) Close() error {
	defer c.free()
	return c.Conn.Close()
}

type allowedKey struct{}

// allowed says whether the process at the other end may ask: root, the
// daemon's own user, or a member of the socket's group.
func allowed(c net.Conn, uid, gid uint32) bool {
	raw, err := c.(*conn).Conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	var groups []uint32
	err = raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		groups = peerGroups(fd)
	})
	if err != nil || cred == nil {
		return false
	}
	return cred.Uid == 0 || cred.Uid == uid || cred.Gid == gid || slices.Contains(groups, gid)
}

// peerGroups returns the supplementary groups of the process at the other end
// as they were when it connected; none when the kernel will not tell.
func peerGroups(fd uintptr) []uint32 {
	groups := make([]uint32, 1024)
	size := uint32(4 * len(groups))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
		uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil
	}
	return groups[:size/4]
}

func routes(api API) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if ok, _ := r.Context().Value(allowedKey{}).(bool); !ok {
				fail(w, Errorf(CodeDenied, "permission denied: become a member of the socket's group, or root"))
				return
			}
			r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
			err := r.ParseForm()
			if err == nil {
				_, err = io.Copy(io.Discard, r.Body) // of a GET; the server would wait for it at the end
			}
			if err != nil {
				fail(w, Errorf(CodeUsage, "malformed request: %v", err))
				return
			}
			http.NewResponseController(w).SetReadDeadline(time.Time{}) // it is all there; the answer may take longer
			if err := f(w, r); err != nil {
				fail(w, err)
			}
		})
	}
	get := func(pattern string, f func(r *http.Request) (any, error)) {
		handle(pattern, func(w http.ResponseWriter, r *http.Request) error {
			v, err := f(r)
			if err != nil {
				return err
			}
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(v)
			return nil
		})
	}
	get("GET /v1/status", func(r *http.Request) (any, error) { return api.Status(), nil })
	get("GET /v1/relays", func(r *http.Request) (any, error) { return api.Relays(), nil })
	get("GET /v1/log", func(r *http.Request) (any, error) { return api.Log(), nil })
	get("GET /v1/resolve", func(r *http.Request) (any, error) {
		return api.Resolve(r.Context(), r.FormValue("name"))
	})
	get("POST /v1/ping", func(r *http.Request) (any, error) {
		count := 4
		if text := r.FormValue("count"); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 || n > 60 {
				return nil, Errorf(CodeUsage, "count %q is not a number from 1 to 60", text)
			}
			count = n
		}
		return api.Ping(r.Context(), r.FormValue("name"), count)
	})
	handle("GET /v1/events", func(w http.ResponseWriter, r *http.Request) error {
		c := http.NewResponseController(w)
		within := r.Context().Value(http.ServerContextKey).(*http.Server).WriteTimeout
		begun := false
		err := api.Events(r.Context(), func(e Event) error {
			if !begun {
				w.Header().Set("Content-Type", "application/x-ndjson")
				begun = true
			}
			c.SetWriteDeadline(time.Now().Add(within)) // a reader may be slow and lose events, but not keep its place for ever without reading
			if err := json.NewEncoder(w).Encode(e); err != nil {
				return err
			}
			return c.Flush()
		})
		if begun {
			return nil // too late to say anything else
		}
		return err
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, Errorf(CodeUsage, "no such request: %s %s", r.Method, r.URL.Path))
	})
	return mux
}

var httpStatus = map[string]int{
	CodeFailure: 500, CodeUsage: 400, CodeDenied: 403, CodeNotFound: 404, CodeNotReady: 503,
}

func fail(w http.ResponseWriter, err error) {
	f := Failure{Schema: Schema, Error: err.Error(), Code: CodeFailure}
	var e *Error
	if errors.As(err, &e) {
		f.Code = e.Code
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(httpStatus[f.Code])
	json.NewEncoder(w).Encode(f)
}
