package netif

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"lokinetd/router/key"
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

// TestKeepIPv6: an IPv6 address follows from the key, and is kept where it does not, so that in whatever order remotes come after a restart each has what it had.
func TestKeepIPv6(t *testing.T) {
	now := time.Now()
	client, relay, third, alone := remoteN(5), remoteN(5), remoteN(5), remoteN(6)
	relay.Kind = key.Relay
	third.Key[31] ^= 1 // the address has the first eight bytes
	for _, own4 := range []string{"", "10.0.0.1/16"} {
		m := newMap(t, own4, "fd2e:7365:7368::1/64")
		had := map[key.Address]netip.Addr{}
		for _, r := range []key.Address{client, relay, third, alone} {
			a, err := m.IPv6(r, now)
			if err != nil {
				t.Fatal(err)
			}
			had[r] = a
		}
		k := over(t, m.Keep(4096, now))
		if len(k.Remotes) != 2 {
			t.Errorf("kept %v", k.Remotes)
		}
		m = newMap(t, own4, "fd2e:7365:7368::1/64")
		m.Restore(k, now)
		for _, r := range []key.Address{third, relay, alone, client} {
			if a, err := m.IPv6(r, now); err != nil || a != had[r] {
				t.Errorf("%v has %v, had %v: %v", r, a, had[r], err)
			}
			if back, ok := m.Remote(had[r], now); !ok || back != r {
				t.Errorf("%v means %v", had[r], back)
			}
		}
		m = newMap(t, own4, "fd2e:7365:7369::1/64") // another range: all anew
		m.Restore(k, now)
		if n := len(m.Keep(4096, now).Remotes); n != 0 {
			t.Errorf("%d kept of another range", n)
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
	good := Kept{IPv4: prefix("10.0.0.1/16"), Next: 77, Remotes: []KeptRemote{{Remote: remoteN(5), IPv4: addr("10.0.0.9")}}}
	m := newKeepMap(t, "10.1.0.1/16")
	m.Restore(good, now)
	if _, ok := m.Remote(addr("10.0.0.9"), now); ok {
		t.Error("an address of another range")
	}
	m = newKeepMap(t, "10.0.0.1/16")
	m.Restore(Kept{IPv4: prefix("10.0.0.1/16"), Next: 1 << 31, Remotes: []KeptRemote{
		{Remote: remoteN(5), IPv4: addr("10.0.0.1")}, {Remote: remoteN(6), IPv4: addr("10.0.0.0")}, {Remote: remoteN(7), IPv4: addr("10.0.255.255")}, {Remote: remoteN(8), IPv4: addr("192.0.2.1")},
		{Remote: remoteN(9), IPv4: addr("fd2e:7365:7368::9")}, {Remote: remoteN(1), IPv4: addr("10.0.0.44")}, {Remote: remoteN(10), IPv4: netip.Addr{}},
		{Remote: remoteN(11), IPv4: addr("10.0.0.50")}, {Remote: remoteN(11), IPv4: addr("10.0.0.51")}, {Remote: remoteN(12), IPv4: addr("10.0.0.50")},
		{Remote: remoteN(13), IPv6: addr("fd2e:7365:7368::1")}, {Remote: remoteN(14), IPv6: addr("fd2e:7365:7368::")}, {Remote: remoteN(1), IPv6: addr("fd2e:7365:7368::77")},
		{Remote: remoteN(15), IPv6: addr("2001:db8::1")}, {Remote: remoteN(16), IPv6: addr("::ffff:10.0.0.7")},
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
