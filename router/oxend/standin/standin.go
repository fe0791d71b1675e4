// Package standin is an oxend for tests: a small ROUTER of ZeroMQ in plain Go that answers what a relay asks. It knows nothing of the code that it is a
// witness against. Beside it stands a program on libzmq itself (router/oxend/zmq), for the same questions.
package standin

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"

	"lokinetd/router/bt"
	"lokinetd/router/key"
)

// Oxend is the stand-in. The zero value is up, knows no relay and has no key. Its fields are set before it is dialled.
type Oxend struct {
	Secret *key.Secret
	// Answer, if not nil, is asked first. With nil the stand-in answers by itself; with an empty reply it is silent.
	Answer func(command string, data [][]byte) [][]byte

	mu     sync.Mutex
	down   bool
	relays []key.Public
	names  map[string]name
	height int
	conns  map[*link]bool
	asked  []Request
}

type name struct {
	sealed []byte
	nonce  [24]byte
}

// Request is what a relay asked.
type Request struct {
	Command string
	Body    string // the data's first part; "": none
}

// link is one connection of a relay.
type link struct {
	nc         net.Conn
	out        chan []byte
	subscribed bool
}

// SetRelays makes a block with another list of relays, and tells those who want to hear of blocks.
func (o *Oxend) SetRelays(ids ...key.Public) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.relays = slices.Clone(ids)
	o.height++
	for l := range o.conns {
		if l.subscribed {
			l.send("notify.block", fmt.Sprint(o.height), o.hash())
		}
	}
}

func (o *Oxend) hash() string { return fmt.Sprintf("%064x", o.height) }

// SetName makes the registry hold a value for a name's hash.
func (o *Oxend) SetName(hash [32]byte, sealed []byte, nonce [24]byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.names == nil {
		o.names = map[string]name{}
	}
	o.names[string(hash[:])] = name{sealed, nonce}
}

// Asked gives what was asked since the last call, apart from HI.
func (o *Oxend) Asked() []Request {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.asked
	o.asked = nil
	return all
}

// Stop ends all connections and lets nobody in until Start.
func (o *Oxend) Stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.down = true
	for l := range o.conns {
		l.nc.Close()
	}
}

func (o *Oxend) Start() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.down = false
}

// Dial gives the end of a relay's connection, in memory.
func (o *Oxend) Dial(context.Context) (net.Conn, error) {
	o.mu.Lock()
	down := o.down
	o.mu.Unlock()
	if down {
		return nil, errors.New("the stand-in is down")
	}
	a, b := net.Pipe()
	go o.Serve(b)
	return a, nil
}

// Listen serves a socket until it is closed.
func (o *Oxend) Listen(l net.Listener) {
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		go o.Serve(nc)
	}
}

// Serve is one connection's other end, until it is closed.
func (o *Oxend) Serve(nc net.Conn) {
	l := &link{nc: nc, out: make(chan []byte, 64)}
	o.mu.Lock()
	if o.down {
		o.mu.Unlock()
		nc.Close()
		return
	}
	if o.conns == nil {
		o.conns = map[*link]bool{}
	}
	o.conns[l] = true
	o.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := range l.out {
			if _, err := nc.Write(b); err != nil {
				nc.Close()
			}
		}
	}()
	o.read(l)
	o.mu.Lock()
	delete(o.conns, l)
	o.mu.Unlock()
	nc.Close()
	close(l.out)
	<-done
}

func (o *Oxend) read(l *link) {
	r := bufio.NewReader(l.nc)
	var greeting [64]byte
	if _, err := io.ReadFull(r, greeting[:]); err != nil || greeting[0] != 0xff || string(greeting[12:17]) != "NULL\x00" {
		return
	}
	l.out <- []byte("\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x01NULL" + strings.Repeat("\x00", 48))
	ready := false
	var parts [][]byte
	for {
		flags, err := r.ReadByte()
		if err != nil {
			return
		}
		head := make([]byte, 8)
		if flags&2 == 0 {
			_, err = io.ReadFull(r, head[7:])
		} else {
			_, err = io.ReadFull(r, head)
		}
		size := binary.BigEndian.Uint64(head)
		if err != nil || size > 1<<20 {
			return
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		switch {
		case flags&4 != 0 && !ready:
			if !strings.HasPrefix(string(body), "\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER") {
				return
			}
			ready = true
			l.out <- []byte("\x04\x29\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER\x08Identity\x00\x00\x00\x00")
			l.out <- []byte("\x04\x07\x04PING\x00\x00") // it is to be answered
		case flags&4 != 0:
			o.note("command", string(body))
		case !ready:
			return
		default:
			if parts = append(parts, body); flags&1 == 0 {
				o.message(l, parts)
				parts = nil
			}
		}
	}
}

func (o *Oxend) note(command, body string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, Request{command, body})
}

func (o *Oxend) message(l *link, parts [][]byte) {
	command := string(parts[0])
	if command == "HI" {
		o.mu.Lock()
		defer o.mu.Unlock()
		l.send("HELLO")
		return
	}
	if len(parts) < 2 {
		return
	}
	tag, data := parts[1], parts[2:]
	body := ""
	if len(data) > 0 {
		body = string(data[0])
	}
	o.note(command, body)
	var reply [][]byte
	if o.Answer != nil {
		reply = o.Answer(command, data)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if reply == nil {
		reply = o.answer(l, command, body)
	}
	if len(reply) == 0 {
		return
	}
	texts := []string{"REPLY", string(tag)}
	for _, p := range reply {
		texts = append(texts, string(p))
	}
	if reply[0] == nil { // no part, but a refusal
		texts = []string{string(reply[1]), "REPLY", string(tag)}
	}
	l.send(texts...)
}

// Refuse is what Answer gives to refuse.
func Refuse(code string) [][]byte { return [][]byte{nil, []byte(code)} }

// OK is what Answer gives for a reply with data.
func OK(data string) [][]byte { return [][]byte{[]byte("200"), []byte(data)} }

func (o *Oxend) answer(l *link, command, body string) [][]byte {
	switch command {
	case "admin.get_service_privkeys":
		seed, public := o.Secret.Seed(), o.Secret.Public()
		return OK(`{"service_node_ed25519_privkey": "` + hex.EncodeToString(append(seed[:], public[:]...)) + `", "status": "OK"}`)
	case "rpc.get_service_nodes":
		var q struct {
			At string `json:"poll_block_hash"`
		}
		if err := json.Unmarshal([]byte(body), &q); err != nil {
			return [][]byte{[]byte("400"), []byte("bad request")}
		}
		if q.At == o.hash() {
			return OK(`{"status": "OK", "unchanged": true}`)
		}
		var states []string
		for _, id := range o.relays {
			states = append(states, fmt.Sprintf(`{"pubkey_ed25519": "%x", "service_node_version": [11, 6, 0]}`, id[:]))
		}
		return OK(fmt.Sprintf(`{"status": "OK", "block_hash": %q, "service_node_states": [%s]}`, o.hash(), strings.Join(states, ", ")))
	case "admin.session_router_ping", "admin.report_peer_status":
		return OK(`{"status": "OK"}`)
	case "sub.block":
		l.subscribed = true
		return [][]byte{[]byte("OK")}
	case "rpc.ons_resolve":
		d := bt.ReadDict([]byte(body))
		hash := d.Bytes("name_hash")
		if kind := d.Int("type"); d.Finish() != nil || kind != 2 {
			return [][]byte{[]byte("400"), []byte("bad request")}
		}
		n, ok := o.names[string(hash)]
		if !ok {
			return OK("de")
		}
		return OK(string(bt.NewDict(nil).Bytes("encrypted_value", n.sealed).Bytes("nonce", n.nonce[:]).End()))
	}
	return Refuse("UNKNOWNCOMMAND")
}

// send sends a message; o.mu is held.
func (l *link) send(parts ...string) {
	var b []byte
	for i, p := range parts {
		flags := byte(1)
		if i == len(parts)-1 {
			flags = 0
		}
		b = append(b, flags|2)
		b = binary.BigEndian.AppendUint64(b, uint64(len(p)))
		b = append(b, p...)
	}
	select {
	case l.out <- b:
	default:
		l.nc.Close()
	}
}
