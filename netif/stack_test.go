package netif

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// newStacks runs two stacks whose pumps are joined, as newPair does it with TUNs in memory: bob lists tcp 80 and 81 and udp 53. Nothing may be left of it.
func newStacks(t *testing.T) (s [2]*Stack) {
	goroutines, buffers := runtime.NumGoroutine(), packet.InUse()
	t.Cleanup(func() {
		for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			g, b := runtime.NumGoroutine()-goroutines, packet.InUse()-buffers
			if g <= 0 && b == 0 {
				return
			}
			if time.Now().After(end) {
				text := make([]byte, 1<<20)
				t.Fatalf("left: %d goroutines, %d buffers\n%s", g, b, text[:runtime.Stack(text, true)])
			}
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	var places [2]*Endpoint
	var pumps [2]*Pump
	selves := [2]key.Address{alice, bob}
	for i, in := range []Inbound{{}, {TCP: []Ports{{80, 81}}, UDP: []Ports{{53, 53}}}} {
		m, err := NewMap(selves[i], []netip.Prefix{alice4, bob4}[i], []netip.Prefix{alice6, bob6}[i])
		if err == nil {
			s[i], err = NewStack()
		}
		if err == nil {
			_, own4, own6 := m.Self()
			err = s[i].Apply([]netip.Prefix{own4, own6})
		}
		if err != nil {
			t.Fatal(err)
		}
		pumps[i] = NewPump(s[i], nil)
		places[i], err = pumps[i].Add(m, in, tunnelFunc(func(_ key.Address, b *packet.Buffer) bool {
			places[1-i].Deliver(selves[i], b)
			return true
		}))
		if err != nil {
			t.Fatal(err)
		}
		m.IPv4(selves[1-i], time.Now())
		m.IPv6(selves[1-i], time.Now())
	}
	for _, p := range pumps {
		done.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		done.Wait()
		for i, p := range pumps {
			if err := s[i].Close(false); err != nil {
				t.Error(err)
			}
			for len(p.queue) > 0 {
				(<-p.queue).Release()
			}
		}
	})
	return s
}

func TestStack(t *testing.T) {
	s := newStacks(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, v := range []struct{ from, to, own netip.Addr }{{alice4.Addr(), bobAtAlice4, bob4.Addr()}, {alice6.Addr(), bobAtAlice6, bob6.Addr()}} {
		l, err := s[1].ListenTCP(netip.AddrPortFrom(v.own, 80))
		if err != nil {
			t.Fatal(err)
		}
		echoed := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err == nil {
				_, err = io.Copy(c, c)
				c.(Conn).CloseWrite()
				c.Close()
			}
			echoed <- err
		}()
		c, err := s[0].DialTCP(ctx, v.from, netip.AddrPortFrom(v.to, 80))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != v.from {
			t.Errorf("connected from %v", got)
		}
		data := make([]byte, 2<<20)
		for i := range data {
			data[i] = byte(i * i >> 7)
		}
		go func() {
			c.Write(data)
			c.CloseWrite()
		}()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
			t.Errorf("echo of %d bytes: %d came back, %v", len(data), len(got), err)
		}
		if err := <-echoed; err != nil {
			t.Error(err)
		}
		l.Close()
		if l, err = s[1].ListenTCP(netip.AddrPortFrom(v.own, 80)); err != nil { // while the former one's connections are there
			t.Error(err)
		} else {
			l.Close()
		}
		c.Close()

		if _, err := s[0].DialTCP(ctx, v.from, netip.AddrPortFrom(v.to, 81)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a listed port where nobody listens: %v", err)
		}
		short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
		nobody := short // nobody says so in IPv6
		if v.to.Is4() {
			nobody = ctx
		}
		if _, err := s[0].DialTCP(nobody, v.from, netip.AddrPortFrom(v.to.Next(), 80)); !errors.Is(err, syscall.EHOSTUNREACH) && (v.to.Is4() || !errors.Is(err, context.DeadlineExceeded)) {
			t.Errorf("an address that stands for nobody: %v", err)
		}
		if _, err := s[0].DialTCP(short, v.from, netip.AddrPortFrom(v.to, 82)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a closed port: %v", err)
		}
		stop()

		server, err := s[1].ListenUDP(netip.AddrPortFrom(v.own, 53))
		if err != nil {
			t.Fatal(err)
		}
		client, err := s[0].ListenUDP(netip.AddrPortFrom(v.from, 0))
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		if _, err := client.WriteTo(make([]byte, 2000), net.UDPAddrFromAddrPort(netip.AddrPortFrom(v.to, 53))); err != nil { // two fragments
			t.Fatal(err)
		}
		server.SetDeadline(time.Now().Add(time.Minute))
		client.SetDeadline(time.Now().Add(time.Minute))
		n, from, err := server.ReadFrom(b)
		if err != nil || n != 2000 {
			t.Fatal(n, err)
		}
		server.WriteTo(b[:7], from)
		if n, from, err = client.ReadFrom(b); err != nil || n != 7 || from.(*net.UDPAddr).AddrPort() != netip.AddrPortFrom(v.to, 53) {
			t.Error(n, from, err)
		}
		server.Close()
		client.Close()
	}
}

// Addresses come and go, and what is closed says so.
func TestStackApply(t *testing.T) {
	s, err := NewStack()
	if err != nil {
		t.Fatal(err)
	}
	listens := func(a string) bool {
		l, err := s.ListenTCP(netip.AddrPortFrom(addr(a), 80))
		if err == nil {
			l.Close()
		}
		return err == nil
	}
	for _, want := range [][]netip.Prefix{{prefix("10.1.0.1/16")}, {prefix("10.1.0.1/16"), prefix("10.2.0.1/20"), prefix("fd00::1/64")}, {prefix("10.2.0.1/20")}, nil} {
		if err := s.Apply(want); err != nil {
			t.Fatal(err)
		}
		for _, a := range []string{"10.1.0.1", "10.2.0.1", "fd00::1"} {
			has := false
			for _, p := range want {
				has = has || p.Addr() == addr(a)
			}
			if listens(a) != has {
				t.Errorf("with %v: %s is an own address: %v", want, a, !has)
			}
		}
	}
	s.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	bufs, sizes := [][]byte{make([]byte, 2000)}, []int{0}
	if n, err := s.Read(bufs, sizes, 0); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(n, err)
	}
	for range 2 {
		if err := s.Close(false); err != nil {
			t.Error(err)
		}
	}
	if n, err := s.Read(bufs, sizes, 0); n != 0 || !errors.Is(err, os.ErrClosed) {
		t.Error(n, err)
	}
	if err := s.Apply(nil); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	s.Write([][]byte{udp(addr("10.0.0.1"), addr("10.0.0.2"), 1, 2, "late"), {}, {0x60}, {0x45}, {0xff, 1, 2}}, 0)
}
