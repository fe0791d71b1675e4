package router

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/session"
)

func TestUnreached(t *testing.T) {
	client, relay := key.Address{}, key.Address{Kind: key.Relay}
	for _, c := range []struct {
		to   key.Address
		err  error
		code string
		text string
	}{
		{client, session.ErrNotFound, control.CodeNotFound, "offline"},
		{relay, session.ErrNotFound, control.CodeNotFound, "no relay that this daemon knows"},
		{relay, session.ErrUnreachable, control.CodeNotFound, "no relay that this daemon knows"},
		{client, fmt.Errorf("x: %w", context.DeadlineExceeded), control.CodeFailure, "does not answer"},
		{client, session.ErrBusy, control.CodeNotFound, "too many calls"},
	} {
		var e *control.Error
		if err := unreached("name.loki", c.to, c.err); !errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Text, c.text) {
			t.Errorf("%v to %v: %v", c.err, c.to, err)
		}
	}
}

func TestHowFar(t *testing.T) {
	plain := control.Errorf(control.CodeNotFound, "nobody")
	if err := howFar(plain, nil); err != plain {
		t.Error(err)
	}
	var e *control.Error
	err := howFar(plain, []control.Stage{{Name: "contact found", AtMs: 3.4}, {Name: "path built", AtMs: 12}})
	if !errors.As(err, &e) || e.Code != control.CodeNotFound || e.Text != "nobody (so far: contact found after 3 ms, path built after 12 ms)" {
		t.Error(err)
	}
}

func TestNetworkWarnings(t *testing.T) {
	now := time.Now()
	file := &netdb.NetworkFile{Name: "x", Network: 42}
	want := func(texts ...string) {
		t.Helper()
		got := NetworkWarnings(file, now)
		if len(got) != len(texts) {
			t.Fatalf("%d relays: %q", len(file.Relays), got)
		}
		for i, text := range texts {
			if !strings.Contains(got[i], text) {
				t.Errorf("%q: no %q", got[i], text)
			}
		}
	}
	want("does not work with fewer than 4")
	add := func(n int, signed time.Time) {
		for range n {
			sec := key.Generate()
			file.Relays = append(file.Relays, sec.Public())
			file.Contacts = append(file.Contacts, SignContact(sec, netip.MustParseAddrPort("8.8.8.8:1190"), 42, signed))
		}
	}
	add(4, now)
	want("as long as all of them do")
	add(2, now)
	want()
	add(1, now.Add(-60*24*time.Hour))
	want("7, of which 1 are expired")
	file.Contacts = nil
	want("finds nobody")
}

// TestHandshake: what status and session list say of how a session's keys came to be.
func TestHandshake(t *testing.T) {
	for _, c := range []struct {
		state session.State
		old   bool
		want  string
	}{
		{session.Seeking, false, ""}, {session.Building, false, ""}, {session.Calling, false, ""},
		{session.Established, false, "1.1"}, {session.Answered, false, "1.1"},
		{session.Established, true, "1.0"}, {session.Answered, true, "1.0"},
	} {
		if got := handshake(session.Info{State: c.state, Old: c.old}); got != c.want {
			t.Errorf("%s, old: %v: %q, want %q", c.state, c.old, got, c.want)
		}
	}
}
