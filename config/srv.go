package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"lokinetd/router/key"
)

// SRV is a service record that a service publishes (protocol 1 section 7.5): programs that look for "_service._proto" at its address learn host and port.
type SRV struct {
	Service  string // "_http._tcp"
	Priority uint16
	Weight   uint16
	Port     uint16 // 0 only with the target "."
	Target   string // a name in .loki or .sesh; "": the service itself; ".": it is not to be had here
}

// maxTarget is the length of the longest target (protocol 1 section 7.5).
const maxTarget = 200

func (s SRV) String() string {
	text := fmt.Sprintf("%s %d %d %d %s", s.Service, s.Priority, s.Weight, s.Port, s.Target)
	return strings.TrimSuffix(text, " ")
}

var errSRV = errors.New(`want "_SERVICE._PROTO PRIORITY WEIGHT PORT [TARGET]" like "_http._tcp 10 0 80", with a target in .loki or .sesh if it is not the service itself, or "." for none`)

// UnmarshalText reads a record as both of the older programs write it (protocol 4 section 10). The target localhost.loki is the service itself, as is none.
func (s *SRV) UnmarshalText(text []byte) error {
	f := strings.Fields(strings.ToLower(string(text)))
	if len(f) != 4 && len(f) != 5 {
		return errSRV
	}
	r := SRV{Service: f[0]}
	for i, v := range []*uint16{&r.Priority, &r.Weight, &r.Port} {
		n, err := strconv.ParseUint(f[1+i], 10, 16)
		if err != nil {
			return errSRV
		}
		*v = uint16(n)
	}
	name, proto, _ := strings.Cut(r.Service, ".")
	if !srvLabel(name) || !srvLabel(proto) {
		return errSRV
	}
	switch {
	case len(f) < 5:
	case f[4] == ".":
		r.Target = "."
	default:
		n, err := key.ParseName(f[4])
		if err != nil || n.TLD == key.TLDSnode || n.Kind == key.NameLocalhost && n.Labels != nil || len(n.String()) > maxTarget {
			return errSRV
		}
		if n.Kind != key.NameLocalhost {
			r.Target = n.String()
		}
	}
	if r.Port == 0 && r.Target != "." {
		return errSRV
	}
	*s = r
	return nil
}

// srvLabel says whether l is one of the two labels of a service's name.
func srvLabel(l string) bool {
	if len(l) < 2 || len(l) > 63 || l[0] != '_' {
		return false
	}
	for _, c := range []byte(l[1:]) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
