package router

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"lokinetd/config"
	"lokinetd/netif"
	"lokinetd/router/statefile"
)

// Files of the data directory that are the host's: small JSON files that are written whole and of which each may be missing. nodedb beside them is
// netdb's, the key files are key's.
const (
	lockFile      = "lock"           // held by the daemon that runs
	stateFile     = "host.json"      // what is changed on the host: hostState
	addressesFile = "addresses.json" // netif.Kept by endpoint
	serialsFile   = "networks.json"  // the last serial of each network file: serials
	edgesFile     = "edges.json"     // which relays a client connects to: keptEdges
)

const maxState = 4 << 20 // bytes of such a file

// folder is the data directory.
type folder string

// loadState reads a file. One that is missing says nothing, and is no error; of one that is broken nothing is believed.
func loadState[T any](d folder, name string) (v T, err error) {
	f, err := d.open(name, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	var raw []byte
	if err == nil {
		raw, err = statefile.ReadOpen(f, maxState)
		f.Close()
	}
	if err == nil {
		err = json.Unmarshal(raw, &v)
	}
	if err != nil {
		return *new(T), fmt.Errorf("router: %s: %w", filepath.Join(string(d), name), err)
	}
	return v, nil
}

// restore is loadState at the start of a daemon, which a damaged file must not stop: it is set aside, for people to look at, and what is lost with it is said.
func restore[T any](h *host, name, so string) (v T, damaged bool) {
	v, err := loadState[T](h.dir, name)
	if err == nil {
		return v, false
	}
	h.setAside(name, so, err)
	return v, true
}

func (h *host) setAside(name, so string, why error) {
	to, err := statefile.SetAside(filepath.Join(string(h.dir), name))
	if err != nil {
		h.log.Error("a damaged file cannot be set aside", "so", so, "err", errors.Join(why, err))
		return
	}
	h.log.Error("a damaged file was set aside", "so", so, "err", why, "now", to)
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
		err = statefile.Write(filepath.Join(string(d), name), append(raw, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("router: %s: %w", filepath.Join(string(d), name), err)
	}
	return nil
}

// sweep removes what writes of an earlier run have left that were cut short.
func (d folder) sweep() {
	for _, name := range []string{stateFile, addressesFile, serialsFile, edgesFile} {
		statefile.Sweep(filepath.Join(string(d), name))
	}
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

// hostState is the state file: what may be on the host because of us. It is written before the host is changed. After a reboot nothing of it is left, but that cannot be told from here
// (containers have boot ids of their own), and need not be: all of it bears our marks.
type hostState struct {
	Interface   string         `json:"interface,omitempty"`
	Index       int            `json:"index,omitempty"`
	Unreachable []netip.Prefix `json:"unreachable_routes,omitempty"`
}

func (s hostState) changes() netif.Changes {
	return netif.Changes{Interface: s.Interface, Index: s.Index, Unreachable: s.Unreachable}
}

func (d folder) setChanges(c netif.Changes) error {
	return d.save(stateFile, hostState{c.Interface, c.Index, c.Unreachable})
}

// openChanges finds what an earlier run has left on the host: in the state file or, when that is damaged, on the host itself.
func (h *host) openChanges() {
	s, damaged := restore[hostState](h, stateFile, "what it said is looked for on the host")
	h.before = s.changes()
	if damaged {
		var err error
		if h.before, err = h.sys.find(h.config.TUN.Name); err != nil {
			h.log.Warn("what an earlier run has left on the host is not known", "err", err)
		}
	}
}

// record is netif.DeviceConfig.Record. A disk that is full does not stop the network: then the file is emptied, which takes no room, and who finds it so looks on the host.
func (h *host) record(c netif.Changes) error {
	err := h.dir.setChanges(c)
	if err != nil {
		os.Truncate(filepath.Join(string(h.dir), stateFile), 0)
		h.log.Warn("what is changed on the host cannot be written down; cleanup will look for it there", "err", err)
	}
	h.unwritten.Lock()
	defer h.unwritten.Unlock()
	h.unwritten.changes = nil
	if err != nil {
		h.unwritten.changes = &c
	}
	return nil
}

// unwritten is what could not be written, for another try.
type unwritten struct {
	sync.Mutex
	changes *netif.Changes
	serials serials
}

// saveAgain tries again to write what could not be written.
func (h *host) saveAgain() {
	u := &h.unwritten
	u.Lock()
	defer u.Unlock()
	if u.changes != nil && h.dir.setChanges(*u.changes) == nil {
		u.changes = nil
	}
	if u.serials != nil && h.dir.save(serialsFile, u.serials) == nil {
		u.serials = nil
	}
}

// Cleanup undoes what a daemon with this configuration has left on the host, because it was killed or because its routes outlive it, and returns that. It can be
// repeated. While a daemon runs it does nothing and fails with ErrRunning. An interface that the configuration does not name is left alone, whatever the state file says.
func Cleanup(c *config.Config) (netif.Changes, error) {
	return cleanup(folder(c.DataDir), c.TUN.Name, netif.Find, netif.Cleanup)
}

func cleanup(d folder, name string, find func(string) (netif.Changes, error), undo func(netif.Changes) error) (netif.Changes, error) {
	if _, err := os.Lstat(filepath.Join(string(d), lockFile)); errors.Is(err, fs.ErrNotExist) {
		return netif.Changes{}, nil // no daemon was ever here; do not make its file, perhaps as another user
	}
	unlock, err := d.lock()
	if err != nil {
		return netif.Changes{}, err
	}
	defer unlock()
	s, err := loadState[hostState](d, stateFile)
	c := s.changes()
	if err != nil && !errors.Is(err, errForeign) { // damaged: the marks on the host tell as much
		c, err = find(name)
	}
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
