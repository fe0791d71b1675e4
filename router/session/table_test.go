package session

// Sessions as they should go.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/path"
)

func want(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s: got %q, want %q", what, got, want)
	}
}

// pair makes two clients that have published their contacts, a's key the smaller one.
func (f *fabric) pair() (a, b *node) {
	x, y := alice, bob
	if x.Public().Compare(y.Public()) > 0 {
		x, y = y, x
	}
	a, b = f.client(x, nil), f.client(y, nil)
	f.wait(5*time.Second, "contacts published", func() bool {
		return a.table.Publication().Locations == 4 && b.table.Publication().Locations == 4
	})
	return a, b
}

// settled brings a pair to an established session that a called for.
func (f *fabric) settled() (a, b *node) {
	a, b = f.pair()
	b.echo = true
	a.send(b, "?hello")
	f.wait(3*time.Second, "an answer", func() bool { return len(a.take()) == 1 })
	want(f.t, "b", b.take(), "?hello")
	return a, b
}

func TestFirstPacket(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		b.echo = true
		start := time.Now()
		if !a.send(b, "?one") || !a.send(b, "?two") {
			t.Fatal("refused")
		}
		if l := a.with(b); len(l) != 1 || l[0].State != Seeking || l[0].Queued != 2 || l[0].Inbound {
			t.Fatalf("%+v", l)
		}
		f.wait(3*time.Second, "answers", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.got) == 2 })
		want(t, "a", a.take(), "!one", "!two")
		want(t, "b", b.take(), "?one", "?two")
		// Look-up, init, accept, packet, answer: 2+1+1+1+1 latencies, and paths built at once.
		if d := time.Since(start); d > 750*time.Millisecond {
			t.Errorf("took %v", d)
		}
		la, lb := a.with(b), b.with(a)
		if len(la) != 1 || len(lb) != 1 || la[0].State != Established || lb[0].State != Established || la[0].Inbound || !lb[0].Inbound || !la[0].Current || !lb[0].Current {
			t.Fatalf("a %+v\nb %+v", la, lb)
		}
		if la[0].PacketsOut != 2 || la[0].PacketsIn != 2 || lb[0].BytesIn != 48 || len(la[0].Hops) != 1 || la[0].PathExpiry.IsZero() {
			t.Fatalf("a %+v\nb %+v", la, lb)
		}
		s := a.table.Stats()
		if s.InitsSent != 1 || s.AcceptsTaken != 1 || s.PacketsOut != 2 || s.PacketsIn != 2 || s.Lookups != 1 {
			t.Fatalf("%+v", s)
		}
		if err := a.table.Connect(context.Background(), b.addr()); err != nil {
			t.Fatal(err)
		}
		if err := b.table.Connect(context.Background(), a.addr()); err != nil {
			t.Fatal(err)
		}
		if b.table.Stats().Lookups != 0 {
			t.Fatal("b called back")
		}
	})
}

func TestRelaySession(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, r := f.client(alice, nil), f.relay(carol)
		r.echo = true
		a.send(r, "?one")
		f.run(time.Second)
		want(t, "a", a.take(), "!one")
		want(t, "relay", r.take(), "?one")
		if l := r.table.List(); len(l) != 1 || l[0].Remote != a.addr() || !l[0].Inbound || l[0].Hops != nil {
			t.Fatalf("%+v", l)
		}
		// The client goes to its other path.
		p := a.outbound()
		p.current(time.Now()).(*fakePath).kill(true)
		a.send(r, "?two")
		f.run(time.Second)
		want(t, "a", a.take(), "!two")
		if s := r.table.Stats(); s.SwitchesTaken == 0 || s.InitsTaken != 1 {
			t.Fatalf("%+v", s)
		}
		// A relay calls nobody, and sessions end there too: half a minute after the last ping.
		f.run(34 * time.Second)
		if l := append(r.table.List(), a.table.List()...); len(l) != 0 {
			t.Fatalf("%+v", l)
		}
		if r.table.Send(a.addr(), ipPacket("x")) {
			t.Fatal("sent without a session")
		}
		if !errors.Is(r.why[0], ErrUnreachable) {
			t.Fatal(r.why)
		}
		if err := r.table.Connect(context.Background(), a.addr()); err != ErrUnreachable {
			t.Fatal(err)
		}
	})
}

func TestQueue(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.pair()
		var sent []string
		for i := range queueLimit + 5 {
			sent = append(sent, fmt.Sprint(i))
			a.send(b, sent[i])
		}
		f.run(time.Second)
		want(t, "b", b.take(), sent[5:]...)
		if n := a.table.Stats().DropQueue; n != 5 {
			t.Fatal(n)
		}
	})
}

// TestNowhere: who cannot be reached is said at once, and packets come back.
func TestNowhere(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a := f.client(alice, nil)
		old := f.client(bob, func(c *Config) { c.Publish = false })
		quiet := key.Address{Key: carol.Public()}
		f.run(time.Second)
		a.send(&node{sec: carol, table: old.table}, "x")
		f.run(time.Second)
		want(t, "given back", a.lost, "x")
		if !errors.Is(a.why[0], ErrNotFound) {
			t.Fatal(a.why)
		}
		before := f.asked[netdb.MethodFindCC]
		if a.table.Send(quiet, ipPacket("y")) {
			t.Fatal("taken although there is no contact")
		}
		if err := a.table.Connect(t.Context(), quiet); err != ErrNotFound {
			t.Fatal(err)
		}
		if _, err := a.table.Contact(t.Context(), quiet.Key); err != ErrNotFound {
			t.Fatal(err)
		}
		if len(a.table.List()) != 0 || f.asked[netdb.MethodFindCC] != before || before != 12 {
			t.Fatal("not remembered", before)
		}
		f.run(missingTime)
		done := make(chan error, 1)
		go func() { done <- a.table.Connect(context.Background(), quiet) }()
		f.run(time.Second)
		if err := <-done; err != ErrNotFound || f.asked[netdb.MethodFindCC] != before+12 {
			t.Fatal("not asked again", err)
		}

		for what, c := range map[string]struct {
			to  key.Address
			err error
		}{
			"no such relay":     {key.Address{Key: carol.Public(), Kind: key.Relay}, ErrUnreachable},
			"not a key":         {key.Address{Key: key.Public{1, 2, 3}}, ErrNotFound},
			"not a relay's key": {key.Address{Key: key.Public{1, 2, 3}, Kind: key.Relay}, ErrNotFound},
			"ourselves":         {a.addr(), ErrUnreachable},
		} {
			if err := a.table.Connect(t.Context(), c.to); err != c.err {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

// TestIdle: 30 s without a message either way; garbage and copies do not count.
func TestIdle(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		var copy *flying
		f.lose = func(m *flying) bool {
			if m.what == "data" {
				copy = m
			}
			return false
		}
		a.send(b, "last")
		for range 30 {
			f.run(time.Second)
			copy.land() // a copy
			bad := *copy
			bad.msg = slices.Clone(copy.msg)
			bad.msg[3] ^= 1
			bad.on.up(&bad, path.TypeData)
		}
		f.run(4 * time.Second) // half a minute after the last ping
		if la, lb := a.with(b), b.with(a); len(la)+len(lb) != 0 {
			t.Fatalf("a %+v\nb %+v", la, lb)
		}
		want(t, "b", b.take(), "last")
		if s := b.table.Stats(); s.DropReplayed < 29 || s.DropForged < 28 {
			t.Fatalf("%+v", s)
		}
		if len(a.table.remotes)+len(b.table.remotes)+len(a.table.pending) != 0 || !a.outbound().closed {
			t.Fatal("something is left")
		}
		// One way only keeps both ends.
		a.send(b, "again")
		for range 50 {
			f.run(time.Second)
			a.send(b, "on")
		}
		f.run(time.Second)
		if got := b.take(); len(got) != 51 {
			t.Fatal(len(got), a.with(b), b.with(a))
		}
		// We cannot know that somebody listens, and start over after 2.5, 5, 10, 20 s.
		if s := b.table.Stats(); s.InitsTaken != 2+4 {
			t.Fatalf("%+v", s)
		}
	})
}

// TestSeekAtOnce: hundreds of calls at once look up their contacts a few at a time, each once, and all at the rate that the answers come.
func TestSeekAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a := f.client(alice, nil)
		f.run(4 * time.Second)
		under, most := 0, 0
		f.mu.Lock()
		f.refuse = func(method string, _ int) error {
			if method == netdb.MethodFindCC {
				under++
			}
			return nil
		}
		f.mu.Unlock()
		const calls = 300
		for range calls {
			go a.table.Connect(t.Context(), key.Address{Key: key.Generate().Public()})
		}
		for range 40 {
			f.run(2 * f.latency)
			f.mu.Lock()
			most, under = max(most, under), 0
			f.mu.Unlock()
		}
		if s := a.table.Stats(); s.Lookups != calls || most > 3*netdb.Locations*seekAtOnce {
			t.Errorf("%d look-ups, up to %d requests in a round trip", s.Lookups, most)
		}
	})
}

// TestSeekOrder: names that nobody answers for are looked up in their turn, the latest first, and keep neither each other waiting for longer than that nor a remote that is in use. There are no more of
// them than contacts are kept: the oldest gives way.
func TestSeekOrder(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		c := f.client(carol, nil)
		f.run(4 * time.Second)
		a.table.lock()
		a.table.c.Limits.Contacts = 73
		a.table.unlock()
		var first [72]time.Duration // when a name was looked up first
		var names [len(first)]key.Public
		number := make(map[key.Public]int)
		for i := range names {
			names[i] = key.Generate().Public()
			blinded, err := names[i].Blind()
			if err != nil {
				t.Fatal(err)
			}
			number[blinded] = i
		}
		start := time.Now()
		f.mu.Lock()
		f.hole = func(blinded key.Public) bool {
			i, ok := number[blinded]
			if ok && first[i] == 0 {
				first[i] = time.Since(start)
			}
			return ok
		}
		f.mu.Unlock()
		ctx, cancel := context.WithCancel(t.Context())
		var failed [len(names)]error
		for i, k := range names {
			go func() { _, failed[i] = a.table.Contact(ctx, k) }()
			time.Sleep(time.Millisecond)
		}
		f.run(3 * time.Second)
		live := make(chan error, 1)
		go func() { live <- a.table.Connect(t.Context(), c.addr()) }() // one name too many
		synctest.Wait()
		for i, err := range failed {
			if err != map[bool]error{true: ErrBusy}[i == seekAtOnce-seekKept] {
				t.Errorf("name %d: %v", i, err)
			}
		}
		a.table.lock()
		before := time.Now()
		a.table.refresh(a.table.remotes[b.addr()].call, before)
		e := a.table.contacts[b.sec.Public()]
		if len(a.table.contacts) != 73 {
			t.Errorf("%d contacts", len(a.table.contacts))
		}
		a.table.unlock()
		f.run(time.Second)
		a.table.lock()
		if e.at.Before(before) {
			t.Error("who is in use was not looked up")
		}
		a.table.unlock()
		f.run(8 * time.Second)
		if err := <-live; err != nil || len(a.table.contacts) != 73 {
			t.Errorf("one that is there: %v", err)
		}
		f.run(12 * time.Second)
		f.mu.Lock()
		const turn = seekAtOnce - seekKept
		for i, at := range first {
			want := 0
			switch {
			case i == turn:
				if at != 0 {
					t.Errorf("name %d was looked up although it had given way", i)
				}
				continue
			case i > turn:
				want = (len(first) + turn - 1 - i) / turn
			}
			if got := int(at.Seconds() / 10); got != want || at == 0 {
				t.Errorf("name %d was looked up after %v", i, at)
			}
		}
		f.mu.Unlock()
		cancel()
	})
}

// TestDeadNames: while hundreds of names wait that do not exist, or that nobody answers for, more than contacts are kept, those that are there are found when they are asked for, either way; and all of it has
// its bounds.
func TestDeadNames(t *testing.T) {
	for what, silent := range map[string]bool{"denied": false, "not answered": true} {
		t.Run(what, func(t *testing.T) { inBubble(t, func(t *testing.T, f *fabric) { deadNames(t, f, silent) }) })
	}
}

func deadNames(t *testing.T, f *fabric, silent bool) {
	a, b := f.pair()
	c := f.client(carol, nil)
	f.run(4 * time.Second)
	a.table.lock()
	a.table.c.Limits.Contacts, a.table.c.Limits.Calls = 256, 200
	a.table.unlock()
	alive := make(map[key.Public]bool)
	for _, n := range f.nodes {
		blinded, _ := n.sec.Public().Blind()
		alive[blinded] = true
	}
	f.mu.Lock()
	f.hole = func(blinded key.Public) bool { return silent && !alive[blinded] }
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	dead := func(n int) {
		for i := range n {
			k := key.Generate().Public()
			if i%2 == 0 {
				go a.table.Contact(ctx, k)
			} else {
				go a.table.Connect(ctx, key.Address{Key: k})
			}
		}
		synctest.Wait()
	}
	dead(700)
	f.run(5 * time.Second)
	start, found := time.Now(), make(chan error, 4)
	ask := func() {
		go func() { _, err := a.table.Contact(ctx, b.sec.Public()); found <- err }()
		go func() { found <- a.table.Connect(ctx, c.addr()) }()
		synctest.Wait()
	}
	ask()
	dead(150)
	f.run(5 * time.Second)
	ask() // as programs and resolvers do
	a.table.lock()
	if n := len(a.table.contacts); n > a.table.c.Limits.Contacts || a.table.calls > a.table.c.Limits.Calls || len(a.table.remotes) > n {
		t.Errorf("%d contacts, %d calls, %d remotes", n, a.table.calls, len(a.table.remotes))
	}
	a.table.unlock()
	f.run(11 * time.Second)
	for range cap(found) {
		select {
		case err := <-found:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Errorf("one that is there was not found in %v", time.Since(start))
		}
	}
	cancel()
	f.run(time.Minute)
	if n := len(a.table.contacts); n > 2 {
		t.Errorf("%d contacts stay", n)
	}
}

func TestClose(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		a.table.Close()
		f.run(time.Second)
		if l := b.with(a); len(l) != 0 {
			t.Fatalf("%+v", l)
		}
		if a.send(b, "x") || len(a.lost) != 1 || !errors.Is(a.why[0], ErrClosed) {
			t.Fatal("sent after Close")
		}
		if err := a.table.Connect(t.Context(), b.addr()); err != ErrClosed {
			t.Fatal(err)
		}
		if _, err := a.table.Contact(t.Context(), b.sec.Public()); err != ErrClosed {
			t.Fatal(err)
		}
	})
	// Who was called closes: who called gives up paths and contact, and finds it again when it is back.
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		waiting := make(chan error, 1)
		go func() { waiting <- b.table.Connect(t.Context(), key.Address{Key: carol.Public()}) }()
		synctest.Wait()
		b.table.Close()
		if err := <-waiting; err != ErrClosed {
			t.Fatal(err)
		}
		f.run(time.Second)
		if l := a.with(b); len(l) != 0 || !a.outbound().closed {
			t.Fatalf("%+v", l)
		}
		for _, p := range b.pools {
			p.close()
		}
		a.send(b, "?x")
		f.run(2 * time.Second)
		b.pools = nil
		b.start(nil)
		f.run(8 * time.Second)
		a.send(b, "?y")
		f.run(time.Second)
		if got := a.take(); !slices.Contains(got, "!y") {
			t.Fatalf("%q", got)
		}
	})
}

func TestTrafficTypes(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fabric) {
		a, b := f.settled()
		var s *session
		for _, s = range b.table.tags {
		}
		for i, c := range []struct {
			plain string
			drop  func(Stats) uint64
		}{
			{"", func(s Stats) uint64 { return s.DropEmpty }},
			{"\x00", func(s Stats) uint64 { return s.DropEmpty }},
			{"packet\x03", func(s Stats) uint64 { return s.DropType }},
			{"packet\xff", func(s Stats) uint64 { return s.DropType }},
		} {
			before := c.drop(b.table.Stats())
			n := fillNonce(byte(i + 100))
			msg := append([]byte(c.plain), make([]byte, 16)...)
			sealIn(msg, s, &n)
			b.table.datagram(nil, buffer(message(msg, s.own, nil), n))
			if c.drop(b.table.Stats()) != before+1 {
				t.Errorf("%q is not dropped", c.plain)
			}
		}
		for proto, typ := range map[byte]byte{17: trafficUDP, 6: trafficTCP, 1: trafficRaw, 58: trafficRaw} {
			p := ipPacket(strings.Repeat("\x00", 40))
			p.Data[9] = proto
			if proto == 6 {
				p.Data[32] = 0x50
			}
			var got byte = 99
			f.lose = func(m *flying) bool {
				if m.what == "data" && m.from == a.sec.Public() {
					body := slices.Clone(m.msg[:len(m.msg)-tagSize-pivotSize])
					plain := openIn(body, s, &m.nonce)
					got = plain[len(plain)-1]
				}
				return true
			}
			a.table.Send(b.addr(), p)
			if got != typ {
				t.Errorf("protocol %d goes as %d", proto, got)
			}
		}
	})
}
