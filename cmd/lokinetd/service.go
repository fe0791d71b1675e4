package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"lokinetd/config"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/statefile"
)

func (a *app) serviceCommand() *cobra.Command {
	return group("service", "Host something: look at the services of this machine, and add one",
		a.serviceListCommand(), a.serviceShowCommand(), a.serviceAddCommand())
}

// services asks the daemon for its services.
func (a *app) services(cmd *cobra.Command) ([]control.Endpoint, error) {
	s, err := a.status(cmd)
	return slices.DeleteFunc(s.Endpoints, func(e control.Endpoint) bool { return e.Kind != "service" }), err
}

func (a *app) serviceListCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "list", Short: "List the services that the daemon hosts, with their addresses", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := a.services(cmd)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"schema": control.Schema, "services": append([]control.Endpoint{}, all...)})
			}
			for _, e := range all {
				fmt.Fprintf(a.out, "%s\n  %s\n  %s; %s; %s\n", strings.Join(append([]string{e.Name}, e.Names...), "  "), e.Address,
					strings.Join(openPorts(e), ", "), publishedText(e, a.now()), counted(e.Sessions, "session"))
			}
			return a.noneIf(len(all) == 0, "services: 'lokinetd service add' makes one")
		},
	})
}

func (a *app) serviceShowCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "show NAME", Short: "Say what a service lets others reach, who may call, and how it is", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := a.services(cmd)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(all, func(e control.Endpoint) bool { return e.Name == args[0] })
			if i < 0 {
				return &exitError{exitNotFound, a.noService(args[0], all)}
			}
			if a.json {
				return a.printJSON(map[string]any{"schema": control.Schema, "service": all[i]})
			}
			a.printService(all[i])
			return nil
		},
	})
}

// noService says why the daemon does not host a service of that name.
func (a *app) noService(name string, all []control.Endpoint) error {
	if c, err := a.serviceConfig(); err == nil && slices.ContainsFunc(c.Service, func(s config.Service) bool { return s.Name == name }) {
		return fmt.Errorf("the service %s is in %s, but the daemon does not host it: type '%s', then look at the warnings of 'lokinetd status'", name, a.serviceFile(), a.reloadHint(true))
	}
	names := []string{}
	for _, e := range all {
		names = append(names, e.Name)
	}
	return fmt.Errorf("there is no service %q; there are: %s", name, orNone(strings.Join(names, ", ")))
}

func (a *app) printService(e control.Endpoint) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(a.out, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("service", "%s", e.Name)
	line("address", "%s", e.Address)
	for i, n := range e.Names {
		line(first(i, "names"), "%s", n)
	}
	for i, p := range openPorts(e) {
		line(first(i, "ports"), "%s", p)
	}
	callers := "everybody who knows the address"
	if e.ClientsFrom != "" {
		callers = fmt.Sprintf("%s, listed in %s", counted(e.Clients, "client"), e.ClientsFrom)
	}
	line("callers", "%s", callers)
	line("published", "%s", strings.TrimPrefix(publishedText(e, a.now()), "published "))
	line("sessions", "%d of at most %d; not answered: %d calls of others, %d over the limits", e.Sessions, e.MaxSessions, e.Refused, e.TooMany)
	line("traffic", "in %s, out %s", bytesText(e.Traffic.BytesIn), bytesText(e.Traffic.BytesOut))
	line("on here", "%s", orNone(strings.TrimSpace(e.IPv4+" "+e.IPv6)))
}

// openPorts lists the ports of a service, with where they lead to.
func openPorts(e control.Endpoint) []string {
	all := slices.Clone(e.Forwards)
	for _, p := range e.Ports {
		if !slices.ContainsFunc(e.Forwards, func(f string) bool { return strings.HasPrefix(f, p+" ") }) {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		all = append(all, "no port is open")
	}
	return all
}

func publishedText(e control.Endpoint, now time.Time) string {
	if e.PublishedAt == nil {
		return "not published yet: others cannot find it"
	}
	return fmt.Sprintf("published %v ago", ago(*e.PublishedAt, now))
}

// newService is what service add was told.
type newService struct {
	name        string
	ports       []config.Port
	forwards    []config.Forward
	echo        bool
	clients     string
	key         string
	maxSessions int
}

func (a *app) serviceAddCommand() *cobra.Command {
	var s newService
	cmd := a.jsonFlag(&cobra.Command{
		Use: "add NAME PORT[:[ADDRESS:]PORT]...", Short: "Add a service to the configuration and say its address", Args: cobra.MinimumNArgs(2),
		Long: "Add a service to the configuration and say its address. What is in the file stays as it is, comments too.\n" +
			"  lokinetd service add blog 80:127.0.0.1:8080     port 80 of the service leads to a program on port 8080\n" +
			"  lokinetd service add blog 80:8080               the same\n" +
			"  lokinetd service add dns udp/53:5353            UDP\n" +
			"  lokinetd service add blog 80                    a program listens on port 80 of all addresses of this machine\n" +
			"The service's key is made; the daemon hosts the service when it reads its configuration again.",
		RunE: func(cmd *cobra.Command, args []string) error {
			s.name = args[0]
			for _, arg := range args[1:] {
				if err := s.open(arg); err != nil {
					return err
				}
			}
			return a.addService(cmd, s)
		},
	})
	cmd.Flags().BoolVar(&s.echo, "echo", false, "answer ping")
	cmd.Flags().StringVar(&s.clients, "clients", "", "`folder` with a file NAME.client for each client that may call (default: everybody may)")
	cmd.Flags().StringVarP(&s.key, "key", "k", "", "key `file` (default: service-NAME.key in the data directory); made when it does not exist")
	cmd.Flags().IntVar(&s.maxSessions, "max-sessions", 0, "sessions of callers at a time")
	return cmd
}

// open reads a port, and where it leads to if that is said.
func (s *newService) open(arg string) error {
	port, to, forward := strings.Cut(arg, ":")
	if !strings.Contains(port, "/") {
		port = "tcp/" + port
	}
	var p config.Port
	err := p.UnmarshalText([]byte(port))
	if !forward {
		s.ports = append(s.ports, p)
	} else if err == nil {
		if !strings.Contains(to, ":") {
			to = "127.0.0.1:" + to
		}
		var f config.Forward
		err = f.UnmarshalText([]byte(port + " -> " + to))
		s.forwards = append(s.forwards, f)
	}
	if err != nil {
		return usagef("%q: want PORT:ADDRESS:PORT like 80:127.0.0.1:8080, PORT:PORT, or PORT alone; udp/ before it for UDP", arg)
	}
	return nil
}

// text is the table of the service.
func (s *newService) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[[service]]\nname = %q\n", s.name)
	if s.key != "" {
		fmt.Fprintf(&b, "key = %q\n", s.key)
	}
	list := func(name string, n int, text func(i int) string) {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf("%q", text(i)))
		}
		if n > 0 {
			fmt.Fprintf(&b, "%s = [%s]\n", name, strings.Join(all, ", "))
		}
	}
	list("ports", len(s.ports), func(i int) string { return s.ports[i].String() })
	list("forward", len(s.forwards), func(i int) string { return strings.TrimPrefix(s.forwards[i].String(), "tcp/") })
	if s.echo {
		b.WriteString("echo = true\n")
	}
	if s.clients != "" {
		fmt.Fprintf(&b, "clients = %q\n", s.clients)
	}
	if s.maxSessions != 0 {
		fmt.Fprintf(&b, "max_sessions = %d\n", s.maxSessions)
	}
	return b.String()
}

// serviceFile is the configuration of the daemon that hosts: for a user without root that of his `lokinetd proxy`.
func (a *app) serviceFile() string {
	if a.config == defaultConfig && os.Geteuid() != 0 {
		if dir, err := os.UserConfigDir(); err == nil {
			return filepath.Join(dir, "lokinetd", "lokinetd.toml")
		}
	}
	return a.config
}

func (a *app) serviceConfig() (*config.Config, error) {
	return config.LoadWith(a.serviceFile(), asUser)
}

func (a *app) addService(cmd *cobra.Command, s newService) error {
	file, err := filepath.Abs(a.serviceFile())
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(file); err == nil {
		file = real // the link stays
	}
	for _, path := range []*string{&s.key, &s.clients} { // the file's relative paths count from its folder, ours from where we are
		if *path != "" {
			if *path, err = filepath.Abs(*path); err != nil {
				return err
			}
		}
	}

	// All that can be wrong is found before anything is written.
	old, err := statefile.Read(file, config.MaxFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	now, err := config.ParseWith(old, file, asUser)
	if err != nil {
		return err
	}
	if now.Role != config.RoleClient {
		return fmt.Errorf("%s is the configuration of a relay, which hosts nothing: only a client does", file)
	}
	if slices.ContainsFunc(now.Service, func(x config.Service) bool { return x.Name == s.name }) {
		return fmt.Errorf("there is a service %s in %s already; change it there", s.name, file)
	}
	table := s.text()
	next := bytes.Clone(old)
	if len(next) > 0 {
		if !bytes.HasSuffix(next, []byte("\n")) {
			next = append(next, '\n')
		}
		next = append(next, '\n')
	}
	next = append(next, table...)
	c, err := config.ParseWith(next, file, asUser)
	if err != nil {
		return fmt.Errorf("%w\n%s stays as it is", err, file)
	}
	added := c.Service[len(c.Service)-1]

	secret, made, err := loadOrMakeKey(c.DataDir, added.Key)
	if err != nil {
		return err
	}
	if s.clients != "" {
		if err := os.MkdirAll(s.clients, 0o755); err != nil {
			return err
		}
	}
	if err := replaceFile(file, next); err != nil {
		return err
	}
	address := key.Address{Key: secret.Public()}.Text(c.Network.Suffix)
	if a.json {
		return a.printJSON(map[string]any{"schema": control.Schema, "name": s.name, "address": address, "config": file, "key": added.Key, "key_made": made})
	}
	fmt.Fprintf(a.out, "added to %s:\n\n  %s\n", file, strings.ReplaceAll(strings.TrimSuffix(table, "\n"), "\n", "\n  "))
	fmt.Fprintf(a.out, "\naddress  %s\nkey      %s\n", address, added.Key)
	if made {
		fmt.Fprintln(a.out, "         (new; keep a copy: the address is this key)")
	}
	of := ""
	if a.config != defaultConfig {
		of = " --config " + a.config
	}
	fmt.Fprintf(a.out, "\nnow type\n  %s\n  lokinetd service show %s%s\n", a.reloadHint(a.answers(cmd)), s.name, of)
	for _, n := range s.notes() {
		fmt.Fprintln(a.err, "note:", n)
	}
	return nil
}

// notes are what is still to do, as far as that can be seen.
func (s *newService) notes() (all []string) {
	for _, f := range s.forwards {
		if f.Port.Proto == "tcp" && !listens(f.To) {
			all = append(all, fmt.Sprintf("nobody listens on %v yet", f.To))
		}
	}
	if s.clients != "" {
		if files, err := filepath.Glob(filepath.Join(s.clients, "*.client")); err == nil && len(files) == 0 {
			all = append(all, fmt.Sprintf("nobody may call before there is a file in %s, ALICE.client for example, with a client's address in it", s.clients))
		}
	}
	return all
}

func listens(at netip.AddrPort) bool {
	c, err := net.DialTimeout("tcp", at.String(), time.Second)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// loadOrMakeKey reads a key file, or makes it for the daemon to read: it belongs to the owner of the data directory then.
func loadOrMakeKey(dataDir, file string) (secret *key.Secret, made bool, err error) {
	secret, err = key.LoadSecret(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, false, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, false, err
	}
	secret = key.Generate()
	if err := secret.Save(file); err != nil {
		return nil, false, err
	}
	if st, err := os.Stat(dataDir); err == nil {
		err = chown(file, st)
		if err != nil {
			return nil, false, err
		}
	}
	return secret, true, nil
}

// chown gives a file of root's to the owner of another one.
func chown(file string, as fs.FileInfo) error {
	if st, ok := as.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		return os.Lchown(file, int(st.Uid), int(st.Gid))
	}
	return nil
}

// replaceFile writes a file whole, with the mode and the owner that it had; a new one is readable by all. What earlier attempts have left is removed.
func replaceFile(file string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	statefile.Sweep(file)
	return statefile.Write(file, content, 0o644)
}

// answers says whether a daemon runs.
func (a *app) answers(cmd *cobra.Command) bool {
	_, err := a.status(cmd)
	return !errors.Is(err, control.ErrNotRunning)
}

// reloadHint is what makes the daemon host what was added.
func (a *app) reloadHint(running bool) string {
	_, err := os.Stat("/run/systemd/system")
	switch systemd := err == nil && a.config == defaultConfig && os.Geteuid() == 0; {
	case systemd && running:
		return "systemctl reload lokinetd"
	case systemd:
		return "systemctl restart lokinetd"
	case running:
		if path, err := a.socketFile(); err == nil {
			if pid, err := processBehind(path); err == nil && pid > 0 {
				return fmt.Sprintf("kill -HUP %d", pid)
			}
		}
		return "pkill -HUP -x lokinetd"
	case os.Geteuid() != 0:
		return "lokinetd proxy"
	case a.config != defaultConfig:
		return "lokinetd run --config " + a.config
	}
	return "lokinetd run"
}
