package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// long fuzzes targets in turn, one worker at a time, until each has had its share of CPU time and found nothing new in the last part of it.
type long struct {
	*runner
	share, quiet, turn, slice, stop time.Duration
	doc                             string
}

// account is a row of the table: all that was ever done with a target.
type account struct {
	target     string
	cpu, quiet time.Duration
	execs      int
	crashes    int
	commit     string
	date       string
}

// tableBegins is the table's head; its rows follow. The rest of the file is people's.
const tableBegins = "| target | CPU minutes | executions | CPU minutes since new coverage | crashes | commit | date |\n|---|---|---|---|---|---|---|\n"

// cutTable takes the rows out of the file.
func cutTable(doc string) (before, rows, after string, err error) {
	raw, err := os.ReadFile(doc)
	if err != nil {
		return "", "", "", err
	}
	before, after, ok := strings.Cut(string(raw), tableBegins)
	if !ok {
		return "", "", "", fmt.Errorf("%s: there is no table with the columns\n%s", doc, tableBegins)
	}
	for strings.HasPrefix(after, "|") {
		row, rest, _ := strings.Cut(after, "\n")
		rows, after = rows+row+"\n", rest
	}
	return before, rows, after, nil
}

func (l *long) run(ctx context.Context) error {
	if l.stop > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.stop)
		defer cancel()
	}
	crashed := map[string]bool{}
	for ctx.Err() == nil {
		table, err := readTable(l.doc)
		if err != nil {
			return err
		}
		t, a, ok := l.next(table, crashed)
		if !ok {
			break
		}
		text, err := l.take(ctx, t, &a)
		if err != nil {
			return err
		}
		if text != "" {
			crashed[t.String()] = true // it would crash again at once
			fmt.Println(text)
		}
		added, err := 0, error(nil)
		if text == "" && ctx.Err() == nil {
			if added, err = l.mergeOne(ctx, t); err != nil {
				fmt.Println(err)
			}
		}
		fmt.Printf("%s %-16s %-20s %5.1f CPU minutes, %5.1f since new coverage, %d executions, %d files stored\n",
			time.Now().Format(time.TimeOnly), t.pkg, t.name, a.cpu.Minutes(), a.quiet.Minutes(), a.execs, added)
		if err := writeTable(l.doc, l.all, a); err != nil {
			return err
		}
	}
	if len(crashed) > 0 {
		return fmt.Errorf("%d targets crashed", len(crashed))
	}
	return nil
}

// next is the target that has had the least and is not done.
func (l *long) next(table map[string]account, crashed map[string]bool) (t target, a account, ok bool) {
	for _, x := range l.targets {
		row := table[x.String()]
		row.target = x.String()
		if crashed[x.String()] || row.cpu >= l.share && row.quiet >= l.quiet {
			continue
		}
		if !ok || row.cpu+30*time.Second < a.cpu { // the order of danger decides between those that had about the same
			t, a, ok = x, row, true
		}
	}
	return t, a, ok
}

// take is one turn of a target. It returns what a crash printed.
func (l *long) take(ctx context.Context, t target, a *account) (crash string, err error) {
	if a.commit, err = head(); err != nil {
		return "", err
	}
	a.date = time.Now().Format(time.DateOnly)
	for begun := a.cpu; ctx.Err() == nil && a.cpu < begun+l.turn; {
		o, err := l.play(ctx, t, l.slice, 1)
		if ctx.Err() == nil && err != nil {
			return "", err
		}
		a.cpu += o.cpu
		a.execs += o.execs
		if o.found {
			a.quiet = 0
		}
		a.quiet += o.quiet
		if o.crashed && ctx.Err() == nil {
			a.crashes++
			return o.text, nil
		}
	}
	return "", nil
}

func head() (string, error) {
	out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	return strings.TrimSpace(string(out)), err
}

// readTable reads the rows by target.
func readTable(doc string) (map[string]account, error) {
	_, rows, _, err := cutTable(doc)
	if err != nil {
		return nil, err
	}
	table := map[string]account{}
	for line := range strings.Lines(rows) {
		f := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(f) != 7 {
			continue
		}
		for i := range f {
			f[i] = strings.TrimSpace(f[i])
		}
		a := account{target: f[0], commit: f[5], date: f[6]}
		var errs [4]error
		var cpu, quiet float64
		cpu, errs[0] = strconv.ParseFloat(f[1], 64)
		a.execs, errs[1] = strconv.Atoi(f[2])
		quiet, errs[2] = strconv.ParseFloat(f[3], 64)
		a.crashes, errs[3] = strconv.Atoi(f[4])
		if err := cmp.Or(errs[:]...); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", doc, line, err)
		}
		tenths := func(minutes float64) time.Duration { return time.Duration(math.Round(10*minutes)) * time.Minute / 10 }
		a.cpu, a.quiet = tenths(cpu), tenths(quiet)
		table[a.target] = a
	}
	return table, nil
}

// writeTable puts a row into the table, which has one for each target that was ever run; rows of targets that are gone from the tree are left to people.
func writeTable(doc string, order []target, row account) error {
	table, err := readTable(doc)
	if err != nil {
		return err
	}
	table[row.target] = row
	place := map[string]int{}
	for i, t := range order {
		place[t.String()] = i + 1
	}
	var names []string
	for name := range table {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(place[a], place[b]), cmp.Compare(a, b)) })
	before, _, after, err := cutTable(doc)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	b.WriteString(before + tableBegins)
	for _, name := range names {
		a := table[name]
		fmt.Fprintf(&b, "| %s | %.1f | %d | %.1f | %d | %s | %s |\n", a.target, a.cpu.Minutes(), a.execs, a.quiet.Minutes(), a.crashes, a.commit, a.date)
	}
	b.WriteString(after)
	tmp := filepath.Join(filepath.Dir(doc), "."+filepath.Base(doc)+".new")
	if err := os.WriteFile(tmp, b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, doc)
}
