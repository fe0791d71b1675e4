// Command lokinetd is the daemon (client or relay of a Session Router network)
// and the command line that talks to it. One file holds one subcommand.
//
// Exit codes: 0 ok, 1 failure, 2 usage, 3 daemon not running, 4 running but
// not ready, 5 permission denied, 6 not found or no path, 7 the daemon could
// not start, and will not by another try.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"lokinetd/netif/lab"
	"lokinetd/router/control"
)

const defaultConfig = "/etc/lokinetd/lokinetd.toml"

const (
	exitFailure = 1 + iota
	exitUsage
	exitNotRunning
	exitNotReady
	exitDenied
	exitNotFound
	exitNotStarted
)

// exitError is an error that chooses its exit code. A nil err says that all
// has been said already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// exitCode finds the code for an error of any command.
func exitCode(err error) int {
	var own *exitError
	var answer *control.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &own):
		return own.code
	case errors.Is(err, control.ErrNotRunning):
		return exitNotRunning
	case errors.As(err, &answer):
		return map[string]int{
			control.CodeUsage: exitUsage, control.CodeNotReady: exitNotReady,
			control.CodeDenied: exitDenied, control.CodeNotFound: exitNotFound,
		}[answer.Code] | map[bool]int{true: exitFailure}[answer.Code == control.CodeFailure]
	case errors.Is(err, os.ErrPermission):
		return exitDenied
	}
	return exitFailure
}

// app is what the subcommands share: the flags of all of them and the streams.
type app struct {
	config string
	socket string
	json   bool
	in     io.Reader // nil: standard input, if it is a terminal
	out    io.Writer
	err    io.Writer
	clock  func() time.Time            // nil: time.Now
	look   func(context.Context) sight // of doctor; nil: lookAround
}

func (a *app) now() time.Time {
	if a.clock != nil {
		return a.clock()
	}
	return time.Now()
}

func main() {
	lab.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// execute runs one command line and returns its exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return (&app{out: stdout, err: stderr}).execute(ctx, args)
}

func (a *app) execute(ctx context.Context, args []string) int {
	root := a.command()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(ctx)
	if err != nil && err.Error() != "" {
		fmt.Fprintf(a.err, "lokinetd: %v\n", err)
	}
	return exitCode(err)
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "lokinetd",
		Short: "Reach and host .loki sites over onion paths",
		Long: "lokinetd joins a Session Router network, gives this machine a network interface and a\nname server for .loki, .sesh and .snode addresses, and carries IP packets over onion paths.\n\n" +
			"Exit codes of all commands: 0 ok, 1 failure, 2 usage, 3 daemon not running, 4 running but not ready,\n5 permission denied, 6 not found or no path, 7 the daemon could not start. What --json prints only ever gains fields.",
		SilenceUsage:               true,
		SilenceErrors:              true,
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.NoArgs,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVarP(&a.config, "config", "c", defaultConfig, "configuration `file`")
	root.PersistentFlags().StringVar(&a.socket, "socket", "", "control socket of the daemon (default: as configured)")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{exitUsage, err} })
	root.AddCommand(
		a.runCommand(), a.proxyCommand(), a.statusCommand(), a.eventsCommand(), a.addressCommand(), a.resolveCommand(), a.pingCommand(),
		a.registryCommand(), a.relayCommand(),
		a.pathCommand(), a.sessionCommand(), a.serviceCommand(), a.keyCommand(), a.configCommand(), a.dnsCommand(), a.cleanupCommand(), a.doctorCommand(), a.demoCommand(), a.bugreportCommand(), a.versionCommand(),
	)
	wrapArgs(root)
	return root
}

// wrongArgs says what is wrong with the arguments of a command.
func wrongArgs(c *cobra.Command, args []string, err error) error {
	if !c.HasAvailableSubCommands() || len(args) == 0 {
		return usagef("%w; usage: %s", err, c.UseLine())
	}
	hint := ""
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		hint = ", but " + strings.Join(near, " and ")
	}
	return usagef("there is no command %q%s (see %s --help)", args[0], hint, c.CommandPath())
}

// wrapArgs makes a wrong number of arguments a usage error for every command,
// and a missing subcommand too. Shells complete file names only where an argument is a file.
func wrapArgs(cmd *cobra.Command) {
	if cmd.ValidArgsFunction == nil && !strings.Contains(cmd.Use, "FILE") {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return wrongArgs(c, args, err)
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		wrapArgs(sub)
	}
}

// group makes a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return usagef("which of the commands of %s? (see %s --help)", c.CommandPath(), c.CommandPath())
	}}
	cmd.AddCommand(subs...)
	return cmd
}

// jsonFlag gives a command --json.
func (a *app) jsonFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.json, "json", false, "print JSON for programs")
	return cmd
}

// printJSON writes v as indented JSON.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
