package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// The program and its agents speak JSON over a socket pair that keeps message boundaries. Descriptors travel beside the message.

// maxMessage bounds one message: the longest is a command with its environment.
const maxMessage = 1 << 20

// request is what an agent is told. ID comes back in each reply to it.
type request struct {
	ID   uint64
	Op   string // "setup", "node", "close", "exec", "signal", "listen"
	Node *nodeSetup
	// exec: descriptors 0, 1, 2 and any more travel along.
	Args, Env []string
	Dir       string
	// signal: to the command that request Target started; close: the node that it made.
	Target uint64
	Signal int
	// listen: as for net.Listen and net.ListenPacket. The socket travels along with the reply.
	Network, Address string
}

// nodeSetup is all that an agent needs to make a node and the agent in it to set it up.
type nodeSetup struct {
	Name       string
	Interface  string // the node's end of the bridge's cable; in the lab itself the bridge
	Addrs      []netip.Prefix
	Gateway    netip.Addr
	ResolvConf string
	Hosts      string
	NoIPv6     bool
}

type reply struct {
	ID     uint64
	Err    string
	Exited bool // the second reply to exec: the command has ended
	Code   int  // its exit code; -1: ended by Signal
	Signal int

	files []*os.File // that came along; whoever takes the reply owns them
}

type wire struct{ c *net.UnixConn }

// newWire makes a wire and the file to give to the agent at its other end.
func newWire() (*wire, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("lab: socket pair: %w", err)
	}
	for _, fd := range fds {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, maxMessage)
	}
	// The agent's first message then tells its process id as this process sees it.
	unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	theirs := os.NewFile(uintptr(fds[1]), "lab agent")
	ours := os.NewFile(uintptr(fds[0]), "lab")
	w, err := wireFrom(ours)
	if err != nil {
		theirs.Close()
	}
	return w, theirs, err
}

// wireFrom makes a wire of a socket, which it closes.
func wireFrom(f *os.File) (*wire, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("lab: not a unix socket")
	}
	return &wire{u}, nil
}

// send sends a message and copies of the files.
func (w *wire) send(m any, files ...*os.File) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if len(b) > maxMessage/4 {
		return fmt.Errorf("lab: message of %d bytes is too long", len(b))
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := w.c.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

// receive waits for a message; it returns the files that came along and the sender's process id, 0 if not known.
func (w *wire) receive(m any) (files []*os.File, pid int, err error) {
	b, oob := make([]byte, maxMessage), make([]byte, 512)
	n, oobn, _, _, err := w.c.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, 0, fmt.Errorf("lab: %w", err)
	}
	if n == 0 {
		return nil, 0, net.ErrClosed
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, 0, fmt.Errorf("lab: %w", err)
	}
	for _, x := range msgs {
		if fds, err := unix.ParseUnixRights(&x); err == nil {
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				files = append(files, os.NewFile(uintptr(fd), "passed"))
			}
		} else if c, err := unix.ParseUnixCredentials(&x); err == nil {
			pid = int(c.Pid)
		}
	}
	if err := json.Unmarshal(b[:n], m); err != nil {
		return files, pid, fmt.Errorf("lab: %w", err)
	}
	return files, pid, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
