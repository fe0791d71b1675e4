package router

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestHostEdges: which relays a client connects to is on disk before the first is dialled, and the same at the next start.
func TestHostEdges(t *testing.T) {
	b := newBench(t)
	at := filepath.Join(b.config.DataDir, edgesFile)
	s := b.mustStart()
	var first keptEdges
	for end := time.Now().Add(time.Minute); len(first) == 0; time.Sleep(10 * time.Millisecond) {
		first, _ = loadState[keptEdges](folder(b.config.DataDir), edgesFile)
		if time.Now().After(end) {
			t.Fatal("no edges are kept")
		}
	}
	s.stop()
	info, err := os.Stat(at)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	relays := func(all keptEdges) (names []string) {
		for _, l := range all {
			for _, c := range l.Candidates {
				names = append(names, c.Relay.String())
			}
		}
		return names
	}
	was := relays(first)
	if len(first) != 1 || len(was) == 0 {
		t.Fatalf("%v", first)
	}
	s = b.mustStart()
	time.Sleep(300 * time.Millisecond)
	s.stop()
	again, err := loadState[keptEdges](folder(b.config.DataDir), edgesFile)
	if now := relays(again); err != nil || len(now) != len(was) || now[0] != was[0] || now[len(now)-1] != was[len(was)-1] {
		t.Errorf("%q at first, then %q, %v", was, now, err)
	}
}
