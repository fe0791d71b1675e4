package key

import (
	"fmt"
	"testing"

	"lokinetd/router/testkit"
)

// counting gives the seed from, from+1, ... that the vectors of the protocol documents are made with.
func counting(from byte) [32]byte { return [32]byte(testkit.Counting(from, 32)) }

// Origin: protocol 1 section 2.1; the last one upstream's, section 8.2.
func TestVectorBase32z(t *testing.T) {
	for _, v := range []struct{ hex, text string }{
		{fmt.Sprintf("%064x", 0), "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"},
		{"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff", "999999999999999999999999999999999999999999999999999o"},
		{"03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8", "yqooxx9u3aemh8mo5wcqq16yufu6jitouq1o4za751dger1igghy"},
		{"c5cb04f736113e5c891cdb3d62f4910e118081fc2497a98b7800ecbb11f0ffb5", "azfoj73snr9f3neh5c6sf7rtbaeabyxhr1m4un5aydsmsrxo964o"},
	} {
		p := Public(testkit.Hex(t, v.hex))
		if p.String() != v.text {
			t.Errorf("%s in base32z: %s, want %s", v.hex, p, v.text)
		}
		if got, err := ParsePublic(v.text); err != nil || got != p {
			t.Errorf("ParsePublic(%s) = %x, %v, want %s", v.text, got[:], err, v.hex)
		}
	}
}

// Origin: protocol 1 section 4.4.
func TestVectorX25519(t *testing.T) {
	s := FromSeed(counting(0))
	pub := s.Public()
	testkit.Equal(t, "public key", pub[:], "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8")
	testkit.Equal(t, "X25519 secret", s.ECDH().Bytes(), "3894eea49c580aef816935762be049559d6d1440dede12e6a125f1841fff8e6f")
	const xpub = "4701d08488451f545a409fb58ae3e58581ca40ac3f7f114698cd71deac73ca01"
	testkit.Equal(t, "X25519 public key of the secret", s.ECDH().PublicKey().Bytes(), xpub)
	x, err := pub.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	testkit.Equal(t, "X25519 public key of the public key", x.Bytes(), xpub)
}

// Origin: protocol 1 section 4.5; router/seal's test goes on from here to the key.
func TestVectorServerKey(t *testing.T) {
	pub := FromSeed(counting(0x20)).Public()
	testkit.Equal(t, "public key", pub[:], "29acbae141bccaf0b22e1a94d34d0bc7361e526d0bfe12c89794bc9322966dd7")
}

// Origin: protocol 1 section 4.8.
func TestVectorBlind(t *testing.T) {
	s := FromSeed(counting(0))
	b := s.Blind()
	testkit.Equal(t, "f", blindFactor(s.Public()).Bytes(), "5d4606c4f03db771cb0b6eb047f8b340e46ef82977a051c97c39c9760e6b4000")
	testkit.Equal(t, "b", b.in().scalar.Bytes(), "9656a510d9eae163e358d9f4b306b8604799978e501b9b30208d68b448546809")
	testkit.Equal(t, "h", b.in().hash[:], "c1267deb4d896696bbdccf3937bfc93b72908dbe01cd7146b2adc8ae261a6bf2")
	const want = "397cfce440e500ffde9b166e209e5fc241f727a922c97f2e65115cd68670efe2"
	pub := b.Public()
	testkit.Equal(t, "B of the secret", pub[:], want)
	pub, err := s.Public().Blind()
	if err != nil {
		t.Fatal(err)
	}
	testkit.Equal(t, "B of the public key", pub[:], want)
	sig := b.Sign([]byte("test message"))
	testkit.Equal(t, "signature", sig[:], "a3f16f2b18b89f0bd87071738a19a0c221ad8794673bd6cae0ba75b1531f43c9"+
		"599354b24dbc1242b8aa5b1c5ef66b7c93aef5f1e3cb9ba0d535924f898c6e08")
	if !pub.Verify([]byte("test message"), sig[:]) {
		t.Error("the signature does not verify")
	}
}

// Origin: RFC 8032 section 7.1, tests 1 to 3.
func TestVectorSign(t *testing.T) {
	for _, v := range []struct{ seed, pub, msg, sig string }{
		{
			"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
			"e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
		},
		{
			"4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb", "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
			"92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
		},
		{
			"c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7", "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
			"6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
		},
	} {
		s := FromSeed([32]byte(testkit.Hex(t, v.seed)))
		pub, sig := s.Public(), s.Sign(testkit.Hex(t, v.msg))
		testkit.Equal(t, "public key", pub[:], v.pub)
		testkit.Equal(t, "signature", sig[:], v.sig)
		if !pub.Verify(testkit.Hex(t, v.msg), sig[:]) {
			t.Error("the signature does not verify")
		}
	}
}
