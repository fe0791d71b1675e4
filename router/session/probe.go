package session

import (
	"math"
	"slices"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

// How a call notices, within half a second, that its way is dead.
//
// A conversation that pauses may just have nothing to say. So the remote is asked: by a ping on the session, which it answers over the path that the ping came on.
//
//  1. nothing came over the present path for a little: ping over it
//  2. the answer is late: again, and over all other paths too
//  3. late again: the first other path over which an answer came is taken, and the present one examined. None: more paths are built, the remote's contact is looked up,
//     and each new path is tried in the same way
//
// A switch so needs a way that works as well as one that does not: a remote that is gone, or a network that is away, causes none. Pings go by the reliable channel: one that is lost on a link
// is late, not gone, and how late they usually are is known. They are ours: by the protocol unknown methods are ignored, so of a remote that never answered one nothing
// follows from its silence, and doubt is all that there is. It is also what notices, more slowly, a relay that passes on pings and nothing else: to doubt an answer to a ping is none.

const (
	probeQuiet = 200 * time.Millisecond // without a message, until a ping; longer where answers take longer
	probeLate  = 150 * time.Millisecond // an answer is late, at least
	probeFirst = 400 * time.Millisecond // the same while nothing is known of the remote
	probeSlow  = 2 * time.Second        // and at most
	probeEvery = 500 * time.Millisecond // at least, from an answer until the next ping
	probeOften = 12                     // pings until they become rare
	probeOnce  = 4                      // as often a remote is asked that has not shown yet that it answers
	probeMore  = 2                      // answers after one before it is believed that the conversation pauses: see pause
	pingsMost  = 32                     // unanswered pings that are remembered
)

// probe is what a call knows of its way. Under Table.ctl.
type probe struct {
	timer   *time.Timer
	last    uint64 // number of a ping
	sent    []ping // not answered, the oldest first
	answers bool   // the remote has answered one
	asked   int    // times that it was asked before that
	well    int64  // Table.at of the last answer over the path that was the present one
	paused  int    // answers in a row without anything else between them
	smooth  time.Duration
	spread  time.Duration

	// While answers are late:
	tries int       // pings over the present path
	began time.Time // the first of them
	next  time.Time // when the last of them is late
	alive []onion   // others over which an answer came
	wide  bool      // more paths are built
}

type ping struct {
	n    uint64
	over onion
	at   time.Time
}

// late is how long an answer may take.
func (p *probe) late() time.Duration {
	if p.smooth == 0 {
		return probeFirst
	}
	return min(max(probeLate, p.smooth+4*p.spread), probeSlow)
}

// quiet is how long a pause in a conversation is that says nothing.
func (p *probe) quiet() time.Duration { return min(max(probeQuiet, p.smooth+2*p.spread), probeSlow) }

// took learns how long an answer took.
func (p *probe) took(d time.Duration) {
	if p.smooth == 0 {
		p.smooth, p.spread = d, d/4
		return
	}
	p.spread += ((d - p.smooth).Abs() - p.spread) / 4
	p.smooth += (d - p.smooth) / 8
}

// watch pings the remote when it is silent, and acts when it does not answer.
func (t *Table) watch(c *call, now time.Time) {
	p := &c.probe
	s := c.session
	if s == nil || !s.sure.Load() || s.keys.old || c.path == nil {
		return
	}
	if cur := c.r.current.Load(); cur != nil && !cur.outbound {
		t.calm(c)
		return
	}
	if !p.answers && p.asked == 0 { // the sooner we know that it does, the better
		p.asked++
		t.ping(c, c.path, now)
	}
	answered := t.when(s.answered.Load())
	if p.tries > 0 && answered.After(p.began) {
		t.calm(c)
	}
	if p.tries == 0 {
		pause, ok := p.pause(s)
		if !ok {
			return
		}
		since := answered
		if at := t.when(s.route.Load().since); at.After(since) {
			since = at
		}
		due := since.Add(p.quiet())
		if soon := t.when(p.well).Add(pause); p.well != 0 && due.Before(soon) {
			due = soon
		}
		if now.Before(due) {
			t.wake(c, due.Sub(now))
			return
		}
		if !p.answers {
			p.asked++
			p.well = t.at(now)
			t.ping(c, c.path, now)
			if p.asked > 2 { // the way may have died before the remote could show that it answers
				t.others(c, now)
			}
			return
		}
		p.began = now
	} else if now.Before(p.next) {
		t.others(c, now)
		t.wake(c, p.next.Sub(now))
		return
	}
	p.tries++
	if p.tries > 2 && len(p.alive) > 0 {
		t.divert(c, p.alive[0], now)
		return
	}
	t.ping(c, c.path, now)
	t.others(c, now)
	if p.tries > 2 && p.answers {
		t.refresh(c, now)
		if !p.wide {
			p.wide = true
			t.widen(c, widest)
			for _, o := range c.pool.paths(now) {
				o.suspect()
			}
		}
	}
	p.next = now.Add(p.wait())
	t.wake(c, p.wait())
}

// calm: the present way works, as far as is known.
func (t *Table) calm(c *call) {
	p := &c.probe
	p.tries, p.alive = 0, nil
	if p.wide {
		p.wide = false
		t.widen(c, 0)
	}
}

// wait is how long the latest ping may take, and until the next: there is more and more time, the longer it was all in vain.
func (p *probe) wait() time.Duration {
	switch late := p.late(); {
	case p.tries <= 3:
		return late
	case p.tries <= probeOften:
		return max(late, probeEvery)
	default:
		return probeSlow
	}
}

// pause is how long after an answer the next ping is due; false: none is.
//
// After the last word a few more pings have to be answered, and be it that nothing came since the first. An answer may have been under way when the way died, as may the word
// before it: who only listens, as in a download, would take the conversation to be over.
func (p *probe) pause(s *session) (d time.Duration, ok bool) {
	if !p.answers {
		return probeEvery << p.asked, p.asked < probeOnce
	}
	if max(s.heard.Load(), s.said.Load()) > p.well {
		return probeEvery, true
	}
	return probeEvery << p.paused, p.paused <= probeMore
}

// others pings over the other paths, but those over which a ping is not late yet, when one over the present path is.
func (t *Table) others(c *call, now time.Time) {
	p := &c.probe
	if p.answers && p.tries < 2 {
		return
	}
	for _, o := range c.pool.paths(now) {
		if o != c.path && !slices.Contains(p.alive, o) && !slices.ContainsFunc(p.sent, func(x ping) bool { return x.over == o && now.Sub(x.at) < p.wait() }) {
			t.ping(c, o, now)
		}
	}
}

// divert takes another path, over which the remote has answered.
func (t *Table) divert(c *call, to onion, now time.Time) {
	t.log.Debug("way changed: the remote answers over another path only", "remote", c.r.addr)
	if c.path != nil { // else it has just ended
		c.path.suspect()
	}
	t.calm(c)
	c.detour = to
	t.move(c, to)
	t.count.Diverted.Add(1)
	t.sendSwitch(c, now)
	t.repeat(c.session, c.session.route.Load(), now)
}

func (t *Table) wake(c *call, after time.Duration) {
	if c.probe.timer != nil {
		c.probe.timer.Reset(after)
		return
	}
	c.probe.timer = time.AfterFunc(after, func() {
		t.lock()
		defer t.unlock()
		if c.r.call == c && !t.closed {
			t.watch(c, time.Now())
		}
	})
}

// ping asks the remote over one path whether it is there.
func (t *Table) ping(c *call, over onion, now time.Time) {
	p := &c.probe
	s := c.session
	p.last++
	if len(p.sent) == pingsMost {
		p.sent = slices.Delete(p.sent, 0, 1)
	}
	p.sent = append(p.sent, ping{p.last, over, now})
	id := over.id()
	pivot := over.aligned()
	if c.r.addr.Kind == key.Relay {
		pivot = id
	}
	var n seal.Nonce
	t.nonce(s, &n)
	param := bt.NewDict(make([]byte, 0, 48)).Uint("n", p.last).Bytes("p", id[:]).End()
	over.control(path.TypeControl, message(sealControl(nil, &s.keys.out, &n, methodPing, param), s.keys.peer, &pivot), n)
}

// pinged answers a remote that called us, over the path that its ping came on, and says whether that is the one that we send over.
func (t *Table) pinged(s *session, via carrier, param []byte) {
	d := bt.ReadDict(param)
	number := d.Uint("n", math.MaxUint64)
	id := d.Fixed("p", len(path.ID{}))
	switch {
	case d.Finish() != nil:
		t.count.DropParse.Add(1)
		return
	case s.outbound, t.c.Relay != (path.ID(id) == via.id()):
		t.count.DropDirection.Add(1)
		return
	}
	pivot := (*path.ID)(id)
	if t.c.Relay {
		pivot = nil
	}
	var n seal.Nonce
	t.nonce(s, &n)
	here := uint64(0)
	if w := s.route.Load(); w.via == via && w.pivot == path.ID(id) {
		here = 1
	}
	param = bt.NewDict(make([]byte, 0, 32)).Uint("n", number).Uint("r", here).End()
	via.control(path.TypeControl, message(sealControl(nil, &s.keys.out, &n, methodPong, param), s.keys.peer, pivot), n)
}

// ponged takes an answer.
func (t *Table) ponged(s *session, via carrier, param []byte, now time.Time) {
	d := bt.ReadDict(param)
	number, here := d.Uint("n", math.MaxUint64), d.Uint("r", 1)
	if d.Finish() != nil {
		t.count.DropParse.Add(1)
		return
	}
	t.lock()
	defer t.unlock()
	c := s.r.call
	if !s.outbound || c == nil || c.session != s {
		t.count.DropDirection.Add(1)
		return
	}
	p := &c.probe
	i := slices.IndexFunc(p.sent, func(x ping) bool { return x.n == number && x.over == via })
	if i < 0 {
		t.count.DropReplayed.Add(1)
		return
	}
	x := p.sent[i]
	p.sent = slices.Delete(p.sent, i, i+1)
	p.answers = true
	p.took(now.Sub(x.at))
	switch {
	case x.over == c.path:
		p.sent = slices.DeleteFunc(p.sent, func(o ping) bool { return o.over == x.over && o.n < number })
		if p.paused++; max(s.heard.Load(), s.said.Load()) > p.well {
			p.paused = 0
		}
		p.well = t.at(now)
		t.calm(c)
		if w := s.route.Load(); here == 0 && x.at.After(t.when(w.since).Add(p.late())) {
			t.sendSwitch(c, now) // the one before was lost
		}
	case p.tries > 2:
		t.divert(c, x.over, now)
	case p.tries > 0 && !slices.Contains(p.alive, x.over):
		p.alive = append(p.alive, x.over)
	}
}
