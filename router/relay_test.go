package router

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/fair"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

// rig is relay 0 of a network, and its neighbours played by the test.
type rig struct {
	t    *testing.T
	n    *Node
	r    *relay
	wire *fakeWire
}

// newRig runs relay 0 of a network of so many, without contacts of the others. Call it inside a bubble.
func newRig(t *testing.T, relays int, contacts ...int) *rig {
	w := newFakeWire()
	n := runNode(t, NodeConfig{Secret: secret(0), Public: relayAddr(0), Wire: w, Network: testFile(relays, contacts...)})
	return &rig{t, n, n.relay, w}
}

// connect makes a connection to the relay.
func (g *rig) connect(kind link.Kind, relay int) *fakeConn {
	c := newConn(kind, key.Public{})
	if kind == link.Relay {
		c.remote = secret(relay).Public()
	}
	g.wire.handler.Opened(c)
	return c
}

// reply is what came back. The zero reply is silence.
type reply struct {
	body string
	fail bool
	came bool
}

func (r reply) String() string {
	switch {
	case !r.came:
		return "silence"
	case r.fail:
		return fmt.Sprintf("error %.200q", r.body)
	}
	return fmt.Sprintf("%.200q", r.body)
}

func said1(text string) reply { return reply{body: string(netdb.Status(text)), came: true} }
func unknown(name string) reply {
	return reply{body: "Invalid endpoint '" + name + "'", fail: true, came: true}
}

// ask sends a request and waits for the reply, or until nothing happens any more.
func (g *rig) ask(c link.Conn, name string, body []byte) (r reply) {
	g.wire.handler.Request(c, link.NewRequest(name, bytes.Clone(body), func(body []byte, fail bool) { r = reply{string(body), fail, true} }))
	synctest.Wait()
	return r
}

// over sends a request over a path that ends at the relay.
func (g *rig) over(id path.ID, method string, body []byte) (r reply) {
	g.r.PathRequest(id, method, bytes.Clone(body), func(body []byte) {
		if r.came {
			g.t.Error("answered twice")
		}
		r = reply{string(body), false, true}
	})
	synctest.Wait()
	return r
}

func expect(t *testing.T, what string, got, want reply) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// cut calls f with every beginning of b, and with b and a byte more.
func cut(b []byte, f func(part []byte)) {
	for i := range b {
		f(b[:i])
	}
	f(append(bytes.Clone(b), 'e'))
}

// sealed is the contact of client n, signed at a time.
func sealed(t testing.TB, n int, at time.Time) []byte {
	t.Helper()
	c := netdb.ClientContact{Intros: []netdb.Intro{{Expiry: at.Add(20 * time.Minute), Relay: secret(1).Public()}}}
	raw, err := c.Seal(secret(n), at)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// placed finds a client whose contact relay 0 keeps at one of the given places (0 is the closest, -1 not among the five), and at which.
func placed(t testing.TB, relays int, places ...int) (client int, blinded key.Public, place int) {
	t.Helper()
	for n := 1000; n < 3000; n++ {
		b := secret(n).Blind().Public()
		closest := netdb.Closest(testRelays(relays), b, netdb.Accepting)
		if i := slices.Index(closest, secret(0).Public()); slices.Contains(places, i) {
			return n, b, i
		}
	}
	t.Fatal("no such client")
	return
}

func testRelays(n int) (ids []key.Public) {
	for i := range n {
		ids = append(ids, secret(i).Public())
	}
	return ids
}

// Protocol 2 section 7: which request is known on which connection, and the answers to what is malformed.
func TestRelayRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 8, 1, 2)
		r, c, b := g.connect(link.Relay, 1), g.connect(link.Client, 0), g.connect(link.Bootstrap, 0)
		zero := netdb.EncodeFetchRCs(&netdb.BucketHashes{})
		failed := func(text string) reply { return reply{string(netdb.Status(text)), true, true} }
		for _, x := range []struct {
			conn *fakeConn
			name string
			body string
			want reply
		}{
			{r, "ping", "", reply{"pong", false, true}},
			{c, "ping", "anything", reply{"pong", false, true}},
			{b, "ping", "", unknown("ping")},
			{r, "bfetch_rcs", "de", unknown("bfetch_rcs")},
			{c, "bfetch_rcs", "de", unknown("bfetch_rcs")},
			{b, "fetch_rcs", string(zero), unknown("fetch_rcs")},
			{b, "path_build", "", unknown("path_build")},
			{b, "path_control", "", unknown("path_control")},
			{c, "gossip_rc", string(relayContact(3, time.Now()).Raw()), unknown("gossip_rc")},
			{c, "publish_cc", "de", unknown("publish_cc")},
			{c, "find_cc", "de", unknown("find_cc")},
			{r, "fetch_rids", "", unknown("fetch_rids")},
			{r, "resolve_sns", "", unknown("resolve_sns")},
			{c, "path_ping", "", unknown("path_ping")},
			{c, "", "", unknown("")},
			{c, strings.Repeat("x", 1000), "", unknown(strings.Repeat("x", 200))},
			{r, "publish_cc", "", said1("ERROR")},
			{r, "find_cc", "", said1("ERROR")},
			{r, "fetch_rcs", "", said1("ERROR")},
			{c, "fetch_rcs", "i1e", said1("ERROR")},
			{c, "path_build", "", failed("BAD FRAMES")},
			{c, "path_build", strings.Repeat("x", 1351), failed("BAD FRAMES")},
			{c, "path_control", "", failed("ERROR")},
			{c, "path_control", strings.Repeat("\x01", 200), failed("ERROR")},
			{c, "session_control", strings.Repeat("\x01", 200), reply{}},
			{r, "gossip_rc", "rubbish", reply{}},
		} {
			expect(t, fmt.Sprintf("kind %v %.20q %.20q", x.conn.kind, x.name, x.body), g.ask(x.conn, x.name, []byte(x.body)), x.want)
		}
		if g.n.store.Get(secret(3).Public()) != nil {
			t.Error("a client's gossip is taken")
		}
	})
}

// Protocol 2 sections 7.3 and 7.4, on a link and over a path.
func TestRelayFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 8, 1, 2, 3)
		c, id := g.connect(link.Client, 0), path.ID{1}
		ways := map[string]func(body []byte) reply{
			"link": func(b []byte) reply { return g.ask(c, "fetch_rcs", b) },
			"path": func(b []byte) reply { return g.over(id, "fetch_rcs", b) },
		}
		have := g.n.store.Buckets()
		most := have
		most[relayContact(2, time.Now()).Bucket()][0] ^= 1
		for way, ask := range ways {
			expect(t, way+": all known", ask(netdb.EncodeFetchRCs(&have)), reply{"d1:rlee", false, true})
			for what, x := range map[string]struct {
				have  netdb.BucketHashes
				count int
			}{"nothing known": {netdb.BucketHashes{}, 3}, "one bucket differs": {most, 1}} {
				raws, err := netdb.DecodeRCs([]byte(ask(netdb.EncodeFetchRCs(&x.have)).body))
				if err != nil || len(raws) != x.count {
					t.Errorf("%s, %s: %d contacts, %v", way, what, len(raws), err)
				}
			}
			hashes := func(n, size int) []byte {
				return fmt.Appendf(nil, "d1:bl%see", strings.Repeat(fmt.Sprintf("%d:%s", size, strings.Repeat("x", size)), n))
			}
			for what, body := range map[string][]byte{
				"127 hashes": hashes(127, 8), "hashes of 7 bytes": hashes(128, 7), "of 9": hashes(128, 9),
				"numbers": []byte("d1:bl" + strings.Repeat("i1e", 128) + "ee"), "a string": []byte("d1:b4:abcde"),
				"no key": []byte("de"), "a list": []byte("le"), "a byte more": append(hashes(128, 8), 'x'),
			} {
				expect(t, way+": "+what, ask(body), said1("ERROR"))
			}
			if got := ask(hashes(129, 8)); strings.HasPrefix(got.body, "d1:!") {
				t.Errorf("%s: 129 hashes: %v", way, got)
			}
		}
		// Not more often than a path may ask in a while.
		short := hashesOf(have)
		cut(short[:64], func(part []byte) { expect(t, "cut", g.over(path.ID{2}, "fetch_rcs", part), said1("ERROR")) })

		for _, body := range []string{"", "de", "rubbish"} {
			ids, err := netdb.DecodeRIDs([]byte(g.over(id, "fetch_rids", []byte(body)).body))
			if err != nil || !slices.Equal(ids, g.n.store.RegisteredIDs()) || len(ids) != 8 {
				t.Errorf("fetch_rids: %d ids, %v", len(ids), err)
			}
		}
		for _, method := range []string{"", "fetch_rid", "gossip_rc", "bfetch_rcs", "path_build", strings.Repeat("y", 5000)} {
			expect(t, fmt.Sprintf("over a path: %.20q", method), g.over(id, method, nil), said1("ERROR"))
		}
	})
}

func hashesOf(h netdb.BucketHashes) []byte { return netdb.EncodeFetchRCs(&h) }

// Protocol 2 section 7.8.
func TestRelayResolve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 8)
		id := path.ID{1}
		ask := func(body []byte) reply { return g.over(id, "resolve_sns", body) }
		good := netdb.EncodeResolveSNS(seal.NameHash("shop.loki"))
		if a := readName("shop.loki", []byte(ask(good).body), nil); !a.found || a.owner != secret(5000).Public() {
			t.Errorf("a registered name: %+v", a)
		}
		expect(t, "no such name", ask(netdb.EncodeResolveSNS(seal.NameHash("shop2.loki"))), said1("NOT FOUND"))
		cut(good, func(part []byte) { expect(t, "cut", ask(part), said1("ERROR")) })
		for _, body := range []string{"d1:si5ee", "d1:s31:" + strings.Repeat("x", 31) + "e", "d1:sd1:s32:" + strings.Repeat("x", 32) + "ee"} {
			expect(t, body, ask([]byte(body)), said1("ERROR"))
		}
		next := testFile(8)
		next.Serial, next.Names = 2, nil
		g.n.SetNetwork(next)
		expect(t, "a name that was removed", ask(good), said1("NOT FOUND"))
	})
}

// Protocol 2 section 7.6, at the end of a path and from another relay.
func TestRelayPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const relays = 9
		g := newRig(t, relays)
		from := g.connect(link.Relay, 1)
		paths := byte(0)
		over := func(body []byte) reply { // each time over another path: bounds have tests of their own
			paths++
			return g.over(path.ID{paths}, "publish_cc", body)
		}
		direct := func(body []byte) reply { return g.ask(from, "publish_cc", body) }
		now := time.Now()
		here, blinded, place := placed(t, relays, 0, 1, 2, 3)
		good := sealed(t, here, now)
		stored := func() []byte { return g.r.contacts.Get(blinded, time.Now()) }

		for name, ask := range map[string]func([]byte) reply{"path": over, "relay": direct} {
			body := netdb.EncodePublishCC(good, place)
			for i := range body { // a byte of each 7: with the vectors of netdb the whole is cut at every byte
				if i%7 == 0 || i > len(body)-8 {
					expect(t, fmt.Sprintf("%s: cut at %d of %d", name, i, len(body)), ask(body[:i]), said1("ERROR"))
				}
			}
			expect(t, name+": a byte more", ask(append(bytes.Clone(body), 'e')), said1("ERROR"))
			for what, body := range map[string][]byte{
				"no location":       bt.NewDict(nil).Bytes("e", good).End(),
				"location a string": bt.NewDict(nil).Bytes("e", good).String("n", "2").End(),
				"contact a dict":    bt.NewDict(nil).Raw("e", good).Int("n", int64(place)).End(),
				"no contact":        bt.NewDict(nil).Int("n", int64(place)).End(),
				"an empty contact":  netdb.EncodePublishCC([]byte("de"), place),
				"too large":         netdb.EncodePublishCC(append([]byte("d1:a65536:"), make([]byte, 70000)...), place),
			} {
				expect(t, name+": "+what, ask(body), said1("ERROR"))
			}
			for i := 40; i < len(good); i += 31 {
				bad := bytes.Clone(good)
				bad[i] ^= 1
				if got := ask(netdb.EncodePublishCC(bad, place)); got == said1("OK") {
					t.Errorf("%s: a contact with byte %d changed is stored", name, i)
				}
			}
			expect(t, name+": old", ask(netdb.EncodePublishCC(sealed(t, here, now.Add(-1380*time.Second-time.Millisecond)), place)), said1("SLOW CLOCK"))
			expect(t, name+": ahead", ask(netdb.EncodePublishCC(sealed(t, here, now.Add(10*time.Minute+time.Millisecond)), place)), said1("FAST CLOCK"))
			if stored() != nil {
				t.Fatal(name + ": something was stored")
			}
		}
		for _, n := range []int{-1, 4, math.MaxInt32} {
			expect(t, fmt.Sprintf("location %d", n), over(netdb.EncodePublishCC(good, n)), said1("INVALID PUBLISH LOCATION"))
		}
		expect(t, "as old as may be", over(netdb.EncodePublishCC(sealed(t, here, now.Add(-1380*time.Second)), place)), said1("OK"))
		expect(t, "good", over(netdb.EncodePublishCC(good, place)), said1("OK"))
		expect(t, "the same again", over(netdb.EncodePublishCC(good, place)), said1("OK"))
		expect(t, "an older one", over(netdb.EncodePublishCC(sealed(t, here, now.Add(-time.Minute)), place)), said1("OK"))
		if !bytes.Equal(stored(), good) {
			t.Error("an older contact has replaced a newer one")
		}
		newer := sealed(t, here, now.Add(time.Minute))
		expect(t, "from a relay, any location", direct(netdb.EncodePublishCC(newer, -77)), said1("OK"))
		if !bytes.Equal(stored(), newer) {
			t.Error("a newer contact has not replaced an older one")
		}
		fifth, _, _ := placed(t, relays, 4)
		expect(t, "from a relay, the fifth place", direct(netdb.EncodePublishCC(sealed(t, fifth, now), 0)), said1("OK"))
		not, _, _ := placed(t, relays, -1)
		expect(t, "from a relay, not ours", direct(netdb.EncodePublishCC(sealed(t, not, now), 0)), said1("ERROR"))

		few := testFile(3)
		g.n.SetNetwork(few)
		expect(t, "path: three relays", over(netdb.EncodePublishCC(good, place)), said1("No RCs available!"))
		expect(t, "relay: three relays", direct(netdb.EncodePublishCC(good, place)), said1("No RCs available!"))
	})
}

// Protocol 2 section 7.7, and what is passed on to other relays and back (7.6 and 7.7).
func TestRelayFindAndForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const relays = 9
		g := newRig(t, relays)
		peers := map[key.Public]*fakeConn{}
		for i := 1; i < relays; i++ {
			peers[secret(i).Public()] = g.connect(link.Relay, i)
		}
		id := path.ID{1}
		ask := func(body []byte) reply { return g.over(id, "find_cc", body) }
		now := time.Now()
		here, blinded, place := placed(t, relays, 0, 1, 2, 3)
		good := sealed(t, here, now)
		found := reply{string(netdb.EncodeFoundCC(good)), false, true}

		expect(t, "not yet", ask(netdb.EncodeFindCC(blinded, place)), said1("NOT FOUND"))
		g.r.contacts.Put(good, now)
		expect(t, "here", ask(netdb.EncodeFindCC(blinded, place)), found)
		expect(t, "without a location", ask(netdb.EncodeFindCC(blinded, netdb.AnyLocation)), found)
		body := netdb.EncodeFindCC(blinded, place)
		cut(body, func(part []byte) { expect(t, "cut", g.over(path.ID{2}, "find_cc", part), said1("ERROR")) })
		for _, n := range []int{-2, 4, math.MaxInt32} {
			expect(t, fmt.Sprintf("location %d", n), ask(netdb.EncodeFindCC(blinded, n)), said1("ERROR"))
		}
		for _, body := range []string{"d1:ki5ee", "d1:k31:" + strings.Repeat("x", 31) + "e", string(bt.NewDict(nil).Bytes("k", blinded[:]).String("n", "1").End())} {
			expect(t, body, ask([]byte(body)), said1("ERROR"))
		}
		relay := peers[secret(1).Public()]
		expect(t, "from a relay", g.ask(relay, "find_cc", netdb.EncodeFindCC(blinded, netdb.AnyLocation)), found)
		expect(t, "from a relay, not here", g.ask(relay, "find_cc", netdb.EncodeFindCC(secret(1).Public(), netdb.AnyLocation)), said1("NOT FOUND"))
		cut(netdb.EncodeFindCC(blinded, netdb.AnyLocation), func(part []byte) {
			expect(t, "from a relay, cut", g.ask(relay, "find_cc", part), said1("ERROR"))
		})

		// Passed on: to the relay at the place that is named, a publish_cc unchanged, a find_cc without its location.
		away, b, _ := placed(t, relays, -1)
		closest := netdb.Closest(testRelays(relays), b, netdb.Locations)
		contact := sealed(t, away, now)
		publish := netdb.EncodePublishCC(contact, 3)
		last := peers[closest[3]]
		for _, x := range []struct {
			what   string
			answer func(context.Context, string, []byte) ([]byte, error)
			want   reply
		}{
			{"an answer", func(context.Context, string, []byte) ([]byte, error) { return []byte("whatever"), nil }, reply{"whatever", false, true}},
			{"an error", func(context.Context, string, []byte) ([]byte, error) {
				return nil, &link.ReplyError{Body: []byte("no")}
			}, said1("TIMEOUT")},
			{"too much", func(context.Context, string, []byte) ([]byte, error) { return make([]byte, 9<<20), nil }, said1("ERROR")},
		} {
			last.answer = x.answer
			expect(t, "publish, "+x.what, g.over(id, "publish_cc", publish), x.want)
			expect(t, "find, "+x.what, ask(netdb.EncodeFindCC(b, 3)), x.want)
			want := []said{{"publish_cc", string(publish)}, {"find_cc", string(netdb.EncodeFindCC(b, netdb.AnyLocation))}}
			if got := last.heard(); !slices.Equal(got, want) {
				t.Errorf("%s: passed on %q", x.what, got)
			}
		}
		// Silence ends after the ten seconds of a request.
		last.answer = nil
		var late atomic.Pointer[reply]
		late.Store(&reply{})
		g.r.PathRequest(id, "find_cc", netdb.EncodeFindCC(b, 3), func(body []byte) { late.Store(&reply{string(body), false, true}) })
		time.Sleep(link.RequestTimeout - time.Millisecond)
		synctest.Wait()
		expect(t, "silence, too early", *late.Load(), reply{})
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		expect(t, "silence", *late.Load(), said1("TIMEOUT"))

		// Clients before 1.0.2 name no place: all four are asked, the first that has it counts, and a failure only when all have failed.
		says := func(text string) func(context.Context, string, []byte) ([]byte, error) {
			return func(context.Context, string, []byte) ([]byte, error) { return netdb.Status(text), nil }
		}
		for _, id := range closest {
			peers[id].answer = says("NOT FOUND")
		}
		expect(t, "nobody has it", ask(netdb.EncodeFindCC(b, netdb.AnyLocation)), said1("NOT FOUND"))
		peers[closest[1]].answer = func(context.Context, string, []byte) ([]byte, error) { return netdb.EncodeFoundCC(contact), nil }
		peers[closest[2]].answer = nil
		expect(t, "one has it", ask(netdb.EncodeFindCC(b, netdb.AnyLocation)), reply{string(netdb.EncodeFoundCC(contact)), false, true})
		g.n.SetNetwork(testFile(3))
		expect(t, "three relays", ask(body), said1("ERROR"))
	})
}

// Protocol 2 section 9: what is taken, what is passed on and to whom, and that it ends.
func TestRelayGossip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const relays = 6
		g := newRig(t, relays)
		var peers []*fakeConn
		for i := 1; i < relays; i++ {
			peers = append(peers, g.connect(link.Relay, i))
		}
		from := peers[0]
		start := time.Now()
		passed := func() (to []int) { // who was told, by number
			for i, p := range peers {
				for range p.heard() {
					to = append(to, i+1)
				}
			}
			return to
		}
		tell := func(what string, raw []byte, want ...int) {
			t.Helper()
			expect(t, what, g.ask(from, "gossip_rc", raw), reply{})
			if got := passed(); !slices.Equal(got, want) {
				t.Errorf("%s: passed on to %v, want %v", what, got, want)
			}
		}
		c := relayContact(2, start)
		everybody := []int{3, 4, 5} // but who it is of, and who it came from
		tell("new", c.Raw(), everybody...)
		tell("again", c.Raw())
		tell("59 s newer", SignContact(secret(2), relayAddr(77), testNetwork, start.Add(59*time.Second)).Raw())
		tell("a minute newer, the same inside", relayContact(2, start.Add(time.Minute)).Raw())
		tell("two minutes newer, changed", SignContact(secret(2), relayAddr(78), testNetwork, start.Add(2*time.Minute)).Raw(), everybody...)
		tell("not registered", relayContact(50, start).Raw())
		tell("our own", relayContact(0, start).Raw())
		tell("of another network", SignContact(secret(3), relayAddr(3), 43, start).Raw())
		tell("expired", relayContact(3, start.Add(-netdb.RelayLifetime)).Raw())
		tell("far ahead", relayContact(3, start.Add(time.Hour)).Raw())
		tell("address not public", SignContact(secret(3), relayAddrOf("10.0.0.1:1"), testNetwork, start).Raw())
		bad := relayContact(3, start).Raw()
		for i := 0; i < len(bad); i += 5 {
			x := bytes.Clone(bad)
			x[i] ^= 4
			tell("damaged", x)
		}
		for i := 0; i < len(bad); i += 9 {
			tell("cut", bad[:i])
		}
		tell("too large", append(bytes.Clone(bad), make([]byte, 3000)...))
		if g.n.store.Get(secret(3).Public()) != nil {
			t.Error("a contact that is not valid is stored")
		}
		// The other of two connections with a relay is still the relay that it came from.
		g.connect(link.Relay, 1)
		second := newConn(link.Relay, secret(1).Public())
		second.outbound = true
		tell("from a relay with two connections", relayContact(4, start).Raw(), 2, 3, 5)

		// A relay that has signed for each minute of a day tells all that at once.
		n := 0
		for at := start.Add(-24 * time.Hour); at.Before(start); at = at.Add(time.Minute) {
			g.ask(from, "gossip_rc", SignContact(secret(5), relayAddr(100+n), testNetwork, at).Raw())
			n++
		}
		if got := len(passed()); got > 4*(relays-3) {
			t.Errorf("%d contacts of one relay at once make %d messages", n, got)
		} else {
			t.Logf("%d contacts of one relay at once make %d messages", n, got)
		}
	})
}

// Two relays and their gossip, message by message: what one says never comes back, however the mesh is linked.
func TestGossipEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const relays = 5
		var rigs []*rig
		for i := range relays {
			w := newFakeWire()
			n := runNode(t, NodeConfig{Secret: secret(i), Public: relayAddr(i), Wire: w, Network: testFile(relays)})
			rigs = append(rigs, &rig{t, n, n.relay, w})
		}
		ends := make([][]*fakeConn, relays) // ends[i][j]: relay i's connection to j
		for i, g := range rigs {
			for j := range relays {
				if i == j {
					ends[i] = append(ends[i], nil)
				} else {
					ends[i] = append(ends[i], g.connect(link.Relay, j))
				}
			}
		}
		// Each relay announces itself once, 10 to 15 s after the start.
		time.Sleep(16 * time.Second)
		messages := 0
		for again := true; again; {
			again = false
			for i := range rigs {
				for j, c := range ends[i] {
					if c == nil {
						continue
					}
					for _, s := range c.heard() {
						again, messages = true, messages+1
						rigs[j].ask(ends[j][i], s.name, []byte(s.body))
					}
				}
			}
		}
		for i, g := range rigs {
			if g.n.store.Len() != relays {
				t.Errorf("relay %d knows %d", i, g.n.store.Len())
			}
		}
		// Each contact is told n-1 times by its relay, and n-2 times by each of the others.
		if most := relays * ((relays - 1) + (relays-1)*(relays-2)); messages > most {
			t.Errorf("%d messages, %d would do", messages, most)
		}
		// A refresh of the same contents goes one hop.
		time.Sleep(netdb.RelayRefresh)
		messages = 0
		for i := range rigs {
			for j, c := range ends[i] {
				if c != nil {
					for _, s := range c.heard() {
						messages++
						rigs[j].ask(ends[j][i], s.name, []byte(s.body))
					}
				}
			}
		}
		if messages != relays*(relays-1) {
			t.Errorf("%d messages for a refresh, want %d", messages, relays*(relays-1))
		}
		for i := range rigs {
			for _, c := range ends[i] {
				if c != nil && len(c.heard()) > 0 {
					t.Error("a refresh is passed on")
				}
			}
		}
	})
}

// FuzzRelayRequest sends requests of any name and body over every kind of connection and over a path: a relay takes them from strangers. It may not panic, answers each at most once,
// keeps no contact that is not signed, and learns of no relay that is not registered.
//
// Decoders: relay.Request relay.gossip relay.PathRequest relay.fetchRCs relay.resolveSNS relay.publishCC relay.readPublish relay.findCC
func FuzzRelayRequest(f *testing.F) {
	now := time.Now()
	client, blinded, place := placed(f, 9, 0, 1, 2, 3)
	contact := sealed(f, client, now)
	far, _, _ := placed(f, 9, -1)
	for _, s := range []struct {
		kind byte
		name string
		body []byte
	}{
		{0, "gossip_rc", relayContact(1, now).Raw()}, {0, "publish_cc", netdb.EncodePublishCC(contact, place)}, {0, "find_cc", netdb.EncodeFindCC(blinded, 1)},
		{1, "fetch_rcs", netdb.EncodeFetchRCs(&netdb.BucketHashes{})}, {1, "path_build", make([]byte, 1352)}, {1, "path_control", make([]byte, 58)},
		{1, "session_control", make([]byte, 60)}, {1, "ping", nil}, {2, "bfetch_rcs", []byte("de")},
		{3, "publish_cc", netdb.EncodePublishCC(contact, place)}, {3, "find_cc", netdb.EncodeFindCC(blinded, place)},
		{3, "resolve_sns", netdb.EncodeResolveSNS([32]byte{})}, {3, "fetch_rids", nil}, {3, "fetch_rcs", []byte("d1:blee")},
		{0, "gossip_rc", []byte("de")}, {0, "gossip_rc", relayContact(20, now).Raw()}, {0, "publish_cc", []byte("de")}, {0, "find_cc", []byte("de")}, {2, "ping", nil}, {3, "resolve_sns", []byte("de")}, {3, "find_cc", []byte("de")},
		{3, "publish_cc", netdb.EncodePublishCC(sealed(f, client, now.Add(-2*netdb.ContactLifetime)), place)}, {3, "publish_cc", netdb.EncodePublishCC(contact, 9)}, {3, "publish_cc", netdb.EncodePublishCC(contact, -1)},
		{3, "find_cc", netdb.EncodeFindCC(blinded, netdb.AnyLocation)}, {1, "unknown", nil}, {3, "unknown", nil}, {0, "publish_cc", netdb.EncodePublishCC(sealed(f, far, now), 0)},
	} {
		f.Add(s.kind, s.name, s.body)
		f.Add(s.kind|4, s.name, s.body)
	}
	for location := range 4 {
		f.Add(byte(3), "publish_cc", netdb.EncodePublishCC(contact, location))
		f.Add(byte(3), "find_cc", netdb.EncodeFindCC(blinded, location))
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	node := func(relays int) (*Node, *netdb.Store) {
		store, err := netdb.OpenStore("", secret(0).Public(), true, netdb.Rules{Network: testNetwork}, nil)
		if err != nil {
			f.Fatal(err)
		}
		n, err := NewNode(NodeConfig{Secret: secret(0), Public: relayAddr(0), Wire: newFakeWire(), Store: store, Network: testFile(relays)})
		if err != nil {
			f.Fatal(err)
		}
		n.ctx = ctx
		n.learn(n.network.Load())
		return n, store
	}
	n, store := node(9)
	few, _ := node(2)
	f.Fuzz(func(t *testing.T, kind byte, name string, body []byte) {
		n.relay.contacts = netdb.NewContacts(0, 0)
		id := path.ID{kind, byte(len(body))}
		n.relay.fromPaths, n.relay.links, n.relay.paths = fair.Meter[path.ID]{Rate: 1, Burst: 1}, newLinkMeter(), newPathMeter()
		var answers atomic.Int32
		if kind&4 != 0 { // who has asked too much
			n.relay.paths.Charge(id, 1<<30, time.Now())
			for _, k := range []key.Public{{}, secret(1).Public()} {
				n.relay.links.Charge(k, 1<<30, time.Now())
			}
		}
		if kind %= 4; kind == 3 {
			n.relay.PathRequest(id, name, bytes.Clone(body), func([]byte) { answers.Add(1) })
			few.relay.PathRequest(id, name, bytes.Clone(body), func([]byte) {})
			few.work.Wait()
			if few.relay.contacts.Stats().Count > 0 {
				t.Error("a contact is kept where there are no places for it")
			}
		} else {
			c := newConn([]link.Kind{link.Relay, link.Client, link.Bootstrap}[kind], key.Public{})
			if kind == 0 {
				c.remote = secret(1).Public()
			}
			n.relay.Request(c, link.NewRequest(name, bytes.Clone(body), func([]byte, bool) { answers.Add(1) }))
		}
		n.work.Wait()
		if answers.Load() > 1 {
			t.Errorf("%d answers", answers.Load())
		}
		if n.relay.contacts.Stats().Count > 0 {
			p, err := netdb.DecodePublishCC(body)
			if err != nil || netdb.VerifySealed(p.Sealed) != nil {
				t.Error("a contact that is not signed is kept")
			}
		}
		for _, c := range store.All() {
			if !store.Registered(c.ID) {
				t.Error("a relay that is not registered is known")
			}
		}
	})
}
