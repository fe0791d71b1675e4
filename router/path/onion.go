package path

import (
	"encoding/hex"
	"log/slog"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/seal"
)

// A message on a path, on every link of it and in both directions (protocol 3 section 3.1):
//
//	payload | nonce 24 | hop id 16 | type 1
//
// The payload keeps its length from hop to hop. Here is how each party changes payload and nonce (section 3.2); K and X are the hop's key and nonce mutator.
//
//	client sends:            for the last hop to the first:  layer(K, nonce); nonce ^= X
//	relay, both directions:  nonce ^= X; layer(K, nonce)
//	client receives:         for the first hop to the last:  layer(K, nonce); nonce ^= X
//
// A path_control reply goes the other way round, and only it:
//
//	terminal answers:        seal(K, R); nonce = R ^ X
//	relay:                   layer(K, nonce); nonce ^= X
//	client receives:         for the first hop to the last:  nonce ^= X; layer(K, nonce), the last one an open
const (
	trailerSize = 24 + 16 + 1
	// TrailerSize is what a path adds to a message, whatever its length in hops: what Send needs behind a buffer's Data.
	TrailerSize = trailerSize

	tagSize   = 16 // of Poly1305
	idSize    = 16
	pivotSize = idSize
	// minMessage is the shortest datagram or session_control (section 3.5); a path_control request must be as long (section 4.2).
	minMessage = 1 + tagSize + trailerSize
	// minTerminal is what must be left of a message at a terminal relay: session tag and pivot id.
	minTerminal = 4 + pivotSize
	// MaxDatagram is the longest datagram payload in bytes that a path carries.
	MaxDatagram = packet.MaxData - trailerSize
)

// Type bytes (section 3.1).
const (
	TypeData      = 1 // datagram
	TypeControl   = 1 // session_control: sealed by the session, or with tag 0 a pre-1.1 init
	TypeHandshake = 2 // session_control: init, accept, path switch
	typeRequest   = 1 // path_control
)

// Names of the requests that belong to paths (protocol 2 section 7).
const (
	nameBuild   = "path_build"
	nameEdge    = "ping" // of the link, which any relay answers (protocol 2 section 7.1)
	nameControl = "path_control"
	nameSession = "session_control"
	methodPing  = "path_ping"
)

// ID names one link of a path: every message of the path on that link carries it (section 2.2). Random; all zeros is invalid.
// Whoever knows an id can inject messages, so it shows in logs only as the keys of remotes do.
type ID [idSize]byte

// IsZero reports whether id is all zeros.
func (id ID) IsZero() bool { return id == ID{} }

// String gives 32 hex digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// LogValue never shows the id.
func (id ID) LogValue() slog.Value { return slog.StringValue("(hop id)") }

// split gives the parts of a message of at least trailerSize bytes, all of them windows of it.
func split(msg []byte) (payload []byte, nonce *seal.Nonce, id *ID, typ *byte) {
	n := len(msg) - trailerSize
	return msg[:n], (*seal.Nonce)(msg[n : n+24]), (*ID)(msg[n+24 : n+40]), &msg[n+40]
}

// putTrailer writes a trailer; t is trailerSize bytes.
func putTrailer(t []byte, nonce *seal.Nonce, id *ID, typ byte) {
	copy(t, nonce[:])
	copy(t[24:], id[:])
	t[40] = typ
}

// step is the relay's: a layer of a message that goes either way, of a path_control request and of the build frames' onion.
func step(payload []byte, h *seal.Hop, nonce *seal.Nonce) {
	seal.Xor(nonce, &h.Xor)
	seal.Stream(payload, &h.Key, nonce)
}

// replyStep is the relay's for path_control replies.
func replyStep(payload []byte, h *seal.Hop, nonce *seal.Nonce) {
	seal.Stream(payload, &h.Key, nonce)
	seal.Xor(nonce, &h.Xor)
}

// wrap puts the layers of all hops on what a client sends. nonce goes from the message's own to what belongs into the trailer.
func wrap(payload []byte, hops []seal.Hop, nonce *seal.Nonce) {
	for i := len(hops) - 1; i >= 0; i-- {
		seal.Stream(payload, &hops[i].Key, nonce)
		seal.Xor(nonce, &hops[i].Xor)
	}
}

// unwrap removes the layers of all hops from what a client receives, path_control replies apart. nonce goes from the trailer's to the message's own.
func unwrap(payload []byte, hops []seal.Hop, nonce *seal.Nonce) {
	for i := range hops {
		seal.Stream(payload, &hops[i].Key, nonce)
		seal.Xor(nonce, &hops[i].Xor)
	}
}

// neighbour is where a relay sends to: another relay, or a client's connection. Comparable; one of the two is set.
type neighbour struct {
	relay key.Public
	link  Link
}
