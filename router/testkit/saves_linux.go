package testkit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Save is a writer of state that Saves plays. All it writes is below the folder that it is given.
type Save struct {
	Old  func(dir string) error           // makes what is there before; nil: nothing is
	New  func(dir string) error           // the writer
	Load func(dir string) (string, error) // what the product's own loader finds, in words
	Next func(dir string) error           // what the product does with remains at its next start, an hour later; nil: nothing
	// Steps: New writes several files, one after the other, each whole; then what is found is as after any number of them, of which Load says no more than it has to.
	Steps []string
}

// Saves plays a writer in a process of its own, once for each of its system calls that change something in the folder (seccomp's user notification stops it there), and ends it in every way:
//
//   - killed before the call, and in the middle of it if it writes;
//   - the disk full from there on; fsync fails.
//
// Each time the loader must find the old state or the new one, writing again must lead to the new one, and after the next start nothing else may lie there. Of a whole run the order is judged, for the loss of power:
// what is renamed or linked into its place was synced before, and its folder after.
//
// The test runs itself again, so it must come here the same way when it is called by its name. It returns how many ends it has played.
func Saves(t *testing.T, s Save) (ends int) {
	t.Helper()
	if dir := os.Getenv(savesIn); dir != "" {
		os.Exit(playSave(s.New, dir))
	}
	clean, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	begin := func(name string) string {
		dir := filepath.Join(clean, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if s.Old != nil {
			if err := s.Old(dir); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	load := func(dir string) string {
		text, err := s.Load(dir)
		if err != nil {
			return "error: " + err.Error()
		}
		return text
	}

	dir := begin("whole")
	before := load(dir)
	if before != load(dir) {
		t.Fatal("the loader does not find the same twice")
	}
	calls, err := runSave(t, dir, 0, 0)
	if err != nil {
		t.Fatalf("undisturbed: %v", err)
	}
	after := load(dir)
	if strings.HasPrefix(before, "error: ") || strings.HasPrefix(after, "error: ") || before == after {
		t.Fatalf("before %q, after %q", before, after)
	}
	want := listing(t, dir)
	if err := judgeOrder(calls); err != nil {
		t.Errorf("%v\n%s", err, strings.Join(texts(calls), "\n"))
	}
	may := append([]string{before, after}, s.Steps...)

	for n, c := range calls {
		for _, e := range []saveEnd{endKill, endTorn, endFull, endSync} {
			if e == endTorn && c.name != "write" || e == endSync && c.name != "fsync" || e == endFull && !c.takesRoom() {
				continue
			}
			ends++
			what := fmt.Sprintf("%v at %d of %d, %v", e, n+1, len(calls), c)
			dir := begin(fmt.Sprintf("%d-%d", n, e))
			_, err := runSave(t, dir, n+1, e)
			if killed := errors.Is(err, errKilled); killed != (e == endKill || e == endTorn) {
				t.Fatalf("%s: %v", what, err)
			}
			found := load(dir)
			if !slices.Contains(may, found) {
				t.Errorf("%s: found %q\nbefore %q\nafter  %q", what, found, before, after)
			}
			if err == nil && found != after {
				t.Errorf("%s: no error, and found %q", what, found)
			}
			if _, err := runSave(t, dir, 0, 0); err != nil && found != after { // who makes new files refuses to make them twice
				t.Errorf("%s: then it cannot be written: %v", what, err)
			}
			if found := load(dir); found != after {
				t.Errorf("%s: written again, found %q\nwant %q", what, found, after)
			}
			age(t, dir)
			if s.Next != nil {
				if err := s.Next(dir); err != nil {
					t.Errorf("%s: next: %v", what, err)
				}
			}
			if got := listing(t, dir); !slices.Equal(got, want) {
				t.Errorf("%s: what lies there\n%q\nwant\n%q", what, got, want)
			}
			if t.Failed() {
				return ends
			}
		}
	}
	return ends
}

type saveEnd int

const (
	endKill saveEnd = 1 + iota
	endTorn
	endFull
	endSync
)

func (e saveEnd) String() string {
	return [...]string{"undisturbed", "killed", "killed in the middle", "disk full", "fsync fails"}[e]
}

// listing is the names of the files below dir.
func listing(t *testing.T, dir string) (names []string) {
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(name, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// age makes all files an hour old.
func age(t *testing.T, dir string) {
	then := time.Now().Add(-time.Hour)
	filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			unix.Lutimes(name, []unix.Timeval{unix.NsecToTimeval(then.UnixNano()), unix.NsecToTimeval(then.UnixNano())})
		}
		return nil
	})
}

// saveCall is a system call that changes something in the folder.
type saveCall struct {
	name   string
	path   string // of the file; of a rename or link the former one
	to     string // of a rename or link
	length int    // of a write
}

func (c saveCall) takesRoom() bool {
	return c.name != "unlinkat" && c.name != "fsync" && c.name != "fchmod"
}

func (c saveCall) String() string {
	text := c.name + " " + filepath.Base(c.path)
	if c.to != "" {
		text += " " + filepath.Base(c.to)
	}
	if c.length > 0 {
		text += fmt.Sprintf(" (%d bytes)", c.length)
	}
	return text
}

func texts(calls []saveCall) (all []string) {
	for _, c := range calls {
		all = append(all, c.String())
	}
	return all
}

// judgeOrder says what a loss of power could lose, as far as the order of the calls tells.
func judgeOrder(calls []saveCall) error {
	unsynced, changed := map[string]bool{}, map[string]string{}
	for _, c := range calls {
		switch c.name {
		case "write":
			unsynced[c.path] = true
		case "fsync":
			delete(unsynced, c.path)
			delete(changed, c.path)
		case "renameat", "renameat2", "linkat":
			if unsynced[c.path] {
				return fmt.Errorf("%v: before its content was synced", c)
			}
			changed[filepath.Dir(c.to)] = c.to
		}
	}
	for name := range unsynced {
		return fmt.Errorf("%s was written and never synced", name)
	}
	for dir, name := range changed {
		return fmt.Errorf("%s was put in place, and the folder %s not synced after that", name, dir)
	}
	return nil
}

var errKilled = errors.New("killed")

const (
	savesIn = "LOKINETD_SAVES_IN" // the folder, in the environment of the process that writes
	wroteIt = 43                  // its exit codes
	failed  = 44
)

var watched = map[int32]string{
	unix.SYS_OPENAT: "openat", unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64", unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fsync", unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FCHMOD: "fchmod",
	unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_LINKAT: "linkat", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_MKDIRAT: "mkdirat", unix.SYS_SYMLINKAT: "symlinkat",
}

// playSave is the process that writes.
func playSave(save func(string) error, dir string) int {
	if err := watchMe(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := save(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return failed
	}
	return wroteIt
}

// watchMe stops all threads of this process at watched calls, and gives descriptor 3 what tells of them.
func watchMe() error {
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // the number of the call
	numbers := slices.Sorted(maps.Keys(watched))
	for i, n := range numbers {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(numbers) - i), K: uint32(n)})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	// Not interrupted by the runtime's signals, or a call would be seen twice (Linux 5.19).
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(fd)), nil, 0); err != nil {
		return err
	}
	unix.Close(int(fd))
	return nil
}

// The kernel's structures.
type (
	notified struct {
		id    uint64
		pid   uint32
		flags uint32
		nr    int32
		arch  uint32
		ip    uint64
		args  [6]uint64
	}
	answer struct {
		id    uint64
		val   int64
		error int32
		flags uint32
	}
)

const goOn = 1 // SECCOMP_USER_NOTIF_FLAG_CONTINUE

// runSave runs the writer and ends it at the nth call, from 1, in that way; 0: not at all. Errors: errKilled, or what the writer says.
func runSave(t *testing.T, dir string, nth int, end saveEnd) (calls []saveCall, err error) {
	full := false
	calls, code, said := runWatched(t, dir, func(n int, c saveCall) saveAnswer {
		if n == nth {
			switch end {
			case endTorn, endKill:
				return saveAnswer{kill: true, half: end == endTorn && c.name == "write"}
			case endFull:
				full = true
			case endSync:
				return saveAnswer{errno: unix.EIO}
			}
		}
		if full && c.takesRoom() {
			return saveAnswer{errno: unix.ENOSPC}
		}
		return saveAnswer{}
	})
	switch code {
	case wroteIt:
		return calls, nil
	case failed:
		return calls, errors.New(said)
	case -1:
		return calls, errKilled
	}
	t.Fatalf("the writer ended with %d\n%s", code, said)
	return nil, nil
}

// saveAnswer is what is to be done at a call; the zero value lets it be.
type saveAnswer struct {
	errno      unix.Errno
	kill, half bool
}

// FullDisk runs the rest of the test in a process of its own, for which the disk is full in the folder that it gives, until it calls room. In the process of the caller it calls before, which makes what is in the folder, and gives "" when
// that other one has ended.
func FullDisk(t *testing.T, before func(dir string) error) (dir string, room func()) {
	t.Helper()
	if dir := os.Getenv(savesIn); dir != "" {
		if err := watchMe(); err != nil {
			t.Fatal(err)
		}
		return dir, func() { os.Mkdir(filepath.Join(dir, roomAgain), 0o700) }
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := before(dir); err != nil {
		t.Fatal(err)
	}
	full, refused := true, 0
	_, code, said := runWatched(t, dir, func(_ int, c saveCall) saveAnswer {
		switch {
		case filepath.Base(c.path) == roomAgain:
			full = false
			return saveAnswer{errno: unix.EEXIST}
		case full && c.takesRoom():
			refused++
			return saveAnswer{errno: unix.ENOSPC}
		}
		return saveAnswer{}
	})
	if code != 0 || refused == 0 || full {
		t.Errorf("with a full disk, which refused %d writes: exit %d\n%s", refused, code, said)
	}
	return "", nil
}

const roomAgain = "room-again" // what is made to say so

// runWatched runs this test in another process, asks at each of its calls what is to be done, and returns its exit code and what it printed.
func runWatched(t *testing.T, dir string, ask func(n int, c saveCall) saveAnswer) (calls []saveCall, code int, text string) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	var names []string
	for part := range strings.SplitSeq(t.Name(), "/") {
		names = append(names, "^"+part+"$")
	}
	cmd := exec.Command(os.Args[0], "-test.run="+strings.Join(names, "/"))
	cmd.Env = append(os.Environ(), savesIn+"="+dir, "TMPDIR="+t.TempDir())
	cmd.ExtraFiles = []*os.File{theirs}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()

	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	var fds []int
	if err == nil && n > 0 {
		var m []unix.SocketControlMessage
		if m, err = unix.ParseSocketControlMessage(oob[:n]); err == nil && len(m) == 1 {
			fds, err = unix.ParseUnixRights(&m[0])
		}
	}
	if err != nil || len(fds) != 1 {
		cmd.Wait()
		t.Fatalf("the writer does not begin: %v\n%s", err, said.Bytes())
	}
	calls = serveCalls(t, fds[0], cmd.Process, dir, ask)
	unix.Close(fds[0])
	cmd.Wait()
	return calls, cmd.ProcessState.ExitCode(), said.String()
}

// serveCalls lets the writer go on at each call until its end.
func serveCalls(t *testing.T, fd int, p *os.Process, dir string, ask func(int, saveCall) saveAnswer) (calls []saveCall) {
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, 60_000); errors.Is(err, unix.EINTR) {
			continue
		}
		if poll[0].Revents&unix.POLLIN == 0 { // it has ended, or hangs
			return calls
		}
		var n notified
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
			continue // it went away meanwhile
		}
		a := answer{id: n.id, flags: goOn}
		if c, ours := readCall(p.Pid, &n, dir); ours {
			calls = append(calls, c)
			do := ask(len(calls), c)
			if do.half {
				half(t, p.Pid, &n)
			}
			if do.kill {
				p.Kill()
				return calls
			}
			if do.errno != 0 {
				a.error, a.flags = -int32(do.errno), 0
			}
		}
		unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&a)))
	}
}

// readCall says what a call is, and whether it changes something below dir.
func readCall(pid int, n *notified, dir string) (c saveCall, ours bool) {
	c.name = watched[n.nr]
	at := func(fd, path uint64) string {
		name := readText(pid, path)
		if !filepath.IsAbs(name) {
			base := fmt.Sprintf("/proc/%d/fd/%d", pid, int32(fd))
			if int32(fd) == unix.AT_FDCWD {
				base = fmt.Sprintf("/proc/%d/cwd", pid)
			}
			folder, _ := os.Readlink(base)
			name = filepath.Join(folder, name)
		}
		return name
	}
	switch c.name {
	case "openat":
		if n.args[2]&(unix.O_CREAT|unix.O_TRUNC) == 0 {
			return c, false
		}
		c.path = at(n.args[0], n.args[1])
		if _, err := os.Lstat(c.path); err == nil && n.args[2]&unix.O_TRUNC == 0 {
			return c, false
		}
	case "mkdirat", "unlinkat":
		c.path = at(n.args[0], n.args[1])
	case "symlinkat":
		c.path = at(n.args[1], n.args[2])
	case "renameat", "renameat2", "linkat":
		c.path, c.to = at(n.args[0], n.args[1]), at(n.args[2], n.args[3])
	default: // of a descriptor
		c.path, _ = os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, int32(n.args[0])))
		if c.name == "write" || c.name == "pwrite64" {
			c.length = int(n.args[2])
		}
	}
	below := func(name string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }
	return c, below(c.path) || below(c.to)
}

// readText reads a text that ends with a zero byte from the memory of a process.
func readText(pid int, at uint64) string {
	b := readMemory(pid, at, unix.PathMax)
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}

// readMemory reads up to n bytes, and fewer where the memory ends.
func readMemory(pid int, at uint64, n int) []byte {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil
	}
	defer f.Close()
	b := make([]byte, n)
	got, _ := f.ReadAt(b, int64(at))
	return b[:got]
}

// half does the first half of a write for the process that was about to do it, through /proc: containers may refuse pidfd_getfd.
func half(t *testing.T, pid int, n *notified) {
	data := readMemory(pid, n.args[1], int(n.args[2])/2)
	var at int64
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, int32(n.args[0])))
	if err == nil {
		_, err = fmt.Sscanf(string(info), "pos: %d", &at)
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", pid, int32(n.args[0])), os.O_WRONLY, 0) // the file, even if it has no name
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, at); err != nil {
		t.Fatal(err)
	}
}
