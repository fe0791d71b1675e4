package netdb

import (
	"errors"
	"fmt"
	"time"

	"github.com/klauspost/compress/zstd"

	"lokinetd/router/bt"
)

// MaxBootstrap is the size, in bytes, of the largest list of relay contacts that is read from a bootstrap file or, decompressed, from a
// bootstrap reply (protocol 1 section 9.8).
const MaxBootstrap = 20_000_000

// ParseBootstrap reads a bootstrap file: one relay contact or a list of them (protocol 1 section 6.6). Expired ones are accepted, whatever r
// says; all else of r must be met by each. An empty file is an error, an empty list is not.
func ParseBootstrap(data []byte, now time.Time, r Rules) ([]*RelayContact, error) {
	r.Expired = true
	if len(data) > MaxBootstrap {
		return nil, fmt.Errorf("netdb: bootstrap file: %d bytes, at most %d allowed", len(data), MaxBootstrap)
	}
	if len(data) == 0 {
		return nil, errors.New("netdb: bootstrap file is empty")
	}
	if data[0] != 'd' && data[0] != 'l' {
		return nil, errors.New("netdb: bootstrap file: neither a relay contact nor a list of them")
	}
	if data[0] == 'd' {
		c, err := ParseRelayContact(data, now, r)
		if err != nil {
			return nil, fmt.Errorf("netdb: bootstrap file: %w", err)
		}
		return []*RelayContact{c}, nil
	}
	contacts, err := parseRelays(bt.ReadList(data), now, r)
	if err != nil {
		return nil, fmt.Errorf("netdb: bootstrap file: %w", err)
	}
	return contacts, nil
}

// parseRelays reads a list of relay contacts, dicts. The first that is not valid ends it; those before it are returned with the error.
// An expired one, where that is not allowed, is left out: it may have been valid when it was sent.
func parseRelays(list bt.List, now time.Time, r Rules) (contacts []*RelayContact, err error) {
	for list.Next() {
		c, err := ParseRelayContact(list.Raw(), now, r)
		if list.Err() != nil {
			break
		}
		switch {
		case errors.Is(err, ErrExpired):
			continue
		case err != nil:
			return contacts, err
		case len(contacts) == MaxRelays:
			return contacts, fmt.Errorf("netdb: more than %d relay contacts", MaxRelays)
		}
		contacts = append(contacts, c)
	}
	return contacts, list.Finish()
}

// EncodeBootstrapReply gives the reply to a bfetch_rcs: a zstd frame of the list of the contacts (protocol 2 section 7.2). Those that would
// make it larger than a message can be are left out. Errors: no contacts, answered BootstrapNoRCs.
func EncodeBootstrapReply(raws [][]byte) ([]byte, error) {
	if len(raws) == 0 {
		return nil, errors.New("netdb: no relay contacts")
	}
	list := []byte{'l'}
	for _, raw := range raws {
		if len(list)+len(raw) > maxReply {
			break
		}
		list = append(list, raw...)
	}
	list = append(list, 'e')
	// Keys and signatures do not compress: the fastest level loses nothing.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("netdb: bootstrap reply: %w", err)
	}
	defer enc.Close()
	frame := enc.EncodeAll(list, nil)
	return bt.NewDict(make([]byte, 0, len(frame)+16)).Bytes("Z", frame).End(), nil
}

// DecodeBootstrapReply reads the reply to a bfetch_rcs. At most MaxBootstrap bytes are decompressed, by one goroutine. The contacts before
// the first that is not valid are returned with the error, and stay (protocol 1 section 9.8); expired ones are left out.
func DecodeBootstrapReply(body []byte, now time.Time, r Rules) ([]*RelayContact, error) {
	fail := func(err error) ([]*RelayContact, error) { return nil, malformed("reply to bfetch_rcs", err) }
	d := bt.ReadDict(body)
	frame := d.Bytes("Z")
	end := d.Offset()
	if err := d.Finish(); err != nil {
		return fail(err)
	}
	if len(bt.AppendBytes([]byte("d1:Z"), frame)) != end || end+1 != len(body) {
		return fail(errors.New("other keys than Z"))
	}
	// The size that a frame announces is checked against the limit before anything is allocated for it.
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(MaxBootstrap))
	if err != nil {
		return fail(err)
	}
	defer dec.Close()
	plain, err := dec.DecodeAll(frame, nil)
	if err != nil {
		return fail(err)
	}
	contacts, err := parseRelays(bt.ReadList(plain), now, r)
	if err != nil {
		return contacts, malformed("reply to bfetch_rcs", err)
	}
	return contacts, nil
}
