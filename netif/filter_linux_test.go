package netif

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
)

// TestFilterSilent: a kernel that never answers is not waited for for ever, and nothing is left of it.
func TestFilterSilent(t *testing.T) {
	none, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: 0}})
	if err != nil {
		t.Fatal(err)
	}
	deaf := func(c *netlink.Conn) error { return c.SetBPF(none) }
	before := runtime.NumGoroutine()
	if _, err := hasTable(dialFilter(50*time.Millisecond, deaf), "lokinet9"); err == nil || !strings.HasSuffix(err.Error(), errSilent.Error()) {
		t.Errorf("a list: %v", err)
	}
	if err := setTable(dialFilter(50*time.Millisecond, deaf), "lokinet9", nil); err != errSilent { // which changes nothing
		t.Errorf("a transaction: %v", err)
	}
	for end := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, before %d", runtime.NumGoroutine(), before)
		}
	}
}
