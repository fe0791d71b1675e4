// Command rawtls gives crypto/tls raw public keys (RFC 7250) for one build: it reads the sources of the Go toolchain
// that runs it, makes the changes of protocol 5 section 3 in copies, and writes the copies and the file overlay.json
// that `go build -overlay` takes. Nothing of Go's own source is kept in this repository.
//
// It does not find or fetch the toolchain and does not set any flag: env.sh beside it does, for the Makefile.
// What the changes do on the wire is in rawkey.go.in; whether a program has them is asked with link.SelfTest.
//
//	rawtls DIR    # writes DIR/overlay.json and what it names
package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// added is the file that the overlay adds to crypto/tls.
//
//go:embed rawkey.go.in
var added []byte

const addedName = "lokinetd_rawkey.go"

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: rawtls DIR")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "rawtls:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	out, err := exec.Command("go", "env", "GOROOT", "GOVERSION").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	root, version, ok := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if !ok {
		return fmt.Errorf("go env says %q, not GOROOT and GOVERSION", out)
	}
	return generate(root, version, dir)
}

// generate writes the overlay for the toolchain at goroot into dir. Files that are right already are left alone, the
// others replaced whole, so that builds which run at the same time see the old or the new one. overlay.json is last.
func generate(goroot, version, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tls := filepath.Join(goroot, "src", "crypto", "tls")
	files, err := patch(os.DirFS(tls), version)
	if err != nil {
		return err
	}
	replace := make(map[string]string, len(files))
	for name, text := range files {
		copied := filepath.Join(dir, name)
		if err := write(copied, text); err != nil {
			return err
		}
		replace[filepath.Join(tls, name)] = copied
	}
	list, err := json.MarshalIndent(map[string]any{"Replace": replace}, "", "\t")
	if err != nil {
		return err
	}
	return write(filepath.Join(dir, "overlay.json"), append(list, '\n'))
}

// patch returns the changed and added files of crypto/tls, whose sources are src, by name.
func patch(src fs.FS, version string) (map[string][]byte, error) {
	if _, err := fs.Stat(src, addedName); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("crypto/tls of %s has a file %s already: not an original Go toolchain", version, addedName)
	}
	files := make(map[string][]byte)
	for _, e := range edits {
		text, ok := files[e.file]
		if !ok {
			var err error
			if text, err = fs.ReadFile(src, e.file); err != nil {
				return nil, fmt.Errorf("crypto/tls of %s: %w", version, err)
			}
		}
		changed, err := e.apply(string(text))
		if err != nil {
			return nil, fmt.Errorf("crypto/tls/%s of %s: %w (the changes were written for %s; compare the sources, then mend edits.go)",
				e.file, version, err, writtenFor)
		}
		files[e.file] = []byte(changed)
	}
	files[addedName] = added
	return files, nil
}

func write(name string, data []byte) error {
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, data) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
