package router

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/fair"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
)

// Bootstrap, both ends (protocol 1 section 9.8, protocol 2 section 7.2): a node that knows too few relays asks one of its bootstraps for all contacts, over a
// connection made for it; a relay answers.

// Times of tries.
const (
	bootstrapStep   = 3 * time.Second // after a success that brought too little; times the failures in a row after failures
	bootstrapMax    = time.Minute
	bootstrapSlow   = 2 * time.Second         // of one relay, until the next is asked beside it
	bootstrapLinger = 1500 * time.Millisecond // after the first answer, for others to contradict it
)

// bootstrapVoices is how many bootstraps a client hears that has nothing else to go by.
const bootstrapVoices = 3

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
		b.again()
	}
}

// again makes the next try due at once, if one is needed.
func (b *bootstrap) again() {
	b.failures.Store(0)
	b.next.Store(0)
}

var errNoBootstrap = errors.New("router: no bootstrap relay answered")

// ask tries the relays of list in turn until one answers properly. One that is slow counts no more, and the next is asked beside it: a relay that is gone shows after 10 s only.
//
// Where a client believes in what it is told it hears up to bootstrapVoices, at the same time: one that lies would otherwise choose all that the client knows. (The protocol
// has it believe the first.) There a faulty answer is no voice, and nothing of it stays.
func (b *bootstrap) ask(ctx context.Context, list []*netdb.RelayContact) error {
	ctx, cancel := context.WithCancel(ctx)
	var asked sync.WaitGroup
	defer asked.Wait()
	defer cancel()
	believe := b.n.client != nil && believesBootstraps(b.n.network.Load())
	want := 1
	if believe {
		want = min(bootstrapVoices, len(list))
	}
	type answer struct {
		contacts []*netdb.RelayContact
		err      error
	}
	answers := make(chan answer, len(list))
	err := errNoBootstrap
	var good [][]*netdb.RelayContact
	var over <-chan time.Time
	for waiting, more := 0, want; len(good) < want && (waiting > 0 || len(list) > 0); {
		for len(list) > 0 && waiting+len(good) < more {
			rc := list[0]
			list = list[1:]
			waiting++
			asked.Go(func() {
				contacts, err := b.askOne(ctx, rc)
				answers <- answer{contacts, err}
			})
		}
		var slow <-chan time.Time
		if len(list) > 0 {
			slow = time.After(bootstrapSlow)
		}
		select {
		case a := <-answers:
			waiting--
			switch {
			case a.err == nil:
				good = append(good, a.contacts)
				if over == nil {
					over = time.After(bootstrapLinger)
				}
			case !believe: // what came before the fault in a faulty answer stays: each contact is signed
				b.n.store.Bootstrapped(a.contacts, false)
				fallthrough
			default:
				err = a.err
			}
		case <-slow:
			more++
		case <-over:
			waiting, list = 0, nil
		}
	}
	if len(good) == 0 {
		return err
	}
	b.n.store.Bootstrapped(agreed(good), believe)
	if b.n.client != nil {
		b.n.client.wake()
	}
	return nil
}

// agreed gives the contacts of those relays that more than half of the answers name. Where these are too few to go on with, one answer must do, as the protocol has it.
func agreed(answers [][]*netdb.RelayContact) (contacts []*netdb.RelayContact) {
	said := map[key.Public]int{}
	for _, a := range answers {
		once := map[key.Public]bool{}
		for _, c := range a {
			if !once[c.ID] {
				once[c.ID] = true
				said[c.ID]++
			}
		}
	}
	known := map[key.Public]bool{}
	for _, a := range answers {
		for _, c := range a {
			if 2*said[c.ID] > len(answers) {
				contacts = append(contacts, c)
				known[c.ID] = true
			}
		}
	}
	if len(known) < netdb.MinContacts {
		return answers[rand.IntN(len(answers))]
	}
	return contacts
}

// askOne asks a relay. With an error come the contacts in front of the fault.
func (b *bootstrap) askOne(ctx context.Context, rc *netdb.RelayContact) ([]*netdb.RelayContact, error) {
	conn, err := b.n.config.Wire.Dial(ctx, rc.Addr, rc.ID, link.Bootstrap)
	if err != nil {
		return nil, err
	}
	body, err := conn.Request(ctx, netdb.MethodBootstrapRCs, []byte(netdb.BootstrapRequest))
	conn.Close(link.CodeNormal)
	if err != nil {
		return nil, err
	}
	return netdb.DecodeBootstrapReply(body, time.Now(), b.n.network.Load().Rules())
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
func newBootstrapMeter() *fair.Meter[netip.Prefix] {
	return &fair.Meter[netip.Prefix]{Rate: 128 << 10, Burst: bound(8 << 20), AllRate: 8 << 20, AllBurst: bound(256 << 20)}
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
	if err != nil || !r.starters.Allows(who, time.Now()) {
		q.Fail(errBusy)
		return
	}
	r.packed.get(r.n, time.Now(), func(body []byte, fault string) {
		if fault != "" {
			q.Fail([]byte(fault))
			return
		}
		r.starters.Charge(who, len(body), time.Now())
		q.Reply(body)
	})
}
