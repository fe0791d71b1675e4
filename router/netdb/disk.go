package netdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/statefile"
)

const (
	// suffix of a relay contact's file; the stem is the relay's id in base32z.
	suffix = ".signed"
	// selfLink, at a relay, leads to the file of its own contact, for people who want to hand it on.
	selfLink = "self" + suffix
	// diskRetry is how long the writer waits after an error before it tries again.
	diskRetry = time.Minute
	// diskFlush bounds the last write at the end of Run. What is not written then is fetched again.
	diskFlush = 5 * time.Second
	// maxDirty bounds the ids that wait for the writer. More are not saved.
	maxDirty = 2 * MaxRelays
)

// OpenStore makes the store of a node and loads dir, the folder nodedb of the data directory (protocol 1 section 9.1); "" keeps all in
// memory. dir is made when it is missing. Files <52 base32z>.signed that are too large, not valid by r, expired or not the contact of the
// relay that they are named after are removed and logged, as are remains of writes that were cut short; other files are left alone. A relay
// finds its own contact by the link self.signed. A client believes in the ids that it finds here. What is not a file or, of dir itself, not a folder is
// set aside. Errors: dir cannot be made, unless for want of room, or cannot be read.
func OpenStore(dir string, self key.Public, relay bool, r Rules, log *slog.Logger) (*Store, error) {
	s := newStore(self, relay, r, log)
	if dir == "" {
		return s, nil
	}
	var files []fs.DirEntry
	err := makeDir(dir)
	switch {
	case err == nil:
		files, err = os.ReadDir(dir)
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT): // the writer tries again
		s.log.Warn("netdb: relay contacts are not kept yet", "folder", dir, "error", err)
		s.disk.unmade, err = true, nil
	}
	if err != nil {
		return nil, fmt.Errorf("netdb: %w", err)
	}
	if relay {
		linkSelf(filepath.Join(dir, selfLink), self)
	}
	now := time.Now()
	removed, unused := 0, 0
	var failed error // the last of them
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		id, unfinished, ours := parseFileName(f.Name())
		if !ours {
			continue
		}
		if f.IsDir() { // it would be in the writer's way
			if _, err := statefile.SetAside(path); err != nil {
				failed = err
			}
			removed++
		}
		if !f.Type().IsRegular() {
			continue
		}
		if !unfinished {
			raw, err := readContact(path)
			if err != nil {
				failed = err // not the file's fault: it stays
				continue
			}
			c, err := parseStored(raw, f.Name(), now, s.rules)
			if err == nil {
				if stored, _ := s.Put(c); !stored {
					unused++ // signed too far ahead: perhaps our clock is not set yet
				} else if !relay {
					s.known[id] = struct{}{}
				}
				continue
			}
			s.log.Debug("netdb: removing a relay contact's file", "relay", id, "reason", err)
		}
		removed++
		if err := os.Remove(path); err != nil {
			failed = err
		}
	}
	if failed != nil {
		s.log.Warn("netdb: some relay contacts' files cannot be read or removed", "folder", dir, "error", nameless(failed))
	}
	s.log.Info("netdb: relay contacts loaded", "count", s.Len(), "removed", removed, "signed_in_the_future", unused)
	s.disk.dir = dir
	s.disk.dirty = make(map[key.Public]struct{})
	s.disk.wake = make(chan struct{}, 1)
	return s, nil
}

// makeDir makes the folder; what else lies in its place is set aside.
func makeDir(dir string) error {
	if st, err := os.Stat(dir); err == nil && !st.IsDir() {
		if _, err := statefile.SetAside(dir); err != nil {
			return err
		}
	}
	return os.MkdirAll(dir, 0o700)
}

// linkSelf makes the link anew. It may dangle; nothing is lost when it cannot be made, and a file in its place stays.
func linkSelf(link string, self key.Public) {
	if fi, err := os.Lstat(link); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
		os.Remove(link)
	}
	os.Symlink(self.String()+suffix, link)
}

// parseFileName says whether a file is one of ours, whose, and whether it is the temporary one of a write that was cut short.
func parseFileName(name string) (id key.Public, unfinished, ours bool) {
	stem, rest, found := strings.Cut(strings.TrimPrefix(name, "."), suffix)
	unfinished = strings.HasPrefix(name, ".")
	if !found || unfinished != (rest != "") || strings.Trim(rest, "0123456789") != "" {
		return key.Public{}, false, false
	}
	id, err := key.ParsePublic(stem)
	return id, unfinished, err == nil
}

// readContact reads a file, or the beginning of one that is too large for a contact.
func readContact(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxRelayContact+1))
}

// parseStored parses the content of the file of a relay.
func parseStored(raw []byte, name string, now time.Time, r Rules) (*RelayContact, error) {
	c, err := ParseRelayContact(raw, now, r)
	if err != nil {
		return nil, err
	}
	if name != c.ID.String()+suffix {
		return nil, errors.New("netdb: the file is named after another relay")
	}
	return c, nil
}

// disk is the Store's way to its folder. Other goroutines only name the ids that changed; the writer looks up what is to be done when it comes to
// it, so that many changes of one contact are one write, and a slow, failing or full disk holds up nothing.
type disk struct {
	dir    string        // "": no disk
	wake   chan struct{} // capacity 1
	unmade bool          // there was no room for the folder; the writer's

	mu      sync.Mutex
	dirty   map[key.Public]struct{}
	skipped int // ids not noted because dirty was full
}

// touch notes that the contact of id changed or went. It never blocks.
func (d *disk) touch(id key.Public) {
	if d.dir == "" {
		return
	}
	d.mu.Lock()
	if _, noted := d.dirty[id]; !noted && len(d.dirty) >= maxDirty {
		d.skipped++
	} else {
		d.dirty[id] = struct{}{}
	}
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// take returns the ids that wait and forgets them.
func (d *disk) take() (ids []key.Public, skipped int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := range d.dirty {
		ids = append(ids, id)
	}
	clear(d.dirty)
	skipped, d.skipped = d.skipped, 0
	return ids, skipped
}

// Run writes changed contacts to disk, each file as a whole, until ctx ends; then it writes what is left, for at most 5 s, and returns nil.
// After an error it tries again a minute later. Without a folder it only waits. It may run once at a time.
func (s *Store) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			s.save(time.Now().Add(diskFlush), nil)
			return nil
		case <-s.disk.wake: // nil without a folder
		}
		if s.save(time.Time{}, ctx.Done()) {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(diskRetry):
		}
	}
}

// save writes what waits, until stop is closed or the deadline, if there is one; false after an error, with what is left noted again.
func (s *Store) save(deadline time.Time, stop <-chan struct{}) bool {
	ids, skipped := s.disk.take()
	if skipped > 0 {
		s.log.Warn("netdb: too many changes at once, some relay contacts are not saved", "count", skipped)
	}
	for i, id := range ids {
		select {
		case <-stop:
			s.again(ids[i:])
			return true
		default:
		}
		err := errSlow
		if deadline.IsZero() || time.Now().Before(deadline) {
			err = s.saveOne(id)
		}
		if err != nil {
			s.log.Warn("netdb: relay contacts are not saved", "folder", s.disk.dir, "count", len(ids)-i, "error", nameless(err))
			s.again(ids[i:])
			return false
		}
	}
	if len(ids) == 0 {
		return true
	}
	if err := statefile.SyncDir(s.disk.dir); err != nil {
		s.log.Warn("netdb: relay contacts are perhaps not saved", "folder", s.disk.dir, "count", len(ids), "error", nameless(err))
		s.again(ids)
		return false
	}
	return true
}

var errSlow = errors.New("too slow at the end")

// nameless takes the file's name, which is a relay's, out of an error that is logged.
func nameless(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	var link *os.LinkError
	if errors.As(err, &link) {
		return link.Err
	}
	return err
}

func (s *Store) again(ids []key.Public) {
	for _, id := range ids {
		s.disk.touch(id)
	}
}

// saveOne makes the file of a relay what the store has now.
func (s *Store) saveOne(id key.Public) error {
	path := filepath.Join(s.disk.dir, id.String()+suffix)
	c := s.Get(id)
	if c == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if s.disk.unmade {
		if err := makeDir(s.disk.dir); err != nil {
			return err
		}
		s.disk.unmade = false
	}
	return statefile.Replace(path, c.raw, 0o600)
}
