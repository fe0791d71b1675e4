package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"syscall"
)

// ErrNotRunning says that nobody answers on the socket.
var ErrNotRunning = errors.New("not running")

// Client asks a daemon through its socket.
type Client struct {
	http http.Client
}

// NewClient makes a client of the daemon whose socket is at path. Nothing is
// connected before the first question.
func NewClient(path string) *Client {
	return &Client{http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "unix", path)
			switch {
			case errors.Is(err, os.ErrPermission):
				return nil, Errorf(CodeDenied, "permission denied on %s: become a member of its group, or root", path)
			case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
				return nil, fmt.Errorf("%w: no answer on %s; start it with 'systemctl start lokinetd' or, by hand, 'lokinetd run', without root 'lokinetd proxy'", ErrNotRunning, path)
			}
			return c, err
		},
		DisableKeepAlives: true,
	}}}
}

// Status asks how the daemon is.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, "GET", "/v1/status", nil, &s)
}

// Relays asks for the known relays.
func (c *Client) Relays(ctx context.Context) (r Relays, err error) {
	return r, c.do(ctx, "GET", "/v1/relays", nil, &r)
}

// Log asks for what was logged lately.
func (c *Client) Log(ctx context.Context) (l Log, err error) {
	return l, c.do(ctx, "GET", "/v1/log", nil, &l)
}

// Resolve asks for the address behind a name of ours.
func (c *Client) Resolve(ctx context.Context, name string) (r Resolved, err error) {
	return r, c.do(ctx, "GET", "/v1/resolve", url.Values{"name": {name}}, &r)
}

// Ping connects to a name and sends count echo requests, one a second.
func (c *Client) Ping(ctx context.Context, name string, count int) (p Pinged, err error) {
	return p, c.do(ctx, "POST", "/v1/ping", url.Values{"name": {name}, "count": {strconv.Itoa(count)}}, &p)
}

// Events calls each with what happens in the daemon from now on, until ctx ends (nil), each fails (its error) or the daemon ends (ErrNotRunning).
func (c *Client) Events(ctx context.Context, each func(Event) error) error {
	resp, err := c.ask(ctx, "GET", "/v1/events", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	for {
		var e Event
		if err := d.Decode(&e); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("%w any more: the daemon has ended", ErrNotRunning)
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

// do sends one request and decodes its answer. Errors: those of ask, and those of the answer.
func (c *Client) do(ctx context.Context, method, path string, q url.Values, into any) error {
	resp, err := c.ask(ctx, method, path, q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}

// maxAnswer bounds an answer in bytes.
const maxAnswer = 64 << 20

// ask sends one request; its answer is 200, and the caller closes it. Errors: ErrNotRunning, *Error, and those of the context and the socket.
func (c *Client) ask(ctx context.Context, method, path string, q url.Values) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://lokinetd"+path+"?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	var f Failure
	if json.Unmarshal(body, &f) != nil || f.Error == "" {
		return nil, fmt.Errorf("control: %s", resp.Status)
	}
	return nil, &Error{Code: f.Code, Text: f.Error}
}
