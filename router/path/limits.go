package path

import (
	"time"

	"lokinetd/router/fair"
)

// Limits bound what neighbours can make a relay hold or compute. Upstream has none (protocol 3 sections 2.6 and 5.5), and the protocol has no text for "too much":
// what exceeds a limit is answered ERROR. Zero fields take the default.
//
// One link is one client connection, or one relay however often it reconnects. Links share by package fair's rule.
type Limits struct {
	Hops        int // transit hops in all; default 65,536 (each about 0.5 KiB)
	ClientHops  int // over one client connection; default 1,024
	RelayHops   int // over one relay; default 16,384
	Builds      int // path_build requests that wait for the next hop, in all; default 2,048
	ClientBuild int // over one client connection; default 64
	RelayBuild  int // over one relay; default 512
	// BuildRate is how many path_build requests a second one link may send before the key agreement, the dearest thing that a message can make a relay do (0.15 ms), is
	// done for it; ten times as many at once. Default 20 for a client connection, 50 times that for a relay.
	BuildRate     int
	Requests      int // path_control requests that wait for the next hop, in all; default 8,192
	ClientRequest int // over one client connection; default 256
	RelayRequest  int // over one relay; default 2,048
	RequestBytes  int // bodies of all those, in bytes; default 32 MiB
	Rate          int // bytes a second of datagrams that are sent for paths, shared fairly between them; 0: as many as come
}

// withDefaults fills in the zero fields.
func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		v   *int
		def int
	}{
		{&l.Hops, 1 << 16}, {&l.ClientHops, 1 << 10}, {&l.RelayHops, 1 << 14},
		{&l.Builds, 1 << 11}, {&l.ClientBuild, 1 << 6}, {&l.RelayBuild, 1 << 9},
		{&l.BuildRate, 20},
		{&l.Requests, 1 << 13}, {&l.ClientRequest, 1 << 8}, {&l.RelayRequest, 1 << 11},
		{&l.RequestBytes, 32 << 20},
	} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	return l
}

const (
	relayRateFactor = 50
	burstSeconds    = 10
)

// quota is one number that is bounded over one link and in all.
type quota struct{ link, all int }

func (q quota) admits(mine, total int) bool { return fair.Admits(mine, total, q.link, q.all) }

// pace keeps a client's builds over one edge within nine tenths of what relays allow a client's connection by default: more would be refused there, and begun again here. It
// is under Client.mu.
type pace struct {
	since   time.Time // when it was connected
	builds  fair.Account
	waiting int    // for their answers
	pongs   uint64 // of the edge itself; not of builds, but as long-lived as this is
}

// ready says whether one more build may begin; half of it all is for pools that have no path.
func (p *pace) ready(now time.Time, first bool) bool {
	l := Limits{}.withDefaults()
	share := 0.9
	if !first {
		share /= 2
	}
	return float64(p.waiting+1) <= share*float64(l.ClientBuild) && p.builds.Spent(now, float64(l.BuildRate))+1 <= share*float64(l.BuildRate*burstSeconds)
}
