package link

import (
	"net/netip"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lokinetd/router/fair"
)

// turns is how the readers of the request streams share the processor. A message may cost a relay a hundred times what it costs its sender (a key agreement, a signature),
// and every connection has a reader: without turns, a hundred of them that have something to do leave one in a hundred parts of a core to the datagrams of all others.
//
//  1. One reader at a time works, on what it has read at once (4 KiB).
//  2. Sources follow one another, whatever the number of their connections: a relay is one, and so are all clients of one network of addresses. Of four turns three
//     are relays', if some wait: one relay brings the requests of many.
//  3. All together get a part of the processor (turnShare); beside it, turnBurst at once. What waits in a stream is paid by who sends: it is flow controlled.
//
// The zero value is ready. A nil *turns makes nobody wait.
type turns struct {
	mu      sync.Mutex
	busy    bool         // somebody has his turn, or a timer gives the next one
	used    fair.Account // seconds of the processor
	waiting [2]ring      // relays; clients
	relays  int          // turns of relays in a row
}

const (
	// turnShare is the part of each core that requests get when there are many. A relay of 10,000 hops needs a tenth of one.
	turnShare = 0.15
	turnBurst = 10 * time.Millisecond
	// messageCost is what a message costs outside its turn: the packets that brought it and that take the answer, and who is woken for them.
	messageCost = 15 * time.Microsecond
	// turnMost bounds what one turn is taken for: a clock that jumps would stop all.
	turnMost = 50 * time.Millisecond
)

// ring is the sources that wait, each with its readers in order.
type ring struct {
	order   []netip.Prefix
	readers map[netip.Prefix][]chan struct{}
}

func (r *ring) push(source netip.Prefix, c chan struct{}) {
	if r.readers == nil {
		r.readers = make(map[netip.Prefix][]chan struct{})
	}
	if len(r.readers[source]) == 0 {
		r.order = append(r.order, source)
	}
	r.readers[source] = append(r.readers[source], c)
}

// pop takes the first reader of the first source, which becomes the last one; nil: nobody waits.
func (r *ring) pop() chan struct{} {
	if len(r.order) == 0 {
		return nil
	}
	source := r.order[0]
	r.order = r.order[1:]
	readers := r.readers[source]
	if len(readers) == 1 {
		delete(r.readers, source)
	} else {
		r.readers[source] = readers[1:]
		r.order = append(r.order, source)
	}
	return readers[0]
}

// share is the part of one core: readers are one at a time.
func (t *turns) share() float64 { return min(1, turnShare*float64(runtime.GOMAXPROCS(0))) }

// owed is the debt at now.
func (t *turns) owed(now time.Time) time.Duration {
	return time.Duration(t.used.Spent(now, t.share()) * float64(time.Second))
}

// take waits for a turn; give, on the same goroutine, ends it.
func (t *turns) take(source netip.Prefix, relay bool) (began turn) {
	if t == nil {
		return turn{}
	}
	t.mu.Lock()
	if !t.busy && t.owed(time.Now()) < turnBurst {
		t.busy = true
		t.mu.Unlock()
		return turnNow()
	}
	c := make(chan struct{})
	if relay {
		t.waiting[0].push(source, c)
	} else {
		t.waiting[1].push(source, c)
	}
	if !t.busy {
		t.busy = true
		t.next(time.Now())
	}
	t.mu.Unlock()
	<-c
	return turnNow()
}

// give ends a turn in which that many messages were read.
func (t *turns) give(began turn, messages uint64) {
	if t != nil {
		t.end(began.spent() + time.Duration(messages)*messageCost)
	}
}

func (t *turns) end(spent time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.used.Add(spent.Seconds(), now, t.share())
	t.next(now)
}

// next gives the next turn, now or when the debt allows it. mu is held, and busy set.
func (t *turns) next(now time.Time) {
	if len(t.waiting[0].order)+len(t.waiting[1].order) == 0 {
		t.busy = false
		return
	}
	if over := t.owed(now) - turnBurst; over >= 0 {
		time.AfterFunc(max(time.Duration(float64(over)/t.share()), 200*time.Microsecond), func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.hand()
		})
		return
	}
	t.hand()
}

func (t *turns) hand() {
	var c chan struct{}
	if t.relays++; t.relays <= 3 {
		c = t.waiting[0].pop()
	}
	if c == nil {
		t.relays = 0
		c = t.waiting[1].pop()
	}
	if c == nil {
		c = t.waiting[0].pop()
	}
	close(c)
}

// turn is when a turn began, by the clock and by what its thread had used of the processor.
type turn struct {
	at   time.Time
	used time.Duration
}

func turnNow() turn { return turn{time.Now(), threadTime()} }

// spent is what of the processor was used since. Who was interrupted, by this process or another, is not charged for it; the clock is asked too, for goroutines
// change their threads, and because time may be a fake.
func (b turn) spent() time.Duration {
	elapsed := time.Since(b.at)
	if used := threadTime() - b.used; used >= 0 && used < elapsed {
		elapsed = used
	}
	return min(elapsed, turnMost)
}

func threadTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
