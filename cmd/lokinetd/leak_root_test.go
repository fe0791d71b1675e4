//go:build root

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"lokinetd/netif/lab"
	"lokinetd/router/control"
)

// The world of TestLeaks, beside the demo's relays and service:
//
//	host ---- eth0 ---- cable ---- bridge ---- spy
//	 lokinetd, restless   witness              default gateway and resolver
//
// restless asks for our names and sends to our addresses all the time, whatever happens to lokinetd. The spy notes every question, the witness every packet that leaves the host
// and is about us.

const (
	range4   = "172.16.0.0/16" // of the browsing endpoint, as everything else of 172.16/12 is free
	range6   = "fd2e:7365:7368::/64"
	rowTime  = 1200 * time.Millisecond // at least, of each row
	minAsked = 5                       // questions and packets of restless in a row, or nothing is shown
)

// roles are what this program does in the nodes of the lab.
var roles = map[string]func(args []string){"role-witness": roleWitness, "role-restless": roleRestless, "role-mallory": roleMallory, "role-tap": roleTap}

// ours says which of our ranges a frame that leaves the host is about, or else which of our names is in it; "": none.
func ours(frame []byte) (address, name string) {
	if len(frame) < 14 {
		return "", ""
	}
	body, kind := frame[14:], binary.BigEndian.Uint16(frame[12:])
	p4, p6 := netip.MustParsePrefix(range4), netip.MustParsePrefix(range6)
	for _, at := range map[uint16][]int{unix.ETH_P_IP: {12, 16}, unix.ETH_P_ARP: {14, 24}}[kind] {
		if len(body) >= at+4 && p4.Contains(netip.AddrFrom4([4]byte(body[at:]))) {
			return range4, ""
		}
	}
	if p := p6.Addr().As16(); kind == unix.ETH_P_IPV6 && bytes.Contains(body, p[:8]) { // anywhere: neighbour discovery asks about it inside
		return range6, ""
	}
	lower := bytes.ToLower(body)
	for _, name := range []string{"\x04loki", "\x04sesh\x00", "\x05snode\x00", "\x0216\x03172\x07in-addr", "\x018\x016\x013\x017\x015\x016\x013\x017\x01e\x012\x01d\x01f\x03ip6", ".loki", ".snode"} {
		if bytes.Contains(lower, []byte(name)) {
			return "", name
		}
	}
	return "", ""
}

// report answers each line on standard input by one on standard output.
func report(line func() string) {
	in := bufio.NewReader(os.Stdin)
	for {
		if _, err := in.ReadString('\n'); err != nil {
			os.Exit(0)
		}
		fmt.Println(line())
	}
}

// roleWitness counts the frames that come out of a node's end of its cable. Argument: the number of our end.
func roleWitness(args []string) {
	var index int
	fmt.Sscan(args[0], &index)
	all := uint16(unix.ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: index})
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var mu sync.Mutex
	var addresses, names, frames, dropped int
	what := "-"
	go func() {
		b := make([]byte, 1<<17)
		for {
			n, from, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				continue
			}
			if l := from.(*unix.SockaddrLinklayer); l.Pkttype == unix.PACKET_OUTGOING {
				continue // to the node
			}
			address, name := ours(b[:n])
			mu.Lock()
			frames++
			if address != "" {
				addresses++
				what = address
			} else if name != "" {
				names++
				what = fmt.Sprintf("%q", name)
			}
			mu.Unlock()
		}
	}()
	report(func() string {
		time.Sleep(50 * time.Millisecond)
		stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			dropped += int(stats.Drops)
		}
		line := fmt.Sprint(addresses, names, frames, dropped, " ", what)
		addresses, names, frames, what = 0, 0, 0, "-"
		return line
	})
}

// roleRestless is the program that does not know that lokinetd is away. Argument: a file with addresses that stand for remotes.
func roleRestless(args []string) {
	var asked, sent atomic.Int64
	label := func() string { return fmt.Sprintf("n%d", rand.Uint64()) }
	random := func(p netip.Prefix) netip.Addr {
		b := p.Addr().AsSlice()
		for i := p.Bits() / 8; i < len(b); i++ {
			b[i] = byte(1 + rand.IntN(254))
		}
		a, _ := netip.AddrFromSlice(b)
		return a
	}
	some := func() netip.Addr {
		b, _ := os.ReadFile(args[0])
		mapped := strings.Fields(string(b))
		switch n := rand.IntN(4); {
		case n < len(mapped):
			return netip.MustParseAddr(mapped[n])
		case n%2 == 0:
			return random(netip.MustParsePrefix(range4))
		default:
			return random(netip.MustParsePrefix(range6))
		}
	}
	name := func() string {
		if rand.IntN(3) == 0 {
			const letters = "ybndrfg8ejkmcpqxot1uwisza345h769"
			b := make([]byte, 52)
			for i := range b {
				b[i] = letters[rand.IntN(len(letters))]
			}
			return string(b) + ".snode"
		}
		return label() + ".loki"
	}
	for range 2 { // by libc
		go func() {
			for ; ; time.Sleep(30 * time.Millisecond) {
				what := []string{"ahosts", "hosts"}[rand.IntN(2)]
				who := name()
				if what == "hosts" {
					who = some().String()
				}
				ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
				exec.CommandContext(ctx, "getent", what, who).Run()
				cancel()
				asked.Add(1)
			}
		}()
	}
	for i := range 3 { // directly: our name server, and whom resolv.conf names
		go func() {
			c := mdns.Client{Timeout: 300 * time.Millisecond, Net: []string{"udp", "udp", "tcp"}[i]}
			for ; ; time.Sleep(10 * time.Millisecond) {
				servers := []string{"127.3.2.1"}
				if conf, err := mdns.ClientConfigFromFile("/etc/resolv.conf"); err == nil {
					servers = append(servers, conf.Servers...)
				}
				q := new(mdns.Msg)
				switch rand.IntN(3) {
				case 0:
					q.SetQuestion(name()+".", mdns.TypeA)
				case 1:
					q.SetQuestion(name()+".", mdns.TypeAAAA)
				default:
					reverse, _ := mdns.ReverseAddr(some().String())
					q.SetQuestion(reverse, mdns.TypePTR)
				}
				c.Exchange(q, net.JoinHostPort(servers[rand.IntN(len(servers))], "53"))
				asked.Add(1)
			}
		}()
	}
	go func() { // packets
		for ; ; time.Sleep(2 * time.Millisecond) {
			to := some()
			if c, err := net.Dial("udp", netip.AddrPortFrom(to, 9).String()); err == nil {
				c.Write([]byte("lost"))
				c.Close()
			}
			if rand.IntN(5) == 0 {
				if c, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, 80).String(), 20*time.Millisecond); err == nil {
					c.Close()
				}
			}
			sent.Add(1)
		}
	}()
	report(func() string { return fmt.Sprint(asked.Swap(0), sent.Swap(0)) })
}

// reporter is one of the two in its node.
type reporter struct {
	cmd *lab.Cmd
	ask *os.File
	out *bufio.Reader
}

func newReporter(t *testing.T, n *lab.Node, args ...string) *reporter {
	t.Helper()
	in, ask, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r := &reporter{cmd: n.Self(args...), ask: ask, out: bufio.NewReader(answers)}
	r.cmd.Stdin, r.cmd.Stdout, r.cmd.Stderr = in, out, out
	err = r.cmd.Start()
	in.Close()
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.cmd.Signal(syscall.SIGKILL)
		r.cmd.Wait()
		ask.Close()
		answers.Close()
	})
	return r
}

// line asks for a report, and reads it into what is given.
func (r *reporter) line(t *testing.T, into ...any) (rest string) {
	t.Helper()
	io.WriteString(r.ask, "\n")
	line, err := r.out.ReadString('\n')
	if err == nil {
		_, err = fmt.Sscan(line, into...)
	}
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return strings.Join(strings.Fields(line)[len(into):], " ")
}

// manager is as much of a service manager as a daemon needs to come back without a gap: it keeps the TUN's descriptor, and the name server's sockets.
type manager struct {
	path string
	conn *net.UnixConn

	mu  sync.Mutex
	tun *os.File // nil: none was given
}

func newManager(t *testing.T, path string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{path: path, conn: conn}
	go m.run()
	t.Cleanup(func() { conn.Close(); m.forget() })
	return m
}

func (m *manager) run() {
	for {
		buf, oob := make([]byte, 4096), make([]byte, 64)
		n, oobn, _, _, err := m.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		if text := string(buf[:n]); strings.HasPrefix(text, "FDSTOREREMOVE=1") {
			m.forget()
		}
		if oobn == 0 {
			continue
		}
		messages, _ := syscall.ParseSocketControlMessage(oob[:oobn])
		for _, message := range messages {
			fds, _ := syscall.ParseUnixRights(&message)
			for _, fd := range fds {
				m.forget()
				m.mu.Lock()
				m.tun = os.NewFile(uintptr(fd), "tun")
				m.mu.Unlock()
			}
		}
	}
}

// forget lets the interface go, if the daemon is away.
func (m *manager) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tun != nil {
		m.tun.Close()
		m.tun = nil
	}
}

// leaky is a host with a daemon, a service manager, and a way out for what leaks.
type leaky struct {
	*lonely
	manager  *manager
	sockets  []*os.File
	log      demoLog
	spy      *spy
	witness  *reporter
	restless *reporter
	standIn  *lab.Cmd // instead of the daemon; nil: none
	spyAt    string
	way6     string // command for the way out of IPv6
}

// newLeaky makes the host of that number in the demo's network.
func newLeaky(t *testing.T, d *demoNet, name string, number int, more string) *leaky {
	t.Helper()
	spyNode, err := d.lab.AddNode(lab.NodeConfig{Name: "spy-" + name, Addrs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.78.%d.99/24", number)), netip.MustParsePrefix(fmt.Sprintf("fd99:%d::99/64", number))}})
	if err != nil {
		t.Fatal(err)
	}
	w := &leaky{lonely: &lonely{t: t, lab: d.lab, dir: filepath.Join(d.dir, name)}, spyAt: fmt.Sprintf("10.78.%d.99", number)}
	w.way6 = fmt.Sprintf("ip addr replace fd99:%d::1/64 dev eth0 nodad; ip -6 route replace default via fd99:%d::99", number, number)
	gateway := netip.MustParseAddr(w.spyAt)
	w.spy = spyIn(t, spyNode, w.spyAt)
	w.node, err = d.lab.AddNode(lab.NodeConfig{Name: name, Gateway: gateway, ResolvConf: "nameserver " + gateway.String() + "\n",
		Addrs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.77.2.%d/16", number)), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 78, byte(number), 1}), 24), netip.MustParsePrefix(fmt.Sprintf("fd99:%d::1/64", number))}})
	if err == nil {
		err = os.MkdirAll(w.at("data"), 0o700)
	}
	if err == nil {
		conf := strings.Replace(d.config(name, ""), fmt.Sprintf("data_dir = %q", w.dir), fmt.Sprintf("data_dir = %q", w.at("data")), 1)
		err = os.WriteFile(w.at("lokinetd.toml"), []byte(conf+more), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.sh(w.way6 + "; mount -t tmpfs -o size=512k,mode=700 own " + w.at("data"))
	w.listen()
	w.manager = newManager(t, w.at("notify"))
	ours, _, _ := strings.Cut(w.sh("ip -o link show eth0 | sed 's/.*@if//'"), ":")
	w.witness = newReporter(t, d.lab.Node, "role-witness", ours)
	return w
}

// listen opens the sockets that the name server gets, as a socket unit does.
func (w *leaky) listen() {
	w.t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		f, err := w.node.Listen(network, demoDNS)
		if err != nil {
			w.t.Fatal(err)
		}
		w.sockets = append(w.sockets, f)
	}
}

func (w *leaky) unlisten() {
	for _, f := range w.sockets {
		f.Close()
	}
	w.sockets = nil
}

// launch starts the daemon with all that was kept.
func (w *leaky) launch() {
	w.t.Helper()
	w.cmd = w.node.Self("run", "-c", w.at("lokinetd.toml"))
	w.cmd.Stderr = &w.log
	files, names := slices.Clone(w.sockets), "dns:dns"
	w.manager.mu.Lock()
	defer w.manager.mu.Unlock()
	if w.manager.tun != nil {
		files, names = append(files, w.manager.tun), names+":tun"
	}
	w.cmd.ExtraFiles = files
	w.cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+names, "NOTIFY_SOCKET="+w.manager.path)
	if err := w.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
}

// stop is what a service manager does for good: lokinetd-names.service has the sockets then.
func (w *leaky) stop() {
	w.t.Helper()
	w.down()
	w.manager.forget()
	w.guard()
}

// guard starts the stand-in.
func (w *leaky) guard() {
	w.t.Helper()
	w.standIn = w.node.Self("dns", "guard", "-c", w.at("lokinetd.toml"))
	w.standIn.Stderr = &w.log
	w.standIn.ExtraFiles = w.sockets
	w.standIn.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(w.sockets)), "LISTEN_FDNAMES=dns:dns")
	if err := w.standIn.Start(); err != nil {
		w.t.Fatal(err)
	}
}

// relieve ends the stand-in.
func (w *leaky) relieve(sig syscall.Signal) {
	w.t.Helper()
	if w.standIn == nil {
		return
	}
	w.standIn.Signal(sig)
	w.standIn.Wait()
	w.standIn = nil
}

// others asks for names that are not ours, as programs do, without end; what it gives says how many were answered since the last time, and how many were not; unless calm, what
// was asked until then counts no more, as it may have been lost with a daemon that was killed.
func (w *leaky) others() (tally func(calm bool) (answered, not int64)) {
	var yes, no, epoch atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			began := epoch.Load()
			done.Go(func() { // one that is lost with a process that is killed is asked again after five seconds
				out, _ := w.node.Command("getent", "ahostsv4", fmt.Sprintf("www%d.example.net", i)).Output()
				if strings.Contains(string(out), "93.184.215.14") {
					yes.Add(1)
				} else if ctx.Err() == nil && began == epoch.Load() {
					no.Add(1)
				}
			})
			time.Sleep(50 * time.Millisecond)
		}
	})
	w.t.Cleanup(func() { cancel(); done.Wait() })
	return func(calm bool) (int64, int64) {
		if !calm {
			epoch.Add(1)
		}
		return yes.Swap(0), no.Swap(0)
	}
}

// byHand starts the daemon as somebody does in a terminal.
func (w *leaky) byHand() {
	w.t.Helper()
	w.cmd = w.node.Self("run", "-c", w.at("lokinetd.toml"))
	w.cmd.Stderr = &w.log
	if err := w.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.await(func(control.Status) bool { return true })
	w.command(0, "dns", "apply")
}

// up is launch, and ExecStartPost.
func (w *leaky) up() {
	w.t.Helper()
	w.relieve(syscall.SIGTERM)
	w.launch()
	w.await(func(control.Status) bool { return true })
	w.command(0, "dns", "apply")
}

// down is ExecStop, the end, and ExecStopPost.
func (w *leaky) down() {
	w.t.Helper()
	w.command(0, "dns", "revert", "--hold")
	w.end(syscall.SIGTERM)
	w.command(0, "dns", "revert", "--hold")
}

// kill is the daemon's death, and ExecStopPost.
func (w *leaky) kill() {
	w.t.Helper()
	w.end(syscall.SIGKILL)
	w.command(0, "dns", "revert", "--hold")
}

func (w *leaky) await(ok func(control.Status) bool) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		s, err := control.NewClient(w.at("sock")).Status(w.t.Context())
		if err == nil && ok(s) {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("waited long enough; %v, state %s\n%s", err, s.State, &w.log)
		}
	}
}

func isReady(s control.Status) bool { return s.State == control.Ready }

// cut lets the relays be there no more, for this host: what is sent to them goes nowhere.
func (w *leaky) cut(off bool) {
	w.t.Helper()
	verb := "neigh del 10.77.0.$i"
	if off {
		verb = "neigh replace 10.77.0.$i lladdr 02:00:00:00:00:99 nud permanent"
	}
	w.sh(fmt.Sprintf("for i in $(seq %d); do ip %s dev eth0; done", demoRelays, verb))
}

// leak is what the spy was asked, and which packets left the host: to or from our addresses, and others with our names in them.
type leak struct{ asked, addresses, names int }

// leaked ends a row: what has leaked since the last one. restless must have done something for it, and when something must leak, that must have been seen: a row lasts until then.
func (w *leaky) leaked(must bool) (l leak, what string) {
	w.t.Helper()
	var asked, sent, dropped int
	var heard []string
	what = "-"
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		var questions, packets, addresses, names, frames int
		w.restless.line(w.t, &questions, &packets)
		asked, sent = asked+questions, sent+packets
		if seen := w.witness.line(w.t, &addresses, &names, &frames, &dropped); seen != "-" {
			what = seen
		}
		heard = append(heard, w.spy.forget()...)
		l = leak{len(heard), l.addresses + addresses, l.names + names}
		if done := asked >= minAsked && sent >= minAsked && (!must || l.asked > 0 && l.addresses > 0); done || dropped > 0 || time.Now().After(end) {
			break
		}
	}
	if asked < minAsked || sent < minAsked || dropped > 0 {
		w.t.Errorf("%d questions asked, %d packets sent, %d not witnessed: that shows nothing", asked, sent, dropped)
	}
	return l, fmt.Sprintf("%s; the spy was asked %q", what, heard[:min(len(heard), 3)])
}

// reset begins anew, after what is meant to leak.
func (w *leaky) reset() {
	w.t.Helper()
	var n int
	w.witness.line(w.t, &n, &n, &n, &n)
	w.spy.forget()
}

// hostResolver sets up how programs of the host find names, and gives what restarts it; nil: that is nothing.
func (w *leaky) hostResolver(mode string) (restart func()) {
	w.t.Helper()
	debian, err := filepath.Abs("../../.cache/debian")
	if err != nil {
		w.t.Fatal(err)
	}
	switch mode {
	case "resolved":
		return w.systemdResolved(filepath.Join(debian, "systemd-resolved/lib/systemd/systemd-resolved"), w.spyAt)
	case "resolvconf":
		w.resolvconf(filepath.Join(debian, "resolvconf"), w.spyAt)
		return func() { w.sh("echo nameserver " + w.spyAt + " | resolvconf -a eth0.dhcp") }
	}
	return nil
}

// What may leave in a row.
const (
	nothing = iota
	everything
)

// TestLeaks: in no state of the daemon, of the host's resolver and of the network is another resolver asked for our names, or does a packet to our addresses leave by another way.
// Each row is a state, gone into while a program asks and sends without end. While the daemon is stopped, and when it stops and starts, no other name goes without an answer.
func TestLeaks(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	d, _, _, address := serving(ctx, t)
	defer d.close()
	var worlds sync.WaitGroup
	defer worlds.Wait()
	for i, mode := range []string{"resolved", "resolvconf", "file"} {
		worlds.Go(func() {
			t.Run(mode, func(t *testing.T) {
				conf := ""
				if mode == "file" {
					conf = "[dns]\nhost = \"file\"\n"
				}
				w := newLeaky(t, d, mode, i+1, conf)
				t.Cleanup(func() {
					if t.Failed() {
						t.Logf("the daemon's log:\n%s", &w.log)
					}
				})
				restart := w.hostResolver(mode)
				w.restless = newReporter(t, w.node, "role-restless", w.at("mapped"))

				tally := w.others()
				table := &bytes.Buffer{}
				defer func() { t.Logf("what left the host:\n%s", table) }()
				row := func(state string, may int, enter func()) {
					t.Helper()
					began, still := time.Now(), may == nothing && w.standIn != nil
					enter()
					time.Sleep(rowTime - time.Since(began))
					l, what := w.leaked(may == everything)
					still = still || w.standIn != nil
					answered, not := tally(still)
					for end := time.Now().Add(time.Minute); still && answered == 0 && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
						yes, no := tally(true)
						answered, not = yes, not+no
					}
					fmt.Fprintf(table, "%-10s  %-44s asked %4d, packets %4d; other names answered %3d, not %d\n", mode, state, l.asked, l.addresses+l.names, answered, not)
					if l != (leak{}) && may == nothing {
						t.Errorf("%s: %+v: %s", state, l, what)
					}
					if still && (not > 0 || answered == 0) {
						t.Errorf("%s: %d other names were not answered, %d were", state, not, answered)
					}
					if (l.addresses == 0 || l.asked == 0) && may == everything {
						t.Errorf("%s: %+v: the test sees no leak where there must be one", state, l)
					}
				}
				row("lokinetd is not there", everything, func() {})
				w.restless.cmd.Signal(syscall.SIGSTOP)
				w.cut(true)
				w.up()
				w.restless.cmd.Signal(syscall.SIGCONT)
				time.Sleep(2 * time.Second) // those questions end that were on their way to the spy, or to be asked there
				w.reset()
				row("started, no path", nothing, func() { w.await(func(s control.Status) bool { return s.State != control.Ready }) })
				row("paths", nothing, func() {
					w.cut(false)
					w.await(isReady)
					known := ""
					for _, database := range []string{"ahostsv4", "ahostsv6"} {
						known += strings.Fields(w.until("getent "+database+" "+address, "STREAM"))[0] + "\n"
					}
					if err := os.WriteFile(w.at("mapped"), []byte(known), 0o644); err != nil {
						t.Fatal(err)
					}
					w.until("curl -sS --max-time 5 http://"+address+"/", demoPage)
				})
				row("all paths lost", nothing, func() {
					w.cut(true)
					time.Sleep(3 * time.Second)
				})
				row("paths again", nothing, func() {
					w.cut(false)
					w.await(isReady)
				})
				if restart != nil {
					row("the resolver is restarted", nothing, restart)
				}
				row("IPv6 is switched off", nothing, func() { w.sh("echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6") })
				row("IPv6 is switched on", nothing, func() {
					w.sh("echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6; " + w.way6)
				})
				row("the firewall is flushed", nothing, func() { w.sh("nft flush ruleset") })
				row("all routes of ours are flushed", nothing, func() {
					w.until("nft list tables", "lokinetd_lokinet0") // it is back
					w.sh("for f in -4 -6; do ip $f route flush dev lokinet0; ip $f route flush type unreachable proto 108; done")
					w.until("curl -sS --max-time 5 http://"+address+"/", demoPage)
				})
				row("killed, and started again", nothing, func() {
					w.end(syscall.SIGKILL)
					time.Sleep(time.Second)
					w.up()
				})
				row("upgraded", nothing, func() {
					w.down()
					w.up()
				})
				row("the disk is full", nothing, func() { w.sh("dd if=/dev/zero of=" + w.at("data/full") + " bs=4k 2>/dev/null || true") })
				row("killed and started while the disk is full", nothing, func() {
					w.end(syscall.SIGKILL)
					time.Sleep(time.Second / 2)
					w.launch()
					time.Sleep(time.Second)
				})
				row("room on the disk again", nothing, func() {
					w.sh("rm " + w.at("data/full"))
					w.cmd.Signal(syscall.SIGKILL)
					w.cmd.Wait()
					w.up()
				})
				row("the interface is down", nothing, func() { w.sh("ip link set lokinet0 down") })
				row("killed, and the interface is gone", nothing, func() {
					w.kill()
					w.manager.forget()
				})
				row("and the firewall flushed", nothing, func() { w.sh("nft flush ruleset") })
				row("started again", nothing, w.up)
				row("killed, no interface, the routes flushed", nothing, func() {
					w.kill()
					w.manager.forget()
					w.sh("for f in -4 -6; do ip $f route flush type unreachable proto 108; done")
				})
				row("started once more", nothing, w.up)
				row("stopped, and may come back", nothing, w.down)
				row("started after a stop", nothing, w.up)
				row("stopped for good", nothing, w.stop)
				row("and nobody stands in for a moment", nothing, func() {
					w.relieve(syscall.SIGKILL)
					time.Sleep(time.Second / 2)
					w.guard()
				})
				row("and the routes flushed", nothing, func() {
					w.sh("for f in -4 -6; do ip $f route flush type unreachable proto 108; done")
				})
				row("started after all", nothing, w.up)
				row("stopped for good again", nothing, w.stop)
				w.relieve(syscall.SIGTERM)
				w.unlisten()
				row("run by hand, and killed", nothing, func() {
					w.byHand()
					w.end(syscall.SIGKILL)
				})
				row("removed", everything, func() {
					w.cleanup(true)
				})
			})
		})
	}
}
