package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/seal"
	"lokinetd/router/testkit"
)

// Protocol 2 section 7.2: the answer, what it costs, and who gets none.
func TestRelayBootstrap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 8, 1, 2, 3)
		at := func(addr string) *fakeConn {
			c := g.connect(link.Bootstrap, 0)
			c.addr = netip.MustParseAddrPort(addr)
			return c
		}
		ask := func(c *fakeConn, body string) reply { return g.ask(c, "bfetch_rcs", []byte(body)) }
		count := func(r reply) int {
			t.Helper()
			list, err := netdb.DecodeBootstrapReply([]byte(r.body), time.Now(), g.n.network.Load().Rules())
			if err != nil || r.fail {
				t.Fatalf("%v: %v", r, err)
			}
			return len(list)
		}
		first := ask(at("1.0.0.1:1"), "de")
		if n := count(first); n != 3 {
			t.Errorf("%d contacts", n)
		}
		for _, body := range []string{"", "de", "rubbish", string(make([]byte, 1<<20))} { // the body is ignored
			expect(t, "again", ask(at("1.0.1.1:1"), body), first)
		}
		// Packed once for many, and again when something is new, at most once a second.
		packedAt := func() time.Time {
			g.r.packed.mu.Lock()
			defer g.r.packed.mu.Unlock()
			return g.r.packed.at
		}
		old := packedAt()
		time.Sleep(time.Minute)
		expect(t, "a minute later", ask(at("1.0.2.1:1"), "de"), ask(at("1.0.3.1:1"), "de"))
		time.Sleep(packedLeast)
		g.n.store.Put(relayContact(4, time.Now()))
		if n := count(ask(at("1.0.4.1:1"), "de")); n != 5 { // and our own, announced meanwhile
			t.Errorf("%d contacts after another came", n)
		}
		between := packedAt()
		g.n.store.Put(relayContact(5, time.Now()))
		if n := count(ask(at("1.0.5.1:1"), "de")); n != 5 || packedAt() != between || !between.After(old) {
			t.Errorf("packed twice in a second: %d contacts", n)
		}
		time.Sleep(packedLeast)
		if n := count(ask(at("1.0.6.1:1"), "de")); n != 6 {
			t.Errorf("%d contacts a second later", n)
		}

		// One network of addresses pays for itself, and gets more when it has waited.
		g.r.starters.Burst, g.r.starters.Rate = 3*float64(len(first.body)), 10
		refused := reply{string(errBusy), true, true}
		answered := 0
		for i := range 20 {
			if r := ask(at(fmt.Sprintf("9.9.9.%d:1", i)), "de"); r != refused {
				answered++
				count(r)
			}
		}
		if answered < 1 || answered > 3 {
			t.Errorf("%d answers to one network at once", answered)
		}
		if r := ask(at("9.9.8.1:1"), "de"); r == refused {
			t.Error("another network is refused")
		}
		time.Sleep(time.Hour)
		if r := ask(at("9.9.9.1:1"), "de"); r == refused {
			t.Error("refused after an hour")
		}
	})
}

func TestRelayBootstrapEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 8)
		c := g.connect(link.Bootstrap, 0)
		expect(t, "nothing known", g.ask(c, "bfetch_rcs", []byte("de")), reply{"No RCs", true, true})
		expect(t, "and still not", g.ask(c, "bfetch_rcs", []byte("de")), reply{"No RCs", true, true})
	})
}

// A thousand who ask at once are answered from one packing.
func TestRelayBootstrapFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		contacts := make([]int, 60)
		for i := range contacts {
			contacts[i] = i + 1
		}
		g := newRig(t, 100, contacts...)
		var mu sync.Mutex
		var replies [][]byte
		busy := 0
		for i := range 1000 {
			c := g.connect(link.Bootstrap, 0)
			c.addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{8, byte(i >> 8), byte(i), 1}), 1)
			g.wire.handler.Request(c, link.NewRequest("bfetch_rcs", nil, func(body []byte, fail bool) {
				mu.Lock()
				defer mu.Unlock()
				if fail {
					busy++
				} else {
					replies = append(replies, body)
				}
			}))
		}
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(replies)+busy != 1000 || len(replies) < packedWaiting {
			t.Errorf("%d answers, %d refused", len(replies), busy)
		}
		for _, r := range replies {
			if &r[0] != &replies[0][0] {
				t.Fatal("packed more than once")
			}
		}
	})
}

// bootstraps plays the bootstrap relays of a client or relay: answers[n] is what relay n sends.
type bootstraps struct {
	mu      sync.Mutex
	answers map[int]func(ctx context.Context) ([]byte, error) // absent: nobody answers the dial
	asked   []int
	at      []time.Time
	closed  int
}

func (b *bootstraps) dial(ctx context.Context, to netip.AddrPort, remote key.Public, kind link.Kind) (link.Conn, error) {
	if kind != link.Bootstrap {
		return nil, errNobody
	}
	n := relayNumberOf(remote)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked, b.at = append(b.asked, n), append(b.at, time.Now())
	answer := b.answers[n]
	if answer == nil {
		return nil, errNobody
	}
	c := newConn(kind, remote)
	c.answer = func(ctx context.Context, name string, body []byte) ([]byte, error) {
		if name != "bfetch_rcs" || string(body) != "de" {
			return nil, errors.New("not the request of the protocol")
		}
		go func() {
			<-c.done
			b.mu.Lock()
			b.closed++
			b.mu.Unlock()
		}()
		return answer(ctx)
	}
	return c, nil
}

// tries says which bootstraps were asked, and when.
func (b *bootstraps) tries() (asked []int, at []time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.asked), slices.Clone(b.at)
}

// only makes one bootstrap answer and the others not.
func (b *bootstraps) only(n int, answer func(context.Context) ([]byte, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answers = map[int]func(context.Context) ([]byte, error){n: answer}
}

func relayNumberOf(id key.Public) int {
	for n := range 100 {
		if secret(n).Public() == id {
			return n
		}
	}
	return -1
}

func packOf(contacts ...*netdb.RelayContact) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) {
		var raws [][]byte
		for _, c := range contacts {
			raws = append(raws, c.Raw())
		}
		return netdb.EncodeBootstrapReply(raws)
	}
}

func silence(ctx context.Context) ([]byte, error) {
	<-ctx.Done()
	return nil, link.ErrTimeout
}

// Protocol 1 section 9.8: clients and relays that know too few relays ask one bootstrap after the other, get what is right in an answer, and try again until
// they know enough.
func TestBootstrap(t *testing.T) {
	forged := func() *netdb.RelayContact { return relayContact(90, time.Now()) } // signed all right, but nobody registered it
	good := func() (list []*netdb.RelayContact) {
		for i := range 8 {
			list = append(list, relayContact(i, time.Now()))
		}
		return list
	}
	bad := func(ctx context.Context) ([]byte, error) { // two good ones before one that is not
		body, _ := packOf(good()[:3]...)(ctx)
		raws := [][]byte{good()[0].Raw(), good()[1].Raw(), bytes.Clone(good()[2].Raw())}
		raws[2][20] ^= 1
		body, _ = netdb.EncodeBootstrapReply(raws)
		return body, nil
	}
	for _, x := range []struct {
		what    string
		answers func() map[int]func(context.Context) ([]byte, error) // of the bootstraps 0, 1 and 2, after a while that of 1 is good
		least   int                                                  // contacts known before
		first   time.Duration                                        // enough are known by then
		healed  bool                                                 // known enough at first already
	}{
		{"all good", func() map[int]func(context.Context) ([]byte, error) {
			return map[int]func(context.Context) ([]byte, error){0: packOf(good()...), 1: packOf(good()...), 2: packOf(good()...)}
		}, 6, time.Second, true},
		{"one good", func() map[int]func(context.Context) ([]byte, error) {
			return map[int]func(context.Context) ([]byte, error){2: packOf(good()...)}
		}, 6, time.Second, true},
		{"nobody", func() map[int]func(context.Context) ([]byte, error) { return nil }, 0, 0, false},
		{"silent", func() map[int]func(context.Context) ([]byte, error) {
			return map[int]func(context.Context) ([]byte, error){0: silence, 1: silence, 2: silence}
		}, 0, 0, false},
		{"invented relays", func() map[int]func(context.Context) ([]byte, error) {
			lie := packOf(forged())
			return map[int]func(context.Context) ([]byte, error){0: lie, 1: lie, 2: lie}
		}, 0, 0, false},
		{"huge", func() map[int]func(context.Context) ([]byte, error) {
			var n atomic.Int32
			huge := func(context.Context) ([]byte, error) {
				if n.Add(1) > 6 { // it takes long to unpack
					return nil, &link.ReplyError{Body: []byte("No RCs")}
				}
				return zeros(30_000_000), nil
			}
			return map[int]func(context.Context) ([]byte, error){0: huge, 1: huge, 2: huge}
		}, 0, 0, false},
		{"rubbish", func() map[int]func(context.Context) ([]byte, error) {
			junk := func(context.Context) ([]byte, error) { return []byte("d1:Z4:junke"), nil }
			return map[int]func(context.Context) ([]byte, error){0: junk, 1: junk, 2: junk}
		}, 0, 0, false},
		{"an error", func() map[int]func(context.Context) ([]byte, error) {
			no := func(context.Context) ([]byte, error) { return nil, &link.ReplyError{Body: []byte("No RCs")} }
			return map[int]func(context.Context) ([]byte, error){0: no, 1: no, 2: no}
		}, 0, 0, false},
		{"a damaged contact", func() map[int]func(context.Context) ([]byte, error) {
			return map[int]func(context.Context) ([]byte, error){0: bad, 1: bad, 2: bad}
		}, 2, 0, false},
		{"too few", func() map[int]func(context.Context) ([]byte, error) {
			few := packOf(good()[:2]...)
			return map[int]func(context.Context) ([]byte, error){0: few, 1: few, 2: few}
		}, 2, 0, false},
	} {
		for _, isRelay := range []bool{false, true} {
			if isRelay && x.what == "huge" {
				continue // takes long
			}
			t.Run(fmt.Sprintf("%s, relay %v", x.what, isRelay), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := &bootstraps{answers: x.answers()}
					w := newFakeWire()
					w.dial = b.dial
					f := testFile(8, 0, 1, 2)
					for i, c := range f.Contacts { // as addresses they may be old, as knowledge not
						f.Contacts[i] = SignContact(secret(relayNumberOf(c.ID)), c.Addr, testNetwork, time.Now().Add(-2*netdb.RelayLifetime))
					}
					c := NodeConfig{Wire: w, Network: f}
					if isRelay {
						c.Secret, c.Public = secret(7), relayAddr(7)
					}
					n := runNode(t, c)
					time.Sleep(x.first)
					synctest.Wait()
					if got := n.store.Len(); got < x.least || n.store.Get(secret(90).Public()) != nil || n.store.IsKnown(secret(90).Public()) {
						t.Fatalf("%d contacts known", got)
					}
					if x.healed {
						if n.store.Len() < netdb.MinContacts {
							t.Errorf("%d contacts known", n.store.Len())
						}
						before, _ := b.tries()
						time.Sleep(time.Hour)
						if after, _ := b.tries(); len(after) != len(before) {
							t.Error("asked on though enough are known")
						}
						return
					}
					time.Sleep(4 * time.Minute)
					if n.store.Get(secret(90).Public()) != nil {
						t.Error("an invented relay is known")
					}
					asked, _ := b.tries()
					tries := len(asked)
					if tries < 8 || tries > 90 {
						t.Errorf("%d tries in four minutes", tries)
					}
					for _, relay := range []int{0, 1, 2} {
						if !slices.Contains(asked, relay) {
							t.Errorf("bootstrap %d was never asked", relay)
						}
					}
					b.only(1, packOf(good()...))
					time.Sleep(2 * time.Minute)
					if n.store.Len() < netdb.MinContacts {
						t.Errorf("not healed two minutes after a good answer was to be had: %d contacts", n.store.Len())
					}
				})
			})
		}
	}
}

// zeros is a bootstrap reply of a few hundred bytes that decompresses to size zeros: a zstd frame of run-length blocks (RFC 8878 section 3.1.1.2).
func zeros(size int) []byte {
	const block = 128 << 10
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38} // no content size, a window of 128 KB
	for ; size > 0; size -= block {
		last := 0
		if size <= block {
			last = 1
		}
		h := min(size, block)<<3 | 1<<1 | last
		frame = append(frame, byte(h), byte(h>>8), byte(h>>16), 0)
	}
	return bt.NewDict(nil).Bytes("Z", frame).End()
}

// Failures make the waits longer, up to a minute and half of one, and each differs.
func TestBootstrapTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bootstraps{}
		w := newFakeWire()
		w.dial = b.dial
		runNode(t, NodeConfig{Wire: w, Network: testFile(8, 0)})
		// The file's one contact is known and its own bootstrap; it does not answer.
		time.Sleep(3 * time.Hour)
		waits := map[time.Duration]bool{}
		_, at := b.tries()
		for i := 1; i < len(at); i++ {
			wait := at[i].Sub(at[i-1])
			least := min(bootstrapMax, bootstrapStep*time.Duration(i))
			if wait < least || wait > least*3/2+tick {
				t.Errorf("try %d after %v, want %v to %v", i, wait, least, least*3/2)
			}
			if least == bootstrapMax {
				waits[wait] = true
			}
		}
		if len(at) < 100 || len(waits) < 20 {
			t.Errorf("%d tries, %d different waits", len(at), len(waits))
		}
	})
}

// The public network has no file that says which relays there are: bootstraps are believed (protocol 1 section 9.8).
func TestBootstrapBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bootstraps{answers: map[int]func(context.Context) ([]byte, error){}}
		var all []*netdb.RelayContact
		for i := range 8 { // with an hour left
			all = append(all, relayContact(i, time.Now().Add(time.Hour-netdb.RelayLifetime)))
		}
		b.answers[0] = packOf(all...)
		w := newFakeWire()
		w.dial = b.dial
		f := testFile(0, 0)
		n := runNode(t, NodeConfig{Wire: w, Network: f})
		time.Sleep(time.Second)
		synctest.Wait()
		b.mu.Lock()
		closed := b.closed
		b.mu.Unlock()
		if len(n.store.Known()) != 8 || n.store.Len() != 8 || closed != 1 {
			t.Errorf("%d relays known, %d contacts, %d connections closed", len(n.store.Known()), n.store.Len(), closed)
		}
		// A purge that leaves too few begins again, without waiting.
		time.Sleep(59 * time.Minute)
		for i := range all {
			all[i] = relayContact(i, time.Now())
		}
		b.only(0, packOf(all...))
		time.Sleep(netdb.PurgeInterval + time.Second)
		if n.store.Len() != 8 {
			t.Errorf("%d contacts after all had expired", n.store.Len())
		}
	})
}

// A client that has learnt of relays connects to them then, not at its next round.
func TestBootstrapThenEdges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rtt = 10 * time.Millisecond
		var all []*netdb.RelayContact
		for i := range 8 {
			all = append(all, relayContact(i, time.Now()))
		}
		pack := packOf(all...)
		b := &bootstraps{answers: map[int]func(context.Context) ([]byte, error){0: func(ctx context.Context) ([]byte, error) {
			time.Sleep(rtt)
			return pack(ctx)
		}}}
		began := time.Now()
		var mu sync.Mutex
		dials := map[time.Duration]int{}
		w := newFakeWire()
		w.dial = func(ctx context.Context, to netip.AddrPort, remote key.Public, kind link.Kind) (link.Conn, error) {
			if kind == link.Client {
				mu.Lock()
				dials[time.Since(began)]++
				mu.Unlock()
			}
			return b.dial(ctx, to, remote, kind)
		}
		o := path.DefaultOptions()
		runNode(t, NodeConfig{Wire: w, Network: testFile(0, 0), Paths: path.ClientConfig{Options: o}})
		time.Sleep(tick / 2)
		mu.Lock()
		defer mu.Unlock()
		if dials[rtt] != o.Edges {
			t.Errorf("dials of edges, by the time since the start: %v", dials)
		}
	})
}

// In a network of four relays four contacts are enough.
func TestBootstrapSmallNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bootstraps{}
		w := newFakeWire()
		w.dial = b.dial
		runNode(t, NodeConfig{Wire: w, Network: testFile(4, 0, 1, 2, 3)})
		time.Sleep(time.Hour)
		if asked, _ := b.tries(); len(asked) > 0 {
			t.Errorf("asked %d times", len(asked))
		}
	})
}

// FuzzClientReply feeds what relays answer a client into what reads it: a relay at the end of a path, or a bootstrap, may send anything. Nothing may panic, no relay that is not
// known may come into the store, and nobody who does not know a name makes an answer for it.
//
// Decoders: readName pings.take
func FuzzClientReply(f *testing.F) {
	now := time.Unix(1_790_000_000, 0)
	good, stranger := relayContact(1, now), relayContact(9, now)
	pack, _ := netdb.EncodeBootstrapReply([][]byte{good.Raw(), stranger.Raw()})
	name := testFile(1).NameIndex()
	for kind, body := range [][]byte{
		netdb.EncodeRIDs([]key.Public{good.ID, stranger.ID}), netdb.EncodeRCs([][]byte{good.Raw(), stranger.Raw()}), pack,
		name.Reply([32]byte{}), netdb.Status("NOT FOUND"), netdb.EncodeFoundCC([]byte("de")), bt.NewDict(nil).End(), nil,
	} {
		f.Add(byte(kind), body)
		f.Add(byte(3), body)
	}
	nonce := seal.Nonce{1}
	f.Add(byte(3), netdb.EncodeResolvedSNS(seal.SealName("good.loki", good.ID, &nonce), &nonce))
	f.Add(byte(3), netdb.EncodeResolvedSNS(make([]byte, seal.NameSize), &nonce))
	f.Add(byte(4), testkit.IP6(netip.IPv6Unspecified(), netip.IPv6Unspecified(), 58, 58, nil, []byte{129, 0, 0, 0, 0, 1, 0, 2}))
	f.Add(byte(4), testkit.IP6(netip.IPv6Unspecified(), netip.IPv6Unspecified(), 58, 58, nil, []byte{129, 0, 0, 0, 0, 2, 0, 2}))
	f.Add(byte(4), testkit.IP6(netip.IPv6Unspecified(), netip.IPv6Unspecified(), 58, 58, nil, []byte{129, 0, 0, 0}))
	rules := netdb.Rules{Network: testNetwork}
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		store, err := netdb.OpenStore("", key.Public{}, false, rules, nil)
		if err != nil {
			t.Fatal(err)
		}
		store.SetKnown([]key.Public{good.ID})
		switch kind % 5 {
		case 0:
			ids, err := netdb.DecodeRIDs(body)
			if err != nil {
				return
			}
			var q netdb.Quorum
			got := q.Round([]netdb.RIDAnswer{{From: good.ID, Inbound: true, IDs: ids}}, []key.Public{good.ID, secret(2).Public(), secret(3).Public()}, now)
			if len(ids) > 0 && len(got) != 3 {
				t.Errorf("one relay alone changes what is known to %v", got)
			}
		case 1:
			if raws, err := netdb.DecodeRCs(body); err == nil {
				store.Fetched(raws)
			}
		case 2:
			list, _ := netdb.DecodeBootstrapReply(body, now, rules)
			store.Bootstrapped(list, false)
		case 3:
			if a := readName("another.loki", body, nil); a.found {
				t.Errorf("%q opens for another name", body)
			}
			if a := readName("good.loki", body, nil); a.found && (a.none || a.owner.Check() != nil) || readName("good.loki", body, io.EOF) != (nameAnswer{}) {
				t.Errorf("%q is %+v", body, a)
			}
		case 4: // the answer to a ping of our own
			p := pings{waiting: map[uint16]chan struct{}{1: make(chan struct{})}}
			b := packet.Get()
			b.Set(body)
			if taken := p.take(b); taken != (len(p.waiting) == 0) || taken && len(body) < 48 {
				t.Errorf("%x is taken: %v", body, taken)
			} else if !taken {
				b.Release()
			}
		}
		if store.Len() > 1 || store.Len() == 1 && store.Get(good.ID) == nil {
			t.Error("a relay that is not known came in")
		}
	})
}
