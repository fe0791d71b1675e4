package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	agentArg = "lokinetd-lab-agent" // argv[0] of an agent; the socket is descriptor 3
	probeArg = "lokinetd-lab-probe" // argv[0] of the process that Check starts
	bridge   = "lab0"
)

// Main must be called first in main, or in TestMain, of every program that uses this package. It returns at once, but in the copies of the
// program that a Lab starts, where it does an agent's work and exits.
func Main() {
	switch os.Args[0] {
	case agentArg:
		w, err := wireFrom(os.NewFile(3, "lab"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		(&agent{w: w, commands: map[uint64]*exec.Cmd{}, nodes: map[uint64]*exec.Cmd{}}).run()
		os.Exit(0) // the first process of its namespace: the kernel ends all others in it
	case probeArg:
		if err := probe(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// agent is the first process of the lab's or a node's namespaces.
type agent struct {
	w        *wire
	mu       sync.Mutex
	commands map[uint64]*exec.Cmd
	nodes    map[uint64]*exec.Cmd
}

// run serves requests until the socket closes.
func (a *agent) run() {
	for {
		var r request
		files, _, err := a.w.receive(&r)
		if err != nil {
			return
		}
		if r.Op == "exec" {
			if err = a.exec(&r, files); err == nil {
				continue // exec has replied, and replies again
			}
		} else {
			var socket *os.File
			switch r.Op {
			case "setup":
				err = setup(r.Node)
			case "node":
				err = a.node(&r, files)
			case "close":
				err = a.closeNode(r.Target)
			case "signal":
				err = a.signal(&r)
			case "listen":
				socket, err = listen(r.Network, r.Address)
			default:
				err = fmt.Errorf("lab: no operation %q", r.Op)
			}
			if socket != nil {
				a.reply(reply{ID: r.ID}, socket)
				socket.Close()
				continue
			}
		}
		closeAll(files)
		a.reply(reply{ID: r.ID, Err: errText(err)})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (a *agent) reply(r reply, files ...*os.File) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.w.send(r, files...)
}

// filer is a socket whose descriptor can be had.
type filer interface {
	File() (*os.File, error)
	Close() error
}

// listen opens a socket in the node's network.
func listen(network, address string) (*os.File, error) {
	var s filer
	if strings.HasPrefix(network, "udp") {
		c, err := net.ListenPacket(network, address)
		if err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
		s = c.(filer)
	} else {
		l, err := net.Listen(network, address)
		if err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
		s = l.(filer)
	}
	defer s.Close()
	return s.File()
}

// exec starts a command with the given descriptors and replies; when it has ended, it replies again.
func (a *agent) exec(r *request, files []*os.File) error {
	if len(r.Args) == 0 || len(files) < 3 {
		return errors.New("lab: exec needs a command and three descriptors")
	}
	c := exec.Command(r.Args[0], r.Args[1:]...)
	c.Env, c.Dir = r.Env, r.Dir
	c.Stdin, c.Stdout, c.Stderr, c.ExtraFiles = files[0], files[1], files[2], files[3:]
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		return err
	}
	closeAll(files)
	a.mu.Lock()
	a.commands[r.ID] = c
	a.mu.Unlock()
	a.reply(reply{ID: r.ID})
	go func() {
		c.Wait()
		a.mu.Lock()
		delete(a.commands, r.ID)
		a.mu.Unlock()
		end := reply{ID: r.ID, Exited: true, Code: c.ProcessState.ExitCode()}
		if s := c.ProcessState.Sys().(syscall.WaitStatus); s.Signaled() {
			end.Signal = int(s.Signal())
		}
		a.reply(end)
	}()
	return nil
}

// signal sends a signal to a command and all of its process group.
func (a *agent) signal(r *request) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.commands[r.Target]
	if c == nil {
		return os.ErrProcessDone
	}
	return syscall.Kill(-c.Process.Pid, syscall.Signal(r.Signal))
}

// node starts an agent in namespaces of its own, with the socket that came along, and connects it to the bridge.
func (a *agent) node(r *request, files []*os.File) error {
	if len(files) != 1 || r.Node == nil {
		return errors.New("lab: node needs a socket")
	}
	c := agentCommand(files[0], unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWPID)
	if err := c.Start(); err != nil {
		return fmt.Errorf("lab: start the agent of %s: %w", r.Node.Name, err)
	}
	err := plug(fmt.Sprintf("lab%d", r.ID), r.Node.Interface, c.Process.Pid)
	if err != nil {
		c.Process.Kill()
		c.Wait()
		return err
	}
	a.mu.Lock()
	a.nodes[r.ID] = c
	a.mu.Unlock()
	return nil
}

// closeNode ends a node's agent and with it everything in the node, and waits for that. Its end of the cable goes with its namespace.
func (a *agent) closeNode(id uint64) error {
	a.mu.Lock()
	c := a.nodes[id]
	delete(a.nodes, id)
	a.mu.Unlock()
	if c == nil {
		return errors.New("lab: no such node")
	}
	c.Process.Kill()
	c.Wait()
	if l, err := netlink.LinkByName(fmt.Sprintf("lab%d", id)); err == nil {
		netlink.LinkDel(l)
	}
	return nil
}

// agentCommand is this program as an agent in new namespaces.
func agentCommand(sock *os.File, flags uintptr) *exec.Cmd {
	c := exec.Command("/proc/self/exe")
	c.Args = []string{agentArg}
	c.ExtraFiles = []*os.File{sock}
	c.Stderr = os.Stderr
	// A session of its own: what is typed at the terminal is not for it.
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Setsid: true}
	return c
}

// plug makes a cable between the bridge and the network namespace of a process.
func plug(ours, theirs string, pid int) error {
	b, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("lab: find the bridge: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex, attrs.Flags = ours, b.Attrs().Index, net.FlagUp
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: theirs, PeerNamespace: netlink.NsPid(pid)}); err != nil {
		return fmt.Errorf("lab: make a cable: %w", err)
	}
	return nil
}

// setup prepares the namespaces that this agent is the first process of.
func setup(s *nodeSetup) error {
	if s == nil {
		return errors.New("lab: nothing to set up")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("lab: make mounts private: %w", err)
	}
	// A container may forbid a new /proc; then the one that is there shows other process ids, which nothing here minds.
	unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if s.Interface == bridge {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridge
		// Without one of its own it takes the lowest of its ports': a node that comes or goes would change it, and the others would send to nobody until they
		// ask for it again, seconds later.
		attrs.HardwareAddr = net.HardwareAddr{2, 0, 0, 0, 0, 1}
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("lab: make the bridge: %w", err)
		}
	} else {
		for _, dir := range []string{"/run/dbus", "/run/systemd/resolve", "/run/nscd"} {
			if err := empty(dir); err != nil {
				return err
			}
		}
		if err := privateEtc(s); err != nil {
			return err
		}
	}
	if s.NoIPv6 {
		for _, x := range []string{"all", "default"} {
			err := os.WriteFile("/proc/sys/net/ipv6/conf/"+x+"/disable_ipv6", []byte("1"), 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("lab: disable IPv6: %w", err)
			}
		}
	}
	if err := up("lo", nil); err != nil {
		return err
	}
	if err := up(s.Interface, s.Addrs); err != nil {
		return err
	}
	if s.Gateway.IsValid() {
		if err := netlink.RouteAdd(&netlink.Route{Gw: s.Gateway.AsSlice()}); err != nil {
			return fmt.Errorf("lab: default route of %s: %w", s.Name, err)
		}
	}
	return nil
}

func up(name string, addrs []netip.Prefix) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("lab: find %s: %w", name, err)
	}
	for _, p := range addrs {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return fmt.Errorf("lab: add %v to %s: %w", p, name, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("lab: bring %s up: %w", name, err)
	}
	return nil
}

// empty hides a directory, if there is one, behind an empty one.
func empty(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return nil
	}
	return tmpfs(dir)
}

func tmpfs(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=4m"); err != nil {
		return fmt.Errorf("lab: mount an empty directory on %s: %w", dir, err)
	}
	return nil
}

// privateEtc replaces /etc by a directory of symbolic links to the machine's, which is mounted inside it, but for the files that decide how
// names are resolved. (Mounting over those files alone fails where one is missing or a dangling link.)
func privateEtc(s *nodeSetup) error {
	own := map[string]string{
		"resolv.conf":   s.ResolvConf,
		"nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\nethers: files\nrpc: files\n",
		"hosts":         "127.0.0.1 localhost\n::1 localhost\n" + s.Hosts,
	}
	entries, err := os.ReadDir("/etc")
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	links := map[string]string{}
	for _, e := range entries {
		name := e.Name()
		links[name] = filepath.Join("/etc/.host", name)
		if e.Type()&os.ModeSymlink != 0 { // a relative one means the same in the new /etc
			if links[name], err = os.Readlink(filepath.Join("/etc", name)); err != nil {
				return fmt.Errorf("lab: %w", err)
			}
		}
	}
	old, err := unix.OpenTree(unix.AT_FDCWD, "/etc", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("lab: clone the machine's /etc: %w", err)
	}
	defer unix.Close(old)
	if err := tmpfs("/etc"); err != nil {
		return err
	}
	if err := os.Mkdir("/etc/.host", 0o755); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := unix.MoveMount(old, "", unix.AT_FDCWD, "/etc/.host", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("lab: mount the machine's /etc: %w", err)
	}
	for name, to := range links {
		if _, ok := own[name]; ok {
			continue
		}
		if err := os.Symlink(to, filepath.Join("/etc", name)); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
	}
	for name, text := range own {
		if err := os.WriteFile(filepath.Join("/etc", name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
	}
	return nil
}

// probe does once what a lab needs the kernel for, in namespaces like a lab's. The error's text begins with what failed.
func probe() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if err := unix.Mount("tmpfs", "/etc", "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridge
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	attrs.Name = "probe0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "probe1"}); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("tun: %w", err)
	}
	req, err := unix.NewIfreq("probe2")
	if err != nil {
		return fmt.Errorf("tun: %w", err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("tun: %w", err)
	}
	return nil
}

// readSysctl returns a setting, or "" where the kernel has none of that name.
func readSysctl(name string) string {
	b, _ := os.ReadFile(filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/")))
	return strings.TrimSpace(string(b))
}
