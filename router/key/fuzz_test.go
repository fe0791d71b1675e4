package key

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// A key file comes from a backup, another program or a slip of the hand. It may be anything; what is taken for a key must be one, and the same one
// however it is written.
func FuzzParseSecret(f *testing.F) {
	for _, data := range forms(FromSeed(counting(0))) {
		f.Add(data)
	}
	f.Add([]byte("d1:ali-1ee1:s64:"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSecret(data)
		if err != nil {
			if s != nil || !strings.HasPrefix(err.Error(), "key: ") {
				t.Errorf("%v, %v", s, err)
			}
			return
		}
		if err := s.Public().Check(); err != nil {
			t.Error(err)
		}
		for name, form := range forms(s) {
			if again, err := ParseSecret(form); err != nil || again.Bytes64() != s.Bytes64() {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// Addresses come from users, configuration and the control socket. No text may crash the parser, have two meanings, or be another one's canonical form.
func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{text + ".loki", padded + ".SESH", text + ".snode", text, "jason.loki", "..", text + ".loki.", "\u212a.loki"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			return
		}
		for _, again := range []string{a.String(), a.Text(TLDSesh)} {
			if b, err := ParseAddress(again); err != nil || b != a {
				t.Errorf("%q: %q is %v, %v", s, again, b, err)
			}
		}
		// All of the text but the padding of one character is in the address.
		if got := a.String(); len(s) < 51 || lower(s[:51]) != got[:51] {
			t.Errorf("%q became %q", s, got)
		}
		if n, err := ParseName(s); err != nil || n.Kind != NameAddress || n.Address != a {
			t.Errorf("%q as a name: %+v, %v", s, n, err)
		}
	})
}

// Names come in DNS queries from any program on the host, web pages included. No text may crash the parser, leave the name's own parts
// ambiguous, or be asked of the network as a name that the registry cannot hold.
func FuzzParseName(f *testing.F) {
	for _, s := range []string{
		"jason.loki", "a.b.jason.LOKI.", text + ".loki", "x.ipv4." + padded + ".sesh", "localhost.snode", "random.snode", "xn--a.loki", "..loki", "loki", "example.com",
		"_http._tcp." + text + ".snode", "\u212a.loki", "a\\.b.c.loki", "-.loki",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		CheckSNS(s)
		n, err := ParseName(s)
		if err != nil {
			if errors.Is(err, ErrNotOurs) == errors.Is(err, ErrMalformed) {
				t.Errorf("%q: %v is not one of the two errors", s, err)
			}
			return
		}
		again, err := ParseName(n.String())
		if err != nil || !reflect.DeepEqual(again, n) {
			t.Errorf("%q: %+v, again %+v, %v", s, n, again, err)
		}
		if (n.Kind == NameSNS) != (n.SNS != "") || (n.Kind == NameSNS && CheckSNS(n.SNS) != nil) || (n.Kind != NameAddress && !n.Address.IsZero()) {
			t.Errorf("%q: %+v", s, n)
		}
	})
}
