package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"lokinetd/netif/lab"
)

const demoPage = "<h1>Hello from a place that nobody can locate.</h1>\n"

// demoWebCommand is the web server, on the socket that it gets as descriptor 3.
func (a *app) demoWebCommand() *cobra.Command {
	return &cobra.Command{Use: "web", Hidden: true, Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		l, err := net.FileListener(os.NewFile(3, "web"))
		if err != nil {
			return err
		}
		return http.Serve(l, http.HandlerFunc(demoWeb))
	}}
}

// demoWeb answers GET / with the page, GET /bytes/N with N bytes, and an upload with the SHA-256 of what came.
func demoWeb(w http.ResponseWriter, r *http.Request) {
	var n int64
	switch _, err := fmt.Sscanf(r.URL.Path, "/bytes/%d", &n); {
	case err == nil:
		io.CopyN(w, rand.NewChaCha8([32]byte{1}), n)
	case r.Method != "GET":
		h := sha256.New()
		io.Copy(h, r.Body)
		fmt.Fprintf(w, "%x", h.Sum(nil))
	default:
		io.WriteString(w, demoPage)
	}
}

// fetchTimes are moments of a fetch, counted from one that only the fetching program knows.
type fetchTimes struct{ resolved, connected, first time.Duration }

// get is the command that fetches a page in a node, in one try: curl, or ourselves where there is none. It writes the page, a line feed, and the times
// in seconds.
func (d *demoNet) get(node *lab.Node, url string) *lab.Cmd {
	if curl, err := exec.LookPath("curl"); err == nil {
		return node.Command(curl, "--silent", "--show-error", "--fail", "--no-buffer", "--max-time", fmt.Sprint(int(demoWait.Seconds())),
			"--write-out", "\n%{time_namelookup} %{time_connect} %{time_starttransfer}", url)
	}
	return node.Self("demo", "get", url)
}

// splitTimes undoes what get's command writes.
func splitTimes(out []byte) (page []byte, t fetchTimes, err error) {
	i := bytes.LastIndexByte(out, '\n')
	var s [3]float64
	if _, err = fmt.Sscan(string(out[i+1:]), &s[0], &s[1], &s[2]); err != nil {
		return nil, t, fmt.Errorf("no times after the page: %q", out[i+1:])
	}
	of := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	return out[:max(i, 0)], fetchTimes{of(s[0]), of(s[1]), of(s[2])}, nil
}

// demoGetCommand is what there is in place of curl.
func (a *app) demoGetCommand() *cobra.Command {
	return &cobra.Command{Use: "get URL", Hidden: true, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), demoWait)
		defer cancel()
		var t fetchTimes
		began := time.Now()
		note := func(to *time.Duration) { *to = time.Since(began) }
		req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			DNSDone:              func(httptrace.DNSDoneInfo) { note(&t.resolved) },
			GotConn:              func(httptrace.GotConnInfo) { note(&t.connected) },
			GotFirstResponseByte: func() { note(&t.first) },
		}), "GET", args[0], nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", args[0], resp.Status)
		}
		if _, err := io.Copy(a.out, resp.Body); err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out, "\n%.6f %.6f %.6f", t.resolved.Seconds(), t.connected.Seconds(), t.first.Seconds())
		return err
	}}
}
