package router

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"lokinetd/config"
	"lokinetd/router/netdb"
)

// What changes at run time. On SIGHUP the configuration and the network file are read again; the network file also by itself when it has changed on disk
// (looked at every networkPoll), by relays and clients alike. What is wrong with a new one is logged, and the former one stays.

const (
	networkPoll = 10 * time.Second
	maxSerials  = 64 // networks whose serial is remembered
)

// serials are the highest serial that was accepted of each network, by operator and id. They outlive a restart, or else an old file could be
// replayed to a daemon that is restarted.
type serials map[string]uint64

// reload does what SIGHUP asks for.
func (h *host) reload() {
	h.networkChanged() // seen
	h.takeNetwork()
	if h.again == nil {
		return
	}
	h.ofConfig.Store(nil)
	c, err := h.again()
	if err != nil {
		h.wrong(&h.ofConfig, "configuration refused, the former one stays", err)
		return
	}
	h.reloadConfig(c)
}

// takeNetwork takes the network file if it is newer, and says if it cannot.
func (h *host) takeNetwork() {
	h.ofNetwork.Store(nil)
	h.wrong(&h.ofNetwork, "network file refused, the former one stays", h.reloadNetwork())
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
	for _, of := range []*atomic.Pointer[string]{&h.ofNetwork, &h.ofConfig} {
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
	for _, change := range config.Diff(&now, c) {
		var err error
		switch change.Key {
		case "log.level": // done by who read the configuration
			now.Log.Level = c.Log.Level
		case "service":
			now.Service = c.Service
			err = h.setServices(c.Service)
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

// readNetwork reads the network file and holds it against the serial that was accepted before, which it then raises. Errors leave everything as it was.
func (h *host) readNetwork() (*netdb.NetworkFile, error) {
	name := h.config.Network.File
	raw, err := readBounded(name, netdb.MaxNetworkFile)
	if err != nil {
		return nil, fmt.Errorf("network.file: %w", err)
	}
	file, err := netdb.ParseNetworkFile(raw, h.config.Network.Operator, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	seen := serials{}
	if err := h.dir.load(serialsFile, &seen); err != nil {
		return nil, err // a file that cannot be read must not make an old serial acceptable
	}
	id := fmt.Sprintf("%v/%d", file.Operator, file.Network)
	if err := file.Supersedes(seen[id]); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if seen[id] == file.Serial {
		return file, nil
	}
	if len(seen) >= maxSerials && seen[id] == 0 {
		return nil, fmt.Errorf("%s: %d networks have been joined from %s; remove %s there to forget their serials", name, len(seen), h.dir, serialsFile)
	}
	seen[id] = file.Serial
	return file, h.dir.save(serialsFile, seen)
}

// reloadNetwork takes a newer network file.
func (h *host) reloadNetwork() error {
	now := h.node.network.Load()
	file, err := h.readNetwork()
	if err != nil {
		return err
	}
	if file.Network != now.Network {
		return fmt.Errorf("%s: network id %d, but this daemon has joined %d: it must be restarted for that", h.config.Network.File, file.Network, now.Network)
	}
	if file.Serial == now.Serial {
		return nil
	}
	if file.Private != now.Private || file.UniqueRange != now.UniqueRange {
		h.log.Warn("the network's flags have changed: restart to follow them", "file", h.config.Network.File)
	}
	h.node.SetNetwork(file)
	h.log.Info("network file taken", "name", file.Name, "serial", file.Serial, "relays", len(file.Relays))
	return nil
}

// networkChanged says whether the network file is another one than at the last call.
func (h *host) networkChanged() bool {
	fi, err := os.Stat(h.config.Network.File)
	if err != nil {
		return false // gone or being replaced: what we have still holds
	}
	old := h.networkSeen
	h.networkSeen = fi
	return old == nil || !os.SameFile(old, fi) || !old.ModTime().Equal(fi.ModTime()) || old.Size() != fi.Size()
}
