package netif

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Watch calls told whenever the kernel says that an interface, an address or a route has come, gone or changed, also when such news were lost; often several
// times for one change, and also for what we did ourselves. What it means for whoever asks is told by WayTo. It returns when ctx ends, or the kernel says no more.
func Watch(ctx context.Context, told func()) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return fmt.Errorf("netif: watch the host's network: %w", err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, s.Close)()
	for {
		_, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("netif: watch the host's network: %w", err)
		}
		told()
	}
}

// Way is how packets to an address leave the host. Comparable; what it compares equal to leads the same way.
type Way struct {
	Source  netip.Addr // that the kernel gives them; invalid: there is no way
	Gateway netip.Addr // invalid: none
	Index   int        // of the interface
	Up      bool       // it has a carrier, as far as it tells
}

// WayTo asks the kernel. That there is no way is no error.
func WayTo(to netip.Addr) (Way, error) {
	routes, err := netlink.RouteGet(to.AsSlice())
	var none unix.Errno
	switch {
	case errors.As(err, &none) && (none == unix.ENETUNREACH || none == unix.EHOSTUNREACH || none == unix.EACCES || none == unix.EINVAL):
		return Way{}, nil
	case err != nil:
		return Way{}, fmt.Errorf("netif: the way to %v: %w", to, err)
	case len(routes) == 0:
		return Way{}, nil
	}
	r := routes[0]
	w := Way{Index: r.LinkIndex}
	if a, ok := netip.AddrFromSlice(r.Src); ok {
		w.Source = a.Unmap()
	}
	if a, ok := netip.AddrFromSlice(r.Gw); ok {
		w.Gateway = a.Unmap()
	}
	link, err := netlink.LinkByIndex(r.LinkIndex)
	if err != nil {
		return Way{}, nil // it has gone since
	}
	a := link.Attrs()
	w.Up = a.Flags&net.FlagUp != 0 && a.RawFlags&unix.IFF_RUNNING != 0
	return w, nil
}
