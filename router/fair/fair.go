// Package fair shares what is scarce between strangers, of whom many may be one.
//
// It counts and says yes or no; what is counted (handshakes, bytes, hops), by whom (a connection, a path, a network of addresses) and what follows from a no is its users' business. Nothing in it
// waits, sends or logs.
//
// One rule is the same everywhere: whoever asks has a bound of his own, all together have one, and while more than half of that is used, who has an eighth of his own gets no more.
// Few can then not take the rest from the many.
package fair

import (
	"sync"
	"time"
)

// Admits says whether one who uses mine may have more when all use total. each and all are the bounds; all 0: none.
func Admits[N int | float64](mine, total, each, all N) bool {
	switch {
	case mine >= each:
		return false
	case all == 0:
		return true
	}
	return total < all/2 || total < all && mine < max(1, each/8)
}

// Account is what was spent, in units of its user's, and has not drained since: a token bucket, seen from its bottom. The zero Account owes nothing. Not safe for concurrent use.
type Account struct {
	spent float64
	at    time.Time
}

// Spent is what is left when rate units a second drain.
func (a *Account) Spent(now time.Time, rate float64) float64 {
	if since := now.Sub(a.at).Seconds(); since > 0 {
		a.spent = max(0, a.spent-since*rate)
		a.at = now
	}
	return a.spent
}

// Add spends, as much as it may be: what something costs is sometimes known only afterwards.
func (a *Account) Add(units float64, now time.Time, rate float64) {
	a.spent = a.Spent(now, rate) + units
}

// Meter lets each asker spend Burst units and then Rate units a second, and all askers together AllBurst and AllRate (AllBurst 0: no bound). The fields are set before its first use; it is
// safe for concurrent use then. It remembers up to 65,536 askers, about 100 bytes each; beyond these newcomers share one account, that of the zero key.
type Meter[K comparable] struct {
	Rate, Burst       float64
	AllRate, AllBurst float64

	mu       sync.Mutex
	accounts map[K]*Account
	all      Account
	swept    time.Time
}

const maxAskers = 1 << 16

// account finds an asker's, or makes it. mu is held.
func (m *Meter[K]) account(k K, now time.Time) *Account {
	if a := m.accounts[k]; a != nil {
		return a
	}
	if m.accounts == nil {
		m.accounts = make(map[K]*Account)
	}
	if len(m.accounts) >= maxAskers && now.Sub(m.swept) >= time.Second {
		m.sweep(now)
	}
	if len(m.accounts) >= maxAskers {
		var shared K
		k = shared
	}
	if m.accounts[k] == nil {
		m.accounts[k] = &Account{}
	}
	return m.accounts[k]
}

func (m *Meter[K]) sweep(now time.Time) {
	m.swept = now
	for k, a := range m.accounts {
		if a.Spent(now, m.Rate) == 0 {
			delete(m.accounts, k)
		}
	}
}

// Allows says whether k may go on.
func (m *Meter[K]) Allows(k K, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.allows(m.account(k, now), now)
}

func (m *Meter[K]) allows(a *Account, now time.Time) bool {
	return Admits(a.Spent(now, m.Rate), m.all.Spent(now, m.AllRate), m.Burst, m.AllBurst)
}

// Charge books what k has cost, also beyond what k may spend: then k waits the longer.
func (m *Meter[K]) Charge(k K, units int, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.charge(m.account(k, now), units, now)
}

func (m *Meter[K]) charge(a *Account, units int, now time.Time) {
	a.Add(float64(units), now, m.Rate)
	m.all.Add(float64(units), now, m.AllRate)
}

// Take is Allows and, if so, Charge at once.
func (m *Meter[K]) Take(k K, units int, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.account(k, now)
	if !m.allows(a, now) {
		return false
	}
	m.charge(a, units, now)
	return true
}

// Used is which parts of their bounds k and all askers have spent. It makes no account: who may be anybody is asked about by it.
func (m *Meter[K]) Used(k K, now time.Time) (mine, all float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.accounts[k]
	if a == nil && len(m.accounts) >= maxAskers {
		var shared K
		a = m.accounts[shared]
	}
	if a != nil {
		mine = a.Spent(now, m.Rate) / m.Burst
	}
	return mine, m.all.Spent(now, m.AllRate) / m.AllBurst
}

// Forget gives up the account of an asker that does not come again.
func (m *Meter[K]) Forget(k K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.accounts, k)
}

// Sweep forgets all who owe nothing, and says how many do. A Meter that is full does so by itself.
func (m *Meter[K]) Sweep(now time.Time) (left int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweep(now)
	return len(m.accounts)
}

// Slots bounds what is under way at a time: Each of one asker, All together. The fields are set before its first use; it is safe for concurrent use then.
type Slots[K comparable] struct {
	Each, All int

	mu    sync.Mutex
	used  map[K]int
	total int
}

// Take takes a place; Give must follow when it is true.
func (s *Slots[K]) Take(k K) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !Admits(s.used[k], s.total, s.Each, s.All) {
		return false
	}
	if s.used == nil {
		s.used = make(map[K]int)
	}
	s.used[k]++
	s.total++
	return true
}

// Total is how many places are taken.
func (s *Slots[K]) Total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// Give gives a place back.
func (s *Slots[K]) Give(k K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.used[k]--; s.used[k] == 0 {
		delete(s.used, k)
	}
}
