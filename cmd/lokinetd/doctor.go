package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"lokinetd/config"
	"lokinetd/dns"
	"lokinetd/netif"
	"lokinetd/router/control"
	"lokinetd/router/key"
)

func (a *app) doctorCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "doctor", Short: "Find out what is wrong on this machine, and say what to type", Args: cobra.NoArgs,
		Long: "doctor looks at the daemon and at this machine, changes nothing, and says of each thing whether it is well;\n" +
			"if not, what to type. As root it sees more. It exits with 0 when there is no problem (a warning is none), 1 when the\n" +
			"configuration is wrong, 3 when the daemon does not run, 5 when it may not be asked, and 4 for any other problem.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			look := a.look
			if look == nil {
				look = a.lookAround
			}
			findings := diagnose(look(cmd.Context()))
			exit := exitOf(findings)
			if a.json {
				return errors.Join(a.printJSON(map[string]any{"schema": control.Schema, "findings": findings}), exit)
			}
			for _, f := range findings {
				fmt.Fprintf(a.out, "%-8s %-12s %s\n", f.State, f.Check, f.Text)
				if f.Do != "" {
					fmt.Fprintf(a.out, "%21s do: %s\n", "", f.Do)
				}
			}
			return exit
		},
	})
}

// finding is what is said of one thing.
type finding struct {
	Check string `json:"check"`
	State string `json:"state"` // ok, warning or problem
	Text  string `json:"text"`
	Do    string `json:"do,omitempty"` // what to type, or else to do

	exit int // of a problem; 0: exitNotReady
}

const (
	well    = "ok"
	warning = "warning"
	problem = "problem"
)

// exitOf is nil when there is no problem; of several the first counts, since what follows may be its consequence.
func exitOf(all []finding) error {
	for _, f := range all {
		if f.State == problem {
			return &exitError{cmp.Or(f.exit, exitNotReady), nil}
		}
	}
	return nil
}

// sight is all that diagnose knows.
type sight struct {
	Now       time.Time
	Config    string // its file
	ConfigErr string
	NoConfig  bool // the error is that there is none
	Own       bool // it is that of the user's own `lokinetd proxy`
	Role      string
	TUN       string // the interface's name, as configured
	Names     bool   // there is to be a name server
	Service   bool   // a systemd unit of ours is installed

	Daemon    error           // nil: it answers; else control.ErrNotRunning or another
	Status    *control.Status // nil: it does not answer
	Newest    time.Time       // signature of the newest contact that it knows; zero: none
	CapKnown  bool
	NetAdmin  bool  // it may change the network
	HasFilter *bool // the firewall table is there; nil: we may not look

	Device     error // of opening /dev/net/tun as we are; fs.ErrPermission says nothing about the daemon
	Interface  bool
	Addresses  []string // on it
	WayOut     bool     // the kernel has a way to the relays, or without any, to everybody
	Unsynced   bool     // nobody keeps the clock right
	NoIPv6     string   // why there is none; "": there is
	Resolver   dns.HostStatus
	Stopped    string   // what becomes of our names while the daemon does not run; "": it does
	Answers    error    // of our name server, asked by us
	Localhost  []string // what programs get for localhost.loki
	LocalErr   error
	CanaryGone bool // use-application-dns.net does not exist, for programs
	CanaryErr  error
}

// diagnose is a function of w alone.
func diagnose(w sight) (all []finding) {
	say := func(state, check, do, format string, args ...any) *finding {
		all = append(all, finding{Check: check, State: state, Text: fmt.Sprintf(format, args...), Do: do})
		return &all[len(all)-1]
	}
	start := "sudo lokinetd run"
	if s := w.Status; w.Own || s != nil && s.Proxy != nil {
		start, w.Service = "lokinetd proxy", false // which has no interface and no name server
	}
	restart := "sudo systemctl restart lokinetd"
	if !w.Service {
		restart = "stop the daemon, and: " + start
	}

	if w.NoConfig {
		say(problem, "config", "lokinetd doctor --config FILE, if it is elsewhere (docs/private-network.md and docs/public-network.md say what to write)", "%s", w.ConfigErr).exit = exitFailure
	} else if w.ConfigErr != "" {
		say(problem, "config", "lokinetd config check "+w.Config, "%s", w.ConfigErr).exit = exitFailure
	} else {
		say(well, "config", "", "%s is right", w.Config)
	}

	s := w.Status
	switch {
	case s != nil:
		say(well, "daemon", "", "version %s runs as a %s since %s", s.Version, s.Role, s.StartedAt.UTC().Format(time.DateTime+" MST"))
	case errors.Is(w.Daemon, control.ErrNotRunning) && w.Service:
		say(problem, "daemon", "sudo systemctl start lokinetd (and if it ends again: journalctl -u lokinetd -n 30)", "it does not run").exit = exitNotRunning
	case errors.Is(w.Daemon, control.ErrNotRunning):
		say(problem, "daemon", start, "it does not run").exit = exitNotRunning
	case exitCode(w.Daemon) == exitDenied:
		say(problem, "daemon", "sudo usermod -aG lokinet $USER (and log in again), or: sudo lokinetd doctor", "it runs, but you may not ask it").exit = exitDenied
	default:
		say(problem, "daemon", restart, "it does not answer: %v", w.Daemon)
	}

	switch {
	case s != nil && s.Network.Contacts == 0:
		say(problem, "bootstrap", "lokinetd status (its first line says what to get, and where to put it)", "no relay is known to begin with")
	case !w.WayOut:
		say(problem, "network", "ip route", "this machine has no way to the relays: no route leads there")
	case s == nil:
		say(well, "network", "", "this machine has a way out")
	case len(s.Edges) == 0 && s.Role == config.RoleClient:
		say(problem, "network", "sudo nft list ruleset (UDP has to leave this machine, and its router, for ports of relays such as 1190)",
			"%s known, and none answers: UDP may not get out", counted(s.Network.Contacts, "relay"))
	case s.State != control.Ready:
		say(problem, "network", "lokinetd status --watch", "not ready: %s", cmp.Or(s.Reason, string(s.State)))
	case s.Role == config.RoleClient:
		say(well, "network", "", "UDP gets out: connected to %s of %d known; ready", counted(len(s.Edges), "relay"), s.Network.Contacts)
	default:
		say(well, "network", "", "%s known; ready", counted(s.Network.Contacts, "relay"))
	}

	if s != nil {
		for _, x := range s.NotRun {
			say(problem, "key", x.Advice, "%s %s does not run: %s", x.Kind, x.Name, x.Reason)
		}
	}

	// A contact is signed by its relay when it is made: one that is of the future shows that we are late.
	switch ahead := w.Newest.Sub(w.Now); {
	case !w.Newest.IsZero() && ahead > 2*time.Minute:
		say(problem, "clock", "sudo timedatectl set-ntp true", "this machine's clock is at least %s late", span(ahead))
	case w.Unsynced:
		say(warning, "clock", "sudo timedatectl set-ntp true", "nobody keeps this machine's clock right, as far as the kernel knows; more than a few minutes off, nothing works")
	default:
		say(well, "clock", "", "no sign that it is wrong")
	}

	if s != nil && s.Buffers != nil && min(s.Buffers.Receive, s.Buffers.Send) < s.Buffers.Wanted {
		say(warning, "buffers", fmt.Sprintf("sudo sysctl -w net.core.rmem_max=%d net.core.wmem_max=%[1]d; then: %s", s.Buffers.Wanted, restart),
			"the kernel grants the UDP socket %d KiB to receive and %d to send, of %d: bursts are lost", s.Buffers.Receive>>10, s.Buffers.Send>>10, s.Buffers.Wanted>>10)
	} else if s != nil && s.Buffers != nil {
		say(well, "buffers", "", "the UDP socket has what it asked for")
	}

	if w.Role != config.RoleClient || start == "lokinetd proxy" {
		return all
	}

	switch {
	case errors.Is(w.Device, fs.ErrNotExist):
		say(problem, "tun", "sudo modprobe tun", "there is no /dev/net/tun")
	case w.Device != nil && !errors.Is(w.Device, fs.ErrPermission):
		say(problem, "tun", "sudo modprobe tun (in a container: ask for /dev/net/tun)", "/dev/net/tun: %v", w.Device)
	case s != nil && !w.Interface:
		say(problem, "tun", restart, "the interface %s is gone", w.TUN)
	case s != nil && len(w.Addresses) == 0:
		say(problem, "tun", restart, "the interface %s has no address", w.TUN)
	case s != nil:
		say(well, "tun", "", "%s has %s", s.Tun.Name, strings.Join(w.Addresses, ", "))
	default:
		say(well, "tun", "", "there is /dev/net/tun")
	}

	switch {
	case w.CapKnown && !w.NetAdmin:
		say(warning, "rights", "sudo systemctl edit lokinetd (AmbientCapabilities=CAP_NET_ADMIN), or: sudo lokinetd run", "the daemon has no CAP_NET_ADMIN: it cannot change addresses, routes and buffers")
	case w.CapKnown:
		say(well, "rights", "", "the daemon may change the network (CAP_NET_ADMIN)")
	}

	switch {
	case s == nil:
	case s.Tun.NoFirewall != "":
		say(warning, "firewall", "sudo modprobe nf_tables; then: "+restart, "no nftables table, only routes, keeps packets for our addresses from leaving another way: %s", s.Tun.NoFirewall)
	case w.HasFilter != nil && !*w.HasFilter:
		say(warning, "firewall", restart, "somebody has removed our nftables table: only routes keep packets for our addresses from leaving another way")
	case w.HasFilter != nil:
		say(well, "firewall", "", "packets for our addresses leave through the interface only")
	}

	if w.NoIPv6 == "" {
		say(well, "ipv6", "", "remotes have IPv6 addresses here")
	} else {
		say(well, "ipv6", "", "remotes have IPv4 addresses only, since %s", w.NoIPv6)
	}

	if !w.Names {
		say(well, "resolver", "", "there is to be no name server here (dns.enabled = false)")
		return all
	}
	if s != nil {
		if w.Answers != nil {
			say(problem, "name server", "sudo ss -lunp sport = :53 (who else has the port?); then: "+restart, "%v", w.Answers)
		} else {
			say(well, "name server", "", "it answers")
		}
	}
	because := ""
	if n := len(w.Resolver.Reasons); n > 0 {
		because = ", because " + strings.Join(w.Resolver.Reasons, "; ")
	}
	switch r := w.Resolver; {
	case s == nil && r.Method != dns.MethodNone: // what is missing is the daemon
		say(well, "resolver", "", "chosen is %s%s", cmp.Or(resolvers[string(r.Method)], string(r.Method)), because)
	case r.Problem != "":
		do := strings.TrimPrefix(cmp.Or(r.Advice, "sudo lokinetd dns apply"), "Type: ")
		say(problem, "resolver", do, "programs do not ask us (%s): %s", r.Method, r.Problem)
	default:
		say(well, "resolver", "", "%s%s", cmp.Or(resolvers[string(r.Method)], string(r.Method)), because)
	}
	if s == nil {
		if w.Stopped != "" {
			say(well, "our names", "", "%s", w.Stopped)
		}
		return all
	}

	own := map[string]bool{}
	for _, e := range s.Endpoints {
		own[e.IPv4], own[e.IPv6] = true, true
	}
	foreign := slices.DeleteFunc(slices.Clone(w.Localhost), func(a string) bool { return own[a] })
	const ask = "lokinetd dns status"
	switch {
	case w.LocalErr != nil:
		say(problem, "localhost", ask, "programs get no answer for localhost.loki: %v", w.LocalErr)
	case len(foreign) > 0 || len(w.Localhost) == 0:
		say(problem, "localhost", ask, "somebody else answers for localhost.loki: %s", orNone(strings.Join(w.Localhost, ", ")))
	default:
		say(well, "localhost", "", "localhost.loki is this machine's address %s, for programs too", strings.Join(w.Localhost, ", "))
	}
	switch {
	case w.CanaryErr != nil:
		say(warning, "browsers", ask, "it is not known whether browsers use this machine's resolver: %v", w.CanaryErr)
	case !w.CanaryGone:
		say(warning, "browsers", ask, "Firefox may go around this machine's resolver, and not find our names: use-application-dns.net exists for programs")
	default:
		say(well, "browsers", "", "Firefox uses this machine's resolver; in Chromium \"Use secure DNS\" has to be off")
	}
	return all
}

// lookAround is what the machine is like.
func (a *app) lookAround(ctx context.Context) sight {
	w := sight{Now: a.now()}
	c, file, err := a.meantConfig()
	w.Config, w.Own = file, file != a.config
	if err != nil {
		if w.ConfigErr = err.Error(); a.config == defaultConfig && errors.Is(err, fs.ErrNotExist) {
			w.ConfigErr, w.NoConfig = a.config+" is not there", true
		}
		c = config.Default()
	}
	w.Role, w.TUN, w.Names = c.Role, c.TUN.Name, c.DNS.Enabled && c.Role == config.RoleClient
	for _, dir := range []string{"/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"} {
		if _, err := os.Stat(dir + "/lokinetd.service"); err == nil {
			w.Service = true
		}
	}

	relays := a.lookDaemon(ctx, &w, c)
	w.WayOut = hasWay(relays)
	var t unix.Timex
	if state, err := unix.Adjtimex(&t); err == nil {
		w.Unsynced = state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0
	}

	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if w.Device = err; err == nil {
		f.Close()
	}
	link := tunLink(c.TUN.Name)
	w.Interface = link.Index != 0
	for _, p := range link.Own {
		w.Addresses = append(w.Addresses, p.String())
	}
	if has, err := netif.HasFilter(cmp.Or(link.Name, c.TUN.Name)); err == nil {
		w.HasFilter = &has
	}
	w.NoIPv6 = netif.NoIPv6()
	if w.Names {
		lookNames(ctx, &w, c, link)
		w.Stopped = a.meanwhile(ctx, c)
	}
	return w
}

// lookDaemon asks the daemon, and gives the addresses of the relays that it knows.
func (a *app) lookDaemon(ctx context.Context, w *sight, c *config.Config) (relays []netip.Addr) {
	client, err := a.client()
	if err != nil {
		client = control.NewClient(c.Control.Socket)
	}
	s, err := client.Status(ctx)
	if w.Daemon = err; err != nil {
		return nil
	}
	w.Status, w.Role = &s, s.Role
	if list, err := client.Relays(ctx); err == nil {
		for _, r := range list.Relays {
			if r.SignedAt.After(w.Newest) {
				w.Newest = r.SignedAt
			}
			if at, err := netip.ParseAddrPort(r.Address); err == nil {
				relays = append(relays, at.Addr())
			}
		}
	}
	path := cmp.Or(a.socket, a.ownSocket(), c.Control.Socket)
	if caps, err := capabilitiesBehind(path); err == nil {
		w.CapKnown, w.NetAdmin = true, caps&(1<<unix.CAP_NET_ADMIN) != 0
	}
	return relays
}

// processBehind is the process that listens on a unix socket; 0: it is in another namespace of processes than we are.
func processBehind(path string) (pid int32, err error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var who *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { who, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || cerr != nil {
		return 0, errors.Join(err, cerr)
	}
	return who.Pid, nil
}

// capabilitiesBehind are those of the process that listens on a unix socket.
func capabilitiesBehind(path string) (uint64, error) {
	pid, err := processBehind(path)
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if set, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(set), 16, 64)
		}
	}
	return 0, errors.New("no capabilities in /proc")
}

// hasWay says whether the kernel would send packets to one of these; without any, to somebody far away.
func hasWay(relays []netip.Addr) bool {
	if len(relays) == 0 {
		relays = []netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, 1})}
	}
	return slices.ContainsFunc(relays[:min(len(relays), 32)], func(a netip.Addr) bool {
		way, err := netif.WayTo(a)
		return err == nil && way.Source.IsValid()
	})
}

// lookNames asks as programs do.
func lookNames(ctx context.Context, w *sight, c *config.Config, link dns.Link) {
	world := dns.Place{}.Look(ctx, dns.World{Want: dns.Method(c.DNS.Host), Enabled: true, Listen: c.DNS.Listen, Upstream: c.DNS.Upstream})
	d := dns.Decide(world)
	w.Resolver = dns.Judge(ctx, dns.Place{}, d, c.DNS.Listen, linkOf(d.Method, link))
	if w.Status == nil {
		return
	}
	w.Answers = dns.Answers(ctx, c.DNS.Listen)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r := &net.Resolver{PreferGo: true}
	if w.Resolver.Method == dns.MethodResolved && world.NSSResolve {
		r.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) { // what nss-resolve asks too
			return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.53:53")
		}
	}
	own, err := r.LookupNetIP(ctx, "ip", "localhost."+key.TLDLoki+".")
	w.LocalErr = err
	for _, a := range own {
		w.Localhost = append(w.Localhost, a.Unmap().String())
	}
	slices.Sort(w.Localhost)
	_, err = r.LookupNetIP(ctx, "ip4", "use-application-dns.net.")
	var none *net.DNSError
	if w.CanaryGone = errors.As(err, &none) && none.IsNotFound; !w.CanaryGone {
		w.CanaryErr = err
	}
}
