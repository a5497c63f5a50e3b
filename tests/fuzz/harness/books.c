/* books.c: the stack's invariants, as the heads of its files state them, checked over all of its flows.
 *
 * Not here: what is on the wire (child.c). */
#include "books.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "child.h"
#include "world.h"

void fail(const char *what)
{
	fprintf(stderr, "does not hold: %s\n", what);
	abort();
}

/* --- one flow --------------------------------------------------------------------------------------------- */

static void check_ring(const struct cf_stack *st, const struct ring *r)
{
	uint32_t last = r->len;

	HOLDS(r->size < RING_SIZES && r->capacity == st->rings.classes[r->size].capacity);
	HOLDS(r->head < r->capacity && r->len <= r->capacity && r->ahead_count <= RING_INTERVALS && r->hole_count <= RING_HOLES);
	HOLDS(r->ahead_count == 0 || r->hole_count == 0);
	for (uint32_t i = 0; i < r->ahead_count; i++) {
		HOLDS(r->ahead[i].start > last && r->ahead[i].start < r->ahead[i].end);
		last = r->ahead[i].end;
	}
	HOLDS(last <= r->capacity);
}

/* The scoreboard: holes in order, apart, between what is acknowledged and what is reported. */
static void check_holes(const struct tcb *t)
{
	seq last = t->snd_una;

	HOLDS(!seq_before(t->sacked, t->snd_una) && !seq_after(t->sacked, t->snd_max));
	for (uint32_t i = 0; t->down && i < t->down->hole_count; i++) {
		const struct hole *h = &t->down->holes[i];

		HOLDS(!seq_before(h->start, last) && seq_before(h->start, h->end));
		HOLDS(!seq_after(h->end, t->sacked));
		last = h->end;
	}
}

static void check_sequence_numbers(const struct cf_stack *st, const struct flow *f)
{
	const struct tcb *t = &f->tcp;
	uint32_t unacked = (uint32_t)seq_diff(t->snd_max, t->snd_una), down = t->down ? t->down->len : 0;

	HOLDS(seq_diff(t->snd_nxt, t->snd_una) >= 0 && seq_diff(t->snd_max, t->snd_nxt) >= 0);
	HOLDS(unacked <= down + 1);
	HOLDS(seq_diff(t->rcv_adv, t->rcv_nxt) >= 0);
	HOLDS((uint32_t)seq_diff(t->rcv_adv, t->rcv_nxt) <= st->cfg.flow_window + 1);
	HOLDS(t->mss > 0);
	check_holes(t);
}

static bool may_send(const struct flow *f)
{
	return f->state >= SYN_RECEIVED && f->state <= LAST_ACK && f->state != FIN_WAIT_2;
}

/* What is not acknowledged, or can't be sent, has a timer or a place in the queue for its turn (the TAP is full, say): else the
 * flow would hang. */
static void check_timers(const struct cf_stack *st, const struct flow *f)
{
	const struct tcb *t = &f->tcp;

	if (may_send(f) && !seq_eq(t->snd_una, t->snd_max) && !(f->on_list & 1 << LIST_READY))
		HOLDS(t->rtx_at != NEVER || t->persist_at != NEVER);
	if (f->state != CONNECTING) /* a connect is timed by the kernel */
		HOLDS(f->deadline != NEVER && f->heap_pos != NONE && f->heap_key <= f->deadline && st->heap[f->heap_pos] == f->index);
}

static void check_tcp(const struct cf_stack *st, const struct flow *f)
{
	HOLDS(f->state <= DRAINING);
	if (f->tcp.up)
		check_ring(st, f->tcp.up);
	if (f->tcp.down)
		check_ring(st, f->tcp.down);
	check_timers(st, f);
	if (f->state < SYN_RECEIVED)
		HOLDS(!f->tcp.up && !f->tcp.down);
	else
		check_sequence_numbers(st, f);
	HOLDS(f->state != PARKED || f->host_fd < 0);
	if (f->held && f->host_fd >= 0)
		HOLDS(world_at(f->host_fd)->taken == 0 && !world_at(f->host_fd)->shut);
	if (!f->held && f->state >= ESTABLISHED && f->tcp.up && f->tcp.up->len > 0) /* it has left, or waits for a turn */
		HOLDS(!f->host_writable || f->send_error || (f->on_list & (1 << LIST_READY | 1 << LIST_MEMORY)));
	if (f->held && f->tcp.up && f->tcp.up->size == RING_LARGE) /* what is told must fit, since nothing leaves */
		HOLDS((uint32_t)seq_diff(f->tcp.rcv_adv, f->tcp.rcv_nxt) <= f->tcp.up->capacity - f->tcp.up->len);
	if (f->host_fd >= 0)
		HOLDS(world_at(f->host_fd)->kind == KIND_STREAM && world_at(f->host_fd)->tag == flow_id(f));
}

static bool same_end(const struct far_end *a, const struct far_end *b)
{
	return a->address_len == b->address_len && a->port == b->port && memcmp(a->address, b->address, a->address_len) == 0;
}

/* A peer with another host side is found by it: itself, or one of the same child port that has sent since. */
static void check_translated(const struct cf_stack *st, const struct flow *f)
{
	const struct far_end *to = &f->udp.to;
	struct far_end used = {.address_len = f->address_len, .port = f->remote_port};
	uint32_t i, before = 0;

	memcpy(used.address, f->remote, f->address_len);
	HOLDS(f->udp.translated == !same_end(to, &used));
	if (!f->udp.translated)
		return;
	i = st->translated[flow_hash(st->cfg.hash_key, PROTO_UDP, to->address_len, f->child_port, to->address, to->port) & st->bucket_mask];
	while (i != 0 && i != f->index + 1) {
		before = i;
		i = flow_at(st, i - 1)->udp.to_next;
	}
	HOLDS(i == f->index + 1 && f->udp.to_prev == before);
}

static void check_udp(const struct cf_stack *st, const struct flow *f)
{
	HOLDS(f->state == PARKED || f->state == OPEN);
	if (f->state == PARKED) {
		HOLDS(f->udp.map == NONE);
		return;
	}
	HOLDS(f->udp.map < st->map_count && st->maps[f->udp.map].used && !f->udp.parked && !f->held);
	HOLDS(same_end(&f->udp.to, &seen_of(f)->to));
	check_translated(st, f);
	HOLDS(st->maps[f->udp.map].child_port == f->child_port && st->maps[f->udp.map].address_len == f->host_address_len);
}

static void check_flow(const struct cf_stack *st, const struct flow *f)
{
	HOLDS(flow_of_id(st, flow_id(f)) == f);
	HOLDS(f->held == seen_of(f)->held);
	HOLDS(!f->ended || !(f->pending & PENDING_FLIGHT));
	if (!f->unhashed)
		HOLDS(flow_find(st, f->protocol, f->address_len, f->child_port, f->remote, f->remote_port) == f);
	if (f->protocol == PROTO_TCP)
		check_tcp(st, f);
	else
		check_udp(st, f);
}

/* --- all of them ------------------------------------------------------------------------------------------ */

struct count {
	uint32_t flows, udp, half_open, streams, rings, translated;
	uint64_t parked;
};

static void count_flow(struct count *c, const struct flow *f)
{
	c->flows++;
	if (f->protocol == PROTO_TCP) {
		c->streams += f->host_fd >= 0;
		c->half_open += f->state <= SYN_RECEIVED;
		c->rings += (f->tcp.up != NULL) + (f->tcp.down != NULL);
		return;
	}
	c->udp++;
	c->translated += f->state == OPEN && f->udp.translated;
}

static uint32_t open_descriptors(enum world_kind kind)
{
	uint32_t n = 0;

	for (int i = 0; i < world.fd_top; i++)
		n += world_fds[i].kind == kind;
	return n;
}

static uint32_t translated_by_maps(const struct cf_stack *st)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < st->map_count; i++)
		n += st->maps[i].used ? st->maps[i].translated : 0;
	return n;
}

void check_books(struct cf_stack *st)
{
	struct count c = {0};

	for (uint32_t i = 0; i < st->flow_top; i++) {
		const struct flow *f = flow_at(st, i);

		if (f->state == CLOSED)
			continue;
		check_flow(st, f);
		count_flow(&c, f);
	}
	HOLDS(c.flows == st->flow_count && c.udp == st->queues[QUEUE_PEERS].count && c.flows <= st->cfg.max_flows);
	HOLDS(c.rings == st->rings.classes[RING_LARGE].live + st->rings.classes[RING_SMALL].live + st->rings.classes[RING_RESERVED].live);
	HOLDS(c.streams == open_descriptors(KIND_STREAM));
	HOLDS(st->udp_sockets == open_descriptors(KIND_DATAGRAM));
	HOLDS(st->host_sockets == c.streams + st->udp_sockets); /* attached ones come on top of the limit */
	HOLDS(st->udp_sockets <= st->cfg.max_udp_sockets && c.udp <= st->cfg.max_udp_peers);
	HOLDS(st->queues[QUEUE_HALF_OPEN].count == c.half_open && c.half_open <= st->cfg.max_half_open);
	HOLDS(c.translated == translated_by_maps(st));
	HOLDS(st->heap_len <= st->flow_count);
	HOLDS(st->parked_bytes <= st->cfg.parked_bytes);
}

/* --- at the end ------------------------------------------------------------------------------------------- */

static void check_not_stuck(const struct flow *f)
{
	const struct world_fd *host = f->host_fd >= 0 ? world_at(f->host_fd) : NULL;

	if (f->state >= ESTABLISHED)
		HOLDS(!f->tcp.up);
	if (f->state != ESTABLISHED && f->state != CLOSE_WAIT)
		return;
	if (f->fin_taken && seq_after(f->tcp.snd_wl1, f->tcp.rcv_nxt))
		return; /* the child has told a window from beyond its own FIN, and can tell no other */
	HOLDS(host != NULL);
	HOLDS(host->waiting == 0 && !f->tcp.down);
	HOLDS(!host->eof && !host->error);
}

void check_nothing_stuck(struct cf_stack *st)
{
	for (uint32_t i = 0; i < st->flow_top; i++)
		if (flow_at(st, i)->state != CLOSED && flow_at(st, i)->protocol == PROTO_TCP)
			check_not_stuck(flow_at(st, i));
}

/* --- events: a question, at most one connected, one end, in this order -------------------------------------- */

static void note_event(const struct cf_event *e)
{
	struct seen *s = &seen[(uint32_t)e->flow % FLOWS_SEEN];
	uint32_t generation = (uint32_t)(e->flow >> 32);

	if (e->kind == CF_EVENT_QUESTION) {
		*s = (struct seen){.generation = generation, .asked = true, .held = s->generation == generation && s->held, .edge_known = s->generation == generation && s->edge_known,
				   .edge = s->edge};
		return;
	}
	HOLDS(s->generation == generation && s->asked && !s->ended);
	if (e->kind == CF_EVENT_FLIGHT) {
		HOLDS(s->held);
		return;
	}
	if (e->kind == CF_EVENT_CONNECTED) {
		HOLDS(!s->connected);
		s->connected = true;
		return;
	}
	HOLDS(e->kind == CF_EVENT_ENDED && e->detail <= CF_END_KILLED);
	s->ended = true;
}

void note_events(const struct cf_event *events, int n)
{
	for (int i = 0; i < n; i++) {
		if (events[i].kind == CF_EVENT_DATAGRAM || events[i].kind == CF_EVENT_SLOW)
			HOLDS(events[i].data != NULL);
		else
			note_event(&events[i]);
	}
}
