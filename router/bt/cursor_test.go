package bt

import (
	"encoding/hex"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"

	"lokinetd/router/testkit"
)

// script decides what is asked of cursors, a byte at a time; behind its end it is zeros.
type script []byte

func (s *script) next() int {
	if len(*s) == 0 {
		return 0
	}
	c := (*s)[0]
	*s = (*s)[1:]
	return int(c)
}

// The kinds of values that are asked for.
const (
	askBytes = iota
	askFixed
	askInt
	askUint
	askRaw
	askList
	askDict
	askKinds
)

var limits = []uint64{0, 1, 9, 255, math.MaxInt64, math.MaxUint64}

// expect is the slow reader's answer: the value as text, and whether v is what is asked for.
func expect(v any, kind, n int, max uint64) (string, bool) {
	switch v := v.(type) {
	case string:
		if kind == askBytes || kind == askFixed && len(v) == n {
			return v, true
		}
	case *big.Int:
		if kind == askInt && v.IsInt64() || kind == askUint && v.IsUint64() && v.Uint64() <= max {
			return v.String(), true
		}
	case []any:
		if kind == askList {
			return "", true
		}
	case []entry:
		if kind == askDict {
			return "", true
		}
	}
	if kind == askRaw {
		return string(write(nil, v)), true
	}
	return "", false
}

// driver asks cursors what the script says, and compares with the slow reader's tree.
type driver struct {
	*testing.T
	script script
}

// number is what an integer method gave, as text: nothing beside an error.
func number[N int64 | uint64](t *testing.T, v N, ok bool) string {
	if !ok {
		if v != 0 {
			t.Errorf("%d beside an error", v)
		}
		return ""
	}
	if v < 0 {
		return big.NewInt(int64(v)).String()
	}
	return new(big.Int).SetUint64(uint64(v)).String()
}

func (t *driver) bytes(v []byte, ok bool) string {
	if (v != nil) != ok || cap(v) != len(v) {
		t.Errorf("%q with %d bytes behind it, %v", v, cap(v)-len(v), ok)
	}
	return string(v)
}

// dict asks a cursor over b, of which tree is the value.
func (t *driver) dict(d *Dict, b []byte, tree []entry) {
	dead, asked := false, ""
	for first := true; len(t.script) > 0; first = false {
		// Of the keys that may still be asked: one of the next, or one that is not there.
		op, k := t.script.next(), asked+"\x00"
		if first {
			k = ""
		}
		left := slices.DeleteFunc(slices.Clone(tree), func(e entry) bool { return !first && e.key <= asked })
		if op%16 == 15 {
			break
		}
		if op&3 != 3 && len(left) > 0 {
			k = left[min(op&3, len(left)-1)].key
		}
		asked = k
		at := slices.IndexFunc(tree, func(e entry) bool { return e.key == k })
		arg := t.script.next()
		kind, required := arg%askKinds, arg&64 != 0
		n, max := t.script.next()%70, limits[arg/8%len(limits)]
		if at >= 0 && arg&128 != 0 { // mostly what is there
			switch v := tree[at].value.(type) {
			case string:
				kind, n = kind%2, len(v)
			case *big.Int:
				kind = askInt + kind%2
			case []any:
				kind = askList
			case []entry:
				kind = askDict
			}
		}
		if kind == askFixed && n == 64 && required {
			signed, sig := d.Signature(k)
			var want, wantSigned string
			if at >= 0 && !dead {
				if s, ok := expect(tree[at].value, askFixed, 64, 0); ok {
					want = s
					whole := write(nil, tree[:at])
					wantSigned = string(whole[:len(whole)-1])
				}
			}
			dead = dead || want == ""
			if string(sig) != want || string(signed) != wantSigned || (d.Err() != nil) != dead {
				t.Fatalf("%q: signature %q: %q over %q, %v", b, k, sig, signed, d.Err())
			}
			continue
		}
		want, ok := "", false
		if at >= 0 && !dead {
			want, ok = expect(tree[at].value, kind, n, max)
		}
		dead = dead || !ok && (at >= 0 || required)

		var got string
		var found bool
		check := func(v []byte) { got = t.bytes(v, found) }
		switch {
		case kind == askBytes && required:
			v := d.Bytes(k)
			found = d.Err() == nil
			check(v)
		case kind == askBytes:
			var v []byte
			v, found = d.OptBytes(k)
			check(v)
		case kind == askFixed && required:
			v := d.Fixed(k, n)
			found = d.Err() == nil
			check(v)
		case kind == askFixed:
			var v []byte
			v, found = d.OptFixed(k, n)
			check(v)
		case kind == askRaw && required:
			v := d.Raw(k)
			found = d.Err() == nil
			check(v)
		case kind == askRaw:
			var v []byte
			v, found = d.OptRaw(k)
			check(v)
		case kind == askInt && required:
			v := d.Int(k)
			found = d.Err() == nil
			got = number(t.T, v, found)
		case kind == askInt:
			var v int64
			v, found = d.OptInt(k)
			got = number(t.T, v, found)
		case kind == askUint && required:
			v := d.Uint(k, max)
			found = d.Err() == nil
			got = number(t.T, v, found)
		case kind == askUint:
			var v uint64
			v, found = d.OptUint(k, max)
			got = number(t.T, v, found)
		case kind == askList:
			var l List
			if required {
				l = d.List(k)
				found = d.Err() == nil
			} else {
				l, found = d.OptList(k)
			}
			switch {
			case found && ok:
				t.list(&l, tree[at].value.([]any))
			case l.Next(), (l.Finish() == nil) == dead:
				t.Fatalf("%q: no list under %q: %v", b, k, l.Err())
			}
		default:
			var in Dict
			if required {
				in = d.Dict(k)
				found = d.Err() == nil
			} else {
				in, found = d.OptDict(k)
			}
			switch {
			case found && ok:
				t.dict(&in, write(nil, tree[at].value), tree[at].value.([]entry))
			case (in.Finish() == nil) == dead:
				t.Fatalf("%q: no dict under %q: %v", b, k, in.Err())
			}
		}
		if got != want || found != ok || (d.Err() != nil) != dead {
			t.Fatalf("%q: key %q kind %d required %v: %q %v %v, want %q %v", b, k, kind, required, got, found, d.Err(), want, ok)
		}
		if dead {
			continue
		}
		if at >= 0 && string(write(nil, tree[:at+1])) != string(b[:d.Offset()])+"e" {
			t.Fatalf("%q: offset %d behind %q", b, d.Offset(), k)
		}
	}
	if err := d.Finish(); (err != nil) != dead || err != d.Err() {
		t.Fatalf("%q: %v", b, err)
	}
}

func (t *driver) list(l *List, tree []any) {
	dead, peeked, left := false, false, tree
	for len(t.script) > 0 {
		op := t.script.next()
		if op%16 == 15 {
			break
		}
		if op&3 == 3 {
			if peeked && !dead {
				left = left[1:]
			}
			peeked = len(left) > 0 && !dead
			if got := l.Next(); got != peeked {
				t.Fatalf("%v: Next is %v: %v", left, got, l.Err())
			}
			continue
		}
		arg := t.script.next()
		kind, n, max := arg%askKinds, t.script.next()%70, limits[arg/8%len(limits)]
		var v any
		if len(left) > 0 {
			v = left[0]
			switch w := v.(type) {
			case string:
				if arg&128 != 0 {
					kind, n = kind%2, len(w)
				}
			case *big.Int:
				if arg&128 != 0 {
					kind = askInt + kind%2
				}
			}
		}
		want, ok := "", false
		if len(left) > 0 && !dead {
			want, ok = expect(v, kind, n, max)
		}
		dead, peeked = dead || !ok, false
		if ok {
			left = left[1:]
		}
		var got string
		switch kind {
		case askBytes:
			b := l.Bytes()
			got = t.bytes(b, l.Err() == nil)
		case askFixed:
			b := l.Fixed(n)
			got = t.bytes(b, l.Err() == nil)
		case askRaw:
			b := l.Raw()
			got = t.bytes(b, l.Err() == nil)
		case askInt:
			i := l.Int()
			got = number(t.T, i, l.Err() == nil)
		case askUint:
			u := l.Uint(max)
			if l.Err() == nil {
				got = number(t.T, u, true)
			}
		case askList:
			in := l.List()
			if ok && l.Err() == nil {
				t.list(&in, v.([]any))
			} else if in.Finish() == nil {
				t.Fatal("no list, and no error")
			}
		case askDict:
			in := l.Dict()
			if ok && l.Err() == nil {
				t.dict(&in, write(nil, v), v.([]entry))
			} else if in.Finish() == nil {
				t.Fatal("no dict, and no error")
			}
		}
		if got != want || (l.Err() != nil) != dead {
			t.Fatalf("%v: kind %d: %q %v, want %q %v", left, kind, got, l.Err(), want, ok)
		}
	}
	if err := l.Finish(); (err != nil) != dead || err != l.Err() {
		t.Fatalf("%v: %v", tree, err)
	}
}

// Threat: a remote knows what a decoder asks of its message and in which order, and sends one for which the cursor answers another question: a value of the next key,
// one that is out of range, one that is not there. The slow reader has the whole tree and looks everything up in it.
//
// Decoders: ParseUint Dict.next Dict.pass Dict.find Dict.OptBytes Dict.Bytes Dict.OptFixed Dict.Fixed Dict.require Dict.integer Dict.OptInt Dict.Int Dict.OptUint
// Decoders: Dict.Uint Dict.OptRaw Dict.Raw Dict.nested Dict.OptList Dict.List Dict.OptDict Dict.Dict Dict.Signature Dict.Offset List.Next List.value List.Raw
// Decoders: List.Bytes List.Fixed List.integer List.Int List.Uint List.List List.Dict List.nested
func FuzzCursor(f *testing.F) {
	r := testkit.Seeded(1)
	add := func(b []byte) {
		f.Add(b, []byte{})
		for range 8 {
			f.Add(b, r.Bytes(60))
		}
	}
	for _, v := range vectors {
		b, _ := hex.DecodeString(v.hex)
		add(b)
	}
	for _, c := range grammar {
		if len(c.in) < 1000 {
			add([]byte(c.in))
			add([]byte("d1:a" + c.in + "1:zle1:~64:" + strings.Repeat("s", 64) + "e"))
			add([]byte("l" + c.in + "i18446744073709551615e2:abde"))
			add([]byte("ld1:a" + c.in + "eli-5e" + c.in + "ee"))
		}
	}
	f.Fuzz(func(t *testing.T, b, s []byte) {
		if len(b) > 1<<12 || len(s) > 1<<10 {
			return
		}
		if v, ok := ParseUint(b); ok != (string(AppendUint(nil, v)) == string(b)) {
			t.Fatalf("ParseUint(%q) = %d, %v", b, v, ok)
		}
		tree, rest, err := reference(string(b), 0)
		if err == nil && rest == "" {
			d := &driver{t, s}
			switch tree := tree.(type) {
			case []entry:
				c := ReadDict(b)
				d.dict(&c, b, tree)
				return
			case []any:
				c := ReadList(b)
				d.list(&c, tree)
				return
			}
		}
		// Anything else ends in an error at the latest when it is finished, whatever was asked before.
		q := script(s)
		d, l := ReadDict(b), ReadList(b)
		for c := q.next() % 120; len(q) > 0 && c < 256; c += 1 + q.next()%8 { // keys of one byte, ascending; the first may be the empty one
			k := string([]byte{byte(c)}[:min(c, 1)])
			switch n := q.next() % 8; n {
			case 0:
				d.OptBytes(k)
				l.Bytes()
			case 1:
				d.Fixed(k, n)
				l.Fixed(n)
			case 2:
				d.OptInt(k)
				l.Int()
			case 3:
				d.OptUint(k, 9)
				l.Uint(9)
			case 4:
				d.OptRaw(k)
				l.Next()
			case 5:
				d.OptList(k)
				l.List()
			case 6:
				d.OptDict(k)
				l.Dict()
			case 7:
				d.Signature(k)
				l.Raw()
			}
		}
		if d.Finish() == nil || l.Finish() == nil {
			t.Fatalf("%q is read as a whole dict or list", b)
		}
	})
}
