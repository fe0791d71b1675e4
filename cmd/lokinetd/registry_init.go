package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"lokinetd/router"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/statefile"
)

// founding is a network that is being made, with all that its relays need to start.
type founding struct {
	dir    string
	name   string
	id     uint64
	relays []string // as they were given: IP or IP:PORT
	key    string   // of the operator; "": a new one
}

func (a *app) registryInitCommand() *cobra.Command {
	var f founding
	cmd := &cobra.Command{
		Use: "init FOLDER", Short: "Make a whole private network: keys, network file, configurations, and the commands to start it", Args: cobra.ExactArgs(1),
		Long: "Make a whole private network in a new folder: the operator's key, the signed network file, key and configuration of\n" +
			"each relay, the configuration of clients; and say what to type to bring them where they belong.\n" +
			"What no flag says is asked for. Nothing is sent anywhere.",
		RunE: func(cmd *cobra.Command, args []string) error {
			f.dir = args[0]
			if err := a.ask(&f); err != nil {
				return err
			}
			return a.found(f)
		},
	}
	cmd.Flags().StringVar(&f.name, "name", "", "name of the network: 1 to 32 of a-z, 0-9 and inner hyphens")
	cmd.Flags().Uint64Var(&f.id, "id", 0, "`number` of the network, 2 or more (default: drawn); relays of other numbers are not understood")
	cmd.Flags().StringArrayVar(&f.relays, "relay", nil, "`IP[:PORT]` of a relay, for each one; IPv4 and UDP, port 1190 unless it is given")
	cmd.Flags().StringVarP(&f.key, "key", "k", "", "key `file` of the operator (default: a new one)")
	return cmd
}

// ask asks for what no flag has said, if somebody is there to answer.
func (a *app) ask(f *founding) error {
	in := a.in
	if in == nil {
		if _, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS); err == nil {
			in = os.Stdin
		}
	}
	switch {
	case f.name != "" && len(f.relays) > 0:
		return nil
	case in == nil && f.name == "":
		return usagef("what is the network called? (--name NAME)")
	case in == nil:
		return usagef("which are its relays? (--relay IP for each of them)")
	}
	answers := bufio.NewScanner(in)
	question := func(format string, args ...any) (string, error) {
		fmt.Fprintf(a.err, format+" ", args...)
		if !answers.Scan() {
			fmt.Fprintln(a.err)
			return "", errors.Join(answers.Err(), usagef("no answer"))
		}
		return strings.TrimSpace(answers.Text()), nil
	}
	for f.name == "" {
		text, err := question("What is the network called? [home]")
		if err != nil {
			return err
		}
		if f.name = text; text == "" {
			f.name = "home"
		}
	}
	if len(f.relays) > 0 {
		return nil
	}
	fmt.Fprintf(a.err, "Relays are machines that all others reach by IPv4 and UDP. %d are needed, %d or more are advised.\n", netdb.MinRelays, netdb.AdvisedRelays)
	for {
		text, err := question("Address of relay %d, IP or IP:PORT (nothing: that is all):", len(f.relays)+1)
		if err != nil {
			return err
		}
		if text == "" {
			return nil
		}
		if _, err := foundingRelay(text); err != nil {
			fmt.Fprintln(a.err, "  "+err.Error())
			continue
		}
		f.relays = append(f.relays, text)
	}
}

// foundingRelay reads the address of a relay.
func foundingRelay(text string) (netip.AddrPort, error) {
	at, err := parseRelayAddress(text)
	if err != nil || !at.Addr().Is4() || at.Addr().IsUnspecified() || at.Addr().IsMulticast() || at.Port() == 0 {
		return at, usagef("%q: want the IPv4 address of a relay, with a port if it is not %d", text, defaultRelayPort)
	}
	return at, nil
}

// found makes the network. Nothing is written before all is known to be right; the folder is new, or empty.
func (a *app) found(f founding) error {
	if f.id == 0 {
		f.id = 1000 + rand.Uint64N(1<<31)
	}
	if f.id < 2 {
		return usagef("--id %d: 0 and 1 are the public networks", f.id)
	}
	if left, err := os.ReadDir(f.dir); err == nil && len(left) > 0 {
		return fmt.Errorf("%s is not empty: it stays as it is", f.dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	operator := key.Generate()
	if f.key != "" {
		var err error
		if operator, err = key.LoadSecret(f.key); err != nil {
			return err
		}
	}
	file := &netdb.NetworkFile{Name: f.name, Network: f.id, Serial: 1}
	var at []netip.AddrPort
	for _, text := range f.relays {
		addr, err := foundingRelay(text)
		if err != nil {
			return err
		}
		if slices.Contains(at, addr) {
			return usagef("%v is given twice: each relay has an address and a port of its own", addr)
		}
		at = append(at, addr)
		file.Private = file.Private || !netdb.PublicAddr(addr.Addr())
	}
	secrets := make([]*key.Secret, len(at))
	for i := range at {
		secrets[i] = key.Generate()
		file.Relays = append(file.Relays, secrets[i].Public())
		file.Contacts = append(file.Contacts, router.SignContact(secrets[i], at[i], f.id, a.now()))
	}
	raw, err := file.Sign(operator)
	if err != nil {
		return err
	}

	// A new folder appears with all that is in it, or not at all.
	into := f.dir
	if _, err := os.Lstat(f.dir); errors.Is(err, fs.ErrNotExist) {
		into = filepath.Join(filepath.Dir(f.dir), "."+filepath.Base(f.dir)+".new")
		if err := os.RemoveAll(into); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(into, 0o700); err != nil {
		return err
	}
	name := f.name + ".network"
	keyFile := f.key
	if keyFile == "" {
		keyFile = filepath.Join(f.dir, "operator.key")
		err = operator.Save(filepath.Join(into, "operator.key"))
	}
	common := fmt.Sprintf("[network]\nfile = \"/etc/lokinetd/%s\"\noperator = %q\n", name, operator.Public())
	head := fmt.Sprintf("# Of the private network %s, by 'lokinetd registry init'. What is not here has its default value: see lokinetd.toml as it is packaged.\n", f.name)
	err = errors.Join(err, replaceFile(filepath.Join(into, name), raw), replaceFile(filepath.Join(into, "client.toml"), []byte(head+common)))
	for i, to := range at {
		dir := filepath.Join(into, relayName(i))
		err = errors.Join(err, os.Mkdir(dir, 0o700), secrets[i].Save(filepath.Join(dir, "relay.key")), replaceFile(filepath.Join(dir, "lokinetd.toml"),
			fmt.Appendf(nil, "%srole = \"relay\"\n\n%s\n[relay]\nlisten = \"0.0.0.0:%d\"\npublic_address = %q\n", head, common, to.Port(), to)))
	}
	if err == nil && into != f.dir {
		if err = os.Rename(into, f.dir); err == nil {
			err = statefile.SyncDir(filepath.Dir(f.dir))
		}
	}
	if err != nil {
		return err
	}
	a.sayFounded(f, file, operator.Public(), keyFile, at)
	return nil
}

func relayName(i int) string { return "relay" + strconv.Itoa(i+1) }

// sayFounded says what was made and what to type next.
func (a *app) sayFounded(f founding, file *netdb.NetworkFile, operator key.Public, keyFile string, at []netip.AddrPort) {
	out := func(format string, args ...any) { fmt.Fprintf(a.out, format+"\n", args...) }
	network := filepath.Join(f.dir, f.name+".network")
	private := ""
	if file.Private {
		private = ", at addresses that are not public"
	}
	out("network    %s (id %d), %s%s", f.name, f.id, counted(len(at), "relay"), private)
	out("operator   %s", operator)
	out("")
	out("  %-34s signs the network: keep it off the relays, and a copy in a safe place", keyFile)
	out("  %-34s for everybody; not secret", network)
	out("  %-34s configuration of clients", filepath.Join(f.dir, "client.toml"))
	for i, to := range at {
		dir := filepath.Join(f.dir, relayName(i))
		out("  %-34s configuration and key of %v", dir+"/", to)
	}
	for i, to := range at {
		dir := filepath.Join(f.dir, relayName(i))
		out("\n# %s. lokinetd is installed there, and UDP port %d is open.", relayName(i), to.Port())
		out("scp %s %s root@%s:/etc/lokinetd/", network, filepath.Join(dir, "lokinetd.toml"), to.Addr())
		out("scp %s root@%s:/var/lib/lokinetd/", filepath.Join(dir, "relay.key"), to.Addr())
		out("ssh root@%s 'chown --reference=/var/lib/lokinetd /var/lib/lokinetd/relay.key && systemctl restart lokinetd'", to.Addr())
	}
	out("\n# When they run, the relays have their keys, and these copies are needed no more.")
	out("rm %s", filepath.Join(f.dir, "relay*", "relay.key"))
	for _, w := range router.NetworkWarnings(file, a.now()) {
		fmt.Fprintln(a.err, "note:", w)
	}
}

// registryRotateCommand gives a network another operator. Daemons believe the key that their configuration names: so both files are handed out until all have changed.
func (a *app) registryRotateCommand() *cobra.Command {
	var old, next, out string
	cmd := &cobra.Command{
		Use: "rotate FILE", Short: "Write a network file anew under another operator's key", Args: cobra.ExactArgs(1),
		Long: "Write a network file anew, signed by another key. The file itself stays as it is: who still has the former key as\n" +
			"network.operator goes on with it, and does not take the new one. Relays and clients change over one by one, each by\n" +
			"the new file and the new key in its configuration, and a restart.",
		RunE: func(_ *cobra.Command, args []string) error {
			if old == "" || next == "" || out == "" {
				return usagef("from which key to which, and into which file? (--key FILE --new-key FILE --out FILE)")
			}
			if out == args[0] {
				return usagef("--out %s: the former file is needed until all have changed", out)
			}
			was, err := key.LoadSecret(old)
			if err != nil {
				return err
			}
			f, err := readNetworkFile(args[0], was.Public())
			if err != nil {
				return err
			}
			sec, err := key.LoadSecret(next)
			if err != nil {
				return err
			}
			if sec.Public() == was.Public() {
				return usagef("%s is the key that has signed %s already", next, args[0])
			}
			if _, err := os.Lstat(out); !errors.Is(err, fs.ErrNotExist) {
				return errors.Join(err, fmt.Errorf("%s: %w: it stays as it is", out, fs.ErrExist))
			}
			if err := a.writeRegistry(out, f, sec); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "operator   %s\n", sec.Public())
			return nil
		},
	}
	cmd.Flags().StringVarP(&old, "key", "k", "", "key `file` of the operator so far")
	cmd.Flags().StringVar(&next, "new-key", "", "key `file` of the operator from now on")
	cmd.Flags().StringVarP(&out, "out", "o", "", "`file` to write")
	return cmd
}
