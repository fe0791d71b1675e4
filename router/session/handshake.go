package session

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

// The 1.1 handshake (protocol 4 sections 3.3 to 3.6):
//
//	initiator                                        responder
//	newInitiator
//	init(p)      -- d 0: 1:i  1:B box{I M X p t ~} e -->  openInit, Init.answer: keys
//	accept: keys <-- d 0: 1:a  1:B box{Y c t ~} e     --
//	pathSwitch   -- d 0: 1:s  1:S sealed  1:i init e -->  openSwitch, or openInit of the init inside
//
// These are pure functions of their arguments and of fresh randomness: no clock, no socket, no goroutine, nothing shared.
//
// One tag of an initiator belongs to one set of ephemeral keys, always: the init is sent again with another p, never with other keys. An
// accept, which names the init only by the tag that it is sent to, can thus never be opened with the wrong keys (section 3.9).
//
// Error contract: an error changes nothing. The initiator can be used again, with the next accept too. Keys are returned only after the other
// side's signature has been verified.
//
// The 1.0 handshake (section 3.7) would be a second initiator and a second answer beside these; what a Table does with the resulting keys is the same.

// Kinds of handshake messages: the value of the key "" of the outer dict.
const (
	kindInit   = 'i'
	kindAccept = 'a'
	kindSwitch = 's'
)

// maxHandshake bounds a handshake body, in bytes. The largest is a path switch, 1526; the rest is for keys that later versions may add.
const maxHandshake = 4096

var (
	errHandshake   = errors.New("session: not a handshake message")
	errSignature   = errors.New("session: handshake: signature does not verify")
	errTag         = errors.New("session: handshake: tag 0")
	errSelf        = errors.New("session: handshake: from our own key")
	errOldInit     = errors.New("session: handshake: 1.0 form")
	errSwitchMatch = errors.New("session: path switch does not open")
)

// keys is what a handshake ends with on either side. It is never printed.
type keys struct {
	out, in seal.Key
	peer    uint32 // the tag that the peer chose for what it receives
}

// handshake is an outer message, taken apart but not opened. The slices are borrowed from the body.
type handshake struct {
	kind   byte
	box    []byte // init and accept
	sealed []byte // path switch: S
	init   []byte // path switch: the init to use when the tag is not known; may be empty
}

// parseHandshake reads the body of a message of type 0x02, tag and pivot id cut off. The list form of a path switch, which 1.0 peers use, is read too.
func parseHandshake(body []byte) (h handshake, err error) {
	switch {
	case len(body) == 0 || len(body) > maxHandshake:
		return h, errHandshake
	case body[0] == 'l':
		l := bt.ReadList(body)
		h.kind, h.sealed, h.init = kindSwitch, l.Bytes(), l.Bytes()
		return h, l.Finish()
	}
	d := bt.ReadDict(body)
	kind, ok := d.OptBytes("")
	switch {
	case d.Err() != nil:
		return h, d.Err()
	case !ok:
		return h, errOldInit
	case len(kind) != 1:
		return h, errHandshake
	}
	h.kind = kind[0]
	switch h.kind {
	case kindInit, kindAccept:
		h.box = d.Bytes("B")
	case kindSwitch:
		h.sealed = d.Bytes("S")
		h.init, _ = d.OptBytes("i")
	default:
		return h, errHandshake
	}
	return h, d.Finish()
}

// outer gives the outer dict of an init or accept.
func outer(kind string, box []byte) []byte {
	return bt.NewDict(make([]byte, 0, len(box)+20)).String("", kind).Bytes("B", box).End()
}

// sign ends a dict with a signature and seals it for to.
func sign(b *bt.Builder, self *key.Secret, to key.Public) ([]byte, error) {
	sig := self.Sign(b.Prefix())
	return seal.Box(to, b.Bytes("~", sig[:]).End())
}

// initiator is the calling half of one handshake: one own tag, one set of ephemeral keys, one remote.
type initiator struct {
	self   *key.Secret
	remote key.Public
	tag    uint32
	eph    *seal.Ephemeral
}

// newInitiator makes fresh ephemeral keys. tag is what the remote puts on its messages to us; not 0.
func newInitiator(self *key.Secret, remote key.Public, tag uint32) *initiator {
	return &initiator{self: self, remote: remote, tag: tag, eph: seal.NewEphemeral()}
}

// init gives the body of an init, 1431 to 1440 bytes: to be sent on the path whose terminal id is p, with tag 0. It may be called any number of times.
// The error is that remote is no key.
func (i *initiator) init(p path.ID) ([]byte, error) {
	x, self := i.eph.X(), i.self.Public()
	b := bt.NewDict(make([]byte, 0, 1377)).
		Bytes("I", self[:]).
		Bytes("M", i.eph.M()).
		Bytes("X", x[:]).
		Bytes("p", p[:]).
		Uint("t", uint64(i.tag))
	box, err := sign(b, i.self, i.remote)
	if err != nil {
		return nil, fmt.Errorf("session: init: %w", err)
	}
	return outer("i", box), nil
}

// accept opens the box of an accept that came to i's tag.
func (i *initiator) accept(box []byte) (ks keys, err error) {
	inner, err := seal.OpenBox(i.self, box)
	if err != nil {
		return ks, fmt.Errorf("session: accept: %w", err)
	}
	a, err := parseAccept(inner)
	if err != nil {
		return ks, err
	}
	if !i.remote.Verify(a.signed, a.sig) {
		return ks, errSignature
	}
	ks.peer = a.tag
	ks.out, ks.in, err = i.eph.Keys(i.self.Public(), i.remote, i.tag, ks.peer, a.y, a.c)
	if err != nil {
		return keys{}, fmt.Errorf("session: accept: %w", err)
	}
	return ks, nil
}

// openedAccept is the inside of an accept; slices are borrowed.
type openedAccept struct {
	y           [32]byte // Y
	c           []byte   // c
	tag         uint32   // t
	signed, sig []byte
}

// parseAccept reads the inside of an accept and does not verify it.
func parseAccept(inner []byte) (a openedAccept, err error) {
	d := bt.ReadDict(inner)
	y := d.Fixed("Y", 32)
	c := d.Fixed("c", seal.CiphertextSize)
	tag := d.Uint("t", math.MaxUint32)
	signed, sig := d.Signature("~")
	if err := d.Finish(); err != nil {
		return a, fmt.Errorf("session: accept: %w", err)
	}
	if tag == 0 {
		return a, errTag
	}
	return openedAccept{[32]byte(y), c, uint32(tag), signed, sig}, nil
}

// wipe forgets the ephemeral keys; i is of no use afterwards.
func (i *initiator) wipe() { i.eph.Wipe() }

// openedInit is the inside of an init. m is borrowed.
type openedInit struct {
	remote key.Public // I
	x      [32]byte   // X
	m      []byte     // M
	pivot  path.ID    // p: where the initiator is to be found
	tag    uint32     // t: what it wants on messages to it
}

// parseInit reads the inside of an init and does not verify it.
func parseInit(inner []byte) (in openedInit, signed, sig []byte, err error) {
	d := bt.ReadDict(inner)
	remote := d.Fixed("I", 32)
	m := d.Fixed("M", seal.EncapsulationSize)
	x := d.Fixed("X", 32)
	p := d.Fixed("p", len(path.ID{}))
	tag := d.Uint("t", math.MaxUint32)
	signed, sig = d.Signature("~")
	if err := d.Finish(); err != nil {
		return in, nil, nil, fmt.Errorf("session: init: %w", err)
	}
	if tag == 0 {
		return in, nil, nil, errTag
	}
	return openedInit{key.Public(remote), [32]byte(x), m, path.ID(p), uint32(tag)}, signed, sig, nil
}

// openInit opens the box of an init to self. allowed, asked before the signature is verified, saves that cost for remotes that are refused; false
// gives errRefused.
func openInit(self *key.Secret, box []byte, allowed func(key.Public) bool) (in openedInit, err error) {
	inner, err := seal.OpenBox(self, box)
	if err != nil {
		return in, fmt.Errorf("session: init: %w", err)
	}
	got, signed, sig, err := parseInit(inner)
	switch {
	case err != nil:
		return in, err
	case got.remote == self.Public():
		return in, errSelf
	case !allowed(got.remote):
		return in, errRefused
	case !got.remote.Verify(signed, sig):
		return in, errSignature
	}
	return got, nil
}

// same says whether two inits are the same call, whatever the path that they came on.
func (in *openedInit) same(o *openedInit) bool {
	return in.remote == o.remote && in.tag == o.tag && in.x == o.x
}

// answer gives the body of the accept, 1275 to 1284 bytes, and the responder's keys; tag is what the initiator is to put on its messages to us, not 0.
// Errors: X or M is no key.
func (in *openedInit) answer(self *key.Secret, tag uint32) (accept []byte, ks keys, err error) {
	r, err := seal.Respond(in.x, in.m)
	if err != nil {
		return nil, ks, fmt.Errorf("session: answer: %w", err)
	}
	defer r.Wipe()
	ks.peer = in.tag
	ks.out, ks.in, err = r.Keys(in.remote, self.Public(), in.tag, tag)
	if err != nil {
		return nil, keys{}, fmt.Errorf("session: answer: %w", err)
	}
	b := bt.NewDict(make([]byte, 0, 1221)).
		Bytes("Y", r.Y[:]).
		Bytes("c", r.C).
		Uint("t", uint64(tag))
	box, err := sign(b, self, in.remote)
	if err != nil {
		return nil, keys{}, fmt.Errorf("session: answer: %w", err)
	}
	return outer("a", box), ks, nil
}

// pathSwitch gives the body of a path switch, 1517 to 1526 bytes: the session with key out goes on over the path whose terminal id is p. init
// is the whole init for a remote that has forgotten the session. n must be the nonce that the message is sent with.
func pathSwitch(out *seal.Key, n *seal.Nonce, p path.ID, init []byte) []byte {
	sealed := sealControl(nil, out, n, methodSwitch, switchParam(p))
	return bt.NewDict(make([]byte, 0, len(sealed)+len(init)+30)).String("", "s").Bytes("S", sealed).Bytes("i", init).End()
}

// openSwitch opens the S of a path switch with the session's in key and the message's nonce, and gives p. sealed is not changed.
func openSwitch(sealed []byte, in *seal.Key, n *seal.Nonce) (p path.ID, err error) {
	plain, ok := seal.Open(bytes.Clone(sealed), in, n)
	if !ok {
		return p, errSwitchMatch
	}
	method, param, err := parseControl(plain)
	if err != nil {
		return p, err
	}
	if method != methodSwitch {
		return p, errSwitchMatch
	}
	return parseSwitch(param)
}
