package netif

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"lokinetd/router/key"
	"lokinetd/router/packet"
)

// Connection is a TCP connection of the host's, as its kernel sees it.
type Connection struct {
	Local, Remote netip.AddrPort
	socket        netlink.SocketID
}

// Connections lists the TCP connections that may still bring or take data.
func Connections() ([]Connection, error) {
	const timeWait, listen = 6, 10
	var all []Connection
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := netlink.SocketDiagTCP(family)
		if err != nil {
			return nil, fmt.Errorf("netif: TCP connections of this host: %w", err)
		}
		for _, s := range sockets {
			local, ok1 := netip.AddrFromSlice(s.ID.Source)
			remote, ok2 := netip.AddrFromSlice(s.ID.Destination)
			if s.State == timeWait || s.State == listen || !ok1 || !ok2 {
				continue
			}
			all = append(all, Connection{netip.AddrPortFrom(local.Unmap(), s.ID.SourcePort), netip.AddrPortFrom(remote.Unmap(), s.ID.DestinationPort), s.ID})
		}
	}
	return all, nil
}

// End ends the connection at this end, whose program is told ECONNABORTED. Nothing is sent to an address that does not answer.
func (c Connection) End() error {
	r := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	r.AddData(&socketDiag{c})
	if _, err := r.Execute(unix.NETLINK_INET_DIAG, 0); err != nil {
		return fmt.Errorf("netif: ending a connection: %w", err)
	}
	return nil
}

// socketDiag is the kernel's struct inet_diag_req_v2 for one TCP socket.
type socketDiag struct{ c Connection }

func (socketDiag) Len() int { return 56 }

func (d *socketDiag) Serialize() []byte {
	id := &d.c.socket
	b := make([]byte, 0, 56)
	family, a, z := byte(unix.AF_INET), []byte(id.Source.To4()), []byte(id.Destination.To4())
	if len(a) == 0 || len(z) == 0 || len(id.Source) == 16 && d.c.Local.Addr().Is6() {
		family, a, z = unix.AF_INET6, id.Source, id.Destination
	}
	b = append(b, family, unix.IPPROTO_TCP, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // any state
	b = binary.BigEndian.AppendUint16(b, id.SourcePort)
	b = binary.BigEndian.AppendUint16(b, id.DestinationPort)
	b = append(append(b, a...), make([]byte, 16-len(a))...)
	b = append(append(b, z...), make([]byte, 16-len(z))...)
	b = binary.NativeEndian.AppendUint32(b, id.Interface)
	b = binary.NativeEndian.AppendUint32(b, id.Cookie[0])
	return binary.NativeEndian.AppendUint32(b, id.Cookie[1])
}

// Resume lets in what a remote answers on a connection that one of our programs had with it through an earlier run. It does so for the time of a connection
// that is being opened: it goes on, or the program does not care.
func (e *Endpoint) Resume(remote key.Address, c Connection, now time.Time) {
	k := flowKey{remote: remote, version: 4, proto: packet.ProtoTCP, local: c.Local.Port(), port: c.Remote.Port()}
	if c.Local.Addr().Is6() {
		k.version = 6
	}
	e.flows.mu.Lock()
	defer e.flows.mu.Unlock()
	e.flows.flows.put(k, remote, now).expiry = now.Add(flowOpening)
}
