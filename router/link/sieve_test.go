package link

import (
	"bytes"
	"net"
	"testing"
	"time"
)

// The kernel's filter drops most first packets of handshakes without a token, and nothing else.
func TestSieve(t *testing.T) {
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	raiseBuffers(u)
	from, err := net.DialUDP("udp4", nil, u.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	initial := func(token byte) []byte {
		p := append([]byte{0xc3, 0, 0, 0, 1, 18}, make([]byte, 18)...)
		p = append(append(p, 5), 1, 2, 3, 4, 5)
		return append(append(p, token), make([]byte, 100)...)
	}
	// count says how many of a hundred come, if not all do: of those before the last of the packets that always come.
	end := append([]byte{0x43, 9}, make([]byte, 100)...)
	count := func(p []byte, all bool) (n int) {
		for range 100 {
			from.Write(p)
		}
		if !all {
			from.Write(end)
		}
		buf := make([]byte, 1500)
		u.SetReadDeadline(time.Now().Add(20 * time.Second))
		for n < 100 {
			k, err := u.Read(buf)
			if err != nil {
				t.Error(err)
			}
			if err != nil || bytes.Equal(buf[:k], end) {
				break
			}
			n++
		}
		return n
	}
	for _, on := range []bool{true, false} {
		if err := setSieve(u, on); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name   string
			packet []byte
			all    bool
		}{
			{"a first packet", initial(0), !on},
			{"one with a token", initial(7), true},
			{"a handshake packet", append([]byte{0xe3}, initial(0)[1:]...), true},
			{"a short header", append([]byte{0x43}, initial(0)[1:]...), true},
			{"a byte", []byte{0x40}, true},
		} {
			if n := count(c.packet, c.all); c.all && n != 100 || !c.all && n > 60 { // 12.5 of 100 on average: more than 60 come once in 10^29 times
				t.Errorf("filter %v: %s: %d of 100 came", on, c.name, n)
			}
		}
	}
}

// The filter comes with a flood and goes after it.
func TestSiever(t *testing.T) {
	var s siever
	dropped := uint64(0)
	for i, c := range []struct {
		looks int
		each  uint64
		on    bool
	}{{100, 1500, false}, {1, 2100, true}, {50, 1500, true}, {9, 0, true}, {1, 100, true}, {9, 20, true}, {1, 20, false}, {10, 500, false}} {
		for range c.looks {
			dropped += c.each
			s.look(dropped)
		}
		if s.on != c.on {
			t.Errorf("%d: filter %v", i, s.on)
		}
	}
}
