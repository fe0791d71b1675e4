// Command overlay changes two foreign libraries for one build: crypto/tls gets raw public keys (tls.go), quic-go hands its datagrams
// to router/link, which repairs losses and saves copies (quic.go). It reads the sources of the Go toolchain that runs it and of the
// quic-go that go.mod names, makes exact, checked changes in copies, and writes what `go build` takes: the file overlay.json
// for -overlay, and a go.mod that puts the copy in quic-go's place for -modfile. Nothing of either is kept in this repository.
//
// It does not find or fetch the toolchain and does not set any flag: env.sh beside it does, for the Makefile. Whether a program has the
// raw public keys is asked with link.SelfTest; whether a connection hands over its datagrams, with a type assertion.
//
//	overlay DIR    # writes DIR/overlay/overlay.json, DIR/quic-go, DIR/go.mod, DIR/go.sum; run in the main module
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: overlay DIR")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "overlay:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	out, err := goCommand("env", "GOROOT", "GOVERSION", "GOMOD")
	if err != nil {
		return err
	}
	env := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(env) != 3 {
		return fmt.Errorf("go env says %q, not GOROOT, GOVERSION and GOMOD", out)
	}
	if err := generateTLS(env[0], env[1], filepath.Join(dir, "overlay")); err != nil {
		return err
	}
	out, failed := goCommand("mod", "download", "-json", quicPath)
	var quic struct{ Dir, Version, Error string } // what goes wrong is said here, not on stderr
	err = json.Unmarshal(out, &quic)
	switch {
	case quic.Error != "":
		return fmt.Errorf("the module %s cannot be had: %s", quicPath, quic.Error)
	case failed != nil:
		return failed
	case err != nil:
		return fmt.Errorf("go mod download: %w", err)
	}
	if err := generateQUIC(quic.Dir, quic.Version, filepath.Join(dir, "quic-go")); err != nil {
		return err
	}
	return replaceQUIC(env[2], filepath.Join(dir, "quic-go"), filepath.Join(dir, "go.mod"))
}

func goCommand(args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return out, err
}

// generateTLS writes the overlay for the toolchain at goroot into dir, overlay.json last.
func generateTLS(goroot, version, dir string) error {
	tls := filepath.Join(goroot, "src", "crypto", "tls")
	files, err := rawKeys.apply(os.DirFS(tls), version)
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

// generateQUIC makes dir the changed copy of the quic-go at module, without its tests.
func generateQUIC(module, version, dir string) error {
	src := os.DirFS(module)
	files, err := datagrams.apply(src, version)
	if err != nil {
		return err
	}
	err = fs.WalkDir(src, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !copied(name) || files[name] != nil {
			return err
		}
		files[name], err = fs.ReadFile(src, name)
		return err
	})
	if err != nil {
		return err
	}
	for name, text := range files {
		if err := write(filepath.Join(dir, name), text); err != nil {
			return err
		}
	}
	// What another version has left would be compiled too.
	return fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || files[name] != nil {
			return err
		}
		return os.Remove(filepath.Join(dir, name))
	})
}

// copied says which files of a module are needed to build it.
func copied(name string) bool {
	return name == "go.mod" || name == "LICENSE" || strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go")
}

// replaceQUIC writes the main module's go.mod, with dir in quic-go's place, and its go.sum beside it, to where modfile says.
func replaceQUIC(gomod, dir, modfile string) error {
	text, err := os.ReadFile(gomod)
	if err != nil {
		return err
	}
	sum, err := os.ReadFile(strings.TrimSuffix(gomod, ".mod") + ".sum")
	if err != nil {
		return err
	}
	text = fmt.Appendf(text, "\nreplace %s => %s\n", quicPath, dir)
	return errors.Join(write(strings.TrimSuffix(modfile, ".mod")+".sum", sum), write(modfile, text))
}
