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
// The 1.0 handshake is in handshake10.go; what a Table does with the resulting keys is the same.

// Kinds of handshake messages: the value of the key "" of the outer dict.
const (
	kindInit   = 'i'
	kindAccept = 'a'
	kindSwitch = 's'
	kindOld    = 0 // a 1.0 init: it has no such key
)

// maxHandshake bounds a handshake body, in bytes. The largest is a path switch, 1526; the rest is for keys that later versions may add.
const maxHandshake = 4096

var (
	errHandshake   = errors.New("session: not a handshake message")
	errSignature   = errors.New("session: handshake: signature does not verify")
	errTag         = errors.New("session: handshake: tag 0")
	errSelf        = errors.New("session: handshake: from our own key")
	errSwitchMatch = errors.New("session: path switch does not open")
)

// keys is what a handshake ends with on either side. It is never printed.
type keys struct {
	out, in seal.Key
	peer    uint32 // the tag that the peer chose for what it receives
	old     bool   // of the 1.0 handshake: out and in are the same
}

// handshake is an outer message, taken apart but not opened. The slices are borrowed from the body.
type handshake struct {
	kind   byte
	box    []byte // init and accept
	sealed []byte // path switch: S; 1.0 init: x
	init   []byte // path switch: the init to use when the tag is not known, of either form; may be empty

	eph   key.Public // 1.0 init: k
	nonce seal.Nonce // 1.0 init: n
}

// parseHandshake reads the body of a message of type 0x02, or of a 1.0 init, tag and pivot id cut off. The list form of a path switch, which 1.0 peers use, is read too.
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
		k, n := d.Fixed("k", len(h.eph)), d.Fixed("n", len(h.nonce))
		h.kind, h.sealed = kindOld, d.Bytes("x")
		copy(h.eph[:], k)
		copy(h.nonce[:], n)
		return h, d.Finish()
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

// fits says whether an init may be sent on a path.
func (i *initiator) fits(path.ID) bool { return true }

// wipe forgets the ephemeral keys; i is of no use afterwards.
func (i *initiator) wipe() { i.eph.Wipe() }

// openedInit is the inside of an init of either form. m is borrowed.
type openedInit struct {
	remote key.Public // I or i
	x      [32]byte   // X or the outer k
	m      []byte     // M
	pivot  path.ID    // p: where the initiator is to be found
	tag    uint32     // t: what it wants on messages to it

	old bool     // the 1.0 form
	key seal.Key // what it is sealed with, if it is of that form
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
	return openedInit{remote: key.Public(remote), x: [32]byte(x), m: m, pivot: path.ID(p), tag: uint32(tag)}, signed, sig, nil
}

// openInit opens the box of an init to self. allowed, asked before the signature is verified, saves that cost for remotes that are refused; false
// gives errRefused.
func openInit(self *key.Secret, box []byte, allowed func(key.Public) bool) (in openedInit, err error) {
	inner, err := seal.OpenBox(self, box)
	if err != nil {
		return in, fmt.Errorf("session: init: %w", err)
	}
	got, signed, sig, err := parseInit(inner)
	if err != nil {
		return in, err
	}
	if err := got.check(self, signed, sig, allowed); err != nil {
		return in, err
	}
	return got, nil
}

// open opens the init h; see openInit.
func (h *handshake) open(self *key.Secret, allowed func(key.Public) bool) (openedInit, error) {
	if h.kind == kindOld {
		return openOldInit(self, h, allowed)
	}
	return openInit(self, h.box, allowed)
}

// check says why an init that was opened is not taken.
func (in *openedInit) check(self *key.Secret, signed, sig []byte, allowed func(key.Public) bool) error {
	switch {
	case in.remote == self.Public():
		return errSelf
	case !allowed(in.remote):
		return errRefused
	case !in.remote.Verify(signed, sig):
		return errSignature
	}
	return nil
}

// same says whether two inits are the same call, whatever the path that they came on.
func (in *openedInit) same(o *openedInit) bool {
	return in.remote == o.remote && in.tag == o.tag && in.x == o.x && in.old == o.old && in.key == o.key
}

// answer gives the body of the accept, 1275 to 1284 bytes, or the parameter of a 1.0 one, and the responder's keys; tag is what the initiator is to put on
// its messages to us, not 0. Errors: X or M is no key.
func (in *openedInit) answer(self *key.Secret, tag uint32) (accept []byte, ks keys, err error) {
	if in.old {
		return oldAcceptParam(tag), keys{out: in.key, in: in.key, peer: in.tag, old: true}, nil
	}
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

// pathSwitch gives the body of a path switch, with a 1.1 init 1517 to 1526 bytes: the session with keys ks goes on over the path whose terminal id is p. init
// is the whole init for a remote that has forgotten the session; list gives the form for remotes that take only 1.0 ones. The message must be sent with the nonce n.
func pathSwitch(ks *keys, n *seal.Nonce, p path.ID, init []byte, list bool) []byte {
	inner := ks.switchNonce(*n)
	sealed := sealControl(nil, &ks.out, &inner, methodSwitch, switchParam(p))
	dst := make([]byte, 0, len(sealed)+len(init)+30)
	if list {
		return append(bt.AppendBytes(bt.AppendBytes(append(dst, 'l'), sealed), init), 'e')
	}
	return bt.NewDict(dst).String("", "s").Bytes("S", sealed).Bytes("i", init).End()
}

// openSwitch opens the S of a path switch with the session's keys and the message's nonce, and gives p. sealed is not changed.
func openSwitch(sealed []byte, ks *keys, n *seal.Nonce) (p path.ID, err error) {
	inner := ks.switchNonce(*n)
	plain, ok := seal.Open(bytes.Clone(sealed), &ks.in, &inner)
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
