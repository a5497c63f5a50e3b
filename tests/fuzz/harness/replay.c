/* replay.c: a target without libFuzzer: every input on standard input, each after its length (4 bytes, native order); then,
 * with `replay N SEED`, N more that are mutated from them in a fixed order.
 *
 * A finding ends the program, and the last line names the input: its number and, if it was mutated, its bytes in hex. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "story.h"

#define INPUTS_MAX 20000
#define LEN_MAX 70000

static struct input {
	uint8_t *bytes;
	uint32_t len;
} inputs[INPUTS_MAX];
static uint32_t input_count, current;
static uint8_t mutant[LEN_MAX];
static size_t mutant_len;
static uint32_t state;

void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

#pragma GCC diagnostic ignored "-Wunused-result"
static void name_input(void)
{
	fprintf(stderr, "input %u", current);
	if (mutant_len > 0)
		fprintf(stderr, ", mutated: ");
	for (size_t i = 0; i < mutant_len; i++)
		fprintf(stderr, "%02x", mutant[i]);
	fprintf(stderr, "\n");
}

static void aborted(int number)
{
	name_input();
	signal(number, SIG_DFL);
	raise(number);
}

static uint32_t chance(void)
{
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state;
}

/* Instead of libFuzzer's: enough to shake the frames' bytes. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t len, size_t max)
{
	size_t at = len ? chance() % len : 0;

	switch (chance() % 4) {
	case 0:
		if (len < max) {
			memmove(data + at + 1, data + at, len - at);
			len++;
		}
		if (len > 0)
			data[at] = (uint8_t)chance();
		return len;
	case 1:
		if (len < 2)
			return len;
		memmove(data + at, data + at + 1, len - at - 1);
		return len - 1;
	case 2:
		if (len > 0)
			data[at] ^= (uint8_t)(1 << chance() % 8);
		return len;
	default:
		if (len > 0)
			data[at] = (uint8_t)chance();
		return len;
	}
}

static void read_inputs(void)
{
	uint32_t len;

	while (input_count < INPUTS_MAX && fread(&len, sizeof(len), 1, stdin) == 1) {
		uint8_t *bytes = malloc(len ? len : 1);

		if (len > LEN_MAX || fread(bytes, 1, len, stdin) != len) {
			fprintf(stderr, "input %u is cut\n", input_count);
			exit(2);
		}
		inputs[input_count++] = (struct input){bytes, len};
	}
}

static void mutate_one(uint32_t seed)
{
	const struct input *in = &inputs[chance() % input_count];

	current = (uint32_t)(in - inputs);
	memcpy(mutant, in->bytes, in->len);
	mutant_len = LLVMFuzzerCustomMutator(mutant, in->len, LEN_MAX, seed);
	LLVMFuzzerTestOneInput(mutant, mutant_len);
}

int main(int argc, char **argv)
{
	uint32_t more = argc > 2 ? (uint32_t)atoi(argv[1]) : 0;
	clock_t slowest = 0;

	state = argc > 2 ? (uint32_t)atoi(argv[2]) | 1 : 1;
	signal(SIGABRT, aborted);
	if (__sanitizer_set_death_callback)
		__sanitizer_set_death_callback(name_input);
	read_inputs();
	for (current = 0; current < input_count; current++) {
		clock_t start = clock();

		LLVMFuzzerTestOneInput(inputs[current].bytes, inputs[current].len);
		if (clock() - start > slowest)
			slowest = clock() - start;
	}
	for (uint32_t i = 0; i < more && input_count > 0; i++)
		mutate_one(chance());
	printf("%u inputs, %u mutated, slowest %ld ms\n", input_count, more, (long)(slowest * 1000 / CLOCKS_PER_SEC));
	return 0;
}
