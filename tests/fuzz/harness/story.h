/* story.h: an input of the `sequence` target: four bytes of configuration, then records of eight bytes, each one step. A
 * STEP_RAW is followed by the bytes of its frame. Whatever the bytes are, they mean something, so every mutation does. */
#ifndef FUZZ_STORY_H
#define FUZZ_STORY_H

#include <stdint.h>
#include <stddef.h>

#include "stack.h"

#define STORY_CONFIG 4
#define STORY_RECORD 8
#define STORY_STEPS_MAX 64

/* The first byte of a record. Common steps have several numbers, so that chance finds them more often. */
enum step {
	STEP_OPEN, STEP_SAY, STEP_SAY_AGAIN, STEP_ANSWER, STEP_ANSWER_AGAIN, STEP_CONNECTED, STEP_HOST_SENDS, STEP_HOST_ENDS,
	STEP_HOST_TAKES, STEP_CLOCK, STEP_DATAGRAM, STEP_HOST_DATAGRAM, STEP_HOST_ERROR, STEP_FAULT, STEP_TAP, STEP_RAW, STEP_API,
	STEP_HONEST, STEP_TRANSFER, STEP_FLOOD, STEP_EVENTS, STEP_ESTABLISH, STEP_HOLD, STEP_HELD, STEPS
};

/* Bytes of the record at @p (@left are there), with what follows it; 0 at the end. */
size_t story_record_len(const uint8_t *p, size_t left);
/* Shared by the targets. */
struct cf_stack *story_begin(const uint8_t config[STORY_CONFIG]);
void story_establish(struct cf_stack *st, int slot);
void story_half_open(struct cf_stack *st, int slot);
void story_peer(struct cf_stack *st, int slot);
void story_rest(struct cf_stack *st, bool kick);
void story_end(struct cf_stack *st);
void story_tell(const uint8_t *data, size_t len);

/* What a target is; mutate.c and replay.c use the same names whichever is linked in. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len, size_t max, unsigned seed);

#endif
