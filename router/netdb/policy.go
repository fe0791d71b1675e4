package netdb

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"lokinetd/router/bt"
)

// ExitPolicy says what a client that is an exit lets out (protocol 1 section 7.4). No ranges: nothing.
type ExitPolicy struct {
	Protocols []ExitProtocol // none: all
	Ranges    []netip.Prefix
}

// ExitProtocol is an IP protocol and, when HasPort, one port of it.
type ExitProtocol struct {
	Proto   uint8
	Port    uint16
	HasPort bool
}

func (p ExitProtocol) compare(o ExitProtocol) int {
	absentFirst := func(p ExitProtocol) int {
		if p.HasPort {
			return int(p.Port) + 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(p.Proto, o.Proto), cmp.Compare(absentFirst(p), absentFirst(o)))
}

// compareRanges orders IPv4 first, then by address, then by mask.
func compareRanges(a, b netip.Prefix) int {
	return cmp.Or(cmp.Compare(a.Addr().BitLen(), b.Addr().BitLen()), a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func (e *ExitPolicy) check() error {
	for _, r := range e.Ranges {
		if !r.IsValid() {
			return errors.New("netdb: exit policy: invalid range")
		}
	}
	return nil
}

// append writes the policy in canonical form: in ascending order, host bits zero.
func (e *ExitPolicy) append(dst []byte) []byte {
	b := bt.NewDict(dst)
	if len(e.Protocols) > 0 {
		list := []byte{'l'}
		for _, p := range slices.SortedFunc(slices.Values(e.Protocols), ExitProtocol.compare) {
			list = bt.AppendUint(append(list, 'l'), uint64(p.Proto))
			if p.HasPort {
				list = bt.AppendUint(list, uint64(p.Port))
			}
			list = append(list, 'e')
		}
		b.Raw("p", append(list, 'e'))
	}
	if len(e.Ranges) > 0 {
		masked := make([]netip.Prefix, len(e.Ranges))
		for i, r := range e.Ranges {
			masked[i] = r.Masked()
		}
		slices.SortFunc(masked, compareRanges)
		list := []byte{'l'}
		for _, r := range masked {
			list = bt.AppendBytes(list, packRange(r))
		}
		b.Raw("r", append(list, 'e'))
	}
	return b.End()
}

var zero8 [8]byte

// packRange gives address and mask byte; of an IPv6 address whose last 8 bytes are zero only the first 8.
func packRange(r netip.Prefix) []byte {
	a := r.Addr().AsSlice()
	if len(a) == 16 && bytes.Equal(a[8:], zero8[:]) {
		a = a[:8]
	}
	return append(a, byte(r.Bits()))
}

func unpackRange(b []byte) (netip.Prefix, error) {
	var a netip.Addr
	n := len(b) - 1 // of the mask byte
	switch n {
	case 4:
		a = netip.AddrFrom4([4]byte(b))
	case 8:
		a = netip.AddrFrom16([16]byte(append(b[:8:8], zero8[:]...)))
	case 16:
		a = netip.AddrFrom16([16]byte(b))
	default:
		return netip.Prefix{}, fmt.Errorf("exit policy: range of %d bytes", len(b))
	}
	bits := int(b[n])
	if bits > a.BitLen() {
		return netip.Prefix{}, fmt.Errorf("exit policy: mask of %d bits", bits)
	}
	return netip.PrefixFrom(a, bits).Masked(), nil
}

// decodeExit reads a policy in any order; host bits are dropped.
func decodeExit(d bt.Dict) (*ExitPolicy, error) {
	e := &ExitPolicy{}
	protocols, _ := d.OptList("p")
	ranges, _ := d.OptList("r")
	if err := d.Finish(); err != nil {
		return nil, fmt.Errorf("exit policy: %w", err)
	}
	for protocols.Next() {
		l := protocols.List()
		p := ExitProtocol{Proto: uint8(l.Uint(math.MaxUint8))}
		if p.HasPort = l.Next(); p.HasPort {
			p.Port = uint16(l.Uint(math.MaxUint16))
		}
		if l.Next() {
			return nil, errors.New("exit policy: protocol of more than a number and a port")
		}
		if err := l.Finish(); err != nil {
			return nil, fmt.Errorf("exit policy: %w", err)
		}
		e.Protocols = append(e.Protocols, p)
	}
	if err := protocols.Finish(); err != nil {
		return nil, fmt.Errorf("exit policy: %w", err)
	}
	for ranges.Next() {
		b := ranges.Bytes()
		if ranges.Err() != nil {
			break
		}
		r, err := unpackRange(b)
		if err != nil {
			return nil, err
		}
		e.Ranges = append(e.Ranges, r)
	}
	if err := ranges.Finish(); err != nil {
		return nil, fmt.Errorf("exit policy: %w", err)
	}
	slices.SortFunc(e.Protocols, ExitProtocol.compare)
	slices.SortFunc(e.Ranges, compareRanges)
	return e, nil
}

// SRV is a service record of a client (protocol 1 section 7.5).
type SRV struct {
	Service  string // "_service._proto"
	Priority uint16
	Weight   uint16
	Port     uint16
	Target   string // a name in .sesh or .loki; "." no such service; "" the client itself
}

// maxTarget is the length of the longest target of a service record.
const maxTarget = 200

// Check says what is wrong with a record that others would not take.
func (s SRV) Check() error {
	service, proto, found := strings.Cut(s.Service, ".")
	if !found || !serviceLabel(service) || !serviceLabel(proto) {
		return fmt.Errorf("netdb: SRV record: service %q is not _service._proto in lower case", s.Service)
	}
	if len(s.Target) > maxTarget || s.Target != "" && s.Target != "." && !strings.HasSuffix(s.Target, ".loki") && !strings.HasSuffix(s.Target, ".sesh") {
		return fmt.Errorf("netdb: SRV record: target %.250q is not a name in .loki or .sesh of at most %d bytes", s.Target, maxTarget)
	}
	return nil
}

func serviceLabel(l string) bool {
	name, ok := strings.CutPrefix(l, "_")
	if !ok || name == "" || len(l) > 63 {
		return false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func (s SRV) append(dst []byte) []byte {
	return bt.NewDict(dst).Uint("p", uint64(s.Port)).String("s", s.Service).String("t", s.Target).Uint("u", uint64(s.Priority)).Uint("w", uint64(s.Weight)).End()
}

// decodeSRV is false for a record that is malformed or fails Check.
func decodeSRV(raw []byte) (SRV, bool) {
	d := bt.ReadDict(raw)
	var s SRV
	s.Port = uint16(d.Uint("p", math.MaxUint16))
	s.Service = string(d.Bytes("s"))
	s.Target = string(d.Bytes("t"))
	s.Priority = uint16(d.Uint("u", math.MaxUint16))
	s.Weight = uint16(d.Uint("w", math.MaxUint16))
	return s, d.Finish() == nil && s.Check() == nil
}
