package netif

import (
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/key"
)

var (
	// ErrExhausted: every address of the range belongs to a remote with a live session or was used in the last 10 minutes.
	ErrExhausted = errors.New("netif: no address left: all belong to live sessions or were used in the last 10 minutes")
	// ErrNoFamily: the endpoint has no addresses of this IP version, because the host or the configuration has none.
	ErrNoFamily = errors.New("netif: no addresses of this ip version here")
)

const (
	// keepMapping is how long an address stays with its remote after its last use (protocol/README 10): applications and resolvers may
	// still hold it.
	keepMapping = 10 * time.Minute
	// forgetMapping is how long a remote without a session stays in a map when there is room: an idle program may come back.
	forgetMapping = time.Hour
	// maxRemotes bounds the remotes of one map; a mapped remote takes about 400 bytes.
	maxRemotes = 1 << 16
)

// Map gives the remotes of one endpoint addresses in the endpoint's ranges, and finds remotes by them (protocol 4 section 6.4).
//
// Every remote in it has an IPv6 address, made from its key; an IPv4 address only when one was asked for. A remote keeps its addresses until they
// are needed for another one: then the least recently used go, but never one of a live session, used in the last 10 minutes, or
// reserved. What was not used for an hour goes as new ones come. Uses are Remote, IPv4, IPv6 and the packets of Pump. Safe for concurrent use; Remote and Addr do not allocate.
type Map struct {
	own4, own6 netip.Prefix // address and length; invalid: none
	self       key.Address
	epoch      time.Time

	mu     sync.RWMutex
	remote map[key.Address]*mapped
	addr   map[netip.Addr]*mapped
	next4  uint32 // offset in the IPv4 range where the search for a free address goes on
	used4  int
	all    ages // one item for every mapped
	with4  ages // one item for every mapped with an IPv4 address
}

// mapped is one remote. Fields are guarded by Map.mu but for used; remote does not change.
type mapped struct {
	remote         key.Address
	addr4, addr6   netip.Addr   // invalid: none
	used           atomic.Int64 // last use, nanoseconds since Map.epoch
	live           bool
	fixed4, fixed6 bool // reserved
	gone           bool
}

func (e *mapped) reserved() bool { return e.fixed4 || e.fixed6 }

// NewMap makes the map of the endpoint self with the own addresses own4 and own6, each with the length of its range; the zero Prefix: none of
// this family. IPv4 ranges are /8 to /30, IPv6 ranges /16 to /64. The own addresses belong to self for good.
func NewMap(self key.Address, own4, own6 netip.Prefix) (*Map, error) {
	m := &Map{own4: own4, own6: own6, self: self, epoch: time.Now(), remote: map[key.Address]*mapped{}, addr: map[netip.Addr]*mapped{}, next4: 1}
	if own4.IsValid() && (!own4.Addr().Is4() || own4.Bits() < 8 || own4.Bits() > 30) {
		return nil, fmt.Errorf("netif: ipv4 range %v: want an IPv4 prefix of /8 to /30", own4)
	}
	if own6.IsValid() && (!own6.Addr().Is6() || own6.Addr().Is4In6() || own6.Bits() < 16 || own6.Bits() > 64) {
		return nil, fmt.Errorf("netif: ipv6 range %v: want an IPv6 prefix of /16 to /64", own6)
	}
	for _, p := range []netip.Prefix{own4, own6} {
		if p.IsValid() && !hostAddr(p, p.Addr()) {
			return nil, fmt.Errorf("netif: range %v: the address is that of the network, or its broadcast address", p)
		}
	}
	e := &mapped{remote: self, fixed4: true, fixed6: true}
	m.remote[self] = e
	if own4.IsValid() {
		e.addr4 = own4.Addr()
		m.addr[e.addr4] = e
		m.used4++
	}
	if own6.IsValid() {
		e.addr6 = own6.Addr()
		m.addr[e.addr6] = e
	}
	return m, nil
}

// Self returns the endpoint that the map belongs to, and its own addresses with the lengths of their ranges.
func (m *Map) Self() (self key.Address, own4, own6 netip.Prefix) { return m.self, m.own4, m.own6 }

// hostAddr reports whether a is in p's range and neither its first address (network; IPv6: anycast of its routers) nor, in IPv4, its last.
func hostAddr(p netip.Prefix, a netip.Addr) bool {
	if !p.Contains(a) || a == p.Masked().Addr() {
		return false
	}
	return !a.Is4() || binary.BigEndian.Uint32(a.AsSlice())|^uint32(0)<<(32-p.Bits()) != ^uint32(0)
}

// Remote returns the remote that has the address a. It counts as a use.
func (m *Map) Remote(a netip.Addr, now time.Time) (key.Address, bool) {
	m.mu.RLock()
	e := m.addr[a]
	m.mu.RUnlock()
	if e == nil {
		return key.Address{}, false
	}
	m.touch(e, now)
	return e.remote, true
}

// Addr returns the address of the given IP version that remote has now, or false; it makes none. It counts as a use.
func (m *Map) Addr(remote key.Address, version uint8, now time.Time) (netip.Addr, bool) {
	m.mu.RLock()
	e := m.remote[remote]
	var a netip.Addr
	if e != nil {
		if a = e.addr4; version == 6 {
			a = e.addr6
		}
	}
	m.mu.RUnlock()
	if !a.IsValid() {
		return a, false
	}
	m.touch(e, now)
	return a, true
}

// touch notes a use, to the second.
func (m *Map) touch(e *mapped, now time.Time) {
	t := int64(now.Sub(m.epoch))
	if t-e.used.Load() > int64(time.Second) {
		e.used.Store(t)
	}
}

// IPv6 returns the IPv6 address of remote and maps it if need be. Errors: ErrNoFamily, ErrExhausted.
func (m *Map) IPv6(remote key.Address, now time.Time) (netip.Addr, error) {
	if !m.own6.IsValid() {
		return netip.Addr{}, ErrNoFamily
	}
	if a, ok := m.Addr(remote, 6, now); ok {
		return a, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := m.get(remote, now)
	if err != nil {
		return netip.Addr{}, err
	}
	return e.addr6, nil
}

// IPv4 returns the IPv4 address of remote and maps it if need be. Errors: ErrNoFamily, ErrExhausted.
func (m *Map) IPv4(remote key.Address, now time.Time) (netip.Addr, error) {
	if !m.own4.IsValid() {
		return netip.Addr{}, ErrNoFamily
	}
	if a, ok := m.Addr(remote, 4, now); ok {
		return a, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := m.get(remote, now)
	if err != nil || e.addr4.IsValid() {
		return e4(e), err
	}
	a, ok := m.free4()
	if !ok {
		old := m.oldest(&m.with4, now, keepMapping)
		if old == nil {
			return netip.Addr{}, ErrExhausted
		}
		a = old.addr4
		m.drop4(old)
	}
	m.set4(e, a)
	return a, nil
}

func e4(e *mapped) netip.Addr {
	if e == nil {
		return netip.Addr{}
	}
	return e.addr4
}

// SetLive says whether a session with remote is live. A remote with a live session is mapped and keeps its addresses; the end of a session counts
// as a use. Error: ErrExhausted.
func (m *Map) SetLive(remote key.Address, live bool, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.remote[remote]
	if e == nil && !live {
		return nil
	}
	e, err := m.get(remote, now)
	if err != nil {
		return err
	}
	e.live = live
	return nil
}

// Reserve gives remote a fixed address (protocol 4 section 6.3). It fails when a is outside the range of its family or belongs to another
// remote, or when remote already has another address of that family.
func (m *Map) Reserve(remote key.Address, a netip.Addr, now time.Time) error {
	p := m.own4
	if a.Is6() {
		p = m.own6
	}
	if !p.IsValid() || !hostAddr(p, a) {
		return fmt.Errorf("netif: reserve %v: outside the range %v", a, p)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.addr[a]; e != nil && e.remote != remote {
		return fmt.Errorf("netif: reserve %v: taken", a)
	}
	e := m.remote[remote]
	if e != nil && (a.Is4() && e.fixed4 && e.addr4 != a || a.Is6() && e.fixed6 && e.addr6 != a) {
		return fmt.Errorf("netif: reserve %v: the remote has a reserved address already", a)
	}
	e, err := m.get(remote, now)
	if err != nil {
		return err
	}
	if a.Is4() {
		e.fixed4 = true
		if e.addr4 != a {
			m.drop4(e)
			m.set4(e, a)
		}
	} else {
		e.fixed6 = true
		if e.addr6 != a {
			m.set6(e, a)
		}
	}
	return nil
}

// Mapping is one remote of a Map, for status.
type Mapping struct {
	Remote         key.Address
	IPv4, IPv6     netip.Addr // invalid: none
	Live, Reserved bool
	Idle           time.Duration // since the last use
}

// Mappings returns all remotes, the own endpoint too, the most recently used first.
func (m *Map) Mappings(now time.Time) []Mapping {
	m.mu.RLock()
	defer m.mu.RUnlock()
	l := make([]Mapping, 0, len(m.remote))
	for _, e := range m.remote {
		l = append(l, Mapping{e.remote, e.addr4, e.addr6, e.live, e.reserved(), now.Sub(m.epoch) - time.Duration(e.used.Load())})
	}
	slices.SortFunc(l, func(a, b Mapping) int { return int(a.Idle.Seconds() - b.Idle.Seconds()) })
	return l
}

// get returns the entry of remote, made if need be, and notes a use. m.mu is held.
func (m *Map) get(remote key.Address, now time.Time) (*mapped, error) {
	e := m.remote[remote]
	if e == nil {
		if len(m.remote) >= maxRemotes {
			old := m.oldest(&m.all, now, keepMapping)
			if old == nil {
				return nil, ErrExhausted
			}
			m.drop(old)
		}
		for range 2 { // more than come, so that few stay
			if old := m.oldest(&m.with4, now, forgetMapping); old != nil {
				m.drop4(old)
			}
			if old := m.oldest(&m.all, now, forgetMapping); old != nil {
				m.drop(old)
			}
		}
		e = &mapped{remote: remote}
		if m.own6.IsValid() {
			e.addr6 = m.pick6(remote)
			m.addr[e.addr6] = e
		}
		m.remote[remote] = e
		heap.Push(&m.all, aged{int64(now.Sub(m.epoch)), e})
	}
	e.used.Store(max(e.used.Load(), int64(now.Sub(m.epoch))))
	return e, nil
}

// first6 makes an IPv6 address from the first bytes of a key.
func (m *Map) first6(remote key.Address) netip.Addr {
	b := m.own6.Masked().Addr().As16()
	n := (128 - m.own6.Bits()) / 8
	copy(b[16-n:], remote.Key[:n])
	return netip.AddrFrom16(b)
}

// pick6 is first6; if that is taken, or none for hosts, the next one that is free.
func (m *Map) pick6(remote key.Address) netip.Addr {
	b := m.first6(remote).As16()
	n := (128 - m.own6.Bits()) / 8
	for {
		a := netip.AddrFrom16(b)
		if hostAddr(m.own6, a) && m.addr[a] == nil {
			return a
		}
		for i := 15; i >= 16-n; i-- { // ends: there are far more addresses than maxRemotes
			if b[i]++; b[i] != 0 {
				break
			}
		}
	}
}

// free4 returns the next free IPv4 address, in turn, so that an address that became free is taken again as late as possible.
func (m *Map) free4() (netip.Addr, bool) {
	hosts := m.hosts4()
	if m.used4 >= int(hosts) {
		return netip.Addr{}, false
	}
	base := binary.BigEndian.Uint32(m.own4.Masked().Addr().AsSlice())
	for {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], base+m.next4)
		if m.next4++; m.next4 > hosts {
			m.next4 = 1
		}
		if a := netip.AddrFrom4(b); m.addr[a] == nil {
			return a, true
		}
	}
}

func (m *Map) set4(e *mapped, a netip.Addr) {
	e.addr4 = a
	m.addr[a] = e
	m.used4++
	heap.Push(&m.with4, aged{e.used.Load(), e})
}

// set6 gives an entry another IPv6 address, which is free.
func (m *Map) set6(e *mapped, a netip.Addr) {
	delete(m.addr, e.addr6)
	e.addr6 = a
	m.addr[a] = e
}

func (m *Map) drop(e *mapped) {
	m.drop4(e)
	delete(m.addr, e.addr6)
	delete(m.remote, e.remote)
	e.gone = true
}

func (m *Map) drop4(e *mapped) {
	if e.addr4.IsValid() {
		delete(m.addr, e.addr4)
		e.addr4 = netip.Addr{}
		m.used4--
	}
}

// oldest takes the least recently used entry off h, or returns nil when none may go that was used less than idle ago. The ages in h are lower bounds: an entry is
// brought up to date when its turn comes, so that a use costs nothing and an entry is looked at once in 10 minutes.
func (m *Map) oldest(h *ages, now time.Time, idle time.Duration) *mapped {
	t := int64(now.Sub(m.epoch))
	for len(*h) > 0 {
		top := &(*h)[0]
		switch used := top.e.used.Load(); {
		case top.e.gone || h == &m.with4 && !top.e.addr4.IsValid():
			heap.Pop(h)
		case t-top.at < int64(idle):
			return nil
		case top.e.live || top.e.reserved():
			top.at = t
			heap.Fix(h, 0)
		case used > top.at:
			top.at = used
			heap.Fix(h, 0)
		default:
			return heap.Pop(h).(aged).e
		}
	}
	return nil
}

// ages is a heap of entries by age.
type ages []aged

type aged struct {
	at int64
	e  *mapped
}

func (h ages) Len() int           { return len(h) }
func (h ages) Less(i, j int) bool { return h[i].at < h[j].at }
func (h ages) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *ages) Push(x any)        { *h = append(*h, x.(aged)) }
func (h *ages) Pop() any {
	l := len(*h) - 1
	x := (*h)[l]
	(*h)[l] = aged{}
	*h = (*h)[:l]
	return x
}
