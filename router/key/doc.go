// Package key holds identities: Ed25519 key pairs, the addresses and names that are made from them, signatures, blinded keys, the
// conversions to X25519, and key files (protocol 1 sections 2, 3, 4.3 to 4.5, 4.8 and 8.1).
//
// Public, Address and Kind are small comparable values. Secret and Blinded cannot be compared, printed, logged or marshalled.
//
// It does not encrypt: what is done with the result of a Diffie-Hellman is router/seal's. It resolves no names: an SNS name is
// only checked and split here; router asks the network for it, seal opens the answer.
package key
