package testkit

import (
	"bytes"
	"fmt"
	"testing"
)

func TestRand(t *testing.T) {
	t.Setenv("LOKINETD_SEED", "7")
	if a, b := Rand(t).Bytes(40), Rand(t).Bytes(40); !bytes.Equal(a, b) || !bytes.Equal(a, Seeded(7).Bytes(40)) || bytes.Equal(a, Seeded(8).Bytes(40)) {
		t.Errorf("%x, %x", a, b)
	}
	t.Setenv("LOKINETD_SEED", "")
	if a, b := Rand(t).Uint64(), Rand(t).Uint64(); a == b {
		t.Error("the same without a seed")
	}
}

// Each of these is a leak that must be seen.
func TestLeak(t *testing.T) {
	secret := [32]byte(Counting(0x51, 32))
	parts := [][]byte{secret[:]}
	for _, text := range []string{
		string(secret[:]), fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret), fmt.Sprintf("% x", secret), fmt.Sprint(secret), fmt.Sprintf("%#v", secret),
		fmt.Sprintf("... %x ...", secret[7:15]),
	} {
		if leak([]byte(text), parts) == "" {
			t.Errorf("%q is not seen", text)
		}
	}
	if l := leak([]byte("51525354555657"), parts); l != "" {
		t.Errorf("seven bytes are enough: %s", l)
	}
}
