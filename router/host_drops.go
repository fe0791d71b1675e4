package router

import (
	"reflect"
	"strings"
	"sync"
	"time"
	"unicode"

	"lokinetd/router/link"
)

// drops says what was dropped since the start and why, for status: "link_full", "session_forged", "tun_in_closed". Only what happened is in it.
// Nothing of the data plane is locked or slowed by it.
func (h *host) drops() map[string]uint64 {
	d := dropped{}
	n := h.node
	d.add("link", n.links.stats(), "Drop")
	d.count("link_no_link", n.peers.DropNoLink())
	if q, ok := n.config.Wire.(*link.QUIC); ok {
		s := q.Stats()
		d.count("link_connection_refused", s.Refused)
		d.count("link_stranger", s.Strangers)
		d.count("link_unsent", s.Unsent)
	}
	if r := n.relay; r != nil {
		d.count("link_cut_off", r.cut.Load())
		d.add("path", r.transit.Stats(), "Dropped")
		d.add("session", r.sessions.Stats(), "Drop")
		return d
	}
	d.add("path", n.client.paths.Stats(), "Dropped")
	for _, e := range n.client.list() {
		d.add("session", e.Sessions.Stats(), "Drop")
	}
	if h.pump != nil {
		s := h.pump.Stats()
		// What the session gave back is counted there; the rest of these were carried.
		s.OutPackets, s.OutBytes, s.OutReturned, s.InPackets, s.InBytes = 0, 0, 0, 0, 0
		d.add("tun_out", s, "Out")
		d.add("tun_in", s, "In")
		d.count("tun_read_failed", s.ReadFailed)
		d.count("tun_write_failed", s.WriteFailed)
	}
	if h.dns != nil {
		s := h.dns.Stats()
		for name, n := range map[string]uint64{"ignored": s.Ignored, "queue_full": s.Dropped, "connection_refused": s.Refusals, "overload": s.Overload, "crashed": s.Crashed} {
			d.count("dns_"+name, n)
		}
	}
	return d
}

// dropped is counts by reason.
type dropped map[string]uint64

func (d dropped) count(name string, n uint64) {
	if n > 0 {
		d[name] += n
	}
}

// add counts those fields of a struct of counters whose names begin with prefix: DropTooLarge of part "link" is "link_too_large".
func (d dropped) add(part string, stats any, prefix string) {
	v := reflect.ValueOf(stats)
	for i := range v.NumField() {
		if name, ok := strings.CutPrefix(v.Type().Field(i).Name, prefix); ok && v.Field(i).Kind() == reflect.Uint64 {
			d.count(part+snake(name), v.Field(i).Uint())
		}
	}
}

// snake turns "TooLarge" into "_too_large" and "ICMPKind" into "_icmp_kind".
func snake(name string) string {
	var b strings.Builder
	r := []rune(name)
	for i, c := range r {
		if unicode.IsUpper(c) && (i == 0 || unicode.IsLower(r[i-1]) || i+1 < len(r) && unicode.IsLower(r[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}

// linkDrops adds up what all connections have dropped, also those that are closed, so that no counter goes back.
type linkDrops struct {
	mu   sync.Mutex
	open map[link.Conn]time.Time // since when
	gone link.ConnStats          // its Drop fields only
}

func (l *linkDrops) opened(c link.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = map[link.Conn]time.Time{}
	}
	l.open[c] = time.Now()
}

func (l *linkDrops) closed(c link.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, c)
	addDrops(&l.gone, c.Stats())
}

// since is when a connection was established; zero when it is closed.
func (l *linkDrops) since(c link.Conn) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open[c]
}

func (l *linkDrops) stats() link.ConnStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.gone
	for c := range l.open {
		addDrops(&s, c.Stats())
	}
	return s
}

func addDrops(sum *link.ConnStats, s link.ConnStats) {
	sum.DropFull += s.DropFull
	sum.DropStanding += s.DropStanding
	sum.DropTooLarge += s.DropTooLarge
	sum.DropClosed += s.DropClosed
	sum.DropInvalid += s.DropInvalid
	sum.DropHalf += s.DropHalf
	sum.DropRequests += s.DropRequests
}
