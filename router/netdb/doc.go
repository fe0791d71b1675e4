// Package netdb holds what a node knows of others: relay contacts (RC), client contacts (CC) and the registered set (protocol 1 sections 6,
// 7, 9 and 10).
//
//   - [RelayContact]: where a relay is reached, signed by it. [Store]: the relay contacts that a node knows, verified, in memory and on disk.
//   - [ClientContact]: how a client is reached, sealed so that only who knows its key can read it. [Contacts]: the sealed ones that a
//     relay keeps for others; [Closest] says which relays do.
//   - The bodies of all requests that carry these (messages.go), for both ends, as pure functions, and [Quorum], which relay keys a
//     client may believe.
//   - Bootstrap files, the bootstrap reply, and [NetworkFile], the signed file that a private network has instead of oxend.
//
// Nothing here asks anybody: router sends the requests, decides when, and answers those of others with these functions. The Store touches
// the disk only in [OpenStore] and in [Store.Run]; nothing else does. How a contact's path is chosen is router/path's; the session handshake
// is router/session's.
//
// Values are immutable once made, and what they keep is their own copy: nothing returned from here borrows from a message, except where a decoder of
// messages.go says so.
package netdb
