package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// tree is what the sources say.
type tree struct {
	root    string
	targets []target
	funcs   map[string][]function // by package folder
}

// target is one FuzzXxx of a package folder.
type target struct {
	pkg, name string
	threat    string // its comment
	decoders  []function
}

func (t target) String() string { return t.pkg + " " + t.name }

// function is one that is declared outside of tests; a method is called T.m.
type function struct {
	name        string
	file        string // its base
	first, last int    // lines
	decl        *ast.FuncDecl
}

// danger is the order of the packages in long runs: what a stranger reaches first, and with the least effort, stands first.
var danger = []string{"router/link", "router/path", "router/session", "router/bt", "router/netdb", "dns", "router/packet", "router/seal", "router/key", "netif", "router", "netif/proxy"}

const decodersPrefix = "Decoders: "

// readTree reads all packages below root. A target that names no decoder, or one that there is not, is an error.
func readTree(root string) (*tree, error) {
	t := &tree{root: root, funcs: map[string][]function{}}
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); file != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "build") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, file, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, file)
		pkg := path.Dir(filepath.ToSlash(rel))
		for _, d := range f.Decls {
			d, ok := d.(*ast.FuncDecl)
			if !ok || d.Body == nil {
				continue
			}
			switch test := strings.HasSuffix(file, "_test.go"); {
			case !test:
				t.funcs[pkg] = append(t.funcs[pkg], function{funcName(d), filepath.Base(file), fset.Position(d.Pos()).Line, fset.Position(d.End()).Line, d})
			case d.Recv == nil && strings.HasPrefix(d.Name.Name, "Fuzz"):
				t.targets = append(t.targets, target{pkg: pkg, name: d.Name.Name, threat: d.Doc.Text()})
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range t.targets {
		if err := t.resolve(&t.targets[i]); err != nil {
			return nil, err
		}
	}
	place := func(x target) int {
		if i := slices.Index(danger, x.pkg); i >= 0 {
			return i
		}
		return len(danger)
	}
	slices.SortFunc(t.targets, func(a, b target) int {
		return cmp.Or(cmp.Compare(place(a), place(b)), cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.name, b.name))
	})
	return t, nil
}

// resolve finds the functions that a target's comment names.
func (t *tree) resolve(x *target) error {
	foreign := false // it decodes for another package, of which nothing is measured
	for line := range strings.Lines(x.threat) {
		names, ok := strings.CutPrefix(line, decodersPrefix)
		if !ok {
			continue
		}
		for _, name := range strings.Fields(names) {
			if strings.Contains(name, "/") {
				foreign = true
				continue
			}
			n := len(x.decoders)
			for _, f := range t.funcs[x.pkg] {
				if f.name == name {
					x.decoders = append(x.decoders, f)
				}
			}
			if len(x.decoders) == n {
				return fmt.Errorf("%v: there is no function %s in its package", x, name)
			}
		}
	}
	if len(x.decoders) == 0 && !foreign {
		return fmt.Errorf("%v: its comment has no line %q", x, decodersPrefix+"...")
	}
	x.threat, _, _ = strings.Cut(x.threat, decodersPrefix)
	return nil
}

func funcName(d *ast.FuncDecl) string {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return d.Name.Name
	}
	typ := d.Recv.List[0].Type
	if s, ok := typ.(*ast.StarExpr); ok {
		typ = s.X
	}
	switch g := typ.(type) {
	case *ast.IndexExpr:
		typ = g.X
	case *ast.IndexListExpr:
		typ = g.X
	}
	if id, ok := typ.(*ast.Ident); ok {
		return id.Name + "." + d.Name.Name
	}
	return d.Name.Name
}
