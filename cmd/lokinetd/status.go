package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lokinetd/router/control"
)

func (a *app) statusCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "status", Short: "Say how the daemon is, in one screen", Args: cobra.NoArgs,
		Long: "Say how the daemon is, in one screen.\nExit code 0: ready; 3: not running; 4: running but not ready.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(s)
			} else {
				printStatus(a.out, s, time.Now())
			}
			if err == nil && s.State != control.Ready {
				err = &exitError{code: exitNotReady}
			}
			return err
		},
	})
}

// printStatus writes the status for people.
func printStatus(w io.Writer, s control.Status, now time.Time) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-10s %s\n", name, strings.TrimSpace(fmt.Sprintf(format, args...)))
	}
	state := string(s.State)
	if s.Reason != "" {
		state += ": " + s.Reason
	}
	line("state", "%s", state)
	line("version", "%s, %s, up for %v", s.Version, s.Role, now.Sub(s.StartedAt).Round(time.Second))
	line("network", "%s (id %d): %d relays, %d contacts", s.Network.Name, s.Network.ID, s.Network.Known, s.Network.Contacts)
	for _, e := range s.Endpoints {
		text := e.Address
		if e.IPv6 != "" || e.IPv4 != "" {
			text += "  " + strings.TrimSpace(e.IPv6+" "+e.IPv4)
		}
		line(e.Kind, "%s", text)
		if e.Kind == "service" {
			published := "not published yet"
			if e.PublishedAt != nil {
				published = fmt.Sprintf("published %v ago", now.Sub(*e.PublishedAt).Round(time.Second))
			}
			line("", "%s: ports %s, %s", e.Name, orNone(strings.Join(e.Ports, " ")), published)
		}
		if e.InboundWant > 0 {
			line("", "inbound paths %d of %d, sessions %d", e.InboundPaths, e.InboundWant, e.Sessions)
		}
	}
	for i, e := range s.Edges {
		line(first(i, "edges"), "%.8s at %s, %.1f ms, in %s, out %s", e.Relay, e.Address, e.RTTms, bytesText(e.BytesIn), bytesText(e.BytesOut))
	}
	for i, p := range s.Paths {
		hops := make([]string, len(p.Hops))
		for j, h := range p.Hops {
			hops[j] = fmt.Sprintf("%.8s", h)
		}
		line(first(i, "paths"), "%-8s you > %s  %s, %.1f ms, %v left", p.Kind, strings.Join(hops, " > "), p.State,
			p.RTTms, p.ExpiresAt.Sub(now).Round(time.Second))
	}
	for i, x := range s.Sessions {
		line(first(i, "sessions"), "%-3s %.16s… %s, in %s, out %s", x.Direction, x.Remote, x.State, bytesText(x.BytesIn), bytesText(x.BytesOut))
	}
	if r := s.Relay; r != nil {
		line("relay", "public address %s, registered: %v", r.PublicAddress, r.Registered)
		line("", "%d relays and %d clients connected, %d transit hops, %d contacts kept for clients",
			r.Peers, r.Clients, r.TransitHops, r.StoredClients)
	}
	if s.Tun != nil {
		v6 := ""
		if !s.Tun.IPv6 {
			v6 = ", IPv6 is off on this machine: IPv4 only"
		}
		line("tun", "%s, MTU %d%s", s.Tun.Name, s.Tun.MTU, v6)
	}
	if s.DNS != nil {
		line("dns", "on %s; other names: %s", strings.Join(s.DNS.Listen, ", "), orNone(strings.Join(s.DNS.Upstream, ", ")))
	}
	line("traffic", "in %s (%d packets), out %s (%d packets)", bytesText(s.Traffic.BytesIn), s.Traffic.PacketsIn,
		bytesText(s.Traffic.BytesOut), s.Traffic.PacketsOut)
	for i, reason := range slices.Sorted(maps.Keys(s.Drops)) {
		line(first(i, "dropped"), "%d %s", s.Drops[reason], reason)
	}
	for i, text := range s.NotHidden {
		line(first(i, "not hidden"), "%s", text)
	}
	for i, text := range s.Warnings {
		line(first(i, "warning"), "%s", text)
	}
}

// first gives a block of lines its name on the first line only.
func first(i int, name string) string {
	if i > 0 {
		return ""
	}
	return name
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
