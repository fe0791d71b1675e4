// Package seal holds every change of bytes under a key: the onion layer and the AEAD on packets in place, the sealed box of the session
// handshake, the key schedules of paths and sessions, the encryption of SNS records, and the hashes that other packages need (protocol 1 sections 4 to 5
// and 8.2).
//
// Stream, Seal, Open and Xor are the data plane: they work in place and do not allocate. All functions are pure but for fresh randomness, and safe for
// concurrent use on different data.
//
// It knows no message formats: router/path and router/session say what is sealed in which order, router/netdb what is hashed. Identities, signatures and blinding are
// router/key's.
package seal
