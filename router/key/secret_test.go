package key

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"reflect"
	"testing"

	"filippo.io/edwards25519"

	"lokinetd/router/testkit"
)

// torsion are the canonical encodings of the points of order 1, 2, 4, 4, 8, 8, 8, 8. Origin: libsodium's list of small-order points.
var torsion = []string{
	"0100000000000000000000000000000000000000000000000000000000000000",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0000000000000000000000000000000000000000000000000000000000000080",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
}

type badPublic struct {
	key  Public
	want error
}

// badPublics gives keys of each kind that must be refused.
func badPublics(t testing.TB) (bad []badPublic) {
	for _, h := range torsion {
		bad = append(bad, badPublic{Public(testkit.Hex(t, h)), errSmallOrder})
	}
	// The same points and some larger ones with y not reduced, or x = 0 with the sign bit set.
	for _, h := range []string{
		"0100000000000000000000000000000000000000000000000000000000000080",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // y = 3
	} {
		bad = append(bad, badPublic{Public(testkit.Hex(t, h)), errNotCanonical})
	}
	bad = append(bad, badPublic{Public(testkit.Hex(t, "0200000000000000000000000000000000000000000000000000000000000000")), errNotPoint})
	// A good key plus a point of small order: half of all points on the curve and more are like this.
	honest, err := FromSeed(counting(0)).Public().point()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range torsion[1:] {
		low, err := new(edwards25519.Point).SetBytes(testkit.Hex(t, h))
		if err != nil {
			t.Fatal(err)
		}
		bad = append(bad, badPublic{Public(low.Add(low, honest).Bytes()), errNotPrime})
	}
	return bad
}

func TestBadPublicKeys(t *testing.T) {
	own := FromSeed(counting(0x20))
	msg := []byte("message")
	for _, b := range badPublics(t) {
		p := b.key
		if got := p.Check(); got != b.want {
			t.Errorf("%x: Check: %v, want %v", p[:], got, b.want)
		}
		if _, err := own.DH(p); err != b.want {
			t.Errorf("%x: DH: %v, want %v", p[:], err, b.want)
		}
		if _, err := p.ECDH(); err != b.want {
			t.Errorf("%x: ECDH: %v, want %v", p[:], err, b.want)
		}
		if _, err := p.Blind(); err != b.want {
			t.Errorf("%x: Blind: %v, want %v", p[:], err, b.want)
		}
	}
	// What the check in Verify is for: under the identity as key, R = s*B with any s is a signature of any message.
	forged := append(edwards25519.NewGeneratorPoint().Bytes(), scalarOne().Bytes()...)
	identity := Public(testkit.Hex(t, torsion[0]))
	if !ed25519.Verify(identity[:], msg, forged) {
		t.Error("the forgery does not fool plain Ed25519: the test is void")
	}
	if identity.Verify(msg, forged) {
		t.Error("a signature forged under the identity verifies")
	}
}

func TestSignatures(t *testing.T) {
	r := testkit.Rand(t)
	s := FromSeed([32]byte(r.Bytes(32)))
	blind := s.Blind()
	for _, k := range []struct {
		name string
		pub  Public
		sign func([]byte) [64]byte
	}{{"root", s.Public(), s.Sign}, {"blinded", blind.Public(), blind.Sign}} {
		msg := []byte("d1:a1:be")
		sig := k.sign(msg)
		if !k.pub.Verify(msg, sig[:]) {
			t.Fatalf("%s: a good signature does not verify", k.name)
		}
		if k.sign(msg) != sig {
			t.Errorf("%s: signatures differ", k.name)
		}
		for i := range 8 * len(sig) {
			bad := sig
			bad[i/8] ^= 1 << (i % 8)
			if k.pub.Verify(msg, bad[:]) {
				t.Errorf("%s: verifies with bit %d of the signature flipped", k.name, i)
			}
		}
		for i := range 8 * len(msg) {
			bad := bytes.Clone(msg)
			bad[i/8] ^= 1 << (i % 8)
			if k.pub.Verify(bad, sig[:]) {
				t.Errorf("%s: verifies with bit %d of the message flipped", k.name, i)
			}
		}
		for i := range 8 * len(k.pub) {
			bad := k.pub
			bad[i/8] ^= 1 << (i % 8)
			if bad.Verify(msg, sig[:]) {
				t.Errorf("%s: verifies with bit %d of the key flipped", k.name, i)
			}
		}
		for n := range sig {
			if k.pub.Verify(msg, sig[:n]) {
				t.Errorf("%s: %d bytes verify as a signature", k.name, n)
			}
		}
		if k.pub.Verify(msg, append(sig[:], 0)) {
			t.Errorf("%s: 65 bytes verify as a signature", k.name)
		}
	}
}

func TestDH(t *testing.T) {
	r := testkit.Rand(t)
	for range 8 {
		a, b := FromSeed([32]byte(r.Bytes(32))), FromSeed([32]byte(r.Bytes(32)))
		ab, err := a.DH(b.Public())
		if err != nil {
			t.Fatal(err)
		}
		ba, err := b.DH(a.Public())
		if err != nil {
			t.Fatal(err)
		}
		if ab != ba {
			t.Errorf("the two sides differ: %x, %x", ab, ba)
		}
		// The same point, mapped to the Montgomery curve, is X25519's result: a check of both against crypto/ecdh.
		pt, err := new(edwards25519.Point).SetBytes(ab[:])
		if err != nil {
			t.Fatal(err)
		}
		bx, err := b.Public().ECDH()
		if err != nil {
			t.Fatal(err)
		}
		x, err := a.ECDH().ECDH(bx)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(pt.BytesMontgomery(), x) {
			t.Errorf("Edwards and X25519 results differ: %x, %x", pt.BytesMontgomery(), x)
		}
		pb, err := a.Public().Blind()
		if err != nil || pb != a.Blind().Public() {
			t.Errorf("blinded keys of the two halves differ: %v", err)
		}
	}
}

func TestSigner(t *testing.T) {
	s := FromSeed(counting(0))
	g := s.Signer()
	pub, ok := g.Public().(ed25519.PublicKey)
	if !ok || Public(pub) != s.Public() {
		t.Errorf("public key %v", g.Public())
	}
	sig, err := g.Sign(rand.Reader, []byte("m"), crypto.Hash(0))
	if want := s.Sign([]byte("m")); err != nil || !bytes.Equal(sig, want[:]) {
		t.Errorf("%x, %v", sig, err)
	}
	if _, err := g.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err == nil {
		t.Error("signs a SHA-256 hash")
	}
}

func TestSecretBytes(t *testing.T) {
	s := Generate()
	pub := s.Public()
	seed, whole := s.Seed(), s.Bytes64()
	if FromSeed(seed).Public() != pub || !bytes.Equal(whole[:32], seed[:]) || !bytes.Equal(whole[32:], pub[:]) {
		t.Error("seed, whole and public half do not belong together")
	}
	if Generate().Public() == pub {
		t.Error("Generate gives the same key twice")
	}
	s.Wipe()
	if s.Seed() != [32]byte{} || s.in().scalar.Equal(edwards25519.NewScalar()) != 1 {
		t.Error("not wiped")
	}
	if s.Public() != pub {
		t.Error("Wipe changes the public half")
	}
}

// Whatever is done with a secret, or with something that holds one, none of it comes out.
func TestSecretsStayHidden(t *testing.T) {
	s := FromSeed(counting(0x51))
	b := s.Blind()
	seed := s.Seed()
	parts := [][]byte{seed[:], s.in().scalar.Bytes(), s.ECDH().Bytes(), b.in().scalar.Bytes(), b.in().hash[:]}
	type exported struct {
		S *Secret
		V Secret
		B *Blinded
		C Blinded
		G crypto.Signer
	}
	type unexported struct {
		s *Secret
		v Secret
		b *Blinded
		c Blinded
		g crypto.Signer
	}
	values := []any{
		s, *s, b, *b, s.Signer(), &s,
		exported{s, *s, b, *b, s.Signer()}, &exported{s, *s, b, *b, s.Signer()},
		unexported{s, *s, b, *b, s.Signer()}, &unexported{s, *s, b, *b, s.Signer()},
		[]*Secret{s}, map[string]*Secret{"k": s}, []Secret{*s},
	}
	for _, v := range values {
		testkit.Hidden(t, v, parts, "%p")
	}
	for _, v := range []any{s, b, s.Signer()} {
		testkit.Unencodable(t, v)
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[Secret](), reflect.TypeFor[Blinded]()} {
		if typ.Comparable() {
			t.Errorf("%v is comparable", typ)
		}
	}
}
