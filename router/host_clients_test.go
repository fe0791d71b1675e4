package router

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lokinetd/config"
	"lokinetd/router/control"
	"lokinetd/router/key"
)

func TestReadClients(t *testing.T) {
	alice, bob := key.Address{Key: secret(1).Public()}, key.Address{Key: secret(2).Public()}
	relay := key.Address{Key: secret(3).Public(), Kind: key.Relay}
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func(want string, errs ...string) {
		t.Helper()
		list, err := readClients(dir)
		got := list[alice.Key] + " " + list[bob.Key]
		if got != want || list == nil || (err != nil) != (len(errs) > 0) {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
		for _, e := range errs {
			if err != nil && !strings.Contains(err.Error(), e) {
				t.Errorf("got %v, want %s", err, e)
			}
		}
	}
	read(" ")
	write("README", "no client")
	write(".hidden.client", "\x00")
	write(".client", "\x00")
	read(" ", "no file in it ends in .client")
	write("alice.client", "# her laptop\r\n\r\n  "+alice.String()+" # since May\n")
	read("alice ")
	write("bob.client", strings.ToUpper(bob.Text(key.TLDSesh)))
	read("alice bob")
	if err := os.Rename(filepath.Join(dir, "alice.client"), filepath.Join(dir, "alice.off")); err != nil {
		t.Fatal(err)
	}
	read(" bob")
	for content, want := range map[string]string{
		"":                                   "x.client: no address in it",
		"#" + alice.String():                 "x.client: no address in it",
		"alice.loki":                         `x.client: "alice.loki" is not an address`,
		relay.String():                       "is a relay's address",
		alice.String() + "\n" + bob.String(): "x.client: 2 addresses",
		strings.Repeat("y", 52) + ".loki":    "x.client: ",
		strings.Repeat(" ", maxClientFile+1): "x.client: larger than",
	} {
		write("x.client", content)
		read(" bob", want)
	}
	os.Remove(filepath.Join(dir, "x.client"))
	if err := unix.Mkfifo(filepath.Join(dir, "fifo.client"), 0o600); err != nil {
		t.Fatal(err)
	}
	read(" bob", "fifo.client: not a regular file")
	os.RemoveAll(dir)
	read(" ", "no such file")
}

// TestAllows: without a folder everybody may call; with one, who stands in it, and nobody when there is nothing to read.
func TestAllows(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.client"), []byte(key.Address{Key: secret(1).Public()}.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]string{"": "12", dir: "1", filepath.Join(dir, "missing"): ""} {
		var e hostEndpoint
		e.service.Store(&config.Service{Name: "x", Clients: from})
		e.clients.Store(&clientList{})
		if e.allows(secret(1).Public(), true) {
			t.Error("somebody may call before the folder is read")
		}
		e.setClients()
		got := ""
		for i := range 3 {
			if i > 0 && e.allows(secret(i).Public(), true) {
				got += fmt.Sprint(i)
			}
		}
		if e.allows(secret(1).Public(), false) != (from == "") {
			t.Errorf("%s: who has not proven to be on a list", from)
		}
		if got != want {
			t.Errorf("%s: %q may call, want %q", from, got, want)
		}
	}
}

// TestClientLists: the folder is read at the start and at each reload, also at one whose configuration is refused. What is wrong in it keeps out the client that it is about, and is said.
func TestClientLists(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	put := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	blog := config.Service{Name: "blog", Key: filepath.Join(b.config.DataDir, "..", "blog.key"), Clients: dir, MaxSessions: 5, MaxNewSessions: 6}
	b.config.Service = []config.Service{blog}
	next, broken := *b.config, error(nil)
	b.again = func() (*config.Config, error) { c := next; return &c, broken }
	s := b.mustStart()
	check := func(clients int, warning string) {
		t.Helper()
		st := s.status()
		var e control.Endpoint
		for _, x := range st.Endpoints {
			if x.Name == "blog" {
				e = x
			}
		}
		if e.Clients != clients || e.ClientsFrom != next.Service[0].Clients || e.MaxSessions != next.Service[0].MaxSessions {
			t.Errorf("status: %+v", e)
		}
		all := strings.Join(st.Warnings, "\n")
		if warning == "" && strings.Contains(all, "clients") || !strings.Contains(all, warning) {
			t.Errorf("status warns of %q, want %q", all, warning)
		}
	}
	line := func(i int) string { return key.Address{Key: secret(i).Public()}.String() }
	check(0, dir+" is empty; nobody may call it")
	put("a.client", line(1))
	put("b.client", line(2))
	s.sighup()
	check(2, "")
	put("c.client", "?")
	s.sighup()
	check(2, "only the other clients may call it")
	os.Remove(filepath.Join(dir, "a.client"))
	os.Remove(filepath.Join(dir, "c.client"))
	broken = fmt.Errorf("line 7 is wrong")
	s.sighup()
	check(1, "line 7 is wrong")
	broken = nil
	next.Service = []config.Service{blog}
	next.Service[0].Clients, next.Service[0].MaxSessions = "", 9
	s.sighup()
	check(0, "")
	next.Service = []config.Service{blog}
	os.RemoveAll(dir)
	s.sighup()
	check(0, "the daemon must be able to read it); nobody may call it")
	s.stop()
	b.clean()
}
