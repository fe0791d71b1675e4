package router

import (
	"math"

	"lokinetd/router/link"
	"lokinetd/router/path"
	"lokinetd/router/session"
)

// Unbounded takes away what bounds what others cost a node. The bench of floods sets it, to show what the bounds are worth; nothing else does.
var Unbounded bool

const unbounded = math.MaxInt32

// bound is a bound on what strangers may cost, which is fair.Meter's.
func bound(n float64) float64 {
	if Unbounded {
		return math.Inf(1)
	}
	return n
}

// limits are the bounds of the layers below: their own, unless there are to be none.
func limits() (link.Limits, path.Limits, session.Limits) {
	if !Unbounded {
		return link.Limits{}, path.Limits{}, session.Limits{}
	}
	const n = unbounded
	return link.Limits{Connections: n, PerIP: n, Handshakes: n, Rate: n, SourceRate: n, Strangers: n, Requests: n, AllRequests: n, StreamQueue: n, Memory: n, NoTurns: true},
		path.Limits{Hops: n, ClientHops: n, RelayHops: n, Builds: n, ClientBuild: n, RelayBuild: n, BuildRate: 1 << 20, Requests: n, ClientRequest: n, RelayRequest: n, RequestBytes: n},
		session.Limits{Sessions: n, Unsure: n, Calls: n, Handshakes: 1 << 20, Contacts: n}
}
