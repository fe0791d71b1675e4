package router

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
)

// TestRecent: the last records from info on are remembered with their module and without their attributes, whatever the levels let through; memory is bounded.
func TestRecent(t *testing.T) {
	var out bytes.Buffer
	r := newRecent(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}))
	log := slog.New(r)
	log.With("mod", "dns", "remote", "secret").Info("one", "address", "secret")
	log.WithGroup("g").With("x", "secret").Warn("two")
	log.Debug("three")
	h := &host{recent: r}
	l := h.Log().Lines
	if len(l) != 2 || l[0].Message != "one" || l[0].Module != "dns" || l[0].Level != "INFO" || l[1].Message != "two" || strings.Contains(fmt.Sprint(l), "secret") {
		t.Errorf("%+v", l)
	}
	if text := out.String(); strings.Contains(text, "one") || !strings.Contains(text, "msg=two g.x=secret") {
		t.Errorf("written: %s", text)
	}
	for n := range 3 * recentLines {
		log.Info(fmt.Sprint(n))
	}
	if l = h.Log().Lines; len(l) != recentLines || l[recentLines-1].Message != fmt.Sprint(3*recentLines-1) || cap(r.kept.lines) > 3*recentLines {
		t.Errorf("%d lines, the last %+v", len(l), l[len(l)-1])
	}
}

// TestLogMessagesAreConstant: what is logged from info on has a message that is written in the program, for messages go into bug reports. The exceptions
// say which setting cannot be followed, and since when a relay is not tested.
func TestLogMessagesAreConstant(t *testing.T) {
	exceptions := map[string]string{"host_reload.go": "what", "relay_oxend.go": "text"}
	calls := 0
	for _, root := range []string{".", "../netif", "../dns", "../config"} {
		err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") || strings.Contains(file, "testnet") {
				return err
			}
			set := token.NewFileSet()
			parsed, err := parser.ParseFile(set, file, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || len(call.Args) == 0 {
					return true
				}
				method, ok := call.Fun.(*ast.SelectorExpr)
				if !ok || method.Sel.Name != "Info" && method.Sel.Name != "Warn" && method.Sel.Name != "Error" {
					return true
				}
				of := ""
				switch x := method.X.(type) {
				case *ast.Ident:
					of = x.Name
				case *ast.SelectorExpr:
					of = x.Sel.Name
				}
				if of = strings.ToLower(of); of != "log" && of != "slog" {
					return true
				}
				calls++
				arg, literal := call.Args[0].(*ast.BasicLit)
				if name, ok := call.Args[0].(*ast.Ident); !(literal && arg.Kind == token.STRING) && !(ok && exceptions[file] == name.Name) {
					t.Errorf("%v: the message of a log record is not constant", set.Position(call.Pos()))
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if calls < 40 {
		t.Errorf("only %d calls found", calls)
	}
}
