package netdb

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/seal"
	"lokinetd/router/testkit"
)

// Protocol 1 section 7.11 and protocol 2 section 5.4.
func TestStatus(t *testing.T) {
	for text, want := range map[string]string{
		StatusOK: "d1:!2:OKe", StatusTimeout: "d1:!7:TIMEOUTe", StatusError: "d1:!5:ERRORe", StatusNotFound: "d1:!9:NOT FOUNDe", StatusSlowClock: "d1:!10:SLOW CLOCKe",
		StatusFastClock: "d1:!10:FAST CLOCKe", StatusNoRCs: "d1:!17:No RCs available!e", StatusInvalidLocation: "d1:!24:INVALID PUBLISH LOCATIONe",
	} {
		if got := Status(text); string(got) != want {
			t.Errorf("%q, want %q", got, want)
		}
		err := DecodeStatus([]byte(want))
		var status *ReplyStatus
		if (err == nil) != (text == StatusOK) || err != nil && (!errors.As(err, &status) || status.Text != text) {
			t.Errorf("%q: %v", want, err)
		}
		if errors.Is(err, ErrNotFound) != (text == StatusNotFound) {
			t.Errorf("%q: ErrNotFound", want)
		}
	}
	for _, bad := range []string{"", "de", "d1:!i1ee", "d1:!2:OK", "d1:!2:OKee", "OK", "le"} {
		var status *ReplyStatus
		if err := DecodeStatus([]byte(bad)); err == nil || errors.As(err, &status) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Each body of every kind: what it is as bytes (protocol 2 section 7, protocol 3 section 4.3), that it comes back, and that no prefix of it is one.
func TestBodies(t *testing.T) {
	sealed := testkit.Hex(t, vectorSealed)
	blinded := key.Public(testkit.Hex(t, vectorBlinded))
	rc := testkit.Hex(t, vectorRC)
	var nonce seal.Nonce
	copy(nonce[:], "abcdefghijklmnopqrstuvwx")
	var buckets BucketHashes
	buckets[0], buckets[127] = [8]byte{1, 2, 3, 4, 5, 6, 7, 8}, [8]byte{9}
	record := bytes.Repeat([]byte{7}, 48)
	ids := []key.Public{{2}, {1}, {2}}
	type found struct {
		blinded  key.Public
		location int
	}
	for _, c := range []struct {
		name   string
		body   []byte
		want   string
		decode func([]byte) (any, error)
		value  any
	}{
		{"publish_cc", EncodePublishCC(sealed, 3), "d1:e299:" + string(sealed) + "1:ni3ee", func(b []byte) (any, error) { return DecodePublishCC(b) },
			PublishCC{sealed, blinded, vectorSignedAt, 3}},
		{"find_cc", EncodeFindCC(blinded, 0), "d1:k32:" + string(blinded[:]) + "1:ni0ee", func(b []byte) (any, error) { k, n, err := DecodeFindCC(b); return found{k, n}, err }, found{blinded, 0}},
		{"find_cc of a relay", EncodeFindCC(blinded, AnyLocation), "d1:k32:" + string(blinded[:]) + "e", func(b []byte) (any, error) { k, n, err := DecodeFindCC(b); return found{k, n}, err }, found{blinded, AnyLocation}},
		{"reply to find_cc", EncodeFoundCC(sealed), "d1:!2:OK1:x299:" + string(sealed) + "e", func(b []byte) (any, error) { return DecodeFoundCC(b) }, sealed},
		{"fetch_rcs", EncodeFetchRCs(&buckets), "d1:bl8:\x01\x02\x03\x04\x05\x06\x07\x08" + strings.Repeat("8:\x00\x00\x00\x00\x00\x00\x00\x00", 126) + "8:\x09\x00\x00\x00\x00\x00\x00\x00ee",
			func(b []byte) (any, error) { return DecodeFetchRCs(b) }, buckets},
		{"reply to fetch_rcs", EncodeRCs([][]byte{rc, rc}), "d1:rl144:" + string(rc) + "144:" + string(rc) + "ee", func(b []byte) (any, error) { return DecodeRCs(b) }, [][]byte{rc, rc}},
		{"reply to fetch_rcs, nothing", EncodeRCs(nil), "d1:rlee", func(b []byte) (any, error) { return DecodeRCs(b) }, [][]byte(nil)},
		{"reply to fetch_rids", EncodeRIDs(ids), "d1:rl32:" + string(ids[0][:]) + "32:" + string(ids[1][:]) + "32:" + string(ids[2][:]) + "ee", func(b []byte) (any, error) { return DecodeRIDs(b) }, ids},
		{"resolve_sns", EncodeResolveSNS(blinded), "d1:s32:" + string(blinded[:]) + "e", func(b []byte) (any, error) { return DecodeResolveSNS(b) }, [32]byte(blinded)},
		{"reply to resolve_sns", EncodeResolvedSNS(record, &nonce), "d1:c48:" + string(record) + "1:n24:abcdefghijklmnopqrstuvwxe",
			func(b []byte) (any, error) { c, n, err := DecodeResolvedSNS(b); return [2]any{c, n}, err }, [2]any{record, nonce}},
	} {
		if string(c.body) != c.want {
			t.Errorf("%s: %q, want %q", c.name, c.body, c.want)
		}
		got, err := c.decode(c.body)
		if err != nil || !reflect.DeepEqual(got, c.value) {
			t.Errorf("%s: came back as %v, %v", c.name, got, err)
		}
		for cut := range c.body {
			if _, err := c.decode(c.body[:cut]); err == nil || !strings.HasPrefix(err.Error(), "netdb: ") {
				t.Errorf("%s: cut at %d: %v", c.name, cut, err)
			}
		}
		if _, err := c.decode(append(bytes.Clone(c.body), 'e')); err == nil {
			t.Errorf("%s: a trailing byte is accepted", c.name)
		}
	}
	for name, c := range map[string]struct {
		err  error
		want string // part of it; "" for none
	}{
		"location 4":            {second(DecodeFindCC(EncodeFindCC(blinded, 4))), "location"},
		"location -2":           {second(DecodeFindCC(EncodeFindCC(blinded, -2))), "location"},
		"location -1 written":   {second(DecodeFindCC([]byte("d1:k32:" + string(blinded[:]) + "1:ni-1ee"))), "location"},
		"no location published": {first(DecodePublishCC([]byte("d1:e299:" + string(sealed) + "e"))), "missing"},
		"any location is read":  {first(DecodePublishCC(EncodePublishCC(sealed, -7))), ""},
		"nothing published":     {first(DecodePublishCC(EncodePublishCC(nil, 0))), "cut short"},
		"not found":             {first(DecodeFoundCC(Status(StatusNotFound))), "NOT FOUND"},
		"found nothing":         {first(DecodeFoundCC(Status(StatusOK))), "missing"},
		"found, no status":      {first(DecodeFoundCC([]byte("d1:x0:e"))), ""},
		"127 buckets":           {first(DecodeFetchRCs([]byte("d1:bl" + strings.Repeat("8:12345678", 127) + "ee"))), "missing"},
		"129 buckets":           {first(DecodeFetchRCs([]byte("d1:bl" + strings.Repeat("8:12345678", 128) + "i1eee"))), ""},
		"bucket of 7 bytes":     {first(DecodeFetchRCs([]byte("d1:bl" + strings.Repeat("7:1234567", 128) + "ee"))), "size"},
		"rcs with OK":           {first(DecodeRCs([]byte("d1:!2:OK1:rlee"))), ""},
		"rcs with ERROR":        {first(DecodeRCs([]byte("d1:!5:ERRORe"))), "ERROR"},
		"rcs as dicts":          {first(DecodeRCs([]byte("d1:rldeee"))), "type"},
		"too many rcs":          {first(DecodeRCs([]byte("d1:rl" + strings.Repeat("0:", MaxRelays+1) + "ee"))), "more than"},
		"most rcs":              {first(DecodeRCs([]byte("d1:rl" + strings.Repeat("0:", MaxRelays) + "ee"))), ""},
		"rids of 31 bytes":      {first(DecodeRIDs([]byte("d1:rl31:" + strings.Repeat("x", 31) + "ee"))), "size"},
		"too many rids":         {first(DecodeRIDs(EncodeRIDs(make([]key.Public, MaxRelays+1)))), "more than"},
		"most rids":             {first(DecodeRIDs(EncodeRIDs(make([]key.Public, MaxRelays)))), ""},
		"sns not found":         {second(DecodeResolvedSNS(Status(StatusNotFound))), "NOT FOUND"},
		"sns with OK":           {second(DecodeResolvedSNS([]byte("d1:!2:OK1:c48:" + string(record) + "1:n24:abcdefghijklmnopqrstuvwxe"))), ""},
		"sns of 49 bytes":       {second(DecodeResolvedSNS(EncodeResolvedSNS(append(record, 0), &nonce))), "size"},
	} {
		if (c.err == nil) != (c.want == "") || c.err != nil && !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: %v", name, c.err)
		}
	}
	if _, err := DecodeFoundCC(Status(StatusNotFound)); !errors.Is(err, ErrNotFound) {
		t.Error("find_cc: not ErrNotFound")
	}
	if n := len(EncodeRCs(slicesOf(rc, 100000))); n > 10_000_000 {
		t.Errorf("a reply of %d bytes", n)
	}
}

func first[T any](_ T, err error) error          { return err }
func second[T, U any](_ T, _ U, err error) error { return err }

func slicesOf(b []byte, n int) [][]byte {
	list := make([][]byte, n)
	for i := range list {
		list[i] = b
	}
	return list
}

// Protocol 1 section 7.9.
func TestClockStatus(t *testing.T) {
	now := time.Unix(1800000000, 0)
	for age, want := range map[time.Duration]string{
		0: "", 1380 * time.Second: "", 1380*time.Second + 1: "SLOW CLOCK", -10 * time.Minute: "", -10*time.Minute - 1: "FAST CLOCK",
	} {
		if got := ClockStatus(now.Add(-age), now); got != want {
			t.Errorf("%v: %q, want %q", age, got, want)
		}
	}
	for _, extreme := range []int64{-1 << 63, 1<<63 - 1} {
		if ClockStatus(time.UnixMilli(extreme), now) == "" {
			t.Errorf("%d ms is accepted", extreme)
		}
	}
}

// Protocol 1 section 9.6: a strict majority of those asked, at least one of them inbound.
func TestCorroborated(t *testing.T) {
	a, b, c := key.Public{1}, key.Public{2}, key.Public{3}
	in := func(ids ...key.Public) RIDAnswer { return RIDAnswer{Inbound: true, IDs: ids} }
	out := func(ids ...key.Public) RIDAnswer { return RIDAnswer{IDs: ids} }
	for _, x := range []struct {
		name    string
		answers []RIDAnswer
		want    []key.Public
	}{
		{"nobody asked", nil, nil},
		{"one of one", []RIDAnswer{in(b, a)}, []key.Public{a, b}},
		{"one of two", []RIDAnswer{in(a), in()}, nil},
		{"two of two", []RIDAnswer{in(a, b), in(b, c)}, []key.Public{b}},
		{"two of three", []RIDAnswer{in(a), in(a, b), in()}, []key.Public{a}},
		{"two of four", []RIDAnswer{in(a), in(a), in(), in()}, nil},
		{"three of four", []RIDAnswer{in(a), in(a), in(a, b), in()}, []key.Public{a}},
		{"three of five", []RIDAnswer{in(a, b), in(a, b), in(a), in(), in()}, []key.Public{a}},
		{"failed ones count as asked", []RIDAnswer{in(a), in(a), {}, {}, {}}, nil},
		{"no inbound source", []RIDAnswer{in(b), out(a, b), out(a, b), out(a), in()}, []key.Public{b}},
		{"only outbound sources", []RIDAnswer{out(a)}, nil},
		{"one repeats itself", []RIDAnswer{in(a, a, a, b, a), in(), in(b)}, []key.Public{b}},
	} {
		if got := Corroborated(x.answers); fmt.Sprint(got) != fmt.Sprint(x.want) {
			t.Errorf("%s: %v, want %v", x.name, got, x.want)
		}
	}
}

func relayContact(n int, at time.Time) *RelayContact {
	return SignRelayContact(secret(n), RelayContact{
		Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{9, 1, byte(n >> 8), byte(n)}), 1190), Time: at, Version: [3]uint8{1, 0, 2},
	})
}

func relayContacts(count int, at time.Time) (list []*RelayContact, raws [][]byte) {
	for i := range count {
		c := relayContact(1000+i, at)
		list, raws = append(list, c), append(raws, c.Raw())
	}
	return list, raws
}

// Protocol 1 section 6.6.
func TestParseBootstrap(t *testing.T) {
	now := time.Unix(1800000000, 0)
	_, raws := relayContacts(3, now.Add(-2*RelayLifetime)) // expired ones are accepted
	list := "l" + string(bytes.Join(raws, nil)) + "e"
	for _, c := range []struct {
		name, data string
		want       int // -1: an error
	}{
		{"one", string(raws[0]), 1}, {"list", list, 3}, {"empty list", "le", 0}, {"list of one", "l" + string(raws[0]) + "e", 1},
		{"empty", "", -1}, {"trailing", list + "\n", -1}, {"one, trailing", string(raws[0]) + "\n", -1}, {"strings", "l1:xe", -1},
		{"one bad", list[:len(list)-3] + "xee", -1}, {"text", "hello", -1},
	} {
		got, err := ParseBootstrap([]byte(c.data), now, Rules{})
		if (err != nil) != (c.want < 0) || err == nil && len(got) != c.want {
			t.Errorf("%s: %d, %v", c.name, len(got), err)
		}
	}
	for cut := range list {
		if _, err := ParseBootstrap([]byte(list[:cut]), now, Rules{}); err == nil {
			t.Errorf("cut at %d is accepted", cut)
		}
	}
	if _, err := ParseBootstrap([]byte(list), now, Rules{Network: 1}); err == nil {
		t.Error("contacts of another network are accepted")
	}
	if _, err := ParseBootstrap(make([]byte, MaxBootstrap+1), now, Rules{}); err == nil || !strings.Contains(err.Error(), "allowed") {
		t.Error("a file of any size is read")
	}
}

func compressed(t testing.TB, plain []byte) []byte {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	return bt.NewDict(nil).Bytes("Z", enc.EncodeAll(plain, nil)).End()
}

// Protocol 1 section 9.8, protocol 2 section 7.2.
func TestBootstrapReply(t *testing.T) {
	now := time.Unix(1800000000, 0)
	want, raws := relayContacts(5, now)
	body, err := EncodeBootstrapReply(raws)
	if err != nil || !bytes.HasPrefix(body, []byte("d1:Z")) {
		t.Fatalf("%q, %v", body, err)
	}
	got, err := DecodeBootstrapReply(body, now, Rules{})
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := EncodeBootstrapReply(nil); err == nil {
		t.Error("a reply without contacts")
	}
	for cut := range body {
		if _, err := DecodeBootstrapReply(body[:cut], now, Rules{}); err == nil {
			t.Errorf("cut at %d is accepted", cut)
		}
	}
	list := func(raws ...[]byte) []byte { return append(append([]byte{'l'}, bytes.Join(raws, nil)...), 'e') }
	bad := bytes.Clone(raws[2])
	bad[len(bad)-2] ^= 1
	expired := relayContact(1, now.Add(-RelayLifetime)).Raw()
	frame := func(b []byte) []byte { d := bt.ReadDict(b); return d.Bytes("Z") }
	for _, c := range []struct {
		name string
		body []byte
		want int
		ok   bool
	}{
		{"nothing in it", compressed(t, list()), 0, true},
		{"an invalid one ends it, those before it stay", compressed(t, list(raws[0], raws[1], bad, raws[3])), 2, false},
		{"an expired one is left out", compressed(t, list(raws[0], expired, raws[1])), 2, true},
		{"as strings", compressed(t, bt.AppendBytes([]byte{'l'}, raws[0])), 0, false},
		{"plain", bt.NewDict(nil).Bytes("Z", list(raws...)).End(), 0, false},
		{"a key before Z", bt.NewDict(nil).Int("A", 1).Bytes("Z", frame(body)).End(), 0, false},
		{"a key behind Z", bt.NewDict(nil).Bytes("Z", frame(body)).Int("a", 1).End(), 0, false},
		{"no Z", []byte("de"), 0, false},
		{"empty", nil, 0, false},
		{"plain error text", []byte(BootstrapNoRCs), 0, false},
		{"20,000,000 bytes", compressed(t, list(bt.AppendBytes(nil, make([]byte, MaxBootstrap-2-len("19999989:"))))), 0, false},
		{"more", compressed(t, make([]byte, MaxBootstrap+1)), 0, false},
		{"more than memory", compressed(t, make([]byte, 200<<20)), 0, false},
	} {
		got, err := DecodeBootstrapReply(c.body, now, Rules{})
		if (err == nil) != c.ok || len(got) != c.want {
			t.Errorf("%s: %d, %v", c.name, len(got), err)
		}
		switch {
		case strings.HasPrefix(c.name, "20,000,000") && strings.Contains(err.Error(), "size"), strings.HasPrefix(c.name, "more") && !strings.Contains(err.Error(), "size"):
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Threat: relays answer anyone's requests and clients read any relay's replies; both are made by strangers. No body may panic or be
// understood in a way that cannot be written again.
//
// Decoders: DecodeStatus decodeReply DecodePublishCC DecodeFindCC DecodeFoundCC DecodeFetchRCs DecodeRCs DecodeRIDs readKeys DecodeResolveSNS DecodeResolvedSNS
func FuzzMessages(f *testing.F) {
	sealed := testkit.Hex(f, vectorSealed)
	rc := testkit.Hex(f, vectorRC)
	var buckets BucketHashes
	var nonce seal.Nonce
	for _, b := range [][]byte{
		Status(StatusOK), Status(StatusNotFound), EncodePublishCC(sealed, 1), EncodeFindCC(key.Public{1}, 2), EncodeFindCC(key.Public{1}, AnyLocation), EncodeFoundCC(sealed),
		EncodeFetchRCs(&buckets), EncodeRCs([][]byte{rc}), EncodeRIDs([]key.Public{{1}}), EncodeResolveSNS([32]byte{1}), EncodeResolvedSNS(make([]byte, 48), &nonce),
	} {
		f.Add(b)
	}
	for _, s := range []string{"d1:bl8:01234567ee", "d1:blee", "d1:rli1eee", "d1:rl1:xee", "d1:r0:e", "d1:b0:e", "d1:!2:OK1:r0:e", "d1:!2:OK1:rle1:x0:ee", "d1:!1:xx", "d1:i32:" + strings.Repeat("k", 32) + "1:ni9ee", "d1:i32:" + strings.Repeat("k", 32) + "1:n0:e"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		same := func(a, b any, err error) {
			t.Helper()
			if err != nil || !reflect.DeepEqual(a, b) {
				t.Fatalf("%v came back as %v, %v", a, b, err)
			}
		}
		DecodeStatus(body)
		if p, err := DecodePublishCC(body); err == nil {
			again, err := DecodePublishCC(EncodePublishCC(p.Sealed, int(p.Location)))
			same(p, again, err)
		}
		if k, n, err := DecodeFindCC(body); err == nil {
			k2, n2, err := DecodeFindCC(EncodeFindCC(k, n))
			same([]any{k, n}, []any{k2, n2}, err)
		}
		if s, err := DecodeFoundCC(body); err == nil {
			again, err := DecodeFoundCC(EncodeFoundCC(s))
			same(s, again, err)
		}
		if have, err := DecodeFetchRCs(body); err == nil {
			again, err := DecodeFetchRCs(EncodeFetchRCs(&have))
			same(have, again, err)
		}
		if raws, err := DecodeRCs(body); err == nil {
			again, err := DecodeRCs(EncodeRCs(raws))
			same(raws, again, err)
		}
		if ids, err := DecodeRIDs(body); err == nil {
			again, err := DecodeRIDs(EncodeRIDs(ids))
			same(ids, again, err)
		}
		if h, err := DecodeResolveSNS(body); err == nil {
			again, err := DecodeResolveSNS(EncodeResolveSNS(h))
			same(h, again, err)
		}
		if c, n, err := DecodeResolvedSNS(body); err == nil {
			c2, n2, err := DecodeResolvedSNS(EncodeResolvedSNS(c, &n))
			same([]any{c, n}, []any{c2, n2}, err)
		}
	})
}

// Threat: a bootstrap relay is dialled by an unauthenticated connection, a bootstrap file is downloaded from somewhere. Whatever is inside,
// memory stays bounded and nothing panics.
//
// Decoders: ParseBootstrap parseRelays DecodeBootstrapReply
func FuzzBootstrap(f *testing.F) {
	now := time.Unix(1800000000, 0)
	_, raws := relayContacts(2, now)
	body, _ := EncodeBootstrapReply(raws)
	d := bt.ReadDict(body)
	f.Add(d.Bytes("Z"))
	f.Add(raws[0])
	f.Add(append(append([]byte{'l'}, bytes.Join(raws, nil)...), 'e'))
	_, old := relayContacts(1, time.Unix(5, 0))
	zipped := func(list string) {
		enc, err := zstd.NewWriter(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(enc.EncodeAll([]byte(list), nil))
		enc.Close()
	}
	zipped("l" + string(raws[0]) + string(old[0]) + string(raws[1]) + "e")
	zipped("l" + string(raws[0]) + "dee")
	zipped("l" + string(raws[0]))
	zipped("le0:")
	f.Add([]byte("l" + string(old[0]) + "dee"))
	f.Add([]byte("l" + string(raws[0]) + "i"))
	f.Add([]byte("l0:e"))
	if _, err := ParseBootstrap(make([]byte, MaxBootstrap+1), now, Rules{}); err == nil {
		f.Fatal("too large")
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, body := range [][]byte{b, bt.NewDict(nil).Bytes("A", b).Bytes("Z", b).End(), bt.NewDict(nil).Bytes("Z", b).End()} {
			contacts, err := DecodeBootstrapReply(body, now, Rules{Private: true})
			if err == nil && len(contacts) > 0 {
				list := []byte{'l'}
				for _, c := range contacts {
					list = append(list, c.Raw()...)
				}
				if again, err := ParseBootstrap(append(list, 'e'), now, Rules{Private: true}); err != nil || !reflect.DeepEqual(contacts, again) {
					t.Fatal(err)
				}
			}
		}
		ParseBootstrap(b, now, Rules{Private: true})
	})
}
