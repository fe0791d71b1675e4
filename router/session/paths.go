package session

import (
	"context"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/packet"
	"lokinetd/router/path"
	"lokinetd/router/seal"
)

// What a Table sees of router/path. The interfaces exist for the tests, which play paths in memory; each is what one type of path offers, and no more than is used.

// carrier takes a session's messages on their way to the remote: a path of ours, or at a relay the terminal hop of the client's path. Comparable.
type carrier interface {
	id() path.ID // the hop id at the terminal relay
	live(now time.Time) bool
	send(b *packet.Buffer) // owns b; never blocks
	// control sends a message on the session_control channel. That it cannot be sent is not told: nobody knows either whether one arrives.
	control(typ byte, msg []byte, n seal.Nonce)
}

// onion is a carrier that is a path of ours.
type onion interface {
	carrier
	pivot() key.Public  // the terminal relay
	aligned() path.ID   // the remote's hop id at the pivot, of a path to a client
	expiry() time.Time  // when the relays forget it
	hops() []key.Public // the edge first
	rtt() time.Duration // to the terminal relay and back; 0: not known yet
	suspect()           // have it examined: nothing seems to come over it
	suspected() bool    // it is examined
	request(ctx context.Context, method string, body []byte) ([]byte, error)
}

// pool is a set of paths for one purpose. tick, setIntros and widen may tell events, so they are called without Table.ctl.
type pool interface {
	paths(now time.Time) []onion // those that are active
	current(now time.Time) onion // the one to send over, or nil
	tick(now time.Time)
	setIntros(intros []netdb.Intro)
	widen(more int) // how many paths more than usual there should be
	close()
}

// builder makes pools.
type builder interface {
	inbound(owner poolOwner) pool
	beside(entrance pool, owner poolOwner) pool // a few paths that end at other relays than those of entrance, as far as there are others
	toClient(intros []netdb.Intro, owner poolOwner) pool
	toRelay(relay key.Public, owner poolOwner) pool
}

// poolOwner is told of a pool's paths, without locks held. It owns b and msg.
type poolOwner interface {
	changed() // a path came or went
	datagram(via carrier, b *packet.Buffer)
	controlled(via carrier, typ byte, msg []byte, n seal.Nonce)
}

// clientPaths is the builder over a path.Client.
type clientPaths struct{ c *Config }

func (f clientPaths) pool(p path.PoolConfig, owner poolOwner) pathPool {
	p.Label, p.Owner = f.c.Name, pathOwner{owner}
	return pathPool{f.c.Paths.NewPool(p)}
}

func (f clientPaths) inbound(owner poolOwner) pool {
	return f.pool(path.PoolConfig{Kind: path.Inbound, Hops: f.c.InboundHops, Want: f.c.Inbound}, owner)
}

func (f clientPaths) beside(entrance pool, owner poolOwner) pool {
	return f.pool(path.PoolConfig{Kind: path.Inbound, Hops: f.c.InboundHops, Want: netdb.Locations, Beside: entrance.(pathPool).Pool}, owner)
}

func (f clientPaths) toClient(intros []netdb.Intro, owner poolOwner) pool {
	p := f.pool(path.PoolConfig{Kind: path.Aligned, Hops: f.c.ClientHops, Want: f.c.Outbound}, owner)
	p.setIntros(intros) // there are no paths yet to tell of
	return p
}

func (f clientPaths) toRelay(relay key.Public, owner poolOwner) pool {
	return f.pool(path.PoolConfig{Kind: path.ToRelay, Hops: f.c.RelayHops, Want: f.c.Outbound, Target: relay}, owner)
}

// Inbound returns the active inbound paths of a client, over which its owner may ask relays for other things too.
func (t *Table) Inbound(now time.Time) []*path.Path {
	if p, ok := t.entrance.(pathPool); ok {
		return p.Paths(now)
	}
	return nil
}

type pathPool struct{ *path.Pool }

func (p pathPool) tick(now time.Time)             { p.Tick(now) }
func (p pathPool) setIntros(intros []netdb.Intro) { p.SetIntros(intros) }
func (p pathPool) widen(more int)                 { p.Widen(more) }
func (p pathPool) close()                         { p.Close() }

func (p pathPool) paths(now time.Time) []onion {
	active := p.Paths(now)
	paths := make([]onion, len(active))
	for i, a := range active {
		paths[i] = ours{a}
	}
	return paths
}

func (p pathPool) current(now time.Time) onion {
	if c := p.Current(now); c != nil {
		return ours{c}
	}
	return nil
}

// pathOwner passes on what a pool tells. Making an interface of a path allocates nothing.
type pathOwner struct{ poolOwner }

func (o pathOwner) PathUp(*path.Path)                           { o.changed() }
func (o pathOwner) PathDown(*path.Path, path.Reason)            { o.changed() }
func (o pathOwner) PathDatagram(p *path.Path, b *packet.Buffer) { o.datagram(ours{p}, b) }

func (o pathOwner) PathControl(p *path.Path, typ byte, msg []byte, n [24]byte) {
	o.controlled(ours{p}, typ, msg, n)
}

// ours is a path of ours.
type ours struct{ p *path.Path }

func (o ours) id() path.ID                                { return o.p.Terminal() }
func (o ours) live(now time.Time) bool                    { return o.p.Active(now) }
func (o ours) send(b *packet.Buffer)                      { o.p.Send(b) }
func (o ours) control(typ byte, msg []byte, n seal.Nonce) { o.p.Control(typ, msg, n) }
func (o ours) pivot() key.Public                          { return o.p.Pivot() }
func (o ours) aligned() path.ID                           { return o.p.Aligned() }
func (o ours) expiry() time.Time                          { return o.p.Expiry() }
func (o ours) hops() []key.Public                         { return o.p.Hops() }
func (o ours) rtt() time.Duration                         { return o.p.RTT() }
func (o ours) suspect()                                   { o.p.Suspect() }
func (o ours) suspected() bool                            { return o.p.Suspected() }
func (o ours) request(ctx context.Context, method string, body []byte) ([]byte, error) {
	return o.p.Request(ctx, method, body)
}

// terminal is a carrier at a relay: the end of a client's path.
type terminal struct{ t *path.Terminal }

func (t terminal) id() path.ID                                { return t.t.ID() }
func (t terminal) live(time.Time) bool                        { return t.t.Live() }
func (t terminal) send(b *packet.Buffer)                      { t.t.Send(b) }
func (t terminal) control(typ byte, msg []byte, n seal.Nonce) { t.t.Control(typ, msg, n) }
