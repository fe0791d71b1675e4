//go:build root

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"lokinetd/netif/lab"
	"lokinetd/router/control"
	"lokinetd/router/key"
)

// roamLimit is within how much time traffic has to flow again, in the median of roamRounds, on a quiet machine.
const (
	roamLimit  = 3 * time.Second
	roamRounds = 10
)

// TestRoaming: a client gets another address, and sleeps for ten minutes. Its session goes on, and packets flow again soon; and the daemon
// has noticed each by itself.
//
// A machine that sleeps is played by a daemon that is stopped while the relays that it is connected to are killed and started again, so that they know of it as little as
// after ten minutes; its clock of what time has passed, sleep included, then says ten minutes more.
func TestRoaming(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	d, must := demoOf(ctx, t)
	defer d.close()
	names, err := d.plan()
	must(err)
	const own = 3 // relays that the guest alone is connected to, and the host uses for nothing
	must(d.startRelays(names[own:]))
	var edges []*lab.Cmd
	start := func() {
		edges = nil
		for _, name := range names[:own] {
			c := d.lab.Self("run", "-c", d.file(name))
			must(c.Start())
			edges = append(edges, c)
		}
	}
	start()
	var ids []string
	for _, name := range names[:own] {
		sec, err := key.LoadSecret(filepath.Join(d.dir, name, "relay.key"))
		must(err)
		ids = append(ids, strconv.Quote(sec.Public().String()))
	}
	list := "[" + strings.Join(ids, ", ") + "]\n"
	_, address, err := d.serveWith(ctx, "[paths]\nblacklist = "+list)
	must(err)
	slept := filepath.Join(d.dir, "slept")
	t.Setenv("LOKINETD_TEST_SLEPT", slept)
	guest, err := d.client("guest", "10.77.0.200", fmt.Sprintf("[paths]\nedge_connections = %d\nstrict_edges = %s", own, list))
	must(err)
	must(guest.wait(ctx, func(s control.Status) bool { return s.State == control.Ready }))
	sh := func(script string) string {
		t.Helper()
		out, err := guest.node.Command("sh", "-ec", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
		return string(out)
	}
	at := strings.Fields(sh("getent ahostsv4 " + address))[0]
	session := func() control.Session {
		t.Helper()
		s, err := guest.status(ctx)
		must(err)
		for _, x := range s.Sessions {
			if strings.HasPrefix(x.Remote, strings.TrimSuffix(address, ".loki")) {
				return x
			}
		}
		t.Fatalf("no session with %s in %+v", address, s.Sessions)
		return control.Session{}
	}
	// flows sends a packet every 50 ms until one is answered.
	flows := func() time.Duration {
		t.Helper()
		began := time.Now()
		sh("ping -n -c 1200 -i 0.05 -W 1 " + at + " | sed '/bytes from/q' | grep -q 'bytes from'")
		return time.Since(began)
	}
	flows()
	first := session()

	measure := func(what, news string, change func(round int)) {
		var all []time.Duration
		for i := range roamRounds {
			time.Sleep(500 * time.Millisecond) // what was built is in use
			change(i)
			all = append(all, flows().Round(time.Millisecond))
		}
		t.Logf("%s: packets flow again after %v", what, all)
		slices.Sort(all)
		median := all[len(all)/2]
		t.Logf("%s: median %v, at most %v", what, median, all[len(all)-1])
		if *quietMachine && median > roamLimit {
			t.Errorf("%s: the median is %v, more than %v", what, median, roamLimit)
		}
		for end := time.Now().Add(eventually); strings.Count(guest.log.String(), news) < roamRounds; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: the daemon has not noticed it %d times:\n%s", what, roamRounds, guest.log.String())
			}
		}
		if now := session(); !now.Since.Equal(first.Since) {
			t.Errorf("%s: the session is of %v, and was of %v", what, now.Since, first.Since)
		}
	}
	measure("another address", "the network has changed", func(round int) {
		sh(fmt.Sprintf("ip addr flush dev eth0; sleep 0.3; ip addr add 10.77.0.%d/16 dev eth0", 201+round))
	})
	measure("ten minutes of sleep", "the machine has slept", func(round int) {
		must(guest.cmd.Signal(syscall.SIGSTOP))
		for _, c := range edges {
			c.Signal(syscall.SIGKILL)
			c.Wait()
		}
		start()
		for _, name := range names[:own] {
			for end := time.Now().Add(eventually); ; time.Sleep(10 * time.Millisecond) {
				if _, err := control.NewClient(filepath.Join(d.dir, name, "sock")).Status(ctx); err == nil {
					break
				} else if time.Now().After(end) {
					t.Fatal(err)
				}
			}
		}
		must(os.WriteFile(slept, fmt.Appendf(nil, "%dm", 10*(round+1)), 0o600))
		must(guest.cmd.Signal(syscall.SIGCONT))
	})
}
