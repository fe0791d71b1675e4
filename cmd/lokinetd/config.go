package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"lokinetd/config"
)

func (a *app) configCommand() *cobra.Command {
	return group("config", "Check a configuration, or take over that of another program", a.configImportCommand(), &cobra.Command{
		Use: "check [FILE]", Short: "Say whether a configuration file is right, and what is wrong with it", Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			file := a.config
			if len(args) == 1 {
				file = args[0]
			}
			c, err := config.Load(file)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s is right: a %s\n", file, c.Role)
			return nil
		},
	})
}
