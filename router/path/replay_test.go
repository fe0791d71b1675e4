package path

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/seal"
)

// A build that comes again builds nothing, whoever brings it, while its path lives and after; what was refused may come again.
func TestReplayedBuild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Limits{})
		ask := func(l Link, id key.Public, msg []byte) string {
			back := make(answers, 1)
			r.HandleRequest(l, id, nameBuild, bytes.Clone(msg), back.reply)
			select {
			case a := <-back:
				return a.text()
			default:
				return "waits"
			}
		}
		relay := exampleRelay(2).Public()
		msg := r.frameFor(t, 60, terminalFrame(r))
		if got := ask(r.client, key.Public{}, msg); got != "no error: OK" {
			t.Fatal(got)
		}
		for after := time.Duration(0); after < 2*maxLifetime*time.Second; after += 345 * time.Second {
			time.Sleep(after)
			r.Tick(time.Now())
			changed := bytes.Clone(msg)
			changed[frameSize] ^= 1 // not the frame
			for _, m := range [][]byte{msg, changed} {
				if after > maxLifetime*time.Second {
					break
				}
				if got := ask(newTapLink(), relay, m); got != textIDInUse {
					t.Errorf("after %v: %q", after, got)
				}
			}
			if ask(r.client, key.Public{}, r.frameFor(t, 60, terminalFrame(r))) != "no error: OK" {
				t.Error("another one is refused")
			}
			if after >= maxLifetime*time.Second/2 {
				break // more than maxLifetime has gone by in all
			}
		}
		forged := r.frameFor(t, 60, terminalFrame(r))
		forged[100] ^= 1
		for range 2 {
			if got := ask(r.client, key.Public{}, forged); got == textIDInUse {
				t.Error("what was refused is remembered")
			}
		}
	})
}

// The frames of a flood are remembered within bounds.
func TestUsedFramesBounded(t *testing.T) {
	var u usedFrames
	now := time.Unix(1e9, 0)
	for i := range uint64(3*maxFrames + 1) {
		u.add(i+1, now)
		if !u.has(i + 1) {
			t.Fatal("the latest is not known")
		}
	}
	if n := len(u.now) + len(u.old); n > 2*maxFrames {
		t.Errorf("%d frames are remembered", n)
	}
	if now = now.Add(3 * maxLifetime * time.Second); true {
		u.add(1<<40, now)
	}
	if n := len(u.now) + len(u.old); n != 1 {
		t.Errorf("%d frames are remembered long after", n)
	}
}

// repeater gives the replies in a list, one after the other.
type repeater struct {
	Link
	replies [][]byte
}

func (l *repeater) Request(context.Context, string, []byte) ([]byte, error) {
	r := l.replies[0]
	l.replies = l.replies[1:]
	return bytes.Clone(r), nil
}

// A relay of the path that repeats a reply of its terminal does not show that the terminal lives.
func TestReplayedReply(t *testing.T) {
	hops := []seal.Hop{seal.NewHop(seal.Key{1}), seal.NewHop(seal.Key{2})}
	reply := func() []byte {
		at := fillID(1)
		m := sealReply(status(textOK), &hops[1], newNonce(), &at)
		if !passReply(m, &hops[0], &at, &at) {
			t.Fatal("bad reply")
		}
		return m
	}
	a, b := reply(), reply()
	l := &repeater{replies: [][]byte{a, b, a, reply(), b}}
	p := &Path{link: l, hops: hops, gone: t.Context()}
	p.state.Store(pathUp)
	for i, fresh := range []bool{true, true, false, true, false} {
		if _, err := p.Request(t.Context(), methodPing, nil); (err == nil) != fresh || !fresh && !errors.Is(err, ErrUnauthentic) {
			t.Errorf("reply %d: %v", i, err)
		}
	}
	for range 2 * maxReplies {
		n := newNonce()
		p.replies.first(&n)
	}
	if len(p.replies.marks) != maxReplies {
		t.Errorf("%d nonces are remembered", len(p.replies.marks))
	}
}
