package router

import (
	"sync"
	"time"
)

// A relay answers strangers. What each may cost it is bounded here, per asker (a path, a connection, a network of addresses) and in all. The protocol has no text for
// "too much": what is over a bound is answered ERROR, like all else that cannot be done.
//
// Both kinds share one rule, that of path.Limits: while more than half of the whole is used, who has used an eighth of its own gets no more, so that few cannot take the
// rest from the many.

// meter lets each asker spend burst units and then rate units a second, and all askers together allBurst and allRate (0: no bound). The unit is the user's.
type meter[K comparable] struct {
	rate, burst       float64
	allRate, allBurst float64

	mu    sync.Mutex
	spent map[K]*debt
	all   debt
	swept time.Time
}

// debt is what was spent and has not been refilled, at last.
type debt struct {
	units float64
	last  time.Time
}

func (d *debt) at(now time.Time, rate float64) float64 {
	if since := now.Sub(d.last).Seconds(); since > 0 {
		d.units = max(0, d.units-since*rate)
		d.last = now
	}
	return d.units
}

func (d *debt) add(units float64, now time.Time, rate float64) { d.units = d.at(now, rate) + units }

// maxAskers bounds a meter's memory; beyond it newcomers share one account, that of the zero key.
const maxAskers = 1 << 16

// account finds or makes an asker's. The caller holds the lock.
func (m *meter[K]) account(k K, now time.Time) *debt {
	if d := m.spent[k]; d != nil {
		return d
	}
	if m.spent == nil {
		m.spent = map[K]*debt{}
	}
	if len(m.spent) >= maxAskers && now.Sub(m.swept) >= time.Second {
		m.sweep(now)
	}
	if len(m.spent) >= maxAskers {
		var shared K
		k = shared
	}
	if m.spent[k] == nil {
		m.spent[k] = &debt{}
	}
	return m.spent[k]
}

// sweep forgets who owes nothing. The caller holds the lock.
func (m *meter[K]) sweep(now time.Time) {
	m.swept = now
	for k, d := range m.spent {
		if d.at(now, m.rate) == 0 {
			delete(m.spent, k)
		}
	}
}

// allows says whether k may go on.
func (m *meter[K]) allows(k K, now time.Time) bool {
	if Unbounded {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	mine := m.account(k, now).at(now, m.rate)
	if mine >= m.burst {
		return false
	}
	if m.allBurst == 0 {
		return true
	}
	total := m.all.at(now, m.allRate)
	return total < m.allBurst/2 || total < m.allBurst && mine < m.burst/8
}

// charge books what k has cost; it may go below zero, and then k waits the longer.
func (m *meter[K]) charge(k K, units int, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.account(k, now).add(float64(units), now, m.rate)
	m.all.add(float64(units), now, m.allRate)
}

// forget gives up the account of an asker that does not come again.
func (m *meter[K]) forget(k K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.spent, k)
}

// take is allows and charge at once.
func (m *meter[K]) take(k K, units int, now time.Time) bool {
	if !m.allows(k, now) {
		return false
	}
	m.charge(k, units, now)
	return true
}

// slots bounds what is under way at a time, each of one asker and all.
type slots[K comparable] struct {
	each, all int

	mu    sync.Mutex
	used  map[K]int
	total int
}

// take takes a place; give must follow when it is true.
func (s *slots[K]) take(k K) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := s.used[k]
	if mine >= s.each || s.total >= s.all || s.total >= s.all/2 && mine >= max(1, s.each/8) {
		return false
	}
	if s.used == nil {
		s.used = map[K]int{}
	}
	s.used[k]++
	s.total++
	return true
}

func (s *slots[K]) give(k K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.used[k]--; s.used[k] == 0 {
		delete(s.used, k)
	}
}
