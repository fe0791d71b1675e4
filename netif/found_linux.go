package netif

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
)

// Find looks on the host for what a Device of that name (which may have a %d in it) has put there, by our marks: for when nothing tells any more what that was. Ranges that another interface of
// ours has are left out, as somebody's who runs.
func Find(name string) (c Changes, err error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return c, fmt.Errorf("netif: list interfaces: %w", err)
	}
	var others []netip.Prefix
	for _, l := range links {
		switch a := l.Attrs(); {
		case a.Alias != ownAlias || l.Type() != "tuntap":
		case c.Interface == "" && IsNamed(a.Name, name):
			c.Interface, c.Index = a.Name, a.Index
		default:
			addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
			if err != nil {
				return c, fmt.Errorf("netif: list the addresses of %s: %w", a.Name, err)
			}
			for _, x := range addrs {
				if p, ok := prefixOf(x.IPNet); ok {
					others = append(others, p)
				}
			}
		}
	}
	routes, err := ownUnreachable()
	if err != nil {
		return c, err
	}
	for _, p := range routes {
		if _, taken := overlap(others, p); !taken {
			c.Unreachable = append(c.Unreachable, p)
		}
	}
	if c.Interface == "" && !strings.Contains(name, "%") {
		c.Interface = name // its firewall table may be there
	}
	return c, nil
}
