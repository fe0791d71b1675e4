package key

import "testing"

func BenchmarkDH(b *testing.B) {
	s, p := Generate(), Generate().Public()
	b.ReportAllocs()
	for b.Loop() {
		s.DH(p)
	}
}

func BenchmarkCheck(b *testing.B) {
	p := Generate().Public()
	for b.Loop() {
		p.Check()
	}
}

func BenchmarkVerify(b *testing.B) {
	s := Generate()
	p, sig := s.Public(), s.Sign([]byte("message"))
	for b.Loop() {
		p.Verify([]byte("message"), sig[:])
	}
}

func BenchmarkBlind(b *testing.B) {
	p := Generate().Public()
	for b.Loop() {
		p.Blind()
	}
}

func BenchmarkParseName(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		ParseName("www.jason.loki.")
	}
}
