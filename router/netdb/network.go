package netdb

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/seal"
)

// Bounds of a network file. A network of fewer than MinRelays relays does not work (four hold a client's contact); fewer than AdvisedRelays is fragile.
const (
	MaxNetworkFile  = 8 << 20 // bytes
	MaxNetworkName  = 32      // characters of its name
	MaxNetworkNames = 16384   // entries of Names
	MinRelays       = 4
	AdvisedRelays   = 6
)

// networkMagic stands under the empty key, where relay contacts have a number: neither can be taken for the other, whoever signed it.
const networkMagic = "lokinetd network 1"

// NetworkFile is a private network as its operator describes and signs it (design section 5); it stands in for oxend's registry and for bootstrap files.
//
// As a file it is one bt dict of at most MaxNetworkFile bytes, signed as protocol 1 section 1.4 says, with nothing behind the signature:
//
//	""  string  "lokinetd network 1"
//	"#" int     network id, as in relay contacts; 2 or more
//	"c" list    relay contacts (dicts as signed by the relays) of some of "r", in ascending order of their keys; may be empty; may have expired
//	"f" int     flags: bit 0 private_addresses, bit 1 unique_range; unknown bits are ignored
//	"k" 32      the operator's Ed25519 key
//	"n" string  the network's name: 1 to 32 of a-z, 0-9 and "-", not "-" at either end
//	"r" list    keys of the registered relays, 32 bytes each, in ascending order, at most MaxRelays; may be empty
//	"s" dict    names (protocol 1 section 8.1, with ".loki") to client keys, 32 bytes each; at most MaxNetworkNames; may be empty
//	"t" int     serial: the file with the highest is the one that holds
//	"~" 64      signature by "k"
//
// Unknown keys are skipped.
type NetworkFile struct {
	Name        string
	Network     uint64
	Serial      uint64
	Private     bool                  // private_addresses: relays may have addresses that are not publicly routable
	UniqueRange bool                  // unique_range: the hops of a path need distinct IPv4 ranges
	Relays      []key.Public          // in ascending order after ParseNetworkFile
	Contacts    []*RelayContact       // likewise; bootstraps
	Names       map[string]key.Public // "name.loki" to a client
	Operator    key.Public            // who signed it; set by ParseNetworkFile
}

// Names of the public networks by their ids (protocol 1 section 6.1).
var publicNames = [...]string{"session-router", "testnet"}

// PublicNetwork describes a public network, which has no file, and of whose relays only some contacts are known at first: where to ask for others.
// Id 0 is the main one, 1 the one for tests.
func PublicNetwork(id uint64, bootstraps []*RelayContact) *NetworkFile {
	return &NetworkFile{Name: publicNames[id], Network: id, UniqueRange: true, Contacts: bootstraps}
}

// Public says whether f is of PublicNetwork, not of a file.
func (f *NetworkFile) Public() bool {
	return f.Network < uint64(len(publicNames)) && len(f.Relays) == 0 && f.Operator.IsZero()
}

const (
	flagPrivate     = 1
	flagUniqueRange = 2
)

// ParseNetworkFile reads a network file, which operator must have signed; now is not its age (it has none) but that of its contacts. The ids
// 0 and 1 are those of the public networks and refused.
func ParseNetworkFile(raw []byte, operator key.Public, now time.Time) (*NetworkFile, error) {
	f, err := ParseReservedNetworkFile(raw, operator, now)
	if err == nil && f.Network < 2 {
		return nil, fmt.Errorf("netdb: network file: id %d is that of a public network; a private one has 2 or more", f.Network)
	}
	return f, err
}

// ParseReservedNetworkFile is ParseNetworkFile that accepts the ids 0 and 1 too. Only tests against foreign code that knows no other have a use for it.
func ParseReservedNetworkFile(raw []byte, operator key.Public, now time.Time) (*NetworkFile, error) {
	fail := func(err error) (*NetworkFile, error) { return nil, fmt.Errorf("netdb: network file: %w", err) }
	f, contacts, err := decodeNetwork(raw)
	if err != nil {
		return fail(err)
	}
	if f.Operator != operator {
		return fail(errors.New("signed by another operator"))
	}
	if signed, sig := split(raw); !operator.Verify(signed, sig) {
		return fail(errors.New("bad signature"))
	}
	rules := f.Rules()
	rules.Expired = true
	for contacts.Next() {
		c, err := ParseRelayContact(contacts.Raw(), now, rules)
		if err != nil {
			return fail(err)
		}
		f.Contacts = append(f.Contacts, c)
	}
	if err := contacts.Finish(); err != nil {
		return fail(err)
	}
	if err := f.check(); err != nil {
		return fail(err)
	}
	return f, nil
}

// NetworkFileOperator returns the key that a network file says it is signed by, unverified: to show a file whose operator is not known yet.
func NetworkFileOperator(raw []byte) (key.Public, error) {
	f, _, err := decodeNetwork(raw)
	if err != nil {
		return key.Public{}, fmt.Errorf("netdb: network file: %w", err)
	}
	return f.Operator, nil
}

// decodeNetwork reads the form of a network file; the contacts are left to be read, and nothing is verified.
func decodeNetwork(raw []byte) (f *NetworkFile, contacts bt.List, err error) {
	if len(raw) > MaxNetworkFile {
		return nil, contacts, fmt.Errorf("%d bytes, at most %d allowed", len(raw), MaxNetworkFile)
	}
	d := bt.ReadDict(raw)
	if magic := d.Bytes(""); string(magic) != networkMagic {
		return nil, contacts, errors.New("not a network file, or one of another version")
	}
	f = &NetworkFile{}
	f.Network = d.Uint("#", math.MaxUint64)
	contacts = d.List("c")
	flags := d.Uint("f", math.MaxUint64)
	f.Private, f.UniqueRange = flags&flagPrivate != 0, flags&flagUniqueRange != 0
	operator := d.Fixed("k", 32)
	f.Name = string(d.Bytes("n"))
	relays := d.List("r")
	names := d.Raw("s")
	f.Serial = d.Uint("t", math.MaxUint64)
	if err := endsSigned(&d, raw); err != nil {
		return nil, contacts, err
	}
	f.Operator = key.Public(operator)
	if f.Relays, err = readKeys(relays); err != nil {
		return nil, contacts, fmt.Errorf("relays: %w", err)
	}
	if f.Names, err = readNames(names); err != nil {
		return nil, contacts, fmt.Errorf("names: %w", err)
	}
	return f, contacts, nil
}

// readNames reads a dict of which no key is known beforehand. Its form was checked, order and uniqueness of the names too.
func readNames(dict []byte) (map[string]key.Public, error) {
	if dict[0] != 'd' {
		return nil, errors.New("not a dict")
	}
	names := make(map[string]key.Public)
	// What is between 'd' and 'e' are strings and values in turn: a list's content.
	list := bt.ReadList(append([]byte{'l'}, dict[1:]...))
	for list.Next() {
		name := string(list.Bytes())
		owner := list.Fixed(32)
		if owner == nil {
			break
		}
		names[name] = key.Public(owner)
		if len(names) > MaxNetworkNames {
			return nil, fmt.Errorf("more than %d", MaxNetworkNames)
		}
	}
	return names, list.Finish()
}

// check holds f, from a file or about to become one, to the rules that the form does not show.
func (f *NetworkFile) check() error {
	if !validNetworkName(f.Name) {
		return fmt.Errorf("name %.40q is not 1 to %d of a-z, 0-9 and -", f.Name, MaxNetworkName)
	}
	if len(f.Relays) > MaxRelays || len(f.Names) > MaxNetworkNames {
		return fmt.Errorf("%d relays and %d names, at most %d and %d allowed", len(f.Relays), len(f.Names), MaxRelays, MaxNetworkNames)
	}
	for i, id := range f.Relays {
		if i > 0 && f.Relays[i-1].Compare(id) >= 0 {
			return fmt.Errorf("relay %v twice or out of order", id)
		}
		if err := id.Check(); err != nil {
			return fmt.Errorf("relay %v: %w", id, err)
		}
	}
	for i, c := range f.Contacts {
		if i > 0 && f.Contacts[i-1].ID.Compare(c.ID) >= 0 {
			return fmt.Errorf("contact of relay %v twice or out of order", c.ID)
		}
		if _, registered := slices.BinarySearchFunc(f.Relays, c.ID, key.Public.Compare); !registered {
			return fmt.Errorf("contact of relay %v, which is not registered", c.ID)
		}
		if c.Network != f.Network {
			return fmt.Errorf("contact of relay %v is of network %d", c.ID, c.Network)
		}
		if !f.Private && !PublicAddr(c.Addr.Addr()) {
			return fmt.Errorf("contact of relay %v has a private address", c.ID)
		}
	}
	for name, owner := range f.Names {
		if err := key.CheckSNS(name); err != nil {
			return fmt.Errorf("name %.80q: %w", name, err)
		}
		if err := owner.Check(); err != nil {
			return fmt.Errorf("name %s: %w", name, err)
		}
	}
	return nil
}

func validNetworkName(name string) bool {
	if name == "" || len(name) > MaxNetworkName || name[0] == '-' || name[len(name)-1] == '-' {
		return false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// Sign writes the file, signed by operator, which becomes f's. f's relays and contacts may be in any order; f is not changed. Errors: f
// breaks a rule of the format (a relay twice, a contact of a relay that is not registered or of another network, a malformed name or key),
// or is too large. An id of 0 or 1 is none: ParseReservedNetworkFile reads it.
func (f *NetworkFile) Sign(operator *key.Secret) ([]byte, error) {
	o := *f
	o.Operator = operator.Public()
	o.Relays = slices.Clone(f.Relays)
	sortKeys(o.Relays)
	o.Contacts = slices.Clone(f.Contacts)
	slices.SortFunc(o.Contacts, func(a, b *RelayContact) int { return a.ID.Compare(b.ID) })
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("netdb: network file: %w", err)
	}
	b := o.build()
	sig := operator.Sign(b.Prefix())
	raw := b.Bytes("~", sig[:]).End()
	if len(raw) > MaxNetworkFile {
		return nil, fmt.Errorf("netdb: network file: %d bytes, at most %d allowed", len(raw), MaxNetworkFile)
	}
	return raw, nil
}

// build writes all but the signature of a file that is in order.
func (f *NetworkFile) build() *bt.Builder {
	contacts := []byte{'l'}
	for _, c := range f.Contacts {
		contacts = append(contacts, c.raw...)
	}
	names := bt.NewDict(nil)
	for _, name := range slices.Sorted(maps.Keys(f.Names)) {
		owner := f.Names[name]
		names.Bytes(name, owner[:])
	}
	var flags uint64
	if f.Private {
		flags |= flagPrivate
	}
	if f.UniqueRange {
		flags |= flagUniqueRange
	}
	return bt.NewDict(nil).String("", networkMagic).Uint("#", f.Network).Raw("c", append(contacts, 'e')).Uint("f", flags).
		Bytes("k", f.Operator[:]).String("n", f.Name).Raw("r", appendKeys(nil, f.Relays)).Raw("s", names.End()).Uint("t", f.Serial)
}

// Rules are those for the relay contacts of this network.
func (f *NetworkFile) Rules() Rules { return Rules{Network: f.Network, Private: f.Private} }

// Supersedes is nil when f may be taken after a file of the same network and operator with the serial accepted was: an operator who takes
// back a relay must not be undone by who replays an older file. The same serial is the same file.
func (f *NetworkFile) Supersedes(accepted uint64) error {
	if f.Serial < accepted {
		return fmt.Errorf("netdb: network file %s: serial %d is lower than %d, which was accepted before", f.Name, f.Serial, accepted)
	}
	return nil
}

// Enough says whether a network works.
type Enough uint8

const (
	TooFew  Enough = iota // fewer than MinRelays relays: it does not work
	Few                   // fewer than AdvisedRelays: it works as long as all of them do
	Advised               // AdvisedRelays or more
)

// EnoughRelays judges a number of relays.
func EnoughRelays(n int) Enough {
	switch {
	case n < MinRelays:
		return TooFew
	case n < AdvisedRelays:
		return Few
	}
	return Advised
}

// NameIndex answers resolve_sns from the names of a network file, by hash; immutable.
type NameIndex map[[32]byte]namedKey

type namedKey struct {
	name  string
	owner key.Public
}

// NameIndex makes the index of f's names; made once for a file.
func (f *NetworkFile) NameIndex() NameIndex {
	index := make(NameIndex, len(f.Names))
	for name, owner := range f.Names {
		index[seal.NameHash(name)] = namedKey{name, owner}
	}
	return index
}

// Reply gives the reply to a resolve_sns for a name's hash: the sealed key under a fresh nonce, or the status NOT FOUND.
func (x NameIndex) Reply(hash [32]byte) []byte {
	n, ok := x[hash]
	if !ok {
		return Status(StatusNotFound)
	}
	var nonce seal.Nonce
	rand.Read(nonce[:])
	return EncodeResolvedSNS(seal.SealName(n.name, n.owner, &nonce), &nonce)
}
