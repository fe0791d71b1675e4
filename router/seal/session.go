package seal

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"

	"lokinetd/router/key"
)

// Sizes of the ML-KEM-768 parts of a session handshake, in bytes.
const (
	EncapsulationSize = mlkem.EncapsulationKeySize768 // M, 1184
	CiphertextSize    = mlkem.CiphertextSize768       // c, 1088
)

// sessionContext keys the first hash of the schedule.
const sessionContext = "srouter session context"

var errWiped = errors.New("seal: session: the ephemeral keys are wiped")

// hidden makes a struct that embeds it say nothing of itself. What is secret in the struct is kept by a function besides: fmt asks no methods of unexported fields,
// and nothing looks into a function. It makes the struct incomparable, too.
type hidden struct{}

func (hidden) String() string                 { return hiddenText }
func (hidden) GoString() string               { return hiddenText }
func (hidden) Format(f fmt.State, verb rune)  { Key{}.Format(f, verb) }
func (hidden) LogValue() slog.Value           { return slog.StringValue(hiddenText) }
func (hidden) MarshalText() ([]byte, error)   { return nil, errHidden }
func (hidden) MarshalBinary() ([]byte, error) { return nil, errHidden }

// Ephemeral is the initiator's half of a session's key exchange: one X25519 and one ML-KEM-768 key pair, used for one handshake (protocol 1 section 5).
// Not safe for concurrent use with Wipe.
type Ephemeral struct {
	hidden
	x, m []byte            // public halves
	in   func() *ephemeral // nil once wiped
}

type ephemeral struct {
	x *ecdh.PrivateKey
	m *mlkem.DecapsulationKey768
}

// NewEphemeral makes fresh keys.
func NewEphemeral() *Ephemeral {
	x, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		panic("seal: " + err.Error()) // crypto/rand does not fail
	}
	m, err := mlkem.GenerateKey768()
	if err != nil {
		panic("seal: " + err.Error())
	}
	in := &ephemeral{x: x, m: m}
	return &Ephemeral{x: x.PublicKey().Bytes(), m: m.EncapsulationKey().Bytes(), in: func() *ephemeral { return in }}
}

// X gives the X25519 public key.
func (e *Ephemeral) X() [32]byte { return [32]byte(e.x) }

// M gives the encapsulation key, EncapsulationSize bytes, which stay the Ephemeral's: the caller reads them only.
func (e *Ephemeral) M() []byte { return e.m }

// Keys ends the exchange on the initiator's side: i and r are the identities of initiator and responder, tagI and tagR the tag that each chose for what it
// receives, y and c the responder's Y and ciphertext. The initiator encrypts under out and decrypts under in. The keys are good only after the responder's signature
// has been verified: a forged c gives other keys, not an error. Errors: c has not CiphertextSize bytes, y is of small order, Wipe was called; e can be used again.
func (e *Ephemeral) Keys(i, r key.Public, tagI, tagR uint32, y [32]byte, c []byte) (out, in Key, err error) {
	if e.in == nil {
		return out, in, errWiped
	}
	dh, err := x25519(e.in().x, y)
	if err != nil {
		return out, in, err
	}
	defer clear(dh)
	ks, err := e.in().m.Decapsulate(c)
	if err != nil {
		return out, in, fmt.Errorf("seal: session: ciphertext of %d bytes: %w", len(c), err)
	}
	defer clear(ks)
	out, in = sessionKeys(i, r, tagI, tagR, dh, e.x, y[:], ks, e.m)
	return out, in, nil
}

// Wipe forgets the secret halves; Keys fails from then on. (The standard library offers no way to overwrite them: they are left to the garbage collector.)
func (e *Ephemeral) Wipe() { e.in = nil }

// Response is the responder's half of a session's key exchange: what it sends, and the secrets that its keys are made from.
type Response struct {
	hidden
	Y  [32]byte         // X25519 public key
	C  []byte           // ML-KEM-768 ciphertext, CiphertextSize bytes
	in func() *response // nil once wiped
}

type response struct {
	dh, ks, x, m []byte
}

// Respond answers an initiator's X and M (EncapsulationSize bytes). It keeps a copy of m. Errors: x is of small order, m is no encapsulation key.
func Respond(x [32]byte, m []byte) (Response, error) {
	y, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return Response{}, fmt.Errorf("seal: session: %w", err)
	}
	dh, err := x25519(y, x)
	if err != nil {
		return Response{}, err
	}
	ek, err := mlkem.NewEncapsulationKey768(m)
	if err != nil {
		return Response{}, fmt.Errorf("seal: session: encapsulation key of %d bytes: %w", len(m), err)
	}
	ks, c := ek.Encapsulate()
	in := &response{dh: dh, ks: ks, x: x[:], m: bytes.Clone(m)}
	return Response{Y: [32]byte(y.PublicKey().Bytes()), C: c, in: func() *response { return in }}, nil
}

// Keys gives the responder's keys, the initiator's the other way round; i is the initiator, rr the responder. The only error is that Wipe was called.
func (r *Response) Keys(i, rr key.Public, tagI, tagR uint32) (out, in Key, err error) {
	if r.in == nil {
		return out, in, errWiped
	}
	s := r.in()
	in, out = sessionKeys(i, rr, tagI, tagR, s.dh, s.x, r.Y[:], s.ks, s.m)
	return out, in, nil
}

// Wipe overwrites the secrets; Keys fails from then on. Y and C stay.
func (r *Response) Wipe() {
	if r.in != nil {
		clear(r.in().dh)
		clear(r.in().ks)
		r.in = nil
	}
}

// x25519 fails when the result is all zeros, which it is for a point of small order whatever the secret.
func x25519(own *ecdh.PrivateKey, other [32]byte) ([]byte, error) {
	p, err := ecdh.X25519().NewPublicKey(other[:])
	if err != nil {
		return nil, fmt.Errorf("seal: session: %w", err)
	}
	dh, err := own.ECDH(p)
	if err != nil {
		return nil, fmt.Errorf("seal: session: %w", err)
	}
	return dh, nil
}

// sessionKeys gives k1, the initiator's outbound key, and k2, the responder's. All in the order initiator, responder.
func sessionKeys(i, r key.Public, tagI, tagR uint32, dh, x, y, ks, m []byte) (k1, k2 Key) {
	context := sessionHash(i, r, tagI, tagR)
	k := keyed64(context[:], dh, x, y, ks, m)
	defer clear(k[:])
	return Key(k[:32]), Key(k[32:])
}

// sessionHash binds the keys to the identities and tags; the tags are little-endian here and nowhere else.
func sessionHash(i, r key.Public, tagI, tagR uint32) [64]byte {
	tags := binary.LittleEndian.AppendUint32(nil, tagI)
	tags = binary.LittleEndian.AppendUint32(tags, tagR)
	return keyed64([]byte(sessionContext), i[:], r[:], tags)
}
