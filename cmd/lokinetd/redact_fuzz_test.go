package main

import (
	"strings"
	"testing"
)

// FuzzRedact: what the daemon logged holds names that others chose, and goes into a report that people publish. Whatever stands around something of the user's, it is not in the report.
//
// Decoders: redactor.text redactor.maybeAddr
func FuzzRedact(f *testing.F) {
	secrets := []string{
		"dw68y1xhptqbhcm5s8aaaip6dbopykagig5q5u1za4c7pzxto77y.loki", "dw68y1xhptqbhcm5s8aaaip6dbopykagig5q5u1za4c7pzxto77y", "a.secret-blog.loki", "203.0.113.77", "[2001:db8::77]:22001", "2001:db8::77", "203.0.113.77:5353", "/home/alice/diary.txt",
		"0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0", "mail.example.org", "diary",
	}
	for _, s := range []string{"", "=", "dial", ":", "(", ".", "%eth0", "/24", "::", "1.2.3.4.", "fe80::", "a.", "\"", "x.toml", "0.0.0.0/0", "::1/128", "[::1]:80", "192.168.0.1", "10.0.0.1:53"} {
		for i := range secrets {
			f.Add(s, s, uint8(i))
		}
	}
	for _, s := range []string{"/etc/resolv.conf", "/etc/../home/bob", "QWxhZGRpbjpvcGVuIHNlc2FtZTEyMzQ1Njc4OTA9", "QWxhZGRpbjpvcGVuIHNlc2FtZXh4eHh4eHh4eHg", "fe80::1%eth0", "10.0.0.0/8.", "Diary, diary-diary", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ", "loki.snode", "a_b.example.com", "tun.ipv4", "5.5"} {
		f.Add(s, s, uint8(len(secrets)-1))
	}
	f.Fuzz(func(t *testing.T, before, behind string, which uint8) {
		if len(before)+len(behind) > 1000 {
			return
		}
		secret := secrets[int(which)%len(secrets)]
		if strings.Contains(strings.ToLower(before+" "+behind), strings.Trim(secret, "[]")) {
			return
		}
		r := newRedactor()
		r.word("service", "diary")
		got := r.text(before + " " + secret + " " + behind)
		if strings.Contains(strings.ToLower(got), secret) {
			t.Fatalf("%q %q %q becomes %q", before, secret, behind, got)
		}
	})
}
