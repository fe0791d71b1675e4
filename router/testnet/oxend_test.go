package testnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/oxend/standin"
	"lokinetd/router/seal"
)

// A public network as it is: each relay knows its oxend and one bootstrap contact, each client the latter. It comes up from nothing; a relay that is registered later takes part, and
// clients use it; one that dies is reported by all others, one that is registered no more is forgotten; names come from the registry.
func TestOxendNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := seed(t)
		const relays = 9
		n := &Net{t: t, medium: newFabric(s, 10*time.Millisecond, 0)}
		oxends := make([]*standin.Oxend, relays)
		for i := range relays {
			h := &Host{net: n, relay: true, Secret: key.Generate(), addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{20, byte(i), 0, 1}), 1190)}
			oxends[i] = &standin.Oxend{Secret: h.Secret}
			h.oxend = oxends[i].Dial
			n.Relays = append(n.Relays, h)
		}
		id := func(i int) key.Public { return n.Relays[i].Secret.Public() }
		register := func(some ...int) (ids []key.Public) {
			for _, i := range some {
				ids = append(ids, id(i))
			}
			for _, o := range oxends {
				o.SetRelays(ids...)
			}
			slices.SortFunc(ids, key.Public.Compare)
			return ids
		}
		for i := range 2 {
			n.Clients = append(n.Clients, &Host{net: n, Secret: key.Generate(), addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{30, 0, byte(i), 1}), 1191)})
		}
		a, b := n.Clients[0], n.Clients[1]
		nonce := seal.Nonce{1}
		for _, o := range oxends {
			o.SetName(seal.NameHash("shop.loki"), seal.SealName("shop.loki", a.Secret.Public(), &nonce), nonce)
		}
		n.file = netdb.PublicNetwork(0, []*netdb.RelayContact{router.SignContact(n.Relays[0].Secret, n.Relays[0].addr, 0, time.Now())})

		want := register(0, 1, 2, 3, 4, 5, 6, 7)
		for _, h := range n.Relays {
			h.Start()
			defer h.Stop()
		}
		time.Sleep(2 * time.Minute)
		for i, h := range n.Relays {
			if !slices.Equal(h.store.RegisteredIDs(), want) {
				t.Errorf("relay %d: %d are registered", i, len(h.store.RegisteredIDs()))
			}
			if got := h.store.Len(); got < netdb.MinContacts { // the others come with their next gossip
				t.Errorf("relay %d knows %d contacts", i, got)
			}
		}
		for _, h := range n.Clients {
			h.Start()
			defer h.Stop()
		}
		time.Sleep(20 * time.Second)
		if got := a.store.Known(); !slices.Equal(got, want) {
			t.Errorf("a client knows %d relays", len(got))
		}
		owner, _, err := b.Node.Lookup(t.Context(), "shop.loki")
		if err != nil || owner != a.Address() {
			t.Error(owner, err)
		}
		if _, _, err := b.Node.Lookup(t.Context(), "nobody.loki"); err != router.ErrNoName {
			t.Error(err)
		}
		f := b.Flow(a)
		f.Ask(0)
		if f.Answered != 1 {
			t.Error("no answer")
		}

		// Another is registered, one dies, one is registered no more.
		const late, dead, gone = 8, 1, 2
		reported(oxends)
		want = register(0, 1, 3, 4, 5, 6, 7, 8)
		n.Relays[dead].Kill()
		rounds := time.Duration(4) // of a client's questions which relays there are: one that hears little believes it only after some
		if raceEnabled {
			rounds = 1
		}
		time.Sleep(rounds * 5 * time.Minute)
		for i, h := range n.Relays {
			if i != dead && !slices.Equal(h.store.RegisteredIDs(), want) {
				t.Errorf("relay %d: other relays are registered", i)
			}
		}
		for _, i := range []int{0, 3, 8} {
			if s := n.Relays[i].store; s.Get(id(late)) == nil || s.Get(id(gone)) != nil {
				t.Errorf("relay %d: the contact of the new one %v, of the old one %v", i, s.Get(id(late)), s.Get(id(gone)))
			}
		}
		if s := a.store; rounds > 1 && (!slices.Equal(s.Known(), want) || s.Get(id(late)) == nil) {
			t.Errorf("a client knows %v, want %v; the contact of the new one: %v", s.Known(), want, s.Get(id(late)))
		}
		reports := reported(oxends)
		for i := range relays {
			k := id(i)
			passed, failed := reports[fmt.Sprintf("true %x", k[:])], reports[fmt.Sprintf("false %x", k[:])]
			switch i {
			case dead:
				if failed < 7*5 || passed != 0 {
					t.Errorf("the dead relay passed %d tests, failed %d", passed, failed)
				}
			case gone:
				if failed != 0 {
					t.Errorf("the relay that is registered no more failed %d tests", failed)
				}
			default:
				if failed != 0 || passed < 500 {
					t.Errorf("relay %d passed %d tests, failed %d", i, passed, failed)
				}
			}
		}
		f.Ask(1)
		if f.Answered != 2 {
			t.Error("no answer")
		}
	})
}

// reported counts the reports of all relays since the last call, by result and relay ("true 0011...").
func reported(oxends []*standin.Oxend) map[string]int {
	counts := map[string]int{}
	for _, o := range oxends {
		for _, q := range o.Asked() {
			if q.Command != "admin.report_peer_status" {
				continue
			}
			passed := strings.HasPrefix(q.Body, `{"passed":true`)
			_, text, _ := strings.Cut(q.Body, `"pubkey":"`)
			text, _, _ = strings.Cut(text, `"`)
			counts[fmt.Sprint(passed, " ", text)]++
		}
	}
	return counts
}
