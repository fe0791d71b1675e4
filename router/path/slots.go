package path

import (
	"math"
	"time"
)

// slots spreads the expiry of inbound paths over time, so that they do not all end at once (protocol 3 section 6.3).
//
// The time since basis is cut into slots of 1200 s / n. A new path gets the one with the fewest paths among the n that begin after now,
// the latest on ties, and expires a bit after the slot's beginning: fuzz, drawn once for each slot.
type slots struct {
	basis time.Time // whole seconds
	n     int
	fuzz  map[int64]time.Duration
}

const (
	slotSpan = 1200 * time.Second // MAX_LIFETIME
	maxSlots = 4
	maxFuzz  = 180 * time.Second
	// fuzzDeviation makes 99 % of the draws fall below maxFuzz.
	fuzzDeviation = 180 / 2.575829
)

func newSlots(basis time.Time, want int) *slots {
	return &slots{basis: basis.Round(0).Truncate(time.Second), n: min(want, maxSlots), fuzz: make(map[int64]time.Duration)}
}

func (s *slots) size() time.Duration { return slotSpan / time.Duration(s.n) }

// index is the slot that t is in.
func (s *slots) index(t time.Time) int64 {
	return int64(math.Floor(float64(t.Sub(s.basis)) / float64(s.size())))
}

// next chooses the expiry of a new path. taken are those of the paths there are; at is when the slots to choose from begin: the expiry is after it,
// and at most slotSpan + maxFuzz.
func (s *slots) next(at time.Time, taken []time.Time) time.Time {
	first := s.index(at) + 1
	count := make([]int, s.n)
	for _, t := range taken {
		if i := s.index(t) - first; i >= 0 && i < int64(s.n) {
			count[i]++
		}
	}
	best := s.n - 1
	for i := best; i >= 0; i-- {
		if count[i] < count[best] {
			best = i
		}
	}
	for i := range s.fuzz {
		if i < first || i >= first+int64(s.n) {
			delete(s.fuzz, i)
		}
	}
	slot := first + int64(best)
	fuzz, ok := s.fuzz[slot]
	if !ok {
		fuzz = drawFuzz()
		s.fuzz[slot] = fuzz
	}
	return s.basis.Add(time.Duration(slot)*s.size() + fuzz)
}

// drawFuzz draws whole seconds, the distance from the mean of a normal distribution, 180 at most.
func drawFuzz() time.Duration {
	for {
		f := time.Duration(math.Abs(normal()*fuzzDeviation)) * time.Second
		if f <= maxFuzz {
			return f
		}
	}
}
