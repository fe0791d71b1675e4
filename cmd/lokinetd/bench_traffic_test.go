//go:build bench

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/proxy"

	"lokinetd/netif/lab"
)

// The traffic programs run in the nodes of all networks that are compared. Each is this test program again, started with the word bench and
// its name; its result is one line of JSON on standard output.
//
// A TCP connection to the service begins with one byte that says what is wanted:
//
//	p  a page
//	d  bytes, until the client closes
//	u  to send bytes; the service tells every 50 ms how many have come (8 bytes, big endian), so that the rate is the receiver's
//	e  to get back what is sent
//
// A UDP packet of 8 bytes, a flow's number, asks for the number of longer packets of the flow (the answer: number and count, 16 bytes).
const (
	wantPage = 'p'
	wantDown = 'd'
	wantUp   = 'u'
	wantEcho = 'e'

	benchPort  = "80"
	chunk      = 64 << 10
	tellEvery  = 50 * time.Millisecond
	retryEvery = 5 * time.Millisecond
)

// benchPrograms are the programs by name.
var benchPrograms = map[string]func(context.Context, []string) (any, error){
	"serve":  serveTraffic,
	"tcp":    measureTCP,
	"rtt":    measureRTT,
	"udp":    measureUDP,
	"first":  measureFirst,
	"dns":    measureDNS,
	"wg":     runWireguard,
	"bare":   runBare,
	"drive":  driveRelay,
	"crowd":  playCrowd,
	"flood":  playFlood,
	"honest": playHonest,

	"remotes": playRemotes,
	"call":    playCaller,
}

// benchProgram runs one of them and returns the exit code.
func benchProgram(ctx context.Context, args []string) int {
	err := errors.New("bench: which program?")
	var result any
	if len(args) > 0 && benchPrograms[args[0]] != nil {
		result, err = benchPrograms[args[0]](ctx, args[1:])
	}
	if err == nil && result != nil {
		err = json.NewEncoder(os.Stdout).Encode(result)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// route is how a program reaches the service.
type route struct {
	to    string // host
	socks string // address of a SOCKS server; empty: directly
}

func (r *route) flags(f *flag.FlagSet) {
	f.StringVar(&r.to, "to", "", "")
	f.StringVar(&r.socks, "socks", "", "")
}

// dial connects and says what is wanted. Tor keeps streams of different users on different circuits.
func (r *route) dial(ctx context.Context, user string, want byte) (net.Conn, error) {
	var d proxy.ContextDialer = new(net.Dialer)
	if r.socks != "" {
		s, err := proxy.SOCKS5("tcp", r.socks, &proxy.Auth{User: user, Password: "x"}, new(net.Dialer))
		if err != nil {
			return nil, err
		}
		d = s.(proxy.ContextDialer)
	}
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(r.to, benchPort))
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	if _, err := c.Write([]byte{want}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// serveTraffic is the service, on all addresses of its node.
func serveTraffic(ctx context.Context, _ []string) (any, error) {
	u, err := net.ListenPacket("udp", ":"+benchPort)
	if err != nil {
		return nil, err
	}
	go serveUDP(u.(*net.UDPConn))
	l, err := net.Listen("tcp", ":"+benchPort)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		c, err := l.Accept()
		if err != nil {
			return nil, nil
		}
		go serveTCP(c)
	}
}

func serveTCP(c net.Conn) {
	defer c.Close()
	b := make([]byte, chunk)
	if _, err := io.ReadFull(c, b[:1]); err != nil {
		return
	}
	switch b[0] {
	case wantPage:
		io.WriteString(c, demoPage)
	case wantDown:
		fillRandom(b)
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	case wantUp:
		var came atomic.Int64
		go func() {
			for {
				time.Sleep(tellEvery)
				if _, err := c.Write(binary.BigEndian.AppendUint64(nil, uint64(came.Load()))); err != nil {
					return
				}
			}
		}()
		for {
			n, err := c.Read(b)
			came.Add(int64(n))
			if err != nil {
				return
			}
		}
	case wantEcho:
		io.Copy(c, c)
	}
}

func fillRandom(b []byte) { rand.NewChaCha8([32]byte{1}).Read(b) }

func serveUDP(c *net.UDPConn) {
	c.SetReadBuffer(4 << 20)
	count := map[uint64]uint64{}
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		if n < 8 {
			continue
		}
		flow := binary.BigEndian.Uint64(b)
		if n == 8 {
			c.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(b[:8:8], count[flow]), from)
		} else {
			count[flow]++
		}
	}
}

// rate is what measureTCP returns. Bytes are all that were carried, and Mbps counts those after the warm-up.
type rate struct {
	Mbps  float64
	Bytes int64
}

// measureTCP sends or fetches on several streams at once.
func measureTCP(ctx context.Context, args []string) (any, error) {
	var r route
	f := flag.NewFlagSet("tcp", flag.ContinueOnError)
	r.flags(f)
	streams := f.Int("streams", 1, "")
	users := f.Int("users", 1, "")
	up := f.Bool("up", false, "")
	lasts := f.Duration("for", 3*time.Second, "")
	warm := f.Duration("warm", time.Second, "")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, *lasts+*warm+30*time.Second)
	defer cancel()
	carried := make([]atomic.Int64, *streams)
	fail := make(chan error, 2**streams)
	for i := range *streams {
		want := byte(wantDown)
		if *up {
			want = wantUp
		}
		c, err := r.dial(ctx, fmt.Sprintf("user%d", i%*users), want)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		if !*up {
			go func() {
				b := make([]byte, 4*chunk)
				for {
					n, err := c.Read(b)
					carried[i].Add(int64(n))
					if err != nil {
						fail <- err
						return
					}
				}
			}()
			continue
		}
		go func() {
			b := make([]byte, chunk)
			fillRandom(b)
			for {
				if _, err := c.Write(b); err != nil {
					fail <- err
					return
				}
			}
		}()
		go func() {
			var b [8]byte
			for {
				if _, err := io.ReadFull(c, b[:]); err != nil {
					fail <- err
					return
				}
				carried[i].Store(int64(binary.BigEndian.Uint64(b[:])))
			}
		}()
	}
	sum := func() (n int64) {
		for i := range carried {
			n += carried[i].Load()
		}
		return n
	}
	wait := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case err := <-fail:
			return fmt.Errorf("a stream ended early: %w", err)
		}
	}
	if err := wait(*warm); err != nil {
		return nil, err
	}
	start, before := time.Now(), sum()
	if err := wait(*lasts); err != nil {
		return nil, err
	}
	after := sum()
	return rate{float64(after-before) * 8 / 1e6 / time.Since(start).Seconds(), after}, nil
}

// times is a number of round trips, in ms.
type times struct {
	Median, P90 float64
	Count       int
}

func timesOf(all []time.Duration) times {
	if len(all) == 0 {
		return times{}
	}
	slices.Sort(all)
	return times{ms(all[len(all)/2]), ms(all[len(all)*9/10]), len(all)}
}

// measureRTT sends 64 bytes and waits for them, again and again; beside a bulk stream if that is wanted.
func measureRTT(ctx context.Context, args []string) (any, error) {
	var r route
	f := flag.NewFlagSet("rtt", flag.ContinueOnError)
	r.flags(f)
	bulk := f.Bool("bulk", false, "")
	lasts := f.Duration("for", 2*time.Second, "")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, *lasts+30*time.Second)
	defer cancel()
	echo, err := r.dial(ctx, "user0", wantEcho)
	if err != nil {
		return nil, err
	}
	defer echo.Close()
	if *bulk {
		c, err := r.dial(ctx, "user0", wantDown)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		go io.Copy(io.Discard, c)
		time.Sleep(time.Second)
	}
	var all []time.Duration
	b := make([]byte, 64)
	for end := time.Now().Add(*lasts); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		start := time.Now()
		if _, err := echo.Write(b); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(echo, b); err != nil {
			return nil, err
		}
		all = append(all, time.Since(start))
	}
	return timesOf(all), nil
}

// loss is what measureUDP returns.
type loss struct {
	Sent, Came uint64
	Mbps       float64 // that was sent
}

// measureUDP sends packets of one size at a rate and asks the service how many have come.
func measureUDP(ctx context.Context, args []string) (any, error) {
	var r route
	f := flag.NewFlagSet("udp", flag.ContinueOnError)
	r.flags(f)
	mbps := f.Float64("rate", 10, "")
	size := f.Int("size", 1200, "")
	lasts := f.Duration("for", 2*time.Second, "")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	c, err := new(net.Dialer).DialContext(ctx, "udp", net.JoinHostPort(r.to, benchPort))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	b := make([]byte, *size)
	fillRandom(b)
	binary.BigEndian.PutUint64(b, rand.Uint64())
	var result loss
	start := time.Now()
	for elapsed := time.Duration(0); elapsed < *lasts; elapsed = time.Since(start) {
		for due := uint64(elapsed.Seconds() * *mbps * 1e6 / 8 / float64(*size)); result.Sent < due; result.Sent++ {
			c.Write(b) // an error is a packet that is lost
		}
		time.Sleep(500 * time.Microsecond)
	}
	result.Mbps = float64(result.Sent) * float64(*size) * 8 / 1e6 / time.Since(start).Seconds()
	time.Sleep(300 * time.Millisecond)
	for range 20 {
		c.Write(b[:8])
		c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		var a [16]byte
		if n, err := c.Read(a[:]); err == nil && n == len(a) && bytes.Equal(a[:8], b[:8]) {
			result.Came = binary.BigEndian.Uint64(a[8:])
			return result, nil
		}
	}
	return nil, errors.New("the service did not say how many packets came")
}

// firstByte is what measureFirst returns.
type firstByte struct {
	At    time.Time
	Tries int
}

// measureFirst asks for the page until its first byte comes. It is started together with a client, as somebody would who cannot wait.
func measureFirst(ctx context.Context, args []string) (any, error) {
	var r route
	f := flag.NewFlagSet("first", flag.ContinueOnError)
	r.flags(f)
	try := f.Duration("try", 60*time.Second, "") // how long one may take
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for tries := 1; ; tries++ {
		at, err := r.page(ctx, *try)
		if err == nil {
			return firstByte{at, tries}, nil
		}
		select {
		case <-time.After(retryEvery):
		case <-ctx.Done():
			return nil, fmt.Errorf("no page after %d tries: %w", tries, err)
		}
	}
}

// page fetches the page and returns when its first byte came.
func (r *route) page(ctx context.Context, patience time.Duration) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := r.dial(ctx, "user0", wantPage)
	if err != nil {
		return time.Time{}, err
	}
	defer c.Close()
	_, err = io.ReadFull(c, make([]byte, 1))
	return time.Now(), err
}

// measureDNS asks for the address of a name, each time with a new message and the next one after the answer.
func measureDNS(_ context.Context, args []string) (any, error) {
	f := flag.NewFlagSet("dns", flag.ContinueOnError)
	count := f.Int("count", 1, "")
	name := f.String("to", "", "")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	c, err := net.Dial("udp", "127.3.2.1:53")
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var all []time.Duration
	b := make([]byte, 2048)
	for range *count {
		q := new(dns.Msg).SetQuestion(dns.Fqdn(*name), dns.TypeA)
		raw, err := q.Pack()
		if err != nil {
			return nil, err
		}
		start := time.Now()
		if _, err := c.Write(raw); err != nil {
			return nil, err
		}
		c.SetReadDeadline(start.Add(20 * time.Second))
		n, err := c.Read(b)
		if err != nil {
			return nil, err
		}
		all = append(all, time.Since(start))
		var a dns.Msg
		if err := a.Unpack(b[:n]); err != nil || a.Rcode != dns.RcodeSuccess || len(a.Answer) == 0 {
			return nil, fmt.Errorf("the name server's answer: %v %s", err, strings.ReplaceAll(a.String(), "\n", " "))
		}
	}
	return timesOf(all), nil
}

// lines is an io.Writer that hands on whole lines; it never blocks.
type lines struct {
	ctx  context.Context // of who waits
	mu   sync.Mutex
	rest []byte
	c    chan string
}

func newLines(ctx context.Context) *lines { return &lines{ctx: ctx, c: make(chan string, 64)} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			return len(p), nil
		}
		l.rest = bytes.Clone(rest)
		select {
		case l.c <- string(line):
		default:
		}
	}
}

// follow starts a program whose output l is; if it fails that is a line too.
func (l *lines) follow(c *lab.Cmd) error {
	if err := c.Start(); err != nil {
		return err
	}
	go func() {
		if err := c.Wait(); err != nil {
			fmt.Fprintf(l, "%v\n", err)
		}
	}()
	return nil
}

// next waits for a line.
func (l *lines) next(patience time.Duration) (string, error) {
	select {
	case s := <-l.c:
		return s, nil
	case <-l.ctx.Done():
		return "", l.ctx.Err()
	case <-time.After(patience):
		return "", fmt.Errorf("no line of output after %v", patience)
	}
}
