/* seq.h: sequence numbers (RFC 9293, 3.4). They wrap, so they are a type that `<` does not take. */
#ifndef CHILDFLOW_SEQ_H
#define CHILDFLOW_SEQ_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
	uint32_t n;
} seq;

static inline seq seq_of(uint32_t n) { return (seq){n}; }
static inline seq seq_add(seq a, uint32_t len) { return (seq){a.n + len}; }
static inline int32_t seq_diff(seq a, seq b) { return (int32_t)(a.n - b.n); }
static inline bool seq_eq(seq a, seq b) { return a.n == b.n; }
static inline bool seq_before(seq a, seq b) { return seq_diff(a, b) < 0; }
static inline bool seq_after(seq a, seq b) { return seq_diff(a, b) > 0; }
static inline seq seq_max(seq a, seq b) { return seq_before(a, b) ? b : a; }

#endif
