package oxend

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// hello is what libzmq 4.3.4's ROUTER says to a DEALER that sends HI: greeting, READY, PING with a context, HELLO; then a long frame, a message of three parts and a
// command of a later version. Greeting and READY were recorded; the rest follows RFC 37.
var hello = unhex("ff00000000000000017f03014e554c4c" + strings.Repeat("00", 48) +
	"0429055245414459" + "0b536f636b65742d5479706500000006524f55544552" + "084964656e7469747900000000" +
	"040a0450494e470064" + "616263" +
	"000548454c4c4f" +
	"0200000000000000036c6f6e" +
	"0101610100000162" +
	"0409084c41544552434f4d" +
	"000178")

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// heard gives the events of b, fed in pieces of the given size, as text, and the error that ended them.
func heard(b []byte, piece int) (events []string, err error) {
	var p peer
	for part := range slices.Chunk(b, piece) {
		p.feed(part)
		for {
			e, ok, err := p.next()
			if err != nil {
				return events, err
			}
			if !ok {
				break
			}
			events = append(events, e.String())
		}
	}
	return events, nil
}

func (e event) String() string {
	switch {
	case e.greeted:
		return "greeted"
	case e.ready:
		return "ready"
	case e.ping:
		return fmt.Sprintf("ping %q", e.context)
	}
	return fmt.Sprintf("%q", e.message)
}

func TestPeer(t *testing.T) {
	want := []string{"greeted", "ready", `ping "abc"`, `["HELLO"]`, `["lon"]`, `["a" "" "b"]`, `["x"]`}
	for piece := 1; piece <= len(hello); piece++ {
		if got, err := heard(hello, piece); err != nil || !slices.Equal(got, want) {
			t.Fatalf("pieces of %d: %v, %v", piece, got, err)
		}
	}
	for n := range hello { // every beginning is one
		got, err := heard(hello[:n], n+1)
		if err != nil || !slices.Equal(got, want[:len(got)]) {
			t.Fatalf("the first %d bytes: %v, %v", n, got, err)
		}
	}
}

func TestPeerRefused(t *testing.T) {
	at := func(i int, b ...byte) []byte { return slices.Replace(bytes.Clone(hello), i, i+len(b), b...) }
	ready := hello[:64+43]
	after := func(b ...byte) []byte { return append(bytes.Clone(ready), b...) }
	long := func(flags byte, size uint64) []byte {
		return binary.BigEndian.AppendUint64(after(flags|flagLong), size)
	}
	for _, x := range []struct {
		name, want string
		b          []byte
	}{
		{"signature", "does not speak", at(0, 0xfe)},
		{"end of signature", "does not speak", at(9, 0x7e)},
		{"version 2", "version 2", at(10, 2)},
		{"CURVE", "CURVE", at(12, []byte("CURVE")...)},
		{"a DEALER", "DEALER", at(88, []byte("DEALER")...)},
		{"no type", "what it is", append(bytes.Clone(hello[:64]), appendCommand(nil, "READY", appendProperty(nil, "Identity", "x"))...)},
		{"property cut off", "what it is", append(bytes.Clone(hello[:64]), appendCommand(nil, "READY", []byte("\x0bSocket-Type\x00\x00\x00\x07ROUTER"))...)},
		{"ERROR", `"Access denied"`, append(bytes.Clone(hello[:64]), appendCommand(nil, "ERROR", []byte("\x0dAccess denied"))...)},
		{"another command first", "in the handshake", append(bytes.Clone(hello[:64]), appendCommand(nil, "PING", []byte("\x00\x00"))...)},
		{"a message first", "before the handshake", append(bytes.Clone(hello[:64]), 0, 1, 'x')},
		{"reserved flags", "flags", after(8, 1, 'x')},
		{"command with more", "flags", after(flagCommand|flagMore, 1, 'x')},
		{"command in a message", "inside", after(flagMore, 1, 'a', flagCommand, 2, 1, 'x')},
		{"command without a name", "without a name", after(flagCommand, 2, 5, 'x')},
		{"command without anything", "without a name", after(flagCommand, 0)},
		{"PING without a time", "PING", after(appendCommand(nil, "PING", []byte{0})...)},
		{"PING too long", "PING", after(appendCommand(nil, "PING", make([]byte, 19))...)},
		{"frame too long", "too long", long(0, maxMessage+1)},
		{"frame of 2^64-1", "too long", long(0, 1<<64-1)},
		{"command too long", "too long", long(flagCommand, maxCommand+1)},
		{"message too long", "too long", append(after(flagMore, 1, 'a'), binary.BigEndian.AppendUint64([]byte{flagLong}, maxMessage)...)},
		{"too many parts", "too long", after(bytes.Repeat([]byte{flagMore, 0}, maxParts+1)...)},
	} {
		if got, err := heard(x.b, len(x.b)); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, %v", x.name, got, err)
		}
	}
	if _, err := heard(long(0, maxMessage), 64); err != nil {
		t.Error("a frame as long as allowed:", err)
	}
}

// TestOurs: what we send, byte by byte (RFC 37).
func TestOurs(t *testing.T) {
	for _, x := range []struct{ name, got, want string }{
		{"greeting", string(appendGreeting(nil)), "\xff\x00\x00\x00\x00\x00\x00\x00\x00\x7f\x03\x01NULL" + strings.Repeat("\x00", 48)},
		{"READY", string(appendReady(nil)), "\x04\x29\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"},
		{"PONG", string(appendCommand(nil, "PONG", []byte("abc"))), "\x04\x08\x04PONGabc"},
		{"message", string(appendMessage(nil, []byte("a"), nil, []byte("bc"))), "\x01\x01a\x01\x00\x00\x02bc"},
		{"255 bytes", string(appendMessage(nil, make([]byte, 255)))[:3], "\x00\xff\x00"},
		{"256 bytes", string(appendMessage(nil, make([]byte, 256)))[:10], "\x02\x00\x00\x00\x00\x00\x00\x01\x00\x00"},
	} {
		if x.got != x.want {
			t.Errorf("%s: %q, want %q", x.name, x.got, x.want)
		}
	}
}

// FuzzPeer: an oxend that has gone mad, or is none, must not make the relay fail, take memory or differ by how its bytes are cut; messages are a fixed point.
//
// Decoders: checkGreeting parseFrame peer.feed peer.next peer.cut peer.command checkReady conn.message conn.settle refusal
func FuzzPeer(f *testing.F) {
	f.Add(hello, 7)
	f.Add(hello[64:], 1)
	for _, m := range [][]string{{"REPLY", "\x00\x00\x00\x00\x00\x00\x00\x07", "200"}, {"REPLY", "7"}, {"REPLY", "\x00\x00\x00\x00\x00\x00\x00\x06"}, {"FORBIDDEN", "REPLY", "\x00\x00\x00\x00\x00\x00\x00\x07"}, {"notify.block", "5", "hash"}, {"other"}} {
		var parts [][]byte
		for _, s := range m {
			parts = append(parts, []byte(s))
		}
		f.Add(appendMessage(nil, parts...), 3)
	}
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		piece = 1 + int(uint(piece)%100)
		whole, err := heard(b, len(b)+1)
		if got, err2 := heard(b, piece); !slices.Equal(got, whole) || (err == nil) != (err2 == nil) {
			t.Fatalf("pieces of %d: %v, %v; whole: %v, %v", piece, got, err2, whole, err)
		}
		wait := &waiter{command: "x", done: make(chan struct{})}
		k := conn{block: func() {}, waiting: map[uint64]*waiter{7: wait}}
		p := peer{greeted: true, ready: true}
		p.feed(b)
		for {
			e, ok, err := p.next()
			if !ok || err != nil {
				return
			}
			if e.message == nil {
				continue
			}
			waiting := len(k.waiting)
			if k.message(e.message); len(k.waiting) < waiting && wait.err == nil && !bytes.Equal(e.message[1], []byte("\x00\x00\x00\x00\x00\x00\x00\x07")) {
				t.Fatalf("%q is the reply", e.message)
			}
			q := peer{greeted: true, ready: true}
			q.feed(appendMessage(nil, e.message...))
			again, ok, err := q.next()
			if !ok || err != nil || !slices.EqualFunc(again.message, e.message, bytes.Equal) || len(q.buf) > 0 {
				t.Fatalf("%q becomes %q, %v", e.message, again.message, err)
			}
		}
	})
}
