package key

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"lokinetd/router/statefile"
)

// maxFile bounds a key file in bytes: the longest sort is a legacy dict, of which some more keys are tolerated.
const maxFile = 4096

const (
	hexLen = 128 // of seed and public key
	rawLen = 64
)

// LoadSecret reads a key file of any of ParseSecret's forms. Errors name the file; a missing one is fs.ErrNotExist.
func LoadSecret(path string) (*Secret, error) {
	data, err := statefile.Read(path, maxFile)
	if err != nil {
		return nil, fmt.Errorf("key: key file: %w", err)
	}
	defer clear(data)
	s, err := parseSecret(data)
	if err != nil {
		return nil, fmt.Errorf("key: key file %s: %w", path, err)
	}
	return s, nil
}

// Save writes the key as a new file of mode 0600: 128 lower-case hexadecimal digits and a line feed. The file appears whole or not at all and is on disk when
// Save returns. An existing file, of whatever content, is never touched: that is fs.ErrExist.
func (s *Secret) Save(path string) error {
	text := append(hex.AppendEncode(make([]byte, 0, hexLen+1), s.in().private), '\n')
	defer clear(text)
	if err := statefile.Create(path, text, 0o600); err != nil {
		return fmt.Errorf("key: save key file: %w", err)
	}
	return nil
}

// ParseSecret reads the content of a key file (protocol 1 section 3.2): 128 hexadecimal digits and at most a line end (LF or CR LF), or 64 raw bytes, or the
// legacy bt dict with the 64 bytes under key s. They are seed and public key; the public key must be the seed's. Nothing of the content is kept or shown
// in an error.
func ParseSecret(data []byte) (*Secret, error) {
	s, err := parseSecret(data)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	return s, nil
}

func parseSecret(data []byte) (*Secret, error) {
	var raw [rawLen]byte
	defer clear(raw[:])
	switch body := data; {
	case isHex(&body):
		hex.Decode(raw[:], body)
	case len(data) == rawLen:
		copy(raw[:], data)
	case len(data) > 0 && len(data) <= maxFile && data[0] == 'd':
		s, err := legacySecret(data)
		if err != nil {
			return nil, err
		}
		copy(raw[:], s)
	default:
		return nil, fmt.Errorf("not a secret key: want %d hexadecimal digits, %d raw bytes or a dict; these are %d bytes of something else", hexLen, rawLen, len(data))
	}
	s := FromSeed([32]byte(raw[:32]))
	if s.Public() != Public(raw[32:]) {
		s.Wipe()
		return nil, errors.New("damaged secret key: the public half does not belong to the secret half")
	}
	return s, nil
}

// isHex reports whether *b is 128 hexadecimal digits and at most one line end, which it cuts off.
func isHex(b *[]byte) bool {
	if len(*b) < hexLen {
		return false
	}
	switch string((*b)[hexLen:]) {
	case "", "\n", "\r\n":
	default:
		return false
	}
	for _, c := range (*b)[:hexLen] {
		if !strings.ContainsRune("0123456789abcdefABCDEF", rune(c)) {
			return false
		}
	}
	*b = (*b)[:hexLen]
	return true
}

var errLegacy = errors.New("not a secret key: a bt dict, but not a well-formed one")

// legacySecret finds the 64-byte string s in a bt dict. The few lines of bt-encoding are repeated here because router/bt stands in the same layer.
func legacySecret(data []byte) (secret []byte, err error) {
	rest := data[1:]
	last := ""
	for first := true; ; first = false {
		if len(rest) > 0 && rest[0] == 'e' {
			break
		}
		k, after, ok := btString(rest)
		if !ok || (!first && string(k) <= last) {
			return nil, errLegacy
		}
		last = string(k)
		value := after
		if rest, ok = btSkip(value, 32); !ok {
			return nil, errLegacy
		}
		if last == "s" {
			if secret, _, ok = btString(value); !ok || len(secret) != rawLen {
				return nil, fmt.Errorf("not a secret key: key s of the dict is not a string of %d bytes", rawLen)
			}
		}
	}
	if len(rest) != 1 {
		return nil, errors.New("not a secret key: bytes after the end of the dict")
	}
	if secret == nil {
		return nil, errors.New("not a secret key: the dict has no key s")
	}
	return secret, nil
}

// btString cuts a string off the front.
func btString(b []byte) (s, rest []byte, ok bool) {
	n := 0
	for i, c := range b {
		if c == ':' && i > 0 && (b[0] != '0' || i == 1) && n <= len(b)-i-1 {
			return b[i+1:][:n], b[i+1+n:], true
		}
		if c < '0' || c > '9' || n > maxFile {
			break
		}
		n = n*10 + int(c-'0')
	}
	return nil, nil, false
}

// btSkip cuts a value off the front, nested at most depth levels.
func btSkip(b []byte, depth int) (rest []byte, ok bool) {
	if len(b) == 0 || depth == 0 {
		return nil, false
	}
	switch b[0] {
	case 'i':
		i := 1
		if i < len(b) && b[i] == '-' {
			i++
		}
		digits := i
		for i < len(b) && '0' <= b[i] && b[i] <= '9' {
			i++
		}
		if i == digits || i == len(b) || b[i] != 'e' {
			return nil, false
		}
		return b[i+1:], true
	case 'l', 'd':
		dict := b[0] == 'd'
		b = b[1:]
		for len(b) > 0 && b[0] != 'e' {
			if dict {
				if _, b, ok = btString(b); !ok {
					return nil, false
				}
			}
			if b, ok = btSkip(b, depth-1); !ok {
				return nil, false
			}
		}
		if len(b) == 0 {
			return nil, false
		}
		return b[1:], true
	}
	_, rest, ok = btString(b)
	return rest, ok
}
