package path

import (
	"crypto/rand"
	"encoding/binary"
	"math"
	"math/bits"
)

// Choices decide what an observer can guess of paths, so all of them are drawn from crypto/rand.

// random draws uniformly from 0 to n-1; n > 0.
func random(n int) int {
	// Lemire's way: the high word of a product, drawn again in the few cases that would favour small results.
	bound := uint64(n)
	for {
		hi, lo := bits.Mul64(random64(), bound)
		if lo >= -bound%bound {
			return int(hi)
		}
	}
}

func random64() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// normal draws from the normal distribution of mean 0 and deviation 1 (Box and Muller).
func normal() float64 {
	const scale = 1.0 / (1 << 53)
	u := (float64(random64()>>11) + 1) * scale // 0 < u <= 1
	v := float64(random64()>>11) * scale
	return math.Sqrt(-2*math.Log(u)) * math.Cos(2*math.Pi*v)
}
