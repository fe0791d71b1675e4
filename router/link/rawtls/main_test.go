package main

import (
	"bytes"
	"encoding/json"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// toolchain is the one that runs this test. Its sources are read from the disk, where the overlay changes nothing.
func toolchain(t *testing.T) (goroot, version string) {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT", "GOVERSION").Output()
	if err != nil {
		t.Fatal(err)
	}
	goroot, version, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
	return goroot, version
}

func TestWrittenForPinnedToolchain(t *testing.T) {
	mod, err := os.ReadFile("../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mod), "\ntoolchain "+writtenFor+"\n") {
		t.Errorf("go.mod does not pin %s: read crypto/tls of the new toolchain beside the edits, then change writtenFor", writtenFor)
	}
}

// The changed files are Go's own but for what is inserted: without it they are the originals again.
func TestPatch(t *testing.T) {
	goroot, version := toolchain(t)
	src := os.DirFS(filepath.Join(goroot, "src", "crypto", "tls"))
	files, err := patch(src, version)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if _, err := parser.ParseFile(token.NewFileSet(), name, text, 0); err != nil {
			t.Error(err)
		}
	}
	for _, e := range edits {
		text := string(files[e.file])
		made := e.before + e.marker + e.after
		if e.swap != "" {
			made = e.swap
		}
		at := strings.Index(text, e.decl+"\n")
		undone := text[:at] + strings.Replace(text[at:], made, e.marker, 1)
		if undone == text {
			t.Errorf("%s: %q is not changed", e.file, e.decl)
		}
		files[e.file] = []byte(undone)
	}
	for name, text := range files {
		if original, err := fs.ReadFile(src, name); name != addedName && (err != nil || !bytes.Equal(text, original)) {
			t.Errorf("%s: more is changed than the edits say (%v)", name, err)
		}
	}
}

func TestApply(t *testing.T) {
	const src = "func other() {\n\tmarker()\n}\n\nfunc f() {\n\tone()\n\tmarker()\n\ttwo()\n\ttwo()\n}\n"
	const f = "func f() {"
	for _, c := range []struct {
		name string
		edit edit
		want string // the result, or the end of the error
	}{
		{"before", edit{decl: f, marker: "\tmarker()\n", before: "\tnew()\n"}, "func f() {\n\tone()\n\tnew()\n\tmarker()\n"},
		{"after", edit{decl: f, marker: "\tmarker()\n", after: "\tnew()\n"}, "\tmarker()\n\tnew()\n\ttwo()\n"},
		{"swap", edit{decl: f, marker: "marker", swap: "new"}, "\tone()\n\tnew()\n"},
		{"marker gone", edit{decl: f, marker: "\tthree()\n"}, `in "func f() {": marker "\tthree()\n" found 0 times, not once`},
		{"marker twice", edit{decl: f, marker: "\ttwo()\n"}, `in "func f() {": marker "\ttwo()\n" found 2 times, not once`},
		{"declaration gone", edit{decl: "func g() {", marker: "x"}, `marker "func g() {\n" found 0 times, not once`},
		{"declaration twice", edit{decl: "}", marker: "x"}, `marker "}\n" found 2 times, not once`},
	} {
		got, err := c.edit.apply(src)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) || err != nil && got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestAddedFileIsFormatted(t *testing.T) {
	formatted, err := format.Source(added)
	if err != nil || !bytes.Equal(formatted, added) {
		t.Errorf("rawkey.go.in is not as gofmt writes it (%v)", err)
	}
}

// An unknown toolchain is refused by name, with the file and the marker, and nothing is written.
func TestUnknownToolchain(t *testing.T) {
	goroot, version := toolchain(t)
	dir := os.DirFS(filepath.Join(goroot, "src", "crypto", "tls"))
	for _, c := range []struct {
		name  string
		alter func(fstest.MapFS)
		want  []string
	}{
		{"moved line", func(src fstest.MapFS) {
			src["conn.go"].Data = bytes.Replace(src["conn.go"].Data, []byte("type Conn struct {"), []byte("type Conn = conn"), 1)
		}, []string{"crypto/tls/conn.go of go9.9", `"type Conn struct {\n" found 0 times`, writtenFor}},
		{"file gone", func(src fstest.MapFS) { delete(src, "conn.go") }, []string{"crypto/tls of go9.9", "conn.go"}},
		{"changed already", func(src fstest.MapFS) { src[addedName] = &fstest.MapFile{} }, []string{"go9.9", "not an original Go toolchain"}},
	} {
		src := make(fstest.MapFS)
		for _, e := range edits {
			text, err := fs.ReadFile(dir, e.file)
			if err != nil {
				t.Fatal(err)
			}
			src[e.file] = &fstest.MapFile{Data: text}
		}
		if _, err := patch(src, version); err != nil {
			t.Fatal(err)
		}
		c.alter(src)
		_, err := patch(src, "go9.9")
		for _, part := range c.want {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, want %q in it", c.name, err, part)
			}
		}
	}
}

// Nothing is written again that is right already: builds that run meanwhile are not disturbed.
func TestGenerate(t *testing.T) {
	goroot, version := toolchain(t)
	dir := t.TempDir()
	if err := generate(goroot, version, dir); err != nil {
		t.Fatal(err)
	}
	var overlay struct{ Replace map[string]string }
	text, err := os.ReadFile(filepath.Join(dir, "overlay.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &overlay); err != nil {
		t.Fatal(err)
	}
	for original, copied := range overlay.Replace {
		if filepath.Ext(original) != ".go" || !filepath.IsAbs(original) || !filepath.IsAbs(copied) || filepath.Base(original) != filepath.Base(copied) {
			t.Errorf("%s is replaced by %s", original, copied)
		}
	}
	before := list(t, dir)
	if len(before) != len(overlay.Replace)+1 {
		t.Errorf("written: %v", before)
	}
	os.WriteFile(filepath.Join(dir, "conn.go"), []byte("damaged"), 0o644)
	if err := generate(goroot, version, dir); err != nil {
		t.Fatal(err)
	}
	after := list(t, dir)
	for name, info := range before {
		if same := os.SameFile(info, after[name]); same == (name == "conn.go") {
			t.Errorf("%s: left alone: %v", name, same)
		}
		if after[name].Size() != info.Size() {
			t.Errorf("%s is not mended", name)
		}
	}
}

func list(t *testing.T, dir string) map[string]fs.FileInfo {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]fs.FileInfo)
	for _, e := range entries {
		if files[e.Name()], err = e.Info(); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// env.sh says what to install, in words, when the go command cannot build this module.
func TestEnvSaysWhatToInstall(t *testing.T) {
	tree := t.TempDir()
	for _, name := range []string{"go.mod", "router/link/rawtls/env.sh"} {
		text, err := os.ReadFile(filepath.Join("../../..", name))
		if err != nil {
			t.Fatal(err)
		}
		os.MkdirAll(filepath.Join(tree, filepath.Dir(name)), 0o755)
		os.WriteFile(filepath.Join(tree, name), text, 0o755)
	}
	for _, c := range []struct{ name, fake, want string }{
		{"too old", `echo go version go1.19.8 linux/amd64`, "the go command is go1.19. Any Go from 1.21 on will do, it fetches " + writtenFor},
		{"broken", `exit 1`, "there is no go command. Any Go"},
		{"offline", `[ "$1" = version ] && echo go version go1.25.0 linux/amd64`, "go1.25 is installed and could not fetch " + writtenFor},
		{"another", `[ "$1" = version ] && echo go version go1.27.0 linux/amd64 || printf '/opt/go\ngo1.27.0\n/m\n\n'`, "asked for " + writtenFor + ", got go1.27.0 at /opt/go"},
	} {
		bin := t.TempDir()
		if err := os.WriteFile(filepath.Join(bin, "go"), []byte("#!/bin/sh\n"+c.fake+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(filepath.Join(tree, "router/link/rawtls/env.sh"))
		cmd.Env = append(os.Environ(), "GO="+filepath.Join(bin, "go"))
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v\n%s\nwant %q", c.name, err, out, c.want)
		}
		if _, err := os.Stat(filepath.Join(tree, ".cache")); err == nil {
			t.Errorf("%s: something was written", c.name)
		}
	}
}
