package main

import (
	"bytes"
	"testing"
	"time"
)

func TestSplitTimes(t *testing.T) {
	page, times, err := splitTimes([]byte("a page\nof two lines\n\n0.012500 0.020000 0.031000"))
	if err != nil || string(page) != "a page\nof two lines\n" {
		t.Errorf("page %q, %v", page, err)
	}
	if want := (fetchTimes{12500 * time.Microsecond, 20 * time.Millisecond, 31 * time.Millisecond}); times != want {
		t.Errorf("times %v", times)
	}
	for _, bad := range []string{"", "a page", "a page\n", "a page\n0.1 0.2", "a page\n0.1 0.2 x"} {
		if _, _, err := splitTimes([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestVisitPrint(t *testing.T) {
	v := &visit{took: 85600 * time.Microsecond}
	v.add("exec", 0)
	v.add("started", 11400*time.Microsecond)
	v.add("first byte", v.took)
	var out bytes.Buffer
	v.print(&out, "cold start")
	want := `
cold start: 86 ms from exec to the first byte of the page
      0.0 ms     +0.0  exec                    of the client and of curl, at the same instant
     11.4 ms    +11.4  started                 the program is loaded, the configuration read
     85.6 ms    +74.2  first byte              a second one: GET, and the page
`
	if out.String() != want {
		t.Errorf("got\n%s", out.String())
	}
}
