package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lokinetd/config"
	"lokinetd/dns"
	"lokinetd/netif"
)

func (a *app) dnsCommand() *cobra.Command {
	const idea = "\n\nWhich resolver the programs of this host use is found out by looking; dns.host in the configuration\n" +
		"can insist on one. systemd-resolved is told by the daemon itself; what needs root is done by\n" +
		"\"dns apply\" and undone by \"dns revert\", which the service runs as root. docs/dns.md has the rest."
	status := a.jsonFlag(&cobra.Command{
		Use: "status", Short: "Show how the programs of this host come to ask lokinetd, and why", Args: cobra.NoArgs,
		Long: "status shows which resolver of this host was chosen to send our names to lokinetd, why, and whether it\n" +
			"does. It exits with 4 when programs cannot use our names." + idea,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.dnsStatus(cmd.Context()) },
	})
	apply := &cobra.Command{
		Use: "apply", Short: "Put on this host what the chosen resolver needs (as root)", Args: cobra.NoArgs,
		Long: "apply puts on this host the files that the chosen resolver needs, and takes away those of an earlier\nchoice. It can be repeated." + idea,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.dnsApply(cmd.Context()) },
	}
	var hold bool
	revert := &cobra.Command{
		Use: "revert", Short: "Take away again what apply has put on this host (as root)", Args: cobra.NoArgs,
		Long: "revert makes this host as it was before apply. With --hold it leaves in place what keeps our names\n" +
			"from being asked of other resolvers while the daemon is stopped, where that is possible and dns.hold\nin the configuration allows it; and where all names come to lokinetd, it changes nothing as long as a\n" +
			"service manager holds the name server's port. It can be repeated." + idea,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.dnsRevert(cmd.Context(), hold) },
	}
	revert.Flags().BoolVar(&hold, "hold", false, "keep our names in, as fits a stopped daemon")
	return group("dns", "How this host's programs come to ask the name server", status, apply, revert)
}

// hostWorld looks at the host with the configuration's wishes.
func (a *app) hostWorld(ctx context.Context) (*config.Config, dns.World, dns.Link, error) {
	c, _, err := a.meantConfig()
	if err != nil {
		return nil, dns.World{}, dns.Link{}, err
	}
	w := dns.World{Want: dns.Method(c.DNS.Host), Enabled: c.DNS.Enabled && c.Role == config.RoleClient, Listen: c.DNS.Listen, Upstream: c.DNS.Upstream}
	return c, dns.Place{}.Look(ctx, w), tunLink(c.TUN.Name), nil
}

// tunLink is the daemon's interface as it is now, by its configured name, in which a %d stands for a number; zero if there is none.
func tunLink(name string) (l dns.Link) {
	all, _ := net.Interfaces()
	at := slices.IndexFunc(all, func(i net.Interface) bool { return netif.IsNamed(i.Name, name) })
	if at < 0 {
		return l
	}
	i := &all[at]
	l.Name, l.Index = i.Name, i.Index
	addrs, _ := i.Addrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
			l.Own = append(l.Own, p)
		}
	}
	return l
}

func (a *app) dnsStatus(ctx context.Context) error {
	c, w, link, err := a.hostWorld(ctx)
	if err != nil {
		return err
	}
	d := dns.Decide(w)
	s := dns.Judge(ctx, dns.Place{}, d, c.DNS.Listen, link)
	answers := dns.Answers(ctx, c.DNS.Listen)
	if s.Applied && answers != nil {
		s.Applied, s.Problem = false, answers.Error()
	}
	var exit error
	if s.Problem != "" {
		exit = &exitError{exitNotReady, nil}
	}
	if a.json {
		out := map[string]any{"schema": 1, "method": d.Method, "why": d.Reasons, "advice": d.Advice, "in_effect": s.Applied, "problem": s.Problem, "answers": answers == nil}
		return errors.Join(a.printJSON(out), exit)
	}
	fmt.Fprintf(a.out, "resolver of this host: %s\n", d.Method)
	for _, r := range d.Reasons {
		fmt.Fprintf(a.out, "  because: %s\n", r)
	}
	if len(d.Upstream) > 0 {
		fmt.Fprintf(a.out, "other names are asked of: %s\n", strings.Trim(fmt.Sprint(d.Upstream), "[]"))
	}
	if s.Applied {
		fmt.Fprintln(a.out, "in effect: yes")
	} else if s.Problem != "" {
		fmt.Fprintf(a.out, "in effect: no: %s\n", s.Problem)
	}
	if d.Advice != "" {
		fmt.Fprintf(a.out, "what to do: %s\n", d.Advice)
	}
	return exit
}

func needRoot(what string) error {
	if os.Geteuid() != 0 {
		return &exitError{exitDenied, fmt.Errorf("%s needs root", what)}
	}
	return nil
}

// applyTime is how long apply waits for the daemon.
const applyTime = 10 * time.Second

func (a *app) dnsApply(ctx context.Context) error {
	if err := needRoot("dns apply"); err != nil {
		return err
	}
	c, w, link, err := a.hostWorld(ctx)
	if err != nil {
		return err
	}
	d := dns.Decide(w)
	if d.Method == dns.MethodResolvconf || d.Method == dns.MethodFile {
		// All names are about to come to us.
		if err := dns.Answers(ctx, c.DNS.Listen); err != nil {
			return fmt.Errorf("%w: is the daemon running?", err)
		}
	}
	fmt.Fprintln(a.out, d)
	if d.Method == dns.MethodResolved {
		// What holds our names in has to stay until the daemon has told systemd-resolved.
		for end := time.Now().Add(applyTime); ; time.Sleep(100 * time.Millisecond) {
			why := dns.Place{}.Missing(ctx, d, c.DNS.Listen, tunLink(c.TUN.Name))
			if why == "" {
				break
			}
			if time.Now().After(end) || ctx.Err() != nil {
				return errors.New(why)
			}
		}
	}
	done, err := dns.Place{}.Apply(ctx, d, c.DNS.Listen, link)
	held, herr := netif.Unhold()
	if held {
		done = append(done, "placeholder "+netif.HoldName+": removed")
	}
	a.done(done)
	return errors.Join(err, herr)
}

func (a *app) done(done []string) {
	for _, line := range done {
		fmt.Fprintln(a.out, line)
	}
}

func (a *app) dnsRevert(ctx context.Context, hold bool) error {
	if err := needRoot("dns revert"); err != nil {
		return err
	}
	if hold {
		c, w, link, err := a.hostWorld(ctx)
		if err == nil && w.Enabled && (dns.Place{}).Awaited(c.DNS.Listen) {
			fmt.Fprintln(a.out, "names wait for the daemon")
			return nil
		}
		if err == nil && c.DNS.Hold && w.Enabled {
			return a.dnsHold(ctx, c, w, link)
		}
		if err != nil {
			fmt.Fprintf(a.err, "lokinetd: %v\n", err) // and yet it is undone
		}
	}
	done, err := undoDNS(ctx)
	a.done(done)
	return err
}

// undoDNS makes the host's resolver as it was before us.
func undoDNS(ctx context.Context) ([]string, error) {
	done, err := dns.Place{}.Revert(ctx)
	held, herr := netif.Unhold()
	if held {
		done = append(done, "placeholder "+netif.HoldName+": removed")
	}
	return done, errors.Join(err, herr)
}

func (a *app) dnsHold(ctx context.Context, c *config.Config, w dns.World, link dns.Link) error {
	done, byLink, err := dns.Place{}.Hold(ctx, dns.Decide(w), w, c.DNS.Listen, link)
	a.done(done)
	if err != nil || !byLink {
		return err
	}
	if i, err := net.InterfaceByName(netif.HoldName); err == nil && link.Index == 0 && (dns.Place{}).Held(ctx, i.Index) {
		return nil // it was done when our ranges were still known
	}
	index, addr, err := netif.Hold()
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err = dns.Place{}.HoldLink(ctx, dns.Link{Name: netif.HoldName, Index: index, Own: append([]netip.Prefix{addr}, link.Own...)})
	}
	if err != nil {
		_, uerr := netif.Unhold()
		return errors.Join(err, uerr)
	}
	fmt.Fprintf(a.out, "placeholder %s keeps our names in\n", netif.HoldName)
	return nil
}
