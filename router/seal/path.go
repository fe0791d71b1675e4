package seal

import "lokinetd/router/key"

// ClientPathKey gives the key that a client shares with a relay on a path, or with the remote of a legacy session: by a Diffie-Hellman in the Edwards group
// with an ephemeral, hashed under a random nonce (protocol 1 section 4.5). The error is relay.Check's.
func ClientPathKey(eph *key.Secret, relay key.Public, nonce *Nonce) (Key, error) {
	shared, err := eph.DH(relay)
	if err != nil {
		return Key{}, err
	}
	return pathKey(eph.Public(), relay, shared, nonce), nil
}

// RelayPathKey gives the same key on the side of the relay or legacy responder. The error is eph.Check's.
func RelayPathKey(sec *key.Secret, eph key.Public, nonce *Nonce) (Key, error) {
	shared, err := sec.DH(eph)
	if err != nil {
		return Key{}, err
	}
	return pathKey(eph, sec.Public(), shared, nonce), nil
}

// pathKey hashes in the order client, server, shared, whoever computes.
func pathKey(client, server key.Public, shared [32]byte, nonce *Nonce) Key {
	return Key(Keyed32(nonce[:], client[:], server[:], shared[:]))
}
