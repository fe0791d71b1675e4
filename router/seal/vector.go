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
// machines, all goes the plain way, with the same results. (On arm64 the plain way has vector instructions.)
//
// Of a hop's or session's key nothing more is kept ready than the key: HChaCha20 takes the first 16 bytes of the nonce, and each message has another one.

const (
	blockSize = 64 // of ChaCha20, in bytes
	// vectorMin is the length in bytes from which vectorStream is the faster way.
	vectorMin = 192
	// scratchSize is what vectorStream does at once behind the first block: whole blocks, enough for the largest datagram of a link.
	scratchSize = 45 * blockSize
)

// vector says whether the vector forms can be used, and are worth it.
var vector = cpu.X86.HasAVX2 && cpu.X86.HasBMI2 && vectorWorks()

// engine is an AEAD whose key can be changed. Whoever takes one from the pool has it alone.
type engine struct {
	aead  cipher.AEAD
	key   *[32]byte // in aead
	nonce [chacha20poly1305.NonceSize]byte
	// scratch takes what vectorStream lets the AEAD write: that is longer, by the tag, than there is room for.
	scratch [scratchSize + TagSize]byte
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
	a, b := make([]byte, scratchSize+3*blockSize), make([]byte, scratchSize+3*blockSize)
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

// vectorStream lets the AEAD encrypt from block 1 on, which is where its message begins. The first block, and what is longer than a packet, are done by the
// plain cipher. Always Seal, which is an XOR both ways; its tag is left in the scratch. data is at least a block.
func vectorStream(data []byte, k *Key, n *Nonce) {
	e := take(k, n)
	c, _ := chacha20.NewUnauthenticatedCipher(e.key[:], e.nonce[:])
	c.XORKeyStream(data[:blockSize], data[:blockSize])
	data = data[blockSize:]
	packet := data[:min(len(data), scratchSize)]
	copy(packet, e.aead.Seal(e.scratch[:0], e.nonce[:], packet, nil)) // copy leaves the tag
	if rest := data[len(packet):]; len(rest) > 0 {
		c.SetCounter(1 + scratchSize/blockSize)
		c.XORKeyStream(rest, rest)
	}
	e.give()
}
