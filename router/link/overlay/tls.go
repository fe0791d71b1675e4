package main

import (
	_ "embed"
	"fmt"
)

// rawKeys gives crypto/tls raw public keys (RFC 7250), after protocol 5 section 3, file by file. Every new line calls into
// rawkey.go.in, where the reasons are. Another version than the one named is patched too as long as every marker is
// found; a test holds the name equal to the toolchain that go.mod pins.
var rawKeys = patch{
	of:         "crypto/tls",
	writtenFor: "go1.26.8",
	edits:      rawKeyEdits,
	added:      map[string][]byte{"lokinetd_rawkey.go": rawKeyAdded},
}

//go:embed rawkey.go.in
var rawKeyAdded []byte

const extensionCases = `		case extensionServerCertType:
			%[1]s = extData
			continue
		case extensionClientCertType:
			%[2]s = extData
			continue
`

var rawKeyEdits = []edit{
	{
		file:   "handshake_messages.go",
		decl:   "type clientHelloMsg struct {",
		marker: "struct {\n",
		after:  "\trawKeys rawKeyHello\n\n",
	}, {
		file:   "handshake_messages.go",
		decl:   "func (m *clientHelloMsg) marshalMsg(echInner bool) ([]byte, error) {",
		marker: "\tif len(m.alpnProtocols) > 0 {\n",
		before: "\tm.rawKeys.marshal(&exts)\n",
	}, {
		file:   "handshake_messages.go",
		decl:   "func (m *clientHelloMsg) unmarshal(data []byte) bool {",
		marker: "\t\tdefault:\n",
		before: fmt.Sprintf(extensionCases, "m.rawKeys.serverTypes", "m.rawKeys.clientTypes"),
	}, {
		file:   "handshake_messages.go",
		decl:   "type encryptedExtensionsMsg struct {",
		marker: "struct {\n",
		after:  "\trawKeys rawKeyAnswer\n\n",
	}, {
		file:   "handshake_messages.go",
		decl:   "func (m *encryptedExtensionsMsg) marshal() ([]byte, error) {",
		marker: "\t\t\tif len(m.alpnProtocol) > 0 {\n",
		before: "\t\t\tm.rawKeys.marshal(b)\n",
	}, {
		file:   "handshake_messages.go",
		decl:   "func (m *encryptedExtensionsMsg) unmarshal(data []byte) bool {",
		marker: "\t\tdefault:\n",
		before: fmt.Sprintf(extensionCases, "m.rawKeys.serverType", "m.rawKeys.clientType"),
	}, {
		file:   "conn.go",
		decl:   "type Conn struct {",
		marker: "struct {\n",
		after:  "\trawKeys rawKeyState\n\n",
	}, {
		file:   "handshake_client.go",
		decl:   "func (c *Conn) makeClientHello() (*clientHelloMsg, *keySharePrivateKeys, *echClientContext, error) {",
		marker: "\tvar ech *echClientContext\n",
		before: "\tc.offerRawKeys(hello, minVersion)\n\n",
	}, {
		file:   "handshake_client.go",
		decl:   "func (c *Conn) verifyServerCertificate(certificates [][]byte) error {",
		marker: "globalCertCache.newCert(asn1Data)",
		swap:   "c.parseServerCertificate(asn1Data)",
	}, {
		file:   "handshake_client_tls13.go",
		decl:   "func (hs *clientHandshakeStateTLS13) readServerParameters() error {",
		marker: "\tc.clientProtocol = encryptedExtensions.alpnProtocol\n",
		after:  "\tif err := c.acceptRawKeys(hs.hello, encryptedExtensions); err != nil {\n\t\treturn err\n\t}\n",
	}, {
		file:   "handshake_client_tls13.go",
		decl:   "func (hs *clientHandshakeStateTLS13) sendClientCertificate() error {",
		marker: "\tcertMsg := new(certificateMsgTLS13)\n",
		before: "\tcert = c.rawKeyToShow(cert)\n\n",
	}, {
		file:   "handshake_server_tls13.go",
		decl:   "func (hs *serverHandshakeStateTLS13) processClientHello() error {",
		marker: "\tc.clientProtocol = selectedProto\n",
		after:  "\tif err := c.requireRawKeys(hs.clientHello); err != nil {\n\t\treturn err\n\t}\n",
	}, {
		file:   "handshake_server_tls13.go",
		decl:   "func (hs *serverHandshakeStateTLS13) sendServerParameters() error {",
		marker: "\tencryptedExtensions.alpnProtocol = c.clientProtocol\n",
		after:  "\tc.answerRawKeys(hs.clientHello, encryptedExtensions, hs.requestClientCert())\n",
	}, {
		file:   "handshake_server.go",
		decl:   "func (c *Conn) processCertsFromClient(certificate Certificate) error {",
		marker: "\tcerts := make([]*x509.Certificate, len(certificates))\n",
		before: "\tif err := c.checkRawKeyAgreed(certificates); err != nil {\n\t\treturn err\n\t}\n",
	}, {
		file:   "handshake_server.go",
		decl:   "func (c *Conn) processCertsFromClient(certificate Certificate) error {",
		marker: "x509.ParseCertificate(asn1Data)",
		swap:   "c.parseClientCertificate(asn1Data)",
	},
}
