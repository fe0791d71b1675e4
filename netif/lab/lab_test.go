//go:build root

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain: this program is also what runs in the nodes, chosen by its first argument.
func TestMain(m *testing.M) {
	Main()
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "role-serve": // one connection, echoed, on the address given
			l, err := net.Listen("tcp", os.Args[2])
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println("ready")
			c, err := l.Accept()
			if err == nil {
				io.Copy(c, c)
			}
			os.Exit(0)
		case "role-dial":
			c, err := net.Dial("tcp", os.Args[2])
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Fprint(c, "hello")
			c.(*net.TCPConn).CloseWrite()
			io.Copy(os.Stdout, c)
			os.Exit(0)
		case "role-address": // the hardware address of an interface
			i, err := net.InterfaceByName(os.Args[2])
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println(i.HardwareAddr)
			os.Exit(0)
		case "role-hang": // ignores requests to end and leaves a child behind
			c := exec.Command("/proc/self/exe", "role-sleep")
			c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			c.Start()
			fmt.Println("ready")
			time.Sleep(time.Hour)
		case "role-sleep":
			time.Sleep(time.Hour)
		case "role-lab": // a lab whose program dies by kill -9
			l, err := New(NodeConfig{Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.254/24")}})
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			n, err := l.AddNode(NodeConfig{Name: "x"})
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			if err := n.Self("role-sleep").Start(); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println(l.PID(), n.PID())
			time.Sleep(time.Hour)
		case "role-inside": // the tests again, as another user
			os.Args = append(os.Args[:1], os.Args[2:]...)
		}
	}
	os.Exit(m.Run())
}

func newLab(t *testing.T) *Lab {
	t.Helper()
	if err := Check(); err != nil {
		t.Fatal(err)
	}
	l, err := New(NodeConfig{Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.254/24"), netip.MustParsePrefix("fd77::fe/64")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func addNode(t *testing.T, l *Lab, i int, c NodeConfig) *Node {
	t.Helper()
	c.Name = fmt.Sprint("node", i)
	c.Addrs = append(c.Addrs, netip.MustParsePrefix(fmt.Sprintf("10.77.0.%d/24", i)))
	if !c.NoIPv6 {
		c.Addrs = append(c.Addrs, netip.MustParsePrefix(fmt.Sprintf("fd77::%d/64", i)))
	}
	n, err := l.AddNode(c)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// ready starts a command and waits for its first line.
func ready(t *testing.T, c *Cmd) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stdout = w
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	b := make([]byte, 100)
	if n, _ := r.Read(b); string(b[:n]) != "ready\n" {
		t.Fatalf("%v says %q", c.Args, b[:n])
	}
}

func TestLab(t *testing.T) {
	l := newLab(t)
	a := addNode(t, l, 1, NodeConfig{ResolvConf: "nameserver 127.3.2.1\n", Hosts: "10.77.0.2 other\n"})
	b := addNode(t, l, 2, NodeConfig{})
	for _, server := range []string{"10.77.0.2:80", "[fd77::2]:80"} {
		serve := b.Self("role-serve", server)
		ready(t, serve)
		out, err := a.Self("role-dial", server).CombinedOutput()
		if err != nil || string(out) != "hello" {
			t.Errorf("%s: %q, %v", server, out, err)
		}
		if err := serve.Wait(); err != nil {
			t.Error(err)
		}
	}
	// The lab itself is on the bridge, the machine is not.
	serve := l.Self("role-serve", "10.77.0.254:80")
	ready(t, serve)
	if out, err := a.Self("role-dial", "10.77.0.254:80").CombinedOutput(); err != nil || string(out) != "hello" {
		t.Errorf("the lab: %q, %v", out, err)
	}
	if _, err := net.InterfaceByName(bridge); err == nil {
		t.Error("the bridge is on the machine")
	}

	out, err := a.Command("cat", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/hosts").Output()
	for _, want := range []string{"nameserver 127.3.2.1\n", "\nhosts: files dns\n", "\n10.77.0.2 other\n"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("name resolution: %v\n%s", err, out)
		}
	}
	if out, err := b.Command("cat", "/etc/resolv.conf").Output(); err != nil || len(out) != 0 {
		t.Errorf("the other node's resolv.conf: %q, %v", out, err)
	}
	// All else in /etc is the machine's, through links and directories.
	for _, f := range []string{"/etc/passwd", "/etc/os-release", "/etc/ssl/openssl.cnf", "/etc/alternatives/README"} {
		want, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if got, err := a.Command("cat", f).Output(); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v", f, err)
		}
	}
	for _, d := range []string{"/run/dbus", "/run/systemd/resolve", "/run/nscd"} {
		if _, err := os.Stat(d); err != nil {
			continue
		}
		if out, err := a.Command("ls", "-A", d).Output(); err != nil || len(out) != 0 {
			t.Errorf("%s holds %q, %v", d, out, err)
		}
	}
}

func TestCommand(t *testing.T) {
	l := newLab(t)
	n := addNode(t, l, 1, NodeConfig{NoIPv6: true})
	c := n.Command("sh", "-c", "echo $GREETING; echo err >&2; pwd; exit 3")
	c.Env, c.Dir = []string{"GREETING=hello", "PATH=" + os.Getenv("PATH")}, "/"
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 3 || stdout.String() != "hello\n/\n" || stderr.String() != "err\n" {
		t.Errorf("%v, %q, %q", err, &stdout, &stderr)
	}
	if err := n.Command("/nonexistent").Run(); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("missing program: %v", err)
	}
	hang := n.Self("role-hang")
	ready(t, hang)
	if err := hang.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := hang.Wait(); !errors.As(err, &exit) || exit.Signal != syscall.SIGTERM && exit.Code != 2 {
		t.Errorf("terminated: %v", err)
	}
	if err := hang.Signal(syscall.SIGTERM); err == nil {
		t.Error("a signal to a command that has ended")
	}
	if out, err := n.Command("cat", "/proc/sys/net/ipv6/conf/default/disable_ipv6").Output(); err != nil || string(out) != "1\n" {
		t.Errorf("disable_ipv6: %q, %v", out, err)
	}
	if os.Geteuid() == 0 {
		enter := n.Enter("cat", "/proc/sys/net/ipv6/conf/default/disable_ipv6")
		if out, err := exec.Command(enter[0], enter[1:]...).CombinedOutput(); err != nil || string(out) != "1\n" {
			t.Errorf("%v: %q, %v", enter, out, err)
		}
	}
	in, err := os.Open("/etc/hostname")
	if err == nil {
		want, _ := os.ReadFile("/etc/hostname")
		c := n.Command("cat")
		c.Stdin = in
		if out, err := c.Output(); err != nil || !bytes.Equal(out, want) {
			t.Errorf("stdin: %q, %v", out, err)
		}
		in.Close()
	}
}

// TestNothingLeft: closing a node or the lab ends everything in it, also processes that went their own way.
// Sockets of a node are opened from outside: for use there, and for a command of the node.
func TestListen(t *testing.T) {
	l, err := New(NodeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n, err := l.AddNode(NodeConfig{Name: "n"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := n.Listen("tcp", "127.0.0.1:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	if out, err := n.Self("role-dial", "127.0.0.1:7777").CombinedOutput(); err != nil || string(out) != "hello" {
		t.Errorf("a socket opened from outside: %v: %s", err, out)
	}

	u, err := n.Listen("udp", "127.3.2.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	c := n.Command("/bin/sh", "-c", "readlink /proc/self/fd/3 /proc/self/fd/4")
	c.ExtraFiles = []*os.File{f, u}
	if out, err := c.Output(); err != nil || strings.Count(string(out), "socket:") != 2 {
		t.Errorf("descriptors of a command: %v: %s", err, out)
	}
	for _, bad := range [][2]string{{"tcp", "127.0.0.1:7777"}, {"udp", "192.0.2.1:1"}, {"carrier pigeon", ""}} {
		if f, err := n.Listen(bad[0], bad[1]); err == nil {
			f.Close()
			t.Errorf("listen %v", bad)
		}
	}
}

// The bridge keeps its address while nodes come and go: who talks to it would send to nobody otherwise.
func TestBridgeAddress(t *testing.T) {
	l, err := New(NodeConfig{Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.254/24")}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	seen := map[string]bool{}
	for range 8 {
		n, err := l.AddNode(NodeConfig{Name: "n"})
		if err != nil {
			t.Fatal(err)
		}
		out, err := l.Self("role-address", "lab0").Output()
		if err != nil {
			t.Fatal(err)
		}
		seen[string(out)] = true
		n.Close()
	}
	if len(seen) != 1 {
		t.Errorf("the bridge had these addresses: %v", seen)
	}
}

func TestNothingLeft(t *testing.T) {
	l := newLab(t)
	n := addNode(t, l, 1, NodeConfig{})
	m := addNode(t, l, 2, NodeConfig{})
	hang := n.Self("role-hang")
	ready(t, hang)
	other := m.Self("role-hang")
	ready(t, other)
	pids := []int{n.PID(), m.PID(), l.PID()}
	for _, pid := range pids {
		if !alive(pid) {
			t.Errorf("process %d is not there", pid)
		}
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if alive(pids[0]) || !alive(pids[1]) {
		t.Error("Node.Close: this one lives, or the other one does not")
	}
	if err := hang.Wait(); err == nil {
		t.Error("a command in a closed node ended well")
	}
	if err := n.Command("true").Run(); err == nil {
		t.Error("a command in a closed node")
	}
	addNode(t, l, 1, NodeConfig{}) // the address is free again
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
	if l := sleepers(); len(l) != 0 {
		t.Errorf("processes %v are left", l)
	}
}

// TestKilled: the program that made the lab dies by kill -9.
func TestKilled(t *testing.T) {
	if err := Check(); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/proc/self/exe", "role-lab")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var pids [2]int
	if _, err := fmt.Fscan(out, &pids[0], &pids[1]); err != nil {
		t.Fatal(err)
	}
	c.Process.Kill()
	c.Wait()
	for deadline := time.Now().Add(time.Minute); alive(pids[0]) || alive(pids[1]) || len(sleepers()) != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("left: agents %v %v, sleepers %v", alive(pids[0]), alive(pids[1]), sleepers())
		}
	}
}

func alive(pid int) bool { return unix.Kill(pid, 0) != unix.ESRCH }

// sleepers are the processes that role-hang and role-lab leave behind.
func sleepers() (l []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), "\x00role-sleep") {
			l = append(l, f)
		}
	}
	return l
}

// TestUnprivileged runs the other tests as a user who is not root, with a /dev/net/tun that everybody may open, and finds out what Check says
// where that is not so.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("is what this test starts")
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "lab") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	self := filepath.Join(dir, "lab.test")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(self, exe, 0o755)); err != nil {
		t.Fatal(err)
	}
	// A mount namespace of its own, with a device file whose mode can be changed.
	for _, mode := range []string{"0600", "0666"} {
		script := fmt.Sprintf(`set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mknod -m %s /mnt/tun c 10 200
mount --bind /mnt/tun /dev/net/tun
cd /
exec setpriv --reuid 65534 --regid 65534 --clear-groups %s role-inside -test.run '^(TestLab|TestCommand|TestNothingLeft|TestKilled)$' -test.v`, mode, self)
		c := exec.Command("sh", "-c", script)
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		out, err := c.CombinedOutput()
		if mode == "0600" {
			if err == nil || !strings.Contains(string(out), "sudo chmod 0666 /dev/net/tun") {
				t.Errorf("closed /dev/net/tun: %v\n%s", err, out)
			}
		} else if err != nil || strings.Count(string(out), "--- PASS") != 4 {
			t.Errorf("as another user: %v\n%s", err, out)
		}
	}
}
