package netif

import "time"

// MTU of the TUN, always: the least that IPv6 allows, and what crosses a link in one datagram (design section 3).
const MTU = 1280

// TUN is the part of a TUN device that Pump uses: wireguard's tun.Device, and a way to end a Read. Device and MemTUN fit.
type TUN interface {
	// Read reads up to BatchSize packets into bufs[i][offset:], their lengths into sizes. It may return packets and an error.
	Read(bufs [][]byte, sizes []int, offset int) (int, error)
	// Write writes the packets bufs[i][offset:]. It uses the bytes before them and the capacity behind them as it likes.
	Write(bufs [][]byte, offset int) (int, error)
	BatchSize() int
	// SetReadDeadline makes Read return os.ErrDeadlineExceeded from t on; the zero time: never.
	SetReadDeadline(t time.Time) error
}
