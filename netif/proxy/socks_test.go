package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const greeting = "\x05\x01\x00"

func request(command byte, host string, port uint16) string {
	return string(appendAddress([]byte{5, command, 0}, host, port))
}

// socksDo sends a greeting and a request and gives the reply's code and address.
func socksDo(t *testing.T, c net.Conn, request string) (reply byte, bound netip.AddrPort) {
	t.Helper()
	reply, bound, err := socksTry(c, request)
	if err != nil {
		t.Fatal(err)
	}
	return reply, bound
}

func socksTry(c net.Conn, request string) (reply byte, bound netip.AddrPort, err error) {
	if _, err := io.WriteString(c, greeting+request); err != nil {
		return 0, bound, err
	}
	var b [5]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:2]) != "\x05\x00" || b[2] != 5 || b[4] != 0 {
		return 0, bound, fmt.Errorf("% x, %w", b, err)
	}
	host, port, err := readAddress(c)
	if err != nil {
		return 0, bound, err
	}
	return b[3], netip.AddrPortFrom(netip.MustParseAddr(host), port), nil
}

func TestSOCKSConnect(t *testing.T) {
	s, _, at, _ := start(t)
	for _, c := range []struct {
		host  string
		port  uint16
		reply byte
	}{
		{web, 80, replyOK},
		{upper(web) + ".", 80, replyOK},
		{"www." + web, 80, replyOK},
		{"site.loki", 80, replyOK},
		{webKey + ".loki", 443, replyOK}, // IPv4 refuses, IPv6 does not
		{"172.16.0.2", 80, replyOK},
		{"::ffff:172.16.0.2", 80, replyOK},
		{"fd00::2", 80, replyOK},
		{web, 81, replyRefused},
		{gone, 80, replyHostUnreachable},
		{"other.loki", 80, replyNetUnreachable}, // not ready
		{web, 0, replyNotAllowed},
		{"172.16.0.3", 80, replyNotAllowed}, // ours, but nobody's
		{"127.0.0.1", 80, replyNotAllowed}, {"::1", 80, replyNotAllowed}, {"0.0.0.0", 80, replyNotAllowed}, {"::", 80, replyNotAllowed},
		{"192.168.1.1", 80, replyNotAllowed}, {"9.9.9.9", 80, replyNotAllowed}, {"::ffff:127.0.0.1", 80, replyNotAllowed}, {"fe80::1", 80, replyNotAllowed},
		{"localhost", 80, replyNotAllowed}, {"localhost.loki", 80, replyNotAllowed}, {"localhost.snode", 80, replyNotAllowed},
		{"example.com", 80, replyNotAllowed}, {"", 80, replyNotAllowed}, {".", 80, replyNotAllowed}, {"loki", 80, replyNotAllowed}, {".loki", 80, replyNotAllowed},
		{web + ".example.com", 80, replyNotAllowed}, {web + "\x00.example.com", 80, replyNotAllowed}, {"example.com\x00." + web, 80, replyNotAllowed},
		{"127.1", 80, replyNotAllowed}, {"0x7f.1", 80, replyNotAllowed}, {"2130706433", 80, replyNotAllowed}, {"127.0.0.1.", 80, replyNotAllowed},
		{"fe80::1%lo", 80, replyNotAllowed}, {"[::1]", 80, replyNotAllowed}, {"172.16.0.2.", 80, replyNotAllowed}, {web + " ", 80, replyNotAllowed}, {web + "..", 80, replyNotAllowed},
		{"a_b.loki", 80, replyNotAllowed}, {strings.Repeat("a.", 120) + "loki", 80, replyNetUnreachable}, {strings.Repeat("a", 250) + ".loki", 80, replyNotAllowed},
	} {
		conn := dial(t, at)
		if reply, _ := socksDo(t, conn, request(commandConnect, c.host, c.port)); reply != c.reply {
			t.Errorf("%.80q port %d: reply %d, want %d", c.host, c.port, reply, c.reply)
		}
		if c.reply == replyOK {
			io.WriteString(conn, "you\nand more")
			conn.CloseWrite()
			if b, err := io.ReadAll(conn); err != nil || string(b) != "hello you\nand more" {
				t.Errorf("%s: %q, %v", c.host, b, err)
			}
		} else if b, err := io.ReadAll(conn); len(b) > 0 || err != nil {
			t.Errorf("%s: after the refusal: %q, %v", c.host, b, err)
		}
		conn.Close()
	}
	if st := s.Stats(); st.Opened != 8 || st.Failed != 4 {
		t.Errorf("%+v", st)
	}
}

// TestSOCKSBad: what is no SOCKS5 gets no answer, or the answer that the RFC has for it, and nothing is resolved.
func TestSOCKSBad(t *testing.T) {
	_, f, at, _ := start(t)
	for _, c := range []struct{ send, want string }{
		{"\x04\x01\x00\x50\x7f\x00\x00\x01x\x00", ""}, // SOCKS4
		{"GET / HTTP/1.1\r\n\r\n", ""},
		{"\x05\x00", "\x05\xff"},
		{"\x05\x01\x02", "\x05\xff"},
		{"\x05\x02\x01\x02", "\x05\xff"},
		{greeting + "\x04\x01\x00\x01\x7f\x00\x00\x01\x00\x50", "\x05\x00"},
		{greeting + "\x05\x01\x01\x01\x7f\x00\x00\x01\x00\x50", "\x05\x00"}, // reserved byte
		{greeting + "\x05\x01\x00\x02", "\x05\x00\x05\x08\x00\x01\x00\x00\x00\x00\x00\x00"},
		{greeting + request(2, web, 80), "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"},
		{greeting + request(0xf0, web, 80), "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"},
	} {
		conn := dial(t, at)
		io.WriteString(conn, c.send)
		conn.CloseWrite()
		if b, _ := io.ReadAll(conn); string(b) != c.want {
			t.Errorf("%q: %q, want %q", c.send, b, c.want)
		}
	}
	// Cut at every byte.
	whole := greeting + request(commandConnect, web, 80)
	for n := range whole {
		conn := dial(t, at)
		io.WriteString(conn, whole[:n])
		conn.CloseWrite()
		if b, err := io.ReadAll(conn); err != nil || n < len(greeting) && len(b) > 0 || n >= len(greeting) && string(b) != "\x05\x00" {
			t.Errorf("the first %d bytes: %q, %v", n, b, err)
		}
	}
	if len(f.host) > 0 {
		t.Errorf("resolved: %q", f.host)
	}
}

// TestSOCKSByteByByte: messages may come in any pieces.
func TestSOCKSByteByByte(t *testing.T) {
	_, _, at, _ := start(t)
	conn := dial(t, at)
	conn.SetNoDelay(true)
	for _, b := range []byte(greeting + request(commandConnect, web, 80) + "you\n") {
		conn.Write([]byte{b})
		time.Sleep(time.Millisecond)
	}
	want := "\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00hello you\n"
	b := make([]byte, len(want))
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != want {
		t.Errorf("%q, %v", b, err)
	}
}

// TestBounds: connections over the bound are closed, and a place is free again when one ends; the end of the server ends all, also those that wait for a name.
func TestBounds(t *testing.T) {
	s, _, at, _ := start(t)
	var open []*net.TCPConn
	for range maxConns - 1 {
		open = append(open, dial(t, at))
	}
	waiting := dial(t, at)
	io.WriteString(waiting, greeting+request(commandConnect, slow, 80))
	full := dial(t, at)
	io.WriteString(full, greeting)
	if b, _ := io.ReadAll(full); len(b) > 0 || s.Stats().Full != 1 || s.Stats().Open != maxConns {
		t.Errorf("one more than allowed: %q, %+v", b, s.Stats())
	}
	for _, c := range open[:10] {
		c.Close()
	}
	for end := time.Now().Add(time.Minute); s.Stats().Open > maxConns-10 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if reply, _ := socksDo(t, dial(t, at), request(commandConnect, web, 80)); reply != replyOK {
		t.Errorf("after others have ended: reply %d", reply)
	}
}

// TestPatience: who does not say what it wants is not waited for, and its place is free again.
func TestPatience(t *testing.T) {
	const patience = 50 * time.Millisecond
	s, _, socks, http := startPatient(t, patience)
	for _, c := range []struct{ at, send string }{
		{socks, ""}, {socks, greeting}, {socks, greeting + "\x05\x01\x00\x03\xff"}, {http, ""}, {http, "CONNECT " + web + ":80 HTTP/1.1\r\nX: "},
	} {
		conn := dial(t, c.at)
		io.WriteString(conn, c.send)
		if b, err := io.ReadAll(conn); err != nil && !errors.Is(err, syscall.ECONNRESET) || len(b) > 0 && string(b) != "\x05\x00" && !strings.HasPrefix(string(b), "HTTP/1.1 408") {
			t.Errorf("%q: %q, %v", c.send, b, err)
		}
	}
	// Nor for who says it byte by byte, or never comes to the end.
	for _, c := range []struct {
		at, send string
		piece    int
	}{
		{socks, greeting + strings.Repeat("\x05", 200), 1}, {http, "CONNECT " + web + ":80 HTTP/1.1\r\nX: " + strings.Repeat("x", 200), 1}, {http, "GET http://" + web + "/ HTTP/1.1\r\nX: " + strings.Repeat("x", 1<<20), 1 << 10},
	} {
		conn := dial(t, c.at)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for b := []byte(c.send); len(b) > 0; b = b[min(len(b), c.piece):] {
				if _, err := conn.Write(b[:min(len(b), c.piece)]); err != nil {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		}()
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%.20q in pieces of %d: %v", c.send, c.piece, err)
		}
		conn.Close()
		<-done
	}
	// What has said it is waited for. Where it took us longer than the server's patience to say it, that was the machine, and we say it again.
	var conn *net.TCPConn
	for {
		began := time.Now()
		conn = dial(t, socks)
		reply, _, err := socksTry(conn, request(commandConnect, web, 80))
		if err == nil && reply == replyOK {
			break
		}
		if took := time.Since(began); took < patience {
			t.Fatalf("reply %d after %v, %v", reply, took, err)
		}
		conn.Close()
	}
	time.Sleep(2 * patience)
	io.WriteString(conn, "you\n")
	if _, err := io.ReadFull(conn, make([]byte, 10)); err != nil {
		t.Error(err)
	}
	for end := time.Now().Add(time.Minute); s.Stats().Open != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections", s.Stats().Open)
		}
	}
}

// TestIdle: two connections on which nothing happens are closed.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle = 300 * time.Millisecond
		var near [2]net.Conn
		var far [2]pipe
		for i := range near {
			near[i], far[i].Conn = net.Pipe()
		}
		done := make(chan struct{})
		go func() {
			join(far[0], far[1], idle)
			close(done)
		}()
		b := make([]byte, 1)
		for i := range 10 { // in one direction or the other
			near[i%2].Write([]byte{byte(i)})
			if _, err := io.ReadFull(near[1-i%2], b); err != nil || b[0] != byte(i) {
				t.Fatal(i, b, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
		last := time.Now().Add(-50 * time.Millisecond)
		<-done
		if waited := time.Since(last); waited != idle {
			t.Errorf("closed after %v", waited)
		}
		for _, c := range near {
			if _, err := c.Read(b); err == nil {
				t.Error("still open")
			}
		}
	})
}

// pipe is one end of a connection in memory.
type pipe struct{ net.Conn }

func (p pipe) CloseWrite() error { return p.Close() }

func TestAssociate(t *testing.T) {
	s, f, at, _ := start(t)
	conn := dial(t, at)
	reply, bound := socksDo(t, conn, request(commandAssociate, "0.0.0.0", 0))
	if reply != replyOK || bound.Addr() != netip.MustParseAddr("127.0.0.1") || bound.Port() == 0 {
		t.Fatal(reply, bound)
	}
	program, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(bound))
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	program.SetDeadline(time.Now().Add(time.Minute))
	b := make([]byte, 2048)
	ask := func(host, data string) {
		t.Helper()
		program.Write(appendDatagram(nil, host, 53, []byte(data)))
		n, err := program.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		from, port, got, err := parseDatagram(b[:n])
		if err != nil || from != host || port != 53 || string(got) != "re: "+data {
			t.Errorf("%s: %.30q from %s port %d, %v", host, got, from, port, err)
		}
	}
	ask(web, "one")
	ask(web, "two")
	ask(upper(web), "three")
	ask("172.16.0.2", "four")
	ask("fd00::2", "five")
	ask(web, strings.Repeat("x", 1500))

	before := s.Stats()
	bad := [][]byte{
		nil, {0}, {0, 0, 0}, {0, 0, 0, 1, 127, 0, 0, 1, 0}, // cut
		appendDatagram(nil, "127.0.0.1", 53, []byte("no")), appendDatagram(nil, "example.com", 53, []byte("no")), appendDatagram(nil, "172.16.0.9", 53, []byte("no")),
		appendDatagram(nil, web, 0, []byte("no")), append([]byte{0, 0, 1}, appendAddress(nil, web, 53)...), append([]byte{0, 1, 0}, appendAddress(nil, web, 53)...),
		appendDatagram(nil, gone, 53, []byte("no")),
	}
	for _, d := range bad {
		program.Write(d)
	}
	other, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(bound)) // another program
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	other.Write(appendDatagram(nil, web, 53, []byte("not mine")))
	for end := time.Now().Add(time.Minute); s.Stats().Dropped-before.Dropped < uint64(len(bad))+1 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	ask(web, "six")
	if got := s.Stats().Dropped - before.Dropped; got != uint64(len(bad))+1 {
		t.Errorf("%d datagrams dropped, want %d", got, len(bad)+1)
	}

	// A name under way holds a few datagrams, and only so many names are under way.
	for i := range maxResolving + 2 {
		for range maxWaiting + 2 {
			program.Write(appendDatagram(nil, strings.Repeat("a.", i)+slow, 53, []byte("waits")))
		}
	}
	ask(web, "seven")
	pending := 0
	for end := time.Now().Add(time.Minute); pending < maxResolving && time.Now().Before(end); time.Sleep(time.Millisecond) {
		f.mu.Lock()
		pending = len(slices.DeleteFunc(slices.Clone(f.host), func(h string) bool { return !strings.HasSuffix(h, slow) }))
		f.mu.Unlock()
	}
	if pending != maxResolving {
		t.Errorf("%d names are being resolved at once", pending)
	}
	conn.Close() // ends the association: the names under way, the socket
	for end := time.Now().Add(time.Minute); s.Stats().Open > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	program.Write(appendDatagram(nil, web, 53, []byte("late")))
	if _, err := program.Read(b); err == nil {
		t.Error("the association outlives its connection")
	}
}

func TestAssociations(t *testing.T) {
	_, _, at, _ := start(t)
	for range maxAssociations {
		if reply, _ := socksDo(t, dial(t, at), request(commandAssociate, "0.0.0.0", 0)); reply != replyOK {
			t.Fatal(reply)
		}
	}
	if reply, _ := socksDo(t, dial(t, at), request(commandAssociate, "0.0.0.0", 0)); reply != replyFailure {
		t.Errorf("one more than allowed: %d", reply)
	}
}

// An association knows a bounded number of hosts.
func TestAssociationRoom(t *testing.T) {
	a := &association{peers: map[string]*peer{}, hosts: map[netip.Addr]string{}}
	for i := range 3 * maxPeers {
		a.room()
		ip := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		a.peers[ip.String()] = &peer{addr: ip}
		a.hosts[ip] = ip.String()
	}
	if len(a.peers) > maxPeers || len(a.hosts) > maxPeers {
		t.Error(len(a.peers), len(a.hosts))
	}
}

// FuzzSOCKS: any program of the host, and any web page that makes a browser speak to the port, can send these bytes. Reading ends, takes no more than it
// says, gives a host that is refused or ours, and what was read is what would be written.
//
// Decoders: readGreeting readRequest readAddress parseDatagram
func FuzzSOCKS(f *testing.F) {
	f.Add([]byte(greeting + request(commandConnect, web, 80)))
	f.Add([]byte(greeting + request(commandAssociate, "::", 0) + "more"))
	f.Add(appendDatagram(nil, "172.16.0.2", 53, []byte("data")))
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if readGreeting(r) == nil {
			used := 2 + int(b[1])
			if r.Len() != len(b)-used {
				t.Fatalf("the greeting took %d bytes, not %d", len(b)-r.Len(), used)
			}
			command, host, port, err := readRequest(r)
			if err == nil {
				again := appendAddress([]byte{5, command, 0}, host, port)
				c2, h2, p2, err := readRequest(bytes.NewReader(again))
				if err != nil || c2 != command || h2 != host || p2 != port {
					t.Fatalf("%q %d: %q %d %v", host, port, h2, p2, err)
				}
				checkHost(t, host)
			} else if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, errVersion) && !errors.Is(err, errAddress) {
				t.Fatal(err)
			}
		}
		if host, port, data, err := parseDatagram(b); err == nil {
			h2, p2, d2, err := parseDatagram(appendDatagram(nil, host, port, data))
			if err != nil || h2 != host || p2 != port || !bytes.Equal(d2, data) {
				t.Fatal(host, h2, err)
			}
			checkHost(t, host)
		}
	})
}

// checkHost checks that a host is refused, an address, or a name of ours that is not ourselves.
func checkHost(t *testing.T, host string) {
	target, err := parseHost(host)
	switch {
	case err != nil:
		if !errors.Is(err, ErrRefused) {
			t.Fatal(err)
		}
	case target.addr.IsValid():
		if target.addr.Zone() != "" || target.addr.Is4In6() {
			t.Fatal(host, target.addr)
		}
	default:
		low := strings.TrimSuffix(strings.ToLower(host), ".")
		if !strings.HasSuffix(low, ".loki") && !strings.HasSuffix(low, ".sesh") && !strings.HasSuffix(low, ".snode") || target.name.Host == "localhost" {
			t.Fatal(host)
		}
	}
}
