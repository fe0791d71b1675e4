package link

import (
	"errors"
	"syscall"
)

// socketBuffer is what a socket should be able to hold in each direction, in bytes: 90 ms of a gigabit for all connections together. quic-go wants as
// much, and tells it to standard error when it gets less.
const socketBuffer = 7 << 20

// SocketBuffers is what the kernel has granted of the buffers of an endpoint's socket, in bytes. Less than Wanted means that bursts are lost
// in the kernel: net.core.rmem_max and wmem_max are too small, and the program may not override them (CAP_NET_ADMIN).
type SocketBuffers struct{ Receive, Send, Wanted int }

// Enough says whether there is nothing to complain about.
func (s SocketBuffers) Enough() bool { return min(s.Receive, s.Send) >= s.Wanted }

// SocketBuffers asks the kernel. It is an error on a simulated socket, and after Run.
func (q *QUIC) SocketBuffers() (SocketBuffers, error) {
	s := SocketBuffers{Wanted: socketBuffer}
	err := control(q.pc, func(fd int) (err error) {
		if s.Receive, err = syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF); err != nil {
			return err
		}
		s.Send, err = syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF)
		return err
	})
	// The kernel counts its own overhead too, and has doubled what it was asked for.
	s.Receive /= 2
	s.Send /= 2
	return s, err
}

var errSimulated = errors.New("link: not a socket of the system")

func control(pc any, f func(fd int) error) error {
	c, ok := pc.(syscall.Conn)
	if !ok {
		return errSimulated
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	return errors.Join(raw.Control(func(fd uintptr) { inner = f(int(fd)) }), inner)
}

// raiseBuffers gives a socket its buffers, as far as the kernel lets us. A privileged program gets them whatever the system's limits are.
func raiseBuffers(pc any) error {
	return control(pc, func(fd int) error {
		for _, o := range [][2]int{{syscall.SO_RCVBUFFORCE, syscall.SO_RCVBUF}, {syscall.SO_SNDBUFFORCE, syscall.SO_SNDBUF}} {
			if syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, o[0], socketBuffer) == nil {
				continue
			}
			if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, o[1], socketBuffer); err != nil {
				return err
			}
		}
		return nil
	})
}
