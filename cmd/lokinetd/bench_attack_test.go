//go:build bench

package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/seal"
)

// The attacker of the floods: our own packages, used without restraint. What is dear to make is made before and sent again and again.

// flood is one attack. prepare does what takes long and returns what goes on until ctx ends.
type flood struct {
	name    string
	what    string
	prepare func(*attacker) (attack func(context.Context), err error)
}

var floods = []flood{
	{"none", "nobody floods", func(*attacker) (func(context.Context), error) { return func(ctx context.Context) { <-ctx.Done() }, nil }},
	{"builds", "path_build requests, all valid, of paths that end at the relay, over 64 client links from 4 addresses", (*attacker).builds},
	{"builds: forged", "the same with frames that nobody meant for the relay", (*attacker).buildsForged},
	{"builds: by a relay", "the first over one link of a registered relay", (*attacker).buildsOfRelay},
	{"inits", "session inits, 1,000 different valid ones, to the relay's own address over 64 paths", (*attacker).inits},
	{"inits: forged", "boxes that do not open", (*attacker).initsForged},
	{"handshakes", "QUIC handshakes, one after the other and 64 at a time, from 4 addresses", (*attacker).handshakes},
	{"handshakes: spoofed", "first packets of QUIC handshakes from 65,000 addresses that nobody has", (*attacker).initials},
	{"datagrams: unknown", "datagrams to paths that do not exist, over 64 links", (*attacker).datagramsUnknown},
	{"datagrams: one link", "the same over one link", (*attacker).datagramsOneLink},
	{"datagrams: garbage", "datagrams to the attacker's own paths, which nobody can read, over 64 links", (*attacker).datagramsGarbage},
	{"datagrams: own path", "datagrams over a path of the attacker's through the relay to a relay of his", (*attacker).datagramsThrough},
	{"contacts: published", "publish_cc of 500 clients over 64 paths", (*attacker).publishes},
	{"contacts: sought", "find_cc over 64 paths", (*attacker).finds},
	{"requests", "ping on 64 links, 256 at a time each", (*attacker).pings},
	{"requests: contacts", "fetch_rcs on 64 links", (*attacker).fetches},
	{"requests: unreadable", "path_control of the attacker's own paths that does not open", (*attacker).unreadable},
}

const (
	attackAddrs = 4
	attackLinks = 64
)

// attacker is the process that attacks.
type attacker struct {
	ctx   context.Context
	dir   string
	relay key.Public
	links []link.Conn
	ends  []*link.QUIC
	count atomic.Uint64 // attacks
}

func playFlood(ctx context.Context, args []string) (any, error) {
	f := flag.NewFlagSet("flood", flag.ContinueOnError)
	relayKey, dir, kind := f.String("relay-key", "", ""), f.String("dir", "", ""), f.String("kind", "", "")
	f.String("end-key", "", "")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	relay, err := key.LoadSecret(*relayKey)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	i := slices.IndexFunc(floods, func(f flood) bool { return f.name == *kind })
	if i < 0 {
		return nil, fmt.Errorf("no such flood: %q", *kind)
	}
	a := &attacker{ctx: ctx, dir: *dir, relay: relay.Public()}
	attack, err := floods[i].prepare(a)
	if err != nil {
		return nil, err
	}
	fmt.Println("ready {}")
	awaitAttack(ctx, *dir)
	before, began := a.count.Load(), time.Now()
	ctx, cancel = context.WithTimeout(ctx, floodWarmup+floodFor)
	defer cancel()
	go attack(ctx)
	<-ctx.Done()
	fmt.Printf("attacked {\"Rate\":%f}\n", float64(a.count.Load()-before)/time.Since(began).Seconds())
	time.Sleep(time.Second) // the process' end would end what the others are still measured by
	return nil, nil
}

// connect opens n client links.
func (a *attacker) connect(n int) error {
	for i := range attackAddrs {
		q, err := endpoint(a.ctx, fmt.Sprintf("10.79.0.%d:1190", 5+sizePeers+i), link.Config{}, &player{})
		if err != nil {
			return err
		}
		a.ends = append(a.ends, q)
	}
	for i := range n {
		l, err := dialRelay(a.ctx, a.ends[i%attackAddrs], a.relay, link.Client)
		if err != nil {
			return err
		}
		a.links = append(a.links, l)
	}
	return nil
}

// asRelay opens a link as one of the registered relays, which answers builds.
func (a *attacker) asRelay() (link.Conn, key.Public, error) {
	secret, err := key.LoadSecret(filepath.Join(a.dir, peerKey(0)))
	if err != nil {
		return nil, key.Public{}, err
	}
	q, err := endpoint(a.ctx, "10.79.0.4:1190", link.Config{Secret: secret, Accept: true, Registered: func(key.Public) bool { return true }}, &player{
		request: func(_ link.Conn, r *link.Request) bool {
			if r.Name == "path_build" {
				r.Reply([]byte("d1:!2:OKe"))
			}
			return r.Name == "path_build"
		},
	})
	if err != nil {
		return nil, key.Public{}, err
	}
	l, err := dialRelay(a.ctx, q, a.relay, link.Relay)
	return l, secret.Public(), err
}

// all runs what is to be done on each link, width times at once.
func (a *attacker) all(links []link.Conn, width int, f func(ctx context.Context, l link.Conn, i int)) func(context.Context) {
	return func(ctx context.Context) {
		var wg sync.WaitGroup
		for i, l := range links {
			for w := range width {
				wg.Go(func() {
					for n := w; ctx.Err() == nil; n += width {
						f(ctx, l, n*len(links)+i)
					}
				})
			}
		}
		wg.Wait()
	}
}

// request asks, and does not wait long for the answer.
func (a *attacker) request(ctx context.Context, l link.Conn, name string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := l.Request(ctx, name, slices.Clone(body))
	a.count.Add(1)
	if errors.Is(err, link.ErrClosed) || errors.Is(err, link.ErrBusy) {
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// hostilePath is a path of one hop or two that is made by hand.
type hostilePath struct {
	link link.Conn
	id   [16]byte
	hops []seal.Hop
}

// build makes a build message (protocol 3 section 2) for a path that ends at the relay, or one hop further.
func (a *attacker) build(beyond *key.Public) (msg []byte, p hostilePath) {
	relays := []key.Public{a.relay}
	if beyond != nil {
		relays = append(relays, *beyond)
	}
	ids := make([][16]byte, len(relays))
	for i := range ids {
		rand.Read(ids[i][:])
	}
	const size = 169
	msg = make([]byte, 8*size)
	rand.Read(msg)
	p.id, p.hops = ids[0], make([]seal.Hop, len(relays))
	for i := len(relays) - 1; i >= 0; i-- {
		last := min(i+1, len(relays)-1)
		eph := key.Generate()
		var nonce seal.Nonce
		rand.Read(nonce[:])
		k, err := seal.ClientPathKey(eph, relays[i], &nonce)
		if err != nil {
			panic(err)
		}
		p.hops[i] = seal.NewHop(k)
		inner := bt.NewDict(nil).Bytes("l", binary.LittleEndian.AppendUint32(nil, 600)).
			Bytes("r", ids[i][:]).Bytes("t", ids[last][:]).Bytes("u", relays[last][:]).End()
		seal.Stream(inner, &k, &nonce)
		public := eph.Public()
		copy(msg[i*size:], bt.NewDict(nil).Bytes("k", public[:]).Bytes("n", nonce[:]).Bytes("x", inner).End())
		seal.Xor(&nonce, &p.hops[i].Xor)
		seal.Stream(msg[(i+1)*size:len(relays)*size], &k, &nonce)
	}
	return msg, p
}

// paths builds n paths that end at the relay, over the links in turns.
func (a *attacker) paths(n int) (all []hostilePath, err error) {
	for i := range n {
		msg, p := a.build(nil)
		p.link = a.links[i%len(a.links)]
		if _, err := p.link.Request(a.ctx, "path_build", msg); err != nil {
			return nil, fmt.Errorf("path %d: %w", i, err)
		}
		all = append(all, p)
	}
	return all, nil
}

// control is a path_control request to the end of a path.
func (p *hostilePath) control(method string, body []byte) []byte {
	plain := bt.NewDict(nil).String("e", method).Bytes("p", body).End()
	msg := append(plain, make([]byte, 16)...)
	var nonce seal.Nonce
	rand.Read(nonce[:])
	seal.Seal(msg, &p.hops[0].Key, &nonce)
	return p.trailer(msg, &nonce, 1)
}

// session is a session_control message to the end of a path.
func (p *hostilePath) session(body []byte) []byte {
	msg := append(append(slices.Clone(body), make([]byte, 4)...), p.id[:]...)
	var nonce seal.Nonce
	rand.Read(nonce[:])
	seal.Stream(msg, &p.hops[0].Key, &nonce)
	return p.trailer(msg, &nonce, 2)
}

func (p *hostilePath) trailer(msg []byte, nonce *seal.Nonce, typ byte) []byte {
	seal.Xor(nonce, &p.hops[0].Xor)
	return append(append(append(msg, nonce[:]...), p.id[:]...), typ)
}

func (a *attacker) builds() (func(context.Context), error) { return a.buildsOver(nil) }

func (a *attacker) buildsForged() (func(context.Context), error) {
	return a.buildsOver(func(msg []byte) { rand.Read(msg[75:168]) })
}

func (a *attacker) buildsOver(spoil func([]byte)) (func(context.Context), error) {
	msgs := a.manyBuilds(spoil)
	if err := a.connect(attackLinks); err != nil {
		return nil, err
	}
	return a.all(a.links, 16, func(ctx context.Context, l link.Conn, i int) { a.request(ctx, l, "path_build", msgs[i%len(msgs)]) }), nil
}

func (a *attacker) buildsOfRelay() (func(context.Context), error) {
	msgs := a.manyBuilds(nil)
	l, _, err := a.asRelay()
	if err != nil {
		return nil, err
	}
	return a.all([]link.Conn{l}, 1024, func(ctx context.Context, l link.Conn, i int) { a.request(ctx, l, "path_build", msgs[i%len(msgs)]) }), nil
}

func (a *attacker) manyBuilds(spoil func([]byte)) (msgs [][]byte) {
	for range 8000 {
		msg, _ := a.build(nil)
		if spoil != nil {
			spoil(msg)
		}
		msgs = append(msgs, msg)
	}
	return msgs
}

func (a *attacker) inits() (func(context.Context), error) {
	return a.initsOver(func(p *hostilePath) []byte {
		self, eph := key.Generate(), seal.NewEphemeral()
		public, x := self.Public(), eph.X()
		b := bt.NewDict(nil).Bytes("I", public[:]).Bytes("M", eph.M()).Bytes("X", x[:]).Bytes("p", p.id[:]).Uint("t", 77)
		sig := self.Sign(b.Prefix())
		box, err := seal.Box(a.relay, b.Bytes("~", sig[:]).End())
		if err != nil {
			panic(err)
		}
		return box
	})
}

func (a *attacker) initsForged() (func(context.Context), error) {
	return a.initsOver(func(*hostilePath) []byte {
		box, err := seal.Box(key.Generate().Public(), make([]byte, 1377))
		if err != nil {
			panic(err)
		}
		return box
	})
}

// prepare makes n messages for paths of the attacker's, one over each link, by link.
func (a *attacker) prepare(n int, body func(p *hostilePath, i int) []byte) (map[link.Conn][][]byte, error) {
	if err := a.connect(attackLinks); err != nil {
		return nil, err
	}
	paths, err := a.paths(attackLinks)
	if err != nil {
		return nil, err
	}
	msgs := map[link.Conn][][]byte{}
	for i := range n {
		p := &paths[i%len(paths)]
		msgs[p.link] = append(msgs[p.link], body(p, i))
	}
	return msgs, nil
}

func (a *attacker) initsOver(box func(*hostilePath) []byte) (func(context.Context), error) {
	msgs, err := a.prepare(1000, func(p *hostilePath, _ int) []byte {
		return p.session(bt.NewDict(nil).String("", "i").Bytes("B", box(p)).End())
	})
	if err != nil {
		return nil, err
	}
	return a.commands("session_control", func(l link.Conn, i int) []byte { return msgs[l][i/len(a.links)%len(msgs[l])] }), nil
}

// commands floods all links with what has no reply; as much as they take.
func (a *attacker) commands(name string, body func(l link.Conn, i int) []byte) func(context.Context) {
	var given sync.Map
	return a.all(a.links, 1, func(_ context.Context, l link.Conn, i int) {
		v, _ := given.LoadOrStore(l, new(uint64))
		n := v.(*uint64)
		for *n > l.Stats().StreamBytesOut+256<<10 {
			time.Sleep(time.Millisecond)
			if a.ctx.Err() != nil || isDone(l) {
				return
			}
		}
		for k := range uint64(16) {
			b := body(l, i+int(k)*len(a.links))
			l.Command(name, slices.Clone(b))
			*n += uint64(len(b))
			a.count.Add(1)
		}
	})
}

func isDone(l link.Conn) bool {
	select {
	case <-l.Done():
		return true
	default:
		return false
	}
}

func (a *attacker) handshakes() (func(context.Context), error) {
	if err := a.connect(0); err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				for ctx.Err() == nil {
					ctx, cancel := context.WithTimeout(ctx, time.Second)
					c, err := a.ends[i%len(a.ends)].Dial(ctx, netip.MustParseAddrPort(relayAt), a.relay, link.Client)
					cancel()
					a.count.Add(1)
					if err == nil {
						c.Close(link.CodeNormal)
					} else {
						time.Sleep(time.Millisecond)
					}
				}
			})
		}
		wg.Wait()
	}, nil
}

// catcher is a socket that keeps what is sent.
type catcher struct {
	net.PacketConn
	mu   sync.Mutex
	sent [][]byte
}

func (c *catcher) WriteTo(b []byte, _ net.Addr) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(b) >= 1200 {
		c.sent = append(c.sent, slices.Clone(b))
	}
	return len(b), nil
}

// initials floods with what begins a handshake, recorded once, under other connection ids when all were used.
func (a *attacker) initials() (func(context.Context), error) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	caught := &catcher{PacketConn: pc}
	q, err := link.NewQUIC(caught, link.Config{})
	if err != nil {
		return nil, err
	}
	go q.Run(a.ctx, &player{})
	for range 20 {
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(a.ctx, 100*time.Millisecond)
				defer cancel()
				q.Dial(ctx, netip.MustParseAddrPort(relayAt), a.relay, link.Client)
			})
		}
		wg.Wait()
	}
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return nil, err
	}
	to := unix.SockaddrInet4{Addr: netip.MustParseAddrPort(relayAt).Addr().As4()}
	caught.mu.Lock()
	recorded := caught.sent
	caught.mu.Unlock()
	if len(recorded) < 1000 {
		return nil, fmt.Errorf("only %d first packets were recorded", len(recorded))
	}
	return func(ctx context.Context) {
		buf := make([]byte, 0, 1500)
		for n := 0; ctx.Err() == nil; n++ {
			p := recorded[n%len(recorded)]
			buf = append(buf[:0], 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0)
			buf = append(buf, 10, 80, byte(n>>8), byte(n), to.Addr[0], to.Addr[1], to.Addr[2], to.Addr[3])
			buf = binary.BigEndian.AppendUint16(buf, uint16(1024+n%60000))
			buf = binary.BigEndian.AppendUint16(buf, netip.MustParseAddrPort(relayAt).Port())
			buf = binary.BigEndian.AppendUint16(buf, uint16(8+len(p)))
			buf = append(buf, 0, 0)
			at := len(buf)
			buf = append(buf, p...)
			if n >= len(recorded) { // another destination connection id: byte 5 is its length
				binary.BigEndian.PutUint32(buf[at+6:], uint32(n))
			}
			if err := unix.Sendto(raw, buf, 0, &to); err == nil {
				a.count.Add(1)
			}
		}
	}, nil
}

func (a *attacker) datagramsUnknown() (func(context.Context), error) {
	if err := a.connect(attackLinks); err != nil {
		return nil, err
	}
	return a.datagrams(func(link.Conn) (id [16]byte) { rand.Read(id[:]); return id }), nil
}

func (a *attacker) datagramsOneLink() (func(context.Context), error) {
	if err := a.connect(1); err != nil {
		return nil, err
	}
	return a.datagrams(func(link.Conn) (id [16]byte) { rand.Read(id[:]); return id }), nil
}

func (a *attacker) datagramsGarbage() (func(context.Context), error) {
	if err := a.connect(attackLinks); err != nil {
		return nil, err
	}
	paths, err := a.paths(attackLinks)
	if err != nil {
		return nil, err
	}
	ids := map[link.Conn][16]byte{}
	for _, p := range paths {
		ids[p.link] = p.id
	}
	return a.datagrams(func(l link.Conn) [16]byte { return ids[l] }), nil
}

func (a *attacker) datagramsThrough() (func(context.Context), error) {
	_, end, err := a.asRelay()
	if err != nil {
		return nil, err
	}
	if err := a.connect(1); err != nil {
		return nil, err
	}
	msg, p := a.build(&end)
	if _, err := a.links[0].Request(a.ctx, "path_build", msg); err != nil {
		return nil, err
	}
	return a.datagrams(func(link.Conn) [16]byte { return p.id }), nil
}

// datagrams sends as many as the links take.
func (a *attacker) datagrams(id func(link.Conn) [16]byte) func(context.Context) {
	return func(ctx context.Context) {
		sent := map[link.Conn]uint64{}
		for ctx.Err() == nil {
			for _, l := range a.links {
				to := id(l)
				if l.Stats().Waiting > 64 {
					continue
				}
				for range 32 {
					b := packet.Get()
					b.Reset(forwarded)
					copy(b.Data[forwarded-17:], to[:])
					b.Data[forwarded-1] = 1
					l.Send(b)
					sent[l]++
				}
			}
			n := uint64(0)
			for l := range sent {
				n += l.Stats().DatagramsOut
			}
			a.count.Store(n)
			if len(a.links) == 1 || a.ends[0].Crowded() {
				time.Sleep(100 * time.Microsecond)
			}
		}
	}
}

// overPaths floods with requests to the ends of 64 paths, each with 16 at a time.
func (a *attacker) overPaths(body func(p *hostilePath, i int) []byte) (func(context.Context), error) {
	msgs, err := a.prepare(500, body)
	if err != nil {
		return nil, err
	}
	return a.all(a.links, 16, func(ctx context.Context, l link.Conn, i int) {
		a.request(ctx, l, "path_control", msgs[l][i/len(a.links)%len(msgs[l])])
	}), nil
}

func (a *attacker) publishes() (func(context.Context), error) {
	return a.overPaths(func(p *hostilePath, i int) []byte {
		c := netdb.ClientContact{Intros: []netdb.Intro{{Expiry: time.Now().Add(10 * time.Minute), Hop: p.id, Relay: a.relay}}}
		sealed, err := c.Seal(key.Generate(), time.Now())
		if err != nil {
			panic(err)
		}
		return p.control(netdb.MethodPublishCC, netdb.EncodePublishCC(sealed, i%4))
	})
}

func (a *attacker) finds() (func(context.Context), error) {
	return a.overPaths(func(p *hostilePath, i int) []byte {
		return p.control(netdb.MethodFindCC, netdb.EncodeFindCC(key.Generate().Public(), i%4))
	})
}

func (a *attacker) unreadable() (func(context.Context), error) {
	return a.overPaths(func(p *hostilePath, i int) []byte {
		msg := p.control("path_ping", nil)
		msg[0] ^= 1
		return msg
	})
}

func (a *attacker) pings() (func(context.Context), error) { return a.asked("ping", nil, 256) }

func (a *attacker) fetches() (func(context.Context), error) {
	return a.asked(netdb.MethodFetchRCs, netdb.EncodeFetchRCs(&netdb.BucketHashes{}), 16)
}

func (a *attacker) asked(name string, body []byte, width int) (func(context.Context), error) {
	if err := a.connect(attackLinks); err != nil {
		return nil, err
	}
	return a.all(a.links, width, func(ctx context.Context, l link.Conn, _ int) { a.request(ctx, l, name, body) }), nil
}
