package oxend

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"lokinetd/router/key"
)

const (
	// PingInterval is how often oxend is told that we live. With every ping goes a subscription to its blocks, which a restart of oxend ends, and a question for
	// the list, in case that a block was missed.
	PingInterval = 30 * time.Second

	firstList   = 10 * time.Second // for the first list
	maxPollHash = 128              // bytes of a block's hash
	maxStates   = 16384            // relays in a list: clients refuse to hear of more
)

// leastVersion is the oldest oxend whose relays count as registered (protocol 2 section 8.2).
var leastVersion = []int{11, 6, 0}

// Follower is a relay that follows oxend's list. The functions are called one at a time, and must not wait.
type Follower struct {
	ID      key.Public
	Version [3]uint8
	// Registered is called with every new list, never with an empty one.
	Registered func(ids []key.Public)
	// NoList is called once if there is no list within 10 s.
	NoList func()
}

// Follow pings oxend and follows its list of relays, until ctx ends. It needs Run beside it, and is called once. While oxend is away nothing changes.
func (c *Client) Follow(ctx context.Context, f Follower) error {
	l := list{c: c, f: f}
	p := pinger{c: c, body: encodePing(f.ID, f.Version)}
	var wg sync.WaitGroup
	defer wg.Wait()
	var kicks []chan struct{}
	for _, work := range []func(context.Context){p.ping, c.subscribe, l.update} {
		kick := make(chan struct{}, 1)
		kicks = append(kicks, kick)
		wg.Go(func() {
			for {
				select {
				case <-kick:
					work(ctx)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	k, changed := c.state()
	do := func(some []chan struct{}) {
		for _, kick := range some {
			if k == nil {
				return // all is done when it is there
			}
			select {
			case kick <- struct{}{}:
			default: // it will come to it
			}
		}
	}
	missing := time.NewTimer(firstList)
	defer missing.Stop()
	t := time.NewTicker(PingInterval)
	defer t.Stop()
	do(kicks)
	for {
		select {
		case <-t.C:
			do(kicks)
		case <-changed: // who comes back may have restarted, and knows nothing of us
			k, changed = c.state()
			t.Reset(PingInterval)
			do(kicks)
		case <-c.block:
			do(kicks[2:])
		case <-missing.C:
			l.missing()
		case <-ctx.Done():
			return nil
		}
	}
}

// pinger says to oxend that we live.
type pinger struct {
	c      *Client
	body   []byte
	failed bool // the log says so
}

func encodePing(id key.Public, version [3]uint8) []byte {
	return mustJSON(struct {
		Key     hexKey `json:"pubkey_ed25519"`
		Version [3]int `json:"version"`
	}{hexKey(id), [3]int{int(version[0]), int(version[1]), int(version[2])}})
}

// ping pings. A relay whose pings oxend does not take loses its registration in the end: someone should know.
func (p *pinger) ping(ctx context.Context) {
	raw, err := p.c.requestOK(ctx, "admin.session_router_ping", p.body)
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		err = pingStatus(raw)
	}
	if failed := err != nil; failed != p.failed {
		p.failed = failed
		if failed {
			p.c.log.Warn("oxend does not take our pings", "err", err)
		} else {
			p.c.log.Info("oxend takes our pings")
		}
	}
}

// pingStatus reads the reply to a ping: a status other than OK is a complaint. A reply without one is as good as OK.
func pingStatus(raw []byte) error {
	var answer struct {
		Status string `json:"status"`
	}
	if json.Unmarshal(raw, &answer) == nil && answer.Status != "" && answer.Status != "OK" {
		return fmt.Errorf("oxend: admin.session_router_ping: %.200q", answer.Status)
	}
	return nil
}

func (c *Client) subscribe(ctx context.Context) {
	if _, err := c.request(ctx, "sub.block"); err != nil && ctx.Err() == nil {
		c.log.Debug("no subscription to blocks", "err", err)
	}
}

// list is oxend's list of relays as it was last taken.
type list struct {
	c  *Client
	f  Follower
	at string // the block that it is of; "": unknown

	mu  sync.Mutex
	has bool // there has been one
}

// update asks for the list. What is wrong with the reply is logged, and the list stays.
func (l *list) update(ctx context.Context) {
	raw, err := l.c.requestOK(ctx, "rpc.get_service_nodes", encodeListRequest(l.at))
	if ctx.Err() != nil {
		return
	}
	var answer listAnswer
	if err == nil {
		answer, err = parseList(raw)
	}
	switch {
	case err != nil:
		l.c.log.Debug("no list of relays", "err", err)
		return
	case answer.unchanged:
		return
	}
	l.at = answer.block
	if len(answer.ids) == 0 {
		l.c.log.Warn("oxend names no relay: ignored")
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.has = true
	l.f.Registered(answer.ids)
}

// missing tells the follower if there is no list yet.
func (l *list) missing() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.has {
		l.f.NoList()
	}
}

func encodeListRequest(at string) []byte {
	return mustJSON(struct {
		Fields []string `json:"fields"`
		At     string   `json:"poll_block_hash,omitempty"`
	}{[]string{"pubkey_ed25519", "block_hash", "service_node_version"}, at})
}

// listAnswer is a reply to rpc.get_service_nodes.
type listAnswer struct {
	unchanged bool // since the block that was named
	block     string
	ids       []key.Public // the registered relays, ascending
}

// parseList reads a reply to rpc.get_service_nodes. Entries that are not as they should be are left out, as are relays with an oxend that is too old.
func parseList(raw []byte) (a listAnswer, err error) {
	var answer struct {
		Status    string            `json:"status"`
		Unchanged any               `json:"unchanged"`
		Block     any               `json:"block_hash"`
		States    []json.RawMessage `json:"service_node_states"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return a, fmt.Errorf("oxend: rpc.get_service_nodes: %w", err)
	}
	if answer.Status != "OK" {
		return a, fmt.Errorf("oxend: rpc.get_service_nodes: status %.100q", answer.Status)
	}
	if answer.Unchanged == true {
		return listAnswer{unchanged: true}, nil
	}
	if answer.States == nil {
		return a, errors.New("oxend: rpc.get_service_nodes: no list in the reply")
	}
	if len(answer.States) > maxStates {
		return a, fmt.Errorf("oxend: rpc.get_service_nodes: %d relays, at most %d are taken", len(answer.States), maxStates)
	}
	if s, ok := answer.Block.(string); ok && len(s) <= maxPollHash {
		a.block = s
	}
	a.ids = make([]key.Public, 0, len(answer.States))
	for _, raw := range answer.States {
		var state struct {
			Key     *hexKey `json:"pubkey_ed25519"`
			Version []int   `json:"service_node_version"`
		}
		if json.Unmarshal(raw, &state) == nil && state.Key != nil && len(state.Version) == len(leastVersion) && slices.Compare(state.Version, leastVersion) >= 0 {
			a.ids = append(a.ids, key.Public(*state.Key))
		}
	}
	slices.SortFunc(a.ids, key.Public.Compare)
	a.ids = slices.Compact(a.ids)
	return a, nil
}

// hexKey is a key as oxend writes it: 64 hexadecimal digits.
type hexKey key.Public

func (k hexKey) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, k[:]), nil }

func (k *hexKey) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(k)) {
		return errors.New("oxend: want a key of 64 hexadecimal digits")
	}
	_, err := hex.Decode(k[:], text)
	return err
}
