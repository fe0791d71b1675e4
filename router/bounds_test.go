package router

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/path"
)

// What one path and one neighbour can make a relay send, hold and compute; another path is served meanwhile.
func TestRelayBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const relays = 60
		var contacts []int
		for i := 1; i < relays; i++ {
			contacts = append(contacts, i)
		}
		g := newRig(t, relays, contacts...)
		greedy, other := path.ID{1}, path.ID{2}
		all := netdb.EncodeFetchRCs(&netdb.BucketHashes{})
		bytes := 0
		for range 5000 {
			bytes += len(g.over(greedy, "fetch_rcs", all).body)
		}
		if most := int(g.r.paths.Burst) + 10000; bytes > most {
			t.Errorf("%d bytes for one path at once", bytes)
		}
		t.Logf("5000 requests for all relay contacts over one path: %d KB sent", bytes>>10)
		expect(t, "too much", g.over(greedy, "fetch_rids", nil), said1("ERROR"))
		if r := g.over(other, "fetch_rids", nil); len(r.body) < 32*relays {
			t.Errorf("another path: %v", r)
		}
		time.Sleep(time.Minute)
		if r := g.over(greedy, "fetch_rids", nil); len(r.body) < 32*relays {
			t.Errorf("a minute later: %v", r)
		}

		// Requests that wait for another relay: nobody answers the dial, or nobody the request.
		away, b, _ := placed(t, relays, -1)
		publish := netdb.EncodePublishCC(sealed(t, away, time.Now()), 0)
		for i, id := range testRelays(relays) {
			if i > 0 && id == netdb.Closest(testRelays(relays), b, 1)[0] {
				g.connect(link.Relay, i)
			}
		}
		var late atomic.Int64
		flood := func(n int, id path.ID) int {
			var refused atomic.Int64
			for range n {
				g.r.PathRequest(id, "publish_cc", publish, func(body []byte) {
					if string(body) == said1("ERROR").body {
						refused.Add(1)
					} else {
						late.Add(1)
					}
				})
			}
			return int(refused.Load())
		}
		waiting := g.r.forwards.Total
		refused := flood(200, path.ID{3})
		if refused != 200-pathForwards || waiting() != pathForwards {
			t.Errorf("%d of 200 refused, %d wait", refused, waiting())
		}
		for i := range 40 {
			flood(200, path.ID{4, byte(i)})
		}
		if waiting() > maxForwards {
			t.Errorf("%d requests wait", waiting())
		}
		if flood(1, other) != 0 {
			t.Error("another path is refused")
		}
		time.Sleep(link.RequestTimeout + time.Second)
		synctest.Wait()
		if waiting() != 0 || late.Load() < maxForwards/2 {
			t.Errorf("%d requests still wait, %d ended", waiting(), late.Load())
		}

		// Invented clients: a path can store some, and one that is known already is always renewed.
		stored := 0
		var last []byte
		for n, tried := 10000, 0; tried < 200; n++ {
			closest := netdb.Closest(testRelays(relays), secret(n).Blind().Public(), 4)
			for i, id := range closest {
				if id != secret(0).Public() {
					continue
				}
				tried++
				body := netdb.EncodePublishCC(sealed(t, n, time.Now()), i)
				if g.over(path.ID{5, byte(tried)}, "publish_cc", body) != said1("OK") {
					t.Fatal("refused over a path of its own")
				}
				g.r.contacts = netdb.NewContacts(0, 0)
				if g.over(path.ID{6}, "publish_cc", body) == said1("OK") {
					stored, last = stored+1, body
				}
				g.r.contacts = netdb.NewContacts(0, 0)
			}
		}
		if stored != int(g.r.fromPaths.Burst) {
			t.Errorf("one path stores the contacts of %d clients at once", stored)
		}
		g.over(path.ID{7}, "publish_cc", last)
		expect(t, "known already", g.over(path.ID{6}, "publish_cc", last), said1("OK"))

		// A neighbour that sends contacts which are not valid is not listened to for a while.
		from := g.connect(link.Relay, 2)
		now := time.Now().Add(-netdb.RelayLifetime / 2)
		for i := range 1100 {
			bad := append([]byte(nil), relayContact(3, now.Add(time.Duration(i)*netdb.MinRelayUpdate+netdb.RelayLifetime/2)).Raw()...)
			bad[len(bad)-3] ^= 1
			g.ask(from, "gossip_rc", bad)
		}
		if g.r.links.Allows(from.Remote(), time.Now()) {
			t.Error("1100 contacts that are not valid cost nothing")
		}
		for i := range 10 {
			if r := g.ask(g.connect(link.Relay, 4+i), "find_cc", netdb.EncodeFindCC(b, netdb.AnyLocation)); r != said1("NOT FOUND") {
				t.Fatal(fmt.Sprint("another neighbour: ", r))
			}
		}
	})
}
