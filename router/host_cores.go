package router

import (
	"os"
	"runtime"
	"syscall"
	"time"
)

// On how many cores the daemon runs. Most of what it does is to hand packets from one goroutine to the next, each of which takes microseconds. When the runtime has several
// processors, a hand-over wakes a thread on another core, which finds its caches cold and then nothing more to do. Measured with a dozen nodes on two
// cores: with one processor each they need a quarter less CPU per byte, a stream is a third faster, and a round trip takes three quarters of the time. So
// a daemon has one processor until it nears what that can do, and all while it needs more.
const (
	coreFull  = 0.9 // of a core in use, for a second: all are needed
	coreSpare = 0.8 // in use with all, which takes more for the same work: one will do,
	coreCalm  = 3   // if it stays so for as many seconds
)

// processors says with how many of all the processors to go on, when now of them have used used cores for a second. calm is the number of
// seconds for which one would have done, up to this one; the next call wants back what is returned.
func processors(now, all int, used float64, calm int) (int, int) {
	switch {
	case now == 1 && used >= coreFull:
		return all, 0
	case now == 1 || used >= coreSpare:
		return now, 0
	case calm+1 >= coreCalm:
		return 1, 0
	}
	return now, calm + 1
}

// governor sets the number of processors while the daemon runs; for one goroutine. Work that comes to a daemon with one has no more than one core until a whole
// second was full: two seconds at most.
type governor struct {
	off  bool // the user has set GOMAXPROCS, or there is one processor only
	all  int
	now  int
	calm int
	used time.Duration // CPU time until at
	at   time.Time
}

// newGovernor begins with all processors, for the start, and with one after the first second unless that was busy.
func newGovernor() *governor {
	all := runtime.GOMAXPROCS(0)
	return &governor{off: os.Getenv("GOMAXPROCS") != "" || all == 1, all: all, now: all, calm: coreCalm - 1, used: cpuTime(), at: time.Now()}
}

// adapt looks at the CPU time and changes the number if that is due: once a second, a microsecond; a change stops the world for some more.
func (g *governor) adapt(now time.Time) {
	took, used := now.Sub(g.at), cpuTime()
	if g.off || took <= 0 {
		return
	}
	next, calm := processors(g.now, g.all, (used-g.used).Seconds()/took.Seconds(), g.calm)
	if next != g.now {
		g.set(next)
	}
	g.now, g.calm, g.used, g.at = next, calm, used, now
}

func (g *governor) set(n int) {
	if n == 1 {
		runtime.GOMAXPROCS(1)
	} else {
		runtime.SetDefaultGOMAXPROCS() // and whatever a service manager allows later
	}
}

// close gives all back.
func (g *governor) close() {
	if !g.off {
		g.set(g.all)
	}
}

// cpuTime is what the process has used, user and system.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
