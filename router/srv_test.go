package router

import (
	"context"
	"slices"
	"testing"

	"lokinetd/config"
	"lokinetd/dns"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

// TestRecords: the service records that the configuration takes are ones that a contact may bear, and what stands for the service itself is its address.
func TestRecords(t *testing.T) {
	self := key.Generate().Public()
	var s config.Service
	for _, text := range []string{"_http._tcp 1 2 80", "_http._tcp 3 4 5 localhost.loki", "_a-b._udp 0 0 0 .", "_a._b 65535 65535 65535 www.chat.loki", "_a._b 0 0 1 " + key.Address{Key: self}.String()} {
		var r config.SRV
		if err := r.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		s.SRV = append(s.SRV, r)
	}
	address := self.String() + ".sesh"
	got := records(s, self)
	srv := func(service string, priority, weight, port uint16, target string) netdb.SRV {
		return netdb.SRV{Service: service, Priority: priority, Weight: weight, Port: port, Target: target}
	}
	want := []netdb.SRV{srv("_http._tcp", 1, 2, 80, address), srv("_http._tcp", 3, 4, 5, address), srv("_a-b._udp", 0, 0, 0, "."),
		srv("_a._b", 65535, 65535, 65535, "www.chat.loki"), srv("_a._b", 0, 0, 1, self.String()+".loki")}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	for _, r := range got {
		if err := r.Check(); err != nil {
			t.Error(err)
		}
	}
}

// TestServiceRecords: a host answers for the records of its own services by itself, as the configuration has them now.
func TestServiceRecords(t *testing.T) {
	secret := key.Generate()
	he := &hostEndpoint{Endpoint: &Endpoint{Config: EndpointConfig{Secret: secret}}}
	h := &host{}
	h.served.Store(&[]*hostEndpoint{he})
	if _, err := (source{h}).Services(context.Background(), key.Address{Key: secret.Public(), Kind: key.Relay}); err != dns.ErrNotExist {
		t.Errorf("of a relay: %v", err)
	}
	for _, port := range []uint16{80, 8080} {
		he.service.Store(&config.Service{SRV: []config.SRV{{Service: "_http._tcp", Port: port}}})
		got, err := source{h}.Services(context.Background(), he.Address())
		if want := (dns.SRV{Service: "_http._tcp", Port: port, Target: secret.Public().String() + ".sesh"}); err != nil || !slices.Equal(got, []dns.SRV{want}) {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
}
