package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lokinetd/config"
	"lokinetd/router/control"
)

// client makes the client of the daemon behind socketFile.
func (a *app) client() (*control.Client, error) {
	path, err := a.socketFile()
	if err != nil {
		return nil, err
	}
	return control.NewClient(path), nil
}

// socketFile is the socket of the daemon that the flags name: --socket, else that of the user's own `lokinetd proxy`, else
// the socket of the configuration that is meant, else, where there is no configuration, the default one.
func (a *app) socketFile() (string, error) {
	if path := cmp.Or(a.socket, a.ownSocket()); path != "" {
		return path, nil
	}
	c, _, err := a.meantConfig()
	switch {
	case err == nil:
		return c.Control.Socket, nil
	case a.config == defaultConfig && errors.Is(err, fs.ErrNotExist):
		return config.Default().Control.Socket, nil
	}
	return "", err
}

func (a *app) addressCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "address", Short: "Print the addresses of this daemon, one a line", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.status(cmd)
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
		Use: "resolve NAME", Short: "Resolve a .loki, .sesh or .snode name and say how", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeRemote,
		Long: "Print the address that a name stands for, the local addresses that programs reach it by, and each stage of the\n" +
			"look-up with the time since its start. A registered name is asked of several relays: the majority decides.\n" +
			"Exit code 4: not ready, or the relays do not agree; 6: there is no such name.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.Resolve(cmd.Context(), args[0])
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
			a.printStages(r.Stages)
			return nil
		},
	})
}

func (a *app) pingCommand() *cobra.Command {
	var count int
	cmd := a.jsonFlag(&cobra.Command{
		Use: "ping NAME", Short: "Connect to a name and measure the round trip through its paths", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeRemote,
		Long: "Connect to a name, print each stage with the time since the start and the path that was built, and send echo\n" +
			"requests, one a second. A relay answers them; a service does if its configuration says echo = true.\n" +
			"Exit code 1: connected, but no answer; 6: it cannot be found.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			p, err := c.Ping(cmd.Context(), args[0], count)
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
				return &exitError{exitFailure, fmt.Errorf("connected, but %s does not answer echo requests (a service does if its configuration says echo = true)", args[0])}
			}
			return nil
		},
	})
	cmd.Flags().IntVarP(&count, "count", "n", 4, "echo requests to send, one a second")
	return cmd
}

// completeRemote offers those that there are sessions with.
func (a *app) completeRemote(cmd *cobra.Command, args []string, _ string) (list []string, d cobra.ShellCompDirective) {
	d = cobra.ShellCompDirectiveNoFileComp
	if len(args) > 0 {
		return nil, d
	}
	s, err := a.status(cmd)
	if err != nil {
		return nil, d
	}
	for _, x := range s.Sessions {
		if !slices.Contains(list, x.Remote) {
			list = append(list, x.Remote)
		}
	}
	return list, d
}

func (a *app) printStages(stages []control.Stage) {
	for _, s := range stages {
		fmt.Fprintf(a.out, "%s\n", strings.TrimRight(fmt.Sprintf("  %8.1f ms  %-20s %s", s.AtMs, s.Name, printable(s.Note)), " "))
	}
}

func (a *app) pathCommand() *cobra.Command {
	return group("path", "Look at the onion paths", a.jsonFlag(&cobra.Command{
		Use: "list", Short: "List the paths that this daemon built", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.status(cmd)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"schema": control.Schema, "paths": s.Paths})
			}
			for _, p := range s.Paths {
				fmt.Fprintf(a.out, "%-10s %s\n", p.Endpoint, pathText(p, a.now()))
			}
			return a.noneIf(len(s.Paths) == 0, "paths")
		},
	}))
}

// pathText describes a path in one line.
func pathText(p control.Path, now time.Time) string {
	hops := []string{"you"}
	for _, h := range p.Hops {
		hops = append(hops, h[:min(8, len(h))])
	}
	rtt := "not measured yet"
	if p.RTTms > 0 {
		rtt = fmt.Sprintf("%.1f ms", p.RTTms)
	}
	return fmt.Sprintf("%-8s %s  %s, %s, %v left", p.Kind, strings.Join(hops, " > "), p.State, rtt, ago(p.ExpiresAt, now))
}

func (a *app) sessionCommand() *cobra.Command {
	return group("session", "Look at the sessions", a.jsonFlag(&cobra.Command{
		Use: "list", Short: "List the sessions with remote clients and relays", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.status(cmd)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"schema": control.Schema, "sessions": s.Sessions})
			}
			for _, x := range s.Sessions {
				fmt.Fprintf(a.out, "%-10s %s\n", x.Endpoint, sessionText(x, a.now()))
			}
			return a.noneIf(len(s.Sessions) == 0, "sessions")
		},
	}))
}

// sessionText describes a session in one line.
func sessionText(x control.Session, now time.Time) string {
	state := x.State
	if x.Handshake == "1.0" {
		state += " by the 1.0 handshake (not forward secret)"
	}
	return fmt.Sprintf("%-3s %s  %s, in %s, out %s, quiet for %v", x.Direction, x.Remote, state,
		bytesText(x.BytesIn), bytesText(x.BytesOut), ago(x.LastActivity, now))
}

// status asks the daemon how it is.
func (a *app) status(cmd *cobra.Command) (control.Status, error) {
	c, err := a.client()
	if err != nil {
		return control.Status{}, err
	}
	return c.Status(cmd.Context())
}

// noneIf says that a list is empty, which is no failure.
func (a *app) noneIf(empty bool, what string) error {
	if empty {
		fmt.Fprintf(a.err, "no %s\n", what)
	}
	return nil
}

// ago is the time between two moments, in either order, in whole seconds.
func ago(t, now time.Time) time.Duration { return now.Sub(t).Abs().Round(time.Second) }

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
