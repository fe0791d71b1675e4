package router

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/link"
	"lokinetd/router/netdb"
)

// Bootstrap, both ends (protocol 1 section 9.8, protocol 2 section 7.2): a node that knows too few relays asks one of its bootstraps for all contacts, over a
// connection made for it; a relay answers.

// Times of tries.
const (
	bootstrapStep = 3 * time.Second // after a success that brought too little; times the failures in a row after failures
	bootstrapMax  = time.Minute
	bootstrapSlow = 2 * time.Second // of one relay, until the next is asked beside it
)

// bootstrap asks. Tries come up to half as long again later than the protocol says, by chance, so that those who lost the network together do not return together.
type bootstrap struct {
	n        *Node
	busy     atomic.Bool
	next     atomic.Int64 // Unix nanoseconds
	failures atomic.Int64 // in a row
}

// tick begins a try when one is due.
func (b *bootstrap) tick(now time.Time) {
	if !b.starving() || now.UnixNano() < b.next.Load() || !b.busy.CompareAndSwap(false, true) {
		return
	}
	list := b.n.store.Bootstraps()
	if len(list) == 0 {
		b.busy.Store(false)
		return
	}
	b.n.serve(func(ctx context.Context) {
		defer b.busy.Store(false)
		wait := bootstrapStep
		if err := b.ask(ctx, list); err != nil {
			b.n.log.Debug("bootstrap failed", "err", err)
			wait = min(bootstrapMax, bootstrapStep*time.Duration(b.failures.Add(1)))
		} else {
			b.failures.Store(0)
		}
		b.next.Store(time.Now().Add(wait + chance(wait/2)).UnixNano())
	})
}

// starving says whether we know too few relays: fewer than six, or than there are in a smaller network.
func (b *bootstrap) starving() bool {
	least := netdb.MinContacts
	if all := len(b.n.network.Load().Relays); all > 0 {
		least = min(least, all)
	}
	return b.n.store.Len() < least
}

// purged begins again without waiting when a purge left too few.
func (b *bootstrap) purged(removed int) {
	if removed > 0 && b.starving() && !b.busy.Load() {
		b.failures.Store(0)
		b.next.Store(0)
	}
}

var errNoBootstrap = errors.New("router: no bootstrap relay answered")

// ask tries the relays of list in turn until one answers properly. One that is slow counts no more, and the next is asked beside it: a relay that is gone shows after 10 s only.
func (b *bootstrap) ask(ctx context.Context, list []*netdb.RelayContact) error {
	ctx, cancel := context.WithCancel(ctx)
	var asked sync.WaitGroup
	defer asked.Wait()
	defer cancel()
	answers := make(chan error, len(list))
	err := errNoBootstrap
	for waiting := 0; waiting > 0 || len(list) > 0; {
		var slow <-chan time.Time
		if len(list) > 0 {
			rc := list[0]
			asked.Go(func() { answers <- b.askOne(ctx, rc) })
			waiting++
			if list = list[1:]; len(list) > 0 {
				slow = time.After(bootstrapSlow)
			}
		}
		select {
		case err = <-answers:
			if err == nil {
				return nil
			}
			waiting--
		case <-slow:
		}
	}
	return err
}

// askOne asks a relay. What came before the fault in a faulty answer stays: each contact is signed.
func (b *bootstrap) askOne(ctx context.Context, rc *netdb.RelayContact) error {
	conn, err := b.n.config.Wire.Dial(ctx, rc.Addr, rc.ID, link.Bootstrap)
	if err != nil {
		return err
	}
	body, err := conn.Request(ctx, netdb.MethodBootstrapRCs, []byte(netdb.BootstrapRequest))
	conn.Close(link.CodeNormal)
	if err != nil {
		return err
	}
	network := b.n.network.Load()
	contacts, err := netdb.DecodeBootstrapReply(body, time.Now(), network.Rules())
	b.n.store.Bootstrapped(contacts, believesBootstraps(network))
	return err
}

// believesBootstraps says whether a client believes in all relays that a bootstrap names: only where no network file says which there are. A bootstrap that lies can
// then withhold relays, not invent them.
func believesBootstraps(f *netdb.NetworkFile) bool { return len(f.Relays) == 0 }

// A relay's answer is packed when contacts have changed, at most once a second, and otherwise once in ten minutes; all who ask meanwhile get the same.
const (
	packedLeast   = time.Second
	packedMost    = netdb.RelayRefresh
	packedWaiting = 256 // requests that wait for one packing
)

// What bootstrap answers may cost, in bytes: of one network of addresses, and of all. The public network's answer has some 300 KB.
func newBootstrapMeter() *meter[netip.Prefix] {
	return &meter[netip.Prefix]{rate: 128 << 10, burst: 8 << 20, allRate: 8 << 20, allBurst: 256 << 20}
}

// bootstrapNetwork is the size in bits of the IPv4 networks that are metered as one.
const bootstrapNetwork = 24

// errBusy is the body of the error reply to what would cost too much now (the protocol's text for whatever goes wrong, protocol 2 section 5.3).
var errBusy = []byte("An error occurred while processing the request")

// packed is the answer to bfetch_rcs.
type packed struct {
	mu      sync.Mutex
	body    []byte // nil: none yet
	buckets netdb.BucketHashes
	at      time.Time
	packing bool
	waiting []func(body []byte, fault string)
}

// get gives the answer to then, at once or when it is packed, or one of the protocol's error texts.
func (p *packed) get(n *Node, now time.Time, then func(body []byte, fault string)) {
	buckets := n.store.Buckets()
	p.mu.Lock()
	if age := now.Sub(p.at); p.body != nil && age >= 0 && (age < packedLeast || age < packedMost && buckets == p.buckets) {
		body := p.body
		p.mu.Unlock()
		then(body, "")
		return
	}
	if len(p.waiting) >= packedWaiting {
		p.mu.Unlock()
		then(nil, string(errBusy))
		return
	}
	p.waiting = append(p.waiting, then)
	start := !p.packing
	p.packing = true
	p.mu.Unlock()
	if start { // packing costs time: not in the connection's goroutine
		n.serve(func(context.Context) { p.pack(n.store, buckets) })
	}
}

// pack makes the answer and gives it to all who wait.
func (p *packed) pack(s *netdb.Store, buckets netdb.BucketHashes) {
	var body []byte
	var fault string
	if raws := s.Raws(); len(raws) == 0 {
		fault = netdb.BootstrapNoRCs
	} else if b, err := netdb.EncodeBootstrapReply(raws); err != nil {
		fault = netdb.BootstrapCompress
	} else {
		body = b
	}
	p.mu.Lock()
	waiting := p.waiting
	p.body, p.buckets, p.at = body, buckets, time.Now()
	p.packing, p.waiting = false, nil
	p.mu.Unlock()
	for _, then := range waiting {
		then(body, fault)
	}
}

// bootstrap answers a bfetch_rcs.
func (r *relay) bootstrap(c link.Conn, q *link.Request) {
	who, err := c.RemoteAddr().Addr().Unmap().Prefix(bootstrapNetwork)
	if err != nil || !r.starters.allows(who, time.Now()) {
		q.Fail(errBusy)
		return
	}
	r.packed.get(r.n, time.Now(), func(body []byte, fault string) {
		if fault != "" {
			q.Fail([]byte(fault))
			return
		}
		r.starters.charge(who, len(body), time.Now())
		q.Reply(body)
	})
}
