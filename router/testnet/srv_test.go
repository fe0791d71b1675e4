package testnet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"lokinetd/router/netdb"
)

// A client's service records are found by others with its contact, as many and as long as the configuration allows; who has a session with it learns at once of others.
func TestServiceRecords(t *testing.T) {
	bothWires(t, func(t *testing.T, quic bool) {
		n := New(t, Options{Relays: 8, Clients: 2, Latency: 10 * time.Millisecond, Seed: seed(t), QUIC: quic})
		a, b := n.Clients[0], n.Clients[1]
		var many []netdb.SRV
		for i := range 32 {
			many = append(many, netdb.SRV{Service: "_" + strings.Repeat("a", 62) + "._" + strings.Repeat("b", 62), Priority: 65535, Weight: 65535, Port: 65535,
				Target: fmt.Sprintf("%d.", 10+i) + strings.Repeat(strings.Repeat("c", 62)+".", 3) + "c.loki"})
		}
		b.Endpoint.Sessions.SetContact(netdb.FlagIPv6|netdb.FlagPFS, many)
		time.Sleep(10 * time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		want := func(want []netdb.SRV) {
			t.Helper()
			c, err := a.Endpoint.Sessions.Contact(ctx, b.Secret.Public())
			if err != nil || !slices.Equal(c.SRV, want) {
				t.Fatalf("%v, %v", c, err)
			}
		}
		if p := b.Endpoint.Sessions.Publication(); p.Locations != netdb.Locations || p.Err != nil {
			t.Fatalf("%+v", p)
		}
		want(many)
		if err := a.Endpoint.Sessions.Connect(ctx, b.Address()); err != nil {
			t.Fatal(err)
		}
		few := []netdb.SRV{{Service: "_http._tcp", Port: 80, Target: b.Secret.Public().String() + ".sesh"}}
		b.Endpoint.Sessions.SetContact(netdb.FlagIPv6|netdb.FlagPFS, few)
		time.Sleep(6 * time.Second)
		want(few)
	})
}
