//go:build !race

package packet

import (
	"net/netip"
	"testing"

	"lokinetd/router/testkit"
)

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

func TestRewriteAllocs(t *testing.T) {
	a, b := netip.MustParseAddr("fd2e:7365:7368::1"), netip.MustParseAddr("fd2e:7365:7368::2")
	p := testkit.IP6(a, b, 6, 6, nil, segment(testkit.Seeded(1), 6, 1200))
	e := testkit.IP6(a, b, 58, 58, nil, append([]byte{1, 3, 0, 0, 0, 0, 0, 0}, p[:200]...))
	bad := p[:30]
	if n := testing.AllocsPerRun(1000, func() {
		if Rewrite(p, b, a) != nil {
			t.Fatal("rewrite")
		}
		ip, err := ParseIP(e)
		if err != nil || ip.RewriteError(e, a, b) != nil {
			t.Fatal("rewrite error")
		}
		if _, err := ParseIP(bad); err != ErrTruncated {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

func BenchmarkRewrite(b *testing.B) {
	x, y := netip.MustParseAddr("fd2e:7365:7368::1"), netip.MustParseAddr("fd2e:7365:7368::2")
	p := testkit.IP6(x, y, 6, 6, nil, segment(testkit.Seeded(1), 6, 1200))
	for b.Loop() {
		if err := Rewrite(p, x, y); err != nil {
			b.Fatal(err)
		}
	}
}
