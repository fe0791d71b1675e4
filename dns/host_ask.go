package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"lokinetd/router/key"
)

// Answers fails unless our name server answers at the first of these addresses, for this host's programs. It answers for a bare domain of ours in every state.
func Answers(ctx context.Context, listen []netip.AddrPort) error {
	at := reachable(listen)
	if len(at) == 0 {
		return fmt.Errorf("dns: the name server listens nowhere")
	}
	q := new(dns.Msg)
	q.SetQuestion(key.TLDLoki+".", dns.TypeSOA)
	c := dns.Client{Timeout: time.Second}
	reply, _, err := c.ExchangeContext(ctx, q, at[0].String())
	if err != nil {
		return fmt.Errorf("dns: the name server does not answer at %s: %w", at[0], err)
	}
	if reply.Rcode != dns.RcodeSuccess || len(reply.Answer) != 1 {
		return fmt.Errorf("dns: somebody else answers at %s", at[0])
	}
	return nil
}

// StandsIn reports whether a guard answers there, in the daemon's place.
func StandsIn(ctx context.Context, listen []netip.AddrPort) bool {
	at := reachable(listen)
	if len(at) == 0 {
		return false
	}
	q := new(dns.Msg).SetQuestion("localhost."+key.TLDLoki+".", dns.TypeA)
	q.SetEdns0(ednsSize, false)
	c := dns.Client{Timeout: time.Second}
	reply, _, err := c.ExchangeContext(ctx, q, at[0].String())
	if err != nil || reply.IsEdns0() == nil {
		return false
	}
	return slices.ContainsFunc(reply.IsEdns0().Option, func(o dns.EDNS0) bool {
		e, ok := o.(*dns.EDNS0_EDE)
		return ok && e.ExtraText == stoppedText
	})
}
