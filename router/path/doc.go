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
// An earlier one may be held when a later one is taken, never the other way round:
//
//	Pool.mu > Client.mu > netdb's own
//	Pool.mu > profile.mu
//	Pool.mu > events.mu
//	Relay.mu > shard.mu
//
// No lock is held while an owner is told of an event, a [Local] or a reply is called, or a [Link] or [Mesh] is used. Events of one pool are serialised by a
// token, events.turn. Only goroutines that bring messages from the network wait for it; what an owner calls, from inside an event or with locks
// of its own held, never does (events.go).
//
// Per message the data plane takes: at a relay the read lock of one of 64 shards; at a client nothing for what goes out, and for what comes in the
// read lock of Client, the pool's turn and events.mu.
package path
