package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestNeeded: the files that are kept reach all that the whole heap does, none is kept that the ones before it make superfluous, and a heap that says nothing new costs one run.
func TestNeeded(t *testing.T) {
	runs := 0
	reach := func(files []string) (map[block]bool, error) {
		runs++
		got := map[block]bool{{first: 1}: true}
		for _, f := range files {
			for _, c := range f {
				got[block{first: int(c)}] = true
			}
		}
		return got, nil
	}
	all, _ := reach([]string{"abc", "b", "d", "", "da", "xyz", "x"})
	keep, err := needed([]string{"", "b", "d", "x", "da", "abc", "xyz"}, map[block]bool{{first: 1}: true}, reach)
	if got, _ := reach(keep); err != nil || !slices.Equal(keep, []string{"b", "d", "x", "da", "abc", "xyz"}) || len(got) != len(all) {
		t.Errorf("%q, %v", keep, err)
	}
	slices.Reverse(keep)
	if keep, err = needed(keep, map[block]bool{{first: 1}: true}, reach); err != nil || !slices.Equal(keep, []string{"xyz", "abc", "da"}) {
		t.Errorf("the other way round: %q, %v", keep, err)
	}
	if runs = 0; true {
		if keep, err = needed([]string{"a", "b", "c", "d", "x", "y", "z"}, all, reach); keep != nil || err != nil || runs != 1 {
			t.Errorf("%q after %d runs, %v", keep, runs, err)
		}
	}
}

// TestTable: what is written is read again, and all around the table stays.
func TestTable(t *testing.T) {
	doc := filepath.Join(t.TempDir(), "fuzz.md")
	if err := os.WriteFile(doc, []byte("# Before\n\n"+tableBegins+"\nAfter | that |\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	order := []target{{pkg: "a", name: "FuzzB"}, {pkg: "a", name: "FuzzA"}}
	want := map[string]account{}
	for range 3 {
		for _, x := range order {
			a := account{x.String(), time.Duration(660+rand.IntN(3)) * 6 * time.Second, 90 * time.Second, rand.IntN(1 << 30), rand.IntN(3), "abc", "2026-01-02"}
			want[a.target] = a
			if err := writeTable(doc, order, a); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := readTable(doc)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	l := long{runner: &runner{targets: order}, share: time.Hour}
	if x, _, ok := l.next(map[string]account{"a FuzzB": {cpu: time.Minute}}, nil); !ok || x.name != "FuzzA" {
		t.Errorf("next is %v", x)
	}
	if x, _, ok := l.next(map[string]account{"a FuzzA": {cpu: time.Hour}}, map[string]bool{"a FuzzB": true}); ok {
		t.Errorf("next is %v", x)
	}
	raw, _ := os.ReadFile(doc)
	if s := string(raw); s[:10] != "# Before\n\n" || s[len(s)-15:] != "\nAfter | that |\n"[1:] {
		t.Errorf("%s", raw)
	}
}
