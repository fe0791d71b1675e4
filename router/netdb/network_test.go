package netdb

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"lokinetd/router/bt"
	"lokinetd/router/key"
	"lokinetd/router/seal"
)

var networkNow = time.Unix(1800000000, 0)

func demoContact(n int, network uint64) *RelayContact {
	return SignRelayContact(secret(n), RelayContact{Addr: netip.MustParseAddrPort("10.0.0.1:1190"), Network: network, Time: networkNow, Sessions: true})
}

func demoNetwork() *NetworkFile {
	f := &NetworkFile{
		Name: "demo-1", Network: 2, Serial: 7, Private: true, UniqueRange: true,
		Names: map[string]key.Public{"web.loki": secret(2000).Public(), "a-b.loki": secret(2001).Public()},
	}
	for n := range 5 {
		f.Relays = append(f.Relays, secret(1000+n).Public())
	}
	f.Contacts = []*RelayContact{demoContact(1000, 2), demoContact(1003, 2)}
	return f
}

func sameNetwork(a, b *NetworkFile) bool {
	return a.Name == b.Name && a.Network == b.Network && a.Serial == b.Serial && a.Private == b.Private && a.UniqueRange == b.UniqueRange &&
		slices.Equal(a.Relays, b.Relays) && maps.Equal(a.Names, b.Names) &&
		slices.EqualFunc(a.Contacts, b.Contacts, func(a, b *RelayContact) bool { return bytes.Equal(a.Raw(), b.Raw()) })
}

func TestNetworkFile(t *testing.T) {
	operator := secret(3000)
	f := demoNetwork()
	before := fmt.Sprint(f.Relays)
	raw, err := f.Sign(operator)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(f.Relays) != before || f.Operator != (key.Public{}) {
		t.Error("Sign changed the file")
	}
	got, err := ParseNetworkFile(raw, operator.Public(), networkNow.Add(2*RelayLifetime)) // its contacts may have expired
	if err != nil {
		t.Fatal(err)
	}
	sortKeys(f.Relays)
	slices.SortFunc(f.Contacts, func(a, b *RelayContact) int { return a.ID.Compare(b.ID) })
	if !sameNetwork(got, f) || got.Operator != operator.Public() || got.Rules() != (Rules{Network: 2, Private: true}) {
		t.Errorf("%+v", got)
	}
	if again, err := got.Sign(operator); err != nil || !bytes.Equal(again, raw) {
		t.Errorf("signed again: %v", err)
	}
	if o, err := NetworkFileOperator(raw); err != nil || o != operator.Public() {
		t.Errorf("operator %v, %v", o, err)
	}
	if _, err := ParseNetworkFile(raw, secret(3001).Public(), networkNow); err == nil {
		t.Error("another operator's file is accepted")
	}
	empty := &NetworkFile{Name: "x", Network: 2}
	if raw, err = empty.Sign(operator); err != nil {
		t.Fatal(err)
	}
	if got, err := ParseNetworkFile(raw, operator.Public(), networkNow); err != nil || !sameNetwork(got, empty) {
		t.Errorf("%+v, %v", got, err)
	}
	for serial, ok := range map[uint64]bool{0: true, 6: true, 7: true, 8: false} {
		if (f.Supersedes(serial) == nil) != ok {
			t.Errorf("after serial %d: %v", serial, f.Supersedes(serial))
		}
	}
	for n, want := range []Enough{TooFew, TooFew, TooFew, TooFew, Few, Few, Advised, Advised} {
		if EnoughRelays(n) != want {
			t.Errorf("%d relays: %d", n, EnoughRelays(n))
		}
	}
}

func TestNetworkFileDamaged(t *testing.T) {
	operator := secret(3000)
	f := demoNetwork()
	f.Relays, f.Contacts = f.Relays[:2], f.Contacts[:1]
	delete(f.Names, "a-b.loki")
	raw, err := f.Sign(operator)
	if err != nil {
		t.Fatal(err)
	}
	damaged(t, raw, func(b []byte) error {
		_, err := ParseReservedNetworkFile(b, operator.Public(), networkNow)
		return err
	})
}

// What Sign refuses, and what a file that an operator's other tool signed is refused for.
func TestNetworkFileRules(t *testing.T) {
	operator := secret(3000)
	for name, change := range map[string]func(f *NetworkFile){
		"no name":                  func(f *NetworkFile) { f.Name = "" },
		"name in capitals":         func(f *NetworkFile) { f.Name = "Demo" },
		"name of 33":               func(f *NetworkFile) { f.Name = strings.Repeat("a", 33) },
		"name like an option":      func(f *NetworkFile) { f.Name = "-a" },
		"name as a path":           func(f *NetworkFile) { f.Name = "../a" },
		"relay twice":              func(f *NetworkFile) { f.Relays = append(f.Relays, f.Relays[0]) },
		"relay that is no key":     func(f *NetworkFile) { f.Relays[1] = key.Public{} },
		"too many relays":          func(f *NetworkFile) { f.Relays = make([]key.Public, MaxRelays+1) },
		"contact twice":            func(f *NetworkFile) { f.Contacts = append(f.Contacts, f.Contacts[0]) },
		"contact not registered":   func(f *NetworkFile) { f.Contacts = append(f.Contacts, demoContact(1900, 2)) },
		"contact of another net":   func(f *NetworkFile) { f.Contacts[0] = demoContact(1000, 3) },
		"contact private, not so":  func(f *NetworkFile) { f.Private = false },
		"malformed name":           func(f *NetworkFile) { f.Names["web"] = f.Names["web.loki"] },
		"reserved name":            func(f *NetworkFile) { f.Names["localhost.loki"] = f.Names["web.loki"] },
		"name in capitals to find": func(f *NetworkFile) { f.Names["Web.loki"] = f.Names["web.loki"] },
		"name of no key":           func(f *NetworkFile) { f.Names["web.loki"] = key.Public{1} },
	} {
		f := demoNetwork()
		change(f)
		if _, err := f.Sign(operator); err == nil || !strings.HasPrefix(err.Error(), "netdb: network file: ") {
			t.Errorf("%s: signed, %v", name, err)
		}
		f.Operator = operator.Public()
		if !strings.HasPrefix(name, "too many") {
			sortKeys(f.Relays)
			slices.SortFunc(f.Contacts, func(a, b *RelayContact) int { return a.ID.Compare(b.ID) })
		}
		b := f.build()
		sig := operator.Sign(b.Prefix())
		if _, err := ParseNetworkFile(b.Bytes("~", sig[:]).End(), operator.Public(), networkNow); err == nil || !strings.HasPrefix(err.Error(), "netdb: network file: ") {
			t.Errorf("%s: read, %v", name, err)
		}
	}
	for _, id := range []uint64{0, 1} {
		f := demoNetwork()
		f.Network, f.Contacts = id, nil
		raw, err := f.Sign(operator)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseNetworkFile(raw, operator.Public(), networkNow); err == nil {
			t.Errorf("network %d is accepted", id)
		}
		if got, err := ParseReservedNetworkFile(raw, operator.Public(), networkNow); err != nil || got.Network != id {
			t.Errorf("network %d: %v", id, err)
		}
	}
	f := demoNetwork()
	f.Relays[0], f.Relays[1] = f.Relays[1], f.Relays[0]
	f.Operator = operator.Public()
	b := f.build() // in the order given
	sig := operator.Sign(b.Prefix())
	if _, err := ParseNetworkFile(b.Bytes("~", sig[:]).End(), operator.Public(), networkNow); err == nil {
		t.Error("relays in any order are accepted")
	}
	f = demoNetwork()
	sortKeys(f.Relays)
	f.Contacts, f.Names, f.Operator = nil, nil, operator.Public()
	whole := string(f.build().Prefix())
	for from, to := range map[string]string{
		"lokinetd network 1": "lokinetd network 2", "1:fi3e": "1:fi-1e", "1:ti7e": "1:t1:7", "1:sde": "1:sle", "1:#i2e": "1:#le", "1:cle": "1:cde", "1:n6:demo-1": "",
	} {
		content := strings.Replace(whole, from, to, 1)
		if content == whole {
			t.Fatal(from)
		}
		if _, err := ParseNetworkFile(signedDict(operator, content[1:]), operator.Public(), networkNow); err == nil {
			t.Errorf("%s instead of %s is accepted", to, from)
		}
	}
	for _, extra := range []string{"1:fi7e", "1:fi4611686018427387907e"} { // flags to come
		if f, err := ParseNetworkFile(signedDict(operator, strings.Replace(whole, "1:fi3e", extra, 1)[1:]), operator.Public(), networkNow); err != nil || !f.Private || !f.UniqueRange {
			t.Errorf("%s: %v", extra, err)
		}
	}
	if _, err := ParseNetworkFile(make([]byte, MaxNetworkFile+1), operator.Public(), networkNow); err == nil {
		t.Error("a file of any size is read")
	}
	// A relay contact signed with the operator's key is no network file, and the other way round.
	if _, err := ParseNetworkFile(demoContact(3000, 2).Raw(), operator.Public(), networkNow); err == nil {
		t.Error("a relay contact is accepted")
	}
	raw, _ := demoNetwork().Sign(operator)
	if _, err := ParseRelayContact(raw, networkNow, Rules{Network: 2, Private: true}); err == nil {
		t.Error("a network file is accepted as a relay contact")
	}
}

// A client's question is answered so that it can open it, and only with the name (protocol 1 section 8).
func TestNameIndex(t *testing.T) {
	f := demoNetwork()
	index := f.NameIndex()
	request, err := DecodeResolveSNS(EncodeResolveSNS(seal.NameHash("web.loki")))
	if err != nil {
		t.Fatal(err)
	}
	reply := index.Reply(request)
	if bytes.Equal(reply, index.Reply(request)) {
		t.Error("the nonce is not fresh")
	}
	record, nonce, err := DecodeResolvedSNS(reply)
	if err != nil {
		t.Fatal(err)
	}
	if owner, err := seal.OpenName("web.loki", record, &nonce); err != nil || owner != f.Names["web.loki"] {
		t.Errorf("%v, %v", owner, err)
	}
	if _, err := seal.OpenName("a-b.loki", record, &nonce); err == nil {
		t.Error("opened with another name")
	}
	if _, _, err := DecodeResolvedSNS(index.Reply(seal.NameHash("none.loki"))); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// Threat: a network file is downloaded; until its signature is found to be the operator's, it is a stranger's. What is read of it must not
// panic and must come back from what we would write.
//
// Decoders: ParseNetworkFile ParseReservedNetworkFile NetworkFileOperator decodeNetwork readNames NetworkFile.check validNetworkName
func FuzzNetworkFile(f *testing.F) {
	raw, _ := demoNetwork().Sign(secret(3000))
	f.Add(raw)
	f.Add(emptyNetwork())
	for _, spoil := range []func(n *NetworkFile){
		func(n *NetworkFile) { n.Name = "" }, func(n *NetworkFile) { n.Name = "Demo" }, func(n *NetworkFile) { n.Relays = append(n.Relays, n.Relays[0]) },
		func(n *NetworkFile) { n.Relays[4] = key.Public{31: 0xff} }, func(n *NetworkFile) { n.Contacts = append(n.Contacts, n.Contacts[0]) },
		func(n *NetworkFile) { n.Contacts = append(n.Contacts, demoContact(1001, 3)) }, func(n *NetworkFile) { n.Relays = n.Relays[:1] }, func(n *NetworkFile) { n.Private = false },
		func(n *NetworkFile) { n.Network, n.Contacts = 1, nil }, func(n *NetworkFile) { n.Names["A.loki"] = key.Public{} }, func(n *NetworkFile) { n.Names["a.loki"] = key.Public{} }, func(n *NetworkFile) { n.Relays, n.Contacts, n.Names = nil, nil, nil },
	} {
		n := demoNetwork()
		n.Operator = secret(3000).Public()
		slices.SortFunc(n.Relays, key.Public.Compare)
		slices.SortFunc(n.Contacts, func(a, b *RelayContact) int { return a.ID.Compare(b.ID) })
		spoil(n)
		for _, s := range [][2]string{{"", ""}, {"1:rl", "1:rl1:x"}, {"1:sd8:", "1:sl8:"}, {"8:web.loki32:", "8:web.loki0:8:yyy.loki32:"}, {"8:web.loki32:", "8:web.loki31:"}, {"1:ti7e", "1:ti-7e"}, {"1:cld", "1:cli1ed"}, {"1:cld", "1:clded"}, {"1:sd8:a-b.loki", "1:sd8:a-b.Loki"}} {
			signed := strings.Replace(string(n.build().Prefix()), s[0], s[1], 1)
			sig := secret(3000).Sign([]byte(signed))
			f.Add([]byte(signed + "1:~64:" + string(sig[:]) + "e"))
		}
	}
	if _, err := ParseNetworkFile(make([]byte, MaxNetworkFile+1), key.Public{}, networkNow); err == nil {
		f.Fatal("too large")
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		operator, err := NetworkFileOperator(raw)
		if n, bad := ParseNetworkFile(raw, secret(3000).Public(), networkNow); bad == nil && (err != nil || operator != n.Operator || n.Operator != secret(3000).Public() || n.Network < 2) {
			t.Fatalf("accepted %+v", n)
		}
		ParseNetworkFile(raw, operator, networkNow)
		n, contacts, err := decodeNetwork(raw)
		if err != nil {
			return
		}
		for contacts.Next() {
			c, err := decodeRelay(contacts.Raw(), networkNow, Rules{Network: n.Network, Private: true, Expired: true})
			if err != nil {
				return
			}
			n.Contacts = append(n.Contacts, c)
		}
		n.check()
		for range 2 { // as one who signs has to be told
			public := *n
			public.Private = false
			public.check()
			n.Network++
			n.check()
			n.Network -= 2
		}
		n.Network += 2
		again, contacts, err := decodeNetwork(n.build().Bytes("~", make([]byte, 64)).End())
		if err != nil {
			t.Fatal(err)
		}
		for contacts.Next() {
			again.Contacts = append(again.Contacts, &RelayContact{raw: contacts.Raw()})
		}
		if !sameNetwork(n, again) || n.Operator != again.Operator {
			t.Fatalf("%+v came back as %+v", n, again)
		}
	})
}

// emptyNetwork is the least that has the form of a network file.
func emptyNetwork() []byte {
	return bt.NewDict(nil).String("", networkMagic).Int("#", 0).Raw("c", []byte("le")).Int("f", 0).Bytes("k", make([]byte, 32)).String("n", "").
		Raw("r", []byte("le")).Raw("s", []byte("de")).Int("t", 0).Bytes("~", make([]byte, 64)).End()
}
