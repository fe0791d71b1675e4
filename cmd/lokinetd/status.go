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
			s, err := a.status(cmd)
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(s)
			} else {
				printStatus(a.out, s, a.now())
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
	line("version", "%s, %s, up for %v", s.Version, s.Role, ago(s.StartedAt, now))
	line("network", "%s (id %d): %d relays, %d contacts", s.Network.Name, s.Network.ID, s.Network.Known, s.Network.Contacts)
	for _, e := range s.Endpoints {
		line(e.Kind, "%s  %s", e.Address, strings.TrimSpace(e.IPv6+" "+e.IPv4))
		if e.Kind == "service" {
			published := "not published yet"
			if e.PublishedAt != nil {
				published = fmt.Sprintf("published %v ago", ago(*e.PublishedAt, now))
			}
			line("", "%s: ports %s, %s", e.Name, orNone(strings.Join(e.Ports, " ")), published)
		}
		if e.InboundWant > 0 {
			line("", "inbound paths %d of %d, sessions %d, in %s, out %s", e.InboundPaths, e.InboundWant, e.Sessions,
				bytesText(e.Traffic.BytesIn), bytesText(e.Traffic.BytesOut))
		}
	}
	for i, e := range s.Edges {
		line(first(i, "edges"), "%.8s at %s for %v, %.1f ms, in %s, out %s", e.Relay, e.Address, ago(e.Since, now), e.RTTms,
			bytesText(e.BytesIn), bytesText(e.BytesOut))
	}
	for i, p := range s.Paths {
		line(first(i, "paths"), "%s", pathText(p, now))
	}
	for i, x := range s.Sessions {
		line(first(i, "sessions"), "%s", sessionText(x, now))
	}
	if r := s.Relay; r != nil {
		line("relay", "public address %s, registered: %v", r.PublicAddress, r.Registered)
		line("", "%d relays and %d clients connected, %d transit hops, %d contacts kept for clients",
			r.Peers, r.Clients, r.TransitHops, r.StoredClients)
	}
	if p := s.Proxy; p != nil {
		line("proxy", "SOCKS5 on %s; HTTP on %s", orNone(strings.Join(p.SOCKS, ", ")), orNone(strings.Join(p.HTTP, ", ")))
		line("", "%d connections open; %d reached their remote, %d failed, %d refused because they were for other networks", p.Open, p.Opened, p.Failed, p.Refused)
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
		if x := s.DNS.Host; x != nil {
			effect := "in effect"
			if !x.InEffect {
				effect = "not in effect"
			}
			line("", "resolver of this host: %s, %s (lokinetd dns status says why)", x.Method, effect)
		}
	}
	line("traffic", "in %s (%d packets), out %s (%d packets)", bytesText(s.Traffic.BytesIn), s.Traffic.PacketsIn,
		bytesText(s.Traffic.BytesOut), s.Traffic.PacketsOut)
	if len(s.Timeline) > 0 {
		var texts []string
		for _, m := range s.Timeline[1:] {
			texts = append(texts, fmt.Sprintf("%s %.0f", m.Name, m.AtMs))
		}
		line("timeline", "ms after exec: %s", orNone(strings.Join(texts, ", ")))
	}
	for i, reason := range slices.Sorted(maps.Keys(s.Drops)) {
		line(first(i, "dropped"), "%s: %d", strings.ReplaceAll(reason, "_", " "), s.Drops[reason])
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
