/* ring.h: the payload that one flow holds in one direction: a byte ring, and what of it is whole.
 * Up, intervals that arrived ahead of a gap; down, the holes in what the child has reported (tcp_recovery.c). */
#ifndef CHILDFLOW_RING_H
#define CHILDFLOW_RING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "seq.h"

#define RING_INTERVALS 128 /* beyond a gap that one ring remembers; a window of 353 segments at 20 % loss has some 60 */
#define RING_HOLES 64      /* at 10 % loss that window has some 32 */

struct interval {
	uint32_t start, end; /* bytes from the ring's first byte, start < end */
};

/* Text that was sent and not reported, before some that was. */
struct hole {
	seq start, end;
	uint32_t order;        /* of its last retransmission among the flow's; 0: it was not sent again */
	seq mark;              /* snd_max at that time */
	bool lost;             /* to be sent again */
};

struct ring {
	struct ring *next_free;
	uint8_t size;          /* enum ring_size */
	uint32_t capacity;     /* bytes, a power of two */
	uint32_t head, len;    /* len bytes from head on are in order */
	uint32_t ahead_count, hole_count; /* one of them is 0 */
	union { /* sorted and apart from each other; the intervals from the in-order part, too */
		struct interval ahead[RING_INTERVALS];
		struct hole holes[RING_HOLES];
	};
	uint8_t bytes[];
};

/* A flow that moves bytes has a large ring. A small one carries the byte that a zero-window probe needs, and is what a flow
 * gets when all large ones are held by others: slow, but never stuck. The reserved ones are small, there from the beginning,
 * and for the way down only: were all memory held by text on its way up, a host that first wants to be read from would never
 * take it. */
enum ring_size { RING_LARGE, RING_SMALL, RING_RESERVED, RING_SIZES };
enum ring_way { RING_UP, RING_DOWN };

struct ring_class {
	uint32_t capacity, live, limit;
	uint32_t free_count;
	bool exhausted;                /* malloc has failed; not asked again before a ring came back, or ring_retry() */
	struct ring *free;
};

struct ring_pool {
	struct ring_class classes[RING_SIZES];
};

/* Make the reserved rings, whose limit is set; false without memory. */
bool ring_pool_init(struct ring_pool *pool);
/* A ring of @size, or of a smaller one when those are at their limit; NULL when all are, or memory is out. */
struct ring *ring_get(struct ring_pool *pool, enum ring_size size, enum ring_way way);
/* Give *@held back, if there is one; it is NULL then. */
void ring_put(struct ring_pool *pool, struct ring **held);
void ring_pool_free(struct ring_pool *pool);
/* Bytes of the ring that ring_get(RING_LARGE, RING_UP) would give now; of a small one when there is none. */
uint32_t ring_capacity(const struct ring_pool *pool);
/* How many may get a ring by ring_get(RING_SMALL, RING_DOWN). */
uint32_t ring_available(const struct ring_pool *pool);
/* Whether some ring_get() found no memory; ring_retry() lets malloc be asked again. */
bool ring_exhausted(const struct ring_pool *pool);
void ring_retry(struct ring_pool *pool);
/* Bytes of all rings that are held. */
uint64_t ring_bytes(const struct ring_pool *pool);
/* @len > 0 bytes from @offset on (from the front; offset + len <= capacity), in up to two pieces; returns the pieces. */
int ring_pieces(struct ring *r, uint32_t offset, uint32_t len, struct iovec out[2]);
/* Drop @len bytes from the front. */
void ring_consume(struct ring *r, uint32_t len);
/* Put @len > 0 bytes at @offset from the front, leaving bytes that are there already as they are; false when too many holes.
 * offset + len <= capacity. The in-order part grows over what has become whole. */
bool ring_insert(struct ring *r, uint32_t offset, const uint8_t *bytes, uint32_t len);

#endif
