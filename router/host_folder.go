package router

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"lokinetd/netif"
)

// Files of the data directory that are the host's: small JSON files that are written whole and of which each may be missing. nodedb beside them is
// netdb's, the key files are key's.
const (
	lockFile      = "lock"           // held by the daemon that runs
	stateFile     = "host.json"      // what is changed on the host: hostState
	addressesFile = "addresses.json" // netif.Kept by endpoint
	serialsFile   = "networks.json"  // the last serial of each network file: serials
)

const maxState = 4 << 20 // bytes of such a file

// folder is the data directory.
type folder string

// load reads a file into v. One that is missing leaves v alone and is no error; one that is broken is, and leaves v alone too.
func (d folder) load(name string, v any) error {
	raw, err := readBounded(filepath.Join(string(d), name), maxState)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(raw, v)
	}
	if err != nil {
		return fmt.Errorf("router: %s: %w", filepath.Join(string(d), name), err)
	}
	return nil
}

// save writes a file whole: after a crash it is the old or the new one.
func (d folder) save(name string, v any) error {
	raw, err := json.Marshal(v)
	if err == nil {
		err = renameio.WriteFile(filepath.Join(string(d), name), append(raw, '\n'), 0o600, renameio.WithTempDir(string(d)))
	}
	if err != nil {
		return fmt.Errorf("router: %s: %w", filepath.Join(string(d), name), err)
	}
	return nil
}

func (d folder) remove(name string) error {
	if err := os.Remove(filepath.Join(string(d), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("router: %w", err)
	}
	return nil
}

// ErrRunning says that a daemon with this data directory runs.
var ErrRunning = errors.New("a daemon that uses this data directory is running")

// lock makes this process the only one that works with the folder, until unlock or its end, however it ends. Error: ErrRunning.
func (d folder) lock() (unlock func() error, err error) {
	f, err := os.OpenFile(filepath.Join(string(d), lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrRunning
		}
		return nil, fmt.Errorf("router: %s: %w", d, err)
	}
	return f.Close, nil
}

// readBounded reads a file of at most limit bytes.
func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(raw)) > limit {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, limit)
	}
	return raw, err
}

// hostState is the state file: what may be on the host because of us. It is written before the host is changed.
type hostState struct {
	Boot        string         `json:"boot"` // the kernel's boot id: after a reboot nothing of it is left
	Interface   string         `json:"interface,omitempty"`
	Index       int            `json:"index,omitempty"`
	Unreachable []netip.Prefix `json:"unreachable_routes,omitempty"`
}

// changes loads the state file. What was changed before the last boot is gone.
func (d folder) changes() (netif.Changes, error) {
	var s hostState
	if err := d.load(stateFile, &s); err != nil || s.Boot != bootID() {
		return netif.Changes{}, err
	}
	return netif.Changes{Interface: s.Interface, Index: s.Index, Unreachable: s.Unreachable}, nil
}

func (d folder) setChanges(c netif.Changes) error {
	return d.save(stateFile, hostState{bootID(), c.Interface, c.Index, c.Unreachable})
}

func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}

// Cleanup undoes what a daemon with this data directory has left on the host, because it was killed or because its routes outlive it, and returns that. It can
// be repeated. While a daemon runs it does nothing and fails with ErrRunning.
func Cleanup(dataDir string) (netif.Changes, error) { return cleanup(folder(dataDir), netif.Cleanup) }

func cleanup(d folder, undo func(netif.Changes) error) (netif.Changes, error) {
	if _, err := os.Stat(filepath.Join(string(d), lockFile)); errors.Is(err, fs.ErrNotExist) {
		return netif.Changes{}, nil // no daemon was ever here; do not make its file, perhaps as another user
	}
	unlock, err := d.lock()
	if err != nil {
		return netif.Changes{}, err
	}
	defer unlock()
	c, err := d.changes()
	if err != nil {
		return c, err
	}
	if err := undo(c); err != nil {
		return c, err // and the file stays
	}
	return c, d.remove(stateFile)
}
