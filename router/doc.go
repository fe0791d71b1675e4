// Package router wires everything: a [Node] is one member of a network, a client or a relay; [Run] is the daemon around it.
//
// Where what stands, from the wire up (each package says in its own comment what it does not do):
//
//	bt, key, packet   encoding, identities, buffers
//	fair              what is scarce is shared between strangers
//	seal              every change of bytes under a key
//	netdb, link       what is known of others; connections to neighbours
//	path              onion paths, both ends
//	session           end-to-end sessions over paths
//	router            who asks whom, and when
//
// In this package: node.go starts and stops the parts; relay.go answers the requests that come to a relay and keeps its mesh; client.go keeps a client's edges and what it knows of the network; bootstrap.go is where both roles begin; endpoint.go is one identity of a
// client; sns.go looks names up. host.go and host_*.go are
// the side of the operating system, in order of a start: the data directory and what is written down there, the network interface, endpoints and their
// addresses, the ports of services that lead to local ones, the name server (source.go answers its questions), the control socket (status.go), reload, and the end in reverse.
//
// [RunProxy] (proxy.go) is the daemon without root: a stack in this process in the place of the network interface, proxies in the place of the name server.
//
// A Node touches no operating system but through its [link.Wire] and the folder of its [netdb.Store], which is how router/testnet runs many in one process.
package router
