package router

import "time"

// Wake makes a client find out at once what of its links and paths has died, and dial and build again: the way to the network is another, or the machine has slept. Else it
// would take until a link has been silent for a minute. A link whose relay hears us from another address lives on (QUIC's migration), with its paths and their sessions;
// a relay that does not know the link any more says so; for those over which nothing at all comes see [path.Client.Wake].
func (n *Node) Wake(slept bool) {
	n.peers.Wake()
	if n.client == nil {
		return
	}
	n.client.paths.Wake(slept)
	n.client.dialEdges(time.Now())
}
