//go:build bench

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"lokinetd/netif/lab"
	"lokinetd/router"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
)

// A relay alone: one process that forwards from one peer to another, once lokinetd as a relay with a path through it, once quic-go alone that
// receives a datagram on one connection and sends it on another. Both peers are played by one process, the same for both: links of ours.
//
//	client (10.79.0.2) -> relay under test (10.79.0.1) -> relay at the path's end (10.79.0.3)

const (
	relayAt, clientAt, endAt = "10.79.0.1:1190", "10.79.0.2:1190", "10.79.0.3:1190"

	forwarded  = 1200                          // bytes of an application datagram on a link
	pathTail   = 24 + 16 + 1                   // of them the path's trailer: nonce, hop id, type (protocol 3 section 3.1)
	window     = 100                           // datagrams under way, below quic-go's queue of 128
	paceBurst  = 64                            // datagrams at once of what is paced
	sparseRate = 2000                          // datagrams a second where they are to come one by one
	keyPrefix  = "0*0\x05\x06\x03+ep\x03!\x00" // SubjectPublicKeyInfo of an Ed25519 key
)

// equal are settings of both relays. lokinetd gives itself one processor below a core's load; a bare relay gains by it as much, and is to be no worse.
var equal = []string{"GOGC=400", "GOMAXPROCS=1"}

// load is what was forwarded during one measurement.
type load struct {
	Count, Lost uint64
	Seconds     float64
	Bytes       float64 // of an application datagram, on average
}

// forwarding is a relay alone under one load.
type forwarding struct {
	load
	CPU float64 // seconds of the relay's process
}

// alone is the lab of one relay, with its keys and configuration in a directory.
type alone struct {
	*lab.Lab
	ctx context.Context // its end ends the lab
	dir string
	pid int // of the relay
}

func newAlone(ctx context.Context, dir string) (*alone, error) {
	var addrs []netip.Prefix
	for i := range 4 + sizePeers + crowdAddrs {
		addrs = append(addrs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 79, 0, byte(1 + i)}), 24))
	}
	relay, end, operator := key.Generate(), key.Generate(), key.Generate()
	file := &netdb.NetworkFile{Name: "bench", Network: 1000, Serial: 1, Private: true, Relays: []key.Public{relay.Public(), end.Public()}}
	for _, r := range []struct {
		s *key.Secret
		a string
	}{{relay, relayAt}, {end, endAt}} {
		file.Contacts = append(file.Contacts, router.SignContact(r.s, netip.MustParseAddrPort(r.a), file.Network, time.Now()))
	}
	a := &alone{ctx: ctx, dir: dir}
	for i := range sizePeers {
		peer := key.Generate()
		file.Relays = append(file.Relays, peer.Public())
		if err := peer.Save(a.in(peerKey(i))); err != nil {
			return nil, err
		}
	}
	raw, err := file.Sign(operator)
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("role = \"relay\"\ndata_dir = %q\n[network]\nfile = %q\noperator = %q\n[relay]\nlisten = %q\npublic_address = %q\n[control]\nsocket = %q\ngroup = \"\"\n[log]\nlevel = \"*=warn\"\n",
		dir, a.in("bench.network"), operator.Public(), relayAt, relayAt, a.in("sock"))
	if err := errors.Join(relay.Save(a.in("relay.key")), end.Save(a.in("end.key")),
		os.WriteFile(a.in("bench.network"), raw, 0o600), os.WriteFile(a.in("alone.toml"), []byte(text), 0o600)); err != nil {
		return nil, err
	}
	if a.Lab, err = lab.New(lab.NodeConfig{Addrs: addrs}); err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { a.Close() })
	return a, nil
}

func (a *alone) in(name string) string { return filepath.Join(a.dir, name) }

// start starts the relay.
func (a *alone) start(bare bool, env ...string) error {
	args := []string{"run", "-c", a.in("alone.toml")}
	if bare {
		args = []string{"bench", "bare", "-key", a.in("relay.key")}
	}
	c := a.Self(args...)
	c.Stderr, c.Env = os.Stderr, append(os.Environ(), env...)
	if err := c.Start(); err != nil {
		return err
	}
	pids := childrenOf(a.PID(), args[len(args)-1])
	if len(pids) != 1 {
		return fmt.Errorf("the relay is not there, or twice: %v", pids)
	}
	a.pid = pids[0]
	return nil
}

// program starts a program that plays the peers, and returns its output.
func (a *alone) program(name string, args ...string) (*lines, error) {
	c := a.Self(append([]string{"bench", name, "-relay-key", a.in("relay.key"), "-end-key", a.in("end.key")}, args...)...)
	out := newLines(a.ctx)
	c.Stdout, c.Stderr = out, os.Stderr
	return out, out.follow(c)
}

// relayBench measures one kind of relay, saturated and with sparse datagrams. profiles is the directory for a CPU profile of the saturated relay, or empty.
func relayBench(ctx context.Context, dir string, bare bool, lasts time.Duration, profiles string) (full, sparse forwarding, err error) {
	a, err := newAlone(ctx, dir)
	if err != nil {
		return full, sparse, err
	}
	defer a.Close()
	if err := a.start(bare, append(equal, profileEnv+"="+profiles)...); err != nil {
		return full, sparse, err
	}
	out, err := a.program("drive", fmt.Sprintf("-bare=%v", bare), "-for", lasts.String())
	if err != nil {
		return full, sparse, err
	}
	for _, f := range []*forwarding{&full, &sparse} {
		if _, err := out.expect("begin", 30*time.Second, nil); err != nil {
			return full, sparse, err
		}
		profiled := f == &full && profiles != ""
		if profiled {
			toggleProfile(a.pid)
		}
		before := cpuOf(a.pid)
		if _, err := out.expect("end", lasts+10*time.Second, &f.load); err != nil {
			return full, sparse, err
		}
		f.CPU = cpuOf(a.pid) - before
		if profiled {
			toggleProfile(a.pid)
			awaitFile(filepath.Join(profiles, "alone.prof"))
		}
	}
	return full, sparse, nil
}

// driveRelay plays both peers. It says "begin" and "end" around each load.
func driveRelay(ctx context.Context, args []string) (any, error) {
	f := flag.NewFlagSet("drive", flag.ContinueOnError)
	bare := f.Bool("bare", false, "")
	relayKey := f.String("relay-key", "", "")
	endKey := f.String("end-key", "", "")
	lasts := f.Duration("for", 3*time.Second, "")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	relay, end, err := loadPair(*relayKey, *endKey)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &drive{room: make(chan struct{}, window)}
	if *bare {
		err = d.throughBare(ctx, relay.Public())
	} else {
		err = d.throughPath(ctx, relay, end)
	}
	if err != nil {
		return nil, err
	}
	d.run(time.Second, 0)
	for _, pace := range []int{0, sparseRate} {
		fmt.Println("begin {}")
		l := d.run(*lasts, pace)
		fmt.Printf("end {\"Count\":%d,\"Lost\":%d,\"Seconds\":%f,\"Bytes\":%f}\n", l.Count, l.Lost, l.Seconds, l.Bytes)
	}
	return nil, nil
}

// drive is the sending and the receiving peer.
type drive struct {
	first   link.Conn // towards the relay
	send    func()
	room    chan struct{}
	arrived atomic.Uint64
}

// came counts a datagram at the receiving peer.
func (d *drive) came(b *packet.Buffer) {
	b.Release()
	d.arrived.Add(1)
	select {
	case <-d.room:
	default:
	}
}

// run sends for a while: at most window under way, or pace a second.
func (d *drive) run(lasts time.Duration, pace int) load {
	sent, arrived, stats, start := uint64(0), d.arrived.Load(), d.first.Stats(), time.Now()
	for now := start; now.Sub(start) < lasts; now = time.Now() {
		if pace > 0 {
			// Who was kept from sending for a while makes up for it, but not at once: that would not fit into any queue.
			due := uint64(now.Sub(start).Seconds() * float64(pace))
			for due = min(due, sent+paceBurst); sent < due; sent++ {
				d.send()
			}
			time.Sleep(100 * time.Microsecond)
			continue
		}
		for range 16 {
			select {
			case d.room <- struct{}{}:
			default:
				select {
				case d.room <- struct{}{}:
				case <-time.After(200 * time.Millisecond): // lost: make room again
					for len(d.room) > 0 {
						<-d.room
					}
				}
			}
			d.send()
			sent++
		}
	}
	took := time.Since(start)
	count := d.arrived.Load() - arrived
	time.Sleep(100 * time.Millisecond)
	after := d.first.Stats()
	return load{
		Count: count, Lost: sent - min(sent, d.arrived.Load()-arrived), Seconds: took.Seconds(),
		Bytes: float64(after.BytesOut-stats.BytesOut) / float64(after.DatagramsOut-stats.DatagramsOut),
	}
}

// player is a link.Handler.
type player struct {
	datagram func(link.Conn, *packet.Buffer)
	request  func(link.Conn, *link.Request) bool
}

func (*player) Opened(link.Conn)        {}
func (*player) Closed(link.Conn, error) {}
func (p *player) Datagram(c link.Conn, b *packet.Buffer) {
	if p.datagram == nil {
		b.Release()
		return
	}
	p.datagram(c, b)
}

func (p *player) Request(c link.Conn, r *link.Request) {
	if p.request == nil || !p.request(c, r) {
		r.Unknown()
	}
}

func replyTo(r *link.Request) func([]byte, bool) {
	return func(body []byte, fail bool) {
		if fail {
			r.Fail(body)
		} else {
			r.Reply(body)
		}
	}
}

func endpoint(ctx context.Context, at string, c link.Config, p *player) (*link.QUIC, error) {
	pc, err := net.ListenPacket("udp4", at)
	if err != nil {
		return nil, err
	}
	q, err := link.NewQUIC(pc, c)
	if err != nil {
		return nil, err
	}
	go q.Run(ctx, p)
	return q, nil
}

// dialRelay tries until the relay is there.
func dialRelay(ctx context.Context, q *link.QUIC, id key.Public, kind link.Kind) (c link.Conn, err error) {
	for range 50 {
		if c, err = q.Dial(ctx, netip.MustParseAddrPort(relayAt), id, kind); err == nil {
			return c, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, err
}

// throughBare: datagrams of the first link come out of the second.
func (d *drive) throughBare(ctx context.Context, relay key.Public) error {
	from, err := endpoint(ctx, clientAt, link.Config{}, &player{})
	if err != nil {
		return err
	}
	to, err := endpoint(ctx, endAt, link.Config{}, &player{datagram: func(_ link.Conn, b *packet.Buffer) { d.came(b) }})
	if err != nil {
		return err
	}
	if d.first, err = dialRelay(ctx, from, relay, link.Client); err != nil {
		return err
	}
	if _, err = dialRelay(ctx, to, relay, link.Client); err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond) // it accepts the second connection
	d.send = func() {
		b := packet.Get()
		b.Reset(forwarded)
		d.first.Send(b)
	}
	return nil
}

// throughPath: a path of two hops, the relay under test and the relay at the end, which this process plays as far as builds and pings go.
func (d *drive) throughPath(ctx context.Context, relay, end *key.Secret) error {
	transit := path.NewRelay(end, noMesh{}, noLocal{}, path.Limits{}, nil)
	if _, err := endpoint(ctx, endAt, link.Config{Secret: end, Accept: true, Registered: func(key.Public) bool { return true }}, &player{
		datagram: func(_ link.Conn, b *packet.Buffer) { d.came(b) },
		request: func(c link.Conn, r *link.Request) bool {
			return transit.HandleRequest(c, c.Remote(), r.Name, r.Body, replyTo(r))
		},
	}); err != nil {
		return err
	}
	store, err := netdb.OpenStore("", key.Public{}, false, netdb.Rules{Network: 1000, Private: true}, nil)
	if err != nil {
		return err
	}
	for _, r := range []struct {
		s *key.Secret
		a string
	}{{relay, relayAt}, {end, endAt}} {
		store.Put(router.SignContact(r.s, netip.MustParseAddrPort(r.a), 1000, time.Now()))
	}
	store.SetKnown([]key.Public{relay.Public(), end.Public()})
	o := path.DefaultOptions()
	o.UniqueRange, o.Edges = 0, 1
	client := path.NewClient(path.ClientConfig{Options: o, Store: store})
	from, err := endpoint(ctx, clientAt, link.Config{}, &player{
		datagram: func(c link.Conn, b *packet.Buffer) { client.Datagram(c, b) },
		request: func(c link.Conn, r *link.Request) bool {
			return client.HandleRequest(c, r.Name, r.Body, replyTo(r))
		},
	})
	if err != nil {
		return err
	}
	if d.first, err = dialRelay(ctx, from, relay.Public(), link.Client); err != nil {
		return err
	}
	client.EdgeUp(relay.Public(), d.first)
	pool := client.NewPool(path.PoolConfig{Kind: path.ToRelay, Hops: 2, Want: 1, Target: end.Public(), Owner: noOwner{}})
	for range 100 {
		client.Tick(time.Now())
		pool.Tick(time.Now())
		if up := pool.Paths(time.Now()); len(up) > 0 {
			go func() {
				for ctx.Err() == nil {
					client.Tick(time.Now())
					transit.Tick(time.Now())
					time.Sleep(250 * time.Millisecond)
				}
			}()
			if hops := up[0].Hops(); !slices.Equal(hops, []key.Public{relay.Public(), end.Public()}) {
				return fmt.Errorf("the path has other hops: %v", hops)
			}
			d.send = func() {
				b := packet.Get()
				b.Reset(forwarded - pathTail)
				b.Nonce[0] = byte(rand.Uint32())
				up[0].Send(b)
			}
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.New("the path through the relay did not come up")
}

// What lies around paths when there is nothing but one path. Local is never asked: datagrams end before it, and nobody requests anything.
type (
	noMesh  struct{}
	noLocal struct{ path.Local }
	noOwner struct{}
)

var errNobody = errors.New("nobody there")

func (noMesh) Datagram(_ key.Public, b *packet.Buffer)  { b.Release() }
func (noMesh) Command(key.Public, string, []byte) error { return errNobody }
func (noMesh) Request(context.Context, key.Public, string, []byte) ([]byte, error) {
	return nil, errNobody
}
func (noOwner) PathUp(*path.Path)                                      {}
func (noOwner) PathDown(*path.Path, path.Reason)                       {}
func (noOwner) PathDatagram(_ *path.Path, b *packet.Buffer)            { b.Release() }
func (noOwner) PathControl(_ *path.Path, _ byte, _ []byte, _ [24]byte) {}

// runBare is the other relay: quic-go with the settings of our links, one connection in, the next one out.
func runBare(ctx context.Context, args []string) (any, error) {
	f := flag.NewFlagSet("bare", flag.ContinueOnError)
	file := f.String("key", "", "")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	secret, err := key.LoadSecret(*file)
	if err != nil {
		return nil, err
	}
	pc, err := net.ListenPacket("udp4", relayAt)
	if err != nil {
		return nil, err
	}
	defer pc.Close()
	self := secret.Public()
	tr := &quic.Transport{Conn: pc, ConnectionIDLength: 20}
	l, err := tr.Listen(&tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"Session_Router_C"}, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{append([]byte(keyPrefix), self[:]...)}, PrivateKey: secret.Signer()}},
	}, &quic.Config{
		Versions: []quic.Version{quic.Version1}, MaxIdleTimeout: 63 * time.Second, MaxIncomingStreams: 32, MaxIncomingUniStreams: -1,
		EnableDatagrams: true, InitialPacketSize: 1200,
	})
	if err != nil {
		return nil, err
	}
	in, err := l.Accept(ctx)
	if err != nil {
		return nil, err
	}
	out, err := l.Accept(ctx)
	if err != nil {
		return nil, err
	}
	for {
		p, err := in.ReceiveDatagram(ctx)
		if err != nil {
			return nil, nil
		}
		out.SendDatagram(p)
	}
}

// loadPair reads the keys of the relay and of the end behind it.
func loadPair(relayFile, endFile string) (relay, end *key.Secret, err error) {
	if relay, err = key.LoadSecret(relayFile); err != nil {
		return nil, nil, err
	}
	end, err = key.LoadSecret(endFile)
	return relay, end, err
}
