package router

import (
	"context"
	"log/slog"
	"sync"

	"lokinetd/router/control"
)

// recentLines is how many log records are remembered for a bug report.
const recentLines = 100

// recent is a log handler that remembers what was logged at info and above, without its attributes: messages are constant texts of this program, attributes say
// whom they are about.
type recent struct {
	slog.Handler
	module string
	kept   *keptLines
}

type keptLines struct {
	mu    sync.Mutex
	lines []control.LogLine
}

func newRecent(h slog.Handler) *recent { return &recent{Handler: h, kept: &keptLines{}} }

func (r *recent) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelInfo || r.Handler.Enabled(ctx, l)
}

func (r *recent) Handle(ctx context.Context, rec slog.Record) error {
	if rec.Level >= slog.LevelInfo {
		k := r.kept
		k.mu.Lock()
		k.lines = append(k.lines[max(0, len(k.lines)-recentLines+1):], control.LogLine{Time: rec.Time, Level: rec.Level.String(), Module: r.module, Message: rec.Message})
		k.mu.Unlock()
	}
	if !r.Handler.Enabled(ctx, rec.Level) {
		return nil
	}
	return r.Handler.Handle(ctx, rec)
}

func (r *recent) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *r
	for _, a := range attrs {
		if a.Key == "mod" {
			c.module = a.Value.String()
		}
	}
	c.Handler = r.Handler.WithAttrs(attrs)
	return &c
}

func (r *recent) WithGroup(name string) slog.Handler {
	c := *r
	c.Handler = r.Handler.WithGroup(name)
	return &c
}

// Log is what was logged lately.
func (h *host) Log() control.Log {
	k := h.recent.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	return control.Log{Schema: control.Schema, Lines: append([]control.LogLine{}, k.lines...)}
}
