/* sequence.c: the target `sequence`: up to 64 steps of everybody (story.h). */
#include "story.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	story_tell(data, len);
	return 0;
}
