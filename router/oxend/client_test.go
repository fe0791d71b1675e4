package oxend_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/oxend"
	"lokinetd/router/oxend/standin"
)

func secret(n byte) *key.Secret { return key.FromSeed([32]byte{n}) }

func publics(from, to byte) (all []key.Public) {
	for n := from; n < to; n++ {
		all = append(all, secret(n).Public())
	}
	slices.SortFunc(all, key.Public.Compare)
	return all
}

// run runs f beside the test until its end, in a bubble.
func run(t *testing.T, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(stop)
	return stop
}

// follower notes what it is told.
type follower struct {
	lists  [][]key.Public
	noList []time.Duration
}

func (f *follower) follow(c *oxend.Client, self key.Public) func(context.Context) error {
	start := time.Now()
	return func(ctx context.Context) error {
		return c.Follow(ctx, oxend.Follower{
			ID: self, Version: [3]uint8{1, 0, 2},
			Registered: func(ids []key.Public) { f.lists = append(f.lists, ids) },
			NoList:     func() { f.noList = append(f.noList, time.Since(start)) },
		})
	}
}

func commands(asked []standin.Request) (all []string) {
	for _, r := range asked {
		all = append(all, strings.TrimSuffix(r.Command+" "+r.Body, " "))
	}
	slices.Sort(all)
	return all
}

// sleep sleeps until everything has been done that was to be done.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

// TestFollow: the life of a relay beside its oxend, for some minutes.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		self := secret(1).Public()
		o := &standin.Oxend{Secret: secret(1)}
		o.SetRelays(publics(1, 5)...)
		c := oxend.NewDialed(o.Dial, nil)
		run(t, c.Run)
		s, err := c.Key(t.Context())
		if err != nil || s.Public() != self {
			t.Fatal(s, err)
		}
		if ok, err := c.Connected(); !ok || err != nil {
			t.Error(ok, err)
		}
		o.Asked()

		var f follower
		run(t, f.follow(c, self))
		synctest.Wait()
		first := []string{
			fmt.Sprintf(`admin.session_router_ping {"pubkey_ed25519":"%x","version":[1,0,2]}`, self[:]),
			`rpc.get_service_nodes {"fields":["pubkey_ed25519","block_hash","service_node_version"]}`,
			"sub.block",
		}
		if got := commands(o.Asked()); !slices.Equal(got, first) {
			t.Errorf("at first: %q", got)
		}
		if len(f.lists) != 1 || !slices.Equal(f.lists[0], publics(1, 5)) {
			t.Errorf("%v", f.lists)
		}

		// A block, of which it is told.
		o.SetRelays(publics(1, 6)...)
		synctest.Wait()
		if len(f.lists) != 2 || !slices.Equal(f.lists[1], publics(1, 6)) {
			t.Errorf("%v", f.lists)
		}
		later := fmt.Sprintf(`rpc.get_service_nodes {"fields":["pubkey_ed25519","block_hash","service_node_version"],"poll_block_hash":"%064x"}`, 1)
		if got := commands(o.Asked()); !slices.Equal(got, []string{later}) {
			t.Errorf("after a block: %q", got)
		}

		// Every 30 s the same again; nothing has changed.
		for range 3 {
			sleep(oxend.PingInterval)
			synctest.Wait()
			want := []string{first[0], strings.Replace(later, "1\"}", "2\"}", 1), "sub.block"}
			if got := commands(o.Asked()); !slices.Equal(got, want) {
				t.Errorf("after 30 s: %q, want %q", got, want)
			}
		}
		// oxend restarts: it is asked and told again as soon as it is there, its blocks arrive again.
		o.Stop()
		sleep(time.Minute)
		if ok, err := c.Connected(); ok || err == nil {
			t.Error(ok, err)
		}
		if len(f.lists) != 2 {
			t.Error("a list without an oxend:", f.lists)
		}
		o.Start()
		sleep(6 * time.Second)
		if got := commands(o.Asked()); len(got) != 4 || got[1] != "command \x04PONG" {
			t.Errorf("after a restart: %q", got)
		}
		o.SetRelays(publics(2, 6)...)
		synctest.Wait()
		if len(f.lists) != 3 || !slices.Equal(f.lists[2], publics(2, 6)) {
			t.Errorf("%v", f.lists)
		}
		// A list without anybody is none.
		o.SetRelays()
		sleep(oxend.PingInterval)
		if len(f.lists) != 3 {
			t.Errorf("%v", f.lists)
		}
		if len(f.noList) != 0 {
			t.Error(f.noList)
		}
	})
}

// TestBadAnswers: whatever oxend says instead of a list, the last one stays, and the next good one is taken.
func TestBadAnswers(t *testing.T) {
	bad := map[string][][]byte{
		"refusal":        standin.Refuse("FORBIDDEN"),
		"error":          {[]byte("500"), []byte("oops")},
		"nothing":        {[]byte("200")},
		"no JSON":        standin.OK("x"),
		"another status": standin.OK(`{"status": "BUSY"}`),
		"no list":        standin.OK(`{"status": "OK"}`),
		"silence":        {},
		"many parts":     slices.Repeat([][]byte{[]byte("200")}, 40), // more than a message may have: the connection ends
	}
	for name, answer := range bad {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var wrong atomic.Bool
				o := &standin.Oxend{Secret: secret(1), Answer: func(command string, _ [][]byte) [][]byte {
					if wrong.Load() {
						return answer
					}
					return nil
				}}
				o.SetRelays(publics(1, 5)...)
				c := oxend.NewDialed(o.Dial, nil)
				run(t, c.Run)
				var f follower
				run(t, f.follow(c, secret(1).Public()))
				synctest.Wait()
				wrong.Store(true)
				o.SetRelays(publics(1, 6)...)
				sleep(2 * time.Minute)
				if len(f.lists) != 1 {
					t.Fatal(f.lists)
				}
				_, err := c.Key(t.Context())
				if err == nil {
					t.Fatal("a key")
				}
				if strings.Contains(err.Error(), "oops") {
					t.Error("the error quotes the reply:", err)
				}
				if r := new(oxend.RefusedError); name == "refusal" && (!errors.As(err, &r) || r.Code != "FORBIDDEN") {
					t.Error(err)
				}
				if err := c.Report(t.Context(), key.Public{}, true); name == "refusal" && err == nil {
					t.Error("a report that was refused")
				}
				wrong.Store(false)
				sleep(oxend.PingInterval + 15*time.Second)
				if len(f.lists) != 2 || len(f.noList) != 0 {
					t.Fatal(f.lists, f.noList)
				}
			})
		})
	}
}

// TestNoOxend: the follower is told after 10 s, requests end after 15 s and say why, the key after five tries.
func TestNoOxend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &standin.Oxend{Secret: secret(1)}
		o.SetRelays(publics(1, 3)...)
		o.Stop()
		var lines lines
		c := oxend.NewDialed(o.Dial, slog.New(slog.NewTextHandler(&lines, nil)))
		run(t, c.Run)
		var f follower
		run(t, f.follow(c, secret(1).Public()))
		start := time.Now()
		_, _, err := c.Resolve(t.Context(), [32]byte{})
		synctest.Wait()
		if d := time.Since(start); d != 15*time.Second || err == nil || errors.Is(err, oxend.ErrNotFound) || !strings.Contains(err.Error(), "stand-in is down") {
			t.Error(d, err)
		}
		if !slices.Equal(f.noList, []time.Duration{10 * time.Second}) || f.lists != nil {
			t.Error(f)
		}
		start = time.Now()
		_, err = c.Key(t.Context())
		if d := time.Since(start); d != 5*15*time.Second+4*time.Second || err == nil {
			t.Error(d, err)
		}
		o.Start()
		sleep(6 * time.Second)
		if len(f.lists) != 1 || len(f.noList) != 1 {
			t.Error(f)
		}
		// However long it was away, it is said twice.
		if got := lines.count("does not answer"); got != 1 {
			t.Error("said", got, "times that oxend is away")
		}
		if got := lines.count("oxend is there"); got != 1 {
			t.Error("said", got, "times that oxend is there")
		}
	})
}

// TestRequests: names and reports, and that a PING was answered.
func TestRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &standin.Oxend{Secret: secret(1)}
		o.SetName([32]byte{1}, []byte(strings.Repeat("v", 48)), [24]byte{9})
		c := oxend.NewDialed(o.Dial, nil)
		run(t, c.Run)
		sealed, nonce, err := c.Resolve(t.Context(), [32]byte{1})
		if string(sealed) != strings.Repeat("v", 48) || nonce != [24]byte{9} || err != nil {
			t.Error(sealed, nonce, err)
		}
		if _, _, err := c.Resolve(t.Context(), [32]byte{2}); err != oxend.ErrNotFound {
			t.Error(err)
		}
		id := secret(2).Public()
		if err := c.Report(t.Context(), id, false); err != nil {
			t.Error(err)
		}
		want := []standin.Request{
			{Command: "command", Body: "\x04PONG"},
			{Command: "rpc.ons_resolve", Body: "d9:name_hash32:\x01" + strings.Repeat("\x00", 31) + "4:typei2ee"},
			{Command: "rpc.ons_resolve", Body: "d9:name_hash32:\x02" + strings.Repeat("\x00", 31) + "4:typei2ee"},
			{Command: "admin.report_peer_status", Body: fmt.Sprintf(`{"passed":false,"pubkey":"%x","type":"srouter"}`, id[:])},
		}
		if got := o.Asked(); !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
	})
}

// TestManyRequests: to an oxend that is silent no more than so many are sent, and the look-ups of names leave room for the others.
func TestManyRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &standin.Oxend{Secret: secret(1), Answer: func(string, [][]byte) [][]byte { return [][]byte{} }}
		c := oxend.NewDialed(o.Dial, nil)
		stop := run(t, c.Run)
		var busy, late, closed atomic.Int64
		ask := func(n int, f func() error) {
			for range n {
				go func() {
					switch err := f(); {
					case errors.Is(err, context.DeadlineExceeded):
						late.Add(1)
					case strings.Contains(err.Error(), "has ended"):
						closed.Add(1)
					default:
						busy.Add(1)
					}
				}()
			}
			synctest.Wait()
		}
		ask(1000, func() error { _, _, err := c.Resolve(t.Context(), [32]byte{}); return err })
		if busy.Load() != 1000-64 {
			t.Error(busy.Load(), "look-ups refused")
		}
		ask(1000, func() error { return c.Report(t.Context(), key.Public{}, true) })
		if busy.Load() != 2000-256 {
			t.Error(busy.Load(), "requests refused")
		}
		sleep(15 * time.Second)
		if late.Load() != 256 {
			t.Error(late.Load(), "requests without a reply")
		}
		ask(10, func() error { return c.Report(t.Context(), key.Public{}, true) })
		stop()
		synctest.Wait()
		if closed.Load() != 10 {
			t.Error(closed.Load(), "requests of a connection that ended")
		}
	})
}

// TestOthers: who is no oxend is tried again and again, ever more slowly, and never for ever.
func TestOthers(t *testing.T) {
	for _, x := range []struct {
		name  string
		f     func(net.Conn)
		tries int // in a minute
	}{
		{"closes at once", func(nc net.Conn) { nc.Close() }, 15},
		{"silent", func(net.Conn) {}, 5},
		{"reads only", func(nc net.Conn) { nc.Read(make([]byte, 1000)) }, 5},
		{"a byte a second", func(nc net.Conn) {
			go nc.Read(make([]byte, 1000))
			for range 1000 {
				if _, err := nc.Write([]byte{0xff}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, 5},
		{"another protocol", func(nc net.Conn) {
			nc.Read(make([]byte, 64))
			nc.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n" + strings.Repeat("x", 64)))
		}, 15},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				var ends []net.Conn
				c := oxend.NewDialed(func(context.Context) (net.Conn, error) {
					tries++
					a, b := net.Pipe()
					ends = append(ends, b)
					go x.f(b)
					return a, nil
				}, nil)
				stop := run(t, c.Run)
				sleep(time.Minute)
				if tries < x.tries-1 || tries > x.tries+1 {
					t.Error(tries, "tries")
				}
				stop()
				for _, nc := range ends {
					nc.Close()
				}
				time.Sleep(time.Second) // who writes has seen it
			})
		})
	}
}

// TestSilence: a connection on which nothing comes any more is given up.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials atomic.Int64
		o := &standin.Oxend{Secret: secret(1)}
		c := oxend.NewDialed(func(ctx context.Context) (net.Conn, error) {
			dials.Add(1)
			return o.Dial(ctx)
		}, nil)
		run(t, c.Run)
		sleep(2*time.Minute - time.Second)
		if dials.Load() != 1 {
			t.Error(dials.Load())
		}
		c.Report(t.Context(), key.Public{}, true) // it replies
		sleep(2*time.Minute - time.Second)
		if dials.Load() != 1 {
			t.Error(dials.Load())
		}
		sleep(2 * time.Second)
		if dials.Load() != 2 {
			t.Error(dials.Load())
		}
	})
}

// TestSocket: the same over a Unix socket.
func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "oxend.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	o := &standin.Oxend{Secret: secret(1)}
	go o.Listen(l)
	t.Cleanup(func() { l.Close(); o.Stop() })
	c, err := oxend.New("ipc://"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	run(t, c.Run)
	if s, err := c.Key(t.Context()); err != nil || s.Public() != secret(1).Public() {
		t.Error(s, err)
	}
	for _, bad := range []string{"", path, "ipc://", "ipc://oxend.sock", "tcp://127.0.0.1:22023"} {
		if _, err := oxend.New(bad, nil); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
