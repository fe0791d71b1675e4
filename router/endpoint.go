package router

import (
	"errors"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/session"
)

// EndpointConfig describes one identity of a client.
type EndpointConfig struct {
	Name    string
	Secret  *key.Secret
	Service bool                                      // publishes its contact and lets others call
	Only    func(remote key.Public, proven bool) bool // see session.Config; nil: all
	Limits  session.Limits
	Inbound int // inbound paths wanted; 0: 4
	Flags   uint8
	SRV     []netdb.SRV

	InboundHops, Outbound, ClientHops, RelayHops int // 0: the defaults of protocol 3 section 6.1

	// Deliver gets each IP packet that arrives, addresses zero, and owns b. It does not block.
	Deliver func(from key.Address, b *packet.Buffer)
	// Undeliverable gets packets that Sessions.Send took but that cannot be sent, and owns b; nil: they are dropped.
	Undeliverable func(to key.Address, b *packet.Buffer, why error)
	// Established is told of each session that is established, whoever called; nil: nobody is.
	Established func(remote key.Address)
	// Published is told how far the contact of a service is known; nil: nobody is.
	Published func(session.Publication)
}

// Endpoint is one identity of a client with its inbound paths and sessions. A node may have any number.
type Endpoint struct {
	Config   EndpointConfig
	Sessions *session.Table
}

// Address is what others reach the endpoint by.
func (e *Endpoint) Address() key.Address { return key.Address{Key: e.Config.Secret.Public()} }

// AddEndpoint gives a client another identity, at any time; it lives until RemoveEndpoint or the end of Run.
func (n *Node) AddEndpoint(c EndpointConfig) (*Endpoint, error) {
	if n.client == nil {
		return nil, errors.New("router: a relay has no endpoints")
	}
	accept := func(key.Public) bool { return c.Service }
	e := &Endpoint{Config: c}
	sc := session.Config{
		Name: c.Name, Self: c.Secret, Accept: accept, Deliver: c.Deliver, Undeliverable: c.Undeliverable,
		Paths: n.client.paths, Inbound: c.Inbound, InboundHops: c.InboundHops, Outbound: c.Outbound,
		ClientHops: c.ClientHops, RelayHops: c.RelayHops, RelayContact: n.store.Get,
		Publish: c.Service, Flags: c.Flags, SRV: c.SRV, Published: c.Published, Established: c.Established, Inbounds: n.client.inboundsChanged, Only: c.Only, Limits: c.Limits, Log: n.log.With("mod", "session"),
	}
	n.times.watch(&sc)
	e.Sessions = session.NewTable(sc)
	n.client.mu.Lock()
	closed := n.client.closed
	if !closed {
		n.client.endpoints = append(n.client.endpoints, e)
	}
	n.client.mu.Unlock()
	if closed {
		e.Sessions.Close()
		return nil, errors.New("router: the node has ended")
	}
	n.client.paths.Tick(time.Now()) // edges may be there already: then its paths do not wait for the node's next round
	return e, nil
}

// RemoveEndpoint says good-bye on the endpoint's sessions and forgets it.
func (n *Node) RemoveEndpoint(e *Endpoint) {
	c := n.client
	c.mu.Lock()
	for i, x := range c.endpoints {
		if x == e {
			c.endpoints = append(c.endpoints[:i:i], c.endpoints[i+1:]...)
			break
		}
	}
	c.mu.Unlock()
	e.Sessions.Close()
}
