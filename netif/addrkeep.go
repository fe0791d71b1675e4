package netif

import (
	"net/netip"
	"slices"
	"time"

	"lokinetd/router/key"
)

// Kept is what of a Map outlives its process, for a file: programs and resolvers hold addresses longer than a restart takes, and an address of
// before must not mean another remote after it. IPv6 addresses follow from the keys and need no memory.
type Kept struct {
	IPv4    netip.Prefix `json:"ipv4,omitzero"` // own address and range, so that the same range is asked for again
	IPv6    netip.Prefix `json:"ipv6,omitzero"`
	Next    uint32       `json:"next"`              // host number in IPv4 from which on no address has been given out for long
	Remotes []KeptRemote `json:"remotes,omitempty"` // live ones and those of the last 10 minutes, by address
}

// KeptRemote is a remote with its IPv4 address.
type KeptRemote struct {
	Remote key.Address `json:"remote"`
	IPv4   netip.Addr  `json:"ipv4"`
}

// Keep says what has to be remembered: at most limit remotes, those used last. With limit 0 nobody's name is in it; then a later Map knows no old
// address, but gives none of them to another remote either, until the range has been used up once.
//
// What Keep has not seen because the process died before its next call is covered too: Next is so far ahead that a sixteenth of the range may have been
// given out meanwhile (at most 4096 addresses). It counts as no use of a mapping.
func (m *Map) Keep(limit int, now time.Time) Kept {
	m.mu.RLock()
	defer m.mu.RUnlock()
	k := Kept{IPv4: m.own4, IPv6: m.own6}
	if !m.own4.IsValid() {
		return k
	}
	hosts := m.hosts4()
	k.Next = (m.next4-1+min(hosts/16, 4096))%hosts + 1
	if limit <= 0 {
		return k
	}
	oldest := int64(now.Sub(m.epoch) - keepMapping)
	var recent []*mapped
	for _, e := range m.remote {
		if e.addr4.IsValid() && e.remote != m.self && (e.live || e.used.Load() >= oldest) {
			recent = append(recent, e)
		}
	}
	if len(recent) > limit {
		age := make(map[*mapped]int64, len(recent)) // uses go on meanwhile
		for _, e := range recent {
			age[e] = e.used.Load()
		}
		slices.SortFunc(recent, func(a, b *mapped) int { return int(min(max(age[b]-age[a], -1), 1)) })
		recent = recent[:limit]
	}
	for _, e := range recent {
		k.Remotes = append(k.Remotes, KeptRemote{e.remote, e.addr4})
	}
	slices.SortFunc(k.Remotes, func(a, b KeptRemote) int { return a.IPv4.Compare(b.IPv4) })
	return k
}

// Restore takes over what Keep said in an earlier process; the remotes count as used now. What does not fit (another range, an address or remote
// that is taken) is skipped. It is for a Map that has been made just now.
func (m *Map) Restore(k Kept, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.own4.IsValid() || k.IPv4.Masked() != m.own4.Masked() {
		return
	}
	if k.Next >= 1 && k.Next <= m.hosts4() {
		m.next4 = k.Next
	}
	for _, r := range k.Remotes {
		if !r.IPv4.Is4() || !hostAddr(m.own4, r.IPv4) || m.addr[r.IPv4] != nil || r.Remote == m.self {
			continue
		}
		if e := m.remote[r.Remote]; e != nil && e.addr4.IsValid() {
			continue
		}
		e, err := m.get(r.Remote, now)
		if err != nil {
			return
		}
		m.set4(e, r.IPv4)
	}
}

// hosts4 is the number of host addresses in the IPv4 range, without its first and last.
func (m *Map) hosts4() uint32 { return uint32(1)<<(32-m.own4.Bits()) - 2 }
