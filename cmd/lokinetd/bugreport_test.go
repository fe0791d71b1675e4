package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"lokinetd/router/control"
	"lokinetd/router/key"
)

// plantedSecrets is what no bug report may hold, each a part that tells something by itself.
func plantedSecrets() map[string]string {
	sec := goldenKey(99)
	public := sec.Public()
	seed := sec.Seed()
	return map[string]string{
		"secret key":   hex.EncodeToString(seed[:]),
		"public key":   public.String(),
		"hexadecimal":  hex.EncodeToString(public[:]),
		"in capitals":  strings.ToUpper(public.String()),
		"client":       key.Address{Key: public}.String(),
		"relay":        key.Address{Key: goldenKey(98).Public(), Kind: key.Relay}.String(),
		"sesh":         strings.Replace(key.Address{Key: goldenKey(97).Public()}.String(), ".loki", ".sesh", 1),
		"subdomain":    "www.alices-diary.loki",
		"IPv4":         "198.51.100.77",
		"with a port":  "203.0.113.9:1190",
		"prefix":       "192.168.77.0/24",
		"IPv6":         "2001:db8:77::9",
		"IPv6 port":    "[2001:db8:78::9]:1190",
		"mapped":       "::ffff:203.0.113.77",
		"host":         "intranet.alice.example",
		"path":         "/home/alice/diary",
		"base64":       "QWxpY2UncyBzZWNyZXQgaXMgNDIsIGRvIG5vdCB0ZWxsIGFueWJvZHkh",
		"service name": "alices-shop",
		"network name": "alicenet",
	}
}

// secretText is all of them, as a message may hold them.
func secretText() string {
	var b strings.Builder
	for i, s := range slices.Sorted(func(yield func(string) bool) {
		for _, s := range plantedSecrets() {
			if !yield(s) {
				return
			}
		}
	}) {
		fmt.Fprintf(&b, []string{"%s, ", "(%s) ", "\"%s\": ", "at=%s; ", "%s. "}[i%5], s)
	}
	return b.String()
}

// plantTexts fills every text of a status.
func plantTexts(v reflect.Value, at string) {
	switch v.Kind() {
	case reflect.String:
		switch {
		case slices.Contains(openFields, at):
			v.SetString("word")
		case slices.Contains(textFields, at):
			v.SetString(secretText())
		default:
			v.SetString("planted " + at + " " + plantedSecrets()["public key"])
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		plantTexts(v.Elem(), at)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		plantTexts(v.Index(0), at)
		plantTexts(v.Index(1), at)
	case reflect.Struct:
		if v.Type() != reflect.TypeFor[time.Time]() {
			for i := range v.NumField() {
				plantTexts(v.Field(i), at+"."+v.Type().Field(i).Name)
			}
		}
	}
}

// loudDaemon says all that it must not.
type loudDaemon struct {
	fakeDaemon
}

func (loudDaemon) Log() control.Log {
	return control.Log{Lines: []control.LogLine{{Level: "WARN", Module: "dns", Message: secretText()}}}
}

func noSecret(t *testing.T, text string) {
	t.Helper()
	for what, secret := range plantedSecrets() {
		if strings.Contains(strings.ToLower(text), strings.ToLower(secret)) {
			t.Errorf("%s: %q is in the report", what, secret)
		}
		for _, part := range strings.FieldsFunc(secret, func(r rune) bool { return strings.ContainsRune("./:[] ", r) }) {
			if len(part) > 4 && part != "alices" && strings.Contains(strings.ToLower(text), strings.ToLower(part)) && part != "example" {
				t.Errorf("%s: %q of %q is in the report", what, part, secret)
			}
		}
	}
	for _, part := range []string{"planted", "alice", "diary"} {
		if strings.Contains(strings.ToLower(text), part) {
			t.Errorf("%q is in the report", part)
		}
	}
}

// TestBugreportKeepsSecrets: whatever the daemon says, the configuration holds and the key files hold, none of it stands in the report.
func TestBugreportKeepsSecrets(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("USER", "alice")
	p := plantedSecrets()
	seed := "diary/alice.key"
	if err := os.Mkdir("diary", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := goldenKey(99).Save(seed); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("alice.toml", fmt.Sprintf(`data_dir = "diary"
[network]
file = "alicenet.network"
operator = %q
suffix = "sesh"
[client]
key = "diary/alice.key"
[paths]
client_hops = 4
ping_interval = "7s"
strict_edges = [%q, %q]
blacklist = ["%s"]
[tun]
name = "alice0"
ipv4 = "10.66.77.1/16"
[dns]
listen = ["127.0.0.1:5353", "10.66.78.1"]
upstream = ["198.51.100.77"]
[proxy]
socks = ["10.66.79.1:1080"]
[control]
group = "alices"
[[service]]
name = "alices-shop"
key = "diary/shop.key"
ports = ["tcp/8099"]
forward = ["81 -> 127.0.0.1:8080"]
[log]
level = "*=info,dns=debug"
`, p["public key"], p["public key"], key.Address{Key: goldenKey(98).Public(), Kind: key.Relay}.String(), goldenKey(97).Public().String()))

	report := func(args ...string) string {
		t.Helper()
		var out, said bytes.Buffer
		a := &app{out: &out, err: &said, clock: func() time.Time { return goldenNow }}
		if code := a.execute(t.Context(), append([]string{"bugreport"}, args...)); code != 0 || said.Len() > 0 {
			t.Errorf("exit code %d: %s", code, said.String())
		}
		noSecret(t, out.String())
		return out.String()
	}

	var s control.Status
	plantTexts(reflect.ValueOf(&s).Elem(), "")
	s.Endpoints[1].Name, s.Endpoints[1].Kind, s.Network.Name = p["service name"], "service", p["network name"]
	for _, half := range []bool{true, false} { // a relay, a client
		if !half {
			s.Relay, s.Proxy = nil, nil
		}
		serve := s
		serve.Drops = map[string]uint64{"link_full": 17}
		stop := answer(t, loudDaemon{fakeDaemon{status: serve}})
		text := report("--socket", "./sock", "--config", "alice.toml")
		stop()
		for _, want := range []string{"client_hops = 4", "ping_interval = 7s", `suffix = "sesh"`, "strict_edges = (a list of 2)", "dns.listen = [127.0.0.1 port 5353 private-ip-",
			"service[0].ports = [tcp/8099]", "key = (set)", "level = *=info,dns=debug", "17 dropped: link_full", "kernel     Linux"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
	}
	if text := report("--socket", "./nobody", "--config", "alice.toml"); !strings.Contains(text, "not running") {
		t.Errorf("no daemon:\n%s", text)
	}
	write("alice.toml", "[network]\nfiel = \""+p["path"]+"\"\nname = \"alicenet\"\n[tun]\nname = \"alices interface\"\n")
	report("--config", "alice.toml")
}

// TestRedact: the same thing has the same number, another one another, and what tells nobody apart is left.
func TestRedact(t *testing.T) {
	r := newRedactor()
	r.word("service", "shop")
	a, b := goldenClient(1), goldenRelay(2)
	for _, c := range [][2]string{
		{a + " and " + b + ", " + a, "name-1 and name-2, name-1"},
		{"shop, shopping, my-shop, shop: shop", "service-1, shopping, my-shop, service-1: service-1"},
		{"timeout after 4.5 s, 12:30:45, 3 of 4 (dns.host = \"off\")", "timeout after 4.5 s, 12:30:45, 3 of 4 (dns.host = \"off\")"},
		{"/etc/resolv.conf names 127.0.0.53 and [::1]:53 (docs/dns.md)", "/etc/resolv.conf names 127.0.0.53 and [::1]:53 (docs/dns.md)"},
		{"2026-11-23T12:00:00Z INFO link 1.0.2 systemd 252", "2026-11-23T12:00:00Z INFO link 1.0.2 systemd 252"},
		{"dial udp 192.0.2.1:1190->198.51.100.1:5: i/o timeout", "dial udp public-ip-1:1190->public-ip-2:5: i/o timeout"},
		{"ask 192.0.2.1, 10.1.2.3 or fe80::1%eth0.", "ask public-ip-1, private-ip-1 or private-ip-2."},
		{"open /home/bob/x.key: permission denied; see /etc/lokinetd/lokinetd.toml", "open path-1: permission denied; see /etc/lokinetd/lokinetd.toml"},
		{"who is " + short(a) + " or " + short(b) + "?", "who is name-1 or name-2?"},
		{"IT IS " + strings.ToUpper(a), "IT IS name-1"},
		{"net.core.rmem_max is small; see docs/dns.md", "net.core.rmem_max is small; see docs/dns.md"},
	} {
		if got := r.text(c[0]); got != c[1] {
			t.Errorf("%q:\n got %q\nwant %q", c[0], got, c[1])
		}
	}
}
