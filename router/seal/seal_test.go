package seal

import (
	"bytes"
	"fmt"
	"reflect"
	"sync"
	"testing"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/poly1305"

	"lokinetd/router/key"
	"lokinetd/router/testkit"
)

// flips calls f with b under each of its bits flipped in turn.
func flips(b []byte, f func(i int, bad []byte)) {
	for i := range 8 * len(b) {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		f(i, bad)
	}
}

func TestSealOpen(t *testing.T) {
	for _, f := range cipherForms {
		t.Run(f.name, func(t *testing.T) { testSealOpen(t, f.seal, f.open) })
	}
}

func testSealOpen(t *testing.T, Seal func([]byte, *Key, *Nonce), Open func([]byte, *Key, *Nonce) ([]byte, bool)) {
	r := testkit.Rand(t)
	for _, n := range []int{0, 1, 15, 16, 17, 100} {
		k, nonce, msg := Key(r.Bytes(32)), Nonce(r.Bytes(24)), r.Bytes(n)
		whole := append(append([]byte("before"), msg...), "room for the tagbehind"...)
		data := whole[6 : 6+n+TagSize]
		Seal(data, &k, &nonce)
		if string(whole[:6]) != "before" || string(whole[6+n+TagSize:]) != "behind" {
			t.Fatalf("%d bytes: Seal writes outside of data: %q", n, whole)
		}
		sealed := bytes.Clone(data)

		fails := func(what string, data []byte, k Key, nonce Nonce) {
			t.Helper()
			if got, ok := Open(bytes.Clone(data), &k, &nonce); ok || got != nil {
				t.Errorf("%d bytes: opens with %s", n, what)
			}
		}
		flips(sealed, func(i int, bad []byte) { fails(fmt.Sprintf("bit %d flipped", i), bad, k, nonce) })
		flips(k[:], func(i int, bad []byte) { fails(fmt.Sprintf("bit %d of the key flipped", i), sealed, Key(bad), nonce) })
		flips(nonce[:], func(i int, bad []byte) { fails(fmt.Sprintf("bit %d of the nonce flipped", i), sealed, k, Nonce(bad)) })
		for cut := range sealed {
			fails(fmt.Sprintf("%d bytes of it", cut), sealed[:cut], k, nonce)
		}
		fails("a byte more", append(bytes.Clone(sealed), 0), k, nonce)
		fails("no bytes", nil, k, nonce)

		body, ok := Open(data, &k, &nonce)
		if !ok || !bytes.Equal(body, msg) || (n > 0 && &body[0] != &data[0]) {
			t.Errorf("%d bytes: %x, %v", n, body, ok)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("Seal without room for the tag does not panic")
		}
	}()
	Seal(make([]byte, TagSize-1), new(Key), new(Nonce))
}

// Many goroutines share the engines.
func TestVectorConcurrency(t *testing.T) {
	r := testkit.Rand(t)
	var wg sync.WaitGroup
	for range 8 {
		k, nonce, msg := Key(r.Bytes(32)), Nonce(r.Bytes(24)), r.Bytes(1400)
		want := bytes.Clone(msg)
		plainStream(want, &k, &nonce)
		wg.Go(func() {
			for range 200 {
				data := append(bytes.Clone(msg), make([]byte, TagSize)...)
				vectorStream(data[:1400], &k, &nonce)
				if !bytes.Equal(data[:1400], want) {
					t.Error("Stream: wrong result")
				}
				vectorSeal(data, &k, &nonce)
				if body, ok := vectorOpen(data, &k, &nonce); !ok || !bytes.Equal(body, want) {
					t.Error("Seal, Open: wrong result")
				}
			}
		})
	}
	wg.Wait()
}

// A message goes up a path of four hops and a reply comes down, with the nonce mutated at each hop (protocol 1 section 4.6).
func TestOnionNonces(t *testing.T) {
	r := testkit.Rand(t)
	hops := make([]Hop, 4)
	for i := range hops {
		hops[i] = NewHop(Key(r.Bytes(32)))
	}
	msg := r.Bytes(200)
	data, nonce := bytes.Clone(msg), Nonce(r.Bytes(24))
	start := nonce
	for i := len(hops) - 1; i >= 0; i-- { // the client
		Stream(data, &hops[i].Key, &nonce)
		Xor(&nonce, &hops[i].Xor)
	}
	if bytes.Equal(data, msg) || nonce == start {
		t.Error("nothing is encrypted")
	}
	for i := range hops { // the relays
		Xor(&nonce, &hops[i].Xor)
		Stream(data, &hops[i].Key, &nonce)
	}
	if !bytes.Equal(data, msg) || nonce != start {
		t.Errorf("up the path: %x, want %x", data, msg)
	}
}

// Two public keys that must be refused wherever they are multiplied, and one that is not canonical. router/key's test has all of them.
func badKeys(t testing.TB) []key.Public {
	return []key.Public{
		{},     // order 4
		{0: 1}, // the identity
		key.Public(testkit.Hex(t, "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")), // order 8
		key.Public(testkit.Hex(t, "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f")), // the identity again
		{0: 2}, // not on the curve
	}
}

func TestPathKeys(t *testing.T) {
	r := testkit.Rand(t)
	client, relay := key.FromSeed([32]byte(r.Bytes(32))), key.FromSeed([32]byte(r.Bytes(32)))
	nonce := Nonce(r.Bytes(24))
	c, err := ClientPathKey(client, relay.Public(), &nonce)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := RelayPathKey(relay, client.Public(), &nonce); err != nil || got != c {
		t.Errorf("the two sides differ: %v", err)
	}
	if got, err := RelayPathKey(client, relay.Public(), &nonce); err != nil || got == c {
		t.Errorf("the roles do not matter: %v", err)
	}
	flips(nonce[:], func(i int, bad []byte) {
		if got, err := ClientPathKey(client, relay.Public(), (*Nonce)(bad)); err != nil || got == c {
			t.Errorf("bit %d of the nonce does not matter: %v", i, err)
		}
	})
	for _, bad := range badKeys(t) {
		if k, err := ClientPathKey(client, bad, &nonce); err == nil || k != (Key{}) {
			t.Errorf("a client takes the key %x", bad[:])
		}
		if k, err := RelayPathKey(relay, bad, &nonce); err == nil || k != (Key{}) {
			t.Errorf("a relay takes the key %x", bad[:])
		}
	}
}

// lowOrder are u-coordinates for which X25519 gives zeros whatever the secret. Origin: RFC 7748 section 6.1 and cr.yp.to/ecdh.html.
var lowOrder = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
	"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
}

func TestBox(t *testing.T) {
	r := testkit.Rand(t)
	to := key.FromSeed([32]byte(r.Bytes(32)))
	for _, n := range []int{0, 1, 32, 33, 100} {
		msg := r.Bytes(n)
		sealed, err := Box(to.Public(), msg)
		if err != nil || len(sealed) != n+BoxOverhead {
			t.Fatalf("%d bytes in a box of %d: %v", n, len(sealed), err)
		}
		want := bytes.Clone(sealed)
		got, err := OpenBox(to, sealed)
		if err != nil || !bytes.Equal(got, msg) || !bytes.Equal(sealed, want) {
			t.Errorf("%d bytes: %x, %v", n, got, err)
		}
		fails := func(what string, to *key.Secret, sealed []byte) {
			t.Helper()
			if msg, err := OpenBox(to, sealed); err == nil || msg != nil {
				t.Errorf("%d bytes: opens with %s", n, what)
			}
		}
		flips(sealed, func(i int, bad []byte) { fails(fmt.Sprintf("bit %d flipped", i), to, bad) })
		for cut := range sealed {
			fails(fmt.Sprintf("%d bytes of it", cut), to, sealed[:cut])
		}
		fails("a byte more", to, append(bytes.Clone(sealed), 0))
		fails("another's key", key.Generate(), sealed)
		again, err := Box(to.Public(), msg)
		if err != nil || bytes.Equal(again[:32], sealed[:32]) {
			t.Errorf("%d bytes: the ephemeral key comes twice: %v", n, err)
		}
	}
	for _, bad := range badKeys(t) {
		if b, err := Box(bad, []byte("m")); err == nil || b != nil {
			t.Errorf("a box for the key %x", bad[:])
		}
	}
	// Anyone can make a box around an ephemeral of small order: its shared secret is zeros. It must not open, though its tag is right.
	own := to.ECDH().PublicKey().Bytes()
	for _, h := range lowOrder {
		eph := testkit.Hex(t, h)
		forged := append(eph, make([]byte, TagSize)...)
		zeros, err := chacha20.HChaCha20(make([]byte, 32), make([]byte, 16))
		if err != nil {
			t.Fatal(err)
		}
		k, nonce := Key(zeros), Nonce(sum(24, nil, [][]byte{eph, own}))
		stream := make([]byte, 32+5)
		Stream(stream, &k, &nonce)
		body := stream[32:] // a message of zeros
		forged = append(forged, body...)
		poly1305.Sum((*[TagSize]byte)(forged[32:]), body, (*[32]byte)(stream))
		if _, err := OpenBox(to, forged); err == nil {
			t.Errorf("a forged box around %s opens", h)
		}
	}
}

func TestSession(t *testing.T) {
	i, r := secret(0).Public(), secret(0x20).Public()
	const tagI, tagR = 0x01020304, 0xf1f2f3f4
	e := NewEphemeral()
	resp, err := Respond(e.X(), e.M())
	if err != nil {
		t.Fatal(err)
	}
	if len(e.M()) != EncapsulationSize || len(resp.C) != CiphertextSize {
		t.Errorf("M of %d bytes, c of %d", len(e.M()), len(resp.C))
	}
	out, in, err := e.Keys(i, r, tagI, tagR, resp.Y, resp.C)
	if err != nil {
		t.Fatal(err)
	}
	rout, rin, err := resp.Keys(i, r, tagI, tagR)
	if err != nil || out != rin || in != rout || out == in {
		t.Errorf("the sides disagree: %v", err)
	}

	// All that is hashed or decapsulated matters; a ciphertext that was tampered with gives other keys, not an error.
	differs := func(what string, i, r key.Public, tagI, tagR uint32, y [32]byte, c []byte) {
		t.Helper()
		o, n, err := e.Keys(i, r, tagI, tagR, y, c)
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if o == out || n == in || o == in || n == out {
			t.Errorf("%s: the keys are the same", what)
		}
	}
	differs("identities swapped", r, i, tagI, tagR, resp.Y, resp.C)
	differs("tags swapped", i, r, tagR, tagI, resp.Y, resp.C)
	differs("another initiator", r, r, tagI, tagR, resp.Y, resp.C)
	differs("another responder", i, i, tagI, tagR, resp.Y, resp.C)
	differs("another tag", i, r, tagI, tagR+1, resp.Y, resp.C)
	differs("another Y", i, r, tagI, tagR, e.X(), resp.C)
	y := resp.Y
	y[31] |= 0x80 // the same point: X25519 ignores the bit, the hash does not
	differs("a bit of Y that X25519 ignores", i, r, tagI, tagR, y, resp.C)
	for n := range len(resp.C) {
		c := bytes.Clone(resp.C)
		c[n] ^= 1
		if n%64 == 0 || n == len(c)-1 {
			differs(fmt.Sprintf("byte %d of c changed", n), i, r, tagI, tagR, resp.Y, c)
		}
	}
	other, err := Respond(e.X(), e.M())
	if err != nil || other.Y == resp.Y || bytes.Equal(other.C, resp.C) {
		t.Errorf("a second response is the same: %v", err)
	}

	// Errors, after which the ephemeral keys can still be used.
	fails := func(what string, y [32]byte, c []byte) {
		t.Helper()
		if o, n, err := e.Keys(i, r, tagI, tagR, y, c); err == nil || o != (Key{}) || n != (Key{}) {
			t.Errorf("%s: no error", what)
		}
	}
	for _, h := range lowOrder {
		low := [32]byte(testkit.Hex(t, h))
		fails("Y "+h, low, resp.C)
		if got, err := Respond(low, e.M()); err == nil || got.C != nil {
			t.Errorf("answers X %s", h)
		}
	}
	for _, n := range []int{0, 1, CiphertextSize - 1, CiphertextSize + 1} {
		fails(fmt.Sprintf("c of %d bytes", n), resp.Y, make([]byte, n))
	}
	for _, n := range []int{0, 1, EncapsulationSize - 1, EncapsulationSize + 1} {
		if _, err := Respond(e.X(), make([]byte, n)); err == nil {
			t.Errorf("answers M of %d bytes", n)
		}
	}
	if _, err := Respond(e.X(), bytes.Repeat([]byte{0xff}, EncapsulationSize)); err == nil {
		t.Error("answers M of numbers that are not reduced")
	}
	if o, n, err := e.Keys(i, r, tagI, tagR, resp.Y, resp.C); err != nil || o != out || n != in {
		t.Errorf("after the errors: %v", err)
	}

	e.Wipe()
	e.Wipe()
	fails("wiped", resp.Y, resp.C)
	secrets := resp.in()
	resp.Wipe()
	resp.Wipe()
	if _, _, err := resp.Keys(i, r, tagI, tagR); err == nil {
		t.Error("a wiped response gives keys")
	}
	if !bytes.Equal(append(secrets.dh, secrets.ks...), make([]byte, 64)) {
		t.Error("the response's secrets are not overwritten")
	}
	var zero Response // what a failed Respond gives
	if _, _, err := zero.Keys(i, r, tagI, tagR); err == nil {
		t.Error("a zero response gives keys")
	}
	zero.Wipe()
}

// A Response keeps nothing of the buffer that M was read from.
func TestRespondCopies(t *testing.T) {
	e := NewEphemeral()
	m := bytes.Clone(e.M())
	resp, err := Respond(e.X(), m)
	if err != nil {
		t.Fatal(err)
	}
	clear(m)
	i, r := secret(0).Public(), secret(0x20).Public()
	out, in, err := e.Keys(i, r, 1, 2, resp.Y, resp.C)
	if err != nil {
		t.Fatal(err)
	}
	if o, n, err := resp.Keys(i, r, 1, 2); err != nil || o != in || n != out {
		t.Errorf("the sides disagree: %v", err)
	}
}

func TestNames(t *testing.T) {
	owner := secret(0).Public()
	nonce := Nonce(testkit.Counting(0x40, 24))
	record := SealName("jason.loki", owner, &nonce)
	if len(record) != NameSize {
		t.Errorf("a record of %d bytes", len(record))
	}
	want := bytes.Clone(record)
	if got, err := OpenName("jason.loki", record, &nonce); err != nil || got != owner || !bytes.Equal(record, want) {
		t.Errorf("%v, %v", got, err)
	}
	fails := func(what, name string, record []byte, nonce Nonce) {
		t.Helper()
		if got, err := OpenName(name, record, &nonce); err == nil || got != (key.Public{}) {
			t.Errorf("%s: %v", what, got)
		}
	}
	flips(record, func(i int, bad []byte) { fails(fmt.Sprintf("bit %d flipped", i), "jason.loki", bad, nonce) })
	flips(nonce[:], func(i int, bad []byte) {
		fails(fmt.Sprintf("bit %d of the nonce flipped", i), "jason.loki", record, Nonce(bad))
	})
	for cut := range record {
		fails(fmt.Sprintf("%d bytes", cut), "jason.loki", record[:cut], nonce)
	}
	fails("a byte more", "jason.loki", append(bytes.Clone(record), 0), nonce)
	for _, name := range []string{"", "jason", "jason.sesh", "jasom.loki", "jason.loki.", "\u212aason.loki"} {
		fails(name, name, record, nonce)
	}
	if NameHash("kelvin.loki") == NameHash("\u212aelvin.loki") {
		t.Error("the Kelvin sign is lowered to k")
	}
}

func TestHashLimits(t *testing.T) {
	if Keyed32(make([]byte, 64)) == Keyed32(make([]byte, 63)) {
		t.Error("the key's length does not matter")
	}
	defer func() {
		if recover() == nil {
			t.Error("a key of 65 bytes does not panic")
		}
	}()
	Keyed32(make([]byte, 65))
}

// Whatever is done with keys, or with something that holds them in exported fields, none of it comes out.
func TestSecretsStayHidden(t *testing.T) {
	k := Key(testkit.Counting(0x51, 32))
	hop := NewHop(k)
	e := NewEphemeral()
	resp, err := Respond(e.X(), e.M())
	if err != nil {
		t.Fatal(err)
	}
	parts := [][]byte{k[:], hop.Xor[:], resp.in().dh, resp.in().ks, e.in().x.Bytes(), e.in().m.Bytes()}
	type exported struct {
		K  Key
		P  *Key
		H  Hop
		E  *Ephemeral
		EV Ephemeral
		R  *Response
		RV Response
	}
	type unexported struct {
		e  *Ephemeral
		ev Ephemeral
		r  *Response
		rv Response
	}
	all := exported{k, &k, hop, e, *e, &resp, resp}
	values := []any{
		k, &k, hop, &hop, e, *e, &resp, resp, all, &all, unexported{e, *e, &resp, resp}, &unexported{e, *e, &resp, resp},
		[]Key{k}, []Hop{hop}, map[string]Key{"k": k}, [2]Hop{hop, hop},
	}
	for _, v := range values {
		testkit.Hidden(t, v, parts)
	}
	for _, v := range []any{k, hop, e, resp} {
		testkit.Unencodable(t, v)
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[Ephemeral](), reflect.TypeFor[Response]()} {
		if typ.Comparable() {
			t.Errorf("%v is comparable", typ)
		}
	}
}
