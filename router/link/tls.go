package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"

	"lokinetd/router/key"
)

// The TLS side of a link: TLS 1.3 in which both certificates are raw Ed25519 keys (RFC 7250). The Go library has no such
// thing; the build puts it in (router/link/overlay), and it takes effect in exactly the configurations made here, because
// all their ALPN names begin with "Session_Router_".

// Kind is what a link is for. It is all that distinguishes the three, by its ALPN name (protocol 2 section 1).
type Kind uint8

const (
	Relay     Kind = iota // relay to relay: both show their keys
	Client                // client to relay, also a relay's test of another: the dialler shows no key
	Bootstrap             // fetching relay contacts: the dialler shows no key
	kinds
)

var alpn = [kinds]string{
	Relay:     "Session_Router_R",
	Client:    "Session_Router_C",
	Bootstrap: "Session_Router_BS",
}

func (k Kind) String() string {
	switch k {
	case Relay:
		return "relay"
	case Client:
		return "client"
	case Bootstrap:
		return "bootstrap"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// kindOf is the kind with that ALPN name.
func kindOf(name string) (Kind, bool) {
	for k, n := range alpn {
		if n == name {
			return Kind(k), true
		}
	}
	return 0, false
}

// Refusals of a handshake: the verification rules of protocol 2 section 2.2. The peer gets the alert bad_certificate.
var (
	errKeyless      = errors.New("link: peer showed no key")
	errWrongKey     = errors.New("link: peer has another key than the relay dialled")
	errOwnKey       = errors.New("link: peer shows our own key")
	errUnregistered = errors.New("link: peer is not a registered relay")
	errALPN         = errors.New("link: no link protocol negotiated")
	errNotRaw       = errors.New("link: peer's certificate is not a raw Ed25519 key")
)

// dialTLS is the configuration of one dial to the relay remote. self is shown by Relay links only and may be nil for the
// others.
func dialTLS(kind Kind, self *key.Secret, remote key.Public) *tls.Config {
	c := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{alpn[kind]},
		ServerName:         "localhost", // what the reference sends, whoever it dials
		InsecureSkipVerify: true,        // there are no certificate chains: VerifyConnection is the whole check
		// Without the hybrid groups the ClientHello fits one packet.
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256},
		// A cache would make the reference's tickets, which RFC 9001 forbids, fatal; and a ticket cannot hold a raw key.
		ClientSessionCache: nil,
		VerifyConnection: func(s tls.ConnectionState) error {
			if s.NegotiatedProtocol != alpn[kind] {
				return errALPN
			}
			k, err := peerKey(s)
			switch {
			case err != nil:
				return err
			case k.IsZero():
				return errKeyless
			case k != remote:
				return errWrongKey
			}
			return nil
		},
	}
	if kind == Relay {
		c.Certificates = []tls.Certificate{rawCertificate(self)}
	}
	return c
}

// listenTLS is the configuration of a relay's listener for links of every kind. registered says which relays belong to
// the network; it is called from handshakes, concurrently. Without it (nil) there are none.
func listenTLS(self *key.Secret, registered func(key.Public) bool) *tls.Config {
	own := self.Public()
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             alpn[:],
		Certificates:           []tls.Certificate{rawCertificate(self)},
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error { // called for keyless peers too
			kind, ok := kindOf(s.NegotiatedProtocol)
			if !ok {
				return errALPN
			}
			k, err := peerKey(s)
			switch {
			case err != nil:
				return err
			case kind != Relay:
				return nil
			case k.IsZero():
				return errKeyless
			case k == own:
				return errOwnKey
			case registered == nil || !registered(k):
				return errUnregistered
			}
			return nil
		},
	}
}

func rawCertificate(s *key.Secret) tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{encodeSPKI(s.Public())}, PrivateKey: s.Signer()}
}

// peerKey is the key that the peer of a handshake has shown, zero if none. A key of 32 zero bytes counts as malformed:
// it is a point of small order, for which anyone can sign.
func peerKey(s tls.ConnectionState) (key.Public, error) {
	if len(s.PeerCertificates) == 0 {
		return key.Public{}, nil
	}
	k, ok := decodeSPKI(s.PeerCertificates[0].Raw)
	if !ok || k.IsZero() {
		return key.Public{}, errNotRaw
	}
	return k, nil
}

// spkiPrefix and 32 bytes of key are the SubjectPublicKeyInfo of an Ed25519 key: 44 bytes (protocol 2 section 2.2).
var spkiPrefix = []byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00}

func encodeSPKI(k key.Public) []byte {
	return append(bytes.Clone(spkiPrefix), k[:]...)
}

func decodeSPKI(spki []byte) (key.Public, bool) {
	k, found := bytes.CutPrefix(spki, spkiPrefix)
	if !found || len(k) != len(key.Public{}) {
		return key.Public{}, false
	}
	return key.Public(k), true
}

// SelfTest reports whether this program's crypto/tls has raw public keys, by a handshake between two relays in memory.
// Without them no link can come up: the program has been built by a plain go command, and the error says how to build it.
// It takes about a millisecond and leaves nothing running.
func SelfTest() error {
	if err := handshakeInMemory(); err != nil {
		return fmt.Errorf("link: this program was built without raw public keys in crypto/tls and cannot connect to anything; "+
			"build it with `make`, test it with `make test`, and for other go commands do `eval $(make env)` first (%w)", err)
	}
	return nil
}

func handshakeInMemory() error {
	near, far := key.Generate(), key.Generate()
	defer near.Wipe()
	defer far.Wipe()
	registered := func(k key.Public) bool { return k == near.Public() }
	return handshake(dialTLS(Relay, near, far.Public()), listenTLS(far, registered), nil)
}

// handshake lets one configuration dial the other through crypto/tls's QUIC interface, as quic-go does, without packets.
// The error is of the side that refused first. Tests put alter in between: it may change what is written at one level.
func handshake(dial, listen *tls.Config, alter func(level tls.QUICEncryptionLevel, data []byte) []byte) error {
	from := tls.QUICClient(&tls.QUICConfig{TLSConfig: dial})
	to := tls.QUICServer(&tls.QUICConfig{TLSConfig: listen})
	defer from.Close()
	defer to.Close()
	return converse(from, to, alter)
}

// converse starts both sides and hands what one writes to the other, in turns, until neither writes any more.
func converse(from, to *tls.QUICConn, alter func(tls.QUICEncryptionLevel, []byte) []byte) error {
	for _, c := range []*tls.QUICConn{from, to} {
		c.SetTransportParameters([]byte{})
		if err := c.Start(context.Background()); err != nil {
			return err
		}
	}
	done := 0
	for quiet := 0; quiet < 2; from, to = to, from {
		quiet++
		for e := from.NextEvent(); e.Kind != tls.QUICNoEvent; e = from.NextEvent() {
			quiet = 0
			switch e.Kind {
			case tls.QUICHandshakeDone:
				done++
			case tls.QUICWriteData:
				data := e.Data
				if alter != nil {
					data = alter(e.Level, data)
				}
				if err := to.HandleData(e.Level, data); err != nil {
					return err
				}
			}
		}
	}
	if done != 2 {
		return errors.New("link: handshake in memory did not end")
	}
	return nil
}
