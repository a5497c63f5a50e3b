/* siphash.c: SipHash-2-4 (Aumasson and Bernstein, 2012) over whole 64-bit words.
 *
 * The child chooses the ports and addresses that the flow table hashes, and sees the sequence numbers made from them
 * (RFC 6528), so both need a keyed hash that it can't predict. */
#include <string.h>

#include "stack.h"

static uint64_t rotate(uint64_t x, int by) { return x << by | x >> (64 - by); }

static inline void sip_round(uint64_t v[4])
{
	v[0] += v[1]; v[1] = rotate(v[1], 13); v[1] ^= v[0]; v[0] = rotate(v[0], 32);
	v[2] += v[3]; v[3] = rotate(v[3], 16); v[3] ^= v[2];
	v[0] += v[3]; v[3] = rotate(v[3], 21); v[3] ^= v[0];
	v[2] += v[1]; v[1] = rotate(v[1], 17); v[1] ^= v[2]; v[2] = rotate(v[2], 32);
}

static void absorb(uint64_t v[4], uint64_t word)
{
	v[3] ^= word;
	sip_round(v);
	sip_round(v);
	v[0] ^= word;
}

static uint64_t siphash(const uint8_t key[16], const uint64_t *words, int count)
{
	uint64_t k[2], v[4];

	memcpy(k, key, 16);
	v[0] = k[0] ^ 0x736f6d6570736575;
	v[1] = k[1] ^ 0x646f72616e646f6d;
	v[2] = k[0] ^ 0x6c7967656e657261;
	v[3] = k[1] ^ 0x7465646279746573;
	for (int i = 0; i < count; i++)
		absorb(v, words[i]);
	absorb(v, (uint64_t)count * 8 << 56);
	v[2] ^= 0xff;
	for (int i = 0; i < 4; i++)
		sip_round(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

uint64_t flow_hash(const uint8_t key[16], uint8_t protocol, int address_len, uint16_t child_port, const uint8_t *remote,
		   uint16_t remote_port)
{
	uint64_t words[3] = {0};

	words[0] = (uint64_t)protocol << 40 | (uint64_t)address_len << 32 | (uint64_t)child_port << 16 | remote_port;
	memcpy(words + 1, remote, (size_t)address_len);
	return siphash(key, words, address_len == 4 ? 2 : 3);
}
