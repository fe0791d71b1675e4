package oxend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/key"
)

const (
	requestTimeout = 15 * time.Second
	keyTries       = 5
	keyPause       = time.Second // between two of them
	maxNames       = 64          // look-ups at a time: the other requests have room beside them
	maxValue       = 1 << 10     // bytes of a name's value
	statusOK       = "200"
)

// Times between tries to connect.
const (
	backoffLeast = 250 * time.Millisecond
	backoffMost  = 5 * time.Second
)

// Scheme begins every address.
const Scheme = "ipc://"

// Client is a connection to oxend that comes back by itself. Requests may be made from any goroutine, also before Run; while there is no connection they wait for one,
// within requestTimeout.
type Client struct {
	dial  func(ctx context.Context) (net.Conn, error)
	log   *slog.Logger
	names chan struct{} // has an element for each look-up under way
	block chan struct{} // has one when there is a new block

	mu      sync.Mutex
	now     *conn         // nil: away
	changed chan struct{} // closed and replaced when now changes
	away    error         // why there is none
}

// New makes a client of the oxend at address, "ipc://" and the absolute path of its socket.
func New(address string, log *slog.Logger) (*Client, error) {
	path, ok := strings.CutPrefix(address, Scheme)
	if !ok || !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("oxend: %q: want %s and the absolute path of oxend's socket", address, Scheme)
	}
	return NewDialed(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}, log), nil
}

// NewDialed makes a client that gets its connections from dial.
func NewDialed(dial func(ctx context.Context) (net.Conn, error), log *slog.Logger) *Client {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Client{
		dial: dial, log: log, names: make(chan struct{}, maxNames), block: make(chan struct{}, 1),
		changed: make(chan struct{}), away: errors.New("oxend: not tried yet"),
	}
}

// Run keeps the connection up until ctx ends. It logs when oxend goes and when it is back.
func (c *Client) Run(ctx context.Context) error {
	wait, known := backoffLeast, true // known: the log says how it is
	for {
		var since time.Time // of HELLO
		err := c.connect(ctx, func() {
			since = time.Now()
			if !known {
				c.log.Info("oxend is there")
			}
		})
		if ctx.Err() != nil {
			return nil
		}
		up := !since.IsZero()
		if up && time.Since(since) > backoffMost {
			wait = backoffLeast
		}
		if up || known {
			c.log.Warn("oxend does not answer; trying again until it does", "err", err)
			known = false
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		wait = min(2*wait, backoffMost)
	}
}

// connect makes one connection and serves it until it ends.
func (c *Client) connect(ctx context.Context, up func()) error {
	dialing, cancel := context.WithTimeout(ctx, handshakeTimeout)
	nc, err := c.dial(dialing)
	cancel()
	if err != nil {
		c.set(nil, err)
		return err
	}
	var k *conn
	k = newConn(nc, func() { c.set(k, nil); up() }, c.newBlock)
	err = k.serve(ctx)
	c.set(nil, err)
	return err
}

func (c *Client) newBlock() {
	select {
	case c.block <- struct{}{}:
	default:
	}
}

// set says what the connection is now, and why there is none.
func (c *Client) set(k *conn, away error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = away
	if k != c.now {
		c.now = k
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

// state gives the connection, nil for none, and a channel that is closed when it changes.
func (c *Client) state() (k *conn, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now, c.changed
}

// Connected says whether oxend is there; if not, err says why.
func (c *Client) Connected() (ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now != nil, c.away
}

// request asks oxend, within requestTimeout. Errors: a RefusedError, and others that say that no reply came.
func (c *Client) request(ctx context.Context, command string, data ...[]byte) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for {
		k, changed := c.state()
		if k != nil {
			return k.request(ctx, command, data...)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			c.mu.Lock()
			away := c.away
			c.mu.Unlock()
			return nil, errors.Join(ctx.Err(), away)
		}
	}
}

// requestOK asks oxend and gives the data of a reply that says "200". The error for another one quotes it.
func (c *Client) requestOK(ctx context.Context, command string, data ...[]byte) ([]byte, error) {
	parts, err := c.request(ctx, command, data...)
	switch {
	case err != nil:
		return nil, err
	case len(parts) == 0:
		return nil, fmt.Errorf("oxend: %s: empty reply", command)
	case string(parts[0]) != statusOK || len(parts) < 2:
		return nil, fmt.Errorf("oxend: %s: %.100q", command, parts)
	}
	return parts[1], nil
}

// Key asks for the relay's key, some times if it must. It needs Run beside it.
func (c *Client) Key(ctx context.Context) (s *key.Secret, err error) {
	for try := range keyTries {
		if try > 0 {
			select {
			case <-time.After(keyPause):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if s, err = c.key(ctx); err == nil || ctx.Err() != nil {
			return s, err
		}
	}
	return nil, err
}

func (c *Client) key(ctx context.Context) (*key.Secret, error) {
	const command = "admin.get_service_privkeys"
	parts, err := c.request(ctx, command)
	if err != nil {
		return nil, err
	}
	if len(parts) < 2 || string(parts[0]) != statusOK { // no word of the reply gets into an error: it could be the key
		return nil, fmt.Errorf("oxend: %s: not the reply of a service node's oxend", command)
	}
	defer clear(parts[1])
	return parseKey(parts[1])
}

// parseKey reads the reply to admin.get_service_privkeys. Its errors say nothing of the content.
func parseKey(raw []byte) (*key.Secret, error) {
	var answer struct {
		Key string `json:"service_node_ed25519_privkey"`
	}
	const hexDigits = 128 // of seed and public key
	if json.Unmarshal(raw, &answer) != nil || len(answer.Key) != hexDigits {
		return nil, errors.New("oxend: admin.get_service_privkeys: no key in the reply")
	}
	s, err := key.ParseSecret([]byte(answer.Key))
	if err != nil {
		return nil, fmt.Errorf("oxend: admin.get_service_privkeys: %w", err)
	}
	return s, nil
}

// ErrNotFound says that oxend knows no such name.
var ErrNotFound = errors.New("oxend: no such name")

// Resolve asks what the network's registry says of a name, by its hash (protocol 1 section 8.3). Errors: ErrNotFound when oxend says so, others when it says nothing.
func (c *Client) Resolve(ctx context.Context, hash [32]byte) (sealed []byte, nonce [24]byte, err error) {
	select {
	case c.names <- struct{}{}:
		defer func() { <-c.names }()
	default:
		return nil, nonce, errBusy
	}
	body := bt.NewDict(nil).Bytes("name_hash", hash[:]).Int("type", 2).End()
	parts, err := c.request(ctx, "rpc.ons_resolve", body)
	if err != nil {
		return nil, nonce, err
	}
	return parseName(parts)
}

// parseName reads the reply to rpc.ons_resolve. What is not a value in a proper reply is no such name (protocol 2 section 8.1).
func parseName(parts [][]byte) (sealed []byte, nonce [24]byte, err error) {
	if len(parts) != 2 || string(parts[0]) != statusOK {
		return nil, nonce, ErrNotFound
	}
	d := bt.ReadDict(parts[1])
	sealed = d.Bytes("encrypted_value")
	copy(nonce[:], d.Fixed("nonce", len(nonce)))
	if err := d.Finish(); err != nil || len(sealed) > maxValue {
		return nil, nonce, ErrNotFound
	}
	return sealed, nonce, nil
}

// Report tells oxend how a test of a relay went.
func (c *Client) Report(ctx context.Context, id key.Public, passed bool) error {
	_, err := c.request(ctx, "admin.report_peer_status", encodeReport(id, passed))
	return err
}

func encodeReport(id key.Public, passed bool) []byte {
	return mustJSON(struct {
		Passed bool   `json:"passed"`
		Key    hexKey `json:"pubkey"`
		Type   string `json:"type"`
	}{passed, hexKey(id), "srouter"})
}

// mustJSON encodes a struct of ours, which has nothing that JSON cannot say.
func mustJSON(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}
