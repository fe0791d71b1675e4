package seal

import (
	"hash"

	"golang.org/x/crypto/blake2b"
)

// Hash8 is BLAKE2b with a digest of 8 bytes, not a truncation of a longer one (protocol 1 section 6.5).
func Hash8(parts ...[]byte) [8]byte { return [8]byte(sum(8, nil, parts)) }

// Hash32 is the protocol's shorthash, BLAKE2b with a digest of 32 bytes, of the parts one after the other (protocol 1 section 4.2).
func Hash32(parts ...[]byte) [32]byte { return [32]byte(sum(32, nil, parts)) }

// Keyed32 is Hash32 under a key of 1 to 64 bytes; a longer one panics.
func Keyed32(key []byte, parts ...[]byte) [32]byte { return [32]byte(sum(32, key, parts)) }

func keyed64(key []byte, parts ...[]byte) [64]byte { return [64]byte(sum(64, key, parts)) }

func sum(n int, key []byte, parts [][]byte) []byte {
	h := newHash(n, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(make([]byte, 0, 64))
}

func newHash(n int, key []byte) hash.Hash {
	h, err := blake2b.New(n, key)
	if err != nil {
		panic("seal: " + err.Error()) // a key of over 64 bytes
	}
	return h
}
