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
	uint8_t size;          /* enum ring_size */
	uint32_t capacity;     /* bytes, a power of two */
	uint32_t head, len;    /* len bytes from head on are in order */
	uint32_t ahead_count;
	struct interval ahead[RING_HOLES]; /* sorted, apart from each other and from the in-order part */
	uint8_t bytes[];
};

/* A flow that moves bytes has a large ring. A small one carries the byte that a zero-window probe needs, and is what a flow
 * gets when all large ones are held by others: slow, but never stuck. */
enum ring_size { RING_LARGE, RING_SMALL, RING_SIZES };

struct ring_class {
	uint32_t capacity, live, limit;
	uint32_t free_count;
	struct ring *free;
};

struct ring_pool {
	struct ring_class classes[RING_SIZES];
};

/* A ring of @size, or of a smaller one when those are at their limit; NULL when all are, or memory is out. */
struct ring *ring_get(struct ring_pool *pool, enum ring_size size);
void ring_put(struct ring_pool *pool, struct ring *r);
void ring_pool_free(struct ring_pool *pool);
/* Whether ring_get(RING_SMALL) may succeed. */
bool ring_available(const struct ring_pool *pool);
/* Bytes of all rings that are held. */
uint64_t ring_bytes(const struct ring_pool *pool);
/* @len bytes from @offset on (from the front; offset + len <= capacity), in up to two pieces; returns the pieces. */
int ring_pieces(struct ring *r, uint32_t offset, uint32_t len, struct iovec out[2]);
/* Drop @len bytes from the front. */
void ring_consume(struct ring *r, uint32_t len);
/* Put @len bytes at @offset from the front, leaving bytes that are there already as they are; false when too many holes.
 * offset + len <= capacity. The in-order part grows over what has become whole. */
bool ring_insert(struct ring *r, uint32_t offset, const uint8_t *bytes, uint32_t len);

#endif
