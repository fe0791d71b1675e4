package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"lokinetd/router/key"
)

func (a *app) keyCommand() *cobra.Command {
	print := func(s *key.Secret) error {
		p := s.Public()
		if a.json {
			return a.printJSON(map[string]any{"schema": 1,
				"client": key.Address{Key: p}.String(), "relay": key.Address{Key: p, Kind: key.Relay}.String(),
				"public_hex": fmt.Sprintf("%x", p[:])})
		}
		fmt.Fprintf(a.out, "as a client   %s\nas a relay    %s\npublic key    %x\n",
			key.Address{Key: p}, key.Address{Key: p, Kind: key.Relay}, p[:])
		return nil
	}
	return group("key", "Make and look at key files",
		a.jsonFlag(&cobra.Command{
			Use: "new FILE", Short: "Make a new key file, readable by its owner only; an existing file stays as it is", Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				s := key.Generate()
				if err := s.Save(args[0]); err != nil {
					return err
				}
				return print(s)
			},
		}),
		a.jsonFlag(&cobra.Command{
			Use: "show FILE", Short: "Print the addresses and the public key of a key file, never the secret", Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				s, err := key.LoadSecret(args[0])
				if err != nil {
					return err
				}
				return print(s)
			},
		}))
}
