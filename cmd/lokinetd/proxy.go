package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"lokinetd/config"
	"lokinetd/router"
)

func (a *app) proxyCommand() *cobra.Command {
	var levels string
	var socks, http []string
	cmd := &cobra.Command{
		Use: "proxy", Short: "Reach and host .loki sites without root: a SOCKS5 and an HTTP proxy", Args: cobra.NoArgs,
		Long: "Run a client that needs no root and changes nothing on this machine. Programs reach .loki, .sesh and .snode\n" +
			"names through a SOCKS5 proxy (127.0.0.1:1080) or an HTTP proxy (127.0.0.1:1081); all other names are refused.\n" +
			"  curl --proxy socks5h://127.0.0.1:1080 http://NAME.loki/\n" +
			"The ports of services lead to programs on 127.0.0.1. Without --config, the configuration is\n" +
			"~/.config/lokinetd/lokinetd.toml or, where there is none, " + defaultConfig + ".\n" +
			"The data is kept in ~/.local/state/lokinetd unless data_dir says otherwise, or you are root.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			read := func() (*config.Config, error) {
				c, err := config.LoadWith(a.userConfig(), asUser)
				if err == nil {
					err = errors.Join(listenFlag(cmd, "socks", socks, &c.Proxy.SOCKS), listenFlag(cmd, "http", http, &c.Proxy.HTTP))
				}
				if err == nil && len(c.Proxy.SOCKS)+len(c.Proxy.HTTP)+len(c.Service) == 0 {
					err = usagef("neither a proxy nor a service: nothing to do")
				}
				return c, err
			}
			_, err := a.daemon(cmd.Context(), levels, read, router.RunProxy)
			if errors.Is(err, fs.ErrPermission) {
				err = fmt.Errorf("%w; choose a data_dir and a control.socket that you may write to", err)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&levels, "log", "", "log levels in addition to the configured ones, for example '*=info,proxy=debug'")
	cmd.Flags().StringSliceVar(&socks, "socks", nil, "`address` of the SOCKS5 proxy in the place of the configured one; \"\": none")
	cmd.Flags().StringSliceVar(&http, "http", nil, "`address` of the HTTP proxy in the place of the configured one; \"\": none")
	return cmd
}

// listenFlag puts the addresses of a flag that was given into a configuration.
func listenFlag(cmd *cobra.Command, name string, given []string, to *[]netip.AddrPort) error {
	if !cmd.Flags().Changed(name) {
		return nil
	}
	*to = nil
	for _, text := range given {
		if text == "" {
			continue
		}
		at, err := netip.ParseAddrPort(text)
		if err != nil {
			return usagef("--%s %q: want ADDRESS:PORT, such as 127.0.0.1:1080", name, text)
		}
		*to = append(*to, at)
	}
	return nil
}

// userConfig is the configuration file of a command that a user without root runs; "": there is none.
func (a *app) userConfig() string {
	if a.config != defaultConfig {
		return a.config
	}
	own := ""
	if dir, err := os.UserConfigDir(); err == nil {
		own = filepath.Join(dir, "lokinetd", "lokinetd.toml")
	}
	for _, name := range []string{own, defaultConfig} {
		if _, err := os.Stat(name); name != "" && !errors.Is(err, fs.ErrNotExist) {
			return name
		}
	}
	return ""
}

// meantConfig reads the configuration of the daemon that commands ask: that of the user's own `lokinetd proxy` where it runs, or where the
// machine has no other; else the one of the flags.
func (a *app) meantConfig() (c *config.Config, file string, err error) {
	if own := a.userConfig(); a.config == defaultConfig && os.Geteuid() != 0 && own != "" && own != defaultConfig {
		if _, err := os.Stat(defaultConfig); err != nil || a.ownSocket() != "" {
			c, err := config.LoadWith(own, asUser)
			return c, own, err
		}
	}
	c, err = config.Load(a.config)
	return c, a.config, err
}

// asUser changes the defaults for a daemon of a user who is not root; for root they stay.
func asUser(c *config.Config) {
	if os.Geteuid() != 0 {
		userDefaults(c)
	}
}

func userDefaults(c *config.Config) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		c.DataDir = filepath.Join(dir, "lokinetd")
	} else if home, err := os.UserHomeDir(); err == nil {
		c.DataDir = filepath.Join(home, ".local", "state", "lokinetd")
	}
	c.Control.Socket, c.Control.Group = filepath.Join(c.DataDir, "lokinetd.sock"), ""
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		c.Control.Socket = filepath.Join(dir, "lokinetd.sock")
	}
}

// ownSocket is the control socket of a `lokinetd proxy` of this user; "": there is none, or the flags ask for another daemon.
func (a *app) ownSocket() string {
	if a.config != defaultConfig || os.Geteuid() == 0 {
		return ""
	}
	c, err := config.LoadWith(a.userConfig(), asUser)
	if err != nil {
		return ""
	}
	if _, err := os.Stat(c.Control.Socket); err != nil {
		return ""
	}
	return c.Control.Socket
}
