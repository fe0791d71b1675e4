//go:build root

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"lokinetd/router/control"
)

// TestDemoServiceRecords: a service's records are what others' name servers answer, by its address and by its name; who talks with it learns of new ones without asking.
func TestDemoServiceRecords(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	d, must, host, address := serving(ctx, t)
	defer d.close()
	guest, err := d.client("guest", "10.77.0.102", "")
	must(err)
	must(guest.wait(ctx, func(s control.Status) bool { return s.State == control.Ready }))
	dig := func(name string) string {
		out, err := guest.node.Command("dig", "+short", "@127.3.2.1", name, "SRV").CombinedOutput()
		if err != nil {
			t.Fatalf("dig %s: %v: %s", name, err, out)
		}
		return string(out)
	}
	if out := dig("_http._tcp." + address); out != "" {
		t.Errorf("a service without records: %q", out)
	}
	if out, err := guest.node.Command("curl", "-sS", "--fail", "--max-time", "60", "http://"+address+"/").CombinedOutput(); err != nil {
		t.Fatalf("curl: %v: %s", err, out)
	}

	f, err := os.OpenFile(d.file("host"), os.O_APPEND|os.O_WRONLY, 0)
	must(err)
	_, err = fmt.Fprintln(f, `srv = ["_http._tcp 10 5 80", "_sip._udp 0 0 0 ."]`)
	must(err)
	must(f.Close())
	must(host.cmd.Signal(syscall.SIGHUP))
	want := "10 5 80 " + address + ".\n"
	for end := time.Now().Add(eventually); dig("_http._tcp."+address) != want; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("20 s after the reload: %q; the daemon's log:\n%s", dig("_http._tcp."+address), host.log.String())
		}
	}
	if out := dig("_http._tcp." + demoName); !strings.HasSuffix(out, want) {
		t.Errorf("by name: %q", out)
	}
	if out := dig("_sip._udp." + address); out != "0 0 0 .\n" {
		t.Errorf("none offered: %q", out)
	}
	for _, name := range []string{"_imap._tcp." + address, "_x._http._tcp." + address, address} {
		if out := dig(name); out != "" {
			t.Errorf("%s: %q", name, out)
		}
	}
}
