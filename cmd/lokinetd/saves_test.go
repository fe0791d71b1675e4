package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lokinetd/config"
	"lokinetd/router"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/statefile"
	"lokinetd/router/testkit"
)

// TestSaves: whatever ends a command that writes, its files are the old ones or the new ones, and it can be typed again.
func TestSaves(t *testing.T) {
	secret := key.FromSeed([32]byte{1})
	typed := func(dir string, args ...string) error {
		var out, said bytes.Buffer
		a := &app{in: strings.NewReader(""), out: &out, err: &said}
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "DIR", dir)
		}
		if code := a.execute(t.Context(), args); code != 0 {
			return fmt.Errorf("%d: %s", code, said.String())
		}
		return nil
	}
	put := func(dir string, files ...string) (err error) {
		for i := 0; i < len(files); i += 2 {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, files[i]), []byte(files[i+1]), 0o600))
		}
		return err
	}
	there := func(name string) bool { _, err := os.Lstat(name); return err == nil }
	conf := "data_dir = \"DIR/data\"\n[network]\nname = \"mainnet\"\n"
	network := func() string {
		f := &netdb.NetworkFile{Name: "home", Network: 42, Serial: 7}
		for i := range byte(4) {
			sec := key.FromSeed([32]byte{2, i})
			f.Relays = append(f.Relays, sec.Public())
			f.Contacts = append(f.Contacts, router.SignContact(sec, netip.AddrPortFrom(netip.AddrFrom4([4]byte{8, 8, 4, i}), 9), 42, time.Now()))
		}
		raw, err := f.Sign(secret)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	caller := key.Address{Key: key.FromSeed([32]byte{3}).Public()}.String()
	for name, s := range map[string]testkit.Save{
		"registry sign": {
			Old: func(dir string) error {
				return errors.Join(put(dir, "a.network", network()), secret.Save(filepath.Join(dir, "op.key")))
			},
			New: func(dir string) error {
				if f, err := readNetworkFile(filepath.Join(dir, "a.network"), key.Public{}); err != nil || f.Serial > 7 {
					return err // typed again it would be the serial after the next one
				}
				return typed(dir, "registry", "sign", "DIR/a.network", "--key", "DIR/op.key")
			},
			Load: func(dir string) (string, error) {
				f, err := readNetworkFile(filepath.Join(dir, "a.network"), secret.Public())
				if err != nil {
					return "", err
				}
				return fmt.Sprint(f.Serial, len(f.Relays)), nil
			},
			Next: func(dir string) error { statefile.Sweep(filepath.Join(dir, "a.network")); return nil },
		},
		"registry init": {
			New: func(dir string) error {
				if there(filepath.Join(dir, "home")) {
					return nil
				}
				return typed(dir, "registry", "init", "DIR/home", "--name", "home", "--id", "42", "--relay", "8.8.4.1")
			},
			Load: func(dir string) (string, error) {
				if !there(filepath.Join(dir, "home")) {
					return "none", nil
				}
				operator, err := key.LoadSecret(filepath.Join(dir, "home", "operator.key"))
				if err != nil {
					return "", err
				}
				f, err := readNetworkFile(filepath.Join(dir, "home", "home.network"), operator.Public())
				for i := range f.Relays {
					sec, err := key.LoadSecret(filepath.Join(dir, "home", relayName(i), "relay.key"))
					if err != nil || !slices.Contains(f.Relays, sec.Public()) {
						return "", fmt.Errorf("relay %d: %v", i, err)
					}
					if _, err := config.Load(filepath.Join(dir, "home", relayName(i), "lokinetd.toml")); err != nil {
						return "", err
					}
				}
				return "a network", err
			},
		},
		"service add": {
			Old: func(dir string) error { return put(dir, "a.toml", strings.ReplaceAll(conf, "DIR", dir)) },
			New: func(dir string) error {
				if c, err := config.Load(filepath.Join(dir, "a.toml")); err != nil || len(c.Service) > 0 {
					return err
				}
				return typed(dir, "service", "add", "web", "--config", "DIR/a.toml", "80", "--key", "DIR/web.key")
			},
			Load: func(dir string) (string, error) {
				c, err := config.Load(filepath.Join(dir, "a.toml"))
				if err != nil || len(c.Service) == 0 {
					return "none", err
				}
				_, err = key.LoadSecret(c.Service[0].Key)
				return "a service", err
			},
			Next: func(dir string) error {
				statefile.Sweep(filepath.Join(dir, "a.toml"), filepath.Join(dir, "web.key"))
				return nil
			},
		},
		"config import": {
			Old: func(dir string) error {
				raw := secret.Bytes64()
				return errors.Join(os.Mkdir(filepath.Join(dir, "keys"), 0o700), put(dir, "me.private", hex.EncodeToString(raw[:])+"\n", "old.ini", "[network]\nkeyfile=me.private\nauth-type=whitelist\nauth-whitelist="+caller+"\n"))
			},
			New: func(dir string) error {
				if there(filepath.Join(dir, "new.toml")) {
					return nil
				}
				return typed(dir, "config", "import", "DIR/old.ini", "--out", "DIR/new.toml", "--keys", "DIR/keys")
			},
			Load: func(dir string) (string, error) {
				if !there(filepath.Join(dir, "new.toml")) {
					return "none", nil
				}
				c, err := config.Load(filepath.Join(dir, "new.toml"))
				if err != nil || len(c.Service) != 1 {
					return "", fmt.Errorf("%v: %v", c, err)
				}
				if !hasClients(c.Service[0].Clients, []key.Public{key.FromSeed([32]byte{3}).Public()}) {
					return "", errors.New("no clients")
				}
				_, err = key.LoadSecret(c.Service[0].Key)
				return "a client", err
			},
			Next: func(dir string) error {
				statefile.Sweep(filepath.Join(dir, "new.toml"), filepath.Join(dir, "keys", "imported.key"))
				return nil
			},
		},
		"relay contact": {
			Old: func(dir string) error { return secret.Save(filepath.Join(dir, "relay.key")) },
			New: func(dir string) error {
				return typed(dir, "relay", "contact", "--key", "DIR/relay.key", "--id", "42", "--address", "8.8.4.1:9", "--out", "DIR/a.signed")
			},
			Load: func(dir string) (string, error) {
				name := filepath.Join(dir, "a.signed")
				if !there(name) {
					return "none", nil
				}
				raw, err := statefile.Read(name, netdb.MaxBootstrap)
				if err == nil {
					_, err = netdb.ParseBootstrap(raw, time.Now(), netdb.Rules{Network: 42, Private: true})
				}
				return "a contact", err
			},
			Next: func(dir string) error { statefile.Sweep(filepath.Join(dir, "a.signed")); return nil },
		},
	} {
		t.Run(name, func(t *testing.T) { t.Log(testkit.Saves(t, s), "ends") })
	}
}
