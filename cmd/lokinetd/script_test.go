package main

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
)

// script runs command lines in a directory of its own, as a person would type them.
type script struct {
	t    *testing.T
	last string // standard output of the last command
	said string // and what it printed as errors and notes
}

func newScript(t *testing.T) *script {
	t.Chdir(t.TempDir())
	return &script{t: t}
}

// run types one command line, split at spaces, and demands its exit code and, in what it prints on
// either stream, all of the texts. It returns the standard output.
func (s *script) run(code int, line string, texts ...string) string {
	s.t.Helper()
	var out, err bytes.Buffer
	got := execute(s.t.Context(), strings.Fields(line), &out, &err)
	if got != code {
		s.t.Fatalf("lokinetd %s: exit code %d, want %d\n%s%s", line, got, code, out.String(), err.String())
	}
	for _, text := range texts {
		if !strings.Contains(out.String()+err.String(), text) {
			s.t.Errorf("lokinetd %s: no %q in\n%s%s", line, text, out.String(), err.String())
		}
	}
	if code != 0 && err.Len() == 0 {
		s.t.Errorf("lokinetd %s: fails with %d and says nothing", line, code)
	}
	s.last, s.said = out.String(), err.String()
	return s.last
}

func (s *script) write(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// find gives the first group of a pattern in the last command's output.
func (s *script) find(pattern string) string {
	s.t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(s.last)
	if m == nil {
		s.t.Fatalf("no %s in\n%s", pattern, s.last)
	}
	return m[1]
}

// TestPrivateNetworkByHand is the README's section of that name.
func TestPrivateNetworkByHand(t *testing.T) {
	s := newScript(t)

	// The operator makes a key and a network of no relays.
	s.run(0, "key new operator.key")
	operator := s.find(`public key +(\w+)`)
	s.run(0, "registry new home.network --key operator.key --name home --id 42", "serial 1, 0 relays", "does not work with fewer than 4")

	// Each relay writes its contact from its configuration; the first time, that makes its key.
	for _, n := range []string{"1", "2", "3", "4"} {
		s.write("relay"+n+".toml", `role = "relay"
data_dir = "data`+n+`"
[network]
file = "home.network"
operator = "`+operator+`"
[relay]
public_address = "8.8.4.`+n+`:1190"
`)
		s.run(0, "relay contact --config relay"+n+".toml --out relay"+n+".contact", "made a new key: ", "at 8.8.4."+n+":1190 in network 42")
	}
	if again := s.run(0, "relay contact --config relay1.toml"); !strings.HasPrefix(again, "d") {
		t.Errorf("without --out the contact goes to standard output, not %q", again)
	}

	// The operator adds the relays and gives a client a name.
	s.run(0, "registry add home.network --key operator.key relay1.contact relay2.contact relay3.contact relay4.contact",
		"serial 2, 4 relays", "works as long as all of them do")
	s.run(0, "key new blog.key")
	blog := s.find(`(\w+\.loki)`)
	s.run(0, "registry name home.network --key operator.key blog.loki "+blog, "serial 3, 4 relays, 1 name")

	// Everybody can see what is in the file, and that the operator signed it.
	s.run(0, "registry show home.network --operator "+operator, "network    home (id 42), serial 3", "relays     4", "8.8.4.3:1190", "  blog.loki  "+blog, "warning")
	var shown registryJSON
	if err := json.Unmarshal([]byte(s.run(0, "registry show home.network --json")), &shown); err != nil {
		t.Fatal(err)
	}
	if shown.Schema != 1 || shown.Serial != 3 || len(shown.Relays) != 4 || shown.Names["blog.loki"] != blog || len(shown.Warnings) != 1 {
		t.Errorf("registry show --json: %+v", shown)
	}

	// Later: a relay moves, two more come (one has no contact yet), one goes, the name is taken back.
	s.run(0, "relay contact --config relay1.toml --address 8.8.8.8:443 --out relay1.contact", "at 8.8.8.8:443")
	s.run(0, "registry add home.network --key operator.key relay1.contact", "serial 4, 4 relays")
	s.run(0, "relay contact --key relay5.key --address 9.9.9.9 --id 42 --out relay5.contact", "at 9.9.9.9:1190")
	s.run(0, "key new relay6.key")
	relay6 := s.find(`(\w+\.snode)`)
	s.run(0, "registry add home.network --key operator.key relay5.contact "+relay6, "serial 5, 6 relays")
	if s.said != "" {
		t.Errorf("six relays are enough: %s", s.said)
	}
	s.run(0, "registry show home.network", relay6+"  no contact", "8.8.8.8:443")
	if strings.Contains(s.last, "8.8.4.1:") {
		t.Errorf("the old contact of a relay stayed:\n%s", s.last)
	}
	s.run(0, "registry remove home.network --key operator.key "+relay6, "serial 6, 5 relays")
	s.run(0, "registry name home.network --key operator.key blog.loki --remove", "serial 7, 5 relays, 0 names")
	s.run(0, "registry sign home.network --key operator.key", "serial 8")
}

// TestRegistryRefuses: what is wrong is said, with its exit code, and the file stays as it is.
func TestRegistryRefuses(t *testing.T) {
	s := newScript(t)
	s.run(0, "key new operator.key")
	s.run(0, "key new other.key")
	client, other := s.find(`(\w+\.loki)`), s.find(`public key +(\w+)`)
	relay := s.find(`(\w+\.snode)`)
	s.run(0, "registry new a.network --key operator.key --name a --id 42")
	s.run(0, "registry new lan.network --key operator.key --name lan --id 43 --private --unique-range")
	s.run(0, "relay contact --key r.key --address 10.0.0.1:1190 --id 42 --out private.contact")
	s.run(0, "relay contact --key r.key --address 10.0.0.1:1190 --network lan.network --out lan.contact")
	s.run(0, "registry add lan.network --key operator.key lan.contact", "1 relay,")
	before, err := os.ReadFile("a.network")
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(before)
	damaged[len(damaged)-4] ^= 1
	s.write("damaged.network", string(damaged))
	s.write("public.toml", "role = \"relay\"\n[relay]\npublic_address = \"8.8.4.1\"\n")

	for _, c := range []struct {
		code int
		line string
		text string
	}{
		{1, "registry new a.network --key operator.key --name b --id 44", "stays as it is"},
		{1, "registry sign a.network --key other.key", "its operator is"},
		{1, "registry show a.network --operator " + other, "its operator is"},
		{1, "registry show damaged.network", "damaged.network: "},
		{1, "registry show missing.network", "no such file"},
		{1, "registry sign a.network --key missing.key", "missing.key"},
		{1, "registry add a.network --key operator.key " + relay + " private.contact", "private.contact: not a contact for this network"},
		{1, "registry add a.network --key operator.key lan.contact", "lan.contact: not a contact for this network"},
		{1, "registry add a.network --key operator.key operator.key", "operator.key: not a contact"},
		{1, "relay contact --key r.key --address 10.0.0.1:1190 --network a.network --out x", "not publicly routable"},
		{1, "relay contact --config missing.toml --out x", "missing.toml"},
		{1, "relay contact --config public.toml --id 0 --out x", "is oxend's"},
		{2, "registry", "which of the commands"},
		{2, "registry new b.network --name b --id 44", "--key"},
		{2, "registry new b.network --key operator.key --name b --id 1", "2 or more"},
		{2, "registry new b.network --key operator.key --name b --id x", "invalid argument"},
		{2, "registry add a.network --key operator.key", "requires at least 2"},
		{2, "registry add a.network --key operator.key " + client, "of a client, not of a relay"},
		{2, "registry name a.network --key operator.key blog.loki", "takes 3 arguments"},
		{2, "registry name a.network --key operator.key blog.loki " + relay, "of a relay, not of a client"},
		{2, "registry name a.network --key operator.key www.blog.loki " + client, "cannot be registered"},
		{2, "registry name a.network --key operator.key " + client + " " + client, "cannot be registered"},
		{2, "relay contact --key r.key --address here --id 42 --out x", "want IP:PORT"},
		{2, "relay contact --key r.key --address [2600::1]:1190 --id 42 --out x", "IPv4"},
		{2, "relay contact --key r.key --address 8.8.8.8 --id 42 --network a.network", "not both"},
		{3, "relay list --socket ./nobody.sock", "not running"},
		{6, "registry remove a.network --key operator.key " + relay, "is not a relay of"},
		{6, "registry name a.network --key operator.key --remove blog.loki", "is not a name of"},
	} {
		s.run(c.code, c.line, c.text)
	}
	if after, err := os.ReadFile("a.network"); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a refused change left its mark: %v", err)
	}
	if _, err := os.Lstat("b.network"); err == nil {
		t.Error("a refused network was made")
	}
}
