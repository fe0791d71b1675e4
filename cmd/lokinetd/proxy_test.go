package main

import (
	"os"
	"path/filepath"
	"testing"

	"lokinetd/config"
)

func TestProxyCommand(t *testing.T) {
	s := newScript(t)
	s.write("relay.toml", "role = \"relay\"\ndata_dir = \"state\"\n")
	s.write("client.toml", "data_dir = \"state\"\n[control]\nsocket = \"sock\"\ngroup = \"\"\n")
	s.run(exitFailure, "proxy -c relay.toml", "only a client has a proxy")
	s.run(exitFailure, "proxy -c missing.toml", "no such file")
	s.run(exitUsage, "proxy -c client.toml --socks 1080", "--socks", "127.0.0.1:1080")
	s.run(exitUsage, "proxy -c client.toml --socks= --http=", "nothing to do")
	s.run(exitUsage, "proxy -c client.toml --log proxy=loud", "loud")
	s.run(exitUsage, "proxy now", "usage")
	s.run(exitFailure, "proxy -c client.toml --http 192.0.2.1:1", "proxy.http")
	s.run(0, "proxy --help", "socks5h://127.0.0.1:1080", ".config/lokinetd/lokinetd.toml")
}

// TestUserDefaults: where a user without root keeps what, by the environment.
func TestUserDefaults(t *testing.T) {
	home := t.TempDir()
	for _, name := range []string{"XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", home)
	c := config.Default()
	userDefaults(c)
	state := filepath.Join(home, ".local", "state", "lokinetd")
	if c.DataDir != state || c.Control.Socket != filepath.Join(state, "lokinetd.sock") || c.Control.Group != "" {
		t.Errorf("%+v", c)
	}
	t.Setenv("XDG_STATE_HOME", "/s")
	t.Setenv("XDG_RUNTIME_DIR", "/r")
	if userDefaults(c); c.DataDir != "/s/lokinetd" || c.Control.Socket != "/r/lokinetd.sock" {
		t.Errorf("%+v", c)
	}

	own := filepath.Join(home, ".config", "lokinetd", "lokinetd.toml")
	a := &app{config: defaultConfig}
	if got := a.userConfig(); got == own {
		t.Error(got)
	}
	if err := os.MkdirAll(filepath.Dir(own), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, []byte("[[service]]\nname = \"a\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := a.userConfig(); got != own {
		t.Error(got)
	}
	if c, err := config.LoadWith(own, userDefaults); err != nil || c.Service[0].Key != "/s/lokinetd/service-a.key" {
		t.Errorf("%+v, %v", c, err)
	}
	a.config = "other.toml"
	if got := a.userConfig(); got != "other.toml" {
		t.Error(got)
	}
}
