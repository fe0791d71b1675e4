/*
 * peer: a neighbour as protocol document 2 describes it, made of the libraries that the reference stands on: ngtcp2 (Debian's
 * 0.12) and GnuTLS. It listens and dials on one UDP socket.
 *
 *   peer SEED PORT     identity (64 hex digits) and UDP port (0: any) on 127.0.0.1
 *
 * Commands, one a line, hex for bytes ("-": none):
 *
 *   allow KEY                      a relay that may connect as such
 *   dial PORT KEY ALPN show|hide   to the relay KEY, with or without our own key
 *   request CONN NAME BODY         a request on stream 0
 *   large CONN NAME COUNT          the same with a body of COUNT bytes, byte i being i*i/256
 *   datagram CONN DATA             an application datagram
 *   close CONN CODE
 *
 * Events, one a line:
 *
 *   port PORT KEY
 *   dialling CONN
 *   retry CONN                     we had to prove our address
 *   hello CONN in|out LENGTH       a ClientHello with a legacy session id of that length
 *   ticket CONN SIZE               a session ticket went out that allows so much early data
 *   open CONN in|out ALPN KEY      established; KEY of the other side or -
 *   params CONN NAME=VALUE...      the other side's transport parameters
 *   reply CONN TYPE ID BODY        R or E, to a request of ours
 *   asked CONN ID NAME BODY        a request of the other side; ping and echo are answered, late after the next message, silent
 *                                  never, all others as unknown
 *   stream CONN ID                 stream ID became visible
 *   got CONN whole|split N DATA    a datagram, the one of number N
 *   half CONN N                    a half that met the same half again
 *   sent CONN DGID...              the ids under which a datagram goes out
 *   closed CONN app|transport|idle|reset|crypto|timeout CODE
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <gnutls/abstract.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <inttypes.h>
#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto.h>
#include <ngtcp2/ngtcp2_crypto_gnutls.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef uint8_t u8;

/* What the reference sends (document 2, section 3.1). Parameters that ngtcp2 sets by itself, or omits as equal to their defaults, are not here: 0x00, 0x02 (set
 * below for servers), 0x0f, 0x11; 0x03, 0x09, 0x0a, 0x0b. */
static const struct {
	uint64_t initial_max_data;                    /* 0x04: 15 MiB */
	uint64_t initial_max_stream_data_bidi_local;  /* 0x05: 6 MiB */
	uint64_t initial_max_stream_data_bidi_remote; /* 0x06 */
	uint64_t initial_max_stream_data_uni;         /* 0x07 */
	uint64_t initial_max_streams_bidi;            /* 0x08 */
	uint64_t initial_max_streams_uni;             /* 0x09 */
	uint64_t active_connection_id_limit;          /* 0x0e */
	uint64_t max_datagram_frame_size;             /* 0x20 */
} parameters = { 15728640, 6291456, 6291456, 6291456, 32, 0, 4, 65535 };

/* Section 1: idle timeout (parameter 0x01) and keep-alive, in seconds; a server's idle timeout is 63. */
static const struct {
	const char *alpn;
	unsigned idle, alive;
	int opener; /* section 5.1: the dialler makes stream 0 visible at once */
} kinds[] = { { "Session_Router_R", 33, 10, 1 }, { "Session_Router_C", 63, 20, 1 }, { "Session_Router_BS", 10, 0, 0 } };
enum { KINDS = 3, SERVER_IDLE = 63 };

/* Section 2.1. */
static const char priority[] = "NORMAL:+VERS-TLS1.3:-VERS-TLS1.2:-VERS-TLS1.1:-VERS-TLS1.0:+CTYPE-CLI-ALL:+CTYPE-SRV-ALL";

enum { CID = 20, PIECE_OVERHEAD = 46, TICKETS = 2, EARLY = 32768, CONNS = 64, MAXMSG = 10000000 };

static const u8 spki_head[12] = { 0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00 };
static const u8 pkcs8_head[16] = { 0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20 };

struct chunk { /* what goes out on a stream; ngtcp2 refers to it until it is acknowledged, so it stays */
	struct chunk *next;
	size_t n, sent;
	u8 data[];
};

struct dgram {
	struct dgram *next;
	size_t n;
	u8 data[];
};

struct conn {
	int number, server, kind, opened, gone;
	int quiet; /* gone by a close that was said: what still comes is expected, not answered by a reset */
	ngtcp2_conn *quic;
	gnutls_session_t tls;
	ngtcp2_crypto_conn_ref ref;
	struct sockaddr_in remote;
	u8 pinned[32], key[32];
	int has_key;

	int64_t stream; /* 0 once it is there */
	int notify;     /* an empty frame is to be sent */
	struct chunk *out, **out_end;
	u8 *in;
	size_t in_n, in_room;
	int64_t next_id;
	int64_t late; /* request to be answered after the next one; -1 */

	struct dgram *dg, **dg_end;
	unsigned counter;
	u8 *half[16384]; /* by counter: length (2), flags (1), bytes */
};

static int sock;
static struct sockaddr_in local;
static u8 seed[32], own[32], reset_secret[32], token_secret[32];
static gnutls_certificate_credentials_t with_key, without_key;
static gnutls_datum_t ticket_key;
static gnutls_anti_replay_t anti_replay;
static struct conn *conns[CONNS];
static int nconns;
static u8 allowed[32][32];
static int nallowed;

static void die(const char *what)
{
	fprintf(stderr, "peer: %s\n", what);
	exit(2);
}

static ngtcp2_tstamp now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (ngtcp2_tstamp)t.tv_sec * NGTCP2_SECONDS + t.tv_nsec;
}

static void random_bytes(u8 *p, size_t n)
{
	if (gnutls_rnd(GNUTLS_RND_RANDOM, p, n) != 0)
		die("no randomness");
}

static void put_hex(const u8 *p, size_t n)
{
	if (n == 0)
		putchar('-');
	for (size_t i = 0; i < n; i++)
		printf("%02x", p[i]);
}

static size_t get_hex(const char *s, u8 *p, size_t room)
{
	size_t n = 0;
	if (strcmp(s, "-") == 0)
		return 0;
	for (; s[0] && s[1]; s += 2, n++) {
		unsigned v;
		if (n == room || sscanf(s, "%2x", &v) != 1)
			die("bad hex");
		p[n] = v;
	}
	return n;
}

/* ---- requests on stream 0 (section 5) ---- */

static void send_raw(struct conn *c, const char *data, size_t n)
{
	struct chunk *k = calloc(1, sizeof *k + n);
	memcpy(k->data, data, n);
	k->n = n;
	*c->out_end = k;
	c->out_end = &k->next;
}

/* send_message frames a list: "C" with a name, or "R" or "E". */
static void send_message(struct conn *c, char type, int64_t id, const char *name, const u8 *body, size_t n)
{
	char *list, *msg;
	size_t list_n, msg_n;
	FILE *f = open_memstream(&list, &list_n);
	fprintf(f, "l1:%ci%" PRId64 "e", type, id);
	if (name)
		fprintf(f, "%zu:%s", strlen(name), name);
	fprintf(f, "%zu:", n), fwrite(body, 1, n, f), fputc('e', f);
	fclose(f);
	f = open_memstream(&msg, &msg_n);
	fprintf(f, "%zu:", list_n), fwrite(list, 1, list_n, f);
	fclose(f);
	send_raw(c, msg, msg_n);
	free(list), free(msg);
}

struct span {
	const u8 *p;
	size_t n;
};

static int take(struct span *s, char c)
{
	if (s->n == 0 || *s->p != (u8)c)
		return -1;
	s->p++, s->n--;
	return 0;
}

static int take_number(struct span *s, int64_t *v)
{
	int minus = take(s, '-') == 0, digits = 0;
	for (*v = 0; s->n && *s->p >= '0' && *s->p <= '9' && digits < 18; s->p++, s->n--, digits++)
		*v = *v * 10 + (*s->p - '0');
	if (minus)
		*v = -*v;
	return digits ? 0 : -1;
}

static int take_string(struct span *s, struct span *v)
{
	int64_t n;
	if (take_number(s, &n) != 0 || take(s, ':') != 0 || n < 0 || (size_t)n > s->n)
		return -1;
	v->p = s->p, v->n = n;
	s->p += n, s->n -= n;
	return 0;
}

static int message(struct conn *c, struct span s)
{
	struct span type, name = { 0 }, body;
	int64_t id, late = c->late;
	if (take(&s, 'l') != 0 || take_string(&s, &type) != 0 || type.n != 1 || take(&s, 'i') != 0 || take_number(&s, &id) != 0 || take(&s, 'e') != 0)
		return -1;
	if (type.p[0] == 'C' && take_string(&s, &name) != 0)
		return -1;
	if (take_string(&s, &body) != 0 || take(&s, 'e') != 0 || s.n != 0)
		return -1;
	if (type.p[0] != 'C') {
		printf("reply %d %c %" PRId64 " ", c->number, type.p[0], id), put_hex(body.p, body.n), putchar('\n');
		return 0;
	}
	printf("asked %d %" PRId64 " %.*s ", c->number, id, (int)name.n, name.p), put_hex(body.p, body.n), putchar('\n');
	if (name.n == 4 && memcmp(name.p, "ping", 4) == 0)
		send_message(c, 'R', id, NULL, (const u8 *)"pong", 4);
	else if (name.n == 4 && memcmp(name.p, "echo", 4) == 0)
		send_message(c, 'R', id, NULL, body.p, body.n);
	else if (name.n == 4 && memcmp(name.p, "late", 4) == 0) {
		c->late = id;
		return 0;
	} else if (name.n == 6 && memcmp(name.p, "silent", 6) == 0)
		;
	else {
		char why[300];
		int n = snprintf(why, sizeof why, "Invalid endpoint '%.*s'", (int)name.n, name.p);
		send_message(c, 'E', id, NULL, (u8 *)why, n);
	}
	if (late >= 0) {
		send_message(c, 'R', late, NULL, (const u8 *)"at last", 7);
		c->late = -1;
	}
	return 0;
}

/* stream_bytes cuts the stream: decimal length, ':', list. */
static int stream_bytes(struct conn *c, const u8 *p, size_t n)
{
	if (c->in_n + n > c->in_room) {
		c->in_room = (c->in_n + n) * 2;
		c->in = realloc(c->in, c->in_room);
	}
	memcpy(c->in + c->in_n, p, n);
	c->in_n += n;
	for (;;) {
		size_t digits = 0, len = 0;
		while (digits < c->in_n && digits < 10 && c->in[digits] >= '0' && c->in[digits] <= '9')
			len = len * 10 + (c->in[digits++] - '0');
		if (digits == c->in_n)
			return 0;
		if (digits == 0 || c->in[digits] != ':' || len > MAXMSG)
			return -1;
		if (c->in_n < digits + 1 + len)
			return 0;
		if (message(c, (struct span){ c->in + digits + 1, len }) != 0)
			return -1;
		c->in_n -= digits + 1 + len;
		memmove(c->in, c->in + digits + 1 + len, c->in_n);
	}
}

/* ---- datagrams (section 4) ---- */

static void queue_datagram(struct conn *c, unsigned dgid, const u8 *p, size_t n)
{
	struct dgram *d = calloc(1, sizeof *d + 2 + n);
	d->n = 2 + n;
	d->data[0] = dgid >> 8, d->data[1] = dgid & 0xff;
	memcpy(d->data + 2, p, n);
	*c->dg_end = d;
	c->dg_end = &d->next;
	printf(" %04x", dgid);
}

static void send_datagram(struct conn *c, const u8 *p, size_t n)
{
	size_t piece = ngtcp2_conn_get_path_max_tx_udp_payload_size(c->quic) - PIECE_OVERHEAD;
	unsigned dgid = c->counter << 2;
	printf("sent %d", c->number);
	if (n <= piece)
		queue_datagram(c, dgid, p, n);
	else if (n <= 2 * piece) {
		/* The second part may go first: it does in every other split datagram. */
		if (c->counter & 1) {
			queue_datagram(c, dgid | 3, p + piece, n - piece);
			queue_datagram(c, dgid | 2, p, piece);
		} else {
			queue_datagram(c, dgid | 2, p, piece);
			queue_datagram(c, dgid | 3, p + piece, n - piece);
		}
	} else
		printf(" none");
	c->counter = (c->counter + 1) & 16383;
	putchar('\n');
}

static void got(struct conn *c, const char *how, unsigned counter, const u8 *a, size_t na, const u8 *b, size_t nb)
{
	printf("got %d %s %u ", c->number, how, counter);
	if (na + nb == 0)
		putchar('-');
	for (size_t i = 0; i < na; i++)
		printf("%02x", a[i]);
	for (size_t i = 0; i < nb; i++)
		printf("%02x", b[i]);
	putchar('\n');
}

static int on_datagram(ngtcp2_conn *q, uint32_t flags, const u8 *p, size_t n, void *user)
{
	struct conn *c = user;
	(void)q, (void)flags;
	if (n < 2)
		return 0;
	unsigned dgid = p[0] << 8 | p[1], counter = dgid >> 2, part = dgid & 3;
	p += 2, n -= 2;
	if (part == 0)
		got(c, "whole", counter, p, n, NULL, 0);
	else if (part == 1)
		printf("invalid %d\n", c->number);
	else if (c->half[counter] && c->half[counter][2] != part) {
		u8 *h = c->half[counter];
		size_t hn = h[0] << 8 | h[1];
		if (part == 3)
			got(c, "split", counter, h + 3, hn, p, n);
		else
			got(c, "split", counter, p, n, h + 3, hn);
		free(h);
		c->half[counter] = NULL;
	} else {
		u8 *h = malloc(3 + n);
		if (c->half[counter])
			printf("half %d %u\n", c->number, counter);
		h[0] = n >> 8, h[1] = n & 0xff, h[2] = part;
		memcpy(h + 3, p, n);
		free(c->half[counter]);
		c->half[counter] = h;
	}
	return 0;
}

/* ---- TLS ---- */

static struct conn *conn_of(gnutls_session_t s)
{
	return ((ngtcp2_crypto_conn_ref *)gnutls_session_get_ptr(s))->user_data;
}

static ngtcp2_conn *quic_of(ngtcp2_crypto_conn_ref *ref) { return ((struct conn *)ref->user_data)->quic; }

/* the_key gives the other side's key: 0 none, 1 there, -1 something else (2.2) */
static int the_key(gnutls_session_t s, u8 key[32])
{
	unsigned n = 0;
	const gnutls_datum_t *list = gnutls_certificate_get_peers(s, &n);
	if (!list || n == 0)
		return 0;
	if (list[0].size != 44 || memcmp(list[0].data, spki_head, 12) != 0)
		return -1;
	memcpy(key, list[0].data + 12, 32);
	return 1;
}

static int kind_of(gnutls_session_t s)
{
	gnutls_datum_t alpn;
	if (gnutls_alpn_get_selected_protocol(s, &alpn) != 0)
		return -1;
	for (int i = 0; i < KINDS; i++)
		if (alpn.size == strlen(kinds[i].alpn) && memcmp(alpn.data, kinds[i].alpn, alpn.size) == 0)
			return i;
	return -1;
}

static int verify(gnutls_session_t s)
{
	struct conn *c = conn_of(s);
	c->has_key = the_key(s, c->key);
	c->kind = kind_of(s);
	if (c->has_key < 0 || c->kind < 0)
		return -1;
	if (!c->server)
		return c->has_key && memcmp(c->key, c->pinned, 32) == 0 ? 0 : -1;
	if (c->kind != 0)
		return 0;
	if (!c->has_key || memcmp(c->key, own, 32) == 0)
		return -1;
	for (int i = 0; i < nallowed; i++)
		if (memcmp(allowed[i], c->key, 32) == 0)
			return 0;
	return -1;
}

static int on_handshake(gnutls_session_t s, unsigned type, unsigned when, unsigned incoming, const gnutls_datum_t *msg)
{
	const u8 *p = msg->data, *stop = p + msg->size;
	(void)when;
	if (type == GNUTLS_HANDSHAKE_CLIENT_HELLO && msg->size > 34) /* version 2, random 32, session id */
		printf("hello %d %s %d\n", conn_of(s)->number, incoming ? "in" : "out", p[34]);
	if (type != GNUTLS_HANDSHAKE_NEW_SESSION_TICKET || msg->size < 20)
		return 0;
	p += 8;                      /* lifetime, age_add */
	p += 1 + p[0];               /* nonce */
	p += 2 + (p[0] << 8 | p[1]); /* ticket */
	for (p += 2; p + 4 <= stop; p += 4 + (p[2] << 8 | p[3]))
		if ((p[0] << 8 | p[1]) == 42 && p + 8 <= stop) /* early_data */
			printf("ticket %d %u\n", conn_of(s)->number, (unsigned)p[4] << 24 | p[5] << 16 | p[6] << 8 | p[7]);
	return 0;
}

static void new_tls(struct conn *c, int show)
{
	unsigned flags = GNUTLS_NO_AUTO_SEND_TICKET | GNUTLS_ENABLE_RAWPK | GNUTLS_ENABLE_EARLY_DATA | GNUTLS_NO_END_OF_EARLY_DATA;
	gnutls_datum_t alpn[KINDS];
	int n = 0;
	if (gnutls_init(&c->tls, flags | (c->server ? GNUTLS_SERVER : GNUTLS_CLIENT)) != 0 || gnutls_priority_set_direct(c->tls, priority, NULL) != 0)
		die("TLS session");
	if ((c->server ? ngtcp2_crypto_gnutls_configure_server_session(c->tls) : ngtcp2_crypto_gnutls_configure_client_session(c->tls)) != 0)
		die("TLS session for QUIC");
	c->ref.get_conn = quic_of;
	c->ref.user_data = c;
	gnutls_session_set_ptr(c->tls, &c->ref);
	gnutls_credentials_set(c->tls, GNUTLS_CRD_CERTIFICATE, show ? with_key : without_key);
	gnutls_session_set_verify_function(c->tls, verify);
	gnutls_handshake_set_hook_function(c->tls, GNUTLS_HANDSHAKE_ANY, GNUTLS_HOOK_POST, on_handshake);
	for (int i = 0; i < KINDS; i++)
		if (c->server || i == c->kind)
			alpn[n].data = (u8 *)kinds[i].alpn, alpn[n++].size = strlen(kinds[i].alpn);
	gnutls_alpn_set_protocols(c->tls, alpn, n, GNUTLS_ALPN_MANDATORY);
	if (c->server) {
		gnutls_certificate_server_set_request(c->tls, GNUTLS_CERT_REQUEST);
		gnutls_session_ticket_enable_server(c->tls, &ticket_key);
		gnutls_anti_replay_enable(c->tls, anti_replay);
		gnutls_record_set_max_early_data_size(c->tls, EARLY);
	} else
		gnutls_server_name_set(c->tls, GNUTLS_NAME_DNS, "localhost", 9);
}

/* ---- QUIC ---- */

static void on_random(u8 *p, size_t n, const ngtcp2_rand_ctx *ctx)
{
	(void)ctx;
	random_bytes(p, n);
}

static int on_new_cid(ngtcp2_conn *q, ngtcp2_cid *cid, u8 *token, size_t n, void *user)
{
	(void)q, (void)user;
	random_bytes(cid->data, n);
	cid->datalen = n;
	return ngtcp2_crypto_generate_stateless_reset_token(token, reset_secret, sizeof reset_secret, cid) == 0 ? 0 : NGTCP2_ERR_CALLBACK_FAILURE;
}

static void opened(struct conn *c)
{
	const ngtcp2_transport_params *p = ngtcp2_conn_get_remote_transport_params(c->quic);
	if (c->opened)
		return;
	c->opened = 1;
	printf("open %d %s %s ", c->number, c->server ? "in" : "out", kinds[c->kind].alpn);
	put_hex(c->key, c->has_key ? 32 : 0);
	printf("\nparams %d idle=%" PRIu64 " data=%" PRIu64 " bidi_local=%" PRIu64 " bidi_remote=%" PRIu64 " uni=%" PRIu64 " streams_bidi=%" PRIu64
	       " streams_uni=%" PRIu64 " cids=%" PRIu64 " datagram=%" PRIu64 " payload=%" PRIu64 " cid=%zu token=%d migration=%d\n",
	       c->number, p->max_idle_timeout / NGTCP2_MILLISECONDS, p->initial_max_data, p->initial_max_stream_data_bidi_local,
	       p->initial_max_stream_data_bidi_remote, p->initial_max_stream_data_uni, p->initial_max_streams_bidi, p->initial_max_streams_uni,
	       p->active_connection_id_limit, p->max_datagram_frame_size, p->max_udp_payload_size, p->initial_scid.datalen, p->stateless_reset_token_present,
	       !p->disable_active_migration);
}

static int on_completed(ngtcp2_conn *q, void *user)
{
	struct conn *c = user;
	u8 token[NGTCP2_CRYPTO_MAX_REGULAR_TOKENLEN];
	if (!c->server)
		return 0;
	opened(c);
	/* 2.3: two tickets; 3.2: a token for the next connection */
	if (gnutls_session_ticket_send(c->tls, TICKETS, 0) != 0)
		die("tickets");
	ngtcp2_ssize n = ngtcp2_crypto_generate_regular_token(token, token_secret, sizeof token_secret, (ngtcp2_sockaddr *)&c->remote, sizeof c->remote, now());
	if (n < 0 || ngtcp2_conn_submit_new_token(q, token, n) != 0)
		return NGTCP2_ERR_CALLBACK_FAILURE;
	return 0;
}

static int on_confirmed(ngtcp2_conn *q, void *user)
{
	(void)q;
	opened(user);
	return 0;
}

static int on_stream_open(ngtcp2_conn *q, int64_t id, void *user)
{
	struct conn *c = user;
	(void)q;
	printf("stream %d %" PRId64 "\n", c->number, id);
	if (id == 0)
		c->stream = 0;
	return 0;
}

static int on_stream_data(ngtcp2_conn *q, uint32_t flags, int64_t id, uint64_t offset, const u8 *p, size_t n, void *user, void *stream_user)
{
	(void)flags, (void)offset, (void)stream_user;
	ngtcp2_conn_extend_max_stream_offset(q, id, n);
	ngtcp2_conn_extend_max_offset(q, n);
	if (id == 0 && stream_bytes(user, p, n) != 0) {
		printf("malformed %d\n", ((struct conn *)user)->number);
		return NGTCP2_ERR_CALLBACK_FAILURE;
	}
	return 0;
}

static int on_reset(ngtcp2_conn *q, const ngtcp2_pkt_stateless_reset *sr, void *user)
{
	struct conn *c = user;
	(void)q, (void)sr;
	c->gone = 1;
	printf("closed %d reset 0\n", c->number);
	return 0;
}

static int on_retry(ngtcp2_conn *q, const ngtcp2_pkt_hd *hd, void *user)
{
	printf("retry %d\n", ((struct conn *)user)->number);
	return ngtcp2_crypto_recv_retry_cb(q, hd, user);
}

static const ngtcp2_callbacks callbacks = {
	.client_initial = ngtcp2_crypto_client_initial_cb,
	.recv_client_initial = ngtcp2_crypto_recv_client_initial_cb,
	.recv_crypto_data = ngtcp2_crypto_recv_crypto_data_cb,
	.handshake_completed = on_completed,
	.handshake_confirmed = on_confirmed,
	.encrypt = ngtcp2_crypto_encrypt_cb,
	.decrypt = ngtcp2_crypto_decrypt_cb,
	.hp_mask = ngtcp2_crypto_hp_mask_cb,
	.recv_stream_data = on_stream_data,
	.stream_open = on_stream_open,
	.recv_stateless_reset = on_reset,
	.recv_retry = on_retry,
	.rand = on_random,
	.get_new_connection_id = on_new_cid,
	.update_key = ngtcp2_crypto_update_key_cb,
	.delete_crypto_aead_ctx = ngtcp2_crypto_delete_crypto_aead_ctx_cb,
	.delete_crypto_cipher_ctx = ngtcp2_crypto_delete_crypto_cipher_ctx_cb,
	.recv_datagram = on_datagram,
	.get_path_challenge_data = ngtcp2_crypto_get_path_challenge_data_cb,
	.version_negotiation = ngtcp2_crypto_version_negotiation_cb,
};

static ngtcp2_path path_to(struct sockaddr_in *remote)
{
	return (ngtcp2_path){ { (ngtcp2_sockaddr *)&local, sizeof local }, { (ngtcp2_sockaddr *)remote, sizeof *remote }, NULL };
}

static struct conn *new_conn(int server, const struct sockaddr_in *remote)
{
	struct conn *c = calloc(1, sizeof *c);
	if (nconns == CONNS)
		die("too many connections");
	c->number = nconns;
	c->server = server;
	c->remote = *remote;
	c->stream = -1;
	c->late = -1;
	c->out_end = &c->out;
	c->dg_end = &c->dg;
	conns[nconns++] = c;
	return c;
}

static void settings(struct conn *c, ngtcp2_settings *s, ngtcp2_transport_params *p)
{
	ngtcp2_settings_default(s);
	s->initial_ts = now();
	s->cc_algo = NGTCP2_CC_ALGO_BBR;
	s->max_window = 24 << 20;
	s->max_stream_window = 16 << 20;
	s->handshake_timeout = 10 * NGTCP2_SECONDS;
	ngtcp2_transport_params_default(p);
	p->initial_max_data = parameters.initial_max_data;
	p->initial_max_stream_data_bidi_local = parameters.initial_max_stream_data_bidi_local;
	p->initial_max_stream_data_bidi_remote = parameters.initial_max_stream_data_bidi_remote;
	p->initial_max_stream_data_uni = parameters.initial_max_stream_data_uni;
	p->initial_max_streams_bidi = parameters.initial_max_streams_bidi;
	p->initial_max_streams_uni = parameters.initial_max_streams_uni;
	p->active_connection_id_limit = parameters.active_connection_id_limit;
	p->max_datagram_frame_size = parameters.max_datagram_frame_size;
	p->max_idle_timeout = (c->server ? SERVER_IDLE : kinds[c->kind].idle) * NGTCP2_SECONDS;
}

static ngtcp2_cid random_cid(void)
{
	ngtcp2_cid cid = { .datalen = CID };
	random_bytes(cid.data, CID);
	return cid;
}

static struct conn *dial(struct sockaddr_in *remote, int kind, const u8 key[32], int show)
{
	struct conn *c = new_conn(0, remote);
	ngtcp2_settings s;
	ngtcp2_transport_params p;
	ngtcp2_cid dcid = random_cid(), scid = random_cid();
	ngtcp2_path path = path_to(&c->remote);
	c->kind = kind;
	memcpy(c->pinned, key, 32);
	settings(c, &s, &p);
	if (ngtcp2_conn_client_new(&c->quic, &dcid, &scid, &path, NGTCP2_PROTO_VER_V1, &callbacks, &s, &p, NULL, c) != 0)
		die("client");
	new_tls(c, show);
	ngtcp2_conn_set_tls_native_handle(c->quic, c->tls);
	if (kinds[kind].alive)
		ngtcp2_conn_set_keep_alive_timeout(c->quic, kinds[kind].alive * NGTCP2_SECONDS);
	c->notify = kinds[kind].opener;
	return c;
}

static void send_to(const struct sockaddr_in *to, const u8 *p, size_t n)
{
	sendto(sock, p, n, 0, (const struct sockaddr *)to, sizeof *to);
}

static void end(struct conn *c, const char *how, uint64_t code)
{
	if (!c->gone)
		printf("closed %d %s %" PRIu64 "\n", c->number, how, code);
	c->gone = 1;
}

/* failed ends a connection after an error of the library; what concerns TLS ends without a word to the other side (2.2). */
static void failed(struct conn *c, int err)
{
	ngtcp2_connection_close_error e;
	ngtcp2_connection_close_error_default(&e);
	switch (err) {
	case NGTCP2_ERR_DRAINING:
		ngtcp2_conn_get_connection_close_error(c->quic, &e);
		c->quiet = 1;
		end(c, e.type == NGTCP2_CONNECTION_CLOSE_ERROR_CODE_TYPE_APPLICATION ? "app" : "transport", e.error_code);
		return;
	case NGTCP2_ERR_IDLE_CLOSE:
		end(c, "idle", 0);
		return;
	case NGTCP2_ERR_HANDSHAKE_TIMEOUT:
		end(c, "timeout", 0);
		return;
	case NGTCP2_ERR_CRYPTO:
	case NGTCP2_ERR_DROP_CONN:
		end(c, "crypto", ngtcp2_conn_get_tls_alert(c->quic));
		return;
	}
	fprintf(stderr, "peer: connection %d: %s\n", c->number, ngtcp2_strerror(err));
	end(c, "error", -err);
}

static void flush_conn(struct conn *c)
{
	u8 buf[1500];
	ngtcp2_path_storage ps;
	ngtcp2_pkt_info pi;
	ngtcp2_ssize n, used;
	int64_t id;
	while (!c->gone) {
		int accepted = 0;
		ngtcp2_path_storage_zero(&ps);
		if (!c->server && c->stream < 0 && ngtcp2_conn_open_bidi_stream(c->quic, &id, NULL) == 0)
			c->stream = id;
		while (c->out && c->out->sent == c->out->n) {
			c->out = c->out->next;
			if (!c->out)
				c->out_end = &c->out;
		}
		used = -1;
		if (c->dg && c->opened) {
			ngtcp2_vec v = { c->dg->data, c->dg->n };
			n = ngtcp2_conn_writev_datagram(c->quic, &ps.path, &pi, buf, sizeof buf, &accepted, 0, 0, &v, 1, now());
			if (accepted) {
				struct dgram *d = c->dg;
				if (!(c->dg = d->next))
					c->dg_end = &c->dg;
				free(d);
			}
		} else if (c->stream >= 0 && (c->out || c->notify)) {
			ngtcp2_vec v = { c->out ? c->out->data + c->out->sent : NULL, c->out ? c->out->n - c->out->sent : 0 };
			n = ngtcp2_conn_writev_stream(c->quic, &ps.path, &pi, buf, sizeof buf, &used, 0, c->stream, &v, c->out ? 1 : 0, now());
			if (used >= 0)
				c->notify = 0;
			if (used > 0)
				c->out->sent += used;
			if (n == NGTCP2_ERR_STREAM_DATA_BLOCKED || n == NGTCP2_ERR_STREAM_SHUT_WR || n == NGTCP2_ERR_STREAM_NOT_FOUND)
				n = ngtcp2_conn_write_pkt(c->quic, &ps.path, &pi, buf, sizeof buf, now());
		} else
			n = ngtcp2_conn_write_pkt(c->quic, &ps.path, &pi, buf, sizeof buf, now());
		if (n < 0) {
			failed(c, n);
			return;
		}
		if (n == 0 && !accepted)
			break;
		if (n > 0)
			send_to(&c->remote, buf, n);
	}
	if (!c->gone)
		ngtcp2_conn_update_pkt_tx_time(c->quic, now());
}

static struct conn *find(const u8 *cid, size_t n)
{
	ngtcp2_cid ids[64];
	for (int i = 0; i < nconns; i++) {
		struct conn *c = conns[i];
		const ngtcp2_cid *first = c->quic ? ngtcp2_conn_get_client_initial_dcid(c->quic) : NULL;
		if (!c->quic || (c->gone && !c->quiet) || ngtcp2_conn_get_num_scid(c->quic) > 64)
			continue;
		if (c->server && first->datalen == n && memcmp(first->data, cid, n) == 0)
			return c;
		size_t have = ngtcp2_conn_get_scid(c->quic, ids);
		for (size_t k = 0; k < have; k++)
			if (ids[k].datalen == n && memcmp(ids[k].data, cid, n) == 0)
				return c;
	}
	return NULL;
}

/* reset_for finds the connection that a stateless reset is for: by its token, for its connection id is random. */
static struct conn *reset_for(const u8 *p, size_t n)
{
	ngtcp2_cid_token ids[16];
	for (int i = 0; i < nconns; i++) {
		struct conn *c = conns[i];
		if (c->gone || ngtcp2_conn_get_num_active_dcid(c->quic) > 16)
			continue;
		size_t have = ngtcp2_conn_get_active_dcid(c->quic, ids);
		for (size_t k = 0; k < have; k++)
			if (ids[k].token_present && memcmp(ids[k].token, p + n - sizeof ids[k].token, sizeof ids[k].token) == 0)
				return c;
	}
	return NULL;
}

static void received(const u8 *p, size_t n, struct sockaddr_in *from)
{
	ngtcp2_version_cid v;
	ngtcp2_pkt_hd hd;
	ngtcp2_pkt_info pi = { 0 };
	u8 out[1500];
	int err = ngtcp2_pkt_decode_version_cid(&v, p, n, CID);
	struct conn *c;
	if (err == NGTCP2_ERR_VERSION_NEGOTIATION) {
		const uint32_t versions[] = { 0x1a2a3a4a, 1 };
		ngtcp2_ssize w = ngtcp2_pkt_write_version_negotiation(out, sizeof out, p[1], v.scid, v.scidlen, v.dcid, v.dcidlen, versions, 2);
		if (w > 0)
			send_to(from, out, w);
		return;
	}
	if (err != 0)
		return;
	c = find(v.dcid, v.dcidlen);
	if (!c && (p[0] & 0x80) == 0)
		c = reset_for(p, n);
	if (!c) {
		if (ngtcp2_accept(&hd, p, n) != 0) {
			if ((p[0] & 0x80) == 0 && n > 41) { /* 3.2: stateless reset */
				u8 token[NGTCP2_STATELESS_RESET_TOKENLEN], noise[64];
				ngtcp2_cid cid;
				size_t size = 41 + (n - 42 < 20 ? n - 42 : 20);
				ngtcp2_cid_init(&cid, v.dcid, v.dcidlen);
				random_bytes(noise, sizeof noise);
				ngtcp2_crypto_generate_stateless_reset_token(token, reset_secret, sizeof reset_secret, &cid);
				ngtcp2_ssize w = ngtcp2_pkt_write_stateless_reset(out, sizeof out, token, noise, size - sizeof token);
				if (w > 0)
					send_to(from, out, w);
			}
			return;
		}
		ngtcp2_settings s;
		ngtcp2_transport_params tp;
		ngtcp2_cid scid = random_cid();
		ngtcp2_path path;
		c = new_conn(1, from);
		path = path_to(&c->remote);
		settings(c, &s, &tp);
		tp.original_dcid = hd.dcid;
		tp.stateless_reset_token_present = 1;
		ngtcp2_crypto_generate_stateless_reset_token(tp.stateless_reset_token, reset_secret, sizeof reset_secret, &scid);
		if (ngtcp2_conn_server_new(&c->quic, &hd.scid, &scid, &path, hd.version, &callbacks, &s, &tp, NULL, c) != 0)
			die("server");
		new_tls(c, 1);
		ngtcp2_conn_set_tls_native_handle(c->quic, c->tls);
	}
	if (c->gone)
		return;
	ngtcp2_path path = path_to(&c->remote);
	if ((err = ngtcp2_conn_read_pkt(c->quic, &path, &pi, p, n, now())) != 0)
		failed(c, err);
}

/* ---- commands ---- */

static struct conn *conn_number(const char *s)
{
	int i = s ? atoi(s) : -1;
	if (i < 0 || i >= nconns)
		die("no such connection");
	return conns[i];
}

static void command(char *line)
{
	char *rest, *w[6] = { 0 };
	int n = 0;
	for (char *p = strtok_r(line, " \n", &rest); p && n < 6; p = strtok_r(NULL, " \n", &rest))
		w[n++] = p;
	if (n == 0)
		return;
	if (!strcmp(w[0], "allow") && n == 2) {
		if (nallowed == 32 || get_hex(w[1], allowed[nallowed++], 32) != 32)
			die("allow");
	} else if (!strcmp(w[0], "dial") && n == 5) {
		struct sockaddr_in to = local;
		u8 key[32];
		int kind = -1;
		to.sin_port = htons(atoi(w[1]));
		for (int i = 0; i < KINDS; i++)
			if (!strcmp(kinds[i].alpn, w[3]))
				kind = i;
		if (kind < 0 || get_hex(w[2], key, 32) != 32)
			die("dial");
		printf("dialling %d\n", dial(&to, kind, key, !strcmp(w[4], "show"))->number);
	} else if (!strcmp(w[0], "request") && n == 4) {
		struct conn *c = conn_number(w[1]);
		size_t room = strlen(w[3]);
		u8 *body = malloc(room + 1);
		send_message(c, 'C', c->next_id++, w[2], body, get_hex(w[3], body, room));
		free(body);
	} else if (!strcmp(w[0], "large") && n == 4) {
		struct conn *c = conn_number(w[1]);
		size_t size = atoll(w[3]);
		u8 *body = malloc(size + 1);
		for (uint64_t i = 0; i < size; i++)
			body[i] = i * i / 256;
		send_message(c, 'C', c->next_id++, w[2], body, size);
		free(body);
	} else if (!strcmp(w[0], "datagram") && n == 3) {
		u8 data[4096];
		send_datagram(conn_number(w[1]), data, get_hex(w[2], data, sizeof data));
	} else if (!strcmp(w[0], "close") && n == 3) {
		struct conn *c = conn_number(w[1]);
		u8 buf[1500];
		ngtcp2_connection_close_error e;
		ngtcp2_path_storage ps;
		ngtcp2_pkt_info pi;
		ngtcp2_path_storage_zero(&ps);
		ngtcp2_connection_close_error_default(&e);
		ngtcp2_connection_close_error_set_application_error(&e, atoll(w[2]), NULL, 0);
		ngtcp2_ssize k = ngtcp2_conn_write_connection_close(c->quic, &ps.path, &pi, buf, sizeof buf, &e, now());
		if (k > 0)
			send_to(&c->remote, buf, k);
		c->gone = c->quiet = 1;
	} else
		die("no such command");
}

int main(int argc, char **argv)
{
	u8 pkcs8[48], spki[44], packet[65536];
	gnutls_datum_t pk = { pkcs8, sizeof pkcs8 }, pub = { spki, sizeof spki };
	gnutls_privkey_t priv;
	gnutls_pubkey_t pubkey;
	gnutls_datum_t x = { 0 };
	gnutls_ecc_curve_t curve;
	socklen_t len = sizeof local;
	char *line = NULL;
	size_t room = 0;

	if (argc != 3 || get_hex(argv[1], seed, 32) != 32)
		die("usage: peer SEED PORT");
	setvbuf(stdout, NULL, _IOLBF, 1 << 16);
	memcpy(pkcs8, pkcs8_head, 16), memcpy(pkcs8 + 16, seed, 32);
	gnutls_x509_privkey_t xk;
	if (gnutls_x509_privkey_init(&xk) != 0 || gnutls_x509_privkey_import_pkcs8(xk, &pk, GNUTLS_X509_FMT_DER, NULL, GNUTLS_PKCS_PLAIN) != 0 ||
	    gnutls_privkey_init(&priv) != 0 || gnutls_privkey_import_x509(priv, xk, GNUTLS_PRIVKEY_IMPORT_COPY) != 0 || gnutls_pubkey_init(&pubkey) != 0 ||
	    gnutls_pubkey_import_privkey(pubkey, priv, 0, 0) != 0 || gnutls_pubkey_export_ecc_raw(pubkey, &curve, &x, NULL) != 0 || x.size != 32)
		die("key");
	memcpy(own, x.data, 32);
	memcpy(spki, spki_head, 12), memcpy(spki + 12, own, 32);
	/* Local secrets; the one of resets survives a restart. */
	gnutls_hash_fast(GNUTLS_DIG_SHA256, seed, 32, reset_secret);
	random_bytes(token_secret, sizeof token_secret);
	if (gnutls_session_ticket_key_generate(&ticket_key) != 0 || gnutls_anti_replay_init(&anti_replay) != 0)
		die("tickets");
	gnutls_certificate_allocate_credentials(&with_key);
	gnutls_certificate_allocate_credentials(&without_key);
	if (gnutls_certificate_set_rawpk_key_mem(with_key, &pub, &pk, GNUTLS_X509_FMT_DER, NULL, 0, NULL, 0, 0) != 0)
		die("raw key");

	if ((sock = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)) < 0)
		die("socket");
	local.sin_family = AF_INET;
	local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	local.sin_port = htons(atoi(argv[2]));
	if (bind(sock, (struct sockaddr *)&local, sizeof local) != 0 || getsockname(sock, (struct sockaddr *)&local, &len) != 0)
		die("bind");
	int size = 4 << 20;
	setsockopt(sock, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
	printf("port %d ", ntohs(local.sin_port)), put_hex(own, 32), putchar('\n');

	struct pollfd fds[2] = { { .fd = 0, .events = POLLIN }, { .fd = sock, .events = POLLIN } };
	FILE *in = fdopen(0, "r");
	setvbuf(in, NULL, _IONBF, 0); /* or poll would not see what is buffered */
	for (;;) {
		ngtcp2_tstamp next = UINT64_MAX, t = now();
		for (int i = 0; i < nconns; i++)
			if (!conns[i]->gone && ngtcp2_conn_get_expiry(conns[i]->quic) < next)
				next = ngtcp2_conn_get_expiry(conns[i]->quic);
		int wait = next == UINT64_MAX ? -1 : next <= t ? 0 : (int)((next - t) / NGTCP2_MILLISECONDS + 1);
		if (poll(fds, 2, wait) < 0 && errno != EINTR)
			die("poll");
		if (fds[0].revents) {
			if (getline(&line, &room, in) <= 0)
				return 0;
			command(line);
		}
		for (int i = 0; fds[1].revents && i < 256; i++) {
			struct sockaddr_in from;
			socklen_t fl = sizeof from;
			ssize_t n = recvfrom(sock, packet, sizeof packet, 0, (struct sockaddr *)&from, &fl);
			if (n < 0)
				break;
			if (n > 0)
				received(packet, n, &from);
		}
		for (int i = 0; i < nconns; i++) {
			struct conn *c = conns[i];
			int err;
			if (!c->gone && ngtcp2_conn_get_expiry(c->quic) <= now() && (err = ngtcp2_conn_handle_expiry(c->quic, now())) != 0)
				failed(c, err);
			if (!c->gone)
				flush_conn(c);
		}
		fflush(stdout);
	}
}
