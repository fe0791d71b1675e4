package router

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/control"
)

// eventsStatus is a client that is ready.
func eventsStatus(at time.Time) control.Status {
	return control.Status{
		State:     control.Ready,
		Endpoints: []control.Endpoint{{Name: "browsing", Address: "me.loki"}, {Name: "blog", Address: "blog.loki", PublishedAt: &at}},
		Edges:     []control.Edge{{Relay: "a", Address: "192.0.2.1:1", Since: at}, {Relay: "b", Address: "192.0.2.2:1", Since: at}},
		Paths: []control.Path{
			{Kind: "inbound", Endpoint: "browsing", State: "up", Hops: []string{"a", "x"}, ExpiresAt: at.Add(time.Minute)},
			{Kind: "client", Endpoint: "browsing", State: "building", Hops: []string{"b", "x"}, ExpiresAt: at.Add(time.Hour)},
		},
		Sessions: []control.Session{
			{Remote: "r.loki", Endpoint: "browsing", Direction: "out", State: "established", Since: at, Hops: []string{"a", "x"}},
			{Remote: "s.loki", Endpoint: "browsing", Direction: "out", State: "seeking", Since: at},
		},
		DNS: &control.DNS{Host: &control.HostDNS{Method: "resolved", InEffect: true}},
	}
}

// TestChanges: what differs between two looks is told, each with its words, in an order that makes sense; nothing else is.
func TestChanges(t *testing.T) {
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name   string
		change func(s *control.Status)
		want   string
	}{
		{"nothing", func(s *control.Status) {
			s.Traffic.BytesIn, s.Edges[0].RTTms, s.Edges[0].BytesIn, s.Sessions[0].BytesIn, s.Paths[0].RTTms = 1, 2, 3, 4, 5
			s.Reason, s.Drops = "x", map[string]uint64{"x": 1}
			s.Sessions[0].State = "answered" // and back
		}, ""},
		{"not ready", func(s *control.Status) { s.State, s.Reason = control.Offline, "why" }, "state offline why"},
		{"an edge goes, and its path", func(s *control.Status) { s.Edges, s.Paths = s.Edges[1:], s.Paths[1:] }, "path_down browsing inbound a>x edge lost; edge_down a 192.0.2.1:1"},
		{"an edge is made anew", func(s *control.Status) { s.Edges[0].Since = at.Add(time.Second) }, "edge_down a 192.0.2.1:1; edge_up a 192.0.2.1:1"},
		{"a path is built", func(s *control.Status) { s.Paths[1].State = "up" }, "path_up browsing client b>x"},
		{"a path gets a successor", func(s *control.Status) { s.Paths[0].State = "retired" }, "path_down browsing inbound a>x retired"},
		{"a path is silent", func(s *control.Status) { s.Paths = s.Paths[1:] }, "path_down browsing inbound a>x given up"},
		{"a session is established", func(s *control.Status) { s.Sessions[1].State = "established" }, "session_up browsing out s.loki"},
		{"a session switches", func(s *control.Status) { s.Sessions[0].Hops = []string{"b", "x"} }, "session_switched browsing out r.loki b>x"},
		{"a session has no path for a while", func(s *control.Status) { s.Sessions[0].Hops = nil }, ""},
		{"a session ends", func(s *control.Status) { s.Sessions = s.Sessions[1:] }, "session_down browsing out r.loki a>x"},
		{"a session is replaced", func(s *control.Status) { s.Sessions[0].Since = at.Add(time.Second) }, "session_down browsing out r.loki a>x; session_up browsing out r.loki a>x"},
		{"a service is removed", func(s *control.Status) { s.Endpoints = s.Endpoints[:1] }, "unpublished blog blog.loki; endpoint_down blog blog.loki"},
		{"a service is added", func(s *control.Status) {
			s.Endpoints = append(s.Endpoints, control.Endpoint{Name: "new", Address: "new.loki"})
		}, "endpoint_up new new.loki"},
		{"a service cannot be found", func(s *control.Status) { s.Endpoints[1].PublishedAt = nil }, "unpublished blog blog.loki"},
		{"a service is published again", func(s *control.Status) { later := at.Add(time.Hour); s.Endpoints[1].PublishedAt = &later }, ""},
		{"the resolver", func(s *control.Status) { s.DNS.Host = &control.HostDNS{Method: "none", Problem: "why"} }, "resolver none why"},
		{"no resolver", func(s *control.Status) { s.DNS = nil }, "resolver"},
	} {
		after := eventsStatus(at)
		c.change(&after)
		var got []string
		for _, e := range changes(eventsStatus(at), after, at) {
			if e.Schema != control.Schema || !e.Time.Equal(at) {
				t.Errorf("%s: %+v", c.name, e)
			}
			got = append(got, strings.Join(strings.Fields(fmt.Sprint(e.Event, " ", e.State, " ", e.Endpoint, " ", e.Kind, " ", e.Direction, " ", e.Relay, " ", e.Remote, " ", e.Address,
				" ", strings.Join(e.Hops, ">"), " ", e.Method, " ", e.Reason)), " "))
		}
		if text := strings.Join(got, "; "); text != c.want {
			t.Errorf("%s:\n got %q\nwant %q", c.name, text, c.want)
		}
	}
	late := eventsStatus(at)
	late.Paths = late.Paths[1:]
	if got := changes(eventsStatus(at), late, at.Add(time.Hour)); len(got) != 1 || got[0].Reason != "expired" {
		t.Errorf("a path's time is over: %+v", got)
	}
}

// TestFeed: nobody looks while nobody listens; a listener first hears how it is now; one that does not read loses events and is told how many; memory is bounded.
func TestFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var count atomic.Int64
		looks := func() int { return int(count.Load()) }
		f := newFeed(func() control.Status { // the one edge is another one at each look: two events
			return control.Status{State: control.Ready, Edges: []control.Edge{{Relay: fmt.Sprint(count.Add(1))}}}
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.run(ctx) }()
		time.Sleep(time.Minute)
		if looks() != 0 {
			t.Errorf("%d looks for nobody", looks())
		}

		var kinds []string
		enough := errors.New("enough")
		err := f.listen(ctx, func(e control.Event) error {
			if kinds = append(kinds, e.Event); len(kinds) == 3 {
				return enough
			}
			return nil
		})
		if err != enough || strings.Join(kinds, " ") != "state edge_down edge_up" {
			t.Errorf("%v %q", err, kinds)
		}

		slow, stop := context.WithCancel(ctx)
		wait, told, lost := make(chan struct{}), 0, uint64(0)
		go f.listen(slow, func(e control.Event) error {
			if told++; told == 1 {
				<-wait
			}
			lost += e.Lost
			return nil
		})
		synctest.Wait()
		before := looks()
		time.Sleep(1000 * feedEvery)
		rounds := looks() - before
		close(wait)
		time.Sleep(time.Minute)
		synctest.Wait()
		stop()
		synctest.Wait()
		// After the first, eventQueue were kept; of the rest of that time all are counted.
		if want := uint64(2*rounds - eventQueue); lost < want-4 || lost > want+4 || told < 2*(looks()-before)-int(lost)-4 {
			t.Errorf("%d told, %d lost, %d expected to be; %d looks", told, lost, want, looks()-before)
		}

		var all []context.CancelFunc
		for range maxListeners {
			c, stop := context.WithCancel(ctx)
			all = append(all, stop)
			go f.listen(c, func(control.Event) error { return nil })
		}
		synctest.Wait()
		var e *control.Error
		if err := f.listen(ctx, nil); !errors.As(err, &e) {
			t.Errorf("one listener too many: %v", err)
		}
		for _, stop := range all {
			stop()
		}
		time.Sleep(2 * feedEvery)
		before = looks()
		time.Sleep(time.Minute)
		if looks() != before {
			t.Error("it looks for nobody")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestFeedOrder: a first listener that comes while a round looks is not told what that round has seen, which is older than what it begins with.
func TestFeedOrder(t *testing.T) {
	var count atomic.Int64
	looks, goOn := make(chan struct{}), make(chan struct{})
	f := newFeed(func() control.Status {
		n := count.Add(1)
		if n == 1 {
			close(looks)
			<-goOn
		}
		return control.Status{State: control.Ready, Edges: []control.Edge{{Relay: fmt.Sprint(n)}}}
	})
	over := make(chan struct{})
	go func() { defer close(over); f.round() }()
	<-looks
	l := &listener{queue: make(chan control.Event, eventQueue)}
	joined := make(chan error)
	go func() { joined <- f.join(l) }()
	time.Sleep(20 * time.Millisecond) // or it may come later, which is well anyway
	close(goOn)
	<-over
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	f.round()
	var told []string
	for len(l.queue) > 0 {
		e := <-l.queue
		told = append(told, e.Event+e.Relay)
	}
	if got := strings.Join(told, " "); got != "state edge_down2 edge_up3" {
		t.Errorf("told %q", got)
	}
}
