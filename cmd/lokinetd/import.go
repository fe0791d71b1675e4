package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"lokinetd/config"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/statefile"
)

// maxImport bounds in bytes what is read of another program's configuration; larger ones are refused by config.Import.
const maxImport = 2 << 20

func (a *app) configImportCommand() *cobra.Command {
	var out, keys string
	cmd := &cobra.Command{
		Use: "import FILE.ini", Short: "Turn a configuration of Lokinet 0.9 or Session Router into one of lokinetd", Args: cobra.ExactArgs(1),
		Long: "Turn a configuration of Lokinet 0.9 (lokinet.ini) or of Session Router into one of lokinetd, printed on standard\n" +
			"output. What has no meaning here is left out, and said with its line on standard error. The key file of an address\n" +
			"that stays is used where it is, whichever of the two wrote it; with --keys it is copied, and the clients that may call\n" +
			"it get a file each.",
		RunE: func(_ *cobra.Command, args []string) error { return a.importConfig(args[0], out, keys) },
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "`file` to write instead of standard output; it must not exist")
	cmd.Flags().StringVar(&keys, "keys", "", "`directory` to copy the key file to, the daemon's data directory for example; its owner gets the copy")
	return cmd
}

// importConfig does all checks before it writes anything.
func (a *app) importConfig(name, out, keys string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxImport))
	if err != nil {
		return err
	}
	if out != "" {
		if _, err := os.Lstat(out); err == nil {
			return fmt.Errorf("%s exists already, and is left as it is", out)
		}
	}
	full, err := filepath.Abs(name)
	if err != nil {
		return err
	}
	var places config.Places
	var identity *key.Secret
	var copied string
	var keep bool
	var wrong error
	fresh := func(path string) string {
		if _, err := os.Lstat(path); err == nil && wrong == nil {
			wrong = fmt.Errorf("%s exists already, and is left as it is", path)
		}
		return path
	}
	if keys != "" {
		if keys, err = filepath.Abs(keys); err != nil {
			return err
		}
		places.Clients = filepath.Join(keys, "imported.clients")
	}
	places.Key = func(path string) string {
		if identity, wrong = key.LoadSecret(path); wrong != nil || keys == "" {
			return path
		}
		copied = filepath.Join(keys, "imported.key")
		if same, err := key.LoadSecret(copied); err == nil && same.Public() == identity.Public() {
			keep = true // of an import that was cut short
			return copied
		}
		return fresh(copied)
	}
	im, err := config.Import(data, full, places)
	if err != nil {
		return err
	}
	clients := ""
	if s := im.Config.Service; len(s) > 0 {
		clients = s[0].Clients
	}
	if clients != "" && keys != "" && !hasClients(clients, im.Clients) {
		fresh(clients)
	}
	if wrong != nil {
		return wrong
	}
	for _, n := range im.Notes {
		fmt.Fprintf(a.err, "%s:%d: %s: %s\n", name, n.Line, n.Setting, n.Message)
	}
	a.checkBootstraps(im.Config)
	if copied != "" {
		if !keep {
			if err := identity.Save(copied); err != nil {
				return err
			}
		}
		if err := handOver(copied, keys); err != nil {
			return err
		}
	}
	if identity != nil {
		fmt.Fprintf(a.err, "the address that is kept: %s\n", key.Address{Key: identity.Public()}.Text(im.Config.Network.Suffix))
	}
	switch {
	case clients != "" && keys != "":
		if err := writeClients(clients, im.Clients); err != nil {
			return err
		}
		fmt.Fprintf(a.err, "who may call it: %d clients, those in %s\n", len(im.Clients), clients)
	case clients != "":
		fmt.Fprintf(a.err, "nobody may call it before %s is there, with a file NAME.client for each of %d clients; --keys makes them\n", clients, len(im.Clients))
	}
	if out == "" {
		_, err = a.out.Write(im.TOML)
		return err
	}
	return statefile.Write(out, im.TOML, 0o644)
}

// clientFile is what the file of the ith client that may call a service is called, and what it says.
func clientFile(i int, k key.Public) (name, text string) {
	return fmt.Sprintf("imported-%d.client", i+1), key.Address{Key: k}.String() + "\n"
}

// hasClients says whether a folder is what writeClients makes: of an import that was cut short after that.
func hasClients(dir string, clients []key.Public) bool {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(clients) {
		return false
	}
	for i, k := range clients {
		name, text := clientFile(i, k)
		if raw, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(raw) != text {
			return false
		}
	}
	return true
}

// writeClients makes the folder of the clients that may call a service, with a file for each; it appears with all of them or not at all.
func writeClients(dir string, clients []key.Public) error {
	if hasClients(dir, clients) {
		return nil
	}
	into := dir + ".new"
	if err := errors.Join(os.RemoveAll(into), os.Mkdir(into, 0o700)); err != nil {
		return err
	}
	for i, k := range clients {
		name, text := clientFile(i, k)
		file := filepath.Join(into, name)
		if err := statefile.Replace(file, []byte(text), 0o600); err != nil {
			return err
		}
		if err := handOver(file, filepath.Dir(dir)); err != nil {
			return err
		}
	}
	if err := errors.Join(statefile.SyncDir(into), handOver(into, filepath.Dir(dir))); err != nil {
		return err
	}
	if err := os.Rename(into, dir); err != nil {
		return err
	}
	return statefile.SyncDir(filepath.Dir(dir))
}

// handOver gives what root has made in dir to the owner of dir, which is the daemon's own: it could not read it otherwise.
func handOver(path, dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner := fi.Sys().(*syscall.Stat_t)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Chown(int(owner.Uid), int(owner.Gid))
}

// checkBootstraps warns of bootstrap files that lokinetd would not start with.
func (a *app) checkBootstraps(c *config.Config) {
	for _, name := range c.Network.Bootstrap {
		if _, err := readBootstrap(name, c); err != nil && !errors.Is(err, fs.ErrPermission) {
			fmt.Fprintf(a.err, "lokinetd will not start with this bootstrap file: %v\n", err)
		}
	}
}

// readBootstrap reads a bootstrap file of a public network.
func readBootstrap(name string, c *config.Config) ([]*netdb.RelayContact, error) {
	rules := netdb.Rules{}
	if c.Network.Name == config.Testnet {
		rules.Network = 1
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	contacts, err := netdb.ParseBootstrap(data, time.Now(), rules)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return contacts, nil
}
