package main

import (
	"fmt"
	"strings"
)

// writtenFor is the Go version whose crypto/tls the edits below were read against. Another version is patched too as
// long as every marker is found; a test holds this equal to the toolchain that go.mod pins.
const writtenFor = "go1.26.8"

// An edit changes one place of one declaration of crypto/tls. The declaration begins with the line decl and ends with
// the first line that is a closing brace alone; marker must stand in it exactly once. Every new line calls into
// rawkey.go.in, where the reasons are.
type edit struct {
	file   string
	decl   string // first line, unique in the file
	marker string // unique in the declaration
	before string // inserted before the marker
	after  string // inserted behind the marker
	swap   string // takes the place of the marker
}

const extensionCases = `		case extensionServerCertType:
			%[1]s = extData
			continue
		case extensionClientCertType:
			%[2]s = extData
			continue
`

// edits follow protocol 5 section 3, file by file.
var edits = []edit{
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

// apply makes the edit in src, the text of e.file.
func (e edit) apply(src string) (string, error) {
	start, err := only(src, e.decl+"\n")
	if err != nil {
		return "", err
	}
	length := strings.Index(src[start:], "\n}\n")
	if length < 0 {
		return "", fmt.Errorf("no end of %q", e.decl)
	}
	body := src[start : start+length+1]
	at, err := only(body, e.marker)
	if err != nil {
		return "", fmt.Errorf("in %q: %w", e.decl, err)
	}
	marker := e.marker
	if e.swap != "" {
		marker = e.swap
	}
	at += start
	return src[:at] + e.before + marker + e.after + src[at+len(e.marker):], nil
}

// only is the place of the only occurrence of marker in s.
func only(s, marker string) (int, error) {
	if n := strings.Count(s, marker); n != 1 {
		return 0, fmt.Errorf("marker %q found %d times, not once", marker, n)
	}
	return strings.Index(s, marker), nil
}
