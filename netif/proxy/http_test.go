package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// site is a web server as the remote's port 8080, which says what it has seen.
func site(t *testing.T, f *fake) {
	l := listen(t)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/upgrade" {
			c, rw, err := w.(http.Hijacker).Hijack()
			if err == nil {
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				io.CopyN(c, rw, 4)
				c.Close()
			}
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s host=%s body=%s", r.Method, r.RequestURI, r.Host, body)
		for _, name := range []string{"Proxy-Connection", "Proxy-Authorization", "X-Forwarded-For", "Forwarded", "Via", "Connection", "X-Hop"} {
			if v := r.Header.Get(name); v != "" {
				fmt.Fprintf(w, " %s=%s", name, v)
			}
		}
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	f.tcp[8080], f.tcp[80] = l.Addr().String(), l.Addr().String()
}

func TestHTTP(t *testing.T) {
	s, f, _, at := start(t)
	site(t, f)
	for _, c := range []struct {
		send   string
		status int
		want   string // in the body
	}{
		{"GET http://WEB/a?b;c=%zz&d HTTP/1.1\r\nHost: WEB\r\n\r\n", 200, "GET /a?b;c=%zz&d host=WEB body="},
		{"GET http://WEB:8080/ HTTP/1.1\r\nHost: WEB\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: x\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n", 200, "GET / host=WEB:8080 body="},
		{"GET http://WEB HTTP/1.0\r\n\r\n", 200, "GET / host=WEB body="},
		{"POST http://WEB/ HTTP/1.1\r\nHost: WEB\r\nContent-Length: 3\r\n\r\nabc", 200, "host=WEB body=abc"},
		{"POST http://WEB/ HTTP/1.1\r\nHost: WEB\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 200, "host=WEB body=abc"},
		{"GET http://172.16.0.2/ HTTP/1.1\r\nHost: x\r\n\r\n", 200, "host=172.16.0.2 "},
		{"GET http://[fd00::2]:8080/ HTTP/1.1\r\nHost: x\r\n\r\n", 200, "host=[fd00::2]:8080 "},
		// Host confusion: the request line says where it goes, and what the remote sees.
		{"GET http://WEB/ HTTP/1.1\r\nHost: example.com\r\n\r\n", 200, "host=WEB "},
		{"GET http://WEB/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 200, "host=WEB "},
		{"GET http://example.com/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 403, "only names"},
		{"GET http://WEB@example.com/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, "without a user"},
		{"GET http://example.com@WEB/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, "without a user"},
		{"GET http://WEB/ HTTP/1.1\r\nHost: WEB\r\nHost: example.com\r\n\r\n", 400, ""},
		{"GET http://WEB/ HTTP/1.1\r\n\r\n", 400, ""},
		{"GET http://example.com%2eWEB/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, ""},
		{"GET http://WEB%00.example.com/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, ""},
		{"GET http:WEB HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, ""},
		{"GET http:///etc HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, ""},
		{"GET http://WEB:99999/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, ""},
		{"GET https://WEB/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, "CONNECT"},
		{"GET file:///etc/passwd HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, ""},
		{"GET ftp://WEB/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, ""},
		// DNS rebinding: a page of evil.example that the browser fetches from 127.0.0.1 speaks in origin form.
		{"GET / HTTP/1.1\r\nHost: evil.example:1081\r\n\r\n", 400, "not a web server"},
		{"GET /x HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, "not a web server"},
		{"OPTIONS * HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, "not a web server"},
		{"GET http://localhost/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 403, ""},
		{"GET http://127.0.0.1:80/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 403, ""},
		{"GET http://[::1]/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 403, ""},
		{"GET http://[::ffff:127.0.0.1]/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 403, ""},
		{"GET http://2130706433/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 403, ""},
		{"GET http://172.16.0.3/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 403, ""},
		{"GET http://GONE/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 502, "offline"},
		{"GET http://WEB:81/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 502, "refused"},
		{"GET http://other.loki/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 503, "not connected"},
		{"CONNECT example.com:443 HTTP/1.1\r\nHost: WEB\r\n\r\n", 403, "only names"},
		{"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: WEB:80\r\n\r\n", 403, ""},
		{"CONNECT localhost:80 HTTP/1.1\r\nHost: WEB:80\r\n\r\n", 403, ""},
		{"CONNECT GONE:80 HTTP/1.1\r\nHost: WEB:80\r\n\r\n", 502, ""},
		{"CONNECT WEB HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, ""},
		{"CONNECT WEB: HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, ""},
		{"CONNECT WEB:0 HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, ""},
		{"CONNECT WEB:080 HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, ""},
		{"CONNECT WEB:+80 HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, ""},
		{"CONNECT /path HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, ""},
		{"CONNECT http://WEB:80/ HTTP/1.1\r\nHost: WEB\r\n\r\n", 400, ""},
		{"CONNECT x@WEB:80 HTTP/1.1\r\nHost: WEB\r\n\r\n", 403, ""},
		{"\x05\x01\x00\r\n\r\n", 400, ""},
		{"GET http://WEB/ HTTP/1.1\r\nHost: WEB\r\nX: " + strings.Repeat("x", 2*maxHeader) + "\r\n\r\n", 431, ""},
	} {
		expand := strings.NewReplacer("WEB", web, "GONE", gone)
		conn := dial(t, at)
		go io.WriteString(conn, expand.Replace(c.send)) // an answer may come before the end of the request
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%.80q: %v", c.send, err)
			continue
		}
		body, _ := io.ReadAll(r.Body)
		if want := expand.Replace(c.want); r.StatusCode != c.status || !strings.Contains(string(body), want) || c.status == 200 && !strings.HasPrefix(string(body)+" ", want) && strings.HasPrefix(want, "GET") {
			t.Errorf("%.80q: %d %q, want %d %q", c.send, r.StatusCode, body, c.status, want)
		}
		for _, leak := range []string{"Proxy-", "Forwarded", "Via=", "X-Hop"} {
			if strings.Contains(string(body), leak) {
				t.Errorf("%.80q: the remote has seen %q", c.send, body)
			}
		}
		conn.Close()
	}
	if st := s.Stats(); st.Refused == 0 || st.Failed == 0 {
		t.Errorf("%+v", st)
	}
}

// TestTunnel: CONNECT gives a tunnel in both directions, with what was sent before the answer, and each direction ends by itself.
func TestTunnel(t *testing.T) {
	_, _, _, at := start(t)
	for _, target := range []string{web + ":80", web + ":443", "172.16.0.2:80", "[fd00::2]:80", upper(web) + ".:80"} {
		conn := dial(t, at)
		io.WriteString(conn, "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n\r\nearly\n")
		time.Sleep(5 * time.Millisecond)
		io.WriteString(conn, "late")
		conn.CloseWrite()
		b, err := io.ReadAll(conn)
		if want := "HTTP/1.1 200 Connection established\r\n\r\nhello early\nlate"; err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", target, b, err)
		}
	}
}

// TestUpgrade: a connection for http:// becomes another protocol's.
func TestUpgrade(t *testing.T) {
	_, f, _, at := start(t)
	site(t, f)
	conn := dial(t, at)
	fmt.Fprintf(conn, "GET http://%s/upgrade HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", web, web)
	r := bufio.NewReader(conn)
	if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	io.WriteString(conn, "ping")
	b := make([]byte, 4)
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "ping" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestKeepAlive: one connection of a program, several requests, several remotes; each goes where it says.
func TestKeepAlive(t *testing.T) {
	s, f, _, at := start(t)
	site(t, f)
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: at})}}
	for range 3 {
		for _, host := range []string{web, "site.loki:8080"} {
			r, err := client.Get("http://" + host + "/")
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(r.Body)
			r.Body.Close()
			if !strings.Contains(string(body), "host="+host+" ") {
				t.Errorf("%s: %s", host, body)
			}
		}
	}
	if st := s.Stats(); st.Opened != 2 || st.Open != 1 {
		t.Errorf("%+v", st)
	}
	client.CloseIdleConnections()
}

// FuzzHTTP: see FuzzSOCKS. Whatever the request, it goes to a host that is ours, or nowhere, and the host is what the request line says.
//
// Decoders: parseHost parseTarget forwardTarget
func FuzzHTTP(f *testing.F) {
	f.Add([]byte("CONNECT " + web + ":80 HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Add([]byte("GET http://" + web + "/ HTTP/1.1\r\nHost: example.com\r\n\r\n"))
	f.Add([]byte("GET http://[fd00::2]:80/ HTTP/1.1\r\nHost: x\r\n\r\n"))
	for _, s := range []string{web + ":80", web, "[fe80::1%25eth0]:80", "fe80::1%eth0", "[fe80::1%eth0]:80", "localhost.loki:80", "[::1", web + ":0", web + ":99999", web + ":8x", ":80", "::1:80", "x:80"} {
		f.Add([]byte(s))
	}
	f.Add([]byte("GET http://a%40b@" + web + ":80/ HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		check := func(text string, port uint16) {
			got, err := parseTarget(text, port)
			if err != nil {
				if !errors.Is(err, ErrRefused) && !errors.Is(err, errMalformed) {
					t.Fatal(err)
				}
				return
			}
			checkHost(t, got.host)
			again, err := parseTarget(net.JoinHostPort(got.host, fmt.Sprint(got.port)), 0)
			if err != nil || again.host != got.host || again.port != got.port || got.port == 0 || !strings.Contains(text, got.host) {
				t.Fatalf("%q: %+v %+v %v", text, got, again, err)
			}
		}
		check(string(b), 0)
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		if r.Method == http.MethodConnect {
			check(r.RequestURI, 0)
		} else if r.URL.IsAbs() {
			got, err := forwardTarget(r.URL)
			if err != nil {
				return
			}
			checkHost(t, got.host)
			if !strings.Contains(r.RequestURI, got.host) && !strings.Contains(r.RequestURI, "%") {
				t.Fatal(r.RequestURI, got.host)
			}
		}
	})
}

// TestRenewed: a transport does not go on remembering names that could not be connected to.
func TestRenewed(t *testing.T) {
	refused := errors.New("refused")
	r := newRenewed(&http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, refused }})
	for round := range 3 {
		was := r.at
		for n := range renewAfter {
			if r.at != was {
				t.Fatalf("round %d: renewed after %d", round, n)
			}
			q, err := http.NewRequest("GET", fmt.Sprintf("http://nobody-%d-%d.loki/", round, n), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.RoundTrip(q); !errors.Is(err, refused) {
				t.Fatal(err)
			}
		}
		if r.at == was {
			t.Errorf("round %d: not renewed", round)
		}
	}
}
