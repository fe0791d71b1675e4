package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// block is a run of statements of the package that is under test.
type block struct {
	file        string // its base
	first, last int    // lines
	place       string // line.column,line.column
}

// profile says how many statements each block has; the other one which of them were reached.
type profile map[block]int

// played runs a target over stored inputs alone.
func (r *runner) played(ctx context.Context, t target, dir string) (all profile, reached map[block]bool, err error) {
	bin, err := r.binary(ctx, t.pkg, "cover", "-cover", "-covermode=set")
	if err != nil {
		return nil, nil, err
	}
	out := filepath.Join(r.dir, "profile")
	text, err := r.command(ctx, dir, bin, "-test.timeout", "3m", "-test.run", "^"+t.name+"$", "-test.coverprofile", out).CombinedOutput()
	if err != nil {
		return nil, nil, fmt.Errorf("%v: %w\n%s", t, err, text)
	}
	return readProfile(out)
}

// readProfile reads lines like "lokinetd/router/bt/read.go:26.30,28.2 1 0".
func readProfile(name string) (all profile, reached map[block]bool, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	all, reached = profile{}, map[block]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		file, rest, _ := strings.Cut(lines.Text(), ":")
		words := strings.Fields(rest)
		if len(words) != 3 {
			continue // the mode
		}
		b := block{file: path.Base(file), place: words[0]}
		if _, err := fmt.Sscanf(strings.NewReplacer(".", " ", ",", " ").Replace(words[0]), "%d %d %d", &b.first, new(int), &b.last); err != nil {
			return nil, nil, fmt.Errorf("%s: %q: %w", name, lines.Text(), err)
		}
		n, err := strconv.Atoi(words[1])
		if err != nil {
			return nil, nil, err
		}
		all[b] = n
		if words[2] != "0" {
			reached[b] = true
		}
	}
	return all, reached, lines.Err()
}

// of gives the statements of a function, those reached, and the lines of the others.
func (p profile) of(f function, reached map[block]bool) (statements, covered int, missed []int) {
	for b, n := range p {
		if b.file != f.file || b.first < f.first || b.last > f.last {
			continue
		}
		statements += n
		if reached[b] {
			covered += n
		} else if n > 0 {
			missed = append(missed, b.first)
		}
	}
	slices.Sort(missed)
	return statements, covered, slices.Compact(missed)
}

// cover prints the table of coverage by stored inputs, and what is missed.
func (r *runner) cover(ctx context.Context, least float64) error {
	low := 0
	var errs []error
	for _, t := range r.targets {
		all, reached, err := r.played(ctx, t, filepath.Join(r.root, t.pkg))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		statements, covered := 0, 0
		var missed []string
		for _, f := range t.decoders {
			s, c, m := all.of(f, reached)
			statements, covered = statements+s, covered+c
			for _, line := range m {
				missed = append(missed, fmt.Sprintf("%s:%d", f.file, line))
			}
		}
		share := 100.0
		if statements > 0 {
			share = 100 * float64(covered) / float64(statements)
		}
		if len(t.decoders) == 0 {
			fmt.Printf("%-16s %-20s decodes for another package\n", t.pkg, t.name)
			continue
		}
		fmt.Printf("%-16s %-20s %4d of %4d  %5.1f %%  %s\n", t.pkg, t.name, covered, statements, share, strings.Join(missed, " "))
		if share < least {
			low++
		}
	}
	if low > 0 {
		errs = append(errs, fmt.Errorf("%d targets have stored inputs that cover less than %.0f %% of their decoders", low, least))
	}
	return errors.Join(errs...)
}
