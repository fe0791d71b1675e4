package seal

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/poly1305"
)

// TagSize is what Seal adds to a message, in bytes: a Poly1305 tag behind the ciphertext.
const TagSize = 16

// Key is a symmetric key. It is not shown by fmt or slog, nor marshalled. There are two holes, because it is an array: fmt asks no methods of unexported fields, so
// structs that hold keys in them are not printed; nor for %p, which go vet refuses.
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

func (Hop) String() string                 { return hiddenText }
func (Hop) GoString() string               { return hiddenText }
func (Hop) Format(f fmt.State, _ rune)     { io.WriteString(f, hiddenText) }
func (Hop) LogValue() slog.Value           { return slog.StringValue(hiddenText) }
func (Hop) MarshalText() ([]byte, error)   { return nil, errHidden }
func (Hop) MarshalBinary() ([]byte, error) { return nil, errHidden }

// Xor mutates n at a hop: n ^= x.
func Xor(n, x *Nonce) { subtle.XORBytes(n[:], n[:], x[:]) }

// Stream encrypts or decrypts data in place with XChaCha20, block counter 0 (protocol 1 section 4.7). It authenticates nothing.
func Stream(data []byte, k *Key, n *Nonce) {
	if vector && len(data) >= vectorMin {
		vectorStream(data, k, n)
	} else {
		plainStream(data, k, n)
	}
}

// Seal encrypts data in place with XChaCha20-Poly1305 without additional data. The last TagSize bytes of data are room for the tag; less than that
// panics. A nonce is never used twice under one key.
func Seal(data []byte, k *Key, n *Nonce) {
	if vector {
		vectorSeal(data, k, n)
	} else {
		plainSeal(data, k, n)
	}
}

// Open undoes Seal in place and returns data without its tag. False, for a wrong tag or less than TagSize bytes: data is then of no use.
func Open(data []byte, k *Key, n *Nonce) ([]byte, bool) {
	if vector {
		return vectorOpen(data, k, n)
	}
	return plainOpen(data, k, n)
}

// In the plain forms NewUnauthenticatedCipher, which fails for other lengths only, is not in a function of ours: that would put the cipher on the heap.

func plainStream(data []byte, k *Key, n *Nonce) {
	c, _ := chacha20.NewUnauthenticatedCipher(k[:], n[:])
	c.XORKeyStream(data, data)
}

func plainSeal(data []byte, k *Key, n *Nonce) {
	body, room := data[:len(data)-TagSize], data[len(data)-TagSize:]
	c, _ := chacha20.NewUnauthenticatedCipher(k[:], n[:])
	tagKey := firstBlock(c)
	c.XORKeyStream(body, body)
	tag := aeadTag(body, &tagKey)
	copy(room, tag[:])
}

func plainOpen(data []byte, k *Key, n *Nonce) ([]byte, bool) {
	if len(data) < TagSize {
		return nil, false
	}
	body, want := data[:len(data)-TagSize], data[len(data)-TagSize:]
	c, _ := chacha20.NewUnauthenticatedCipher(k[:], n[:])
	tagKey := firstBlock(c)
	if tag := aeadTag(body, &tagKey); subtle.ConstantTimeCompare(tag[:], want) != 1 {
		return nil, false
	}
	c.XORKeyStream(body, body)
	return body, true
}

// firstBlock takes block 0 off the key stream as RFC 8439 does: its first half is the tag's key, the second is left out.
func firstBlock(c *chacha20.Cipher) (tagKey [32]byte) {
	c.XORKeyStream(tagKey[:], tagKey[:])
	c.SetCounter(1)
	return tagKey
}

// aeadTag is Poly1305 over a ciphertext padded to 16 bytes, the length of the additional data, 0, and its own length.
func aeadTag(body []byte, tagKey *[32]byte) (tag [TagSize]byte) {
	var block [16]byte
	m := poly1305.New(tagKey)
	m.Write(body)
	if r := len(body) % len(block); r != 0 {
		m.Write(block[r:])
	}
	binary.LittleEndian.PutUint64(block[8:], uint64(len(body)))
	m.Write(block[:])
	m.Sum(tag[:0])
	return tag
}
