package session

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"math"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

// The 1.0 handshake (protocol 4 section 3.7), for remotes that know no other:
//
//	initiator                                                 responder
//	init(p)       -- d 1:k ephemeral  1:n N  1:x AEAD{i p t ~} e -->   openOldInit, answer: the key
//	accept: keys <-- control message session_accept {t}, under the key --
//	pathSwitch    -- l S init e -->                                    openSwitch, or openOldInit of the init inside
//
// The key is that of a path build (protocol 1 section 4.5): of an ephemeral and the responder's identity, under N. It is the session's in both
// directions. Four things follow, which the 1.1 handshake does better:
//
//   - N is the nonce of the init too, so an init is made for one path and sent on no other: there would be two messages under one nonce
//   - a message of ours that is sent back to us opens, so our own nonces are remembered with the remote's (Table.nonce)
//   - an old init makes the same key again, so the responder remembers those that it answered (Table.oldInits)
//   - the signature says neither whom the initiator calls nor with what key. Whoever was called can call others in its name: that a call of this
//     form came from a remote is no proof for who that remote is. And who learns the responder's identity key later reads all that was said
//
// An established session of the 1.1 handshake is therefore never replaced by one of this, and with a remote that speaks 1.1 none is held that it called for in this form.

var errOldPath = errors.New("session: a 1.0 init is for one path only")

// oldInitiator is the calling half of one 1.0 handshake: one own tag, one key, one remote, one path.
type oldInitiator struct {
	self   *key.Secret
	remote key.Public
	tag    uint32
	p      path.ID
	key    seal.Key
	body   []byte // made by the first init
}

// init gives the body of an init, to be sent as a control message with tag 0, any number of times, on the path whose terminal id is p, the same each time.
// The error is that remote is no key, or p another path.
func (i *oldInitiator) init(p path.ID) ([]byte, error) {
	if !i.fits(p) {
		return nil, errOldPath
	}
	if i.body != nil {
		return i.body, nil
	}
	eph := key.Generate()
	var n seal.Nonce
	rand.Read(n[:])
	k, err := seal.ClientPathKey(eph, i.remote, &n)
	if err != nil {
		return nil, fmt.Errorf("session: init: %w", err)
	}
	self, pub := i.self.Public(), eph.Public()
	b := bt.NewDict(make([]byte, 0, 200)).Bytes("i", self[:]).Bytes("p", p[:]).Uint("t", uint64(i.tag))
	sig := i.self.Sign(b.Prefix())
	x := append(b.Bytes("~", sig[:]).End(), make([]byte, seal.TagSize)...)
	seal.Seal(x, &k, &n)
	i.p, i.key = p, k
	i.body = bt.NewDict(make([]byte, 0, len(x)+90)).Bytes("k", pub[:]).Bytes("n", n[:]).Bytes("x", x).End()
	return i.body, nil
}

// fits says whether an init may be sent on a path.
func (i *oldInitiator) fits(p path.ID) bool { return i.body == nil || i.p == p }

// open opens a control message that came to i's tag, in place, and gives the keys: it must be the accept.
func (i *oldInitiator) open(sealed []byte, n *seal.Nonce) (ks keys, err error) {
	if i.body == nil {
		return ks, errHandshake
	}
	plain, ok := seal.Open(sealed, &i.key, n)
	if !ok {
		return ks, errSignature
	}
	method, param, err := parseControl(plain)
	switch {
	case err != nil:
		return ks, err
	case method != methodAccept:
		return ks, errHandshake
	}
	return i.accept(param)
}

// accept takes the parameter of an accept that opened under i's key.
func (i *oldInitiator) accept(param []byte) (ks keys, err error) {
	tag, err := parseOldAccept(param)
	if err != nil {
		return ks, err
	}
	return keys{out: i.key, in: i.key, peer: tag, old: true}, nil
}

// wipe forgets the key; i is of no use afterwards.
func (i *oldInitiator) wipe() { i.key, i.body = seal.Key{}, nil }

// oldAcceptParam gives the parameter of an accept.
func oldAcceptParam(tag uint32) []byte {
	return bt.NewDict(make([]byte, 0, 20)).Uint("t", uint64(tag)).End()
}

func parseOldAccept(param []byte) (uint32, error) {
	d := bt.ReadDict(param)
	tag := d.Uint("t", math.MaxUint32)
	if err := d.Finish(); err != nil {
		return 0, fmt.Errorf("session: accept: %w", err)
	}
	if tag == 0 {
		return 0, errTag
	}
	return uint32(tag), nil
}

// parseOldInit reads the inside of a 1.0 init and does not verify it.
func parseOldInit(inner []byte) (in openedInit, signed, sig []byte, err error) {
	d := bt.ReadDict(inner)
	remote := d.Fixed("i", 32)
	p := d.Fixed("p", len(path.ID{}))
	tag := d.Uint("t", math.MaxUint32)
	signed, sig = d.Signature("~")
	if err := d.Finish(); err != nil {
		return in, nil, nil, fmt.Errorf("session: init: %w", err)
	}
	if tag == 0 {
		return in, nil, nil, errTag
	}
	return openedInit{remote: key.Public(remote), pivot: path.ID(p), tag: uint32(tag), old: true}, signed, sig, nil
}

// openOldInit opens a 1.0 init to self; allowed as for openInit. h is not changed.
func openOldInit(self *key.Secret, h *handshake, allowed func(key.Public) bool) (in openedInit, err error) {
	k, err := seal.RelayPathKey(self, h.eph, &h.nonce)
	if err != nil {
		return in, fmt.Errorf("session: init: %w", err)
	}
	inner, ok := seal.Open(bytes.Clone(h.sealed), &k, &h.nonce)
	if !ok {
		return in, errSignature
	}
	got, signed, sig, err := parseOldInit(inner)
	if err != nil {
		return in, err
	}
	if err := got.check(self, signed, sig, allowed); err != nil {
		return in, err
	}
	got.x, got.key = h.eph, k
	return got, nil
}

// switchNonce gives the nonce of S in a path switch whose message has the nonce n. In a session with 1.0 keys it is another one (protocol 3 section 7.3).
func (ks *keys) switchNonce(n seal.Nonce) seal.Nonce {
	if ks.old {
		for i := range n {
			n[i] ^= 0x42
		}
	}
	return n
}
