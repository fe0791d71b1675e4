// Package packet holds the one thing that every step of the data plane hands on, the pooled [Buffer], and reads and rewrites IP headers in place.
// Where packets must wait, they do in a [Fair]: on a link, and behind the TUN.
//
// It does not decide what else happens to a packet: which addresses it gets and whether it may pass is netif's business, what it is sealed with
// seal's, where it goes next path's and link's. It never allocates per packet.
package packet
