package packet

import (
	"fmt"
	"sync"
	"sync/atomic"
)

const (
	// Headroom is the number of bytes that a fresh Buffer keeps free before Data: the TUN's virtio header (10 bytes), the link's datagram id (2).
	Headroom = 32
	// MaxData is the largest application datagram of a link in bytes (design section 3): both halves of a split datagram together.
	MaxData = 2852
	// tag is the room that is kept behind MaxData, so that an AEAD tag can be appended before a longer trailer was cut.
	tag = 16
	// size of a buffer's own array.
	size = Headroom + MaxData + tag
)

// Buffer carries one packet or message through the data plane.
//
// Ownership: passing a *Buffer to a function, a channel or an interface passes ownership, error or not; only the owner may touch it, and
// the last owner calls Release. Data is a window of the buffer's own array: whoever owns the buffer may reslice it
// (b.Data = b.Data[2:]), but not with a third index and not to foreign memory; Set copies.
type Buffer struct {
	// Data is the packet. Empty after Get.
	Data []byte
	// Nonce is the message nonce, where the message has one. It lives here because a local one escapes to the heap. Not cleared by Get.
	Nonce [24]byte

	room  []byte // the array in use: own[:], or a larger one that Set made for one packet
	inUse atomic.Bool
	own   [size]byte
}

var pool = sync.Pool{New: func() any {
	b := new(Buffer)
	b.room = b.own[:]
	return b
}}

var inUse atomic.Int64

// Get returns a buffer with empty Data, Headroom bytes before it and MaxData + 16 bytes of capacity. Its old content is undefined.
func Get() *Buffer {
	b := pool.Get().(*Buffer)
	b.inUse.Store(true)
	inUse.Add(1)
	b.Data = b.room[Headroom:Headroom]
	return b
}

// Release gives the buffer back; Data must not be used any more. A second Release panics: two owners of one buffer would send one
// remote's bytes to another. (It is found only while nobody else has taken the buffer.)
func (b *Buffer) Release() {
	if !b.inUse.Swap(false) {
		panic("packet: buffer released twice")
	}
	inUse.Add(-1)
	if poison {
		for i := range b.room {
			b.room[i] = 0xdb
		}
	}
	b.room = b.own[:]
	b.Data = nil
	pool.Put(b)
}

// InUse returns how many buffers were taken and not released yet. For tests that look for leaks.
func InUse() int64 { return inUse.Load() }

// start returns the offset of Data in room.
func (b *Buffer) start() int {
	n := cap(b.room) - cap(b.Data)
	if n < 0 || cap(b.Data) > 0 && &b.room[n:][:1][0] != &b.Data[:1][0] {
		panic("packet: Data is not a window of its buffer")
	}
	return n
}

// Head returns how many bytes Prepend can still add; Tail returns how many Extend can.
func (b *Buffer) Head() int { return b.start() }

// Tail returns how many bytes Extend can still add.
func (b *Buffer) Tail() int { return cap(b.Data) - len(b.Data) }

// Prepend grows Data by n bytes at its front and returns these n bytes, content undefined. It panics when n > Head(): whoever
// prepends bytes chosen by others checks first.
func (b *Buffer) Prepend(n int) []byte {
	at := b.start()
	if n < 0 || n > at {
		panic(fmt.Sprintf("packet: %d bytes do not fit into %d before the packet", n, at))
	}
	b.Data = b.room[at-n : at+len(b.Data)]
	return b.Data[:n]
}

// Extend grows Data by n bytes at its end and returns these n bytes, content undefined. It panics when n > Tail().
func (b *Buffer) Extend(n int) []byte {
	l := len(b.Data)
	if n < 0 || n > b.Tail() {
		panic(fmt.Sprintf("packet: %d bytes do not fit into %d behind the packet", n, b.Tail()))
	}
	b.Data = b.Data[:l+n]
	return b.Data[l:]
}

// Cut takes n bytes off the end of Data and returns them; they stay readable until Data grows over them or the buffer is released.
// It panics when n > len(Data): lengths that come from outside are checked before.
func (b *Buffer) Cut(n int) []byte {
	l := len(b.Data) - n
	if n < 0 || l < 0 {
		panic(fmt.Sprintf("packet: cannot cut %d bytes off %d", n, len(b.Data)))
	}
	cut := b.Data[l:]
	b.Data = b.Data[:l]
	return cut
}

// Reset makes Data the n bytes behind the headroom, content undefined, and returns Data: room to read a packet into. n is at most MaxData + 16.
func (b *Buffer) Reset(n int) []byte {
	b.room = b.own[:]
	b.Data = b.room[Headroom : Headroom+n]
	return b.Data
}

// Set makes Data a copy of p with Headroom bytes before it. A p larger than MaxData + 16 gets an array of its own, without room
// behind it, that is not kept when the buffer is released.
func (b *Buffer) Set(p []byte) {
	b.room = b.own[:]
	if len(p) > MaxData+tag {
		b.room = make([]byte, Headroom+len(p))
		b.room = b.room[:len(b.room):len(b.room)]
	}
	b.Data = b.room[Headroom : Headroom+len(p)]
	copy(b.Data, p)
}
