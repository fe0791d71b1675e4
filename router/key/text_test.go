package key

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// One key with the padding of its last character in canonical form and not: 'y' is 00000, the four low bits are padding.
const (
	text   = "yqooxx9u3aemh8mo5wcqq16yufu6jitouq1o4za751dger1igghy"
	padded = "yqooxx9u3aemh8mo5wcqq16yufu6jitouq1o4za751dger1igghe"
)

func TestParsePublic(t *testing.T) {
	want := FromSeed(counting(0)).Public()
	for _, s := range []string{text, strings.ToUpper(text), padded, text[:51] + "B"} {
		if p, err := ParsePublic(s); err != nil || p != want || p.String() != text {
			t.Errorf("%q: %v, %v", s, p, err)
		}
	}
	for n := range text {
		if _, err := ParsePublic(text[:n]); err == nil {
			t.Errorf("%d characters are a key", n)
		}
	}
	for _, s := range []string{
		text + "y", text + ".loki", " " + text[1:], text[:51] + "\n", text[:51] + "\r", "\n" + text[:50] + "\n",
		"0" + text[1:], "l" + text[1:], "v" + text[1:], "2" + text[1:], "-" + text[1:], "=" + text[1:], text[:51] + "=",
		text[:50] + "\u212a"[:2], "\u212a" + text[3:], // the Kelvin sign lowers to k in Unicode
	} {
		if _, err := ParsePublic(s); err == nil {
			t.Errorf("%q is a key", s)
		}
	}
	if (Public{}).IsZero() != true || want.IsZero() {
		t.Error("IsZero")
	}
	a, b := Public{0, 1}, Public{1, 0}
	if a.Compare(b) != -1 || b.Compare(a) != 1 || a.Compare(a) != 0 {
		t.Error("Compare is not the order of bytes")
	}
}

func TestParseAddress(t *testing.T) {
	k := FromSeed(counting(0)).Public()
	for _, v := range []struct {
		in      string
		kind    Kind
		str, se string
	}{
		{text + ".loki", Client, text + ".loki", text + ".sesh"},
		{text + ".sesh", Client, text + ".loki", text + ".sesh"},
		{text + ".snode", Relay, text + ".snode", text + ".snode"},
		{strings.ToUpper(text) + ".SNode", Relay, text + ".snode", text + ".snode"},
		{padded + ".Sesh", Client, text + ".loki", text + ".sesh"},
	} {
		a, err := ParseAddress(v.in)
		if err != nil || a != (Address{k, v.kind}) {
			t.Errorf("%q: %+v, %v", v.in, a, err)
		}
		if a.String() != v.str || a.Text(TLDSesh) != v.se {
			t.Errorf("%q prints as %s and %s", v.in, a, a.Text(TLDSesh))
		}
		if b, err := ParseAddress(a.String()); err != nil || b != a {
			t.Errorf("%q again: %v, %v", v.in, b, err)
		}
		j, err := json.Marshal(map[string]Address{"a": a})
		if err != nil || string(j) != `{"a":"`+v.str+`"}` {
			t.Errorf("%q as JSON: %s, %v", v.in, j, err)
		}
		var back map[string]Address
		if err := json.Unmarshal(j, &back); err != nil || back["a"] != a {
			t.Errorf("%q from JSON: %v, %v", v.in, back, err)
		}
	}
	for _, s := range []string{
		"", ".", text, text + ".", text + ".loki.", text + ".onion", "." + text + ".loki", "www." + text + ".loki", text + ".loki.loki", text + "..loki",
		text[1:] + ".loki", "y" + text + ".snode", ".snode", "loki", "jason.loki", text + ".lo\u212ai", text + "\n.loki", text + " .loki",
	} {
		if a, err := ParseAddress(s); err == nil {
			t.Errorf("%q is the address %v", s, a)
		}
	}
	if (Address{k, Client}) == (Address{k, Relay}) {
		t.Error("client and relay are equal")
	}
	if !(Address{}).IsZero() || (Address{k, Client}).IsZero() {
		t.Error("IsZero")
	}
}

func TestParseName(t *testing.T) {
	k := FromSeed(counting(0)).Public()
	client, relay := Address{k, Client}, Address{k, Relay}
	sns := func(tld, host string, labels ...string) Name {
		return Name{Labels: labels, Host: host, TLD: tld, Kind: NameSNS, SNS: host + ".loki"}
	}
	address := func(tld string, a Address, labels ...string) Name {
		return Name{Labels: labels, Host: text, TLD: tld, Kind: NameAddress, Address: a}
	}
	local := func(tld string, labels ...string) Name {
		return Name{Labels: labels, Host: "localhost", TLD: tld, Kind: NameLocalhost}
	}
	x52 := "00" + text[2:] // 52 characters, no dash, not base32z
	dash52 := text[:25] + "-" + text[26:]
	for _, v := range []struct {
		in   string
		want Name
	}{
		// Keys (protocol 1 section 2.2 and 2.3).
		{text + ".loki", address("loki", client)},
		{text + ".sesh.", address("sesh", client)},
		{text + ".snode", address("snode", relay)},
		{"www." + text + ".sesh", address("sesh", client, "www")},
		{"x.ipv4." + text + ".loki", address("loki", client, "x", "ipv4")},
		{"_http._tcp." + text + ".loki", address("loki", client, "_http", "_tcp")},
		{"WWW." + strings.ToUpper(text) + ".Loki.", address("loki", client, "www")},
		{"path." + padded + ".SNODE", address("snode", relay, "path")},
		// This node and random relays (protocol 1 section 2.3).
		{"localhost.loki", local("loki")},
		{"LocalHost.sesh", local("sesh")},
		{"localhost.snode", local("snode")},
		{"a.b.localhost.loki", local("loki", "a", "b")},
		{"random.snode", Name{Host: "random", TLD: "snode", Kind: NameRandom}},
		{"ipv4.random.snode.", Name{Labels: []string{"ipv4"}, Host: "random", TLD: "snode", Kind: NameRandom}},
		{"random.loki", sns("loki", "random")},
		// Names of the registry; the first ones are upstream's valid cases (protocol 1 section 8.1).
		{"xn--animewasindeedamistake.loki", sns("loki", "xn--animewasindeedamistake")},
		{"memerionos.loki", sns("loki", "memerionos")},
		{"whyis.xn--animehorrible.loki", sns("loki", "xn--animehorrible", "whyis")},
		{"the.goog.loki", sns("loki", "goog", "the")},
		{"420.loki", sns("loki", "420")},
		{"Jason.LOKI.", sns("loki", "jason")},
		{"_sip._udp.jason.loki", sns("loki", "jason", "_sip", "_udp")},
		{"sesh.loki", sns("loki", "sesh")},
		{dash52 + ".loki", sns("loki", dash52)}, // README, corrections: not base32z, so an SNS name like any other
		{"loki.jason.loki", sns("loki", "jason", "loki")},
	} {
		n, err := ParseName(v.in)
		if err != nil || !reflect.DeepEqual(n, v.want) {
			t.Errorf("%q: %+v, %v, want %+v", v.in, n, err, v.want)
			continue
		}
		again, err := ParseName(n.String())
		if err != nil || !reflect.DeepEqual(again, n) {
			t.Errorf("%q: %q parses to %+v, %v", v.in, n.String(), again, err)
		}
	}

	long := strings.Repeat("a.", 125)
	for _, v := range []struct {
		in   string
		want error
	}{
		{"", ErrNotOurs}, {".", ErrNotOurs}, {"..", ErrNotOurs}, {"example.com", ErrNotOurs}, {"loki.com", ErrNotOurs}, {"localhost", ErrNotOurs}, {text, ErrNotOurs},
		{"a..com", ErrNotOurs}, {"jason.lo\u212ai", ErrNotOurs}, {"xloki", ErrNotOurs}, {"jason.loki..", ErrNotOurs}, {"jason.loki ", ErrNotOurs},
		{"loki", ErrMalformed}, {"snode.", ErrMalformed}, {".sesh", ErrMalformed}, {".jason.loki", ErrMalformed}, {"a..jason.loki", ErrMalformed}, {"jason..loki", ErrMalformed},
		{"..loki", ErrMalformed},
		{"jason.sesh", ErrMalformed}, {"random.sesh", ErrMalformed}, {"jason.snode", ErrMalformed}, {text[1:] + ".snode", ErrMalformed}, {text + "y.sesh", ErrMalformed},
		{x52 + ".snode", ErrMalformed}, {dash52 + ".sesh", ErrMalformed},
		{x52 + ".loki", ErrMalformed}, // an SNS name then, and too long without a dash
		{strings.Repeat("a", 64) + ".jason.loki", ErrMalformed}, {long + "ab.loki", ErrMalformed}, {long + text + ".sesh", ErrMalformed},
		{"a b.jason.loki", ErrMalformed}, {"\x00.jason.loki", ErrMalformed}, {"a\x7f.jason.loki", ErrMalformed}, {"\u00fc.jason.loki", ErrMalformed}, {"m\u00fcller.loki", ErrMalformed},
		{"under_score.loki", ErrMalformed},
		// Upstream's invalid cases; localhost is this node.
		{"loki.loki", ErrMalformed}, {"snode.loki", ErrMalformed}, {"x.loki.loki", ErrMalformed}, {"-loki.loki", ErrMalformed}, {"abc-.loki", ErrMalformed}, {"bn--abc.loki", ErrMalformed},
		{strings.Repeat("a", 33) + ".loki", ErrMalformed},
	} {
		if n, err := ParseName(v.in); !errors.Is(err, v.want) {
			t.Errorf("%q: %+v, %v, want %v", v.in, n, err, v.want)
		}
	}
	if n, err := ParseName(long[8:] + "jas.loki"); err != nil || len(n.Labels) != 121 {
		t.Errorf("a name of 250 bytes: %v", err)
	}

	// A Name's labels can be appended to without harm to its other fields.
	n, err := ParseName("a.b." + text + ".loki")
	if err != nil {
		t.Fatal(err)
	}
	_ = append(n.Labels, "x")
	if want := "a.b." + text + ".loki"; n.String() != want || n.String() != want {
		t.Errorf("%s, want %s", n, want)
	}
}

// Origin: upstream's test cases as protocol 1 section 8.1 lists them, then our own.
func TestCheckSNS(t *testing.T) {
	valid := []string{
		"xn--animewasindeedamistake.loki", "memerionos.loki", "whyis.xn--animehorrible.loki", "the.goog.loki", "420.loki",
		"a.loki", "a-b.loki", "a--b.loki", "x-n.loki", "jason.loki", strings.Repeat("a", 32) + ".loki", "a-" + strings.Repeat("b", 61) + ".loki",
		"xn--a.loki", "loki.jason.loki", "sesh.loki", "a-b.c.loki", "-a.b.loki",
	}
	invalid := []string{
		"loki.loki", "snode.loki", "localhost.loki", "x.loki.loki", "-loki.loki", "abc-.loki", "bn--abc.loki", strings.Repeat("a", 33) + ".loki",
		"", ".", ".loki", "loki", "..loki", "a..loki", ".a.loki", "a.b..loki", "a.loki.", "a.sesh", "a.loki.com", "A.loki", "a.Loki", "a_b.loki", "a b.loki", "a\x00.loki", "\u00fc.loki",
		"-.loki", "--.loki", "---.loki", "----.loki", "a-.loki", "-a.loki", "ab-.loki", "ab--.loki", "ab--c.loki", "xm--c.loki", "xn--.loki", "x.snode.loki", "x.localhost.loki",
		strings.Repeat("a", 64) + ".b.loki", "a-" + strings.Repeat("b", 62) + ".loki", strings.Repeat("a.", 124) + "b.loki",
	}
	for _, n := range valid {
		if err := CheckSNS(n); err != nil {
			t.Error(err)
		}
	}
	for _, n := range invalid {
		if err := CheckSNS(n); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q is a valid name: %v", n, err)
		}
	}
}

// Keys and names come into logs only when the process was told so; whole structs of them too.
func TestRevealInLogs(t *testing.T) {
	k := FromSeed(counting(0)).Public()
	n, err := ParseName("www.jason.loki")
	if err != nil {
		t.Fatal(err)
	}
	line := func() string {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		log.Info("m", "key", k, "client", Address{k, Client}, "relay", Address{k, Relay}, "name", n)
		s := out.String()
		return s[strings.Index(s, "key="):]
	}
	if got, want := line(), "key=(key) client=(client) relay=(relay) name=(name)\n"; got != want {
		t.Errorf("hidden: %s want %s", got, want)
	}
	RevealInLogs(true)
	defer RevealInLogs(false)
	if got, want := line(), fmt.Sprintf("key=%s client=%[1]s.loki relay=%[1]s.snode name=www.jason.loki\n", text); got != want {
		t.Errorf("revealed: %s want %s", got, want)
	}
	kinds := []string{Client.String(), Relay.String(), Kind(7).String()}
	if !slices.Equal(kinds, []string{"client", "relay", "Kind(7)"}) {
		t.Error(kinds)
	}
}
