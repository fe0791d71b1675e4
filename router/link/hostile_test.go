package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/testutils/simnet"

	"lokinetd/router/key"
)

// bare is a peer of plain quic-go, to do what a conn never does.
func (n *simNet) bare(i int, to *node, kind Kind) (*quic.Conn, func()) {
	tr := &quic.Transport{Conn: n.socket(addrOf(i)), ConnectionIDLength: 20}
	qc, err := tr.Dial(ctxb, net.UDPAddrFromAddrPort(to.addr), dialTLS(kind, key.Generate(), to.secret.Public()), dialConfig(idleTimeout(kind)))
	if err != nil {
		n.t.Fatal(err)
	}
	return qc, func() {
		qc.CloseWithError(0, "")
		tr.Close()
		tr.Conn.Close()
	}
}

func framed(list string) string { return fmt.Sprintf("%d:%s", len(list), list) }

func TestHostileStream(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := run(t, n.socket(addrOf(1)), &node{}, Config{Accept: true, Limits: Limits{Requests: 3, AllRequests: 4, Memory: 3 << 20}})
		defer b.stop()
		b.request = func(_ Conn, r *Request) {
			if r.Name == "echo" {
				r.Reply(r.Body)
			}
		}
		for i, c := range []struct {
			name, send string
			end        bool   // send FIN
			want       string // what comes back
			closed     bool
		}{
			{"ok", framed("l1:Ci0e4:echo4:quice") + "0:" + nudge + framed("l1:Ci9e4:echo2:hie"), false, framed("l1:Ri0e4:quice") + framed("l1:Ri9e2:hie"), false},
			{"unmatched replies", framed("l1:Ri5e4:ponge") + framed("l1:Ei5e4:ponge"), false, "", false},
			{"unknown type", framed("l1:Xi0e0:e"), false, "30:l1:Ei0e19:Invalid endpoint ''e", false},
			{"bad prefix", "01:a", false, "", true},
			{"bad list", "3:abc", false, "", true},
			{"trailing element", framed("l1:Ri5e4:pong0:e"), false, "", true},
			{"too long", "10000001:", false, "", true},
			{"FIN", nudge, true, "", true},
			{"cut by FIN", "16:l1:Ci0", true, "", true},
			{"too many requests", strings.Repeat(framed("l1:Ci1e1:x0:e"), 4), false, framed("l1:Ei1e46:An error occurred while processing the requeste"), false},
		} {
			qc, stop := n.bare(i+2, b, Client)
			s, err := qc.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			s.Write([]byte(c.send))
			if c.end {
				s.Close()
			}
			var got []byte
			s.SetReadDeadline(time.Now().Add(time.Second))
			buf := make([]byte, 1000)
			for err = nil; err == nil; {
				var k int
				k, err = s.Read(buf)
				got = append(got, buf[:k]...)
			}
			var app *quic.ApplicationError
			closed := errors.As(err, &app) && app.Remote && app.ErrorCode == CodeStream
			if string(got) != c.want || closed != c.closed {
				t.Errorf("%s: %q, %v", c.name, got, err)
			}
			stop()
			time.Sleep(time.Second)
		}

		// Memory of unfinished messages, over all connections, and requests without answer.
		var stops []func()
		var streams []*quic.Stream
		for i := range 5 {
			qc, stop := n.bare(100+i, b, Client)
			stops = append(stops, stop)
			s, _ := qc.OpenStream()
			streams = append(streams, s)
			s.Write([]byte("9000000:"))
			s.SetWriteDeadline(time.Now().Add(5 * time.Second))
			s.Write(make([]byte, 900_000)) // 1 MiB is held for it
		}
		time.Sleep(time.Second)
		alive := 0
		for _, c := range b.conns()[10:] {
			if b.end(c) == nil {
				alive++
			}
		}
		if stats := b.quic.Stats(); alive == 0 || alive == 5 || stats.Memory > 3<<20 {
			t.Errorf("%d connections hold %d bytes", alive, stats.Memory)
		}
		for i, stop := range stops {
			streams[i].CancelWrite(0)
			stop()
		}
		time.Sleep(RequestTimeout + time.Second)
		if stats := b.quic.Stats(); stats.Memory != 0 || stats.Waiting != 0 || stats.Inbound != 0 {
			t.Errorf("left: %+v", stats)
		}
	})
}

// A message that comes one byte a second holds what has come of it, and keeps nobody from closing; a handshake that never goes on ends in its time and leaves nothing.
func TestSlowPeers(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := n.relayAt(1)
		defer b.stop()
		qc, stop := n.bare(2, b, Client)
		s, _ := qc.OpenStream()
		s.Write([]byte("9999999:"))
		for range 300 {
			s.Write([]byte("x"))
			time.Sleep(time.Second)
		}
		if stats := b.quic.Stats(); stats.Memory > 4<<10 || stats.Inbound != 1 {
			t.Errorf("after five minutes: %+v", stats)
		}
		stop()

		n.lose(func(p simnet.Packet) bool { return addrPort(p.From) == b.addr }) // they get beyond nothing
		for i := range 20 {
			a := run(t, n.socket(addrOf(20+i)), &node{}, Config{})
			ctx, cancel := context.WithTimeout(ctxb, 100*time.Millisecond)
			if _, err := a.quic.Dial(ctx, b.addr, b.secret.Public(), Client); err == nil {
				t.Error("a handshake without answers")
			}
			cancel()
			a.stop()
		}
		if stats := b.quic.Stats(); stats.Handshakes == 0 {
			t.Errorf("none began: %+v", stats)
		}
		time.Sleep(2 * dialTimeout)
		if stats := b.quic.Stats(); stats.Handshakes != 0 || stats.Inbound != 0 || stats.Memory != 0 {
			t.Errorf("left: %+v", stats)
		}
	})
}

// Streams other than 0 are refused, and there are 32 of them in a connection's life. Stream 0 goes on.
func TestOtherStreams(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := n.relayAt(1)
		defer b.stop()
		qc, stop := n.bare(2, b, Client)
		defer stop()
		zero, _ := qc.OpenStream()
		zero.Write([]byte(nudge))
		opened := 0
		for range 100 {
			s, err := qc.OpenStream()
			if err != nil {
				break
			}
			opened++
			s.Write(make([]byte, 1000))
			time.Sleep(50 * time.Millisecond)
			if _, err := s.Write([]byte("x")); err == nil {
				t.Fatal("stream is read")
			}
			s.Read(make([]byte, 1))
		}
		if opened != 31 {
			t.Errorf("%d streams opened", opened)
		}
		zero.Write([]byte("16:l1:Ci0e4:ping0:e"))
		buf := make([]byte, 100)
		if k, err := zero.Read(buf); err != nil || string(buf[:k]) != "10:l1:Ri0e0:e" {
			t.Errorf("%q, %v", buf[:k], err)
		}
		for _, frame := range []string{"", "x", "\x00\x01a", "\x00\x00ok", "\x00\x06half"} {
			qc.SendDatagram([]byte(frame))
		}
		time.Sleep(time.Second)
		if s := b.conns()[0].Stats(); s.DropInvalid != 3 || s.DatagramsIn != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// What the acceptor asks before the dialler has opened stream 0 waits for it (protocol 2 section 5.1).
func TestAcceptorWaitsForStream(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := n.relayAt(1)
		defer b.stop()
		qc, stop := n.bare(2, b, Client)
		defer stop()
		c := b.accepted()
		c.Command("session_control", []byte("x"))
		result := make(chan string, 1)
		go func() {
			got, err := c.Request(ctxb, "ask", nil)
			result <- fmt.Sprintf("%s, %v", got, err)
		}()
		time.Sleep(2 * time.Second)
		s, _ := qc.OpenStream()
		s.Write([]byte(nudge))
		want := framed("l1:Ci0e15:session_control1:xe") + framed("l1:Ci1e3:ask0:e")
		got := make([]byte, len(want))
		if _, err := io.ReadFull(s, got); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
		s.Write([]byte(framed("l1:Ri1e6:answere")))
		if got := <-result; got != "answer, <nil>" {
			t.Error(got)
		}
	})
}

// A peer that does not read its stream is cut off; one message of any size may wait for it.
func TestSlowReader(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := run(t, n.socket(addrOf(1)), &node{}, Config{Accept: true, Limits: Limits{StreamQueue: 100_000}})
		defer b.stop()
		qc, stop := n.bare(2, b, Client)
		defer stop()
		s, _ := qc.OpenStream()
		s.Write([]byte(nudge))
		c := b.accepted()
		if err := c.Command("x", make([]byte, 9_000_000)); err != nil { // more than the stream's window of 6 MiB
			t.Fatal(err)
		}
		start := time.Now()
		time.Sleep(time.Minute)
		if err := b.end(c); err != nil {
			t.Fatalf("closed after one message: %v", err)
		}
		if err := c.Command("x", make([]byte, 200_000)); err != ErrClosed {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
		<-c.Done()
		if err := b.end(c); err != errSlow {
			t.Errorf("closed: %v", err)
		}
	})
}

// Limits on inbound connections: in all, of one network, in handshake; and Retry when there are many handshakes.
func TestConnectionLimits(t *testing.T) {
	inSim(t, func(t *testing.T, n *simNet) {
		b := run(t, n.socket(addrOf(1)), &node{}, Config{Accept: true, Limits: Limits{Connections: 5, PerIP: 2}})
		defer b.stop()
		port := uint16(1000)
		dial := func(ip int) (*node, error) {
			port++
			a := run(t, n.socket(netip.AddrPortFrom(addrOf(ip).Addr(), port)), &node{}, Config{})
			_, err := a.quic.Dial(ctxb, b.addr, b.secret.Public(), Client)
			return a, err
		}
		var nodes []*node
		for _, c := range []struct {
			ip int
			ok bool
		}{{10, true}, {10, true}, {10, false}, {11, true}, {11, true}, {12, true}, {12, false}, {13, false}} {
			a, err := dial(c.ip)
			nodes = append(nodes, a)
			if (err == nil) != c.ok {
				t.Errorf("%d: %v", c.ip, err)
			}
		}
		if s := b.quic.Stats(); s.Inbound != 5 || s.Refused != 3 || s.Handshakes != 0 {
			t.Errorf("%+v", s)
		}
		nodes[0].stop()
		time.Sleep(time.Second)
		a, err := dial(10)
		if err != nil {
			t.Errorf("place that became free: %v", err)
		}
		a.stop()
		for _, a := range nodes {
			a.stop()
		}

		shy := run(t, n.socket(addrOf(2)), &node{}, Config{Accept: true, Limits: Limits{Handshakes: 4}})
		defer shy.stop()
		n.lose(func(p simnet.Packet) bool { // these never get beyond their first packet
			to := addrPort(p.To)
			return addrPort(p.From) == shy.addr && (to == addrOf(20) || to == addrOf(21))
		})
		for i, c := range []struct {
			ok      bool
			shaking int
		}{{false, 1}, {false, 1}, {true, 1}} { // the second must prove its address: its packets cost nothing
			a := run(t, n.socket(addrOf(20+i)), &node{}, Config{})
			ctx, cancel := context.WithTimeout(ctxb, time.Second)
			_, err := a.quic.Dial(ctx, shy.addr, shy.secret.Public(), Client)
			cancel()
			if s := shy.quic.Stats(); (err == nil) != c.ok || s.Handshakes != c.shaking {
				t.Errorf("%d: %v, %+v", i, err, s)
			}
			a.stop()
		}
	})
}
