package netif

import (
	"net/netip"
	"testing"
)

// TestFreeRanges walks through whole hosts: what they use, and what is found.
func TestFreeRanges(t *testing.T) {
	ps := func(l ...string) (r []netip.Prefix) {
		for _, s := range l {
			r = append(r, prefix(s))
		}
		return r
	}
	tests := []struct {
		name   string
		taken  []netip.Prefix
		bits   int
		prefer string
		want   string // "": none
	}{
		{"nothing", nil, 16, "", "172.16.0.1/16"},
		{"docker", ps("172.17.0.0/16", "192.168.1.0/24"), 16, "", "172.16.0.1/16"},
		{"docker and another TUN", ps("172.16.0.0/16", "172.17.0.0/16"), 16, "", "172.18.0.1/16"},
		{"a small network inside", ps("172.16.200.0/24"), 16, "", "172.17.0.1/16"},
		{"all of 172.16/12", ps("172.16.0.0/12"), 16, "", "10.0.0.1/16"},
		{"a company: 172.16/12 and 10/8", ps("172.16.0.0/12", "10.0.0.0/8"), 16, "", "192.168.0.1/16"},
		{"everything", ps("172.16.0.0/12", "10.0.0.0/8", "192.168.0.0/16"), 16, "", ""},
		{"every /16, but not every /24", ps("172.16.0.0/12", "10.0.0.0/8", "192.168.1.0/24"), 16, "", ""},
		{"a service then", ps("172.16.0.0/12", "10.0.0.0/8", "192.168.1.0/24"), 24, "", "192.168.0.1/24"},
		{"a service beside the browsing endpoint", ps("172.16.0.0/16"), 20, "", "172.17.0.1/20"},
		{"a second service", ps("172.16.0.0/16", "172.17.0.0/20"), 20, "", "172.17.16.1/20"},
		{"too large for 172.16/12", nil, 10, "", "10.0.0.1/10"},
		{"the range of the last start", ps("172.17.0.0/16"), 16, "10.9.0.1/16", "10.9.0.1/16"},
		{"the range of the last start is taken", ps("10.9.3.0/24"), 16, "10.9.0.1/16", "172.16.0.1/16"},
		{"the range of the last start has another length", nil, 16, "10.9.0.1/20", "172.16.0.1/16"},
		{"an IPv6 range in the list", ps("fd00::/8"), 16, "", "172.16.0.1/16"},
		{"7 bits", nil, 7, "", ""},
		{"31 bits", nil, 31, "", ""},
	}
	for _, tt := range tests {
		var prefer netip.Prefix
		if tt.prefer != "" {
			prefer = prefix(tt.prefer)
		}
		got, err := FreeIPv4(tt.taken, tt.bits, prefer)
		if tt.want == "" && err == nil || tt.want != "" && (err != nil || got != prefix(tt.want)) {
			t.Errorf("%s: %v, %v; want %q", tt.name, got, err, tt.want)
		}
	}
	for _, tt := range tests6 {
		got, err := FreeIPv6(ps(tt.taken...), tt.bits, netip.Prefix{})
		if tt.want == "" && err == nil || tt.want != "" && (err != nil || got != prefix(tt.want)) {
			t.Errorf("%v, /%d: %v, %v; want %q", tt.taken, tt.bits, got, err, tt.want)
		}
	}
	if got, err := FreeIPv6(nil, 64, prefix("fd2e:7365:7368:9::1/64")); err != nil || got != prefix("fd2e:7365:7368:9::1/64") {
		t.Errorf("preferred: %v, %v", got, err)
	}
}

var tests6 = []struct {
	taken []string
	bits  int
	want  string
}{
	{nil, 64, "fd2e:7365:7368::1/64"},
	{[]string{"fd2e:7365:7368::/64"}, 64, "fd2e:7365:7368:1::1/64"},
	{[]string{"fd2e:7365:7368::1/128", "fd2e:7365:7368:1::/64", "10.0.0.0/8"}, 64, "fd2e:7365:7368:2::1/64"},
	{[]string{"fd2e:7365:7368::/64"}, 56, "fd2e:7365:7368:100::1/56"},
	{[]string{"fd2e:7365:7368::/48"}, 64, ""},
	{[]string{"fd2e:7365:7368::/64"}, 48, ""},
	{nil, 65, ""},
	{nil, 47, ""},
}
