// Package statefile writes files whole and reads them bounded. Whatever ends a write (a kill, a full disk, a power loss), its file is the old one or the new one
// afterwards, and what such a write leaves beside it is found by Sweep. What the files say, and what to do when they are damaged, is their owners' business.
package statefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Write makes a file have that content: a temporary file beside it, fsync, rename, fsync of the folder. One that is there keeps its mode and, when root writes, its owner; a new one has perm, less the umask.
// When Write returns nil the new content is on disk. After an error the file is the old one or, when only the last step failed, the new one.
func Write(path string, data []byte, perm fs.FileMode) error {
	return write(path, data, true, renameio.WithPermissions(perm), renameio.WithExistingPermissions())
}

// WritePublic is Write of a file that all may read (0644), whatever the umask.
func WritePublic(path string, data []byte) error {
	return write(path, data, true, renameio.WithStaticPermissions(0o644))
}

// Replace is Write but for the last step: after a power loss the file may be the old one. For many files at once; SyncDir makes all of them last.
func Replace(path string, data []byte, perm fs.FileMode) error {
	return write(path, data, false, renameio.WithPermissions(perm), renameio.WithExistingPermissions())
}

func write(path string, data []byte, sync bool, mode ...renameio.Option) error {
	dir := filepath.Dir(path)
	t, err := renameio.NewPendingFile(path, append(mode, renameio.WithTempDir(dir))...) // else what a kill leaves is in /tmp
	if err != nil {
		return err
	}
	defer t.Cleanup()
	if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() {
		if err := giveTo(t.File, st); err != nil {
			return err
		}
	}
	if _, err := t.Write(data); err != nil {
		return err
	}
	if err := t.CloseAtomicallyReplace(); err != nil || !sync {
		return err
	}
	return SyncDir(dir)
}

// Create makes a new file, of exactly that mode, that appears whole or not at all and is on disk when Create returns nil. One that is there, of whatever content, is never touched: that is
// fs.ErrExist. What root makes belongs to the owner of the folder, from the start, where that can be: a daemon must be able to read it. Remains of earlier attempts are removed, since they may hold the same secret.
func Create(path string, data []byte, perm fs.FileMode) error {
	Sweep(path)
	if _, err := os.Lstat(path); err == nil {
		return &os.PathError{Op: "create", Path: path, Err: os.ErrExist}
	}
	dir := filepath.Dir(path)
	t, err := renameio.NewPendingFile(path, renameio.WithTempDir(dir), renameio.WithStaticPermissions(perm))
	if err != nil {
		return err
	}
	defer t.Cleanup()
	if st, err := os.Stat(dir); err == nil {
		giveTo(t.File, st) // a root that may not, of a container, does without
	}
	if _, err := t.Write(data); err != nil {
		return err
	}
	if err := t.Sync(); err != nil {
		return err
	}
	// Linked, not renamed: a rename would replace what another process made since.
	if err := os.Link(t.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// giveTo gives a file of root's to the owner of another one.
func giveTo(f *os.File, of fs.FileInfo) error {
	if st, ok := of.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 && (st.Uid != 0 || st.Gid != 0) {
		return f.Chown(int(st.Uid), int(st.Gid))
	}
	return nil
}

// SyncDir puts on disk what has been renamed, made and removed in a folder.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) { // a file system that has no such thing
		return err
	}
	return nil
}

// Read reads a regular file of at most limit bytes. Nothing else is read, and nothing waits: a pipe or a device could go on for ever. Errors name the file.
func Read(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadOpen(f, limit)
}

// ReadOpen is Read of a file that is open.
func ReadOpen(f *os.File, limit int64) ([]byte, error) {
	fault := func(err error) ([]byte, error) { return nil, &os.PathError{Op: "read", Path: f.Name(), Err: err} }
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return fault(errors.New("not a regular file"))
	}
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(raw)) > limit {
		return fault(fmt.Errorf("larger than %d bytes", limit))
	}
	return raw, err
}

// BadSuffix is what SetAside adds to the name of a file.
const BadSuffix = ".bad"

// SetAside takes a damaged file (or whatever is in its place) out of the way, for people to look at, and says what it is called now. The former one that was set aside goes.
func SetAside(path string) (string, error) {
	to := path + BadSuffix
	err := os.Rename(path, to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // one of them is a folder
		if err = os.RemoveAll(to); err == nil {
			err = os.Rename(path, to)
		}
	}
	if err != nil {
		return "", err
	}
	return to, SyncDir(filepath.Dir(path))
}

// remainsAge is how long nobody is at work on a temporary file any more: a write takes milliseconds.
const remainsAge = time.Minute

// Sweep removes what writes of these files have left that were cut short by the end of their process, more than a minute ago. What cannot be removed stays for the next time.
func Sweep(paths ...string) {
	for _, path := range paths {
		dir, base := filepath.Split(path)
		if dir == "" {
			dir = "."
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if !IsRemains(e.Name(), base) || !e.Type().IsRegular() {
				continue
			}
			if st, err := e.Info(); err == nil && time.Since(st.ModTime()).Abs() > remainsAge { // or of a clock that was ahead
				os.Remove(filepath.Join(dir, e.Name()))
			}
		}
	}
}

// IsRemains says whether name is that of a temporary file of the file called base: a dot before it, digits behind.
func IsRemains(name, base string) bool {
	digits, ok := strings.CutPrefix(name, "."+base)
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}
