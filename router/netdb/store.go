package netdb

import (
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"lokinetd/router/key"
)

// Numbers of the node database (protocol 1 section 9).
const (
	MinContacts   = 6 // fewer than this, and the node asks its bootstraps
	RIDSources    = 5 // relays that a client asks with fetch_rids
	PurgeInterval = 5 * time.Minute
)

// How far ahead of our clock a relay contact may be signed to be kept. The reference has no such bound, and a contact from the far future shuts out all
// updates and never expires. A relay's clock must be right, a client's often is not for a while after it is switched on: it is lenient.
const (
	maxAheadRelay  = 10 * time.Minute
	maxAheadClient = 24 * time.Hour
)

// maxKnown bounds the ids that bootstraps add to those that a client believes in; the next fetch_rids majority replaces them all.
const maxKnown = 2 * MaxRelays

// Store is what a node knows of the relays of its network (protocol 1 section 9): their contacts, at most MaxRelays and all verified, by id
// and in buckets; for a client the ids that it believes in (known), for a relay the registered ones; and the bootstraps. Safe for concurrent
// use.
type Store struct {
	self  key.Public
	relay bool
	rules Rules
	log   *slog.Logger
	disk  disk

	mu       sync.RWMutex
	contacts []*RelayContact    // in no order
	index    map[key.Public]int // into contacts
	buckets  BucketHashes
	known    map[key.Public]struct{}
	// registered and registeredIDs are replaced as a whole and never changed: both nil until the first SetRegistered.
	registered    map[key.Public]struct{}
	registeredIDs []key.Public
	bootstraps    []*RelayContact
}

func newStore(self key.Public, relay bool, r Rules, log *slog.Logger) *Store {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r.Expired = false
	return &Store{
		self: self, relay: relay, rules: r, log: log,
		index: make(map[key.Public]int),
		known: make(map[key.Public]struct{}),
	}
}

// Rules are what the store was opened with, Expired off.
func (s *Store) Rules() Rules { return s.rules }

// Put takes a verified contact in by the rules of protocol 1 section 9.3: a relay not known yet is stored; an update is when it was signed
// at least MinRelayUpdate after what we have. gossip says whether a relay passes it on: it is new, our own, differs in more than its time,
// or what we had was RelayOutdated older; a client never does. Refused are expired contacts, those signed too far ahead (10 minutes for a
// relay, a day for a client), and new ones when there are MaxRelays. Put does not ask whether the relay is registered or known: Gossip,
// Fetched and Bootstrapped do, for what came from the network.
func (s *Store) Put(c *RelayContact) (stored, gossip bool) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.Expired(now) || s.tooFarAhead(c, now) {
		return false, false
	}
	i, have := s.index[c.ID]
	if !have {
		if len(s.contacts) >= MaxRelays {
			return false, false
		}
		s.index[c.ID] = len(s.contacts)
		s.contacts = append(s.contacts, c)
		s.toggle(c)
		gossip = true
	} else {
		old := s.contacts[i]
		newer := c.Time.Sub(old.Time)
		if newer < MinRelayUpdate {
			return false, false
		}
		gossip = c.ID == s.self || newer >= RelayOutdated || c.hash != old.hash
		s.toggle(old)
		s.toggle(c)
		s.contacts[i] = c
	}
	s.disk.touch(c.ID)
	return true, gossip && s.relay
}

func (s *Store) tooFarAhead(c *RelayContact, now time.Time) bool {
	ahead := maxAheadClient
	if s.relay {
		ahead = maxAheadRelay
	}
	return c.Time.After(now.Add(ahead))
}

// toggle adds c to the hash of its bucket, or takes it out. The caller holds the lock.
func (s *Store) toggle(c *RelayContact) {
	h := &s.buckets[c.Bucket()]
	for i := range h {
		h[i] ^= c.hash[i]
	}
}

// remove forgets the contact at an index. The caller holds the lock.
func (s *Store) remove(i int) {
	c := s.contacts[i]
	s.toggle(c)
	last := len(s.contacts) - 1
	s.contacts[i] = s.contacts[last]
	s.index[s.contacts[i].ID] = i
	s.contacts[last] = nil
	s.contacts = s.contacts[:last]
	delete(s.index, c.ID)
	s.disk.touch(c.ID)
}

// stale says whether a contact would be dropped by Put for what we have; it saves verifying what a full mesh brings many times.
func (s *Store) stale(c *RelayContact) bool {
	old := s.Get(c.ID)
	return old != nil && c.Time.Sub(old.Time) < MinRelayUpdate
}

// Gossip takes in the relay contact of a gossip_rc, on relays: that of a registered relay other than ourselves. It returns the contact if it
// was stored, else nil, and whether it is passed on. One that is not wanted is no error; one that is not valid is, except that what would be
// dropped as not newer is dropped before its signature is looked at.
func (s *Store) Gossip(raw []byte) (c *RelayContact, gossip bool, err error) {
	c, err = decodeRelay(raw, time.Now(), s.rules)
	if err != nil {
		return nil, false, err
	}
	if c.ID == s.self || !s.Registered(c.ID) || s.stale(c) {
		return nil, false, nil
	}
	if c, err = c.verified(); err != nil {
		return nil, false, err
	}
	stored, gossip := s.Put(c)
	if !stored {
		return nil, false, nil
	}
	return c, gossip, nil
}

// Fetched takes in the relay contacts of a fetch_rcs reply, on clients: those of known relays. The first that is not valid ends it; those
// before it stay, and the error says so (protocol 1 section 9.7). An expired one is only left out.
func (s *Store) Fetched(raws [][]byte) (stored int, err error) {
	now := time.Now()
	rules := s.rules
	rules.Expired = true
	for _, raw := range raws {
		c, err := decodeRelay(raw, now, rules)
		if err != nil {
			return stored, err
		}
		if !s.IsKnown(c.ID) || c.Expired(now) || s.stale(c) {
			continue
		}
		if c, err = c.verified(); err != nil {
			return stored, err
		}
		if ok, _ := s.Put(c); ok {
			stored++
		}
	}
	return stored, nil
}

// Bootstrapped takes in contacts that come from a bootstrap or a network file. On a client believe says whether it believes in their ids from then
// on, as those of the public network's bootstraps (protocol 1 section 9.8); without it only those of known relays are taken. A relay that has a registered
// set takes those in it, and never its own.
func (s *Store) Bootstrapped(contacts []*RelayContact, believe bool) (stored int) {
	for _, c := range contacts {
		s.mu.Lock()
		if !s.relay && believe && len(s.known) < maxKnown {
			s.known[c.ID] = struct{}{}
		}
		var wanted bool
		if s.relay {
			_, registered := s.registered[c.ID]
			wanted = c.ID != s.self && (registered || s.registered == nil)
		} else {
			_, wanted = s.known[c.ID]
		}
		s.mu.Unlock()
		if !wanted {
			continue
		}
		if ok, _ := s.Put(c); ok {
			stored++
		}
	}
	return stored
}

// Get returns the contact of a relay, perhaps one that expired since the last Purge; nil when there is none.
func (s *Store) Get(id key.Public) *RelayContact {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if i, ok := s.index[id]; ok {
		return s.contacts[i]
	}
	return nil
}

// All returns all contacts in no order; the slice is the caller's.
func (s *Store) All() []*RelayContact {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.contacts)
}

// Raws returns the bytes of all contacts that are not expired, for a bootstrap reply. They must not be written to.
func (s *Store) Raws() [][]byte {
	now := time.Now()
	s.mu.RLock()
	defer s.mu.RUnlock()
	raws := make([][]byte, 0, len(s.contacts))
	for _, c := range s.contacts {
		if !c.Expired(now) {
			raws = append(raws, c.raw)
		}
	}
	return raws
}

// Len returns how many contacts there are, our own included.
func (s *Store) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.contacts)
}

// Known returns the ids that a client believes in, in ascending order.
func (s *Store) Known() []key.Public {
	s.mu.RLock()
	defer s.mu.RUnlock()
	ids := make([]key.Public, 0, len(s.known))
	for id := range s.known {
		ids = append(ids, id)
	}
	sortKeys(ids)
	return ids
}

// IsKnown says whether id is one of Known.
func (s *Store) IsKnown(id key.Public) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.known[id]
	return ok
}

// Believes says whether a client believes that id is a relay: it is one of Known, or nothing is known.
func (s *Store) Believes(id key.Public) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.known[id]
	return ok || len(s.known) == 0
}

// Settled says whether at least half of the relays that are known to be have contacts here.
func (s *Store) Settled() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return 2*len(s.contacts) >= len(s.known)
}

// SetKnown replaces the ids that a client believes in. Contacts of others stay (protocol 1 section 9.9).
func (s *Store) SetKnown(ids []key.Public) {
	known := keySet(ids)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = known
}

// SetRegistered replaces the registered set of a relay; the slice is copied. An empty set is one too: then nobody is registered.
func (s *Store) SetRegistered(ids []key.Public) {
	set := keySet(ids)
	sorted := make([]key.Public, 0, len(set))
	for id := range set {
		sorted = append(sorted, id)
	}
	sortKeys(sorted)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.registered, s.registeredIDs = set, sorted
}

// Registered says whether id is registered; never before SetRegistered.
func (s *Store) Registered(id key.Public) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.registered[id]
	return ok
}

// RegisteredIDs returns the registered set in ascending order, shared: it must not be written to. nil before SetRegistered.
func (s *Store) RegisteredIDs() []key.Public {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.registeredIDs
}

// SetBootstraps replaces the contacts that are asked for others, expired or not; ourselves left out.
func (s *Store) SetBootstraps(contacts []*RelayContact) {
	kept := slices.DeleteFunc(slices.Clone(contacts), func(c *RelayContact) bool { return c.ID == s.self })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bootstraps = kept
}

// Bootstraps returns the bootstraps in random order; the slice is the caller's.
func (s *Store) Bootstraps() []*RelayContact {
	s.mu.RLock()
	list := slices.Clone(s.bootstraps)
	s.mu.RUnlock()
	secure.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// Buckets returns the bucket hashes of all contacts, to be sent in a fetch_rcs.
func (s *Store) Buckets() BucketHashes {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.buckets
}

// Differing returns the bytes of all contacts in buckets whose hash is not the given one, for a fetch_rcs reply, without expired ones, on
// which the reference would stop reading. They must not be written to.
func (s *Store) Differing(hashes *BucketHashes) [][]byte {
	now := time.Now()
	s.mu.RLock()
	defer s.mu.RUnlock()
	var raws [][]byte
	for _, c := range s.contacts {
		if b := c.Bucket(); s.buckets[b] != hashes[b] && !c.Expired(now) {
			raws = append(raws, c.raw)
		}
	}
	return raws
}

// Random returns up to n different contacts in random order, each with the same chance, from those that are not expired, on a relay not
// our own, on a client that believes in any relays of those, and for which ok is true. (The reference keeps drawing relays that are no longer known.) ok may be nil; it is
// called without locks held and may use the Store.
func (s *Store) Random(n int, ok func(*RelayContact) bool) []*RelayContact {
	if n <= 0 {
		return nil
	}
	now := time.Now()
	s.mu.RLock()
	all := slices.Clone(s.contacts)
	s.mu.RUnlock()
	believed := func(c *RelayContact) bool {
		s.mu.RLock()
		defer s.mu.RUnlock()
		_, known := s.known[c.ID]
		return known || s.relay || len(s.known) == 0
	}
	// All in random order, as far as they are looked at: the first that fit are a fair sample of all that do.
	var sample []*RelayContact
	for i := range all {
		j := i + secure.IntN(len(all)-i)
		all[i], all[j] = all[j], all[i]
		c := all[i]
		if !believed(c) || c.Expired(now) || s.relay && c.ID == s.self || ok != nil && !ok(c) {
			continue
		}
		if sample = append(sample, c); len(sample) == n {
			break
		}
	}
	return sample
}

// Purge forgets contacts that expired, that lie too far ahead, that are not publicly routable (unless the network allows private addresses)
// and, on a relay with a registered set, that are not in it; every PurgeInterval. A client keeps contacts of relays that are no longer known (protocol 1 section 9.9), but
// not where they take up the room for others. It returns how many went.
func (s *Store) Purge(now time.Time) (removed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	crowded := len(s.known) > 0 && len(s.contacts) > MaxRelays/2
	for i := len(s.contacts) - 1; i >= 0; i-- {
		c := s.contacts[i]
		gone := c.Expired(now) || s.tooFarAhead(c, now) || !s.rules.Private && !PublicAddr(c.Addr.Addr())
		if s.relay && s.registered != nil {
			_, registered := s.registered[c.ID]
			gone = gone || !registered
		}
		if _, known := s.known[c.ID]; !s.relay && crowded && !known {
			gone = true
		}
		if gone {
			s.remove(i)
			removed++
		}
	}
	return removed
}

func keySet(ids []key.Public) map[key.Public]struct{} {
	set := make(map[key.Public]struct{}, len(ids))
	for _, id := range ids {
		set[id] = struct{}{}
	}
	return set
}

func sortKeys(ids []key.Public) { slices.SortFunc(ids, key.Public.Compare) }

// secure draws from the system's random source without bias: who meets whom must not be foreseeable. Safe for concurrent use, since the
// source keeps no state.
var secure = mathrand.New(systemSource{})

type systemSource struct{}

func (systemSource) Uint64() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}
