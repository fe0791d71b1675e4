package netif

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/tun"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// From the TUN into a tunnel (Pump.read, Pump.drain, Pump.out):
//
//  1. Read a batch into pooled buffers; the TUN splits what the kernel handed over in one piece. A single packet goes on in the same goroutine; many,
//     and all while there are some or the links have no room, wait in the backlog, from which another one takes them (backlog.go).
//  2. Find the endpoint by the source address, which must be its own, and the remote by the destination address in the endpoint's map.
//     No remote: ICMP unreachable back into the TUN (icmp.go).
//  3. Note the flow, so that answers come in (flow.go).
//  4. Set both addresses to zero, checksums kept right (router/packet).
//  5. Tunnel.Send: the session seals it, and so on (design section 3). Refused: ICMP unreachable.
//
// From a tunnel into the TUN, in the goroutine that opened the packet (Endpoint.Deliver):
//
//  1. Read the headers; whatever the addresses are, they do not count: the session says who the remote is.
//  2. Check it against the flow table and what the endpoint lists.
//  3. Write the addresses: the source is the remote's in the endpoint's map (IPv4 mapped on demand), the destination the endpoint's own.
//  4. Put it on a bounded queue; full: dropped.
//
// And in one goroutine (Pump.write):
//
//  5. Take all that is queued, copy it into buffers of 64 KiB, so that the TUN can coalesce, and write it in one call.

const (
	// MaxPacket is the largest IP packet that fits into the tunnel: a link's largest datagram less 78 bytes of session and path.
	MaxPacket = packet.MaxData - 78
	// maxInbound is the largest packet that is written to the TUN.
	maxInbound = 65535
	// writeQueue is how many packets wait for the TUN at most; full, new ones are dropped.
	writeQueue = 1024
	// writeBatch bounds one write, and with it the pump's own memory: 64 KiB each, while they are needed.
	writeBatch = 64
	// readBatch bounds one read. The kernel hands over up to 64 KiB in one piece: 53 packets of 1,280 bytes.
	readBatch = 128
	// writeOffset leaves room for the virtio header (10 bytes) before a packet.
	writeOffset = 16
	// readErrors in a row end the pump: the device is broken.
	readErrors = 100
)

// Tunnel carries the packets of one endpoint. A session table fits.
type Tunnel interface {
	// Send passes one IP packet with zero addresses to remote. It owns b, whatever it returns, and never blocks. False: the packet will not
	// be sent, and its sender is told by ICMP. A tunnel that gives packets back by Endpoint.Refuse returns true for those, or
	// the sender is told twice.
	Send(remote key.Address, b *packet.Buffer) bool
}

// Links is what carries the tunnels' packets. A *link.QUIC fits.
type Links interface {
	// AwaitRoom waits, for most at the longest, while too much waits to be sent; Crowded says whether it would.
	AwaitRoom(ctx context.Context, most time.Duration)
	Crowded() bool
	// Cork says that many packets come at once, Uncork that these were all.
	Cork()
	Uncork()
}

// roomWait is the longest wait for room. It lets 10,000 packets a second pass when one of several links is stuck.
const roomWait = 10 * time.Millisecond

// Pump moves packets between one TUN and the tunnels of its endpoints. Endpoints come and go at run time.
type Pump struct {
	// Links is set before Run, or nil.
	Links Links

	tun     TUN
	log     *slog.Logger
	backlog *backlog
	queue   chan *packet.Buffer
	count   counters
	errors  *rate.Limiter // of ICMP, that we make

	mu        sync.Mutex // guards changes of endpoints
	endpoints atomic.Pointer[map[netip.Addr]*Endpoint]
}

// NewPump makes a pump for a TUN, which stays the caller's: it is neither opened nor closed here.
func NewPump(t TUN, log *slog.Logger) *Pump {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p := &Pump{tun: t, log: log, backlog: newBacklog(), queue: make(chan *packet.Buffer, writeQueue), errors: rate.NewLimiter(unreachableRate, unreachableBurst)}
	p.endpoints.Store(&map[netip.Addr]*Endpoint{})
	return p
}

// Endpoint is one identity's place in the pump: own addresses, map of its remotes, inbound rule, flows, tunnel.
type Endpoint struct {
	pump       *Pump
	addrs      *Map
	self       key.Address
	own4, own6 netip.Addr // invalid: none
	tunnel     Tunnel
	inbound    atomic.Pointer[Inbound]
	flows      *flows
	removed    atomic.Bool
}

// Add makes an endpoint with the addresses of m, whose packets go to t. It fails when another endpoint has one of these addresses.
func (p *Pump) Add(m *Map, in Inbound, t Tunnel) (*Endpoint, error) {
	self, own4, own6 := m.Self()
	e := &Endpoint{pump: p, addrs: m, self: self, own4: own4.Addr(), own6: own6.Addr(), tunnel: t, flows: newFlows()}
	e.inbound.Store(&in)
	p.mu.Lock()
	defer p.mu.Unlock()
	next := maps.Clone(*p.endpoints.Load())
	for _, a := range []netip.Addr{e.own4, e.own6} {
		if !a.IsValid() {
			continue
		}
		if next[a] != nil {
			return nil, fmt.Errorf("netif: two endpoints with the address %v", a)
		}
		next[a] = e
	}
	p.endpoints.Store(&next)
	return e, nil
}

// Remove ends an endpoint: packets from its addresses are foreign from now on, and what is delivered is dropped. A packet that is
// being handled may still pass.
func (p *Pump) Remove(e *Endpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.removed.Store(true)
	next := maps.Clone(*p.endpoints.Load())
	maps.DeleteFunc(next, func(_ netip.Addr, x *Endpoint) bool { return x == e })
	p.endpoints.Store(&next)
}

// Map returns the endpoint's map.
func (e *Endpoint) Map() *Map { return e.addrs }

// SetInbound changes what remotes may send of their own accord. Flows that are under way go on.
func (e *Endpoint) SetInbound(in Inbound) { e.inbound.Store(&in) }

// Run moves packets until ctx ends (nil) or the TUN is gone or broken (the error). Packets delivered while Run does not run wait in the
// queue; Run can be called again, but not twice at a time.
func (p *Pump) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var others sync.WaitGroup
	others.Go(func() {
		<-ctx.Done()
		p.tun.SetReadDeadline(time.Unix(1, 0)) // ends the reader
	})
	var writeErr error
	others.Go(func() {
		writeErr = p.write(ctx)
		cancel()
	})
	if p.Links != nil {
		others.Go(func() { p.drain(ctx) })
	}
	err := p.read(ctx)
	cancel()
	others.Wait()
	p.backlog.drop()
	p.tun.SetReadDeadline(time.Time{})
	if err == nil {
		err = writeErr
	}
	return err
}

// read is the TUN's reader: step 1 of the way out.
func (p *Pump) read(ctx context.Context) error {
	n := min(p.tun.BatchSize(), readBatch)
	buffers, raw, sizes := make([]*packet.Buffer, n), make([][]byte, n), make([]int, n)
	defer func() {
		for _, b := range buffers {
			if b != nil {
				b.Release()
			}
		}
	}()
	var warn sync.Once
	for failed := 0; ; {
		for i, b := range buffers {
			if b == nil {
				buffers[i] = packet.Get()
				raw[i] = buffers[i].Reset(MaxPacket)
			}
		}
		n, err := p.readBatch(raw, sizes)
		now := time.Now()
		for i, b := range buffers[:n] {
			b.Data = b.Data[:sizes[i]]
		}
		if p.Links != nil && n > 0 && (n > 1 || p.backlog.busy.Load() || p.Links.Crowded()) {
			p.count.addN(outFull, p.backlog.put(buffers[:n], now))
		} else {
			for _, b := range buffers[:n] {
				p.out(b, now)
			}
		}
		clear(buffers[:n])
		switch {
		case err == nil:
			failed = 0
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, os.ErrClosed):
			return fmt.Errorf("netif: the tun was closed: %w", err)
		default:
			// One packet that the TUN library cannot read or split; or the device is broken.
			p.count.add(readFailed)
			warn.Do(func() { p.log.Warn("cannot read a packet from the TUN; has its MTU been changed?", "err", err) })
			if failed++; failed == readErrors {
				return fmt.Errorf("netif: read from the tun: %w", err)
			}
		}
	}
}

// readBatch reads, and turns a panic of the TUN library into an error: it slices beyond our buffers when somebody has raised the
// interface's MTU above MaxPacket and the kernel hands over a coalesced packet.
func (p *Pump) readBatch(raw [][]byte, sizes []int) (n int, err error) {
	defer func() {
		if r := recover(); r != nil {
			n, err = 0, fmt.Errorf("netif: packet from the tun cannot be split: %v", r)
		}
	}()
	n, err = p.tun.Read(raw, sizes, 0)
	if errors.Is(err, tun.ErrTooManySegments) {
		p.count.add(readFailed)
		err = nil
	}
	return n, err
}

// out does steps 2 to 5 of the way out. It owns b.
func (p *Pump) out(b *packet.Buffer, now time.Time) {
	ip, err := packet.ParseIP(b.Data)
	if err == packet.ErrChecksum && packet.FillZeroUDP(b.Data) {
		ip, err = packet.ParseIP(b.Data)
	}
	if err != nil {
		p.dropMalformed(b, outMalformed, err)
		return
	}
	b.Data = b.Data[:ip.Len]
	if ip.Dst.IsMulticast() || ip.Dst == broadcast {
		p.drop(b, outMulticast)
		return
	}
	e := (*p.endpoints.Load())[ip.Src]
	if e == nil {
		p.drop(b, outForeign)
		return
	}
	remote, ok := e.addrs.Remote(ip.Dst, now)
	if !ok || remote == e.self {
		if _, own4, _ := e.addrs.Self(); own4.Contains(ip.Dst) && !hostAddr(own4, ip.Dst) {
			p.drop(b, outMulticast) // broadcast in our range
			return
		}
		p.unreachable(&ip, b.Data, now)
		p.drop(b, outUnknown)
		return
	}
	if v := e.flows.out(remote, &ip, e.inbound.Load(), now); v != pass {
		p.drop(b, outICMPKind)
		return
	}
	// The tunnel owns the packet once it has it, so what an ICMP error would quote is kept aside: headers, addresses not yet zero.
	var kept quote
	kept.keep(b.Data)
	src, dst := ip.Src, ip.Dst
	zero := unspecified4
	if ip.Version == 6 {
		zero = unspecified6
	}
	if err := rewrite(&ip, b.Data, zero, zero); err != nil {
		p.dropMalformed(b, outMalformed, err)
		return
	}
	size := len(b.Data)
	if !e.tunnel.Send(remote, b) {
		p.count.add(outRefused)
		ip.Src, ip.Dst = src, dst
		p.unreachable(&ip, kept.bytes(), now)
		return
	}
	p.count.add(outPackets)
	p.count.addN(outBytes, size)
}

var (
	unspecified4 = netip.IPv4Unspecified()
	unspecified6 = netip.IPv6Unspecified()
	broadcast    = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

func rewrite(ip *packet.IP, b []byte, src, dst netip.Addr) error {
	if ip.ICMPError() {
		return ip.RewriteError(b, src, dst)
	}
	return ip.Rewrite(b, src, dst)
}

// own returns the endpoint's own address of an IP version; invalid: it has none.
func (e *Endpoint) own(version uint8) netip.Addr {
	if version == 4 {
		return e.own4
	}
	return e.own6
}

// Deliver takes one IP packet from remote, who is authenticated by the session that it came in, and queues it for the TUN: steps 1 to 4 of the
// way in. It owns b, does not block and may be called from many goroutines.
func (e *Endpoint) Deliver(remote key.Address, b *packet.Buffer) {
	p := e.pump
	if e.removed.Load() {
		p.drop(b, inRemoved)
		return
	}
	now := time.Now()
	ip, err := packet.ParseIP(b.Data)
	if err != nil {
		p.dropMalformed(b, inMalformed, err)
		return
	}
	if ip.Len > maxInbound { // IPv6 can have 40 bytes more
		p.dropMalformed(b, inMalformed, packet.ErrHeader)
		return
	}
	b.Data = b.Data[:ip.Len]
	own := e.own(ip.Version)
	if !own.IsValid() {
		p.drop(b, inNoFamily)
		return
	}
	var orig packet.IP
	var original *packet.IP
	if ip.ICMPError() {
		if orig, err = ip.Original(b.Data); err != nil {
			p.dropMalformed(b, inMalformed, err)
			return
		}
		original = &orig
	}
	switch e.flows.in(remote, &ip, original, e.inbound.Load(), now) {
	case pass:
	case noFragment:
		p.drop(b, inFragment)
		return
	case icmpKind:
		p.drop(b, inICMPKind)
		return
	case icmpNotRelated:
		p.drop(b, inUnrelated)
		return
	default:
		p.drop(b, inClosed)
		return
	}
	from, err := e.addr(remote, ip.Version, now)
	if err != nil {
		p.drop(b, inExhausted)
		return
	}
	if err := rewrite(&ip, b.Data, from, own); err != nil {
		p.dropMalformed(b, inMalformed, err)
		return
	}
	size := len(b.Data)
	select {
	case p.queue <- b:
		p.count.add(inPackets)
		p.count.addN(inBytes, size)
	default:
		p.drop(b, inQueueFull)
	}
}

// addr returns the local address of remote, mapped if need be.
func (e *Endpoint) addr(remote key.Address, version uint8, now time.Time) (netip.Addr, error) {
	if version == 4 {
		return e.addrs.IPv4(remote, now)
	}
	return e.addrs.IPv6(remote, now)
}

// Refuse takes back an outbound packet, with zero addresses, that the tunnel had accepted and cannot send after all: no contact was
// found, no session came about. Its sender is told by ICMP unreachable. It owns b and may be called from many goroutines.
func (e *Endpoint) Refuse(remote key.Address, b *packet.Buffer) {
	p, now := e.pump, time.Now()
	p.count.add(outReturned)
	defer b.Release()
	ip, err := packet.ParseIP(b.Data)
	if err != nil || e.removed.Load() || ip.ICMPError() {
		return
	}
	own := e.own(ip.Version)
	to, ok := e.addrs.Addr(remote, ip.Version, now)
	if !ok || !own.IsValid() || ip.Rewrite(b.Data, own, to) != nil {
		return
	}
	p.unreachable(&ip, b.Data, now)
}

// write is the TUN's writer: step 5 of the way in.
func (p *Pump) write(ctx context.Context) error {
	var bufs [writeBatch][]byte
	for {
		var b *packet.Buffer
		select {
		case b = <-p.queue:
		case <-ctx.Done():
			return nil
		}
		n := 0
		for b != nil {
			bufs[n] = writeBuffers.Get().(*writeBuffer)[:writeOffset+len(b.Data)]
			copy(bufs[n][writeOffset:], b.Data)
			b.Release()
			b = nil
			if n++; n < writeBatch {
				select {
				case b = <-p.queue:
				default:
				}
			}
		}
		if _, err := p.tun.Write(bufs[:n], writeOffset); err != nil {
			if errors.Is(err, os.ErrClosed) {
				return fmt.Errorf("netif: the tun was closed: %w", err)
			}
			p.count.add(writeFailed) // the link is down, or the kernel does not like a packet
		}
		for i, buf := range bufs[:n] { // coalescing may have swapped them
			writeBuffers.Put((*writeBuffer)(buf[:writeOffset+maxInbound]))
			bufs[i] = nil
		}
	}
}

// A writeBuffer has room for what the TUN makes of many packets. The collector takes those that a burst needed and nobody after it.
type writeBuffer [writeOffset + maxInbound]byte

var writeBuffers = sync.Pool{New: func() any { return new(writeBuffer) }}

func (p *Pump) drop(b *packet.Buffer, c counter) {
	p.count.add(c)
	b.Release()
}

func (p *Pump) dropMalformed(b *packet.Buffer, c counter, err error) {
	if r, ok := err.(packet.Reason); ok && r < packet.Reasons {
		p.count.malformed[r].Add(1)
	}
	p.drop(b, c)
}
