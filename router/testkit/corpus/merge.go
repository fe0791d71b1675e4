package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// maxInput bounds a stored file in bytes; the fuzzer finds most things with much less.
const maxInput = 4 << 10

func (r *runner) merge(ctx context.Context) error {
	var errs []error
	for _, t := range r.targets {
		n, err := r.mergeOne(ctx, t)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		errs = append(errs, err)
		fmt.Printf("%-16s %-20s %3d files stored\n", t.pkg, t.name, n)
	}
	return errors.Join(errs...)
}

// mergeOne stores cached inputs of a target, short ones first, until together with the stored ones they reach what all of them do, and says how many.
func (r *runner) mergeOne(ctx context.Context, t target) (int, error) {
	from, err := cached(t)
	if err != nil {
		return 0, err
	}
	files, err := filesOf(from)
	if err != nil || len(files) == 0 {
		return 0, err
	}
	to, err := filepath.Abs(filepath.Join(r.root, t.pkg, "testdata/fuzz", t.name))
	if err != nil {
		return 0, err
	}
	stored, err := filesOf(to)
	if err != nil {
		return 0, err
	}
	reach := func(files []string) (map[block]bool, error) {
		dir, err := r.mirror(t, files)
		if err != nil {
			return nil, err
		}
		_, reached, err := r.played(ctx, t, dir)
		return reached, err
	}
	had, err := reach(stored)
	if err != nil {
		return 0, err
	}
	files = slices.DeleteFunc(files, func(f string) bool {
		return slices.ContainsFunc(stored, func(s string) bool { return filepath.Base(s) == filepath.Base(f) })
	})
	keep, err := needed(files, had, reach)
	if err != nil {
		return 0, err
	}
	slices.Reverse(keep) // once more with the greatest first: what they reach as well needs no file of its own
	if keep, err = needed(keep, had, reach); err != nil {
		return 0, err
	}
	if len(keep) > 0 {
		if err := os.MkdirAll(to, 0o755); err != nil {
			return 0, err
		}
	}
	for _, f := range keep {
		data, err := os.ReadFile(f)
		if err == nil {
			err = os.WriteFile(filepath.Join(to, filepath.Base(f)), data, 0o644)
		}
		if err != nil {
			return 0, err
		}
	}
	return len(keep), nil
}

// needed gives those files that reach what neither had nor a file before them does. It halves the files, so that many that reach nothing new cost one run.
func needed(files []string, had map[block]bool, reach func([]string) (map[block]bool, error)) (keep []string, err error) {
	seen := make(map[block]bool, len(had))
	for b := range had {
		seen[b] = true
	}
	var look func(files []string) error
	look = func(files []string) error {
		if len(files) == 0 {
			return nil
		}
		now, err := reach(files)
		if err != nil {
			return err
		}
		more := false
		for b := range now {
			more = more || !seen[b]
		}
		switch {
		case !more:
			return nil
		case len(files) == 1:
			for b := range now {
				seen[b] = true
			}
			keep = append(keep, files[0])
			return nil
		}
		half := len(files) / 2
		if err := look(files[:half]); err != nil {
			return err
		}
		return look(files[half:])
	}
	return keep, look(files)
}

// filesOf lists the files of a folder that may be stored, short ones first; a folder that is not there has none.
func filesOf(dir string) (files []string, err error) {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	sizes := map[string]int64{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || info.Size() > maxInput {
			continue
		}
		name := filepath.Join(dir, e.Name())
		sizes[name] = info.Size()
		files = append(files, name)
	}
	slices.SortFunc(files, func(a, b string) int { return cmp.Or(cmp.Compare(sizes[a], sizes[b]), cmp.Compare(a, b)) })
	return files, err
}
