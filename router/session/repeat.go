package session

import (
	"slices"
	"sync"
	"time"

	"lokinetd/router/packet"
)

// What was sent into a dead way is lost, and TCP sends it again after 0.2, 0.4, 0.8, 1.6 ... s: a silence of 1.5 s would last 3. So of each of the latest TCP connections that sends while the
// remote is silent the last packet is kept, and sent again when the way has changed: by what its other end answers to that, TCP goes on at once. A packet twice is nothing to TCP;
// of other protocols that is not known.

const (
	repeatAfter = 50 * time.Millisecond // of silence, until packets are kept
	repeatMost  = 8                     // connections of one session
	repeatTime  = 30 * time.Second      // as long a packet is of use
)

// kept are the packets of a session that would be sent again.
type kept struct {
	mu   sync.Mutex
	list []keptPacket // the oldest first
}

type keptPacket struct {
	ports [4]byte
	b     []byte
	at    int64 // Table.at
}

// keep remembers a TCP packet as it was given to Send.
func (k *kept) keep(p []byte, at int64) {
	head := 40
	if p[0]>>4 == 4 {
		head = 4 * int(p[0]&15)
	}
	if len(p) < head+4 {
		return
	}
	ports := [4]byte(p[head:])
	k.mu.Lock()
	defer k.mu.Unlock()
	n := keptPacket{ports: ports, at: at}
	i := slices.IndexFunc(k.list, func(o keptPacket) bool { return o.ports == ports })
	if i < 0 && len(k.list) == repeatMost {
		i = 0
	}
	if i >= 0 {
		n.b = k.list[i].b[:0]
		k.list = slices.Delete(k.list, i, i+1)
	}
	n.b = append(n.b, p...)
	k.list = append(k.list, n)
}

// forget drops what is too old to be sent again.
func (k *kept) forget(at int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.list = slices.DeleteFunc(k.list, func(o keptPacket) bool { return at-o.at > int64(repeatTime) })
	if len(k.list) == 0 {
		k.list = nil
	}
}

// all gives copies of the packets. They stay: the way that they are sent into now may be as dead as the one before.
func (k *kept) all() []keptPacket {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := slices.Clone(k.list)
	for i := range l {
		l[i].b = slices.Clone(l[i].b)
	}
	return l
}

// repeat sends again what was sent into the way that was left for w.
func (t *Table) repeat(s *session, w *route, now time.Time) {
	at := t.at(now)
	for _, o := range s.kept.all() {
		if at-o.at <= int64(repeatTime) {
			b := packet.Get()
			b.Set(o.b)
			t.transmit(s, w, b, packet.ProtoTCP, now)
		}
	}
}
