package netdb

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/seal"
	"lokinetd/router/testkit"
)

// Protocol 1 section 7.6, made from the document's description with libsodium: root seed 00..1f, one intro, nonce 40..57, t 1790000000000.
const (
	vectorCC = "64303a693065313a6133323a03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8313a696c64313a65693137393030303132303065313a6831363aa0a1a2a3a4a5a6a7a8a9" +
		"aaabacadaeaf313a7233323a29acbae141bccaf0b22e1a94d34d0bc7361e526d0bfe12c89794bc9322966dd76565313a706936306565"
	vectorSealed = "64313a6933323a397cfce440e500ffde9b166e209e5fc241f727a922c97f2e65115cd68670efe2313a6e32343a404142434445464748494a4b4c4d4e4f5051525354555657313a746931373930303030303030" +
		"30303065313a783133343a6a2cd4c8fbed50e766fbf3b779db1249336e8d2d9cdbed4d13c00ad681ad2798a2511e5188bebdc772d8944631f858c565fb658a08d095d16673bad5c131f94862ace8d7bb8139be779713" +
		"e13142487cb73be91d603ead82c796b0e0bd45fbd7d0b5b6ad2525e316e43cac810533317f371a971da37359f21b268b8ed7ba48e5e47f9146dfa2313a7e36343a85f3f7ebb02facec0b134047deb6d355dd8c6429b65b" +
		"538de80856903b82da985232b9d2c841b2fd59039136b43c17009f14ef2fbb9130693b332baa3a83ae0465"
	vectorBlinded = "397cfce440e500ffde9b166e209e5fc241f727a922c97f2e65115cd68670efe2" // section 4.8
)

var vectorSignedAt = time.UnixMilli(1790000000000)

func vectorContact() *ClientContact {
	in := Intro{Expiry: time.Unix(1790001200, 0), Relay: secret(32).Public()}
	for i := range in.Hop {
		in.Hop[i] = byte(0xa0 + i)
	}
	return &ClientContact{Key: secret(0).Public(), Intros: []Intro{in}, Flags: 60, SignedAt: vectorSignedAt}
}

func TestClientContactVector(t *testing.T) {
	raw := testkit.Hex(t, vectorSealed)
	want := vectorContact()
	if inner := want.append(nil); hex.EncodeToString(inner) != vectorCC {
		t.Errorf("inner %x", inner)
	}
	var nonce seal.Nonce
	for i := range nonce {
		nonce[i] = byte(0x40 + i)
	}
	sealed, err := want.sealWith(secret(0), vectorSignedAt, nonce)
	if err != nil || !bytes.Equal(sealed, raw) {
		t.Errorf("sealed %x, %v", sealed, err)
	}
	got, err := OpenClientContact(raw, want.Key)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	blinded, signedAt, err := PeekSealed(raw)
	if err != nil || hex.EncodeToString(blinded[:]) != vectorBlinded || !signedAt.Equal(vectorSignedAt) {
		t.Errorf("peek: %v %v %v", blinded, signedAt, err)
	}
	if err := VerifySealed(raw); err != nil {
		t.Error(err)
	}
}

func TestSealedDamaged(t *testing.T) {
	raw := testkit.Hex(t, vectorSealed)
	owner := secret(0).Public()
	damaged(t, raw, func(b []byte) error { _, err := OpenClientContact(b, owner); return err })
	damaged(t, raw, VerifySealed)
}

// fullContact has everything that a contact can have.
func fullContact() *ClientContact {
	c := vectorContact()
	c.Flags = 0xff
	c.Intros = append(c.Intros, c.Intros[0], Intro{Expiry: time.Unix(1790000000, 0), Relay: key.Public{1}}, Intro{Expiry: time.Unix(0, 0)})
	c.SRV = []SRV{
		{Service: "_xmpp._tcp", Priority: 65535, Weight: 0, Port: 5222, Target: "chat.jason.loki"},
		{Service: "_a-1._udp", Port: 65535, Target: "."},
		{Service: "_a._tcp", Weight: 65535, Target: ""},
	}
	c.Exit = &ExitPolicy{
		Protocols: []ExitProtocol{{Proto: 1}, {Proto: 6}, {Proto: 6, HasPort: true}, {Proto: 6, Port: 443, HasPort: true}, {Proto: 255, Port: 65535, HasPort: true}},
		Ranges: []netip.Prefix{
			netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("10.1.2.3/32"),
			netip.MustParsePrefix("::/0"), netip.MustParsePrefix("2a00::/16"), netip.MustParsePrefix("2a00::/100"), netip.MustParsePrefix("2a00::1/128"),
		},
	}
	return c
}

func TestClientContactFull(t *testing.T) {
	want := fullContact()
	shuffled := fullContact() // Seal brings all but the SRV records into order
	shuffled.Intros[0], shuffled.Intros[3] = shuffled.Intros[3], shuffled.Intros[0]
	shuffled.Exit.Ranges[0], shuffled.Exit.Ranges[6] = netip.MustParsePrefix("2a00::2:3/100"), netip.MustParsePrefix("1.2.3.4/0")
	shuffled.Exit.Protocols[0], shuffled.Exit.Protocols[4] = shuffled.Exit.Protocols[4], shuffled.Exit.Protocols[0]
	before := fmt.Sprint(*shuffled, *shuffled.Exit)
	raw, err := shuffled.Seal(secret(0), want.SignedAt)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(*shuffled, *shuffled.Exit) != before {
		t.Error("Seal changed the contact")
	}
	got, err := OpenClientContact(raw, want.Key)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v %+v\nwant %+v %+v\n%v", got, got.Exit, want, want.Exit, err)
	}
	if got.Expiry() != want.Intros[0].Expiry || got.Expired(got.Expiry().Add(-1)) || !got.Expired(got.Expiry()) {
		t.Error("expiry")
	}
	if in := got.Intros[0]; in.Expired(in.Expiry.Add(-1)) || !in.Expired(in.Expiry) {
		t.Error("expiry of an intro")
	}
	if !(&ClientContact{}).Expired(time.Unix(0, 0)) {
		t.Error("a contact without intros is not expired")
	}
	other, _ := shuffled.Seal(secret(0), want.SignedAt)
	if bytes.Equal(raw, other) {
		t.Error("the nonce is not random")
	}
}

func TestSealRefuses(t *testing.T) {
	for name, change := range map[string]func(*ClientContact){
		"no intros":       func(c *ClientContact) { c.Intros = nil },
		"SRV":             func(c *ClientContact) { c.SRV[0].Service = "xmpp" },
		"range":           func(c *ClientContact) { c.Exit.Ranges[0] = netip.Prefix{} },
		"too large":       func(c *ClientContact) { c.Intros = make([]Intro, 1000) },
		"SRV target long": func(c *ClientContact) { c.SRV[0].Target = strings.Repeat("a", 196) + ".loki" },
	} {
		c := fullContact()
		change(c)
		if _, err := c.Seal(secret(0), vectorSignedAt); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
}

// seals makes a sealed contact of any inner bytes, as someone could who knows owner's key: signed is whose blinded key it is put under.
func seals(inner []byte, owner key.Public, signer *key.Secret) []byte {
	var nonce seal.Nonce
	k := seal.Key(owner)
	x := bytes.Clone(inner)
	seal.Stream(x, &k, &nonce)
	blinded := signer.Blind()
	i := blinded.Public()
	b := bt.NewDict(nil).Bytes("i", i[:]).Bytes("n", nonce[:]).Int("t", 1790000000000).Bytes("x", x)
	sig := blinded.Sign(b.Prefix())
	return b.Bytes("~", sig[:]).End()
}

// The two checks that the reference lacks, and all others behind the signature (protocol 1 sections 7.1 to 7.6).
func TestOpenClientContactRefuses(t *testing.T) {
	owner := secret(0)
	inner := string(testkit.Hex(t, vectorCC))
	id := owner.Public()
	head := "d0:i0e1:a32:" + string(id[:])
	intro := func(expiry string) string {
		return "d1:ei" + expiry + "e1:h16:0123456789abcdef1:r32:" + string(id[:]) + "e"
	}
	tail := "1:pi60ee"
	exit := func(policy string) string { return head + "1:e" + policy + "1:ile" + tail }
	if _, err := OpenClientContact(seals([]byte(inner), owner.Public(), owner), owner.Public()); err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"forged under another blinded key": seals([]byte(inner), owner.Public(), secret(32)),
		"another client inside":            seals([]byte(strings.Replace(inner, string(pub(0)), string(pub(32)), 1)), owner.Public(), owner),
		"of another client":                seals([]byte(inner), secret(32).Public(), secret(32)),
		"keys behind the signature":        append(bytes.TrimSuffix(testkit.Hex(t, vectorSealed), []byte("e")), "2:~~i1ee"...),
		"larger than 64 KiB":               seals([]byte(head+"1:b65536:"+strings.Repeat("x", 65536)+"1:ile"+tail), owner.Public(), owner),
	} {
		if _, err := OpenClientContact(raw, owner.Public()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := OpenClientContact(testkit.Hex(t, vectorSealed), key.Public{1}); err == nil {
		t.Error("no key as the owner: accepted")
	}
	for name, c := range map[string]struct {
		inner string
		ok    bool
	}{
		"empty":                       {"", false},
		"no intros":                   {head + "1:ile" + tail, true},
		"unknown keys":                {head + "1:cle1:ile1:ji1e1:pi60e1:zdee", true},
		"no version":                  {strings.Replace(head, "0:i0e", "", 1) + "1:ile" + tail, false},
		"version 1":                   {strings.Replace(head, "0:i0e", "0:i1e", 1) + "1:ile" + tail, false},
		"no key":                      {"d0:i0e1:ile" + tail, false},
		"intros missing":              {head + tail, false},
		"flags missing":               {head + "1:ilee", false},
		"flags above 255":             {head + "1:ile1:pi256ee", false},
		"intros in order":             {head + "1:il" + intro("3") + intro("3") + intro("2") + "e" + tail, true},
		"intros out of order":         {head + "1:il" + intro("3") + intro("2") + intro("3") + "e" + tail, false},
		"intro that is no dict":       {head + "1:il1:xe" + tail, false},
		"intro with unknown key":      {head + "1:il" + strings.Replace(intro("3"), "1:h", "1:fle1:h", 1) + "e" + tail, true},
		"intro without relay":         {head + "1:ild1:ei1e1:h16:0123456789abcdefee" + tail, false},
		"intro without end":           {head + "1:il" + intro("9223372036854775807") + "e" + tail, false},
		"negative expiry":             {head + "1:il" + intro("-1") + "e" + tail, false},
		"trailing byte":               {head + "1:ile" + tail + "e", false},
		"exit policy of nothing":      {exit("de"), true},
		"exit policy no dict":         {exit("le"), false},
		"exit policy full":            {exit("d1:plli6eeli17ei53eee1:rl5:\x0a\x00\x00\x00\x089:\x2a\x00\x00\x00\x00\x00\x00\x00\x20ee"), true},
		"exit protocol above 255":     {exit("d1:plli256eeee"), false},
		"exit port above 65535":       {exit("d1:plli6ei65536eeee"), false},
		"exit protocol of nothing":    {exit("d1:plleee"), false},
		"exit protocol of three":      {exit("d1:plli6ei1ei1eeee"), false},
		"exit protocol no list":       {exit("d1:pli6eee"), false},
		"exit range of 4 bytes":       {exit("d1:rl4:\x0a\x00\x00\x08ee"), false},
		"exit range of 6 bytes":       {exit("d1:rl6:\x0a\x00\x00\x00\x00\x08ee"), false},
		"exit range empty":            {exit("d1:rl0:ee"), false},
		"exit range no string":        {exit("d1:rli1eee"), false},
		"exit mask above 32":          {exit("d1:rl5:\x0a\x00\x00\x00\x21ee"), false},
		"exit mask above 128":         {exit("d1:rl17:0123456789abcdef\x81ee"), false},
		"exit mask 128, short range":  {exit("d1:rl9:01234567\x80ee"), true},
		"SRV malformed":               {head + "1:ile1:pi60e1:sli1e1:xdelee" + "e", true},
		"SRV no list":                 {head + "1:ile1:pi60e1:sdee", false},
		"SRV malformed by its coding": {head + "1:ile1:pi60e1:sld1:pi01eeee", false},
	} {
		got, err := OpenClientContact(seals([]byte(c.inner), owner.Public(), owner), owner.Public())
		if (err == nil) != c.ok || err != nil && !strings.HasPrefix(err.Error(), "netdb: ") {
			t.Errorf("%s: %v", name, err)
		}
		if name == "SRV malformed" && len(got.SRV) != 0 {
			t.Errorf("malformed SRV records were kept: %v", got.SRV)
		}
	}
}

// Protocol 1 section 7.5: what is not valid is not sent, and dropped when it comes.
func TestSRV(t *testing.T) {
	for s, want := range map[SRV]bool{
		{Service: "_xmpp._tcp", Target: "x.loki"}: true, {Service: "_a-b9._udp", Target: "x.sesh"}: true, {Service: "_a._b"}: true, {Service: "_a._b", Target: "."}: true,
		{Service: "_a._b", Target: strings.Repeat("a", 195) + ".loki"}: true, {Service: "_a._b", Target: strings.Repeat("a", 196) + ".loki"}: false,
		{}: false, {Service: "a._b"}: false, {Service: "_a.b"}: false, {Service: "_a"}: false, {Service: "_A._b"}: false, {Service: "_a._b._c"}: false, {Service: "_._b"}: false,
		{Service: "_a b._c"}: false, {Service: "_a._b", Target: "x.snode"}: false, {Service: "_a._b", Target: "example.com"}: false,
	} {
		if (s.Check() == nil) != want {
			t.Errorf("%+v: %v", s, s.Check())
		}
		got, ok := decodeSRV(s.append(nil))
		if ok != want || ok && got != s {
			t.Errorf("%+v came back as %+v, %v", s, got, ok)
		}
	}
}

// Threat: a client's contact is made by that client, and whoever wants to reach it reads it. A hostile one must be an error or harmless, and
// what is understood must be what we would write.
//
// Decoders: OpenClientContact decodeClient decodeExit ExitProtocol.compare compareRanges unpackRange decodeSRV SRV.Check serviceLabel
func FuzzClientContact(f *testing.F) {
	f.Add(testkit.Hex(f, vectorCC))
	full := string(fullContact().append(nil))
	for _, r := range [][2]string{
		{"", ""}, {"lli1ee", "lli1ei2ei3ee"}, {"lli1ee", "ll1:xe"}, {"lli1ee", "lli1e1:xe"}, {"lli1ee", "lli999ee"}, {"lli1ee", "li1e"}, {"lli1eel", "i1el"}, {"1:rl", "1:rli1e"}, {"1:rl", "1:rl1:x"}, {"1:rl", "1:rl5:\x00\x00\x00\x00\xff"},
		{"1:ild", "1:ili1ed"}, {"1:ild", "1:ilded"}, {"1:ild1:e", "1:ild1:z"}, {"_a-1._udp", "_A-1._udp"}, {"_a-1._udp", "a-12._udp"}, {"_a-1._udp", "_a-1_.udp"}, {"_a-1._udp", "_a-1__udp"}, {".jason.loki", ".jason.lokl"},
		{"1:0", "1:1"}, {"d0:i0e", "d0:i1e"}, {"i1790000000e", "i1999999999e"},
	} {
		f.Add([]byte(strings.Replace(full, r[0], r[1], 1)))
	}
	owner := secret(0)
	f.Fuzz(func(t *testing.T, inner []byte) {
		whole := seals(inner, owner.Public(), owner)
		if c, err := OpenClientContact(whole, owner.Public()); err == nil && (c.Key != owner.Public() || !c.SignedAt.Equal(time.UnixMilli(1790000000000))) {
			t.Fatalf("opened %+v", c)
		}
		if _, err := OpenClientContact(whole, secret(1).Public()); err == nil {
			t.Fatal("opened as another one's")
		}
		for _, bad := range [][]byte{append(whole[:len(whole)-2:len(whole)-2], whole[len(whole)-2]^1, 'e'), whole[1:]} {
			if _, err := OpenClientContact(bad, owner.Public()); err == nil {
				t.Fatal("opened a changed one")
			}
		}
		OpenClientContact(inner, key.Public{})
		if _, err := OpenClientContact(whole, key.Public{}); err == nil {
			t.Fatal("opened as nobody's")
		}
		c, err := decodeClient(inner)
		if err != nil {
			return
		}
		again, err := decodeClient(c.append(nil))
		if err != nil || !reflect.DeepEqual(c, again) {
			t.Fatalf("%+v came back as %+v, %v", c, again, err)
		}
		for _, s := range c.SRV {
			if err := s.Check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Threat: relays take sealed contacts from anyone. Reading the outside must never panic, and what is kept must be within bounds.
//
// Decoders: PeekSealed VerifySealed decodeSealed sealed.verify
func FuzzSealed(f *testing.F) {
	f.Add(testkit.Hex(f, vectorSealed))
	f.Add(seals(nil, secret(0).Public(), secret(0)))
	f.Add(seals(make([]byte, MaxSealed), secret(0).Public(), secret(0)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		blinded, signedAt, err := PeekSealed(raw)
		if err != nil {
			if VerifySealed(raw) == nil {
				t.Fatal("verified what cannot be read")
			}
			return
		}
		c := NewContacts(1, 1)
		stored, err := c.Put(raw, signedAt)
		if stored != (err == nil && VerifySealed(raw) == nil) {
			t.Fatalf("stored %v, %v", stored, err)
		}
		if stored && !bytes.Equal(c.Get(blinded, signedAt), raw) {
			t.Fatal("not what was put")
		}
	})
}
