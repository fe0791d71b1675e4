package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// SOCKS5 (RFC 1928), without authentication: CONNECT and UDP ASSOCIATE. There are libraries; those that know UDP ASSOCIATE resolve names by themselves
// unless they are told not to, at several places, and bound neither connections nor time.
//
//	program                          we
//	05 n methods...           ->
//	                          <-     05 00
//	05 command 00 address     ->
//	                          <-     05 reply 00 address
//	bytes, or end of stream   <->    bytes; of an association: datagrams at the address that was replied
//
// An address is 01 IPv4, 03 length name or 04 IPv6, and a port. A datagram begins with 00 00, a fragment's number and an address.

const (
	socksVersion = 5

	methodNone   = 0x00
	methodRefuse = 0xff

	commandConnect   = 1
	commandAssociate = 3

	addressIPv4 = 1
	addressName = 3
	addressIPv6 = 4
)

// What is replied to a request.
const (
	replyOK = iota
	replyFailure
	replyNotAllowed
	replyNetUnreachable
	replyHostUnreachable
	replyRefused
	replyExpired
	replyCommand
	replyAddress
)

var (
	errMethod  = errors.New("socks: the program wants to authenticate itself")
	errVersion = errors.New("socks: not SOCKS5")
	errAddress = errors.New("socks: unknown type of address")
)

// readGreeting reads the first message, not a byte more. Errors: errVersion, errMethod (we know none that the program offers), or of r.
func readGreeting(r io.Reader) error {
	var b [255]byte
	if _, err := io.ReadFull(r, b[:2]); err != nil {
		return err
	}
	if b[0] != socksVersion {
		return errVersion
	}
	methods := b[:b[1]]
	if _, err := io.ReadFull(r, methods); err != nil {
		return err
	}
	for _, m := range methods {
		if m == methodNone {
			return nil
		}
	}
	return errMethod
}

// readRequest reads the second message, not a byte more. Errors: errVersion, errAddress, or of r. The host is not checked; of a name that is no text we could know it is "".
func readRequest(r io.Reader) (command byte, host string, port uint16, err error) {
	var b [3]byte
	if _, err = io.ReadFull(r, b[:]); err != nil {
		return 0, "", 0, err
	}
	if b[0] != socksVersion || b[2] != 0 {
		return 0, "", 0, errVersion
	}
	host, port, err = readAddress(r)
	return b[1], host, port, err
}

// readAddress reads an address, in all messages the same.
func readAddress(r io.Reader) (host string, port uint16, err error) {
	var b [1 + 255 + 2]byte
	if _, err = io.ReadFull(r, b[:1]); err != nil {
		return "", 0, err
	}
	kind, size := b[0], 0
	switch kind {
	case addressIPv4:
		size = 4
	case addressIPv6:
		size = 16
	case addressName:
		if _, err = io.ReadFull(r, b[:1]); err != nil {
			return "", 0, err
		}
		size = int(b[0])
	default:
		return "", 0, errAddress
	}
	if _, err = io.ReadFull(r, b[:size+2]); err != nil {
		return "", 0, err
	}
	port = binary.BigEndian.Uint16(b[size:])
	if kind == addressName {
		return string(b[:size]), port, nil
	}
	a, _ := netip.AddrFromSlice(b[:size])
	return a.String(), port, nil
}

// appendAddress is the opposite of readAddress; host is at most 255 bytes.
func appendAddress(dst []byte, host string, port uint16) []byte {
	if a, err := netip.ParseAddr(host); err != nil || a.Zone() != "" {
		dst = append(append(dst, addressName, byte(len(host))), host...)
	} else if a.Is4() {
		dst = append(append(dst, addressIPv4), a.AsSlice()...)
	} else {
		dst = append(append(dst, addressIPv6), a.AsSlice()...)
	}
	return binary.BigEndian.AppendUint16(dst, port)
}

// parseDatagram splits what a program sends in an association. data is a part of b. A fragment is an error: nobody sends any.
func parseDatagram(b []byte) (host string, port uint16, data []byte, err error) {
	if len(b) < 3 || b[0] != 0 || b[1] != 0 || b[2] != 0 {
		return "", 0, nil, errMalformed
	}
	r := bytesReader{b[3:]}
	host, port, err = readAddress(&r)
	return host, port, r.b, err
}

func appendDatagram(dst []byte, host string, port uint16, data []byte) []byte {
	return append(appendAddress(append(dst, 0, 0, 0), host, port), data...)
}

// bytesReader reads b, which is what is left.
type bytesReader struct{ b []byte }

func (r *bytesReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

// replyOf says an error in the words of SOCKS.
func replyOf(err error) byte {
	switch {
	case err == nil:
		return replyOK
	case errors.Is(err, ErrRefused):
		return replyNotAllowed
	case errors.Is(err, ErrNotFound), errors.Is(err, syscall.EHOSTUNREACH):
		return replyHostUnreachable
	case errors.Is(err, ErrNotReady), errors.Is(err, syscall.ENETUNREACH):
		return replyNetUnreachable
	case errors.Is(err, syscall.ECONNREFUSED):
		return replyRefused
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return replyExpired
	case errors.Is(err, errAddress):
		return replyAddress
	}
	return replyFailure
}

func writeReply(w io.Writer, reply byte, bound netip.AddrPort) error {
	_, err := w.Write(appendAddress([]byte{socksVersion, reply, 0}, bound.Addr().String(), bound.Port()))
	return err
}

var unbound = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)

// serveSOCKS accepts until l is closed.
func (s *Server) serveSOCKS(l *net.TCPListener) error {
	for {
		c, err := s.accept(l)
		if err != nil {
			return fmt.Errorf("proxy: %w", err)
		}
		s.wg.Go(func() {
			defer c.Close()
			s.socks(c)
		})
	}
}

// socks serves one connection.
func (s *Server) socks(c *counted) {
	c.SetDeadline(time.Now().Add(s.patience))
	if err := readGreeting(c); err != nil {
		if errors.Is(err, errMethod) {
			c.Write([]byte{socksVersion, methodRefuse})
		}
		return
	}
	if _, err := c.Write([]byte{socksVersion, methodNone}); err != nil {
		return
	}
	command, host, port, err := readRequest(c)
	switch {
	case errors.Is(err, errAddress):
		writeReply(c, replyAddress, unbound)
		return
	case err != nil:
		return
	}
	c.SetDeadline(time.Time{})
	switch command {
	case commandConnect:
		s.socksConnect(c, host, port)
	case commandAssociate:
		s.associate(c)
	default:
		writeReply(c, replyCommand, unbound)
	}
}

func (s *Server) socksConnect(c *counted, host string, port uint16) {
	t, err := parseHost(host)
	if t.port = port; err == nil && port == 0 {
		err = ErrRefused
	}
	var remote Conn
	if err == nil {
		remote, err = s.dial(s.ctx, t)
	} else {
		s.count.refused.Add(1)
	}
	c.SetWriteDeadline(time.Now().Add(requestTime))
	if werr := writeReply(c, replyOf(err), unbound); err != nil {
		return
	} else if werr != nil {
		s.forget(remote)
		remote.Close()
		return
	}
	c.SetWriteDeadline(time.Time{})
	join(c, remote, idleTime)
	s.forget(remote)
}
