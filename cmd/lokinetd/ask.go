package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lokinetd/config"
	"lokinetd/router/control"
)

// client makes the client of the daemon that the flags name: --socket, else
// the socket of the configuration, else the default one.
func (a *app) client() *control.Client {
	path := a.socket
	if path == "" {
		path = config.Default().Control.Socket
		if c, err := config.Load(a.config); err == nil {
			path = c.Control.Socket
		}
	}
	return control.NewClient(path)
}

func (a *app) addressCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "address", Short: "Print the addresses of this daemon, one a line", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"schema": control.Schema, "endpoints": s.Endpoints})
			}
			for _, e := range s.Endpoints {
				fmt.Fprintf(a.out, "%s\t%s\n", e.Address, e.Name)
			}
			return nil
		},
	})
}

func (a *app) resolveCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "resolve NAME", Short: "Resolve a .loki, .sesh or .snode name and say how", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.client().Resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(r)
			}
			fmt.Fprintln(a.out, r.Address)
			for _, ip := range []string{r.IPv6, r.IPv4} {
				if ip != "" {
					fmt.Fprintln(a.out, ip)
				}
			}
			if r.Relays > 0 {
				fmt.Fprintf(a.out, "%d of %d relays agreed\n", r.Agreed, r.Relays)
			}
			a.printStages(r.Stages)
			return nil
		},
	})
}

func (a *app) pingCommand() *cobra.Command {
	var count int
	cmd := a.jsonFlag(&cobra.Command{
		Use: "ping NAME", Short: "Connect to a name and measure the round trip through its paths", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.client().Ping(cmd.Context(), args[0], count)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(p)
			}
			fmt.Fprintf(a.out, "%s\n", p.Address)
			a.printStages(p.Stages)
			for i, ms := range p.RTTms {
				fmt.Fprintf(a.out, "  answer %d after %.1f ms\n", i+1, ms)
			}
			fmt.Fprintf(a.out, "%d of %d answered\n", len(p.RTTms), p.Sent)
			if len(p.RTTms) == 0 {
				return &exitError{exitFailure, fmt.Errorf("connected, but %s does not answer echo requests", args[0])}
			}
			return nil
		},
	})
	cmd.Flags().IntVarP(&count, "count", "n", 4, "echo requests to send, one a second")
	return cmd
}

func (a *app) printStages(stages []control.Stage) {
	for _, s := range stages {
		fmt.Fprintf(a.out, "  %8.1f ms  %s\n", s.AtMs, strings.TrimSpace(s.Name+"  "+s.Note))
	}
}

func (a *app) pathCommand() *cobra.Command {
	return group("path", "Look at the onion paths", a.jsonFlag(&cobra.Command{
		Use: "list", Short: "List the paths that this daemon built", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"schema": control.Schema, "paths": s.Paths})
			}
			for _, p := range s.Paths {
				a.printPath(p)
			}
			return nil
		},
	}))
}

func (a *app) printPath(p control.Path) {
	hops := make([]string, len(p.Hops))
	for i, h := range p.Hops {
		hops[i] = h[:min(8, len(h))]
	}
	fmt.Fprintf(a.out, "  %-8s %-10s you > %s  %s, %.1f ms, for %v more\n", p.Kind, p.Endpoint,
		strings.Join(hops, " > "), p.State, p.RTTms, time.Until(p.ExpiresAt).Round(time.Second))
}

func (a *app) sessionCommand() *cobra.Command {
	return group("session", "Look at the sessions", a.jsonFlag(&cobra.Command{
		Use: "list", Short: "List the sessions with remote clients and relays", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"schema": control.Schema, "sessions": s.Sessions})
			}
			for _, x := range s.Sessions {
				a.printSession(x)
			}
			return nil
		},
	}))
}

func (a *app) printSession(x control.Session) {
	fmt.Fprintf(a.out, "  %-3s %-11s %s  in %s, out %s, quiet for %v\n", x.Direction, x.State, x.Remote,
		bytesText(x.BytesIn), bytesText(x.BytesOut), time.Since(x.LastActivity).Round(time.Second))
}

// bytesText writes a number of bytes for people: 1,234 B, 5.6 MB.
func bytesText(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	f, i := float64(n), 0
	for f >= 1000 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
