package testnet

import (
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/path"
)

// killRelays plays what TestRelayKilled of cmd/lokinetd does with processes: a network of ten, and downloads under which a relay of the way is killed and soon started again, each place
// of it in turn. It gives the silences.
func killRelays(t *testing.T, world, kills int, load float64) (silences []time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		n := New(t, Options{Relays: 10, Clients: 2, Latency: 300 * time.Microsecond, Seed: seed(t) + uint64(world), Change: func(h *Host) {
			h.options = func(o *path.Options) { *o = path.DefaultOptions(); o.UniqueRange = 0 }
			h.browses = !h.relay && h.addr.Addr().As4()[2] == 0
		}})
		guest, host := n.Clients[0], n.Clients[1]
		n.medium.(*fabric).setLoad(load)
		time.Sleep(5 * time.Second)
		for kill := range kills {
			s := download(guest, host, uint16(1000+kill), 10*time.Millisecond)
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				if _, n := s.silence(); n > 40 {
					break
				} else if time.Now().After(end) {
					t.Fatal("no download")
				}
			}
			time.Sleep(700 * time.Millisecond)
			var way []key.Public
			for ; len(way) < 6; time.Sleep(20 * time.Millisecond) {
				if all := routes(guest, host); len(all) > 0 {
					way = all[0]
				}
			}
			place := []int{0, 1, 2, 4, 3}[(world*kills+kill)%5]
			victim := n.relay(t, way[place])
			s.silence()
			at := time.Now()
			victim.Kill()
			for time.Since(at) < 1200*time.Millisecond || s.lately() > 100*time.Millisecond && time.Since(at) < 40*time.Second {
				time.Sleep(20 * time.Millisecond)
			}
			silent, _ := s.silence()
			silences = append(silences, silent)
			s.end()
			victim.Start()
			time.Sleep(2 * time.Second)
		}
	})
	return silences
}

// TestKilledStreams: relays are killed under downloads, on idle machines and on busy ones, two in each network and, every few seconds, five. Keys differ in each run, and in a network of ten
// a relay may be on all ways that there are, so single kills may take longer than the bound of TestRelayKilled.
func TestKilledStreams(t *testing.T) {
	for _, x := range []struct {
		name          string
		worlds, kills int
		load          float64
		median, most  time.Duration
	}{
		{"two, idle", 50, 2, 0, 700 * time.Millisecond, 4 * time.Second},
		{"two, busy", 50, 2, 1, 1500 * time.Millisecond, 4 * time.Second},
		{"two, overloaded", 25, 2, 3, 4 * time.Second, 8 * time.Second},
		{"five, idle", 25, 5, 0, 700 * time.Millisecond, 8 * time.Second},
	} {
		t.Run(x.name, func(t *testing.T) {
			if raceEnabled || testing.Short() {
				x.worlds = 1
			}
			if text := os.Getenv("LOKINETD_WORLDS"); text != "" {
				x.worlds, _ = strconv.Atoi(text)
			}
			var all []time.Duration
			for world := range x.worlds {
				all = append(all, killRelays(t, world, x.kills, x.load)...)
			}
			slices.Sort(all)
			long := 0
			for _, d := range all {
				if d > x.most {
					long++
				}
			}
			median, most := all[len(all)/2], all[len(all)-1]
			t.Logf("%d kills: silent for %v, %v, %v, %v (median, 90 %%, 99 %%, most); %d longer than %v", len(all), median, all[len(all)*9/10], all[len(all)*99/100], most, long, x.most)
			if len(all) >= 50 && (median > x.median || long > len(all)/20) || most > 30*time.Second {
				t.Error("too long")
			}
		})
	}
}
