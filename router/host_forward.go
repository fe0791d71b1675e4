package router

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"lokinetd/config"
	"lokinetd/netif/proxy"
)

// forward is one open port of a service's address that leads to a local one.
type forward struct {
	at    netip.AddrPort
	proto string
	to    netip.AddrPort
}

// forwards are the open ones, each with what closes it and waits for its end. For the start and the main loop's goroutine.
type forwards map[forward]func()

// forwardsOf gives what a service's ports lead to. Without a network interface all of them lead somewhere: programs of this host cannot listen on the service's address.
func (h *host) forwardsOf(s *config.Service) []config.Forward {
	all := append([]config.Forward(nil), s.Forward...)
	if h.userSpace() != nil {
		for _, p := range s.Ports {
			all = append(all, config.Forward{Port: p, To: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.Number)})
		}
	}
	return all
}

// openForwards opens and closes ports until they are as configured, as far as that is possible: another program may have a port, and let go of it. Until then it is called
// every second, and status tells.
func (h *host) openForwards() {
	err := h.setForwards()
	was := h.ofForwards.Load()
	switch h.unforwarded = err != nil; {
	case err == nil && was != nil:
		h.ofForwards.Store(nil)
		h.log.Info("the ports of all services are open now")
	case err != nil && (was == nil || !strings.HasSuffix(*was, err.Error())):
		h.wrong(&h.ofForwards, "ports of services that cannot be opened yet", err)
	}
}

// setForwards opens and closes until the services' forwards are as configured; what stays keeps its connections. An error leaves out what it is about.
func (h *host) setForwards() error {
	want := map[forward]bool{}
	for _, e := range h.endpoints {
		if s := e.service.Load(); s != nil {
			for _, f := range h.forwardsOf(s) {
				for _, own := range e.own() {
					if own.Is6() && h.device.NoIPv6() != "" {
						continue
					}
					want[forward{netip.AddrPortFrom(own, f.Port.Number), f.Port.Proto, f.To}] = true
				}
			}
		}
	}
	if h.forwards == nil {
		if len(want) == 0 {
			return nil
		}
		h.forwards = forwards{}
		h.parts.add("forwarded ports", hostLimit, func() error {
			for _, stop := range h.forwards {
				stop()
			}
			return nil
		})
	}
	for f, stop := range h.forwards {
		if !want[f] {
			stop()
			delete(h.forwards, f)
		}
	}
	var errs []error
	for f := range want {
		if h.forwards[f] == nil {
			stop, err := h.openForward(f)
			if err != nil {
				errs = append(errs, fmt.Errorf("forward %s/%d -> %v: %w", f.proto, f.at.Port(), f.to, err))
				continue
			}
			h.forwards[f] = stop
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) }) // the same text each time
	return errors.Join(errs...)
}

// openForward listens on the service's address, in the stack or on the host.
func (h *host) openForward(f forward) (stop func(), err error) {
	fw := &proxy.Forwarder{To: f.to, Log: h.log.With("mod", "proxy")}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var serve func()
	if st := h.userSpace(); f.proto == "tcp" {
		var l net.Listener
		if st != nil {
			l, err = st.ListenTCP(f.at)
		} else {
			l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(f.at))
		}
		serve = func() { fw.Streams(ctx, l) }
	} else {
		var p net.PacketConn
		if st != nil {
			p, err = st.ListenUDP(f.at)
		} else {
			p, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(f.at))
		}
		serve = func() { fw.Datagrams(ctx, p) }
	}
	if err != nil {
		cancel()
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("%w: a program of this host has that port on all addresses; let it listen on 127.0.0.1 only, or put ports = [\"%s/%d\"] in the place of the forward", err, f.proto, f.at.Port())
		}
		return nil, err
	}
	go func() {
		serve()
		close(done)
	}()
	return func() {
		cancel()
		<-done
	}, nil
}
