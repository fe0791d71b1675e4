//go:build bench

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"lokinetd/router"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/session"
)

// What a node costs that has many of something: links and hops at a relay, sessions at a client. Two sizes of each, so that it can be seen whether it is linear.

const (
	sizeRounds   = 3     // memory varies little, and a round takes long
	sizePeers    = 10    // relays as peers
	sizeClients  = 2000  // client connections
	sizeHops     = 10000 // transit hops
	sizeSessions = 500

	crowdEach  = 100                                       // client connections from one address: a relay takes 128
	crowdAddrs = (sizeClients + crowdEach - 1) / crowdEach // for them
	hopsOfPool = 25                                        // at the relays; 1 at the clients

	settle    = 500 * time.Millisecond // until a state is looked at
	lookShort = 2 * time.Second        // at links
	lookLong  = 5 * time.Second        // at paths: each is pinged once
)

// The states, with numbers of links and hops.
const (
	stepPeers       = "relay: %d relays as peers"
	stepPeersHops   = "relay: %d peers, %d hops"
	stepClients     = "relay: %d client connections"
	stepClientsHops = "relay: %d client connections, %d hops"
)

func peerKey(i int) string { return fmt.Sprintf("peer%d.key", i) }

// sizeStep is a state that a node is in, and what it has and costs then.
type sizeStep struct {
	What  string
	Count int // of what there is more of than at the step before, in all; 0: of nothing
	Look  time.Duration
	RSS   float64 // MB
	CPU   float64 // per cent of a core
}

// costs measures a process.
func (s *sizeStep) costs(pid int) {
	s.RSS = rssOf(pid)
	before, began := cpuOf(pid), time.Now()
	time.Sleep(s.Look)
	s.CPU = (cpuOf(pid) - before) / time.Since(began).Seconds() * 100
}

// relaySize lets relays or clients connect to a fresh relay and build paths that end there, each of which is pinged as usual.
func relaySize(ctx context.Context, dir string, clients bool) (all []sizeStep, err error) {
	a, err := newAlone(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	if err := a.start(false); err != nil {
		return nil, err
	}
	out, err := a.program("crowd", "-dir", dir, fmt.Sprintf("-clients=%v", clients))
	if err != nil {
		return nil, err
	}
	for {
		s := sizeStep{}
		line, err := out.next(100 * time.Second)
		if err != nil {
			return all, err
		}
		if line == "end" {
			break
		}
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			return all, fmt.Errorf("%q: %w", line, err)
		}
		s.costs(a.pid)
		all = append(all, s)
	}
	st, err := control.NewClient(a.in("sock")).Status(ctx)
	switch {
	case err != nil:
		return all, err
	case st.Relay == nil || st.Relay.TransitHops < sizeHops || clients && st.Relay.Clients < sizeClients || !clients && st.Relay.Peers < sizePeers:
		return all, fmt.Errorf("the relay has not all that was built: %+v", st.Relay)
	}
	return all, nil
}

// playCrowd plays the relays or clients. At each step it says what there is and stays so for a while.
func playCrowd(ctx context.Context, args []string) (any, error) {
	f := flag.NewFlagSet("crowd", flag.ContinueOnError)
	relayKey := f.String("relay-key", "", "")
	f.String("end-key", "", "")
	dir := f.String("dir", "", "")
	clients := f.Bool("clients", false, "")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	relay, err := key.LoadSecret(*relayKey)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &crowd{ctx: ctx, relay: relay.Public()}
	if c.store, err = netdb.OpenStore("", key.Public{}, false, netdb.Rules{Network: 1000, Private: true}, nil); err != nil {
		return nil, err
	}
	c.store.Put(router.SignContact(relay, netip.MustParseAddrPort(relayAt), 1000, time.Now()))
	c.store.SetKnown([]key.Public{c.relay})
	go c.tick()
	if !*clients {
		return nil, c.peers(*dir)
	}
	return nil, c.clients()
}

// crowd is those who connect to the relay.
type crowd struct {
	ctx   context.Context
	relay key.Public
	store *netdb.Store
	conns []link.Conn

	mu    sync.Mutex
	all   []*path.Client // one for each connection
	pools []*path.Pool
	ready int // of pools: so many are up
}

// tick lets the paths that are up be pinged.
func (c *crowd) tick() {
	for c.ctx.Err() == nil {
		c.mu.Lock()
		up := c.pools[:c.ready:c.ready]
		c.mu.Unlock()
		for _, p := range up {
			p.Tick(time.Now())
		}
		time.Sleep(250 * time.Millisecond)
	}
}

// step says that a state is reached, and lets it be measured.
func (c *crowd) step(count int, format string, args ...any) {
	look := lookShort
	if c.ready > 0 {
		look = lookLong
	}
	say(sizeStep{What: fmt.Sprintf(format, args...), Count: count, Look: look})
}

// say has a state measured.
func say(s sizeStep) {
	time.Sleep(settle)
	line, _ := json.Marshal(s)
	fmt.Println(string(line))
	time.Sleep(s.Look + settle)
}

// connect opens n connections from an address.
func (c *crowd) connect(host int, config link.Config, kind link.Kind, n int) error {
	q, err := endpoint(c.ctx, fmt.Sprintf("10.79.0.%d:1190", host), config, &player{})
	if err != nil {
		return err
	}
	o := path.DefaultOptions()
	o.UniqueRange, o.Edges, o.Profiling = 0, 1, false
	for range n {
		l, err := dialRelay(c.ctx, q, c.relay, kind)
		if err != nil {
			return err
		}
		client := path.NewClient(path.ClientConfig{Options: o, Store: c.store})
		client.EdgeUp(c.relay, l)
		c.conns = append(c.conns, l)
		c.mu.Lock()
		c.all = append(c.all, client)
		c.mu.Unlock()
	}
	return nil
}

// alone waits until the relay is there, and has it measured with nobody connected.
func (c *crowd) alone() error {
	if err := c.connect(4+sizePeers, link.Config{}, link.Client, 1); err != nil {
		return err
	}
	c.conns[0].Close(link.CodeNormal)
	c.conns, c.all = nil, nil
	c.step(0, "relay: nobody connected")
	return nil
}

func (c *crowd) peers(dir string) error {
	if err := c.alone(); err != nil {
		return err
	}
	for i := range sizePeers {
		secret, err := key.LoadSecret(filepath.Join(dir, peerKey(i)))
		if err != nil {
			return err
		}
		if err := c.connect(4+i, link.Config{Secret: secret}, link.Relay, 1); err != nil {
			return err
		}
	}
	c.step(sizePeers, stepPeers, sizePeers)
	for _, n := range []int{sizeHops / 2, sizeHops} {
		if err := c.build(n, hopsOfPool); err != nil {
			return err
		}
		c.step(n, stepPeersHops, sizePeers, n)
	}
	fmt.Println("end")
	return nil
}

func (c *crowd) clients() error {
	if err := c.alone(); err != nil {
		return err
	}
	for i := range crowdAddrs {
		if err := c.connect(5+sizePeers+i, link.Config{}, link.Client, crowdEach); err != nil {
			return err
		}
		if n := len(c.conns); n == sizeClients/2 || n == sizeClients {
			c.step(n, stepClients, n)
		}
	}
	if err := c.build(sizeHops, 1); err != nil {
		return err
	}
	c.step(sizeHops, stepClientsHops, sizeClients, sizeHops)
	fmt.Println("end")
	return nil
}

// build adds hops, over all connections alike, until there are n. Pools have each paths.
func (c *crowd) build(n, each int) error {
	for i := 0; len(c.pools)*each < n; i++ {
		p := c.all[i%len(c.all)].NewPool(path.PoolConfig{Kind: path.ToRelay, Hops: 1, Want: each, Target: c.relay, Owner: noOwner{}})
		c.mu.Lock()
		c.pools = append(c.pools, p)
		c.mu.Unlock()
	}
	const atOnce = 400 // a few at a time
	for end := time.Now().Add(90 * time.Second); c.ready < len(c.pools); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%d of %d hops were built in 90 s", c.ready*each, n)
		}
		for _, p := range c.pools[c.ready:min(len(c.pools), c.ready+atOnce/each)] {
			p.Tick(time.Now())
		}
		c.mu.Lock()
		for c.ready < len(c.pools) && len(c.pools[c.ready].Paths(time.Now())) == each {
			c.ready++
		}
		c.mu.Unlock()
	}
	return nil
}

// clientSize lets a client have many sessions in a demo's network. The remotes are one process.
func clientSize(ctx context.Context, dir string) (all []sizeStep, err error) {
	d := &demoNet{a: &app{out: os.Stdout, err: os.Stderr}, dir: dir, operator: key.Generate()}
	names, err := d.plan()
	if err != nil {
		return nil, err
	}
	defer d.lab.Close()
	context.AfterFunc(ctx, func() { d.lab.Close() })
	if err := d.startRelays(names); err != nil {
		return nil, err
	}
	guest, err := d.client("guest", "10.77.0.102", "")
	if err != nil {
		return nil, err
	}
	host, err := d.node("host", "10.77.0.101", "")
	if err != nil {
		return nil, err
	}
	remotes := host.node.Self("bench", "remotes", "-dir", dir, "-operator", d.operator.Public().String(), "-at", "10.77.0.101:1190")
	out := newLines(ctx)
	remotes.Stdout, remotes.Stderr = out, os.Stderr
	if err := out.follow(remotes); err != nil {
		return nil, err
	}
	if err := guest.wait(ctx, func(st control.Status) bool { return st.State == control.Ready }); err != nil {
		return nil, err
	}
	if _, err := out.expect("published", 60*time.Second, nil); err != nil {
		return nil, err
	}
	call := guest.node.Self("bench", "call", "-dir", dir)
	calls := newLines(ctx)
	call.Stdout, call.Stderr = calls, os.Stderr
	if err := calls.follow(call); err != nil {
		return nil, err
	}
	pid := childrenOf(guest.node.PID(), "lokinetd.toml")
	if len(pid) != 1 {
		return nil, errNoClient
	}
	for {
		line, err := calls.next(60 * time.Second)
		if err != nil {
			return all, err
		}
		if line == "end" {
			return all, nil
		}
		s := sizeStep{}
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			return all, fmt.Errorf("%q: %w", line, err)
		}
		s.costs(pid[0])
		st, err := guest.status(ctx)
		if err != nil {
			return all, err
		}
		if len(st.Sessions) < s.Count {
			return all, fmt.Errorf("the client has %d sessions, not %d", len(st.Sessions), s.Count)
		}
		all = append(all, s)
	}
}

// playRemotes plays those whom the client calls: one node with many endpoints. It says "published" when all can be found; their addresses are then in a file.
func playRemotes(ctx context.Context, args []string) (any, error) {
	f := flag.NewFlagSet("remotes", flag.ContinueOnError)
	dir := f.String("dir", "", "")
	operator := f.String("operator", "", "")
	at := f.String("at", "", "")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	public, err := key.ParsePublic(*operator)
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(filepath.Join(*dir, "demo.network"))
	if err != nil {
		return nil, err
	}
	file, err := netdb.ParseNetworkFile(raw, public, time.Now())
	if err != nil {
		return nil, err
	}
	store, err := netdb.OpenStore("", key.Public{}, false, file.Rules(), nil)
	if err != nil {
		return nil, err
	}
	pc, err := net.ListenPacket("udp4", *at)
	if err != nil {
		return nil, err
	}
	wire, err := link.NewQUIC(pc, link.Config{})
	if err != nil {
		return nil, err
	}
	o := path.DefaultOptions()
	o.UniqueRange = 0
	n, err := router.NewNode(router.NodeConfig{Wire: wire, Store: store, Network: file, Paths: path.ClientConfig{Options: o}})
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	var missing sync.WaitGroup
	missing.Add(sizeSessions)
	list := ""
	for i := range sizeSessions {
		there := sync.OnceFunc(missing.Done)
		e, err := n.AddEndpoint(router.EndpointConfig{
			Name: fmt.Sprint(i), Secret: key.Generate(), Service: true, Inbound: 1, Flags: netdb.FlagIPv4 | netdb.FlagIPv6 | netdb.FlagPFS,
			Deliver: func(_ key.Address, b *packet.Buffer) { b.Release() },
			Published: func(p session.Publication) {
				if p.Locations > 0 {
					there()
				}
			},
		})
		if err != nil {
			return nil, err
		}
		list += e.Address().String() + "\n"
	}
	if err := os.WriteFile(filepath.Join(*dir, "remotes"), []byte(list), 0o600); err != nil {
		return nil, err
	}
	missing.Wait()
	fmt.Println("published")
	return nil, <-done
}

// playCaller resolves the remotes' names, whose answers come when there is a session, and sends each a packet now and then. At each step it says what there is
// and stays so for a while.
func playCaller(ctx context.Context, args []string) (any, error) {
	f := flag.NewFlagSet("call", flag.ContinueOnError)
	dir := f.String("dir", "", "")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(filepath.Join(*dir, "remotes"))
	if err != nil {
		return nil, err
	}
	u, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var up []net.Addr
	go func() { // a packet each 5 s, evenly
		for i := 0; ctx.Err() == nil; i++ {
			mu.Lock()
			n := len(up)
			if n > 0 {
				u.WriteTo(make([]byte, 100), up[i%n])
			}
			mu.Unlock()
			time.Sleep(5 * time.Second / time.Duration(max(n, 50)))
		}
	}()
	step := func(n int) {
		say(sizeStep{What: fmt.Sprintf("client: %d sessions", n), Count: n, Look: lookLong})
	}
	step(0)
	names := strings.Fields(string(raw))
	for _, part := range [][]string{names[:sizeSessions/2], names[sizeSessions/2:]} {
		todo := make(chan string, len(part))
		for _, name := range part {
			todo <- name
		}
		close(todo)
		fail := make(chan error, len(part))
		var workers sync.WaitGroup
		for range 20 {
			workers.Go(func() {
				for name := range todo {
					a, err := resolve(name)
					if err != nil {
						fail <- fmt.Errorf("%s: %w", name, err)
						continue
					}
					mu.Lock()
					up = append(up, &net.UDPAddr{IP: a, Port: 9})
					mu.Unlock()
				}
			})
		}
		workers.Wait()
		select {
		case err := <-fail:
			return nil, err
		default:
		}
		step(len(up))
	}
	fmt.Println("end")
	return nil, nil
}

// resolve asks the daemon for an address, again when it says that it cannot tell now.
func resolve(name string) (net.IP, error) {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	c := dns.Client{Timeout: 15 * time.Second}
	err := errors.New("no answer")
	for range 3 {
		var a *dns.Msg
		if a, _, err = c.Exchange(m, "127.3.2.1:53"); err != nil {
			continue
		}
		for _, rr := range a.Answer {
			if x, ok := rr.(*dns.A); ok {
				return x.A, nil
			}
		}
		err = fmt.Errorf("the answer: %s", dns.RcodeToString[a.Rcode])
	}
	return nil, err
}
