package router

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/dns"
	"lokinetd/netif"
	"lokinetd/router/control"
)

// hostDNS is how the programs of the host come to ask the name server.
type hostDNS struct {
	way     *dns.Host                        // nil: not our business
	adopted atomic.Pointer[[]netip.AddrPort] // resolvers for other names that way has found; nil: none

	mu      sync.Mutex
	judged  *control.HostDNS
	judgeAt time.Time
}

// judgeFor is how long it counts what was seen on the host: seeing takes files and D-Bus, and who watches the status asks every second or more often.
const judgeFor = 2 * time.Second

// openHostDNS keeps the host's resolver told, from when the name server listens until before it goes.
func (h *host) openHostDNS() {
	device, ok := h.device.(interface{ Index() int })
	if !ok {
		return // an interface that the kernel does not know
	}
	log := h.log.With("mod", "dns")
	h.hostDNS.way = dns.NewHost(dns.HostConfig{
		Want: dns.Method(h.config.DNS.Host), Listen: h.sockets.Addrs(), Upstream: h.upstream, Log: log,
		Link: func() dns.Link {
			l := dns.Link{Name: h.device.Name(), Index: device.Index()}
			for _, e := range h.endpoints {
				_, own4, own6 := e.addrs.Self()
				for _, own := range []netip.Prefix{own4, own6} {
					if own.IsValid() {
						l.Own = append(l.Own, own)
					}
				}
			}
			return l
		},
		Anchor: func() (dns.Link, error) {
			index, addr, err := netif.Hold()
			return dns.Link{Name: netif.HoldName, Index: index, Addr: addr.Addr()}, err
		},
		Keep: h.config.DNS.Hold,
		Adopt: func(found []netip.AddrPort) {
			h.hostDNS.adopted.Store(&found)
			if err := h.setUpstream(h.upstream()); err != nil {
				log.Warn("the host's former resolvers cannot be asked for other names", "err", err)
			}
		},
	})
	h.parts.run("resolver of the host", answerLimit, func(ctx context.Context) error {
		err := h.hostDNS.way.Run(ctx)
		if !h.config.DNS.Hold {
			netif.Unhold() // what is left, if that fails, routes nothing
		}
		return err
	})
}

// adoptFormer does what the first look at the host will, for names that wait in the sockets since an earlier run: they would be refused.
func (h *host) adoptFormer(configured []netip.AddrPort) []netip.AddrPort {
	if _, ok := h.device.(interface{ Index() int }); !ok || len(configured) > 0 {
		return configured
	}
	if found := (dns.Place{}).Adopted(h.sockets.Addrs()); len(found) > 0 {
		h.hostDNS.adopted.Store(&found)
		return found
	}
	return nil
}

// setUpstream makes the name server ask these for other names; if there are none, those that the host asked before all names came to us.
func (h *host) setUpstream(configured []netip.AddrPort) error {
	if found := h.hostDNS.adopted.Load(); len(configured) == 0 && found != nil {
		configured = *found
	}
	return h.dns.SetUpstream(configured)
}

// status is nil until the host has been looked at.
func (d *hostDNS) status() *control.HostDNS {
	if d.way == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.judged == nil || time.Since(d.judgeAt) > judgeFor {
		s := d.way.Status()
		if s.Method == "" {
			return nil
		}
		d.judged = &control.HostDNS{Method: string(s.Method), Why: s.Reasons, InEffect: s.Applied, Problem: s.Problem, Advice: s.Advice}
		d.judgeAt = time.Now()
	}
	return d.judged
}
