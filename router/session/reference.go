package session

import (
	"slices"
	"time"
)

// FollowReference makes a Table keep one session with a remote by the reference implementation's rule: an init replaces whatever there is without a word, what we called
// for included, and is sent on at once. It is for tests of whole networks, before the first session; ours is the rule of protocol/README decision 9.
func (t *Table) FollowReference() {
	t.lock()
	t.replaces = true
	t.unlock()
}

// replace drops all with a remote but s, for which it called.
func (t *Table) replace(s *session, now time.Time) {
	r := s.r
	if r.call != nil {
		t.hangUp(r.call)
	}
	for _, o := range slices.Clone(r.sessions) {
		if o != s {
			t.remove(o, now)
		}
	}
	s.sure.Store(true)
	t.sendOn(s, now)
	t.advance(r, now)
}
