package bt

import (
	"fmt"
	"strconv"
)

// AppendBytes appends v as a string.
func AppendBytes(dst, v []byte) []byte {
	dst = strconv.AppendUint(dst, uint64(len(v)), 10)
	dst = append(dst, ':')
	return append(dst, v...)
}

// AppendString appends v as a string; the encoding does not tell text from bytes.
func AppendString(dst []byte, v string) []byte {
	dst = strconv.AppendUint(dst, uint64(len(v)), 10)
	dst = append(dst, ':')
	return append(dst, v...)
}

// AppendInt appends v as an integer.
func AppendInt(dst []byte, v int64) []byte {
	dst = strconv.AppendInt(append(dst, 'i'), v, 10)
	return append(dst, 'e')
}

// AppendUint appends v as an integer.
func AppendUint(dst []byte, v uint64) []byte {
	dst = strconv.AppendUint(append(dst, 'i'), v, 10)
	return append(dst, 'e')
}

// Builder writes one dict, keys in ascending order; a key out of order panics, since it can only be a bug of the caller. Lists and
// nested dicts are encoded apart and put in with [Builder.Raw].
type Builder struct {
	b        []byte
	start    int // of this dict in b
	key, end int // the last key is b[key:end]; both 0 before the first
}

// NewDict starts a dict behind the bytes of dst, which may be nil.
func NewDict(dst []byte) *Builder {
	return &Builder{b: append(dst, 'd'), start: len(dst)}
}

func (b *Builder) put(k string) {
	if b.end != 0 && k <= string(b.b[b.key:b.end]) {
		panic(fmt.Sprintf("bt: dict key %q written after %q", k, b.b[b.key:b.end]))
	}
	b.b = AppendString(b.b, k)
	b.key, b.end = len(b.b)-len(k), len(b.b)
}

// Bytes adds a string.
func (b *Builder) Bytes(k string, v []byte) *Builder {
	b.put(k)
	b.b = AppendBytes(b.b, v)
	return b
}

// String adds a string.
func (b *Builder) String(k, v string) *Builder {
	b.put(k)
	b.b = AppendString(b.b, v)
	return b
}

// Int adds an integer.
func (b *Builder) Int(k string, v int64) *Builder {
	b.put(k)
	b.b = AppendInt(b.b, v)
	return b
}

// Uint adds an integer.
func (b *Builder) Uint(k string, v uint64) *Builder {
	b.put(k)
	b.b = AppendUint(b.b, v)
	return b
}

// Raw adds a value that is already encoded and well formed.
func (b *Builder) Raw(k string, encoded []byte) *Builder {
	b.put(k)
	b.b = append(b.b, encoded...)
	return b
}

// Prefix returns all that was written since and with the opening 'd': what a signature added next covers (protocol 1 section 1.4).
// It is borrowed until the next call on b.
func (b *Builder) Prefix() []byte { return b.b[b.start:] }

// End closes the dict and returns dst and the dict behind it. It is the last call on b.
func (b *Builder) End() []byte { return append(b.b, 'e') }
