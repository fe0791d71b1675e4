package testkit

import (
	"bytes"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
)

// Hidden prints, logs and encodes v in every usual way, and fails the test when eight bytes in a row of a secret come out. verbs are tried beside the usual ones.
func Hidden(t testing.TB, v any, secrets [][]byte, verbs ...string) {
	t.Helper()
	search := func(what string, out []byte) {
		t.Helper()
		if l := leak(out, secrets); l != "" {
			t.Errorf("%s of %T shows %s:\n%.300q", what, v, l, out)
		}
	}
	for _, verb := range append(verbs, "%v", "%+v", "%#v", "%x", "%X", "% x", "%s", "%q", "%d", "%c", "%U", "%o", "%b", "%t", "%e") {
		search(verb, fmt.Appendf(nil, verb, v))
	}
	search("Println", fmt.Appendln(nil, v))
	var out bytes.Buffer
	opts := &slog.HandlerOptions{Level: slog.LevelDebug}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, opts), slog.NewJSONHandler(&out, opts)} {
		slog.New(h).With("w", v).Debug("m", "k", v, slog.Group("g", "k", v))
	}
	j, _ := json.Marshal(v)
	out.Write(j)
	x, _ := xml.Marshal(v)
	out.Write(x)
	gob.NewEncoder(&out).Encode(v)
	search("slog, json, xml or gob", out.Bytes())
}

// Unencodable fails the test when v, a secret itself, can be encoded.
func Unencodable(t testing.TB, v any) {
	t.Helper()
	if _, err := json.Marshal(v); err == nil {
		t.Errorf("json takes %T", v)
	}
	if err := gob.NewEncoder(io.Discard).Encode(v); err == nil {
		t.Errorf("gob takes %T", v)
	}
}

// leak looks for any eight bytes in a row of a secret, in the usual notations. (Fewer would be met by chance, in addresses and public keys.)
func leak(out []byte, secrets [][]byte) string {
	text := strings.ToLower(string(out))
	for _, p := range secrets {
		for i := range len(p) - 7 {
			q := p[i:][:8]
			dec := strings.Trim(fmt.Sprint(q), "[]")
			for _, s := range []string{
				hex.EncodeToString(q), fmt.Sprintf("% x", q), dec, strings.ReplaceAll(dec, " ", ", "), strings.ReplaceAll(dec, " ", ","),
				strings.ReplaceAll(fmt.Sprintf("% #x", q), " ", ", "),
			} {
				if strings.Contains(text, s) {
					return fmt.Sprintf("%q", s)
				}
			}
			if bytes.Contains(out, q) {
				return fmt.Sprintf("raw %q", q)
			}
		}
	}
	return ""
}
