package netdb

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"lokinetd/router/key"
)

// A minority that lies together wins a round now and then, and changes nothing by it: neither the relays that it invents are believed nor are the
// honest ones forgotten. What the operators change is followed.
func TestQuorum(t *testing.T) {
	const relays, liars, rounds = 20, 6, 400
	rng := rand.New(rand.NewPCG(1, 2))
	ids := make([]key.Public, relays)
	for i := range ids {
		ids[i] = key.Public{1, byte(i)}
	}
	lie := append(slices.Clone(ids[:liars]), key.Public{9, 1}, key.Public{9, 2}) // only themselves, and two that nobody registered
	truth := slices.Clone(ids)
	slices.SortFunc(truth, key.Public.Compare)

	var q Quorum
	known := truth
	now := time.Unix(1e9, 0)
	won := 0
	round := func(sources int) {
		answers := make([]RIDAnswer, 0, sources)
		for _, i := range rng.Perm(relays)[:sources] {
			a := RIDAnswer{From: ids[i], Inbound: true, IDs: truth}
			if i < liars {
				a.IDs = lie
			}
			answers = append(answers, a)
		}
		if slices.Contains(Corroborated(answers), lie[liars]) {
			won++
		}
		if next := q.Round(answers, known, now); len(next) > 0 {
			known = next
		}
		now = now.Add(5 * time.Minute)
	}
	round(1) // the first path that is up asks alone
	for i := range rounds {
		round(1 + i%RIDSources)
		if !slices.Equal(known, truth) {
			t.Fatalf("round %d: %d relays known, %d of them are", i, len(known), relays)
		}
	}
	if won == 0 {
		t.Error("the liars never had the majority of a round: the test shows nothing")
	}
	t.Logf("%d of 20 lie: majority in %d of %d rounds, no effect", liars, won, rounds)

	truth = append(slices.Clone(truth[:relays-1]), key.Public{2}) // one goes, one comes
	n := 0
	for ; !slices.Equal(known, truth); n++ {
		if n == 100 {
			t.Fatal("a change of the registered set is never noticed")
		}
		round(RIDSources)
	}
	t.Logf("a change of the registered set is believed after %d rounds", n)
}

func TestQuorumBegins(t *testing.T) {
	a, b, c := key.Public{1}, key.Public{2}, key.Public{3}
	now := time.Unix(1e9, 0)
	in := func(from byte, ids ...key.Public) RIDAnswer {
		return RIDAnswer{From: key.Public{from}, Inbound: true, IDs: ids}
	}
	var q Quorum
	if got := q.Round([]RIDAnswer{in(1, b, a)}, nil, now); !slices.Equal(got, []key.Public{a, b}) {
		t.Errorf("nothing known: %v", got)
	}
	q = Quorum{}
	known := []key.Public{a, b}
	if got := q.Round([]RIDAnswer{in(1), in(2)}, known, now); got != nil {
		t.Errorf("nobody answered: %v", got)
	}
	if got := q.Round([]RIDAnswer{in(1, a, b, c)}, known, now); !slices.Equal(got, known) {
		t.Errorf("one relay alone adds: %v", got)
	}
	if got := q.Round([]RIDAnswer{in(1, a, b, c), in(1, a, b, c)}, known, now); !slices.Equal(got, known) {
		t.Errorf("one relay has two votes: %v", got)
	}
	if got := q.Round([]RIDAnswer{in(1, a, c), in(2, a, c)}, known, now); !slices.Equal(got, []key.Public{a, c}) {
		t.Errorf("both relays of two agree: %v", got)
	}
	// Two thirds of nine are not enough, more are.
	twenty := make([]key.Public, 20)
	for i := range twenty {
		twenty[i] = key.Public{100, byte(i)}
	}
	for _, x := range []struct{ relays, liars int }{{8, 8}, {9, 6}, {9, 7}} {
		q = Quorum{}
		var got []key.Public
		for i := range x.relays { // one a round: each has the majority of its own
			ids := slices.Clone(twenty)
			if i >= x.relays-x.liars {
				ids = append(ids, c)
			}
			got = q.Round([]RIDAnswer{in(byte(i), ids...)}, twenty, now)
		}
		if believed := slices.Contains(got, c); believed != (x.liars == 7) {
			t.Errorf("%d of %d list a key: believed %v", x.liars, x.relays, believed)
		}
	}
	// Votes age, and only the latest sixteen count.
	q = Quorum{}
	for i := range 2 * quorumSize {
		q.Round([]RIDAnswer{in(byte(i), a, b)}, known, now)
	}
	if len(q.votes) != quorumSize {
		t.Errorf("%d votes kept", len(q.votes))
	}
	q.Round([]RIDAnswer{in(200, a, b)}, known, now.Add(quorumAge+1))
	if len(q.votes) != 1 {
		t.Errorf("%d votes kept, all but one old", len(q.votes))
	}
}
