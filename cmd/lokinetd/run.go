package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"

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
			c, err := a.daemon(cmd.Context(), levels, func() (*config.Config, error) { return config.Load(a.config) }, router.Run)
			if c != nil && c.Role == config.RoleClient && errors.Is(err, fs.ErrPermission) {
				err = fmt.Errorf("%w; a client has to run as root, or with the capability CAP_NET_ADMIN and /dev/net/tun open to it; without either there is `lokinetd proxy`", err)
			}
			if start := (router.StartError{}); exitCode(err) == exitFailure && (c == nil || errors.As(err, &start)) {
				err = &exitError{exitNotStarted, err}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&levels, "log", "", "log levels in addition to the configured ones, for example '*=info,dns=debug'")
	return cmd
}

// daemon runs a daemon with the configuration that read gives, now and for every reload, changed by the flags. The configuration is nil when there is none.
func (a *app) daemon(ctx context.Context, levels string, read func() (*config.Config, error),
	run func(context.Context, *config.Config, string, *slog.Logger, func() (*config.Config, error)) error) (*config.Config, error) {
	load := func() (*config.Config, error) {
		c, err := read()
		if err != nil {
			return nil, err
		}
		if a.socket != "" {
			c.Control.Socket = a.socket
		}
		if levels != "" {
			if c.Log.Level, err = config.ParseLevels(c.Log.Level.String() + "," + levels); err != nil {
				return nil, usagef("--log: %w", err)
			}
		}
		return c, nil
	}
	c, err := load()
	if err != nil {
		return nil, err
	}
	log, setLevels := newLogger(a.err, c.Log)
	slog.SetDefault(log)
	return c, run(ctx, c, version, log, func() (*config.Config, error) {
		c, err := load()
		if err == nil {
			setLevels(c.Log.Level)
		}
		return c, err
	})
}

// newLogger makes the daemon's logger: text or JSON, without time under journald, a level for each module, which set changes.
func newLogger(w io.Writer, c config.Log) (log *slog.Logger, set func(config.Levels)) {
	levels := new(atomic.Pointer[config.Levels])
	set = func(l config.Levels) {
		key.RevealInLogs(l.Lowest() <= slog.LevelDebug)
		levels.Store(&l)
	}
	set(c.Level)
	o := &slog.HandlerOptions{Level: slog.LevelDebug} // moduleHandler decides
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
	return slog.New(moduleHandler{h, levels, ""}), set
}

// moduleHandler lets through what the level of the logger's module allows; a logger gets its module by With("mod", name).
type moduleHandler struct {
	slog.Handler
	levels *atomic.Pointer[config.Levels]
	module string
}

func (h moduleHandler) Enabled(_ context.Context, l slog.Level) bool {
	return l >= h.levels.Load().Of(h.module)
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
