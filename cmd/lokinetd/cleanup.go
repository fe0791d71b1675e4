package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"lokinetd/config"
	"lokinetd/netif"
	"lokinetd/router"
)

func (a *app) cleanupCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "cleanup", Short: "Undo what a daemon that was killed has left on this host", Args: cobra.NoArgs,
		Long: "cleanup removes the routes and the network interface that a daemon has left behind, because it was\n" +
			"killed or because its unreachable routes outlive it as a service, and what \"dns apply\" has put on\n" +
			"the host. It can be repeated. It needs the same configuration as the daemon, and root, and refuses\n" +
			"to work while the daemon runs.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(a.config)
			if err != nil {
				return err
			}
			done, err := router.Cleanup(c)
			if errors.Is(err, router.ErrRunning) {
				return fmt.Errorf("%w: stop it first (systemctl stop lokinetd)", err)
			}
			if err != nil {
				return err
			}
			resolver, err := undoDNS(cmd.Context())
			if err != nil {
				return err
			}
			routes := make([]string, len(done.Unreachable))
			for i, p := range done.Unreachable {
				routes[i] = p.String()
			}
			if a.json {
				return a.printJSON(map[string]any{"schema": 1, "interface": done.Interface, "unreachable_routes": routes, "resolver": resolver})
			}
			a.done(resolver)
			gone := done.Interface == "" || done.Index == 0 && netif.IsNamed(done.Interface, c.TUN.Name)
			if gone && len(routes) == 0 && len(resolver) == 0 {
				fmt.Fprintln(a.out, "nothing is left on this host")
			}
			switch {
			case gone:
			case done.Index == 0:
				fmt.Fprintf(a.out, "interface %s: left alone, for the configuration calls ours %s\n", done.Interface, c.TUN.Name)
			default:
				fmt.Fprintf(a.out, "interface %s: gone\n", done.Interface)
			}
			for _, r := range routes {
				fmt.Fprintf(a.out, "unreachable route %s: gone\n", r)
			}
			return nil
		},
	})
}
