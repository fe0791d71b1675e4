package key

import (
	"fmt"
	"log/slog"
	"strings"
)

// The top-level domains of the network (protocol 1 section 2.2).
const (
	TLDLoki  = "loki"  // clients, and SNS names
	TLDSesh  = "sesh"  // clients: the same ones
	TLDSnode = "snode" // relays
)

// Kind says whose key an address is.
type Kind uint8

const (
	Client Kind = iota
	Relay
)

func (k Kind) String() string {
	switch k {
	case Client:
		return "client"
	case Relay:
		return "relay"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Address names one end of a session: a key and whether it is a client's or a relay's. Comparable; a client and a relay of one key are different.
type Address struct {
	Key  Public
	Kind Kind
}

// ParseAddress reads 52 base32z characters and .loki, .sesh or .snode, in any case, without subdomains or a final dot (protocol 1 section 2.2).
// .loki and .sesh are the same client. The key's padding bits are ignored, and whether it is a key is not asked (Public.Check).
func ParseAddress(text string) (Address, error) {
	if host, tld, ok := strings.Cut(text, "."); ok {
		if a, ok := addressOf(host, lower(tld)); ok {
			return a, nil
		}
	}
	return Address{}, fmt.Errorf("key: %.80q is not an address: want %d base32z characters, then .loki, .sesh or .snode", text, TextLen)
}

func addressOf(host, tld string) (a Address, ok bool) {
	switch tld {
	case TLDLoki, TLDSesh:
		a.Kind = Client
	case TLDSnode:
		a.Kind = Relay
	default:
		return Address{}, false
	}
	a.Key, ok = parsePublic(host)
	return a, ok
}

// String gives the canonical form, lower case: .loki for a client, .snode for a relay.
func (a Address) String() string { return a.Text(TLDLoki) }

// Text is String with the top-level domain that is configured for clients, TLDLoki or TLDSesh; relays are always .snode.
func (a Address) Text(clientTLD string) string {
	if a.Kind == Relay {
		clientTLD = TLDSnode
	}
	return a.Key.String() + "." + clientTLD
}

// IsZero reports whether a has no key.
func (a Address) IsZero() bool { return a.Key.IsZero() }

// LogValue shows the address when RevealInLogs is on, otherwise its kind.
func (a Address) LogValue() slog.Value { return logValue(a, "("+a.Kind.String()+")") }

// MarshalText gives String.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText is ParseAddress.
func (a *Address) UnmarshalText(text []byte) (err error) {
	*a, err = ParseAddress(string(text))
	return err
}

// lower lowers ASCII letters only: Unicode has other characters whose lower case is an ASCII letter.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		b[i] = lowerByte(c)
	}
	return string(b)
}
