package session

import (
	"bytes"
	"math"
	"testing"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/seal"
)

// shakeOld does a whole 1.0 handshake: the accept's parameter is not sealed here.
func shakeOld(t testing.TB, i *oldInitiator, responder *key.Secret, tag uint32) (in, rs keys, init, accept []byte) {
	t.Helper()
	init, err := i.init(fillID(0x40))
	if err != nil {
		t.Fatal(err)
	}
	got, err := opened(init, responder)
	if err != nil {
		t.Fatal(err)
	}
	accept, rs, err = got.answer(responder, tag)
	if err != nil {
		t.Fatal(err)
	}
	in, err = i.accept(accept)
	if err != nil {
		t.Fatal(err)
	}
	return in, rs, init, accept
}

// opened opens a 1.0 init.
func opened(body []byte, responder *key.Secret) (openedInit, error) {
	h, err := parseHandshake(body)
	if err != nil {
		return openedInit{}, err
	}
	if h.kind != kindOld {
		return openedInit{}, errHandshake
	}
	return openOldInit(responder, &h, everybody)
}

func aliceCalls(tag uint32) *oldInitiator {
	return &oldInitiator{self: alice, remote: bob.Public(), tag: tag}
}

func TestOldHandshake(t *testing.T) {
	const tagA, tagB = 0xDEADBEEF, 0xCAFEBABE
	i := aliceCalls(tagA)
	ki, kr, init, accept := shakeOld(t, i, bob, tagB)
	if ki.out != kr.in || ki.in != kr.out || ki.out != ki.in || !ki.old || !kr.old || ki.peer != tagB || kr.peer != tagA {
		t.Fatal("keys or tags differ")
	}
	in, err := opened(init, bob)
	if err != nil || in.remote != alice.Public() || in.pivot != fillID(0x40) || in.tag != tagA {
		t.Fatal("init says something else", err)
	}
	// The same call is the same bytes, and is sent on no other path.
	again, err := i.init(fillID(0x40))
	if err != nil || !bytes.Equal(init, again) || !i.fits(fillID(0x40)) {
		t.Fatal("another init", err)
	}
	if _, err := i.init(fillID(0x41)); err == nil || i.fits(fillID(0x41)) {
		t.Fatal("an init for another path, under the same nonce")
	}
	other, _, init2, _ := shakeOld(t, aliceCalls(tagA), bob, tagB)
	if o, err := opened(init2, bob); err != nil || in.same(&o) || other.out == ki.out {
		t.Fatal("another call is taken for the same", err)
	}
	// By hand: protocol 4 section 3.7, with the key of protocol 1 section 4.5, whose vector is a test of router/seal.
	d := bt.ReadDict(init)
	k, n, x := d.Fixed("k", 32), d.Fixed("n", 24), d.Bytes("x")
	if err := d.Finish(); err != nil {
		t.Fatal(err)
	}
	secret, err := seal.RelayPathKey(bob, key.Public(k), (*seal.Nonce)(n))
	if err != nil || secret != ki.out {
		t.Fatal("not the key of a path build", err)
	}
	inner, ok := seal.Open(bytes.Clone(x), &secret, (*seal.Nonce)(n))
	if a := alice.Public(); !ok || !bytes.HasPrefix(inner, append(append([]byte("d1:i32:"), a[:]...), "1:p16:@@@@@@@@@@@@@@@@1:ti3735928559e1:~64:"...)) {
		t.Fatalf("inside: %q", inner)
	}
	if string(accept) != "d1:ti3405691582ee" {
		t.Fatalf("accept: %q", accept)
	}
	// As it comes: sealed, under the nonce of its message.
	nonce := fillNonce(7)
	got, err := i.open(sealControl(nil, &kr.out, &nonce, methodAccept, accept), &nonce)
	if err != nil || got != ki {
		t.Fatal(err)
	}
	if _, err := i.open(sealControl(nil, &kr.out, &nonce, methodClose, nil), &nonce); err == nil {
		t.Fatal("another method is taken for an accept")
	}
	if _, err := aliceCalls(1).open(sealControl(nil, new(seal.Key), &nonce, methodAccept, accept), &nonce); err == nil {
		t.Fatal("an accept before there is a key")
	}
	i.wipe()
	if _, err := i.open(sealControl(nil, &kr.out, &nonce, methodAccept, accept), &nonce); err == nil {
		t.Fatal("accept opened after wipe")
	}
	if _, err := (&oldInitiator{self: alice, tag: 1}).init(fillID(1)); err == nil {
		t.Fatal("init to a remote that is no key")
	}
	for digits := 1; digits <= 10; digits++ {
		init, err := aliceCalls(uint32(math.Pow10(digits - 1))).init(fillID(1))
		if err != nil || len(init) != 230+digits {
			t.Errorf("%d digits: %d bytes, %v", digits, len(init), err)
		}
	}
}

// TestOldSwitch: both containers, and the nonce of S (protocol 3 section 7.3).
func TestOldSwitch(t *testing.T) {
	k, n := seal.Key(fill(5)), fillNonce(6)
	ks := &keys{out: k, in: k, old: true}
	init, _ := aliceCalls(77).init(fillID(3))
	for _, list := range []bool{false, true} {
		body := pathSwitch(ks, &n, fillID(3), init, list)
		if want := map[bool]string{false: "d0:1:s1:S65:", true: "l65:"}[list]; !bytes.HasPrefix(body, []byte(want)) {
			t.Fatalf("%.20q", body)
		}
		h, err := parseHandshake(body)
		if err != nil || h.kind != kindSwitch || !bytes.Equal(h.init, init) {
			t.Fatal(err)
		}
		if p, err := openSwitch(h.sealed, ks, &n); err != nil || p != fillID(3) {
			t.Fatal(p, err)
		}
		if _, err := openSwitch(h.sealed, &keys{in: k}, &n); err == nil {
			t.Fatal("opened under the message's nonce")
		}
		masked := fillNonce(6 ^ 0x42)
		plain, ok := seal.Open(bytes.Clone(h.sealed), &k, &masked)
		if !ok || string(plain) != "d1:e11:path_switch1:p24:d1:p16:\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03ee" {
			t.Fatalf("%q", plain)
		}
		if _, err := opened(h.init, bob); err != nil {
			t.Fatal("the init inside:", err)
		}
	}
}

// sealOldInit makes a 1.0 init of other parts than ours.
func sealOldInit(signer *key.Secret, to key.Public, prefix []byte, behind string) []byte {
	sig := signer.Sign(prefix)
	return sealOldInner(to, append(bt.AppendBytes(append(bytes.Clone(prefix), "1:~"...), sig[:]), "e"+behind...))
}

func sealOldInner(to key.Public, inner []byte) []byte {
	eph := key.FromSeed(fill(9))
	n := fillNonce(9)
	k, err := seal.ClientPathKey(eph, to, &n)
	if err != nil {
		panic(err)
	}
	x := append(bytes.Clone(inner), make([]byte, seal.TagSize)...)
	seal.Seal(x, &k, &n)
	pub := eph.Public()
	return bt.NewDict(nil).Bytes("k", pub[:]).Bytes("n", n[:]).Bytes("x", x).End()
}

func TestForgedOldInit(t *testing.T) {
	a, b, c := alice.Public(), bob.Public(), carol.Public()
	prefix := func(i []byte, p, tag string) []byte {
		return append(bt.AppendBytes([]byte("d1:i"), i), p+"1:t"+tag...)
	}
	const p = "1:p16:0123456789abcdef"
	good := prefix(a[:], p, "i77e")
	for what, x := range map[string]struct {
		body []byte
		ok   bool
	}{
		"as it should be":                    {sealOldInit(alice, b, good, ""), true},
		"with keys that we do not know":      {sealOldInit(alice, b, append([]byte("d1:ai1e"+string(good[1:])), "1:u3:xyz"...), ""), true},
		"signed by somebody else":            {sealOldInit(carol, b, good, ""), false},
		"from ourselves":                     {sealOldInit(bob, b, prefix(b[:], p, "i77e"), ""), false},
		"for somebody else":                  {sealOldInit(alice, c, good, ""), false},
		"of a key of small order":            {sealOldInit(alice, b, prefix(make([]byte, 32), p, "i77e"), ""), false},
		"with a short i":                     {sealOldInit(alice, b, prefix(a[:31], p, "i77e"), ""), false},
		"with a long p":                      {sealOldInit(alice, b, prefix(a[:], "1:p17:0123456789abcdef0", "i77e"), ""), false},
		"without p":                          {sealOldInit(alice, b, prefix(a[:], "", "i77e"), ""), false},
		"with tag 0":                         {sealOldInit(alice, b, prefix(a[:], p, "i0e"), ""), false},
		"with a negative tag":                {sealOldInit(alice, b, prefix(a[:], p, "i-1e"), ""), false},
		"with a tag of 33 bits":              {sealOldInit(alice, b, prefix(a[:], p, "i4294967296e"), ""), false},
		"with a tag as a string":             {sealOldInit(alice, b, prefix(a[:], p, "2:77"), ""), false},
		"with something behind it":           {sealOldInit(alice, b, good, "0:"), false},
		"without signature":                  {sealOldInner(b, append(bytes.Clone(good), 'e')), false},
		"that is empty":                      {sealOldInner(b, nil), false},
		"with an ephemeral of small order":   {bt.NewDict(nil).Bytes("k", make([]byte, 32)).Bytes("n", make([]byte, 24)).Bytes("x", make([]byte, 99)).End(), false},
		"with a short n":                     {bt.NewDict(nil).Bytes("k", a[:]).Bytes("n", make([]byte, 23)).Bytes("x", make([]byte, 99)).End(), false},
		"with less in it than a seal's room": {bt.NewDict(nil).Bytes("k", a[:]).Bytes("n", make([]byte, 24)).Bytes("x", make([]byte, 15)).End(), false},
	} {
		if _, err := opened(x.body, bob); (err == nil) != x.ok {
			t.Errorf("an init %s: %v", what, err)
		}
	}
	h, err := parseHandshake(sealOldInit(alice, b, good, ""))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.open(bob, func(k key.Public) bool { return k != a }); err != errRefused {
		t.Error("refused remote:", err)
	}
	for _, param := range []string{"", "de", "d1:ti0ee", "d1:ti-1ee", "d1:ti4294967296ee", "d1:t1:7e", "d1:ti7ee0:", "d1:ti07ee", "d1:ti7e"} {
		if _, err := parseOldAccept([]byte(param)); err == nil {
			t.Errorf("accept %q is taken", param)
		}
	}
	if tag, err := parseOldAccept([]byte("d1:a0:1:ti4294967295e1:z0:e")); err != nil || tag != math.MaxUint32 {
		t.Error("accept with keys that we do not know:", err)
	}
}

// TestOldCutAndFlip: cut at every byte, every bit changed: nothing of it is taken.
func TestOldCutAndFlip(t *testing.T) {
	step := 1
	if raceEnabled || testing.Short() {
		step = 29
	}
	i := aliceCalls(77)
	_, kr, init, param := shakeOld(t, i, bob, 88)
	n := fillNonce(6)
	accept := sealControl(nil, &kr.out, &n, methodAccept, param)
	list := pathSwitch(&kr, &n, fillID(3), init, true)
	inner := sealOldContents(t, init)
	for _, c := range []struct {
		what  string
		body  []byte
		until int // bits up to this byte count
		opens func([]byte) bool
	}{
		{"init", init, len(init), func(b []byte) bool { _, err := opened(b, bob); return err == nil }},
		{"accept", accept, len(accept), func(b []byte) bool { _, err := i.open(b, &n); return err == nil }},
		{"list", list, len("l65:") + 65, func(b []byte) bool {
			h, err := parseHandshake(b)
			if err != nil || h.kind != kindSwitch {
				return false
			}
			_, err = openSwitch(h.sealed, &kr, &n)
			return err == nil
		}},
		{"inner init", inner, len(inner), func(b []byte) bool {
			in, signed, sig, err := parseOldInit(b)
			return err == nil && in.remote.Verify(signed, sig)
		}},
	} {
		if !c.opens(bytes.Clone(c.body)) {
			t.Fatal(c.what, "is not taken at all")
		}
		for n := range len(c.body) {
			if c.opens(bytes.Clone(c.body[:n])) {
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
}

// sealOldContents opens an init to bob by hand.
func sealOldContents(t testing.TB, init []byte) []byte {
	h, err := parseHandshake(init)
	if err != nil {
		t.Fatal(err)
	}
	k, err := seal.RelayPathKey(bob, h.eph, &h.nonce)
	if err != nil {
		t.Fatal(err)
	}
	inner, ok := seal.Open(bytes.Clone(h.sealed), &k, &h.nonce)
	if !ok {
		t.Fatal("does not open")
	}
	return inner
}
