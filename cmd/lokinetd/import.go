package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"lokinetd/config"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

// maxImport bounds in bytes what is read of another program's configuration; larger ones are refused by config.Import.
const maxImport = 2 << 20

func (a *app) configImportCommand() *cobra.Command {
	var out, keys string
	cmd := &cobra.Command{
		Use: "import FILE.ini", Short: "Turn a configuration of Lokinet 0.9 or Session Router into one of lokinetd", Args: cobra.ExactArgs(1),
		Long: "Turn a configuration of Lokinet 0.9 (lokinet.ini) or of Session Router into one of lokinetd, printed on standard\n" +
			"output. What has no meaning here is left out, and said with its line on standard error. The key file of an address\n" +
			"that stays is used where it is, whichever of the two wrote it; with --keys it is copied.",
		RunE: func(_ *cobra.Command, args []string) error { return a.importConfig(args[0], out, keys) },
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "`file` to write instead of standard output; it must not exist")
	cmd.Flags().StringVar(&keys, "keys", "", "`directory` to copy the key file to, as lokinetd writes them")
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
	var identity *key.Secret
	var copied string
	var wrong error
	im, err := config.Import(data, full, func(path string) string {
		if identity, wrong = key.LoadSecret(path); wrong != nil || keys == "" {
			return path
		}
		if copied, wrong = filepath.Abs(filepath.Join(keys, "imported.key")); wrong == nil {
			if _, err := os.Lstat(copied); err == nil {
				wrong = fmt.Errorf("%s exists already, and is left as it is", copied)
			}
		}
		return copied
	})
	if err == nil {
		err = wrong
	}
	if err != nil {
		return err
	}
	for _, n := range im.Notes {
		fmt.Fprintf(a.err, "%s:%d: %s: %s\n", name, n.Line, n.Setting, n.Message)
	}
	a.checkBootstraps(im.Config)
	if copied != "" {
		if err := identity.Save(copied); err != nil {
			return err
		}
	}
	if identity != nil {
		fmt.Fprintf(a.err, "the address that is kept: %s\n", key.Address{Key: identity.Public()}.Text(im.Config.Network.Suffix))
	}
	if out == "" {
		_, err = a.out.Write(im.TOML)
		return err
	}
	return renameio.WriteFile(out, im.TOML, 0o644, renameio.WithTempDir(filepath.Dir(out)))
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
