package seal

import (
	"fmt"
	"testing"

	"lokinetd/router/key"
)

// size is that of a full packet through a path.
const size = 1400

func BenchmarkStream(b *testing.B) {
	k, n, data := new(Key), new(Nonce), make([]byte, size)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		Stream(data, k, n)
	}
}

func BenchmarkSeal(b *testing.B) {
	k, n, data := new(Key), new(Nonce), make([]byte, size+TagSize)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		Seal(data, k, n)
	}
}

func BenchmarkOpen(b *testing.B) {
	k, n, data := new(Key), new(Nonce), make([]byte, size+TagSize)
	Seal(data, k, n)
	sealed := string(data)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		copy(data, sealed)
		if _, ok := Open(data, k, n); !ok {
			b.Fatal("does not open")
		}
	}
}

// The plain forms, for comparison, and where the two ways of Stream cross.
func BenchmarkPlain(b *testing.B) {
	k, n, data := new(Key), new(Nonce), make([]byte, size+TagSize)
	b.Run("Stream", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			plainStream(data[:size], k, n)
		}
	})
	b.Run("Seal", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			plainSeal(data, k, n)
		}
	})
	for _, n := range []int{128, 192, 256, 320, 448} {
		for name, f := range map[string]func([]byte, *Key, *Nonce){"plain": plainStream, "vector": vectorStream} {
			b.Run(fmt.Sprintf("Stream%d/%s", n, name), func(b *testing.B) {
				if name == "vector" && !vector {
					b.Skip("no vector form here")
				}
				for b.Loop() {
					f(data[:n], k, new(Nonce))
				}
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
