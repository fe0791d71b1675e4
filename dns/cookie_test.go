package dns

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"
	"time"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// TestCookieVectors: RFC 9018 appendix A, A.1 to A.4.
func TestCookieVectors(t *testing.T) {
	const first, old, rolled = "e5e973e5a6b2a43f48e7dc849e37bfcf", "dd3bdf9344b678b185a6f5cb60fca715", "445536bcd2513298075a5d379663c962"
	for _, c := range []struct {
		secret, ip string
		at         int64
		query      string
		reply      string
		ok         bool
	}{
		{first, "198.51.100.100", 1559731985, "2464c4abcf10c957", "2464c4abcf10c957010000005cf79f111f8130c3eee29480", true},                                 // A.1
		{first, "198.51.100.100", 1559734385, "2464c4abcf10c957010000005cf79f111f8130c3eee29480", "2464c4abcf10c957010000005cf7a871d4a564a1442aca77", true}, // A.2, renewed
		{first, "203.0.113.203", 1559734700, "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5", "fc93fc62807ddb86010000005cf7a9acf73a7810aca2381e", false}, // A.3: over an hour old
		{old, "2001:db8:220:1:59de:d0f4:8769:82b8", 1559741817, "22681ab97d52c298010000005cf7c57926556bd0934c72f8", "22681ab97d52c298010000005cf7c57926556bd0934c72f8", true},
		{rolled, "2001:db8:220:1:59de:d0f4:8769:82b8", 1559741961, "22681ab97d52c298010000005cf7c57926556bd0934c72f8", "22681ab97d52c298010000005cf7c609a6bb79d16625507a", false}, // A.4: another secret
	} {
		k := parseCookieSecret([16]byte(unhex(c.secret)))
		reply, ok := k.judge(unhex(c.query), netip.MustParseAddr(c.ip), time.Unix(c.at, 0))
		if hex.EncodeToString(reply) != c.reply || ok != c.ok {
			t.Errorf("cookie %s at %d: got %x %t, want %s %t", c.query, c.at, reply, ok, c.reply, c.ok)
		}
	}
}

func TestCookieAges(t *testing.T) {
	k := newCookieSecret()
	ip, now := netip.MustParseAddr("127.0.0.1"), time.Unix(1<<32-100, 0) // the time wraps on the way
	c := k.make([8]byte{1, 2, 3}, ip, now)
	for _, v := range []struct {
		age      time.Duration
		ok, same bool
	}{
		{-301 * time.Second, false, false},
		{-300 * time.Second, true, true},
		{0, true, true},
		{30 * time.Minute, true, true},
		{30*time.Minute + time.Second, true, false},
		{time.Hour, true, false},
		{time.Hour + time.Second, false, false},
	} {
		reply, ok := k.judge(c, ip, now.Add(v.age))
		if ok != v.ok || bytes.Equal(reply, c) != v.same {
			t.Errorf("age %v: ok %t, same cookie %t", v.age, ok, bytes.Equal(reply, c))
		}
		if again, ok := k.judge(reply, ip, now.Add(v.age)); !ok || !bytes.Equal(again, reply) {
			t.Errorf("age %v: the cookie of the reply is not taken", v.age)
		}
	}
	for i := range 8 * len(c) {
		flipped := bytes.Clone(c)
		flipped[i/8] ^= 1 << (i % 8)
		if _, ok := k.judge(flipped, ip, now); ok {
			t.Errorf("bit %d flipped is taken", i)
		}
	}
	if _, ok := k.judge(c, netip.MustParseAddr("127.0.0.2"), now); ok {
		t.Error("a cookie of another address is taken")
	}
	for _, n := range []int{0, 7, 9, 16, 23, 25, 40, 41} {
		if reply, ok := k.judge(make([]byte, n), ip, now); reply != nil || !ok {
			t.Errorf("a cookie of %d bytes is not ignored", n)
		}
	}
}
