package session

import (
	"time"

	"lokinetd/router/key"
)

// Who may have sessions with us, and how many may come, while the Table runs.

// allowed says whether there may be sessions with a remote.
func (t *Table) allowed(a key.Address) bool {
	return t.c.Only == nil || a.Kind != key.Client || t.c.Only(a.Key)
}

// Recheck ends the sessions and calls with all clients that Config.Only refuses now. They are told. What waits for them fails with ErrNotAllowed.
func (t *Table) Recheck() {
	now := time.Now()
	t.lock()
	defer t.unlock()
	for _, r := range t.remotes {
		if !t.allowed(r.addr) {
			t.log.Debug("session ended: the remote is not allowed any more", "remote", r.addr)
			t.dismiss(r, ErrNotAllowed, now)
		}
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
		t.gate.set(l.Handshakes)
	}
	t.c.Limits = l
}
