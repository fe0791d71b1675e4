package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

// fabric plays paths in memory, without hops and layers: what a client sends on a path comes out at the path whose id it names as pivot, if both end at the same relay.
// It runs inside a synctest bubble. Messages take latency; or, with manual set, lie in flight until the test delivers them one by one.
type fabric struct {
	t        testing.TB
	latency  time.Duration
	building time.Duration
	manual   bool
	hook     sync.Mutex                    // held while lose is asked
	lose     func(m *flying) bool          // asked for each message when it is sent
	delay    func(m *flying) time.Duration // the same; beside latency

	mu     sync.Mutex
	flight []*flying
	nodes  []*node
	models []*model
	pivots []key.Public
	ends   map[path.ID]*fakePath
	relays map[key.Public]*node
	stored [netdb.Locations]map[key.Public][]byte
	refuse func(method string, location int) error // asked for each request
	lie    func(p *fakePath, location int) bool    // asked for each: confirm and keep nothing, deny what is there
	echo   map[*fakePath][]byte                    // what liars were told; not nil: who told it finds it over the same path
	hole   func(blinded key.Public) bool           // asked for each look-up: there is no answer, after 10 s
	serial uint32
	sent   int
	asked  map[string]int // requests by method; a client's look-up of itself is a "check"
}

// flying is a message on its way.
type flying struct {
	from, to key.Public // to: zero when it is not known yet
	what     string     // init, accept, switch, control, data
	msg      []byte     // body, tag and, from a client, pivot id
	nonce    seal.Nonce
	on       *fakePath
	land     func()
}

func newFabric(t testing.TB) *fabric {
	f := &fabric{t: t, latency: 50 * time.Millisecond, ends: make(map[path.ID]*fakePath), relays: make(map[key.Public]*node), asked: make(map[string]int)}
	for i := range f.stored {
		f.stored[i] = make(map[key.Public][]byte)
	}
	for i := range 10 {
		f.pivots = append(f.pivots, key.FromSeed(fill(byte(0x10+i))).Public())
	}
	return f
}

// node is a Table on the fabric.
type node struct {
	f         *fabric
	sec       *key.Secret
	table     *Table
	pools     []*fakePool
	witnesses []*fakePool
	echo      bool // answers what begins with "?"

	version [3]uint8 // of a relay: what its contact says, without our key s; zero: 1.0.2 with it

	mu    sync.Mutex
	got   []string // payloads
	lost  []string // given back
	why   []error
	known []Publication
}

// client makes a client that takes calls and publishes its contact, unless change says otherwise.
func (f *fabric) client(sec *key.Secret, change func(*Config)) *node {
	n := &node{f: f, sec: sec}
	n.start(change)
	f.nodes = append(f.nodes, n)
	return n
}

// start makes the node's Table, a new one after a crash.
func (n *node) start(change func(*Config)) {
	c := Config{
		Self: n.sec, Accept: everybody, Deliver: n.deliver, Publish: true, Flags: netdb.FlagIPv4,
		Undeliverable: func(_ key.Address, b *packet.Buffer, why error) {
			n.mu.Lock()
			n.lost, n.why = append(n.lost, text(b.Data)), append(n.why, why)
			n.mu.Unlock()
			b.Release()
		},
		Published: func(p Publication) {
			n.mu.Lock()
			n.known = append(n.known, p)
			n.mu.Unlock()
		},
		RelayContact: func(k key.Public) *netdb.RelayContact {
			r := n.f.relays[k]
			switch {
			case r == nil:
				return nil
			case r.version != [3]uint8{}:
				return &netdb.RelayContact{ID: k, Version: r.version}
			}
			return &netdb.RelayContact{ID: k, Version: [3]uint8{1, 0, 2}, Sessions: true}
		},
	}
	if change != nil {
		change(&c)
	}
	n.table = newTable(c)
	if !c.Relay {
		n.table.open(fakeBuilder{n})
	}
}

// relay makes a relay.
func (f *fabric) relay(sec *key.Secret) *node {
	n := &node{f: f, sec: sec}
	n.start(func(c *Config) { c.Relay, c.Accept, c.Publish = true, nil, false })
	f.nodes = append(f.nodes, n)
	f.relays[sec.Public()] = n
	return n
}

// crash ends a node without a word and starts it again, with no memory but its key.
func (n *node) crash(change func(*Config)) {
	old := n.table
	for _, p := range n.allPools() {
		for _, q := range p.all() {
			q.kill(false)
		}
	}
	old.lock()
	for _, s := range old.tags { // or Close would say good-bye
		s.route.Store(nil)
	}
	old.unlock()
	old.Close()
	n.mu.Lock()
	n.pools = nil
	n.mu.Unlock()
	n.start(change)
}

func (n *node) addr() key.Address { return key.Address{Key: n.sec.Public(), Kind: n.kind()} }

func (n *node) kind() key.Kind {
	if n.table.c.Relay {
		return key.Relay
	}
	return key.Client
}

func (n *node) deliver(from key.Address, b *packet.Buffer) {
	s := text(b.Data)
	b.Release()
	n.mu.Lock()
	n.got = append(n.got, s)
	n.mu.Unlock()
	if n.echo && strings.HasPrefix(s, "?") {
		n.table.Send(from, ipPacket("!"+s[1:]))
	}
}

// take returns what arrived since it was called last.
func (n *node) take() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	got := n.got
	n.got = nil
	return got
}

func (n *node) send(to *node, s string) bool { return n.table.Send(to.addr(), ipPacket(s)) }

// with returns the sessions with another node.
func (n *node) with(o *node) (list []Info) {
	for _, i := range n.table.List() {
		if i.Remote == o.addr() {
			list = append(list, i)
		}
	}
	return list
}

// caller says which of two nodes called for the session that n sends on to o.
func (n *node) caller(o *node) *node {
	for _, i := range n.with(o) {
		if i.Current && i.Inbound {
			return o
		} else if i.Current {
			return n
		}
	}
	return nil
}

// ipPacket makes an IPv4 packet of an experimental protocol, addresses zero.
func ipPacket(s string) *packet.Buffer {
	b := packet.Get()
	p := b.Reset(20 + len(s))
	clear(p[:20])
	p[0], p[8], p[9] = 0x45, 64, 253
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[20:], s)
	return b
}

func text(p []byte) string { return string(p[20:]) }

// run lets time pass, in ticks.
func (f *fabric) run(d time.Duration) {
	for _, l := range []*sync.Mutex{&f.hook, &f.mu} { // what the test has read and set comes before what is done under them from now on
		l.Lock()
		l.Unlock()
	}
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(min(250*time.Millisecond, time.Until(end)))
		f.tick()
	}
	synctest.Wait()
}

func (f *fabric) tick() {
	synctest.Wait()
	for _, n := range f.nodes {
		for _, p := range append(n.allPools(), n.lastWitnesses()...) {
			p.tick(time.Now())
		}
		n.table.Tick(time.Now())
	}
	for _, m := range f.models {
		m.pool.tick(time.Now())
		if m.out != nil {
			m.out.tick(time.Now())
		}
	}
	synctest.Wait()
}

// close ends all, so that the bubble can end, and looks for packets that nobody gave back.
func (f *fabric) close() {
	for _, n := range f.nodes {
		n.table.Close()
	}
	synctest.Wait()
	time.Sleep(time.Minute)
}

// inBubble runs a test on a fabric in fake time and looks for buffers that are not given back.
func inBubble(t *testing.T, test func(t *testing.T, f *fabric)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		before := packet.InUse()
		f := newFabric(t)
		test(t, f)
		f.close()
		if n := packet.InUse() - before; n != 0 {
			t.Errorf("%d buffers not given back", n)
		}
	})
}

// wait runs until ok, at most d.
func (f *fabric) wait(d time.Duration, what string, ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(d); !ok(); {
		if !time.Now().Before(end) {
			f.t.Fatalf("after %v still not: %s", d, what)
		}
		f.run(250 * time.Millisecond)
	}
}

// launch sends a message on its way.
func (f *fabric) launch(m *flying) {
	m.what = kindOf(m)
	f.hook.Lock()
	lost := f.lose != nil && f.lose(m)
	more := time.Duration(0)
	if f.delay != nil {
		more = f.delay(m)
	}
	f.hook.Unlock()
	if lost {
		return
	}
	if f.manual {
		f.mu.Lock()
		f.flight = append(f.flight, m)
		f.mu.Unlock()
		return
	}
	f.mu.Lock()
	f.sent++
	d := f.latency + more + time.Duration(f.sent) // nanoseconds later: what is sent first arrives first
	f.mu.Unlock()
	time.AfterFunc(d, m.land)
}

func kindOf(m *flying) string {
	if m.what != "" {
		return m.what
	}
	h, err := m.handshake()
	if err != nil {
		return "control"
	}
	return map[byte]string{kindInit: "init", kindAccept: "accept", kindSwitch: "switch", kindOld: "init"}[h.kind]
}

// handshake takes apart a message that is one.
func (m *flying) handshake() (handshake, error) {
	h, err := parseHandshake(m.msg[:len(m.msg)-tagSize])
	if err != nil {
		h, err = parseHandshake(m.msg[:max(0, len(m.msg)-tagSize-pivotSize)])
	}
	return h, err
}

// deliver lands the i-th message in flight.
func (f *fabric) deliver(i int) {
	f.mu.Lock()
	m := f.flight[i]
	f.flight = slices.Delete(f.flight, i, i+1)
	f.mu.Unlock()
	m.land()
	synctest.Wait()
}

// fakePath is a path of a client.
type fakePath struct {
	f     *fabric
	who   key.Public
	owner poolOwner
	at    key.Public // the terminal relay
	end   path.ID
	peer  path.ID
	until time.Time

	mu     sync.Mutex
	dead   bool // and known to be
	silent bool // nothing passes, but nobody knows

}

func (f *fabric) newPath(who key.Public, owner poolOwner, at key.Public, peer path.ID, until time.Time) *fakePath {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.serial++
	p := &fakePath{f: f, who: who, owner: owner, at: at, peer: peer, until: until}
	binary.BigEndian.PutUint32(p.end[:], f.serial)
	p.end[15] = 1
	f.ends[p.end] = p
	return p
}

func (p *fakePath) id() path.ID        { return p.end }
func (p *fakePath) pivot() key.Public  { return p.at }
func (p *fakePath) aligned() path.ID   { return p.peer }
func (p *fakePath) expiry() time.Time  { return p.until }
func (p *fakePath) hops() []key.Public { return []key.Public{p.at} }
func (p *fakePath) rtt() time.Duration { return 2 * p.f.latency }
func (p *fakePath) suspect()           {}
func (p *fakePath) suspected() bool    { return false }
func (p *fakePath) blind(on bool)      { p.mu.Lock(); p.silent = on; p.mu.Unlock() }
func (p *fakePath) state() (dead, silent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead || !time.Now().Before(p.until), p.silent
}
func (p *fakePath) live(now time.Time) bool { dead, _ := p.state(); return !dead }
func (p *fakePath) passes() bool            { dead, silent := p.state(); return !dead && !silent }

// kill ends a path; tell: its owner learns of it now.
func (p *fakePath) kill(tell bool) {
	p.mu.Lock()
	was := p.dead
	p.dead = true
	p.mu.Unlock()
	p.f.mu.Lock()
	delete(p.f.ends, p.end)
	p.f.mu.Unlock()
	if tell && !was {
		p.owner.changed()
	}
}

func (p *fakePath) send(b *packet.Buffer) {
	msg := slices.Clone(b.Data)
	n := b.Nonce
	b.Release()
	p.up(&flying{what: "data", msg: msg, nonce: n}, path.TypeData)
}

func (p *fakePath) control(typ byte, msg []byte, n seal.Nonce) {
	m := &flying{msg: slices.Clone(msg), nonce: n}
	if typ == path.TypeControl && kindOf(m) != "init" { // 1.0
		m.what = "control"
	}
	p.up(m, typ)
}

// up carries a message from the path's client to its terminal relay and on.
func (p *fakePath) up(m *flying, typ byte) {
	if !p.passes() {
		return
	}
	m.from, m.on = p.who, p
	cut := len(m.msg) - pivotSize
	id, body := path.ID(m.msg[cut:]), m.msg[:cut]
	p.f.mu.Lock()
	target := p.f.ends[id]
	p.f.mu.Unlock()
	datagram := m.what == "data"
	if id == p.end {
		m.to = p.at
		m.land = func() {
			r := p.f.relays[p.at]
			if _, silent := p.state(); silent || r == nil {
				return
			}
			if datagram {
				r.table.datagram(fakeTerminal{p}, buffer(body, m.nonce))
			} else {
				r.table.controlled(fakeTerminal{p}, typ, slices.Clone(body), m.nonce)
			}
		}
	} else {
		if target != nil {
			m.to = target.who
		}
		m.land = func() {
			if _, silent := p.state(); target == nil || target.at != p.at || silent || !target.passes() {
				return
			}
			target.down(datagram, typ, body, m.nonce)
		}
	}
	p.f.launch(m)
}

// down brings a message to the path's client.
func (p *fakePath) down(datagram bool, typ byte, body []byte, n seal.Nonce) {
	if datagram {
		p.owner.datagram(p, buffer(body, n))
	} else {
		p.owner.controlled(p, typ, slices.Clone(body), n)
	}
}

func buffer(p []byte, n seal.Nonce) *packet.Buffer {
	b := packet.Get()
	b.Set(p)
	b.Nonce = n
	return b
}

var errLost = errors.New("fabric: no reply")

// request plays the relays behind the path: they keep contacts.
func (p *fakePath) request(ctx context.Context, method string, body []byte) ([]byte, error) {
	wait := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := wait(2 * p.f.latency); err != nil {
		return nil, err
	}
	p.f.mu.Lock()
	if own, _ := p.who.Blind(); method == netdb.MethodFindCC && bytes.Contains(body, own[:]) {
		p.f.asked["check"]++
	} else {
		p.f.asked[method]++
	}
	p.f.mu.Unlock()
	if !p.passes() {
		wait(10 * time.Second)
		return nil, errLost
	}
	switch method {
	case netdb.MethodFindCC:
		k, n, err := netdb.DecodeFindCC(body)
		if err != nil {
			return netdb.Status(netdb.StatusError), nil
		}
		p.f.mu.Lock()
		hole := p.f.hole != nil && p.f.hole(k)
		p.f.mu.Unlock()
		if hole {
			wait(10 * time.Second)
			return nil, errLost
		}
		p.f.mu.Lock()
		defer p.f.mu.Unlock()
		if p.f.refuse != nil {
			if err := p.f.refuse(method, n); err != nil {
				return nil, err
			}
		}
		if sealed := p.f.stored[n][k]; sealed != nil && (p.f.lie == nil || !p.f.lie(p, n)) {
			return netdb.EncodeFoundCC(sealed), nil
		}
		if told := p.f.echo[p]; told != nil {
			return netdb.EncodeFoundCC(told), nil
		}
		return netdb.Status(netdb.StatusNotFound), nil
	case netdb.MethodPublishCC:
		c, err := netdb.DecodePublishCC(body)
		if err != nil || netdb.VerifySealed(c.Sealed) != nil {
			return netdb.Status(netdb.StatusError), nil
		}
		p.f.mu.Lock()
		defer p.f.mu.Unlock()
		if p.f.refuse != nil {
			if err := p.f.refuse(method, int(c.Location)); err != nil {
				var status *netdb.ReplyStatus
				if errors.As(err, &status) {
					return netdb.Status(status.Text), nil
				}
				return nil, err
			}
		}
		if p.f.lie == nil || !p.f.lie(p, int(c.Location)) {
			p.f.stored[c.Location][c.Blinded] = slices.Clone(c.Sealed)
		} else if p.f.echo != nil {
			p.f.echo[p] = slices.Clone(c.Sealed)
		}
		return netdb.Status(netdb.StatusOK), nil
	}
	return netdb.Status(netdb.StatusError), nil
}

// fakeTerminal is the relay's end of a path to it.
type fakeTerminal struct{ p *fakePath }

func (t fakeTerminal) id() path.ID             { return t.p.end }
func (t fakeTerminal) live(now time.Time) bool { return t.p.live(now) }

func (t fakeTerminal) send(b *packet.Buffer) {
	msg, n := slices.Clone(b.Data), b.Nonce
	b.Release()
	t.down(&flying{what: "data", msg: msg, nonce: n}, true, path.TypeData)
}

func (t fakeTerminal) control(typ byte, msg []byte, n seal.Nonce) {
	m := &flying{msg: slices.Clone(msg), nonce: n}
	if typ == path.TypeControl && kindOf(m) != "init" { // 1.0
		m.what = "control"
	}
	t.down(m, false, typ)
}

func (t fakeTerminal) down(m *flying, datagram bool, typ byte) {
	if !t.p.passes() {
		return
	}
	m.from, m.to, m.on = t.p.at, t.p.who, t.p
	m.land = func() {
		if t.p.passes() {
			t.p.down(datagram, typ, m.msg, m.nonce)
		}
	}
	t.p.f.launch(m)
}

// fakePool keeps as many paths as are wanted, built at the next tick.
type fakePool struct {
	f      *fabric
	who    key.Public
	owner  poolOwner
	want   int
	kind   path.Kind
	target key.Public

	mu       sync.Mutex
	list     []*fakePath
	intros   []netdb.Intro
	cur      *fakePath
	building int
	barren   bool // builds nothing
	closed   bool
	made     int
	extra    int
}

type fakeBuilder struct{ n *node }

func (b fakeBuilder) add(p *fakePool) *fakePool {
	p.f, p.who = b.n.f, b.n.sec.Public()
	b.n.mu.Lock()
	b.n.pools = append(b.n.pools, p)
	b.n.mu.Unlock()
	return p
}

func (b fakeBuilder) inbound(owner poolOwner) pool {
	return b.add(&fakePool{owner: owner, want: 4, kind: path.Inbound})
}

// beside makes what ends at the pivots that come next.
func (b fakeBuilder) beside(_ pool, owner poolOwner) pool {
	p := &fakePool{f: b.n.f, who: b.n.sec.Public(), owner: owner, want: 4, kind: path.Inbound, made: 4}
	b.n.mu.Lock()
	b.n.witnesses = append(b.n.witnesses, p)
	b.n.mu.Unlock()
	return p
}

func (b fakeBuilder) toClient(intros []netdb.Intro, owner poolOwner) pool {
	return b.add(&fakePool{owner: owner, want: 2, kind: path.Aligned, intros: intros})
}

func (b fakeBuilder) toRelay(relay key.Public, owner poolOwner) pool {
	return b.add(&fakePool{owner: owner, want: 2, kind: path.ToRelay, target: relay})
}

func (p *fakePool) all() []*fakePath {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.list)
}

func (p *fakePool) paths(now time.Time) (active []onion) {
	for _, q := range p.all() {
		if q.live(now) {
			active = append(active, q)
		}
	}
	return active
}

// current keeps what it said while it has a minute left.
func (p *fakePool) current(now time.Time) onion {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cur != nil && p.cur.live(now) && slices.Contains(p.list, p.cur) && p.cur.until.Sub(now) >= time.Minute {
		return p.cur
	}
	p.cur = nil
	for _, q := range p.list {
		if q.live(now) && (p.cur == nil || q.until.After(p.cur.until)) {
			p.cur = q
		}
	}
	if p.cur == nil {
		return nil
	}
	return p.cur
}

func (p *fakePool) tick(now time.Time) {
	changed := false
	p.mu.Lock()
	p.list = slices.DeleteFunc(p.list, func(q *fakePath) bool {
		gone := !q.live(now)
		changed = changed || gone
		return gone
	})
	for !p.closed && !p.barren {
		lasting := p.building
		for _, q := range p.list {
			if q.until.Sub(now) >= time.Minute {
				lasting++
			}
		}
		if lasting >= p.want+p.extra || !p.buildable(now) {
			break
		}
		p.building++
		if p.f.building > 0 {
			time.AfterFunc(p.f.building, func() {
				p.mu.Lock()
				if p.closed {
					p.mu.Unlock()
					return
				}
				p.build(time.Now())
				p.mu.Unlock()
				p.owner.changed()
			})
		} else {
			p.build(now)
			changed = true
		}
	}
	p.mu.Unlock()
	if changed {
		p.owner.changed()
	}
}

func (p *fakePool) buildable(now time.Time) bool {
	return p.kind != path.Aligned || slices.ContainsFunc(p.intros, func(i netdb.Intro) bool { return i.Expiry.Sub(now) >= time.Minute })
}

// build adds a path, to each intro in turn. p.mu is held.
func (p *fakePool) build(now time.Time) {
	p.building--
	if !p.buildable(now) {
		return
	}
	p.made++
	at, peer, until := p.target, path.ID{}, now.Add(20*time.Minute)
	switch p.kind {
	case path.Inbound:
		at, until = p.f.pivots[p.made%len(p.f.pivots)], now.Add(time.Duration(5*(p.made%4)+5)*time.Minute)
	case path.Aligned:
		for i := p.made; ; i++ {
			in := p.intros[i%len(p.intros)]
			if in.Expiry.Sub(now) >= time.Minute {
				at, peer, until = in.Relay, in.Hop, in.Expiry
				break
			}
		}
	}
	p.list = append(p.list, p.f.newPath(p.who, p.owner, at, peer, until))
}

func (p *fakePool) setIntros(intros []netdb.Intro) {
	p.mu.Lock()
	p.intros = intros
	n := len(p.list)
	p.list = slices.DeleteFunc(p.list, func(q *fakePath) bool {
		for _, i := range intros {
			if i.Relay == q.at && i.Hop == q.peer {
				return false
			}
		}
		q.mu.Lock()
		q.dead = true
		q.mu.Unlock()
		return true
	})
	changed := len(p.list) != n
	p.mu.Unlock()
	if changed {
		p.owner.changed()
	}
}

func (p *fakePool) widen(more int) {
	p.mu.Lock()
	p.extra = more
	p.mu.Unlock()
	p.tick(time.Now())
}

func (p *fakePool) close() {
	p.mu.Lock()
	p.closed = true
	list := p.list
	p.list = nil
	p.mu.Unlock()
	for _, q := range list {
		q.kill(false)
	}
}

// outbound is the pool of a node's latest call.
func (n *node) outbound() *fakePool {
	pools := n.allPools()
	return pools[len(pools)-1]
}

func (n *node) allPools() []*fakePool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.pools)
}

// lastWitnesses is none or one pool.
func (n *node) lastWitnesses() []*fakePool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.witnesses[max(0, len(n.witnesses)-1):])
}

func (m *flying) String() string { return fmt.Sprintf("%s of %.4s", m.what, m.from) }

// sealIn seals what s is to receive; openIn opens it.
func sealIn(msg []byte, s *session, n *seal.Nonce) { seal.Seal(msg, &s.keys.in, n) }

func openIn(msg []byte, s *session, n *seal.Nonce) []byte {
	plain, ok := seal.Open(msg, &s.keys.in, n)
	if !ok {
		panic("does not open")
	}
	return plain
}

func secretOf(i byte) *key.Secret         { return key.FromSeed(fill(i)) }
func keyAddr(sec *key.Secret) key.Address { return key.Address{Key: sec.Public()} }
