/* ring.h: the payload that one flow holds in one direction: a byte ring, and the intervals that arrived ahead of it. */
#ifndef CHILDFLOW_RING_H
#define CHILDFLOW_RING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#define RING_HOLES 16 /* intervals beyond a gap that one ring remembers */

struct interval {
	uint32_t start, end; /* bytes from the ring's first byte, start < end */
};

struct ring {
	struct ring *next_free;
	uint32_t head, len;   /* len bytes from head on are in order */
	uint32_t ahead_count;
	struct interval ahead[RING_HOLES]; /* sorted, apart from each other and from the in-order part */
	uint8_t bytes[];
};

struct ring_pool {
	uint32_t capacity;     /* bytes of one ring, a power of two */
	uint32_t free_count;
	uint32_t live;
	uint64_t limit;        /* rings that may be live */
	struct ring *free;
};

/* NULL when the limit is met or memory is out. */
struct ring *ring_get(struct ring_pool *pool);
void ring_put(struct ring_pool *pool, struct ring *r);
void ring_pool_free(struct ring_pool *pool);
/* The space behind the in-order part, in up to two pieces, cut to @max bytes; returns the pieces. */
int ring_space(const struct ring_pool *pool, struct ring *r, uint32_t max, struct iovec out[2]);
/* @len in-order bytes from @offset on, in up to two pieces; returns the pieces. */
int ring_text(const struct ring_pool *pool, struct ring *r, uint32_t offset, uint32_t len, struct iovec out[2]);
/* Drop @len bytes from the front. */
void ring_consume(const struct ring_pool *pool, struct ring *r, uint32_t len);
/* Put @len bytes at @offset from the front, leaving bytes that are there already as they are; false when too many holes.
 * offset + len <= capacity. The in-order part grows over what has become whole. */
bool ring_insert(const struct ring_pool *pool, struct ring *r, uint32_t offset, const uint8_t *bytes, uint32_t len);

#endif
