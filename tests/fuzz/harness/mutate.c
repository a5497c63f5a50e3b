/* mutate.c: mutations of stories that keep the records whole: one more, one less, another order, another byte.
 *
 * One time in five libFuzzer's own mutations have their way. replay.c brings a simple stand-in for them, so that a bounded
 * run with a fixed seed needs no libFuzzer. */
#include <string.h>

#include "story.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t len, size_t max);

#define RECORDS_MAX 128

struct records {
	size_t at[RECORDS_MAX + 1];
	int count;
};

static uint32_t chance(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

static void find_records(struct records *rs, const uint8_t *data, size_t len)
{
	size_t at = STORY_CONFIG, one;

	rs->count = 0;
	while (rs->count < RECORDS_MAX && at < len && (one = story_record_len(data + at, len - at)) > 0) {
		rs->at[rs->count++] = at;
		at += one;
	}
	rs->at[rs->count] = at;
}

static size_t insert(uint8_t *data, size_t len, size_t max, size_t at, const uint8_t *what, size_t size)
{
	if (len + size > max)
		return len;
	memmove(data + at + size, data + at, len - at);
	memcpy(data + at, what, size);
	return len + size;
}

static size_t insert_new(uint8_t *data, size_t len, size_t max, size_t at, uint32_t *state)
{
	uint8_t r[STORY_RECORD];

	for (int i = 0; i < STORY_RECORD; i++)
		r[i] = (uint8_t)(chance(state) & (chance(state) & 1 ? 0xff : 0x0f));
	r[0] = (uint8_t)(chance(state) % STEPS);
	if (r[0] == STEP_RAW)
		r[2] = r[3] = 0;
	return insert(data, len, max, at, r, sizeof(r));
}

static size_t remove_one(uint8_t *data, size_t len, const struct records *rs, int i)
{
	memmove(data + rs->at[i], data + rs->at[i + 1], len - rs->at[i + 1]);
	return len - (rs->at[i + 1] - rs->at[i]);
}

static size_t repeat(uint8_t *data, size_t len, size_t max, const struct records *rs, int i, int to)
{
	uint8_t copy[256];
	size_t size = rs->at[i + 1] - rs->at[i];

	if (size > sizeof(copy))
		return len;
	memcpy(copy, data + rs->at[i], size);
	return insert(data, len, max, rs->at[to], copy, size);
}

static void change_byte(uint8_t *record, uint32_t *state)
{
	uint8_t *byte = record + 1 + chance(state) % (STORY_RECORD - 1);

	switch (chance(state) % 4) {
	case 0: *byte ^= (uint8_t)(1 << chance(state) % 8); break;
	case 1: *byte = (uint8_t)(chance(state) % 16); break;
	case 2: *byte = (uint8_t)(*byte + 1); break;
	default: *byte = (uint8_t)chance(state);
	}
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len, size_t max, unsigned seed)
{
	uint32_t state = seed * 2654435761u + 1;
	struct records rs;

	if (len < STORY_CONFIG + STORY_RECORD || chance(&state) % 5 == 0)
		return LLVMFuzzerMutate(data, len, max);
	for (uint32_t n = 1 + chance(&state) % 4; n > 0; n--) {
		find_records(&rs, data, len);
		int i = rs.count ? (int)(chance(&state) % (uint32_t)rs.count) : -1;

		switch (i < 0 ? 0 : chance(&state) % 8) {
		case 0: case 1: len = insert_new(data, len, max, i < 0 ? len : rs.at[i + (chance(&state) & 1)], &state); break;
		case 2: len = rs.count > 1 ? remove_one(data, len, &rs, i) : len; break;
		case 3: len = repeat(data, len, max, &rs, i, (int)(chance(&state) % (uint32_t)rs.count)); break;
		case 4: data[chance(&state) % STORY_CONFIG] = (uint8_t)chance(&state); break;
		default: change_byte(data + rs.at[i], &state);
		}
	}
	return len;
}
