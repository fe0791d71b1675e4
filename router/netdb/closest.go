package netdb

import (
	"encoding/binary"

	"lokinetd/router/key"
)

// Where client contacts are kept (protocol 1 sections 7.7 and 7.9).
const (
	Locations = 4             // relays that a contact is published to, and looked up at: 0 to 3
	Accepting = Locations + 1 // relays, the closest first, that take a contact which another relay passes on
)

// Closest returns up to n keys of set, the closest to blinded first: by the XOR of the folds of both, ties by the keys' bytes (protocol 1 section 7.7).
// It is meant for a small n; set may be in any order and is not changed.
func Closest(set []key.Public, blinded key.Public, n int) []key.Public {
	if n <= 0 {
		return nil
	}
	type candidate struct {
		id       key.Public
		distance uint64
	}
	target := fold(blinded)
	best := make([]candidate, 0, min(n, len(set))+1)
	for _, id := range set {
		c := candidate{id, fold(id) ^ target}
		i := len(best)
		for i > 0 && (c.distance < best[i-1].distance || c.distance == best[i-1].distance && c.id.Compare(best[i-1].id) < 0) {
			i--
		}
		if i == n {
			continue
		}
		best = append(best, candidate{})
		copy(best[i+1:], best[i:])
		best[i] = c
		best = best[:min(len(best), n)]
	}
	ids := make([]key.Public, len(best))
	for i, c := range best {
		ids[i] = c.id
	}
	return ids
}

// fold is the XOR of the four words of a key, each little-endian whatever the machine.
func fold(p key.Public) (x uint64) {
	for i := 0; i < len(p); i += 8 {
		x ^= binary.LittleEndian.Uint64(p[i:])
	}
	return x
}
