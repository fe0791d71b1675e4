package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lokinetd/router"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/statefile"
)

// maxAhead is how far in the future a contact may have been signed to be added; relays refuse it from there on.
const maxAhead = 10 * time.Minute

func (a *app) registryCommand() *cobra.Command {
	var keyFile string
	// signing gives a command the flag --key and refuses to run it without.
	signing := func(cmd *cobra.Command) *cobra.Command {
		cmd.Flags().StringVarP(&keyFile, "key", "k", "", "key `file` of the operator, who signs the network file")
		cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
			if keyFile == "" {
				return usagef("whose signature? (--key FILE)")
			}
			return nil
		}
		return cmd
	}

	var made netdb.NetworkFile
	newFile := signing(&cobra.Command{
		Use: "new FILE", Short: "Make the network file of a new network", Args: cobra.ExactArgs(1),
		RunE: func(*cobra.Command, []string) error { return nil },
	})
	newFile.Flags().StringVar(&made.Name, "name", "", "name of the network: 1 to 32 of a-z, 0-9 and inner hyphens")
	newFile.Flags().Uint64Var(&made.Network, "id", 0, "`number` of the network, 2 or more; relays of other numbers are not understood")
	newFile.Flags().BoolVar(&made.Private, "private", false, "relays may have addresses that are not publicly routable")
	newFile.Flags().BoolVar(&made.UniqueRange, "unique-range", false, "the relays of a path must be of different address ranges")
	newFile.RunE = func(_ *cobra.Command, args []string) error {
		if made.Name == "" || made.Network < 2 {
			return usagef("a network needs a --name and an --id of 2 or more (0 and 1 are the public ones)")
		}
		sec, err := key.LoadSecret(keyFile)
		if err != nil {
			return err
		}
		if _, err := os.Lstat(args[0]); !errors.Is(err, fs.ErrNotExist) {
			if err == nil {
				err = fmt.Errorf("%s: %w: it stays as it is", args[0], fs.ErrExist)
			}
			return err
		}
		return a.writeRegistry(args[0], &made, sec)
	}

	add := signing(&cobra.Command{
		Use: "add FILE CONTACT...", Short: "Register relays, or replace the contacts of registered ones", Args: cobra.MinimumNArgs(2),
		Long: "Register relays, or replace the contacts of registered ones.\nA CONTACT is a file that 'lokinetd relay contact' wrote or, for a relay without a contact, its key or .snode address.",
		RunE: func(_ *cobra.Command, args []string) error {
			return a.editRegistry(args[0], keyFile, func(f *netdb.NetworkFile) error {
				for _, arg := range args[1:] {
					if err := addRelays(f, arg, time.Now()); err != nil {
						return err
					}
				}
				return nil
			})
		},
	})

	remove := signing(&cobra.Command{
		Use: "remove FILE RELAY...", Short: "Take relays out of the network", Args: cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.editRegistry(args[0], keyFile, func(f *netdb.NetworkFile) error {
				for _, arg := range args[1:] {
					id, err := parseKey(arg, key.Relay)
					if err != nil {
						return err
					}
					i := slices.Index(f.Relays, id)
					if i < 0 {
						return &exitError{exitNotFound, fmt.Errorf("%s is not a relay of %s", arg, args[0])}
					}
					f.Relays = slices.Delete(f.Relays, i, i+1)
					f.Contacts = slices.DeleteFunc(f.Contacts, func(c *netdb.RelayContact) bool { return c.ID == id })
				}
				return nil
			})
		},
	})

	var unname bool
	name := signing(&cobra.Command{
		Use: "name FILE NAME.loki {ADDRESS | --remove}", Short: "Give a name to a client, or take it back with --remove",
		Args: func(_ *cobra.Command, args []string) error {
			if want := map[bool]int{false: 3, true: 2}[unname]; len(args) != want {
				return fmt.Errorf("takes %d arguments, not %d", want, len(args))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			n, err := key.ParseName(args[1])
			if err != nil || n.Kind != key.NameSNS || len(n.Labels) != 0 {
				return usagef("%q cannot be registered: a name is one label and .loki, and not an address", args[1])
			}
			return a.editRegistry(args[0], keyFile, func(f *netdb.NetworkFile) error {
				if unname {
					if _, ok := f.Names[n.SNS]; !ok {
						return &exitError{exitNotFound, fmt.Errorf("%s is not a name of %s", n.SNS, args[0])}
					}
					delete(f.Names, n.SNS)
					return nil
				}
				id, err := parseKey(args[2], key.Client)
				if err != nil {
					return err
				}
				if f.Names == nil {
					f.Names = map[string]key.Public{}
				}
				f.Names[n.SNS] = id
				return nil
			})
		},
	})
	name.Flags().BoolVar(&unname, "remove", false, "take the name back")

	sign := signing(&cobra.Command{
		Use: "sign FILE", Short: "Sign the network file again, under the next serial", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.editRegistry(args[0], keyFile, func(*netdb.NetworkFile) error { return nil })
		},
	})

	return group("registry", "Make and change the network file of a private network",
		a.registryInitCommand(), newFile, add, remove, name, sign, a.registryRotateCommand(), a.registryShowCommand())
}

// addRelays registers the relays that arg names: a key, an address, or a file with one contact or a list of them.
func addRelays(f *netdb.NetworkFile, arg string, now time.Time) error {
	register := func(id key.Public) {
		if !slices.Contains(f.Relays, id) {
			f.Relays = append(f.Relays, id)
		}
	}
	if looksLikeKey(arg) {
		id, err := parseKey(arg, key.Relay)
		if err != nil {
			return err
		}
		register(id)
		return nil
	}
	raw, err := statefile.Read(arg, netdb.MaxBootstrap)
	if err != nil {
		return err
	}
	contacts, err := netdb.ParseBootstrap(raw, now, f.Rules())
	if err != nil {
		return fmt.Errorf("%s: not a contact for this network: %w", arg, err)
	}
	for _, c := range contacts {
		switch {
		case c.Expired(now):
			return fmt.Errorf("%s: signed on %s and expired since: let the relay write a new one", arg, c.Time.UTC().Format(time.DateOnly))
		case c.Time.After(now.Add(maxAhead)):
			return fmt.Errorf("%s: signed in the future, at %s: one of the two clocks is wrong", arg, c.Time.UTC().Format(time.RFC3339))
		}
		register(c.ID)
		f.Contacts = append(slices.DeleteFunc(f.Contacts, func(o *netdb.RelayContact) bool { return o.ID == c.ID }), c)
	}
	return nil
}

// editRegistry changes a network file that the key in keyFile has signed. When change fails, the file stays as it is.
func (a *app) editRegistry(file, keyFile string, change func(*netdb.NetworkFile) error) error {
	sec, err := key.LoadSecret(keyFile)
	if err != nil {
		return err
	}
	f, err := readNetworkFile(file, sec.Public())
	if err != nil {
		return err
	}
	if err := change(f); err != nil {
		return err
	}
	return a.writeRegistry(file, f, sec)
}

// writeRegistry signs f under the next serial, writes it whole and says what it holds now.
func (a *app) writeRegistry(file string, f *netdb.NetworkFile, sec *key.Secret) error {
	f.Serial++
	raw, err := f.Sign(sec)
	if err != nil {
		return err
	}
	if err := statefile.Write(file, raw, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s: serial %d, %s, %s\n", file, f.Serial, counted(len(f.Relays), "relay"), counted(len(f.Names), "name"))
	for _, w := range router.NetworkWarnings(f, a.now()) {
		fmt.Fprintln(a.err, "note:", w)
	}
	return nil
}

// readNetworkFile reads a network file. A zero operator stands for whoever the file says has signed it.
func readNetworkFile(file string, operator key.Public) (*netdb.NetworkFile, error) {
	raw, err := statefile.Read(file, netdb.MaxNetworkFile)
	if err != nil {
		return nil, err
	}
	signer, err := netdb.NetworkFileOperator(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if operator.IsZero() {
		operator = signer
	}
	if signer != operator {
		return nil, fmt.Errorf("%s: its operator is %v, not %v", file, signer, operator)
	}
	f, err := netdb.ParseNetworkFile(raw, operator, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return f, nil
}

// looksLikeKey tells keys and addresses from names of files; a file that is named like one is given as ./NAME.
func looksLikeKey(arg string) bool {
	_, errKey := parsePublic(arg)
	_, errAddress := key.ParseAddress(arg)
	return errKey == nil || errAddress == nil
}

// parsePublic reads a bare key as 'key show' prints it: 64 hexadecimal digits, or 52 base32z characters.
func parsePublic(arg string) (id key.Public, err error) {
	if b, err := hex.DecodeString(arg); err == nil && len(b) == len(id) {
		return key.Public(b), nil
	}
	return key.ParsePublic(arg)
}

// parseKey reads an address of the kind wanted or a bare key.
func parseKey(arg string, want key.Kind) (key.Public, error) {
	id, err := parsePublic(arg)
	if err != nil {
		addr, err := key.ParseAddress(arg)
		if err != nil {
			return id, usagef("%q is neither a %v's address nor a key", arg, want)
		}
		if addr.Kind != want {
			return id, usagef("%s is the address of a %v, not of a %v", arg, addr.Kind, want)
		}
		id = addr.Key
	}
	if err := id.Check(); err != nil {
		return id, usagef("%s: %w", arg, err)
	}
	return id, nil
}

// registryJSON is what registry show prints for programs.
type registryJSON struct {
	Schema      int               `json:"schema"`
	Name        string            `json:"name"`
	ID          uint64            `json:"id"`
	Serial      uint64            `json:"serial"`
	Private     bool              `json:"private_addresses"`
	UniqueRange bool              `json:"unique_range"`
	Operator    string            `json:"operator"`
	Relays      []registryRelay   `json:"relays"`
	Names       map[string]string `json:"names"`
	Warnings    []string          `json:"warnings"`
}

type registryRelay struct {
	Relay    string    `json:"relay"`
	Address  string    `json:"address,omitempty"` // IP and UDP port; none without a contact
	Version  string    `json:"version,omitempty"`
	SignedAt time.Time `json:"signed_at,omitzero"`
	Expired  bool      `json:"expired,omitempty"`
}

func (a *app) registryShowCommand() *cobra.Command {
	var operator string
	cmd := a.jsonFlag(&cobra.Command{
		Use: "show FILE", Short: "Check a network file's signature and print what is in it", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			var want key.Public
			if operator != "" {
				kind := key.Client // 'key show' prints a key as both
				if strings.HasSuffix(operator, "."+key.TLDSnode) {
					kind = key.Relay
				}
				var err error
				if want, err = parseKey(operator, kind); err != nil {
					return err
				}
			}
			f, err := readNetworkFile(args[0], want)
			if err != nil {
				return err
			}
			v := describeNetwork(f, a.now())
			if a.json {
				return a.printJSON(v)
			}
			a.printNetwork(v)
			return nil
		},
	})
	cmd.Flags().StringVar(&operator, "operator", "", "`key` that must have signed the file (default: the one that it names)")
	return cmd
}

func describeNetwork(f *netdb.NetworkFile, now time.Time) registryJSON {
	v := registryJSON{
		Schema: control.Schema, Name: f.Name, ID: f.Network, Serial: f.Serial, Private: f.Private, UniqueRange: f.UniqueRange,
		Operator: f.Operator.String(), Relays: []registryRelay{}, Names: map[string]string{},
		Warnings: append([]string{}, router.NetworkWarnings(f, now)...),
	}
	contacts := map[key.Public]*netdb.RelayContact{}
	for _, c := range f.Contacts {
		contacts[c.ID] = c
	}
	for _, id := range f.Relays {
		r := registryRelay{Relay: key.Address{Key: id, Kind: key.Relay}.String()}
		if c := contacts[id]; c != nil {
			r.Address, r.SignedAt, r.Expired = c.Addr.String(), c.Time.UTC(), c.Expired(now)
			r.Version = fmt.Sprintf("%d.%d.%d", c.Version[0], c.Version[1], c.Version[2])
		}
		v.Relays = append(v.Relays, r)
	}
	for name, id := range f.Names {
		v.Names[name] = key.Address{Key: id}.String()
	}
	return v
}

func (a *app) printNetwork(v registryJSON) {
	flags := []string{}
	if v.Private {
		flags = append(flags, "private addresses allowed")
	}
	if v.UniqueRange {
		flags = append(flags, "relays of a path in different address ranges")
	}
	if len(flags) == 0 {
		flags = append(flags, "none")
	}
	fmt.Fprintf(a.out, "network    %s (id %d), serial %d\nflags      %s\noperator   %s\nrelays     %d\n",
		v.Name, v.ID, v.Serial, strings.Join(flags, ", "), v.Operator, len(v.Relays))
	for _, r := range v.Relays {
		where := r.Address
		switch {
		case where == "":
			where = "no contact"
		case r.Expired:
			where += ", contact expired"
		}
		fmt.Fprintf(a.out, "  %s  %s\n", r.Relay, where)
	}
	fmt.Fprintf(a.out, "names      %d\n", len(v.Names))
	for _, name := range slices.Sorted(maps.Keys(v.Names)) {
		fmt.Fprintf(a.out, "  %s  %s\n", name, v.Names[name])
	}
	for _, w := range v.Warnings {
		fmt.Fprintln(a.out, "warning   ", w)
	}
}
