package session

import (
	"slices"
	"time"

	"lokinetd/router/key"
)

// Who may have sessions with us, and how many may come, while the Table runs.

// allowed says whether there may be sessions with a remote, or those in which it is proven who the remote is.
func (t *Table) allowed(a key.Address, proven bool) bool {
	return t.c.Only == nil || a.Kind != key.Client || t.c.Only(a.Key, proven)
}

// proves says whether the session's handshake has shown who the remote is.
func (s *session) proves() bool { return s.outbound || !s.keys.old }

// Recheck ends the sessions and calls that Config.Only refuses now. The clients are told. What waits for them fails with ErrNotAllowed.
func (t *Table) Recheck() {
	now := time.Now()
	t.lock()
	defer t.unlock()
	for _, r := range t.remotes {
		if !t.allowed(r.addr, true) {
			t.log.Debug("session ended: the remote is not allowed any more", "remote", r.addr)
			t.dismiss(r, ErrNotAllowed, now)
			continue
		}
		for _, s := range slices.Clone(r.sessions) {
			if !s.proves() && !t.allowed(r.addr, false) {
				t.signal(s, methodClose, nil)
				t.remove(s, now)
			}
		}
		t.prune(r)
	}
}

// SetLimits changes how many inbound sessions there may be and how many inits a second are opened (Limits); 0 is the default. Sessions that are there stay.
func (t *Table) SetLimits(sessions, handshakes int) {
	t.lock()
	defer t.unlock()
	l := t.c.Limits
	l.Sessions, l.Handshakes = sessions, handshakes
	l = l.withDefaults()
	if l == t.c.Limits {
		return // a gate that is made anew would let a burst in
	}
	if l.Handshakes != t.c.Limits.Handshakes {
		t.gate.Store(newGate(l.Handshakes))
	}
	t.c.Limits = l
}
