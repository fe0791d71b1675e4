package path

import "time"

// Limits bound what neighbours can make a relay hold or compute. Upstream has none (protocol 3 sections 2.6 and 5.5), and the protocol has no text for "too much":
// what exceeds a limit is answered ERROR. Zero fields take the default.
//
// One link is one client connection, or one relay however often it reconnects. While more than half of an overall limit is used, a link that already has an eighth of
// its own gets no more: few links can then not take the rest from the many.
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

// admits says whether one more is allowed to a link that uses mine, when all use total.
func (q quota) admits(mine, total int) bool {
	if mine >= q.link || total >= q.all {
		return false
	}
	return total < q.all/2 || mine < max(1, q.link/8)
}

// bucket is a token bucket. The zero bucket is full.
type bucket struct {
	spent float64 // tokens short of full, at last
	last  time.Time
}

// take takes one token of a bucket of rate tokens a second and burstSeconds times as many at most.
func (b *bucket) take(now time.Time, rate int) bool {
	b.fill(now, rate)
	if b.spent+1 > float64(rate*burstSeconds) {
		return false
	}
	b.spent++
	return true
}

func (b *bucket) fill(now time.Time, rate int) {
	if since := now.Sub(b.last).Seconds(); since > 0 {
		b.spent = max(0, b.spent-since*float64(rate))
		b.last = now
	}
}

// pace keeps a client's builds over one edge within nine tenths of what relays allow a client's connection by default: more would be refused there, and begun again here. It
// is under Client.mu.
type pace struct {
	since   time.Time // when it was connected
	rate    bucket
	waiting int    // for their answers
	pongs   uint64 // of the edge itself; not of builds, but as long-lived as this is
}

// ready says whether one more build may begin; half of it all is for pools that have no path.
func (p *pace) ready(now time.Time, first bool) bool {
	l := Limits{}.withDefaults()
	p.rate.fill(now, l.BuildRate)
	share := 0.9
	if !first {
		share /= 2
	}
	return float64(p.waiting+1) <= share*float64(l.ClientBuild) && p.rate.spent+1 <= share*float64(l.BuildRate*burstSeconds)
}
