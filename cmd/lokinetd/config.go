package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"lokinetd/config"
	"lokinetd/router/netdb"
)

func (a *app) configCommand() *cobra.Command {
	return group("config", "Check a configuration, or take over that of another program", a.configImportCommand(), &cobra.Command{
		Use: "check [FILE]", Short: "Say whether a configuration file is right, and what is wrong with it", Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, file, err := a.meantConfig()
			if len(args) == 1 {
				file = args[0]
				c, err = config.Load(file)
			}
			if err != nil {
				return err
			}
			if c.Network.File != "" {
				if _, err := readNetworkFile(c.Network.File, c.Network.Operator); err != nil {
					return fmt.Errorf("network.file: %w", err)
				}
				if c.Role == config.RoleRelay && !c.Relay.PublicAddress.IsValid() {
					return errors.New("relay.public_address: not given")
				}
			} else {
				for _, name := range c.Network.Bootstrap {
					contacts, err := readBootstrap(name, c)
					if err != nil {
						return fmt.Errorf("network.bootstrap: %w", err)
					}
					fmt.Fprintf(a.out, "%s is right: %s\n", name, bootstrapText(contacts, a.now()))
				}
			}
			fmt.Fprintf(a.out, "%s is right: a %s\n", file, c.Role)
			return nil
		},
	})
}

// bootstrapText says what a bootstrap file is worth.
func bootstrapText(contacts []*netdb.RelayContact, now time.Time) string {
	if len(contacts) == 0 {
		return "no relay is in it"
	}
	latest := slices.MaxFunc(contacts, func(a, b *netdb.RelayContact) int { return a.Time.Compare(b.Time) })
	text := fmt.Sprintf("%s, the latest contact is of %s", counted(len(contacts), "relay"), latest.Time.UTC().Format(time.DateOnly))
	if latest.Expired(now) {
		text += "; all have expired: they are asked all the same, but a current file may be needed"
	}
	return text
}
