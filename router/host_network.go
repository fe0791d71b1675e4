package router

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"lokinetd/config"
	"lokinetd/router/netdb"
	"lokinetd/router/statefile"
)

// Which network is joined. A private one is a file; of a public one there is nothing but bootstrap files, each with signed contacts of relays (protocol 1 section 6.6).
// Both are read at the start and again when they change on disk.

// bootstrapFile, in the data directory, is read where no bootstrap file is configured.
const bootstrapFile = "bootstrap.signed"

// findNetwork reads what is needed to join at the start. What is wrong with a file that is configured is an error; with the default bootstrap file it is a warning.
func (h *host) findNetwork() (*netdb.NetworkFile, error) {
	c := &h.config.Network
	file := publicNetwork(c)
	if c.File != "" {
		var err error
		if file, err = h.readNetwork(); err != nil {
			return nil, err
		}
	}
	var err error
	h.bootstraps, err = h.readBootstraps(file.Rules())
	if err != nil && len(c.Bootstrap) > 0 {
		return nil, err
	}
	h.wrong(&h.ofBootstrap, "bootstrap file refused", err)
	file.Contacts = append(file.Contacts, h.bootstraps...)
	return file, nil
}

func publicNetwork(c *config.Network) *netdb.NetworkFile {
	id := uint64(0)
	if c.Name == config.Testnet {
		id = 1
	}
	return netdb.PublicNetwork(id, nil)
}

// bootstrapFiles lists the bootstrap files: those of the configuration, else on a public network the one of the data directory, which may be missing.
func (h *host) bootstrapFiles() []string {
	switch c := &h.config.Network; {
	case len(c.Bootstrap) > 0:
		return c.Bootstrap
	case c.File == "":
		return []string{filepath.Join(h.config.DataDir, bootstrapFile)}
	}
	return nil
}

// readBootstraps gives the contacts of all bootstrap files, the latest of each relay. Any fault of any of them is an error.
func (h *host) readBootstraps(r netdb.Rules) (all []*netdb.RelayContact, err error) {
	for _, name := range h.bootstrapFiles() {
		raw, err := statefile.Read(name, netdb.MaxBootstrap)
		if errors.Is(err, fs.ErrNotExist) && len(h.config.Network.Bootstrap) == 0 {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("network.bootstrap: %w", err)
		}
		contacts, err := netdb.ParseBootstrap(raw, time.Now(), r)
		if err != nil {
			return nil, fmt.Errorf("network.bootstrap: %s: %w", name, err)
		}
		all = append(all, contacts...)
	}
	slices.SortStableFunc(all, func(a, b *netdb.RelayContact) int {
		if d := a.ID.Compare(b.ID); d != 0 {
			return d
		}
		return b.Time.Compare(a.Time)
	})
	return slices.CompactFunc(all, func(a, b *netdb.RelayContact) bool { return a.ID == b.ID }), nil
}

// readNetwork reads the network file and holds it against the serial that was accepted before, which it then raises. Errors leave everything as it was.
func (h *host) readNetwork() (*netdb.NetworkFile, error) {
	name := h.config.Network.File
	raw, err := statefile.Read(name, netdb.MaxNetworkFile)
	if err != nil {
		return nil, fmt.Errorf("network.file: %w", err)
	}
	file, err := netdb.ParseNetworkFile(raw, h.config.Network.Operator, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	seen := h.loadSerials()
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
	h.saveSerials(seen)
	return file, nil
}

// loadSerials gives the serials that were accepted before. When the file is damaged that is nothing: an older network file would be taken, which is said.
func (h *host) loadSerials() serials {
	h.unwritten.Lock()
	defer h.unwritten.Unlock()
	if h.unwritten.serials != nil {
		return maps.Clone(h.unwritten.serials)
	}
	seen, _ := restore[serials](h, serialsFile, "make sure that the network file is not an old one")
	if seen == nil {
		seen = serials{}
	}
	return seen
}

// saveSerials writes them, now or when there is room.
func (h *host) saveSerials(seen serials) {
	h.unwritten.Lock()
	defer h.unwritten.Unlock()
	h.unwritten.serials = nil
	if err := h.dir.save(serialsFile, seen); err != nil {
		h.unwritten.serials = seen
		h.log.Warn("the network file's serial cannot be kept yet: after a restart an older file would be taken", "err", err)
	}
}

// takeNetwork takes the network file if it is newer, and the bootstrap files if they have changed, and says if it cannot.
func (h *host) takeNetwork() {
	now := h.node.network.Load()
	h.ofBootstrap.Store(nil)
	bootstraps, err := h.readBootstraps(now.Rules())
	h.wrong(&h.ofBootstrap, "bootstrap file refused, the former ones stay", err)
	changed := err == nil && !slices.EqualFunc(bootstraps, h.bootstraps, func(a, b *netdb.RelayContact) bool { return bytes.Equal(a.Raw(), b.Raw()) })
	if changed {
		h.bootstraps = bootstraps
	}
	if h.config.Network.File == "" {
		if changed {
			h.node.SetNetwork(netdb.PublicNetwork(now.Network, bootstraps))
			h.log.Info("bootstrap files taken", "contacts", len(bootstraps))
		}
		return
	}
	h.ofNetwork.Store(nil)
	h.wrong(&h.ofNetwork, "network file refused, the former one stays", h.reloadNetwork(changed))
}

// reloadNetwork takes a newer network file, or with again the same one, to which there are other bootstraps.
func (h *host) reloadNetwork(again bool) error {
	now := h.node.network.Load()
	file, err := h.readNetwork()
	if err != nil {
		return err
	}
	if file.Network != now.Network {
		return fmt.Errorf("%s: network id %d, but this daemon has joined %d: it must be restarted for that", h.config.Network.File, file.Network, now.Network)
	}
	if file.Serial == now.Serial && !again {
		return nil
	}
	if file.Private != now.Private || file.UniqueRange != now.UniqueRange {
		h.log.Warn("the network's flags have changed: restart to follow them", "file", h.config.Network.File)
	}
	file.Contacts = append(file.Contacts, h.bootstraps...)
	h.node.SetNetwork(file)
	h.log.Info("network file taken", "name", file.Name, "serial", file.Serial, "relays", len(file.Relays))
	return nil
}

// networkChanged says whether the network file or a bootstrap file is another one than at the last call. One that is gone, or is being replaced, has not changed:
// what we have still holds.
func (h *host) networkChanged() (changed bool) {
	if h.networkSeen == nil {
		h.networkSeen = map[string]os.FileInfo{}
	}
	for _, name := range append(h.bootstrapFiles(), h.config.Network.File) {
		fi, err := os.Stat(name)
		if err != nil {
			continue
		}
		old := h.networkSeen[name]
		h.networkSeen[name] = fi
		changed = changed || old == nil || !os.SameFile(old, fi) || !old.ModTime().Equal(fi.ModTime()) || old.Size() != fi.Size()
	}
	return changed
}
