package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const stopSignal = syscall.SIGTERM

// runner builds and runs test binaries.
type runner struct {
	root    string
	dir     string // for what is thrown away afterwards
	wrap    []string
	all     []target         // of the tree, in the order of danger
	targets []target         // those asked for
	built   map[string]error // by file
}

// binary builds the tests of a package, once for each kind.
func (r *runner) binary(ctx context.Context, pkg, kind string, flags ...string) (string, error) {
	out := filepath.Join(r.dir, strings.ReplaceAll(pkg, "/", "_")+"."+kind)
	err, done := r.built[out]
	if !done {
		cmd := exec.CommandContext(ctx, "go", append(append([]string{"test", "-c", "-o", out}, flags...), "./"+pkg)...)
		cmd.Dir = r.root
		text, failed := cmd.CombinedOutput()
		if failed != nil {
			err = fmt.Errorf("%s: %w\n%s", pkg, failed, text)
		}
		if r.built == nil {
			r.built = map[string]error{}
		}
		r.built[out] = err
	}
	if err != nil {
		return "", err
	}
	return filepath.Abs(out)
}

// command is a test binary in a folder, to be ended by SIGINT: then the fuzzing one ends its workers.
func (r *runner) command(ctx context.Context, dir, binary string, args ...string) *exec.Cmd {
	all := append(append(append([]string{}, r.wrap...), binary), args...)
	cmd := exec.CommandContext(ctx, all[0], all[1:]...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that a signal for us is not one for it
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// cached is the folder in which the go command keeps what fuzzing has found for a target.
func cached(t target) (string, error) {
	dir, err := cache()
	return filepath.Join(dir, "fuzz", "lokinetd", t.pkg, t.name), err
}

func cache() (string, error) {
	out, err := exec.Command("go", "env", "GOCACHE").Output()
	return strings.TrimSpace(string(out)), err
}

// round is what one run of a fuzzing binary did.
type round struct {
	cpu     time.Duration // of it and its workers
	quiet   time.Duration // of cpu, the part after the last new coverage
	found   bool          // new coverage
	execs   int
	crashed bool
	text    string
}

var progress = regexp.MustCompile(`elapsed: ([0-9hms]+), execs: ([0-9]+) .*new interesting: ([0-9]+)`)

// play fuzzes a target for d of wall time, on so many cores (0: all).
func (r *runner) play(ctx context.Context, t target, d time.Duration, cores int) (round, error) {
	var o round
	bin, err := r.binary(ctx, t.pkg, "fuzz", "-fuzz", "^"+t.name+"$")
	if err != nil {
		return o, err
	}
	dir, err := cached(t)
	if err != nil {
		return o, err
	}
	args := []string{"-test.run", "^$", "-test.fuzz", "^" + t.name + "$", "-test.fuzzcachedir", dir[:len(dir)-len(t.name)-1], "-test.fuzztime", d.String(), "-test.fuzzminimizetime", "5s"}
	if cores > 0 {
		args = append(args, "-test.parallel", strconv.Itoa(cores))
	}
	cmd := r.command(ctx, filepath.Join(r.root, t.pkg), bin, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	o.text = out.String()
	if cmd.ProcessState != nil {
		o.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	var last, end time.Duration
	news := 0
	for _, m := range progress.FindAllStringSubmatch(o.text, -1) {
		end, _ = time.ParseDuration(m[1])
		o.execs, _ = strconv.Atoi(m[2])
		if n, _ := strconv.Atoi(m[3]); n > news {
			news, last, o.found = n, end, true
		}
	}
	o.quiet = o.cpu
	if end > 0 {
		o.quiet = time.Duration(float64(o.cpu) * float64(end-last) / float64(end))
	}
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		return o, err
	}
	// The fuzzer fails too when its time ends while a worker is at work on an input that it was to make shorter: that is none of the target's.
	o.crashed = err != nil && (!strings.Contains(o.text, "context deadline exceeded") || strings.Contains(o.text, "Failing input written"))
	return o, nil
}

// fuzz plays each target on all cores. It goes on after a crash, and fails at the end.
func (r *runner) fuzz(ctx context.Context, d time.Duration) error {
	var bad []string
	for _, t := range r.targets {
		o, err := r.play(ctx, t, d, 0)
		if err != nil {
			return err
		}
		fmt.Printf("%-16s %-20s %9d executions\n", t.pkg, t.name, o.execs)
		if o.crashed {
			bad = append(bad, t.String())
			fmt.Println(o.text)
		}
	}
	if bad != nil {
		return fmt.Errorf("failed: %s", strings.Join(bad, ", "))
	}
	return nil
}

// mirror makes a copy of the tree by links in which the target has no stored files but the given ones, and gives the folder to run its tests in.
func (r *runner) mirror(t target, files []string) (string, error) {
	top, err := os.MkdirTemp(r.dir, "tree")
	if err != nil {
		return "", err
	}
	root, err := filepath.Abs(r.root)
	if err != nil {
		return "", err
	}
	dir := "."
	for _, part := range append(strings.Split(t.pkg, "/"), "testdata", "fuzz") {
		if err := linkAll(filepath.Join(root, dir), filepath.Join(top, dir), part); err != nil {
			return "", err
		}
		dir = filepath.Join(dir, part)
	}
	to := filepath.Join(top, dir, t.name)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return "", err
	}
	for _, f := range files {
		if err := os.Symlink(f, filepath.Join(to, filepath.Base(f))); err != nil {
			return "", err
		}
	}
	return filepath.Join(top, t.pkg), nil
}

// linkAll fills a folder with links to all in another one, except for the one name.
func linkAll(from, to, except string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.Name() != except {
			if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
