package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"lokinetd/config"
	"lokinetd/router/key"
)

// TestRegistryInit makes whole networks; docs/private-network.md, which TestPrivateNetwork walks through, goes on from there.
func TestRegistryInit(t *testing.T) {
	s := newScript(t)
	s.run(0, "registry init home --name home --id 42 --relay 8.8.4.1 --relay 8.8.4.2:1234 --relay 8.8.4.3 --relay 8.8.4.4",
		"network    home (id 42), 4 relays\n", "home/relay2/", "configuration and key of 8.8.4.2:1234", "scp home/relay4/relay.key root@8.8.4.4:/var/lib/lokinetd/", "works as long as all of them do")
	operator := s.find(`operator   (\w+)`)
	s.run(0, "registry show home/home.network --operator "+operator, "home (id 42), serial 1", "flags      none", "8.8.4.2:1234", "relays     4")
	for _, n := range []string{"1", "2", "3", "4"} {
		c, err := config.Load("home/relay" + n + "/lokinetd.toml")
		if err != nil || c.Role != config.RoleRelay || c.Network.Operator.String() != operator || c.Relay.Listen.Port() != c.Relay.PublicAddress.Port() || c.Relay.Key != "/var/lib/lokinetd/relay.key" {
			t.Fatalf("%v: %+v", err, c)
		}
		secret, err := key.LoadSecret("home/relay" + n + "/relay.key")
		if err != nil {
			t.Fatal(err)
		}
		s.run(0, "registry show home/home.network", key.Address{Key: secret.Public(), Kind: key.Relay}.String()+"  "+c.Relay.PublicAddress.String())
	}
	if c, err := config.Load("home/client.toml"); err != nil || c.Role != config.RoleClient || c.Network.File != "/etc/lokinetd/home.network" {
		t.Errorf("%v: %+v", err, c)
	}
	for name, mode := range map[string]os.FileMode{"home": 0o700, "home/relay1": 0o700, "home/operator.key": 0o600, "home/relay1/relay.key": 0o600, "home/home.network": 0o644} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}

	// It asks for what is not said, until that is right.
	var out, said bytes.Buffer
	a := &app{in: strings.NewReader("\nhost.example\n10.0.0.1\n10.0.0.2:70000\n10.0.0.2\n::1\n0.0.0.0\n\n"), out: &out, err: &said}
	if code := a.execute(t.Context(), []string{"registry", "init", "asked", "--key", "home/operator.key"}); code != 0 {
		t.Fatalf("%d: %s", code, said.String())
	}
	for _, text := range []string{"What is the network called? [home]", "4 are needed, 6 or more are advised", "Address of relay 3", `"host.example": want the IPv4 address`, "does not work with fewer than 4"} {
		if !strings.Contains(said.String(), text) {
			t.Errorf("no %q in\n%s", text, said.String())
		}
	}
	if strings.Count(said.String(), "want the IPv4 address") != 4 || !strings.Contains(out.String(), "2 relays, at addresses that are not public") || !strings.Contains(out.String(), operator) {
		t.Errorf("%s%s", said.String(), out.String())
	}
	s.run(0, "registry show asked/home.network", "private addresses allowed", "relays     2")
	a = &app{in: strings.NewReader("x\n10.0.0.1\n"), out: &out, err: &said}
	if code := a.execute(t.Context(), []string{"registry", "init", "cut"}); code != exitUsage {
		t.Errorf("answers that end too early: %d", code)
	}

	// Another operator: the former file stays, and who believes the former key does not take the new one.
	s.run(0, "key new new.key")
	s.run(0, "registry rotate home/home.network --key home/operator.key --new-key new.key --out next.network", "serial 2, 4 relays")
	next := s.find(`operator   (\w+)`)
	s.run(0, "registry show next.network --operator "+next, "home (id 42), serial 2", "8.8.4.3:1190")
	s.run(1, "registry show next.network --operator "+operator, "its operator is")
	s.run(0, "registry show home/home.network --operator "+operator, "serial 1")

	for _, c := range []struct {
		code int
		line string
		text string
	}{
		{1, "registry init home --name home --relay 8.8.4.1", "home is not empty"},
		{1, "registry init x --name Home --relay 8.8.4.1", "is not 1 to 32 of"},
		{1, "registry init x --name home --relay 8.8.4.1 --key missing.key", "missing.key"},
		{2, "registry init", "accepts 1 arg"},
		{2, "registry init x --name home --id 1 --relay 8.8.4.1", "0 and 1 are the public"},
		{2, "registry init x --name home --relay 8.8.4.1 --relay 8.8.4.1:1190", "given twice"},
		{2, "registry init x --name home --relay 2600::1", "want the IPv4 address"},
		{2, "registry init x --relay 8.8.4.1", "--name NAME"},
		{2, "registry init x --name home", "--relay IP"},
		{2, "registry rotate home/home.network --key home/operator.key", "--out FILE"},
		{2, "registry rotate home/home.network --key home/operator.key --new-key home/operator.key --out y", "has signed"},
		{2, "registry rotate home/home.network --key home/operator.key --new-key new.key --out home/home.network", "needed until all"},
		{1, "registry rotate home/home.network --key home/operator.key --new-key new.key --out next.network", "stays as it is"},
		{1, "registry rotate home/home.network --key new.key --new-key home/operator.key --out y", "its operator is"},
	} {
		s.run(c.code, c.line, c.text)
	}
	for _, name := range []string{"x", "y", "cut"} {
		if _, err := os.Lstat(name); err == nil {
			t.Errorf("what was refused has made %s", name)
		}
	}
}
