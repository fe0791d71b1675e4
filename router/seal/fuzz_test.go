package seal

import (
	"bytes"
	"testing"

	"lokinetd/router/key"
	"lokinetd/router/testkit"
)

// A sealed box comes from anyone who knows our address, before anything about the sender is known. It may be anything: it must not crash us, open unless it was
// made for us, or be changed.
//
// Decoders: OpenBox
func FuzzOpenBox(f *testing.F) {
	to := secret(0)
	for _, n := range []int{0, 1, 100} {
		b, err := Box(to.Public(), testkit.Counting(0, n))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	for _, h := range lowOrder {
		f.Add(append(testkit.Hex(f, h), make([]byte, TagSize+5)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		msg, err := OpenBox(to, b)
		if !bytes.Equal(b, before) {
			t.Error("the box is changed")
		}
		if err != nil {
			if msg != nil {
				t.Error("a message beside an error")
			}
			return
		}
		if len(msg) != len(b)-BoxOverhead {
			t.Errorf("%d bytes of a box of %d", len(msg), len(b))
		}
		again, err := Box(to.Public(), msg)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OpenBox(to, again); err != nil || !bytes.Equal(got, msg) {
			t.Errorf("boxed again: %v", err)
		}
	})
}

// A record comes from a relay, which may lie, for a name that a user typed. What opens must be the one record of that name, owner and nonce.
//
// Decoders: OpenName
func FuzzOpenName(f *testing.F) {
	owner := secret(0).Public()
	nonce := Nonce(testkit.Counting(0x40, 24))
	f.Add("jason.loki", SealName("jason.loki", owner, &nonce), nonce[:])
	f.Add("Jason.loki", SealName("jason.loki", key.Public{}, &nonce), nonce[:])
	f.Add("", []byte{}, nonce[:])
	f.Add("jason.loki", make([]byte, NameSize), nonce[:])
	f.Fuzz(func(t *testing.T, name string, record, n []byte) {
		if len(n) != len(nonce) {
			return
		}
		nonce := Nonce(n)
		owner, err := OpenName(name, record, &nonce)
		if err != nil {
			if owner != (key.Public{}) {
				t.Error("an owner beside an error")
			}
			return
		}
		if again := SealName(name, owner, &nonce); !bytes.Equal(again, record) {
			t.Errorf("sealed again: %x, want %x", again, record)
		}
	})
}

// The keys in a session's first two messages, and in a path build's frames, come from anyone. Threat: a key of small order or a ciphertext of another size that makes the
// keys known to others, or the two sides' keys the same.
//
// Decoders: Respond Response.Keys Ephemeral.Keys x25519 ClientPathKey RelayPathKey pathKey
func FuzzKeys(f *testing.F) {
	e, own := NewEphemeral(), secret(0)
	good, err := Respond(e.X(), e.M())
	if err != nil {
		f.Fatal(err)
	}
	public := secret(0x20).Public()
	x := e.X()
	f.Add(x[:], e.M(), good.C)
	f.Add(public[:], e.M()[1:], good.C[1:])
	f.Add(good.Y[:], bytes.Repeat([]byte{0xff}, EncapsulationSize), append(good.C[:CiphertextSize-1:CiphertextSize-1], ^good.C[CiphertextSize-1]))
	for _, low := range lowOrder {
		f.Add(testkit.Hex(f, low), e.M(), good.C)
	}
	for _, bad := range badKeys(f) {
		f.Add(bad[:], []byte{}, []byte{})
	}
	i, r := own.Public(), public
	out, in, err := e.Keys(i, r, 1, 2, good.Y, good.C)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, x, m, c []byte) {
		if len(x) != 32 {
			return
		}
		if _, _, err := new(Ephemeral).Keys(i, r, 1, 2, [32]byte(x), c); err != errWiped {
			t.Fatal(err)
		}
		if _, _, err := new(Response).Keys(i, r, 1, 2); err != errWiped {
			t.Fatal(err)
		}
		// An initiator's X and M at a responder.
		resp, err := Respond([32]byte(x), m)
		if err == nil {
			k1, k2, err := resp.Keys(i, r, 1, 2)
			if err != nil || k1 == k2 || k1 == (Key{}) || k2 == (Key{}) || len(resp.C) != CiphertextSize || len(m) != EncapsulationSize {
				t.Fatalf("X %x: %v", x, err)
			}
			if y, want := e.X(), e.M(); bytes.Equal(m, want) && bytes.Equal(x, y[:]) {
				if o1, o2, err := e.Keys(i, r, 1, 2, resp.Y, resp.C); err != nil || o1 != k2 || o2 != k1 {
					t.Fatalf("the sides differ: %v", err)
				}
			}
		} else if resp.C != nil || resp.Y != [32]byte{} {
			t.Fatalf("a response beside %v", err)
		}
		// A responder's Y and c at an initiator.
		same := bytes.Equal(x, good.Y[:]) && bytes.Equal(c, good.C)
		k1, k2, err := e.Keys(i, r, 1, 2, [32]byte(x), c)
		if err != nil && (k1 != Key{} || k2 != Key{} || same) || err == nil && (k1 == k2 || (k1 == out) != same || (k2 == in) != same) {
			t.Fatalf("Y %x, c of %d bytes: %v", x, len(c), err)
		}
		// A client's key in a frame at a relay, and a relay's in a contact at a client.
		nonce, p := Nonce(testkit.Counting(x[0], 24)), key.Public(x)
		bad := p.Check()
		atRelay, err := RelayPathKey(own, p, &nonce)
		atClient, err2 := ClientPathKey(own, p, &nonce)
		if err != bad || err2 != bad || (bad != nil) != (atRelay == Key{}) || (bad != nil) != (atClient == Key{}) || bad == nil && p != own.Public() && atRelay == atClient {
			t.Fatalf("%x: %v, %v, %v", x, bad, err, err2)
		}
	})
}
