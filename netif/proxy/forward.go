package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Bounds of one forwarded port.
const (
	maxForward       = 512 // connections, or senders of datagrams, at a time
	maxRemoteForward = 128 // of which one remote may have
	flowTime         = 5 * time.Minute
)

// Forwarder hands what comes to one port of a service on to a local address.
type Forwarder struct {
	To  netip.AddrPort
	Log *slog.Logger

	mu      sync.Mutex
	open    map[net.Conn]bool
	remotes map[netip.Addr]int
	flows   map[netip.AddrPort]*flow
	end     bool
	wg      sync.WaitGroup
}

// Streams accepts connections, which are Conns, and joins each with one to the local address, until ctx ends or l is closed. It closes l, and returns when all are closed.
func (f *Forwarder) Streams(ctx context.Context, l net.Listener) {
	stop := f.begin(ctx, l)
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) || !pause(ctx) {
				break
			}
			f.Log.Debug("a forwarded port does not accept", "err", err)
			continue
		}
		remote := addrPort(c.RemoteAddr()).Addr()
		if !f.take(remote, c) {
			c.Close()
			continue
		}
		f.wg.Go(func() {
			defer f.give(remote, c)
			d := net.Dialer{Timeout: localTime}
			to, err := d.DialContext(ctx, "tcp", f.To.String())
			if err != nil {
				f.Log.Debug("nobody listens where a port of a service leads to", "to", f.To, "err", err)
				c.Close()
				return
			}
			join(c.(Conn), to.(*net.TCPConn), idleTime)
		})
	}
	stop()
}

// begin makes f closed when ctx ends; stop does it now, and waits.
func (f *Forwarder) begin(ctx context.Context, listener interface{ Close() error }) (stop func()) {
	f.open, f.remotes, f.flows = map[net.Conn]bool{}, map[netip.Addr]int{}, map[netip.AddrPort]*flow{}
	end := func() {
		listener.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		f.end = true
		for c := range f.open {
			c.Close()
		}
	}
	forget := context.AfterFunc(ctx, end)
	return func() {
		forget()
		end()
		f.wg.Wait()
	}
}

// take gives a remote a place for c.
func (f *Forwarder) take(remote netip.Addr, c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.end || len(f.open) >= maxForward || f.remotes[remote] >= maxRemoteForward {
		return false
	}
	f.open[c] = true
	f.remotes[remote]++
	return true
}

func (f *Forwarder) give(remote netip.Addr, c net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, c)
	if f.remotes[remote]--; f.remotes[remote] == 0 {
		delete(f.remotes, remote)
	}
}

// flow is one sender of datagrams with a local socket of its own.
type flow struct {
	local *net.UDPConn
	idle  *time.Timer // closes local
}

// Datagrams sends what comes to p on to the local address, from a socket of its own for each sender, and the answers back, until ctx ends or p is closed. It closes p.
func (f *Forwarder) Datagrams(ctx context.Context, p net.PacketConn) {
	stop := f.begin(ctx, p)
	b := make([]byte, maxDatagram)
	for {
		n, at, err := p.ReadFrom(b)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) || !pause(ctx) {
				break
			}
			continue
		}
		from := addrPort(at)
		f.mu.Lock()
		w := f.flows[from]
		f.mu.Unlock()
		if w == nil {
			if w = f.newFlow(from, p); w == nil {
				continue
			}
		}
		w.idle.Reset(flowTime)
		w.local.Write(b[:n])
	}
	stop()
}

func (f *Forwarder) newFlow(from netip.AddrPort, p net.PacketConn) *flow {
	local, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(f.To))
	if err != nil {
		return nil
	}
	if !f.take(from.Addr(), local) {
		local.Close()
		return nil
	}
	w := &flow{local, time.AfterFunc(flowTime, func() { local.Close() })}
	f.mu.Lock()
	f.flows[from] = w
	f.mu.Unlock()
	f.wg.Go(func() {
		defer f.give(from.Addr(), local)
		b := make([]byte, maxDatagram)
		for {
			n, err := local.Read(b)
			if errors.Is(err, net.ErrClosed) {
				break
			}
			if err == nil { // else ICMP: nobody listens there
				w.idle.Reset(flowTime)
				p.WriteTo(b[:n], net.UDPAddrFromAddrPort(from))
			}
		}
		w.idle.Stop()
		f.mu.Lock()
		delete(f.flows, from)
		f.mu.Unlock()
	})
	return w
}

// pause waits a moment after an error that may pass; false: ctx has ended.
func pause(ctx context.Context) bool {
	select {
	case <-time.After(10 * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	var p netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		p = a.AddrPort()
	case *net.UDPAddr:
		p = a.AddrPort()
	}
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}
