package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// An edit changes one place of one declaration of foreign source. The declaration begins with the line decl and ends with
// the first line that is a closing brace alone; marker must stand in it exactly once.
type edit struct {
	file   string
	decl   string // first line, unique in the file
	marker string // unique in the declaration
	before string // inserted before the marker
	after  string // inserted behind the marker
	swap   string // takes the place of the marker
}

// apply makes the edit in src, the text of e.file.
func (e edit) apply(src string) (string, error) {
	start, err := only(src, e.decl+"\n")
	if err != nil {
		return "", err
	}
	length := strings.Index(src[start:], "\n}\n")
	if length < 0 {
		return "", fmt.Errorf("no end of %q", e.decl)
	}
	body := src[start : start+length+1]
	at, err := only(body, e.marker)
	if err != nil {
		return "", fmt.Errorf("in %q: %w", e.decl, err)
	}
	marker := e.marker
	if e.swap != "" {
		marker = e.swap
	}
	at += start
	return src[:at] + e.before + marker + e.after + src[at+len(e.marker):], nil
}

// only is the place of the only occurrence of marker in s.
func only(s, marker string) (int, error) {
	if n := strings.Count(s, marker); n != 1 {
		return 0, fmt.Errorf("marker %q found %d times, not once", marker, n)
	}
	return strings.Index(s, marker), nil
}

// A patch is all that is changed in one foreign tree.
type patch struct {
	of         string            // what the tree is, for errors
	writtenFor string            // the version that the edits were read against
	edits      []edit            // in order
	added      map[string][]byte // whole files that the tree must not have, by path
}

// apply returns the changed and added files of src, which is of the given version, by path.
func (p *patch) apply(src fs.FS, version string) (map[string][]byte, error) {
	files := make(map[string][]byte)
	for name, text := range p.added {
		if _, err := fs.Stat(src, name); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s of %s has a file %s already: not the original sources", p.of, version, name)
		}
		files[name] = text
	}
	for _, e := range p.edits {
		text, ok := files[e.file]
		if !ok {
			var err error
			if text, err = fs.ReadFile(src, e.file); err != nil {
				return nil, fmt.Errorf("%s of %s: %w", p.of, version, err)
			}
		}
		changed, err := e.apply(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s/%s of %s: %w (the changes were written for %s; compare the sources, then mend the edits)",
				p.of, e.file, version, err, p.writtenFor)
		}
		files[e.file] = []byte(changed)
	}
	return files, nil
}

// write makes name hold data. A file that is right already is left alone, another replaced whole, so that builds which run at
// the same time see the old or the new one.
func write(name string, data []byte) error {
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
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
