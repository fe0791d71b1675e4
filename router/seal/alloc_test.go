//go:build !race

package seal

import "testing"

// The data plane's promise; the race detector's own allocations would be counted.
func TestNoAllocations(t *testing.T) {
	k, nonce, data := new(Key), new(Nonce), make([]byte, 1400+TagSize)
	hop := NewHop(*k)
	for name, f := range map[string]func(){
		"Xor":        func() { Xor(nonce, &hop.Xor) },
		"Stream":     func() { Stream(data, k, nonce) },
		"Seal":       func() { Seal(data, k, nonce) },
		"Open":       func() { Open(data, k, nonce) }, // fails
		"Seal, Open": func() { Seal(data, k, nonce); Open(data, k, nonce) },
		"forms": func() {
			for _, f := range cipherForms {
				f.stream(data, k, nonce)
				f.seal(data, k, nonce)
				f.open(data, k, nonce)
			}
		},
		"own key, nonce": func() { // which may live on the stack
			k, n := Key{1}, Nonce{2}
			Xor(&n, &hop.Xor)
			Stream(data, &k, &n)
			Seal(data, &k, &n)
			Open(data, &k, &n)
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
