package key

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// forms gives a key file of each form, by name (protocol 1 section 3.2).
func forms(s *Secret) map[string][]byte {
	raw := s.Bytes64()
	digits := hex.EncodeToString(raw[:])
	dict := func(before, after string) []byte {
		return []byte("d" + before + "1:s64:" + string(raw[:]) + after + "e")
	}
	return map[string][]byte{
		"hex":            []byte(digits),
		"hex, LF":        []byte(digits + "\n"),
		"hex, CR LF":     []byte(digits + "\r\n"),
		"hex, upper":     []byte(strings.ToUpper(digits) + "\n"),
		"raw":            raw[:],
		"dict":           dict("", ""),
		"dict with more": dict("0:i-1e1:ale1:bde1:cli0eli1e2:xyed1:a0:ee1:n4:name", "1:vi0e"),
		// As long as a hex file, and not one.
		"dict of 128 bytes": dict("1:a49:"+strings.Repeat("0", 49), ""),
	}
}

type badForm struct{ name, data, want string }

// badForms gives what is not a key file, each with a part of the error.
func badForms(s *Secret) []badForm {
	raw := s.Bytes64()
	digits := hex.EncodeToString(raw[:])
	dict := string(forms(s)["dict"])
	return []badForm{
		{"empty", "", "these are 0 bytes"},
		{"seed in hex", digits[:64], "does not belong"}, // 64 bytes are taken as raw ones
		{"127 digits", digits[1:], "these are 127 bytes"},
		{"not all digits", digits[1:] + "g", "128 hexadecimal digits"},
		{"space behind", digits + " ", "these are 129 bytes"},
		{"LF CR", digits + "\n\r", "these are 130 bytes"},
		{"CR", digits + "\r", "these are 129 bytes"},
		{"another's public half", digits[:64] + strings.Repeat("0", 64), "does not belong"},
		{"no s", "d1:a1:be", "no key s"},
		{"empty dict", "de", "no key s"},
		{"integer without end", "d1:ai1", "not a well-formed one"},
		{"integer without digits", "d1:ai-ee", "not a well-formed one"},
		{"list cut", "d1:al1:b", "not a well-formed one"},
		{"list of half a value", "d1:ali1ee1:bl3:ae", "not a well-formed one"},
		{"inner dict of half a key", "d1:ad3:be", "not a well-formed one"},
		{"value missing", "d1:a", "not a well-formed one"},
		{"short s", "d1:s3:abce", "not a string of 64 bytes"},
		{"s an integer", "d1:si64ee", "not a string of 64 bytes"},
		{"s a list", "d1:sl64:" + string(raw[:]) + "ee", "not a string of 64 bytes"},
		{"open dict", dict[:len(dict)-1], "not a well-formed one"},
		{"bytes behind", dict + "e", "after the end"},
		{"keys out of order", "d1:b0:1:a0:" + dict[1:], "not a well-formed one"},
		{"key twice", dict[:len(dict)-1] + dict[1:], "not a well-formed one"},
		{"length with a zero", "d01:a0:e", "not a well-formed one"},
		{"length too large", "d1:a99999999999999999999:e", "not a well-formed one"},
		{"deep", "d1:a" + strings.Repeat("l", 100) + strings.Repeat("e", 100) + dict[1:], "not a well-formed one"},
		{"large", "d1:a5000:" + strings.Repeat("x", 5000) + dict[1:], "not a secret key"},
	}
}

func TestParseSecret(t *testing.T) {
	s := FromSeed(counting(0))
	raw := s.Bytes64()
	digits := hex.EncodeToString(raw[:])
	for name, data := range forms(s) {
		want := bytes.Clone(data)
		got, err := ParseSecret(data)
		if err != nil || got.Bytes64() != raw {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(data, want) {
			t.Errorf("%s: changed by parsing", name)
		}
		for n := range data {
			if got, err := ParseSecret(data[:n]); err == nil && n != hexLen && n != hexLen+1 {
				t.Errorf("%s: a key when cut to %d bytes", name, n)
			} else if err != nil && (strings.Contains(err.Error(), digits[:8]) || bytes.Contains([]byte(err.Error()), raw[:4]) || got != nil) {
				t.Errorf("%s: cut to %d bytes: %v, shows the key", name, n, err)
			}
		}
		if _, err := ParseSecret(append(bytes.Clone(data), '\n', '\n', '\n')); err == nil {
			t.Errorf("%s: a key with three line feeds behind", name)
		}
	}
	// A flipped bit in seed or public key.
	for i := range 8 * len(raw) {
		bad := raw
		bad[i/8] ^= 1 << (i % 8)
		if _, err := ParseSecret(bad[:]); err == nil || !strings.Contains(err.Error(), "public half does not belong") {
			t.Errorf("bit %d flipped: %v", i, err)
		}
	}
	for _, v := range badForms(s) {
		if got, err := ParseSecret([]byte(v.data)); err == nil || !strings.Contains(err.Error(), v.want) || !strings.HasPrefix(err.Error(), "key: ") || got != nil {
			t.Errorf("%s: %v, want an error with %q", v.name, err, v.want)
		}
	}
}

func TestSaveLoad(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0)) // the mode is not the umask's doing
	dir := t.TempDir()
	path := filepath.Join(dir, "service.key")
	s := FromSeed(counting(0))
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	raw := s.Bytes64()
	if data, err := os.ReadFile(path); err != nil || string(data) != hex.EncodeToString(raw[:])+"\n" {
		t.Errorf("%q, %v", data, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if got, err := LoadSecret(path); err != nil || got.Bytes64() != raw {
		t.Error(err)
	}

	// Nothing that exists is overwritten, whatever it is.
	dangling, folder := filepath.Join(dir, "dangling.key"), filepath.Join(dir, "folder.key")
	if err := errors.Join(os.Symlink("nowhere", dangling), os.Mkdir(folder, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, dangling, folder} {
		if err := Generate().Save(p); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), p) {
			t.Errorf("save over %s: %v", p, err)
		}
	}
	if got, err := LoadSecret(path); err != nil || got.Bytes64() != raw {
		t.Errorf("after refusing to save: %v", err)
	}
	missing := filepath.Join(dir, "no", "such.key")
	if err := s.Save(missing); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), filepath.Dir(missing)) {
		t.Errorf("save in a missing directory: %v", err)
	}
	// No temporary file is left of all that.
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("%v, %v", entries, err)
	}
}

// Many at once: one wins, the others see that it exists, and the file is the winner's.
func TestSaveRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "race.key")
	won := make(chan *Secret, 8)
	errs := make(chan error, 8)
	for range 8 {
		go func() {
			s := Generate()
			err := s.Save(path)
			if err == nil {
				won <- s
			}
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil && !errors.Is(err, fs.ErrExist) {
			t.Error(err)
		}
	}
	if len(won) != 1 {
		t.Fatalf("%d saves succeeded", len(won))
	}
	if got, err := LoadSecret(path); err != nil || got.Public() != (<-won).Public() {
		t.Errorf("the file is not the winner's: %v", err)
	}
}

func TestLoadSecretErrors(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	// A file without end in pages: reading all of it would not return. Only its size may be asked.
	huge := file("huge", nil)
	if err := os.Truncate(huge, 1<<40); err != nil {
		t.Log(err) // a file system without holes
	}
	s := FromSeed(counting(0))
	raw := s.Bytes64()
	for _, v := range []struct{ path, want string }{
		{filepath.Join(dir, "missing"), "no such file"},
		{dir, "not a regular file"},
		{pipe, "not a regular file"},
		{huge, "larger than 4096 bytes"},
		{file("4097", make([]byte, 4097)), "larger than 4096 bytes"},
		{file("empty", nil), "these are 0 bytes"},
		{file("damaged", append(raw[:63:63], raw[63]^1)), "public half does not belong"},
		{file("dict", []byte("d1:a1:be")), "no key s"},
	} {
		got, err := LoadSecret(v.path)
		if err == nil || !strings.HasPrefix(err.Error(), "key: key file") || !strings.Contains(err.Error(), v.path) || !strings.Contains(err.Error(), v.want) || got != nil {
			t.Errorf("%s: %v, want an error with %q", v.path, err, v.want)
		}
	}
	if _, err := LoadSecret(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file("target", raw[:]), link); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadSecret(link); err != nil || got.Bytes64() != raw {
		t.Errorf("through a symlink: %v", err)
	}
}
