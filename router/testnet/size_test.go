//go:build !race

package testnet

import (
	"context"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestManySessions: one client has 500 sessions at once, all of which stay. Logged is what they cost, the remotes' ends and all relays included.
func TestManySessions(t *testing.T) {
	const sessions = 500
	synctest.Test(t, func(t *testing.T) {
		n := New(t, Options{Relays: 30, Clients: sessions + 1, Latency: 10 * time.Millisecond, Seed: seed(t)})
		time.Sleep(15 * time.Second)
		used := func() (heap uint64, cpu time.Duration) {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			var u syscall.Rusage
			syscall.Getrusage(syscall.RUSAGE_SELF, &u)
			return m.HeapAlloc + m.StackInuse, time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
		heap0, cpu0 := used()
		time.Sleep(20 * time.Second)
		_, cpu1 := used()
		hub := n.Clients[0]
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		began := time.Now()
		errs := make(chan error, sessions)
		for _, h := range n.Clients[1:] {
			go func() { errs <- hub.Endpoint.Sessions.Connect(ctx, h.Address()) }()
		}
		for range sessions {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
		took := time.Since(began)
		if s := hub.Endpoint.Sessions.Stats(); took > 8*time.Second || s.Lookups > sessions*5/4 {
			t.Errorf("%d sessions after %v and %d look-ups", sessions, took, s.Lookups)
		}
		_, cpu2 := used()
		// One message on each, spread over 20 s.
		var asks sync.WaitGroup
		defer asks.Wait()
		for i, h := range n.Clients[1:] {
			f := hub.Flow(h)
			asks.Go(func() {
				time.Sleep(time.Duration(i) * 20 * time.Second / sessions)
				if !f.Ask(1) {
					t.Errorf("%v does not answer", h)
				}
			})
		}
		time.Sleep(20 * time.Second)
		heap3, cpu3 := used()
		if got := len(hub.Endpoint.Sessions.List()); got != sessions {
			t.Errorf("%d sessions", got)
		}
		t.Logf("%d sessions after %v and %v of CPU time; each holds %d KiB of all nodes' memory; CPU time for 20 s: %v without sessions, %v with one message each",
			sessions, took, cpu2-cpu1, (int64(heap3)-int64(heap0))/sessions>>10, cpu1-cpu0, cpu3-cpu2)
		if each := (int64(heap3) - int64(heap0)) / sessions; each > 150<<10 {
			t.Errorf("a session holds %d bytes", each)
		}
	})
}
