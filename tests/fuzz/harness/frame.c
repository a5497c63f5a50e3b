/* frame.c: the target `frame`: one virtio header and frame for a stack in one of some situations.
 *
 * The first byte chooses the situation and the family, and whether checksums are made right; the rest is the frame. Whatever
 * it is: at most one answer, nothing about nothing, the books are right, and the stack serves on. */
#include "books.h"
#include "child.h"
#include "story.h"
#include "world.h"

#define SITUATION 3
#define SECOND_FAMILY 4
#define PLAIN 8
#define MEND 16
#define HOST_IS_FULL 32

static void prepare(struct cf_stack *st, uint8_t how)
{
	int slot = how & SECOND_FAMILY ? 1 : 0;

	switch (how & SITUATION) {
	case 1: story_establish(st, slot); break;
	case 2: story_half_open(st, slot); break;
	case 3: story_peer(st, slot); break;
	}
	if ((how & HOST_IS_FULL) && world_pick(KIND_STREAM, 0))
		world_pick(KIND_STREAM, 0)->room = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	uint8_t how = len > 0 ? data[0] : 0;
	struct cf_stack *st = story_begin((const uint8_t[STORY_CONFIG]){how & PLAIN ? 0 : 1, 0, 0, 0});
	bool reset, error;

	HOLDS(st != NULL);
	prepare(st, how);
	world.down_frames = world.down_resets = down_icmp_errors = 0;
	child_sends_raw(data + (len > 0), (uint32_t)(len > 0 ? len - 1 : 0), how & MEND);
	reset = next_frame_is_reset();
	error = next_frame_is_icmp_error();
	story_rest(st, false);
	HOLDS(world.down_frames <= 1);
	HOLDS(!(reset && world.down_resets) && !(error && down_icmp_errors));
	check_books(st);
	story_end(st);
	return 0;
}

