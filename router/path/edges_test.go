package path

import (
	"math"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

// bigTown is a store with many relays, which sign their contacts anew when they are told.
type bigTown struct {
	store *netdb.Store
	secs  []*key.Secret
}

func newBigTown(t *testing.T, n int) *bigTown {
	t.Helper()
	store, err := netdb.OpenStore("", key.Public{}, false, netdb.Rules{Network: 2, Private: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &bigTown{store: store}
	for range n {
		b.secs = append(b.secs, key.Generate())
	}
	b.sign(t, n)
	return b
}

// sign has the contacts of the first n known.
func (b *bigTown) sign(t *testing.T, n int) {
	t.Helper()
	for i, sec := range b.secs[:n] {
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), 1090)
		b.store.Put(netdb.SignRelayContact(sec, netdb.RelayContact{ID: sec.Public(), Addr: at, Time: time.Now().Truncate(time.Second), Version: [3]uint8{1, 0, 2}, Network: 2}))
	}
	if got := b.store.Len(); got < n {
		t.Fatalf("%d contacts of %d", got, n)
	}
}

// host is a client that is started again and again; what it keeps is on its disk.
type host struct {
	*Client
	disk   EdgeList
	dialed map[key.Public]bool
}

func (h *host) start(b *bigTown) {
	if h.Client != nil {
		h.Close()
	}
	o := DefaultOptions()
	h.Client = NewClient(ClientConfig{Options: o, Store: b.store, Kept: h.disk, Keep: func(l EdgeList) { h.disk = l }})
}

// connect dials until there are edges enough or nobody is left; up says whom it reaches.
func (h *host) connect(up func(key.Public) bool) {
	tried := make(map[key.Public]bool)
	for {
		more := h.MoreEdges(0, func(id key.Public) bool { return tried[id] })
		if len(more) == 0 {
			return
		}
		for _, r := range more {
			h.dialed[r.ID] = true
			if up(r.ID) {
				h.EdgeUp(r.ID, newTapLink())
			} else {
				tried[r.ID] = true
			}
		}
	}
}

// edgeIDs are the relays that new paths begin with, the first candidate first.
func (h *host) edgeIDs() (ids []key.Public) {
	ch, _ := h.chooser(time.Now())
	for _, e := range ch.edges {
		ids = append(ids, e.contact.ID)
	}
	return ids
}

// TestEdgesKept: however often a client is started, it connects to the same relays; in months it changes them, one by one, and few.
func TestEdgesKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBigTown(t, 300)
		h := &host{dialed: map[key.Public]bool{}}
		for range 200 { // a storm
			h.start(b)
			h.connect(func(key.Public) bool { return true })
		}
		if len(h.dialed) != h.opt.Edges {
			t.Errorf("%d relays were connected to in 200 starts", len(h.dialed))
		}
		first := h.edgeIDs()
		days, together := 0, 0
		for ; days < 365; days++ {
			time.Sleep(24 * time.Hour)
			if days%20 == 0 {
				b.sign(t, 300)
			}
			h.start(b)
			before := len(h.dialed)
			h.connect(func(key.Public) bool { return true })
			if days < 59 && !slices.Equal(h.edgeIDs(), first) {
				t.Fatalf("other edges on day %d", days)
			}
			if len(h.dialed)-before == h.opt.Edges {
				together++
			}
		}
		h.Close()
		t.Logf("%d relays in a year", len(h.dialed))
		// That the four end on the same of 60 days comes once in 60^3 times, with each of at most six generations; that two generations do once in 10^9.
		if together > 1 {
			t.Errorf("all edges were new on %d days", together)
		}
		if n := len(h.dialed); n < 3*h.opt.Edges || n > h.opt.Edges*(1+365/60) {
			t.Errorf("%d relays were connected to in a year", n)
		}
	})
}

// TestEdgesReturn: what is preferred stays so: a candidate that fails is replaced, and takes its place again when it is back, whoever answers sooner. Connections beyond are
// given up when no path needs them.
func TestEdgesReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBigTown(t, 100)
		h := &host{dialed: map[key.Public]bool{}}
		h.start(b)
		defer h.Close()
		var closed []Link
		h.disconnect = func(l Link) { closed = append(closed, l) }
		h.connect(func(key.Public) bool { return true })
		first := h.edgeIDs()
		h.EdgeDown(h.edges[first[1]])
		h.connect(func(id key.Public) bool { return id != first[1] })
		spare := h.edgeIDs()
		if len(spare) != 4 || !slices.Equal(spare[:3], []key.Public{first[0], first[2], first[3]}) || spare[3] != h.candidates.Candidates[4].Relay {
			t.Fatalf("the fifth candidate is no edge, or not the last")
		}
		time.Sleep(time.Minute)
		h.connect(func(key.Public) bool { return true })
		if !slices.Equal(h.edgeIDs(), first) {
			t.Error("who is back is no edge, or not in its place")
		}
		h.Tick(time.Now())
		if len(closed) != 1 || h.edges[spare[3]] != nil || len(h.edges) != 4 {
			t.Errorf("%d connections closed, %d left", len(closed), len(h.edges))
		}
		// Whom nobody listed comes last.
		stranger := b.secs[slices.IndexFunc(b.secs, func(s *key.Secret) bool { return h.candidates.rank(s.Public()) == math.MaxInt })].Public()
		h.EdgeUp(stranger, newTapLink())
		if !slices.Equal(h.edgeIDs(), first) {
			t.Error("a stranger is an edge")
		}
	})
}

// TestEdgesPushed: somebody in the network makes all connections of a client fail but those to relays of their own, and has it started again and again. On the first day it tries twelve
// relays, then one more a day, and twenty-four at most.
func TestEdgesPushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBigTown(t, 300)
		h := &host{dialed: map[key.Public]bool{}}
		for hour := range 100 * 24 {
			if hour%(20*24) == 0 {
				b.sign(t, 300)
			}
			h.start(b)
			h.connect(func(key.Public) bool { return false })
			want := min(perEdge*4+hour/24, perEdgeMost*4)
			if n := len(h.dialed); n > want {
				t.Fatalf("%d relays were tried in %d hours, %d are allowed", n, hour, want)
			}
			time.Sleep(time.Hour)
		}
		if n := len(h.dialed); n != perEdgeMost*4 {
			t.Errorf("%d relays were tried in the end", n)
		}
		for _, hostile := range []float64{0.01, 0.05, 0.1} {
			p := func(n float64) float64 { return 100 * (1 - math.Pow(1-hostile, n)) }
			t.Logf("%2.0f %% hostile: one of 4 edges %3.0f %%, of 12 candidates %3.0f %%, of 24 %3.0f %%; drawn anew at each of 30 starts %3.0f %%", 100*hostile, p(4), p(12), p(24), p(120))
		}
		h.Close()
	})
}

// TestEdgesPassing: as long as few contacts are known, who is connected to is not kept; what was kept before is not lost.
func TestEdgesPassing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBigTown(t, 100)
		h := &host{dialed: map[key.Public]bool{}}
		h.start(b)
		h.connect(func(key.Public) bool { return true })
		settled := h.disk

		var err error
		b.store, err = netdb.OpenStore("", key.Public{}, false, netdb.Rules{Network: 2, Private: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var all []key.Public
		for _, s := range b.secs {
			all = append(all, s.Public())
		}
		b.store.SetKnown(all)
		b.sign(t, 5)
		for _, c := range []struct {
			name string
			disk EdgeList
		}{{"never here", EdgeList{}}, {"contacts lost", settled}} {
			h.disk = c.disk
			h.start(b)
			h.connect(func(key.Public) bool { return true })
			if len(h.edgeIDs()) != 4 || !slices.Equal(h.disk.Candidates, c.disk.Candidates) {
				t.Errorf("%s: %d edges, %d candidates kept", c.name, len(h.edgeIDs()), len(h.disk.Candidates))
			}
		}
		b.sign(t, 100)
		h.connect(func(key.Public) bool { return true })
		// One that was an edge in the meantime may have got its time.
		same := func(a, b Candidate) bool { return a.Relay == b.Relay }
		if got := h.edgeIDs(); !slices.EqualFunc(h.disk.Candidates, settled.Candidates, same) || got[0] != settled.Candidates[0].Relay {
			t.Error("contacts are there again: others are preferred than before")
		}
		h.Close()
	})
}
