package netif

import (
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/packet"
)

// backlog holds packets from the TUN until the links have room. Left in the TUN they would wait in one row, hundreds of them behind a copy: here a question passes what
// is copied, and who copies learns early that he sends too much ([packet.Fair]). It is also what lets the TUN be read while packets are sealed.
type backlog struct {
	wake chan struct{} // of capacity 1; filled by put

	mu   sync.Mutex
	fair *packet.Fair
	busy atomic.Bool // packets wait, or were taken and have not been sent; changed under mu
}

const (
	// backlogBytes is 80 ms at 200 Mbit/s: more is lost before it is old.
	backlogBytes = 2_000_000
	backlogCount = 2048
	// backlogBatch is how many packets are sent between two looks at the links' room.
	backlogBatch = 16
)

func newBacklog() *backlog {
	return &backlog{wake: make(chan struct{}, 1), fair: packet.NewFair(backlogBytes, backlogCount)}
}

// put takes ownership of a batch and says how many packets were dropped for it.
func (l *backlog) put(batch []*packet.Buffer, now time.Time) (dropped int) {
	l.mu.Lock()
	l.busy.Store(true)
	for _, b := range batch {
		dropped += l.fair.Push(b, flowOf(b.Data), now)
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return dropped
}

// take moves the next packets to dst; they are the caller's. None: all that were taken have been sent, says the caller by asking.
func (l *backlog) take(dst []*packet.Buffer, now time.Time) (n, stood int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n, stood = l.fair.Pop(dst, now); n == 0 {
		l.busy.Store(false)
	}
	return n, stood
}

// drop drops all; nobody takes at the time.
func (l *backlog) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fair.Clear()
	l.busy.Store(false)
}

// drain sends what is put, until ctx ends.
func (p *Pump) drain(ctx context.Context) {
	var batch [backlogBatch]*packet.Buffer
	for {
		p.Links.AwaitRoom(ctx, roomWait)
		now := time.Now()
		n, stood := p.backlog.take(batch[:], now)
		p.count.addN(outStanding, stood)
		if n == 0 {
			select {
			case <-p.backlog.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		p.Links.Cork()
		for i, b := range batch[:n] {
			batch[i] = nil
			p.out(b, now)
		}
		p.Links.Uncork()
	}
}

// flowOf tells flows apart by addresses, protocol and ports, as far as they are where they usually are.
func flowOf(p []byte) (flow uint64) {
	const mix = 0x9e3779b97f4a7c15
	ports := 0
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		flow = binary.LittleEndian.Uint64(p[12:]) ^ uint64(p[9])<<56
		if p[6]&0x3f|p[7] == 0 { // no fragment
			ports = int(p[0]&15) * 4
		}
	case len(p) >= 40:
		for i := 8; i < 40; i += 8 {
			flow = (flow ^ binary.LittleEndian.Uint64(p[i:])) * mix
		}
		flow ^= uint64(p[6]) << 56
		ports = 40
	}
	if ports > 0 && len(p) >= ports+4 {
		flow ^= uint64(binary.LittleEndian.Uint32(p[ports:])) * mix
	}
	return flow
}
