package router

import (
	"context"
	"errors"
	"time"

	"lokinetd/router/link"
)

// How long a link that may have died is given to show that it lives.
const (
	provePatience = 600 * time.Millisecond // at least: QUIC sends a lost packet again within
	proveMost     = 2 * time.Second
)

// Wake makes a client find out at once what of its links and paths has died, and dial and build again: the way to the network is another, or the machine has slept. Else it
// would take until a link has been silent for a minute. A link whose relay hears us from another address lives on (QUIC's migration), with its paths and their sessions;
// a relay that does not know the link any more says so; a link over which nothing at all comes is closed. After a sleep paths are examined too: relays may have been
// restarted meanwhile.
func (n *Node) Wake(slept bool) {
	n.peers.Wake()
	if n.client == nil {
		return
	}
	for _, l := range n.peers.Connected() {
		if l.Outbound() {
			n.serve(func(ctx context.Context) { n.client.prove(ctx, l) })
		}
	}
	if slept {
		n.client.paths.Suspect()
	}
	n.client.dialEdges(time.Now())
}

// prove closes a link over which nothing comes though it is asked.
func (c *client) prove(ctx context.Context, l link.Conn) {
	before := l.Stats()
	ctx, cancel := context.WithTimeout(ctx, min(max(4*before.RTT, provePatience), proveMost))
	defer cancel()
	_, err := l.Request(ctx, "ping", nil) // any relay answers it (protocol 2 section 7.1)
	if !errors.Is(err, link.ErrTimeout) || l.Stats().WirePacketsIn != before.WirePacketsIn {
		return
	}
	c.n.log.Debug("link closed: it is silent since the network has changed", "relay", l.Remote())
	l.Close(link.CodeNormal)
	<-l.Done()
	c.dialEdges(time.Now())
}
