package path

import (
	"bytes"
	"context"
	"encoding/hex"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/seal"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func same(t testing.TB, what string, got []byte, want string) {
	t.Helper()
	if g := hex.EncodeToString(got); g != want {
		t.Fatalf("%s:\ngot  %s\nwant %s", what, g, want)
	}
}

func fill32(c byte) (b [32]byte)     { copy(b[:], bytes.Repeat([]byte{c}, 32)); return b }
func fillID(c byte) (id ID)          { copy(id[:], bytes.Repeat([]byte{c}, idSize)); return id }
func fill24(c byte) (n seal.Nonce)   { copy(n[:], bytes.Repeat([]byte{c}, 24)); return n }
func secretOf(c byte) *key.Secret    { return key.FromSeed(fill32(c)) }
func exampleRelay(i int) *key.Secret { return secretOf(0x10 + byte(i)) }

// exampleFrames are the client's decisions in the worked example.
func exampleFrames() []frame {
	frames := make([]frame, 3)
	for i := range frames {
		next := min(i+1, 2)
		frames[i] = frame{
			relay: exampleRelay(i).Public(), eph: secretOf(0x20 + byte(i)), nonce: fill24(0x30 + byte(i)),
			rx: fillID(0x40 + byte(i)), tx: fillID(0x40 + byte(next)), next: exampleRelay(next).Public(),
		}
	}
	return frames
}

func exampleBuild(t testing.TB) (msg []byte, hops []seal.Hop) {
	t.Helper()
	msg, hops, err := makeBuild(exampleFrames(), 1200, bytes.Repeat([]byte{0xaa}, 5*frameSize))
	if err != nil {
		t.Fatal(err)
	}
	return msg, hops
}

func hash(b []byte) []byte {
	h := seal.Hash32(b)
	return h[:]
}

// TestExampleBuild: protocol 3 section 9, in the client's role and in each relay's.
func TestExampleBuild(t *testing.T) {
	msg, hops := exampleBuild(t)
	for i, f := range exampleFrames() {
		want := exampleHops[i]
		eph := f.eph.Public()
		shared, err := f.eph.DH(f.relay)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "relay", f.relay[:], want.relay)
		same(t, "ephemeral", eph[:], want.eph)
		same(t, "shared", shared[:], want.shared)
		same(t, "K", hops[i].Key[:], want.key)
		same(t, "X", hops[i].Xor[:], want.xor)
		same(t, "frame on the wire", msg[i*frameSize:(i+1)*frameSize], exampleWire[i])

		clear := make([]byte, frameSize)
		f.put(clear, 1200, &hops[i])
		same(t, "clear frame", clear, exampleClear[i])
		inner := clear[frameSize-1-innerSize : frameSize-1]
		seal.Stream(inner, &hops[i].Key, &f.nonce)
		switch i {
		case 0:
			same(t, "inner dict", inner, exampleInner0)
		case 2:
			same(t, "inner dict", inner, exampleInner2)
		}
	}
	same(t, "message", hash(msg), exampleBuildHash[0])

	for i, f := range exampleFrames() {
		same(t, "frame at its relay", msg[:frameSize], exampleClear[i])
		sec := exampleRelay(i)
		rec, text := openBuild(sec, sec.Public(), msg)
		if text != "" {
			t.Fatal(i, text)
		}
		want := record{hop: hops[i], nonce: f.nonce, rx: f.rx, tx: f.tx, next: f.next, lifetime: 1200, terminal: i == 2}
		if rec != want {
			t.Fatalf("record %d differs", i)
		}
		if i < 2 {
			passBuild(msg, bytes.Repeat([]byte{0xbb}, frameSize), &rec)
			same(t, "forwarded", hash(msg), exampleBuildHash[i+1])
		}
	}
}

// TestExamplePing: protocol 3 section 9.1, every step of the request and of its reply.
func TestExamplePing(t *testing.T) {
	_, hops := exampleBuild(t)
	c := []ID{fillID(0x40), fillID(0x41), fillID(0x42)}

	msg := sealRequest(methodPing, nil, hops, fill24(0x50), &c[0])
	for i := range hops {
		same(t, "request", msg, examplePing[i])
		payload, nonce, id, _ := split(msg)
		if i < 2 {
			step(payload, &hops[i], nonce)
			*id = c[i+1]
			continue
		}
		method, body, opened, parsed := openRequest(payload, &hops[2], nonce)
		if !opened || !parsed || method != methodPing || len(body) != 0 || *nonce != fill24(0x50) {
			t.Fatal("request does not open", method, opened, parsed)
		}
		if plain := payload[:len(payload)-tagSize]; string(plain) != examplePingPlain {
			t.Fatalf("plain request %q", plain)
		}
	}

	msg = sealReply(status(textOK), &hops[2], fill24(0x60), &c[2])
	same(t, "reply of hop 2", msg, examplePong[0])
	for i := 1; i >= 0; i-- {
		if !passReply(msg, &hops[i], &c[i+1], &c[i]) {
			t.Fatal("reply refused by hop", i)
		}
		same(t, "reply", msg, examplePong[2-i])
	}
	plain, err := openReply(msg, hops)
	if err != nil || string(plain) != examplePongPlain {
		t.Fatalf("%q, %v", plain, err)
	}
}

// examplePeer is the path of the peer in section 9.2, its edge W first.
func examplePeer(t testing.TB) []seal.Hop {
	t.Helper()
	w, p := seal.NewHop(fill32(0xa0)), seal.NewHop(fill32(0xa1))
	same(t, "X_W", w.Xor[:], exampleXorW)
	same(t, "X_P'", p.Xor[:], exampleXorP)
	return []seal.Hop{w, p}
}

// TestExampleData: protocol 3 section 9.2: the client wraps, the relays peel, the pivot turns, the other client opens.
func TestExampleData(t *testing.T) {
	_, hops := exampleBuild(t)
	peer := examplePeer(t)
	session, n := seal.Key(fill32(0x70)), fill24(0x80)

	msg := append([]byte("hello\x00"), make([]byte, tagSize)...)
	seal.Seal(msg, &session, &n)
	pivot := fillID(0x91)
	msg = append(append(msg, 1, 2, 3, 4), pivot[:]...)
	same(t, "session message", msg, exampleSession)

	nonce, edge := n, fillID(0x40)
	wrap(msg, hops, &nonce)
	msg = append(msg, make([]byte, trailerSize)...)
	putTrailer(msg[len(msg)-trailerSize:], &nonce, &edge, TypeData)
	for i, want := range []string{exampleAto0, example0to1, example1to2} {
		same(t, "upwards", msg, want)
		payload, nonce, id, _ := split(msg)
		step(payload, &hops[i], nonce)
		*id = fillID(0x41 + byte(i))
	}
	w := &hop{rx: pivot, tx: pivot, key: peer[1]}
	msg = turn(msg, w)
	same(t, "from the pivot", msg, examplePtoW)
	payload, at, id, typ := split(msg)
	step(payload, &peer[0], at)
	*id = fillID(0x90)
	same(t, "to the peer", msg, exampleWtoB)

	unwrap(payload, peer, at)
	if *at != n || *typ != TypeData {
		t.Fatal("nonce does not come out")
	}
	plain, ok := seal.Open(payload[:len(payload)-4], &session, &n)
	if !ok || string(plain) != "hello\x00" || !bytes.Equal(payload[len(payload)-4:], []byte{1, 2, 3, 4}) {
		t.Fatalf("%q, %v", plain, ok)
	}
}

// sent is what a relay under test gave to its neighbours.
type sent struct {
	kind  string // "datagram", "command", "request"
	to    key.Public
	link  Link
	name  string
	body  []byte
	reply chan<- outcome // of a request
}

type outcome struct {
	body []byte
	err  error
}

// tap is a Mesh, and a Link with an identity, that records. Requests wait until the test answers.
type tap struct {
	out  chan sent
	link bool
}

func newTap() *tap { return &tap{out: make(chan sent, 64)} }

func (m *tap) put(s sent) {
	select {
	case m.out <- s:
	default: // nobody looks any more
	}
}

func (m *tap) Datagram(to key.Public, b *packet.Buffer) {
	m.put(sent{kind: "datagram", to: to, body: bytes.Clone(b.Data)})
	b.Release()
}

func (m *tap) Command(to key.Public, name string, body []byte) error {
	m.put(sent{kind: "command", to: to, name: name, body: bytes.Clone(body)})
	return nil
}

func (m *tap) Request(ctx context.Context, to key.Public, name string, body []byte) ([]byte, error) {
	return m.request(ctx, sent{kind: "request", to: to, name: name, body: bytes.Clone(body)})
}

func (m *tap) request(ctx context.Context, s sent) ([]byte, error) {
	back := make(chan outcome, 1)
	s.reply = back
	m.put(s)
	select {
	case o := <-back:
		return o.body, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// tapLink is a client's connection.
type tapLink struct{ *tap }

func newTapLink() *tapLink { return &tapLink{newTap()} }

func (l *tapLink) Send(b *packet.Buffer) {
	l.put(sent{kind: "datagram", link: l, body: bytes.Clone(b.Data)})
	b.Release()
}

func (l *tapLink) Command(name string, body []byte) error {
	l.put(sent{kind: "command", link: l, name: name, body: bytes.Clone(body)})
	return nil
}

func (l *tapLink) Request(ctx context.Context, name string, body []byte) ([]byte, error) {
	return l.request(ctx, sent{kind: "request", link: l, name: name, body: bytes.Clone(body)})
}

func (m *tap) next(t testing.TB) sent {
	t.Helper()
	select {
	case s := <-m.out:
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("nothing sent")
		panic("unreachable")
	}
}

func (m *tap) none(t testing.TB) {
	t.Helper()
	select {
	case s := <-m.out:
		t.Fatalf("sent a %s %s", s.kind, s.name)
	default:
	}
}

// failReply is an error reply as link gives it.
type failReply []byte

func (failReply) Error() string       { return "error reply" }
func (f failReply) ReplyBody() []byte { return f }

// answers collects what a relay answers.
type answers chan answer

type answer struct {
	body []byte
	fail bool
}

func (a answers) reply(body []byte, fail bool) { a <- answer{bytes.Clone(body), fail} }

// localTap is a Local that records.
type localTap struct {
	datagrams, controls []localMessage
	request             func(method string, body []byte, reply func([]byte))
}

type localMessage struct {
	t     *Terminal
	typ   byte
	msg   []byte
	nonce seal.Nonce
}

func (l *localTap) PathRequest(_ ID, method string, body []byte, reply func([]byte)) {
	if l.request != nil {
		l.request(method, body, reply)
	}
}

func (l *localTap) SessionControl(t *Terminal, typ byte, msg []byte, nonce [24]byte) {
	l.controls = append(l.controls, localMessage{t, typ, msg, nonce})
}

func (l *localTap) SessionDatagram(t *Terminal, b *packet.Buffer) {
	l.datagrams = append(l.datagrams, localMessage{t, TypeData, bytes.Clone(b.Data), b.Nonce})
	b.Release()
}

func buffer(p []byte) *packet.Buffer {
	b := packet.Get()
	b.Set(p)
	return b
}

// TestExampleRelays plays section 9 against three Relays: every message between them is the document's.
func TestExampleRelays(t *testing.T) {
	var relays [3]*Relay
	var taps [3]*tap
	var locals [3]*localTap
	for i := range relays {
		taps[i], locals[i] = newTap(), new(localTap)
		relays[i] = NewRelay(exampleRelay(i), taps[i], locals[i], Limits{}, nil)
		defer relays[i].Close()
	}
	client := newTapLink()
	from := func(i int) (Link, key.Public) {
		if i == 0 {
			return client, key.Public{}
		}
		return newTapLink(), exampleRelay(i - 1).Public()
	}

	// Build: down the line and OK back up.
	build, hops := exampleBuild(t)
	var replies [3]answers
	var waiting [3]sent
	for i := range relays {
		same(t, "frame at its relay", build[:frameSize], exampleClear[i])
		replies[i] = make(answers, 1)
		l, id := from(i)
		if !relays[i].HandleRequest(l, id, nameBuild, build, replies[i].reply) {
			t.Fatal("not handled")
		}
		if i == 2 {
			break
		}
		if relays[i].table.live(new(fillID(0x40+byte(i)))) != nil {
			t.Fatal("stored before the later hops said OK")
		}
		waiting[i] = taps[i].next(t)
		if w := waiting[i]; w.kind != "request" || w.name != nameBuild || w.to != exampleRelay(i+1).Public() {
			t.Fatalf("relay %d sent %+v", i, w)
		}
		build = waiting[i].body
	}
	for i := 2; i >= 0; i-- {
		a := <-replies[i]
		if a.fail || string(a.body) != "d1:!2:OKe" {
			t.Fatalf("relay %d: %q", i, a.body)
		}
		if i > 0 {
			waiting[i-1].reply <- outcome{body: a.body}
		}
	}

	// The ping and its reply. The reply's nonce is random, so it is followed with the document's bytes put in at each relay.
	for i := range relays {
		replies[i] = make(answers, 1)
		l, id := from(i)
		relays[i].HandleRequest(l, id, nameControl, unhex(t, examplePing[i]), replies[i].reply)
		if i < 2 {
			waiting[i] = taps[i].next(t)
			same(t, "request", waiting[i].body, examplePing[i+1])
		}
	}
	a := <-replies[2]
	for i := 1; i >= 0; i-- {
		if !passReply(a.body, &hops[i], new(fillID(0x41+byte(i))), new(fillID(0x40+byte(i)))) {
			t.Fatal("the terminal's reply is not one of this path")
		}
	}
	if plain, err := openReply(a.body, hops); err != nil || string(plain) != examplePongPlain {
		t.Fatalf("%q, %v", plain, err)
	}
	for i := 1; i >= 0; i-- {
		waiting[i].reply <- outcome{body: unhex(t, examplePong[1-i])}
		a := <-replies[i]
		if a.fail {
			t.Fatal("error reply")
		}
		same(t, "reply", a.body, examplePong[2-i])
	}

	// Data, as datagram and as session_control, to the pivot and down the peer's path.
	peer := examplePeer(t)
	w := NewRelay(secretOf(0x77), newTap(), new(localTap), Limits{}, nil)
	defer w.Close()
	b := newTapLink()
	put(t, relays[2], &hop{rx: fillID(0x91), tx: fillID(0x91), up: relays[2].self, down: neighbour{relay: w.self}, key: peer[1]})
	put(t, w, &hop{rx: fillID(0x90), tx: fillID(0x91), up: relays[2].self, down: neighbour{link: b}, key: peer[0]})
	steps := []struct {
		relay *Relay
		out   *tap
		to    key.Public
		in    string
		want  string
	}{
		{relays[0], taps[0], relays[1].self, exampleAto0, example0to1},
		{relays[1], taps[1], relays[2].self, example0to1, example1to2},
		{relays[2], taps[2], w.self, example1to2, examplePtoW},
		{w, b.tap, key.Public{}, examplePtoW, exampleWtoB},
	}
	for _, s := range steps {
		s.relay.Datagram(buffer(unhex(t, s.in)))
		got := s.out.next(t)
		same(t, "datagram", got.body, s.want)
		if got.kind != "datagram" || got.to != s.to {
			t.Fatalf("sent as %+v", got)
		}
		s.relay.HandleRequest(newTapLink(), exampleRelay(5).Public(), nameSession, unhex(t, s.in), nil)
		got = s.out.next(t)
		same(t, "session_control", got.body, s.want)
		if got.kind != "command" || got.name != nameSession || got.to != s.to {
			t.Fatalf("sent as %+v", got)
		}
	}

	// Back up the path of the example: what the pivot sends down to A, A opens.
	answer := append([]byte("to A, 17 or more."), 9, 9, 9, 9)
	term := (*Terminal)(relays[2].table.live(new(fillID(0x42))))
	d := buffer(answer)
	d.Nonce = fill24(0x81)
	term.Send(d)
	msg := taps[2].next(t).body
	for _, i := range []int{1, 0} {
		relays[i].Datagram(buffer(msg))
		out := taps[i]
		if i == 0 {
			out = client.tap
		}
		msg = out.next(t).body
	}
	payload, nonce, id, _ := split(msg)
	unwrap(payload, hops, nonce)
	if !bytes.Equal(payload, answer) || *nonce != fill24(0x81) || *id != fillID(0x40) {
		t.Fatalf("%q", payload)
	}
	for i := range relays {
		taps[i].none(t)
		if len(locals[i].controls)+len(locals[i].datagrams) != 0 {
			t.Fatal("delivered to a relay")
		}
	}
}

// put stores a hop as if it had been built.
func put(t testing.TB, r *Relay, h *hop) {
	t.Helper()
	h.relay = r
	if h.expiry.IsZero() {
		h.expiry = time.Now().Add(20 * time.Minute)
	}
	if _, text := r.store(h, 0, time.Now()); text != "" {
		t.Fatal(text)
	}
	if !h.terminal() {
		r.settle(h, true)
		r.wg.Done()
	}
}
