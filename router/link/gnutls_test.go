//go:build gnutls

package link

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"lokinetd/router/key"
)

// The reference's TLS is GnuTLS. Here Debian's own GnuTLS programs (gnutls-bin, 3.7.9) speak with our crypto/tls, over TCP as
// they know no QUIC, in both directions; each side must have seen the other's key bytes. Without the programs the test
// fails: .ci/run gnutls installs them.

// referencePriority is what the reference gives GnuTLS (protocol 2 section 2.1). With it gnutls-cli offers a type of its
// own certificate even when it has none, and then gives up when that is agreed to; the reference's client does not offer
// one. keylessPriority makes gnutls-cli do the same.
const (
	referencePriority = "NORMAL:+VERS-TLS1.3:-VERS-TLS1.2:-VERS-TLS1.1:-VERS-TLS1.0:+CTYPE-CLI-ALL:+CTYPE-SRV-ALL"
	keylessPriority   = "NORMAL:+VERS-TLS1.3:-VERS-TLS1.2:-VERS-TLS1.1:-VERS-TLS1.0:+CTYPE-CLI-X509:+CTYPE-SRV-ALL"
)

const patience = 30 * time.Second // for a process to say or do what it must

func TestGnuTLSServer(t *testing.T) {
	relay, self := newGnuKey(t), key.Generate()
	address, log := gnutlsServ(t, relay)
	for _, c := range []struct {
		kind   Kind
		remote key.Public
		fails  bool
		shown  *key.Secret
	}{
		{Relay, relay.public, false, self},
		{Client, relay.public, false, nil},
		{Bootstrap, relay.public, false, nil},
		{Relay, self.Public(), true, nil},
		{Client, self.Public(), true, nil},
	} {
		name := fmt.Sprintf("%v, fails %v", c.kind, c.fails)
		log.cut()
		tcp, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		tcp.SetDeadline(time.Now().Add(patience))
		conn := tls.Client(tcp, dialTLS(c.kind, self, c.remote))
		err = conn.Handshake()
		if c.fails {
			if !strings.Contains(fmt.Sprint(err), errWrongKey.Error()) {
				t.Errorf("%s: %v", name, err)
			}
			tcp.Close()
			continue
		}
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, log)
			continue
		}
		// The echo shows that the server has taken our certificate; its log is complete by then.
		fmt.Fprintf(conn, "hello\n")
		if echo, err := bufio.NewReader(conn).ReadString('\n'); echo != "hello\n" {
			t.Errorf("%s: echo %q, %v\n%s", name, echo, err, log)
		}
		conn.Close()
		text := log.await(t, "Application protocol: "+alpn[c.kind])
		var want []key.Public
		if c.shown != nil {
			want = []key.Public{c.shown.Public()}
		}
		if got := keysIn(text); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: GnuTLS saw the keys %v, want %v\n%s", name, got, want, text)
		}
	}
}

func TestGnuTLSClient(t *testing.T) {
	self := key.Generate()
	member, stranger := newGnuKey(t), newGnuKey(t)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", listenTLS(self, func(k key.Public) bool { return k == member.public }))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, c := range []struct {
		name     string
		kind     Kind
		show     *gnuKey
		priority string
		want     error
	}{
		{"relay", Relay, member, referencePriority, nil},
		{"client", Client, nil, keylessPriority, nil},
		{"bootstrap", Bootstrap, nil, keylessPriority, nil},
		{"client with a key", Client, stranger, referencePriority, nil},
		{"unregistered relay", Relay, stranger, referencePriority, errUnregistered},
		{"keyless relay", Relay, nil, keylessPriority, errKeyless},
	} {
		type outcome struct {
			seen key.Public
			alpn string
			err  error
		}
		served := make(chan outcome, 1)
		go func() {
			conn, err := listener.Accept()
			if err != nil {
				served <- outcome{err: err}
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			err = conn.(*tls.Conn).Handshake()
			state := conn.(*tls.Conn).ConnectionState()
			seen, _ := peerKey(state)
			if err == nil {
				_, err = fmt.Fprintln(conn, "welcome")
			}
			served <- outcome{seen, state.NegotiatedProtocol, err}
		}()
		// --insecure: the program knows no pinned keys; what it was shown is compared below.
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		args := []string{"--port", port, "--insecure", "--print-cert", "--sni-hostname", "localhost", "--alpn", alpn[c.kind], "--priority", c.priority}
		var want key.Public
		if c.show != nil {
			args = append(args, "--rawpkkeyfile", c.show.private, "--rawpkfile", c.show.file)
			want = c.show.public
		}
		out, err := exec.CommandContext(t.Context(), tool(t, "gnutls-cli"), append(args, "127.0.0.1")...).CombinedOutput()
		got := <-served
		if c.want != nil {
			if !strings.Contains(fmt.Sprint(got.err), c.want.Error()) || bytes.Contains(out, []byte("welcome")) {
				t.Errorf("%s: %v, want %v\n%s", c.name, got.err, c.want, out)
			}
			continue
		}
		if err != nil || got.err != nil || got.seen != want || got.alpn != alpn[c.kind] || !bytes.Contains(out, []byte("welcome")) {
			t.Errorf("%s: we saw %v, want %v (%q, %v); gnutls-cli: %v\n%s", c.name, got.seen, want, got.alpn, got.err, err, out)
		}
		if seen := keysIn(string(out)); len(seen) != 1 || seen[0] != self.Public() {
			t.Errorf("%s: GnuTLS saw the keys %v, want %v\n%s", c.name, seen, self.Public(), out)
		}
	}
}

// gnuKey is a key pair made by certtool, in files.
type gnuKey struct {
	private, file string
	public        key.Public
}

func newGnuKey(t *testing.T) *gnuKey {
	t.Helper()
	dir := t.TempDir()
	k := &gnuKey{private: filepath.Join(dir, "key.pem"), file: filepath.Join(dir, "public.pem")}
	for _, args := range [][]string{
		{"--generate-privkey", "--key-type", "ed25519", "--outfile", k.private},
		{"--load-privkey", k.private, "--pubkey-info", "--outfile", k.file},
	} {
		if out, err := exec.Command(tool(t, "certtool"), args...).CombinedOutput(); err != nil {
			t.Fatalf("certtool %v: %v\n%s", args, err, out)
		}
	}
	text, err := os.ReadFile(k.file)
	if err != nil {
		t.Fatal(err)
	}
	keys := keysIn(string(text))
	if len(keys) != 1 {
		t.Fatalf("no raw public key in\n%s", text)
	}
	k.public = keys[0]
	return k
}

// keysIn are the raw public keys that a GnuTLS program has printed.
func keysIn(text string) (keys []key.Public) {
	rest := []byte(text)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return keys
		}
		if k, ok := decodeSPKI(block.Bytes); ok && block.Type == "PUBLIC KEY" {
			keys = append(keys, k)
		}
	}
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v (Debian: apt install gnutls-bin)", err)
	}
	return path
}

// gnutlsServ runs an echo server with the key. gnutls-serv cannot choose a free port itself, so one is guessed, and
// another when somebody else was quicker.
func gnutlsServ(t *testing.T, k *gnuKey) (address string, log *output) {
	t.Helper()
	for range 5 {
		guess, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := guess.Addr().String()
		guess.Close()
		_, port, _ := net.SplitHostPort(address)
		args := []string{"--echo", "--port", port, "--priority", referencePriority, "--alpn-fatal", "--rawpkkeyfile", k.private, "--rawpkfile", k.file}
		for _, name := range alpn {
			args = append(args, "--alpn", name)
		}
		cmd := exec.CommandContext(t.Context(), tool(t, "gnutls-serv"), args...)
		read, write := io.Pipe()
		cmd.Stdout, cmd.Stderr = write, write
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		log := &output{lines: make(chan string, 10000)}
		go func() {
			write.CloseWithError(cmd.Wait())
		}()
		go func() {
			defer close(log.lines)
			for s := bufio.NewScanner(read); s.Scan(); {
				log.lines <- s.Text() + "\n"
			}
		}()
		if strings.Contains(log.await(t, regexp.QuoteMeta("IPv4 0.0.0.0 port ")+port+`\.\.\.(done|bind)`), "done") {
			return address, log
		}
		cmd.Process.Kill()
	}
	t.Fatal("no free port for gnutls-serv")
	return "", nil
}

// output is what a running process has printed.
type output struct {
	lines chan string
	text  strings.Builder
}

// cut forgets what was printed up to now.
func (o *output) cut() {
	for {
		select {
		case <-o.lines:
			continue
		default:
		}
		o.text.Reset()
		return
	}
}

// await reads on until pattern is printed, and returns all since the last cut.
func (o *output) await(t *testing.T, pattern string) string {
	t.Helper()
	timeout := time.After(patience)
	want := regexp.MustCompile(pattern)
	for {
		select {
		case line, ok := <-o.lines:
			if !ok {
				t.Fatalf("the process ended before it printed %q:\n%s", pattern, o.text.String())
			}
			o.text.WriteString(line)
			if want.MatchString(line) {
				return o.text.String()
			}
		case <-timeout:
			t.Fatalf("the process has not printed %q:\n%s", pattern, o.text.String())
		}
	}
}

func (o *output) String() string {
	for {
		select {
		case line, ok := <-o.lines:
			if ok {
				o.text.WriteString(line)
				continue
			}
		default:
		}
		return o.text.String()
	}
}
