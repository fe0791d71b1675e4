package session

import (
	"time"

	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/seal"
)

// Witnesses are a few paths more, which end at other relays than the inbound ones as far as there are others. Who controls the ends of all inbound paths could otherwise
// say that nobody has a contact, and that ours is stored where it is not, until the first of them expires. They are built when somebody needs a second opinion, shared by
// all who do, and nobody is told that they lead to us. So however many contacts are denied, it costs four builds a minute, and one more for each that fails.

const (
	witnessTime = 5 * time.Minute // until others take their place
	witnessIdle = time.Minute     // unused
	witnessWait = 2 * time.Second // for the first of them,
	witnessMore = 250 * time.Millisecond
)

// witnesses is under Table.ctl.
type witnesses struct {
	pool  pool // nil: none are needed
	since time.Time
	used  time.Time
	news  chan struct{} // closed when a path came or went, and made anew
}

// witnesses gives the paths of the witnesses, calls for them if there are none, and waits a moment. None: there is nobody to ask.
func (t *Table) witnesses() []onion {
	limit := time.After(witnessWait)
	var over <-chan time.Time
	for {
		now := time.Now()
		t.lock()
		if t.closed {
			t.unlock()
			return nil
		}
		w := &t.witness
		if w.pool == nil {
			pool := t.builder.beside(t.entrance, witnessOwner{t})
			*w = witnesses{pool: pool, since: now, news: make(chan struct{})}
			t.later(func() { pool.tick(now) })
		}
		w.used = now
		pool, news := w.pool, w.news
		t.unlock()
		paths := sound(pool.paths(time.Now()))
		if len(paths) >= netdb.Locations {
			return paths
		}
		if len(paths) > 0 && over == nil {
			over = time.After(witnessMore)
		}
		select {
		case <-news:
			continue
		case <-over:
		case <-limit:
		case <-t.ctx.Done():
			return nil
		}
		return paths
	}
}

// tendWitnesses dismisses those that are not needed any more, or have been asked for long enough.
func (t *Table) tendWitnesses(now time.Time) {
	if w := &t.witness; now.Sub(w.since) >= witnessTime || now.Sub(w.used) >= witnessIdle {
		t.dismissWitnesses()
	}
}

func (t *Table) dismissWitnesses() {
	if t.witness.pool != nil {
		t.later(t.witness.pool.close)
		t.witness = witnesses{}
	}
}

// witnessOwner is told of their paths. No remote has reason to send anything over them.
type witnessOwner struct{ t *Table }

func (o witnessOwner) changed() {
	o.t.lock()
	defer o.t.unlock()
	if w := &o.t.witness; w.news != nil {
		close(w.news)
		w.news = make(chan struct{})
	}
}

func (witnessOwner) datagram(_ carrier, b *packet.Buffer)         { b.Release() }
func (witnessOwner) controlled(carrier, byte, []byte, seal.Nonce) {}
