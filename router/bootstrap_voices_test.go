package router

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/link"
	"lokinetd/router/netdb"
)

// TestBootstrapVoices: a client of the public network hears several bootstraps, so that one that lies neither brings in relays that nobody registered nor keeps out those that are.
func TestBootstrapVoices(t *testing.T) {
	signedNow := func(from, to int) (list []*netdb.RelayContact) {
		for i := from; i < to; i++ {
			list = append(list, signed(i, 0, time.Now()))
		}
		return list
	}
	type answers = map[int]func(context.Context) ([]byte, error)
	late := func(ctx context.Context) ([]byte, error) {
		select {
		case <-time.After(6 * time.Second):
			return packOf(signedNow(0, 10)...)(ctx)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	refuses := func(context.Context) ([]byte, error) { return nil, &link.ReplyError{Body: []byte("No RCs")} }
	for _, x := range []struct {
		what       string
		bootstraps int
		answers    func() answers
		known      []int // the registered relays are 0 to 9, in the answers of liars 10 to 39 beside or in place of them
		within     time.Duration
	}{
		{"one", 1, func() answers { return answers{0: packOf(signedNow(0, 10)...)} }, span(0, 10), time.Second},
		{"one liar of three invents", 3, func() answers {
			return answers{0: packOf(signedNow(0, 10)...), 1: packOf(signedNow(0, 40)...), 2: packOf(signedNow(0, 10)...)}
		}, span(0, 10), time.Second},
		{"one liar of three replaces", 3, func() answers {
			return answers{0: packOf(signedNow(0, 10)...), 1: packOf(signedNow(10, 40)...), 2: packOf(signedNow(0, 10)...)}
		}, span(0, 10), time.Second},
		{"one liar of two invents", 2, func() answers {
			return answers{0: packOf(signedNow(0, 10)...), 1: packOf(signedNow(0, 40)...)}
		}, span(0, 10), time.Second},
		{"the liar is quick", 3, func() answers {
			slow := func(ctx context.Context) ([]byte, error) {
				time.Sleep(time.Second)
				return packOf(signedNow(0, 10)...)(ctx)
			}
			return answers{0: slow, 1: packOf(signedNow(0, 40)...), 2: slow}
		}, span(0, 10), 2 * time.Second},
		{"two withhold some", 3, func() answers {
			return answers{0: packOf(signedNow(0, 10)...), 1: packOf(signedNow(0, 8)...), 2: packOf(signedNow(2, 10)...)}
		}, span(0, 10), time.Second},
		{"others are dead, refuse or are late", 5, func() answers {
			return answers{0: packOf(signedNow(0, 10)...), 1: refuses, 2: silence, 3: late}
		}, span(0, 10), 10 * time.Second},
		{"no two agree", 2, func() answers { // then it is as the protocol has it
			return answers{0: packOf(signedNow(0, 10)...), 1: packOf(signedNow(0, 3)...)}
		}, nil, time.Second},
	} {
		for round := range 5 { // whom chance asks first
			t.Run(fmt.Sprint(x.what, round), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := &bootstraps{answers: x.answers()}
					w := newFakeWire()
					w.dial = b.dial
					n := runNode(t, NodeConfig{Wire: w, Network: netdb.PublicNetwork(0, signedNow(0, x.bootstraps))})
					time.Sleep(x.within)
					synctest.Wait()
					var want []key.Public
					for _, i := range x.known {
						want = append(want, secret(i).Public())
					}
					slices.SortFunc(want, key.Public.Compare)
					if got := n.store.Known(); len(want) > 0 && !slices.Equal(got, want) || len(got) < 3 {
						t.Errorf("%d relays known, want %d", len(got), len(want))
					}
					for _, c := range n.store.All() {
						if !n.store.IsKnown(c.ID) {
							t.Error("a contact of a relay that is not known")
						}
					}
				})
			})
		}
	}
}

// span gives the numbers from a up to b.
func span(a, b int) (ns []int) {
	for i := a; i < b; i++ {
		ns = append(ns, i)
	}
	return ns
}
