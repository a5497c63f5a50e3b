/* slow.c: the bounded queue of packets that Python handles: DNS datagrams, ARP, neighbour discovery, echo, fragments, and
 * word of spoofed ones.
 *
 * One flat buffer that Python empties after each turn; what does not fit is dropped and counted. Token buckets keep a flood
 * of rare packets from taking the CPU: two, so that fragments (45 of them make one large datagram) and the control packets
 * can't starve each other. DNS is held back by the queue's size alone. */
#include <stdlib.h>
#include <string.h>

#include "stack.h"

#define SPOOFED_HEAD 128 /* bytes: to see where it was to go, and by what protocol */

struct slow_entry {
	struct cf_event event;
	uint32_t at;
};

struct bucket bucket_of_rate(uint32_t rate, uint32_t burst)
{
	return (struct bucket){.tokens = burst, .rate = rate, .burst = burst};
}

bool bucket_take(struct bucket *b, uint64_t now)
{
	uint64_t earned = (now - b->at) * b->rate / US_PER_S;

	if (earned > 0) {
		b->tokens = earned + b->tokens > b->burst ? b->burst : b->tokens + (uint32_t)earned;
		b->at = now;
	}
	if (b->tokens == 0)
		return false;
	b->tokens--;
	return true;
}

/* A burst of a tenth of a second's worth. */
static uint32_t tenth(uint32_t rate) { return rate < 10 ? 1 : rate / 10; }

bool slow_init(struct cf_stack *st)
{
	st->slow.bytes = malloc(st->cfg.slow_bytes);
	st->slow.entries = malloc(st->cfg.slow_packets * sizeof(*st->slow.entries));
	st->slow.control = bucket_of_rate(st->cfg.control_rate, tenth(st->cfg.control_rate));
	st->slow.fragments = bucket_of_rate(st->cfg.fragment_rate, tenth(st->cfg.fragment_rate));
	st->slow.spoofed = bucket_of_rate(1, 1);
	return st->slow.bytes && st->slow.entries;
}

void slow_free(struct cf_stack *st)
{
	free(st->slow.bytes);
	free(st->slow.entries);
}

/* What Python looks at stays put until the next turn. Under a steady load there may never be a moment in which everything was
 * taken, so the space of what was is reused as soon as that is a fifth of all: for each that was taken, four move at most. */
void slow_begin_turn(struct cf_stack *st)
{
	struct slow_queue *q = &st->slow;
	uint32_t left = q->count - q->taken;
	uint32_t gone = left ? q->entries[q->taken].at : q->used;

	if (q->taken < left / 4)
		return;
	memmove(q->bytes, q->bytes + gone, q->used - gone);
	memmove(q->entries, q->entries + q->taken, left * sizeof(*q->entries));
	for (uint32_t i = 0; i < left; i++)
		q->entries[i].at -= gone;
	q->used -= gone;
	q->count = left;
	q->taken = 0;
}

static bool rate_allows(struct cf_stack *st, const struct cf_event *e)
{
	if (e->kind == CF_EVENT_DATAGRAM)
		return true;
	if (e->detail == CF_SLOW_SPOOFED)
		return true;
	return bucket_take(e->detail == CF_SLOW_FRAGMENT ? &st->slow.fragments : &st->slow.control, st->now);
}

static bool has_room(const struct cf_stack *st, uint32_t len)
{
	return st->slow.count < st->cfg.slow_packets && len <= st->cfg.slow_bytes - st->slow.used;
}

void slow_push(struct cf_stack *st, struct cf_event e, const uint8_t *bytes, uint32_t len)
{
	struct slow_queue *q = &st->slow;

	if (!has_room(st, len)) {
		drop(st, CF_DROP_SLOW_PATH_FULL);
		return;
	}
	if (!rate_allows(st, &e)) {
		drop(st, CF_DROP_SLOW_PATH_RATE);
		return;
	}
	memcpy(q->bytes + q->used, bytes, len);
	e.data_len = len;
	q->entries[q->count++] = (struct slow_entry){e, q->used};
	q->used += len;
}

/* Python hears of one a second. The packet was dropped and counted already, so one that is not told of is not counted here. */
void slow_tell_spoofed(struct cf_stack *st, const uint8_t *packet, uint32_t len)
{
	struct cf_event e = {.kind = CF_EVENT_SLOW, .detail = CF_SLOW_SPOOFED};

	len = len < SPOOFED_HEAD ? len : SPOOFED_HEAD;
	if (has_room(st, len) && bucket_take(&st->slow.spoofed, st->now))
		slow_push(st, e, packet, len);
}

int slow_events(struct cf_stack *st, struct cf_event *out, int max)
{
	struct slow_queue *q = &st->slow;
	int n = 0;

	while (n < max && q->taken < q->count) {
		out[n] = q->entries[q->taken].event;
		out[n++].data = q->bytes + q->entries[q->taken++].at;
	}
	return n;
}
