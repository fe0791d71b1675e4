package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

var update = flag.Bool("update", false, "write what the commands in testdata print into their files")

// TestGolden types the commands of each file of testdata and demands what stands below them, to the byte. A file begins with the daemon that
// answers ("# daemon: NAME", see worlds); each "$ " is a command line, "! " goes before what it writes to standard error, and [exit N] after
// what it prints unless N is 0.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no files in testdata", err)
	}
	for _, file := range files {
		name, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { golden(t, name) })
	}
}

func golden(t *testing.T, file string) {
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(want), "\n")
	world, ok := strings.CutPrefix(first, "# daemon: ")
	api, known := worlds[world]
	if !ok || !known {
		t.Fatalf("%s: the first line names no daemon: %q", file, first)
	}
	t.Chdir(t.TempDir())
	t.Setenv("LC_ALL", "C.UTF-8")
	if api != nil {
		serve(t, api)
	}
	fixtures(t)
	var got bytes.Buffer
	for line := range strings.Lines(string(want)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") || line == "" && !strings.HasSuffix(got.String(), "\n\n") {
			fmt.Fprintln(&got, line)
		}
		command, ok := strings.CutPrefix(line, "$ lokinetd ")
		if !ok {
			continue
		}
		var out, said bytes.Buffer
		a := &app{out: &out, err: &said, clock: func() time.Time { return goldenNow }}
		code := a.execute(t.Context(), strings.Fields(command+" --socket ./sock"))
		fmt.Fprintln(&got, line)
		got.WriteString(strings.ReplaceAll(out.String(), runtime.Version(), "GO"))
		for text := range strings.Lines(said.String()) {
			got.WriteString("! " + text)
		}
		if code != 0 {
			fmt.Fprintf(&got, "[exit %d]\n", code)
		}
	}
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%s: what the commands print has changed. If that is meant: go test ./cmd/lokinetd -run TestGolden -update, and look at the difference.\n%s",
			filepath.Base(file), difference(string(want), got.String()))
	}
}

// difference shows the first lines that differ.
func difference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return fmt.Sprintf("line %d\n want %s\n  got %s", i+1, w[i], g[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(g), len(w))
}

// serve answers on ./sock until the test ends.
func serve(t *testing.T, api control.API) { t.Cleanup(answer(t, api)) }

// answer answers on ./sock until stop is called.
func answer(t *testing.T, api control.API) (stop func()) {
	s, err := control.Listen("sock", "", api, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

var goldenNow = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// goldenKey is a key that is always the same.
func goldenKey(n byte) *key.Secret { return key.FromSeed([32]byte{n}) }

func goldenClient(n byte) string { return key.Address{Key: goldenKey(n).Public()}.String() }

func goldenRelay(n byte) string {
	return key.Address{Key: goldenKey(n).Public(), Kind: key.Relay}.String()
}

// fixtures makes the files that the commands read: my.key, home.network, lokinetd.toml and wrong.toml.
func fixtures(t *testing.T) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(goldenKey(1).Save("my.key"))
	file := &netdb.NetworkFile{Name: "home", Network: 42, Serial: 3, Private: true,
		Names: map[string]key.Public{"blog.loki": goldenKey(1).Public()}}
	for n := range byte(5) {
		file.Relays = append(file.Relays, goldenKey(10+n).Public())
	}
	raw, err := file.Sign(goldenKey(2))
	must(err)
	must(os.WriteFile("home.network", raw, 0o600))
	must(os.WriteFile("lokinetd.toml", fmt.Appendf(nil, "[network]\nfile = \"home.network\"\noperator = %q\n", goldenKey(2).Public()), 0o600))
	must(os.WriteFile("wrong.toml", []byte("[dns]\nlisten_on = \"127.0.0.1:53\"\n"), 0o600))
}

// worlds are the daemons that answer in the files.
var worlds = map[string]control.API{
	"none":     nil,
	"client":   fakeDaemon{status: clientStatus()},
	"relay":    fakeDaemon{status: relayStatus()},
	"starting": fakeDaemon{status: startingStatus(), fail: control.Errorf(control.CodeNotReady, "not connected: no path to ask over")},
	"offline":  fakeDaemon{status: offlineStatus(), fail: control.Errorf(control.CodeFailure, "the relays do not agree")},
	"denying":  fakeDaemon{fail: control.Errorf(control.CodeDenied, "permission denied: become a member of the socket's group, or root"), denied: true},
}

// fakeDaemon knows blog.loki, nobody.loki (which does not exist) and silent.loki (which does not answer pings).
type fakeDaemon struct {
	status control.Status
	fail   error // of resolve and ping
	denied bool
}

func (f fakeDaemon) Status() control.Status { return f.status }

func (f fakeDaemon) Relays() control.Relays {
	r := control.Relays{Schema: control.Schema, Relays: []control.RelayInfo{}}
	if f.status.State == control.Starting {
		return r
	}
	at := goldenNow.Add(-3 * time.Hour)
	r.Relays = append(r.Relays,
		control.RelayInfo{Relay: goldenRelay(10), Address: "198.51.100.10:1190", Version: "1.0.2", SignedAt: at, Known: true, Connected: true},
		control.RelayInfo{Relay: goldenRelay(11), Address: "198.51.100.11:1190", Version: "1.0.2", SignedAt: at, Known: true},
		control.RelayInfo{Relay: goldenRelay(12), Address: "198.51.100.12:1190", Version: "1.0.1", SignedAt: at},
		control.RelayInfo{Relay: goldenRelay(13), Known: true})
	return r
}

func (f fakeDaemon) Log() control.Log {
	return control.Log{Schema: control.Schema, Lines: []control.LogLine{
		{Time: goldenNow.Add(-time.Hour), Level: "INFO", Message: "running"}, {Time: goldenNow, Level: "WARN", Module: "dns", Message: "nobody answers for other names"}}}
}

func (f fakeDaemon) Resolve(_ context.Context, name string) (control.Resolved, error) {
	r := control.Resolved{Schema: control.Schema, Name: name, Stages: []control.Stage{}}
	_, err := key.ParseName(name)
	switch {
	case f.fail != nil:
		return r, f.fail
	case err != nil:
		return r, control.Errorf(control.CodeUsage, "%v", err)
	case name == "nobody.loki":
		return r, control.Errorf(control.CodeNotFound, "nobody.loki is not registered (4 of 4 relays say so)")
	}
	r.Address, r.IPv6, r.IPv4 = goldenClient(1), "fd2e:7365:7368:0:1::2", "172.16.0.2"
	r.Relays, r.Agreed = 4, 4
	r.Stages = append(r.Stages, control.Stage{Name: "path ready", AtMs: 0.125, Note: "to ask relays over"}, control.Stage{Name: "name found", AtMs: 12.5, Note: "4 of 4 relays agreed"})
	return r, nil
}

func (f fakeDaemon) Ping(ctx context.Context, name string, count int) (control.Pinged, error) {
	r, err := f.Resolve(ctx, name)
	p := control.Pinged{Schema: control.Schema, Name: name, Address: r.Address, Stages: r.Stages, RTTms: []float64{}}
	if err != nil {
		return p, err
	}
	p.Stages = append(p.Stages, control.Stage{Name: "contact found", AtMs: 15, Note: "it says at which relays paths of theirs end"},
		control.Stage{Name: "path built", AtMs: 30.5, Note: "you > kr4181fw > kkkg4gqh > yfmw8xwu"}, control.Stage{Name: "session established", AtMs: 41.25})
	p.Sent = count
	if name != "silent.loki" {
		for n := range count {
			p.RTTms = append(p.RTTms, 3.5+float64(n))
		}
	}
	return p, nil
}

// Events tells of one event of each kind, and then the daemon ends.
func (f fakeDaemon) Events(_ context.Context, each func(control.Event) error) error {
	if f.denied {
		return f.fail
	}
	yes, no := true, false
	x := clientStatus()
	edge, path, call := x.Edges[0], x.Paths[0], x.Sessions[0]
	for i, e := range []control.Event{
		{Event: control.EventState, State: control.Starting, Reason: "connecting to relays"},
		{Event: control.EventEdgeUp, Relay: edge.Relay, Address: edge.Address},
		{Event: control.EventPathUp, Endpoint: path.Endpoint, Kind: path.Kind, Hops: path.Hops},
		{Event: control.EventState, State: control.Ready},
		{Event: control.EventResolver, Method: "resolved", InEffect: &yes},
		{Event: control.EventEndpointUp, Endpoint: "blog", Address: goldenClient(1)},
		{Event: control.EventPublished, Endpoint: "blog", Address: goldenClient(1)},
		{Event: control.EventSessionUp, Endpoint: call.Endpoint, Direction: call.Direction, Remote: call.Remote, Hops: call.Hops},
		{Event: control.EventSwitched, Endpoint: call.Endpoint, Direction: call.Direction, Remote: call.Remote, Hops: path.Hops},
		{Event: control.EventSessionDown, Endpoint: "blog", Direction: "in", Remote: goldenClient(5), Hops: path.Hops},
		{Event: control.EventUnpublished, Endpoint: "blog", Address: goldenClient(1)},
		{Event: control.EventEndpointDown, Endpoint: "blog", Address: goldenClient(1)},
		{Event: control.EventPathDown, Endpoint: "browsing", Kind: "client", Hops: call.Hops, Reason: "edge lost"},
		{Event: control.EventEdgeDown, Relay: edge.Relay, Address: edge.Address},
		{Event: control.EventResolver, Method: "none", InEffect: &no, Reason: "nothing is known of how programs find a resolver here"},
		{Event: control.EventLost, Lost: 17},
	} {
		e.Schema, e.Time = control.Schema, goldenNow.Add(time.Duration(i)*250*time.Millisecond)
		if err := each(e); err != nil {
			return err
		}
	}
	return nil
}

func goldenStatus(role string, state control.State) control.Status {
	return control.Status{
		Schema: control.Schema, Version: "v1", Role: role, State: state, StartedAt: goldenNow.Add(-90 * time.Minute),
		Network: control.Network{Name: "home", ID: 42, Serial: 3, Known: 5, Contacts: 5, Private: true},
		Drops:   map[string]uint64{}, NotHidden: []string{}, Warnings: []string{}, Timeline: []control.Stage{{Name: "exec"}, {Name: "started", AtMs: 11.25}},
		Endpoints: []control.Endpoint{}, Edges: []control.Edge{}, Paths: []control.Path{}, Sessions: []control.Session{},
	}
}

func clientStatus() control.Status {
	s := goldenStatus("client", control.Ready)
	ready, published := s.StartedAt.Add(44*time.Millisecond), goldenNow.Add(-5*time.Minute)
	s.ReadyAt = &ready
	s.Timeline = append(s.Timeline, control.Stage{Name: "first edge", AtMs: 39.75}, control.Stage{Name: "edges connected", AtMs: 40.125},
		control.Stage{Name: "first path", AtMs: 44}, control.Stage{Name: "running", AtMs: 52.5})
	s.NotHidden = []string{"your network provider sees that this machine takes part in this network, when, and how much it sends",
		"the relays that you connect to see this machine's IP address, but not whom you talk to",
		"all other sites (not .loki, .sesh or .snode) are reached as before, not through this network"}
	s.Endpoints = []control.Endpoint{
		{Name: "browsing", Kind: "browsing", Address: goldenClient(3), IPv4: "172.16.0.1", IPv6: "fd2e:7365:7368::1", InboundPaths: 4, InboundWant: 4,
			Sessions: 1, Traffic: control.Traffic{PacketsIn: 4, PacketsOut: 6, BytesIn: 464, BytesOut: 561}},
		{Name: "blog", Kind: "service", Address: goldenClient(1), IPv4: "172.17.0.1", IPv6: "fd2e:7365:7368:1::1", Ports: []string{"tcp/80", "udp/53"},
			InboundPaths: 3, InboundWant: 4, PublishedAt: &published, Sessions: 1, Traffic: control.Traffic{PacketsIn: 4000, PacketsOut: 7000, BytesIn: 204_000, BytesOut: 9_876_543}},
	}
	s.Edges = []control.Edge{
		{Relay: goldenKey(10).Public().String(), Address: "198.51.100.10:1190", Since: s.StartedAt.Add(30 * time.Millisecond), RTTms: 12.5, BytesIn: 7900, BytesOut: 10_000_000},
		{Relay: goldenKey(11).Public().String(), Address: "198.51.100.11:1190", Since: goldenNow.Add(-time.Minute), RTTms: 80, BytesIn: 700, BytesOut: 950},
	}
	hops := func(n ...byte) (ids []string) {
		for _, n := range n {
			ids = append(ids, goldenKey(n).Public().String())
		}
		return ids
	}
	s.Paths = []control.Path{
		{Kind: "inbound", Endpoint: "browsing", State: "up", Hops: hops(10, 12, 13), ExpiresAt: goldenNow.Add(20 * time.Minute), RTTms: 101.5, JitterMs: 3.25},
		{Kind: "client", Endpoint: "browsing", State: "building", Hops: hops(11, 13, 14), ExpiresAt: goldenNow.Add(10 * time.Minute)},
		{Kind: "client", Endpoint: "browsing", State: "up", Hops: hops(10, 13, 14), ExpiresAt: goldenNow.Add(5*time.Minute + 20*time.Second), RTTms: 80, JitterMs: 1},
		{Kind: "inbound", Endpoint: "blog", State: "up", Hops: hops(11, 12, 14), ExpiresAt: goldenNow.Add(21 * time.Minute)},
	}
	s.Sessions = []control.Session{
		{Remote: goldenClient(4), Endpoint: "browsing", Direction: "out", State: "established", Handshake: "1.1", Since: goldenNow.Add(-time.Minute), LastActivity: goldenNow.Add(-2 * time.Second), BytesIn: 464, BytesOut: 561,
			Hops: hops(10, 13, 14)},
		{Remote: goldenClient(5), Endpoint: "blog", Direction: "in", State: "answered", Handshake: "1.0", Since: goldenNow.Add(-time.Hour), LastActivity: goldenNow.Add(-10 * time.Second), BytesIn: 204_000, BytesOut: 9_876_543},
	}
	s.Tun = &control.Tun{Name: "lokinet0", MTU: 1280, IPv6: true}
	s.DNS = &control.DNS{Listen: []string{"127.3.2.1:53"}, Upstream: []string{"9.9.9.9:53"}, Answers: map[string]uint64{"noerror": 12, "nxdomain": 1},
		Host: &control.HostDNS{Method: "resolved", Why: []string{"systemd-resolved runs and is asked by programs", "it sends single domains to single interfaces"}, InEffect: true}}
	s.Traffic = control.Traffic{PacketsIn: 4004, PacketsOut: 7006, BytesIn: 204_464, BytesOut: 9_877_104}
	s.Drops = map[string]uint64{"session_forged": 2, "tun_in_closed": 17, "tun_out_full": 30, "tun_out_standing": 211}
	s.Warnings = []string{"relays: 5; the network works as long as all of them do, and 6 or more are advised"}
	return s
}

func relayStatus() control.Status {
	s := goldenStatus("relay", control.Ready)
	at := goldenNow.Add(-10 * time.Minute)
	s.Endpoints = append(s.Endpoints, control.Endpoint{Name: "relay", Kind: "relay", Address: goldenRelay(10)})
	s.Relay = &control.Relay{PublicAddress: "198.51.100.10:1190", Registered: true, ContactAt: &at, Peers: 4, Clients: 12, TransitHops: 96, StoredClients: 7}
	s.Traffic = control.Traffic{PacketsIn: 1_000_000, BytesIn: 1_200_000_000}
	return s
}

func startingStatus() control.Status {
	s := goldenStatus("client", control.Starting)
	s.Reason = "connected to 1 of 4 relays, and waiting for more before paths are built"
	s.StartedAt = goldenNow.Add(-2 * time.Second)
	s.Tun = &control.Tun{Name: "lokinet0", MTU: 1280}
	return s
}

func offlineStatus() control.Status {
	s := goldenStatus("client", control.Offline)
	s.Reason = "none of the 4 relays tried answers; does this network let UDP out? (last error: timeout)"
	return s
}
