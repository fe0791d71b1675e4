package testnet

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

// TestPublic: clients join a network of which they know nothing but a bootstrap file: a relay that is gone, one that has moved, one whose contact expired long ago. They learn
// of all registered relays, and only of those, resolve a name, and talk. Relays get here from a file what oxend tells them there; the addresses are public ones, on a wire without sockets.
func TestPublic(t *testing.T) {
	t.Run("direct", func(t *testing.T) {
		testPublic(t, func(seed uint64) medium { return newFabric(seed, 10*time.Millisecond, 0) })
	})
	t.Run("QUIC", func(t *testing.T) {
		testPublic(t, func(seed uint64) medium { return newEther(seed, 10*time.Millisecond, 0) })
	})
}

func testPublic(t *testing.T, medium func(seed uint64) medium) {
	synctest.Test(t, func(t *testing.T) {
		s := seed(t)
		t.Logf("seed %d", s)
		long := time.Now().Add(-200 * 24 * time.Hour)
		relays := &Net{t: t, medium: medium(s)}
		relays.file = &netdb.NetworkFile{Name: "session-router", Network: 0, Serial: 1, UniqueRange: true, Names: map[string]key.Public{}}
		at := func(i int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{20, byte(i), 0, 1}), 1190)
		}
		var ids []key.Public
		for i := range 10 {
			h := &Host{net: relays, relay: true, Secret: key.Generate(), addr: at(i)}
			relays.Relays = append(relays.Relays, h)
			relays.file.Contacts = append(relays.file.Contacts, router.SignContact(h.Secret, h.addr, 0, time.Now()))
			ids = append(ids, h.Secret.Public())
		}
		relays.file.Relays = ids
		slices.SortFunc(ids, key.Public.Compare)

		// The file: bytes, as it lies on a disk.
		gone := router.SignContact(key.Generate(), at(100), 0, time.Now().Add(-time.Hour))
		moved := router.SignContact(relays.Relays[0].Secret, at(101), 0, long)
		expired := router.SignContact(relays.Relays[1].Secret, relays.Relays[1].addr, 0, long)
		bootstraps := func(contacts ...*netdb.RelayContact) *netdb.NetworkFile {
			raw := []byte{'l'}
			for _, c := range contacts {
				raw = append(raw, c.Raw()...)
			}
			parsed, err := netdb.ParseBootstrap(append(raw, 'e'), time.Now(), netdb.Rules{})
			if err != nil {
				t.Fatal(err)
			}
			return netdb.PublicNetwork(0, parsed)
		}
		clients := &Net{t: t, medium: relays.medium, file: bootstraps(gone, moved, expired)}
		lost := &Net{t: t, medium: relays.medium, file: bootstraps(gone, moved)}
		for i := range 3 {
			n := clients
			if i == 2 {
				n = lost
			}
			h := &Host{net: n, Secret: key.Generate(), addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{30, 0, byte(i), 1}), 1191)}
			n.Clients = append(n.Clients, h)
		}
		relays.file.Names["shop.loki"] = clients.Clients[0].Secret.Public()
		for i, h := range slices.Concat(relays.Relays, clients.Clients, lost.Clients) {
			if i == len(relays.Relays) {
				time.Sleep(20 * time.Second) // until the relays have announced themselves
			}
			h.Start()
			defer h.Stop()
		}
		known := func(h *Host) []key.Public { return h.store.Known() }

		time.Sleep(6 * time.Second) // a relay that does not answer costs 2
		for _, h := range clients.Clients {
			if got := known(h); !slices.Equal(got, ids) {
				t.Errorf("%v knows %d relays, want %d", h, len(got), len(ids))
			}
			if h.store.Get(gone.ID) != nil {
				t.Errorf("%v holds the contact of a relay that nobody registered", h)
			}
			if c := h.store.Get(relays.Relays[0].Secret.Public()); c == nil || c.Addr != relays.Relays[0].addr {
				t.Errorf("%v has not learnt where a relay has moved to: %v", h, c)
			}
		}
		a, b := clients.Clients[0], clients.Clients[1]
		owner, ttl, err := b.Node.Lookup(t.Context(), "shop.loki")
		if err != nil || owner != a.Address() || ttl <= 0 {
			t.Errorf("shop.loki: %v, %v, %v", owner, ttl, err)
		}
		if _, _, err := b.Node.Lookup(t.Context(), "nobody.loki"); err != router.ErrNoName {
			t.Errorf("nobody.loki: %v", err)
		}
		f := b.Flow(a)
		for seq := range uint64(5) {
			f.Ask(seq)
		}
		if f.Answered != 5 {
			t.Errorf("%d of 5 answered", f.Answered)
		}

		// A client whose bootstraps are dead waits, and joins when it gets a file that holds.
		c := lost.Clients[0]
		if n := len(known(c)); n != 0 {
			t.Errorf("%d relays known from dead bootstraps", n)
		}
		time.Sleep(10 * time.Minute)
		c.Node.SetNetwork(bootstraps(gone, expired))
		time.Sleep(25 * time.Second) // at once, unless a try is under way
		if got := known(c); !slices.Equal(got, ids) {
			t.Errorf("with a later file: %d relays, want %d", len(got), len(ids))
		}
	})
}

// TestPublicLies: 6 of 20 relays lie together, and one of them is among the five relays of the bootstrap file, whose clients start with nothing else. None of them comes to believe in a relay
// that nobody registered. Each starts several times, since chance says who is heard. (Names are the matter of TestLyingRelays.)
func TestPublicLies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const honest, liars, strangers, starts = 14, 6, 12, 5
		s := seed(t)
		t.Logf("seed %d", s)
		n := &Net{t: t, medium: newFabric(s, 10*time.Millisecond, 0)}
		n.file = &netdb.NetworkFile{Name: "session-router", Network: 0, Serial: 1, UniqueRange: true}
		crime := &plot{}
		registered := map[key.Public]bool{}
		var contacts []*netdb.RelayContact
		var all []*liar
		for i := range honest + liars + strangers {
			secret, addr := key.Generate(), netip.AddrPortFrom(netip.AddrFrom4([4]byte{20, byte(i), 0, 1}), 1190)
			contact := router.SignContact(secret, addr, 0, time.Now())
			if i < honest {
				n.Relays = append(n.Relays, &Host{net: n, relay: true, Secret: secret, addr: addr})
			} else {
				all = append(all, newLiar(n, secret, addr, schemer, crime))
				crime.ids = append(crime.ids, secret.Public())
			}
			if i < honest+liars {
				registered[secret.Public()] = true
				n.file.Relays, n.file.Contacts = append(n.file.Relays, secret.Public()), append(n.file.Contacts, contact)
				contacts = append(contacts, contact)
			} else {
				crime.contacts = append(crime.contacts, contact.Raw())
			}
		}
		crime.stale = crime.contacts
		bootstraps := netdb.PublicNetwork(0, slices.Concat(contacts[:4], contacts[honest:honest+1]))
		guests := &Net{t: t, medium: n.medium, file: bootstraps}
		for i := range 4 {
			guests.Clients = append(guests.Clients, &Host{net: guests, Secret: key.Generate(), addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{30, 0, byte(i), 1}), 1191)})
		}
		crime.names = (&netdb.NetworkFile{}).NameIndex()
		slices.SortFunc(n.file.Relays, key.Public.Compare)
		for _, h := range n.Relays {
			h.Start()
			defer h.Stop()
		}
		for _, l := range all {
			l.start(t)
		}
		time.Sleep(20 * time.Second)

		missing := 0
		for start := range starts {
			for _, h := range guests.Clients {
				h.Start()
				defer h.Stop()
			}
			waits := []time.Duration{10 * time.Second, 6 * time.Minute} // after the bootstraps' word; after two rounds over paths
			if start < starts-1 {
				waits = waits[:1]
			}
			for _, wait := range waits {
				time.Sleep(wait)
				for _, h := range guests.Clients {
					for _, id := range h.store.Known() {
						if !registered[id] {
							t.Fatalf("start %d, %v after: %v believes in a relay that nobody registered", start, wait, h)
						}
					}
					missing = max(missing, len(registered)-len(h.store.Known()))
				}
			}
			for _, h := range guests.Clients {
				h.Stop()
			}
		}
		t.Logf("relays not known at worst: %d of %d; questions to liars: %d", missing, len(registered), crime.asked.Load())
		if missing > len(registered)/4 {
			t.Errorf("%d relays missing", missing)
		}
	})
}
