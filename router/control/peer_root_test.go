//go:build root

package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// TestMain is also the other process of TestPeers: it asks for the status and prints what becomes of it.
func TestMain(m *testing.M) {
	path := os.Getenv("CONTROL_SOCKET")
	if path == "" {
		os.Exit(m.Run())
	}
	_, err := NewClient(path).Status(context.Background())
	heard := errors.New("heard")
	if events := NewClient(path).Events(context.Background(), func(Event) error { return heard }); (events == heard) != (err == nil) {
		fmt.Print("status and events differ: ", err, " and ", events)
		return
	}
	var e *Error
	switch {
	case err == nil:
		fmt.Print("answered")
	case errors.As(err, &e) && e.Code == CodeDenied, errors.Is(err, os.ErrPermission):
		fmt.Print("denied")
	default:
		fmt.Print(err)
	}
}

// TestPeers: who may ask, by the credentials of the process, whatever the mode of the file says.
func TestPeers(t *testing.T) {
	const stranger, member, group = 65534, 65533, 65532
	dir, err := os.MkdirTemp("", "control") // t.TempDir's parents are for nobody else
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "test")
	binary, err := os.ReadFile(self)
	if err == nil {
		err = errors.Join(os.WriteFile(program, binary, 0o755), os.Chmod(dir, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sock")
	s, err := Listen(path, "", fakeAPI{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.http.ConnContext = peer(0, group)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	defer func() { cancel(); <-done }()

	for _, c := range []struct {
		name     string
		mode     os.FileMode
		uid, gid uint32
		groups   []uint32
		want     string
	}{
		{"root", 0o660, 0, stranger, nil, "answered"},
		{"a stranger, by the file's mode", 0o660, stranger, stranger, nil, "denied"},
		{"a stranger, by its credentials", 0o666, stranger, stranger, nil, "denied"},
		{"a member by its first group", 0o666, member, group, nil, "answered"},
		{"a member by another group", 0o666, member, member, []uint32{1, group}, "answered"},
	} {
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program)
		cmd.Env = append(os.Environ(), "CONTROL_SOCKET="+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.gid, Groups: c.groups}}
		if out, err := cmd.CombinedOutput(); string(out) != c.want || err != nil {
			t.Errorf("%s: %q, %v; want %q", c.name, out, err, c.want)
		}
	}
}
