package netdb

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/seal"
)

// MaxSealed is the size, in bytes, of the largest sealed client contact that is made, read or kept. An ordinary one has 300 to 1000; the
// reference has no bound.
const MaxSealed = 64 << 10

// ContactLifetime is how long relays keep and serve a sealed contact after it was signed: as long as a path lives (protocol 1 sections 7.9 and 10).
const ContactLifetime = 1380 * time.Second

// MaxAhead is how far in the future a sealed contact's signing time may be.
const MaxAhead = 10 * time.Minute

// Protocol flags of a client contact (protocol 1 section 7.3). Bits 0 and 1 had a meaning once and are ignored.
const (
	FlagIPv4      = 4  // takes raw IPv4 packets
	FlagIPv6      = 8  // takes raw IPv6 packets
	FlagPFS       = 16 // does the 1.1 session handshake
	FlagTCPTunnel = 32 // takes tunnelled TCP streams; never announced by us
)

// Intro is one way in to a client: a path of its own that ends at a relay (protocol 1 section 7.2).
type Intro struct {
	Expiry time.Time // of the path; whole seconds on the wire, rounded down
	Hop    [16]byte  // the path's id at its terminal hop
	Relay  key.Public
}

// Expired says whether the path has ended.
func (i Intro) Expired(now time.Time) bool { return !now.Before(i.Expiry) }

// ClientContact says how a client is reached (protocol 1 section 7).
type ClientContact struct {
	Key      key.Public
	Intros   []Intro     // latest expiry first
	Flags    uint8       // Flag constants; unknown bits are kept
	SRV      []SRV       // in the order of the client's configuration
	Exit     *ExitPolicy // nil: none
	SignedAt time.Time   // milliseconds
}

// Expiry is that of the last path to end; the zero time when there is no intro.
func (c *ClientContact) Expiry() time.Time {
	if len(c.Intros) == 0 {
		return time.Time{}
	}
	return c.Intros[0].Expiry
}

// Expired says whether no intro is left.
func (c *ClientContact) Expired(now time.Time) bool { return !now.Before(c.Expiry()) }

// Seal gives the contact as it is published, signed at now (protocol 1 section 7.6). Key and SignedAt of c are not used: they are sec's and
// now. Intros need no order. Errors: no intro, an SRV record or an exit policy that is not valid, or more than MaxSealed bytes.
func (c *ClientContact) Seal(sec *key.Secret, now time.Time) ([]byte, error) {
	var nonce seal.Nonce
	rand.Read(nonce[:])
	return c.sealWith(sec, now, nonce)
}

func (c *ClientContact) sealWith(sec *key.Secret, now time.Time, nonce seal.Nonce) ([]byte, error) {
	if len(c.Intros) == 0 {
		return nil, errors.New("netdb: client contact without intros")
	}
	for _, s := range c.SRV {
		if err := s.Check(); err != nil {
			return nil, err
		}
	}
	if c.Exit != nil {
		if err := c.Exit.check(); err != nil {
			return nil, err
		}
	}
	open := *c
	open.Key = sec.Public()
	open.Intros = slices.Clone(c.Intros)
	slices.SortStableFunc(open.Intros, func(a, b Intro) int { return cmp.Compare(b.Expiry.Unix(), a.Expiry.Unix()) })
	x := open.append(nil)
	k := seal.Key(open.Key)
	seal.Stream(x, &k, &nonce)

	blinded := sec.Blind()
	i := blinded.Public()
	b := bt.NewDict(make([]byte, 0, len(x)+200)).Bytes("i", i[:]).Bytes("n", nonce[:]).Int("t", now.UnixMilli()).Bytes("x", x)
	sig := blinded.Sign(b.Prefix())
	raw := b.Bytes("~", sig[:]).End()
	if len(raw) > MaxSealed {
		return nil, fmt.Errorf("netdb: client contact: %d bytes, at most %d allowed", len(raw), MaxSealed)
	}
	return raw, nil
}

// append writes the inner contact. Intros must be in order.
func (c *ClientContact) append(dst []byte) []byte {
	b := bt.NewDict(dst).Int("", 0).Bytes("a", c.Key[:])
	if c.Exit != nil {
		b.Raw("e", c.Exit.append(nil))
	}
	intros := []byte{'l'}
	for _, in := range c.Intros {
		intros = bt.NewDict(intros).Int("e", in.Expiry.Unix()).Bytes("h", in.Hop[:]).Bytes("r", in.Relay[:]).End()
	}
	b.Raw("i", append(intros, 'e')).Uint("p", uint64(c.Flags))
	if len(c.SRV) > 0 {
		list := []byte{'l'}
		for _, s := range c.SRV {
			list = s.append(list)
		}
		b.Raw("s", append(list, 'e'))
	}
	return b.End()
}

// OpenClientContact verifies, decrypts and reads the sealed contact of owner, at most MaxSealed bytes. Beside what the reference checks, the
// blinded key must be owner's and the contact inside must name owner: else whoever knows a client's key could forge its contact (protocol 1
// section 7.6). An expired contact is no error.
func OpenClientContact(raw []byte, owner key.Public) (*ClientContact, error) {
	s, err := decodeSealed(raw)
	if err != nil {
		return nil, err
	}
	blinded, err := owner.Blind()
	if err != nil {
		return nil, fmt.Errorf("netdb: client contact: owner: %w", err)
	}
	if s.blinded != blinded {
		return nil, errors.New("netdb: client contact: of another client")
	}
	if err := s.verify(); err != nil {
		return nil, err
	}
	inner := bytes.Clone(s.x)
	k := seal.Key(owner)
	seal.Stream(inner, &k, &s.nonce)
	c, err := decodeClient(inner)
	if err != nil {
		return nil, err
	}
	if c.Key != owner {
		return nil, errors.New("netdb: client contact: another client inside")
	}
	c.SignedAt = time.UnixMilli(s.signedAt)
	return c, nil
}

// PeekSealed reads the blinded key and the signing time of a sealed contact and checks its form, not its signature.
func PeekSealed(raw []byte) (blinded key.Public, signedAt time.Time, err error) {
	s, err := decodeSealed(raw)
	if err != nil {
		return key.Public{}, time.Time{}, err
	}
	return s.blinded, time.UnixMilli(s.signedAt), nil
}

// VerifySealed checks form and signature of a sealed contact: all that can be checked without knowing the client.
func VerifySealed(raw []byte) error {
	s, err := decodeSealed(raw)
	if err != nil {
		return err
	}
	return s.verify()
}

// sealed is the outer dict of a sealed contact; slices are borrowed.
type sealed struct {
	blinded  key.Public
	nonce    seal.Nonce
	signedAt int64 // unix milliseconds, any value
	x        []byte
	raw      []byte
}

// decodeSealed reads the outer dict. Unlike the reference it accepts nothing behind the signature or the dict.
func decodeSealed(raw []byte) (sealed, error) {
	if len(raw) > MaxSealed {
		return sealed{}, fmt.Errorf("netdb: sealed contact: %d bytes, at most %d allowed", len(raw), MaxSealed)
	}
	d := bt.ReadDict(raw)
	i := d.Fixed("i", 32)
	n := d.Fixed("n", 24)
	s := sealed{signedAt: d.Int("t"), x: d.Bytes("x"), raw: raw}
	if err := endsSigned(&d, raw); err != nil {
		return sealed{}, fmt.Errorf("netdb: sealed contact: %w", err)
	}
	s.blinded, s.nonce = key.Public(i), seal.Nonce(n)
	return s, nil
}

func (s *sealed) verify() error {
	if signed, sig := split(s.raw); !s.blinded.Verify(signed, sig) {
		return errors.New("netdb: sealed contact: bad signature")
	}
	return nil
}

// decodeClient reads the inner contact; SignedAt is not in it.
func decodeClient(inner []byte) (*ClientContact, error) {
	fail := func(err error) (*ClientContact, error) { return nil, fmt.Errorf("netdb: client contact: %w", err) }
	d := bt.ReadDict(inner)
	if format := d.Uint("", math.MaxUint8); format != 0 {
		return fail(fmt.Errorf("unknown version %d", format))
	}
	c := &ClientContact{}
	a := d.Fixed("a", 32)
	exit, hasExit := d.OptDict("e")
	intros := d.List("i")
	c.Flags = uint8(d.Uint("p", math.MaxUint8))
	srv, _ := d.OptList("s")
	if err := d.Finish(); err != nil {
		return fail(err)
	}
	c.Key = key.Public(a)
	if hasExit {
		var err error
		if c.Exit, err = decodeExit(exit); err != nil {
			return fail(err)
		}
	}
	for intros.Next() {
		in := intros.Dict()
		unix := in.Uint("e", maxUnix)
		h, r := in.Fixed("h", 16), in.Fixed("r", 32)
		if err := in.Finish(); err != nil {
			return fail(err)
		}
		if n := len(c.Intros); n > 0 && int64(unix) > c.Intros[n-1].Expiry.Unix() {
			return fail(errors.New("intros out of order"))
		}
		c.Intros = append(c.Intros, Intro{Expiry: time.Unix(int64(unix), 0), Hop: [16]byte(h), Relay: key.Public(r)})
	}
	if err := intros.Finish(); err != nil {
		return fail(err)
	}
	for srv.Next() {
		if s, ok := decodeSRV(srv.Raw()); ok { // a malformed one does not spoil the contact
			c.SRV = append(c.SRV, s)
		}
	}
	return c, nil
}
