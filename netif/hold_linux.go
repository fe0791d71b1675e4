package netif

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// holdAddr makes a resolver take the placeholder for a link in use. It is the address that belongs to no host (RFC 7600).
var holdAddr = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 0, 8}), 32)

// HoldName is the placeholder's name.
const HoldName = "lokinet-hold"

// Hold puts a link on the host that carries nothing and outlives us: up, with carrier and one address, for a resolver that ties domains to links. It can be repeated. It
// needs root. A kernel without dummy links gets a veth pair instead.
func Hold() (index int, addr netip.Prefix, err error) {
	fail := func(err error) (int, netip.Prefix, error) {
		return 0, netip.Prefix{}, fmt.Errorf("netif: placeholder %s: %w", HoldName, err)
	}
	attrs := netlink.LinkAttrs{Name: HoldName}
	err = netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: HoldName + "2"})
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fail(err)
	}
	for _, name := range []string{HoldName + "2", HoldName} {
		link, err := netlink.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) && name != HoldName {
			continue
		}
		if err != nil {
			return fail(err)
		}
		netlink.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE) // where there is IPv6: no address of its own
		if err := netlink.LinkSetUp(link); err != nil {
			return fail(err)
		}
		index = link.Attrs().Index
		if name == HoldName {
			if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(holdAddr)}); err != nil {
				return fail(err)
			}
		}
	}
	return index, holdAddr, nil
}

// Unhold takes the placeholder away, and says whether there was one.
func Unhold() (bool, error) {
	link, err := netlink.LinkByName(HoldName)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return false, fmt.Errorf("netif: placeholder %s: %w", HoldName, err)
	}
	return true, nil
}
