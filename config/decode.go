package config

import (
	"encoding"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"lokinetd/router/key"
)

// decoder puts the values of a TOML file into the fields of a Config, by the tags that the package comment lists, and collects what is wrong.
type decoder struct {
	file  string
	dir   string // of relative paths
	lines lines
	errs  Errors
}

// fault notes what is wrong with a key, unless something around it or in it is known to be wrong: the rest follows from that.
func (d *decoder) fault(key, format string, args ...any) {
	within := func(a, b string) bool {
		return strings.HasPrefix(a, b) && (len(a) == len(b) || a[len(b)] == '.' || a[len(b)] == '[')
	}
	for _, e := range d.errs {
		if within(key, e.Key) || within(e.Key, key) {
			return
		}
	}
	d.errs = append(d.errs, &Error{File: d.file, Line: d.lines.of(key), Key: key, Message: fmt.Sprintf(format, args...)})
}

// decode is false when the file could not be read as TOML.
func (d *decoder) decode(data []byte, c *Config) bool {
	syntax := func(line int, format string, args ...any) bool {
		d.errs = append(d.errs, &Error{File: d.file, Line: line, Message: fmt.Sprintf(format, args...)})
		return false
	}
	if len(data) > MaxFile {
		return syntax(0, "larger than %d bytes", MaxFile)
	}
	var err error
	if d.lines, err = scanLines(string(data)); err != nil {
		return syntax(0, "%v", err)
	}
	tree := make(map[string]any)
	if _, err := toml.Decode(string(data), &tree); err != nil {
		var p toml.ParseError
		if errors.As(err, &p) {
			return syntax(p.Position.Line, "%s", p.Message)
		}
		return syntax(0, "%v", err)
	}
	d.table("", tree, reflect.ValueOf(c).Elem())
	return true
}

// table sets the fields of a struct.
func (d *decoder) table(path string, tree map[string]any, v reflect.Value) {
	names := make([]string, 0, len(tree))
	for name := range tree {
		names = append(names, name)
	}
	slices.Sort(names) // the same errors each time
	for _, name := range names {
		i := fieldOf(v.Type(), name)
		if i < 0 {
			d.unknown(path, name, tree[name], v.Type())
			continue
		}
		d.value(join(path, name), tree[name], v.Field(i), v.Type().Field(i).Tag)
	}
}

func fieldOf(t reflect.Type, name string) int {
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("toml") == name {
			return i
		}
	}
	return -1
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	keyType      = reflect.TypeFor[key.Public]()
	addrPortType = reflect.TypeFor[netip.AddrPort]()
)

// value sets one field or list element.
func (d *decoder) value(path string, in any, v reflect.Value, tag reflect.StructTag) {
	want := func(what string) { d.fault(path, "want %s, got %s", what, kindOf(in)) }
	text, isText := in.(string)

	switch v.Type() {
	case durationType:
		if !isText {
			want(`a duration in quotes like "5s"`)
			return
		}
		t, err := time.ParseDuration(text)
		if err != nil {
			d.fault(path, `%q is not a duration: want a number and a unit like "500ms", "5s" or "1m30s"`, text)
			return
		}
		if low, high := limits(tag, time.ParseDuration); low != nil && t < *low || high != nil && t > *high {
			d.fault(path, "%s is out of range: want %s", text, rangeText(tag))
			return
		}
		v.SetInt(int64(t))
		return
	case keyType:
		if !isText {
			want("a public key in quotes")
			return
		}
		if text == "" {
			v.SetZero()
			return
		}
		k, err := parseKey(text)
		if err != nil {
			d.fault(path, "%v", trim(err))
			return
		}
		v.Set(reflect.ValueOf(k))
		return
	case addrPortType:
		if !isText {
			want("an address in quotes")
			return
		}
		if text == "" {
			v.SetZero()
			return
		}
		a, err := parseAddrPort(text, tag.Get("port"))
		if err != nil {
			d.fault(path, "%v", err)
			return
		}
		v.Set(reflect.ValueOf(a))
		return
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if !isText {
			want("a text in quotes")
			return
		}
		if err := u.UnmarshalText([]byte(text)); err != nil {
			d.fault(path, "%v", err)
		}
		return
	}

	switch v.Kind() {
	case reflect.Struct:
		t, ok := in.(map[string]any)
		if !ok {
			want("a table")
			return
		}
		d.table(path, t, v)
	case reflect.Slice:
		d.list(path, in, v, tag)
	case reflect.String:
		if !isText {
			want("a text in quotes")
			return
		}
		d.text(path, text, v, tag)
	case reflect.Bool:
		b, ok := in.(bool)
		if !ok {
			want("true or false")
			return
		}
		v.SetBool(b)
	case reflect.Int:
		n, ok := in.(int64)
		if !ok {
			want("a whole number")
			return
		}
		low, high := limits(tag, func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) })
		if low != nil && n < *low || high != nil && n > *high {
			d.fault(path, "%d is out of range: want %s", n, rangeText(tag))
			return
		}
		v.SetInt(n)
	default:
		panic("config: no rule for a " + v.Type().String())
	}
}

// list sets a slice from an array or from tables.
func (d *decoder) list(path string, in any, v reflect.Value, tag reflect.StructTag) {
	var elements []any
	switch in := in.(type) {
	case []any:
		elements = in
	case []map[string]any:
		for _, t := range in {
			elements = append(elements, t)
		}
	default:
		what := "a list in brackets"
		if v.Type().Elem().Kind() == reflect.Struct && v.Type().Elem() != addrPortType && !reflect.PointerTo(v.Type().Elem()).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
			what = "tables, each begun with [[" + path + "]]"
		}
		d.fault(path, "want %s, got %s", what, kindOf(in))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(elements), len(elements))
	seen := make(map[any]int)
	for i, e := range elements {
		at := fmt.Sprintf("%s[%d]", path, i)
		before := len(d.errs)
		d.value(at, e, out.Index(i), tag)
		if len(d.errs) > before || !out.Index(i).Comparable() {
			continue
		}
		if out.Index(i).IsZero() {
			d.fault(at, "must not be empty")
			continue
		}
		if j, ok := seen[out.Index(i).Interface()]; ok {
			d.fault(at, "is the same as %s[%d]", path, j)
			continue
		}
		seen[out.Index(i).Interface()] = i
	}
	if len(elements) == 0 {
		out = reflect.Zero(v.Type())
	}
	v.Set(out)
}

// text sets a string: one of several words, a path, or anything.
func (d *decoder) text(path, text string, v reflect.Value, tag reflect.StructTag) {
	if words := strings.Fields(tag.Get("oneof")); len(words) > 0 && !slices.Contains(words, text) {
		d.fault(path, `%q: want "%s"`, text, strings.Join(words, `" or "`))
		return
	}
	for _, c := range text {
		if c < ' ' || c == 0x7f {
			d.fault(path, "holds a control character")
			return
		}
	}
	if tag.Get("path") != "" && text != "" {
		if looksSecret(text) {
			d.fault(path, "want the path of a file: keys do not belong into this one (and a secret key that stood here must be replaced)")
			return
		}
		if !filepath.IsAbs(text) {
			text = filepath.Join(d.dir, text)
		}
		text = filepath.Clean(text)
	}
	v.SetString(text)
}

// parseAddrPort reads IP:PORT, or an IP alone where there is a default port.
func parseAddrPort(text, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(text)
	if err != nil && port != "" {
		ip, ipErr := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
		n, _ := strconv.ParseUint(port, 10, 16)
		a, err = netip.AddrPortFrom(ip, uint16(n)), ipErr
	}
	if err != nil {
		return a, fmt.Errorf(`%q: want an IP address with a port, like "192.0.2.1:%s" or "[2001:db8::1]:%[2]s"`, text, port)
	}
	if a.Addr().Is4In6() || a.Port() == 0 {
		return a, fmt.Errorf("%q: want a plain IP address and a port of 1 to 65535", text)
	}
	return a, nil
}

// limits reads the tag bounds, "low..high".
func limits[T any](tag reflect.StructTag, parse func(string) (T, error)) (low, high *T) {
	end := func(text string) *T {
		if text == "" {
			return nil
		}
		v, err := parse(text)
		if err != nil {
			panic("config: tag bounds: " + err.Error())
		}
		return &v
	}
	a, b, _ := strings.Cut(tag.Get("bounds"), "..")
	return end(a), end(b)
}

func rangeText(tag reflect.StructTag) string {
	low, high, _ := strings.Cut(tag.Get("bounds"), "..")
	switch {
	case high == "":
		return low + " or more"
	case low == "":
		return high + " or less"
	}
	return low + " to " + high
}

func kindOf(in any) string {
	switch in := in.(type) {
	case string:
		return "a text"
	case bool:
		return strconv.FormatBool(in)
	case int64:
		return "the number " + strconv.FormatInt(in, 10)
	case float64:
		return "the number " + strconv.FormatFloat(in, 'g', -1, 64)
	case time.Time:
		return "a time"
	case map[string]any:
		return "a table"
	case []map[string]any:
		return "tables"
	case []any:
		return "a list"
	}
	return fmt.Sprintf("a %T", in)
}

// trim cuts the package name off an error of another package.
func trim(err error) string { return strings.TrimPrefix(err.Error(), "key: ") }

// unknown reports a key or table that does not exist, with the nearest that does: of the same table, else of any.
func (d *decoder) unknown(path, name string, in any, t reflect.Type) {
	best, distance := "", 2+len(name)/2 // further away, nothing is near
	consider := func(label, candidate string, penalty int) {
		if n := edits(name, candidate) + penalty; n < distance {
			best, distance = label, n
		}
	}
	at := join(path, name)
	switch in.(type) {
	case map[string]any, []map[string]any:
		var tables []string
		for i := range t.NumField() {
			f := t.Field(i)
			if _, ok := tableType(f.Type); !ok {
				continue
			}
			label := "[" + f.Tag.Get("toml") + "]"
			if f.Type.Kind() == reflect.Slice {
				label = "[" + label + "]"
			}
			tables = append(tables, label)
			consider(label, f.Tag.Get("toml"), 0)
		}
		switch {
		case len(tables) == 0:
			d.fault(at, "unknown table %q in [%s]: there are no tables in it", name, path)
		case best == "":
			d.fault(at, "unknown table %q; there are: %s", name, strings.Join(tables, ", "))
		default:
			d.fault(at, "unknown table %q; the nearest is %s", name, best)
		}
		return
	}

	where := "outside of all tables"
	if table, _, array := strings.Cut(path, "["); array {
		where = "in [[" + table + "]]"
	} else if path != "" {
		where = "in [" + path + "]"
	}
	for _, n := range namesOf(t) {
		consider(n, n, 0)
	}
	for _, k := range keysOf("", reflect.TypeFor[Config]()) {
		table, last, ok := strings.Cut(k, ".")
		if ok {
			consider(last+" in ["+table+"]", last, 1)
		} else {
			consider(k+" outside of all tables", k, 1)
		}
	}
	if best == "" {
		d.fault(at, "unknown key %q %s; there are: %s", name, where, strings.Join(namesOf(t), ", "))
	} else {
		d.fault(at, "unknown key %q %s; the nearest known key is %s", name, where, best)
	}
}

func namesOf(t reflect.Type) (names []string) {
	for i := range t.NumField() {
		names = append(names, t.Field(i).Tag.Get("toml"))
	}
	return names
}

// keysOf lists all keys below a struct type, tables themselves left out: "role", "dns.listen", "service.name".
func keysOf(path string, t reflect.Type) (keys []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		at := join(path, f.Tag.Get("toml"))
		if sub, ok := tableType(f.Type); ok {
			keys = append(keys, keysOf(at, sub)...)
		} else {
			keys = append(keys, at)
		}
	}
	return keys
}

// tableType gives the struct behind a table or an array of tables.
func tableType(t reflect.Type) (reflect.Type, bool) {
	if t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t.NumField() == 0 {
		return nil, false
	}
	_, ok := t.Field(0).Tag.Lookup("toml")
	return t, ok
}

// edits is the Levenshtein distance; a hyphen and an underscore are the same.
func edits(a, b string) int {
	if len(a) > 64 {
		a = a[:64]
	}
	a = strings.ReplaceAll(strings.ToLower(a), "-", "_")
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		left := row[0]
		row[0] = i + 1
		for j := range len(b) {
			diagonal := left
			if a[i] != b[j] {
				diagonal++
			}
			left = row[j+1]
			row[j+1] = min(diagonal, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// diff compares two structs field by field.
func diff(path string, a, b *Config) (changes []Change) {
	var walk func(path string, a, b reflect.Value)
	walk = func(path string, a, b reflect.Value) {
		for i := range a.NumField() {
			f := a.Type().Field(i)
			at := join(path, f.Tag.Get("toml"))
			sub, table := tableType(f.Type)
			switch {
			case table && f.Type.Kind() == reflect.Struct:
				walk(at, a.Field(i), b.Field(i))
			case reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()):
			default:
				reload := f.Tag.Get("reload") != ""
				if table { // an array of tables comes and goes as a whole
					reload = sub.Field(0).Tag.Get("reload") != ""
				}
				changes = append(changes, Change{at, reload})
			}
		}
	}
	walk(path, reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem())
	return changes
}
