package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// A UDP association, from a program:
//
//  1. Read a datagram; only the program's own address may send, from the port that it used first.
//  2. Split off the address, and find the remote; a name that is not known yet is resolved beside, and a few datagrams wait for it.
//  3. Send the data from a socket of the Network.
//
// To a program:
//
//  4. Read from the Network, which hears only from whom it has sent to.
//  5. Put the address before it, as the program has last written it, and send it to where the program sends from.

const (
	maxDatagram     = 1 << 16
	maxPeers        = 256             // hosts that an association knows
	maxResolving    = 8               // of which so many are being resolved
	maxWaiting      = 4               // datagrams that wait for one of them
	peerTime        = 5 * time.Minute // after which a host is resolved again: its address may stand for another remote one day
	datagramTimeout = time.Second
)

type association struct {
	s      *Server
	ctx    context.Context
	client netip.Addr // of the program
	local  *net.UDPConn
	wg     sync.WaitGroup

	mu    sync.Mutex
	from  netip.AddrPort          // the program's socket; invalid: it has not sent yet
	peers map[string]*peer        // by host, as it was written
	hosts map[netip.Addr]string   // the other way round
	out   map[bool]net.PacketConn // to the Network, by "is IPv6"
	open  int                     // hosts that are being resolved
	stop  context.CancelFunc      // ends it
}

// peer is a host that the program sends to.
type peer struct {
	addr    netip.Addr // invalid: being resolved
	until   time.Time
	waiting []outgoing
}

type outgoing struct {
	port uint16
	data []byte
}

// associate serves an association until the program closes its connection.
func (s *Server) associate(c *counted) {
	select {
	case s.associations <- struct{}{}:
		defer func() { <-s.associations }()
	default:
		s.count.full.Add(1)
		writeReply(c, replyFailure, unbound)
		return
	}
	at := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr()
	local, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
	if err != nil {
		s.log.Warn("no UDP association", "err", err)
		writeReply(c, replyFailure, unbound)
		return
	}
	a := &association{s: s, local: local, client: c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(),
		peers: map[string]*peer{}, hosts: map[netip.Addr]string{}, out: map[bool]net.PacketConn{}}
	a.ctx, a.stop = context.WithCancel(s.ctx)
	bound := local.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := writeReply(c, replyOK, netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port())); err == nil {
		a.wg.Go(a.fromProgram)
		io.Copy(io.Discard, c)
	}
	a.stop()
	local.Close()
	a.mu.Lock()
	for _, p := range a.out {
		p.Close()
	}
	a.mu.Unlock()
	a.wg.Wait()
}

// fromProgram does steps 1 and 2.
func (a *association) fromProgram() {
	b := make([]byte, maxDatagram)
	for {
		n, from, err := a.local.ReadFromUDPAddrPort(b)
		if err != nil {
			if !pause(a.ctx) {
				return
			}
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		host, port, data, err := parseDatagram(b[:n])
		if err != nil || port == 0 || !a.take(from) || !a.send(host, port, data) {
			a.s.count.dropped.Add(1)
		}
	}
}

// take says whether from is where the program sends from.
func (a *association) take(from netip.AddrPort) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.from.IsValid() && from.Addr() == a.client {
		a.from = from
	}
	return from == a.from
}

// send sends to a host, or lets the datagram wait until the host is known; false: it is dropped.
func (a *association) send(host string, port uint16, data []byte) bool {
	a.mu.Lock()
	p := a.peers[host]
	if p == nil || p.addr.IsValid() && time.Now().After(p.until) {
		t, err := parseHost(host)
		if err != nil || a.open >= maxResolving {
			a.mu.Unlock()
			if err != nil {
				a.s.count.refused.Add(1)
			}
			return false
		}
		a.room()
		p = &peer{}
		a.peers[host] = p
		a.open++
		a.wg.Go(func() { a.resolve(p, t) })
	}
	if !p.addr.IsValid() {
		room := len(p.waiting) < maxWaiting
		if room {
			p.waiting = append(p.waiting, outgoing{port, append([]byte(nil), data...)})
		}
		a.mu.Unlock()
		return room
	}
	to := netip.AddrPortFrom(p.addr, port)
	a.hosts[p.addr] = host
	a.mu.Unlock()
	return a.write(to, data)
}

// room forgets some host if there are too many. a.mu is held.
func (a *association) room() {
	for host, p := range a.peers {
		if len(a.peers) < maxPeers {
			return
		}
		if p.addr.IsValid() {
			delete(a.peers, host)
			if a.hosts[p.addr] == host {
				delete(a.hosts, p.addr)
			}
		}
	}
}

// resolve finds the address of a new peer and sends what has waited for it.
func (a *association) resolve(p *peer, t target) {
	ctx, cancel := context.WithTimeout(a.ctx, connectTime)
	defer cancel()
	addrs, err := a.s.resolve(ctx, t)
	a.mu.Lock()
	a.open--
	waiting := p.waiting
	p.waiting = nil
	if err != nil {
		delete(a.peers, t.host) // the next datagram tries again
	} else {
		p.addr, p.until = addrs[0], time.Now().Add(peerTime)
		a.hosts[p.addr] = t.host
	}
	a.mu.Unlock()
	for _, o := range waiting {
		if err != nil || !a.write(netip.AddrPortFrom(addrs[0], o.port), o.data) {
			a.s.count.dropped.Add(1)
		}
	}
	if err != nil {
		a.s.log.Debug("datagrams have no way", "to", t.name, "err", err)
	}
}

// write does step 3.
func (a *association) write(to netip.AddrPort, data []byte) bool {
	v6 := to.Addr().Is6()
	a.mu.Lock()
	out, err := a.out[v6], error(nil)
	if out == nil && a.ctx.Err() == nil {
		if out, err = a.s.net.ListenPacket(v6); err == nil {
			a.out[v6] = out
			a.wg.Go(func() { a.toProgram(out) })
		}
	}
	a.mu.Unlock()
	if err != nil || out == nil {
		return false
	}
	out.SetWriteDeadline(time.Now().Add(datagramTimeout))
	if _, err = out.WriteTo(data, net.UDPAddrFromAddrPort(to)); err != nil {
		return false
	}
	a.s.count.datagrams.Add(1)
	return true
}

// toProgram does steps 4 and 5.
func (a *association) toProgram(out net.PacketConn) {
	b, d := make([]byte, maxDatagram), []byte(nil)
	for {
		n, at, err := out.ReadFrom(b)
		if err != nil {
			if !pause(a.ctx) {
				return
			}
			continue // of an ICMP error
		}
		from := at.(*net.UDPAddr).AddrPort()
		a.mu.Lock()
		host, to := a.hosts[from.Addr().Unmap()], a.from
		a.mu.Unlock()
		if host == "" {
			host = fmt.Sprint(from.Addr().Unmap())
		}
		d = appendDatagram(d[:0], host, from.Port(), b[:n])
		if _, err := a.local.WriteToUDPAddrPort(d, to); err != nil {
			a.s.count.dropped.Add(1)
			continue
		}
		a.s.count.datagrams.Add(1)
	}
}
