package key

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// Bounds of a host name in bytes, without the final dot (RFC 1035).
const (
	maxName  = 253
	maxLabel = 63
)

var (
	// ErrNotOurs: the name is of another top-level domain than .loki, .sesh and .snode; it goes to the ordinary resolver.
	ErrNotOurs = errors.New("key: name is not of .loki, .sesh or .snode")
	// ErrMalformed: the name is of our domains and cannot exist.
	ErrMalformed = errors.New("key: malformed name")
)

// NameKind says what the host label of a Name is.
type NameKind uint8

const (
	NameAddress   NameKind = iota // a key: Name.Address
	NameSNS                       // a registered name, to be resolved by the network: Name.SNS
	NameLocalhost                 // this node's own address; in any of the three domains
	NameRandom                    // random.snode: some known relay
)

// Name is a host name of ours, split (protocol 1 section 2.3). All of it is lower case.
type Name struct {
	Labels  []string // the labels before the host label, in the order written; nil when there are none
	Host    string   // the host label; for NameAddress in canonical form
	TLD     string   // TLDLoki, TLDSesh or TLDSnode, as it was asked for
	Kind    NameKind
	Address Address // NameAddress only
	SNS     string  // NameSNS only: "<host>.loki", passes CheckSNS
}

// ParseName splits a host name of [label.]...host.tld, in any case, with or without a final dot. Errors wrap ErrNotOurs or ErrMalformed.
// Names are lowered before everything else. A bare "loki", an empty label, a label over 63 bytes, a name over 253 and bytes that are not printable ASCII are
// malformed. The labels before the host are not looked at otherwise: they may be any service or instance.
func ParseName(host string) (Name, error) {
	text := strings.TrimSuffix(host, ".")
	head, tld := "", text
	if i := strings.LastIndexByte(text, '.'); i >= 0 {
		head, tld = text[:i], text[i+1:]
	}
	tld = lower(tld)
	if tld != TLDLoki && tld != TLDSesh && tld != TLDSnode {
		return Name{}, fmt.Errorf("%w: %.80q", ErrNotOurs, host)
	}
	bad := func(why string) (Name, error) { return Name{}, fmt.Errorf("%w: %.80q: %s", ErrMalformed, host, why) }
	if len(text) > maxName {
		return bad("longer than 253 bytes")
	}
	for i := range len(head) {
		if head[i] <= ' ' || head[i] > '~' {
			return bad("a byte that is not printable ASCII")
		}
	}
	labels := strings.Split(lower(head), ".")
	for _, l := range labels {
		if l == "" || len(l) > maxLabel {
			return bad("an empty label or one over 63 bytes")
		}
	}

	last := len(labels) - 1
	n := Name{Host: labels[last], TLD: tld}
	if last > 0 {
		n.Labels = labels[:last:last]
	}
	if n.Host == "localhost" {
		n.Kind = NameLocalhost
		return n, nil
	}
	if n.Host == "random" && tld == TLDSnode {
		n.Kind = NameRandom
		return n, nil
	}
	if a, ok := addressOf(n.Host, tld); ok {
		n.Kind, n.Address, n.Host = NameAddress, a, a.Key.String()
		return n, nil
	}
	if tld != TLDLoki {
		return bad("the host label is not a key of 52 base32z characters")
	}
	n.Kind, n.SNS = NameSNS, n.Host+"."+TLDLoki
	if why := faultSNS(n.SNS); why != "" {
		return bad(why)
	}
	return n, nil
}

// String joins the name again, canonically: ParseName of it gives the same Name.
func (n Name) String() string {
	return strings.Join(append(n.Labels[:len(n.Labels):len(n.Labels)], n.Host, n.TLD), ".")
}

// LogValue shows the name when RevealInLogs is on.
func (n Name) LogValue() slog.Value { return logValue(n, "(name)") }

// CheckSNS reports why name is not a name that can be registered and looked up (protocol 1 section 8.1): lower-case labels and ".loki"; only the last label
// before it has further rules. Errors wrap ErrMalformed.
func CheckSNS(name string) error {
	if why := faultSNS(name); why != "" {
		return fmt.Errorf("%w: %.80q: %s", ErrMalformed, name, why)
	}
	return nil
}

// faultSNS says what is wrong with an SNS name, "" for nothing.
func faultSNS(name string) string {
	head, ok := strings.CutSuffix(name, "."+TLDLoki)
	if !ok {
		return "it does not end in .loki"
	}
	if len(name) > maxName {
		return "longer than 253 bytes"
	}
	labels := strings.Split(head, ".")
	for _, l := range labels {
		if l == "" || len(l) > maxLabel {
			return "an empty label or one over 63 bytes"
		}
		for i := range len(l) {
			if c := l[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return "only a-z, 0-9 and - may stand in a name"
			}
		}
	}
	switch p := labels[len(labels)-1]; {
	case p == "localhost" || p == "loki" || p == "snode":
		return "the name is reserved"
	case !strings.Contains(p, "-"):
		if len(p) > 32 {
			return "over 32 characters without a dash"
		}
	case p[0] == '-' || p[len(p)-1] == '-':
		return "a dash at the start or end"
	case len(p) >= 4 && p[2:4] == "--" && p[:2] != "xn":
		return "dashes at the third and fourth place, not behind xn"
	}
	return ""
}
