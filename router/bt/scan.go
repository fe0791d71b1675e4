package bt

import (
	"bytes"
	"fmt"
	"math"
)

// Valid returns the length of the one well-formed value at the start of b. Bytes may follow it.
func Valid(b []byte) (n int, err error) {
	n, err = skip(b, 0, 0)
	if err != nil {
		return 0, fmt.Errorf("bt: byte %d: %w", n, err)
	}
	return n, nil
}

// ParseUint reads b, a whole encoded value such as [Dict.OptRaw] returns. It is false when b is anything but one integer of 0 or more.
func ParseUint(b []byte) (v uint64, ok bool) {
	neg, v, next, err := integer(b, 0)
	if err != nil || neg || next != len(b) {
		return 0, false
	}
	return v, true
}

// skip returns the offset behind the value at b[i], having checked all of it; with an error, the offset at which it was met. open is
// how many lists and dicts are around it, which bounds the recursion.
func skip(b []byte, i, open int) (int, error) {
	if i >= len(b) {
		return i, errTruncated
	}
	switch c := b[i]; {
	case c >= '0' && c <= '9':
		_, next, err := str(b, i)
		return next, err
	case c == 'i':
		_, _, next, err := integer(b, i)
		return next, err
	case c != 'l' && c != 'd':
		return i, errType
	case open >= MaxDepth:
		return i, errDepth
	case c == 'l':
		i++
		for i < len(b) && b[i] != 'e' {
			var err error
			if i, err = skip(b, i, open+1); err != nil {
				return i, err
			}
		}
	default:
		i++
		var last []byte
		for first := true; i < len(b) && b[i] != 'e'; first = false {
			key, next, err := str(b, i)
			if err != nil {
				return next, err
			}
			if !first && bytes.Compare(key, last) <= 0 {
				return i, errOrder
			}
			last = key
			if i, err = skip(b, next, open+1); err != nil {
				return i, err
			}
		}
	}
	if i >= len(b) {
		return i, errTruncated
	}
	return i + 1, nil
}

// str reads the string at b[i]: its bytes, borrowed, and the offset behind it; with an error, the offset at which it was met.
func str(b []byte, i int) (s []byte, next int, err error) {
	start := i
	var n uint64 // never above 10*len(b)+9
	for ; i < len(b) && b[i] != ':'; i++ {
		c := b[i]
		if c < '0' || c > '9' || i > start && b[start] == '0' {
			return nil, i, errLength
		}
		if n = n*10 + uint64(c-'0'); n > uint64(len(b)) {
			return nil, i, errTruncated
		}
	}
	switch {
	case i >= len(b):
		return nil, i, errTruncated
	case i == start:
		return nil, i, errLength
	}
	i++ // the colon
	if n > uint64(len(b)-i) {
		return nil, i, errTruncated
	}
	end := i + int(n)
	return b[i:end:end], end, nil
}

// integer reads the integer at b[i] as sign and magnitude, and returns the offset behind it; with an error, the offset at which it was met.
func integer(b []byte, i int) (neg bool, mag uint64, next int, err error) {
	if i >= len(b) {
		return false, 0, i, errTruncated
	}
	if b[i] != 'i' {
		return false, 0, i, errType
	}
	i++
	if i < len(b) && b[i] == '-' {
		neg = true
		i++
	}
	start := i
	for ; i < len(b) && b[i] != 'e'; i++ {
		c := b[i]
		if c < '0' || c > '9' || i > start && b[start] == '0' {
			return false, 0, i, errInteger
		}
		digit := uint64(c - '0')
		if mag > (math.MaxUint64-digit)/10 {
			return false, 0, i, errRange
		}
		mag = mag*10 + digit
	}
	switch {
	case i >= len(b):
		return false, 0, i, errTruncated
	case i == start, neg && mag == 0:
		return false, 0, i, errInteger
	case neg && mag > -math.MinInt64:
		return false, 0, i, errRange
	}
	return neg, mag, i + 1, nil
}

// signed64 brings a sign and a magnitude that integer returned into an int64, if it fits.
func signed64(neg bool, mag uint64) (int64, bool) {
	if neg {
		return -int64(mag-1) - 1, true
	}
	return int64(mag), mag <= math.MaxInt64
}
