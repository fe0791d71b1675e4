package netdb

import "net/netip"

// nonPublic4 and nonPublic6 list what is not publicly routable (protocol 1 section 6.2).
var nonPublic4, nonPublic6 = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
	"192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
), prefixes(
	// ::ffff:0:0/96, the IPv4 addresses in IPv6 form, is left to Is4In6: package netip has no such prefix.
	"::/128", "::1/128", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "200::/7", "2001::/32", "2001:20::/28", "2001:db8::/32",
	"2002::/16", "fc00::/7", "fe80::/10", "ff00::/8",
)

func prefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		list[i] = netip.MustParsePrefix(text)
	}
	return list
}

// PublicAddr says whether a is publicly routable by the network's lists (protocol 1 section 6.2), which are the reference's, not IANA's of
// today: a relay whose address is not would be refused by others. An IPv4 address in IPv6 form is not.
func PublicAddr(a netip.Addr) bool {
	list := nonPublic6
	switch {
	case a.Is4():
		list = nonPublic4
	case !a.IsValid(), a.Is4In6(), a.Zone() != "":
		return false
	}
	for _, p := range list {
		if p.Contains(a) {
			return false
		}
	}
	return true
}
