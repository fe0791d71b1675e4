package netdb

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/testkit"
)

const savesNow = "LOKINETD_SAVES_NOW"

// TestSaves: whatever ends the writer, the store finds the former contact or the new one at the next start, and no remains.
func TestSaves(t *testing.T) {
	if os.Getenv(savesNow) == "" { // the same in the process that writes
		t.Setenv(savesNow, time.Now().Format(time.RFC3339))
	}
	now, err := time.Parse(time.RFC3339, os.Getenv(savesNow))
	if err != nil {
		t.Fatal(err)
	}
	open := func(dir string) (*Store, error) {
		return OpenStore(filepath.Join(dir, "nodedb"), key.Public{}, false, Rules{}, nil)
	}
	load := func(dir string) (string, error) {
		s, err := open(dir)
		if err != nil {
			return "", err
		}
		text := fmt.Sprint(s.Len())
		for _, c := range s.All() {
			text += " " + c.Time.String()
		}
		return text, nil
	}
	put := func(at time.Time) func(dir string) error {
		return func(dir string) error {
			s, err := open(dir)
			if err != nil {
				return err
			}
			s.Put(relayContact(1000, at))
			if !s.save(time.Time{}, nil) {
				return os.ErrInvalid
			}
			return nil
		}
	}
	gone := func(dir string) error {
		s, err := open(dir)
		if err != nil {
			return err
		}
		s.SetRegistered([]key.Public{secret(1001).Public()})
		s.Purge(now.Add(RelayLifetime))
		if !s.save(time.Time{}, nil) {
			return os.ErrInvalid
		}
		return nil
	}
	next := func(dir string) error { _, err := open(dir); return err }
	for name, s := range map[string]testkit.Save{
		"first":   {New: put(now.Add(-time.Hour))},
		"again":   {Old: put(now.Add(-time.Hour)), New: put(now)},
		"removed": {Old: put(now.Add(-time.Hour)), New: gone},
	} {
		s.Load, s.Next = load, next
		t.Run(name, func(t *testing.T) { t.Log(testkit.Saves(t, s), "ends") })
	}
}
