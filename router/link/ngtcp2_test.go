//go:build ngtcp2

package link_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/packet"
)

// A neighbour in C (ngtcp2/peer.c), made of Debian's ngtcp2 0.12 and GnuTLS and written from protocol 2: what the reference stands
// on. It says what it sees, line by line, and all that is checked here is what it says and what our side says. Without the libraries the
// tests fail: .ci/run ngtcp2 installs them.

const patience = 20 * time.Second

var program = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "ngtcp2")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "peer")
	text, err := exec.Command("cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", file, filepath.Join("ngtcp2", "peer.c"),
		"-lngtcp2_crypto_gnutls", "-lngtcp2", "-lgnutls").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("the C program does not build; .ci/run ngtcp2 installs what it needs: %w\n%s", err, text)
	}
	return os.ReadFile(file)
})

// foreign is the running program.
type foreign struct {
	t    *testing.T
	seed [32]byte
	key  key.Public
	addr netip.AddrPort
	cmd  *exec.Cmd
	in   io.Writer

	mu    sync.Mutex
	more  chan struct{} // closed when there is another line
	lines []string
	used  []bool
}

func newForeign(t *testing.T) *foreign {
	f := &foreign{t: t}
	sec := key.Generate()
	f.seed, f.key = sec.Seed(), sec.Public()
	f.start()
	return f
}

func (f *foreign) start() {
	f.t.Helper()
	binary, err := program()
	if err != nil {
		f.t.Fatal(err)
	}
	file := filepath.Join(f.t.TempDir(), "peer")
	if err := os.WriteFile(file, binary, 0o700); err != nil {
		f.t.Fatal(err)
	}
	f.cmd = exec.Command(file, hex.EncodeToString(f.seed[:]), fmt.Sprint(f.addr.Port()))
	f.cmd.Stderr = os.Stderr
	if f.in, err = f.cmd.StdinPipe(); err != nil {
		f.t.Fatal(err)
	}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	cmd := f.cmd
	f.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	f.mu.Lock()
	f.lines, f.used, f.more = nil, nil, make(chan struct{})
	f.mu.Unlock()
	go func() {
		r := bufio.NewReader(out)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			f.mu.Lock()
			f.lines, f.used = append(f.lines, strings.TrimSpace(line)), append(f.used, false)
			close(f.more)
			f.more = make(chan struct{})
			f.mu.Unlock()
		}
	}()
	var port uint16
	var k string
	f.scan(f.await("port"), "port %d %s", &port, &k)
	if k != hex.EncodeToString(f.key[:]) {
		f.t.Fatalf("the program's key is %s, ours for the same seed %x", k, f.key[:])
	}
	f.addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
}

// stop kills the program, which can tell nobody.
func (f *foreign) stop() {
	f.cmd.Process.Kill()
	f.cmd.Wait()
}

func (f *foreign) do(format string, a ...any) {
	f.t.Helper()
	if _, err := fmt.Fprintf(f.in, format+"\n", a...); err != nil {
		f.t.Fatal(err)
	}
}

// await gives the first line that begins with all these words and was not given yet.
func (f *foreign) await(words ...string) string {
	f.t.Helper()
	want := strings.Join(words, " ")
	deadline := time.After(patience)
	for {
		f.mu.Lock()
		more := f.more
		for i, line := range f.lines {
			if !f.used[i] && (line == want || strings.HasPrefix(line, want+" ")) {
				f.used[i] = true
				f.mu.Unlock()
				return line
			}
		}
		f.mu.Unlock()
		select {
		case <-more:
		case <-deadline:
			f.t.Fatalf("the C program did not say %q\n%s", words, f.log())
		}
	}
}

func (f *foreign) log() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	text := ""
	for _, l := range f.lines {
		text += fmt.Sprintf("\t%.200s\n", l)
	}
	return text
}

func (f *foreign) scan(line, format string, a ...any) {
	f.t.Helper()
	if _, err := fmt.Sscanf(line, format, a...); err != nil {
		f.t.Fatalf("%s: %v", line, err)
	}
}

// ours is an endpoint of ours that answers as the C program does.
type ours struct {
	t     *testing.T
	sec   *key.Secret
	quic  *link.QUIC
	addr  netip.AddrPort
	stop  func()
	lose  atomic.Int32 // percent of our packets that are lost; 100: not even a last one gets out
	opens chan link.Conn
	ends  chan error
	datas chan []byte
	asks  chan *link.Request
}

type socket struct {
	*net.UDPConn
	lose *atomic.Int32
}

func (s socket) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (n, oobn int, err error) {
	if rand.Int32N(100) < s.lose.Load() {
		return len(b), len(oob), nil
	}
	return s.UDPConn.WriteMsgUDP(b, oob, to)
}

func (s socket) WriteTo(b []byte, to net.Addr) (n int, err error) {
	if rand.Int32N(100) < s.lose.Load() {
		return len(b), nil
	}
	return s.UDPConn.WriteTo(b, to)
}

func (o *ours) Opened(c link.Conn) { o.opens <- c }
func (o *ours) Closed(_ link.Conn, err error) {
	select {
	case o.ends <- err:
	default:
	}
}
func (o *ours) Datagram(_ link.Conn, b *packet.Buffer) {
	o.datas <- bytes.Clone(b.Data)
	b.Release()
}
func (o *ours) Request(_ link.Conn, r *link.Request) {
	switch r.Name {
	case "ping":
		r.Reply([]byte("pong"))
	case "echo":
		r.Reply(r.Body)
	case "status":
		r.Fail([]byte("d1:!5:ERRORe"))
	case "hold":
		o.asks <- r
	default:
		r.Unknown()
	}
}

func newOurs(t *testing.T, sec *key.Secret, addr netip.AddrPort, accept bool, registered func(key.Public) bool) *ours {
	t.Helper()
	return newLimited(t, sec, addr, accept, registered, link.Limits{})
}

func newLimited(t *testing.T, sec *key.Secret, addr netip.AddrPort, accept bool, registered func(key.Public) bool, limits link.Limits) *ours {
	t.Helper()
	if !addr.IsValid() {
		addr = netip.MustParseAddrPort("127.0.0.1:0")
	}
	u, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	o := &ours{
		t: t, sec: sec, opens: make(chan link.Conn, 100), ends: make(chan error, 100), datas: make(chan []byte, 10000), asks: make(chan *link.Request, 10),
	}
	if o.quic, err = link.NewQUIC(socket{u, &o.lose}, link.Config{Secret: sec, Accept: accept, Registered: registered, Limits: limits}); err != nil {
		t.Fatal(err)
	}
	o.addr = o.quic.LocalAddr()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.quic.Run(ctx, o) }()
	o.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(o.stop)
	return o
}

func (o *ours) dial(to *foreign, remote key.Public, kind link.Kind) (link.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return o.quic.Dial(ctx, to.addr, remote, kind)
}

func (o *ours) opened() link.Conn {
	o.t.Helper()
	return take(o.t, "connection", o.opens)
}

func take[T any](t *testing.T, what string, c chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("")
	}
}

var kinds = []struct {
	kind link.Kind
	alpn string
	keys bool // the dialler shows its key
	idle int  // the dialler's idle timeout in seconds
}{
	{link.Relay, "Session_Router_R", true, 33},
	{link.Client, "Session_Router_C", false, 63},
	{link.Bootstrap, "Session_Router_BS", false, 10},
}

func hexOr(b []byte) string {
	if len(b) == 0 {
		return "-"
	}
	return hex.EncodeToString(b)
}

// TestNgtcp2Accepts: we dial, with each of the three names; then both ask, and both send datagrams.
func TestNgtcp2Accepts(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.alpn, func(t *testing.T) {
			f := newForeign(t)
			o := newOurs(t, key.Generate(), netip.AddrPort{}, false, nil)
			self := o.sec.Public()
			f.do("allow %x", self[:])
			c, err := o.dial(f, f.key, k.kind)
			if err != nil {
				t.Fatalf("%v\n%s", err, f.log())
			}
			shown := "-"
			if k.keys {
				shown = hex.EncodeToString(self[:])
			}
			f.await("open", "0", "in", k.alpn, shown)
			checkParams(t, f, k.idle)
			f.await("ticket", "0", "32768") // which we ignore
			f.await("ticket", "0", "32768")
			if c.Remote() != f.key {
				t.Errorf("remote %v", c.Remote())
			}
			talk(t, f, o, c, 0)
		})
	}
}

// TestNgtcp2Dials: it dials us, in the same ways, with its two key shares and a session id that is not empty.
func TestNgtcp2Dials(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.alpn, func(t *testing.T) {
			f := newForeign(t)
			o := newOurs(t, key.Generate(), netip.AddrPort{}, true, func(k key.Public) bool { return k == f.key })
			self := o.sec.Public()
			show := "hide"
			if k.keys {
				show = "show"
			}
			f.do("dial %d %x %s %s", o.addr.Port(), self[:], k.alpn, show)
			f.await("hello", "0", "out", "32")
			f.await("open", "0", "out", k.alpn, hex.EncodeToString(self[:]))
			checkParams(t, f, 63) // ours when we listen, for all
			if k.kind == link.Bootstrap {
				// Nothing makes stream 0 visible but its first request.
				f.do("request 0 ping -")
				f.await("reply", "0", "R", "0", hexOr([]byte("pong")))
			}
			c := o.opened()
			if want := map[bool]key.Public{true: f.key}[k.keys]; c.Remote() != want || c.Kind() != k.kind || c.Outbound() {
				t.Errorf("%v connection of %v, want %v of %v", c.Kind(), c.Remote(), k.kind, want)
			}
			next := 0
			if k.kind == link.Bootstrap {
				next = 1
			}
			talk(t, f, o, c, next)
		})
	}
}

// checkParams compares our transport parameters with what protocol 5 sections 4 and 4.1 say that ours are; windows are local choices, within what the reference can use.
func checkParams(t *testing.T, f *foreign, seconds int) {
	t.Helper()
	line := f.await("params", "0")
	var idle, data, local, remote, uni, bidi, unis, cids, datagram, payload, cid, token, migration int
	f.scan(line, "params 0 idle=%d data=%d bidi_local=%d bidi_remote=%d uni=%d streams_bidi=%d streams_uni=%d cids=%d datagram=%d payload=%d cid=%d token=%d migration=%d",
		&idle, &data, &local, &remote, &uni, &bidi, &unis, &cids, &datagram, &payload, &cid, &token, &migration)
	if bidi != 32 || unis != 0 || cids != 4 || datagram < 1472 || payload < 1452 || cid != 20 || migration != 1 || local < 1<<19 || remote < 1<<19 || data < remote {
		t.Errorf("our transport parameters: %s", line)
	}
	if idle != 1000*seconds {
		t.Errorf("our idle timeout: %d ms, want %d s", idle, seconds)
	}
}

// talk goes through the request stream and the datagrams of connection 0 of the C program; next is the id of its next request.
func talk(t *testing.T, f *foreign, o *ours, c link.Conn, next int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	// Our requests: ids count from 0, replies in any order.
	late := make(chan error, 1)
	go func() {
		b, err := c.Request(ctx, "late", nil)
		if string(b) != "at last" {
			err = fmt.Errorf("%q, %w", b, err)
		}
		late <- err
	}()
	first := f.await("asked", "0", "0")
	if first == "asked 0 0 ping -" { // the dialler asks for a sign that it was accepted when no token comes
		t.Errorf("the relay's token was not taken for its consent: %s", first)
	} else if first != "asked 0 0 late -" {
		t.Errorf("our first request: %s", first)
	}
	big := make([]byte, 200_000)
	for i := range big {
		big[i] = byte(rand.Uint32())
	}
	if b, err := c.Request(ctx, "echo", big); err != nil || !bytes.Equal(b, big) {
		t.Fatalf("echo of %d bytes: %d, %v", len(big), len(b), err)
	}
	if err := <-late; err != nil {
		t.Error("late:", err)
	}
	f.await("asked", "0", "1", "echo")
	var failure *link.ReplyError
	if _, err := c.Request(ctx, "nosuch", nil); !errors.As(err, &failure) || string(failure.Body) != "Invalid endpoint 'nosuch'" {
		t.Errorf("unknown endpoint: %v", err)
	}
	f.await("asked", "0", "2", "nosuch", "-")
	if err := c.Command("session_control", []byte("body")); err != nil {
		t.Error(err)
	}
	f.await("asked", "0", "3", "session_control", hexOr([]byte("body")))

	// Its requests.
	ask := func(name string, body []byte, want string) {
		t.Helper()
		f.do("request 0 %s %s", name, hexOr(body))
		f.await("reply", "0", want[:1], fmt.Sprint(next), hexOr([]byte(want[1:])))
		next++
	}
	f.do("request 0 hold -")
	held := take(t, "request", o.asks)
	hold := next
	next++
	ask("ping", nil, "Rpong")
	ask("echo", big[:100_000], "R"+string(big[:100_000]))
	ask("nosuch", nil, "EInvalid endpoint 'nosuch'")
	ask("status", nil, "Ed1:!5:ERRORe")
	held.Reply([]byte("done"))
	f.await("reply", "0", "R", fmt.Sprint(hold), hexOr([]byte("done")))

	// Datagrams, whole and in two parts. Some may be lost on the way, but not on this one.
	for i, n := range []int{0, 1, 100, 1100, 1300, 1500, 2300} {
		data := big[i : i+n]
		b := packet.Get()
		b.Set(data)
		c.Send(b)
		how := "whole"
		if n > 1440 {
			how = "split"
		} else if n > 1100 {
			how = "" // depends on the path's size
		}
		var line, gotHow, got string
		number := -1
		for number < i { // an earlier one may come again: ours repeats what it believes lost
			line = f.await("got", "0")
			f.scan(line, "got 0 %s %d %s", &gotHow, &number, &got)
		}
		if number != i || got != hexOr(data) || how != "" && how != gotHow {
			t.Errorf("datagram of %d bytes: %.100s", n, line)
		}

		f.do("datagram 0 %s", hexOr(data))
		sent := f.await("sent", "0")
		got2 := take(t, "datagram", o.datas)
		if !bytes.Equal(got2, data) {
			t.Errorf("datagram of %d bytes from C: %d bytes; %s", n, len(got2), sent)
		}
	}
	stats := c.Stats()
	if stats.SplitIn < 2 || stats.SplitOut < 2 || stats.DropHalf+stats.DropInvalid+stats.DropTooLarge != 0 {
		t.Errorf("%+v", stats)
	}

	f.do("close 0 0")
	select {
	case <-c.Done():
	case <-time.After(patience):
		t.Error("a connection that C has closed stays")
	}
	var closed *link.CloseError
	if err := take(t, "end", o.ends); !errors.As(err, &closed) || !closed.Remote || closed.Code != 0 {
		t.Errorf("closed by C: %v\n%s", err, f.log())
	}
}

// TestNgtcp2DatagramIDs: the counter of both sides over its whole range, and C's second parts that come first.
func TestNgtcp2DatagramIDs(t *testing.T) {
	f := newForeign(t)
	o := newOurs(t, key.Generate(), netip.AddrPort{}, false, nil)
	c, err := o.dial(f, f.key, link.Client)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		f.do("datagram 0 %s", hexOr(bytes.Repeat([]byte{byte(i)}, 2000)))
		line := f.await("sent", "0")
		// Every other one goes second part first.
		want := fmt.Sprintf("sent 0 %04x %04x", i<<2|2, i<<2|3)
		if i%2 == 1 {
			want = fmt.Sprintf("sent 0 %04x %04x", i<<2|3, i<<2|2)
		}
		if line != want {
			t.Fatalf("%s, want %s", line, want)
		}
		if got := take(t, "datagram", o.datas); !bytes.Equal(got, bytes.Repeat([]byte{byte(i)}, 2000)) {
			t.Fatalf("datagram %d: %x", i, got[:4])
		}
	}
	// 16,400 of ours, of one path, so that they stay in order: the counter wraps, and what follows is still joined. No more at once than may be under way, or
	// the queue drops what it could not send in time, where C is slow to be scheduled.
	const count, burst = 16400, 16
	trailer := make([]byte, 41)
	for i := range count {
		b := packet.Get()
		b.Set(append([]byte{byte(i >> 8), byte(i)}, trailer...))
		c.Send(b)
		if i%burst == burst-1 {
			f.await("got", "0", "whole", fmt.Sprint(i%16384), fmt.Sprintf("%04x%x", i, trailer))
		}
	}
	b := packet.Get()
	b.Set(bytes.Repeat([]byte{7}, 2000))
	c.Send(b)
	f.await("got", "0", "split", "16", strings.Repeat("07", 2000))
}

// TestNgtcp2Large: messages beyond the first windows of stream and connection, in both directions at once, from a dialler that had to prove its address first.
func TestNgtcp2Large(t *testing.T) {
	f := newForeign(t)
	o := newLimited(t, key.Generate(), netip.AddrPort{}, true, nil, link.Limits{Handshakes: 3})
	self := o.sec.Public()
	f.do("dial %d %x Session_Router_C hide", o.addr.Port(), self[:])
	f.await("retry", "0")
	c := o.opened()
	const size = 8_000_000
	body := make([]byte, size)
	for i := range body {
		body[i] = byte(i * i / 256)
	}
	f.do("large 0 echo %d", size)
	if b, err := c.Request(context.Background(), "echo", body); err != nil || !bytes.Equal(b, body) {
		t.Errorf("echo by C: %d bytes, %v", len(b), err)
	}
	if line := f.await("reply", "0", "R", "0"); line != "reply 0 R 0 "+hexOr(body) {
		t.Errorf("our echo: %.100s", line)
	}
}

// TestNgtcp2Loss: one packet in 20 of ours is lost. What arrives is what was sent; few datagrams are missing, none comes often.
func TestNgtcp2Loss(t *testing.T) {
	f := newForeign(t)
	o := newOurs(t, key.Generate(), netip.AddrPort{}, false, nil)
	c, err := o.dial(f, f.key, link.Client)
	if err != nil {
		t.Fatal(err)
	}
	const count = 2000
	contents := make([][]byte, count)
	o.lose.Store(5)
	for i := range contents {
		contents[i] = make([]byte, 1000+rand.IntN(1300))
		for k := range contents[i] {
			contents[i][k] = byte(rand.Uint32())
		}
		binary.BigEndian.PutUint32(contents[i], uint32(i)) // its number on the link is lower when the queue had to drop some
		b := packet.Get()
		b.Set(contents[i])
		c.Send(b)
		time.Sleep(200 * time.Microsecond)
	}
	o.lose.Store(0)
	if _, err := c.Request(context.Background(), "ping", nil); err != nil {
		t.Fatal(err)
	}
	f.await("asked", "0", "0", "ping")
	time.Sleep(time.Second) // for what is repeated
	seen := make([]int, count)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, line := range f.lines {
		var how, data string
		var number, i int
		if n, _ := fmt.Sscanf(line, "got 0 %s %d %s", &how, &number, &data); n != 3 {
			continue
		}
		if _, err := fmt.Sscanf(data, "%8x", &i); err != nil || i >= count || data != hexOr(contents[i]) {
			t.Fatalf("%s datagram %d of %d bytes is none that was sent", how, number, len(data)/2)
		}
		seen[i]++
	}
	missing, more := 0, 0
	for _, n := range seen {
		if n == 0 {
			missing++
		} else {
			more += n - 1
		}
	}
	t.Logf("of %d datagrams %d are missing, %d of them dropped in the queue; %d came once more", count, missing, c.Stats().DropFull, more)
	if missing > count/5 || more > count/10 {
		t.Error("too many")
	}
}

// TestNgtcp2Refused: keys that are not as they must be, on both sides.
func TestNgtcp2Refused(t *testing.T) {
	f := newForeign(t)
	member := key.Generate()
	memberKey := member.Public()
	f.do("allow %x", memberKey[:])

	// C accepts no relay that it does not know, and says nothing about it; what comes afterwards meets a stateless reset.
	stranger := newOurs(t, key.Generate(), netip.AddrPort{}, true, func(key.Public) bool { return false })
	if _, err := stranger.dial(f, f.key, link.Relay); err == nil {
		t.Error("C has accepted a relay that is not registered")
	} else {
		t.Log("unregistered:", err)
	}
	// We accept no relay with another key than expected.
	if _, err := stranger.dial(f, memberKey, link.Client); err == nil {
		t.Error("we have accepted a relay with another key")
	}
	// Nor do we accept C when it is not registered, nor without its key; nor does C accept us under another key.
	self := stranger.sec.Public()
	for _, how := range []struct {
		key    key.Public
		show   string
		closed string
		code   int
	}{
		{self, "show", "transport", 0x100 + 42},
		{self, "hide", "transport", 0x100 + 42},
		{memberKey, "show", "crypto", 42},
	} {
		f.do("dial %d %x Session_Router_R %s", stranger.addr.Port(), how.key[:], how.show)
		var number int
		f.scan(f.await("dialling"), "dialling %d", &number)
		if line := f.await("closed", fmt.Sprint(number)); line != fmt.Sprintf("closed %d %s %d", number, how.closed, how.code) {
			t.Errorf("%v: %s", how, line)
		}
	}
}

// TestNgtcp2Resets: what a node sends that does not know that the other side was restarted is answered by a stateless reset.
func TestNgtcp2Resets(t *testing.T) {
	f := newForeign(t)
	sec := key.Generate()
	o := newOurs(t, sec, netip.AddrPort{}, true, func(k key.Public) bool { return k == f.key })
	self := sec.Public()
	c, err := o.dial(f, f.key, link.Client)
	if err != nil {
		t.Fatal(err)
	}
	o.opened()
	f.stop()
	f.start()
	if _, err := c.Request(context.Background(), "ping", nil); err == nil {
		t.Error("an answer from a relay that was restarted")
	}
	if err := take(t, "end", o.ends); !errors.Is(err, link.ErrReset) {
		t.Errorf("C was restarted: %v", err)
	}

	f.do("dial %d %x Session_Router_R show", o.addr.Port(), self[:])
	f.await("open", "0")
	o.opened()
	o.lose.Store(100)
	o.stop()
	newOurs(t, sec, o.addr, true, nil)
	f.do("request 0 ping -")
	f.await("closed", "0", "reset")
}

// TestNgtcp2IdleResets: the same when nothing is sent but what keeps a link between relays alive, every 10 s: packets long enough to be answered by a reset (protocol 5
// section 5.2), in both directions.
func TestNgtcp2IdleResets(t *testing.T) {
	sec := key.Generate()
	self := sec.Public()
	dialled := newForeign(t)
	dialled.do("allow %x", self[:])
	o := newOurs(t, sec, netip.AddrPort{}, false, nil)
	if _, err := o.dial(dialled, dialled.key, link.Relay); err != nil {
		t.Fatal(err)
	}
	dialling := newForeign(t)
	registered := func(k key.Public) bool { return k == dialling.key }
	listening := newOurs(t, sec, netip.AddrPort{}, true, registered)
	dialling.do("dial %d %x Session_Router_R show", listening.addr.Port(), self[:])
	listening.opened()

	dialled.stop()
	dialled.start()
	listening.lose.Store(100)
	listening.stop()
	newOurs(t, sec, listening.addr, true, registered)

	if err := take(t, "end", o.ends); !errors.Is(err, link.ErrReset) {
		t.Errorf("C was restarted: %v", err)
	}
	dialling.await("closed", "0", "reset")
}
