package session

import (
	"bytes"
	"testing"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

// FuzzOpened: anybody can make a key of his own and seal and sign for us what he likes. Whatever is inside, nothing panics, and what is taken for somebody's was
// signed by that one.
//
// Decoders: openInit openOldInit handshake.open openedInit.check openedInit.answer initiator.accept oldInitiator.open oldInitiator.accept openSwitch
func FuzzOpened(f *testing.F) {
	caller := newInitiator(bob, alice.Public(), 77)
	_, own, init, accept := shake(f, newInitiator(alice, bob.Public(), 5), bob, 6)
	inside := func(to *key.Secret, box []byte) []byte {
		inner, err := seal.OpenBox(to, box)
		if err != nil {
			f.Fatal(err)
		}
		return inner[:len(inner)-len("1:~64:")-64-1]
	}
	_, _, _, forBob := shake(f, caller, alice, 9)
	self, other, n := alice.Public(), carol.Public(), fillNonce(3)
	oldInit := func(k key.Public, tag uint64) []byte {
		return bt.NewDict(nil).Bytes("i", k[:]).Bytes("p", make([]byte, 16)).Uint("t", tag).Prefix()
	}
	dict := func(method string, param []byte) []byte {
		return bt.NewDict(nil).String("e", method).Bytes("p", param).End()
	}
	for _, signed := range []bool{true, false} {
		f.Add(uint8(0), signed, inside(bob, box(f, init, kindInit)))
		f.Add(uint8(1), signed, inside(bob, box(f, forBob, kindAccept)))
		f.Add(uint8(2), signed, oldInit(self, 5))
	}
	f.Add(uint8(0), true, inside(alice, box(f, accept, kindAccept)))
	f.Add(uint8(1), true, inside(bob, box(f, init, kindInit)))
	noKey := inside(bob, box(f, init, kindInit))
	for i := range 32 {
		noKey[len("d1:I32:")+32+len("1:M1184:")+seal.EncapsulationSize+len("1:X32:")+i] = 0
	}
	f.Add(uint8(0), true, noKey)
	f.Add(uint8(0), true, []byte{})
	unsigned := "1:~64:" + string(make([]byte, 64)) + "e"
	toBob := inside(bob, box(f, forBob, kindAccept))
	f.Add(uint8(0), false, append(inside(bob, box(f, init, kindInit)), unsigned...))
	f.Add(uint8(1), false, append(bytes.Clone(toBob), unsigned...))
	clear(toBob[len("d1:Y32:"):][:32])
	f.Add(uint8(1), true, toBob)
	ofBob := inside(bob, box(f, init, kindInit))
	us := bob.Public()
	copy(ofBob[len("d1:I32:"):], us[:])
	f.Add(uint8(0), true, ofBob)
	f.Add(uint8(2), true, oldInit(other, 5))
	f.Add(uint8(2), true, oldInit(bob.Public(), 5))
	f.Add(uint8(2), true, oldInit(self, 0))
	f.Add(uint8(3), true, dict(methodAccept, oldAcceptParam(5)))
	f.Add(uint8(3), true, dict(methodAccept, oldAcceptParam(0)))
	f.Add(uint8(3), true, dict(methodClose, nil))
	f.Add(uint8(3), true, []byte("de"))
	f.Add(uint8(3), false, []byte("de"))
	f.Add(uint8(4), true, dict(methodSwitch, switchParam(fillID(1))))
	f.Add(uint8(4), true, dict(methodClose, switchParam(fillID(1))))
	f.Add(uint8(4), true, dict(methodSwitch, []byte("de")))
	f.Add(uint8(4), true, []byte("de"))
	f.Add(uint8(4), false, []byte("de"))
	eph := key.FromSeed(fill(0xee))
	keyless := oldInitiator{self: bob, remote: alice.Public(), tag: 8}
	f.Fuzz(func(t *testing.T, kind uint8, signed bool, inner []byte) {
		if len(inner) > maxHandshake {
			return
		}
		onlyAlice := func(k key.Public) bool { return k == alice.Public() }
		full := append([]byte{}, inner...)
		if sig := alice.Sign(inner); signed && kind%5 < 3 {
			full = append(append(append(full, "1:~64:"...), sig[:]...), 'e')
		}
		sealed := func(k *seal.Key) []byte {
			b := append(full, make([]byte, seal.TagSize)...)
			seal.Seal(b, k, &n)
			if !signed {
				b[len(b)-1] ^= 1
			}
			return b
		}
		taken := func(in openedInit, err error) {
			if err != nil {
				return
			}
			if !signed || in.remote != alice.Public() || in.tag == 0 {
				t.Fatalf("taken: %+v", in)
			}
			if body, ks, err := in.answer(bob, 1); err == nil && (ks.peer != in.tag || ks.out == seal.Key{} || ks.in == seal.Key{} || len(body) == 0 || (ks.in == ks.out) != in.old) {
				t.Fatalf("answered: %+v", ks)
			}
		}
		switch kind % 5 {
		case 0:
			b, err := seal.Box(bob.Public(), full)
			if err != nil {
				t.Fatal(err)
			}
			taken((&handshake{kind: kindInit, box: b}).open(bob, onlyAlice))
			if _, err := openInit(carol, b, everybody); err == nil {
				t.Fatal("another one opens it")
			}
		case 1:
			b, err := seal.Box(bob.Public(), full)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := caller.accept(b[1:]); err == nil {
				t.Fatal("accepted what does not open")
			}
			if ks, err := caller.accept(b); err == nil && (!signed || ks.peer == 0 || ks.in == ks.out) || err != nil && ks != (keys{}) && ks.peer == 0 {
				t.Fatalf("accepted: %+v, %v", ks, err)
			}
		case 2:
			k, err := seal.ClientPathKey(eph, bob.Public(), &n)
			if err != nil {
				t.Fatal(err)
			}
			b := append(full, make([]byte, seal.TagSize)...)
			seal.Seal(b, &k, &n)
			h := handshake{kind: kindOld, sealed: b, eph: eph.Public(), nonce: n}
			taken(h.open(bob, onlyAlice))
			h.eph, h.sealed = key.Public{}, b[:len(b)-1]
			if _, err := h.open(bob, onlyAlice); err == nil {
				t.Fatal("taken under no key")
			}
			if h.eph = alice.Public(); len(b) > 0 {
				if _, err := h.open(bob, onlyAlice); err == nil {
					t.Fatal("taken under another key")
				}
			}
		case 3:
			if _, err := keyless.open(sealed(&seal.Key{}), &n); err == nil {
				t.Fatal("accepted what was not asked")
			}
			i := oldInitiator{self: bob, remote: alice.Public(), tag: 8}
			if _, err := i.init(fillID(1)); err != nil {
				t.Fatal(err)
			}
			if ks, err := i.open(sealed(&i.key), &n); err == nil && (!signed || ks.peer == 0 || !ks.old) {
				t.Fatalf("accepted: %+v", ks)
			}
		case 4:
			b := sealed(&own.in)
			if p, err := openSwitch(b, &own, &n); err == nil && !signed || err != nil && p != (path.ID{}) {
				t.Fatalf("switched to %v, %v", p, err)
			}
		}
	})
}

// FuzzSession: a remote with which we have a session says anything under its keys. Nothing panics and no buffer is lost; only packets are delivered, once each, and the remote can neither
// make sessions nor touch another one's.
//
// Decoders: Table.datagram Table.control Table.switched Table.pinged Table.ponged
func FuzzSession(f *testing.F) {
	_, own, init, _ := shake(f, newInitiator(alice, bob.Public(), 5), bob, 6)
	dict := func(method string, param []byte) []byte {
		return bt.NewDict(nil).String("e", method).Bytes("p", param).End()
	}
	for kind := range uint8(32) {
		for _, plain := range [][]byte{
			nil, {0}, {1}, []byte("packet\x00"), []byte("packet\x01"), []byte("packet\x02"), []byte("de"), dict(methodClose, nil), dict(methodAccept, oldAcceptParam(5)), dict(methodContact, []byte("de")),
			dict(methodSwitch, switchParam(fillID(1))), dict(methodSwitch, switchParam(fillID(2))), dict(methodSwitch, nil), dict("other", nil), dict(methodPing, []byte("de")), dict(methodPong, []byte("de")),
			dict(methodPing, bt.NewDict(nil).Uint("n", 1).Bytes("p", make([]byte, 16)).End()), dict(methodPong, []byte("d1:ni1e1:ri0ee")), dict(methodPong, []byte("d1:ni2e1:ri1ee")), init,
		} {
			f.Add(kind, plain)
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, plain []byte) {
		if len(plain) > packet.MaxData-seal.TagSize-tagSize {
			return
		}
		before, delivered := packet.InUse(), 0
		b := newTable(Config{Self: bob, Accept: everybody, Deliver: func(from key.Address, b *packet.Buffer) {
			if delivered++; from.Key != alice.Public() || len(b.Data) != len(plain)-1 || len(b.Data) == 0 {
				t.Errorf("%d bytes of %v", len(b.Data), from)
			}
			b.Release()
		}})
		now := time.Now()
		session := func(of key.Public, tag uint32, ks keys) *session {
			s := &session{r: b.remote(key.Address{Key: of}), own: tag, keys: ks, since: now, outbound: kind&4 != 0}
			s.route.Store(&route{via: sink{}, since: b.at(now.Add(time.Hour))}) // a lost switch would be sent again, which takes a whole call
			b.add(s, now)
			return s
		}
		via := carrier(sink{})
		if s := session(alice.Public(), 6, own); s.outbound { // and called, with a ping on its way
			at := &sinkPath{}
			c := &call{r: s.r, session: s}
			c.probe.sent = []ping{{n: 1, over: at, at: now}, {n: 2, over: &sinkPath{}, at: now}}
			if c.probe.tries = int(kind >> 4 & 1); kind&8 != 0 {
				c.path = at
			}
			s.r.call, via = c, at
		}
		session(carol.Public(), 7, keys{out: fill(1), in: fill(2), peer: 3})
		b.datagram(sink{}, buffer(plain[:min(len(plain), tagSize-1)], seal.Nonce{}))
		n := fillNonce(9)
		inner := own.switchNonce(n)
		sealed := append(append([]byte{}, plain...), make([]byte, seal.TagSize)...)
		seal.Seal(sealed, &own.in, &inner)
		for tag := uint32(6); tag < 9; tag++ { // its own, another one's, nobody's
			for range 2 { // the second is a copy
				switch kind & 3 {
				case 0:
					b.datagram(via, buffer(message(sealed, tag, nil), n))
				case 1:
					b.controlled(via, path.TypeControl, message(sealed, tag, nil), n)
				case 2:
					b.controlled(via, path.TypeHandshake, message(bt.NewDict(nil).String("", "s").Bytes("S", sealed).Bytes("i", nil).End(), tag, nil), n)
				case 3: // the rest is the init for who does not know the session
					b.controlled(via, path.TypeHandshake, message(bt.NewDict(nil).String("", "s").Bytes("S", []byte("S")).Bytes("i", plain).End(), tag, nil), n)
				}
			}
		}
		if b.find(7) == nil {
			t.Error("another one's session is gone")
		}
		if delivered > 1 || delivered == 1 && kind&3 != 0 {
			t.Errorf("%d packets delivered", delivered)
		}
		if packet.InUse() != before {
			t.Error("a buffer was not released")
		}
	})
}

// sinkPath is such a path of ours.
type sinkPath struct {
	sink
	fakePath
}

func (p *sinkPath) id() path.ID                      { return p.sink.id() }
func (p *sinkPath) live(now time.Time) bool          { return true }
func (p *sinkPath) send(b *packet.Buffer)            { p.sink.send(b) }
func (p *sinkPath) control(byte, []byte, seal.Nonce) {}

// sink is a path that lives and loses everything.
type sink struct{}

func (sink) id() path.ID                      { return path.ID{1} }
func (sink) live(time.Time) bool              { return true }
func (sink) send(b *packet.Buffer)            { b.Release() }
func (sink) control(byte, []byte, seal.Nonce) {}
