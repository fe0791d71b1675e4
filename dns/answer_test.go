package dns

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"lokinetd/router/key"
)

// TestAnswers is the table of protocol 4 section 7.3 as protocol/README decisions 3, 4 and 10 change it.
func TestAnswers(t *testing.T) {
	connected := &fake{
		names: map[string]key.Address{"blog.loki": bob},
		texts: map[string][]string{
			"SELF.loki":       {"sessionrouter=client v=1.1.0 netid=test"},
			"RELAY.snode":     {"rc v=1.0.2 i=192.0.2.1:1190 t=1700000000"},
			"path.ALICE.loki": {"d=none"},
			"ALICE.loki":      {`back\slash`, strings.Repeat("x", 300)},
		},
		services: []SRV{
			{"_http._tcp", 1, 2, 80, ""},
			{"_http._tcp", 3, 4, 81, "."},
			{"_http._tcp", 3, 4, 82, named("www.BOB.sesh")},
			{"_http._tcp", 3, 4, 83, "blog.loki"},
			{"_http._tcp", 3, 4, 84, "tracker.example.com"}, // not ours
			{"_http._tcp", 3, 4, 85, "localhost.loki"},      // would be the asker
			{"_http._tcp", 3, 4, 86, "random.snode"},
			{"_http._tcp", 3, 4, 87, "not a name.loki"},
			{"_imap._tcp", 0, 0, 143, ""},
		},
	}
	fails := errors.New("path lost")
	for _, c := range []struct {
		source   *fake
		question string
		want     string
	}{
		// Addresses: both families for every name (decision 4), whatever stands in front.
		{connected, "A ALICE.loki.", "NOERROR aa | ALICE.loki. 10 A 172.16.0.2"},
		{connected, "AAAA ALICE.loki.", "NOERROR aa | ALICE.loki. 10 AAAA fd00::2"},
		{connected, "A ALICE.sesh.", "NOERROR aa | ALICE.sesh. 10 A 172.16.0.2"},
		{connected, "A ALICE.LoKi.", "NOERROR aa | ALICE.LoKi. 10 A 172.16.0.2"},
		{connected, "A RELAY.snode.", "NOERROR aa | RELAY.snode. 10 A 172.16.0.4"},
		{connected, "AAAA RELAY.snode.", "NOERROR aa | RELAY.snode. 10 AAAA fd00::4"},
		{connected, "A ipv4.ALICE.sesh.", "NOERROR aa | ipv4.ALICE.sesh. 10 A 172.16.0.2"},
		{connected, "AAAA ipv4.ALICE.sesh.", "NOERROR aa | ipv4.ALICE.sesh. 10 AAAA fd00::2"},
		{connected, "A a.b.c.ALICE.loki.", "NOERROR aa | a.b.c.ALICE.loki. 10 A 172.16.0.2"},
		{connected, "A _x.ALICE.loki.", "NOERROR aa | _x.ALICE.loki. 10 A 172.16.0.2"},
		// Relays that are not registered, names that cannot be, names that are not registered (decision 10).
		{connected, "A UNKNOWN.snode.", "NXDOMAIN aa ; SOA snode. 15 ede 0"},
		{connected, "HTTPS UNKNOWN.snode.", "NXDOMAIN aa ; SOA snode. 15 ede 0"},
		{connected, "A UNKNOWN.loki.", "NOERROR aa | UNKNOWN.loki. 10 A 172.16.0.5"},
		{connected, "A short.snode.", "NXDOMAIN aa ; SOA snode. 30 ede 0"},
		{connected, "A name.sesh.", "NXDOMAIN aa ; SOA sesh. 30 ede 0"},
		{connected, "A -x.loki.", "NXDOMAIN aa ; SOA loki. 30 ede 0"},
		{connected, "A a_b.loki.", "NXDOMAIN aa ; SOA loki. 30 ede 0"},
		{connected, `A a\.ALICE.loki.`, `NXDOMAIN aa ; SOA loki. 30 ede 0`},
		{connected, `A blog\.loki.`, `NXDOMAIN aa ; SOA blog\.loki. 30 ede 15`},
		{connected, "A loki.loki.", "NXDOMAIN aa ; SOA loki. 30 ede 0"},
		{connected, "A other.loki.", "NXDOMAIN aa ; SOA loki. 300"},
		// Registered names: CNAME to the address, with everything in front.
		{connected, "A blog.loki.", "NOERROR aa | blog.loki. 100 CNAME BOB.loki. | BOB.loki. 10 A 172.16.0.3"},
		{connected, "AAAA www.blog.loki.", "NOERROR aa | www.blog.loki. 100 CNAME www.BOB.loki. | www.BOB.loki. 10 AAAA fd00::3"},
		{connected, "CNAME blog.loki.", "NOERROR aa | blog.loki. 100 CNAME BOB.loki."},
		{connected, "MX blog.loki.", "NOERROR aa | blog.loki. 100 CNAME BOB.loki. ; SOA loki. 30"},
		{connected, "A " + strings.Repeat("a.", 100) + "blog.loki.", "NXDOMAIN aa ; SOA loki. 30 ede 0"}, // too long with a key in its place
		// Ourselves.
		{connected, "A localhost.loki.", "NOERROR aa | localhost.loki. 10 CNAME SELF.loki. | SELF.loki. 10 A 172.16.0.1"},
		{connected, "AAAA x.localhost.sesh.", "NOERROR aa | x.localhost.sesh. 10 CNAME x.SELF.loki. | x.SELF.loki. 10 AAAA fd00::1"},
		{connected, "CNAME localhost.loki.", "NOERROR aa | localhost.loki. 10 CNAME SELF.loki."},
		{connected, "HTTPS localhost.snode.", "NOERROR aa | localhost.snode. 10 CNAME SELF.loki. ; SOA loki. 30"},
		// Some relay.
		{connected, "A random.snode.", "NOERROR aa | random.snode. 1 CNAME RELAY.snode. | RELAY.snode. 10 A 172.16.0.4"},
		{connected, "CNAME random.snode.", "NOERROR aa | random.snode. 1 CNAME RELAY.snode."},
		{&fake{noRelays: true}, "A random.snode.", "SERVFAIL ede 14"},
		// Other types of names that exist.
		{connected, "HTTPS ALICE.loki.", "NOERROR aa ; SOA loki. 30"},
		{connected, "SVCB ALICE.loki.", "NOERROR aa ; SOA loki. 30"},
		{connected, "MX ALICE.sesh.", "NOERROR aa ; SOA sesh. 30"},
		{connected, "ANY ALICE.loki.", "NOERROR aa ; SOA loki. 30"},
		{connected, "CNAME ALICE.loki.", "NOERROR aa ; SOA loki. 30"},
		{connected, "AXFR ALICE.loki.", "REFUSED ede 21"},
		{connected, "AXFR example.com.", "REFUSED ede 21"},
		// TXT.
		{connected, "TXT localhost.loki.", `NOERROR aa | localhost.loki. 10 CNAME SELF.loki. | SELF.loki. 10 TXT "sessionrouter=client v=1.1.0 netid=test"`},
		{connected, "TXT RELAY.snode.", `NOERROR aa | RELAY.snode. 10 TXT "rc v=1.0.2 i=192.0.2.1:1190 t=1700000000"`},
		{connected, "TXT path.ALICE.loki.", `NOERROR aa | path.ALICE.loki. 0 TXT "d=none"`},
		{connected, "TXT path.BOB.loki.", "NOERROR aa ; SOA loki. 30"},
		{connected, "TXT x.ALICE.loki.", "NOERROR aa ; SOA loki. 30"},
		{connected, "TXT UNKNOWN.snode.", "NXDOMAIN aa ; SOA snode. 15 ede 0"},
		{connected, "TXT ALICE.loki.", `NOERROR aa | ALICE.loki. 10 TXT "back\\slash" "` + strings.Repeat("x", 255) + `" "` + strings.Repeat("x", 45) + `"`},
		// SRV: only targets of ours.
		{connected, "SRV _http._tcp.ALICE.loki.", "NOERROR aa | _http._tcp.ALICE.loki. 10 SRV 1 2 80 ALICE.loki. | _http._tcp.ALICE.loki. 10 SRV 3 4 81 ." +
			" | _http._tcp.ALICE.loki. 10 SRV 3 4 82 www.BOB.loki. | _http._tcp.ALICE.loki. 10 SRV 3 4 83 blog.loki."},
		{connected, "SRV _IMAP._tcp.blog.loki.", "NOERROR aa | _IMAP._tcp.blog.loki. 100 CNAME _imap._tcp.BOB.loki. | _imap._tcp.BOB.loki. 10 SRV 0 0 143 BOB.loki."},
		{connected, "SRV _ftp._tcp.ALICE.loki.", "NOERROR aa ; SOA loki. 30"},
		{connected, "SRV ALICE.loki.", "NOERROR aa ; SOA loki. 30"},
		{connected, "SRV x._http._tcp.ALICE.loki.", "NOERROR aa ; SOA loki. 30"},
		{&fake{srvErr: ErrNotExist}, "SRV _http._tcp.ALICE.loki.", "NOERROR aa ; SOA loki. 30"}, // offline now is not "does not exist"
		{&fake{srvErr: fails}, "SRV _http._tcp.ALICE.loki.", "SERVFAIL ede 23"},
		// The domains themselves.
		{connected, "SOA loki.", "NOERROR aa | loki. 30 SOA localhost.loki. lokinetd.localhost.loki. 1 3600 600 86400 30"},
		{connected, "NS loki.", "NOERROR aa ; SOA loki. 30"},
		{connected, "DS snode.", "NOERROR aa ; SOA snode. 30"},
		{&fake{offline: true}, "A sesh.", "NOERROR aa ; SOA sesh. 30"},
		// Not connected.
		{&fake{offline: true}, "A ALICE.loki.", "SERVFAIL ede 14"},
		{&fake{offline: true}, "HTTPS ALICE.loki.", "SERVFAIL ede 14"},
		{&fake{offline: true}, "A blog.loki.", "SERVFAIL ede 14"},
		{&fake{offline: true}, "A random.snode.", "SERVFAIL ede 14"},
		{&fake{offline: true}, "A -x.loki.", "NXDOMAIN aa ; SOA loki. 30 ede 0"}, // certain without a network
		{&fake{offline: true}, "A localhost.loki.", "NOERROR aa | localhost.loki. 10 CNAME SELF.loki. | SELF.loki. 10 A 172.16.0.1"},
		{&fake{offline: true}, "A SELF.loki.", "NOERROR aa | SELF.loki. 10 A 172.16.0.1"},
		// Other failures.
		{&fake{lookupErr: fails}, "A blog.loki.", "SERVFAIL ede 23"},
		{&fake{addrErr: fails}, "A ALICE.loki.", "SERVFAIL ede 23"},
		{&fake{ipv6Off: true}, "AAAA ALICE.loki.", "NOERROR aa ; SOA loki. 30 ede 0"},
		{&fake{ipv6Off: true}, "A ALICE.loki.", "NOERROR aa | ALICE.loki. 10 A 172.16.0.2"},
		{&fake{full: true}, "A ALICE.loki.", "NOERROR aa ; SOA loki. 5 ede 0"},
		{&fake{full: true}, "AAAA ALICE.loki.", "NOERROR aa | ALICE.loki. 10 AAAA fd00::2"},
		// Reverse.
		{connected, "PTR 2.0.16.172.in-addr.arpa.", "NOERROR aa | 2.0.16.172.in-addr.arpa. 10 PTR ALICE.loki."},
		{connected, "PTR 4.0.16.172.IN-ADDR.arpa.", "NOERROR aa | 4.0.16.172.IN-ADDR.arpa. 10 PTR RELAY.snode."},
		{connected, "PTR " + v6name("fd00::1"), "NOERROR aa | " + v6name("fd00::1") + " 10 PTR SELF.loki."},
		{connected, "PTR 9.9.16.172.in-addr.arpa.", "NXDOMAIN aa ; SOA 16.172.in-addr.arpa. 5"},
		{connected, "PTR " + v6name("fd00::9"), "NXDOMAIN aa ; SOA " + v6name("fd00::9")[32:] + " 5"},
		{connected, "A 2.0.16.172.in-addr.arpa.", "NOERROR aa ; SOA 16.172.in-addr.arpa. 30"},
		{connected, "PTR 0.16.172.in-addr.arpa.", "NOERROR aa ; SOA 16.172.in-addr.arpa. 30"},
		{connected, "SOA 16.172.in-addr.arpa.", "NOERROR aa | 16.172.in-addr.arpa. 30 SOA localhost.loki. lokinetd.localhost.loki. 1 3600 600 86400 30"},
		{connected, "PTR lb._dns-sd._udp.0.0.16.172.in-addr.arpa.", "NXDOMAIN aa ; SOA 16.172.in-addr.arpa. 30 ede 0"},
		{connected, "PTR 002.0.16.172.in-addr.arpa.", "NXDOMAIN aa ; SOA 16.172.in-addr.arpa. 30 ede 0"},
		{&fake{ranges: []netip.Prefix{netip.MustParsePrefix("172.16.0.1/12")}}, "PTR 9.9.31.172.in-addr.arpa.", "NXDOMAIN aa ; SOA 31.172.in-addr.arpa. 5"},
		{&fake{ranges: []netip.Prefix{netip.MustParsePrefix("172.16.0.1/18")}}, "PTR 9.9.16.172.in-addr.arpa.", "NXDOMAIN aa ; SOA 9.16.172.in-addr.arpa. 5"},
		// Not ours: no upstream here.
		{&fake{ranges: []netip.Prefix{netip.MustParsePrefix("172.16.0.1/18")}}, "PTR 9.64.16.172.in-addr.arpa.", "REFUSED ede 20"},
		{connected, "PTR 172.in-addr.arpa.", "REFUSED ede 20"},
		{connected, "PTR 1.1.17.172.in-addr.arpa.", "REFUSED ede 20"},
		{connected, "A example.com.", "REFUSED ede 20"},
		{connected, "NS .", "REFUSED ede 20"},
		{connected, "A loki.example.com.", "REFUSED ede 20"},
		{connected, "A use-application-dns.net.", "NXDOMAIN aa ; SOA use-application-dns.net. 30"},
		{connected, "HTTPS use-application-dns.net.", "NXDOMAIN aa ; SOA use-application-dns.net. 30"},
		{connected, "A x.onion.", "NXDOMAIN aa ; SOA onion. 30 ede 15"},
	} {
		if got := short(ask(t, newServer(t, c.source), c.question)); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.question, got, c.want)
		}
	}
}

// v6name is the reverse name of an IPv6 address.
func v6name(ip string) string {
	name, err := dns.ReverseAddr(ip)
	if err != nil {
		panic(err)
	}
	return name
}

// TestSuffix: clients are .sesh where that is configured; relays and questions stay what they are.
func TestSuffix(t *testing.T) {
	s, err := New(Config{Source: &fake{names: map[string]key.Address{"blog.loki": bob}}, Sockets: new(Sockets), Suffix: "sesh"})
	if err != nil {
		t.Fatal(err)
	}
	for question, want := range map[string]string{
		"A ALICE.loki.":                "NOERROR aa | ALICE.loki. 10 A 172.16.0.2",
		"A blog.loki.":                 "NOERROR aa | blog.loki. 100 CNAME BOB.sesh. | BOB.sesh. 10 A 172.16.0.3",
		"MX blog.loki.":                "NOERROR aa | blog.loki. 100 CNAME BOB.sesh. ; SOA sesh. 30",
		"PTR 2.0.16.172.in-addr.arpa.": "NOERROR aa | 2.0.16.172.in-addr.arpa. 10 PTR ALICE.sesh.",
		"CNAME random.snode.":          "NOERROR aa | random.snode. 1 CNAME RELAY.snode.",
	} {
		if got := short(ask(t, s, question)); got != want {
			t.Errorf("%s\n got %s\nwant %s", question, got, want)
		}
	}
}

// TestHold: an answer waits for the session, or for the first path, at most 1.5 s (decision 10).
func TestHold(t *testing.T) {
	for _, c := range []struct {
		name   string
		source *fake
		want   string
		took   time.Duration
	}{
		{"session in time", &fake{wait: 400 * time.Millisecond}, "NOERROR aa | ALICE.loki. 10 A 172.16.0.2", 400 * time.Millisecond},
		{"session late", &fake{wait: time.Minute}, "NOERROR aa | ALICE.loki. 10 A 172.16.0.2 ede 0", holdTime},
		{"not connected in time", &fake{offline: true, wait: time.Minute}, "SERVFAIL ede 14", holdTime},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newServer(t, c.source)
			start := time.Now()
			if got := short(ask(t, s, "A ALICE.loki.")); got != c.want {
				t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
			}
			if took := time.Since(start); took != c.took {
				t.Errorf("%s: took %v, want %v", c.name, took, c.took)
			}
		})
	}
}

// TestNoSessionForNothing: only an address query for somebody else may start a session.
func TestNoSessionForNothing(t *testing.T) {
	src := &fake{names: map[string]key.Address{"blog.loki": bob}}
	s := newServer(t, src)
	for _, q := range []string{"HTTPS ALICE.loki.", "TXT ALICE.loki.", "MX blog.loki.", "CNAME blog.loki.", "A UNKNOWN.snode.", "A x.sesh.", "SOA loki."} {
		ask(t, s, q)
	}
	for _, c := range src.calls {
		if strings.HasPrefix(c, "addr ") {
			t.Errorf("called %s", c)
		}
	}
}

// TestStats: every reply is counted once by rcode and once by reason.
func TestStats(t *testing.T) {
	s := newServer(t, &fake{})
	for _, q := range []string{"A ALICE.loki.", "MX ALICE.loki.", "A other.loki.", "A -.loki.", "A UNKNOWN.snode.", "A example.com.", "A use-application-dns.net."} {
		ask(t, s, q)
	}
	want := Stats{
		NoError: 2, NXDomain: 4, Refused: 1,
		Answered: 1, NoData: 1, NotFound: 1, Malformed: 1, NotRegistered: 1, NoUpstream: 1, Canary: 1,
	}
	if got := s.Stats(); got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}
