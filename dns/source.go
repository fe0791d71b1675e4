package dns

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"lokinetd/router/key"
)

// What a Source says besides an answer; compared with errors.Is. Every other error is a failure that may pass: SERVFAIL.
var (
	// ErrNotExist: it is certain that the thing asked for does not exist.
	ErrNotExist = errors.New("dns: does not exist")
	// ErrNoFamily: the address family is off on this host.
	ErrNoFamily = errors.New("dns: address family is off")
	// ErrExhausted: no local address is free for a new remote.
	ErrExhausted = errors.New("dns: no free address")
)

// Source is what the server knows of the network. All methods are called concurrently. Those with a context return soon after it ends; the server
// ends it 1.5 s after the query came (Config.Hold). What takes longer should go on by itself and be ready for the client's next try.
//
// An Address is always canonical: one key and kind, whichever text form was asked for.
type Source interface {
	// Ready reports whether the node is connected: at least one path is up. While connecting it waits for that until ctx ends; when there is no
	// hope it must return false at once: systemd-resolved repeats a query that failed, and each is held. Not ready: SERVFAIL for everything but our own
	// address.
	Ready(ctx context.Context) bool

	// Self is the address that localhost.loki stands for.
	Self() key.Address

	// RandomRelay gives a known relay for random.snode, false if none is known.
	RandomRelay() (key.Address, bool)

	// Lookup resolves an SNS name: lower case, "name.loki", no subdomain, valid by key.CheckSNS (protocol 1 section 8.4). The time is for how long
	// the answer holds, also with ErrNotExist.
	Lookup(ctx context.Context, name string) (key.Address, time.Duration, error)

	// Exists is false for a relay that is certainly not registered, and never for a client. It does not wait.
	Exists(a key.Address) bool

	// Addr gives the local address that stands for a: IPv6 made from the key, IPv4 mapped on demand. It starts a session and waits until that can
	// carry packets, and gives the address all the same when ctx ends first or the remote is offline. Our own addresses come at once,
	// without a session. Errors: ErrNoFamily (at once), ErrExhausted.
	Addr(ctx context.Context, a key.Address, v6 bool) (netip.Addr, error)

	// Ranges gives our address ranges. They should be known before queries are read: reverse queries inside them are not forwarded.
	Ranges() []netip.Prefix

	// Reverse says for whom ip, an address inside Ranges, stands now.
	Reverse(ip netip.Addr) (key.Address, bool)

	// Text gives the TXT strings of a name of a, in the forms of protocol 4 section 7.3: of Self the version, of a relay its contact; with path, of the
	// name path.<a>, the current session. None is an empty list. It does not wait.
	Text(a key.Address, path bool) []string

	// Services gives the SRV records of a's contact, from a cache or the network. Errors: ErrNotExist (no contact is published).
	Services(ctx context.Context, a key.Address) ([]SRV, error)
}

// SRV is one service record of a contact (protocol 1 section 7.5), as it was decoded; the server drops what must not be answered.
type SRV struct {
	Service  string // "_service._proto"
	Priority uint16
	Weight   uint16
	Port     uint16
	Target   string // a name of ours; "" is the client itself, "." is "not offered"
}
