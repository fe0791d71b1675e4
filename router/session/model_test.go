package session

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

// model plays the reference's rules for sessions (protocol 4 sections 3.1 to 3.8), as far as they differ from ours:
//
//   - one session with a remote: an init replaces whatever there is, without a word
//   - no timer: an init is sent when a path becomes the current one, and never again on it
//   - every path switch overwrites the pending keys with new ones, under the session's one own tag
//   - what was called for and what called are the same to who sends
//
// An old one is of version 1.0: it knows the 1.0 handshake only, and path switches as lists; others puzzle it. One that is not old
// answers in the form that it is called in.
type model struct {
	old     bool
	f       *fabric
	mu      sync.Mutex
	sec     *key.Secret
	pool    *fakePool // inbound
	out     *fakePool // of the latest call
	of      map[key.Public]*modelSession
	tags    map[uint32]*modelSession
	next    uint32
	got     []string
	inits   int // answered
	puzzled int // messages that it does not understand
}

type modelSession struct {
	remote   key.Public
	outbound bool
	up       bool
	own      uint32
	keys     keys
	via      *fakePath
	pivot    path.ID
	pending  caller
	queue    []string
	used     time.Time
}

func (f *fabric) model(sec *key.Secret) *model {
	m := &model{f: f, sec: sec, of: make(map[key.Public]*modelSession), tags: make(map[uint32]*modelSession), next: 0x01000000 * uint32(sec.Public().String()[0])}
	m.pool = &fakePool{f: f, who: sec.Public(), owner: modelOwner{m}, want: 4, kind: path.Inbound}
	m.pool.tick(time.Now())
	f.models = append(f.models, m)
	return m
}

func (m *model) addr() key.Address { return key.Address{Key: m.sec.Public()} }

// contact is what the model publishes.
func (m *model) contact() *netdb.ClientContact {
	c := &netdb.ClientContact{Key: m.sec.Public(), Flags: netdb.FlagIPv4 | netdb.FlagPFS, SignedAt: time.Now()}
	if m.old {
		c.Flags = 1 | 2 // meant something in 1.0
	}
	for _, p := range m.pool.all() {
		c.Intros = append(c.Intros, netdb.Intro{Expiry: p.until, Hop: p.end, Relay: p.at})
	}
	slices.SortFunc(c.Intros, func(a, b netdb.Intro) int { return b.Expiry.Compare(a.Expiry) })
	return c
}

// send sends or queues a packet; the remote's contact is needed for the first one, unless it is a relay.
func (m *model) send(remote key.Public, contact *netdb.ClientContact, s string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.say(remote, contact, s)
}

func (m *model) say(remote key.Public, contact *netdb.ClientContact, s string) {
	ses := m.of[remote]
	if ses == nil {
		m.next++
		ses = &modelSession{remote: remote, outbound: true, own: m.next}
		m.of[remote], m.tags[ses.own] = ses, ses
		m.out = &fakePool{f: m.f, who: m.sec.Public(), owner: modelOwner{m}, want: 2, kind: path.ToRelay, target: remote}
		if contact != nil {
			m.out.kind, m.out.intros = path.Aligned, contact.Intros
		}
	}
	ses.used = time.Now()
	if !ses.up {
		ses.queue = append(ses.queue, s)
		m.advance(ses)
		return
	}
	m.transmit(ses, s)
}

// advance gives a call its current path.
func (m *model) advance(ses *modelSession) {
	if !ses.outbound || ses.via != nil && ses.via.live(time.Now()) {
		return
	}
	m.out.tick(time.Now())
	p, _ := m.out.current(time.Now()).(*fakePath)
	if p == nil || p == ses.via {
		return
	}
	ses.via, ses.pivot = p, p.peer
	if p.peer == (path.ID{}) {
		ses.pivot = p.end
	}
	typ := byte(path.TypeHandshake)
	ses.pending = newInitiator(m.sec, ses.remote, ses.own)
	if m.old {
		ses.pending = &oldInitiator{self: m.sec, remote: ses.remote, tag: ses.own}
		typ = path.TypeControl
	}
	init, err := ses.pending.init(p.end)
	if err != nil {
		m.f.t.Fatal(err)
	}
	n := m.nonce()
	if ses.up {
		p.control(path.TypeHandshake, message(pathSwitch(&ses.keys, &n, p.end, init, m.old), ses.keys.peer, &ses.pivot), n)
	} else {
		p.control(typ, message(init, 0, &ses.pivot), n)
	}
}

func (m *model) nonce() (n seal.Nonce) {
	ns := newNonces()
	ns.draw(&n)
	return n
}

func (m *model) transmit(ses *modelSession, s string) {
	b := ipPacket(s)
	tail := b.Extend(1 + seal.TagSize)
	tail[0] = trafficRaw
	b.Nonce = m.nonce()
	seal.Seal(b.Data, &ses.keys.out, &b.Nonce)
	binary.BigEndian.PutUint32(b.Extend(tagSize), ses.keys.peer)
	copy(b.Extend(pivotSize), ses.pivot[:])
	ses.via.send(b)
}

func (m *model) take() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	got := m.got
	m.got = nil
	return got
}

// modelOwner brings the model what its paths bring.
type modelOwner struct{ m *model }

func (o modelOwner) changed() {
	if !o.m.mu.TryLock() {
		return // it is at it
	}
	defer o.m.mu.Unlock()
	for _, ses := range o.m.of {
		if ses.outbound && o.m.out != nil {
			o.m.advance(ses)
		}
	}
}

func (o modelOwner) datagram(_ carrier, b *packet.Buffer) {
	defer b.Release()
	m := o.m
	m.mu.Lock()
	defer m.mu.Unlock()
	ses := m.tags[binary.BigEndian.Uint32(b.Cut(tagSize))]
	if ses == nil || !ses.up {
		return
	}
	ses.used = time.Now() // before it is opened
	plain, ok := seal.Open(b.Data, &ses.keys.in, &b.Nonce)
	if !ok {
		return
	}
	s := text(plain[:len(plain)-1])
	m.got = append(m.got, s)
	if strings.HasPrefix(s, "?") {
		m.say(ses.remote, nil, "!"+s[1:])
	}
}

func (o modelOwner) controlled(via carrier, typ byte, msg []byte, n seal.Nonce) {
	m := o.m
	m.mu.Lock()
	defer m.mu.Unlock()
	body := msg[:len(msg)-tagSize]
	tag := binary.BigEndian.Uint32(msg[len(body):])
	p := via.(*fakePath)
	if typ == path.TypeControl && tag == 0 {
		m.answer(body, p)
		return
	}
	if typ == path.TypeControl {
		ses := m.tags[tag]
		if ses == nil {
			return
		}
		if i, ok := ses.pending.(*oldInitiator); ok {
			if ks, err := i.open(bytes.Clone(body), &n); err == nil {
				m.established(ses, ks)
				return
			}
		}
		if ses.up {
			if plain, ok := seal.Open(body, &ses.keys.in, &n); ok {
				ses.used = time.Now()
				method, param, err := parseControl(plain)
				if err != nil {
					m.f.t.Errorf("model: %v", err)
				}
				if method == methodSwitch && !ses.outbound {
					ses.via = p
					ses.pivot, _ = parseSwitch(param)
				}
			}
		}
		return
	}
	h, err := parseHandshake(body)
	if err != nil || m.old && body[0] != 'l' {
		m.puzzled++
		return
	}
	switch h.kind {
	case kindInit:
		m.answer(body, p)
	case kindAccept:
		ses := m.tags[tag]
		if ses == nil || !ses.outbound || ses.pending == nil {
			return
		}
		ks, err := ses.pending.(*initiator).accept(h.box)
		if err != nil {
			m.f.t.Errorf("model: %v", err)
			return
		}
		m.established(ses, ks)
	case kindSwitch:
		if ses := m.tags[tag]; ses != nil {
			if id, err := openSwitch(h.sealed, &ses.keys, &n); err == nil && !ses.outbound {
				ses.via, ses.pivot = p, id
			}
			return
		}
		m.answer(h.init, p)
	}
}

func (m *model) established(ses *modelSession, ks keys) {
	ses.keys, ses.up, ses.pending = ks, true, nil
	for _, s := range ses.queue {
		m.transmit(ses, s)
	}
	ses.queue = nil
}

// forget is a restart.
func (m *model) forget() {
	m.mu.Lock()
	clear(m.of)
	clear(m.tags)
	m.mu.Unlock()
}

func (m *model) answer(init []byte, p *fakePath) {
	h, err := parseHandshake(init)
	if err != nil || m.old && h.kind != kindOld {
		m.puzzled++
		return
	}
	in, err := h.open(m.sec, everybody)
	if err != nil {
		m.f.t.Errorf("model: %v", err)
		return
	}
	m.inits++
	if old := m.of[in.remote]; old != nil {
		delete(m.tags, old.own)
	}
	m.next++
	ses := &modelSession{remote: in.remote, up: true, own: m.next, via: p, pivot: in.pivot, used: time.Now()}
	accept, ks, err := in.answer(m.sec, ses.own)
	if err != nil {
		m.f.t.Errorf("model: %v", err)
		return
	}
	ses.keys = ks
	m.of[in.remote], m.tags[ses.own] = ses, ses
	n, typ := m.nonce(), byte(path.TypeHandshake)
	if in.old {
		accept, typ = sealControl(nil, &ks.out, &n, methodAccept, accept), path.TypeControl
	}
	p.control(typ, message(accept, in.tag, &in.pivot), n)
}

// lookUp finds a node's contact as published.
func (m *model) lookUp(n *node) (*netdb.ClientContact, error) {
	k := n.sec.Public()
	blinded, err := k.Blind()
	if err != nil {
		return nil, err
	}
	return netdb.OpenClientContact(m.f.stored[0][blinded], k)
}
