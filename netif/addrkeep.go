package netif

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"lokinetd/router/key"
)

// Kept is what of a Map outlives its process, for a file: programs and resolvers hold addresses longer than a restart takes, and an address of
// before must not mean another remote after it. IPv6 addresses follow from the keys and need no memory, but for those few that were taken when they were given out: two addresses with
// the same first bytes, such as the client and the relay of one key, get what is free in the order in which they come.
type Kept struct {
	IPv4    netip.Prefix `json:"ipv4,omitzero"` // own address and range, so that the same range is asked for again
	IPv6    netip.Prefix `json:"ipv6,omitzero"`
	Next    uint32       `json:"next"`              // host number in IPv4 from which on no address has been given out for long
	Remotes []KeptRemote `json:"remotes,omitempty"` // live ones and those of the last 10 minutes, by address
}

// KeptRemote is a remote with its IPv4 address, if it has one, and its IPv6 address, if that does not follow from the key.
type KeptRemote struct {
	Remote key.Address `json:"remote"`
	IPv4   netip.Addr  `json:"ipv4,omitzero"`
	IPv6   netip.Addr  `json:"ipv6,omitzero"`
}

// Keep says what has to be remembered: at most limit remotes, those used last. With limit 0 nobody's name is in it; then a later Map knows no old
// IPv4 address, but gives none of them to another remote either, until the range has been used up once.
//
// What Keep has not seen because the process died before its next call is covered too: Next is so far ahead that a sixteenth of the range may have been
// given out meanwhile (at most 4096 addresses). It counts as no use of a mapping.
func (m *Map) Keep(limit int, now time.Time) Kept {
	m.mu.RLock()
	defer m.mu.RUnlock()
	k := Kept{IPv4: m.own4, IPv6: m.own6}
	if m.own4.IsValid() {
		hosts := m.hosts4()
		k.Next = (m.next4-1+min(hosts/16, 4096))%hosts + 1
	}
	if limit <= 0 {
		return k
	}
	oldest := int64(now.Sub(m.epoch) - keepMapping)
	var recent []*mapped
	for _, e := range m.remote {
		if (e.addr4.IsValid() || m.displaced(e)) && e.remote != m.self && (e.live || e.used.Load() >= oldest) {
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
		r := KeptRemote{Remote: e.remote, IPv4: e.addr4}
		if m.displaced(e) {
			r.IPv6 = e.addr6
		}
		k.Remotes = append(k.Remotes, r)
	}
	slices.SortFunc(k.Remotes, func(a, b KeptRemote) int { return cmp.Or(a.IPv4.Compare(b.IPv4), a.IPv6.Compare(b.IPv6)) })
	return k
}

// displaced says whether an IPv6 address is remembered only, and follows neither from the key nor from the configuration.
func (m *Map) displaced(e *mapped) bool {
	return m.own6.IsValid() && !e.fixed6 && e.addr6 != m.first6(e.remote)
}

// Restore takes over what Keep said in an earlier process; the remotes count as used now. What does not fit (another range, an address or remote
// that is taken) is skipped. It is for a Map that has been made just now.
func (m *Map) Restore(k Kept, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	same4 := m.own4.IsValid() && k.IPv4.Masked() == m.own4.Masked()
	same6 := m.own6.IsValid() && k.IPv6.Masked() == m.own6.Masked()
	if same4 && k.Next >= 1 && k.Next <= m.hosts4() {
		m.next4 = k.Next
	}
	for _, r := range k.Remotes {
		known := m.remote[r.Remote]
		take4 := same4 && r.IPv4.Is4() && hostAddr(m.own4, r.IPv4) && m.addr[r.IPv4] == nil && (known == nil || !known.addr4.IsValid())
		take6 := same6 && r.IPv6.Is6() && hostAddr(m.own6, r.IPv6) && m.addr[r.IPv6] == nil && known == nil
		if r.Remote == m.self || !take4 && !take6 {
			continue
		}
		e, err := m.get(r.Remote, now)
		if err != nil {
			return
		}
		if take4 {
			m.set4(e, r.IPv4)
		}
		if take6 {
			m.set6(e, r.IPv6)
		}
	}
}

// hosts4 is the number of host addresses in the IPv4 range, without its first and last.
func (m *Map) hosts4() uint32 { return uint32(1)<<(32-m.own4.Bits()) - 2 }
