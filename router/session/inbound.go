package session

import (
	"encoding/binary"
	"slices"
	"time"

	"lokinetd/router/fair"
	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

// TerminalDatagram takes a session datagram for this relay; with TerminalControl it makes a relay's Table the sessions' part of a [path.Local].
func (t *Table) TerminalDatagram(hop *path.Terminal, b *packet.Buffer) { t.datagram(terminal{hop}, b) }

// TerminalControl takes a session control or handshake message for this relay; see TerminalDatagram.
func (t *Table) TerminalControl(hop *path.Terminal, typ byte, msg []byte, n [24]byte) {
	t.controlled(terminal{hop}, typ, msg, n)
}

// controlled takes what came on the session_control channel over a path: msg, of which this owns the memory, is body and tag (protocol 4 section 2.4). Nothing is ever answered
// on an error.
func (t *Table) controlled(via carrier, typ byte, msg []byte, n seal.Nonce) {
	if len(msg) < tagSize {
		t.count.DropShort.Add(1)
		return
	}
	body := msg[:len(msg)-tagSize]
	tag := binary.BigEndian.Uint32(msg[len(body):])
	switch {
	case typ == path.TypeHandshake:
		t.handshake(via, tag, body, &n)
	case typ == path.TypeControl && tag != 0:
		t.control(via, tag, body, &n)
	case typ == path.TypeControl:
		if h, err := parseHandshake(body); err != nil || h.kind != kindOld {
			t.count.DropParse.Add(1)
		} else {
			t.called(via, h, time.Now())
		}
	default:
		t.count.DropType.Add(1)
	}
}

func (t *Table) handshake(via carrier, tag uint32, body []byte, n *seal.Nonce) {
	h, err := parseHandshake(body)
	if err != nil {
		t.count.DropParse.Add(1)
		return
	}
	now := time.Now()
	switch {
	case h.kind == kindInit && tag == 0:
		t.called(via, h, now)
	case h.kind == kindAccept && tag != 0:
		t.lock()
		t.accepted(tag, h.box, now)
		t.unlock()
	case h.kind == kindSwitch && tag != 0:
		t.switched(via, tag, h, n, now)
	default:
		t.count.DropParse.Add(1)
	}
}

// called answers an init of either form in its own (protocol 4 sections 3.4 and 3.7), or not:
//
//  1. nobody may call, or too many do: drop, before any key is touched
//  2. open the box; the remote may call; the signature holds; p fits the path that it came on
//  3. it is the init of a session that we have: the accept was lost, send it again on the path that this one came on. Unless the
//     session's keys were used, then it is a copy. A 1.0 init that was answered before is a copy too when its session is gone; and none is
//     taken from a remote that speaks 1.1 with us
//  4. there is room for another session
//  5. keys, a tag, the accept. Other sessions with the remote stay
func (t *Table) called(via carrier, h handshake, now time.Time) {
	if t.c.Accept == nil {
		t.count.DropRefused.Add(1)
		return
	}
	if !t.gate.Load().Take(via.id(), 1, now) {
		t.count.DropRate.Add(1)
		return
	}
	in, err := h.open(t.c.Self, t.c.Accept)
	switch {
	case err == errRefused:
		t.count.DropRefused.Add(1)
		return
	case err != nil:
		t.count.DropForged.Add(1)
		return
	case t.c.Relay != (in.pivot == via.id()):
		t.count.DropDirection.Add(1)
		return
	}
	t.lock()
	defer t.unlock()
	if t.closed {
		return
	}
	addr := key.Address{Key: in.remote, Kind: key.Client}
	if !t.allowed(addr, !in.old) { // Accept did not know of which form the init is
		t.count.DropRefused.Add(1)
		return
	}
	back := &route{via: via, pivot: in.pivot, bare: t.c.Relay}
	if r := t.remotes[addr]; r != nil {
		for _, s := range r.sessions {
			if s.outbound || !s.init.same(&in) {
				continue
			}
			if s.accept == nil {
				t.count.DropReplayed.Add(1)
				return
			}
			s.route.Store(back)
			t.sendAccept(s)
			return
		}
	}
	if in.old {
		switch {
		case t.oldInits.seen(&h.nonce):
			t.count.DropReplayed.Add(1)
			return
		case t.knowsBetter(addr, now):
			t.count.DropType.Add(1)
			return
		}
	}
	if !t.room(addr, via, now) {
		t.count.DropFull.Add(1)
		return
	}
	s := &session{own: t.newTag(), since: now}
	s.accept, s.keys, err = in.answer(t.c.Self, s.own)
	if err != nil {
		t.count.DropForged.Add(1)
		return
	}
	if in.old {
		t.oldInits.add(&h.nonce)
	}
	in.m = nil
	s.init = in
	s.r, s.round = t.remote(addr), t.publish.round
	s.route.Store(back)
	t.add(s, now)
	t.count.InitsTaken.Add(1)
	t.log.Debug("session answered", "remote", addr)
	t.sendAccept(s)
	if t.replaces {
		t.replace(s, now)
	}
	t.later(func() { t.c.Established(addr) })
}

// knowsBetter says whether the remote has spoken on a 1.1 session lately. Then a 1.0 init under its name is not its own, most likely.
func (t *Table) knowsBetter(addr key.Address, now time.Time) bool {
	r := t.remotes[addr]
	return r != nil && slices.ContainsFunc(r.sessions, func(s *session) bool {
		return !s.keys.old && (s.outbound || s.sure.Load()) && t.at(now)-t.lastHeard(s) < int64(idleTime)
	})
}

func (t *Table) sendAccept(s *session) {
	t.count.AcceptsSent.Add(1)
	if s.keys.old {
		t.signal(s, methodAccept, s.accept)
		return
	}
	w := s.route.Load()
	var n seal.Nonce
	t.nonces.draw(&n)
	pivot := &w.pivot
	if w.bare {
		pivot = nil
	}
	w.via.control(path.TypeHandshake, message(s.accept, s.keys.peer, pivot), n)
}

// room makes room for one more inbound session, at the cost of those of remotes that were not heard again after their init, the oldest first. Without
// such ones a remote's own longest silent session goes: when it has restarted, that is. One that was heard just now stays, for the init may be a copy of an old one.
func (t *Table) room(addr key.Address, via carrier, now time.Time) bool {
	var all, unsure, here int
	var oldest, oldestHere, own *session
	many := false // too many of this remote
	older := func(a, b *session) *session {
		if a == nil || b.since.Before(a.since) {
			return b
		}
		return a
	}
	for _, s := range t.tags {
		if s.outbound {
			continue
		}
		all++
		if s.sure.Load() {
			continue
		}
		unsure++
		oldest = older(oldest, s)
		if s.route.Load().via == via {
			here++
			oldestHere = older(oldestHere, s)
		}
	}
	if r := t.remotes[addr]; r != nil {
		count := 0
		for _, s := range r.sessions {
			if s.outbound {
				continue
			}
			count++
			if own == nil || !s.sure.Load() && own.sure.Load() ||
				s.sure.Load() == own.sure.Load() && t.lastHeard(s) < t.lastHeard(own) {
				own = s
			}
		}
		many = count >= remoteSets
	}
	switch {
	case many:
		t.remove(own, now)
	case here >= max(1, t.c.Limits.Unsure/4):
		t.remove(oldestHere, now)
	case unsure >= t.c.Limits.Unsure, all >= t.c.Limits.Sessions && unsure > 0:
		t.remove(oldest, now)
	case all < t.c.Limits.Sessions:
	case own != nil && t.at(now)-t.lastHeard(own) >= int64(quietMax):
		t.remove(own, now)
	default:
		return false
	}
	return true
}

// switched takes a path switch (protocol 4 section 3.6). The init inside is used when we do not know the session, and also when the switch does not open: then the
// remote has other keys than we.
func (t *Table) switched(via carrier, tag uint32, h handshake, n *seal.Nonce, now time.Time) {
	s := t.find(tag)
	if s != nil && s.outbound {
		t.count.DropDirection.Add(1)
		return
	}
	if s != nil {
		p, err := openSwitch(h.sealed, &s.keys, n)
		if err == nil {
			inner := s.keys.switchNonce(*n)
			if !s.first(&s.signals, &s.packets, &inner) {
				t.count.DropReplayed.Add(1)
				return
			}
			t.reroute(s, via, p, now)
			return
		}
	}
	init, err := parseHandshake(h.init)
	if err != nil || init.kind != kindInit && init.kind != kindOld {
		if s != nil {
			t.count.DropForged.Add(1)
		} else {
			t.count.DropTag.Add(1)
		}
		return
	}
	t.called(via, init, now)
}

// reroute makes the path that an authentic path switch came on the way back.
func (t *Table) reroute(s *session, via carrier, p path.ID, now time.Time) {
	if t.c.Relay != (p == via.id()) {
		t.count.DropDirection.Add(1)
		return
	}
	t.lock()
	before := s.route.Load()
	s.route.Store(&route{via: via, pivot: p, bare: t.c.Relay})
	s.heard.Store(t.at(now))
	s.answered.Store(t.at(now))
	t.count.SwitchesTaken.Add(1)
	t.proven(s, now)
	// Our contact is the answer: to a remote that looks for a path that works, and to one that was out of reach when we published.
	w := s.route.Load()
	moved := before.via != w.via || before.pivot != w.pivot
	if moved || s.round != t.publish.round {
		s.owed = true
		t.inform(s, now)
	}
	if moved {
		t.repeat(s, w, now)
	}
	t.unlock()
}

// control takes a sealed control message (protocol 4 section 5).
func (t *Table) control(via carrier, tag uint32, sealed []byte, n *seal.Nonce) {
	now := time.Now()
	s := t.find(tag)
	if s == nil {
		t.lock()
		t.acceptedOld(tag, sealed, n, now)
		t.unlock()
		return
	}
	plain, ok := seal.Open(sealed, &s.keys.in, n)
	if !ok {
		t.count.DropForged.Add(1)
		return
	}
	if !s.first(&s.signals, &s.packets, n) {
		t.count.DropReplayed.Add(1)
		return
	}
	method, param, err := parseControl(plain)
	if err == nil && method == methodPong {
		t.ponged(s, via, param, now)
		return
	}
	t.authentic(s, via, now)
	if err != nil {
		t.count.DropParse.Add(1)
		return
	}
	switch method {
	case methodClose:
		t.lock()
		t.ended(s, now)
		t.unlock()
	case methodContact:
		if !s.outbound || s.r.addr.Kind != key.Client {
			t.count.DropDirection.Add(1)
			return
		}
		t.told(s.r.addr.Key, param, now)
	case methodPing:
		t.pinged(s, via, param)
	case methodAccept:
		t.lock()
		t.acceptedAgain(tag, param, now)
		t.unlock()
	case methodSwitch:
		p, err := parseSwitch(param)
		switch {
		case err != nil:
			t.count.DropParse.Add(1)
		case s.outbound:
			t.count.DropDirection.Add(1)
		default:
			t.reroute(s, via, p, now)
		}
	}
}

// ended: the remote said good-bye. What we called for is given up with its paths, and so is the contact that they were built by: it may restart.
func (t *Table) ended(s *session, now time.Time) {
	if t.tags[s.own] != s {
		return
	}
	r := s.r
	t.log.Debug("session closed by the remote", "remote", r.addr)
	t.remove(s, now)
	if s.outbound && r.call != nil && r.call.session == nil {
		delete(t.contacts, r.addr.Key)
		t.hangUp(r.call)
	}
	t.tend(r, now)
}

// newGate bounds how many inits are opened: perSecond in all, over one path half as many, and four seconds' worth at once.
func newGate(perSecond int) *fair.Meter[path.ID] {
	const burst = 4
	n := float64(perSecond)
	return &fair.Meter[path.ID]{Rate: n / 2, Burst: n / 2 * burst, AllRate: n, AllBurst: n * burst}
}
