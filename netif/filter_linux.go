package netif

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The firewall is the second line behind the unreachable routes: one nftables table, by which packets for our ranges leave the host through our interface or not at all, whatever
// the routes say, and by which nobody on another interface reaches our addresses, or learns by trying that they are this host's. It names the interface, not its number, so that it holds
// while the interface is away.
//
//	table inet lokinetd_lokinet0 {
//		chain output  { type filter hook output priority filter;  ip daddr RANGE oifname != { "lokinet0", "lo" } counter reject with icmpx no-route }
//		chain forward { type filter hook forward priority filter; the same }
//		chain input   { type filter hook input priority filter;   ip daddr RANGE iifname != { "lokinet0", "lo" } counter drop }
//	}

// filterTime bounds all that is done over one connection: a kernel without nftables may answer only the first part of a transaction.
const filterTime = 5 * time.Second

var errSilent = errors.New("the kernel does not answer")

// dialFilter prepares a connection to nftables that is good for d, after which errors are os.ErrDeadlineExceeded. It holds nothing between two uses.
func dialFilter(d time.Duration, more ...nftables.SockOption) *nftables.Conn {
	end := time.Now().Add(d)
	bound := func(c *netlink.Conn) error { return c.SetDeadline(end) }
	c, _ := nftables.New(nftables.WithSockOptions(append(more, bound)...)) // dials at each use, and so cannot fail
	return c
}

// silent names the error of a connection whose time is over.
func silent(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errSilent
	}
	return err
}

// tableOf is the name of the table of an interface.
func tableOf(name string) string {
	return "lokinetd_" + strings.Map(func(r rune) rune {
		if r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '_'
	}, name)
}

// setFilter makes the table be there for these ranges, in one transaction; without ranges, be gone. It can be repeated.
func setFilter(name string, ranges []netip.Prefix) error {
	return setTable(dialFilter(filterTime), name, ranges)
}

func setTable(c *nftables.Conn, name string, ranges []netip.Prefix) error {
	t := &nftables.Table{Name: tableOf(name), Family: nftables.TableFamilyINet}
	c.AddTable(t) // so that there is one to take away
	c.DelTable(t)
	if len(ranges) > 0 {
		c.AddTable(t)
		reject := &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_NO_ROUTE}
		for _, h := range []struct {
			name string
			hook *nftables.ChainHook
			key  expr.MetaKey
			end  expr.Any
		}{
			{"output", nftables.ChainHookOutput, expr.MetaKeyOIFNAME, reject},
			{"forward", nftables.ChainHookForward, expr.MetaKeyOIFNAME, reject},
			{"input", nftables.ChainHookInput, expr.MetaKeyIIFNAME, &expr.Verdict{Kind: expr.VerdictDrop}},
		} {
			chain := c.AddChain(&nftables.Chain{Name: h.name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: h.hook, Priority: nftables.ChainPriorityFilter})
			for _, p := range ranges {
				match := slices.Concat(destinedTo(p), notThrough(h.key, name), notThrough(h.key, "lo"))
				c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(match, &expr.Counter{}, h.end)})
			}
		}
	}
	return silent(c.Flush())
}

// destinedTo matches packets to addresses of a range.
func destinedTo(p netip.Prefix) []expr.Any {
	p = p.Masked()
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16)
	if p.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 24
	}
	network := ipNet(p)
	n := uint32(len(network.Mask))
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: network.Mask, Xor: make([]byte, n)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()},
	}
}

// notThrough matches packets whose interface is another.
func notThrough(key expr.MetaKey, name string) []expr.Any {
	text := make([]byte, unix.IFNAMSIZ)
	copy(text, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: text}}
}

// HasFilter says whether our firewall table for an interface of that name is there. The error says that the kernel, or our rights, do not let us know.
func HasFilter(name string) (bool, error) { return hasTable(dialFilter(filterTime), name) }

func hasTable(c *nftables.Conn, name string) (bool, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("netif: nftables: %w", silent(err))
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableOf(name) }), nil
}

// isWhole says whether the table has a rule for each range in each of its chains.
func isWhole(name string, ranges []netip.Prefix) (bool, error) {
	c := dialFilter(filterTime)
	if there, err := hasTable(c, name); err != nil || !there {
		return false, err
	}
	t := &nftables.Table{Name: tableOf(name), Family: nftables.TableFamilyINet}
	for _, chain := range []string{"output", "forward", "input"} {
		rules, err := c.GetRules(t, &nftables.Chain{Name: chain})
		if err != nil || len(rules) != len(ranges) {
			return false, silent(err)
		}
	}
	return true, nil
}

// delFilter removes the table, if there is one. Where there cannot be one that is no error.
func delFilter(name string) error {
	c := dialFilter(filterTime)
	if there, err := hasTable(c, name); err != nil || !there {
		return nil
	}
	if err := setTable(c, name, nil); err != nil {
		return fmt.Errorf("netif: remove the firewall table %s: %w", tableOf(name), err)
	}
	return nil
}
