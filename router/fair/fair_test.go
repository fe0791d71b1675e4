package fair

import (
	"testing"
	"time"
)

func TestMeter(t *testing.T) {
	now := time.Unix(1e9, 0)
	m := &Meter[int]{Rate: 10, Burst: 100}
	taken := func(k int) (n int) {
		for m.Take(k, 1, now) {
			n++
		}
		return n
	}
	if n := taken(1); n != 100 {
		t.Errorf("%d at once", n)
	}
	if n := taken(2); n != 100 {
		t.Errorf("%d at once for another", n)
	}
	now = now.Add(3 * time.Second)
	if n := taken(1); n != 30 {
		t.Errorf("%d after three seconds", n)
	}
	now = now.Add(time.Hour)
	if n := taken(1); n != 100 {
		t.Errorf("%d after an hour", n)
	}
	m.Charge(3, 1000, now) // one that could not be known before
	now = now.Add(80 * time.Second)
	if m.Allows(3, now) {
		t.Error("forgiven too early")
	}
	now = now.Add(11 * time.Second)
	if !m.Allows(3, now) {
		t.Error("never forgiven")
	}
	now = now.Add(-time.Hour) // the clock is set back
	m.Allows(3, now)

	// While the whole is more than half used, few cannot take the rest.
	m = &Meter[int]{Rate: 1, Burst: 80, AllRate: 1, AllBurst: 400}
	total := 0
	for k := range 5 {
		total += taken(k)
	}
	if total != 200+2*10 {
		t.Errorf("the greedy take %d of 400", total)
	}
	if n := taken(10); n != 10 {
		t.Errorf("a newcomer gets %d", n)
	}

	// No bound for all together.
	m = &Meter[int]{Rate: 1, Burst: 8}
	for k := range 100 {
		if n := taken(k); n != 8 {
			t.Errorf("%d of 8 without a bound for all", n)
		}
	}

	// Memory is bounded, and who is beyond shares.
	m = &Meter[int]{Rate: 1e-9, Burst: 2}
	for k := range maxAskers + 1000 {
		m.Take(k+1, 1, now)
	}
	if len(m.accounts) > maxAskers+1 {
		t.Errorf("%d accounts", len(m.accounts))
	}
	if mine, _ := m.Used(-1, now); mine == 0 {
		t.Error("one more counts as somebody new")
	}
	now = now.Add(1 << 62)
	m.Allows(-1, now)
	if len(m.accounts) > 2 {
		t.Errorf("%d accounts though nobody owes anything", len(m.accounts))
	}
}

// Who is only asked about is not remembered.
func TestUsed(t *testing.T) {
	now := time.Unix(1e9, 0)
	m := Meter[int]{Rate: 1, Burst: 10, AllRate: 2, AllBurst: 40}
	m.Charge(1, 5, now)
	for k, want := range map[int]float64{1: 0.5, 2: 0} {
		if mine, all := m.Used(k, now); mine != want || all != 0.125 {
			t.Errorf("%d: %v of his own, %v of all", k, mine, all)
		}
	}
	now = now.Add(3 * time.Second)
	if mine, all := m.Used(1, now); mine != 0.2 || all != 0 {
		t.Errorf("later: %v of his own, %v of all", mine, all)
	}
	if n := m.Sweep(now); n != 1 {
		t.Errorf("%d accounts", n)
	}
	if n := m.Sweep(now.Add(time.Minute)); n != 0 {
		t.Errorf("%d accounts in the end", n)
	}
}

func TestSlots(t *testing.T) {
	s := Slots[int]{Each: 8, All: 20}
	taken := func(k int) (n int) {
		for s.Take(k) {
			n++
		}
		return n
	}
	if a, b := taken(1), taken(2); a != 8 || b != 2 {
		t.Errorf("%d and %d", a, b)
	}
	for k := 10; k < 30; k++ {
		if n := taken(k); n > 1 {
			t.Errorf("%d for one of many", n)
		}
	}
	if s.total != 20 {
		t.Errorf("%d of 20 in all", s.total)
	}
	s.Give(1)
	if s.total != 19 || s.used[1] != 7 {
		t.Errorf("%d, %v", s.total, s.used)
	}
}
