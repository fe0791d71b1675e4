package bt

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"
)

// reference is a deliberately simple reader: it allocates, copies and uses big integers. It returns the value as string, *big.Int, []any or
// []entry, and what follows.
func reference(s string, depth int) (v any, rest string, err error) {
	bad := errors.New("reference: malformed")
	number := func(digits string) (*big.Int, bool) {
		for _, c := range digits {
			if !strings.ContainsRune("0123456789", c) {
				return nil, false
			}
		}
		if digits == "" || digits != "0" && digits[0] == '0' {
			return nil, false
		}
		return new(big.Int).SetString(digits, 10)
	}
	if s == "" {
		return nil, "", bad
	}
	switch s[0] {
	case 'i':
		text, rest, found := strings.Cut(s[1:], "e")
		digits, neg := strings.CutPrefix(text, "-")
		n, ok := number(digits)
		if !found || !ok || neg && n.Sign() == 0 {
			return nil, "", bad
		}
		if neg {
			n.Neg(n)
		}
		if !n.IsInt64() && !n.IsUint64() {
			return nil, "", bad
		}
		return n, rest, nil
	case 'l':
		list := []any{}
		for s = s[1:]; !strings.HasPrefix(s, "e"); {
			if v, s, err = reference(s, depth+1); err != nil {
				return nil, "", err
			}
			list = append(list, v)
		}
		if depth >= MaxDepth {
			return nil, "", bad
		}
		return list, s[1:], nil
	case 'd':
		dict := []entry{}
		for s = s[1:]; !strings.HasPrefix(s, "e"); {
			if v, s, err = reference(s, depth+1); err != nil {
				return nil, "", err
			}
			key, ok := v.(string)
			if !ok || len(dict) > 0 && dict[len(dict)-1].key >= key {
				return nil, "", bad
			}
			if v, s, err = reference(s, depth+1); err != nil {
				return nil, "", err
			}
			dict = append(dict, entry{key, v})
		}
		if depth >= MaxDepth {
			return nil, "", bad
		}
		return dict, s[1:], nil
	default:
		digits, rest, found := strings.Cut(s, ":")
		n, ok := number(digits)
		if !found || !ok || n.Cmp(big.NewInt(int64(len(rest)))) > 0 {
			return nil, "", bad
		}
		return rest[:n.Int64()], rest[n.Int64():], nil
	}
}

type entry struct {
	key   string
	value any
}

// write is the other direction, with the package's writer.
func write(dst []byte, v any) []byte {
	switch v := v.(type) {
	case string:
		return AppendString(dst, v)
	case *big.Int:
		if v.IsInt64() {
			return AppendInt(dst, v.Int64())
		}
		return AppendUint(dst, v.Uint64())
	case []any:
		dst = append(dst, 'l')
		for _, x := range v {
			dst = write(dst, x)
		}
		return append(dst, 'e')
	case []entry:
		b := NewDict(dst)
		for _, e := range v {
			switch v := e.value.(type) {
			case string:
				if len(v)%2 == 0 {
					b.String(e.key, v)
				} else {
					b.Bytes(e.key, []byte(v))
				}
			case *big.Int:
				if v.IsInt64() {
					b.Int(e.key, v.Int64())
				} else {
					b.Uint(e.key, v.Uint64())
				}
			default:
				b.Raw(e.key, write(nil, v))
			}
			if string(b.Prefix()) != string(b.b[len(dst):]) {
				panic("the prefix is not all of the dict")
			}
		}
		return b.End()
	}
	panic("not a value")
}

// compare reads b with the cursors and requires what the reference found.
func compare(t *testing.T, b []byte, want any) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%q: %v", b, err)
		}
	}
	equal := func(got, want any) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%q: got %v, want %v", b, got, want)
		}
	}
	switch want := want.(type) {
	case []any:
		l := ReadList(b)
		skipped := ReadList(b)
		for _, w := range want {
			if !l.Next() || !skipped.Next() {
				t.Fatalf("%q: list ends early: %v", b, l.Err())
			}
			switch w := w.(type) {
			case string:
				equal(string(l.Bytes()), w)
			case *big.Int:
				if w.IsInt64() {
					equal(l.Int(), w)
				} else {
					equal(l.Uint(math.MaxUint64), w)
				}
			default:
				compare(t, l.Raw(), w)
			}
		}
		check(l.Finish())
		check(skipped.Finish())
	case []entry:
		d, raw := ReadDict(b), ReadDict(b)
		for _, e := range want {
			if _, ok := d.OptRaw(e.key + "\x00"); ok && !slices.ContainsFunc(want, func(o entry) bool { return o.key == e.key+"\x00" }) {
				t.Fatalf("%q: found a key that is not there", b)
			}
			compare(t, raw.Raw(e.key), e.value)
		}
		check(d.Finish())
		check(raw.Finish())
		d = ReadDict(b)
		for _, e := range want {
			switch w := e.value.(type) {
			case string:
				equal(string(d.Fixed(e.key, len(w))), w)
			case *big.Int:
				if w.IsInt64() {
					equal(d.Int(e.key), w)
				} else {
					equal(d.Uint(e.key, math.MaxUint64), w)
				}
			case []any:
				l := d.List(e.key)
				check(l.Finish())
			case []entry:
				n := d.Dict(e.key)
				check(n.Finish())
			}
		}
		check(d.Finish())
	}
}

// Threat: every message of every remote passes here first. A reader that accepts two spellings of one message, reads past its end, recurses
// without bound or disagrees with a plain reading of the grammar opens all decoders above it.
//
// Decoders: Valid skip str integer signed64 ReadDict ReadList Dict.Finish Dict.FinishPrefix List.Finish
func FuzzReader(f *testing.F) {
	for _, v := range vectors {
		b, _ := hex.DecodeString(v.hex)
		f.Add(b)
	}
	for _, c := range grammar {
		f.Add([]byte(c.in))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		before := bytes.Clone(b)
		want, rest, refErr := reference(string(b), 0)
		n, err := Valid(b)
		if (err == nil) != (refErr == nil) {
			t.Fatalf("%q: got %v, reference %v", b, err, refErr)
		}
		if err == nil {
			if n != len(b)-len(rest) {
				t.Fatalf("%q: length %d, reference leaves %q", b, n, rest)
			}
			if again := write(nil, want); !bytes.Equal(again, b[:n]) {
				t.Fatalf("%q written again as %q", b[:n], again)
			}
			compare(t, b[:n], want)
		}
		d := ReadDict(b)
		tail, derr := d.FinishPrefix()
		if _, isDict := want.([]entry); (derr == nil) != (err == nil && isDict) || derr == nil && string(tail) != rest {
			t.Fatalf("%q: dict %v, rest %q", b, derr, tail)
		}
		l := ReadList(b)
		if _, isList := want.([]any); (l.Finish() == nil) != (err == nil && isList && rest == "") {
			t.Fatalf("%q: list %v", b, l.Err())
		}
		// Asking for anything at all ends in an error or a value, never a panic.
		d = ReadDict(b)
		d.OptInt("")
		d.OptBytes("a")
		d.OptUint("b", 7)
		d.OptList("c")
		d.OptDict("d")
		d.Signature("~")
		d.Finish()
		if !bytes.Equal(b, before) {
			t.Fatal("the reader wrote to its input")
		}
	})
}

// grammar: protocol 1 section 1.1, with the strictness that section 1.3 allows.
var grammar = []struct {
	in string
	n  int // length of the value, 0 when malformed
}{
	{"0:", 2}, {"3:abc", 5}, {"3:abcdef", 5}, {"10:0123456789", 13},
	{"3:ab", 0}, {"03:abc", 0}, {"00:", 0}, {":", 0}, {":a", 0}, {"-1:a", 0}, {"+1:a", 0}, {"1", 0}, {"1a:", 0}, {"", 0}, {"x", 0}, {"e", 0},
	{"18446744073709551616:", 0}, {"18446744073709551617:a", 0}, {"9223372036854775808:", 0}, {"4294967297:a", 0},
	{"i0e", 3}, {"i1e", 3}, {"i-1e", 4}, {"i9223372036854775807e", 21}, {"i-9223372036854775808e", 22}, {"i18446744073709551615e", 22},
	{"i-9223372036854775809e", 0}, {"i18446744073709551616e", 0}, {"i184467440737095516150e", 0}, {"i-18446744073709551615e", 0},
	{"ie", 0}, {"i-e", 0}, {"i-0e", 0}, {"i00e", 0}, {"i01e", 0}, {"i-01e", 0}, {"i+1e", 0}, {"i 1e", 0}, {"i1", 0}, {"i", 0}, {"i1.5e", 0}, {"i--1e", 0},
	{"le", 2}, {"l0:e", 4}, {"li1e1:ae", 8}, {"llelee", 6}, {"l", 0}, {"lx", 0}, {"l1:", 0},
	{"de", 2}, {"d0:0:e", 6}, {"d0:i1e1:ai2e2:aai3e1:bi4ee", 26}, {"d1:ale1:bdee", 12}, {"d1:\x00le1:\xffdee", 12},
	{"d", 0}, {"d1:ae", 0}, {"d1:a", 0}, {"di1ei1ee", 0}, {"dlelee", 0}, {"d1:ai1e1:ai2ee", 0}, {"d1:bi1e1:ai2ee", 0}, {"d2:aai1e1:ai2ee", 0},
	{"d0:i1e0:i1ee", 0}, {"d1:xld1:bi1e1:ai1eeee", 0}, {"d1:\xffle1:\x7fdee", 0},
	{strings.Repeat("l", MaxDepth) + strings.Repeat("e", MaxDepth), 2 * MaxDepth},
	{strings.Repeat("l", MaxDepth+1) + strings.Repeat("e", MaxDepth+1), 0},
	{strings.Repeat("d0:", MaxDepth) + "le" + strings.Repeat("e", MaxDepth), 0},
	{strings.Repeat("d0:", MaxDepth) + "0:" + strings.Repeat("e", MaxDepth), 4*MaxDepth + 2},
	{strings.Repeat("l", 1<<20), 0},
	{"de0:", 2}, {"leX", 2}, {"d1:ai1eei2e", 8}, {"d1:ai9223372036854775808ee", 26},
	// Bodies spelled out in the documents.
	{"d1:!2:OKe", 9}, {"d1:!7:TIMEOUTe", 14}, {"d1:!5:ERRORe", 12}, {"d1:!9:NOT FOUNDe", 16}, {"d1:!10:SLOW CLOCKe", 18}, // protocol 2 section 5.4
	{"d1:!17:No RCs available!e", 25}, {"d1:rlee", 7}, // protocol 2 sections 7.6 and 7.3
	{"d1:e9:path_ping1:p0:e", 21},                                                                 // protocol 3 section 4.3
	{"d1:e11:path_switch1:p24:d1:p16:0123456789abcdefee", 49}, {"d1:e13:session_close1:p0:e", 26}, // protocol 4 sections 3.6 and 4
	{"16:l1:Ci0e4:ping0:e", 19}, {"14:l1:Ri0e4:ponge", 17}, {"25:l1:Ci1e10:bfetch_rcs2:dee", 28}, // protocol 2 section 5.2
	{"23:l1:Ei7e12:d1:!5:ERRORee", 26}, {"33:l1:Ei3e22:Invalid endpoint 'foo'e", 36},
}

func TestGrammar(t *testing.T) {
	for _, c := range grammar {
		n, err := Valid([]byte(c.in))
		if n != c.n || (err == nil) != (c.n > 0) {
			t.Errorf("Valid(%.60q) = %d, %v; want %d", c.in, n, err, c.n)
		}
		if len(c.in) < 1<<16 {
			_, rest, err := reference(c.in, 0)
			if (err == nil) != (c.n > 0) || err == nil && len(rest) != len(c.in)-c.n {
				t.Errorf("reference(%.60q) = %v, rest %q", c.in, err, rest)
			}
		}
	}
}

func TestVectors(t *testing.T) {
	for _, v := range vectors {
		b, err := hex.DecodeString(v.hex)
		if err != nil {
			t.Fatal(err)
		}
		tree, rest, err := reference(string(b), 0)
		if err != nil || rest != "" {
			t.Fatalf("%s: reference: %v, rest %q", v.origin, err, rest)
		}
		if n, err := Valid(b); n != len(b) || err != nil {
			t.Fatalf("%s: %d of %d: %v", v.origin, n, len(b), err)
		}
		compare(t, b, tree)
		if again := write(nil, tree); !bytes.Equal(again, b) {
			t.Errorf("%s: written again as %x", v.origin, again)
		}
		for cut := range b {
			if _, err := Valid(b[:cut]); err == nil {
				t.Errorf("%s: cut at %d is accepted", v.origin, cut)
			}
			d := ReadDict(b[:cut])
			if d.Finish() == nil || d.Err() == nil {
				t.Errorf("%s: cut at %d is accepted by the dict", v.origin, cut)
			}
		}
		d := ReadDict(append(bytes.Clone(b), 'x'))
		if d.Finish() == nil {
			t.Errorf("%s: a trailing byte is accepted", v.origin)
		}
		d = ReadDict(append(bytes.Clone(b), 'x'))
		if rest, err := d.FinishPrefix(); err != nil || string(rest) != "x" {
			t.Errorf("%s: prefix: %q, %v", v.origin, rest, err)
		}
	}
}

// Each line reads one dict; the error text is matched as a part, "" means success.
func TestDict(t *testing.T) {
	const all = "d0:i0e1:#i-7e1:4i18446744073709551615e1:b3:abc1:dd1:xi1ee1:ll1:yee"
	for _, c := range []struct {
		name, in, err string
		read          func(d *Dict) any
		want          any
	}{
		{"int", all, "", func(d *Dict) any { return d.Int("#") }, -7},
		{"int of the empty key", all, "", func(d *Dict) any { return d.Int("") }, 0},
		{"uint", all, "", func(d *Dict) any { return d.Uint("4", math.MaxUint64) }, uint64(math.MaxUint64)},
		{"uint above max", all, "out of range", func(d *Dict) any { return d.Uint("4", math.MaxInt64) }, 0},
		{"int above int64", all, "out of range", func(d *Dict) any { return d.Int("4") }, 0},
		{"negative uint", all, "out of range", func(d *Dict) any { return d.Uint("#", 9) }, 0},
		{"uint at max", "d1:ai9ee", "", func(d *Dict) any { return d.Uint("a", 9) }, 9},
		{"int of a string", all, `key "b": byte 41: wrong type`, func(d *Dict) any { return d.Int("b") }, 0},
		{"string", all, "", func(d *Dict) any { return string(d.Bytes("b")) }, "abc"},
		{"string of an int", all, "wrong type", func(d *Dict) any { return d.Bytes("#") == nil }, true},
		{"fixed", all, "", func(d *Dict) any { return string(d.Fixed("b", 3)) }, "abc"},
		{"fixed of another size", all, "wrong size", func(d *Dict) any { return d.Fixed("b", 4) == nil }, true},
		{"optional fixed of another size", all, "wrong size", func(d *Dict) any { _, ok := d.OptFixed("b", 2); return ok }, false},
		{"missing between", all, `key "a": byte 41: missing`, func(d *Dict) any { return d.Int("a") }, 0},
		{"missing at the end", all, "missing", func(d *Dict) any { return d.Bytes("z") == nil }, true},
		{"absent", all, "", func(d *Dict) any { _, ok := d.OptBytes("a"); return ok }, false},
		{"absent list", all, "", func(d *Dict) any {
			l, ok := d.OptList("a")
			return fmt.Sprint(ok, l.Next(), l.Finish())
		}, "false false <nil>"},
		{"absent dict", all, "", func(d *Dict) any {
			n, ok := d.OptDict("a")
			return fmt.Sprint(ok, n.Finish())
		}, "false <nil>"},
		{"empty string is not absent", "d1:a0:e", "", func(d *Dict) any { return d.Bytes("a") != nil }, true},
		{"optional of another type", all, "wrong type", func(d *Dict) any { _, ok := d.OptBytes("d"); return ok }, false},
		{"raw", all, "", func(d *Dict) any { return string(d.Raw("d")) }, "d1:xi1ee"},
		{"list", all, "", func(d *Dict) any { l := d.List("l"); return string(l.Bytes()) }, "y"},
		{"list of a dict", all, "wrong type", func(d *Dict) any { l := d.List("d"); return l.Err() != nil }, true},
		{"dict of a list", all, "wrong type", func(d *Dict) any { n := d.Dict("l"); return n.Err() != nil }, true},
		{"error in a nested dict is its own", all, "", func(d *Dict) any { n := d.Dict("d"); n.Int("q"); return n.Err() != nil }, true},
		{"skipped value is checked", "d1:ai01e1:bi1ee", "malformed integer", func(d *Dict) any { return d.Int("b") }, 0},
		{"rest is checked", "d1:ai1e1:bi01ee", "malformed integer", func(d *Dict) any { return d.Int("a") }, 1},
		{"order is checked behind what is read", "d1:ai1e1:ai2ee", "not ascending", func(d *Dict) any { return d.Int("a") }, 1},
		{"the first error stays", "d1:ai1e1:b1:xe", "wrong type", func(d *Dict) any { d.Bytes("a"); return len(d.Bytes("b")) }, 0},
		{"not a dict", "le", "wrong type", func(d *Dict) any { return d.Int("a") }, 0},
		{"nothing", "", "cut short", func(d *Dict) any { return d.Int("a") }, 0},
		{"trailing", "de0:", "after the end", func(d *Dict) any { return 0 }, 0},
	} {
		d := ReadDict([]byte(c.in))
		got := c.read(&d)
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
		err := d.Finish()
		if (err == nil) != (c.err == "") || err != nil && (!strings.Contains(err.Error(), c.err) || !strings.HasPrefix(err.Error(), "bt: ")) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.err)
		}
	}
}

func TestList(t *testing.T) {
	l := ReadList([]byte("l1:ai-5ei5eld1:xi1eeed1:yi2ee3:abcle0:e"))
	got := fmt.Sprint(string(l.Bytes()), l.Int(), l.Uint(5))
	n := l.List()
	nd := n.Dict()
	d := l.Dict()
	got += fmt.Sprint(" ", nd.Int("x"), d.Int("y"), string(l.Fixed(3)), string(l.Raw()), len(l.Bytes()), l.Next())
	if want := "a-5 5 1 2abcle0 false"; got != want || l.Finish() != nil {
		t.Errorf("got %q, want %q, %v", got, want, l.Err())
	}
	for in, read := range map[string]func(l *List){
		"le":                      func(l *List) { l.Bytes() },
		"li1ee":                   func(l *List) { l.Bytes() },
		"l1:ae":                   func(l *List) { l.Int() },
		"l2:aae":                  func(l *List) { l.Fixed(3) },
		"li6ee":                   func(l *List) { l.Uint(5) },
		"li-6ee":                  func(l *List) { l.Uint(5) },
		"li9223372036854775808ee": func(l *List) { l.Int() },
		"ldee":                    func(l *List) { l.List() },
		"llee":                    func(l *List) { l.Dict() },
		"lee":                     func(l *List) {},
		"l1:a":                    func(l *List) { l.Bytes() },
		"l01:ae":                  func(l *List) {},
		"de":                      func(l *List) {},
		"":                        func(l *List) {},
	} {
		l := ReadList([]byte(in))
		read(&l)
		if err := l.Finish(); err == nil || err != l.Err() || l.Next() || l.Bytes() != nil || l.Raw() != nil {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// protocol 1 section 1.4: from the opening 'd' of this dict up to before "1:~", in what follows and in a list too.
func TestSignature(t *testing.T) {
	sig := strings.Repeat("s", 64)
	signed := "d1:ai1e1:zle"
	for _, c := range []struct {
		in string
		ok bool
	}{
		{signed + "1:~64:" + sig + "e", true},
		{signed + "1:~64:" + sig + "2:~~i1ee", true}, // whoever forbids keys behind it says so
		{signed + "1:~63:" + sig[1:] + "e", false},
		{signed + "e", false},
		{signed + "1:~i1ee", false},
	} {
		d := ReadDict([]byte(c.in))
		if d.Int("a") != 1 {
			t.Error("a")
		}
		got, s := d.Signature("~")
		if err := d.Finish(); (err == nil) != c.ok || c.ok && (string(got) != signed || string(s) != sig) || !c.ok && (got != nil || s != nil) {
			t.Errorf("%q: %q %q %v", c.in, got, s, err)
		}
		l := ReadList([]byte("l" + c.in + "e"))
		d = l.Dict()
		if got, _ := d.Signature("~"); c.ok && string(got) != signed {
			t.Errorf("in a list: %q", got)
		}
	}
	b := NewDict([]byte("before")).Int("a", 1).Raw("z", []byte("le"))
	if string(b.Prefix()) != signed {
		t.Errorf("Prefix %q", b.Prefix())
	}
	if got := string(b.String("~", sig).End()); got != "before"+signed+"1:~64:"+sig+"e" {
		t.Errorf("End %q", got)
	}
}

func TestBuilder(t *testing.T) {
	got := NewDict(nil).Bytes("", nil).Int("a", math.MinInt64).Uint("b", math.MaxUint64).String("ba", "x").Bytes("c", []byte{0xff}).Raw("d", []byte("le")).End()
	if want := "d0:0:1:ai-9223372036854775808e1:bi18446744073709551615e2:ba1:x1:c1:\xff1:dlee"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for name, f := range map[string]func(){
		"same key written":  func() { NewDict(nil).Int("a", 1).Int("a", 1) },
		"empty key twice":   func() { NewDict(nil).Int("", 1).Int("", 1) },
		"lower key written": func() { NewDict(nil).Int("b", 1).Int("a", 1) },
		"same key asked":    func() { d := ReadDict([]byte("de")); d.OptInt(""); d.OptInt("") },
		"lower key asked":   func() { d := ReadDict(nil); d.OptInt("b"); d.OptInt("a") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func TestParseUint(t *testing.T) {
	for in, want := range map[string]int{"i0e": 0, "i7e": 7, "i-1e": -1, "1:a": -1, "le": -1, "i7ee": -1, "": -1, "i07e": -1} {
		if v, ok := ParseUint([]byte(in)); ok != (want >= 0) || ok && v != uint64(want) {
			t.Errorf("%q: %d %v", in, v, ok)
		}
	}
}
