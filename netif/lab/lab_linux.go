package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Missing is a precondition of a lab that this machine does not meet.
type Missing struct {
	What string // what is missing
	Do   string // what to type
}

func (m *Missing) Error() string { return fmt.Sprintf("lab: %s; %s", m.What, m.Do) }

// Check tries out what a lab needs, in namespaces that are gone when it returns. The error is a *Missing, or one of starting this program.
func Check() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return &Missing{"there is no /dev/net/tun", "type: sudo modprobe tun"}
	case errors.Is(err, os.ErrPermission):
		return &Missing{"/dev/net/tun cannot be opened", "type: sudo chmod 0666 /dev/net/tun"}
	case errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO):
		return &Missing{"the kernel has no TUN driver", "type: sudo modprobe tun"}
	case err != nil:
		return fmt.Errorf("lab: %w", err)
	}
	f.Close()
	c := exec.Command("/proc/self/exe")
	c.Args = []string{probeArg}
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: cloneFlags}
	asRoot(c.SysProcAttr)
	out, err := c.Output()
	if err == nil {
		return nil
	}
	what := strings.TrimSpace(string(out))
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		what = "namespaces: " + err.Error()
	}
	root := "start it as root"
	if os.Geteuid() == 0 {
		root = "start it outside of this container"
	}
	kind, _, _ := strings.Cut(what, ":")
	switch {
	case kind == "bridge", kind == "veth":
		return &Missing{"the kernel has no " + kind + " (" + what + ")", "type: sudo modprobe " + kind}
	case readSysctl("kernel.unprivileged_userns_clone") == "0":
		return &Missing{"unprivileged user namespaces are off", "type: sudo sysctl kernel.unprivileged_userns_clone=1, or " + root}
	case readSysctl("user.max_user_namespaces") == "0":
		return &Missing{"user namespaces are off", "type: sudo sysctl user.max_user_namespaces=10000, or " + root}
	case readSysctl("kernel.apparmor_restrict_unprivileged_userns") == "1":
		return &Missing{"AppArmor restricts user namespaces (" + what + ")", "type: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, or " + root}
	}
	return &Missing{"namespaces cannot be used here (" + what + ")", root}
}

const cloneFlags = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID

// asRoot makes the process root in a user namespace of its own, unless it is root already.
func asRoot(a *syscall.SysProcAttr) {
	if os.Geteuid() == 0 {
		return
	}
	a.Cloneflags |= unix.CLONE_NEWUSER
	a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
}

// NodeConfig describes a node.
type NodeConfig struct {
	Name string // for messages
	// Addrs are the addresses of its only interface, eth0 (in the lab itself: of the bridge, lab0), with the length of the network.
	Addrs      []netip.Prefix
	Gateway    netip.Addr // of the default route; invalid: none
	ResolvConf string     // text of /etc/resolv.conf
	Hosts      string     // more lines for /etc/hosts
	NoIPv6     bool       // IPv6 disabled by sysctl
}

// Lab is a network of nodes. Its methods may be called from several goroutines.
type Lab struct {
	*Node     // the lab itself: where the bridge is
	cmd       *exec.Cmd
	closeOnce sync.Once
	closed    chan struct{}
	closeErr  error
}

// New makes a lab: a bridge with the addresses of c and nothing connected to it; of c only Addrs and NoIPv6 count. Main must have been called.
// Errors that come from what the machine does not allow are explained better by Check.
func New(c NodeConfig) (*Lab, error) {
	w, theirs, err := newWire()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	l := &Lab{cmd: agentCommand(theirs, cloneFlags), closed: make(chan struct{})}
	l.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	asRoot(l.cmd.SysProcAttr)
	started := make(chan error)
	go func() {
		// "Parent" is the thread that started it: that one must live as long as the lab.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- l.cmd.Start()
		<-l.closed
	}()
	if err := <-started; err != nil {
		close(l.closed)
		w.c.Close()
		return nil, fmt.Errorf("lab: start: %w", err)
	}
	l.Node = newNode("lab", w)
	_, err = l.call(request{Op: "setup", Node: &nodeSetup{Name: "lab", Interface: bridge, Addrs: c.Addrs, NoIPv6: c.NoIPv6}})
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Close ends every process in the lab and waits for that; namespaces and interfaces go with them.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() {
		l.w.c.Close() // its agent ends, and the kernel ends the others
		err := l.cmd.Wait()
		close(l.closed)
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			l.closeErr = fmt.Errorf("lab: %w", err)
		}
	})
	return l.closeErr
}

// AddNode makes a node and connects it to the bridge.
func (l *Lab) AddNode(c NodeConfig) (*Node, error) {
	w, theirs, err := newWire()
	if err != nil {
		return nil, err
	}
	s := &nodeSetup{Name: c.Name, Interface: "eth0", Addrs: c.Addrs, Gateway: c.Gateway, ResolvConf: c.ResolvConf, Hosts: c.Hosts, NoIPv6: c.NoIPv6}
	id, err := l.call(request{Op: "node", Node: s}, theirs)
	theirs.Close() // or a node that ends during its setup would leave us waiting
	if err != nil {
		w.c.Close()
		return nil, err
	}
	n := newNode(c.Name, w)
	n.lab, n.id = l, id
	if _, err := n.call(request{Op: "setup", Node: s}); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Node is one machine of a lab.
type Node struct {
	name string
	lab  *Lab   // nil: the lab itself
	id   uint64 // of the request that made it
	w    *wire

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan reply // two replies to exec fit
	dead    error
	pid     int
}

func newNode(name string, w *wire) *Node {
	n := &Node{name: name, w: w, waiting: map[uint64]chan reply{}}
	go n.read()
	return n
}

// read hands replies to those who wait for them, until the agent is gone.
func (n *Node) read() {
	for {
		var r reply
		files, pid, err := n.w.receive(&r)
		n.mu.Lock()
		if err != nil {
			closeAll(files)
			n.dead = fmt.Errorf("lab: node %s is gone", n.name)
			for _, c := range n.waiting {
				close(c)
			}
			clear(n.waiting)
			n.mu.Unlock()
			n.w.c.Close()
			return
		}
		if pid != 0 {
			n.pid = pid
		}
		if c := n.waiting[r.ID]; c == nil {
			closeAll(files)
		} else {
			r.files = files
			c <- r
			if r.Exited || r.Err != "" {
				delete(n.waiting, r.ID)
			}
		}
		n.mu.Unlock()
	}
}

// start sends a request and returns its number and the channel of its replies.
func (n *Node) start(r request, files ...*os.File) (uint64, chan reply, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dead != nil {
		return 0, nil, n.dead
	}
	n.next++
	r.ID = n.next
	c := make(chan reply, 2)
	n.waiting[r.ID] = c
	if err := n.w.send(r, files...); err != nil {
		delete(n.waiting, r.ID)
		return 0, nil, err
	}
	return r.ID, c, nil
}

// first waits for the first reply to a request.
func (n *Node) first(c chan reply) ([]*os.File, error) {
	r, ok := <-c
	if !ok {
		return nil, fmt.Errorf("lab: node %s is gone", n.name)
	}
	if r.Err != "" {
		return nil, fmt.Errorf("%s (node %s)", r.Err, n.name)
	}
	return r.files, nil
}

func (n *Node) call(r request, files ...*os.File) (uint64, error) {
	id, answer, err := n.ask(r, files...)
	closeAll(answer)
	return id, err
}

// ask is call for a request whose reply brings files.
func (n *Node) ask(r request, files ...*os.File) (uint64, []*os.File, error) {
	id, c, err := n.start(r, files...)
	if err != nil {
		return 0, nil, err
	}
	answer, err := n.first(c)
	n.mu.Lock()
	delete(n.waiting, id)
	n.mu.Unlock()
	return id, answer, err
}

// Listen opens a socket in the node, as net.Listen or net.ListenPacket does: to be given to a command in Cmd.ExtraFiles, or for net.FileListener and
// net.FilePacketConn, which then work in the node from outside. Networks: tcp and udp, and the same with 4 or 6.
func (n *Node) Listen(network, address string) (*os.File, error) {
	_, files, err := n.ask(request{Op: "listen", Network: network, Address: address})
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		closeAll(files)
		return nil, fmt.Errorf("lab: node %s sent no socket", n.name)
	}
	return files[0], nil
}

// Close ends every process in the node and takes it off the bridge.
func (n *Node) Close() error {
	if n.lab == nil {
		return errors.New("lab: the lab itself is closed by Lab.Close")
	}
	_, err := n.lab.call(request{Op: "close", Target: n.id})
	return err
}

// Name returns the node's name.
func (n *Node) Name() string { return n.name }

// PID returns the process id of the node's agent as this process sees it.
func (n *Node) PID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pid
}

// Enter returns the command line by which the same user runs a command in the node from a shell of the machine.
func (n *Node) Enter(command ...string) []string {
	args := []string{"nsenter", "-t", strconv.Itoa(n.PID())}
	if os.Geteuid() != 0 {
		args = append(args, "-U", "--preserve-credentials")
	}
	return append(append(args, "-m", "-n", "-p"), command...)
}

// Cmd is a command in a node, in the manner of os/exec. Its fields are set before Start.
type Cmd struct {
	Args   []string
	Env    []string // nil: this process's
	Dir    string   // "": this process's
	Stdin  *os.File // nil: /dev/null
	Stdout io.Writer
	Stderr io.Writer // may be the same as Stdout
	// ExtraFiles are its descriptors from 3 on; they stay the caller's.
	ExtraFiles []*os.File

	node    *Node
	id      uint64
	replies chan reply
	copies  sync.WaitGroup
	ended   bool
	err     error
}

// Command prepares a command; the program is searched for in the machine's PATH.
func (n *Node) Command(args ...string) *Cmd { return &Cmd{Args: args, node: n} }

// Self prepares a command that is this program itself with other arguments.
func (n *Node) Self(args ...string) *Cmd {
	return &Cmd{Args: append([]string{"/proc/self/exe"}, args...), node: n}
}

// ExitError says how a command ended that did not end well.
type ExitError struct {
	Command string
	Code    int            // -1: by a signal
	Signal  syscall.Signal // 0: none
}

func (e *ExitError) Error() string {
	if e.Signal != 0 {
		return fmt.Sprintf("lab: %s: %v", e.Command, e.Signal)
	}
	return fmt.Sprintf("lab: %s: exit status %d", e.Command, e.Code)
}

// Start starts the command.
func (c *Cmd) Start() error {
	if len(c.Args) == 0 || c.replies != nil {
		return errors.New("lab: command without arguments, or started twice")
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	opened := []*os.File{null}
	defer func() { closeAll(opened) }() // ours; the command has copies
	files := []*os.File{null, null, null}
	if c.Stdin != nil {
		files[0] = c.Stdin
	}
	for i, w := range []io.Writer{c.Stdout, c.Stderr} {
		switch f, ok := w.(*os.File); {
		case w == nil:
		case ok:
			files[i+1] = f
		case i == 1 && sameWriter(c.Stdout, c.Stderr):
			files[2] = files[1]
		default:
			r, w2, err := os.Pipe()
			if err != nil {
				return fmt.Errorf("lab: %w", err)
			}
			opened = append(opened, w2)
			files[i+1] = w2
			c.copies.Go(func() {
				io.Copy(w, r)
				r.Close()
			})
		}
	}
	env, dir := c.Env, c.Dir
	if env == nil {
		env = os.Environ()
	}
	if dir == "" {
		if dir, err = os.Getwd(); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
	}
	files = append(files, c.ExtraFiles...)
	if c.id, c.replies, err = c.node.start(request{Op: "exec", Args: c.Args, Env: env, Dir: dir}, files...); err != nil {
		return err
	}
	_, err = c.node.first(c.replies)
	return err
}

// sameWriter reports whether both are one writer; writers that cannot be compared are not.
func sameWriter(a, b io.Writer) bool {
	defer func() { recover() }()
	return a == b
}

// Wait waits until the command has ended and its output is copied; a process that it leaves behind with the same output delays that. The error
// is an *ExitError when it did not end with 0.
func (c *Cmd) Wait() error {
	if c.replies == nil {
		return errors.New("lab: command not started")
	}
	if c.ended {
		return c.err
	}
	c.ended = true
	r, ok := <-c.replies
	c.copies.Wait()
	switch {
	case !ok:
		c.err = fmt.Errorf("lab: %s: the node is gone", c.Args[0])
	case r.Code != 0:
		c.err = &ExitError{strings.Join(c.Args, " "), r.Code, syscall.Signal(r.Signal)}
	}
	return c.err
}

// Run starts the command and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns what it wrote to its standard output.
func (c *Cmd) Output() ([]byte, error) {
	var b bytes.Buffer
	c.Stdout = &b
	err := c.Run()
	return b.Bytes(), err
}

// CombinedOutput runs the command and returns what it wrote to its standard output and error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var b bytes.Buffer
	c.Stdout, c.Stderr = &b, &b
	err := c.Run()
	return b.Bytes(), err
}

// Signal sends a signal to the command and the processes of its group.
func (c *Cmd) Signal(s syscall.Signal) error {
	_, err := c.node.call(request{Op: "signal", Target: c.id, Signal: int(s)})
	return err
}
