package router

import (
	"io/fs"
	"math"
	"os"
	"path"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
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
	before  int   // what it was
	limit   int64 // likewise
	bytes   uint64
	at      time.Time
}

// newCollector begins with a target for the start, which is busy.
func newCollector() *collector {
	c := &collector{off: os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "", percent: 400}
	if !c.off {
		c.before = debug.SetGCPercent(c.percent)
		c.limit = debug.SetMemoryLimit(memoryLimit(os.DirFS("/")))
	}
	return c
}

// memoryLimit is nine tenths of the memory that the service manager allows us (MemoryMax=), so that the collector works harder before the kernel kills;
// without such a bound there is none.
func memoryLimit(root fs.FS) int64 {
	limit := int64(math.MaxInt64)
	raw, _ := fs.ReadFile(root, "proc/self/cgroup")
	group, _ := strings.CutPrefix(strings.TrimSpace(string(raw)), "0::") // cgroup v2 alone has one line
	for group = path.Clean("/" + group); ; group = path.Dir(group) {
		raw, _ := fs.ReadFile(root, path.Join("sys/fs/cgroup", group, "memory.max"))
		if n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64); err == nil && n > 0 {
			limit = min(limit, n/10*9)
		}
		if group == "/" {
			return limit
		}
	}
}

// adapt looks at the heap and sets another target if that is worth it: once a second, some microseconds.
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
		debug.SetMemoryLimit(c.limit)
	}
}
