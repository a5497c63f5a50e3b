/* flow.c: the flow table: a slab of flows, a keyed hash over them, and the lists that they wait on.
 *
 * A flow is a TCP connection or a UDP peer, named by (protocol, family, child port, remote address, remote port): the
 * child's own address is fixed. Ids carry a generation, so a late answer or a late epoll event can't reach the flow that
 * took the slot. What Python must hear is a bit in `pending` and a place on LIST_PENDING, so no event can be lost and
 * none needs memory of its own.
 * Invariants: a flow in CLOSED is not in the hash; its slot is free once it is on no list.
 * Not here: what the states mean (tcp_state.c, udp.c). */
#include <stdlib.h>
#include <string.h>

#include "stack.h"

#define FLOW_BLOCK 256 /* flows made at once; 256 of them are some 100 KiB */
#define SPARE_SLOTS 1024 /* of flows that are over and whose end Python has not read: more than one turn makes */
#define GENERATION_MASK 0x7fffffffu /* bit 63 of an epoll tag says that it is a UDP map (MAP_TAG) */

bool flow_table_init(struct cf_stack *st)
{
	uint32_t blocks = (st->cfg.max_flows + SPARE_SLOTS + FLOW_BLOCK - 1) / FLOW_BLOCK, buckets = 1024;

	while (buckets < st->cfg.max_flows)
		buckets *= 2;
	st->bucket_mask = buckets - 1;
	st->blocks = calloc(blocks, sizeof(*st->blocks));
	st->buckets = malloc(buckets * sizeof(*st->buckets));
	st->heap = malloc(st->cfg.max_flows * sizeof(*st->heap));
	st->free_flow = NONE;
	for (int i = 0; i < FLOW_LISTS; i++)
		st->lists[i] = (struct list){NONE, NONE};
	for (int i = 0; i < FLOW_QUEUES; i++)
		st->queues[i] = (struct queue){NONE, NONE, 0};
	if (!st->blocks || !st->buckets || !st->heap)
		return false;
	memset(st->buckets, 0xff, buckets * sizeof(*st->buckets));
	return true;
}

static void free_what_it_holds(struct cf_stack *st, struct flow *f)
{
	/* what the host will never get must not end in a FIN that looks whole */
	host_close(st, f, f->protocol == PROTO_TCP && !(f->fin_taken && up_is_done(f)));
	if (f->protocol == PROTO_TCP)
		tcp_free(st, f);
	else
		udp_free(st, f);
}

void flow_table_free(struct cf_stack *st)
{
	for (uint32_t i = 0; i < st->flow_top; i++) {
		struct flow *f = flow_at(st, i);

		if (f->state != CLOSED)
			free_what_it_holds(st, f);
	}
	for (uint32_t i = 0; i < st->block_count; i++)
		free(st->blocks[i]);
	free(st->blocks);
	free(st->buckets);
	free(st->heap);
}

struct flow *flow_at(const struct cf_stack *st, uint32_t index) { return &st->blocks[index / FLOW_BLOCK][index % FLOW_BLOCK]; }

cf_flow_id flow_id(const struct flow *f) { return (cf_flow_id)f->generation << 32 | f->index; }

struct flow *flow_of_id(const struct cf_stack *st, cf_flow_id id)
{
	uint32_t index = (uint32_t)id;
	struct flow *f;

	if (index >= st->flow_top)
		return NULL;
	f = flow_at(st, index);
	return f->state != CLOSED && f->generation == (uint32_t)(id >> 32) ? f : NULL;
}

/* --- hash ------------------------------------------------------------------------------------------------- */

static uint32_t bucket_of(const struct cf_stack *st, uint8_t protocol, int address_len, uint16_t child_port,
			  const uint8_t *remote, uint16_t remote_port)
{
	return flow_hash(st->cfg.hash_key, protocol, address_len, child_port, remote, remote_port) & st->bucket_mask;
}

struct flow *flow_find(const struct cf_stack *st, uint8_t protocol, int address_len, uint16_t child_port,
		       const uint8_t *remote, uint16_t remote_port)
{
	uint32_t i = st->buckets[bucket_of(st, protocol, address_len, child_port, remote, remote_port)];

	while (i != NONE) {
		struct flow *f = flow_at(st, i);

		if (f->child_port == child_port && f->remote_port == remote_port && f->protocol == protocol &&
		    f->address_len == address_len && memcmp(f->remote, remote, (size_t)address_len) == 0)
			return f;
		i = f->hash_next;
	}
	return NULL;
}

/* Take @f out of the hash, so that its tuple is free for another flow; it lives on until flow_close(). */
void flow_unhash(struct cf_stack *st, struct flow *f)
{
	uint32_t *link = &st->buckets[f->bucket];

	if (f->unhashed)
		return;
	f->unhashed = true;
	while (*link != f->index) {
		MUST(st, *link != NONE);
		link = &flow_at(st, *link)->hash_next;
	}
	*link = f->hash_next;
}

/* --- slab ------------------------------------------------------------------------------------------------- */

static bool grow(struct cf_stack *st)
{
	struct flow *block;

	if (st->flow_top >= st->cfg.max_flows + SPARE_SLOTS)
		return false;
	if (st->flow_top < st->block_count * FLOW_BLOCK)
		return true;
	block = calloc(FLOW_BLOCK, sizeof(*block));
	if (!block)
		return false;
	st->blocks[st->block_count++] = block;
	return true;
}

static struct flow *slot_take(struct cf_stack *st)
{
	struct flow *f;

	if (st->flow_count >= st->cfg.max_flows)
		return NULL;
	if (st->free_flow != NONE) {
		f = flow_at(st, st->free_flow);
		st->free_flow = f->hash_next;
		return f;
	}
	if (!grow(st))
		return NULL;
	f = flow_at(st, st->flow_top);
	f->index = st->flow_top++;
	return f;
}

static void slot_release_if_unlisted(struct cf_stack *st, struct flow *f)
{
	if (f->state != CLOSED || f->on_list)
		return;
	f->hash_next = st->free_flow;
	st->free_flow = f->index;
}

/* --- room for a new one ----------------------------------------------------------------------------------- */

void flow_unqueue(struct cf_stack *st, struct flow *f)
{
	struct queue *q = &st->queues[f->queue];

	if (f->queue == QUEUE_NONE)
		return;
	MUST(st, q->count > 0);
	if (f->queue_prev == NONE)
		q->head = f->queue_next;
	else
		flow_at(st, f->queue_prev)->queue_next = f->queue_next;
	if (f->queue_next == NONE)
		q->tail = f->queue_prev;
	else
		flow_at(st, f->queue_next)->queue_prev = f->queue_prev;
	q->count--;
	f->queue = QUEUE_NONE;
}

void flow_queue(struct cf_stack *st, struct flow *f, enum flow_queue which)
{
	struct queue *q = &st->queues[which];

	if (f->queue == which && q->tail == f->index)
		return;
	flow_unqueue(st, f);
	f->queue = (uint8_t)which;
	f->queue_prev = q->tail;
	f->queue_next = NONE;
	if (q->tail == NONE)
		q->head = f->index;
	else
		flow_at(st, q->tail)->queue_next = f->index;
	q->tail = f->index;
	q->count++;
}

static void evict(struct cf_stack *st, enum flow_queue which, enum cf_drop why, enum cf_end end)
{
	if (st->queues[which].head == NONE)
		return;
	drop(st, why);
	flow_close(st, flow_at(st, st->queues[which].head), end);
}

/* Who must go so that another may come. The child hears nothing: it sends a SYN again by itself, and a datagram to a forgotten
 * peer makes a new one. Established connections never make room; UDP makes room for UDP only, and TCP for TCP. */
static void make_room(struct cf_stack *st, enum flow_queue line)
{
	bool udp = line == QUEUE_PEERS;
	enum cf_drop why = udp ? CF_DROP_UDP_PEER_EVICTED : CF_DROP_HALF_OPEN_EVICTED;
	enum cf_end end = udp ? CF_END_IDLE : CF_END_KILLED;

	if (st->queues[line].count >= (udp ? st->cfg.max_udp_peers : st->cfg.max_half_open))
		evict(st, line, why, end);
	if (st->flow_count >= st->cfg.max_flows)
		evict(st, QUEUE_DONE, CF_DROP_TIME_WAIT_EVICTED, CF_END_FIN);
	if (st->flow_count >= st->cfg.max_flows)
		evict(st, line, why, end);
}

struct flow *flow_new(struct cf_stack *st, uint8_t protocol, int address_len, uint16_t child_port, const uint8_t *remote,
		      uint16_t remote_port)
{
	enum flow_queue line = protocol == PROTO_UDP ? QUEUE_PEERS : QUEUE_HALF_OPEN;
	struct flow *f;

	make_room(st, line);
	f = slot_take(st);
	if (!f) {
		drop(st, CF_DROP_FLOW_TABLE_FULL);
		return NULL;
	}
	*f = (struct flow){
		.index = f->index, .generation = (f->generation + 1) & GENERATION_MASK, .state = PARKED,
		.protocol = protocol, .address_len = (uint8_t)address_len, .host_address_len = (uint8_t)address_len, .child_port = child_port, .remote_port = remote_port,
		.bucket = bucket_of(st, protocol, address_len, child_port, remote, remote_port),
		.host_fd = -1, .heap_pos = NONE, .deadline = NEVER, .asked_at = st->now, .active_at = st->now,
	};
	memcpy(f->remote, remote, (size_t)address_len);
	f->hash_next = st->buckets[f->bucket];
	st->buckets[f->bucket] = f->index;
	st->flow_count++;
	flow_queue(st, f, line);
	return f;
}

void flow_close(struct cf_stack *st, struct flow *f, enum cf_end end)
{
	if (f->state == CLOSED)
		return;
	free_what_it_holds(st, f);
	timer_remove(st, f);
	flow_unqueue(st, f);
	flow_report_end(st, f, end);
	flow_unhash(st, f);
	f->state = CLOSED;
	st->flow_count--;
	slot_release_if_unlisted(st, f);
}

/* --- lists ------------------------------------------------------------------------------------------------ */

void list_push(struct cf_stack *st, enum flow_list which, struct flow *f)
{
	struct list *l = &st->lists[which];

	if (f->on_list & 1 << which)
		return;
	f->on_list |= (uint8_t)(1 << which);
	f->next[which] = NONE;
	if (l->head == NONE)
		l->head = f->index;
	else
		flow_at(st, l->tail)->next[which] = f->index;
	l->tail = f->index;
}

/* The first live flow of the list; closed ones give their slots back on the way. For LIST_PENDING closed ones count too. */
struct flow *list_pop(struct cf_stack *st, enum flow_list which)
{
	struct list *l = &st->lists[which];

	while (l->head != NONE) {
		struct flow *f = flow_at(st, l->head);

		l->head = f->next[which];
		f->on_list &= (uint8_t)~(1 << which);
		if (f->state != CLOSED || which == LIST_PENDING)
			return f;
		slot_release_if_unlisted(st, f);
	}
	return NULL;
}

/* --- events ----------------------------------------------------------------------------------------------- */

static void report(struct cf_stack *st, struct flow *f, uint8_t what)
{
	f->pending |= what;
	list_push(st, LIST_PENDING, f);
}

void flow_ask(struct cf_stack *st, struct flow *f)
{
	f->asked = true;
	report(st, f, PENDING_QUESTION);
}

void flow_report_connected(struct cf_stack *st, struct flow *f)
{
	f->connected_at = st->now;
	report(st, f, PENDING_CONNECTED);
}

void flow_report_flight(struct cf_stack *st, struct flow *f) { report(st, f, PENDING_FLIGHT); }

void flow_report_end(struct cf_stack *st, struct flow *f, enum cf_end end)
{
	if (!f->asked || f->ended)
		return;
	if (f->pending & PENDING_QUESTION) { /* Python has not heard of it, and need not: in a flood most flows go so */
		f->pending = 0;
		f->asked = false;
		return;
	}
	f->ended = true;
	f->end = (uint8_t)end;
	f->ended_at = st->now;
	f->pending &= (uint8_t)~PENDING_FLIGHT; /* there is nothing to look at any more */
	report(st, f, PENDING_ENDED);
}

static void fill_event(const struct flow *f, struct cf_event *e, enum cf_event_kind kind)
{
	*e = (struct cf_event){
		.kind = (uint8_t)kind, .protocol = f->protocol, .address_len = f->address_len, .child_port = f->child_port,
		.remote_port = f->remote_port, .flow = flow_id(f), .bytes_up = f->bytes_up, .bytes_down = f->bytes_down,
	};
	memcpy(e->remote, f->remote, sizeof(e->remote));
}

/* Move one flow's waiting events to @out, which has room for three: a question comes alone, and a flight not with the end. */
static int take_pending(const struct flow *f, uint8_t pending, struct cf_event *out)
{
	int n = 0;

	if (pending & PENDING_QUESTION)
		fill_event(f, &out[n++], CF_EVENT_QUESTION);
	if (pending & PENDING_CONNECTED) {
		fill_event(f, &out[n], CF_EVENT_CONNECTED);
		out[n].error = f->connect_error;
		out[n++].duration_us = f->connected_at - f->asked_at;
	}
	if (pending & PENDING_FLIGHT) {
		fill_event(f, &out[n], CF_EVENT_FLIGHT);
		out[n++].detail = f->protocol == PROTO_TCP && f->fin_taken;
	}
	if (pending & PENDING_ENDED) {
		fill_event(f, &out[n], CF_EVENT_ENDED);
		out[n].detail = f->end;
		out[n++].duration_us = f->ended_at - f->asked_at;
	}
	return n;
}

int cf_events(cf_stack *st, struct cf_event *out, int max)
{
	int n = slow_events(st, out, max / 2); /* neither starves the other */
	struct flow *f;

	while (n + 3 <= max && (f = list_pop(st, LIST_PENDING))) {
		uint8_t pending = f->pending;

		f->pending = 0;
		n += take_pending(f, pending, out + n);
		slot_release_if_unlisted(st, f);
	}
	return n + slow_events(st, out + n, max - n);
}

uint32_t cf_flow_count(const cf_stack *st) { return st->flow_count; }
