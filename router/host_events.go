package router

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"lokinetd/router/control"
)

// Events are the differences between two looks at the status, one node's round apart, and only while somebody listens: no part of the node knows of them, and nothing
// is counted or kept for nobody. What comes and goes between two looks is not told.

const (
	feedEvery    = tick
	maxListeners = 16
	eventQueue   = 256 // events that wait for a slow listener; the next ones are counted
)

// feed tells listeners what changes. Safe for concurrent use.
type feed struct {
	look   func() control.Status
	wanted chan struct{} // of capacity 1: there is a first listener

	looking   sync.Mutex // held from a look until it is before, or looks would overtake each other; taken before mu
	mu        sync.Mutex
	listeners map[*listener]struct{}
	before    control.Status // of the last look
}

// listener is one who listens; lost is under feed.mu, and only who holds that puts something into queue.
type listener struct {
	queue chan control.Event
	lost  uint64
}

func newFeed(look func() control.Status) *feed {
	return &feed{look: look, wanted: make(chan struct{}, 1), listeners: map[*listener]struct{}{}}
}

// run looks until ctx ends, while there are listeners.
func (f *feed) run(ctx context.Context) error {
	for {
		select {
		case <-f.wanted:
		case <-ctx.Done():
			return nil
		}
		t := time.NewTicker(feedEvery)
		for f.round() {
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return nil
			}
		}
		t.Stop()
	}
}

// round tells what has changed since the last one; false: nobody listens.
func (f *feed) round() bool {
	f.looking.Lock()
	defer f.looking.Unlock()
	now := f.look()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.listeners) == 0 {
		return false
	}
	events := changes(f.before, now, time.Now())
	f.before = now
	for l := range f.listeners {
		l.tell(events)
	}
	return true
}

// tell queues events, and where there is no room counts them, until there is room for the count and one more.
func (l *listener) tell(events []control.Event) {
	for i := 0; ; i++ {
		if l.lost > 0 && cap(l.queue)-len(l.queue) > 1 {
			l.queue <- control.Event{Schema: control.Schema, Time: time.Now(), Event: control.EventLost, Lost: l.lost}
			l.lost = 0
		}
		if i == len(events) {
			return
		}
		if l.lost > 0 || len(l.queue) == cap(l.queue) {
			l.lost++
			continue
		}
		l.queue <- events[i]
	}
}

// join makes l a listener, and tells it how it is now; the first one of what changes from now on.
func (f *feed) join(l *listener) error {
	f.looking.Lock()
	defer f.looking.Unlock()
	now := f.look()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.listeners) == maxListeners {
		return control.Errorf(control.CodeFailure, "%d programs listen to events already", maxListeners)
	}
	if len(f.listeners) == 0 {
		f.before = now
	}
	l.tell([]control.Event{stateEvent(f.before, time.Now())})
	f.listeners[l] = struct{}{}
	return nil
}

// listen is control.API's Events.
func (f *feed) listen(ctx context.Context, each func(control.Event) error) error {
	l := &listener{queue: make(chan control.Event, eventQueue)}
	if err := f.join(l); err != nil {
		return err
	}
	select {
	case f.wanted <- struct{}{}:
	default:
	}
	defer func() {
		f.mu.Lock()
		delete(f.listeners, l)
		f.mu.Unlock()
	}()
	for {
		select {
		case e := <-l.queue:
			if err := each(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func stateEvent(s control.Status, at time.Time) control.Event {
	return control.Event{Schema: control.Schema, Time: at, Event: control.EventState, State: s.State, Reason: s.Reason}
}

// changes are the events that lead from one status to the next: first what is gone, from the top down, then what is new, from the bottom up.
func changes(before, now control.Status, at time.Time) (all []control.Event) {
	add := func(kind string, e control.Event) {
		e.Schema, e.Time, e.Event = control.Schema, at, kind
		all = append(all, e)
	}
	// Sessions.
	session := func(x control.Session) control.Event {
		return control.Event{Endpoint: x.Endpoint, Remote: x.Remote, Direction: x.Direction, Hops: x.Hops}
	}
	oldSessions, newSessions := index(before.Sessions, sessionID), index(now.Sessions, sessionID)
	goneSessions, cameSessions := missing(oldSessions, newSessions), missing(newSessions, oldSessions)
	for _, id := range goneSessions {
		add(control.EventSessionDown, session(oldSessions[id]))
	}
	// Services.
	oldEnds, newEnds := index(before.Endpoints, endpointID), index(now.Endpoints, endpointID)
	for _, id := range slices.Sorted(maps.Keys(oldEnds)) {
		o, n := oldEnds[id], newEnds[id]
		e := control.Event{Endpoint: o.Name, Address: o.Address}
		if o.PublishedAt != nil && n.PublishedAt == nil {
			add(control.EventUnpublished, e)
		}
		if n.Address == "" {
			add(control.EventEndpointDown, e)
		}
	}
	// Paths.
	path := func(p control.Path) control.Event {
		return control.Event{Endpoint: p.Endpoint, Kind: p.Kind, Hops: p.Hops}
	}
	oldPaths, newPaths := index(before.Paths, pathID), index(now.Paths, pathID)
	for _, id := range missing(oldPaths, newPaths) {
		e := path(oldPaths[id])
		e.Reason = whyDown(oldPaths[id], now, at)
		add(control.EventPathDown, e)
	}
	// Edges.
	oldEdges, newEdges := index(before.Edges, edgeID), index(now.Edges, edgeID)
	for _, id := range missing(oldEdges, newEdges) {
		add(control.EventEdgeDown, control.Event{Relay: oldEdges[id].Relay, Address: oldEdges[id].Address})
	}
	for _, id := range missing(newEdges, oldEdges) {
		add(control.EventEdgeUp, control.Event{Relay: newEdges[id].Relay, Address: newEdges[id].Address})
	}
	for _, id := range missing(newPaths, oldPaths) {
		add(control.EventPathUp, path(newPaths[id]))
	}
	if before.State != now.State {
		all = append(all, stateEvent(now, at))
	}
	for _, id := range slices.Sorted(maps.Keys(newEnds)) {
		o, n := oldEnds[id], newEnds[id]
		e := control.Event{Endpoint: n.Name, Address: n.Address}
		if o.Address == "" {
			add(control.EventEndpointUp, e)
		}
		if o.PublishedAt == nil && n.PublishedAt != nil {
			add(control.EventPublished, e)
		}
	}
	for _, id := range cameSessions {
		add(control.EventSessionUp, session(newSessions[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(newSessions)) {
		if o, n := oldSessions[id], newSessions[id]; len(o.Hops) > 0 && len(n.Hops) > 0 && !slices.Equal(o.Hops, n.Hops) {
			add(control.EventSwitched, session(n))
		}
	}
	if o, n := resolver(before), resolver(now); o != n {
		add(control.EventResolver, control.Event{Method: n.Method, InEffect: &n.InEffect, Reason: n.Problem})
	}
	return all
}

// whyDown says why a path is of use no more, as far as the next status tells.
func whyDown(p control.Path, now control.Status, at time.Time) string {
	switch {
	case slices.ContainsFunc(now.Paths, func(x control.Path) bool { return x.State == "retired" && slices.Equal(x.Hops, p.Hops) }):
		return "retired"
	case !p.ExpiresAt.After(at):
		return "expired"
	case len(p.Hops) > 0 && !slices.ContainsFunc(now.Edges, func(e control.Edge) bool { return e.Relay == p.Hops[0] }):
		return "edge lost"
	}
	return "given up"
}

// Identities of what comes and goes; "" for what is not there yet, or no more.

func sessionID(x control.Session) string {
	if x.State != "established" && x.State != "answered" {
		return ""
	}
	return strings.Join([]string{x.Endpoint, x.Remote, x.Direction, x.Since.Format(time.RFC3339Nano)}, " ")
}

func pathID(p control.Path) string {
	if p.State != "up" {
		return ""
	}
	return strings.Join(append([]string{p.Endpoint, p.Kind}, p.Hops...), " ")
}

func edgeID(e control.Edge) string { return e.Relay + " " + e.Since.Format(time.RFC3339Nano) }

func endpointID(e control.Endpoint) string { return e.Address }

// resolver is how programs of the host come to ask the name server, without what may change all the time.
func resolver(s control.Status) (x struct {
	Method, Problem string
	InEffect        bool
}) {
	if s.DNS != nil && s.DNS.Host != nil {
		x.Method, x.Problem, x.InEffect = s.DNS.Host.Method, s.DNS.Host.Problem, s.DNS.Host.InEffect
	}
	return x
}

func index[T any](list []T, id func(T) string) map[string]T {
	m := make(map[string]T, len(list))
	for _, x := range list {
		if i := id(x); i != "" {
			m[i] = x
		}
	}
	return m
}

// missing are the keys of a that b lacks, in order.
func missing[T any](a, b map[string]T) (ids []string) {
	for id := range a {
		if _, ok := b[id]; !ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
