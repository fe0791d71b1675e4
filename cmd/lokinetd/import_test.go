package main

import (
	"encoding/hex"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"lokinetd/config"
	"lokinetd/router"
	"lokinetd/router/key"
)

// TestConfigImport types what someone types who moves in from Lokinet or Session Router with an address that is to stay.
func TestConfigImport(t *testing.T) {
	s := newScript(t)
	sec := key.Generate()
	raw := sec.Bytes64()
	address := key.Address{Key: sec.Public()}.String()
	ini := "[network]\nkeyfile=me.private\nexit-node=exit.loki\n"

	// The three forms of key files: Lokinet's dict, Session Router's text and bytes.
	for i, content := range []string{"d1:s64:" + string(raw[:]) + "1:vi0ee", hex.EncodeToString(raw[:]) + "\n", string(raw[:])} {
		s.write("me.private", content)
		s.write("old.ini", ini)
		toml := s.run(0, "config import old.ini", address, "old.ini:3: [network] exit-node: left out: exit traffic", "old.ini:2: [network] keyfile: the address is kept")
		if strings.Contains(s.said, hex.EncodeToString(raw[:8])) || strings.Contains(toml, hex.EncodeToString(raw[:8])) {
			t.Error("the secret is shown")
		}
		c, err := config.Parse([]byte(toml), "/x/new.toml")
		if err != nil || len(c.Service) != 1 {
			t.Fatalf("%d: %v\n%s", i, err, toml)
		}
		if again, err := key.LoadSecret(c.Service[0].Key); err != nil || again.Public() != sec.Public() {
			t.Errorf("%d: %v", i, err)
		}
	}

	// Written to a file, with the key copied, nothing overwritten.
	if err := os.Mkdir("keys", 0o700); err != nil {
		t.Fatal(err)
	}
	s.run(0, "config import old.ini --out new.toml --keys keys", address)
	s.run(0, "config check new.toml", "a client")
	if c, err := config.Load("new.toml"); err != nil || !strings.HasSuffix(c.Service[0].Key, "/keys/imported.key") {
		t.Errorf("%v", err)
	}
	if fi, err := os.Stat("keys/imported.key"); err != nil || fi.Mode().Perm() != 0o600 || fi.Size() != 129 {
		t.Errorf("%v, %v", fi, err)
	}
	s.run(1, "config import old.ini --out new.toml", "new.toml exists already")
	other := key.Generate().Bytes64()
	s.write("other.private", string(other[:]))
	s.write("other.ini", "[network]\nkeyfile=other.private\n")
	s.run(1, "config import other.ini --out other.toml --keys keys", "imported.key exists already")
	if _, err := os.Stat("other.toml"); err == nil {
		t.Error("written in spite of an error")
	}

	// A list of who may call goes with the key.
	friend := key.Address{Key: key.Generate().Public()}.String()
	s.write("list.ini", "[network]\nkeyfile=me.private\nauth-whitelist="+friend+"\n")
	s.run(0, "config import list.ini", "nobody may call it before /var/lib/lokinetd/imported.clients is there, with a file NAME.client for each of 1 clients")
	if err := os.Mkdir("listed", 0o700); err != nil {
		t.Fatal(err)
	}
	s.run(0, "config import list.ini --out list.toml --keys listed", "who may call it: 1 clients, those in ", "/listed/imported.clients")
	if c, err := config.Load("list.toml"); err != nil || !strings.HasSuffix(c.Service[0].Clients, "/listed/imported.clients") {
		t.Errorf("%v", err)
	}
	if got, err := os.ReadFile("listed/imported.clients/imported-1.client"); err != nil || string(got) != friend+"\n" {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.Remove("listed/imported.key"); err != nil {
		t.Fatal(err)
	}
	s.run(0, "config import list.ini --keys listed", address) // goes on where one was cut short
	if err := os.Remove("listed/imported.key"); err != nil {
		t.Fatal(err)
	}
	s.write("listed/imported.clients/mine.client", friend+"\n")
	s.run(1, "config import list.ini --keys listed", "imported.clients exists already")
	if _, err := os.Stat("listed/imported.key"); err == nil {
		t.Error("a key was copied in spite of an error")
	}

	// What is wrong.
	s.write("me.private", "rubbish")
	s.run(1, "config import old.ini", "me.private: not a secret key")
	if err := os.Remove("me.private"); err != nil {
		t.Fatal(err)
	}
	s.run(1, "config import old.ini", "me.private: no such file")
	s.run(1, "config import none.ini", "none.ini: no such file")
	s.run(2, "config import", "usage")
	s.write("text.ini", "hello\n")
	s.run(1, "config import text.ini", "text.ini:1: want a section")

	// Bootstrap files that the daemon would refuse.
	s.write("boot.ini", "[bootstrap]\nadd-node=a.signed\nadd-node=b.signed\n[exit]\nenable=no\n")
	s.write("a.signed", string(router.SignContact(key.Generate(), netip.MustParseAddrPort("20.0.0.1:1190"), 0, time.Now()).Raw()))
	s.write("b.signed", "d1:ald1:c")
	s.run(0, "config import boot.ini", "will not start with this bootstrap file: ", "b.signed: netdb: bootstrap file")
	if strings.Contains(s.said, "a.signed") {
		t.Error(s.said)
	}
	s.run(0, "config import boot.ini --out boot.toml")
	s.run(1, "config check boot.toml", "network.bootstrap: ", "b.signed: netdb: bootstrap file")
	s.write("b.signed", "l"+string(router.SignContact(key.Generate(), netip.MustParseAddrPort("20.0.0.2:1190"), 0, time.Unix(1.7e9, 0)).Raw())+"e")
	s.run(0, "config check boot.toml", "b.signed is right: 1 relay, the latest contact is of 2023-11-14; all have expired", "boot.toml is right: a client")
}

// TestConfigCheck: the network file is read too, and a relay's address looked for, as they are at a start.
func TestConfigCheck(t *testing.T) {
	s := newScript(t)
	s.run(0, "key new op.key")
	s.run(0, "registry new a.network --key op.key --name a --id 44")
	shown := strings.Fields(s.run(0, "key show op.key"))
	operator := shown[len(shown)-1]
	for _, c := range []struct {
		code                    int
		role, file, relay, says string
	}{
		{0, "client", "a.network", "", "c.toml is right: a client"},
		{0, "relay", "a.network", "192.0.2.1", "c.toml is right: a relay"},
		{1, "relay", "a.network", "", "relay.public_address: not given"},
		{1, "client", "op.key", "", "op.key: netdb: network file: not a network file"},
		{1, "client", "none.network", "", "network.file: open "},
	} {
		s.write("c.toml", "role = \""+c.role+"\"\n[network]\nfile = \""+c.file+"\"\noperator = \""+operator+"\"\n[relay]\npublic_address = \""+c.relay+"\"\n")
		s.run(c.code, "config check c.toml", c.says)
	}
	s.run(1, "config check none.toml", "there is no configuration", "none.toml")
}
