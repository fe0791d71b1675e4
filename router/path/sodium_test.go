//go:build sodium

package path_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/seal/sodium"
)

// Libsodium plays the other side of everything that a path does: the relays of our client, the client of our relays. All
// goes through the package's outer methods, and every message is compared on every link.

func TestSodiumPaths(t *testing.T) {
	peer := sodium.Start(t)
	for _, c := range []struct {
		name  string
		n     int
		check func(*sodium.Case) error
	}{
		{"client", 200, ourClient},
		{"relays", 200, ourRelays},
		{"build", 500, oneFrame},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := packet.InUse()
			sodium.Check(t, peer, c.name, c.n, c.check)
			if after := packet.InUse(); after != before {
				t.Errorf("%d buffers leaked", after-before)
			}
		})
	}
}

// hopSeen is what a relay of libsodium read in its frame.
type hopSeen struct{ key, rx, tx, next, lifetime []byte }

// foreignRelays is a client's edge, with all relays behind it.
type foreignRelays struct {
	c        *sodium.Case
	seeds    map[key.Public][]byte
	edge     key.Public
	hops     []hopSeen
	reply    []byte // the terminal's next
	spoil    bool   // and changed on the way
	method   []byte // what it was asked
	body     []byte
	datagram []byte // as sent by the client
	command  []byte
	err      error
}

type refused []byte

func (r refused) Error() string     { return string(r) }
func (r refused) ReplyBody() []byte { return r }

func (f *foreignRelays) Request(_ context.Context, name string, body []byte) ([]byte, error) {
	switch name {
	case "path_build":
		f.hops = nil
		at := f.edge
		for {
			r, err := f.c.Ask("peel", f.seeds[at], body, f.c.Bytes(169))
			if err != nil {
				f.err = fmt.Errorf("hop %d: %w", len(f.hops), err)
				return nil, f.err
			}
			f.hops = append(f.hops, hopSeen{r[0], r[1], r[2], r[3], r[4]})
			next := key.Public(r[3])
			if next == at {
				return []byte("d1:!2:OKe"), nil
			}
			if at, body = next, r[5]; f.seeds[at] == nil {
				f.err = errors.New("a hop leads to no relay")
				return nil, f.err
			}
		}
	case "path_control":
		last := len(f.hops) - 1
		msg := f.up(body)
		r, err := f.c.Ask("serve", f.hops[last].key, msg)
		if err != nil {
			f.err = err
			return nil, err
		}
		f.err = sodium.Same("id at the terminal", r[0], f.hops[last].rx)
		f.method, f.body = r[1], r[2]
		msg = f.c.Must("reply", f.hops[last].key, f.hops[last].rx, f.c.Bytes(24), f.reply)[0]
		for i := last - 1; i >= 0; i-- {
			msg = f.c.Must("back", f.hops[i].key, f.hops[i].rx, msg)[1]
		}
		if f.spoil {
			msg[f.c.IntN(len(msg)-41)] ^= 1 << f.c.IntN(8)
		}
		return msg, nil
	}
	return nil, refused("d1:!5:ERRORe")
}

// up takes a message to the terminal, before its layer.
func (f *foreignRelays) up(msg []byte) []byte {
	for i := range len(f.hops) - 1 {
		r := f.c.Must("pass", f.hops[i].key, f.hops[i].tx, msg)
		if err := sodium.Same("id on a link", r[0], f.hops[i].rx); err != nil {
			f.err = err
		}
		msg = r[1]
	}
	return msg
}

// down takes a session message from the terminal to the client.
func (f *foreignRelays) down(nonce [24]byte, typ byte, payload []byte) []byte {
	last := len(f.hops) - 1
	msg := f.c.Must("down", f.hops[last].key, f.hops[last].rx, nonce[:], []byte{typ}, payload)[0]
	for i := last - 1; i >= 0; i-- {
		msg = f.c.Must("pass", f.hops[i].key, f.hops[i].rx, msg)[1]
	}
	return msg
}

func (f *foreignRelays) Command(name string, body []byte) error {
	if name != "session_control" {
		return errors.New(name)
	}
	f.command = bytes.Clone(body)
	return nil
}

func (f *foreignRelays) Send(b *packet.Buffer) {
	f.datagram = bytes.Clone(b.Data)
	b.Release()
}

// pathOwner hands on what comes.
type pathOwner struct {
	up                chan *path.Path
	datagram, control []byte
	nonce             [24]byte
	typ               byte
}

func (o *pathOwner) PathUp(p *path.Path)              { o.up <- p }
func (o *pathOwner) PathDown(*path.Path, path.Reason) {}
func (o *pathOwner) PathDatagram(_ *path.Path, b *packet.Buffer) {
	o.datagram, o.nonce = bytes.Clone(b.Data), b.Nonce
	b.Release()
}
func (o *pathOwner) PathControl(_ *path.Path, typ byte, msg []byte, nonce [24]byte) {
	o.control, o.typ, o.nonce = bytes.Clone(msg), typ, nonce
}

// ourClient: our client builds a path over libsodium's relays, whose contacts libsodium has signed, and talks over it both ways.
func ourClient(c *sodium.Case) error {
	n := 1 + c.IntN(path.MaxHops)
	now := time.Now()
	store, err := netdb.OpenStore("", key.Public{}, false, netdb.Rules{Private: true, Network: 2}, nil)
	if err != nil {
		return err
	}
	f := &foreignRelays{c: c, seeds: make(map[key.Public][]byte)}
	var target key.Public
	for i := range n + 2 {
		seed := c.Bytes(32)
		raw := c.Must("contact", seed, number64(2), []byte{10, 0, byte(i), 1, 4, 166}, number64(uint64(now.Unix())), []byte{1, 0, 2})[0]
		contact, err := netdb.ParseRelayContact(raw, now, netdb.Rules{Private: true, Network: 2})
		if err != nil {
			return err
		}
		store.Put(contact)
		f.seeds[contact.ID] = seed
		if i == 0 {
			f.edge = contact.ID
		}
		if i == 0 || n > 1 {
			target = contact.ID // with one hop the edge, else the last
		}
	}
	opt := path.DefaultOptions()
	opt.Edges, opt.UniqueRange = 1, 0
	client := path.NewClient(path.ClientConfig{Options: opt, Store: store})
	defer client.Close()
	client.EdgeUp(f.edge, f)
	o := &pathOwner{up: make(chan *path.Path, 1)}
	pool := client.NewPool(path.PoolConfig{Kind: path.ToRelay, Hops: n, Want: 1, Target: target, Owner: o})
	pool.Tick(now)

	var p *path.Path
	select {
	case p = <-o.up:
	case <-time.After(10 * time.Second):
		return errors.Join(errors.New("no path"), f.err)
	}
	terminal := p.Terminal()
	last := len(f.hops) - 1
	if len(f.hops) != n || f.err != nil {
		return fmt.Errorf("%d hops, want %d; %v", len(f.hops), n, f.err)
	}
	if err := sodium.Same("terminal id", terminal[:], f.hops[last].rx); err != nil {
		return err
	}
	at := f.edge
	for i, id := range p.Hops() {
		next := p.Hops()[min(i+1, last)]
		life := binary.BigEndian.Uint32(f.hops[i].lifetime)
		if id != at || next != key.Public(f.hops[i].next) || life < 1199 || life > 1200 {
			return fmt.Errorf("hop %d: %v leads to %x for %d s", i, id, f.hops[i].next, life)
		}
		if err := sodium.Same("ids of a link", f.hops[i].tx, f.hops[min(i+1, last)].rx); err != nil {
			return err
		}
		at = next
	}

	method, body := fmt.Sprintf("m%x", c.Some(8)), c.Some(300)
	f.reply = append(c.Some(600), 'x')
	got, err := p.Request(context.Background(), method, body)
	if err := errors.Join(err, f.err, sodium.Same("method", []byte(method), f.method), sodium.Same("body", body, f.body), sodium.Same("reply", got, f.reply)); err != nil {
		return err
	}
	f.spoil = true
	if got, err = p.Request(context.Background(), method, body); !errors.Is(err, path.ErrUnauthentic) {
		return fmt.Errorf("a reply changed on the way: %x, %v", got, err)
	}

	payload, nonce := append(c.Bytes(20), c.Some(1300)...), c.Nonce()
	b := packet.Get()
	b.Set(payload)
	b.Nonce = nonce
	p.Send(b)
	if err := f.arrived("datagram", f.datagram, payload, nonce, 1); err != nil {
		return err
	}
	typ := byte(1 + c.IntN(2))
	if err := p.Control(typ, payload, nonce); err != nil {
		return err
	}
	if err := f.arrived("session_control", f.command, payload, nonce, typ); err != nil {
		return err
	}

	payload, nonce = append(c.Bytes(17), c.Some(1300)...), c.Nonce()
	b = packet.Get()
	b.Set(f.down(nonce, 1, payload))
	client.Datagram(f, b)
	if err := errors.Join(sodium.Same("datagram down", o.datagram, payload), sodium.Same("its nonce", o.nonce[:], nonce[:])); err != nil {
		return err
	}
	client.HandleRequest(f, "session_control", f.down(nonce, typ, payload), nil)
	return errors.Join(f.err, sodium.Same("session_control down", o.control, payload), sodium.Same("its nonce", o.nonce[:], nonce[:]),
		sodium.Same("its type", []byte{o.typ}, []byte{typ}))
}

// arrived compares what a client sent with what the terminal reads.
func (f *foreignRelays) arrived(what string, msg, payload []byte, nonce [24]byte, typ byte) error {
	if msg == nil {
		return errors.New(what + " was not sent")
	}
	r, err := f.c.Ask("arrive", f.hops[len(f.hops)-1].key, f.up(msg))
	if err != nil {
		return err
	}
	n := len(payload) - 16
	return errors.Join(f.err, sodium.Same(what, payload[:n], r[0]), sodium.Same("pivot id", payload[n:], r[1]),
		sodium.Same("its nonce", nonce[:], r[2]), sodium.Same("its type", []byte{typ}, r[3]))
}

func number64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// foreignClient is a client of libsodium, as our edge sees it.
type foreignClient struct {
	seeds, relays, nonces, ids [][]byte
	keys                       [][]byte
	down                       []byte // the last message that came
}

func (f *foreignClient) Request(context.Context, string, []byte) ([]byte, error) {
	return nil, errors.New("a client is asked nothing")
}
func (f *foreignClient) Command(_ string, body []byte) error {
	f.down = bytes.Clone(body)
	return nil
}
func (f *foreignClient) Send(b *packet.Buffer) {
	f.down = bytes.Clone(b.Data)
	b.Release()
}

// newForeignClient draws what a client decides for a path over these relays.
func newForeignClient(c *sodium.Case, relays []*ourRelay) *foreignClient {
	f := &foreignClient{}
	for _, r := range relays {
		id := r.id
		f.relays = append(f.relays, id[:])
		f.seeds = append(f.seeds, c.Bytes(32))
		f.nonces = append(f.nonces, c.Bytes(24))
		f.ids = append(f.ids, c.Bytes(16))
	}
	return f
}

// build gives the message, and keeps the keys.
func (f *foreignClient) build(c *sodium.Case, lifetime uint32) []byte {
	args := [][]byte{binary.BigEndian.AppendUint32(nil, lifetime), c.Bytes((path.MaxHops - len(f.relays)) * 169)}
	for i := range f.relays {
		args = append(args, f.relays[i], f.seeds[i], f.nonces[i], f.ids[i])
	}
	r := c.Must("build", args...)
	for i := range f.relays {
		f.keys = append(f.keys, r[1+2*i])
	}
	return r[0]
}

// ourNet is relays of ours; what they send each other is kept until it is looked at.
type ourNet struct {
	c      *sodium.Case
	relays map[key.Public]*ourRelay
	wire   [][]byte // requests, commands and datagrams between relays, in order
	back   [][]byte // replies of the relays, in the order given: the terminal's first
}

type ourRelay struct {
	*path.Relay
	net  *ourNet
	id   key.Public
	seed []byte

	terminal *path.Terminal
	method   string
	body     []byte
	answer   []byte
	message  []byte
	nonce    [24]byte
	typ      byte
}

func (n *ourNet) add() *ourRelay {
	seed := n.c.Seed()
	sec := key.FromSeed(seed)
	r := &ourRelay{net: n, id: sec.Public(), seed: seed[:]}
	r.Relay = path.NewRelay(sec, ourMesh{n, r.id}, r, path.Limits{}, nil)
	n.relays[r.id] = r
	return r
}

func (r *ourRelay) PathRequest(_ path.ID, method string, body []byte, reply func([]byte)) {
	r.method, r.body = method, bytes.Clone(body)
	reply(r.answer)
}
func (r *ourRelay) SessionControl(t *path.Terminal, typ byte, msg []byte, nonce [24]byte) {
	r.terminal, r.typ, r.message, r.nonce = t, typ, bytes.Clone(msg), nonce
}
func (r *ourRelay) SessionDatagram(t *path.Terminal, b *packet.Buffer) {
	r.terminal, r.typ, r.message, r.nonce = t, 1, bytes.Clone(b.Data), b.Nonce
	b.Release()
}

// ask hands a request over and waits for the reply.
func (r *ourRelay) ask(from path.Link, fromRelay key.Public, name string, body []byte) ([]byte, error) {
	type answer struct {
		body []byte
		fail bool
	}
	back := make(chan answer, 1)
	r.HandleRequest(from, fromRelay, name, bytes.Clone(body), func(body []byte, fail bool) { back <- answer{bytes.Clone(body), fail} })
	select {
	case a := <-back:
		if a.fail {
			return nil, refused(a.body)
		}
		r.net.back = append(r.net.back, bytes.Clone(a.body))
		return a.body, nil
	case <-time.After(10 * time.Second):
		return nil, errors.New("no reply")
	}
}

type ourMesh struct {
	net  *ourNet
	from key.Public
}

func (m ourMesh) Datagram(to key.Public, b *packet.Buffer) {
	m.net.wire = append(m.net.wire, bytes.Clone(b.Data))
	m.net.relays[to].Datagram(b)
}
func (m ourMesh) Command(to key.Public, name string, body []byte) error {
	m.net.wire = append(m.net.wire, bytes.Clone(body))
	m.net.relays[to].HandleRequest(nil, m.from, name, bytes.Clone(body), nil)
	return nil
}
func (m ourMesh) Request(_ context.Context, to key.Public, name string, body []byte) ([]byte, error) {
	m.net.wire = append(m.net.wire, bytes.Clone(body))
	return m.net.relays[to].ask(nil, m.from, name, body)
}

// ourRelays: a client of libsodium builds a path over our relays and talks over it both ways; then with another one, whose path ends at the same relay.
func ourRelays(c *sodium.Case) error {
	net := &ourNet{c: c, relays: make(map[key.Public]*ourRelay)}
	pivot := net.add()
	line := func() (relays []*ourRelay) {
		for range c.IntN(path.MaxHops) {
			relays = append(relays, net.add())
		}
		return append(relays, pivot)
	}
	lineA, lineB := line(), line()
	defer func() {
		for _, r := range net.relays {
			r.Close()
		}
	}()
	a, b := newForeignClient(c, lineA), newForeignClient(c, lineB)
	for i, client := range []*foreignClient{a, b} {
		relays := [][]*ourRelay{lineA, lineB}[i]
		msg := client.build(c, 1+uint32(c.IntN(1380)))
		net.wire = nil
		reply, err := relays[0].ask(client, key.Public{}, "path_build", msg)
		if err != nil || string(reply) != "d1:!2:OKe" {
			return fmt.Errorf("build: %q, %v", reply, err)
		}
		if len(net.wire) != len(relays)-1 {
			return fmt.Errorf("a build of %d hops was forwarded %d times", len(relays), len(net.wire))
		}
		for i, got := range net.wire {
			if len(got) != len(msg) {
				return fmt.Errorf("hop %d forwards %d bytes", i, len(got))
			}
			want := c.Must("peel", relays[i].seed, msg, got[len(got)-169:])
			if err := sodium.Same(fmt.Sprintf("build forwarded by hop %d", i), got, want[5]); err != nil {
				return err
			}
			msg = got
		}
	}
	last := len(a.keys) - 1

	// Requests, and what each link carries of them.
	method, body := fmt.Sprintf("m%x", c.Some(8)), c.Some(300)
	pivot.answer = c.Some(600)
	msg := c.Must("request", append([][]byte{c.Bytes(24), a.ids[0], []byte(method), body}, a.keys...)...)[0]
	net.wire, net.back = nil, nil
	reply, err := lineA[0].ask(a, key.Public{}, "path_control", msg)
	if err != nil {
		return fmt.Errorf("path_control: %w", err)
	}
	result, err := c.Ask("result", append([][]byte{reply}, a.keys...)...)
	if err != nil {
		return err
	}
	if err := errors.Join(a.links(c, net.wire, msg), sodium.Same("method", []byte(pivot.method), []byte(method)),
		sodium.Same("body", pivot.body, body), sodium.Same("reply", pivot.answer, result[0])); err != nil {
		return err
	}
	for i := 1; i < len(net.back); i++ {
		hop := last - i
		want := c.Must("back", a.keys[hop], a.ids[hop], net.back[i-1])
		if err := errors.Join(sodium.Same("id of a reply", a.ids[hop+1], want[0]), sodium.Same("reply on a link", net.back[i], want[1])); err != nil {
			return err
		}
	}

	for _, name := range []string{"datagram", "session_control"} {
		typ := byte(1)
		send := func(r *ourRelay, client *foreignClient, msg []byte) {
			net.wire = nil
			if name == "datagram" {
				buf := packet.Get()
				buf.Set(msg)
				r.Datagram(buf)
			} else {
				r.HandleRequest(client, key.Public{}, "session_control", bytes.Clone(msg), nil)
			}
		}
		if name != "datagram" {
			typ = byte(1 + c.IntN(2))
		}
		// Up to the relay itself, and back from it.
		payload, nonce := append(c.Bytes(4), c.Some(1200)...), c.Nonce()
		msg := c.Must("wrap", append([][]byte{nonce[:], a.ids[0], {typ}, append(bytes.Clone(payload), a.ids[last]...)}, a.keys...)...)[0]
		send(lineA[0], a, msg)
		if err := errors.Join(a.links(c, net.wire, msg), sodium.Same(name, pivot.message, payload),
			sodium.Same("its nonce", pivot.nonce[:], nonce[:]), sodium.Same("its type", []byte{pivot.typ}, []byte{typ})); err != nil {
			return err
		}
		payload, nonce = append(c.Bytes(17), c.Some(1200)...), c.Nonce()
		if name == "datagram" {
			buf := packet.Get()
			buf.Set(payload)
			buf.Nonce = nonce
			pivot.terminal.Send(buf)
		} else if err := pivot.terminal.Control(typ, payload, nonce); err != nil {
			return err
		}
		if err := a.came(c, name+" of the relay", payload, nonce, typ); err != nil {
			return err
		}
		// Over the pivot to the other client.
		payload, nonce = append(c.Bytes(17), c.Some(1200)...), c.Nonce()
		send(lineA[0], a, c.Must("wrap", append([][]byte{nonce[:], a.ids[0], {typ}, append(bytes.Clone(payload), b.ids[len(b.ids)-1]...)}, a.keys...)...)[0])
		if err := b.came(c, name+" over the pivot", payload, nonce, typ); err != nil {
			return err
		}
	}
	return nil
}

// links compares what the relays sent each other of a message on its way up.
func (f *foreignClient) links(c *sodium.Case, wire [][]byte, msg []byte) error {
	if len(wire) != len(f.keys)-1 {
		return fmt.Errorf("a message over %d hops crossed %d links", len(f.keys), len(wire))
	}
	for i, got := range wire {
		msg = c.Must("pass", f.keys[i], f.ids[i+1], msg)[1]
		if err := sodium.Same(fmt.Sprintf("message of hop %d", i), got, msg); err != nil {
			return err
		}
	}
	return nil
}

// came compares what a client reads with what was meant for it.
func (f *foreignClient) came(c *sodium.Case, what string, payload []byte, nonce [24]byte, typ byte) error {
	if f.down == nil {
		return errors.New(what + " did not come")
	}
	r := c.Must("unwrap", append([][]byte{f.down}, f.keys...)...)
	f.down = nil
	return errors.Join(sodium.Same(what, payload, r[0]), sodium.Same("its nonce", nonce[:], r[1]),
		sodium.Same("its id", f.ids[0], r[2]), sodium.Same("its type", []byte{typ}, r[3]))
}

// oneFrame: a build of one hop, often with something wrong in it: both relays say the same of it.
func oneFrame(c *sodium.Case) error {
	net := &ourNet{c: c, relays: make(map[key.Public]*ourRelay)}
	r := net.add()
	defer r.Close()
	f := newForeignClient(c, []*ourRelay{r})
	lifetime := []uint32{0, 1, 1200, 1380, 1381, 1 << 16, 1 << 31, 0xffffffff}[c.IntN(8)]
	switch c.IntN(8) {
	case 0:
		f.ids[0] = make([]byte, 16)
	case 1:
		f.relays[0] = c.Must("ed", c.Bytes(32))[0] // meant for another relay
	}
	msg := f.build(c, lifetime)
	switch c.IntN(4) {
	case 0:
		msg[c.IntN(169)] ^= 1 << c.IntN(8)
	case 1:
		msg = msg[:c.IntN(len(msg))]
	}
	seen, wrong := c.Ask("peel", r.seed, msg, make([]byte, 169))
	if wrong == nil && !bytes.Equal(seen[3], r.id[:]) {
		return nil // a changed id of the next relay, with other ids to fit: not to be hoped for
	}
	_, err := r.ask(f, key.Public{}, "path_build", msg)
	want := ""
	var why sodium.Refusal
	if errors.As(wrong, &why) {
		want = fmt.Sprintf("d1:!%d:%se", len(why), string(why))
	}
	got := ""
	if err != nil {
		got = err.Error()
	}
	if got != want {
		return fmt.Errorf("ours says %q, theirs %q", got, want)
	}
	return nil
}
