package netif

import (
	"encoding/json"
	"testing"
	"time"

	"lokinetd/router/key"
)

// FuzzRestore: the file of addresses is of an earlier version, damaged or another program's. Nothing panics or hangs, our own address stays ours, and no two remotes get
// the same one.
//
// Decoders: Map.Restore Map.hosts4 Map.set6 hostAddr Map.free4
func FuzzRestore(f *testing.F) {
	for _, k := range []Kept{
		{IPv4: prefix("10.0.0.1/29"), Next: 3, Remotes: []KeptRemote{{Remote: remoteN(5), IPv4: addr("10.0.0.3")}, {Remote: remoteN(5), IPv4: addr("10.0.0.4")}, {Remote: remoteN(6), IPv4: addr("10.0.0.3")}}},
		{IPv4: prefix("10.0.0.1/29"), Next: 6, Remotes: []KeptRemote{{Remote: remoteN(1), IPv4: addr("10.0.0.5")}, {Remote: remoteN(7), IPv4: addr("10.0.0.7")}, {Remote: remoteN(8), IPv4: addr("10.0.0.0")}, {Remote: remoteN(9), IPv4: addr("fd00::9")}}},
		{IPv4: prefix("10.0.0.0/29"), Next: 7, Remotes: []KeptRemote{{Remote: key.Address{}, IPv4: addr("10.0.0.2")}, {Remote: remoteN(2), IPv4: addr("10.0.0.4")}, {Remote: remoteN(3), IPv4: addr("10.0.0.5")}, {Remote: remoteN(4), IPv4: addr("10.0.0.6")}, {Remote: remoteN(5), IPv4: addr("10.0.0.3")}}},
		{IPv4: prefix("10.1.0.1/29"), Next: 1}, {},
		{IPv6: prefix("fd2e:7365:7368::1/64"), Remotes: []KeptRemote{{Remote: remoteN(5), IPv6: addr("fd2e:7365:7368::8")}, {Remote: remoteN(6), IPv6: addr("fd2e:7365:7368::8")}, {Remote: remoteN(5), IPv6: addr("fd2e:7365:7368::9")}}},
		{IPv6: prefix("fd2e:7365:7368::1/64"), Remotes: []KeptRemote{{Remote: remoteN(1), IPv6: addr("fd2e:7365:7368::7")}, {Remote: remoteN(7), IPv6: addr("fd2e:7365:7368::1")}, {Remote: remoteN(8), IPv6: addr("::ffff:10.0.0.2")}}},
	} {
		raw, err := json.Marshal(k)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"ipv4":"10.0.0.1/29","next":4294967295,"remotes":[{"ipv4":"10.0.0.2"},{}]}`))
	own := prefix("10.0.0.1/29")
	f.Fuzz(func(t *testing.T, raw []byte) {
		var k Kept
		if json.Unmarshal(raw, &k) != nil {
			return
		}
		m, err := NewMap(remoteN(1), own, prefix("fd2e:7365:7368::1/64"))
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		m.Restore(k, now)
		seen := map[string]key.Address{}
		for n := 20; n < 30; n++ { // more than there is room for
			m.IPv4(remoteN(n), now)
		}
		for _, x := range m.Mappings(now) {
			if r, ok := m.Remote(x.IPv6, now); !ok || r != x.Remote || (x.IPv6 == addr("fd2e:7365:7368::1")) != (x.Remote == remoteN(1)) {
				t.Fatalf("%v belongs to %v, not %v", x.IPv6, r, x.Remote)
			}
			if !x.IPv4.IsValid() {
				continue
			}
			if old, ok := seen[x.IPv4.String()]; ok || !hostAddr(own, x.IPv4) || (x.IPv4 == own.Addr()) != (x.Remote == remoteN(1)) {
				t.Fatalf("%v has %v, and so has %v", x.Remote, x.IPv4, old)
			}
			seen[x.IPv4.String()] = x.Remote
			if r, ok := m.Remote(x.IPv4, now); !ok || r != x.Remote {
				t.Fatalf("%v belongs to %v", x.IPv4, r)
			}
		}
	})
}
