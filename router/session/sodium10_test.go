//go:build sodium

package session

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"lokinetd/router/key"
	"lokinetd/router/path"
	"lokinetd/router/seal"
	"lokinetd/router/seal/sodium"
)

// TestSodium10: 1.0 inits and the path switches of sessions with their keys, made by us and opened by libsodium, and the other way round. What libsodium makes is compared byte by byte
// where there is no randomness in it.
func TestSodium10(t *testing.T) {
	sodium.Check(t, sodium.Start(t), "old", 300, func(c *sodium.Case) error {
		callerSeed, calledSeed := c.Seed(), c.Seed()
		caller, called := key.FromSeed(callerSeed), key.FromSeed(calledSeed)
		self, to := caller.Public(), called.Public()
		p, tag := path.ID(c.Bytes(16)), c.Bytes(4)
		tag[3] |= 1
		i := &oldInitiator{self: caller, remote: to, tag: binary.BigEndian.Uint32(tag)}
		init, err := i.init(p)
		if err != nil {
			return err
		}
		r, err := c.Ask("openoldinit", calledSeed[:], init)
		if err != nil {
			return err
		}
		if err := errors.Join(sodium.Same("i", self[:], r[0]), sodium.Same("p", p[:], r[1]), sodium.Same("t", tag, r[2]), sodium.Same("key", i.key[:], r[3])); err != nil {
			return err
		}

		r = c.Must("oldinit", callerSeed[:], to[:], c.Bytes(32), c.Bytes(24), p[:], tag)
		got, err := opened(r[0], called)
		if err != nil {
			return err
		}
		if got.remote != self || got.pivot != p || got.tag != i.tag {
			return errors.New("init of libsodium says something else")
		}
		if err := sodium.Same("key", got.key[:], r[1]); err != nil {
			return err
		}
		theirs := r[0]

		ks := &keys{out: got.key, in: got.key, old: true}
		n := seal.Nonce(c.Nonce())
		inner := c.Must("oldnonce", n[:])[0]
		for _, list := range [][]byte{nil, {1}} {
			body := pathSwitch(ks, &n, p, init, list != nil)
			if err := sodium.Same("path switch", body, c.Must("switch", got.key[:], inner, p[:], init, list)[0]); err != nil {
				return err
			}
			r, err := c.Ask("unswitch", got.key[:], inner, list, body)
			if err != nil {
				return err
			}
			if err := errors.Join(sodium.Same("p", p[:], r[0]), sodium.Same("i", init, r[1])); err != nil {
				return err
			}
			h, err := parseHandshake(c.Must("switch", got.key[:], inner, p[:], theirs, list)[0])
			if err != nil || !bytes.Equal(h.init, theirs) {
				return errors.Join(errors.New("path switch of libsodium"), err)
			}
			if at, err := openSwitch(h.sealed, ks, &n); err != nil || at != p {
				return errors.Join(errors.New("S of libsodium"), err)
			}
		}
		return nil
	})
}
