//go:build root

package main

import (
	"encoding/hex"
	"os"
	"syscall"
	"testing"

	"lokinetd/router/key"
)

// TestConfigImportOwner: what root copies into the daemon's data directory the daemon can read.
func TestConfigImportOwner(t *testing.T) {
	s := newScript(t)
	raw := key.Generate().Bytes64()
	s.write("me.private", hex.EncodeToString(raw[:]))
	s.write("old.ini", "[network]\nkeyfile=me.private\nauth-whitelist="+key.Address{Key: key.Generate().Public()}.String()+"\n")
	const daemon = 65534
	if err := os.Mkdir("data", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown("data", daemon, daemon); err != nil {
		t.Fatal(err)
	}
	s.run(0, "config import old.ini --keys data")
	for file, mode := range map[string]os.FileMode{"data/imported.key": 0o600, "data/imported.clients": 0o700 | os.ModeDir, "data/imported.clients/imported-1.client": 0o600} {
		fi, err := os.Lstat(file)
		if err != nil {
			t.Error(err)
			continue
		}
		if st := fi.Sys().(*syscall.Stat_t); st.Uid != daemon || st.Gid != daemon || fi.Mode() != mode {
			t.Errorf("%s: of %d:%d, %v", file, st.Uid, st.Gid, fi.Mode())
		}
	}
}
