package link

import (
	"net/netip"
	"time"

	"lokinetd/router/fair"
)

// doors bounds how often handshakes are begun, which cost about a millisecond of the processor each whether they end or not. One source, that is an IPv4 address or an
// IPv6 /64, gets sourceBurst at once and Limits.SourceRate a second; all together Limits.Rate a second and eight seconds' worth at once. From a quarter on, of either, a dialler
// must first prove its address, which costs us a fiftieth: so nobody uses up what is another's.
type doors struct{ fair.Meter[netip.Prefix] }

const (
	sourceBurst = 128 // as many as one may have
	doorsBurst  = 8   // seconds of the rate of all
)

func (d *doors) set(all, each int) {
	d.Rate, d.Burst = float64(each), sourceBurst
	d.AllRate, d.AllBurst = float64(all), float64(all)*doorsBurst
}

// doubts says whether a dialler from the source must prove its address.
func (d *doors) doubts(source netip.Prefix, now time.Time) bool {
	mine, all := d.Used(source, now)
	return mine >= 0.25 || all >= 0.25
}
