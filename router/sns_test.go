package router

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"lokinetd/router/key"
)

// Protocol 1 section 8.4: who decides a name, in every order of the answers.
func TestAgree(t *testing.T) {
	a, b := key.Public{1}, key.Public{2}
	yes := func(k key.Public) nameAnswer { return nameAnswer{owner: k, found: true} }
	no, fail := nameAnswer{none: true}, nameAnswer{}
	for _, c := range []struct {
		what    string
		answers []nameAnswer
		asked   int
		owner   key.Public // zero: not found
		certain bool
		agreed  int
		early   int // answers after which it was decided, in the given order
	}{
		{"three of five", []nameAnswer{yes(a), yes(b), yes(a), yes(a), no}, 5, a, true, 3, 4},
		{"not found by three", []nameAnswer{no, no, no, yes(a), yes(a)}, 5, key.Public{}, true, 3, 3},
		{"one path", []nameAnswer{yes(a)}, 1, a, true, 1, 1},
		{"two paths agree", []nameAnswer{yes(a), yes(a)}, 2, a, true, 2, 2},
		{"of two paths one says not found", []nameAnswer{yes(a), no}, 2, key.Public{}, true, 1, 2},
		{"of two paths one fails", []nameAnswer{yes(a), fail}, 2, a, true, 1, 2},
		{"two owners as often", []nameAnswer{yes(a), yes(b), yes(b), yes(a)}, 4, key.Public{}, false, 2, 4},
		{"two liars of four do not win by being quicker", []nameAnswer{yes(b), yes(b), yes(a), yes(a)}, 4, key.Public{}, false, 2, 4},
		{"most common without a majority", []nameAnswer{yes(a), yes(a), yes(b), fail, no}, 5, a, true, 2, 5},
		{"not found wins a tie", []nameAnswer{yes(a), no, fail, fail, fail}, 5, key.Public{}, true, 1, 5},
		{"nothing but failures is not certain", []nameAnswer{fail, fail, fail}, 3, key.Public{}, false, 0, 3},
		{"one liar of four does not win", []nameAnswer{yes(b), yes(a), yes(a), no}, 4, a, true, 2, 4},
	} {
		t.Run(c.what, func(t *testing.T) {
			for n := range c.early + 1 {
				v, _, ok := agree(c.asked, c.answers[:n])
				if ok != (n >= c.early) {
					t.Fatalf("after %d answers: decided %v", n, ok)
				}
				if ok && (v.owner != c.owner || v.found != !c.owner.IsZero() || v.certain != c.certain || v.agreed != c.agreed) {
					t.Fatalf("after %d answers: %+v", n, v)
				}
			}
		})
	}
}

func TestNameCache(t *testing.T) {
	var c names
	now := time.Unix(1e9, 0)
	c.put("a.loki", nameVerdict{found: true, owner: key.Public{1}}, now)
	if e, ok := c.get("a.loki", now.Add(snsTTL)); !ok || !e.found {
		t.Error("forgotten too early")
	}
	if _, ok := c.get("a.loki", now.Add(snsTTL+1)); ok {
		t.Error("kept too long")
	}
	for i := range 3 * snsCacheMax {
		c.put(fmt.Sprint(i), nameVerdict{}, now)
	}
	if len(c.cache) > snsCacheMax {
		t.Errorf("%d names kept", len(c.cache))
	}
}

// What a host looks up is asked over no path of a service as long as it has another endpoint; who has services only asks over theirs.
func TestAskers(t *testing.T) {
	c := &client{}
	for _, step := range []struct {
		name    string
		service bool
		want    []string
	}{
		{"shop", true, []string{"shop"}},
		{"browsing", false, []string{"browsing"}},
		{"mail", true, []string{"browsing"}},
	} {
		c.endpoints = append(c.endpoints, &Endpoint{Config: EndpointConfig{Name: step.name, Service: step.service}})
		var got []string
		for _, e := range c.askers() {
			got = append(got, e.Config.Name)
		}
		if !slices.Equal(got, step.want) {
			t.Errorf("with %q: asked over %q, want %q", step.name, got, step.want)
		}
	}
	if len(c.list()) != 3 {
		t.Error("endpoints lost")
	}
}
