package netdb

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/key"
)

// sealedAt is a sealed contact of client n, of about size bytes more than the least.
func sealedAt(n int, at time.Time, size int) (raw []byte, blinded key.Public) {
	b := secret(n).Blind()
	blinded = b.Public()
	d := bt.NewDict(nil).Bytes("i", blinded[:]).Bytes("n", make([]byte, 24)).Int("t", at.UnixMilli()).Bytes("x", make([]byte, size))
	sig := b.Sign(d.Prefix())
	return d.Bytes("~", sig[:]).End(), blinded
}

// Protocol 1 section 10.
func TestContacts(t *testing.T) {
	now := time.UnixMilli(1800000000000)
	c := NewContacts(0, 0)
	put := func(raw []byte, wantStored bool, wantErr bool) {
		t.Helper()
		if stored, err := c.Put(raw, now); stored != wantStored || (err != nil) != wantErr {
			t.Errorf("stored %v, error %v", stored, err)
		}
	}
	first, blinded := sealedAt(300, now, 10)
	newer, _ := sealedAt(300, now.Add(time.Millisecond), 20)
	older, _ := sealedAt(300, now.Add(-time.Minute), 10)
	put(first, true, false)
	put(first, false, false) // already have
	put(older, false, false) // already have a newer one
	put(newer, true, false)
	put(first, false, false)
	if !bytes.Equal(c.Get(blinded, now), newer) {
		t.Error("not the newest")
	}
	badOld := bytes.Clone(older)
	badOld[len(badOld)-2] ^= 1
	put(badOld, false, false) // found to be old before the signature is looked at
	bad, otherBlinded := sealedAt(301, now, 10)
	bad[len(bad)-2] ^= 1
	put(bad, false, true)
	put(first[:len(first)-1], false, true)
	if c.Get(otherBlinded, now) != nil || c.Stats().Count != 1 {
		t.Error("a bad one was kept")
	}
	put([]byte{}, false, true)

	for _, x := range []struct {
		age time.Duration
		ok  bool
	}{{ContactLifetime, true}, {ContactLifetime + time.Millisecond, false}, {-MaxAhead, true}, {-MaxAhead - time.Millisecond, false}} {
		raw, _ := sealedAt(302, now.Add(-x.age), 0)
		_, err := NewContacts(0, 0).Put(raw, now)
		if (err == nil) != x.ok || err != nil && !errors.Is(err, ErrClock) {
			t.Errorf("age %v: %v", x.age, err)
		}
	}
	end := now.Add(time.Millisecond + ContactLifetime)
	if c.Get(blinded, end.Add(-1)) == nil || c.Get(blinded, end) != nil {
		t.Error("life does not end after 1380 s")
	}
	c.Purge(end)
	if c.Stats().Count != 1 {
		t.Error("purged too early")
	}
	c.Purge(end.Add(1))
	if c.Stats() != (ContactStats{}) {
		t.Errorf("after the purge: %+v", c.Stats())
	}
	large, _ := sealedAt(303, now, MaxSealed)
	put(large, false, true)
}

func TestContactsBounded(t *testing.T) {
	now := time.UnixMilli(1800000000000)
	c := NewContacts(3, 0)
	keys := make([]key.Public, 6)
	for i := range keys {
		// 0 was signed last, though it says so of the future: its arrival counts.
		at := now
		if i == 0 {
			at = now.Add(5 * time.Minute)
		}
		raw, blinded := sealedAt(310+i, at, 0)
		keys[i] = blinded
		if stored, err := c.Put(raw, now.Add(time.Duration(i)*time.Second)); !stored || err != nil {
			t.Fatal(stored, err)
		}
	}
	if c.Get(keys[0], now) != nil || c.Stats().Count != 3 || c.Stats().Evicted != 3 {
		t.Errorf("%+v", c.Stats())
	}
	c = NewContacts(0, 1) // room for the largest contact
	for i := range 10 {
		raw, _ := sealedAt(320+i, now.Add(time.Duration(i)), 20000)
		if stored, err := c.Put(raw, now); !stored || err != nil {
			t.Fatal(stored, err)
		}
	}
	if s := c.Stats(); s.Count != 3 || s.Bytes > MaxSealed || s.Evicted != 7 || len(c.order) != 3 || len(c.entries) != 3 {
		t.Errorf("%+v", s)
	}
}
