package link

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"testing"

	"lokinetd/router/key"
)

// FuzzPeerKey. Threat: whoever completes a handshake chose the bytes of his certificate and the protocol; crypto/tls has found that he can sign with what it read there. Only the key that was
// dialled is taken on the one side, and on the other only registered ones as relays, whatever else was shown.
//
// Decoders: dialTLS listenTLS kindOf peerKey decodeSPKI
func FuzzPeerKey(f *testing.F) {
	own, relay, stranger := key.FromSeed([32]byte{1}), key.FromSeed([32]byte{2}).Public(), key.FromSeed([32]byte{3}).Public()
	for _, protocol := range append(alpn[:], "h3", "") {
		for _, k := range []key.Public{own.Public(), relay, stranger, {}} {
			f.Add(encodeSPKI(k), protocol, true)
		}
		f.Add(encodeSPKI(relay)[1:], protocol, true)
		f.Add(append(encodeSPKI(relay), 0), protocol, true)
		f.Add([]byte{}, protocol, false)
	}
	listen := listenTLS(own, func(k key.Public) bool { return k == relay })
	none := listenTLS(own, nil)
	f.Fuzz(func(t *testing.T, certificate []byte, protocol string, shown bool) {
		s := tls.ConnectionState{NegotiatedProtocol: protocol}
		if shown {
			s.PeerCertificates = []*x509.Certificate{{Raw: certificate}}
		}
		isRelay := shown && bytes.Equal(certificate, encodeSPKI(relay))
		raw := !shown || len(certificate) == 44 && bytes.Equal(certificate[:12], spkiPrefix) && !bytes.Equal(certificate[12:], make([]byte, 32))
		kind, ours := kindOf(protocol)
		if got, want := listen.VerifyConnection(s) == nil, ours && raw && (kind != Relay || isRelay); got != want {
			t.Fatalf("%x over %q: listener takes it: %v", certificate, protocol, got)
		}
		if got, want := none.VerifyConnection(s) == nil, ours && raw && kind != Relay; got != want {
			t.Fatalf("%x over %q: listener without a network takes it: %v", certificate, protocol, got)
		}
		for k := range kinds {
			if got, want := dialTLS(k, own, relay).VerifyConnection(s) == nil, ours && k == kind && isRelay; got != want {
				t.Fatalf("%x over %q: dialler of %v takes it: %v", certificate, protocol, k, got)
			}
		}
	})
}
