package link

import (
	"errors"
	"fmt"
	"strconv"

	"lokinetd/router/bt"
)

// The request stream as pure functions (protocol 2 section 5.2): bytes in, messages out and back. A message is a bt string that holds one bt list.

// MaxMessage bounds a message: its length prefix when it is read, all of its bytes when it is written.
const MaxMessage = 10_000_000

// nudge is a reply to a request that was never made, which the peer ignores. It makes stream 0 visible to the peer, since quic-go
// cannot send an empty frame, and keeps a connection alive with a packet that is large enough for a stateless reset (protocol 5 sections 5.2, 5.3).
const nudge = "11:l1:Ri-1e0:e"

var (
	errPrefix = errors.New("link: stream: malformed length prefix")
	errLong   = errors.New("link: stream: message announced that is too long")
)

// deframer cuts a stream into messages, wherever the reads end. It keeps no more than twice what has arrived of the message being read,
// whatever length that message announced. The zero value is ready.
type deframer struct {
	digits int    // read so far of the length prefix; its value bounds them to 8
	want   int    // value of those digits, then the length of the body; 0 between messages
	inBody bool   // the prefix is complete
	body   []byte // what has arrived of the body, when a read ended inside it
}

// feed takes the next bytes of the stream, which are not kept, and calls yield for each message that is complete; the message belongs to
// yield. After an error, of the stream or of yield, the deframer is not usable any more.
func (d *deframer) feed(b []byte, yield func(msg []byte) error) error {
	for len(b) > 0 {
		if !d.inBody {
			c := b[0]
			b = b[1:]
			switch {
			case c == ':' && d.digits > 0:
				d.inBody = d.want > 0 // "0:" is an empty message, ignored
				d.digits = 0
			case c < '0' || c > '9' || d.digits > 0 && d.want == 0:
				return errPrefix
			default:
				if d.want = d.want*10 + int(c-'0'); d.want > MaxMessage {
					return errLong
				}
				d.digits++
			}
			continue
		}
		n := min(d.want-len(d.body), len(b))
		d.grow(n)
		d.body = append(d.body, b[:n]...)
		b = b[n:]
		if len(d.body) < d.want {
			break
		}
		msg := d.body
		d.body, d.want, d.inBody = nil, 0, false
		if err := yield(msg); err != nil {
			return err
		}
	}
	return nil
}

// grow makes room for n more bytes of the body: doubling, but never beyond the body's end.
func (d *deframer) grow(n int) {
	if need := len(d.body) + n; need > cap(d.body) {
		d.body = append(make([]byte, 0, min(d.want, max(need, 2*cap(d.body)))), d.body...)
	}
}

// held is how many bytes of memory the message being read takes.
func (d *deframer) held() int { return cap(d.body) }

// Types of messages. Any other is a typeOther when read and is never written.
const (
	typeRequest = 'C'
	typeReply   = 'R'
	typeError   = 'E'
	typeOther   = 0
)

// message is one decoded message. Name is set for requests only.
type message struct {
	Type byte
	ID   int64
	Name string
	Body []byte
}

// parseMessage decodes the list inside a message. Body is borrowed from b. A type that is none of the three is no error: the list must
// have the form of a reply then.
func parseMessage(b []byte) (m message, err error) {
	l := bt.ReadList(b)
	typ := l.Bytes()
	if len(typ) == 1 {
		switch typ[0] {
		case typeRequest, typeReply, typeError:
			m.Type = typ[0]
		}
	}
	m.ID = l.Int()
	if m.Type == typeRequest {
		m.Name = string(l.Bytes())
	}
	m.Body = l.Bytes()
	if l.Next() {
		return message{}, errors.New("link: stream: message has trailing elements")
	}
	if err := l.Finish(); err != nil {
		return message{}, fmt.Errorf("link: stream: message: %w", err)
	}
	return m, nil
}

// appendMessage appends m with its length prefix. It returns dst unchanged and ErrTooLarge when that would be more than MaxMessage bytes.
func appendMessage(dst []byte, m *message) ([]byte, error) {
	size := listSize(m)
	if framedSize(size) > MaxMessage {
		return dst, ErrTooLarge
	}
	dst = strconv.AppendInt(dst, int64(size), 10)
	dst = append(dst, ':', 'l', '1', ':', m.Type)
	dst = bt.AppendInt(dst, m.ID)
	if m.Type == typeRequest {
		dst = bt.AppendString(dst, m.Name)
	}
	dst = bt.AppendBytes(dst, m.Body)
	return append(dst, 'e'), nil
}

// framedSize is the number of bytes of a list of that size with its length prefix.
func framedSize(list int) int { return decimals(list) + 1 + list }

// listSize is the number of bytes of m's list.
func listSize(m *message) int {
	var id [20]byte
	n := len("l1:C") + len("ie") + len(strconv.AppendInt(id[:0], m.ID, 10)) + len("e")
	n += decimals(len(m.Body)) + 1 + len(m.Body)
	if m.Type == typeRequest {
		n += decimals(len(m.Name)) + 1 + len(m.Name)
	}
	return n
}

func decimals(n int) int {
	d := 1
	for ; n >= 10; n /= 10 {
		d++
	}
	return d
}
