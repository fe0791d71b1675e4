package router

import (
	"context"
	"sync"
	"time"

	"lokinetd/router/key"
)

const (
	connectionsMost = 64               // remotes are called at a start
	connectionsWait = 30 * time.Second // for each
)

// meetPrograms looks, at a start, at the TCP connections that this host's programs had through an earlier run. They may wait for ever, since who only reads sends nothing,
// and the remote does not know where we are now. One whose remote has its address still, as with a lasting key, goes on: the remote is called, and may answer. The others are ended: the identity that
// they belonged to is gone.
func (h *host) meetPrograms() {
	all, err := h.sys.connections()
	if err != nil {
		h.log.Debug("connections of an earlier run are not looked for", "error", err)
		return
	}
	e, now := h.browsing(), time.Now()
	_, own4, own6 := e.addrs.Self()
	call, ended := map[key.Address]bool{}, 0
	for _, c := range all {
		if a := c.Local.Addr(); a != own4.Addr() && a != own6.Addr() {
			continue
		}
		if remote, known := e.addrs.Remote(c.Remote.Addr(), now); !known {
			if err := c.End(); err != nil {
				h.log.Debug("a connection of an earlier run was not ended", "error", err)
				continue
			}
			ended++
		} else if len(call) < connectionsMost {
			call[remote] = true
			e.place.Load().Resume(remote, c, now)
		}
	}
	if ended+len(call) == 0 {
		return
	}
	h.log.Info("programs have connections of an earlier run", "ended", ended, "remotes called", len(call))
	h.parts.run("calls for connections of an earlier run", hostLimit, func(ctx context.Context) error {
		limited, cancel := context.WithTimeout(ctx, connectionsWait)
		defer cancel()
		var wg sync.WaitGroup
		for remote := range call {
			wg.Go(func() { e.Sessions.Connect(limited, remote) })
		}
		wg.Wait()
		<-ctx.Done()
		return nil
	})
}
