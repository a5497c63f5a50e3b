/* stack.c: one stack: its making, its end, and one turn of work.
 *
 * A turn is bounded, and what it leaves is on the stack's own lists, since edge-triggered descriptors do not fire twice for
 * the same bytes: CF_TURN_MORE says so. Within a turn the order is: what epoll tells, frames from the child, datagrams and
 * streams from the host, ACKs that nothing carried, timers. So an answer carries the ACK whenever there is one to carry it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "stack.h"

#define MAGIC 0x63666c77u /* "cflw": what is no stack, or one that was freed, must not be taken for one */
#define EPOLL_BATCH 256
#define FRAMES_PER_ROUND 64
#define FLOWS_PER_ROUND 256
#define ROUNDS_PER_TURN 4
#define MTU_MIN 68          /* RFC 791; below 1280 the link has no IPv6 */
#define MTU_MAX 65521        /* of a TAP with a virtio header */
#define TEXT_MAX 65475       /* an IPv4 packet of 65535 bytes less the longest headers */
#define SMALL_RING 4096      /* bytes; one for each flow at the most */
#define SMALL_RING_PART 16384 /* of the flow window: two units of the scaled window that the child is told */
#define RESERVED_RINGS 4     /* one suffices for everything to go on, since the child empties it in a round trip */
#define RETRY_US (50 * US_PER_MS) /* a kernel short of memory gets this long to find some */

/* --- making and ending ------------------------------------------------------------------------------------ */

static bool flow_limits_ok(const struct cf_config *c)
{
	return c->max_flows > 1 && c->max_flows <= 1u << 24 && c->max_sockets > 1 &&
	       c->max_half_open > 0 && c->max_half_open <= c->max_sockets / 2 &&
	       c->max_udp_peers > 0 && c->max_udp_peers <= c->max_flows / 2 &&
	       c->max_udp_sockets > 0 && c->max_udp_sockets <= c->max_sockets / 2;
}

static bool config_ok(const struct cf_config *c)
{
	return c->mtu >= MTU_MIN && c->mtu <= MTU_MAX && flow_limits_ok(c) && c->flow_window >= 65536 &&
	       (c->flow_window & (c->flow_window - 1)) == 0 && c->flow_window <= 1u << 28 && c->buffer_limit >= c->flow_window &&
	       c->parked_datagrams <= 255 && c->slow_packets > 0 && c->slow_bytes >= FRAME_MAX && c->control_rate > 0 &&
	       c->fragment_rate > 0 && c->icmp_error_rate > 0 && c->challenge_ack_rate > 0 &&
	       memchr(c->crash_path, 0, sizeof(c->crash_path));
}

static bool watch(struct cf_stack *st, int fd, uint32_t events, uint64_t tag)
{
	struct epoll_event e = {.events = events, .data.u64 = tag};

	return epoll_ctl(st->epoll_fd, EPOLL_CTL_ADD, fd, &e) == 0;
}

static bool open_descriptors(struct cf_stack *st)
{
	int flags = fcntl(st->cfg.tap_fd, F_GETFL);

	st->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	st->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	return flags >= 0 && fcntl(st->cfg.tap_fd, F_SETFL, flags | O_NONBLOCK) == 0 && st->epoll_fd >= 0 && st->timer_fd >= 0 &&
	       watch(st, st->cfg.tap_fd, EPOLLIN | EPOLLOUT | EPOLLET, TAP_TAG) &&
	       watch(st, st->timer_fd, EPOLLIN, TIMER_TAG);
}

static bool init_rings(struct cf_stack *st)
{
	uint32_t large = (uint32_t)(st->cfg.buffer_limit / st->cfg.flow_window), part = st->cfg.flow_window / SMALL_RING_PART;

	st->rings.classes[RING_LARGE] = (struct ring_class){.capacity = st->cfg.flow_window, .limit = large};
	st->rings.classes[RING_SMALL] = (struct ring_class){.capacity = part > SMALL_RING ? part : SMALL_RING, .limit = st->cfg.max_flows};
	st->rings.classes[RING_RESERVED] = (struct ring_class){.capacity = st->rings.classes[RING_SMALL].capacity, .limit = RESERVED_RINGS};
	return ring_pool_init(&st->rings);
}

cf_stack *cf_stack_new(const struct cf_config *config)
{
	struct cf_stack *st;

	if (!config_ok(config)) {
		errno = EINVAL;
		return NULL;
	}
	st = calloc(1, sizeof(*st));
	if (!st)
		return NULL;
	st->magic = MAGIC;
	st->cfg = *config;
	st->epoll_fd = st->timer_fd = -1;
	st->timer_armed = st->retry_at = NEVER;
	st->tap_readable = st->tap_writable = true;
	st->max_payload = TEXT_MAX;
	st->icmp_errors = bucket_of_rate(st->cfg.icmp_error_rate, st->cfg.icmp_error_rate);
	st->challenge_acks = bucket_of_rate(st->cfg.challenge_ack_rate, st->cfg.challenge_ack_rate);
	st->frame = malloc(FRAME_MAX);
	if (!st->frame || !init_rings(st) || !flow_table_init(st) || !udp_init(st) || !slow_init(st) || !open_descriptors(st)) {
		int error = errno;

		cf_stack_free(st);
		errno = error;
		return NULL;
	}
	return st;
}

void cf_stack_free(cf_stack *st)
{
	if (!st)
		return;
	flow_table_free(st);
	udp_shutdown(st);
	slow_free(st);
	ring_pool_free(&st->rings);
	free(st->frame);
	if (st->epoll_fd >= 0)
		close(st->epoll_fd);
	if (st->timer_fd >= 0)
		close(st->timer_fd);
	st->magic = 0;
	free(st);
}

/* What the end of the run is to a flow: nothing, when the child is done with it and the host has all of it. */
static enum cf_end end_with_run(const struct flow *f)
{
	if (f->protocol == PROTO_UDP)
		return f->state == OPEN ? CF_END_IDLE : CF_END_KILLED;
	return f->state >= ESTABLISHED && f->fin_taken && up_is_done(f) ? CF_END_FIN : CF_END_KILLED;
}

int cf_close_all(cf_stack *st)
{
	for (uint32_t i = 0; i < st->flow_top; i++) {
		struct flow *f = flow_at(st, i);

		flow_close(st, f, end_with_run(f));
	}
	return CF_OK;
}

/* --- one turn --------------------------------------------------------------------------------------------- */

static void expire_timer(const struct cf_stack *st)
{
	uint64_t expirations;

	if (read(st->timer_fd, &expirations, sizeof(expirations)) < 0)
		return; /* another turn has read it */
}

static void take_epoll_event(struct cf_stack *st, const struct epoll_event *e)
{
	struct flow *f;

	if (e->data.u64 == TAP_TAG) {
		st->tap_readable = st->tap_readable || (e->events & (EPOLLIN | EPOLLERR | EPOLLHUP));
		st->tap_writable = st->tap_writable || (e->events & EPOLLOUT);
	} else if (e->data.u64 == TIMER_TAG) {
		expire_timer(st);
		st->timer_armed = NEVER;
	} else if (e->data.u64 & MAP_TAG) {
		udp_host_event(st, e->data.u64, e->events);
	} else if ((f = flow_of_id(st, e->data.u64))) {
		tcp_host_event(st, f, e->events);
	}
}

/* Returns whether epoll had something. */
static bool take_epoll_events(struct cf_stack *st)
{
	struct epoll_event events[EPOLL_BATCH];
	int n = epoll_wait(st->epoll_fd, events, EPOLL_BATCH, 0);

	for (int i = 0; i < n; i++)
		take_epoll_event(st, &events[i]);
	return n > 0;
}

/* Rings have been given back: as many of those that wait for one may try again. */
static void wake_for_rings(struct cf_stack *st)
{
	struct flow *f;

	for (uint32_t room = ring_available(&st->rings); room > 0 && (f = list_pop(st, LIST_RING)); room--)
		list_push(st, LIST_READY, f);
}

/* No edge tells that memory is there again, so what failed is tried again after a while. */
static void retry_what_failed(struct cf_stack *st)
{
	struct flow *f;

	if (st->retry_at > st->now)
		return;
	st->retry_at = NEVER;
	ring_retry(&st->rings);
	st->tap_readable = st->tap_readable || st->tap_failing;
	st->tap_failing = false;
	while ((f = list_pop(st, LIST_MEMORY)))
		list_push(st, LIST_READY, f);
}

static void plan_retry(struct cf_stack *st)
{
	if (st->retry_at == NEVER && (st->tap_failing || st->lists[LIST_MEMORY].head != NONE || ring_exhausted(&st->rings)))
		st->retry_at = st->now + RETRY_US;
}

static void serve_flows(struct cf_stack *st)
{
	struct flow *f;

	wake_for_rings(st);

	for (int i = 0; i < FLOWS_PER_ROUND && st->tap_writable && (f = list_pop(st, LIST_READY)); i++)
		tcp_service(st, f);
}

static void send_acks(struct cf_stack *st)
{
	struct flow *f;

	while (st->tap_writable && (f = list_pop(st, LIST_ACK)))
		if (f->ack_due && !tcp_send_ack(st, f))
			list_push(st, LIST_ACK, f);
}

static void run_timers(struct cf_stack *st)
{
	struct flow *f;

	while ((f = timer_due(st))) {
		if (f->protocol == PROTO_TCP)
			tcp_timer(st, f);
		else
			udp_timer(st, f);
	}
}

static bool work_waits(const struct cf_stack *st)
{
	if (st->tap_gone)
		return false;
	return st->tap_readable || st->ready_head != NONE ||
	       (st->lists[LIST_RING].head != NONE && ring_available(&st->rings)) ||
	       (st->tap_writable && (st->lists[LIST_READY].head != NONE || st->lists[LIST_ACK].head != NONE));
}

static void round_of_work(struct cf_stack *st)
{
	if (st->tap_readable && !st->tap_gone)
		tap_read(st, FRAMES_PER_ROUND);
	udp_service(st);
	serve_flows(st);
	send_acks(st);
}

void cf_clock(cf_stack *st, uint64_t now_us)
{
	if (now_us > st->now)
		st->now = now_us;
}

int cf_turn(cf_stack *st, uint64_t now_us)
{
	int flags = 0;

	MUST(st, st->magic == MAGIC);
	st->now = now_us;
	slow_begin_turn(st);
	retry_what_failed(st);
	for (int i = 0; i < ROUNDS_PER_TURN && (take_epoll_events(st) || work_waits(st)); i++)
		round_of_work(st);
	run_timers(st);
	send_acks(st);
	plan_retry(st);
	if (!timer_arm(st) || work_waits(st))
		flags |= CF_TURN_MORE;
	if (st->lists[LIST_PENDING].head != NONE || st->slow.taken < st->slow.count)
		flags |= CF_TURN_EVENTS;
	return st->tap_gone ? flags | CF_TURN_TAP_GONE : flags;
}

/* --- small things ----------------------------------------------------------------------------------------- */

int cf_stack_fd(const cf_stack *st) { return st->epoll_fd; }

const uint64_t *cf_drops(const cf_stack *st) { return st->drops; }

uint32_t cf_unfinished(const cf_stack *st)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < st->flow_top; i++) {
		const struct flow *f = flow_at(st, i);

		n += f->protocol == PROTO_TCP && f->state >= SYN_RECEIVED && !(f->fin_taken && up_is_done(f));
	}
	return n;
}

uint64_t cf_buffered(const cf_stack *st) { return ring_bytes(&st->rings) + st->parked_bytes; }

int cf_drop(cf_stack *st, enum cf_drop why)
{
	if ((unsigned)why >= CF_DROP_COUNT)
		return CF_EINVAL;
	drop(st, (int)why);
	return CF_OK;
}

int cf_send_ip(cf_stack *st, const uint8_t *bytes, uint32_t len) { return tap_write_bytes(st, bytes, len, false); }

int cf_send_frame(cf_stack *st, const uint8_t *bytes, uint32_t len) { return tap_write_bytes(st, bytes, len, true); }
