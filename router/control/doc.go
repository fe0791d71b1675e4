// Package control is the conversation between the daemon and its command line:
// HTTP with JSON bodies over one unix socket.
//
// It holds the types that travel (types.go), the server with the check of the
// peer's credentials (server.go) and the client (client.go). What the answers
// say is decided by the API that package router implements; how they are shown
// to people is decided by cmd/lokinetd. There is no TCP listener.
//
// JSON conventions: snake_case names, "schema": 1 at the top, units in names
// (rtt_ms), times as RFC 3339, changes only by addition.
package control
