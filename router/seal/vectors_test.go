package seal

import (
	"bytes"
	"crypto/ecdh"
	"strconv"
	"testing"

	"lokinetd/router/key"
	"lokinetd/router/testkit"
)

func secret(from byte) *key.Secret { return key.FromSeed([32]byte(testkit.Counting(from, 32))) }

// Origin: protocol 1 sections 4.5 to 4.7.
func TestVectorPath(t *testing.T) {
	client, server := secret(0), secret(0x20)
	nonce := Nonce(testkit.Counting(0x40, 24))
	const want = "ee636a57f45dc21ee5df9e73374eaa60ce74b9fed20ceb20739898a0b062aedf"
	k, err := ClientPathKey(client, server.Public(), &nonce)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Equal(t, "the client's K", k[:], want)
	k, err = RelayPathKey(server, client.Public(), &nonce)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Equal(t, "the relay's K", k[:], want)

	hop := NewHop(k)
	testkit.Equal(t, "xor nonce", hop.Xor[:], "231096dbfb709a2ee69a988264f406d9788924ea34aee5c9")
	if hop.Key != k {
		t.Error("the hop's key is another one")
	}
	data := make([]byte, 16)
	Stream(data, &k, &nonce)
	testkit.Equal(t, "XChaCha20 of 16 zeros", data, "ad01f9c8c8b65ae5f11230b2235478a7")
}

// pattern is the message of the libsodium vectors below: 0, 7, 14, ...
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(7 * i)
	}
	return b
}

// Origin: computed with libsodium 1.0.18, crypto_stream_xchacha20_xor and crypto_aead_xchacha20poly1305_ietf_encrypt; key 80..9f, nonce 40..57,
// message pattern(n). The results of 1400 bytes are given as their 32-byte BLAKE2b.
func TestVectorCiphers(t *testing.T) {
	k, nonce := Key(testkit.Counting(0x80, 32)), Nonce(testkit.Counting(0x40, 24))
	digest := func(b []byte) []byte {
		if len(b) < 1400 {
			return b
		}
		h := Hash32(b)
		return h[:]
	}
	for _, v := range []struct {
		n    int
		want string
	}{
		{0, ""},
		{1, "7b"},
		{63, "7b1e1195ef42daa831702906dbe21f9137bb16f624612b3175dc36cc4732d50c412cc9cda703388e65c3345d6dedca6c01f67e820f60286838b783ef4dfba7"},
		{64, "7b1e1195ef42daa831702906dbe21f9137bb16f624612b3175dc36cc4732d50c412cc9cda703388e65c3345d6dedca6c01f67e820f60286838b783ef4dfba7e3"},
		{65, "7b1e1195ef42daa831702906dbe21f9137bb16f624612b3175dc36cc4732d50c412cc9cda703388e65c3345d6dedca6c01f67e820f60286838b783ef4dfba7e331"},
		{1400, "b987180646063998d782beb9319fe79b5dfaa4a2a238da5d803758ae65a13ce0"},
	} {
		data := pattern(v.n)
		Stream(data, &k, &nonce)
		testkit.Equal(t, "Stream of "+strconv.Itoa(v.n), digest(data), v.want)
		Stream(data, &k, &nonce)
		if !bytes.Equal(data, pattern(v.n)) {
			t.Errorf("Stream of %d does not undo itself", v.n)
		}
	}
	for _, v := range []struct {
		n    int
		want string
	}{
		{0, "1dac8f73146d1e9da796cb7f7221a5df"},
		{1, "f10c60661ff5d26d1eecc8c8925de93d11"},
		{15, "f10b7de147d3de6bc32d319ea2f5fff900f2ed8bf3a375f1adebe62aa55f64"},
		{16, "f10b7de147d3de6bc32d319ea2f5ff3cded89fb3d4c030adbe6528612fc1c1ba"},
		{17, "f10b7de147d3de6bc32d319ea2f5ff3c423cb0f345cf0b67a20be42e388eaf3256"},
		{64, "f10b7de147d3de6bc32d319ea2f5ff3c42300ceb89d7064d621543b1869edf11e0dbfe88d76e956c29ccc7645aa81c139146f471c048def1266b01cad9cd26844a8897ed69935912ace303a38051dbbe"},
		{1400, "2345b17d8b9c6bd1358846dad107f541997b78a38d97c3df6cdbf7f90f71bde4"},
	} {
		data := append(pattern(v.n), "room for the tag"...)
		Seal(data, &k, &nonce)
		testkit.Equal(t, "Seal of "+strconv.Itoa(v.n), digest(data), v.want)
		if body, ok := Open(data, &k, &nonce); !ok || !bytes.Equal(body, pattern(v.n)) {
			t.Errorf("Open of %d: %x, %v", v.n, body, ok)
		}
	}
}

// Origin: draft-irtf-cfrg-xchacha-03, appendix A.3.2.1, of which the first 32 and the last 16 bytes.
func TestVectorXChaChaDraft(t *testing.T) {
	k, nonce := Key(testkit.Counting(0x80, 32)), Nonce(append(testkit.Counting(0x40, 23), 0x58))
	data := []byte("The dhole (pronounced \"dole\") is also known as the Asiatic wild dog, red dog, and whistling dog. " +
		"It is about the size of a German shepherd but looks more like a long-legged fox. This highly elusive and skilled jumper is classified with wolves, " +
		"coyotes, jackals, and foxes in the taxonomic family Canidae.")
	Stream(data, &k, &nonce)
	testkit.Equal(t, "the ciphertext's start", data[:32], "4559abba4e48c16102e8bb2c05e6947f50a786de162f9b0b7e592a9b53d0d4e9")
	testkit.Equal(t, "the ciphertext's end", data[len(data)-16:], "93b93111c1a55dd7421a10184974c7c5")
}

// Origin: computed with libsodium 1.0.18: crypto_box_curve25519xchacha20poly1305_easy with the nonce of a sealed box, and opened by its _seal_open. Recipient
// seed 00..1f, ephemeral secret 40..5f.
func TestVectorBox(t *testing.T) {
	to := secret(0)
	x, err := to.Public().ECDH()
	if err != nil {
		t.Fatal(err)
	}
	eph, err := ecdh.X25519().NewPrivateKey(testkit.Counting(0x40, 32))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []struct {
		msg  []byte
		want string
	}{
		{nil, "79a631eede1bf9c98f12032cdeadd0e7a079398fc786b88cc846ec89af85a51aa06f9dc89ec14993e1720d246632a419"},
		{[]byte("test message"), "79a631eede1bf9c98f12032cdeadd0e7a079398fc786b88cc846ec89af85a51acfd03025c1c68ddbe047b25e4f1738bf1264ca6cee8537c653abdce0"},
		{testkit.Counting(0, 100), "79a631eede1bf9c98f12032cdeadd0e7a079398fc786b88cc846ec89af85a51a2531e68eef9bf096dd39b0f4a82bb6506600bb1bcaed54b228c3b18e4cdd25fb" +
			"9ba4ed099200c83bd78d2cfd34aca97cc838bec2c7b3853233ea5ffc2cfa9559b8f3c48f4c43610ddfed9c4f871caf1d85362f900becad8949cddcee52bc69edeaf56ed16863aec241e30b2b3c12d2c8dcb2d01b"},
	} {
		sealed, err := box(eph, x, v.msg)
		if err != nil {
			t.Fatal(err)
		}
		testkit.Equal(t, "box", sealed, v.want)
		if msg, err := OpenBox(to, sealed); err != nil || !bytes.Equal(msg, v.msg) {
			t.Errorf("OpenBox: %x, %v", msg, err)
		}
	}
}

// Origin: protocol 1 section 5.
func TestVectorSession(t *testing.T) {
	i, r := secret(0).Public(), secret(0x20).Public()
	const tagI, tagR = 0x11223344, 0x55667788
	private := func(from byte) *ecdh.PrivateKey {
		k, err := ecdh.X25519().NewPrivateKey(testkit.Counting(from, 32))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	x, y := private(1), private(0x81)
	X, Y := x.PublicKey().Bytes(), y.PublicKey().Bytes()
	testkit.Equal(t, "X", X, "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c")
	testkit.Equal(t, "Y", Y, "883186b800b41d5cf0429695da9b3cc4f328ebcd184a6e482fa578c103f06c77")
	const want = "c639664aff13ee2696db677b30b74d56103f38953ef4b5c50b87e2ac31b37367"
	dh, err := x25519(x, [32]byte(Y))
	if err != nil {
		t.Fatal(err)
	}
	testkit.Equal(t, "the initiator's dh", dh, want)
	if dh, err = x25519(y, [32]byte(X)); err != nil {
		t.Fatal(err)
	}
	testkit.Equal(t, "the responder's dh", dh, want)
	context := sessionHash(i, r, tagI, tagR)
	testkit.Equal(t, "context", context[:], "937a9eebea4494401683fc5e6514c10d1b520b135da909286485640a066b5a85ee1f057b92bf0d3321821c3367125d784d01f42312a75b1523fbda569c4f5c1f")
	k1, k2 := sessionKeys(i, r, tagI, tagR, dh, X, Y, bytes.Repeat([]byte{0x5a}, 32), bytes.Repeat([]byte{0xa5}, EncapsulationSize))
	testkit.Equal(t, "k1", k1[:], "7fdf036ef6349768c0aaa911b1325b1b3ffb8995b0d5748be69d43d8718e559d")
	testkit.Equal(t, "k2", k2[:], "8681e54531d106916ff00488693eac1f4c9a0f2b2541fc507040a6dd439d2408")
}

// Origin: protocol 4 section 3.5.
func TestVectorSession4(t *testing.T) {
	fill := func(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }
	i, r := key.Public(fill(0x11, 32)), key.Public(fill(0x22, 32))
	const tagI, tagR = 0xDEADBEEF, 0xCAFEBABE
	context := sessionHash(i, r, tagI, tagR)
	testkit.Equal(t, "context", context[:], "3613580bcf990362194ad18ffac5b6c093162f80b2574997a75e761d6892e9db5e4b2e5d33be7bb0d6d338dba87cdf49e465036e3117bdf45c6df2ee8147a5c6")
	k1, k2 := sessionKeys(i, r, tagI, tagR, fill(0x55, 32), fill(0x33, 32), fill(0x44, 32), fill(0x66, 32), fill(0x77, EncapsulationSize))
	testkit.Equal(t, "k1", k1[:], "ff96b7745d1e890d3369f95a1ee3ef2d8803dcaf0b3c87e0b1550dddffc163c3")
	testkit.Equal(t, "k2", k2[:], "9bc8dfd201001c3a8c60a933b865a864e25e39153c6b2903869eb3938ab5b739")
}

// Origin: upstream's own test, with our intermediate values; protocol 1 section 8.2.
func TestVectorName(t *testing.T) {
	record := testkit.Hex(t, "0ba76cbfdb6dc8f950da57ae781912f31c8ad0c55dbf86b88cb0391f563261a9656571a817be4092969f8a78ee0fcee260424acb4a1f4bbdd27348b71de006b6152dd04ed11bf3c4")
	nonce := Nonce(record[NameSize:])
	record = record[:NameSize]
	for _, name := range []string{"jason.loki", "Jason.LOKI"} {
		hash, k := NameHash(name), nameKey(name)
		testkit.Equal(t, "name hash", hash[:], "3c837736fc4c521f337530289ca7dc385eef4bee6e175b97c4034ddf8b8f6209")
		testkit.Equal(t, "record key", k[:], "792f132e57273019c71dcef5063790b586893908bee9f21bf1aae746ba30554c")
		owner, err := OpenName(name, record, &nonce)
		if err != nil {
			t.Fatal(err)
		}
		testkit.Equal(t, "owner", owner[:], "c5cb04f736113e5c891cdb3d62f4910e118081fc2497a98b7800ecbb11f0ffb5")
		if owner.String() != "azfoj73snr9f3neh5c6sf7rtbaeabyxhr1m4un5aydsmsrxo964o" {
			t.Errorf("owner = %s", owner)
		}
		if again := SealName(name, owner, &nonce); !bytes.Equal(again, record) {
			t.Errorf("sealed again: %x", again)
		}
	}
}

// Origin: protocol 1 section 6.5 (8 bytes), and hashlib.blake2b of Python 3.
func TestVectorHashes(t *testing.T) {
	p1 := testkit.Hex(t, "64313a34363a0102030404a6313a7033323a03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8313a")
	h8 := Hash8(p1, testkit.Hex(t, "76333a010002313a"))
	testkit.Equal(t, "Hash8", h8[:], "1f8f542ca9009361")
	h := Hash32([]byte("ab"), nil, []byte("c"))
	testkit.Equal(t, "Hash32", h[:], "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319")
	h = Keyed32([]byte("key"), []byte("a"), []byte("bc"))
	testkit.Equal(t, "Keyed32", h[:], "0330531d097355a3f72e80d55c1245ccf79f1704431c6e3887938320442c23c0")
}
