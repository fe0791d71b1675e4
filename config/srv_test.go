package config

import (
	"strings"
	"testing"
)

// TestSRV: what is read, as it is written again; "" for what is refused.
func TestSRV(t *testing.T) {
	key := "dw68y1xhptqbhcm5s8aaaip6dbopykagig5q5u1za4c7pzxto77y"
	for text, want := range map[string]string{
		"_http._tcp 10 5 80":                           "_http._tcp 10 5 80",
		"  _HTTP._tcp\t1 2  3  LocalHost.loki. ":       "_http._tcp 1 2 3",
		"_sip._udp 0 65535 65535 localhost.sesh":       "_sip._udp 0 65535 65535",
		"_xmpp-client._tcp 0 0 5222 Chat.example.loki": "_xmpp-client._tcp 0 0 5222 chat.example.loki",
		"_http._tcp 0 0 80 " + key + ".sesh":           "_http._tcp 0 0 80 " + key + ".sesh",
		"_http._tcp 0 0 0 .":                           "_http._tcp 0 0 0 .",
		"_http._tcp 0 0 80 .":                          "_http._tcp 0 0 80 .",

		"":                                             "",
		"_http._tcp":                                   "",
		"_http._tcp 0 0":                               "",
		"_http._tcp 0 0 0":                             "",
		"_http._tcp 0 0 65536":                         "",
		"_http._tcp 0 -1 80":                           "",
		"_http._tcp 0 0 80 a.loki b":                   "",
		"http._tcp 0 0 80":                             "",
		"_http.tcp 0 0 80":                             "",
		"_http 0 0 80":                                 "",
		"_http._tcp.x 0 0 80":                          "",
		"_._tcp 0 0 80":                                "",
		"_a_b._tcp 0 0 80":                             "",
		"_http._tcp 0 0 80 example.org":                "",
		"_http._tcp 0 0 80 loki":                       "",
		"_http._tcp 0 0 80 a.sesh":                     "", // only keys are in .sesh
		"_http._tcp 0 0 80 random.snode":               "",
		"_http._tcp 0 0 80 " + key + ".snode":          "",
		"_http._tcp 0 0 80 x.localhost.loki":           "",
		"_" + strings.Repeat("a", 63) + "._tcp 0 0 80": "",
		"_http._tcp 0 0 80 " + strings.Repeat("abcd.", 40) + "ab.loki": "",
	} {
		var s, again SRV
		err := s.UnmarshalText([]byte(text))
		if got := s.String(); err != nil && want != "" || err == nil && got != want {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
		if err == nil && (again.UnmarshalText([]byte(s.String())) != nil || again != s) {
			t.Errorf("%q: read again it is %+v", s, again)
		}
	}
}
