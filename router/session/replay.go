package session

import (
	"encoding/binary"
	"math/bits"

	"lokinetd/router/seal"
)

const (
	ways        = 8    // nonces that one line holds: a cache line of 64 bytes
	maxLines    = 2048 // of a session with much traffic: 128 KiB, about 16,000 nonces
	firstLines  = 8
	signalLines = 32 // for control messages and path switches, which are few

	oldInitLines = 512 // for inits: 32 KiB, about 4,000 of them
)

// replay remembers the nonces of a session's recent authentic messages, so that a copy of one is not taken for another (protocol 4 section 2.3 has no
// such rule; nonces are random and never used twice by an honest remote). What is remembered is the first 8 bytes of a nonce. Each line
// keeps its latest 8; lines double as messages come, up to max, so an idle session costs 512 bytes. Memory is allocated only when it grows.
//
// Not safe for concurrent use. The zero value grows to maxLines.
type replay struct {
	lines [][ways]uint64 // a power of two; the latest first
	max   int
	added int // in all
}

func mark(n *seal.Nonce) uint64 { return max(binary.LittleEndian.Uint64(n[:]), 1) } // 0 is an empty place

// line mixes before it takes bits: the mark itself was chosen by the remote, and two of its sessions must not share a pattern.
func (r *replay) line(m uint64) *[ways]uint64 {
	hi, lo := bits.Mul64(m, 0x9e3779b97f4a7c15)
	return &r.lines[int(hi^lo)&(len(r.lines)-1)]
}

// seen reports whether the nonce is remembered.
func (r *replay) seen(n *seal.Nonce) bool {
	if len(r.lines) == 0 {
		return false
	}
	m := mark(n)
	for _, have := range r.line(m) {
		if have == m {
			return true
		}
	}
	return false
}

// add remembers the nonce of an authentic message; false if it was there already.
func (r *replay) add(n *seal.Nonce) bool {
	if r.seen(n) {
		return false
	}
	if r.added >= len(r.lines)*ways/2 && len(r.lines) < r.limit() {
		r.grow()
	}
	r.added++
	r.put(mark(n))
	return true
}

func (r *replay) put(m uint64) {
	l := r.line(m)
	copy(l[1:], l[:])
	l[0] = m
}

func (r *replay) limit() int {
	if r.max == 0 {
		return maxLines
	}
	return r.max
}

func (r *replay) grow() {
	old := r.lines
	r.lines = make([][ways]uint64, max(firstLines, 2*len(old)))
	for i := range old {
		for w := ways - 1; w >= 0; w-- { // oldest first
			if m := old[i][w]; m != 0 {
				r.put(m)
			}
		}
	}
}
