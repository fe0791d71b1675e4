package key

import (
	"crypto/sha512"

	"filippo.io/edwards25519"
	"golang.org/x/crypto/blake2b"
)

// blindDomain keys the hashes of blinding; the protocol has this one domain.
const blindDomain = "SessionRouterClientContact"

// Blinded is the key under which a client's contact is stored and signed (protocol 1 section 4.8): whoever knows the client's key can derive
// the public half, nobody can go back. Like Secret it is neither compared nor printed; safe for concurrent use.
type Blinded struct {
	hidden
	in func() *blinded
}

type blinded struct {
	scalar *edwards25519.Scalar
	hash   [32]byte // takes the place of the second half of SHA-512 of the seed
	public Public
}

// blindFactor is a 512-bit hash of the root key modulo the group order.
func blindFactor(root Public) *edwards25519.Scalar {
	h := mac(64, root[:])
	f, err := edwards25519.NewScalar().SetUniformBytes(h)
	if err != nil {
		panic("key: " + err.Error()) // only for another length
	}
	return f
}

// mac is BLAKE2b of n bytes, keyed with the domain.
func mac(n int, msg []byte) []byte {
	h, err := blake2b.New(n, []byte(blindDomain))
	if err != nil {
		panic("key: " + err.Error()) // only for other lengths
	}
	h.Write(msg)
	return h.Sum(nil)
}

// Blind gives the public key of p's contact, or p.Check's error: then p is nobody's address.
func (p Public) Blind() (Public, error) {
	pt, err := p.point()
	if err != nil {
		return Public{}, err
	}
	return Public(pt.ScalarMult(blindFactor(p), pt).Bytes()), nil
}

// Blind gives the key that signs the contact of s; its public half is s.Public().Blind().
func (s *Secret) Blind() *Blinded {
	b := &blinded{scalar: edwards25519.NewScalar().Multiply(s.in().scalar, blindFactor(s.in().public))}
	b.hash = [32]byte(mac(32, s.in().private[:32]))
	b.public = Public(new(edwards25519.Point).ScalarBaseMult(b.scalar).Bytes())
	return &Blinded{in: func() *blinded { return b }}
}

// Public gives the blinded public key.
func (b *Blinded) Public() Public { return b.in().public }

// Sign gives a signature of msg that verifies as ordinary Ed25519 under the blinded public key.
func (b *Blinded) Sign(msg []byte) (sig [64]byte) {
	r := hashScalar(b.in().hash[:], msg)
	copy(sig[:32], new(edwards25519.Point).ScalarBaseMult(r).Bytes())
	c := hashScalar(sig[:32], b.in().public[:], msg)
	copy(sig[32:], c.MultiplyAdd(c, b.in().scalar, r).Bytes())
	return sig
}

// hashScalar is SHA-512 of the parts modulo the group order.
func hashScalar(parts ...[]byte) *edwards25519.Scalar {
	h := sha512.New()
	for _, p := range parts {
		h.Write(p)
	}
	s, err := edwards25519.NewScalar().SetUniformBytes(h.Sum(nil))
	if err != nil {
		panic("key: " + err.Error()) // only for another length
	}
	return s
}
