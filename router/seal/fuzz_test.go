package seal

import (
	"bytes"
	"testing"

	"lokinetd/router/key"
	"lokinetd/router/testkit"
)

// A sealed box comes from anyone who knows our address, before anything about the sender is known. It may be anything: it must not crash us, open unless it was
// made for us, or be changed.
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
func FuzzOpenName(f *testing.F) {
	owner := secret(0).Public()
	nonce := Nonce(testkit.Counting(0x40, 24))
	f.Add("jason.loki", SealName("jason.loki", owner, &nonce), nonce[:])
	f.Add("Jason.loki", SealName("jason.loki", key.Public{}, &nonce), nonce[:])
	f.Add("", []byte{}, nonce[:])
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
