package link

import (
	"context"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// When first packets of handshakes come by the ten thousands a second, reading them alone costs what others' datagrams need. The kernel then drops seven of eight of
// those that bring no token, by chance, before they are read: a filter of the socket, which is there for no longer than the flood.

const (
	sieveLook  = 100 * time.Millisecond
	sieveOn    = 20_000 // first packets a second that are not looked at (overlay/strangers.go.in), from which on the filter is there
	sieveOff   = 250    // the same with the filter, until it goes
	sieveCalm  = 10     // looks in a row
	sieveKeeps = 8      // one of so many passes; a power of two
)

// sieve is the filter. A socket's begins at the UDP header; what is read beyond a packet's end drops it.
var sieve = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 8}, // the first byte: a long header of type Initial?
	{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xf0},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0xc0, Jf: 12},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13}, // over the destination's connection id, which flags and version come before
	{Code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_K, K: 14},
	{Code: unix.BPF_MISC | unix.BPF_TAX},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: 0}, // and the source's
	{Code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_X},
	{Code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_K, K: 1},
	{Code: unix.BPF_MISC | unix.BPF_TAX},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: 0}, // the token's length
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0, Jf: 3},
	{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0xfffff000 + 56}, // SKF_AD_OFF + SKF_AD_RANDOM
	{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: sieveKeeps - 1},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

// setSieve puts the filter on a socket or takes it off.
func setSieve(u *net.UDPConn, on bool) error {
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		if on {
			set = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(sieve)), Filter: &sieve[0]})
		} else {
			set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		}
	})
	if err != nil {
		return err
	}
	return set
}

// sift watches how many first packets are not looked at, until ctx ends.
func (q *QUIC) sift(ctx context.Context, u *net.UDPConn, t strangerLimiter) {
	look := time.NewTicker(sieveLook)
	defer look.Stop()
	var s siever
	for {
		select {
		case <-look.C:
			if on := s.on; s.look(t.StrangersDropped()) != on {
				if err := setSieve(u, s.on); err != nil {
					q.log.Debug("the filter for first packets of handshakes cannot be set", "error", err)
					return
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// siever decides when the filter is there.
type siever struct {
	on   bool
	last uint64
	calm int
}

// look is told each sieveLook how many were dropped in all, and says whether the filter is to be there.
func (s *siever) look(dropped uint64) bool {
	n := float64(dropped-s.last) / sieveLook.Seconds()
	s.last = dropped
	switch {
	case !s.on:
		s.on, s.calm = n >= sieveOn, 0
	case n > sieveOff:
		s.calm = 0
	default:
		s.calm++
		s.on = s.calm < sieveCalm
	}
	return s.on
}
