package router

import (
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The collector's target. A collection costs about the same however much garbage there is, so a busy daemon with a small heap would
// spend a third of its receiving time on collections at the runtime's default (the heap may double). The daemon therefore gives the heap room for
// the garbage of collectEvery, within bounds that keep a quiet daemon small and a busy one below its budget (issue: 30 MB resident).
const (
	collectEvery = 250 * time.Millisecond
	minRoom      = 4 << 20  // bytes of garbage; of a quiet daemon
	maxRoom      = 16 << 20 // of a busy one
	minPercent   = 50       // a large heap (a relay with many hops) gets half of itself as room, however much that is
	maxPercent   = 800
	heapStep     = 20 // percent by which a target must differ from the last to be worth a change, which stops the world
)

// collectorPercent is the GOGC for a heap of live bytes to which rate bytes per second are allocated.
//
// The runtime collects at live + (live + stacks and globals) * percent/100, but never below 4 MiB * percent/100: with maxPercent 32 MiB, hence
// the second bound.
func collectorPercent(live, rate uint64) int {
	room := min(max(uint64(float64(rate)*collectEvery.Seconds()), minRoom), maxRoom)
	percent := max(100*room/max(live, 1), minPercent)
	return int(min(percent, maxPercent, 100*(live+room)/(4<<20)+1))
}

// collector sets the collector's target while the daemon runs; for one goroutine.
type collector struct {
	off     bool // the user has set GOGC or GOMEMLIMIT
	percent int
	before  int // what it was
	bytes   uint64
	at      time.Time
}

// newCollector begins with a target for the start, when most is allocated.
func newCollector() *collector {
	c := &collector{off: os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "", percent: 200}
	if !c.off {
		c.before = debug.SetGCPercent(c.percent)
	}
	return c
}

// adapt looks at the heap and sets another target if that is worth it. Once in some seconds is enough.
func (c *collector) adapt(now time.Time) {
	if c.off {
		return
	}
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	live, allocated := s[0].Value.Uint64(), s[1].Value.Uint64()
	if took := now.Sub(c.at); !c.at.IsZero() && took > 0 {
		percent := collectorPercent(live, uint64(float64(allocated-c.bytes)/took.Seconds()))
		if diff := percent - c.percent; max(diff, -diff)*100 > c.percent*heapStep {
			debug.SetGCPercent(percent)
			c.percent = percent
		}
	}
	c.bytes, c.at = allocated, now
}

// close sets the target back.
func (c *collector) close() {
	if !c.off {
		debug.SetGCPercent(c.before)
	}
}
