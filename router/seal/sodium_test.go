//go:build sodium

package seal_test

import (
	"crypto/mlkem"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"lokinetd/router/key"
	"lokinetd/router/seal"
	"lokinetd/router/seal/sodium"
)

// TestSodium compares keys and ciphers with libsodium's: what one side makes the other computes again or opens.
func TestSodium(t *testing.T) {
	peer := sodium.Start(t)
	for _, c := range []struct {
		name  string
		n     int
		check func(*sodium.Case) error
	}{
		{"conversion", 1000, conversion},
		{"point", 1000, point},
		{"signature", 500, signature},
		{"path-key", 500, pathKey},
		{"blinded", 500, blinded},
		{"box", 500, box},
		{"stream", 500, stream},
		{"aead", 500, aead},
		{"session", 200, sessionKeys},
		{"name", 200, nameRecord},
	} {
		t.Run(c.name, func(t *testing.T) { sodium.Check(t, peer, c.name, c.n, c.check) })
	}
}

func conversion(c *sodium.Case) error {
	seed := c.Seed()
	sec := key.FromSeed(seed)
	pub := sec.Public()
	x, err := pub.ECDH()
	if err != nil {
		return err
	}
	r := c.Must("ed", seed[:])
	return errors.Join(
		sodium.Same("public key", pub[:], r[0]),
		// The secret as it is kept has bits that clamping overwrites; libsodium's conversion has clamped it.
		sodium.Same("X25519 secret", clamp(sec.ECDH().Bytes()), r[1]),
		sodium.Same("X25519 public key", x.Bytes(), r[2]),
		sodium.Same("X25519 public key of the secret", sec.ECDH().PublicKey().Bytes(), r[2]),
	)
}

func clamp(b []byte) []byte {
	b[0] &= 248
	b[31] = b[31]&127 | 64
	return b
}

// smallOrder are encodings of points outside the prime-order subgroup.
var smallOrder = [][32]byte{
	{}, {1}, {31: 0x80}, {1, 31: 0x80},
	{0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},
	{0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05},
	{0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a},
}

// point: any 32 bytes. One in 16 is a key; a blinded one with a component of small order is none either.
func point(c *sodium.Case) error {
	p := key.Public(c.Bytes(32))
	if c.IntN(20) == 0 {
		p = smallOrder[c.IntN(len(smallOrder))]
	}
	x, err := p.ECDH()
	r, refused := c.Ask("edpub", p[:])
	if (err == nil) != (refused == nil) {
		return fmt.Errorf("%x: ours %v, theirs %v", p, err, refused)
	}
	if err != nil {
		return nil
	}
	return sodium.Same("X25519 public key", x.Bytes(), r[0])
}

func signature(c *sodium.Case) error {
	seed, msg := c.Seed(), c.Some(300)
	sec := key.FromSeed(seed)
	pub := sec.Public()
	sig := sec.Sign(msg)
	theirs := c.Must("sign", seed[:], msg)[0]
	if !pub.Verify(msg, theirs) {
		return errors.New("ours does not verify theirs")
	}
	return sodium.Same("signature", sig[:], theirs)
}

func pathKey(c *sodium.Case) error {
	client, relay, nonce := c.Seed(), c.Seed(), c.Nonce()
	clientSec, relaySec := key.FromSeed(client), key.FromSeed(relay)
	clientPub, relayPub := clientSec.Public(), relaySec.Public()

	k1, err1 := seal.ClientPathKey(clientSec, relayPub, &nonce)
	k2, err2 := seal.RelayPathKey(relaySec, clientPub, &nonce)
	hop := seal.NewHop(k1)
	r1 := c.Must("dh", []byte{1}, client[:], relayPub[:], nonce[:])
	r2 := c.Must("dh", []byte{0}, relay[:], clientPub[:], nonce[:])
	return errors.Join(err1, err2,
		sodium.Same("client's K", k1[:], r1[0]),
		sodium.Same("relay's K", k2[:], r2[0]),
		sodium.Same("X", hop.Xor[:], r1[1]),
	)
}

func blinded(c *sodium.Case) error {
	seed, msg := c.Seed(), c.Some(300)
	sec := key.FromSeed(seed)
	pub := sec.Public()
	fromPublic, err := pub.Blind()
	if err != nil {
		return err
	}
	fromSecret := sec.Blind().Public()
	sig := sec.Blind().Sign(msg)
	theirs := c.Must("blindsign", seed[:], msg)
	if !fromPublic.Verify(msg, theirs[1]) {
		return errors.New("ours does not verify theirs")
	}
	if _, err := c.Ask("verify", fromPublic[:], msg, sig[:]); err != nil {
		return err
	}
	return errors.Join(
		sodium.Same("blinded key from the public half", fromPublic[:], c.Must("blind", pub[:])[0]),
		sodium.Same("blinded key from the secret", fromSecret[:], theirs[0]),
		sodium.Same("signature", sig[:], theirs[1]),
	)
}

func box(c *sodium.Case) error {
	seed, msg := c.Seed(), c.Some(1500)
	sec := key.FromSeed(seed)
	pub := sec.Public()
	ours, err := seal.Box(pub, msg)
	if err != nil {
		return err
	}
	opened, err := c.Ask("unbox", seed[:], ours)
	if err != nil {
		return err
	}
	theirs := c.Must("box", pub[:], msg)[0]
	back, err := seal.OpenBox(sec, theirs)
	if err != nil {
		return err
	}
	theirs[c.IntN(len(theirs))] ^= 1 << c.IntN(8)
	_, ourErr := seal.OpenBox(sec, theirs)
	_, theirErr := c.Ask("unbox", seed[:], theirs)
	// X25519 ignores the highest bit of the ephemeral key, but the nonce is made of all of them.
	if ourErr == nil || theirErr == nil {
		return fmt.Errorf("a changed box: ours %v, theirs %v", ourErr, theirErr)
	}
	return errors.Join(sodium.Same("our box", msg, opened[0]), sodium.Same("their box", back, msg))
}

func stream(c *sodium.Case) error {
	k, nonce, data := seal.Key(c.Seed()), c.Nonce(), c.Some(3000)
	theirs := c.Must("stream", k[:], nonce[:], data)[0]
	seal.Stream(data, &k, &nonce)
	return sodium.Same("stream", data, theirs)
}

func aead(c *sodium.Case) error {
	k, nonce, msg := seal.Key(c.Seed()), c.Nonce(), c.Some(3000)
	ours := append(append([]byte(nil), msg...), make([]byte, seal.TagSize)...)
	seal.Seal(ours, &k, &nonce)
	theirs := c.Must("seal", k[:], nonce[:], msg)[0]
	if err := sodium.Same("sealed", ours, theirs); err != nil {
		return err
	}
	back, ok := seal.Open(theirs, &k, &nonce)
	if !ok {
		return errors.New("theirs does not open")
	}
	if err := sodium.Same("opened", back, msg); err != nil {
		return err
	}
	ours[c.IntN(len(ours))] ^= 1 << c.IntN(8)
	_, refused := c.Ask("open", k[:], nonce[:], ours)
	if _, ok := seal.Open(ours, &k, &nonce); ok || refused == nil {
		return fmt.Errorf("a changed message: ours %v, theirs %v", ok, refused)
	}
	return nil
}

// sessionKeys: libsodium plays the responder, then the initiator; it has no ML-KEM, so it is given that secret.
func sessionKeys(c *sodium.Case) error {
	i, r, theirs := key.Public(c.Bytes(32)), key.Public(c.Bytes(32)), c.Bytes(32)
	tagI, tagR := c.Uint32(), c.Uint32()
	number := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	theirX := c.Must("x", theirs)[0]

	initiator := seal.NewEphemeral()
	x := initiator.X()
	ek, err := mlkem.NewEncapsulationKey768(initiator.M())
	if err != nil {
		return err
	}
	ks, ct := ek.Encapsulate()
	out, in, err := initiator.Keys(i, r, tagI, tagR, [32]byte(theirX), ct)
	want := c.Must("session", theirs, x[:], i[:], r[:], number(tagI), number(tagR), x[:], theirX, ks, initiator.M())
	if err := errors.Join(err, sodium.Same("initiator's k1", out[:], want[0]), sodium.Same("initiator's k2", in[:], want[1])); err != nil {
		return err
	}

	dk, err := mlkem.GenerateKey768()
	if err != nil {
		return err
	}
	m := dk.EncapsulationKey().Bytes()
	responder, err := seal.Respond([32]byte(theirX), m)
	if err != nil {
		return err
	}
	if ks, err = dk.Decapsulate(responder.C); err != nil {
		return err
	}
	out, in, err = responder.Keys(i, r, tagI, tagR)
	want = c.Must("session", theirs, responder.Y[:], i[:], r[:], number(tagI), number(tagR), theirX, responder.Y[:], ks, m)
	return errors.Join(err, sodium.Same("responder's k1", in[:], want[0]), sodium.Same("responder's k2", out[:], want[1]))
}

func nameRecord(c *sodium.Case) error {
	name := make([]byte, 1+c.IntN(60))
	for i := range name {
		name[i] = "abcdefghijklmnopqrstuvwxyz0123456789-."[c.IntN(38)]
	}
	name = append(name, ".loki"...)
	owner, nonce := key.Public(c.Bytes(32)), c.Nonce()
	r := c.Must("name", name, owner[:], nonce[:])
	hash := seal.NameHash(string(name))
	back, err := seal.OpenName(string(name), r[1], &nonce)
	return errors.Join(err,
		sodium.Same("hash", hash[:], r[0]),
		sodium.Same("record", seal.SealName(string(name), owner, &nonce), r[1]),
		sodium.Same("owner", back[:], owner[:]),
	)
}
