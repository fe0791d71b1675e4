package statefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lokinetd/router/testkit"
)

// text loads a file as the product does; a missing one is a state of its own.
func text(path string) (string, error) {
	raw, err := Read(path, 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return "none", nil
	}
	return string(raw), err
}

// TestSaves: whatever ends a write, the file is the old one or the new one, and the next start leaves nothing else.
func TestSaves(t *testing.T) {
	const name = "a.json"
	load := func(dir string) (string, error) { return text(filepath.Join(dir, name)) }
	next := func(dir string) error { Sweep(filepath.Join(dir, name)); return nil }
	big := []byte(strings.Repeat("new ", 5000))
	for _, c := range []struct {
		name string
		save testkit.Save
	}{
		{"first", testkit.Save{New: func(dir string) error { return Write(filepath.Join(dir, name), big, 0o600) }}},
		{"again", testkit.Save{
			Old: func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte("old"), 0o600) },
			New: func(dir string) error { return Write(filepath.Join(dir, name), big, 0o600) },
		}},
		{"create", testkit.Save{New: func(dir string) error { return Create(filepath.Join(dir, name), big, 0o600) }}},
		{"aside", testkit.Save{
			Old: func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte("old"), 0o600) },
			New: func(dir string) error { _, err := SetAside(filepath.Join(dir, name)); return err },
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.save.Load, c.save.Next = load, next
			t.Log(testkit.Saves(t, c.save), "ends")
		})
	}
}

// TestRead: what is no file, too large, or would never end is refused at once.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, size := range map[string]int{"empty": 0, "fits": 10, "large": 11, "huge": 1 << 20} {
		if err := os.WriteFile(at(name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(at("folder"), 0o700), unix.Mkfifo(at("pipe"), 0o600), os.Symlink(at("fits"), at("link")), os.Symlink(at("loop"), at("loop")), os.Symlink("/dev/zero", at("zero"))); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"empty": "", "fits": "", "link": "", "large": "larger than 10 bytes", "huge": "larger than 10 bytes", "folder": "not a regular file", "pipe": "not a regular file",
		"zero": "not a regular file", "loop": "too many levels", "none": "no such file",
	} {
		raw, err := Read(at(name), 10)
		if (want == "") != (err == nil) || err != nil && (!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), at(name))) {
			t.Errorf("%s: %q, %v", name, raw, err)
		}
	}
}

// TestSetAside: whatever lies there, and whatever was set aside before.
func TestSetAside(t *testing.T) {
	for _, now := range []string{"file", "folder"} {
		for _, before := range []string{"none", "file", "folder"} {
			path := filepath.Join(t.TempDir(), "a.json")
			put := func(path, what string) {
				var err error
				switch what {
				case "file":
					err = os.WriteFile(path, []byte(path), 0o600)
				case "folder":
					err = os.MkdirAll(filepath.Join(path, "inside"), 0o700)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			put(path, now)
			put(path+BadSuffix, before)
			to, err := SetAside(path)
			if err != nil || to != path+BadSuffix {
				t.Errorf("%s, with a %s from before: %q, %v", now, before, to, err)
				continue
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s, with a %s from before: still there (%v)", now, before, err)
			}
			if st, err := os.Lstat(to); err != nil || st.IsDir() != (now == "folder") {
				t.Errorf("%s, with a %s from before: %v, %v", now, before, st, err)
			}
		}
	}
}

// TestSweep: only remains, only of these files, and not those of who may still be at work.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	names := map[string]bool{".a.json12": true, ".a.json9223372036854775807": true, "a.json": false, ".a.json": false, ".a.json12x": false, ".a.json-12": false, "a.json12": false, ".b.json12": false}
	old := time.Now().Add(-time.Hour)
	for name := range names {
		if err := errors.Join(os.WriteFile(filepath.Join(dir, name), nil, 0o600), os.Chtimes(filepath.Join(dir, name), old, old)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, ".a.json5"), nil, 0o600), os.Mkdir(filepath.Join(dir, ".a.json6"), 0o700)); err != nil {
		t.Fatal(err)
	}
	names[".a.json5"], names[".a.json6"] = false, false
	Sweep(filepath.Join(dir, "a.json"), filepath.Join(dir, "none", "c.json"))
	for name, gone := range names {
		if _, err := os.Lstat(filepath.Join(dir, name)); errors.Is(err, fs.ErrNotExist) != gone {
			t.Errorf("%s: %v", name, err)
		}
	}
}
