package main

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"lokinetd/config"
	"lokinetd/router/control"
	"lokinetd/router/key"
)

func init() { worlds["hosting"] = fakeDaemon{status: hostingStatus()} }

// hostingStatus is of a client with three services: a full one, one for listed clients only, one that nobody finds yet.
func hostingStatus() control.Status {
	s := goldenStatus("client", control.Ready)
	published := goldenNow.Add(-5 * time.Minute)
	s.Endpoints = []control.Endpoint{
		{Name: "browsing", Kind: "browsing", Address: goldenClient(3), IPv4: "172.16.0.1"},
		{Name: "blog", Kind: "service", Address: goldenClient(1), IPv4: "172.17.0.1", IPv6: "fd2e:7365:7368:1::1", Names: []string{"blog.loki", "diary.loki"},
			Ports: []string{"tcp/22", "tcp/80", "udp/53"}, Forwards: []string{"tcp/80 -> 127.0.0.1:8080", "udp/53 -> 127.0.0.1:5353"}, InboundPaths: 3, InboundWant: 4,
			PublishedAt: &published, Sessions: 2, MaxSessions: 4096, MaxNewSessions: 100, TooMany: 3,
			Traffic: control.Traffic{PacketsIn: 4000, PacketsOut: 7000, BytesIn: 204_000, BytesOut: 9_876_543}},
		{Name: "family", Kind: "service", Address: goldenClient(4), IPv4: "172.17.16.1", Ports: []string{"tcp/443"}, Forwards: []string{"tcp/443 -> 127.0.0.1:8443"},
			PublishedAt: &published, ClientsFrom: "/etc/lokinetd/family", Clients: 1, Refused: 12, MaxSessions: 8, MaxNewSessions: 2},
		{Name: "new", Kind: "service", Address: goldenClient(5), IPv4: "172.17.32.1", MaxSessions: 4096, MaxNewSessions: 100},
	}
	return s
}

// TestServiceAdd is what a host types to open a service.
func TestServiceAdd(t *testing.T) {
	s := newScript(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here := l.Addr().String()
	s.write("home.toml", "# Mine.\ndata_dir = \"data\" # all of it\n\n[log]\nlevel = \"warn\"   # quiet")
	if err := os.Chmod("home.toml", 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("home.toml", "c.toml"); err != nil {
		t.Fatal(err)
	}
	add := "service add --config c.toml "

	// A port that leads to a program; the address is said, and what to type next.
	s.run(0, add+"blog 80:"+here+" udp/53:127.0.0.1:5353 --echo", "added to ", `  forward = ["80 -> `+here+`", "udp/53 -> 127.0.0.1:5353"]`, "new; keep a copy", "run --config c.toml", "lokinetd service show blog")
	if strings.Contains(s.said, "nobody listens") {
		t.Error(s.said)
	}
	address := s.find(`address  (\w+\.loki)`)
	secret, err := key.LoadSecret("data/service-blog.key")
	if err != nil || (key.Address{Key: secret.Public()}).String() != address {
		t.Errorf("%v: %s", err, address)
	}
	raw, err := os.ReadFile("home.toml")
	if want := "# Mine.\ndata_dir = \"data\" # all of it\n\n[log]\nlevel = \"warn\"   # quiet\n\n[[service]]\nname = \"blog\"\nforward = [\"80 -> " + here +
		"\", \"udp/53 -> 127.0.0.1:5353\"]\necho = true\n"; err != nil || string(raw) != want {
		t.Errorf("%v: %s\nwant %s", err, raw, want)
	}
	if st, err := os.Stat("home.toml"); err != nil || st.Mode() != 0o640 {
		t.Error(st, err)
	}
	if st, err := os.Lstat("c.toml"); err != nil || st.Mode().Type() != os.ModeSymlink {
		t.Error(st, err)
	}

	// Short forms; a folder of clients, which is made; a key that is there already, which stays.
	s.run(0, "key new mine.key")
	mine := s.find(`(\w+\.loki)`)
	s.run(0, add+"chat 22 6667:6667 --clients friends --key mine.key --max-sessions 9", mine, "nobody listens on 127.0.0.1:6667 yet", "nobody may call before there is a file in ")
	c, err := config.Load("c.toml")
	if err != nil {
		t.Fatal(err)
	}
	chat := c.Service[1]
	if cwd, _ := os.Getwd(); chat.Clients != filepath.Join(cwd, "friends") || chat.Key != filepath.Join(cwd, "mine.key") || chat.MaxSessions != 9 || len(chat.Ports) != 1 || len(chat.Forward) != 1 {
		t.Errorf("%+v", chat)
	}
	if st, err := os.Stat("friends"); err != nil || !st.IsDir() {
		t.Error(st, err)
	}

	// For programs; and with no configuration at all, one is made.
	var v map[string]any
	if err := json.Unmarshal([]byte(s.run(0, "service add --config sub/new.toml --key mine.key --json x 80")), &v); err != nil || v["address"] != mine || v["key_made"] != false || v["schema"] != 1.0 {
		t.Errorf("%v: %v", err, v)
	}
	if c, err := config.Load("sub/new.toml"); err != nil || len(c.Service) != 1 {
		t.Error(c, err)
	}

	// The daemon has not read it yet.
	serve(t, worlds["hosting"])
	s.run(6, "service show chat --config c.toml --socket ./sock", "but the daemon does not host it: type ")
	s.run(0, "service add --config sub/new.toml y 81 --socket ./sock", "kill -HUP "+strconv.Itoa(os.Getpid()), "service show y --config sub/new.toml")

	// What is refused changes nothing and makes no key.
	s.write("relay.toml", "role = \"relay\"\n")
	s.write("wrong.toml", "[dns]\nlisten_on = 1\n")
	s.write("inline.toml", "service = [{name = \"a\"}]\n")
	before, _ := os.ReadFile("home.toml")
	for _, c := range []struct {
		code int
		line string
		text string
	}{
		{2, add + "blog", "requires at least 2"},
		{2, add + "new 80:127.0.0.1:8080:1", "want PORT:ADDRESS:PORT"},
		{2, add + "new 0", "want PORT:ADDRESS:PORT"},
		{2, add + "new 80:localhost:8080", "want PORT:ADDRESS:PORT"},
		{2, add + "new sctp/80", "want PORT:ADDRESS:PORT"},
		{1, add + "blog 81", "there is a service blog"},
		{1, add + "New 81", `service[2].name: "New": want 1 to 32 of`},
		{1, add + "new 81 81:8080", "is a port of the service already"},
		{1, add + "new 81 --key mine.key", "is the key file of service[1].key already"},
		{1, add + "new 81 --max-sessions 70000", "out of range"},
		{1, "service add --config relay.toml new 81", "of a relay, which hosts nothing"},
		{1, "service add --config wrong.toml new 81", "wrong.toml:2: dns.listen_on"},
		{1, "service add --config inline.toml new 81", "stays as it is"},
		{3, "service list --config c.toml --socket ./nobody.sock", "not running"},
		{3, "service show --config c.toml --socket ./nobody.sock blog", "not running"},
		{2, "service", "which of the commands"},
	} {
		s.run(c.code, c.line, c.text)
	}
	after, err := os.ReadFile("home.toml")
	if err != nil || string(before) != string(after) {
		t.Errorf("a refused change left its mark: %v", err)
	}
	if _, err := os.Lstat("data/service-new.key"); err == nil {
		t.Error("a refused service has a key")
	}
	if left, err := filepath.Glob(".*"); err != nil || len(left) > 0 {
		t.Errorf("%v: %v", left, err)
	}
}
