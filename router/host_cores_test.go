package router

import (
	"runtime"
	"testing"
	"time"
)

// TestProcessors plays seconds of load, in tenths of a core; each letter of want is what the next second runs on: one processor, or all.
func TestProcessors(t *testing.T) {
	const all = 8
	for _, c := range []struct {
		name string
		now  int
		used []int
		want string
	}{
		{"at rest", 1, []int{0, 0, 0, 0}, "1111"},
		{"busy, but one will do", 1, []int{5, 8, 5, 8, 8}, "11111"},
		{"full, then more than one", 1, []int{8, 9, 12, 70, 80}, "1aaaa"},
		{"one full second", 1, []int{10, 3, 3, 3, 3}, "aaa11"},
		{"calm for too short", all, []int{7, 7, 8, 7, 7, 8}, "aaaaaa"},
		{"calm", all, []int{7, 7, 7, 8, 8}, "aa111"},
		{"calm, and full at once", all, []int{1, 1, 1, 9, 1, 1, 1}, "aa1aaa1"},
		{"between the bounds, from one", 1, []int{8, 8, 8, 8}, "1111"},
		{"between the bounds, from all", all, []int{8, 8, 8, 8}, "aaaa"},
	} {
		now, calm, got := c.now, 0, ""
		for _, tenths := range c.used {
			now, calm = processors(now, all, float64(tenths)/10, calm)
			got += map[int]string{1: "1", all: "a"}[now]
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	for _, used := range []float64{0, 0.5, 1} {
		if n, _ := processors(1, 1, used, 0); n != 1 {
			t.Errorf("%d processors of 1", n)
		}
	}
}

// TestGovernor: the runtime has what was decided, and all of it in the end; what the user has set stays.
func TestGovernor(t *testing.T) {
	defer runtime.SetDefaultGOMAXPROCS()
	for set, want := range map[string]int{"": 1, "4": 4} {
		t.Setenv("GOMAXPROCS", set)
		runtime.GOMAXPROCS(4)
		g := newGovernor()
		g.adapt(g.at) // no time has passed
		if got := runtime.GOMAXPROCS(0); got != 4 {
			t.Errorf("GOMAXPROCS=%s: %d processors at the begin, want 4", set, got)
		}
		g.adapt(g.at.Add(1000 * time.Hour)) // a short time for what the process has used
		if got := runtime.GOMAXPROCS(0); got != want {
			t.Errorf("GOMAXPROCS=%s: %d processors, want %d", set, got, want)
		}
		g.close()
		runtime.SetDefaultGOMAXPROCS()
		all := runtime.GOMAXPROCS(4)
		g.close()
		if got := runtime.GOMAXPROCS(0); set == "" && got != all || set != "" && got != 4 {
			t.Errorf("GOMAXPROCS=%s: %d processors in the end", set, got)
		}
	}
}
