//go:build manuals

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra/doc"
)

// Built with the tag manuals, this program is not lokinetd: it writes the manual pages of all commands into a folder.
// "go run -tags manuals ./cmd/lokinetd DIRECTORY VERSION"; the packages need it, so that what makes pages is not in the daemon.
func init() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: DIRECTORY VERSION")
		os.Exit(exitUsage)
	}
	root := (&app{}).command()
	root.DisableAutoGenTag = true
	root.InitDefaultCompletionCmd()
	h := &doc.GenManHeader{Section: "1", Source: "lokinetd " + os.Args[2], Manual: "lokinetd"}
	if err := doc.GenManTree(root, h, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitFailure)
	}
	os.Exit(0)
}
