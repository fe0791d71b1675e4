package seal

import (
	"bytes"
	"encoding/binary"
	"math/big"
	"math/bits"
	"slices"
	"testing"

	"golang.org/x/sys/cpu"

	"lokinetd/router/testkit"
)

// The slow reference: ChaCha20, HChaCha20 and Poly1305 as RFC 8439 and draft-irtf-cfrg-xchacha-03 write them down, a byte and a big integer at a
// time. It shares no code with the package, nor with x/crypto.

// rounds returns the state of ChaCha20 before and after its 20 rounds.
func rounds(key, last16 []byte) (start, s [16]uint32) {
	for i := range s {
		s[i] = binary.LittleEndian.Uint32(slices.Concat([]byte("expand 32-byte k"), key, last16)[4*i:])
	}
	start = s
	step := func(a, b, c *uint32, n int) { *a += *b; *c = bits.RotateLeft32(*c^*a, n) }
	quarter := func(a, b, c, d int) {
		step(&s[a], &s[b], &s[d], 16)
		step(&s[c], &s[d], &s[b], 12)
		step(&s[a], &s[b], &s[d], 8)
		step(&s[c], &s[d], &s[b], 7)
	}
	for range 10 {
		for i := range 4 {
			quarter(i, 4+i, 8+i, 12+i)
		}
		for i := range 4 {
			quarter(i, 4+(i+1)%4, 8+(i+2)%4, 12+(i+3)%4)
		}
	}
	return start, s
}

// slowStream is XChaCha20 from a block on.
func slowStream(data []byte, k *Key, n *Nonce, block uint32) (out []byte) {
	_, h := rounds(k[:], n[:16])
	var sub []byte
	for _, w := range append(h[:4:4], h[12:]...) {
		sub = binary.LittleEndian.AppendUint32(sub, w)
	}
	for ; len(out) < len(data); block++ {
		start, end := rounds(sub, append(binary.LittleEndian.AppendUint32(nil, block), append(make([]byte, 4), n[16:]...)...))
		var stream []byte
		for i := range start {
			stream = binary.LittleEndian.AppendUint32(stream, start[i]+end[i])
		}
		for i := 0; i < len(stream) && len(out) < len(data); i++ {
			out = append(out, data[len(out)]^stream[i])
		}
	}
	return out
}

// slowSeal is XChaCha20-Poly1305 of msg without additional data.
func slowSeal(msg []byte, k *Key, n *Nonce) []byte {
	little := func(b []byte) *big.Int {
		b = bytes.Clone(b)
		slices.Reverse(b)
		return new(big.Int).SetBytes(b)
	}
	out := slowStream(msg, k, n, 1)
	key := slowStream(make([]byte, 32), k, n, 0)
	for _, i := range []int{3, 7, 11, 15} {
		key[i] &= 15
	}
	for _, i := range []int{4, 8, 12} {
		key[i] &^= 3
	}
	r, p := little(key[:16]), new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 130), big.NewInt(5))
	text := append(bytes.Clone(out), make([]byte, -len(out)&15)...)
	text = binary.LittleEndian.AppendUint64(append(text, make([]byte, 8)...), uint64(len(out)))
	sum := new(big.Int)
	for ; len(text) > 0; text = text[16:] {
		sum.Add(sum, little(append(bytes.Clone(text[:16]), 1)))
		sum.Mod(sum.Mul(sum, r), p)
	}
	sum.Add(sum, little(key[16:]))
	tag := make([]byte, 17) // a carry out of 16 bytes is dropped
	sum.FillBytes(tag)
	slices.Reverse(tag)
	return append(out, tag[:TagSize]...)
}

// form is one way to compute the ciphers. The vector form gives right results on every machine, though not fast ones.
type form struct {
	name   string
	stream func([]byte, *Key, *Nonce)
	seal   func([]byte, *Key, *Nonce)
	open   func([]byte, *Key, *Nonce) ([]byte, bool)
}

var cipherForms = []form{
	{"here", Stream, Seal, Open},
	{"plain", plainStream, plainSeal, plainOpen},
	{"vector", func(data []byte, k *Key, n *Nonce) {
		if len(data) >= blockSize {
			vectorStream(data, k, n)
		} else {
			plainStream(data, k, n)
		}
	}, vectorSeal, vectorOpen},
}

// checkForms seals, opens and streams msg, which may lie anywhere in its array, in all forms.
func checkForms(t *testing.T, msg []byte, at int, k Key, n Nonce) {
	t.Helper()
	streamed, sealed := slowStream(msg, &k, &n, 0), slowSeal(msg, &k, &n)
	around := bytes.Repeat([]byte{0xa5}, at+len(msg)+TagSize+64)
	for _, f := range cipherForms {
		// lay puts msg and room behind it between bytes that must not change.
		whole := bytes.Clone(around)
		lay := func(room int) []byte {
			copy(whole, around)
			copy(whole[at:], msg)
			return whole[at:][:len(msg)+room] // with capacity behind, which is not ours to use
		}
		same := func(what string, got, want []byte, room int) {
			t.Helper()
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: %s of %d bytes at %d: %x, want %x", f.name, what, len(msg), at, got, want)
			}
			if !bytes.Equal(whole[:at], around[:at]) || !bytes.Equal(whole[at+len(msg)+room:], around[at+len(msg)+room:]) {
				t.Fatalf("%s: %s of %d bytes at %d writes outside of its data", f.name, what, len(msg), at)
			}
		}
		data := lay(0)
		f.stream(data, &k, &n)
		same("Stream", data, streamed, 0)
		f.stream(data, &k, &n)
		same("Stream twice", data, msg, 0)
		data = lay(TagSize)
		f.seal(data, &k, &n)
		same("Seal", data, sealed, TagSize)
		body, ok := f.open(data, &k, &n)
		if !ok {
			t.Fatalf("%s: %d bytes at %d do not open", f.name, len(msg), at)
		}
		same("Open", body, msg, TagSize)
		if _, ok := f.open(bytes.Clone(sealed[:TagSize-1]), &k, &n); ok {
			t.Fatalf("%s: %d bytes open", f.name, TagSize-1)
		}
		bad := bytes.Clone(sealed)
		bad[int(k[0])%len(bad)] ^= 1 << (n[0] % 8)
		if _, ok := f.open(bad, &k, &n); ok {
			t.Fatalf("%s: %d bytes open with a flipped bit", f.name, len(msg))
		}
	}
}

// All forms are one function, at all lengths and wherever data lies.
func TestCipherForms(t *testing.T) {
	if newEngine() == nil || !vectorWorks() {
		t.Fatal("x/crypto's AEAD is not made as vector.go expects: where vector instructions are, packets cost three times as much")
	}
	if cpu.X86.HasAVX2 && cpu.X86.HasBMI2 && !vector {
		t.Error("this machine has the vector instructions, and the plain forms are used")
	}
	r := testkit.Rand(t)
	lengths := []int{scratchSize + 63, scratchSize + 64, scratchSize + 65, scratchSize + 64 + 130}
	for n := range 330 {
		lengths = append(lengths, n)
	}
	for range 200 {
		lengths = append(lengths, int(r.Uint64()%3001))
	}
	for _, n := range lengths {
		checkForms(t, r.Bytes(n), int(r.Uint64()%64), Key(r.Bytes(32)), Nonce(r.Bytes(24)))
	}
}

// The data plane's packets come from anyone. Threat: a length, a place or a content at which the fast ways differ from the cipher of the protocol, or touch a byte
// of another packet in the same buffer.
//
// Decoders: Stream Seal Open plainStream plainSeal plainOpen vectorSeal vectorOpen vectorStream
func FuzzCiphers(f *testing.F) {
	for _, n := range []int{0, 1, 63, 64, 65, 191, 192, 257, 1200, 2852, scratchSize + 65} {
		f.Add(pattern(n), uint8(n), testkit.Counting(0x80, 32), testkit.Counting(0x40, 24))
	}
	f.Fuzz(func(t *testing.T, msg []byte, at uint8, k, n []byte) {
		if len(k) == 32 && len(n) == 24 && len(msg) < 1<<13 {
			checkForms(t, msg, int(at%64), Key(k), Nonce(n))
		}
	})
}
