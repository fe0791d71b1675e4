package main

import (
	"fmt"
	"testing"

	"lokinetd/config"
	"lokinetd/dns"
)

// TestHostMethods holds the words of the configuration and those of the resolver integration together: the layers keep them from knowing each other.
func TestHostMethods(t *testing.T) {
	for _, m := range append(dns.Methods, dns.MethodNone, "") {
		_, err := config.Parse(fmt.Appendf(nil, "[dns]\nhost = %q\n", m), "x.toml")
		if wished := m != dns.MethodNone && m != ""; (err == nil) != wished {
			t.Errorf("%q: %v", m, err)
		}
	}
	if got := dns.Method(config.Default().DNS.Host); got != dns.MethodAuto {
		t.Errorf("by default it is %q", got)
	}
}

// TestDNSOff: where there is no name server for programs, nothing of the host matters.
func TestDNSOff(t *testing.T) {
	s := newScript(t)
	s.write("off.toml", "[dns]\nenabled = false\n")
	s.run(0, "dns status -c off.toml", "resolver of this host: off", "because: there is no name server here (dns.enabled = false, or a relay)")
	s.run(0, "dns status --json -c off.toml", `"method": "off"`, `"in_effect": false`)
	s.run(2, "dns", "which of the commands")
	s.run(1, "dns status -c none.toml", "none.toml")
}
