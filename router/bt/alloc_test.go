//go:build !race

package bt

import (
	"encoding/hex"
	"testing"
)

// The reader is on the way of each path build and each request: reading a correct message must cost no allocation.
func TestReadAllocates(t *testing.T) {
	contact, _ := hex.DecodeString(vectors[0].hex)
	list := []byte("ld1:ai1e1:b3:abc1:clleleee3:abci7ee")
	if n := testing.AllocsPerRun(100, func() {
		d := ReadDict(contact)
		d.OptUint("", 255)
		d.OptUint("#", 1)
		d.Fixed("4", 6)
		d.OptFixed("6", 18)
		d.Fixed("p", 32)
		d.Uint("t", 1<<63)
		d.OptRaw("u")
		d.Fixed("v", 3)
		d.Signature("~")
		if d.Finish() != nil {
			panic(d.Err())
		}
		l := ReadList(list)
		for l.Next() {
			n := l.Dict()
			in := n.List("c")
			for in.Next() {
				in.Raw()
			}
			l.Bytes()
			l.Int()
		}
		if l.Finish() != nil {
			panic(l.Err())
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	buf := make([]byte, 0, 256)
	if n := testing.AllocsPerRun(100, func() {
		NewDict(buf).Int("a", 1).Bytes("b", contact).String("c", "x").End()
	}); n != 0 {
		t.Errorf("writing: %v allocations", n)
	}
}
