package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"lokinetd/config"
	"lokinetd/router"
	"lokinetd/router/key"
)

func (a *app) runCommand() *cobra.Command {
	var levels string
	cmd := &cobra.Command{
		Use: "run", Short: "Run the daemon, a client or a relay as the configuration says", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(a.config)
			if err != nil {
				return err
			}
			if a.socket != "" {
				c.Control.Socket = a.socket
			}
			if levels != "" {
				if c.Log.Level, err = config.ParseLevels(c.Log.Level.String() + "," + levels); err != nil {
					return usagef("--log: %w", err)
				}
			}
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(400) // receiving costs a third less, see docs
			}
			log := newLogger(a.err, c.Log)
			slog.SetDefault(log)
			return router.Run(cmd.Context(), c, version, log)
		},
	}
	cmd.Flags().StringVar(&levels, "log", "", "log levels in addition to the configured ones, for example '*=info,dns=debug'")
	return cmd
}

// newLogger makes the daemon's logger: text or JSON, without time under journald, a level for each module.
func newLogger(w io.Writer, c config.Log) *slog.Logger {
	key.RevealInLogs(c.Level.Lowest() <= slog.LevelDebug)
	o := &slog.HandlerOptions{Level: c.Level.Lowest()}
	if os.Getenv("JOURNAL_STREAM") != "" {
		o.ReplaceAttr = func(groups []string, at slog.Attr) slog.Attr {
			if len(groups) == 0 && at.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return at
		}
	}
	var h slog.Handler = slog.NewTextHandler(w, o)
	if c.Format == "json" {
		h = slog.NewJSONHandler(w, o)
	}
	return slog.New(moduleHandler{h, c.Level, ""})
}

// moduleHandler lets through what the level of the logger's module allows; a logger gets its module by With("mod", name).
type moduleHandler struct {
	slog.Handler
	levels config.Levels
	module string
}

func (h moduleHandler) Enabled(_ context.Context, l slog.Level) bool {
	return l >= h.levels.Of(h.module)
}

func (h moduleHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, at := range attrs {
		if at.Key == "mod" {
			h.module = at.Value.String()
		}
	}
	h.Handler = h.Handler.WithAttrs(attrs)
	return h
}

func (h moduleHandler) WithGroup(name string) slog.Handler {
	h.Handler = h.Handler.WithGroup(name)
	return h
}
