/* A stand-in for oxend on Debian's libzmq, written from protocol 2 section 8 and what OxenMQ's messages are made of. It knows no JSON and no registry: the test
 * says what it answers, and it says what it hears.
 *
 *   oxend SOCKET [CURVE]
 *
 * With CURVE it wants ZeroMQ's mechanism of that name, which we do not speak. Standard input, one command a line; parts are hexadecimal, "-" is an empty one:
 *
 *   answer COMMAND PART...    the reply to a request; without parts none
 *   refuse COMMAND CODE       a refusal in OxenMQ's form
 *   send PART...              a message to the last who asked
 *
 * Standard output: "ready", then "heard PART..." for each message, its route left out. Heartbeats are on, short ones: who does not answer PING is dropped.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

enum { MAX_PARTS = 16, MAX_RULES = 32, MAX_LINE = 8 << 20 };

struct part { unsigned char *data; size_t len; };
struct rule { char command[64]; int refuse, count; struct part parts[MAX_PARTS]; };

static struct rule rules[MAX_RULES];
static int n_rules;
static struct part route;
static void *sock;

static void die(const char *what) {
	fprintf(stderr, "oxend: %s: %s\n", what, zmq_strerror(errno));
	exit(1);
}

static struct part unhex(const char *s) {
	struct part p = {malloc(strlen(s) / 2 + 1), 0};
	unsigned v;
	if (strcmp(s, "-") == 0)
		return p;
	for (; s[0] && s[1]; s += 2) {
		if (sscanf(s, "%2x", &v) != 1)
			die("hexadecimal digits");
		p.data[p.len++] = v;
	}
	return p;
}

static void put(const void *data, size_t len, int more) {
	if (zmq_send(sock, data, len, more ? ZMQ_SNDMORE : 0) < 0 && errno != EHOSTUNREACH)
		die("send");
}

/* to the last who asked: some words, then parts */
static void say(int n_words, struct part *words, int count, struct part *parts) {
	if (route.len == 0)
		return;
	put(route.data, route.len, 1);
	for (int i = 0; i < n_words; i++)
		put(words[i].data, words[i].len, i + 1 < n_words || count > 0);
	for (int i = 0; i < count; i++)
		put(parts[i].data, parts[i].len, i + 1 < count);
}

static struct part word(const char *s) {
	struct part p = {(unsigned char *)s, strlen(s)};
	return p;
}

static void line(char *text) {
	char *verb = strtok(text, " \n"), *s;
	struct rule r = {0};
	if (!verb)
		return;
	if (strcmp(verb, "send") != 0) {
		if (!(s = strtok(NULL, " \n")))
			die("a line without a command");
		snprintf(r.command, sizeof r.command, "%s", s);
	}
	while ((s = strtok(NULL, " \n")) && r.count < MAX_PARTS)
		r.parts[r.count++] = unhex(s);
	if (strcmp(verb, "send") == 0) {
		say(0, NULL, r.count, r.parts);
		return;
	}
	r.refuse = strcmp(verb, "refuse") == 0;
	for (int i = 0; i < n_rules; i++)
		if (strcmp(rules[i].command, r.command) == 0) {
			rules[i] = r;
			return;
		}
	if (n_rules == MAX_RULES)
		die("too many commands");
	rules[n_rules++] = r;
}

static void hear(void) {
	struct part parts[MAX_PARTS];
	int n = 0, more = 1;
	while (more) {
		zmq_msg_t m;
		size_t size = sizeof more;
		zmq_msg_init(&m);
		if (zmq_msg_recv(&m, sock, 0) < 0)
			die("receive");
		if (n < MAX_PARTS) {
			parts[n].len = zmq_msg_size(&m);
			parts[n].data = malloc(parts[n].len + 1);
			memcpy(parts[n].data, zmq_msg_data(&m), parts[n].len);
			parts[n++].data[zmq_msg_size(&m)] = 0;
		}
		zmq_msg_close(&m);
		if (zmq_getsockopt(sock, ZMQ_RCVMORE, &more, &size) < 0)
			die("more");
	}
	free(route.data);
	route = parts[0];
	printf("heard");
	for (int i = 1; i < n; i++) {
		printf(" %s", parts[i].len ? "" : "-");
		for (size_t j = 0; j < parts[i].len; j++)
			printf("%02x", parts[i].data[j]);
	}
	printf("\n");
	if (n == 2 && strcmp((char *)parts[1].data, "HI") == 0) {
		struct part hello = word("HELLO");
		say(1, &hello, 0, NULL);
	}
	for (int i = 0; n > 2 && i < n_rules; i++) {
		if (strcmp(rules[i].command, (char *)parts[1].data) != 0 || rules[i].count == 0)
			continue;
		if (rules[i].refuse) {
			struct part words[] = {rules[i].parts[0], word("REPLY"), parts[2]};
			say(3, words, 0, NULL);
		} else {
			struct part words[] = {word("REPLY"), parts[2]};
			say(2, words, rules[i].count, rules[i].parts);
		}
	}
	for (int i = 1; i < n; i++)
		free(parts[i].data);
}

int main(int argc, char **argv) {
	int every = 200, timeout = 600, on = 1;
	char *text = malloc(MAX_LINE), address[256];
	size_t len = 0; /* of text: what has come of a line */
	void *ctx = zmq_ctx_new();
	if (argc < 2)
		die("want a socket's path");
	setvbuf(stdout, NULL, _IOLBF, 0);
	sock = zmq_socket(ctx, ZMQ_ROUTER);
	zmq_setsockopt(sock, ZMQ_HEARTBEAT_IVL, &every, sizeof every);
	zmq_setsockopt(sock, ZMQ_HEARTBEAT_TIMEOUT, &timeout, sizeof timeout);
	zmq_setsockopt(sock, ZMQ_ROUTER_HANDOVER, &on, sizeof on);
	zmq_setsockopt(sock, ZMQ_ROUTER_MANDATORY, &on, sizeof on);
	if (argc > 2) {
		char public[41], secret[41];
		if (zmq_curve_keypair(public, secret) < 0 || zmq_setsockopt(sock, ZMQ_CURVE_SERVER, &on, sizeof on) < 0 || zmq_setsockopt(sock, ZMQ_CURVE_SECRETKEY, secret, 41) < 0)
			die("CURVE");
	}
	snprintf(address, sizeof address, "ipc://%s", argv[1]);
	if (zmq_bind(sock, address) < 0)
		die(address);
	printf("ready\n");
	for (;;) {
		zmq_pollitem_t items[] = {{sock, 0, ZMQ_POLLIN, 0}, {NULL, 0, ZMQ_POLLIN, 0}};
		if (zmq_poll(items, 2, -1) < 0 && errno != EINTR)
			die("poll");
		if (items[1].revents) {
			ssize_t got = read(0, text + len, MAX_LINE - len - 1);
			char *end;
			if (got <= 0)
				return 0;
			text[len += got] = 0;
			while ((end = strchr(text, '\n'))) {
				*end = 0;
				line(text);
				len -= end + 1 - text;
				memmove(text, end + 1, len + 1);
			}
		}
		if (items[0].revents)
			hear();
	}
}
