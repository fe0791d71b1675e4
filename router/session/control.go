package session

import (
	"fmt"

	"lokinetd/router/bt"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

// Control messages (protocol 4 section 5): a dict of method and parameter, sealed under the session's key. Nothing answers them but a ping.

// Methods that we know; others are ignored, and so are keys that we do not know.
const (
	methodClose   = "session_close"  // either side: this session has ended
	methodContact = "publish_cc"     // responder to initiator: its new client contact, as published
	methodSwitch  = "path_switch"    // initiator to responder: answer over the path on which this came
	methodAccept  = "session_accept" // responder to initiator: the answer to a 1.0 init
	methodPing    = "session_ping"   // initiator to responder; ours, see probe.go
	methodPong    = "session_pong"   // responder to initiator: the answer
)

// sealControl appends a control message, sealed, to dst.
func sealControl(dst []byte, k *seal.Key, n *seal.Nonce, method string, param []byte) []byte {
	start := len(dst)
	dst = bt.NewDict(dst).String("e", method).Bytes("p", param).End()
	dst = append(dst, make([]byte, seal.TagSize)...)
	seal.Seal(dst[start:], k, n)
	return dst
}

// parseControl reads an opened control message. param is borrowed from plain.
func parseControl(plain []byte) (method string, param []byte, err error) {
	d := bt.ReadDict(plain)
	e := d.Bytes("e")
	param = d.Bytes("p")
	if err := d.Finish(); err != nil {
		return "", nil, fmt.Errorf("session: control: %w", err)
	}
	return string(e), param, nil
}

// switchParam gives the parameter of a path switch.
func switchParam(p path.ID) []byte {
	return bt.NewDict(make([]byte, 0, 24)).Bytes("p", p[:]).End()
}

func parseSwitch(param []byte) (p path.ID, err error) {
	d := bt.ReadDict(param)
	id := d.Fixed("p", len(p))
	if err := d.Finish(); err != nil {
		return p, fmt.Errorf("session: path switch: %w", err)
	}
	return path.ID(id), nil
}
