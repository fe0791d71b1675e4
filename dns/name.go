package dns

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"lokinetd/router/key"
)

// labelsOf gives the labels of a name in the library's presentation form as the bytes that stand on the wire, ASCII letters lowered, the top-level
// domain last; none for the root.
func labelsOf(name string) ([]string, bool) {
	var wire [256]byte
	n, err := dns.PackDomainName(name, wire[:], 0, nil, false)
	if err != nil {
		return nil, false
	}
	labels, _ := wireLabels(wire[:n])
	return labels, true
}

// wireLabels reads an uncompressed name and says how many bytes it took; 0 when it is none.
func wireLabels(b []byte) (labels []string, n int) {
	for n < len(b) {
		l := int(b[n])
		n++
		if l == 0 {
			return labels, n
		}
		if l > 63 || n+l > len(b) {
			break
		}
		label := append([]byte(nil), b[n:n+l]...)
		for i, c := range label {
			if 'A' <= c && c <= 'Z' {
				label[i] = c + 'a' - 'A'
			}
		}
		labels = append(labels, string(label))
		n += l
	}
	return nil, 0
}

// nameOf writes labels as a name in presentation form.
func nameOf(labels []string) string {
	var b strings.Builder
	for _, l := range labels {
		for i := range len(l) {
			switch c := l[i]; {
			case c == '.' || c == '\\':
				b.WriteByte('\\')
				b.WriteByte(c)
			case c <= ' ' || c > '~':
				b.WriteByte('\\')
				b.WriteString(strconv.Itoa(1000 + int(c))[1:])
			default:
				b.WriteByte(c)
			}
		}
		b.WriteByte('.')
	}
	if b.Len() == 0 {
		return "."
	}
	return b.String()
}

func ourTLD(label string) bool {
	return label == key.TLDLoki || label == key.TLDSesh || label == key.TLDSnode
}

// mayLeave is the rule for names that may be sent to an upstream, on lowered wire labels:
//
//   - The top-level domain consists of letters, digits and inner hyphens, as every real one does. This refuses every way to hide a domain of ours
//     behind bytes that another resolver may cut, split or normalise: "x.loki" as one label, "loki.", "loki\000", full-width dots.
//   - It is none of ours, nor .onion (RFC 7686).
//   - No key stands in it in front of a domain of ours: <key>.loki.example.net is a search list at work. Dots inside labels count as dots, and what is
//     glued to the domain is looked past.
func mayLeave(labels []string) bool {
	if len(labels) == 0 {
		return true
	}
	tld := labels[len(labels)-1]
	for i := range len(tld) {
		if c := tld[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && (c != '-' || i == 0 || i == len(tld)-1) {
			return false
		}
	}
	if ourTLD(tld) || tld == "onion" {
		return false
	}
	parts := strings.Split(strings.Join(labels, "."), ".")
	for i := 1; i < len(parts); i++ {
		host, tld := parts[i-1], parts[i]
		if len(host) < key.TextLen || !strings.HasPrefix(tld, key.TLDLoki) && !strings.HasPrefix(tld, key.TLDSesh) && !strings.HasPrefix(tld, key.TLDSnode) {
			continue
		}
		if _, err := key.ParsePublic(host[len(host)-key.TextLen:]); err == nil {
			return false
		}
	}
	return true
}

// place says who answers for a name.
type place uint8

const (
	foreign  place = iota // an upstream
	ours                  // we do: a name under one of our domains
	apex                  // we do: the bare domain
	backward              // we do: a name of one of our reverse zones
	canary                // nobody: browsers ask for it to learn whether they may go around the host's resolver
	kept                  // nobody: it must not leave
)

// placeOf finds a name's place and the zone whose SOA record goes with negative answers.
func (s *Server) placeOf(labels []string) (p place, zone []string) {
	if len(labels) == 0 {
		return foreign, nil
	}
	last := len(labels) - 1
	if ourTLD(labels[last]) {
		if last == 0 {
			return apex, labels
		}
		return ours, labels[last:]
	}
	if slices.Equal(labels[max(0, last-1):], canaryName) {
		return canary, canaryName
	}
	if !mayLeave(labels) {
		return kept, labels[last:]
	}
	for i := 1; i < last; i++ {
		if ourTLD(labels[i]) && s.unanswered.has(labels[:i+1]) {
			return kept, labels[i:]
		}
	}
	if net, _, ok := reverseNet(labels); ok {
		for _, r := range s.source.Ranges() {
			if net.Bits() >= r.Bits() && r.Contains(net.Addr()) {
				step := 8
				if net.Addr().Is6() {
					step = 4
				}
				return backward, labels[len(labels)-2-(r.Bits()+step-1)/step:]
			}
		}
	}
	return foreign, nil
}

var canaryName = []string{"use-application-dns", "net"}

// reverseNet reads the address bits that a name under in-addr.arpa or ip6.arpa gives, from its right end, and how many labels are left over in front.
func reverseNet(labels []string) (net netip.Prefix, extra int, ok bool) {
	n := len(labels) - 2
	if n < 0 || labels[n+1] != "arpa" {
		return netip.Prefix{}, 0, false
	}
	switch labels[n] {
	case "in-addr":
		var a [4]byte
		i := 0
		for ; i < len(a) && n > 0; i, n = i+1, n-1 {
			v, err := strconv.ParseUint(labels[n-1], 10, 8)
			if err != nil || labels[n-1] != strconv.Itoa(int(v)) {
				break
			}
			a[i] = byte(v)
		}
		return netip.PrefixFrom(netip.AddrFrom4(a), 8*i), n, true
	case "ip6":
		var a [16]byte
		i := 0
		for ; i < 2*len(a) && n > 0; i, n = i+1, n-1 {
			v, err := strconv.ParseUint(labels[n-1], 16, 4)
			if err != nil || len(labels[n-1]) != 1 {
				break
			}
			a[i/2] |= byte(v) << (4 - 4*(i%2))
		}
		return netip.PrefixFrom(netip.AddrFrom16(a), 4*i), n, true
	}
	return netip.Prefix{}, 0, false
}

// memory holds names of ours that were lately answered without a record. Safe for concurrent use; bounded.
type memory struct {
	mu    sync.Mutex
	names map[string]time.Time // when each is forgotten
}

const (
	memoryTime = time.Minute
	memorySize = 1024
)

func (m *memory) add(labels []string) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names == nil {
		m.names = make(map[string]time.Time)
	}
	oldest, first, looked := "", now.Add(2*memoryTime), 0
	for n, t := range m.names { // a few, so that those whose time has come stay few; all when there is no room
		if looked++; looked > 4 && len(m.names) < memorySize {
			break
		}
		switch {
		case !t.After(now):
			delete(m.names, n)
		case t.Before(first):
			oldest, first = n, t
		}
	}
	if len(m.names) >= memorySize {
		delete(m.names, oldest)
	}
	m.names[strings.Join(labels, ".")] = now.Add(memoryTime)
}

func (m *memory) has(labels []string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.names[strings.Join(labels, ".")].After(time.Now())
}
