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
	"lokinetd/router"
	"lokinetd/router/control"
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
	var hold, closing bool
	revert := &cobra.Command{
		Use: "revert", Short: "Take away again what apply has put on this host (as root)", Args: cobra.NoArgs,
		Long: "revert makes this host as it was before apply. With --hold it leaves in place what keeps our names\n" +
			"from being asked of other resolvers while the daemon is stopped, where that is possible and dns.hold\nin the configuration allows it; and where all names come to lokinetd, it changes nothing as long as a\n" +
			"service manager holds the name server's port, unless --closing says that it is about to close it for\ngood. It can be repeated." + idea,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.dnsRevert(cmd.Context(), hold || closing, closing)
		},
	}
	revert.Flags().BoolVar(&hold, "hold", false, "keep our names in, as fits a stopped daemon")
	revert.Flags().BoolVar(&closing, "closing", false, "likewise, and the port goes: give back all names, where they come to us")
	guard := &cobra.Command{
		Use: "guard", Short: "Answer at the name server's port while the daemon is stopped", Args: cobra.NoArgs,
		Long: "guard answers in the daemon's place while that is stopped, where all names of this host come to\nlokinetd (resolvconf, or dns.host = \"file\"): ours get an error at once and stay on this host, all others\n" +
			"are asked of the resolvers that the host had before. Its unit, lokinetd-names.service, is started by the\nfirst question that comes while no daemon is there. " +
			"\"systemctl stop lokinetd.socket\" ends that, and\ngives the names back." + idea,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.dnsGuard(cmd.Context()) },
	}
	return group("dns", "How this host's programs come to ask the name server", status, apply, revert, guard)
}

// hostWorld looks at the host with the configuration's wishes.
func (a *app) hostWorld(ctx context.Context) (*config.Config, dns.World, dns.Link, error) {
	c, _, err := a.meantConfig()
	if err != nil {
		return nil, dns.World{}, dns.Link{}, err
	}
	w, link := hostWorldOf(ctx, c)
	return c, w, link, nil
}

func hostWorldOf(ctx context.Context, c *config.Config) (dns.World, dns.Link) {
	w := dns.World{Want: dns.Method(c.DNS.Host), Enabled: c.DNS.Enabled && c.Role == config.RoleClient, Listen: c.DNS.Listen, Upstream: c.DNS.Upstream}
	return dns.Place{}.Look(ctx, w), tunLink(c.TUN.Name)
}

// linkOf is the interface that matters for a way: for systemd-resolved the placeholder, if it is there.
func linkOf(m dns.Method, tun dns.Link) dns.Link {
	if i, err := net.InterfaceByName(netif.HoldName); m == dns.MethodResolved && err == nil {
		tun.Name, tun.Index = i.Name, i.Index
	}
	return tun
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
	s := dns.Judge(ctx, dns.Place{}, d, c.DNS.Listen, linkOf(d.Method, link))
	answers := dns.Answers(ctx, c.DNS.Listen)
	away := a.meanwhile(ctx, c)
	switch {
	case s.Applied && answers != nil:
		s.Applied, s.Problem = false, answers.Error()
	case s.Applied && away != "":
		s.Applied, s.Problem = false, "lokinetd does not run"
	}
	var exit error
	if s.Problem != "" {
		exit = &exitError{exitNotReady, nil}
	}
	if a.json {
		out := map[string]any{"schema": 1, "method": d.Method, "why": d.Reasons, "advice": d.Advice, "in_effect": s.Applied, "problem": s.Problem, "answers": answers == nil}
		if away != "" {
			out["while_stopped"] = away
		}
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
	if away != "" {
		fmt.Fprintf(a.out, "while lokinetd is stopped: %s\n", away)
	}
	if d.Advice != "" {
		fmt.Fprintf(a.out, "what to do: %s\n", d.Advice)
	}
	return exit
}

// meanwhile says what becomes of our names while the daemon is stopped; "": it runs, or there is to be no name server.
func (a *app) meanwhile(ctx context.Context, c *config.Config) string {
	if !c.DNS.Enabled || c.Role != config.RoleClient {
		return ""
	}
	if a.running(ctx) {
		return ""
	}
	index := 0
	if i, err := net.InterfaceByName(netif.HoldName); err == nil {
		index = i.Index
	}
	return dns.Place{}.Stopped(ctx, c.DNS.Listen, index)
}

// running reports whether there is a daemon, whatever it answers.
func (a *app) running(ctx context.Context) bool {
	client, err := a.client()
	if err != nil {
		client = control.NewClient(config.Default().Control.Socket)
	}
	_, err = client.Status(ctx)
	return !errors.Is(err, control.ErrNotRunning)
}

// dnsGuard needs no rights but those to the port, which the service manager opens.
func (a *app) dnsGuard(ctx context.Context) error {
	c, err := config.Load(a.config)
	if err != nil {
		// The daemon is away because of it, perhaps.
		fmt.Fprintf(a.err, "lokinetd: %v\n", err)
		c = config.Default()
	}
	sockets, err := router.NameSockets(ctx, c.DNS.Listen)
	if err != nil {
		return err
	}
	log, _ := newLogger(a.err, c.Log)
	return dns.Guard(ctx, dns.GuardConfig{
		Sockets: sockets, Upstream: c.DNS.Upstream, Log: log.With("mod", "dns"),
		Ranges: func() []netip.Prefix {
			ranges := []netip.Prefix{}
			for _, r := range []config.Range{c.TUN.IPv4, c.TUN.IPv6} {
				if r.Prefix.IsValid() {
					ranges = append(ranges, r.Prefix)
				}
			}
			// The routes that a stopped daemon leaves bear our mark.
			found, err := netif.Find(c.TUN.Name)
			if err != nil {
				log.Debug("our routes cannot be seen", "err", err)
			}
			return append(ranges, found.Unreachable...)
		},
	})
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
		for end := time.Now().Add(applyTime); ; time.Sleep(100 * time.Millisecond) {
			why := dns.Place{}.Missing(ctx, d, c.DNS.Listen, linkOf(d.Method, tunLink(c.TUN.Name)))
			if why == "" {
				break
			}
			if time.Now().After(end) || ctx.Err() != nil {
				return errors.New(why)
			}
		}
	}
	done, err := dns.Place{}.Apply(ctx, d, c.DNS.Listen, link)
	a.done(done)
	if d.Method == dns.MethodResolved || err != nil {
		return err
	}
	held, err := netif.Unhold()
	if held {
		a.done([]string{"placeholder " + netif.HoldName + ": removed"})
	}
	return err
}

func (a *app) done(done []string) {
	for _, line := range done {
		fmt.Fprintln(a.out, line)
	}
}

func (a *app) dnsRevert(ctx context.Context, hold, closing bool) error {
	if err := needRoot("dns revert"); err != nil {
		return err
	}
	if hold {
		c, w, link, err := a.hostWorld(ctx)
		if err != nil {
			// The daemon ends because of it, perhaps, and our names stay here all the same.
			fmt.Fprintf(a.err, "lokinetd: %v\n", err)
			c = config.Default()
			w, link = hostWorldOf(ctx, c)
		}
		if closing && a.running(ctx) {
			fmt.Fprintln(a.out, "the daemon runs, and has the port")
			return nil
		}
		may := c.DNS.Hold || dns.Place{}.Returns(ctx, "lokinetd.service")
		if may && w.Enabled && (dns.Place{}).Awaited(ctx, c.DNS.Listen, closing) {
			fmt.Fprintln(a.out, "names wait for the daemon")
			return nil
		}
		if c.DNS.Hold && w.Enabled {
			return a.dnsHold(ctx, c, w, link)
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
	done, byLink, err := dns.Place{}.Hold(ctx, dns.Decide(w), c.DNS.Listen, link)
	a.done(done)
	if err != nil || !byLink {
		return err
	}
	index, addr, err := netif.Hold()
	if err == nil && !(dns.Place{}).Held(ctx, c.DNS.Listen, index) { // the daemon has not done it, or somebody has undone it
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err = dns.Place{}.HoldLink(ctx, c.DNS.Listen, dns.Link{Name: netif.HoldName, Index: index, Addr: addr.Addr(), Own: link.Own})
	}
	if err != nil {
		_, uerr := netif.Unhold()
		return errors.Join(err, uerr)
	}
	fmt.Fprintf(a.out, "placeholder %s keeps our names in\n", netif.HoldName)
	return nil
}
