package seal

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/poly1305" //lint:ignore SA1019 the sealed box needs it by itself
)

// TagSize is what Seal adds to a message, in bytes: a Poly1305 tag behind the ciphertext.
const TagSize = 16

// Key is a symmetric key. It is not shown by fmt or slog, nor marshalled. (Inside of an unexported field of a printed struct fmt asks no methods: types that
// hold keys are not printed, or hide themselves.)
type Key [32]byte

// Nonce is an XChaCha20 nonce. On the data plane it lives in the packet's buffer.
type Nonce = [24]byte

const hiddenText = "(secret)"

var errHidden = errors.New("seal: a secret is not marshalled")

func (Key) String() string                 { return hiddenText }
func (Key) GoString() string               { return hiddenText }
func (Key) Format(f fmt.State, _ rune)     { io.WriteString(f, hiddenText) }
func (Key) LogValue() slog.Value           { return slog.StringValue(hiddenText) }
func (Key) MarshalText() ([]byte, error)   { return nil, errHidden }
func (Key) MarshalBinary() ([]byte, error) { return nil, errHidden }

// Hop is what the two ends of one hop of a path share: its key, and what is XORed into the nonce of each message that passes it (protocol 1 section 4.6).
type Hop struct {
	Key Key
	Xor Nonce
}

// NewHop derives the rest of a hop from its key.
func NewHop(k Key) Hop {
	h := Hash32(k[:])
	return Hop{Key: k, Xor: Nonce(h[:24])}
}

func (Hop) String() string             { return hiddenText }
func (Hop) Format(f fmt.State, _ rune) { io.WriteString(f, hiddenText) }
func (Hop) LogValue() slog.Value       { return slog.StringValue(hiddenText) }

// Xor mutates n at a hop: n ^= x.
func Xor(n, x *Nonce) { subtle.XORBytes(n[:], n[:], x[:]) }

// Stream encrypts or decrypts data in place with XChaCha20, block counter 0 (protocol 1 section 4.7). It authenticates nothing.
func Stream(data []byte, k *Key, n *Nonce) {
	c := newCipher(k, n)
	c.XORKeyStream(data, data)
}

func newCipher(k *Key, n *Nonce) *chacha20.Cipher {
	c, err := chacha20.NewUnauthenticatedCipher(k[:], n[:])
	if err != nil {
		panic("seal: " + err.Error()) // only for other lengths
	}
	return c
}

// Seal encrypts data in place with XChaCha20-Poly1305 without additional data. The last TagSize bytes of data are room for the tag; less than that
// panics. A nonce is never used twice under one key.
func Seal(data []byte, k *Key, n *Nonce) {
	body := data[:len(data)-TagSize]
	c, tagKey := newAEAD(k, n)
	c.XORKeyStream(body, body)
	m := mac(body, &tagKey)
	m.Sum(body[:len(body):len(data)])
}

// Open undoes Seal in place and returns data without its tag. False, for a wrong tag or less than TagSize bytes: data is then of no use.
func Open(data []byte, k *Key, n *Nonce) ([]byte, bool) {
	if len(data) < TagSize {
		return nil, false
	}
	body, tag := data[:len(data)-TagSize], data[len(data)-TagSize:]
	c, tagKey := newAEAD(k, n)
	m := mac(body, &tagKey)
	if !m.Verify(tag) {
		return nil, false
	}
	c.XORKeyStream(body, body)
	return body, true
}

// newAEAD splits the key stream as RFC 8439 does: the first half of block 0 is the tag's key, the message begins at block 1.
func newAEAD(k *Key, n *Nonce) (c *chacha20.Cipher, tagKey [32]byte) {
	c = newCipher(k, n)
	c.XORKeyStream(tagKey[:], tagKey[:])
	c.SetCounter(1)
	return c, tagKey
}

// mac takes the tag over a ciphertext padded to 16 bytes, then the lengths of the additional data, 0, and of the ciphertext.
func mac(body []byte, tagKey *[32]byte) *poly1305.MAC {
	var block [16]byte
	m := poly1305.New(tagKey)
	m.Write(body)
	if r := len(body) % len(block); r != 0 {
		m.Write(block[r:])
	}
	binary.LittleEndian.PutUint64(block[8:], uint64(len(body)))
	m.Write(block[:])
	return m
}
