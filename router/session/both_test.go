package session

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/packet"
)

// explore calls run for every sequence of choices that it makes: choose(n) gives 0 to n-1. It returns how many there were.
func explore(t *testing.T, run func(t *testing.T, choose func(n int) int)) (runs int) {
	var choices, sizes []int
	for {
		at := 0
		sizes = sizes[:0]
		runs++
		run(t, func(n int) int {
			if at == len(choices) {
				choices = append(choices, 0)
			}
			sizes = append(sizes, n)
			at++
			return choices[at-1]
		})
		if t.Failed() {
			t.Fatalf("order %v", choices)
		}
		choices = choices[:at]
		for len(choices) > 0 && choices[len(choices)-1]+1 == sizes[len(choices)-1] {
			choices = choices[:len(choices)-1]
		}
		if len(choices) == 0 {
			return runs
		}
		choices[len(choices)-1]++
	}
}

// deliverAll lands what is in flight, and what comes of it, in the order that is chosen. Beyond the first limit messages, in the order sent.
func (f *fabric) deliverAll(choose func(n int) int, limit int) {
	for {
		f.mu.Lock()
		n := len(f.flight)
		f.mu.Unlock()
		if n == 0 {
			return
		}
		i := 0
		if limit > 0 && n > 1 {
			i = choose(n)
			limit--
		}
		f.deliver(i)
	}
}

// TestBothCall: two of our nodes call each other at the same moment, in all orders of messages. Nothing is lost, and they end on the session of the smaller key.
func TestBothCall(t *testing.T) {
	every := 1
	if raceEnabled || testing.Short() {
		every = 37
	}
	for _, c := range []struct {
		what   string
		quietA bool // a, the smaller key, calls but has no packet to send
		quietB bool
		old    bool // both take the other for a 1.0 one
	}{
		{"both talk", false, false, false}, {"the smaller key is silent", true, false, false}, {"the larger key is silent", false, true, false},
		{"both talk 1.0", false, false, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			seen := 0
			runs := explore(t, func(t *testing.T, choose func(int) int) {
				seen++
				synctest.Test(t, func(t *testing.T) {
					before := packet.InUse()
					f := newFabric(t)
					a, b := f.pair()
					f.learned(a, b)
					if c.old {
						f.told(a, b, 0)
						f.told(b, a, 0)
					}
					f.manual = true
					var wantA, wantB []string
					start := func(n, o *node, quiet bool) []string {
						if quiet {
							go n.table.Connect(t.Context(), o.addr())
							synctest.Wait()
							return nil
						}
						n.send(o, "first")
						return []string{"first"}
					}
					wantB = start(a, b, c.quietA)
					wantA = start(b, a, c.quietB)
					f.deliverAll(choose, 10)
					f.manual = false
					if seen%every == 0 {
						f.run(1500 * time.Millisecond)
						sorted(t, "a", a.take(), wantA)
						sorted(t, "b", b.take(), wantB)
						// Questions from both sides, all answered.
						a.echo, b.echo = true, true
						for i := range 20 {
							a.send(b, fmt.Sprint("?a", i))
							b.send(a, fmt.Sprint("?b", i))
							f.run(150 * time.Millisecond)
						}
						f.run(150 * time.Millisecond)
						if na, nb := len(a.take()), len(b.take()); na != 40 || nb != 40 {
							t.Errorf("%d and %d of 40", na, nb)
						}
						if ca, cb := a.caller(b), b.caller(a); ca != a || cb != a {
							t.Errorf("end on the session of the larger key: a %v, b %v", ca == b, cb == b)
						}
					}
					f.close()
					if n := packet.InUse() - before; n != 0 {
						t.Errorf("%d buffers not given back", n)
					}
				})
			})
			t.Log(runs, "orders")
		})
	}
}

// TestBothCallLate: the same when one call is answered long before the other, with much and with little traffic, which only one side begins.
func TestBothCallLate(t *testing.T) {
	times := []time.Duration{300 * time.Millisecond, time.Second, 1900 * time.Millisecond, 2100 * time.Millisecond, 4 * time.Second, 12 * time.Second}
	if raceEnabled || testing.Short() {
		times = times[4:5]
	}
	for _, late := range times {
		for _, gap := range []time.Duration{100 * time.Millisecond, time.Second, 5 * time.Second} {
			for slow := range 2 { // whose call is answered late: 0 the smaller key's
				for talks := range 3 { // who asks: 0 the smaller key, 1 the larger, 2 both
					inBubble(t, func(t *testing.T, f *fabric) {
						what := fmt.Sprintf("late %v, gap %v, slow %d, talks %d", late, gap, slow, talks)
						a, b := f.pair()
						f.learned(a, b)
						nodes := []*node{a, b}
						f.lose = func(m *flying) bool {
							if m.what == "accept" && m.to == nodes[slow].sec.Public() {
								time.AfterFunc(late, m.land)
								return true
							}
							return false
						}
						for i, n := range nodes {
							n.echo = true
							go n.table.Connect(t.Context(), nodes[1-i].addr())
						}
						asked := 0
						for end := time.Now().Add(late + 3*gap + 8*time.Second); time.Now().Before(end); asked++ {
							if talks != 1 {
								a.send(b, fmt.Sprint("?a", asked))
							}
							if talks != 0 {
								b.send(a, fmt.Sprint("?b", asked))
							}
							f.run(gap)
						}
						f.run(200 * time.Millisecond)
						got := len(a.take()) + len(b.take())
						if want := map[int]int{0: 2, 1: 2, 2: 4}[talks] * asked; got != want {
							t.Errorf("%s: %d of %d", what, got, want)
						}
						if ca, cb := a.caller(b), b.caller(a); ca != a || cb != a {
							t.Errorf("%s: end on the session of the larger key: a %v, b %v", what, ca == b, cb == b)
						}
					})
				}
			}
		}
	}
}

// learned gives two nodes each other's contact, so that no look-up comes between.
func (f *fabric) learned(a, b *node) {
	for _, n := range []*node{a, b} {
		o := b
		if n == b {
			o = a
		}
		if _, err := n.table.Contact(f.t.Context(), o.sec.Public()); err != nil {
			f.t.Fatal(err)
		}
	}
}

func sorted(t testing.TB, what string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%s got %q, want %q", what, got, want)
	}
}

// TestBothCallModel: the same against the reference's rule, which keeps what it was called for last, with both key orders. Packets of the first moment may be lost with
// a session that it drops; afterwards all pass, and each end has one session.
func TestBothCallModel(t *testing.T) {
	for _, c := range []struct {
		what         string
		ours, theirs int
		old          bool
	}{
		{"we have the smaller key", 0, 1, false}, {"we have the larger key", 1, 0, false},
		{"we have the smaller key, 1.0", 0, 1, true}, {"we have the larger key, 1.0", 1, 0, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			runs := explore(t, func(t *testing.T, choose func(int) int) {
				synctest.Test(t, func(t *testing.T) {
					before := packet.InUse()
					x, y := alice, bob
					if (x.Public().Compare(y.Public()) < 0) != (c.ours == 0) {
						x, y = y, x
					}
					f := newFabric(t)
					a, m := f.client(x, nil), f.model(y)
					m.old = c.old
					f.run(4 * time.Second)
					a.know(m.contact())
					cc, err := m.lookUp(a)
					if err != nil {
						t.Fatal(err)
					}
					f.manual = true
					a.table.Send(m.addr(), ipPacket("first"))
					m.send(x.Public(), cc, "first")
					f.deliverAll(choose, 10)
					f.manual = false
					f.run(1500 * time.Millisecond)
					firstA, firstM := len(a.take()), len(m.take())
					a.echo = true
					lost := 0
					for i := range 20 {
						a.table.Send(m.addr(), ipPacket(fmt.Sprint("?a", i)))
						m.send(x.Public(), cc, fmt.Sprint("?m", i))
						f.run(250 * time.Millisecond)
						if na, nm := len(a.take()), len(m.take()); na != 2 || nm != 2 {
							lost++
						}
					}
					if lost > 0 {
						t.Errorf("%d of 20 rounds lost (first packets: %d, %d)", lost, firstA, firstM)
					}
					f.close()
					if n := packet.InUse() - before; n != 0 {
						t.Errorf("%d buffers not given back", n)
					}
				})
			})
			t.Log(runs, "orders")
		})
	}
}
