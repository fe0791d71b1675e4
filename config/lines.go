package config

import (
	"fmt"
	"strings"
)

// maxDepth bounds how deep tables, arrays and dotted keys may be nested, before the TOML library recurses into them.
const maxDepth = 16

// lines finds the line of each key, which the TOML library does not tell: "dns.listen", "service[1].name", and the tables themselves. Keys inside
// inline tables have the line of the key in front. It reads what is well-formed as TOML means it; of anything else it makes
// something, and the library reports it.
type lines map[string]int

// of gives the line of a key, or of the nearest thing around it; 0 when there is none.
func (l lines) of(key string) int {
	for {
		if n, ok := l[key]; ok {
			return n
		}
		if n, ok := l[key+"[0]"]; ok { // tables: the first
			return n
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			return 0
		}
		key = key[:i]
	}
}

// scanLines makes lines of a file. The error says where it is nested too deep.
func scanLines(text string) (lines, error) {
	s := scanner{text: strings.TrimPrefix(text, "\ufeff"), line: 1}
	l := make(lines)
	arrays := make(map[string]int) // how many tables of an array there are so far
	table := ""
	set := func(key string) {
		if _, ok := l[key]; !ok {
			l[key] = s.line
		}
	}
	for s.skipBlank(); s.i < len(s.text); s.skipBlank() {
		switch {
		case s.accept("[["):
			parts := s.key()
			table = resolve("", parts, arrays, true)
			set(table)
			s.skipLine()
		case s.accept("["):
			parts := s.key()
			table = resolve("", parts, arrays, false)
			set(table)
			s.skipLine()
		default:
			parts := s.key()
			for i := range parts {
				set(resolve(table, parts[:i+1], arrays, false))
			}
			s.skipValue()
		}
		if s.deep {
			return l, fmt.Errorf("nested deeper than %d levels", maxDepth)
		}
	}
	return l, nil
}

// resolve joins a key to the table it stands in. Arrays of tables on the way mean their last element; with next, the key begins a further element.
func resolve(table string, parts []string, arrays map[string]int, next bool) string {
	path := table
	for i, p := range parts {
		if path != "" {
			path += "."
		}
		path += p
		if next && i == len(parts)-1 {
			arrays[path]++
		}
		if n := arrays[path]; n > 0 {
			path = fmt.Sprintf("%s[%d]", path, n-1)
		}
	}
	return path
}

// scanner walks over a file. Each function leaves i behind what it read, and always moves on.
type scanner struct {
	text string
	i    int
	line int
	deep bool
}

func (s *scanner) next() byte {
	c := s.text[s.i]
	s.i++
	if c == '\n' {
		s.line++
	}
	return c
}

func (s *scanner) peek() byte {
	if s.i < len(s.text) {
		return s.text[s.i]
	}
	return 0
}

func (s *scanner) accept(t string) bool {
	if strings.HasPrefix(s.text[s.i:], t) {
		s.i += len(t)
		return true
	}
	return false
}

// skipBlank skips white space, empty lines and comments.
func (s *scanner) skipBlank() {
	for s.i < len(s.text) {
		switch s.peek() {
		case ' ', '\t', '\r', '\n':
			s.next()
		case '#':
			s.skipLine()
		default:
			return
		}
	}
}

func (s *scanner) skipLine() {
	for s.i < len(s.text) && s.next() != '\n' {
	}
}

// key reads a dotted key with its '=' or ']'.
func (s *scanner) key() (parts []string) {
	for s.i < len(s.text) {
		part := ""
		for s.peek() == ' ' || s.peek() == '\t' {
			s.next()
		}
		switch c := s.peek(); c {
		case '"', '\'':
			start := s.i
			s.skipString()
			part = strings.Trim(s.text[start:s.i], string(c))
		default:
			start := s.i
			for s.i < len(s.text) && !strings.ContainsRune(" \t\r\n.=]", rune(s.peek())) {
				s.next()
			}
			part = s.text[start:s.i]
		}
		parts = append(parts, part)
		for s.peek() == ' ' || s.peek() == '\t' {
			s.next()
		}
		if s.deep = s.deep || len(parts) > maxDepth; s.deep || s.i == len(s.text) {
			return parts
		}
		switch s.peek() {
		case '.':
			s.next()
		case '\n':
			return parts
		default:
			s.next()
			return parts
		}
	}
	return parts
}

// skipValue skips a value and the rest of its last line.
func (s *scanner) skipValue() {
	depth := 0
	for s.i < len(s.text) {
		switch s.peek() {
		case '"', '\'':
			s.skipString()
		case '[', '{':
			depth++
			s.deep = s.deep || depth > maxDepth
			s.next()
		case ']', '}':
			depth--
			s.next()
		case '#':
			s.skipLine()
			if depth <= 0 {
				return
			}
		default:
			if s.next() == '\n' && depth <= 0 {
				return
			}
		}
	}
}

// skipString skips one of the four kinds of strings. Those of one line end with it at the latest.
func (s *scanner) skipString() {
	quote := s.text[s.i : s.i+1]
	if long := strings.Repeat(quote, 3); s.accept(long) {
		for s.i < len(s.text) && !strings.HasPrefix(s.text[s.i:], long) {
			if s.next() == '\\' && quote == `"` && s.i < len(s.text) {
				s.next()
			}
		}
		for n := 0; n < 5 && s.accept(quote); n++ { // up to two quotes may belong to the text
		}
		return
	}
	s.next()
	for s.i < len(s.text) && s.peek() != '\n' {
		switch c := s.next(); {
		case string(c) == quote:
			return
		case c == '\\' && quote == `"` && s.peek() != '\n' && s.i < len(s.text):
			s.next()
		}
	}
}
