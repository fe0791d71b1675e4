// Package link connects this node to its neighbours: QUIC connections whose peers show raw Ed25519 keys, a stream of requests and replies on each,
// and datagrams, split in two where the path is too narrow (protocol 2 and 5).
//
// It hands over what arrives and knows no request by meaning: what a request or a datagram says, who may ask for what, and which
// relays to connect to is decided by its users (path, session, router). It repeats a lost datagram once and nothing else, and never waits for the network on
// behalf of a datagram. Of a datagram's content it looks at the hop id, to be fair between paths; those whose queue stands lose
// some on purpose, since a loss is the only sign that what is inside the tunnel understands.
//
// Bottom to top: [deframer] and message (stream.go), splitter and joiner (splitter.go), datagramQueue (fair.go, around a packet.Fair) and flight (repair.go) are pure. hook.go
// joins them to a quic-go that leaves its datagrams to us (overlay); over the original one all works, slower and without repair. conn (conn.go) is one
// QUIC connection and the goroutines around it; [QUIC] (quic.go) is the socket, which listens and dials; tls.go makes its TLS
// configurations. [Peers] (peers.go) keeps one preferred connection a relay over any [Wire]; it is all that most of the program sees.
package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// RequestTimeout is how long a request waits for its reply, from queueing, when its context has no deadline (protocol 2 section 5.3). It is
// also how long an incoming request that is not answered counts against the limits.
const RequestTimeout = 10 * time.Second

// Application error codes of a closed connection (protocol 2 section 3.3).
const (
	CodeNormal    = 0         // shutdown, replaced, or no longer wanted
	CodeRedundant = 6         // the losing one of two connections between two relays
	CodeStream    = 777000105 // the request stream broke, was malformed, or was not read
)

var (
	// ErrTimeout says that no reply came in time; a later one is ignored.
	ErrTimeout = errors.New("link: request timed out")
	// ErrClosed says that the connection, or the wire, is closed.
	ErrClosed = errors.New("link: closed")
	// ErrTooLarge says that a message is larger than MaxMessage. Nothing was sent.
	ErrTooLarge = errors.New("link: message too large")
	// ErrBusy says that a limit on what waits is reached. Nothing was sent.
	ErrBusy = errors.New("link: too much is waiting")
	// ErrIdle says that the connection died because the peer was silent for too long.
	ErrIdle = errors.New("link: peer silent for too long")
	// ErrReset says that the peer no longer knows the connection: it was restarted, or refused us after the handshake.
	ErrReset = errors.New("link: peer does not know the connection")
)

// CloseError says that a connection was closed by an application, with a code of section 3.3.
type CloseError struct {
	Code   uint64
	Remote bool // by the peer
	Reason string
}

func (e *CloseError) Error() string {
	by := "by us"
	if e.Remote {
		by = "by the peer"
	}
	if e.Reason == "" {
		return fmt.Sprintf("link: closed %s, code %d", by, e.Code)
	}
	return fmt.Sprintf("link: closed %s, code %d: %.100q", by, e.Code, e.Reason)
}

// Unwrap makes every CloseError an ErrClosed.
func (e *CloseError) Unwrap() error { return ErrClosed }

// ReplyError is an error reply (type E) of the peer.
type ReplyError struct{ Body []byte }

func (e *ReplyError) Error() string {
	return fmt.Sprintf("link: peer answered with the error %.100q", e.Body)
}

// ReplyBody is what router/path tells an error reply from silence by (path.RemoteError).
func (e *ReplyError) ReplyBody() []byte { return e.Body }

// Conn is one established connection to a neighbour. Conns are comparable and safe for concurrent use.
type Conn interface {
	Kind() Kind
	// Remote is the relay at the other end; zero when the peer is no relay, whatever it showed.
	Remote() key.Public
	// Outbound says that we dialled.
	Outbound() bool
	// Send sends one datagram of up to packet.MaxData bytes. It takes ownership and never blocks: when the queue is full the oldest of the path with most
	// in it is dropped, a path whose queue stands loses some now and then, and what does not fit into two frames is dropped too; Stats counts all. What is lost on the way is sent again once, so a datagram
	// may arrive late or twice.
	Send(b *packet.Buffer)
	// Request waits for the reply, RequestTimeout long when ctx has no deadline. Errors: ErrTimeout, ErrClosed, ErrTooLarge, ErrBusy,
	// *ReplyError, or ctx's when it is cancelled. body is not kept; the reply is the caller's.
	Request(ctx context.Context, name string, body []byte) ([]byte, error)
	// Command is a request that nobody answers. It never blocks; no error means queued, not sent. body is not kept.
	Command(name string, body []byte) error
	// Close closes with an application code. It does not wait; what is queued is lost. Only the first call counts.
	Close(code uint64)
	// Done is closed when the connection is down and no Handler call for it is running or will come.
	Done() <-chan struct{}
	Stats() ConnStats
	RemoteAddr() netip.AddrPort
}

// ConnStats are figures of one connection since it was established. Directions: in is from the peer.
type ConnStats struct {
	DatagramsIn, DatagramsOut     uint64 // application datagrams: a split one counts once
	BytesIn, BytesOut             uint64 // their bytes, without datagram ids
	SplitIn, SplitOut             uint64 // those of them that came or went in two parts
	MessagesIn, MessagesOut       uint64 // requests, commands and replies
	StreamBytesIn, StreamBytesOut uint64 // bytes of the request stream

	Twice      uint64 // incoming frames that came again: the peer took for lost what was not
	Repaired   uint64 // outgoing frames that were taken for lost and sent again
	Unrepaired uint64 // outgoing frames that were lost for good: too old, too many in flight, or lost again

	DropFull     uint64 // outgoing: oldest in a full queue, of the flow with most in it
	DropStanding uint64 // outgoing: from a flow whose queue stands, so that its senders send less
	DropTooLarge uint64 // outgoing: more than two pieces at the path's size
	DropClosed   uint64 // outgoing: the connection went down
	DropInvalid  uint64 // incoming: no id, flags 01, or larger than packet.MaxData
	DropHalf     uint64 // incoming: half of a datagram whose other half did not come in time
	DropRequests uint64 // incoming requests over the limits, answered with an error

	WirePacketsIn, WirePacketsOut, WirePacketsLost uint64 // QUIC packets, all kinds
	WirePacketsLate                                uint64 // of those lost: came after all, so that what was repaired of them came twice
	WireBytesIn, WireBytesOut                      uint64

	// Not counted up, but of now:

	Waiting uint64        // datagrams in the queue
	M       uint64        // largest UDP payload known to pass, bytes: 1200 to 1452
	RTT     time.Duration // smoothed; 0 when unknown
}

// Handler gets what arrives. No call may block: each holds up its connection. For one connection Opened comes first, then any number
// of Request and Datagram (concurrently with each other), then Closed, each of Opened and Closed exactly once.
type Handler interface {
	// Opened announces an established connection. A Wire announces inbound ones and may announce those that it dialled, then before Dial returns (see Conn.Outbound);
	// Peers announces both to its own handler.
	Opened(c Conn)
	// Request brings a request. It may be answered at once or later, or never.
	Request(c Conn, r *Request)
	// Datagram brings one application datagram and passes ownership of b.
	Datagram(c Conn, b *packet.Buffer)
	// Closed says that the connection is down, and why.
	Closed(c Conn, err error)
}

// Wire makes connections: QUIC, or a simulation of it.
type Wire interface {
	// Dial connects to the relay remote at address to. It returns once the relay has accepted us; ctx and 10 s bound it. It may be called before Run,
	// and waits for it then. Calls to the Handler for the new connection may come before Dial returns, none when it fails.
	Dial(ctx context.Context, to netip.AddrPort, remote key.Public, kind Kind) (Conn, error)
	// Run carries all connections until ctx ends or the socket fails; then it closes them (CodeNormal) and ends. It is called once.
	Run(ctx context.Context, h Handler) error
	LocalAddr() netip.AddrPort
}

// Request is one incoming request. At most one of Reply, Fail and Unknown counts, and only the first; they may be called from any
// goroutine, and after the connection is gone. Name and Body belong to the receiver.
type Request struct {
	Name string
	Body []byte

	answer func(body []byte, fail bool)
	done   atomic.Bool
}

// NewRequest makes a request for the implementation of a Wire: answer is called at most once.
func NewRequest(name string, body []byte, answer func(body []byte, fail bool)) *Request {
	return &Request{Name: name, Body: body, answer: answer}
}

// Reply answers with a reply (type R). body is not kept.
func (r *Request) Reply(body []byte) { r.finish(body, false) }

// Fail answers with an error reply (type E). body is not kept.
func (r *Request) Fail(body []byte) { r.finish(body, true) }

// Unknown answers that there is no such endpoint (protocol 2 section 5.3). No more than 200 bytes of the name are sent back.
func (r *Request) Unknown() { r.Fail(unknownEndpoint(r.Name)) }

func (r *Request) finish(body []byte, fail bool) {
	if r.expire() {
		r.answer(body, fail)
	}
}

// expire makes later answers void; false when there was one.
func (r *Request) expire() bool { return r.done.CompareAndSwap(false, true) }

func unknownEndpoint(name string) []byte { return fmt.Appendf(nil, "Invalid endpoint '%.200s'", name) }

// errProcessing is the body of an error reply to a request that could not be worked on (protocol 2 section 5.3).
var errProcessing = []byte("An error occurred while processing the request")

// neverAnswered says which requests are commands: nobody answers them, so they wait for nothing (protocol 2 section 5.3).
func neverAnswered(name string) bool { return name == "gossip_rc" || name == "session_control" }

// withTimeout gives a request its default deadline.
func withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, RequestTimeout)
}

// timeoutOf names the end of a request's context.
func timeoutOf(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ErrTimeout
	}
	return ctx.Err()
}
