package key

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"reflect"
	"strings"
	"testing"

	"filippo.io/edwards25519"

	"lokinetd/router/testkit"
)

// A key file comes from a backup, another program or a slip of the hand. It may be anything; what is taken for a key must be one, and the same one
// however it is written.
//
// Decoders: ParseSecret parseSecret isHex legacySecret btString btSkip
func FuzzParseSecret(f *testing.F) {
	for _, data := range forms(FromSeed(counting(0))) {
		f.Add(data)
	}
	for _, v := range badForms(FromSeed(counting(0))) {
		f.Add([]byte(v.data))
	}
	f.Add([]byte("d1:ali-1ee1:s64:"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSecret(data)
		if err != nil {
			if s != nil || !strings.HasPrefix(err.Error(), "key: ") {
				t.Errorf("%v, %v", s, err)
			}
			return
		}
		if err := s.Public().Check(); err != nil {
			t.Error(err)
		}
		for name, form := range forms(s) {
			if again, err := ParseSecret(form); err != nil || again.Bytes64() != s.Bytes64() {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// Addresses come from users, configuration and the control socket. No text may crash the parser, have two meanings, or be another one's canonical form.
//
// Decoders: ParsePublic parsePublic Public.UnmarshalText ParseAddress Address.UnmarshalText addressOf
func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{text + ".loki", padded + ".SESH", text + ".snode", text, "jason.loki", "..", text + ".loki.", "\u212a.loki", text[:50] + "\r\n", text[:51] + "0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePublic(s)
		if a, aerr := ParseAddress(s + "." + TLDSnode); (err == nil) != (aerr == nil) || err == nil && a != (Address{p, Relay}) {
			t.Errorf("%q: %v, %v; with a suffix %v, %v", s, p, err, a, aerr)
		}
		var q Public
		if qerr := q.UnmarshalText([]byte(s)); (qerr == nil) != (err == nil) || q != p {
			t.Errorf("%q: UnmarshalText gives %v, %v", s, q, qerr)
		}
		a, err := ParseAddress(s)
		var again Address
		if e := again.UnmarshalText([]byte(s)); (e == nil) != (err == nil) || again != a {
			t.Errorf("%q: UnmarshalText gives %v, %v", s, again, e)
		}
		if err != nil {
			return
		}
		for _, again := range []string{a.String(), a.Text(TLDSesh)} {
			if b, err := ParseAddress(again); err != nil || b != a {
				t.Errorf("%q: %q is %v, %v", s, again, b, err)
			}
		}
		// All of the text but the padding of one character is in the address.
		if got := a.String(); len(s) < 51 || lower(s[:51]) != got[:51] {
			t.Errorf("%q became %q", s, got)
		}
		if n, err := ParseName(s); err != nil || n.Kind != NameAddress || n.Address != a {
			t.Errorf("%q as a name: %+v, %v", s, n, err)
		}
	})
}

// Names come in DNS queries from any program on the host, web pages included. No text may crash the parser, leave the name's own parts
// ambiguous, or be asked of the network as a name that the registry cannot hold.
//
// Decoders: ParseName CheckSNS faultSNS
func FuzzParseName(f *testing.F) {
	for _, s := range []string{
		"jason.loki", "a.b.jason.LOKI.", text + ".loki", "x.ipv4." + padded + ".sesh", "localhost.snode", "random.snode", "xn--a.loki", "..loki", "loki", "example.com",
		"_http._tcp." + text + ".snode", "\u212a.loki", "a\\.b.c.loki", "-.loki",
		"loki.loki", "jason.sesh", "bn--abc.loki", "m\u00fcller.loki", "under_score.loki", "a..b.loki", strings.Repeat("a", 33) + ".loki", strings.Repeat("a", 64) + ".loki",
		strings.Repeat("a.", 128) + "loki", "a.sesh", "a..loki",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		CheckSNS(s)
		n, err := ParseName(s)
		if err != nil {
			if errors.Is(err, ErrNotOurs) == errors.Is(err, ErrMalformed) {
				t.Errorf("%q: %v is not one of the two errors", s, err)
			}
			return
		}
		again, err := ParseName(n.String())
		if err != nil || !reflect.DeepEqual(again, n) {
			t.Errorf("%q: %+v, again %+v, %v", s, n, again, err)
		}
		if (n.Kind == NameSNS) != (n.SNS != "") || (n.Kind == NameSNS && CheckSNS(n.SNS) != nil) || (n.Kind != NameAddress && !n.Address.IsZero()) {
			t.Errorf("%q: %+v", s, n)
		}
	})
}

// Public keys come in contacts, path builds and handshakes of anyone. Threat: bytes that one of the operations takes for a key and another for another one or for none,
// or with a part of small order, which would make shared secrets, signatures or blinded keys meaningless.
//
// Decoders: Public.Check Public.point Public.Verify Public.ECDH Public.Blind Secret.DH
func FuzzPublic(f *testing.F) {
	own := FromSeed(counting(0x20))
	msg := []byte("message")
	sig := FromSeed(counting(0)).Sign(msg)
	for _, b := range badPublics(f) {
		f.Add(b.key[:], sig[:])
	}
	for from := range byte(8) {
		p := FromSeed(counting(from)).Public()
		f.Add(p[:], sig[:])
	}
	// Under the identity as key, R = s*B with any s is a signature of any message; see TestBadPublicKeys.
	f.Add(testkit.Hex(f, torsion[0]), append(edwards25519.NewGeneratorPoint().Bytes(), scalarOne().Bytes()...))
	order8 := testkit.Hex(f, torsion[4])
	f.Fuzz(func(t *testing.T, b, sig []byte) {
		if len(b) != 32 {
			return
		}
		p := Public(b)
		bad := p.Check()
		shared, err := own.DH(p)
		x, err2 := p.ECDH()
		blinded, err3 := p.Blind()
		if err != bad || err2 != bad || err3 != bad {
			t.Fatalf("%x: %v, %v, %v, %v", b, bad, err, err2, err3)
		}
		if q, err := ParsePublic(p.String()); err != nil || q != p {
			t.Fatalf("%x: %v, %v", b, q, err)
		}
		if got, plain := p.Verify(msg, sig), len(sig) == ed25519.SignatureSize && ed25519.Verify(b, msg, sig); got != (plain && bad == nil) {
			t.Fatalf("%x: verifies %x: %v, by plain Ed25519: %v", b, sig, got, plain)
		}
		if bad != nil {
			return
		}
		want, err := own.ECDH().ECDH(x)
		if err != nil {
			t.Fatal(err)
		}
		point, err := new(edwards25519.Point).SetBytes(shared[:])
		if err != nil || !bytes.Equal(point.BytesMontgomery(), want) {
			t.Fatalf("%x: shared %x, by X25519 %x: %v", b, shared, want, err)
		}
		if err := blinded.Check(); err != nil {
			t.Fatalf("%x: blinded: %v", b, err)
		}
		low, err := new(edwards25519.Point).SetBytes(order8)
		if err != nil {
			t.Fatal(err)
		}
		pt, err := new(edwards25519.Point).SetBytes(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := Public(low.Add(low, pt).Bytes()).Check(); err != errNotPrime {
			t.Fatalf("%x and a point of order 8: %v", b, err)
		}
	})
}
