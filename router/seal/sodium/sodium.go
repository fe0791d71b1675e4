// Package sodium lets tests ask a foreign witness: a C program on libsodium (c/peer.c), written from protocol documents 1,
// 3 and 4 and not from our code, that computes what the documents say. It is for tests with the build tag sodium only, and
// knows nothing of ours; what is compared with what is said by the tests of seal, netdb, path and session. It needs a C
// compiler and Debian's libsodium-dev, which `.ci/run sodium` installs.
package sodium

import (
	"bufio"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/cryptotest"

	"lokinetd/router/testkit"
)

//go:embed c/peer.c
var source []byte

// Peer is the running program. One at a time may ask.
type Peer struct {
	in  io.Writer
	out *bufio.Reader
}

// Start compiles and starts the program; it ends with the test.
func Start(t testing.TB) *Peer {
	t.Helper()
	dir := t.TempDir()
	file, program := filepath.Join(dir, "peer.c"), filepath.Join(dir, "peer")
	if err := os.WriteFile(file, source, 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, file, "-lsodium").CombinedOutput(); err != nil {
		t.Fatalf("the C program does not build; .ci/run sodium installs what it needs: %v\n%s", err, text)
	}
	cmd := exec.Command(program)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error("the C program:", err)
		}
	})
	return &Peer{in, bufio.NewReaderSize(out, 1<<16)}
}

// Refusal is the program's word that something is not valid; the text says what.
type Refusal string

func (r Refusal) Error() string { return "libsodium: " + string(r) }

// Case is one random case: a source of its randomness, which is all that differs from case to case, and the program.
type Case struct {
	testkit.Source
	peer *Peer
	log  strings.Builder
}

// Some draws up to most bytes, often few, sometimes none.
func (c *Case) Some(most int) []byte {
	if c.IntN(4) == 0 {
		most = min(most, 3)
	}
	return c.Bytes(c.IntN(most + 1))
}

// Seed draws 32 bytes.
func (c *Case) Seed() [32]byte { return [32]byte(c.Bytes(32)) }

// Nonce draws 24 bytes.
func (c *Case) Nonce() [24]byte { return [24]byte(c.Bytes(24)) }

// Ask gives the program's results for an op of peer.c, as many as it has. The error is a Refusal.
func (c *Case) Ask(op string, args ...[]byte) ([][]byte, error) {
	line := op
	for _, a := range args {
		if len(a) == 0 {
			line += " -"
		} else {
			line += " " + hex.EncodeToString(a)
		}
	}
	fmt.Fprintf(&c.log, "> %s\n", line)
	if _, err := fmt.Fprintln(c.peer.in, line); err != nil {
		panic("sodium: the C program is gone: " + err.Error())
	}
	text, err := c.peer.out.ReadString('\n')
	if err != nil {
		panic("sodium: the C program is gone: " + err.Error())
	}
	fmt.Fprintf(&c.log, "< %s", text)
	if why, refused := strings.CutPrefix(text, "! "); refused {
		return nil, Refusal(strings.TrimSpace(why))
	}
	var results [][]byte
	for _, word := range strings.Fields(text) {
		b, err := hex.DecodeString(strings.TrimPrefix(word, "-"))
		if err != nil {
			panic("sodium: " + err.Error())
		}
		results = append(results, b)
	}
	return results, nil
}

// Must is Ask for what cannot be refused; if it is, the case ends there and has failed.
func (c *Case) Must(op string, args ...[]byte) [][]byte {
	results, err := c.Ask(op, args...)
	if err != nil {
		panic(refused{fmt.Errorf("%s: %w", op, err)})
	}
	return results
}

type refused struct{ error }

// Same is an error when two results differ.
func Same(what string, ours, theirs []byte) error {
	if string(ours) != string(theirs) {
		return fmt.Errorf("%s\nours       %x\nlibsodium's %x", what, ours, theirs)
	}
	return nil
}

// Check plays the stored cases of a name and n new ones. Theirs and ours draw the same in a case of the same seed. A
// case that fails is stored with all that was asked and answered in testdata/sodium of the test's package, to be played first from then on.
func Check(t *testing.T, p *Peer, name string, n int, check func(*Case) error) {
	t.Helper()
	old, err := filepath.Glob(filepath.Join("testdata", "sodium", name+"-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range old {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		seed, err := strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(strings.SplitN(string(text), "\n", 2)[0], "seed ")), 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if _, err := play(t, p, seed, check); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
	}
	first := testkit.Rand(t).Uint64()
	for i := range uint64(n) {
		log, err := play(t, p, first+i, check)
		if err == nil {
			continue
		}
		file := filepath.Join("testdata", "sodium", fmt.Sprintf("%s-%016x", name, first+i))
		text := fmt.Sprintf("seed %d\n# %s\n%s", first+i, strings.ReplaceAll(err.Error(), "\n", "\n# "), log)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Error(err)
		}
		t.Fatalf("case %d, stored as %s: %v", i, file, err)
	}
}

func play(t *testing.T, p *Peer, seed uint64, check func(*Case) error) (log string, err error) {
	c := &Case{Source: testkit.Seeded(seed), peer: p}
	cryptotest.SetGlobalRandom(t, seed)
	defer func() {
		log = c.log.String()
		switch r := recover().(type) {
		case nil:
		case refused:
			err = r
		default:
			panic(r)
		}
	}()
	return "", check(c)
}
