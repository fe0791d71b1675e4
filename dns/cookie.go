package dns

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"time"
)

// Server cookies (RFC 9018, protocol 4 section 7.2): 8 bytes of the client, then version 1 and 3 zero bytes, the time, and SipHash-2-4 over
// all of that and the client's IP address.
const (
	clientCookie = 8
	fullCookie   = 24

	cookieRenew = 30 * time.Minute // older ones are taken and replaced
	cookieOld   = time.Hour        // older ones are refused
	cookieAhead = 5 * time.Minute  // so are those from further in the future
)

// cookieSecret keys the hash; new at each start.
type cookieSecret struct{ k0, k1 uint64 }

func newCookieSecret() cookieSecret {
	var b [16]byte
	rand.Read(b[:])
	return parseCookieSecret(b)
}

func parseCookieSecret(b [16]byte) cookieSecret {
	return cookieSecret{binary.LittleEndian.Uint64(b[:8]), binary.LittleEndian.Uint64(b[8:])}
}

// judge looks at the cookie of a query. The reply is what the answer carries: nil when the query's cookie is of a length that is ignored. Not ok: the
// server's part is not one of ours for this address and time.
func (k cookieSecret) judge(cookie []byte, ip netip.Addr, now time.Time) (reply []byte, ok bool) {
	switch len(cookie) {
	case clientCookie:
		return k.make([clientCookie]byte(cookie), ip, now), true
	case fullCookie:
		sum := k.hash(cookie[:16], ip)
		age := int32(uint32(now.Unix()) - binary.BigEndian.Uint32(cookie[12:]))
		if subtle.ConstantTimeCompare(sum[:], cookie[16:]) == 1 && cookie[8] == 1 &&
			age >= -int32(cookieAhead/time.Second) && age <= int32(cookieOld/time.Second) {
			if age <= int32(cookieRenew/time.Second) {
				return cookie, true
			}
			return k.make([clientCookie]byte(cookie), ip, now), true
		}
		return k.make([clientCookie]byte(cookie), ip, now), false
	}
	return nil, true
}

func (k cookieSecret) make(client [clientCookie]byte, ip netip.Addr, now time.Time) []byte {
	c := append(make([]byte, 0, fullCookie), client[:]...)
	c = append(c, 1, 0, 0, 0)
	c = binary.BigEndian.AppendUint32(c, uint32(now.Unix()))
	sum := k.hash(c, ip)
	return append(c, sum[:]...)
}

func (k cookieSecret) hash(head []byte, ip netip.Addr) (sum [8]byte) {
	msg := append(make([]byte, 0, 32), head...)
	binary.LittleEndian.PutUint64(sum[:], k.sip(append(msg, ip.Unmap().AsSlice()...)))
	return sum
}

// sip is SipHash-2-4.
func (k cookieSecret) sip(msg []byte) uint64 {
	v0, v1 := k.k0^0x736f6d6570736575, k.k1^0x646f72616e646f6d
	v2, v3 := k.k0^0x6c7967656e657261, k.k1^0x7465646279746573
	rounds := func(n int) {
		for range n {
			v0 += v1
			v1 = bits.RotateLeft64(v1, 13) ^ v0
			v0 = bits.RotateLeft64(v0, 32)
			v2 += v3
			v3 = bits.RotateLeft64(v3, 16) ^ v2
			v0 += v3
			v3 = bits.RotateLeft64(v3, 21) ^ v0
			v2 += v1
			v1 = bits.RotateLeft64(v1, 17) ^ v2
			v2 = bits.RotateLeft64(v2, 32)
		}
	}
	block := func(m uint64) {
		v3 ^= m
		rounds(2)
		v0 ^= m
	}
	last := uint64(len(msg)) << 56
	for ; len(msg) >= 8; msg = msg[8:] {
		block(binary.LittleEndian.Uint64(msg))
	}
	for i, c := range msg {
		last |= uint64(c) << (8 * i)
	}
	block(last)
	v2 ^= 0xff
	rounds(4)
	return v0 ^ v1 ^ v2 ^ v3
}
