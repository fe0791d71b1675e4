//go:build !race

package router

import "testing"

func TestTimelineAllocs(t *testing.T) {
	var line timeline
	if n := testing.AllocsPerRun(100, func() { line.note(momentDelivered) }); n > 0 {
		t.Errorf("%v allocations a packet", n)
	}
}
