/* checksum.c: the Internet checksum, eight bytes at a time into a 64-bit sum with end-around carry.
 *
 * Why so: the stack computes one only where the kernel did not (no offload, packets of its own), so a loop that the
 * compiler unrolls is enough. Not here: when a checksum may be left partial (tap.c, input.c). */
#include "checksum.h"

#include <arpa/inet.h>
#include <string.h>

#include "stack.h"

static uint64_t add_carry(uint64_t sum, uint64_t word)
{
	sum += word;
	return sum + (sum < word);
}

uint64_t checksum_add(uint64_t sum, const void *bytes, size_t len)
{
	const uint8_t *p = bytes;
	uint64_t word;

	for (; len >= 8; p += 8, len -= 8) {
		memcpy(&word, p, 8);
		sum = add_carry(sum, word);
	}
	if (len > 0) {
		word = 0;
		memcpy(&word, p, len);
		sum = add_carry(sum, word);
	}
	return sum;
}

uint16_t checksum_fold(uint64_t sum)
{
	sum = (sum >> 32) + (sum & 0xffffffff);
	sum = (sum >> 32) + (sum & 0xffffffff);
	sum = (sum >> 16) + (sum & 0xffff);
	sum = (sum >> 16) + (sum & 0xffff);
	return (uint16_t)((sum >> 16) + (sum & 0xffff));
}

uint64_t checksum_pseudo(const uint8_t *src, const uint8_t *dst, int address_len, uint8_t protocol, uint32_t len)
{
	uint32_t tail[2] = {htonl(len), htonl(protocol)};
	uint64_t sum = checksum_add(0, src, (size_t)address_len);

	sum = checksum_add(sum, dst, (size_t)address_len);
	return checksum_add(sum, tail, sizeof(tail));
}

uint16_t cf_checksum(const uint8_t *bytes, uint32_t len)
{
	return ntohs((uint16_t)~checksum_fold(checksum_add(0, bytes, len)));
}
