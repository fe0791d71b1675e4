//go:build root

package main

import (
	"os"
	"syscall"
	"testing"
)

// TestDamagedHostState: a daemon was killed and its state file is damaged besides. cleanup, and a start, find by our marks what is on the host.
func TestDamagedHostState(t *testing.T) {
	h := newLonely(t)
	h.start(nil)
	h.end(syscall.SIGKILL)
	h.here("after kill -9", lonelyRoutes...)
	for _, content := range []string{"", "{", "[]"} {
		if err := os.WriteFile(h.at("data/host.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		h.start(nil) // on the same ranges
		h.here("started again", append([]string{"tun"}, lonelyRoutes...)...)
		h.end(syscall.SIGKILL)
	}
	if err := os.WriteFile(h.at("data/host.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.cleanup(true, "unreachable route "+lonelyRoutes[0]+": gone")
	h.here("after cleanup")
}
