//go:build !race

package packet

import "testing"

func TestBufferAllocs(t *testing.T) {
	p := make([]byte, 1280)
	if n := testing.AllocsPerRun(1000, func() {
		b := Get()
		b.Set(p)
		b.Extend(16)
		b.Prepend(2)
		b.Cut(16)
		b.Release()
	}); n != 0 {
		t.Errorf("%v allocations per buffer", n)
	}
}
