// Package bt reads and writes bt-encoding, the serialisation of every message of the network (protocol 1 section 1).
//
// The reader is a cursor over bytes that belong to the caller: one forward pass, keys asked in ascending order, unknown keys skipped,
// the first error kept. It allocates nothing (only an error costs an allocation), so the size of what it is given is the only bound a
// caller needs. It is strict: each value has exactly one encoding that is accepted, thus what is read and written again is the same bytes. Refused
// are keys that are not strictly ascending, leading zeros, "-0", integers outside int64 and uint64, strings longer than the input
// and nesting deeper than [MaxDepth], also inside values that are skipped.
//
// The package knows no message, and signs and verifies nothing: it only says which bytes a signature covers (section 1.4).
package bt

import "errors"

// MaxDepth is how many lists and dicts may be open at once; the outermost counts. The deepest message of the protocol, a client contact with
// an exit policy, has four.
const MaxDepth = 32

// Reasons of errors, wrapped with the place where they were met.
var (
	errTruncated = errors.New("cut short")
	errLength    = errors.New("malformed string length")
	errInteger   = errors.New("malformed integer")
	errRange     = errors.New("integer out of range")
	errOrder     = errors.New("keys not ascending")
	errDepth     = errors.New("nested too deep")
	errType      = errors.New("wrong type")
	errSize      = errors.New("string of the wrong size")
	errMissing   = errors.New("missing")
	errTrailing  = errors.New("bytes after the end")
)
