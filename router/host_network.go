package router

import (
	"fmt"
	"os"
	"time"

	"lokinetd/router/netdb"
)

// The network file at run time: it is read again on SIGHUP and by itself when it has changed on disk (looked at every networkPoll), by relays and clients
// alike. What is wrong with a new one is logged, and the former one stays.

const (
	networkPoll = 10 * time.Second
	maxSerials  = 64 // networks whose serial is remembered
)

// serials are the highest serial that was accepted of each network, by operator and id. They outlive a restart, or else an old file could be
// replayed to a daemon that is restarted.
type serials map[string]uint64

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
