//go:build sodium

package session_test

import (
	"bytes"
	"context"
	"crypto/mlkem"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/seal/sodium"
	"lokinetd/router/session"
)

// TestSodiumSessions: libsodium calls our relay, our client calls libsodium's relay or client, and libsodium's client calls ours, over paths of one hop. Every message is made or opened by libsodium; only
// the ML-KEM part, which it does not have, is the standard library's. All that by the 1.1 and by the 1.0 handshake.
func TestSodiumSessions(t *testing.T) {
	peer := sodium.Start(t)
	for name, check := range map[string]func(c *sodium.Case, old bool) error{"called": called, "calling": calling, "answering": answering} {
		t.Run(name, func(t *testing.T) {
			sodium.Check(t, peer, name, 100, func(c *sodium.Case) error { return check(c, false) })
		})
		t.Run(name+" 1.0", func(t *testing.T) {
			sodium.Check(t, peer, name+"-1.0", 100, func(c *sodium.Case) error { return check(c, true) })
		})
	}
}

// acceptedTag reads the plaintext of a 1.0 accept (protocol 4 section 3.7).
func acceptedTag(plain []byte) ([]byte, error) {
	var n uint32
	var size int
	if _, err := fmt.Sscanf(string(plain), "d1:e14:session_accept1:p%d:d1:ti%deee", &size, &n); err != nil || size != len(fmt.Sprintf("d1:ti%dee", n)) ||
		string(plain) != oldAccept(number(n)) {
		return nil, fmt.Errorf("1.0 accept %q: %w", plain, err)
	}
	return number(n), nil
}

func oldAccept(tag []byte) string {
	param := fmt.Sprintf("d1:ti%dee", binary.BigEndian.Uint32(tag))
	return fmt.Sprintf("d1:e14:session_accept1:p%d:%se", len(param), param)
}

var noTag = make([]byte, 4)

// wire is the connection between client and relay, on the side that libsodium plays: what came last.
type wire struct {
	datagrams, commands chan []byte
	answer              map[string]func(body []byte) ([]byte, error)
}

func newWire() *wire {
	return &wire{datagrams: make(chan []byte, 1000), commands: make(chan []byte, 1000)}
}

func (w *wire) Send(b *packet.Buffer) {
	w.datagrams <- bytes.Clone(b.Data)
	b.Release()
}

func (w *wire) Command(name string, body []byte) error {
	if name != "session_control" {
		return errors.New(name)
	}
	w.commands <- bytes.Clone(body)
	return nil
}

func (w *wire) Request(ctx context.Context, name string, body []byte) ([]byte, error) {
	if f := w.answer[name]; f != nil {
		return f(bytes.Clone(body))
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// take waits for a message.
func take(c chan []byte) ([]byte, error) {
	select {
	case b := <-c:
		return b, nil
	case <-time.After(10 * time.Second):
		return nil, errors.New("no message came")
	}
}

func number64(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func number(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// ipPacket gives a packet without addresses, and its traffic type (protocol 3 section 3.3).
func ipPacket(c *sodium.Case) (p []byte, typ byte) {
	p = append(make([]byte, 20), c.Some(1000)...)
	if len(p) < 28 {
		p = append(p, make([]byte, 8)...)
	}
	p[0], p[8], p[9] = 0x45, 64, []byte{17, 6, 1}[c.IntN(3)]
	if p[9] == 6 {
		p = append(p, make([]byte, 20)...)
		p[20+12] = 5 << 4
	}
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	if p[9] == 17 {
		binary.BigEndian.PutUint16(p[24:], uint16(len(p)-20))
	}
	return p, map[byte]byte{17: 0, 6: 1, 1: 2}[p[9]]
}

// tag draws one that is not 0.
func tag(c *sodium.Case) []byte { return number(c.Uint32() | 1) }

// local hands a relay's sessions what its paths bring.
type local struct{ table *session.Table }

func (l *local) PathRequest(path.ID, string, []byte, func([]byte)) {}
func (l *local) SessionControl(t *path.Terminal, typ byte, msg []byte, n [24]byte) {
	l.table.TerminalControl(t, typ, msg, n)
}
func (l *local) SessionDatagram(t *path.Terminal, b *packet.Buffer) { l.table.TerminalDatagram(t, b) }

type noMesh struct{}

func (noMesh) Datagram(_ key.Public, b *packet.Buffer)  { b.Release() }
func (noMesh) Command(key.Public, string, []byte) error { return errors.New("no mesh") }
func (noMesh) Request(context.Context, key.Public, string, []byte) ([]byte, error) {
	return nil, errors.New("no mesh")
}

func deliverer() (chan []byte, func(key.Address, *packet.Buffer)) {
	c := make(chan []byte, 100)
	return c, func(_ key.Address, b *packet.Buffer) {
		c <- bytes.Clone(b.Data)
		b.Release()
	}
}

// called: a client of libsodium builds two paths to our relay, calls it, talks, moves to the other path, says good-bye.
func called(c *sodium.Case, old bool) error {
	relaySeed, clientSeed := c.Seed(), c.Seed()
	relay, client := key.FromSeed(relaySeed), key.FromSeed(clientSeed).Public()
	relayKey := relay.Public()
	delivered, deliver := deliverer()
	l := &local{}
	l.table = session.NewTable(session.Config{Self: relay, Relay: true, Deliver: deliver})
	transit := path.NewRelay(relay, noMesh{}, l, path.Limits{}, nil)
	defer transit.Close()
	defer l.table.Close()

	w := newWire()
	type way struct{ id, key []byte }
	var ways []way
	for range 2 {
		id := c.Bytes(16)
		r := c.Must("build", number(1200), c.Bytes(7*169), relayKey[:], c.Bytes(32), c.Bytes(24), id)
		answered := make(chan bool, 1)
		transit.HandleRequest(w, key.Public{}, "path_build", r[0], func(_ []byte, fail bool) { answered <- fail })
		if <-answered {
			return errors.New("build refused")
		}
		ways = append(ways, way{id, r[1]})
	}
	send := func(v way, channel string, typ byte, nonce, msg []byte) {
		m := c.Must("wrap", nonce, v.id, []byte{typ}, append(bytes.Clone(msg), v.id...), v.key)[0]
		if channel != "datagram" {
			transit.HandleRequest(w, key.Public{}, channel, m, nil)
			return
		}
		b := packet.Get()
		b.Set(m)
		transit.Datagram(b)
	}
	receive := func(from chan []byte, v way) (payload, nonce []byte, typ byte, err error) {
		m, err := take(from)
		if err != nil {
			return nil, nil, 0, err
		}
		r := c.Must("unwrap", m, v.key)
		return r[0], r[1], r[3][0], sodium.Same("id", v.id, r[2])
	}

	ours := tag(c)
	var out, in, theirs, init []byte
	if old {
		r := c.Must("oldinit", clientSeed[:], relayKey[:], c.Bytes(32), c.Bytes(24), ways[0].id, ours)
		init, out, in = r[0], r[1], r[1]
		send(ways[0], "session_control", 1, c.Bytes(24), append(bytes.Clone(init), noTag...))
		accept, nonce, typ, err := receive(w.commands, ways[0])
		if err != nil || typ != 1 {
			return fmt.Errorf("1.0 accept of type %d, %w", typ, err)
		}
		if r, err = c.Ask("undata", in, nonce, accept); err != nil {
			return err
		}
		if theirs, err = acceptedTag(r[0]); err != nil {
			return err
		}
		if err := sodium.Same("tag of the accept", r[1], ours); err != nil {
			return err
		}
	} else {
		x := c.Bytes(32)
		X := c.Must("x", x)[0]
		dk, err := mlkem.GenerateKey768()
		if err != nil {
			return err
		}
		m := dk.EncapsulationKey().Bytes()
		init = c.Must("init", clientSeed[:], relayKey[:], X, m, ways[0].id, ours)[0]
		send(ways[0], "session_control", 2, c.Bytes(24), append(bytes.Clone(init), noTag...))
		accept, _, typ, err := receive(w.commands, ways[0])
		if err != nil || typ != 2 {
			return fmt.Errorf("accept of type %d, %w", typ, err)
		}
		end := len(accept) - 4
		r, err := c.Ask("openaccept", clientSeed[:], relayKey[:], accept[:end])
		if err != nil {
			return err
		}
		theirs = r[2]
		if err := sodium.Same("tag of the accept", accept[end:], ours); err != nil {
			return err
		}
		ks, err := dk.Decapsulate(r[1])
		if err != nil {
			return err
		}
		k := c.Must("session", x, r[0], client[:], relayKey[:], ours, theirs, X, r[0], ks, m)
		out, in = k[0], k[1]
	}

	for _, v := range ways {
		p, kind := ipPacket(c)
		nonce := c.Bytes(24)
		send(v, "datagram", 1, nonce, c.Must("data", out, nonce, p, []byte{kind}, theirs)[0])
		got, err := take(delivered)
		if err := errors.Join(err, sodium.Same("packet", got, p)); err != nil {
			return fmt.Errorf("%w\n%+v", err, l.table.Stats())
		}
		p, kind = ipPacket(c)
		b := packet.Get()
		b.Set(p)
		l.table.Send(key.Address{Key: client}, b)
		msg, nonce, typ, err := receive(w.datagrams, v)
		if err != nil {
			return err
		}
		r, err := c.Ask("undata", in, nonce, msg)
		if err != nil {
			return err
		}
		if err := errors.Join(sodium.Same("answer", append(bytes.Clone(p), kind), r[0]), sodium.Same("its tag", ours, r[1]), sodium.Same("its type", []byte{typ}, []byte{1})); err != nil {
			return err
		}
		// To the other path; what comes from the relay afterwards must come there.
		nonce = c.Bytes(24)
		outer, list := nonce, []byte(nil)
		if old {
			outer, list = c.Must("oldnonce", nonce)[0], c.Bytes(c.IntN(2)) // as 1.0 or 1.1 remotes send it
		}
		send(ways[1], "session_control", 2, outer, append(c.Must("switch", out, nonce, ways[1].id, init, list)[0], theirs...))
	}
	nonce := c.Bytes(24)
	send(ways[1], "session_control", 1, nonce, c.Must("data", out, nonce, []byte("d1:e13:session_close1:p0:e"), nil, theirs)[0])
	if list := l.table.List(); len(list) != 0 {
		return fmt.Errorf("after session_close: %+v", list)
	}
	return nil
}

// far is a relay of libsodium, the only one of a client of ours: its edge, the end of all its paths, and the pivot between it and a client of libsodium.
type far struct {
	c         *sodium.Case
	w         *wire
	seed      [32]byte
	key       key.Public
	self      *key.Secret // ours
	paths     *path.Client
	table     *session.Table
	delivered chan []byte
	published chan []byte // by us
	stop      func()

	mu      sync.Mutex // builds and look-ups come from goroutines
	hops    map[path.ID][]byte
	contact []byte // of the client of libsodium, sealed, and under which key it is kept
	blinded []byte
}

func newFar(c *sodium.Case, publish, old bool) (*far, error) {
	f := &far{c: c, w: newWire(), seed: c.Seed(), self: key.FromSeed(c.Seed()), published: make(chan []byte, 100), hops: make(map[path.ID][]byte)}
	f.key = key.FromSeed(f.seed).Public()
	now := time.Now()
	version := []byte{1, 1, 0}
	if old {
		version = []byte{1, 0, 2}
	}
	raw := c.Must("contact", f.seed[:], make([]byte, 8), []byte{10, 0, 0, 1, 4, 166}, number64(now.Unix()), version)[0]
	contact, err := netdb.ParseRelayContact(raw, now, netdb.Rules{Private: true})
	if err != nil {
		return nil, err
	}
	store, err := netdb.OpenStore("", key.Public{}, false, netdb.Rules{Private: true}, nil)
	if err != nil {
		return nil, err
	}
	store.Put(contact)
	f.w.answer = map[string]func([]byte) ([]byte, error){"path_build": f.build, "path_control": f.control}
	opt := path.DefaultOptions()
	opt.Edges, opt.UniqueRange = 1, 0
	f.paths = path.NewClient(path.ClientConfig{Options: opt, Store: store})
	var deliver func(key.Address, *packet.Buffer)
	f.delivered, deliver = deliverer()
	f.table = session.NewTable(session.Config{
		Self: f.self, Deliver: deliver, Paths: f.paths, Inbound: 1, InboundHops: 1, Outbound: 1, ClientHops: 1, RelayHops: 1,
		RelayContact: func(k key.Public) *netdb.RelayContact { return store.Get(k) },
		Publish:      publish, Flags: 28, Accept: func(key.Public) bool { return true },
	})
	f.paths.EdgeUp(f.key, f.w)
	ctx, cancel := context.WithCancel(context.Background())
	var ticking sync.WaitGroup
	ticking.Go(func() {
		for ctx.Err() == nil {
			f.table.Tick(time.Now())
			f.paths.Tick(time.Now())
			time.Sleep(5 * time.Millisecond)
		}
	})
	f.stop = func() {
		cancel()
		ticking.Wait()
		f.table.Close()
		f.paths.Close()
	}
	return f, nil
}

func (f *far) ask(op string, args ...[]byte) ([][]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.c.Ask(op, args...)
}

func (f *far) hop(id []byte) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hops[path.ID(id)]
}

func (f *far) build(body []byte) ([]byte, error) {
	r, err := f.ask("peel", f.seed[:], body, make([]byte, 169))
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hops[path.ID(r[1])] = r[0]
	return []byte("d1:!2:OKe"), nil
}

func (f *far) control(body []byte) ([]byte, error) {
	nonce := bytes.Clone(body[:24]) // random enough; a case's own randomness is not for goroutines
	id := body[len(body)-17 : len(body)-1]
	hop := f.hop(id)
	r, err := f.ask("serve", hop, body)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	contact, blinded := f.contact, f.blinded
	f.mu.Unlock()
	reply := "d1:!2:OKe"
	switch method, arg := string(r[1]), r[2]; {
	case method == "publish_cc":
		f.published <- arg
	case method == "find_cc" && contact != nil && bytes.HasPrefix(arg, append([]byte("d1:k32:"), blinded...)):
		reply = fmt.Sprintf("d1:!2:OK1:x%d:%se", len(contact), contact)
	case method == "find_cc":
		reply = "d1:!9:NOT FOUNDe"
	}
	if r, err = f.ask("reply", hop, id, nonce, []byte(reply)); err != nil {
		return nil, err
	}
	return r[0], nil
}

// message is what came from our client over one of its paths.
type message struct {
	body, tag, pivot, nonce, id []byte
	typ                         byte
}

func (f *far) receive(from chan []byte) (m message, err error) {
	b, err := take(from)
	if err != nil {
		return m, err
	}
	m.id = b[len(b)-17 : len(b)-1]
	r, err := f.ask("arrive", f.hop(m.id), b)
	if err != nil {
		return m, err
	}
	n := len(r[0]) - 4
	return message{r[0][:n], r[0][n:], r[1], r[2], m.id, r[3][0]}, nil
}

// send sends body and tag down one of our client's paths.
func (f *far) send(id []byte, channel string, typ byte, nonce, msg []byte) error {
	r, err := f.ask("down", f.hop(id), id, nonce, []byte{typ}, msg)
	if err != nil {
		return err
	}
	if channel != "datagram" {
		f.paths.HandleRequest(f.w, channel, r[0], nil)
		return nil
	}
	b := packet.Get()
	b.Set(r[0])
	f.paths.Datagram(f.w, b)
	return nil
}

// talk sends a packet each way between our client and to. ours is the tag on messages to libsodium, theirs on those to our client, whose path id is.
func (f *far) talk(to key.Address, id, pivot, ours, theirs, fromUs, toUs []byte) error {
	p, kind := ipPacket(f.c)
	b := packet.Get()
	b.Set(p)
	if !f.table.Send(to, b) {
		return errors.New("packet not sent")
	}
	m, err := f.receive(f.w.datagrams)
	if err != nil {
		return err
	}
	r, err := f.ask("undata", fromUs, m.nonce, append(m.body, m.tag...))
	if err != nil {
		return err
	}
	if err := errors.Join(sodium.Same("packet", append(bytes.Clone(p), kind), r[0]), sodium.Same("its tag", m.tag, ours),
		sodium.Same("its pivot", m.pivot, pivot), sodium.Same("its type", []byte{m.typ}, []byte{1})); err != nil {
		return err
	}
	p, kind = ipPacket(f.c)
	nonce := f.c.Bytes(24)
	if r, err = f.ask("data", toUs, nonce, p, []byte{kind}, theirs); err != nil {
		return err
	}
	if err := f.send(id, "datagram", 1, nonce, r[0]); err != nil {
		return err
	}
	got, err := take(f.delivered)
	return errors.Join(err, sodium.Same("packet from the remote", got, p))
}

// calling: our client calls the relay, or a client whose contact that relay knows.
func calling(c *sodium.Case, old bool) error {
	f, err := newFar(c, false, old)
	if err != nil {
		return err
	}
	defer f.stop()
	client := f.self.Public()
	remote, to, terminal := f.seed, key.Address{Key: f.key, Kind: key.Relay}, []byte(nil)
	if c.IntN(2) == 0 {
		remote = c.Seed()
		to = key.Address{Key: key.FromSeed(remote).Public()}
		terminal = c.Bytes(16) // of its path
		now := time.Now()
		flags := 60
		if old {
			flags = 15 // all but the 1.1 handshake; two of them meant something in 1.0
		}
		inner := fmt.Sprintf("d0:i0e1:a32:%s1:ild1:ei%de1:h16:%s1:r32:%see1:pi%dee", to.Key[:], now.Unix()+1200, terminal, f.key[:], flags)
		f.mu.Lock()
		f.contact = c.Must("sealcontact", remote[:], c.Bytes(24), number64(now.UnixMilli()), []byte(inner))[0]
		f.blinded = c.Must("blind", to.Key[:])[0]
		f.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	connected := make(chan error, 1)
	go func() { connected <- f.table.Connect(ctx, to) }()

	m, err := f.receive(f.w.commands)
	if err != nil || (m.typ == 1) != old {
		return fmt.Errorf("init of type %d, %w", m.typ, err)
	}
	if terminal == nil {
		terminal = m.id
	}
	if old {
		r, err := f.ask("openoldinit", remote[:], m.body)
		if err != nil {
			return err
		}
		if err := errors.Join(sodium.Same("tag of an init", m.tag, noTag), sodium.Same("caller", client[:], r[0]), sodium.Same("p", r[1], m.id),
			sodium.Same("its pivot", m.pivot, terminal)); err != nil {
			return err
		}
		theirs, k, ours, nonce := r[2], r[3], tag(c), c.Bytes(24)
		if r, err = f.ask("data", k, nonce, []byte(oldAccept(ours)), nil, theirs); err != nil {
			return err
		}
		if err := f.send(m.id, "session_control", 1, nonce, r[0]); err != nil {
			return err
		}
		if err := <-connected; err != nil {
			return err
		}
		return f.talk(to, m.id, terminal, ours, theirs, k, k)
	}
	r, err := f.ask("openinit", remote[:], m.body)
	if err != nil {
		return err
	}
	x, ek, theirs := r[1], r[2], r[4]
	if err := errors.Join(sodium.Same("tag of an init", m.tag, noTag), sodium.Same("caller", client[:], r[0]), sodium.Same("p", r[3], m.id),
		sodium.Same("its pivot", m.pivot, terminal)); err != nil {
		return err
	}
	encapsulator, err := mlkem.NewEncapsulationKey768(ek)
	if err != nil {
		return err
	}
	ks, ct := encapsulator.Encapsulate()
	y, ours := c.Bytes(32), tag(c)
	Y, err := f.ask("x", y)
	if err != nil {
		return err
	}
	accept, err := f.ask("accept", remote[:], client[:], Y[0], ct, ours)
	if err != nil {
		return err
	}
	if err := f.send(m.id, "session_control", 2, c.Bytes(24), append(accept[0], theirs...)); err != nil {
		return err
	}
	if err := <-connected; err != nil {
		return err
	}
	k, err := f.ask("session", y, x, client[:], to.Key[:], theirs, ours, x, Y[0], ks, ek)
	if err != nil {
		return err
	}
	return f.talk(to, m.id, terminal, ours, theirs, k[0], k[1])
}

// answering: a client of libsodium reads the contact that ours has published and calls it.
func answering(c *sodium.Case, old bool) error {
	f, err := newFar(c, true, old)
	if err != nil {
		return err
	}
	defer f.stop()
	caller, ours := c.Seed(), tag(c)
	self, callerKey := f.self.Public(), key.FromSeed(caller).Public()
	from := key.Address{Key: callerKey}

	publication, err := take(f.published)
	if err != nil {
		return err
	}
	// d 1:e <sealed> 1:n i<location>e e
	var size, location int
	if _, err := fmt.Sscanf(string(publication), "d1:e%d:", &size); err != nil {
		return fmt.Errorf("publish_cc %.20q: %w", publication, err)
	}
	start := len(fmt.Sprintf("d1:e%d:", size))
	if _, err := fmt.Sscanf(string(publication[start+size:]), "1:ni%dee", &location); err != nil || location < 0 || location > 3 {
		return fmt.Errorf("publish_cc ends with %q: %w", publication[start+size:], err)
	}
	contact, err := f.ask("uncontact", self[:], publication[start:start+size])
	if err != nil {
		return err
	}
	inner := contact[2]
	head, tail := fmt.Appendf(nil, "d0:i0e1:a32:%s1:ild1:ei", self[:]), fmt.Appendf(nil, "1:r32:%see1:pi28ee", f.key[:])
	if !bytes.HasPrefix(inner, head) || !bytes.HasSuffix(inner, tail) {
		return fmt.Errorf("our contact: %q", inner)
	}
	id := inner[len(inner)-len(tail)-16 : len(inner)-len(tail)]
	if f.hop(id) == nil {
		return fmt.Errorf("our contact names %x, which is no path", id)
	}

	terminal := c.Bytes(16)
	var toUs, fromUs, theirs []byte
	if old {
		r, err := f.ask("oldinit", caller[:], self[:], c.Bytes(32), c.Bytes(24), terminal, ours)
		if err != nil {
			return err
		}
		toUs, fromUs = r[1], r[1]
		if err := f.send(id, "session_control", 1, c.Bytes(24), append(bytes.Clone(r[0]), noTag...)); err != nil {
			return err
		}
		m, err := f.receive(f.w.commands)
		if err != nil || m.typ != 1 {
			return fmt.Errorf("1.0 accept of type %d, %w", m.typ, err)
		}
		if r, err = f.ask("undata", fromUs, m.nonce, append(m.body, m.tag...)); err != nil {
			return err
		}
		if theirs, err = acceptedTag(r[0]); err != nil {
			return err
		}
		if err := errors.Join(sodium.Same("tag of an accept", m.tag, ours), sodium.Same("its pivot", m.pivot, terminal), sodium.Same("its path", m.id, id)); err != nil {
			return err
		}
	} else {
		x := c.Bytes(32)
		X, err := f.ask("x", x)
		if err != nil {
			return err
		}
		dk, err := mlkem.GenerateKey768()
		if err != nil {
			return err
		}
		ek := dk.EncapsulationKey().Bytes()
		init, err := f.ask("init", caller[:], self[:], X[0], ek, terminal, ours)
		if err != nil {
			return err
		}
		if err := f.send(id, "session_control", 2, c.Bytes(24), append(bytes.Clone(init[0]), noTag...)); err != nil {
			return err
		}
		m, err := f.receive(f.w.commands)
		if err != nil || m.typ != 2 {
			return fmt.Errorf("accept of type %d, %w", m.typ, err)
		}
		r, err := f.ask("openaccept", caller[:], self[:], m.body)
		if err != nil {
			return err
		}
		Y := r[0]
		theirs = r[2]
		if err := errors.Join(sodium.Same("tag of an accept", m.tag, ours), sodium.Same("its pivot", m.pivot, terminal), sodium.Same("its path", m.id, id)); err != nil {
			return err
		}
		ks, err := dk.Decapsulate(r[1])
		if err != nil {
			return err
		}
		k, err := f.ask("session", x, Y, callerKey[:], self[:], ours, theirs, X[0], Y, ks, ek)
		if err != nil {
			return err
		}
		toUs, fromUs = k[0], k[1]
	}
	// Ours speaks first only when it was spoken to.
	p, kind := ipPacket(c)
	nonce := c.Bytes(24)
	data, err := f.ask("data", toUs, nonce, p, []byte{kind}, theirs)
	if err != nil {
		return err
	}
	if err := f.send(id, "datagram", 1, nonce, data[0]); err != nil {
		return err
	}
	got, err := take(f.delivered)
	if err := errors.Join(err, sodium.Same("first packet", got, p)); err != nil {
		return err
	}
	return f.talk(from, id, terminal, ours, theirs, fromUs, toUs)
}
