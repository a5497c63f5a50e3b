/* bytes.c: for targets whose input has no records: libFuzzer's mutations as they are. */
#include "story.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t len, size_t max);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len, size_t max, unsigned seed)
{
	(void)seed;
	return LLVMFuzzerMutate(data, len, max);
}
