package netdb

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lokinetd/router/key"
)

// FuzzStored: files in the folder of contacts come from an earlier version, a backup or a disk that fails. Whatever is in one, and whatever it is called, the store opens, and has no
// contact that its relay has not signed.
//
// Decoders: parseFileName readContact parseStored
func FuzzStored(f *testing.F) {
	now := time.Unix(1800000000, 0)
	own := relayContact(1000, now)
	for _, raw := range [][]byte{own.Raw(), relayContact(1001, now).Raw(), []byte("de"), nil, make([]byte, MaxRelayContact+5)} {
		for _, name := range []string{own.ID.String() + suffix, "." + own.ID.String() + suffix + "123", own.ID.String() + suffix + "1", "." + own.ID.String() + suffix, "x" + suffix, "x", "." + own.ID.String() + suffix + "a", "self" + suffix} {
			f.Add(name, raw)
		}
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, name string, raw []byte) {
		id, unfinished, ours := parseFileName(name)
		if ours && (unfinished != strings.HasPrefix(name, ".") || !strings.Contains(strings.ToLower(name), id.String()[:51])) || !ours && unfinished {
			t.Fatalf("%q is of %v, %v, %v", name, id, unfinished, ours)
		}
		if c, err := parseStored(raw, name, now, Rules{Private: true}); err == nil && (!ours || c.ID != id || unfinished) {
			t.Fatalf("%q holds the contact of %v", name, c.ID)
		}
		file := filepath.Join(dir, own.ID.String()+suffix)
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readContact(file); err != nil || len(got) != min(len(raw), MaxRelayContact+1) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(raw), err)
		}
		if _, err := readContact(filepath.Join(dir, "none")); err == nil {
			t.Fatal("read what is not there")
		}
		s, err := OpenStore(dir, key.Public{}, false, Rules{Private: true, Expired: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if s.Len() > 1 || s.Len() == 1 && string(s.Get(own.ID).Raw()) != string(raw) {
			t.Fatalf("%d contacts", s.Len())
		}
	})
}
