package link

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"lokinetd/router/packet"
)

// pattern is n bytes of which any run of 4 tells where it is.
func pattern(n int) []byte {
	b := make([]byte, n+4)
	for i := 0; i < n; i += 4 {
		binary.BigEndian.PutUint32(b[i:], uint32(i))
	}
	return b[:n]
}

// framesOf sends p through s as sendDatagram does.
func framesOf(s *splitter, p []byte, piece int) (frames [][]byte) {
	c := s.cut(len(p), piece)
	room := append(make([]byte, dgidSize), p...)
	for i := range c.frames {
		frames = append(frames, bytes.Clone(c.frame(room, i)))
	}
	return frames
}

func TestSplit(t *testing.T) {
	big := pattern(3000)
	for _, c := range []struct {
		name    string
		counter uint16
		p       []byte
		m       int
		want    []string // dgid of each frame
		first   int
	}{
		{"protocol 2 section 4.3: second datagram", 1, []byte("hello"), 1200, []string{"0004"}, 5},
		{"protocol 2 section 4.3: 1500 bytes at 1200", 5, big[:1500], 1200, []string{"0016", "0017"}, 1154},
		{"first", 0, big[:1], 1200, []string{"0000"}, 1},
		{"empty", 0, nil, 1200, []string{"0000"}, 0},
		{"third, split", 2, big[:1155], 1200, []string{"000a", "000b"}, 1154},
		{"just whole", 3, big[:1154], 1200, []string{"000c"}, 1154},
		{"largest at 1200", 0, big[:2308], 1200, []string{"0002", "0003"}, 1154},
		{"too large at 1200", 0, big[:2309], 1200, nil, 0},
		{"largest at 1452", 0, big[:2812], 1452, []string{"0002", "0003"}, 1406},
		{"too large at 1452", 0, big[:2813], 1452, nil, 0},
		{"largest at 1472", 0, big[:2852], 1472, []string{"0002", "0003"}, 1426},
		{"last counter", 16383, big[:1], 1200, []string{"fffc"}, 1},
		{"nonsense announced", 0, big[:1], 40, nil, 0},
		{"no room at all", 0, nil, 45, nil, 0},
		{"no room but for nothing", 0, nil, 46, []string{"0000"}, 0},
	} {
		s := splitter{counter: c.counter}
		frames := framesOf(&s, c.p, pieceOf(c.m))
		var ids []string
		var body []byte
		for _, f := range frames {
			ids = append(ids, hex.EncodeToString(f[:2]))
			body = append(body, f[2:]...)
		}
		if !slices.Equal(ids, c.want) || len(ids) > 0 && (!bytes.Equal(body, c.p) || len(frames[0]) != 2+c.first) {
			t.Errorf("%s: ids %v, %d bytes", c.name, ids, len(body))
		}
		next := c.counter
		if c.want != nil {
			next = (next + 1) & counterMask // a datagram that was not sent uses no number
		}
		if s.counter != next {
			t.Errorf("%s: next counter %d", c.name, s.counter)
		}
	}
}

func joinOne(j *joiner, frame []byte) (string, bool) {
	b, split := j.add(frame)
	if b == nil {
		return "", false
	}
	defer b.Release()
	return fmt.Sprintf("%x %v", b.Data, split), true
}

func TestJoin(t *testing.T) {
	first := func(counter uint16, s string) string { return string(frameID(counter, flagFirst)) + s }
	second := func(counter uint16, s string) string { return string(frameID(counter, flagSecond)) + s }
	long := string(pattern(2000))
	for _, c := range []struct {
		name            string
		in              []string
		out             []string
		invalid, halves uint64
	}{
		{"vector hello", []string{"\x00\x04hello"}, []string{"hello"}, 0, 0},
		{"empty whole", []string{"\x00\x00"}, []string{""}, 0, 0},
		{"nothing", []string{"", "x"}, nil, 2, 0},
		{"flags 01", []string{"\x00\x01abc", "\x00\x02abc", "\x00\x01def"}, nil, 2, 0},
		{"in order", []string{first(0, "abc"), second(0, "def")}, []string{"abcdef"}, 0, 0},
		{"reversed", []string{second(7, "def"), first(7, "abc")}, []string{"abcdef"}, 0, 0},
		{"interleaved", []string{first(1, "a"), first(2, "c"), second(1, "b"), second(2, "d")}, []string{"ab", "cd"}, 0, 0},
		{"whole between", []string{first(1, "a"), "\x00\x08w", second(1, "b")}, []string{"w", "ab"}, 0, 0},
		{"same half twice", []string{first(1, "a"), first(1, "x"), second(1, "b")}, []string{"xb"}, 0, 1},
		{"used once", []string{first(1, "a"), second(1, "b"), second(1, "c"), first(1, "d")}, []string{"ab"}, 0, 0},
		{"whole twice", []string{"\x00\x04w", "\x00\x04w"}, []string{"w", "w"}, 0, 0},
		{"wrap", []string{first(16383, "a"), first(0, "c"), second(0, "d"), second(16383, "b")}, []string{"cd", "ab"}, 0, 0},
		{"same slot, other counter", []string{first(3, "a"), second(3+joinSlots, "b"), second(3, "c")}, nil, 0, 2},
		{"other counter by one bit", []string{first(3, "a"), second(3|1<<13, "b")}, nil, 0, 1},
		{"too large together", []string{first(1, long), second(1, long)}, nil, 1, 0},
		{"too large alone", []string{"\x00\x00" + string(pattern(packet.MaxData+1))}, nil, 1, 0},
		{"largest", []string{first(1, long), second(1, long[:packet.MaxData-2000])}, []string{long + long[:packet.MaxData-2000]}, 0, 0},
		{"largest reversed", []string{second(1, long[:packet.MaxData-2000]), first(1, long)}, []string{long + long[:packet.MaxData-2000]}, 0, 0},
	} {
		var j joiner
		var out []string
		for _, frame := range c.in {
			if b, _ := j.add([]byte(frame)); b != nil {
				out = append(out, string(b.Data))
				b.Release()
			}
		}
		if !slices.Equal(out, c.out) || j.invalid.Load() != c.invalid || j.halves.Load() != c.halves {
			t.Errorf("%s: %d out, %d invalid, %d halves", c.name, len(out), j.invalid.Load(), j.halves.Load())
		}
		j.release()
	}
}

func frameID(counter uint16, flags uint16) []byte {
	return binary.BigEndian.AppendUint16(nil, counter<<2|flags)
}

// A half whose other was lost meets neither the datagrams of the next round of counters nor those of the one after.
func TestJoinAfterWrap(t *testing.T) {
	var j joiner
	defer j.release()
	j.add(append(frameID(5, flagFirst), "lost"...))
	for round := range 3 {
		for counter := range uint16(counterMask + 1) {
			if counter == 5 {
				continue
			}
			if b, _ := j.add(append(frameID(counter, flagWhole), 'w')); b != nil {
				b.Release()
			}
		}
		if got, ok := joinOne(&j, append(frameID(5, flagSecond), "other"...)); ok {
			t.Errorf("round %d: joined %s", round, got)
		}
	}
}

// Every datagram that a splitter cuts, at any path size, comes out of a joiner unchanged, in any order of frames within the window.
func TestSplitJoin(t *testing.T) {
	r := random(t)
	before := packet.InUse()
	var s splitter
	var j joiner
	for round := range 40 {
		m := 1200 + r.IntN(273)
		var frames [][]byte
		want := map[string]int{}
		for range 100 {
			p := pattern(r.IntN(2*pieceOf(m) + 1))
			r.Shuffle(min(len(p), 50), func(a, b int) { p[a], p[b] = p[b], p[a] })
			want[fmt.Sprintf("%x", p)]++
			frames = append(frames, framesOf(&s, p, pieceOf(m))...)
		}
		r.Shuffle(len(frames), func(a, b int) { frames[a], frames[b] = frames[b], frames[a] })
		for _, f := range frames {
			if b, _ := j.add(f); b != nil {
				want[fmt.Sprintf("%x", b.Data)]--
				b.Release()
			}
		}
		for _, n := range want {
			if n != 0 {
				t.Fatalf("round %d: not the datagrams that were sent", round)
			}
		}
	}
	if j.halves.Load() != 0 || j.invalid.Load() != 0 || packet.InUse() != before {
		t.Errorf("%d halves and %d others dropped, %d buffers kept", j.halves.Load(), j.invalid.Load(), packet.InUse()-before)
	}
}

// model is reassembly written down plainly: all halves in a map by continued counter, at most one for a slot.
type model struct {
	latest int64
	halves map[int64]modelHalf
	joined map[int64]bool
}

type modelHalf struct {
	second bool
	body   string
}

func (m *model) add(f []byte) (string, bool) {
	if len(f) < 2 || f[1]&3 == 1 || len(f)-2 > packet.MaxData {
		return "", false
	}
	counter := int64(f[0])<<6 | int64(f[1])>>2
	body := string(f[2:])
	// The candidate nearest to latest; the earlier one of two that are equally near; none below 0.
	best, distance := int64(-1), int64(1<<62)
	for c := counter; c <= m.latest+2*16384; c += 16384 {
		if d := max(c-m.latest, m.latest-c); d < distance {
			best, distance = c, d
		}
	}
	m.latest = max(m.latest, best)
	if f[1]&2 == 0 {
		m.done(best)
		return body, true
	}
	if m.joined[best] && best+seenMax > m.latest {
		return "", false
	}
	second := f[1]&1 == 1
	h, ok := m.halves[best]
	if ok && h.second != second {
		delete(m.halves, best)
		m.done(best)
		if len(h.body)+len(body) > packet.MaxData {
			return "", false
		}
		if second {
			return h.body + body, true
		}
		return body + h.body, true
	}
	for c := range m.halves {
		if c%joinSlots == best%joinSlots {
			delete(m.halves, c)
		}
	}
	m.halves[best] = modelHalf{second, body}
	return "", false
}

func (m *model) done(counter int64) {
	if counter+seenMax > m.latest {
		m.joined[counter] = true
	}
}

// FuzzJoiner: whatever frames a hostile peer sends, in any order, the joiner neither panics nor keeps buffers nor joins what does not belong together; it does what the
// plain model does. script is frames of 3 bytes: id and length.
//
// Decoders: joiner.add joiner.had joiner.complete joiner.extend joiner.half joiner.room joiner.free joiner.drop flowOf
func FuzzJoiner(f *testing.F) {
	f.Add([]byte{0, 2, 10, 0, 3, 20})
	f.Add([]byte{0, 2, 10, 4, 2, 20, 0, 3, 1, 4, 3, 255})
	f.Add([]byte{0xff, 0xfe, 1, 0, 0, 0, 0xff, 0xff, 1})
	f.Add([]byte{0, 2, 1, 0x80, 0, 0, 0xff, 0xfc, 0, 0x7f, 0, 0, 0, 3, 9})
	r := rand.New(rand.NewPCG(1, 2))
	long := make([]byte, 3*600)
	for i := range long {
		long[i] = byte(r.Uint32())
		if i%3 == 0 {
			long[i] &= 7
		}
	}
	f.Add(long)
	var halves []byte
	for c := range uint16(joinFree + 5) {
		halves = append(halves, byte(c<<2>>8), byte(c<<2)|flagFirst, 1)
	}
	f.Add(append(halves, 0, flagSecond, 1))
	f.Add([]byte{0, flagFirst, 200, 0, flagSecond, 200, 0, 0, 254})
	f.Fuzz(func(t *testing.T, script []byte) {
		before := packet.InUse()
		full := joiner{all: new(atomic.Int64)} // where others keep all that may be kept
		full.all.Store(joinAll)
		var j joiner
		m := model{halves: map[int64]modelHalf{}, joined: map[int64]bool{}}
		for i := 0; len(script) >= 3; i++ {
			frame := append([]byte{script[0], script[1]}, pattern(int(script[2])*12)...)
			if len(frame) > 2 {
				frame[2] = byte(i)
			}
			if script[2] == 255 {
				frame = frame[:1]
			}
			script = script[3:]
			flowOf(frame)
			if b, _ := full.add(frame); b != nil {
				b.Release()
			}
			if full.kept > joinFree || full.all.Load() != joinAll {
				t.Fatalf("%d halves kept, %d in all", full.kept, full.all.Load())
			}
			want, wantOK := m.add(frame)
			b, _ := j.add(frame)
			if (b != nil) != wantOK || b != nil && string(b.Data) != want {
				t.Fatalf("frame %d (%x, %d bytes): got %v, model %v", i, frame[:min(2, len(frame))], len(frame), b != nil, wantOK)
			}
			if b != nil {
				b.Release()
			}
		}
		j.release()
		full.release()
		if packet.InUse() != before {
			t.Error("a buffer was not released")
		}
		if j.slots != nil {
			for _, s := range j.slots {
				if s.half != nil {
					t.Error("a half was kept after release")
				}
			}
		}
	})
}
