// Package oxend talks to the oxend of a relay's host (protocol 2 section 8): it holds the relay's key, knows which relays are registered and which names are taken, wants
// to hear that the relay lives, and to be told which other relays are reachable.
//
// oxend speaks OxenMQ, which is requests and replies in messages of ZeroMQ, on a Unix socket: ZMTP 3 with the NULL mechanism, no CURVE. Of ZMTP there is what a
// DEALER that is connected to one ROUTER needs (zmtp.go: bytes in, events out). No library does it: the only one in pure Go asks for a maintainer, and libzmq would need cgo.
//
// A [Client] keeps the connection up for as long as its Run runs; oxend may come late, restart and stay away. What it says is checked, and a bad answer changes nothing:
// the last list of relays stays.
//
// [Schedule] says which relays are to be tested when (protocol 2 section 10). The tests themselves need links: router does them, and decides what the lists and results are good
// for. Nothing here knows contacts, links or the node database.
package oxend
