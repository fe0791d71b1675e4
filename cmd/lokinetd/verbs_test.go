package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestVerbs: every command that is promised is there, each says what it does and refuses what it does not know, and shells can complete all of them.
func TestVerbs(t *testing.T) {
	root := (&app{}).command()
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	for _, name := range strings.Fields("run status events address resolve ping path session service relay key dns registry config cleanup doctor proxy demo bugreport completion version") {
		if cmd, _, err := root.Find([]string{name}); err != nil || cmd.Name() != name {
			t.Errorf("there is no lokinetd %s", name)
		}
	}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		if s := cmd.Short; s == "" || strings.HasSuffix(s, ".") {
			t.Errorf("%s: %q", cmd.CommandPath(), s)
		}
		for line := range strings.Lines(cmd.Long) {
			if len(line) > 121 {
				t.Errorf("%s: a line of %d characters: %s", cmd.CommandPath(), len(line), line)
			}
		}
		if f := cmd.Flags().Lookup("json"); f == nil && strings.Contains(cmd.Short, "Print the") && !strings.Contains(cmd.CommandPath(), "completion") {
			t.Errorf("%s has no --json", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		var out, said bytes.Buffer
		if code := (&app{out: &out, err: &said}).execute(t.Context(), []string{"completion", shell}); code != 0 || out.Len() < 1000 {
			t.Errorf("completion %s: %d: %s", shell, code, said.String())
		}
	}
	t.Chdir(t.TempDir())
	serve(t, fakeDaemon{status: clientStatus()})
	for line, want := range map[string]string{
		"st":                      "status\tSay how the daemon is, in one screen\n:4\n",
		"status ":                 ":4\n",
		"path ":                   "list\tList the paths that this daemon built\n:4\n",
		"key show ":               ":0\n", // files
		"--socket ./sock ping ":   goldenClient(4) + "\n" + goldenClient(5) + "\n:4\n",
		"--socket ./none ping ":   ":4\n",
		"--socket ./sock ping x ": ":4\n",
	} {
		var out, said bytes.Buffer
		if code := (&app{out: &out, err: &said}).execute(t.Context(), append([]string{"__complete"}, strings.Split(line, " ")...)); code != 0 || out.String() != want {
			t.Errorf("completing %q: %d, %q, want %q", line, code, out.String(), want)
		}
	}
}
