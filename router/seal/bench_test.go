package seal

import (
	"fmt"
	"math"
	"testing"
	"time"

	"lokinetd/router/key"
)

// What one call costs, and how much that is of what the plain form takes. The two are timed in turns and the best turn of each counts, so that time and
// ratio hold on a busy machine too.
func BenchmarkCipher(b *testing.B) {
	k, n := new(Key), new(Nonce)
	for _, way := range []struct {
		name        string
		here, plain func([]byte, *Key, *Nonce)
	}{
		{"Stream", Stream, plainStream},
		{"Seal", Seal, plainSeal},
		{"SealOpen", func(d []byte, k *Key, n *Nonce) { Seal(d, k, n); Open(d, k, n) }, func(d []byte, k *Key, n *Nonce) { plainSeal(d, k, n); plainOpen(d, k, n) }},
	} {
		for _, size := range []int{100, 200, 600, 1200} {
			b.Run(fmt.Sprintf("%s/%d", way.name, size), func(b *testing.B) {
				const turn = 16
				data := make([]byte, size)
				b.ReportAllocs()
				here, plain := time.Duration(math.MaxInt64), time.Duration(math.MaxInt64)
				for b.Loop() {
					start := time.Now()
					for range turn {
						way.here(data, k, n)
					}
					middle := time.Now()
					for range turn {
						way.plain(data, k, n)
					}
					here, plain = min(here, middle.Sub(start)), min(plain, time.Since(middle))
				}
				b.ReportMetric(float64(here)/turn, "ns/op")
				b.ReportMetric(float64(here)/float64(plain), "of-plain")
			})
		}
	}
}

func BenchmarkClientPathKey(b *testing.B) {
	s, p, n := key.Generate(), key.Generate().Public(), new(Nonce)
	b.ReportAllocs()
	for b.Loop() {
		ClientPathKey(s, p, n)
	}
}

func BenchmarkBox(b *testing.B) {
	to, msg := key.Generate().Public(), make([]byte, 1350)
	b.ReportAllocs()
	for b.Loop() {
		Box(to, msg)
	}
}

func BenchmarkOpenBox(b *testing.B) {
	to := key.Generate()
	sealed, err := Box(to.Public(), make([]byte, 1350))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		OpenBox(to, sealed)
	}
}

func BenchmarkHandshake(b *testing.B) {
	i, r := key.Generate().Public(), key.Generate().Public()
	b.ReportAllocs()
	for b.Loop() {
		e := NewEphemeral()
		resp, err := Respond(e.X(), e.M())
		if err != nil {
			b.Fatal(err)
		}
		resp.Keys(i, r, 1, 2)
		e.Keys(i, r, 1, 2, resp.Y, resp.C)
	}
}
