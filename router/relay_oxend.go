package router

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
	"lokinetd/router/oxend"
)

// A relay of the public network beside its oxend (protocol 2 sections 8 and 10): its key and the registered set come from there; it tests others, reports how that went, and
// complains when nobody tests it.

const (
	testLimit    = 4 * time.Second // of a test, the connection included
	lookEvery    = 30 * time.Second
	complainMost = 5 * time.Minute // between two complaints of a sort
	untested     = 2 * time.Minute // is suspicious
	untestedNew  = 15 * time.Minute
)

// openOxend connects the relay with its oxend and gets its key from there.
func (h *host) openOxend(ctx context.Context) (*oxend.Client, *key.Secret, error) {
	c, err := oxend.New(h.config.Relay.Oxend, h.log.With("mod", "oxend"))
	if err != nil {
		return nil, nil, fmt.Errorf("relay.oxend: %w", err)
	}
	h.parts.run("oxend", hostLimit, c.Run)
	s, err := c.Key(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("relay.oxend: %s holds the relay's key, and does not give it: %w", h.config.Relay.Oxend, err)
	}
	return c, s, nil
}

// beside is what a relay does beside its oxend.
type beside struct {
	r      *relay
	oxend  *oxend.Client
	pinged atomic.Int64 // when somebody tested us last, Unix nanoseconds

	mu       sync.Mutex
	schedule *oxend.Schedule
}

func newBeside(r *relay, c *oxend.Client) *beside {
	var seed [32]byte
	crand.Read(seed[:])
	return &beside{r: r, oxend: c, schedule: oxend.NewSchedule(r.self, rand.New(rand.NewChaCha8(seed)))}
}

// run goes on until ctx ends.
func (b *beside) run(ctx context.Context) {
	n := b.r.n
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		b.oxend.Follow(ctx, oxend.Follower{ID: b.r.self, Version: ProtocolVersion, Registered: n.store.SetRegistered, NoList: b.noList})
	})
	test, look := time.NewTicker(oxend.TestInterval), time.NewTicker(lookEvery)
	defer test.Stop()
	defer look.Stop()
	var w watch
	for {
		select {
		case now := <-test.C:
			b.test(ctx, &wg, now)
		case now := <-look.C:
			if text := w.look(now, n.store.Registered(b.r.self), time.Unix(0, b.pinged.Load())); text != "" {
				n.log.Error(text)
			}
		case <-ctx.Done():
			return
		}
	}
}

// noList takes the relays that are known for registered until there is a list: those whose contacts are not expired (protocol 2 section 8.3).
func (b *beside) noList() {
	var ids []key.Public
	now := time.Now()
	for _, c := range b.r.n.store.All() {
		if !c.Expired(now) {
			ids = append(ids, c.ID)
		}
	}
	b.r.n.log.Warn("oxend gives no list of relays: those that are known are taken for registered until it does", "relays", len(ids))
	if len(ids) > 0 {
		b.r.n.store.SetRegistered(ids)
	}
}

// test begins the tests that are due. A relay that is not registered has no say.
func (b *beside) test(ctx context.Context, wg *sync.WaitGroup, now time.Time) {
	store := b.r.n.store
	if !store.Registered(b.r.self) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range b.schedule.Next(now, store.RegisteredIDs()) {
		c := store.Get(id)
		if c == nil || c.Outdated(now) { // of such a one nothing is said to oxend
			b.schedule.Failed(id, now)
			continue
		}
		wg.Go(func() {
			passed := b.reach(ctx, c)
			b.mu.Lock()
			switch {
			case passed:
				b.schedule.Passed(id)
			case ctx.Err() != nil:
				b.schedule.Forget(id)
			default:
				b.schedule.Failed(id, time.Now())
			}
			b.mu.Unlock()
			if ctx.Err() != nil {
				return
			}
			if err := b.oxend.Report(ctx, id, passed); err != nil {
				b.r.n.log.Debug("result of a test not reported", "err", err)
			}
		})
	}
}

// reach tests a relay: who answers a ping over a new connection, as a client makes it, passes.
func (b *beside) reach(ctx context.Context, c *netdb.RelayContact) bool {
	ctx, cancel := context.WithTimeout(ctx, testLimit)
	defer cancel()
	conn, err := b.r.n.config.Wire.Dial(ctx, c.Addr, c.ID, link.Client)
	if err != nil {
		return false
	}
	defer conn.Close(link.CodeNormal)
	_, err = conn.Request(ctx, "ping", nil)
	return err == nil
}

// resolve answers a resolve_sns. That oxend does not know the name is an answer; that it says nothing is none, and must not be taken for one: errors count for nothing where answers of
// several relays are held against each other.
func (b *beside) resolve(hash [32]byte, reply func([]byte)) {
	b.r.n.serve(func(ctx context.Context) {
		sealed, nonce, err := b.oxend.Resolve(ctx, hash)
		switch {
		case errors.Is(err, oxend.ErrNotFound):
			reply(netdb.Status(netdb.StatusNotFound))
		case err != nil:
			reply(netdb.Status(netdb.StatusError))
		default:
			reply(netdb.EncodeResolvedSNS(sealed, &nonce))
		}
	})
}

// status says what is between the relay and its registration.
func (b *beside) status(s *control.Status) {
	there, err := b.oxend.Connected()
	switch {
	case s.State == control.Ready && !there:
		s.Warnings = append(s.Warnings, fmt.Sprintf("oxend does not answer, and is not told that this relay lives: %v", err))
	case s.State == control.Ready:
	case !there:
		s.Reason = fmt.Sprintf("no list of relays: oxend does not answer: %v", err)
	default:
		s.Reason = "oxend does not list this relay: it is not registered, or the network holds its oxend for older than 11.6.0"
	}
}

// watch says what somebody should look after.
type watch struct {
	since        time.Time // registered since, as far as was looked at; zero: not registered
	unregistered time.Time // when that was last complained about
	alone        time.Time // likewise, that nobody tests us
}

// look says what is wrong now, "" for nothing; pinged is when we were last tested. A relay that has just been registered is tested only when the others have heard of it.
func (w *watch) look(now time.Time, registered bool, pinged time.Time) string {
	switch {
	case !registered:
		w.since = time.Time{}
		if now.Sub(w.unregistered) >= complainMost {
			w.unregistered = now
			return "this relay is not registered: it takes part in nothing but what others send it (see status)"
		}
		return ""
	case w.since.IsZero():
		w.since = now
	}
	from, limit := pinged, untested
	if pinged.Before(w.since) {
		from, limit = w.since, untestedNew
	}
	if now.Sub(from) <= limit || now.Sub(w.alone) < complainMost {
		return ""
	}
	w.alone = now
	return fmt.Sprintf("no other relay has tested this one for %v: is its UDP port open, and reached under relay.public_address?", now.Sub(from).Round(time.Second))
}
