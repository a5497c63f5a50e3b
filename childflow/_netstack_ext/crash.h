/* crash.h: our own assertions, and the last frames that are kept for the one that fails. */
#ifndef CHILDFLOW_CRASH_H
#define CHILDFLOW_CRASH_H

#include <stdint.h>
#include <sys/uio.h>

#define CRASH_FRAMES 64 /* a power of two */
#define CRASH_BYTES 128 /* of a frame, its virtio header apart: all headers, and the text of a short one */
#define CRASH_HEAD 10   /* the virtio header */

enum crash_direction { CRASH_UP = 1, CRASH_DOWN = 2 }; /* as pcapng's epb_flags have it, seen from us: inbound, outbound */

struct crash_frame {
	uint64_t at;           /* microseconds of the stack's clock */
	uint32_t len;          /* of the whole frame, virtio header included */
	uint16_t kept;
	uint8_t direction;
	uint8_t bytes[CRASH_HEAD + CRASH_BYTES];
};

struct crash_ring {
	uint32_t next;         /* counts up; the place is modulo CRASH_FRAMES */
	struct crash_frame frames[CRASH_FRAMES];
};

struct cf_stack;

void crash_keep(struct cf_stack *st, enum crash_direction direction, const struct iovec *iov, int pieces);
_Noreturn void crash(struct cf_stack *st, const char *what, const char *file, int line);

/* What must hold if we have made no mistake. In every build: a stack that is wrong must not go on carrying. */
#define MUST(st, holds) (__builtin_expect(!!(holds), 1) ? (void)0 : crash((st), #holds, __FILE__, __LINE__))

#endif
