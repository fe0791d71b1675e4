package router

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"time"

	"lokinetd/netif"
	"lokinetd/router/key"
)

const (
	// sessionPoll is how often the address maps learn which sessions live, and are saved if they have changed.
	sessionPoll = 5 * time.Second
	// keptRemotes bounds the remotes of an endpoint that are remembered over a restart; one takes about 100 bytes in the file.
	keptRemotes = 4096
)

// loadAddresses reads what the endpoints' address maps were before.
func (h *host) loadAddresses() {
	h.kept, _ = restore[map[string]netif.Kept](h, addressesFile, "addresses of the last run are lost, and programs that still hold some may reach others by them")
	if h.kept == nil {
		h.kept = map[string]netif.Kept{}
	}
}

// keepName is what an endpoint is called in the file: its address, if that is the same at the next start. The name of a passing identity is not written
// down, and whom it has talked to neither.
func (e *hostEndpoint) keepName() string {
	if e.lasting {
		return e.Address().String()
	}
	return e.Config.Name
}

// saveAddresses writes the file if it has changed.
func (h *host) saveAddresses(now time.Time) error {
	h.saveMu.Lock()
	defer h.saveMu.Unlock()
	kept := map[string]netif.Kept{}
	maps.Copy(kept, h.orphans)
	for _, e := range h.endpoints {
		limit := 0
		if e.lasting {
			limit = keptRemotes
		}
		kept[e.keepName()] = e.addrs.Keep(limit, now)
	}
	raw, err := json.Marshal(kept)
	if err != nil || bytes.Equal(raw, h.saved) {
		return err
	}
	if err := h.dir.save(addressesFile, json.RawMessage(raw)); err != nil {
		return err
	}
	h.saved = raw
	return nil
}

// watchSessions tells the address maps which remotes have a session, so that those keep their addresses, and saves the maps.
func (h *host) watchSessions(ctx context.Context) error {
	live := map[*hostEndpoint]map[key.Address]bool{}
	t := time.NewTicker(sessionPoll)
	defer t.Stop()
	warned := false
	for {
		now, was := time.Now(), live
		live = make(map[*hostEndpoint]map[key.Address]bool, len(was))
		for _, e := range h.endpoints {
			next := map[key.Address]bool{}
			for _, i := range e.Sessions.List() {
				next[i.Remote] = true
				if !was[e][i.Remote] {
					e.addrs.SetLive(i.Remote, true, now)
				}
			}
			for a := range was[e] {
				if !next[a] {
					e.addrs.SetLive(a, false, now)
				}
			}
			live[e] = next
		}
		err := h.saveAddresses(now)
		if err != nil && !warned {
			h.log.Warn("addresses cannot be kept for the next start", "err", err)
		}
		warned = err != nil
		select {
		case <-t.C:
		case <-ctx.Done():
			return h.saveAddresses(time.Now())
		}
	}
}
