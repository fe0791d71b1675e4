package netdb

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
)

func memoryStore(t testing.TB, self int, relay bool, r Rules) *Store {
	t.Helper()
	s, err := OpenStore("", secret(self).Public(), relay, r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// changed is the contact of relay n with another address: a significant change.
func changed(n int, at time.Time) *RelayContact {
	return SignRelayContact(secret(n), RelayContact{Addr: netip.MustParseAddrPort("8.8.8.8:8"), Time: at, Version: [3]uint8{1, 0, 2}})
}

// Protocol 1 section 9.3, the rules in their order.
func TestPut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		for _, c := range []struct {
			name           string
			old, new       *RelayContact
			stored, gossip bool
		}{
			{"unknown", nil, relayContact(1000, now), true, true},
			{"the same", relayContact(1000, now), relayContact(1000, now), false, false},
			{"59 s newer", relayContact(1000, now.Add(-time.Hour)), relayContact(1000, now.Add(-time.Hour+59*time.Second)), false, false},
			{"59 s newer, changed", relayContact(1000, now.Add(-time.Hour)), changed(1000, now.Add(-time.Hour+59*time.Second)), false, false},
			{"60 s newer", relayContact(1000, now.Add(-time.Hour)), relayContact(1000, now.Add(-time.Hour+60*time.Second)), true, false},
			{"60 s newer, changed", relayContact(1000, now.Add(-time.Hour)), changed(1000, now.Add(-time.Hour+60*time.Second)), true, true},
			{"60 s newer, our own", relayContact(999, now.Add(-time.Hour)), relayContact(999, now.Add(-time.Hour+60*time.Second)), true, true},
			{"just below 12 h newer", relayContact(1000, now.Add(-RelayOutdated)), relayContact(1000, now.Add(-time.Second)), true, false},
			{"12 h newer", relayContact(1000, now.Add(-RelayOutdated)), relayContact(1000, now), true, true},
			{"older", relayContact(1000, now), changed(1000, now.Add(-time.Hour)), false, false},
			{"expired", nil, relayContact(1000, now.Add(-RelayLifetime)), false, false},
			{"10 min ahead", nil, relayContact(1000, now.Add(10*time.Minute)), true, true},
			{"more ahead", nil, relayContact(1000, now.Add(10*time.Minute+time.Second)), false, false},
		} {
			for _, relay := range []bool{true, false} {
				s := memoryStore(t, 999, relay, Rules{})
				if c.old != nil {
					s.Put(c.old)
				}
				stored, gossip := s.Put(c.new)
				want := c.stored || c.name == "more ahead" && !relay // a client's clock may be wrong
				if stored != want || gossip != (c.gossip && relay) {
					t.Errorf("%s, relay %v: stored %v, gossip %v", c.name, relay, stored, gossip)
				}
				if got := s.Get(c.new.ID); stored && got != c.new || !stored && got != c.old {
					t.Errorf("%s, relay %v: kept %v", c.name, relay, got)
				}
			}
		}
		s := memoryStore(t, 999, false, Rules{})
		if stored, _ := s.Put(relayContact(1000, now.Add(24*time.Hour+time.Second))); stored {
			t.Error("a client stores what is signed over a day ahead")
		}
	})
}

// Puts, updates and purges at random; the bucket hashes must always be those of what is there (protocol 1 section 6.5).
func TestBuckets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := random(t)
		s := memoryStore(t, 999, true, Rules{})
		for range 300 {
			n, at := 1000+r.IntN(30), time.Now().Add(-time.Duration(r.IntN(29*24))*time.Hour)
			if r.IntN(2) == 0 {
				s.Put(relayContact(n, at))
			} else {
				s.Put(changed(n, at))
			}
			if r.IntN(20) == 0 {
				time.Sleep(time.Duration(r.IntN(72)) * time.Hour)
				s.Purge(time.Now())
			}
			var want BucketHashes
			for _, c := range s.All() {
				for i, b := range c.Hash() {
					want[c.ID[16]&0x7f][i] ^= b
				}
				if s.Get(c.ID) != c {
					t.Fatal("index")
				}
			}
			if s.Buckets() != want || s.Len() != len(s.All()) || s.Len() != len(s.index) {
				t.Fatal("bucket hashes are not those of the contacts")
			}
		}
		other := memoryStore(t, 998, false, Rules{})
		empty := other.Buckets()
		all := s.Differing(&empty)
		if len(all) != s.Len() || len(s.Raws()) != s.Len() {
			t.Errorf("%d of %d differ from nothing", len(all), s.Len())
		}
		for _, c := range s.All() {
			other.Put(c)
		}
		same := other.Buckets()
		if d := s.Differing(&same); len(d) != 0 {
			t.Errorf("%d differ from the same", len(d))
		}
		victim := s.All()[0]
		same[victim.Bucket()][3] ^= 1
		for _, raw := range s.Differing(&same) {
			if c, err := ParseRelayContact(raw, time.Now(), Rules{}); err != nil || c.Bucket() != victim.Bucket() {
				t.Errorf("%v, %v", c, err)
			}
		}
	})
}

// Protocol 1 section 9.9.
func TestPurge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		private := SignRelayContact(secret(1001), RelayContact{Addr: netip.MustParseAddrPort("10.0.0.1:1"), Time: now})
		for _, c := range []struct {
			name       string
			relay      bool
			rules      Rules
			registered []int // nil: no set
			left       []int
		}{
			{"client", false, Rules{}, []int{1000}, []int{1000, 1002}},
			{"client of a private network", false, Rules{Private: true}, nil, []int{1000, 1001, 1002}},
			{"relay without a set", true, Rules{}, nil, []int{1000, 1002}},
			{"relay with a set", true, Rules{}, []int{1000, 1001, 1003}, []int{1000}},
			{"relay of a private network", true, Rules{Private: true}, []int{1000, 1001}, []int{1000, 1001}},
			{"relay with an empty set", true, Rules{}, []int{}, nil},
		} {
			s := memoryStore(t, 999, c.relay, c.rules)
			for _, rc := range []*RelayContact{relayContact(1000, now), private, relayContact(1002, now), relayContact(1003, now.Add(-RelayLifetime+time.Hour))} {
				if stored, _ := s.Put(rc); !stored {
					t.Fatal(rc.ID)
				}
			}
			if c.registered != nil {
				ids := []key.Public{}
				for _, n := range c.registered {
					ids = append(ids, secret(n).Public())
				}
				s.SetRegistered(ids)
			}
			removed := s.Purge(now.Add(time.Hour))
			var want []key.Public
			for _, n := range c.left {
				want = append(want, secret(n).Public())
			}
			sortKeys(want)
			var got []key.Public
			for _, rc := range s.All() {
				got = append(got, rc.ID)
			}
			sortKeys(got)
			if !slices.Equal(got, want) || removed != 4-len(want) {
				t.Errorf("%s: left %v, want %v, removed %d", c.name, got, want, removed)
			}
		}
		// What was stored while our clock was far behind goes when it is set... back.
		s := memoryStore(t, 999, true, Rules{})
		s.Put(relayContact(1000, now))
		if s.Purge(now.Add(-time.Hour)) != 1 {
			t.Error("a contact from the future stays")
		}
	})
}

// What comes from the network (protocol 1 sections 9.3, 9.7 and 9.8): who is let in.
func TestNetworkSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		a, b, own := relayContact(1000, now), relayContact(1001, now), relayContact(999, now)
		bad := bytes.Clone(relayContact(1002, now).Raw())
		bad[len(bad)-2] ^= 1
		expired := relayContact(1003, now.Add(-RelayLifetime))

		s := memoryStore(t, 999, true, Rules{})
		gossip := func(raw []byte, wantStored, wantGossip, wantErr bool) {
			t.Helper()
			c, g, err := s.Gossip(raw)
			if (c != nil) != wantStored || g != wantGossip || (err != nil) != wantErr {
				t.Errorf("%v, gossip %v, %v", c, g, err)
			}
		}
		gossip(a.Raw(), false, false, false) // no registered set yet
		s.SetRegistered([]key.Public{a.ID, own.ID, secret(1002).Public(), expired.ID, a.ID})
		if len(s.RegisteredIDs()) != 4 || !slices.IsSortedFunc(s.RegisteredIDs(), key.Public.Compare) || !s.Registered(a.ID) || s.Registered(b.ID) {
			t.Error("registered set")
		}
		gossip(a.Raw(), true, true, false)
		gossip(a.Raw(), false, false, false)
		gossip(b.Raw(), false, false, false)
		gossip(own.Raw(), false, false, false)
		gossip(bad, false, false, true)
		gossip(expired.Raw(), false, false, true)
		gossip([]byte("de"), false, false, true)
		// A stale one is not even verified.
		stale := bytes.Clone(a.Raw())
		stale[len(stale)-2] ^= 1
		gossip(stale, false, false, false)

		s = memoryStore(t, 999, false, Rules{})
		s.SetKnown([]key.Public{a.ID, secret(1002).Public(), expired.ID, secret(1004).Public()})
		n, err := s.Fetched([][]byte{b.Raw(), expired.Raw(), a.Raw(), a.Raw(), bad, relayContact(1004, now).Raw()})
		if n != 1 || err == nil || s.Len() != 1 || s.Get(a.ID) == nil || s.Get(b.ID) != nil {
			t.Errorf("fetched %d, %v", n, err)
		}
		if n, err := s.Fetched([][]byte{relayContact(1004, now).Raw()}); n != 1 || err != nil {
			t.Errorf("fetched %d, %v", n, err)
		}
		if n := s.Bootstrapped([]*RelayContact{b, expired}, true); n != 1 || !s.IsKnown(b.ID) || len(s.Known()) != 5 {
			t.Errorf("bootstrapped %d, known %v", n, s.Known())
		}
		if n := s.Bootstrapped([]*RelayContact{relayContact(1010, now), changed(1000, now.Add(MinRelayUpdate))}, false); n != 1 || s.IsKnown(secret(1010).Public()) || s.Len() != 3 {
			t.Errorf("bootstrapped %d without belief, %d contacts", n, s.Len())
		}
		s.SetKnown([]key.Public{b.ID})
		if got := s.Random(10, nil); len(got) != 1 || got[0].ID != b.ID {
			t.Errorf("%d relays drawn, not only the known one", len(got))
		}
		s.SetKnown(nil)
		if s.Len() != 3 || len(s.Known()) != 0 {
			t.Error("contacts went with the known set")
		}

		s = memoryStore(t, 999, true, Rules{})
		if n := s.Bootstrapped([]*RelayContact{a, b, own}, false); n != 2 {
			t.Errorf("a relay without a set bootstrapped %d", n)
		}
		s = memoryStore(t, 999, true, Rules{})
		s.SetRegistered([]key.Public{b.ID})
		if n := s.Bootstrapped([]*RelayContact{a, b, own}, false); n != 1 || s.Get(b.ID) == nil {
			t.Errorf("a relay with a set bootstrapped %d", n)
		}
		s.SetBootstraps([]*RelayContact{a, own, b})
		if got := s.Bootstraps(); len(got) != 2 || slices.Contains(got, own) {
			t.Errorf("bootstraps %v", got)
		}
		if s.Rules() != (Rules{}) {
			t.Error("rules")
		}
	})
}

// Every contact must be drawn as often as any other, at every place. The bound is eight standard deviations.
func TestRandom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const contacts, draws, n = 12, 12000, 3
		s := memoryStore(t, 1000, true, Rules{})
		list, _ := relayContacts(contacts, time.Now())
		for _, c := range list {
			s.Put(c)
		}
		s.Put(relayContact(1500, time.Now().Add(-RelayLifetime+time.Second)))
		time.Sleep(time.Second) // expired now, not purged
		without := list[5]
		ok := func(c *RelayContact) bool {
			s.Put(c) // takes the lock: must not be held
			return c != without
		}
		var counts [n]map[key.Public]int
		for i := range counts {
			counts[i] = make(map[key.Public]int)
		}
		for range draws {
			got := s.Random(n, ok)
			if len(got) != n {
				t.Fatal(len(got))
			}
			for i, c := range got {
				counts[i][c.ID]++
				if slices.Contains(got[:i], c) {
					t.Fatal("twice")
				}
			}
		}
		const eligible = contacts - 2 // not ourselves, not without
		p := 1.0 / eligible
		for i := range counts {
			if len(counts[i]) != eligible {
				t.Errorf("place %d: %d different", i, len(counts[i]))
			}
			for id, c := range counts[i] {
				if dev := math.Abs(float64(c)-draws*p) / math.Sqrt(draws*p*(1-p)); dev > 8 {
					t.Errorf("place %d: %v drawn %d times, %.1f deviations", i, id, c, dev)
				}
			}
		}
		for n, want := range map[int]int{-1: 0, 0: 0, 1: 1, 100: eligible + 1} {
			if got := s.Random(n, nil); len(got) != want {
				t.Errorf("Random(%d): %d", n, len(got))
			}
		}
		if len(memoryStore(t, 1, false, Rules{}).Random(3, nil)) != 0 {
			t.Error("from nothing")
		}
		client := memoryStore(t, 1000, false, Rules{})
		client.Put(list[0])
		if len(client.Random(1, nil)) != 1 {
			t.Error("a client leaves out a relay with its own key")
		}
	})
}

func TestStoreFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memoryStore(t, 999, true, Rules{})
		for i := range MaxRelays {
			id := key.Public{byte(i), byte(i >> 8)}
			s.index[id] = len(s.contacts)
			s.contacts = append(s.contacts, &RelayContact{ID: id, Time: time.Now()})
		}
		if stored, gossip := s.Put(relayContact(1000, time.Now())); stored || gossip {
			t.Error("stored in a full store")
		}
		if stored, _ := s.Put(&RelayContact{ID: key.Public{1}, Time: time.Now().Add(MinRelayUpdate)}); !stored {
			t.Error("a full store takes no update")
		}
	})
}

func TestLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data", "nodedb")
		now := time.Now()
		write := func(name string, data []byte) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		open := func(relay bool, log *slog.Logger) *Store {
			t.Helper()
			s, err := OpenStore(dir, secret(999).Public(), relay, Rules{}, log)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		open(false, nil) // makes the folder
		good, other, expired := relayContact(1000, now), relayContact(1001, now), relayContact(1002, now.Add(-RelayLifetime))
		private := SignRelayContact(secret(1003), RelayContact{Addr: netip.MustParseAddrPort("10.0.0.1:1"), Time: now})
		name := func(n int) string { return secret(n).Public().String() + suffix }
		future := relayContact(1009, now.Add(30*24*time.Hour))
		write(name(1000), good.Raw())
		write(name(1001), relayContact(1004, now).Raw())                                             // another's
		write(name(1002), expired.Raw())                                                             // expired
		write(name(1003), private.Raw())                                                             // not valid
		write(name(1004), nil)                                                                       // empty
		write(name(1005), append(bytes.Clone(relayContact(1005, now).Raw()), make([]byte, 4096)...)) // too large
		write(strings.ToUpper(secret(1001).Public().String())+suffix, other.Raw())                   // not the canonical name
		write("."+name(1006)+"123456", other.Raw())                                                  // cut short
		write(name(1009), future.Raw())
		kept := []string{name(1000), name(1009), "README", name(1007) + ".bak", "." + name(1007), secret(1007).Public().String() + ".zrtt", "short" + suffix}
		for _, n := range kept[2:] {
			write(n, []byte("x"))
		}
		for _, n := range []string{name(1008) + ".bad", "self" + suffix} {
			kept = append(kept, n)
		}
		if err := os.Mkdir(filepath.Join(dir, name(1008)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(name(1000), filepath.Join(dir, "self"+suffix)); err != nil {
			t.Fatal(err)
		}
		var logged bytes.Buffer
		s := open(false, slog.New(slog.NewTextHandler(&logged, nil)))
		if s.Len() != 1 || s.Get(good.ID) == nil || !slices.Equal(s.Known(), []key.Public{good.ID}) || !bytes.Equal(s.Get(good.ID).Raw(), good.Raw()) {
			t.Errorf("loaded %v, known %v", s.All(), s.Known())
		}
		if !strings.Contains(logged.String(), "count=1 removed=8 signed_in_the_future=1") {
			t.Errorf("log: %s", &logged)
		}
		for n := 1000; n < 1010; n++ {
			if strings.Contains(logged.String(), secret(n).Public().String()) {
				t.Error("the log names a relay")
			}
		}
		slices.Sort(kept)
		if got := files(t, dir); !slices.Equal(got, kept) {
			t.Errorf("left %q, want %q", got, kept)
		}
		if s := open(true, nil); s.Len() != 1 || len(s.Known()) != 0 {
			t.Error("a relay has known ids")
		}
		if _, err := OpenStore(filepath.Join(dir, "README"), key.Public{}, false, Rules{}, nil); err != nil {
			t.Errorf("a file as the folder: %v", err)
		}
		if got := files(t, dir); !slices.Contains(got, "README") || !slices.Contains(got, "README.bad") {
			t.Errorf("then there are %q", got)
		}
	})
}

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		names = append(names, f.Name())
	}
	slices.Sort(names)
	return names
}

// The writer: what the store has ends up on disk, also what changed last, and a broken disk costs nothing but the files.
func TestSave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "nodedb")
		var logged bytes.Buffer
		s, err := OpenStore(dir, secret(999).Public(), true, Rules{}, slog.New(slog.NewTextHandler(&logged, nil)))
		if err != nil {
			t.Fatal(err)
		}
		onDisk := func() string {
			names := slices.DeleteFunc(files(t, dir), func(n string) bool { return n == selfLink }) // TestSelfLink
			for _, n := range names {
				b, err := os.ReadFile(filepath.Join(dir, n))
				id, _ := key.ParsePublic(strings.TrimSuffix(n, suffix))
				if c := s.Get(id); err != nil || c == nil || !bytes.Equal(c.Raw(), b) {
					t.Errorf("%s is not the store's: %v", n, err)
				}
				if info, err := os.Stat(filepath.Join(dir, n)); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%v, %v", info.Mode(), err)
				}
			}
			return fmt.Sprint(len(names), " of ", s.Len())
		}
		want := func(want string) {
			t.Helper()
			synctest.Wait()
			if got := onDisk(); got != want {
				t.Errorf("on disk: %s, want %s", got, want)
			}
		}
		s.Put(relayContact(1000, time.Now().Add(-time.Hour))) // before Run
		want("0 of 1")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		want("1 of 1")
		s.Put(changed(1000, time.Now().Add(-time.Minute)))
		s.Put(relayContact(1001, time.Now()))
		want("2 of 2")
		s.SetRegistered([]key.Public{secret(1001).Public(), secret(1002).Public()})
		s.Purge(time.Now())
		want("1 of 1")

		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Fatal(err)
		}
		s.Put(relayContact(1002, time.Now()))
		s.Put(changed(1001, time.Now().Add(time.Minute)))
		synctest.Wait()
		if !strings.Contains(logged.String(), "level=WARN") || strings.Contains(logged.String(), secret(1001).Public().String()) || strings.Contains(logged.String(), secret(1002).Public().String()) {
			t.Errorf("log: %s", &logged)
		}
		if err := os.Rename(dir+".away", dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(diskRetry)
		want("2 of 2")

		s.Put(changed(1002, time.Now())) // waits when Run ends
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want("2 of 2")
		again, err := OpenStore(dir, secret(999).Public(), true, Rules{}, nil)
		if err != nil || again.Buckets() != s.Buckets() || again.Len() != 2 {
			t.Errorf("loaded again: %d, %v", again.Len(), err)
		}
		// Without a disk, Run waits.
		ctx, cancel = context.WithCancel(t.Context())
		go func() { done <- memoryStore(t, 1, true, Rules{}).Run(ctx) }()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestDirtyBounded(t *testing.T) {
	s, err := OpenStore(t.TempDir(), key.Public{}, true, Rules{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxDirty + 5 {
		s.disk.touch(key.Public{byte(i), byte(i >> 8), byte(i >> 16)})
	}
	s.disk.touch(key.Public{}) // noted already
	if ids, skipped := s.disk.take(); len(ids) != maxDirty || skipped != 5 {
		t.Errorf("%d noted, %d skipped", len(ids), skipped)
	}
}

// A relay's own contact is found by a link, whether or not it has been written yet; a client has none.
func TestSelfLink(t *testing.T) {
	sec := secret(1)
	for _, relay := range []bool{true, false} {
		dir := filepath.Join(t.TempDir(), "nodedb")
		for range 2 { // the second start finds the first one's
			if _, err := OpenStore(dir, sec.Public(), relay, Rules{}, nil); err != nil {
				t.Fatal(err)
			}
		}
		to, err := os.Readlink(filepath.Join(dir, "self.signed"))
		if relay && (err != nil || to != sec.Public().String()+".signed") || !relay && err == nil {
			t.Errorf("relay %v: %q, %v", relay, to, err)
		}
	}
}
