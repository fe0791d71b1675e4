package oxend

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"lokinetd/router/key"
)

// Times of the tests (protocol 2 section 10).
const (
	// TestInterval is the time between two calls of Schedule.Next.
	TestInterval = 333333 * time.Microsecond

	againStep  = 10 * time.Second // times the failures in a row, until the next test
	againFuzz  = 3 * time.Second  // its standard deviation
	againMost  = 2 * time.Minute
	maxAgains  = 3 // tests of relays that have failed, in one interval
	maxTesting = 64
)

// Schedule says which relays are tested when: every registered one once in a round of its own random order, and those that failed again and again until they pass.
// For one goroutine.
type Schedule struct {
	self    key.Public
	rng     *rand.Rand
	queue   []key.Public
	failing map[key.Public]failing
	testing map[key.Public]bool
}

// failing is a relay that failed the last test.
type failing struct {
	inRow int
	next  time.Time
}

// NewSchedule makes a schedule of the relay self, which is not tested.
func NewSchedule(self key.Public, rng *rand.Rand) *Schedule {
	return &Schedule{self: self, rng: rng, failing: map[key.Public]failing{}, testing: map[key.Public]bool{}}
}

// Next gives the relays to test now. registered says who is registered: the whole set, ascending. Each relay that is given must be settled by Passed, Failed or Forget before it is
// given again.
func (s *Schedule) Next(now time.Time, registered []key.Public) (all []key.Public) {
	is := func(id key.Public) bool {
		_, ok := slices.BinarySearchFunc(registered, id, key.Public.Compare)
		return ok
	}
	for id, f := range s.failing {
		if !is(id) && !s.testing[id] {
			delete(s.failing, id)
		} else if !now.Before(f.next) && !s.testing[id] {
			all = append(all, id)
		}
	}
	slices.SortFunc(all, func(a, b key.Public) int { return cmp.Or(s.failing[a].next.Compare(s.failing[b].next), a.Compare(b)) })
	all = all[:min(len(all), maxAgains)]
	if id, ok := s.fresh(registered, is); ok {
		all = append(all, id)
	}
	all = all[:max(0, min(len(all), maxTesting-len(s.testing)))]
	for _, id := range all {
		s.testing[id] = true
	}
	return all
}

// fresh takes the next of the queue that can be tested. The queue is filled at most once: there may be none.
func (s *Schedule) fresh(registered []key.Public, is func(key.Public) bool) (key.Public, bool) {
	for filled := false; ; {
		for len(s.queue) > 0 {
			id := s.queue[len(s.queue)-1]
			s.queue = s.queue[:len(s.queue)-1]
			if _, failed := s.failing[id]; id != s.self && !failed && !s.testing[id] && is(id) {
				return id, true
			}
		}
		if filled {
			return key.Public{}, false
		}
		filled = true
		s.queue = append(s.queue, registered...)
		s.rng.Shuffle(len(s.queue), func(i, j int) { s.queue[i], s.queue[j] = s.queue[j], s.queue[i] })
	}
}

// Passed settles a test that went well.
func (s *Schedule) Passed(id key.Public) {
	delete(s.testing, id)
	delete(s.failing, id)
}

// Failed settles a test that did not.
func (s *Schedule) Failed(id key.Public, now time.Time) {
	delete(s.testing, id)
	n := s.failing[id].inRow + 1
	wait := time.Duration(n)*againStep + time.Duration(s.rng.NormFloat64()*float64(againFuzz))
	s.failing[id] = failing{n, now.Add(min(max(wait, 0), againMost))}
}

// Forget settles a test that could not be made, for reasons of our own.
func (s *Schedule) Forget(id key.Public) { delete(s.testing, id) }
