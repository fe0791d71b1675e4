package router

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"lokinetd/config"
)

// What changes at run time. On SIGHUP the configuration, the network file and the bootstrap files are read again; the latter two also by themselves when they have
// changed on disk (looked at every networkPoll), by relays and clients alike. What is wrong with a new one is logged, and the former one stays.

const (
	networkPoll = 10 * time.Second
	maxSerials  = 64 // networks whose serial is remembered
)

// serials are the highest serial that was accepted of each network, by operator and id. They outlive a restart, or else an old file could be
// replayed to a daemon that is restarted.
type serials map[string]uint64

// reload does what SIGHUP asks for.
func (h *host) reload() {
	h.saveAgain()
	h.networkChanged() // seen
	h.takeNetwork()
	if h.again == nil {
		return
	}
	h.ofConfig.Store(nil)
	c, err := h.again()
	if err != nil {
		h.wrong(&h.ofConfig, "configuration refused, the former one stays", err)
	} else {
		h.reloadConfig(c)
	}
	h.readClientLists() // in any case: who is struck off must not stay for a fault elsewhere
}

// wrong logs an error and keeps it for status, until the next look.
func (h *host) wrong(of *atomic.Pointer[string], what string, err error) {
	if err != nil {
		h.log.Error(what, "err", err)
		text := what + ": " + err.Error()
		of.Store(&text)
	}
}

// reloadWarnings is what status says about the last reload.
func (h *host) reloadWarnings() (all []string) {
	for _, of := range []*atomic.Pointer[string]{&h.ofNetwork, &h.ofBootstrap, &h.ofConfig, &h.ofClients, &h.ofForwards} {
		if text := of.Load(); text != nil {
			all = append(all, *text)
		}
	}
	return all
}

// reloadConfig follows a new configuration as far as that is possible without a restart, and says what needs one.
func (h *host) reloadConfig(c *config.Config) {
	now := *h.current.Load()
	var later []string
	changes := config.Diff(&now, c)
	if service := (config.Change{Key: "service", Reload: true}); h.unserved && !slices.Contains(changes, service) {
		changes = append(changes, service)
	}
	for _, change := range changes {
		var err error
		switch change.Key {
		case "log.level": // done by who read the configuration
			now.Log.Level = c.Log.Level
		case "service":
			now.Service = c.Service
			err = h.setServices(c.Service)
			h.unserved = err != nil
		case "dns.upstream":
			if h.dns != nil {
				err = h.setUpstream(c.DNS.Upstream)
			}
			if err == nil {
				now.DNS.Upstream = c.DNS.Upstream
			}
		default:
			later = append(later, change.Key)
			continue
		}
		if err == nil {
			h.log.Info("reloaded", "key", change.Key)
		}
		h.wrong(&h.ofConfig, "cannot follow the configuration: "+change.Key, err)
	}
	h.current.Store(&now)
	if len(later) > 0 {
		h.log.Warn("restart to follow the configuration", "keys", later)
		text := "a restart is needed to follow the configuration: " + strings.Join(later, ", ")
		if of := h.ofConfig.Load(); of != nil {
			text = *of + "; " + text
		}
		h.ofConfig.Store(&text)
	}
}
