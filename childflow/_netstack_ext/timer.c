/* timer.c: when the next flow wants attention: a binary heap of flow indices, and one timerfd.
 *
 * Why so: nearly every packet moves its flow's deadline later. That only writes the field; the entry fires at the old time,
 * sees the field and sinks to where it belongs. So the cost per packet is nothing and per idle flow one visit now and then.
 * Invariant: an entry's place in the heap is at or before its flow's deadline. */
#include <sys/timerfd.h>

#include "stack.h"

/* The heap orders by `heap_key`, the deadline when the entry was last placed; kept beside the index. */
static uint64_t key(const struct cf_stack *st, uint32_t pos) { return flow_at(st, st->heap[pos])->heap_key; }

static void place(struct cf_stack *st, uint32_t pos, uint32_t index)
{
	st->heap[pos] = index;
	flow_at(st, index)->heap_pos = pos;
}

static void rise(struct cf_stack *st, uint32_t pos)
{
	uint32_t index = st->heap[pos];
	uint64_t mine = key(st, pos);

	while (pos > 0 && key(st, (pos - 1) / 2) > mine) {
		place(st, pos, st->heap[(pos - 1) / 2]);
		pos = (pos - 1) / 2;
	}
	place(st, pos, index);
}

static void sink(struct cf_stack *st, uint32_t pos)
{
	uint32_t index = st->heap[pos];
	uint64_t mine = key(st, pos);

	for (;;) {
		uint32_t child = 2 * pos + 1;

		if (child >= st->heap_len)
			break;
		if (child + 1 < st->heap_len && key(st, child + 1) < key(st, child))
			child++;
		if (key(st, child) >= mine)
			break;
		place(st, pos, st->heap[child]);
		pos = child;
	}
	place(st, pos, index);
}

void timer_set(struct cf_stack *st, struct flow *f, uint64_t deadline)
{
	f->deadline = deadline;
	if (f->heap_pos == NONE) {
		if (deadline == NEVER)
			return;
		f->heap_key = deadline;
		st->heap[st->heap_len] = f->index;
		rise(st, st->heap_len++);
	} else if (deadline < f->heap_key) {
		f->heap_key = deadline;
		rise(st, f->heap_pos);
	}
}

void timer_remove(struct cf_stack *st, struct flow *f)
{
	uint32_t pos = f->heap_pos;

	if (pos == NONE)
		return;
	MUST(st, pos < st->heap_len && st->heap[pos] == f->index);
	f->heap_pos = NONE;
	if (pos == --st->heap_len)
		return;
	place(st, pos, st->heap[st->heap_len]);
	rise(st, pos);
	sink(st, flow_at(st, st->heap[pos])->heap_pos);
}

/* The next flow whose deadline has come, taken out of the heap; NULL when there is none. */
struct flow *timer_due(struct cf_stack *st)
{
	while (st->heap_len > 0 && key(st, 0) <= st->now) {
		struct flow *f = flow_at(st, st->heap[0]);

		if (f->deadline <= st->now || f->deadline == NEVER) {
			timer_remove(st, f);
			if (f->deadline != NEVER)
				return f;
			continue;
		}
		f->heap_key = f->deadline;
		sink(st, 0);
	}
	return NULL;
}

/* Have the timer fire at the first deadline. False when it can't be set: nothing will fire, so the turn is to be taken again. */
bool timer_arm(struct cf_stack *st)
{
	uint64_t at = st->heap_len > 0 && key(st, 0) < st->retry_at ? key(st, 0) : st->retry_at, in;
	struct itimerspec spec = {0};

	if (at == st->timer_armed)
		return true;
	st->timer_armed = at;
	if (at != NEVER) {
		in = at > st->now ? at - st->now : 1;
		spec.it_value.tv_sec = (time_t)(in / US_PER_S);
		spec.it_value.tv_nsec = (long)(in % US_PER_S) * 1000;
	}
	if (timerfd_settime(st->timer_fd, 0, &spec, NULL) == 0 || at == NEVER) /* one that fires for nothing does no harm */
		return true;
	st->timer_armed = NEVER;
	return false;
}
