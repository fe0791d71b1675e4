package netif

import (
	"net/netip"
	"testing"
	"time"

	"lokinetd/router/key"
)

func newMap(t testing.TB, own4, own6 string) *Map {
	t.Helper()
	var p4, p6 netip.Prefix
	if own4 != "" {
		p4 = prefix(own4)
	}
	if own6 != "" {
		p6 = prefix(own6)
	}
	m, err := NewMap(remoteN(0x7fff0000), p4, p6)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestMapIPv6 has the two examples of protocol 4 section 6.4, and what happens when the first choice is taken.
func TestMapIPv6(t *testing.T) {
	var a key.Address
	for i := range a.Key {
		a.Key[i] = 0xa0 + byte(i)
	}
	now := time.Now()
	relay := a
	relay.Kind = key.Relay
	third := a
	third.Key[31] ^= 1
	m := newMap(t, "", "fd2e:7365:7368::1/64")
	for _, tt := range []struct {
		remote key.Address
		want   string
	}{
		{a, "fd2e:7365:7368:0:a0a1:a2a3:a4a5:a6a7"},
		{relay, "fd2e:7365:7368:0:a0a1:a2a3:a4a5:a6a8"},
		{third, "fd2e:7365:7368:0:a0a1:a2a3:a4a5:a6a9"},
		{a, "fd2e:7365:7368:0:a0a1:a2a3:a4a5:a6a7"},
		{key.Address{}, "fd2e:7365:7368::2"}, // not the network's address, not our own
		{remoteN(0x7fff0000), "fd2e:7365:7368::1"},
	} {
		got, err := m.IPv6(tt.remote, now)
		if err != nil || got != addr(tt.want) {
			t.Errorf("%v: %v, %v; want %v", tt.remote, got, err, tt.want)
		}
		if back, ok := m.Remote(got, now); !ok || back != tt.remote {
			t.Errorf("%v belongs to %v", got, back)
		}
	}
	if _, err := m.IPv4(a, now); err != ErrNoFamily {
		t.Errorf("IPv4 without a range: %v", err)
	}
	m = newMap(t, "", "fd2e:7365:7368::1/56")
	if got, _ := m.IPv6(a, now); got != addr("fd2e:7365:7368:a0:a1a2:a3a4:a5a6:a7a8") {
		t.Errorf("/56: %v", got)
	}
}

func TestMapIPv4(t *testing.T) {
	m := newMap(t, "10.1.2.1/29", "fd2e:7365:7368::1/64") // hosts .1 (own) to .6
	now := time.Now()
	must := func(n int, want string) {
		t.Helper()
		got, err := m.IPv4(remoteN(n), now)
		if want == "" {
			if err != ErrExhausted {
				t.Errorf("remote %d: %v, %v; want ErrExhausted", n, got, err)
			}
			return
		}
		if err != nil || got != addr(want) {
			t.Errorf("remote %d: %v, %v; want %v", n, got, err, want)
		}
		if back, ok := m.Remote(got, now); !ok || back != remoteN(n) {
			t.Errorf("%v belongs to %v", got, back)
		}
	}
	if _, ok := m.Addr(remoteN(1), 4, now); ok {
		t.Error("an address nobody asked for")
	}
	for n, want := range []string{1: "10.1.2.2", 2: "10.1.2.3", 3: "10.1.2.4", 4: "10.1.2.5", 5: "10.1.2.6"} {
		if n > 0 {
			must(n, want)
			now = now.Add(time.Second)
		}
	}
	must(1, "10.1.2.2")
	must(6, "")
	if err := m.SetLive(remoteN(2), true, now); err != nil {
		t.Fatal(err)
	}
	now = now.Add(keepMapping - 4*time.Second)
	must(6, "") // 3 was last used 10 minutes less a second ago
	now = now.Add(2 * time.Second)
	m.Remote(addr("10.1.2.5"), now) // 4 is used
	must(6, "10.1.2.4")             // 3's; 2 lives
	now = now.Add(4 * time.Second)
	must(7, "10.1.2.6") // 5's; 1 was asked for after it
	now = now.Add(2 * time.Second)
	must(8, "10.1.2.2") // 1's
	must(9, "")
	if a, err := m.IPv6(remoteN(3), now); err != nil || a != addr("fd2e:7365:7368::3:0:0") {
		t.Errorf("the remote that lost its IPv4 address: %v, %v", a, err)
	}
	now = now.Add(keepMapping + time.Minute)
	must(4, "10.1.2.5")
	if err := m.SetLive(remoteN(2), false, now); err != nil { // the end of a session is a use
		t.Fatal(err)
	}
	must(9, "10.1.2.4")
	must(10, "10.1.2.6")
	must(11, "10.1.2.2")
	must(12, "")
	now = now.Add(keepMapping)
	for _, n := range []int{4, 9, 10, 11} {
		must(n, map[int]string{4: "10.1.2.5", 9: "10.1.2.4", 10: "10.1.2.6", 11: "10.1.2.2"}[n])
	}
	must(12, "10.1.2.3") // 2's, at last
}

// TestMapRecycle: the bound on remotes holds, the least recently used go, and live, reserved and recent ones stay.
func TestMapRecycle(t *testing.T) {
	m := newMap(t, "10.0.0.1/8", "fd2e:7365:7368::1/64")
	now := time.Now()
	n := 0
	add := func() error {
		n++
		_, err := m.IPv6(remoteN(n), now)
		return err
	}
	for len(m.remote) < maxRemotes {
		if err := add(); err != nil {
			t.Fatal(err)
		}
	}
	if err := add(); err != ErrExhausted {
		t.Fatalf("full of recent ones: %v", err)
	}
	if err := m.SetLive(remoteN(1), true, now); err != nil {
		t.Fatal(err)
	}
	if err := m.Reserve(remoteN(2), addr("10.0.0.77"), now); err != nil {
		t.Fatal(err)
	}
	now = now.Add(keepMapping)
	if _, ok := m.Remote(addr("fd2e:7365:7368::3:0:0"), now); !ok { // uses 3
		t.Fatal("3 is gone")
	}
	for range maxRemotes - 4 { // but itself, 1, 2, 3
		if err := add(); err != nil {
			t.Fatal(err)
		}
	}
	if err := add(); err != ErrExhausted {
		t.Errorf("only live, reserved and recent ones are left: %v", err)
	}
	for i := 1; i <= 4; i++ {
		if _, ok := m.Addr(remoteN(i), 6, now); ok != (i < 4) {
			t.Errorf("remote %d: mapped %v", i, ok)
		}
	}
	if len(m.remote) != maxRemotes || len(m.addr) != maxRemotes+2 || m.used4 != 2 { // two remotes have IPv4 addresses too
		t.Errorf("%d remotes, %d addresses, %d of IPv4", len(m.remote), len(m.addr), m.used4)
	}
	if l := m.Mappings(now); len(l) != maxRemotes || l[0].Idle > l[1].Idle {
		t.Errorf("%d mappings", len(l))
	}
}

// TestMapForgets: who was not used for an hour does not stay, though there is room; who has a session, or an address of its own, does.
func TestMapForgets(t *testing.T) {
	m := newMap(t, "10.0.0.1/8", "fd2e:7365:7368::1/64")
	now := time.Now()
	if err := m.SetLive(remoteN(1), true, now); err != nil {
		t.Fatal(err)
	}
	if err := m.Reserve(remoteN(2), addr("10.0.0.77"), now); err != nil {
		t.Fatal(err)
	}
	for n := 3; n < 10_000; n++ {
		now = now.Add(time.Minute)
		if _, err := m.IPv6(remoteN(n), now); err != nil {
			t.Fatal(err)
		}
		if _, err := m.IPv4(remoteN(n), now); n%2 == 0 && err != nil {
			t.Fatal(err)
		}
		if n == 200 {
			m.IPv4(remoteN(3), now) // back after hours
		}
		if _, ok := m.Addr(remoteN(n-59), 6, now.Add(-time.Minute)); n > 70 && !ok {
			t.Fatalf("%d is gone after less than an hour", n-59)
		}
	}
	for i, kept := range map[int]bool{1: true, 2: true, 3: false, 200: false, 9999: true} {
		if _, ok := m.Addr(remoteN(i), 6, now); ok != kept {
			t.Errorf("remote %d: mapped %v", i, ok)
		}
	}
	if n := max(len(m.remote), len(m.all), len(m.with4), m.used4); n > 260 {
		t.Errorf("%d remotes, %d and %d in order, %d addresses of IPv4", len(m.remote), len(m.all), len(m.with4), m.used4)
	}
}

func TestMapReserve(t *testing.T) {
	m := newMap(t, "10.1.2.1/24", "fd2e:7365:7368::1/64")
	now := time.Now()
	for _, tt := range []struct {
		remote int
		a      string
		ok     bool
	}{
		{1, "10.1.2.2", true}, {1, "10.1.2.2", true}, {1, "fd2e:7365:7368::99", true},
		{1, "10.1.2.3", false}, {1, "fd2e:7365:7368::98", false}, // has others
		{2, "10.1.2.2", false}, {2, "10.1.2.1", false}, {2, "10.1.2.0", false}, {2, "10.1.2.255", false}, {2, "10.1.3.1", false},
		{2, "fd2e:7365:7368::1", false}, {2, "fd2e:7365:7368::", false}, {2, "10.1.2.9", true},
	} {
		if err := m.Reserve(remoteN(tt.remote), addr(tt.a), now); (err == nil) != tt.ok {
			t.Errorf("reserve %s for %d: %v", tt.a, tt.remote, err)
		}
	}
	if a, err := m.IPv4(remoteN(3), now); err != nil || a != addr("10.1.2.3") {
		t.Errorf("next free: %v, %v", a, err)
	}
	if a, err := m.IPv6(remoteN(1), now); err != nil || a != addr("fd2e:7365:7368::99") {
		t.Errorf("reserved: %v, %v", a, err)
	}
	if _, ok := m.Remote(addr("fd2e:7365:7368::1:0:0"), now); ok {
		t.Error("the address before the reservation is still there")
	}
}

func TestNewMap(t *testing.T) {
	for _, tt := range []struct{ own4, own6 string }{
		{"10.1.2.0/24", ""}, {"10.1.2.255/24", ""}, {"10.1.2.1/31", ""}, {"10.1.2.1/7", ""}, {"fd00::1/64", ""},
		{"", "fd00::/64"}, {"", "fd00::1/65"}, {"", "fd00::1/15"}, {"", "10.1.2.1/24"},
	} {
		var p4, p6 netip.Prefix
		if tt.own4 != "" {
			p4 = prefix(tt.own4)
		}
		if tt.own6 != "" {
			p6 = prefix(tt.own6)
		}
		if _, err := NewMap(remoteN(1), p4, p6); err == nil {
			t.Errorf("%v accepted", tt)
		}
	}
}
