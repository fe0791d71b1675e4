package netif

import (
	"math/rand/v2"
	"testing"
	"time"

	"lokinetd/router/packet"
)

func view(t testing.TB, b []byte) *packet.IP {
	t.Helper()
	ip, err := packet.ParseIP(b)
	if err != nil {
		t.Fatal(err)
	}
	return &ip
}

func TestFlows(t *testing.T) {
	for _, version := range []int{4, 6} {
		us, it := addr("172.16.0.1"), addr("172.16.0.2")
		echo, reply, unreachable, redirect := byte(8), byte(0), byte(3), byte(5)
		if version == 6 {
			us, it = addr("fd2e:7365:7368::1"), addr("fd2e:7365:7368::2")
			echo, reply, unreachable, redirect = 128, 129, 1, 137
		}
		rest := []byte{0, 7, 0, 1}
		icmpError := func(about []byte) []byte { return icmp(it, us, unreachable, 1, append(make([]byte, 4), about...)) }
		nothing, web := Inbound{}, Inbound{Echo: true, TCP: []Ports{{80, 80}, {8000, 8010}}, UDP: []Ports{{53, 53}}}
		a, b := remoteN(1), remoteN(2)
		tests := []struct {
			name string
			in   Inbound
			out  []byte // sent to a before
			wait time.Duration
			p    []byte // comes from a
			want verdict
		}{
			{"tcp syn, closed", nothing, nil, 0, tcp(it, us, 5000, 80, packet.TCPSyn), noFlow},
			{"tcp syn, listed", web, nil, 0, tcp(it, us, 5000, 80, packet.TCPSyn), pass},
			{"tcp syn, end of a listed range", web, nil, 0, tcp(it, us, 5000, 8010, packet.TCPSyn), pass},
			{"tcp syn, beyond a listed range", web, nil, 0, tcp(it, us, 5000, 8011, packet.TCPSyn), noFlow},
			{"udp to a port listed for tcp", web, nil, 0, udp(it, us, 5000, 80, ""), noFlow},
			{"udp, listed", web, nil, 0, udp(it, us, 5000, 53, ""), pass},
			{"tcp answer", nothing, tcp(us, it, 4000, 80, packet.TCPSyn), 0, tcp(it, us, 80, 4000, packet.TCPSyn|packet.TCPAck), pass},
			{"tcp answer, late", nothing, tcp(us, it, 4000, 80, packet.TCPSyn), flowOpening + 1, tcp(it, us, 80, 4000, packet.TCPSyn|packet.TCPAck), noFlow},
			{"tcp answer from another port", nothing, tcp(us, it, 4000, 80, packet.TCPSyn), 0, tcp(it, us, 81, 4000, packet.TCPAck), noFlow},
			{"tcp answer to another port", nothing, tcp(us, it, 4000, 80, packet.TCPSyn), 0, tcp(it, us, 80, 4001, packet.TCPAck), noFlow},
			{"udp answer to a tcp flow", nothing, tcp(us, it, 4000, 80, packet.TCPSyn), 0, udp(it, us, 80, 4000, ""), noFlow},
			{"a reset opens nothing", nothing, tcp(us, it, 4000, 80, packet.TCPRst), 0, tcp(it, us, 80, 4000, packet.TCPAck), noFlow},
			{"udp answer", nothing, udp(us, it, 4000, 53, ""), flowUDP, udp(it, us, 53, 4000, ""), pass},
			{"udp answer, late", nothing, udp(us, it, 4000, 53, ""), flowUDP + 1, udp(it, us, 53, 4000, ""), noFlow},
			{"echo, closed", nothing, nil, 0, icmp(it, us, echo, 0, rest), noFlow},
			{"echo, allowed", web, nil, 0, icmp(it, us, echo, 0, rest), pass},
			{"echo reply", nothing, icmp(us, it, echo, 0, rest), 0, icmp(it, us, reply, 0, rest), pass},
			{"echo reply, other id", nothing, icmp(us, it, echo, 0, rest), 0, icmp(it, us, reply, 0, []byte{0, 8, 0, 1}), noFlow},
			{"echo reply, late", nothing, icmp(us, it, echo, 0, rest), flowICMP + 1, icmp(it, us, reply, 0, rest), noFlow},
			{"echo reply unasked", web, nil, 0, icmp(it, us, reply, 0, rest), noFlow},
			{"redirect", web, nil, 0, icmp(it, us, redirect, 0, make([]byte, 36)), icmpKind},
			{"error about a udp flow", nothing, udp(us, it, 4000, 53, ""), 0, icmpError(udp(us, it, 4000, 53, "")), pass},
			{"error about nothing sent", nothing, nil, 0, icmpError(udp(us, it, 4000, 53, "")), icmpNotRelated},
			{"error about another flow", nothing, udp(us, it, 4000, 53, ""), 0, icmpError(udp(us, it, 4000, 54, "")), icmpNotRelated},
			{"error about our answer from a listed port", web, nil, 0, icmpError(tcp(us, it, 80, 5000, packet.TCPSyn|packet.TCPAck)), pass},
			{"error about an echo", nothing, icmp(us, it, echo, 0, rest), 0, icmpError(icmp(us, it, echo, 0, rest)), pass},
			{"error about an echo reply", web, icmp(us, it, echo, 0, rest), 0, icmpError(icmp(us, it, reply, 0, rest)), icmpNotRelated},
			{"other protocol, answer", nothing, ipPacket(us, it, 47, make([]byte, 8)), flowOther, ipPacket(it, us, 47, make([]byte, 8)), pass},
			{"other protocol", web, nil, 0, ipPacket(it, us, 47, make([]byte, 8)), noFlow},
		}
		for _, tt := range tests {
			f, now := newFlows(), time.Unix(1000, 0)
			if tt.out != nil {
				if v := f.out(a, view(t, tt.out), &tt.in, now); v != pass {
					t.Errorf("%s: out: %d", tt.name, v)
				}
			}
			ip := view(t, tt.p)
			var orig *packet.IP
			if ip.ICMPError() {
				o, err := ip.Original(tt.p)
				if err != nil {
					t.Fatal(err)
				}
				orig = &o
			}
			now = now.Add(tt.wait)
			if tt.out != nil && tt.want == pass {
				if v := f.in(b, ip, orig, &tt.in, now); v == pass {
					t.Errorf("ipv%d %s: let in from another remote", version, tt.name)
				}
			}
			if v := f.in(a, ip, orig, &tt.in, now); v != tt.want {
				t.Errorf("ipv%d %s: verdict %d, want %d", version, tt.name, v, tt.want)
			}
		}
		f := newFlows()
		if v := f.out(a, view(t, icmp(us, it, redirect, 0, make([]byte, 36))), &nothing, time.Unix(1, 0)); v != icmpKind {
			t.Errorf("ipv%d: a redirect goes out: %d", version, v)
		}
	}
}

// TestFlowTCP follows a connection: long once answered, short once closed, new with a new SYN; inbound packets prolong nothing.
func TestFlowTCP(t *testing.T) {
	us, it, a, none := addr("10.0.0.1"), addr("10.0.0.2"), remoteN(1), Inbound{}
	f, now := newFlows(), time.Unix(1000, 0)
	out := func(flags byte) {
		f.out(a, view(t, tcp(us, it, 4000, 80, flags)), &none, now)
	}
	in := func(flags byte, want verdict) {
		t.Helper()
		if v := f.in(a, view(t, tcp(it, us, 80, 4000, flags)), nil, &none, now); v != want {
			t.Errorf("at %v: verdict %d, want %d", now.Sub(time.Unix(1000, 0)), v, want)
		}
	}
	out(packet.TCPSyn)
	in(packet.TCPSyn|packet.TCPAck, pass)
	out(packet.TCPAck)
	now = now.Add(flowTCP)
	in(packet.TCPAck, pass)
	now = now.Add(1)
	in(packet.TCPAck, noFlow) // what came in has not prolonged it

	out(packet.TCPSyn)
	in(packet.TCPSyn|packet.TCPAck, pass)
	out(packet.TCPAck)
	in(packet.TCPFin|packet.TCPAck, pass)
	out(packet.TCPFin | packet.TCPAck)
	now = now.Add(flowClosing)
	in(packet.TCPAck, pass)
	now = now.Add(1)
	in(packet.TCPAck, noFlow)

	out(packet.TCPSyn)
	in(packet.TCPSyn|packet.TCPAck, pass)
	out(packet.TCPAck)
	in(packet.TCPRst, pass)
	now = now.Add(flowClosing + 1)
	in(packet.TCPAck, noFlow)

	out(packet.TCPSyn)
	out(packet.TCPRst)
	out(packet.TCPSyn) // the same ports again
	now = now.Add(flowOpening)
	in(packet.TCPSyn|packet.TCPAck, pass)
}

func TestFlowFragments(t *testing.T) {
	a, b, in := remoteN(1), remoteN(2), Inbound{UDP: []Ports{{53, 53}}}
	f, now := newFlows(), time.Unix(1000, 0)
	first := packet.IP{Version: 4, Proto: 17, Fragment: true, More: true, FragmentID: 9, Transport: true, DstPort: 53}
	closed := first
	closed.DstPort, closed.FragmentID = 54, 10
	later := packet.IP{Version: 4, Proto: 17, Fragment: true, Offset: 1024, FragmentID: 9}
	other := later
	other.FragmentID = 10
	v6 := later
	v6.Version = 6
	step := func(name string, v, want verdict) {
		t.Helper()
		if v != want {
			t.Errorf("%s: verdict %d, want %d", name, v, want)
		}
	}
	step("later before first", f.in(a, &later, nil, &in, now), noFragment)
	step("first", f.in(a, &first, nil, &in, now), pass)
	step("later", f.in(a, &later, nil, &in, now.Add(fragmentTime)), pass)
	step("of another remote", f.in(b, &later, nil, &in, now), noFragment)
	step("of the other version", f.in(a, &v6, nil, &in, now), noFragment)
	step("first to a closed port", f.in(a, &closed, nil, &in, now), noFlow)
	step("its later", f.in(a, &other, nil, &in, now), noFragment)
	step("much later", f.in(a, &later, nil, &in, now.Add(fragmentTime+1)), noFragment)
	step("outbound later fragment", f.out(a, &later, &in, now), pass)
}

// TestFlowQuota: one remote, however many flows it is part of, does not push out another one's.
func TestFlowQuota(t *testing.T) {
	f, now, none := newFlows(), time.Unix(1000, 0), Inbound{}
	send := func(remote, port int) {
		f.out(remoteN(remote), &packet.IP{Version: 6, Proto: 17, Transport: true, SrcPort: uint16(port), DstPort: uint16(port >> 16)}, &none, now)
	}
	open := func(remote, port int) bool {
		return f.in(remoteN(remote), &packet.IP{Version: 6, Proto: 17, Transport: true, DstPort: uint16(port), SrcPort: uint16(port >> 16)}, nil, &none, now) == pass
	}
	send(1, 5)
	for i := range maxFlows + 10 {
		send(2, i)
	}
	if !open(1, 5) {
		t.Error("another remote's flow was pushed out")
	}
	if !open(2, maxFlows+9) || open(2, maxFlows+9-maxRemoteFlows) {
		t.Error("the remote's own flows: not the oldest ones went")
	}
	if n := f.flows.len(); n != maxRemoteFlows+1 {
		t.Errorf("%d flows", n)
	}
}

// FuzzFlows. Threat: a remote sends anything in any order, to get in what nobody asked for, or to keep a door open. The model: a packet may pass
// only when it is listed, or when an outbound packet of the same flow was sent within the longest life time of its protocol.
//
// Decoders: flows.in flows.out flows.first flows.related
func FuzzFlows(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 4 {
		program := make([]byte, 400)
		for i := range program {
			program[i] = byte(r.Uint32())
		}
		f.Add(program)
	}
	for flags := range byte(64) {
		var program []byte
		for typ := range byte(16) { // out, then in
			program = append(program, 0, flags&6, flags&9, typ, flags*5, 7, 0, flags&6, flags&9, typ, flags*5, 3|flags&24)
			program = append(program, 0, 0, 0, typ, flags<<2, 7, 0, 0, 0, typ, flags<<2, 3|8)
		}
		f.Add(program)
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		f, in := newFlows(), Inbound{TCP: []Ports{{2, 2}}}
		sent := map[flowKey]time.Time{}
		now := time.Unix(1000, 0)
		longest := map[uint8]time.Duration{1: flowICMP, 6: flowTCP, 17: flowUDP, 47: flowOther}
		odd, begun := newFlows(), map[fragmentKey]time.Time{}
		for i := 0; i+5 < len(program); i += 6 {
			p := program[i : i+6]
			now = now.Add(time.Duration(p[0]>>3) * time.Duration(p[0]>>3) * 7 * time.Second)
			if p[5]&3 == 3 { // fragments and ICMP of every kind, in a table of their own: a later fragment passes after its first one only
				remote := remoteN(int(p[1] & 1))
				ip := packet.IP{Version: 4, Proto: []uint8{1, 17, 6, 136}[p[1]>>1&3], Transport: true, Fragment: p[2]&1 != 0, FragmentID: uint32(p[2] >> 1 & 3), Type: p[3] & 15, SrcPort: uint16(p[4] & 3), DstPort: uint16(p[4] >> 2 & 3), TCPFlags: p[3]}
				if ip.Fragment && p[2]&8 != 0 {
					ip.Offset = 8
				}
				if p[5]&4 != 0 {
					odd.out(remote, &ip, &Inbound{TCP: []Ports{{2, 2}}}, now)
					continue
				}
				var orig *packet.IP
				if p[5]&8 != 0 {
					orig = &packet.IP{Version: 4, Proto: []uint8{1, 17, 6, 47}[p[4]>>4&3], Transport: true, Type: p[4] >> 6 << 3, SrcPort: uint16(p[4] & 3), DstPort: uint16(p[4] >> 2 & 3)}
				}
				k := fragmentKey{remote: remote, version: 4, proto: ip.Proto, id: ip.FragmentID}
				v := odd.in(remote, &ip, orig, &Inbound{Echo: p[5]&16 != 0, TCP: []Ports{{2, 2}}}, now)
				first, ok := begun[k]
				if v == pass && ip.Offset > 0 && (!ok || now.Sub(first) > fragmentTime) {
					t.Fatalf("op %d: let in %+v", i, ip)
				}
				if v == pass && ip.Offset == 0 && ip.Fragment {
					begun[k] = now
				}
				continue
			}
			remote := remoteN(int(p[1] & 1))
			ip := packet.IP{Version: 4, Proto: []uint8{1, 6, 17, 47}[p[1]>>1&3], Transport: true, TCPFlags: p[4]}
			k := flowKey{remote: remote, version: 4, proto: ip.Proto}
			local, port := uint16(p[2]&3), uint16(p[3]&3)
			switch ip.Proto {
			case 1:
				ip.EchoID = local
				k.local = local
			case 47:
				ip.Transport = false
			default:
				k.local, k.port = local, port
			}
			if p[0]&1 == 0 {
				ip.Type = packet.ICMPEcho
				if ip.Proto == 6 || ip.Proto == 17 {
					ip.SrcPort, ip.DstPort = local, port
				}
				if f.out(remote, &ip, &in, now) != pass {
					t.Fatal("outbound packet refused")
				}
				sent[k] = now
				continue
			}
			if ip.Proto == 6 || ip.Proto == 17 {
				ip.SrcPort, ip.DstPort = port, local
			}
			v := f.in(remote, &ip, nil, &in, now)
			last, ok := sent[k]
			may := ip.Proto == 6 && local == 2 || ok && now.Sub(last) <= longest[ip.Proto]
			if v == pass && !may {
				t.Fatalf("op %d: let in %+v", i, ip)
			}
			shortest := map[uint8]time.Duration{1: flowICMP, 17: flowUDP, 47: flowOther}[ip.Proto]
			if v != pass && ok && ip.Proto != 6 && now.Sub(last) <= shortest {
				t.Fatalf("op %d: answer refused: %+v", i, ip)
			}
		}
	})
}
