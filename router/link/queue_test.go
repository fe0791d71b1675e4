package link

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"lokinetd/router/packet"
)

// A full queue drops its oldest, by count and by bytes; a datagram larger than all room is alone.
func TestDatagramQueue(t *testing.T) {
	before := packet.InUse()
	for _, c := range []struct {
		name     string
		count    int
		bytes    int
		push     []int // sizes; contents are numbered
		want     string
		dropped  uint64
		popFirst int // how many are popped after half of the pushes
	}{
		{"empty", 4, 100, nil, "", 0, 0},
		{"order", 4, 100, []int{1, 1, 1}, "012", 0, 0},
		{"by count", 4, 100, []int{1, 1, 1, 1, 1, 1}, "2345", 2, 0},
		{"by bytes", 9, 10, []int{4, 4, 4, 1}, "123", 1, 0},
		{"large", 9, 10, []int{4, 4, 50}, "2", 2, 0},
		{"large then small", 9, 10, []int{50, 4, 4}, "12", 1, 0},
		{"around the ring", 4, 100, []int{1, 1, 1, 1, 1, 1, 1}, "3456", 0, 3},
		{"growing", 100, 1000, slicesOf(1, 70), "", 0, 20},
	} {
		q := newDatagramQueue(c.bytes, c.count)
		var got []byte
		var batch [3]*packet.Buffer
		pop := func(most int) {
			for most > 0 {
				n := q.pop(batch[:min(most, len(batch))], time.Now())
				for _, b := range batch[:n] {
					got = append(got, b.Data[0])
					b.Release()
				}
				if most -= n; n == 0 {
					return
				}
			}
		}
		for i, size := range c.push {
			q.push(bufferOf(bytes.Repeat([]byte{'0' + byte(i)}, size)), time.Now())
			if i == len(c.push)/2-1 {
				pop(c.popFirst)
			}
			if q.fair.Len() > c.count || q.fair.Len() > 1 && q.fair.Bytes() > c.bytes {
				t.Errorf("%s: %d datagrams, %d bytes", c.name, q.fair.Len(), q.fair.Bytes())
			}
		}
		popped := len(got)
		pop(1000)
		want := c.want
		if want == "" {
			for i := range c.push {
				want += string('0' + byte(i))
			}
		} else if popped > 0 {
			want = "012"[:popped] + want
		}
		if string(got) != want || q.full.Load() != c.dropped || q.fair.Len() != 0 || q.fair.Bytes() != 0 {
			t.Errorf("%s: %q, %d dropped, %d bytes", c.name, got, q.full.Load(), q.fair.Bytes())
		}
		q.push(bufferOf([]byte("x")), time.Now())
		q.close()
		q.push(bufferOf([]byte("x")), time.Now())
		if q.ended.Load() != 2 || q.pop(batch[:], time.Now()) != 0 {
			t.Errorf("%s: after close", c.name)
		}
	}
	if packet.InUse() != before {
		t.Errorf("%d buffers left", packet.InUse()-before)
	}
}

func slicesOf(v, n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = v
	}
	return s
}

func TestOutbox(t *testing.T) {
	body := func(n int) *message { return &message{Type: typeReply, Body: make([]byte, n)} }
	mem := &budget{max: 1_000_000}
	o := newOutbox(1000, mem)
	for i, c := range []struct {
		m   *message // nil: everything is taken and written
		err error
	}{
		{body(500), nil}, {body(400), nil}, {body(500), errSlow}, {body(10), nil}, {nil, nil},
		{body(900_000), nil}, {body(10), errSlow}, {nil, nil}, // one of any size, alone
		{body(10), nil}, {body(2000), errSlow}, {nil, nil},
		{body(1_100_000), errSlow}, // more than all may hold together
		{body(MaxMessage), ErrTooLarge}, {body(10), nil}, {nil, nil},
	} {
		if c.m == nil {
			o.written(o.take())
			if o.unsent != 0 || mem.used.Load() != 0 {
				t.Errorf("%d: %d unsent, %d counted", i, o.unsent, mem.used.Load())
			}
		} else if err := o.put(c.m); err != c.err {
			t.Errorf("%d: %v", i, err)
		}
	}
	if !o.nudge() || o.nudge() || string(o.take()) != nudge {
		t.Error("nudge")
	}
	o.put(body(300_000)) // refused: the nudge is still being written
	o.close()
	if o.put(body(1)) != ErrClosed || o.nudge() || len(o.take()) != 0 || mem.used.Load() != 0 {
		t.Errorf("after close: %d counted", mem.used.Load())
	}
}

// Only what is above the free share counts, so that small buffers work on when the budget is used up.
func TestBudget(t *testing.T) {
	of := &budget{max: 100_000}
	a, b := share{of: of}, share{of: of}
	for i, c := range []struct {
		s    *share
		size int
		ok   bool
		used int64
	}{
		{&a, freeShare, true, 0}, {&a, freeShare + 100_000, true, 100_000}, {&b, freeShare, true, 100_000}, {&b, freeShare + 1, false, 100_001},
		{&b, 0, true, 100_000}, {&a, freeShare + 99_999, true, 99_999}, {&a, 0, true, 0},
	} {
		if ok := c.s.set(c.size); ok != c.ok || of.used.Load() != c.used {
			t.Errorf("%d: %v, %d used", i, ok, of.used.Load())
		}
	}
}

func TestErrorTexts(t *testing.T) {
	for want, got := range map[string]string{
		"link: closed by us, code 6":                          (&CloseError{Code: 6}).Error(),
		`link: closed by the peer, code 0: "NO_ERROR"`:        (&CloseError{Remote: true, Reason: "NO_ERROR"}).Error(),
		`link: peer answered with the error "d1:!5:ERRORe"`:   (&ReplyError{Body: []byte("d1:!5:ERRORe")}).Error(),
		"Invalid endpoint '" + strings.Repeat("x", 200) + "'": string(unknownEndpoint(strings.Repeat("x", 1000))),
	} {
		if got != want {
			t.Errorf("%s", got)
		}
	}
}
