package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// stack is what the daemon has started, in order; stop ends it in the reverse order, one after the other, each within its limit.
// A part may use those below it until its own end. For one goroutine.
type stack struct {
	log    *slog.Logger
	failed chan error // the first part that ended without being asked
	parts  []part
}

type part struct {
	name  string
	limit time.Duration
	stop  func() error // returns when all of the part has ended
}

func newStack(log *slog.Logger) *stack { return &stack{log: log, failed: make(chan error, 1)} }

// add puts something on the stack that is there already.
func (s *stack) add(name string, limit time.Duration, stop func() error) {
	s.log.Debug("part started", "part", name)
	s.parts = append(s.parts, part{name, limit, stop})
}

// run starts f and puts it on the stack; its context ends when its turn to stop has come. That f ends before is a failure.
func (s *stack) run(name string, limit time.Duration, f func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		err := f(ctx)
		if ctx.Err() == nil {
			if err == nil {
				err = fmt.Errorf("router: %s ended by itself", name)
			}
			select {
			case s.failed <- err:
			default:
			}
			err = nil
		}
		done <- err
	}()
	s.add(name, limit, func() error {
		cancel()
		return <-done
	})
}

// stop ends all parts. One that does not end within its limit is left behind, so that it cannot keep those below it from being undone; the error
// names it, and the caller is expected to exit.
func (s *stack) stop() error {
	var errs []error
	for len(s.parts) > 0 {
		p := s.parts[len(s.parts)-1]
		s.parts = s.parts[:len(s.parts)-1]
		start, done := time.Now(), make(chan error, 1)
		go func() { done <- p.stop() }()
		limit := time.NewTimer(p.limit)
		select {
		case err := <-done:
			errs = append(errs, err)
		case <-limit.C:
			errs = append(errs, fmt.Errorf("router: %s has not ended within %v", p.name, p.limit))
		}
		limit.Stop()
		s.log.Debug("part stopped", "part", p.name, "took", time.Since(start))
	}
	return errors.Join(errs...)
}
