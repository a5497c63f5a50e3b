/* ring.c: byte rings in a pool.
 *
 * Why rings: a sequence number is an offset, so retransmission, partial acknowledgement and reassembly need no list of
 * buffers. Why a pool: a flow holds a ring only while it holds bytes, so idle flows cost nothing, and the limit on all
 * payload memory is one comparison. An emptied ring starts again at its first byte, so a ring that carries little touches
 * few pages. Not here: what the bytes mean (tcp_*.c). */
#include "ring.h"

#include <stdlib.h>
#include <string.h>

#define FREE_RINGS_KEPT 32 /* freed rings of a size kept for the next flow; more go back to the system. No fewer are reserved */

static bool class_available(const struct ring_class *c) { return c->live < c->limit && (!c->exhausted || c->free); }

static struct ring *class_get(struct ring_class *c, uint8_t size)
{
	struct ring *r = c->free;

	if (!class_available(c))
		return NULL;
	if (r) {
		c->free = r->next_free;
		c->free_count--;
	} else if (!(r = malloc(sizeof(*r) + c->capacity))) {
		c->exhausted = true; /* asking again at once would spin */
		return NULL;
	}
	c->live++;
	r->size = size;
	r->capacity = c->capacity;
	r->head = r->len = r->ahead_count = r->hole_count = 0;
	return r;
}

bool ring_pool_init(struct ring_pool *pool)
{
	struct ring_class *c = &pool->classes[RING_RESERVED];

	while (c->free_count < c->limit) {
		struct ring *r = malloc(sizeof(*r) + c->capacity);

		if (!r)
			return false;
		r->next_free = c->free;
		c->free = r;
		c->free_count++;
	}
	return true;
}

struct ring *ring_get(struct ring_pool *pool, enum ring_size size, enum ring_way way)
{
	uint8_t end = way == RING_UP ? RING_RESERVED : RING_SIZES;

	for (uint8_t i = (uint8_t)size; i < end; i++) {
		struct ring *r = class_get(&pool->classes[i], i);

		if (r)
			return r;
	}
	return NULL;
}

void ring_put(struct ring_pool *pool, struct ring **held)
{
	struct ring *r = *held;
	struct ring_class *c;

	if (!r)
		return;
	*held = NULL;
	c = &pool->classes[r->size];
	c->live--;
	c->exhausted = false;
	if (c->free_count >= FREE_RINGS_KEPT) {
		free(r);
		return;
	}
	r->next_free = c->free;
	c->free = r;
	c->free_count++;
}

uint32_t ring_capacity(const struct ring_pool *pool)
{
	return pool->classes[class_available(&pool->classes[RING_LARGE]) ? RING_LARGE : RING_SMALL].capacity;
}

void ring_pool_free(struct ring_pool *pool)
{
	for (int i = 0; i < RING_SIZES; i++) {
		while (pool->classes[i].free) {
			struct ring *next = pool->classes[i].free->next_free;

			free(pool->classes[i].free);
			pool->classes[i].free = next;
		}
	}
}

uint32_t ring_available(const struct ring_pool *pool)
{
	uint32_t sum = 0;

	for (int i = RING_SMALL; i < RING_SIZES; i++) {
		const struct ring_class *c = &pool->classes[i];

		sum += class_available(c) ? c->limit - c->live : 0;
	}
	return sum;
}

bool ring_exhausted(const struct ring_pool *pool)
{
	return pool->classes[RING_LARGE].exhausted || pool->classes[RING_SMALL].exhausted;
}

void ring_retry(struct ring_pool *pool) { pool->classes[RING_LARGE].exhausted = pool->classes[RING_SMALL].exhausted = false; }

uint64_t ring_bytes(const struct ring_pool *pool)
{
	uint64_t sum = 0;

	for (int i = 0; i < RING_SIZES; i++)
		sum += (uint64_t)pool->classes[i].live * pool->classes[i].capacity;
	return sum;
}

int ring_pieces(struct ring *r, uint32_t offset, uint32_t len, struct iovec out[2])
{
	uint32_t at = (r->head + offset) & (r->capacity - 1);
	uint32_t first = r->capacity - at < len ? r->capacity - at : len;

	out[0] = (struct iovec){r->bytes + at, first};
	out[1] = (struct iovec){r->bytes, len - first};
	return first < len ? 2 : 1;
}

void ring_consume(struct ring *r, uint32_t len)
{
	r->head = (r->head + len) & (r->capacity - 1);
	r->len -= len;
	for (uint32_t i = 0; i < r->ahead_count; i++) {
		r->ahead[i].start -= len;
		r->ahead[i].end -= len;
	}
	if (r->len == 0 && r->ahead_count == 0)
		r->head = 0;
}

static void write_at(struct ring *r, uint32_t offset, const uint8_t *bytes, uint32_t len)
{
	struct iovec to[2];
	int n = ring_pieces(r, offset, len, to);

	for (int i = 0; i < n; i++) {
		memcpy(to[i].iov_base, bytes, to[i].iov_len);
		bytes += to[i].iov_len;
	}
}

/* Write only what no interval holds yet: of bytes that were sent twice, the first ones count. */
static void write_uncovered(struct ring *r, struct interval in, const uint8_t *bytes)
{
	uint32_t at = in.start;

	for (uint32_t i = 0; i < r->ahead_count && at < in.end; i++) {
		struct interval have = r->ahead[i];

		if (have.end <= at)
			continue;
		if (have.start >= in.end)
			break;
		if (have.start > at)
			write_at(r, at, bytes + (at - in.start), have.start - at);
		at = have.end;
	}
	if (at < in.end)
		write_at(r, at, bytes + (at - in.start), in.end - at);
}

/* Merge @in into the sorted intervals, where there is room for one more. */
static void interval_add(struct ring *r, struct interval in)
{
	uint32_t first = 0, last;

	while (first < r->ahead_count && r->ahead[first].end < in.start)
		first++;
	last = first;
	while (last < r->ahead_count && r->ahead[last].start <= in.end) {
		if (r->ahead[last].start < in.start)
			in.start = r->ahead[last].start;
		if (r->ahead[last].end > in.end)
			in.end = r->ahead[last].end;
		last++;
	}
	memmove(r->ahead + first + 1, r->ahead + last, (r->ahead_count - last) * sizeof(in));
	r->ahead[first] = in;
	r->ahead_count = r->ahead_count + 1 - (last - first);
}

static void absorb_ahead(struct ring *r)
{
	if (r->ahead[0].end > r->len)
		r->len = r->ahead[0].end;
	r->ahead_count--;
	memmove(r->ahead, r->ahead + 1, r->ahead_count * sizeof(r->ahead[0]));
}

bool ring_insert(struct ring *r, uint32_t offset, const uint8_t *bytes, uint32_t len)
{
	struct interval in = {offset, offset + len};

	if (offset == r->len && r->ahead_count == 0) { /* nearly always */
		write_at(r, offset, bytes, len);
		r->len += len;
		return true;
	}
	if (r->ahead_count == RING_INTERVALS && offset > r->len)
		return false;
	write_uncovered(r, in, bytes);
	if (offset == r->len) {
		r->len = in.end;
		while (r->ahead_count > 0 && r->ahead[0].start <= r->len)
			absorb_ahead(r);
		return true;
	}
	interval_add(r, in);
	return true;
}
