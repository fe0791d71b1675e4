package netdb

import (
	"fmt"
	"strings"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/seal"
)

// Names of the requests whose bodies are made and read here (protocol 2 section 7, protocol 3 section 4.3). A gossip_rc's body is a relay
// contact as it is.
const (
	MethodPublishCC    = "publish_cc"  // path, relay
	MethodFindCC       = "find_cc"     // path, relay
	MethodFetchRCs     = "fetch_rcs"   // path, relay
	MethodFetchRIDs    = "fetch_rids"  // path; the body is empty and ignored
	MethodResolveSNS   = "resolve_sns" // path
	MethodBootstrapRCs = "bfetch_rcs"  // bootstrap connections; the body is BootstrapRequest and ignored
	MethodGossipRC     = "gossip_rc"   // relay, no reply
)

// Texts of status replies (protocol 1 section 7.11, protocol 3 section 4.3).
const (
	StatusOK              = "OK"
	StatusError           = "ERROR"
	StatusTimeout         = "TIMEOUT"
	StatusNotFound        = "NOT FOUND"
	StatusSlowClock       = "SLOW CLOCK" // a signing time too old
	StatusFastClock       = "FAST CLOCK" // a signing time too far ahead
	StatusNoRCs           = "No RCs available!"
	StatusInvalidLocation = "INVALID PUBLISH LOCATION"
)

// Error replies of bfetch_rcs, plain text (protocol 2 section 7.2).
const (
	BootstrapNoRCs    = "No RCs"
	BootstrapCompress = "Compress failed"
)

// BootstrapRequest is the body of a bfetch_rcs.
const BootstrapRequest = "de"

// ErrNotFound is the status NOT FOUND of a reply.
var ErrNotFound = &ReplyStatus{StatusNotFound}

// ReplyStatus is the error of a reply that says something else than OK.
type ReplyStatus struct{ Text string }

func (s *ReplyStatus) Error() string { return fmt.Sprintf("netdb: the reply says %.100q", s.Text) }

// Is compares the texts.
func (s *ReplyStatus) Is(target error) bool {
	o, ok := target.(*ReplyStatus)
	return ok && o.Text == s.Text
}

// Status encodes a status reply.
func Status(text string) []byte { return bt.NewDict(nil).String("!", text).End() }

// DecodeStatus reads a reply that is nothing but a status: nil when it says OK, *ReplyStatus when it says something else, another error
// when it says nothing, as the empty reply does that stands for a publish_cc which timed out further on.
func DecodeStatus(body []byte) error {
	d := bt.ReadDict(body)
	text := string(d.Bytes("!"))
	if err := d.Finish(); err != nil {
		return malformed("status reply", err)
	}
	if text != StatusOK {
		return &ReplyStatus{text}
	}
	return nil
}

func malformed(what string, err error) error { return fmt.Errorf("netdb: %s: %w", what, err) }

// decodeReply starts reading a reply with a leading status that may be left out.
func decodeReply(body []byte) (bt.Dict, error) {
	d := bt.ReadDict(body)
	if text, ok := d.OptBytes("!"); ok && string(text) != StatusOK {
		status := &ReplyStatus{strings.Clone(string(text))}
		if err := d.Finish(); err != nil {
			return d, malformed("reply", err)
		}
		return d, status
	}
	return d, nil
}

// ClockStatus gives the status that a sealed contact signed at signedAt is refused with: StatusSlowClock, StatusFastClock, or "" when it is
// not (protocol 1 section 7.9).
func ClockStatus(signedAt, now time.Time) string {
	switch {
	case signedAt.Before(now.Add(-ContactLifetime)):
		return StatusSlowClock
	case signedAt.After(now.Add(MaxAhead)):
		return StatusFastClock
	}
	return ""
}

// PublishCC is a publish_cc request.
type PublishCC struct {
	Sealed   []byte     // borrowed from the body
	Blinded  key.Public // of Sealed, its signature not checked
	SignedAt time.Time  // of Sealed
	Location int64      // any value: a client's is checked with ValidLocation, a relay's is not looked at
}

// ValidLocation says whether n is one of the places where contacts are published, 0 to Locations-1.
func ValidLocation(n int64) bool { return n >= 0 && n < Locations }

// EncodePublishCC gives the body of a publish_cc of a sealed contact to a location. A relay passes the body that it got on unchanged.
func EncodePublishCC(sealed []byte, location int) []byte {
	return bt.NewDict(make([]byte, 0, len(sealed)+32)).Bytes("e", sealed).Int("n", int64(location)).End()
}

// DecodePublishCC reads the body of a publish_cc. Its error is answered StatusError.
func DecodePublishCC(body []byte) (PublishCC, error) {
	d := bt.ReadDict(body)
	p := PublishCC{Sealed: d.Bytes("e"), Location: d.Int("n")}
	if err := d.Finish(); err != nil {
		return PublishCC{}, malformed(MethodPublishCC, err)
	}
	var err error
	p.Blinded, p.SignedAt, err = PeekSealed(p.Sealed)
	if err != nil {
		return PublishCC{}, err
	}
	return p, nil
}

// AnyLocation as the location of a find_cc stands for none given: what a relay asks of another, and clients before 1.0.2 of a relay.
const AnyLocation = -1

// EncodeFindCC gives the body of a find_cc for a blinded key at a location, or AnyLocation.
func EncodeFindCC(blinded key.Public, location int) []byte {
	b := bt.NewDict(nil).Bytes("k", blinded[:])
	if location != AnyLocation {
		b.Int("n", int64(location))
	}
	return b.End()
}

// DecodeFindCC reads the body of a find_cc; location is 0 to Locations-1 or AnyLocation. Its error, also for any other location, is answered
// StatusError.
func DecodeFindCC(body []byte) (blinded key.Public, location int, err error) {
	d := bt.ReadDict(body)
	k := d.Fixed("k", 32)
	n, given := d.OptInt("n")
	if err := d.Finish(); err != nil {
		return key.Public{}, 0, malformed(MethodFindCC, err)
	}
	if !given {
		n = AnyLocation
	} else if !ValidLocation(n) {
		return key.Public{}, 0, fmt.Errorf("netdb: find_cc: location %d", n)
	}
	return key.Public(k), int(n), nil
}

// EncodeFoundCC gives the reply to a find_cc that found; one that did not is Status(StatusNotFound).
func EncodeFoundCC(sealed []byte) []byte {
	return bt.NewDict(make([]byte, 0, len(sealed)+32)).String("!", StatusOK).Bytes("x", sealed).End()
}

// DecodeFoundCC reads the reply to a find_cc and returns the sealed contact, borrowed and not looked at. ErrNotFound is found with errors.Is.
func DecodeFoundCC(body []byte) (sealed []byte, err error) {
	d, err := decodeReply(body)
	if err != nil {
		return nil, err
	}
	sealed = d.Bytes("x")
	if err := d.Finish(); err != nil {
		return nil, malformed("reply to find_cc", err)
	}
	return sealed, nil
}

// Buckets is how many buckets relay contacts are divided into for fetch_rcs (protocol 1 section 6.5).
const Buckets = 128

// BucketHashes are the XORs of the identity hashes of the relay contacts in each bucket.
type BucketHashes = [Buckets][8]byte

// EncodeFetchRCs gives the body of a fetch_rcs with the buckets that we have.
func EncodeFetchRCs(have *BucketHashes) []byte {
	list := append(make([]byte, 0, 2+10*Buckets), 'l')
	for i := range have {
		list = bt.AppendBytes(list, have[i][:])
	}
	return bt.NewDict(make([]byte, 0, 16+10*Buckets)).Raw("b", append(list, 'e')).End()
}

// DecodeFetchRCs reads the body of a fetch_rcs; entries after the first 128 are skipped. Its error is answered StatusError.
func DecodeFetchRCs(body []byte) (have BucketHashes, err error) {
	d := bt.ReadDict(body)
	list := d.List("b")
	if err := d.Finish(); err != nil {
		return BucketHashes{}, malformed(MethodFetchRCs, err)
	}
	for i := range have {
		copy(have[i][:], list.Fixed(8))
	}
	if err := list.Err(); err != nil {
		return BucketHashes{}, malformed(MethodFetchRCs, err)
	}
	return have, nil
}

// maxReply bounds the replies that list things, below the 10,000,000 bytes of a message.
const maxReply = 9_000_000

// EncodeRCs gives the reply to a fetch_rcs. Contacts that would make it larger than 9,000,000 bytes are left out.
func EncodeRCs(raws [][]byte) []byte {
	list := []byte{'l'}
	for _, raw := range raws {
		if len(list)+len(raw) > maxReply {
			break
		}
		list = bt.AppendBytes(list, raw)
	}
	return bt.NewDict(make([]byte, 0, len(list)+8)).Raw("r", append(list, 'e')).End()
}

// DecodeRCs reads the reply to a fetch_rcs: relay contacts, borrowed and not looked at. More than MaxRelays are an error: a message has room for millions of empty ones.
func DecodeRCs(body []byte) (raws [][]byte, err error) {
	d, err := decodeReply(body)
	if err != nil {
		return nil, err
	}
	list := d.List("r")
	if err := d.Finish(); err != nil {
		return nil, malformed("reply to fetch_rcs", err)
	}
	for list.Next() {
		if len(raws) == MaxRelays {
			return nil, malformed("reply to fetch_rcs", fmt.Errorf("more than %d contacts", MaxRelays))
		}
		raws = append(raws, list.Bytes())
	}
	if err := list.Finish(); err != nil {
		return nil, malformed("reply to fetch_rcs", err)
	}
	return raws, nil
}

// EncodeRIDs gives the reply to a fetch_rids.
func EncodeRIDs(ids []key.Public) []byte {
	b := make([]byte, 0, len(ids)*35+8)
	b = append(b, "d1:r"...)
	b = appendKeys(b, ids)
	return append(b, 'e')
}

// MaxRelays bounds the relays of a network: keys in a fetch_rids reply, entries of a network file, contacts in a Store. The public network
// has some 2,000.
const MaxRelays = 16384

// DecodeRIDs reads the reply to a fetch_rids, as it is: in any order, perhaps with repetitions. More than MaxRelays are an error.
func DecodeRIDs(body []byte) ([]key.Public, error) {
	d, err := decodeReply(body)
	if err != nil {
		return nil, err
	}
	list := d.List("r")
	if err := d.Finish(); err != nil {
		return nil, malformed("reply to fetch_rids", err)
	}
	ids, err := readKeys(list)
	if err != nil {
		return nil, malformed("reply to fetch_rids", err)
	}
	return ids, nil
}

func appendKeys(dst []byte, ids []key.Public) []byte {
	dst = append(dst, 'l')
	for i := range ids {
		dst = bt.AppendBytes(dst, ids[i][:])
	}
	return append(dst, 'e')
}

func readKeys(list bt.List) (ids []key.Public, err error) {
	for list.Next() {
		if b := list.Fixed(32); b != nil {
			ids = append(ids, key.Public(b))
		}
		if len(ids) > MaxRelays {
			return nil, fmt.Errorf("more than %d keys", MaxRelays)
		}
	}
	return ids, list.Finish()
}

// EncodeResolveSNS gives the body of a resolve_sns for a name's hash (seal.NameHash).
func EncodeResolveSNS(hash [32]byte) []byte { return bt.NewDict(nil).Bytes("s", hash[:]).End() }

// DecodeResolveSNS reads the body of a resolve_sns. Its error is answered StatusError.
func DecodeResolveSNS(body []byte) (hash [32]byte, err error) {
	d := bt.ReadDict(body)
	s := d.Fixed("s", 32)
	if err := d.Finish(); err != nil {
		return [32]byte{}, malformed(MethodResolveSNS, err)
	}
	return [32]byte(s), nil
}

// EncodeResolvedSNS gives the reply to a resolve_sns: the sealed value and its nonce. No such name is Status(StatusNotFound).
func EncodeResolvedSNS(sealed []byte, nonce *seal.Nonce) []byte {
	return bt.NewDict(nil).Bytes("c", sealed).Bytes("n", nonce[:]).End()
}

// DecodeResolvedSNS reads the reply to a resolve_sns; sealed is borrowed and has the 48 bytes that seal.OpenName takes. ErrNotFound is found
// with errors.Is.
func DecodeResolvedSNS(body []byte) (sealed []byte, nonce seal.Nonce, err error) {
	d, err := decodeReply(body)
	if err != nil {
		return nil, seal.Nonce{}, err
	}
	c, n := d.Fixed("c", seal.NameSize), d.Fixed("n", len(nonce))
	if err := d.Finish(); err != nil {
		return nil, seal.Nonce{}, malformed("reply to resolve_sns", err)
	}
	return c, seal.Nonce(n), nil
}
