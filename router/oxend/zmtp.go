package oxend

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// ZMTP 3 (RFC 23, RFC 37), the side of a DEALER with the NULL mechanism:
//
//  1. Both send a greeting of 64 bytes: signature, version, mechanism.
//  2. Both send the command READY with the type of their socket. A peer that refuses us sends ERROR.
//  3. Messages of one or more frames go both ways; commands may stand between two of them: PING wants a PONG, others are ignored.
//
// A frame is a byte of flags, a length in one byte or in eight, and a body.

const (
	greetingLen = 64
	flagMore    = 1 // another frame of the same message follows
	flagLong    = 2 // the length has eight bytes
	flagCommand = 4
)

// Bounds of what is taken. The longest message is the list of all relays, some 150 bytes for each.
const (
	maxMessage = 16 << 20 // bytes of a message's frames together
	maxParts   = 32
	maxCommand = 4 << 10 // bytes
	maxContext = 16      // bytes of a PING that the PONG repeats (RFC 37)
)

// appendGreeting appends our greeting.
func appendGreeting(dst []byte) []byte {
	var g [greetingLen]byte
	g[0], g[9] = 0xff, 0x7f
	g[10], g[11] = 3, 1
	copy(g[12:32], "NULL")
	return append(dst, g[:]...)
}

// checkGreeting checks a peer's greeting, greetingLen bytes. Of the signature's eight bytes in the middle each version of libzmq makes something else.
func checkGreeting(g []byte) error {
	switch mechanism := string(bytes.TrimRight(g[12:32], "\x00")); {
	case g[0] != 0xff || g[9]&1 == 0:
		return errors.New("oxend: the other end does not speak ZeroMQ")
	case g[10] < 3:
		return fmt.Errorf("oxend: the other end speaks version %d of ZeroMQ's protocol, want 3", g[10])
	case mechanism != "NULL":
		return fmt.Errorf("oxend: the other end wants ZeroMQ's mechanism %.20q, want NULL", mechanism)
	}
	return nil
}

// appendFrame appends a frame; flags without flagLong.
func appendFrame(dst []byte, flags byte, body []byte) []byte {
	if len(body) < 256 {
		dst = append(dst, flags, byte(len(body)))
	} else {
		dst = append(dst, flags|flagLong)
		dst = binary.BigEndian.AppendUint64(dst, uint64(len(body)))
	}
	return append(dst, body...)
}

// appendMessage appends a message of these parts, at least one.
func appendMessage(dst []byte, parts ...[]byte) []byte {
	for i, p := range parts {
		flags := byte(flagMore)
		if i == len(parts)-1 {
			flags = 0
		}
		dst = appendFrame(dst, flags, p)
	}
	return dst
}

// appendCommand appends a command, data being what follows its name.
func appendCommand(dst []byte, name string, data []byte) []byte {
	body := append([]byte{byte(len(name))}, name...)
	return appendFrame(dst, flagCommand, append(body, data...))
}

// appendReady appends the command that ends our handshake.
func appendReady(dst []byte) []byte {
	data := appendProperty(nil, "Socket-Type", "DEALER")
	return appendCommand(dst, "READY", appendProperty(data, "Identity", ""))
}

func appendProperty(dst []byte, name, value string) []byte {
	dst = append(append(dst, byte(len(name))), name...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(value)))
	return append(dst, value...)
}

// frame is one frame; body is borrowed from what it was read from.
type frame struct {
	more, command bool
	body          []byte
}

var (
	errFlags  = errors.New("oxend: frame with impossible flags")
	errTooBig = errors.New("oxend: message is too long")
)

// parseFrame reads the frame at the start of b, whose body may have limit bytes; a command never more than maxCommand. n is its length with all; 0 without an error: b is only
// its beginning.
func parseFrame(b []byte, limit int) (f frame, n int, err error) {
	if len(b) == 0 {
		return f, 0, nil
	}
	flags := b[0]
	f.more, f.command = flags&flagMore != 0, flags&flagCommand != 0
	if flags&^(flagMore|flagLong|flagCommand) != 0 || f.more && f.command {
		return f, 0, errFlags
	}
	if f.command {
		limit = maxCommand
	}
	head, size := 2, uint64(0)
	if flags&flagLong != 0 {
		head = 9
	}
	switch {
	case len(b) < head:
		return f, 0, nil
	case head == 2:
		size = uint64(b[1])
	default:
		size = binary.BigEndian.Uint64(b[1:])
	}
	if size > uint64(limit) {
		return f, 0, errTooBig
	}
	n = head + int(size)
	if len(b) < n {
		return f, 0, nil
	}
	f.body = b[head:n]
	return f, n, nil
}

// event is what a peer's bytes say. One of the fields is set.
type event struct {
	greeted bool
	ready   bool
	ping    bool
	context []byte   // of a ping
	message [][]byte // its parts; they belong to who takes the event
}

// peer reads a peer's bytes, in pieces of any size. After an error it is of no use.
type peer struct {
	buf            []byte // what has not been read
	greeted, ready bool
	parts          [][]byte // of the message that is not complete
	size           int      // their bytes
}

// feed takes more bytes, and keeps none of b.
func (p *peer) feed(b []byte) { p.buf = append(p.buf, b...) }

// next gives the next event; ok is false when more bytes are needed.
func (p *peer) next() (e event, ok bool, err error) {
	if !p.greeted {
		if len(p.buf) < greetingLen {
			return e, false, nil
		}
		if err := checkGreeting(p.buf[:greetingLen]); err != nil {
			return e, false, err
		}
		p.cut(greetingLen)
		p.greeted = true
		return event{greeted: true}, true, nil
	}
	for {
		f, n, err := parseFrame(p.buf, maxMessage-p.size)
		if n == 0 || err != nil {
			return e, false, err
		}
		switch {
		case f.command && len(p.parts) > 0:
			return e, false, errors.New("oxend: command inside a message")
		case f.command:
			e, ok, err = p.command(f.body)
		case !p.ready:
			return e, false, errors.New("oxend: message before the handshake")
		case len(p.parts) == maxParts:
			return e, false, errTooBig
		default:
			p.parts = append(p.parts, bytes.Clone(f.body))
			p.size += len(f.body)
			if ok = !f.more; ok {
				e.message = p.parts
				p.parts, p.size = nil, 0
			}
		}
		if err != nil {
			return e, false, err
		}
		p.cut(n)
		if ok {
			return e, true, nil
		}
	}
}

// cut forgets the first n bytes. The buffer of a long message is not kept for short ones.
func (p *peer) cut(n int) {
	p.buf = p.buf[n:]
	if len(p.buf) == 0 {
		p.buf = nil
	}
}

// command reads a command. One that we do not know says nothing.
func (p *peer) command(body []byte) (e event, ok bool, err error) {
	if len(body) == 0 || len(body) < 1+int(body[0]) {
		return e, false, errors.New("oxend: command without a name")
	}
	name, data := string(body[1:1+body[0]]), body[1+body[0]:]
	switch {
	case name == "ERROR":
		if len(data) > 0 {
			data = data[1:]
		}
		return e, false, fmt.Errorf("oxend: the other end refuses us: %.100q", data)
	case name == "READY" && !p.ready:
		if err := checkReady(data); err != nil {
			return e, false, err
		}
		p.ready = true
		return event{ready: true}, true, nil
	case !p.ready:
		return e, false, fmt.Errorf("oxend: command %.20q in the handshake", name)
	case name == "PING":
		if len(data) < 2 || len(data) > 2+maxContext {
			return e, false, errors.New("oxend: PING of a wrong length")
		}
		return event{ping: true, context: bytes.Clone(data[2:])}, true, nil
	}
	return e, false, nil
}

// checkReady checks a peer's properties: it must be a ROUTER.
func checkReady(data []byte) error {
	for len(data) > 0 {
		n := int(data[0])
		if len(data) < 1+n+4 {
			break
		}
		name, value := string(data[1:1+n]), data[1+n+4:]
		size := binary.BigEndian.Uint32(data[1+n:])
		if uint64(size) > uint64(len(value)) {
			break
		}
		if strings.EqualFold(name, "Socket-Type") {
			if value = value[:size]; string(value) != "ROUTER" {
				return fmt.Errorf("oxend: the other end is a %.20q, want a ROUTER", value)
			}
			return nil
		}
		data = value[size:]
	}
	return errors.New("oxend: the other end does not say what it is")
}
