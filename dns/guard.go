package dns

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"lokinetd/router/key"
)

// GuardConfig is what a guard needs. Sockets must be set.
type GuardConfig struct {
	Place    Place
	Sockets  *Sockets
	Upstream []netip.AddrPort      // as configured; empty: those that the host asked before all names came to us
	Ranges   func() []netip.Prefix // of the daemon that is away, as far as they can be seen now; nil: none
	Log      *slog.Logger          // nil: none
}

// lookAgain is how often a guard looks at the former resolvers and at the ranges: two or three files, and the kernel's routes.
const lookAgain = 5 * time.Second

// Guard answers in the place of a daemon that does not run, until ctx ends: names of ours and of addresses in our ranges with SERVFAIL, at once; all others as the daemon
// does, by the upstream resolvers. Thus the programs of a host whose names all come to us are served, and our names do not leave it.
func Guard(ctx context.Context, c GuardConfig) error {
	src := &away{}
	s, err := New(Config{Source: src, Sockets: c.Sockets, Log: c.Log})
	if err != nil {
		return err
	}
	var upstream []netip.AddrPort
	look := func() {
		now := c.Upstream
		if len(now) == 0 {
			now = c.Place.Former(c.Sockets.Addrs())
		}
		if !slices.Equal(now, upstream) {
			if err := s.SetUpstream(now); err != nil {
				s.log.Warn("other names cannot be asked there", "err", err)
			}
			upstream = now
			s.log.Info("other names are asked elsewhere", "upstream", now)
		}
		if c.Ranges != nil {
			src.add(c.Ranges())
		}
	}
	look()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-again.C:
			look()
		}
	}
}

// Former are the resolvers that this host asked before all names came to us, as they are now: DHCP may have changed them since. None, if one of them is on this host,
// because that one may ask us in turn.
func (p Place) Former(listen []netip.AddrPort) []netip.AddrPort {
	w := World{Listen: listen, Resolv: p.resolvConf(), Records: p.records()}
	upstream, _ := w.former()
	return upstream
}

// Adopted are those, if all names come to us already, by an earlier run; else none.
func (p Place) Adopted(listen []netip.AddrPort) []netip.AddrPort {
	if !p.takesAll() {
		return nil
	}
	return p.Former(listen)
}

// away is the Source of a guard.
type away struct {
	ranges atomic.Pointer[[]netip.Prefix]
}

// add remembers ranges for as long as the guard runs: somebody may take the routes away by which they are seen, and their addresses are still ours then.
func (a *away) add(ranges []netip.Prefix) {
	known := a.Ranges()
	all := slices.Clone(known)
	for _, r := range ranges {
		if r = r.Masked(); !slices.Contains(all, r) {
			all = append(all, r)
		}
	}
	if len(all) > len(known) {
		a.ranges.Store(&all)
	}
}

func (a *away) Ranges() []netip.Prefix {
	if r := a.ranges.Load(); r != nil {
		return *r
	}
	return nil
}

// The rest is not asked: the server sees that its source is away.

var errAway = errors.New("dns: lokinetd is stopped")

func (*away) Ready(context.Context) bool       { return false }
func (*away) Self() key.Address                { return key.Address{} }
func (*away) RandomRelay() (key.Address, bool) { return key.Address{}, false }
func (*away) Exists(key.Address) bool          { return true }
func (*away) Text(key.Address, bool) []string  { return nil }
func (*away) Lookup(context.Context, string) (key.Address, time.Duration, error) {
	return key.Address{}, 0, errAway
}
func (*away) Addr(context.Context, key.Address, bool) (netip.Addr, error) {
	return netip.Addr{}, errAway
}
func (*away) Reverse(netip.Addr) (key.Address, bool)               { return key.Address{}, false }
func (*away) Services(context.Context, key.Address) ([]SRV, error) { return nil, errAway }
