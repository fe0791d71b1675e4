package netdb

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/seal"
	"lokinetd/router/testkit"
)

func random(t testing.TB) *rand.Rand { return testkit.Rand(t).Rand }

// secret is the identity of the seed n, n+1, ..., as the vectors of the documents have them: 0 and 32.
func secret(n int) *key.Secret {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(n + i)
	}
	if n > 255 {
		binary.BigEndian.PutUint32(seed[:], uint32(n))
	}
	return key.FromSeed(seed)
}

// Protocol 1 section 6.4, made from the document's description with libsodium: seed 00..1f, 1.2.3.4:1190, t 1790000000, version 1.0.2.
const (
	vectorRC = "64313a34363a0102030404a6313a7033323a03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8313a74693137393030303030303065313a76333a010002" +
		"313a7e36343a3c0a3f64bef74a5de1da12e9033eea071318b65c1924cb28b0db1bba471dbb803e94b697e5830ba0fe963910cefe94c22ed26a9b28001a2e040deb9d76beaa0865"
	vectorRCTime = 1790000000
	// Protocol 1 section 6.5, of the same contact.
	vectorRCHash   = "1f8f542ca9009361"
	vectorRCBucket = 103
)

var vectorNow = time.Unix(vectorRCTime+60, 0)

func TestRelayContactVector(t *testing.T) {
	raw := testkit.Hex(t, vectorRC)
	c, err := ParseRelayContact(raw, vectorNow, Rules{})
	if err != nil {
		t.Fatal(err)
	}
	want := RelayContact{
		ID: secret(0).Public(), Addr: netip.MustParseAddrPort("1.2.3.4:1190"), Time: time.Unix(vectorRCTime, 0).UTC(), Version: [3]uint8{1, 0, 2},
	}
	got := *c
	got.raw, got.hash = nil, [8]byte{}
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if !bytes.Equal(c.Raw(), raw) {
		t.Error("raw differs")
	}
	if h := c.Hash(); hex.EncodeToString(h[:]) != vectorRCHash {
		t.Errorf("hash %x", h)
	}
	if c.Bucket() != vectorRCBucket {
		t.Errorf("bucket %d", c.Bucket())
	}
	if signed := SignRelayContact(secret(0), want); !bytes.Equal(signed.Raw(), raw) {
		t.Errorf("signed again: %x", signed.Raw())
	}
	raw[10]++
	if c.Raw()[10] == raw[10] {
		t.Error("the contact borrows its bytes")
	}
}

// No prefix and no flipped bit of a contact is one.
func TestRelayContactDamaged(t *testing.T) {
	raw := testkit.Hex(t, vectorRC)
	damaged(t, raw, func(b []byte) error {
		_, err := ParseRelayContact(b, vectorNow, Rules{Private: true, Expired: true})
		return err
	})
}

// damaged requires parse to refuse raw cut at every byte, with every bit flipped, and with a byte behind it.
func damaged(t *testing.T, raw []byte, parse func([]byte) error) {
	t.Helper()
	if err := parse(raw); err != nil {
		t.Fatal(err)
	}
	for cut := range raw {
		if parse(raw[:cut]) == nil {
			t.Errorf("cut at %d is accepted", cut)
		}
	}
	for bit := range 8 * len(raw) {
		b := bytes.Clone(raw)
		b[bit/8] ^= 1 << (bit % 8)
		if parse(b) == nil {
			t.Errorf("bit %d of byte %d flipped is accepted", bit%8, bit/8)
		}
	}
	if parse(append(bytes.Clone(raw), 'e')) == nil {
		t.Error("a trailing byte is accepted")
	}
}

// signedDict signs a dict whose content is given in encoded form.
func signedDict(sec *key.Secret, content string) []byte {
	signed := []byte("d" + content)
	sig := sec.Sign(signed)
	return append(bt.AppendBytes(append(signed, "1:~"...), sig[:]), 'e')
}

func TestRelayContactRules(t *testing.T) {
	sec := secret(0)
	id := sec.Public()
	now := time.Unix(1800000000, 0)
	const (
		addr = "1:46:\x01\x02\x03\x04\x04\xa6"
		when = "1:ti1800000000e"
		v    = "1:v3:\x01\x00\x02"
	)
	p := "1:p32:" + string(id[:])
	addr4 := func(a string) string {
		return "1:4" + string(bt.AppendBytes(nil, addrPort(netip.MustParseAddrPort(a))))
	}
	addr6 := func(a string) string {
		return "1:6" + string(bt.AppendBytes(nil, addrPort(netip.MustParseAddrPort(a))))
	}
	pad := func(size int) string { // an unknown key that makes the contact this large
		n := size - len("d"+addr+p+when+v) - signatureEnd - len("1:a") - len("1234:")
		return "1:a" + string(bt.AppendBytes(nil, make([]byte, n)))
	}
	plain := addr + p + when + v
	for _, c := range []struct {
		name, content, err string // err: part of the text, "" for none
		rules              Rules
		check              func(*RelayContact) bool
	}{
		{name: "plain", content: plain},
		{name: "format 0 spelled out", content: "0:i0e" + plain},
		{name: "format 1", content: "0:i1e" + plain, err: "unknown format"},
		{name: "format no number", content: "0:0:" + plain, err: "wrong type"},
		{name: "network 0 spelled out", content: "1:#i0e" + plain},
		{name: "other network", content: "1:#i1e" + plain, err: "network"},
		{name: "network missing", content: plain, rules: Rules{Network: 7}, err: "network"},
		{name: "private network", content: "1:#i7e" + plain, rules: Rules{Network: 7}, check: func(c *RelayContact) bool { return c.Network == 7 }},
		{name: "network of 64 bits", content: "1:#i18446744073709551615e" + plain, rules: Rules{Network: 1<<64 - 1}},
		{name: "negative network", content: "1:#i-1e" + plain, err: "range"},
		{name: "no address", content: p + when + v, err: "missing"},
		{name: "address of 5 bytes", content: "1:45:12345" + p + when + v, err: "size"},
		{name: "private address", content: addr4("10.0.0.1:1190") + p + when + v, err: "publicly"},
		{name: "private address allowed", content: addr4("10.0.0.1:1190") + p + when + v, rules: Rules{Private: true}},
		{name: "port 0", content: addr4("1.2.3.4:0") + p + when + v, rules: Rules{Private: true}, err: "port"},
		{name: "IPv6", content: addr + addr6("[2a00::1]:99") + p + when + v, check: func(c *RelayContact) bool { return c.Addr6 == netip.MustParseAddrPort("[2a00::1]:99") }},
		{name: "IPv6 of 17 bytes", content: addr + "1:617:12345678901234567" + p + when + v, err: "size"},
		{name: "private IPv6 whatever is allowed", content: addr + addr6("[fd00::1]:99") + p + when + v, rules: Rules{Private: true}, err: "IPv6"},
		{name: "IPv6 port 0", content: addr + addr6("[2a00::1]:0") + p + when + v, rules: Rules{Private: true}, err: "IPv6"},
		{name: "IPv4 in IPv6", content: addr + addr6("[::ffff:1.2.3.4]:99") + p + when + v, err: "IPv6"},
		{name: "no key", content: addr + when + v, err: "missing"},
		{name: "another's key", content: addr + "1:p32:" + string(pub(32)) + when + v, err: "bad signature"},
		{name: "no key of the curve", content: addr + "1:p32:" + strings.Repeat("\xff", 32) + when + v, err: "bad signature"},
		{name: "no time", content: addr + p + v, err: "missing"},
		{name: "time no number", content: addr + p + "1:t1:1" + v, err: "time"},
		{name: "negative time", content: addr + p + "1:ti-1e" + v, err: "time"},
		{name: "time that would overflow", content: addr + p + "1:ti18446744073709551615e" + v, err: "time"},
		{name: "time that would overflow an int64", content: addr + p + "1:ti9223372036854775807e" + v, err: "time"},
		{name: "last time", content: addr + p + "1:ti253402300799e" + v, check: func(c *RelayContact) bool { return !c.Expired(now) && c.Time.Year() == 9999 }},
		{name: "expired", content: addr + p + "1:ti1797408000e" + v, err: ErrExpired.Error()},
		{name: "expired allowed", content: addr + p + "1:ti0e" + v, rules: Rules{Expired: true}},
		{name: "a second before", content: addr + p + "1:ti1797408001e" + v},
		{name: "no version", content: addr + p + when, err: "missing"},
		{name: "version of 2 bytes", content: addr + p + when + "1:v2:12", err: "size"},
		{name: "unknown keys", content: "1:!i1e" + addr + p + "1:qle" + when + "1:u2:xx" + v + "1:zde"},
		{name: "keys out of order", content: p + addr + when + v, err: "missing"},
		{name: "signed twice", content: plain + "1:~64:" + strings.Repeat("x", 64), err: "ascending"},
		{name: "largest", content: addr + pad(MaxRelayContact) + p + when + v},
		{name: "s 0", content: addr + p + "1:si0e" + when + v, check: func(c *RelayContact) bool { return !c.Sessions }},
		{name: "s 1", content: addr + p + "1:si1e" + when + v, check: func(c *RelayContact) bool { return c.Sessions && c.Handshake11() }},
		{name: "s other bits", content: addr + p + "1:si6e" + when + v, check: func(c *RelayContact) bool { return !c.Sessions && !c.Handshake11() }},
		{name: "s all bits", content: addr + p + "1:si18446744073709551615e" + when + v, check: func(c *RelayContact) bool { return c.Sessions }},
		// README, decision 2: an s that is not an integer is valid and counts as without it.
		{name: "s negative", content: addr + p + "1:si-1e" + when + v, check: func(c *RelayContact) bool { return !c.Sessions }},
		{name: "s a string", content: addr + p + "1:s1:1" + when + v, check: func(c *RelayContact) bool { return !c.Sessions }},
		{name: "s a list", content: addr + p + "1:sli1ee" + when + v, check: func(c *RelayContact) bool { return !c.Sessions }},
		{name: "s malformed", content: addr + p + "1:si01e" + when + v, err: "integer"},
	} {
		got, err := ParseRelayContact(signedDict(sec, c.content), now, c.rules)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) || !strings.HasPrefix(err.Error(), "netdb: ") {
				t.Errorf("%s: error %v, want %q", c.name, err, c.err)
			}
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.check != nil && !c.check(got):
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	for name, raw := range map[string][]byte{
		"too large":        signedDict(sec, addr+pad(MaxRelayContact+1)+p+when+v),
		"key behind ~":     append(bytes.TrimSuffix(signedDict(sec, plain), []byte("e")), "2:~~i1ee"...),
		"no signature":     []byte("d" + plain + "e"),
		"signature of 63":  []byte("d" + plain + "1:~63:" + strings.Repeat("x", 63) + "e"),
		"signed by others": signedDict(secret(32), plain),
		"nothing":          nil,
		"a list":           []byte("le"),
	} {
		if _, err := ParseRelayContact(raw, now, Rules{}); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if _, err := ParseRelayContact(signedDict(sec, addr+p+"1:ti0e"+v), now, Rules{}); !errors.Is(err, ErrExpired) {
		t.Errorf("%v is not ErrExpired", err)
	}
}

func pub(n int) []byte {
	p := secret(n).Public()
	return p[:]
}

// Protocol 1 section 6.5: the cuts of the identity hash, also where other keys stand around the signing time.
func TestRelayContactHash(t *testing.T) {
	sec := secret(0)
	id := sec.Public()
	before := "1:46:\x01\x02\x03\x04\x04\xa61:p32:" + string(id[:])
	for _, c := range []struct{ before, after string }{
		{before, "1:v3:\x01\x00\x02"},
		{before + "1:si1e", "1:v3:\x01\x00\x02"},
		{before, "1:u1:t1:v3:\x01\x00\x02"},
		{before, "2:ttde1:v3:\x01\x00\x02"},
		{before, "10:ttttttttttde1:v3:\x01\x00\x021:zi1e"},
	} {
		_, name, _ := strings.Cut(c.after, ":")
		want := seal.Hash8([]byte("d"+c.before+"1:"), []byte(name+"1:"))
		for _, unix := range []string{"1800000000", "1"} {
			got, err := ParseRelayContact(signedDict(sec, c.before+"1:ti"+unix+"e"+c.after), time.Unix(1800000000, 0), Rules{Expired: true})
			if err != nil {
				t.Fatal(err)
			}
			if got.Hash() != want {
				t.Errorf("%q %q: %x, want %x", c.before, c.after, got.Hash(), want)
			}
		}
	}
}

func TestRelayContactAges(t *testing.T) {
	c := SignRelayContact(secret(1), RelayContact{Addr: netip.MustParseAddrPort("127.0.0.1:1"), Time: time.Unix(1000000, 999), Network: 9, Sessions: true})
	if !c.Sessions || c.Network != 9 || c.Time != time.Unix(1000000, 0).UTC() || c.ID != secret(1).Public() {
		t.Errorf("%+v", c)
	}
	for _, x := range []struct {
		age               time.Duration
		outdated, expired bool
	}{
		{0, false, false}, {RelayOutdated - 1, false, false}, {RelayOutdated, true, false}, {RelayLifetime - 1, true, false}, {RelayLifetime, true, true}, {-time.Hour, false, false},
	} {
		now := c.Time.Add(x.age)
		if c.Outdated(now) != x.outdated || c.Expired(now) != x.expired {
			t.Errorf("%v: outdated %v, expired %v", x.age, c.Outdated(now), c.Expired(now))
		}
	}
	var logged bytes.Buffer
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "relay", c)
	if strings.Contains(logged.String(), "127.0.0.1") || strings.Contains(logged.String(), c.ID.String()) {
		t.Errorf("logged as %s", &logged)
	}
	for v, want := range map[[3]uint8]bool{{1, 0, 2}: false, {1, 0, 255}: false, {1, 1, 0}: true, {2, 0, 0}: true, {0, 9, 9}: false} {
		if (&RelayContact{Version: v}).Handshake11() != want {
			t.Errorf("version %v", v)
		}
	}
	for name, bad := range map[string]RelayContact{
		"no address": {}, "IPv6": {Addr: netip.MustParseAddrPort("[2a00::1]:1")}, "port 0": {Addr: netip.MustParseAddrPort("1.2.3.4:0")},
		"before 1970": {Addr: netip.MustParseAddrPort("1.2.3.4:1"), Time: time.Unix(-1, 0)},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: signed", name)
				}
			}()
			SignRelayContact(secret(1), bad)
		}()
	}
}

// Protocol 1 section 6.2: first and last address of each range, and their neighbours.
func TestPublicAddr(t *testing.T) {
	for _, p := range append(append([]netip.Prefix{}, nonPublic4...), nonPublic6...) {
		last := p.Addr().AsSlice()
		for i := p.Bits(); i < 8*len(last); i++ {
			last[i/8] |= 0x80 >> (i % 8)
		}
		end, _ := netip.AddrFromSlice(last)
		if PublicAddr(p.Addr()) || PublicAddr(end) {
			t.Errorf("%v is public", p)
		}
	}
	for _, a := range []string{
		"1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0",
		"192.0.1.0", "192.0.3.0", "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "198.51.99.255", "198.51.101.0",
		"203.0.112.255", "203.0.114.0", "223.255.255.255", "8.8.8.8",
		"2a00::1", "2606:4700::1111", "2001:30::1", "2001:db9::", "2003::", "::2", "400::", "fe00::", "fec0::", "100:0:0:1::", "64:ff9b::1:0:0", "::fffe:0:0",
	} {
		if !PublicAddr(netip.MustParseAddr(a)) {
			t.Errorf("%s is not public", a)
		}
	}
	for _, a := range []string{"::ffff:8.8.8.8", "2001:db8::1", "fe80::1%eth0", "2a00::1%eth0", "240.0.0.0", "255.255.255.255"} {
		if PublicAddr(netip.MustParseAddr(a)) {
			t.Errorf("%s is public", a)
		}
	}
	if PublicAddr(netip.Addr{}) {
		t.Error("no address is public")
	}
}

// Protocol 1 section 7.7.
func TestClosest(t *testing.T) {
	blinded := key.Public(testkit.Hex(t, "397cfce440e500ffde9b166e209e5fc241f727a922c97f2e65115cd68670efe2")) // of section 4.8
	if fold(blinded) != 0xf1cfc2c4f59101c3 {
		t.Errorf("fold %x", fold(blinded))
	}
	r := random(t)
	for range 200 {
		set := make([]key.Public, r.IntN(12))
		for i := range set {
			for j := range set[i] {
				set[i][j] = byte(r.IntN(2)) // few values: many ties
			}
		}
		set = dedupe(set)
		before := fmt.Sprint(set)
		want := append([]key.Public{}, set...)
		for i := range want { // selection sort by the definition
			for j := i + 1; j < len(want); j++ {
				a, b := fold(want[i])^fold(blinded), fold(want[j])^fold(blinded)
				if b < a || a == b && bytes.Compare(want[j][:], want[i][:]) < 0 {
					want[i], want[j] = want[j], want[i]
				}
			}
		}
		for n := range 14 {
			if got := Closest(set, blinded, n); fmt.Sprint(got) != fmt.Sprint(want[:min(n, len(want))]) {
				t.Fatalf("n %d: got %v, want %v", n, got, want)
			}
		}
		if fmt.Sprint(set) != before {
			t.Fatal("the set was changed")
		}
	}
}

func dedupe(ids []key.Public) (out []key.Public) {
	for id := range keySet(ids) {
		out = append(out, id)
	}
	return out
}

// Threat: any peer sends relay contacts, by gossip, bootstrap and fetch_rcs. Reading one must never panic, and what is understood must come
// back from what we would write.
//
// Decoders: ParseRelayContact decodeRelay RelayContact.verified split endsSigned
func FuzzRelayContact(f *testing.F) {
	f.Add(testkit.Hex(f, vectorRC))
	f.Add(SignRelayContact(secret(1), RelayContact{Addr: netip.MustParseAddrPort("9.9.9.9:9"), Addr6: netip.MustParseAddrPort("[2a00::1]:9"), Network: 5, Sessions: true, Time: time.Unix(5, 0)}).Raw())
	good := string(SignRelayContact(secret(1), RelayContact{Addr: netip.MustParseAddrPort("9.9.9.9:9"), Addr6: netip.MustParseAddrPort("[2a00::1]:9"), Time: time.Unix(5, 0)}).Raw())
	f.Add([]byte(good + strings.Repeat("x", MaxRelayContact)))
	f.Add([]byte(good[:len(good)-1] + "3:~~~0:e"))
	for _, r := range [][2]string{
		{"d", "d0:i1e"}, {"d", "d0:i0e"}, {"1:46:\x09\x09\x09\x09\x00\x09", "1:46:\x09\x09\x09\x09\x00\x00"}, {"1:618:\x2a", "1:618:\xfd"}, {"1:ti5e", "1:ti-5e"}, {"1:ti5e", "1:t1:5"}, {"1:ti5e", "1:ti99999999999999e"},
	} {
		f.Add([]byte(strings.Replace(good, r[0], r[1], 1)))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if c, err := ParseRelayContact(raw, time.Unix(6, 0), Rules{Private: true}); err == nil && (c.ID.Check() != nil || !bytes.Equal(c.Raw(), raw)) {
			t.Fatalf("accepted %+v", c)
		}
		decodeRelay(raw, time.Now(), Rules{}) // with all checks
		for _, network := range []uint64{0, 5} {
			rules := Rules{Network: network, Private: true, Expired: true}
			c, err := decodeRelay(raw, time.Now(), rules)
			if err != nil {
				continue
			}
			c.verified()
			again, err := decodeRelay(c.build().Bytes("~", make([]byte, 64)).End(), time.Now(), rules)
			if err != nil {
				t.Fatal(err)
			}
			a, b := *c, *again
			a.raw, b.raw, a.hash, b.hash = nil, nil, [8]byte{}, [8]byte{}
			if fmt.Sprintf("%+v", a) != fmt.Sprintf("%+v", b) {
				t.Fatalf("%+v came back as %+v", a, b)
			}
		}
	})
}
