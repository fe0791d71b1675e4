package key

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"filippo.io/edwards25519"
)

// Secret is an Ed25519 identity or ephemeral with its secret half. It is immutable until Wipe and safe for concurrent use.
//
// A Secret cannot be compared, printed, logged or marshalled, by itself or as a field of something else.
type Secret struct {
	hidden
	// A function, not a pointer, keeps the secrets: fmt shows what is in unexported fields without asking their methods, and follows pointers when the verb
	// is wrong for the type. Nothing looks into a function, and it makes the struct incomparable.
	in func() *secret
}

type secret struct {
	private ed25519.PrivateKey   // seed, then public key
	scalar  *edwards25519.Scalar // the clamped first half of SHA-512 of the seed, reduced
	public  Public
}

// Generate makes a new random identity.
func Generate() *Secret {
	var seed [32]byte
	rand.Read(seed[:])
	return FromSeed(seed)
}

// FromSeed makes the identity of a 32-byte Ed25519 seed.
func FromSeed(seed [32]byte) *Secret {
	private := ed25519.NewKeyFromSeed(seed[:])
	h := sha512.Sum512(seed[:])
	scalar, err := edwards25519.NewScalar().SetBytesWithClamping(h[:32])
	if err != nil {
		panic("key: " + err.Error()) // only for another length
	}
	in := &secret{private: private, scalar: scalar, public: Public(private[32:])}
	return &Secret{in: func() *secret { return in }}
}

// Public gives the public half.
func (s *Secret) Public() Public { return s.in().public }

// Sign gives the Ed25519 signature of msg.
func (s *Secret) Sign(msg []byte) [64]byte { return [64]byte(ed25519.Sign(s.in().private, msg)) }

// Signer gives the secret to crypto/tls. It signs as crypto/ed25519's private key does and cannot be printed either.
func (s *Secret) Signer() crypto.Signer { return signer{s: s} }

type signer struct {
	hidden
	s *Secret
}

func (g signer) Public() crypto.PublicKey {
	p := g.s.Public()
	return ed25519.PublicKey(p[:])
}

func (g signer) Sign(rand io.Reader, msg []byte, opts crypto.SignerOpts) ([]byte, error) {
	return g.s.in().private.Sign(rand, msg, opts)
}

// Seed gives the 32-byte seed, to be hashed under; callers do not keep it.
func (s *Secret) Seed() [32]byte { return [32]byte(s.in().private.Seed()) }

// Bytes64 gives libsodium's form: seed, then public key. Callers do not keep it.
func (s *Secret) Bytes64() [64]byte { return [64]byte(s.in().private) }

// DH gives the compressed Edwards point of the secret scalar times p (protocol 1 section 4.5, step 2), or p.Check's error. The result is the same
// on both sides; it is not uniform, so it is hashed before use (router/seal does).
func (s *Secret) DH(p Public) ([32]byte, error) {
	pt, err := p.point()
	if err != nil {
		return [32]byte{}, err
	}
	// Not the identity: p is of prime order, and a clamped scalar is no multiple of it.
	return [32]byte(pt.ScalarMult(s.in().scalar, pt).Bytes()), nil
}

// ECDH gives the X25519 key that belongs to the secret (protocol 1 section 4.4).
func (s *Secret) ECDH() *ecdh.PrivateKey {
	h := sha512.Sum512(s.in().private[:32])
	h[0] &= 248
	h[31] &= 127
	h[31] |= 64
	x, err := ecdh.X25519().NewPrivateKey(h[:32])
	if err != nil {
		panic("key: " + err.Error()) // only for another length
	}
	clear(h[:])
	return x
}

// Wipe overwrites the secret. It must not be used afterwards, nor while another goroutine uses it. Copies that the standard library made while
// computing are left to the garbage collector.
func (s *Secret) Wipe() {
	clear(s.in().private)
	*s.in().scalar = edwards25519.Scalar{}
}

// hidden makes a type that embeds it say nothing of itself. Its methods promote to values and pointers alike.
type hidden struct{}

const hiddenText = "(secret)"

var errHidden = errors.New("key: a secret is not marshalled")

func (hidden) String() string                 { return hiddenText }
func (hidden) GoString() string               { return hiddenText }
func (hidden) Format(f fmt.State, _ rune)     { io.WriteString(f, hiddenText) }
func (hidden) LogValue() slog.Value           { return slog.StringValue(hiddenText) }
func (hidden) MarshalText() ([]byte, error)   { return nil, errHidden }
func (hidden) MarshalJSON() ([]byte, error)   { return nil, errHidden }
func (hidden) MarshalBinary() ([]byte, error) { return nil, errHidden }
