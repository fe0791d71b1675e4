package path

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"lokinetd/router/key"
	"lokinetd/router/seal"
)

// The build message (protocol 3 section 2): eight frames of 169 bytes, one for each hop and random bytes in the rest. Frame i is
// under the layers of hops 0 to i-1.
//
// A v0 frame is a bt dict and holds another one, encrypted. All keys and lengths are fixed and leave no room for more, so nothing but the fields
// can differ (sections 2.3 and 12.6):
//
//	frame  d 1:k32: E(32) 1:n24: N(24) 1:x93: x(93) e
//	x      d 1:l4: lifetime(4, little endian) 1:r16: rx(16) 1:t16: tx(16) 1:u32: next(32) e
const (
	// MaxHops is the greatest length of a path.
	MaxHops   = 8
	frameSize = 169
	innerSize = 93
	buildSize = MaxHops * frameSize

	maxLifetime = 1380 // seconds; a relay accepts no more (section 1.1)

	frameV1 = 0x01 // first byte of the frames that are not spoken here (section 2.9)
)

// frame is what a client decides for one hop. The keys and nonces of two hops are never the same.
type frame struct {
	relay key.Public
	eph   *key.Secret
	nonce seal.Nonce
	rx    ID
	tx    ID         // the next hop's rx; at the terminal its own
	next  key.Public // the next relay; at the terminal itself
}

// newFrames draws ids, ephemeral keys and nonces for a path over 1 to MaxHops relays, the edge first.
func newFrames(relays []key.Public) []frame {
	frames := make([]frame, len(relays))
	for i := range frames {
		f := &frames[i]
		f.relay = relays[i]
		f.eph = key.Generate()
		rand.Read(f.nonce[:])
		for f.rx.IsZero() {
			rand.Read(f.rx[:])
		}
	}
	for i := range frames {
		last := min(i+1, len(frames)-1)
		frames[i].tx, frames[i].next = frames[last].rx, frames[last].relay
	}
	return frames
}

// newJunk gives the random frames behind those of n hops.
func newJunk(n int) []byte {
	junk := make([]byte, (MaxHops-n)*frameSize)
	rand.Read(junk)
	return junk
}

// makeBuild writes the build message (section 2.5) and gives the keys of the hops. It fails when a relay's key is none.
func makeBuild(frames []frame, lifetime uint32, junk []byte) (msg []byte, hops []seal.Hop, err error) {
	n := len(frames)
	msg = make([]byte, buildSize)
	copy(msg[n*frameSize:], junk)
	hops = make([]seal.Hop, n)
	real := msg[:n*frameSize]
	for i := n - 1; i >= 0; i-- {
		f := &frames[i]
		k, err := seal.ClientPathKey(f.eph, f.relay, &f.nonce)
		if err != nil {
			return nil, nil, fmt.Errorf("path: build: hop %d: %w", i, err)
		}
		hops[i] = seal.NewHop(k)
		f.put(real[i*frameSize:(i+1)*frameSize], lifetime, &hops[i])
		onion := f.nonce
		step(real[(i+1)*frameSize:], &hops[i], &onion)
	}
	return msg, hops, nil
}

// put writes one frame in clear, its inner dict encrypted.
func (f *frame) put(dst []byte, lifetime uint32, h *seal.Hop) {
	eph := f.eph.Public()
	b := append(dst[:0], "d1:k32:"...)
	b = append(b, eph[:]...)
	b = append(b, "1:n24:"...)
	b = append(b, f.nonce[:]...)
	b = append(b, "1:x93:"...)
	inner := len(b)
	b = append(b, "d1:l4:"...)
	b = binary.LittleEndian.AppendUint32(b, lifetime)
	b = append(b, "1:r16:"...)
	b = append(b, f.rx[:]...)
	b = append(b, "1:t16:"...)
	b = append(b, f.tx[:]...)
	b = append(b, "1:u32:"...)
	b = append(b, f.next[:]...)
	b = append(b, 'e')
	seal.Stream(b[inner:], &h.Key, &f.nonce)
	dst[frameSize-1] = 'e'
}

// record is what a relay reads in its frame.
type record struct {
	hop      seal.Hop
	nonce    seal.Nonce // of the frame
	rx, tx   ID
	next     key.Public
	lifetime uint32 // seconds, 1 to maxLifetime
	terminal bool
}

// openBuild reads the first frame of a build message (section 2.6, steps 2 to 7). It returns an empty text, or that of the error reply. The message is
// only read: v0 frames have no MAC, so a changed one shows, if at all, as malformed.
func openBuild(sec *key.Secret, self key.Public, msg []byte) (rec record, text string) {
	if len(msg) != buildSize {
		return rec, textBadFrames
	}
	if msg[0] == frameV1 {
		return rec, textBadFrames // protocol/README decision 2
	}
	f := fields(msg[:frameSize])
	eph := f.next("d1:k32:", 32)
	nonce := f.next("1:n24:", 24)
	sealed := f.next("1:x93:", innerSize)
	if !f.end() {
		return rec, textInvalidData
	}
	rec.nonce = seal.Nonce(nonce)
	k, err := seal.RelayPathKey(sec, key.Public(eph), &rec.nonce)
	if err != nil {
		return rec, textBadDH
	}
	rec.hop = seal.NewHop(k)

	var inner [innerSize]byte
	copy(inner[:], sealed)
	seal.Stream(inner[:], &rec.hop.Key, &rec.nonce)
	f = inner[:]
	lifetime := f.next("d1:l4:", 4)
	rx := f.next("1:r16:", idSize)
	tx := f.next("1:t16:", idSize)
	next := f.next("1:u32:", 32)
	if !f.end() {
		return rec, textBadPayload
	}
	rec.rx, rec.tx, rec.next = ID(rx), ID(tx), key.Public(next)
	rec.lifetime = binary.LittleEndian.Uint32(lifetime)
	rec.terminal = rec.next == self

	if rec.rx.IsZero() || rec.tx.IsZero() || rec.terminal != (rec.rx == rec.tx) {
		return rec, textBadIDs
	}
	if rec.lifetime == 0 || rec.lifetime > maxLifetime {
		return rec, textBadLifetime
	}
	return rec, ""
}

// passBuild turns a message that openBuild has read, in place, into the one for the next hop (section 2.6, step 10); last is frameSize fresh random bytes.
func passBuild(msg, last []byte, rec *record) {
	copy(msg, msg[frameSize:])
	copy(msg[buildSize-frameSize:], last)
	onion := rec.nonce
	step(msg[:buildSize-frameSize], &rec.hop, &onion)
}

// fields reads a layout of fixed texts and fields between them. After a mismatch nothing is read any more and end says false; the fields then are of use to nobody.
type fields []byte

func (f *fields) next(text string, n int) []byte {
	b := *f
	if len(b) < len(text)+n || string(b[:len(text)]) != text {
		*f = nil
		return nil
	}
	*f = b[len(text)+n:]
	return b[len(text) : len(text)+n]
}

// end says whether all fields were there and only the closing 'e' is left.
func (f *fields) end() bool { return string(*f) == "e" }
