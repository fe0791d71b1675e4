package link

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"lokinetd/router/testkit"
)

func random(t testing.TB) *rand.Rand { return testkit.Rand(t).Rand }

// deframe feeds b in pieces whose sizes next chooses.
func deframe(b []byte, next func(left int) int) (msgs [][]byte, held int, err error) {
	var d deframer
	for len(b) > 0 && err == nil {
		n := min(next(len(b)), len(b))
		err = d.feed(b[:n], func(m []byte) error {
			msgs = append(msgs, m)
			return nil
		})
		b = b[n:]
	}
	return msgs, d.held(), err
}

func whole(left int) int { return left }
func bytewise(int) int   { return 1 }

// Protocol 2 section 5.2, worked examples; the last two are the opener of section 5.1 and the answer to an unknown type.
var messageVectors = []struct {
	wire string
	m    message
}{
	{"16:l1:Ci0e4:ping0:e", message{Type: typeRequest, ID: 0, Name: "ping"}},
	{"14:l1:Ri0e4:ponge", message{Type: typeReply, ID: 0, Body: []byte("pong")}},
	{"25:l1:Ci1e10:bfetch_rcs2:dee", message{Type: typeRequest, ID: 1, Name: "bfetch_rcs", Body: []byte("de")}},
	{"23:l1:Ei7e12:d1:!5:ERRORee", message{Type: typeError, ID: 7, Body: []byte("d1:!5:ERRORe")}},
	{"33:l1:Ei3e22:Invalid endpoint 'foo'e", message{Type: typeError, ID: 3, Body: []byte("Invalid endpoint 'foo'")}},
	{nudge, message{Type: typeReply, ID: -1}},
	{"30:l1:Ei0e19:Invalid endpoint ''e", message{Type: typeError, ID: 0, Body: unknownEndpoint("")}},
}

func sameMessage(a, b message) bool {
	return a.Type == b.Type && a.ID == b.ID && a.Name == b.Name && bytes.Equal(a.Body, b.Body)
}

func TestMessageVectors(t *testing.T) {
	for _, v := range messageVectors {
		enc, err := appendMessage([]byte("before"), &v.m)
		if err != nil || string(enc) != "before"+v.wire {
			t.Errorf("encode %v: %q, %v", v.m, enc, err)
		}
		for name, next := range map[string]func(int) int{"whole": whole, "byte by byte": bytewise} {
			msgs, _, err := deframe([]byte(v.wire), next)
			if err != nil || len(msgs) != 1 {
				t.Errorf("%s, %s: %d messages, %v", v.wire, name, len(msgs), err)
				continue
			}
			m, err := parseMessage(msgs[0])
			if err != nil || !sameMessage(m, v.m) {
				t.Errorf("%s: %v, %v", v.wire, m, err)
			}
			for i := range msgs[0] { // a cut at every byte
				if m, err := parseMessage(msgs[0][:i]); err == nil {
					t.Errorf("%s cut to %d bytes: %v", v.wire, i, m)
				}
			}
		}
	}
}

func TestParseMessage(t *testing.T) {
	for _, c := range []struct {
		in string
		m  message
		ok bool
	}{
		{"l1:Ci9223372036854775807e1:a1:be", message{typeRequest, math.MaxInt64, "a", []byte("b")}, true},
		{"l1:Ri-9223372036854775808e1:be", message{typeReply, math.MinInt64, "", []byte("b")}, true},
		{"l1:Ri9223372036854775808e1:be", message{}, false},
		{"l1:Xi5e1:be", message{typeOther, 5, "", []byte("b")}, true}, // any other type has a reply's form
		{"l0:i5e1:be", message{typeOther, 5, "", []byte("b")}, true},
		{"l2:CCi5e1:be", message{typeOther, 5, "", []byte("b")}, true},
		{"l1:ci5e1:be", message{typeOther, 5, "", []byte("b")}, true},
		{"l1:Xi5e1:a1:be", message{}, false},
		{"l1:Ci0e4:pinge", message{}, false},         // no body
		{"l1:Ci0e4:ping0:0:e", message{}, false},     // trailing element
		{"l1:Ri0e0:i1ee", message{}, false},          // trailing element
		{"l1:Ri0e0:eX", message{}, false},            // trailing byte
		{"li0e1:R0:e", message{}, false},             // wrong types
		{"l1:R1:00:e", message{}, false},             //
		{"l1:Ri0ei0ee", message{}, false},            //
		{"l1:Ri0elee", message{}, false},             //
		{"l1:Ri00e0:e", message{}, false},            // not the one encoding
		{"l1:Ri-0e0:e", message{}, false},            //
		{"l01:Ri0e0:e", message{}, false},            //
		{"le", message{}, false},                     //
		{"de", message{}, false},                     //
		{"d1:Ri0ee", message{}, false},               //
		{"", message{}, false},                       //
		{strings.Repeat("l", 100), message{}, false}, // deep
	} {
		m, err := parseMessage([]byte(c.in))
		if (err == nil) != c.ok || !sameMessage(m, c.m) {
			t.Errorf("%q: %v, %v", c.in, m, err)
		}
	}
}

func TestDeframer(t *testing.T) {
	for _, c := range []struct {
		in   string
		msgs []string
		err  error
	}{
		{"", nil, nil},
		{"3:abc1:d", []string{"abc", "d"}, nil},
		{"0:3:abc0:0:1:d0:", []string{"abc", "d"}, nil}, // empty messages are ignored, what follows is not
		{"10:0123456789", []string{"0123456789"}, nil},
		{"3:ab", nil, nil},
		{"12", nil, nil},
		{"01:a", nil, errPrefix},
		{"00:", nil, errPrefix},
		{":", nil, errPrefix},
		{"-1:", nil, errPrefix},
		{"+1:a", nil, errPrefix},
		{"1 :a", nil, errPrefix},
		{"1;", nil, errPrefix},
		{"x", nil, errPrefix},
		{"2:abx", []string{"ab"}, errPrefix},
		{"10000001:", nil, errLong},
		{"99999999999999999999999999:", nil, errLong},
		{"10000000:abc", nil, nil},
	} {
		for name, next := range map[string]func(int) int{"whole": whole, "byte by byte": bytewise} {
			got, held, err := deframe([]byte(c.in), next)
			var msgs []string
			for _, m := range got {
				msgs = append(msgs, string(m))
			}
			if fmt.Sprint(msgs) != fmt.Sprint(c.msgs) || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Errorf("%.40q, %s: %q, %v", c.in, name, msgs, err)
			}
			if held > 2*len(c.in) {
				t.Errorf("%.40q, %s: holds %d bytes", c.in, name, held)
			}
		}
	}
}

// The largest messages that may be read and written, and the first that may not.
func TestMessageBounds(t *testing.T) {
	m := message{Type: typeReply, Body: make([]byte, MaxMessage-len("9999980:l1:Ri0e9999980:e"))}
	enc, err := appendMessage(nil, &m)
	if err != nil || len(enc) != MaxMessage {
		t.Fatalf("%d bytes, %v", len(enc), err)
	}
	r := random(t)
	msgs, _, err := deframe(enc, func(int) int { return 1 + r.IntN(100_000) })
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%d messages, %v", len(msgs), err)
	}
	if got, err := parseMessage(msgs[0]); err != nil || !sameMessage(got, m) {
		t.Errorf("parse: %v", err)
	}
	m.Body = append(m.Body, 0)
	if enc, err := appendMessage([]byte("x"), &m); err != ErrTooLarge || string(enc) != "x" {
		t.Errorf("%d bytes, %v", len(enc), err)
	}
	if msgs, _, err := deframe(append([]byte("10000000:"), make([]byte, MaxMessage)...), whole); err != nil || len(msgs) != 1 {
		t.Errorf("prefix of exactly the bound: %d messages, %v", len(msgs), err)
	}
}

// Memory follows what has arrived, not what was announced.
func TestDeframerMemory(t *testing.T) {
	var d deframer
	stream := append([]byte("9999999:"), make([]byte, 1<<20)...)
	for i := 0; i < len(stream); i += 1000 {
		b := stream[i:min(i+1000, len(stream))]
		if err := d.feed(b, nil); err != nil {
			t.Fatal(err)
		}
		if arrived := i + len(b); d.held() > 2*arrived {
			t.Fatalf("%d bytes arrived, %d held", arrived, d.held())
		}
	}
}

func TestDeframerStops(t *testing.T) {
	var d deframer
	stop := errors.New("stop")
	n := 0
	if err := d.feed([]byte("1:a1:b1:c"), func([]byte) error { n++; return stop }); err != stop || n != 1 {
		t.Errorf("%v after %d messages", err, n)
	}
}

// FuzzDeframer: whatever a peer sends on stream 0, the deframer neither panics nor holds more than twice what came, and the messages do not depend on where the
// reads end. cuts chooses the ends.
//
// Decoders: deframer.feed deframer.grow deframer.held
func FuzzDeframer(f *testing.F) {
	for _, v := range messageVectors {
		f.Add([]byte(v.wire+"0:"+v.wire), uint64(1))
	}
	f.Add([]byte("10000000:abc"), uint64(2))
	f.Add([]byte("01:a"), uint64(3))
	f.Fuzz(func(t *testing.T, b []byte, cuts uint64) {
		r := rand.New(rand.NewPCG(cuts, 0))
		one, _, err1 := deframe(b, whole)
		two, held, err2 := deframe(b, func(int) int { return 1 + r.IntN(10) })
		if (err1 == nil) != (err2 == nil) || fmt.Sprintf("%q", one) != fmt.Sprintf("%q", two) {
			t.Errorf("whole: %q, %v; in pieces: %q, %v", one, err1, two, err2)
		}
		if held > 2*len(b) {
			t.Errorf("%d bytes held for %d", held, len(b))
		}
	})
}

// FuzzMessage: a message of a hostile peer never panics; what is accepted is written again as the same bytes, except that the name of an unknown type is lost.
//
// Decoders: parseMessage
func FuzzMessage(f *testing.F) {
	for _, v := range messageVectors {
		_, list, _ := strings.Cut(v.wire, ":")
		f.Add([]byte(list))
	}
	f.Add([]byte("l1:Xi5e1:be"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err != nil || m.Type == typeOther {
			return
		}
		enc, err := appendMessage(nil, &m)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("%d:%s", len(b), b); string(enc) != want {
			t.Errorf("%q written as %q", want, enc)
		}
	})
}
