package path

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/seal"
)

// rig is one relay with everything around it recorded, and the keys of a path of one hop that ends there for a client.
type rig struct {
	*Relay
	mesh   *tap
	local  *localTap
	client *tapLink
}

func newRig(t testing.TB, l Limits) *rig {
	r := &rig{mesh: newTap(), local: new(localTap), client: newTapLink()}
	r.Relay = NewRelay(exampleRelay(0), r.mesh, r.local, l, nil)
	t.Cleanup(func() { r.Relay.Close() })
	return r
}

// ask sends a request from the client and gives the answer, if there is one at once.
func (r *rig) ask(name string, body []byte) (a answer, answered bool) {
	back := make(answers, 2)
	r.HandleRequest(r.client, key.Public{}, name, body, back.reply)
	select {
	case a = <-back:
		return a, true
	default:
		return answer{}, false
	}
}

func (a answer) text() string {
	if s := statusText(a.body); a.fail {
		return s
	} else {
		return "no error: " + s
	}
}

// frameFor makes a build message whose first frame is for the rig's relay, with change applied to what the client decided.
func (r *rig) frameFor(t testing.TB, lifetime uint32, change func(f *frame)) []byte {
	t.Helper()
	f := newFrames([]key.Public{r.self, exampleRelay(1).Public()})
	if change != nil {
		change(&f[0])
	}
	msg, _, err := makeBuild(f, lifetime, newJunk(2))
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func terminalFrame(r *rig) func(*frame) {
	return func(f *frame) { f.next, f.tx = r.self, f.rx }
}

// TestBuildErrors: each check of protocol 3 section 2.6, in its order: a message that fails several gets the first one's text.
func TestBuildErrors(t *testing.T) {
	r := newRig(t, Limits{})
	put(t, r.Relay, &hop{rx: fillID(1), tx: fillID(2), down: neighbour{link: r.client}})
	ok := r.frameFor(t, 600, nil)
	edit := func(at int, to byte) []byte {
		m := bytes.Clone(ok)
		m[at] = to
		return m
	}
	smallOrder := make([]byte, 32)
	smallOrder[0] = 1 // the identity
	withKey := func(k []byte) []byte {
		m := bytes.Clone(ok)
		copy(m[7:], k)
		return m
	}
	zero := func(f *frame) { f.rx = ID{} }
	for _, c := range []struct {
		name string
		msg  []byte
		want string
	}{
		{"empty", nil, textBadFrames},
		{"short", ok[:buildSize-1], textBadFrames},
		{"long", append(bytes.Clone(ok), 0), textBadFrames},
		{"eight frames of 186 bytes", make([]byte, 1488), textBadFrames},
		{"no dict", edit(0, 'l'), textInvalidData},
		{"v1", edit(0, 1), textBadFrames},
		{"v2", edit(0, 2), textInvalidData},
		{"no end", edit(168, 'f'), textInvalidData},
		{"another key", edit(3, 'j'), textInvalidData},
		{"longer nonce", edit(42, '3'), textInvalidData},
		{"length with a zero", withLengthZero(ok), textInvalidData},
		{"identity", withKey(smallOrder), textBadDH},
		{"no point", withKey(bytes.Repeat([]byte{0xff}, 32)), textBadDH},
		{"another key's", withKey(fillKey(9)), textBadPayload},
		{"another nonce", edit(50, ok[50]^1), textBadPayload},
		{"broken inner", edit(80, ok[80]^1), textBadPayload},
		{"zero rx", r.frameFor(t, 0, zero), textBadIDs},
		{"zero tx", r.frameFor(t, 600, func(f *frame) { f.tx = ID{} }), textBadIDs},
		{"terminal with two ids", r.frameFor(t, 600, func(f *frame) { f.next = r.self }), textBadIDs},
		{"middle with one id", r.frameFor(t, 600, func(f *frame) { f.tx = f.rx }), textBadIDs},
		{"no lifetime", r.frameFor(t, 0, nil), textBadLifetime},
		{"lifetime", r.frameFor(t, 1381, nil), textBadLifetime},
		{"huge lifetime, id in use", r.frameFor(t, 1<<32-1, func(f *frame) { f.rx = fillID(1) }), textBadLifetime},
		{"rx in use as rx", r.frameFor(t, 600, func(f *frame) { f.rx = fillID(1) }), textIDInUse},
		{"rx in use as tx", r.frameFor(t, 600, func(f *frame) { f.rx = fillID(2) }), textIDInUse},
		{"tx in use as rx", r.frameFor(t, 600, func(f *frame) { f.tx = fillID(1) }), textIDInUse},
		{"tx in use as tx", r.frameFor(t, 600, func(f *frame) { f.tx = fillID(2) }), textIDInUse},
		{"terminal in use", r.frameFor(t, 600, func(f *frame) { f.rx = fillID(2); terminalFrame(r)(f) }), textIDInUse},
	} {
		a, answered := r.ask(nameBuild, bytes.Clone(c.msg))
		if !answered || a.text() != c.want {
			t.Errorf("%s: %v %q, want %q", c.name, answered, a.text(), c.want)
		}
	}
	r.mesh.none(t)
	if s := r.Stats(); s.Hops != 1 || s.Waiting != 0 {
		t.Errorf("left behind: %+v", s)
	}
	// At both ends of what is accepted.
	for _, lifetime := range []uint32{1, 1380} {
		if a, _ := r.ask(nameBuild, r.frameFor(t, lifetime, terminalFrame(r))); a.fail || string(a.body) != "d1:!2:OKe" {
			t.Errorf("lifetime %d: %q", lifetime, a.body)
		}
	}
	if r.HandleRequest(r.client, key.Public{}, "ping", nil, nil) {
		t.Error("took a request of another name")
	}
}

func fillKey(c byte) []byte {
	k := secretOf(c).Public()
	return k[:]
}

// withLengthZero writes the first field's length as 032 and drops its last byte: equal in size, but not bt.
func withLengthZero(msg []byte) []byte {
	m := bytes.Clone(msg)
	copy(m[4:39], append([]byte("032:"), msg[7:38]...))
	return m
}

// TestBuildForward: a middle hop asks the next relay, and what comes of it.
func TestBuildForward(t *testing.T) {
	for _, c := range []struct {
		name     string
		outcome  outcome
		answered bool
		fail     bool
		body     string
		stored   uint64
	}{
		{"ok", outcome{body: []byte("whatever")}, true, false, "d1:!2:OKe", 1},
		{"error", outcome{err: failReply("d1:!3:xyze")}, true, true, "d1:!3:xyze", 0},
		{"error, not bt", outcome{err: failReply("\x00\xff")}, true, true, "\x00\xff", 0},
		{"error, wrapped", outcome{err: errors.Join(errSim, failReply("w"))}, true, true, "w", 0},
		{"silence", outcome{err: errSim}, false, false, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Limits{})
				msg := r.frameFor(t, 600, nil)
				second := bytes.Clone(msg)
				back := make(answers, 2)
				r.HandleRequest(r.client, key.Public{}, nameBuild, msg, back.reply)
				out := r.mesh.next(t)
				if out.name != nameBuild || out.to != exampleRelay(1).Public() || len(out.body) != buildSize {
					t.Fatalf("%+v", out)
				}
				if rec, text := openBuild(exampleRelay(1), exampleRelay(1).Public(), out.body); text != "" || !rec.terminal {
					t.Fatal("the next hop does not understand:", text)
				}
				// Meanwhile the ids are taken, but nothing is found under them.
				if a, _ := r.ask(nameBuild, second); a.text() != textIDInUse {
					t.Error("ids not reserved:", a.text())
				}
				if s := r.Stats(); s.Hops != 1 || s.Waiting != 1 {
					t.Errorf("%+v", s)
				}
				out.reply <- c.outcome
				synctest.Wait()
				select {
				case a := <-back:
					if !c.answered || a.fail != c.fail || string(a.body) != c.body {
						t.Errorf("answered %v %q", a.fail, a.body)
					}
				default:
					if c.answered {
						t.Error("not answered")
					}
				}
				if s := r.Stats(); s.Hops != c.stored || s.Waiting != 0 || len(back) != 0 {
					t.Errorf("%+v, %d more answers", s, len(back))
				}
			})
		})
	}
}

// TestBuildTimeout: a next hop that says nothing for 10 s is answered with nothing, and its ids are free again.
func TestBuildTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Limits{})
		msg := r.frameFor(t, 600, nil)
		back := make(answers, 2)
		r.HandleRequest(r.client, key.Public{}, nameBuild, bytes.Clone(msg), back.reply)
		r.mesh.next(t)
		time.Sleep(requestTimeout - time.Millisecond)
		synctest.Wait()
		if r.Stats().Waiting != 1 {
			t.Error("gave up early")
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if s := r.Stats(); s.Waiting != 0 || s.Hops != 0 || s.BuildsFailed != 1 || len(back) != 0 {
			t.Errorf("%+v, %d answers", s, len(back))
		}
	})
}

// TestHopEnds: hops end by time, with the client's connection (those waiting for the next hop too), and with the relay; nothing is answered or delivered afterwards.
func TestHopEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(r *rig)
		gone bool
	}{
		{"early tick", func(r *rig) { r.Tick(time.Now().Add(599 * time.Second)) }, false},
		{"tick", func(r *rig) { r.Tick(time.Now().Add(600 * time.Second)) }, true},
		{"another link closed", func(r *rig) { r.LinkClosed(newTapLink()) }, false},
		{"link closed", func(r *rig) { r.LinkClosed(r.client) }, true},
		{"closed", func(r *rig) { r.Relay.Close() }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Limits{})
				var terminal frame
				if a, _ := r.ask(nameBuild, r.frameFor(t, 600, func(f *frame) { terminalFrame(r)(f); terminal = *f })); a.fail {
					t.Fatal(a.text())
				}
				term := (*Terminal)(r.table.live(&terminal.rx))
				if term == nil || !term.Live() || term.ID() != terminal.rx {
					t.Fatal("no terminal hop")
				}
				// A second path, still being built, and a third with a request under way.
				back := make(answers, 4)
				r.HandleRequest(r.client, key.Public{}, nameBuild, r.frameFor(t, 600, nil), back.reply)
				building := r.mesh.next(t)
				middle := &hop{rx: fillID(1), tx: fillID(2), up: exampleRelay(1).Public(), down: neighbour{link: r.client}, expiry: time.Now().Add(600 * time.Second)}
				put(t, r.Relay, middle)
				request := append(make([]byte, 40), make([]byte, trailerSize)...)
				putTrailer(request[40:], new(fill24(3)), &middle.rx, typeRequest)
				r.HandleRequest(r.client, key.Public{}, nameControl, request, back.reply)
				asked := r.mesh.next(t)
				// And a request that the terminal's owner has not answered yet.
				var late func([]byte)
				r.local.request = func(_ string, _ []byte, reply func([]byte)) { late = reply }
				k, err := seal.ClientPathKey(terminal.eph, r.self, &terminal.nonce)
				if err != nil {
					t.Fatal(err)
				}
				r.HandleRequest(r.client, key.Public{}, nameControl, sealRequest("find_cc", nil, []seal.Hop{seal.NewHop(k)}, newNonce(), &terminal.rx), back.reply)

				c.end(r)
				if term.Live() == c.gone {
					t.Error("Live:", term.Live())
				}
				late([]byte("late"))
				late([]byte("later"))
				reply := append(make([]byte, 40), make([]byte, trailerSize)...)
				putTrailer(reply[40:], new(fill24(4)), &middle.tx, typeRequest)
				asked.reply <- outcome{body: reply}
				building.reply <- outcome{}
				synctest.Wait()
				want := 3
				if c.gone {
					want = 0
				}
				if len(back) != want {
					t.Errorf("%d answers, want %d", len(back), want)
				}
				if s := r.Stats(); s.Waiting != 0 || (s.Hops == 0) != c.gone {
					t.Errorf("%+v", s)
				}
				term.Send(buffer([]byte("down")))
				if got := len(r.client.out); got != 1 && !c.gone || got != 0 && c.gone {
					t.Errorf("%d datagrams down", got)
				}
				if err := term.Control(TypeControl, []byte("down"), fill24(1)); (err != nil) != c.gone {
					t.Error(err)
				}
			})
		})
	}
}

// TestControlErrors: protocol 3 section 4.2 at a relay, and the remedies of section 10.
func TestControlErrors(t *testing.T) {
	r := newRig(t, Limits{})
	term := &hop{rx: fillID(1), tx: fillID(1), up: r.self, down: neighbour{link: r.client}, key: seal.NewHop(fill32(1))}
	put(t, r.Relay, term)
	hops := []seal.Hop{term.key}
	request := func(plain string) []byte {
		msg := append([]byte(plain), make([]byte, controlOverhead)...)
		n, nonce := len(plain)+tagSize, fill24(7)
		seal.Seal(msg[:n], &term.key.Key, &nonce)
		seal.Xor(&nonce, &term.key.Xor)
		putTrailer(msg[n:], &nonce, &term.rx, typeRequest)
		return msg
	}
	good := request(examplePingPlain)
	changed := func(at int) []byte {
		m := bytes.Clone(good)
		m[at] ^= 1
		return m
	}
	for _, c := range []struct {
		name string
		msg  []byte
		want string // error text; "" for a sealed answer
		body string
	}{
		{"empty", nil, textError, ""},
		{"57 bytes", make([]byte, 57), textError, ""},
		{"type 2", changed(len(good) - 1), textError, ""},
		{"unknown id", changed(len(good) - 2), textError, ""},
		{"another nonce", changed(len(good) - trailerSize), textError, ""},
		{"forged", changed(0), textError, ""},
		{"tag", changed(len(examplePingPlain)), textError, ""},
		{"ping", good, "", "d1:!2:OKe"},
		{"ping with a body", request("d1:e9:path_ping1:p3:abce"), "", "d1:!2:OKe"},
		{"more keys", request("d1:a1:b1:e9:path_ping1:p0:1:zi5ee"), "", "d1:!2:OKe"},
		{"no dict", request("le"), "", "d1:!5:ERRORe"},
		{"no p", request("d1:e9:path_pinge"), "", "d1:!5:ERRORe"},
		{"no e", request("d1:p0:e"), "", "d1:!5:ERRORe"},
		{"trailing", request("d1:e9:path_ping1:p0:ex"), "", "d1:!5:ERRORe"},
	} {
		a, answered := r.ask(nameControl, c.msg)
		if !answered {
			t.Errorf("%s: no answer", c.name)
			continue
		}
		if c.want != "" {
			if a.text() != c.want {
				t.Errorf("%s: %q", c.name, a.text())
			}
			continue
		}
		if a.fail {
			t.Errorf("%s: error %q", c.name, a.text())
			continue
		}
		if plain, err := openReply(a.body, hops); err != nil || string(plain) != c.body {
			t.Errorf("%s: %q, %v", c.name, plain, err)
		}
	}
	if _, answered := r.ask(nameControl, request("d1:e7:unknown1:p0:e")); answered {
		t.Error("an unknown method was answered")
	}
}

// TestControlForward: what a middle hop makes of the answer of the next one, both ways through it.
func TestControlForward(t *testing.T) {
	up := exampleRelay(1).Public()
	h := hop{rx: fillID(1), tx: fillID(2), up: up, key: seal.NewHop(fill32(1))}
	reply := func(id ID, typ byte, n int) []byte {
		m := make([]byte, n+trailerSize)
		putTrailer(m[n:], new(fill24(9)), &id, typ)
		return m
	}
	for _, c := range []struct {
		name    string
		outcome outcome
		want    string // "reply", "silence" or the text of an error
	}{
		{"reply", outcome{body: reply(h.tx, typeRequest, 25)}, "reply"},
		{"one byte", outcome{body: reply(h.tx, typeRequest, 1)}, "reply"},
		{"nothing but a trailer", outcome{body: reply(h.tx, typeRequest, 0)}, textError},
		{"empty", outcome{}, textError},
		{"type", outcome{body: reply(h.tx, 2, 25)}, textError},
		{"our own id", outcome{body: reply(h.rx, typeRequest, 25)}, textError},
		{"another id", outcome{body: reply(fillID(3), typeRequest, 25)}, textError},
		{"error", outcome{err: failReply(status("NOT NOW"))}, "NOT NOW"},
		{"silence", outcome{err: errSim}, "silence"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Limits{})
				put(t, r.Relay, &hop{rx: h.rx, tx: h.tx, up: h.up, key: h.key, down: neighbour{link: r.client}})
				back := make(answers, 2)
				r.HandleRequest(r.client, key.Public{}, nameControl, reply(h.rx, typeRequest, 25), back.reply)
				out := r.mesh.next(t)
				if _, _, id, typ := split(out.body); out.to != up || *id != h.tx || *typ != typeRequest || len(out.body) != 25+trailerSize {
					t.Fatalf("forwarded %+v", out)
				}
				out.reply <- c.outcome
				synctest.Wait()
				got := "silence"
				select {
				case a := <-back:
					got = "reply"
					if a.fail {
						got = a.text()
					} else if _, nonce, id, _ := split(a.body); *id != h.rx || *nonce == fill24(9) {
						t.Error("not readdressed")
					}
				default:
				}
				if got != c.want || len(back) != 0 {
					t.Errorf("%q and %d more", got, len(back))
				}
			})
		})
	}
	// The other way, from the far side to the client.
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Limits{})
		put(t, r.Relay, &hop{rx: h.rx, tx: h.tx, up: h.up, key: h.key, down: neighbour{link: r.client}})
		back := make(answers, 2)
		r.HandleRequest(newTapLink(), up, nameControl, reply(h.tx, typeRequest, 25), back.reply)
		out := r.client.next(t)
		if _, _, id, _ := split(out.body); out.link != r.client || *id != h.rx {
			t.Fatalf("forwarded %+v", out)
		}
		out.reply <- outcome{body: reply(h.rx, typeRequest, 25)}
		synctest.Wait()
		if _, _, id, _ := split((<-back).body); *id != h.tx {
			t.Error("not readdressed")
		}
	})
}

// TestSessionDrops: everything that must not go on at a relay, and is counted (protocol 3 sections 3.5, 5.3 and 10).
func TestSessionDrops(t *testing.T) {
	type world struct {
		*rig
		term, other, middle *hop
	}
	setup := func(t *testing.T) world {
		r := newRig(t, Limits{})
		w := world{
			rig:    r,
			term:   &hop{rx: fillID(1), tx: fillID(1), up: r.self, down: neighbour{link: r.client}, key: seal.NewHop(fill32(1))},
			other:  &hop{rx: fillID(2), tx: fillID(2), up: r.self, down: neighbour{relay: exampleRelay(1).Public()}, key: seal.NewHop(fill32(2))},
			middle: &hop{rx: fillID(3), tx: fillID(4), up: exampleRelay(1).Public(), down: neighbour{link: r.client}, key: seal.NewHop(fill32(3))},
		}
		put(t, r.Relay, w.term)
		put(t, r.Relay, w.other)
		put(t, r.Relay, w.middle)
		return w
	}
	// message is what reaches the relay under id, such that n bytes, the last of them the pivot id, come out at h.
	message := func(h *hop, id ID, pivot ID, n int, typ byte) []byte {
		m := make([]byte, n+trailerSize)
		copy(m[max(0, n-pivotSize):n], pivot[:])
		nonce := fill24(9)
		seal.Stream(m[:n], &h.key.Key, &nonce)
		seal.Xor(&nonce, &h.key.Xor)
		putTrailer(m[n:], &nonce, &id, typ)
		return m
	}
	for _, c := range []struct {
		name string
		msg  func(w world) []byte
		// what is counted when it comes as datagram and as session_control
		datagram, control func(s RelayStats) uint64
	}{
		{"57 bytes", func(w world) []byte { return message(w.middle, w.middle.rx, ID{}, 16, 1) }, short, short},
		{"58 bytes", func(w world) []byte { return message(w.middle, w.middle.rx, ID{}, 17, 1) }, forwarded, forwarded},
		{"down", func(w world) []byte { return message(w.middle, w.middle.tx, ID{}, 17, 9) }, forwarded, forwarded},
		{"unknown", func(w world) []byte { return message(w.middle, fillID(9), ID{}, 50, 1) }, unknown, unknown},
		{"zero id", func(w world) []byte { return message(w.middle, ID{}, ID{}, 50, 1) }, unknown, unknown},
		{"19 bytes at the terminal", func(w world) []byte { return message(w.term, w.term.rx, w.term.rx, 19, 1) }, short, short},
		{"20 bytes at the terminal", func(w world) []byte { return message(w.term, w.term.rx, w.term.rx, 20, 1) }, delivered, delivered},
		{"handshake", func(w world) []byte { return message(w.term, w.term.rx, w.term.rx, 50, 2) }, wrongType, delivered},
		{"type 3", func(w world) []byte { return message(w.term, w.term.rx, w.term.rx, 50, 3) }, wrongType, wrongType},
		{"type 3, turned", func(w world) []byte { return message(w.term, w.term.rx, w.other.rx, 50, 3) }, turned, turned},
		{"20 bytes, turned", func(w world) []byte { return message(w.term, w.term.rx, w.other.rx, 20, 1) }, turned, turned},
		{"pivot unknown", func(w world) []byte { return message(w.term, w.term.rx, fillID(9), 50, 1) }, noPivot, noPivot},
		{"pivot is a middle hop's rx", func(w world) []byte { return message(w.term, w.term.rx, w.middle.rx, 50, 1) }, noPivot, noPivot},
		{"pivot is a middle hop's tx", func(w world) []byte { return message(w.term, w.term.rx, w.middle.tx, 50, 1) }, noPivot, noPivot},
	} {
		for channel, count := range map[string]func(RelayStats) uint64{"datagram": c.datagram, "session_control": c.control} {
			before := packet.InUse()
			w := setup(t)
			if channel == "datagram" {
				w.Datagram(buffer(c.msg(w)))
			} else if _, answered := w.ask(nameSession, c.msg(w)); answered {
				t.Errorf("%s: answered", c.name)
			}
			s := w.Stats()
			if count(s) != 1 || total(s) != 1 {
				t.Errorf("%s as %s: %+v", c.name, channel, s)
			}
			if packet.InUse() != before {
				t.Errorf("%s: buffer leaked", c.name)
			}
			for _, m := range slices.Concat(w.local.datagrams, w.local.controls) {
				if m.t != (*Terminal)(w.term) || m.nonce != fill24(9) {
					t.Errorf("%s: delivered %+v", c.name, m)
				}
			}
		}
	}
}

func short(s RelayStats) uint64     { return s.DroppedShort }
func unknown(s RelayStats) uint64   { return s.DroppedUnknown }
func noPivot(s RelayStats) uint64   { return s.DroppedPivot }
func wrongType(s RelayStats) uint64 { return s.DroppedType }
func forwarded(s RelayStats) uint64 { return s.Forwarded }
func turned(s RelayStats) uint64    { return s.Turned }
func delivered(s RelayStats) uint64 { return s.Delivered }
func total(s RelayStats) uint64 {
	return s.DroppedShort + s.DroppedUnknown + s.DroppedPivot + s.DroppedType + s.DroppedDead + s.DroppedLong + s.DroppedUnsent + s.Forwarded + s.Turned + s.Delivered
}

// TestLimits: what one link and all links together may hold.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Limits{
			Hops: 20, ClientHops: 6, RelayHops: 8, Builds: 16, ClientBuild: 4, RelayBuild: 10,
			Requests: 8, ClientRequest: 3, RelayRequest: 5, RequestBytes: 1000,
		})
		relay := exampleRelay(2).Public()
		build := func(l Link, id key.Public, change func(*frame)) string {
			back := make(answers, 1)
			r.HandleRequest(l, id, nameBuild, r.frameFor(t, 600, change), back.reply)
			select {
			case a := <-back:
				return a.text()
			default:
				return "waits"
			}
		}
		for i, want := range []string{"waits", "waits", "waits", "waits", textError} {
			if got := build(r.client, key.Public{}, nil); got != want {
				t.Errorf("build %d: %q", i, got)
			}
		}
		for i, want := range []string{"no error: OK", "no error: OK", textError} {
			if got := build(r.client, key.Public{}, terminalFrame(r)); got != want {
				t.Errorf("terminal build %d: %q", i, got)
			}
		}
		// Another client is not affected, a relay is one neighbour over whichever connection.
		for i := range 9 {
			want := "waits"
			if i >= 4 && i < 9 { // 10 of 20 hops are taken: whoever has an eighth of its own gets no more
				want = textError
			}
			if got := build(newTapLink(), relay, nil); got != want {
				t.Errorf("relay's build %d: %q", i, got)
			}
		}
		if got := build(newTapLink(), key.Public{}, nil); got != "waits" {
			t.Errorf("a newcomer: %q", got)
		}
		// A closed connection gives back what it used, waiting requests too.
		r.LinkClosed(r.client)
		synctest.Wait()
		if s := r.Stats(); s.Hops != 5 || s.Waiting != 5 {
			t.Errorf("after LinkClosed: %+v", s)
		}

		middle := &hop{rx: fillID(1), tx: fillID(2), up: relay, down: neighbour{relay: relay}}
		put(t, r.Relay, middle)
		request := func(l Link, id key.Public, n int) string {
			m := make([]byte, n)
			putTrailer(m[n-trailerSize:], new(fill24(1)), &middle.rx, typeRequest)
			back := make(answers, 1)
			r.HandleRequest(l, id, nameControl, m, back.reply)
			select {
			case a := <-back:
				return a.text()
			default:
				return "waits"
			}
		}
		for i, want := range []string{"waits", "waits", "waits", textError} {
			if got := request(r.client, key.Public{}, 100); got != want {
				t.Errorf("request %d: %q", i, got)
			}
		}
		if got := request(newTapLink(), relay, 701); got != textError {
			t.Errorf("701 more bytes: %q", got)
		}
		if got := request(newTapLink(), relay, 700); got != "waits" {
			t.Errorf("700 more bytes: %q", got)
		}
		r.Relay.Close()
		if s := r.Stats(); s.Hops != 0 || s.Waiting != 0 {
			t.Errorf("after Close: %+v", s)
		}
		if got := build(r.client, key.Public{}, nil); got != textError {
			t.Errorf("after Close: %q", got)
		}
	})
}

// TestBuildRate: key agreements are paced for each link.
func TestBuildRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Limits{BuildRate: 2})
		ok := func(l Link) (n int) {
			for range 30 {
				back := make(answers, 1)
				r.HandleRequest(l, key.Public{}, nameBuild, make([]byte, buildSize), back.reply)
				if a := <-back; a.text() == textInvalidData {
					n++
				}
			}
			return n
		}
		if got := ok(r.client); got != 20 {
			t.Errorf("%d at once", got)
		}
		time.Sleep(3 * time.Second)
		if got := ok(r.client); got != 6 {
			t.Errorf("%d after 3 s", got)
		}
		if got := ok(newTapLink()); got != 20 {
			t.Errorf("%d over another link", got)
		}
		// Accounts of links that nobody reported closed do not pile up.
		time.Sleep(2 * idleAccount)
		r.Tick(time.Now())
		if len(r.accounts) != 0 {
			t.Errorf("%d accounts left", len(r.accounts))
		}
	})
}

func TestQuota(t *testing.T) {
	q := quota{link: 16, all: 100}
	for _, c := range []struct {
		mine, total int
		want        bool
	}{
		{0, 0, true}, {15, 49, true}, {16, 16, false}, {1, 50, true}, {2, 50, false}, {0, 99, true}, {0, 100, false},
	} {
		if q.admits(c.mine, c.total) != c.want {
			t.Errorf("%+v", c)
		}
	}
	if !(quota{link: 3, all: 10}).admits(0, 9) {
		t.Error("a small limit shuts newcomers out")
	}
}

// TestBuildCutAndFlip cuts a build message at every byte and flips every bit of its first frame. v0 frames have no MAC (section 10, bug 1): a flip in the record may go unnoticed, but
// then shows in exactly the field that it hits, and nowhere else.
func TestBuildCutAndFlip(t *testing.T) {
	sec := exampleRelay(0)
	msg, _ := exampleBuild(t)
	for n := range msg {
		if _, text := openBuild(sec, sec.Public(), msg[:n]); text != textBadFrames {
			t.Fatalf("cut to %d: %q", n, text)
		}
	}
	good, _ := openBuild(sec, sec.Public(), msg)
	unnoticed := 0
	for bit := range 8 * frameSize {
		m := bytes.Clone(msg)
		m[bit/8] ^= 1 << (bit % 8)
		rec, text := openBuild(sec, sec.Public(), m)
		if text != "" {
			continue
		}
		unnoticed++
		flipped := good
		var raw [4 + 16 + 16 + 32]byte
		binary.LittleEndian.PutUint32(raw[:], good.lifetime)
		copy(raw[4:], good.rx[:])
		copy(raw[20:], good.tx[:])
		copy(raw[36:], good.next[:])
		at := bit/8 - 75
		for _, f := range []struct{ off, n, to int }{{6, 4, 0}, {16, 16, 4}, {38, 16, 20}, {60, 32, 36}} {
			if at >= f.off && at < f.off+f.n {
				raw[f.to+at-f.off] ^= 1 << (bit % 8)
			}
		}
		flipped.lifetime = binary.LittleEndian.Uint32(raw[:])
		flipped.rx, flipped.tx, flipped.next = ID(raw[4:20]), ID(raw[20:36]), key.Public(raw[36:])
		if rec != flipped || rec == good {
			t.Fatalf("bit %d of byte %d passed unnoticed", bit%8, bit/8)
		}
	}
	// Ids and next relay, and those bits of the lifetime that keep it within 1 to 1380.
	if want := 8 * (16 + 16 + 32); unnoticed < want || unnoticed > want+11 {
		t.Errorf("%d flips unnoticed", unnoticed)
	}
}

// TestControlCutAndFlip: a request, and a reply, that was cut or of which a bit was flipped never opens.
func TestControlCutAndFlip(t *testing.T) {
	_, hops := exampleBuild(t)
	r := newRig(t, Limits{})
	term := &hop{rx: fillID(1), tx: fillID(1), up: r.self, down: neighbour{link: r.client}, key: hops[0]}
	put(t, r.Relay, term)
	request := sealRequest("path_ping", []byte("body"), hops[:1], fill24(0x50), &term.rx)
	for n := range request {
		if a, answered := r.ask(nameControl, bytes.Clone(request[:n])); !answered || a.text() != textError {
			t.Fatalf("cut to %d: %q", n, a.text())
		}
	}
	for bit := range 8 * len(request) {
		m := bytes.Clone(request)
		m[bit/8] ^= 1 << (bit % 8)
		if a, answered := r.ask(nameControl, m); !answered || a.text() != textError {
			t.Fatalf("bit %d of byte %d: %q", bit%8, bit/8, a.text())
		}
	}
	if a, _ := r.ask(nameControl, request); a.fail {
		t.Fatal("the request itself:", a.text())
	}

	reply := unhex(t, examplePong[2])
	for n := range reply {
		if _, err := openReply(bytes.Clone(reply[:n]), hops); err == nil {
			t.Fatalf("cut to %d", n)
		}
	}
	for bit := range 8 * (len(reply) - idSize - 1) { // hop id and type are not looked at (section 4.1)
		m := bytes.Clone(reply)
		m[bit/8] ^= 1 << (bit % 8)
		if _, err := openReply(m, hops); !errors.Is(err, ErrUnauthentic) {
			t.Fatalf("bit %d of byte %d", bit%8, bit/8)
		}
	}
	if _, err := openReply(sealReply(nil, &hops[0], fill24(1), &ID{}), hops[:1]); err != ErrEmptyReply {
		t.Error(err)
	}
}
