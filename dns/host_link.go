package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"lokinetd/router/key"
)

// Link is our network interface, or the placeholder on which our domains hang at systemd-resolved: that one stays when the other goes or is down.
type Link struct {
	Name  string
	Index int
	Own   []netip.Prefix // our addresses, with their ranges
	Addr  netip.Addr     // by which systemd-resolved knows it from others; invalid: the first of Own
}

// ranges are those of its addresses, in an order that does not depend on theirs: daemon and root write the same files.
func (l Link) ranges() (out []netip.Prefix) {
	for _, p := range l.Own {
		out = append(out, p.Masked())
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) })
	return out
}

// HostConfig is what the daemon's part needs. Listen, Upstream, Link and Log must be set.
type HostConfig struct {
	Place    Place
	Want     Method
	Listen   []netip.AddrPort        // of our name server
	Upstream func() []netip.AddrPort // as configured
	Link     func() Link             // as it is now
	// Anchor makes the placeholder, if it is not there. It may be nil, and may fail: then our domains hang on Link.
	Anchor func() (Link, error)
	// Adopt is told which resolvers to ask for other names, when all names come to us and the configuration names none; none, when that ends. It may be nil.
	Adopt func([]netip.AddrPort)
	Log   *slog.Logger
	// Keep leaves systemd-resolved told when Run ends: for a placeholder that outlives us, or an interface that goes with us, which it notices by itself.
	Keep bool
}

// HostStatus says how programs of this host come to ask us.
type HostStatus struct {
	Decision
	Applied bool   // it is in effect
	Problem string // why not; "": it is, or there is nothing to do
}

// Host is the daemon's part of the resolver integration: it decides, keeps systemd-resolved told about our interface, and tells where other names go. What needs root is
// done by Apply and Revert, in another process.
type Host struct {
	c       HostConfig
	again   chan struct{}
	mu      sync.Mutex
	status  HostStatus
	adopted []netip.AddrPort
}

const (
	lookEvery  = time.Minute     // how often the host is looked at again
	firstLook  = time.Second     // after the start or a failure; doubled each time, up to lookEvery
	revertTime = 2 * time.Second // for undoing it at the end
)

// NewHost makes it; Run starts it.
func NewHost(c HostConfig) *Host { return &Host{c: c, again: make(chan struct{}, 1)} }

// Changed says that the link has other addresses.
func (h *Host) Changed() {
	select {
	case h.again <- struct{}{}:
	default:
	}
}

// Status is what is in effect now. From any goroutine.
func (h *Host) Status() HostStatus {
	h.mu.Lock()
	s := h.status
	h.mu.Unlock()
	if s.Method == MethodResolved || s.Method == "" {
		return s
	}
	return Judge(context.Background(), h.c.Place, s.Decision, h.c.Listen, h.c.Link())
}

// link is where our domains hang at systemd-resolved.
func (h *Host) link() Link {
	own := h.c.Link()
	if h.c.Anchor == nil {
		return own
	}
	l, err := h.c.Anchor()
	if err != nil {
		h.c.Log.Debug("our names hang on the interface itself", "err", err)
		return own
	}
	l.Own = own.Own
	return l
}

// Judge looks whether a decision is in effect on the host.
func Judge(ctx context.Context, p Place, d Decision, listen []netip.AddrPort, l Link) HostStatus {
	s := HostStatus{Decision: d}
	switch d.Method {
	case MethodOff:
	case MethodNone:
		s.Problem = d.Reasons[len(d.Reasons)-1]
	default:
		s.Problem = p.Missing(ctx, d, listen, l)
		s.Applied = s.Problem == ""
	}
	return s
}

func (h *Host) world(ctx context.Context) World {
	return h.c.Place.Look(ctx, World{Want: h.c.Want, Enabled: true, Listen: h.c.Listen, Upstream: h.c.Upstream()})
}

// decide looks at the host and says what changed since the last time.
func (h *Host) decide(ctx context.Context) Decision {
	d := Decide(h.world(ctx))
	h.mu.Lock()
	news := h.status.Decision.String() != d.String()
	h.status.Decision = d
	if d.Method != MethodResolved {
		h.status.Applied, h.status.Problem = false, ""
	}
	upstream := d.Upstream
	if len(h.c.Upstream()) > 0 {
		upstream = nil
	}
	adopt := !slices.Equal(h.adopted, upstream)
	h.adopted = upstream
	h.mu.Unlock()
	if news {
		h.c.Log.Info("resolver of this host", "method", d.Method, "why", strings.Join(d.Reasons, "; "))
		if d.Advice != "" {
			h.c.Log.Warn("programs of this host cannot use our names", "advice", d.Advice)
		}
	}
	if adopt && h.c.Adopt != nil {
		h.c.Adopt(upstream)
	}
	return d
}

func (h *Host) note(applied bool, err error) {
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	h.mu.Lock()
	news := problem != h.status.Problem || applied != h.status.Applied
	h.status.Applied, h.status.Problem = applied, problem
	h.mu.Unlock()
	switch {
	case !news:
	case err != nil:
		h.c.Log.Warn("systemd-resolved does not send our names to us", "err", err)
	case applied:
		h.c.Log.Info("systemd-resolved sends our names to us")
	}
}

// Run keeps the host's resolver told until ctx ends, and then takes back what it told systemd-resolved, unless Keep is set. It never fails: without it the daemon works,
// for programs that ask it by themselves. The host is looked at again every minute, since resolvers come and go; sooner at first, as at boot they come while we start, and
// after a failure.
func (h *Host) Run(ctx context.Context) error {
	wait := firstLook
	for ctx.Err() == nil {
		if h.decide(ctx).Method == MethodResolved {
			start := time.Now()
			err := h.attend(ctx)
			if ctx.Err() != nil {
				break
			}
			h.note(false, err)
			if time.Since(start) > lookEvery {
				wait = firstLook
			}
		}
		select {
		case <-ctx.Done():
		case <-h.again:
		case <-time.After(wait):
		}
		wait = min(2*wait, lookEvery)
	}
	return nil
}

// errElsewhere says that another way than systemd-resolved has become right.
var errElsewhere = errors.New("another resolver is used now")

// attend keeps systemd-resolved told over one connection to the bus: at once, whenever it has been started anew, and when somebody else has changed it. It returns when
// ctx ends, the bus is gone, a call has failed, or another way has become right.
func (h *Host) attend(ctx context.Context) error {
	bus, err := h.c.Place.connect()
	if err != nil {
		return err
	}
	defer bus.Close()
	signals := make(chan *dbus.Signal, 16)
	bus.Signal(signals)
	if err := bus.AddMatchSignalContext(ctx, dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchInterface("org.freedesktop.DBus"),
		dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, resolvedName)); err != nil {
		return fmt.Errorf("dns: system bus: %w", err)
	}
	r := resolved{bus: bus, servers: reachable(h.c.Listen)}
	if err := r.apply(ctx, h.link()); err != nil {
		return err
	}
	defer func() {
		if h.c.Keep {
			return
		}
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), revertTime)
		defer cancel()
		if err := r.revert(late); err != nil {
			h.c.Log.Debug("systemd-resolved is not told that we go", "err", err)
		}
		h.note(false, nil)
	}()
	h.note(true, nil)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-bus.Context().Done():
			return errors.New("dns: the system bus is gone")
		case s, ok := <-signals:
			if !ok {
				return errors.New("dns: the system bus is gone")
			}
			if len(s.Body) != 3 || s.Body[0] != resolvedName {
				continue
			}
			if s.Body[2] == "" {
				r.link, r.owner = Link{}, ""
				h.note(false, errors.New("dns: systemd-resolved has ended"))
				continue
			}
			if err := r.apply(ctx, h.link()); err != nil {
				return err
			}
			h.note(true, nil)
		case <-h.again:
			if err := r.keep(ctx, h.link()); err != nil {
				return err
			}
		case <-look.C:
			if h.decide(ctx).Method != MethodResolved {
				return errElsewhere
			}
			if err := r.keep(ctx, h.link()); err != nil {
				return err
			}
			h.note(true, nil)
		}
	}
}

// resolved is systemd-resolved with what we told it.
type resolved struct {
	bus     *dbus.Conn
	servers []netip.AddrPort
	link    Link   // that it has been told about; zero: none
	owner   string // the connection that knew link as ours
}

// The arguments of its methods.
type (
	resolvedServer struct {
		Family  int32
		Address []byte
		Port    uint16
		Name    string
	}
	resolvedServerOld struct {
		Family  int32
		Address []byte
	}
	resolvedDomain struct {
		Name      string
		RouteOnly bool
	}
)

func (r *resolved) call(ctx context.Context, method string, args ...any) *dbus.Call {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return r.bus.Object(resolvedName, "/org/freedesktop/resolve1").CallWithContext(ctx, resolvedName+".Manager."+method, dbus.FlagNoAutoStart, args...)
}

// Flags of its ResolveAddress.
const (
	noNetwork = 1 << 15 // ask nobody; since systemd 248
	synthetic = 1 << 19 // in a result: made from what it knows of this host
)

// knows checks that the link of that number is ours for systemd-resolved too. A bus may lead out of our network namespace, and there the number is somebody
// else's link; its interface tells no names of links. So it is asked whose our address is, without asking others: only if that is an address of that
// link, it says so. It does not do that for a link that it already asks for our ranges; then it is ours if this process has checked it before, or if it bears our
// name servers and our domain, which an earlier process has put there after the check. Fails with what it answered.
func (r *resolved) knows(ctx context.Context, l Link) error {
	a := l.Addr
	if !a.IsValid() && len(l.Own) > 0 {
		a = l.Own[0].Addr()
	}
	if !a.IsValid() {
		return fmt.Errorf("dns: interface %s has no address", l.Name)
	}
	var owner string
	if err := r.bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, resolvedName).Store(&owner); err != nil {
		return fmt.Errorf("dns: systemd-resolved: %w", explain(err))
	}
	if owner == r.owner && l.Index == r.link.Index {
		return nil
	}
	var names []struct {
		Index int32
		Name  string
	}
	var flags uint64
	err := r.call(ctx, "ResolveAddress", int32(l.Index), family(a), a.AsSlice(), uint64(noNetwork)).Store(&names, &flags)
	if err == nil {
		err = errors.New("it answers from elsewhere")
		for _, n := range names {
			if int(n.Index) == l.Index && flags&synthetic != 0 {
				err = nil
			}
		}
	}
	if err != nil {
		if has, at, _, look := r.look(ctx, l); look != nil || !slices.Contains(has, resolvedDomain{key.TLDLoki, true}) || !r.at(at) || len(at) != len(r.servers) {
			return fmt.Errorf("dns: systemd-resolved does not know %v as the address of interface %d, %s: %w", a, l.Index, l.Name, explain(err))
		}
	}
	r.owner, r.link = owner, Link{Index: l.Index}
	return nil
}

func family(a netip.Addr) int32 {
	if a.Is4() {
		return 2
	}
	return 10
}

// explain puts into words what a call to systemd-resolved may fail with.
func explain(err error) error {
	var e dbus.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("it does not answer")
	case !errors.As(err, &e):
		return err
	}
	switch e.Name {
	case "org.freedesktop.DBus.Error.AccessDenied", "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired":
		return fmt.Errorf("it refuses (is polkit there, with the rule that comes with lokinetd?): %w", err)
	case resolvedName + ".LinkBusy":
		return fmt.Errorf("systemd-networkd manages the interface; let it be (Unmanaged=yes in a .network file that matches its name): %w", err)
	case "org.freedesktop.DBus.Error.NameHasNoOwner", "org.freedesktop.DBus.Error.ServiceUnknown":
		return errors.New("it does not run")
	}
	return err
}

// domains are those of a link, as systemd-resolved takes them.
func domains(l Link) (out []resolvedDomain) {
	for _, d := range Domains(l.ranges()) {
		out = append(out, resolvedDomain{d, true})
	}
	return out
}

// apply tells it all about l: first what keeps other names and other protocols off our link, then our domains, and at last our name server, without which none of
// that has an effect. It can be repeated.
func (r *resolved) apply(ctx context.Context, l Link) error {
	if err := r.knows(ctx, l); err != nil {
		return err
	}
	index := int32(l.Index)
	for _, c := range []struct {
		method string
		value  any
	}{
		{"SetLinkDefaultRoute", false},
		{"SetLinkLLMNR", "no"},
		{"SetLinkMulticastDNS", "no"},
		{"SetLinkDNSOverTLS", "no"},
		{"SetLinkDNSSEC", "no"},
		{"SetLinkDomains", domains(l)},
	} {
		if err := r.call(ctx, c.method, index, c.value).Err; err != nil {
			return fmt.Errorf("dns: systemd-resolved: %s: %w", c.method, explain(err))
		}
	}
	r.link = l
	var full []resolvedServer
	var old []resolvedServerOld
	for _, s := range r.servers {
		full = append(full, resolvedServer{family(s.Addr()), s.Addr().AsSlice(), s.Port(), ""})
		if s.Port() == 53 {
			old = append(old, resolvedServerOld{family(s.Addr()), s.Addr().AsSlice()})
		}
	}
	err := r.call(ctx, "SetLinkDNSEx", index, full).Err
	var e dbus.Error
	if errors.As(err, &e) && e.Name == "org.freedesktop.DBus.Error.UnknownMethod" && len(old) > 0 {
		err = r.call(ctx, "SetLinkDNS", index, old).Err
	}
	if err != nil {
		return fmt.Errorf("dns: systemd-resolved: SetLinkDNSEx: %w", explain(err))
	}
	return nil
}

// keep applies l if it is another link than before, or if somebody has changed what was told.
func (r *resolved) keep(ctx context.Context, l Link) error {
	if r.link.Index == l.Index && slices.Equal(r.link.Own, l.Own) {
		if why, err := r.differs(ctx, l); err == nil && why == "" {
			return nil
		}
	}
	return r.apply(ctx, l)
}

// look reads what of a link matters.
func (r *resolved) look(ctx context.Context, l Link) (has []resolvedDomain, at []resolvedServerOld, defaultRoute bool, err error) {
	var path dbus.ObjectPath
	if err = r.call(ctx, "GetLink", int32(l.Index)).Store(&path); err == nil {
		ctx, cancel := context.WithTimeout(ctx, callTime)
		defer cancel()
		var all map[string]dbus.Variant
		err = r.bus.Object(resolvedName, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", dbus.FlagNoAutoStart, resolvedName+".Link").Store(&all)
		if err == nil {
			for name, to := range map[string]any{"Domains": &has, "DNS": &at, "DefaultRoute": &defaultRoute} {
				v, ok := all[name]
				if !ok {
					err = errors.Join(err, fmt.Errorf("it does not tell %s", name))
				} else {
					err = errors.Join(err, v.Store(to))
				}
			}
		}
	}
	if err != nil {
		err = fmt.Errorf("dns: systemd-resolved: %w", explain(err))
	}
	return has, at, defaultRoute, err
}

// at reports whether all our name servers are among these.
func (r *resolved) at(servers []resolvedServerOld) bool {
	for _, s := range r.servers {
		if !slices.ContainsFunc(servers, func(o resolvedServerOld) bool { return slices.Equal(o.Address, s.Addr().AsSlice()) }) {
			return false
		}
	}
	return true
}

// differs says in what that matters the link is not as apply leaves it; "": in nothing.
func (r *resolved) differs(ctx context.Context, l Link) (string, error) {
	has, at, defaultRoute, err := r.look(ctx, l)
	if err != nil {
		return "", err
	}
	for _, d := range domains(l) {
		if !slices.Contains(has, d) {
			return "~" + d.Name + " is not among the interface's domains", nil
		}
	}
	switch {
	case !r.at(at):
		return list(r.servers) + " is not the interface's name server", nil
	case defaultRoute:
		return "the interface is a default route for names", nil
	}
	return "", nil
}

// revert takes back what was told about the link, if it is still known.
func (r *resolved) revert(ctx context.Context) error {
	if r.link.Index == 0 || !r.bus.Connected() {
		return nil
	}
	if err := r.knows(ctx, r.link); err != nil {
		return err
	}
	return r.call(ctx, "RevertLink", int32(r.link.Index)).Err
}
