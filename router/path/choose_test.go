package path

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

// town is a store of relays with short names, and a chooser over it.
type town struct {
	chooser
	ids  map[string]key.Public
	name map[key.Public]string
}

// newTown makes relays; "a1" has the address 10.0.0.1 (the letter is the /24 network).
func newTown(t *testing.T, unique int, edges []string, names ...string) *town {
	t.Helper()
	store, err := netdb.OpenStore("", key.Public{}, false, netdb.Rules{Private: true, Network: 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &town{ids: make(map[string]key.Public), name: make(map[key.Public]string)}
	w.chooser = chooser{store: store, now: time.Now(), unique: unique, profile: &profile{on: true}, black: make(map[key.Public]bool)}
	for _, n := range names {
		sec := key.Generate()
		at := netip.AddrFrom4([4]byte{10, 0, n[0] - 'a', n[1] - '0'})
		c := netdb.SignRelayContact(sec, netdb.RelayContact{
			ID: sec.Public(), Addr: netip.AddrPortFrom(at, 1090), Time: time.Now().Truncate(time.Second), Version: [3]uint8{1, 0, 2}, Network: 2,
		})
		if stored, _ := store.Put(c); !stored {
			t.Fatal("not stored")
		}
		w.ids[n], w.name[c.ID] = c.ID, n
		if slices.Contains(edges, n) {
			w.edges = append(w.edges, edge{c, newTapLink()})
		}
	}
	return w
}

func (w *town) names(hops []key.Public) (s []string) {
	for _, h := range hops {
		s = append(s, w.name[h])
	}
	return s
}

// TestPathChoice: each rule of protocol 3 section 6.2, in worlds where it leaves little to chance. Every path drawn must match; want has a set of relays for each hop.
func TestPathChoice(t *testing.T) {
	all := []string{"a1", "a2", "b1", "b2", "c1", "d1"}
	for _, c := range []struct {
		what   string
		unique int
		edges  []string
		names  []string
		last   string
		n      int
		change func(w *town)
		want   [][]string
		err    error
	}{
		{"all networks differ", 24, []string{"a1", "b1"}, all, "c1", 3, nil, [][]string{{"a1", "b1"}, {"a1", "a2", "b1", "b2", "d1"}, {"c1"}}, nil},
		{"edge not in the last one's network", 24, []string{"a1", "b1"}, all, "a2", 2, nil, [][]string{{"b1"}, {"a2"}}, nil},
		{"edge is not the last one", 0, []string{"a1", "b1"}, all, "a1", 2, nil, [][]string{{"b1"}, {"a1"}}, nil},
		{"networks may be shared", 0, []string{"a1"}, []string{"a1", "a2", "a3"}, "a3", 3, nil, [][]string{{"a1"}, {"a2"}, {"a3"}}, nil},
		{"edge in the network: one more hop", 24, []string{"a1"}, all, "a2", 2, nil, [][]string{{"a1"}, {"b1", "b2", "c1", "d1"}, {"a2"}}, nil},
		{"edge is the last one: one more hop", 24, []string{"a1"}, all, "a1", 2, nil, [][]string{{"a1"}, {"b1", "b2", "c1", "d1"}, {"a1"}}, nil},
		{"the same without unique networks", 0, []string{"a1"}, []string{"a1", "b1"}, "a1", 2, nil, [][]string{{"a1"}, {"b1"}, {"a1"}}, nil},
		{"no ninth hop", 0, []string{"a1"}, []string{"a1", "b1", "c1", "d1", "e1", "f1", "g1"}, "a1", 8, nil, [][]string{{"a1"}, nil, nil, nil, nil, nil, nil, {"a1"}}, nil},
		{"one hop", 24, []string{"a1"}, all, "a1", 1, nil, [][]string{{"a1"}}, nil},
		{"one hop, not connected", 24, []string{"b1"}, all, "a1", 1, nil, nil, errNotEdge},
		{"unknown last", 24, []string{"a1"}, all, "x1", 3, nil, nil, errNoContact},
		{"no edge", 24, nil, all, "a1", 3, nil, nil, errNoEdge},
		{"no middle left", 24, []string{"a1"}, []string{"a1", "a2", "b1", "b2"}, "b1", 3, nil, nil, errNoRelay},
		{"bad middle", 24, []string{"a1"}, []string{"a1", "b1", "c1", "d1"}, "b1", 3, func(w *town) { w.bad("c1", 2) }, [][]string{{"a1"}, {"d1"}, {"b1"}}, nil},
		{"nearly bad middle", 24, []string{"a1"}, []string{"a1", "b1", "c1"}, "b1", 3, func(w *town) { w.bad("c1", 1) }, [][]string{{"a1"}, {"c1"}, {"b1"}}, nil},
		{"black middle", 24, []string{"a1"}, []string{"a1", "b1", "c1", "d1"}, "b1", 3, func(w *town) { w.black[w.ids["c1"]] = true }, [][]string{{"a1"}, {"d1"}, {"b1"}}, nil},
		{"black last", 24, []string{"a1"}, []string{"a1", "b1"}, "b1", 2, func(w *town) { w.black[w.ids["b1"]] = true }, [][]string{{"a1"}, {"b1"}}, nil},
		{"bad edge", 0, []string{"a1", "b1"}, all, "c1", 2, func(w *town) { w.bad("a1", 5) }, [][]string{{"b1"}, {"c1"}}, nil},
		{"edge that is bad for a hop only", 0, []string{"a1"}, all, "c1", 2, func(w *town) { w.bad("a1", 4) }, [][]string{{"a1"}, {"c1"}}, nil},
		{"the same, unique networks: one more hop", 24, []string{"a1"}, []string{"a1", "b1", "c1"}, "c1", 2, func(w *town) { w.bad("a1", 4) }, [][]string{{"a1"}, {"b1"}, {"c1"}}, nil},
		{"all edges bad", 0, []string{"a1"}, all, "c1", 2, func(w *town) { w.bad("a1", 5) }, nil, errNoEdge},
	} {
		w := newTown(t, c.unique, c.edges, c.names...)
		if c.change != nil {
			c.change(w)
		}
		for range 20 {
			hops, link, err := w.path(w.ids[c.last], c.n)
			if !errors.Is(err, c.err) {
				t.Errorf("%s: %v", c.what, err)
				break
			}
			if c.err != nil {
				continue
			}
			got := w.names(hops)
			ok := len(got) == len(c.want)
			for i := range got {
				ok = ok && (c.want[i] == nil || slices.Contains(c.want[i], got[i]))
				ok = ok && (i == 0 || i == len(got)-1 || slices.Index(got, got[i]) == i)
			}
			at := slices.IndexFunc(w.edges, func(e edge) bool { return e.contact.ID == hops[0] })
			if !ok || at < 0 || w.edges[at].link != link {
				t.Errorf("%s: %v", c.what, got)
				break
			}
		}
	}
}

// bad gives a relay time-outs.
func (w *town) bad(name string, n int) {
	for range n {
		w.profile.timedOut([]key.Public{w.ids[name]})
	}
}

// TestInboundChoice: where inbound paths end.
func TestInboundChoice(t *testing.T) {
	for _, c := range []struct {
		what   string
		unique int
		edges  []string
		names  []string
		n      int
		pivots map[string]int
		want   []string
		err    error
	}{
		{"not where all edges are", 24, []string{"a1", "a2"}, []string{"a1", "a2", "a3", "b1", "c1"}, 2, nil, []string{"b1", "c1"}, nil},
		{"edges in two networks", 24, []string{"a1", "b1"}, []string{"a1", "b1", "c1"}, 3, nil, []string{"c1"}, nil},
		{"at an edge when there is no other", 24, []string{"a1", "b1"}, []string{"a1", "b1"}, 2, nil, []string{"a1", "b1"}, nil},
		{"networks may be shared", 0, []string{"a1"}, []string{"a1", "a2"}, 2, nil, []string{"a2"}, nil},
		{"one path a pivot", 24, []string{"a1", "b1"}, []string{"a1", "b1", "c1", "d1"}, 2, map[string]int{"c1": 1, "a1": 1, "b1": 1}, []string{"d1"}, nil},
		{"the least used when there is no other", 24, []string{"a1"}, []string{"a1", "b1", "c1"}, 2, map[string]int{"b1": 3, "c1": 2}, []string{"c1"}, nil},
		{"one hop", 24, []string{"a1"}, []string{"a1", "b1"}, 1, map[string]int{"a1": 4}, []string{"a1"}, nil},
		{"one hop, no edge", 24, nil, []string{"a1", "b1"}, 1, nil, nil, errNoEdge},
		{"nothing", 24, []string{"a1"}, []string{"a1", "a2"}, 2, nil, nil, errNoRelay},
	} {
		w := newTown(t, c.unique, c.edges, c.names...)
		pivots := make(map[key.Public]int)
		for n, k := range c.pivots {
			pivots[w.ids[n]] = k
		}
		seen := make(map[string]bool)
		for range 60 {
			hops, _, err := w.inbound(c.n, 1, pivots)
			if !errors.Is(err, c.err) && !(errors.Is(err, errNoRelay) && c.n == 3) {
				t.Errorf("%s: %v", c.what, err)
			}
			if err == nil {
				seen[w.name[hops[len(hops)-1]]] = true
			}
		}
		for n := range seen {
			if !slices.Contains(c.want, n) {
				t.Errorf("%s: ends at %s", c.what, n)
			}
		}
		if len(seen) != len(c.want) {
			t.Errorf("%s: ends at %v only", c.what, seen)
		}
	}
}

// TestEdgesAnywhere: in a network that is not small edges are drawn inside paths as others are, or where they never are would tell who they are; relays inside another path of
// the pool are not.
func TestEdgesAnywhere(t *testing.T) {
	var names []string
	for i := range fewRelays + 1 {
		names = append(names, string([]byte{byte('a' + i/5), byte('1' + i%5)}))
	}
	w := newTown(t, 0, []string{"a1"}, names...)
	w.used, w.inside = map[key.Public]int{w.ids["a1"]: 2, w.ids["b1"]: 1}, map[key.Public]int{w.ids["b1"]: 1}
	for _, c := range []struct{ of, want []string }{
		{[]string{"a1", "a2"}, []string{"a1", "a2"}},
		{[]string{"a1", "b1"}, []string{"a1"}},
		{[]string{"b1"}, []string{"b1"}},
	} {
		seen := make(map[string]bool)
		for range 60 {
			r := w.draw(func(r *netdb.RelayContact) bool { return slices.Contains(c.of, w.name[r.ID]) })
			seen[w.name[r.ID]] = true
		}
		if got := slices.Sorted(maps.Keys(seen)); !slices.Equal(got, c.want) {
			t.Errorf("of %v: %v", c.of, got)
		}
	}
}

// TestSlots: protocol 3 section 6.3 with times that were worked out by hand. Fuzz is fixed at 0, except where it is the matter.
func TestSlots(t *testing.T) {
	basis := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(s int) time.Time { return basis.Add(time.Duration(s) * time.Second) }
	for _, c := range []struct {
		want  int
		now   int
		taken []int
		next  int
	}{
		{4, 0, nil, 1200},
		{4, 0, []int{1200}, 900},
		{4, 0, []int{1200, 900, 600}, 300},
		{4, 0, []int{1200, 900, 600, 300}, 1200},
		{4, 299, []int{1200, 900, 600}, 300},
		{4, 300, []int{1200, 900, 600}, 1500},
		{4, 300, []int{1379, 1079, 779}, 1500}, // fuzz does not leave the slot
		{10, 0, []int{1200, 900, 600, 300, 1200}, 900},
		{2, 0, nil, 1200},
		{2, 0, []int{1200}, 600},
		{1, 0, nil, 1200},
		{1, 1199, nil, 1200},
		{1, 1200, nil, 2400},
		{3, 401, []int{800}, 1600},
		{4, 10, []int{90000, -500}, 1200}, // neither in a slot
		{4, -1, nil, 900},                 // a clock set back
	} {
		s := newSlots(basis.Add(700*time.Millisecond), c.want)
		for i := int64(-100); i < 100; i++ {
			s.fuzz[i] = 0
		}
		var taken []time.Time
		for _, x := range c.taken {
			taken = append(taken, at(x))
		}
		if got := s.next(at(c.now), taken); !got.Equal(at(c.next)) {
			t.Errorf("%+v: %v", c, got.Sub(basis))
		}
	}

	// Drawn: once a slot, whole seconds, never more than a relay accepts.
	s := newSlots(basis, 4)
	first := s.next(at(0), nil)
	if !s.next(at(0), nil).Equal(first) {
		t.Error("fuzz is drawn twice for one slot")
	}
	var sum time.Duration
	const draws = 2000
	for range draws {
		f := drawFuzz()
		if f < 0 || f > maxFuzz || f%time.Second != 0 {
			t.Fatal(f)
		}
		sum += f
	}
	// The mean of |N(0, 69.88 s)| is 55.76 s, a little less when cut at 180 s and to whole seconds; 2000 draws are within 4 s of it but once in a hundred thousand times.
	if mean := (sum / draws).Seconds(); mean < 50.5 || mean > 58.5 {
		t.Errorf("mean fuzz %.1f s", mean)
	}
	for now := range 5000 {
		next := s.next(at(now), nil)
		if d := next.Sub(at(now)); d <= 0 || d > maxLifetime*time.Second {
			t.Fatalf("at %d s: a life of %v", now, d)
		}
		if len(s.fuzz) > maxSlots {
			t.Fatal("fuzz of slots gone by is kept")
		}
	}
}

func TestProfile(t *testing.T) {
	ids := []key.Public{secretOf(1).Public(), secretOf(2).Public()}
	p := profile{on: true}
	now := time.Now()
	p.decay(now)
	for range 2 {
		p.timedOut(ids)
	}
	if !p.bad(ids[0], allowHop) || p.bad(ids[0], allowEdge) || p.bad(secretOf(3).Public(), 0) {
		t.Error("two time-outs: bad for a hop, good for an edge")
	}
	p.built(ids[1:])
	if p.bad(ids[1], 0) || !p.bad(ids[0], allowHop) {
		t.Error("a success forgives its own hops")
	}
	p.decay(now.Add(profileHalfLife - 1))
	if !p.bad(ids[0], allowHop) {
		t.Error("halved early")
	}
	p.decay(now.Add(profileHalfLife))
	if p.bad(ids[0], allowHop) || !p.bad(ids[0], 0) {
		t.Error("not halved")
	}
	p.decay(now.Add(1000 * time.Hour))
	if len(p.timeouts) != 0 {
		t.Error("kept for ever")
	}
	off := profile{}
	for range 9 {
		off.timedOut(ids)
	}
	if off.bad(ids[0], 0) {
		t.Error("off, and yet it judges")
	}
}

// TestRandom: uniform enough to see a wrong bound.
func TestRandom(t *testing.T) {
	var count [5]int
	for range 5000 {
		count[random(len(count))]++
	}
	for i, n := range count {
		if n < 850 || n > 1150 { // 1000, deviation 28
			t.Errorf("%d: %d times", i, n)
		}
	}
	if random(1) != 0 {
		t.Error("random(1)")
	}
}
