/* udp.c: datagrams both ways: one host socket for each child port, however many peers it talks to (RFC 4787, REQ-1).
 *
 * A peer (a flow) is ruled once; its first datagrams are parked until the verdict. What comes back is carried only from an
 * address and port that the child has written to (REQ-8, address and port dependent filtering), or that stand for one in the
 * place of what it wrote to (cf_flow_allow_to): such peers are found by their host side, too. A datagram larger than the
 * MTU goes down whole: the child's kernel takes a local frame of any size. Errors come back from the socket's error queue,
 * with the router or host that sent them, and go down as the ICMP that the child would have seen.
 * A datagram leaves as the child sent it: its hop limit less one, its DSCP and ECN bits, and DF. One with DF (in IPv6: one
 * that the child did not cut) leaves uncut or is answered "too big" with the path's MTU; the socket is told so when that
 * changes, which it rarely does. Down, the DSCP and ECN bits come along.
 * Not here: fragments from the child (Python reassembles), DNS, whose datagrams are never a peer's (slow.c). */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "stack.h"

#define BATCH 16
#define DATAGRAM_MAX 65535
#define ROUND_BUDGET 256                 /* datagrams of all maps in one round */
#define FAILURES_AT_ONCE 16              /* of one map: reads that fail for another reason than that nothing is there */
#define ERRORS_AT_ONCE 64                /* of one map */
#define MTU_CERTAIN4 576                 /* every IPv4 host takes that much (RFC 791, 3.1) */
#define MTU_CERTAIN6 1280                /* and every IPv6 link (RFC 8200, 5) */
#define IDLE_ANSWERED_US (300 * US_PER_S) /* RFC 4787, REQ-5: at least 2 minutes, 5 recommended */
#define IDLE_UNANSWERED_US (120 * US_PER_S)

/* What of the IP header goes with a datagram. */
struct manner {
	uint8_t hop_limit, tos;
	bool dont_fragment;
};

struct parked {
	struct parked *next;
	uint32_t len;
	struct manner manner;
	uint8_t text[];
};

struct udp_batch {
	struct mmsghdr messages[BATCH];
	struct iovec iov[BATCH];
	struct sockaddr_in6 from[BATCH];
	_Alignas(struct cmsghdr) char control[BATCH][CMSG_SPACE(sizeof(int))]; /* the TOS */
	uint8_t bytes[BATCH][DATAGRAM_MAX + 1];
};

/* --- maps ------------------------------------------------------------------------------------------------- */

bool udp_init(struct cf_stack *st)
{
	st->free_map = st->ready_head = st->ready_tail = NONE;
	st->maps_by_use = (struct list){NONE, NONE};
	st->batch = malloc(sizeof(*st->batch));
	for (int i = 0; i < 2; i++) {
		st->map_of_port[i] = calloc(65536, sizeof(uint32_t)); /* index + 1; untouched pages cost nothing */
		if (!st->map_of_port[i])
			return false;
	}
	return st->batch != NULL;
}

void udp_shutdown(struct cf_stack *st)
{
	for (uint32_t i = 0; i < st->map_count; i++)
		if (st->maps[i].used)
			host_close_udp(st, st->maps[i].host_fd);
	for (int i = 0; i < 2; i++)
		free(st->map_of_port[i]);
	free(st->maps);
	free(st->translated);
	free(st->batch);
}

static uint64_t map_tag(const struct cf_stack *st, uint32_t index)
{
	return MAP_TAG | (uint64_t)(st->maps[index].generation & 0x3fffffff) << 32 | index;
}

static bool maps_grow(struct cf_stack *st)
{
	uint32_t room = st->map_room ? st->map_room * 2 : 64;
	struct udp_map *maps = realloc(st->maps, room * sizeof(*maps));

	if (!maps)
		return false;
	memset(maps + st->map_room, 0, (room - st->map_room) * sizeof(*maps));
	st->maps = maps;
	st->map_room = room;
	return true;
}

static uint32_t map_slot(struct cf_stack *st)
{
	uint32_t index = st->free_map;

	if (index != NONE) {
		st->free_map = st->maps[index].next_free;
		return index;
	}
	if (st->map_count == st->map_room && !maps_grow(st))
		return NONE;
	return st->map_count++;
}

static void map_slot_release(struct cf_stack *st, uint32_t index)
{
	st->maps[index].next_free = st->free_map;
	st->free_map = index;
}

/* --- maps by use ------------------------------------------------------------------------------------------ */

static void map_unlink(struct cf_stack *st, uint32_t index)
{
	struct udp_map *m = &st->maps[index];

	if (m->prev == NONE)
		st->maps_by_use.head = m->next;
	else
		st->maps[m->prev].next = m->next;
	if (m->next == NONE)
		st->maps_by_use.tail = m->prev;
	else
		st->maps[m->next].prev = m->prev;
}

static void map_link(struct cf_stack *st, uint32_t index)
{
	struct udp_map *m = &st->maps[index];

	m->prev = st->maps_by_use.tail;
	m->next = NONE;
	if (m->prev == NONE)
		st->maps_by_use.head = index;
	else
		st->maps[m->prev].next = index;
	st->maps_by_use.tail = index;
}

/* A datagram of @f has passed: it and its socket are the last to be given up. */
static void used_now(struct cf_stack *st, struct flow *f)
{
	f->active_at = st->now;
	flow_queue(st, f, QUEUE_PEERS);
	if (st->maps_by_use.tail == f->udp.map)
		return;
	map_unlink(st, f->udp.map);
	map_link(st, f->udp.map);
}

/* Close the socket that was used least recently, and end its peers. False when there is none. */
static bool evict_map(struct cf_stack *st)
{
	uint32_t index = st->maps_by_use.head;

	if (index == NONE)
		return false;
	drop(st, CF_DROP_UDP_SOCKET_EVICTED);
	for (uint32_t left = st->maps[index].peers; left > 0; left--)
		flow_close(st, flow_at(st, st->maps[index].first_peer), CF_END_IDLE);
	return true;
}

/* --- a child port's map ----------------------------------------------------------------------------------- */

/* When sockets or descriptors have run out, another child port's socket makes room. */
static int map_socket(struct cf_stack *st, uint32_t index)
{
	uint8_t address_len = st->maps[index].address_len;
	int fd = host_udp_socket(st, address_len, map_tag(st, index));

	if (fd >= 0 || (errno != EMFILE && errno != ENFILE))
		return fd;
	if (evict_map(st))
		fd = host_udp_socket(st, address_len, map_tag(st, index));
	if (fd < 0)
		drop(st, CF_DROP_NO_DESCRIPTOR);
	return fd;
}

/* The map of a child port, made if there is none; NONE with errno. */
static uint32_t map_get(struct cf_stack *st, const struct flow *f)
{
	uint32_t *slot = &st->map_of_port[f->host_address_len == 4 ? 0 : 1][f->child_port], index;
	struct udp_map *m;

	if (*slot)
		return *slot - 1;
	index = map_slot(st);
	if (index == NONE)
		return NONE;
	m = &st->maps[index];
	*m = (struct udp_map){.generation = m->generation + 1, .child_port = f->child_port, .address_len = f->host_address_len,
			      .first_peer = NONE, .next_ready = m->next_ready, .ready = m->ready};
	m->host_fd = map_socket(st, index);
	if (m->host_fd < 0) {
		map_slot_release(st, index);
		return NONE;
	}
	m->used = true;
	map_link(st, index);
	*slot = index + 1;
	return index;
}

/* --- peers with another host side ------------------------------------------------------------------------- */

static bool is_translated(const struct flow *f)
{
	const struct far_end *to = &f->udp.to;

	return to->address_len != f->address_len || to->port != f->remote_port || memcmp(to->address, f->remote, f->address_len) != 0;
}

static bool translated_init(struct cf_stack *st)
{
	if (!st->translated)
		st->translated = calloc((size_t)st->bucket_mask + 1, sizeof(*st->translated)); /* index + 1 */
	return st->translated != NULL;
}

static uint32_t *translated_bucket(const struct cf_stack *st, int address_len, const uint8_t *address, uint16_t port,
				   uint16_t child_port)
{
	return &st->translated[flow_hash(st->cfg.hash_key, PROTO_UDP, address_len, child_port, address, port) & st->bucket_mask];
}

static uint32_t *bucket_of_peer(const struct cf_stack *st, const struct flow *f)
{
	return translated_bucket(st, f->udp.to.address_len, f->udp.to.address, f->udp.to.port, f->child_port);
}

static void translated_link(struct cf_stack *st, struct flow *f)
{
	uint32_t *bucket = bucket_of_peer(st, f);

	f->udp.to_prev = 0;
	f->udp.to_next = *bucket;
	if (*bucket)
		flow_at(st, *bucket - 1)->udp.to_prev = f->index + 1;
	*bucket = f->index + 1;
}

static void translated_unlink(struct cf_stack *st, struct flow *f)
{
	uint32_t *link = f->udp.to_prev ? &flow_at(st, f->udp.to_prev - 1)->udp.to_next : bucket_of_peer(st, f);

	MUST(st, *link == f->index + 1);
	*link = f->udp.to_next;
	if (f->udp.to_next)
		flow_at(st, f->udp.to_next - 1)->udp.to_prev = f->udp.to_prev;
}

/* Two peers of one child port may have one host side; what comes from there is for the one that has sent last. */
static void translated_sent(struct cf_stack *st, struct flow *f)
{
	if (f->udp.to_prev == 0)
		return;
	translated_unlink(st, f);
	translated_link(st, f);
}

static struct flow *translated_find(const struct cf_stack *st, const struct udp_map *m, const uint8_t *address, uint16_t port)
{
	uint32_t i = *translated_bucket(st, m->address_len, address, port, m->child_port);

	while (i != 0) {
		struct flow *f = flow_at(st, i - 1);
		const struct far_end *to = &f->udp.to;

		if (to->port == port && to->address_len == m->address_len && f->child_port == m->child_port &&
		    memcmp(to->address, address, m->address_len) == 0)
			return f;
		i = f->udp.to_next;
	}
	return NULL;
}

/* --- a map's peers ---------------------------------------------------------------------------------------- */

static void map_add_peer(struct cf_stack *st, uint32_t index, struct flow *f)
{
	struct udp_map *m = &st->maps[index];

	f->udp.map = index;
	f->udp.map_prev = NONE;
	f->udp.map_next = m->first_peer;
	if (m->first_peer != NONE)
		flow_at(st, m->first_peer)->udp.map_prev = f->index;
	m->first_peer = f->index;
	m->peers++;
	m->translated += f->udp.translated;
}

static void map_drop_peer(struct cf_stack *st, struct flow *f)
{
	uint32_t index = f->udp.map;
	struct udp_map *m = &st->maps[index];

	f->udp.map = NONE;
	if (f->udp.translated) {
		translated_unlink(st, f);
		m->translated--;
	}
	if (f->udp.map_prev == NONE)
		m->first_peer = f->udp.map_next;
	else
		flow_at(st, f->udp.map_prev)->udp.map_next = f->udp.map_next;
	if (f->udp.map_next != NONE)
		flow_at(st, f->udp.map_next)->udp.map_prev = f->udp.map_prev;
	MUST(st, m->peers > 0);
	if (--m->peers > 0)
		return;
	map_unlink(st, index);
	host_close_udp(st, m->host_fd);
	m->used = false;
	st->map_of_port[m->address_len == 4 ? 0 : 1][m->child_port] = 0;
	if (!m->ready) /* else udp_service gives the slot back when it comes to it */
		map_slot_release(st, index);
}

/* --- parking ---------------------------------------------------------------------------------------------- */

static void park(struct cf_stack *st, struct flow *f, struct manner manner, const uint8_t *text, uint32_t len)
{
	struct parked **end = &f->udp.parked, *p;
	uint32_t size = sizeof(*p) + len; /* an empty one takes memory, too */

	if (f->udp.parked_count == st->cfg.parked_datagrams || st->parked_bytes + size > st->cfg.parked_bytes ||
	    !(p = malloc(size))) {
		drop(st, CF_DROP_PARKED_FULL);
		return;
	}
	*p = (struct parked){.len = len, .manner = manner};
	memcpy(p->text, text, len);
	while (*end)
		end = &(*end)->next;
	*end = p;
	f->udp.parked_count++;
	st->parked_bytes += size;
	if (f->held)
		flow_report_flight(st, f);
}

static struct parked *unpark(struct cf_stack *st, struct flow *f)
{
	struct parked *p = f->udp.parked;

	if (p) {
		f->udp.parked = p->next;
		f->udp.parked_count--;
		st->parked_bytes -= (uint32_t)sizeof(*p) + p->len;
	}
	return p;
}

void udp_free(struct cf_stack *st, struct flow *f)
{
	struct parked *p;

	while ((p = unpark(st, f)))
		free(p);
	if (f->udp.map != NONE)
		map_drop_peer(st, f);
}

/* --- up --------------------------------------------------------------------------------------------------- */

/* Add a control message with a number for the IP header. */
static void put_number(struct msghdr *m, int address_len, int type4, int type6, int number)
{
	struct cmsghdr *c = (void *)((char *)m->msg_control + m->msg_controllen);

	c->cmsg_level = address_len == 4 ? IPPROTO_IP : IPPROTO_IPV6;
	c->cmsg_type = address_len == 4 ? type4 : type6;
	c->cmsg_len = CMSG_LEN(sizeof(number));
	memcpy(CMSG_DATA(c), &number, sizeof(number));
	m->msg_controllen += CMSG_SPACE(sizeof(number));
}

/* A hop limit that is not the default was asked for by a program (traceroute): this gateway is one hop. */
static void put_manner(struct msghdr *m, int address_len, const struct manner *manner)
{
	if (manner->hop_limit != HOP_LIMIT_DEFAULT)
		put_number(m, address_len, IP_TTL, IPV6_HOPLIMIT, manner->hop_limit - 1);
	if (manner->tos)
		put_number(m, address_len, IP_TOS, IPV6_TCLASS, manner->tos);
}

static void set_may_fragment(struct udp_map *m, bool may)
{
	if (m->may_fragment == may)
		return;
	m->may_fragment = may;
	host_udp_may_fragment(m->host_fd, m->address_len, may);
}

/* What IPv6 takes everywhere may be more than a path of IPv4 does (RFC 7915, 5.1). */
static bool is_small_for_ipv6(const struct flow *f, uint32_t len)
{
	return f->address_len > f->host_address_len && len <= MTU_CERTAIN6 - IPV6_HEADER_LEN - UDP_HEADER_LEN;
}

static int send_once(struct cf_stack *st, struct flow *f, const struct manner *manner, const uint8_t *text, uint32_t len)
{
	_Alignas(struct cmsghdr) char control[2 * CMSG_SPACE(sizeof(int))] = {0};
	struct sockaddr_in6 to;
	struct iovec iov = {(void *)(uintptr_t)text, len};
	struct msghdr m = {.msg_name = &to, .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control};

	host_address_of(&f->udp.to, &to, &m.msg_namelen);
	put_manner(&m, f->host_address_len, manner);
	set_may_fragment(&st->maps[f->udp.map], !manner->dont_fragment || is_small_for_ipv6(f, len));
	return sendmsg(st->maps[f->udp.map].host_fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? errno : 0;
}

static bool take_error(struct cf_stack *st, uint32_t index, uint32_t *local_mtu);

/* The path is known to be narrower than this datagram; its MTU is the last word in the error queue. */
static void tell_too_big(struct cf_stack *st, struct flow *f, const uint8_t *text, uint32_t len)
{
	struct icmp_error told;
	uint32_t mtu = 0;

	drop(st, CF_DROP_TOO_BIG);
	for (int i = 0; i < ERRORS_AT_ONCE && take_error(st, f->udp.map, &mtu); i++)
		;
	if (mtu == 0)
		mtu = MTU_CERTAIN4; /* the queue had no room; IPv6 knows its own floor */
	told = icmp_too_big(f->host_address_len, mtu);
	icmp_for_child(f, f->udp.to.address, &told);
	icmp_send_for_flow(st, f, told, text, len);
}

static void tell_send_error(struct cf_stack *st, struct flow *f, int error, const uint8_t *text, uint32_t len)
{
	enum cf_denial how = CF_DENY_SILENT;

	if (error == EAGAIN || error == ENOBUFS) {
		drop(st, CF_DROP_HOST_SOCKET_FULL);
		return;
	}
	if (error == EMSGSIZE) {
		tell_too_big(st, f, text, len);
		return;
	}
	drop(st, CF_DROP_HOST_SEND_FAILED);
	if (error == ENETUNREACH || error == ENETDOWN)
		how = CF_DENY_NET;
	else if (error == EHOSTUNREACH)
		how = CF_DENY_HOST;
	else if (error == EPERM || error == EACCES)
		how = CF_DENY_PROHIBITED;
	if (how != CF_DENY_SILENT)
		icmp_send_for_flow(st, f, icmp_denial(how, f->address_len), text, len);
}

static void send_up(struct cf_stack *st, struct flow *f, const struct manner *manner, const uint8_t *text, uint32_t len)
{
	int error = send_once(st, f, manner, text, len);

	if (error && error != EAGAIN)
		error = send_once(st, f, manner, text, len); /* the first one may have told of an earlier datagram */
	if (error) {
		tell_send_error(st, f, error, text, len);
		return;
	}
	f->bytes_up += len;
	used_now(st, f);
	if (f->udp.translated)
		translated_sent(st, f);
}

static struct flow *open_peer(struct cf_stack *st, const struct ip_view *ip, const struct udp_view *udp)
{
	struct flow *f = flow_new(st, PROTO_UDP, ip->address_len, udp->child_port, ip->dst, udp->remote_port);

	if (!f) {
		icmp_send(st, ip->address_len, icmp_denial(CF_DENY_PROHIBITED, ip->address_len), ip->packet, ip->packet_len);
		return NULL;
	}
	f->udp.map = NONE;
	timer_set(st, f, st->now + PARKED_MAX_US);
	flow_ask(st, f);
	return f;
}

void udp_input(struct cf_stack *st, const struct ip_view *ip, const struct udp_view *udp)
{
	struct flow *f = flow_find(st, PROTO_UDP, ip->address_len, udp->child_port, ip->dst, udp->remote_port);
	struct manner manner = {ip->hop_limit, ip->tos, ip->dont_fragment};

	if (!f && !(f = open_peer(st, ip, udp)))
		return;
	if (f->state == OPEN)
		send_up(st, f, &manner, udp->text, udp->text_len);
	else
		park(st, f, manner, udp->text, udp->text_len);
}

uint32_t udp_held(const struct flow *f, uint32_t index, uint8_t *out, uint32_t max)
{
	for (const struct parked *p = f->udp.parked; p; p = p->next) {
		if (p->len == 0 || index-- > 0)
			continue;
		if (max > 0)
			memcpy(out, p->text, p->len < max ? p->len : max);
		return p->len;
	}
	return 0;
}

void udp_allow(struct cf_stack *st, struct flow *f, const struct far_end *to)
{
	struct parked *p;
	uint32_t map;

	f->udp.to = *to;
	f->udp.translated = is_translated(f);
	map = f->udp.translated && !translated_init(st) ? NONE : map_get(st, f);
	if (map == NONE) {
		udp_deny(st, f, CF_DENY_PROHIBITED);
		return;
	}
	map_add_peer(st, map, f);
	if (f->udp.translated)
		translated_link(st, f);
	f->state = OPEN;
	f->held = false;
	f->pending &= (uint8_t)~PENDING_FLIGHT;
	while ((p = unpark(st, f))) {
		send_up(st, f, &p->manner, p->text, p->len);
		free(p);
	}
	udp_deadline(st, f);
}

void udp_deny(struct cf_stack *st, struct flow *f, enum cf_denial how)
{
	struct parked *p = f->udp.parked;

	if (how == CF_DENY_RESET)
		how = CF_DENY_PORT; /* what comes closest */
	if (how != CF_DENY_SILENT && p)
		icmp_send_for_flow(st, f, icmp_denial(how, f->address_len), p->text, p->len);
	flow_close(st, f, CF_END_KILLED);
}

/* --- down ------------------------------------------------------------------------------------------------- */

/* The peer whose host side is @from. */
static struct flow *peer_of(const struct cf_stack *st, const struct udp_map *m, const struct sockaddr_in6 *from)
{
	uint16_t port;
	const uint8_t *address = host_address_in(from, &port);
	struct flow *f = flow_find(st, PROTO_UDP, m->address_len, m->child_port, address, port);

	if (f && f->state == OPEN && !f->udp.translated)
		return f;
	return m->translated ? translated_find(st, m, address, port) : NULL;
}

static bool send_datagram(struct cf_stack *st, int address_len, const uint8_t *from, uint16_t remote_port,
			  uint16_t child_port, uint8_t tos, const uint8_t *text, uint32_t len)
{
	struct frame_out out;
	uint8_t *p;

	frame_begin(&out, PROTO_UDP);
	out.tos = tos;
	p = frame_prepend(&out, UDP_HEADER_LEN);
	put16(p, remote_port);
	put16(p + 2, child_port);
	put16(p + 4, (uint16_t)(UDP_HEADER_LEN + len));
	out.text[0] = (struct iovec){(void *)(uintptr_t)text, len};
	out.text_pieces = len > 0;
	out.text_len = len;
	return ip_send(st, &out, address_len, from, UDP_HEADER_LEN, 6);
}

static void take_datagram(struct cf_stack *st, const struct udp_map *m, const struct sockaddr_in6 *from,
			  uint8_t tos, const uint8_t *text, uint32_t len)
{
	struct flow *f = peer_of(st, m, from);

	if (!f) {
		drop(st, CF_DROP_UNKNOWN_PEER);
		return;
	}
	if (f->address_len == 4 && len > DATAGRAM_MAX - UDP_HEADER_LEN - IPV4_HEADER_LEN) { /* IPv6 has room for more */
		drop(st, CF_DROP_TOO_BIG);
		return;
	}
	f->udp.answered = true;
	used_now(st, f);
	f->bytes_down += len;
	send_datagram(st, f->address_len, f->remote, f->remote_port, f->child_port, tos, text, len);
}

/* IPv4 gives a byte, IPv6 an int; nothing else is asked for. */
static uint8_t tos_of(struct msghdr *m)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(m);
	int number;

	if (!c)
		return 0;
	if (c->cmsg_level == IPPROTO_IP)
		return *CMSG_DATA(c);
	memcpy(&number, CMSG_DATA(c), sizeof(number));
	return (uint8_t)number;
}

static int receive(struct udp_batch *b, int fd)
{
	for (int i = 0; i < BATCH; i++) {
		b->iov[i] = (struct iovec){b->bytes[i], DATAGRAM_MAX};
		b->messages[i].msg_hdr = (struct msghdr){.msg_name = &b->from[i], .msg_namelen = sizeof(b->from[i]),
							 .msg_iov = &b->iov[i], .msg_iovlen = 1, .msg_control = b->control[i],
							 .msg_controllen = sizeof(b->control[i])};
	}
	return recvmmsg(fd, b->messages, BATCH, MSG_DONTWAIT, NULL);
}

/* Read until the socket is empty or *budget is used up; true when there may be more. */
static bool drain(struct cf_stack *st, uint32_t index, int *budget)
{
	int failures = 0;

	while (*budget > 0) {
		int n = receive(st->batch, st->maps[index].host_fd);

		if (n < 0 && (errno == EAGAIN || ++failures == FAILURES_AT_ONCE))
			return false;
		*budget -= n > 0 ? n : 1; /* an error that belonged to an earlier datagram: read on */
		for (int i = 0; i < n; i++)
			take_datagram(st, &st->maps[index], &st->batch->from[i], tos_of(&st->batch->messages[i].msg_hdr),
				      st->batch->bytes[i], st->batch->messages[i].msg_len);
	}
	return true;
}

/* --- errors ----------------------------------------------------------------------------------------------- */

/* One entry of the error queue; false when it is empty. @local_mtu: where to note the MTU that made this host refuse a
 * datagram. */
static bool take_error(struct cf_stack *st, uint32_t index, uint32_t *local_mtu)
{
	_Alignas(struct cmsghdr) char control[HOST_ERROR_ROOM];
	struct sockaddr_in6 to = {0};
	uint8_t *text = st->batch->bytes[0];
	struct iovec iov = {text, DATAGRAM_MAX};
	struct msghdr m = {.msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = &iov, .msg_iovlen = 1,
			   .msg_control = control, .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(st->maps[index].host_fd, &m, MSG_ERRQUEUE | MSG_DONTWAIT);
	struct icmp_error told;
	struct flow *f;

	if (n < 0)
		return false;
	if (host_told_icmp(&m, st->maps[index].address_len, &told)) {
		f = peer_of(st, &st->maps[index], &to);
		if (f && icmp_for_child(f, f->udp.to.address, &told))
			icmp_send_for_flow(st, f, told, text, (uint32_t)n);
	} else {
		host_told_mtu(&m, local_mtu);
	}
	return true;
}

/* --- events ----------------------------------------------------------------------------------------------- */

static void ready_push(struct cf_stack *st, uint32_t index)
{
	struct udp_map *m = &st->maps[index];

	if (m->ready)
		return;
	m->ready = true;
	m->next_ready = NONE;
	if (st->ready_head == NONE)
		st->ready_head = index;
	else
		st->maps[st->ready_tail].next_ready = index;
	st->ready_tail = index;
}

static uint32_t ready_pop(struct cf_stack *st)
{
	uint32_t index = st->ready_head;

	if (index != NONE) {
		st->ready_head = st->maps[index].next_ready;
		st->maps[index].ready = false;
	}
	return index;
}

void udp_host_event(struct cf_stack *st, uint64_t tag, uint32_t events)
{
	uint32_t index = (uint32_t)tag;

	if (index >= st->map_count || !st->maps[index].used || map_tag(st, index) != tag)
		return;
	if (events & EPOLLERR)
		st->maps[index].errors = true;
	ready_push(st, index);
}

/* What one map has; true when there may be more. */
static bool serve(struct cf_stack *st, uint32_t index, int *budget)
{
	uint32_t local_mtu; /* was told when the send failed */

	for (int i = 0; i < ERRORS_AT_ONCE && st->maps[index].errors; i++, (*budget)--)
		st->maps[index].errors = take_error(st, index, &local_mtu);
	return drain(st, index, budget) || st->maps[index].errors;
}

/* Read from the maps that have something, in turn, until the budget is used up; the rest stays queued. */
void udp_service(struct cf_stack *st)
{
	int budget = ROUND_BUDGET;
	uint32_t index;

	while (budget > 0 && (index = ready_pop(st)) != NONE) {
		if (!st->maps[index].used)
			map_slot_release(st, index);
		else if (serve(st, index, &budget))
			ready_push(st, index);
	}
}

static uint64_t idle_deadline(const struct flow *f)
{
	return f->active_at + (f->udp.answered ? IDLE_ANSWERED_US : IDLE_UNANSWERED_US);
}

void udp_deadline(struct cf_stack *st, struct flow *f) { timer_set(st, f, idle_deadline(f)); }

void udp_timer(struct cf_stack *st, struct flow *f)
{
	if (f->state == OPEN && idle_deadline(f) > st->now)
		udp_deadline(st, f);
	else
		flow_close(st, f, f->state == OPEN ? CF_END_IDLE : CF_END_TIMEOUT);
}

int cf_reply_datagram(cf_stack *st, int address_len, const uint8_t *address, uint16_t child_port, const uint8_t *payload,
		      uint32_t len)
{
	if ((address_len != 4 && address_len != 16) || len > DATAGRAM_MAX - UDP_HEADER_LEN - IPV4_HEADER_LEN)
		return CF_EINVAL;
	return send_datagram(st, address_len, address, DNS_PORT, child_port, 0, payload, len) ? CF_OK : CF_EBUSY;
}
