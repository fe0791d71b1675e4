package path

import (
	"errors"

	"lokinetd/router/packet"
)

// A session message at a relay, in place, whether datagram or session_control, upwards or downwards (protocol 3 section 5.3):
//
//  1. peel: long enough, hop known by the id in the trailer; nonce ^= X, one layer
//  2. middle hop: the id of the other side into the trailer, on to the neighbour there (Mesh, Link)
//  3. terminal hop: tag and pivot id are there; pivot == own id: for this relay (Local)
//  4. otherwise turn: the pivot names another terminal hop W; pivot id off, nonce ^= X_W, W's layer, trailer with W's id, down to W's neighbour
//
// The sender is not compared with the hop's neighbours (section 5.2). No reply, ever; what cannot go on is dropped and counted.

// Datagram forwards, turns or delivers one datagram from a neighbour. It owns b, whose Data is the whole message. It says whether the datagram was of use: known was the path
// and what it asked for.
func (r *Relay) Datagram(b *packet.Buffer) (used bool) {
	h := r.peel(b.Data)
	if h == nil {
		b.Release()
		return false
	}
	_, nonce, id, typ := split(b.Data)
	if !h.terminal() {
		_, to := h.readdress(id)
		r.count.Forwarded.Add(1)
		r.send(to, b)
		return true
	}
	w := r.pivot(h, b.Data)
	switch {
	case w == nil:
		b.Release()
		return false
	case w == h && *typ != TypeData:
		r.count.DroppedType.Add(1)
		b.Release()
		return false
	case w == h:
		b.Nonce = *nonce
		b.Cut(trailerSize + pivotSize)
		r.count.Delivered.Add(1)
		r.local.SessionDatagram((*Terminal)(h), b)
	default:
		b.Data = turn(b.Data, w)
		r.count.Turned.Add(1)
		r.send(w.down, b)
	}
	return true
}

// session is Datagram for a session_control request.
func (r *Relay) session(msg []byte) {
	h := r.peel(msg)
	if h == nil {
		return
	}
	_, nonce, id, typ := split(msg)
	if !h.terminal() {
		_, to := h.readdress(id)
		r.count.Forwarded.Add(1)
		r.command(to, msg)
		return
	}
	w := r.pivot(h, msg)
	switch {
	case w == nil:
	case w == h && *typ != TypeControl && *typ != TypeHandshake:
		r.count.DroppedType.Add(1)
	case w == h:
		r.count.Delivered.Add(1)
		r.local.SessionControl((*Terminal)(h), *typ, msg[:len(msg)-trailerSize-pivotSize], *nonce)
	default:
		r.count.Turned.Add(1)
		r.command(w.down, turn(msg, w))
	}
}

// peel is step 1; nil: dropped and counted.
func (r *Relay) peel(msg []byte) *hop {
	if len(msg) < minMessage {
		r.count.DroppedShort.Add(1)
		return nil
	}
	payload, nonce, id, _ := split(msg)
	h := r.table.live(id)
	if h == nil {
		r.count.DroppedUnknown.Add(1)
		return nil
	}
	step(payload, &h.key, nonce)
	return h
}

// readdress replaces the id that a message came under by that of the other side, and says where this is. Not for terminal hops.
func (h *hop) readdress(id *ID) (came ID, to neighbour) {
	came = *id
	if came == h.rx {
		*id = h.tx
		return came, neighbour{relay: h.up}
	}
	*id = h.rx
	return came, h.down
}

// pivot finds where a message that was peeled at its terminal hop h goes on: h itself for this relay, nil for nowhere. Only terminal hops are pivots
// (section 10, bug 4).
func (r *Relay) pivot(h *hop, msg []byte) *hop {
	n := len(msg) - trailerSize
	if n < minTerminal {
		r.count.DroppedShort.Add(1)
		return nil
	}
	id := (*ID)(msg[n-pivotSize : n])
	if *id == h.rx {
		return h
	}
	w := r.table.live(id)
	if w == nil || !w.terminal() {
		r.count.DroppedPivot.Add(1)
		return nil
	}
	return w
}

// turn is step 4: it moves the trailer over the pivot id and gives the shorter message.
func turn(msg []byte, w *hop) []byte {
	n := len(msg) - trailerSize - pivotSize
	copy(msg[n:], msg[n+pivotSize:])
	msg = msg[:n+trailerSize]
	payload, nonce, id, _ := split(msg)
	step(payload, &w.key, nonce)
	*id = w.rx
	return msg
}

func (r *Relay) send(to neighbour, b *packet.Buffer) {
	if r.throttle != nil {
		r.throttle.push(b)
		return
	}
	r.leave(to, b)
}

// resume sends what the throttle has held back: its trailer says where to.
func (r *Relay) resume(b *packet.Buffer) {
	_, _, id, _ := split(b.Data)
	h := r.table.live(id)
	switch {
	case h == nil:
		r.count.DroppedDead.Add(1)
		b.Release()
	case *id == h.tx && !h.terminal():
		r.leave(neighbour{relay: h.up}, b)
	default:
		r.leave(h.down, b)
	}
}

func (r *Relay) leave(to neighbour, b *packet.Buffer) {
	if to.link != nil {
		to.link.Send(b)
		return
	}
	r.mesh.Datagram(to.relay, b)
}

func (r *Relay) command(to neighbour, msg []byte) {
	var err error
	if to.link != nil {
		err = to.link.Command(nameSession, msg)
	} else {
		err = r.mesh.Command(to.relay, nameSession, msg)
	}
	if err != nil {
		r.count.DroppedUnsent.Add(1)
	}
}

// ErrDead is what a path that is gone says of what it is given.
var ErrDead = errors.New("path: the path is gone")

// Terminal is a path that ends at this relay, as the way back to its client. It is the same pointer for as long as the path lives. Safe for concurrent use.
type Terminal hop

// ID is the hop id that the path's client calls its terminal id.
func (t *Terminal) ID() ID { return t.rx }

// Live says whether messages still reach the client, as far as this relay can know.
func (t *Terminal) Live() bool { return (*hop)(t).state.Load() == hopLive }

// Send sends a datagram of a session with this relay to the client: Data is body and tag, at most MaxDatagram bytes, Nonce the message nonce. There is no pivot
// id downwards (section 3.4). It owns b, drops it when the path is not live, and never blocks.
func (t *Terminal) Send(b *packet.Buffer) {
	r := t.relay
	if !t.Live() {
		r.count.DroppedDead.Add(1)
		b.Release()
		return
	}
	if len(b.Data) > MaxDatagram || b.Tail() < trailerSize {
		r.count.DroppedLong.Add(1)
		b.Release()
		return
	}
	step(b.Data, &t.key, &b.Nonce)
	putTrailer(b.Extend(trailerSize), &b.Nonce, &t.rx, TypeData)
	r.count.Sent.Add(1)
	r.send(t.down, b)
}

// Control is Send for session_control: msg, which is only read, is body and tag.
func (t *Terminal) Control(typ byte, msg []byte, nonce [24]byte) error {
	r := t.relay
	if !t.Live() {
		r.count.DroppedDead.Add(1)
		return ErrDead
	}
	out := make([]byte, len(msg)+trailerSize)
	copy(out, msg)
	step(out[:len(msg)], &t.key, &nonce)
	putTrailer(out[len(msg):], &nonce, &t.rx, typ)
	r.count.Sent.Add(1)
	r.command(t.down, out)
	return nil
}
