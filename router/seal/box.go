package seal

import (
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/poly1305"

	"lokinetd/router/key"
)

// BoxOverhead is what Box adds to a message, in bytes: the ephemeral key and the tag before it.
const BoxOverhead = 32 + TagSize

var errBox = errors.New("seal: box does not open")

// Box seals msg so that only the holder of to's secret can open it, as libsodium's crypto_box_curve25519xchacha20poly1305_seal does to the X25519 conversion
// of the key (protocol 1 section 4.9): ephemeral key, tag, ciphertext. It says nothing of who sealed it. The error is to.Check's.
func Box(to key.Public, msg []byte) ([]byte, error) {
	x, err := to.ECDH()
	if err != nil {
		return nil, err
	}
	eph, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("seal: box: %w", err)
	}
	return box(eph, x, msg)
}

func box(eph *ecdh.PrivateKey, to *ecdh.PublicKey, msg []byte) ([]byte, error) {
	out := make([]byte, BoxOverhead+len(msg))
	copy(out, eph.PublicKey().Bytes())
	c, tagKey, err := boxCipher(eph, to, out[:32], to.Bytes())
	if err != nil {
		return nil, err
	}
	body := out[BoxOverhead:]
	c.XORKeyStream(body, msg)
	poly1305.Sum((*[TagSize]byte)(out[32:]), body, &tagKey)
	return out, nil
}

// OpenBox opens what was boxed to sec's public key and returns the message in memory of its own; box is not changed.
func OpenBox(sec *key.Secret, box []byte) ([]byte, error) {
	if len(box) < BoxOverhead {
		return nil, errBox
	}
	own := sec.ECDH()
	eph, _ := ecdh.X25519().NewPublicKey(box[:32]) // any 32 bytes are one
	c, tagKey, err := boxCipher(own, eph, box[:32], own.PublicKey().Bytes())
	if err != nil {
		return nil, errBox
	}
	body := box[BoxOverhead:]
	if !poly1305.Verify((*[TagSize]byte)(box[32:]), body, &tagKey) {
		return nil, errBox
	}
	msg := make([]byte, len(body))
	c.XORKeyStream(msg, body)
	return msg, nil
}

// boxCipher gives the key stream of a box, after its first 32 bytes, which are the tag's key. Unlike in Seal the message follows at once, in the same block, and
// the tag covers the ciphertext alone. A result of X25519 that is all zeros, which any one could know, is an error (of crypto/ecdh).
func boxCipher(own *ecdh.PrivateKey, other *ecdh.PublicKey, eph, recipient []byte) (c *chacha20.Cipher, tagKey [32]byte, err error) {
	shared, err := own.ECDH(other)
	if err != nil {
		return nil, tagKey, fmt.Errorf("seal: box: %w", err)
	}
	defer clear(shared)
	k, _ := chacha20.HChaCha20(shared, make([]byte, 16)) // fails for other lengths only; so does the next
	defer clear(k)
	c, _ = chacha20.NewUnauthenticatedCipher(k, sum(chacha20.NonceSizeX, nil, [][]byte{eph, recipient}))
	c.XORKeyStream(tagKey[:], tagKey[:])
	return c, tagKey, nil
}
