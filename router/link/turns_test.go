package link

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func prefixOf(n byte) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, n}), 32)
}

// Sources take turns whatever the number of their connections, and relays get three of four.
func TestTurnsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := new(turns)
		q.take(prefixOf(0), false)
		var order []string
		for _, w := range []struct {
			source  byte
			relay   bool
			readers int
		}{{1, false, 8}, {2, false, 2}, {3, true, 5}} {
			for range w.readers {
				go func() {
					q.take(prefixOf(w.source), w.relay)
					order = append(order, fmt.Sprint(w.source))
					q.end(0)
				}()
				synctest.Wait()
			}
		}
		q.end(0)
		synctest.Wait()
		want := []string{"3", "3", "3", "1", "3", "3", "2", "1", "2", "1", "1", "1", "1", "1", "1"}
		if !slices.Equal(order, want) {
			t.Errorf("%v, want %v", order, want)
		}
		if q.busy || len(q.waiting[0].readers)+len(q.waiting[1].readers) > 0 {
			t.Error("something is left")
		}
	})
}

// A flood of dear messages gets its share of the processor and no more; what comes now and then does not wait.
func TestTurnsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := new(turns)
		const cost = time.Millisecond
		start, used := time.Now(), time.Duration(0)
		for range 8 {
			go func() {
				for time.Since(start) < 10*time.Second {
					q.take(prefixOf(1), false)
					time.Sleep(cost)
					used += cost
					q.end(cost)
				}
			}()
		}
		time.Sleep(5 * time.Second)
		before := time.Now()
		q.take(prefixOf(2), false)
		if waited := time.Since(before); waited > time.Duration(2*float64(cost)/q.share())+cost {
			t.Errorf("another source waited for %v", waited)
		}
		q.end(cost)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		most := time.Duration(10*q.share()*float64(time.Second)) + turnBurst + 10*cost
		if q.share() < 1 && used > most || used < most/2 {
			t.Errorf("%v of the processor were used in 10 s, at most %v are to be", used, most)
		}
		before = time.Now()
		for range 5 {
			q.take(prefixOf(1), false)
			q.end(cost)
		}
		if waited := time.Since(before); waited > 0 {
			t.Errorf("after a rest the first waited for %v", waited)
		}
	})
}

// One source cannot begin more handshakes than its share, nor few sources what all have; before, addresses have to be proven.
func TestDoors(t *testing.T) {
	now := time.Unix(1e9, 0)
	var d doors
	d.set(100, 4)
	opened := func(source byte, tries int) (n int) {
		for range tries {
			if d.Take(prefixOf(source), 1, now) {
				n++
			}
		}
		return n
	}
	if d.doubts(prefixOf(1), now) {
		t.Error("the first has to prove its address")
	}
	if n := opened(1, 1000); n != sourceBurst {
		t.Errorf("%d handshakes of one source at once, not %d", n, sourceBurst)
	}
	if !d.doubts(prefixOf(1), now) || d.doubts(prefixOf(2), now) {
		t.Error("who has used much must prove his address, and nobody else")
	}
	now = now.Add(5 * time.Second)
	if n := opened(1, 1000); n != 5*4 {
		t.Errorf("%d handshakes of one source in 5 s, not %d", n, 5*4)
	}
	for i := range byte(4) {
		opened(3+i, 1000)
	}
	if !d.doubts(prefixOf(200), now) {
		t.Error("no proof is asked for though many came")
	}
	if n := opened(200, 1000); n != sourceBurst/8 {
		t.Errorf("a newcomer got %d, not an eighth of his own, %d", n, sourceBurst/8)
	}
	for i := range byte(54) {
		opened(201+i, 1000)
	}
	now = now.Add(time.Second)
	n := 0
	for i := range byte(250) {
		n += opened(i, 1000)
	}
	if n > 100 {
		t.Errorf("%d handshakes of all in a second, not 100", n)
	}
}
