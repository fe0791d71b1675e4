package session

import (
	"errors"
	"slices"
	"testing"
	"time"

	"lokinetd/router/netdb"
	"lokinetd/router/path"
)

// published is what a location holds of a node.
func (f *fabric) published(n *node, location int) *netdb.ClientContact {
	k := n.sec.Public()
	blinded, err := k.Blind()
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	sealed := f.stored[location][blinded]
	if sealed == nil {
		return nil
	}
	cc, err := netdb.OpenClientContact(sealed, k)
	if err != nil {
		f.t.Fatal(err)
	}
	return cc
}

func TestPublish(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		srv := []netdb.SRV{{Service: "_http._tcp", Port: 80, Target: ""}}
		a := f.client(alice, func(c *Config) { c.SRV = srv })
		start := time.Now()
		f.run(time.Second)
		for n := range netdb.Locations {
			cc := f.published(a, n)
			if cc == nil || len(cc.Intros) != 4 || cc.Flags != netdb.FlagIPv4|netdb.FlagPFS || len(cc.SRV) != 1 {
				t.Fatalf("location %d: %+v", n, cc)
			}
			for _, i := range cc.Intros {
				if !slices.ContainsFunc(a.pools[0].all(), func(p *fakePath) bool { return p.end == i.Hop && p.at == i.Relay && p.until.Unix() == i.Expiry.Unix() }) {
					t.Fatal("an intro is of no path")
				}
			}
		}
		p := a.table.Publication()
		if p.Locations != 4 || p.Intros != 4 || p.Err != nil || !p.Reachable(time.Now()) || p.Expiry != start.Add(20*time.Minute+250*time.Millisecond) {
			t.Fatalf("%+v", p)
		}
		if last := a.known[len(a.known)-1]; last != p || a.known[0].Locations != 0 {
			t.Fatalf("told %+v", a.known)
		}
		f.run(time.Minute)
		if a.table.Stats().Publications != 1 {
			t.Fatal("published again without a reason")
		}

		// A path goes, and there is none in its place: half a second later without it. With the next one when that is there.
		dead := a.pools[0].all()[1]
		a.pools[0].barren = true
		dead.kill(true)
		f.run(publishLost - 250*time.Millisecond)
		if a.table.Stats().Publications != 1 {
			t.Fatal("not waited for another path")
		}
		f.run(750 * time.Millisecond)
		if cc := f.published(a, 3); len(cc.Intros) != 3 || slices.ContainsFunc(cc.Intros, func(i netdb.Intro) bool { return i.Hop == dead.end }) {
			t.Fatalf("%+v", cc)
		}
		a.pools[0].barren = false
		f.run(publishSpacing)
		if cc := f.published(a, 3); len(cc.Intros) != 4 {
			t.Fatalf("%+v", cc)
		}

		// Paths come and go all the time: every 5 s.
		before := a.table.Stats().Publications
		for range 60 {
			a.pools[0].all()[1].kill(true)
			f.run(time.Second)
		}
		if n := a.table.Stats().Publications - before; n < 10 || n > 60/5+1 {
			t.Fatalf("published %d times in a minute", n)
		}
		f.run(6 * time.Second)

		// Something else to say.
		a.table.SetContact(netdb.FlagIPv4|netdb.FlagIPv6, nil)
		f.run(6 * time.Second)
		if cc := f.published(a, 0); cc.Flags != netdb.FlagIPv4|netdb.FlagIPv6|netdb.FlagPFS || cc.SRV != nil {
			t.Fatalf("%+v", cc)
		}

		// Paths expire: the published contact is never older than they are.
		for range 40 {
			f.run(time.Minute)
			cc := f.published(a, 0)
			for _, i := range cc.Intros {
				if i.Expired(time.Now()) {
					t.Fatal("an expired intro is published")
				}
			}
		}
		if s := a.table.Stats(); s.Publications > 60 {
			t.Errorf("%d publications", s.Publications)
		}
	})
}

// TestPublishEarly: the first paths come late: two seconds after the first the contact goes out with what there is.
func TestPublishEarly(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a := f.client(alice, nil)
		a.pools[0].want = 1
		f.run(time.Second)
		if f.published(a, 0) != nil {
			t.Fatal("published at once")
		}
		f.run(2 * time.Second)
		if cc := f.published(a, 0); cc == nil || len(cc.Intros) != 1 {
			t.Fatalf("%+v", cc)
		}
		a.pools[0].want = 2
		f.run(14 * time.Second)
		if cc := f.published(a, 0); len(cc.Intros) != 1 {
			t.Fatal("published soon")
		}
		f.run(3 * time.Second)
		if cc := f.published(a, 0); len(cc.Intros) != 2 {
			t.Fatalf("%+v", cc)
		}
		for _, p := range a.pools[0].all() {
			a.pools[0].barren = true
			p.kill(true)
		}
		f.run(time.Minute)
		if s := a.table.Stats(); s.Publications != 2 {
			t.Fatal("published nothing, literally")
		}
	})
	inBubble(t, func(t *testing.T, f *fabric) {
		a := f.client(alice, func(c *Config) { c.Publish = false })
		f.run(time.Minute)
		if f.published(a, 0) != nil || len(a.known) != 0 {
			t.Fatal("published although it is not to be")
		}
	})
}

// TestPublishFails: locations that fail are asked again, they alone, and less and less often.
func TestPublishFails(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		var tries [netdb.Locations]int
		broken := true
		f.refuse = func(method string, n int) error {
			if method != netdb.MethodPublishCC {
				return nil
			}
			tries[n]++
			switch {
			case !broken:
			case n == 1:
				return &netdb.ReplyStatus{Text: netdb.StatusSlowClock}
			case n == 2:
				return errors.New("edge lost")
			}
			return nil
		}
		a := f.client(alice, nil)
		f.run(2 * time.Second)
		if p := a.table.Publication(); p.Locations != 2 || p.Err == nil || !p.Reachable(time.Now()) {
			t.Fatalf("%+v", p)
		}
		f.run(2 * time.Minute)
		if tries[0] != 1 || tries[3] != 1 || tries[1] < 4 || tries[1] > 6 || tries[2] != tries[1] {
			t.Fatal(tries)
		}
		broken = false
		f.run(time.Minute)
		if p := a.table.Publication(); p.Locations != 4 || p.Err != nil {
			t.Fatalf("%+v", p)
		}
	})
}

// TestPublishLost: a location that fails for minutes does not keep us from saying that a path is lost; nor does one that is told over a path that dies under it.
func TestPublishLost(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		f.refuse = func(method string, n int) error {
			if method == netdb.MethodPublishCC && n == 1 {
				return &netdb.ReplyStatus{Text: netdb.StatusError}
			}
			return nil
		}
		a := f.client(alice, nil)
		f.run(3 * time.Minute)
		dead := a.pools[0].all()[1]
		dead.kill(true)
		f.run(time.Second)
		if cc := f.published(a, 0); slices.ContainsFunc(cc.Intros, func(i netdb.Intro) bool { return i.Hop == dead.end }) {
			t.Error("the lost path is still published")
		}

		f.mu.Lock()
		f.refuse = nil
		f.mu.Unlock()
		f.run(3 * time.Minute)
		for _, p := range a.pools[0].all() {
			p.blind(true)
		}
		a.table.SetContact(netdb.FlagIPv6, nil)
		f.run(time.Second)
		for _, p := range a.pools[0].all() {
			p.kill(true)
		}
		f.run(12 * time.Second)
		if p := a.table.Publication(); p.Locations != netdb.Locations {
			t.Errorf("%+v", p)
		}
	})
}

// TestPush: who called is told of a new contact, and goes on without a look-up.
func TestPush(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		before := a.contactOf(b)
		f.run(6 * time.Second)
		cur := a.outbound().current(time.Now()).(*fakePath)
		var other *fakePath
		for _, p := range b.pools[0].all() {
			if p.end != cur.peer {
				other = p
			}
		}
		other.kill(true)
		f.run(6 * time.Second)
		after := a.contactOf(b)
		if !after.SignedAt.After(before.SignedAt) || slices.ContainsFunc(after.Intros, func(i netdb.Intro) bool { return i.Hop == other.end }) {
			t.Fatal("not told")
		}
		if a.table.Stats().Lookups != 1 {
			t.Fatal("looked up")
		}
		if got := a.outbound().intros; len(got) != len(after.Intros) {
			t.Fatal("the pool was not told")
		}
		// A forged one changes nothing.
		a.table.told(b.sec.Public(), []byte("de"), time.Now())
		forged, _ := (&netdb.ClientContact{Intros: after.Intros}).Seal(carol, time.Now().Add(time.Hour))
		a.table.told(b.sec.Public(), forged, time.Now())
		if a.contactOf(b) != after {
			t.Fatal("forged")
		}
	})
}

// TestContact: the one signed last wins, look-ups are shared and remembered.
func TestContact(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		k := b.sec.Public()
		blinded, _ := k.Blind()
		newest := *f.published(b, 0)
		newest.Intros = newest.Intros[:2]
		f.run(time.Second)
		sealed, err := newest.Seal(b.sec, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		f.stored[2][blinded] = sealed
		delete(f.stored[1], blinded)
		f.mu.Unlock()
		errs := make(chan error, 5)
		for range 5 {
			go func() {
				_, err := a.table.Contact(t.Context(), k)
				errs <- err
			}()
		}
		f.run(500 * time.Millisecond)
		for range 5 {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
		if cc, err := a.table.Contact(t.Context(), k); err != nil || len(cc.Intros) != 2 {
			t.Fatal(cc, err)
		}
		if f.asked[netdb.MethodFindCC] != 4 {
			t.Fatal("asked", f.asked)
		}
		// No answer at all: asked again after 1, 2, 3 ... s, and never said to be missing.
		f.refuse = func(method string, n int) error {
			if method == netdb.MethodFindCC {
				return errLost
			}
			return nil
		}
		a.table.Send(keyAddr(carol), ipPacket("x"))
		f.run(9 * time.Second)
		if len(a.lost) != 0 || a.table.Stats().Lookups < 4 {
			t.Fatal(a.lost, a.table.Stats().Lookups)
		}
		f.run(2 * time.Second)
		if len(a.lost) != 1 || !errors.Is(a.why[0], ErrTimeout) {
			t.Fatal(a.why)
		}
		// Unused and expired entries go.
		f.run(31 * time.Minute)
		if len(a.table.contacts) != 0 {
			t.Fatal(len(a.table.contacts))
		}
	})
	inBubble(t, func(t *testing.T, f *fabric) {
		a := f.client(alice, func(c *Config) { c.Limits.Contacts = 10 })
		now := time.Now()
		a.table.lock()
		for i := range byte(50) {
			a.table.contact(keyAddr(secretOf(i)).Key, now.Add(time.Duration(i)))
		}
		if len(a.table.contacts) != 10 || a.table.contacts[keyAddr(secretOf(49)).Key] == nil {
			t.Error(len(a.table.contacts))
		}
		a.table.unlock()
	})
}

// TestStaleContact: a contact is looked up again after ten minutes, and the session moves to the intros that are left.
func TestStaleContact(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		for range 45 * 60 {
			a.send(b, "?x")
			f.run(time.Second)
		}
		if n := len(a.take()); n < 45*60-5 {
			t.Errorf("%d of %d answered", n, 45*60)
		}
		if s := b.table.Stats(); s.InitsTaken != 1 || s.SwitchesTaken < 2 {
			t.Errorf("%+v", s)
		}
	})
}

// TestPublishDenied: relays at the end of paths confirm publications and keep them, and deny what is there, or show it to who told them. The contact gets to all locations and is found all the same, when none of the relays at
// the ends of our paths is honest too; what does not help is done a few times only, and said.
func TestPublishDenied(t *testing.T) {
	for what, c := range map[string]struct {
		liars    int   // of the four ends of a client's paths
		swallows []int // or these locations, behind whichever path
		echo     bool
	}{
		"none": {}, "one lies": {liars: 1}, "two lie": {liars: 2}, "all lie": {liars: 4}, "all lie and remember": {liars: 4, echo: true},
		"a location": {swallows: []int{2}}, "all locations": {swallows: []int{0, 1, 2, 3}},
	} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fabric) {
				asked := 0
				if c.echo {
					f.echo = make(map[*fakePath][]byte)
				}
				f.lie = func(p *fakePath, location int) bool {
					asked++
					return slices.Contains(c.swallows, location) || slices.Contains(f.pivots[1:1+c.liars], p.at)
				}
				a := f.client(alice, nil)
				// 1.5 s until a check, at most, each after what takes some tenths of a second
				f.run(publishChecks * 2 * time.Second)
				honest := netdb.Locations - len(c.swallows)
				if p := a.table.Publication(); p.Locations != honest || (p.Err == nil) != (honest == netdb.Locations) || p.Reachable(time.Now()) != (honest > 0) {
					t.Fatalf("%+v", p)
				}
				for i := range netdb.Locations {
					if (f.published(a, i) != nil) == slices.Contains(c.swallows, i) {
						t.Errorf("location %d: stored: %v", i, f.published(a, i) != nil)
					}
				}
				if denied := a.table.Stats().Denied; (denied > 0) != (len(c.swallows) > 0) && c.liars == 0 {
					t.Errorf("%d denied", denied)
				}
				before := asked
				if f.run(time.Minute); honest == 0 {
					if rounds := (asked - before) / (4 * 2 * publishChecks); rounds < 1 || rounds > 3 {
						t.Errorf("told again %d times in a minute", rounds)
					}
					return
				}
				if asked > before || asked > 4*2*publishChecks {
					t.Errorf("asked %d and %d times", before, asked-before)
				}
				b := f.client(bob, func(c *Config) { c.Publish = false })
				f.run(time.Second)
				if _, err := b.table.Contact(t.Context(), alice.Public()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestInform: a remote that goes to and fro between paths gets our contact at most once in 5 s, and after that time once more, on the path that it is on then. A new contact waits for nothing.
func TestInform(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		f.run(6 * time.Second)
		told := 0
		f.hook.Lock()
		f.lose = func(m *flying) bool {
			if m.from == b.sec.Public() && m.what == "control" && len(m.msg) > len(b.table.publish.sealed) {
				told++
			}
			return false
		}
		f.hook.Unlock()
		s := b.table.remotes[a.addr()].current.Load()
		w := s.route.Load()
		for range 40 {
			w = &route{via: w.via, pivot: path.ID{w.pivot[0] + 1}}
			b.table.reroute(s, w.via, w.pivot, time.Now())
			f.run(250 * time.Millisecond)
		}
		if told < 2 || told > 3 {
			t.Errorf("told %d times in 10 s", told)
		}
		f.run(6 * time.Second)
		before := told
		b.table.reroute(s, w.via, path.ID{1}, time.Now())
		b.table.reroute(s, w.via, path.ID{2}, time.Now())
		b.table.SetContact(netdb.FlagIPv6, nil)
		f.run(time.Second)
		if told != before+2 {
			t.Errorf("told %d times at a switch and of a new contact", told-before)
		}
		b.table.reroute(s, w.via, path.ID{3}, time.Now())
		f.run(time.Second)
		if told != before+2 {
			t.Error("told soon after")
		}
		f.run(5 * time.Second)
		if told != before+3 {
			t.Errorf("told %d times in the end", told-before)
		}
	})
}
