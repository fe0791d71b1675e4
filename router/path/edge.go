package path

import (
	"context"
	"errors"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// requestTimeout bounds every request of this package on one link (protocol 3 section 1.1).
const requestTimeout = 10 * time.Second

// Link is one established connection to a neighbour; link.Conn is one. Values are comparable, and two of them are equal when they are the
// same connection. Safe for concurrent use. No method keeps the body that it is given.
type Link interface {
	// Send queues one datagram and takes ownership of it. It never blocks.
	Send(b *packet.Buffer)
	// Request sends a request and waits for the reply, which is the caller's. An error reply of the other side is an error that is a [RemoteError]; all
	// others mean that nothing came.
	Request(ctx context.Context, name string, body []byte) ([]byte, error)
	// Command sends a request that has no reply. It never blocks; no error means queued, not sent.
	Command(name string, body []byte) error
}

// Mesh is a relay's way to other relays, with the rules of Link for each method; link.Peers is one. Datagram drops when there is no connection; the
// others open one, and fail when no contact of the relay is known (protocol 3 section 5.6).
type Mesh interface {
	Datagram(to key.Public, b *packet.Buffer)
	Request(ctx context.Context, to key.Public, name string, body []byte) ([]byte, error)
	Command(to key.Public, name string, body []byte) error
}

// RemoteError is the error of a request that the other side answered with an error reply.
type RemoteError interface {
	error
	// ReplyBody is the body of the error reply.
	ReplyBody() []byte
}

// remoteBody tells an error reply from silence.
func remoteBody(err error) ([]byte, bool) {
	var r RemoteError
	if errors.As(err, &r) {
		return r.ReplyBody(), true
	}
	return nil, false
}
