package key

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"filippo.io/edwards25519"
)

// TextLen is the length of a public key in base32z: 51 characters of 5 bits and one of which only the highest bit counts.
const TextLen = 52

// base32z is the alphabet of protocol 1 section 2.1, most significant bits first, without padding characters.
var base32z = base32.NewEncoding("ybndrfg8ejkmcpqxot1uwisza345h769").WithPadding(base32.NoPadding)

// Public is an Ed25519 public key: the RouterID of a relay, the identity of a client, or a blinded key (protocol 1 section 2.2).
// Any 32 bytes are a Public; Check says whether they are a key.
type Public [32]byte

// ParsePublic reads 52 base32z characters in any case, without a suffix. The four padding bits of the last character are ignored, as the reference
// does; String gives the canonical form.
func ParsePublic(text string) (Public, error) {
	p, ok := parsePublic(text)
	if !ok {
		return Public{}, fmt.Errorf("key: %.80q is not a public key of %d base32z characters", text, TextLen)
	}
	return p, nil
}

func parsePublic(text string) (p Public, ok bool) {
	if len(text) != TextLen {
		return Public{}, false
	}
	var lower [TextLen]byte
	for i := range lower {
		lower[i] = lowerByte(text[i])
	}
	// The decoder skips line breaks: then fewer than 32 bytes come out.
	n, err := base32z.Decode(p[:], lower[:])
	if err != nil || n != len(p) {
		return Public{}, false
	}
	return p, true
}

// String gives the 52 base32z characters, lower case, without a suffix.
func (p Public) String() string { return base32z.EncodeToString(p[:]) }

// MarshalText gives String.
func (p Public) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParsePublic.
func (p *Public) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePublic(string(text))
	return err
}

// IsZero reports whether p is 32 zero bytes, which stand for "no key". (They are the encoding of a point of order 4, never a valid key.)
func (p Public) IsZero() bool { return p == Public{} }

// Compare orders keys by their raw bytes, as the smaller-key rules of the protocol do: -1, 0 or 1.
func (p Public) Compare(o Public) int { return bytes.Compare(p[:], o[:]) }

var revealInLogs atomic.Bool

// RevealInLogs decides what the LogValue of Public, Address and Name shows: the whole text, or (the default) only of what kind it is. Keys and names of
// remotes belong into logs at debug level only; whoever sets the process's log level calls this along with it, so that no log line has to remember.
// A node's own address, where it is to be shown anyway, is logged as its String.
func RevealInLogs(on bool) { revealInLogs.Store(on) }

// LogValue shows the key when RevealInLogs is on.
func (p Public) LogValue() slog.Value { return logValue(p, "(key)") }

func logValue(v fmt.Stringer, hidden string) slog.Value {
	if revealInLogs.Load() {
		return slog.StringValue(v.String())
	}
	return slog.StringValue(hidden)
}

// Check reports why p cannot be used as a key: it must be the canonical encoding of a point on the curve, in the prime-order subgroup and not the
// identity. All of Verify, DH, ECDH and Blind demand it.
func (p Public) Check() error {
	_, err := p.point()
	return err
}

var (
	errNotPoint     = errors.New("key: public key is not a point on the curve")
	errNotCanonical = errors.New("key: public key is not canonically encoded")
	errSmallOrder   = errors.New("key: public key is of small order")
	errNotPrime     = errors.New("key: public key is not in the prime-order subgroup")
)

// minusOne is the group order less one, the greatest scalar there is.
var minusOne = edwards25519.NewScalar().Negate(scalarOne())

func scalarOne() *edwards25519.Scalar {
	s, err := edwards25519.NewScalar().SetCanonicalBytes(append([]byte{1}, make([]byte, 31)...))
	if err != nil {
		panic(err)
	}
	return s
}

// point decodes and checks p. It runs in variable time: public keys are no secrets.
func (p Public) point() (*edwards25519.Point, error) {
	pt, err := new(edwards25519.Point).SetBytes(p[:])
	if err != nil {
		return nil, errNotPoint
	}
	if !bytes.Equal(pt.Bytes(), p[:]) {
		return nil, errNotCanonical
	}
	identity := edwards25519.NewIdentityPoint()
	if new(edwards25519.Point).MultByCofactor(pt).Equal(identity) == 1 {
		return nil, errSmallOrder
	}
	// A scalar is always below the group order L, so L*P is not one multiplication but (L-1)*P + P.
	q := new(edwards25519.Point).VarTimeDoubleScalarBaseMult(minusOne, pt, edwards25519.NewScalar())
	if q.Add(q, pt).Equal(identity) != 1 {
		return nil, errNotPrime
	}
	return pt, nil
}

// Verify reports whether sig is the 64-byte Ed25519 signature of msg by p (RFC 8032, no context, no prehash), and p passes Check. A key that does not
// would, for instance, let anyone forge signatures "of" it.
func (p Public) Verify(msg, sig []byte) bool {
	return len(sig) == ed25519.SignatureSize && p.Check() == nil && ed25519.Verify(p[:], msg, sig)
}

// ECDH gives the X25519 public key that belongs to p by the birational map (protocol 1 section 4.4), or Check's error.
func (p Public) ECDH() (*ecdh.PublicKey, error) {
	pt, err := p.point()
	if err != nil {
		return nil, err
	}
	return ecdh.X25519().NewPublicKey(pt.BytesMontgomery())
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}
