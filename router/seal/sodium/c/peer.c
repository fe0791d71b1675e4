/*
 * peer: what protocol documents 1 and 3, and 4 section 3, say, written with libsodium and from the documents alone, as a witness against
 * the Go code. Where libsodium has a function for it, that function is used.
 *
 * It reads lines "op argument ..." and answers each with one line of results, or "! why". Arguments and results are hex,
 * "-" is the empty string. It keeps no state and draws no randomness but the ephemeral key of "box": a case is the lines
 * that were exchanged.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned char u8;

enum { KEY = 32, NONCE = 24, TAG = 16, ID = 16, FRAMES = 8, FRAME = 169, INNER = 93, TRAILER = NONCE + ID + 1, BUILD = FRAMES * FRAME };

typedef struct {
	u8 *p;
	size_t n;
} bytes;

/* ---- one request ---- */

static bytes arg[64];
static int args;
static char *answer; /* of the request being served */
static size_t answer_n;
static FILE *out;
static const char *failure;

static void put(const void *data, size_t n)
{
	const u8 *p = data;
	if (n == 0)
		fputc('-', out);
	for (size_t i = 0; i < n; i++)
		fprintf(out, "%02x", p[i]);
	fputc(' ', out);
}

static void fail(const char *why)
{
	if (!failure)
		failure = why;
}

/* sized gives argument i, which must have n bytes; a request that is wrong in itself ends the program. */
static u8 *sized(int i, size_t n)
{
	if (i >= args || arg[i].n != n) {
		fprintf(stderr, "peer: argument %d is not of %zu bytes\n", i, n);
		exit(2);
	}
	return arg[i].p;
}

static bytes any(int i)
{
	if (i >= args) {
		fprintf(stderr, "peer: no argument %d\n", i);
		exit(2);
	}
	return arg[i];
}

static u8 *fresh(size_t n)
{
	u8 *p = calloc(1, n + 1);
	if (!p)
		abort();
	return p;
}

/* ---- document 1, section 4: primitives ---- */

/* Edwards key pair of a seed: the libsodium form of the secret is seed and public key (3.1). */
static void pair(const u8 *seed, u8 pk[32], u8 sk[64])
{
	crypto_sign_seed_keypair(pk, sk, seed);
}

/* hash is BLAKE2b with a digest of n bytes, keyed when there is a key, over the parts that follow as (pointer, length) pairs up to a null pointer. */
static void hash(u8 *digest, size_t n, const void *key, size_t keylen, ...)
{
	crypto_generichash_state s;
	va_list parts;
	const u8 *p;
	crypto_generichash_init(&s, key, keylen, n);
	va_start(parts, keylen);
	while ((p = va_arg(parts, const u8 *)))
		crypto_generichash_update(&s, p, va_arg(parts, size_t));
	va_end(parts);
	crypto_generichash_final(&s, digest, n);
}
#define PART(p, n) (const u8 *)(p), (size_t)(n)
#define END (const u8 *)0

/* 4.5: C and R are client and server, S the Edwards point. */
static int dh(u8 k[KEY], int client, const u8 *seed, const u8 *other, const u8 nonce[NONCE])
{
	u8 pk[32], sk[64], a[32], s[32];
	pair(seed, pk, sk);
	crypto_sign_ed25519_sk_to_curve25519(a, sk);
	if (crypto_scalarmult_ed25519(s, a, other) != 0)
		return -1;
	const u8 *c = client ? pk : other, *r = client ? other : pk;
	hash(k, KEY, nonce, NONCE, PART(c, 32), PART(r, 32), PART(s, 32), END);
	return 0;
}

/* 4.6 */
static void xor_nonce(const u8 k[KEY], u8 x[NONCE])
{
	u8 h[32];
	hash(h, 32, NULL, 0, PART(k, KEY), END);
	memcpy(x, h, NONCE);
}

static void mutate(u8 nonce[NONCE], const u8 k[KEY])
{
	u8 x[NONCE];
	xor_nonce(k, x);
	for (int i = 0; i < NONCE; i++)
		nonce[i] ^= x[i];
}

static void stream(u8 *p, size_t n, const u8 k[KEY], const u8 nonce[NONCE])
{
	crypto_stream_xchacha20_xor(p, p, n, nonce, k);
}

/* 4.8 */
static const char domain[] = "SessionRouterClientContact";

static void factor(const u8 a[32], u8 f[32])
{
	u8 h[64];
	hash(h, 64, domain, strlen(domain), PART(a, 32), END);
	crypto_core_ed25519_scalar_reduce(f, h);
}

/* ---- ops of document 1 ---- */

/* ed SEED: public key, X25519 secret, X25519 public key (4.4) */
static void op_ed(void)
{
	u8 pk[32], sk[64], xs[32], xp[32];
	pair(sized(0, 32), pk, sk);
	crypto_sign_ed25519_sk_to_curve25519(xs, sk);
	if (crypto_sign_ed25519_pk_to_curve25519(xp, pk) != 0)
		fail("conversion");
	put(pk, 32), put(xs, 32), put(xp, 32);
}

/* edpub KEY: X25519 public key, if it is a key of the main subgroup */
static void op_edpub(void)
{
	u8 xp[32];
	if (crypto_sign_ed25519_pk_to_curve25519(xp, sized(0, 32)) != 0)
		fail("no key");
	put(xp, 32);
}

/* sign SEED MESSAGE: signature */
static void op_sign(void)
{
	u8 pk[32], sk[64], sig[64];
	pair(sized(0, 32), pk, sk);
	crypto_sign_detached(sig, NULL, any(1).p, any(1).n, sk);
	put(sig, 64);
}

/* verify KEY MESSAGE SIGNATURE */
static void op_verify(void)
{
	if (crypto_sign_verify_detached(sized(2, 64), any(1).p, any(1).n, sized(0, 32)) != 0)
		fail("signature");
}

/* dh client|server: SIDE(1 byte) SEED OTHER NONCE: K and X */
static void op_dh(void)
{
	u8 k[KEY], x[NONCE];
	if (dh(k, sized(0, 1)[0], sized(1, 32), sized(2, 32), sized(3, NONCE)) != 0) {
		fail("no key");
		return;
	}
	xor_nonce(k, x);
	put(k, KEY), put(x, NONCE);
}

/* blind KEY: blinded public key */
static void op_blind(void)
{
	u8 f[32], b[32];
	factor(sized(0, 32), f);
	if (crypto_scalarmult_ed25519_noclamp(b, f, sized(0, 32)) != 0)
		fail("no key");
	put(b, 32);
}

static void blind_sign(const u8 *seed, const u8 *p, size_t n, u8 B[32], u8 sig[64])
{
	u8 pk[32], sk[64], f[32], a[32], b[32], h[32], digest[64], r[32], c[32];
	crypto_hash_sha512_state sha;
	pair(seed, pk, sk);
	factor(pk, f);
	crypto_sign_ed25519_sk_to_curve25519(a, sk);
	crypto_core_ed25519_scalar_mul(b, a, f);
	crypto_scalarmult_ed25519_base_noclamp(B, b);
	hash(h, 32, domain, strlen(domain), PART(sk, 32), END);

	crypto_hash_sha512_init(&sha);
	crypto_hash_sha512_update(&sha, h, 32);
	crypto_hash_sha512_update(&sha, p, n);
	crypto_hash_sha512_final(&sha, digest);
	crypto_core_ed25519_scalar_reduce(r, digest);
	crypto_scalarmult_ed25519_base_noclamp(sig, r);

	crypto_hash_sha512_init(&sha);
	crypto_hash_sha512_update(&sha, sig, 32);
	crypto_hash_sha512_update(&sha, B, 32);
	crypto_hash_sha512_update(&sha, p, n);
	crypto_hash_sha512_final(&sha, digest);
	crypto_core_ed25519_scalar_reduce(c, digest);
	crypto_core_ed25519_scalar_mul(sig + 32, c, b);
	crypto_core_ed25519_scalar_add(sig + 32, sig + 32, r);
}

/* blindsign SEED MESSAGE: blinded public key from the secret's side, signature */
static void op_blindsign(void)
{
	u8 B[32], sig[64];
	blind_sign(sized(0, 32), any(1).p, any(1).n, B, sig);
	put(B, 32), put(sig, 64);
}

/* box KEY MESSAGE: sealed to the X25519 conversion (4.9) */
static void op_box(void)
{
	u8 xp[32];
	bytes m = any(1);
	u8 *c = fresh(m.n + crypto_box_curve25519xchacha20poly1305_SEALBYTES);
	if (crypto_sign_ed25519_pk_to_curve25519(xp, sized(0, 32)) != 0 || crypto_box_curve25519xchacha20poly1305_seal(c, m.p, m.n, xp) != 0)
		fail("no key");
	put(c, m.n + crypto_box_curve25519xchacha20poly1305_SEALBYTES);
	free(c);
}

/* unbox SEED BOX: message */
static void op_unbox(void)
{
	u8 pk[32], sk[64], xs[32], xp[32];
	bytes c = any(1);
	u8 *m = fresh(c.n);
	pair(sized(0, 32), pk, sk);
	crypto_sign_ed25519_sk_to_curve25519(xs, sk);
	crypto_scalarmult_base(xp, xs);
	if (crypto_box_curve25519xchacha20poly1305_seal_open(m, c.p, c.n, xp, xs) != 0)
		fail("does not open");
	else
		put(m, c.n - crypto_box_curve25519xchacha20poly1305_SEALBYTES);
	free(m);
}

/* stream KEY NONCE DATA */
static void op_stream(void)
{
	stream(any(2).p, any(2).n, sized(0, KEY), sized(1, NONCE));
	put(any(2).p, any(2).n);
}

/* seal KEY NONCE MESSAGE */
static void op_seal(void)
{
	bytes m = any(2);
	u8 *c = fresh(m.n + TAG);
	crypto_aead_xchacha20poly1305_ietf_encrypt(c, NULL, m.p, m.n, NULL, 0, NULL, sized(1, NONCE), sized(0, KEY));
	put(c, m.n + TAG);
	free(c);
}

/* open KEY NONCE CIPHERTEXT */
static void op_open(void)
{
	bytes c = any(2);
	u8 *m = fresh(c.n);
	if (crypto_aead_xchacha20poly1305_ietf_decrypt(m, NULL, NULL, c.p, c.n, NULL, 0, sized(1, NONCE), sized(0, KEY)) != 0)
		fail("does not open");
	else
		put(m, c.n - TAG);
	free(m);
}

/* x SECRET: X25519 public key */
static void op_x(void)
{
	u8 p[32];
	crypto_scalarmult_base(p, sized(0, 32));
	put(p, 32);
}

/* session SECRET OTHER-PUBLIC I R TAG-I TAG-R X Y KS M: k1, k2 (section 5). The tags are numbers here: big endian, as numbers are written. */
static void op_session(void)
{
	u8 d[32], tags[8], context[64], k[64];
	u8 *ti = sized(4, 4), *tr = sized(5, 4);
	if (crypto_scalarmult(d, sized(0, 32), sized(1, 32)) != 0) {
		fail("no key");
		return;
	}
	for (int i = 0; i < 4; i++)
		tags[i] = ti[3 - i], tags[4 + i] = tr[3 - i];
	hash(context, 64, "srouter session context", 23, PART(sized(2, 32), 32), PART(sized(3, 32), 32), PART(tags, 8), END);
	hash(k, 64, context, 64, PART(d, 32), PART(sized(6, 32), 32), PART(sized(7, 32), 32), PART(sized(8, 32), 32), PART(sized(9, 1184), 1184), END);
	put(k, 32), put(k + 32, 32);
}

static void name_key(bytes name, u8 nh[32], u8 vk[32])
{
	hash(nh, 32, NULL, 0, PART(name.p, name.n), END);
	hash(vk, 32, nh, 32, PART(name.p, name.n), END);
}

/* name NAME OWNER NONCE: hash and record of an SNS name (8.2) */
static void op_name(void)
{
	u8 nh[32], vk[32], c[32 + TAG];
	name_key(any(0), nh, vk);
	crypto_aead_xchacha20poly1305_ietf_encrypt(c, NULL, sized(1, 32), 32, NULL, 0, NULL, sized(2, NONCE), vk);
	put(nh, 32), put(c, sizeof c);
}

/* rchash CONTACT: the 8-byte hash of a relay contact (6.5), found by the keys' own characters */
static void op_rchash(void)
{
	u8 h[8];
	bytes rc = any(0);
	u8 *t = memmem(rc.p, rc.n, "1:ti", 4), *v, *sig = rc.p + rc.n - 64 - 1 - 3 - 1; /* before ~64:...e */
	if (!t || !(v = memchr(t, 'e', rc.p + rc.n - t)) || *sig != '~') {
		fail("contact");
		return;
	}
	v += 3; /* e 1 : */
	hash(h, 8, NULL, 0, PART(rc.p, t + 2 - rc.p), PART(v, sig - v), END);
	put(h, 8);
}

/* ---- bt, as far as needed: texts and strings at fixed places ---- */

static int text(bytes *b, const char *s)
{
	size_t n = strlen(s);
	if (b->n < n || memcmp(b->p, s, n) != 0)
		return -1;
	b->p += n, b->n -= n;
	return 0;
}

static int string(bytes *b, bytes *s)
{
	size_t n = 0, digits = 0;
	while (b->n && *b->p >= '0' && *b->p <= '9' && digits++ < 8)
		n = n * 10 + (*b->p++ - '0'), b->n--;
	if (!digits || text(b, ":") != 0 || b->n < n)
		return -1;
	s->p = b->p, s->n = n;
	b->p += n, b->n -= n;
	return 0;
}

/* field reads the key, a string under it that must have size bytes. */
static u8 *field(bytes *b, const char *key, size_t size)
{
	bytes s;
	if (text(b, key) != 0 || string(b, &s) != 0 || s.n != size)
		return NULL;
	return s.p;
}

static int end(bytes *b) { return b->n == 1 && *b->p == 'e' ? 0 : -1; }

/* contact SEED NETWORK(8) ADDRESS(6) TIME(8) VERSION(3): a signed relay contact (6.1). Numbers are big endian. */
static uint64_t number(const u8 *p)
{
	uint64_t v = 0;
	for (int i = 0; i < 8; i++)
		v = v << 8 | p[i];
	return v;
}

static void op_contact(void)
{
	u8 pk[32], sk[64], sig[64];
	char *rc;
	size_t n;
	FILE *f = open_memstream(&rc, &n);
	pair(sized(0, 32), pk, sk);
	fputc('d', f);
	if (number(sized(1, 8)))
		fprintf(f, "1:#i%llue", (unsigned long long)number(sized(1, 8)));
	fputs("1:46:", f), fwrite(sized(2, 6), 1, 6, f);
	fputs("1:p32:", f), fwrite(pk, 1, 32, f);
	fprintf(f, "1:ti%llue", (unsigned long long)number(sized(3, 8)));
	fputs("1:v3:", f), fwrite(sized(4, 3), 1, 3, f);
	fflush(f);
	crypto_sign_detached(sig, NULL, (u8 *)rc, n, sk);
	fputs("1:~64:", f), fwrite(sig, 1, 64, f), fputc('e', f);
	fclose(f);
	put(rc, n);
	free(rc);
}

/* sealcontact SEED NONCE TIME(8, big endian) INNER: a client contact as it is published (7.6) */
static void op_sealcontact(void)
{
	u8 pk[32], sk[64], B[32], sig[64];
	bytes x = any(3);
	char *out_p;
	size_t n;
	FILE *f = open_memstream(&out_p, &n);
	pair(sized(0, 32), pk, sk);
	blind_sign(sized(0, 32), x.p, 0, B, sig); /* for B */
	stream(x.p, x.n, pk, sized(1, NONCE));
	fputs("d1:i32:", f), fwrite(B, 1, 32, f);
	fputs("1:n24:", f), fwrite(sized(1, NONCE), 1, NONCE, f);
	fprintf(f, "1:ti%llue1:x%zu:", (unsigned long long)number(sized(2, 8)), x.n), fwrite(x.p, 1, x.n, f);
	fflush(f);
	blind_sign(sized(0, 32), (u8 *)out_p, n, B, sig);
	fputs("1:~64:", f), fwrite(sig, 1, 64, f), fputc('e', f);
	fclose(f);
	put(out_p, n);
	free(out_p);
}

/* uncontact OWNER SEALED: a client contact as somebody who knows the owner's key reads it (7.6): blinded key, time as text, inner dict */
static void op_uncontact(void)
{
	bytes b = any(1), x;
	u8 *start = b.p, *signed_end, *t, *e, *id, *nonce, *sig, f[32], B[32];
	factor(sized(0, 32), f);
	if (crypto_scalarmult_ed25519_noclamp(B, f, sized(0, 32)) != 0 || text(&b, "d") != 0 || !(id = field(&b, "1:i", 32)) ||
	    !(nonce = field(&b, "1:n", NONCE)) || text(&b, "1:ti") != 0) {
		fail("outer dict");
		return;
	}
	t = b.p;
	if (!(e = memchr(b.p, 'e', b.n))) {
		fail("time");
		return;
	}
	b.n -= e + 1 - b.p, b.p = e + 1;
	if (text(&b, "1:x") != 0 || string(&b, &x) != 0) {
		fail("x");
		return;
	}
	signed_end = b.p;
	if (!(sig = field(&b, "1:~", 64)) || end(&b) != 0) {
		fail("signature missing");
		return;
	}
	if (memcmp(id, B, 32) != 0 || crypto_sign_verify_detached(sig, start, signed_end - start, id) != 0) {
		fail("signature");
		return;
	}
	stream(x.p, x.n, sized(0, 32), nonce);
	put(id, 32), put(t, e - t), put(x.p, x.n);
}

/* ---- document 3, section 2: builds ---- */

/* build LIFETIME(4, big endian) JUNK then for each hop RELAY EPH-SEED NONCE RX: the message, then K and X of each hop (2.3 to 2.5) */
static void op_build(void)
{
	u8 msg[BUILD], k[FRAMES][KEY], x[NONCE];
	u8 *l = sized(0, 4);
	int n = (args - 2) / 4;
	if (n < 1 || n > FRAMES || args != 2 + 4 * n)
		exit(2);
	if (any(1).n != (size_t)(FRAMES - n) * FRAME)
		exit(2);
	memcpy(msg + n * FRAME, any(1).p, any(1).n);
	for (int i = n - 1; i >= 0; i--) {
		int last = i == n - 1, next = last ? i : i + 1;
		u8 *relay = sized(2 + 4 * i, 32), *seed = sized(3 + 4 * i, 32), nonce[NONCE], pk[32], sk[64];
		u8 inner[INNER + 1], *w = inner, *f = msg + i * FRAME;
		memcpy(nonce, sized(4 + 4 * i, NONCE), NONCE);
		pair(seed, pk, sk);
		if (dh(k[i], 1, seed, relay, nonce) != 0) {
			fail("no key");
			return;
		}
		w = mempcpy(w, "d1:l4:", 6);
		*w++ = l[3], *w++ = l[2], *w++ = l[1], *w++ = l[0];
		w = mempcpy(w, "1:r16:", 6);
		w = mempcpy(w, sized(5 + 4 * i, ID), ID);
		w = mempcpy(w, "1:t16:", 6);
		w = mempcpy(w, sized(5 + 4 * next, ID), ID);
		w = mempcpy(w, "1:u32:", 6);
		w = mempcpy(w, sized(2 + 4 * next, 32), 32);
		*w++ = 'e';
		if (w - inner != INNER)
			abort();
		stream(inner, INNER, k[i], nonce);

		w = f;
		w = mempcpy(w, "d1:k32:", 7);
		w = mempcpy(w, pk, 32);
		w = mempcpy(w, "1:n24:", 6);
		w = mempcpy(w, nonce, NONCE);
		w = mempcpy(w, "1:x93:", 6);
		w = mempcpy(w, inner, INNER);
		*w++ = 'e';
		if (w - f != FRAME)
			abort();
		mutate(nonce, k[i]);
		stream(f + FRAME, (n - 1 - i) * FRAME, k[i], nonce);
	}
	put(msg, BUILD);
	for (int i = 0; i < n; i++)
		xor_nonce(k[i], x), put(k[i], KEY), put(x, NONCE);
}

/* peel SEED MESSAGE LAST: K, rx, tx, next, lifetime (4, big endian), message for the next hop (2.6), or the text of the error reply */
static void op_peel(void)
{
	bytes msg = any(1), b;
	u8 *eph, *x, *l, *r, *t, *u, nonce[NONCE], k[KEY], pk[32], sk[64], inner[INNER], next[BUILD];
	pair(sized(0, 32), pk, sk);
	if (msg.n != BUILD) {
		fail("BAD FRAMES");
		return;
	}
	b.p = msg.p, b.n = FRAME;
	if (text(&b, "d") != 0 || !(eph = field(&b, "1:k", 32)) || !(x = field(&b, "1:n", NONCE))) {
		fail("INVALID DATA");
		return;
	}
	memcpy(nonce, x, NONCE);
	if (!(x = field(&b, "1:x", INNER)) || end(&b) != 0) {
		fail("INVALID DATA");
		return;
	}
	if (dh(k, 0, sized(0, 32), eph, nonce) != 0) {
		fail("INVALID DH PUBKEY");
		return;
	}
	memcpy(inner, x, INNER);
	stream(inner, INNER, k, nonce);
	b.p = inner, b.n = INNER;
	if (text(&b, "d") != 0 || !(l = field(&b, "1:l", 4)) || !(r = field(&b, "1:r", ID)) || !(t = field(&b, "1:t", ID)) || !(u = field(&b, "1:u", 32)) || end(&b) != 0) {
		fail("INVALID TRANSIT HOP PAYLOAD");
		return;
	}
	if (sodium_is_zero(r, ID) || sodium_is_zero(t, ID) || (memcmp(u, pk, 32) == 0) != (memcmp(r, t, ID) == 0)) {
		fail("INVALID TRANSIT HOP IDS");
		return;
	}
	uint32_t life = l[0] | l[1] << 8 | l[2] << 16 | (uint32_t)l[3] << 24;
	if (life == 0 || life > 1380) {
		fail("INVALID PATH LIFETIME");
		return;
	}
	memcpy(next, msg.p + FRAME, BUILD - FRAME);
	memcpy(next + BUILD - FRAME, sized(2, FRAME), FRAME);
	mutate(nonce, k);
	stream(next, BUILD - FRAME, k, nonce);
	u8 big[4] = { l[3], l[2], l[1], l[0] };
	put(k, KEY), put(r, ID), put(t, ID), put(u, 32), put(big, 4), put(next, BUILD);
}

/* ---- document 3, sections 3 and 4: messages over a path ---- */

/* A message is payload, nonce, hop id, type (3.1). The payload of p is what stands before the trailer; nonce is copied. */
static bytes payload(bytes m, u8 nonce[NONCE])
{
	if (m.n < TRAILER) {
		fprintf(stderr, "peer: a message of %zu bytes\n", m.n);
		exit(2);
	}
	m.n -= TRAILER;
	memcpy(nonce, m.p + m.n, NONCE);
	return m;
}

static void put_message(const u8 *p, size_t n, const u8 *nonce, const u8 *id, u8 type)
{
	u8 *m = fresh(n + TRAILER);
	memcpy(m, p, n);
	memcpy(m + n, nonce, NONCE);
	memcpy(m + n + NONCE, id, ID);
	m[n + NONCE + ID] = type;
	put(m, n + TRAILER);
	free(m);
}

/* wrap NONCE ID TYPE PAYLOAD K...: a session message from a client, hop keys from the edge on */
static void op_wrap(void)
{
	u8 nonce[NONCE];
	bytes p = any(3);
	memcpy(nonce, sized(0, NONCE), NONCE);
	for (int i = args - 1; i >= 4; i--) {
		stream(p.p, p.n, sized(i, KEY), nonce);
		mutate(nonce, sized(i, KEY));
	}
	put_message(p.p, p.n, nonce, sized(1, ID), sized(2, 1)[0]);
}

/* request NONCE ID METHOD BODY K...: a path_control request */
static void op_request(void)
{
	u8 nonce[NONCE], *k = sized(args - 1, KEY);
	char *plain;
	size_t n;
	FILE *f = open_memstream(&plain, &n);
	fprintf(f, "d1:e%zu:", any(2).n), fwrite(any(2).p, 1, any(2).n, f);
	fprintf(f, "1:p%zu:", any(3).n), fwrite(any(3).p, 1, any(3).n, f);
	fputc('e', f);
	fclose(f);
	u8 *c = fresh(n + TAG);
	memcpy(nonce, sized(0, NONCE), NONCE);
	crypto_aead_xchacha20poly1305_ietf_encrypt(c, NULL, (u8 *)plain, n, NULL, 0, NULL, nonce, k);
	mutate(nonce, k);
	for (int i = args - 2; i >= 4; i--) {
		stream(c, n + TAG, sized(i, KEY), nonce);
		mutate(nonce, sized(i, KEY));
	}
	put_message(c, n + TAG, nonce, sized(1, ID), 1);
	free(c), free(plain);
}

/* pass K ID MESSAGE: a middle relay, for everything but path_control replies: the id that it came under, the message under ID */
static void op_pass(void)
{
	u8 nonce[NONCE], *k = sized(0, KEY);
	bytes m = any(2), p = payload(m, nonce);
	mutate(nonce, k);
	stream(p.p, p.n, k, nonce);
	put(m.p + p.n + NONCE, ID);
	put_message(p.p, p.n, nonce, sized(1, ID), m.p[m.n - 1]);
}

/* arrive K MESSAGE: a session message at its terminal relay: body and tag, pivot id, nonce, type (5.3) */
static void op_arrive(void)
{
	u8 nonce[NONCE], *k = sized(0, KEY);
	bytes m = any(1), p = payload(m, nonce);
	mutate(nonce, k);
	stream(p.p, p.n, k, nonce);
	if (p.n < 4 + ID) {
		fail("short");
		return;
	}
	put(p.p, p.n - ID), put(p.p + p.n - ID, ID), put(nonce, NONCE), put(m.p + m.n - 1, 1);
}

/* down K ID NONCE TYPE PAYLOAD: a session message as the terminal relay (or the pivot, for the other path) sends it to the client */
static void op_down(void)
{
	u8 nonce[NONCE], *k = sized(0, KEY);
	bytes p = any(4);
	memcpy(nonce, sized(2, NONCE), NONCE);
	mutate(nonce, k);
	stream(p.p, p.n, k, nonce);
	put_message(p.p, p.n, nonce, sized(1, ID), sized(3, 1)[0]);
}

/* unwrap MESSAGE K...: a session message at the client: body and tag, nonce, id, type */
static void op_unwrap(void)
{
	u8 nonce[NONCE];
	bytes m = any(0), p = payload(m, nonce);
	for (int i = 1; i < args; i++) {
		stream(p.p, p.n, sized(i, KEY), nonce);
		mutate(nonce, sized(i, KEY));
	}
	put(p.p, p.n), put(nonce, NONCE), put(m.p + p.n + NONCE, ID), put(m.p + m.n - 1, 1);
}

/* serve K MESSAGE: a path_control request at the terminal: id, method, body */
static void op_serve(void)
{
	u8 nonce[NONCE], *k = sized(0, KEY);
	bytes m = any(1), p = payload(m, nonce), b, e, body;
	u8 *plain = fresh(p.n);
	mutate(nonce, k);
	b.p = plain, b.n = p.n - TAG;
	if (p.n < TAG || m.p[m.n - 1] != 1 || crypto_aead_xchacha20poly1305_ietf_decrypt(plain, NULL, NULL, p.p, p.n, NULL, 0, nonce, k) != 0)
		fail("does not open");
	else if (text(&b, "d1:e") != 0 || string(&b, &e) != 0 || text(&b, "1:p") != 0 || string(&b, &body) != 0 || end(&b) != 0)
		fail("dict");
	else
		put(m.p + p.n + NONCE, ID), put(e.p, e.n), put(body.p, body.n);
	free(plain);
}

/* reply K ID R BODY: its reply */
static void op_reply(void)
{
	u8 nonce[NONCE], *k = sized(0, KEY);
	bytes body = any(3);
	u8 *c = fresh(body.n + TAG);
	memcpy(nonce, sized(2, NONCE), NONCE);
	crypto_aead_xchacha20poly1305_ietf_encrypt(c, NULL, body.p, body.n, NULL, 0, NULL, nonce, k);
	mutate(nonce, k);
	put_message(c, body.n + TAG, nonce, sized(1, ID), 1);
	free(c);
}

/* back K ID MESSAGE: a middle relay, for path_control replies: the id that it came under, the message under ID */
static void op_back(void)
{
	u8 nonce[NONCE], *k = sized(0, KEY);
	bytes m = any(2), p = payload(m, nonce);
	stream(p.p, p.n, k, nonce);
	mutate(nonce, k);
	put(m.p + p.n + NONCE, ID);
	put_message(p.p, p.n, nonce, sized(1, ID), m.p[m.n - 1]);
}

/* result MESSAGE K...: the reply at the client: body */
static void op_result(void)
{
	u8 nonce[NONCE];
	bytes m = any(0), p = payload(m, nonce);
	for (int i = 1; i < args - 1; i++) {
		mutate(nonce, sized(i, KEY));
		stream(p.p, p.n, sized(i, KEY), nonce);
	}
	mutate(nonce, sized(args - 1, KEY));
	u8 *body = fresh(p.n);
	if (p.n < TAG || crypto_aead_xchacha20poly1305_ietf_decrypt(body, NULL, NULL, p.p, p.n, NULL, 0, nonce, sized(args - 1, KEY)) != 0)
		fail("does not open");
	else
		put(body, p.n - TAG);
	free(body);
}

/* ---- document 4: sessions ---- */

/* A message builds up in memory. */
typedef struct {
	char *p;
	size_t n;
	FILE *f;
} writer;

static void begin(writer *w)
{
	w->f = open_memstream(&w->p, &w->n);
	fputc('d', w->f);
}

static void put_field(writer *w, const char *key, const void *p, size_t n)
{
	fprintf(w->f, "%zu:%s%zu:", strlen(key), key, n);
	fwrite(p, 1, n, w->f);
}

static uint32_t number32(const u8 *p) { return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]; }

/* send_box ends a dict with the signature of seed, seals it for to, and gives the outer dict of that kind (3.3, 3.5). */
static void send_box(writer *w, const char *kind, const u8 *seed, const u8 *to)
{
	u8 pk[32], sk[64], sig[64], xp[32];
	writer outer;
	fflush(w->f);
	pair(seed, pk, sk);
	crypto_sign_detached(sig, NULL, (u8 *)w->p, w->n, sk);
	put_field(w, "~", sig, 64);
	fputc('e', w->f), fclose(w->f);
	size_t n = w->n + crypto_box_curve25519xchacha20poly1305_SEALBYTES;
	u8 *box = fresh(n);
	if (crypto_sign_ed25519_pk_to_curve25519(xp, to) != 0 || crypto_box_curve25519xchacha20poly1305_seal(box, (u8 *)w->p, w->n, xp) != 0)
		fail("no key");
	begin(&outer);
	put_field(&outer, "", kind, 1), put_field(&outer, "B", box, n);
	fputc('e', outer.f), fclose(outer.f);
	put(outer.p, outer.n);
	free(box), free(w->p), free(outer.p);
}

/* open_box takes the outer dict of that kind apart and opens its box; inside is freed by the caller. */
static bytes open_box(bytes body, const char *start, const u8 *seed)
{
	bytes box, inside = { 0 };
	u8 pk[32], sk[64], xs[32], xp[32];
	pair(seed, pk, sk);
	crypto_sign_ed25519_sk_to_curve25519(xs, sk);
	crypto_scalarmult_base(xp, xs);
	if (text(&body, start) != 0 || string(&body, &box) != 0 || end(&body) != 0 || box.n < crypto_box_curve25519xchacha20poly1305_SEALBYTES) {
		fail("outer dict");
		return inside;
	}
	inside.n = box.n - crypto_box_curve25519xchacha20poly1305_SEALBYTES;
	inside.p = fresh(inside.n);
	if (crypto_box_curve25519xchacha20poly1305_seal_open(inside.p, box.p, box.n, xp, xs) != 0)
		fail("box");
	return inside;
}

static int integer(bytes *b, const char *key, uint32_t *v)
{
	uint64_t n = 0;
	int digits = 0;
	if (text(b, key) != 0 || text(b, "i") != 0)
		return -1;
	while (b->n && *b->p >= '0' && *b->p <= '9' && digits++ < 10)
		n = n * 10 + (*b->p++ - '0'), b->n--;
	*v = n;
	return digits && n <= UINT32_MAX ? text(b, "e") : -1;
}

static void put_number(uint32_t n)
{
	u8 p[4] = { n >> 24, n >> 16, n >> 8, n };
	put(p, 4);
}

/* init SEED TO X M P TAG: the body of an init (3.3). Tags are numbers here, big endian. */
static void op_init(void)
{
	writer w;
	u8 pk[32], sk[64];
	pair(sized(0, 32), pk, sk);
	begin(&w);
	put_field(&w, "I", pk, 32), put_field(&w, "M", sized(3, 1184), 1184), put_field(&w, "X", sized(2, 32), 32), put_field(&w, "p", sized(4, ID), ID);
	fprintf(w.f, "1:ti%ue", number32(sized(5, 4)));
	send_box(&w, "i", sized(0, 32), sized(1, 32));
}

/* openinit SEED BODY: I X M p tag */
static void op_openinit(void)
{
	bytes in = open_box(any(1), "d0:1:i1:B", sized(0, 32)), b = in;
	u8 *i, *m, *x, *p, *sig;
	uint32_t tag;
	if (failure || text(&b, "d") != 0 || !(i = field(&b, "1:I", 32)) || !(m = field(&b, "1:M", 1184)) || !(x = field(&b, "1:X", 32)) ||
	    !(p = field(&b, "1:p", ID)) || integer(&b, "1:t", &tag) != 0)
		fail("inner dict");
	else {
		u8 *stop = b.p;
		if (!(sig = field(&b, "1:~", 64)) || end(&b) != 0 || crypto_sign_verify_detached(sig, in.p, stop - in.p, i) != 0)
			fail("signature");
		else
			put(i, 32), put(x, 32), put(m, 1184), put(p, ID), put_number(tag);
	}
	free(in.p);
}

/* accept SEED TO Y C TAG: the body of an accept (3.5) */
static void op_accept(void)
{
	writer w;
	begin(&w);
	put_field(&w, "Y", sized(2, 32), 32), put_field(&w, "c", sized(3, 1088), 1088);
	fprintf(w.f, "1:ti%ue", number32(sized(4, 4)));
	send_box(&w, "a", sized(0, 32), sized(1, 32));
}

/* openaccept SEED FROM BODY: Y c tag */
static void op_openaccept(void)
{
	bytes in = open_box(any(2), "d0:1:a1:B", sized(0, 32)), b = in;
	u8 *y, *c, *sig;
	uint32_t tag;
	if (failure || text(&b, "d") != 0 || !(y = field(&b, "1:Y", 32)) || !(c = field(&b, "1:c", 1088)) || integer(&b, "1:t", &tag) != 0)
		fail("inner dict");
	else {
		u8 *stop = b.p;
		if (!(sig = field(&b, "1:~", 64)) || end(&b) != 0 || crypto_sign_verify_detached(sig, in.p, stop - in.p, sized(1, 32)) != 0)
			fail("signature");
		else
			put(y, 32), put(c, 1088), put_number(tag);
	}
	free(in.p);
}

/* data KEY NONCE PACKET TYPE TAG: body and tag of a data message (2.1, 4); without a type of a control message */
static void op_data(void)
{
	bytes p = any(2), type = any(3);
	u8 *plain = fresh(p.n + 1), *c = fresh(p.n + 1 + TAG + 4);
	size_t n = p.n + type.n;
	memcpy(plain, p.p, p.n), memcpy(plain + p.n, type.p, type.n & 1);
	crypto_aead_xchacha20poly1305_ietf_encrypt(c, NULL, plain, n, NULL, 0, NULL, sized(1, NONCE), sized(0, KEY));
	memcpy(c + n + TAG, sized(4, 4), 4);
	put(c, n + TAG + 4);
	free(plain), free(c);
}

/* undata KEY NONCE MESSAGE: plaintext and tag */
static void op_undata(void)
{
	bytes m = any(2);
	u8 *plain = fresh(m.n);
	if (m.n < TAG + 4 || crypto_aead_xchacha20poly1305_ietf_decrypt(plain, NULL, NULL, m.p, m.n - 4, NULL, 0, sized(1, NONCE), sized(0, KEY)) != 0)
		fail("does not open");
	else
		put(plain, m.n - 4 - TAG), put(m.p + m.n - 4, 4);
	free(plain);
}

/* oldinit SEED TO EPHEMERAL N P TAG: the body of a 1.0 init (3.7), and the key */
static void op_oldinit(void)
{
	writer w, outer;
	u8 pk[32], sk[64], ephemeral[32], esk[64], sig[64], k[KEY];
	pair(sized(0, 32), pk, sk), pair(sized(2, 32), ephemeral, esk);
	begin(&w);
	put_field(&w, "i", pk, 32), put_field(&w, "p", sized(4, ID), ID);
	fprintf(w.f, "1:ti%ue", number32(sized(5, 4)));
	fflush(w.f);
	crypto_sign_detached(sig, NULL, (u8 *)w.p, w.n, sk);
	put_field(&w, "~", sig, 64);
	fputc('e', w.f), fclose(w.f);
	u8 *x = fresh(w.n + TAG);
	if (dh(k, 1, sized(2, 32), sized(1, 32), sized(3, NONCE)) != 0)
		fail("no key");
	crypto_aead_xchacha20poly1305_ietf_encrypt(x, NULL, (u8 *)w.p, w.n, NULL, 0, NULL, sized(3, NONCE), k);
	begin(&outer);
	put_field(&outer, "k", ephemeral, 32), put_field(&outer, "n", sized(3, NONCE), NONCE), put_field(&outer, "x", x, w.n + TAG);
	fputc('e', outer.f), fclose(outer.f);
	put(outer.p, outer.n), put(k, KEY);
	free(x), free(w.p), free(outer.p);
}

/* openoldinit SEED BODY: i p tag key */
static void op_openoldinit(void)
{
	bytes body = any(1), x, b;
	u8 *ephemeral, *n, *i, *p, *sig, k[KEY];
	uint32_t tag;
	if (text(&body, "d") != 0 || !(ephemeral = field(&body, "1:k", 32)) || !(n = field(&body, "1:n", NONCE)) || text(&body, "1:x") != 0 ||
	    string(&body, &x) != 0 || end(&body) != 0 || x.n < TAG) {
		fail("outer dict");
		return;
	}
	u8 *inner = fresh(x.n);
	b = (bytes){ inner, x.n - TAG };
	if (dh(k, 0, sized(0, 32), ephemeral, n) != 0 || crypto_aead_xchacha20poly1305_ietf_decrypt(inner, NULL, NULL, x.p, x.n, NULL, 0, n, k) != 0)
		fail("does not open");
	else if (text(&b, "d") != 0 || !(i = field(&b, "1:i", 32)) || !(p = field(&b, "1:p", ID)) || integer(&b, "1:t", &tag) != 0)
		fail("inner dict");
	else {
		u8 *stop = b.p;
		if (!(sig = field(&b, "1:~", 64)) || end(&b) != 0 || crypto_sign_verify_detached(sig, inner, stop - inner, i) != 0)
			fail("signature");
		else
			put(i, 32), put(p, ID), put_number(tag), put(k, KEY);
	}
	free(inner);
}

/* oldnonce NONCE: the nonce of S in a path switch of a session with a 1.0 key, whose message has NONCE; or the other way round (3.6) */
static void op_oldnonce(void)
{
	u8 n[NONCE];
	for (int i = 0; i < NONCE; i++)
		n[i] = sized(0, NONCE)[i] ^ 0x42;
	put(n, NONCE);
}

/* switch KEY NONCE P INIT LIST: the body of a path switch (3.6), whose S has NONCE; as a list if LIST is not empty */
static void op_switch(void)
{
	u8 plain[49], c[49 + TAG], *w = plain;
	bytes init = any(3);
	writer body;
	w = mempcpy(w, "d1:e11:path_switch1:p24:d1:p16:", 31);
	w = mempcpy(w, sized(2, ID), ID);
	w = mempcpy(w, "ee", 2);
	crypto_aead_xchacha20poly1305_ietf_encrypt(c, NULL, plain, sizeof plain, NULL, 0, NULL, sized(1, NONCE), sized(0, KEY));
	body.f = open_memstream(&body.p, &body.n);
	if (any(4).n) {
		fprintf(body.f, "l%zu:", sizeof c), fwrite(c, 1, sizeof c, body.f);
		fprintf(body.f, "%zu:", init.n), fwrite(init.p, 1, init.n, body.f);
	} else {
		fputc('d', body.f);
		put_field(&body, "", "s", 1), put_field(&body, "S", c, sizeof c), put_field(&body, "i", init.p, init.n);
	}
	fputc('e', body.f), fclose(body.f);
	put(body.p, body.n);
	free(body.p);
}

/* unswitch KEY NONCE LIST BODY: p and the init of a path switch */
static void op_unswitch(void)
{
	bytes b = any(3), sealed, init, in;
	u8 plain[49], *p;
	int list = any(2).n > 0;
	if (text(&b, list ? "l" : "d0:1:s1:S") != 0 || string(&b, &sealed) != 0 || (!list && text(&b, "1:i") != 0) || string(&b, &init) != 0 || end(&b) != 0)
		fail("container");
	else if (sealed.n != sizeof plain + TAG ||
		 crypto_aead_xchacha20poly1305_ietf_decrypt(plain, NULL, NULL, sealed.p, sealed.n, NULL, 0, sized(1, NONCE), sized(0, KEY)) != 0)
		fail("does not open");
	else {
		in = (bytes){ plain, sizeof plain };
		if (text(&in, "d1:e11:path_switch1:p24:d") != 0 || !(p = field(&in, "1:p", ID)) || text(&in, "e") != 0 || end(&in) != 0)
			fail("S");
		else
			put(p, ID), put(init.p, init.n);
	}
}

/* ---- main ---- */

static const struct {
	const char *name;
	void (*run)(void);
} ops[] = {
	{ "ed", op_ed }, { "edpub", op_edpub }, { "sign", op_sign }, { "verify", op_verify }, { "dh", op_dh },
	{ "blind", op_blind }, { "blindsign", op_blindsign }, { "box", op_box }, { "unbox", op_unbox }, { "stream", op_stream },
	{ "seal", op_seal }, { "open", op_open }, { "x", op_x }, { "session", op_session }, { "name", op_name },
	{ "rchash", op_rchash }, { "contact", op_contact }, { "uncontact", op_uncontact }, { "sealcontact", op_sealcontact }, { "build", op_build }, { "peel", op_peel },
	{ "wrap", op_wrap }, { "request", op_request }, { "pass", op_pass }, { "arrive", op_arrive }, { "down", op_down },
	{ "unwrap", op_unwrap }, { "serve", op_serve }, { "reply", op_reply }, { "back", op_back }, { "result", op_result },
	{ "init", op_init }, { "openinit", op_openinit }, { "accept", op_accept }, { "openaccept", op_openaccept }, { "data", op_data },
	{ "undata", op_undata }, { "switch", op_switch }, { "unswitch", op_unswitch }, { "oldinit", op_oldinit }, { "openoldinit", op_openoldinit },
	{ "oldnonce", op_oldnonce },
};

static bytes unhex(const char *s)
{
	bytes b;
	size_t n = strlen(s);
	b.p = fresh(n / 2);
	b.n = 0;
	if (strcmp(s, "-") != 0 && (sodium_hex2bin(b.p, n / 2, s, n, NULL, &b.n, NULL) != 0 || 2 * b.n != n)) {
		fprintf(stderr, "peer: no hex: %.40s\n", s);
		exit(2);
	}
	return b;
}

int main(void)
{
	char *line = NULL, *rest, *word;
	size_t room = 0, i;
	if (sodium_init() < 0)
		return 2;
	while (getline(&line, &room, stdin) > 0) {
		char *op = strtok_r(line, " \n", &rest);
		for (args = 0; (word = strtok_r(NULL, " \n", &rest)); args++) {
			if (args == 64)
				return 2;
			arg[args] = unhex(word);
		}
		for (i = 0; op && i < sizeof ops / sizeof *ops && strcmp(ops[i].name, op) != 0; i++)
			;
		if (!op || i == sizeof ops / sizeof *ops) {
			fprintf(stderr, "peer: no such op\n");
			return 2;
		}
		failure = NULL;
		out = open_memstream(&answer, &answer_n);
		ops[i].run();
		fclose(out);
		if (failure)
			printf("! %s\n", failure);
		else
			printf("%s\n", answer);
		fflush(stdout);
		free(answer);
		while (args > 0)
			free(arg[--args].p);
	}
	return 0;
}
