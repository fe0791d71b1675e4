package router

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/login1"
	"golang.org/x/sys/unix"

	"lokinetd/netif"
)

// Roaming and sleep: who notices that the network is another one, and tells the node (Node.Wake).
//
//  1. The kernel, of interfaces, addresses and routes. What is said is much, and mostly of others' business: only when the way to one of our relays is another than it was
//     links are tested.
//  2. logind, when the machine wakes up.
//  3. Clocks: the one that stands still while the machine sleeps against the one that does not, and against the time of day, which also jumps when a virtual machine
//     goes on after a pause.

const (
	settleTime = 100 * time.Millisecond // news come in bursts
	clockEvery = time.Second
	againAfter = 30 * time.Second // when a source of news has failed

	sleepJump = 2 * time.Second // of the clock that counts sleep
	wallJump  = 30 * time.Second
	maxWays   = 32 // relays whose way is watched
)

// clocks are those that go on while the monotonic clock stands still.
type clocks struct{ monotonic, boot, wall time.Duration }

// readClocks is a variable for tests, which cannot make the kernel's jump.
var readClocks = func() (c clocks) {
	for id, to := range map[int32]*time.Duration{unix.CLOCK_MONOTONIC: &c.monotonic, unix.CLOCK_BOOTTIME: &c.boot, unix.CLOCK_REALTIME: &c.wall} {
		var ts unix.Timespec
		if unix.ClockGettime(id, &ts) == nil {
			*to = time.Duration(ts.Nano())
		}
	}
	return c
}

// jumped says how long the machine has slept since before; 0: not at all. A time of day that is set back is no sleep.
func (c clocks) jumped(before clocks) time.Duration {
	passed := c.monotonic - before.monotonic
	if d := c.boot - before.boot - passed; d >= sleepJump {
		return d
	}
	if d := c.wall - before.wall - passed; d >= wallJump {
		return d
	}
	return 0
}

// ways are how packets to relays left the host when that was last looked at.
type ways map[netip.Addr]netif.Way

func usable(w netif.Way) bool { return w.Source.IsValid() && w.Up }

// none says that relays are known, but no way to any.
func (w ways) none() bool {
	for _, way := range w {
		if usable(way) {
			return false
		}
	}
	return len(w) > 0
}

// changed takes what the ways are now and says whether links have to be tested: there is a way, and one is another than before or was not known. While there is none, links
// wait: the same network may come back.
func (w *ways) changed(now ways) bool {
	was := *w
	*w = now
	for to, way := range now {
		if before, known := was[to]; usable(way) && (!known || before != way) {
			return true
		}
	}
	return false
}

// waysNow asks for the relays that the node has to do with.
func (h *host) waysNow() ways {
	now := ways{}
	for _, p := range h.node.peers.Status() {
		at, ok := h.node.address(p.ID)
		if !ok || len(now) == maxWays {
			continue
		}
		if way, err := netif.WayTo(at.Addr()); err == nil {
			now[at.Addr()] = way
		} else {
			h.log.Debug("the way to a relay cannot be looked up", "err", err)
		}
	}
	return now
}

// roam runs until ctx ends.
func (h *host) roam(ctx context.Context) error {
	news, resumed := make(chan struct{}, 1), make(chan struct{}, 1)
	told := func(c chan struct{}) func() {
		return func() {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
	var sources sync.WaitGroup
	defer sources.Wait()
	for what, watch := range map[string]func() error{
		"kernel": func() error { return netif.Watch(ctx, told(news)) },
		"logind": func() error { return watchSleep(ctx, told(resumed)) },
	} {
		sources.Go(func() {
			for ctx.Err() == nil {
				if err := watch(); err != nil {
					h.log.Debug("no news of the network or of sleep", "from", what, "err", err)
				}
				select {
				case <-ctx.Done():
				case <-time.After(againAfter):
				}
			}
		})
	}

	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	last, seen := readClocks(), ways{}
	var settled <-chan time.Time
	slept := false // and there was no way to the network since
	wake := func() {
		if seen = h.waysNow(); seen.none() {
			slept = true
			return
		}
		slept = false
		h.wake(true)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-news:
			if settled == nil {
				settled = time.After(settleTime)
			}
		case <-settled:
			settled = nil
			h.mend()
			if seen.changed(h.waysNow()) {
				h.log.Info("the network has changed: links are tested")
				h.wake(slept)
				slept = false
			}
		case <-resumed:
			h.log.Info("the machine has woken up: links and paths are tested")
			wake()
		case <-tick.C:
			now := readClocks()
			if d := now.jumped(last); d > 0 {
				h.log.Info("the machine has slept: links and paths are tested", "for", d.Round(time.Second))
				wake()
			}
			last = now
		}
	}
}

func (h *host) wake(slept bool) {
	h.node.Wake(slept)
	if way := h.hostDNS.way; way != nil {
		way.Changed() // other networks have other resolvers
	}
}

// watchSleep tells when logind says that the machine has woken up. It returns when ctx ends or the bus is gone.
func watchSleep(ctx context.Context, told func()) error {
	bus, err := login1.New()
	if err != nil {
		return err
	}
	defer bus.Close()
	signals := bus.Subscribe("PrepareForSleep")
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, ok := <-signals:
			if !ok {
				return errors.New("router: the system bus is gone")
			}
			if len(s.Body) == 1 && s.Body[0] == false {
				told()
			}
		}
	}
}
