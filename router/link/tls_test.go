package link

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"lokinetd/router/key"
)

// Alerts of RFC 8446 section 6 that the tests below expect.
const (
	none                = -1
	badCertificate      = 42
	unsupportedCert     = 43
	decodeError         = 50
	decryptError        = 51
	unsupportedExt      = 110
	noApplicationProto  = 120
	accepted            = decryptError // of an altered message: read without complaint, then the signature does not match
	extClientCertType   = 19
	extServerCertType   = 20
	msgClientHello      = 1
	msgEncryptedExts    = 8
	msgCertificate      = 11
	initialLevel        = tls.QUICEncryptionLevelInitial
	handshakeLevel      = tls.QUICEncryptionLevelHandshake
	transportErrorCrypt = 0x100
)

// Without raw keys every test here would fail in a way of its own.
func TestMain(m *testing.M) {
	if err := SelfTest(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestSelfTest(t *testing.T) {
	if err := SelfTest(); err != nil {
		t.Fatal(err)
	}
}

// The rules of protocol 2 section 2.2, and what each side learns.
func TestVerification(t *testing.T) {
	relay, other, stranger := key.Generate(), key.Generate(), key.Generate()
	registered := func(k key.Public) bool { return k == other.Public() || k == relay.Public() }
	keyless := func(c *tls.Config) { c.Certificates = nil }
	show := func(s *key.Secret) func(*tls.Config) {
		return func(c *tls.Config) { c.Certificates = []tls.Certificate{rawCertificate(s)} }
	}
	for _, c := range []struct {
		name   string
		kind   Kind
		self   *key.Secret
		remote key.Public
		change func(*tls.Config)
		want   error
		seen   key.Public // by the listener
	}{
		{"relay", Relay, other, relay.Public(), nil, nil, other.Public()},
		{"client", Client, nil, relay.Public(), nil, nil, key.Public{}},
		{"bootstrap", Bootstrap, nil, relay.Public(), nil, nil, key.Public{}},
		{"client ignores own key", Client, other, relay.Public(), nil, nil, key.Public{}},
		{"client shows a key", Client, nil, relay.Public(), show(stranger), nil, stranger.Public()},
		{"bootstrap shows a key", Bootstrap, nil, relay.Public(), show(stranger), nil, stranger.Public()},
		{"client shows the relay's key", Client, nil, relay.Public(), show(relay), nil, relay.Public()},
		{"relay keyless", Relay, other, relay.Public(), keyless, errKeyless, key.Public{}},
		{"relay unregistered", Relay, stranger, relay.Public(), nil, errUnregistered, key.Public{}},
		{"relay dials itself", Relay, relay, relay.Public(), nil, errOwnKey, key.Public{}},
		{"relay, wrong key", Relay, other, stranger.Public(), nil, errWrongKey, key.Public{}},
		{"client, wrong key", Client, nil, stranger.Public(), nil, errWrongKey, key.Public{}},
		{"bootstrap, no key known", Bootstrap, nil, key.Public{}, nil, errWrongKey, key.Public{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dial, listen := dialTLS(c.kind, c.self, c.remote), listenTLS(relay, registered)
			if c.change != nil {
				c.change(dial)
			}
			var seen key.Public
			watch(listen, &seen)
			err := handshake(dial, listen, nil)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if want := badCertificate; c.want != nil && alertOf(err) != want {
				t.Errorf("alert %d, want %d", alertOf(err), want)
			}
			if seen != c.seen {
				t.Errorf("listener saw %v, want %v", seen, c.seen)
			}
		})
	}
	if err := handshake(dialTLS(Relay, other, relay.Public()), listenTLS(relay, nil), nil); !errors.Is(err, errUnregistered) {
		t.Errorf("no registry: %v", err)
	}
}

// watch stores the key that the peer of a handshake showed, if the handshake gets past the rules.
func watch(c *tls.Config, seen *key.Public) {
	rules := c.VerifyConnection
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if err := rules(s); err != nil {
			return err
		}
		var err error
		*seen, err = peerKey(s)
		return err
	}
}

func alertOf(err error) int {
	if a, ok := errors.AsType[tls.AlertError](err); ok {
		return int(a)
	}
	return none
}

// A listener that has none of the groups for which the dialler sent a share asks for another ClientHello; the extensions
// are in both.
func TestHelloRetryRequest(t *testing.T) {
	relay, other := key.Generate(), key.Generate()
	for _, kind := range []Kind{Relay, Client} {
		listen := listenTLS(relay, func(key.Public) bool { return true })
		listen.CurvePreferences = []tls.CurveID{tls.CurveP256}
		hellos := 0
		err := handshake(dialTLS(kind, other, relay.Public()), listen, func(level tls.QUICEncryptionLevel, data []byte) []byte {
			if data[0] == msgClientHello {
				hellos++
			}
			return data
		})
		if err != nil || hellos != 2 {
			t.Errorf("%v: %v after %d ClientHellos", kind, err, hellos)
		}
	}
}

// The reference's tickets announce 32768 bytes of early data, which RFC 9001 section 4.6.1 forbids (protocol 2 section
// 2.3). They do no harm as long as there is no cache to put them in.
func TestTicketsAreIgnored(t *testing.T) {
	ticket := joinMessage(4, slices.Concat(
		[]byte{0, 0, 0x0e, 0x10, 1, 2, 3, 4}, // lifetime, age
		[]byte{1, 0},                         // nonce
		[]byte{0, 2, 0xaa, 0xbb},             // the ticket
		joinExtensions([]extension{{42, []byte{0, 0, 0x80, 0}}}),
	))
	relay := key.Generate()
	for _, cached := range []bool{false, true} {
		config := dialTLS(Client, nil, relay.Public())
		if cached {
			config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		}
		dialler := tls.QUICClient(&tls.QUICConfig{TLSConfig: config, EnableSessionEvents: true})
		listener := tls.QUICServer(&tls.QUICConfig{TLSConfig: listenTLS(relay, nil)})
		defer dialler.Close()
		defer listener.Close()
		if err := converse(dialler, listener, nil); err != nil {
			t.Fatal(err)
		}
		if err := dialler.HandleData(tls.QUICEncryptionLevelApplication, ticket); (err != nil) != cached {
			t.Errorf("with a cache %v: %v", cached, err)
		}
	}
}

// The extensions as protocol 2 section 2.1 gives them, byte by byte.
func TestClientHello(t *testing.T) {
	for kind, want := range []map[uint16]string{
		Relay:     {16: "001110" + hex.EncodeToString([]byte("Session_Router_R")), extServerCertType: "0102", extClientCertType: "0102"},
		Client:    {16: "001110" + hex.EncodeToString([]byte("Session_Router_C")), extServerCertType: "0102"},
		Bootstrap: {16: "001211" + hex.EncodeToString([]byte("Session_Router_BS")), extServerCertType: "0102"},
	} {
		want[0] = "000c000009" + hex.EncodeToString([]byte("localhost"))
		want[10] = "0004001d0017" // X25519, P-256
		want[43] = "020304"       // TLS 1.3 and nothing else
		hello := clientHello(t, dialTLS(Kind(kind), key.Generate(), key.Generate().Public()))
		_, exts := splitHello(hello)
		if len(hello) > 1000 {
			t.Errorf("%v: ClientHello of %d bytes: with the frames around it, it must fit into one packet of 1200", Kind(kind), len(hello))
		}
		for _, id := range []uint16{0, 10, 16, extServerCertType, extClientCertType, 43} {
			if body, _ := find(exts, id); hex.EncodeToString(body) != want[id] {
				t.Errorf("%v: extension %d is %x, want %s", Kind(kind), id, body, want[id])
			}
		}
	}
}

// Every message of a peer in which raw keys are negotiated or shown, changed on its way. The alert is of who refuses it.
func TestAlteredHandshake(t *testing.T) {
	relay, other := key.Generate(), key.Generate()
	listen := func() *tls.Config { return listenTLS(relay, func(key.Public) bool { return true }) }
	dial := func(k Kind) *tls.Config { return dialTLS(k, other, relay.Public()) }
	hello := func(id uint16, body ...byte) func(byte, []byte) []byte {
		return func(kind byte, msg []byte) []byte {
			if kind != msgClientHello {
				return msg
			}
			head, exts := splitHello(msg)
			return joinHello(head, put(exts, id, body))
		}
	}
	answer := func(id uint16, body ...byte) func(byte, []byte) []byte {
		return func(kind byte, msg []byte) []byte {
			if kind != msgEncryptedExts {
				return msg
			}
			return joinAnswer(put(splitExtensions(msg[6:]), id, body))
		}
	}
	certificate := func(which int, entries ...[]byte) func(byte, []byte) []byte {
		return func(kind byte, msg []byte) []byte {
			if kind != msgCertificate {
				return msg
			}
			which--
			if which != 0 {
				return msg
			}
			return joinCertificate(entries...)
		}
	}
	const server, client = 1, 2 // in this order they send theirs
	spki := encodeSPKI(relay.Public())
	absent := []byte(nil)
	for _, c := range []struct {
		name  string
		kind  Kind
		alter func(kind byte, msg []byte) []byte
		want  int
	}{
		{"nothing", Relay, func(_ byte, msg []byte) []byte { return msg }, none},

		{"server type not offered", Client, hello(extServerCertType, absent...), unsupportedCert},
		{"server type X.509 only", Client, hello(extServerCertType, 1, 0), unsupportedCert},
		{"server types X.509 and raw", Client, hello(extServerCertType, 2, 0, 2), accepted},
		{"server types, none", Client, hello(extServerCertType, 0), decodeError},
		{"server types, cut", Client, hello(extServerCertType, 2, 2), decodeError},
		{"server types, too long", Client, hello(extServerCertType, 1, 2, 2), decodeError},
		{"client type X.509 only", Relay, hello(extClientCertType, 1, 0), accepted},
		{"client types, none", Client, hello(extClientCertType, 0), decodeError},
		{"client types, cut", Client, hello(extClientCertType, 3, 2, 0), decodeError},
		{"client type offered without asking the dialler", Client, hello(extClientCertType, 1, 2), unsupportedExt},
		{"no ALPN", Client, hello(16, absent...), noApplicationProto},

		{"server type not answered", Client, answer(extServerCertType, absent...), unsupportedCert},
		{"server type answered X.509", Client, answer(extServerCertType, 0), unsupportedCert},
		{"server type answered twice", Client, answer(extServerCertType, 2, 2), decodeError},
		{"client type answered, not asked", Client, answer(extClientCertType, 2), unsupportedExt},
		{"client type answered X.509", Relay, answer(extClientCertType, 0), unsupportedCert},
		{"client type answered as a list", Relay, answer(extClientCertType, 1, 2), decodeError},
		{"client type not answered", Relay, answer(extClientCertType, absent...), accepted},

		{"server key", Client, certificate(server, spki), none},
		{"server key twice", Client, certificate(server, spki, spki), accepted},
		{"server key, then junk", Client, certificate(server, spki, spki[:43]), decodeError},
		{"server key cut", Client, certificate(server, spki[:43]), decodeError},
		{"server key too long", Client, certificate(server, append(bytes.Clone(spki), 0)), decodeError},
		{"server key of X25519", Client, certificate(server, bytes.Replace(spki, []byte{0x65, 0x70}, []byte{0x65, 0x6e}, 1)), decodeError},
		{"server key all zeros", Client, certificate(server, encodeSPKI(key.Public{})), badCertificate},
		{"client key not negotiated", Client, certificate(client, spki), unsupportedCert},
		{"client key cut", Relay, certificate(client, spki[:43]), decodeError},
		{"client key all zeros", Relay, certificate(client, encodeSPKI(key.Public{})), badCertificate},
		{"client key of another", Relay, certificate(client, encodeSPKI(key.Generate().Public())), decryptError},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := handshake(dial(c.kind), listen(), eachMessage(c.alter))
			if got := alertOf(err); got != c.want {
				t.Errorf("alert %d, want %d (%v)", got, c.want, err)
			}
		})
	}
}

// Everything that is not ours behaves as in an unchanged Go: extensions 19 and 20 are neither sent nor read, certificates
// are X.509. (The toolchain's own tests of crypto/tls run with the changes in .ci/run overlay.)
func TestOthersUnchanged(t *testing.T) {
	cert := x509Certificate(t)
	malformed := func(kind byte, msg []byte) []byte {
		switch kind {
		case msgClientHello:
			head, exts := splitHello(msg)
			return joinHello(head, put(put(exts, extServerCertType, []byte{0}), extClientCertType, []byte{9, 2}))
		case msgEncryptedExts:
			return joinAnswer(put(put(splitExtensions(msg[6:]), extServerCertType, []byte{2}), extClientCertType, []byte{}))
		}
		return msg
	}
	for _, c := range []struct {
		name           string
		dials, listens []string
	}{
		{"other", []string{"h2"}, []string{"h2", "http/1.1"}},
		{"mixed dialler", []string{"Session_Router_R", "h2"}, []string{"h2"}},
		{"mixed dialler, ours chosen", []string{"h2", "Session_Router_R"}, []string{"Session_Router_R"}},
		{"mixed both", []string{"Session_Router_R", "h2"}, []string{"Session_Router_R", "h2"}},
		{"alike", []string{"session_router_R"}, []string{"session_router_R"}},
		{"within", []string{"xSession_Router_R"}, []string{"xSession_Router_R"}},
	} {
		dial := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: c.dials, RootCAs: cert.pool, ServerName: "host.test", Certificates: cert.list}
		listen := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: c.listens, Certificates: cert.list, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: cert.pool}
		var shown [2][]*x509.Certificate
		for i, side := range []*tls.Config{dial, listen} {
			side.VerifyConnection = func(s tls.ConnectionState) error {
				shown[i] = s.PeerCertificates
				return nil
			}
		}
		if err := handshake(dial, listen, nil); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for i := range shown {
			if len(shown[i]) != 1 || shown[i][0].Subject.CommonName != "host.test" {
				t.Errorf("%s: certificate shown to side %d is not the X.509 one", c.name, i)
			}
		}
		_, exts := splitHello(clientHello(t, dial))
		for _, id := range []uint16{extServerCertType, extClientCertType} {
			if _, found := find(exts, id); found {
				t.Errorf("%s: extension %d is sent", c.name, id)
			}
		}
		if err := handshake(dial, listen, eachMessage(malformed)); alertOf(err) != accepted {
			t.Errorf("%s: extensions 19 and 20 are not ignored: %v", c.name, err)
		}
	}

	// One side ours, the other not: refused, by whoever is ours.
	relay := key.Generate()
	mixed := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"Session_Router_C", "h2"}, Certificates: cert.list}
	if err := handshake(dialTLS(Client, nil, relay.Public()), mixed, nil); alertOf(err) != unsupportedCert {
		t.Errorf("ours dials a mixed listener: %v", err)
	}
	mixed = &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"Session_Router_C", "h2"}, InsecureSkipVerify: true}
	if err := handshake(mixed, listenTLS(relay, nil), nil); alertOf(err) != decodeError {
		t.Errorf("mixed dials ours: %v", err)
	}
}

// TLS 1.2 knows no raw keys here: a configuration that allows it is not ours, whatever its names.
func TestOthersUnchangedTLS12(t *testing.T) {
	cert := x509Certificate(t)
	for _, c := range []struct {
		version uint16 // the listener's highest
		alpn    string
	}{
		{tls.VersionTLS12, "Session_Router_R"},
		{tls.VersionTLS12, "h2"},
		{tls.VersionTLS13, "h2"},
	} {
		near, far := net.Pipe()
		listen := &tls.Config{NextProtos: []string{c.alpn}, Certificates: cert.list, MaxVersion: c.version}
		dial := &tls.Config{NextProtos: []string{c.alpn}, RootCAs: cert.pool, ServerName: "host.test", MinVersion: tls.VersionTLS12}
		done := make(chan error, 1)
		go func() { done <- tls.Server(far, listen).Handshake() }()
		dialler := tls.Client(near, dial)
		if err := errors.Join(dialler.Handshake(), <-done); err != nil {
			t.Errorf("%s, %s: %v", tls.VersionName(c.version), c.alpn, err)
		} else if s := dialler.ConnectionState(); s.Version != c.version || s.NegotiatedProtocol != c.alpn {
			t.Errorf("%s, %s: got %s, %s", tls.VersionName(c.version), c.alpn, tls.VersionName(s.Version), s.NegotiatedProtocol)
		}
		near.Close()
		far.Close()
	}
}

// The same through quic-go and the loopback: a refusal of the dialler's key comes after its Dial has returned
// (protocol 5 section 5.1), and such a connection never reaches Accept.
func TestQUIC(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	relay, other, stranger := key.Generate(), key.Generate(), key.Generate()
	server, dialler := transport(t), transport(t)
	registered := func(k key.Public) bool { return k == other.Public() || k == relay.Public() }
	listener, err := server.Listen(listenTLS(relay, registered), &quic.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()

	type dial struct {
		name     string
		config   *tls.Config
		atDial   int // alert that ends Dial
		after    int // alert that ends the connection later
		accepted key.Public
	}
	keyless := dialTLS(Relay, other, relay.Public())
	keyless.Certificates = nil
	keyed := dialTLS(Client, nil, relay.Public())
	keyed.Certificates = []tls.Certificate{rawCertificate(stranger)}
	unknown := dialTLS(Client, nil, relay.Public())
	unknown.NextProtos = []string{"Session_Router_X"}
	for _, c := range []dial{
		{"keyless relay", keyless, none, badCertificate, key.Public{}},
		{"unregistered relay", dialTLS(Relay, stranger, relay.Public()), none, badCertificate, key.Public{}},
		{"relay with the listener's key", dialTLS(Relay, relay, relay.Public()), none, badCertificate, key.Public{}},
		{"wrong key pinned", dialTLS(Relay, other, stranger.Public()), badCertificate, none, key.Public{}},
		{"wrong key pinned by a client", dialTLS(Client, nil, stranger.Public()), badCertificate, none, key.Public{}},
		{"unknown protocol", unknown, noApplicationProto, none, key.Public{}},
		{"relay", dialTLS(Relay, other, relay.Public()), none, none, other.Public()},
		{"client", dialTLS(Client, nil, relay.Public()), none, none, key.Public{}},
		{"bootstrap", dialTLS(Bootstrap, nil, relay.Public()), none, none, key.Public{}},
		{"client with a key", keyed, none, none, stranger.Public()},
	} {
		conn, err := dialler.Dial(ctx, server.Conn.LocalAddr(), c.config, &quic.Config{})
		if got := cryptoError(err); got != c.atDial || err != nil && got == none {
			t.Fatalf("%s: Dial ended with alert %d, want %d (%v)", c.name, got, c.atDial, err)
		}
		if err != nil {
			continue
		}
		if k, err := peerKey(conn.ConnectionState().TLS); err != nil || k != relay.Public() {
			t.Errorf("%s: the dialler sees %v, %v", c.name, k, err)
		}
		if c.after != none {
			select {
			case <-conn.Context().Done():
			case <-ctx.Done():
				t.Fatalf("%s: not refused", c.name)
			}
			if err := context.Cause(conn.Context()); cryptoError(err) != c.after {
				t.Errorf("%s: closed with %v, want alert %d", c.name, err, c.after)
			}
			continue
		}
		in, err := listener.Accept(ctx)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		state := in.ConnectionState().TLS
		if k, err := peerKey(state); err != nil || k != c.accepted || state.NegotiatedProtocol != c.config.NextProtos[0] {
			t.Errorf("%s: the listener accepted %v as %s, %v", c.name, k, state.NegotiatedProtocol, err)
		}
		conn.CloseWithError(0, "")
	}
}

func cryptoError(err error) int {
	if e, ok := errors.AsType[*quic.TransportError](err); ok && e.ErrorCode.IsCryptoError() {
		return int(e.ErrorCode) - transportErrorCrypt
	}
	return none
}

func transport(t *testing.T) *quic.Transport {
	t.Helper()
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: udp}
	t.Cleanup(func() {
		tr.Close()
		udp.Close()
	})
	return tr
}

func TestSPKI(t *testing.T) {
	// Origin: the layout in protocol 2 section 2.2; a test against GnuTLS's own is in gnutls_test.go.
	k := key.FromSeed([32]byte{1}).Public()
	spki := encodeSPKI(k)
	if want := fmt.Sprintf("302a300506032b6570032100%x", k[:]); hex.EncodeToString(spki) != want {
		t.Errorf("got %x, want %s", spki, want)
	}
	if got, ok := decodeSPKI(spki); !ok || got != k {
		t.Errorf("decoded as %v, %v", got, ok)
	}
	for n := range spki {
		if _, ok := decodeSPKI(spki[:n]); ok {
			t.Errorf("cut at %d bytes is accepted", n)
		}
		if n < len(spkiPrefix) {
			flipped := bytes.Clone(spki)
			flipped[n] ^= 1
			if _, ok := decodeSPKI(flipped); ok {
				t.Errorf("byte %d changed is accepted", n)
			}
		}
	}
	if _, ok := decodeSPKI(append(spki, 0)); ok {
		t.Error("45 bytes are accepted")
	}
}

// Threat: anyone can send a relay a ClientHello, before any key is shown. Whatever stands in it, the listener answers or
// refuses; a hello that it answers has offered raw keys.
//
// Decoders: crypto/tls
func FuzzClientHello(f *testing.F) {
	relay := key.FromSeed([32]byte{1})
	for kind := range kinds {
		f.Add(clientHello(f, dialTLS(kind, relay, relay.Public()))[4:])
	}
	listen := listenTLS(relay, nil)
	f.Fuzz(func(t *testing.T, body []byte) {
		c := tls.QUICServer(&tls.QUICConfig{TLSConfig: listen})
		defer c.Close()
		c.SetTransportParameters([]byte{})
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		hello := joinMessage(msgClientHello, body)
		if err := c.HandleData(initialLevel, hello); err != nil {
			return
		}
		for e := c.NextEvent(); e.Kind != tls.QUICNoEvent; e = c.NextEvent() {
			if e.Kind != tls.QUICWriteData || e.Level != handshakeLevel {
				continue // a ServerHello, or a request for another ClientHello
			}
			_, exts := splitHello(hello)
			offer, _ := find(exts, extServerCertType)
			answer, _ := find(splitExtensions(splitMessages(e.Data)[0][6:]), extServerCertType)
			if !oursOnly(exts) {
				offer, answer = append(offer, 2), append(answer, 2) // a mixed list: TLS as ever, and nothing is answered
			}
			if !bytes.Contains(offer, []byte{2}) || !bytes.Equal(answer, []byte{2}) {
				t.Fatalf("server certificate types %x are answered %x", offer, answer)
			}
			return
		}
	})
}

// Threat: whoever sits at a relay's address answers a dial as he likes. Whatever stands in his EncryptedExtensions and
// Certificate, the handshake does not end without the pinned key.
//
// Decoders: crypto/tls
func FuzzServerFlight(f *testing.F) {
	relay, other, liar := key.FromSeed([32]byte{1}), key.FromSeed([32]byte{2}), key.FromSeed([32]byte{3})
	listen := listenTLS(liar, func(key.Public) bool { return true })
	for kind := range kinds {
		var answer []byte
		handshake(dialTLS(kind, other, liar.Public()), listen, eachMessage(func(typ byte, msg []byte) []byte {
			if typ == msgEncryptedExts {
				answer = bytes.Clone(msg[4:])
			}
			return msg
		}))
		for _, k := range []key.Public{relay.Public(), liar.Public()} {
			f.Add(uint8(kind), answer, joinCertificate(encodeSPKI(k))[4:])
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, answer, certificate []byte) {
		err := handshake(dialTLS(Kind(kind%uint8(kinds)), other, relay.Public()), listen, eachMessage(func(typ byte, msg []byte) []byte {
			switch typ {
			case msgEncryptedExts:
				return joinMessage(typ, answer)
			case msgCertificate:
				return joinMessage(typ, certificate)
			}
			return msg
		}))
		if err == nil {
			t.Fatal("the handshake ended without the pinned key")
		}
	})
}

func BenchmarkSelfTest(b *testing.B) {
	for b.Loop() {
		if err := SelfTest(); err != nil {
			b.Fatal(err)
		}
	}
}

// What follows takes handshake messages apart and puts them together again: a type, three bytes of length, a body.

func clientHello(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	c := tls.QUICClient(&tls.QUICConfig{TLSConfig: config})
	defer c.Close()
	c.SetTransportParameters([]byte{})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for e := c.NextEvent(); e.Kind != tls.QUICNoEvent; e = c.NextEvent() {
		if e.Kind == tls.QUICWriteData {
			return bytes.Clone(e.Data)
		}
	}
	t.Fatal("no ClientHello")
	return nil
}

func eachMessage(alter func(kind byte, msg []byte) []byte) func(tls.QUICEncryptionLevel, []byte) []byte {
	return func(_ tls.QUICEncryptionLevel, data []byte) (out []byte) {
		for _, msg := range splitMessages(data) {
			out = append(out, alter(msg[0], msg)...)
		}
		return out
	}
}

func splitMessages(data []byte) (msgs [][]byte) {
	for len(data) > 0 {
		n := 4 + int(binary.BigEndian.Uint32(data)&0xffffff)
		msgs = append(msgs, data[:n])
		data = data[n:]
	}
	return msgs
}

func joinMessage(kind byte, body []byte) []byte {
	return append([]byte{kind, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
}

type extension struct {
	id   uint16
	body []byte
}

func find(exts []extension, id uint16) ([]byte, bool) {
	if i := slices.IndexFunc(exts, func(e extension) bool { return e.id == id }); i >= 0 {
		return exts[i].body, true
	}
	return nil, false
}

// oursOnly says that every name of the ALPN extension is of this network.
func oursOnly(exts []extension) bool {
	body, _ := find(exts, 16)
	for names := body[2:]; len(names) > 0; names = names[1+names[0]:] {
		if !bytes.HasPrefix(names[1:1+names[0]], []byte("Session_Router_")) {
			return false
		}
	}
	return true
}

// put replaces, adds (in front: a PSK must stay last) or, when body is nil, removes an extension.
func put(exts []extension, id uint16, body []byte) []extension {
	rest := slices.DeleteFunc(slices.Clone(exts), func(e extension) bool { return e.id == id })
	if body == nil {
		return rest
	}
	return slices.Insert(rest, 0, extension{id, body})
}

func splitExtensions(list []byte) (exts []extension) {
	for len(list) > 0 {
		n := int(binary.BigEndian.Uint16(list[2:]))
		exts = append(exts, extension{binary.BigEndian.Uint16(list), list[4 : 4+n]})
		list = list[4+n:]
	}
	return exts
}

func joinExtensions(exts []extension) []byte {
	var list []byte
	for _, e := range exts {
		list = binary.BigEndian.AppendUint16(list, e.id)
		list = append(binary.BigEndian.AppendUint16(list, uint16(len(e.body))), e.body...)
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(list))), list...)
}

// splitHello gives what stands before the extensions of a ClientHello, without the message's header, and the extensions.
func splitHello(msg []byte) (head []byte, exts []extension) {
	at := 4 + 2 + 32
	at += 1 + int(msg[at])                           // session id
	at += 2 + int(binary.BigEndian.Uint16(msg[at:])) // cipher suites
	at += 1 + int(msg[at])                           // compression methods
	return msg[4:at], splitExtensions(msg[at+2:])
}

func joinHello(head []byte, exts []extension) []byte {
	return joinMessage(msgClientHello, append(bytes.Clone(head), joinExtensions(exts)...))
}

func joinAnswer(exts []extension) []byte {
	return joinMessage(msgEncryptedExts, joinExtensions(exts))
}

func joinCertificate(entries ...[]byte) []byte {
	var list []byte
	for _, e := range entries {
		list = append(list, joinMessage(0, e)[1:]...)
		list = append(list, 0, 0) // no extensions
	}
	return joinMessage(msgCertificate, append([]byte{0}, joinMessage(0, list)[1:]...))
}

type x509Pair struct {
	list []tls.Certificate
	pool *x509.CertPool
}

func x509Certificate(t *testing.T) x509Pair {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "host.test"},
		DNSNames:     []string{"host.test"},
		NotAfter:     time.Now().Add(time.Hour),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA:         true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &secret.PublicKey, secret)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return x509Pair{[]tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: secret}}, pool}
}
