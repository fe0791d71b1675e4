package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// quicSource is the quic-go that go.mod names.
func quicSource(t *testing.T) (dir, version string) {
	t.Helper()
	out, err := goCommand("mod", "download", "-json", "-modfile=../../../go.mod", quicPath)
	if err != nil {
		t.Fatal(err)
	}
	var m struct{ Dir, Version string }
	if err := json.Unmarshal(out, &m); err != nil {
		t.Fatal(err)
	}
	return m.Dir, m.Version
}

func TestWrittenForPinned(t *testing.T) {
	mod, err := os.ReadFile("../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		patch *patch
		line  string
	}{
		{&rawKeys, "\ntoolchain " + rawKeys.writtenFor + "\n"},
		{&datagrams, "\t" + quicPath + " " + datagrams.writtenFor + "\n"},
	} {
		if !strings.Contains(string(mod), c.line) {
			t.Errorf("go.mod does not pin %s: read the new %s beside the edits, then change writtenFor", c.patch.writtenFor, c.patch.of)
		}
	}
}

// The changed files are the original ones but for what is inserted: without it they are the originals again.
func TestPatch(t *testing.T) {
	for _, c := range trees(t) {
		src := os.DirFS(c.dir)
		files, err := c.patch.apply(src, c.version)
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range files {
			if _, err := parser.ParseFile(token.NewFileSet(), name, text, 0); err != nil {
				t.Error(err)
			}
		}
		for _, e := range slices.Backward(c.patch.edits) {
			text := string(files[e.file])
			made := e.before + e.marker + e.after
			if e.swap != "" {
				made = e.before + e.swap + e.after
			}
			at := strings.Index(text, e.decl+"\n")
			undone := text[:at] + strings.Replace(text[at:], made, e.marker, 1)
			if undone == text {
				t.Errorf("%s: %q is not changed", e.file, e.decl)
			}
			files[e.file] = []byte(undone)
		}
		for name, text := range files {
			if original, err := fs.ReadFile(src, name); c.patch.added[name] == nil && (err != nil || !bytes.Equal(text, original)) {
				t.Errorf("%s: more is changed than the edits say (%v)", name, err)
			}
		}
	}
}

type tree struct {
	patch        *patch
	dir, version string
}

func trees(t *testing.T) []tree {
	goroot, version := toolchain(t)
	quic, quicVersion := quicSource(t)
	return []tree{{&rawKeys, filepath.Join(goroot, "src", "crypto", "tls"), version}, {&datagrams, quic, quicVersion}}
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

func TestAddedFilesAreFormatted(t *testing.T) {
	for _, p := range []*patch{&rawKeys, &datagrams} {
		for name, text := range p.added {
			if formatted, err := format.Source(text); err != nil || !bytes.Equal(formatted, text) {
				t.Errorf("%s is not as gofmt writes it (%v)", name, err)
			}
		}
	}
}

// Unknown sources are refused by name, with the file and the marker, and nothing is written.
func TestUnknownSources(t *testing.T) {
	for _, tree := range trees(t) {
		p, dir := tree.patch, os.DirFS(tree.dir)
		first := p.edits[0]
		var addedName string
		for addedName = range p.added {
		}
		for _, c := range []struct {
			name  string
			alter func(fstest.MapFS)
			want  []string
		}{
			{"moved line", func(src fstest.MapFS) {
				src[first.file].Data = bytes.Replace(src[first.file].Data, []byte(first.decl), []byte("// moved"), 1)
			}, []string{p.of + "/" + first.file + " of v9.9", "{\\n\" found 0 times", p.writtenFor}},
			{"file gone", func(src fstest.MapFS) { delete(src, first.file) }, []string{p.of + " of v9.9", first.file}},
			{"changed already", func(src fstest.MapFS) { src[addedName] = &fstest.MapFile{} }, []string{"v9.9", "not the original sources"}},
		} {
			src := make(fstest.MapFS)
			for _, e := range p.edits {
				text, err := fs.ReadFile(dir, e.file)
				if err != nil {
					t.Fatal(err)
				}
				src[e.file] = &fstest.MapFile{Data: text}
			}
			if _, err := p.apply(src, "v9.9"); err != nil {
				t.Fatal(err)
			}
			c.alter(src)
			_, err := p.apply(src, "v9.9")
			for _, part := range c.want {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("%s, %s: %v, want %q in it", p.of, c.name, err, part)
				}
			}
		}
	}
}

// Nothing is written again that is right already: builds that run meanwhile are not disturbed.
func TestGenerateTLS(t *testing.T) {
	goroot, version := toolchain(t)
	dir := t.TempDir()
	if err := generateTLS(goroot, version, dir); err != nil {
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
	if err := generateTLS(goroot, version, dir); err != nil {
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

// The copy of quic-go is complete, holds nothing else, and stands in go.mod in its place.
func TestGenerateQUIC(t *testing.T) {
	module, version := quicSource(t)
	dir := t.TempDir()
	copied := filepath.Join(dir, "quic-go")
	os.MkdirAll(filepath.Join(copied, "gone"), 0o755)
	for _, stale := range []string{"gone/old.go", "old.go"} {
		os.WriteFile(filepath.Join(copied, stale), []byte("package old"), 0o644)
	}
	for range 2 {
		if err := generateQUIC(module, version, copied); err != nil {
			t.Fatal(err)
		}
		if err := replaceQUIC("../../../go.mod", copied, filepath.Join(dir, "go.mod")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(copied, "gone/old.go")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what another version has left is still there: %v", err)
	}
	for _, name := range []string{"go.mod", "LICENSE", "interface.go", "testutils/simnet/simnet.go"} {
		original, err := os.ReadFile(filepath.Join(module, name))
		if text, err2 := os.ReadFile(filepath.Join(copied, name)); err != nil || err2 != nil || !bytes.Equal(text, original) {
			t.Errorf("%s differs from the original (%v, %v)", name, err, err2)
		}
	}
	cmd := exec.Command("go", "list", "-modfile="+filepath.Join(dir, "go.mod"), "-m", "-f", "{{.Dir}}", quicPath)
	cmd.Dir = "../../.."
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != copied {
		t.Errorf("quic-go is taken from %s (%v), not from %s", out, err, copied)
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
	for _, name := range []string{"go.mod", "router/link/overlay/env.sh"} {
		text, err := os.ReadFile(filepath.Join("../../..", name))
		if err != nil {
			t.Fatal(err)
		}
		os.MkdirAll(filepath.Join(tree, filepath.Dir(name)), 0o755)
		os.WriteFile(filepath.Join(tree, name), text, 0o755)
	}
	for _, c := range []struct{ name, fake, want string }{
		{"too old", `echo go version go1.19.8 linux/amd64`, "the go command is go1.19. Any Go from 1.21 on will do, it fetches " + rawKeys.writtenFor},
		{"broken", `exit 1`, "there is no go command. Any Go"},
		{"offline", `[ "$1" = version ] && echo go version go1.25.0 linux/amd64`, "go1.25 is installed and could not fetch " + rawKeys.writtenFor},
		{"another", `[ "$1" = version ] && echo go version go1.27.0 linux/amd64 || printf '/opt/go\ngo1.27.0\n/m\n\n'`, "asked for " + rawKeys.writtenFor + ", got go1.27.0 at /opt/go"},
	} {
		bin := t.TempDir()
		if err := os.WriteFile(filepath.Join(bin, "go"), []byte("#!/bin/sh\n"+c.fake+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(filepath.Join(tree, "router/link/overlay/env.sh"))
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
