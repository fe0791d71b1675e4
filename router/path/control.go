package path

import (
	"crypto/rand"
	"errors"

	"lokinetd/router/bt"
	"lokinetd/router/seal"
)

// Requests to the terminal relay of a path (protocol 3 section 4). Unlike session messages they are sealed for the terminal by the path
// itself, and their replies use the other order of layers (onion.go).

// controlOverhead is what path_control adds to a request and to a reply.
const controlOverhead = tagSize + trailerSize

// sealRequest wraps a request for a path's terminal: nonce is fresh, edge is the path's id on its first link.
func sealRequest(method string, body []byte, hops []seal.Hop, nonce seal.Nonce, edge *ID) []byte {
	plain := bt.NewDict(make([]byte, 0, len(method)+len(body)+controlOverhead+32)).String("e", method).Bytes("p", body).End()
	n := len(plain) + tagSize
	msg := append(plain, make([]byte, controlOverhead)...)
	last := len(hops) - 1
	seal.Seal(msg[:n], &hops[last].Key, &nonce)
	seal.Xor(&nonce, &hops[last].Xor)
	wrap(msg[:n], hops[:last], &nonce)
	putTrailer(msg[n:], &nonce, edge, typeRequest)
	return msg
}

// openRequest is the terminal's, in place; body is a window of payload. The two failures differ on the wire: what does not open is no request of the
// path's client.
func openRequest(payload []byte, h *seal.Hop, nonce *seal.Nonce) (method string, body []byte, opened, parsed bool) {
	seal.Xor(nonce, &h.Xor)
	plain, ok := seal.Open(payload, &h.Key, nonce)
	if !ok {
		return "", nil, false, false
	}
	d := bt.ReadDict(plain)
	e := d.Bytes("e")
	body = d.Bytes("p")
	if d.Finish() != nil {
		return "", nil, true, false
	}
	return string(e), body, true, true
}

// sealReply is the terminal's; id is the hop's.
func sealReply(body []byte, h *seal.Hop, r seal.Nonce, id *ID) []byte {
	msg := make([]byte, len(body)+controlOverhead)
	copy(msg, body)
	n := len(body) + tagSize
	seal.Seal(msg[:n], &h.Key, &r)
	seal.Xor(&r, &h.Xor)
	putTrailer(msg[n:], &r, id, typeRequest)
	return msg
}

// passReply is a middle relay's, in place: the reply came from the neighbour that knows the path as from, and goes on as to. False: it is not a reply
// of that path (section 4.2).
func passReply(msg []byte, h *seal.Hop, from, to *ID) bool {
	if len(msg) <= trailerSize {
		return false
	}
	payload, nonce, id, typ := split(msg)
	if *typ != typeRequest || *id != *from {
		return false
	}
	replyStep(payload, h, nonce)
	*id = *to
	return true
}

// Why a reply to path_control is of no use.
var (
	ErrUnauthentic = errors.New("path: reply does not open under the terminal's key, or came before")
	ErrEmptyReply  = errors.New("path: empty reply") // no method has one; a publish_cc that timed out behind the terminal comes back so
)

// openReply is the client's, in place. A reply that is too short or fails authentication is an error (section 10, bug 7); hop id and type
// are not looked at (section 4.1). The trailer's nonce becomes the one that the terminal drew.
func openReply(msg []byte, hops []seal.Hop) ([]byte, error) {
	if len(msg) < controlOverhead {
		return nil, ErrUnauthentic
	}
	payload, nonce, _, _ := split(msg)
	last := len(hops) - 1
	for i := range hops[:last] {
		seal.Xor(nonce, &hops[i].Xor)
		seal.Stream(payload, &hops[i].Key, nonce)
	}
	seal.Xor(nonce, &hops[last].Xor)
	body, ok := seal.Open(payload, &hops[last].Key, nonce)
	if !ok {
		return nil, ErrUnauthentic
	}
	if len(body) == 0 {
		return nil, ErrEmptyReply
	}
	return body, nil
}

func newNonce() (n seal.Nonce) {
	rand.Read(n[:])
	return n
}
