// Command corpus looks after the fuzz targets of the whole tree: which function that reads foreign bytes belongs to which target, what the inputs stored for a target
// cover of it, and long runs, whose new inputs it stores. It reads the sources and runs test binaries; it knows none of the packages.
//
// A target says in its comment what it decodes, by functions of its own package:
//
//	// Decoders: parseMessage deframer.write
//	func FuzzMessage(f *testing.F)
//
// A name with a slash is a package that is none of ours, of which nothing is measured.
//
// The stored inputs are those of f.Add and the files of testdata/fuzz/FuzzMessage. What fuzzing finds is kept by the go command in its cache, from which merge
// takes the few that cover statements no stored one does.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"time"
)

const usage = `usage: corpus cover|fuzz|merge|long [flag...]

cover  the share of the decoders' statements that the stored inputs of each target cover; fails below -least
fuzz   every target for -time
merge  stores those cached inputs that cover something new
long   targets in turn, the one with the fewest minutes next, until each has its share; keeps the table in -doc
`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	fs := flag.NewFlagSet("corpus "+os.Args[1], flag.ExitOnError)
	only := fs.String("only", "", "only targets whose package and name match this expression")
	run := runner{}
	fs.Func("exec", "what to put before each test binary, such as 'nice -n 19'", func(s string) error { run.wrap = strings.Fields(s); return nil })
	var l long
	var least float64
	var each time.Duration
	switch os.Args[1] {
	case "cover":
		fs.Float64Var(&least, "least", 95, "percent")
	case "fuzz":
		fs.DurationVar(&each, "time", 10*time.Second, "of each target")
	case "merge":
	case "long":
		fs.DurationVar(&l.share, "share", 30*time.Minute, "CPU time of each target")
		fs.DurationVar(&l.quiet, "quiet", 10*time.Minute, "CPU time at the end without new coverage")
		fs.DurationVar(&l.turn, "turn", 5*time.Minute, "CPU time before it is the next one's turn")
		fs.DurationVar(&l.slice, "slice", time.Minute, "between looks at the clock")
		fs.DurationVar(&l.stop, "for", 0, "stop after this time (0: when all have their share)")
		fs.StringVar(&l.doc, "doc", "docs/fuzz.md", "the file with the table")
	default:
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	fs.Parse(os.Args[2:])

	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, stopSignal)
	defer cancel()
	err := func() error {
		which, err := regexp.Compile(*only)
		if err != nil {
			return err
		}
		t, err := readTree(".")
		if err != nil {
			return err
		}
		run.root, run.all = t.root, t.targets
		for _, x := range t.targets {
			if which.MatchString(x.String()) {
				run.targets = append(run.targets, x)
			}
		}
		if run.dir, err = os.MkdirTemp("", "corpus"); err != nil {
			return err
		}
		defer os.RemoveAll(run.dir)
		switch os.Args[1] {
		case "cover":
			return run.cover(ctx, least)
		case "fuzz":
			return run.fuzz(ctx, each)
		case "merge":
			return run.merge(ctx)
		}
		l.runner = &run
		return l.run(ctx)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "corpus:", err)
		os.Exit(1)
	}
}
