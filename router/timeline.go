package router

import (
	"bytes"
	"cmp"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/session"
)

// moment is something that happens once in the life of a daemon, or of which only the first time is of interest.
type moment uint8

const (
	momentStarted     moment = iota // the configuration is read
	momentRunning                   // the TUN, the name server and the control socket are there
	momentEdge                      // the first edge is connected
	momentEdges                     // edges enough to build paths
	momentPath                      // the first inbound path is up
	momentPublished                 // a service's contact is stored at one location
	momentResolved                  // the name server has answered for one of our names, with a session behind it
	momentEstablished               // a session is established
	momentDelivered                 // an IP packet came out of a session
	moments
)

func (m moment) String() string {
	return [moments]string{"started", "running", "first edge", "edges connected", "first path", "contact published", "name resolved",
		"session established", "first packet delivered"}[m]
}

// timeline notes when each moment first came. The zero value is ready; safe for concurrent use.
type timeline struct {
	at [moments]atomic.Int64 // nanoseconds after loaded; 0: not yet
}

// loaded is shortly after this process began, and began is when it did.
var (
	loaded = time.Now()
	began  = execTime()
)

// note: m is now, unless it was before. It costs one load after the first time, and allocates nothing.
func (t *timeline) note(m moment) {
	if t.at[m].Load() == 0 {
		t.at[m].CompareAndSwap(0, max(1, int64(time.Since(loaded))))
	}
}

// watch notes what an endpoint's sessions tell, before their owner is told.
func (t *timeline) watch(c *session.Config) {
	deliver, published, established := c.Deliver, c.Published, c.Established
	if deliver != nil {
		c.Deliver = func(from key.Address, b *packet.Buffer) {
			t.note(momentDelivered)
			deliver(from, b)
		}
	}
	c.Published = func(p session.Publication) {
		if p.Locations > 0 {
			t.note(momentPublished)
		}
		if published != nil {
			published(p)
		}
	}
	c.Established = func(remote key.Address) {
		t.note(momentEstablished)
		if established != nil {
			established(remote)
		}
	}
}

// stages are the moments that came, in order of time, counted from the begin of the process.
func (t *timeline) stages() []control.Stage {
	list := []control.Stage{{Name: "exec"}}
	for m := range moments {
		if at := t.at[m].Load(); at != 0 {
			list = append(list, control.Stage{Name: m.String(), AtMs: ms(loaded.Add(time.Duration(at)).Sub(began))})
		}
	}
	slices.SortStableFunc(list, func(a, b control.Stage) int { return cmp.Compare(a.AtMs, b.AtMs) })
	return list
}

// userHZ is the unit of /proc/PID/stat, a second over it, on all architectures that we build for.
const userHZ = 100

// execTime is when this process was started, up to 10 ms too early; where /proc does not tell, when the program was loaded.
func execTime() time.Time {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return loaded
	}
	ticks, ok := startTicks(stat)
	var boot unix.Timespec
	if !ok || unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil {
		return loaded
	}
	age := time.Duration(boot.Nano()) - ticks*(time.Second/userHZ)
	exec := time.Now().Add(-age)
	if exec.After(loaded) || loaded.Sub(exec) > time.Minute { // clocks that do not belong together, as in some containers
		return loaded
	}
	return exec
}

// startTicks finds field 22 of /proc/PID/stat; the second field may hold anything, closing parentheses too.
func startTicks(stat []byte) (time.Duration, bool) {
	_, rest, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	fields := bytes.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, false
	}
	n, err := strconv.ParseInt(string(fields[19]), 10, 62)
	return time.Duration(n), err == nil && n >= 0
}
