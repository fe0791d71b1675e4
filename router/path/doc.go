// Package path builds onion paths and carries bytes over them: both ends of protocol 3, the client that builds and wraps and the
// relay that peels, forwards and turns at the pivot.
//
// The machinery is pure and stands first: build.go (the message of eight frames), onion.go (layers and trailers), control.go (requests
// to the terminal relay). Over it stand two owners of state: [Relay], the transit hops of one relay, and [Client], the paths of
// one client in [Pool]s of one purpose each. Neither opens a socket: they see a neighbour as a [Link] and the other relays as a [Mesh].
//
// What the package does not do: it keeps no connection (router/link and router do, and report them with EdgeUp, EdgeDown and LinkClosed), it
// knows nothing of what a session message holds beyond the tag and pivot id behind it (router/session does), and it answers no request of a path's terminal
// except path_ping ([Local], which router implements). Frames are v0 only, sent and accepted (protocol/README decisions 1 and 2).
//
// # Locks
//
// In this order, an earlier one may be held when a later one is taken, never the other way round:
//
//	Pool.mu > Client.mu > netdb's own > profile.mu
//	Relay.mu > table shard
//	Pool.queue.mu stands alone and is innermost.
//
// No lock is held while an event is delivered, a [Local] or a reply is called, or a Link or Mesh is used. Events of one pool are serialised by
// a token (Pool.turn) that only a goroutine bringing something from the network waits for; what the owner calls from inside an event, or with locks of its own held, never does (see
// events.go).
//
// The data plane takes no lock but one of 64 read locks for a message at a relay, the client's read lock for one that comes in, and none for one
// that goes out.
package path
