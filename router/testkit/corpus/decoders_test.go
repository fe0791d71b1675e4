package main

import (
	"go/ast"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// reads are the calls by which foreign bytes are taken apart. Who calls one of them, or is called like a parser and is given bytes or text, is a decoder.
var reads = regexp.MustCompile(`^(bt\.(ReadDict|ReadList|Valid|ParseUint)|json\.(Unmarshal|NewDecoder)|toml\.Decode|bufio\.(NewScanner|NewReader)|strings\.(Fields|Lines|SplitSeq|Split)|` +
	`(binary\.)?(BigEndian|LittleEndian)\.Uint\d+|http\.ReadRequest|zstd\.NewReader|seal\.OpenBox|packet\.ParseIP|\w+\.Unpack|\w+\.DecodeAll|netip\.Parse\w+)$`)

var parsers = regexp.MustCompile(`^(parse|Parse|decode|Decode|UnmarshalText|peek|Peek|read[A-Z]|Read[A-Z]|open[A-Z]|Open[A-Z]|Load|load)`)

// witnesses are packages that no foreign bytes reach: they are made for tests and builds.
var witnesses = regexp.MustCompile(`^(router/(testkit|testnet|link/overlay|oxend/standin|seal/sodium)|netif/lab)(/|$)`)

// noDecoders are functions that look like decoders and need no target, with the reason.
var noDecoders = map[string]string{
	"cmd/lokinetd app.ask":             argument,
	"cmd/lokinetd listenFlag":          argument,
	"cmd/lokinetd parseKey":            argument,
	"cmd/lokinetd parsePublic":         argument,
	"cmd/lokinetd parseRelayAddress":   argument,
	"cmd/lokinetd app.lookDaemon":      kernel,
	"cmd/lokinetd capabilitiesBehind":  kernel,
	"cmd/lokinetd systemFacts":         kernel,
	"cmd/lokinetd tunLink":             own,
	"cmd/lokinetd loadOrMakeKey":       only + "FuzzParseSecret",
	"cmd/lokinetd readBootstrap":       only + "FuzzBootstrap",
	"cmd/lokinetd readNetworkFile":     only + "FuzzNetworkFile",
	"config Load":                      only + "FuzzParse",
	"config LoadWith":                  only + "FuzzParse",
	"dns Server.cname":                 own,
	"dns Server.target":                only + "FuzzParseName",
	"dns cookieSecret.sip":             "a hash, which takes nothing apart",
	"dns parseCookieSecret":            own,
	"netif FreeIPv4":                   kernel,
	"netif/proxy appendAddress":        "it writes; FuzzSOCKS reads what it wrote",
	"router figures.collect":           kernel,
	"router loadOrMakeKey":             only + "FuzzParseSecret",
	"router pings.expect":              own,
	"router/key LoadSecret":            only + "FuzzParseSecret",
	"router/netdb OpenStore":           only + "FuzzStored, which calls it too",
	"router/netdb fold":                "a hash, which takes nothing apart",
	"router/netdb systemSource.Uint64": own,
	"router/path random64":             own,
	"router/path replies.first":        "a hash of a nonce of fixed size",
	"router/path throttle.push":        "the id of a message that Relay.Datagram has looked at",
	"router/session Table.Send":        own,
	"router/session mark":              "a hash of a nonce of fixed size",
}

const (
	argument = "what the administrator types"
	kernel   = "what the kernel says"
	own      = "bytes of our own"
	only     = "it only opens what is decoded under "
)

// TestDecoders: every decoder belongs to a fuzz target.
func TestDecoders(t *testing.T) {
	tr, err := readTree("../../..")
	if err != nil {
		t.Fatal(err)
	}
	fuzzed := map[string]bool{}
	for _, x := range tr.targets {
		if strings.TrimSpace(x.threat) == "" {
			t.Errorf("%v does not say what it is against", x)
		}
		for _, f := range x.decoders {
			fuzzed[x.pkg+" "+f.name] = true
		}
	}
	seen := map[string]bool{}
	for pkg, funcs := range tr.funcs {
		if witnesses.MatchString(pkg) {
			continue
		}
		for _, f := range funcs {
			name := pkg + " " + f.name
			if !isDecoder(f.decl) {
				continue
			}
			switch _, excused := noDecoders[name]; {
			case excused && fuzzed[name]:
				t.Errorf("%s has a fuzz target and an excuse", name)
			case !excused && !fuzzed[name]:
				t.Errorf("%s (%s:%d) reads foreign bytes: name it in the line Decoders of a fuzz target, or excuse it above", name, f.file, f.first)
			}
			seen[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(noDecoders)) {
		if !seen[name] {
			t.Errorf("%s is excused and not there", name)
		}
	}
}

func isDecoder(d *ast.FuncDecl) bool {
	if parsers.MatchString(d.Name.Name) && d.Type.Params != nil {
		for _, p := range d.Type.Params.List {
			switch typ := p.Type.(type) {
			case *ast.Ident:
				if typ.Name == "string" {
					return true
				}
			case *ast.ArrayType:
				if id, ok := typ.Elt.(*ast.Ident); ok && id.Name == "byte" && typ.Len == nil {
					return true
				}
			}
		}
	}
	found := false
	ast.Inspect(d.Body, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && reads.MatchString(callee(call.Fun)) {
			found = true
		}
		return !found
	})
	return found
}

// callee is the last two words of what is called.
func callee(e ast.Expr) string {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	switch x := s.X.(type) {
	case *ast.Ident:
		return x.Name + "." + s.Sel.Name
	case *ast.SelectorExpr:
		return x.Sel.Name + "." + s.Sel.Name
	}
	return ""
}
