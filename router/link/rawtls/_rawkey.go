// Raw public keys (RFC 7250) for lokinetd. This file is not part of any package here: the generator beside it adds it
// to crypto/tls, together with one line in each place that calls it.
//
// All of it is inert unless every ALPN name of the connection, offered and supported, begins with rawKeyPrefix, and
// TLS 1.3 is the only version offered. Then the server's certificate is a raw Ed25519 key, always, and the client's is
// one or nothing. Session resumption and encrypted ClientHello are not supported with it: a ticket cannot hold a raw
// key, and such a configuration offers none.

package tls

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

const (
	rawKeyPrefix = "Session_Router_"

	extensionClientCertType uint16 = 19
	extensionServerCertType uint16 = 20

	certTypeRawKey = 2
)

// rawKeySPKI is what stands before the 32 bytes of the key in the SubjectPublicKeyInfo of an Ed25519 key (RFC 8410).
var rawKeySPKI = []byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00}

// rawKeyState is what a Conn knows of raw keys. Both are false on every connection that is not ours.
type rawKeyState struct {
	server bool // the server's certificate is a raw key: negotiated
	client bool // the client's certificate, if it sends one, is a raw key: negotiated
}

// rawKeyHello are the bodies of the two extensions in a ClientHello, nil when absent. They are kept as received and
// judged only once the connection is known to be ours, so that what others send there is ignored as before.
type rawKeyHello struct {
	serverTypes []byte
	clientTypes []byte
}

// rawKeyAnswer are the bodies of the two extensions in EncryptedExtensions, nil when absent.
type rawKeyAnswer struct {
	serverType []byte
	clientType []byte
}

func rawKeyALPN(names []string) bool {
	for _, name := range names {
		if !strings.HasPrefix(name, rawKeyPrefix) {
			return false
		}
	}
	return len(names) > 0
}

func addRawKeyExtension(b *cryptobyte.Builder, extension uint16, body []byte) {
	if body == nil {
		return
	}
	b.AddUint16(extension)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(body) })
}

func (e *rawKeyHello) marshal(b *cryptobyte.Builder) {
	addRawKeyExtension(b, extensionClientCertType, e.clientTypes)
	addRawKeyExtension(b, extensionServerCertType, e.serverTypes)
}

func (e *rawKeyAnswer) marshal(b *cryptobyte.Builder) {
	addRawKeyExtension(b, extensionClientCertType, e.clientType)
	addRawKeyExtension(b, extensionServerCertType, e.serverType)
}

// rawKeyOffered reports whether the list of certificate types in body, one length byte and that many types, holds the
// raw public key. Anything else than a whole list with at least one entry is malformed.
func rawKeyOffered(body []byte) (offered, ok bool) {
	s := cryptobyte.String(body)
	var types cryptobyte.String
	if !s.ReadUint8LengthPrefixed(&types) || types.Empty() || !s.Empty() {
		return false, false
	}
	return bytes.IndexByte(types, certTypeRawKey) >= 0, true
}

// offerRawKeys adds the offer to a ClientHello of ours. The client's own type is offered only by a client that has a
// key to show: to offer it without makes a GnuTLS server expect one.
func (c *Conn) offerRawKeys(hello *clientHelloMsg, minVersion uint16) {
	config := c.config
	if !rawKeyALPN(hello.alpnProtocols) || minVersion < VersionTLS13 || config.EncryptedClientHelloConfigList != nil {
		return
	}
	hello.rawKeys.serverTypes = []byte{1, certTypeRawKey}
	if len(config.Certificates) > 0 || config.GetClientCertificate != nil {
		hello.rawKeys.clientTypes = []byte{1, certTypeRawKey}
	}
}

// acceptRawKeys reads the server's answer to offerRawKeys.
func (c *Conn) acceptRawKeys(hello *clientHelloMsg, answer *encryptedExtensionsMsg) error {
	if hello.rawKeys.serverTypes == nil {
		return nil
	}
	server, client := answer.rawKeys.serverType, answer.rawKeys.clientType
	if client != nil && hello.rawKeys.clientTypes == nil {
		c.sendAlert(alertUnsupportedExtension)
		return errors.New("tls: server sent an unexpected client_certificate_type extension")
	}
	if server != nil && len(server) != 1 || client != nil && len(client) != 1 {
		c.sendAlert(alertDecodeError)
		return errors.New("tls: server sent a malformed certificate type extension")
	}
	if server == nil || server[0] != certTypeRawKey || client != nil && client[0] != certTypeRawKey {
		c.sendAlert(alertUnsupportedCertificate)
		return errors.New("tls: server did not agree to raw public keys")
	}
	c.rawKeys = rawKeyState{server: true, client: client != nil}
	return nil
}

// rawKeyToShow is the certificate that answers a CertificateRequest: none, if the server did not agree to a raw one.
func (c *Conn) rawKeyToShow(cert *Certificate) *Certificate {
	if c.rawKeys.server && !c.rawKeys.client {
		return new(Certificate)
	}
	return cert
}

// requireRawKeys turns away a client of ours that cannot take a raw key. It stands behind the selection of the ALPN name.
func (c *Conn) requireRawKeys(hello *clientHelloMsg) error {
	if !rawKeyALPN(hello.alpnProtocols) || !rawKeyALPN(c.config.NextProtos) {
		return nil
	}
	for _, body := range [][]byte{hello.rawKeys.serverTypes, hello.rawKeys.clientTypes} {
		if body == nil {
			continue
		}
		if _, ok := rawKeyOffered(body); !ok {
			c.sendAlert(alertDecodeError)
			return errors.New("tls: client sent a malformed certificate type extension")
		}
	}
	if offered, _ := rawKeyOffered(hello.rawKeys.serverTypes); !offered {
		c.sendAlert(alertUnsupportedCertificate)
		return errors.New("tls: client did not offer raw public keys")
	}
	c.rawKeys.server = true
	return nil
}

// answerRawKeys adds the answer to EncryptedExtensions. The client's type is answered only when it was offered and a
// certificate is about to be requested: a keyless GnuTLS client drops the connection otherwise.
func (c *Conn) answerRawKeys(hello *clientHelloMsg, answer *encryptedExtensionsMsg, requested bool) {
	if !c.rawKeys.server {
		return
	}
	answer.rawKeys.serverType = []byte{certTypeRawKey}
	if offered, _ := rawKeyOffered(hello.rawKeys.clientTypes); offered && requested {
		answer.rawKeys.clientType = []byte{certTypeRawKey}
		c.rawKeys.client = true
	}
}

// checkRawKeyAgreed refuses a client's certificate of a type that was not negotiated.
func (c *Conn) checkRawKeyAgreed(certificates [][]byte) error {
	if c.rawKeys.server && !c.rawKeys.client && len(certificates) > 0 {
		c.sendAlert(alertUnsupportedCertificate)
		return errors.New("tls: client sent a certificate of a type that was not negotiated")
	}
	return nil
}

func (c *Conn) parseServerCertificate(der []byte) (*x509.Certificate, error) {
	if c.rawKeys.server {
		return parseRawKey(der)
	}
	return globalCertCache.newCert(der)
}

func (c *Conn) parseClientCertificate(der []byte) (*x509.Certificate, error) {
	if c.rawKeys.client {
		return parseRawKey(der)
	}
	return x509.ParseCertificate(der)
}

// parseRawKey makes a certificate that holds nothing but the key from the 44 bytes of a SubjectPublicKeyInfo.
func parseRawKey(spki []byte) (*x509.Certificate, error) {
	key, found := bytes.CutPrefix(spki, rawKeySPKI)
	if !found || len(key) != ed25519.PublicKeySize {
		return nil, errors.New("not a raw Ed25519 public key")
	}
	spki = bytes.Clone(spki)
	return &x509.Certificate{
		Raw:                     spki,
		RawSubjectPublicKeyInfo: spki,
		PublicKeyAlgorithm:      x509.Ed25519,
		PublicKey:               ed25519.PublicKey(spki[len(rawKeySPKI):]),
	}, nil
}
