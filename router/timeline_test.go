package router

import (
	"slices"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/session"
)

func TestTimeline(t *testing.T) {
	var line timeline
	names := func() (names []string) {
		for _, s := range line.stages() {
			names = append(names, s.Name)
		}
		return names
	}
	if got := names(); !slices.Equal(got, []string{"exec"}) {
		t.Errorf("at first: %v", got)
	}
	line.note(momentPath)
	first := line.at[momentPath].Load()
	time.Sleep(time.Millisecond)
	line.note(momentEdge)
	line.note(momentPath)
	if line.at[momentPath].Load() != first {
		t.Error("a moment came twice")
	}
	if got := names(); !slices.Equal(got, []string{"exec", "first path", "first edge"}) {
		t.Errorf("in order of time: %v", got)
	}
	last := 0.0
	for _, s := range line.stages() {
		if s.AtMs < last {
			t.Errorf("%s at %v ms, after one at %v ms", s.Name, s.AtMs, last)
		}
		last = s.AtMs
	}
	for m := range moments {
		if m.String() == "" {
			t.Errorf("moment %d has no name", m)
		}
	}
}

// What sessions tell is noted, and told on.
func TestTimelineWatch(t *testing.T) {
	var line timeline
	told := []string{}
	c := session.Config{
		Deliver:   func(_ key.Address, b *packet.Buffer) { b.Release(); told = append(told, "deliver") },
		Published: func(session.Publication) { told = append(told, "published") },
	}
	line.watch(&c)
	c.Published(session.Publication{})
	if line.at[momentPublished].Load() != 0 {
		t.Error("published, though at no location")
	}
	c.Published(session.Publication{Locations: 1})
	c.Established(key.Address{})
	c.Deliver(key.Address{}, packet.Get())
	for _, m := range []moment{momentPublished, momentEstablished, momentDelivered} {
		if line.at[m].Load() == 0 {
			t.Errorf("%v was not noted", m)
		}
	}
	if want := []string{"published", "published", "deliver"}; !slices.Equal(told, want) {
		t.Errorf("told on: %v", told)
	}
}

func TestStartTicks(t *testing.T) {
	const tail = " S 1 2 2 0 -1 4194304 1 0 0 0 3 4 0 0 20 0 9 0 12345 1000 200 18446744073709551615"
	for stat, want := range map[string]int64{
		"42 (lokinetd)" + tail:          12345,
		"42 (a) b) (c) S 1 2)" + tail:   12345,
		"42 (lokinetd) S 1 2 2 0 -1":    -1,
		"":                              -1,
		"42 (lokinetd":                  -1,
		"42 (x)" + tail[:len(" S 1 2")]: -1,
		"42 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x 20": -1,
	} {
		got, ok := startTicks([]byte(stat))
		if ok != (want >= 0) || ok && int64(got) != want {
			t.Errorf("%q: %d, %v", stat, got, ok)
		}
	}
	if age := loaded.Sub(execTime()); age < 0 || age > time.Minute {
		t.Errorf("this program was loaded %v after its start", age)
	}
}
