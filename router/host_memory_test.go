package router

import (
	"math"
	"testing"
	"testing/fstest"
)

// TestCollectorPercent: a small heap of a busy daemon gets much room, a quiet one little, and neither exceeds its bounds.
func TestCollectorPercent(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		live, rate uint64
		want       int
	}{
		{2 * mib, 0, 151},           // the runtime's least heap of 4 MiB bounds it: 6 MiB
		{4 * mib, 0, 100},           // 4 MiB of room
		{4 * mib, 32 * mib, 200},    // 8
		{4 * mib, 1000 * mib, 400},  // 16, not more
		{2 * mib, 1000 * mib, 451},  // 18 MiB in all
		{10 * mib, 1000 * mib, 160}, //
		{16 * mib, 0, 50},           // half of itself
		{100 * mib, 1000 * mib, 50}, //
		{0, 0, 101},                 // 4 MiB in all
		{0, 1 << 62, 401},           // 16
	} {
		if got := collectorPercent(c.live, c.rate); got != c.want {
			t.Errorf("live %d MiB, %d MiB/s: %d %%, want %d", c.live/mib, c.rate/mib, got, c.want)
		}
	}
}

func TestMemoryLimit(t *testing.T) {
	for _, c := range []struct {
		files map[string]string
		want  int64
	}{
		{nil, math.MaxInt64},
		{map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, math.MaxInt64},
		{map[string]string{"proc/self/cgroup": "0::/system.slice/lokinetd.service\n", "sys/fs/cgroup/system.slice/lokinetd.service/memory.max": "100000000\n"}, 90000000},
		{map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "5000\n"}, 4500},
		{map[string]string{"proc/self/cgroup": "12:memory:/x\n0::/\n"}, math.MaxInt64},
		{map[string]string{"proc/self/cgroup": "0::/../../etc\n"}, math.MaxInt64},
	} {
		root := fstest.MapFS{}
		for name, text := range c.files {
			root[name] = &fstest.MapFile{Data: []byte(text)}
		}
		if got := memoryLimit(root); got != c.want {
			t.Errorf("%v: %d, want %d", c.files, got, c.want)
		}
	}
}
