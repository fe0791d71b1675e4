package seal

import (
	"errors"
	"fmt"

	"lokinetd/router/key"
)

// NameSize is the size of a sealed SNS record, in bytes: a public key and a tag. The nonce travels beside it.
const NameSize = 32 + TagSize

// NameHash gives the key under which the registry keeps an SNS name: the hash of the whole name with ".loki", lowered (protocol 1 section 8.2).
// Whether it is a valid name is key.CheckSNS's question.
func NameHash(name string) [32]byte { return Hash32(lower(name)) }

// nameKey gives the key of the record; only who knows the name can make it.
func nameKey(name string) Key {
	hash := NameHash(name)
	return Key(Keyed32(hash[:], lower(name)))
}

// lower lowers ASCII letters only, as router/key does.
func lower(name string) []byte {
	b := []byte(name)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] += 'a' - 'A'
		}
	}
	return b
}

// SealName gives the record of a name that belongs to the client owner, NameSize bytes. The nonce is random.
func SealName(name string, owner key.Public, nonce *Nonce) []byte {
	k := nameKey(name)
	record := make([]byte, NameSize)
	copy(record, owner[:])
	Seal(record, &k, nonce)
	return record
}

// OpenName gives the client that a record is for. It does not check that it is a usable key (key.Public.Check). Errors: not NameSize bytes, or the record of another name.
func OpenName(name string, record []byte, nonce *Nonce) (key.Public, error) {
	if len(record) != NameSize {
		return key.Public{}, fmt.Errorf("seal: name record of %d bytes, want %d", len(record), NameSize)
	}
	k := nameKey(name)
	owner, ok := Open(append([]byte(nil), record...), &k, nonce)
	if !ok {
		return key.Public{}, errors.New("seal: name record does not open")
	}
	return key.Public(owner), nil
}
