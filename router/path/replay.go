package path

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"lokinetd/router/seal"
)

// What is recognised when it comes a second time. Of the rest, sessions recognise their own messages; a relay cannot know a datagram, which it only passes on, and what has been
// passed on twice the sessions drop.

// replies remembers the nonces of replies to requests over a path. The terminal draws one for each (section 3.2), but nothing in a reply says which request it answers: a
// relay of the path could repeat one for ever, and a path that is dead would go on answering pings. The zero value is ready.
type replies struct {
	mu    sync.Mutex
	marks []uint64 // the first 8 bytes of each; a ring when it has maxReplies
	at    int
}

// maxReplies is more than a path gets in its life by pings.
const maxReplies = 1024

// first says whether a reply, which has been opened, has not come before.
func (r *replies) first(n *seal.Nonce) bool {
	m := binary.LittleEndian.Uint64(n[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains(r.marks, m) {
		return false
	}
	if len(r.marks) < maxReplies {
		r.marks = append(r.marks, m)
	} else {
		r.marks[r.at] = m
		r.at = (r.at + 1) % maxReplies
	}
	return true
}

// usedFrames remembers build frames that have become hops, for the time in which the path may live and longer: who kept a copy could build the path again after its end,
// and see where what he sends goes. A frame is its ephemeral key and nonce, from which its key is derived. After maxFrames more, each of which has cost a
// key agreement, an old one is forgotten sooner. The zero value is ready. Under Relay.mu.
type usedFrames struct {
	seed     maphash.Seed // marks are chosen by strangers
	now, old map[uint64]struct{}
	since    time.Time
}

const maxFrames = 1 << 16

// mark is the one of a build message's first frame; 0 for what is none.
func (u *usedFrames) mark(msg []byte) uint64 {
	if len(msg) != buildSize {
		return 0
	}
	if u.seed == (maphash.Seed{}) {
		u.seed = maphash.MakeSeed()
	}
	return maphash.Bytes(u.seed, msg[:frameSize-innerSize-len("1:x93:")-1])
}

func (u *usedFrames) has(mark uint64) bool {
	if mark == 0 {
		return false
	}
	_, now := u.now[mark]
	_, old := u.old[mark]
	return now || old
}

func (u *usedFrames) add(mark uint64, at time.Time) {
	if u.now == nil || len(u.now) >= maxFrames || at.Sub(u.since) >= maxLifetime*time.Second {
		if at.Sub(u.since) >= 2*maxLifetime*time.Second {
			u.now = nil
		}
		u.now, u.old, u.since = make(map[uint64]struct{}), u.now, at
	}
	u.now[mark] = struct{}{}
}
