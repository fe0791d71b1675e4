package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"lokinetd/dns"
	"lokinetd/netif"
)

// device is a TUN with its addresses and routes: *netif.Device.
type device interface {
	netif.TUN
	Name() string
	NoIPv6() string
	File() *os.File
	Apply(want []netip.Prefix) error
	Close(keepRoutes bool) error
}

// system is the operating system and the service manager as the daemon sees them; tests put their own in its place.
type system struct {
	openDevice func(netif.DeviceConfig) (device, error)
	prefixes   func(name string, own []netip.Prefix) ([]netip.Prefix, error)
	find       func(name string) (netif.Changes, error)
	// connections are the host's TCP connections.
	connections func() ([]netif.Connection, error)

	managed  bool          // a service manager started us, and will start us again
	notify   func(string)  // tells it something
	watchdog time.Duration // how long it waits for a sign of life; 0: it does not
	files    []*os.File    // what it passed to us, by name
	keep     func(name string, f *os.File) error
	reload   chan os.Signal // SIGHUP
}

// Names of descriptors that a service manager passes (FileDescriptorName= of a socket unit; FDNAME of the descriptor store).
const (
	dnsName = "dns"
	tunName = "tun"
)

// newSystem is the real one.
func newSystem(log *slog.Logger) *system {
	s := &system{
		openDevice: func(c netif.DeviceConfig) (device, error) {
			d, err := netif.OpenDevice(c)
			if err != nil {
				return nil, err
			}
			return d, nil
		},
		prefixes: netif.HostPrefixes,
		find:     netif.Find, connections: netif.Connections,
		managed: os.Getenv("NOTIFY_SOCKET") != "",
		notify: func(state string) {
			if _, err := daemon.SdNotify(false, state); err != nil {
				log.Warn("the service manager cannot be told", "state", state, "err", err)
			}
		},
		keep:   keepFile,
		reload: make(chan os.Signal, 1),
	}
	var err error
	if s.watchdog, err = daemon.SdWatchdogEnabled(false); err != nil {
		log.Warn("no watchdog", "err", err)
	}
	if os.Getenv("LISTEN_FDS") != "" && os.Getenv("LISTEN_PID") == "" {
		// Who starts us without being able to know our process id beforehand, as the demo does, leaves it out.
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	s.files = activation.Files(true)
	signal.Notify(s.reload, unix.SIGHUP)
	return s
}

// close gives back what newSystem took and nobody has taken over.
func (s *system) close() {
	signal.Stop(s.reload)
	for _, f := range s.files {
		f.Close()
	}
	s.files = nil
}

// take gives the passed descriptors of a name, which are the caller's from now on.
func (s *system) take(name string) (files []*os.File) {
	var rest []*os.File
	for _, f := range s.files {
		if f.Name() == name {
			files = append(files, f)
		} else {
			rest = append(rest, f)
		}
	}
	s.files = rest
	return files
}

// reloading tells the service manager that a reload begins; notify(daemon.SdNotifyReady) ends it.
func (s *system) reloading() {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	s.notify(daemon.SdNotifyReloading + "\nMONOTONIC_USEC=" + strconv.FormatInt(ts.Nano()/1000, 10))
}

// keepFile puts a descriptor into the service manager's store, which passes it to the next start (FileDescriptorStoreMax= in the unit).
func keepFile(name string, f *os.File) error {
	to := os.Getenv("NOTIFY_SOCKET")
	if to == "" || f == nil {
		return nil
	}
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	addr := &unix.SockaddrUnix{Name: to}
	controlErr := raw.Control(func(fd uintptr) {
		// An older one of that name would be passed along with it.
		err = unix.Sendmsg(sock, []byte("FDSTOREREMOVE=1\nFDNAME="+name), nil, addr, 0)
		if err == nil {
			err = unix.Sendmsg(sock, []byte("FDSTORE=1\nFDNAME="+name), unix.UnixRights(int(fd)), addr, 0)
		}
	})
	return errors.Join(err, controlErr)
}

// NameSockets are the name server's sockets for who answers in the daemon's place: those that the service manager has passed, else new ones.
func NameSockets(ctx context.Context, listen []netip.AddrPort) (*dns.Sockets, error) {
	s := newSystem(slog.New(slog.DiscardHandler))
	defer s.close()
	return s.dnsSockets(ctx, listen)
}

// dnsSockets are the name server's sockets: those that the service manager has opened, in which queries wait since before our start, else new ones.
func (s *system) dnsSockets(ctx context.Context, listen []netip.AddrPort) (*dns.Sockets, error) {
	files := s.take(dnsName)
	if len(files) == 0 {
		return dns.Listen(ctx, listen...)
	}
	sockets := &dns.Sockets{}
	for i, f := range files {
		p, perr := net.FilePacketConn(f)
		if perr == nil {
			sockets.Packet = append(sockets.Packet, p)
		} else if l, err := net.FileListener(f); err == nil {
			sockets.Stream = append(sockets.Stream, l)
		} else {
			sockets.Close()
			for _, f := range files[i:] {
				f.Close()
			}
			return nil, fmt.Errorf("router: passed socket %d: neither a datagram socket (%w) nor a listening one (%w)", i, perr, err)
		}
		f.Close()
	}
	return sockets, nil
}
