package seal

import (
	"crypto/cipher"
	"reflect"
	"sync"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"
)

// On amd64 x/crypto has ChaCha20 in vector instructions only inside of its ChaCha20-Poly1305: for packets that is two to three times as fast as package chacha20, Poly1305
// included. To use it without an allocation for each packet, an AEAD is kept and given the packet's key, for which x/crypto has no call: the key is written
// where the AEAD holds it. That this place is what we take it for is checked once, by type and by result; otherwise, and on other
// machines, all goes the plain way, with the same results.

// vectorMin is the length in bytes from which vectorStream is the faster way.
const vectorMin = 256

// vector says whether the vector forms can be used, and are worth it.
var vector = cpu.X86.HasAVX2 && cpu.X86.HasBMI2 && vectorWorks()

// engine is an AEAD whose key can be changed. Whoever takes one from the pool has it alone.
type engine struct {
	aead  cipher.AEAD
	key   *[32]byte // in aead
	nonce [chacha20poly1305.NonceSize]byte
}

var engines = sync.Pool{New: func() any { return newEngine() }}

// newEngine gives nil when the AEAD is not a pointer to a struct of just 32 bytes.
func newEngine() *engine {
	aead, err := chacha20poly1305.New(make([]byte, chacha20poly1305.KeySize))
	if err != nil {
		return nil
	}
	v := reflect.ValueOf(aead)
	if v.Kind() != reflect.Pointer || v.Type().Elem().Kind() != reflect.Struct ||
		v.Type().Elem().NumField() != 1 || v.Type().Elem().Field(0).Type != reflect.TypeFor[[32]byte]() {
		return nil
	}
	return &engine{aead: aead, key: (*[32]byte)(v.UnsafePointer())}
}

// vectorWorks compares both ways on one message.
func vectorWorks() bool {
	if newEngine() == nil {
		return false
	}
	k, n := Key{1}, Nonce{2, 23: 3}
	a, b := make([]byte, vectorMin+1), make([]byte, vectorMin+1)
	plainStream(a, &k, &n)
	vectorStream(b, &k, &n)
	plainSeal(a, &k, &n)
	vectorSeal(b, &k, &n)
	return string(a) == string(b)
}

// take gives an engine with the key and nonce of XChaCha20: a key derived with the first 16 bytes of n, and the last 8.
func take(k *Key, n *Nonce) *engine {
	e := engines.Get().(*engine)
	derived, _ := chacha20.HChaCha20(k[:], n[:16]) // fails for other lengths only
	copy(e.key[:], derived)
	copy(e.nonce[4:], n[16:])
	return e
}

// give returns an engine to the pool without its key.
func (e *engine) give() {
	clear(e.key[:])
	engines.Put(e)
}

func vectorSeal(data []byte, k *Key, n *Nonce) {
	body := data[:len(data)-TagSize]
	e := take(k, n)
	e.aead.Seal(body[:0], e.nonce[:], body, nil)
	e.give()
}

func vectorOpen(data []byte, k *Key, n *Nonce) ([]byte, bool) {
	e := take(k, n)
	body, err := e.aead.Open(data[:0], e.nonce[:], data, nil)
	e.give()
	return body, err == nil
}

// vectorStream lets the AEAD encrypt whole blocks of data from block 1 on, which is where its message begins. The first block and what is behind the last whole one
// are done by the plain cipher; the AEAD's tag goes there in between, and away again. data is at least vectorMin bytes.
func vectorStream(data []byte, k *Key, n *Nonce) {
	const block = 64
	e := take(k, n)
	c, _ := chacha20.NewUnauthenticatedCipher(e.key[:], e.nonce[:])
	c.XORKeyStream(data[:block], data[:block])
	blocks := (len(data) - block - TagSize) / block
	whole, rest := data[block:][:blocks*block], data[block+blocks*block:]
	under := [TagSize]byte(rest)
	e.aead.Seal(whole[:0], e.nonce[:], whole, nil)
	copy(rest, under[:])
	c.SetCounter(uint32(1 + blocks))
	c.XORKeyStream(rest, rest)
	e.give()
}
