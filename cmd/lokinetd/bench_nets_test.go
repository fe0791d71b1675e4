//go:build bench

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"lokinetd/netif/lab"
	"lokinetd/router/control"
	"lokinetd/router/key"
)

// The networks that are compared, each in a lab of its own: all relays in the lab's own namespace, client and service in one namespace each.

// system is one of them, running.
type system struct {
	name  string
	route route            // from the client to the service
	guest *lab.Node        // where the client is
	roles map[string][]int // processes
	close func()

	// fresh starts a client that has never run (cold), or the same one again, with the program first beside it.
	fresh func(warm bool) (toFirstByte time.Duration, err error)
	// stages is the time line of the client that fresh has started last, and rss waits until it has all its edges and gives its resident memory in MB.
	stages func() ([]control.Stage, error)
	rss    func() (float64, error)
	// names times the answer of the name server for a service that the client has no session with, and from its cache.
	names func() (session, cached float64, err error)
	// path is what the present circuits or paths are, in words.
	path func() string
}

var errNoClient = errors.New("there is no client")

// order is the order of roles in the report.
var order = []string{"relays", "client", "service"}

// run runs a traffic program where the client is.
func (s *system) run(result any, args ...string) error {
	return runProgram(s.guest, result, append(args, "-to", s.route.to, "-socks", s.route.socks)...)
}

// programLimit is longer than any traffic program takes, whatever becomes of its packets.
const programLimit = 2 * time.Minute

func runProgram(n *lab.Node, result any, args ...string) error {
	c := n.Self(append([]string{"bench"}, args...)...)
	var out, text bytes.Buffer
	c.Stdout, c.Stderr = &out, &text
	late := time.AfterFunc(programLimit, func() { c.Signal(syscall.SIGKILL) })
	defer late.Stop()
	if err := c.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", args[0], err, strings.TrimSpace(text.String()))
	}
	return json.Unmarshal(out.Bytes(), result)
}

// CPU and memory of processes, as the kernel counts them.

// childrenOf finds the commands that an agent has started whose arguments contain match.
func childrenOf(agent int, match string) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range all {
		if f := statOf(file); f == nil || f[1] != strconv.Itoa(agent) {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		if strings.Contains(string(line), match) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// statOf are the fields of /proc/PID/stat from the state on.
func statOf(file string) []string {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	return strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
}

const clockTick = 100 // USER_HZ of Linux on all machines

// cpuOf is the CPU time of processes, user and system, in seconds.
func cpuOf(pids ...int) (seconds float64) {
	for _, pid := range pids {
		if f := statOf(fmt.Sprintf("/proc/%d/stat", pid)); len(f) > 12 {
			user, _ := strconv.ParseFloat(f[11], 64)
			system, _ := strconv.ParseFloat(f[12], 64)
			seconds += (user + system) / clockTick
		}
	}
	return seconds
}

// rssOf is the resident memory of a process in MB.
func rssOf(pid int) float64 {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, _ := strconv.ParseFloat(f[1], 64)
			return kb * 1024 / 1e6
		}
	}
	return 0
}

// profileEnv is the variable that names the file for a lokinetd's CPU profile; the signal below begins and ends it (bench_test.go).
const profileEnv = "LOKINETD_BENCH_PROFILE"

func toggleProfile(pid int) { syscall.Kill(pid, syscall.SIGUSR1) }

// awaitFile waits until a profile has been written.
func awaitFile(name string) {
	for range 100 {
		if s, err := os.Stat(name); err == nil && s.Size() > 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// expect waits for a line that begins with word and decodes the rest of it.
func (l *lines) expect(word string, patience time.Duration, result any) (string, error) {
	line, err := l.next(patience)
	if err != nil {
		return "", fmt.Errorf("waiting for %q: %w", word, err)
	}
	first, rest, _ := strings.Cut(line, " ")
	if first != word {
		return "", fmt.Errorf("waiting for %q: got %q", word, line)
	}
	if result == nil {
		return rest, nil
	}
	return rest, json.Unmarshal([]byte(rest), result)
}

// Ours: the demo's network. profiles is a directory for CPU profiles, or empty.
func startOurs(ctx context.Context, dir string) (_ *system, err error) {
	d := &demoNet{a: &app{out: os.Stdout, err: os.Stderr}, dir: dir, operator: key.Generate()}
	s := &system{name: oursName}
	s.close = func() {
		if d.lab != nil {
			d.lab.Close()
		}
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := d.relays(); err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, s.close)
	host, err := d.client("host", "10.77.0.101", "[[service]]\nname = \"web\"\nports = [\"tcp/80\", \"udp/80\"]\necho = true\n")
	if err != nil {
		return nil, err
	}
	if err := host.node.Self("bench", "serve").Start(); err != nil {
		return nil, err
	}
	if err := host.wait(ctx, func(st control.Status) bool {
		for _, e := range st.Endpoints {
			if e.Kind == "service" && e.PublishedAt != nil {
				s.route.to = e.Address
			}
		}
		return s.route.to != ""
	}); err != nil {
		return nil, fmt.Errorf("the service was not published: %w", err)
	}
	guest, err := d.client("guest", "10.77.0.102", "")
	if err != nil {
		return nil, err
	}
	ready := func(st control.Status) bool { return st.State == control.Ready }
	if err := guest.wait(ctx, ready); err != nil {
		return nil, err
	}
	s.guest = guest.node
	if err := s.run(new(firstByte), "first"); err != nil {
		return nil, err
	}
	s.roles = map[string][]int{
		"relays":  childrenOf(d.lab.PID(), "lokinetd.toml"),
		"client":  childrenOf(guest.node.PID(), "lokinetd.toml"),
		"service": childrenOf(host.node.PID(), "lokinetd.toml"),
	}
	if len(s.roles["relays"]) != demoRelays || len(s.roles["client"]) != 1 || len(s.roles["service"]) != 1 {
		return nil, fmt.Errorf("processes are missing: %v", s.roles)
	}
	s.path = func() string {
		st, err := guest.status(ctx)
		if err != nil {
			return err.Error()
		}
		hs, err := host.status(ctx)
		if err != nil {
			return err.Error()
		}
		outs, ins := map[int]int{}, map[int]int{}
		for _, p := range st.Paths {
			if p.Kind == "client" {
				outs[len(p.Hops)]++
			}
		}
		for _, p := range hs.Paths {
			if p.Kind == "inbound" && p.Endpoint == "web" {
				ins[len(p.Hops)]++
			}
		}
		return fmt.Sprintf("paths of the client to the service's pivots (hops: paths) %v, inbound paths of the service %v; a session uses one of each, which meet at one relay", outs, ins)
	}
	fresh := 0
	var last *demoHost
	s.fresh = func(warm bool) (time.Duration, error) {
		if !warm {
			if last != nil {
				last.stop()
				last.node.Close()
			}
			fresh++
			var err error
			if last, err = d.node(fmt.Sprintf("fresh%d", fresh), fmt.Sprintf("10.77.0.%d", 110+fresh), ""); err != nil {
				last = nil
				return 0, err
			}
		}
		if last == nil {
			return 0, errNoClient
		}
		last.stop()
		began := time.Now()
		if err := last.start(); err != nil {
			return 0, err
		}
		var r firstByte
		err := runProgram(last.node, &r, "first", "-to", s.route.to)
		return r.At.Sub(began), err
	}
	s.names = func() (session, cached float64, err error) {
		if last == nil {
			return 0, 0, errNoClient
		}
		last.stop()
		if err := last.start(); err != nil {
			return 0, 0, err
		}
		if err := last.wait(ctx, ready); err != nil {
			return 0, 0, err
		}
		time.Sleep(200 * time.Millisecond)
		var one, many times
		if err := runProgram(last.node, &one, "dns", "-to", s.route.to); err != nil {
			return 0, 0, err
		}
		err = runProgram(last.node, &many, "dns", "-to", s.route.to, "-count", "1000")
		return one.Median, many.Median, err
	}
	s.stages = func() ([]control.Stage, error) {
		st, err := last.status(ctx)
		return st.Timeline, err
	}
	s.rss = func() (float64, error) {
		if err := last.wait(ctx, func(st control.Status) bool { return len(st.Edges) >= 4 }); err != nil {
			return 0, err
		}
		time.Sleep(settle)
		pids := childrenOf(last.node.PID(), "lokinetd.toml")
		if len(pids) != 1 {
			return 0, errNoClient
		}
		return rssOf(pids[0]), nil
	}
	return s, nil
}

// Tor: a private network of as many relays, three of them directory authorities.

const (
	torAuthorities = 3
	torCommon      = `TestingTorNetwork 1
AssumeReachable 1
DisableDebuggerAttachment 0
ShutdownWaitLength 0
Log notice file %s/log
DataDirectory %s
`
	// The first vote comes when all relays have made themselves known (see tryTor); the next ones are rare, so that they take little from the measurements.
	torAuthority = `AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
ContactInfo bench
TestingV3AuthInitialVotingInterval %d
TestingV3AuthVotingStartOffset %d
TestingV3AuthInitialVoteDelay %d
TestingV3AuthInitialDistDelay %d
V3AuthVotingInterval 1200
V3AuthVoteDelay 20
V3AuthDistDelay 20
TestingDirAuthVoteExit *
TestingDirAuthVoteHSDir *
TestingDirAuthVoteGuard *
TestingMinExitFlagThreshold 0
ConsensusParams cc_alg=2
V3BandwidthsFile %s
`
	torVoting   = 120              // seconds from one time for votes to the next, before the first consensus
	torDelay    = 6                // seconds for votes, and as many for signatures
	torPatience = 60 * time.Second // for each step
	torTries    = 4
)

// torProgram finds tor: in PATH, or in Debian's package, which is unpacked and not installed, so that no service starts that joins the public network.
func torProgram(cache string) (string, error) {
	if path, err := exec.LookPath("tor"); err == nil {
		return path, nil
	}
	cache, err := filepath.Abs(cache)
	if err != nil {
		return "", err
	}
	program := filepath.Join(cache, "usr/bin/tor")
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	script := `cd "$1" && { apt-get download -qq tor || { apt-get update -qq && apt-get download -qq tor; }; } && dpkg-deb -x tor_*.deb . && usr/bin/tor --version >/dev/null`
	if out, err := exec.Command("sh", "-c", script, "sh", cache).CombinedOutput(); err != nil {
		os.RemoveAll(cache)
		return "", fmt.Errorf("no tor in PATH, and Debian's package could not be fetched and started (apt-get install tor, or its libraries libevent-2.1-7 and libseccomp2): %w: %s", err, out)
	}
	return program, nil
}

// torGiveUp is when it is tried no more.
const torGiveUp = 5 * time.Minute

// startTor tries again when it does not come up, with more time for the vote.
func startTor(ctx context.Context, dir, program string) (s *system, err error) {
	began := time.Now()
	for try := 0; try < torTries && time.Since(began) < torGiveUp; try++ {
		tries := filepath.Join(dir, strconv.Itoa(try))
		if err := os.Mkdir(tries, 0o700); err != nil {
			return nil, err
		}
		if s, err = tryTor(ctx, tries, program, time.Duration(try+1)*6*time.Second); err == nil || ctx.Err() != nil {
			break
		}
		fmt.Fprintf(os.Stderr, "          try %d: %v\n", try+1, err)
	}
	return s, err
}

// tryTor starts the network in steps, so that no machine is too slow for it. A relay that an authority does not know when it votes is missed in the first consensus, and the
// next is far. (Authorities that come up between the time to vote and that of the consensus vote at once.) So votes are far at first; when the authorities know all relays, they are told to
// vote soon. Service and client come when all relays have the consensus.
func tryTor(ctx context.Context, dir, program string, vote time.Duration) (_ *system, err error) {
	var addrs []netip.Prefix
	for i := range demoRelays {
		addrs = append(addrs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 78, 0, byte(i + 1)}), 24))
	}
	l, err := lab.New(lab.NodeConfig{Addrs: addrs})
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { l.Close() }) // whoever waits for a command, does no longer
	s := &system{name: torName, close: func() { l.Close() }}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	in := func(name string, more ...string) string {
		return filepath.Join(append([]string{dir, name}, more...)...)
	}
	output := func(stdin string, args ...string) (string, error) {
		c := exec.Command(args[0], args[1:]...)
		c.Stdin = strings.NewReader(stdin)
		var text bytes.Buffer
		c.Stderr = &text
		out, err := c.Output()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s%s", filepath.Base(args[0]), err, out, text.String())
		}
		return string(out), err
	}
	authorities := ""
	for i := range torAuthorities {
		name, addr := fmt.Sprintf("r%d", i+1), addrs[i].Addr()
		if err := os.MkdirAll(in(name, "keys"), 0o700); err != nil {
			return nil, err
		}
		if _, err := output("bench\n", filepath.Join(filepath.Dir(program), "tor-gencert"), "--create-identity-key", "--passphrase-fd", "0", "-m", "12",
			"-a", fmt.Sprintf("%v:7000", addr), "-i", in(name, "keys", "authority_identity_key"), "-s", in(name, "keys", "authority_signing_key"),
			"-c", in(name, "keys", "authority_certificate")); err != nil {
			return nil, err
		}
		certificate, err := os.ReadFile(in(name, "keys", "authority_certificate"))
		if err != nil {
			return nil, err
		}
		v3 := regexp.MustCompile(`(?m)^fingerprint ([0-9A-F]{40})`).FindSubmatch(certificate)
		out, err := output("", program, "--ignore-missing-torrc", "-f", in("none"), "--list-fingerprint", "--orport", "1", "--quiet",
			"--dirserver", "x 127.0.0.1:1 ffffffffffffffffffffffffffffffffffffffff", "--datadirectory", in(name))
		if err != nil {
			return nil, err
		}
		_, fingerprint, found := strings.Cut(strings.TrimSpace(out), " ")
		if !found || v3 == nil {
			return nil, fmt.Errorf("tor's fingerprints cannot be read: %q", out)
		}
		authorities += fmt.Sprintf("DirAuthority %s orport=5000 no-v2 v3ident=%s %v:7000 %s\n", name, v3[1], addr, strings.ReplaceAll(fingerprint, " ", ""))
	}
	write := func(name, more string) error {
		text := fmt.Sprintf(torCommon, in(name), in(name)) + authorities + more
		return errors.Join(os.MkdirAll(in(name), 0o700), os.WriteFile(in(name+".rc"), []byte(text), 0o600))
	}
	start := func(n *lab.Node, name string) (*lab.Cmd, error) {
		c := n.Command(program, "-f", in(name+".rc"), "--quiet")
		c.Stderr = os.Stderr
		return c, c.Start()
	}
	relays := make([]*lab.Cmd, len(addrs))
	// configure writes a relay's configuration; valid is when the first consensus is to be so.
	configure := func(i int, valid time.Time) error {
		a := addrs[i].Addr()
		more := fmt.Sprintf("Nickname r%d\nAddress %v\nORPort %v:5000\nSocksPort 0\nExitPolicy accept 10.0.0.0/8:*\nExitPolicyRejectPrivate 0\n", i+1, a, a)
		if i < torAuthorities {
			more += fmt.Sprintf("DirPort %v:7000\n", a) + fmt.Sprintf(torAuthority, torVoting, valid.Unix()%torVoting, torDelay, torDelay, in("bandwidths"))
		}
		return write(fmt.Sprintf("r%d", i+1), more)
	}
	// has waits until all relays of a range have what they are to have.
	has := func(what string, from, to int, count func(dir string) (int, error)) error {
		patience := time.Now().Add(torPatience)
		for i := from; i < to; {
			n, err := count(in(fmt.Sprintf("r%d", i+1)))
			switch {
			case err != nil:
				return err
			case n == demoRelays:
				i++
			case ctx.Err() != nil:
				return ctx.Err()
			case time.Now().After(patience):
				return fmt.Errorf("relay %d has %s of %d relays after %v: %s", i+1, what, n, torPatience, lastLines(in(fmt.Sprintf("r%d", i+1), "log")))
			default:
				time.Sleep(100 * time.Millisecond)
			}
		}
		return nil
	}
	for i := range addrs {
		if err := configure(i, time.Now().Add(-time.Second)); err != nil { // votes are far
			return nil, err
		}
		if relays[i], err = start(l.Node, fmt.Sprintf("r%d", i+1)); err != nil {
			return nil, err
		}
	}
	// All relays get the same weight: by what they say of themselves in their first minute one may be nearly all that is ever drawn, and where it is a client's guard and its rendezvous
	// point, no circuit comes to be.
	var bandwidths string
	if err := has("descriptors", 0, torAuthorities, func(dir string) (int, error) {
		seen := map[string]bool{}
		bandwidths = fmt.Sprintln(time.Now().Unix())
		for _, name := range []string{"cached-descriptors", "cached-descriptors.new"} {
			raw, _ := os.ReadFile(filepath.Join(dir, name))
			for _, f := range regexp.MustCompile(`(?m)^fingerprint ([0-9A-F ]{49})$`).FindAllStringSubmatch(string(raw), -1) {
				if id := strings.ReplaceAll(f[1], " ", ""); !seen[id] {
					seen[id] = true
					bandwidths += fmt.Sprintf("node_id=$%s bw=1000\n", id)
				}
			}
		}
		return len(seen), nil
	}); err != nil {
		return nil, err
	}
	if err := os.WriteFile(in("bandwidths"), []byte(bandwidths), 0o600); err != nil {
		return nil, err
	}
	valid := time.Now().Add(vote + 2*torDelay*time.Second)
	for i := range torAuthorities {
		if err := errors.Join(configure(i, valid), relays[i].Signal(syscall.SIGHUP)); err != nil {
			return nil, err
		}
	}
	consensus := func(dir string) (int, error) {
		raw, _ := os.ReadFile(filepath.Join(dir, "cached-microdesc-consensus"))
		if !bytes.Contains(raw, []byte("\ndirectory-signature ")) {
			return 0, nil
		}
		n := bytes.Count(raw, []byte("\nr "))
		if n < demoRelays { // the next one is far
			return n, fmt.Errorf("the first consensus lacks %d relays", demoRelays-n)
		}
		return n, nil
	}
	if err := has("a consensus", 0, torAuthorities, consensus); err != nil {
		return nil, err
	}
	// Those that asked before there was one ask again after a long while, or when they read their configuration again. (To start them again would cost more: who finds one of
	// them away remembers that for a minute.)
	for i := torAuthorities; i < demoRelays; i++ {
		if err := relays[i].Signal(syscall.SIGHUP); err != nil {
			return nil, err
		}
	}
	if err := has("a consensus", torAuthorities, demoRelays, consensus); err != nil {
		return nil, err
	}
	host, err := l.AddNode(lab.NodeConfig{Name: "host", Addrs: []netip.Prefix{netip.MustParsePrefix("10.78.0.101/24")}})
	if err != nil {
		return nil, err
	}
	if err := host.Self("bench", "serve").Start(); err != nil {
		return nil, err
	}
	control := fmt.Sprintf("SocksPort 0\nControlSocket %s\n", in("host", "control"))
	if err := write("host", control+fmt.Sprintf("HiddenServiceDir %s\nHiddenServicePort 80 127.0.0.1:80\n", in("host", "onion"))); err != nil {
		return nil, err
	}
	if _, err := start(host, "host"); err != nil {
		return nil, err
	}
	// A client that asks too early is told for a while that there is nobody to ask. (Conflux, for circuits to exits, takes guards from it.)
	if err := torPublished(in("host", "control")); err != nil {
		return nil, fmt.Errorf("the onion service was not published: %w: %s", err, lastLines(in("host", "log")))
	}
	client := func(name string) string {
		return fmt.Sprintf("SocksPort 127.0.0.1:9050\nConfluxEnabled 0\nControlSocket %s\n", in(name, "control"))
	}
	guest, err := l.AddNode(lab.NodeConfig{Name: "guest", Addrs: []netip.Prefix{netip.MustParsePrefix("10.78.0.102/24")}})
	if err != nil {
		return nil, err
	}
	if err := write("guest", client("guest")); err != nil {
		return nil, err
	}
	if _, err := start(guest, "guest"); err != nil {
		return nil, err
	}
	s.guest, s.route.socks = guest, "127.0.0.1:9050"
	for s.route.to == "" {
		onion, _ := os.ReadFile(in("host", "onion", "hostname"))
		s.route.to = strings.TrimSpace(string(onion))
		time.Sleep(50 * time.Millisecond)
	}
	patience := time.Now().Add(torPatience)
	for err := s.run(new(firstByte), "first", "-try", "10s"); err != nil; err = s.run(new(firstByte), "first", "-try", "10s") {
		if ctx.Err() != nil || time.Now().After(patience) {
			return nil, fmt.Errorf("the onion service could not be reached in %v: %w; client: %s; service: %s", torPatience, err, lastLines(in("guest", "log")), lastLines(in("host", "log")))
		}
	}
	s.roles = map[string][]int{
		"relays":  childrenOf(l.PID(), ".rc"),
		"client":  childrenOf(guest.PID(), ".rc"),
		"service": childrenOf(host.PID(), ".rc"),
	}
	if len(s.roles["relays"]) != demoRelays || len(s.roles["client"]) != 1 || len(s.roles["service"]) != 1 {
		return nil, fmt.Errorf("processes are missing: %v", s.roles)
	}
	s.path = func() string {
		return fmt.Sprintf("relays of the rendezvous circuits: client %v, service %v; the last of both is the rendezvous point",
			torCircuits(in("guest", "control"), "HS_CLIENT_REND"), torCircuits(in("host", "control"), "HS_SERVICE_REND"))
	}
	fresh := 0
	var node *lab.Node
	var tor *lab.Cmd
	stop := func() {
		if tor != nil {
			old := tor
			old.Signal(syscall.SIGTERM)
			late := time.AfterFunc(3*time.Second, func() { old.Signal(syscall.SIGKILL) })
			old.Wait()
			late.Stop()
			tor = nil
		}
	}
	s.fresh = func(warm bool) (time.Duration, error) {
		stop()
		var err error
		if !warm {
			if node != nil {
				node.Close()
			}
			fresh++
			if node, err = l.AddNode(lab.NodeConfig{Name: "fresh", Addrs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 78, 0, byte(110 + fresh)}), 24)}}); err != nil {
				node = nil
				return 0, err
			}
		}
		if node == nil {
			return 0, errNoClient
		}
		name := fmt.Sprintf("fresh%d", fresh)
		if err := write(name, client(name)); err != nil {
			return 0, err
		}
		began := time.Now()
		if tor, err = start(node, name); err != nil {
			return 0, err
		}
		var r firstByte
		err = runProgram(node, &r, "first", "-to", s.route.to, "-socks", s.route.socks)
		stop()
		return r.At.Sub(began), err
	}
	return s, nil
}

// lastLines is the end of a log, in one line.
func lastLines(file string) string {
	raw, _ := os.ReadFile(file)
	all := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return strings.Join(all[max(0, len(all)-3):], "; ")
}

// torPublished waits until a tor has uploaded its service's descriptors to all who want them.
func torPublished(socket string) error {
	var c net.Conn
	var err error
	for range 100 {
		if c, err = net.Dial("unix", socket); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprint(c, "AUTHENTICATE\r\nSETEVENTS HS_DESC\r\n")
	uploaded := false
	in := bufio.NewScanner(c)
	for in.Scan() {
		if strings.Contains(in.Text(), " UPLOADED ") {
			uploaded = true
			c.SetDeadline(time.Now().Add(3 * time.Second))
		}
	}
	if uploaded {
		return nil
	}
	return cmp.Or(in.Err(), io.EOF)
}

// torCircuits asks a tor for its circuits of a purpose that carry, and returns their numbers of relays.
func torCircuits(socket, purpose string) []int {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return nil
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprint(c, "AUTHENTICATE\r\nGETINFO circuit-status\r\nQUIT\r\n")
	var hops []int
	for in := bufio.NewScanner(c); in.Scan(); {
		if f := strings.Fields(in.Text()); len(f) > 3 && f[1] == "BUILT" && slices.Contains(f, "PURPOSE="+purpose) && strings.Contains(in.Text(), "JOINED") {
			hops = append(hops, strings.Count(f[2], "$"))
		}
	}
	slices.Sort(hops)
	return slices.Compact(hops)
}

// wireguard-go: two ends, no relay, no anonymity: what TUN and cipher alone cost.
func startWireguard(ctx context.Context) (_ *system, err error) {
	l, err := lab.New(lab.NodeConfig{})
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	s := &system{name: wgName, roles: map[string][]int{}, close: func() { l.Close() }}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	ends := []struct{ name, addr, inner string }{{"client", "10.76.0.1", "10.75.0.1"}, {"service", "10.76.0.2", "10.75.0.2"}}
	var secret, public [2][]byte
	for i := range secret {
		secret[i] = make([]byte, 32)
		rand.Read(secret[i])
		if public[i], err = curve25519.X25519(secret[i], curve25519.Basepoint); err != nil {
			return nil, err
		}
	}
	for i, e := range ends {
		other := ends[1-i]
		n, err := l.AddNode(lab.NodeConfig{Name: e.name, Addrs: []netip.Prefix{netip.MustParsePrefix(e.addr + "/24")}})
		if err != nil {
			return nil, err
		}
		c := n.Self("bench", "wg", "-addr", e.inner+"/24", "-set",
			fmt.Sprintf("private_key=%x\nlisten_port=51820\npublic_key=%x\nendpoint=%s:51820\nallowed_ip=%s/32\n", secret[i], public[1-i], other.addr, other.inner))
		out := newLines(ctx)
		c.Stdout, c.Stderr = out, os.Stderr
		if err := c.Start(); err != nil {
			return nil, err
		}
		if _, err := out.expect("ready", 10*time.Second, nil); err != nil {
			return nil, err
		}
		s.roles[e.name] = childrenOf(n.PID(), "private_key")
		if e.name == "client" {
			s.guest = n
		} else if err := n.Self("bench", "serve").Start(); err != nil {
			return nil, err
		}
	}
	s.route.to = ends[1].inner
	s.path = func() string { return "none: one tunnel, no relay, no anonymity" }
	return s, s.run(new(firstByte), "first")
}

// runWireguard is one end.
func runWireguard(ctx context.Context, args []string) (any, error) {
	f := flag.NewFlagSet("wg", flag.ContinueOnError)
	addr := f.String("addr", "", "")
	set := f.String("set", "", "")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	t, err := tun.CreateTUN("wg0", device.DefaultMTU)
	if err != nil {
		return nil, err
	}
	d := device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, "wireguard-go: "))
	defer d.Close()
	if err := d.IpcSet(*set); err != nil {
		return nil, err
	}
	if err := d.Up(); err != nil {
		return nil, err
	}
	i, err := netlink.LinkByName("wg0")
	if err != nil {
		return nil, err
	}
	a, err := netlink.ParseAddr(*addr)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(netlink.AddrAdd(i, a), netlink.LinkSetUp(i)); err != nil {
		return nil, err
	}
	fmt.Println("ready")
	select {
	case <-ctx.Done():
	case <-d.Wait():
	}
	return nil, nil
}
