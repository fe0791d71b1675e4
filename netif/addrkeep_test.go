package netif

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

func newKeepMap(t *testing.T, own4 string) *Map {
	t.Helper()
	m, err := NewMap(remoteN(1), prefix(own4), prefix("fd2e:7365:7368::1/64"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// over is what a file brings from one process to the next.
func over(t *testing.T, k Kept) (out Kept) {
	t.Helper()
	raw, err := json.Marshal(k)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil || !reflect.DeepEqual(k, out) {
		t.Fatalf("%s: %v", raw, err)
	}
	return out
}

// TestKeep: after a restart an old address means its old remote or nobody, also when the process died before what it gave out last was kept.
func TestKeep(t *testing.T) {
	for _, limit := range []int{0, 3, 4096} {
		now := time.Now()
		m := newKeepMap(t, "172.16.0.1/20")
		old := map[netip.Addr]int{}
		give := func(n int) {
			a, err := m.IPv4(remoteN(n), now)
			if err != nil {
				t.Fatal(err)
			}
			old[a] = n
		}
		for n := 10; n < 20; n++ {
			give(n)
			now = now.Add(2 * time.Second)
		}
		k := over(t, m.Keep(limit, now))
		if len(k.Remotes) != min(limit, 10) {
			t.Fatalf("limit %d: %d kept", limit, len(k.Remotes))
		}
		for _, r := range k.Remotes {
			if n := old[r.IPv4]; remoteN(n) != r.Remote || limit == 3 && n < 17 {
				t.Errorf("limit %d: kept %v", limit, r)
			}
		}
		for n := 20; n < 200; n++ { // after the last Keep
			give(n)
		}

		m = newKeepMap(t, "172.16.0.1/20")
		m.Restore(k, now)
		for _, r := range k.Remotes {
			if got, ok := m.Remote(r.IPv4, now); !ok || got != r.Remote {
				t.Errorf("limit %d: %v means %v after the restart", limit, r.IPv4, got)
			}
		}
		for n := 1000; n < 1000+3000; n++ {
			a, err := m.IPv4(remoteN(n), now)
			if err != nil {
				t.Fatal(err)
			}
			if was, ok := old[a]; ok {
				t.Fatalf("limit %d: %v was remote %d's and is now %d's", limit, a, was, n)
			}
		}
	}
}

// TestKeepRecent: idle remotes are forgotten, live ones are not, and reading does not count as a use.
func TestKeepRecent(t *testing.T) {
	now := time.Now()
	m := newKeepMap(t, "10.0.0.1/16")
	for n := 10; n < 13; n++ {
		if _, err := m.IPv4(remoteN(n), now); err != nil {
			t.Fatal(err)
		}
	}
	m.SetLive(remoteN(11), true, now)
	for range 2 {
		now = now.Add(keepMapping/2 + time.Minute)
		m.Keep(4096, now)
	}
	if k := m.Keep(4096, now); len(k.Remotes) != 1 || k.Remotes[0].Remote != remoteN(11) {
		t.Errorf("%+v", k)
	}
}

// TestRestoreForeign: a file that fits no more, or was never written by us, does no harm.
func TestRestoreForeign(t *testing.T) {
	now := time.Now()
	good := Kept{IPv4: prefix("10.0.0.1/16"), Next: 77, Remotes: []KeptRemote{{remoteN(5), addr("10.0.0.9")}}}
	m := newKeepMap(t, "10.1.0.1/16")
	m.Restore(good, now)
	if _, ok := m.Remote(addr("10.0.0.9"), now); ok {
		t.Error("an address of another range")
	}
	m = newKeepMap(t, "10.0.0.1/16")
	m.Restore(Kept{IPv4: prefix("10.0.0.1/16"), Next: 1 << 31, Remotes: []KeptRemote{
		{remoteN(5), addr("10.0.0.1")}, {remoteN(6), addr("10.0.0.0")}, {remoteN(7), addr("10.0.255.255")}, {remoteN(8), addr("192.0.2.1")},
		{remoteN(9), addr("fd2e:7365:7368::9")}, {remoteN(1), addr("10.0.0.44")}, {remoteN(10), netip.Addr{}},
		{remoteN(11), addr("10.0.0.50")}, {remoteN(11), addr("10.0.0.51")}, {remoteN(12), addr("10.0.0.50")},
	}}, now)
	for _, x := range m.Mappings(now) {
		if want := map[bool]string{true: "10.0.0.1", false: "10.0.0.50"}[x.Remote == remoteN(1)]; x.IPv4 != addr(want) {
			t.Errorf("%v has %v", x.Remote, x.IPv4)
		}
	}
	if a, err := m.IPv4(remoteN(20), now); err != nil || a != addr("10.0.0.2") {
		t.Errorf("%v, %v", a, err)
	}
}
