package netdb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/seal"
)

// Sizes and ages of relay contacts (protocol 1 sections 6.2 and 6.3).
const (
	MaxRelayContact = 2048                // bytes
	RelayLifetime   = 30 * 24 * time.Hour // from the signing time: then it is invalid
	RelayOutdated   = 12 * time.Hour      // from the signing time: an update over such a one is gossiped on
	MinRelayUpdate  = time.Minute         // an update that is not newer by this much is ignored
	RelayRefresh    = 10 * time.Minute    // how often a relay signs its own anew
)

// maxUnix is the last second of the year 9999. A time of the wire beyond it is refused, so that no sum with one overflows.
const maxUnix = 253402300799

// ErrExpired is the error of a relay contact that was valid once.
var ErrExpired = errors.New("netdb: relay contact has expired")

// sessions11 is the first software version whose relays do the 1.1 session handshake.
var sessions11 = [3]uint8{1, 1, 0}

// RelayContact says where a relay is reached, signed by the relay (protocol 1 section 6). It is immutable once parsed or signed and may be shared.
type RelayContact struct {
	ID       key.Public
	Addr     netip.AddrPort // IPv4
	Addr6    netip.AddrPort // IPv6; the zero value when there is none
	Time     time.Time      // when it was signed, whole seconds
	Version  [3]uint8       // of the relay's software: major, minor, patch
	Network  uint64         // 0 mainnet, 1 testnet, others private
	Sessions bool           // bit 0 of our own signed key s: the relay does the 1.1 session handshake whatever Version says

	raw  []byte
	hash [8]byte
}

// Rules says which relay contacts are valid here.
type Rules struct {
	Network uint64 // the network's id
	Private bool   // IPv4 addresses that are not publicly routable are allowed
	Expired bool   // expired ones are allowed (bootstrap lists)
}

// ParseRelayContact parses and verifies a relay contact of at most MaxRelayContact bytes by the rules of protocol 1 section 6.2. raw is
// copied. Errors say which rule is broken; ErrExpired is found with errors.Is. A signing time in the future is no error here (the reference
// has no such rule): see Store.Put.
func ParseRelayContact(raw []byte, now time.Time, r Rules) (*RelayContact, error) {
	c, err := decodeRelay(raw, now, r)
	if err != nil {
		return nil, err
	}
	return c.verified()
}

// verified checks the signature of c, whose raw is still the caller's, and makes c own its bytes.
func (c *RelayContact) verified() (*RelayContact, error) {
	signed, sig := split(c.raw)
	if !c.ID.Verify(signed, sig) {
		return nil, errors.New("netdb: relay contact: bad signature")
	}
	c.raw = bytes.Clone(c.raw)
	return c, nil
}

// signatureEnd is what a signed dict ends with, beside the 64 bytes: nothing may follow the signature (protocol 1 section 6.1).
const signatureEnd = len("1:~64:") + 64 + len("e")

// split cuts the signed part and the signature out of a signed dict that was found to end with its signature.
func split(raw []byte) (signed, sig []byte) {
	n := len(raw) - signatureEnd
	return raw[:n], raw[len(raw)-65 : len(raw)-1]
}

// endsSigned requires the signature as the last thing in a dict, and the dict's end as that of the input.
func endsSigned(d *bt.Dict, raw []byte) error {
	signed, _ := d.Signature("~")
	if err := d.Finish(); err != nil {
		return err
	}
	if len(signed)+signatureEnd != len(raw) {
		return errors.New("keys after the signature")
	}
	return nil
}

// decodeRelay does all of ParseRelayContact but the signature. The result's raw is borrowed.
func decodeRelay(raw []byte, now time.Time, r Rules) (*RelayContact, error) {
	fail := func(format string, args ...any) (*RelayContact, error) {
		return nil, fmt.Errorf("netdb: relay contact: "+format, args...)
	}
	if len(raw) > MaxRelayContact {
		return fail("%d bytes, at most %d allowed", len(raw), MaxRelayContact)
	}
	d := bt.ReadDict(raw)
	if format, _ := d.OptUint("", math.MaxUint8); format != 0 {
		return fail("unknown format version %d", format)
	}
	c := &RelayContact{raw: raw}
	c.Network, _ = d.OptUint("#", math.MaxUint64)
	addr4 := d.Fixed("4", 6)
	addr6, has6 := d.OptFixed("6", 18)
	id := d.Fixed("p", 32)
	s, _ := d.OptRaw("s")
	t := d.Raw("t")
	tEnd := d.Offset()
	version := d.Fixed("v", 3)
	if err := endsSigned(&d, raw); err != nil {
		return fail("%w", err)
	}

	if c.Network != r.Network {
		return fail("of network %d, not %d", c.Network, r.Network)
	}
	c.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte(addr4)), binary.BigEndian.Uint16(addr4[4:]))
	if c.Addr.Port() == 0 || !r.Private && !PublicAddr(c.Addr.Addr()) {
		return fail("IPv4 address is not publicly routable or without port")
	}
	if has6 {
		c.Addr6 = netip.AddrPortFrom(netip.AddrFrom16([16]byte(addr6)), binary.BigEndian.Uint16(addr6[16:]))
		if c.Addr6.Port() == 0 || !PublicAddr(c.Addr6.Addr()) {
			return fail("IPv6 address is not publicly routable or without port")
		}
	}
	c.ID = key.Public(id)
	bits, _ := bt.ParseUint(s) // anything else counts as without it (README, decision 2)
	c.Sessions = bits&1 != 0
	unix, ok := bt.ParseUint(t)
	if !ok || unix > maxUnix {
		return fail("signing time is no possible time")
	}
	c.Time = time.Unix(int64(unix), 0).UTC()
	c.Version = [3]uint8(version)
	if !r.Expired && c.Expired(now) {
		return nil, ErrExpired
	}

	// The identity hash leaves out the signing time and the signature, by the reference's cuts: the length prefix of key t stays, that of the key
	// behind it goes, that of ~ stays (protocol 1 section 6.5).
	before := raw[:tEnd-len(t)-len("t")]
	after := raw[tEnd : len(raw)-signatureEnd+len("1:")]
	after = after[bytes.IndexByte(after, ':')+1:]
	c.hash = seal.Hash8(before, after)
	return c, nil
}

// SignRelayContact makes the contact of the relay sec from the fields of c; ID is sec's whatever c says, the signing time is cut to seconds.
// It panics when c is none that others could parse in a network that allows its addresses: an Addr that is not IPv4, no port, or a signing
// time before 1970.
func SignRelayContact(sec *key.Secret, c RelayContact) *RelayContact {
	c.ID = sec.Public()
	b := c.build()
	sig := sec.Sign(b.Prefix())
	rules := Rules{Network: c.Network, Private: true, Expired: true}
	signed, err := decodeRelay(b.Bytes("~", sig[:]).End(), c.Time, rules)
	if err != nil {
		panic(err)
	}
	return signed
}

func (c *RelayContact) build() *bt.Builder {
	b := bt.NewDict(nil)
	if c.Network != 0 {
		b.Uint("#", c.Network)
	}
	b.Bytes("4", addrPort(c.Addr))
	if c.Addr6.IsValid() {
		b.Bytes("6", addrPort(c.Addr6))
	}
	b.Bytes("p", c.ID[:])
	if c.Sessions {
		b.Int("s", 1)
	}
	return b.Int("t", c.Time.Unix()).Bytes("v", c.Version[:])
}

func addrPort(a netip.AddrPort) []byte {
	return binary.BigEndian.AppendUint16(a.Addr().AsSlice(), a.Port())
}

// Raw returns the contact as it was received or signed, to be stored and passed on verbatim. It must not be written to.
func (c *RelayContact) Raw() []byte { return c.raw }

// Hash is the 8-byte identity hash: equal for contacts that differ in nothing but signing time and signature (protocol 1 section 6.5).
func (c *RelayContact) Hash() [8]byte { return c.hash }

// Bucket is the index, 0 to Buckets-1, of the bucket that the relay is in (protocol 1 section 6.5).
func (c *RelayContact) Bucket() int { return int(c.ID[16] & (Buckets - 1)) }

// Expired says whether the contact's life ended: RelayLifetime after it was signed.
func (c *RelayContact) Expired(now time.Time) bool { return !now.Before(c.Time.Add(RelayLifetime)) }

// Outdated says whether the contact was signed RelayOutdated ago or longer.
func (c *RelayContact) Outdated(now time.Time) bool { return !now.Before(c.Time.Add(RelayOutdated)) }

// Handshake11 says whether the relay does the 1.1 session handshake: by its version, or by our own key s (README, decision 2).
func (c *RelayContact) Handshake11() bool {
	return c.Sessions || bytes.Compare(c.Version[:], sessions11[:]) >= 0
}

// LogValue shows what the log may show of the relay's key, never its addresses.
func (c *RelayContact) LogValue() slog.Value { return c.ID.LogValue() }
