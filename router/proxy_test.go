package router

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lokinetd/config"
	"lokinetd/netif"
)

// userSpaceBench is a bench without root: real stack, proxies on ports of their own, a service.
func userSpaceBench(t *testing.T) *bench {
	b := newBench(t)
	b.sys.inUserSpace(slog.New(slog.DiscardHandler))
	inUserSpace(b.config)
	any := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	b.config.Proxy = config.Proxy{SOCKS: any, HTTP: any}
	return b
}

// call sends bytes to a proxy, or whatever listens there, and gives what comes back until the end.
func call(t *testing.T, at, send string) string {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(c, send)
	c.(*net.TCPConn).CloseWrite()
	b, _ := io.ReadAll(c)
	return string(b)
}

// TestProxyHost: a daemon without root starts and ends like any other, and neither touches the host nor what an earlier one with a TUN has written down about it.
func TestProxyHost(t *testing.T) {
	b := userSpaceBench(t)
	left := netif.Changes{Interface: "lokinet0", Index: 99, Unreachable: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/16")}}
	if err := os.MkdirAll(b.config.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := folder(b.config.DataDir).setChanges(left); err != nil {
		t.Fatal(err)
	}
	b.config.Service = []config.Service{{Name: "web", Key: filepath.Join(t.TempDir(), "key"), Ports: []config.Port{{Proto: "tcp", Number: 80}}}}
	s := b.mustStart()
	st := s.status()
	if st.Proxy == nil || len(st.Proxy.SOCKS) != 1 || len(st.Proxy.HTTP) != 1 || st.Tun != nil || st.DNS != nil {
		t.Fatalf("%+v", st)
	}
	if got := call(t, st.Proxy.SOCKS[0], "\x05\x01\x00\x05\x01\x00\x03\x0bexample.com\x00\x50"); got != "\x05\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00" {
		t.Errorf("%q", got)
	}
	for _, host := range []string{"example.com", "127.0.0.1", "172.16.0.1", "172.17.0.2", st.Endpoints[0].IPv4, "localhost.loki"} {
		if got := call(t, st.Proxy.HTTP[0], "CONNECT "+host+":80 HTTP/1.1\r\nHost: x\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 403 ") {
			t.Errorf("%s: %q", host, got)
		}
	}
	s.stop()
	if c, err := loadState[hostState](folder(b.config.DataDir), stateFile); err != nil || c.Interface != left.Interface || !slices.Equal(c.Unreachable, left.Unreachable) {
		t.Errorf("the state file of a TUN: %+v, %v", c, err)
	}

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	b.config.Proxy.HTTP = []netip.AddrPort{taken.Addr().(*net.TCPAddr).AddrPort()}
	if _, err := b.start(); err == nil || !strings.Contains(err.Error(), "proxy.http") || !strings.Contains(err.Error(), "in use by another program") {
		t.Errorf("a port that is taken: %v", err)
	}
}

// TestForwards: on a reload, ports of services that stay keep their connections, the others close, and a port may lead elsewhere.
func TestForwards(t *testing.T) {
	b := userSpaceBench(t)
	local := func(says string) config.Forward {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					io.WriteString(c, says)
					io.Copy(c, c)
					c.Close()
				}()
			}
		}()
		return config.Forward{Port: config.Port{Proto: "tcp", Number: 80}, To: l.Addr().(*net.TCPAddr).AddrPort()}
	}
	one, two := local("one"), local("two")
	dns := config.Forward{Port: config.Port{Proto: "udp", Number: 53}, To: netip.MustParseAddrPort("127.0.0.1:9")}
	keyFile := filepath.Join(t.TempDir(), "key")
	service := func(f ...config.Forward) []config.Service {
		return []config.Service{{Name: "web", Key: keyFile, Forward: f}}
	}
	b.config.Service = service(one)
	want := *b.config
	b.again = func() (*config.Config, error) { c := want; return &c, nil }
	var stack *netif.Stack
	open := b.sys.openDevice
	b.sys.openDevice = func(c netif.DeviceConfig) (device, error) {
		d, err := open(c)
		stack, _ = d.(*netif.Stack)
		return d, err
	}
	s := b.mustStart()
	defer s.stop()
	st := s.status()
	from, web := netip.MustParseAddr(st.Endpoints[0].IPv4), netip.MustParseAddr(st.Endpoints[1].IPv4)
	read := func(c net.Conn, text string) {
		t.Helper()
		buf := make([]byte, len(text))
		c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != text {
			t.Errorf("%q, %v; want %q", buf, err, text)
		}
	}
	visit := func() (net.Conn, error) { return stack.DialTCP(t.Context(), from, netip.AddrPortFrom(web, 80)) }
	c, err := visit()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	read(c, "one")

	want.Service = service(one, dns)
	s.sighup()
	io.WriteString(c, "still")
	read(c, "still")
	if p := s.status().Endpoints[1].Ports; !slices.Equal(p, []string{"tcp/80", "udp/53"}) {
		t.Errorf("ports %v", p)
	}
	want.Service = service(two)
	s.sighup()
	if _, err := io.ReadAll(c); err == nil {
		t.Log("the connection has ended in order")
	}
	if c, err = visit(); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	read(c, "two")
	want.Service = nil
	s.sighup()
	if _, err := visit(); err == nil {
		t.Error("a service that is gone accepts")
	}
}
