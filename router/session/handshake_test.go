package session

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/path"
	"lokinetd/router/seal"
	"lokinetd/router/testkit"
)

func random(t testing.TB) *rand.Rand { return testkit.Rand(t).Rand }

func fill(c byte) (b [32]byte)        { copy(b[:], bytes.Repeat([]byte{c}, 32)); return b }
func fillID(c byte) (id path.ID)      { copy(id[:], bytes.Repeat([]byte{c}, 16)); return id }
func fillNonce(c byte) (n seal.Nonce) { copy(n[:], bytes.Repeat([]byte{c}, 24)); return n }

var (
	alice = key.FromSeed(fill(0xa1))
	bob   = key.FromSeed(fill(0xb0))
	carol = key.FromSeed(fill(0xca))
)

func everybody(key.Public) bool { return true }

// box takes the box out of an init or accept.
func box(t testing.TB, body []byte, kind byte) []byte {
	t.Helper()
	h, err := parseHandshake(body)
	if err != nil || h.kind != kind {
		t.Fatalf("handshake %q: %v", h.kind, err)
	}
	return h.box
}

// shake does a whole handshake.
func shake(t testing.TB, i *initiator, responder *key.Secret, tag uint32) (in, rs keys, init, accept []byte) {
	t.Helper()
	init, err := i.init(fillID(0x40))
	if err != nil {
		t.Fatal(err)
	}
	got, err := openInit(responder, box(t, init, kindInit), everybody)
	if err != nil {
		t.Fatal(err)
	}
	accept, rs, err = got.answer(responder, tag)
	if err != nil {
		t.Fatal(err)
	}
	in, err = i.accept(box(t, accept, kindAccept))
	if err != nil {
		t.Fatal(err)
	}
	return in, rs, init, accept
}

func TestHandshake(t *testing.T) {
	const tagA, tagB = 0xDEADBEEF, 0xCAFEBABE
	i := newInitiator(alice, bob.Public(), tagA)
	init, err := i.init(fillID(0x41))
	if err != nil {
		t.Fatal(err)
	}
	in, err := openInit(bob, box(t, init, kindInit), everybody)
	if err != nil {
		t.Fatal(err)
	}
	if in.remote != alice.Public() || in.pivot != fillID(0x41) || in.tag != tagA || in.x != i.eph.X() || !bytes.Equal(in.m, i.eph.M()) {
		t.Fatal("init says something else")
	}
	ki, kr, again, accept := shake(t, i, bob, tagB)
	if ki.out != kr.in || ki.in != kr.out || ki.out == ki.in {
		t.Fatal("keys differ")
	}
	if ki.peer != tagB || kr.peer != tagA {
		t.Fatal("tags differ")
	}
	// The same call, over another path.
	second, err := openInit(bob, box(t, again, kindInit), everybody)
	if err != nil || !in.same(&second) || second.pivot == in.pivot {
		t.Fatal("the init sent again is another one", err)
	}
	for _, other := range []*initiator{newInitiator(alice, bob.Public(), tagA), newInitiator(alice, bob.Public(), 5)} {
		init, _ := other.init(fillID(0x41))
		if o, err := openInit(bob, box(t, init, kindInit), everybody); err != nil || in.same(&o) {
			t.Fatal("another init is taken for the same", err)
		}
	}
	// Which argument goes where: the schedule by hand. Its own vectors (protocol 1 section 5, protocol 4 section 3.5) are tests of router/seal.
	inner, err := seal.OpenBox(alice, box(t, accept, kindAccept))
	if err != nil {
		t.Fatal(err)
	}
	a, err := parseAccept(inner)
	if err != nil {
		t.Fatal(err)
	}
	out, back, err := i.eph.Keys(alice.Public(), bob.Public(), tagA, tagB, a.y, a.c)
	if err != nil || out != ki.out || back != ki.in {
		t.Fatal("not the key schedule's keys", err)
	}
	// A second answer to the same init gives other keys, and the initiator takes it as well.
	kj, ks, _, _ := shake(t, i, bob, tagB+1)
	if kj.out != ks.in || kj.out == ki.out {
		t.Fatal("second accept")
	}
	i.wipe()
	if _, err := i.accept(box(t, accept, kindAccept)); err == nil {
		t.Fatal("accept opened after wipe")
	}
}

// TestSizes: the table of protocol 4 section 3.5, and the bytes of section 3.3, 3.6 and 5.
func TestSizes(t *testing.T) {
	const trailer, tail = 41, 4 + 16
	for digits := 1; digits <= 10; digits++ {
		tag := uint32(math.Pow10(digits - 1))
		i := newInitiator(alice, bob.Public(), tag)
		_, _, init, accept := shake(t, i, bob, tag)
		n := fillNonce(1)
		k := seal.Key(fill(2))
		moved := pathSwitch(&keys{out: k}, &n, fillID(3), init, false)
		for _, c := range []struct {
			what      string
			got, want int
		}{
			{"init", len(init), 1430 + digits},
			{"init on the wire", len(message(init, 0, new(fillID(1)))) + trailer, 1491 + digits},
			{"accept", len(accept), 1274 + digits},
			{"accept of a client on the wire", len(message(accept, 1, new(fillID(1)))) + trailer, 1335 + digits},
			{"accept of a relay on the wire", len(message(accept, 1, nil)) + trailer, 1319 + digits},
			{"path switch", len(moved), 1516 + digits},
			{"path switch on the wire", len(moved) + tail + trailer, 1577 + digits},
		} {
			if c.got != c.want {
				t.Errorf("%s with a tag of %d digits: %d bytes, want %d", c.what, digits, c.got, c.want)
			}
		}
		inner, err := seal.OpenBox(bob, box(t, init, kindInit))
		if err != nil || len(inner) != 1367+digits {
			t.Errorf("inner init: %d bytes, %v", len(inner), err)
		}
		if _, signed, _, err := parseInit(inner); err != nil || len(signed) != 1296+digits {
			t.Errorf("signed part of the init: %d bytes, %v", len(signed), err)
		}
		inner, err = seal.OpenBox(alice, box(t, accept, kindAccept))
		if err != nil || len(inner) != 1211+digits {
			t.Errorf("inner accept: %d bytes, %v", len(inner), err)
		}
		if a, err := parseAccept(inner); err != nil || len(a.signed) != 1140+digits {
			t.Errorf("signed part of the accept: %d bytes, %v", len(a.signed), err)
		}
	}
	_, _, init, accept := shake(t, newInitiator(alice, bob.Public(), 7), bob, 8)
	for _, c := range []struct {
		got  []byte
		want string
	}{
		{init, "d0:1:i1:B1416:"},
		{accept, "d0:1:a1:B1260:"},
		{pathSwitch(new(keys), new(seal.Nonce), fillID(3), init, false), "d0:1:s1:S65:"},
	} {
		if !bytes.HasPrefix(c.got, []byte(c.want)) {
			t.Errorf("begins with %q, want %q", c.got[:len(c.want)], c.want)
		}
	}
	k, n := seal.Key(fill(5)), fillNonce(6)
	for _, c := range []struct {
		method string
		param  []byte
		plain  string
		wire   int
	}{
		{methodClose, nil, "d1:e13:session_close1:p0:e", 103},
		{methodSwitch, switchParam(fillID('x')), "d1:e11:path_switch1:p24:d1:p16:xxxxxxxxxxxxxxxxee", 126},
	} {
		sealed := sealControl([]byte("before"), &k, &n, c.method, c.param)[6:]
		if got := len(sealed) + tail + trailer; got != c.wire {
			t.Errorf("%s: %d bytes on the wire, want %d", c.method, got, c.wire)
		}
		plain, ok := seal.Open(sealed, &k, &n)
		if !ok || string(plain) != c.plain {
			t.Errorf("%s: %q", c.method, plain)
		}
	}
	if overhead != 78 {
		t.Errorf("overhead %d", overhead)
	}
}

func TestPathSwitch(t *testing.T) {
	k, n := seal.Key(fill(5)), fillNonce(6)
	i := newInitiator(alice, bob.Public(), 77)
	init, _ := i.init(fillID(3))
	body := pathSwitch(&keys{out: k}, &n, fillID(3), init, false)
	list := append(bt.AppendBytes(bt.AppendBytes([]byte("l"), sealControl(nil, &k, &n, methodSwitch, switchParam(fillID(3)))), init), 'e')
	for _, b := range [][]byte{body, list} {
		h, err := parseHandshake(b)
		if err != nil || h.kind != kindSwitch || !bytes.Equal(h.init, init) {
			t.Fatal(err)
		}
		for range 2 { // it may be opened twice: nothing is changed
			if p, err := openSwitch(h.sealed, &keys{in: k}, &n); err != nil || p != fillID(3) {
				t.Fatal(p, err)
			}
		}
		if _, err := openSwitch(h.sealed, new(keys), &n); err == nil {
			t.Fatal("opened under another key")
		}
		if _, err := openSwitch(h.sealed, &keys{in: k}, new(seal.Nonce)); err == nil {
			t.Fatal("opened under another nonce")
		}
	}
	other, err := parseHandshake(bt.NewDict(nil).String("", "s").Bytes("S", sealControl(nil, &k, &n, methodClose, nil)).End())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openSwitch(other.sealed, &keys{in: k}, &n); err == nil {
		t.Fatal("another method is taken for a path switch")
	}
}

// sealInit makes an init of other parts than ours: signed by signer, sealed for to.
func sealInit(signer *key.Secret, to key.Public, prefix []byte) []byte {
	sig := signer.Sign(prefix)
	inner := append(bt.AppendBytes(append(bytes.Clone(prefix), "1:~"...), sig[:]), 'e')
	b, err := seal.Box(to, inner)
	if err != nil {
		panic(err)
	}
	return b
}

func TestForgedInit(t *testing.T) {
	eph := seal.NewEphemeral()
	x, a := eph.X(), alice.Public()
	type part struct {
		key   string
		value []byte // encoded
	}
	parts := func() []part {
		return []part{
			{"I", bt.AppendBytes(nil, a[:])}, {"M", bt.AppendBytes(nil, eph.M())}, {"X", bt.AppendBytes(nil, x[:])},
			{"p", bt.AppendBytes(nil, bytes.Repeat([]byte{1}, 16))}, {"t", bt.AppendUint(nil, 77)},
		}
	}
	prefix := func(ps []part) []byte {
		b := []byte{'d'}
		for _, p := range ps {
			b = append(bt.AppendString(b, p.key), p.value...)
		}
		return b
	}
	with := func(i int, value []byte) []part {
		ps := parts()
		ps[i].value = value
		return ps
	}
	self := bob.Public()
	for _, c := range []struct {
		what   string
		signer *key.Secret
		parts  []part
		ok     bool
	}{
		{"as it should be", alice, parts(), true},
		{"with keys that we do not know", alice, append(append([]part{{"A", bt.AppendUint(nil, 5)}}, parts()...), part{"z", bt.AppendString(nil, "later")}), true},
		{"signed by somebody else", carol, parts(), false},
		{"from ourselves", bob, with(0, bt.AppendBytes(nil, self[:])), false},
		{"of a key of small order", alice, with(0, bt.AppendBytes(nil, make([]byte, 32))), false},
		{"short I", alice, with(0, bt.AppendBytes(nil, a[:31])), false},
		{"short M", alice, with(1, bt.AppendBytes(nil, eph.M()[:1183])), false},
		{"long X", alice, with(2, bt.AppendBytes(nil, append(x[:], 0))), false},
		{"long p", alice, with(3, bt.AppendBytes(nil, make([]byte, 17))), false},
		{"tag 0", alice, with(4, bt.AppendUint(nil, 0)), false},
		{"negative tag", alice, with(4, bt.AppendInt(nil, -1)), false},
		{"tag of 33 bits", alice, with(4, bt.AppendUint(nil, 1<<32)), false},
		{"tag as a string", alice, with(4, bt.AppendString(nil, "77")), false},
		{"no p", alice, append(parts()[:3:3], parts()[4]), false},
		{"no M", alice, append(parts()[:1:1], parts()[2:]...), false},
	} {
		_, err := openInit(bob, sealInit(c.signer, bob.Public(), prefix(c.parts)), everybody)
		if (err == nil) != c.ok {
			t.Errorf("an init %s: %v", c.what, err)
		}
	}
	for _, c := range []struct {
		what string
		box  []byte
	}{
		{"for somebody else", sealInit(alice, carol.Public(), prefix(parts()))},
		{"empty", nil},
		{"with something behind it", func() []byte {
			p := prefix(parts())
			sig := alice.Sign(p)
			inner := append(bt.AppendBytes(append(p, "1:~"...), sig[:]), "e0:"...)
			b, _ := seal.Box(bob.Public(), inner)
			return b
		}()},
		{"without signature", func() []byte {
			b, _ := seal.Box(bob.Public(), append(prefix(parts()), 'e'))
			return b
		}()},
	} {
		if _, err := openInit(bob, c.box, everybody); err == nil {
			t.Errorf("an init %s is taken", c.what)
		}
	}
	if _, err := openInit(bob, sealInit(alice, bob.Public(), prefix(parts())), func(k key.Public) bool { return k != alice.Public() }); err != errRefused {
		t.Error("refused remote:", err)
	}
	// Bad ephemerals are found when the init is answered.
	for i, bad := range map[int][]byte{1: bt.AppendBytes(nil, bytes.Repeat([]byte{0xff}, 1184)), 2: bt.AppendBytes(nil, make([]byte, 32))} {
		in, err := openInit(bob, sealInit(alice, bob.Public(), prefix(with(i, bad))), everybody)
		if err != nil {
			t.Fatal(err)
		}
		if accept, ks, err := in.answer(bob, 5); err == nil || accept != nil || ks != (keys{}) {
			t.Errorf("part %d is no key, but answered", i)
		}
	}
	if _, err := newInitiator(alice, key.Public{}, 1).init(fillID(1)); err == nil {
		t.Error("init to a remote that is no key")
	}
}

func TestForgedAccept(t *testing.T) {
	i := newInitiator(alice, bob.Public(), 77)
	init, _ := i.init(fillID(1))
	in, err := openInit(bob, box(t, init, kindInit), everybody)
	if err != nil {
		t.Fatal(err)
	}
	carols := newInitiator(alice, carol.Public(), 77)
	init, _ = carols.init(fillID(1))
	in2, err := openInit(carol, box(t, init, kindInit), everybody)
	if err != nil {
		t.Fatal(err)
	}
	good, _, err := in.answer(bob, 5)
	if err != nil {
		t.Fatal(err)
	}
	other, _, _ := in2.answer(carol, 5)
	byCarol, _, _ := in.answer(carol, 5)
	zero, _, _ := in.answer(bob, 0)
	for _, c := range []struct {
		what string
		body []byte
		ok   bool
	}{
		{"by somebody else", byCarol, false}, {"to another call", other, false}, {"with tag 0", zero, false}, {"as it should be", good, true},
	} {
		ks, err := i.accept(box(t, c.body, kindAccept))
		if (err == nil) != c.ok || !c.ok && ks != (keys{}) {
			t.Errorf("an accept %s: %v", c.what, err)
		}
	}
}

// TestCutAndFlip: cut at every byte, every bit changed: nothing of it is taken.
func TestCutAndFlip(t *testing.T) {
	step := 1
	if raceEnabled || testing.Short() {
		step = 29
	}
	i := newInitiator(alice, bob.Public(), 77)
	_, _, init, accept := shake(t, i, bob, 88)
	k, n := seal.Key(fill(5)), fillNonce(6)
	moved := pathSwitch(&keys{out: k}, &n, fillID(3), init, false)

	opensInit := func(body []byte) bool {
		h, err := parseHandshake(body)
		if err != nil || h.kind != kindInit {
			return false
		}
		_, err = openInit(bob, h.box, everybody)
		return err == nil
	}
	opensAccept := func(body []byte) bool {
		h, err := parseHandshake(body)
		if err != nil || h.kind != kindAccept {
			return false
		}
		_, err = i.accept(h.box)
		return err == nil
	}
	opensSwitch := func(body []byte) bool {
		h, err := parseHandshake(body)
		if err != nil || h.kind != kindSwitch {
			return false
		}
		_, err = openSwitch(h.sealed, &keys{in: k}, &n)
		return err == nil
	}
	// The container of a path switch is not authenticated: a change in the key "i" loses the init and nothing else.
	for _, c := range []struct {
		what  string
		body  []byte
		until int // bits up to this byte count
		opens func([]byte) bool
	}{
		{"init", init, len(init), opensInit},
		{"accept", accept, len(accept), opensAccept},
		{"path switch", moved, len("d0:1:s1:S65:") + 65, opensSwitch},
	} {
		if !c.opens(c.body) {
			t.Fatal(c.what, "is not taken at all")
		}
		for n := range len(c.body) {
			if c.opens(c.body[:n]) {
				t.Fatalf("%s cut to %d bytes is taken", c.what, n)
			}
		}
		for bit := 0; bit < 8*c.until; bit += step {
			b := bytes.Clone(c.body)
			b[bit/8] ^= 1 << (bit % 8)
			if c.opens(b) {
				t.Fatalf("%s with bit %d changed is taken", c.what, bit)
			}
		}
	}
	if h, _ := parseHandshake(moved); !opensInit(h.init) {
		t.Fatal("the init in the path switch is not taken")
	}
	// What is signed, by the boxes' own ends: a box holds whatever its maker wants.
	inner, _ := seal.OpenBox(bob, box(t, init, kindInit))
	for bit := 0; bit < 8*len(inner); bit += step {
		b := bytes.Clone(inner)
		b[bit/8] ^= 1 << (bit % 8)
		if in, signed, sig, err := parseInit(b); err == nil && in.remote.Verify(signed, sig) {
			t.Fatalf("inner init with bit %d changed is taken", bit)
		}
	}
	inner, _ = seal.OpenBox(alice, box(t, accept, kindAccept))
	bobs := bob.Public()
	for bit := 0; bit < 8*len(inner); bit += step {
		b := bytes.Clone(inner)
		b[bit/8] ^= 1 << (bit % 8)
		if a, err := parseAccept(b); err == nil && bobs.Verify(a.signed, a.sig) {
			t.Fatalf("inner accept with bit %d changed is taken", bit)
		}
	}
}

func TestParseHandshake(t *testing.T) {
	for _, c := range []struct {
		body string
		kind byte // 0: refused
	}{
		{"d0:1:i1:B3:boxe", kindInit},
		{"d0:1:a1:A1:x1:B0:1:Ci5ee", kindAccept},
		{"d0:1:s1:S0:e", kindSwitch},
		{"d0:1:s1:S2:ab1:i2:cde", kindSwitch},
		{"l2:ab2:cde", kindSwitch},
		{"l2:ab2:cd1:xe", kindSwitch},
		{"", 0}, {"d", 0}, {"de", 0}, {"l", 0}, {"le", 0}, {"l2:abe", 0}, {"i5e", 0},
		{"d0:1:i1:B3:boxe0:", 0},
		{"d0:1:ie", 0},
		{"d0:i5e1:B3:boxe", 0},
		{"d0:2:ii1:B3:boxe", 0},
		{"d0:1:x1:B3:boxe", 0},
		{"d1:B3:box0:1:ie", 0},
		{"d0:1:s1:Si5ee", 0},
		{"d0:1:s1:S0:1:ii5ee", 0},
		{"d1:k2:ab1:n2:ab1:x2:abe", 0}, // 1.0, too short
		{"d0:1:i1:B5000:" + string(make([]byte, 5000)) + "e", 0},
	} {
		h, err := parseHandshake([]byte(c.body))
		if (err == nil) != (c.kind != 0) || err == nil && h.kind != c.kind {
			t.Errorf("%.40q: %q, %v", c.body, h.kind, err)
		}
	}
}

// FuzzHandshake: whoever can send to one of our paths chooses this body, before any key is looked at.
//
// Decoders: parseHandshake
func FuzzHandshake(f *testing.F) {
	f.Add([]byte("d0:1:i1:B3:boxe"))
	f.Add([]byte("d0:1:s1:S2:ab1:i2:cde"))
	f.Add([]byte("l2:ab2:cde"))
	f.Add([]byte("d1:k32:" + string(make([]byte, 32)) + "1:n24:" + string(make([]byte, 24)) + "1:x2:abe"))
	f.Fuzz(func(t *testing.T, body []byte) {
		h, err := parseHandshake(body)
		if err != nil {
			return
		}
		var b []byte
		switch h.kind {
		case kindInit, kindAccept:
			b = outer(string(h.kind), h.box)
		case kindSwitch:
			b = bt.NewDict(nil).String("", "s").Bytes("S", h.sealed).Bytes("i", h.init).End()
		case kindOld:
			b = bt.NewDict(nil).Bytes("k", h.eph[:]).Bytes("n", h.nonce[:]).Bytes("x", h.sealed).End()
		default:
			t.Fatal("kind", h.kind)
		}
		if len(b) > maxHandshake {
			return // the input had less around its parts
		}
		again, err := parseHandshake(b)
		if err != nil || again.kind != h.kind || !bytes.Equal(again.box, h.box) || !bytes.Equal(again.sealed, h.sealed) || !bytes.Equal(again.init, h.init) ||
			again.eph != h.eph || again.nonce != h.nonce {
			t.Fatal("not a fixed point:", err)
		}
	})
}

// FuzzInner: anybody who knows our key can seal a box or a 1.0 init with this in it for us.
//
// Decoders: parseInit parseAccept parseOldInit
func FuzzInner(f *testing.F) {
	i := newInitiator(alice, bob.Public(), 77)
	_, _, init, accept := shake(f, i, bob, 88)
	inner, _ := seal.OpenBox(bob, box(f, init, kindInit))
	f.Add(inner)
	inner, _ = seal.OpenBox(alice, box(f, accept, kindAccept))
	f.Add(inner)
	for tag := range uint64(2) {
		f.Add(bt.NewDict(nil).Bytes("i", make([]byte, 32)).Bytes("p", make([]byte, 16)).Uint("t", tag).Bytes("~", make([]byte, 64)).End())
		f.Add(bt.NewDict(nil).Bytes("I", make([]byte, 32)).Bytes("M", make([]byte, seal.EncapsulationSize)).Bytes("X", make([]byte, 32)).Bytes("p", make([]byte, 16)).Uint("t", tag).Bytes("~", make([]byte, 64)).End())
		f.Add(bt.NewDict(nil).Bytes("Y", make([]byte, 32)).Bytes("c", make([]byte, seal.CiphertextSize)).Uint("t", tag).Bytes("~", make([]byte, 64)).End())
	}
	f.Fuzz(func(t *testing.T, inner []byte) {
		if in, signed, sig, err := parseOldInit(inner); err == nil {
			b := bt.NewDict(nil).Bytes("i", in.remote[:]).Bytes("p", in.pivot[:]).Uint("t", uint64(in.tag)).Bytes("~", sig).End()
			again, _, _, err := parseOldInit(b)
			if err != nil || !again.same(&in) || again.pivot != in.pivot || !bytes.HasPrefix(inner, signed) {
				t.Fatal("1.0 init: not a fixed point:", err)
			}
		}
		if in, signed, sig, err := parseInit(inner); err == nil {
			b := bt.NewDict(nil).Bytes("I", in.remote[:]).Bytes("M", in.m).Bytes("X", in.x[:]).Bytes("p", in.pivot[:]).Uint("t", uint64(in.tag)).Bytes("~", sig).End()
			again, _, _, err := parseInit(b)
			if err != nil || fmt.Sprint(again) != fmt.Sprint(in) || !bytes.HasPrefix(inner, signed) {
				t.Fatal("init: not a fixed point:", err)
			}
		}
		if a, err := parseAccept(inner); err == nil {
			b := bt.NewDict(nil).Bytes("Y", a.y[:]).Bytes("c", a.c).Uint("t", uint64(a.tag)).Bytes("~", a.sig).End()
			again, err := parseAccept(b)
			if err != nil || again.tag != a.tag || again.y != a.y || !bytes.Equal(again.c, a.c) || !bytes.HasPrefix(inner, a.signed) {
				t.Fatal("accept: not a fixed point:", err)
			}
		}
	})
}

// FuzzControl: a remote with which we have a session chooses this plaintext.
//
// Decoders: parseControl parseSwitch parseOldAccept
func FuzzControl(f *testing.F) {
	f.Add([]byte("d1:e13:session_close1:p0:e"))
	f.Add([]byte("d1:e11:path_switch1:p24:d1:p16:xxxxxxxxxxxxxxxxee"))
	f.Add([]byte("d1:e14:session_accept1:p9:d1:ti77eee"))
	f.Add([]byte("d1:e14:session_accept1:p8:d1:ti0eee"))
	f.Add([]byte("d1:e14:session_accept1:p2:dee"))
	f.Add([]byte("de"))
	f.Fuzz(func(t *testing.T, plain []byte) {
		method, param, err := parseControl(plain)
		if err != nil {
			return
		}
		again, p, err := parseControl(bt.NewDict(nil).String("e", method).Bytes("p", param).End())
		if err != nil || again != method || !bytes.Equal(p, param) {
			t.Fatal("not a fixed point:", err)
		}
		if id, err := parseSwitch(param); err == nil {
			if again, err := parseSwitch(switchParam(id)); err != nil || again != id {
				t.Fatal("path switch: not a fixed point:", err)
			}
		}
		if tag, err := parseOldAccept(param); err == nil {
			if again, err := parseOldAccept(oldAcceptParam(tag)); err != nil || again != tag {
				t.Fatal("1.0 accept: not a fixed point:", err)
			}
		}
	})
}

func TestControl(t *testing.T) {
	for _, c := range []struct {
		plain string
		ok    bool
	}{
		{"d1:e13:session_close1:p0:e", true},
		{"d1:a0:1:e1:x1:p1:y1:zlee", true},
		{"d1:e1:xe", false}, {"d1:p1:xe", false}, {"d1:e1:x1:p1:yex", false}, {"d1:ei5e1:p1:ye", false}, {"", false},
	} {
		if _, _, err := parseControl([]byte(c.plain)); (err == nil) != c.ok {
			t.Errorf("%q: %v", c.plain, err)
		}
	}
	full := "d1:e11:path_switch1:p24:d1:p16:xxxxxxxxxxxxxxxxee"
	for n := range len(full) {
		if _, _, err := parseControl([]byte(full[:n])); err == nil {
			t.Errorf("cut to %d bytes is taken", n)
		}
	}
}

func TestReplay(t *testing.T) {
	r := random(t)
	draw := func() (n seal.Nonce) {
		for i := range n {
			n[i] = byte(r.Uint32())
		}
		return n
	}
	for _, c := range []struct{ max, lines int }{{0, maxLines}, {signalLines, signalLines}} {
		m := replay{max: c.max}
		if m.seen(new(seal.Nonce)) || !m.add(new(seal.Nonce)) || m.add(new(seal.Nonce)) {
			t.Fatal("nonce of zeros")
		}
		var sent []seal.Nonce
		for i := range 4 * c.lines * ways {
			n := draw()
			if !m.add(&n) {
				t.Fatal("a fresh nonce is taken for a copy")
			}
			sent = append(sent, n)
			if len(m.lines) > 2*max(firstLines, i/2) {
				t.Fatalf("%d lines for %d nonces", len(m.lines), i)
			}
		}
		if len(m.lines) != c.lines {
			t.Fatalf("%d lines, want %d", len(m.lines), c.lines)
		}
		// All of the last quarter of what fits are known; of all that fits, most.
		known := func(last int) (n int) {
			for _, s := range sent[len(sent)-last:] {
				if m.seen(&s) {
					n++
				}
			}
			return n
		}
		if n := known(c.lines * ways / 8); n < c.lines*ways/8*99/100 {
			t.Errorf("of the last eighth %d known", n)
		}
		if n := known(c.lines * ways); n < c.lines*ways*7/10 {
			t.Errorf("of the last %d, %d known", c.lines*ways, n)
		}
	}
	// Nothing is lost when it grows: with half of its places used a line rarely overflows.
	var m replay
	var first []seal.Nonce
	for range 28 {
		n := draw()
		m.add(&n)
		first = append(first, n)
	}
	for len(m.lines) < 64 {
		n := draw()
		m.add(&n)
	}
	lost := 0
	for i := range first {
		if !m.seen(&first[i]) {
			lost++
		}
	}
	if lost > 14 { // 1 in 100,000 runs; more than 3 in 14
		t.Errorf("%d of 28 lost by growing", lost)
	}
}
