package bt

import (
	"bytes"
	"fmt"
)

// Dict is a cursor over an encoded dict. Keys are asked in ascending order, each at most once (anything else panics: a bug of the caller,
// whatever the input); keys that nobody asks for are checked and skipped. After the first error every method returns zero values, and
// [Dict.Err] and [Dict.Finish] return that error. All slices are borrowed from the bytes given to [ReadDict].
//
// A Dict says nothing about what it has not passed yet: use nothing of it before Finish or FinishPrefix returned without an error.
type Dict struct {
	b     []byte // from the opening 'd'
	off   int    // what is read next: the value of key when held, else the next key or the closing 'e'
	at    int    // where key's own length prefix starts
	key   []byte // the last key read
	held  bool   // the value of key is still to be read
	any   bool   // a key was read
	asked string // the last key asked for
	first bool   // a key was asked for
	err   error
}

// ReadDict starts reading the dict at the start of b. It never fails itself; the first use says whether b is a dict.
func ReadDict(b []byte) Dict {
	d := Dict{b: b}
	switch {
	case len(b) == 0:
		d.err = fmt.Errorf("bt: dict: %w", errTruncated)
	case b[0] != 'd':
		d.err = fmt.Errorf("bt: dict: %w", errType)
	default:
		d.off = 1
	}
	return d
}

// Err returns the first error met so far.
func (d *Dict) Err() error { return d.err }

func (d *Dict) fail(k string, off int, err error) {
	if d.err == nil {
		d.err = fmt.Errorf("bt: dict key %q: byte %d: %w", k, off, err)
	}
}

// next reads the next key unless one is held; false at the closing 'e' and after an error.
func (d *Dict) next() bool {
	switch {
	case d.err != nil:
		return false
	case d.held:
		return true
	case d.off >= len(d.b):
		d.fail(d.asked, d.off, errTruncated)
		return false
	case d.b[d.off] == 'e':
		return false
	}
	key, off, err := str(d.b, d.off)
	if err == nil && d.any && bytes.Compare(key, d.key) <= 0 {
		off, err = d.off, errOrder
	}
	if err != nil {
		d.fail(d.asked, off, err)
		return false
	}
	d.key, d.at, d.off = key, d.off, off
	d.held, d.any = true, true
	return true
}

// pass checks the held value and moves behind it.
func (d *Dict) pass() bool {
	next, err := skip(d.b, d.off, 1)
	if err != nil {
		d.fail(d.asked, next, err)
		return false
	}
	d.off, d.held = next, false
	return true
}

// find moves to the value of k; false when there is none.
func (d *Dict) find(k string) bool {
	if d.first && k <= d.asked {
		panic(fmt.Sprintf("bt: dict key %q asked for after %q", k, d.asked))
	}
	d.asked, d.first = k, true
	for d.next() {
		if string(d.key) == k {
			return true
		}
		if string(d.key) > k {
			return false
		}
		if !d.pass() {
			return false
		}
	}
	return false
}

// OptBytes returns the string under k; false when there is no such key. A value of another type is an error.
func (d *Dict) OptBytes(k string) ([]byte, bool) {
	if !d.find(k) {
		return nil, false
	}
	if d.off < len(d.b) && (d.b[d.off] < '0' || d.b[d.off] > '9') {
		d.fail(k, d.off, errType)
		return nil, false
	}
	s, next, err := str(d.b, d.off)
	if err != nil {
		d.fail(k, next, err)
		return nil, false
	}
	d.off, d.held = next, false
	return s, true
}

// Bytes returns the string under k, which must be there.
func (d *Dict) Bytes(k string) []byte {
	s, ok := d.OptBytes(k)
	d.require(k, ok)
	return s
}

// OptFixed is OptBytes of exactly n bytes; another length is an error.
func (d *Dict) OptFixed(k string, n int) ([]byte, bool) {
	s, ok := d.OptBytes(k)
	if ok && len(s) != n {
		d.fail(k, d.off, errSize)
		return nil, false
	}
	return s, ok
}

// Fixed returns the string of exactly n bytes under k, which must be there.
func (d *Dict) Fixed(k string, n int) []byte {
	s, ok := d.OptFixed(k, n)
	d.require(k, ok)
	return s
}

func (d *Dict) require(k string, ok bool) {
	if !ok {
		d.fail(k, d.off, errMissing)
	}
}

func (d *Dict) integer(k string) (neg bool, mag uint64, ok bool) {
	if !d.find(k) {
		return false, 0, false
	}
	neg, mag, next, err := integer(d.b, d.off)
	if err != nil {
		d.fail(k, next, err)
		return false, 0, false
	}
	d.off, d.held = next, false
	return neg, mag, true
}

// OptInt returns the integer under k; false when there is no such key. Above int64 is an error.
func (d *Dict) OptInt(k string) (int64, bool) {
	neg, mag, ok := d.integer(k)
	if !ok {
		return 0, false
	}
	v, fits := signed64(neg, mag)
	if !fits {
		d.fail(k, d.off, errRange)
		return 0, false
	}
	return v, true
}

// Int returns the integer under k, which must be there.
func (d *Dict) Int(k string) int64 {
	v, ok := d.OptInt(k)
	d.require(k, ok)
	return v
}

// OptUint returns the integer under k; false when there is no such key. Negative or above max is an error.
func (d *Dict) OptUint(k string, max uint64) (uint64, bool) {
	neg, mag, ok := d.integer(k)
	if ok && (neg || mag > max) {
		d.fail(k, d.off, errRange)
		return 0, false
	}
	return mag, ok
}

// Uint returns the integer of 0 to max under k, which must be there.
func (d *Dict) Uint(k string, max uint64) uint64 {
	v, ok := d.OptUint(k, max)
	d.require(k, ok)
	return v
}

// OptRaw returns the encoded value under k, of any type and checked to be well formed; false when there is no such key.
func (d *Dict) OptRaw(k string) ([]byte, bool) {
	if !d.find(k) {
		return nil, false
	}
	start := d.off
	if !d.pass() {
		return nil, false
	}
	return d.b[start:d.off:d.off], true
}

// Raw returns the encoded value under k, which must be there.
func (d *Dict) Raw(k string) []byte {
	v, ok := d.OptRaw(k)
	d.require(k, ok)
	return v
}

func (d *Dict) nested(k string, open byte) ([]byte, bool) {
	v, ok := d.OptRaw(k)
	if ok && v[0] != open {
		d.fail(k, d.off, errType)
		return nil, false
	}
	return v, ok
}

// OptList returns a cursor over the list under k, known to be well formed; false, and an empty list, when there is no such key.
// Errors of the nested cursor are its own.
func (d *Dict) OptList(k string) (List, bool) {
	v, ok := d.nested(k, 'l')
	if !ok {
		return List{b: emptyList, off: 1, err: d.err}, false
	}
	return ReadList(v), true
}

// List returns a cursor over the list under k, which must be there.
func (d *Dict) List(k string) List {
	l, ok := d.OptList(k)
	d.require(k, ok)
	l.err = d.err
	return l
}

// OptDict returns a cursor over the dict under k, known to be well formed; false, and an empty dict, when there is no such key.
// Errors of the nested cursor are its own.
func (d *Dict) OptDict(k string) (Dict, bool) {
	v, ok := d.nested(k, 'd')
	if !ok {
		return Dict{b: emptyDict, off: 1, err: d.err}, false
	}
	return ReadDict(v), true
}

// Dict returns a cursor over the dict under k, which must be there.
func (d *Dict) Dict(k string) Dict {
	n, ok := d.OptDict(k)
	d.require(k, ok)
	n.err = d.err
	return n
}

// Signature returns the 64-byte signature under k, which must be there, and the bytes that it covers: from the opening 'd' up to and
// including the last value before k (protocol 1 section 1.4). Nothing is verified here.
func (d *Dict) Signature(k string) (signed, sig []byte) {
	sig = d.Fixed(k, 64)
	if sig == nil {
		return nil, nil
	}
	return d.b[:d.at:d.at], sig
}

// Offset returns how far the input is read: the offset behind the value of the last key asked for, if that key was there.
func (d *Dict) Offset() int { return d.off }

// Finish skips the keys that are left and requires the closing 'e' to be the last byte of the input.
func (d *Dict) Finish() error {
	rest, err := d.FinishPrefix()
	if err == nil && len(rest) != 0 {
		d.err = fmt.Errorf("bt: dict: %w", errTrailing)
	}
	return d.err
}

// FinishPrefix is Finish for a dict that may be followed by other bytes, which it returns. It is the last call on d.
func (d *Dict) FinishPrefix() (rest []byte, err error) {
	for d.next() && d.pass() {
	}
	if d.err != nil {
		return nil, d.err
	}
	return d.b[d.off+1:], nil
}

var (
	emptyList = []byte("le")
	emptyDict = []byte("de")
)

// List is a cursor over an encoded list, with the rules of [Dict]:
//
//	for l.Next() {
//		v := l.Bytes()
//	}
//	err := l.Finish()
type List struct {
	b      []byte // from the opening 'l'
	off    int    // the next value, or the closing 'e'
	peeked bool   // Next was called and the value that it found is still to be read
	err    error
}

// ReadList starts reading the list at the start of b. It never fails itself; the first use says whether b is a list.
func ReadList(b []byte) List {
	l := List{b: b}
	switch {
	case len(b) == 0:
		l.err = fmt.Errorf("bt: list: %w", errTruncated)
	case b[0] != 'l':
		l.err = fmt.Errorf("bt: list: %w", errType)
	default:
		l.off = 1
	}
	return l
}

// Err returns the first error met so far.
func (l *List) Err() error { return l.err }

func (l *List) fail(off int, err error) {
	if l.err == nil {
		l.err = fmt.Errorf("bt: list: byte %d: %w", off, err)
	}
}

// Next says whether there is another value. A value that the call before found and that was not read is skipped.
func (l *List) Next() bool {
	if l.peeked {
		l.Raw()
	}
	switch {
	case l.err != nil:
		return false
	case l.off >= len(l.b):
		l.fail(l.off, errTruncated)
		return false
	}
	l.peeked = l.b[l.off] != 'e'
	return l.peeked
}

// value says whether a value can be read.
func (l *List) value() bool {
	if l.err == nil && !l.peeked && !l.Next() {
		l.fail(l.off, errMissing)
	}
	l.peeked = false
	return l.err == nil
}

// Raw returns the next value, encoded, of any type and checked to be well formed.
func (l *List) Raw() []byte {
	if !l.value() {
		return nil
	}
	start := l.off
	next, err := skip(l.b, l.off, 1)
	if err != nil {
		l.fail(next, err)
		return nil
	}
	l.off = next
	return l.b[start:next:next]
}

// Bytes returns the next value, a string.
func (l *List) Bytes() []byte {
	if !l.value() {
		return nil
	}
	if l.b[l.off] < '0' || l.b[l.off] > '9' {
		l.fail(l.off, errType)
		return nil
	}
	s, next, err := str(l.b, l.off)
	if err != nil {
		l.fail(next, err)
		return nil
	}
	l.off = next
	return s
}

// Fixed returns the next value, a string of exactly n bytes.
func (l *List) Fixed(n int) []byte {
	s := l.Bytes()
	if l.err == nil && len(s) != n {
		l.fail(l.off, errSize)
	}
	if l.err != nil {
		return nil
	}
	return s
}

func (l *List) integer() (neg bool, mag uint64) {
	if !l.value() {
		return false, 0
	}
	neg, mag, next, err := integer(l.b, l.off)
	if err != nil {
		l.fail(next, err)
		return false, 0
	}
	l.off = next
	return neg, mag
}

// Int returns the next value, an integer; above int64 is an error.
func (l *List) Int() int64 {
	v, fits := signed64(l.integer())
	if !fits {
		l.fail(l.off, errRange)
		return 0
	}
	return v
}

// Uint returns the next value, an integer of 0 to max.
func (l *List) Uint(max uint64) uint64 {
	neg, v := l.integer()
	if neg || v > max {
		l.fail(l.off, errRange)
		return 0
	}
	return v
}

// List returns a cursor over the next value, a list known to be well formed. Errors of the nested cursor are its own.
func (l *List) List() List {
	if v := l.nested('l'); v != nil {
		return ReadList(v)
	}
	return List{err: l.err}
}

// Dict returns a cursor over the next value, a dict known to be well formed. Errors of the nested cursor are its own.
func (l *List) Dict() Dict {
	if v := l.nested('d'); v != nil {
		return ReadDict(v)
	}
	return Dict{err: l.err}
}

func (l *List) nested(open byte) []byte {
	v := l.Raw()
	if v != nil && v[0] != open {
		l.fail(l.off, errType)
		return nil
	}
	return v
}

// Finish skips the values that are left and requires the closing 'e' to be the last byte of the input.
func (l *List) Finish() error {
	for l.Next() {
	}
	if l.err == nil && l.off+1 != len(l.b) {
		l.err = fmt.Errorf("bt: list: %w", errTrailing)
	}
	return l.err
}
