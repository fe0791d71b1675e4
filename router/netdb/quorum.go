package netdb

import (
	"slices"
	"time"

	"lokinetd/router/key"
)

// RIDAnswer is what one relay that was asked with fetch_rids said.
type RIDAnswer struct {
	From    key.Public   // the relay
	Inbound bool         // asked over one of our inbound paths
	IDs     []key.Public // none when it failed: it counts as asked all the same
}

// Corroborated returns the relay keys that more than half of the relays asked have listed, among them at least one at the end of an inbound
// path, in ascending order (protocol 1 section 9.6). None: the client keeps what it had.
func Corroborated(answers []RIDAnswer) []key.Public {
	inbound := make(map[key.Public]bool)
	for _, a := range answers {
		if a.Inbound {
			for _, id := range a.IDs {
				inbound[id] = true
			}
		}
	}
	needed := len(answers)/2 + 1
	var ids []key.Public
	for id, n := range tally(answers) {
		if n >= needed && inbound[id] {
			ids = append(ids, id)
		}
	}
	sortKeys(ids)
	return ids
}

// tally counts how many answers list each key; one that repeats itself counts once.
func tally(answers []RIDAnswer) map[key.Public]int {
	type votes struct{ count, last int } // last: 1 + the index of the answer counted last
	seen := make(map[key.Public]votes)
	for i, a := range answers {
		for _, id := range a.IDs {
			if v := seen[id]; v.last != i+1 {
				seen[id] = votes{v.count + 1, i + 1}
			}
		}
	}
	counts := make(map[key.Public]int, len(seen))
	for id, v := range seen {
		counts[id] = v.count
	}
	return counts
}

// Bounds of a Quorum.
const (
	quorumSize  = 16            // relays whose latest answer is remembered
	quorumLeast = 9             // of them have answered before belief changes; fewer in small networks
	quorumAge   = 2 * time.Hour // older answers are forgotten
)

// Quorum decides which relays a client believes in. The protocol's rule asks up to five relays and follows the majority: of five relays drawn from a network where
// 30 % lie together, three or more are liars in one round of six, and that round would make the client believe in relays that nobody registered, or in liars only. So a
// round alone only confirms. To change what is known, a key must also be listed, or left out, by more than two thirds of the relays that answered of late, each
// counted once with its latest answer, at least nine or half of those known. Liars must then be the most of a sample that they do not choose.
//
// Not safe for concurrent use. The zero Quorum is ready.
type Quorum struct {
	votes []vote // the latest last
}

type vote struct {
	RIDAnswer
	at time.Time
}

// Round takes the answers of one round of fetch_rids and gives the keys to believe in from now on, in ascending order, where those in known were believed before; none:
// the round was inconclusive and known stays. Where nothing is known yet the round decides alone.
func (q *Quorum) Round(answers []RIDAnswer, known []key.Public, now time.Time) []key.Public {
	round := Corroborated(answers)
	if len(round) == 0 {
		return nil
	}
	q.remember(answers, now)
	if len(known) == 0 {
		return round
	}
	said := make([]RIDAnswer, len(q.votes))
	for i, v := range q.votes {
		said[i] = v.RIDAnswer
	}
	counts, n := tally(said), len(said)
	enough := n >= min(quorumLeast, len(known)/2+1)
	most := func(votes int) bool { return enough && 3*votes > 2*n }

	before, listed := keySet(known), keySet(round)
	var ids []key.Public
	for id := range before {
		if _, confirmed := listed[id]; confirmed || !most(n-counts[id]) {
			ids = append(ids, id)
		}
	}
	for id := range listed {
		if _, had := before[id]; !had && most(counts[id]) {
			ids = append(ids, id)
		}
	}
	sortKeys(ids)
	return ids
}

// remember takes in the answers that say something. One relay has one vote.
func (q *Quorum) remember(answers []RIDAnswer, now time.Time) {
	for _, a := range answers {
		if len(a.IDs) == 0 {
			continue
		}
		q.votes = slices.DeleteFunc(q.votes, func(v vote) bool { return v.From == a.From })
		q.votes = append(q.votes, vote{a, now})
	}
	q.votes = slices.DeleteFunc(q.votes, func(v vote) bool { return now.Sub(v.at) > quorumAge })
	q.votes = slices.Delete(q.votes, 0, max(0, len(q.votes)-quorumSize))
}
