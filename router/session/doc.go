// Package session carries IP packets end to end between the remotes of one endpoint, over onion paths (protocol 4 sections 1 to 5).
//
// Two things stand here. The handshake machines (handshake.go, handshake10.go, control.go) are pure: bytes in, bytes and keys out. The [Table] holds the
// sessions of one endpoint, a client's or a relay's: it looks contacts up and publishes its own, chooses paths, repeats what is lost,
// and seals and opens packets.
//
// What the package does not do: it builds no paths and knows no links (router/path does), it does not rewrite addresses in packets and
// keeps no map from IP addresses to remotes (netif does), it answers no DNS question (router and dns do), and it does not know who may call (its
// owner says so in [Config]). Both handshakes are spoken, in both roles: the 1.1 one with every
// remote that knows it.
package session
