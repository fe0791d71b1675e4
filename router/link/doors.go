package link

import (
	"net/netip"
	"time"
)

// doors bounds how often handshakes are begun, which cost about a millisecond of the processor each whether they end or not. One source, that is an IPv4 address or an
// IPv6 /64, gets sourceBurst at once and each a second; all together rate a second and eight seconds' worth at once. While more than half of that is used, who
// has used a quarter of his own gets no more, so that few sources cannot shut all others out. From a quarter on, of either, a dialler must first prove
// its address, which costs us a fiftieth: so nobody uses up what is another's.
//
// Not safe for concurrent use.
type doors struct {
	rate    float64 // a second, of all
	each    float64 // of one source
	sources map[netip.Prefix]*pail
	all     pail
	swept   time.Time
}

const (
	sourceBurst = 128 // as many as one may have
	doorsBurst  = 8   // seconds of the rate of all
	maxSources  = 1 << 14
)

// pail is what was used and has not drained, at last.
type pail struct {
	used float64
	at   time.Time
}

func (p *pail) look(now time.Time, rate float64) float64 {
	if since := now.Sub(p.at).Seconds(); since > 0 {
		p.used = max(0, p.used-since*rate)
		p.at = now
	}
	return p.used
}

// doubts says whether a dialler from the source must prove its address.
func (d *doors) doubts(source netip.Prefix, now time.Time) bool {
	p := d.sources[source]
	return d.all.look(now, d.rate) >= d.rate*doorsBurst/4 || p != nil && p.look(now, d.each) >= sourceBurst/4 || len(d.sources) >= maxSources
}

// opens counts one more handshake, or says that it may not be.
func (d *doors) opens(source netip.Prefix, now time.Time) bool {
	p := d.sources[source]
	if p == nil {
		if d.sources == nil {
			d.sources = make(map[netip.Prefix]*pail)
		}
		d.sweep(now)
		if len(d.sources) >= maxSources {
			return false
		}
		p = &pail{}
		d.sources[source] = p
	}
	mine, all := p.look(now, d.each), d.all.look(now, d.rate)
	if mine+1 > sourceBurst || all+1 > d.rate*doorsBurst || all >= d.rate*doorsBurst/2 && mine >= sourceBurst/4 {
		return false
	}
	p.used++
	d.all.used++
	return true
}

// sweep forgets sources that have used nothing of late.
func (d *doors) sweep(now time.Time) {
	if len(d.sources) < maxSources/2 || now.Sub(d.swept) < time.Second {
		return
	}
	d.swept = now
	for s, p := range d.sources {
		if p.look(now, d.each) == 0 {
			delete(d.sources, s)
		}
	}
}
