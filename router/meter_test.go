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

func TestMeter(t *testing.T) {
	now := time.Unix(1e9, 0)
	m := meter[int]{rate: 10, burst: 100}
	taken := func(k int) (n int) {
		for m.take(k, 1, now) {
			n++
		}
		return n
	}
	if n := taken(1); n != 100 {
		t.Errorf("%d at once", n)
	}
	if n := taken(2); n != 100 {
		t.Errorf("%d at once for another", n)
	}
	now = now.Add(3 * time.Second)
	if n := taken(1); n != 30 {
		t.Errorf("%d after three seconds", n)
	}
	now = now.Add(time.Hour)
	if n := taken(1); n != 100 {
		t.Errorf("%d after an hour", n)
	}
	m.charge(3, 1000, now) // one that could not be known before
	now = now.Add(80 * time.Second)
	if m.allows(3, now) {
		t.Error("forgiven too early")
	}
	now = now.Add(11 * time.Second)
	if !m.allows(3, now) {
		t.Error("never forgiven")
	}
	now = now.Add(-time.Hour) // the clock is set back
	m.allows(3, now)

	// While the whole is more than half used, few cannot take the rest.
	m = meter[int]{rate: 1, burst: 80, allRate: 1, allBurst: 400}
	total := 0
	for k := range 5 {
		total += taken(k)
	}
	if total != 200+2*10 {
		t.Errorf("the greedy take %d of 400", total)
	}
	if n := taken(10); n != 10 {
		t.Errorf("a newcomer gets %d", n)
	}

	// Memory is bounded, and who is beyond shares.
	m = meter[int]{rate: 1e-9, burst: 2}
	for k := range maxAskers + 1000 {
		m.take(k+1, 1, now)
	}
	if len(m.spent) > maxAskers+1 {
		t.Errorf("%d accounts", len(m.spent))
	}
	now = now.Add(1 << 62)
	m.allows(-1, now)
	if len(m.spent) > 2 {
		t.Errorf("%d accounts though nobody owes anything", len(m.spent))
	}
}

func TestSlots(t *testing.T) {
	s := slots[int]{each: 8, all: 20}
	taken := func(k int) (n int) {
		for s.take(k) {
			n++
		}
		return n
	}
	if a, b := taken(1), taken(2); a != 8 || b != 2 {
		t.Errorf("%d and %d", a, b)
	}
	for k := 10; k < 30; k++ {
		if n := taken(k); n > 1 {
			t.Errorf("%d for one of many", n)
		}
	}
	if s.total != 20 {
		t.Errorf("%d of 20 in all", s.total)
	}
	s.give(1)
	if s.total != 19 || s.used[1] != 7 {
		t.Errorf("%d, %v", s.total, s.used)
	}
}

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
		if most := int(g.r.paths.burst) + 10000; bytes > most {
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
		waiting := func() int {
			g.r.forwards.mu.Lock()
			defer g.r.forwards.mu.Unlock()
			return g.r.forwards.total
		}
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
		if stored != int(g.r.fromPaths.burst) {
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
		if g.r.links.allows(from.Remote(), time.Now()) {
			t.Error("1100 contacts that are not valid cost nothing")
		}
		for i := range 10 {
			if r := g.ask(g.connect(link.Relay, 4+i), "find_cc", netdb.EncodeFindCC(b, netdb.AnyLocation)); r != said1("NOT FOUND") {
				t.Fatal(fmt.Sprint("another neighbour: ", r))
			}
		}
	})
}
