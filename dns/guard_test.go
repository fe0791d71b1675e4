package dns

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestGuard: a stand-in keeps names and addresses of ours in, hands on the others to whom the host asked before, follows when those change, and can be told from a daemon.
func TestGuard(t *testing.T) {
	upstream := func() netip.AddrPort {
		t.Helper()
		sockets, err := Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
		if err != nil {
			t.Fatal(err)
		}
		server := &dns.Server{PacketConn: sockets.Packet[0], Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			if name := q.Question[0].Name; name != "example.com." {
				t.Errorf("the upstream is asked for %s", name)
			}
			w.WriteMsg(new(dns.Msg).SetReply(q))
		})}
		go server.ActivateAndServe()
		t.Cleanup(func() { server.Shutdown(); sockets.Close() })
		return sockets.Addrs()[0]
	}
	sockets, err := Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	at := sockets.Addrs()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Guard(ctx, GuardConfig{Sockets: sockets, Upstream: []netip.AddrPort{upstream()}, Ranges: func() []netip.Prefix { return testLink.Own }})
	}()
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
	}{
		{"example.com.", dns.TypeA, dns.RcodeSuccess},
		{named("ALICE.loki."), dns.TypeA, dns.RcodeServerFailure},
		{"name.loki.", dns.TypeAAAA, dns.RcodeServerFailure},
		{"name.loki.example.com.", dns.TypeAAAA, dns.RcodeNameError}, // a search list
		{"localhost.loki.", dns.TypeA, dns.RcodeServerFailure},
		{"random.snode.", dns.TypeCNAME, dns.RcodeServerFailure},
		{"loki.", dns.TypeSOA, dns.RcodeSuccess},
		{"5.5.16.172.in-addr.arpa.", dns.TypePTR, dns.RcodeServerFailure},
		{"use-application-dns.net.", dns.TypeA, dns.RcodeNameError},
	} {
		reply, took, err := new(dns.Client).Exchange(new(dns.Msg).SetQuestion(c.name, c.qtype), at[0].String())
		if err != nil || reply.Rcode != c.rcode || took > time.Second {
			t.Errorf("%s: %v, %v after %v", c.name, reply, err, took)
		}
	}
	if !StandsIn(t.Context(), at) || Answers(t.Context(), at) != nil {
		t.Error("it is not known as what it is")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if StandsIn(t.Context(), at) {
		t.Error("and still stands in")
	}
}

// TestFormer: whom the host asked before all names came to us, also after that has changed; nobody who may ask us in turn. A daemon adopts them if all names come to us.
func TestFormer(t *testing.T) {
	us, ours := addrPorts("127.3.2.1"), "# "+mark+"\nnameserver 127.3.2.1\n"
	for _, c := range []struct {
		name    string
		host    tree
		want    string
		adopted bool
	}{
		{"file", tree{resolvConf: ours, resolvBackup: "nameserver 192.0.2.1\nnameserver 192.0.2.2\n"}, "192.0.2.1, 192.0.2.2", true},
		{"file, and a resolver on this host", tree{resolvConf: ours, resolvBackup: "nameserver 127.0.0.1\n"}, "", true},
		{"resolvconf", tree{resolvConf: "nameserver 127.3.2.1\n", "/run/resolvconf/interface/eth0": "nameserver 192.0.2.3\n", "/run/resolvconf/interface/lo.lokinetd": "nameserver 127.3.2.1\n"}, "192.0.2.3", true},
		{"given back", tree{resolvConf: "nameserver 192.0.2.4\n"}, "192.0.2.4", false},
		{"nothing", nil, "", false},
	} {
		p := plant(t, c.host)
		if got := list(p.Former(us)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if got := list(p.Adopted(us)); got != "" && !c.adopted || got != c.want && c.adopted {
			t.Errorf("%s: adopted %q", c.name, got)
		}
	}
}
