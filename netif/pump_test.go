package netif

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/packet"
	"lokinetd/router/testkit"
)

// tunnelFunc is a Tunnel.
type tunnelFunc func(remote key.Address, b *packet.Buffer) bool

func (f tunnelFunc) Send(remote key.Address, b *packet.Buffer) bool { return f(remote, b) }

var (
	alice, bob = remoteN(0x61000000), remoteN(0x60b00000)
	// Own addresses, and those that alice and bob have at the other one.
	alice4, alice6 = prefix("172.16.0.1/16"), prefix("fd2e:7365:7368::1/64")
	bob4, bob6     = prefix("10.7.0.1/20"), prefix("fd2e:7365:7368:5::1/64")
	bobAtAlice4    = addr("172.16.0.2")
	bobAtAlice6    = addr("fd2e:7365:7368:0:60b0::")
	aliceAtBob4    = addr("10.7.0.2")
	aliceAtBob6    = addr("fd2e:7365:7368:5:6100::")
)

// pair is two hosts with a tunnel of nothing between them.
type pair struct {
	t        *testing.T
	tun      [2]*MemTUN // alice's, bob's
	pump     [2]*Pump
	endpoint [2]*Endpoint
	refuse   bool     // alice's tunnel refuses
	sent     [][]byte // what went through the tunnel
	cancel   func()
	done     sync.WaitGroup
}

// newPair runs two pumps in the synctest bubble that it is called in. Bob lists tcp 80 and udp 53 and answers echo requests.
func newPair(t *testing.T) *pair {
	p := &pair{t: t}
	ctx, cancel := context.WithCancel(t.Context())
	p.cancel = cancel
	buffers := packet.InUse()
	t.Cleanup(func() {
		if n := packet.InUse() - buffers; n != 0 {
			t.Errorf("%d buffers were not released", n)
		}
	})
	maps := [2]*Map{}
	for i, c := range []struct {
		self       key.Address
		own4, own6 netip.Prefix
		in         Inbound
	}{
		{alice, alice4, alice6, Inbound{}},
		{bob, bob4, bob6, Inbound{Echo: true, TCP: []Ports{{80, 80}}, UDP: []Ports{{53, 53}}}},
	} {
		var err error
		if maps[i], err = NewMap(c.self, c.own4, c.own6); err != nil {
			t.Fatal(err)
		}
		p.tun[i] = NewMemTUN(8)
		p.pump[i] = NewPump(p.tun[i], nil)
		other, self := 1-i, c.self
		p.endpoint[i], err = p.pump[i].Add(maps[i], c.in, tunnelFunc(func(remote key.Address, b *packet.Buffer) bool {
			if i == 0 && p.refuse {
				b.Release()
				return false
			}
			p.sent = append(p.sent, bytes.Clone(b.Data))
			p.endpoint[other].Deliver(self, b)
			return true
		}))
		if err != nil {
			t.Fatal(err)
		}
		p.done.Go(func() {
			if err := p.pump[i].Run(ctx); err != nil {
				t.Errorf("pump %d: %v", i, err)
			}
		})
	}
	for i, m := range maps { // the names are resolved
		remote := []key.Address{bob, alice}[i]
		if a, err := m.IPv4(remote, time.Now()); err != nil || a != []netip.Addr{bobAtAlice4, aliceAtBob4}[i] {
			t.Fatal(a, err)
		}
		if a, err := m.IPv6(remote, time.Now()); err != nil || a != []netip.Addr{bobAtAlice6, aliceAtBob6}[i] {
			t.Fatal(a, err)
		}
	}
	return p
}

func (p *pair) close() {
	p.cancel()
	p.done.Wait()
	for _, x := range p.pump {
		for len(x.queue) > 0 {
			(<-x.queue).Release()
		}
	}
}

// pass sends a packet into one TUN and returns what comes out of both.
func (p *pair) pass(from int, b []byte) (same, other [][]byte) {
	p.sent = nil
	p.tun[from].Send(b)
	synctest.Wait()
	drain := func(m *MemTUN) (l [][]byte) {
		for len(m.fromPump) > 0 {
			l = append(l, <-m.fromPump)
		}
		return l
	}
	return drain(p.tun[from]), drain(p.tun[1-from])
}

// TestPump sends packets of every kind from alice's TUN to bob's and back.
func TestPump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		defer p.close()
		for _, v := range []struct {
			a, b, ab, ba            netip.Addr // alice, bob, alice at bob's, bob at alice's
			echo, reply, error, mtu byte
		}{
			{alice4.Addr(), bob4.Addr(), aliceAtBob4, bobAtAlice4, 8, 0, 3, 3},
			{alice6.Addr(), bob6.Addr(), aliceAtBob6, bobAtAlice6, 128, 129, 1, 2},
		} {
			rest := []byte{0, 9, 0, 1, 'h', 'i'}
			exchange := func(name string, from int, in, want []byte) {
				t.Helper()
				same, other := p.pass(from, in)
				if len(same) != 0 {
					t.Errorf("%s: answer %x", name, same)
				}
				if want == nil {
					if len(other) != 0 {
						t.Errorf("%s: got %x", name, other)
					}
					return
				}
				if len(other) != 1 || !bytes.Equal(other[0], want) {
					t.Errorf("%s:\n got %x\nwant %x", name, other, want)
					return
				}
				if !sumsRight(other[0]) {
					t.Errorf("%s: checksums of %x", name, other[0])
				}
				// In the tunnel there is no address of either side, and checksums are right for zero ones.
				if len(p.sent) != 1 || !sumsRight(p.sent[0]) {
					t.Errorf("%s: in the tunnel: %x", name, p.sent)
				}
				for _, a := range []netip.Addr{v.a, v.b, v.ab, v.ba} {
					if bytes.Contains(p.sent[0], a.AsSlice()) {
						t.Errorf("%s: %v in the tunnel: %x", name, a, p.sent[0])
					}
				}
			}
			exchange("syn", 0, tcp(v.a, v.ba, 4000, 80, packet.TCPSyn), tcp(v.ab, v.b, 4000, 80, packet.TCPSyn))
			exchange("syn+ack", 1, tcp(v.b, v.ab, 80, 4000, packet.TCPSyn|packet.TCPAck), tcp(v.ba, v.a, 80, 4000, packet.TCPSyn|packet.TCPAck))
			exchange("query", 0, udp(v.a, v.ba, 4000, 53, "?"), udp(v.ab, v.b, 4000, 53, "?"))
			exchange("answer", 1, udp(v.b, v.ab, 53, 4000, "!"), udp(v.ba, v.a, 53, 4000, "!"))
			exchange("echo", 0, icmp(v.a, v.ba, v.echo, 0, rest), icmp(v.ab, v.b, v.echo, 0, rest))
			exchange("echo reply", 1, icmp(v.b, v.ab, v.reply, 0, rest), icmp(v.ba, v.a, v.reply, 0, rest))
			exchange("closed port", 0, tcp(v.a, v.ba, 4001, 22, packet.TCPSyn), nil)
			exchange("closed endpoint", 1, tcp(v.b, v.ab, 4001, 80, packet.TCPSyn), nil)
			// Bob's kernel says that nobody listens at port 53, and quotes the packet as it saw it.
			about := func(src, dst netip.Addr) []byte { return append(make([]byte, 4), udp(src, dst, 4000, 53, "?")...) }
			exchange("port unreachable", 1, icmp(v.b, v.ab, v.error, v.mtu, about(v.ab, v.b)), icmp(v.ba, v.a, v.error, v.mtu, about(v.a, v.ba)))
			exchange("unrelated error", 1, icmp(v.b, v.ab, v.error, v.mtu, append(make([]byte, 4), udp(v.ab, v.b, 4000, 99, "?")...)), nil)
		}
		a, b := p.pump[0].Stats(), p.pump[1].Stats()
		if a.OutPackets != 8 || a.InPackets != 8 || a.InClosed != 2 || a.InUnrelated != 2 || b.InPackets != 6 || b.InClosed != 2 || b.OutPackets != 12 {
			t.Errorf("alice %+v\nbob %+v", a, b)
		}
	})
}

// TestPumpDrops: everything that must not reach the tunnel, with its counter, and what the sender is told.
func TestPumpDrops(t *testing.T) {
	own4, own6 := alice4.Addr(), alice6.Addr()
	nobody4, nobody6 := addr("172.16.9.9"), addr("fd2e:7365:7368::9")
	counter := func(f func(s *Stats) *uint64) func(s *Stats) *uint64 { return f }
	unknown := counter(func(s *Stats) *uint64 { return &s.OutUnknown })
	refused := counter(func(s *Stats) *uint64 { return &s.OutRefused })
	multicast := counter(func(s *Stats) *uint64 { return &s.OutMulticast })
	foreign := counter(func(s *Stats) *uint64 { return &s.OutForeign })
	malformed := counter(func(s *Stats) *uint64 { return &s.OutMalformed })
	kind := counter(func(s *Stats) *uint64 { return &s.OutICMPKind })
	fragment := func(b []byte, field uint16) []byte { binary.BigEndian.PutUint16(b[6:], field); return b }
	zeroSum := udp(own6, bobAtAlice6, 1, 53, "x")
	zeroSum[46], zeroSum[47] = 0, 0
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		defer p.close()
		for _, tt := range []struct {
			name   string
			refuse bool
			b      []byte
			count  func(*Stats) *uint64
			told   bool
		}{
			{"unknown destination", false, udp(own4, nobody4, 1, 2, "0123456789012345678901234567890123456789"), unknown, true},
			{"unknown destination, short", false, udp(own4, nobody4, 1, 2, ""), unknown, true},
			{"unknown destination, IPv6", false, tcp(own6, nobody6, 1, 2, packet.TCPSyn), unknown, true},
			{"unknown destination, IPv6, 5 bytes", false, udp(own6, nobody6, 1, 2, "01234"), unknown, true},
			{"unknown destination outside our ranges", false, udp(own4, addr("8.8.8.8"), 1, 53, ""), unknown, true},
			{"echo to an unknown destination", false, icmp(own6, nobody6, 128, 0, make([]byte, 4)), unknown, true},
			{"echo reply to an unknown destination", false, icmp(own4, nobody4, 0, 0, make([]byte, 4)), unknown, false},
			{"ICMP error to an unknown destination", false, icmp(own4, nobody4, 3, 1, append(make([]byte, 4), udp(nobody4, own4, 1, 2, "")...)), unknown, false},
			{"later fragment to an unknown destination", false, fragment(udp(own4, nobody4, 1, 2, ""), 100), unknown, false},
			{"to ourselves", false, udp(own4, own4, 1, 2, ""), unknown, true},
			{"refused", true, tcp(own4, bobAtAlice4, 1, 80, packet.TCPSyn), refused, true},
			{"refused, IPv6", true, tcp(own6, bobAtAlice6, 1, 80, packet.TCPSyn), refused, true},
			{"echo reply refused", true, icmp(own6, bobAtAlice6, 129, 0, make([]byte, 4)), refused, false},
			{"multicast", false, udp(own4, addr("224.0.0.251"), 5353, 5353, ""), multicast, false},
			{"multicast, IPv6", false, icmp(addr("fe80::1"), addr("ff02::2"), 133, 0, make([]byte, 4)), multicast, false},
			{"broadcast", false, udp(own4, addr("255.255.255.255"), 1, 2, ""), multicast, false},
			{"broadcast of our range", false, udp(own4, addr("172.16.255.255"), 1, 2, ""), multicast, false},
			{"network of our range", false, udp(own4, addr("172.16.0.0"), 1, 2, ""), multicast, false},
			{"foreign source", false, udp(addr("192.168.1.5"), bobAtAlice4, 1, 2, ""), foreign, false},
			{"foreign source in our range", false, udp(nobody6, bobAtAlice6, 1, 2, ""), foreign, false},
			{"no source", false, udp(addr("::"), bobAtAlice6, 1, 2, ""), foreign, false},
			{"no checksum", false, zeroSum, malformed, false},
			{"cut", false, udp(own4, bobAtAlice4, 1, 2, "hello")[:30], malformed, false},
			{"empty", false, nil, malformed, false},
			{"neighbour solicitation", false, icmp(own6, bobAtAlice6, 135, 0, make([]byte, 20)), kind, false},
			{"redirect", false, icmp(own4, bobAtAlice4, 5, 0, make([]byte, 32)), kind, false},
			{"ICMP error about rubbish", false, icmp(own4, bobAtAlice4, 3, 0, make([]byte, 32)), malformed, false},
		} {
			before := p.pump[0].Stats()
			p.refuse = tt.refuse
			same, other := p.pass(0, tt.b)
			after := p.pump[0].Stats()
			if len(other) != 0 {
				t.Errorf("%s: passed: %x", tt.name, other)
			}
			if *tt.count(&after) != *tt.count(&before)+1 {
				t.Errorf("%s: not counted: %+v", tt.name, after)
			}
			if !tt.told {
				if len(same) != 0 {
					t.Errorf("%s: answered: %x", tt.name, same)
				}
				continue
			}
			if len(same) != 1 || after.UnreachableSent != before.UnreachableSent+1 {
				t.Errorf("%s: answers %x", tt.name, same)
				continue
			}
			e, o := view(t, same[0]), view(t, tt.b)
			in, err := e.Original(same[0])
			quote := same[0][e.Header+8:]
			if err != nil || !sumsRight(same[0]) || e.Src != o.Dst || e.Dst != o.Src || in.Src != o.Src || in.Dst != o.Dst || in.DstPort != o.DstPort ||
				!bytes.HasPrefix(tt.b, quote) || len(quote) < min(len(tt.b)&^3, o.Header+8) || len(quote) > o.Header+32 || e.Version == 6 && len(quote)%4 != 0 {
				t.Errorf("%s: answer %x: %v", tt.name, same[0], err)
			}
			if want := map[uint8][2]uint8{4: {3, 1}, 6: {1, 3}}[e.Version]; [2]uint8{e.Type, e.Code} != want {
				t.Errorf("%s: type %d code %d", tt.name, e.Type, e.Code)
			}
		}
		s := p.pump[0].Stats()
		if s.OutPackets != 0 || s.Malformed[packet.ErrChecksum] != 1 || s.Malformed[packet.ErrTruncated] != 2 || s.Malformed[packet.ErrVersion] != 1 {
			t.Errorf("%+v", s)
		}
		// The rate limit: a burst, then so many a second.
		time.Sleep(time.Minute)
		for range unreachableBurst + 20 {
			p.tun[0].Send(udp(own4, nobody4, 1, 2, ""))
			synctest.Wait()
		}
		if n := len(p.tun[0].fromPump); n != unreachableBurst || p.pump[0].Stats().UnreachableLimited != 20 {
			t.Errorf("%d answers at once, %d counted", n, p.pump[0].Stats().UnreachableLimited)
		}
	})
}

// TestPumpZeroSum: the TUN library writes 0x0000 where a UDP checksum comes out as 0xFFFF; such a packet passes.
func TestPumpZeroSum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		defer p.close()
		b := udp(alice6.Addr(), bobAtAlice6, 4000, 53, "\x00\x00")
		binary.BigEndian.PutUint16(b[48:], binary.BigEndian.Uint16(b[46:])) // now its sum is 0
		b[46], b[47] = 0, 0
		_, other := p.pass(0, b)
		if len(other) != 1 || !sumsRight(other[0]) {
			t.Errorf("got %x", other)
		}
	})
}

// TestRefuse: a packet that the tunnel gives back later.
func TestRefuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		defer p.close()
		for _, b := range [][]byte{tcp(alice4.Addr(), bobAtAlice4, 4000, 443, packet.TCPSyn), udp(alice6.Addr(), bobAtAlice6, 4000, 53, "?")} {
			ip := view(t, b)
			zero := unspecified4
			if ip.Version == 6 {
				zero = unspecified6
			}
			z := bytes.Clone(b)
			if err := packet.Rewrite(z, zero, zero); err != nil {
				t.Fatal(err)
			}
			buf := packet.Get()
			buf.Set(z)
			p.endpoint[0].Refuse(bob, buf)
			synctest.Wait()
			if len(p.tun[0].fromPump) != 1 {
				t.Fatal("not told")
			}
			e := <-p.tun[0].fromPump
			if v := view(t, e); !sumsRight(e) || v.Src != ip.Dst || v.Dst != ip.Src || !bytes.HasPrefix(b, e[v.Header+8:]) {
				t.Errorf("got %x", e)
			}
		}
		buf := packet.Get()
		buf.Set([]byte{0x45})
		p.endpoint[0].Refuse(bob, buf)
		if s := p.pump[0].Stats(); s.OutReturned != 3 || s.OutRefused != 0 || s.UnreachableSent != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// TestDeliver: large packets, whatever addresses they bear, families that are not there, endpoints that are gone, and a full queue.
func TestDeliver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		deliver := func(e *Endpoint, remote key.Address, b []byte) {
			buf := packet.Get()
			buf.Set(b)
			e.Deliver(remote, buf)
		}
		bobs := p.endpoint[1]
		for _, n := range []int{1, 1400, packet.MaxData, 65535 - 28} {
			data := string(bytes.Repeat([]byte{7}, n))
			deliver(bobs, alice, udp(addr("9.9.9.9"), addr("8.8.8.8"), 4000, 53, data)) // forged addresses do not count
			synctest.Wait()
			if got := <-p.tun[1].fromPump; !bytes.Equal(got, udp(aliceAtBob4, bob4.Addr(), 4000, 53, data)) {
				t.Errorf("%d bytes: got %d bytes", n, len(got))
			}
		}
		deliver(bobs, alice, append(udp(addr("::"), addr("::"), 4000, 53, "x"), "trailing"...))
		synctest.Wait()
		if got := <-p.tun[1].fromPump; !bytes.Equal(got, udp(aliceAtBob6, bob6.Addr(), 4000, 53, "x")) {
			t.Errorf("trailing bytes: got %x", got)
		}
		jumbo := udp(addr("::"), addr("::"), 4000, 53, string(make([]byte, 65535-8)))
		deliver(bobs, alice, jumbo) // 65,575 bytes
		if s := p.pump[1].Stats(); s.InMalformed != 1 || s.Malformed[packet.ErrHeader] != 1 {
			t.Errorf("IPv6 packet of %d bytes: %+v", len(jumbo), s)
		}
		// A later fragment comes in only behind its first one.
		frag := udp(addr("0.0.0.0"), addr("0.0.0.0"), 4000, 53, "12345678")
		frag[6] = 0x20
		later := udp(addr("0.0.0.0"), addr("0.0.0.0"), 4000, 53, "12345678")
		later[7] = 2
		deliver(bobs, alice, later)
		deliver(bobs, alice, frag)
		deliver(bobs, alice, later)
		synctest.Wait()
		if s := p.pump[1].Stats(); len(p.tun[1].fromPump) != 2 || s.InFragment != 1 {
			t.Errorf("fragments: %d came in, %+v", len(p.tun[1].fromPump), s)
		}

		m, err := NewMap(remoteN(77), prefix("10.99.0.1/30"), netip.Prefix{})
		if err != nil {
			t.Fatal(err)
		}
		only4, err := p.pump[1].Add(m, Inbound{UDP: []Ports{{1, 65535}}}, tunnelFunc(func(_ key.Address, b *packet.Buffer) bool { b.Release(); return true }))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.pump[1].Add(m, Inbound{}, nil); err == nil {
			t.Error("two endpoints with one address")
		}
		deliver(only4, alice, udp(addr("::"), addr("::"), 4000, 53, "x"))
		deliver(only4, alice, udp(addr("0.0.0.0"), addr("0.0.0.0"), 4000, 53, "x"))
		deliver(only4, bob, udp(addr("0.0.0.0"), addr("0.0.0.0"), 4000, 53, "x")) // a /30 has one address left for remotes
		p.pump[1].Remove(only4)
		deliver(only4, alice, udp(addr("0.0.0.0"), addr("0.0.0.0"), 4000, 53, "x"))
		if s := p.pump[1].Stats(); s.InNoFamily != 1 || s.InExhausted != 1 || s.InRemoved != 1 {
			t.Errorf("%+v", s)
		}
		p.close()
		before := p.pump[1].Stats()
		for range writeQueue + 5 {
			deliver(bobs, alice, udp(addr("::"), addr("::"), 4000, 53, "x"))
		}
		if s := p.pump[1].Stats(); s.InPackets != before.InPackets+writeQueue || s.InQueueFull != 5 {
			t.Errorf("full queue: %+v", s)
		}
		p.close()
	})
}

// TestRun: it ends when the context does, can run again, and fails when the TUN is closed or broken.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := packet.InUse()
		m := NewMemTUN(4)
		p := NewPump(m, nil)
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if err := p.Run(ctx); err != nil {
				t.Errorf("end of the context: %v", err)
			}
			cancel()
		}
		time.AfterFunc(time.Minute, func() { m.Close() })
		if err := p.Run(t.Context()); !errors.Is(err, os.ErrClosed) {
			t.Errorf("closed TUN: %v", err)
		}
		b := NewPump(&brokenTUN{MemTUN: NewMemTUN(4)}, nil)
		if err := b.Run(t.Context()); err == nil || b.Stats().ReadFailed < readErrors {
			t.Errorf("broken TUN: %v", err)
		}
		if n := packet.InUse() - before; n != 0 {
			t.Errorf("%d buffers were not released", n)
		}
	})
}

// brokenTUN panics and fails in turn, as a TUN library whose buffers are too small.
type brokenTUN struct {
	*MemTUN
	n int
}

func (b *brokenTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if b.n++; b.n%2 == 0 {
		panic("slice bounds out of range")
	}
	return 0, errors.New("broken")
}

// TestPumpConcurrent: many goroutines deliver while the other way is in use and endpoints come and go; for the race detector.
func TestPumpConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for i := range 200 {
					buf := packet.Get()
					buf.Set(udp(addr("0.0.0.0"), addr("0.0.0.0"), uint16(i), 53, fmt.Sprint(g)))
					p.endpoint[1].Deliver(remoteN(g*1000+i%7), buf)
				}
			})
		}
		wg.Go(func() {
			for i := range 100 {
				p.tun[1].Send(udp(bob4.Addr(), aliceAtBob4, 53, uint16(i), "x"))
			}
		})
		wg.Go(func() {
			for i := range 50 {
				m, err := NewMap(remoteN(i), prefix("10.99.0.1/24"), netip.Prefix{})
				if err != nil {
					t.Error(err)
					return
				}
				e, err := p.pump[1].Add(m, Inbound{}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				p.endpoint[1].SetInbound(Inbound{UDP: []Ports{{53, 53}}})
				p.endpoint[1].Map().Mappings(time.Now())
				p.pump[1].Stats()
				p.pump[1].Remove(e)
			}
		})
		wg.Wait()
		synctest.Wait()
		p.close()
		if s := p.pump[1].Stats(); s.InPackets+s.InQueueFull != 800 || s.OutPackets != 100 {
			t.Errorf("%+v", s)
		}
	})
}

// FuzzDeliver. Threat: a remote sends any bytes through its session and hopes for a panic, a buffer lost, or a packet to the host that claims to be
// from somebody else.
//
// Decoders: Endpoint.Deliver Endpoint.Refuse Pump.out Pump.unreachable rewrite flowOf
func FuzzDeliver(f *testing.F) {
	z4, z6 := addr("0.0.0.0"), addr("::")
	f.Add(udp(z4, z4, 1, 53, "x"))
	f.Add(tcp(z6, z6, 1, 80, packet.TCPSyn))
	f.Add(icmp(z6, z6, 1, 3, append(make([]byte, 4), udp(z6, z6, 53, 1, "x")...)))
	f.Add(icmp(z4, z4, 3, 3, append(make([]byte, 4), udp(z4, z4, 53, 1, "x")...)))
	for _, z := range []netip.Addr{z4, z6} {
		f.Add(udp(z, z, 1, 53, "more"))
		f.Add(icmp(z, z, map[bool]byte{true: 8, false: 128}[z.Is4()], 0, make([]byte, 4)))
		f.Add(icmp(z, z, map[bool]byte{true: 13, false: 133}[z.Is4()], 0, make([]byte, 4)))
	}
	huge := udp(z6, z6, 1, 53, strings.Repeat("x", maxInbound-8))
	later := udp(z4, z4, 1, 53, "a later fragment")
	later[6], later[7] = 0, 1
	testkit.SetHeaderSum(later)
	f.Add(later)
	tunnel := tunnelFunc(func(_ key.Address, b *packet.Buffer) bool {
		ip, err := packet.ParseIP(b.Data)
		if err != nil || !ip.Src.IsUnspecified() || !ip.Dst.IsUnspecified() {
			panic("an address leaves, or what is no packet")
		}
		even := len(b.Data)%2 == 0
		b.Release()
		return even
	})
	endpoint := func(own4, own6 netip.Prefix) (*Pump, *Endpoint) {
		m, err := NewMap(bob, own4, own6)
		if err != nil {
			f.Fatal(err)
		}
		p := NewPump(NewMemTUN(1), nil)
		e, err := p.Add(m, Inbound{Echo: true, TCP: []Ports{{0, 65535}}, UDP: []Ports{{0, 65535}}}, tunnel)
		if err != nil {
			f.Fatal(err)
		}
		return p, e
	}
	p, e := endpoint(bob4, bob6)
	_, only6 := endpoint(netip.Prefix{}, bob6)
	_, full := endpoint(prefix("10.7.0.1/30"), netip.Prefix{})
	full.addrs.IPv4(remoteN(9), time.Now())
	_, crowded := endpoint(bob4, bob6)
	crowded.pump.queue = make(chan *packet.Buffer)
	pr, removed := endpoint(bob4, bob6)
	pr.Remove(removed)
	b := packet.Get()
	b.Set(huge)
	if e.Deliver(alice, b); len(p.queue) > 0 {
		f.Fatal("larger than the TUN takes")
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		before := packet.InUse()
		b := packet.Get()
		b.Set(data)
		e.Deliver(alice, b)
		select {
		case b := <-p.queue:
			ip := view(t, b.Data)
			if len(b.Data) > maxInbound || ip.Dst != e.own(ip.Version) || ip.Src != aliceAtBob4 && ip.Src != aliceAtBob6 {
				t.Fatalf("%+v", ip)
			}
			b.Release()
		default:
		}
		for _, e := range []*Endpoint{only6, full, crowded, removed} {
			b := packet.Get()
			b.Set(data)
			e.Deliver(alice, b)
			b = packet.Get()
			b.Set(data)
			e.Refuse(alice, b)
			for len(e.pump.queue) > 0 {
				b := <-e.pump.queue
				if e != only6 || b.Data[0]>>4 != 6 {
					t.Fatalf("%x reached the host", b.Data)
				}
				b.Release()
			}
		}
		if packet.InUse() != before {
			t.Fatal("a buffer was not released")
		}
		flowOf(data)
		b = packet.Get()
		b.Set(data)
		e.Refuse(alice, b)
		if ip, err := packet.ParseIP(data); err == nil { // to all that an address can be
			for _, to := range [][2]netip.Addr{
				{e.own(ip.Version), map[uint8]netip.Addr{4: aliceAtBob4, 6: aliceAtBob6}[ip.Version]}, {e.own(ip.Version), e.own(ip.Version)}, {addr("10.7.0.1"), addr("10.7.0.77")},
				{addr("10.7.0.1"), addr("10.7.15.255")}, {addr("10.7.0.1"), addr("255.255.255.255")}, {addr("10.7.0.9"), addr("10.7.0.2")},
			} {
				b := packet.Get()
				b.Set(data[:min(len(data), MaxPacket)])
				if again, err := packet.ParseIP(b.Data); err != nil || rewrite(&again, b.Data, to[0], to[1]) != nil {
					b.Release()
					continue
				}
				p.out(b, time.Now())
			}
		}
		b = packet.Get() // and the same bytes come out of the TUN
		b.Set(data[:min(len(data), MaxPacket)])
		p.out(b, time.Now())
		for len(p.queue) > 0 {
			(<-p.queue).Release()
		}
		if packet.InUse() != before {
			t.Fatal("a buffer was not released on the way out")
		}
	})
}
