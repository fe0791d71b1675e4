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

// TestSodiumSessions: libsodium calls our relay, then our client calls libsodium's relay or client, over a path of one hop. Every message is made or opened by libsodium; only
// the ML-KEM part, which it does not have, is the standard library's.
func TestSodiumSessions(t *testing.T) {
	peer := sodium.Start(t)
	t.Run("called", func(t *testing.T) { sodium.Check(t, peer, "called", 100, called) })
	t.Run("calling", func(t *testing.T) { sodium.Check(t, peer, "calling", 100, calling) })
}

// wire is the connection between client and relay, on the side that libsodium plays: what came last.
type wire struct {
	datagrams, commands chan []byte
	paths               map[path.ID][]byte // as a relay: hop keys
	answer              map[string]func(body []byte) ([]byte, error)
}

func newWire() *wire {
	return &wire{datagrams: make(chan []byte, 1000), commands: make(chan []byte, 1000), paths: make(map[path.ID][]byte)}
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
func called(c *sodium.Case) error {
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

	ours, x := tag(c), c.Bytes(32)
	X := c.Must("x", x)[0]
	dk, err := mlkem.GenerateKey768()
	if err != nil {
		return err
	}
	m := dk.EncapsulationKey().Bytes()
	init := c.Must("init", clientSeed[:], relayKey[:], X, m, ways[0].id, ours)[0]
	send(ways[0], "session_control", 2, c.Bytes(24), append(bytes.Clone(init), 0, 0, 0, 0))
	accept, _, typ, err := receive(w.commands, ways[0])
	if err != nil || typ != 2 {
		return fmt.Errorf("accept of type %d, %w", typ, err)
	}
	end := len(accept) - 4
	r, err := c.Ask("openaccept", clientSeed[:], relayKey[:], accept[:end])
	if err != nil {
		return err
	}
	theirs := r[2]
	if err := sodium.Same("tag of the accept", accept[end:], ours); err != nil {
		return err
	}
	ks, err := dk.Decapsulate(r[1])
	if err != nil {
		return err
	}
	k := c.Must("session", x, r[0], client[:], relayKey[:], ours, theirs, X, r[0], ks, m)
	out, in := k[0], k[1]

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
		send(ways[1], "session_control", 2, nonce, append(c.Must("switch", out, nonce, ways[1].id, init)[0], theirs...))
	}
	nonce := c.Bytes(24)
	send(ways[1], "session_control", 1, nonce, c.Must("data", out, nonce, []byte("d1:e13:session_close1:p0:e"), nil, theirs)[0])
	if list := l.table.List(); len(list) != 0 {
		return fmt.Errorf("after session_close: %+v", list)
	}
	return nil
}

// calling: our client calls a relay of libsodium, or a client whose contact that relay knows and for which it is the pivot.
func calling(c *sodium.Case) error {
	relaySeed, clientSeed := c.Seed(), c.Seed()
	relayKey, self := key.FromSeed(relaySeed).Public(), key.FromSeed(clientSeed)
	client := self.Public()
	now := time.Now()
	contact, err := netdb.ParseRelayContact(c.Must("contact", relaySeed[:], make([]byte, 8), []byte{10, 0, 0, 1, 4, 166},
		binary.BigEndian.AppendUint64(nil, uint64(now.Unix())), []byte{1, 1, 0})[0], now, netdb.Rules{Private: true})
	if err != nil {
		return err
	}
	store, err := netdb.OpenStore("", key.Public{}, false, netdb.Rules{Private: true}, nil)
	if err != nil {
		return err
	}
	store.Put(contact)

	// Who is called: the relay by default.
	remoteSeed, to, terminal := relaySeed, key.Address{Key: relayKey, Kind: key.Relay}, []byte(nil)
	var blinded, published []byte
	if c.IntN(2) == 0 {
		remoteSeed = c.Seed()
		to = key.Address{Key: key.FromSeed(remoteSeed).Public()}
		terminal = c.Bytes(16) // of its path
		inner := fmt.Sprintf("d0:i0e1:a32:%s1:ild1:ei%de1:h16:%s1:r32:%see1:pi60ee", to.Key[:], now.Unix()+1200, terminal, relayKey[:])
		published = c.Must("sealcontact", remoteSeed[:], c.Bytes(24), binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli())), []byte(inner))[0]
		blinded = c.Must("blind", to.Key[:])[0]
	}

	w := newWire()
	var asking sync.Mutex // builds and look-ups come from goroutines
	w.answer = map[string]func([]byte) ([]byte, error){
		"path_build": func(body []byte) ([]byte, error) {
			asking.Lock()
			defer asking.Unlock()
			r, err := c.Ask("peel", relaySeed[:], body, make([]byte, 169))
			if err == nil {
				w.paths[path.ID(r[1])] = r[0]
			}
			return []byte("d1:!2:OKe"), err
		},
		"path_control": func(body []byte) ([]byte, error) {
			asking.Lock()
			defer asking.Unlock()
			id := body[len(body)-17 : len(body)-1]
			hop := w.paths[path.ID(id)]
			r, err := c.Ask("serve", hop, body)
			if err != nil {
				return nil, err
			}
			reply := "d1:!2:OKe"
			if string(r[1]) == "find_cc" {
				reply = "d1:!9:NOT FOUNDe"
				if bytes.HasPrefix(r[2], append([]byte("d1:k32:"), blinded...)) {
					reply = fmt.Sprintf("d1:!2:OK1:x%d:%se", len(published), published)
				}
			}
			return c.Must("reply", hop, id, c.Bytes(24), []byte(reply))[0], nil
		},
	}
	opt := path.DefaultOptions()
	opt.Edges, opt.UniqueRange = 1, 0
	paths := path.NewClient(path.ClientConfig{Options: opt, Store: store})
	defer paths.Close()
	delivered, deliver := deliverer()
	table := session.NewTable(session.Config{
		Self: self, Deliver: deliver, Paths: paths, Inbound: 1, InboundHops: 1, Outbound: 1, ClientHops: 1, RelayHops: 1,
		RelayContact: func(k key.Public) *netdb.RelayContact { return store.Get(k) },
	})
	defer table.Close()
	paths.EdgeUp(relayKey, w)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	connected := make(chan error, 1)
	go func() { connected <- table.Connect(ctx, to) }()
	ticking := make(chan struct{})
	go func() {
		defer close(ticking)
		for ctx.Err() == nil {
			table.Tick(time.Now())
			paths.Tick(time.Now())
			time.Sleep(5 * time.Millisecond)
		}
	}()
	defer func() { cancel(); <-ticking }()

	// receive gives what came over a path of ours, whichever it is.
	receive := func(from chan []byte) (msg, nonce, id, hop []byte, typ byte, err error) {
		m, err := take(from)
		if err != nil {
			return nil, nil, nil, nil, 0, err
		}
		asking.Lock()
		defer asking.Unlock()
		id = m[len(m)-17 : len(m)-1]
		hop = w.paths[path.ID(id)]
		r, err := c.Ask("arrive", hop, m)
		if err != nil {
			return nil, nil, nil, nil, 0, err
		}
		pivot := terminal
		if pivot == nil {
			pivot = id
		}
		return r[0], r[2], id, hop, r[3][0], sodium.Same("pivot", r[1], pivot)
	}
	ask := func(op string, args ...[]byte) ([][]byte, error) {
		asking.Lock()
		defer asking.Unlock()
		return c.Ask(op, args...)
	}
	init, _, id, hop, typ, err := receive(w.commands)
	if err != nil || typ != 2 {
		return fmt.Errorf("init of type %d, %w", typ, err)
	}
	end := len(init) - 4
	r, err := ask("openinit", remoteSeed[:], init[:end])
	if err != nil {
		return err
	}
	X, m, theirs := r[1], r[2], r[4]
	if err := errors.Join(sodium.Same("tag of an init", init[end:], number(0)), sodium.Same("caller", client[:], r[0]), sodium.Same("p", r[3], id)); err != nil {
		return err
	}
	ek, err := mlkem.NewEncapsulationKey768(m)
	if err != nil {
		return err
	}
	ks, ct := ek.Encapsulate()
	y, ours := c.Bytes(32), tag(c)
	Y, err := ask("x", y)
	if err != nil {
		return err
	}
	accept, err := ask("accept", remoteSeed[:], client[:], Y[0], ct, ours)
	if err != nil {
		return err
	}
	nonce := c.Bytes(24)
	msg, err := ask("down", hop, id, nonce, []byte{2}, append(accept[0], theirs...))
	if err != nil {
		return err
	}
	paths.HandleRequest(w, "session_control", msg[0], nil)
	if err := <-connected; err != nil {
		return err
	}
	k, err := ask("session", y, X, client[:], to.Key[:], theirs, ours, X, Y[0], ks, m)
	if err != nil {
		return err
	}

	p, kind := ipPacket(c)
	b := packet.Get()
	b.Set(p)
	if !table.Send(to, b) {
		return errors.New("packet not sent")
	}
	got, n, _, _, typ, err := receive(w.datagrams)
	if err != nil {
		return err
	}
	if r, err = ask("undata", k[0], n, got); err != nil {
		return err
	}
	if err := errors.Join(sodium.Same("packet", append(bytes.Clone(p), kind), r[0]), sodium.Same("its tag", ours, r[1]), sodium.Same("its type", []byte{typ}, []byte{1})); err != nil {
		return err
	}
	p, kind = ipPacket(c)
	nonce = c.Bytes(24)
	data, err := ask("data", k[1], nonce, p, []byte{kind}, theirs)
	if err != nil {
		return err
	}
	if msg, err = ask("down", hop, id, nonce, []byte{1}, data[0]); err != nil {
		return err
	}
	b = packet.Get()
	b.Set(msg[0])
	paths.Datagram(w, b)
	got, err = take(delivered)
	return errors.Join(err, sodium.Same("packet from the remote", got, p))
}
