package netif

import (
	"context"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

// MemTUN is a TUN in memory, for tests without root: what a test sends is read by the pump, what the pump writes the test receives. It fits TUN
// and wireguard's tun.Device. It holds at most 1024 packets each way and drops what comes on top, as a device does. Safe for concurrent
// use, also in a testing/synctest bubble.
type MemTUN struct {
	toPump, fromPump chan []byte
	batch            int
	closed           chan struct{}
	closeOnce        sync.Once
	events           chan tun.Event

	mu       sync.Mutex
	deadline chan struct{} // closed when the deadline has passed
	timer    *time.Timer
}

// NewMemTUN makes a TUN that reads and writes up to batch packets in one call.
func NewMemTUN(batch int) *MemTUN {
	return &MemTUN{toPump: make(chan []byte, 1024), fromPump: make(chan []byte, 1024), batch: batch, closed: make(chan struct{}),
		events: make(chan tun.Event), deadline: make(chan struct{})}
}

// Send hands a packet to the reader, as the host's kernel does. It keeps a copy.
func (m *MemTUN) Send(p []byte) {
	select {
	case m.toPump <- append([]byte(nil), p...):
	default:
	}
}

// Receive waits for a packet that was written and returns it.
func (m *MemTUN) Receive(ctx context.Context) ([]byte, error) {
	select {
	case p := <-m.fromPump:
		return p, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Read implements TUN.
func (m *MemTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	m.mu.Lock()
	deadline := m.deadline
	m.mu.Unlock()
	n := 0
	put := func(p []byte) {
		sizes[n] = copy(bufs[n][offset:], p)
		n++
	}
	select {
	case <-m.closed:
		return 0, os.ErrClosed
	case <-deadline:
		return 0, os.ErrDeadlineExceeded
	default:
	}
	select {
	case <-m.closed:
		return 0, os.ErrClosed
	case <-deadline:
		return 0, os.ErrDeadlineExceeded
	case p := <-m.toPump:
		put(p)
	}
	for n < min(len(bufs), m.batch) {
		select {
		case p := <-m.toPump:
			put(p)
			continue
		default:
		}
		break
	}
	return n, nil
}

// Write implements TUN.
func (m *MemTUN) Write(bufs [][]byte, offset int) (n int, err error) {
	select {
	case <-m.closed:
		return 0, os.ErrClosed
	default:
	}
	for _, b := range bufs {
		select {
		case m.fromPump <- append([]byte(nil), b[offset:]...):
			n += len(b) - offset
		default:
		}
	}
	return n, nil
}

// SetReadDeadline implements TUN.
func (m *MemTUN) SetReadDeadline(t time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.timer != nil {
		m.timer.Stop()
		m.timer = nil
	}
	select {
	case <-m.deadline:
		m.deadline = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return nil
	}
	passed := m.deadline
	if d := time.Until(t); d > 0 {
		m.timer = time.AfterFunc(d, func() { close(passed) })
	} else {
		close(passed)
	}
	return nil
}

// Close implements tun.Device. Reads and writes fail with os.ErrClosed from now on.
func (m *MemTUN) Close() error {
	m.closeOnce.Do(func() { close(m.closed); close(m.events) })
	return nil
}

// BatchSize implements TUN.
func (m *MemTUN) BatchSize() int { return m.batch }

// MTU implements tun.Device.
func (m *MemTUN) MTU() (int, error) { return MTU, nil }

// Name implements tun.Device.
func (m *MemTUN) Name() (string, error) { return "mem", nil }

// File implements tun.Device: there is none.
func (m *MemTUN) File() *os.File { return nil }

// Events implements tun.Device: there are none.
func (m *MemTUN) Events() <-chan tun.Event { return m.events }

var (
	_ TUN        = (*MemTUN)(nil)
	_ tun.Device = (*MemTUN)(nil)
)
