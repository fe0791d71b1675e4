package oxend

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// OxenMQ on one connection. The parts of its messages:
//
//	HI                         ours, the first; answered by HELLO
//	COMMAND TAG DATA...        a request of ours; the tag is ours to choose
//	REPLY TAG DATA...          its reply
//	CODE REPLY TAG             its refusal: FORBIDDEN, UNKNOWNCOMMAND and the like
//	CODE COMMAND               a refusal of something that has no reply
//	notify.block HEIGHT HASH   after sub.block: there is a new block
//	BYE                        the end

const (
	handshakeTimeout = 10 * time.Second // until HELLO
	writeTimeout     = 10 * time.Second
	silence          = 2 * time.Minute // without a byte of oxend, which replies to a ping every 30 s: the connection is of no use
	maxWaiting       = 256             // requests without a reply
	outQueue         = 2 * maxWaiting
)

var (
	errClosed = errors.New("oxend: the connection has ended")
	errBusy   = errors.New("oxend: too many requests wait for a reply")
)

// RefusedError is oxend's refusal of a request.
type RefusedError struct {
	Command string
	Code    string // FORBIDDEN, FORBIDDEN_SN, NOT_A_SERVICE_NODE, UNKNOWNCOMMAND or NO_REPLY_TAG
}

func (e *RefusedError) Error() string { return fmt.Sprintf("oxend: %s: %s", e.Command, e.Code) }

func refusal(code string) bool {
	switch code {
	case "FORBIDDEN", "FORBIDDEN_SN", "NOT_A_SERVICE_NODE", "UNKNOWNCOMMAND", "NO_REPLY_TAG":
		return true
	}
	return false
}

// conn is one connection. Its reader is serve's goroutine, its writer one of its own, so that neither end can hold up the other.
type conn struct {
	nc    net.Conn
	out   chan []byte
	block func()        // there is a new block
	up    func()        // oxend has said HELLO
	done  chan struct{} // closed when it has ended

	mu      sync.Mutex
	lastTag uint64
	waiting map[uint64]*waiter
}

// waiter is a request that waits. parts and err are set before done is closed.
type waiter struct {
	command string
	parts   [][]byte
	err     error
	done    chan struct{}
}

func newConn(nc net.Conn, up, block func()) *conn {
	return &conn{nc: nc, out: make(chan []byte, outQueue), up: up, block: block, done: make(chan struct{}), waiting: map[uint64]*waiter{}}
}

// serve runs the connection until ctx ends or it fails, and says why. Requests that wait then fail.
func (k *conn) serve(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer k.end()
	defer context.AfterFunc(ctx, func() { k.nc.Close() })()
	wg.Go(k.write)
	k.nc.SetReadDeadline(time.Now().Add(handshakeTimeout))
	k.send(appendGreeting(nil))
	var p peer
	hello := false
	b := make([]byte, 16<<10)
	for {
		n, err := k.nc.Read(b)
		switch {
		case err != nil && !hello: // libzmq closes without a word on whoever does not come with the mechanism that it wants
			return fmt.Errorf("oxend: the connection ended before it was one (is it a plain socket of oxend's, without CURVE?): %w", err)
		case err != nil:
			return fmt.Errorf("oxend: the connection ended: %w", err)
		case hello:
			k.nc.SetReadDeadline(time.Now().Add(silence))
		}
		p.feed(b[:n])
		for {
			e, ok, err := p.next()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			switch {
			case e.greeted:
				k.send(appendReady(nil))
			case e.ready:
				k.send(appendMessage(nil, []byte("HI")))
			case e.ping:
				k.send(appendCommand(nil, "PONG", e.context))
			case string(e.message[0]) == "HELLO" && !hello:
				hello = true
				k.nc.SetReadDeadline(time.Now().Add(silence))
				k.up()
			case string(e.message[0]) == "BYE":
				return errors.New("oxend: it says BYE")
			default:
				k.message(e.message)
			}
		}
	}
}

// message takes a message of oxend. One that we cannot make sense of is ignored, as OxenMQ does.
func (k *conn) message(parts [][]byte) {
	switch what := string(parts[0]); {
	case what == "REPLY" && len(parts) >= 2:
		k.settle(parts[1], parts[2:], "")
	case refusal(what) && len(parts) == 3 && string(parts[1]) == "REPLY":
		k.settle(parts[2], nil, what)
	case what == "notify.block" && len(parts) == 3:
		k.block()
	}
}

// settle ends the request of a tag, if it still waits: with its reply, or with the code of a refusal.
func (k *conn) settle(tag []byte, parts [][]byte, code string) {
	if len(tag) != 8 {
		return
	}
	t := binary.BigEndian.Uint64(tag)
	k.mu.Lock()
	w := k.waiting[t]
	delete(k.waiting, t)
	k.mu.Unlock()
	if w == nil {
		return
	}
	if w.parts = parts; code != "" {
		w.err = &RefusedError{w.command, code}
	}
	close(w.done)
}

// request sends a request and waits for its reply.
func (k *conn) request(ctx context.Context, command string, data ...[]byte) ([][]byte, error) {
	w := &waiter{command: command, done: make(chan struct{})}
	k.mu.Lock()
	if len(k.waiting) >= maxWaiting {
		k.mu.Unlock()
		return nil, errBusy
	}
	k.lastTag++
	tag := k.lastTag
	k.waiting[tag] = w
	k.mu.Unlock()
	k.send(appendMessage(nil, append([][]byte{[]byte(command), binary.BigEndian.AppendUint64(nil, tag)}, data...)...))
	select {
	case <-w.done:
		return w.parts, w.err
	case <-k.done:
		return nil, errClosed
	case <-ctx.Done():
		k.mu.Lock()
		delete(k.waiting, tag)
		k.mu.Unlock()
		return nil, fmt.Errorf("oxend: no reply to %s: %w", command, ctx.Err())
	}
}

// send queues bytes. An oxend that does not read for so long that the queue is full is as good as gone.
func (k *conn) send(b []byte) {
	select {
	case k.out <- b:
	default:
		k.nc.Close()
	}
}

// write is the only one to write to the connection. When it cannot, it closes it, and the reader ends.
func (k *conn) write() {
	for {
		select {
		case b := <-k.out:
			k.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := k.nc.Write(b); err != nil {
				k.nc.Close()
				return
			}
		case <-k.done:
			return
		}
	}
}

// end makes writer and requests end.
func (k *conn) end() {
	close(k.done)
	k.nc.Close()
}
