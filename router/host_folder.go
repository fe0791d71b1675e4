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

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"lokinetd/config"
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
	f, err := d.open(name, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var raw []byte
	if err == nil {
		raw, err = readAll(f, maxState)
		f.Close()
	}
	if err == nil {
		err = json.Unmarshal(raw, v)
	}
	if err != nil {
		return fmt.Errorf("router: %s: %w", filepath.Join(string(d), name), err)
	}
	return nil
}

// open opens a file of the folder, which belongs to the daemon's user: what that user puts in its place must not make root, who cleans up, open something else, or wait. So it has to be
// a file, not a link nor another name of one, and of whom the folder is, or ours.
func (d folder) open(name string, flags int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(string(d), name), flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if errors.Is(err, unix.ELOOP) {
		return nil, errForeign
	}
	if err != nil {
		return nil, err
	}
	var file, dir unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &file)
	if err == nil {
		err = unix.Stat(string(d), &dir)
	}
	if err == nil && (file.Mode&unix.S_IFMT != unix.S_IFREG || file.Nlink != 1 || file.Uid != dir.Uid && int(file.Uid) != os.Geteuid()) {
		err = errForeign
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

var errForeign = errors.New("this is not a file that lokinetd has made: a link, or somebody else's")

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
	f, err := d.open(lockFile, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("router: %s: %w", filepath.Join(string(d), lockFile), err)
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
	return readAll(f, limit)
}

func readAll(f *os.File, limit int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(raw)) > limit {
		return nil, fmt.Errorf("%s: larger than %d bytes", f.Name(), limit)
	}
	return raw, err
}

// hostState is the state file: what may be on the host because of us. It is written before the host is changed. After a reboot nothing of it is left, but that cannot be told from here
// (containers have boot ids of their own), and need not be: all of it bears our marks.
type hostState struct {
	Interface   string         `json:"interface,omitempty"`
	Index       int            `json:"index,omitempty"`
	Unreachable []netip.Prefix `json:"unreachable_routes,omitempty"`
}

// changes loads the state file.
func (d folder) changes() (netif.Changes, error) {
	var s hostState
	err := d.load(stateFile, &s)
	return netif.Changes{Interface: s.Interface, Index: s.Index, Unreachable: s.Unreachable}, err
}

func (d folder) setChanges(c netif.Changes) error {
	return d.save(stateFile, hostState{c.Interface, c.Index, c.Unreachable})
}

// Cleanup undoes what a daemon with this configuration has left on the host, because it was killed or because its routes outlive it, and returns that. It can be
// repeated. While a daemon runs it does nothing and fails with ErrRunning. An interface that the configuration does not name is left alone, whatever the state file says.
func Cleanup(c *config.Config) (netif.Changes, error) {
	return cleanup(folder(c.DataDir), c.TUN.Name, netif.Cleanup)
}

func cleanup(d folder, name string, undo func(netif.Changes) error) (netif.Changes, error) {
	if _, err := os.Lstat(filepath.Join(string(d), lockFile)); errors.Is(err, fs.ErrNotExist) {
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
	if !netif.IsNamed(c.Interface, name) {
		c.Index = 0
	}
	if err := undo(c); err != nil {
		return c, err // and the file stays
	}
	return c, d.remove(stateFile)
}
