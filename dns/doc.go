// Package dns is the DNS server of the daemon: it answers for .loki, .sesh and .snode and for the reverse zones of our address ranges,
// and hands every other name to the configured upstream resolvers, or refuses it (protocol 4 section 7, protocol/README decisions 3, 4 and 10).
//
// One query:
//
//  1. A socket is read (server.go); what is no query, comes from ourselves, or is over the bounds is dropped and counted.
//  2. The message is judged (message.go): header, sections, EDNS, cookie. What fails is answered here.
//  3. The name is placed by the labels of its wire form (name.go): ours, one of our reverse zones, to be kept in, or foreign.
//  4. Ours: records are made from what Source says (answer.go). Foreign: an upstream is asked (forward.go).
//  5. The reply is given its EDNS options, cut to the size that the client takes, counted and sent (message.go, server.go).
//
// A name of ours never leaves for an upstream, in no state and no spelling. Three checks stand one behind the other: step 3, which forwards only
// what it knows to be foreign; the same rule once more on the bytes that are about to be sent (mayLeave); and a memory of names that we
// answered without a record, because a stub resolver then appends its search domains and asks for name.loki.example.net.
//
// Where the protocol document leaves a choice, or the reference does what resolvers do not expect:
//
//   - A CNAME stands at the name that was asked for, subdomains included (www.name.loki CNAME www.KEY.loki); resolvers throw away one that stands at name.loki
//     alone. localhost leads to our address in one step, in all three domains.
//   - A bare domain has a SOA record and NODATA for the rest, also while not connected. A name that exists is NODATA for every type that it has
//     not, ANY included.
//   - SERVFAIL carries an extended error when the client has EDNS. systemd-resolved repeats a failed query, then again with fewer features; versions that read
//     extended errors (its pull request 30513; not Debian 12's) stop at once.
//   - A BADCOOKIE is never sent over TCP, where the client's address is proven.
//   - Upstreams are always asked with RD and with EDNS options of our own.
//
// The package resolves nothing itself: names, addresses and sessions are the business of Source, which package router implements.
//
// Beside the server, and knowing nothing of it but its addresses, stands what makes the programs of the host ask it (host*.go): a pure function chooses the way, the
// daemon tells systemd-resolved over D-Bus, and what needs root is done by another process, `lokinetd dns`. docs/dns.md explains it to people.
package dns
