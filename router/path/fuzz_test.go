package path

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/seal"
)

// deaf is a Mesh and a Link that takes everything and answers nothing, at once.
type deaf struct{ n int }

func (*deaf) Datagram(_ key.Public, b *packet.Buffer)  { b.Release() }
func (*deaf) Command(key.Public, string, []byte) error { return nil }
func (*deaf) Request(_ context.Context, _ key.Public, _ string, _ []byte) ([]byte, error) {
	return nil, errSim
}

type deafLink struct{ deaf }

func (*deafLink) Send(b *packet.Buffer)                                   { b.Release() }
func (*deafLink) Command(string, []byte) error                            { return nil }
func (*deafLink) Request(context.Context, string, []byte) ([]byte, error) { return nil, errSim }

// echoing answers whatever it gets with what it got, or nearly: a neighbour that sends our own bytes back.
type echoing struct{ deaf }

func (*echoing) Request(_ context.Context, _ key.Public, _ string, body []byte) ([]byte, error) {
	answer := bytes.Clone(body)
	switch len(body) % 4 {
	case 1:
		answer = answer[:5]
	case 2:
		answer[len(answer)-1] ^= 1
	}
	return answer, nil
}

// echoLink is a client that sends our own bytes back, or an error of its own.
type echoLink struct{ deafLink }

func (*echoLink) Request(_ context.Context, _ string, body []byte) ([]byte, error) {
	if len(body)%2 == 1 {
		return nil, refusal(body)
	}
	return bytes.Clone(body), nil
}

type refusal []byte

func (refusal) Error() string       { return "refused" }
func (r refusal) ReplyBody() []byte { return r }

// FuzzRelay: a neighbour, who may be anyone, sends a relay datagrams and requests of any content; those who know an id can aim them. Whatever comes, nothing
// panics, no buffer is lost, what a middle hop passes on keeps its length, and what the relay holds stays within its limits.
//
// Decoders: Relay.HandleRequest Relay.Datagram Relay.session Relay.peel hop.readdress Relay.pivot turn Relay.control passReply split
func FuzzRelay(f *testing.F) {
	msg := func(id byte, n int, typ byte) []byte {
		m := make([]byte, n+trailerSize)
		putTrailer(m[n:], new(fill24(1)), new(fillID(id)), typ)
		return m
	}
	build, _, err := makeBuild(exampleFrames(), 1200, make([]byte, 5*frameSize))
	if err != nil {
		f.Fatal(err)
	}
	toPivot := func(typ, id byte) []byte {
		m := msg(1, 40, typ)
		copy(m[24:40], bytes.Repeat([]byte{id}, pivotSize))
		return m
	}
	for kind := range byte(8) {
		for _, id := range []byte{1, 2, 3, 4, 9} {
			f.Add(kind, toPivot(id%4, id%5))
			f.Add(kind, msg(id, 101, 1))
			f.Add(kind, msg(id, 99, 1))
			f.Add(kind, msg(id, 17, 1))
			f.Add(kind, msg(id, 20, 2))
			f.Add(kind, msg(id, 100, 1))
		}
		f.Add(kind, toPivot(0, 1))
		f.Add(kind, build)
		f.Add(kind, []byte{})
	}
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		before := packet.InUse()
		l := Limits{Hops: 8, Builds: 2, Requests: 2, RequestBytes: 4096}
		local := &localTap{request: func(_ string, body []byte, reply func([]byte)) { reply(body) }}
		r := NewRelay(exampleRelay(0), new(echoing), local, l, nil)
		client := new(echoLink)
		// Hops whose key streams are known, so that what is aimed at them can be anything inside.
		put(t, r, &hop{rx: fillID(1), tx: fillID(1), up: r.self, down: neighbour{link: client}, key: seal.NewHop(fill32(1))})
		put(t, r, &hop{rx: fillID(2), tx: fillID(2), up: r.self, down: neighbour{link: client}, key: seal.NewHop(fill32(2))})
		put(t, r, &hop{rx: fillID(3), tx: fillID(4), up: exampleRelay(1).Public(), down: neighbour{link: client}, key: seal.NewHop(fill32(3))})
		if n := len(data) - trailerSize; kind&4 != 0 && n >= 0 { // what is sealed for the hop is what was meant
			if h := r.table.live((*ID)(data[n+24:])); h != nil {
				data = bytes.Clone(data)
				payload, nonce, _, _ := split(data)
				wrap(payload, []seal.Hop{h.key}, nonce)
			}
		}
		back := make(answers, 8)
		for range 4 {
			switch kind % 4 {
			case 0:
				if len(data) <= packet.MaxData {
					r.Datagram(buffer(data))
				}
			case 1:
				r.HandleRequest(client, key.Public{}, nameSession, bytes.Clone(data), back.reply)
			case 2:
				r.HandleRequest(client, key.Public{}, nameControl, bytes.Clone(data), back.reply)
			case 3:
				r.HandleRequest(client, key.Public{}, nameBuild, bytes.Clone(data), back.reply)
			}
			if r.HandleRequest(client, key.Public{}, "path", data, nil) {
				t.Fatal("took a request of another name")
			}
		}
		r.wg.Wait()
		r.Tick(time.Now())
		if s := r.Stats(); s.Hops > 8 || s.Waiting > 4 {
			t.Fatalf("%+v", s)
		}
		r.Close()
		if s := r.Stats(); s.Hops != 0 || s.Waiting != 0 || len(back) > 4 {
			t.Fatalf("%+v, %d answers", s, len(back))
		}
		if packet.InUse() != before {
			t.Fatal("buffer leaked")
		}
	})
}

// FuzzRecord: the author of a build decides every byte of a relay's record, which is under a key that both know. What is accepted has the properties that the relay
// relies on, and is the same when a client writes it again.
//
// Decoders: openBuild fields.next fields.end
func FuzzRecord(f *testing.F) {
	inner := func(life uint32, rx, tx byte, next key.Public) []byte {
		b := append([]byte("d1:l4:"), binary.LittleEndian.AppendUint32(nil, life)...)
		b = append(append(b, "1:r16:"...), bytes.Repeat([]byte{rx}, 16)...)
		b = append(append(b, "1:t16:"...), bytes.Repeat([]byte{tx}, 16)...)
		b = append(append(b, "1:u32:"...), next[:]...)
		return append(b, 'e')
	}
	self := exampleRelay(0).Public()
	f.Add(inner(1200, 1, 2, exampleRelay(1).Public()))
	f.Add(inner(1200, 1, 1, self))
	f.Add(inner(1381, 1, 1, self))
	f.Add(inner(0, 0, 0, key.Public{}))
	whole, _, err := makeBuild(exampleFrames(), 1200, make([]byte, 5*frameSize))
	if err != nil {
		f.Fatal(err)
	}
	for _, at := range []int{0, 3, len("d1:k32:"), frameSize - 1, frameSize} { // another version, another layout, no key, no end, another relay's
		bad := bytes.Clone(whole)
		clear(bad[at:min(at+32, frameSize+at/frameSize)])
		bad[0] ^= byte(at / 3 % 2)
		f.Add(bad)
	}
	whole[0] = frameV1
	f.Add(whole)
	f.Fuzz(func(t *testing.T, plain []byte) {
		if len(plain) != innerSize {
			before := bytes.Clone(plain)
			if _, text := openBuild(exampleRelay(1), exampleRelay(1).Public(), plain); text == "" || !bytes.Equal(plain, before) {
				t.Fatalf("a build that was made for others: %q", text)
			}
			return
		}
		fr := frame{relay: self, eph: secretOf(0x20), nonce: fill24(3), rx: fillID(1), tx: fillID(2)}
		msg, hops, err := makeBuild([]frame{fr}, 1, make([]byte, 7*frameSize))
		if err != nil {
			t.Fatal(err)
		}
		x := msg[frameSize-1-innerSize : frameSize-1]
		copy(x, plain)
		seal.Stream(x, &hops[0].Key, &fr.nonce)
		rec, text := openBuild(exampleRelay(0), self, msg)
		if text != "" {
			return
		}
		if rec.rx.IsZero() || rec.tx.IsZero() || rec.terminal != (rec.rx == rec.tx) || rec.terminal != (rec.next == self) ||
			rec.lifetime < 1 || rec.lifetime > maxLifetime {
			t.Fatalf("accepted %+v", rec)
		}
		fr.rx, fr.tx, fr.next = rec.rx, rec.tx, rec.next
		again, _, err := makeBuild([]frame{fr}, rec.lifetime, make([]byte, 7*frameSize))
		if err != nil || !bytes.Equal(again, msg) {
			t.Fatal("written again it differs")
		}
	})
}

// FuzzRequest: the client of a path, who may be anyone, decides every byte of what it seals for the terminal relay. What is parsed is written again as the same bytes, unless
// it had more keys than the two.
//
// Decoders: openRequest openReply
func FuzzRequest(f *testing.F) {
	for _, s := range []string{examplePingPlain, "d1:e0:1:p0:e", "d1:e9:path_pinge", "de", "le", "d1:a0:1:e1:x1:p1:ye"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, plain []byte) {
		h := seal.NewHop(fill32(1))
		id := fillID(1)
		msg := sealReply(plain, &h, fill24(1), &id) // sealed alike
		if got, err := openReply(bytes.Clone(msg), []seal.Hop{h}); (err == nil) != (len(plain) > 0) || err == nil && !bytes.Equal(got, plain) {
			t.Fatalf("as a reply it is %q, %v", got, err)
		}
		first := seal.NewHop(fill32(9))
		over := bytes.Clone(msg)
		if !passReply(over, &first, &id, &id) {
			t.Fatal("does not pass")
		}
		if got, _ := openReply(over, []seal.Hop{first, h}); !bytes.Equal(got, plain) {
			t.Fatalf("over two hops it is %q", got)
		}
		for _, forged := range [][]byte{plain, over} {
			if _, err := openReply(bytes.Clone(forged), []seal.Hop{h}); err == nil {
				t.Fatal("a forged reply opens")
			}
		}
		if _, _, opened, _ := openRequest(bytes.Clone(plain), &h, new(fill24(2))); opened {
			t.Fatal("opens unsealed")
		}
		payload, nonce, _, _ := split(msg)
		*nonce = fill24(1)
		seal.Xor(nonce, &h.Xor)
		method, body, opened, parsed := openRequest(payload, &h, nonce)
		if !opened {
			t.Fatal("does not open")
		}
		if !parsed {
			return
		}
		again := sealRequest(method, bytes.Clone(body), []seal.Hop{h}, fill24(2), &id)
		payload, nonce, _, _ = split(again)
		m, b, opened, parsed := openRequest(payload, &h, nonce)
		if !opened || !parsed || m != method || !bytes.Equal(b, body) {
			t.Fatalf("%q %q becomes %q %q", method, body, m, b)
		}
	})
}

// FuzzClient: an edge sends a client datagrams and requests of any content, and replies to its requests. What is delivered keeps its length, and nothing that was not sealed by the terminal
// passes for a reply.
//
// Decoders: Client.Datagram Client.HandleRequest Client.session Client.find statusText
func FuzzClient(f *testing.F) {
	m := make([]byte, 60)
	putTrailer(m[60-trailerSize:], new(fill24(1)), new(fillID(0x40)), TypeControl)
	f.Add(m)
	f.Add(m[3:])
	f.Add([]byte{})
	for typ := range byte(4) {
		m = bytes.Clone(m)
		m[59] = typ
		f.Add(m)
	}
	f.Add(status(textOK))
	f.Add(status("\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := packet.InUse()
		r := newRigged(t)
		got := 0
		r.owner.onMessage = func(_ *Path, b *packet.Buffer) {
			if got++; len(b.Data) != len(data)-trailerSize {
				t.Errorf("%d bytes of %d", len(b.Data), len(data))
			}
			b.Release()
		}
		r.owner.onControl = func(_ *Path, typ byte, msg []byte, _ [24]byte) {
			if got++; len(msg) != len(data)-trailerSize || typ < TypeControl || typ > TypeHandshake {
				t.Errorf("%d bytes of %d, type %d", len(msg), len(data), typ)
			}
		}
		if len(data) <= packet.MaxData {
			r.Datagram(r.link, buffer(data))
		}
		r.HandleRequest(r.link, nameSession, bytes.Clone(data), nil)
		theirs := got
		r.HandleRequest(newTapLink(), nameSession, bytes.Clone(data), nil) // from another edge
		refused := 0
		r.HandleRequest(r.link, nameBuild, data, func([]byte, bool) { refused++ })
		if r.HandleRequest(r.link, "path", data, nil) || refused != 1 || got != theirs {
			t.Error("takes what is not for it")
		}
		r.pool.events.close() // its owner is gone, and it is not forgotten yet
		r.HandleRequest(r.link, nameSession, bytes.Clone(data), nil)
		if len(data) <= packet.MaxData {
			r.Datagram(r.link, buffer(data))
		}
		if got != theirs {
			t.Error("delivered to nobody")
		}
		if got > 0 && len(data) < minMessage {
			t.Error("too short, and delivered")
		}
		if _, err := openReply(bytes.Clone(data), r.path.hops); err == nil {
			t.Error("a forged reply opens")
		}
		statusText(data)
		if packet.InUse() != before {
			t.Error("buffer leaked")
		}
	})
}
