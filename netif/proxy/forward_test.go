package proxy

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"
)

// forwarder runs one until the end of the test, which it leaves nothing behind.
func forwarder(t *testing.T, to net.Addr, run func(context.Context, *Forwarder)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		run(ctx, &Forwarder{To: addrPort(to), Log: slog.New(slog.DiscardHandler)})
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func TestForwardStreams(t *testing.T) {
	noLeaks(t)
	l := listen(t)
	forwarder(t, echo(t).Addr(), func(ctx context.Context, f *Forwarder) { f.Streams(ctx, l) })
	for range 3 {
		c := dial(t, l.Addr().String())
		io.WriteString(c, "you\nmore")
		c.CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "hello you\nmore" {
			t.Errorf("%q, %v", b, err)
		}
	}
	var open []*net.TCPConn
	for range maxRemoteForward {
		c := dial(t, l.Addr().String())
		io.WriteString(c, "you\n")
		if _, err := io.ReadFull(c, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	c := dial(t, l.Addr().String())
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("one connection more than a remote may have: %q", b)
	}
	open[0].Close()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		c := dial(t, l.Addr().String())
		io.WriteString(c, "you\n")
		n, _ := io.ReadFull(c, make([]byte, 10))
		if c.Close(); n == 10 {
			return
		}
	}
	t.Error("the place of a connection that has ended is not free")
}

// Where nobody listens, the remote's connection ends, and the port goes on.
func TestForwardNobody(t *testing.T) {
	noLeaks(t)
	closed := listen(t)
	closed.Close()
	l := listen(t)
	forwarder(t, closed.Addr(), func(ctx context.Context, f *Forwarder) { f.Streams(ctx, l) })
	for range 2 {
		if b, err := io.ReadAll(dial(t, l.Addr().String())); len(b) > 0 {
			t.Errorf("%q, %v", b, err)
		}
	}
}

func TestForwardDatagrams(t *testing.T) {
	noLeaks(t)
	local, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := local.ReadFrom(b)
			if err != nil {
				return
			}
			local.WriteTo(append([]byte("re: "), b[:n]...), from)
		}
	}()
	p, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := p.LocalAddr()
	forwarder(t, local.LocalAddr(), func(ctx context.Context, f *Forwarder) { f.Datagrams(ctx, p) })
	var senders []net.Conn
	for range maxRemoteForward {
		c, err := net.Dial("udp4", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		senders = append(senders, c)
		ask(t, c, time.Minute, true)
	}
	c, err := net.Dial("udp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask(t, c, 50*time.Millisecond, false) // one more than a remote may have
	ask(t, senders[0], time.Minute, true)
}

func ask(t *testing.T, c net.Conn, limit time.Duration, want bool) {
	t.Helper()
	b := make([]byte, 100)
	c.SetDeadline(time.Now().Add(limit))
	io.WriteString(c, "x")
	if n, err := c.Read(b); (err == nil && string(b[:n]) == "re: x") != want {
		t.Errorf("%q, %v", b[:n], err)
	}
}

func TestAddrPort(t *testing.T) {
	for _, a := range []net.Addr{&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 5}, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1).To4(), Port: 5}} {
		if got := addrPort(a); got != netip.MustParseAddrPort("10.0.0.1:5") {
			t.Error(got)
		}
	}
}
