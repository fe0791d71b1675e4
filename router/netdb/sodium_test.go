//go:build sodium

package netdb_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"lokinetd/router/key"
	"lokinetd/router/netdb"
	"lokinetd/router/seal/sodium"
)

// TestSodiumContacts: contacts that one side signs the other reads.
func TestSodiumContacts(t *testing.T) {
	peer := sodium.Start(t)
	t.Run("relay-contact", func(t *testing.T) { sodium.Check(t, peer, "relay-contact", 300, relayContact) })
	t.Run("client-contact", func(t *testing.T) { sodium.Check(t, peer, "client-contact", 300, clientContact) })
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func relayContact(c *sodium.Case) error {
	seed, network := c.Seed(), []uint64{0, 1, c.Uint64() >> 1}[c.IntN(3)]
	signed := time.Unix(int64(c.Uint32()), 0)
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(c.Uint32()), byte(c.Uint32()), byte(c.Uint32())}), uint16(1+c.IntN(65535)))
	at := binary.BigEndian.AppendUint16(addr.Addr().AsSlice(), addr.Port())
	version := [3]uint8(c.Bytes(3))

	ours := netdb.SignRelayContact(key.FromSeed(seed), netdb.RelayContact{Addr: addr, Time: signed, Version: version, Network: network})
	theirs := c.Must("contact", seed[:], number(network), at, number(uint64(signed.Unix())), version[:])[0]
	read, err := netdb.ParseRelayContact(theirs, signed, netdb.Rules{Network: network, Private: true})
	if err != nil {
		return err
	}
	hash := ours.Hash()
	return errors.Join(
		sodium.Same("contact", ours.Raw(), theirs),
		sodium.Same("what was read", fmt.Append(nil, read.ID, read.Addr, read.Time.Unix(), read.Version), fmt.Append(nil, ours.ID, addr, signed.Unix(), version)),
		sodium.Same("hash", hash[:], c.Must("rchash", theirs)[0]),
	)
}

// clientContact: libsodium opens ours, and we its. What is inside has no random parts and is compared as a text with what protocol 1 sections 7.1, 7.2 and 7.5 say.
func clientContact(c *sodium.Case) error {
	seed, nonce := c.Seed(), c.Nonce()
	sec := key.FromSeed(seed)
	owner := sec.Public()
	now := time.UnixMilli(int64(c.Uint64() >> 20))
	contact := netdb.ClientContact{Flags: uint8(c.IntN(256))}
	expiry := time.Unix(now.Unix()+1200, 0)
	var intros strings.Builder
	for range 1 + c.IntN(8) {
		i := netdb.Intro{Expiry: expiry, Hop: [16]byte(c.Bytes(16)), Relay: key.Public(c.Bytes(32))}
		contact.Intros = append(contact.Intros, i)
		fmt.Fprintf(&intros, "d1:ei%de1:h16:%s1:r32:%se", expiry.Unix(), i.Hop[:], i.Relay[:])
		expiry = expiry.Add(-time.Duration(c.IntN(100)) * time.Second)
	}
	records := ""
	for range c.IntN(4) {
		s := netdb.SRV{Service: []string{"_http._tcp", "_a-b0._udp"}[c.IntN(2)], Priority: uint16(c.Uint32()), Weight: uint16(c.Uint32()), Port: uint16(c.Uint32()),
			Target: []string{"", ".", "www.shop.loki", owner.String() + ".sesh"}[c.IntN(4)]}
		contact.SRV = append(contact.SRV, s)
		records += fmt.Sprintf("d1:pi%de1:s%d:%s1:t%d:%s1:ui%de1:wi%dee", s.Port, len(s.Service), s.Service, len(s.Target), s.Target, s.Priority, s.Weight)
	}
	if records != "" { // without any the key is left out
		records = "1:sl" + records + "e"
	}
	sealed, err := contact.Seal(sec, now)
	if err != nil {
		return err
	}
	r, err := c.Ask("uncontact", owner[:], sealed)
	if err != nil {
		return err
	}
	blinded, err := owner.Blind()
	if err != nil {
		return err
	}
	inner := fmt.Sprintf("d0:i0e1:a32:%s1:il%se1:pi%de%se", owner[:], intros.String(), contact.Flags, records)
	theirs := c.Must("sealcontact", seed[:], nonce[:], number(uint64(now.UnixMilli())), []byte(inner))[0]
	back, err := netdb.OpenClientContact(theirs, owner)
	if err != nil {
		return err
	}
	contact.Key, contact.SignedAt = owner, now
	return errors.Join(sodium.Same("blinded key", blinded[:], r[0]), sodium.Same("time", fmt.Append(nil, now.UnixMilli()), r[1]),
		sodium.Same("inner dict", []byte(inner), r[2]), sodium.Same("what was read", fmt.Appendf(nil, "%+v", *back), fmt.Appendf(nil, "%+v", contact)))
}
