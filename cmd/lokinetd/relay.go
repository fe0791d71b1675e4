package main

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lokinetd/config"
	"lokinetd/router"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/statefile"
)

const defaultRelayPort = 1190

func (a *app) relayCommand() *cobra.Command {
	return group("relay", "Look at relays, and write a relay's contact", a.relayContactCommand(), a.jsonFlag(&cobra.Command{
		Use: "list", Short: "List the relays that this daemon knows", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			known, err := c.Relays(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(known)
			}
			for _, r := range known.Relays {
				address, note := r.Address, ""
				if address == "" {
					address = "no contact"
				}
				if r.Connected {
					note += "  connected"
				}
				if !r.Known {
					note += "  not in the network"
				}
				fmt.Fprintln(a.out, strings.TrimSpace(fmt.Sprintf("%s  %-21s  %-6s%s", r.Relay, address, r.Version, note)))
			}
			return a.noneIf(len(known.Relays) == 0, "relays are known")
		},
	}))
}

// contactFlags are what relay contact was told; what is missing comes from the configuration.
type contactFlags struct {
	key, address, network, out string
	id                         uint64
	hasID                      bool
}

func (a *app) relayContactCommand() *cobra.Command {
	var f contactFlags
	cmd := &cobra.Command{
		Use: "contact", Short: "Write this relay's signed contact, for the operator of the network", Args: cobra.NoArgs,
		Long: "Write this relay's signed contact, for the operator of the network. The relay is not started.\nWhat no flag gives is taken from the configuration: relay.key, relay.public_address and network.file.\nA key file that does not exist is made.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.hasID = cmd.Flags().Changed("id")
			return a.relayContact(f)
		},
	}
	cmd.Flags().StringVarP(&f.key, "key", "k", "", "key `file` of the relay")
	cmd.Flags().StringVar(&f.address, "address", "", "`IP:PORT` under which others reach the relay (IPv4, UDP; port 1190 when left out)")
	cmd.Flags().StringVar(&f.network, "network", "", "network `file`")
	cmd.Flags().Uint64Var(&f.id, "id", 0, "`number` of the network, in place of its file")
	cmd.Flags().StringVarP(&f.out, "out", "o", "", "`file` to write (default: standard output)")
	return cmd
}

func (a *app) relayContact(f contactFlags) error {
	if f.network != "" && f.hasID {
		return usagef("--network or --id, not both")
	}
	if out, ok := a.out.(*os.File); ok && f.out == "" {
		if st, err := out.Stat(); err == nil && st.Mode()&fs.ModeCharDevice != 0 {
			return usagef("a contact is not text: write it to a file (--out FILE)")
		}
	}
	c := config.Default()
	if f.key == "" || f.address == "" || f.network == "" && !f.hasID {
		var err error
		if c, err = config.Load(a.config); err != nil {
			return fmt.Errorf("what --key, --address and --network do not say comes from the configuration: %w", err)
		}
	}

	// All that can be wrong is found before a key file is made.
	public := c.Relay.PublicAddress
	if f.address != "" {
		var err error
		if public, err = parseRelayAddress(f.address); err != nil {
			return err
		}
	}
	if !public.IsValid() {
		return usagef("under which address do others reach the relay? (--address IP:PORT, or relay.public_address in %s)", a.config)
	}
	public = netip.AddrPortFrom(public.Addr().Unmap(), public.Port())
	if !public.Addr().Is4() || public.Addr().IsUnspecified() || public.Port() == 0 {
		return usagef("%v: others reach a relay under an IPv4 address and a port", public)
	}
	if f.key == "" && c.Relay.Oxend != "" {
		return fmt.Errorf("the key of a relay of the public network is oxend's; the relay itself writes its contact, to %s", filepath.Join(c.DataDir, "nodedb", "self.signed"))
	}
	rules, err := contactRules(f, c)
	if err != nil {
		return err
	}
	if !rules.Private && !netdb.PublicAddr(public.Addr()) {
		return fmt.Errorf("%v is not publicly routable: this network's relays would refuse it (registry new --private makes one that does not)", public.Addr())
	}

	if f.key == "" {
		f.key = c.Relay.Key
	}
	sec, made, err := loadOrMakeKey(c.DataDir, f.key)
	if made {
		fmt.Fprintf(a.err, "made a new key: %s (keep a copy; the relay is this key)\n", f.key)
	}
	if err != nil {
		return err
	}
	contact := router.SignContact(sec, public, rules.Network, time.Now())
	if f.out == "" {
		_, err = a.out.Write(contact.Raw())
	} else {
		err = statefile.Write(f.out, contact.Raw(), 0o644)
	}
	if err == nil {
		fmt.Fprintf(a.err, "contact of %s at %v in network %d; to be registered by %s\n", key.Address{Key: contact.ID, Kind: key.Relay},
			public, rules.Network, contact.Time.Add(netdb.RelayLifetime).UTC().Format(time.DateOnly))
	}
	return err
}

// contactRules finds the network that a contact is for. One that is only known by its number is not
// asked whether it allows private addresses: its operator will be, when the contact is added.
func contactRules(f contactFlags, c *config.Config) (netdb.Rules, error) {
	switch {
	case f.hasID:
		return netdb.Rules{Network: f.id, Private: true}, nil
	case f.network == "" && c.Network.File == "":
		return netdb.Rules{}, usagef("a contact for which network? (--network FILE, --id N, or network.file in the configuration)")
	}
	operator := c.Network.Operator
	if f.network == "" {
		f.network = c.Network.File
	} else {
		operator = key.Public{}
	}
	file, err := readNetworkFile(f.network, operator)
	if err != nil {
		return netdb.Rules{}, err
	}
	return file.Rules(), nil
}

func parseRelayAddress(text string) (netip.AddrPort, error) {
	if ip, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(ip, defaultRelayPort), nil
	}
	public, err := netip.ParseAddrPort(text)
	if err != nil {
		return public, usagef("--address %q: want IP:PORT", text)
	}
	return public, nil
}
