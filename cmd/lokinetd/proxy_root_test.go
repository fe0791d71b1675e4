//go:build root

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"lokinetd/netif/lab"
	"lokinetd/router/control"
	"lokinetd/router/key"
	"lokinetd/router/netdb"
)

// nobody is a machine's user without any privilege, with a home of its own.
type nobody struct {
	t    *testing.T
	home string
	node *lab.Node
}

const nobodyID = 65534

// run gives a command of that user's.
func (n *nobody) run(args ...string) *lab.Cmd {
	return n.node.Command(append([]string{"setpriv", "--reuid", fmt.Sprint(nobodyID), "--regid", fmt.Sprint(nobodyID), "--clear-groups", "--inh-caps=-all",
		"--bounding-set=-all", "--no-new-privs", "env", "-i", "HOME=" + n.home, "PATH=/usr/local/bin:/usr/bin:/bin"}, args...)...)
}

func (n *nobody) own(name string, mode os.FileMode) {
	n.t.Helper()
	if err := os.Chown(name, nobodyID, nobodyID); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		n.t.Fatal(err)
	}
}

// spyAt makes a spy the resolver of a node.
func spyAt(t *testing.T, node *lab.Node, at string) (s *spy, stop func()) {
	f, err := node.Listen("udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.FilePacketConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	s = &spy{}
	server := &mdns.Server{PacketConn: pc, Handler: s}
	go server.ActivateAndServe()
	return s, func() { server.Shutdown() }
}

// askThroughSOCKS asks a name server at a service for an IPv4 address, in a UDP association.
func (n *nobody) askThroughSOCKS(service, name string) (answer string, err error) {
	c := n.run("bash", "-c", `exec 3<>/dev/tcp/127.0.0.1/1080; printf '\5\1\0\5\3\0\1\0\0\0\0\0\0' >&3; head -c 12 <&3; exec sleep 60`)
	read, write, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer read.Close()
	c.Stdout = write
	err = c.Start()
	write.Close()
	if err != nil {
		return "", err
	}
	defer c.Signal(syscall.SIGKILL)
	var reply [12]byte
	if _, err := io.ReadFull(read, reply[:]); err != nil || string(reply[:10]) != "\x05\x00\x05\x00\x00\x01\x7f\x00\x00\x01" {
		return "", fmt.Errorf("reply % x, %v", reply, err)
	}
	f, err := n.node.Listen("udp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer f.Close()
	pc, err := net.FilePacketConn(f)
	if err != nil {
		return "", err
	}
	defer pc.Close()
	pc.SetDeadline(time.Now().Add(eventually))
	q, err := new(mdns.Msg).SetQuestion(name, mdns.TypeA).Pack()
	if err != nil {
		return "", err
	}
	head := append([]byte{0, 0, 0, 3, byte(len(service))}, service+"\x00\x35"...)
	if _, err := pc.WriteTo(append(head, q...), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(reply[10])<<8 | int(reply[11])}); err != nil {
		return "", err
	}
	b := make([]byte, 2048)
	size, _, err := pc.ReadFrom(b)
	if err != nil || !bytes.HasPrefix(b[:size], head) {
		return "", fmt.Errorf("answer %q, %v", b[:size], err)
	}
	var m mdns.Msg
	if err := m.Unpack(b[len(head):size]); err != nil || len(m.Answer) != 1 {
		return "", fmt.Errorf("%v: %v", err, m)
	}
	return m.Answer[0].(*mdns.A).A.String(), nil
}

// TestProxy: a user who has neither root nor /dev/net/tun reaches a service and hosts one through `lokinetd proxy`, and the resolver of that machine hears of nothing.
func TestProxy(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute+patience)
	defer cancel()
	d, must := demoOf(ctx, t)
	defer d.close()
	names, err := d.plan()
	must(err)
	theirKey, network := key.Generate(), filepath.Join(d.dir, "demo.network")
	must(theirKey.Save(filepath.Join(d.dir, "theirs.key")))
	raw, err := os.ReadFile(network)
	must(err)
	file, err := netdb.ParseNetworkFile(raw, d.operator.Public(), time.Now())
	must(err)
	file.Names = map[string]key.Public{"theirs.loki": theirKey.Public()}
	raw, err = file.Sign(d.operator)
	must(err)
	must(os.WriteFile(network, raw, 0o600))
	must(d.startRelays(names))
	_, address, err := d.serve(ctx)
	must(err)

	n := &nobody{t: t}
	n.home, err = os.MkdirTemp("", "lokinetd-nobody-")
	must(err)
	defer os.RemoveAll(n.home)
	n.own(n.home, 0o755)
	self, err := os.Executable()
	must(err)
	program, folder := filepath.Join(n.home, "lokinetd"), filepath.Join(n.home, ".config", "lokinetd")
	must(os.MkdirAll(folder, 0o755))
	for from, to := range map[string]string{self: program, network: filepath.Join(folder, "demo.network")} {
		raw, err := os.ReadFile(from)
		must(err)
		must(os.WriteFile(to, raw, 0o755))
	}
	text := fmt.Sprintf("[network]\nfile = \"demo.network\"\noperator = %q\n[[service]]\nname = \"mine\"\necho = true\nforward = [\"80 -> 127.0.0.1:8000\", \"udp/53 -> 127.0.0.1:5300\"]\n", d.operator.Public())
	must(os.WriteFile(filepath.Join(folder, "lokinetd.toml"), []byte(text), 0o644))
	n.node, err = d.lab.AddNode(lab.NodeConfig{Name: "nobody", ResolvConf: "nameserver 127.0.0.1\n", Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.110/16")}})
	must(err)
	seen, stop := spyAt(t, n.node, "127.0.0.1:53")
	defer stop()
	if out, err := n.node.Command("mount", "-t", "tmpfs", "none", "/dev/net").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	var log demoLog
	daemon := n.run(program, "proxy", "--log", "proxy=debug")
	daemon.Stdout, daemon.Stderr = &log, &log
	must(daemon.Start())
	client := control.NewClient(filepath.Join(n.home, ".local", "state", "lokinetd", "lokinetd.sock"))
	var status control.Status
	for published := false; !published; time.Sleep(50 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("not ready; its log:\n%s", log.String())
		}
		if status, err = client.Status(ctx); err == nil {
			published = len(status.Endpoints) == 2 && status.Endpoints[1].PublishedAt != nil
		}
	}
	if status.Proxy == nil || status.Tun != nil || status.DNS != nil {
		t.Errorf("status: %+v", status)
	}

	const socks, http = "socks5h://127.0.0.1:1080", "http://127.0.0.1:1081"
	curl := func(args ...string) (string, error) {
		start := time.Now()
		out, err := n.run(append([]string{"curl", "-sS", "--max-time", "300"}, args...)...).CombinedOutput()
		t.Logf("curl %.100s: %v", strings.Join(args, " "), time.Since(start))
		return string(out), err
	}
	url := "http://" + address
	ways := [][]string{{"-x", socks}, {"-x", http}, {"-p", "-x", http}}
	for _, way := range ways {
		if page, err := curl(append(way, "--fail", url+"/")...); err != nil || page != demoPage {
			t.Errorf("%v: %v: %q", way, err, page)
		}
	}
	if out, err := curl("--socks5-hostname", "127.0.0.1:1080", "--fail", url+"/"); err != nil || out != demoPage {
		t.Errorf("--socks5-hostname: %v: %q", err, out)
	}
	const size = 5_000_000
	down := filepath.Join(n.home, "file")
	for _, way := range ways {
		os.Remove(down)
		if out, err := curl(append(way, "--fail", "-o", down, fmt.Sprintf("%s/bytes/%d", url, size))...); err != nil {
			t.Fatalf("%v: %v: %s", way, err, out)
		}
		raw, err := os.ReadFile(down)
		must(err)
		if sum, err := curl(append(way, "--fail", "-T", down, url+"/up")...); err != nil || len(raw) != size || sum != fmt.Sprintf("%x", sha256.Sum256(raw)) {
			t.Errorf("%v: %d bytes, back %v: %s", way, len(raw), err, sum)
		}
	}
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			out, err := curl(append(ways[i%3], "--fail", "-o", "/dev/null", "-w", "%{size_download}", url+"/bytes/100000")...)
			if err != nil || out != "100000" {
				t.Errorf("one of 30 parallel downloads: %v: %s", err, out)
			}
		})
	}
	wg.Wait()

	// What is not ours is refused: 97 is curl's "the proxy refused", 403 what the HTTP proxy says.
	for _, host := range []string{"example.com", "localhost:1081", "127.0.0.1:1081", "10.77.0.1", "[::1]", "172.31.255.1", "0x7f.1", "example.com.", "loki", "localhost.loki"} {
		if out, err := curl("-x", socks, "http://"+host+"/"); err == nil || !strings.Contains(out, "(2)") {
			t.Errorf("%s through SOCKS: %v: %s", host, err, out)
		}
		out, _ := curl("-x", http, "-o", "/dev/null", "-w", "%{http_code}", "http://"+host+"/")
		tunnel, _ := curl("-p", "-x", http, "-o", "/dev/null", "-w", "%{http_connect}", "http://"+host+"/")
		if out != "403" || !strings.Contains(tunnel, "403") {
			t.Errorf("%s through HTTP: %s, tunnel %s", host, out, tunnel)
		}
	}
	unknown := strings.Repeat("y", 51) + "o.loki"
	if out, err := curl("-x", socks, "http://"+unknown+"/"); err == nil || !strings.Contains(out, "(4)") && !strings.Contains(out, "(1)") {
		t.Errorf("nobody's address: %v: %s", err, out)
	}

	// The other direction: a client with a TUN visits what this user hosts.
	l, err := n.node.Listen("tcp", "127.0.0.1:8000")
	must(err)
	defer l.Close()
	web := n.node.Self("demo", "web")
	web.ExtraFiles = []*os.File{l}
	must(web.Start())
	answers, stop := spyAt(t, n.node, "127.0.0.1:5300")
	defer stop()
	guest, err := d.client("guest", "10.77.0.102", "[[service]]\nname = \"theirs\"\nforward = [\"81 -> 127.0.0.1:8001\", \"udp/53 -> 127.0.0.1:5301\"]\nkey = \""+filepath.Join(d.dir, "theirs.key")+"\"\n")
	must(err)
	theirs := ""
	must(guest.wait(ctx, func(s control.Status) bool {
		if s.State == control.Ready && len(s.Endpoints) == 2 && s.Endpoints[1].PublishedAt != nil {
			theirs = s.Endpoints[1].Address
		}
		return theirs != ""
	}))
	mine := status.Endpoints[1].Address
	if out, err := guest.node.Command("curl", "-sS", "--fail", "--max-time", "60", "http://"+mine+"/").CombinedOutput(); err != nil || string(out) != demoPage {
		t.Errorf("a service without root: %v: %s", err, out)
	}
	if out, err := guest.node.Command("curl", "-sS", "--fail", "--max-time", "300", "-o", "/dev/null", "-w", "%{size_download}", fmt.Sprintf("http://%s/bytes/%d", mine, size)).CombinedOutput(); err != nil || string(out) != fmt.Sprint(size) {
		t.Errorf("a download from a service without root: %v: %s", err, out)
	}
	if out, err := guest.node.Command("dig", "+short", "@"+mine, "over.udp", "A").CombinedOutput(); err != nil || string(out) != "93.184.215.14\n" {
		t.Errorf("datagrams to a service without root: %v: %s; its program has heard %v", err, out, answers.names)
	}
	if out, err := guest.node.Command("ping", "-c", "3", "-W", "5", mine).CombinedOutput(); err != nil {
		t.Errorf("ping of a service without root: %v: %s", err, out)
	}
	if out, err := curl("-x", socks, "--fail", "http://"+mine+"/"); err != nil || out != demoPage {
		t.Errorf("the own service: %v: %s", err, out)
	}

	// Ports of a service of a client with a TUN that lead to a local address; its datagrams through a SOCKS association.
	f, err := guest.node.Listen("tcp", "127.0.0.1:8001")
	must(err)
	defer f.Close()
	web = guest.node.Self("demo", "web")
	web.ExtraFiles = []*os.File{f}
	must(web.Start())
	for _, host := range []string{theirs, "theirs.loki", "www.theirs.loki"} {
		if out, err := curl("-x", socks, "--fail", "http://"+host+":81/"); err != nil || out != demoPage {
			t.Errorf("a forward with a TUN, as %s: %v: %s", host, err, out)
		}
	}
	if out, err := curl("-x", socks, "http://nobodys.loki/"); err == nil || !strings.Contains(out, "(4)") {
		t.Errorf("a name that is not registered: %v: %s", err, out)
	}
	asked, stop := spyAt(t, guest.node, "127.0.0.1:5301")
	defer stop()
	if a, err := n.askThroughSOCKS(theirs, "through.socks."); err != nil || a != "93.184.215.14" {
		t.Errorf("datagrams through SOCKS: %q, %v; the program at the other end has heard %v", a, err, asked.names)
	}

	if chromium, err := exec.LookPath("chromium"); err != nil && os.Getenv("LOKINETD_BROWSER") != "" {
		t.Error(err)
	} else if err != nil {
		t.Log("no browser was tried: make browser")
	} else {
		browse := []string{chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--user-data-dir=" + n.home + "/chromium", "--proxy-server=" + strings.Replace(socks, "5h:", "5:", 1)}
		for _, page := range []string{url + "/", "http://theirs.loki:81/"} {
			var said bytes.Buffer
			dom := n.run(append(browse, "--dump-dom", page)...)
			dom.Stderr = &said
			if out, err := dom.Output(); err != nil || !strings.Contains(string(out), strings.TrimSpace(demoPage)) {
				t.Errorf("chromium at %s: %v: %s%s", page, err, out, said.String())
			}
		}
		if to := os.Getenv("LOKINETD_SCREENSHOT"); to != "" { // for people
			shot := filepath.Join(n.home, "page.png")
			out, err := n.run(append(browse, "--hide-scrollbars", "--window-size=800,300", "--screenshot="+shot, url+"/")...).CombinedOutput()
			raw, rerr := os.ReadFile(shot)
			if err != nil || rerr != nil {
				t.Errorf("chromium: %v: %s", err, out)
			}
			must(os.WriteFile(to, raw, 0o644))
		}
	}

	if status, err = client.Status(ctx); err != nil || status.Proxy.Opened == 0 || status.Proxy.Refused == 0 {
		t.Errorf("%v: %+v", err, status.Proxy)
	}
	var shown bytes.Buffer
	printStatus(&shown, status, time.Now())
	t.Logf("status:\n%s", shown.String())
	if out, err := n.run(program, "status").CombinedOutput(); err != nil || !strings.Contains(string(out), "SOCKS5 on 127.0.0.1:1080") {
		t.Errorf("lokinetd status of that user: %v: %s", err, out)
	}
	must(daemon.Signal(syscall.SIGTERM))
	if err := daemon.Wait(); err != nil {
		t.Errorf("stop: %v\n%s", err, log.String())
	}
	n.run("getent", "hosts", "canary.example").Run()
	seen.mu.Lock()
	defer seen.mu.Unlock()
	names = slices.DeleteFunc(slices.Clone(seen.names), func(name string) bool { return name == "canary.example." })
	if len(names) == len(seen.names) {
		t.Error("the resolver is not asked at all")
	}
	if len(names) > 0 {
		t.Errorf("the resolver was asked for %v", names)
	}
}
