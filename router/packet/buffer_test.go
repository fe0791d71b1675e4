package packet

import (
	"bytes"
	"testing"
)

func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s did not panic", what)
		}
	}()
	f()
}

func TestBufferWindow(t *testing.T) {
	b := Get()
	if len(b.Data) != 0 || b.Head() != Headroom || b.Tail() != MaxData+16 {
		t.Fatalf("fresh buffer: len %d, head %d, tail %d", len(b.Data), b.Head(), b.Tail())
	}
	copy(b.Extend(5), "hello")
	copy(b.Prepend(2), ">>")
	copy(b.Extend(3), "abc")
	if string(b.Data) != ">>helloabc" {
		t.Fatalf("got %q", b.Data)
	}
	if cut := b.Cut(3); string(cut) != "abc" || string(b.Data) != ">>hello" {
		t.Fatalf("cut %q, left %q", cut, b.Data)
	}
	b.Data = b.Data[2:]
	if b.Head() != Headroom {
		t.Fatalf("reslicing moved the headroom to %d", b.Head())
	}
	b.Prepend(Headroom)
	mustPanic(t, "Prepend without room", func() { b.Prepend(1) })
	mustPanic(t, "Prepend(-1)", func() { b.Prepend(-1) })
	b.Extend(b.Tail())
	mustPanic(t, "Extend without room", func() { b.Extend(1) })
	mustPanic(t, "Cut of more than there is", func() { b.Cut(len(b.Data) + 1) })
	if p := b.Reset(MaxData + 16); len(p) != MaxData+16 || b.Head() != Headroom || b.Tail() != 0 {
		t.Fatalf("Reset: %d, head %d, tail %d", len(p), b.Head(), b.Tail())
	}
	b.Data = []byte("foreign")
	mustPanic(t, "foreign Data", func() { b.Prepend(1) })
	b.Set(nil)
	if len(b.Data) != 0 || b.Head() != Headroom {
		t.Fatal("Set(nil)")
	}
	b.Release()
}

func TestBufferLarge(t *testing.T) {
	p := bytes.Repeat([]byte{7}, 65535)
	b := Get()
	b.Set(p)
	if !bytes.Equal(b.Data, p) || b.Head() != Headroom || b.Tail() != 0 {
		t.Fatalf("large: len %d, head %d, tail %d", len(b.Data), b.Head(), b.Tail())
	}
	b.Set([]byte("small"))
	if string(b.Data) != "small" || b.Head()+len(b.Data)+b.Tail() != size {
		t.Fatal("a large Set spoils the next one")
	}
	b.Release()
}

func TestBufferDoubleRelease(t *testing.T) {
	b := new(Buffer) // not from the pool: a parallel test must not take it
	b.room = b.own[:]
	b.inUse.Store(true)
	inUse.Add(1)
	before := InUse()
	b.Release()
	if InUse() != before-1 {
		t.Errorf("InUse %d, want %d", InUse(), before-1)
	}
	mustPanic(t, "second Release", b.Release)
}
