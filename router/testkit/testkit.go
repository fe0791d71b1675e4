// Package testkit is what the tests of several packages share: random sources that can be repeated, vectors in hexadecimal, a search for secrets in what is
// printed, and IP packets with checksums by plain arithmetic. Only tests import it. It imports nothing of ours, so that it is an independent witness.
package testkit

import (
	"encoding/hex"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// Source is the randomness of one test.
type Source struct{ *rand.Rand }

// Rand gives a new source, seeded by LOKINETD_SEED or else anew. The seed is printed, which `go test` shows when the test fails.
func Rand(t testing.TB) Source {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("LOKINETD_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("LOKINETD_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("LOKINETD_SEED=%d", seed)
	return Seeded(seed)
}

// Seeded gives a source that is always the same, for benchmarks and seeds of fuzzing.
func Seeded(seed uint64) Source { return Source{rand.New(rand.NewPCG(seed, 0))} }

// Bytes draws n bytes.
func (s Source) Bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(s.Uint32())
	}
	return b
}

// Hex decodes text.
func Hex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Counting gives n bytes from, from+1, ... as the vectors of the protocol documents are made with.
func Counting(from byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = from + byte(i)
	}
	return b
}

// Equal compares got with want in hexadecimal.
func Equal(t testing.TB, what string, got []byte, want string) {
	t.Helper()
	if hex.EncodeToString(got) != want {
		t.Errorf("%s = %x, want %s", what, got, want)
	}
}
